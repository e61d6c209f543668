use serde_json::{Value, json};

use super::*;
use crate::{Family, Protocol, ServiceKey, ServiceType};

fn service(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"}, "spec": spec})
}

fn simple_service() -> Value {
    service(json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}]}))
}

fn slice(endpoints: Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080}], "endpoints": endpoints,
    })
}

fn refused(document: &Value) -> Invalid {
    read(document).expect_err("it must be refused").invalid
}

/// The key of an object that is refused.
fn refused_key(document: &Value) -> ObjectKey {
    read(document).expect_err("it is refused").key.expect("its kind and name are good")
}

fn reading(document: &Value) -> Reading {
    read(document).expect("it is valid").expect("it is one of our kinds")
}

fn good_service(document: &Value) -> Service {
    match reading(document).object {
        Object::Service(service) => service,
        other => panic!("{other:?}"),
    }
}

fn good_slice(document: &Value) -> EndpointSlice {
    match reading(document).object {
        Object::EndpointSlice(slice) => slice,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_full_service_is_read_field_by_field() {
    let document = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "shop", "creationTimestamp": "2025-01-31T12:00:01Z"},
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00:96::10"],
            "externalIPs": ["192.0.2.7"], "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Local",
            "loadBalancerSourceRanges": [" 198.51.100.0/24 "],
            "ports": [
                {"name": "http", "port": 80, "nodePort": 30080, "targetPort": "web", "protocol": "TCP"},
                {"name": "dns", "port": 80, "nodePort": 30080, "protocol": "UDP"},
            ],
        },
        "status": {"loadBalancer": {"ingress": [
            {"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "VIP"}, {"ip": "203.0.113.3", "ipMode": "Proxy"},
            {"hostname": "lb.example"},
        ]}},
    });
    let service = good_service(&document);
    assert_eq!(service.key.to_string(), "shop/web");
    assert_eq!(service.kind, ServiceType::LoadBalancer);
    let texts = |ips: &[std::net::IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&service.cluster_ips), ["10.96.0.10", "fd00:96::10"]);
    assert_eq!(texts(&service.external_ips), ["192.0.2.7"]);
    assert_eq!(texts(&service.ingress_ips), ["203.0.113.1", "203.0.113.2"]);
    assert_eq!(texts(&service.load_balancer.as_ref().unwrap().proxied_ips), ["203.0.113.3"]);
    assert_eq!(service.source_ranges[0].to_string(), "198.51.100.0/24");
    assert_eq!(service.affinity, Some(60));
    assert!(service.external_local && !service.internal_local && !service.skipped);
    let ports: Vec<_> = service.ports.iter().map(|p| (&*p.name, p.protocol, p.port, p.node_port)).collect();
    assert_eq!(ports, [("http", Protocol::Tcp, 80, 30080), ("dns", Protocol::Udp, 80, 30080)]);
}

#[test]
fn a_refusal_names_the_field_by_its_path() {
    let ports = |ports: Value| service(json!({"clusterIP": "10.96.0.10", "ports": ports}));
    let cases = [
        (
            ports(json!([{"name": "a", "port": 80}, {"name": "b", "port": 70000}])),
            "spec.ports[1].port",
            "70000",
        ),
        (ports(json!([{"port": 0}])), "spec.ports[0].port", "0"),
        (ports(json!([{"port": "http"}])), "spec.ports[0].port", "string \"http\""),
        (ports(json!([{"port": 80, "protocol": "QUIC"}])), "spec.ports[0].protocol", "\"QUIC\""),
        (ports(json!([{"port": 80}, {"name": "b", "port": 81}])), "spec.ports[0].name", "\"\""),
        (ports(json!([{"name": "a", "port": 80}, {"name": "a", "port": 81}])), "spec.ports[1].name", "\"a\""),
        (ports(json!([{"name": "a", "port": 80}, {"name": "b", "port": 80}])), "spec.ports[1].port", "80"),
        (ports(json!([])), "spec.ports", "nothing"),
        (service(json!({"clusterIP": "10.96.0", "ports": [{"port": 80}]})), "spec.clusterIP", "\"10.96.0\""),
        (
            service(json!({"clusterIP": "127.0.0.1", "ports": [{"port": 80}]})),
            "spec.clusterIP",
            "loopback 127.0.0.1",
        ),
        (
            service(json!({"clusterIPs": ["10.0.0.1", "10.0.0.2"], "ports": [{"port": 80}]})),
            "spec.clusterIPs[1]",
            "\"10.0.0.2\"",
        ),
        (service(json!({"type": "Magic"})), "spec.type", "\"Magic\""),
        (json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "W"}}), "metadata.name", "\"W\""),
        (json!({"apiVersion": "v1", "kind": "Service", "metadata": {}}), "metadata.name", "nothing"),
        (json!({"apiVersion": "v1"}), "kind", "nothing"),
        (json!(["a"]), "", "a list"),
    ];
    for (document, field, found) in cases {
        let invalid = refused(&document);
        assert_eq!((invalid.field.as_str(), invalid.found.as_str()), (field, found), "{invalid}");
    }
}

