//! Which public addresses nodes may announce: by BGP from this node, on layer 2 from one of those that are eligible.
//!
//! An address is announced where outside clients find an endpoint behind it, as far as the tables serve it, and where the
//! node stays. All nodes come to the same answer about each other: the election on layer 2 needs that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use portolan_model::{
    BgpAdvertisement, BgpPeer, Endpoint, Entry, LoadBalancerPool, Name, Node, ServiceKey, Store,
};

use crate::health::LEAVING_TAINT;
use crate::{Scope, ServicePlan, ServicePort};

/// Label of nodes that load balancers must leave out, whatever its value (KEP-1143).
const EXCLUDED_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// What all nodes announce, as this one sees it. Remembers what is known of each service: one that changes costs no walk
/// over the others.
#[derive(Debug)]
pub struct Announcing {
    node: Name,
    class: Name,
    services: BTreeMap<ServiceKey, BTreeMap<IpAddr, Reach>>,
}

/// From where clients reach an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reach {
    /// There is none.
    Nowhere,
    /// From every node.
    Everywhere,
    /// `externalTrafficPolicy: Local`: from the nodes that have one.
    On(BTreeSet<Name>),
}

/// What is announced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announcements {
    /// All public addresses that are served here, sorted.
    pub addresses: Vec<PublicAddress>,
    /// What this node announces by BGP: one for each BGPAdvertisement that names it.
    pub advertised: Vec<Advertised>,
    /// Peers that this node has sessions with, by name.
    pub peers: Vec<BgpPeer>,
    /// What is announced on layer 2, by any node; sorted by address.
    pub l2: Vec<L2Address>,
    /// All nodes that have addresses, with their InternalIPs.
    pub nodes: Vec<(Name, Vec<IpAddr>)>,
}

/// A public address that is served here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicAddress {
    /// The address.
    pub address: IpAddr,
    /// Who has it: several may share one.
    pub services: Vec<ServiceKey>,
    /// The pool that it is of.
    pub pool: Option<Name>,
    /// Why this node does not announce it; `None`: it does, or may on layer 2.
    pub silence: Option<Silence>,
}

/// What one BGPAdvertisement has this node announce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertised {
    /// How: tags, peers, lengths of prefixes.
    pub advertisement: BgpAdvertisement,
    /// Public addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The node's podCIDRs, if it asks for them: also from a node that is drained, whose pods are nowhere else.
    pub pod_cidrs: Vec<IpNetwork>,
}

/// An address that is announced on layer 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L2Address {
    /// The address.
    pub address: IpAddr,
    /// Which nodes may own it; `None`: all.
    pub eligible: Option<BTreeSet<Name>>,
}

/// Why this node does not announce an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Silence {
    /// It is in no pool.
    NoPool,
    /// Its pool's `announce` is empty.
    PoolSilent,
    /// There is no usable endpoint.
    NoEndpoint,
    /// `externalTrafficPolicy: Local`, and no ready endpoint is on this node.
    NoLocalEndpoint,
    /// The node's Node object is not known.
    NoNode,
    /// The node has the label that leaves it out.
    NodeExcluded,
    /// The node is cordoned.
    NodeCordoned,
    /// The node is about to be removed.
    NodeLeaving,
    /// Its pool is announced by BGP alone, and no BGPAdvertisement names pool and node.
    NoAdvertisement,
}

impl Silence {
    /// The reason as Kubernetes conditions write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoPool => "NotInAPool",
            Self::PoolSilent => "PoolNotAnnounced",
            Self::NoEndpoint => "NoEndpoints",
            Self::NoLocalEndpoint => "NoLocalEndpoints",
            Self::NoNode => "NodeUnknown",
            Self::NodeExcluded => "NodeExcluded",
            Self::NodeCordoned => "NodeCordoned",
            Self::NodeLeaving => "NodeLeaving",
            Self::NoAdvertisement => "NoAdvertisement",
        }
    }

    /// What is so, and what would change it.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::NoPool => "it is in no LoadBalancerPool: add one that has it",
            Self::PoolSilent => "its pool's spec.announce is empty: add L2 or BGP",
            Self::NoEndpoint => "its service has no usable endpoint",
            Self::NoLocalEndpoint => {
                "externalTrafficPolicy is Local and no ready endpoint of its service is on this node"
            }
            Self::NoNode => "this node's Node object is not known",
            Self::NodeExcluded => {
                "this node has the label node.kubernetes.io/exclude-from-external-load-balancers"
            }
            Self::NodeCordoned => "this node is cordoned",
            Self::NodeLeaving => "this node is about to be removed",
            Self::NoAdvertisement => {
                "its pool is announced by BGP, and no BGPAdvertisement names the pool and this node"
            }
        }
    }
}

