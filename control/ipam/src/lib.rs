//! Pod addresses: durable, dual stack, never given twice.
//!
//! [`Ipam`] hands each attachment (one interface of one container) one address of every family this node has a podCIDR for. An address is
//! on disk before it is returned, so that no crash can give it to two pods, and a released one rests before it is used again.
//!
//! On disk is one append-only log of checksummed lines, rewritten as a snapshot when it is opened and when it has grown. A log was chosen
//! over one file per allocation because it costs one `fdatasync` instead of two `fsync` per family, and because callers that arrive together
//! share that one: a node that starts 110 pods at once waits for a handful of disk flushes.

mod attachment;
mod durable;
mod host_port;
mod ipam;
mod ledger;
mod pool;
mod record;
mod store;

pub use attachment::{AttachmentId, CONTAINER_ID_MAX, InvalidAttachment};
pub use durable::{remove_file, replace_file};
pub use host_port::{HostPort, Transport};
pub use ipam::{Given, Ipam, IpamError};
pub use ledger::{Addresses, Allocation, Meta};
pub use pool::{Availability, DEFAULT_QUARANTINE, InvalidPool, Settings};
