//! An audit names whatever somebody else did to the tables, and nothing else. Needs root.

mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use portolan_abi::{
    Backend, Config, Endpoint, Frontend, FrontendKey, SourceKey, Words, endpoint_flag, frontend_flag,
};
use portolan_apply::{Applier, Difference, audit, audit_pods};
use portolan_model::{Protocol, ServiceKey};
use portolan_node::{Object, Sizes, Tables};
use portolan_plan::{BackendAddr, FrontendAddr, NodePlan, Scope, ServicePlan, ServicePort};

/// Does something to the tables that the agent would not.
type Spoil<'a> = &'a dyn Fn(&mut Tables);
type Services = Vec<(ServiceKey, Arc<ServicePlan>)>;

const NODE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 11));
const SECOND: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 111));
const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 12));
const CONFIG: Config = Config {
    node_v4: Words::<1>::from_octets([192, 0, 2, 11]),
    node_v6: Words::ZERO,
    service_ifindex: 7,
    masquerade_first: 10_240,
    masquerade_count: 100,
    nodeport_first: 30_000,
    nodeport_last: 32_767,
    seed: 1,
    overlay_ifindex: 0,
    overlay_id: 0,
    overlay_port: 0,
    flags: 0,
    uplinks: [0; 8],
};

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
            frontends: vec![
                address(Some([10, 96, 0, number]), 80, Scope::ClusterIp),
                address(Some([198, 51, 100, number]), 80, Scope::LoadBalancer),
                address(None, 30_000 + u16::from(number), Scope::NodePort),
            ],
            cluster: vec![local, other, host],
            local: vec![local, host],
            internal_local: number.is_multiple_of(2),
            external_local: true,
            consistent: number == 1,
            sources: (number % 2 == 1).then(|| vec!["203.0.113.0/24".parse().unwrap()]),
            affinity: Some(60),
            ..support::port(key.clone(), "http", Protocol::Tcp)
        };
        (key, Arc::new(ServicePlan { ports: vec![port] }))
    };
    (1..=4).map(service).chain([host_port()]).collect()
}

/// A port of one of the node's addresses, which stays the node's, and of loopback.
fn host_port() -> (ServiceKey, Arc<ServicePlan>) {
    let key = ServiceKey::new("shop", "hostport:web");
    let at = |addr| FrontendAddr { addr: Some(addr), port: 8088, scope: Scope::HostPort };
    let port = ServicePort {
        frontends: vec![at(IpAddr::from([127, 0, 0, 1])), at(SECOND)],
        cluster: vec![BackendAddr { addr: IpAddr::from([10, 244, 1, 9]), port: 8080, local: true }],
        ..support::port(key.clone(), "8088", Protocol::Tcp)
    };
    (key, Arc::new(ServicePlan { ports: vec![port] }))
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
    applier.set_node(CONFIG, &node()).unwrap();
    let changes: Vec<_> = services().into_iter().map(|(key, plan)| (key, Some(plan))).collect();
    applier.apply(&changes).unwrap();
    applier.sweep().unwrap();
    applier
}

