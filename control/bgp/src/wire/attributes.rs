//! Path attributes (RFC 4271 §4.3, §5).

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::Serialize;

use super::reader::Reader;
use super::{AS_TRANS, Dialect};

/// What is said about all prefixes of an UPDATE. Sent ones have no `None` where the attribute is mandatory.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathAttributes {
    /// Where the route comes from.
    pub origin: Option<Origin>,
    /// The ASes that it came through, the nearest first.
    pub as_path: Option<Vec<Segment>>,
    /// Where packets are sent; IPv6 has its own in MP_REACH_NLRI.
    pub next_hop: Option<Ipv4Addr>,
    /// Which of several links into this AS is to be preferred: the lowest.
    pub med: Option<u32>,
    /// Which exit out of the common AS is to be preferred: the highest. Within an AS only.
    pub local_preference: Option<u32>,
    /// RFC 1997.
    pub communities: BTreeSet<Community>,
    /// RFC 8092.
    pub large_communities: BTreeSet<LargeCommunity>,
}

/// Where a route comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Origin {
    /// The AS that it begins in.
    Igp = 0,
    /// EGP, the protocol before BGP.
    Egp = 1,
    /// Something else.
    Incomplete = 2,
}

/// A part of a path of ASes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Segment {
    /// 1 is a set, 2 is a sequence (RFC 4271 §4.3); 3 and 4 are those of confederations (RFC 5065 §3).
    pub kind: u8,
    /// The ASes; at least one and at most 255.
    pub asns: Vec<u32>,
}

impl Segment {
    /// ASes in the order in which packets come through them.
    #[must_use]
    pub fn sequence(asns: Vec<u32>) -> Self {
        Self { kind: 2, asns }
    }
}

/// A tag on a route, `64512:100` (RFC 1997), or a well-known one by its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Community(pub u32);

/// A tag on a route with three numbers, `64512:1:2` (RFC 8092).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LargeCommunity {
    /// The AS that says what the others mean.
    pub asn: u32,
    /// First number.
    pub first: u32,
    /// Second number.
    pub second: u32,
}

/// A text is no community.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}")]
pub struct NotACommunity {
    text: String,
    what: &'static str,
}

/// Well-known communities (IANA).
const NAMED: [(&str, u32); 5] = [
    ("graceful-shutdown", 0xffff_0000),
    ("blackhole", 0xffff_029a),
    ("no-export", 0xffff_ff01),
    ("no-advertise", 0xffff_ff02),
    ("no-export-subconfed", 0xffff_ff03),
];

impl FromStr for Community {
    type Err = NotACommunity;

    fn from_str(text: &str) -> Result<Self, NotACommunity> {
        if let Some((_, value)) = NAMED.iter().find(|(name, _)| *name == text) {
            return Ok(Self(*value));
        }
        let pair = text.split_once(':').and_then(|(high, low)| {
            let (high, low): (u16, u16) = (high.parse().ok()?, low.parse().ok()?);
            Some(u32::from(high) << 16 | u32::from(low))
        });
        let what = "community: write two numbers up to 65535 as 64512:100, or a name as no-export";
        pair.map(Self).ok_or_else(|| NotACommunity { text: text.to_owned(), what })
    }
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMED.iter().find(|(_, value)| *value == self.0) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "{}:{}", self.0 >> 16, self.0 & 0xffff),
        }
    }
}

impl FromStr for LargeCommunity {
    type Err = NotACommunity;

    fn from_str(text: &str) -> Result<Self, NotACommunity> {
        let numbers: Option<Vec<u32>> = text.split(':').map(|number| number.parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[asn, first, second]) => Ok(Self { asn, first, second }),
            _ => Err(NotACommunity {
                text: text.to_owned(),
                what: "large community: write three numbers as 64512:1:2",
            }),
        }
    }
}

impl fmt::Display for LargeCommunity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.asn, self.first, self.second)
    }
}

impl fmt::Debug for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for LargeCommunity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Community {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for LargeCommunity {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl PathAttributes {
    pub(super) fn encode(&self, dialect: Dialect, out: &mut Vec<u8>) {
        if let Some(origin) = self.origin {
            attribute(TRANSITIVE, ORIGIN, &[origin as u8], out);
        }
        if let Some(path) = &self.as_path {
            let mut value = Vec::new();
            encode_path(path, dialect.four_octet_as, &mut value);
            attribute(TRANSITIVE, AS_PATH, &value, out);
        }
        if let Some(next_hop) = self.next_hop {
            attribute(TRANSITIVE, NEXT_HOP, &next_hop.octets(), out);
        }
        if let Some(med) = self.med {
            attribute(OPTIONAL, MED, &med.to_be_bytes(), out);
        }
        if let Some(preference) = self.local_preference {
            attribute(TRANSITIVE, LOCAL_PREFERENCE, &preference.to_be_bytes(), out);
        }
        self.encode_communities(out);
        if !dialect.four_octet_as {
            self.encode_as4_path(out);
        }
    }

    fn encode_communities(&self, out: &mut Vec<u8>) {
        if !self.communities.is_empty() {
            let value: Vec<u8> = self.communities.iter().flat_map(|tag| tag.0.to_be_bytes()).collect();
            attribute(OPTIONAL | TRANSITIVE, COMMUNITIES, &value, out);
        }
        if !self.large_communities.is_empty() {
            let numbers = self.large_communities.iter().flat_map(|tag| [tag.asn, tag.first, tag.second]);
            let value: Vec<u8> = numbers.flat_map(u32::to_be_bytes).collect();
            attribute(OPTIONAL | TRANSITIVE, LARGE_COMMUNITIES, &value, out);
        }
    }

