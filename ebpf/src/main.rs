//! The eBPF programs. Each loads headers, asks `portolan_core`, carries the verdict out and counts it once.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(
    internal_features,
    reason = "an atomic addition is a BPF instruction, but no stable Rust for this target has it"
)]

mod apply;
mod frame;
mod maps;
mod run;
mod tables;
mod tunnel;

use aya_ebpf::{macros::classifier, programs::TcContext};
use portolan_core::Hook;

/// What a pod sends: tcx ingress on the host's side of its interface.
#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    run::classify(&ctx, Hook::Pod)
}

/// What the host's stack sends to a pod: tcx egress on the host's side of its interface.
#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    run::classify(&ctx, Hook::PodEgress)
}

/// What arrives at the node: tcx ingress on an uplink.
#[classifier]
pub fn from_uplink(ctx: TcContext) -> i32 {
    run::classify(&ctx, Hook::Uplink)
}

/// What leaves the node: tcx egress on an uplink.
#[classifier]
pub fn to_uplink(ctx: TcContext) -> i32 {
    run::classify(&ctx, Hook::UplinkEgress)
}

/// What the host sends to service addresses: tcx egress on the service device.
#[classifier]
pub fn to_service(ctx: TcContext) -> i32 {
    run::classify(&ctx, Hook::Service)
}

/// What the host sends to its own addresses: tcx egress on the loopback device.
#[classifier]
pub fn to_loopback(ctx: TcContext) -> i32 {
    run::classify(&ctx, Hook::Loopback)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel's route look-up is for programs under a licence that is compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
