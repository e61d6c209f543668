use portolan_model::{Event, Kind, ObjectKey, Protocol, read};
use serde_json::{Value, json};

use super::*;
use crate::{Reason, ServicePort, Why};

mod properties;

fn upsert(document: Value) -> Event {
    Event::Upsert(read(&document).expect("the test's object is valid").expect("it is of our kinds").object)
}

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

fn load_balancer(name: &str, cluster_ip: &str, created: &str, ip: &str) -> Event {
    let mut document =
        service(name, json!({"type": "LoadBalancer", "clusterIP": cluster_ip, "ports": [{"port": 80}]}));
    document["metadata"]["creationTimestamp"] = json!(created);
    document["status"] = json!({"loadBalancer": {"ingress": [{"ip": ip}]}});
    upsert(document)
}

fn slice(service: &str, endpoints: Value) -> Event {
    upsert(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service}},
        "ports": [{"port": 8080}], "endpoints": endpoints,
    }))
}

fn node(name: &str, addresses: &[&str], pod_cidrs: &[&str]) -> Event {
    let addresses: Vec<Value> =
        addresses.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    upsert(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "spec": {"podCIDRs": pod_cidrs}, "status": {"addresses": addresses},
    }))
}

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("default", name)
}

/// A store and a planner for node `a` that follow events together.
struct World {
    store: Store,
    planner: Planner,
}

impl World {
    fn new() -> Self {
        Self { store: Store::default(), planner: Planner::new("a") }
    }

    fn apply(&mut self, events: impl IntoIterator<Item = Event>) -> Changes {
        let touched = self.store.apply_all(events);
        self.planner.plan(&self.store, Extent::Touched(&touched))
    }

    fn ports(&self, name: &str) -> Vec<ServicePort> {
        let found = self.planner.desired().find(|(known, _)| **known == key(name));
        found.map(|(_, plan)| plan.ports.clone()).unwrap_or_default()
    }

