//! Service: addresses, ports, policies.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::Value;
use smallvec::SmallVec;

use crate::name::check_label;
use crate::{Family, Invalid, LoadBalancer, Name, ServiceKey, address, wire};

const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
pub(crate) const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
const SOURCE_RANGES_ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const AFFINITY_DEFAULT: u32 = 10_800;
const AFFINITY_MAX: i64 = 86_400;

/// A valid Service. Short lists are inline: planning 100,000 services is bound by cache misses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: ServiceKey,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// `spec.type`.
    pub kind: ServiceType,
    /// A label gives it to another proxy, or `clusterIP: None` or a label says that it is headless.
    pub skipped: bool,
    /// At most one per family; empty if headless or not yet allocated.
    pub cluster_ips: SmallVec<[IpAddr; 2]>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` whose `ipMode` is `VIP` or absent (KEP-1860).
    pub ingress_ips: Vec<IpAddr>,
    /// Who may use the ingress addresses, in both families as the object has them; empty: everybody.
    pub source_ranges: Vec<IpNetwork>,
    /// TCP and UDP ports. `(port, protocol)`, names and `(node_port, protocol)` are unique.
    pub ports: SmallVec<[Port; 1]>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `sessionAffinity: ClientIP`: its timeout, 1 to 86,400 seconds.
    pub affinity: Option<u32>,
    /// `spec.healthCheckNodePort`, 1 to 65535; 0: none.
    pub health_check_node_port: u16,
    /// What it asks of a load balancer, if its type is that.
    pub load_balancer: Option<Box<LoadBalancer>>,
}

/// `spec.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceType {
    /// Only inside the cluster.
    ClusterIp,
    /// Also on a port of every node.
    NodePort,
    /// Also on addresses that a load balancer gave.
    LoadBalancer,
    /// A DNS alias: nothing for the data plane.
    ExternalName,
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name, by which slices are matched; may be empty if it is the only one.
    pub name: Name,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// 1 to 65535.
    pub port: u16,
    /// 1 to 65535; 0: none.
    pub node_port: u16,
}

/// The transport protocols that are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        })
    }
}

/// A point in time, to the second, as the digits `YYYYMMDDhhmmss` (UTC): ordered, and no calendar is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The digits `YYYYMMDDhhmmss` as one number; never `u64::MAX`.
    pub const fn digits(self) -> u64 {
        self.0
    }

    /// Parses `2025-01-31T12:00:00Z`, the one form in which the API writes times.
    pub(crate) fn parse(field: &str, text: &str) -> Result<Self, Invalid> {
        let shape = text.len() == 20
            && text.bytes().zip(b"0000-00-00T00:00:00Z").all(|(byte, shape)| match shape {
                b'0' => byte.is_ascii_digit(),
                other => byte == *other,
            });
        if !shape {
            return Err(Invalid::text(field, "a UTC time like 2025-01-31T12:00:00Z", text));
        }
        let digits = text.bytes().filter(u8::is_ascii_digit);
        Ok(Self(digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))))
    }
}

impl Service {
    pub(crate) fn new(
        key: ServiceKey,
        wire: wire::Service,
        warnings: &mut Vec<Invalid>,
    ) -> Result<Self, Invalid> {
        let kind = service_type(wire.spec.kind.as_deref())?;
        let headless = wire.spec.cluster_ip.as_deref() == Some("None");
        let skipped = headless
            || wire.metadata.labels.contains_key(PROXY_NAME_LABEL)
            || wire.metadata.labels.contains_key(HEADLESS_LABEL);
        let ports = ports(&wire.spec.ports, warnings)?;
        if wire.spec.ports.is_empty() && kind != ServiceType::ExternalName && !headless {
            return Err(Invalid::absent("spec.ports", "at least one port"));
        }
        let ingress = ingress_ips(&wire.status.load_balancer.ingress, warnings);
        let cluster_ips = if headless { SmallVec::new() } else { cluster_ips(&wire.spec)? };
        let load_balancer = (kind == ServiceType::LoadBalancer)
            .then(|| Box::new(LoadBalancer::new(&wire, &cluster_ips, ingress.proxied, warnings)));
        Ok(Self {
            created: wire.metadata.created()?,
            kind,
            skipped,
            cluster_ips,
            load_balancer,
            external_ips: external_ips(&wire.spec.external_ips, warnings),
            ingress_ips: ingress.served,
            source_ranges: source_ranges(&wire)?,
            ports,
            internal_local: is_local("internalTrafficPolicy", wire.spec.internal_traffic_policy.as_deref())?,
            external_local: is_local("externalTrafficPolicy", wire.spec.external_traffic_policy.as_deref())?,
            affinity: affinity(&wire.spec)?,
            health_check_node_port: optional_port(
                "spec.healthCheckNodePort".into(),
                wire.spec.health_check_node_port,
            )?,
            key,
        })
    }
}

