use serde_json::{Value, json};

use super::*;
use crate::{LoadBalancerPool, Object, read};

/// Every schema of all kinds, with the path to it.
fn schemas() -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for crd in crds() {
        let name = crd["metadata"]["name"].as_str().unwrap().to_owned();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        collect(&name, schema, &mut all);
    }
    all
}

fn collect(path: &str, schema: &Value, all: &mut Vec<(String, Value)>) {
    all.push((path.to_owned(), schema.clone()));
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        collect(&format!("{path}.{name}"), field, all);
    }
    for name in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get(name) {
            collect(&format!("{path}[]"), inner, all);
        }
    }
}

#[test]
fn schemas_are_structural_and_explain_every_field() {
    // What apiextensions calls structural: each level has one type, and nothing is elsewhere.
    const ALLOWED: [&str; 16] = [
        "type",
        "description",
        "properties",
        "items",
        "additionalProperties",
        "required",
        "default",
        "format",
        "enum",
        "minimum",
        "maximum",
        "minItems",
        "maxItems",
        "x-kubernetes-validations",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
    ];
    for (path, schema) in schemas() {
        let fields = schema.as_object().unwrap();
        assert!(schema["type"].is_string(), "{path} has no type");
        for name in fields.keys() {
            assert!(ALLOWED.contains(&name.as_str()), "{path} has {name}");
        }
        for required in schema["required"].as_array().into_iter().flatten() {
            assert!(
                schema["properties"].get(required.as_str().unwrap()).is_some(),
                "{path} lacks {required}"
            );
        }
        let is_plain = path.ends_with("[]") && schema["type"] != "object";
        let is_head =
            ["apiVersion", "kind", "metadata"].iter().any(|name| path.ends_with(&format!("dev.{name}")));
        assert!(is_plain || is_head || schema["description"].is_string(), "{path} explains nothing");
    }
}

#[test]
fn crds_are_named_as_the_group_and_the_plural_and_have_their_status_apart() {
    let names: Vec<String> =
        crds().iter().map(|crd| crd["metadata"]["name"].as_str().unwrap().into()).collect();
    assert_eq!(
        names,
        ["bgpadvertisements.portolan.dev", "bgppeers.portolan.dev", "loadbalancerpools.portolan.dev"]
    );
    for crd in crds() {
        let (spec, version) = (&crd["spec"], &crd["spec"]["versions"][0]);
        assert_eq!(spec["scope"], "Cluster");
        assert_eq!(version["subresources"], json!({"status": {}}));
        let kind = Kind::ALL.into_iter().find(|kind| spec["names"]["kind"] == kind.as_str()).unwrap();
        assert_eq!(kind.api_version(), format!("{}/{}", spec["group"].as_str().unwrap(), "v1alpha1"));
        let columns = version["additionalPrinterColumns"].as_array().unwrap();
        assert!(columns.iter().all(|column| column["jsonPath"].is_string()) && columns.len() >= 4);
    }
}

/// An object of only what the schema fills in and requires.
fn filled(kind: Kind, required: Value) -> Object {
    let all = crds();
    let crd = all.iter().find(|crd| crd["spec"]["names"]["kind"] == kind.as_str()).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let mut spec = required;
    for (name, field) in schema["properties"].as_object().unwrap() {
        if let Some(default) = field.get("default") {
            spec[name] = default.clone();
        }
    }
    object(kind, spec)
}

fn object(kind: Kind, spec: Value) -> Object {
    let document = json!({"apiVersion": kind.api_version(), "kind": kind.as_str(), "metadata": {"name": "x"}, "spec": spec});
    read(&document).expect("it is valid").expect("it is ours").object
}

#[test]
fn defaults_of_the_schema_are_those_of_the_reader() {
    let required = [
        (Kind::LoadBalancerPool, json!({"addresses": ["198.51.100.0/24"]})),
        (Kind::BgpPeer, json!({"peerAddress": "192.0.2.1", "peerASN": 64512})),
        (Kind::BgpAdvertisement, json!({})),
    ];
    for (kind, required) in required {
        assert_eq!(filled(kind, required.clone()), object(kind, required), "{kind}");
    }
    let Object::LoadBalancerPool(LoadBalancerPool { auto_assign, l2, bgp, .. }) =
        filled(Kind::LoadBalancerPool, json!({"addresses": ["198.51.100.0/24"]}))
    else {
        panic!("no pool")
    };
    assert!(auto_assign && l2 && bgp);
}
