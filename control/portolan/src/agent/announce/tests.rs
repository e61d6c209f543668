use clap::Parser;
use portolan_model::{Event, read};
use portolan_plan::{Extent, Planner};
use serde_json::{Value, json};

use super::*;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: AnnounceOptions,
}

fn announce() -> Announce {
    Announce::new("a", &Arguments::try_parse_from(["agent"]).unwrap().options)
}

/// One node with one endpoint behind one public address.
fn objects() -> Vec<Value> {
    let own = |kind: &str, spec: Value| json!({"apiVersion": "portolan.dev/v1alpha1", "kind": kind, "metadata": {"name": "p"}, "spec": spec});
    vec![
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}, "spec": {"podCIDRs": ["10.244.1.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.11"}]}}),
        own("LoadBalancerPool", json!({"addresses": ["198.51.100.0/24"]})),
        own("BGPAdvertisement", json!({"podCIDRs": true})),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.10", "ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.10"}]}}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"port": 8080}], "endpoints": [{"addresses": ["10.244.1.2"]}]}),
    ]
}

/// Takes all in, as if the tables had it.
fn take(announce: &Announce) -> Store {
    let mut store = Store::default();
    for document in objects() {
        store.apply(Event::Upsert(read(&document).unwrap().unwrap().object));
    }
    let mut planner = Planner::new("a");
    planner.plan(&store, Extent::All);
    let state = &mut *announce.state();
    for (key, plan) in planner.desired() {
        state.changed |= state.announcing.set(key, store.service(key), Some(plan));
    }
    store
}

fn told(announce: &Announce) -> Vec<String> {
    announce.state().routes.iter().map(|route| route.prefix.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nothing_is_told_before_the_tables_serve_it() {
    let announce = announce();
    let store = take(&announce);
    announce.publish(&store);
    announce.look(true);
    assert!(announce.state().speaker.is_none());
    announce.begin();
    announce.publish(&store);
    assert_eq!(told(&announce), ["198.51.100.10/32", "10.244.1.0/24"]);
    assert!(announce.state().speaker.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_agent_that_is_stuck_withdraws_what_others_can_serve_and_nothing_else() {
    let announce = announce();
    let store = take(&announce);
    announce.begin();
    announce.publish(&store);
    announce.look(false);
    assert_eq!(told(&announce), ["10.244.1.0/24"]);
    assert!(warnings(&announce).iter().any(|it| it.contains("withdrawn")), "{:?}", warnings(&announce));
    announce.look(true);
    assert_eq!(told(&announce), ["198.51.100.10/32", "10.244.1.0/24"]);
    assert_eq!(warnings(&announce), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_port_that_is_taken_is_told_of_and_tried_again() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut announce = announce();
    announce.options.bgp_listen = vec![taken.local_addr().unwrap()];
    let store = take(&announce);
    announce.begin();
    announce.publish(&store);
    assert!(warnings(&announce)[0].contains("listening for BGP on"), "{:?}", warnings(&announce));
    drop(taken);
    announce.look(true);
    assert_eq!(warnings(&announce), Vec::<String>::new());
    assert!(announce.state().speaker.is_some());
}
