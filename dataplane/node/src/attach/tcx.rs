//! tcx: one pinned link for each hook of each interface.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use aya::programs::{SchedClassifier, TcAttachType};

use super::{AttachError, Attached, Direction, Interface};
use crate::sys;

/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS` of `enum bpf_attach_type`.
const INGRESS: u32 = 46;
const EGRESS: u32 = 47;

/// Why the pinned link is not what [`attach`] leaves; `None`: it is.
pub(super) fn fault(
    classifier: &SchedClassifier,
    ifindex: u32,
    pin: &Path,
) -> io::Result<Option<&'static str>> {
    let Some(link) = sys::open_pin(pin)? else {
        return Ok(Some("no pinned link"));
    };
    if sys::link_ifindex(link.as_fd())? != ifindex {
        return Ok(Some("a link that is detached, or of another interface"));
    }
    let own = classifier.info().map_err(io::Error::other)?.id();
    Ok((sys::link_program(link.as_fd())? != own).then_some("a link of another program"))
}

pub(super) fn programs(interface: &str, direction: Direction) -> io::Result<Vec<Attached>> {
    let hook = match direction {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    };
    let (_, programs) = SchedClassifier::query_tcx(interface, hook).map_err(io::Error::other)?;
    let name = |name: Option<&str>| name.unwrap_or_default().to_owned();
    Ok(programs.iter().map(|it| Attached { id: it.id(), name: name(it.name_as_str()) }).collect())
}

pub(super) fn attach(
    classifier: &SchedClassifier,
    program: &'static str,
    interface: &Interface,
    direction: Direction,
    pin: &Path,
) -> Result<(), AttachError> {
    let fail = |doing| {
        move |source| AttachError::Kernel {
            doing,
            program,
            interface: interface.name.clone(),
            direction,
            source,
        }
    };
    let loaded = classifier.fd().map_err(|source| AttachError::Aya {
        program,
        interface: interface.name.clone(),
        source: Box::new(source),
    })?;
    let fd = loaded.as_fd();
    if let Some(link) = sys::open_pin(pin).map_err(fail("opening the link of"))? {
        // An interface of the same name may have taken the place of the one the link was made for; that link
        // then has no interface, or another one.
        if sys::link_ifindex(link.as_fd()).map_err(fail("reading the link of"))? == interface.ifindex {
            return sys::link_update(link.as_fd(), fd).map_err(fail("replacing"));
        }
        match std::fs::remove_file(pin) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail("removing the dead link of")(error)),
        }
    }
    let hook = match direction {
        Direction::Ingress => INGRESS,
        Direction::Egress => EGRESS,
    };
    let link = sys::link_create_tcx(fd, interface.ifindex, hook).map_err(fail("attaching"))?;
    sys::pin(link.as_fd(), pin).map_err(fail("pinning the link of"))
}
