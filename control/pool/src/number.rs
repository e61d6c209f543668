//! Addresses as numbers, to count and to search with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portolan_model::Family;

/// The bits of an address; IPv4 addresses are the numbers below 2³².
pub(crate) const fn of(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(v4) => v4.to_bits() as u128,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address of a family with these bits; for IPv4 the lower 32 count.
pub(crate) const fn addr(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from_bits(number as u32)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(number)),
    }
}

/// A value for each family.
#[derive(Clone, Debug, Default)]
pub(crate) struct Each<T> {
    v4: T,
    v6: T,
}

impl<T> Each<T> {
    pub(crate) const fn of(&self, family: Family) -> &T {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    pub(crate) const fn of_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}
