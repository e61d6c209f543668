use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use super::*;
use crate::api::{CidrView, FrontendView};
use crate::health::Health;

fn status() -> Status {
    Status {
        version: "0.1.0".into(),
        node: "node1".into(),
        ready: true,
        attach_mode: "tcx".into(),
        external_mode: "snat".into(),
        services: 2,
        pods: 3,
        pod_cidrs: vec![CidrView {
            cidr: "fd00:10:244:1::/64".into(),
            used: "3".into(),
            capacity: "18446744073709551615".into(),
        }],
        tables: [("slots".into(), (16, 16_384))].into(),
        refused_documents: vec!["a".into(), "b".into()],
        last_sync_microseconds: 1_500,
        syncs: 17,
        internal_without_local: 2,
        external_without_local: 5,
        bgp_sessions: [("tor1".into(), true), ("tor2".into(), false)].into(),
        bgp_routes: 4,
        l2_owned: 6,
        ..Status::default()
    }
}

fn services() -> Vec<ServiceView> {
    let port = |name: &str, flows| PortView {
        name: name.into(),
        protocol: "TCP".into(),
        family: "IPv4".into(),
        frontends: vec![FrontendView { kind: "ClusterIP".into(), address: None, port: 80 }],
        backends: Vec::new(),
        flows,
        ..PortView::default()
    };
    let service = |name: &str, ports| ServiceView {
        namespace: "default".into(),
        name: name.into(),
        ports,
        ..ServiceView::default()
    };
    vec![service("web", vec![port("http", 5), port("admin", 7)]), service("bare", vec![port("", 1)])]
}

fn outcomes() -> Vec<u64> {
    let mut outcomes = vec![0; counter::ALL.len()];
    outcomes[counter::TO_POD as usize] = 41;
    outcomes[counter::DROP_TTL as usize] = 7;
    outcomes
}

/// Samples by name and labels. Fails on anything that the text format does not allow.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut kinds = BTreeMap::new();
    let mut samples = BTreeMap::new();
    for line in text.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(kinds.insert(name.to_owned(), kind), None, "{line}: described twice");
        } else if !line.starts_with("# HELP ") {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            let parts = ["_bucket", "_sum", "_count"].iter().filter_map(|part| name.strip_suffix(part));
            let described = kinds.contains_key(name)
                || parts.into_iter().any(|base| kinds.get(base) == Some(&"histogram"));
            assert!(described, "{line}: not described before");
            let known = samples.insert(series.to_owned(), value.parse().unwrap());
            assert_eq!(known, None, "{line}: there twice");
        }
    }
    samples
}

#[test]
fn every_number_of_the_agent_has_its_series() {
    let samples = parse(&Metrics::new().render(&status(), &services(), &outcomes()));
    let expected = [
        ("portolan_packets_total{outcome=\"to-pod\"}", 41.0),
        ("portolan_packets_total{outcome=\"ttl\"}", 7.0),
        ("portolan_drops_total{reason=\"ttl\"}", 7.0),
        ("portolan_drops_total{reason=\"no-route\"}", 0.0),
        ("portolan_build_info{version=\"0.1.0\",node=\"node1\",attach_mode=\"tcx\"}", 1.0),
        ("portolan_ready", 1.0),
        ("portolan_services", 2.0),
        ("portolan_pods", 3.0),
        ("portolan_syncs_total", 17.0),
        ("portolan_last_sync_seconds", 0.0015),
        ("portolan_bgp_session_up{peer=\"tor1\"}", 1.0),
        ("portolan_bgp_session_up{peer=\"tor2\"}", 0.0),
        ("portolan_bgp_routes", 4.0),
        ("portolan_l2_owned", 6.0),
        ("portolan_refused_documents", 2.0),
        ("kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\"}", 2.0),
        ("kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\"}", 5.0),
        ("portolan_table_entries{table=\"slots\"}", 16.0),
        ("portolan_table_capacity{table=\"slots\"}", 16_384.0),
        ("portolan_pod_addresses_used{cidr=\"fd00:10:244:1::/64\"}", 3.0),
        ("portolan_pod_addresses_capacity{cidr=\"fd00:10:244:1::/64\"}", 18_446_744_073_709_551_615.0),
    ];
    for (series, value) in expected {
        assert_eq!(samples.get(series), Some(&value), "{series} in {samples:#?}");
    }
    assert!(!samples.contains_key("portolan_drops_total{reason=\"to-pod\"}"), "what arrived is no drop");
}

#[test]
fn every_port_of_a_service_has_its_own_series() {
    let samples = parse(&Metrics::new().render(&status(), &services(), &outcomes()));
    for (service, port, flows) in [("web", "http", 5.0), ("web", "admin", 7.0), ("bare", "80", 1.0)] {
        let series = format!(
            "portolan_service_flows_total{{namespace=\"default\",service=\"{service}\",port=\"{port}\",\
             protocol=\"TCP\",family=\"IPv4\"}}"
        );
        assert_eq!(samples.get(&series), Some(&flows), "{series} in {samples:#?}");
    }
}

