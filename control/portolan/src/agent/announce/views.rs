//! What is said about announcements.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portolan_bgp::routes::{Tags, desired};
use portolan_bgp::{PeerStatus, State as Session};
use portolan_model::{Entry, ServiceKey, Store};
use portolan_plan::PublicAddress;

use super::{Announce, State};
use crate::api::{
    BgpPeerView, BgpRouteView, ConditionView, LoadBalancerAddressView, LoadBalancerView, PrefixesView, Status,
};

/// A condition of an address that this node announces or not.
pub(crate) const ANNOUNCED: &str = "Announced";

/// Sessions, those of peers that are left out among them; by name.
pub(in crate::agent) fn peers(announce: &Announce) -> Vec<BgpPeerView> {
    let state = announce.state();
    let mut views: Vec<BgpPeerView> = sessions(&state).into_iter().map(peer).collect();
    for (name, problem) in &state.problems {
        let Some(object) = state.planned.peers.iter().find(|peer| *peer.name == **name) else { continue };
        views.push(BgpPeerView {
            name: name.clone(),
            address: object.peer_address,
            port: object.peer_port,
            peer_asn: object.peer_asn,
            my_asn: object.my_asn.or_else(|| Some(state.identity.as_ref()?.local_asn)).unwrap_or_default(),
            state: "LeftOut".to_owned(),
            uptime_seconds: None,
            router_id: None,
            families: Vec::new(),
            hold_time: None,
            graceful_restart: false,
            announced: PrefixesView::default(),
            received: PrefixesView::default(),
            warnings: Vec::new(),
            last_error: Some(problem.clone()),
        });
    }
    views.sort_by(|a, b| a.name.cmp(&b.name));
    views
}

fn sessions(state: &State) -> Vec<PeerStatus> {
    state.speaker.as_ref().map(portolan_bgp::Speaker::status).unwrap_or_default()
}

fn peer(status: PeerStatus) -> BgpPeerView {
    let prefixes = |it: portolan_bgp::Prefixes| PrefixesView { ipv4: it.ipv4, ipv6: it.ipv6 };
    BgpPeerView {
        name: status.name,
        address: status.address,
        port: status.port,
        peer_asn: status.peer_asn,
        my_asn: status.my_asn,
        state: format!("{:?}", status.state),
        uptime_seconds: status.uptime,
        router_id: status.router_id,
        families: status.families.iter().map(|family| family.name().to_owned()).collect(),
        hold_time: status.hold_time,
        graceful_restart: status.graceful_restart,
        announced: prefixes(status.announced),
        received: prefixes(status.received),
        warnings: status.warnings,
        last_error: status.last_error.or(status.last_down).map(|error| error.text),
    }
}

/// What this node announces, by prefix; twice where peers are told different things.
pub(in crate::agent) fn routes(announce: &Announce) -> Vec<BgpRouteView> {
    let state = announce.state();
    let sessions = sessions(&state);
    let mut told: BTreeMap<(ipnetwork::IpNetwork, Tags), Vec<&PeerStatus>> = BTreeMap::new();
    for session in &sessions {
        for (prefix, tags) in desired(&state.routes, &session.name) {
            told.entry((prefix, (*tags).clone())).or_default().push(session);
        }
    }
    let view = |((prefix, tags), peers): (&(ipnetwork::IpNetwork, Tags), &Vec<&PeerStatus>)| {
        let up = |peer: &&&PeerStatus| {
            peer.state == Session::Established
                && peer.families.contains(&portolan_bgp::Family::of_prefix(prefix))
        };
        let hops: BTreeSet<IpAddr> = peers
            .iter()
            .filter(up)
            .flat_map(|peer| peer.next_hops.iter().copied())
            .filter(|hop| hop.is_ipv4() == prefix.is_ipv4())
            .collect();
        let communities = tags.communities.iter().map(ToString::to_string);
        let names = |wanted: bool| {
            peers.iter().filter(|peer| up(peer) == wanted).map(|peer| peer.name.clone()).collect()
        };
        BgpRouteView {
            prefix: *prefix,
            next_hops: hops.into_iter().collect(),
            communities: communities.chain(tags.large_communities.iter().map(ToString::to_string)).collect(),
            local_preference: tags.local_preference,
            peers: names(true),
            waiting: names(false),
        }
    };
    told.iter().map(view).collect()
}

/// All services of type LoadBalancer that are in the objects.
pub(in crate::agent) fn lb(announce: &Announce, store: &Store) -> Vec<LoadBalancerView> {
    let state = announce.state();
    let announced = Announced::new(&state);
    let entries = store
        .services()
        .filter(|(_, entry)| entry.service.as_ref().is_some_and(|service| service.load_balancer.is_some()));
    entries.map(|(key, entry)| service(&announced, key, entry)).collect()
}

