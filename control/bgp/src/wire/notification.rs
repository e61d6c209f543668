//! NOTIFICATION: why a connection ends (RFC 4271 §4.5), and what that means to an operator.

use std::fmt;

use serde::Serialize;

use super::reader::Reader;

/// Why one side ended the connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Notification {
    /// What kind of error (RFC 4271 §4.5, IANA "BGP Error (Notification) Codes").
    pub code: u8,
    /// Which error of that kind; 0 is none in particular.
    pub subcode: u8,
    /// What belongs to the error, by code.
    pub data: Vec<u8>,
}

/// Error codes.
#[expect(missing_docs, reason = "the names are those of RFC 4271 §4.5 and RFC 7313 §5")]
pub mod code {
    pub const HEADER: u8 = 1;
    pub const OPEN: u8 = 2;
    pub const UPDATE: u8 = 3;
    pub const HOLD_TIMER: u8 = 4;
    pub const STATE_MACHINE: u8 = 5;
    pub const CEASE: u8 = 6;
    pub const ROUTE_REFRESH: u8 = 7;
}

/// Why a connection ends without an error (RFC 4486 §3), as the subcode of a Cease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[repr(u8)]
pub enum Cease {
    /// An operator withdraws what was announced.
    AdministrativeShutdown = 2,
    /// The peer was removed here.
    PeerDeconfigured = 3,
    /// The connection is not wanted.
    ConnectionRejected = 5,
    /// The peer's settings were changed here.
    OtherConfigurationChange = 6,
    /// The other one of two connections stays.
    ConnectionCollision = 7,
}

impl Notification {
    /// A notification without data.
    #[must_use]
    pub fn new(code: u8, subcode: u8) -> Self {
        Self { code, subcode, data: Vec::new() }
    }

    /// A Cease; `message` is for the operator at the other side and is sent with an administrative shutdown only
    /// (RFC 9003 §2), cut to 255 bytes.
    #[must_use]
    pub fn cease(cease: Cease, message: &str) -> Self {
        let mut data = Vec::new();
        if cease == Cease::AdministrativeShutdown && !message.is_empty() {
            let text = &message[..message.floor_char_boundary(MAX_SHUTDOWN_MESSAGE)];
            data.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
            data.extend_from_slice(text.as_bytes());
        }
        Self { code: code::CEASE, subcode: cease as u8, data }
    }

    /// What the other side's operator said (RFC 9003 §2), if it is text.
    #[must_use]
    pub fn shutdown_message(&self) -> Option<&str> {
        // Administrative Shutdown and Administrative Reset.
        if self.code != code::CEASE || !matches!(self.subcode, 2 | 4) {
            return None;
        }
        let (&len, text) = self.data.split_first()?;
        let text = std::str::from_utf8(text.get(..usize::from(len))?).ok()?;
        (!text.is_empty()).then_some(text)
    }

    /// What an operator of this side can do about having received it.
    #[must_use]
    pub fn advice(&self) -> Option<&'static str> {
        Some(match (self.code, self.subcode) {
            (code::OPEN, 2) => {
                "the peer expects another AS number: set myASN to what the peer is configured with"
            }
            (code::OPEN, 3) => "give this node another router id: the peer has the same one",
            (code::OPEN, 6) => "set another holdTime: the peer does not accept this one",
            (code::OPEN, 7) => "enable an address family at the peer that is enabled here",
            (code::CEASE, 1) => "raise the peer's prefix limit, or announce aggregates",
            (code::CEASE, 2) => "the peer's operator shut the session down: enable it there",
            (code::CEASE, 3) => "the peer's operator removed this node: add it there",
            (code::CEASE, 5) => "the peer is not configured for this node's address: add it there",
            _ => return None,
        })
    }

    fn name(&self) -> Option<&'static str> {
        Some(match (self.code, self.subcode) {
            (code::HEADER, 1) => "connection not synchronized",
            (code::HEADER, 2) => "bad message length",
            (code::HEADER, 3) => "bad message type",
            (code::HEADER, _) => "message header error",
            (code::OPEN, 1) => "unsupported version number",
            (code::OPEN, 2) => "bad peer AS",
            (code::OPEN, 3) => "bad BGP identifier",
            (code::OPEN, 4) => "unsupported optional parameter",
            (code::OPEN, 6) => "unacceptable hold time",
            (code::OPEN, 7) => "unsupported capability",
            (code::OPEN, _) => "OPEN message error",
            (code::UPDATE, 1) => "malformed attribute list",
            (code::UPDATE, 2) => "unrecognized well-known attribute",
            (code::UPDATE, 3) => "missing well-known attribute",
            (code::UPDATE, 8) => "invalid NEXT_HOP attribute",
            (code::UPDATE, 9) => "optional attribute error",
            (code::UPDATE, 10) => "invalid network field",
            (code::UPDATE, _) => "UPDATE message error",
            (code::HOLD_TIMER, _) => "hold timer expired",
            (code::STATE_MACHINE, 1) => "unexpected message in state OpenSent",
            (code::STATE_MACHINE, 2) => "unexpected message in state OpenConfirm",
            (code::STATE_MACHINE, 3) => "unexpected message in state Established",
            (code::STATE_MACHINE, _) => "state machine error",
            (code::CEASE, 1) => "maximum number of prefixes reached",
            (code::CEASE, 2) => "administrative shutdown",
            (code::CEASE, 3) => "peer de-configured",
            (code::CEASE, 4) => "administrative reset",
            (code::CEASE, 5) => "connection rejected",
            (code::CEASE, 6) => "other configuration change",
            (code::CEASE, 7) => "connection collision resolution",
            (code::CEASE, 8) => "out of resources",
            (code::CEASE, 9) => "hard reset",
            (code::CEASE, 10) => "BFD down",
            (code::CEASE, _) => "cease",
            (code::ROUTE_REFRESH, _) => "ROUTE-REFRESH message error",
            _ => return None,
        })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.code, self.subcode]);
        out.extend_from_slice(&self.data);
    }

    /// The body of a message that was checked to have both codes.
    pub(super) fn decode(mut body: Reader<'_>) -> Option<Self> {
        Some(Self { code: body.u8()?, subcode: body.u8()?, data: body.0.to_vec() })
    }
}

impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({}/{})", self.code, self.subcode)?,
            None => write!(f, "error {}/{}", self.code, self.subcode)?,
        }
        match self.shutdown_message() {
            Some(message) => write!(f, ": \"{}\"", message.escape_debug()),
            None => Ok(()),
        }
    }
}

/// Longest shutdown communication in bytes (RFC 9003 §2).
const MAX_SHUTDOWN_MESSAGE: usize = 255;
