//! The eBPF programs. Each loads headers, asks `portolan_core`, carries the verdict out and counts it once.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(
    internal_features,
    reason = "an atomic addition is a BPF instruction, but no stable Rust for this target has it"
)]

mod apply;
mod flows;
mod frame;
mod held;
mod maps;
mod overlay;
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "what is handed over by value is copied to the stack, which has no room for it"
)]
mod pieces;
mod run;
mod socket;
mod tables;
mod trace;
mod tunnel;

use aya_ebpf::macros::{cgroup_sock_addr, classifier};
use aya_ebpf::programs::{SockAddrContext, TcContext};
use portolan_core::{Hook, V4, V6};

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

/// What arrives by the overlay: tcx ingress on its device.
#[classifier]
pub fn from_overlay(ctx: TcContext) -> i32 {
    overlay::receive(&ctx)
}

/// What leaves by the overlay: tcx egress on its device.
#[classifier]
pub fn to_overlay(ctx: TcContext) -> i32 {
    overlay::send(&ctx)
}

/// What sockets connect to, IPv4.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    socket::connect4(&ctx);
    socket::GO_ON
}

/// What sockets connect to, IPv6.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    socket::connect6(&ctx);
    socket::GO_ON
}

/// What unconnected UDP sockets send to, IPv4.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    socket::send::<V4>(&ctx);
    socket::GO_ON
}

/// What unconnected UDP sockets send to, IPv6.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    socket::send::<V6>(&ctx);
    socket::GO_ON
}

/// Whom UDP sockets receive from, IPv4.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    socket::answer::<V4>(&ctx, true);
    socket::GO_ON
}

/// Whom UDP sockets receive from, IPv6.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    socket::answer::<V6>(&ctx, true);
    socket::GO_ON
}

/// Whom sockets are connected to, IPv4.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    socket::answer::<V4>(&ctx, false);
    socket::GO_ON
}

/// Whom sockets are connected to, IPv6.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    socket::answer::<V6>(&ctx, false);
    socket::GO_ON
}

/// Which UDP sockets have a backend.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/udp")]
pub fn held_sockets(ctx: *mut held::Context) -> i32 {
    held::write(ctx);
    0
}

/// Which TCP sockets have a backend.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub fn held_connections(ctx: *mut held::Context) -> i32 {
    held::write(ctx);
    0
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel's route look-up is for programs under a licence that is compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
