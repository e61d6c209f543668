//! Everything that touches one node's kernel: programs, tables, links.
//!
//! The only user of aya and of netlink in the workspace, and the only home of raw system calls.

pub mod attach;
pub mod clock;
pub mod features;
pub mod grace;
pub mod link;
pub mod maps;
pub mod netfilter;
pub mod object;
pub mod slab;
pub mod sockets;
mod sys;
pub mod trace;

pub use attach::{AttachError, Attacher, Direction, Mode, Sockets};
pub use maps::{FamilyTables, MapError, Tables};
pub use object::{LoadError, Object, Sizes};
