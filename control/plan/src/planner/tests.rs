use portolan_model::{Event, Kind, ObjectKey, Protocol, read};
use serde_json::{Value, json};

use super::*;
use crate::{Reason, ServicePort, Why};

mod changes;
mod conflicts;
mod frontends;
mod host_ports;
mod nodes;
mod properties;
mod sets;
mod sources;

fn upsert(document: Value) -> Event {
    Event::Upsert(read(&document).expect("the test's object is valid").expect("it is of our kinds").object)
}

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

fn load_balancer(name: &str, cluster_ip: &str, created: &str, ip: &str) -> Event {
    let mut document =
        service(name, json!({"type": "LoadBalancer", "clusterIP": cluster_ip, "ports": [{"port": 80}]}));
    document["metadata"]["creationTimestamp"] = json!(created);
    document["status"] = json!({"loadBalancer": {"ingress": [{"ip": ip}]}});
    upsert(document)
}

fn slice(service: &str, endpoints: Value) -> Event {
    upsert(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service}},
        "ports": [{"port": 8080}], "endpoints": endpoints,
    }))
}

fn node(name: &str, addresses: &[&str], pod_cidrs: &[&str]) -> Event {
    let addresses: Vec<Value> =
        addresses.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    upsert(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "spec": {"podCIDRs": pod_cidrs}, "status": {"addresses": addresses},
    }))
}

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("default", name)
}

/// A store and a planner for node `a` that follow events together.
struct World {
    store: Store,
    planner: Planner,
}

impl World {
    fn new() -> Self {
        Self { store: Store::default(), planner: Planner::new("a") }
    }

    fn apply(&mut self, events: impl IntoIterator<Item = Event>) -> Changes {
        let touched = self.store.apply_all(events);
        self.planner.plan(&self.store, Extent::Touched(&touched))
    }

    fn ports(&self, name: &str) -> Vec<ServicePort> {
        let found = self.planner.desired().find(|(known, _)| **known == key(name));
        found.map(|(_, plan)| plan.ports.clone()).unwrap_or_default()
    }

    fn frontends(&self, name: &str) -> Vec<String> {
        let text = |f: &crate::FrontendAddr| match f.addr {
            Some(addr) => format!("{:?} {}", f.scope, std::net::SocketAddr::new(addr, f.port)),
            None => format!("{:?} *:{}", f.scope, f.port),
        };
        self.ports(name).iter().flat_map(|port| port.frontends.iter().map(text)).collect()
    }
}

/// `Reason: message` of all.
fn texts(conditions: &[Condition]) -> String {
    let text = |it: &Condition| format!("{}: {}", it.reason.as_str(), it.message);
    conditions.iter().map(text).collect::<Vec<_>>().join("\n")
}
