//! What the programs must know about their node: one record in a memory-mapped array.

use crate::Words;

/// The node as the packet path sees it. Written by the agent, may change while packets flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// IPv4 address that masqueraded traffic leaves with; zero: the node has none.
    pub node_v4: Words<1>,
    /// IPv6 address that masqueraded traffic leaves with; zero: the node has none.
    pub node_v6: Words<4>,
    /// Interface index of the service device, where the host's own service traffic enters and is answered.
    pub service_ifindex: u32,
    /// First port of the range that masqueraded flows take their source port from.
    pub masquerade_first: u16,
    /// Number of ports in that range.
    pub masquerade_count: u16,
    /// First port of the NodePort range.
    pub nodeport_first: u16,
    /// Last port of the NodePort range.
    pub nodeport_last: u16,
    /// Seed of the flow hash. The same on all nodes, so that all choose alike.
    pub seed: u32,
    /// Interface index of the overlay device; zero: other nodes' pods are reached by plain routes.
    pub overlay_ifindex: u32,
    /// Number of the overlay's network (VXLAN's VNI, 24 bits).
    pub overlay_id: u32,
    /// UDP port of the overlay, host byte order; zero: there is none.
    pub overlay_port: u16,
    /// See [`config_flag`].
    pub flags: u16,
    /// Interface indexes of the uplinks; zero: no more.
    pub uplinks: [u32; UPLINKS],
}

/// Uplinks that a node may have.
pub const UPLINKS: usize = 8;

/// Bits of [`Config::flags`].
pub mod config_flag {
    /// What pods send out of the cluster leaves with the node's address.
    pub const MASQUERADE: u16 = 1;
}

const _: () = assert!(size_of::<Config>() == 80);
crate::plain!(Config);
