//! Two connections with one peer: which one stays (RFC 4271 §6.8, RFC 6286 §2.3, RFC 4724 §4.2).

use std::net::Ipv4Addr;

use super::State;

/// Who opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initiator {
    /// This side.
    Local,
    /// The peer.
    Remote,
}

/// What becomes of a connection whose OPEN has just come, and of the one that was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The new one is closed.
    Old,
    /// The old one is closed.
    New,
    /// The peer restarted: the old connection is dead and nobody reads what would be sent on it.
    Restarted,
    /// Nobody knows yet: the other one has had no OPEN.
    Both,
}

/// The connection that was there.
pub(super) struct Old {
    pub(super) initiator: Initiator,
    pub(super) state: State,
    /// The peer's routes outlive its connections.
    pub(super) restarts: bool,
}

/// BGP identifier and AS number of a side: in this order they decide.
pub(super) type Side = (Ipv4Addr, u32);

/// Both sides come to the same result, each by itself.
pub(super) fn resolve(new: Initiator, old: &Old, local: Side, remote: Side) -> Verdict {
    match old.state {
        State::Established if old.restarts && new == Initiator::Remote => Verdict::Restarted,
        State::Established => Verdict::Old,
        State::OpenConfirm if new == old.initiator => Verdict::New,
        State::OpenConfirm => {
            let stays = if local > remote { Initiator::Local } else { Initiator::Remote };
            if new == stays { Verdict::New } else { Verdict::Old }
        }
        _ => Verdict::Both,
    }
}

#[cfg(test)]
mod tests {
    use super::Initiator::{Local, Remote};
    use super::*;

    fn side(last: u8, asn: u32) -> Side {
        (Ipv4Addr::new(10, 0, 0, last), asn)
    }

    #[test]
    fn the_connection_that_the_higher_identifier_opened_stays() {
        let old = |initiator| Old { initiator, state: State::OpenConfirm, restarts: false };
        let (low, high) = (side(1, 64_512), side(2, 64_512));
        assert_eq!(resolve(Remote, &old(Local), high, low), Verdict::Old);
        assert_eq!(resolve(Local, &old(Remote), high, low), Verdict::New);
        assert_eq!(resolve(Remote, &old(Local), low, high), Verdict::New);
        assert_eq!(resolve(Local, &old(Remote), low, high), Verdict::Old);
        // The same identifier in two ASes.
        assert_eq!(resolve(Remote, &old(Local), side(1, 2), side(1, 1)), Verdict::Old);
    }

    #[test]
    fn an_established_connection_stays_unless_the_peer_restarts() {
        let old = |restarts| Old { initiator: Local, state: State::Established, restarts };
        let (low, high) = (side(1, 64_512), side(2, 64_512));
        assert_eq!(resolve(Remote, &old(false), low, high), Verdict::Old);
        assert_eq!(resolve(Remote, &old(true), low, high), Verdict::Restarted);
        assert_eq!(resolve(Local, &old(true), low, high), Verdict::Old);
    }
}
