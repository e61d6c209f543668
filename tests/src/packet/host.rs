//! Runs cases on the host, and checks what comes out.

use std::collections::BTreeMap;

use portolan_abi::{Flow, FlowKey, counter, exit, state};
use portolan_core::Family as _;
use portolan_core::conntrack::DEPARTURE;
use portolan_core::{Hook, Reason, V4, V6, Verdict};

use super::check;
use super::entry;
use super::family::Tested;
use super::memory::{Flows, Memory};
use super::script::{Expect, Frame, Leaves, Place, Script, Step};
use super::world::World;

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Outcomes that counted it, with how often.
    pub counted: BTreeMap<u32, u64>,
    /// How it left; without the way where that cannot be seen.
    pub leaves: Leaves,
    /// What left.
    pub frame: Vec<u8>,
    /// Flows it opened.
    pub opened: u64,
    /// Whether the short way was enough, where that can be seen.
    pub short: Option<bool>,
}

/// Something that runs packets.
pub trait Machine<F: Tested> {
    /// Its name in messages.
    fn name(&self) -> &'static str;
    /// Writes a world; flows stay.
    fn change(&mut self, world: &World);
    /// Lets time pass.
    fn wait(&mut self, ticks: u32);
    /// Removes flow entries.
    fn lose(&mut self, keys: &[FlowKey<F::Addr>]);
    /// Has all flow entries tell that their backend left.
    fn depart(&mut self);
    /// Runs a packet.
    fn run(&mut self, place: Place, frame: &[u8]) -> Seen;
    /// All flow entries; `seen` is how many ticks ago.
    fn flows(&self) -> Flows<F>;
}

/// The host's own machine.
pub struct Host<F: Tested> {
    tables: Memory<F>,
    now: u32,
}

impl<F: Tested> Host<F> {
    /// In a world, without flows.
    #[must_use]
    pub fn new(world: &World) -> Self {
        Self { tables: Memory::new(world), now: 1000 }
    }
}

impl<F: Tested> Machine<F> for Host<F> {
    fn name(&self) -> &'static str {
        "host"
    }

    fn change(&mut self, world: &World) {
        self.tables.change(world);
    }

    fn wait(&mut self, ticks: u32) {
        self.now += ticks;
    }

    fn lose(&mut self, keys: &[FlowKey<F::Addr>]) {
        self.tables.flows.borrow_mut().retain(|key, _| !keys.contains(key));
    }

    fn depart(&mut self) {
        self.tables.flows.borrow_mut().values_mut().for_each(|flow| flow.state |= DEPARTURE);
    }

    fn run(&mut self, place: Place, frame: &[u8]) -> Seen {
        let opened = |tables: &Memory<F>| tables.picked.borrow().values().sum::<u64>();
        let before = opened(&self.tables);
        self.tables.now.set(self.now);
        let (verdict, short, out) = match not_ip(place.hook, frame) {
            Some(verdict) => (verdict, false, frame.to_vec()),
            None => entry::one(place.hook, place.ifindex, frame, &self.tables, self.now),
        };
        Seen {
            counted: BTreeMap::from([(verdict.outcome(), 1)]),
            leaves: leaves(place.hook, &verdict),
            frame: out,
            opened: opened(&self.tables) - before,
            short: Some(short),
        }
    }

    fn flows(&self) -> Flows<F> {
        let age = |(key, flow): (&FlowKey<F::Addr>, &Flow<F::Addr>)| {
            (*key, Flow { seen: self.now - flow.seen, beat: 0, ..*flow })
        };
        self.tables.flows.borrow().iter().map(age).collect()
    }
}

/// What the programs say to other than IP before they ask for a decision.
fn not_ip<F: Tested>(hook: Hook, frame: &[u8]) -> Option<Verdict<F>> {
    let kind = u16::from_be_bytes([frame[12], frame[13]]);
    match kind {
        V4::ETHERTYPE | V6::ETHERTYPE => None,
        _ if hook == Hook::Pod => Some(Verdict::Drop(Reason::NotIp)),
        _ => Some(Verdict::Pass(counter::PASSED)),
    }
}

fn leaves<F: Tested>(hook: Hook, verdict: &Verdict<F>) -> Leaves {
    let exit = match verdict {
        Verdict::Pass(_) => return Leaves::Passed,
        Verdict::Drop(_) | Verdict::Wait | Verdict::Release => return Leaves::Dropped,
        Verdict::Deliver(exit)
        | Verdict::Forward(_, exit)
        | Verdict::ForwardError(_, exit)
        | Verdict::AnswerEcho(exit)
        | Verdict::Encapsulate(exit)
        | Verdict::TooBig(exit)
        | Verdict::Reject(exit, _) => exit,
    };
    if hook == Hook::PodEgress || exit.kind == exit::STACK {
        return Leaves::Passed;
    }
    Leaves::Redirected(exit.kind, exit.ifindex)
}

