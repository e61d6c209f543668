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

fn status(ips: &[&str]) -> Event {
    let ingress: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    upsert(json!({
        "apiVersion": "portolan.dev/v1alpha1", "kind": "ServiceStatus", "metadata": {"name": "web"},
        "status": {"loadBalancer": {"ingress": ingress}},
    }))
}

fn balanced(ips: &[&str]) -> Event {
    let ingress: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    upsert(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.0.0.1", "ports": [{"port": 80}]},
        "status": {"loadBalancer": {"ingress": ingress}},
    }))
}

/// Where the service is served, and what of it stands in its own document.
fn served(store: &Store) -> [Vec<String>; 2] {
    let texts = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect();
    let entry = store.service(&key("web")).unwrap();
    [texts(&entry.service.as_ref().unwrap().ingress_ips), texts(entry.own_ingress_ips())]
}

#[test]
fn a_service_is_served_at_its_own_addresses_and_those_of_its_status_whichever_comes_first() {
    let (own, given) = (balanced(&["192.0.2.1", "192.0.2.2"]), status(&["192.0.2.2", "192.0.2.3"]));
    for events in [[own.clone(), given.clone()], [given, own]] {
        let mut store = Store::default();
        for event in events {
            assert_eq!(store.apply(event.clone()).services, [key("web")].into());
            assert!(store.apply(event).is_empty(), "the same again touches nothing");
        }
        let all = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(str::to_owned);
        assert_eq!(served(&store), [all.to_vec(), all[..2].to_vec()]);
        assert_eq!(store.apply(balanced(&["192.0.2.1"])).services, [key("web")].into());
        assert_eq!(served(&store), [vec![all[0].clone(), all[1].clone(), all[2].clone()], all[..1].to_vec()]);
        assert_eq!(store.apply(status(&["192.0.2.3"])).services, [key("web")].into());
        assert_eq!(served(&store), [vec![all[0].clone(), all[2].clone()], all[..1].to_vec()]);
        let gone = Event::Delete(ObjectKey::new(Kind::ServiceStatus, "default", "web"));
        assert_eq!(store.apply(gone.clone()).services, [key("web")].into());
        assert!(store.apply(gone).is_empty());
        assert_eq!(served(&store), [all[..1].to_vec(), all[..1].to_vec()]);
    }
}

#[test]
fn a_status_without_its_service_waits_for_it_and_leaves_nothing() {
    let mut store = Store::default();
    let delete = |kind| Event::Delete(ObjectKey::new(kind, "default", "web"));
    store.apply_all([status(&["192.0.2.3"]), balanced(&["192.0.2.1"]), delete(Kind::Service)]);
    let entry = store.service(&key("web")).unwrap();
    assert!(entry.service.is_none() && entry.own_ingress_ips().is_empty());
    store.apply(balanced(&[]));
    assert_eq!(served(&store), [vec!["192.0.2.3".to_owned()], vec![]]);
    store.apply_all([delete(Kind::Service), delete(Kind::ServiceStatus)]);
    assert_eq!(store.service_count(), 0);
}

#[test]
fn pools_peers_and_advertisements_are_kept_and_touched_by_name() {
    let object = |kind: &str, spec: Value| {
        upsert(
            json!({"apiVersion": "portolan.dev/v1alpha1", "kind": kind, "metadata": {"name": "x"}, "spec": spec}),
        )
    };
    let mut store = Store::default();
    let events = [
        object("LoadBalancerPool", json!({"addresses": ["198.51.100.0/24"]})),
        object("BGPPeer", json!({"peerAddress": "192.0.2.1", "peerASN": 64512})),
        object("BGPAdvertisement", json!({})),
    ];
    let x: BTreeSet<Name> = ["x".into()].into();
    let touched = store.apply_all(events.clone());
    assert_eq!([&touched.pools, &touched.peers, &touched.advertisements], [&x, &x, &x]);
    assert!(!touched.is_empty() && store.apply_all(events).is_empty());
    assert_eq!((store.pools().count(), store.peers().count(), store.advertisements().count()), (1, 1, 1));
    let kinds = [Kind::LoadBalancerPool, Kind::BgpPeer, Kind::BgpAdvertisement];
    let touched = store.apply_all(kinds.map(|kind| Event::Delete(ObjectKey::new(kind, "", "x"))));
    assert_eq!([&touched.pools, &touched.peers, &touched.advertisements], [&x, &x, &x]);
    assert!(store.pool("x").is_none());
}