    fn frontends(&self, name: &str) -> Vec<String> {
        let text = |f: &crate::FrontendAddr| match f.addr {
            Some(addr) => format!("{:?} {}", f.scope, std::net::SocketAddr::new(addr, f.port)),
            None => format!("{:?} *:{}", f.scope, f.port),
        };
        self.ports(name).iter().flat_map(|port| port.frontends.iter().map(text)).collect()
    }
}

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
fn all_addresses_of_the_other_nodes_are_peers() {
    let mut world = World::new();
    world.apply([
        node("a", &["192.0.2.1", "2001:db8::1"], &[]),
        node("c", &["192.0.2.3", "2001:db8::3"], &[]),
        // Never this node's own, whoever else claims it.
        node("b", &["192.0.2.2", "192.0.2.1"], &[]),
    ]);
    let peers: Vec<_> = world.planner.node().peers.iter().map(ToString::to_string).collect();
    assert_eq!(peers, ["192.0.2.2", "192.0.2.3", "2001:db8::3"]);
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
fn source_ranges_are_of_the_family_and_a_family_without_any_is_closed() {
    let mut world = World::new();
    let mut document = service(
        "web",
        json!({
            "type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"port": 80}],
            "loadBalancerSourceRanges": ["198.51.100.0/24"],
        }),
    );
    document["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}});
    let changes = world.apply([upsert(document.clone())]);
    assert_eq!(world.frontends("web").len(), 2);
    let only = ["198.51.100.0/24".parse().unwrap()];
    assert_eq!(world.ports("web")[0].sources.as_deref(), Some(&only[..]));
    assert_eq!(changes.conditions, []);
    document["spec"]["loadBalancerSourceRanges"] = json!(["2001:db8::/32"]);
    let changes = world.apply([upsert(document.clone())]);
    assert_eq!(world.ports("web")[0].sources.as_deref(), Some(&[][..]), "nobody of this family");
    assert_eq!(changes.conditions[0].reason, Reason::NobodyAdmitted);
    document["spec"]["loadBalancerSourceRanges"] = json!(["2001:db8::/32", "0.0.0.0/0"]);
    world.apply([upsert(document)]);
    assert_eq!(world.ports("web")[0].sources, None, "a range of length 0 admits everybody");
}

/// The source ranges of both families of a dual-stack service, and what is told.
fn admitted(ranges: &[&str]) -> ([Option<String>; 2], String) {
    let mut world = World::new();
    let mut document = service(
        "web",
        json!({
            "type": "LoadBalancer", "clusterIPs": ["10.96.0.1", "fd00::1"], "ports": [{"port": 80}],
            "loadBalancerSourceRanges": ranges,
        }),
    );
    document["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}, {"ip": "2001:db8::1"}]}});
    let changes = world.apply([upsert(document)]);
    let text = |port: &ServicePort| {
        let sources = port.sources.as_ref()?;
        Some(sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    };
    let ports = world.ports("web");
    ([text(&ports[0]), text(&ports[1])], texts(&changes.conditions))
}

/// `Reason: message` of all.
fn texts(conditions: &[Condition]) -> String {
    let text = |it: &Condition| format!("{}: {}", it.reason.as_str(), it.message);
    conditions.iter().map(text).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_range_that_admits_everybody_of_one_family_leaves_the_other_as_it_is() {
    let some = |text: &str| Some(text.to_owned());
    for (ranges, expected, closed) in [
        (&["0.0.0.0/0", "2001:db8::/32"][..], [None, some("2001:db8::/32")], None),
        (&["192.0.2.0/24", "::/0", "2001:db8::/32"], [some("192.0.2.0/24"), None], None),
        (&["192.0.2.0/24", "2001:db8::/32"], [some("192.0.2.0/24"), some("2001:db8::/32")], None),
        (&["0.0.0.0/0", "::/0"], [None, None], None),
        (&["0.0.0.0/0"], [None, some("")], Some("2001:db8::1")),
        (&["::/0"], [some(""), None], Some("203.0.113.1")),
    ] {
        let (found, told) = admitted(ranges);
        assert_eq!(found, expected, "{ranges:?}");
        match closed {
            None => assert_eq!(told, "", "{ranges:?}"),
            Some(ip) => assert!(told.starts_with(&format!("NobodyAdmitted: {ip} is closed")), "{told}"),
        }
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
fn the_first_address_of_each_family_answers_node_ports_unless_prefixes_say_which() {
    let addresses = ["192.0.2.1", "198.51.100.1", "2001:db8::1", "fd00::1"];
    let within = |prefixes: &[&str]| {
        NodePortAddresses::Within(prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect())
    };
    for (selected, expected) in [
        (NodePortAddresses::Primary, &["192.0.2.1", "2001:db8::1"][..]),
        (within(&["198.51.100.0/24"]), &["198.51.100.1"]),
        (within(&["198.51.100.0/24", "fd00::/8"]), &["198.51.100.1", "fd00::1"]),
        (within(&["0.0.0.0/0", "::/0"]), &addresses),
        (within(&["10.0.0.0/8"]), &[]),
    ] {
        let mut world = World::new();
        let options = Options { node_port_addresses: selected.clone(), ..Options::default() };
        world.planner = Planner::with_options("a", options);
        world.apply([node("a", &addresses, &[]), node("b", &["192.0.2.2", "198.51.100.2"], &[])]);
        let plan = world.planner.node();
        let found: Vec<_> = plan.node_ports.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{selected:?}");
        assert_eq!((plan.addresses.len(), plan.peers.len()), (4, 2), "all are still the nodes' own");
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
fn every_other_nodes_pods_are_reached_through_its_address_of_that_family() {
    let mut world = World::new();
    let changes = world.apply([
        node("a", &["192.168.1.11"], &["10.244.1.0/24"]),
        node("b", &["192.168.1.12", "fd00:1::12"], &["10.244.2.0/24", "fd00:244:2::/64"]),
        node("c", &["192.168.1.13"], &["10.244.3.0/24", "fd00:244:3::/64"]),
        node("d", &["192.168.1.14"], &["10.244.2.0/24"]),
        node("e", &["192.168.1.15"], &["192.168.0.0/16"]),
        node("f", &["192.168.1.16"], &["10.244.0.0/16"]),
    ]);
    let plan = changes.node.expect("the node's plan is new");
    let routes: Vec<_> = plan.routes.iter().map(|r| format!("{} {} {}", r.prefix, r.via, r.node)).collect();
    assert_eq!(
        routes,
        ["10.244.2.0/24 192.168.1.12 b", "10.244.3.0/24 192.168.1.13 c", "fd00:244:2::/64 fd00:1::12 b"]
    );
    let skipped: Vec<_> = plan.skipped.iter().map(|s| &*s.node).collect();
    assert_eq!(skipped, ["f", "d", "e", "c"], "{:?}", plan.skipped);
    assert_eq!(world.apply([node("a", &["192.168.1.11"], &["10.244.1.0/24"])]).node, None);
}

#[test]
fn one_endpoint_change_changes_one_service() {
    let mut world = World::new();
    for i in 0..10 {
        let ip = format!("10.96.0.{}", i + 1);
        world.apply([upsert(service(&format!("s{i}"), json!({"clusterIP": ip, "ports": [{"port": 80}]})))]);
    }
    let changes = world.apply([slice("s3", json!([{"addresses": ["10.1.0.1"]}]))]);
    assert_eq!(changes.services.len(), 1);
    assert_eq!(changes.services[0].0, key("s3"));
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

#[test]
fn so_many_services_that_two_threads_plan_them_get_the_plans_they_get_one_by_one() {
    let mut world = World::new();
    let count = SHARED as u32 + 1;
    world.apply((0..count).map(|number| {
        // Every third wants the address of the one before, and is refused.
        let owner = if number % 3 == 2 { number - 1 } else { number };
        let address = std::net::Ipv4Addr::from_bits(0x0a60_0000 + owner).to_string();
        let ports = json!([{"port": 80}]);
        upsert(service(&format!("s{number}"), json!({"clusterIP": address, "ports": ports})))
    }));
    let mut fresh = Planner::new("a");
    let changes = fresh.plan(&world.store, Extent::All);
    assert_eq!(changes.services.len(), count as usize);
    assert!(changes.services.is_sorted_by(|one, next| one.0 < next.0));
    assert!(fresh.desired().eq(world.planner.desired()));
    assert_eq!(changes.conditions, world.apply([]).conditions);
    assert_eq!(changes.conditions.len(), count as usize / 3);
    let again = fresh.plan(&world.store, Extent::All);
    assert!(again.services.is_empty());
    assert_eq!(again.conditions, changes.conditions);
}

/// A port of this node that leads to a pod called `web`.
fn host_port(addr: Option<&str>, port: u16, backend: &str) -> HostPort {
    HostPort {
        name: HostPort::name("default", "web"),
        addr: addr.map(|addr| addr.parse().unwrap()),
        port,
        protocol: Protocol::Tcp,
        backend: backend.parse().unwrap(),
    }
}

#[test]
fn a_host_port_is_served_at_the_nodes_own_addresses_as_they_are_now() {
    let mut world = World::new();
    let ports = vec![
        host_port(None, 80, "10.1.0.5:8080"),
        host_port(None, 80, "[fd01::5]:8080"),
        host_port(Some("192.0.2.1"), 81, "10.1.0.5:8081"),
        host_port(Some("127.0.0.1"), 82, "10.1.0.5:8082"),
    ];
    let changes = world.planner.set_host_ports(&world.store, ports.clone());
    assert_eq!(changes.services.len(), 1, "one name for all ports of a pod");
    let changes = world.apply([node("a", &["192.0.2.1", "192.0.2.9", "2001:db8::1"], &["10.1.0.0/24"])]);
    assert_eq!(changes.services.len(), 1, "with the node's addresses");
    let all = [
        "HostPort 127.0.0.1:82",
        "HostPort 192.0.2.1:81",
        "HostPort 127.0.0.1:80",
        "HostPort 192.0.2.1:80",
        "HostPort 192.0.2.9:80",
        "HostPort [::1]:80",
        "HostPort [2001:db8::1]:80",
    ];
    let found = world.frontends("hostport:web");
    assert_eq!(found.iter().collect::<BTreeSet<_>>(), all.map(str::to_owned).iter().collect());
    assert!(world.ports("hostport:web").iter().all(|port| port.cluster.len() == 1 && port.cluster[0].local));
    // An address that the node lost is not served: it may be anybody's.
    world.apply([node("a", &["192.0.2.9"], &["10.1.0.0/24"])]);
    assert!(!world.frontends("hostport:web").iter().any(|it| it.contains("192.0.2.1:")), "{found:?}");
    assert!(world.planner.set_host_ports(&world.store, ports).services.is_empty(), "the same again");
    let changes = world.planner.set_host_ports(&world.store, Vec::new());
    assert_eq!(changes.services, [(key("hostport:web"), None)]);
    assert!(world.ports("hostport:web").is_empty());
}

#[test]
fn a_host_port_that_a_service_or_no_address_has_is_told_apart_from_one_that_is_free() {
    let mut world = World::new();
    let spec =
        json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30080}]});
    world.apply([
        node("a", &["192.0.2.1", "192.0.2.9", "2001:db8::1"], &["10.1.0.0/24"]),
        upsert(service("late", spec)),
    ]);
    let conflict = |addr, port, backend| world.planner.host_port_conflict(&host_port(addr, port, backend));
    let taken = Some(HostPortConflict::NodePort(key("late")));
    for (addr, port, backend, expected) in [
        (None, 30_080, "10.1.0.5:80", taken.clone()),
        (Some("192.0.2.1"), 30_080, "10.1.0.5:80", taken.clone()),
        (Some("127.0.0.1"), 30_080, "10.1.0.5:80", taken),
        // Answers no NodePorts.
        (Some("192.0.2.9"), 30_080, "10.1.0.5:80", None),
        // The service has no IPv6.
        (None, 30_080, "[fd01::5]:80", None),
        (None, 30_081, "10.1.0.5:80", None),
    ] {
        assert_eq!(conflict(addr, port, backend), expected, "{addr:?} {port} {backend}");
    }
    let foreign = conflict(Some("192.0.2.2"), 80, "10.1.0.5:80");
    assert!(matches!(foreign, Some(HostPortConflict::ForeignAddress(own)) if own.len() == 3));
}

#[test]
fn a_service_whose_node_port_is_a_host_port_says_so_until_it_is_none() {
    let mut world = World::new();
    world.apply([node("a", &["192.0.2.1"], &["10.1.0.0/24"])]);
    world.planner.set_host_ports(&world.store, vec![host_port(None, 30_080, "10.1.0.5:80")]);
    let spec =
        json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30080}]});
    let changes = world.apply([upsert(service("late", spec))]);
    assert_eq!(changes.conditions.iter().map(|it| it.reason).collect::<Vec<_>>(), [Reason::HostPort]);
    assert!(changes.conditions[0].message.contains("default/hostport:web"), "{:?}", changes.conditions);
    assert!(
        world.frontends("late").contains(&"NodePort *:30080".to_owned()),
        "at other addresses it is served"
    );
    assert_eq!(world.planner.set_host_ports(&world.store, Vec::new()).conditions, []);
}
