//! What the controller writes to an API server, and in which order: objects and answers in, patches out. It does no I/O,
//! and looks at a clock only to measure its own work.
//!
//! Rules that everything here serves:
//! - One write at a time for each object, each bound to the version of the object that it was made of: nothing is
//!   written in the wrong order, and what somebody else changed meanwhile is not overwritten.
//! - An address is a service's from the moment a write of it is *begun*, whatever is heard of that write, and it is
//!   somebody else's only after a status without it was *seen*: it is never in two statuses, unless they share it.
//! - What is written bound to a version can no more happen when the object has another one. Only then a write whose
//!   answer was lost is settled.
//! - The record is the statuses as they were when this began; from then on this remembers them, so that edits of
//!   statuses are undone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use portolan_kubernetes::{Facts, Note, Part, Patch, Watched, WriteError};
use portolan_model::{Event, Kind, Name, Object, ObjectKey, Service, ServiceKey, Store};
use portolan_pool::{Allocator, Assignment, Condition, Outcome, PoolReport, Record, Settings, condition};
use portolan_source::{Effect, Refusal, Update};

use super::documents::{has_conditions, hold, let_go, pool_status, service_status};

/// Shortest and longest wait before what failed is tried again.
const WAIT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// Allocating takes at most one part of so many of the time.
const SHARE: u32 = 5;

/// The time, by both clocks.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    pub(super) now: Instant,
    /// The wall clock's, as the API writes it (RFC 3339).
    pub(super) stamp: String,
}

/// Decides what is written.
pub(super) struct Engine {
    allocator: Allocator,
    class: Name,
    is_default: bool,
    store: Store,
    /// The complete state was told.
    is_complete: bool,
    /// Services and pools as they are at the server.
    facts: BTreeMap<ObjectKey, Facts>,
    refusals: Vec<Refusal>,
    given: BTreeMap<ServiceKey, Given>,
    outcome: Outcome,
    /// The outcome is of objects or a record that have changed.
    is_stale: bool,
    /// Not before then is it made anew.
    allocate_at: Option<Instant>,
    /// Addresses that services have and are to lose.
    leaving: BTreeMap<IpAddr, BTreeSet<ServiceKey>>,
    /// Objects to look at.
    todo: BTreeSet<ObjectKey>,
    /// Services that wait for addresses that are leaving.
    held: BTreeSet<ObjectKey>,
    writes: BTreeMap<ObjectKey, Writing>,
    waits: BTreeMap<ObjectKey, Wait>,
    notes: Vec<Note>,
}

/// What a service was given.
#[derive(Debug, Default)]
struct Given {
    /// As last agreed with the server.
    confirmed: Vec<IpAddr>,
    /// Writes that may have happened or not.
    doubt: Option<Doubt>,
}

#[derive(Debug)]
struct Doubt {
    /// Of the object that the writes were made of.
    version: String,
    tried: Vec<Vec<IpAddr>>,
}

/// A write that is under way.
#[derive(Debug)]
struct Writing {
    uid: String,
    /// Addresses that the object has afterwards; `None`: as before.
    addresses: Option<Vec<IpAddr>>,
    /// What is to be said when it is done.
    notes: Vec<Note>,
}

#[derive(Debug)]
struct Wait {
    /// How long it is.
    pause: Duration,
    /// `None`: it is over, and the object is being tried again.
    until: Option<Instant>,
}

/// What becomes of a service.
enum Wanted<'a> {
    /// It is somebody else's, or nothing is known of it.
    Nothing,
    /// It has what it was given.
    Serve(&'a Assignment),
    /// It has nothing any more. Of another class's the addresses and the finalizer are not touched.
    Release { is_anothers: bool },
}

