//! What the agent knows: objects, plan, and what is in the kernel.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use portolan_abi::Config;
use portolan_apply::{Applier, Difference, Refused};
use portolan_model::{ServiceKey, Store};
use portolan_node::{MapError, Mode};
use portolan_plan::{Condition, Planner};
use portolan_source::Refusal;

use super::announce::Announce;
use crate::health::Health;

/// From objects to tables. One lock: whoever holds it sees all three agree.
pub(super) struct Core {
    pub(super) store: Store,
    pub(super) planner: Planner,
    pub(super) applier: Applier,
    /// What the node's record should be, once the node is known.
    pub(super) config: Option<Config>,
    pub(super) conditions: Vec<Condition>,
    /// Services that did not fit.
    pub(super) refused: Vec<Refused>,
    /// Documents that were not understood.
    pub(super) refusals: Vec<Refusal>,
    /// Things the operator should know, by what they are about.
    pub(super) warnings: BTreeMap<&'static str, String>,
    /// Interfaces with programs, by what they are.
    pub(super) interfaces: BTreeMap<String, String>,
    /// The cgroup whose sockets are balanced.
    pub(super) socket_cgroup: Option<PathBuf>,
    /// The desired state was complete in the kernel once.
    pub(super) synced: bool,
    pub(super) last_sync: Duration,
    pub(super) syncs: u64,
    /// When the changes began that are not known to be in the tables yet.
    pub(super) triggered: Vec<SystemTime>,
}

impl Core {
    /// Compares the kernel's tables with the plan; with what is installed for services that were refused.
    pub(super) fn audit(&self) -> Result<Vec<Difference>, MapError> {
        let refused = |key: &ServiceKey| self.refused.iter().any(|it| it.service == *key);
        let planned = self.planner.desired().map(|(key, plan)| (key, &**plan));
        let kept = self.applier.plans().filter(|(key, _)| refused(key));
        let wanted = planned.filter(|(key, _)| !refused(key)).chain(kept);
        portolan_apply::audit(self.applier.tables(), wanted, self.planner.node(), self.config)
    }
}

/// What all parts of the agent share.
pub(super) struct Shared {
    pub(super) started: Instant,
    pub(super) node: String,
    pub(super) mode: Mode,
    pub(super) health: Arc<Health>,
    pub(super) announce: Arc<Announce>,
    core: Mutex<Core>,
}

impl Shared {
    pub(super) fn new(
        node: &str,
        mode: Mode,
        planner: Planner,
        applier: Applier,
        announce: Announce,
    ) -> Self {
        let core = Core {
            store: Store::default(),
            planner,
            applier,
            config: None,
            conditions: Vec::new(),
            refused: Vec::new(),
            refusals: Vec::new(),
            warnings: BTreeMap::new(),
            interfaces: BTreeMap::new(),
            socket_cgroup: None,
            synced: false,
            last_sync: Duration::ZERO,
            syncs: 0,
            triggered: Vec::new(),
        };
        let health = Arc::new(Health::new(core.applier.usage().services.0 > 0));
        Self {
            started: Instant::now(),
            node: node.to_owned(),
            mode,
            health,
            announce: Arc::new(announce),
            core: Mutex::new(core),
        }
    }

    /// Never held across an await: changes are short, and views copy what they show.
    pub(super) fn core(&self) -> MutexGuard<'_, Core> {
        // A panic while the lock was held may have left plan and kernel apart; both are corrected by the next
        // change, and going on serves better than failing every request.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
