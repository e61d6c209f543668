//! Prefixes as BGP carries them: length in bits, then as many bytes as that takes (RFC 4271 §4.3).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::Serialize;

use super::reader::Reader;

/// An address family, always with unicast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// AFI 1, SAFI 1.
    Ipv4,
    /// AFI 2, SAFI 1.
    Ipv6,
}

impl Family {
    /// Both, in the order in which they are announced.
    pub const ALL: [Family; 2] = [Family::Ipv4, Family::Ipv6];

    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
    }

    /// The family of a prefix.
    #[must_use]
    pub fn of_prefix(prefix: &IpNetwork) -> Self {
        Self::of(prefix.network())
    }

    /// Length of an address in bits.
    #[must_use]
    pub fn bits(self) -> u8 {
        match self {
            Family::Ipv4 => 32,
            Family::Ipv6 => 128,
        }
    }

    /// As users write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Family::Ipv4 => "IPv4",
            Family::Ipv6 => "IPv6",
        }
    }
}

/// An address family as a number and what of it (RFC 4760 §3). Any pair can be received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AfiSafi {
    /// Address family identifier: 1 is IPv4, 2 is IPv6.
    pub afi: u16,
    /// Subsequent address family identifier: 1 is unicast.
    pub safi: u8,
}

impl AfiSafi {
    /// Which of the families that are spoken here it is.
    #[must_use]
    pub fn family(self) -> Option<Family> {
        Family::ALL.into_iter().find(|family| AfiSafi::from(*family) == self)
    }
}

impl From<Family> for AfiSafi {
    fn from(family: Family) -> Self {
        let afi = match family {
            Family::Ipv4 => 1,
            Family::Ipv6 => 2,
        };
        Self { afi, safi: 1 }
    }
}

/// Bytes that a prefix takes.
pub(crate) fn encoded_len(prefix: &IpNetwork) -> usize {
    1 + bytes_of(prefix.prefix())
}

fn bytes_of(bits: u8) -> usize {
    usize::from(bits).div_ceil(8)
}

/// Appends a prefix.
pub(super) fn encode(prefix: &IpNetwork, out: &mut Vec<u8>) {
    let len = prefix.prefix();
    out.push(len);
    match prefix.network() {
        IpAddr::V4(network) => out.extend_from_slice(&network.octets()[..bytes_of(len)]),
        IpAddr::V6(network) => out.extend_from_slice(&network.octets()[..bytes_of(len)]),
    }
}

/// All prefixes of a field; `None` if one is longer than its family allows or than what is left. Bits after the
/// prefix's length have no meaning and are cleared (RFC 4271 §4.3).
pub(super) fn decode_all(mut bytes: Reader<'_>, family: Family) -> Option<Vec<IpNetwork>> {
    let mut prefixes = Vec::new();
    while !bytes.is_empty() {
        prefixes.push(decode(&mut bytes, family)?);
    }
    Some(prefixes)
}

fn decode(bytes: &mut Reader<'_>, family: Family) -> Option<IpNetwork> {
    let len = bytes.u8()?;
    if len > family.bits() {
        return None;
    }
    let octets = bytes.take(bytes_of(len))?;
    let mut full = [0; 16];
    full[..octets.len()].copy_from_slice(octets);
    Some(match family {
        Family::Ipv4 => {
            let [a, b, c, d, ..] = full;
            let whole = Ipv4Network::new(Ipv4Addr::new(a, b, c, d), len).ok()?;
            IpNetwork::V4(Ipv4Network::new(whole.network(), len).ok()?)
        }
        Family::Ipv6 => {
            let whole = Ipv6Network::new(Ipv6Addr::from(full), len).ok()?;
            IpNetwork::V6(Ipv6Network::new(whole.network(), len).ok()?)
        }
    })
}
