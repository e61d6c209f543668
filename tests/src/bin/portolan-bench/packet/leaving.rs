//! What leaves the node: out of the cluster with the node's address, or to another node by the overlay.

use anyhow::Result;
use portolan_abi::counter;
use portolan_tests::packet::build::{Packet, flag, proto};
use portolan_tests::packet::family::Tested;
use portolan_tests::packet::fixture::site::Site;

use super::replay::{Order, Replay, Stream, Target, Varies};
use super::{
    BACKEND_PORT, Case, ESTABLISHED_PORT, Effort, NEW_FLOWS, NEW_PORT, SERVICE_BITS, following, median,
    nanoseconds,
};
use crate::report::{Row, Unit};

/// Ports to leave by: the agent's default range.
const PORTS: (u16, u16) = (10_240, 19_760);
/// The port of the flow that is established, which is the only one then.
const ONLY_PORT: u16 = 61_000;
/// Outside hosts that are asked in turn, as a power of two. All have the same route.
const HOST_BITS: u32 = 7;

/// TCP of one family.
pub(super) fn measure<F: Tested>(site: &Site, effort: &Effort) -> Result<Vec<Row>> {
    let case = Case::new(*site, proto::TCP);
    let mut rows = egress::<F>(&case, effort)?;
    rows.extend(overlay::<F>(&case, effort)?);
    Ok(rows)
}

/// Masqueraded, out of the uplink.
fn egress<F: Tested>(case: &Case, effort: &Effort) -> Result<Vec<Row>> {
    let (site, what) = (&case.site, format!("leaves the cluster, {}", case.name()));
    let mut replay = Replay::load()?;
    replay.fill::<F>(&site.with_egress(site.world(), 1))?;
    let asks = |flags| {
        let packet = Packet::tcp((site.a.addr, 0), (site.client, 443), flags).data(&[0x2a; 32]);
        let frame = site.from_a(packet).bytes();
        Stream { frame, outcome: counter::TO_UPLINK, ..case.requests(flags) }
    };
    let packet = Packet::tcp((site.client, 443), (site.node, 0), flag::SYN | flag::ACK).data(&[0x2a; 32]);
    let answer = Stream {
        frame: site.from_wire(packet).bytes(),
        place: site.at_uplink(),
        varies: Varies::Destination,
        first_port: ONLY_PORT,
        ..case.requests(flag::ACK)
    };
    replay.run(Target::Node("from_pod"), &asks(flag::SYN), Order::One, 1)?;
    replay.run(Target::Node("from_uplink"), &answer, Order::One, 1)?;
    let established = one(&mut replay, &what, "from_pod", &asks(flag::ACK), effort)?;

    let mut world = site.with_egress(site.world(), 1);
    (world.config.masquerade_first, world.config.masquerade_count) = PORTS;
    replay.fill::<F>(&world)?;
    let fresh = Stream { first_port: NEW_PORT, service_bits: HOST_BITS, ..asks(flag::SYN) };
    Ok(vec![established, first(&mut replay, &what, &fresh, effort)?])
}

/// To a pod of another node, and to services whose backends are such pods.
fn overlay<F: Tested>(case: &Case, effort: &Effort) -> Result<Vec<Row>> {
    let (site, what) = (&case.site, format!("by the overlay, {}", case.name()));
    let mut replay = Replay::load()?;
    let mut world = site.overlaid(site.with_egress(site.world(), 1));
    for number in 0..1u16 << SERVICE_BITS {
        let backend = world.backend(site.remote, BACKEND_PORT + number);
        let address = following(site.vip, number.into());
        world.service(&[site.front(address, 80, proto::TCP)], &[backend]);
    }
    replay.fill::<F>(&world)?;
    let outcome = counter::TO_OVERLAY;
    let packet = Packet::tcp((site.a.addr, 0), (site.remote, 9), flag::ACK).data(&[0x2a; 32]);
    let direct = Stream { frame: site.from_a(packet).bytes(), outcome, ..case.requests(flag::ACK) };
    let device = format!("{what}, at the device");
    let fresh = Stream {
        first_port: ESTABLISHED_PORT,
        service_bits: SERVICE_BITS,
        outcome,
        ..case.requests(flag::SYN)
    };
    Ok(vec![
        one(&mut replay, &what, "from_pod", &direct, effort)?,
        one(&mut replay, &device, "to_overlay", &direct, effort)?,
        first(&mut replay, &what, &fresh, effort)?,
    ])
}

/// The same packet again and again, and through an empty program.
fn one(
    replay: &mut Replay,
    what: &str,
    program: &'static str,
    stream: &Stream,
    effort: &Effort,
) -> Result<Row> {
    let orders = (0..effort.rounds).map(|_| (Order::One, effort.packets));
    beside_empty(replay, what.to_owned(), program, stream, orders)
}

/// A new flow with each packet, and through an empty program.
fn first(replay: &mut Replay, what: &str, stream: &Stream, effort: &Effort) -> Result<Row> {
    let orders = (0..effort.rounds.min(5)).map(|round| (Order::Each(round * NEW_FLOWS), NEW_FLOWS));
    beside_empty(replay, format!("{what}: first packet"), "from_pod", stream, orders)
}

fn beside_empty(
    replay: &mut Replay,
    what: String,
    program: &'static str,
    stream: &Stream,
    orders: impl Iterator<Item = (Order, u32)>,
) -> Result<Row> {
    let (mut node, mut empty) = (Vec::new(), Vec::new());
    for (order, packets) in orders {
        node.push(replay.run(Target::Node(program), stream, order, packets)?);
        empty.push(replay.run(Target::Empty, stream, order, packets)?);
    }
    let row = Row::new(what, Unit::Nanoseconds, node);
    Ok(row.beside(format!("empty {}", nanoseconds(median(&empty)))))
}
