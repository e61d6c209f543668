//! Flows that are over are removed; flows that must not live on, too.

use std::collections::HashSet;

use foldhash::fast::RandomState;
use portolan_abi::{Flow, exit};
use portolan_core::conntrack::{DEPARTURE, is_expired};
use portolan_node::maps::{NodeFamily, Visit};
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
    /// Entries of pods and ways that are gone, and UDP entries whose backend left their service, removed.
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
/// connections to a backend that left are reset, where their service says so. Flows whose way is gone go as well: an interface that
/// was removed, or the overlay.
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
    let (mut found, mut maybe_orphans) = (Collected::default(), Vec::new());
    let (pods, overlay) = (pods(family)?, tables.config.read(0).overlay_ifindex);
    let mut unread = None;
    let removed = family.flows.sweep(|key, flow| {
        found.seen += 1;
        if is_expired(key.proto, flow, now) {
            found.expired += 1;
            return Visit::Remove;
        }
        match stale.fate(key, flow, family, tables) {
            Some(Fate::Stale) => return Visit::Remove,
            Some(Fate::Reset) => {
                found.reset += 1;
                return Visit::Mark(DEPARTURE);
            }
            None if is_orphan(flow, &pods) => maybe_orphans.push((*key, *flow)),
            None => match stale.is_misled(flow, overlay, family) {
                Ok(true) => return Visit::Remove,
                Ok(false) => {}
                Err(err) => unread = Some(err),
            },
        }
        Visit::Keep
    })?;
    if let Some(err) = unread {
        return Err(err);
    }
    // Some of those that were expired were refreshed before they were removed.
    found.expired = found.expired.min(removed);
    found.stale = removed - found.expired;
    // A pod that came while the flows were listed is in a second list of pods.
    if !maybe_orphans.is_empty() {
        let pods = self::pods(family)?;
        for (key, flow) in maybe_orphans.iter().filter(|(_, flow)| is_orphan(flow, &pods)) {
            found.stale += usize::from(family.flows.remove_unchanged(key, flow)?);
        }
    }
    Ok(found)
}

/// Whether a flow is from or to a pod that is gone. Also from: the entry of the way back is made anew from this one, and
/// would lead there.
fn is_orphan<A>(flow: &Flow<A>, pods: &HashSet<u32, RandomState>) -> bool {
    let is_gone = |kind, ifindex| kind == exit::POD && !pods.contains(&ifindex);
    is_gone(flow.exit, flow.ifindex) || is_gone(flow.from, flow.from_ifindex)
}

/// Interfaces of the pods there are.
fn pods<F: NodeFamily>(family: &FamilyTables<F>) -> Result<HashSet<u32, RandomState>, MapError> {
    Ok(family.endpoints.dump()?.iter().map(|(_, pod)| pod.ifindex).collect())
}
