//! Flows that are over are removed; flows that must not live on, too.

use std::collections::HashSet;

use foldhash::fast::RandomState;
use portolan_abi::{Flow, FlowKey, exit};
use portolan_core::conntrack::is_expired;
use portolan_core::wire::proto;
use portolan_node::maps::NodeFamily;
use portolan_node::{FamilyTables, MapError, Tables};

use crate::applier::{Applier, ApplyError};

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
}

impl Applier {
    /// Removes flows that are over, those of pods that are gone (another may get the address), and UDP flows whose service lost their backend: a UDP client has no way to
    /// learn that nobody listens, so it must not stay with who left.
    ///
    /// # Errors
    /// A table cannot be read or written.
    pub fn collect(&mut self, now: u32) -> Result<Collected, ApplyError> {
        let stale = std::mem::take(&mut self.stale);
        let result = collect(&self.tables.v4, &self.tables, &stale, now)
            .and_then(|v4| Ok((v4, collect(&self.tables.v6, &self.tables, &stale, now)?)));
        match result {
            Ok((v4, v6)) => Ok(Collected {
                seen: v4.seen + v6.seen,
                expired: v4.expired + v6.expired,
                stale: v4.stale + v6.stale,
            }),
            Err(error) => {
                self.stale.extend(stale);
                Err(error.into())
            }
        }
    }

    /// Whether a change left flows that [`collect`](Self::collect) should look at soon.
    #[must_use]
    pub fn has_stale_flows(&self) -> bool {
        !self.stale.is_empty()
    }
}

fn collect<F: NodeFamily>(
    family: &FamilyTables<F>,
    tables: &Tables,
    stale: &HashSet<u32, RandomState>,
    now: u32,
) -> Result<Collected, MapError> {
    let all = family.flows.dump()?;
    // Listed after the flows: a pod whose flow was listed is in this list, unless it is gone.
    let pods: HashSet<u32, RandomState> =
        family.endpoints.dump()?.iter().map(|(_, pod)| pod.ifindex).collect();
    let mut found = Collected { seen: all.len(), ..Collected::default() };
    for (key, flow) in all {
        let expired = is_expired(key.proto, &flow, now);
        let lost = || stale.contains(&flow.service) && lost_backend(&key, &flow, tables);
        let orphan = flow.exit == exit::POD && !pods.contains(&flow.ifindex);
        let gone = !expired && (orphan || lost());
        if (expired || gone) && remove_unchanged(family, &key, &flow)? {
            found.expired += usize::from(expired);
            found.stale += usize::from(gone);
        }
    }
    Ok(found)
}

/// Whether a UDP flow's service has no such backend any more.
fn lost_backend<A>(key: &FlowKey<A>, flow: &Flow<A>, tables: &Tables) -> bool {
    if key.proto != u32::from(proto::UDP) || flow.service >= tables.services.len() {
        return false;
    }
    let service = tables.services.read(flow.service);
    ![service.cluster, service.local]
        .iter()
        .any(|ring| tables.slab.slice(ring.offset(), ring.len()).contains(&flow.backend))
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
