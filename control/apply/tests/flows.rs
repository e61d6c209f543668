//! Flows against the desired state, without any change of it. Needs root.

mod support;

use std::net::IpAddr;
use std::sync::Arc;

use portolan_abi::{Config, Flow, FlowKey, NO_SERVICE, Words, exit, state};
use portolan_apply::{Applier, collect, ticks};
use portolan_core::wire::{join_ports, proto, swap_ports};
use portolan_model::{Protocol, ServiceKey};
use portolan_node::{Object, Sizes};
use portolan_plan::{BackendAddr, FrontendAddr, NodePlan, Realm, Scope, ServicePlan, ServicePort};

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
        beat: 0,
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

/// Services of TCP whose backends have these last octets; connections to others are reset, but for those to `kept`.
fn resetting(backends: &[u8], kept: &[u8]) -> Arc<ServicePlan> {
    let backend = |last: &u8| BackendAddr { addr: IpAddr::from([10, 244, 1, *last]), port: 53, local: false };
    let mut plan = ServicePlan::clone(&plan(Protocol::Tcp));
    plan.ports[0].cluster = backends.iter().map(backend).collect();
    plan.ports[0].kept = Some(kept.iter().map(backend).collect());
    Arc::new(plan)
}

/// Both entries of a connection with the backend of that last octet.
fn connection(service: u32, backend: u32, last: u8) -> [(FlowKey<Words<1>>, Flow<Words<1>>); 2] {
    let at = Words::<1>::from_octets([10, 244, 1, last]);
    let ports = join_ports(40_000u16.to_be(), 53u16.to_be());
    let (mut key, mut there) = flow(last, proto::TCP, service, backend);
    (key.ports, there.ports, there.dst) = (ports, ports, at);
    let back_key = FlowKey { src: at, dst: key.src, ports: swap_ports(ports), proto: key.proto };
    let back = Flow { src: key.dst, dst: key.src, ports: swap_ports(ports), state: state::REPLY, ..there };
    [(key, there), (back_key, back)]
}

#[test]
fn connections_to_a_backend_that_left_are_reset_where_the_service_says_so_and_kept_while_its_slices_name_it()
{
    let object = Object::load(None, Sizes::small()).expect("loading the programs needs root");
    let mut applier = Applier::open(object.tables().unwrap()).unwrap();
    let service = key(Protocol::Tcp);
    applier.apply(&[(service.clone(), Some(resetting(&[1, 2, 3], &[])))]).unwrap();
    applier.sweep().unwrap();
    applier.collect(ticks()).unwrap();
    let port = applier.services().next().map(|(.., ports)| ports[0].clone()).unwrap();
    let family = object.tables().unwrap().v4;
    for last in [1u8, 2, 3] {
        for (key, flow) in connection(port.index, port.backends[usize::from(last) - 1].0, last) {
            family.flows.insert(&key, &flow).unwrap();
        }
    }
    // Both directions of each connection that was reset.
    let reset = || {
        let all = family.flows.dump().unwrap();
        assert_eq!(all.len(), 6, "nothing is removed: what is removed leaks untranslated");
        let mut reset: Vec<u8> = all
            .iter()
            .filter(|(_, flow)| flow.state & state::DEPARTED != 0)
            .map(|(key, flow)| if flow.state & state::REPLY == 0 { flow.dst } else { key.src }.octets()[3])
            .collect();
        reset.sort_unstable();
        reset
    };
    let change = |applier: &mut Applier, plan| {
        applier.apply(&[(service.clone(), Some(plan))]).unwrap();
        applier.settle().unwrap();
        applier.collect(ticks()).unwrap()
    };
    assert_eq!(change(&mut applier, resetting(&[1, 2], &[3])).reset, 0, "it terminates, or is not ready");
    assert_eq!(reset(), [0u8; 0]);
    assert_eq!(change(&mut applier, resetting(&[1, 2], &[])).reset, 2, "its slice went, and no ring changed");
    assert_eq!(reset(), [3, 3]);
    assert_eq!(change(&mut applier, resetting(&[2], &[])).reset, 2);
    assert_eq!(reset(), [1, 1, 3, 3]);
    applier.suspect_flows();
    assert_eq!(applier.collect(ticks()).unwrap().reset, 0, "once is enough");

    applier.apply(&[(service.clone(), None)]).unwrap();
    applier.settle().unwrap();
    assert_eq!(applier.collect(ticks()).unwrap().reset, 2, "a service that is gone has no backend");
    assert_eq!(reset(), [1, 1, 2, 2, 3, 3]);
}

