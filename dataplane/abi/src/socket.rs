//! What sockets remember of the services they asked for. Kept on the socket itself, so it ends with it.

use crate::Words;

/// A translated peer of a socket. Addresses of both families have sixteen octets here, IPv4 ones mapped
/// (RFC 4291 2.5.5.2): a socket of family IPv6 may have peers of both.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The address that the application asked for.
    pub asked: Words<4>,
    /// The backend's address that it got instead.
    pub chosen: Words<4>,
    /// The port that the application asked for, network byte order.
    pub asked_port: u16,
    /// The backend's port, network byte order; 0: no peer.
    pub chosen_port: u16,
    /// Index of the service.
    pub service: u32,
    /// Index of the backend in the table of its own family.
    pub backend: u32,
    /// Where in the service's ring it was found.
    pub place: u32,
}

impl Peer {
    /// No peer.
    pub const NONE: Self = Self {
        asked: Words::ZERO,
        chosen: Words::ZERO,
        asked_port: 0,
        chosen_port: 0,
        service: 0,
        backend: 0,
        place: 0,
    };
}

/// Service addresses that one unconnected UDP socket has translated at a time. A resolver asks two or three
/// name servers.
pub const PEERS: usize = 4;

/// Peers of an unconnected UDP socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peers {
    /// Filled from the first one on.
    pub slots: [Peer; PEERS],
    /// Not zero: what the socket sends is left to the packets from now on, because it asks more services than there
    /// are slots, or two that gave it the same backend, whose answers could not be told apart.
    pub left: u32,
}

/// A connected UDP socket, as user space reads them one after the other.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The kernel's name for the socket.
    pub cookie: u64,
    /// What it remembers.
    pub peer: Peer,
}

/// The last 32 bits before an IPv4 address that is mapped into IPv6: `::ffff:0:0/96`.
pub const MAPPED: u32 = 0xffff_u32.to_be();

const _: () = assert!(size_of::<Peer>() == 48);
const _: () = assert!(size_of::<Peers>() == 196);
const _: () = assert!(size_of::<Held>() == 56);
crate::plain!(Peer, Peers, Held);
