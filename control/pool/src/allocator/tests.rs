use std::net::IpAddr;

use portolan_model::{Event, Kind, ObjectKey, read};
use serde_json::{Value, json};

use super::*;
use crate::outcome::{Assignment, Condition, Count, PoolReport, condition};

/// Objects, and what was given so far.
pub(super) struct World {
    pub(super) store: Store,
    pub(super) record: Record,
    pub(super) settings: Settings,
    pub(super) unreadable: BTreeSet<ServiceKey>,
}

impl Default for World {
    fn default() -> Self {
        let service_cidrs = ["10.96.0.0/12", "fd00:10:96::/112"].map(|cidr| cidr.parse().unwrap());
        let settings = Settings {
            class: crate::CLASS.into(),
            is_default: true,
            service_cidrs: service_cidrs.into(),
            document_addresses: true,
        };
        Self { store: Store::default(), record: Record::new(), settings, unreadable: BTreeSet::new() }
    }
}

impl World {
    /// Puts objects in and allocates.
    pub(super) fn with(&mut self, documents: impl IntoIterator<Item = Value>) -> Outcome {
        for document in documents {
            let reading = read(&document).expect("the object is valid").expect("it is of our kinds");
            self.store.apply(Event::Upsert(reading.object));
        }
        self.allocate()
    }

    /// Takes an object out and allocates.
    pub(super) fn without(&mut self, kind: Kind, name: &str) -> Outcome {
        let namespace = if kind.is_namespaced() { "shop" } else { "" };
        self.store.apply(Event::Delete(ObjectKey::new(kind, namespace, name)));
        self.allocate()
    }

    pub(super) fn allocate(&mut self) -> Outcome {
        let allocator = Allocator::new(self.settings.clone());
        let outcome = allocator.allocate(&self.store, &self.record, &self.unreadable);
        self.record = outcome.record();
        let again = allocator.allocate(&self.store, &self.record, &self.unreadable);
        assert_eq!(outcome, again, "who begins anew with the record says the same");
        outcome
    }
}

/// A pool with these fields of its spec.
pub(super) fn pool(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "portolan.dev/v1alpha1", "kind": "LoadBalancerPool", "metadata": {"name": name}, "spec": spec})
}

/// A service of one family with port 80.
pub(super) fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv4"], "ports": [{"port": 80}]},
    })
}

/// A service with some fields of it replaced, by their JSON pointers.
pub(super) fn altered(name: &str, fields: &[(&str, Value)]) -> Value {
    let mut document = service(name);
    for (path, value) in fields {
        let (parent, field) = path.rsplit_once('/').unwrap();
        let parent = parent.split('/').skip(1).fold(&mut document, |at, name| &mut at[name]);
        parent[field] = value.clone();
    }
    document
}

fn annotated(name: &str, annotation: &str, text: &str) -> Value {
    altered(name, &[("/metadata/annotations", json!({annotation: text}))])
}

fn dual(name: &str, policy: &str) -> Value {
    altered(name, &[("/spec/ipFamilies", json!(["IPv4", "IPv6"])), ("/spec/ipFamilyPolicy", json!(policy))])
}

fn node(name: &str, addresses: &[&str], pods: &[&str]) -> Value {
    let addresses: Vec<Value> =
        addresses.iter().map(|it| json!({"type": "InternalIP", "address": it})).collect();
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "spec": {"podCIDRs": pods}, "status": {"addresses": addresses},
    })
}

pub(super) fn assignment<'a>(outcome: &'a Outcome, name: &str) -> &'a Assignment {
    outcome.services.get(&ServiceKey::new("shop", name)).unwrap_or_else(|| panic!("{name} is not ours"))
}

fn ips(outcome: &Outcome, name: &str) -> Vec<String> {
    assignment(outcome, name).addresses.iter().map(|it| it.ip.to_string()).collect()
}

