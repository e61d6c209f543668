//! Addresses that two claim: services among each other, and services and nodes.

use super::*;

#[test]
fn the_older_service_owns_a_shared_address_and_the_younger_inherits_it() {
    let mut world = World::new();
    world.apply([load_balancer("young", "10.96.0.1", "2025-02-01T00:00:00Z", "203.0.113.1")]);
    assert_eq!(world.frontends("young").len(), 2);

    let changes = world.apply([load_balancer("old", "10.96.0.2", "2025-01-01T00:00:00Z", "203.0.113.1")]);
    let changed: Vec<_> = changes.services.iter().map(|(key, _)| key.name()).collect();
    assert_eq!(changed, ["old", "young"]);
    assert_eq!(world.frontends("young"), ["ClusterIp 10.96.0.1:80"]);
    assert_eq!(changes.conditions.len(), 1);
    assert_eq!(
        (&changes.conditions[0].service, changes.conditions[0].reason),
        (&key("young"), Reason::AddressConflict)
    );
    assert!(changes.conditions[0].message.contains("default/old"), "{}", changes.conditions[0].message);

    let changes = world.apply([Event::Delete(ObjectKey::new(Kind::Service, "default", "old"))]);
    assert_eq!(changes.services.len(), 2);
    assert_eq!(changes.services[0], (key("old"), None));
    assert_eq!(world.frontends("young").len(), 2);
    assert!(changes.conditions.is_empty());
}

#[test]
fn tcp_and_udp_on_one_port_do_not_conflict() {
    let mut world = World::new();
    let port = |protocol: &str| json!([{"port": 53, "protocol": protocol, "nodePort": 30053}]);
    let spec =
        |protocol: &str| json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": port(protocol)});
    let changes = world.apply([upsert(service("a", spec("TCP"))), upsert(service("b", spec("UDP")))]);
    assert!(changes.conditions.is_empty(), "{:?}", changes.conditions);
    assert_eq!(world.ports("b")[0].name.protocol, Protocol::Udp);
    assert_eq!(world.frontends("b").len(), 2);
    let changes = world.apply([upsert(service("c", spec("UDP")))]);
    assert_eq!(changes.conditions.len(), 2, "ClusterIP and node port: {:?}", changes.conditions);
    assert!(world.frontends("c").is_empty());
}

#[test]
fn an_address_that_becomes_a_nodes_own_is_taken_from_its_service() {
    let mut world = World::new();
    world.apply([load_balancer("web", "10.96.0.1", "2025-01-01T00:00:00Z", "192.168.1.12")]);
    assert_eq!(world.frontends("web").len(), 2);
    let changes = world.apply([node("b", &["192.168.1.12"], &[])]);
    assert_eq!(world.frontends("web"), ["ClusterIp 10.96.0.1:80"]);
    assert_eq!(changes.conditions[0].reason, Reason::NodeAddress);
    world.apply([node("b", &["192.168.1.13"], &[])]);
    assert_eq!(world.frontends("web").len(), 2);
}

#[test]
fn a_nodes_external_address_is_no_services_and_nothing_else_changes_with_it() {
    let with = |external: &[&str]| {
        let Event::Upsert(portolan_model::Object::Node(mut node)) =
            node("b", &["192.168.1.12"], &["10.244.2.0/24"])
        else {
            panic!("not a node")
        };
        node.external = external.iter().map(|ip| ip.parse().unwrap()).collect();
        Event::Upsert(portolan_model::Object::Node(node))
    };
    let mut world = World::new();
    world.apply([
        node("a", &["192.168.1.11"], &["10.244.1.0/24"]),
        with(&[]),
        load_balancer("web", "10.96.0.1", "2025-01-01T00:00:00Z", "203.0.113.1"),
    ]);
    assert_eq!(world.frontends("web").len(), 2);
    let changes = world.apply([with(&["203.0.113.1"])]);
    assert_eq!(world.frontends("web"), ["ClusterIp 10.96.0.1:80"]);
    assert!(texts(&changes.conditions).starts_with("NodeAddress: 203.0.113.1:80 is left out"), "{changes:?}");
    assert_eq!(changes.node, None, "neither peers nor routes");
    world.apply([with(&[])]);
    assert_eq!(world.frontends("web").len(), 2);
}

#[test]
fn an_address_that_pods_get_is_no_services() {
    let mut world = World::new();
    world.apply([load_balancer("web", "10.96.0.1", "2025-01-01T00:00:00Z", "10.244.7.9")]);
    assert_eq!(world.frontends("web").len(), 2);
    let changes = world.apply([node("b", &["192.168.1.12"], &["10.244.7.0/24"])]);
    assert_eq!(world.frontends("web"), ["ClusterIp 10.96.0.1:80"]);
    let Condition { reason, message, .. } = &changes.conditions[0];
    assert_eq!((*reason, reason.as_str()), (Reason::PodAddress, "PodAddress"));
    assert!(message.contains("10.244.7.9:80") && message.contains("node b's pods"), "{message}");
    world.apply([node("b", &["192.168.1.12"], &["10.244.8.0/24"])]);
    assert_eq!(world.frontends("web").len(), 2);
    assert!(world.apply([]).conditions.is_empty());
}
