//! Ports of the node that lead to its pods.

use std::collections::BTreeSet;

use super::*;
use crate::{HostPort, HostPortConflict};

/// A port of this node that leads to a pod called `web`.
fn host_port(addr: Option<&str>, port: u16, backend: &str) -> HostPort {
    HostPort {
        name: HostPort::name("default", "web"),
        addr: addr.map(|addr| addr.parse().unwrap()),
        port,
        protocol: Protocol::Tcp,
        backend: backend.parse().unwrap(),
    }
}

#[test]
fn a_host_port_is_served_at_the_nodes_own_addresses_as_they_are_now() {
    let mut world = World::new();
    let ports = vec![
        host_port(None, 80, "10.1.0.5:8080"),
        host_port(None, 80, "[fd01::5]:8080"),
        host_port(Some("192.0.2.1"), 81, "10.1.0.5:8081"),
        host_port(Some("127.0.0.1"), 82, "10.1.0.5:8082"),
    ];
    let changes = world.planner.set_host_ports(&world.store, ports.clone());
    assert_eq!(changes.services.len(), 1, "one name for all ports of a pod");
    let changes = world.apply([node("a", &["192.0.2.1", "192.0.2.9", "2001:db8::1"], &["10.1.0.0/24"])]);
    assert_eq!(changes.services.len(), 1, "with the node's addresses");
    let all = [
        "HostPort 127.0.0.1:82",
        "HostPort 192.0.2.1:81",
        "HostPort 127.0.0.1:80",
        "HostPort 192.0.2.1:80",
        "HostPort 192.0.2.9:80",
        "HostPort [::1]:80",
        "HostPort [2001:db8::1]:80",
    ];
    let found = world.frontends("hostport:web");
    assert_eq!(found.iter().collect::<BTreeSet<_>>(), all.map(str::to_owned).iter().collect());
    assert!(world.ports("hostport:web").iter().all(|port| port.cluster.len() == 1 && port.cluster[0].local));
    // An address that the node lost is not served: it may be anybody's.
    world.apply([node("a", &["192.0.2.9"], &["10.1.0.0/24"])]);
    assert!(!world.frontends("hostport:web").iter().any(|it| it.contains("192.0.2.1:")), "{found:?}");
    assert!(world.planner.set_host_ports(&world.store, ports).services.is_empty(), "the same again");
    let changes = world.planner.set_host_ports(&world.store, Vec::new());
    assert_eq!(changes.services, [(key("hostport:web"), None)]);
    assert!(world.ports("hostport:web").is_empty());
}

#[test]
fn a_host_port_that_a_service_or_no_address_has_is_told_apart_from_one_that_is_free() {
    let mut world = World::new();
    let spec =
        json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30080}]});
    world.apply([
        node("a", &["192.0.2.1", "192.0.2.9", "2001:db8::1"], &["10.1.0.0/24"]),
        upsert(service("late", spec)),
    ]);
    let conflict = |addr, port, backend| world.planner.host_port_conflict(&host_port(addr, port, backend));
    let taken = Some(HostPortConflict::NodePort(key("late")));
    for (addr, port, backend, expected) in [
        (None, 30_080, "10.1.0.5:80", taken.clone()),
        (Some("192.0.2.1"), 30_080, "10.1.0.5:80", taken.clone()),
        (Some("127.0.0.1"), 30_080, "10.1.0.5:80", taken),
        // Answers no NodePorts.
        (Some("192.0.2.9"), 30_080, "10.1.0.5:80", None),
        // The service has no IPv6.
        (None, 30_080, "[fd01::5]:80", None),
        (None, 30_081, "10.1.0.5:80", None),
    ] {
        assert_eq!(conflict(addr, port, backend), expected, "{addr:?} {port} {backend}");
    }
    let foreign = conflict(Some("192.0.2.2"), 80, "10.1.0.5:80");
    assert!(matches!(foreign, Some(HostPortConflict::ForeignAddress(own)) if own.len() == 3));
}

#[test]
fn a_service_whose_node_port_is_a_host_port_says_so_until_it_is_none() {
    let mut world = World::new();
    world.apply([node("a", &["192.0.2.1"], &["10.1.0.0/24"])]);
    world.planner.set_host_ports(&world.store, vec![host_port(None, 30_080, "10.1.0.5:80")]);
    let spec =
        json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30080}]});
    let changes = world.apply([upsert(service("late", spec))]);
    assert_eq!(changes.conditions.iter().map(|it| it.reason).collect::<Vec<_>>(), [Reason::HostPort]);
    assert!(changes.conditions[0].message.contains("default/hostport:web"), "{:?}", changes.conditions);
    assert!(
        world.frontends("late").contains(&"NodePort *:30080".to_owned()),
        "at other addresses it is served"
    );
    assert_eq!(world.planner.set_host_ports(&world.store, Vec::new()).conditions, []);
}
