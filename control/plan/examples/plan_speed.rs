//! How long planning takes: `cargo run --release -p portolan-plan --example plan_speed [SERVICES]`.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use portolan_model::{
    Endpoint, EndpointSlice, Event, Family, NamespacedName, Object, Port, Protocol, Service, ServiceType,
    SlicePort, Store,
};
use portolan_plan::{Extent, Planner};
use smallvec::smallvec;

const ENDPOINTS: u32 = 3;
const NODES: u32 = 100;
const ROUNDS: usize = 7;

fn main() {
    let services = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let started = Instant::now();
    let mut store = Store::default();
    for i in 0..services {
        store.apply(Event::Upsert(Object::Service(service(i))));
        store.apply(Event::Upsert(Object::EndpointSlice(slice(i, 8080))));
    }
    println!("{services} services x {ENDPOINTS} endpoints into the store: {:?}", started.elapsed());

    let mut planner = Planner::new("node-0");
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..ROUNDS {
        planner = Planner::new("node-0");
        let started = Instant::now();
        let changes = planner.plan(&store, Extent::All);
        times.push(started.elapsed());
        assert_eq!(changes.services.len(), services as usize);
    }
    // The first is the agent's start; the later ones also pay for a heap in pieces.
    let first = times[0];
    times.sort_unstable();
    println!("plan(All), new planner: first {first:?}, median of {ROUNDS} {:?}", times[ROUNDS / 2]);

    let started = Instant::now();
    let changes = planner.plan(&store, Extent::All);
    assert!(changes.services.is_empty());
    println!("plan(All), nothing changed: {:?}", started.elapsed());

    let touched = store.apply(Event::Upsert(Object::EndpointSlice(slice(services / 2, 9090))));
    let started = Instant::now();
    let changes = planner.plan(&store, Extent::Touched(&touched));
    assert_eq!(changes.services.len(), 1);
    println!("plan(Touched), one slice changed: {:?}", started.elapsed());
}

fn service(i: u32) -> Service {
    Service {
        key: NamespacedName::new("default", &format!("service-{i}")),
        created: None,
        kind: ServiceType::ClusterIp,
        skipped: false,
        cluster_ips: smallvec![IpAddr::V4(Ipv4Addr::from_bits(0x0a60_0000 + i))],
        external_ips: Vec::new(),
        ingress_ips: Vec::new(),
        load_balancer: None,
        source_ranges: Vec::new(),
        ports: smallvec![Port { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 }],
        internal_local: false,
        external_local: false,
        affinity: None,
        health_check_node_port: 0,
    }
}

fn slice(i: u32, port: u16) -> EndpointSlice {
    let endpoint = |n: u32| Endpoint {
        addr: IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + i * ENDPOINTS + n)),
        ready: true,
        serving: true,
        terminating: false,
        node: Some(format!("node-{}", (i + n) % NODES).into()),
        hints: None,
    };
    EndpointSlice {
        key: NamespacedName::new("default", &format!("service-{i}-abcde")),
        service: Some(NamespacedName::new("default", &format!("service-{i}"))),
        family: Some(Family::V4),
        ports: smallvec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port }],
        endpoints: (0..ENDPOINTS).map(endpoint).collect(),
        triggered: None,
    }
}
