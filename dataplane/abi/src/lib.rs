//! The contract between the eBPF programs and user space: keys, values and counters of every table.
//!
//! Only integers and arrays of them, no implicit padding, no logic. Addresses and ports are in network
//! byte order exactly as they stand in a packet; everything else is in the machine's byte order.
//! A change of any layout here raises [`VERSION`], which is part of the path the tables are pinned under.
#![no_std]

mod config;
pub mod counter;
mod flow;
mod fragment;
mod realm;
mod service;
mod socket;
mod trace;

pub use config::{Config, UPLINKS, config_flag};
pub use flow::{
    BEAT, FLOW_WAYS, Flow, FlowBucket, FlowHash, FlowKey, FlowSlot, NO_SERVICE, exit, flow_tag, state,
};
pub use fragment::{EARLY_BYTES, EARLY_PIECES, Early, EarlyKey, Fragment, FragmentKey, fate};
pub use realm::{PrefixKey, Realm, realm_flag};
pub use service::{
    Affinity, AffinityKey, Backend, Endpoint, Frontend, FrontendKey, Ring, SLAB_LINE, Service, SlabLine,
    SourceKey, backend_flag, endpoint_flag, frontend_flag, service_flag,
};
pub use socket::{Held, MAPPED, PEERS, Peer, Peers};
pub use trace::{Event, SHOWN_WORDS, Trace, trace_flag};

/// Version of every layout in this crate.
pub const VERSION: u32 = 5;

/// MAC address of the host's side of every pod interface and of the service device: `02:70:6f:72:74:6c`.
///
/// One constant for all of them, so that a verdict never has to look up a source MAC. It is locally
/// administered (IEEE 802, second lowest bit of the first octet) and never leaves the node.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0x70, 0x6f, 0x72, 0x74, 0x6c];

/// MAC address that packets in the overlay come from: `02:70:6f:72:74:6d`. Their destination is [`GATEWAY_MAC`], that of the
/// overlay device on every node; a device drops what has its own as its source.
pub const OVERLAY_MAC: [u8; 6] = [0x02, 0x70, 0x6f, 0x72, 0x74, 0x6d];

/// IPv4 address that pods use as their default gateway, and that a pod sees as the client when it reaches
/// itself through a service. Link-local (RFC 3927), so it can collide with no pod.
pub const GATEWAY_V4: [u8; 4] = [169, 254, 1, 1];

/// IPv6 default gateway of every pod: `fe80::1`.
pub const GATEWAY_V6: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// IPv6 address that a pod sees as the client when it reaches itself through a service:
/// `fd70:6f72:746f::1` (RFC 4193). Not link-local: an answer to a link-local address would need a scope.
pub const HAIRPIN_V6: [u8; 16] = [0xfd, 0x70, 0x6f, 0x72, 0x74, 0x6f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// An IP address as 32-bit words in the order and byte order of the packet: `N` is 1 for IPv4, 4 for IPv6.
///
/// Words rather than bytes because the BPF back end loads a byte array one byte at a time.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Words<const N: usize>(pub [u32; N]);

impl<const N: usize> Words<N> {
    /// The unspecified address.
    pub const ZERO: Self = Self([0; N]);
}

impl Words<1> {
    /// From the four octets of an IPv4 address.
    #[must_use]
    pub const fn from_octets(octets: [u8; 4]) -> Self {
        Self([u32::from_ne_bytes(octets)])
    }

    /// The four octets of the address.
    #[must_use]
    pub const fn octets(self) -> [u8; 4] {
        self.0[0].to_ne_bytes()
    }
}

impl Words<4> {
    /// From the sixteen octets of an IPv6 address.
    #[must_use]
    pub const fn from_octets(o: [u8; 16]) -> Self {
        Self([
            u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
            u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
            u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
            u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        ])
    }

    /// The sixteen octets of the address.
    #[must_use]
    pub const fn octets(self) -> [u8; 16] {
        let [a, b, c, d] = [
            self.0[0].to_ne_bytes(),
            self.0[1].to_ne_bytes(),
            self.0[2].to_ne_bytes(),
            self.0[3].to_ne_bytes(),
        ];
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
    }
}

/// Tells aya that a type may be read from and written to a table as bytes.
macro_rules! plain {
    ($($type:ty),* $(,)?) => {
        $(
            // SAFETY: the type is `repr(C)` over integers only, has no padding (asserted beside its
            // definition), and every bit pattern of it is valid.
            #[cfg(feature = "user")]
            unsafe impl aya::Pod for $type {}
        )*
    };
}
pub(crate) use plain;

plain!(Words<1>, Words<4>);
