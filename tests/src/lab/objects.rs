//! Objects for suites whose services differ from the [shop](super::Shop)'s own.

use std::net::IpAddr;

/// One endpoint of a slice.
#[derive(Clone, Debug)]
pub struct Endpoint {
    address: IpAddr,
    fields: String,
}

impl Endpoint {
    /// At an address on a node (by index); `fields` are further fields in YAML's flow style, such as
    /// `conditions: {ready: true}`.
    #[must_use]
    pub fn new(address: IpAddr, node: usize, fields: &str) -> Self {
        let comma = if fields.is_empty() { "" } else { ", " };
        Self { address, fields: format!("nodeName: node{}{comma}{fields}", node + 1) }
    }
}

/// An EndpointSlice of a service in namespace `shop`, of the family of its endpoints. `ports` are in YAML's flow style.
#[must_use]
pub fn slice(name: &str, service: &str, ports: &str, endpoints: &[Endpoint]) -> String {
    let v6 = endpoints.first().is_some_and(|endpoint| endpoint.address.is_ipv6());
    let family = if v6 { "IPv6" } else { "IPv4" };
    let mut text = format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}\n  namespace: shop\n  \
         labels: {{kubernetes.io/service-name: {service}}}\naddressType: {family}\nports: [{ports}]\nendpoints:\n"
    );
    for Endpoint { address, fields } in endpoints {
        text += &format!("- {{addresses: [\"{address}\"], {fields}}}\n");
    }
    text
}

/// A service in namespace `shop`; `metadata` and `spec` are more fields, in YAML's flow style.
#[must_use]
pub fn object(name: &str, metadata: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop{metadata}}}\nspec: {{{spec}}}\n"
    )
}
