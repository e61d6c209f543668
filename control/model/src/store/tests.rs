use serde_json::{Value, json};

use super::*;
use crate::read;

fn upsert(document: Value) -> Event {
    Event::Upsert(read(&document).unwrap().unwrap().object)
}

fn service(port: u16) -> Event {
    upsert(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": port}]},
    }))
}

fn slice(service: &str, node: &str) -> Event {
    upsert(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "s1", "labels": {"kubernetes.io/service-name": service}},
        "ports": [{"port": 80}], "endpoints": [{"addresses": ["10.1.0.1"], "nodeName": node}],
    }))
}

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("default", name)
}

#[test]
fn an_event_that_repeats_what_is_known_touches_nothing() {
    let mut store = Store::default();
    for event in [service(80), slice("web", "a")] {
        assert_eq!(store.apply(event.clone()).services, [key("web")].into());
        assert!(store.apply(event).is_empty());
    }
    assert_eq!(store.apply(service(81)).services, [key("web")].into());
}

#[test]
fn a_slice_that_changes_hands_touches_both_services() {
    let mut store = Store::default();
    store.apply(slice("web", "a"));
    assert_eq!(store.apply(slice("api", "a")).services, [key("api"), key("web")].into());
    assert!(store.service(&key("web")).is_none());
    assert_eq!(store.service(&key("api")).unwrap().slices.len(), 1);
}

#[test]
fn nothing_is_left_when_everything_was_deleted() {
    let mut store = Store::default();
    store.apply_all([service(80), slice("web", "a")]);
    let slice_key = ObjectKey::new(Kind::EndpointSlice, "default", "s1");
    assert_eq!(store.apply(Event::Delete(slice_key.clone())).services, [key("web")].into());
    assert!(store.apply(Event::Delete(slice_key)).is_empty());
    let service_key = ObjectKey::new(Kind::Service, "default", "web");
    assert_eq!(store.apply(Event::Delete(service_key)).services, [key("web")].into());
    assert_eq!(store.service_count(), 0);
}

#[test]
fn endpoints_on_one_node_share_its_name() {
    let mut store = Store::default();
    store.apply_all([slice("web", "a")]);
    let second = upsert(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "s2", "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [{"addresses": ["10.1.0.2"], "nodeName": "a"}],
    }));
    store.apply(second);
    let entry = store.service(&key("web")).unwrap();
    let nodes: Vec<&Name> = entry.slices.iter().filter_map(|s| s.endpoints[0].node.as_ref()).collect();
    assert!(std::sync::Arc::ptr_eq(nodes[0], nodes[1]));
}
