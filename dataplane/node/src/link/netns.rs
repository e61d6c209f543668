//! Handles on network namespaces, and work inside them.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
    thread,
};

use rustix::{
    fs::{Mode, OFlags},
    thread::LinkNameSpaceType,
};
use tokio::sync::oneshot;

use super::Error;

/// An open network namespace. Exists only if the descriptor really is one.
///
/// It keeps the namespace alive: interfaces in it stay until the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Netns(Arc<OwnedFd>);

impl Netns {
    /// Opens the namespace that `path` is a mount of, or that `/proc/PID/ns/net` names.
    ///
    /// # Errors
    /// [`Error::Netns`] if it cannot be opened, [`Error::NotANetns`] if it is anything else.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        // Non-blocking: a FIFO in the place of a namespace must not hang the caller.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| Error::Netns {
            doing: format!("opening network namespace {}", path.display()),
            source: errno.into(),
        })?;
        Self::checked(fd, || path.display().to_string())
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Netns`] if `/proc` is not there.
    pub fn current() -> Result<Self, Error> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// Takes a descriptor that somebody else opened.
    ///
    /// # Errors
    /// [`Error::NotANetns`] if it is anything else.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Error> {
        let number = fd.as_raw_fd();
        Self::checked(fd, || format!("descriptor {number}"))
    }

    /// Whether both are the same namespace.
    ///
    /// # Errors
    /// [`Error::Netns`] if one cannot be inspected.
    pub fn is_same(&self, other: &Self) -> Result<bool, Error> {
        let identity = |netns: &Self| {
            rustix::fs::fstat(&netns.0).map(|stat| (stat.st_dev, stat.st_ino)).map_err(|errno| Error::Netns {
                doing: "comparing two network namespaces".into(),
                source: errno.into(),
            })
        };
        Ok(identity(self)? == identity(other)?)
    }

    /// Runs `work` on a thread of its own inside this namespace.
    ///
    /// A thread for each call: one that entered a foreign namespace never comes back, so no failure can
    /// leave a shared thread in the wrong place. `/proc/sys/net` on that thread is this namespace's.
    ///
    /// # Errors
    /// [`Error::Netns`] if the namespace cannot be entered, [`Error::Stopped`] if `work` panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let netns = self.clone();
        let (reply, answer) = oneshot::channel();
        thread::Builder::new()
            .name("portolan-netns".into())
            .spawn(move || {
                // Nobody listens any more if the caller gave up; the work is done all the same.
                let _ = reply.send(netns.enter().map(|()| work()));
            })
            .map_err(|source| Error::Netns {
                doing: "starting a thread for a network namespace".into(),
                source,
            })?;
        answer.await.map_err(|_| Error::Stopped)?
    }

    /// Moves the calling thread into this namespace, for good.
    fn enter(&self) -> Result<(), Error> {
        rustix::thread::move_into_link_name_space(self.as_fd(), Some(LinkNameSpaceType::Network)).map_err(
            |errno| Error::Netns { doing: "entering a network namespace".into(), source: errno.into() },
        )
    }

    fn checked(fd: OwnedFd, what: impl FnOnce() -> String) -> Result<Self, Error> {
        match namespace_type(fd.as_fd()) {
            Ok(libc::CLONE_NEWNET) => Ok(Self(Arc::new(fd))),
            _ => Err(Error::NotANetns { what: what() }),
        }
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The `CLONE_NEW*` constant of a namespace descriptor (ioctl_ns(2)).
fn namespace_type(fd: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    // Other file systems may give the same number to another ioctl, so the file system comes first.
    if rustix::fs::fstatfs(fd)?.f_type as u64 != libc::NSFS_MAGIC as u64 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: NS_GET_NSTYPE takes no argument and touches no memory of ours.
    match unsafe { libc::ioctl(fd.as_raw_fd(), libc::NS_GET_NSTYPE) } {
        -1 => Err(io::Error::last_os_error()),
        kind => Ok(kind),
    }
}
