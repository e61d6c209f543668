use portolan_model::{Event, read};
use serde_json::{Value, json};

use super::*;
use crate::{Extent, Planner};

const VIP: &str = "198.51.100.10";

fn upsert(document: Value) -> Event {
    Event::Upsert(read(&document).expect("the test's object is valid").expect("it is of our kinds").object)
}

fn node(name: &str, metadata: Value, spec: Value) -> Event {
    let mut document = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec});
    document["metadata"]["name"] = json!(name);
    let last = name.bytes().map(u32::from).sum::<u32>() % 200 + 1;
    document["status"] = json!({"addresses": [{"type": "InternalIP", "address": format!("192.0.2.{last}")}]});
    document["spec"]["podCIDRs"] = json!([format!("10.244.{last}.0/24")]);
    upsert(document)
}

fn custom(kind: &str, name: &str, spec: Value) -> Event {
    let version = "portolan.dev/v1alpha1";
    upsert(json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}))
}

fn pool(name: &str, spec: Value) -> Event {
    let mut whole = json!({"addresses": ["198.51.100.0/24"]});
    for (field, value) in spec.as_object().into_iter().flatten() {
        whole[field] = value.clone();
    }
    custom("LoadBalancerPool", name, whole)
}

fn advertisement(name: &str, spec: Value) -> Event {
    custom("BGPAdvertisement", name, spec)
}

fn service(name: &str, last: u8, port: u16, spec: Value) -> Event {
    let mut whole =
        json!({"type": "LoadBalancer", "clusterIP": format!("10.96.0.{last}"), "ports": [{"port": port}]});
    for (field, value) in spec.as_object().into_iter().flatten() {
        whole[field] = value.clone();
    }
    upsert(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": whole,
        "status": {"loadBalancer": {"ingress": [{"ip": VIP}]}},
    }))
}

/// Endpoints as `node` (ready), `node~` (ending, still answering) or `node!` (not ready).
fn slice(service: &str, endpoints: &[&str]) -> Event {
    let endpoint = |(number, text): (usize, &&str)| {
        let conditions = match text.chars().last() {
            Some('~') => json!({"ready": false, "serving": true, "terminating": true}),
            Some('!') => json!({"ready": false, "serving": false}),
            _ => json!({"ready": true}),
        };
        let address = format!("10.244.9.{}", number + 1);
        json!({"addresses": [address], "nodeName": text.trim_end_matches(['~', '!']), "conditions": conditions})
    };
    upsert(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service}},
        "ports": [{"port": 8080}], "endpoints": endpoints.iter().enumerate().map(endpoint).collect::<Vec<_>>(),
    }))
}

/// Two nodes, a pool that is announced in both ways, an advertisement of everything, and service `web` on both nodes.
fn usual() -> Vec<Event> {
    vec![
        node("a", json!({}), json!({})),
        node("b", json!({}), json!({})),
        pool("p", json!({})),
        advertisement("all", json!({})),
        service("web", 10, 80, json!({})),
        slice("web", &["a", "b"]),
    ]
}

/// What node `a` plans, first by everything and then by each service alone: both must be the same.
fn plan(events: Vec<Event>) -> Announcements {
    let mut store = Store::default();
    let (mut planner, mut step_by_step) = (Planner::new("a"), Announcing::new("a", "portolan.dev/own"));
    for event in events {
        let touched = store.apply(event);
        let changes = planner.plan(&store, Extent::Touched(&touched));
        let plans: BTreeMap<_, _> = planner.desired().collect();
        for key in touched.services.iter().chain(changes.services.iter().map(|(key, _)| key)) {
            step_by_step.set(key, store.service(key), plans.get(key).map(|plan| &***plan));
        }
    }
    let mut at_once = Announcing::new("a", "portolan.dev/own");
    for (key, plan) in planner.desired() {
        at_once.set(key, store.service(key), Some(plan));
    }
    let planned = at_once.plan(&store);
    assert_eq!(planned, step_by_step.plan(&store));
    planned
}

fn with(more: impl IntoIterator<Item = Event>) -> Announcements {
    plan(usual().into_iter().chain(more).collect())
}

/// Addresses that are announced by BGP.
fn by_bgp(planned: &Announcements) -> Vec<String> {
    planned.advertised.iter().flat_map(|it| &it.addresses).map(ToString::to_string).collect()
}

/// Who may own the address on layer 2; nothing: nobody announces it.
fn eligible(planned: &Announcements) -> Option<String> {
    let names = |nodes: &BTreeSet<Name>| nodes.iter().map(|name| &**name).collect::<Vec<_>>().join(" ");
    planned.l2.first().map(|it| it.eligible.as_ref().map_or("all".to_owned(), names))
}

