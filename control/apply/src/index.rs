//! Which indexes of an array are in use.

use std::collections::BTreeSet;

/// Hands out indexes `0..capacity`, lowest first.
#[derive(Debug)]
pub(crate) struct IndexPool {
    capacity: u32,
    /// All indexes from here on are free.
    fresh: u32,
    /// Free ones below.
    returned: BTreeSet<u32>,
}

impl IndexPool {
    pub(crate) fn new(capacity: u32) -> Self {
        Self { capacity, fresh: 0, returned: BTreeSet::new() }
    }

    /// A free index; `None` when all are in use.
    pub(crate) fn take(&mut self) -> Option<u32> {
        if let Some(index) = self.returned.pop_first() {
            return Some(index);
        }
        let index = self.fresh;
        (index < self.capacity).then(|| {
            self.fresh += 1;
            index
        })
    }

    /// Takes a certain index, found in use in the kernel. Indexes are reserved before any is given back.
    pub(crate) fn reserve(&mut self, index: u32) {
        if index >= self.fresh {
            self.returned.extend(self.fresh..index);
            self.fresh = index + 1;
        } else {
            self.returned.remove(&index);
        }
    }

    /// Gives an index back.
    pub(crate) fn give(&mut self, index: u32) {
        debug_assert!(index < self.fresh && !self.returned.contains(&index), "index {index} was free");
        self.returned.insert(index);
    }

    /// How many can be taken.
    pub(crate) fn free(&self) -> u32 {
        self.capacity - self.used()
    }

    /// How many are in use or rest.
    pub(crate) fn used(&self) -> u32 {
        self.fresh - self.returned.len() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_given_to_one_only_until_it_comes_back() {
        let mut pool = IndexPool::new(3);
        assert_eq!([pool.take(), pool.take(), pool.take(), pool.take()], [Some(0), Some(1), Some(2), None]);
        pool.give(1);
        assert_eq!(pool.used(), 2);
        assert_eq!((pool.take(), pool.take()), (Some(1), None));
    }

    #[test]
    fn reserved_indexes_are_passed_over() {
        let mut pool = IndexPool::new(5);
        pool.reserve(3);
        pool.reserve(1);
        assert_eq!(pool.used(), 2);
        assert_eq!([pool.take(), pool.take(), pool.take(), pool.take()], [Some(0), Some(2), Some(4), None]);
    }
}
