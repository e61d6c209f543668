//! Watches a directory and tells what its files mean.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use portolan_model::Event;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::directory::{Directory, Hints, counts};
use crate::{Effect, Refusal, State, reconcile};

/// How long the directory must be quiet before it is read: an editor's save is several events.
const QUIET: Duration = Duration::from_millis(20);

/// Longest wait for quiet: somebody who never stops writing must not hold back everybody else's edit.
const QUIET_MAX: Duration = Duration::from_millis(100);

/// How long a file may be open for writing before it is read as it is. `kubectl get … > file` empties the file
/// first and writes a second later: read in between, all its objects would seem deleted.
const WRITING_MAX: Duration = Duration::from_secs(3);

/// How often files are looked at without an event: what a symlink points to is not watched, and the directory
/// itself may be replaced.
const POLL: Duration = Duration::from_secs(2);

/// Updates that may wait for their reader.
const UPDATES_WAITING: usize = 16;

/// What changed in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// Changes since the last update, deletions first. In the first update: everything.
    pub events: Vec<Event>,
    /// Everything that is refused now: the complete list.
    pub refusals: Vec<Refusal>,
    /// The events so far make up a complete state. Always so here: a directory is read as a whole.
    pub synced: bool,
}

/// Why the directory is not being watched.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The path does not lead to a directory.
    #[error("opening source directory {}: {source}; create it or give another path", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The directory is there but cannot be watched.
    #[error("watching source directory {}: {source}; if a limit is reached, raise fs.inotify.max_user_instances \
             or fs.inotify.max_user_watches", path.display())]
    Watch {
        /// The path.
        path: PathBuf,
        /// What the watcher said.
        source: notify::Error,
    },
}

/// A directory of Kubernetes YAML as a source of objects.
#[derive(Debug)]
pub struct FilesSource;

/// Keeps the directory watched. Dropping it ends that.
#[derive(Debug)]
pub struct FilesHandle(JoinHandle<()>);

impl Drop for FilesHandle {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl FilesSource {
    /// Watches a directory. The first update is its complete state and comes even if it is empty; later ones come
    /// when an object or a refusal changed. Needs a tokio runtime.
    ///
    /// # Errors
    /// The path is not a directory that can be listed and watched.
    pub fn start(path: &Path) -> Result<(mpsc::Receiver<Update>, FilesHandle), StartError> {
        let opened = std::fs::read_dir(path).map(drop);
        opened.map_err(|source| StartError::Open { path: path.to_owned(), source })?;
        let pending = Arc::new(Pending::default());
        let failed = |source| StartError::Watch { path: path.to_owned(), source };
        // Subscribed before the first read: no edit falls between the two.
        let directory = Directory::new(path.to_owned());
        let watch = Watch::new(&directory, pending.clone()).map_err(failed)?;
        let worker = Worker { directory, watch, state: State::default(), refusals: Vec::new(), first: true };
        let (updates, receiver) = mpsc::channel(UPDATES_WAITING);
        Ok((receiver, FilesHandle(tokio::spawn(run(worker, pending, updates)))))
    }
}

async fn run(mut worker: Worker, pending: Arc<Pending>, updates: mpsc::Sender<Update>) {
    loop {
        let hints = pending.take(Instant::now());
        // Reading and parsing may take long: not on the runtime's own threads.
        let step = tokio::task::spawn_blocking(move || {
            let update = worker.step(&hints);
            (worker, update)
        });
        let update;
        (worker, update) = match step.await {
            Ok(done) => done,
            Err(error) => {
                return tracing::error!(%error, "reading the source directory failed; no more updates");
            }
        };
        if let Some(update) = update
            && updates.send(update).await.is_err()
        {
            return;
        }
        tokio::select! {
            () = pending.woken(POLL) => {}
            () = updates.closed() => return,
        }
    }
}

/// What the watcher saw and nobody has read yet.
#[derive(Debug, Default)]
struct Pending {
    seen: Mutex<Seen>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Seen {
    /// The watcher lost events.
    lost: bool,
    changed: BTreeSet<PathBuf>,
    /// Files that were written to and not closed since, and when that began.
    writing: BTreeMap<PathBuf, Instant>,
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        // Nothing in here is ever half written.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called on the watcher's thread.
    fn take_in(&self, event: notify::Result<notify::Event>) {
        let Ok(event) = event.inspect_err(|error| tracing::warn!(%error, "watching the source directory"))
        else {
            self.lock().lost = true;
            return self.news.notify_one();
        };
        // Our own reading opens files.
        let closed = event.kind == EventKind::Access(AccessKind::Close(AccessMode::Write));
        if event.kind.is_access() && !closed {
            return;
        }
        let written = matches!(event.kind, EventKind::Modify(ModifyKind::Data(_)));
        let mut seen = self.lock();
        seen.lost |= event.need_rescan();
        for path in event.paths.into_iter().filter(|path| counts(path)) {
            if written {
                seen.writing.entry(path.clone()).or_insert_with(Instant::now);
            } else {
                seen.writing.remove(&path);
            }
            seen.changed.insert(path);
        }
        drop(seen);
        self.news.notify_one();
    }

    /// What to look at now. Files that are still being written stay for later.
    fn take(&self, now: Instant) -> Hints {
        let mut seen = self.lock();
        seen.writing.retain(|_, since| now.duration_since(*since) < WRITING_MAX);
        let unsettled: BTreeSet<PathBuf> = seen.writing.keys().cloned().collect();
        let changed = std::mem::take(&mut seen.changed);
        let (later, changed) = changed.into_iter().partition(|path| unsettled.contains(path));
        seen.changed = later;
        Hints { all: std::mem::take(&mut seen.lost), changed, unsettled }
    }

    /// Waits for news and then for quiet, or until the next look without news.
    async fn woken(&self, poll: Duration) {
        let first_settles = self.lock().writing.values().min().map(|since| *since + WRITING_MAX);
        let settles = first_settles.map_or(poll, |at| at.saturating_duration_since(Instant::now()));
        if tokio::time::timeout(poll.min(settles), self.news.notified()).await.is_err() {
            return;
        }
        let quiet = async { while tokio::time::timeout(QUIET, self.news.notified()).await.is_ok() {} };
        // Out of patience or quiet: both mean that it is time to look.
        let _ = tokio::time::timeout(QUIET_MAX, quiet).await;
    }
}

/// The kernel's watch on the directory, renewed when another directory takes its path.
#[derive(Debug)]
struct Watch {
    watcher: RecommendedWatcher,
    identity: Option<(u64, u64)>,
}

impl Watch {
    fn new(directory: &Directory, pending: Arc<Pending>) -> notify::Result<Self> {
        let identity = directory.identity().ok();
        let mut watcher = notify::recommended_watcher(move |event| pending.take_in(event))?;
        watcher.watch(directory.path(), RecursiveMode::NonRecursive)?;
        Ok(Self { watcher, identity })
    }

