//! Where the log lives. The seam at the system calls: tests put a disk behind it that crashes.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::durable;

/// A log that survives its writer.
pub(crate) trait Store {
    /// A way to flush what was appended so far while others append more.
    type Flush: Flush;

    /// Everything in the log. Empty when there is none yet.
    fn read(&self) -> io::Result<Vec<u8>>;

    /// Adds to the end. After an error, an unknown part of `bytes` is there.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Puts `bytes` in place of the whole log, durably and at once. After an error, the old or the new log is there.
    fn replace(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Whether a line could be appended: room for it, on a disk that takes any.
    fn probe(&self) -> io::Result<()>;

    /// Flushes the log that is there now, also when it has been replaced by the time it is called.
    fn flusher(&self) -> Self::Flush;
}

/// See [`Store::flusher`].
pub(crate) trait Flush {
    /// Waits until everything appended before this call is on disk.
    fn flush(&self) -> io::Result<()>;
}

/// The log as a file in a directory that this process alone uses.
#[derive(Debug)]
pub(crate) struct DirStore {
    path: PathBuf,
    /// Open once the first snapshot is written.
    log: Option<Arc<File>>,
    /// Holds the lock.
    _dir: File,
}

impl DirStore {
    /// Makes the directory (0700) if need be and locks it.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when another process has it open.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let lock = File::open(dir)?;
        lock.try_lock().map_err(|err| match err {
            TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
            TryLockError::Error(err) => err,
        })?;
        Ok(Self { path: dir.join(LOG), log: None, _dir: lock })
    }
}

/// Name of the log in its directory.
const LOG: &str = "allocations.log";

/// A file that is there for a moment, and its size in bytes: more than a line has, and what file systems give at once.
const PROBE: &str = ".probe";
const PROBE_SIZE: usize = 4096;

impl Store for DirStore {
    type Flush = Option<Arc<File>>;

    fn read(&self) -> io::Result<Vec<u8>> {
        match fs::read(&self.path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            result => result,
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let log = self.log.as_deref().ok_or_else(no_log)?;
        (&*log).write_all(bytes)
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.log = None;
        self.log = Some(Arc::new(durable::replace_file(&self.path, bytes)?));
        Ok(())
    }

    fn probe(&self) -> io::Result<()> {
        let path = self.path.with_file_name(PROBE);
        // Not flushed: a full disk refuses it at once, and nobody needs it afterwards.
        let written = fs::write(&path, [0; PROBE_SIZE]);
        match fs::remove_file(&path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => written.and(Err(err)),
            _ => written,
        }
    }

    fn flusher(&self) -> Self::Flush {
        self.log.clone()
    }
}

impl Flush for Option<Arc<File>> {
    fn flush(&self) -> io::Result<()> {
        self.as_deref().ok_or_else(no_log)?.sync_data()
    }
}

fn no_log() -> io::Error {
    io::Error::other("the log is not open")
}
