//! Announces addresses on layer 2: of the nodes that are there, one answers ARP and neighbour discovery for each.
//!
//! `election` says which addresses are this node's, from what nodes tell each other in heartbeats, without input, output or
//! clock. `frame` has the bytes of ARP and NDP, `responder` what to answer and when to speak up unasked. `announcer`
//! drives them with sockets, on a thread of its own.
//!
//! # Who owns an address
//! Every node ranks the nodes by a hash of address and name (rendezvous hashing), and the first one that is there
//! and may have it owns it. A node is there for another one as long as its heartbeats arrive. What follows:
//! - All nodes that hear the same nodes name the same owner, without a word about addresses and without an API object.
//! - A node that goes moves its own addresses only, and over all others.
//! - An address changes hands by first being given up: who ranks first takes it when the next one has said, in its heartbeat,
//!   that it counts with it.
//! - A node that cannot know whether others still count with it (it has just begun, was stopped, or slept; no interface carried
//!   packets) owns nothing until it has listened for as long as a heartbeat counts.
//! - Nodes that do not hear each other but are both heard by clients both own an address: nobody can tell a cut from a node
//!   that died, and with two nodes there is no majority. Both say so in their status as soon as they see the other's ARP. When
//!   the cut ends, one gives up within a heartbeat and the other announces itself again.
//!
//! # What it costs
//! A node sends every other one a datagram of about 100 bytes for each family, twice a second: with 300 nodes, 1,200
//! datagrams a second each way, 1 Mbit/s. Heartbeats need only be exchanged by nodes that may announce.

mod announcer;
mod config;
mod election;
mod frame;
mod heartbeat;
mod rank;
mod responder;
mod status;

pub use announcer::{Announcer, StartError};
pub use config::{DEFAULT_PORT, Eligible, Interface, Invalid, Mac, Member, Settings, Vip, is_usable};
pub use status::{Conflict, InterfaceStatus, MemberState, MemberStatus, NodeState, Status, VipStatus};
