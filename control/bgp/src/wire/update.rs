//! UPDATE: routes that are announced and withdrawn (RFC 4271 §4.3, RFC 4760).

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::attributes::{self, EXTENDED, Fault, MP_REACH, MP_UNREACH, OPTIONAL, TRANSITIVE, attribute};
use super::notification::{Notification, code};
use super::prefix;
use super::reader::Reader;
use super::{AfiSafi, Dialect, Family, Malformed, PathAttributes};

/// Routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// IPv4 prefixes that are reachable no more.
    pub withdrawn: Vec<IpNetwork>,
    /// What is said about all prefixes that are announced.
    pub attributes: PathAttributes,
    /// IPv4 prefixes that are reachable, by `attributes.next_hop`.
    pub announced: Vec<IpNetwork>,
    /// More prefixes that are reachable, as a rule IPv6.
    pub reach: Option<Reach>,
    /// More prefixes that are reachable no more.
    pub unreach: Option<Unreach>,
    /// Set by reading: all that is announced counts as withdrawn instead, for this reason (RFC 7606 §2).
    pub fault: Option<&'static str>,
}

/// MP_REACH_NLRI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Any; prefixes of families that are not spoken here are not read.
    pub family: AfiSafi,
    /// Where packets are sent.
    pub next_hop: Option<IpAddr>,
    /// The prefixes.
    pub prefixes: Vec<IpNetwork>,
}

/// MP_UNREACH_NLRI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreach {
    /// Any; prefixes of families that are not spoken here are not read.
    pub family: AfiSafi,
    /// The prefixes.
    pub prefixes: Vec<IpNetwork>,
}

impl Update {
    /// The mark that all routes of a family have been sent (RFC 4724 §2).
    #[must_use]
    pub fn end_of_rib(family: Family) -> Self {
        match family {
            Family::Ipv4 => Self::default(),
            Family::Ipv6 => Self {
                unreach: Some(Unreach { family: family.into(), prefixes: Vec::new() }),
                ..Self::default()
            },
        }
    }

    /// The family of which it says that all routes have been sent.
    #[must_use]
    pub fn ends_rib_of(&self) -> Option<AfiSafi> {
        match self {
            Update {
                unreach: Some(Unreach { family, prefixes }), reach: None, withdrawn, announced, ..
            } => (prefixes.is_empty() && withdrawn.is_empty() && announced.is_empty()).then_some(*family),
            update => (*update == Self::default()).then_some(Family::Ipv4.into()),
        }
    }

    /// Every prefix that is reachable from now on.
    pub fn reachable(&self) -> impl Iterator<Item = &IpNetwork> {
        let more = self.reach.iter().flat_map(|reach| &reach.prefixes);
        self.announced.iter().chain(more).filter(|_| self.fault.is_none())
    }

    /// Every prefix that is reachable no more.
    pub fn unreachable(&self) -> impl Iterator<Item = &IpNetwork> {
        let announced = self.announced.iter().chain(self.reach.iter().flat_map(|reach| &reach.prefixes));
        let more = self.unreach.iter().flat_map(|unreach| &unreach.prefixes);
        self.withdrawn.iter().chain(more).chain(announced.filter(|_| self.fault.is_some()))
    }

    pub(super) fn encode(&self, dialect: Dialect, out: &mut Vec<u8>) {
        let mut field = Vec::new();
        self.withdrawn.iter().for_each(|prefix| prefix::encode(prefix, &mut field));
        append(&field, out);
        field.clear();
        // RFC 7606 §5.1: first, so that whoever reads finds them also when something else is malformed.
        if let Some(reach) = &self.reach {
            attribute(OPTIONAL, MP_REACH, &reach.encode(), &mut field);
        }
        if let Some(unreach) = &self.unreach {
            attribute(OPTIONAL, MP_UNREACH, &unreach.encode(), &mut field);
        }
        self.attributes.encode(dialect, &mut field);
        append(&field, out);
        self.announced.iter().for_each(|prefix| prefix::encode(prefix, out));
    }

    pub(super) fn decode(mut body: Reader<'_>, dialect: Dialect) -> Result<Self, Malformed> {
        let lengths = || malformed(1, "the lengths in UPDATE do not fit the message");
        let network = || malformed(10, "UPDATE has a prefix that is too long or cut short");
        let mut field = || {
            let len = body.u16()?;
            body.take(len.into()).map(Reader)
        };
        let withdrawn = field().ok_or_else(lengths)?;
        let attributes = field().ok_or_else(lengths)?;
        let mut update = Self {
            withdrawn: prefix::decode_all(withdrawn, Family::Ipv4).ok_or_else(network)?,
            announced: prefix::decode_all(body, Family::Ipv4).ok_or_else(network)?,
            ..Self::default()
        };
        let mut list = List { update: &mut update, dialect, seen: [false; 256] };
        list.read(attributes)?;
        update.check_mandatory();
        Ok(update)
    }

    /// RFC 4271 §5, RFC 7606 §3 (d).
    fn check_mandatory(&mut self) {
        let (attributes, announces) = (&self.attributes, !self.announced.is_empty() || self.reach.is_some());
        let missing = (announces && (attributes.origin.is_none() || attributes.as_path.is_none()))
            || (!self.announced.is_empty() && attributes.next_hop.is_none());
        if missing && self.fault.is_none() {
            self.fault = Some("a mandatory attribute is missing");
        }
    }
}