impl Announcing {
    /// For the node of this name; services of another `loadBalancerClass` than `class` are somebody else's to announce.
    #[must_use]
    pub fn new(node: &str, class: &str) -> Self {
        Self { node: node.into(), class: class.into(), services: BTreeMap::new() }
    }

    /// Takes in what one service is and how the tables serve it; `None`: they do not. Whether that changes anything.
    pub fn set(&mut self, key: &ServiceKey, entry: Option<&Entry>, installed: Option<&ServicePlan>) -> bool {
        let reaches = entry.zip(installed).filter(|(entry, _)| self.is_ours(entry));
        let reaches = reaches.map(|(entry, plan)| reaches_of(entry, plan)).unwrap_or_default();
        if reaches.is_empty() {
            return self.services.remove(key).is_some();
        }
        if self.services.get(key) == Some(&reaches) {
            return false;
        }
        self.services.insert(key.clone(), reaches);
        true
    }

    fn is_ours(&self, entry: &Entry) -> bool {
        let wish = entry.service.as_ref().and_then(|service| service.load_balancer.as_deref());
        wish.is_some_and(|wish| wish.class.as_ref().is_none_or(|class| *class == self.class))
    }

    /// What is announced of everything that was taken in.
    #[must_use]
    pub fn plan(&self, store: &Store) -> Announcements {
        let pools = Pools::new(store);
        let this = store.node(&self.node);
        let unfit: BTreeSet<&str> =
            store.nodes().filter(|node| unfit(node).is_some()).map(|node| &*node.name).collect();
        let mut advertised = self.advertised(store, this);
        let (mut addresses, mut l2) = (Vec::new(), Vec::new());
        for (address, (reach, services)) in self.by_address() {
            let pool = pools.of(address);
            if pool.is_some_and(|pool| pool.l2) {
                l2.extend(on_layer_2(address, &reach, &unfit, store));
            }
            let mut silence = self.silence(this, pool, &reach);
            if let Some(pool) = pool.filter(|pool| pool.bgp && silence.is_none()) {
                let told = advertise(&mut advertised, address, &pool.name);
                silence = (!told && !pool.l2).then_some(Silence::NoAdvertisement);
            }
            let pool = pool.map(|pool| pool.name.clone());
            addresses.push(PublicAddress { address, services, pool, silence });
        }
        let nodes = store.nodes().filter(|node| !node.addresses.is_empty());
        Announcements {
            addresses,
            advertised,
            peers: this.map(|node| peers_of(store, node)).unwrap_or_default(),
            l2,
            nodes: nodes.map(|node| (node.name.clone(), node.addresses.clone())).collect(),
        }
    }

    /// Addresses with all who have them: from where one reaches an endpoint, the address leads there.
    fn by_address(&self) -> BTreeMap<IpAddr, (Reach, Vec<ServiceKey>)> {
        let mut all: BTreeMap<IpAddr, (Reach, Vec<ServiceKey>)> = BTreeMap::new();
        for (key, reaches) in &self.services {
            for (address, reach) in reaches {
                let (together, services) = all.entry(*address).or_insert((Reach::Nowhere, Vec::new()));
                together.extend(reach);
                services.push(key.clone());
            }
        }
        all
    }

    fn silence(
        &self,
        this: Option<&Node>,
        pool: Option<&LoadBalancerPool>,
        reach: &Reach,
    ) -> Option<Silence> {
        let Some(pool) = pool else { return Some(Silence::NoPool) };
        if !pool.bgp && !pool.l2 {
            return Some(Silence::PoolSilent);
        }
        if *reach == Reach::Nowhere {
            return Some(Silence::NoEndpoint);
        }
        let Some(this) = this else { return Some(Silence::NoNode) };
        let elsewhere = matches!(reach, Reach::On(nodes) if !nodes.contains(&self.node));
        unfit(this).or(elsewhere.then_some(Silence::NoLocalEndpoint))
    }

    /// The advertisements that name this node, without public addresses yet.
    fn advertised(&self, store: &Store, this: Option<&Node>) -> Vec<Advertised> {
        let Some(node) = this else { return Vec::new() };
        let ours = store.advertisements().filter(|it| it.nodes.matches(&node.labels));
        let advertised = |it: &BgpAdvertisement| Advertised {
            addresses: BTreeSet::new(),
            pod_cidrs: if it.pod_cidrs { node.pod_cidrs.clone() } else { Vec::new() },
            advertisement: it.clone(),
        };
        ours.map(advertised).collect()
    }
}

impl Reach {
    /// What either reaches.
    fn extend(&mut self, other: &Self) {
        match (&mut *self, other) {
            (Self::Everywhere, _) | (_, Self::Nowhere) => {}
            (Self::On(nodes), Self::On(more)) => nodes.extend(more.iter().cloned()),
            (_, other) => *self = other.clone(),
        }
    }
}

