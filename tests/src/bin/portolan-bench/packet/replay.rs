//! The loaded programs behind a program that puts the packet back before each run.

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, MapData, ProgramArray};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use portolan_abi::{Flow, FlowKey};
use portolan_node::{Object, Sizes, Tables};
use portolan_tests::packet::family::Tested;
use portolan_tests::packet::script::Place;
use portolan_tests::packet::world::World;

use super::control::{Control, TIMES, WORDS};

/// The bench's own programs, built together with the real ones.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../target/bpf/bpfel-unknown-none/release/portolan-bench"
));

/// Size of the kernel's `struct __sk_buff`, and where its `ifindex` is.
const CONTEXT: usize = 192;
const CONTEXT_IFINDEX: usize = 40;
/// Length of the Ethernet header.
const ETHERNET: usize = 14;
/// `TC_ACT_REDIRECT`.
const REDIRECT: u32 = 7;

/// Which port of a packet is another one in each flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Varies {
    /// A client's packets.
    Source,
    /// A backend's replies.
    Destination,
}

/// Which flows follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Always the same one.
    One,
    /// One after the other, from this one on.
    Each(u32),
    /// Any of the first so many, as a power of two.
    Random(u32),
}

/// Packets of many flows.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    /// A packet of the first flow; at least two words of data, so that each header is there.
    pub(crate) frame: Vec<u8>,
    /// Where it is caught.
    pub(crate) place: Place,
    /// Which port tells flows apart.
    pub(crate) varies: Varies,
    /// The port of the first flow.
    pub(crate) first_port: u16,
    /// Flows go to that many service addresses in turn, as a power of two.
    pub(crate) service_bits: u32,
    /// What each packet is counted as (see [`portolan_abi::counter`]).
    pub(crate) outcome: u32,
}

impl Stream {
    fn control(&self, order: Order) -> Control {
        let word = |at: usize| {
            let bytes = self.frame.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            u32::from_ne_bytes(bytes.unwrap_or_default())
        };
        let words = self.ip_words();
        let mut ip = [0; 10];
        for (number, place) in ip.iter_mut().enumerate().take(words) {
            *place = word(ETHERNET + 4 * number);
        }
        let shift = if self.varies == Varies::Source { 0 } else { 16 };
        let (next, factor, addend, down, mask) = match order {
            Order::One => (0, 1, 0, 0, 0),
            Order::Each(from) => (from.wrapping_sub(1), 1, 1, 0, u32::MAX),
            Order::Random(bits) => (0x5eed, 1_664_525, 1_013_904_223, 12, (1 << bits) - 1),
        };
        Control {
            ethernet: [word(0), word(4), word(8)],
            ip,
            ports: word(ETHERNET + 4 * words) & !(0xffff << shift),
            shift,
            first_port: self.first_port.into(),
            address: u32::from_be(ip[words - 1]),
            service_bits: self.service_bits,
            mask,
            next,
            factor,
            addend,
            down,
        }
    }

    fn is_v4(&self) -> bool {
        self.frame.get(ETHERNET).is_some_and(|first| first >> 4 == 4)
    }

    fn ip_words(&self) -> usize {
        if self.is_v4() { 5 } else { 10 }
    }
}

/// A control record as the table takes it.
fn words(c: &Control) -> [u32; WORDS] {
    let mut words = [0; WORDS];
    let tail = [
        c.ports,
        c.shift,
        c.first_port,
        c.address,
        c.service_bits,
        c.mask,
        c.next,
        c.factor,
        c.addend,
        c.down,
    ];
    let all = c.ethernet.into_iter().chain(c.ip).chain(tail);
    for (place, word) in words.iter_mut().zip(all) {
        *place = word;
    }
    words
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A program of the node.
    Node(&'static str),
    /// A program that does nothing.
    Empty,
    /// A program that does the least for a packet of a flow in the table.
    Bare,
}

impl Target {
    /// What it returns for a packet that it does not drop.
    fn returns(self) -> u32 {
        match self {
            // The packet is at its device already.
            Self::Empty | Self::Node("to_overlay") => u32::MAX,
            Self::Node(_) | Self::Bare => REDIRECT,
        }
    }
}

/// Nanoseconds of what every program is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    /// A program that does nothing, with the kernel's loop around it.
    pub(crate) empty: f64,
    /// A call of a helper and its return.
    pub(crate) call: f64,
    /// A look-up in a hash table, in all caches.
    pub(crate) lookup: f64,
}

/// The node's programs and the bench's.
pub(crate) struct Replay {
    node: Object,
    tables: Tables,
    bench: Ebpf,
    control: Array<MapData, [u32; WORDS]>,
    target: ProgramArray<MapData>,
}

impl Replay {
    /// Loads everything, with tables of the default size.
    pub(crate) fn load() -> Result<Self> {
        let mut node = Object::load(None, Sizes::default())?;
        node.load_overlay()?;
        let tables = node.tables()?;
        let mut bench = EbpfLoader::new().load(OBJECT).context("loading the bench's programs")?;
        for name in ["replay_v4", "replay_v6", "empty", "bare_v4", "bare_v6", "calls", "lookups"] {
            classifier(&mut bench, name)?.load().with_context(|| format!("loading program {name}"))?;
        }
        let control = bench.take_map("CONTROL").context("the bench's object has no CONTROL")?.try_into()?;
        let target = bench.take_map("TARGET").context("the bench's object has no TARGET")?.try_into()?;
        let table = bench.map_mut("TABLE").context("the bench's object has no TABLE")?;
        HashMap::<_, [u32; 4], u32>::try_from(table)?.insert([0; 4], 1, 0)?;
        Ok(Self { node, tables, bench, control, target })
    }

