//! Packets that the data plane sends itself: TCP resets and "port unreachable".

use crate::checksum;
use crate::wire::{Kind, Packet, proto, swap_ports, tcp};
use crate::{Address, Family};

/// Bytes of the refused packet's transport header that an ICMP error quotes (RFC 792: 64 bits).
pub const QUOTED: usize = 8;

/// What takes the place of a refused packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection<F: Family> {
    /// IP header and TCP header, checksums in place.
    Reset(F::Header, [u32; 5]),
    /// IP header and ICMP header, its checksum still zero: the refused packet's IP header and first
    /// [`QUOTED`] bytes follow and are part of the sum, which [`unreachable_checksum`] completes.
    Unreachable(F::Header, [u32; 2]),
}

impl<F: Family> Rejection<F> {
    /// The answer to a packet: a reset to TCP (RFC 9293 3.10.7.1), "port unreachable" to all else.
    #[inline(always)]
    #[must_use]
    pub fn of(packet: &Packet<F>) -> Self {
        if packet.kind != Kind::Tcp {
            return Self::unreachable(packet);
        }
        let segment = packet.segment;
        if segment.flags & tcp::ACK != 0 {
            return Self::reset(packet, tcp::RST, segment.ack, 0);
        }
        let data = u32::from(packet.len.wrapping_sub(segment.header));
        // SYN and FIN take a place in the sequence each (RFC 9293 3.4).
        let ends = u32::from(segment.flags & tcp::SYN != 0) + u32::from(segment.flags & tcp::FIN != 0);
        Self::reset(packet, tcp::RST | tcp::ACK, 0, segment.seq.wrapping_add(data).wrapping_add(ends))
    }

    #[inline(always)]
    fn reset(packet: &Packet<F>, flags: u8, seq: u32, ack: u32) -> Self {
        let key = &packet.key;
        let header = F::compose(key.dst, key.src, proto::TCP, 20);
        let control = (5 << 28 | u32::from(flags) << 16).to_be();
        let words = [swap_ports(key.ports), seq.to_be(), ack.to_be(), control, 0];
        let sum = checksum::sum(&words) + pseudo_sum::<F>(key.dst, key.src, proto::TCP, 20);
        let field = u32::from(u16::from_be(checksum::finish(sum))) << 16;
        Self::Reset(header, [words[0], words[1], words[2], words[3], field.to_be()])
    }

    #[inline(always)]
    fn unreachable(packet: &Packet<F>) -> Self {
        let key = &packet.key;
        let len = (8 + F::HEADER_LEN + QUOTED) as u16;
        Self::Unreachable(F::compose(key.dst, key.src, F::ICMP, len), [F::port_unreachable(), 0])
    }
}

/// Whether a packet may be answered at all: never a reset (RFC 9293 3.10.7.1), never an answer to several.
#[inline(always)]
#[must_use]
pub fn may_answer<F: Family>(packet: &Packet<F>) -> bool {
    packet.segment.flags & tcp::RST == 0
        && !packet.key.src.is_multicast()
        && packet.key.src != F::Addr::UNSPECIFIED
}

/// The ICMP header of a "port unreachable" with its checksum, for the packet that it quotes.
#[inline(always)]
#[must_use]
pub fn unreachable_checksum<F: Family>(packet: &Packet<F>, icmp: [u32; 2], quoted: [u32; 2]) -> [u32; 2] {
    let len = (8 + F::HEADER_LEN + QUOTED) as u16;
    let mut sum = checksum::sum(&icmp) + F::header_sum(&packet.header) + checksum::sum(&quoted);
    if F::ICMP_PSEUDO {
        sum += pseudo_sum::<F>(packet.key.dst, packet.key.src, F::ICMP, len);
    }
    let field = u32::from(u16::from_be(checksum::finish(sum)));
    [(u32::from_be(icmp[0]) | field).to_be(), icmp[1]]
}

/// What belongs into the answer at the place of the refused packet's checksum (byte 16 of TCP, 6 of UDP) if that
/// awaited the device (`CHECKSUM_PARTIAL`), because the device will complete the answer at the same place: it adds
/// all from the transport header on to what stands there.
///
/// For a reset, that is the usual sum of the pseudo header. An ICMP error has its own checksum elsewhere and an
/// unused field here; whatever the device puts there, the message is right as a whole if it starts from the sum of
/// the pseudo header, where there is one.
#[inline(always)]
#[must_use]
pub fn awaiting<F: Family>(packet: &Packet<F>) -> u16 {
    let (src, dst) = (packet.key.dst, packet.key.src);
    let sum = match packet.kind {
        Kind::Tcp => pseudo_sum::<F>(src, dst, proto::TCP, 20),
        _ if F::ICMP_PSEUDO => pseudo_sum::<F>(src, dst, F::ICMP, (8 + F::HEADER_LEN + QUOTED) as u16),
        _ => 0,
    };
    !checksum::finish(sum)
}

/// Whether a TCP or UDP packet's checksum field may await the device: then it holds the sum of the pseudo header alone. One in
/// 65,536 fields that are whole looks alike, and so does UDP's for "no checksum".
#[inline(always)]
#[must_use]
pub fn may_await<F: Family>(packet: &Packet<F>, field: u16) -> bool {
    let sum = pseudo_sum::<F>(packet.key.src, packet.key.dst, packet.key.proto as u8, packet.len);
    // Zero if the field is any of three, without a branch: the verifier follows both ways of each through all that comes after.
    let (field, pseudo) = (u64::from(field), u64::from(checksum::fold(sum)));
    (field ^ pseudo) * field * (field ^ 0xffff) == 0
}

/// Sum of the pseudo header (RFC 9293 3.1, RFC 8200 8.1): the same for both families, since unused bytes are zero.
#[inline(always)]
pub(crate) fn pseudo_sum<F: Family>(src: F::Addr, dst: F::Addr, protocol: u8, len: u16) -> u32 {
    src.sum() + dst.sum() + checksum::sum(&[u32::from(protocol).to_be(), u32::from(len).to_be()])
}
