//! Who leads, decided by a Lease (`coordination.k8s.io/v1`), without any input or output.
//!
//! The rules are those of client-go's `leaderelection`: whoever writes the Lease holds it for its duration; others take
//! it over when they have seen one version of it for that long by their own clock, whatever times stand in it, so that
//! clocks need not agree. Every write is bound to the version that was read: of two that take over at once, one is
//! refused. The holder stops earlier than others may begin, counted from before it *sent* its last renewal.
//!
//! Crates for this compare the Lease's times with the local clock, and write it without a version: two may lead at once.

use std::time::{Duration, Instant};

/// A Lease as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// `spec.holderIdentity`; empty: nobody's.
    pub holder: String,
    /// `spec.leaseDurationSeconds`; `None`: it does not say.
    pub duration: Option<Duration>,
    /// `spec.leaseTransitions`.
    pub transitions: i32,
    /// `metadata.resourceVersion`.
    pub version: String,
}

/// What to do next; one thing at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing until then.
    Wait(Instant),
    /// Read the Lease.
    Read,
    /// Make it: there is none.
    Create,
    /// Take it over, if it still has this version.
    Take {
        /// `metadata.resourceVersion`.
        version: String,
        /// `spec.leaseTransitions` from now on.
        transitions: i32,
    },
    /// Renew it, if it still has this version.
    Renew {
        /// `metadata.resourceVersion`.
        version: String,
    },
}

/// One candidate.
#[derive(Clone, Debug)]
pub struct Election {
    identity: String,
    duration: Duration,
    /// The Lease as last seen, and since when it has been like that; `Some(None)`: there is none.
    seen: Option<(Option<Lease>, Instant)>,
    /// What was seen may have changed: it has to be read before anything is written.
    is_stale: bool,
    /// When to act next.
    next: Instant,
    /// When the request that is under way was sent.
    sent: Instant,
    leads_until: Option<Instant>,
}

impl Election {
    /// A candidate of this identity, which nobody else may have, for terms of this duration.
    #[must_use]
    pub const fn new(identity: String, duration: Duration, now: Instant) -> Self {
        Self { identity, duration, seen: None, is_stale: true, next: now, sent: now, leads_until: None }
    }

    /// The candidate's identity.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// How long the Lease is the holder's after its last renewal.
    #[must_use]
    pub const fn duration(&self) -> Duration {
        self.duration
    }

    /// How long requests may take: there is time for another before the term ends.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.duration / 3
    }

    /// How long it leads, unless it renews; `None`, or a time that has passed: it does not lead.
    #[must_use]
    pub const fn leads_until(&self) -> Option<Instant> {
        self.leads_until
    }

    fn leads(&self, now: Instant) -> bool {
        self.leads_until.is_some_and(|until| now < until)
    }

    /// What to do; its outcome has to be told before this is asked again.
    pub fn next(&mut self, now: Instant) -> Action {
        if now < self.next {
            return Action::Wait(self.next);
        }
        self.sent = now;
        let (false, Some((lease, since))) = (self.is_stale, &self.seen) else { return Action::Read };
        let Some(lease) = lease else { return Action::Create };
        let (version, transitions) = (lease.version.clone(), lease.transitions.saturating_add(1));
        if lease.holder == self.identity {
            return Action::Renew { version };
        }
        let expires = *since + lease.duration.unwrap_or(self.duration);
        if lease.holder.is_empty() || expires <= now {
            return Action::Take { version, transitions };
        }
        // It has to be looked at from time to time: a new version begins a new term.
        self.is_stale = true;
        self.next = expires.min(now + self.pause());
        Action::Wait(self.next)
    }

    /// The Lease was read; `None`: there is none.
    pub fn read(&mut self, now: Instant, found: Option<Lease>) {
        let is_mine = found.as_ref().is_some_and(|lease| lease.holder == self.identity);
        if !is_mine {
            self.leads_until = None;
        }
        let is_known = self.seen.as_ref().is_some_and(|(known, _)| *known == found);
        if !is_known {
            self.seen = Some((found, now));
        }
        self.is_stale = false;
        self.next = now;
    }

    /// The Lease was written, and is like this now.
    pub fn wrote(&mut self, now: Instant, lease: Lease) {
        self.seen = Some((Some(lease), now));
        self.is_stale = false;
        self.leads_until = Some(self.sent + self.duration * 2 / 3);
        self.next = now + self.pause();
    }

    /// The write was refused: somebody else's came first.
    pub fn refused(&mut self, now: Instant) {
        self.is_stale = true;
        self.next = now + self.pause() / 4;
    }

    /// Nobody knows what became of the request.
    pub fn failed(&mut self, now: Instant) {
        self.is_stale = true;
        self.next = now + self.pause();
    }

    /// Leads no more from now on; the version to give the Lease back with, if it is this one's.
    pub fn resign(&mut self, now: Instant) -> Option<String> {
        let led = self.leads(now);
        self.leads_until = None;
        match &self.seen {
            Some((Some(lease), _)) if led && lease.holder == self.identity => Some(lease.version.clone()),
            _ => None,
        }
    }

    /// Between looks at the Lease, and between renewals.
    fn pause(&self) -> Duration {
        self.duration * 2 / 15
    }
}

#[cfg(test)]
mod tests;
