//! Addresses for services of type LoadBalancer: who gets which, and who keeps it.
//!
//! [`Allocator::allocate`] is pure: the objects as they are now and the [`Record`] of what was given give an
//! [`Outcome`], which has the next record, what to say about every service and every pool. It does no I/O and knows no
//! clock. The record is all that it remembers: whoever keeps it durable can begin again anywhere.
//!
//! What was given stays until the service goes, changes its type or its class, gives up the family, or asks for another
//! address that it can have. Pools say who gets something new, never who keeps something.

mod allocator;
mod blocked;
mod number;
mod outcome;
mod pools;
mod runs;
mod service;
mod taken;

pub use allocator::{Allocator, Record, Settings};
pub use outcome::{Assigned, Assignment, Condition, Count, Outcome, PoolReport, condition, reason};

/// The `loadBalancerClass` of services that are ours in any case.
pub const CLASS: &str = "portolan.dev/lb";
