//! EndpointSlice: who answers for a service.

use std::net::IpAddr;
use std::time::SystemTime;

use serde_json::Value;
use smallvec::SmallVec;

use crate::name::{check_label, check_subdomain};
use crate::service::{HEADLESS_LABEL, port_number, protocol};
use crate::{Family, Invalid, Name, NamespacedName, Protocol, ServiceKey, address, wire};

const TRIGGERED_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";
pub(crate) const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// A valid EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub key: NamespacedName,
    /// The service it belongs to, by label; `None`: nobody's, or a headless service's.
    pub service: Option<ServiceKey>,
    /// The family of every endpoint; `None` for FQDN slices, which have no endpoints for us.
    pub family: Option<Family>,
    /// Ports that every endpoint serves. The number behind one name may differ from slice to slice.
    pub ports: SmallVec<[SlicePort; 1]>,
    /// Acceptable endpoints, in their order.
    pub endpoints: Vec<Endpoint>,
    /// When the pod or service changed that the last change of this slice is about, if its writer says so.
    pub triggered: Option<SystemTime>,
}

/// One port of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Matches the name of a service's port.
    pub name: Name,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// 1 to 65535.
    pub port: u16,
}

/// One endpoint. `ready` is `true` if it was absent, `serving` as `ready`, `terminating` `false`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The first of its addresses: the others mean nothing (KEP-752).
    pub addr: IpAddr,
    /// Gets new flows.
    pub ready: bool,
    /// Answers, whether or not it terminates.
    pub serving: bool,
    /// Its pod is being deleted.
    pub terminating: bool,
    /// Where it runs.
    pub node: Option<Name>,
    /// Topology hints; `None` if it has neither kind.
    pub hints: Option<Box<Hints>>,
}

/// For whom an endpoint is meant (KEP-2433, KEP-3015).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Zones.
    pub zones: Vec<Name>,
    /// Nodes.
    pub nodes: Vec<Name>,
}

impl EndpointSlice {
    pub(crate) fn new(
        key: NamespacedName,
        wire: wire::EndpointSlice,
        warnings: &mut Vec<Invalid>,
    ) -> Result<Self, Invalid> {
        let family = family(wire.address_type.as_deref())?;
        let headless = wire.metadata.labels.contains_key(HEADLESS_LABEL);
        let service = service(key.namespace(), &wire.metadata.labels)?;
        Ok(Self {
            service: service.filter(|_| !headless),
            ports: ports(&wire.ports, warnings)?,
            endpoints: family.map(|family| endpoints(&wire.endpoints, family, warnings)).unwrap_or_default(),
            triggered: triggered(&wire.metadata.annotations),
            family,
            key,
        })
    }
}

/// Only measured by: a time that is none costs the measurement, not the slice.
fn triggered(annotations: &wire::Labels) -> Option<SystemTime> {
    let text = annotations.get(TRIGGERED_ANNOTATION)?.as_str()?;
    text.parse::<jiff::Timestamp>().ok().map(SystemTime::from)
}

fn family(text: Option<&str>) -> Result<Option<Family>, Invalid> {
    const EXPECTED: &str = "IPv4, IPv6 or FQDN";
    match text {
        Some("IPv4") => Ok(Some(Family::V4)),
        Some("IPv6") => Ok(Some(Family::V6)),
        Some("FQDN") => Ok(None),
        Some(other) => Err(Invalid::text("addressType", EXPECTED, other)),
        None => Err(Invalid::absent("addressType", EXPECTED)),
    }
}

fn service(namespace: &str, labels: &wire::Labels) -> Result<Option<ServiceKey>, Invalid> {
    let field = format!("metadata.labels[{SERVICE_NAME_LABEL}]");
    match labels.get(SERVICE_NAME_LABEL) {
        None => Ok(None),
        Some(Value::String(name)) => {
            check_label(&field, name)?;
            Ok(Some(ServiceKey::new(namespace, name)))
        }
        Some(other) => Err(Invalid::new(field, "text", other.to_string())),
    }
}

/// A port without a number means "all ports", which only consumers other than a service proxy understand.
fn ports(
    wires: &[wire::SlicePort],
    warnings: &mut Vec<Invalid>,
) -> Result<SmallVec<[SlicePort; 1]>, Invalid> {
    let mut ports = SmallVec::new();
    for (i, wire) in wires.iter().enumerate() {
        let field = |name: &str| format!("ports[{i}].{name}");
        if wire.port.is_none() {
            continue;
        }
        let port = port_number(field("port"), wire.port)?;
        if let Some(protocol) = protocol(&field("protocol"), wire.protocol.as_deref(), warnings)? {
            ports.push(SlicePort { name: wire.name.as_str().into(), protocol, port });
        }
    }
    Ok(ports)
}

/// Endpoints of one slice, as the API server allows them (`maxEndpoints` in Kubernetes' validation of discovery). Time and
/// memory for one object are bounded, whoever wrote it.
const ENDPOINTS_MAX: usize = 1000;

/// An endpoint that is refused costs itself, not the slice: the others keep serving.
fn endpoints(wires: &[wire::Endpoint], family: Family, warnings: &mut Vec<Invalid>) -> Vec<Endpoint> {
    let wires = match wires.get(..ENDPOINTS_MAX) {
        Some(first) if wires.len() > ENDPOINTS_MAX => {
            let expected = format!("at most {ENDPOINTS_MAX}: put more into another slice");
            warnings.push(Invalid::new("endpoints", expected, wires.len().to_string()));
            first
        }
        _ => wires,
    };
    let mut endpoints = Vec::with_capacity(wires.len());
    let mut last_node: Option<Name> = None;
    for (i, wire) in wires.iter().enumerate() {
        match endpoint(i, wire, family, &mut last_node) {
            Ok(endpoint) => endpoints.push(endpoint),
            Err(invalid) => warnings.push(invalid),
        }
    }
    endpoints
}

fn endpoint(
    i: usize,
    wire: &wire::Endpoint,
    family: Family,
    last_node: &mut Option<Name>,
) -> Result<Endpoint, Invalid> {
    let field = format!("endpoints[{i}].addresses[0]");
    let Some(text) = wire.addresses.first() else {
        return Err(Invalid::absent(field, format!("an {family} address")));
    };
    let addr = address::parse(field.as_str(), text)?;
    if Family::of(addr) != family {
        return Err(Invalid::text(field, format!("an {family} address, as addressType says"), text));
    }
    let node = match wire.node_name.as_deref() {
        None | Some("") => None,
        Some(name) => {
            check_subdomain(&format!("endpoints[{i}].nodeName"), name)?;
            // Neighbours in a slice often share a node.
            let shared = last_node.take().filter(|last| **last == *name).unwrap_or_else(|| name.into());
            Some(last_node.insert(shared).clone())
        }
    };
    let ready = wire.conditions.ready.unwrap_or(true);
    Ok(Endpoint {
        addr,
        ready,
        serving: wire.conditions.serving.unwrap_or(ready),
        terminating: wire.conditions.terminating.unwrap_or(false),
        node,
        hints: hints(&wire.hints),
    })
}

fn hints(wire: &wire::Hints) -> Option<Box<Hints>> {
    if wire.for_zones.is_empty() && wire.for_nodes.is_empty() {
        return None;
    }
    let names = |hints: &[wire::Hint]| hints.iter().map(|hint| hint.name.as_str().into()).collect();
    Some(Box::new(Hints { zones: names(&wire.for_zones), nodes: names(&wire.for_nodes) }))
}
