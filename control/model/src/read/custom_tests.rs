//! Kinds of our own group, and what services ask of a load balancer.

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use super::*;
use crate::{Family, LoadBalancer, PasswordSource};

fn custom(kind: &str, spec: Value) -> Value {
    json!({"apiVersion": "portolan.dev/v1alpha1", "kind": kind, "metadata": {"name": "x"}, "spec": spec})
}

fn reading(document: &Value) -> Reading {
    read(document).expect("it is valid").expect("it is one of our kinds")
}

/// The field that is refused, and what is found there.
fn refused(document: &Value) -> (String, String) {
    let Refused { key, invalid } = read(document).expect_err("it must be refused");
    assert_eq!(key.expect("its kind and name are good").name(), "x");
    (invalid.field, invalid.found)
}

fn pool(spec: Value) -> LoadBalancerPool {
    match reading(&custom("LoadBalancerPool", spec)).object {
        Object::LoadBalancerPool(pool) => pool,
        other => panic!("{other:?}"),
    }
}

fn peer(spec: Value) -> BgpPeer {
    match reading(&custom("BGPPeer", spec)).object {
        Object::BgpPeer(peer) => peer,
        other => panic!("{other:?}"),
    }
}

fn ranges(pool: &LoadBalancerPool) -> Vec<String> {
    pool.ranges.iter().map(|range| format!("{}-{}", range.first(), range.last())).collect()
}

#[test]
fn a_pool_is_read_field_by_field_and_belongs_to_no_namespace() {
    let mut document = custom(
        "LoadBalancerPool",
        json!({
            "addresses": ["198.51.100.7/24", "2001:db8:f::/64", "203.0.113.5-203.0.113.9"],
            "serviceSelector": {"matchLabels": {"tier": "gold"}}, "autoAssign": false,
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}},
            "priority": -3, "announce": ["BGP"],
        }),
    );
    document["metadata"]["namespace"] = json!("ignored");
    document["metadata"]["creationTimestamp"] = json!("2025-01-31T12:00:01Z");
    let Reading { object, warnings } = reading(&document);
    assert_eq!((object.key().to_string(), warnings), ("LoadBalancerPool x".to_owned(), vec![]));
    let Object::LoadBalancerPool(pool) = object else { panic!("{object:?}") };
    assert_eq!(
        ranges(&pool),
        [
            "198.51.100.0-198.51.100.255",
            "2001:db8:f::-2001:db8:f:0:ffff:ffff:ffff:ffff",
            "203.0.113.5-203.0.113.9"
        ]
    );
    assert_eq!(pool.created.map(|it| it.digits()), Some(20_250_131_120_001));
    assert!(!pool.auto_assign && !pool.l2 && pool.bgp && pool.priority == -3);
    assert!(pool.namespaces.contains("shop") && pool.namespaces.len() == 1);
    let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    assert!(pool.services.matches(&labels(&[("tier", "gold"), ("a", "b")])));
    assert!(!pool.services.matches(&labels(&[("tier", "iron")])) && !pool.services.matches(&labels(&[])));
}

#[test]
fn a_pool_leaves_the_ends_of_its_prefixes_out_if_it_says_so() {
    let spec = json!({
        "addresses": [
            "198.51.100.0/30", "198.51.100.8/31", "2001:db8::/127", "2001:db8::8/126", "203.0.113.0 - 203.0.113.255",
        ],
        "avoidFirstLast": true,
    });
    assert_eq!(
        ranges(&pool(spec)),
        [
            "198.51.100.1-198.51.100.2",
            "198.51.100.8-198.51.100.9",
            "2001:db8::-2001:db8::1",
            "2001:db8::9-2001:db8::a",
            "203.0.113.0-203.0.113.255"
        ]
    );
}

#[test]
fn a_bad_entry_of_a_pool_costs_itself_and_a_pool_without_a_good_one_is_refused() {
    let spec = json!({
        "addresses": [
            "198.51.100.0/33", "127.0.0.0/8", "198.51.100.0/24", "203.0.113.9-203.0.113.5", "203.0.113.9-2001:db8::1",
            "x-203.0.113.9", "203.0.113.9",
        ],
    });
    let Reading { object, warnings } = reading(&custom("LoadBalancerPool", spec));
    let Object::LoadBalancerPool(pool) = object else { panic!("{object:?}") };
    assert_eq!(ranges(&pool), ["198.51.100.0-198.51.100.255"]);
    let fields: Vec<&str> = warnings.iter().map(|invalid| invalid.field.as_str()).collect();
    assert_eq!(fields, [0, 1, 3, 4, 5, 6].map(|i| format!("spec.addresses[{i}]")));
    assert_eq!(refused(&custom("LoadBalancerPool", json!({}))).0, "spec.addresses");
    let spec = json!({"addresses": ["nonsense"]});
    assert_eq!(
        refused(&custom("LoadBalancerPool", spec)),
        ("spec.addresses[0]".to_owned(), "\"nonsense\"".to_owned())
    );
}

