//! Which backend a socket gets, decided without a kernel.

use std::net::IpAddr;

use portolan_abi::{FrontendKey, PEERS, backend_flag, frontend_flag, service_flag};
use portolan_core::socket::{Asker, Chosen, Remembered, backend, is_v4, recall, remember};
use portolan_core::{V4, V6};
use portolan_node::maps::NodeFamily;
use portolan_tests::packet::build::{Socket, proto};
use portolan_tests::packet::fixture::site::Site;
use portolan_tests::packet::memory::Memory;
use portolan_tests::packet::world::{BackendAt, Front, World};

/// A property that holds in both families.
macro_rules! in_both_families {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            both::$name::<V4>(&Site::v4());
            both::$name::<V6>(&Site::v6());
        })*
    };
}

in_both_families! {
    a_service_address_gives_a_backend_and_counts_it
    every_hash_gives_a_backend_and_all_get_some
    what_is_no_frontend_is_left_alone
    what_would_be_refused_or_dropped_is_left_alone
    what_depends_on_the_client_is_left_alone
    a_public_address_leads_inside_clients_to_all_backends
    an_internally_local_service_leads_to_the_nodes_own_backends
    a_node_port_is_at_the_nodes_addresses_and_at_the_hosts_loopback
    the_hosts_loopback_has_session_affinity
    a_socket_keeps_its_backend_while_it_is_served
    a_socket_keeps_its_backend_only_while_its_own_service_has_it
    a_memory_gives_back_what_was_put_in
}

fn key<F: NodeFamily>(to: Socket, proto: u8) -> FrontendKey<F::Addr> {
    let addr = F::of(to.0).expect("the site's addresses are of its family");
    FrontendKey { addr, port: to.1.to_be(), proto, zero: 0 }
}

type Got<F> = Option<Chosen<<F as portolan_core::Family>::Addr>>;

fn ask<F: NodeFamily>(tables: &Memory<F>, to: Socket, of_host: bool, last: Got<F>, hash: u32) -> Got<F> {
    backend::<F, _>(&key::<F>(to, proto::TCP), Asker { of_host, hash, now: 100 }, last, tables)
}

/// Where a socket is led to.
fn led<F: NodeFamily>(world: &World, to: Socket, of_host: bool) -> Option<Socket> {
    let chosen = ask(&Memory::<F>::new(world), to, of_host, None, 7)?;
    Some((F::ip(chosen.addr), u16::from_be(chosen.port)))
}

mod both {
    use super::*;

    pub(super) fn a_service_address_gives_a_backend_and_counts_it<F: NodeFamily>(site: &Site) {
        let tables = Memory::<F>::new(&site.serving(&[(site.b.addr, 8080)]));
        let chosen = ask(&tables, (site.vip, 80), false, None, 7).expect("it has a backend");
        assert_eq!((F::ip(chosen.addr), chosen.port), (site.b.addr, 8080u16.to_be()));
        let counted = [((chosen.choice.service, chosen.choice.backend), 1)];
        assert_eq!(*tables.picked.borrow(), counted.into());
    }

    pub(super) fn every_hash_gives_a_backend_and_all_get_some<F: NodeFamily>(site: &Site) {
        let all = [site.a.addr, site.b.addr, site.remote, site.node];
        let tables = Memory::<F>::new(&site.serving(&all.map(|addr| (addr, 8080))));
        let mut met: Vec<IpAddr> = Vec::new();
        for hash in (0..=u32::MAX).step_by(1 << 24).chain([u32::MAX]) {
            let chosen = ask(&tables, (site.vip, 80), false, None, hash).expect("every hash has a slot");
            met.push(F::ip(chosen.addr));
        }
        assert!(all.iter().all(|addr| met.iter().filter(|it| *it == addr).count() >= 64), "{met:?}");
    }

    pub(super) fn what_is_no_frontend_is_left_alone<F: NodeFamily>(site: &Site) {
        let world = site.serving_outside(&[(site.b.addr, 8080)]);
        let others = [(site.b.addr, 8080), (site.router, 443), (site.lb, 444), (site.node, 22)];
        for to in others.into_iter().chain([(site.a.addr, 30_443), (site.loopback, 22)]) {
            assert_eq!(led::<F>(&world, to, true), None, "{to:?}");
        }
    }

    pub(super) fn what_would_be_refused_or_dropped_is_left_alone<F: NodeFamily>(site: &Site) {
        assert_eq!(led::<F>(&site.serving(&[]), (site.vip, 80), false), None, "no backend");
        let mut world = site.serving(&[(site.remote, 8080)]);
        assert_eq!(led::<F>(&world, (site.vip, 81), false), None, "no such port");
        world.services[0].flags = service_flag::INTERNAL_LOCAL;
        assert_eq!(led::<F>(&world, (site.vip, 80), false), None, "no backend on the node");
        let mut world = site.serving(&[(site.remote, 8080)]);
        world.backends[0].flags &= !backend_flag::LIVE;
        assert_eq!(led::<F>(&world, (site.vip, 80), false), None, "a record not in use");
    }

    pub(super) fn what_depends_on_the_client_is_left_alone<F: NodeFamily>(site: &Site) {
        let mut world = site.serving(&[(site.b.addr, 8080)]);
        world.services[0].affinity = 60;
        assert_eq!(led::<F>(&world, (site.vip, 80), false), None, "affinity");
        let mut world = site.world();
        let index = world.backend(site.b.addr, 8080);
        let flags = frontend_flag::EXTERNAL | frontend_flag::SOURCES;
        world.service(&[Front { addr: Some(site.lb), port: 443, proto: proto::TCP, flags }], &[index]);
        assert_eq!(led::<F>(&world, (site.lb, 443), false), None, "source ranges");
    }

