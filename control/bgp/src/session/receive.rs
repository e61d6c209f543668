//! What messages do to a session (RFC 4271 §8.2.2).

use std::time::Instant;

use super::collision::{self, Old, Verdict};
use super::link::{Link, Received, Stage, Up};
use super::{LinkId, Output, Session, SessionError, State, negotiate};
use crate::routes::Outbound;
use crate::wire::{Cease, Kind, Malformed, Message, Notification, Open, Update, code};

impl Session {
    /// Takes whole messages out of a connection's buffer.
    pub(super) fn read(&mut self, now: Instant, id: LinkId) {
        let mut at = 0;
        // A message may end the connection.
        while let Some(link) = self.links.get_mut(&id) {
            match Message::decode(&link.buffer[at..], link.dialect()) {
                Ok(Some((message, len))) => {
                    at += len;
                    self.messages_received.count(message.kind());
                    self.message(now, id, message);
                }
                Ok(None) => {
                    link.buffer.drain(..at);
                    return;
                }
                Err(malformed) => return self.refuse(now, id, malformed),
            }
        }
    }

    fn refuse(&mut self, now: Instant, id: LinkId, malformed: Malformed) {
        let notification = malformed.notification.clone();
        self.close(now, id, Some(notification), Some(SessionError::Malformed(malformed)));
    }

    fn message(&mut self, now: Instant, id: LinkId, message: Message) {
        let Some(link) = self.links.get_mut(&id) else { return };
        match (link.state(), message) {
            (_, Message::Notification(notification)) => self.notified(now, id, notification),
            (State::OpenSent, Message::Open(open)) => self.open(now, id, &open),
            (State::OpenConfirm, Message::Keepalive) => self.establish(now, id),
            (State::Established, Message::Keepalive) => link.heard(now),
            (State::Established, Message::Update(update)) => {
                link.heard(now);
                self.update(id, &update);
            }
            (State::Established, Message::RouteRefresh { family, subtype: 0 }) => {
                if let (Some(family), Some(up)) = (family.family(), link.up_mut()) {
                    up.outbound.tell_again(family);
                    up.changed = true;
                }
            }
            // RFC 7313 §5: other subtypes were not agreed on and are passed by.
            (State::Established, Message::RouteRefresh { .. }) => {}
            (state, message) => self.unexpected(now, id, state, message.kind()),
        }
    }

    /// The loser of two connections is told so; that is no error.
    fn notified(&mut self, now: Instant, id: LinkId, notification: Notification) {
        let collision = notification.code == code::CEASE
            && notification.subcode == Cease::ConnectionCollision as u8
            && self.links.len() > 1;
        let error = (!collision).then_some(SessionError::Notified { notification });
        self.close(now, id, None, error);
    }

    /// RFC 6608: the subcode is the state.
    fn unexpected(&mut self, now: Instant, id: LinkId, state: State, kind: Kind) {
        let (message, subcode) = (
            match kind {
                Kind::Open => "OPEN",
                Kind::Update => "UPDATE",
                Kind::Notification => "NOTIFICATION",
                Kind::Keepalive => "KEEPALIVE",
                Kind::RouteRefresh => "ROUTE-REFRESH",
            },
            match state {
                State::OpenSent => 1,
                State::OpenConfirm => 2,
                _ => 3,
            },
        );
        let notification = Notification::new(code::STATE_MACHINE, subcode);
        self.close(now, id, Some(notification), Some(SessionError::Unexpected { message, state }));
    }

    fn open(&mut self, now: Instant, id: LinkId, open: &Open) {
        let negotiated = match negotiate::negotiate(&self.identity, &self.peer, open) {
            Ok(negotiated) => negotiated,
            Err(negotiate::Disagreement { notification, reason }) => {
                return self.close(now, id, Some(notification), Some(SessionError::Disagreement { reason }));
            }
        };
        if !self.survives_collision(now, id, open) {
            return;
        }
        let Some(link) = self.links.get_mut(&id) else { return };
        link.hold = negotiated.hold;
        link.heard(now);
        link.stage = Stage::OpenConfirm(negotiated);
        self.send(id, &Message::Keepalive);
        self.postpone_keepalive(now, id);
    }

    /// Settles which connections stay; whether this one does.
    fn survives_collision(&mut self, now: Instant, id: LinkId, open: &Open) -> bool {
        let Some(new) = self.links.get(&id).map(|link| link.initiator) else { return false };
        let local = (self.identity.router_id, self.peer.local_asn(&self.identity));
        let remote = (open.router_id, open.asn());
        let collided = || Some(Notification::cease(Cease::ConnectionCollision, ""));
        for other in self.links.keys().copied().filter(|other| *other != id).collect::<Vec<_>>() {
            let Some(old) = self.links.get(&other).map(described) else { continue };
            match collision::resolve(new, &old, local, remote) {
                Verdict::Both => {}
                Verdict::New => self.close(now, other, collided(), None),
                Verdict::Restarted => self.close(now, other, None, Some(SessionError::PeerRestarted)),
                Verdict::Old => {
                    self.close(now, id, collided(), None);
                    return false;
                }
            }
        }
        true
    }

    fn establish(&mut self, now: Instant, id: LinkId) {
        let Some(link) = self.links.get(&id) else { return };
        let Some(negotiated) = link.negotiated().cloned() else { return };
        let local_asn = self.peer.local_asn(&self.identity);
        let next_hops = self.next_hops(link.local);
        let outbound = Outbound::new(negotiated.dialect, local_asn, negotiated.families.clone(), next_hops);
        let up = Up { since: now, outbound, received: Received::default(), changed: true, complete: false };
        for other in self.links.keys().copied().filter(|other| *other != id).collect::<Vec<_>>() {
            self.close(now, other, Some(Notification::cease(Cease::ConnectionCollision, "")), None);
        }
        let Some(link) = self.links.get_mut(&id) else { return };
        link.heard(now);
        link.stage = Stage::Established(negotiated.clone(), Box::new(up));
        self.established += 1;
        self.retry_at = None;
        self.outputs.push_back(Output::Up(negotiated));
    }

    fn update(&mut self, id: LinkId, update: &Update) {
        if let Some(reason) = update.fault {
            tracing::warn!(
                peer = %self.peer.name,
                "an UPDATE counts as a withdrawal of its {} routes: {reason}",
                update.unreachable().count()
            );
        }
        if let Some(up) = self.links.get_mut(&id).and_then(Link::up_mut) {
            up.received.take_in(update);
        }
    }
}

fn described(link: &Link) -> Old {
    let restarts = link.negotiated().is_some_and(|negotiated| negotiated.graceful_restart.is_some());
    Old { initiator: link.initiator, state: link.state(), restarts }
}
