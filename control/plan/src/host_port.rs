//! hostPorts: ports of this node's addresses that lead to one pod each. For the tables they are services like any others,
//! whose frontends have the node's own addresses and are found before any NodePort.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use portolan_model::{Family, Protocol, ServiceKey};

use crate::{BackendAddr, FrontendAddr, NodePlan, PortName, Scope, ServicePlan, ServicePort, Why};

/// A port of this node that leads to a pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// Under which name it is shown and counted: no service can have it.
    pub name: ServiceKey,
    /// One of the node's addresses, a loopback address among them. `None`: all of the backend's family, and that
    /// family's loopback address.
    pub addr: Option<IpAddr>,
    /// The port, host byte order.
    pub port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The pod's address and port.
    pub backend: SocketAddr,
}

/// Why the node cannot have a hostPort.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPortConflict {
    /// The address is none of the node's; these are.
    ForeignAddress(Vec<IpAddr>),
    /// It is the NodePort of a service.
    NodePort(ServiceKey),
}

impl HostPort {
    /// The name for a pod's ports. A colon is in no service's name.
    #[must_use]
    pub fn name(namespace: &str, pod: &str) -> ServiceKey {
        ServiceKey::new(namespace, &format!("hostport:{pod}"))
    }

    pub(crate) fn family(&self) -> Family {
        Family::of(self.backend.ip())
    }

    /// Those of its addresses that the node has.
    pub(crate) fn addresses(&self, node: &NodePlan) -> Vec<IpAddr> {
        let loopback: IpAddr = match self.family() {
            Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        match self.addr {
            Some(addr) if addr.is_loopback() || node.addresses.contains(&addr) => vec![addr],
            Some(_) => Vec::new(),
            None => {
                let own = node.addresses.iter().copied().filter(|addr| Family::of(*addr) == self.family());
                own.chain([loopback]).collect()
            }
        }
    }

    /// Whether it takes a NodePort's place at an address: those that answer NodePorts, and loopback, where sockets do.
    pub(crate) fn meets_node_ports(&self, node: &NodePlan) -> bool {
        let at = |addr: &IpAddr| addr.is_loopback() || node.node_ports.contains(addr);
        self.addresses(node).iter().any(at)
    }

    fn port_name(&self) -> String {
        match self.addr {
            None => self.port.to_string(),
            Some(addr) => SocketAddr::new(addr, self.port).to_string(),
        }
    }

    fn plan(&self, node: &NodePlan, reset_departed: bool) -> ServicePort {
        let name = PortName {
            service: self.name.clone(),
            port: self.port_name().into(),
            protocol: self.protocol,
            family: self.family(),
        };
        let frontend = |addr| FrontendAddr { addr: Some(addr), port: self.port, scope: Scope::HostPort };
        let mut frontends: Vec<FrontendAddr> = self.addresses(node).into_iter().map(frontend).collect();
        frontends.sort_unstable();
        ServicePort {
            name,
            frontends,
            cluster: vec![BackendAddr { addr: self.backend.ip(), port: self.backend.port(), local: true }],
            why: Why::Ready,
            local: Vec::new(),
            local_why: Why::Ready,
            internal_local: false,
            external_local: false,
            direct: false,
            sources: None,
            consistent: false,
            kept: (reset_departed && self.protocol == Protocol::Tcp).then(Vec::new),
            affinity: None,
        }
    }
}

/// The plans of all, by name.
pub(crate) fn plans(
    ports: &[HostPort],
    node: &NodePlan,
    reset_departed: bool,
) -> BTreeMap<ServiceKey, Arc<ServicePlan>> {
    let mut plans: BTreeMap<ServiceKey, ServicePlan> = BTreeMap::new();
    for port in ports {
        plans.entry(port.name.clone()).or_default().ports.push(port.plan(node, reset_departed));
    }
    let sorted = |mut plan: ServicePlan| {
        plan.ports.sort_by(|a, b| a.name.cmp(&b.name));
        Arc::new(plan)
    };
    plans.into_iter().map(|(key, plan)| (key, sorted(plan))).collect()
}
