//! Nanoseconds for each packet, as the kernel's test run counts them.

#[path = "../../../../../ebpf/src/bin/bench/control.rs"]
mod control;
mod leaving;
mod replay;

use anyhow::{Result, ensure};
use portolan_abi::{Flow, FlowKey, counter};
use portolan_core::{V4, V6};
use portolan_tests::packet::build::{Packet, flag, proto};
use portolan_tests::packet::family::Tested;
use portolan_tests::packet::fixture::site::Site;
use portolan_tests::packet::kernel::in_namespace;
use portolan_tests::packet::world::World;

use crate::report::{Goal, Row, Section, Unit, median, nanoseconds};
use replay::{Machine, Order, Replay, Stream, Target, Varies};

const HOW: &str = "`BPF_PROG_TEST_RUN` on the programs as they are loaded on a node, tables of the default size, 8,192 \
services; the kernel's own duration. A small program puts the packet back (addresses, MACs, ports; another flow's \
source port where there are many) and tail-calls the target; its cost is in every figure. Beside: the same with an \
empty target, and with one that does the least that any program with a flow table must (find the flow, write addresses \
and ports, have the checksums right, send; no checks, states or counters), in turns. The goals for established packets, 110 ns \
for one flow and 220 ns for many, are from a machine where a bare program took at most 75 ns and 165 ns; here they \
are that many times what the bare one takes. Every run checks that each packet was delivered, and that each first packet opened a flow. \
Random: 32,768 established flows in random order. A flow's first packet in each second takes the longer way that \
notes the time, so a random run over the turn of a second shows it. First packet: one service port of 8,192 after \
the other, so that frontend, service, ring and backend are cold; with eviction: the flow table (262,144 entries) is \
full. *Leaves the cluster*: masqueraded, to an outside host; first packets to 128 hosts, with 19,760 ports. *By the overlay*: \
directly to a pod of another node, and first packets to services whose backends are there; at the device: what tells the \
overlay device where each of these packets goes.";

/// Services, one after the other in the address range, as a power of two.
const SERVICE_BITS: u32 = 13;
/// Established flows, as a power of two.
const FLOW_BITS: u32 = 15;
/// Source port of the first established flow.
const ESTABLISHED_PORT: u16 = 1024;
/// Source port of the first flows that are opened while it is measured.
const NEW_PORT: u16 = 40_000;
/// Port of the first service's backend; the next ones' follow, so that no two flows look alike behind the service.
const BACKEND_PORT: u16 = 10_000;
/// Many flows.
const RANDOM: Order = Order::Random(FLOW_BITS);
/// How much longer than the bare program an established packet may take. The goals are 110 ns for one flow and 220 ns for
/// many, on a machine where a bare program took at most 75 ns and 165 ns.
const HOT: f64 = 110.0 / 75.0;
/// See [`HOT`].
const COLD: f64 = 220.0 / 165.0;
/// New flows for one measurement without eviction. All of them together stay below the size of the flow table.
const NEW_FLOWS: u32 = 8192;
/// New flows for one measurement with eviction.
const EVICTING_FLOWS: u32 = 50_000;
/// More than the flow table has entries.
const FLOOD: u32 = 300_000;

/// How often and how long.
struct Effort {
    rounds: u32,
    packets: u32,
}

pub(crate) fn measure(quick: bool) -> Result<Section> {
    let effort =
        if quick { Effort { rounds: 3, packets: 200_000 } } else { Effort { rounds: 7, packets: 1_000_000 } };
    let rows = in_namespace(|| -> Result<Vec<Row>> {
        let mut rows = machine(&effort)?;
        for proto in [proto::TCP, proto::UDP] {
            rows.extend(Case::new(Site::v4(), proto).measure::<V4>(&effort)?);
            rows.extend(Case::new(Site::v6(), proto).measure::<V6>(&effort)?);
        }
        rows.extend(leaving::measure::<V4>(&Site::v4(), &effort)?);
        rows.extend(leaving::measure::<V6>(&Site::v6(), &effort)?);
        Ok(rows)
    })?;
    Ok(Section { name: "packet", title: "Packets: pod to ClusterIP on the tcx path", how: HOW, rows })
}

