//! Rings in the slab. Equal backend sets share one.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use portolan_abi::Ring;
use portolan_node::maps::Mapped;
use portolan_node::slab::Slab;

/// All rings, by content and by place.
#[derive(Debug)]
pub(crate) struct Rings {
    slab: Slab,
    by_content: HashMap<Arc<[u32]>, Placed, RandomState>,
    by_offset: HashMap<u32, Arc<[u32]>, RandomState>,
}

#[derive(Debug, Clone, Copy)]
struct Placed {
    ring: Ring,
    uses: u32,
}

impl Rings {
    pub(crate) fn new(capacity: u32) -> Self {
        Self { slab: Slab::new(capacity), by_content: HashMap::default(), by_offset: HashMap::default() }
    }

    /// The ring with these backend indexes, written into the slab if no other service has the same; `None` if it
    /// does not fit.
    pub(crate) fn acquire(&mut self, content: &[u32], slots: &mut Mapped<u32>) -> Option<Ring> {
        if content.is_empty() {
            return Some(Ring::EMPTY);
        }
        if let Some(placed) = self.by_content.get_mut(content) {
            placed.uses += 1;
            return Some(placed.ring);
        }
        let len = content.len() as u32;
        let offset = self.slab.allocate(len)?;
        slots.fill(offset, content);
        let ring = Ring::new(offset, len);
        self.place(content.into(), ring, 1);
        Some(ring)
    }

    /// Takes over a ring that a table names; whether its place is its alone.
    pub(crate) fn adopt(&mut self, ring: Ring, slots: &Mapped<u32>) -> bool {
        if ring.is_empty() || self.by_offset.get(&ring.offset()).is_some_and(|c| c.len() as u32 == ring.len())
        {
            return true;
        }
        let end = u64::from(ring.offset()) + u64::from(ring.len());
        if end > u64::from(slots.len()) || !self.slab.reserve(ring.offset(), ring.len()) {
            return false;
        }
        let content = slots.slice(ring.offset(), ring.len());
        self.place(content.into(), ring, 0);
        true
    }

    fn place(&mut self, content: Arc<[u32]>, ring: Ring, uses: u32) {
        self.by_offset.insert(ring.offset(), Arc::clone(&content));
        self.by_content.insert(content, Placed { ring, uses });
    }

    /// Ends one use; the ring that is now unused and has to rest, if it was the last.
    pub(crate) fn release(&mut self, ring: Ring) -> Option<Ring> {
        let content = self.by_offset.get(&ring.offset()).filter(|_| !ring.is_empty())?;
        let placed = self.by_content.get_mut(content)?;
        placed.uses = placed.uses.saturating_sub(1);
        if placed.uses > 0 {
            return None;
        }
        self.forget(ring);
        Some(ring)
    }

    /// Rings that nobody uses, taken out: what was adopted and not wanted again.
    pub(crate) fn unused(&mut self) -> Vec<Ring> {
        let unused: Vec<Ring> =
            self.by_content.values().filter(|placed| placed.uses == 0).map(|placed| placed.ring).collect();
        for ring in &unused {
            self.forget(*ring);
        }
        unused
    }

    fn forget(&mut self, ring: Ring) {
        if let Some(content) = self.by_offset.remove(&ring.offset()) {
            // Of two adopted rings with the same content only one is found by it.
            if self.by_content.get(&content).is_some_and(|placed| placed.ring == ring) {
                self.by_content.remove(&content);
            }
        }
    }

    /// Gives the slots of a rested ring back.
    pub(crate) fn recycle(&mut self, ring: Ring) {
        self.slab.release(ring.offset(), ring.len());
    }

    /// Slots in use or at rest, and all.
    pub(crate) fn usage(&self) -> (u32, u32) {
        (self.slab.capacity() - self.slab.free(), self.slab.capacity())
    }
}
