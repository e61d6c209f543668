//! What a runtime and a plugin say to each other, as types that exist only when they are valid.

mod config;
mod environment;
mod error;
mod result;

pub use config::{Bandwidth, NetworkConfig, Overrides, PortMapping, Protocol, RuntimeConfig, Version};
pub use environment::{Command, Environment, PodRef};
pub use error::{CniError, Code};
pub use result::{Attached, Interface, IpConfig, Mac, PodAddress, Route, Success};