/// One protocol in one family.
struct Case {
    site: Site,
    proto: u8,
}

impl Case {
    fn new(site: Site, proto: u8) -> Self {
        Self { site, proto }
    }

    fn measure<F: Tested>(&self, effort: &Effort) -> Result<Vec<Row>>
    where
        FlowKey<F::Addr>: aya::Pod,
        Flow<F::Addr>: aya::Pod,
    {
        let mut replay = Replay::load()?;
        replay.fill::<F>(&self.world())?;
        self.establish(&mut replay)?;
        replay.copy_flows::<F>()?;
        let mut rows = self.established(&mut replay, effort)?;
        rows.extend(self.replies(&mut replay, effort)?);
        rows.push(self.direct(&mut replay, effort)?);
        rows.extend(self.first(&mut replay, effort)?);
        Ok(rows)
    }

    fn name(&self) -> String {
        let proto = if self.proto == proto::TCP { "TCP" } else { "UDP" };
        format!("{proto} {}", self.site.name())
    }

    /// Every service has one backend, in the other pod.
    fn world(&self) -> World {
        let mut world = self.site.world();
        for number in 0..1u16 << SERVICE_BITS {
            let backend = world.backend(self.site.b.addr, BACKEND_PORT + number);
            let address = following(self.site.vip, number.into());
            world.service(&[self.site.front(address, 80, self.proto)], &[backend]);
        }
        world
    }

    /// What pod a sends to the services.
    fn requests(&self, flags: u8) -> Stream {
        let packet = Packet::of(self.proto, (self.site.a.addr, 0), (self.site.vip, 80), flags);
        Stream {
            frame: self.site.from_a(packet.data(&[0x2a; 32])).bytes(),
            place: self.site.at_a(),
            varies: Varies::Source,
            first_port: ESTABLISHED_PORT,
            service_bits: 0,
            outcome: counter::TO_POD,
        }
    }

    /// What pod b answers.
    fn answers(&self) -> Stream {
        let packet =
            Packet::of(self.proto, (self.site.b.addr, BACKEND_PORT), (self.site.a.addr, 0), flag::ACK);
        Stream {
            frame: self.site.from_b(packet.data(&[0x2a; 32])).bytes(),
            place: self.site.at_b(),
            varies: Varies::Destination,
            ..self.requests(flag::ACK)
        }
    }

    /// Opens all flows and answers in each.
    fn establish(&self, replay: &mut Replay) -> Result<()> {
        for stream in [self.requests(flag::SYN), self.answers(), self.requests(flag::ACK)] {
            replay.run(Target::Node("from_pod"), &stream, Order::Each(0), 1 << FLOW_BITS)?;
        }
        ensure!(replay.opened() == 1 << FLOW_BITS, "{} flows opened", replay.opened());
        Ok(())
    }

    fn established(&self, replay: &mut Replay, effort: &Effort) -> Result<Vec<Row>> {
        let stream = self.requests(flag::ACK);
        let mut rows = Vec::new();
        for (order, what, goal) in [(Order::One, "one flow", HOT), (RANDOM, "32,768 random flows", COLD)] {
            let what = format!("established {}, {what}", self.name());
            rows.extend(self.flows(replay, &stream, order, effort, &what, goal)?);
        }
        Ok(rows)
    }

    fn replies(&self, replay: &mut Replay, effort: &Effort) -> Result<[Row; 2]> {
        let what = format!("reply {}, 32,768 random flows", self.name());
        self.flows(replay, &self.answers(), RANDOM, effort, &what, COLD)
    }

    /// Pod to pod without a service: what every packet pays.
    fn direct(&self, replay: &mut Replay, effort: &Effort) -> Result<Row> {
        let (a, b) = (self.site.a.addr, self.site.b.addr);
        let packet = Packet::of(self.proto, (a, 0), (b, 9), flag::ACK).data(&[0x2a; 32]);
        let stream = Stream { frame: self.site.from_a(packet).bytes(), ..self.requests(flag::ACK) };
        let (mut node, mut empty) = (Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            node.push(replay.run(Target::Node("from_pod"), &stream, Order::One, effort.packets)?);
            empty.push(replay.run(Target::Empty, &stream, Order::One, effort.packets)?);
        }
        let row = Row::new(format!("no service, {}", self.name()), Unit::Nanoseconds, node);
        Ok(row.beside(format!("empty {}", nanoseconds(median(&empty)))))
    }

