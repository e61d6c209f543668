//! Where in the slab each ring lies: a first-fit allocator of slot ranges, in user space only.

use std::collections::{BTreeMap, BTreeSet};

/// Free ranges of the slab. Pure bookkeeping: it never touches the slab itself.
#[derive(Debug, Clone)]
pub struct Slab {
    capacity: u32,
    /// Offset → length of each free range; no two touch.
    by_offset: BTreeMap<u32, u32>,
    /// The same by (length, offset), for the smallest that fits.
    by_length: BTreeSet<(u32, u32)>,
    free: u32,
}

impl Slab {
    /// An empty slab of `capacity` slots.
    #[must_use]
    pub fn new(capacity: u32) -> Self {
        let mut slab = Self { capacity, by_offset: BTreeMap::new(), by_length: BTreeSet::new(), free: 0 };
        slab.insert(0, capacity);
        slab
    }

    /// Takes a range of `len` slots; its offset, or `None` if no free range is that long.
    pub fn allocate(&mut self, len: u32) -> Option<u32> {
        if len == 0 {
            return Some(0);
        }
        let &(found, offset) = self.by_length.range((len, 0)..).next()?;
        self.remove(offset, found);
        self.insert(offset + len, found - len);
        Some(offset)
    }

    /// Takes a range that a table already names; whether it was wholly free.
    pub fn reserve(&mut self, offset: u32, len: u32) -> bool {
        if len == 0 {
            return true;
        }
        let Some((&start, &found)) = self.by_offset.range(..=offset).next_back() else { return false };
        let Some(end) = offset.checked_add(len) else { return false };
        if end > start + found {
            return false;
        }
        self.remove(start, found);
        self.insert(start, offset - start);
        self.insert(end, start + found - end);
        true
    }

    /// Gives a range back and joins it with its free neighbours.
    ///
    /// # Panics
    /// If any slot of the range is free already: two rings would share it.
    pub fn release(&mut self, offset: u32, len: u32) {
        if len == 0 {
            return;
        }
        let (mut start, mut end) = (offset, offset + len);
        if let Some((&before, &length)) = self.by_offset.range(..=offset).next_back() {
            assert!(before + length <= offset, "slot range {offset}+{len} is released twice");
            if before + length == offset {
                self.remove(before, length);
                start = before;
            }
        }
        if let Some((&after, &length)) = self.by_offset.range(offset..).next() {
            assert!(end <= after, "slot range {offset}+{len} is released twice");
            if end == after {
                self.remove(after, length);
                end = after + length;
            }
        }
        self.insert(start, end - start);
    }

    /// Number of free slots.
    #[must_use]
    pub fn free(&self) -> u32 {
        self.free
    }

    /// Number of all slots.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    fn insert(&mut self, offset: u32, len: u32) {
        if len > 0 {
            self.by_offset.insert(offset, len);
            self.by_length.insert((len, offset));
            self.free += len;
        }
    }

    fn remove(&mut self, offset: u32, len: u32) {
        self.by_offset.remove(&offset);
        self.by_length.remove(&(len, offset));
        self.free -= len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_two_ranges_overlap_and_all_slots_come_back(
            steps in prop::collection::vec((any::<bool>(), 1u32..40, any::<prop::sample::Index>()), 1..200)
        ) {
            let mut slab = Slab::new(1000);
            let mut owner = vec![false; 1000];
            let mut live: Vec<(u32, u32)> = Vec::new();
            for (allocate, len, pick) in steps {
                if allocate || live.is_empty() {
                    let Some(offset) = slab.allocate(len) else { continue };
                    for slot in &mut owner[offset as usize..(offset + len) as usize] {
                        prop_assert!(!*slot, "slot given twice");
                        *slot = true;
                    }
                    live.push((offset, len));
                } else {
                    let (offset, len) = live.swap_remove(pick.index(live.len()));
                    owner[offset as usize..(offset + len) as usize].fill(false);
                    slab.release(offset, len);
                }
                let used = owner.iter().filter(|slot| **slot).count() as u32;
                prop_assert_eq!(slab.free(), 1000 - used);
            }
            for (offset, len) in live {
                slab.release(offset, len);
            }
            prop_assert_eq!(slab.allocate(1000), Some(0), "free ranges were not joined");
        }
    }

    #[test]
    fn a_reserved_range_is_never_given_again() {
        let mut slab = Slab::new(100);
        assert!(slab.reserve(10, 20));
        assert!(!slab.reserve(29, 5), "its last slot is taken");
        assert_eq!(slab.allocate(60), Some(30));
        assert_eq!(slab.allocate(10), Some(0));
        assert_eq!(slab.allocate(11), None);
    }

    #[test]
    #[should_panic(expected = "released twice")]
    fn releasing_twice_is_a_bug_that_shows() {
        let mut slab = Slab::new(100);
        let offset = slab.allocate(10).unwrap();
        slab.release(offset, 10);
        slab.release(offset, 10);
    }
}
