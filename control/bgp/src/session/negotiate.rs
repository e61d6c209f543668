//! Two OPENs → what the session is like (RFC 4271 §6.2, RFC 5492, RFC 4724, RFC 6793).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::config::{Identity, Peer};
use crate::wire::{Capability, Dialect, Family, GracefulRestart, Notification, Open, code};

/// What both sides agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// How messages are read and written.
    pub dialect: Dialect,
    /// The peer's BGP identifier.
    pub router_id: Ipv4Addr,
    /// Silence that ends the session; none: nothing does.
    pub hold: Option<Duration>,
    /// How often to say that one is there.
    pub keepalive: Option<Duration>,
    /// What both announce.
    pub families: BTreeSet<Family>,
    /// The peer keeps its routes' forwarding while it restarts, and this side's routes while that restarts.
    pub graceful_restart: Option<GracefulRestart>,
    /// The peer sends its routes again when asked, and may ask.
    pub refresh: bool,
}

/// An OPEN that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Disagreement {
    pub(super) notification: Notification,
    pub(super) reason: String,
}

/// The OPEN to send. `restarted`: this side's routes from before are still at the peer.
pub(super) fn open(identity: &Identity, peer: &Peer, restarted: bool) -> Open {
    let asn = peer.local_asn(identity);
    let mut capabilities: Vec<Capability> =
        peer.families.iter().map(|family| Capability::Multiprotocol((*family).into())).collect();
    capabilities.extend([Capability::RouteRefresh, Capability::FourOctetAs(asn)]);
    if let Some(time) = peer.graceful_restart {
        let preserved = |family: &Family| ((*family).into(), identity.forwarding_preserved);
        let families = peer.families.iter().map(preserved).collect();
        let restart = GracefulRestart { restarted, notifications: false, time, families };
        capabilities.push(Capability::GracefulRestart(restart));
    }
    let two_octet_asn = Open::shorten(asn);
    Open { two_octet_asn, hold_time: peer.hold_time, router_id: identity.router_id, capabilities }
}

/// Judges the peer's OPEN.
pub(super) fn negotiate(identity: &Identity, peer: &Peer, open: &Open) -> Result<Negotiated, Disagreement> {
    check_asn(peer, open)?;
    check_router_id(identity, peer, open)?;
    let (hold, keepalive) = timers(peer, open)?;
    let families: BTreeSet<Family> = open.families().filter_map(|family| family.family()).collect();
    let families: BTreeSet<Family> = families.intersection(&peer.families).copied().collect();
    if families.is_empty() {
        let wanted: Vec<&str> = peer.families.iter().map(|family| family.name()).collect();
        let reason = format!(
            "no address family in common, {} unicast is enabled here: enable it for this neighbor at the peer",
            wanted.join(" and ")
        );
        return Err(Disagreement { notification: Notification::new(code::OPEN, 7), reason });
    }
    let dialect =
        Dialect { four_octet_as: open.four_octet_asn().is_some(), internal: peer.is_internal(identity) };
    let graceful_restart = peer.graceful_restart.and_then(|_| open.graceful_restart().cloned());
    let refresh = open.refreshes();
    Ok(Negotiated {
        dialect,
        router_id: open.router_id,
        hold,
        keepalive,
        families,
        graceful_restart,
        refresh,
    })
}

fn check_asn(peer: &Peer, open: &Open) -> Result<(), Disagreement> {
    let (expected, said) = (peer.peer_asn, open.asn());
    if said == expected {
        return Ok(());
    }
    let reason = format!(
        "AS number expected {expected}, the peer says {said}: correct peerASN, or the AS number at the peer"
    );
    Err(Disagreement { notification: Notification::new(code::OPEN, 2), reason })
}

/// RFC 6286 §2.2: not zero, and unique within the AS.
fn check_router_id(identity: &Identity, peer: &Peer, open: &Open) -> Result<(), Disagreement> {
    let id = open.router_id;
    let same = peer.is_internal(identity) && id == identity.router_id;
    let reason = match (id.is_unspecified(), same) {
        (false, false) => return Ok(()),
        (true, _) => "the peer has no router id: set one there".to_owned(),
        (_, true) => format!("the peer has this node's router id {id}: set another one here or there"),
    };
    Err(Disagreement { notification: Notification::new(code::OPEN, 3), reason })
}

