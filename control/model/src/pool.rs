//! LoadBalancerPool: addresses that services of type LoadBalancer may be given.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::custom::{self, Custom, LoadBalancerPoolSpec};
use crate::name::check_label;
use crate::{Family, Invalid, Name, Selector, Timestamp, address};

/// A valid LoadBalancerPool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadBalancerPool {
    /// Its name.
    pub name: Name,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// The addresses of `spec.cidrs` and `spec.ranges`, in their order; they may overlap. Without the first and last
    /// address of each prefix if `spec.avoidFirstLast` says so.
    pub ranges: Vec<AddressRange>,
    /// Which services may have them.
    pub services: Selector,
    /// Namespaces whose services may have them; empty: all.
    pub namespaces: BTreeSet<Name>,
    /// Services get them without asking.
    pub auto_assign: bool,
    /// Higher ones are used first.
    pub priority: i32,
    /// Announced by ARP and NDP.
    pub l2: bool,
    /// Announced by BGP.
    pub bgp: bool,
}

/// Addresses of one family, both ends included; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

impl AddressRange {
    /// The addresses from `first` to `last`; `None` if they are of two families or in the wrong order.
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (Family::of(first) == Family::of(last) && first <= last).then_some(Self { first, last })
    }

    /// All addresses of a prefix.
    pub fn of_prefix(prefix: IpNetwork) -> Self {
        Self { first: prefix.network(), last: prefix.broadcast() }
    }

    /// The first address.
    pub const fn first(&self) -> IpAddr {
        self.first
    }

    /// The last address.
    pub const fn last(&self) -> IpAddr {
        self.last
    }

    /// Without its first and last address, if there are more than two.
    fn inner(self) -> Self {
        let inner = match (self.first, self.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                let (first, last) = (first.to_bits().checked_add(1), last.to_bits().checked_sub(1));
                first.zip(last).and_then(|(first, last)| {
                    Self::new(Ipv4Addr::from_bits(first).into(), Ipv4Addr::from_bits(last).into())
                })
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                let (first, last) = (first.to_bits().checked_add(1), last.to_bits().checked_sub(1));
                first.zip(last).and_then(|(first, last)| {
                    Self::new(Ipv6Addr::from_bits(first).into(), Ipv6Addr::from_bits(last).into())
                })
            }
            _ => None,
        };
        inner.unwrap_or(self)
    }
}

impl LoadBalancerPool {
    /// An entry of `cidrs` or `ranges` that is wrong costs itself. What says *who* may have addresses is refused as a
    /// whole: with a part of it left out, others could have them.
    pub(crate) fn new(
        name: &str,
        wire: &Custom<LoadBalancerPoolSpec>,
        warnings: &mut Vec<Invalid>,
    ) -> Result<Self, Invalid> {
        let Custom { metadata, spec } = wire;
        let (l2, bgp) = announce(spec.announce.as_deref())?;
        Ok(Self {
            name: name.into(),
            created: metadata.created()?,
            ranges: ranges(spec, warnings)?,
            services: Selector::new("spec.serviceSelector", &spec.service_selector)?,
            namespaces: namespaces(&spec.namespaces)?,
            auto_assign: spec.auto_assign.unwrap_or(true),
            priority: priority(spec.priority)?,
            l2,
            bgp,
        })
    }
}

/// Entries of each list, as the schema allows them: time and memory for one object are bounded, whoever wrote it.
const ENTRIES_MAX: usize = 256;

/// The first entries of a list; that there are more is said.
fn first<'a, T>(field: &str, entries: &'a [T], warnings: &mut Vec<Invalid>) -> &'a [T] {
    match entries.get(..ENTRIES_MAX) {
        Some(first) if entries.len() > ENTRIES_MAX => {
            let expected = format!("at most {ENTRIES_MAX}: put more into another pool");
            warnings.push(Invalid::new(field, expected, entries.len().to_string()));
            first
        }
        _ => entries,
    }
}

fn ranges(spec: &LoadBalancerPoolSpec, warnings: &mut Vec<Invalid>) -> Result<Vec<AddressRange>, Invalid> {
    let inner = spec.avoid_first_last.unwrap_or(false);
    let cidrs = first("spec.cidrs", &spec.cidrs, warnings);
    let listed = first("spec.ranges", &spec.ranges, warnings);
    let cidrs = cidrs.iter().enumerate().map(|(i, text)| {
        let all = cidr(format!("spec.cidrs[{i}]"), text)?;
        Ok(if inner { all.inner() } else { all })
    });
    let listed = listed.iter().enumerate().map(|(i, wire)| range(&format!("spec.ranges[{i}]"), wire));
    let mut good = Vec::new();
    for entry in cidrs.chain(listed) {
        match entry {
            Ok(range) => good.push(range),
            Err(invalid) => warnings.push(invalid),
        }
    }
    if !good.is_empty() {
        return Ok(good);
    }
    // The first mistake says more than that nothing is left.
    let mut mistakes = warnings.drain(..);
    Err(mistakes
        .next()
        .unwrap_or_else(|| Invalid::absent("spec.cidrs", "at least one prefix here or range in spec.ranges")))
}

/// Both ends must be addresses that traffic may be sent to. What lies between is not looked at: allocators leave
/// out what nobody may have.
fn cidr(field: String, text: &str) -> Result<AddressRange, Invalid> {
    let prefix = address::parse_prefix(field.as_str(), text)?;
    let range = AddressRange::of_prefix(prefix);
    for end in [range.first, range.last] {
        address::parse(field.as_str(), &end.to_string())
            .map_err(|invalid| Invalid { found: format!("{text}, with {}", invalid.found), ..invalid })?;
    }
    Ok(range)
}

fn range(field: &str, wire: &custom::AddressRange) -> Result<AddressRange, Invalid> {
    let first = address::parse(format!("{field}.first"), &wire.first)?;
    let last = address::parse(format!("{field}.last"), &wire.last)?;
    AddressRange::new(first, last).ok_or_else(|| {
        let expected = format!("an {} address that is not before {first}", Family::of(first));
        Invalid::text(format!("{field}.last"), expected, &wire.last)
    })
}

fn namespaces(texts: &[String]) -> Result<BTreeSet<Name>, Invalid> {
    let named = texts.iter().enumerate().map(|(i, text)| {
        check_label(&format!("spec.namespaces[{i}]"), text)?;
        Ok(Name::from(text.as_str()))
    });
    named.collect()
}

fn priority(number: Option<i64>) -> Result<i32, Invalid> {
    let number = number.unwrap_or(0);
    i32::try_from(number)
        .map_err(|_| Invalid::new("spec.priority", "-2147483648 to 2147483647", number.to_string()))
}

/// Whether by L2 and whether by BGP.
fn announce(ways: Option<&[String]>) -> Result<(bool, bool), Invalid> {
    let Some(ways) = ways else { return Ok((true, true)) };
    let (mut l2, mut bgp) = (false, false);
    for (i, way) in ways.iter().enumerate() {
        match way.as_str() {
            "L2" => l2 = true,
            "BGP" => bgp = true,
            other => return Err(Invalid::text(format!("spec.announce[{i}]"), "L2 or BGP", other)),
        }
    }
    Ok((l2, bgp))
}
