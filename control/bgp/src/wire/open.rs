//! OPEN: who a speaker is and what it can do (RFC 4271 §4.2).

use std::net::Ipv4Addr;

use super::capability::{Capability, GracefulRestart};
use super::notification::{Notification, code};
use super::reader::Reader;
use super::{AS_TRANS, AfiSafi, Malformed};

/// The first message on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The speaker's AS number, or `AS_TRANS` if it does not fit two bytes.
    pub two_octet_asn: u16,
    /// How long the speaker waits for a message, in seconds; 0: for ever.
    pub hold_time: u16,
    /// The BGP identifier.
    pub router_id: Ipv4Addr,
    /// What it can do.
    pub capabilities: Vec<Capability>,
}

impl Open {
    /// The speaker's AS number: of the capability, where there is one (RFC 6793 §4.1).
    #[must_use]
    pub fn asn(&self) -> u32 {
        self.four_octet_asn().unwrap_or(self.two_octet_asn.into())
    }

    /// The AS number of the capability.
    #[must_use]
    pub fn four_octet_asn(&self) -> Option<u32> {
        self.capabilities.iter().find_map(|capability| match capability {
            Capability::FourOctetAs(asn) => Some(*asn),
            _ => None,
        })
    }

    /// Families whose routes it takes. Without any multiprotocol capability that is IPv4 unicast alone.
    pub fn families(&self) -> impl Iterator<Item = AfiSafi> {
        let offered = self.capabilities.iter().filter_map(|capability| match capability {
            Capability::Multiprotocol(family) => Some(*family),
            _ => None,
        });
        let none = offered.clone().next().is_none();
        offered.chain(none.then_some(AfiSafi { afi: 1, safi: 1 }))
    }

    /// Whether it sends its routes again when asked.
    #[must_use]
    pub fn refreshes(&self) -> bool {
        self.capabilities.contains(&Capability::RouteRefresh)
    }

    /// What it says about restarts. The last one counts, should there be several (RFC 4724 §3).
    #[must_use]
    pub fn graceful_restart(&self) -> Option<&GracefulRestart> {
        self.capabilities.iter().rev().find_map(|capability| match capability {
            Capability::GracefulRestart(restart) => Some(restart),
            _ => None,
        })
    }

    /// The two bytes of an AS number where four do not fit.
    #[must_use]
    pub fn shorten(asn: u32) -> u16 {
        u16::try_from(asn).unwrap_or(AS_TRANS)
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        out.extend_from_slice(&self.two_octet_asn.to_be_bytes());
        out.extend_from_slice(&self.hold_time.to_be_bytes());
        out.extend_from_slice(&self.router_id.octets());
        let mut capabilities = Vec::new();
        self.capabilities.iter().for_each(|capability| capability.encode(&mut capabilities));
        match u8::try_from(capabilities.len()) {
            Ok(0) => out.push(0),
            // One more parameter header and still one byte of length: 255 would mean something else.
            Ok(len) if len < EXTENDED - 2 => {
                out.extend_from_slice(&[len + 2, CAPABILITIES, len]);
                out.extend_from_slice(&capabilities);
            }
            _ => encode_extended(&capabilities, out),
        }
    }

    pub(super) fn decode(mut body: Reader<'_>) -> Result<Self, Malformed> {
        let cut = || malformed(0, "OPEN is cut short");
        let version = body.u8().ok_or_else(cut)?;
        if version != VERSION {
            let data = u16::from(VERSION).to_be_bytes().to_vec();
            let notification = Notification { data, ..Notification::new(code::OPEN, 1) };
            return Err(Malformed { notification, reason: "OPEN is of another BGP version than 4" });
        }
        Ok(Self {
            two_octet_asn: body.u16().ok_or_else(cut)?,
            hold_time: body.u16().ok_or_else(cut)?,
            router_id: body.ipv4().ok_or_else(cut)?,
            capabilities: decode_parameters(body)?,
        })
    }
}

/// The extended form of optional parameters, with lengths of two bytes (RFC 9072 §2).
fn encode_extended(capabilities: &[u8], out: &mut Vec<u8>) {
    let len = u16::try_from(capabilities.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&[EXTENDED, EXTENDED]);
    out.extend_from_slice(&len.saturating_add(3).to_be_bytes());
    out.push(CAPABILITIES);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(capabilities);
}

fn decode_parameters(mut body: Reader<'_>) -> Result<Vec<Capability>, Malformed> {
    let cut = || malformed(0, "the optional parameters of OPEN are cut short");
    let len = body.u8().ok_or_else(cut)?;
    let extended = len == EXTENDED && body.0.first() == Some(&EXTENDED);
    let mut parameters = if extended {
        body.u8().ok_or_else(cut)?;
        let len = body.u16().ok_or_else(cut)?;
        Reader(body.take(len.into()).ok_or_else(cut)?)
    } else {
        Reader(body.take(len.into()).ok_or_else(cut)?)
    };
    if !body.is_empty() {
        return Err(malformed(0, "something follows the optional parameters of OPEN"));
    }
    let mut capabilities = Vec::new();
    while !parameters.is_empty() {
        let kind = parameters.u8().ok_or_else(cut)?;
        let len = if extended { parameters.u16() } else { parameters.u8().map(u16::from) };
        let value = parameters.take(len.ok_or_else(cut)?.into()).ok_or_else(cut)?;
        if kind != CAPABILITIES {
            return Err(malformed(4, "OPEN has an optional parameter that is no capability"));
        }
        let mut value = Reader(value);
        while !value.is_empty() {
            capabilities.push(Capability::decode(&mut value).ok_or_else(cut)?);
        }
    }
    Ok(capabilities)
}

fn malformed(subcode: u8, reason: &'static str) -> Malformed {
    Malformed { notification: Notification::new(code::OPEN, subcode), reason }
}

const VERSION: u8 = 4;
/// Type of the optional parameter that has capabilities (RFC 5492 §4).
const CAPABILITIES: u8 = 2;
/// Instead of a length and of a type: lengths have two bytes.
const EXTENDED: u8 = 255;