    /// Watches the directory that is at the path now, before it is read.
    fn renew(&mut self, directory: &Directory) {
        let now = directory.identity().ok();
        if std::mem::replace(&mut self.identity, now) == now || now.is_none() {
            return;
        }
        tracing::info!(directory = %directory.path().display(), "the source directory was replaced");
        // Fails if the kernel dropped the watch together with the old directory.
        let _ = self.watcher.unwatch(directory.path());
        if let Err(error) = self.watcher.watch(directory.path(), RecursiveMode::NonRecursive) {
            tracing::warn!(%error, "watching the source directory again failed; edits are seen every {POLL:?}");
        }
    }
}

struct Worker {
    directory: Directory,
    watch: Watch,
    state: State,
    /// As last told; sorted.
    refusals: Vec<Refusal>,
    first: bool,
}

impl Worker {
    /// Looks at the directory once; `None` if nothing changed.
    fn step(&mut self, hints: &Hints) -> Option<Update> {
        self.watch.renew(&self.directory);
        let (events, refusals) = match self.directory.scan(hints) {
            Ok(files) => {
                let outcome = reconcile(std::mem::take(&mut self.state), files);
                self.state = outcome.state;
                (outcome.events, outcome.refusals)
            }
            Err(error) => (Vec::new(), vec![self.unlistable(&error)]),
        };
        if !self.first && events.is_empty() && refusals == self.refusals {
            return None;
        }
        for refusal in refusals.iter().filter(|refusal| self.refusals.binary_search(refusal).is_err()) {
            tracing::warn!("{refusal}");
        }
        self.first = false;
        self.refusals.clone_from(&refusals);
        Some(Update { events, refusals, synced: true })
    }

    /// A directory that cannot be listed says nothing about its files: they keep serving.
    fn unlistable(&self, error: &io::Error) -> Refusal {
        Refusal {
            file: Arc::new(self.directory.path().to_owned()),
            line: 0,
            object: None,
            service: None,
            field: String::new(),
            reason: format!("the directory cannot be listed: {error}"),
            effect: Effect::LastGoodServed,
        }
    }
}

#[cfg(test)]
mod tests;
