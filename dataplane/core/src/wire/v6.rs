//! The IPv6 header (RFC 8200).

use portolan_abi::Words;

use super::{Fields, Fragmented, Kind};

/// Hop limit of packets that we send.
const HOP_LIMIT: u32 = 64;
/// Next header: fragment.
pub const FRAGMENT: u8 = 44;
/// Next header: authentication (RFC 4302), whose length is in words.
pub const AUTHENTICATION: u8 = 51;
/// Next header: what follows is encrypted (RFC 4303).
const ENCRYPTED: u8 = 50;

/// Whether a header of this number is followed by another one that can be read.
#[inline(always)]
#[must_use]
pub const fn is_extension(next: u8) -> bool {
    next == FRAGMENT || (is_optional(next) && next != ENCRYPTED)
}

/// Hop-by-hop, routing, ESP, AH, destination options, mobility, HIP, shim6 (IANA's registry of extension header types).
#[inline(always)]
const fn is_optional(next: u8) -> bool {
    matches!(next, 0 | 43 | ENCRYPTED | AUTHENTICATION | 60 | 135 | 139 | 140)
}

/// Reads the header.
#[inline(always)]
#[must_use]
pub fn fields(header: &[u32; 10]) -> Fields<Words<4>> {
    let [first, second, s0, s1, s2, s3, d0, d1, d2, d3] = *header;
    let second = u32::from_be(second);
    let proto = (second >> 8) as u8;
    let kind = if u32::from_be(first) >> 28 != 6 {
        Kind::Malformed
    } else {
        match proto {
            FRAGMENT => Kind::Fragment,
            _ if is_optional(proto) => Kind::Options,
            _ => Kind::Protocol,
        }
    };
    Fields {
        src: Words([s0, s1, s2, s3]),
        dst: Words([d0, d1, d2, d3]),
        proto,
        ttl: second as u8,
        len: (second >> 16) as u16,
        kind,
    }
}

/// What a piece says of its packet, by its fragment header (RFC 8200 4.5).
#[inline(always)]
#[must_use]
pub fn fragmented([first, id]: [u32; 2]) -> Fragmented {
    let first = u32::from_be(first);
    Fragmented { id, proto: (first >> 24) as u8, first: first & 0xfff8 == 0 }
}

/// Other addresses and hop limit.
#[inline(always)]
#[must_use]
pub fn rewrite(header: [u32; 10], src: Words<4>, dst: Words<4>, ttl: u8) -> [u32; 10] {
    let [first, second, ..] = header;
    let second = ((u32::from_be(second) & 0xffff_ff00) | u32::from(ttl)).to_be();
    let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (src.0, dst.0);
    [first, second, s0, s1, s2, s3, d0, d1, d2, d3]
}

/// A header for `len` bytes of `proto`.
#[inline(always)]
#[must_use]
pub fn compose(src: Words<4>, dst: Words<4>, proto: u8, len: u16) -> [u32; 10] {
    let first = 0x6000_0000u32.to_be();
    let second = (u32::from(len) << 16 | u32::from(proto) << 8 | HOP_LIMIT).to_be();
    let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (src.0, dst.0);
    [first, second, s0, s1, s2, s3, d0, d1, d2, d3]
}
