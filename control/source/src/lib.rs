//! Where objects come from: a directory of YAML.
//!
//! [`reconcile`] is pure: the last [`State`] and the files as they are now give the next state, the events
//! between the two, and everything that was refused. [`FilesSource`] watches a directory and calls it.

mod directory;
mod document;
mod files;
mod reconcile;
mod refusal;
mod yaml;

pub use files::{FilesHandle, FilesSource, StartError, Update};
pub use reconcile::{Content, Outcome, State, reconcile};
pub use refusal::{Effect, Refusal};
