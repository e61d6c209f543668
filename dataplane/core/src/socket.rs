//! Sockets: which backend takes the place of a service's address when a socket connects or sends to it.
//!
//! Afterwards packets carry the backend's own address and cost nothing more than any others. Whatever is not
//! decided here is decided, as right, when the packets come: nothing here refuses or rejects.

use portolan_abi::{
    Affinity, AffinityKey, Frontend, FrontendKey, MAPPED, Peer, Ring, Service, Words, backend_flag,
    frontend_flag,
};

use crate::select::scale;
use crate::service::{Asked, destination, is_local, node_port, remembered};
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
    /// Where in the service's ring it was found.
    pub place: u32,
}

/// A socket that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// It is in the node's own network namespace: only there is a loopback address one of the node's.
    pub of_host: bool,
    /// Spreads sockets over backends.
    pub hash: u32,
    /// The flow tables' clock, for memories of clients. Only the node's loopback asks for it.
    pub now: u32,
}

/// Places of a ring that are searched for a backend that is not where it was. A longer ring's socket keeps a backend that
/// is served at all: a search at every datagram would cost more than the packets' translation.
const SEARCHED: u32 = 32;

/// The backend for a socket that asks for `asked`; `None`: leave the address alone.
///
/// `last` is what the socket got for the same address before, which it keeps while that backend is in the set.
#[inline(always)]
pub fn backend<F: Family, T: Tables<F>>(
    asked: &FrontendKey<F::Addr>,
    asker: Asker,
    last: Option<Chosen<F::Addr>>,
    tables: &T,
) -> Option<Chosen<F::Addr>> {
    let frontend = frontend::<F, T>(asked, asker.of_host, tables)?;
    // Only packets tell who the client is.
    if frontend.flags & frontend_flag::SOURCES != 0 {
        return None;
    }
    let service = tables.service(frontend.service)?;
    let local = is_local(Hook::Service, frontend, &service);
    let ring = if local { service.local } else { service.cluster };
    // Packets are refused or dropped, as the policy says.
    if ring.is_empty() {
        return None;
    }
    if let Some(last) = last
        && last.choice.service == frontend.service
        && let Some(kept) = kept::<F, T>(last, ring, tables)
    {
        return Some(kept);
    }
    if service.affinity == 0 {
        return choose::<F, T>(frontend.service, ring, asker.hash, tables);
    }
    // Who asks a loopback address is known: the node itself, whose packets nobody would translate.
    if !asked.addr.is_loopback() {
        return None;
    }
    let client = AffinityKey::new(asked.addr, frontend.service, local);
    again::<F, T>(&client, &service, ring, asker, tables)
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
        match tables.frontend(asked) {
            Some(frontend) => Asked::Frontend(frontend),
            None => node_port::<F, T>(asked, tables),
        }
    } else {
        destination::<F, T>(asked, frontend_flag::NODEPORT, tables)
    };
    match found {
        Asked::Frontend(frontend) => Some(frontend),
        Asked::UnknownPort | Asked::Other => None,
    }
}

/// The backend that a client had last, or another one that it has from now on.
#[inline(always)]
fn again<F: Family, T: Tables<F>>(
    client: &AffinityKey<F::Addr>,
    service: &Service,
    ring: Ring,
    asker: Asker,
    tables: &T,
) -> Option<Chosen<F::Addr>> {
    let index = client.set / 2;
    let chosen = match remembered::<F, T>(client, service.affinity, tables, asker.now) {
        Some(backend) => found::<F, T>(Choice { service: index, backend }, 0, tables)?,
        None => choose::<F, T>(index, ring, asker.hash, tables)?,
    };
    tables.remember(client, &Affinity { backend: chosen.choice.backend, seen: asker.now });
    Some(chosen)
}

/// A backend of the set that clients inside of the cluster get.
#[inline(always)]
fn choose<F: Family, T: Tables<F>>(
    service: u32,
    ring: Ring,
    hash: u32,
    tables: &T,
) -> Option<Chosen<F::Addr>> {
    let place = scale(hash, ring.len());
    let backend = tables.slot(ring.offset().wrapping_add(place))?;
    let chosen = found::<F, T>(Choice { service, backend }, place, tables)?;
    tables.picked(service, backend);
    Some(chosen)
}

#[inline(always)]
fn found<F: Family, T: Tables<F>>(choice: Choice, place: u32, tables: &T) -> Option<Chosen<F::Addr>> {
    let backend = tables.backend(choice.backend)?;
    if backend.flags & backend_flag::LIVE == 0 {
        return None;
    }
    Some(Chosen { addr: backend.addr, port: backend.port, choice, place })
}

/// What a socket had before, with the place where it is now; `None` if it left the set.
#[inline(always)]
fn kept<F: Family, T: Tables<F>>(last: Chosen<F::Addr>, ring: Ring, tables: &T) -> Option<Chosen<F::Addr>> {
    let backend = tables.backend(last.choice.backend)?;
    if backend.flags & backend_flag::LIVE == 0 || backend.addr != last.addr || backend.port != last.port {
        return None;
    }
    if is_at::<F, T>(ring, last.place, last.choice.backend, tables) {
        return Some(last);
    }
    let mut place = 0;
    // Of the lesser of both the verifier of Linux 6.1 would not know that it is no more than the first: they stay two comparisons.
    while place < core::hint::black_box(SEARCHED) && place < ring.len() {
        if is_at::<F, T>(ring, place, last.choice.backend, tables) {
            return Some(Chosen { place, ..last });
        }
        place += 1;
    }
    if ring.len() > SEARCHED { Some(last) } else { None }
}

#[inline(always)]
fn is_at<F: Family, T: Tables<F>>(ring: Ring, place: u32, backend: u32, tables: &T) -> bool {
    place < ring.len() && tables.slot(ring.offset().wrapping_add(place)) == Some(backend)
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
        place: chosen.place,
    }
}

/// The choice that a socket remembers.
#[inline(always)]
pub fn recall<F: Remembered>(peer: &Peer) -> Chosen<F::Addr> {
    let choice = Choice { service: peer.service, backend: peer.backend };
    Chosen { addr: F::narrow(peer.chosen), port: peer.chosen_port, choice, place: peer.place }
}

/// Whether a peer is of an IPv4 service.
#[inline(always)]
#[must_use]
pub fn is_v4(addr: &Words<4>) -> bool {
    let [a, b, c, _] = addr.0;
    a == 0 && b == 0 && c == MAPPED
}