#[test]
fn an_affinity_timeout_is_three_hours_or_what_the_object_says_within_a_day() {
    let bare = json!({"clusterIP": "10.0.0.1", "ports": [{"port": 80}], "sessionAffinity": "ClientIP"});
    assert_eq!(good_service(&service(bare)).affinity, Some(10_800));
    let with = |seconds: i64| {
        service(json!({
            "clusterIP": "10.0.0.1", "ports": [{"port": 80}], "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
        }))
    };
    assert_eq!(good_service(&with(86_400)).affinity, Some(86_400));
    for bad in [0, -1, 86_401, i64::MAX] {
        assert_eq!(refused(&with(bad)).field, "spec.sessionAffinityConfig.clientIP.timeoutSeconds");
    }
}

#[test]
fn an_sctp_port_costs_only_itself() {
    let document = service(json!({"clusterIP": "10.0.0.1", "ports": [
        {"name": "a", "port": 80}, {"name": "b", "port": 81, "protocol": "SCTP"},
    ]}));
    let reading = reading(&document);
    let Object::Service(service) = reading.object else { panic!("not a service") };
    assert_eq!(service.ports.len(), 1);
    assert_eq!(reading.warnings.len(), 1);
    assert_eq!(reading.warnings[0].field, "spec.ports[1].protocol");
}

#[test]
fn an_external_address_that_is_none_costs_only_itself() {
    let externals = json!(["192.0.2.7", "127.0.0.1", "2001:db8::7", "somewhere"]);
    let document = service(json!({
        "clusterIP": "10.0.0.1", "ports": [{"port": 80}], "externalIPs": externals,
    }));
    let reading = reading(&document);
    let Object::Service(service) = reading.object else { panic!("not a service") };
    let kept: Vec<_> = service.external_ips.iter().map(ToString::to_string).collect();
    assert_eq!(kept, ["192.0.2.7", "2001:db8::7"]);
    let fields: Vec<_> = reading.warnings.iter().map(|warning| warning.field.as_str()).collect();
    assert_eq!(fields, ["spec.externalIPs[1]", "spec.externalIPs[3]"]);
}

#[test]
fn the_service_of_a_slice_is_named_by_its_label_even_if_the_slice_is_refused() {
    let mut document = slice(json!([]));
    document["addressType"] = json!("IPX");
    let key = refused_key(&document);
    assert_eq!(service_of(&key, &document), Some(ServiceKey::new("shop", "web")));
    document["metadata"]["labels"] = json!({"kubernetes.io/service-name": "No Name"});
    assert_eq!(service_of(&key, &document), None);
    let key = ObjectKey::new(Kind::Service, "shop", "web");
    assert_eq!(service_of(&key, &Value::Null), Some(ServiceKey::new("shop", "web")));
}

#[test]
fn an_endpoint_that_points_at_the_node_itself_is_left_out_and_the_rest_kept() {
    let bad = ["127.0.0.1", "169.254.169.254", "224.0.0.1", "0.0.0.0", "255.255.255.255", "::1", "10.0.0.1x"];
    let mut endpoints: Vec<Value> = bad.iter().map(|ip| json!({"addresses": [ip]})).collect();
    endpoints.push(json!({"addresses": []}));
    endpoints.push(json!({"addresses": ["10.244.1.5", "127.0.0.1"]}));
    let reading = reading(&slice(json!(endpoints)));
    let Object::EndpointSlice(slice) = reading.object else { panic!("not a slice") };
    assert_eq!(slice.endpoints.len(), 1);
    assert_eq!(slice.endpoints[0].addr.to_string(), "10.244.1.5");
    let fields: Vec<_> = reading.warnings.iter().map(|w| w.field.as_str()).collect();
    assert_eq!(fields.len(), bad.len() + 1);
    assert!(
        fields.iter().enumerate().all(|(i, f)| *f == format!("endpoints[{i}].addresses[0]")),
        "{fields:?}"
    );
}

