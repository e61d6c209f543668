//! Programs that only the bench loads. With a repeat count, a test run hands a program its own output: those that
//! replay put the packet back as it was, or as another flow's, and go on to the program that is measured. The others
//! tell what the machine itself costs.
#![no_std]
#![no_main]

mod control;

use aya_ebpf::{
    bindings::TC_ACT_UNSPEC,
    btf_maps::{Array, HashMap, ProgramArray},
    helpers::generated::bpf_get_route_realm,
    macros::{btf_map, classifier},
    programs::TcContext,
};
use control::{Control, TIMES};

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
