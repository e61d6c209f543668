use std::net::IpAddr;

use portolan_model::{NamespacedName, SlicePort};

use super::*;

/// `A` runs on this node, `B` on another.
fn place() -> Place {
    Place { node: "a".into(), zone: Some("z1".into()) }
}

fn endpoint(last: u8, node: &str, state: &str) -> Endpoint {
    Endpoint {
        addr: [10, 0, 0, last].into(),
        ready: state == "ready",
        serving: state != "gone",
        terminating: state == "terminating" || state == "gone",
        node: Some(node.into()),
        hints: None,
    }
}

fn hinted(mut endpoint: Endpoint, zones: &[&str], nodes: &[&str]) -> Endpoint {
    let names = |names: &[&str]| names.iter().map(|name| Name::from(*name)).collect();
    endpoint.hints = Some(Box::new(Hints { zones: names(zones), nodes: names(nodes) }));
    endpoint
}

fn slice(name: &str, port: u16, endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice {
        key: NamespacedName::new("default", name),
        service: None,
        family: Some(Family::V4),
        ports: smallvec::smallvec![
            SlicePort { name: "http".into(), protocol: Protocol::Tcp, port },
            SlicePort { name: "http".into(), protocol: Protocol::Udp, port: port + 1 },
            SlicePort { name: "other".into(), protocol: Protocol::Tcp, port: port + 2 },
        ],
        endpoints,
        triggered: None,
    }
}

fn wanted() -> Wanted<'static> {
    Wanted { port: "http", protocol: Protocol::Tcp, family: Family::V4, local: true, rest: false }
}

type Short = Vec<(u8, u16)>;

/// `(cluster, local)`, each as last byte of the address and port.
fn selected(slices: &[EndpointSlice]) -> (Short, Short) {
    let short = |backends: Vec<BackendAddr>| {
        let last = |addr| match addr {
            std::net::IpAddr::V4(v4) => v4.octets()[3],
            std::net::IpAddr::V6(v6) => v6.octets()[15],
        };
        backends.iter().map(|b| (last(b.addr), b.port)).collect()
    };
    let Selection { cluster, local, .. } = select(slices, wanted(), &place());
    (short(cluster), short(local))
}

#[test]
fn a_named_port_has_its_own_number_in_every_slice() {
    let slices = [
        slice("s1", 8080, vec![endpoint(2, "a", "ready")]),
        slice("s2", 9090, vec![endpoint(1, "b", "ready")]),
    ];
    assert_eq!(selected(&slices), (vec![(1, 9090), (2, 8080)], vec![(2, 8080)]));
}

#[test]
fn endpoints_that_terminate_serve_only_when_no_ready_one_is_left() {
    let with = |ready: &str| {
        let endpoints =
            vec![endpoint(1, "b", ready), endpoint(2, "b", "terminating"), endpoint(3, "b", "gone")];
        selected(&[slice("s", 80, endpoints)]).0
    };
    assert_eq!(with("ready"), [(1, 80)]);
    assert_eq!(with("terminating"), [(1, 80), (2, 80)]);
    assert_eq!(with("gone"), [(2, 80)]);
}

#[test]
fn an_endpoint_that_is_neither_ready_nor_terminating_gets_nothing() {
    let mut endpoint = endpoint(1, "a", "ready");
    endpoint.ready = false;
    assert_eq!(selected(&[slice("s", 80, vec![endpoint])]), (vec![], vec![]));
}

#[test]
fn the_local_set_falls_back_on_its_own() {
    let slices = [slice("s", 80, vec![endpoint(1, "b", "ready"), endpoint(2, "a", "terminating")])];
    assert_eq!(selected(&slices), (vec![(1, 80)], vec![(2, 80)]));
}

#[test]
fn an_endpoint_in_two_slices_counts_once_and_the_one_that_does_not_terminate_wins() {
    let ready = slice("s1", 80, vec![endpoint(1, "a", "ready")]);
    let leaving = slice("s2", 80, vec![endpoint(1, "b", "terminating")]);
    let expected = (vec![(1, 80)], vec![(1, 80)]);
    assert_eq!(selected(&[ready.clone(), leaving.clone()]), expected);
    assert_eq!(selected(&[leaving, ready]), expected);
}

#[test]
fn slices_of_the_other_family_do_not_count() {
    let mut other = slice("s", 80, vec![endpoint(1, "a", "ready")]);
    other.family = Some(Family::V6);
    assert_eq!(selected(&[other]), (vec![], vec![]));
}

#[test]
fn zone_hints_narrow_the_cluster_set_but_never_the_local_set() {
    let near = hinted(endpoint(1, "b", "ready"), &["z1"], &[]);
    let far = hinted(endpoint(2, "a", "ready"), &["z2"], &[]);
    assert_eq!(selected(&[slice("s", 80, vec![near, far])]), (vec![(1, 80)], vec![(2, 80)]));
}

#[test]
fn node_hints_come_before_zone_hints() {
    let here = hinted(endpoint(1, "b", "ready"), &["z2"], &["a"]);
    let zone = hinted(endpoint(2, "b", "ready"), &["z1"], &["b"]);
    assert_eq!(selected(&[slice("s", 80, vec![here, zone])]).0, [(1, 80)]);
}

#[test]
fn one_ready_endpoint_without_a_hint_or_a_zone_nobody_names_switches_hints_off() {
    let near = || hinted(endpoint(1, "b", "ready"), &["z1"], &[]);
    let far = || hinted(endpoint(2, "b", "ready"), &["z2"], &[]);
    let all = vec![(1, 80), (2, 80)];
    assert_eq!(selected(&[slice("s", 80, vec![near(), endpoint(2, "b", "ready")])]).0, all);
    let nobody = slice("s", 80, vec![hinted(endpoint(1, "b", "ready"), &["z3"], &[]), far()]);
    assert_eq!(selected(&[nobody]).0, all);
    // An endpoint that is not ready has no say.
    let leaving = endpoint(3, "b", "terminating");
    assert_eq!(selected(&[slice("s", 80, vec![near(), far(), leaving])]).0, [(1, 80)]);
}

#[test]
fn the_rest_is_whom_slices_name_and_neither_set_has() {
    let endpoints = vec![
        hinted(endpoint(1, "b", "ready"), &["z1"], &[]),
        hinted(endpoint(2, "b", "ready"), &["z2"], &[]),
        hinted(endpoint(3, "a", "ready"), &["z2"], &[]),
        endpoint(4, "b", "terminating"),
        endpoint(5, "b", "gone"),
    ];
    let slices = [slice("s", 80, endpoints)];
    let selection = select(&slices, Wanted { rest: true, ..wanted() }, &place());
    assert_eq!((selection.cluster.len(), selection.local.len()), (1, 1));
    let rest: Vec<IpAddr> = selection.rest.unwrap().iter().map(|backend| backend.addr).collect();
    assert_eq!(rest, [2, 4, 5].map(|last| IpAddr::from([10, 0, 0, last])));
    assert_eq!(select(&slices, wanted(), &place()).rest, None, "nobody asked");
}

#[test]
fn a_node_without_a_zone_ignores_zone_hints() {
    let slices = [slice(
        "s",
        80,
        vec![
            hinted(endpoint(1, "b", "ready"), &["z1"], &[]),
            hinted(endpoint(2, "b", "ready"), &["z2"], &[]),
        ],
    )];
    let place = Place { zone: None, ..place() };
    assert_eq!(select(&slices, wanted(), &place).cluster.len(), 2);
}
