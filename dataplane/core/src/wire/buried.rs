//! Packets whose transport header is not where it usually is: IP options or extension headers stand before it.

use portolan_abi::FlowKey;

use super::{ETHERNET, Frame, Packet, proto, v4, v6};
use crate::Family;

/// Where a transport header is, and of what protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buried {
    /// Byte of the frame.
    pub at: usize,
    /// IP protocol number.
    pub proto: u8,
}

/// The flow of a packet of kind [`Options`](super::Kind::Options), if it is of TCP or UDP and its ports can be read. Only
/// for asking whether it is of a flow: nobody translates it.
#[inline(always)]
pub fn buried_key<F: Family, P: Frame>(frame: &P, packet: &Packet<F>) -> Option<FlowKey<F::Addr>> {
    let Buried { at, proto } = F::buried(frame, &packet.header)?;
    if proto != proto::TCP && proto != proto::UDP {
        return None;
    }
    let [ports] = frame.words(at)?;
    Some(FlowKey { src: packet.key.src, dst: packet.key.dst, ports, proto: u32::from(proto) })
}

/// Behind IPv4's options; nowhere in a piece that is not the first.
#[inline(always)]
pub(crate) fn behind_options(header: &[u32; 5]) -> Option<Buried> {
    let said = v4::fragmented(header);
    let at = ETHERNET + (u32::from_be(header[0]) >> 22 & 0x3c) as usize;
    said.first.then_some(Buried { at, proto: said.proto })
}

/// Extension headers that are read: there are five that a packet may have once each (RFC 8200 4.1), and hardly any has two.
const EXTENSIONS: u32 = 4;
/// How far they are followed; no node need look further (RFC 8504 5.3 speaks of 128 octets that routers may expect).
const FAR: usize = ETHERNET + 40 + 256;

/// Behind IPv6's extension headers; nowhere in a piece that is not the first, nor behind what is encrypted.
#[inline(always)]
pub(crate) fn behind_extensions<P: Frame>(frame: &P, header: &[u32; 10]) -> Option<Buried> {
    let mut next = v6::fields(header).proto;
    let mut at = ETHERNET + 40;
    let mut seen = 0;
    while seen < EXTENSIONS {
        if !v6::is_extension(next) {
            return Some(Buried { at, proto: next });
        }
        let [word] = frame.words::<1>(at)?;
        let [following, length, upper, lower] = word.to_ne_bytes();
        let length = usize::from(length);
        at += match next {
            v6::FRAGMENT if upper != 0 || lower & 0xf8 != 0 => return None,
            v6::FRAGMENT => 8,
            v6::AUTHENTICATION => (length + 2) * 4,
            _ => (length + 1) * 8,
        };
        if at > FAR {
            return None;
        }
        next = following;
        seen += 1;
    }
    None
}
