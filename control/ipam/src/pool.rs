//! Which addresses a node may give, and which of them comes next. Pure arithmetic, no state.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnetwork::IpNetwork;

/// What [`crate::Ipam`] allocates from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The node's podCIDRs. An attachment gets one address of each family named here; a second CIDR of a family is used when the first is full.
    pub cidrs: Vec<IpNetwork>,
    /// Addresses never given to a pod, besides the network's own and, for IPv4, the broadcast address.
    pub reserved: Vec<IpAddr>,
    /// How long a released address rests before it is given again, unless nothing else is left.
    pub quarantine: Duration,
}

impl Settings {
    /// These podCIDRs, nothing reserved, and [`DEFAULT_QUARANTINE`].
    pub fn new(cidrs: Vec<IpNetwork>) -> Self {
        Self { cidrs, reserved: Vec::new(), quarantine: DEFAULT_QUARANTINE }
    }
}

impl From<Vec<IpNetwork>> for Settings {
    fn from(cidrs: Vec<IpNetwork>) -> Self {
        Self::new(cidrs)
    }
}

/// Five minutes: longer than UDP flows and endpoint updates of other nodes live.
pub const DEFAULT_QUARANTINE: Duration = Duration::from_secs(300);

/// How full one podCIDR is. Counts are in addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Availability {
    /// The podCIDR.
    pub cidr: IpNetwork,
    /// What could be given in all: without network, broadcast and reserved addresses.
    pub capacity: u128,
    /// Held by attachments.
    pub used: u128,
    /// Free, resting after a release. They are given only when nothing else is left.
    pub resting: u128,
    /// Free, resting ones included.
    pub available: u128,
}

/// Why a podCIDR cannot be allocated from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidPool {
    /// There is no podCIDR at all.
    #[error("no podCIDR is configured: set the node's podCIDRs (Node spec.podCIDRs) and try again")]
    Empty,
    /// A prefix so short that it must be a mistake.
    #[error("podCIDR {cidr} is shorter than /{PREFIX_MIN}: give the node a prefix of its own")]
    TooLarge {
        /// The podCIDR.
        cidr: IpNetwork,
    },
    /// Two podCIDRs share addresses.
    #[error("podCIDRs {one} and {other} overlap: remove one of them")]
    Overlap {
        /// The first.
        one: IpNetwork,
        /// The second.
        other: IpNetwork,
    },
}

/// One podCIDR as a row of addresses that may be given.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    cidr: IpNetwork,
    /// First address that may be given, as a number.
    first: u128,
    /// How many follow each other from `first`.
    count: u128,
}

impl Pool {
    /// The podCIDRs as pools, in the order given, host bits cleared. There may be none yet.
    pub(crate) fn all(cidrs: &[IpNetwork]) -> Result<Vec<Self>, InvalidPool> {
        let pools = cidrs.iter().map(|cidr| Self::new(*cidr)).collect::<Result<Vec<_>, _>>()?;
        for (index, pool) in pools.iter().enumerate() {
            if let Some(other) = pools[..index].iter().find(|other| other.overlaps(pool)) {
                return Err(InvalidPool::Overlap { one: other.cidr, other: pool.cidr });
            }
        }
        Ok(pools)
    }

    fn new(cidr: IpNetwork) -> Result<Self, InvalidPool> {
        let prefix = cidr.prefix();
        if prefix < PREFIX_MIN {
            return Err(InvalidPool::TooLarge { cidr });
        }
        let bits = if cidr.is_ipv4() { 32 } else { 128 };
        let size = 1_u128 << (bits - u32::from(prefix));
        // RFC 3021 and RFC 6164: with one or two addresses there is no network or broadcast address.
        let (skip, cut) = match (size, cidr.is_ipv4()) {
            (1 | 2, _) => (0, 0),
            (_, true) => (1, 2),
            (_, false) => (1, 1),
        };
        let network = cidr.network();
        // The prefix was valid in `cidr`, so it is valid here; should it not be, the CIDR is used as it came.
        let cidr = IpNetwork::new(network, prefix).unwrap_or(cidr);
        Ok(Self { cidr, first: number(network) + skip, count: size - cut })
    }

