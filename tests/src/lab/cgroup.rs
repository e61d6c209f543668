//! A cgroup whose threads' sockets an agent balances.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use portolan_node::features::cgroup_root;

use super::poll;

/// A cgroup below that of this process, removed when dropped. It is a threaded one: clients are threads of this
/// process, and those of several clusters must not meet.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes an empty one.
    ///
    /// # Errors
    /// No cgroup v2 is mounted, or this process's own one cannot have threaded children.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let own = std::fs::read_to_string("/proc/self/cgroup").context("reading this process's cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup v2")?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("portolan-test-{}-{number}", std::process::id());
        let path = cgroup_root(None)?.join(own).join(name);
        std::fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        let cgroup = Self { path };
        std::fs::write(cgroup.path.join("cgroup.type"), "threaded").context("making a cgroup threaded")?;
        Ok(cgroup)
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Threads that have just ended may still be counted.
        let gone = || std::fs::remove_dir(&self.path).ok();
        if let Err(error) = poll(Duration::from_secs(2), "a test's cgroup is empty", gone) {
            eprintln!("removing {}: {error:#}", self.path.display());
        }
    }
}

/// Moves the calling thread into a cgroup; sockets that it makes from then on are the cgroup's.
pub(super) fn join(cgroup: &Path) -> std::io::Result<()> {
    std::fs::write(cgroup.join("cgroup.threads"), "0")
}

/// Has a command begin in a cgroup.
pub(super) fn start_in(command: &mut Command, cgroup: &Path) -> std::io::Result<()> {
    let threads = File::options().write(true).open(cgroup.join("cgroup.threads"))?;
    // SAFETY: between fork and exec there is one system call, on a descriptor that the closure owns.
    unsafe {
        command.pre_exec(move || rustix::io::write(&threads, b"0").map(drop).map_err(Into::into));
    }
    Ok(())
}