fn silence(planned: &Announcements) -> Option<Silence> {
    planned.addresses[0].silence
}

#[test]
fn an_address_of_a_pool_with_an_endpoint_is_announced_in_both_ways() {
    let planned = plan(usual());
    assert_eq!(by_bgp(&planned), [VIP]);
    assert_eq!(eligible(&planned).as_deref(), Some("all"));
    assert_eq!(planned.addresses[0].pool.as_deref(), Some("p"));
    assert_eq!(silence(&planned), None);
    assert_eq!(planned.nodes.len(), 2);
}

#[test]
fn an_address_of_no_pool_is_not_announced() {
    let planned = with([pool("p", json!({"addresses": ["203.0.113.0/24"]}))]);
    assert_eq!((by_bgp(&planned), eligible(&planned)), (vec![], None));
    assert_eq!(silence(&planned), Some(Silence::NoPool));
}

#[test]
fn a_pool_says_how_it_is_announced() {
    let planned = with([pool("p", json!({"announce": ["L2"]}))]);
    assert_eq!((by_bgp(&planned).len(), eligible(&planned).is_some()), (0, true));
    let planned = with([pool("p", json!({"announce": ["BGP"]}))]);
    assert_eq!((by_bgp(&planned).len(), eligible(&planned).is_some()), (1, false));
    let planned = with([pool("p", json!({"announce": []}))]);
    assert_eq!((by_bgp(&planned).len(), eligible(&planned).is_some()), (0, false));
    assert_eq!(silence(&planned), Some(Silence::PoolSilent));
}

#[test]
fn without_a_usable_endpoint_nothing_is_announced_and_one_that_still_answers_is_usable() {
    for endpoints in [&[][..], &["a!", "b!"]] {
        let planned = with([slice("web", endpoints)]);
        assert_eq!((by_bgp(&planned), eligible(&planned)), (vec![], None));
        assert_eq!(silence(&planned), Some(Silence::NoEndpoint));
    }
    for endpoints in [&["b"][..], &["b~"], &["a!", "b"]] {
        let planned = with([slice("web", endpoints)]);
        assert_eq!(by_bgp(&planned), [VIP], "{endpoints:?}");
        assert_eq!(eligible(&planned).as_deref(), Some("all"), "{endpoints:?}");
    }
}

#[test]
fn with_policy_local_nodes_with_a_ready_endpoint_announce_and_others_only_if_there_is_no_such_node() {
    // Endpoints, whether this node announces by BGP, who may on layer 2.
    let cases: [(&[&str], bool, Option<&str>); 7] = [
        (&["a", "b"], true, Some("a b")),
        (&["b"], false, Some("b")),
        (&["a!", "b"], false, Some("b")),
        (&["a~", "b"], false, Some("b")),
        (&["a~", "b!"], true, Some("a")),
        (&["a~", "b~"], true, Some("a b")),
        (&["a!"], false, None),
    ];
    for (endpoints, bgp, l2) in cases {
        let local = service("web", 10, 80, json!({"externalTrafficPolicy": "Local"}));
        let planned = with([local, slice("web", endpoints)]);
        assert_eq!(!by_bgp(&planned).is_empty(), bgp, "{endpoints:?}");
        assert_eq!(eligible(&planned).as_deref(), l2, "{endpoints:?}");
        let reason = if l2.is_some() { Silence::NoLocalEndpoint } else { Silence::NoEndpoint };
        assert_eq!(silence(&planned), (!bgp).then_some(reason), "{endpoints:?}");
    }
}

