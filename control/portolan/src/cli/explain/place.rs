//! Where in the node a packet from a source is caught.

use std::net::IpAddr;

use portolan_abi::{FrontendKey, endpoint_flag, frontend_flag};
use portolan_core::{Address, Hook};
use portolan_node::FamilyTables;
use portolan_node::link::SERVICE_DEVICE;
use portolan_node::maps::NodeFamily;

use super::Node;

/// The program that sees the packet first, and its interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) hook: Hook,
    pub(super) ifindex: u32,
    /// Source MAC of what is caught there; only pods' is looked at.
    pub(super) mac: [u8; 6],
    /// In words.
    pub(super) text: String,
}

impl Place {
    pub(super) fn find<F: NodeFamily>(
        node: &Node,
        family: &FamilyTables<F>,
        source: IpAddr,
        to: IpAddr,
    ) -> anyhow::Result<Self> {
        let Some(addr) = F::of(source) else {
            anyhow::bail!("{source} is not of the destination's family");
        };
        if let Some(endpoint) = family.endpoints.get(&addr)?.filter(|it| it.flags & endpoint_flag::LIVE != 0)
        {
            let name =
                node.pod(source).map_or_else(|| "a pod of this node".to_owned(), |it| format!("pod {it}"));
            let [a, b, c] = endpoint.mac.map(u16::to_ne_bytes);
            let mac = [a[0], a[1], b[0], b[1], c[0], c[1]];
            return Ok(Self::new(node, Hook::Pod, endpoint.ifindex, mac, &format!("it leaves {name}")));
        }
        let mark = FrontendKey { addr, port: 0, proto: 0, zero: 0 };
        let own = family.frontends.get(&mark)?.is_some_and(|mark| mark.flags & frontend_flag::NODE != 0);
        if own || node.interfaces.iter().any(|link| link.addresses.iter().any(|it| it.ip() == source)) {
            return Self::of_host(node, family, to);
        }
        let way = node.route(source)?.0.unwrap_or_default();
        Ok(Self::new(node, Hook::Uplink, way, [0; 6], "it arrives from outside"))
    }

    /// Where a packet from a pod or from outside is seen again, after the first program left it to the host's stack.
    pub(super) fn next(&self, node: &Node, to: IpAddr) -> Option<Self> {
        if !matches!(self.hook, Hook::Pod | Hook::Uplink) {
            return None;
        }
        let ifindex = node.route(to).ok()?.0?;
        let who = format!("the host's stack sends it to {SERVICE_DEVICE}");
        (node.interface(ifindex) == SERVICE_DEVICE)
            .then(|| Self::new(node, Hook::Service, ifindex, [0; 6], &who))
    }

    /// The host's own packets are caught where its routes lead them.
    fn of_host<F: NodeFamily>(node: &Node, family: &FamilyTables<F>, to: IpAddr) -> anyhow::Result<Self> {
        let Some(ifindex) = node.route(to)?.0 else {
            anyhow::bail!("the host has no route to {to}: the packet is never sent");
        };
        let pod = F::of(to).map(|to| family.endpoints.get(&to)).transpose()?.flatten().is_some();
        let name = node.interface(ifindex);
        let hook = match name.as_str() {
            _ if pod => Hook::PodEgress,
            SERVICE_DEVICE => Hook::Service,
            "lo" => Hook::Loopback,
            _ => Hook::UplinkEgress,
        };
        Ok(Self::new(node, hook, ifindex, [0; 6], "a process of the host sends it"))
    }

    fn new(node: &Node, hook: Hook, ifindex: u32, mac: [u8; 6], who: &str) -> Self {
        let text = format!("{who}: {} on {} sees it", hook.program(), node.interface(ifindex));
        Self { hook, ifindex, mac, text }
    }
}

/// Whether an address means "any".
pub(super) fn is_any<A: Address>(addr: A) -> bool {
    addr == A::UNSPECIFIED
}
