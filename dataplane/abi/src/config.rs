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
}

const _: () = assert!(size_of::<Config>() == 36);
crate::plain!(Config);
