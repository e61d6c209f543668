//! Watching live packets: which ones, and what was seen of each.

/// Words of a packet that an event shows: Ethernet, IPv6 and TCP headers fit.
pub const SHOWN_WORDS: usize = 20;

/// Which packets are watched. One record, written by who watches; programs end it themselves when its time is over.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Events that found no room, counted by the programs.
    pub lost: u64,
    /// When watching ends, in ticks of 2^30 ns of the monotonic clock; 0: nobody watches.
    pub until: u32,
    /// One packet in `mask + 1` is watched, at random; `mask + 1` is a power of two.
    pub mask: u32,
    /// See [`trace_flag`].
    pub flags: u32,
    /// Port that a packet must have, in network byte order; 0: any.
    pub port: u32,
    /// Address that a packet must have, in packet order; see [`trace_flag`].
    pub addr: [u32; 4],
}

/// Bits of [`Trace::flags`].
pub mod trace_flag {
    /// Only packets that did not reach who they were sent to.
    pub const DROPS: u32 = 1;
    /// Only IPv4 packets from or to [`addr`](super::Trace::addr), before or after translation.
    pub const V4: u32 = 1 << 1;
    /// The same for IPv6.
    pub const V6: u32 = 1 << 2;
}

/// One packet that a program saw.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds of the monotonic clock.
    pub time: u64,
    /// Interface that the program is attached to.
    pub ifindex: u32,
    /// Which program: its hook's number plus one, so that 0 is no event.
    pub hook: u32,
    /// What became of the packet: index of its counter.
    pub outcome: u32,
    /// Length of the packet as it came, in bytes.
    pub len: u32,
    /// Bytes of [`before`](Self::before) that count.
    pub before_len: u32,
    /// Bytes of [`after`](Self::after) that count; 0 if the packet went nowhere.
    pub after_len: u32,
    /// The beginning of the packet as it came.
    pub before: [u32; SHOWN_WORDS],
    /// The beginning of the packet as it left, before its way out gave it Ethernet addresses.
    pub after: [u32; SHOWN_WORDS],
}

const _: () = assert!(size_of::<Trace>() == 40);
const _: () = assert!(size_of::<Event>() == 192);

crate::plain!(Trace, Event);
