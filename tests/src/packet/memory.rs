//! A node's tables in memory.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use portolan_abi::{
    Affinity, AffinityKey, Backend, Config, Endpoint, Flow, FlowKey, Frontend, FrontendKey, Service,
    SourceKey,
};
use portolan_core::Tables;
use portolan_node::maps::NodeFamily;

use super::world::{Records, World};

/// Flows by key.
pub type Flows<F> =
    BTreeMap<FlowKey<<F as portolan_core::Family>::Addr>, Flow<<F as portolan_core::Family>::Addr>>;

/// One family's tables. A clone is another node in the same state.
#[derive(Clone, Debug)]
pub struct Memory<F: NodeFamily> {
    config: Config,
    frontends: HashMap<FrontendKey<F::Addr>, Frontend>,
    endpoints: HashMap<F::Addr, Endpoint>,
    sources: Vec<SourceKey<F::Addr>>,
    services: Vec<Service>,
    slab: Vec<u32>,
    backends: Vec<Backend<F::Addr>>,
    routes: Vec<(F::Addr, u32, u32)>,
    /// Flows.
    pub flows: RefCell<Flows<F>>,
    /// Backends that clients had last.
    pub affinity: RefCell<BTreeMap<AffinityKey<F::Addr>, Affinity>>,
    /// Flows opened, by (service, backend).
    pub picked: RefCell<BTreeMap<(u32, u32), u64>>,
}

impl<F: NodeFamily> Memory<F> {
    /// The tables of a world, without flows.
    #[must_use]
    pub fn new(world: &World) -> Self {
        let Records { config, frontends, sources, services, slab, backends, endpoints, routes } =
            world.records::<F>();
        Self {
            config,
            frontends: frontends.into_iter().collect(),
            endpoints: endpoints.into_iter().collect(),
            sources,
            services,
            slab,
            backends,
            routes,
            flows: RefCell::default(),
            affinity: RefCell::default(),
            picked: RefCell::default(),
        }
    }

    /// Another world; flows stay.
    pub fn change(&mut self, world: &World) {
        let old = std::mem::replace(self, Self::new(world));
        (self.flows, self.affinity, self.picked) = (old.flows, old.affinity, old.picked);
    }
}

impl<F: NodeFamily> Tables<F> for Memory<F> {
    type Entry = FlowKey<F::Addr>;

    fn config(&self) -> Option<Config> {
        Some(self.config)
    }

    fn frontend(&self, key: &FrontendKey<F::Addr>) -> Option<Frontend> {
        self.frontends.get(key).copied()
    }

    fn admits(&self, service: u32, client: &F::Addr) -> bool {
        let within = |source: &SourceKey<F::Addr>| {
            let bits = source.bits - 32;
            source.service == service && number::<F>(source.addr, bits) == number::<F>(*client, bits)
        };
        self.sources.iter().any(within)
    }

    fn service(&self, index: u32) -> Option<Service> {
        self.services.get(index as usize).copied()
    }

    fn slot(&self, slot: u32) -> Option<u32> {
        self.slab.get(slot as usize).copied()
    }

    fn backend(&self, index: u32) -> Option<Backend<F::Addr>> {
        self.backends.get(index as usize).copied()
    }

    fn endpoint(&self, addr: &F::Addr) -> Option<Endpoint> {
        self.endpoints.get(addr).copied()
    }

    fn route(&self, _src: &F::Addr, dst: &F::Addr) -> Option<u32> {
        let fits = |(prefix, bits, _): &&(F::Addr, u32, u32)| {
            number::<F>(*prefix, *bits) == number::<F>(*dst, *bits)
        };
        self.routes.iter().filter(fits).max_by_key(|route| route.1).map(|route| route.2)
    }

    fn fits(&self, _ifindex: u32, len: u32) -> bool {
        // All interfaces of the fixtures have Ethernet's MTU.
        len <= 14 + 1500
    }

    fn mtu(&self, _ifindex: u32) -> u32 {
        1500
    }

    fn segment(&self) -> u32 {
        0
    }

    fn affinity(&self, key: &AffinityKey<F::Addr>) -> Option<Affinity> {
        self.affinity.borrow().get(key).copied()
    }

    fn remember(&self, key: &AffinityKey<F::Addr>, affinity: &Affinity) {
        self.affinity.borrow_mut().insert(*key, *affinity);
    }

    fn flow(&self, key: &FlowKey<F::Addr>) -> Option<(Flow<F::Addr>, Self::Entry)> {
        self.flows.borrow().get(key).map(|flow| (*flow, *key))
    }

    fn update(&self, entry: Self::Entry, state: u8, seen: u32) {
        if let Some(flow) = self.flows.borrow_mut().get_mut(&entry) {
            (flow.state, flow.seen) = (state, seen);
        }
    }

    fn claim(&self, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> bool {
        let free = !self.flows.borrow().contains_key(key);
        free && self.put(key, flow)
    }

    fn put(&self, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> bool {
        self.flows.borrow_mut().insert(*key, *flow);
        true
    }

    fn picked(&self, service: u32, backend: u32) {
        *self.picked.borrow_mut().entry((service, backend)).or_default() += 1;
    }
}

/// The first bits of an address as a number.
fn number<F: NodeFamily>(addr: F::Addr, bits: u32) -> u128 {
    let (value, width) = match F::ip(addr) {
        std::net::IpAddr::V4(addr) => (u128::from(addr.to_bits()), 32),
        std::net::IpAddr::V6(addr) => (addr.to_bits(), 128),
    };
    value.checked_shr(width - bits).unwrap_or(0)
}
