//! Who may run: one call per attachment, any number of attachments, or one GC alone.
//!
//! Runtimes promise as much (CNI 1.1.0, "Concurrency"); a runtime that restarts in the middle, or two of them, do not keep the promise.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};

use portolan_ipam::AttachmentId;
use tokio::sync::{Mutex, OwnedMutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Held shared by calls for one attachment, alone by GC. Fair, so that neither starves.
    all: RwLock<()>,
    /// An entry for each attachment that somebody works on or waits for.
    each: StdMutex<HashMap<AttachmentId, Arc<Mutex<()>>>>,
}

impl Turns {
    /// Waits until nobody else works on the attachment.
    pub(super) async fn take(&self, id: &AttachmentId) -> Turn<'_> {
        let shared = self.all.read().await;
        let lock = Arc::clone(self.each().entry(id.clone()).or_default());
        // Made before waiting, so that a caller who gives up cleans up, too.
        let mut turn = Turn { turns: self, id: id.clone(), guard: None, _shared: shared };
        turn.guard = Some(lock.lock_owned().await);
        turn
    }

    /// Waits until nobody works on any attachment.
    pub(super) async fn take_all(&self) -> RwLockWriteGuard<'_, ()> {
        self.all.write().await
    }

    /// Nothing panics while the map is changed.
    fn each(&self) -> MutexGuard<'_, HashMap<AttachmentId, Arc<Mutex<()>>>> {
        self.each.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.each().len()
    }
}

/// The right to work on one attachment, until it is dropped.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    id: AttachmentId,
    guard: Option<OwnedMutexGuard<()>>,
    _shared: RwLockReadGuard<'a, ()>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut each = self.turns.each();
        self.guard = None;
        // The map's own reference is the last one when nobody waits.
        if each.get(&self.id).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            each.remove(&self.id);
        }
    }
}
