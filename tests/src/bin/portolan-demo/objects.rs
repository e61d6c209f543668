//! Objects as the parts of a cluster write them: what the kubelet says of pods, and the EndpointSlices of a service.

use std::net::IpAddr;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::serve::PORT;

const PODS: &str = include_str!("../../../../examples/pods.yaml");

/// A pod as its YAML says.
#[derive(Clone, Debug)]
pub(crate) struct PodObject {
    /// Its name.
    pub(crate) name: String,
    /// Index of its node.
    pub(crate) node: usize,
    /// Label `version`, of web servers.
    pub(crate) version: Option<String>,
    value: Value,
}

impl PodObject {
    fn read(value: &Value) -> Result<Self> {
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let node = text("/spec/nodeName").context("a pod has no spec.nodeName")?;
        Ok(Self {
            name: text("/metadata/name").context("a pod has no name")?,
            node: usize::from(node == "node2"),
            version: text("/metadata/labels/version"),
            value: value.clone(),
        })
    }

    /// With the status that the kubelet writes, as YAML.
    pub(crate) fn running(&self, addresses: &[IpAddr]) -> Result<String> {
        let mut value = self.value.clone();
        let ips: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        value["status"] = json!({ "phase": "Running", "podIP": addresses.first(), "podIPs": ips });
        Ok(format!("---\n{}", serde_yaml_ng::to_string(&value)?))
    }
}

/// The pods of `examples/pods.yaml`, in its order.
pub(crate) fn pods() -> Result<Vec<PodObject>> {
    let list: Value = serde_yaml_ng::from_str(PODS).context("reading examples/pods.yaml")?;
    let items = list["items"].as_array().context("examples/pods.yaml is no List")?;
    items.iter().map(PodObject::read).collect()
}

/// What a slice says of one pod.
pub(crate) struct Endpoint {
    /// Its addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// Its name.
    pub(crate) name: String,
    /// Index of its node.
    pub(crate) node: usize,
    /// It ends: it still answers, and gets no new connections.
    pub(crate) terminating: bool,
}

/// The slices of the service `shop/web`, one for each family, as YAML.
pub(crate) fn slices(endpoints: &[Endpoint]) -> String {
    [("IPv4", false), ("IPv6", true)].map(|(family, v6)| slice(family, v6, endpoints)).concat()
}

fn slice(family: &str, v6: bool, endpoints: &[Endpoint]) -> String {
    let head = format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-{}\n  namespace: shop\n  \
         labels: {{kubernetes.io/service-name: web}}\naddressType: {family}\nports:\n\
         - {{name: http, port: {PORT}, protocol: TCP}}\nendpoints:\n",
        family.to_lowercase()
    );
    let line = |endpoint: &Endpoint| -> Option<String> {
        let address = endpoint.addresses.iter().find(|address| address.is_ipv6() == v6)?;
        let ready = !endpoint.terminating;
        Some(format!(
            "- addresses: [\"{address}\"]\n  nodeName: node{}\n  targetRef: {{kind: Pod, namespace: shop, name: {}}}\n  \
             conditions: {{ready: {ready}, serving: true, terminating: {}}}\n",
            endpoint.node + 1,
            endpoint.name,
            endpoint.terminating
        ))
    };
    head + &endpoints.iter().filter_map(line).collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_have_a_client_and_three_pods_of_each_version() {
        let pods = pods().unwrap();
        let of = |version: Option<&str>| pods.iter().filter(|pod| pod.version.as_deref() == version).count();
        assert_eq!([of(None), of(Some("v1")), of(Some("v2"))], [1, 3, 3]);
    }

    #[test]
    fn a_slice_is_one_that_the_agent_takes() {
        let endpoint = Endpoint {
            addresses: vec!["10.244.1.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            name: "web-v1-a".into(),
            node: 0,
            terminating: true,
        };
        for part in slices(&[endpoint]).split("---\n").filter(|part| !part.is_empty()) {
            let value: Value = serde_yaml_ng::from_str(part).unwrap();
            assert!(portolan_model::read(&value).unwrap().is_some());
            assert_eq!(value["endpoints"][0]["conditions"]["ready"], false);
        }
    }

    #[test]
    fn the_example_slices_are_what_the_demo_writes_at_first() {
        let endpoint = |name: &str, node: usize, host: u8| Endpoint {
            addresses: [format!("10.244.{}.{host}", node + 1), format!("fd00:10:244:{}::{host}", node + 1)]
                .map(|address| address.parse().unwrap())
                .to_vec(),
            name: name.into(),
            node,
            terminating: false,
        };
        let text =
            slices(&[endpoint("web-v1-a", 0, 2), endpoint("web-v1-b", 1, 1), endpoint("web-v1-c", 1, 2)]);
        assert!(include_str!("../../../../examples/slices.yaml").ends_with(&text), "{text}");
    }
}
