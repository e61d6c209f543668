//! The memory of the flow tables: see `portolan_core::flows` for who may do what with it.

use core::arch::asm;
use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xchg};
use core::ptr::{null_mut, read_volatile};

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use portolan_abi::{BEAT, FLOW_WAYS, Flow, FlowBucket, FlowKey, FlowSlot, Words};
use portolan_core::flows::{self, ATTEMPTS, Chosen, Place, Slots, place, search};
use portolan_core::wire::proto;
use portolan_core::{Address, V4, V6};

use crate::maps::{FLOW_HASH, Kernel};

const _: () = assert!(FLOW_WAYS == 8);

/// A bucket of a flow table.
pub struct Bucket<A>(*mut FlowBucket<A>);

impl<A> Clone for Bucket<A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for Bucket<A> {}

/// The bucket of a flow.
#[inline(always)]
fn bucket<F: Kernel>(key: &FlowKey<F::Addr>) -> Option<(Bucket<F::Addr>, Place)> {
    // SAFETY: the record lives as long as the map, and does not change once programs are loaded.
    let hash = unsafe { *FLOW_HASH.get_ptr(0)? };
    let place = place(key, &hash);
    Some((Bucket(F::flows().get_ptr_mut(place.bucket)?), place))
}

/// The slot of a flow, looked up in place; null if there is none.
#[inline(always)]
pub fn slot_in_place<F: Kernel>(key: &FlowKey<F::Addr>) -> *mut FlowSlot<F::Addr> {
    let Some((bucket, place)) = bucket::<F>(key) else { return null_mut() };
    match search(bucket, key, place) {
        Some((way, _)) => bucket.slot(way),
        None => null_mut(),
    }
}

/// The number of a flow's slot in its table, or [`NOWHERE`].
#[inline(always)]
fn find<F: Kernel>(key: *const FlowKey<F::Addr>) -> u32 {
    // SAFETY: as in `choose`.
    let Some(key) = (unsafe { key.as_ref() }) else { return NOWHERE };
    let Some((bucket, place)) = bucket::<F>(key) else { return NOWHERE };
    match search(bucket, key, place) {
        Some((way, _)) => place.bucket * FLOW_WAYS as u32 + way,
        None => NOWHERE,
    }
}

/// The slot of a flow; null if there is none.
#[inline(always)]
pub fn slot<F: Functions>(key: &FlowKey<F::Addr>) -> *mut FlowSlot<F::Addr> {
    let number = F::find_slot(key);
    if number == NOWHERE {
        return null_mut();
    }
    match F::flows().get_ptr_mut(number / FLOW_WAYS as u32) {
        Some(bucket) => Bucket(bucket).slot(number),
        None => null_mut(),
    }
}

/// What [`find`] says where there is no slot.
const NOWHERE: u32 = u32::MAX;
/// What [`choose`] says where there is no slot: no tag is busy alone.
const NONE: u64 = u64::MAX;

/// What an entry may take the place of.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// One of the same key.
    Any = 0,
    /// One of the same key that yields.
    New = 1,
    /// As [`New`](Self::New), if no socket of the host takes what has its key.
    Unbound = 2,
}

/// `BPF_F_CURRENT_NETNS`: that of the packet's device.
const THIS_NAMESPACE: u64 = -1i64 as u64;

/// Whether a socket of the host takes packets of this flow.
#[inline(always)]
fn is_bound<A>(skb: *mut __sk_buff, key: &FlowKey<A>) -> bool {
    // A flow's key begins as the kernel's `bpf_sock_tuple` is.
    let len = 2 * size_of::<A>() as u32 + 4;
    let tuple = (&raw const *key).cast_mut().cast();
    // SAFETY: the context is the program's own; the helpers read the bytes before the protocol. What they return is given back
    // at once.
    unsafe {
        let socket = match key.proto as u8 {
            proto::TCP => bpf_skc_lookup_tcp(skb.cast(), tuple, len, THIS_NAMESPACE, 0),
            proto::UDP => bpf_sk_lookup_udp(skb.cast(), tuple, len, THIS_NAMESPACE, 0),
            _ => return false,
        };
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket.cast());
    }
    true
}

