//! Arrays that user space reads and writes through a memory mapping: no system call for a change.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::MapData;
use portolan_abi::{Ring, Service};

use super::MapError;

/// An array of `T`, mapped. Programs read it at the same time: see each writer's contract.
#[derive(Debug)]
pub struct Mapped<T> {
    name: String,
    base: NonNull<u8>,
    bytes: usize,
    stride: usize,
    len: u32,
    /// Keeps the table alive.
    _map: MapData,
    types: PhantomData<T>,
}

// SAFETY: the mapping belongs to this value alone and is not tied to a thread. Writing needs `&mut self`; reading
// beside the kernel is by volatile copies of plain data, of which every bit pattern is valid.
unsafe impl<T: Send> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Mapped<T> {}

impl<T: Copy> Mapped<T> {
    pub(crate) fn new(name: &str, map: MapData) -> Result<Self, MapError> {
        // The kernel rounds elements up to eight bytes.
        let stride = size_of::<T>().next_multiple_of(8);
        Self::map(name, map, size_of::<T>(), stride, 1)
    }

    fn map(name: &str, map: MapData, value: usize, stride: usize, each: u32) -> Result<Self, MapError> {
        let info =
            map.info().map_err(|error| MapError::Aya { table: name.to_owned(), source: Box::new(error) })?;
        check_shape(name, (info.key_size() as usize, info.value_size() as usize), (4, value))?;
        let len = info.max_entries() * each;
        let bytes = stride * len as usize;
        // SAFETY: a new shared mapping of a descriptor we own; the result is checked. The kernel refuses one that
        // is longer than the table rounded up to a page.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(MapError::kernel("mapping", name, io::Error::last_os_error()));
        }
        // A mapping never starts at the zero page.
        let base = NonNull::new(base.cast()).unwrap_or(NonNull::dangling());
        Ok(Self { name: name.to_owned(), base, bytes, stride, len, _map: map, types: PhantomData })
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there is no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Name of the table.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn place(&self, index: u32) -> *mut T {
        assert!(index < self.len, "index {index} in table {} of {} elements", self.name, self.len);
        // SAFETY: the index is within the mapping, and the stride keeps elements aligned.
        unsafe { self.base.as_ptr().add(self.stride * index as usize).cast() }
    }

    /// A copy of an element. Fields that programs write may be newer than others.
    ///
    /// # Panics
    /// The index is beyond the table.
    #[must_use]
    pub fn read(&self, index: u32) -> T {
        // SAFETY: `place` is inside of the mapping; `T` is plain data.
        unsafe { self.place(index).read_volatile() }
    }

    /// Writes an element by plain stores: packets may see half of it. Only for elements that no packet can reach.
    ///
    /// # Panics
    /// The index is beyond the table.
    pub fn write(&mut self, index: u32, value: T) {
        // SAFETY: as in `read`.
        unsafe { self.place(index).write_volatile(value) }
    }
}

impl Mapped<u32> {
    /// A table of arrays of words as one flat array.
    pub(super) fn flat(name: &str, map: MapData) -> Result<Self, MapError> {
        let line = portolan_abi::SLAB_LINE;
        Self::map(name, map, line * 4, 4, line as u32)
    }

    /// Writes consecutive words; only where no ring lies that packets can reach.
    ///
    /// # Panics
    /// The range is beyond the table.
    pub fn fill(&mut self, offset: u32, words: &[u32]) {
        let end = offset as usize + words.len();
        assert!(end <= self.len as usize, "slots {offset}..{end} in a slab of {}", self.len);
        // SAFETY: the range was just compared with the mapping; it is aligned, and ours alone by contract.
        unsafe {
            let place = self.base.as_ptr().add(4 * offset as usize).cast();
            std::ptr::copy_nonoverlapping(words.as_ptr(), place, words.len());
        }
    }

    /// Copies consecutive words.
    ///
    /// # Panics
    /// The range is beyond the table.
    #[must_use]
    pub fn slice(&self, offset: u32, len: u32) -> Vec<u32> {
        (offset..offset + len).map(|slot| self.read(slot)).collect()
    }
}

/// Which ring of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// Backends anywhere.
    Cluster,
    /// Backends on this node.
    Local,
}

impl Mapped<Service> {
    /// Publishes a ring by one store: a packet sees the old ring or the new one. Everything the ring names must
    /// have been written before.
    pub fn publish(&mut self, index: u32, set: Set, ring: Ring) {
        let place = self.place(index);
        // SAFETY: both rings are aligned 64-bit words inside of the mapping, and are only accessed atomically
        // after the service was published.
        let word = unsafe {
            AtomicU64::from_ptr(match set {
                Set::Cluster => &raw mut (*place).cluster.0,
                Set::Local => &raw mut (*place).local.0,
            })
        };
        word.store(ring.0, Ordering::Release);
    }

    /// Changes flags and affinity of a service that packets may be using. Single stores.
    pub fn configure(&mut self, index: u32, flags: u32, affinity: u32) {
        let place = self.place(index);
        // SAFETY: aligned words inside of the mapping.
        unsafe {
            (&raw mut (*place).flags).write_volatile(flags);
            (&raw mut (*place).affinity).write_volatile(affinity);
        }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing borrows from it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Compares sizes of key and value with this version's.
pub(super) fn check_shape(
    name: &str,
    found: (usize, usize),
    expected: (usize, usize),
) -> Result<(), MapError> {
    if found == expected {
        return Ok(());
    }
    let say = |(key, value): (usize, usize)| format!("keys of {key} and values of {value} bytes");
    Err(MapError::Shape {
        table: name.to_owned(),
        found: say(found),
        expected: say(expected),
        path: PathBuf::from(name),
    })
}
