//! Ports of the node that lead to pods: held like addresses, by one attachment at a time.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A port of the node that leads to a port of the pod. What is on disk has the field names of CNI's `portMappings`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPort {
    /// The one address of the node that it is for, or an unspecified one for all of a family. `None`: all.
    #[serde(rename = "hostIP", default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// Port of the node, not 0, host byte order.
    pub host_port: u16,
    /// Port of the pod, not 0, host byte order.
    pub container_port: u16,
    /// TCP or UDP.
    pub protocol: Transport,
}

/// Transport protocol of a [`HostPort`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Transport {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

impl HostPort {
    /// Whether some packet could be for both: the same port, protocol and an address in common.
    pub fn meets(&self, other: &Self) -> bool {
        let address = match (self.host_ip, other.host_ip) {
            (None, _) | (_, None) => true,
            (Some(one), Some(other)) => {
                let all = one.is_unspecified() || other.is_unspecified();
                one == other || (all && one.is_ipv4() == other.is_ipv4())
            }
        };
        address && self.host_port == other.host_port && self.protocol == other.protocol
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
        };
        match self.host_ip {
            None => write!(out, "{}/{protocol}", self.host_port),
            Some(IpAddr::V4(addr)) => write!(out, "{addr}:{}/{protocol}", self.host_port),
            Some(IpAddr::V6(addr)) => write!(out, "[{addr}]:{}/{protocol}", self.host_port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host_ip: Option<&str>, host_port: u16, protocol: Transport) -> HostPort {
        let host_ip = host_ip.map(|ip| ip.parse().unwrap());
        HostPort { host_ip, host_port, container_port: 8080, protocol }
    }

    #[test]
    fn ports_meet_where_address_port_and_protocol_do() {
        use Transport::{Tcp, Udp};
        let all = port(None, 80, Tcp);
        for (one, other, meet) in [
            (all, all, true),
            (all, port(None, 80, Udp), false),
            (all, port(None, 81, Tcp), false),
            (all, port(Some("127.0.0.1"), 80, Tcp), true),
            (all, port(Some("0.0.0.0"), 80, Tcp), true),
            (port(Some("0.0.0.0"), 80, Tcp), port(Some("192.0.2.1"), 80, Tcp), true),
            (port(Some("0.0.0.0"), 80, Tcp), port(Some("::"), 80, Tcp), false),
            (port(Some("0.0.0.0"), 80, Tcp), port(Some("2001:db8::1"), 80, Tcp), false),
            (port(Some("192.0.2.1"), 80, Tcp), port(Some("127.0.0.1"), 80, Tcp), false),
            (port(Some("192.0.2.1"), 80, Tcp), port(Some("192.0.2.1"), 80, Tcp), true),
            (port(Some("192.0.2.1"), 80, Tcp), port(Some("192.0.2.1"), 80, Udp), false),
        ] {
            assert_eq!(one.meets(&other), meet, "{one} and {other}");
            assert_eq!(other.meets(&one), meet, "{other} and {one}");
        }
    }

    #[test]
    fn a_port_is_written_as_people_write_it() {
        assert_eq!(port(None, 80, Transport::Udp).to_string(), "80/UDP");
        assert_eq!(port(Some("192.0.2.1"), 80, Transport::Tcp).to_string(), "192.0.2.1:80/TCP");
        assert_eq!(port(Some("::1"), 80, Transport::Tcp).to_string(), "[::1]:80/TCP");
    }
}
