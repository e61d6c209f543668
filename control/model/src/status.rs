//! ServiceStatus: the addresses that a service was given, where no API server keeps them in its status.

use std::net::IpAddr;

use crate::service::ingress_ips;
use crate::{Invalid, ServiceKey, wire};

/// A valid ServiceStatus, a kind of files alone. The service of its name is served at its addresses as if they stood in
/// the service's own status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceStatus {
    /// Namespace and name of the service, and of this.
    pub key: ServiceKey,
    /// `status.loadBalancer.ingress[].ip` whose `ipMode` is `VIP` or absent.
    pub ingress_ips: Vec<IpAddr>,
}

impl ServiceStatus {
    pub(crate) fn new(key: ServiceKey, wire: &wire::ServiceStatusOf, warnings: &mut Vec<Invalid>) -> Self {
        Self { ingress_ips: ingress_ips(&wire.status.load_balancer.ingress, warnings).served, key }
    }
}