/// The slot to write a flow to, and its tag in the upper half; or [`NONE`].
#[inline(always)]
pub fn choose<F: Kernel>(
    skb: *mut __sk_buff,
    key: *const FlowKey<F::Addr>,
    flow: *const Flow<F::Addr>,
    entry: u32,
) -> u64 {
    // SAFETY: callers pass references; the verifier checks the size of what is behind them.
    let (Some(key), Some(flow)) = (unsafe { (key.as_ref(), flow.as_ref()) }) else { return NONE };
    if entry == Entry::Unbound as u32 && is_bound(skb, key) {
        return NONE;
    }
    let Some((bucket, place)) = bucket::<F>(key) else { return NONE };
    match flows::choose(bucket, (key, flow), place, entry != Entry::Any as u32) {
        Some(Chosen { way, tag }) => u64::from(tag) << 32 | u64::from(way),
        None => NONE,
    }
}

/// Writes a flow to a slot; 1 if it was written.
#[inline(always)]
pub fn write<F: Kernel>(key: *const FlowKey<F::Addr>, flow: *const Flow<F::Addr>, chosen: u64) -> u32 {
    // SAFETY: as in `choose`.
    let (Some(key), Some(flow)) = (unsafe { (key.as_ref(), flow.as_ref()) }) else { return 0 };
    let Some((bucket, place)) = bucket::<F>(key) else { return 0 };
    let chosen = Chosen { way: chosen as u32 % FLOW_WAYS as u32, tag: (chosen >> 32) as u32 };
    u32::from(flows::write(bucket, (key, flow), place, chosen))
}

/// Adds a flow, or replaces one; whether it was written.
#[inline(always)]
pub fn add<F: Functions>(
    skb: *mut __sk_buff,
    key: &FlowKey<F::Addr>,
    flow: &Flow<F::Addr>,
    entry: Entry,
) -> bool {
    let mut attempt = 0;
    while attempt < attempts() {
        let chosen = F::choose_slot(skb, key, flow, entry as u32);
        if chosen == NONE {
            return false;
        }
        if F::write_slot(key, flow, chosen) {
            return true;
        }
        attempt += 1;
    }
    false
}

/// [`ATTEMPTS`], by an instruction that the compiler cannot see through: it would unroll the loop, and the verifier follow every
/// copy.
#[inline(always)]
fn attempts() -> u32 {
    let attempts: u64;
    // SAFETY: the instruction sets the one register.
    unsafe { asm!("{0} = {1}", out(reg) attempts, const ATTEMPTS, options(pure, nomem, nostack)) };
    attempts as u32
}

/// The functions of one family that are not inlined: there is no stack for them where they are called.
pub trait Functions: Kernel {
    /// See [`find`].
    fn find_slot(key: &FlowKey<Self::Addr>) -> u32;
    /// See [`choose`].
    fn choose_slot(
        skb: *mut __sk_buff,
        key: &FlowKey<Self::Addr>,
        flow: &Flow<Self::Addr>,
        entry: u32,
    ) -> u64;
    /// See [`write`].
    fn write_slot(key: &FlowKey<Self::Addr>, flow: &Flow<Self::Addr>, chosen: u64) -> bool;
}

