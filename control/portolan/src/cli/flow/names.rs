//! Which service an index in the kernel's table means.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use portolan_abi::{Frontend, FrontendKey};
use portolan_core::wire::proto;
use portolan_core::{Address, Family, V4, V6};
use portolan_node::maps::NodeFamily;

use super::super::service::full_name;
use crate::api::{PortView, ServiceView, Why};

/// Names of services by index. The agent knows frontends by service, the kernel's tables know indexes by frontend.
#[derive(Clone, Debug, Default)]
pub(in crate::cli) struct Names(BTreeMap<u32, Name>);

#[derive(Clone, Debug)]
struct Name {
    /// `namespace/name`.
    service: String,
    /// `namespace/name:port`, without the port if it has no name.
    port: String,
    /// Why its Cluster set and its Local set are as they are.
    why: [Why; 2],
}

type Frontends<F> = [(FrontendKey<<F as Family>::Addr>, Frontend)];

impl Names {
    pub(in crate::cli) fn new(services: &[ServiceView], v4: &Frontends<V4>, v6: &Frontends<V6>) -> Self {
        let mut names = BTreeMap::new();
        add::<V4>("IPv4", services, v4, &mut names);
        add::<V6>("IPv6", services, v6, &mut names);
        Self(names)
    }

    /// `namespace/name:port` of an index.
    pub(in crate::cli) fn get(&self, index: u32) -> Option<&str> {
        self.0.get(&index).map(|name| name.port.as_str())
    }

    /// Why the Cluster set of an index, or its Local set, is as it is.
    pub(in crate::cli) fn why(&self, index: u32, local: bool) -> Why {
        self.0.get(&index).map_or(Why::Ready, |name| name.why[usize::from(local)])
    }

    /// All indexes of a service `namespace/name`: it has one for each port and family.
    pub(in crate::cli) fn indexes(&self, service: &str) -> BTreeSet<u32> {
        self.0.iter().filter(|(_, name)| name.service == service).map(|(index, _)| *index).collect()
    }
}

/// Names of services by their frontends, as packets have them.
#[derive(Clone, Debug, Default)]
pub(in crate::cli) struct Ends {
    /// `TCP` or `UDP`, address (none: every address of the node), port → `namespace/name:port`.
    frontends: HashMap<(String, Option<IpAddr>, u16), String>,
    /// Addresses of the node.
    nodes: Vec<IpAddr>,
}

impl Ends {
    pub(in crate::cli) fn new(services: &[ServiceView], nodes: Vec<IpAddr>) -> Self {
        let mut frontends = HashMap::new();
        for service in services {
            for port in &service.ports {
                let name = name(service, port).port;
                let keys = port.frontends.iter().map(|it| (port.protocol.clone(), it.address, it.port));
                frontends.extend(keys.map(|key| (key, name.clone())));
            }
        }
        Self { frontends, nodes }
    }

    /// The frontend at an end of a packet, as `explain` calls it, and its service `namespace/name:port`.
    pub(in crate::cli) fn frontend(&self, protocol: &str, end: SocketAddr) -> Option<(String, &str)> {
        let get = |address| self.frontends.get(&(protocol.to_owned(), address, end.port()));
        if let Some(service) = get(Some(end.ip())) {
            return Some((end.to_string(), service));
        }
        let service = get(None).filter(|_| self.nodes.contains(&end.ip()))?;
        Some((format!("NodePort {}", end.port()), service))
    }
}

fn add<F: NodeFamily>(
    family: &str,
    services: &[ServiceView],
    frontends: &Frontends<F>,
    names: &mut BTreeMap<u32, Name>,
) {
    // Marks of addresses have port 0, and name no service.
    let real = frontends.iter().filter(|(key, _)| key.port != 0);
    let indexes: HashMap<_, u32> = real.map(|(key, value)| (*key, value.service)).collect();
    for service in services {
        for port in service.ports.iter().filter(|port| port.family == family) {
            let name = name(service, port);
            for index in keys::<F>(port).filter_map(|key| indexes.get(&key)) {
                names.entry(*index).or_insert_with(|| name.clone());
            }
        }
    }
}

fn name(service: &ServiceView, view: &PortView) -> Name {
    let service = full_name(&service);
    let port = if view.name.is_empty() { service.clone() } else { format!("{service}:{}", view.name) };
    let local = view.local.as_ref().map_or(Why::Ready, |local| local.why);
    Name { service, port, why: [view.why, local] }
}

/// The keys of a port's frontends.
fn keys<F: NodeFamily>(port: &PortView) -> impl Iterator<Item = FrontendKey<F::Addr>> {
    let proto = match port.protocol.as_str() {
        "TCP" => Some(proto::TCP),
        "UDP" => Some(proto::UDP),
        _ => None,
    };
    port.frontends.iter().filter_map(move |frontend| {
        let addr = match frontend.address {
            Some(address) => F::of(address)?,
            None => F::Addr::UNSPECIFIED,
        };
        Some(FrontendKey { addr, port: frontend.port.to_be(), proto: proto?, zero: 0 })
    })
}