    /// The path for whoever reads four bytes, behind a peer that reads two (RFC 6793 §4.2.2).
    fn encode_as4_path(&self, out: &mut Vec<u8>) {
        let path = self.as_path.as_deref().unwrap_or_default();
        if path.iter().flat_map(|segment| &segment.asns).any(|asn| u16::try_from(*asn).is_err()) {
            let mut value = Vec::new();
            encode_path(path, true, &mut value);
            attribute(OPTIONAL | TRANSITIVE, AS4_PATH, &value, out);
        }
    }

    /// Takes in an attribute of a received UPDATE. Unknown ones of other ASes' making pass by.
    pub(super) fn take_in(&mut self, kind: u8, value: &[u8], dialect: Dialect) -> Result<(), Fault> {
        let mut reader = Reader(value);
        match (kind, value.len()) {
            (ORIGIN, 1) => {
                let known = [Origin::Igp, Origin::Egp, Origin::Incomplete];
                let origin = known.into_iter().find(|origin| *origin as u8 == value[0]);
                self.origin = Some(origin.ok_or(Fault::Withdraw("ORIGIN has no known value"))?);
            }
            (AS_PATH, _) => {
                let path = decode_path(reader, dialect.four_octet_as);
                self.as_path = Some(path.ok_or(Fault::Withdraw("AS_PATH is malformed"))?);
            }
            (NEXT_HOP, 4) => self.next_hop = reader.ipv4(),
            (MED, 4) => self.med = reader.u32(),
            // RFC 7606 §7.5: from another AS it means nothing.
            (LOCAL_PREFERENCE, _) if !dialect.internal => return Err(Fault::Discard),
            (LOCAL_PREFERENCE, 4) => self.local_preference = reader.u32(),
            (COMMUNITIES, len) if len > 0 && len % 4 == 0 => {
                self.communities.extend(std::iter::from_fn(|| reader.u32().map(Community)));
            }
            (LARGE_COMMUNITIES, len) if len > 0 && len % 12 == 0 => {
                self.large_communities.extend(std::iter::from_fn(|| large(&mut reader)));
            }
            (ORIGIN | NEXT_HOP | MED | LOCAL_PREFERENCE | COMMUNITIES | LARGE_COMMUNITIES, _) => {
                return Err(Fault::Withdraw("an attribute has a length that it must not have"));
            }
            _ => {}
        }
        Ok(())
    }
}

/// What an attribute that is wrong does to its UPDATE (RFC 7606 §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The attribute counts as absent.
    Discard,
    /// The routes count as withdrawn.
    Withdraw(&'static str),
}

fn large(reader: &mut Reader<'_>) -> Option<LargeCommunity> {
    Some(LargeCommunity { asn: reader.u32()?, first: reader.u32()?, second: reader.u32()? })
}

fn encode_path(path: &[Segment], four_octet_as: bool, out: &mut Vec<u8>) {
    for Segment { kind, asns } in path {
        out.extend_from_slice(&[*kind, u8::try_from(asns.len()).unwrap_or(u8::MAX)]);
        for asn in asns.iter().take(u8::MAX.into()) {
            match four_octet_as {
                true => out.extend_from_slice(&asn.to_be_bytes()),
                false => out.extend_from_slice(&u16::try_from(*asn).unwrap_or(AS_TRANS).to_be_bytes()),
            }
        }
    }
}

/// `None`: malformed as of RFC 7606 §7.2.
fn decode_path(mut value: Reader<'_>, four_octet_as: bool) -> Option<Vec<Segment>> {
    let mut path = Vec::new();
    while !value.is_empty() {
        let (kind, count) = (value.u8()?, value.u8()?);
        if !(1..=4).contains(&kind) || count == 0 {
            return None;
        }
        let mut asn = || if four_octet_as { value.u32() } else { value.u16().map(u32::from) };
        let asns: Option<Vec<u32>> = (0..count).map(|_| asn()).collect();
        path.push(Segment { kind, asns: asns? });
    }
    Some(path)
}

/// Appends an attribute; its length takes two bytes where one does not do (RFC 4271 §4.3).
pub(super) fn attribute(flags: u8, kind: u8, value: &[u8], out: &mut Vec<u8>) {
    match u8::try_from(value.len()) {
        Ok(len) => out.extend_from_slice(&[flags, kind, len]),
        Err(_) => {
            out.extend_from_slice(&[flags | EXTENDED, kind]);
            out.extend_from_slice(&u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    out.extend_from_slice(value);
}

/// The flags that an attribute of this type must have; `None`: not known here.
pub(super) fn flags_of(kind: u8) -> Option<u8> {
    Some(match kind {
        ORIGIN | AS_PATH | NEXT_HOP | LOCAL_PREFERENCE | ATOMIC_AGGREGATE => TRANSITIVE,
        MED | MP_REACH | MP_UNREACH => OPTIONAL,
        AGGREGATOR | COMMUNITIES | AS4_PATH | LARGE_COMMUNITIES => OPTIONAL | TRANSITIVE,
        _ => return None,
    })
}

pub(super) const OPTIONAL: u8 = 0x80;
pub(super) const TRANSITIVE: u8 = 0x40;
pub(super) const EXTENDED: u8 = 0x10;

const ORIGIN: u8 = 1;
const AS_PATH: u8 = 2;
const NEXT_HOP: u8 = 3;
const MED: u8 = 4;
const LOCAL_PREFERENCE: u8 = 5;
const ATOMIC_AGGREGATE: u8 = 6;
const AGGREGATOR: u8 = 7;
const COMMUNITIES: u8 = 8;
/// RFC 4760 §3.
pub(super) const MP_REACH: u8 = 14;
/// RFC 4760 §4.
pub(super) const MP_UNREACH: u8 = 15;
const AS4_PATH: u8 = 17;
const LARGE_COMMUNITIES: u8 = 32;
