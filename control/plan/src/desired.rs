//! What this node should serve.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use portolan_model::{Family, Name, Protocol, ServiceKey};

/// Names one service × port × family: the unit that has frontends and backends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortName {
    /// The service.
    pub service: ServiceKey,
    /// The port's name; may be empty.
    pub port: Name,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The family of its frontends and backends.
    pub family: Family,
}

impl fmt::Display for PortName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, port, protocol, family } = self;
        let colon = if port.is_empty() { "" } else { ":" };
        write!(out, "{service}{colon}{port} {protocol} {family}")
    }
}

/// What kind of address a frontend has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Inside the cluster.
    ClusterIp,
    /// A port on this node's own addresses.
    NodePort,
    /// An address that a load balancer gave.
    LoadBalancer,
    /// An entry of `externalIPs`.
    External,
    /// A port of one of the node's own addresses that leads to a pod: it makes no service's address of that one.
    HostPort,
}

/// Where clients send to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendAddr {
    /// The address; `None`: each of this node's own addresses of the family (NodePort).
    pub addr: Option<IpAddr>,
    /// The port, host byte order.
    pub port: u16,
    /// What kind of address it is.
    pub scope: Scope,
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendAddr {
    /// The endpoint's address.
    pub addr: IpAddr,
    /// Its port, host byte order.
    pub port: u16,
    /// It runs on this node.
    pub local: bool,
}

/// Why the backends of a set are those and no others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// They are ready.
    #[default]
    Ready,
    /// They are ready and meant for this node by their hints (KEP-3015).
    SameNode,
    /// They are ready and meant for this node's zone by their hints (KEP-2433).
    SameZone,
    /// None is ready: they are ending and still answer (KEP-1669).
    Terminating,
}

/// One service × port × family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name.
    pub name: PortName,
    /// Sorted and unique. Those that another service owns are left out, so it may be empty.
    pub frontends: Vec<FrontendAddr>,
    /// The Cluster set, sorted and unique. Empty: no usable endpoint anywhere.
    pub cluster: Vec<BackendAddr>,
    /// Why the Cluster set is as it is; `Ready` if it is empty.
    pub why: Why,
    /// The Local set, sorted and unique; always empty where no policy asks for it.
    pub local: Vec<BackendAddr>,
    /// Why the Local set is as it is: `Ready` or `Terminating`, because hints do not apply to it.
    pub local_why: Why,
    /// `internalTrafficPolicy: Local`: ClusterIP flows use the Local set.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local` and reachable from outside: flows from outside use the Local set.
    pub external_local: bool,
    /// Flows from outside to backends on other nodes are answered there; those that other nodes send here use the
    /// Local set.
    pub direct: bool,
    /// Who may use the load balancer addresses: sorted, unique, of this family. `None`: everybody.
    pub sources: Option<Vec<IpNetwork>>,
    /// The Cluster set is laid out as a table of [`maglev`](crate::maglev): few flows move when a backend leaves.
    pub consistent: bool,
    /// What becomes of TCP connections to a backend that left. `None`: they are kept. Else they are reset, but for those
    /// to these: endpoints of neither set that the slices still name, because they are not ready, on their way out, or
    /// meant for other places. Sorted and unique.
    pub kept: Option<Vec<BackendAddr>>,
    /// Session affinity by client address: its timeout, 1 to 86,400 seconds.
    pub affinity: Option<u32>,
}

impl ServicePort {
    /// Whether any flow is given to the Local set, which else is empty.
    pub const fn uses_local(&self) -> bool {
        self.internal_local || self.external_local || self.direct
    }
}

/// What one service should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// One per port and family, in the order of the service's addresses, then of its ports.
    pub ports: Vec<ServicePort>,
}

/// Another node's pods: by which node address they are reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The other node's podCIDR.
    pub prefix: IpNetwork,
    /// Its primary address, of that family or, with an overlay, of the overlay's.
    pub via: IpAddr,
    /// Its name.
    pub node: Name,
}

/// A podCIDR of another node that gets no route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SkippedRoute {
    /// The prefix.
    pub prefix: IpNetwork,
    /// The other node's name.
    pub node: Name,
    /// Why, in words.
    pub reason: String,
}

/// What this node should have, and the way to the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePlan {
    /// This node's InternalIPs; empty while its Node object is not known.
    pub addresses: Vec<IpAddr>,
    /// Those of them that answer NodePorts.
    pub node_ports: Vec<IpAddr>,
    /// This node's podCIDRs.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Sorted by prefix, which is unique.
    pub routes: Vec<Route>,
    /// The other nodes' InternalIPs, sorted.
    pub peers: Vec<IpAddr>,
    /// Prefixes without a route.
    pub skipped: Vec<SkippedRoute>,
    /// What is inside of the cluster, sorted by prefix, which is unique.
    pub realms: Vec<Realm>,
}

/// A prefix inside of the cluster: what pods send there keeps its source address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Realm {
    /// The prefix.
    pub prefix: IpNetwork,
    /// The address of the node that has it, where it is reached by the overlay.
    pub node: Option<IpAddr>,
}

/// Why a part of a service is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// An older service owns the address and port.
    AddressConflict,
    /// The address is a node's own.
    NodeAddress,
    /// The address is one that pods get.
    PodAddress,
    /// The NodePort is outside of the range.
    NodePortRange,
    /// No ClusterIP was given, so there is nothing to serve.
    NoClusterIp,
    /// Source ranges name nobody of the family of a load balancer address.
    NobodyAdmitted,
    /// `externalIPs` are not served on this cluster.
    ExternalIpsOff,
    /// An address is of a family in which the service has no ClusterIP.
    FamilyNotServed,
    /// An address belongs to the load balancer, which sends traffic on by itself.
    LeftToProxy,
    /// The NodePort is the hostPort of a pod of this node.
    HostPort,
}

impl Reason {
    /// The reason as Kubernetes conditions write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::AddressConflict => "AddressConflict",
            Reason::NodeAddress => "NodeAddress",
            Reason::PodAddress => "PodAddress",
            Reason::NodePortRange => "NodePortRange",
            Reason::NoClusterIp => "NoClusterIP",
            Reason::NobodyAdmitted => "NobodyAdmitted",
            Reason::ExternalIpsOff => "ExternalIPsOff",
            Reason::FamilyNotServed => "FamilyNotServed",
            Reason::LeftToProxy => "LeftToProxy",
            Reason::HostPort => "HostPort",
        }
    }

    /// Whether it is as the object wants it: worth knowing, nothing to mend.
    pub const fn is_note(self) -> bool {
        matches!(self, Reason::LeftToProxy)
    }
}

/// A part of a service that is not served.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Condition {
    /// The service.
    pub service: ServiceKey,
    /// Why.
    pub reason: Reason,
    /// What, and what to do about it.
    pub message: String,
}

/// What a run of the planner changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Services whose plan is new or different, in key order; `None`: no longer served. hostPorts follow, those that are gone
    /// first.
    pub services: Vec<(ServiceKey, Option<Arc<ServicePlan>>)>,
    /// The node's plan, if it is different.
    pub node: Option<NodePlan>,
    /// All current conditions, sorted: the complete list, not a difference.
    pub conditions: Vec<Condition>,
}
