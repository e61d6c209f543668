//! What a decision says.

use portolan_abi::{Endpoint, Flow, GATEWAY_MAC, counter, exit};

use crate::{Address, Family, icmp};

/// Where in the node the packet was caught.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// It leaves a pod.
    Pod = 0,
    /// The host's stack sends it to a pod.
    PodEgress = 1,
    /// It arrives on an uplink.
    Uplink = 2,
    /// It leaves by an uplink.
    UplinkEgress = 3,
    /// The host's stack routed it to the service device: it is service traffic or nothing.
    Service = 4,
    /// A process of the host sends it to an address of the host.
    Loopback = 5,
    /// It arrived on an uplink inside of a packet of another node, which sent it to a backend here.
    Tunnel = 6,
}

impl Hook {
    /// Name of the program that catches packets here.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::Pod => "from_pod",
            Self::PodEgress => "to_pod",
            Self::Uplink | Self::Tunnel => "from_uplink",
            Self::UplinkEgress => "to_uplink",
            Self::Service => "to_service",
            Self::Loopback => "to_loopback",
        }
    }

    /// Whether what is caught here comes from the host itself.
    #[inline(always)]
    #[must_use]
    pub const fn is_host(self) -> bool {
        matches!(self, Self::UplinkEgress | Self::Service | Self::Loopback)
    }

    /// Whether what is caught here arrives from elsewhere, so that nobody has checked it yet.
    #[inline(always)]
    #[must_use]
    pub const fn is_ingress(self) -> bool {
        matches!(self, Self::Pod | Self::Uplink | Self::Tunnel)
    }
}

/// Why a packet is dropped or rejected: the counter's index.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is documented at the counter of its name")]
pub enum Reason {
    NoBackend = counter::REJECTED_NO_BACKEND,
    UnknownPort = counter::REJECTED_UNKNOWN_PORT,
    Truncated = counter::DROP_TRUNCATED,
    Malformed = counter::DROP_MALFORMED,
    Fragment = counter::DROP_FRAGMENT,
    Options = counter::DROP_OPTIONS,
    Protocol = counter::DROP_PROTOCOL,
    NotIp = counter::DROP_NOT_IP,
    SpoofedAddress = counter::DROP_SPOOFED_ADDRESS,
    SpoofedMac = counter::DROP_SPOOFED_MAC,
    LinkLocal = counter::DROP_LINK_LOCAL,
    Multicast = counter::DROP_MULTICAST,
    Loopback = counter::DROP_LOOPBACK,
    UnknownService = counter::DROP_UNKNOWN_SERVICE,
    NoLocalBackend = counter::DROP_NO_LOCAL_BACKEND,
    NoRoute = counter::DROP_NO_ROUTE,
    NoPort = counter::DROP_NO_PORT,
    Ttl = counter::DROP_TTL,
    NoNodeAddress = counter::DROP_NO_NODE_ADDRESS,
    Echo = counter::DROP_ECHO,
    Dangling = counter::DROP_DANGLING,
    FlowTable = counter::DROP_FLOW_TABLE,
    SourceRange = counter::DROP_SOURCE_RANGE,
    Tunnel = counter::DROP_TUNNEL,
    TooBig = counter::REJECTED_TOO_BIG,
    Departed = counter::REJECTED_DEPARTED,
    Overlay = counter::DROP_OVERLAY,
    Dhcp = counter::DROP_DHCP,
}

/// How a packet leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// One of [`portolan_abi::exit`].
    pub kind: u8,
    /// Interface, unless it goes on to the stack.
    pub ifindex: u32,
    /// Destination MAC, for a pod and for the service device.
    pub mac: [u16; 3],
}

impl Exit {
    /// On to the host's stack.
    pub const STACK: Self = Self { kind: exit::STACK, ifindex: 0, mac: [0; 3] };

    /// Into a pod of this node.
    #[inline(always)]
    #[must_use]
    pub fn pod(endpoint: &Endpoint) -> Self {
        Self { kind: exit::POD, ifindex: endpoint.ifindex, mac: endpoint.mac }
    }

    /// Towards the next hop behind an uplink.
    #[inline(always)]
    #[must_use]
    pub const fn uplink(ifindex: u32) -> Self {
        Self { kind: exit::UPLINK, ifindex, mac: [0; 3] }
    }

