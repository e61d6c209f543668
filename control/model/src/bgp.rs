//! BGPPeer and BGPAdvertisement: routers, and what they are told.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use crate::custom::{BgpAdvertisementSpec, BgpPeerSpec, Custom};
use crate::name::{check_label, check_subdomain};
use crate::{Family, Invalid, Name, NamespacedName, Selectors, duration};

/// A valid BGPPeer. What depends on the node (its own AS number, whether it listens) is checked by the speaker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BgpPeer {
    /// Its name.
    pub name: Name,
    /// The router's address.
    pub peer_address: IpAddr,
    /// The router's AS number.
    pub peer_asn: u32,
    /// The AS number to show to it; none is the agent's.
    pub my_asn: Option<u32>,
    /// The router's TCP port.
    pub peer_port: u16,
    /// In seconds; at least 3, or 0 for ever.
    pub hold_time: u16,
    /// In seconds; none is a third of the hold time in force.
    pub keepalive_time: Option<u16>,
    /// The address to connect from, of the router's family; none is the kernel's choice.
    pub source_address: Option<IpAddr>,
    /// How many routers packets to an external peer may pass, itself included; none is 1.
    pub ebgp_multihop: Option<u8>,
    /// The router is at most so many hops away (RFC 5082), 1 to 254.
    pub ttl_security: Option<u8>,
    /// Where the key of TCP MD5 signatures is.
    pub password: Option<PasswordSource>,
    /// Families to announce; at least one.
    pub families: BTreeSet<Family>,
    /// How long the router keeps routes while this side restarts, in seconds, 1 to 4095; none: it does not.
    pub graceful_restart: Option<u16>,
    /// Wait for the router's connection and never connect.
    pub passive: bool,
    /// The next hop of IPv4 routes; none is the session's own address.
    pub next_hop_v4: Option<Ipv4Addr>,
    /// The next hop of IPv6 routes; none is the session's own address.
    pub next_hop_v6: Option<Ipv6Addr>,
    /// Which nodes have a session with it.
    pub nodes: Selectors,
}

/// Where a password is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PasswordSource {
    /// Entry `password` of a Secret.
    Secret(NamespacedName),
    /// A file on the node; an absolute path.
    File(PathBuf),
}

/// A valid BGPAdvertisement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BgpAdvertisement {
    /// Its name.
    pub name: Name,
    /// Pools whose addresses are announced; empty: all.
    pub pools: BTreeSet<Name>,
    /// Peers that are told; empty: all.
    pub peers: BTreeSet<Name>,
    /// Which nodes announce.
    pub nodes: Selectors,
    /// Tags, as the 32 bits that are sent (RFC 1997).
    pub communities: BTreeSet<u32>,
    /// Tags with three numbers (RFC 8092).
    pub large_communities: BTreeSet<[u32; 3]>,
    /// How much routers of the same AS prefer the routes.
    pub local_preference: Option<u32>,
    /// Length of IPv4 prefixes, 0 to 32; 32: single addresses.
    pub aggregation_v4: u8,
    /// Length of IPv6 prefixes, 0 to 128; 128: single addresses.
    pub aggregation_v6: u8,
    /// Nodes' podCIDRs are announced as well.
    pub pod_cidrs: bool,
}

impl BgpPeer {
    pub(crate) fn new(name: &str, wire: &Custom<BgpPeerSpec>) -> Result<Self, Invalid> {
        let spec = &wire.spec;
        let peer_address = peer_address(spec.peer_address.as_deref())?;
        let hold_time = seconds("spec.holdTime", spec.hold_time.as_deref(), 0, u16::MAX)?.unwrap_or(90);
        if (1..3).contains(&hold_time) {
            return Err(Invalid::new("spec.holdTime", "3s or more, or 0s for ever", format!("{hold_time}s")));
        }
        let restart = seconds("spec.gracefulRestartTime", spec.graceful_restart_time.as_deref(), 0, 4095)?;
        Ok(Self {
            name: name.into(),
            peer_asn: asn("spec.peerASN", spec.peer_asn)?
                .ok_or_else(|| Invalid::absent("spec.peerASN", "the router's AS number"))?,
            my_asn: asn("spec.myASN", spec.my_asn)?,
            peer_port: number("spec.peerPort", spec.peer_port, 1, u16::MAX)?.unwrap_or(179),
            hold_time,
            keepalive_time: keepalive(spec.keepalive_time.as_deref(), hold_time)?,
            source_address: source_address(spec.source_address.as_deref(), peer_address)?,
            ebgp_multihop: number("spec.ebgpMultiHop", spec.ebgp_multi_hop, 1, u8::MAX)?,
            ttl_security: number("spec.ttlSecurity", spec.ttl_security, 1, 254)?,
            password: password(spec)?,
            families: families(spec.families.as_deref())?,
            graceful_restart: Some(restart.unwrap_or(120)).filter(|seconds| *seconds > 0),
            passive: spec.passive.unwrap_or(false),
            next_hop_v4: next_hop("spec.nextHopIPv4", "an IPv4 address", spec.next_hop_v4.as_deref())?,
            next_hop_v6: next_hop("spec.nextHopIPv6", "an IPv6 address", spec.next_hop_v6.as_deref())?,
            nodes: Selectors::new("spec.nodeSelectors", &spec.node_selectors)?,
            peer_address,
        })
    }
}

