//! Socket hooks: the address that a system call names, before any packet. They only ever translate; a call is
//! never refused here.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::btf_maps::{Array, SkStorage};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_ktime_get_coarse_ns};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::SockAddrContext;
use portolan_abi::{FrontendKey, PEERS, Peer, Peers, Words};
use portolan_core::socket::{Asker, Chosen, Remembered, backend, recall, remember};
use portolan_core::{Address, V4, V6};

use crate::tables::{Maps, Route};

/// What a program returns to let the system call go on.
pub const GO_ON: i32 = 1;

/// IP protocol numbers.
const TCP: u32 = 6;
const UDP: u32 = 17;

/// The peer of a socket that was connected to a service.
#[btf_map]
pub static SOCKET_PEER: SkStorage<Peer> = SkStorage::new();
/// Services that an unconnected UDP socket has sent to.
#[btf_map]
static SOCKET_PEERS: SkStorage<Peers> = SkStorage::new();
/// Cookie of the node's network namespace.
#[btf_map]
static HOST_NETNS: Array<u64, 1> = Array::new();

/// A family's addresses in the context.
pub trait Field: Route + Remembered {
    /// The address and port of the system call.
    fn read(ctx: *const bpf_sock_addr) -> (Self::Addr, u16);
    /// The address that the socket is bound to.
    fn source(ctx: *const bpf_sock_addr) -> Self::Addr;
    /// Replaces them. IPv6's hooks see IPv4 addresses as mapped ones.
    fn write(ctx: *mut bpf_sock_addr, wide: Words<4>, port: u16);
}

impl Field for V4 {
    #[inline(always)]
    fn read(ctx: *const bpf_sock_addr) -> (Words<1>, u16) {
        // SAFETY: the context is valid for the whole run; its fields are read whole, one by one.
        unsafe {
            (
                Words([read_volatile(&raw const (*ctx).user_ip4)]),
                read_volatile(&raw const (*ctx).user_port) as u16,
            )
        }
    }

    #[inline(always)]
    fn source(ctx: *const bpf_sock_addr) -> Words<1> {
        // SAFETY: as in `read`; the socket lives as long.
        unsafe { Words([read_volatile(&raw const (*(*ctx).__bindgen_anon_1.sk).src_ip4)]) }
    }

    #[inline(always)]
    fn write(ctx: *mut bpf_sock_addr, wide: Words<4>, port: u16) {
        // SAFETY: as in `read`.
        unsafe {
            write_volatile(&raw mut (*ctx).user_ip4, wide.0[3]);
            write_volatile(&raw mut (*ctx).user_port, u32::from(port));
        }
    }
}

impl Field for V6 {
    #[inline(always)]
    fn read(ctx: *const bpf_sock_addr) -> (Words<4>, u16) {
        // SAFETY: as for IPv4.
        unsafe {
            let addr = Words([
                read_volatile(&raw const (*ctx).user_ip6[0]),
                read_volatile(&raw const (*ctx).user_ip6[1]),
                read_volatile(&raw const (*ctx).user_ip6[2]),
                read_volatile(&raw const (*ctx).user_ip6[3]),
            ]);
            (addr, read_volatile(&raw const (*ctx).user_port) as u16)
        }
    }

    #[inline(always)]
    fn source(ctx: *const bpf_sock_addr) -> Words<4> {
        // SAFETY: as for IPv4.
        unsafe {
            let sk = (*ctx).__bindgen_anon_1.sk;
            Words([
                read_volatile(&raw const (*sk).src_ip6[0]),
                read_volatile(&raw const (*sk).src_ip6[1]),
                read_volatile(&raw const (*sk).src_ip6[2]),
                read_volatile(&raw const (*sk).src_ip6[3]),
            ])
        }
    }

    #[inline(always)]
    fn write(ctx: *mut bpf_sock_addr, wide: Words<4>, port: u16) {
        // SAFETY: as for IPv4.
        unsafe {
            write_volatile(&raw mut (*ctx).user_ip6[0], wide.0[0]);
            write_volatile(&raw mut (*ctx).user_ip6[1], wide.0[1]);
            write_volatile(&raw mut (*ctx).user_ip6[2], wide.0[2]);
            write_volatile(&raw mut (*ctx).user_ip6[3], wide.0[3]);
            write_volatile(&raw mut (*ctx).user_port, u32::from(port));
        }
    }
}