fn service_type(text: Option<&str>) -> Result<ServiceType, Invalid> {
    match text {
        None | Some("ClusterIP") => Ok(ServiceType::ClusterIp),
        Some("NodePort") => Ok(ServiceType::NodePort),
        Some("LoadBalancer") => Ok(ServiceType::LoadBalancer),
        Some("ExternalName") => Ok(ServiceType::ExternalName),
        Some(other) => {
            Err(Invalid::text("spec.type", "ClusterIP, NodePort, LoadBalancer or ExternalName", other))
        }
    }
}

fn cluster_ips(spec: &wire::ServiceSpec) -> Result<SmallVec<[IpAddr; 2]>, Invalid> {
    let single = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty());
    let Some(first) = spec.cluster_ips.first() else {
        return single.map(|ip| address::parse("spec.clusterIP", ip)).into_iter().collect();
    };
    if let Some(single) = single.filter(|single| single != first) {
        let expected = format!("the same address as spec.clusterIP ({single})");
        return Err(Invalid::text("spec.clusterIPs[0]", expected, first));
    }
    let mut ips: SmallVec<[IpAddr; 2]> = SmallVec::new();
    for (i, text) in spec.cluster_ips.iter().enumerate() {
        let field = format!("spec.clusterIPs[{i}]");
        let ip = address::parse(field.as_str(), text)?;
        if ips.iter().any(|earlier| Family::of(*earlier) == Family::of(ip)) {
            return Err(Invalid::text(field, "at most one address of each family", text));
        }
        ips.push(ip);
    }
    Ok(ips)
}

/// An entry that is wrong costs itself: the service's other addresses do not depend on it.
fn external_ips(texts: &[String], warnings: &mut Vec<Invalid>) -> Vec<IpAddr> {
    let parse = |(i, text): (usize, &String)| {
        address::parse(format!("spec.externalIPs[{i}]"), text).map_err(|invalid| warnings.push(invalid)).ok()
    };
    texts.iter().enumerate().filter_map(parse).collect()
}

/// Addresses that a load balancer gave, by who answers at them.
#[derive(Default)]
pub(crate) struct IngressIps {
    pub(crate) served: Vec<IpAddr>,
    proxied: Vec<IpAddr>,
}

/// Another component writes the status, so an entry that is wrong costs itself, not the service.
pub(crate) fn ingress_ips(ingress: &[wire::Ingress], warnings: &mut Vec<Invalid>) -> IngressIps {
    let mut ips = IngressIps::default();
    for (i, entry) in ingress.iter().enumerate() {
        let field = |name: &str| format!("status.loadBalancer.ingress[{i}].{name}");
        let Some(ip) = &entry.ip else { continue };
        match entry.ip_mode.as_deref() {
            None | Some("VIP") => match address::parse(field("ip"), ip) {
                Ok(ip) => ips.served.push(ip),
                Err(invalid) => warnings.push(invalid),
            },
            Some("Proxy") => match ip.parse() {
                Ok(ip) => ips.proxied.push(ip),
                Err(_) => warnings.push(Invalid::text(field("ip"), "an IP address", ip)),
            },
            Some(other) => warnings.push(Invalid::text(field("ipMode"), "VIP or Proxy", other)),
        }
    }
    ips
}

