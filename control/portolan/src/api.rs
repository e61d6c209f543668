//! What the agent tells the command line over its socket: one JSON request a line, one JSON reply a line.
//!
//! CNI requests share the socket; see `portolan_cni::proto`. These are the views for people and scripts; `-o json`
//! prints them as they are, so their field names are an interface.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnetwork::IpNetwork;
use portolan_ipam::HostPort;
use serde::{Deserialize, Serialize};

/// A question to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Query {
    /// [`Status`].
    Status,
    /// All [`ServiceView`]s.
    Services,
    /// All [`PodView`]s.
    Pods,
    /// [`AuditView`]s: one for each difference.
    Audit,
    /// All [`LoadBalancerView`]s.
    LoadBalancers,
    /// All [`BgpPeerView`]s.
    BgpPeers,
    /// All [`BgpRouteView`]s.
    BgpRoutes,
}

/// A router that this node has a session with, or should have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpPeerView {
    /// Name of the BGPPeer.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Its TCP port.
    pub port: u16,
    /// Its AS number.
    pub peer_asn: u32,
    /// The AS number that it is shown.
    pub my_asn: u32,
    /// `Established`, or how far it is; `LeftOut`: it is not tried, and the error says why.
    pub state: String,
    /// For how long routes have been exchanged.
    pub uptime_seconds: Option<u64>,
    /// Its BGP identifier.
    pub router_id: Option<Ipv4Addr>,
    /// Families that both sides take.
    pub families: Vec<String>,
    /// The hold time in force, in seconds; 0: silence does not matter.
    pub hold_time: Option<u64>,
    /// It keeps routes while this agent restarts.
    pub graceful_restart: bool,
    /// Prefixes that it was told.
    pub announced: PrefixesView,
    /// Prefixes that it announces, which nobody uses.
    pub received: PrefixesView,
    /// Why it is not told of some routes.
    pub warnings: Vec<String>,
    /// What went wrong last.
    pub last_error: Option<String>,
}

/// Numbers of prefixes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefixesView {
    /// Of IPv4.
    pub ipv4: usize,
    /// Of IPv6.
    pub ipv6: usize,
}

/// A prefix that this node announces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpRouteView {
    /// The prefix.
    pub prefix: IpNetwork,
    /// Where routers send its packets.
    pub next_hops: Vec<IpAddr>,
    /// Tags, as `64512:100`.
    pub communities: Vec<String>,
    /// How much routers of the same AS prefer it.
    pub local_preference: Option<u32>,
    /// Peers that are told.
    pub peers: Vec<String>,
    /// Peers that will be told when their session is there and takes the family.
    pub waiting: Vec<String>,
}

/// A service of type LoadBalancer and its addresses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What it has.
    pub addresses: Vec<LoadBalancerAddressView>,
    /// What is so of it.
    pub conditions: Vec<ConditionView>,
}

/// An address of a service of type LoadBalancer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerAddressView {
    /// The address.
    pub address: IpAddr,
    /// The pool that it is of; none: it is in no pool any more, or never was.
    pub pool: Option<String>,
    /// The service asks for it.
    pub requested: bool,
    /// Other services have it as well.
    pub shared: bool,
    /// It stands in the service's own document.
    pub own: bool,
    /// How the network is told of it, and by whom; empty: nobody says.
    pub announced: Vec<String>,
}

/// Something that is so or is not so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConditionView {
    /// What it is about.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it is so.
    pub status: bool,
    /// Why, in one word.
    pub reason: String,
    /// Why, for people.
    pub message: String,
}

/// One line of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The question.
    pub query: Query,
}

/// The agent's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// To [`Query::Status`].
    Status(Box<Status>),
    /// To [`Query::Services`].
    Services(Vec<ServiceView>),
    /// To [`Query::Pods`].
    Pods(Vec<PodView>),
    /// To [`Query::Audit`].
    Audit(Vec<AuditView>),
    /// To [`Query::LoadBalancers`].
    LoadBalancers(Vec<LoadBalancerView>),
    /// To [`Query::BgpPeers`].
    BgpPeers(Vec<BgpPeerView>),
    /// To [`Query::BgpRoutes`].
    BgpRoutes(Vec<BgpRouteView>),
    /// The question was not understood or could not be answered.
    Error(String),
}

