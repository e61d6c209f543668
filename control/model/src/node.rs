//! Node: addresses and prefixes.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::Value;

use crate::selector::labels;
use crate::{Family, Invalid, Labels, Name, address, wire};

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// A valid Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Name,
    /// `status.addresses` of type `InternalIP`, in their order; the first of a family is the primary one.
    pub addresses: Vec<IpAddr>,
    /// `status.addresses` of type `ExternalIP`: the node's own as well, so that no service may have one; nothing is sent
    /// there and nothing is served there.
    pub external: Vec<IpAddr>,
    /// `spec.podCIDRs`, at most one per family.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Name>,
    /// Its labels.
    pub labels: Labels,
    /// `spec.unschedulable`: cordoned.
    pub unschedulable: bool,
    /// Keys of `spec.taints`.
    pub taints: Vec<Name>,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
}

impl Node {
    pub(crate) fn new(name: &str, wire: &wire::Node) -> Result<Self, Invalid> {
        let zone = match wire.metadata.labels.get(ZONE_LABEL) {
            Some(Value::String(zone)) if !zone.is_empty() => Some(zone.as_str().into()),
            _ => None,
        };
        Ok(Self {
            name: name.into(),
            addresses: addresses(&wire.status.addresses)?,
            external: external(&wire.status.addresses),
            pod_cidrs: pod_cidrs(&wire.spec)?,
            zone,
            labels: labels(&wire.metadata.labels),
            unschedulable: wire.spec.unschedulable.unwrap_or(false),
            taints: wire.spec.taints.iter().map(|taint| taint.key.as_str().into()).collect(),
            deleting: wire.metadata.deletion_timestamp.is_some(),
        })
    }

    /// The first address of a family.
    pub fn primary(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|addr| Family::of(*addr) == family)
    }
}

fn addresses(wires: &[wire::NodeAddress]) -> Result<Vec<IpAddr>, Invalid> {
    let internal = wires.iter().enumerate().filter(|(_, wire)| wire.kind == "InternalIP");
    internal
        .map(|(i, wire)| address::parse(format!("status.addresses[{i}].address"), &wire.address))
        .collect()
}

/// What is no address cannot be one that a service asks for: nothing is lost with it.
fn external(wires: &[wire::NodeAddress]) -> Vec<IpAddr> {
    let external = wires.iter().filter(|wire| wire.kind == "ExternalIP");
    external.filter_map(|wire| wire.address.parse().ok()).collect()
}

fn pod_cidrs(spec: &wire::NodeSpec) -> Result<Vec<IpNetwork>, Invalid> {
    if spec.pod_cidrs.is_empty() {
        let single = spec.pod_cidr.as_deref().filter(|cidr| !cidr.is_empty());
        return single.map(|cidr| pod_cidr("spec.podCIDR".into(), cidr)).into_iter().collect();
    }
    let mut cidrs: Vec<IpNetwork> = Vec::new();
    for (i, text) in spec.pod_cidrs.iter().enumerate() {
        let field = format!("spec.podCIDRs[{i}]");
        let cidr = pod_cidr(field.clone(), text)?;
        if cidrs.iter().any(|earlier| Family::of_prefix(*earlier) == Family::of_prefix(cidr)) {
            return Err(Invalid::text(field, "at most one prefix of each family", text));
        }
        cidrs.push(cidr);
    }
    Ok(cidrs)
}

/// A pod prefix becomes a route on every other node: one that covers more than a cluster's addresses would
/// take the nodes off the network.
fn pod_cidr(field: String, text: &str) -> Result<IpNetwork, Invalid> {
    let cidr = address::parse_prefix(field.as_str(), text)?;
    // The network address must be one that pods may have (no loopback, multicast and so on).
    address::parse(field.as_str(), &cidr.ip().to_string())?;
    let shortest = match Family::of_prefix(cidr) {
        Family::V4 => 8,
        Family::V6 => 32,
    };
    if cidr.prefix() < shortest {
        return Err(Invalid::text(field, format!("a prefix of length {shortest} or more"), text));
    }
    Ok(cidr)
}
