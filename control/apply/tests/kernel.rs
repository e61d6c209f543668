//! What the applier leaves in real tables. Every test has tables of its own; needs root.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use portolan_abi::{backend_flag, frontend_flag};
use portolan_apply::Applier;
use portolan_core::V4;
use portolan_model::{Protocol, ServiceKey};
use portolan_node::maps::NodeFamily;
use portolan_node::{Object, Sizes, Tables};
use portolan_plan::{BackendAddr, FrontendAddr, Scope, ServicePlan, ServicePort};
use proptest::prelude::*;

fn object() -> Object {
    Object::load(None, Sizes::small()).expect("loading the programs needs root")
}

fn applier(object: &Object) -> Applier {
    Applier::open(object.tables().unwrap()).unwrap()
}

fn key(number: u8) -> ServiceKey {
    ServiceKey::new("default", &format!("s{number}"))
}

/// A service at 10.96.0.`number`:80 with these last octets of 10.244.0.0/24 as backends.
fn plan(number: u8, backends: &[u8]) -> Arc<ServicePlan> {
    plan_at(number, number, backends)
}

fn plan_at(number: u8, address: u8, backends: &[u8]) -> Arc<ServicePlan> {
    let backend =
        |last: &u8| BackendAddr { addr: IpAddr::from([10, 244, 0, *last]), port: 8080, local: false };
    let frontend =
        FrontendAddr { addr: Some(IpAddr::from([10, 96, 0, address])), port: 80, scope: Scope::ClusterIp };
    Arc::new(ServicePlan {
        ports: vec![ServicePort {
            frontends: vec![frontend],
            cluster: backends.iter().map(backend).collect(),
            ..support::port(key(number), "http", Protocol::Tcp)
        }],
    })
}

/// What the kernel serves, read by nothing but the tables: last octet of the VIP → last octets of its backends.
fn served(tables: &Tables) -> BTreeMap<u8, BTreeSet<u8>> {
    let last = |addr: IpAddr| match addr {
        IpAddr::V4(addr) => addr.octets()[3],
        IpAddr::V6(_) => unreachable!("the tests have IPv4 services only"),
    };
    let mut found = BTreeMap::new();
    let mut marks = BTreeSet::new();
    for (key, value) in tables.v4.frontends.dump().unwrap() {
        let vip = last(V4::ip(key.addr));
        if key.port == 0 {
            assert_ne!(value.flags & frontend_flag::VIP, 0, "mark without meaning");
            marks.insert(vip);
            continue;
        }
        let ring = tables.services.read(value.service).cluster;
        let backends = tables.slab.slice(ring.offset(), ring.len()).into_iter().map(|index| {
            let backend = tables.v4.backends.read(index);
            assert_ne!(backend.flags & backend_flag::LIVE, 0, "a ring names a dead backend");
            last(V4::ip(backend.addr))
        });
        found.insert(vip, backends.collect());
    }
    assert_eq!(marks, found.keys().copied().collect(), "each service address has its mark, and no other has");
    found
}

fn expected(services: &[(u8, &[u8])]) -> BTreeMap<u8, BTreeSet<u8>> {
    services.iter().map(|(vip, backends)| (*vip, backends.iter().copied().collect())).collect()
}

#[test]
fn services_are_served_with_exactly_their_backends() {
    let object = object();
    let mut applier = applier(&object);
    let outcome =
        applier.apply(&[(key(1), Some(plan(1, &[1, 2, 3]))), (key(2), Some(plan(2, &[])))]).unwrap();
    assert_eq!((outcome.applied, outcome.refused), (2, vec![]));
    assert_eq!(served(applier.tables()), expected(&[(1, &[1, 2, 3]), (2, &[])]));
    applier.apply(&[(key(1), Some(plan(1, &[2, 4]))), (key(2), None)]).unwrap();
    assert_eq!(served(applier.tables()), expected(&[(1, &[2, 4])]));
}

#[test]
fn equal_backend_sets_share_one_ring() {
    let object = object();
    let mut applier = applier(&object);
    let services: Vec<_> = (1..=50).map(|n| (key(n), Some(plan(n, &[1, 2, 3])))).collect();
    applier.apply(&services).unwrap();
    assert_eq!(applier.usage().slots.0, 3);
    assert_eq!(applier.usage().backends_v4.0, 3);
}

#[test]
fn a_ring_is_replaced_by_one_store_and_the_old_slots_rest() {
    let object = object();
    let mut applier = applier(&object);
    applier.apply(&[(key(1), Some(plan(1, &[1, 2, 3])))]).unwrap();
    let before = applier.tables().services.read(0).cluster;
    let old = applier.tables().slab.slice(before.offset(), before.len());
    applier.apply(&[(key(1), Some(plan(1, &[4, 5])))]).unwrap();
    let after = applier.tables().services.read(0).cluster;
    assert_ne!(before.offset(), after.offset(), "the new ring does not overwrite the old one");
    assert_eq!(
        applier.tables().slab.slice(before.offset(), before.len()),
        old,
        "a late packet finds it whole"
    );
    assert_eq!(applier.usage().slots.0, 5, "old slots rest");
    applier.settle().unwrap();
    assert_eq!(applier.usage().slots.0, 2, "and come back");
}

