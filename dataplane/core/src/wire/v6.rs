//! The IPv6 header (RFC 8200).

use portolan_abi::Words;

use super::{Fields, Fragmented, Kind};

/// Hop limit of packets that we send.
const HOP_LIMIT: u32 = 64;
/// Next header: fragment.
const FRAGMENT: u8 = 44;

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
            // Hop-by-hop, routing, ESP, AH, destination options, mobility, HIP, shim6 (IANA's registry of
            // extension header types).
            0 | 43 | 50 | 51 | 60 | 135 | 139 | 140 => Kind::Options,
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