#[test]
fn a_connection_that_is_in_use_is_reset_within_a_period_though_nothing_changed() {
    let object = Object::load(None, Sizes::small()).expect("loading the programs needs root");
    let mut applier = Applier::open(object.tables().unwrap()).unwrap();
    applier.apply(&[(key(Protocol::Tcp), Some(resetting(&[1], &[])))]).unwrap();
    applier.sweep().unwrap();
    applier.collect(ticks()).unwrap();
    let port = applier.services().next().map(|(.., ports)| ports[0].clone()).unwrap();
    let family = object.tables().unwrap().v4;
    for (key, flow) in connection(port.index, port.backends[0].0, 9) {
        family.flows.insert(&key, &flow).unwrap();
    }
    assert_eq!(applier.collect(ticks()).unwrap().reset, 0, "no change points to it");
    applier.suspect_flows();
    assert_eq!(applier.collect(ticks()).unwrap().reset, 2);
}

#[test]
fn flows_go_whose_way_is_gone() {
    let object = Object::load(None, Sizes::small()).expect("loading the programs needs root");
    let mut applier = Applier::open(object.tables().unwrap()).unwrap();
    let family = object.tables().unwrap().v4;
    let (here, gone, overlay, before) = (1, 5, 6, 7);
    let peer = Words::<1>::from_octets([192, 0, 2, 2]);
    let leading = |client: u8, exit: u8, ifindex: u32, dst: Words<1>| {
        let (key, flow) = flow(client, proto::TCP, NO_SERVICE, 0);
        (key, Flow { exit, ifindex, dst, ..flow })
    };
    let (pod, outside) =
        (Words::<1>::from_octets([10, 244, 1, 1]), Words::<1>::from_octets([203, 0, 113, 10]));
    let back = |client: u8, from_ifindex: u32| {
        let (key, flow) = leading(client, exit::UPLINK, here, outside);
        (key, Flow { from_ifindex, ..flow })
    };
    let flows = [
        leading(1, exit::UPLINK, here, outside),
        leading(2, exit::UPLINK, gone, outside),
        back(3, gone),
        // By another overlay device, and past the one that there is.
        leading(4, exit::OVERLAY, overlay, pod),
        leading(5, exit::OVERLAY, before, pod),
        leading(6, exit::UPLINK, here, pod),
        // What another node asked itself.
        leading(7, exit::UPLINK, here, peer),
    ];
    let node = NodePlan {
        peers: vec![IpAddr::from([192, 0, 2, 2])],
        realms: [("10.244.1.0/24", 2), ("192.0.2.2/32", 2)]
            .map(|(prefix, last)| Realm {
                prefix: prefix.parse().unwrap(),
                node: Some(IpAddr::from([192, 0, 2, last])),
            })
            .into(),
        ..NodePlan::default()
    };
    let config = Config { overlay_ifindex: overlay, ..applier.tables().config.read(0) };
    applier.set_node(config, &node).unwrap();
    let left = || {
        let dump = family.flows.dump().unwrap();
        let mut left: Vec<u8> = dump.iter().map(|(key, _)| key.src.octets()[3]).collect();
        left.sort_unstable();
        left
    };
    for (key, flow) in &flows {
        family.flows.insert(key, flow).unwrap();
    }
    applier.collect(ticks()).unwrap();
    assert_eq!(left(), [1, 2, 3, 4, 6, 7], "nobody has said that an interface is gone");
    applier.suspect_interface(gone);
    applier.suspect_flows();
    applier.collect(ticks()).unwrap();
    assert_eq!(left(), [1, 4, 7]);
}
