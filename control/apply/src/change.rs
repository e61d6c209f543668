//! One service from what it has to its plan: make all of it, publish, retire the old.

use std::sync::Arc;

use portolan_abi::{Ring, Service};
use portolan_core::{V4, V6};
use portolan_model::{Family, ServiceKey};
use portolan_node::maps::Set;
use portolan_plan::{BackendAddr, ServicePlan, ServicePort, maglev};

use crate::applier::{Applier, Installed, Retired, Slot};
use crate::family::{FamilyState, service_flags};

impl Applier {
    /// Brings one service to its plan; the frontends are written by the next flush. An error says what is full.
    pub(crate) fn change(
        &mut self,
        service: &ServiceKey,
        plan: Option<&Arc<ServicePlan>>,
    ) -> Result<(), String> {
        let old = self.installed.remove(service);
        let new = match plan.map(|plan| self.prepare_all(old.as_ref(), plan)) {
            Some(Err(full)) => {
                self.installed.extend(old.map(|old| (service.clone(), old)));
                return Err(full.to_string());
            }
            Some(Ok(new)) => new,
            None => Vec::new(),
        };
        // Only in memory: nothing shows before the flush, which compares with what the new plan claims.
        for (port, slot) in old.iter().flat_map(Installed::ports) {
            self.unclaim(port, slot.index);
        }
        let slots: Vec<Slot> = new.iter().map(|(slot, _)| *slot).collect();
        if let Some(plan) = plan {
            for ((slot, fresh), port) in new.iter().zip(&plan.ports) {
                self.publish(port, *slot, *fresh);
            }
        }
        for (port, slot) in old.iter().flat_map(Installed::ports) {
            let now = slots.iter().position(|new| new.index == slot.index);
            self.retire(port, slot, now.zip(plan).map(|(at, plan)| (plan, at, slots[at])));
        }
        if let Some(plan) = plan {
            self.installed.insert(service.clone(), Installed { plan: Arc::clone(plan), slots });
        }
        Ok(())
    }

    /// Makes all that a plan needs, each port's slot with whether its index is new; on failure nothing of it is
    /// left. Nothing is published yet.
    fn prepare_all(
        &mut self,
        old: Option<&Installed>,
        plan: &Arc<ServicePlan>,
    ) -> Result<Vec<(Slot, bool)>, Full> {
        let (mut frontends, mut ranges) = ([0; 2], [0; 2]);
        for port in &plan.ports {
            let at = usize::from(port.name.family == Family::V6);
            frontends[at] += if at == 0 { self.v4.missing(port) } else { self.v6.missing(port) };
            ranges[at] += port.sources.as_ref().map_or(0, Vec::len);
        }
        for port in old.iter().flat_map(|old| &old.plan.ports) {
            let at = usize::from(port.name.family == Family::V6);
            ranges[at] = ranges[at].saturating_sub(port.sources.as_ref().map_or(0, Vec::len));
        }
        if !self.v4.has_room(frontends[0]) || !self.v6.has_room(frontends[1]) {
            return Err(Full("frontends"));
        }
        if !self.v4.sources.has_room(ranges[0]) || !self.v6.sources.has_room(ranges[1]) {
            return Err(Full("sources"));
        }
        let mut made: Vec<(Slot, bool)> = Vec::with_capacity(plan.ports.len());
        for port in &plan.ports {
            match self.prepare(old, port) {
                Ok(slot) => made.push(slot),
                Err(full) => {
                    for ((slot, fresh), port) in made.into_iter().zip(&plan.ports) {
                        self.give_up(port, slot, fresh);
                    }
                    return Err(full);
                }
            }
        }
        Ok(made)
    }

    /// Backends, rings and index of one port; whether the index is new.
    fn prepare(&mut self, old: Option<&Installed>, port: &ServicePort) -> Result<(Slot, bool), Full> {
        let cluster = self.ring(port.name.family, &port.cluster, port.consistent)?;
        let local = match self.ring(port.name.family, &port.local, false) {
            Ok(local) => local,
            Err(full) => {
                self.let_go(port.name.family, &port.cluster, cluster);
                return Err(full);
            }
        };
        let known = old.and_then(|old| {
            let at = old.plan.ports.iter().position(|other| other.name == port.name)?;
            Some(old.slots[at].index)
        });
        if let Some(index) = known.or_else(|| self.orphan(port)) {
            return Ok((Slot { index, cluster, local }, false));
        }
        match self.indexes.take() {
            Some(index) => Ok((Slot { index, cluster, local }, true)),
            None => {
                self.let_go(port.name.family, &port.cluster, cluster);
                self.let_go(port.name.family, &port.local, local);
                Err(Full("services"))
            }
        }
    }