/// The public addresses that a plan serves, and from where they lead to an endpoint by any port.
fn reaches_of(entry: &Entry, plan: &ServicePlan) -> BTreeMap<IpAddr, Reach> {
    let mut reaches: BTreeMap<IpAddr, Reach> = BTreeMap::new();
    for port in &plan.ports {
        let public = port.frontends.iter().filter(|frontend| frontend.scope == Scope::LoadBalancer);
        let mut public = public.filter_map(|frontend| frontend.addr).peekable();
        if public.peek().is_none() {
            continue;
        }
        let reach = reach_of(entry, port);
        public.for_each(|address| reaches.entry(address).or_insert(Reach::Nowhere).extend(&reach));
    }
    reaches
}

fn reach_of(entry: &Entry, port: &ServicePort) -> Reach {
    if !port.external_local {
        return if port.cluster.is_empty() { Reach::Nowhere } else { Reach::Everywhere };
    }
    // As the health check port counts: a node whose endpoints all terminate is left, unless there is no other.
    let mut nodes = nodes_with(entry, port, |it| it.ready && !it.terminating);
    if nodes.is_empty() {
        nodes = nodes_with(entry, port, |it| it.serving && it.terminating);
    }
    if nodes.is_empty() { Reach::Nowhere } else { Reach::On(nodes) }
}

/// Nodes that have such an endpoint of a port.
fn nodes_with(entry: &Entry, port: &ServicePort, counts: impl Fn(&Endpoint) -> bool) -> BTreeSet<Name> {
    let name = &port.name;
    let slices = entry.slices.iter().filter(|slice| {
        let serves = |it: &portolan_model::SlicePort| it.name == name.port && it.protocol == name.protocol;
        slice.family == Some(name.family) && slice.ports.iter().any(serves)
    });
    let endpoints = slices.flat_map(|slice| &slice.endpoints).filter(|endpoint| counts(endpoint));
    endpoints.filter_map(|endpoint| endpoint.node.clone()).collect()
}

/// Why a node announces nothing, if so.
fn unfit(node: &Node) -> Option<Silence> {
    if node.labels.contains_key(EXCLUDED_LABEL) {
        return Some(Silence::NodeExcluded);
    }
    if node.deleting || node.taints.iter().any(|key| **key == *LEAVING_TAINT) {
        return Some(Silence::NodeLeaving);
    }
    node.unschedulable.then_some(Silence::NodeCordoned)
}

/// Adds an address to every advertisement that its pool is of; whether there is one.
fn advertise(advertised: &mut [Advertised], address: IpAddr, pool: &Name) -> bool {
    let mut told = false;
    for Advertised { advertisement, addresses, .. } in advertised {
        if advertisement.pools.is_empty() || advertisement.pools.contains(pool) {
            addresses.insert(address);
            told = true;
        }
    }
    told
}

/// Nothing where no node may have it.
fn on_layer_2(address: IpAddr, reach: &Reach, unfit: &BTreeSet<&str>, store: &Store) -> Option<L2Address> {
    let fit = |name: &&Name| !unfit.contains(&***name);
    let eligible = match reach {
        Reach::Nowhere => return None,
        Reach::Everywhere if unfit.is_empty() => None,
        Reach::Everywhere => Some(store.nodes().map(|node| &node.name).filter(fit).cloned().collect()),
        Reach::On(nodes) => Some(nodes.iter().filter(fit).cloned().collect::<BTreeSet<Name>>()),
    };
    eligible.as_ref().is_none_or(|nodes| !nodes.is_empty()).then_some(L2Address { address, eligible })
}

fn peers_of(store: &Store, node: &Node) -> Vec<BgpPeer> {
    store.peers().filter(|peer| peer.nodes.matches(&node.labels)).cloned().collect()
}

/// Pools, the older ones first: of two that overlap, allocators let the older one have what both name.
struct Pools<'a>(Vec<&'a LoadBalancerPool>);

impl<'a> Pools<'a> {
    fn new(store: &'a Store) -> Self {
        let mut pools: Vec<&LoadBalancerPool> = store.pools().collect();
        pools.sort_by_key(|pool| (pool.created.map_or(u64::MAX, |created| created.digits()), &pool.name));
        Self(pools)
    }

    fn of(&self, address: IpAddr) -> Option<&'a LoadBalancerPool> {
        let has = |pool: &&&LoadBalancerPool| {
            let mut ranges = pool.ranges.iter();
            // Addresses of IPv4 sort before all of IPv6.
            ranges.any(|range| range.first() <= address && address <= range.last())
        };
        self.0.iter().find(has).copied()
    }
}

#[cfg(test)]
mod tests;