fn condition_of<'a>(conditions: &'a [Condition], kind: &str) -> Option<(bool, &'static str, &'a str)> {
    let found = conditions.iter().find(|condition| condition.kind == kind)?;
    Some((found.status, found.reason, &found.message))
}

/// Whether all is given, why, and in which words.
fn given<'a>(outcome: &'a Outcome, name: &str) -> (bool, &'static str, &'a str) {
    condition_of(&assignment(outcome, name).conditions, condition::GIVEN).expect("it is always said")
}

fn kept<'a>(outcome: &'a Outcome, name: &str) -> Option<(&'static str, &'a str)> {
    let (status, reason, message) = condition_of(&assignment(outcome, name).conditions, condition::KEPT)?;
    assert!(status);
    Some((reason, message))
}

fn report<'a>(outcome: &'a Outcome, name: &str) -> &'a PoolReport {
    &outcome.pools[name]
}

const ADDRESSES: &str = "portolan.dev/load-balancer-ips";
const SHARING: &str = "portolan.dev/sharing-key";
const POOL: &str = "portolan.dev/pool";

#[test]
fn services_get_the_lowest_free_addresses_in_the_order_of_their_age_and_name() {
    let mut world = World::default();
    let old = altered("z", &[("/metadata/creationTimestamp", json!("2025-01-31T12:00:00Z"))]);
    let outcome =
        world.with([pool("p", json!({"addresses": ["198.51.100.4/30"]})), service("b"), service("a"), old]);
    assert_eq!([ips(&outcome, "z"), ips(&outcome, "a")], [["198.51.100.4"], ["198.51.100.5"]]);
    assert_eq!(ips(&outcome, "b"), ["198.51.100.6"]);
    assert_eq!(given(&outcome, "b"), (true, reason::GIVEN, "198.51.100.6"));
    let Count { total, used, free } = report(&outcome, "p").ipv4.unwrap();
    assert_eq!((total, used, free), (4, 3, 1));
    assert_eq!(report(&outcome, "p").ipv6, None);
}

#[test]
fn an_address_that_was_given_up_goes_to_the_next() {
    let mut world = World::default();
    let documents = [pool("p", json!({"addresses": ["198.51.100.4/32"]})), service("a"), service("b")];
    let outcome = world.with(documents);
    let (status, reason, message) = given(&outcome, "b");
    assert_eq!((status, reason), (false, reason::POOLS_EXHAUSTED));
    assert!(message.contains("no IPv4 address is left in p"), "{message}");
    let exhausted = condition_of(&report(&outcome, "p").conditions, condition::EXHAUSTED);
    assert_eq!(exhausted.map(|it| (it.0, it.1)), Some((true, reason::ALL_IN_USE)));

    let outcome = world.without(Kind::Service, "a");
    assert_eq!(ips(&outcome, "b"), ["198.51.100.4"]);
    assert!(!outcome.services.contains_key(&ServiceKey::new("shop", "a")));
}

