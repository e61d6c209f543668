//! The loaded programs and where each belongs.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use portolan_node::attach::Interface;
use portolan_node::sockets::{HeldSockets, Transport};
use portolan_node::{AttachError, Attacher, Direction, LoadError, MapError, Mode, Object, Sockets};

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
    /// The overlay device.
    Overlay,
}

impl Role {
    /// As the agent tells it. Pods' interfaces are not told.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "uplink" => Some(Self::Uplink),
            "service" => Some(Self::Service),
            "loopback" => Some(Self::Loopback),
            "overlay" => Some(Self::Overlay),
            _ => None,
        }
    }

    /// See [`named`](Self::named).
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Uplink => "uplink",
            Self::Service => "service",
            Self::Loopback => "loopback",
            Self::Overlay => "overlay",
        }
    }

    const fn programs(self) -> &'static [(&'static str, Direction)] {
        match self {
            Self::Pod => &[("from_pod", Direction::Ingress), ("to_pod", Direction::Egress)],
            Self::Uplink => &[("from_uplink", Direction::Ingress), ("to_uplink", Direction::Egress)],
            Self::Service => &[("to_service", Direction::Egress)],
            Self::Loopback => &[("to_loopback", Direction::Egress)],
            Self::Overlay => &[("from_overlay", Direction::Ingress), ("to_overlay", Direction::Egress)],
        }
    }
}

/// The object and the ways to attach its programs. Attaching is a few system calls, so a plain lock will do.
///
/// Pods' interfaces are ours alone and are made while somebody waits: there the clsact qdisc serves, because tcx waits for
/// a grace period at every attachment (`tcx_entry_sync` in the kernel), some 12 ms where ticks are slow. Interfaces that
/// others use as well are attached by tcx where there is tcx: programs have an order there, and links that nobody
/// else can replace.
#[derive(Debug)]
pub(super) struct Programs {
    object: Mutex<Object>,
    attacher: Attacher,
    pods: Attacher,
    sockets: Sockets,
    held: OnceLock<HeldSockets>,
    held_tcp: OnceLock<HeldSockets>,
    pins: PathBuf,
}

impl Programs {
    /// With pins in a directory; `mode` is for the interfaces that are not pods'.
    pub(super) fn new(object: Object, mode: Mode, pins: &Path) -> Self {
        let (attacher, pods) = (Attacher::new(mode, pins), Attacher::new(Mode::Clsact, pins));
        Self {
            object: Mutex::new(object),
            attacher,
            pods,
            sockets: Sockets::new(pins),
            held: OnceLock::new(),
            held_tcp: OnceLock::new(),
            pins: pins.to_owned(),
        }
    }

    /// Attaches the socket programs to a cgroup, or detaches them without one.
    pub(super) fn attach_sockets(&self, cgroup: Option<&Path>) -> Result<(), AttachError> {
        let Some(cgroup) = cgroup else {
            return self.sockets.detach().map(drop);
        };
        let mut object = self.object();
        object.load_sockets()?;
        self.sockets.attach(&mut object, cgroup)
    }

    /// Gets ready to list connected sockets.
    pub(super) fn list_sockets(&self, transport: Transport) -> Result<(), LoadError> {
        let held = self.object().held_sockets(transport)?;
        self.held_of(transport).get_or_init(|| held);
        Ok(())
    }

    /// Lists connected sockets, if [`list_sockets`](Self::list_sockets) was asked to and the kernel lets it.
    pub(super) fn held_sockets(&self, transport: Transport) -> Option<HeldSockets> {
        self.held_of(transport).get().cloned()
    }

    fn held_of(&self, transport: Transport) -> &OnceLock<HeldSockets> {
        match transport {
            Transport::Udp => &self.held,
            Transport::Tcp => &self.held_tcp,
        }
    }

    /// Attaches what the interface needs, or replaces what is there.
    pub(super) fn attach(&self, interface: &Interface, role: Role) -> Result<(), AttachError> {
        let mut object = self.object();
        let attacher = if role == Role::Pod { &self.pods } else { &self.attacher };
        for (program, direction) in role.programs() {
            attacher.attach(&mut object, program, interface, *direction)?;
        }
        Ok(())
    }

    /// Programs that are not attached to an interface as [`attach`](Self::attach) leaves them, and what is there
    /// instead. `filters`: whether our classifiers are on its clsact qdisc.
    pub(super) fn faults(
        &self,
        interface: &Interface,
        role: Role,
        [ingress, egress]: [bool; 2],
    ) -> Result<Vec<(&'static str, Direction, &'static str)>, AttachError> {
        let mut object = self.object();
        let attacher = if role == Role::Pod { &self.pods } else { &self.attacher };
        let mut faults = Vec::new();
        for (program, direction) in role.programs() {
            let filter = if *direction == Direction::Ingress { ingress } else { egress };
            let fault = match attacher.mode() {
                Mode::Clsact => (!filter).then_some("no filter"),
                Mode::Tcx => attacher.fault(&mut object, program, interface, *direction)?,
            };
            faults.extend(fault.map(|fault| (*program, *direction, fault)));
        }
        Ok(faults)
    }

    /// Socket programs that are not attached to the cgroup, and what is there instead.
    pub(super) fn socket_faults(
        &self,
        cgroup: &Path,
    ) -> Result<Vec<(&'static str, &'static str)>, AttachError> {
        self.sockets.faults(&mut self.object(), cgroup)
    }

    /// Tables that the next agent would not find.
    pub(super) fn lost_pins(&self) -> Result<Vec<String>, MapError> {
        self.object().lost_pins(&self.pins)
    }

    /// Pins a table where the next agent looks for it.
    pub(super) fn pin_again(&self, table: &str) -> Result<(), MapError> {
        self.object().pin_again(&self.pins, table)
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