/// Runs a case on machines in step; they must also agree with each other on flows.
///
/// # Errors
/// The first thing that is not as stated, with the tables.
pub fn run<F: Tested>(script: &Script, machines: &mut [&mut dyn Machine<F>]) -> Result<(), String> {
    for machine in machines.iter_mut() {
        machine.change(&script.world);
    }
    for (number, step) in script.steps.iter().enumerate() {
        for machine in machines.iter_mut() {
            take(step, *machine).map_err(|error| {
                let tables = print_flows::<F>(&machine.flows());
                format!("step {number} ({step:?}) on the {}: {error}\n{tables}", machine.name())
            })?;
        }
        agree::<F>(machines).map_err(|error| format!("after step {number} ({step:?}): {error}"))?;
    }
    Ok(())
}

fn take<F: Tested>(step: &Step, machine: &mut dyn Machine<F>) -> Result<(), String> {
    match step {
        Step::Packet(place, bytes, expect) => judge(&machine.run(*place, bytes), expect),
        Step::Change(world) => {
            machine.change(world);
            Ok(())
        }
        Step::Wait(ticks) => {
            machine.wait(*ticks);
            Ok(())
        }
        Step::Lose(direction) => {
            let flows = machine.flows().into_iter();
            let lost = flows.filter(|(_, flow)| flow.state & state::REPLY == *direction).map(|(key, _)| key);
            machine.lose(&lost.collect::<Vec<_>>());
            Ok(())
        }
        Step::Depart => {
            machine.depart();
            Ok(())
        }
        Step::Flows(count) => same("flow entries", &machine.flows().len(), count),
        Step::State(bits) => {
            let states = machine.flows().into_values().map(|flow| flow.state & !state::REPLY);
            same("states", &states.collect::<Vec<u8>>(), &vec![*bits; machine.flows().len()])
        }
    }
}

fn judge(seen: &Seen, expect: &Expect) -> Result<(), String> {
    same("outcomes", &names(&seen.counted), &names(&BTreeMap::from([(expect.outcome, 1)])))?;
    let leaves = match (seen.leaves, expect.leaves) {
        // The kernel does not show where to.
        (Leaves::Redirected(u8::MAX, _), Leaves::Redirected(..)) => expect.leaves,
        (leaves, _) => leaves,
    };
    same("ways out", &leaves, &expect.leaves)?;
    same("opened flows", &seen.opened, &u64::from(expect.opens))?;
    if let (Some(seen), Some(expected)) = (seen.short, expect.short) {
        same("use of the short way", &seen, &expected)?;
    }
    match &expect.frame {
        Frame::Is(bytes) if *bytes == seen.frame => Ok(()),
        Frame::Is(bytes) => Err(format!("packet:\n{}expected:\n{}", show(&seen.frame), show(bytes))),
        Frame::Accepted(accept) => check::checksums(&seen.frame)
            .and_then(|()| accept(&seen.frame))
            .map_err(|error| format!("packet: {error}\n{}", show(&seen.frame))),
    }
}

/// Ticks that a kernel's clock may go on while a case runs, on a slow machine.
const DRIFT: u32 = 16;

/// Whether all machines have the same flows, of about the same age.
///
/// # Errors
/// Both tables.
pub fn agree<F: Tested>(machines: &[&mut dyn Machine<F>]) -> Result<(), String> {
    let [first, rest @ ..] = machines else { return Ok(()) };
    let flows = first.flows();
    for machine in rest {
        let mut others = machine.flows();
        for (key, other) in &mut others {
            if let Some(flow) = flows.get(key)
                && other.seen.abs_diff(flow.seen) <= DRIFT
            {
                other.seen = flow.seen;
            }
        }
        if others != flows {
            let (a, b) = (print_flows::<F>(&flows), print_flows::<F>(&others));
            return Err(format!("{} and {} disagree on flows:\n{a}\n{b}", first.name(), machine.name()));
        }
    }
    Ok(())
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, seen: &T, expected: &T) -> Result<(), String> {
    if seen == expected { Ok(()) } else { Err(format!("{what}: {seen:?}, expected {expected:?}")) }
}

fn names(counted: &BTreeMap<u32, u64>) -> BTreeMap<&'static str, u64> {
    counted.iter().map(|(index, count)| (counter::ALL[*index as usize].name, *count)).collect()
}

fn show(frame: &[u8]) -> String {
    let decoded = match check::decode(frame) {
        Ok(packet) => format!("{} > {} proto {} ttl {}", packet.src, packet.dst, packet.proto, packet.ttl),
        Err(error) => error,
    };
    let sums = check::checksums(frame).err().unwrap_or_else(|| "checksums right".into());
    format!("  {decoded}; {sums}\n{}", check::dump(frame))
}

fn print_flows<F: Tested>(flows: &Flows<F>) -> String {
    let line = |(key, flow): (&FlowKey<F::Addr>, &Flow<F::Addr>)| {
        let ((a, b), (c, d)) = (super::apply::ports(key.ports), super::apply::ports(flow.ports));
        let (src, dst, new_src, new_dst) = (F::ip(key.src), F::ip(key.dst), F::ip(flow.src), F::ip(flow.dst));
        let Flow { exit, ifindex, state, seen, service, backend, mac, .. } = flow;
        format!(
            "  flow {} {src} {a} > {dst} {b}: {new_src} {c} > {new_dst} {d}, exit {exit} at {ifindex} {mac:04x?}, \
             state {state:#08b}, {seen} ago, service {service}, backend {backend}\n",
            key.proto
        )
    };
    flows.iter().map(line).collect()
}