#[test]
fn a_pool_of_a_million_prefixes_is_cut_and_says_so() {
    let cidrs: Vec<String> =
        (0..1_000_000_u32).map(|n| format!("{}/32", std::net::Ipv4Addr::from_bits(n + (11 << 24)))).collect();
    let Reading { object, warnings } = reading(&custom("LoadBalancerPool", json!({"addresses": cidrs})));
    let Object::LoadBalancerPool(pool) = object else { panic!("{object:?}") };
    assert_eq!(pool.ranges.len(), 256);
    assert_eq!(warnings.len(), 1);
    assert_eq!((warnings[0].field.as_str(), warnings[0].found.as_str()), ("spec.addresses", "1000000"));
}

#[test]
fn a_pool_whose_restrictions_are_not_understood_is_refused_as_a_whole() {
    let with = |field: &str, value: Value| {
        let mut spec = json!({"addresses": ["198.51.100.0/24"]});
        spec[field] = value;
        refused(&custom("LoadBalancerPool", spec)).0
    };
    let expression = |key: &str, operator: &str, values: Value| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
    let at = |field: &str| format!("spec.serviceSelector.matchExpressions[0].{field}");
    assert_eq!(with("serviceSelector", expression("a", "Near", json!([]))), at("operator"));
    assert_eq!(with("serviceSelector", expression("a", "In", json!([]))), at("values"));
    assert_eq!(with("serviceSelector", expression("a", "Exists", json!(["b"]))), at("values"));
    assert_eq!(with("serviceSelector", expression("", "Exists", json!([]))), at("key"));
    assert_eq!(
        with("serviceSelector", json!({"matchLabels": {"a": 1}})),
        "spec.serviceSelector.matchLabels.a"
    );
    let name = "kubernetes.io/metadata.name";
    let selector = "spec.namespaceSelector";
    assert_eq!(
        with("namespaceSelector", json!({"matchLabels": {"team": "a"}})),
        format!("{selector}.matchLabels")
    );
    let at = |field: &str| format!("{selector}.matchExpressions[0].{field}");
    assert_eq!(with("namespaceSelector", expression("team", "In", json!(["a"]))), at("key"));
    assert_eq!(with("namespaceSelector", expression(name, "NotIn", json!(["a"]))), at("operator"));
    assert_eq!(with("namespaceSelector", expression(name, "In", json!(["shop", "Shop"]))), at("values[1]"));
    assert_eq!(with("namespaceSelector", expression(name, "In", json!([]))), selector);
    let mut none = expression(name, "In", json!(["a", "b"]));
    none["matchLabels"] = json!({name: "c"});
    assert_eq!(with("namespaceSelector", none), selector, "no namespace has two names");
    assert_eq!(with("announce", json!(["L2", "L3"])), "spec.announce[1]");
    assert_eq!(with("priority", json!(3_000_000_000_i64)), "spec.priority");
}

#[test]
fn expressions_hold_as_the_api_server_compares() {
    let selects = |operator: &str, values: Value, label: Option<&str>| {
        let selector = json!({"matchExpressions": [{"key": "a", "operator": operator, "values": values}]});
        let pool = pool(json!({"addresses": ["198.51.100.0/24"], "serviceSelector": selector}));
        pool.services.matches(&label.map(|value| ("a".into(), value.into())).into_iter().collect())
    };
    for (operator, values, held) in [
        ("In", json!(["x", "y"]), [true, false, false]),
        ("NotIn", json!(["x", "y"]), [false, true, true]),
        ("Exists", json!([]), [true, true, false]),
        ("DoesNotExist", json!([]), [false, false, true]),
    ] {
        let found = [Some("x"), Some("z"), None].map(|label| selects(operator, values.clone(), label));
        assert_eq!(found, held, "{operator}");
    }
}

