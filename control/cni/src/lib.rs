//! The CNI protocol: the plugin and the agent's side of it.
//!
//! A container runtime starts `portolan-cni` for each operation. The plugin checks what it is given ([`spec`]), hands it with the pod's opened
//! network namespace to the agent ([`proto`]) and prints what comes back ([`plugin`]). A DEL that finds no agent is kept for it ([`pending`]).
//! With the feature `server`, [`server`] is what the agent answers with.
//!
//! Source: CNI specification 1.1.0.

pub mod netns;
pub mod pending;
pub mod plugin;
pub mod proto;
#[cfg(feature = "server")]
pub mod server;
pub mod spec;

pub use netns::Netns;
pub use portolan_ipam::AttachmentId;
pub use proto::{Reply, Request, decode};
pub use spec::{Attached, CniError, Code, PodRef, RuntimeConfig, Version};
