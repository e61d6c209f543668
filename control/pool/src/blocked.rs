//! Addresses that no service may be given, whatever pools say.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use portolan_model::{AddressRange, Family, Name, ServiceKey, Store};

use crate::number::{self, Each};
use crate::pools::Pools;
use crate::runs::Runs;

/// What reaches one host or link, many or nobody. The model refuses such addresses one by one; a pool's range may
/// run over them.
const SPECIAL: [&str; 9] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/127",
    "fe80::/10",
    "ff00::/8",
    "::ffff:0.0.0.0/96",
];

/// Whose an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// Nobody's: loopback, link-local, multicast and the like.
    Special,
    /// Services' inside of the cluster.
    ServiceCidr(IpNetwork),
    /// A service's inside of the cluster.
    ClusterIp(ServiceKey),
    /// A node's own.
    Node(Name),
    /// Pods' of a node.
    Pods(Name),
    /// An API server's: who had it would have the cluster.
    ApiServer,
}

impl fmt::Display for Whose {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Whose::Special => out.write_str("is no unicast address of a network"),
            Whose::ServiceCidr(cidr) => write!(out, "is in the range of cluster addresses {cidr}"),
            Whose::ClusterIp(service) => write!(out, "is the cluster address of service {service}"),
            Whose::Node(node) => write!(out, "is node {node}'s own address"),
            Whose::ApiServer => out.write_str("is the API server's own address"),
            Whose::Pods(node) => write!(out, "is one of the addresses of node {node}'s pods"),
        }
    }
}

/// All such addresses.
#[derive(Debug, Default)]
pub(crate) struct Blocked {
    runs: Each<Runs>,
    /// The same with their owners. Few are asked for, so a walk is good enough.
    owners: Vec<(AddressRange, Whose)>,
}

impl Blocked {
    /// Collects them. Of cluster addresses outside of `service_cidrs` only those that are in a pool matter.
    pub(crate) fn new(service_cidrs: &[IpNetwork], store: &Store, pools: &Pools<'_>) -> Self {
        let mut blocked = Self::default();
        let special = SPECIAL.iter().filter_map(|text| text.parse::<IpNetwork>().ok());
        special.for_each(|prefix| blocked.add(AddressRange::of_prefix(prefix), Whose::Special));
        for cidr in service_cidrs {
            blocked.add(AddressRange::of_prefix(*cidr), Whose::ServiceCidr(*cidr));
        }
        for node in store.nodes() {
            let own = node.addresses.iter().chain(&node.external);
            own.for_each(|addr| blocked.add_one(*addr, Whose::Node(node.name.clone())));
            for cidr in &node.pod_cidrs {
                blocked.add(AddressRange::of_prefix(*cidr), Whose::Pods(node.name.clone()));
            }
        }
        let api = store.service(&ServiceKey::new("default", "kubernetes"));
        let servers = api.iter().flat_map(|entry| &entry.slices).flat_map(|slice| &slice.endpoints);
        servers.for_each(|server| blocked.add_one(server.addr, Whose::ApiServer));
        for (key, entry) in store.services() {
            let ips = entry.service.iter().flat_map(|service| &service.cluster_ips);
            for ip in ips.filter(|ip| pools.of(**ip).is_some()) {
                blocked.add_one(*ip, Whose::ClusterIp(key.clone()));
            }
        }
        blocked
    }

    pub(crate) fn contains(&self, addr: IpAddr) -> bool {
        self.runs.of(Family::of(addr)).contains(number::of(addr))
    }

    /// The first to say that an address is not to be given.
    pub(crate) fn whose(&self, addr: IpAddr) -> Option<&Whose> {
        let has = |range: &AddressRange| {
            Family::of(range.first()) == Family::of(addr) && (range.first()..=range.last()).contains(&addr)
        };
        let found = self.contains(addr).then(|| self.owners.iter().find(|(range, _)| has(range)));
        found.flatten().map(|(_, whose)| whose)
    }

    pub(crate) fn runs(&self, family: Family) -> &Runs {
        self.runs.of(family)
    }

    fn add_one(&mut self, addr: IpAddr, whose: Whose) {
        // One address is a range.
        if let Some(range) = AddressRange::new(addr, addr) {
            self.add(range, whose);
        }
    }

    fn add(&mut self, range: AddressRange, whose: Whose) {
        let runs = self.runs.of_mut(Family::of(range.first()));
        runs.insert(number::of(range.first()), number::of(range.last()));
        self.owners.push((range, whose));
    }
}