    /// A stream of established flows through `from_pod`, an empty program and a bare one, in turns; `times` is how much
    /// longer than the bare one it may take.
    fn flows(
        &self,
        replay: &mut Replay,
        stream: &Stream,
        order: Order,
        effort: &Effort,
        what: &str,
        times: f64,
    ) -> Result<[Row; 2]> {
        let (mut node, mut empty, mut bare) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            // Notes the time in every flow.
            if order != Order::One {
                replay.run(Target::Node("from_pod"), stream, Order::Each(0), 1 << FLOW_BITS)?;
            }
            node.push(replay.run(Target::Node("from_pod"), stream, order, effort.packets)?);
            empty.push(replay.run(Target::Empty, stream, order, effort.packets)?);
            bare.push(replay.run(Target::Bare, stream, order, effort.packets)?);
        }
        let ratios = node.iter().zip(&bare).map(|(node, bare)| node / bare).collect();
        let beside = format!("empty {}, bare {}", nanoseconds(median(&empty)), nanoseconds(median(&bare)));
        let ratio = Row::new(format!("{what} ÷ bare"), Unit::Times, ratios).goal(Goal::AtMost(times));
        Ok([Row::new(what, Unit::Nanoseconds, node).beside(beside), ratio])
    }

    fn first(&self, replay: &mut Replay, effort: &Effort) -> Result<Vec<Row>> {
        let stream = Stream { first_port: NEW_PORT, service_bits: SERVICE_BITS, ..self.requests(flag::SYN) };
        let mut next = 0;
        let mut some = |replay: &mut Replay, count: u32| -> Result<f64> {
            let opened = replay.opened();
            let time = replay.run(Target::Node("from_pod"), &stream, Order::Each(next), count)?;
            next += count;
            let opened = replay.opened() - opened;
            ensure!(opened == u64::from(count), "{opened} flows opened by {count} first packets");
            Ok(time)
        };
        let rounds = effort.rounds.min(5);
        let fresh = (0..rounds).map(|_| some(replay, NEW_FLOWS)).collect::<Result<_>>()?;
        some(replay, FLOOD)?;
        let evicting = (0..rounds).map(|_| some(replay, EVICTING_FLOWS)).collect::<Result<_>>()?;
        let fresh = Row::new(format!("first packet {}", self.name()), Unit::Nanoseconds, fresh);
        let what = format!("first packet {}, with eviction", self.name());
        let evicting = Row::new(what, Unit::Nanoseconds, evicting);
        Ok(vec![fresh.goal(Goal::AtMost(1000.0)), evicting])
    }
}

/// What the machine itself costs, beside what it did on the one that the goals are from.
fn machine(effort: &Effort) -> Result<Vec<Row>> {
    let mut replay = Replay::load()?;
    let samples: Vec<Machine> =
        (0..effort.rounds).map(|_| replay.machine(effort.packets)).collect::<Result<_>>()?;
    let row = |what: &str, pick: fn(&Machine) -> f64, there: &str| {
        Row::new(what, Unit::Nanoseconds, samples.iter().map(pick).collect()).beside(there)
    };
    Ok(vec![
        row(
            "an empty program alone",
            |machine| machine.empty,
            "19 ns on the machine that the goals are from",
        ),
        row("a helper's call and return", |machine| machine.call, ""),
        row("a hit in a hash table, hot", |machine| machine.lookup, "10 ns on that machine"),
    ])
}

/// The `number`th address after one.
fn following(address: std::net::IpAddr, number: u32) -> std::net::IpAddr {
    match address {
        std::net::IpAddr::V4(address) => std::net::Ipv4Addr::from_bits(address.to_bits() + number).into(),
        std::net::IpAddr::V6(address) => {
            std::net::Ipv6Addr::from_bits(address.to_bits() + u128::from(number)).into()
        }
    }
}
