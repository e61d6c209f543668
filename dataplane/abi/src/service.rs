//! Tables of services: frontends, services, rings, backends; and the pods of this node.

use crate::Words;

/// Key of a frontend: `{addr, port, proto}`; `{addr, 0, 0}` marks an address of ours (see
/// [`frontend_flag`]); `{0, port, proto}` is a NodePort on any address of this node.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendKey<A> {
    /// Destination address.
    pub addr: A,
    /// Destination port, network byte order.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// Always zero.
    pub zero: u8,
}

/// Value of a frontend.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frontend {
    /// Index of the service; on an address mark with [`SOURCES`](frontend_flag::SOURCES), of the one whose ranges
    /// count, and else meaningless.
    pub service: u32,
    /// See [`frontend_flag`].
    pub flags: u32,
}

/// Bits of [`Frontend::flags`].
pub mod frontend_flag {
    /// The frontend is reachable from outside of the cluster (NodePort, load balancer, external IP).
    pub const EXTERNAL: u32 = 1;
    /// Only clients of the service's source ranges are admitted (see [`SourceKey`](super::SourceKey)); on a mark, to
    /// ICMP echo.
    pub const SOURCES: u32 = 1 << 1;
    /// Mark: the address belongs to services only; what asks for an unknown port is rejected.
    pub const VIP: u32 = 1 << 8;
    /// Mark: the address is one of this node's.
    pub const NODE: u32 = 1 << 9;
    /// Mark: at least one service on the address has a usable backend, so it answers ICMP echo.
    pub const ANSWERS: u32 = 1 << 10;
    /// Mark: the address is another node's, which may send packets of clients inside of its own.
    pub const PEER: u32 = 1 << 11;
    /// Mark: the address is one of this node's that answer NodePorts.
    pub const NODEPORT: u32 = 1 << 12;
}

/// A range of the slab as one word, so that it is published by one store: `offset << 32 | length`,
/// both in slots. Length 0: no backend.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ring(pub u64);

impl Ring {
    /// No backend.
    pub const EMPTY: Self = Self(0);

    /// A range of `len` slots from slot `offset` on.
    #[must_use]
    pub const fn new(offset: u32, len: u32) -> Self {
        Self(((offset as u64) << 32) | len as u64)
    }

    /// First slot.
    #[must_use]
    #[inline(always)]
    pub const fn offset(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Number of slots.
    #[must_use]
    #[inline(always)]
    pub const fn len(self) -> u32 {
        self.0 as u32
    }

    /// Whether there is no slot.
    #[must_use]
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// One port of one service in one family.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Backends anywhere.
    pub cluster: Ring,
    /// Backends on this node.
    pub local: Ring,
    /// Number of flows opened, counted by the programs.
    pub picked: u64,
    /// See [`service_flag`].
    pub flags: u32,
    /// Session affinity in seconds; 0: off.
    pub affinity: u32,
}

/// Bits of [`Service::flags`].
pub mod service_flag {
    /// `internalTrafficPolicy: Local`.
    pub const INTERNAL_LOCAL: u32 = 1;
    /// `externalTrafficPolicy: Local`.
    pub const EXTERNAL_LOCAL: u32 = 1 << 1;
    /// Outside clients whose backend is on another node get their answers from there (direct server return).
    pub const DIRECT: u32 = 1 << 2;
}

/// Key of session affinity: a client of one set of a service, whichever of the service's addresses it asked.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AffinityKey<A> {
    /// The client.
    pub client: A,
    /// Twice the index of the service, plus one for the set of this node alone.
    pub set: u32,
}

impl<A> AffinityKey<A> {
    /// Key of a client, the service's index, and whether only this node's backends are meant.
    #[must_use]
    #[inline(always)]
    pub const fn new(client: A, service: u32, local: bool) -> Self {
        Self { client, set: service.wrapping_mul(2).wrapping_add(local as u32) }
    }

    /// Index of the service.
    #[must_use]
    #[inline(always)]
    pub const fn service(&self) -> u32 {
        self.set / 2
    }
}

/// Key of a source range: a prefix that a service admits. As the kernel's prefix tables have it: a length in bits,
/// then what it is a prefix of.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceKey<A> {
    /// Bits of `service` and `addr` together that count: 32 and the prefix's own length.
    pub bits: u32,
    /// Index of the service.
    pub service: u32,
    /// The prefix.
    pub addr: A,
}

impl<A> SourceKey<A> {
    /// A prefix of `length` bits.
    #[must_use]
    #[inline(always)]
    pub const fn new(length: u32, service: u32, addr: A) -> Self {
        Self { bits: 32 + length, service, addr }
    }
}

/// Which backend a client had last.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// Index of the backend.
    pub backend: u32,
    /// When the client last opened a flow, in ticks of 2^30 ns of the monotonic clock.
    pub seen: u32,
}

/// Slots in one element of the slab: a cache line, so that an index masked by the size needs no bounds check.
pub const SLAB_LINE: usize = 16;

/// One element of the slab. User space sees the whole slab as one flat array of `u32` backend indexes.
pub type SlabLine = [u32; SLAB_LINE];

/// An address and port that answers for services.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend<A> {
    /// Number of flows opened to it, counted by the programs.
    pub picked: u64,
    /// Address.
    pub addr: A,
    /// Port, network byte order.
    pub port: u16,
    /// See [`backend_flag`].
    pub flags: u16,
}

/// Bits of [`Backend::flags`].
pub mod backend_flag {
    /// The record is in use.
    pub const LIVE: u16 = 1;
    /// The address is one of this node's own: delivered to the host's stack.
    pub const HOST: u16 = 1 << 1;
}

/// A pod of this node, by its address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The host's side of its interface.
    pub ifindex: u32,
    /// MAC address inside of the pod, as three words in packet order.
    pub mac: [u16; 3],
    /// See [`endpoint_flag`].
    pub flags: u16,
}

/// Bits of [`Endpoint::flags`].
pub mod endpoint_flag {
    /// The record is in use.
    pub const LIVE: u16 = 1;
    /// Its address is known outside of the cluster: what it sends there is not masqueraded.
    pub const ROUTABLE: u16 = 1 << 1;
}

const _: () = assert!(size_of::<FrontendKey<Words<1>>>() == 8);
const _: () = assert!(size_of::<FrontendKey<Words<4>>>() == 20);
const _: () = assert!(size_of::<Frontend>() == 8);
const _: () = assert!(size_of::<Service>() == 32);
const _: () = assert!(size_of::<Backend<Words<1>>>() == 16);
const _: () = assert!(size_of::<Backend<Words<4>>>() == 32 && align_of::<Backend<Words<4>>>() == 8);
const _: () = assert!(size_of::<Endpoint>() == 12);
const _: () = assert!(size_of::<AffinityKey<Words<1>>>() == 8);
const _: () = assert!(size_of::<AffinityKey<Words<4>>>() == 20);
const _: () = assert!(size_of::<Affinity>() == 8);
const _: () = assert!(size_of::<SourceKey<Words<1>>>() == 12);
const _: () = assert!(size_of::<SourceKey<Words<4>>>() == 24);

crate::plain!(
    FrontendKey<Words<1>>,
    FrontendKey<Words<4>>,
    Frontend,
    Service,
    Backend<Words<1>>,
    Backend<Words<4>>,
    Endpoint,
    AffinityKey<Words<1>>,
    AffinityKey<Words<4>>,
    Affinity,
    SourceKey<Words<1>>,
    SourceKey<Words<4>>,
);
