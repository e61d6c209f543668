//! What the node itself needs: peers, addresses of NodePorts, routes.

use super::*;

#[test]
fn all_addresses_of_the_other_nodes_are_peers() {
    let mut world = World::new();
    world.apply([
        node("a", &["192.0.2.1", "2001:db8::1"], &[]),
        node("c", &["192.0.2.3", "2001:db8::3"], &[]),
        // Never this node's own, whoever else claims it.
        node("b", &["192.0.2.2", "192.0.2.1"], &[]),
    ]);
    let peers: Vec<_> = world.planner.node().peers.iter().map(ToString::to_string).collect();
    assert_eq!(peers, ["192.0.2.2", "192.0.2.3", "2001:db8::3"]);
}

#[test]
fn the_first_address_of_each_family_answers_node_ports_unless_prefixes_say_which() {
    let addresses = ["192.0.2.1", "198.51.100.1", "2001:db8::1", "fd00::1"];
    let within = |prefixes: &[&str]| {
        NodePortAddresses::Within(prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect())
    };
    for (selected, expected) in [
        (NodePortAddresses::Primary, &["192.0.2.1", "2001:db8::1"][..]),
        (within(&["198.51.100.0/24"]), &["198.51.100.1"]),
        (within(&["198.51.100.0/24", "fd00::/8"]), &["198.51.100.1", "fd00::1"]),
        (within(&["0.0.0.0/0", "::/0"]), &addresses),
        (within(&["10.0.0.0/8"]), &[]),
    ] {
        let mut world = World::new();
        let options = Options { node_port_addresses: selected.clone(), ..Options::default() };
        world.planner = Planner::with_options("a", options);
        world.apply([node("a", &addresses, &[]), node("b", &["192.0.2.2", "198.51.100.2"], &[])]);
        let plan = world.planner.node();
        let found: Vec<_> = plan.node_ports.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{selected:?}");
        assert_eq!((plan.addresses.len(), plan.peers.len()), (4, 2), "all are still the nodes' own");
    }
}

#[test]
fn every_other_nodes_pods_are_reached_through_its_address_of_that_family() {
    let mut world = World::new();
    let changes = world.apply([
        node("a", &["192.168.1.11"], &["10.244.1.0/24"]),
        node("b", &["192.168.1.12", "fd00:1::12"], &["10.244.2.0/24", "fd00:244:2::/64"]),
        node("c", &["192.168.1.13"], &["10.244.3.0/24", "fd00:244:3::/64"]),
        node("d", &["192.168.1.14"], &["10.244.2.0/24"]),
        node("e", &["192.168.1.15"], &["192.168.0.0/16"]),
        node("f", &["192.168.1.16"], &["10.244.0.0/16"]),
    ]);
    let plan = changes.node.expect("the node's plan is new");
    let routes: Vec<_> = plan.routes.iter().map(|r| format!("{} {} {}", r.prefix, r.via, r.node)).collect();
    assert_eq!(
        routes,
        ["10.244.2.0/24 192.168.1.12 b", "10.244.3.0/24 192.168.1.13 c", "fd00:244:2::/64 fd00:1::12 b"]
    );
    let skipped: Vec<_> = plan.skipped.iter().map(|s| &*s.node).collect();
    assert_eq!(skipped, ["f", "d", "e", "c"], "{:?}", plan.skipped);
    assert_eq!(world.apply([node("a", &["192.168.1.11"], &["10.244.1.0/24"])]).node, None);
}

#[test]
fn what_the_operator_says_is_inside_takes_no_pods_from_their_node() {
    let mut world = World::new();
    let inside = ["10.244.2.0/24", "10.244.3.128/25", "10.244.0.0/16", "10.244.4.7/24", "203.0.113.9/24"];
    let options = Options {
        overlay: Some(Family::V4),
        inside: inside.iter().map(|prefix| prefix.parse().unwrap()).collect(),
        ..Options::default()
    };
    world.planner = Planner::with_options("a", options);
    world.apply([
        node("a", &["192.0.2.1"], &["10.244.1.0/24"]),
        node("b", &["192.0.2.2"], &["10.244.2.0/24"]),
        node("c", &["192.0.2.3"], &["10.244.3.0/24"]),
        node("d", &["192.0.2.4"], &["10.244.4.0/24"]),
    ]);
    let at = |prefix: &str| {
        let prefix: ipnetwork::IpNetwork = prefix.parse().unwrap();
        let found = world.planner.node().realms.iter().filter(|realm| realm.prefix == prefix);
        found.map(|realm| realm.node.map_or("inside".to_owned(), |node| node.to_string())).collect::<Vec<_>>()
    };
    assert_eq!(at("10.244.2.0/24"), ["192.0.2.2"]);
    assert_eq!(at("10.244.3.0/24"), ["192.0.2.3"]);
    assert_eq!(at("10.244.3.128/25"), ["192.0.2.3"]);
    assert_eq!(at("10.244.4.0/24"), ["192.0.2.4"]);
    for prefix in ["10.244.0.0/16", "10.244.1.0/24", "203.0.113.0/24", "192.0.2.1/32"] {
        assert_eq!(at(prefix), ["inside"], "{prefix}");
    }
}

#[test]
fn pods_of_a_node_that_has_no_address_are_inside_all_the_same() {
    let mut world = World::new();
    world.apply([
        node("a", &["192.0.2.1"], &["10.244.1.0/24"]),
        node("b", &["2001:db8::2"], &["10.244.2.0/24"]),
        // Nonsense is not taken for the cluster.
        node("c", &["192.0.2.3"], &["192.0.0.0/8"]),
    ]);
    let realms: Vec<_> = world.planner.node().realms.iter().map(|realm| realm.prefix.to_string()).collect();
    assert!(realms.iter().any(|prefix| prefix == "10.244.2.0/24"), "{realms:?}");
    assert!(!realms.iter().any(|prefix| prefix == "192.0.0.0/8"), "{realms:?}");
}
