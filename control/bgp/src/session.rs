//! The state machine of one peer (RFC 4271 §8), without input, output or clock.
//!
//! Whoever drives it tells what happened and when, takes [`Output`]s until there is none, and calls again at
//! [`Session::next_timeout`]. A session may have several connections at a time until one of them is established.

mod backoff;
mod collision;
mod error;
mod link;
mod negotiate;
mod receive;
mod status;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use backoff::Backoff;
pub use collision::Initiator;
pub use error::SessionError;
use link::Link;
pub use negotiate::Negotiated;
pub use status::{Counters, LastError, PeerStatus, Prefixes};

use crate::config::{Identity, Peer};
use crate::routes::{Desired, NextHops};
use crate::wire::{Cease, Message, Notification, Update, code};

/// A session's state (RFC 4271 §8.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum State {
    /// Nothing is wanted.
    Idle,
    /// A connection is being waited for: the peer's, or until it is time for another try.
    Active,
    /// A connection is being opened.
    Connect,
    /// Waiting for the peer's OPEN.
    OpenSent,
    /// Waiting for the peer's agreement.
    OpenConfirm,
    /// Routes are exchanged.
    Established,
}

/// Which connection of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(u32);

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Open a connection; then [`Session::connected`] or [`Session::connect_failed`].
    Connect,
    /// Send bytes.
    Send {
        /// On this connection.
        link: LinkId,
        /// In this order.
        bytes: Vec<u8>,
    },
    /// Close a connection after what was sent on it; the session has forgotten it.
    Close {
        /// This one.
        link: LinkId,
    },
    /// Routes are exchanged from now on.
    Up(Negotiated),
    /// Routes are exchanged no more; `None`: it was stopped.
    Down(Option<SessionError>),
}

/// One peer's session.
#[derive(Debug)]
pub struct Session {
    identity: Arc<Identity>,
    peer: Peer,
    wanted: bool,
    connecting: bool,
    links: BTreeMap<LinkId, Link>,
    next_link: u32,
    retry_at: Option<Instant>,
    backoff: Backoff,
    outputs: VecDeque<Output>,
    /// None: not known yet.
    desired: Option<Desired>,
    /// The peer may still have routes from before this side's restart.
    restarted: bool,
    seen: State,
    since: Instant,
    last_error: Option<(Instant, SessionError)>,
    last_down: Option<(Instant, SessionError)>,
    established: u64,
    sent: Counters,
    messages_received: Counters,
}

impl Session {
    /// A session that is not wanted yet. Equal seeds lead to equal waits.
    #[must_use]
    pub fn new(identity: Arc<Identity>, peer: Peer, seed: u64, now: Instant) -> Self {
        Self {
            identity,
            peer,
            wanted: false,
            connecting: false,
            links: BTreeMap::new(),
            next_link: 0,
            retry_at: None,
            backoff: Backoff::new(seed),
            outputs: VecDeque::new(),
            desired: None,
            restarted: true,
            seen: State::Idle,
            since: now,
            last_error: None,
            last_down: None,
            established: 0,
            sent: Counters::default(),
            messages_received: Counters::default(),
        }
    }

    /// The peer's settings.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// How far the foremost connection is.
    #[must_use]
    pub fn state(&self) -> State {
        match self.foremost() {
            Some(link) => link.state(),
            None if self.connecting => State::Connect,
            None if self.wanted => State::Active,
            None => State::Idle,
        }
    }

    /// Keeps a session from now on.
    pub fn start(&mut self, now: Instant) {
        self.wanted = true;
        if !self.peer.passive {
            self.retry_at = Some(now);
        }
        self.note(now);
    }

    /// Ends it: the peer is told and forgets the routes. Not called before a restart after which they shall still
    /// be there: connections just end then.
    pub fn stop(&mut self, now: Instant, cease: Cease, message: &str) {
        self.wanted = false;
        self.connecting = false;
        self.retry_at = None;
        for id in self.links.keys().copied().collect::<Vec<_>>() {
            self.close(now, id, Some(Notification::cease(cease, message)), None);
        }
        self.note(now);
    }

