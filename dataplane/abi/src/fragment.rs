//! Pieces of packets that were cut on their way: only the first one has ports.

use crate::{Flow, Words};

/// A packet that was cut: what all its pieces say (RFC 791 3.2, RFC 8200 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FragmentKey<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Identification, as it stands in the packet.
    pub id: u32,
    /// IP protocol number of what was cut.
    pub proto: u32,
}

/// What becomes of the pieces after the first one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment<A> {
    /// Where the fate is to follow a flow, that; its time is always that of the record.
    pub flow: Flow<A>,
    /// See [`fate`].
    pub fate: u32,
    /// How many pieces came before the first one and wait for it.
    pub waiting: u32,
    /// Tells the pieces that wait for this packet from all others; see [`EarlyKey`].
    pub token: u32,
    /// Always zero.
    pub zero: u32,
}

/// Values of [`Fragment::fate`].
pub mod fate {
    /// The first piece has not come yet.
    pub const WAITING: u32 = 0;
    /// They follow the first one's flow.
    pub const FLOW: u32 = 1;
    /// They are no service traffic.
    pub const DIRECT: u32 = 2;
    /// They are dropped, as the first one was.
    pub const DROP: u32 = 3;
}

/// A piece that waits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EarlyKey {
    /// Of the packet's [`Fragment`].
    pub token: u32,
    /// The first to come is 0.
    pub number: u32,
}

/// Most pieces of one packet that wait: all but one of the longest packet, on a wire of 1,500 bytes.
pub const EARLY_PIECES: u32 = 45;
/// Longest piece that waits, with its Ethernet header: a power of two.
pub const EARLY_BYTES: usize = 2048;

/// A piece that waits, from its Ethernet header on.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Early {
    /// How many bytes there are.
    pub len: u64,
    /// The bytes.
    pub bytes: [u8; EARLY_BYTES],
}

const _: () = assert!(size_of::<FragmentKey<Words<1>>>() == 16);
const _: () = assert!(size_of::<FragmentKey<Words<4>>>() == 40);
const _: () = assert!(size_of::<Fragment<Words<1>>>() == 64);
const _: () = assert!(size_of::<Fragment<Words<4>>>() == 88);

crate::plain!(FragmentKey<Words<1>>, FragmentKey<Words<4>>, Fragment<Words<1>>, Fragment<Words<4>>);
