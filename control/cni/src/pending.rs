//! DELs that found no agent. The plugin leaves one file for each in the state directory, the agent does them when it starts.
//!
//! An agent binds its socket, then does these, then accepts: a plugin that finds no listener leaves its file first and tries once more
//! afterwards, so no DEL falls between. Doing them before any ADD also keeps an old DEL off a container that has come back under its name.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::proto::{Call, LINE_MAX, Request, decode};
use crate::spec::CniError;

/// Directory of the files in the agent's state directory.
pub const DIR: &str = "cni-pending";

/// Keeps a DEL for the agent. On return it is on disk. The same attachment again replaces its file.
///
/// # Errors
/// What the file system says.
pub fn enqueue(state_dir: &Path, call: &Call) -> io::Result<Pending> {
    let dir = state_dir.join(DIR);
    DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    let line = Request::Del(call.clone()).to_line();
    let path = free_name(&dir, call)?;
    portolan_ipam::replace_file(&path, line.as_bytes())?;
    Ok(Pending { call: call.clone(), path })
}

/// A DEL that waits to be done.
#[derive(Debug, Clone, PartialEq)]
pub struct Pending {
    /// The attachment that is to go. Its namespace is not known to exist.
    pub call: Call,
    path: PathBuf,
}

impl Pending {
    /// Forgets it, durably.
    ///
    /// # Errors
    /// What the file system says; it will be done again, which is harmless.
    pub fn done(self) -> io::Result<()> {
        portolan_ipam::remove_file(&self.path)
    }
}

/// What [`list`] found.
#[derive(Debug, Default)]
pub struct Queue {
    /// What can be done.
    pub pending: Vec<Pending>,
    /// Files that are none of ours or damaged. They stay for the operator to see.
    pub unreadable: Vec<PathBuf>,
}

/// Everything that waits, ordered by file name. A directory that is not there is empty.
///
/// # Errors
/// What the file system says about the directory.
pub fn list(state_dir: &Path) -> io::Result<Queue> {
    let mut queue = Queue::default();
    let entries = match fs::read_dir(state_dir.join(DIR)) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(queue),
        entries => entries?,
    };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    // A hidden file is one that was being written when its plugin died: its DEL has not been answered.
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    for path in paths {
        match read(&path) {
            Some(call) => queue.pending.push(Pending { call, path }),
            None => queue.unreadable.push(path),
        }
    }
    Ok(queue)
}

/// What [`drain`] did.
#[derive(Debug, Default)]
pub struct Drained {
    /// How many are done and forgotten.
    pub done: usize,
    /// What failed and stays queued.
    pub failed: Vec<(Call, CniError)>,
    /// As in [`Queue`].
    pub unreadable: Vec<PathBuf>,
}

/// Does everything that waits by `del`, and goes on after errors.
///
/// # Errors
/// What the file system says about the directory.
pub fn drain(state_dir: &Path, mut del: impl FnMut(&Call) -> Result<(), CniError>) -> io::Result<Drained> {
    let queue = list(state_dir)?;
    let mut drained = Drained { unreadable: queue.unreadable, ..Drained::default() };
    for pending in queue.pending {
        match del(&pending.call) {
            Ok(()) => {
                pending.done()?;
                drained.done += 1;
            }
            Err(err) => drained.failed.push((pending.call, err)),
        }
    }
    Ok(drained)
}

/// The digest is a safe name; should another attachment have the same one, a number follows.
fn free_name(dir: &Path, call: &Call) -> io::Result<PathBuf> {
    let digest = call.attachment.digest();
    let names = (0..8).map(|number| dir.join(format!("{digest:032x}-{number}.json")));
    let usable = |path: &PathBuf| {
        fs::symlink_metadata(path).is_err()
            || read(path).is_none_or(|other| other.attachment == call.attachment)
    };
    names.into_iter().find(usable).ok_or_else(|| io::ErrorKind::AlreadyExists.into())
}

fn read(path: &Path) -> Option<Call> {
    let file = fs::symlink_metadata(path).ok()?;
    if !file.is_file() || file.len() > LINE_MAX as u64 {
        return None;
    }
    match decode(&fs::read_to_string(path).ok()?)? {
        Ok(Request::Del(call)) => Some(call),
        _ => None,
    }
}
