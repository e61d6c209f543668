//! Rings in the slab. Equal backend sets share one.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hasher as _};

use foldhash::fast::RandomState;
use portolan_abi::Ring;
use portolan_node::maps::Mapped;
use portolan_node::slab::Slab;

/// All rings. What is in them stands in the slab only.
#[derive(Debug)]
pub(crate) struct Rings {
    slab: Slab,
    hasher: RandomState,
    /// By the hash of their content. A ring whose hash another one has already is not here: nobody else uses it.
    by_content: HashMap<u64, Placed, RandomState>,
    /// Rings found at start whose content, or its hash, another one has.
    twins: Vec<Ring>,
}

#[derive(Debug, Clone, Copy)]
struct Placed {
    ring: Ring,
    uses: u32,
}

impl Rings {
    pub(crate) fn new(capacity: u32) -> Self {
        Self {
            slab: Slab::new(capacity),
            hasher: RandomState::default(),
            by_content: HashMap::default(),
            twins: Vec::new(),
        }
    }

    /// Makes room for that many more.
    pub(crate) fn reserve(&mut self, more: usize) {
        self.by_content.reserve(more);
    }

    /// The ring with these backend indexes, written into the slab if no other service has the same; `None` if it
    /// does not fit.
    pub(crate) fn acquire(&mut self, content: &[u32], slots: &mut Mapped<u32>) -> Option<Ring> {
        if content.is_empty() {
            return Some(Ring::EMPTY);
        }
        let hash = self.hash(content.iter().copied());
        let known = self.by_content.get_mut(&hash);
        let taken = known.is_some();
        if let Some(placed) = known
            && read(placed.ring, slots).eq(content.iter().copied())
        {
            placed.uses += 1;
            return Some(placed.ring);
        }
        let len = content.len() as u32;
        let offset = self.slab.allocate(len)?;
        slots.fill(offset, content);
        let ring = Ring::new(offset, len);
        if !taken {
            self.by_content.insert(hash, Placed { ring, uses: 1 });
        }
        Some(ring)
    }

    /// Takes over a ring that a table names; whether its place is its alone.
    pub(crate) fn adopt(&mut self, ring: Ring, slots: &Mapped<u32>) -> bool {
        if ring.is_empty() {
            return true;
        }
        let end = u64::from(ring.offset()) + u64::from(ring.len());
        if end > u64::from(slots.len()) {
            return false;
        }
        let hash = self.hash(read(ring, slots));
        let known = self.by_content.get(&hash).map(|placed| placed.ring);
        if known == Some(ring) || self.twins.contains(&ring) {
            return true;
        }
        if !self.slab.reserve(ring.offset(), ring.len()) {
            return false;
        }
        if known.is_some() {
            self.twins.push(ring);
        } else {
            self.by_content.insert(hash, Placed { ring, uses: 0 });
        }
        true
    }

    /// Ends one use; the ring that is now unused and has to rest, if it was the last.
    pub(crate) fn release(&mut self, ring: Ring, slots: &Mapped<u32>) -> Option<Ring> {
        if ring.is_empty() {
            return None;
        }
        let hash = self.hash(read(ring, slots));
        let Some(placed) = self.by_content.get_mut(&hash).filter(|placed| placed.ring == ring) else {
            return Some(ring);
        };
        placed.uses = placed.uses.saturating_sub(1);
        if placed.uses > 0 {
            return None;
        }
        self.by_content.remove(&hash);
        Some(ring)
    }

    /// Rings that nobody uses, taken out: what was adopted and not wanted again.
    pub(crate) fn unused(&mut self) -> Vec<Ring> {
        let mut unused = std::mem::take(&mut self.twins);
        self.by_content.retain(|_, placed| {
            if placed.uses == 0 {
                unused.push(placed.ring);
            }
            placed.uses > 0
        });
        unused
    }

    /// Gives the slots of a rested ring back.
    pub(crate) fn recycle(&mut self, ring: Ring) {
        self.slab.release(ring.offset(), ring.len());
    }

    /// Slots in use or at rest, and all.
    pub(crate) fn usage(&self) -> (u32, u32) {
        (self.slab.capacity() - self.slab.free(), self.slab.capacity())
    }

    fn hash(&self, content: impl Iterator<Item = u32>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        content.for_each(|index| hasher.write_u32(index));
        hasher.finish()
    }
}

/// The backend indexes in a ring.
fn read(ring: Ring, slots: &Mapped<u32>) -> impl Iterator<Item = u32> {
    (ring.offset()..ring.offset() + ring.len()).map(|slot| slots.read(slot))
}
