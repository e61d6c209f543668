//! From an untyped document to a valid object.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::name::{check_label, check_subdomain};
use crate::slice::SERVICE_NAME_LABEL;
use crate::{
    BgpAdvertisement, BgpPeer, EndpointSlice, Invalid, Kind, LoadBalancerPool, NamespacedName, Node,
    ObjectKey, Pod, Service, ServiceKey, ServiceStatus, wire,
};

/// A valid object of one of our kinds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A Service.
    Service(Service),
    /// An EndpointSlice.
    EndpointSlice(EndpointSlice),
    /// A Node.
    Node(Node),
    /// A Pod.
    Pod(Pod),
    /// A LoadBalancerPool.
    LoadBalancerPool(LoadBalancerPool),
    /// A BGPPeer.
    BgpPeer(BgpPeer),
    /// A BGPAdvertisement.
    BgpAdvertisement(BgpAdvertisement),
    /// A ServiceStatus.
    ServiceStatus(ServiceStatus),
}

impl Object {
    /// Kind, namespace and name.
    pub fn key(&self) -> ObjectKey {
        let whole = |name: &str| NamespacedName::new("", name);
        let (kind, id) = match self {
            Object::Service(service) => (Kind::Service, service.key.clone()),
            Object::EndpointSlice(slice) => (Kind::EndpointSlice, slice.key.clone()),
            Object::Node(node) => (Kind::Node, whole(&node.name)),
            Object::Pod(pod) => (Kind::Pod, pod.key.clone()),
            Object::LoadBalancerPool(pool) => (Kind::LoadBalancerPool, whole(&pool.name)),
            Object::BgpPeer(peer) => (Kind::BgpPeer, whole(&peer.name)),
            Object::BgpAdvertisement(it) => (Kind::BgpAdvertisement, whole(&it.name)),
            Object::ServiceStatus(status) => (Kind::ServiceStatus, status.key.clone()),
        };
        ObjectKey { kind, id }
    }
}

/// A valid object and the parts of its document that were left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The object without the refused parts.
    pub object: Object,
    /// The refused parts: an SCTP port, an endpoint on a loopback address, and the like.
    pub warnings: Vec<Invalid>,
}

/// An object refused as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("refusing {}: {invalid}", key.as_ref().map_or_else(|| "an object without a name".into(), ToString::to_string))]
pub struct Refused {
    /// Which object, as far as its document tells.
    pub key: Option<ObjectKey>,
    /// Why.
    #[source]
    pub invalid: Invalid,
}

/// What a document says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// One of our kinds.
    Ours(ObjectKey),
    /// Another kind, which is nobody's mistake.
    Other {
        /// Its `apiVersion`.
        api_version: String,
        /// Its `kind`.
        kind: String,
    },
}

/// Reads kind, namespace and name. An absent namespace is `default`, as for `kubectl apply`.
///
/// # Errors
/// `apiVersion`, `kind` or `metadata.name` is absent, not text, or not a valid name. `Refused::key` is set if
/// kind and name could be read all the same.
pub fn identify(document: &Value) -> Result<Identity, Refused> {
    // serde would take a list for a struct, field by field.
    if !document.is_object() {
        return Err(Refused {
            key: None,
            invalid: Invalid::new("", "an object with fields", type_name(document)),
        });
    }
    let head: wire::Head = parse(document).map_err(|invalid| Refused { key: None, invalid })?;
    let absent =
        |field: &str, expected: &str| Refused { key: None, invalid: Invalid::absent(field, expected) };
    let kind = head.kind.ok_or_else(|| absent("kind", "a kind like Service"))?;
    let api_version = head.api_version.ok_or_else(|| absent("apiVersion", "an API version like v1"))?;
    // A Knative `Service` is not ours: the group decides as much as the kind does.
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    let ours = Kind::ALL.into_iter().find(|ours| ours.as_str() == kind && ours.group() == group);
    let Some(ours) = ours else { return Ok(Identity::Other { api_version, kind }) };

    let name = head.metadata.name.ok_or_else(|| absent("metadata.name", "a name"))?;
    let namespace = match head.metadata.namespace {
        _ if !ours.is_namespaced() => String::new(),
        None => "default".to_owned(),
        Some(namespace) => namespace,
    };
    check_names(ours, &namespace, &name).map_err(|invalid| Refused { key: None, invalid })?;
    let key = ObjectKey::new(ours, &namespace, &name);
    if api_version != ours.api_version() {
        let invalid = Invalid::text("apiVersion", ours.api_version(), &api_version);
        return Err(Refused { key: Some(key), invalid });
    }
    Ok(Identity::Ours(key))
}

