//! This node's addresses and the routes to the others' pods.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use portolan_model::{Family, Node, Store};

use crate::{NodePlan, NodePortAddresses, Options, Realm, Route, SkippedRoute};

/// Plans this node the other nodes, and the way to their podCIDRs.
pub(crate) fn plan(store: &Store, this_node: &str, options: &Options) -> NodePlan {
    let this = store.node(this_node);
    let mut plan = NodePlan {
        addresses: this.map(|node| node.addresses.clone()).unwrap_or_default(),
        node_ports: this.map(|node| node_ports(node, &options.node_port_addresses)).unwrap_or_default(),
        pod_cidrs: this.map(|node| node.pod_cidrs.clone()).unwrap_or_default(),
        ..NodePlan::default()
    };
    for node in store.nodes().filter(|node| *node.name != *this_node) {
        plan.peers.extend(node.addresses.iter().filter(|peer| !plan.addresses.contains(*peer)));
        for prefix in node.pod_cidrs.iter().copied() {
            match via(&plan, node, prefix, options.overlay) {
                Ok(via) => plan.routes.push(Route { prefix, via, node: node.name.clone() }),
                Err(reason) => plan.skipped.push(SkippedRoute { prefix, node: node.name.clone(), reason }),
            }
        }
    }
    drop_duplicates(&mut plan);
    plan.skipped.sort();
    plan.peers.sort_unstable();
    plan.peers.dedup();
    plan.realms = realms(store, this_node, &plan, options);
    plan
}

/// What is inside of the cluster: its nodes and pods, and what the operator says. With an overlay, other nodes' own addresses are
/// reached by it as well: the network between them does not know pods.
fn realms(store: &Store, this_node: &str, plan: &NodePlan, options: &Options) -> Vec<Realm> {
    let mut realms: BTreeMap<IpNetwork, Option<IpAddr>> = BTreeMap::new();
    let own = plan.addresses.iter().map(|addr| IpNetwork::from(*addr)).chain(plan.pod_cidrs.iter().copied());
    for prefix in own {
        realms.insert(prefix, None);
    }
    for node in store.nodes().filter(|node| *node.name != *this_node) {
        let at = options.overlay.and_then(|family| node.primary(family));
        for addr in &node.addresses {
            realms.entry(IpNetwork::from(*addr)).or_insert(at);
        }
    }
    for route in &plan.routes {
        realms.entry(route.prefix).or_insert(options.overlay.map(|_| route.via));
    }
    // Also where there is no route of ours: the network may have one.
    for node in store.nodes().filter(|node| *node.name != *this_node) {
        for prefix in node.pod_cidrs.iter().filter(|prefix| misplaced(plan, **prefix).is_none()) {
            realms.entry(*prefix).or_insert(None);
        }
    }
    // The longest prefix counts: one that is a part of a node's leads to the node as well.
    let way = |prefix: IpNetwork| {
        let around = plan
            .routes
            .iter()
            .filter(|route| route.prefix.prefix() <= prefix.prefix() && route.prefix.contains(prefix.ip()));
        let nearest = around.max_by_key(|route| route.prefix.prefix())?;
        options.overlay.map(|_| nearest.via)
    };
    for prefix in options.inside.iter().filter_map(|it| IpNetwork::new(it.network(), it.prefix()).ok()) {
        realms.entry(prefix).or_insert_with(|| way(prefix));
    }
    realms.into_iter().map(|(prefix, node)| Realm { prefix, node }).collect()
}

/// Those of a node's addresses that answer NodePorts.
fn node_ports(node: &Node, selected: &NodePortAddresses) -> Vec<IpAddr> {
    let within = |addr: &IpAddr| match selected {
        NodePortAddresses::Primary => node.primary(Family::of(*addr)) == Some(*addr),
        NodePortAddresses::Within(prefixes) => prefixes.iter().any(|prefix| prefix.contains(*addr)),
    };
    node.addresses.iter().copied().filter(within).collect()
}

/// The address through which a prefix is reached, or why it must not be routed: a route that covers its own
/// gateway, this node's addresses or this node's pods takes the node off the network.
fn via(plan: &NodePlan, node: &Node, prefix: IpNetwork, overlay: Option<Family>) -> Result<IpAddr, String> {
    let family = overlay.unwrap_or(Family::of_prefix(prefix));
    let via = node.primary(family).ok_or_else(|| format!("the node has no {family} InternalIP"))?;
    if prefix.contains(via) {
        return Err(format!("it covers the node's own address {via}"));
    }
    match misplaced(plan, prefix) {
        Some(reason) => Err(reason),
        None => Ok(via),
    }
}

/// Why a prefix cannot be of other nodes' pods.
fn misplaced(plan: &NodePlan, prefix: IpNetwork) -> Option<String> {
    if let Some(own) = plan.addresses.iter().find(|own| prefix.contains(**own)) {
        return Some(format!("it covers this node's address {own}"));
    }
    let own = plan.pod_cidrs.iter().find(|own| overlap(**own, prefix))?;
    Some(format!("it overlaps this node's podCIDR {own}"))
}

/// The first node by name keeps a prefix that several claim.
fn drop_duplicates(plan: &mut NodePlan) {
    plan.routes.sort_by(|a, b| (a.prefix, &a.node).cmp(&(b.prefix, &b.node)));
    let mut kept: Vec<Route> = Vec::with_capacity(plan.routes.len());
    for route in plan.routes.drain(..) {
        match kept.last() {
            Some(owner) if owner.prefix == route.prefix => plan.skipped.push(SkippedRoute {
                prefix: route.prefix,
                node: route.node,
                reason: format!("node {} has it too", owner.node),
            }),
            _ => kept.push(route),
        }
    }
    plan.routes = kept;
}

fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.contains(b.ip()) || b.contains(a.ip())
}
