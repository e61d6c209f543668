//! What the suites share.

use portolan_model::{Family, Protocol, ServiceKey};
use portolan_plan::{PortName, ServicePort, Why};

/// An IPv4 port that nobody asks for and nobody serves, of a service with every default: a test adds what it is about.
pub(crate) fn port(service: ServiceKey, name: &str, protocol: Protocol) -> ServicePort {
    ServicePort {
        name: PortName { service, port: name.into(), protocol, family: Family::V4 },
        frontends: Vec::new(),
        cluster: Vec::new(),
        why: Why::Ready,
        local: Vec::new(),
        local_why: Why::Ready,
        internal_local: false,
        external_local: false,
        direct: false,
        sources: None,
        consistent: false,
        kept: None,
        affinity: None,
    }
}