#[test]
fn a_slice_of_a_million_endpoints_is_cut_and_says_so() {
    let endpoint = |number: u32| json!({"addresses": [std::net::Ipv4Addr::from_bits((10 << 24) + 1 + number).to_string()]});
    let many = |count: u32| slice(Value::Array((0..count).map(endpoint).collect()));
    assert!(reading(&many(1000)).warnings.is_empty(), "as many as the API server allows");
    let reading = reading(&many(1_000_000));
    let Object::EndpointSlice(slice) = reading.object else { panic!("not a slice") };
    assert_eq!((slice.endpoints.len(), slice.endpoints.capacity() < 2000), (1000, true));
    let [warning] = &reading.warnings[..] else { panic!("{:?}", reading.warnings) };
    assert_eq!((warning.field.as_str(), warning.found.as_str()), ("endpoints", "1000000"));
    assert!(warning.expected.contains("another slice"), "{warning}");
}

#[test]
fn absent_conditions_mean_ready_serving_and_not_terminating() {
    let state = |conditions: Value| {
        let slice = good_slice(&slice(json!([{"addresses": ["10.0.0.1"], "conditions": conditions}])));
        (slice.endpoints[0].ready, slice.endpoints[0].serving, slice.endpoints[0].terminating)
    };
    assert_eq!(state(Value::Null), (true, true, false));
    assert_eq!(state(json!({})), (true, true, false));
    assert_eq!(state(json!({"ready": false})), (false, false, false));
    assert_eq!(state(json!({"ready": false, "serving": true, "terminating": true})), (false, true, true));
}

#[test]
fn null_lists_are_empty_and_unknown_fields_are_ignored() {
    let mut document = slice(Value::Null);
    document["ports"] = Value::Null;
    document["metadata"]["annotations"] = Value::Null;
    document["metadata"]["managedFields"] = json!([{"manager": 7}]);
    let slice = good_slice(&document);
    assert!(slice.ports.is_empty() && slice.endpoints.is_empty());
    assert_eq!(slice.family, Some(Family::V4));
    assert_eq!(slice.service, Some(ServiceKey::new("shop", "web")));
}

#[test]
fn a_service_of_another_api_group_is_another_kind() {
    let mut document = simple_service();
    document["apiVersion"] = json!("serving.knative.dev/v1");
    assert_eq!(read(&document), Ok(None));
    document["apiVersion"] = json!("v2");
    assert_eq!(refused(&document).field, "apiVersion");
}

#[test]
fn headless_services_and_those_of_other_proxies_are_marked() {
    assert!(!good_service(&simple_service()).skipped);
    assert!(good_service(&service(json!({"clusterIP": "None"}))).skipped);
    for label in ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"] {
        let mut document = simple_service();
        document["metadata"]["labels"] = json!({label: ""});
        assert!(good_service(&document).skipped, "{label}");
    }
}

#[test]
fn source_ranges_come_from_the_annotation_too_and_all_of_them_are_kept() {
    let mut document = simple_service();
    let annotation = "service.beta.kubernetes.io/load-balancer-source-ranges";
    document["metadata"]["annotations"] = json!({annotation: "10.1.0.0/16, 192.0.2.1/32"});
    assert_eq!(good_service(&document).source_ranges.len(), 2);
    document["metadata"]["annotations"] = json!({annotation: "10.1.0.0/16,0.0.0.0/0"});
    assert_eq!(
        good_service(&document).source_ranges.len(),
        2,
        "one that allows all does not speak for the other family"
    );
    document["metadata"]["annotations"] = json!({annotation: "10.1.0.0"});
    assert!(refused(&document).field.starts_with("metadata.annotations["));
}

