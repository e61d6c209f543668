//! Flows that are over are removed; flows that must not live on, too.

use std::collections::HashSet;

use foldhash::fast::RandomState;
use portolan_abi::{Flow, FlowKey, exit};
use portolan_core::conntrack::{depart, is_closed, is_expired};
use portolan_node::maps::NodeFamily;
use portolan_node::{FamilyTables, MapError, Tables};

use crate::applier::{Applier, ApplyError};
use crate::stale::{Fate, Stale};

/// The flow tables' clock: ticks of 2^30 ns of the kernel's coarse monotonic clock.
#[must_use]
pub fn ticks() -> u32 {
    portolan_node::clock::ticks()
}

/// What a collection saw and did, in entries: a flow has two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Entries there were.
    pub seen: usize,
    /// Entries that were silent for too long, removed.
    pub expired: usize,
    /// Entries of pods that are gone, and UDP entries whose backend left their service, removed.
    pub stale: usize,
    /// TCP entries whose backend left their service, which now tell both ends.
    pub reset: usize,
}

impl Applier {
    /// [`collect`] with what this applier knows.
    ///
    /// # Errors
    /// As there.
    pub fn collect(&mut self, now: u32) -> Result<Collected, ApplyError> {
        let stale = self.take_stale();
        collect(&self.tables, &stale, now).map_err(|error| {
            self.give_stale(stale);
            error.into()
        })
    }
}

/// Removes flows that are over, those of pods that are gone (another may get the address), and UDP flows whose service
/// lost their backend: a UDP client has no way to learn that nobody listens, so it must not stay with who left. TCP
/// connections to a backend that left are reset, where their service says so.
///
/// Services may be changed meanwhile. A set that is replaced twice while it is read may cost a flow its entry; its next
/// packet then opens it anew.
///
/// # Errors
/// A table cannot be read or written.
pub fn collect(tables: &Tables, stale: &Stale, now: u32) -> Result<Collected, MapError> {
    let v4 = collect_family(&tables.v4, tables, stale, now)?;
    let v6 = collect_family(&tables.v6, tables, stale, now)?;
    Ok(Collected {
        seen: v4.seen + v6.seen,
        expired: v4.expired + v6.expired,
        stale: v4.stale + v6.stale,
        reset: v4.reset + v6.reset,
    })
}

fn collect_family<F: NodeFamily>(
    family: &FamilyTables<F>,
    tables: &Tables,
    stale: &Stale,
    now: u32,
) -> Result<Collected, MapError> {
    let (mut seen, mut over, mut maybe_orphans) = (0, Vec::new(), Vec::new());
    let pods = pods(family)?;
    family.flows.each(|key, flow| {
        seen += 1;
        if is_expired(key.proto, &flow, now) {
            over.push((key, flow, Fate::Expired));
        } else if let Some(fate) = stale.fate(&key, &flow, family, tables) {
            over.push((key, flow, fate));
        } else if flow.exit == exit::POD && !pods.contains(&flow.ifindex) {
            maybe_orphans.push((key, flow, Fate::Stale));
        }
    })?;
    // A pod that came while the flows were listed is in a second list of pods.
    if !maybe_orphans.is_empty() {
        let pods = self::pods(family)?;
        over.extend(maybe_orphans.into_iter().filter(|(_, flow, _)| !pods.contains(&flow.ifindex)));
    }
    let mut found = Collected { seen, ..Collected::default() };
    for (key, flow, fate) in over {
        match fate {
            Fate::Reset => found.reset += usize::from(reset_same(family, &key, &flow, now)?),
            Fate::Expired => found.expired += usize::from(remove_unchanged(family, &key, &flow)?),
            Fate::Stale => found.stale += usize::from(remove_unchanged(family, &key, &flow)?),
        }
    }
    Ok(found)
}

/// Interfaces of the pods there are.
fn pods<F: NodeFamily>(family: &FamilyTables<F>) -> Result<HashSet<u32, RandomState>, MapError> {
    Ok(family.endpoints.dump()?.iter().map(|(_, pod)| pod.ifindex).collect())
}

/// Removes an entry unless a packet has refreshed or replaced it meanwhile (cilium#46298).
fn remove_unchanged<F: NodeFamily>(
    family: &FamilyTables<F>,
    key: &FlowKey<F::Addr>,
    flow: &Flow<F::Addr>,
) -> Result<bool, MapError> {
    match family.flows.get(key)? {
        Some(current) if current == *flow => family.flows.remove(key),
        _ => Ok(false),
    }
}

/// Makes an entry tell its sender that the backend left, unless it is of another flow by now. That a packet has refreshed
/// it changes nothing: a connection that is in use would never be found in between.
fn reset_same<F: NodeFamily>(
    family: &FamilyTables<F>,
    key: &FlowKey<F::Addr>,
    flow: &Flow<F::Addr>,
    now: u32,
) -> Result<bool, MapError> {
    let same = |current: &Flow<F::Addr>| {
        let Flow { seen, state, .. } = *flow;
        Flow { seen, state, ..*current } == *flow && !is_closed(current.state)
    };
    match family.flows.get(key)? {
        Some(current) if same(&current) => family.flows.insert(key, &depart(&current, now)).map(|()| true),
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use portolan_abi::Words;
    use portolan_core::wire::proto;
    use portolan_node::{Object, Sizes};

    use super::*;

    #[test]
    fn an_entry_that_a_packet_refreshed_after_it_was_listed_stays() {
        let object = Object::load(None, Sizes::small()).expect("loading the programs needs root");
        let family = object.tables().unwrap().v4;
        let [client, backend] = [1, 2].map(|last| Words::<1>::from_octets([10, 244, 1, last]));
        let key = FlowKey { src: client, dst: backend, ports: 7, proto: proto::UDP.into() };
        let listed = Flow {
            src: client,
            dst: backend,
            ports: 7,
            ifindex: 1,
            mac: [0; 3],
            exit: exit::UPLINK,
            state: 0,
            seen: 100,
            service: 3,
            backend: 4,
            from_ifindex: 2,
            from_mac: [0; 3],
            from: exit::UPLINK,
            zero: 0,
        };
        for refreshed in [Flow { seen: 101, ..listed }, Flow { backend: 5, ..listed }] {
            family.flows.insert(&key, &refreshed).unwrap();
            assert!(!remove_unchanged(&family, &key, &listed).unwrap());
            assert_eq!(family.flows.get(&key).unwrap(), Some(refreshed));
        }
        family.flows.insert(&key, &listed).unwrap();
        assert!(remove_unchanged(&family, &key, &listed).unwrap());
        assert!(!remove_unchanged(&family, &key, &listed).unwrap(), "it is gone already");
    }
}
