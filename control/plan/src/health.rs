//! What load balancers ask of this node: for which services it has endpoints, and whether it stays.

use std::collections::BTreeSet;
use std::net::IpAddr;

use portolan_model::{Endpoint, Entry, ServiceKey, ServiceType, Store};

use crate::service::served;

/// Taint that the cluster autoscaler gives to a node that it is about to remove (KEP-3836).
pub(crate) const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// The health check port of a service whose outside clients stay on the node that they come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The service.
    pub service: ServiceKey,
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// Endpoints on this node that take new connections: distinct addresses, over all ports and both families.
    pub endpoints: usize,
}

/// What a service's health check port answers on the node of this name; `None`: it has none.
///
/// A terminating endpoint never counts, though new flows go there while there is no other: the load balancer is to turn
/// to other nodes before it is gone (KEP-1669).
#[must_use]
pub fn health_check(entry: &Entry, node: &str) -> Option<HealthCheck> {
    let service = served(entry)?;
    let checked = service.kind == ServiceType::LoadBalancer && service.external_local;
    if !checked || service.health_check_node_port == 0 {
        return None;
    }
    let counts = |endpoint: &&Endpoint| {
        endpoint.ready && !endpoint.terminating && endpoint.node.as_deref() == Some(node)
    };
    let serving = entry.slices.iter().filter(|slice| !slice.ports.is_empty());
    let addresses: BTreeSet<IpAddr> =
        serving.flat_map(|slice| &slice.endpoints).filter(counts).map(|endpoint| endpoint.addr).collect();
    Some(HealthCheck {
        service: service.key.clone(),
        port: service.health_check_node_port,
        endpoints: addresses.len(),
    })
}

/// Whether load balancers may send this node new connections: its Node object is there and not about to go (KEP-3836).
#[must_use]
pub fn is_eligible(store: &Store, node: &str) -> bool {
    store
        .node(node)
        .is_some_and(|node| !node.deleting && node.taints.iter().all(|key| **key != *LEAVING_TAINT))
}

#[cfg(test)]
mod tests;
