//! The loaded programs and where each belongs.

use std::sync::{Mutex, MutexGuard, PoisonError};

use portolan_node::attach::Interface;
use portolan_node::{AttachError, Attacher, Direction, Object};

/// What an interface is, which says what is attached to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The host's side of a pod's interface.
    Pod,
    /// An interface to the outside.
    Uplink,
    /// The service device.
    Service,
    /// The loopback device.
    Loopback,
}

impl Role {
    const fn programs(self) -> &'static [(&'static str, Direction)] {
        match self {
            Self::Pod => &[("from_pod", Direction::Ingress), ("to_pod", Direction::Egress)],
            Self::Uplink => &[("from_uplink", Direction::Ingress), ("to_uplink", Direction::Egress)],
            Self::Service => &[("to_service", Direction::Egress)],
            Self::Loopback => &[("to_loopback", Direction::Egress)],
        }
    }
}

/// The object and the way to attach its programs. Attaching is a few system calls, so a plain lock will do.
#[derive(Debug)]
pub(super) struct Programs {
    object: Mutex<Object>,
    attacher: Attacher,
}

impl Programs {
    pub(super) fn new(object: Object, attacher: Attacher) -> Self {
        Self { object: Mutex::new(object), attacher }
    }

    /// Attaches what the interface needs, or replaces what is there.
    pub(super) fn attach(&self, interface: &Interface, role: Role) -> Result<(), AttachError> {
        let mut object = self.object();
        for (program, direction) in role.programs() {
            self.attacher.attach(&mut object, program, interface, *direction)?;
        }
        Ok(())
    }

    /// Forgets the links of an interface that is gone.
    pub(super) fn forget(&self, interface: &str) -> Result<(), AttachError> {
        self.attacher.forget(interface)
    }

    /// Interfaces that have pinned links.
    pub(super) fn attached(&self) -> Result<Vec<String>, AttachError> {
        self.attacher.attached()
    }

    pub(super) fn object(&self) -> MutexGuard<'_, Object> {
        // The object has no invariant that a panic while attaching could break.
        self.object.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
