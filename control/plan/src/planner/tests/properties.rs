//! Whatever happens in whatever order, an incremental plan is the full plan.

use proptest::prelude::*;

use super::*;

/// Few names and addresses, so that conflicts are the rule.
fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => any_service().prop_map(upsert),
        4 => any_slice().prop_map(upsert),
        2 => any_node().prop_map(upsert),
        3 => (0..3, 0..4u8).prop_map(|(kind, n)| {
            let (kind, namespace, name) = match kind {
                0 => (Kind::Service, "default", format!("s{n}")),
                1 => (Kind::EndpointSlice, "default", format!("e{n}")),
                _ => (Kind::Node, "", ["a", "b", "c", "d"][n as usize].to_owned()),
            };
            Event::Delete(ObjectKey::new(kind, namespace, &name))
        }),
    ]
}

prop_compose! {
    fn any_service()(
        name in 0..4, kind in 0..4usize, ip in 0..4, dual in any::<bool>(), port in 0..3u16, udp in any::<bool>(),
        node_port in 0..3u16, lb in 0..5, year in 0..4, internal_local in any::<bool>(),
        external_local in any::<bool>(), affinity in any::<bool>(),
    ) -> Value {
        let policy = |local: bool| if local { "Local" } else { "Cluster" };
        let mut ips = vec![if ip == 0 { "None".to_owned() } else { format!("10.96.0.{ip}") }];
        if dual && ip != 0 {
            ips.push(format!("fd00:96::{ip}"));
        }
        let mut document = service(&format!("s{name}"), json!({
            "type": (["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"][kind]),
            "clusterIP": ips[0], "clusterIPs": ips, "sessionAffinity": if affinity { "ClientIP" } else { "None" },
            "internalTrafficPolicy": policy(internal_local), "externalTrafficPolicy": policy(external_local),
            "externalIPs": if lb == 4 { vec!["203.0.113.1"] } else { vec![] },
            "ports": [
                {"name": "p", "port": 80 + port, "protocol": if udp { "UDP" } else { "TCP" },
                 "nodePort": if node_port == 0 { 0 } else { 30_000 + node_port }},
                {"name": "q", "port": 90},
            ],
        }));
        if year > 0 {
            document["metadata"]["creationTimestamp"] = json!(format!("202{year}-01-01T00:00:00Z"));
        }
        if lb > 0 {
            // Nodes and pods draw from the same addresses.
            let ip = if lb == 3 { "10.244.2.9".to_owned() } else { format!("203.0.113.{lb}") };
            document["status"] = json!({"loadBalancer": {"ingress": [{"ip": ip}]}});
        }
        document
    }
}

prop_compose! {
    fn any_slice()(
        name in 0..4, service in 0..4, port in 0..2u16,
        endpoints in prop::collection::vec((1..4u8, 0..2usize, any::<[bool; 3]>(), 0..3), 0..4),
    ) -> Value {
        let endpoint = |(last, node, conditions, zone): &(u8, usize, [bool; 3], i32)| {
            let mut endpoint = json!({
                "addresses": [format!("10.1.0.{last}")], "nodeName": (["a", "b"][*node]),
                "conditions": {"ready": conditions[0], "serving": conditions[1], "terminating": conditions[2]},
            });
            if *zone > 0 {
                endpoint["hints"] = json!({"forZones": [{"name": format!("z{zone}")}]});
            }
            endpoint
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("e{name}"), "labels": {"kubernetes.io/service-name": format!("s{service}")}},
            "ports": [{"name": "p", "port": 8080 + port}, {"name": "q", "port": 9090}],
            "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        })
    }
}

prop_compose! {
    fn any_node()(name in 0..4usize, ip in 1..6, cidr in 1..4, zone in 0..3) -> Value {
        let mut document = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": (["a", "b", "c", "d"][name])},
            "spec": {"podCIDRs": [format!("10.244.{cidr}.0/24")]},
            "status": {"addresses": [{"type": "InternalIP", "address": format!("203.0.113.{ip}")}]},
        });
        if zone > 0 {
            document["metadata"]["labels"] = json!({"topology.kubernetes.io/zone": format!("z{zone}")});
        }
        document
    }
}