fn found(tables: &Tables) -> Vec<Difference> {
    let services = services();
    audit(tables, services.iter().map(|(key, plan)| (key, &**plan)), &node(), Some(CONFIG)).unwrap()
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

/// The mark of a service's ClusterIP.
fn mark(last: u8) -> FrontendKey<Words<1>> {
    FrontendKey { port: 0, proto: 0, ..frontend(last) }
}

/// The mark of a service's load balancer address.
fn public_mark(last: u8) -> FrontendKey<Words<1>> {
    FrontendKey { addr: Words::<1>::from_octets([198, 51, 100, last]), ..mark(last) }
}

/// Index of a service.
fn index(tables: &Tables, number: u8) -> u32 {
    tables.v4.frontends.get(&frontend(number)).unwrap().unwrap().service
}

/// Has a mark name another service.
fn name_service(tables: &Tables, key: FrontendKey<Words<1>>, service: u32) {
    let value = tables.v4.frontends.get(&key).unwrap().unwrap();
    tables.v4.frontends.insert(&key, &Frontend { service, ..value }).unwrap();
}

/// Where what all frontends of a service share is seen.
macro_rules! all_of {
    (3) => {
        &["NodePort 30003 TCP IPv4", "10.96.0.3:80 TCP", "198.51.100.3:80 TCP"]
    };
    (4) => {
        &["NodePort 30004 TCP IPv4", "10.96.0.4:80 TCP", "198.51.100.4:80 TCP"]
    };
    (2) => {
        &["NodePort 30002 TCP IPv4", "10.96.0.2:80 TCP", "198.51.100.2:80 TCP"]
    };
}

const SPOILED_SERVICES: [(&[&str], Spoil<'static>); 7] = [
    (&["10.96.0.1:80 TCP"], &|t| assert!(t.v4.frontends.remove(&frontend(1)).unwrap())),
    (&["10.96.0.9:80 TCP"], &|t| {
        t.v4.frontends.insert(&frontend(9), &Frontend { service: 0, flags: 0 }).unwrap()
    }),
    (&["address 10.96.0.2"], &|t| assert!(t.v4.frontends.remove(&mark(2)).unwrap())),
    (all_of!(3), &|t| {
        let index = index(t, 3);
        t.services.configure(index, 0, 60);
    }),
    (all_of!(4), &|t| {
        let ring = t.services.read(index(t, 4)).cluster;
        let other = t.slab.read(ring.offset());
        t.slab.fill(ring.offset() + 1, &[other]);
    }),
    (&["NodePort 30001 TCP IPv4", "10.96.0.1:80 TCP", "address 198.51.100.1", "198.51.100.1:80 TCP"], &|t| {
        let key = SourceKey::new(24, index(t, 1), Words::<1>::from_octets([203, 0, 113, 0]));
        assert!(t.v4.sources.remove(&key).unwrap());
    }),
    (all_of!(2), &|t| {
        let index = t.slab.read(t.services.read(index(t, 2)).cluster.offset());
        let backend = t.v4.backends.read(index);
        t.v4.backends.write(index, Backend { flags: 0, ..backend });
    }),
];

/// What no frontend leads to.
const SPOILED_REST: [(&[&str], Spoil<'static>); 7] = [
    (&["address 192.0.2.111"], &|t| {
        let key = FrontendKey { addr: Words::<1>::from_octets([192, 0, 2, 111]), ..mark(0) };
        let value = t.v4.frontends.get(&key).unwrap().unwrap();
        let flags = value.flags | frontend_flag::NODEPORT;
        t.v4.frontends.insert(&key, &Frontend { flags, ..value }).unwrap();
    }),
    (&["node: masquerade ports"], &|t| t.config.write(0, Config { masquerade_count: 0, ..CONFIG })),
    (
        &[
            "node: IPv4 address",
            "node: IPv6 address",
            "node: interface of services",
            "node: first masquerade port",
            "node: first NodePort",
            "node: last NodePort",
            "node: seed of the flow hash",
            "node: interface of the overlay",
            "node: network of the overlay",
            "node: port of the overlay",
            "node: flags",
            "node: uplinks",
        ],
        &|t| {
            t.config.write(
                0,
                Config {
                    node_v4: Words::<1>::from_octets([192, 0, 2, 66]),
                    node_v6: Words([1, 2, 3, 4]),
                    service_ifindex: 8,
                    masquerade_first: 1,
                    masquerade_count: CONFIG.masquerade_count,
                    nodeport_first: 1,
                    nodeport_last: 2,
                    seed: 2,
                    overlay_ifindex: 9,
                    overlay_id: 1,
                    overlay_port: 4789,
                    flags: 1,
                    uplinks: [3; 8],
                },
            );
        },
    ),
    // The same ranges, of a service that is not at this address: right until that one changes.
    (&["address 198.51.100.1"], &|t| name_service(t, public_mark(1), index(t, 3))),
    (&["address 10.96.0.2"], &|t| name_service(t, mark(2), 900)),
    (&["IPv4 source ranges of service #900, which has no frontend"], &|t| {
        let key = SourceKey::new(24, 900, Words::<1>::from_octets([203, 0, 113, 0]));
        t.v4.sources.insert(&key, &1).unwrap();
    }),
    (&["IPv6 source ranges of service #900, which has no frontend"], &|t| {
        t.v6.sources.insert(&SourceKey::new(32, 900, Words([1, 0, 0, 0])), &1).unwrap();
    }),
];

#[test]
fn whatever_is_done_to_a_table_is_named_and_nothing_else_and_a_new_applier_mends_it() {
    let object = Object::load(None, Sizes::small()).expect("loading the programs needs root");
    for (expected, spoil) in SPOILED_SERVICES.into_iter().chain(SPOILED_REST) {
        drop(begin(&object));
        let mut tables = object.tables().unwrap();
        spoil(&mut tables);
        let differences = found(&tables);
        let places: Vec<&str> = differences.iter().map(|it| it.place.as_str()).collect();
        assert_eq!(places, expected, "{differences:#?}");
        let mended = begin(&object);
        assert_eq!(found(mended.tables()), [], "after {expected:?}");
    }
}

#[test]
fn a_pods_record_that_is_missing_strange_or_another_is_named() {
    let object = Object::load(None, Sizes::small()).expect("loading the programs needs root");
    let tables = object.tables().unwrap();
    let endpoint = Endpoint { ifindex: 5, mac: [1, 2, 3], flags: endpoint_flag::LIVE };
    let [right, missing, other, strange] = [1, 2, 3, 4].map(|last| [10, 244, 1, last]);
    let wanted: BTreeMap<IpAddr, Endpoint> =
        [right, missing, other].map(|addr| (IpAddr::from(addr), endpoint)).into();
    for addr in [right, strange] {
        tables.v4.endpoints.insert(&Words::<1>::from_octets(addr), &endpoint).unwrap();
    }
    let elsewhere = Endpoint { ifindex: 6, ..endpoint };
    tables.v4.endpoints.insert(&Words::<1>::from_octets(other), &elsewhere).unwrap();
    tables.v6.endpoints.insert(&Words([0xfd, 0, 0, 1]), &endpoint).unwrap();

    let differences = audit_pods(&tables, &wanted).unwrap();
    let sides = |it: &Difference| (it.place.clone(), it.desired.is_some(), it.kernel.is_some());
    let found: Vec<_> = differences.values().map(sides).collect();
    assert_eq!(
        found,
        [
            ("pod 10.244.1.2".to_owned(), true, false),
            ("pod 10.244.1.3".to_owned(), true, true),
            ("pod 10.244.1.4".to_owned(), false, true),
            ("pod fd00::100:0".to_owned(), false, true),
        ]
    );
}
