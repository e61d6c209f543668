//! clsact: for kernels without tcx. The filter has a fixed priority and handle, so that the next version of the
//! program takes the place of this one.

use std::io;

use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::{SchedClassifier, TcAttachType};

use super::{AttachError, Direction, Interface};

/// Ours among the filters of a hook. With the handle it tells our filter from others'.
pub(crate) const PRIORITY: u16 = 7;
/// The same.
pub(crate) const HANDLE: u32 = 0x706c;

fn handle() -> TcHandle {
    TcHandle::from(HANDLE)
}

pub(super) fn attach(
    classifier: &mut SchedClassifier,
    program: &'static str,
    interface: &Interface,
    direction: Direction,
) -> Result<(), AttachError> {
    let aya = |source: aya::programs::ProgramError| AttachError::Aya {
        program,
        interface: interface.name.clone(),
        source: Box::new(source),
    };
    let kind = match direction {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    };
    if let Err(error) = tc::qdisc_add_clsact(&interface.name)
        && !already_there(&error)
    {
        return Err(aya(error.into()));
    }
    let options = NlOptions { priority: PRIORITY, handle: handle(), ..NlOptions::default() };
    let id = match classifier.attach_with_options(&interface.name, kind, TcAttachOptions::Netlink(options)) {
        Ok(id) => id,
        // Ours is there already: replace it.
        Err(_) => {
            let old = SchedClassifierLink::attached(&interface.name, kind, PRIORITY, handle(), None)
                .map_err(|error| aya(TcError::IoError(error).into()))?;
            classifier.attach_to_link(old).map_err(aya)?
        }
    };
    // Dropping the link would detach; the filter shall live as long as the interface.
    std::mem::forget(classifier.take_link(id).map_err(aya)?);
    Ok(())
}

/// Removes our filters; whether there was one.
pub(super) fn detach(interface: &str) -> Result<bool, AttachError> {
    let mut found = false;
    for (kind, direction) in
        [(TcAttachType::Ingress, Direction::Ingress), (TcAttachType::Egress, Direction::Egress)]
    {
        match SchedClassifierLink::attached(interface, kind, PRIORITY, handle(), None) {
            Ok(link) => {
                // Which detaches.
                drop(link);
                found = true;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(AttachError::Kernel {
                    doing: "detaching from",
                    program: "any",
                    interface: interface.to_owned(),
                    direction,
                    source,
                });
            }
        }
    }
    Ok(found)
}

fn already_there(error: &TcError) -> bool {
    match error {
        TcError::AlreadyAttached => true,
        TcError::NetlinkError(error) => error.raw_os_error() == Some(libc::EEXIST),
        TcError::IoError(error) => error.raw_os_error() == Some(libc::EEXIST),
        _ => false,
    }
}
