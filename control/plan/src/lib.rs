//! From objects and this node to the tables that should be: pure.
//!
//! [`Planner::plan`] reads a [`portolan_model::Store`] and tells what changed in what this node should serve.
//! It does no I/O and knows no clock; the same objects give the same plan, in whatever order they came.

mod announce;
mod claims;
mod desired;
mod health;
mod host_port;
pub mod maglev;
mod node;
mod planner;
mod pods;
mod select;
mod service;

pub use announce::{Advertised, Announcements, Announcing, L2Address, PublicAddress, Silence};
pub use desired::{
    BackendAddr, Changes, Condition, FrontendAddr, NodePlan, PortName, Realm, Reason, Route, Scope,
    ServicePlan, ServicePort, SkippedRoute, Why,
};
pub use health::{HealthCheck, health_check, is_eligible};
pub use host_port::{HostPort, HostPortConflict};
pub use planner::{Extent, ExternalMode, NodePortAddresses, Options, Planner};
