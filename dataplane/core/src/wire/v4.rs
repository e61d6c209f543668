//! The IPv4 header (RFC 791).

use portolan_abi::Words;

use super::{Fields, Fragmented, Kind};
use crate::checksum;

/// More fragments, or an offset.
const FRAGMENT: u32 = 0x3fff;
/// The offset alone.
const OFFSET: u32 = 0x1fff;
/// Do not fragment.
const DONT_FRAGMENT: u32 = 0x4000;
/// Time to live of packets that we send (RFC 1700's recommended default).
const TTL: u32 = 64;

/// Reads the header.
#[inline(always)]
#[must_use]
pub fn fields(header: &[u32; 5]) -> Fields<Words<1>> {
    let [first, second, third, src, dst] = *header;
    let first = u32::from_be(first);
    let words = (first >> 24) & 0xf;
    let total = first & 0xffff;
    // A total of zero: a packet over 64 KiB that the kernel will still cut in pieces ("BIG TCP").
    let kind = if first >> 28 != 4 || words < 5 || (total != 0 && total < words * 4) {
        Kind::Malformed
    } else if words > 5 {
        // Of a piece as well: where its ports are depends on them.
        Kind::Options
    } else if u32::from_be(second) & FRAGMENT != 0 {
        Kind::Fragment
    } else {
        Kind::Protocol
    };
    let third = u32::from_be(third);
    Fields {
        src: Words([src]),
        dst: Words([dst]),
        proto: (third >> 16) as u8,
        ttl: (third >> 24) as u8,
        len: total.saturating_sub(20) as u16,
        kind,
    }
}

/// What a piece says of its packet.
#[inline(always)]
#[must_use]
pub fn fragmented(header: &[u32; 5]) -> Fragmented {
    let [_, second, third, ..] = *header;
    let second = u32::from_be(second);
    Fragmented { id: second >> 16, proto: (u32::from_be(third) >> 16) as u8, first: second & OFFSET == 0 }
}

/// Other addresses and time to live; the header checksum by difference, so that a wrong one stays wrong.
#[inline(always)]
#[must_use]
pub fn rewrite(header: [u32; 5], src: Words<1>, dst: Words<1>, ttl: u8) -> [u32; 5] {
    let [first, second, third, old_src, old_dst] = header;
    let host = u32::from_be(third);
    let aged = (host & 0x00ff_ffff) | u32::from(ttl) << 24;
    let difference = checksum::difference(old_src, src.0[0])
        + checksum::difference(old_dst, dst.0[0])
        + checksum::difference((host & 0xffff_0000).to_be(), (aged & 0xffff_0000).to_be());
    let field = checksum::update((host as u16).to_be(), difference);
    let third = ((aged & 0xffff_0000) | u32::from(u16::from_be(field))).to_be();
    [first, second, third, src.0[0], dst.0[0]]
}

/// A header without options for `len` bytes of `proto`.
#[inline(always)]
#[must_use]
pub fn compose(src: Words<1>, dst: Words<1>, proto: u8, len: u16) -> [u32; 5] {
    let first = (0x4500_0000 | u32::from(len.wrapping_add(20))).to_be();
    let second = DONT_FRAGMENT.to_be();
    let third = TTL << 24 | u32::from(proto) << 16;
    let sum = checksum::sum(&[first, second, third.to_be(), src.0[0], dst.0[0]]);
    let third = (third | u32::from(u16::from_be(checksum::finish(sum)))).to_be();
    [first, second, third, src.0[0], dst.0[0]]
}
