//! Pure packet decisions.
//!
//! No kernel, no clock, no allocation, no panic: a packet comes in as a [`wire::Frame`], the node's state as
//! [`Tables`], the time as an argument; a [`Verdict`] comes out. The eBPF programs, the tests, the fuzzer and
//! the command line all call [`decide`].
//!
//! Every function on the packet path is `#[inline(always)]`: an enum or `Option` in the signature of a function
//! that survives as such gets type information that the kernel refuses.
#![no_std]
#![forbid(unsafe_code)]
#![deny(clippy::panic, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

pub mod answer;
pub mod checksum;
pub mod conntrack;
mod decide;
pub mod egress;
mod family;
pub mod flows;
pub mod fragment;
pub mod guard;
pub mod icmp;
pub mod overlay;
pub mod ports;
mod select;
mod service;
pub mod socket;
mod tables;
pub mod tunnel;
mod verdict;
pub mod wire;

pub use decide::{
    Known, New, Short, decide, decide_error, decide_known, decide_new, decide_other, decide_ping,
    established, look_up, mend, open, open_to_backend, refusal,
};
pub use family::{Address, Family, V4, V6};
pub use select::flow_hash;
pub use service::Choice;
pub use tables::Tables;
pub use verdict::{Exit, Hook, Reason, Rewrite, Verdict, gateway_mac};
