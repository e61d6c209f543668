//! A pod's network namespace: opened once, checked, and from then on only this descriptor is used.
//!
//! The path may name something else a moment later; the descriptor cannot. It travels to the agent with the request.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::LinkNameSpaceType;

/// An open network namespace that is not this process's own.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    path: String,
}

impl Netns {
    /// Opens and checks the namespace at `path`. Nothing is opened for reading before it is known to be a namespace: a FIFO would block, a
    /// device would react.
    ///
    /// # Errors
    /// [`InvalidNetns`] says what is there instead.
    pub fn open(path: &str) -> Result<Self, InvalidNetns> {
        let failed = |source: Errno| InvalidNetns::Open { path: path.to_owned(), source: source.into() };
        let place = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        check_is_namespace(place.as_fd(), path)?;
        let same = format!("/proc/self/fd/{}", place.as_raw_fd());
        let fd = rustix::fs::open(same, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        Self::from_fd(fd, path)
    }

    /// Checks a descriptor that came from elsewhere. `path` is where it was found, for messages and results.
    ///
    /// # Errors
    /// [`InvalidNetns`] says what it is instead.
    pub fn from_fd(fd: OwnedFd, path: &str) -> Result<Self, InvalidNetns> {
        check_is_namespace(fd.as_fd(), path)?;
        check_is_network(&fd, path)?;
        check_is_foreign(fd.as_fd(), path)?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Where the runtime said it was. To be shown, not to be opened.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Why something is not a pod's network namespace.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidNetns {
    /// It cannot be opened.
    #[error("opening network namespace {path:?}: {source}")]
    Open {
        /// The path.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is another kind of file.
    #[error("{path:?} is not a network namespace")]
    NotANamespace {
        /// The path.
        path: String,
    },
    /// It is the node's.
    #[error("{path:?} is the network namespace of the host, not of a pod")]
    Host {
        /// The path.
        path: String,
    },
}

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS_MAGIC: u64 = 0x6e73_6673;

fn check_is_namespace(fd: BorrowedFd<'_>, path: &str) -> Result<(), InvalidNetns> {
    let stat = rustix::fs::fstatfs(fd).map_err(|err| open_error(path, err))?;
    if stat.f_type as u64 == NSFS_MAGIC {
        Ok(())
    } else {
        Err(InvalidNetns::NotANamespace { path: path.to_owned() })
    }
}

/// All kinds of namespaces are files of nsfs. Only entering tells this kind from the others, so a thread that then ends tries.
fn check_is_network(fd: &OwnedFd, path: &str) -> Result<(), InvalidNetns> {
    let entered = std::thread::scope(|scope| {
        let enter =
            || rustix::thread::move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network));
        // The thread does nothing that panics.
        scope.spawn(enter).join().unwrap_or(Err(Errno::INVAL))
    });
    match entered {
        Err(Errno::INVAL) => Err(InvalidNetns::NotANamespace { path: path.to_owned() }),
        // Without the capability nothing can be told here; whoever configures the pod has it, and finds out.
        Ok(()) | Err(Errno::PERM) => Ok(()),
        Err(err) => Err(open_error(path, err)),
    }
}

fn check_is_foreign(fd: BorrowedFd<'_>, path: &str) -> Result<(), InvalidNetns> {
    let theirs = rustix::fs::fstat(fd).map_err(|err| open_error(path, err))?;
    let ours = rustix::fs::stat("/proc/self/ns/net").map_err(|err| open_error(path, err))?;
    if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino) {
        return Err(InvalidNetns::Host { path: path.to_owned() });
    }
    Ok(())
}

fn open_error(path: &str, err: Errno) -> InvalidNetns {
    InvalidNetns::Open { path: path.to_owned(), source: err.into() }
}
