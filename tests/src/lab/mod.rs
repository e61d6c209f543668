//! A two-node cluster in network namespaces: client, router, nodes, pods, real processes and sockets.
//!
//! Everything here is RAII: what a test made is gone when it ends, also when it fails. No namespace has a route
//! to the machine's own interfaces.

mod agent;
mod announcing;
mod api;
mod asking;
mod capture;
mod cgroup;
mod cluster;
mod containerd;
mod controller;
mod frames;
mod load;
mod netns;
mod objects;
mod pod;
mod process;
mod random;
mod router;
mod shop;
mod speaker;
mod web;

pub use agent::{Agent, AgentOptions, balances_sockets};
pub use announcing::{Announcing, Segment};
pub use api::{ApiServer, Change, Fault, write_kubeconfig};
pub use asking::{Asking, answer_by_number, arp_request};
pub use capture::Capture;
pub use cgroup::Cgroup;
pub use cluster::{Cluster, NODE_ADDRESSES, Node, SERVICE_ADDRESSES};
pub use containerd::{Container, Containerd};
pub use controller::Controller;
pub use frames::{Frames, send_ip};
pub use load::{Datagrams, Load, LongLived, Resolver, Tally, failure, get, get_bound, get_from, udp_ask};
pub use netns::Netns;
pub use objects::{Endpoint, object, slice};
pub use pod::{Pod, Runtime, operate};
pub use process::{binary, poll, run};
pub use random::Random;
pub use router::{Brand, Neighbor, Router, Way};
pub use shop::{
    Backend, CLUSTER_ADDRESSES, Condition, NODE_PORT, PORT, Shop, cluster_address, node_address,
    public_address, service,
};
pub use speaker::Speaking;
pub use web::{UdpEcho, WebServer};
