//! Names of objects: cheap to clone, checked against DNS rules.

use std::fmt;
use std::sync::Arc;

use crate::Invalid;
use crate::custom::{API_VERSION, GROUP};

/// A shared name (of a node, a zone, a port).
pub type Name = Arc<str>;

/// A service by namespace and name.
pub type ServiceKey = NamespacedName;

/// The kinds of object that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Node.
    Node,
    /// `v1` Pod.
    Pod,
    /// `portolan.dev/v1alpha1` LoadBalancerPool.
    LoadBalancerPool,
    /// `portolan.dev/v1alpha1` BGPPeer.
    BgpPeer,
    /// `portolan.dev/v1alpha1` BGPAdvertisement.
    BgpAdvertisement,
    /// `portolan.dev/v1alpha1` ServiceStatus: of files alone.
    ServiceStatus,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 8] = [
        Kind::Service,
        Kind::EndpointSlice,
        Kind::Node,
        Kind::Pod,
        Kind::LoadBalancerPool,
        Kind::BgpPeer,
        Kind::BgpAdvertisement,
        Kind::ServiceStatus,
    ];

    /// The text of the `kind` field.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Node => "Node",
            Kind::Pod => "Pod",
            Kind::LoadBalancerPool => "LoadBalancerPool",
            Kind::BgpPeer => "BGPPeer",
            Kind::BgpAdvertisement => "BGPAdvertisement",
            Kind::ServiceStatus => "ServiceStatus",
        }
    }

    /// The API group before the `/` of `apiVersion`; empty for the core group.
    pub const fn group(self) -> &'static str {
        match self {
            Kind::EndpointSlice => "discovery.k8s.io",
            Kind::Service | Kind::Node | Kind::Pod => "",
            Kind::LoadBalancerPool | Kind::BgpPeer | Kind::BgpAdvertisement | Kind::ServiceStatus => GROUP,
        }
    }

    /// Whether its objects belong to a namespace.
    pub const fn is_namespaced(self) -> bool {
        match self {
            Kind::Service | Kind::EndpointSlice | Kind::Pod | Kind::ServiceStatus => true,
            Kind::Node | Kind::LoadBalancerPool | Kind::BgpPeer | Kind::BgpAdvertisement => false,
        }
    }

    /// The text of the `apiVersion` field.
    pub const fn api_version(self) -> &'static str {
        match self {
            Kind::EndpointSlice => "discovery.k8s.io/v1",
            Kind::Service | Kind::Node | Kind::Pod => "v1",
            Kind::LoadBalancerPool | Kind::BgpPeer | Kind::BgpAdvertisement | Kind::ServiceStatus => {
                API_VERSION
            }
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

/// Namespace and name in one shared text, `namespace/name`; without a namespace just `name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespacedName(Arc<str>);

impl NamespacedName {
    /// Joins a namespace (empty: none) and a name. Neither is checked.
    pub fn new(namespace: &str, name: &str) -> Self {
        if namespace.is_empty() {
            Self(Arc::from(name))
        } else {
            Self(Arc::from(format!("{namespace}/{name}")))
        }
    }

    /// The namespace, empty for objects of the whole cluster.
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// The name without its namespace.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(&self.0, |(_, name)| name)
    }

    /// `namespace/name`, or `name` where there is no namespace.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Debug for NamespacedName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, out)
    }
}

/// One object: kind, namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace (none for a Node and other objects of the whole cluster) and name.
    pub id: NamespacedName,
}

impl ObjectKey {
    /// The key of an object; `namespace` is empty for objects of the whole cluster.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, id: NamespacedName::new(namespace, name) }
    }

    /// The namespace, empty for objects of the whole cluster.
    pub fn namespace(&self) -> &str {
        self.id.namespace()
    }

    /// The name without its namespace.
    pub fn name(&self) -> &str {
        self.id.name()
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.kind, self.id)
    }
}

/// Checks a DNS-1123 label: at most 63 of `a-z`, `0-9` and `-`, beginning and ending with a letter or digit.
pub(crate) fn check_label(field: &str, name: &str) -> Result<(), Invalid> {
    if is_label(name) {
        return Ok(());
    }
    Err(Invalid::text(field, "a DNS label (at most 63 of a-z, 0-9 and -, no - at an end)", name))
}

/// Checks a DNS-1123 subdomain: labels joined by `.`, at most 253 characters.
pub(crate) fn check_subdomain(field: &str, name: &str) -> Result<(), Invalid> {
    if name.len() <= 253 && name.split('.').all(is_label) {
        return Ok(());
    }
    Err(Invalid::text(field, "a DNS name (labels of a-z, 0-9 and - joined by dots, at most 253)", name))
}

fn is_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    bytes.len() <= 63
        && *first != b'-'
        && *last != b'-'
        && bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}
