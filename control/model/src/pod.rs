//! Pod: where it runs and with which addresses.

use std::net::IpAddr;

use crate::name::check_subdomain;
use crate::{Invalid, Name, NamespacedName, address, wire};

/// A valid Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub key: NamespacedName,
    /// `spec.nodeName`; `None` while it is not scheduled.
    pub node: Option<Name>,
    /// `status.podIPs`; empty until its network is set up.
    pub ips: Vec<IpAddr>,
    /// It uses the node's network namespace: its addresses are the node's.
    pub host_network: bool,
    /// Succeeded or failed: its addresses may already be another pod's.
    pub finished: bool,
}

impl Pod {
    pub(crate) fn new(key: NamespacedName, wire: wire::Pod) -> Result<Self, Invalid> {
        let node = wire.spec.node_name.filter(|name| !name.is_empty());
        if let Some(node) = &node {
            check_subdomain("spec.nodeName", node)?;
        }
        Ok(Self {
            node: node.map(Name::from),
            ips: ips(&wire.status)?,
            host_network: wire.spec.host_network.unwrap_or(false),
            finished: matches!(wire.status.phase.as_deref(), Some("Succeeded" | "Failed")),
            key,
        })
    }
}

fn ips(status: &wire::PodStatus) -> Result<Vec<IpAddr>, Invalid> {
    if status.pod_ips.is_empty() {
        let single = status.pod_ip.as_deref().filter(|ip| !ip.is_empty());
        return single.map(|ip| address::parse("status.podIP", ip)).into_iter().collect();
    }
    let listed = status.pod_ips.iter().enumerate();
    listed.map(|(i, wire)| address::parse(format!("status.podIPs[{i}].ip"), &wire.ip)).collect()
}
