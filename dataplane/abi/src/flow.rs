//! The flow table: one entry for each direction of a translated flow.
//!
//! The table is an array that user space maps: buckets of [`FLOW_WAYS`] slots, a flow in any slot of the bucket that a
//! keyed hash of its tuple names. What that buys over the kernel's LRU hash is one page, mostly one cache line, for each
//! packet; no call for a look-up; and the right to say which flow makes room when there is none.

use crate::Words;

/// A flow in one direction, as the packet shows it before translation.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// The first word of the transport header: source and destination port in packet order.
    pub ports: u32,
    /// IP protocol number.
    pub proto: u32,
}

/// What becomes of the packets of a flow. Complete by itself: an established packet needs no other look-up.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<A> {
    /// When a packet was last seen, in ticks of 2^30 ns of the monotonic clock. First, so that a [`FlowSlot`] has it in one
    /// word with its tag.
    pub seen: u32,
    /// Source address after translation.
    pub src: A,
    /// Destination address after translation.
    pub dst: A,
    /// Source and destination port after translation, in packet order.
    pub ports: u32,
    /// Interface the packet leaves by; see [`exit`].
    pub ifindex: u32,
    /// Destination MAC for a pod of this node, in packet order.
    pub mac: [u16; 3],
    /// How the packet leaves; see [`exit`].
    pub exit: u8,
    /// See [`state`].
    pub state: u8,
    /// Index of the service, or [`NO_SERVICE`].
    pub service: u32,
    /// Index of the backend.
    pub backend: u32,
    /// Interface that the flow's packets come in by, where [`from`](Self::from) is a pod: together with
    /// [`from_mac`](Self::from_mac) the proof that a packet is of the pod that owns its source address.
    pub from_ifindex: u32,
    /// MAC of the pod that the flow's packets come from, in packet order.
    pub from_mac: [u16; 3],
    /// Where the flow's packets come from, as the way back leaves; see [`exit`].
    pub from: u8,
    /// When [`seen`](Self::seen) was written, as a time that costs nothing to read: see [`BEAT`].
    pub beat: u8,
}

/// In the place of a service's index: the flow leaves the cluster, and has neither service nor backend.
pub const NO_SERVICE: u32 = 0x7fff_fffe;

/// A beat is this many of the kernel's timer interrupts, as a power of two: one to ten seconds. It tells that a flow's
/// time was noted a moment ago. The count comes round after four minutes at the earliest: no UDP flow is silent for as long,
/// and a TCP flow would have to be silent for exactly as long, time after time, for hours.
pub const BEAT: u32 = 10;

/// Slots of a bucket.
pub const FLOW_WAYS: usize = 8;

/// A place for one entry, of one cache line over IPv4 and two over IPv6.
///
/// `tag` and `seen` are one aligned 64-bit word, so that an entry is removed only if no packet has refreshed it meanwhile.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct FlowSlot<A> {
    /// [`FlowKey::src`].
    pub src: A,
    /// [`FlowKey::dst`].
    pub dst: A,
    /// See [`flow_tag`].
    pub tag: u32,
    /// The entry.
    pub flow: Flow<A>,
    /// [`FlowKey::ports`].
    pub ports: u32,
}

/// A bucket: an element of the table.
pub type FlowBucket<A> = [FlowSlot<A>; FLOW_WAYS];

/// Bits of [`FlowSlot::tag`].
pub mod flow_tag {
    /// IP protocol number; zero: the slot is free.
    pub const PROTO: u32 = 0xff;
    /// Somebody writes the slot: nobody may read it.
    pub const BUSY: u32 = 1 << 8;
    /// First bit of [`PRINT`].
    pub const PRINT_SHIFT: u32 = 9;
    /// A part of the key's hash that no other slot of the bucket has: whoever adds a flow takes the place of one that has.
    pub const PRINT: u32 = 0xf_ffff << PRINT_SHIFT;
    /// Lowest bit of the number of times the slot was written: whoever reads the same tag twice has read one entry.
    pub const WRITTEN: u32 = 1 << 29;
}

/// How keys are spread over the flow tables' buckets. Written once, when the tables are made.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowHash {
    /// Nobody outside of the node can know which flows share a bucket.
    pub secret: [u32; 2],
    /// Buckets of each family's table.
    pub buckets: u32,
}

/// Values of [`Flow::exit`].
pub mod exit {
    /// Go on to the host's network stack.
    pub const STACK: u8 = 0;
    /// Into the pod behind interface [`ifindex`](super::Flow::ifindex).
    pub const POD: u8 = 1;
    /// Out of interface [`ifindex`](super::Flow::ifindex) towards the next hop.
    pub const UPLINK: u8 = 2;
    /// To a process of the host, as if it arrived on the service device.
    pub const HOST: u8 = 3;
    /// As it came, inside of a packet to the backend, out of interface [`ifindex`](super::Flow::ifindex): the
    /// backend's node takes it out and answers the client directly. The addresses and ports of the entry are those
    /// that the backend's node gives it; there is no entry of the way back.
    pub const TUNNEL: u8 = 4;
    /// To another node by the overlay device, [`ifindex`](super::Flow::ifindex), which asks for no next hop.
    pub const OVERLAY: u8 = 5;
}

/// Bits of [`Flow::state`].
pub mod state {
    /// The entry is the direction from backend to client.
    pub const REPLY: u8 = 1;
    /// Packets were seen in both directions.
    pub const ESTABLISHED: u8 = 1 << 1;
    /// The client sent FIN.
    pub const CLIENT_FIN: u8 = 1 << 2;
    /// The backend sent FIN.
    pub const BACKEND_FIN: u8 = 1 << 3;
    /// Either side sent RST.
    pub const RESET: u8 = 1 << 4;
    /// The source address or port is replaced as well.
    pub const MASQUERADE: u8 = 1 << 5;
    /// The backend left its service, which resets such connections: either end is told so when it sends next.
    pub const DEPARTED: u8 = 1 << 6;
}

const _: () = assert!(size_of::<FlowKey<Words<1>>>() == 16);
const _: () = assert!(size_of::<FlowKey<Words<4>>>() == 40);
const _: () = assert!(size_of::<Flow<Words<1>>>() == 48);
const _: () = assert!(size_of::<Flow<Words<4>>>() == 72);
const _: () = assert!(size_of::<FlowSlot<Words<1>>>() == 64);
// Sixteen bytes behind the last field belong to nobody.
const _: () = assert!(size_of::<FlowSlot<Words<4>>>() == 128);
const _: () = assert!(core::mem::offset_of!(FlowSlot<Words<1>>, tag) == 8);
const _: () = assert!(core::mem::offset_of!(FlowSlot<Words<4>>, tag) == 32);
const _: () = assert!(size_of::<FlowHash>() == 12);

crate::plain!(FlowHash);
crate::plain!(FlowKey<Words<1>>, FlowKey<Words<4>>, Flow<Words<1>>, Flow<Words<4>>);