    pub(crate) fn cidr(&self) -> IpNetwork {
        self.cidr
    }

    pub(crate) fn is_ipv4(&self) -> bool {
        self.cidr.is_ipv4()
    }

    /// How many addresses could be given if nothing were reserved by name.
    pub(crate) fn count(&self) -> u128 {
        self.count
    }

    /// Whether the address is one that this pool could give.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.index_of(address).is_some()
    }

    /// The first address after `last` that is not `busy`, around the end; from the start when `last` is not of this pool.
    ///
    /// Takes one step more than there are busy addresses at most, however long the row is.
    pub(crate) fn next_free(&self, last: Option<IpAddr>, busy: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let start = last.and_then(|last| self.index_of(last)).map_or(0, |index| index + 1);
        (0..self.count).map(|step| self.at((start + step) % self.count)).find(|address| !busy(*address))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.is_ipv4() == other.is_ipv4()
            && (self.cidr.contains(other.cidr.network()) || other.cidr.contains(self.cidr.network()))
    }

    fn index_of(&self, address: IpAddr) -> Option<u128> {
        if address.is_ipv4() != self.is_ipv4() {
            return None;
        }
        number(address).checked_sub(self.first).filter(|index| *index < self.count)
    }

    fn at(&self, index: u128) -> IpAddr {
        let number = self.first + index;
        match self.cidr {
            // Inside an IPv4 prefix, the number fits 32 bits.
            IpNetwork::V4(_) => Ipv4Addr::from_bits(number as u32).into(),
            IpNetwork::V6(_) => Ipv6Addr::from_bits(number).into(),
        }
    }
}

/// A shorter prefix than any node has; it also keeps the arithmetic inside 128 bits.
const PREFIX_MIN: u8 = 8;

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(cidr: &str) -> Pool {
        Pool::new(cidr.parse().unwrap()).unwrap()
    }

    fn every(cidr: &str) -> Vec<String> {
        let pool = pool(cidr);
        (0..pool.count).map(|index| pool.at(index).to_string()).collect()
    }

    #[test]
    fn network_and_broadcast_are_never_given() {
        assert_eq!(every("10.0.0.8/30"), ["10.0.0.9", "10.0.0.10"]);
        assert_eq!(every("fd00::/126"), ["fd00::1", "fd00::2", "fd00::3"]);
    }

    #[test]
    fn prefixes_without_room_for_a_broadcast_give_all_they_have() {
        assert_eq!(every("10.0.0.8/31"), ["10.0.0.8", "10.0.0.9"]);
        assert_eq!(every("10.0.0.8/32"), ["10.0.0.8"]);
        assert_eq!(every("fd00::/128"), ["fd00::"]);
    }

    #[test]
    fn host_bits_of_a_cidr_do_not_move_it() {
        assert_eq!(every("10.0.0.10/30"), every("10.0.0.8/30"));
    }

    #[test]
    fn the_row_goes_around_its_end() {
        let pool = pool("10.0.0.8/29");
        let last = Some("10.0.0.14".parse().unwrap());
        assert_eq!(pool.next_free(last, |_| false), Some("10.0.0.9".parse().unwrap()));
    }

    #[test]
    fn a_huge_prefix_is_searched_in_bounded_steps() {
        let steps = std::cell::Cell::new(0);
        let found = pool("fd00::/8").next_free(None, |_| steps.replace(steps.get() + 1) < 1000);
        assert_eq!(found, Some("fd00::3e9".parse().unwrap()));
        assert_eq!(steps.get(), 1001);
    }

    #[test]
    fn overlapping_and_shapeless_cidrs_are_refused() {
        let all = |cidrs: &[&str]| {
            Pool::all(&cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect::<Vec<_>>()).unwrap_err()
        };
        assert!(matches!(all(&["10.0.0.0/24", "10.0.0.128/25"]), InvalidPool::Overlap { .. }));
        assert!(matches!(all(&["::/0"]), InvalidPool::TooLarge { .. }));
    }
}
