//! Flows against the desired state, without any change of it. Needs root.

mod support;

use std::net::IpAddr;
use std::sync::Arc;

use portolan_abi::{Flow, FlowKey, Words, exit};
use portolan_apply::{Applier, collect, ticks};
use portolan_core::wire::proto;
use portolan_model::{Protocol, ServiceKey};
use portolan_node::{Object, Sizes};
use portolan_plan::{BackendAddr, FrontendAddr, Scope, ServicePlan, ServicePort};

fn key(protocol: Protocol) -> ServiceKey {
    ServiceKey::new("shop", &protocol.to_string().to_lowercase())
}

/// A service with one backend.
fn plan(protocol: Protocol) -> Arc<ServicePlan> {
    let frontend =
        FrontendAddr { addr: Some(IpAddr::from([10, 96, 0, 1])), port: 53, scope: Scope::ClusterIp };
    Arc::new(ServicePlan {
        ports: vec![ServicePort {
            frontends: vec![frontend],
            cluster: vec![BackendAddr { addr: IpAddr::from([10, 244, 1, 1]), port: 53, local: false }],
            ..support::port(key(protocol), "dns", protocol)
        }],
    })
}

/// The entry of a client's flow through a service.
fn flow(client: u8, protocol: u8, service: u32, backend: u32) -> (FlowKey<Words<1>>, Flow<Words<1>>) {
    let client = Words::<1>::from_octets([10, 244, 2, client]);
    let vip = Words::<1>::from_octets([10, 96, 0, 1]);
    let key = FlowKey { src: client, dst: vip, ports: 7, proto: protocol.into() };
    let flow = Flow {
        src: client,
        dst: Words::<1>::from_octets([10, 244, 1, 1]),
        ports: 7,
        ifindex: 1,
        mac: [0; 3],
        exit: exit::UPLINK,
        state: 0,
        seen: ticks(),
        service,
        backend,
        from_ifindex: 2,
        from_mac: [0; 3],
        from: exit::UPLINK,
        zero: 0,
    };
    (key, flow)
}

#[test]
fn a_udp_flow_to_a_foreign_backend_goes_within_a_period_though_nothing_changed() {
    let object = Object::load(None, Sizes::small()).expect("loading the programs needs root");
    let mut applier = Applier::open(object.tables().unwrap()).unwrap();
    let both = [Protocol::Udp, Protocol::Tcp].map(|protocol| (key(protocol), Some(plan(protocol))));
    applier.apply(&both).unwrap();
    applier.sweep().unwrap();
    applier.collect(ticks()).unwrap();

    let index = |protocol: Protocol| {
        let mut services = applier.services();
        services
            .find(|(name, ..)| **name == key(protocol))
            .map(|(.., ports)| (ports[0].index, ports[0].backends[0].0))
    };
    let (udp, own) = index(Protocol::Udp).unwrap();
    let (tcp, _) = index(Protocol::Tcp).unwrap();
    let (foreign, gone) = (own + 1, 900);
    let flows = [
        flow(1, proto::UDP, udp, own),
        flow(2, proto::UDP, udp, foreign),
        flow(3, proto::UDP, gone, own),
        flow(4, proto::TCP, tcp, foreign),
    ];
    let family = object.tables().unwrap().v4;
    for (key, flow) in &flows {
        family.flows.insert(key, flow).unwrap();
    }
    let left = || {
        let mut left: Vec<u8> =
            family.flows.dump().unwrap().iter().map(|(key, _)| key.src.octets()[3]).collect();
        left.sort_unstable();
        left
    };
    applier.collect(ticks()).unwrap();
    assert_eq!(left(), [1, 2, 3, 4], "no change points to them");

    applier.suspect_flows();
    let stale = applier.take_stale();
    collect(applier.tables(), &stale, ticks()).unwrap();
    assert_eq!(left(), [1, 4], "the flow of a served backend and that of TCP stay");
}