#[test]
fn a_node_that_is_excluded_cordoned_or_leaving_announces_nothing_but_its_pods() {
    let excluded = json!({"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": ""}});
    let deleting = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
    let taint = json!({"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]});
    let cases = [
        (excluded, json!({}), Silence::NodeExcluded),
        (json!({}), json!({"unschedulable": true}), Silence::NodeCordoned),
        (json!({}), taint, Silence::NodeLeaving),
        (deleting, json!({}), Silence::NodeLeaving),
    ];
    for (metadata, spec, reason) in cases {
        let pods = advertisement("all", json!({"podCIDRs": true}));
        let planned = with([pods.clone(), node("a", metadata.clone(), spec.clone())]);
        assert_eq!((by_bgp(&planned), silence(&planned)), (vec![], Some(reason)));
        assert_eq!(planned.advertised[0].pod_cidrs.len(), 1, "{reason:?}");
        assert_eq!(eligible(&planned).as_deref(), Some("b"), "{reason:?}");
        // Another node's state is its own matter, but everybody must know on layer 2.
        let planned = with([node("b", metadata, spec)]);
        assert_eq!((by_bgp(&planned).len(), silence(&planned)), (1, None));
        assert_eq!(eligible(&planned).as_deref(), Some("a"), "{reason:?}");
    }
}

#[test]
fn an_address_that_services_share_is_announced_for_any_of_them() {
    let local = service("web", 10, 80, json!({"externalTrafficPolicy": "Local"}));
    let second = |endpoints: &[&str]| {
        let other = service("other", 11, 81, json!({"externalTrafficPolicy": "Local"}));
        with([local.clone(), slice("web", &["b"]), other, slice("other", endpoints)])
    };
    let planned = second(&["a"]);
    assert_eq!((by_bgp(&planned), eligible(&planned).as_deref()), (vec![VIP.to_owned()], Some("a b")));
    assert_eq!(planned.addresses.len(), 1);
    assert_eq!(planned.addresses[0].services.len(), 2);
    let planned = second(&[]);
    assert_eq!((by_bgp(&planned), eligible(&planned).as_deref()), (vec![], Some("b")));
}

#[test]
fn what_another_service_owns_is_not_announced_for_the_one_that_lost_it() {
    let mut loser = vec![service("zzz", 12, 80, json!({})), slice("zzz", &["a"])];
    loser.push(slice("web", &[]));
    let planned = with(loser);
    assert_eq!(planned.addresses[0].services, [ServiceKey::new("default", "web")]);
    assert_eq!(silence(&planned), Some(Silence::NoEndpoint));
}

#[test]
fn services_of_another_class_are_somebody_elses() {
    let class = |name: &str| service("web", 10, 80, json!({"loadBalancerClass": name}));
    assert_eq!(with([class("cloud.example/lb")]).addresses, []);
    assert_eq!(by_bgp(&with([class("portolan.dev/own")])), [VIP]);
}

#[test]
fn without_an_advertisement_nothing_is_announced_by_bgp() {
    let no_match = json!({"nodeSelectors": [{"matchLabels": {"rack": "1"}}]});
    for spec in [no_match, json!({"pools": ["other"]})] {
        let planned = with([advertisement("all", spec.clone())]);
        assert_eq!(by_bgp(&planned), Vec::<String>::new(), "{spec}");
        assert_eq!(silence(&planned), None, "it may be announced on layer 2");
        let planned = with([advertisement("all", spec), pool("p", json!({"announce": ["BGP"]}))]);
        assert_eq!(silence(&planned), Some(Silence::NoAdvertisement));
    }
    let named =
        advertisement("all", json!({"pools": ["p"], "nodeSelectors": [{"matchLabels": {"rack": "1"}}]}));
    let planned = with([named, node("a", json!({"labels": {"rack": "1"}}), json!({}))]);
    assert_eq!(by_bgp(&planned), [VIP]);
}

#[test]
fn peers_are_those_whose_selector_names_the_node() {
    let peer = |name: &str, rack: &str| {
        let selector = json!({"matchLabels": {"rack": rack}});
        custom(
            "BGPPeer",
            name,
            json!({"peerASN": 64513, "peerAddress": "192.0.2.1", "nodeSelectors": [selector]}),
        )
    };
    let labelled = node("a", json!({"labels": {"rack": "1"}}), json!({}));
    let planned = with([peer("tor1", "1"), peer("tor2", "2"), labelled]);
    assert_eq!(planned.peers.iter().map(|peer| &*peer.name).collect::<Vec<_>>(), ["tor1"]);
}

#[test]
fn of_two_pools_the_older_one_says_how() {
    let dated = |name: &str, year: u32, way: &str| {
        upsert(json!({
            "apiVersion": "portolan.dev/v1alpha1", "kind": "LoadBalancerPool",
            "metadata": {"name": name, "creationTimestamp": format!("{year}-01-01T00:00:00Z")},
            "spec": {"addresses": ["198.51.100.0/28"], "announce": [way]},
        }))
    };
    let planned = with([dated("new", 2026, "BGP"), dated("old", 2025, "L2")]);
    assert_eq!(planned.addresses[0].pool.as_deref(), Some("old"));
    assert_eq!((by_bgp(&planned).len(), eligible(&planned).is_some()), (0, true));
}

#[test]
fn a_node_that_is_not_known_announces_nothing() {
    let events = usual().into_iter().skip(1).collect();
    let planned = plan(events);
    assert_eq!((planned.advertised.len(), silence(&planned)), (0, Some(Silence::NoNode)));
}
