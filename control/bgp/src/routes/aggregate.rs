//! Addresses → the prefixes that stand for them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::canonical;

/// How long prefixes are, in bits. An address is announced with those around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aggregation {
    /// Of IPv4 prefixes, up to 32, which is each address by itself.
    pub ipv4: u8,
    /// Of IPv6 prefixes, up to 128, which is each address by itself.
    pub ipv6: u8,
}

impl Default for Aggregation {
    fn default() -> Self {
        Self { ipv4: 32, ipv6: 128 }
    }
}

/// The prefixes of `aggregation`'s lengths that hold the addresses, each once, in order. A length beyond a family's is
/// the family's.
#[must_use]
pub fn aggregate(
    addresses: impl IntoIterator<Item = IpAddr>,
    aggregation: Aggregation,
) -> BTreeSet<IpNetwork> {
    let prefix = |address: IpAddr| {
        let len = match address {
            IpAddr::V4(_) => aggregation.ipv4.min(32),
            IpAddr::V6(_) => aggregation.ipv6.min(128),
        };
        IpNetwork::new(address, len).ok().map(canonical)
    };
    addresses.into_iter().filter_map(prefix).collect()
}
