//! Whom the mark of a load balancer address admits to ICMP echo, in real tables. Needs root.

mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use portolan_abi::{Frontend, FrontendKey, Words, frontend_flag};
use portolan_apply::{Applier, audit};
use portolan_model::{Protocol, ServiceKey};
use portolan_node::{Object, Sizes};
use portolan_plan::{BackendAddr, FrontendAddr, NodePlan, Scope, ServicePlan, ServicePort};

const SHARED: [u8; 4] = [198, 51, 100, 9];

fn key(port: u16) -> ServiceKey {
    ServiceKey::new("shop", &format!("s{port}"))
}

/// A service at a port of the shared address.
fn plan(port: u16, restricted: bool, backends: bool) -> Arc<ServicePlan> {
    let backend = BackendAddr { addr: IpAddr::from([10, 244, 2, 1]), port: 8080, local: false };
    Arc::new(ServicePlan {
        ports: vec![ServicePort {
            frontends: vec![FrontendAddr {
                addr: Some(IpAddr::from(SHARED)),
                port,
                scope: Scope::LoadBalancer,
            }],
            cluster: if backends { vec![backend] } else { Vec::new() },
            sources: restricted.then(|| vec!["203.0.113.0/24".parse().unwrap()]),
            ..support::port(key(port), "http", Protocol::Tcp)
        }],
    })
}

fn frontend(applier: &Applier, port: u16, proto: u8) -> Option<Frontend> {
    let addr = Words::<1>::from_octets(SHARED);
    applier.tables().v4.frontends.get(&FrontendKey { addr, port: port.to_be(), proto, zero: 0 }).unwrap()
}

/// What the address's mark says.
#[derive(Debug, PartialEq, Eq)]
enum Echo {
    /// The address is nobody's.
    Nobody,
    /// It answers nobody.
    Silent,
    /// It answers everybody.
    Open,
    /// It answers clients of the ranges of the service at that port.
    Restricted(u16),
}

fn echo(applier: &Applier, ports: &[u16]) -> Echo {
    let Some(mark) = frontend(applier, 0, 0) else { return Echo::Nobody };
    if mark.flags & frontend_flag::ANSWERS == 0 {
        return Echo::Silent;
    }
    if mark.flags & frontend_flag::SOURCES == 0 {
        return Echo::Open;
    }
    let is_named = |port: &&u16| frontend(applier, **port, 6).is_some_and(|it| it.service == mark.service);
    Echo::Restricted(*ports.iter().find(is_named).expect("the mark names a service of the address"))
}

#[test]
fn a_shared_address_answers_echo_to_all_unless_every_service_on_it_that_answers_is_restricted() {
    let object = Object::load(None, Sizes::small()).expect("loading the programs needs root");
    let mut applier = Applier::open(object.tables().unwrap()).unwrap();
    let mut services: BTreeMap<ServiceKey, Arc<ServicePlan>> = BTreeMap::new();
    let steps: [(u16, Option<Arc<ServicePlan>>, Echo); 8] = [
        (80, Some(plan(80, true, false)), Echo::Silent),
        (80, Some(plan(80, true, true)), Echo::Restricted(80)),
        (81, Some(plan(81, false, false)), Echo::Restricted(80)),
        (81, Some(plan(81, false, true)), Echo::Open),
        (82, Some(plan(82, true, true)), Echo::Open),
        (81, None, Echo::Restricted(80)),
        (80, None, Echo::Restricted(82)),
        (82, None, Echo::Nobody),
    ];
    for (number, (port, plan, expected)) in steps.into_iter().enumerate() {
        match &plan {
            Some(plan) => drop(services.insert(key(port), Arc::clone(plan))),
            None => drop(services.remove(&key(port))),
        }
        applier.apply(&[(key(port), plan)]).unwrap();
        assert_eq!(echo(&applier, &[80, 81, 82]), expected, "step {number}");
        let desired = services.iter().map(|(key, plan)| (key, &**plan));
        assert_eq!(
            audit(applier.tables(), desired, &NodePlan::default(), None).unwrap(),
            [],
            "step {number}"
        );
    }
}
