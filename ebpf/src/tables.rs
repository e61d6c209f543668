//! [`Tables`] on the kernel's maps and helpers.

use core::intrinsics::{AtomicOrdering, atomic_xadd};
use core::ptr::read_volatile;

use aya_ebpf::bindings::bpf_check_mtu_flags::BPF_MTU_CHK_SEGS;
use aya_ebpf::bindings::{__sk_buff, bpf_fib_lookup as FibLookup};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::{bpf_check_mtu, bpf_fib_lookup};
use portolan_abi::{
    Affinity, AffinityKey, Backend, Config, Endpoint, Flow, FlowKey, FlowSlot, Fragment, FragmentKey,
    Frontend, FrontendKey, Realm, Ring, SLAB_LINE, Service,
};
use portolan_core::{Tables, V4, V6};

use crate::flows::{self, Entry, Functions, beat};
use crate::maps::{CONFIG, SERVICES_ALL, SLAB, Source};

/// Address families as the route look-up names them.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `BPF_FIB_LKUP_RET_SUCCESS`, `…_NO_NEIGH` and `…_FRAG_NEEDED`: all name the interface. A packet that is too big for
/// it is not the look-up's business: the flow has a route.
const FIB_SUCCESS: i64 = 0;
const FIB_NO_NEIGH: i64 = 7;
const FIB_FRAG_NEEDED: i64 = 8;

/// The maps, seen from one packet. On the `SHORT` way flows are looked up in place; elsewhere by a function of its own,
/// for want of stack.
#[derive(Clone, Copy)]
pub struct Maps<const SHORT: bool> {
    skb: *mut __sk_buff,
}

impl<const SHORT: bool> Maps<SHORT> {
    /// For the packet of a classifier's context.
    #[inline(always)]
    pub fn new(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }

    /// For a system call, which asks neither for routes nor for what fits an interface.
    #[inline(always)]
    pub fn without_packet() -> Self {
        Self { skb: core::ptr::null_mut() }
    }
}

/// A route look-up for one family.
pub trait Route: Functions {
    /// Fills the addresses into the kernel's parameters.
    fn fill(params: &mut FibLookup, src: &Self::Addr, dst: &Self::Addr);
}

impl Route for V4 {
    #[inline(always)]
    fn fill(params: &mut FibLookup, src: &Self::Addr, dst: &Self::Addr) {
        params.family = AF_INET;
        params.__bindgen_anon_3.ipv4_src = src.0[0];
        params.__bindgen_anon_4.ipv4_dst = dst.0[0];
    }
}

impl Route for V6 {
    #[inline(always)]
    fn fill(params: &mut FibLookup, src: &Self::Addr, dst: &Self::Addr) {
        params.family = AF_INET6;
        params.__bindgen_anon_3.ipv6_src = src.0;
        params.__bindgen_anon_4.ipv6_dst = dst.0;
    }
}

impl<F: Route, const SHORT: bool> Tables<F> for Maps<SHORT> {
    type Entry = *mut FlowSlot<F::Addr>;

    #[inline(always)]
    fn config(&self) -> Option<Config> {
        // SAFETY: the record lives as long as the map; words are read whole.
        CONFIG.get_ptr(0).map(|config| unsafe { *config })
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey<F::Addr>) -> Option<Frontend> {
        // SAFETY: the value is copied at once; an entry that is replaced meanwhile stays readable until RCU's
        // grace period is over.
        F::frontends().get_ptr(key).map(|value| unsafe { *value })
    }

    #[inline(always)]
    fn admits(&self, service: u32, client: &F::Addr) -> bool {
        let bits = 8 * size_of::<Source<F::Addr>>() as u32;
        F::sources().get(&Key::new(bits, Source { service, addr: *client })).is_some()
    }

    #[inline(always)]
    fn service(&self, index: u32) -> Option<Service> {
        let place = SERVICES_ALL.get_ptr(index)?;
        // SAFETY: array elements live as long as the map. A ring is published by one 64-bit store, so it must be
        // read by one load, which only a volatile read guarantees here.
        unsafe {
            Some(Service {
                cluster: Ring(read_volatile(&raw const (*place).cluster.0)),
                local: Ring(read_volatile(&raw const (*place).local.0)),
                picked: 0,
                flags: (*place).flags,
                affinity: (*place).affinity,
            })
        }
    }

    #[inline(always)]
    fn slot(&self, slot: u32) -> Option<u32> {
        let line = SLAB.get_ptr(slot / SLAB_LINE as u32)?;
        // SAFETY: the remainder is below the length of the line.
        Some(unsafe { (*line)[slot as usize % SLAB_LINE] })
    }

    #[inline(always)]
    fn backend(&self, index: u32) -> Option<Backend<F::Addr>> {
        let place = F::backends().get_ptr(index)?;
        // SAFETY: array elements live as long as the map. A record is written only while no ring names it. Field by
        // field, because a copy of the whole goes through the stack.
        unsafe {
            Some(Backend { picked: 0, addr: (*place).addr, port: (*place).port, flags: (*place).flags })
        }
    }

