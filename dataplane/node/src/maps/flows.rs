//! The flow tables, which programs and user space change at the same time: see [`portolan_core::flows`].

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};

use aya::maps::MapData;
use portolan_abi::{FLOW_WAYS, Flow, FlowBucket, FlowHash, FlowKey, FlowSlot};
use portolan_core::Address;
use portolan_core::flows::{self, Slots, place};

use super::MapError;

/// Buckets that are mapped at once: what is mapped counts as memory of the process, and a whole table is large.
const WINDOW: u32 = 8192;

/// One family's flow table.
#[derive(Debug)]
pub struct FlowTable<A> {
    name: String,
    map: MapData,
    hash: FlowHash,
    types: std::marker::PhantomData<fn() -> A>,
}

impl<A: Address> FlowTable<A> {
    pub(super) fn new(name: &str, map: MapData, hash: FlowHash) -> Result<Self, MapError> {
        let info =
            map.info().map_err(|error| MapError::Aya { table: name.to_owned(), source: Box::new(error) })?;
        let found = (info.key_size() as usize, info.value_size() as usize);
        super::mapped::check_shape(name, found, (4, size_of::<FlowBucket<A>>()))?;
        // A record that does not fit this table would lead beyond its end.
        let hash = FlowHash { buckets: hash.buckets.min(info.max_entries()), ..hash };
        Ok(Self { name: name.to_owned(), map, hash, types: std::marker::PhantomData })
    }

    /// Number of entries there is room for at most. Before that, flows begin to displace others.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.hash.buckets * FLOW_WAYS as u32
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// The kernel refuses to map the table.
    pub fn get(&self, key: &FlowKey<A>) -> Result<Option<Flow<A>>, MapError> {
        let place = place(key, &self.hash);
        let window = self.window(place.bucket, 1)?;
        Ok(flows::find(window.bucket(place.bucket), key, place))
    }

    /// Adds or replaces an entry; one that is missed less makes room if there is none.
    ///
    /// # Errors
    /// As [`get`](Self::get), or [`MapError::Full`] while programs write to the same few slots.
    pub fn insert(&self, key: &FlowKey<A>, flow: &Flow<A>) -> Result<(), MapError> {
        let place = place(key, &self.hash);
        let window = self.window(place.bucket, 1)?;
        if flows::add(window.bucket(place.bucket), (key, flow), place, false) {
            return Ok(());
        }
        Err(MapError::Full { table: self.name.clone() })
    }

    /// [`insert`](Self::insert) for many entries.
    ///
    /// # Errors
    /// As there.
    pub fn insert_all(
        &self,
        entries: impl IntoIterator<Item = (FlowKey<A>, Flow<A>)>,
    ) -> Result<(), MapError> {
        entries.into_iter().try_for_each(|(key, flow)| self.insert(&key, &flow))
    }

    /// Removes an entry; whether it was there.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn remove(&self, key: &FlowKey<A>) -> Result<bool, MapError> {
        self.remove_if(key, None)
    }

    /// Removes an entry unless a packet has refreshed or replaced it meanwhile (cilium#46298); whether it was
    /// removed.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn remove_unchanged(&self, key: &FlowKey<A>, flow: &Flow<A>) -> Result<bool, MapError> {
        self.remove_if(key, Some(flow))
    }

    fn remove_if(&self, key: &FlowKey<A>, known: Option<&Flow<A>>) -> Result<bool, MapError> {
        let place = place(key, &self.hash);
        let window = self.window(place.bucket, 1)?;
        Ok(flows::remove(window.bucket(place.bucket), key, place, known))
    }

    /// All entries, in no order.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn dump(&self) -> Result<Vec<Entry<A>>, MapError> {
        let mut all = Vec::new();
        self.each(|key, flow| all.push((key, flow)))?;
        Ok(all)
    }

    /// Hands every entry to `each`, in no order, without ever holding all of them.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn each(&self, mut each: impl FnMut(FlowKey<A>, Flow<A>)) -> Result<(), MapError> {
        self.sweep(|key, flow| {
            each(*key, *flow);
            Visit::Keep
        })
        .map(drop)
    }

    /// Visits all entries. Those to be removed stay if a packet refreshes or replaces them meanwhile; the number of those removed.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn sweep(&self, mut visit: impl FnMut(&FlowKey<A>, &Flow<A>) -> Visit) -> Result<usize, MapError> {
        let mut removed = 0;
        let mut first = 0;
        while first < self.hash.buckets {
            let count = WINDOW.min(self.hash.buckets - first);
            let window = self.window(first, count)?;
            for bucket in (first..first + count).map(|number| window.bucket(number)) {
                for way in 0..FLOW_WAYS as u32 {
                    let tag = bucket.tag(way);
                    let mut bits = 0;
                    let over = |key: &FlowKey<A>, flow: &Flow<A>| match visit(key, flow) {
                        Visit::Keep => false,
                        Visit::Remove => true,
                        Visit::Mark(marks) => {
                            bits = marks;
                            false
                        }
                    };
                    removed += usize::from(flows::remove_if(bucket, way, over));
                    if bits != 0 && bucket.tag(way) == tag {
                        bucket.mark(way, bits);
                    }
                }
            }
            first += count;
        }
        Ok(removed)
    }

    fn window(&self, first: u32, count: u32) -> Result<Window<A>, MapError> {
        Window::new(&self.map, first, count).map_err(|error| MapError::kernel("mapping", &self.name, error))
    }
}

/// A flow's key and what becomes of its packets.
pub type Entry<A> = (FlowKey<A>, Flow<A>);

