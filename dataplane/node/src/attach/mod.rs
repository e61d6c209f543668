//! Attaching programs to interfaces, and replacing them there without a gap.
//!
//! Where the kernel has tcx (6.6) each attachment is a pinned link, which outlives the agent; before, it is a
//! classifier on the clsact qdisc, which lives as long as the interface. Nothing is ever detached to be replaced
//! (CVE-2023-27595 is what comes of that).

mod cgroup;
pub(crate) mod clsact;
mod tcx;

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

pub use cgroup::Sockets;

use crate::object::{LoadError, Object};

/// Which way the packets go that a program sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// What the interface receives.
    Ingress,
    /// What it sends.
    Egress,
}

impl Direction {
    /// `ingress` or `egress`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// tcx links (kernel 6.6).
    Tcx,
    /// The clsact qdisc.
    Clsact,
}

/// A program could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel refused.
    #[error("{doing} {program} at {interface} {direction}: {source}", direction = direction.name())]
    Kernel {
        /// What was being done.
        doing: &'static str,
        /// Name of the program.
        program: &'static str,
        /// Name of the interface.
        interface: String,
        /// Which of its hooks.
        direction: Direction,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// aya refused.
    #[error("attaching {program} to {interface}")]
    Aya {
        /// Name of the program.
        program: &'static str,
        /// Name of the interface.
        interface: String,
        /// aya's error.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// A socket program could not be attached.
    #[error("{doing} {program} at cgroup {}: {source}: is --socket-cgroup a directory of a cgroup v2 mount?", cgroup.display())]
    Cgroup {
        /// What was being done.
        doing: &'static str,
        /// Name of the program.
        program: &'static str,
        /// Directory of the cgroup.
        cgroup: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The program is not there.
    #[error(transparent)]
    Object(#[from] LoadError),
    /// A directory could not be made or read.
    #[error("links in {}", path.display())]
    Pins {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A program at a tcx hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The kernel's number for it.
    pub id: u32,
    /// Its name, as far as the kernel keeps it (15 characters).
    pub name: String,
}

/// All programs at a tcx hook of an interface of the calling thread's network namespace, whosever they are, in the order
/// that they run in.
///
/// # Errors
/// The kernel has no tcx ([`features::tcx`](crate::features::tcx)), or there is no such interface.
pub fn tcx_programs(interface: &str, direction: Direction) -> io::Result<Vec<Attached>> {
    tcx::programs(interface, direction)
}

/// An interface, by both of its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Index in its network namespace.
    pub ifindex: u32,
}

/// Attaches programs to interfaces of the calling thread's network namespace.
#[derive(Debug, Clone)]
pub struct Attacher {
    mode: Mode,
    links: PathBuf,
}

impl Attacher {
    /// Links are pinned in `pins/links`.
    #[must_use]
    pub fn new(mode: Mode, pins: &Path) -> Self {
        Self { mode, links: pins.join("links") }
    }

    /// How programs are attached.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Attaches a program, or puts it in the place of the one we attached there before.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn attach(
        &self,
        object: &mut Object,
        program: &'static str,
        interface: &Interface,
        direction: Direction,
    ) -> Result<(), AttachError> {
        let classifier = object.classifier(program)?;
        match self.mode {
            Mode::Tcx => {
                std::fs::create_dir_all(&self.links)
                    .map_err(|source| AttachError::Pins { path: self.links.clone(), source })?;
                tcx::attach(classifier, program, interface, direction, &self.pin(interface, direction))
            }
            Mode::Clsact => clsact::attach(classifier, program, interface, direction),
        }
    }

    /// What is at a hook instead of the link that [`attach`](Self::attach) pinned for the program; `None`: that link.
    /// Attachments by clsact have none: [`Links::own_filters`](crate::link::Links::own_filters) finds them.
    ///
    /// # Errors
    /// A pin cannot be read.
    pub fn fault(
        &self,
        object: &mut Object,
        program: &'static str,
        interface: &Interface,
        direction: Direction,
    ) -> Result<Option<&'static str>, AttachError> {
        if self.mode == Mode::Clsact {
            return Ok(None);
        }
        let pin = self.pin(interface, direction);
        tcx::fault(object.classifier(program)?, interface.ifindex, &pin).map_err(|source| {
            let interface = interface.name.clone();
            AttachError::Kernel { doing: "reading the link of", program, interface, direction, source }
        })
    }

    /// The kernel's number of the program at a hook that is ours by the link pinned for it; nothing if there is no such link, and
    /// for attachments by clsact.
    ///
    /// # Errors
    /// A pin cannot be read.
    pub fn program(&self, interface: &str, direction: Direction) -> io::Result<Option<u32>> {
        match (self.mode, crate::sys::open_pin(&self.links.join(pin_name(interface, direction)))) {
            (Mode::Clsact, _) => Ok(None),
            (Mode::Tcx, link) => link?.map(|link| crate::sys::link_program(link.as_fd())).transpose(),
        }
    }

    /// Removes the links of an interface that is gone. On clsact nothing is left of one.
    ///
    /// # Errors
    /// The pins cannot be removed.
    pub fn forget(&self, interface: &str) -> Result<(), AttachError> {
        for direction in [Direction::Ingress, Direction::Egress] {
            let path = self.links.join(pin_name(interface, direction));
            match std::fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(AttachError::Pins { path, source }),
            }
        }
        Ok(())
    }

    /// Names of the interfaces that have pinned links.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn attached(&self) -> Result<Vec<String>, AttachError> {
        let fail = |source| AttachError::Pins { path: self.links.clone(), source };
        let entries = match std::fs::read_dir(&self.links) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(fail(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(fail)?.file_name();
            if let Some((interface, _)) = name.to_str().and_then(|name| name.rsplit_once('-')) {
                // As `pin_name` has it; no interface's own name may have a colon.
                names.push(interface.replace(':', "."));
            }
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Detaches everything from an interface that stays; whether a filter was left on its clsact qdisc, which is
    /// to be removed then unless others use it. Only for uninstalling.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn detach(&self, interface: &str) -> Result<bool, AttachError> {
        match self.mode {
            Mode::Tcx => self.forget(interface).map(|()| false),
            Mode::Clsact => clsact::detach(interface),
        }
    }

    fn pin(&self, interface: &Interface, direction: Direction) -> PathBuf {
        self.links.join(pin_name(&interface.name, direction))
    }
}

/// File names in a bpf file system may have no dot.
fn pin_name(interface: &str, direction: Direction) -> String {
    format!("{}-{}", interface.replace('.', ":"), direction.name())
}
