//! Ranges that pods get their addresses from: no service may have one of them.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use portolan_model::{Name, Node};

/// Every node's podCIDRs, for finding the one that an address is in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PodRanges(Vec<Range>);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Range {
    first: IpAddr,
    last: IpAddr,
    node: Name,
}

impl PodRanges {
    pub(crate) fn of<'a>(nodes: impl Iterator<Item = &'a Node>) -> Self {
        let range = |node: &Node, prefix: &IpNetwork| Range {
            first: prefix.network(),
            last: prefix.broadcast(),
            node: node.name.clone(),
        };
        let mut ranges: Vec<Range> =
            nodes.flat_map(|node| node.pod_cidrs.iter().map(move |prefix| range(node, prefix))).collect();
        ranges.sort_unstable();
        // Prefixes are disjoint or one holds the other: without those that are held, at most one holds an address.
        let mut outer: Vec<Range> = Vec::with_capacity(ranges.len());
        for range in ranges {
            if outer.last().is_none_or(|before| before.last < range.first) {
                outer.push(range);
            } else if let Some(before) = outer.last_mut().filter(|before| before.last < range.last) {
                // Of two that begin together the longer one comes last.
                *before = range;
            }
        }
        Self(outer)
    }

    /// The node whose pods an address is one of.
    pub(crate) fn node_of(&self, addr: IpAddr) -> Option<&Name> {
        let behind = self.0.partition_point(|range| range.first <= addr);
        let range = self.0.get(behind.checked_sub(1)?)?;
        (addr <= range.last).then_some(&range.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, cidrs: &[&str]) -> Node {
        Node {
            name: name.into(),
            addresses: Vec::new(),
            external: Vec::new(),
            pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            zone: None,
            labels: portolan_model::Labels::new(),
            unschedulable: false,
            taints: Vec::new(),
            deleting: false,
        }
    }

    #[test]
    fn every_address_of_every_range_is_found_and_none_beside() {
        let nodes = [
            node("a", &["10.1.0.0/24", "fd00:1::/64"]),
            node("b", &["10.1.2.0/23", "10.1.1.128/25"]),
            // Inside of another's, which is a mistake; the outer one counts.
            node("c", &["10.1.2.0/24", "fd00:1::/80"]),
        ];
        let ranges = PodRanges::of(nodes.iter());
        for (addr, node) in [
            ("10.0.255.255", None),
            ("10.1.0.0", Some("a")),
            ("10.1.0.255", Some("a")),
            ("10.1.1.0", None),
            ("10.1.1.127", None),
            ("10.1.1.128", Some("b")),
            ("10.1.2.7", Some("b")),
            ("10.1.3.255", Some("b")),
            ("10.1.4.0", None),
            ("fd00:1::", Some("a")),
            ("fd00:1::ffff:ffff:ffff:ffff", Some("a")),
            ("fd00:2::", None),
            ("::", None),
        ] {
            assert_eq!(ranges.node_of(addr.parse().unwrap()).map(|name| &**name), node, "{addr}");
        }
    }
}
