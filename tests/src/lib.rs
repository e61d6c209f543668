//! Test harness: namespaces, topologies, captures, servers.

pub mod lab;
pub mod packet;
