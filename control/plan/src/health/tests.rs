use portolan_model::{Event, read};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn store(documents: &[Value]) -> Store {
    let mut store = Store::default();
    for document in documents {
        store.apply(Event::Upsert(read(document).expect("valid").expect("ours").object));
    }
    store
}

/// What the service answers on node `a`.
fn check(documents: &[Value]) -> Option<HealthCheck> {
    health_check(store(documents).service(&ServiceKey::new("shop", "web"))?, "a")
}

/// A service with a health check port, and with these fields instead of its own.
fn service(fields: &Value) -> Value {
    let mut spec = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30_100,
        "clusterIPs": ["10.96.0.10", "fd00:96::10"], "ports": [{"name": "http", "port": 80}],
    });
    for (name, value) in fields.as_object().expect("fields") {
        spec[name] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"}, "spec": spec})
}

fn slice(name: &str, ports: &Value, endpoints: &[Value]) -> Value {
    let is_v6 = |it: &Value| it["addresses"][0].as_str().is_some_and(|text| text.contains(':'));
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "ports": ports, "endpoints": endpoints,
        "addressType": if endpoints.first().is_some_and(is_v6) { "IPv6" } else { "IPv4" },
        "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
    })
}

fn endpoint(address: &str, node: &str, conditions: &Value) -> Value {
    json!({"addresses": [address], "nodeName": node, "conditions": conditions})
}

fn http() -> Value {
    json!([{"name": "http", "port": 8080}])
}

#[test]
fn load_balancers_with_policy_local_have_a_health_check_and_nobody_else() {
    let table = [
        (json!({}), true),
        (json!({"healthCheckNodePort": 0}), false),
        (json!({"healthCheckNodePort": null}), false),
        (json!({"externalTrafficPolicy": "Cluster"}), false),
        (json!({"type": "NodePort"}), false),
        (json!({"type": "ClusterIP"}), false),
        (json!({"type": "ExternalName"}), false),
        (json!({"clusterIP": "None", "clusterIPs": ["None"]}), false),
    ];
    for (fields, checked) in table {
        let expected = checked.then(|| HealthCheck {
            service: ServiceKey::new("shop", "web"),
            port: 30_100,
            endpoints: 0,
        });
        assert_eq!(check(&[service(&fields)]), expected, "{fields}");
    }
    let mut given_away = service(&json!({}));
    given_away["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    assert_eq!(check(&[given_away]), None);
    assert_eq!(check(&[slice("s", &http(), &[endpoint("10.1.0.1", "a", &json!({}))])]), None, "no service");
}

#[test]
fn endpoints_count_if_they_are_ready_here_and_not_on_their_way_out() {
    let table = [
        ("a", json!({}), 1),
        ("a", json!({"ready": true, "serving": true, "terminating": false}), 1),
        ("a", json!({"ready": false}), 0),
        ("a", json!({"ready": false, "serving": true, "terminating": true}), 0),
        // What `publishNotReadyAddresses` makes of a pod that ends.
        ("a", json!({"ready": true, "serving": true, "terminating": true}), 0),
        ("b", json!({}), 0),
    ];
    for (node, conditions, expected) in table {
        let found =
            check(&[service(&json!({})), slice("s", &http(), &[endpoint("10.1.0.1", node, &conditions)])]);
        assert_eq!(found.map(|it| it.endpoints), Some(expected), "{node} {conditions}");
    }
}

#[test]
fn an_address_counts_once_for_all_its_ports_and_slices() {
    let both = json!([{"name": "http", "port": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
    let one = || [endpoint("10.1.0.1", "a", &json!({}))];
    let found = check(&[
        service(&json!({})),
        slice("s1", &both, &one()),
        slice("s2", &json!([{"name": "other", "port": 9000}]), &one()),
        slice("s3", &http(), &[endpoint("fd00:1::1", "a", &json!({}))]),
        slice("s4", &json!([]), &[endpoint("10.1.0.9", "a", &json!({}))]),
    ]);
    assert_eq!(
        found.map(|it| it.endpoints),
        Some(2),
        "one address of each family; without a port nothing serves"
    );
}

#[test]
fn a_node_that_is_about_to_go_is_not_eligible() {
    let node = |metadata: Value, taints: &[&str]| {
        let taints: Vec<Value> =
            taints.iter().map(|key| json!({"key": key, "effect": "NoSchedule"})).collect();
        let document =
            json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": taints}});
        is_eligible(&store(&[document]), "a")
    };
    assert!(node(json!({"name": "a"}), &[]));
    assert!(node(json!({"name": "a"}), &["node.kubernetes.io/unschedulable"]), "cordoned, not leaving");
    assert!(!node(json!({"name": "a"}), &["other", "ToBeDeletedByClusterAutoscaler"]));
    assert!(!node(json!({"name": "a", "deletionTimestamp": "2025-01-31T12:00:00Z"}), &[]));
    assert!(!node(json!({"name": "b"}), &[]), "it has no Node object any more");
}

prop_compose! {
    /// Few addresses, so that they meet.
    fn any_endpoint(v6: bool)(last in 1..5u8, node in "[ab]", conditions in any::<[Option<bool>; 3]>()) -> Value {
        let address = if v6 { format!("fd00:1::{last}") } else { format!("10.1.0.{last}") };
        let [ready, serving, terminating] = conditions;
        endpoint(&address, &node, &json!({"ready": ready, "serving": serving, "terminating": terminating}))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_count_is_what_the_rule_says(
        v4 in prop::collection::vec(prop::collection::vec(any_endpoint(false), 1..5), 0..3),
        v6 in prop::collection::vec(prop::collection::vec(any_endpoint(true), 1..5), 0..3),
    ) {
        let all: Vec<Vec<Value>> = v4.into_iter().chain(v6).collect();
        // The rule once more, on raw documents: addresses of which some entry is ready, here, and not terminating.
        let expected: BTreeSet<&str> = all.iter().flatten().filter(|it| {
            it["conditions"]["ready"] != false && it["conditions"]["terminating"] != true && it["nodeName"] == "a"
        }).filter_map(|it| it["addresses"][0].as_str()).collect();
        let slices = all.iter().enumerate().map(|(number, it)| slice(&format!("s{number}"), &http(), it));
        let documents: Vec<Value> = std::iter::once(service(&json!({}))).chain(slices).collect();
        prop_assert_eq!(check(&documents).map(|it| it.endpoints), Some(expected.len()));
    }
}
