//! From desired tables to kernel tables.
//!
//! The order is the whole point. Make before break: backends and rings are written where no packet looks, a ring
//! is published by one store, frontends come last and go first, and what was taken out rests for a grace period
//! before it is used again. Whatever does not fit is refused as a whole service; the rest is untouched.

mod adopt;
mod affinity;
mod applier;
mod audit;
mod change;
mod family;
mod flows;
mod index;
mod ports;
mod realms;
mod rings;
mod sources;
mod stale;

pub use applier::{Applier, ApplyError, Outcome, PortState, Refused, Usage};
pub use audit::{Difference, audit, audit_pods};
pub use flows::{Collected, collect, ticks};
pub use ports::PortUser;
pub use stale::{Connections, Stale};