#[test]
fn a_node_gives_its_internal_addresses_and_prefixes() {
    let document = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "node-a.example", "labels": {"topology.kubernetes.io/zone": "z1"}},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:244:1::/64"]},
        "status": {"addresses": [
            {"type": "Hostname", "address": "node-a"}, {"type": "InternalIP", "address": "192.168.1.11"},
            {"type": "ExternalIP", "address": "203.0.113.9"}, {"type": "InternalIP", "address": "fd00:1::11"},
        ]},
    });
    let Object::Node(node) = reading(&document).object else { panic!("not a node") };
    assert_eq!(node.primary(Family::V4).unwrap().to_string(), "192.168.1.11");
    assert_eq!(node.primary(Family::V6).unwrap().to_string(), "fd00:1::11");
    assert_eq!(node.addresses.len(), 2);
    assert_eq!(node.external, ["203.0.113.9".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(node.pod_cidrs.len(), 2);
    assert_eq!(node.zone.as_deref(), Some("z1"));
}

#[test]
fn a_pod_prefix_that_would_swallow_the_network_is_refused() {
    for bad in ["0.0.0.0/0", "10.0.0.0/7", "::/0", "127.0.0.0/8", "10.0.0.0", "x/24"] {
        let document = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "spec": {"podCIDRs": [bad]}});
        assert_eq!(refused(&document).field, "spec.podCIDRs[0]", "{bad}");
    }
}

#[test]
fn a_pod_gives_its_node_and_addresses() {
    let document = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"nodeName": "a", "hostNetwork": true},
        "status": {"phase": "Failed", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
    });
    let Object::Pod(pod) = reading(&document).object else { panic!("not a pod") };
    assert_eq!(pod.key.as_str(), "default/p");
    assert_eq!(pod.node.as_deref(), Some("a"));
    assert_eq!(pod.ips.len(), 2);
    assert!(pod.host_network && pod.finished);
}

#[test]
fn a_long_hostile_value_is_shortened_in_the_message() {
    let mut document = simple_service();
    document["spec"]["type"] = json!("x".repeat(100_000));
    assert!(refused(&document).to_string().len() < 400);
}

#[test]
fn a_health_check_port_is_a_port_or_none() {
    let with = |port: Value| {
        service(json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}], "healthCheckNodePort": port}))
    };
    assert_eq!(good_service(&simple_service()).health_check_node_port, 0);
    for (port, expected) in [(json!(null), 0), (json!(0), 0), (json!(30_123), 30_123)] {
        assert_eq!(good_service(&with(port)).health_check_node_port, expected);
    }
    for port in [json!(-1), json!(65_536), json!("30123")] {
        assert_eq!(refused(&with(port)).field, "spec.healthCheckNodePort");
    }
}

#[test]
fn a_node_tells_its_taints_and_whether_it_is_being_deleted() {
    let node = |metadata: Value, spec: Value| {
        let document = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec});
        match reading(&document).object {
            Object::Node(node) => node,
            other => panic!("{other:?}"),
        }
    };
    let plain = node(json!({"name": "a"}), json!({"taints": null}));
    assert!(plain.taints.is_empty() && !plain.deleting);
    let leaving = node(
        json!({"name": "a", "deletionTimestamp": "2025-01-31T12:00:00Z"}),
        json!({"taints": [{"key": "one", "effect": "NoSchedule"}, {"key": "two", "value": "x"}]}),
    );
    assert_eq!(leaving.taints.iter().map(|key| &**key).collect::<Vec<_>>(), ["one", "two"]);
    assert!(leaving.deleting);
}

#[test]
fn a_slice_tells_when_its_last_change_began_unless_that_is_no_time() {
    let triggered = |value: Value| {
        let mut document = slice(json!([{"addresses": ["10.244.1.2"]}]));
        document["metadata"]["annotations"] =
            json!({"endpoints.kubernetes.io/last-change-trigger-time": value});
        let slice = good_slice(&document);
        assert_eq!(slice.endpoints.len(), 1, "the slice serves whatever the time is");
        slice.triggered.map(|time| time.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis())
    };
    assert_eq!(triggered(json!("1970-01-01T00:01:00.25Z")), Some(60_250));
    assert_eq!(triggered(json!("2024-02-29T12:00:00Z")), Some(1_709_208_000_000));
    assert_eq!(triggered(json!("2024-02-29T13:00:00.5+01:00")), Some(1_709_208_000_500));
    for no_time in [json!("yesterday"), json!("2024-02-30T12:00:00Z"), json!(17), json!(""), json!(null)] {
        assert_eq!(triggered(no_time.clone()), None, "{no_time}");
    }
}
