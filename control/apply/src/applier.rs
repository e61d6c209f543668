//! The one writer of the service tables.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::RandomState;
use portolan_abi::{Config, Ring, Service};
use portolan_core::{V4, V6};
use portolan_model::{Family, ServiceKey};
use portolan_node::grace::{self, Resting};
use portolan_node::{MapError, Tables};
use portolan_plan::{NodePlan, ServicePlan, ServicePort};

use crate::family::{FamilyState, Size};
use crate::index::IndexPool;
use crate::rings::Rings;
use crate::stale::Stale;

/// The tables could not be brought to the desired state.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A table could not be read or written. What was not written is written with the next change.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The kernel refused to wait for a grace period.
    #[error("waiting for a grace period before indexes are used again: {0}")]
    Grace(#[source] std::io::Error),
}

/// A service that does not fit. What it had before stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The service.
    pub service: ServiceKey,
    /// Which table is full, and what to do.
    pub reason: String,
}

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Services brought to their desired state.
    pub applied: usize,
    /// Services that do not fit.
    pub refused: Vec<Refused>,
}

/// How full the tables are: in use or at rest, and all there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Services: ports × families.
    pub services: (u32, u32),
    /// Slots of all rings.
    pub slots: (u32, u32),
    /// IPv4 frontends and marks.
    pub frontends_v4: (u32, u32),
    /// IPv6 frontends and marks.
    pub frontends_v6: (u32, u32),
    /// IPv4 backends.
    pub backends_v4: (u32, u32),
    /// IPv6 backends.
    pub backends_v6: (u32, u32),
}

/// One port of an installed service, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortState {
    /// Index of the service in the kernel.
    pub index: u32,
    /// Flows opened since it got its index.
    pub picked: u64,
    /// Index of each backend of the Cluster set, in its order, and the flows opened to it.
    pub backends: Vec<(u32, u64)>,
}

type Map<K, V> = HashMap<K, V, RandomState>;

/// An installed service.
#[derive(Debug)]
pub(crate) struct Installed {
    pub(crate) plan: Arc<ServicePlan>,
    /// One for each port of the plan.
    pub(crate) slots: Vec<Slot>,
}

/// What one port occupies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    pub(crate) index: u32,
    pub(crate) cluster: Ring,
    pub(crate) local: Ring,
}

/// Things at rest that are not worth a grace period yet.
const RESTING_LIMIT: usize = 1 << 14;

/// What waits for a grace period.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Retired {
    Service(u32),
    Ring(Ring),
    BackendV4(u32),
    BackendV6(u32),
}

/// Writes services into the kernel's tables, and remembers what it wrote.
pub struct Applier {
    pub(crate) tables: Tables,
    pub(crate) rings: Rings,
    pub(crate) indexes: IndexPool,
    pub(crate) v4: FamilyState<V4>,
    pub(crate) v6: FamilyState<V6>,
    pub(crate) installed: Map<ServiceKey, Installed>,
    /// Services found in the kernel at start that no desired service has claimed yet.
    pub(crate) orphans: HashSet<u32, RandomState>,
    pub(crate) resting: Resting<Retired>,
    /// Services whose flows may point to a backend they no longer have.
    pub(crate) stale: Stale,
    /// Services whose clients may remember a backend they no longer have.
    pub(crate) outdated: HashSet<u32, RandomState>,
}

impl Applier {
    /// Takes the tables over as they are: what another agent wrote is kept until [`sweep`](Self::sweep).
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn open(tables: Tables) -> Result<Self, ApplyError> {
        let mut applier = Self {
            rings: Rings::new(tables.slab.len()),
            indexes: IndexPool::new(tables.services.len()),
            v4: FamilyState::new(&tables.v4),
            v6: FamilyState::new(&tables.v6),
            installed: Map::default(),
            orphans: HashSet::default(),
            resting: Resting::default(),
            stale: Stale::default(),
            outdated: HashSet::default(),
            tables,
        };
        applier.adopt()?;
        Ok(applier)
    }

    /// The tables. Services are written by this type only.
    #[must_use]
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Says what the node is, and what the addresses of the others are.
    ///
    /// # Errors
    /// A table cannot be written.
    pub fn set_node(&mut self, config: Config, node: &NodePlan) -> Result<(), ApplyError> {
        self.tables.config.write(0, config);
        self.v4.set_nodes(node);
        self.v6.set_nodes(node);
        self.v4.refresh_flags(&mut self.tables.v4);
        self.v6.refresh_flags(&mut self.tables.v6);
        // Each part goes on when another fails.
        let flushed = self.flush();
        let v4 = self.v4.realms.set(&self.tables.v4, &node.realms);
        let v6 = self.v6.realms.set(&self.tables.v6, &node.realms);
        flushed?;
        Ok(v4.and(v6)?)
    }

    /// Says what the node is; its addresses and those of others stay.
    pub fn set_config(&mut self, config: Config) {
        self.tables.config.write(0, config);
    }

    /// Brings services to their plans; `None` removes one.
    ///
    /// # Errors
    /// A table cannot be written; what is missing is written with the next change.
    pub fn apply(
        &mut self,
        changes: &[(ServiceKey, Option<Arc<ServicePlan>>)],
    ) -> Result<Outcome, ApplyError> {
        let mut outcome = Outcome::default();
        if self.installed.is_empty() {
            self.reserve(changes);
        }
        for (service, plan) in changes {
            match self.change(service, plan.as_ref()) {
                Ok(()) => outcome.applied += 1,
                Err(reason) => {
                    tracing::warn!(%service, %reason, "service refused");
                    outcome.refused.push(Refused { service: service.clone(), reason });
                }
            }
        }
        self.flush()?;
        // Resting things are few and cost nothing; a change should not wait for them.
        if self.resting.len() > RESTING_LIMIT {
            self.settle()?;
        }
        Ok(outcome)
    }

