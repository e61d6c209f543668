//! An audit names whatever somebody else did to the tables, and nothing else. Needs root.

use std::net::IpAddr;
use std::sync::Arc;

use portolan_abi::{Config, Frontend, FrontendKey, SourceKey, Words};
use portolan_apply::{Applier, Difference, audit};
use portolan_model::{Family, Protocol, ServiceKey};
use portolan_node::{Object, Sizes, Tables};
use portolan_plan::{BackendAddr, FrontendAddr, NodePlan, PortName, Scope, ServicePlan, ServicePort, Why};

/// Does something to the tables that the agent would not.
type Spoil<'a> = &'a dyn Fn(&mut Tables);
type Services = Vec<(ServiceKey, Arc<ServicePlan>)>;

const NODE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 11));
const SECOND: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 111));
const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 12));

/// Services with everything that a plan can have: a ClusterIP, a NodePort, a restricted load balancer address,
/// affinity, a Local set, a backend on the host itself.
fn services() -> Services {
    let service = |number: u8| {
        let key = ServiceKey::new("shop", &format!("s{number}"));
        let local = BackendAddr { addr: IpAddr::from([10, 244, 1, number]), port: 8080, local: true };
        let other = BackendAddr { addr: IpAddr::from([10, 244, 2, number]), port: 8080, local: false };
        let host = BackendAddr { addr: NODE, port: 9000, local: true };
        let address =
            |addr: Option<[u8; 4]>, port, scope| FrontendAddr { addr: addr.map(IpAddr::from), port, scope };
        let port = ServicePort {
            name: PortName {
                service: key.clone(),
                port: "http".into(),
                protocol: Protocol::Tcp,
                family: Family::V4,
            },
            frontends: vec![
                address(Some([10, 96, 0, number]), 80, Scope::ClusterIp),
                address(Some([198, 51, 100, number]), 80, Scope::LoadBalancer),
                address(None, 30_000 + u16::from(number), Scope::NodePort),
            ],
            cluster: vec![local, other, host],
            why: Why::Ready,
            local: vec![local, host],
            local_why: Why::Ready,
            internal_local: number.is_multiple_of(2),
            external_local: true,
            consistent: number == 1,
            direct: false,
            sources: (number % 2 == 1).then(|| vec!["203.0.113.0/24".parse().unwrap()]),
            affinity: Some(60),
        };
        (key, Arc::new(ServicePlan { ports: vec![port] }))
    };
    (1..=4).map(service).collect()
}

/// Of the node's two addresses one answers NodePorts.
fn node() -> NodePlan {
    NodePlan {
        addresses: vec![NODE, SECOND],
        node_ports: vec![NODE],
        peers: vec![PEER],
        ..NodePlan::default()
    }
}

fn begin(object: &Object) -> Applier {
    let mut applier = Applier::open(object.tables().unwrap()).unwrap();
    let config = Config {
        node_v4: Words::<1>::from_octets([192, 0, 2, 11]),
        node_v6: Words::ZERO,
        service_ifindex: 0,
        masquerade_first: 10_240,
        masquerade_count: 100,
        nodeport_first: 30_000,
        nodeport_last: 32_767,
        seed: 1,
    };
    applier.set_node(config, &node()).unwrap();
    let changes: Vec<_> = services().into_iter().map(|(key, plan)| (key, Some(plan))).collect();
    applier.apply(&changes).unwrap();
    applier.sweep().unwrap();
    applier
}

fn found(tables: &Tables) -> Vec<Difference> {
    let services = services();
    audit(tables, services.iter().map(|(key, plan)| (key, &**plan)), &node()).unwrap()
}

fn frontend(last: u8) -> FrontendKey<Words<1>> {
    FrontendKey { addr: Words::<1>::from_octets([10, 96, 0, last]), port: 80_u16.to_be(), proto: 6, zero: 0 }
}

#[test]
fn tables_that_the_applier_wrote_have_no_difference() {
    let object = Object::load(None, Sizes::small()).expect("loading the programs needs root");
    let applier = begin(&object);
    assert_eq!(found(applier.tables()), []);
}

#[test]
fn whatever_is_done_to_a_table_is_named_and_a_new_applier_mends_it() {
    let object = Object::load(None, Sizes::small()).expect("loading the programs needs root");
    let spoil: [(&str, Spoil<'_>); 7] = [
        ("10.96.0.1:80 TCP", &|t| assert!(t.v4.frontends.remove(&frontend(1)).unwrap())),
        ("10.96.0.9:80 TCP", &|t| {
            t.v4.frontends.insert(&frontend(9), &Frontend { service: 0, flags: 0 }).unwrap()
        }),
        ("address 10.96.0.2", &|t| {
            let mark = FrontendKey { port: 0, proto: 0, ..frontend(2) };
            assert!(t.v4.frontends.remove(&mark).unwrap());
        }),
        ("NodePort 30003 TCP IPv4", &|t| {
            let index = t.v4.frontends.get(&frontend(3)).unwrap().unwrap().service;
            t.services.configure(index, 0, 60);
        }),
        ("10.96.0.4:80 TCP", &|t| {
            let ring = t.services.read(t.v4.frontends.get(&frontend(4)).unwrap().unwrap().service).cluster;
            let other = t.slab.read(ring.offset());
            t.slab.fill(ring.offset() + 1, &[other]);
        }),
        ("198.51.100.1:80 TCP", &|t| {
            let index = t.v4.frontends.get(&frontend(1)).unwrap().unwrap().service;
            let key = SourceKey::new(24, index, Words::<1>::from_octets([203, 0, 113, 0]));
            assert!(t.v4.sources.remove(&key).unwrap());
        }),
        ("10.96.0.1:80 TCP", &|t| {
            let service = t.services.read(t.v4.frontends.get(&frontend(1)).unwrap().unwrap().service);
            let index = t.slab.read(service.cluster.offset());
            let backend = t.v4.backends.read(index);
            t.v4.backends.write(index, portolan_abi::Backend { flags: 0, ..backend });
        }),
    ];
    for (place, spoil) in spoil {
        drop(begin(&object));
        let mut tables = object.tables().unwrap();
        spoil(&mut tables);
        let differences = found(&tables);
        assert!(differences.iter().any(|it| it.place == place), "{place} is not among {differences:#?}");
        let mended = begin(&object);
        assert_eq!(found(mended.tables()), [], "after {place}");
    }
}
