//! What a Service of type LoadBalancer asks for.

use std::net::IpAddr;

use serde_json::Value;
use smallvec::SmallVec;

use crate::selector::labels;
use crate::{Family, Invalid, Labels, Name, address, wire};

/// Annotation: the addresses that a service wants, separated by commas, one of each family at most.
pub const ADDRESSES_ANNOTATION: &str = "portolan.dev/load-balancer-ips";
/// Annotation: services with the same text here may share an address.
pub const SHARING_ANNOTATION: &str = "portolan.dev/sharing-key";
/// Annotation: the pool that a service wants its addresses from.
pub const POOL_ANNOTATION: &str = "portolan.dev/pool";

/// What an allocator of addresses needs to know. Only services of type LoadBalancer have it, behind a pointer, so
/// that the others stay small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadBalancer {
    /// `spec.loadBalancerClass`.
    pub class: Option<Name>,
    /// Addresses that are asked for: the annotation's, or without one `spec.loadBalancerIP`. One of each family at most.
    pub requested: SmallVec<[IpAddr; 2]>,
    /// Services with the same key may share an address.
    pub sharing_key: Option<Name>,
    /// The pool that is asked for.
    pub pool: Option<Name>,
    /// What of the request cannot be understood. Nothing may be given then: it might not be what was meant.
    pub unreadable: Option<Invalid>,
    /// `spec.ipFamilies`, or without them those of the ClusterIPs. Unique.
    pub families: SmallVec<[Family; 2]>,
    /// Both families or nothing: `ipFamilyPolicy: RequireDualStack`.
    pub require_dual_stack: bool,
    /// `status.loadBalancer.ingress[].ip` whose `ipMode` is `Proxy`: the load balancer's own, never served here.
    pub proxied_ips: Vec<IpAddr>,
    /// Its labels.
    pub labels: Labels,
    /// `spec.selector`: which pods answer. Empty: somebody writes its endpoints by hand.
    pub selector: Labels,
    /// `spec.allocateLoadBalancerNodePorts`.
    pub node_ports: bool,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// `metadata.finalizers`.
    pub finalizers: Vec<Name>,
}

impl LoadBalancer {
    /// Never fails: a request that is not understood costs the service its new addresses, not its other ones.
    pub(crate) fn new(
        wire: &wire::Service,
        cluster_ips: &[IpAddr],
        proxied_ips: Vec<IpAddr>,
        warnings: &mut Vec<Invalid>,
    ) -> Self {
        let spec = &wire.spec;
        let mut unreadable = None;
        let mut note = |invalid: Invalid| {
            warnings.push(invalid.clone());
            unreadable.get_or_insert(invalid);
        };
        let requested = requested(wire).unwrap_or_else(|invalid| {
            note(invalid);
            SmallVec::new()
        });
        let mut text = |name| {
            annotation(wire, name).unwrap_or_else(|invalid| {
                note(invalid);
                None
            })
        };
        let (sharing_key, pool) = (text(SHARING_ANNOTATION), text(POOL_ANNOTATION));
        let families = families(&spec.ip_families, cluster_ips).unwrap_or_else(|invalid| {
            note(invalid);
            SmallVec::new()
        });
        Self {
            class: spec.load_balancer_class.as_deref().filter(|class| !class.is_empty()).map(Name::from),
            requested,
            sharing_key: sharing_key.map(Name::from),
            pool: pool.map(Name::from),
            unreadable,
            families,
            require_dual_stack: spec.ip_family_policy.as_deref() == Some("RequireDualStack"),
            proxied_ips,
            labels: labels(&wire.metadata.labels),
            selector: labels(&spec.selector),
            node_ports: spec.allocate_load_balancer_node_ports.unwrap_or(true),
            deleting: wire.metadata.deletion_timestamp.is_some(),
            finalizers: wire.metadata.finalizers.iter().map(|name| name.as_str().into()).collect(),
        }
    }
}

/// The text of an annotation; one that is empty counts as absent.
fn annotation<'a>(wire: &'a wire::Service, name: &str) -> Result<Option<&'a str>, Invalid> {
    match wire.metadata.annotations.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.trim()).filter(|text| !text.is_empty())),
        Some(other) => {
            Err(Invalid::new(format!("metadata.annotations[{name}]"), "text in quotes", other.to_string()))
        }
    }
}

fn requested(wire: &wire::Service) -> Result<SmallVec<[IpAddr; 2]>, Invalid> {
    let annotated = annotation(wire, ADDRESSES_ANNOTATION)?;
    let single = wire.spec.load_balancer_ip.as_deref().filter(|text| !text.is_empty());
    let (field, list) = match (annotated, single) {
        (Some(list), _) => (format!("metadata.annotations[{ADDRESSES_ANNOTATION}]"), list),
        (None, Some(single)) => ("spec.loadBalancerIP".to_owned(), single),
        (None, None) => return Ok(SmallVec::new()),
    };
    let mut addrs: SmallVec<[IpAddr; 2]> = SmallVec::new();
    for text in list.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        let addr = address::parse(field.as_str(), text)?;
        if addrs.iter().any(|earlier| Family::of(*earlier) == Family::of(addr)) {
            return Err(Invalid::text(field, "at most one address of each family", list));
        }
        addrs.push(addr);
    }
    Ok(addrs)
}

fn families(texts: &[String], cluster_ips: &[IpAddr]) -> Result<SmallVec<[Family; 2]>, Invalid> {
    if texts.is_empty() {
        return Ok(cluster_ips.iter().map(|ip| Family::of(*ip)).collect());
    }
    let mut families: SmallVec<[Family; 2]> = SmallVec::new();
    for (i, text) in texts.iter().enumerate() {
        let field = format!("spec.ipFamilies[{i}]");
        let family = Family::parse(field.as_str(), text)?;
        if families.contains(&family) {
            return Err(Invalid::text(field, "each family once", text));
        }
        families.push(family);
    }
    Ok(families)
}