#[test]
fn a_peer_is_read_field_by_field() {
    let bare = peer(json!({"peerAddress": "192.0.2.1", "peerASN": 64512}));
    assert_eq!((bare.peer_port, bare.hold_time, bare.keepalive_time), (179, 90, None));
    assert_eq!(bare.families, [Family::V4, Family::V6].into());
    assert_eq!((bare.graceful_restart, bare.passive, bare.password.clone()), (Some(120), false, None));
    assert!(bare.nodes.is_everything());

    let full = peer(json!({
        "peerAddress": "2001:db8::1", "peerASN": 4_200_000_000_u32, "myASN": 64513, "peerPort": 1179,
        "holdTime": "9s", "keepaliveTime": "3s", "sourceAddress": "2001:db8::2", "ebgpMultiHop": 4,
        "ttlSecurity": 1, "password": {"secretRef": {"namespace": "kube-system", "name": "bgp"}}, "families": ["IPv6"],
        "gracefulRestartTime": "0s", "passive": true, "nextHopIPv4": "192.0.2.7", "nextHopIPv6": "2001:db8::7",
        "nodeSelectors": [{"matchLabels": {"rack": "1"}}, {"matchLabels": {"rack": "2"}}],
    }));
    assert_eq!((full.peer_asn, full.my_asn, full.peer_port), (4_200_000_000, Some(64_513), 1179));
    assert_eq!((full.hold_time, full.keepalive_time), (9, Some(3)));
    assert_eq!(full.source_address, Some("2001:db8::2".parse().unwrap()));
    assert_eq!((full.ebgp_multihop, full.ttl_security), (Some(4), Some(1)));
    assert_eq!(full.password, Some(PasswordSource::Secret(NamespacedName::new("kube-system", "bgp"))));
    assert_eq!((full.families, full.graceful_restart, full.passive), ([Family::V6].into(), None, true));
    assert_eq!(full.next_hop_v4, Some([192, 0, 2, 7].into()));
    assert_eq!(full.next_hop_v6, Some("2001:db8::7".parse().unwrap()));
    let in_rack = |rack: &str| full.nodes.matches(&[("rack".into(), rack.into())].into());
    assert!(!full.nodes.is_everything() && in_rack("1") && in_rack("2") && !in_rack("3"));
    let filed = peer(
        json!({"peerAddress": "192.0.2.1", "peerASN": 64512, "password": {"file": "/etc/portolan/bgp"}}),
    );
    assert_eq!(filed.password, Some(PasswordSource::File("/etc/portolan/bgp".into())));
}

#[test]
fn a_peer_that_cannot_work_is_refused_with_its_field() {
    let cases = [
        ("peerAddress", json!(null)),
        ("peerAddress", json!("fe80::1")),
        ("peerAddress", json!("tor-1")),
        ("peerASN", json!(0)),
        ("peerASN", json!(null)),
        ("peerASN", json!(4_294_967_295_u32)),
        ("myASN", json!(23_456)),
        ("peerPort", json!(0)),
        ("holdTime", json!("2s")),
        ("holdTime", json!("90")),
        ("holdTime", json!("65536s")),
        ("holdTime", json!(90)),
        ("keepaliveTime", json!("90s")),
        ("keepaliveTime", json!("0s")),
        ("sourceAddress", json!("2001:db8::1")),
        ("ebgpMultiHop", json!(0)),
        ("ttlSecurity", json!(255)),
        ("password", json!({})),
        ("families", json!([])),
        ("gracefulRestartTime", json!("4096s")),
        ("nextHopIPv4", json!("2001:db8::1")),
        ("nextHopIPv6", json!("192.0.2.1")),
    ];
    for (field, value) in cases {
        let mut spec = json!({"peerAddress": "192.0.2.1", "peerASN": 64512});
        spec[field] = value.clone();
        assert_eq!(refused(&custom("BGPPeer", spec)).0, format!("spec.{field}"), "{value}");
    }
    let with_password = |password: Value| {
        let spec = json!({"peerAddress": "192.0.2.1", "peerASN": 64512, "password": password});
        refused(&custom("BGPPeer", spec)).0
    };
    let both = json!({"file": "/x", "secretRef": {"namespace": "a", "name": "b"}});
    assert_eq!(with_password(both), "spec.password");
    assert_eq!(with_password(json!({"file": "bgp"})), "spec.password.file");
    assert_eq!(with_password(json!({"secretRef": {"name": "b"}})), "spec.password.secretRef.namespace");
    let selector =
        json!([{"matchLabels": {"rack": "1"}}, {"matchExpressions": [{"key": "a", "operator": "Near"}]}]);
    let spec = json!({"peerAddress": "192.0.2.1", "peerASN": 64512, "nodeSelectors": selector});
    assert_eq!(refused(&custom("BGPPeer", spec)).0, "spec.nodeSelectors[1].matchExpressions[0].operator");
}

