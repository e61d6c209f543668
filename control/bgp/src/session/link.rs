//! One connection of a session.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;

use super::{Initiator, Negotiated, State};
use crate::routes::Outbound;
use crate::wire::{Dialect, Family, Update};

/// A TCP connection and how far its two sides have come.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) initiator: Initiator,
    /// This side's address.
    pub(super) local: IpAddr,
    /// Bytes that are no whole message yet.
    pub(super) buffer: Vec<u8>,
    pub(super) stage: Stage,
    /// Silence that ends it.
    pub(super) hold: Option<Duration>,
    pub(super) hold_at: Option<Instant>,
    pub(super) keepalive_at: Option<Instant>,
}

/// How far a connection has come.
#[derive(Debug)]
pub(super) enum Stage {
    /// Waiting for the peer's OPEN.
    OpenSent,
    /// Waiting for its agreement.
    OpenConfirm(Negotiated),
    /// Routes may be announced.
    Established(Negotiated, Box<Up>),
}

/// What an established connection has.
#[derive(Debug)]
pub(super) struct Up {
    pub(super) since: Instant,
    pub(super) outbound: Outbound,
    pub(super) received: Received,
    /// The desired routes changed, or the peer asked for them.
    pub(super) changed: bool,
    /// The peer knows that it has all routes.
    pub(super) complete: bool,
}

impl Link {
    pub(super) fn new(initiator: Initiator, local: IpAddr, now: Instant) -> Self {
        Self {
            initiator,
            local,
            buffer: Vec::new(),
            stage: Stage::OpenSent,
            hold: Some(OPEN_WAIT),
            hold_at: Some(now + OPEN_WAIT),
            keepalive_at: None,
        }
    }

    pub(super) fn state(&self) -> State {
        match self.stage {
            Stage::OpenSent => State::OpenSent,
            Stage::OpenConfirm(_) => State::OpenConfirm,
            Stage::Established(..) => State::Established,
        }
    }

    pub(super) fn negotiated(&self) -> Option<&Negotiated> {
        match &self.stage {
            Stage::OpenSent => None,
            Stage::OpenConfirm(negotiated) | Stage::Established(negotiated, _) => Some(negotiated),
        }
    }

    pub(super) fn up(&self) -> Option<&Up> {
        match &self.stage {
            Stage::Established(_, up) => Some(up),
            _ => None,
        }
    }

    pub(super) fn up_mut(&mut self) -> Option<&mut Up> {
        match &mut self.stage {
            Stage::Established(_, up) => Some(up),
            _ => None,
        }
    }

    /// How messages are read and written. Before both OPENs there is none for which it matters.
    pub(super) fn dialect(&self) -> Dialect {
        let before = Dialect { four_octet_as: true, internal: false };
        self.negotiated().map_or(before, |negotiated| negotiated.dialect)
    }

    /// The peer is there.
    pub(super) fn heard(&mut self, now: Instant) {
        self.hold_at = self.hold.map(|hold| now + hold);
    }
}

/// What a peer announces: counted, never installed.
#[derive(Debug, Default)]
pub(super) struct Received {
    prefixes: HashSet<IpNetwork>,
    /// There were more than are remembered.
    pub(super) more: bool,
}

impl Received {
    pub(super) fn take_in(&mut self, update: &Update) {
        for prefix in update.unreachable() {
            self.prefixes.remove(prefix);
        }
        for prefix in update.reachable() {
            if self.prefixes.len() < MAX_COUNTED {
                self.prefixes.insert(*prefix);
            } else {
                self.more |= !self.prefixes.contains(prefix);
            }
        }
    }

    pub(super) fn count(&self, family: Family) -> usize {
        self.prefixes.iter().filter(|prefix| Family::of_prefix(prefix) == family).count()
    }
}

/// How long an OPEN is waited for. RFC 4271 §8.2.2 suggests four minutes, for which addresses would be gone if a router
/// restarted just after it took the connection.
const OPEN_WAIT: Duration = Duration::from_secs(60);

/// Received prefixes that are counted: a router that announces the whole internet must not cost a node its memory.
const MAX_COUNTED: usize = 20_000;
