//! The agent and the command line of Portolan.

pub mod agent;
pub mod api;
pub mod cli;
pub mod controller;
pub mod health;
mod http;
pub mod metrics;
