//! What clients of services with session affinity remember, in real tables. Needs root.

mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use portolan_abi::{Affinity, AffinityKey, Words};
use portolan_apply::{Applier, ticks};
use portolan_model::{Protocol, ServiceKey};
use portolan_node::{Object, Sizes};
use portolan_plan::{BackendAddr, FrontendAddr, Scope, ServicePlan, ServicePort};

const CLIENT: Words<1> = Words::<1>::from_octets([10, 244, 0, 200]);

fn key(number: u8) -> ServiceKey {
    ServiceKey::new("default", &format!("s{number}"))
}

/// A service at 10.96.0.`number`:80 with these last octets of 10.244.0.0/24 as backends, of which the first runs
/// on this node.
fn plan(number: u8, affinity: Option<u32>, backends: &[u8]) -> Arc<ServicePlan> {
    let backend = |last: &u8| BackendAddr {
        addr: IpAddr::from([10, 244, 0, *last]),
        port: 8080,
        local: Some(last) == backends.first(),
    };
    let cluster: Vec<BackendAddr> = backends.iter().map(backend).collect();
    Arc::new(ServicePlan {
        ports: vec![ServicePort {
            frontends: vec![FrontendAddr {
                addr: Some(IpAddr::from([10, 96, 0, number])),
                port: 80,
                scope: Scope::ClusterIp,
            }],
            local: cluster.iter().copied().filter(|backend| backend.local).collect(),
            cluster,
            internal_local: true,
            affinity,
            ..support::port(key(number), "http", Protocol::Tcp)
        }],
    })
}

/// What is remembered, as the programs write it: set → last octet of the backend's address.
fn remembered(applier: &Applier) -> BTreeMap<u32, u8> {
    let all = applier.tables().v4.affinity.dump().unwrap();
    let last = |index| applier.tables().v4.backends.read(index).addr.octets()[3];
    all.into_iter().map(|(key, memory)| (key.set, last(memory.backend))).collect()
}

/// Writes what a program would: the client had the backend in a slot of one of the service's rings.
fn remember(applier: &Applier, service: u32, local: bool, slot: u32) {
    let record = applier.tables().services.read(service);
    let ring = if local { record.local } else { record.cluster };
    let backend = applier.tables().slab.read(ring.offset() + slot);
    let memory = Affinity { backend, seen: ticks() };
    applier.tables().v4.affinity.insert(&AffinityKey::new(CLIENT, service, local), &memory).unwrap();
}

fn index(applier: &Applier, number: u8) -> u32 {
    let (_, _, states) = applier.services().find(|(service, _, _)| **service == key(number)).unwrap();
    states[0].index
}

/// Two services with affinity; a client of the first remembers backend 1 in its Local and 2 in its Cluster set,
/// one of the second remembers 2.
fn begin(object: &Object) -> (Applier, u32, u32) {
    let mut applier = Applier::open(object.tables().unwrap()).unwrap();
    let day = Some(86_400);
    applier
        .apply(&[(key(1), Some(plan(1, day, &[1, 2, 3]))), (key(2), Some(plan(2, day, &[1, 2])))])
        .unwrap();
    applier.settle().unwrap();
    let (first, second) = (index(&applier, 1), index(&applier, 2));
    remember(&applier, first, true, 0);
    remember(&applier, first, false, 1);
    remember(&applier, second, false, 1);
    assert_eq!(remembered(&applier), BTreeMap::from([(first * 2 + 1, 1), (first * 2, 2), (second * 2, 2)]));
    (applier, first, second)
}

fn object() -> Object {
    Object::load(None, Sizes::small()).expect("loading the programs needs root")
}

#[test]
fn clients_forget_a_backend_that_left_their_set_and_no_other() {
    let object = object();
    let (mut applier, first, second) = begin(&object);
    // 2 leaves the first service and stays in the second; 1 stays, but is not of this node any more.
    applier.apply(&[(key(1), Some(plan(1, Some(86_400), &[3, 1])))]).unwrap();
    applier.settle().unwrap();
    assert_eq!(remembered(&applier), BTreeMap::from([(second * 2, 2)]));
    remember(&applier, first, false, 1);
    applier.apply(&[(key(1), Some(plan(1, Some(86_400), &[3, 1, 4])))]).unwrap();
    applier.settle().unwrap();
    assert_eq!(remembered(&applier), BTreeMap::from([(first * 2, 1), (second * 2, 2)]));
}

#[test]
fn clients_forget_a_service_without_affinity_and_one_that_is_gone() {
    let object = object();
    let (mut applier, _, _) = begin(&object);
    applier.apply(&[(key(1), Some(plan(1, None, &[1, 2, 3]))), (key(2), None)]).unwrap();
    applier.settle().unwrap();
    assert_eq!(remembered(&applier), BTreeMap::new());
    // The index is used again by a service whose clients remember nothing.
    applier.apply(&[(key(1), None), (key(3), Some(plan(3, Some(60), &[7])))]).unwrap();
    applier.settle().unwrap();
    assert_eq!(remembered(&applier), BTreeMap::new());
}

#[test]
fn an_agent_that_starts_forgets_what_changed_while_none_ran() {
    let object = object();
    let (applier, first, _) = begin(&object);
    drop(applier);
    let mut applier = Applier::open(object.tables().unwrap()).unwrap();
    let day = Some(86_400);
    applier.apply(&[(key(1), Some(plan(1, day, &[1, 3]))), (key(2), Some(plan(2, None, &[1, 2])))]).unwrap();
    applier.sweep().unwrap();
    assert_eq!(remembered(&applier), BTreeMap::from([(first * 2 + 1, 1)]));
}
