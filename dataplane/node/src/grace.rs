//! What was taken out of the tables rests until no packet can see it any more.

use std::io;

use crate::sys;

/// Things that wait for a grace period before they are used again.
#[derive(Debug)]
pub struct Resting<T> {
    items: Vec<T>,
}

impl<T> Default for Resting<T> {
    fn default() -> Self {
        Self { items: Vec::new() }
    }
}

impl<T> Resting<T> {
    /// Lays something to rest.
    pub fn add(&mut self, item: T) {
        self.items.push(item);
    }

    /// How many rest.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether none rests.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Everything that rests. The caller has waited for [`period`] since the last of it was added.
    pub fn take(&mut self) -> Vec<T> {
        std::mem::take(&mut self.items)
    }
}

/// Waits for one grace period: 7 to 20 ms. Every packet that could see what was unpublished before is gone then.
///
/// # Errors
/// The kernel refuses `membarrier` (never seen on a kernel that has BPF).
pub fn period() -> io::Result<()> {
    sys::wait_for_readers()
}
