//! Where objects come from: a Kubernetes API server.
//!
//! Three kinds are listed and watched: Services, EndpointSlices, Nodes. `kube` does that with bookmarks, lists again
//! when the server has forgotten (410), and waits longer after each failure. [`State`] is pure: it makes events of
//! what `kube` tells, finds out what was deleted while nobody watched, and keeps the last good version of an object
//! that is refused. While no server answers, nothing changes.

mod config;
mod source;
mod state;

pub use config::{ApiConfig, ConfigError};
pub use source::{ClusterHandle, ClusterSource, resources};
pub use state::{Seen, State};
