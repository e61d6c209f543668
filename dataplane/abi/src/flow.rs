//! The flow table: one entry for each direction of a translated flow.

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
    /// When a packet was last seen, in ticks of 2^30 ns of the monotonic clock.
    pub seen: u32,
    /// Index of the service.
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
    /// Always zero.
    pub zero: u8,
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

crate::plain!(FlowKey<Words<1>>, FlowKey<Words<4>>, Flow<Words<1>>, Flow<Words<4>>);