#[test]
fn syncs_are_counted_under_the_names_of_kube_proxy() {
    let metrics = Metrics::new();
    let prefix = "kubeproxy_sync_proxy_rules";
    let read = |name: &str| parse(&metrics.render(&status(), &[], &[]))[&format!("{prefix}_{name}")];
    assert_eq!(read("last_timestamp_seconds"), 0.0);
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    metrics.observe_sync(Duration::from_micros(150));
    metrics.observe_sync(Duration::from_secs(60));
    metrics.count_changes(3);
    metrics.count_endpoint_changes(2);
    metrics.count_endpoint_changes(1);
    assert_eq!(read("duration_seconds_count"), 2.0);
    assert_eq!(read("duration_seconds_bucket{le=\"0.0001\"}"), 0.0);
    assert_eq!(read("duration_seconds_bucket{le=\"0.0002\"}"), 1.0);
    assert_eq!(read("duration_seconds_bucket{le=\"+Inf\"}"), 2.0);
    assert!(read("last_timestamp_seconds") >= before);
    assert_eq!(read("service_changes_total"), 3.0);
    assert_eq!(read("endpoint_changes_total"), 3.0);
}

#[test]
fn changes_that_wait_and_how_long_they_took_have_the_names_of_kube_proxy() {
    let metrics = Metrics::new();
    let text = || metrics.render(&status(), &[], &[]);
    let read = |name: &str| parse(&text())[&format!("kubeproxy_{name}")];
    assert_eq!(read("sync_proxy_rules_last_queued_timestamp_seconds"), 0.0);
    let before = seconds_now();
    metrics.observe_queued();
    assert!(read("sync_proxy_rules_last_queued_timestamp_seconds") >= before);

    let now = SystemTime::now();
    metrics.observe_network_programming(now - Duration::from_secs(30));
    // The clock of the node where it began is ahead of ours.
    metrics.observe_network_programming(now + Duration::from_secs(3600));
    let bucket = |le: &str| read(&format!("network_programming_duration_seconds_bucket{{le=\"{le}\"}}"));
    assert_eq!((bucket("0.25"), bucket("29.0"), bucket("31.0"), bucket("+Inf")), (1.0, 1.0, 2.0, 2.0));
    let sum = read("network_programming_duration_seconds_sum");
    assert!((30.0..31.0).contains(&sum), "{sum}");
    let bounds: Vec<f64> = network_programming_buckets().collect();
    assert_eq!((bounds.len(), bounds[79]), (80, 300.0));
    assert!(bounds.is_sorted_by(|a, b| a < b));
}

#[test]
fn what_could_not_be_read_is_absent_instead_of_zero() {
    let samples = parse(&Metrics::new().render(&status(), &[], &[]));
    assert!(!samples.keys().any(|series| series.starts_with("portolan_packets")), "{samples:#?}");
}

/// What the server sends back for these bytes, until it closes.
fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

async fn served() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let health = Arc::new(Health::new(true));
    tokio::spawn(serve(listener, health, || std::future::ready("portolan_up 1\n".to_owned())));
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_port_answers_scrapers_and_probes() {
    let address = served().await;
    let ask = async |method: &str, path: &str| {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        tokio::task::spawn_blocking(move || exchange(address, &request)).await.unwrap()
    };
    let metrics = ask("GET", "/metrics").await;
    assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
    assert!(metrics.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{metrics}");
    assert!(metrics.ends_with("\r\n\r\nportolan_up 1\n"), "{metrics}");
    assert!(ask("GET", "/proxyMode").await.ends_with("\r\n\r\nportolan"));
    let healthz = ask("GET", "/healthz").await;
    assert!(healthz.starts_with("HTTP/1.1 200 ") && healthz.ends_with("\"nodeEligible\":true}"), "{healthz}");
    assert!(ask("HEAD", "/metrics").await.ends_with("\r\n\r\n"), "a head has no body");
    assert!(ask("GET", "/nosuch").await.starts_with("HTTP/1.1 404 "));
    let refused = ask("POST", "/metrics").await;
    assert!(refused.starts_with("HTTP/1.1 405 ") && refused.contains("Allow: GET, HEAD\r\n"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_half_a_request_keeps_nobody_waiting_forever() {
    let address = served().await;
    // More than are served at a time, and none of them ever complete their request.
    let stalled: Vec<TcpStream> = (0..24)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
            stream
        })
        .collect();
    let scrape = tokio::task::spawn_blocking(move || {
        exchange(address, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    });
    let reply =
        tokio::time::timeout(Duration::from_secs(30), scrape).await.expect("an answer in time").unwrap();
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    drop(stalled);
}

#[test]
fn every_metric_is_explained_to_operators() {
    let operations = include_str!("../../../../docs/operations.md");
    let metrics = Metrics::new();
    metrics.count_healthz(200);
    metrics.count_livez(200);
    let text = metrics.render(&status(), &services(), &outcomes());
    let names: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(names.len() > 20, "{names:?}");
    let silent: Vec<_> = names.iter().filter(|name| !operations.contains(&format!("`{name}`"))).collect();
    assert!(silent.is_empty(), "docs/operations.md says nothing of {silent:?}");
}