#[test]
fn a_service_that_does_not_fit_is_refused_whole_and_the_others_stay() {
    let sizes = Sizes { backends: 4, ..Sizes::small() };
    let object = Object::load(None, sizes).unwrap();
    let mut applier = applier(&object);
    let changes = [
        (key(1), Some(plan(1, &[1, 2, 3]))),
        (key(2), Some(plan(2, &[4, 5, 6]))),
        (key(3), Some(plan(3, &[1, 4]))),
    ];
    let outcome = applier.apply(&changes).unwrap();
    assert_eq!(outcome.refused.iter().map(|r| r.service.name()).collect::<Vec<_>>(), ["s2"]);
    assert!(outcome.refused[0].reason.contains("backends"), "{}", outcome.refused[0].reason);
    assert_eq!(served(applier.tables()), expected(&[(1, &[1, 2, 3]), (3, &[1, 4])]));
    // Room is made: the same service fits now.
    applier.apply(&[(key(1), None), (key(3), None)]).unwrap();
    applier.settle().unwrap();
    let outcome = applier.apply(&changes[1..2]).unwrap();
    assert_eq!(outcome.refused, vec![]);
    assert_eq!(served(applier.tables()), expected(&[(2, &[4, 5, 6])]));
}

#[test]
fn a_refused_change_leaves_the_old_plan_serving() {
    let object = Object::load(None, Sizes { backends: 3, ..Sizes::small() }).unwrap();
    let mut applier = applier(&object);
    applier.apply(&[(key(1), Some(plan(1, &[1, 2])))]).unwrap();
    let outcome = applier.apply(&[(key(1), Some(plan(1, &[3, 4, 5])))]).unwrap();
    assert_eq!(outcome.refused.len(), 1);
    assert_eq!(served(applier.tables()), expected(&[(1, &[1, 2])]));
}

#[test]
fn an_address_that_moves_to_another_service_is_never_without_one() {
    let object = object();
    let mut applier = applier(&object);
    applier.apply(&[(key(1), Some(plan_at(1, 9, &[1])))]).unwrap();
    // The loser's removal comes after the winner's claim, and before it in the second round.
    applier.apply(&[(key(2), Some(plan_at(2, 9, &[2]))), (key(1), None)]).unwrap();
    assert_eq!(served(applier.tables()), expected(&[(9, &[2])]));
    applier.apply(&[(key(2), None), (key(3), Some(plan_at(3, 9, &[3])))]).unwrap();
    assert_eq!(served(applier.tables()), expected(&[(9, &[3])]));
}

#[test]
fn a_new_agent_takes_over_indexes_and_rings_and_removes_the_rest() {
    let object = object();
    let mut old = applier(&object);
    let services: Vec<_> = (1..=20).map(|n| (key(n), Some(plan(n, &[n, n + 1])))).collect();
    old.apply(&services).unwrap();
    let index = |tables: &Tables| -> BTreeMap<_, _> {
        tables.v4.frontends.dump().unwrap().into_iter().map(|(k, v)| (k.addr, v.service)).collect()
    };
    let before = index(old.tables());
    drop(old);
    let mut new = applier(&object);
    assert_eq!(served(new.tables()).len(), 20, "opening changes nothing");
    // Two services went away while no agent ran.
    new.apply(&services[..18]).unwrap();
    new.sweep().unwrap();
    let after = index(new.tables());
    assert_eq!(after.len(), 18);
    assert!(after.iter().all(|(addr, service)| before[addr] == *service), "indexes are kept");
    let desired: Vec<(u8, [u8; 2])> = (1..=18).map(|n| (n, [n, n + 1])).collect();
    let desired: Vec<(u8, &[u8])> = desired.iter().map(|(n, b)| (*n, &b[..])).collect();
    assert_eq!(served(new.tables()), expected(&desired));
    assert_eq!(new.usage().services.0, 18);
    assert_eq!(new.usage().backends_v4.0, 19);
    assert_eq!(new.usage().slots.0, 36);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever is applied in whatever order, with restarts in between, the kernel serves the last state of each.
    #[test]
    fn the_kernel_serves_the_desired_state_after_any_changes(
        rounds in prop::collection::vec(
            (prop::collection::vec((1u8..12, prop::option::of(prop::collection::btree_set(1u8..20, 0..6))), 1..8), any::<bool>()),
            1..8,
        )
    ) {
        let object = object();
        let mut applier = applier(&object);
        let mut desired: BTreeMap<u8, BTreeSet<u8>> = BTreeMap::new();
        for (changes, restart) in rounds {
            let batch: Vec<_> = changes
                .iter()
                .map(|(number, backends)| {
                    let backends: Option<Vec<u8>> = backends.as_ref().map(|set| set.iter().copied().collect());
                    (key(*number), backends.map(|backends| plan(*number, &backends)))
                })
                .collect();
            applier.apply(&batch).unwrap();
            for (number, backends) in changes {
                match backends {
                    Some(backends) => desired.insert(number, backends),
                    None => desired.remove(&number),
                };
            }
            prop_assert_eq!(&served(applier.tables()), &desired);
            if restart {
                drop(applier);
                applier = Applier::open(object.tables().unwrap()).unwrap();
                let all: Vec<_> = desired
                    .iter()
                    .map(|(n, b)| (key(*n), Some(plan(*n, &b.iter().copied().collect::<Vec<_>>()))))
                    .collect();
                applier.apply(&all).unwrap();
                applier.sweep().unwrap();
                prop_assert_eq!(&served(applier.tables()), &desired);
            }
            applier.settle().unwrap();
            let backends: BTreeSet<u8> = desired.values().flatten().copied().collect();
            prop_assert_eq!(applier.usage().backends_v4.0 as usize, backends.len(), "no backend leaks");
            prop_assert_eq!(applier.usage().services.0 as usize, desired.len(), "no service leaks");
        }
    }
}