/// A socket that connects.
#[inline(always)]
pub fn connect4(ctx: &SockAddrContext) {
    connect::<V4, V4>(ctx, V4::read(ctx.sock_addr));
}

/// As [`connect4`], on a socket of family IPv6. Addresses of IPv4 come mapped.
#[inline(always)]
pub fn connect6(ctx: &SockAddrContext) {
    let (addr, port) = V6::read(ctx.sock_addr);
    match mapped(addr) {
        Some(addr) => connect::<V4, V6>(ctx, (addr, port)),
        None => connect::<V6, V6>(ctx, (addr, port)),
    }
}

/// `Hook` is the family of the hook, which differs from the service's for mapped addresses.
#[inline(always)]
fn connect<F: Field, Hook: Field>(ctx: &SockAddrContext, (addr, port): (F::Addr, u16)) {
    let Some(proto) = protocol(ctx) else { return };
    forget(ctx);
    // Two connections from one port to two services may meet at one backend. Packets of the second one are given
    // another port; the kernel would refuse the system call.
    // Nobody would translate packets to a loopback address, so there the kernel may.
    if u32::from(proto) == TCP && is_bound(ctx) && !addr.is_loopback() {
        return;
    }
    if has_loopback::<Hook>(ctx) {
        return;
    }
    let asked = FrontendKey { addr, port, proto, zero: 0 };
    let Some(chosen) = choose::<F>(ctx, &asked, None) else { return };
    // SAFETY: the socket is that of the context.
    let place = unsafe { SOCKET_PEER.get_or_insert_ptr_mut(ctx, None) };
    // Without a memory the application would see another peer than it asked for: leave it to the packets.
    if place.is_null() {
        return;
    }
    let peer = remember::<F>(&asked, &chosen);
    // SAFETY: the storage lives as long as the socket, which is locked.
    unsafe { *place = peer };
    Hook::write(ctx.sock_addr, peer.chosen, peer.chosen_port);
}

/// The socket is connected anew: what it asked before is over.
#[inline(always)]
fn forget(ctx: &SockAddrContext) {
    // SAFETY: the socket is that of the context.
    let peer = unsafe { SOCKET_PEER.get_ptr_mut(ctx) };
    if !peer.is_null() {
        // SAFETY: the storage lives as long as the socket, which is locked.
        unsafe { (*peer).chosen_port = 0 };
    }
}

/// A datagram with a destination of its own.
#[inline(always)]
pub fn send<F: Field>(ctx: &SockAddrContext) {
    if has_loopback::<F>(ctx) {
        return;
    }
    let (addr, port) = F::read(ctx.sock_addr);
    let asked = FrontendKey { addr, port, proto: UDP as u8, zero: 0 };
    // SAFETY: as in `connect`.
    let mut peers = unsafe { SOCKET_PEERS.get_ptr_mut(ctx) };
    let (mut index, mut last) = (0, None);
    if !peers.is_null() {
        // SAFETY: the storage lives as long as the socket, which is locked.
        if unsafe { (*peers).left } != 0 {
            return;
        }
        index = slot(peers, &F::wide(addr), port);
        let peer = peer_at(peers, index);
        if index < PEERS && peer.chosen_port != 0 {
            last = Some(recall::<F>(&peer));
        }
    }
    let Some(chosen) = choose::<F>(ctx, &asked, last) else { return };
    if peers.is_null() {
        // SAFETY: as above.
        peers = unsafe { SOCKET_PEERS.get_or_insert_ptr_mut(ctx, None) };
        if peers.is_null() {
            return;
        }
    }
    let peer = remember::<F>(&asked, &chosen);
    if index >= PEERS || is_shared(peers, index, &peer) {
        // SAFETY: as above.
        unsafe { (*peers).left = 1 };
        return;
    }
    // SAFETY: as above; the mask tells the verifier that the index is below the length.
    unsafe { *peers.cast::<Peer>().add(index & (PEERS - 1)) = peer };
    F::write(ctx.sock_addr, peer.chosen, peer.chosen_port);
}

