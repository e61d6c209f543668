//! Looking through a full flow table.

use anyhow::{Result, ensure};
use portolan_abi::{Endpoint, Flow, FlowKey, Words, endpoint_flag, exit, state};
use portolan_apply::{Applier, ticks};
use portolan_core::wire::proto;
use portolan_node::{Object, Sizes};

use super::timed;
use crate::report::{Goal, Row, Unit};

/// Flows in the table, each with two entries.
const FLOWS: u32 = 100_000;
/// Interface of the pod that all of them are of.
const POD: u32 = 7;

/// Every flow is compared with its state's lifetime, the pods there are, and, for UDP, its service's backends.
pub(super) fn reconcile(rounds: u32) -> Result<Vec<Row>> {
    let object = Object::load(None, Sizes::default())?;
    let tables = object.tables()?;
    let pod = Endpoint { ifindex: POD, mac: [0; 3], flags: endpoint_flag::LIVE };
    tables.v4.endpoints.insert(&Words::<1>::from_octets([10, 244, 0, 9]), &pod)?;
    let now = ticks();
    tables.v4.flows.insert_all((0..FLOWS).flat_map(|number| flow(number, now)))?;
    let mut applier = Applier::open(tables)?;
    let mut samples = Vec::new();
    for _ in 0..rounds {
        let (found, took) = timed(|| applier.collect(now + 1));
        let found = found?;
        // A bucket may be full before the table is: a few entries displaced others.
        ensure!(found.seen >= 2 * FLOWS as usize * 99 / 100, "{} entries seen", found.seen);
        ensure!(found.expired + found.stale == 0, "{} entries removed", found.expired + found.stale);
        samples.push(took.as_secs_f64());
    }
    Ok(vec![Row::new("100,000 flows reconciled", Unit::Seconds, samples).goal(Goal::AtMost(0.05))])
}

/// Both entries of a flow from outside to the pod, half of them TCP.
fn flow(number: u32, seen: u32) -> [(FlowKey<Words<1>>, Flow<Words<1>>); 2] {
    let addr = |octets| Words::<1>::from_octets(octets);
    let client = Words([(0xcb00_7100 + number).to_be()]);
    let proto = u32::from(if number.is_multiple_of(2) { proto::TCP } else { proto::UDP });
    let (vip, pod) = (addr([10, 96, 0, 1]), addr([10, 244, 0, 9]));
    let there = Flow {
        src: client,
        dst: pod,
        ports: 0x5000_9c40,
        ifindex: POD,
        mac: [0; 3],
        exit: exit::POD,
        state: state::ESTABLISHED,
        seen,
        service: 1,
        backend: 1,
        from_ifindex: 2,
        from_mac: [0; 3],
        from: exit::UPLINK,
        beat: 0,
    };
    let back = Flow {
        src: vip,
        dst: client,
        ifindex: 2,
        exit: exit::UPLINK,
        state: state::ESTABLISHED | state::REPLY,
        from_ifindex: POD,
        from: exit::POD,
        ..there
    };
    let ports = 0x5000_9c40;
    [
        (FlowKey { src: client, dst: vip, ports, proto }, there),
        (FlowKey { src: pod, dst: client, ports, proto }, back),
    ]
}
