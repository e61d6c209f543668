//! Whether this node should be sent connections: what load balancers and probes ask.
//!
//! It has its own small locks and never waits for the agent's: whoever asks is to hear that the agent is stuck.

mod ports;
mod server;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use portolan_model::ServiceKey;
use portolan_plan::HealthCheck;
use tokio::sync::Notify;

pub use ports::keep;
pub use server::{healthz, serve};

/// Changes may wait for so long to come into the tables; kube-proxy's time.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is known about the health of the node and its services.
#[derive(Debug)]
pub struct Health {
    programming: Mutex<Programming>,
    /// The node stays, as far as its Node object says.
    eligible: AtomicBool,
    checks: Mutex<BTreeMap<ServiceKey, HealthCheck>>,
    /// Health check ports that nobody listens on, and why.
    failures: Mutex<BTreeMap<ServiceKey, String>>,
    /// Ports of services have changed.
    changed: Notify,
}

/// How objects come into the tables.
#[derive(Debug)]
struct Programming {
    /// When each change came that has not been taken in yet.
    waiting: VecDeque<Instant>,
    /// Since when something that was taken in is not in the tables.
    failed: Option<Instant>,
    /// When the tables were last known to be as wanted.
    updated: Option<SystemTime>,
    /// All objects have been taken in once.
    complete: bool,
    /// The tables have been as wanted, if only by an earlier agent: packets find services.
    serving: bool,
}

impl Programming {
    /// Since when something waits.
    fn oldest(&self) -> Option<Instant> {
        self.waiting.front().copied().into_iter().chain(self.failed).min()
    }

    /// Notes what is true once nothing is left that could not be written.
    fn settle(&mut self) {
        if self.failed.is_some() || !self.complete {
            return;
        }
        self.serving = true;
        if self.waiting.is_empty() {
            self.updated = Some(SystemTime::now());
        }
    }
}

impl Health {
    /// Of an agent that starts; `serving` says whether an earlier one left services in the tables.
    #[must_use]
    pub fn new(serving: bool) -> Self {
        let programming =
            Programming { waiting: VecDeque::new(), failed: None, updated: None, complete: false, serving };
        Self {
            programming: Mutex::new(programming),
            // What an earlier agent left goes on serving while the objects are being read.
            eligible: AtomicBool::new(true),
            checks: Mutex::default(),
            failures: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// A change of objects has come and waits.
    pub fn queued(&self, now: Instant) {
        lock(&self.programming).waiting.push_back(now);
    }

    /// The change that waited for the longest time was taken in. `written`: it is in the tables; `complete`: with it
    /// the objects are. Whether nothing is left that could not be written.
    pub fn taken(&self, written: bool, complete: bool) -> bool {
        let mut programming = lock(&self.programming);
        let came = programming.waiting.pop_front();
        programming.complete |= complete;
        if !written {
            let since = came.unwrap_or_else(Instant::now);
            programming.failed.get_or_insert(since);
        }
        programming.settle();
        programming.failed.is_none()
    }

    /// The tables were compared with all that was taken in so far, and are so.
    pub fn compared(&self) {
        let mut programming = lock(&self.programming);
        programming.failed = None;
        programming.settle();
    }

    /// For how long something has waited that should be in the tables by now.
    #[must_use]
    pub fn overdue(&self, now: Instant) -> Option<Duration> {
        let waited = now.saturating_duration_since(lock(&self.programming).oldest()?);
        (waited > PATIENCE).then_some(waited)
    }

    /// The tables are as wanted, or not behind for long. So they are while the agent starts.
    #[must_use]
    pub fn is_live(&self, now: Instant) -> bool {
        self.overdue(now).is_none()
    }

    /// Also: there are tables, and the node stays.
    #[must_use]
    pub fn is_healthy(&self, now: Instant) -> bool {
        self.is_live(now) && self.is_eligible() && lock(&self.programming).serving
    }

    /// When the tables were last known to be as wanted: `now`, while nothing waits.
    fn updated(&self, now: SystemTime) -> Option<SystemTime> {
        let programming = lock(&self.programming);
        programming.updated.map(|last| if programming.oldest().is_none() { now } else { last })
    }

    fn is_eligible(&self) -> bool {
        self.eligible.load(Ordering::Relaxed)
    }

    /// Whether the node stays.
    pub fn set_eligible(&self, eligible: bool) {
        self.eligible.store(eligible, Ordering::Relaxed);
    }

    /// The health checks of all services.
    pub fn set_checks(&self, checks: impl IntoIterator<Item = HealthCheck>) {
        *lock(&self.checks) = checks.into_iter().map(|check| (check.service.clone(), check)).collect();
        self.changed.notify_one();
    }

    /// The health check of one service; `None`: it has none.
    pub fn set_check(&self, service: &ServiceKey, check: Option<HealthCheck>) {
        let mut checks = lock(&self.checks);
        let port = |check: Option<&HealthCheck>| check.map(|check| check.port);
        let moved = port(checks.get(service)) != port(check.as_ref());
        match check {
            Some(check) => drop(checks.insert(service.clone(), check)),
            None => drop(checks.remove(service)),
        }
        if moved {
            self.changed.notify_one();
        }
    }

    /// How many endpoints of a service count here.
    fn endpoints(&self, service: &ServiceKey) -> usize {
        lock(&self.checks).get(service).map_or(0, |check| check.endpoints)
    }

    fn ports(&self) -> BTreeMap<ServiceKey, u16> {
        lock(&self.checks).iter().map(|(service, check)| (service.clone(), check.port)).collect()
    }

    /// Services whose health check port nobody listens on, and why.
    #[must_use]
    pub fn failures(&self) -> BTreeMap<ServiceKey, String> {
        lock(&self.failures).clone()
    }

    fn set_failures(&self, failures: BTreeMap<ServiceKey, String>) {
        let mut known = lock(&self.failures);
        for (service, failure) in &failures {
            if known.get(service) != Some(failure) {
                tracing::warn!(%service, "{failure}");
            }
        }
        *known = failures;
    }
}

/// Nothing here is left half done by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