    /// Makes a family's tables those of a world.
    pub(crate) fn fill<F: Tested>(&mut self, world: &World) -> Result<()> {
        let records = world.records::<F>();
        self.tables.config.write(0, records.config);
        self.tables.slab.fill(0, &records.slab);
        for (index, service) in (0..).zip(&records.services) {
            self.tables.services.write(index, *service);
        }
        let tables = F::tables_mut(&mut self.tables);
        for (index, backend) in (0..).zip(&records.backends) {
            tables.backends.write(index, *backend);
        }
        let (keys, values): (Vec<_>, Vec<_>) = records.frontends.into_iter().unzip();
        tables.frontends.insert_all(&keys, &values).map_err(|(_, error)| error)?;
        for (address, endpoint) in &records.endpoints {
            tables.endpoints.insert(address, endpoint)?;
        }
        for (prefix, realm) in &records.realms {
            tables.realms.insert(prefix, realm)?;
        }
        Ok(())
    }

    /// Sends `count` packets of a stream to a target; nanoseconds for each, the replaying included.
    pub(crate) fn run(&mut self, target: Target, stream: &Stream, order: Order, count: u32) -> Result<f64> {
        let before = self.counted(stream.outcome)?;
        match target {
            Target::Node(name) => self.target.set(0, self.node.classifier(name)?.fd()?, 0)?,
            Target::Empty => self.aim("empty")?,
            Target::Bare => self.aim(if stream.is_v4() { "bare_v4" } else { "bare_v6" })?,
        }
        self.control.set(0, words(&stream.control(order)), 0)?;
        let mut context = [0u8; CONTEXT];
        context[CONTEXT_IFINDEX..CONTEXT_IFINDEX + 4].copy_from_slice(&stream.place.ifindex.to_ne_bytes());
        let mut options = TestRunOptions::new();
        options.data_in = Some(&stream.frame);
        options.ctx_in = Some(&context);
        options.repeat = count;
        let replay = if stream.is_v4() { "replay_v4" } else { "replay_v6" };
        let result = classifier(&mut self.bench, replay)?.test_run(options)?;
        let counted = self.counted(stream.outcome)? - before;
        let expected = if let Target::Node(_) = target { u64::from(count) } else { 0 };
        ensure!(result.return_value == target.returns(), "the last packet through {target:?}: {result:?}");
        ensure!(
            counted == expected,
            "{counted} of {count} packets are as they shall by {target:?}: {result:?}"
        );
        Ok(result.duration.as_nanos() as f64)
    }

    fn aim(&mut self, name: &str) -> Result<()> {
        let program = classifier(&mut self.bench, name)?.fd()?;
        Ok(self.target.set(0, program, 0)?)
    }

    /// Gives the bare program the flows that the node has.
    pub(crate) fn copy_flows<F: Tested>(&mut self) -> Result<()>
    where
        FlowKey<F::Addr>: aya::Pod,
        Flow<F::Addr>: aya::Pod,
    {
        let name = format!("BARE_{}", F::SUFFIX);
        let map = self.bench.map_mut(&name).with_context(|| format!("the bench's object has no {name}"))?;
        let mut bare = HashMap::<_, FlowKey<F::Addr>, Flow<F::Addr>>::try_from(map)?;
        for (key, flow) in F::tables(&self.tables).flows.dump()? {
            bare.insert(key, flow, 0)?;
        }
        Ok(())
    }

    /// What the machine itself costs.
    pub(crate) fn machine(&mut self, count: u32) -> Result<Machine> {
        let empty = self.bare("empty", count)?;
        let mut each = |name| Ok::<_, anyhow::Error>((self.bare(name, count)? - empty) / f64::from(TIMES));
        Ok(Machine { empty, call: each("calls")?, lookup: each("lookups")? })
    }

    /// Nanoseconds of one of the bench's programs without replaying.
    fn bare(&mut self, name: &str, count: u32) -> Result<f64> {
        let mut options = TestRunOptions::new();
        let frame = [0; 64];
        options.data_in = Some(&frame);
        options.repeat = count;
        let result = classifier(&mut self.bench, name)?.test_run(options)?;
        ensure!(result.return_value == u32::MAX, "{name} did not do what it shall: {result:?}");
        Ok(result.duration.as_nanos() as f64)
    }

    /// Packets with an outcome since the programs were loaded.
    fn counted(&self, outcome: u32) -> Result<u64> {
        Ok(self.tables.counters()?.get(outcome as usize).copied().unwrap_or(0))
    }

    /// Flows that were opened.
    pub(crate) fn opened(&self) -> u64 {
        (0..self.tables.services.len()).map(|index| self.tables.services.read(index).picked).sum()
    }
}

fn classifier<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = object.program_mut(name).with_context(|| format!("the bench's object has no {name}"))?;
    Ok(program.try_into()?)
}
