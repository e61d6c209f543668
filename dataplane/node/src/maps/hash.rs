//! Hash tables, with the batch operations that aya lacks.

use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::MapData;

use super::MapError;
use crate::sys;

/// Elements written by one system call. More gain nothing, and a call must not hold the CPU for long.
const CHUNK: usize = 4096;

/// A hash table or LRU hash table of `K` → `V`.
#[derive(Debug)]
pub struct Hash<K, V> {
    name: String,
    map: MapData,
    capacity: u32,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Copy, V: Copy> Hash<K, V> {
    pub(super) fn new(name: &str, map: MapData) -> Result<Self, MapError> {
        let info =
            map.info().map_err(|error| MapError::Aya { table: name.to_owned(), source: Box::new(error) })?;
        let found = (info.key_size() as usize, info.value_size() as usize);
        super::mapped::check_shape(name, found, (size_of::<K>(), size_of::<V>()))?;
        Ok(Self { name: name.to_owned(), capacity: info.max_entries(), map, types: PhantomData })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.map.fd().as_fd()
    }

    /// How many elements fit.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Reads an element.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn get(&self, key: &K) -> Result<Option<V>, MapError> {
        sys::lookup(self.fd(), key).map_err(|error| MapError::kernel("reading", &self.name, error))
    }

    /// Adds or replaces an element.
    ///
    /// # Errors
    /// [`MapError::Full`], or the kernel refuses.
    pub fn insert(&self, key: &K, value: &V) -> Result<(), MapError> {
        sys::update(self.fd(), key, value).map_err(|error| MapError::kernel("writing", &self.name, error))
    }

    /// Removes an element; whether it was there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove(&self, key: &K) -> Result<bool, MapError> {
        sys::delete(self.fd(), key).map_err(|error| MapError::kernel("deleting from", &self.name, error))
    }

    /// Adds or replaces many elements.
    ///
    /// # Errors
    /// As [`insert`](Self::insert); the first number says how many elements were written before.
    pub fn insert_all(&self, keys: &[K], values: &[V]) -> Result<(), (usize, MapError)> {
        let mut written = 0;
        for (keys, values) in keys.chunks(CHUNK).zip(values.chunks(CHUNK)) {
            sys::update_batch(self.fd(), keys, values).map_err(|(count, error)| {
                (written + count, MapError::kernel("writing", &self.name, error))
            })?;
            written += keys.len();
        }
        Ok(())
    }

    /// Removes many elements; those that are not there are skipped.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove_all(&self, keys: &[K]) -> Result<(), MapError> {
        for keys in keys.chunks(CHUNK) {
            sys::delete_batch(self.fd(), keys)
                .map_err(|error| MapError::kernel("deleting from", &self.name, error))?;
        }
        Ok(())
    }

    /// All elements, in no order.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn dump(&self) -> Result<Vec<(K, V)>, MapError> {
        let mut all = Vec::new();
        self.each(|key, value| all.push((key, value)))?;
        Ok(all)
    }

    /// Hands every element to `each`, in no order, without ever holding all of them.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn each(&self, each: impl FnMut(K, V)) -> Result<(), MapError> {
        sys::dump(self.fd(), each).map_err(|error| MapError::kernel("dumping", &self.name, error))
    }
}