/// Hold time and keepalive interval; RFC 4271 §4.2, §4.4.
fn timers(peer: &Peer, open: &Open) -> Result<(Option<Duration>, Option<Duration>), Disagreement> {
    if matches!(open.hold_time, 1 | 2) {
        let reason = format!("the peer wants a hold time of {} s: set 3 s or more there", open.hold_time);
        return Err(Disagreement { notification: Notification::new(code::OPEN, 6), reason });
    }
    let hold = match peer.hold_time.min(open.hold_time) {
        // Either side wants none.
        0 => return Ok((None, None)),
        seconds => Duration::from_secs(seconds.into()),
    };
    let own = peer.keepalive_time.map_or(Duration::MAX, |seconds| Duration::from_secs(seconds.into()));
    Ok((Some(hold), Some(own.min(hold / 3))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Identity, Peer, Open) {
        let identity = Identity::new([10, 0, 0, 1].into(), 64_512);
        let peer = Peer::new("tor-1", [10, 0, 0, 254].into(), 64_513);
        let other = Identity::new([10, 0, 0, 254].into(), 64_513);
        let back = Peer::new("node", [10, 0, 0, 1].into(), 64_512);
        let open = open(&other, &back, false);
        (identity, peer, open)
    }

    fn seconds(time: Option<Duration>) -> Option<u64> {
        time.map(|time| time.as_secs())
    }

    #[test]
    fn the_lower_hold_time_counts_and_a_third_of_it() {
        let (identity, mut peer, mut open) = pair();
        for (ours, theirs, keepalive, hold, every) in [
            (90, 30, None, Some(30), Some(10)),
            (9, 180, None, Some(9), Some(3)),
            (90, 90, Some(5), Some(90), Some(5)),
            (90, 30, Some(20), Some(30), Some(10)),
            (0, 90, None, None, None),
            (90, 0, Some(5), None, None),
        ] {
            (peer.hold_time, open.hold_time, peer.keepalive_time) = (ours, theirs, keepalive);
            let agreed = negotiate(&identity, &peer, &open).unwrap();
            assert_eq!((seconds(agreed.hold), seconds(agreed.keepalive)), (hold, every), "{ours} {theirs}");
        }
    }

    #[test]
    fn families_are_those_of_both() {
        let (identity, mut peer, mut open) = pair();
        assert_eq!(negotiate(&identity, &peer, &open).unwrap().families.len(), 2);
        peer.families = [Family::Ipv6].into();
        assert_eq!(negotiate(&identity, &peer, &open).unwrap().families, [Family::Ipv6].into());
        // Who says nothing takes IPv4.
        open.capabilities.retain(|capability| !matches!(capability, Capability::Multiprotocol(_)));
        let error = negotiate(&identity, &peer, &open).unwrap_err();
        assert_eq!((error.notification.code, error.notification.subcode), (2, 7));
        assert!(error.reason.contains("IPv6 unicast is enabled here"), "{}", error.reason);
    }

    #[test]
    fn what_cannot_be_agreed_to_has_its_own_code() {
        let (identity, peer, open) = pair();
        let code = |change: &dyn Fn(&mut Open)| {
            let mut open = open.clone();
            change(&mut open);
            let error = negotiate(&identity, &peer, &open).unwrap_err();
            (error.notification.code, error.notification.subcode)
        };
        assert_eq!(code(&|open| open.router_id = Ipv4Addr::UNSPECIFIED), (2, 3));
        assert_eq!(code(&|open| open.hold_time = 2), (2, 6));
        let other_as = |open: &mut Open| open.capabilities.push(Capability::FourOctetAs(64_514));
        assert_eq!(negotiate(&identity, &peer, &open).map(|_| ()), Ok(()));
        assert_eq!(
            code(&|open| {
                open.capabilities.retain(|capability| !matches!(capability, Capability::FourOctetAs(_)));
                other_as(open);
            }),
            (2, 2)
        );
        let internal = Peer { peer_asn: 64_512, ..peer.clone() };
        let same_id = super::open(&identity, &internal, false);
        let error = negotiate(&identity, &internal, &same_id).unwrap_err();
        assert_eq!((error.notification.code, error.notification.subcode), (2, 3));
    }
}
