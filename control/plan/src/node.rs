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
    for prefix in own.chain(options.inside.iter().copied()) {
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
    if let Some(own) = plan.addresses.iter().find(|own| prefix.contains(**own)) {
        return Err(format!("it covers this node's address {own}"));
    }
    if let Some(own) = plan.pod_cidrs.iter().find(|own| overlap(**own, prefix)) {
        return Err(format!("it overlaps this node's podCIDR {own}"));
    }
    Ok(via)
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
