//! What a node knows, as plain data: the same description fills tables in memory and in the kernel.

use std::net::IpAddr;

use portolan_abi::{
    Backend, Config, Endpoint, Frontend, FrontendKey, PrefixKey, Realm, Ring, Service, SourceKey, UPLINKS,
    Words, backend_flag, endpoint_flag, frontend_flag,
};
use portolan_core::Address;
use portolan_node::maps::NodeFamily;

use super::build::Mac;

/// A pod of the node.
#[derive(Clone, Copy, Debug)]
pub struct Pod {
    /// Its address.
    pub addr: IpAddr,
    /// The host's side of its interface.
    pub ifindex: u32,
    /// MAC address inside of the pod.
    pub mac: Mac,
    /// Bits of [`endpoint_flag`] beside `LIVE`.
    pub flags: u16,
}

/// Where a service is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Front {
    /// Address; `None`: a NodePort on any address of the node.
    pub addr: Option<IpAddr>,
    /// Port, host byte order.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// See [`frontend_flag`].
    pub flags: u32,
}

/// One port of a service.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// Where it is asked for.
    pub fronts: Vec<Front>,
    /// See [`portolan_abi::service_flag`].
    pub flags: u32,
    /// Session affinity in seconds; 0: off.
    pub affinity: u32,
    /// Source ranges: address and length of the prefix.
    pub sources: Vec<(IpAddr, u32)>,
    /// Indexes of all its backends.
    pub cluster: Vec<u32>,
    /// Indexes of those on this node.
    pub local: Vec<u32>,
}

/// A backend.
#[derive(Clone, Copy, Debug)]
pub struct BackendAt {
    /// Address.
    pub addr: IpAddr,
    /// Port, host byte order.
    pub port: u16,
    /// See [`backend_flag`].
    pub flags: u16,
}

/// Packets to a prefix leave by an interface.
#[derive(Clone, Copy, Debug)]
pub struct RouteTo {
    /// An address of the prefix.
    pub prefix: IpAddr,
    /// Its length in bits.
    pub bits: u32,
    /// The interface.
    pub ifindex: u32,
}

/// Everything a node knows but flows.
#[derive(Clone, Debug)]
pub struct World {
    /// The node.
    pub config: Config,
    /// The node's own addresses, which answer NodePorts.
    pub nodes: Vec<IpAddr>,
    /// Other nodes' addresses.
    pub peers: Vec<IpAddr>,
    /// Services by index.
    pub services: Vec<ServicePort>,
    /// Backends by index.
    pub backends: Vec<BackendAt>,
    /// Pods of this node.
    pub pods: Vec<Pod>,
    /// Routes; the kernel has its own.
    pub routes: Vec<RouteTo>,
    /// Prefixes of the cluster, with their lengths.
    pub realms: Vec<(IpAddr, u32, Realm)>,
}

/// A world as the records of the tables of one family.
#[derive(Clone, Debug)]
pub struct Records<F: NodeFamily> {
    /// The node.
    pub config: Config,
    /// Frontends and marks.
    pub frontends: Vec<(FrontendKey<F::Addr>, Frontend)>,
    /// Source ranges.
    pub sources: Vec<SourceKey<F::Addr>>,
    /// Services.
    pub services: Vec<Service>,
    /// Rings.
    pub slab: Vec<u32>,
    /// Backends.
    pub backends: Vec<Backend<F::Addr>>,
    /// Pods.
    pub endpoints: Vec<(F::Addr, Endpoint)>,
    /// Routes: prefix, its length, interface.
    pub routes: Vec<(F::Addr, u32, u32)>,
    /// Prefixes of the cluster.
    pub realms: Vec<(PrefixKey<F::Addr>, Realm)>,
}

impl World {
    /// A node without anything.
    #[must_use]
    pub fn empty() -> Self {
        let config = Config {
            node_v4: Words::ZERO,
            node_v6: Words::ZERO,
            service_ifindex: 0,
            masquerade_first: 61_000,
            masquerade_count: 1000,
            nodeport_first: 30_000,
            nodeport_last: 32_767,
            seed: 0x5eed_0001,
            overlay_ifindex: 0,
            overlay_id: 0,
            overlay_port: 0,
            flags: 0,
            uplinks: [0; UPLINKS],
        };
        let (nodes, peers, services, backends) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (pods, routes, realms) = (Vec::new(), Vec::new(), Vec::new());
        Self { config, nodes, peers, services, backends, pods, routes, realms }
    }

    /// Adds a backend; its index.
    pub fn backend(&mut self, addr: IpAddr, port: u16) -> u32 {
        let host = if self.nodes.contains(&addr) { backend_flag::HOST } else { 0 };
        self.backends.push(BackendAt { addr, port, flags: backend_flag::LIVE | host });
        self.backends.len() as u32 - 1
    }

    /// Adds a service; its index.
    pub fn service(&mut self, fronts: &[Front], cluster: &[u32]) -> usize {
        let empty = ServicePort {
            fronts: fronts.to_vec(),
            flags: 0,
            affinity: 0,
            sources: Vec::new(),
            cluster: Vec::new(),
            local: Vec::new(),
        };
        self.services.push(empty);
        self.set_backends(self.services.len() - 1, cluster);
        self.services.len() - 1
    }

