//! Programs that only the bench loads. With a repeat count, a test run hands a program its own output: those that
//! replay put the packet back as it was, or as another flow's, and go on to the program that is measured. The others
//! tell what the machine itself costs.
#![no_std]
#![no_main]

mod control;

use aya_ebpf::{
    bindings::{BPF_F_PSEUDO_HDR, TC_ACT_UNSPEC},
    btf_maps::{Array, HashMap, LruHashMap, ProgramArray},
    helpers::generated::{bpf_get_route_realm, bpf_l4_csum_replace, bpf_redirect_peer},
    macros::{btf_map, classifier},
    programs::TcContext,
};
use control::{Control, TIMES};
use portolan_abi::{Flow, FlowKey, Words};

const ETHERNET: usize = 14;

/// What the packets are.
#[btf_map]
static CONTROL: Array<Control, 1> = Array::new();
/// The program that is measured.
#[btf_map]
static TARGET: ProgramArray<1> = ProgramArray::new();
/// A table of the flow tables' kind of key, with the one key that is looked up.
#[btf_map]
static TABLE: HashMap<[u32; 4], u32, 64> = HashMap::new();

/// Replays IPv4 packets.
#[classifier]
pub fn replay_v4(ctx: TcContext) -> i32 {
    replay::<5>(&ctx)
}

/// Replays IPv6 packets.
#[classifier]
pub fn replay_v6(ctx: TcContext) -> i32 {
    replay::<10>(&ctx)
}

/// Does nothing: the floor.
#[classifier]
pub fn empty(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Flows as the node has them.
#[btf_map]
static BARE_V4: LruHashMap<FlowKey<Words<1>>, Flow<Words<1>>, FLOWS> = LruHashMap::new();
/// See [`BARE_V4`].
#[btf_map]
static BARE_V6: LruHashMap<FlowKey<Words<4>>, Flow<Words<4>>, FLOWS> = LruHashMap::new();

/// Entries of the node's flow tables.
const FLOWS: usize = 1 << 18;

/// The least that a program with a flow table can do for an established packet over IPv4: find the flow, write
/// addresses and ports, have both checksums right, and send it into the pod. It checks nothing and counts nothing.
#[classifier]
pub fn bare_v4(ctx: TcContext) -> i32 {
    bare::<1, 5>(&ctx, (9, 12), |key| BARE_V4.get_ptr(key))
}

/// As [`bare_v4`], over IPv6.
#[classifier]
pub fn bare_v6(ctx: TcContext) -> i32 {
    bare::<4, 10>(&ctx, (6, 8), |key| BARE_V6.get_ptr(key))
}

/// With the protocol and addresses of `A` words at these bytes of an IP header of `N` words.
#[inline(always)]
fn bare<const A: usize, const N: usize>(
    ctx: &TcContext,
    at: (usize, usize),
    flow: impl FnOnce(&FlowKey<Words<A>>) -> Option<*const Flow<Words<A>>>,
) -> i32 {
    bare_or_none::<A, N>(ctx, at, flow).unwrap_or(i32::from(i16::MAX))
}

#[inline(always)]
fn bare_or_none<const A: usize, const N: usize>(
    ctx: &TcContext,
    at: (usize, usize),
    flow: impl FnOnce(&FlowKey<Words<A>>) -> Option<*const Flow<Words<A>>>,
) -> Option<i32> {
    let (data, end) = (ctx.data(), ctx.data_end());
    let transport = ETHERNET + 4 * N;
    if data + transport + 8 > end {
        return None;
    }
    let addresses = (data + ETHERNET + at.1) as *mut [Words<A>; 2];
    let ports = (data + transport) as *mut u32;
    // SAFETY: the range was compared with the end of the packet, and elements of a preallocated table stay readable.
    unsafe {
        let [src, dst] = *addresses;
        let old = *ports;
        let proto = *((data + ETHERNET + at.0) as *const u8);
        let found = flow(&FlowKey { src, dst, ports: old, proto: u32::from(proto) })?;
        let (new_src, new_dst, new) = ((*found).src, (*found).dst, (*found).ports);
        let (mac, ifindex) = ((*found).mac, (*found).ifindex);
        *(data as *mut [u16; 3]) = mac;
        *addresses = [new_src, new_dst];
        *ports = new;
        let mut difference = 0u32;
        let mut word = 0;
        while word < A {
            difference += halves(!src.0[word]) + halves(new_src.0[word]);
            difference += halves(!dst.0[word]) + halves(new_dst.0[word]);
            word += 1;
        }
        if N == 5 {
            // The header's own sum, which nobody reads either.
            *((data + ETHERNET + 10) as *mut u16) = (difference + (difference >> 16)) as u16;
        }
        let sum = (transport + if proto == 6 { 16 } else { 6 }) as u32;
        let pseudo = u64::from(BPF_F_PSEUDO_HDR);
        bpf_l4_csum_replace(ctx.skb.skb, sum, 0, u64::from(difference), pseudo);
        bpf_l4_csum_replace(ctx.skb.skb, sum, u64::from(old), u64::from(new), 4);
        Some(bpf_redirect_peer(ifindex, 0) as i32)
    }
}

#[inline(always)]
fn halves(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

/// Calls a helper that has next to nothing to do, [`TIMES`] times.
#[classifier]
pub fn calls(ctx: TcContext) -> i32 {
    for _ in 0..TIMES {
        // SAFETY: the context is valid for the whole run.
        unsafe { bpf_get_route_realm(ctx.skb.skb) };
    }
    TC_ACT_UNSPEC
}

/// Looks one key up, [`TIMES`] times.
#[classifier]
pub fn lookups(_: TcContext) -> i32 {
    for _ in 0..TIMES {
        if TABLE.get_ptr([0; 4]).is_none() {
            return i32::from(i16::MAX);
        }
    }
    TC_ACT_UNSPEC
}

#[inline(always)]
fn replay<const N: usize>(ctx: &TcContext) -> i32 {
    let restored = restore::<N>(ctx);
    if restored.is_some() {
        // SAFETY: the target is a classifier as well, and nothing here is left to be dropped.
        unsafe { TARGET.tail_call(ctx, 0) };
    }
    // Not reached: a result that no target returns.
    i32::from(i16::MAX)
}

/// Writes all that a target may have changed, but for the transport checksum, which nobody reads.
#[inline(always)]
fn restore<const N: usize>(ctx: &TcContext) -> Option<()> {
    let control = CONTROL.get_ptr_mut(0)?;
    // SAFETY: array elements live as long as the map, and a test run is alone with its record.
    let control = unsafe { &mut *control };
    control.next = control.next.wrapping_mul(control.factor).wrapping_add(control.addend);
    let flow = (control.next >> (control.down & 31)) & control.mask;
    let bits = control.service_bits & 31;
    let service = flow & ((1 << bits) - 1);
    let port = (control.first_port + (flow >> bits)) as u16;
    let ports = control.ports | u32::from(port.to_be()) << (control.shift & 31);
    let address = (control.address + service).to_be();

    let (data, end) = (ctx.data(), ctx.data_end());
    if data + ETHERNET + 4 * N + 4 > end {
        return None;
    }
    let ip = (data + ETHERNET) as *mut u32;
    // SAFETY: the range was compared with the end of the packet. Misaligned words are fine for the kernel on the
    // machines that the bench runs on.
    unsafe {
        *(data as *mut [u32; 3]) = control.ethernet;
        let mut at = 0;
        while at < N - 1 {
            *ip.add(at) = control.ip[at];
            at += 1;
        }
        *ip.add(N - 1) = address;
        *ip.add(N) = ports;
    }
    Some(())
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
