//! Socket programs at a cgroup: one pinned link for each hook.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::AttachError;
use crate::object::{Object, SOCKET_PROGRAMS};
use crate::sys;

/// Begins the names of pins. No dash, so that no link is taken for an interface's.
const PREFIX: &str = "cgroup:";

/// `BPF_CGROUP_*` of `enum bpf_attach_type`, in the order of [`SOCKET_PROGRAMS`].
const HOOKS: [u32; SOCKET_PROGRAMS.len()] = [10, 11, 14, 15, 19, 20, 29, 30];

/// Attaches the socket programs to a cgroup. Links outlive the agent and the cgroup's own end.
#[derive(Clone, Debug)]
pub struct Sockets {
    links: PathBuf,
}

impl Sockets {
    /// Links are pinned in `pins/links`.
    #[must_use]
    pub fn new(pins: &Path) -> Self {
        Self { links: pins.join("links") }
    }

    /// Attaches all programs to a cgroup, or puts them in the place of those attached before. The programs must be
    /// loaded ([`Object::load_sockets`]).
    ///
    /// Answers are translated before anything is sent to a backend, so that no application meets an address it did
    /// not ask for: the last hooks come first.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn attach(&self, object: &mut Object, cgroup: &Path) -> Result<(), AttachError> {
        std::fs::create_dir_all(&self.links)
            .map_err(|source| AttachError::Pins { path: self.links.clone(), source })?;
        for (program, hook) in SOCKET_PROGRAMS.into_iter().zip(HOOKS).rev() {
            self.attach_one(object, program, hook, cgroup)?;
        }
        Ok(())
    }

    fn attach_one(
        &self,
        object: &mut Object,
        program: &'static str,
        hook: u32,
        cgroup: &Path,
    ) -> Result<(), AttachError> {
        let fail =
            |doing| move |source| AttachError::Cgroup { doing, program, cgroup: cgroup.to_owned(), source };
        let loaded = object.socket_program(program)?.fd().map_err(io::Error::other);
        let loaded = loaded.map_err(fail("finding"))?;
        let directory = File::open(cgroup).map_err(fail("opening the cgroup for"))?;
        // The identity of a cgroup is its inode.
        let id = directory.metadata().map_err(fail("reading the cgroup for"))?.ino();
        let pin = self.links.join(format!("{PREFIX}{program}"));
        if let Some(link) = sys::open_pin(&pin).map_err(fail("opening the link of"))?
            && sys::link_cgroup(link.as_fd()).map_err(fail("reading the link of"))? == id
        {
            return sys::link_update(link.as_fd(), loaded.as_fd()).map_err(fail("replacing"));
        }
        let link = sys::link_create_cgroup(loaded.as_fd(), directory.as_fd(), hook);
        let link = link.map_err(fail("attaching"))?;
        // Another cgroup than before: the new link is there before the old one goes.
        let fresh = self.links.join(format!("{PREFIX}{program}:new"));
        remove(&fresh).map_err(fail("removing a pin of"))?;
        sys::pin(link.as_fd(), &fresh).map_err(fail("pinning the link of"))?;
        std::fs::rename(&fresh, &pin).map_err(fail("pinning the link of"))
    }

    /// Which programs are not attached as [`attach`](Self::attach) leaves them, and what is there instead.
    ///
    /// # Errors
    /// A pin or the cgroup cannot be read.
    pub fn faults(
        &self,
        object: &mut Object,
        cgroup: &Path,
    ) -> Result<Vec<(&'static str, &'static str)>, AttachError> {
        let mut faults = Vec::new();
        for program in SOCKET_PROGRAMS {
            let own = object.socket_program(program)?.info().map_err(io::Error::other);
            let fault = own.and_then(|own| self.fault(program, own.id(), cgroup)).map_err(|source| {
                AttachError::Cgroup {
                    doing: "reading the link of",
                    program,
                    cgroup: cgroup.to_owned(),
                    source,
                }
            })?;
            faults.extend(fault.map(|fault| (program, fault)));
        }
        Ok(faults)
    }

    fn fault(&self, program: &str, own: u32, cgroup: &Path) -> io::Result<Option<&'static str>> {
        let Some(link) = sys::open_pin(&self.links.join(format!("{PREFIX}{program}")))? else {
            return Ok(Some("no pinned link"));
        };
        if sys::link_cgroup(link.as_fd())? != std::fs::metadata(cgroup)?.ino() {
            return Ok(Some("a link that is detached, or of another cgroup"));
        }
        Ok((sys::link_program(link.as_fd())? != own).then_some("a link of another program"))
    }

    /// Detaches all programs, those first that send to backends; whether there was one.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn detach(&self) -> Result<bool, AttachError> {
        let mut found = false;
        for program in SOCKET_PROGRAMS {
            for name in [format!("{PREFIX}{program}"), format!("{PREFIX}{program}:new")] {
                let path = self.links.join(name);
                found |= remove(&path).map_err(|source| AttachError::Pins { path, source })?;
            }
        }
        Ok(found)
    }
}

fn remove(path: &Path) -> io::Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
