//! States and lifetimes of flows. Time is in ticks of 2^30 ns (about 1.07 s).

use portolan_abi::{Affinity, Flow, FlowKey, state};

use crate::wire::{proto, swap_ports, tcp};
use crate::{Family, Tables};

/// How long a flow may be silent before it is forgotten, in ticks.
pub mod timeout {
    /// TCP, both sides have spoken. Long, because a forgotten connection cannot be continued; a full
    /// bucket displaces who was silent first anyway.
    pub const TCP: u32 = 21_600;
    /// TCP, the backend has not answered yet: the client's retries are over (RFC 9293 3.8.3 allows 100 s).
    pub const TCP_OPENING: u32 = 120;
    /// TCP, closed by both sides or reset: the last acknowledgements pass.
    pub const TCP_CLOSED: u32 = 10;
    /// UDP, both sides have spoken (RFC 4787 REQ-5: at least two minutes).
    pub const UDP: u32 = 180;
    /// UDP, the backend has not answered.
    pub const UDP_OPENING: u32 = 60;
}

/// Whether the connection is over: what opens another with the same addresses gets a new decision.
#[inline(always)]
#[must_use]
pub const fn is_closed(bits: u8) -> bool {
    let both = state::CLIENT_FIN | state::BACKEND_FIN;
    bits & state::RESET != 0 || bits & both == both
}

/// Whether the flow's backend left its service, which resets such connections.
#[inline(always)]
#[must_use]
pub const fn has_departed(bits: u8) -> bool {
    bits & state::DEPARTED != 0
}

/// What is added to the state of both entries of a connection whose backend left its service.
pub const DEPARTURE: u8 = state::DEPARTED | state::RESET;

/// Whether one side has ended the connection. Nobody opens a connection that is still in use, so a SYN with its
/// addresses is of another one.
#[inline(always)]
#[must_use]
pub const fn is_ending(bits: u8) -> bool {
    bits & (state::RESET | state::CLIENT_FIN | state::BACKEND_FIN) != 0
}

/// How long a flow in this state may be silent, in ticks.
#[inline(always)]
#[must_use]
pub const fn lifetime(protocol: u32, bits: u8) -> u32 {
    let answered = bits & state::ESTABLISHED != 0;
    if protocol != proto::TCP as u32 {
        return if answered { timeout::UDP } else { timeout::UDP_OPENING };
    }
    if has_departed(bits) {
        // Nobody knows when an end that waits for the other will speak.
        timeout::TCP
    } else if is_closed(bits) {
        timeout::TCP_CLOSED
    } else if answered {
        timeout::TCP
    } else {
        timeout::TCP_OPENING
    }
}

/// Whether a flow has been silent for longer than it may.
#[inline(always)]
#[must_use]
pub fn is_expired<A>(protocol: u32, flow: &Flow<A>, now: u32) -> bool {
    // A clock read on another CPU may be a tick behind.
    let idle = now.wrapping_sub(flow.seen);
    idle < u32::MAX / 2 && idle > lifetime(protocol, flow.state)
}

/// Whether an entry makes room for another under the same key: it is of the same conversation, or of one that is over.
#[inline(always)]
#[must_use]
pub fn yields<A: PartialEq>(protocol: u32, taken: &Flow<A>, flow: &Flow<A>) -> bool {
    let same = taken.src == flow.src && taken.dst == flow.dst && taken.ports == flow.ports;
    same || is_closed(taken.state) || is_expired(protocol, taken, flow.seen)
}

/// Whether a client's last flow is longer ago than its service's affinity lasts.
#[inline(always)]
#[must_use]
pub const fn is_forgotten(memory: &Affinity, seconds: u32, now: u32) -> bool {
    let idle = now.wrapping_sub(memory.seen);
    // As above; and ticks become nanoseconds without a division.
    idle < u32::MAX / 2 && (idle as u64) << 30 >= seconds as u64 * 1_000_000_000
}

/// The key of the other direction of a flow.
#[inline(always)]
#[must_use]
pub fn peer_key<A: Copy>(flow: &Flow<A>, protocol: u32) -> FlowKey<A> {
    FlowKey { src: flow.dst, dst: flow.src, ports: swap_ports(flow.ports), proto: protocol }
}

/// Whether a packet with these TCP flags ends its connection, or one side's half of it.
#[inline(always)]
#[must_use]
pub const fn tells_end(flags: u8) -> bool {
    flags & (tcp::FIN | tcp::RST) != 0
}

/// Whether a packet can neither open nor end its flow, nor tell anything new about it: its time was noted in this
/// [beat](portolan_abi::BEAT).
#[inline(always)]
#[must_use]
pub fn is_quiet<A>(flags: u8, flow: &Flow<A>, beat: u8) -> bool {
    flags & (tcp::SYN | tcp::FIN | tcp::RST) == 0
        && flow.beat == beat
        && !has_departed(flow.state)
        && flow.state & (state::REPLY | state::ESTABLISHED) != state::REPLY
}

/// Whether a packet is the first that shows that a connection whose answers do not come back this way was answered:
/// only a client that has heard of its backend acknowledges.
#[inline(always)]
#[must_use]
pub const fn tells_answer<A>(flags: u8, flow: &Flow<A>) -> bool {
    is_one_way(flow) && flow.state & state::ESTABLISHED == 0 && flags & (tcp::SYN | tcp::ACK) == tcp::ACK
}

/// Whether the answers of a flow take another way: there is no entry for them.
#[inline(always)]
#[must_use]
pub const fn is_one_way<A>(flow: &Flow<A>) -> bool {
    flow.exit == portolan_abi::exit::TUNNEL
}

/// The state of a flow after a packet of it, with these TCP flags (none for UDP).
#[inline(always)]
#[must_use]
pub fn next_state(bits: u8, flags: u8) -> u8 {
    let reply = bits & state::REPLY != 0;
    let mut next = if reply { bits | state::ESTABLISHED } else { bits };
    if flags & tcp::RST != 0 {
        next |= state::RESET;
    }
    if flags & tcp::FIN != 0 {
        next |= if reply { state::BACKEND_FIN } else { state::CLIENT_FIN };
    }
    next
}

/// Carries a packet's news into both entries of its flow; whether the other direction's entry is there, if the flow has
/// one.
#[inline(always)]
pub(crate) fn record<F: Family, T: Tables<F>>(
    entry: T::Entry,
    flow: &Flow<F::Addr>,
    next: u8,
    protocol: u32,
    now: u32,
    tables: &T,
) -> bool {
    tables.update(entry, next, now);
    if is_one_way(flow) {
        return true;
    }
    // Touching the other entry once a beat also keeps it from being displaced under a flow that is alive. Nothing of its state is
    // taken back: what user space or a packet of the other direction has just said stays.
    let Some((peer, peer_entry)) = tables.flow(&peer_key(flow, protocol)) else { return false };
    tables.update(peer_entry, peer.state | (next & !state::REPLY), now);
    true
}
