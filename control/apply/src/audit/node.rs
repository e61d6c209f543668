//! The node's own record, field by field.

use std::net::IpAddr;

use portolan_abi::Config;
use portolan_core::{V4, V6};
use portolan_node::maps::NodeFamily;

use super::Difference;

/// Every field that is not as it should be.
pub(super) fn differences(desired: &Config, kernel: &Config) -> Vec<Difference> {
    let pairs = fields(desired).into_iter().zip(fields(kernel));
    let different = pairs.filter(|(desired, kernel)| desired != kernel);
    different
        .map(|((field, desired), (_, kernel))| Difference {
            place: format!("node: {field}"),
            desired: Some(desired),
            kernel: Some(kernel),
        })
        .collect()
}

/// By destructuring: a field that is added is a field that is compared.
fn fields(config: &Config) -> [(&'static str, String); 13] {
    let Config {
        node_v4,
        node_v6,
        service_ifindex,
        masquerade_first,
        masquerade_count,
        nodeport_first,
        nodeport_last,
        seed,
        overlay_ifindex,
        overlay_id,
        overlay_port,
        flags,
        uplinks,
    } = *config;
    [
        ("IPv4 address", address(V4::ip(node_v4))),
        ("IPv6 address", address(V6::ip(node_v6))),
        ("interface of services", service_ifindex.to_string()),
        ("first masquerade port", masquerade_first.to_string()),
        ("masquerade ports", masquerade_count.to_string()),
        ("first NodePort", nodeport_first.to_string()),
        ("last NodePort", nodeport_last.to_string()),
        ("seed of the flow hash", format!("{seed:#x}")),
        ("interface of the overlay", overlay_ifindex.to_string()),
        ("network of the overlay", overlay_id.to_string()),
        ("port of the overlay", overlay_port.to_string()),
        ("flags", format!("{flags:#x}")),
        ("uplinks", format!("{uplinks:?}")),
    ]
}

fn address(addr: IpAddr) -> String {
    if addr.is_unspecified() { "none".to_owned() } else { addr.to_string() }
}
