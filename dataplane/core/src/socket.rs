//! Sockets: which backend takes the place of a service's address when a socket connects or sends to it.
//!
//! Afterwards packets carry the backend's own address and cost nothing more than any others. Whatever is not
//! decided here is decided, as right, when the packets come: nothing here refuses or rejects.

use portolan_abi::{Frontend, FrontendKey, MAPPED, Peer, Service, Words, backend_flag, frontend_flag};

use crate::select;
use crate::service::{Asked, destination, is_local, node_port};
use crate::{Address, Choice, Family, Hook, Tables};

/// A backend that takes the place of the address that a socket asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen<A> {
    /// The backend's address.
    pub addr: A,
    /// The backend's port, network byte order.
    pub port: u16,
    /// Its index and the service's.
    pub choice: Choice,
}

/// The backend for a socket that asks for `asked`; `None`: leave the address alone.
///
/// `of_host` says that the socket is in the node's own network namespace: only there is a loopback address one
/// of the node's. `last` is what the socket got for the same address before, which it keeps while that backend is
/// served. `hash` spreads sockets over backends.
#[inline(always)]
pub fn backend<F: Family, T: Tables<F>>(
    asked: &FrontendKey<F::Addr>,
    of_host: bool,
    last: Option<Chosen<F::Addr>>,
    hash: u32,
    tables: &T,
) -> Option<Chosen<F::Addr>> {
    let frontend = frontend::<F, T>(asked, of_host, tables)?;
    // Only packets tell who the client is.
    if frontend.flags & frontend_flag::SOURCES != 0 {
        return None;
    }
    let service = tables.service(frontend.service)?;
    if service.affinity != 0 {
        return None;
    }
    let kept = last.filter(|last| last.choice.service == frontend.service && is_served::<F, T>(last, tables));
    if kept.is_some() {
        return kept;
    }
    let chosen = choose::<F, T>(frontend, &service, hash, tables)?;
    tables.picked(chosen.choice.service, chosen.choice.backend);
    Some(chosen)
}

#[inline(always)]
fn frontend<F: Family, T: Tables<F>>(
    asked: &FrontendKey<F::Addr>,
    of_host: bool,
    tables: &T,
) -> Option<Frontend> {
    let found = if asked.addr.is_loopback() {
        if !of_host {
            return None;
        }
        node_port::<F, T>(asked, tables)
    } else {
        destination::<F, T>(asked, frontend_flag::NODEPORT, tables)
    };
    match found {
        Asked::Frontend(frontend) => Some(frontend),
        Asked::UnknownPort | Asked::Other => None,
    }
}

/// A backend of the set that clients inside of the cluster get.
#[inline(always)]
fn choose<F: Family, T: Tables<F>>(
    frontend: Frontend,
    service: &Service,
    hash: u32,
    tables: &T,
) -> Option<Chosen<F::Addr>> {
    let ring = if is_local(Hook::Service, frontend, service) { service.local } else { service.cluster };
    // Packets are refused or dropped, as the policy says.
    if ring.is_empty() {
        return None;
    }
    let index = select::backend(ring, hash, tables)?;
    let backend = tables.backend(index)?;
    if backend.flags & backend_flag::LIVE == 0 {
        return None;
    }
    let choice = Choice { service: frontend.service, backend: index };
    Some(Chosen { addr: backend.addr, port: backend.port, choice })
}

/// Whether the tables still have this backend with the same address.
#[inline(always)]
pub fn is_served<F: Family, T: Tables<F>>(chosen: &Chosen<F::Addr>, tables: &T) -> bool {
    match tables.backend(chosen.choice.backend) {
        Some(b) => b.flags & backend_flag::LIVE != 0 && b.addr == chosen.addr && b.port == chosen.port,
        None => false,
    }
}

/// A family's addresses as a socket's memory has them.
pub trait Remembered: Family {
    /// Sixteen octets; IPv4 is mapped.
    fn wide(addr: Self::Addr) -> Words<4>;
    /// The address of sixteen octets, of which [`wide`](Self::wide) made them.
    fn narrow(wide: Words<4>) -> Self::Addr;
}

impl Remembered for crate::V4 {
    #[inline(always)]
    fn wide(addr: Words<1>) -> Words<4> {
        Words([0, 0, MAPPED, addr.0[0]])
    }

    #[inline(always)]
    fn narrow(wide: Words<4>) -> Words<1> {
        Words([wide.0[3]])
    }
}

impl Remembered for crate::V6 {
    #[inline(always)]
    fn wide(addr: Words<4>) -> Words<4> {
        addr
    }

    #[inline(always)]
    fn narrow(wide: Words<4>) -> Words<4> {
        wide
    }
}

/// What a socket remembers of a choice.
#[inline(always)]
pub fn remember<F: Remembered>(asked: &FrontendKey<F::Addr>, chosen: &Chosen<F::Addr>) -> Peer {
    Peer {
        asked: F::wide(asked.addr),
        chosen: F::wide(chosen.addr),
        asked_port: asked.port,
        chosen_port: chosen.port,
        service: chosen.choice.service,
        backend: chosen.choice.backend,
    }
}

/// The choice that a socket remembers.
#[inline(always)]
pub fn recall<F: Remembered>(peer: &Peer) -> Chosen<F::Addr> {
    let choice = Choice { service: peer.service, backend: peer.backend };
    Chosen { addr: F::narrow(peer.chosen), port: peer.chosen_port, choice }
}

/// Whether a peer is of an IPv4 service.
#[inline(always)]
#[must_use]
pub fn is_v4(addr: &Words<4>) -> bool {
    let [a, b, c, _] = addr.0;
    a == 0 && b == 0 && c == MAPPED
}