/// What [`FlowTable::sweep`] does with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visit {
    /// Nothing.
    Keep,
    /// Removes it.
    Remove,
    /// Adds bits to its [state](portolan_abi::state), where it is. A packet that was reading it just then may take them back.
    Mark(u8),
}

/// Some buckets, mapped.
struct Window<A> {
    base: NonNull<u8>,
    bytes: usize,
    /// Number of the first bucket that is mapped whole, and where it begins.
    first: u32,
    buckets: NonNull<FlowBucket<A>>,
}

impl<A> Window<A> {
    fn new(map: &MapData, first: u32, count: u32) -> io::Result<Self> {
        let stride = size_of::<FlowBucket<A>>();
        let page = rustix::param::page_size();
        let (start, end) = (first as usize * stride, (first as usize + count as usize) * stride);
        let from = start / page * page;
        let bytes = end.next_multiple_of(page) - from;
        let offset = libc::off_t::try_from(from).map_err(io::Error::other)?;
        // SAFETY: a new shared mapping of a descriptor we own; the result is checked. The kernel refuses one that
        // reaches beyond the table.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                offset,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // A mapping never starts at the zero page.
        let base = NonNull::new(base.cast::<u8>()).unwrap_or(NonNull::dangling());
        // SAFETY: the first bucket begins inside of the mapping, at a multiple of its size from the table's start.
        let buckets = unsafe { base.add(start - from) }.cast();
        Ok(Self { base, bytes, first, buckets })
    }

    /// A bucket of the window, by its number in the table.
    fn bucket(&self, number: u32) -> Bucket<'_, A> {
        let index = (number - self.first) as usize;
        assert!(
            (index + 1) * size_of::<FlowBucket<A>>() <= self.bytes,
            "bucket {number} is not in the window"
        );
        // SAFETY: the index was just compared with the mapping.
        let start = unsafe { self.buckets.add(index) };
        Bucket { start: start.cast(), window: std::marker::PhantomData }
    }
}

impl<A> Drop for Window<A> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and buckets borrow from it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// A bucket of a window.
struct Bucket<'a, A> {
    start: NonNull<FlowSlot<A>>,
    window: std::marker::PhantomData<&'a Window<A>>,
}

impl<A> Clone for Bucket<'_, A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for Bucket<'_, A> {}

impl<A: Address> Bucket<'_, A> {
    fn slot(self, way: u32) -> *mut FlowSlot<A> {
        // SAFETY: the slot is inside of the bucket.
        unsafe { self.start.as_ptr().add(way as usize % FLOW_WAYS) }
    }

    fn atomic(&self, way: u32) -> &AtomicU64 {
        // SAFETY: tag and time are one aligned word of the mapping, and everybody who changes it while others may does so
        // atomically or by single stores to its halves.
        unsafe { AtomicU64::from_ptr((&raw mut (*self.slot(way)).tag).cast()) }
    }

    /// Adds bits to the state of a slot.
    fn mark(self, way: u32, bits: u8) {
        // SAFETY: the byte is inside of the mapping, and everybody who changes it does so by single stores.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.slot(way)).flow.state) }.fetch_or(bits, Ordering::SeqCst);
    }

    /// A copy of a field, which somebody may write at the same time: the slot's tag tells. `field` is given a slot inside of
    /// the bucket and returns a place inside of that.
    fn read<T: Copy>(self, way: u32, field: impl FnOnce(*const FlowSlot<A>) -> *const T) -> T {
        // SAFETY: see above; every bit pattern of plain data is valid.
        let value = unsafe { field(self.slot(way)).read_volatile() };
        fence(Ordering::Acquire);
        value
    }
}

/// The place of a field of a slot that a pointer leads to.
macro_rules! field {
    ($($name:ident).+) => {
        // SAFETY: only the place is computed; the slot is inside of its bucket.
        |slot: *const FlowSlot<A>| unsafe { &raw const (*slot).$($name).+ }
    };
}

impl<A: Address> Slots<A> for Bucket<'_, A> {
    fn word(self, way: u32) -> u64 {
        self.atomic(way).load(Ordering::Acquire)
    }

    fn tag(self, way: u32) -> u32 {
        self.read(way, field!(tag))
    }

    fn key(self, way: u32) -> (A, A, u32) {
        (self.read(way, field!(src)), self.read(way, field!(dst)), self.read(way, field!(ports)))
    }

    fn is_of(self, way: u32, key: &FlowKey<A>) -> bool {
        self.key(way) == (key.src, key.dst, key.ports)
    }

    fn state(self, way: u32) -> u8 {
        self.read(way, field!(flow.state))
    }

    fn flow(self, way: u32) -> Flow<A> {
        self.read(way, field!(flow))
    }

    fn exchange(self, way: u32, old: u64, new: u64) -> bool {
        self.atomic(way).compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn publish(self, way: u32, word: u64) {
        self.atomic(way).swap(word, Ordering::SeqCst);
    }

    fn fill(self, way: u32, key: &FlowKey<A>, flow: &Flow<A>) {
        let slot = self.slot(way);
        // SAFETY: the slot is inside of the mapping, and busy: nobody else writes or reads it. Field by field, because the
        // first one is in the word.
        unsafe {
            (&raw mut (*slot).src).write_volatile(key.src);
            (&raw mut (*slot).dst).write_volatile(key.dst);
            (&raw mut (*slot).ports).write_volatile(key.ports);
            let busy = (&raw const (*slot).flow.seen).read_volatile();
            (&raw mut (*slot).flow).write_volatile(Flow { seen: busy, ..*flow });
        }
    }
}

#[cfg(test)]
mod tests;