/// The agent and its node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Name of the node.
    pub node: String,
    /// Whether pods can be added and services are as desired.
    pub ready: bool,
    /// Why not, if not.
    pub not_ready: Vec<String>,
    /// Seconds since the agent started.
    pub uptime_seconds: u64,
    /// Addresses of the node.
    pub addresses: Vec<IpAddr>,
    /// podCIDRs of the node with addresses used and available.
    pub pod_cidrs: Vec<CidrView>,
    /// How programs are attached: `tcx` or `clsact`.
    pub attach_mode: String,
    /// How outside clients reach backends on other nodes: `snat`, `dsr` or `hybrid`.
    #[serde(default)]
    pub external_mode: String,
    /// Interfaces with programs, by what they are: `uplink`, `service`, `loopback`; pods are not listed.
    pub interfaces: BTreeMap<String, String>,
    /// The cgroup whose processes' sockets are balanced when they connect; none if packets are alone.
    #[serde(default)]
    pub socket_cgroup: Option<String>,
    /// Number of services (objects), pods on this node, routes to other nodes.
    pub services: usize,
    /// Ports with `internalTrafficPolicy: Local` that have endpoints, but none on this node: its clients are dropped.
    #[serde(default)]
    pub internal_without_local: usize,
    /// The same of `externalTrafficPolicy: Local` and outside clients.
    #[serde(default)]
    pub external_without_local: usize,
    /// Number of pods on this node.
    pub pods: usize,
    /// Number of routes to other nodes' podCIDRs.
    pub routes: usize,
    /// How full each table is: name → (used, capacity).
    pub tables: BTreeMap<String, (u64, u64)>,
    /// Documents of the source that were refused: `file:line: object: field: reason`.
    pub refused_documents: Vec<String>,
    /// Conditions of services: `namespace/name: Reason: message`.
    pub conditions: Vec<String>,
    /// Things the operator should know.
    pub warnings: Vec<String>,
    /// Microseconds that the last change took from being read to being visible to packets.
    pub last_sync_microseconds: u64,
    /// Number of changes applied.
    pub syncs: u64,
    /// BGP peers of this node, and whether their session is there.
    #[serde(default)]
    pub bgp_sessions: BTreeMap<String, bool>,
    /// Prefixes announced by BGP.
    #[serde(default)]
    pub bgp_routes: usize,
    /// Public addresses that this node announces on layer 2.
    #[serde(default)]
    pub l2_owned: usize,
}

/// A podCIDR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CidrView {
    /// The prefix.
    pub cidr: String,
    /// Addresses in use.
    pub used: String,
    /// Addresses there are.
    pub capacity: String,
}

/// One service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceView {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// One for each port and family.
    pub ports: Vec<PortView>,
    /// What of it is not served, and why: `Reason: message`.
    pub conditions: Vec<String>,
    /// What is as the object wants it but may surprise, in the same form.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// One port of a service in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortView {
    /// Name of the port; may be empty.
    pub name: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// Where clients send to.
    pub frontends: Vec<FrontendView>,
    /// Who answers: the Cluster set.
    pub backends: Vec<BackendView>,
    /// Flows opened.
    pub flows: u64,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// Session affinity in seconds, if on.
    pub affinity: Option<u32>,
    /// Why the Cluster set is those backends and no others.
    #[serde(default)]
    pub why: Why,
    /// The Local set, which may differ in more than being a part of the other; absent: no policy asks for it.
    #[serde(default)]
    pub local: Option<LocalView>,
    /// Who may use the load balancer's addresses; absent: everybody.
    #[serde(default)]
    pub sources: Option<Vec<String>>,
    /// Outside clients of backends on other nodes are answered there (direct server return).
    #[serde(default)]
    pub direct: bool,
    /// Backends are chosen by consistent hashing.
    #[serde(default)]
    pub consistent: bool,
}

/// The backends that a policy `Local` allows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalView {
    /// The backends, which are on this node.
    pub backends: Vec<SocketAddr>,
    /// Why those and no others.
    pub why: Why,
}

/// Why the backends of a set are those and no others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Why {
    /// They are ready.
    #[default]
    Ready,
    /// They are ready and meant for this node by their hints.
    SameNode,
    /// They are ready and meant for this node's zone by their hints.
    SameZone,
    /// None is ready: they are ending and still answer.
    Terminating,
}

impl Why {
    /// In words; nothing for what is usual.
    #[must_use]
    pub const fn as_text(self) -> Option<&'static str> {
        match self {
            Self::Ready => None,
            Self::SameNode => Some("same node only: all hints name nodes"),
            Self::SameZone => Some("same zone only: all hints name zones"),
            Self::Terminating => Some("terminating backends: none is ready"),
        }
    }
}

impl From<portolan_plan::Why> for Why {
    fn from(why: portolan_plan::Why) -> Self {
        match why {
            portolan_plan::Why::Ready => Self::Ready,
            portolan_plan::Why::SameNode => Self::SameNode,
            portolan_plan::Why::SameZone => Self::SameZone,
            portolan_plan::Why::Terminating => Self::Terminating,
        }
    }
}

/// A frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendView {
    /// `ClusterIP`, `NodePort`, `LoadBalancer`, `ExternalIP` or `HostPort`.
    pub kind: String,
    /// The address; absent: every address of the node that answers NodePorts.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendView {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// It runs on this node.
    pub local: bool,
    /// Flows opened to it.
    pub flows: u64,
}

/// Something in the kernel's tables, or of programs and pins, that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditView {
    /// A frontend, an address, a field of the node's record, a pod, a program, a pin.
    pub place: String,
    /// What should be there; absent: nothing.
    pub desired: Option<String>,
    /// What the kernel has; absent: nothing.
    pub kernel: Option<String>,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodView {
    /// Namespace; empty if the runtime did not say.
    pub namespace: String,
    /// Name; empty if the runtime did not say.
    pub name: String,
    /// Container id.
    pub container: String,
    /// Interface in the pod.
    pub interface: String,
    /// Interface on the host's side.
    pub host_interface: String,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// MAC address.
    pub mac: String,
    /// Ports of the node that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPort>,
    /// Whether the interface on the host's side is there; if not, the pod's addresses are kept until its runtime deletes it.
    pub interface_present: bool,
}
