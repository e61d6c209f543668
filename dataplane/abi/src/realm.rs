//! Which addresses are the cluster's, and which node has them.

use crate::Words;

/// Key of a prefix, as the kernel's prefix tables have it: a length in bits, then what it is a prefix of.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixKey<A> {
    /// Bits of `addr` that count.
    pub bits: u32,
    /// The prefix.
    pub addr: A,
}

/// What is known of a prefix. An address of none is outside of the cluster.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Realm {
    /// The node that has it, where a flag says so: an IPv6 address, or an IPv4 address in the first word.
    pub node: Words<4>,
    /// See [`realm_flag`].
    pub flags: u32,
}

/// Bits of [`Realm::flags`].
pub mod realm_flag {
    /// What is sent there keeps its source address.
    pub const INSIDE: u32 = 1;
    /// It is reached by the overlay, at the node's IPv4 address.
    pub const NODE_V4: u32 = 1 << 1;
    /// It is reached by the overlay, at the node's IPv6 address.
    pub const NODE_V6: u32 = 1 << 2;
}

const _: () = assert!(size_of::<PrefixKey<Words<1>>>() == 8);
const _: () = assert!(size_of::<PrefixKey<Words<4>>>() == 20);
const _: () = assert!(size_of::<Realm>() == 20);

crate::plain!(PrefixKey<Words<1>>, PrefixKey<Words<4>>, Realm);
