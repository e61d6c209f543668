//! The flow table's algorithm: which bucket a flow is in, which slot it takes, and which flow makes room for it.
//!
//! Several CPUs and user space use a bucket at the same time, and nobody waits. A slot's tag tells which entry it holds and
//! how often it was written; whoever reads the same tag before and after has read one entry. A slot is taken by exchanging its
//! tag for a busy one, if it is still what it was. Two who add the same key at the same time each see the other afterwards,
//! and the one who does takes its entry back.

use portolan_abi::{FLOW_WAYS, Flow, FlowHash, FlowKey, flow_tag, state};

use crate::Address;
use crate::conntrack::yields;

/// Slots of a bucket.
const WAYS: u32 = FLOW_WAYS as u32;

/// Attempts to take a slot. Each that fails means that another CPU has changed the bucket within the last few nanoseconds.
pub const ATTEMPTS: u32 = 3;

/// What of a tag says which keys a slot may have.
const MATCH: u32 = flow_tag::PROTO | flow_tag::BUSY | flow_tag::PRINT;

/// One bucket, as whoever holds its memory sees it. `way` is below [`FLOW_WAYS`].
pub trait Slots<A: Address>: Copy {
    /// The tag and, in the upper half, the time of a slot: one load.
    fn word(self, way: u32) -> u64;
    /// The tag of a slot.
    fn tag(self, way: u32) -> u32;
    /// Source, destination and ports of a slot.
    fn key(self, way: u32) -> (A, A, u32);
    /// Whether the key of a slot is this one, but for the protocol.
    fn is_of(self, way: u32, key: &FlowKey<A>) -> bool;
    /// State of a slot.
    fn state(self, way: u32) -> u8;
    /// The entry in a slot. Loads happen in the order of the program.
    fn flow(self, way: u32) -> Flow<A>;
    /// Exchanges the word of a slot if it is still `old`; whether it was. Atomic, a full barrier.
    fn exchange(self, way: u32, old: u64, new: u64) -> bool;
    /// Sets the word of a slot that is busy. Atomic, a full barrier.
    fn publish(self, way: u32, word: u64);
    /// Writes everything but the word.
    fn fill(self, way: u32, key: &FlowKey<A>, flow: &Flow<A>);
}

/// Where a flow belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the bucket.
    pub bucket: u32,
    /// What the tag of its slot says.
    wanted: u32,
}

/// Odd numbers without a pattern: the fractional parts of the square roots of the first primes.
const ODD: [u32; 10] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f373,
    0xa54f_f53b,
    0x510e_527f,
    0x9b05_688d,
    0x1f83_d9ab,
    0x5be0_cd19,
    0xcbbb_9d5d,
    0x629a_293b,
];

/// Two words mixed: the product of sums with secret words, as in UMAC's NH (RFC 4418 5.2).
#[inline(always)]
pub(crate) fn product(a: u32, b: u32, at: usize, secret: [u32; 2]) -> u64 {
    let [first, second] = secret;
    let keys = match at {
        0 => [ODD[0], ODD[1]],
        1 => [ODD[2], ODD[3]],
        2 => [ODD[4], ODD[5]],
        3 => [ODD[6], ODD[7]],
        _ => [ODD[8], ODD[9]],
    };
    let a = a.wrapping_add(first.wrapping_add(keys[0]));
    let b = b.wrapping_add(second.wrapping_add(keys[1]));
    u64::from(a).wrapping_mul(u64::from(b))
}

