//! Who uses the ports of the masquerade range: for when there are none left.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use foldhash::fast::RandomState;
use portolan_abi::{Flow, FlowKey, state};
use portolan_core::wire::{proto, split_ports};
use portolan_model::Protocol;
use portolan_node::maps::NodeFamily;
use portolan_node::{FamilyTables, MapError};

use crate::applier::Applier;

type Map<K, V> = HashMap<K, V, RandomState>;

/// Clients that are named for each backend.
const CLIENTS: usize = 3;

/// Flows to one backend that leave with the node's address. Each needs a port of its own; flows to other backends do
/// not compete with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortUser {
    /// Index of the service that most of them asked for last, or [`NO_SERVICE`](portolan_abi::NO_SERVICE).
    pub service: u32,
    /// The backend.
    pub backend: SocketAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// How many there are.
    pub flows: usize,
    /// The clients with the most of them, most first.
    pub clients: Vec<(IpAddr, usize)>,
}

impl Applier {
    /// The backends that take up the most masquerade ports, most first.
    ///
    /// # Errors
    /// The flow tables cannot be read.
    pub fn port_users(&self, limit: usize) -> Result<Vec<PortUser>, MapError> {
        let mut users = family(&self.tables.v4)?;
        users.extend(family(&self.tables.v6)?);
        users.sort_by_key(|user| (Reverse(user.flows), user.backend));
        users.truncate(limit);
        Ok(users)
    }
}

/// Protocol number, address, and port in network byte order of a backend.
type Place<A> = (u32, A, u16);

/// The service of the last flow seen, and the number of flows of each client.
struct Taken<A> {
    service: u32,
    clients: Map<A, usize>,
}

fn family<F: NodeFamily>(tables: &FamilyTables<F>) -> Result<Vec<PortUser>, MapError> {
    let flows = tables.flows.dump()?;
    let mut backends: Map<Place<F::Addr>, Taken<F::Addr>> = Map::default();
    // Identifiers of ICMP echo are no ports: there are as many again.
    let has_ports = |key: &FlowKey<F::Addr>| key.proto != u32::from(F::ICMP);
    for (key, flow) in flows.iter().filter(|(key, flow)| has_ports(key) && takes_port::<F>(flow)) {
        let backend = (key.proto, flow.dst, split_ports(flow.ports).1);
        let taken = backends.entry(backend).or_insert_with(|| Taken { service: 0, clients: Map::default() });
        taken.service = flow.service;
        *taken.clients.entry(key.src).or_default() += 1;
    }
    Ok(backends.into_iter().map(|(place, taken)| user::<F>(place, taken)).collect())
}

/// Whether it is the client's direction of a flow that leaves with an address of the node.
fn takes_port<F: NodeFamily>(flow: &Flow<F::Addr>) -> bool {
    flow.state & (state::MASQUERADE | state::REPLY) == state::MASQUERADE && flow.src != F::hairpin_address()
}

fn user<F: NodeFamily>((number, addr, port): Place<F::Addr>, taken: Taken<F::Addr>) -> PortUser {
    let flows = taken.clients.values().sum();
    let mut clients: Vec<_> = taken.clients.into_iter().map(|(addr, flows)| (F::ip(addr), flows)).collect();
    clients.sort_by_key(|(addr, flows)| (Reverse(*flows), *addr));
    clients.truncate(CLIENTS);
    let protocol = if number == u32::from(proto::TCP) { Protocol::Tcp } else { Protocol::Udp };
    let backend = SocketAddr::new(F::ip(addr), u16::from_be(port));
    PortUser { service: taken.service, backend, protocol, flows, clients }
}
