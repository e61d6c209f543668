//! LoadBalancerPool: addresses that services of type LoadBalancer may be given.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::custom::{Custom, LabelSelector, LoadBalancerPoolSpec};
use crate::name::check_label;
use crate::{Family, Invalid, Name, Selector, Timestamp, address};

/// A valid LoadBalancerPool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadBalancerPool {
    /// Its name.
    pub name: Name,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// `spec.addresses` in their order; they may overlap. Without the first and last address of each prefix if
    /// `spec.avoidFirstLast` says so.
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
    /// An entry of `addresses` that is wrong costs itself. What says *who* may have addresses is refused as a
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
            namespaces: namespaces(&spec.namespace_selector)?,
            auto_assign: spec.auto_assign.unwrap_or(true),
            priority: priority(spec.priority)?,
            l2,
            bgp,
        })
    }
}

/// Entries of the list, as the schema allows them: time and memory for one object are bounded, whoever wrote it.
const ENTRIES_MAX: usize = 256;

/// The first entries; that there are more is said.
fn first<'a>(entries: &'a [String], warnings: &mut Vec<Invalid>) -> &'a [String] {
    match entries.get(..ENTRIES_MAX) {
        Some(first) if entries.len() > ENTRIES_MAX => {
            let expected = format!("at most {ENTRIES_MAX}: put more into another pool");
            warnings.push(Invalid::new(FIELD, expected, entries.len().to_string()));
            first
        }
        _ => entries,
    }
}

const FIELD: &str = "spec.addresses";

fn ranges(spec: &LoadBalancerPoolSpec, warnings: &mut Vec<Invalid>) -> Result<Vec<AddressRange>, Invalid> {
    let inner = spec.avoid_first_last.unwrap_or(false);
    let mut good = Vec::new();
    for (i, text) in first(&spec.addresses, warnings).iter().enumerate() {
        match entry(&format!("{FIELD}[{i}]"), text, inner) {
            Ok(range) => good.push(range),
            Err(invalid) => warnings.push(invalid),
        }
    }
    if !good.is_empty() {
        return Ok(good);
    }
    // The first mistake says more than that nothing is left.
    let mut mistakes = warnings.drain(..);
    Err(mistakes.next().unwrap_or_else(|| Invalid::absent(FIELD, "at least one prefix or range")))
}

/// A prefix, or a range; `inner` concerns prefixes alone.
fn entry(field: &str, text: &str, inner: bool) -> Result<AddressRange, Invalid> {
    match text.split_once('-') {
        Some((first, last)) => range(field, first.trim(), last.trim()),
        None if text.contains('/') => cidr(field, text).map(|all| if inner { all.inner() } else { all }),
        // A lone address may be one whose length was forgotten.
        None => Err(Invalid::text(field, "a prefix like 198.51.100.0/24, or a range FIRST-LAST", text)),
    }
}

/// Both ends must be addresses that traffic may be sent to. What lies between is not looked at: allocators leave
/// out what nobody may have.
fn cidr(field: &str, text: &str) -> Result<AddressRange, Invalid> {
    let prefix = address::parse_prefix(field, text)?;
    let range = AddressRange::of_prefix(prefix);
    for end in [range.first, range.last] {
        address::parse(field, &end.to_string())
            .map_err(|invalid| Invalid { found: format!("{text}, with {}", invalid.found), ..invalid })?;
    }
    Ok(range)
}

fn range(field: &str, first: &str, last: &str) -> Result<AddressRange, Invalid> {
    let start = address::parse(field, first)?;
    let end = address::parse(field, last)?;
    AddressRange::new(start, end).ok_or_else(|| {
        let expected = format!("after the - an {} address that is not before {start}", Family::of(start));
        Invalid::text(field, expected, last)
    })
}

/// The label that every namespace has (KEP-2161): its name.
const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";

/// The names that a selector of namespaces selects; empty: it selects all. Namespaces are not read, so that the one label
/// whose value is known without is all that may be asked for.
fn namespaces(selector: &LabelSelector) -> Result<BTreeSet<Name>, Invalid> {
    const FIELD: &str = "spec.namespaceSelector";
    let mut sets: Vec<BTreeSet<Name>> = Vec::new();
    for (key, value) in &selector.match_labels {
        check_namespace_label(&format!("{FIELD}.matchLabels"), key)?;
        sets.push([namespace(&format!("{FIELD}.matchLabels[{key}]"), value)?].into());
    }
    for (i, wire) in selector.match_expressions.iter().enumerate() {
        let field = format!("{FIELD}.matchExpressions[{i}]");
        check_namespace_label(&format!("{field}.key"), &wire.key)?;
        if wire.operator != "In" {
            let expected = "In: namespaces are selected by their names";
            return Err(Invalid::text(format!("{field}.operator"), expected, &wire.operator));
        }
        let values = wire.values.iter().enumerate();
        let names = values.map(|(j, value)| namespace(&format!("{field}.values[{j}]"), value));
        sets.push(names.collect::<Result<_, _>>()?);
    }
    let Some(all) = sets.into_iter().reduce(|a, b| &a & &b) else { return Ok(BTreeSet::new()) };
    if all.is_empty() {
        return Err(Invalid::new(FIELD, "a selector that selects a namespace", "one that selects none"));
    }
    Ok(all)
}

fn check_namespace_label(field: &str, key: &str) -> Result<(), Invalid> {
    if key == NAMESPACE_LABEL {
        return Ok(());
    }
    let expected =
        format!("{NAMESPACE_LABEL}: namespaces are selected by their names, other labels are not read");
    Err(Invalid::text(field, expected, key))
}

fn namespace(field: &str, name: &str) -> Result<Name, Invalid> {
    check_label(field, name)?;
    Ok(Name::from(name))
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