#[test]
fn an_advertisement_is_read_field_by_field_and_a_bad_community_refuses_it() {
    let spec = json!({
        "pools": ["p"], "peers": ["tor-1"], "nodeSelectors": [{"matchLabels": {"rack": "1"}}, {"matchLabels": {"rack": "2"}}],
        "communities": ["64512:100", "no-export", "64512:1:2"], "localPref": 200, "aggregationLength": 24,
        "aggregationLengthV6": 64, "podCIDRs": true,
    });
    let Object::BgpAdvertisement(it) = reading(&custom("BGPAdvertisement", spec)).object else {
        panic!("another kind")
    };
    assert_eq!(it.communities, [64_512 << 16 | 100, 0xffff_ff01].into());
    assert_eq!(it.large_communities, [[64_512, 1, 2]].into());
    assert_eq!((it.local_preference, it.aggregation_v4, it.aggregation_v6), (Some(200), 24, 64));
    assert!(
        it.pod_cidrs && it.pools.contains("p") && it.peers.contains("tor-1") && !it.nodes.is_everything()
    );

    let Object::BgpAdvertisement(it) = reading(&custom("BGPAdvertisement", json!({}))).object else {
        panic!("another kind")
    };
    assert_eq!((it.aggregation_v4, it.aggregation_v6, it.pod_cidrs), (32, 128, false));
    for bad in ["64512", "65536:1", "1:2:3:4", "private"] {
        let spec = json!({"communities": ["no-export", bad]});
        assert_eq!(refused(&custom("BGPAdvertisement", spec)).0, "spec.communities[1]", "{bad}");
    }
    assert_eq!(
        refused(&custom("BGPAdvertisement", json!({"aggregationLength": 33}))).0,
        "spec.aggregationLength"
    );
    assert_eq!(refused(&custom("BGPAdvertisement", json!({"pools": ["P"]}))).0, "spec.pools[0]");
}

#[test]
fn the_status_of_a_service_stands_in_a_document_of_its_own() {
    let document = json!({
        "apiVersion": "portolan.dev/v1alpha1", "kind": "ServiceStatus", "metadata": {"name": "web", "namespace": "shop"},
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}, {"ip": "127.0.0.1"}]}, "conditions": [{"type": "x"}]},
    });
    let Reading { object, warnings } = reading(&document);
    let key = object.key();
    assert_eq!(service_of(&key, &document).map(|it| it.to_string()).as_deref(), Some("shop/web"));
    let Object::ServiceStatus(status) = object else { panic!("{object:?}") };
    assert_eq!(status.ingress_ips, ["198.51.100.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(warnings[0].field, "status.loadBalancer.ingress[1].ip");
}

fn load_balancer(metadata: Value, spec: Value) -> (LoadBalancer, Vec<Invalid>) {
    let mut document = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.10", "ports": [{"port": 80}]},
    });
    for (part, fields) in [("metadata", metadata), ("spec", spec)] {
        document[part].as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    }
    let Reading { object, warnings } = reading(&document);
    let Object::Service(service) = object else { panic!("{object:?}") };
    (*service.load_balancer.expect("it is of that type"), warnings)
}

#[test]
fn what_a_service_asks_of_a_load_balancer_is_read_field_by_field() {
    let metadata = json!({
        "labels": {"tier": "gold", "count": 3}, "deletionTimestamp": "2025-01-31T12:00:01Z", "finalizers": ["example.org/f"],
        "annotations": {
            "portolan.dev/load-balancer-ips": "198.51.100.1, 2001:db8::1", "portolan.dev/sharing-key": " k ", "portolan.dev/pool": "p",
        },
    });
    let spec = json!({
        "loadBalancerClass": "example.org/lb", "loadBalancerIP": "203.0.113.1", "allocateLoadBalancerNodePorts": false,
        "ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "RequireDualStack", "selector": {"app": "web"},
    });
    let (wish, warnings) = load_balancer(metadata, spec);
    assert!(warnings.is_empty() && wish.unreadable.is_none(), "{warnings:?}");
    let requested: Vec<String> = wish.requested.iter().map(ToString::to_string).collect();
    assert_eq!(requested, ["198.51.100.1", "2001:db8::1"], "the annotation counts");
    assert_eq!((wish.class.as_deref(), wish.sharing_key.as_deref()), (Some("example.org/lb"), Some("k")));
    assert_eq!((wish.pool.as_deref(), wish.families.as_slice()), (Some("p"), &[Family::V6, Family::V4][..]));
    assert!(wish.require_dual_stack && !wish.node_ports && wish.deleting);
    assert_eq!((wish.labels.len(), wish.selector.len(), wish.finalizers.len()), (1, 1, 1));

    let (wish, _) = load_balancer(json!({}), json!({"loadBalancerIP": "203.0.113.1"}));
    assert_eq!(wish.requested[0].to_string(), "203.0.113.1");
    assert_eq!(wish.families.as_slice(), [Family::V4], "as its cluster address");
    assert!(!wish.require_dual_stack && wish.node_ports && !wish.deleting && wish.class.is_none());
}

