//! What can be chosen about announcing.

use std::net::{Ipv4Addr, SocketAddr};

use clap::{Args, ValueEnum};

/// How public addresses are announced.
#[derive(Args, Clone, Debug)]
pub(crate) struct AnnounceOptions {
    /// BGP identifier of this node, unique in its AS. Not set: its first IPv4 InternalIP, or without one a number made of
    /// its name
    #[arg(long, value_name = "IPV4")]
    pub(super) bgp_router_id: Option<Ipv4Addr>,
    /// AS number of this node, for peers whose BGPPeer has no myASN
    #[arg(long, value_name = "ASN", default_value_t = 64_512)]
    pub(super) bgp_asn: u32,
    /// Addresses to take peers' BGP connections at, as 192.0.2.11:179. Not set: this node connects to them
    #[arg(long, value_name = "ADDR:PORT", value_delimiter = ',')]
    pub(super) bgp_listen: Vec<SocketAddr>,
    /// Interfaces on which public addresses are announced by ARP and NDP. Not set: none is
    #[arg(long, value_name = "uplinks|NAME[,NAME...]", value_delimiter = ',')]
    pub(crate) l2_interfaces: Vec<String>,
    /// UDP port of the heartbeats by which nodes agree who announces an address on layer 2; the same on all nodes
    #[arg(long, value_name = "PORT", default_value_t = portolan_l2::DEFAULT_PORT,
        value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) l2_port: u16,
    /// The loadBalancerClass of services that are announced, beside those that have none; as the controller's
    #[arg(long, value_name = "NAME", default_value = portolan_pool::CLASS)]
    pub(super) load_balancer_class: String,
    /// What becomes of announced addresses when the agent is asked to end
    #[arg(long, value_enum, default_value_t = OnStop::Keep)]
    pub(crate) on_stop: OnStop,
}

/// What becomes of announced addresses when the agent is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnStop {
    /// Routers keep routes here for the peers' graceful restart time, for an agent that comes back
    Keep,
    /// They are withdrawn, for a node that goes
    Withdraw,
}

/// The word for all interfaces that lead out of the node.
pub(crate) const ALL_UPLINKS: &str = "uplinks";
