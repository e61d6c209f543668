//! CustomResourceDefinitions of our kinds, made of the wire types that read them.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use crate::Kind;
use crate::custom::{
    BgpAdvertisementSpec, BgpPeerSpec, GROUP, LoadBalancerPoolSpec, LoadBalancerPoolStatus, ObjectStatus,
};

/// A column of `kubectl get`.
struct Column {
    name: &'static str,
    /// As OpenAPI names it.
    kind: &'static str,
    path: &'static str,
    about: &'static str,
}

/// The `apiextensions.k8s.io/v1` CustomResourceDefinition of every kind of our group, in the order of their names.
#[must_use]
pub fn crds() -> Vec<Value> {
    vec![
        crd::<BgpAdvertisementSpec, ObjectStatus>(Kind::BgpAdvertisement, "bgpadv", ADVERTISEMENT_COLUMNS),
        crd::<BgpPeerSpec, ObjectStatus>(Kind::BgpPeer, "bgppeer", PEER_COLUMNS),
        crd::<LoadBalancerPoolSpec, LoadBalancerPoolStatus>(Kind::LoadBalancerPool, "lbpool", POOL_COLUMNS),
    ]
}

const POOL_COLUMNS: &[Column] = &[
    Column { name: "Auto", kind: "boolean", path: ".spec.autoAssign", about: "Given without asking" },
    Column { name: "Priority", kind: "integer", path: ".spec.priority", about: "Higher ones are used first" },
    Column {
        name: "IPv4 assigned",
        kind: "integer",
        path: ".status.ipv4.assigned",
        about: "Addresses that services have",
    },
    Column {
        name: "IPv4 available",
        kind: "integer",
        path: ".status.ipv4.available",
        about: "Addresses that are left",
    },
    Column {
        name: "IPv6 assigned",
        kind: "integer",
        path: ".status.ipv6.assigned",
        about: "Addresses that services have",
    },
    Column {
        name: "Ready",
        kind: "string",
        path: ".status.conditions[?(@.type==\"Ready\")].status",
        about: "Whether services get addresses of it",
    },
];

const PEER_COLUMNS: &[Column] = &[
    Column { name: "Address", kind: "string", path: ".spec.peerAddress", about: "The router's address" },
    Column { name: "ASN", kind: "integer", path: ".spec.peerASN", about: "The router's AS number" },
    Column { name: "My ASN", kind: "integer", path: ".spec.myASN", about: "The AS number shown to it" },
];

const ADVERTISEMENT_COLUMNS: &[Column] = &[
    Column { name: "Pools", kind: "string", path: ".spec.pools", about: "Whose addresses are announced" },
    Column { name: "Peers", kind: "string", path: ".spec.peers", about: "Who is told" },
    Column { name: "podCIDRs", kind: "boolean", path: ".spec.podCIDRs", about: "Announced as well" },
];

fn crd<Spec: JsonSchema, Status: JsonSchema>(kind: Kind, short: &str, columns: &[Column]) -> Value {
    let singular = kind.as_str().to_lowercase();
    let plural = format!("{singular}s");
    let spec = schema::<Spec>();
    let about = spec["description"].as_str().unwrap_or_default().to_owned();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{GROUP}")},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind.as_str(), "listKind": format!("{}List", kind.as_str()), "plural": plural,
                "singular": singular, "shortNames": [short],
            },
            "scope": "Cluster",
            "versions": [{
                "name": "v1alpha1", "served": true, "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": columns.iter().map(column).chain([age()]).collect::<Value>(),
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "description": about,
                    "required": ["spec"],
                    "properties": {
                        "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
                        "spec": spec, "status": schema::<Status>(),
                    },
                }},
            }],
        },
    })
}

fn column(column: &Column) -> Value {
    let Column { name, kind, path, about } = column;
    json!({"name": name, "type": kind, "jsonPath": path, "description": about})
}

fn age() -> Value {
    json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"})
}

/// The schema of a type as the API server takes it: one piece, without references
/// (apiextensions' "structural schema").
fn schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut value = Schema::to_value(settings.into_generator().into_root_schema_for::<T>());
    simplify(&mut value);
    value
}

/// Leaves out what the API server does not take or what says nothing: titles, sizes of Rust's integers, and that
/// fields may be null, which they are as little as those of other kinds.
fn simplify(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if is_schema(fields) {
                fields.retain(|name, value| match name.as_str() {
                    "title" | "nullable" => false,
                    "default" => ![json!(null), json!({}), json!([]), json!("")].contains(value),
                    "format" => !value.as_str().is_some_and(|format| format.starts_with("uint")),
                    _ => true,
                });
            }
            fields.values_mut().for_each(simplify);
        }
        Value::Array(items) => items.iter_mut().for_each(simplify),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Not the map below `properties`, whose names are those of fields.
fn is_schema(fields: &Map<String, Value>) -> bool {
    fields.get("type").is_some_and(Value::is_string)
}

#[cfg(test)]
mod tests;
