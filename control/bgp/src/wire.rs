//! BGP-4 messages: bytes to values and back (RFC 4271 §4). Everything is in network byte order.
//!
//! What is received is read leniently where RFC 7606 wants it so. No input panics.

mod attributes;
mod capability;
mod notification;
mod open;
mod prefix;
mod reader;
mod update;

use serde::Serialize;

pub use attributes::{Community, LargeCommunity, Origin, PathAttributes, Segment};
pub use capability::{Capability, GracefulRestart};
pub use notification::{Cease, Notification, code};
pub use open::Open;
pub(crate) use prefix::encoded_len;
pub use prefix::{AfiSafi, Family};
use reader::Reader;
pub use update::{Reach, Unreach, Update};

/// Length of the header in bytes: marker, length of the message, its type.
pub const HEADER: usize = 19;

/// Longest message in bytes, header included (RFC 4271 §4.1).
pub const MAX_MESSAGE: usize = 4096;

/// In a two-byte field instead of an AS number that needs four (RFC 6793 §3).
pub const AS_TRANS: u16 = 23_456;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time, on the stack")]
pub enum Message {
    /// Who speaks.
    Open(Open),
    /// Routes.
    Update(Update),
    /// The end.
    Notification(Notification),
    /// Still there.
    Keepalive,
    /// "Send your routes again" (RFC 2918 §3).
    RouteRefresh {
        /// Of which family.
        family: AfiSafi,
        /// 0; others are of RFC 7313.
        subtype: u8,
    },
}

/// Kinds of messages, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// [`Message::Open`].
    Open,
    /// [`Message::Update`].
    Update,
    /// [`Message::Notification`].
    Notification,
    /// [`Message::Keepalive`].
    Keepalive,
    /// [`Message::RouteRefresh`].
    RouteRefresh,
}

/// What the two OPENs of a connection settled about how later messages are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// AS numbers in paths have four bytes (RFC 6793 §4.1), else two.
    pub four_octet_as: bool,
    /// The peer is of the same AS.
    pub internal: bool,
}

/// A message that ends the connection, and the NOTIFICATION that says so to the peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Malformed {
    /// To be sent.
    pub notification: Notification,
    /// For the operator.
    pub reason: &'static str,
}

/// A message would be longer than [`MAX_MESSAGE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message would have {len} bytes, of {MAX_MESSAGE} that it may have")]
pub struct TooLong {
    /// Bytes with the header.
    pub len: usize,
}

impl Message {
    /// What kind it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Message::Open(_) => Kind::Open,
            Message::Update(_) => Kind::Update,
            Message::Notification(_) => Kind::Notification,
            Message::Keepalive => Kind::Keepalive,
            Message::RouteRefresh { .. } => Kind::RouteRefresh,
        }
    }

    /// The message's bytes.
    ///
    /// # Errors
    /// They are more than a message may have.
    pub fn encode(&self, dialect: Dialect) -> Result<Vec<u8>, TooLong> {
        let mut out = vec![0xff; MARKER];
        out.extend_from_slice(&[0, 0]);
        out.push(match self.kind() {
            Kind::Open => OPEN,
            Kind::Update => UPDATE,
            Kind::Notification => NOTIFICATION,
            Kind::Keepalive => KEEPALIVE,
            Kind::RouteRefresh => ROUTE_REFRESH,
        });
        match self {
            Message::Open(open) => open.encode(&mut out),
            Message::Update(update) => update.encode(dialect, &mut out),
            Message::Notification(notification) => notification.encode(&mut out),
            Message::Keepalive => {}
            Message::RouteRefresh { family, subtype } => {
                out.extend_from_slice(&family.afi.to_be_bytes());
                out.extend_from_slice(&[*subtype, family.safi]);
            }
        }
        let len = u16::try_from(out.len()).ok().filter(|len| usize::from(*len) <= MAX_MESSAGE);
        let len = len.ok_or(TooLong { len: out.len() })?;
        out[MARKER..MARKER + 2].copy_from_slice(&len.to_be_bytes());
        Ok(out)
    }

    /// The first message of a stream and its length in bytes; `None` while there is not all of it.
    ///
    /// # Errors
    /// The stream cannot be read any further.
    pub fn decode(stream: &[u8], dialect: Dialect) -> Result<Option<(Self, usize)>, Malformed> {
        let mut header = Reader(stream);
        let Some(marker) = header.take(MARKER) else { return Ok(None) };
        if marker != [0xff; MARKER] {
            return Err(Malformed {
                notification: Notification::new(code::HEADER, 1),
                reason: "a message does not begin with BGP's marker",
            });
        }
        let (Some(len), Some(kind)) = (header.u16(), header.u8()) else { return Ok(None) };
        check_header(len, kind)?;
        let body = usize::from(len) - HEADER;
        let Some(body) = header.take(body) else { return Ok(None) };
        Ok(Some((Self::decode_body(kind, len, Reader(body), dialect)?, len.into())))
    }

    /// `len` is the message's, with its header; the body's length fits the kind.
    fn decode_body(kind: u8, len: u16, mut body: Reader<'_>, dialect: Dialect) -> Result<Self, Malformed> {
        let cut = || bad_length(len);
        match kind {
            OPEN => Open::decode(body).map(Message::Open),
            UPDATE => Update::decode(body, dialect).map(Message::Update),
            NOTIFICATION => Notification::decode(body).map(Message::Notification).ok_or_else(cut),
            KEEPALIVE => Ok(Message::Keepalive),
            _ => {
                let (afi, subtype) = (body.u16().ok_or_else(cut)?, body.u8().ok_or_else(cut)?);
                let family = AfiSafi { afi, safi: body.u8().ok_or_else(cut)? };
                Ok(Message::RouteRefresh { family, subtype })
            }
        }
    }
}

/// RFC 4271 §6.1.
fn check_header(len: u16, kind: u8) -> Result<(), Malformed> {
    let allowed = match kind {
        OPEN => 29..=MAX_MESSAGE,
        UPDATE => 23..=MAX_MESSAGE,
        NOTIFICATION => 21..=MAX_MESSAGE,
        KEEPALIVE => HEADER..=HEADER,
        ROUTE_REFRESH => 23..=23,
        _ => {
            let notification = Notification { data: vec![kind], ..Notification::new(code::HEADER, 3) };
            return Err(Malformed { notification, reason: "a message is of no known type" });
        }
    };
    if allowed.contains(&usize::from(len)) { Ok(()) } else { Err(bad_length(len)) }
}

fn bad_length(len: u16) -> Malformed {
    let notification =
        Notification { data: len.to_be_bytes().to_vec(), ..Notification::new(code::HEADER, 2) };
    Malformed { notification, reason: "a message has a length that its type must not have" }
}

const MARKER: usize = 16;

const OPEN: u8 = 1;
const UPDATE: u8 = 2;
const NOTIFICATION: u8 = 3;
const KEEPALIVE: u8 = 4;
const ROUTE_REFRESH: u8 = 5;

#[cfg(test)]
mod tests;