    /// Makes room for a first set of services: growing step by step costs as much as all the rest.
    fn reserve(&mut self, changes: &[(ServiceKey, Option<Arc<ServicePlan>>)]) {
        let (mut v4, mut v6) = (Size::default(), Size::default());
        for port in changes.iter().filter_map(|(_, plan)| plan.as_ref()).flat_map(|plan| &plan.ports) {
            match port.name.family {
                Family::V4 => v4.add(port),
                Family::V6 => v6.add(port),
            }
        }
        self.installed.reserve(changes.len());
        self.rings.reserve(v4.ports + v6.ports);
        self.v4.reserve(&v4);
        self.v6.reserve(&v6);
    }

    /// Writes everything that waits to be written.
    fn flush(&mut self) -> Result<(), ApplyError> {
        self.v4.flush(&self.tables.v4)?;
        self.v6.flush(&self.tables.v6)?;
        Ok(())
    }

    /// Waits for a grace period, then lets clients forget backends that left, and makes what rests available again.
    /// Between changes, not within them.
    ///
    /// # Errors
    /// The kernel refuses to wait.
    pub fn settle(&mut self) -> Result<(), ApplyError> {
        // What could not be written before: indexes that a frontend still names must not be used again.
        self.flush()?;
        if self.resting.is_empty() && self.outdated.is_empty() {
            return Ok(());
        }
        grace::period().map_err(ApplyError::Grace)?;
        for retired in self.resting.take() {
            match retired {
                Retired::Service(index) => {
                    self.tables.services.write(index, Service::default());
                    self.indexes.give(index);
                }
                Retired::Ring(ring) => self.rings.recycle(ring),
                Retired::BackendV4(index) => self.v4.recycle(index, &mut self.tables.v4),
                Retired::BackendV6(index) => self.v6.recycle(index, &mut self.tables.v6),
            }
        }
        // No packet reads the old rings any more, so none remembers anew what is forgotten here; and nothing uses
        // the freed indexes before.
        self.forget()?;
        Ok(())
    }

    /// Removes what was found at start and is not desired. After the first complete [`apply`](Self::apply).
    ///
    /// # Errors
    /// A table cannot be written.
    pub fn sweep(&mut self) -> Result<(), ApplyError> {
        let (mut v4, mut v6) = (HashSet::default(), HashSet::default());
        for installed in self.installed.values() {
            for port in &installed.plan.ports {
                match port.name.family {
                    Family::V4 => v4.extend(FamilyState::<V4>::keys(port).map(|(key, _)| key)),
                    Family::V6 => v6.extend(FamilyState::<V6>::keys(port).map(|(key, _)| key)),
                }
            }
        }
        self.v4.retain(&v4);
        self.v6.retain(&v6);
        self.flush()?;
        for index in std::mem::take(&mut self.orphans) {
            self.resting.add(Retired::Service(index));
        }
        // Flows and memories of before this agent started may be of any service and any backend.
        self.suspect_flows();
        self.outdate_all()?;
        for ring in self.rings.unused() {
            self.resting.add(Retired::Ring(ring));
        }
        for index in self.v4.unused() {
            self.resting.add(Retired::BackendV4(index));
        }
        for index in self.v6.unused() {
            self.resting.add(Retired::BackendV6(index));
        }
        self.settle()
    }

    /// How full the tables are.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let backends = |used, all| (used, all);
        Usage {
            services: (self.indexes.used(), self.tables.services.len()),
            slots: self.rings.usage(),
            frontends_v4: self.v4.usage(),
            frontends_v6: self.v6.usage(),
            backends_v4: backends(self.v4.indexes.used(), self.tables.v4.backends.len()),
            backends_v6: backends(self.v6.indexes.used(), self.tables.v6.backends.len()),
        }
    }

    /// What is installed of one service.
    #[must_use]
    pub fn plan(&self, key: &ServiceKey) -> Option<&ServicePlan> {
        self.installed.get(key).map(|installed| &*installed.plan)
    }

    /// Everything installed.
    pub fn plans(&self) -> impl Iterator<Item = (&ServiceKey, &ServicePlan)> {
        self.installed.iter().map(|(key, installed)| (key, &*installed.plan))
    }

    /// Everything installed, with its counters.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceKey, &ServicePlan, Vec<PortState>)> {
        self.installed.iter().map(|(key, installed)| {
            let states = installed.plan.ports.iter().zip(&installed.slots);
            (key, &*installed.plan, states.map(|(port, slot)| self.state(port, slot)).collect())
        })
    }

    fn state(&self, port: &ServicePort, slot: &Slot) -> PortState {
        let picked = |index: u32| match port.name.family {
            Family::V4 => self.tables.v4.backends.read(index).picked,
            Family::V6 => self.tables.v6.backends.read(index).picked,
        };
        let indexes: Vec<u32> = match port.name.family {
            Family::V4 => self.v4.indexes_of(&port.cluster),
            Family::V6 => self.v6.indexes_of(&port.cluster),
        };
        PortState {
            index: slot.index,
            picked: self.tables.services.read(slot.index).picked,
            backends: indexes.into_iter().map(|index| (index, picked(index))).collect(),
        }
    }
}

impl Installed {
    pub(crate) fn ports(&self) -> impl Iterator<Item = (&ServicePort, Slot)> {
        self.plan.ports.iter().zip(self.slots.iter().copied())
    }
}