    /// There is a connection. `None`: it is not wanted.
    pub fn connected(&mut self, now: Instant, initiator: Initiator, local: IpAddr) -> Option<LinkId> {
        if initiator == Initiator::Local {
            self.connecting = false;
        }
        let established = self.state() == State::Established;
        if !self.wanted || (established && initiator == Initiator::Local) {
            self.note(now);
            return None;
        }
        if initiator == Initiator::Remote {
            self.close_abandoned(now);
        }
        let id = LinkId(self.next_link);
        self.next_link += 1;
        self.links.insert(id, Link::new(initiator, local, now));
        let open = negotiate::open(&self.identity, &self.peer, self.restarted);
        self.send(id, &Message::Open(open));
        self.note(now);
        Some(id)
    }

    /// A peer that opens another connection has given up on one on which it said nothing.
    fn close_abandoned(&mut self, now: Instant) {
        let abandoned = |link: &Link| link.initiator == Initiator::Remote && link.state() == State::OpenSent;
        let ids = self.links.iter().filter(|(_, link)| abandoned(link)).map(|(id, _)| *id);
        for id in ids.collect::<Vec<_>>() {
            self.close(now, id, Some(Notification::cease(Cease::ConnectionCollision, "")), None);
        }
    }

    /// There is no connection, for this reason.
    pub fn connect_failed(&mut self, now: Instant, reason: String) {
        self.connecting = false;
        let error = SessionError::Connect { port: self.peer.peer_port, reason };
        // A session that is there all the same does not go wrong by that.
        if self.links.is_empty() {
            self.last_error = Some((now, error));
        }
        self.retry(now);
        self.note(now);
    }

    /// A connection went away; `reason` is what the system said if it was no plain end.
    pub fn disconnected(&mut self, now: Instant, id: LinkId, reason: Option<String>) {
        if let Some(link) = self.links.get(&id) {
            let local_asn = self.peer.local_asn(&self.identity);
            let error = SessionError::Closed { state: link.state(), reason, local_asn };
            self.close(now, id, None, Some(error));
        }
        self.note(now);
    }

    /// Bytes came.
    pub fn received(&mut self, now: Instant, id: LinkId, bytes: &[u8]) {
        if let Some(link) = self.links.get_mut(&id) {
            link.buffer.extend_from_slice(bytes);
            self.read(now, id);
        }
        self.note(now);
    }

    /// The peer has taken no bytes for a long time (RFC 9687): it is as good as gone, and would not read why.
    pub fn stalled(&mut self, now: Instant, id: LinkId, time: Duration) {
        self.close(now, id, None, Some(SessionError::Stalled { seconds: time.as_secs() }));
        self.note(now);
    }

    /// What the peer should have, from now on.
    pub fn set_routes(&mut self, desired: Desired) {
        if self.desired.as_ref() == Some(&desired) {
            return;
        }
        self.desired = Some(desired);
        for link in self.links.values_mut() {
            if let Some(up) = link.up_mut() {
                up.changed = true;
            }
        }
    }

    /// Sends what the peer should be told, and then that this was all. Called when the connection takes bytes: what
    /// changes back meanwhile is not sent at all.
    pub fn send_routes(&mut self, now: Instant) {
        let Some(desired) = self.desired.take() else { return };
        if let Some((id, updates)) = self.due_updates(&desired) {
            for update in updates {
                self.send(id, &Message::Update(update));
            }
            self.postpone_keepalive(now, id);
        }
        self.desired = Some(desired);
    }