/// Those of one family. Global functions, which the verifier looks at once for themselves and not once for each call, in each of
/// the many states in which that is reached. They take and return numbers and pointers to plain data only, which may be null.
macro_rules! functions {
    ($family:ty, $addr:ty, $slot:ident, $choose:ident, $write:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $slot(key: *const FlowKey<$addr>) -> u32 {
            find::<$family>(key)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $choose(
            skb: *mut __sk_buff,
            key: *const FlowKey<$addr>,
            flow: *const Flow<$addr>,
            entry: u32,
        ) -> u64 {
            choose::<$family>(skb, key, flow, entry)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $write(key: *const FlowKey<$addr>, flow: *const Flow<$addr>, chosen: u64) -> u32 {
            write::<$family>(key, flow, chosen)
        }

        impl Functions for $family {
            #[inline(always)]
            fn find_slot(key: &FlowKey<$addr>) -> u32 {
                $slot(key)
            }

            #[inline(always)]
            fn choose_slot(skb: *mut __sk_buff, key: &FlowKey<$addr>, flow: &Flow<$addr>, entry: u32) -> u64 {
                $choose(skb, key, flow, entry)
            }

            #[inline(always)]
            fn write_slot(key: &FlowKey<$addr>, flow: &Flow<$addr>, chosen: u64) -> bool {
                $write(key, flow, chosen) != 0
            }
        }
    };
}

functions!(V4, Words<1>, find_slot_v4, choose_slot_v4, write_slot_v4);
functions!(V6, Words<4>, find_slot_v6, choose_slot_v6, write_slot_v6);

/// The time in beats.
#[inline(always)]
pub fn beat() -> u8 {
    // SAFETY: the helper has no precondition. The verifier puts a load in its place.
    (unsafe { bpf_jiffies64() } >> BEAT) as u8
}

impl<A> Bucket<A> {
    /// A slot; `way` is taken modulo their number. By an instruction that the compiler cannot leave out where it sees that it
    /// changes nothing: the verifier of Linux 6.1 does not see that.
    #[inline(always)]
    pub fn slot(self, way: u32) -> *mut FlowSlot<A> {
        let mut way = u64::from(way);
        // SAFETY: the instruction changes the one register; the index is below the length then.
        unsafe {
            asm!("{0} &= 7", inout(reg) way, options(pure, nomem, nostack));
            self.0.cast::<FlowSlot<A>>().add(way as usize)
        }
    }

    /// The word of tag and time.
    #[inline(always)]
    fn place_of_word(self, way: u32) -> *mut u64 {
        // SAFETY: `slot` is inside of the bucket.
        unsafe { (&raw mut (*self.slot(way)).tag).cast() }
    }
}

// SAFETY (of the blocks below): slots are inside of their bucket, which lives as long as the map; every field is aligned and
// read and written whole.
impl<A: Address> Slots<A> for Bucket<A> {
    #[inline(always)]
    fn word(self, way: u32) -> u64 {
        // SAFETY: see above.
        unsafe { read_volatile(self.place_of_word(way)) }
    }

    #[inline(always)]
    fn tag(self, way: u32) -> u32 {
        // SAFETY: see above.
        unsafe { read_volatile(&raw const (*self.slot(way)).tag) }
    }

    #[inline(always)]
    fn key(self, way: u32) -> (A, A, u32) {
        let slot = self.slot(way);
        // SAFETY: see above.
        unsafe { ((*slot).src, (*slot).dst, read_volatile(&raw const (*slot).ports)) }
    }

    #[inline(always)]
    fn is_of(self, way: u32, key: &FlowKey<A>) -> bool {
        let slot = self.slot(way);
        // SAFETY: see above.
        unsafe {
            (*slot).src.differs(&key.src) | (*slot).dst.differs(&key.dst) | ((*slot).ports ^ key.ports) == 0
        }
    }

    #[inline(always)]
    fn state(self, way: u32) -> u8 {
        // SAFETY: see above.
        unsafe { read_volatile(&raw const (*self.slot(way)).flow.state) }
    }

    #[inline(always)]
    fn flow(self, way: u32) -> Flow<A> {
        // SAFETY: see above.
        unsafe { (*self.slot(way)).flow }
    }

    #[inline(always)]
    fn exchange(self, way: u32, old: u64, new: u64) -> bool {
        let place = self.place_of_word(way);
        // SAFETY: see above.
        unsafe {
            atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(place, old, new).1
        }
    }

    #[inline(always)]
    fn publish(self, way: u32, word: u64) {
        // SAFETY: see above.
        unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(self.place_of_word(way), word) };
    }

    #[inline(always)]
    fn fill(self, way: u32, key: &FlowKey<A>, flow: &Flow<A>) {
        let slot = self.slot(way);
        // SAFETY: see above. The slot is busy: it is ours until it is published.
        unsafe {
            (*slot).src = key.src;
            (*slot).dst = key.dst;
            (*slot).ports = key.ports;
            let place = &raw mut (*slot).flow;
            (*place).src = flow.src;
            (*place).dst = flow.dst;
            (*place).ports = flow.ports;
            (*place).ifindex = flow.ifindex;
            (*place).mac = flow.mac;
            (*place).exit = flow.exit;
            (*place).state = flow.state;
            (*place).service = flow.service;
            (*place).backend = flow.backend;
            (*place).from_ifindex = flow.from_ifindex;
            (*place).from_mac = flow.from_mac;
            (*place).from = flow.from;
            (*place).beat = beat();
        }
    }
}