/// Reads one document into an object; `None` if it is of another kind.
///
/// # Errors
/// Its head is not readable (see [`identify`]) or a field without which the object means nothing is invalid.
pub fn read(document: &Value) -> Result<Option<Reading>, Refused> {
    let key = match identify(document)? {
        Identity::Ours(key) => key,
        Identity::Other { .. } => return Ok(None),
    };
    let mut warnings = Vec::new();
    let object = match key.kind {
        Kind::Service => {
            parse(document).and_then(|w| Service::new(key.id.clone(), w, &mut warnings)).map(Object::Service)
        }
        Kind::EndpointSlice => parse(document)
            .and_then(|w| EndpointSlice::new(key.id.clone(), w, &mut warnings))
            .map(Object::EndpointSlice),
        Kind::Node => parse(document).and_then(|w| Node::new(key.name(), &w)).map(Object::Node),
        Kind::Pod => parse(document).and_then(|w| Pod::new(key.id.clone(), w)).map(Object::Pod),
        Kind::LoadBalancerPool => parse(document)
            .and_then(|w| LoadBalancerPool::new(key.name(), &w, &mut warnings))
            .map(Object::LoadBalancerPool),
        Kind::BgpPeer => parse(document).and_then(|w| BgpPeer::new(key.name(), &w)).map(Object::BgpPeer),
        Kind::BgpAdvertisement => {
            parse(document).and_then(|w| BgpAdvertisement::new(key.name(), &w)).map(Object::BgpAdvertisement)
        }
        Kind::ServiceStatus => parse(document)
            .map(|w| ServiceStatus::new(key.id.clone(), &w, &mut warnings))
            .map(Object::ServiceStatus),
    };
    match object {
        Ok(object) => Ok(Some(Reading { object, warnings })),
        Err(invalid) => Err(Refused { key: Some(key), invalid }),
    }
}

/// The service that an object is about: itself, the one that an EndpointSlice is labelled with, or that of a ServiceStatus. Also of documents that
/// are refused, as far as they tell.
pub fn service_of(key: &ObjectKey, document: &Value) -> Option<ServiceKey> {
    match key.kind {
        Kind::Service | Kind::ServiceStatus => Some(key.id.clone()),
        Kind::EndpointSlice => {
            let name = document.get("metadata")?.get("labels")?.get(SERVICE_NAME_LABEL)?.as_str()?;
            check_label("", name).ok()?;
            Some(ServiceKey::new(key.id.namespace(), name))
        }
        Kind::Node | Kind::Pod | Kind::LoadBalancerPool | Kind::BgpPeer | Kind::BgpAdvertisement => None,
    }
}

fn parse<T: DeserializeOwned>(document: &Value) -> Result<T, Invalid> {
    serde_path_to_error::deserialize(document).map_err(Invalid::from)
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "fields",
    }
}

fn check_names(kind: Kind, namespace: &str, name: &str) -> Result<(), Invalid> {
    if kind.is_namespaced() {
        check_label("metadata.namespace", namespace)?;
    }
    match kind {
        Kind::Service | Kind::ServiceStatus => check_label("metadata.name", name),
        Kind::EndpointSlice
        | Kind::Node
        | Kind::Pod
        | Kind::LoadBalancerPool
        | Kind::BgpPeer
        | Kind::BgpAdvertisement => check_subdomain("metadata.name", name),
    }
}

#[cfg(test)]
mod custom_tests;
#[cfg(test)]
mod tests;
