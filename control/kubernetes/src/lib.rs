//! A Kubernetes API server: where objects come from, and where what was given to services is written.
//!
//! Objects are listed and watched ([`ClusterSource`]): an [agent's](Interest::AGENT) or the
//! [controller's](Interest::CONTROLLER). `kube` does that with bookmarks, lists again
//! when the server has forgotten (410), and waits longer after each failure. [`State`] is pure: it makes events of
//! what `kube` tells, finds out what was deleted while nobody watched, and keeps the last good version of an object
//! that is refused. While no server answers, nothing changes. Kinds of our own group that are not installed have no
//! objects; they are looked for again.
//!
//! The controller writes by [`Cluster`], one [`Patch`] at a time for each object, while a [`Campaign`] for a Lease says
//! that it leads. [`Election`] is the pure part of that.

mod campaign;
mod cluster;
mod config;
mod election;
mod facts;
mod source;
mod state;

pub use campaign::{Campaign, LeaseName};
pub use cluster::{Cluster, Note, Part, Patch, WriteError, writes};
pub use config::{ApiConfig, ConfigError};
pub use election::{Action, Election, Lease};
pub use facts::{Facts, MANAGER_ANNOTATION};
pub use source::{ClusterHandle, ClusterSource, Watched};
pub use state::{Interest, Seen, State};