/// How addresses are announced, and by whom.
struct Announced<'a> {
    addresses: BTreeMap<IpAddr, &'a PublicAddress>,
    owners: BTreeMap<IpAddr, String>,
    /// Names of peers that are told of an address.
    peers: BTreeMap<IpAddr, BTreeSet<String>>,
}

impl<'a> Announced<'a> {
    fn new(state: &'a State) -> Self {
        let vips = state.announcer.as_ref().map(|announcer| announcer.status().vips).unwrap_or_default();
        let up: BTreeSet<String> = sessions(state)
            .into_iter()
            .filter(|session| session.state == Session::Established)
            .map(|session| session.name)
            .collect();
        let mut peers: BTreeMap<IpAddr, BTreeSet<String>> = BTreeMap::new();
        for it in state.planned.advertised.iter().filter(|_| state.healthy) {
            let named = &it.advertisement.peers;
            let told = up.iter().filter(|peer| named.is_empty() || named.contains(peer.as_str()));
            let told: BTreeSet<String> = told.cloned().collect();
            for address in &it.addresses {
                peers.entry(*address).or_default().extend(told.iter().cloned());
            }
        }
        Self {
            addresses: state.planned.addresses.iter().map(|it| (it.address, it)).collect(),
            owners: vips.into_iter().filter_map(|vip| Some((vip.address, vip.owner?))).collect(),
            peers,
        }
    }

    fn words(&self, address: IpAddr) -> Vec<String> {
        let owner = self.owners.get(&address).map(|owner| format!("L2 by {owner}"));
        let peers = self.peers.get(&address).into_iter().flatten().map(|peer| format!("BGP to {peer}"));
        owner.into_iter().chain(peers).collect()
    }
}

fn service(announced: &Announced<'_>, key: &ServiceKey, entry: &Entry) -> LoadBalancerView {
    let service = entry.service.as_ref();
    let ips = service.map(|service| service.ingress_ips.as_slice()).unwrap_or_default();
    let wish = service.and_then(|service| service.load_balancer.as_deref());
    let known = |ip: &IpAddr| announced.addresses.get(ip).filter(|it| it.services.contains(key));
    let address = |ip: &IpAddr| LoadBalancerAddressView {
        address: *ip,
        pool: known(ip).and_then(|it| it.pool.as_deref()).map(str::to_owned),
        requested: wish.is_some_and(|wish| wish.requested.contains(ip)),
        shared: known(ip).is_some_and(|it| it.services.len() > 1),
        own: entry.own_ingress_ips().contains(ip),
        announced: if known(ip).is_some() { announced.words(*ip) } else { Vec::new() },
    };
    let silent = ips.iter().filter_map(|ip| {
        let silence = known(ip)?.silence?;
        Some(ConditionView {
            kind: ANNOUNCED.to_owned(),
            status: false,
            reason: silence.as_str().to_owned(),
            message: format!("{ip}: {}", silence.text()),
        })
    });
    LoadBalancerView {
        namespace: key.namespace().to_owned(),
        name: key.name().to_owned(),
        addresses: ips.iter().map(address).collect(),
        conditions: silent.collect(),
    }
}

/// What the operator should know.
pub(in crate::agent) fn warnings(announce: &Announce) -> Vec<String> {
    let state = announce.state();
    let mut warnings: Vec<String> =
        state.failures.iter().map(|(about, failure)| format!("{about}: {failure}")).collect();
    warnings.extend(
        state.problems.iter().map(|(peer, problem)| format!("BGP peer {peer} is left out: {problem}")),
    );
    warnings.extend(sessions(&state).into_iter().flat_map(|session| session.warnings));
    if let Some(announcer) = &state.announcer {
        warnings.extend(announcer.status().warnings.into_iter().map(|it| format!("layer 2: {it}")));
    }
    if !state.healthy {
        warnings.push("public addresses are withdrawn: changes of objects wait for too long".to_owned());
    }
    warnings
}

/// What is counted.
pub(in crate::agent) fn numbers(announce: &Announce, status: &mut Status) {
    let state = announce.state();
    status.bgp_sessions = sessions(&state)
        .into_iter()
        .map(|session| (session.name, session.state == Session::Established))
        .chain(state.problems.keys().map(|name| (name.clone(), false)))
        .collect();
    status.bgp_routes = state.routes.iter().map(|route| route.prefix).collect::<BTreeSet<_>>().len();
    let vips = state.announcer.as_ref().map(|announcer| announcer.status().vips).unwrap_or_default();
    status.l2_owned = vips.iter().filter(|vip| vip.ours).count();
}