/// Where a flow belongs. `hash` is of the tables that are asked.
#[inline(always)]
#[must_use]
pub fn place<A: Address>(key: &FlowKey<A>, hash: &FlowHash) -> Place {
    let sum = key.src.products(key.dst, hash.secret);
    let sum = sum.wrapping_add(product(key.ports, key.proto, 4, hash.secret));
    // The multiplier is 2^64 divided by the golden ratio.
    let mixed = (sum ^ (sum >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let bucket = ((mixed >> 32) * u64::from(hash.buckets)) >> 32;
    let print = (mixed as u32 >> 12) << flow_tag::PRINT_SHIFT;
    Place { bucket: bucket as u32, wanted: key.proto & flow_tag::PROTO | print }
}

/// A flow. For user space, which may be interrupted while it reads: programs take their chances with [`search`], because
/// what they read is a packet's time old, and only one packet goes astray.
pub fn find<A: Address, S: Slots<A>>(slots: S, key: &FlowKey<A>, place: Place) -> Option<Flow<A>> {
    let (way, tag) = search(slots, key, place)?;
    let flow = slots.flow(way);
    (slots.tag(way) == tag).then_some(flow)
}

/// Adds a flow, or replaces it; if `fresh`, only one that [yields]. Whether it was written.
pub fn add<A: Address, S: Slots<A>>(
    slots: S,
    (key, flow): (&FlowKey<A>, &Flow<A>),
    place: Place,
    fresh: bool,
) -> bool {
    (0..ATTEMPTS).any(|_| match choose(slots, (key, flow), place, fresh) {
        Some(chosen) => write(slots, (key, flow), place, chosen),
        None => false,
    })
}

/// A slot, and the tag it had when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Number of the slot.
    pub way: u32,
    /// Its tag.
    pub tag: u32,
}

/// The slot to [`write`] a flow to; `None` if it shall be `fresh` and one is there that does not [yield](yields). One half of
/// [`add`]: a program has no stack for both.
#[inline(always)]
pub fn choose<A: Address, S: Slots<A>>(
    slots: S,
    (key, flow): (&FlowKey<A>, &Flow<A>),
    place: Place,
    fresh: bool,
) -> Option<Chosen> {
    let holders = candidates(slots, place.wanted, MATCH);
    if holders == 0 {
        return Some(spare(slots, place, flow.seen));
    }
    // One in a hundred thousand flows meets another that looks alike, and takes its place. The tag is read before the entry:
    // if that is replaced meanwhile, it is not written to.
    let way = lowest(holders);
    let tag = slots.tag(way);
    let taken = fresh && slots.is_of(way, again(key)) && !yields(key.proto, &slots.flow(way), flow);
    (!taken).then_some(Chosen { way, tag })
}

/// Writes a flow to a slot if it is still what was chosen, unless somebody else adds the same flow at the same time; whether it
/// was written.
#[inline(always)]
pub fn write<A: Address, S: Slots<A>>(
    slots: S,
    (key, flow): (&FlowKey<A>, &Flow<A>),
    place: Place,
    Chosen { way, tag }: Chosen,
) -> bool {
    let word = slots.word(way);
    if tag_of(word) != tag
        || tag & flow_tag::BUSY != 0
        || !slots.exchange(way, word, word_of(tag | flow_tag::BUSY, flow.seen))
    {
        return false;
    }
    slots.fill(way, again(key), flow);
    let next = (tag & !(flow_tag::WRITTEN - 1)).wrapping_add(flow_tag::WRITTEN);
    slots.publish(way, word_of(next | place.wanted, flow.seen));
    if candidates(slots, place.wanted, MATCH) == 1 << way {
        return true;
    }
    // Withdrawn, unless somebody else has taken the slot since it was published.
    slots.exchange(way, word_of(next | place.wanted, flow.seen), word_of(next, flow.seen));
    false
}

/// Removes a flow, if `known` is what it is; whether it did.
pub fn remove<A: Address, S: Slots<A>>(
    slots: S,
    key: &FlowKey<A>,
    place: Place,
    known: Option<&Flow<A>>,
) -> bool {
    let Some((way, _)) = search(slots, key, place) else { return false };
    remove_if(slots, way, |found, flow| found == key && known.is_none_or(|known| known == flow))
}

/// Removes the entry in a slot if it is `over`, unless a packet refreshes or replaces it meanwhile; whether it was removed.
pub fn remove_if<A: Address, S: Slots<A>>(
    slots: S,
    way: u32,
    over: impl FnOnce(&FlowKey<A>, &Flow<A>) -> bool,
) -> bool {
    let word = slots.word(way);
    let tag = tag_of(word);
    let proto = tag & flow_tag::PROTO;
    if proto == 0 || tag & flow_tag::BUSY != 0 {
        return false;
    }
    let ((src, dst, ports), flow) = (slots.key(way), slots.flow(way));
    if slots.tag(way) != tag || !over(&FlowKey { src, dst, ports, proto }, &flow) {
        return false;
    }
    slots.exchange(way, word, word_of(tag & !(flow_tag::WRITTEN - 1), flow.seen))
}

/// The slot that has a key, and its tag.
#[inline(always)]
pub fn search<A: Address, S: Slots<A>>(slots: S, key: &FlowKey<A>, place: Place) -> Option<(u32, u32)> {
    let candidates = candidates(slots, place.wanted, MATCH);
    if candidates == 0 {
        return None;
    }
    let way = lowest(candidates);
    let tag = slots.tag(way);
    (tag & MATCH == place.wanted && slots.is_of(way, again(key))).then_some((way, tag))
}

/// A key whose words the compiler has to load again: all of them kept would take more stack than there is.
#[inline(always)]
fn again<A>(key: &FlowKey<A>) -> &FlowKey<A> {
    core::hint::black_box(key)
}

/// The slot that a new flow takes: a free one, or that of a flow that is missed least. Slots that are busy are somebody
/// else's: taking one fails.
#[inline(always)]
fn spare<A: Address, S: Slots<A>>(slots: S, place: Place, now: u32) -> Chosen {
    let free = candidates(slots, 0, flow_tag::PROTO | flow_tag::BUSY);
    if free == 0 {
        let way = least(slots, place, now);
        return Chosen { way, tag: slots.tag(way) };
    }
    let way = lowest(free);
    // Whoever has taken it since makes `write` fail.
    Chosen { way, tag: slots.tag(way) & !flow_tag::PROTO }
}

/// The slot of a flow that is missed little: one that was never answered or is ending, so that a flood of packets that open
/// flows displaces its own; among these or, without any, among all one that was silent for a while.
#[inline(always)]
fn least<A: Address, S: Slots<A>>(slots: S, place: Place, now: u32) -> u32 {
    let (mut weak, mut old, mut busy) = (0, 0, 0);
    let mut way = 0;
    while way < rolled() {
        weak |= weak_bit(slots.state(way)) << way;
        busy |= ((slots.tag(way) / flow_tag::BUSY) & 1) << way;
        old |= old_bit(seen_of(slots.word(way)), now) << way;
        way += 1;
    }
    let any = (1 << WAYS) - 1;
    // Whoever died with a slot half written has left it busy.
    weak &= !busy;
    old &= !busy;
    let among = if weak & old != 0 {
        weak & old
    } else if weak != 0 {
        weak
    } else if old != 0 {
        old
    } else {
        any
    };
    // Not always the first of them.
    let turn = (now ^ place.wanted >> flow_tag::PRINT_SHIFT) & (WAYS - 1);
    let turned = (among >> turn | among << (WAYS - turn)) & any;
    (lowest(turned) + turn) & (WAYS - 1)
}

/// Ticks for which a flow that is old was silent at least.
const OLD: u32 = 32;

/// 1 if a flow in this state was never answered or is ending. Without a branch, as [`candidates`].
#[inline(always)]
const fn weak_bit(bits: u8) -> u32 {
    const ANSWERED: u32 = state::ESTABLISHED.trailing_zeros();
    const ENDS: [u32; 3] = [
        state::CLIENT_FIN.trailing_zeros(),
        state::BACKEND_FIN.trailing_zeros(),
        state::RESET.trailing_zeros(),
    ];
    let bits = bits as u32;
    ((bits >> ANSWERED ^ 1) | bits >> ENDS[0] | bits >> ENDS[1] | bits >> ENDS[2]) & 1
}

/// 1 if a flow is [`OLD`]. Without a branch, as [`candidates`]: the compiler would make one of a comparison that it sees.
#[inline(always)]
fn old_bit(seen: u32, now: u32) -> u32 {
    // A clock read on another CPU may be a tick ahead.
    let idle = now.wrapping_sub(seen).wrapping_add(1) & (u32::MAX >> 1);
    core::hint::black_box(OLD.wrapping_sub(idle)) >> 31
}

/// The number of slots; the compiler does not know it, and leaves loops that count to it as they are: unrolled, they take more
/// stack than there is where a program's functions call each other.
#[inline(always)]
fn rolled() -> u32 {
    core::hint::black_box(WAYS)
}

/// The slots whose tags have the wanted bits, one bit for each. Without a branch: the verifier follows both ways of
/// each, through all that comes after.
#[inline(always)]
fn candidates<A: Address, S: Slots<A>>(slots: S, wanted: u32, mask: u32) -> u32 {
    let mut found = 0;
    let mut way = 0;
    while way < WAYS {
        // All ones if nothing differs, else below 2^32.
        let differs = u64::from(slots.tag(way) & mask ^ wanted).wrapping_sub(1);
        found |= (differs >> 63) << way;
        way += 1;
    }
    found as u32
}

/// Number of the lowest of eight bits, of which one is set.
#[inline(always)]
fn lowest(bits: u32) -> u32 {
    let bit = bits & bits.wrapping_neg();
    // All ones in the lower seven bits if one of these is set, carried to the eighth.
    let any = |bits: u32| (bits + 0xff) >> 8 & 1;
    any(bit & 0xaa) | any(bit & 0xcc) << 1 | any(bit & 0xf0) << 2
}

#[inline(always)]
const fn word_of(tag: u32, seen: u32) -> u64 {
    if cfg!(target_endian = "little") {
        (seen as u64) << 32 | tag as u64
    } else {
        (tag as u64) << 32 | seen as u64
    }
}

#[inline(always)]
const fn tag_of(word: u64) -> u32 {
    if cfg!(target_endian = "little") { word as u32 } else { (word >> 32) as u32 }
}

#[inline(always)]
const fn seen_of(word: u64) -> u32 {
    if cfg!(target_endian = "little") { (word >> 32) as u32 } else { word as u32 }
}