/// Appends a field with its length in two bytes.
fn append(field: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&u16::try_from(field.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(field);
}

/// A list of attributes that is being read.
struct List<'a> {
    update: &'a mut Update,
    dialect: Dialect,
    /// By type.
    seen: [bool; 256],
}

impl List<'_> {
    fn read(&mut self, mut bytes: Reader<'_>) -> Result<(), Malformed> {
        while !bytes.is_empty() {
            let Some((flags, kind, value)) = header(&mut bytes) else {
                // RFC 7606 §4: prefixes are found all the same, by the length of the whole list.
                self.withdraw("an attribute is cut short");
                break;
            };
            self.attribute(flags, kind, value)?;
        }
        Ok(())
    }

    fn attribute(&mut self, flags: u8, kind: u8, value: &[u8]) -> Result<(), Malformed> {
        let multiprotocol = matches!(kind, MP_REACH | MP_UNREACH);
        if std::mem::replace(&mut self.seen[usize::from(kind)], true) {
            // RFC 7606 §3 (g).
            return match multiprotocol {
                true => Err(malformed(1, "UPDATE has a multiprotocol attribute twice")),
                false => Ok(()),
            };
        }
        match attributes::flags_of(kind) {
            None if flags & OPTIONAL == 0 => {
                return Err(malformed(2, "UPDATE has an unknown attribute that is not optional"));
            }
            None => return Ok(()),
            // RFC 7606 §3 (c).
            Some(right) if flags & (OPTIONAL | TRANSITIVE) != right => {
                self.withdraw("an attribute has flags that it must not have");
            }
            Some(_) => {}
        }
        if multiprotocol {
            return self.multiprotocol(kind, value);
        }
        if let Err(Fault::Withdraw(reason)) = self.update.attributes.take_in(kind, value, self.dialect) {
            self.withdraw(reason);
        }
        Ok(())
    }

    /// RFC 7606 §7.11, §7.12: without these nobody knows which prefixes are meant.
    fn multiprotocol(&mut self, kind: u8, value: &[u8]) -> Result<(), Malformed> {
        let wrong = || malformed(9, "UPDATE has a malformed multiprotocol attribute");
        if kind == MP_REACH {
            self.update.reach = Some(Reach::decode(Reader(value)).ok_or_else(wrong)?);
        } else {
            self.update.unreach = Some(Unreach::decode(Reader(value)).ok_or_else(wrong)?);
        }
        Ok(())
    }

    fn withdraw(&mut self, reason: &'static str) {
        self.update.fault.get_or_insert(reason);
    }
}

/// Flags, type and value of the next attribute.
fn header<'a>(bytes: &mut Reader<'a>) -> Option<(u8, u8, &'a [u8])> {
    let (flags, kind) = (bytes.u8()?, bytes.u8()?);
    let len = if flags & EXTENDED != 0 { bytes.u16()? } else { bytes.u8()?.into() };
    Some((flags, kind, bytes.take(len.into())?))
}

impl Reach {
    fn encode(&self) -> Vec<u8> {
        let mut value = Vec::new();
        value.extend_from_slice(&self.family.afi.to_be_bytes());
        value.push(self.family.safi);
        match self.next_hop {
            None => value.push(0),
            Some(IpAddr::V4(address)) => {
                value.push(4);
                value.extend_from_slice(&address.octets());
            }
            Some(IpAddr::V6(address)) => {
                value.push(16);
                value.extend_from_slice(&address.octets());
            }
        }
        // Reserved.
        value.push(0);
        self.prefixes.iter().for_each(|prefix| prefix::encode(prefix, &mut value));
        value
    }

    fn decode(mut value: Reader<'_>) -> Option<Self> {
        let family = AfiSafi { afi: value.u16()?, safi: value.u8()? };
        let len = value.u8()?;
        let mut address = Reader(value.take(len.into())?);
        let next_hop = match len {
            4 => address.ipv4().map(IpAddr::V4),
            // With a link-local address after the global one (RFC 2545 §3).
            16 | 32 => address.ipv6().map(IpAddr::V6),
            _ => None,
        };
        // Reserved.
        value.u8()?;
        // Lengths of families that are not spoken here are theirs to define.
        let known = family.family();
        if known.is_some() && next_hop.is_none() {
            return None;
        }
        Some(Self { family, next_hop, prefixes: prefixes(value, known)? })
    }
}

impl Unreach {
    fn encode(&self) -> Vec<u8> {
        let mut value = Vec::new();
        value.extend_from_slice(&self.family.afi.to_be_bytes());
        value.push(self.family.safi);
        self.prefixes.iter().for_each(|prefix| prefix::encode(prefix, &mut value));
        value
    }

    fn decode(mut value: Reader<'_>) -> Option<Self> {
        let family = AfiSafi { afi: value.u16()?, safi: value.u8()? };
        Some(Self { family, prefixes: prefixes(value, family.family())? })
    }
}

fn prefixes(bytes: Reader<'_>, family: Option<Family>) -> Option<Vec<IpNetwork>> {
    family.map_or(Some(Vec::new()), |family| prefix::decode_all(bytes, family))
}

fn malformed(subcode: u8, reason: &'static str) -> Malformed {
    Malformed { notification: Notification::new(code::UPDATE, subcode), reason }
}