    /// Gives a service other backends.
    pub fn set_backends(&mut self, service: usize, cluster: &[u32]) {
        let is_local = |index: &&u32| match self.backends.get(**index as usize) {
            Some(b) => b.flags & backend_flag::HOST != 0 || self.pods.iter().any(|pod| pod.addr == b.addr),
            None => false,
        };
        self.services[service].local = cluster.iter().filter(is_local).copied().collect();
        self.services[service].cluster = cluster.to_vec();
    }

    /// The records of one family's tables.
    #[must_use]
    pub fn records<F: NodeFamily>(&self) -> Records<F> {
        let (services, slab) = self.rings();
        let endpoint = |pod: &Pod| {
            Some((
                F::of(pod.addr)?,
                Endpoint {
                    ifindex: pod.ifindex,
                    mac: words(pod.mac),
                    flags: endpoint_flag::LIVE | pod.flags,
                },
            ))
        };
        let route = |route: &RouteTo| Some((F::of(route.prefix)?, route.bits, route.ifindex));
        let realm = |(addr, bits, realm): &(IpAddr, u32, Realm)| {
            Some((PrefixKey { bits: *bits, addr: F::of(*addr)? }, *realm))
        };
        let backend = |b: &BackendAt| Backend {
            picked: 0,
            addr: F::of(b.addr).unwrap_or(F::Addr::UNSPECIFIED),
            port: b.port.to_be(),
            flags: b.flags,
        };
        Records {
            config: self.config,
            frontends: self.frontends::<F>().into_iter().chain(self.marks::<F>()).collect(),
            sources: self.sources::<F>(),
            services,
            slab,
            backends: self.backends.iter().map(backend).collect(),
            endpoints: self.pods.iter().filter_map(endpoint).collect(),
            routes: self.routes.iter().filter_map(route).collect(),
            realms: self.realms.iter().filter_map(realm).collect(),
        }
    }

    fn rings(&self) -> (Vec<Service>, Vec<u32>) {
        // Not from slot 0, so that a ring whose offset gets lost shows.
        let mut slab = vec![u32::MAX; 21];
        let mut ring = |indexes: &[u32]| {
            let offset = slab.len() as u32;
            slab.extend(indexes);
            Ring::new(offset, indexes.len() as u32)
        };
        let service = |service: &ServicePort| Service {
            cluster: ring(&service.cluster),
            local: ring(&service.local),
            picked: 0,
            flags: service.flags,
            affinity: service.affinity,
        };
        let services = self.services.iter().map(service).collect();
        (services, slab)
    }

    fn sources<F: NodeFamily>(&self) -> Vec<SourceKey<F::Addr>> {
        let of = |(service, port): (u32, &ServicePort)| {
            let key = move |(addr, bits): &(IpAddr, u32)| Some(SourceKey::new(*bits, service, F::of(*addr)?));
            port.sources.iter().filter_map(key).collect::<Vec<_>>()
        };
        (0..).zip(&self.services).flat_map(of).collect()
    }

    fn frontends<F: NodeFamily>(&self) -> Vec<(FrontendKey<F::Addr>, Frontend)> {
        let mut frontends = Vec::new();
        for (index, service) in self.services.iter().enumerate() {
            for front in &service.fronts {
                let addr = match front.addr {
                    Some(addr) => F::of(addr),
                    None => Some(F::Addr::UNSPECIFIED),
                };
                let Some(addr) = addr else { continue };
                let key = FrontendKey { addr, port: front.port.to_be(), proto: front.proto, zero: 0 };
                frontends.push((key, Frontend { service: index as u32, flags: front.flags }));
            }
        }
        frontends
    }

    /// Whose source ranges bind echo to an address: the first service's, if no service with a backend is open there.
    fn restriction(&self, addr: IpAddr) -> Option<(u32, u32)> {
        let mut first = None;
        for (index, service) in self.services.iter().enumerate().filter(|(_, it)| !it.cluster.is_empty()) {
            for front in service.fronts.iter().filter(|front| front.addr == Some(addr)) {
                if front.flags & frontend_flag::SOURCES == 0 {
                    return None;
                }
                first.get_or_insert((index as u32, frontend_flag::SOURCES));
            }
        }
        first
    }

    fn marks<F: NodeFamily>(&self) -> Vec<(FrontendKey<F::Addr>, Frontend)> {
        let mut marks: Vec<(IpAddr, u32)> = Vec::new();
        let mut add = |addr, flags| match marks.iter_mut().find(|mark| mark.0 == addr) {
            Some(mark) => mark.1 |= flags,
            None => marks.push((addr, flags)),
        };
        for addr in &self.nodes {
            add(*addr, frontend_flag::NODE | frontend_flag::NODEPORT);
        }
        for addr in &self.peers {
            add(*addr, frontend_flag::PEER);
        }
        for service in &self.services {
            let answers = if service.cluster.is_empty() { 0 } else { frontend_flag::ANSWERS };
            for addr in service.fronts.iter().filter_map(|front| front.addr) {
                add(addr, frontend_flag::VIP | answers);
            }
        }
        let mark = |(addr, flags): (IpAddr, u32)| {
            let key = FrontendKey { addr: F::of(addr)?, port: 0, proto: 0, zero: 0 };
            let (service, sources) = self.restriction(addr).unwrap_or((0, 0));
            Some((key, Frontend { service, flags: flags | sources }))
        };
        marks.into_iter().filter_map(mark).collect()
    }
}

/// A MAC address as three words in packet order.
#[must_use]
pub fn words(mac: Mac) -> [u16; 3] {
    [0, 2, 4].map(|at| u16::from_ne_bytes([mac[at], mac[at + 1]]))
}
