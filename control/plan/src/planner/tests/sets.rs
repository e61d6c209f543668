//! Which endpoints a port uses, and why.

use super::*;

/// Whether a service is direct, and how many backends it has on node `a`, of one there and one elsewhere.
fn direct_and_local(mode: ExternalMode, kind: &str, protocol: &str, policy: &str) -> (bool, usize) {
    let mut world = World::new();
    world.planner = Planner::with_options("a", Options { external_mode: mode, ..Options::default() });
    let port = json!({"port": 80, "nodePort": 30080, "protocol": protocol});
    let spec = json!({
        "type": kind, "clusterIP": "10.96.0.1", "ports": [port], "externalTrafficPolicy": policy,
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"port": 8080, "protocol": protocol}],
        "endpoints": [
            {"addresses": ["10.1.0.1"], "nodeName": "a"}, {"addresses": ["10.1.0.2"], "nodeName": "b"},
        ],
    });
    world.apply([upsert(service("web", spec)), upsert(slice)]);
    let [port] = world.ports("web").try_into().expect("one port");
    (port.direct, port.local.len())
}

#[test]
fn direct_return_has_the_local_set_of_all_that_outside_clients_reach_under_policy_cluster() {
    use ExternalMode::{Dsr, Hybrid, Snat};
    for (mode, kind, protocol, policy, expected) in [
        (Snat, "NodePort", "TCP", "Cluster", (false, 0)),
        (Dsr, "NodePort", "TCP", "Cluster", (true, 1)),
        (Dsr, "NodePort", "UDP", "Cluster", (true, 1)),
        (Hybrid, "NodePort", "TCP", "Cluster", (true, 1)),
        (Hybrid, "NodePort", "UDP", "Cluster", (false, 0)),
        (Dsr, "NodePort", "TCP", "Local", (false, 1)),
        (Dsr, "ClusterIP", "TCP", "Cluster", (false, 0)),
    ] {
        let found = direct_and_local(mode, kind, protocol, policy);
        assert_eq!(found, expected, "{mode:?}, {kind}, {protocol}, {policy}");
    }
}

#[test]
fn a_set_says_why_it_is_as_it_is() {
    let mut world = World::new();
    let zone = json!({"topology.kubernetes.io/zone": "z1"});
    world.apply([
        upsert(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a", "labels": zone}})),
        upsert(service(
            "web",
            json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}], "internalTrafficPolicy": "Local"}),
        )),
    ]);
    let hinted = |hints: Value| json!([{"addresses": ["10.1.0.1"], "nodeName": "a", "hints": hints}]);
    let ending = json!({"ready": false, "serving": true, "terminating": true});
    for (endpoints, why, local_why) in [
        (hinted(Value::Null), Why::Ready, Why::Ready),
        (hinted(json!({"forNodes": [{"name": "a"}]})), Why::SameNode, Why::Ready),
        (hinted(json!({"forZones": [{"name": "z1"}]})), Why::SameZone, Why::Ready),
        (hinted(json!({"forZones": [{"name": "z2"}]})), Why::Ready, Why::Ready),
        (
            json!([{"addresses": ["10.1.0.1"], "nodeName": "b"},
                   {"addresses": ["10.1.0.2"], "nodeName": "a", "conditions": ending}]),
            Why::Ready,
            Why::Terminating,
        ),
        (
            json!([{"addresses": ["10.1.0.1"], "nodeName": "a", "conditions": ending}]),
            Why::Terminating,
            Why::Terminating,
        ),
        (json!([]), Why::Ready, Why::Ready),
    ] {
        let text = endpoints.to_string();
        world.apply([slice("web", endpoints)]);
        let port = &world.ports("web")[0];
        assert_eq!((port.why, port.local_why), (why, local_why), "{text}");
        assert!(port.uses_local());
    }
}

#[test]
fn this_nodes_zone_decides_which_hinted_endpoints_are_used() {
    let mut world = World::new();
    let endpoint = |ip: &str, zone: &str| json!({"addresses": [ip], "hints": {"forZones": [{"name": zone}]}});
    world.apply([
        upsert(service("web", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}))),
        slice("web", json!([endpoint("10.1.0.1", "z1"), endpoint("10.1.0.2", "z2")])),
    ]);
    assert_eq!(world.ports("web")[0].cluster.len(), 2);
    let labels = json!({"topology.kubernetes.io/zone": "z2"});
    world.apply([upsert(
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a", "labels": labels}}),
    )]);
    assert_eq!(world.ports("web")[0].cluster[0].addr.to_string(), "10.1.0.2");
    assert_eq!(world.ports("web")[0].cluster.len(), 1);
}