/// One of the NodePorts is outside of it.
const OPTIONS: Options = Options {
    external_ips: true,
    node_ports: Some((30_000, 30_001)),
    node_port_addresses: NodePortAddresses::Primary,
    consistent: true,
    external_mode: ExternalMode::Hybrid,
    overlay: None,
    inside: Vec::new(),
    reset_departed: true,
};

type Outcome = (BTreeMap<ServiceKey, Arc<ServicePlan>>, NodePlan, Vec<Condition>);

fn full(store: &Store) -> Outcome {
    let mut planner = Planner::with_options("a", OPTIONS);
    let changes = planner.plan(store, Extent::All);
    let services =
        changes.services.into_iter().map(|(key, plan)| (key, plan.expect("the first run removes nothing")));
    (services.collect(), planner.node().clone(), changes.conditions)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_incremental_plan_equals_the_full_plan_after_every_step(
        steps in prop::collection::vec(prop::collection::vec(event(), 1..4), 1..12)
    ) {
        let mut store = Store::default();
        let mut planner = Planner::with_options("a", OPTIONS);
        let mut followed: BTreeMap<ServiceKey, Arc<ServicePlan>> = BTreeMap::new();
        for events in steps {
            let touched = store.apply_all(events);
            let changes = planner.plan(&store, Extent::Touched(&touched));
            prop_assert!(changes.services.is_sorted_by(|a, b| a.0 < b.0));
            for (key, plan) in changes.services {
                let previous = match &plan {
                    Some(plan) => followed.insert(key, plan.clone()),
                    None => followed.remove(&key),
                };
                prop_assert!(previous != plan, "a change that changes nothing");
            }
            let (services, node, conditions) = full(&store);
            prop_assert_eq!(&followed, &services);
            prop_assert_eq!(planner.node(), &node);
            prop_assert_eq!(&changes.conditions, &conditions);
        }
        // Planning again, in full, finds nothing to change.
        let again = planner.plan(&store, Extent::All);
        prop_assert!(again.services.is_empty() && again.node.is_none(), "{:?}", again);
    }

    #[test]
    fn a_full_plan_after_missed_events_tells_exactly_what_changed(
        before in prop::collection::vec(event(), 0..12), after in prop::collection::vec(event(), 0..12)
    ) {
        let mut store = Store::default();
        let mut planner = Planner::with_options("a", OPTIONS);
        store.apply_all(before);
        planner.plan(&store, Extent::All);
        let (mut followed, _, _) = full(&store);
        store.apply_all(after);
        for (key, plan) in planner.plan(&store, Extent::All).services {
            match plan {
                Some(plan) => followed.insert(key, plan),
                None => followed.remove(&key),
            };
        }
        prop_assert_eq!(followed, full(&store).0);
    }

    #[test]
    fn who_owns_an_address_does_not_depend_on_the_order_of_events(
        services in prop::collection::vec(any_service(), 1..8), nodes in prop::collection::vec(any_node(), 0..4),
        seed in any::<u64>(),
    ) {
        // The last version of each object is the same in both orders.
        let objects: BTreeMap<_, _> = services.into_iter().chain(nodes)
            .map(|document| (read(&document).unwrap().unwrap().object.key(), upsert(document)))
            .collect();
        let mut shuffled: Vec<_> = objects.values().cloned().collect();
        let mut state = seed | 1;
        for i in (1..shuffled.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            shuffled.swap(i, (state >> 33) as usize % (i + 1));
        }
        let outcome = |events: Vec<Event>| {
            let mut store = Store::default();
            let mut planner = Planner::with_options("a", OPTIONS);
            let mut conditions = Vec::new();
            for event in events {
                let touched = store.apply(event);
                conditions = planner.plan(&store, Extent::Touched(&touched)).conditions;
            }
            let plans: BTreeMap<_, _> = planner.desired().map(|(k, p)| (k.clone(), p.clone())).collect();
            (plans, planner.node().clone(), conditions)
        };
        prop_assert_eq!(outcome(objects.into_values().collect()), outcome(shuffled));
    }
}
