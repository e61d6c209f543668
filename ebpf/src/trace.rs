//! Shows packets to who watches. While nobody does, this is one look into an array for each packet.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{
    bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_skb_load_bytes,
};
use portolan_abi::{Event, SHOWN_WORDS, Trace, counter, trace_flag};
use portolan_core::{Family, Hook, V4, V6};

use crate::maps::{EVENTS, TRACE, TRACED};

/// Where addresses and ports stand, in half words from the frame's beginning: two bytes of the Ethernet header stand
/// before the first whole word of the IP header.
const ETHERNET: usize = 14;

/// Notes a packet as it comes.
#[inline(always)]
pub fn begin(skb: *mut __sk_buff, hook: Hook) {
    if is_watched() {
        remember(skb, hook as u32 + 1);
    }
}

/// Shows the packet that [`begin`] noted, with what became of it.
#[inline(always)]
pub fn end(skb: *mut __sk_buff, outcome: u32) {
    if is_watched() {
        show(skb, outcome);
    }
}

#[inline(always)]
fn is_watched() -> bool {
    // SAFETY: the record lives as long as the map; a word is read whole.
    TRACE.get_ptr(0).is_some_and(|trace| unsafe { read_volatile(&raw const (*trace).until) } != 0)
}

#[inline(never)]
fn remember(skb: *mut __sk_buff, hook: u32) -> u64 {
    let (Some(trace), Some(event)) = (TRACE.get_ptr_mut(0), TRACED.get_ptr_mut(0)) else { return 0 };
    // SAFETY: both records live as long as their maps; the event is this CPU's own, and no other classifier runs on
    // this CPU before this one has ended. Helpers check what they are given.
    unsafe {
        (*event).hook = 0;
        let now = (bpf_ktime_get_coarse_ns() >> 30) as u32;
        if now.wrapping_sub((*trace).until) < u32::MAX / 2 {
            write_volatile(&raw mut (*trace).until, 0);
            return 0;
        }
        if bpf_get_prandom_u32() & (*trace).mask != 0 {
            return 0;
        }
        (*event).time = bpf_ktime_get_ns();
        (*event).ifindex = (*skb).ifindex;
        (*event).len = (*skb).len;
        (*event).before_len = load(skb, &raw mut (*event).before);
        (*event).hook = hook;
    }
    0
}

#[inline(never)]
fn show(skb: *mut __sk_buff, outcome: u32) -> u64 {
    let (Some(trace), Some(event)) = (TRACE.get_ptr_mut(0), TRACED.get_ptr_mut(0)) else { return 0 };
    // SAFETY: as in `remember`.
    unsafe {
        if (*event).hook == 0 {
            return 0;
        }
        let dropped = counter::is_drop(outcome);
        (*event).outcome = outcome;
        (*event).after_len = if dropped { 0 } else { load(skb, &raw mut (*event).after) };
        if is_wanted(&*trace, &*event, dropped) && EVENTS.output_untyped::<Event>(&*event, 0).is_err() {
            (*trace).lost += 1;
        }
        (*event).hook = 0;
    }
    0
}

/// Copies the beginning of the packet; its length in bytes.
#[inline(always)]
fn load(skb: *mut __sk_buff, to: *mut [u32; SHOWN_WORDS]) -> u32 {
    // Lengths of whole headers, because the verifier has to see that a length is neither 0 nor too large.
    for len in [4 * SHOWN_WORDS as u32, 74, 62, 54, 42] {
        // SAFETY: the target has room for the longest; the helper compares with the packet's end.
        if unsafe { bpf_skb_load_bytes(skb.cast(), 0, to.cast(), len) } == 0 {
            return len;
        }
    }
    0
}

#[inline(always)]
fn is_wanted(trace: &Trace, event: &Event, dropped: bool) -> bool {
    if trace.flags & trace_flag::DROPS != 0 && !dropped {
        return false;
    }
    matches(trace, &event.before) || (event.after_len != 0 && matches(trace, &event.after))
}

/// Whether a packet's beginning has the address and the port that are looked for.
#[inline(always)]
fn matches(trace: &Trace, packet: &[u32; SHOWN_WORDS]) -> bool {
    let (v4, v6) = (trace.flags & trace_flag::V4 != 0, trace.flags & trace_flag::V6 != 0);
    let kind = packet[3] as u16;
    let is_v4 = kind == V4::ETHERTYPE.to_be();
    let is_v6 = kind == V6::ETHERTYPE.to_be();
    if !is_v4 && !is_v6 {
        return !v4 && !v6 && trace.port == 0;
    }
    let ports = if is_v4 { word(packet, ETHERNET + 20) } else { word(packet, ETHERNET + 40) };
    if trace.port != 0 && trace.port != ports & 0xffff && trace.port != ports >> 16 {
        return false;
    }
    if v4 {
        let addr = trace.addr[0];
        return is_v4 && (word(packet, ETHERNET + 12) == addr || word(packet, ETHERNET + 16) == addr);
    }
    if v6 {
        return is_v6 && (has(packet, ETHERNET + 8, &trace.addr) || has(packet, ETHERNET + 24, &trace.addr));
    }
    true
}

#[inline(always)]
fn has(packet: &[u32; SHOWN_WORDS], at: usize, addr: &[u32; 4]) -> bool {
    word(packet, at) == addr[0]
        && word(packet, at + 4) == addr[1]
        && word(packet, at + 8) == addr[2]
        && word(packet, at + 12) == addr[3]
}

/// The word at byte `at`, which is two bytes behind a whole one.
#[inline(always)]
fn word(packet: &[u32; SHOWN_WORDS], at: usize) -> u32 {
    let (low, high) = (packet[at / 4], packet[at / 4 + 1]);
    if cfg!(target_endian = "little") { low >> 16 | high << 16 } else { low << 16 | high >> 16 }
}
