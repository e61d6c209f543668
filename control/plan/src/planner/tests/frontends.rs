//! Which addresses and ports of a service are served, and what is told of the others.

use super::*;

#[test]
fn a_dual_stack_service_gets_a_port_per_family_with_only_its_own_addresses() {
    let mut world = World::new();
    let mut document = service(
        "web",
        json!({
            "type": "LoadBalancer", "clusterIPs": ["10.96.0.1", "fd00::1"], "externalIPs": ["192.0.2.1"],
            "ports": [{"port": 80, "nodePort": 30080}], "externalTrafficPolicy": "Local",
        }),
    );
    document["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}, {"ip": "2001:db8::1"}]}});
    world.apply([
        upsert(document),
        slice("web", json!([{"addresses": ["10.1.0.1"], "nodeName": "a"}, {"addresses": ["10.1.0.2"], "nodeName": "b"}])),
    ]);
    let ports = world.ports("web");
    assert_eq!(
        ports.iter().map(|p| p.name.to_string()).collect::<Vec<_>>(),
        ["default/web TCP IPv4", "default/web TCP IPv6"]
    );
    assert_eq!(
        world.frontends("web"),
        [
            "NodePort *:30080",
            "ClusterIp 10.96.0.1:80",
            "LoadBalancer 203.0.113.1:80",
            "NodePort *:30080",
            "LoadBalancer [2001:db8::1]:80",
            "ClusterIp [fd00::1]:80",
        ]
    );
    assert_eq!((ports[0].cluster.len(), ports[0].local.len()), (2, 1));
    assert!(ports[0].external_local && ports[0].local[0].local && !ports[0].internal_local);
    assert!(ports[1].cluster.is_empty());
}

#[test]
fn external_ips_are_served_only_where_the_operator_wants_them() {
    let document = service(
        "web",
        json!({"clusterIP": "10.96.0.1", "externalIPs": ["192.0.2.1"], "ports": [{"port": 80}]}),
    );
    for (options, count) in
        [(Options::default(), 1), (Options { external_ips: true, ..Options::default() }, 2)]
    {
        let mut world = World::new();
        world.planner = Planner::with_options("a", options.clone());
        let changes = world.apply([upsert(document.clone())]);
        assert_eq!(world.frontends("web").len(), count, "{options:?}");
        let told = texts(&changes.conditions);
        match count {
            1 => assert!(
                told.starts_with("ExternalIPsOff: 192.0.2.1 of") && told.contains("--external-ips"),
                "{told}"
            ),
            _ => assert_eq!(told, ""),
        }
    }
}

#[test]
fn services_that_are_not_ours_are_not_planned() {
    let mut world = World::new();
    let port = json!([{"port": 80}]);
    let mut other = service("other", json!({"clusterIP": "10.96.0.3", "ports": port}));
    other["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "x"});
    let changes = world.apply([
        upsert(service("headless", json!({"clusterIP": "None", "ports": port}))),
        upsert(service("alias", json!({"type": "ExternalName", "clusterIP": "10.96.0.2", "ports": port}))),
        upsert(other),
        slice("orphan", json!([{"addresses": ["10.1.0.1"]}])),
    ]);
    assert!(changes.services.is_empty() && changes.conditions.is_empty(), "{changes:?}");
    let changes = world.apply([upsert(service("unallocated", json!({"ports": port})))]);
    assert!(changes.services.is_empty());
    assert_eq!(changes.conditions[0].reason, Reason::NoClusterIp);
}

#[test]
fn a_node_port_that_no_node_answers_on_is_told_of() {
    let mut world = World::new();
    let options = Options { node_ports: Some((30_000, 32_767)), ..Options::default() };
    world.planner = Planner::with_options("a", options);
    let ports = [29_999, 30_000, 32_767, 32_768]
        .map(|port| json!({"name": format!("p{port}"), "port": port, "nodePort": port}));
    let changes = world.apply([upsert(service(
        "web",
        json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": ports}),
    ))]);
    let node_ports: Vec<_> =
        world.frontends("web").into_iter().filter(|it| it.starts_with("NodePort")).collect();
    assert_eq!(node_ports, ["NodePort *:30000", "NodePort *:32767"]);
    assert_eq!(changes.conditions.len(), 2, "{:?}", changes.conditions);
    for (condition, port) in changes.conditions.iter().zip(["29999", "32768"]) {
        assert_eq!(condition.reason, Reason::NodePortRange);
        assert!(
            condition.message.contains(port) && condition.message.contains("30000 to 32767"),
            "{condition:?}"
        );
    }
}

#[test]
fn what_of_a_service_is_left_out_is_told_and_why() {
    let mut world = World::new();
    world.planner = Planner::with_options("a", Options { external_ips: true, ..Options::default() });
    let mut document = service(
        "web",
        json!({
            "type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"port": 80}],
            "externalIPs": ["192.0.2.1", "2001:db8::7"], "loadBalancerSourceRanges": ["0.0.0.0/0"],
        }),
    );
    let ingress = json!([
        {"ip": "203.0.113.1"}, {"ip": "2001:db8::1"}, {"ip": "203.0.113.9", "ipMode": "Proxy"},
    ]);
    document["status"] = json!({"loadBalancer": {"ingress": ingress}});
    let changes = world.apply([upsert(document.clone())]);
    assert_eq!(
        world.frontends("web"),
        ["ClusterIp 10.96.0.1:80", "External 192.0.2.1:80", "LoadBalancer 203.0.113.1:80"]
    );
    let left: Vec<_> = changes
        .conditions
        .iter()
        .map(|it| (it.reason.as_str(), it.message.split(' ').next().unwrap_or_default(), it.reason.is_note()))
        .collect();
    assert_eq!(
        left,
        [
            ("FamilyNotServed", "2001:db8::1", false),
            ("FamilyNotServed", "2001:db8::7", false),
            ("LeftToProxy", "203.0.113.9", true),
        ]
    );
    assert!(changes.conditions[0].message.contains("no IPv6 ClusterIP"), "{:?}", changes.conditions);
    // Of another type the service does not ask for these addresses.
    document["spec"]["type"] = json!("ClusterIP");
    document["spec"]["externalIPs"] = json!([]);
    assert_eq!(texts(&world.apply([upsert(document)]).conditions), "");
}
