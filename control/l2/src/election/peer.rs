//! Another member, as far as it was heard.

use std::net::IpAddr;
use std::time::Duration;

use crate::heartbeat::Heartbeat;

/// Another member.
#[derive(Debug)]
pub(crate) struct Peer {
    key: u64,
    addresses: Vec<IpAddr>,
    heard: Option<Heard>,
    /// It is there and takes addresses: owners are computed with it.
    counted: bool,
    /// Whether the last heartbeat that it was sent said that it is counted.
    told: Option<bool>,
    /// When it shall be sent one beside those that all are sent.
    due: Option<Duration>,
    /// When it was last sent such a one.
    hurried: Option<Duration>,
}

/// What its last heartbeat said.
#[derive(Clone, Copy, Debug)]
struct Heard {
    at: Duration,
    incarnation: u64,
    sequence: u64,
    ready: bool,
    leaving: bool,
    counts_us: bool,
}

impl Peer {
    pub(super) fn new(key: u64) -> Self {
        let (heard, told, due, hurried) = (None, None, None, None);
        Self { key, addresses: Vec::new(), heard, counted: false, told, due, hurried }
    }

    /// The same one with other addresses.
    pub(super) fn at(self, addresses: Vec<IpAddr>) -> Self {
        Self { addresses, ..self }
    }

    pub(super) fn key(&self) -> u64 {
        self.key
    }

    /// Its addresses.
    pub(crate) fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// When it was last heard.
    pub(crate) fn last_heard(&self) -> Option<Duration> {
        self.heard.map(|heard| heard.at)
    }

    pub(super) fn was_heard(&self, since: Duration) -> bool {
        self.heard.is_some_and(|heard| heard.at >= since)
    }

    /// Whether its last heartbeat still counts.
    pub(crate) fn is_fresh(&self, now: Duration, fresh: Duration) -> bool {
        self.heard.is_some_and(|heard| now < heard.at + fresh)
    }

    /// Whether it said that it leaves.
    pub(crate) fn is_leaving(&self) -> bool {
        self.heard.is_some_and(|heard| heard.leaving)
    }

    /// Whether owners are computed with it.
    pub(crate) fn is_counted(&self) -> bool {
        self.counted
    }

    /// Whether it said that it computes owners with this node.
    pub(crate) fn counts_us(&self) -> bool {
        self.heard.is_some_and(|heard| heard.counts_us)
    }

    /// Whether a heartbeat was sent after the one that was heard last. A node whose clock went back while it was away has a lower
    /// incarnation: it is taken for new once the old one is not fresh any more.
    pub(super) fn is_newer(&self, now: Duration, fresh: Duration, heartbeat: &Heartbeat) -> bool {
        self.heard.is_none_or(|heard| {
            let (old, new) = (heard.incarnation, heartbeat.incarnation);
            if new == old {
                heartbeat.sequence > heard.sequence
            } else {
                new > old || !self.is_fresh(now, fresh)
            }
        })
    }

    pub(super) fn hear(&mut self, now: Duration, heartbeat: &Heartbeat) {
        self.heard = Some(Heard {
            at: now,
            incarnation: heartbeat.incarnation,
            sequence: heartbeat.sequence,
            ready: heartbeat.ready,
            leaving: heartbeat.leaving,
            counts_us: heartbeat.counts_you,
        });
    }

    /// Looks anew whether it is there; true if that changed, which it shall be told soon: at once, but not more often than
    /// after each `gap`.
    pub(super) fn count(&mut self, now: Duration, fresh: Duration, gap: Duration) -> bool {
        let takes = self.heard.is_some_and(|heard| heard.ready && !heard.leaving);
        let counted = takes && self.is_fresh(now, fresh);
        if self.told.is_some_and(|told| told != counted) && self.due.is_none() {
            self.due = Some(self.hurried.map_or(now, |at| now.max(at + gap)));
        }
        std::mem::replace(&mut self.counted, counted) != counted
    }

    pub(super) fn is_due(&self, now: Duration) -> bool {
        self.due.is_some_and(|due| now >= due)
    }

    /// It is sent a heartbeat now; where to: one address of each family.
    pub(super) fn tell(&mut self, now: Duration) -> Vec<IpAddr> {
        if self.due.take().is_some() {
            self.hurried = Some(now);
        }
        self.told = Some(self.counted);
        let of = |v4: bool| self.addresses.iter().find(move |address| address.is_ipv4() == v4).copied();
        [of(true), of(false)].into_iter().flatten().collect()
    }

    /// When something changes by itself.
    pub(super) fn next_timeout(&self, fresh: Duration) -> Option<Duration> {
        let ends = self.heard.filter(|_| self.counted).map(|heard| heard.at + fresh);
        [ends, self.due].into_iter().flatten().min()
    }
}