    #[inline(always)]
    fn endpoint(&self, addr: &F::Addr) -> Option<Endpoint> {
        // SAFETY: as in `frontend`.
        F::endpoints().get_ptr(addr).map(|endpoint| unsafe { *endpoint })
    }

    #[inline(always)]
    fn realm(&self, addr: &F::Addr) -> Option<Realm> {
        let bits = 8 * size_of::<F::Addr>() as u32;
        F::realms().get(&Key::new(bits, *addr)).copied()
    }

    #[inline(always)]
    fn route(&self, src: &F::Addr, dst: &F::Addr) -> Option<u32> {
        // Built from words: a zeroed struct would become a loop of byte stores.
        let mut words = [0u64; size_of::<FibLookup>() / 8];
        let params = (&raw mut words).cast::<FibLookup>();
        // SAFETY: the words have the size of the parameters and at least their alignment, and zero is valid for
        // every field; the context is the program's own.
        let status = unsafe {
            (*params).ifindex = (*self.skb).ifindex;
            F::fill(&mut *params, src, dst);
            bpf_fib_lookup(self.skb.cast(), params, size_of::<FibLookup>() as i32, 0)
        };
        if status != FIB_SUCCESS && status != FIB_NO_NEIGH && status != FIB_FRAG_NEEDED {
            return None;
        }
        // SAFETY: as above.
        Some(unsafe { (*params).ifindex })
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey<F::Addr>) -> Option<Affinity> {
        // SAFETY: as in `flow`: an element that is recycled while it is copied sends one client elsewhere.
        F::affinity().get_ptr(key).map(|memory| unsafe { *memory })
    }

    #[inline(always)]
    fn remember(&self, key: &AffinityKey<F::Addr>, affinity: &Affinity) {
        // What the table does not take is not remembered: the client is balanced like any other.
        let _ = F::affinity().insert(key, affinity, 0);
    }

    #[inline(always)]
    fn fits(&self, ifindex: u32, _len: u32) -> bool {
        let mut mtu = 0u32;
        // SAFETY: the context is the program's own; the helper writes the one word. It knows the segments of a packet
        // that is still to be cut, whose length says nothing.
        let status =
            unsafe { bpf_check_mtu(self.skb.cast(), ifindex, &raw mut mtu, 0, u64::from(BPF_MTU_CHK_SEGS)) };
        // Errors are negative: an interface that is gone, say.
        status <= 0
    }

    #[inline(always)]
    fn mtu(&self, ifindex: u32) -> u32 {
        let mut mtu = 0u32;
        // SAFETY: as in `fits`. The helper writes the interface's MTU whatever it says of the packet.
        unsafe { bpf_check_mtu(self.skb.cast(), ifindex, &raw mut mtu, 0, 0) };
        mtu
    }

    #[inline(always)]
    fn segment(&self) -> u32 {
        // SAFETY: the context is valid for the whole run.
        unsafe { (*self.skb).gso_size }
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey<F::Addr>) -> Option<(Flow<F::Addr>, Self::Entry)> {
        let slot = if SHORT { flows::slot_in_place::<F>(key) } else { flows::slot::<F>(key) };
        // SAFETY: slots live as long as the map. One that is given to another flow while it is copied makes one packet go
        // astray, as the loss of its own entry would.
        (!slot.is_null()).then(|| (unsafe { (*slot).flow }, slot))
    }

    #[inline(always)]
    fn update(&self, entry: Self::Entry, state: u8, seen: u32) {
        // SAFETY: slots live as long as the map. Single stores; the last writer wins. One that was given to another flow a
        // moment ago gets a wrong state, as that flow's own next packet would have given it.
        unsafe {
            (*entry).flow.state = state;
            (*entry).flow.seen = seen;
            (*entry).flow.beat = beat();
        }
    }

    #[inline(always)]
    fn claim(&self, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> bool {
        flows::add::<F>(self.skb, key, flow, Entry::New)
    }

    #[inline(always)]
    fn claim_free(&self, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> bool {
        flows::add::<F>(self.skb, key, flow, Entry::Unbound)
    }

    #[inline(always)]
    fn put(&self, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> bool {
        flows::add::<F>(self.skb, key, flow, Entry::Any)
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey<F::Addr>) -> Option<Fragment<F::Addr>> {
        // SAFETY: as in `flow`.
        F::fragments().get_ptr(key).map(|fragment| unsafe { *fragment })
    }

    #[inline(always)]
    fn keep(&self, key: &FragmentKey<F::Addr>, fragment: &Fragment<F::Addr>) {
        // What the table does not take is not remembered: the packet's other pieces are of no flow.
        let _ = F::fragments().insert(key, fragment, 0);
    }

    #[inline(always)]
    fn picked(&self, service: u32, backend: u32) {
        if let Some(place) = SERVICES_ALL.get_ptr_mut(service) {
            add_one(unsafe { &raw mut (*place).picked });
        }
        if let Some(place) = F::backends().get_ptr_mut(backend) {
            add_one(unsafe { &raw mut (*place).picked });
        }
    }
}

#[inline(always)]
fn add_one(counter: *mut u64) {
    // SAFETY: the counter is an aligned word of an array element, which lives as long as the map.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, 1) };
}
