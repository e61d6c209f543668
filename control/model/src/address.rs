//! Addresses and prefixes in objects: which are acceptable.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::Invalid;

/// The two address families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// The family of a prefix.
    pub const fn of_prefix(prefix: IpNetwork) -> Self {
        match prefix {
            IpNetwork::V4(_) => Family::V4,
            IpNetwork::V6(_) => Family::V6,
        }
    }

    /// Reads `IPv4` or `IPv6`.
    pub(crate) fn parse(field: impl Into<String>, text: &str) -> Result<Self, Invalid> {
        match text {
            "IPv4" => Ok(Family::V4),
            "IPv6" => Ok(Family::V6),
            other => Err(Invalid::text(field, "IPv4 or IPv6", other)),
        }
    }

    /// `IPv4` or `IPv6`, as Kubernetes writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

/// Parses an address that traffic may be sent to.
///
/// Unspecified, loopback, link-local, multicast, broadcast and IPv4-mapped addresses are refused: whoever may
/// write an object could otherwise reach what listens on a node's own loopback or link (CVE-2021-25740).
pub(crate) fn parse(field: impl Into<String>, text: &str) -> Result<IpAddr, Invalid> {
    let Ok(addr) = text.parse::<IpAddr>() else {
        return Err(Invalid::text(field, "an IP address", text));
    };
    match forbidden(addr) {
        None => Ok(addr),
        Some(what) => {
            Err(Invalid::new(field, "a unicast address outside one host or link", format!("{what} {addr}")))
        }
    }
}

/// Parses a prefix; bits below its length are cleared.
pub(crate) fn parse_prefix(field: impl Into<String>, text: &str) -> Result<IpNetwork, Invalid> {
    let parsed = text.contains('/').then(|| text.parse::<IpNetwork>().ok()).flatten();
    // The length is valid because the parsed prefix had it.
    parsed
        .and_then(|prefix| IpNetwork::new(prefix.network(), prefix.prefix()).ok())
        .ok_or_else(|| Invalid::text(field, "a prefix like 10.0.1.0/24", text))
}

fn forbidden(addr: IpAddr) -> Option<&'static str> {
    if addr.is_unspecified() {
        return Some("unspecified");
    }
    if addr.is_loopback() {
        return Some("loopback");
    }
    if addr.is_multicast() {
        return Some("multicast");
    }
    match addr {
        IpAddr::V4(v4) if v4.is_link_local() => Some("link-local"),
        // All of 0/8 and 127/8 and 240/4 mean "this host" or nothing at all; is_loopback covers 127/8.
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("this-network"),
        IpAddr::V4(v4) if v4.octets()[0] >= 240 => Some("reserved"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("link-local"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some("IPv4-mapped"),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}