/// The source of a datagram, or the peer of a socket, as the application asked for it.
#[inline(always)]
pub fn answer<F: Field>(ctx: &SockAddrContext, datagrams: bool) {
    let (addr, port) = F::read(ctx.sock_addr);
    let from = F::wide(addr);
    // SAFETY: as in `connect`.
    let peer = unsafe { SOCKET_PEER.get_ptr_mut(ctx) };
    if !peer.is_null() {
        // SAFETY: as in `connect`.
        let peer = unsafe { *peer };
        if is_from(&peer, &from, port) {
            return F::write(ctx.sock_addr, peer.asked, peer.asked_port);
        }
    }
    if !datagrams {
        return;
    }
    // SAFETY: as in `connect`.
    let peers = unsafe { SOCKET_PEERS.get_ptr_mut(ctx) };
    if peers.is_null() {
        return;
    }
    let mut index = 0;
    while index < PEERS {
        let peer = peer_at(peers, index);
        if is_from(&peer, &from, port) {
            return F::write(ctx.sock_addr, peer.asked, peer.asked_port);
        }
        index += 1;
    }
}

#[inline(always)]
fn choose<F: Field>(
    ctx: &SockAddrContext,
    asked: &FrontendKey<F::Addr>,
    last: Option<Chosen<F::Addr>>,
) -> Option<Chosen<F::Addr>> {
    // SAFETY: the helpers have no precondition.
    let (hash, time) = unsafe { (bpf_get_prandom_u32(), bpf_ktime_get_coarse_ns()) };
    let asker = Asker { of_host: is_of_host(ctx), hash, now: (time >> 30) as u32 };
    backend::<F, _>(asked, asker, last, &Maps::<false>::without_packet())
}

/// The slot of an address that was asked for, or the first free one; the number of slots, if there is neither.
#[inline(always)]
fn slot(peers: *mut Peers, asked: &Words<4>, port: u16) -> usize {
    let mut index = 0;
    while index < PEERS {
        let peer = peer_at(peers, index);
        if peer.chosen_port == 0 || peer.asked_port == port && peer.asked == *asked {
            return index;
        }
        index += 1;
    }
    PEERS
}

/// Whether another slot has the same backend.
#[inline(always)]
fn is_shared(peers: *mut Peers, own: usize, peer: &Peer) -> bool {
    let mut index = 0;
    while index < PEERS {
        let other = peer_at(peers, index);
        if index != own && is_from(&other, &peer.chosen, peer.chosen_port) {
            return true;
        }
        index += 1;
    }
    false
}

/// A slot of a memory that is there; the index is taken modulo their number, which the verifier understands.
#[inline(always)]
fn peer_at(peers: *mut Peers, index: usize) -> Peer {
    // SAFETY: callers have looked for null; the slots come first in the memory; the socket is locked.
    unsafe { *peers.cast::<Peer>().add(index & (PEERS - 1)) }
}

#[inline(always)]
fn is_from(peer: &Peer, from: &Words<4>, port: u16) -> bool {
    peer.chosen_port == port && port != 0 && peer.chosen == *from
}

/// IP protocol of the socket, if services can have it.
#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> Option<u8> {
    // SAFETY: the context is valid for the whole run.
    let protocol = unsafe { read_volatile(&raw const (*ctx.sock_addr).protocol) };
    if protocol == TCP || protocol == UDP { Some(protocol as u8) } else { None }
}

/// Whether the application chose a port of its own.
#[inline(always)]
fn is_bound(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context and its socket are valid for the whole run.
    unsafe { read_volatile(&raw const (*(*ctx.sock_addr).__bindgen_anon_1.sk).src_port) != 0 }
}

/// Whether the socket is bound to a loopback address, with which nothing leaves the namespace: a backend elsewhere
/// would never get it, and the application would wait instead of being refused.
#[inline(always)]
fn has_loopback<Hook: Field>(ctx: &SockAddrContext) -> bool {
    let source = Hook::source(ctx.sock_addr);
    source.is_loopback() || mapped(Hook::wide(source)).is_some_and(Address::is_loopback)
}

#[inline(always)]
fn is_of_host(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context is the program's own; array elements live as long as the map.
    match HOST_NETNS.get_ptr(0) {
        Some(host) => unsafe { *host == bpf_get_netns_cookie(ctx.as_ptr()) },
        None => false,
    }
}

/// The IPv4 address that is mapped into an IPv6 one.
#[inline(always)]
fn mapped(addr: Words<4>) -> Option<Words<1>> {
    if portolan_core::socket::is_v4(&addr) { Some(V4::narrow(addr)) } else { None }
}
