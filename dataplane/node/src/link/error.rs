//! What can go wrong with the interfaces and routes of a node.

use std::{io, net::IpAddr, path::PathBuf};

use super::Difference;

/// An operation on interfaces, addresses, routes or sysctls failed.
///
/// The text says what was being done and, where there is one, the kernel's own explanation; the source is
/// the system error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused a netlink request.
    #[error("{doing}{}", explained(.reason))]
    Netlink {
        /// What was asked for.
        doing: String,
        /// The kernel's explanation (extended acknowledgement), where it gave one.
        reason: Option<String>,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// The kernel's answer could not be understood.
    #[error("{doing}: the kernel's answer makes no sense: {detail}")]
    Decode {
        /// What was asked for.
        doing: String,
        /// What is wrong with the answer.
        detail: String,
    },
    /// A sysctl could not be read or written.
    #[error("setting {path} to {value:?}{}", advice(.source))]
    Sysctl {
        /// Full path below `/proc/sys`.
        path: PathBuf,
        /// The value wanted.
        value: String,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// A network namespace could not be opened, entered or inspected.
    #[error("{doing}")]
    Netns {
        /// What was being done.
        doing: String,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// The file is something else than a network namespace.
    #[error("{what} is not a network namespace")]
    NotANetns {
        /// The path, or the descriptor.
        what: String,
    },
    /// A pod was to be given the node's own network namespace.
    #[error("the pod's network namespace is the node's own: a pod on the host network needs no interface")]
    NodeNetns,
    /// An interface name that the kernel would refuse or take for something else.
    #[error("{name:?} cannot name an interface: {reason}")]
    InvalidName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An address that no pod can have.
    #[error("{address} cannot be a pod's address")]
    InvalidAddress {
        /// The address.
        address: IpAddr,
    },
    /// Another part of a pod's description is not usable.
    #[error("the pod's interface cannot be made: {reason}")]
    InvalidSpec {
        /// What is wrong.
        reason: String,
    },
    /// An interface of that name is already there.
    #[error("an interface {name} exists already in the {place} namespace: delete it first")]
    Exists {
        /// Its name.
        name: String,
        /// Whose namespace: `pod's` or `node's`.
        place: &'static str,
    },
    /// An interface has a name of ours but was made by somebody else.
    #[error("interface {name} is {found}, not made by portolan: rename or delete it")]
    NotOurs {
        /// Its name.
        name: String,
        /// What it is.
        found: String,
    },
    /// An interface went away while it was being set up, with its namespace as a rule.
    #[error("interface {name} vanished while it was being set up")]
    Vanished {
        /// Its name.
        name: String,
    },
    /// An interface that must be made first is not there.
    #[error("there is no interface {name}: it must be made first")]
    Missing {
        /// Its name.
        name: String,
    },
    /// Both ends of a pair are up and still nothing can pass.
    #[error("interface {name} got no carrier: something set its other end down again")]
    NoCarrier {
        /// The end that waited.
        name: String,
    },
    /// The pod's interface is not as it was made.
    #[error("interface {name} differs from what was set up: {}", listed(.differences))]
    Mismatch {
        /// Name of the host's side.
        name: String,
        /// What differs.
        differences: Vec<Difference>,
    },
    /// A thread that works inside a network namespace ended early.
    #[error("the thread working in the network namespace ended unexpectedly: restart the agent")]
    Stopped,
}

/// Making a pod's interface failed; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum CreateError<E> {
    /// The kernel part failed.
    #[error(transparent)]
    Link(#[from] Error),
    /// The caller's attachment of programs failed.
    #[error("attaching programs to the pod's interface")]
    Attach(#[source] E),
}

fn explained(reason: &Option<String>) -> String {
    reason.as_deref().map(|text| format!(" (kernel: {text})")).unwrap_or_default()
}

fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            " (mount /proc/sys writable for the agent)"
        }
        _ => "",
    }
}

fn listed(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
