//! Packets without a network: worlds, packets, and one table of cases that runs on the host and in the kernel.

pub mod apply;
pub mod build;
pub mod check;
pub mod entry;
pub mod family;
pub mod fixture;
pub mod host;
pub mod kernel;
pub mod memory;
pub mod script;
pub mod world;
