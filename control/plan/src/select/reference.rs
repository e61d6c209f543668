//! The selection once more, from Kubernetes' rules alone and on raw documents: slow, and obviously what they say. What
//! the planner selects is compared with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portolan_model::{EndpointSlice, Object, read};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// Addresses and ports.
type Set = BTreeSet<(IpAddr, u64)>;

/// An endpoint of the wanted port.
#[derive(Clone, Debug)]
struct Ep {
    ready: bool,
    serving: bool,
    terminating: bool,
    node: Option<String>,
    for_nodes: Vec<String>,
    for_zones: Vec<String>,
}

/// The Cluster and the Local set of a service's port on a node.
fn reference(
    slices: &[Value],
    port: &str,
    protocol: &str,
    family: &str,
    place: (&str, Option<&str>),
) -> (Set, Set) {
    let (node, zone) = place;
    let mut all: BTreeMap<(IpAddr, u64), Ep> = BTreeMap::new();
    for (at, ep) in every(slices, port, protocol, family) {
        // The same address and port twice: the one that does not terminate wins.
        match all.get(&at) {
            Some(known) if !known.terminating => {}
            _ => drop(all.insert(at, ep)),
        }
    }
    let names = |keep: &dyn Fn(&Ep) -> bool| -> Set {
        all.iter().filter(|(_, ep)| keep(ep)).map(|(at, _)| *at).collect()
    };
    let ready: Vec<&Ep> = all.values().filter(|ep| ep.ready).collect();
    let here = |ep: &Ep| ep.for_nodes.iter().any(|name| name == node);
    let near = |ep: &Ep| zone.is_some_and(|zone| ep.for_zones.iter().any(|name| name == zone));
    let mut cluster = if ready.iter().all(|ep| !ep.for_nodes.is_empty()) && ready.iter().any(|ep| here(ep)) {
        names(&|ep| ep.ready && here(ep))
    } else if ready.iter().all(|ep| !ep.for_zones.is_empty()) && ready.iter().any(|ep| near(ep)) {
        names(&|ep| ep.ready && near(ep))
    } else {
        names(&|ep| ep.ready)
    };
    if cluster.is_empty() {
        cluster = names(&|ep| ep.serving && ep.terminating);
    }
    let local = |ep: &Ep| ep.node.as_deref() == Some(node);
    let mut locals = names(&|ep| ep.ready && local(ep));
    if locals.is_empty() {
        locals = names(&|ep| ep.serving && ep.terminating && local(ep));
    }
    (cluster, locals)
}

fn every(slices: &[Value], port: &str, protocol: &str, family: &str) -> Vec<((IpAddr, u64), Ep)> {
    let mut found = Vec::new();
    for slice in slices.iter().filter(|slice| slice["addressType"] == family) {
        for one in slice["ports"].as_array().into_iter().flatten() {
            if one["name"] != port || one["protocol"].as_str().unwrap_or("TCP") != protocol {
                continue;
            }
            for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
                let address = endpoint["addresses"][0].as_str().and_then(|text| text.parse().ok());
                let number = one["port"].as_u64();
                found.extend(address.zip(number).map(|at| (at, ep(endpoint))));
            }
        }
    }
    found
}

fn ep(endpoint: &Value) -> Ep {
    let condition = |name: &str| endpoint["conditions"][name].as_bool();
    let names = |kind: &str| -> Vec<String> {
        let hints = endpoint["hints"][kind].as_array().into_iter().flatten();
        hints.filter_map(|hint| hint["name"].as_str().map(str::to_owned)).collect()
    };
    let ready = condition("ready").unwrap_or(true);
    Ep {
        ready,
        serving: condition("serving").unwrap_or(ready),
        terminating: condition("terminating").unwrap_or(false),
        node: endpoint["nodeName"].as_str().map(str::to_owned),
        for_nodes: names("forNodes"),
        for_zones: names("forZones"),
    }
}