    /// The index that one of the port's frontends has in the kernel since before this agent started.
    fn orphan(&mut self, port: &ServicePort) -> Option<u32> {
        if self.orphans.is_empty() {
            return None;
        }
        let find = |index: Option<u32>| index.filter(|index| self.orphans.contains(index));
        let found = match port.name.family {
            Family::V4 => FamilyState::<V4>::keys(port)
                .find_map(|(key, _)| find(self.v4.written.get(&key).map(|value| value.service))),
            Family::V6 => FamilyState::<V6>::keys(port)
                .find_map(|(key, _)| find(self.v6.written.get(&key).map(|value| value.service))),
        };
        found.inspect(|index| {
            self.orphans.remove(index);
        })
    }

    /// A ring of these backends, each of them in use.
    fn ring(&mut self, family: Family, set: &[BackendAddr], consistent: bool) -> Result<Ring, Full> {
        let content = match family {
            Family::V4 => self.v4.acquire(set, &mut self.tables.v4),
            Family::V6 => self.v6.acquire(set, &mut self.tables.v6),
        };
        let content = content.ok_or(Full("backends"))?;
        let content = if consistent { lay_out(&content, set) } else { content };
        match self.rings.acquire(&content, &mut self.tables.slab) {
            Some(ring) => Ok(ring),
            None => {
                self.let_go(family, set, Ring::EMPTY);
                Err(Full("slots"))
            }
        }
    }

    /// Ends one use of a ring and of its backends; what is unused then rests.
    fn let_go(&mut self, family: Family, set: &[BackendAddr], ring: Ring) {
        if let Some(ring) = self.rings.release(ring, &self.tables.slab) {
            self.resting.add(Retired::Ring(ring));
        }
        let unused = match family {
            Family::V4 => self.v4.release(set),
            Family::V6 => self.v6.release(set),
        };
        self.rest(family, unused);
    }

    /// Lets backends rest that nobody uses any more.
    fn rest(&mut self, family: Family, unused: Vec<u32>) {
        let retired = match family {
            Family::V4 => Retired::BackendV4,
            Family::V6 => Retired::BackendV6,
        };
        for index in unused {
            self.resting.add(retired(index));
        }
    }

    /// Undoes [`prepare`](Self::prepare).
    fn give_up(&mut self, port: &ServicePort, slot: Slot, fresh: bool) {
        self.let_go(port.name.family, &port.cluster, slot.cluster);
        self.let_go(port.name.family, &port.local, slot.local);
        if fresh {
            self.indexes.give(slot.index);
        }
    }

    /// Makes a port's sets visible, then claims its frontends.
    fn publish(&mut self, port: &ServicePort, slot: Slot, fresh: bool) {
        let flags = service_flags(port);
        let affinity = port.affinity.unwrap_or(0);
        let services = &mut self.tables.services;
        if fresh {
            let Slot { index, cluster, local } = slot;
            services.write(index, Service { cluster, local, picked: 0, flags, affinity });
        } else {
            let before = services.read(slot.index);
            if before.affinity != 0 {
                self.outdated.insert(slot.index);
            }
            // A policy that allows only this node's backends ends before their ring may get empty, and begins after
            // it was filled.
            services.configure(slot.index, before.flags & flags, affinity);
            services.publish(slot.index, Set::Cluster, slot.cluster);
            services.publish(slot.index, Set::Local, slot.local);
            services.configure(slot.index, flags, affinity);
        }
        match port.name.family {
            Family::V4 => {
                self.v4.claim(port, slot.index);
                self.v4.count_vips(port, slot.index, 1);
            }
            Family::V6 => {
                self.v6.claim(port, slot.index);
                self.v6.count_vips(port, slot.index, 1);
            }
        }
    }

    /// Takes a port's frontends out.
    fn unclaim(&mut self, port: &ServicePort, index: u32) {
        match port.name.family {
            Family::V4 => {
                self.v4.disclaim(port, index);
                self.v4.count_vips(port, index, -1);
            }
            Family::V6 => {
                self.v6.disclaim(port, index);
                self.v6.count_vips(port, index, -1);
            }
        }
    }

    /// Ends an old port's uses of its rings and backends, and of its index unless a port of the new plan has it.
    fn retire(&mut self, port: &ServicePort, slot: Slot, now: Option<(&Arc<ServicePlan>, usize, Slot)>) {
        self.let_go(port.name.family, &port.cluster, slot.cluster);
        self.let_go(port.name.family, &port.local, slot.local);
        if now.is_none() {
            self.resting.add(Retired::Service(slot.index));
            self.outdated.extend(port.affinity.map(|_| slot.index));
        }
        let same_backends = now.is_some_and(|(plan, at, new)| {
            new.cluster == slot.cluster && new.local == slot.local && plan.ports[at].kept == port.kept
        });
        if !same_backends {
            self.stale.suspect(slot.index, port, now.map(|(plan, at, _)| (plan, at)));
        }
    }
}

/// Backend indexes as a consistent table of their backends.
fn lay_out(indexes: &[u32], set: &[BackendAddr]) -> Vec<u32> {
    maglev::table(set).into_iter().filter_map(|at| indexes.get(at as usize).copied()).collect()
}

/// A table has no room for a whole service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the table of {0} is full: run `portolan uninstall --keep-state`, then start the agent with a larger `--{0}`"
)]
struct Full(&'static str);
