//! A BGP-4 speaker that announces addresses to routers. Routes that routers announce are counted, never installed.
//!
//! `wire` has messages, `session` the state machine of one peer without input, output or clock, `routes` turns desired
//! routes into the fewest UPDATEs, `speaker` drives them all over TCP.

mod config;
pub mod routes;
pub mod session;
mod speaker;
pub mod wire;

pub use config::{Identity, Invalid, Password, Peer};
pub use routes::{Aggregation, Route, aggregate};
pub use session::{PeerStatus, Prefixes, State};
pub use speaker::{Speaker, StartError};
pub use wire::{Community, Family, LargeCommunity};