impl BgpAdvertisement {
    /// A community that is wrong refuses the whole object: routes without it might go further than they should.
    pub(crate) fn new(name: &str, wire: &Custom<BgpAdvertisementSpec>) -> Result<Self, Invalid> {
        let spec = &wire.spec;
        if spec.communities.len() > COMMUNITIES_MAX {
            let (expected, found) =
                (format!("at most {COMMUNITIES_MAX}"), spec.communities.len().to_string());
            return Err(Invalid::new("spec.communities", expected, found));
        }
        let (mut communities, mut large_communities) = (BTreeSet::new(), BTreeSet::new());
        for (i, text) in spec.communities.iter().enumerate() {
            match community(text) {
                Some(Community::Plain(value)) => drop(communities.insert(value)),
                Some(Community::Large(value)) => drop(large_communities.insert(value)),
                None => {
                    let expected = "a community like 64512:100 or 64512:1:2, or a name like no-export";
                    return Err(Invalid::text(format!("spec.communities[{i}]"), expected, text));
                }
            }
        }
        Ok(Self {
            name: name.into(),
            pools: names("spec.pools", &spec.pools)?,
            peers: names("spec.peers", &spec.peers)?,
            nodes: Selectors::new("spec.nodeSelectors", &spec.node_selectors)?,
            communities,
            large_communities,
            local_preference: number("spec.localPref", spec.local_pref, 0, u32::MAX)?,
            aggregation_v4: number("spec.aggregationLength", spec.aggregation_length, 0, 32)?.unwrap_or(32),
            aggregation_v6: number("spec.aggregationLengthV6", spec.aggregation_length_v6, 0, 128)?
                .unwrap_or(128),
            pod_cidrs: spec.pod_cidrs.unwrap_or(false),
        })
    }
}

/// A number within bounds, both included.
fn number<T>(field: &str, number: Option<i64>, least: T, most: T) -> Result<Option<T>, Invalid>
where
    T: Copy + PartialOrd + TryFrom<i64> + std::fmt::Display,
{
    let Some(number) = number else { return Ok(None) };
    let valid = T::try_from(number).ok().filter(|valid| (least..=most).contains(valid));
    valid.map(Some).ok_or_else(|| Invalid::new(field, format!("{least} to {most}"), number.to_string()))
}

/// Reserved numbers are those of RFC 7607 (0), RFC 6793 (23456) and RFC 7300 (the last of each size).
fn asn(field: &str, value: Option<i64>) -> Result<Option<u32>, Invalid> {
    match number(field, value, 0, u32::MAX)? {
        Some(reserved @ (0 | 23_456 | 65_535 | u32::MAX)) => {
            let expected = "an AS number that is not reserved, like one from 64512 to 65534";
            Err(Invalid::new(field, expected, reserved.to_string()))
        }
        other => Ok(other),
    }
}

/// A router may be on the node itself, so loopback addresses are good.
fn peer_address(text: Option<&str>) -> Result<IpAddr, Invalid> {
    const FIELD: &str = "spec.peerAddress";
    const EXPECTED: &str = "the address of a router (not link-local)";
    let text = text.ok_or_else(|| Invalid::absent(FIELD, EXPECTED))?;
    let good = |addr: &IpAddr| {
        let special = match addr {
            IpAddr::V4(_) => false,
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
        };
        !special && !addr.is_unspecified() && !addr.is_multicast()
    };
    text.parse().ok().filter(good).ok_or_else(|| Invalid::text(FIELD, EXPECTED, text))
}

