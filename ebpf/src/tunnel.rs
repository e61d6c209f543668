//! Packets inside of packets: the same order as in [`apply`](crate::apply), headers first.

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_FIXED_GSO,
    TC_ACT_SHOT,
};
use aya_ebpf::helpers::generated::bpf_skb_adjust_room;
use portolan_core::tunnel::{Finding, QUOTED_OTHER, QUOTED_TCP, complaint, is_ours, parcel};
use portolan_core::wire::{ETHERNET, Frame, Kind, parse};
use portolan_core::{Exit, Family, Hook, Reason, checksum};

use crate::apply::{Done, awaits_device, leave, resize};
use crate::frame::Linear;
use crate::tables::{Maps, Route};

/// Of [`unpack`]: left as it is; to be decided on at [`Hook::Tunnel`]; the kernel refused.
pub const FOREIGN: u32 = 0;
/// See [`FOREIGN`].
pub const UNPACKED: u32 = 1;
const REFUSED: u32 = 2;

/// Whether the packet carries one of its own family: one byte, so that all others are not held up.
#[inline(always)]
pub fn may_carry<F: Family>(skb: *mut __sk_buff) -> bool {
    // The word with the protocol: the third of IPv4, the second of IPv6.
    let (at, shift) = if F::HEADER_LEN == 20 { (ETHERNET + 8, 16) } else { (ETHERNET + 4, 8) };
    match Linear::new(skb).words::<1>(at) {
        Some([word]) => (u32::from_be(word) >> shift) as u8 == F::TUNNEL,
        None => false,
    }
}

/// Takes a packet out of that of another node.
#[inline(always)]
pub fn unpack<F: Route>(skb: *mut __sk_buff) -> u32 {
    if !is_ours::<F, _, _>(&Linear::new(skb), &Maps::new(skb)) {
        return FOREIGN;
    }
    if adjust(skb, -(F::HEADER_LEN as i32), BPF_F_ADJ_ROOM_FIXED_GSO) { UNPACKED } else { REFUSED }
}

/// Puts a packet into one to its flow's backend and sends that.
#[inline(always)]
pub fn pack<F: Route>(skb: *mut __sk_buff, ifindex: u32) -> Done {
    let frame = Linear::new(skb);
    let parcel = parcel::<F, _, _>(Hook::Uplink, ifindex, &frame, &Maps::new(skb));
    match parcel.finding {
        Finding::Fits => {}
        Finding::TooBig => return Done::new(Reason::TooBig as u32, Done::COMPLAIN),
        Finding::Drop(reason) => return Done::new(reason as u32, TC_ACT_SHOT),
    }
    let layer = if F::HEADER_LEN == 20 { BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 } else { BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 };
    // The kernel is told what the new header is, so that it can still cut the packet in pieces; the pieces keep their
    // size, which has been looked at.
    let written = frame.write(ETHERNET, parcel.inner)
        && adjust(skb, F::HEADER_LEN as i32, layer | BPF_F_ADJ_ROOM_FIXED_GSO)
        && frame.write(ETHERNET, parcel.outer);
    if !written {
        return Done::failed();
    }
    leave(Hook::Uplink, parcel.exit, parcel.exit.outcome())
}

/// Puts the ICMP error "too big" in the place of a packet: before the headers that it quotes.
///
/// Where the packet's checksum awaits the device, the device will complete it inside of the quotation, in its old
/// place. From `0xffff` on, that makes the sum of the quoted transport header zero, whatever is in it.
#[inline(always)]
pub fn complain<F: Route>(skb: *mut __sk_buff, ifindex: u32) -> i32 {
    let frame = Linear::new(skb);
    let transport = ETHERNET + F::HEADER_LEN;
    let written = if matches!(parse::<F, _>(&frame).kind, Kind::Tcp | Kind::Fragment) {
        complain_quoting::<F, { QUOTED_TCP / 4 }>(skb, transport + 16)
    } else {
        complain_quoting::<F, { QUOTED_OTHER / 4 }>(skb, transport + 6)
    };
    if written { leave(Hook::Uplink, Exit::uplink(ifindex), 0).action() } else { TC_ACT_SHOT }
}

/// [`complain`] with `N` words of the transport header, whose checksum is at byte `sum_at`.
#[inline(always)]
fn complain_quoting<F: Route, const N: usize>(skb: *mut __sk_buff, sum_at: usize) -> bool {
    let frame = Linear::new(skb);
    let transport = ETHERNET + F::HEADER_LEN;
    let Some(quoted) = frame.words::<N>(transport) else { return false };
    let awaits = awaits_device(skb, sum_at);
    let sum = if awaits { 0 } else { checksum::sum(&quoted) };
    let Some(said) = complaint::<F, _, _>(&frame, (4 * N, sum), &Maps::new(skb)) else {
        return false;
    };
    resize(skb, transport + 4 * N)
        && frame.write(transport, quoted)
        && (!awaits || frame.write(sum_at, u16::MAX))
        && adjust(skb, (F::HEADER_LEN + 8) as i32, BPF_F_ADJ_ROOM_FIXED_GSO)
        && frame.write(ETHERNET, said.header)
        && frame.write(transport, said.icmp)
}

/// Makes the packet longer or shorter between its Ethernet and its IP header.
#[inline(always)]
fn adjust(skb: *mut __sk_buff, by: i32, flags: u32) -> bool {
    // SAFETY: the context is the program's own.
    unsafe { bpf_skb_adjust_room(skb, by, BPF_ADJ_ROOM_MAC, u64::from(flags)) == 0 }
}