/// All ranges, whatever their family and length: which of them say something about an address is the planner's to know.
fn source_ranges(wire: &wire::Service) -> Result<Vec<IpNetwork>, Invalid> {
    let spec = &wire.spec.load_balancer_source_ranges;
    let annotation = wire.metadata.annotations.get(SOURCE_RANGES_ANNOTATION);
    match (spec.is_empty(), annotation) {
        (true, Some(Value::String(list))) => list
            .split(',')
            .map(str::trim)
            .filter(|text| !text.is_empty())
            .map(|text| {
                address::parse_prefix(format!("metadata.annotations[{SOURCE_RANGES_ANNOTATION}]"), text)
            })
            .collect(),
        (true, _) => Ok(Vec::new()),
        (false, _) => spec
            .iter()
            .enumerate()
            .map(|(i, text)| {
                address::parse_prefix(format!("spec.loadBalancerSourceRanges[{i}]"), text.trim())
            })
            .collect(),
    }
}

fn ports(wires: &[wire::ServicePort], warnings: &mut Vec<Invalid>) -> Result<SmallVec<[Port; 1]>, Invalid> {
    let mut ports = SmallVec::new();
    let (mut names, mut numbers, mut node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (i, wire) in wires.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{i}].{name}");
        if wires.len() > 1 || !wire.name.is_empty() {
            check_label(&field("name"), &wire.name)?;
        }
        if !names.insert(wire.name.as_str()) {
            return Err(Invalid::text(field("name"), "a name that no other port has", &wire.name));
        }
        let port = port_number(field("port"), wire.port)?;
        let node_port = optional_port(field("nodePort"), wire.node_port)?;
        let Some(protocol) = protocol(&field("protocol"), wire.protocol.as_deref(), warnings)? else {
            continue;
        };
        if !numbers.insert((port, protocol)) {
            return Err(Invalid::new(
                field("port"),
                format!("one entry per {protocol} port"),
                port.to_string(),
            ));
        }
        if node_port != 0 && !node_ports.insert((node_port, protocol)) {
            let expected = format!("one entry per {protocol} node port");
            return Err(Invalid::new(field("nodePort"), expected, node_port.to_string()));
        }
        ports.push(Port { name: wire.name.as_str().into(), protocol, port, node_port });
    }
    Ok(ports)
}

/// 0 where there is none: the API writes it so as well.
fn optional_port(field: String, number: Option<i64>) -> Result<u16, Invalid> {
    match number {
        None | Some(0) => Ok(0),
        number => port_number(field, number),
    }
}

pub(crate) fn port_number(field: String, number: Option<i64>) -> Result<u16, Invalid> {
    const EXPECTED: &str = "1 to 65535";
    let Some(number) = number else { return Err(Invalid::absent(field, EXPECTED)) };
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(Invalid::new(field, EXPECTED, number.to_string())),
    }
}

/// `None` for SCTP: the API allows it and other parts of the object are still good, so it costs only that port.
pub(crate) fn protocol(
    field: &str,
    text: Option<&str>,
    warnings: &mut Vec<Invalid>,
) -> Result<Option<Protocol>, Invalid> {
    match text {
        None | Some("TCP" | "") => Ok(Some(Protocol::Tcp)),
        Some("UDP") => Ok(Some(Protocol::Udp)),
        Some("SCTP") => {
            warnings.push(Invalid::text(
                field,
                "TCP or UDP (SCTP is not carried: this port is left out)",
                "SCTP",
            ));
            Ok(None)
        }
        Some(other) => Err(Invalid::text(field, "TCP or UDP", other)),
    }
}

fn is_local(name: &str, text: Option<&str>) -> Result<bool, Invalid> {
    match text {
        None | Some("Cluster" | "") => Ok(false),
        Some("Local") => Ok(true),
        Some(other) => Err(Invalid::text(format!("spec.{name}"), "Cluster or Local", other)),
    }
}

fn affinity(spec: &wire::ServiceSpec) -> Result<Option<u32>, Invalid> {
    match spec.session_affinity.as_deref() {
        None | Some("None" | "") => return Ok(None),
        Some("ClientIP") => {}
        Some(other) => return Err(Invalid::text("spec.sessionAffinity", "None or ClientIP", other)),
    }
    let Some(seconds) = spec.session_affinity_config.client_ip.timeout_seconds else {
        return Ok(Some(AFFINITY_DEFAULT));
    };
    match u32::try_from(seconds) {
        Ok(valid) if (1..=AFFINITY_MAX).contains(&seconds) => Ok(Some(valid)),
        _ => {
            let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
            Err(Invalid::new(field, format!("1 to {AFFINITY_MAX}"), seconds.to_string()))
        }
    }
}