    pub(super) fn a_public_address_leads_inside_clients_to_all_backends<F: NodeFamily>(site: &Site) {
        let mut world = site.serving_outside(&[(site.remote, 8080)]);
        world.services[0].flags = service_flag::EXTERNAL_LOCAL;
        assert_eq!(led::<F>(&world, (site.lb, 443), false), Some((site.remote, 8080)));
    }

    pub(super) fn an_internally_local_service_leads_to_the_nodes_own_backends<F: NodeFamily>(site: &Site) {
        let mut world = site.serving(&[(site.remote, 8080), (site.b.addr, 8080)]);
        world.services[0].flags = service_flag::INTERNAL_LOCAL;
        let tables = Memory::<F>::new(&world);
        for hash in (0..=u32::MAX).step_by(1 << 28) {
            let chosen = ask(&tables, (site.vip, 80), false, None, hash).expect("one is on the node");
            assert_eq!(F::ip(chosen.addr), site.b.addr);
        }
    }

    pub(super) fn a_node_port_is_at_the_nodes_addresses_and_at_the_hosts_loopback<F: NodeFamily>(
        site: &Site,
    ) {
        let world = site.serving_outside(&[(site.b.addr, 8080)]);
        let backend = Some((site.b.addr, 8080));
        for of_host in [false, true] {
            assert_eq!(led::<F>(&world, (site.node, 30_443), of_host), backend);
        }
        assert_eq!(led::<F>(&world, (site.loopback, 30_443), true), backend);
        assert_eq!(led::<F>(&world, (site.loopback, 30_443), false), None, "a pod's loopback is its own");
    }

    pub(super) fn a_socket_keeps_its_backend_while_it_is_served<F: NodeFamily>(site: &Site) {
        let mut world = site.serving(&[(site.remote, 8080), (site.b.addr, 8080)]);
        let mut tables = Memory::<F>::new(&world);
        let to = (site.vip, 80);
        let first = ask(&tables, to, false, None, 0);
        assert_ne!(first, ask(&tables, to, false, None, u32::MAX), "the hash says otherwise");
        assert_eq!(first, ask(&tables, to, false, first, u32::MAX));
        assert_eq!(tables.picked.borrow().values().sum::<u64>(), 2, "what is kept is not counted again");
        // Another backend has taken the record.
        world.backends[0].port = 9090;
        tables.change(&world);
        assert_ne!(ask(&tables, to, false, first, u32::MAX), first);
        world.backends[0] = BackendAt { flags: 0, port: 8080, ..world.backends[0] };
        tables.change(&world);
        assert_ne!(ask(&tables, to, false, first, u32::MAX), first);
    }

    pub(super) fn the_hosts_loopback_has_session_affinity<F: NodeFamily>(site: &Site) {
        let mut world = site.serving_outside(&[(site.remote, 8080), (site.b.addr, 8080)]);
        world.services[0].affinity = 60;
        let tables = Memory::<F>::new(&world);
        assert_eq!(
            ask(&tables, (site.node, 30_443), true, None, 0),
            None,
            "only packets tell who the client is"
        );
        let to = (site.loopback, 30_443);
        let first = ask(&tables, to, true, None, 0).map(|chosen| chosen.addr);
        assert!(first.is_some());
        assert_eq!(ask(&tables, to, true, None, u32::MAX).map(|chosen| chosen.addr), first);
        // A minute is 56 ticks.
        tables.affinity.borrow_mut().values_mut().for_each(|memory| memory.seen -= 60);
        assert_ne!(ask(&tables, to, true, None, u32::MAX).map(|chosen| chosen.addr), first, "it is over");
    }

    pub(super) fn a_socket_keeps_its_backend_only_while_its_own_service_has_it<F: NodeFamily>(site: &Site) {
        let all = [(site.a.addr, 8080), (site.b.addr, 8080), (site.remote, 8080)];
        let mut world = site.serving(&all);
        let mut tables = Memory::<F>::new(&world);
        let to = (site.vip, 80);
        let last = ask(&tables, to, false, None, u32::MAX);
        assert_eq!(last.map(|last| (F::ip(last.addr), last.place)), Some((site.remote, 2)));
        // The record stays in use, as if by another service.
        world.services[0].cluster = vec![1, 2];
        tables.change(&world);
        let moved = ask(&tables, to, false, last, 0);
        assert_eq!(moved.map(|last| (F::ip(last.addr), last.place)), Some((site.remote, 1)), "found again");
        world.services[0].cluster = vec![0, 1];
        tables.change(&world);
        assert_ne!(ask(&tables, to, false, moved, u32::MAX).map(|it| F::ip(it.addr)), Some(site.remote));
        // Too long to be searched at every datagram.
        world.services[0].cluster = vec![0; 33];
        tables.change(&world);
        assert_eq!(ask(&tables, to, false, moved, 0), moved);
    }

    pub(super) fn a_memory_gives_back_what_was_put_in<F: NodeFamily + Remembered>(site: &Site) {
        let tables = Memory::<F>::new(&site.serving(&[(site.b.addr, 8080)]));
        let chosen = ask(&tables, (site.vip, 80), false, None, 7).expect("it has a backend");
        let peer = remember::<F>(&key::<F>((site.vip, 80), proto::TCP), &chosen);
        assert_eq!(recall::<F>(&peer), chosen);
        assert_eq!(is_v4(&peer.chosen), site.is_v4());
        assert_eq!(F::ip(F::narrow(peer.asked)), site.vip);
        const { assert!(PEERS.is_power_of_two(), "the programs take slots modulo their number") };
    }
}