prop_compose! {
    /// Few addresses, so that they meet; each condition true, false or absent.
    fn endpoint(family: &'static str)(
        last in 1..5u8, conditions in any::<[Option<bool>; 3]>(), node in prop::option::of("[ab]"),
        hints in (0..4u8, prop::collection::vec("[ab]", 1..3), prop::collection::vec("z[12]", 1..3)),
    ) -> Value {
        let address = if family == "IPv4" { format!("10.1.0.{last}") } else { format!("fd00:1::{last}") };
        let mut endpoint = json!({"addresses": [address, "192.0.2.99"], "conditions": {}});
        for (name, value) in ["ready", "serving", "terminating"].into_iter().zip(conditions) {
            if let Some(value) = value {
                endpoint["conditions"][name] = json!(value);
            }
        }
        if let Some(node) = node {
            endpoint["nodeName"] = json!(node);
        }
        let named = |names: &[String]| -> Vec<Value> { names.iter().map(|name| json!({"name": name})).collect() };
        // Hints for all are what makes a difference, so most have some.
        if hints.0 & 1 != 0 {
            endpoint["hints"]["forNodes"] = json!(named(&hints.1));
        }
        if hints.0 != 0 {
            endpoint["hints"]["forZones"] = json!(named(&hints.2));
        }
        endpoint
    }
}

fn slice() -> impl Strategy<Value = Value> {
    prop::sample::select(vec!["IPv4", "IPv6"]).prop_flat_map(|family| {
        let ports = prop::collection::vec((prop::sample::select(vec!["http", "dns"]), any::<Option<bool>>(), 8000..8003u16), 1..3);
        (ports, prop::collection::vec(endpoint(family), 0..5)).prop_map(move |(ports, endpoints)| {
            let port = |(name, udp, number): &(&str, Option<bool>, u16)| match udp {
                None => json!({"name": name, "port": number}),
                Some(udp) => json!({"name": name, "port": number, "protocol": if *udp { "UDP" } else { "TCP" }}),
            };
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
                "metadata": {"name": "s", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
                "ports": ports.iter().map(port).collect::<Vec<_>>(), "endpoints": endpoints,
            })
        })
    })
}

/// Whether two entries for one address and port disagree in more than that one of them terminates: the rules do not
/// say which of them counts.
fn is_ambiguous(slices: &[Value], port: &str, protocol: &str, family: &str) -> bool {
    let mut seen: BTreeMap<(IpAddr, u64, bool), String> = BTreeMap::new();
    every(slices, port, protocol, family).into_iter().any(|((addr, port), ep)| {
        let text = format!("{ep:?}");
        let known = seen.entry((addr, port, ep.terminating)).or_insert_with(|| text.clone());
        *known != text
    })
}

fn parsed(document: &Value) -> EndpointSlice {
    match read(document).expect("a good slice").expect("a slice").object {
        Object::EndpointSlice(slice) => slice,
        other => panic!("{other:?}"),
    }
}

fn set(backends: &[BackendAddr]) -> Set {
    backends.iter().map(|backend| (backend.addr, backend.port.into())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4096, failure_persistence: None, max_global_rejects: 1 << 16, ..ProptestConfig::default()
    })]

    #[test]
    fn what_is_selected_is_what_the_rules_say(
        slices in prop::collection::vec(slice(), 1..4), udp in any::<bool>(), six in any::<bool>(),
        port in prop::sample::select(vec!["http", "dns"]), zone in prop::option::of("z[12]"),
    ) {
        let (protocol, family) = (if udp { "UDP" } else { "TCP" }, if six { "IPv6" } else { "IPv4" });
        prop_assume!(!is_ambiguous(&slices, port, protocol, family));
        let (cluster, local) = reference(&slices, port, protocol, family, ("a", zone.as_deref()));
        let wanted = Wanted {
            port,
            protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
            family: if six { Family::V6 } else { Family::V4 },
            local: true,
            rest: false,
        };
        let place = Place { node: "a".into(), zone: zone.as_deref().map(Name::from) };
        let slices: Vec<EndpointSlice> = slices.iter().map(parsed).collect();
        let found = select(&slices, wanted, &place);
        prop_assert_eq!(set(&found.cluster), cluster, "the Cluster set");
        prop_assert_eq!(set(&found.local), local, "the Local set");
        prop_assert!(found.cluster.is_sorted_by(|a, b| (a.addr, a.port) < (b.addr, b.port)), "sorted and unique");
        prop_assert!(found.local.is_sorted_by(|a, b| (a.addr, a.port) < (b.addr, b.port)), "sorted and unique");
        let unwanted = select(&slices, Wanted { local: false, ..wanted }, &place);
        prop_assert_eq!(unwanted, Selection { local: Vec::new(), local_why: crate::Why::Ready, ..found });
    }
}