#[test]
fn a_request_that_is_not_understood_costs_the_service_no_other_address() {
    let annotated = |text: Value| json!({"annotations": {"portolan.dev/load-balancer-ips": text}});
    let annotation = "metadata.annotations[portolan.dev/load-balancer-ips]";
    let cases = [
        (annotated(json!("198.51.100.1,")), json!({}), None),
        (annotated(json!("198.51.100")), json!({}), Some(annotation)),
        (annotated(json!("198.51.100.1,198.51.100.2")), json!({}), Some(annotation)),
        (annotated(json!(7)), json!({}), Some(annotation)),
        (json!({}), json!({"loadBalancerIP": "127.0.0.1"}), Some("spec.loadBalancerIP")),
        (json!({}), json!({"ipFamilies": ["IPv5"]}), Some("spec.ipFamilies[0]")),
        (json!({}), json!({"ipFamilies": ["IPv4", "IPv4"]}), Some("spec.ipFamilies[1]")),
    ];
    for (metadata, spec, field) in cases {
        let (wish, warnings) = load_balancer(metadata, spec);
        assert_eq!(wish.unreadable.as_ref().map(|invalid| invalid.field.as_str()), field);
        assert_eq!(warnings.first(), wish.unreadable.as_ref());
    }
}

#[test]
fn a_service_of_another_type_asks_for_nothing() {
    let document = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "annotations": {"portolan.dev/pool": 7}},
        "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 80}]},
    });
    let Reading { object: Object::Service(service), warnings } = reading(&document) else {
        panic!("another kind")
    };
    assert!(service.load_balancer.is_none() && warnings.is_empty());
}

#[test]
fn a_node_tells_its_labels_and_whether_it_is_cordoned() {
    let document = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "labels": {"rack": "1"}}, "spec": {"unschedulable": true},
    });
    let Object::Node(node) = reading(&document).object else { panic!("another kind") };
    assert_eq!(node.labels.get("rack").map(|value| &**value), Some("1"));
    assert!(node.unschedulable);
}

/// Any JSON, of values that fields have and of such that they do not.
fn values() -> impl Strategy<Value = Value> {
    let texts = select(vec![
        "198.51.100.0/24",
        "0.0.0.0/0",
        "::/0",
        "255.255.255.255",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "fd00::/8",
        "198.51.100.1-198.51.100.2",
        "90s",
        "192.0.2.1",
        "2001:db8::1",
        "L2",
        "IPv6",
        "In",
        "Exists",
        "64512:1",
        "",
        "a",
        "\u{0}",
        "/x",
        "LoadBalancer",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-2_i64..260).prop_map(Value::from),
        texts.prop_map(Value::from),
    ];
    let names = select(vec![
        "addresses",
        "secretRef",
        "file",
        "serviceSelector",
        "matchLabels",
        "matchExpressions",
        "key",
        "operator",
        "values",
        "namespaceSelector",
        "kubernetes.io/metadata.name",
        "nodeSelectors",
        "announce",
        "priority",
        "avoidFirstLast",
        "peerAddress",
        "peerASN",
        "holdTime",
        "communities",
        "keepaliveTime",
        "password",
        "families",
        "aggregationLength",
        "type",
        "ports",
        "port",
        "loadBalancerIP",
        "ipFamilies",
        "loadBalancer",
        "ingress",
        "ip",
        "annotations",
        "labels",
        "portolan.dev/load-balancer-ips",
    ]);
    leaf.prop_recursive(4, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(names.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn whatever_an_object_holds_it_is_read_or_refused(
        kind in select(Kind::ALL.to_vec()), metadata in values(), spec in values(), status in values(),
    ) {
        let mut document = custom(kind.as_str(), spec);
        document["apiVersion"] = json!(kind.api_version());
        if metadata.is_object() {
            document["metadata"] = metadata;
            document["metadata"]["name"] = json!("x");
        }
        document["status"] = status;
        match read(&document) {
            Ok(reading) => prop_assert_eq!(reading.map(|it| it.object.key().kind), Some(kind)),
            Err(refused) => prop_assert!(!refused.invalid.expected.is_empty()),
        }
    }
}