/// A duration in whole seconds within bounds, both included.
fn seconds(field: &str, text: Option<&str>, least: u16, most: u16) -> Result<Option<u16>, Invalid> {
    let Some(text) = text else { return Ok(None) };
    let valid = duration::seconds(text).and_then(|seconds| u16::try_from(seconds).ok());
    let valid = valid.filter(|seconds| (least..=most).contains(seconds));
    valid.map(Some).ok_or_else(|| {
        let expected = format!("a duration like 90s or 1m30s, from {least}s to {most}s in whole seconds");
        Invalid::text(field, expected, text)
    })
}

fn keepalive(text: Option<&str>, hold_time: u16) -> Result<Option<u16>, Invalid> {
    const FIELD: &str = "spec.keepaliveTime";
    let time = seconds(FIELD, text, 1, u16::MAX)?;
    match time {
        Some(time) if time >= hold_time => {
            let expected = format!("less than the hold time, {hold_time}s");
            Err(Invalid::new(FIELD, expected, format!("{time}s")))
        }
        time => Ok(time),
    }
}

fn source_address(text: Option<&str>, peer: IpAddr) -> Result<Option<IpAddr>, Invalid> {
    let Some(text) = text else { return Ok(None) };
    let parsed = text.parse::<IpAddr>().ok().filter(|addr| Family::of(*addr) == Family::of(peer));
    parsed.map(Some).ok_or_else(|| {
        let expected = format!("an {} address, as the router's", Family::of(peer));
        Invalid::text("spec.sourceAddress", expected, text)
    })
}

fn next_hop<T: std::str::FromStr>(
    field: &str,
    expected: &str,
    text: Option<&str>,
) -> Result<Option<T>, Invalid> {
    text.map(|text| text.parse().map_err(|_| Invalid::text(field, expected, text))).transpose()
}

fn password(spec: &BgpPeerSpec) -> Result<Option<PasswordSource>, Invalid> {
    let Some(password) = &spec.password else { return Ok(None) };
    match (&password.secret_ref, password.file.as_deref()) {
        (Some(secret), None) => {
            check_label("spec.password.secretRef.namespace", &secret.namespace)?;
            check_subdomain("spec.password.secretRef.name", &secret.name)?;
            Ok(Some(PasswordSource::Secret(NamespacedName::new(&secret.namespace, &secret.name))))
        }
        (None, Some(file)) if file.starts_with('/') => Ok(Some(PasswordSource::File(file.into()))),
        (None, Some(file)) => Err(Invalid::text("spec.password.file", "an absolute path", file)),
        (Some(_), Some(_)) => Err(Invalid::new("spec.password", "secretRef or file", "both of them")),
        // A session without its password must not be what a typing mistake makes.
        (None, None) => Err(Invalid::absent("spec.password", "secretRef or file")),
    }
}

fn families(texts: Option<&[String]>) -> Result<BTreeSet<Family>, Invalid> {
    let Some(texts) = texts else { return Ok([Family::V4, Family::V6].into()) };
    let mut families = BTreeSet::new();
    for (i, text) in texts.iter().enumerate() {
        families.insert(Family::parse(format!("spec.families[{i}]"), text)?);
    }
    if families.is_empty() {
        return Err(Invalid::new("spec.families", "IPv4, IPv6 or both", "an empty list"));
    }
    Ok(families)
}

fn names(field: &str, texts: &[String]) -> Result<BTreeSet<Name>, Invalid> {
    let named = texts.iter().enumerate().map(|(i, text)| {
        check_subdomain(&format!("{field}[{i}]"), text)?;
        Ok(Name::from(text.as_str()))
    });
    named.collect()
}

/// Tags of a route, as the schema allows them: they fit one message of BGP with room to spare.
const COMMUNITIES_MAX: usize = 128;

enum Community {
    Plain(u32),
    Large([u32; 3]),
}

/// Well-known communities (IANA).
const NAMED: [(&str, u32); 5] = [
    ("graceful-shutdown", 0xffff_0000),
    ("blackhole", 0xffff_029a),
    ("no-export", 0xffff_ff01),
    ("no-advertise", 0xffff_ff02),
    ("no-export-subconfed", 0xffff_ff03),
];

fn community(text: &str) -> Option<Community> {
    if let Some((_, value)) = NAMED.iter().find(|(name, _)| *name == text) {
        return Some(Community::Plain(*value));
    }
    let numbers: Vec<u32> = text.split(':').map(|number| number.parse().ok()).collect::<Option<_>>()?;
    match *numbers.as_slice() {
        [high, low] => {
            let (high, low) = (u16::try_from(high).ok()?, u16::try_from(low).ok()?);
            Some(Community::Plain(u32::from(high) << 16 | u32::from(low)))
        }
        [asn, first, second] => Some(Community::Large([asn, first, second])),
        _ => None,
    }
}