#[test]
fn an_address_stays_whatever_becomes_of_its_pool() {
    let mut world = World::default();
    world.with([pool("p", json!({"addresses": ["198.51.100.4/31"]})), service("a")]);
    let outcome = world.with([pool("p", json!({"addresses": ["203.0.113.0/24"]}))]);
    assert_eq!(ips(&outcome, "a"), ["198.51.100.4"], "the pool has others now");
    assert_eq!(kept(&outcome, "a").map(|it| it.0), Some(reason::NOT_IN_A_POOL));
    assert!(given(&outcome, "a").0);

    let outcome = world.without(Kind::LoadBalancerPool, "p");
    assert_eq!(ips(&outcome, "a"), ["198.51.100.4"], "the pool is gone");

    let others = json!({"addresses": ["198.51.100.4/31"], "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "bank"}}});
    let outcome = world.with([pool("p", others), service("b")]);
    assert_eq!(ips(&outcome, "a"), ["198.51.100.4"], "the pool is for others now");
    assert_eq!(kept(&outcome, "a").map(|it| it.0), Some(reason::NOT_SELECTED));
    assert_eq!(given(&outcome, "b").1, reason::NO_POOL);

    let outcome = world.with([pool("p", json!({"addresses": ["198.51.100.0/24"]}))]);
    assert_eq!((ips(&outcome, "a"), kept(&outcome, "a")), (vec!["198.51.100.4".to_owned()], None));
}

#[test]
fn an_address_goes_with_the_type_or_the_class_or_the_family() {
    let takes = [
        ("/spec/type", json!("ClusterIP")),
        ("/spec/loadBalancerClass", json!("example.org/other")),
        ("/spec/ipFamilies", json!(["IPv6"])),
    ];
    for (field, value) in takes {
        let mut world = World::default();
        world.with([pool("p", json!({"addresses": ["198.51.100.4/32"]})), service("a"), service("b")]);
        let outcome = world.with([altered("a", &[(field, value)])]);
        assert_eq!(ips(&outcome, "b"), ["198.51.100.4"], "{field}");
    }
}

#[test]
fn other_classes_are_others_business_and_none_is_the_defaults() {
    let mut world = World::default();
    let class = |name: &str, class: &str| altered(name, &[("/spec/loadBalancerClass", json!(class))]);
    let documents = [
        pool("p", json!({"addresses": ["198.51.100.0/24"]})),
        class("ours", crate::CLASS),
        class("other", "example.org/other"),
        service("classless"),
    ];
    let outcome = world.with(documents);
    assert_eq!(outcome.services.keys().map(|key| key.name()).collect::<Vec<_>>(), ["classless", "ours"]);

    world.settings.is_default = false;
    let outcome = world.with([service("later")]);
    assert_eq!(ips(&outcome, "classless"), ["198.51.100.0"], "what was given stays");
    assert!(!outcome.services.contains_key(&ServiceKey::new("shop", "later")));
}

#[test]
fn an_address_that_is_asked_for_is_given_or_refused_with_the_reason() {
    let mut world = World::default();
    let documents = [
        pool("p", json!({"addresses": ["198.51.100.0/24"], "autoAssign": false})),
        pool(
            "q",
            json!({"addresses": ["203.0.113.0/24"], "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "bank"}}}),
        ),
        pool("r", json!({"addresses": ["198.51.100.128/25"]})),
        node("n1", &["198.51.100.11"], &["198.51.100.64/28"]),
        annotated("a", ADDRESSES, "198.51.100.7"),
        altered("b", &[("/spec/loadBalancerIP", json!("198.51.100.8"))]),
        altered("c", &[("/spec/loadBalancerIP", json!("198.51.100.7"))]),
        annotated("d", ADDRESSES, "192.0.2.1"),
        annotated("e", ADDRESSES, "203.0.113.9"),
        annotated("f", ADDRESSES, "198.51.100.11"),
        annotated("g", ADDRESSES, "198.51.100.65"),
        annotated("h", ADDRESSES, "2001:db8::1"),
        annotated("i", ADDRESSES, "198.51.100.7, 198.51.100.9"),
        annotated("j", ADDRESSES, "127.0.0.1"),
    ];
    let outcome = world.with(documents);
    assert_eq!(
        (ips(&outcome, "a"), ips(&outcome, "b")),
        (vec!["198.51.100.7".into()], vec!["198.51.100.8".into()])
    );
    assert!(assignment(&outcome, "a").addresses[0].requested);
    let refused = [
        ("c", "service shop/a has it, and shares it with nobody"),
        ("d", "it is in no pool"),
        ("e", "pool q is not for this service"),
        ("f", "it is node n1's own address"),
        ("g", "it is one of the addresses of node n1's pods"),
        ("h", "the service has no IPv6"),
    ];
    for (name, text) in refused {
        let (status, reason, message) = given(&outcome, name);
        assert_eq!((status, reason), (false, reason::REQUEST_REFUSED), "{name}: {message}");
        assert!(message.contains(text), "{name}: {message}");
        assert!(ips(&outcome, name).is_empty(), "{name}");
    }
    for name in ["i", "j"] {
        let (status, reason, message) = given(&outcome, name);
        assert_eq!((status, reason), (false, reason::REQUEST_UNREADABLE), "{name}: {message}");
        assert!(message.contains("metadata.annotations[portolan.dev/load-balancer-ips]"), "{message}");
    }
}

#[test]
fn who_asks_for_another_address_moves_there_if_it_can_be_had_and_stays_if_not() {
    let mut world = World::default();
    world.with([pool("p", json!({"addresses": ["198.51.100.0/30"]})), service("a"), service("b")]);
    let outcome = world.with([annotated("a", ADDRESSES, "198.51.100.1")]);
    assert_eq!(ips(&outcome, "a"), ["198.51.100.0"]);
    let (status, reason, message) = given(&outcome, "a");
    assert_eq!((status, reason), (false, reason::REQUEST_REFUSED));
    assert!(message.contains("it keeps 198.51.100.0"), "{message}");

    let outcome = world.with([annotated("a", ADDRESSES, "198.51.100.3"), service("c")]);
    assert_eq!(
        (ips(&outcome, "a"), ips(&outcome, "c")),
        (vec!["198.51.100.3".into()], vec!["198.51.100.0".into()])
    );
    let outcome = world.with([service("a")]);
    assert_eq!(ips(&outcome, "a"), ["198.51.100.3"], "who asks for none keeps what it has");
}

#[test]
fn an_address_that_was_shared_and_given_up_is_one_like_any_other() {
    let keyed = |name: &str, asked: &str| {
        altered(name, &[("/metadata/annotations", json!({SHARING: "k", ADDRESSES: asked}))])
    };
    let mut world = World::default();
    let outcome =
        world.with([pool("p", json!({"addresses": ["198.51.100.0/29"]})), keyed("a", "198.51.100.2")]);
    assert_eq!(ips(&outcome, "a"), ["198.51.100.2"]);
    let outcome = world.with([keyed("a", "198.51.100.3"), keyed("b", "")]);
    assert_eq!([ips(&outcome, "a"), ips(&outcome, "b")], [["198.51.100.3"], ["198.51.100.0"]]);
}

#[test]
fn who_moves_keeps_what_its_document_says() {
    let mut world = World::default();
    world.with([pool("p", json!({"addresses": ["198.51.100.0/29"]})), service("a")]);
    let own = ("/status", json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.0"}]}}));
    let asked = ("/metadata/annotations", json!({ADDRESSES: "198.51.100.3"}));
    let outcome = world.with([altered("a", &[own, asked]), service("b")]);
    assert_eq!(ips(&outcome, "a"), ["198.51.100.0", "198.51.100.3"]);
    assert_eq!(ips(&outcome, "b"), ["198.51.100.1"]);
}

#[test]
fn what_one_gives_up_an_older_one_that_waits_gets_at_once() {
    let mut world = World::default();
    world.with([pool("p", json!({"addresses": ["198.51.100.0/32"]})), service("b"), service("a")]);
    let outcome = world.with([
        pool("q", json!({"addresses": ["198.51.100.1/32"], "autoAssign": false})),
        annotated("a", ADDRESSES, "198.51.100.1"),
    ]);
    assert_eq!(
        (ips(&outcome, "a"), ips(&outcome, "b")),
        (vec!["198.51.100.1".into()], vec!["198.51.100.0".into()])
    );
}

#[test]
fn pools_are_used_by_priority_then_by_name_and_only_if_they_are_for_the_service() {
    let mut world = World::default();
    let selector = json!({"matchLabels": {"tier": "gold"}, "matchExpressions": [{"key": "old", "operator": "DoesNotExist"}]});
    let pools = [
        pool("a", json!({"addresses": ["198.51.100.1/32"]})),
        pool("b", json!({"addresses": ["198.51.100.2/32"], "priority": 5, "serviceSelector": selector})),
        pool(
            "c",
            json!({"addresses": ["198.51.100.3/32"], "priority": 9, "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "bank"}}}),
        ),
        pool("d", json!({"addresses": ["198.51.100.4/32"], "priority": 9, "autoAssign": false})),
    ];
    let labelled = |name, labels: Value| altered(name, &[("/metadata/labels", labels)]);
    let services = [
        labelled("s1", json!({"tier": "gold"})),
        labelled("s2", json!({"tier": "gold", "old": "yes"})),
        annotated("s3", POOL, "d"),
        annotated("s4", POOL, "c"),
        annotated("s5", POOL, "nowhere"),
    ];
    let outcome = world.with(pools.into_iter().chain(services));
    assert_eq!(ips(&outcome, "s1"), ["198.51.100.2"]);
    assert_eq!(ips(&outcome, "s2"), ["198.51.100.1"]);
    assert_eq!(ips(&outcome, "s3"), ["198.51.100.4"], "who asks for a pool needs no autoAssign");
    assert_eq!(assignment(&outcome, "s3").addresses[0].pool.as_deref(), Some("d"));
    for (name, text) in [("s4", "pool c is not for this service"), ("s5", "there is none of that name")] {
        let (status, reason, message) = given(&outcome, name);
        assert_eq!((status, reason), (false, reason::REQUEST_REFUSED));
        assert!(message.contains(text), "{message}");
    }
}

#[test]
fn two_families_are_given_together_or_as_the_policy_says() {
    let mut world = World::default();
    let outcome = world.with([
        pool("v4", json!({"addresses": ["198.51.100.0/24"]})),
        dual("prefers", "PreferDualStack"),
        dual("requires", "RequireDualStack"),
    ]);
    assert_eq!(ips(&outcome, "prefers"), ["198.51.100.0"]);
    let (status, reason, message) = given(&outcome, "prefers");
    assert_eq!((status, reason), (true, reason::SINGLE_STACK));
    assert!(message.contains("IPv6"), "{message}");
    assert!(ips(&outcome, "requires").is_empty());
    assert_eq!(given(&outcome, "requires").1, reason::NO_POOL);
    assert!(!given(&outcome, "requires").0);

    let outcome = world.with([pool("v6", json!({"addresses": ["2001:db8:f::/64"]}))]);
    assert_eq!(ips(&outcome, "prefers"), ["198.51.100.0", "2001:db8:f::"]);
    assert_eq!(ips(&outcome, "requires"), ["198.51.100.1", "2001:db8:f::1"]);
    assert_eq!(given(&outcome, "requires").1, reason::GIVEN);

    let outcome = world.with([
        altered("one", &[("/spec/ipFamilyPolicy", json!("RequireDualStack"))]),
        altered("none", &[("/spec/ipFamilies", json!(null))]),
    ]);
    for name in ["one", "none"] {
        assert_eq!((given(&outcome, name).0, given(&outcome, name).1), (false, reason::NO_FAMILY), "{name}");
    }
}

#[test]
fn services_share_an_address_with_one_key_other_ports_and_the_same_policy() {
    let keyed = |name: &str, port: i64, more: &[(&str, Value)]| {
        let fields =
            [("/metadata/annotations", json!({SHARING: "k"})), ("/spec/ports", json!([{"port": port}]))];
        altered(name, &[&fields, more].concat())
    };
    let local = ("/spec/externalTrafficPolicy", json!("Local"));
    let pods = ("/spec/selector", json!({"app": "x"}));
    let mut world = World::default();
    let outcome = world.with([
        pool("p", json!({"addresses": ["198.51.100.0/24"]})),
        keyed("a", 80, &[]),
        keyed("b", 443, &[]),
        keyed("c", 80, &[]),
        keyed("d", 81, std::slice::from_ref(&local)),
        keyed("e", 82, &[local.clone(), pods.clone()]),
        keyed("f", 83, &[local, pods]),
        service("g"),
    ]);
    assert_eq!([ips(&outcome, "a"), ips(&outcome, "b")], [["198.51.100.0"], ["198.51.100.0"]]);
    assert!(assignment(&outcome, "a").addresses[0].shared && assignment(&outcome, "b").addresses[0].shared);
    assert_eq!(ips(&outcome, "c"), ["198.51.100.1"], "port 80 is taken");
    assert_eq!(ips(&outcome, "d"), ["198.51.100.2"], "policy Local and pods that nobody knows");
    assert_eq!([ips(&outcome, "e"), ips(&outcome, "f")], [["198.51.100.3"], ["198.51.100.3"]]);
    assert_eq!(ips(&outcome, "g"), ["198.51.100.4"]);
    assert!(!assignment(&outcome, "g").addresses[0].shared);
    assert_eq!(report(&outcome, "p").ipv4.unwrap().used, 5, "a shared address counts once");

    // An edit makes them clash: both keep the address, and the younger one hears of it.
    let outcome = world.with([keyed("b", 80, &[])]);
    assert_eq!([ips(&outcome, "a"), ips(&outcome, "b")], [["198.51.100.0"], ["198.51.100.0"]]);
    let said = condition_of(&assignment(&outcome, "b").conditions, condition::SHARING).unwrap();
    assert!(said.2.contains("198.51.100.0 is also service shop/a's, which has port 80/TCP"), "{}", said.2);
    assert!(condition_of(&assignment(&outcome, "a").conditions, condition::SHARING).is_none());
}

#[test]
fn of_pools_that_overlap_the_older_one_is_used_whatever_came_first() {
    let dated = |name: &str, cidr: &str, time: &str| {
        let mut document = pool(name, json!({"addresses": [cidr]}));
        document["metadata"]["creationTimestamp"] = json!(time);
        document
    };
    let [old, new] = [
        dated("z", "198.51.100.0/28", "2025-01-01T00:00:00Z"),
        dated("a", "198.51.100.8/29", "2025-01-02T00:00:00Z"),
    ];
    for documents in [[old.clone(), new.clone()], [new, old]] {
        let mut world = World::default();
        let outcome = world.with(documents.into_iter().chain([
            service("s"),
            annotated("t", ADDRESSES, "198.51.100.9"),
            annotated("u", POOL, "a"),
        ]));
        assert_eq!([ips(&outcome, "s"), ips(&outcome, "t")], [["198.51.100.0"], ["198.51.100.9"]]);
        let (ready, reason, message) =
            condition_of(&report(&outcome, "a").conditions, condition::READY).unwrap();
        assert_eq!((ready, reason), (false, reason::OVERLAP));
        assert!(message.contains("198.51.100.8 is of the older pool z"), "{message}");
        assert!(condition_of(&report(&outcome, "z").conditions, condition::READY).unwrap().0);
        assert!(given(&outcome, "u").2.contains("overlaps pool z"), "{}", given(&outcome, "u").2);
    }
}

#[test]
fn addresses_of_nodes_pods_and_the_cluster_are_never_given() {
    let mut world = World::default();
    let clustered =
        altered("c", &[("/spec/type", json!("ClusterIP")), ("/spec/clusterIP", json!("198.51.100.3"))]);
    let outcome = world.with([
        pool("p", json!({"addresses": ["198.51.100.0/29", "10.95.255.255-10.96.0.3"]})),
        node("n1", &["198.51.100.0"], &["198.51.100.4/31"]),
        clustered,
        service("a"),
        service("b"),
        service("d"),
        service("e"),
        service("f"),
        service("g"),
    ]);
    // In the order of the addresses.
    assert_eq!(ips(&outcome, "a"), ["10.95.255.255"]);
    assert_eq!(ips(&outcome, "b"), ["198.51.100.1"]);
    assert_eq!(ips(&outcome, "d"), ["198.51.100.2"]);
    assert_eq!([ips(&outcome, "e"), ips(&outcome, "f")], [["198.51.100.6"], ["198.51.100.7"]]);
    assert_eq!(given(&outcome, "g").1, reason::POOLS_EXHAUSTED);
    let Count { total, used, free } = report(&outcome, "p").ipv4.unwrap();
    assert_eq!((total, used, free), (5, 5, 0));
    let said = condition_of(&report(&outcome, "p").conditions, condition::LEFT_OUT).unwrap();
    assert!(said.2.contains("10.96.0.0 is in the range of cluster addresses 10.96.0.0/12"), "{}", said.2);
    assert!(said.2.contains("198.51.100.0 is node n1's own address"), "{}", said.2);

    // A node that comes later takes nothing away, but it is said.
    let outcome = world.with([node("n2", &["198.51.100.7"], &[])]);
    assert_eq!(ips(&outcome, "f"), ["198.51.100.7"]);
    let (reason, message) = kept(&outcome, "f").unwrap();
    assert_eq!(reason, reason::RESERVED);
    assert!(message.contains("198.51.100.7 is node n2's own address"), "{message}");
}

#[test]
fn the_api_server_is_never_shadowed() {
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "ports": [{"name": "https", "port": 6443}], "endpoints": [{"addresses": ["198.51.100.0"]}],
    });
    let mut world = World::default();
    let documents = [
        pool("p", json!({"addresses": ["198.51.100.0/24"]})),
        slice,
        service("a"),
        annotated("b", ADDRESSES, "198.51.100.0"),
    ];
    let outcome = world.with(documents);
    assert_eq!(ips(&outcome, "a"), ["198.51.100.1"]);
    assert!(
        given(&outcome, "b").2.contains("it is the API server's own address"),
        "{}",
        given(&outcome, "b").2
    );
}

#[test]
fn the_first_and_the_last_address_of_a_prefix_are_left_out_if_the_pool_says_so() {
    let mut world = World::default();
    let spec = json!({"addresses": ["198.51.100.0/30", "198.51.100.8/31", "198.51.100.12/32"], "avoidFirstLast": true});
    let outcome =
        world.with(["a", "b", "c", "d", "e", "f"].map(service).into_iter().chain([pool("p", spec)]));
    let all = ["a", "b", "c", "d", "e"].map(|name| ips(&outcome, name).concat());
    assert_eq!(all, ["198.51.100.1", "198.51.100.2", "198.51.100.8", "198.51.100.9", "198.51.100.12"]);
    assert!(ips(&outcome, "f").is_empty());
}

#[test]
fn what_a_document_says_that_its_service_has_is_nobody_elses() {
    let mut world = World::default();
    let status = |ip: &str| json!({"loadBalancer": {"ingress": [{"ip": ip}]}});
    let own = altered("own", &[("/status", status("198.51.100.0"))]);
    let other = ("/spec/loadBalancerClass", json!("example.org/other"));
    let others = altered("others", &[other, ("/status", status("198.51.100.1"))]);
    let outcome =
        world.with([pool("p", json!({"addresses": ["198.51.100.0/24"]})), own, others, service("a")]);
    assert_eq!(ips(&outcome, "a"), ["198.51.100.2"]);
    assert_eq!(ips(&outcome, "own"), ["198.51.100.0"]);
    let assigned = &assignment(&outcome, "own").addresses[0];
    assert!(assigned.own && !assigned.given);
    assert!(!world.record.contains_key(&ServiceKey::new("shop", "own")), "it was not given");
}

#[test]
fn a_status_that_we_write_ourselves_counts_for_nothing_but_the_record_does() {
    let mut world = World::default();
    world.settings.document_addresses = false;
    let status = ("/status", json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.9"}]}}));
    let documents = [pool("p", json!({"addresses": ["198.51.100.0/24"]})), altered("a", &[status])];
    world.record.insert(ServiceKey::new("shop", "a"), vec!["198.51.100.9".parse().unwrap()]);
    let outcome = world.with(documents.clone());
    assert_eq!(ips(&outcome, "a"), ["198.51.100.9"], "as a front does that reads the record from the status");
    assert!(assignment(&outcome, "a").addresses[0].given);
    world.record.clear();
    assert_eq!(ips(&world.with(documents), "a"), ["198.51.100.0"]);
}

#[test]
fn a_service_that_may_still_be_there_keeps_its_address() {
    let mut world = World::default();
    world.with([pool("p", json!({"addresses": ["198.51.100.0/31"]})), service("a"), service("b")]);
    world.unreadable.insert(ServiceKey::new("shop", "a"));
    world.store.apply(Event::Delete(ObjectKey::new(Kind::Service, "shop", "b")));
    let outcome = world.without(Kind::Service, "a");
    assert_eq!(ips(&outcome, "a"), ["198.51.100.0"]);
    assert_eq!(given(&outcome, "a").1, reason::DOCUMENT_UNREADABLE);
    assert!(!outcome.services.contains_key(&ServiceKey::new("shop", "b")));

    let outcome = world.with([service("c"), service("d")]);
    assert_eq!(ips(&outcome, "c"), ["198.51.100.1"]);
    assert!(ips(&outcome, "d").is_empty(), "a's address is not given away");
    world.unreadable.clear();
    assert_eq!(ips(&world.allocate(), "d"), ["198.51.100.0"]);
}

#[test]
fn a_service_that_is_being_deleted_keeps_what_it_has_and_gets_nothing_new() {
    let mut world = World::default();
    let deleting = ("/metadata/deletionTimestamp", json!("2025-01-31T12:00:00Z"));
    world.with([pool("p", json!({"addresses": ["198.51.100.0/24"]})), service("a")]);
    let outcome = world.with([altered("a", std::slice::from_ref(&deleting)), altered("b", &[deleting])]);
    assert_eq!((ips(&outcome, "a"), given(&outcome, "a").1), (vec!["198.51.100.0".into()], reason::GIVEN));
    assert_eq!((ips(&outcome, "b"), given(&outcome, "b").1), (vec![], reason::TERMINATING));
}

#[test]
fn ten_thousand_services_and_the_largest_pools_take_no_enumeration() {
    let mut world = World::default();
    let pools = [
        pool("p", json!({"addresses": ["2001:db8::/32", "fd00::/8"]})),
        pool("q", json!({"addresses": ["100.64.0.0/10"]})),
    ];
    let services = (0..10_000).map(|number| dual(&format!("s{number}"), "RequireDualStack"));
    let outcome = world.with(services.chain(pools));
    assert_eq!(outcome.services.len(), 10_000);
    let mut all: Vec<IpAddr> = world.record.values().flatten().copied().collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 20_000);
    assert_eq!(report(&outcome, "p").ipv6.unwrap().used, 10_000);
}

#[test]
fn one_sharing_key_of_thousands_of_services_costs_little_and_one_address_has_so_many() {
    let keyed = |number: u16, port: u16| {
        let ports = json!([{"port": port}]);
        altered(
            &format!("s{number:05}"),
            &[("/metadata/annotations", json!({SHARING: "k"})), ("/spec/ports", ports)],
        )
    };
    let mut world = World::default();
    let outcome = world.with(
        (0..300).map(|n| keyed(n, 1000 + n)).chain([pool("p", json!({"addresses": ["198.51.100.0/24"]}))]),
    );
    assert_eq!([ips(&outcome, "s00255"), ips(&outcome, "s00256")], [["198.51.100.0"], ["198.51.100.1"]]);
    let same_port = (0..5_000).map(|n| keyed(n, 80));
    let mut world = World::default();
    let outcome = world.with(same_port.chain([pool("p", json!({"addresses": ["100.64.0.0/10"]}))]));
    assert_eq!(ips(&outcome, "s04999"), ["100.64.19.135"], "each has its own");
}