    /// To the host, by way of its service device.
    #[inline(always)]
    #[must_use]
    pub fn host(service_ifindex: u32) -> Self {
        Self { kind: exit::HOST, ifindex: service_ifindex, mac: gateway_mac() }
    }

    /// As a flow entry says.
    #[inline(always)]
    #[must_use]
    pub fn of_flow<A: Address>(flow: &Flow<A>) -> Self {
        Self { kind: flow.exit, ifindex: flow.ifindex, mac: flow.mac }
    }

    /// The way back to who sends the packets of a flow entry.
    #[inline(always)]
    #[must_use]
    pub fn back_of_flow<A: Address>(flow: &Flow<A>) -> Self {
        Self { kind: flow.from, ifindex: flow.from_ifindex, mac: flow.from_mac }
    }

    /// To another node by the overlay.
    #[inline(always)]
    #[must_use]
    pub const fn overlay(ifindex: u32) -> Self {
        Self { kind: exit::OVERLAY, ifindex, mac: [0; 3] }
    }

    /// Whether it leads out of the node, as it is: the way of a router.
    #[inline(always)]
    #[must_use]
    pub const fn is_away(self) -> bool {
        matches!(self.kind, exit::UPLINK | exit::OVERLAY)
    }

    /// The outcome to count for a packet that leaves this way.
    #[inline(always)]
    #[must_use]
    pub const fn outcome(self) -> u32 {
        match self.kind {
            exit::POD => counter::TO_POD,
            exit::UPLINK | exit::TUNNEL => counter::TO_UPLINK,
            exit::OVERLAY => counter::TO_OVERLAY,
            exit::HOST => counter::TO_HOST,
            _ => counter::TO_STACK,
        }
    }
}

/// The addresses and ports a packet leaves with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Both ports, in packet order.
    pub ports: u32,
    /// Time to live.
    pub ttl: u8,
}

/// The decision on a packet.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<F: Family> {
    /// Leave it as it is to the next program or the host's stack; the outcome to count.
    Pass(u32),
    /// Send it as it is.
    Deliver(Exit),
    /// Translate it and send it.
    Forward(Rewrite<F::Addr>, Exit),
    /// Translate an ICMP error and the packet it quotes, and send it.
    ForwardError(icmp::Translation<F>, Exit),
    /// Send it inside of a packet to its flow's backend: [`Parcel`](crate::tunnel::Parcel) says how.
    Encapsulate(Exit),
    /// Tell its sender that only packets of so many bytes get through: [`Complaint`](crate::tunnel::Complaint).
    TooBig(Exit),
    /// Turn an ICMP echo request into its reply and send it.
    AnswerEcho(Exit),
    /// Replace it by its [`Rejection`](crate::answer::Rejection) and send that, for this reason.
    Reject(Exit, Reason),
    /// Let it wait for the first piece of its packet.
    Wait,
    /// Decide on it anew, and after it on the pieces of its packet that wait for it.
    Release,
    /// Drop it.
    Drop(Reason),
}

impl<F: Family> Verdict<F> {
    /// The outcome that this verdict counts as, if the kernel carries it out.
    #[inline(always)]
    #[must_use]
    pub const fn outcome(&self) -> u32 {
        match self {
            Self::Pass(outcome) => *outcome,
            Self::Deliver(exit)
            | Self::Forward(_, exit)
            | Self::ForwardError(_, exit)
            | Self::Encapsulate(exit) => exit.outcome(),
            Self::TooBig(_) => counter::REJECTED_TOO_BIG,
            Self::AnswerEcho(_) => counter::ECHO_ANSWERED,
            Self::Wait => counter::FRAGMENT_WAITS,
            Self::Release => counter::FRAGMENTS_RELEASED,
            Self::Drop(reason) | Self::Reject(_, reason) => *reason as u32,
        }
    }
}

/// [`GATEWAY_MAC`] as three words in packet order.
#[inline(always)]
#[must_use]
pub const fn gateway_mac() -> [u16; 3] {
    mac_words(GATEWAY_MAC)
}

/// A MAC address as three words in packet order.
#[inline(always)]
#[must_use]
pub(crate) const fn mac_words(m: [u8; 6]) -> [u16; 3] {
    [u16::from_ne_bytes([m[0], m[1]]), u16::from_ne_bytes([m[2], m[3]]), u16::from_ne_bytes([m[4], m[5]])]
}
