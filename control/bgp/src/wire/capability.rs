//! Capabilities: what a speaker offers in its OPEN (RFC 5492).

use super::AfiSafi;
use super::reader::Reader;

/// One thing that a speaker can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Routes of this family, in MP attributes (RFC 4760 §8).
    Multiprotocol(AfiSafi),
    /// Sends its routes again when asked (RFC 2918 §2).
    RouteRefresh,
    /// Its routes outlive its connection (RFC 4724 §3).
    GracefulRestart(GracefulRestart),
    /// AS numbers have four bytes; its own (RFC 6793 §3).
    FourOctetAs(u32),
    /// Something else, or one of the above with a length that it must not have.
    Other {
        /// IANA "Capability Codes".
        code: u8,
        /// Its value.
        value: Vec<u8>,
    },
}

/// What a speaker says about its restarts (RFC 4724 §3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GracefulRestart {
    /// It has just restarted: nobody should wait for its End-of-RIB before announcing to it.
    pub restarted: bool,
    /// NOTIFICATIONs do not end the grace either (RFC 8538 §2).
    pub notifications: bool,
    /// How long a restart takes at most, in seconds, 12 bits.
    pub time: u16,
    /// Families, and whether their forwarding went on during the last restart.
    pub families: Vec<(AfiSafi, bool)>,
}

impl GracefulRestart {
    /// The longest time that can be said, in seconds.
    pub const MAX_TIME: u16 = 0x0fff;

    fn encode(&self, out: &mut Vec<u8>) {
        let flag = |set, bit| if set { bit } else { 0 };
        let head = flag(self.restarted, RESTARTED) | flag(self.notifications, NOTIFICATIONS);
        out.extend_from_slice(&(head | self.time.min(Self::MAX_TIME)).to_be_bytes());
        for (family, preserved) in &self.families {
            out.extend_from_slice(&family.afi.to_be_bytes());
            out.extend_from_slice(&[family.safi, if *preserved { PRESERVED } else { 0 }]);
        }
    }

    fn decode(mut value: Reader<'_>) -> Option<Self> {
        let head = value.u16()?;
        let mut families = Vec::new();
        while !value.is_empty() {
            let family = AfiSafi { afi: value.u16()?, safi: value.u8()? };
            families.push((family, value.u8()? & PRESERVED != 0));
        }
        Some(Self {
            restarted: head & RESTARTED != 0,
            notifications: head & NOTIFICATIONS != 0,
            time: head & Self::MAX_TIME,
            families,
        })
    }
}

impl Capability {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let mut value = Vec::new();
        let code = match self {
            Capability::Multiprotocol(family) => {
                value.extend_from_slice(&family.afi.to_be_bytes());
                value.extend_from_slice(&[0, family.safi]);
                MULTIPROTOCOL
            }
            Capability::RouteRefresh => ROUTE_REFRESH,
            Capability::GracefulRestart(restart) => {
                restart.encode(&mut value);
                GRACEFUL_RESTART
            }
            Capability::FourOctetAs(asn) => {
                value.extend_from_slice(&asn.to_be_bytes());
                FOUR_OCTET_AS
            }
            Capability::Other { code, value: other } => {
                value.extend_from_slice(other);
                *code
            }
        };
        value.truncate(usize::from(u8::MAX));
        out.extend_from_slice(&[code, u8::try_from(value.len()).unwrap_or(u8::MAX)]);
        out.extend_from_slice(&value);
    }

    /// The next capability of an optional parameter.
    pub(super) fn decode(parameter: &mut Reader<'_>) -> Option<Self> {
        let (code, len) = (parameter.u8()?, parameter.u8()?);
        let value = parameter.take(len.into())?;
        // A length that a capability must not have: as if it were unknown (RFC 5492 §4 has no error for it).
        Some(Self::known(code, value).unwrap_or_else(|| Capability::Other { code, value: value.to_vec() }))
    }

    fn known(code: u8, value: &[u8]) -> Option<Self> {
        match (code, value) {
            (MULTIPROTOCOL, &[a, b, _, safi]) => {
                Some(Capability::Multiprotocol(AfiSafi { afi: u16::from_be_bytes([a, b]), safi }))
            }
            (ROUTE_REFRESH, []) => Some(Capability::RouteRefresh),
            (GRACEFUL_RESTART, value) => {
                GracefulRestart::decode(Reader(value)).map(Capability::GracefulRestart)
            }
            (FOUR_OCTET_AS, &[a, b, c, d]) => Some(Capability::FourOctetAs(u32::from_be_bytes([a, b, c, d]))),
            _ => None,
        }
    }
}

const MULTIPROTOCOL: u8 = 1;
const ROUTE_REFRESH: u8 = 2;
const GRACEFUL_RESTART: u8 = 64;
const FOUR_OCTET_AS: u8 = 65;

/// Bits of the first two bytes of the graceful restart capability.
const RESTARTED: u16 = 0x8000;
const NOTIFICATIONS: u16 = 0x4000;
/// Bit of a family's last byte.
const PRESERVED: u8 = 0x80;
