//! Packets without a network: worlds, packets, and one table of cases for the host and the kernel.

pub mod apply;
pub mod build;
pub mod check;
pub mod entry;
pub mod family;
pub mod fixture;
pub mod host;
pub mod kernel;
pub mod memory;
pub mod random;
pub mod script;
pub mod world;
