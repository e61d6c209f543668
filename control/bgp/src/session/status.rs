//! What a session looks like from outside.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use super::link::Link;
use super::{SessionError, State};
use crate::wire::{Family, Kind};

/// One peer, as it is now. Times are in seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Its TCP port.
    pub port: u16,
    /// Its AS number.
    pub peer_asn: u32,
    /// The AS number that it is shown.
    pub my_asn: u32,
    /// The session's state.
    pub state: State,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// How long routes have been exchanged for.
    pub uptime: Option<u64>,
    /// The peer's BGP identifier.
    pub router_id: Option<Ipv4Addr>,
    /// This side's address.
    pub local_address: Option<IpAddr>,
    /// Where it sends packets: at most one address of each family.
    pub next_hops: Vec<IpAddr>,
    /// Families that both sides take.
    pub families: BTreeSet<Family>,
    /// The hold time in force; 0: silence does not matter.
    pub hold_time: Option<u64>,
    /// How often this side says that it is there.
    pub keepalive_time: Option<u64>,
    /// The peer keeps routes while this side restarts.
    pub graceful_restart: bool,
    /// Prefixes that the peer was told.
    pub announced: Prefixes,
    /// Prefixes that the peer announces.
    pub received: Prefixes,
    /// The peer announces even more, which were not counted.
    pub received_more: bool,
    /// The peer has been told everything that it should be.
    pub complete: bool,
    /// Why routes are not announced although the session is there.
    pub warnings: Vec<String>,
    /// What went wrong last, if only another try to connect.
    pub last_error: Option<LastError>,
    /// Why routes were exchanged no more, the last time that they were.
    pub last_down: Option<LastError>,
    /// How often a session was established.
    pub established: u64,
    /// Messages sent.
    pub messages_sent: Counters,
    /// Messages received.
    pub messages_received: Counters,
}

/// Something that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastError {
    /// When, in seconds since 1970.
    pub at: u64,
    /// What, with the peer's name, and what to do about it.
    pub text: String,
}

/// Prefixes by family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Prefixes {
    /// Of IPv4.
    pub ipv4: usize,
    /// Of IPv6.
    pub ipv6: usize,
}

/// Messages since the peer was configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "one for each kind of message")]
pub struct Counters {
    pub open: u64,
    pub update: u64,
    pub notification: u64,
    pub keepalive: u64,
    pub route_refresh: u64,
}

impl Counters {
    pub(super) fn count(&mut self, kind: Kind) {
        *match kind {
            Kind::Open => &mut self.open,
            Kind::Update => &mut self.update,
            Kind::Notification => &mut self.notification,
            Kind::Keepalive => &mut self.keepalive,
            Kind::RouteRefresh => &mut self.route_refresh,
        } += 1;
    }
}

impl Prefixes {
    fn of(count: impl Fn(Family) -> usize) -> Self {
        Self { ipv4: count(Family::Ipv4), ipv6: count(Family::Ipv6) }
    }
}

impl super::Session {
    /// How it is. `now` and `wall` are the same moment on both clocks.
    #[must_use]
    pub fn status(&self, now: Instant, wall: SystemTime) -> PeerStatus {
        let seconds = |at: Instant| {
            let then = wall.checked_sub(now.saturating_duration_since(at)).unwrap_or(wall);
            then.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
        };
        let told =
            |(at, error): &(Instant, SessionError)| LastError { at: seconds(*at), text: self.said(error) };
        let link = self.foremost();
        let negotiated = link.and_then(Link::negotiated);
        let up = link.and_then(Link::up);
        let time = |time: Option<Duration>| time.map_or(0, |time| time.as_secs());
        PeerStatus {
            name: self.peer.name.clone(),
            address: self.peer.peer_address,
            port: self.peer.peer_port,
            peer_asn: self.peer.peer_asn,
            my_asn: self.peer.local_asn(&self.identity),
            state: self.state(),
            since: seconds(self.since),
            uptime: up.map(|up| now.saturating_duration_since(up.since).as_secs()),
            router_id: negotiated.map(|negotiated| negotiated.router_id),
            local_address: link.map(|link| link.local),
            next_hops: link.map(|link| self.all_next_hops(link.local)).unwrap_or_default(),
            families: negotiated.map(|negotiated| negotiated.families.clone()).unwrap_or_default(),
            hold_time: negotiated.map(|negotiated| time(negotiated.hold)),
            keepalive_time: negotiated.map(|negotiated| time(negotiated.keepalive)),
            graceful_restart: negotiated.is_some_and(|negotiated| negotiated.graceful_restart.is_some()),
            announced: up.map(|up| Prefixes::of(|family| up.outbound.told(family))).unwrap_or_default(),
            received: up.map(|up| Prefixes::of(|family| up.received.count(family))).unwrap_or_default(),
            received_more: up.is_some_and(|up| up.received.more),
            complete: up.is_some_and(|up| up.complete && !up.changed),
            warnings: self.warnings(),
            last_error: self.last_error.as_ref().map(told),
            last_down: self.last_down.as_ref().map(told),
            established: self.established,
            messages_sent: self.sent,
            messages_received: self.messages_received,
        }
    }

    fn all_next_hops(&self, local: IpAddr) -> Vec<IpAddr> {
        let hops = self.next_hops(local);
        Family::ALL.into_iter().filter_map(|family| hops.of(family)).collect()
    }

    /// Families with routes that cannot be announced.
    fn warnings(&self) -> Vec<String> {
        let Some((link, negotiated)) = self
            .foremost()
            .and_then(|link| Some((link, link.negotiated()?)))
            .filter(|(link, _)| link.up().is_some())
        else {
            return Vec::new();
        };
        let wanted = |family| {
            let routes = self.desired.as_ref();
            routes.is_some_and(|routes| routes.keys().any(|prefix| Family::of_prefix(prefix) == family))
        };
        let warning = |family: Family| {
            let (peer, name) = (&self.peer.name, family.name());
            if !negotiated.families.contains(&family) {
                return Some(format!(
                    "peer {peer}: {name} routes are not announced: {name} unicast is not enabled on both sides"
                ));
            }
            (self.next_hops(link.local).of(family).is_none()).then(|| {
                format!(
                    "peer {peer}: {name} routes are not announced: the session is over the other family and no \
                     {name} next hop is known: set one for the peer or the node"
                )
            })
        };
        Family::ALL.into_iter().filter(|family| wanted(*family)).filter_map(warning).collect()
    }
}