    fn due_updates(&mut self, desired: &Desired) -> Option<(LinkId, Vec<Update>)> {
        let (id, link) = self.links.iter_mut().find(|(_, link)| link.up().is_some_and(|up| up.changed))?;
        let families = link.negotiated()?.families.clone();
        let up = link.up_mut()?;
        up.changed = false;
        let mut updates = up.outbound.update(desired);
        if !std::mem::replace(&mut up.complete, true) {
            updates.extend(families.into_iter().map(Update::end_of_rib));
            self.restarted = false;
        }
        Some((*id, updates))
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        let timers = self.links.values().flat_map(|link| [link.hold_at, link.keepalive_at]);
        timers.chain([self.retry_at]).flatten().min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        for id in self.links.keys().copied().collect::<Vec<_>>() {
            let Some(link) = self.links.get(&id) else { continue };
            if due(link.hold_at) {
                let seconds = link.hold.unwrap_or_default().as_secs();
                let notification = Notification::new(code::HOLD_TIMER, 0);
                self.close(now, id, Some(notification), Some(SessionError::HoldTimer { seconds }));
            } else if due(link.keepalive_at) {
                self.send(id, &Message::Keepalive);
                self.postpone_keepalive(now, id);
            }
        }
        if due(self.retry_at) {
            self.retry_at = None;
            if self.state() < State::OpenConfirm && !self.connecting {
                self.connecting = true;
                self.outputs.push_back(Output::Connect);
            }
        }
        self.note(now);
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The connection that is furthest.
    fn foremost(&self) -> Option<&Link> {
        self.links.values().max_by_key(|link| link.state())
    }

    /// Where the peer sends packets over a connection from `local`.
    fn next_hops(&self, local: IpAddr) -> NextHops {
        let (v4, v6) = match local {
            IpAddr::V4(address) => (Some(address), None),
            IpAddr::V6(address) => (None, Some(address)),
        };
        NextHops {
            ipv4: self.peer.next_hop_v4.or(v4).or(self.identity.next_hop_v4),
            ipv6: self.peer.next_hop_v6.or(v6).or(self.identity.next_hop_v6),
        }
    }

    fn send(&mut self, id: LinkId, message: &Message) {
        let Some(link) = self.links.get(&id) else { return };
        match message.encode(link.dialect()) {
            Ok(bytes) => {
                self.sent.count(message.kind());
                self.outputs.push_back(Output::Send { link: id, bytes });
            }
            // Routes are checked before they come here, and all else is short.
            Err(error) => tracing::error!(peer = %self.peer.name, err = %error, "a message was not sent"),
        }
    }

    fn postpone_keepalive(&mut self, now: Instant, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let every = link.negotiated().and_then(|negotiated| negotiated.keepalive);
        link.keepalive_at = every.map(|every| now + self.backoff.jittered(every));
    }

    /// Ends a connection. With `error` it was one that the session may have depended on.
    fn close(
        &mut self,
        now: Instant,
        id: LinkId,
        notification: Option<Notification>,
        error: Option<SessionError>,
    ) {
        if let Some(notification) = notification {
            self.send(id, &Message::Notification(notification));
        }
        let Some(link) = self.links.remove(&id) else { return };
        self.outputs.push_back(Output::Close { link: id });
        if let Some(up) = link.up() {
            if now.saturating_duration_since(up.since) >= STEADY {
                self.backoff.reset();
            }
            self.last_down = error.clone().map(|error| (now, error));
            self.outputs.push_back(Output::Down(error.clone()));
        }
        if let Some(error) = error {
            // Nor does a second connection that fails while the first one is there.
            if self.state() < State::OpenConfirm {
                self.last_error = Some((now, error));
            }
            self.retry(now);
        }
    }

    /// Tries again later, if nothing is under way.
    fn retry(&mut self, now: Instant) {
        let idle = self.links.is_empty() && !self.connecting && self.retry_at.is_none();
        if self.wanted && !self.peer.passive && idle {
            self.retry_at = Some(now + self.backoff.next());
        }
    }

    /// Remembers since when the state is what it is.
    fn note(&mut self, now: Instant) {
        let state = self.state();
        if std::mem::replace(&mut self.seen, state) != state {
            self.since = now;
        }
    }

    /// An error with whom it is about.
    fn said(&self, error: &SessionError) -> String {
        format!("peer {} ({}): {error}", self.peer.name, self.peer.peer_address)
    }
}

/// A session that lasted so long was a good one: the next try comes soon.
const STEADY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