impl Engine {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            class: settings.class.clone(),
            is_default: settings.is_default,
            allocator: Allocator::new(settings),
            store: Store::default(),
            is_complete: false,
            facts: BTreeMap::new(),
            refusals: Vec::new(),
            given: BTreeMap::new(),
            outcome: Outcome::default(),
            is_stale: true,
            allocate_at: None,
            leaving: BTreeMap::new(),
            todo: BTreeSet::new(),
            held: BTreeSet::new(),
            writes: BTreeMap::new(),
            waits: BTreeMap::new(),
            notes: Vec::new(),
        }
    }

    /// Takes in what changed at the server. The first time that is everything.
    pub(super) fn update(&mut self, watched: Watched) {
        let Watched { update: Update { events, refusals, .. }, facts } = watched;
        for (key, facts) in facts {
            match facts {
                Some(facts) => self.see(key, facts),
                None => self.forget(&key),
            }
        }
        if !std::mem::replace(&mut self.is_complete, true) {
            self.seed();
        }
        for mut event in events {
            if let Event::Upsert(Object::Service(service)) = &mut event {
                self.strip(service);
            }
            self.is_stale |= !self.store.apply(event).is_empty();
        }
        self.refuse(refusals);
    }

    /// Takes out of a service that is ours what only this writes: an echo of it is then no change.
    fn strip(&self, service: &mut Service) {
        let is_ours = |facts: &Facts| self.is_ours(facts) || self.given.contains_key(&service.key);
        if !self.facts.get(&of_service(&service.key)).is_some_and(is_ours) {
            return;
        }
        service.ingress_ips.clear();
        if let Some(wish) = &mut service.load_balancer {
            wish.finalizers.clear();
        }
    }

    /// The record: what services that are ours have in their statuses.
    fn seed(&mut self) {
        for (key, facts) in self.facts.iter().filter(|(key, _)| key.kind == Kind::Service) {
            let confirmed = facts.addresses();
            if !confirmed.is_empty() && self.is_ours(facts) {
                self.given.insert(key.id.clone(), Given { confirmed, doubt: None });
            }
        }
    }

    /// Whether a service is this controller's as far as its facts tell, which is as far as they do for one that is refused.
    fn is_ours(&self, facts: &Facts) -> bool {
        let by_class = match facts.class.as_deref() {
            Some(class) => *class == *self.class,
            None => self.is_default,
        };
        self.is_managed(facts) || facts.is_load_balancer && by_class
    }

    fn is_managed(&self, facts: &Facts) -> bool {
        facts.manager.as_deref() == Some(&*self.class)
    }

    fn see(&mut self, key: ObjectKey, facts: Facts) {
        if let Some(known) = self.facts.get(&key) {
            if facts.is_older_than(known) {
                return;
            }
            if facts.uid != known.uid {
                self.forget(&key);
            }
        }
        self.todo.insert(key.clone());
        self.facts.insert(key.clone(), facts);
        if !self.writes.contains_key(&key) {
            self.settle(&key);
        }
    }

    /// The object is gone, and what it had is free.
    fn forget(&mut self, key: &ObjectKey) {
        self.facts.remove(key);
        self.waits.remove(key);
        self.todo.remove(key);
        self.held.remove(key);
        if key.kind == Kind::Service && self.given.remove(&key.id).is_some() {
            self.left(&key.id, &[]);
            self.is_stale = true;
        }
    }

    /// Finds out what became of writes that were not heard of, if that can be said.
    fn settle(&mut self, key: &ObjectKey) {
        let (Some(facts), Some(given)) = (self.facts.get(key), self.given.get_mut(&key.id)) else { return };
        if key.kind != Kind::Service
            || given.doubt.as_ref().is_none_or(|doubt| doubt.version == facts.version)
        {
            return;
        }
        let found = facts.addresses();
        let tried = given.doubt.take().map(|doubt| doubt.tried).unwrap_or_default();
        if tried.contains(&found) {
            given.confirmed = found;
        }
        self.is_stale = true;
    }

    fn refuse(&mut self, refusals: Vec<Refusal>) {
        for refusal in refusals.iter().filter(|refusal| !self.refusals.contains(refusal)) {
            let Some(object) = &refusal.object else { continue };
            self.todo.insert(object.clone());
            let Some(facts) = self.facts.get(object) else { continue };
            self.notes.push(Note {
                object: object.clone(),
                uid: facts.uid.clone(),
                is_warning: true,
                reason: "Invalid".to_owned(),
                text: words(refusal),
            });
        }
        self.todo.extend(self.refusals.iter().filter_map(|refusal| refusal.object.clone()));
        self.refusals = refusals;
    }

    /// What was given, or may have been.
    fn record(&self) -> Record {
        let all = self.given.iter().map(|(key, given)| (key.clone(), given.all()));
        all.filter(|(_, ips)| !ips.is_empty()).collect()
    }

    /// Makes the outcome anew.
    fn allocate(&mut self) {
        let record = self.record();
        // Given something, and still there, but not among the objects: its document is refused.
        let is_refused = |key: &&ServiceKey| {
            let is_known = self.store.service(key).is_some_and(|entry| entry.service.is_some());
            !is_known && self.facts.contains_key(&of_service(key))
        };
        let unreadable = record.keys().filter(is_refused).cloned().collect();
        self.outcome = self.allocator.allocate(&self.store, &record, &unreadable);
        self.is_stale = false;
        self.leaving.clear();
        for (key, ips) in &record {
            let stays = self.wanted_addresses(key);
            for ip in ips.iter().filter(|ip| !stays.contains(*ip)) {
                self.leaving.entry(*ip).or_default().insert(key.clone());
            }
        }
        self.todo.extend(self.facts.keys().cloned());
    }

    fn wanted(&self, key: &ServiceKey, facts: &Facts) -> Wanted<'_> {
        let assigned = self.outcome.services.get(key);
        let is_managed = self.is_managed(facts);
        let is_readable = self.store.service(key).is_some_and(|entry| entry.service.is_some());
        match assigned {
            Some(_) if facts.deleting => Wanted::Release { is_anothers: false },
            Some(assignment) => Wanted::Serve(assignment),
            None if is_managed && (facts.deleting || is_readable) => {
                let class = facts.class.as_deref().filter(|_| facts.is_load_balancer);
                Wanted::Release { is_anothers: class.is_some_and(|class| *class != *self.class) }
            }
            // Nobody else's, and it was refused an address once.
            None if !facts.is_load_balancer && facts.manager.is_none() && has_conditions(facts) => {
                Wanted::Release { is_anothers: true }
            }
            None => Wanted::Nothing,
        }
    }

    fn wanted_addresses(&self, key: &ServiceKey) -> Vec<IpAddr> {
        let Some(facts) = self.facts.get(&of_service(key)) else { return Vec::new() };
        match self.wanted(key, facts) {
            Wanted::Serve(assignment) => addresses(assignment),
            Wanted::Nothing | Wanted::Release { .. } => Vec::new(),
        }
    }

    /// Writes to begin now, at most so many.
    pub(super) fn start(&mut self, clock: &Clock, most: usize) -> Vec<Patch> {
        let mut patches = Vec::new();
        if !self.is_complete {
            return patches;
        }
        if self.is_stale && self.allocate_at.is_none_or(|at| at <= clock.now) {
            let begun = Instant::now();
            self.allocate();
            self.allocate_at = Some(clock.now + begun.elapsed() * SHARE);
        }
        if self.is_stale {
            return patches;
        }
        for (key, wait) in &mut self.waits {
            if wait.until.take_if(|until| *until <= clock.now).is_some() {
                self.todo.insert(key.clone());
            }
        }
        for key in std::mem::take(&mut self.todo) {
            if patches.len() >= most || self.writes.contains_key(&key) {
                self.todo.insert(key);
                continue;
            }
            if self.waits.get(&key).is_some_and(|wait| wait.until.is_some()) {
                continue;
            }
            match self.look(&key, &clock.stamp) {
                Some(patch) => patches.push(patch),
                None => drop(self.waits.remove(&key)),
            }
        }
        patches
    }

    /// When [`start`](Self::start) may have something to do that nothing else tells.
    pub(super) fn wake(&self) -> Option<Instant> {
        let allocate = self.allocate_at.filter(|_| self.is_stale);
        self.waits.values().filter_map(|wait| wait.until).chain(allocate).min()
    }

    /// Whether all is written that can be.
    pub(super) fn is_done(&self) -> bool {
        self.is_complete && !self.is_stale && self.writes.is_empty() && self.todo.is_empty()
    }

    /// How many pools and services with addresses there are.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.outcome.pools.len(), self.given.len())
    }

    /// What is to be told about objects since this was asked last.
    pub(super) fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// The next write of an object, if it needs one.
    fn look(&mut self, key: &ObjectKey, stamp: &str) -> Option<Patch> {
        let facts = self.facts.get(key)?.clone();
        match key.kind {
            Kind::Service => self.look_at_service(key, &facts, stamp),
            Kind::LoadBalancerPool => {
                let (report, invalid) = self.pool(key)?;
                let body = pool_status(&facts, &report, invalid, stamp)?;
                Some(self.begin(key, &facts, Part::Status, body, None))
            }
            _ => None,
        }
    }

    fn look_at_service(&mut self, key: &ObjectKey, facts: &Facts, stamp: &str) -> Option<Patch> {
        match self.wanted(&key.id, facts) {
            Wanted::Nothing => None,
            Wanted::Serve(assignment) => {
                let (ips, conditions) = (addresses(assignment), assignment.conditions.clone());
                if self.has_to_wait(&key.id, &ips) {
                    self.held.insert(key.clone());
                    return None;
                }
                if !ips.is_empty()
                    && let Some(body) = hold(facts, &self.class)
                {
                    return Some(self.begin(key, facts, Part::Object, body, None));
                }
                match service_status(facts, Some(&ips), &conditions, stamp) {
                    Some(body) => Some(self.begin(key, facts, Part::Status, body, Some(ips))),
                    None => {
                        self.agree(&key.id, ips);
                        None
                    }
                }
            }
            Wanted::Release { is_anothers } => {
                let ips = (!is_anothers).then_some(&[][..]);
                if let Some(body) = service_status(facts, ips, &[], stamp) {
                    let after = (!is_anothers).then(Vec::new);
                    return Some(self.begin(key, facts, Part::Status, body, after));
                }
                self.agree(&key.id, Vec::new());
                let body = let_go(facts, is_anothers)?;
                Some(self.begin(key, facts, Part::Object, body, None))
            }
        }
    }

    /// Whether an address that is new to a service is still in another one's status.
    fn has_to_wait(&self, key: &ServiceKey, ips: &[IpAddr]) -> bool {
        let has = self.given.get(key).map(Given::all).unwrap_or_default();
        let mut new = ips.iter().filter(|ip| !has.contains(*ip));
        new.any(|ip| self.leaving.get(ip).is_some_and(|whose| whose.iter().any(|other| other != key)))
    }

    /// The server's status says what it should.
    fn agree(&mut self, key: &ServiceKey, ips: Vec<IpAddr>) {
        let is_known = match self.given.get(key) {
            Some(given) => given.doubt.is_some() || given.confirmed == ips,
            None => ips.is_empty(),
        };
        if !is_known {
            self.confirm(key, ips);
        }
    }

    /// A status with exactly these addresses was seen or written.
    fn confirm(&mut self, key: &ServiceKey, ips: Vec<IpAddr>) {
        let freed = self.given.get(key).is_some_and(|given| given.all().iter().any(|ip| !ips.contains(ip)));
        self.left(key, &ips);
        // The outcome counts on what it gave. That something is free which it did not take away is news.
        self.is_stale |= freed || self.wanted_addresses(key) != ips;
        if ips.is_empty() {
            self.given.remove(key);
        } else {
            self.given.insert(key.clone(), Given { confirmed: ips, doubt: None });
        }
    }

    /// A service has these addresses left; who waited for others is looked at again.
    fn left(&mut self, key: &ServiceKey, ips: &[IpAddr]) {
        self.leaving.retain(|ip, whose| {
            if !ips.contains(ip) {
                whose.remove(key);
            }
            !whose.is_empty()
        });
        self.todo.append(&mut self.held);
    }

    fn begin(
        &mut self,
        key: &ObjectKey,
        facts: &Facts,
        part: Part,
        body: serde_json::Value,
        addresses: Option<Vec<IpAddr>>,
    ) -> Patch {
        if let Some(ips) = &addresses {
            let given = self.given.entry(key.id.clone()).or_default();
            match &mut given.doubt {
                Some(doubt) if doubt.version == facts.version => doubt.tried.push(ips.clone()),
                _ => {
                    given.doubt = Some(Doubt { version: facts.version.clone(), tried: vec![ips.clone()] });
                }
            }
        }
        let notes =
            if part == Part::Status { self.news(key, facts, addresses.as_deref()) } else { Vec::new() };
        let writing = Writing { uid: facts.uid.clone(), addresses, notes };
        self.writes.insert(key.clone(), writing);
        Patch { object: key.clone(), part, body }
    }

    /// What a status says that it did not say before.
    fn news(&self, key: &ObjectKey, facts: &Facts, ips: Option<&[IpAddr]>) -> Vec<Note> {
        let report;
        let conditions: &[Condition] = match key.kind {
            Kind::Service => match self.outcome.services.get(&key.id) {
                Some(assignment) if !facts.deleting => &assignment.conditions,
                _ => &[],
            },
            _ => {
                report = self.pool(key).map(|(report, _)| report).unwrap_or_default();
                &report.conditions
            }
        };
        let note = |is_warning, reason: &str, text: String| Note {
            object: key.clone(),
            uid: facts.uid.clone(),
            is_warning,
            reason: reason.to_owned(),
            text,
        };
        let mut notes = Vec::new();
        let before = facts.addresses();
        if let Some(ips) = ips
            && *ips != *before
        {
            let texts: Vec<String> = ips.iter().map(ToString::to_string).collect();
            notes.push(match texts.is_empty() {
                true => note(false, "AddressesReleased", "its addresses are free".to_owned()),
                false => note(false, "AddressesGiven", texts.join(", ")),
            });
        }
        let is_wrong = |it: &&Condition| it.status != matches!(it.kind, condition::GIVEN | condition::READY);
        for condition in conditions.iter().filter(is_wrong) {
            let is_known = facts.conditions().iter().any(|known| {
                known["type"] == condition.kind && known["message"] == condition.message.as_str()
            });
            if !is_known {
                notes.push(note(true, condition.reason, condition.message.clone()));
            }
        }
        notes
    }

    /// What is to be said about a pool, and what of it is refused; `None`: nothing yet.
    fn pool(&self, key: &ObjectKey) -> Option<(PoolReport, Option<Condition>)> {
        let refusal = self.refusals.iter().find(|refusal| refusal.object.as_ref() == Some(key));
        let invalid = |refusal: &Refusal| Condition {
            kind: "Invalid",
            status: true,
            reason: "FieldRefused",
            message: words(refusal),
        };
        let report = self.outcome.pools.get(key.name()).cloned();
        let mut report = report.or_else(|| refusal.map(|_| PoolReport::default()))?;
        if let Some(refusal) = refusal.filter(|refusal| refusal.effect == Effect::NotServed) {
            report.conditions.push(Condition {
                kind: condition::READY,
                status: false,
                reason: "FieldRefused",
                message: words(refusal),
            });
        }
        Some((report, refusal.map(invalid)))
    }

    /// A write has ended; whatever became of it, the object is looked at again.
    pub(super) fn done(&mut self, now: Instant, key: &ObjectKey, outcome: Result<Facts, WriteError>) {
        let Some(writing) = self.writes.remove(key) else { return };
        self.todo.insert(key.clone());
        // Another object of that name is nothing to this.
        if self.facts.get(key).is_none_or(|facts| facts.uid != writing.uid) {
            return;
        }
        match outcome {
            Ok(facts) => {
                self.waits.remove(key);
                self.notes.extend(writing.notes);
                if self.facts.get(key).is_some_and(|known| !facts.is_older_than(known)) {
                    self.facts.insert(key.clone(), facts);
                }
                match writing.addresses {
                    Some(ips) => self.confirm(&key.id, ips),
                    None => self.settle(key),
                }
            }
            Err(error) => {
                tracing::warn!(object = %key, %error, "writing");
                let pause = self.waits.get(key).map_or(WAIT.0, |wait| (wait.pause * 2).min(WAIT.1));
                self.waits.insert(key.clone(), Wait { pause, until: Some(now + pause) });
                self.settle(key);
            }
        }
    }
}

impl Given {
    /// Everything that may be in the status.
    fn all(&self) -> Vec<IpAddr> {
        let tried = self.doubt.iter().flat_map(|doubt| doubt.tried.iter().flatten());
        let mut all: Vec<IpAddr> = self.confirmed.iter().chain(tried).copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

fn of_service(key: &ServiceKey) -> ObjectKey {
    ObjectKey { kind: Kind::Service, id: key.clone() }
}

/// What an assignment puts into a status.
fn addresses(assignment: &Assignment) -> Vec<IpAddr> {
    assignment.addresses.iter().filter(|it| it.given).map(|it| it.ip).collect()
}

fn words(refusal: &Refusal) -> String {
    let Refusal { field, reason, effect, .. } = refusal;
    let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
    format!("{field}{reason}; {}", effect.as_str())
}

#[cfg(test)]
mod tests;
