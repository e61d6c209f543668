//! A node's tables in memory.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};

use portolan_abi::{
    Affinity, AffinityKey, Backend, Config, EARLY_BYTES, Endpoint, Flow, FlowKey, Fragment, FragmentKey,
    Frontend, FrontendKey, PrefixKey, Realm, Service, SourceKey, fate,
};
use portolan_core::Tables;
use portolan_core::conntrack::yields;
use portolan_core::fragment::waiting;
use portolan_core::wire::piece;
use portolan_node::maps::NodeFamily;

use super::apply::Bytes;
use super::world::{Records, World};

/// Flows by key.
pub type Flows<F> =
    BTreeMap<FlowKey<<F as portolan_core::Family>::Addr>, Flow<<F as portolan_core::Family>::Addr>>;

/// Packets that were cut, and their pieces.
pub type Cut<F, T> = BTreeMap<FragmentKey<<F as portolan_core::Family>::Addr>, T>;

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
    realms: BTreeMap<PrefixKey<F::Addr>, Realm>,
    /// Flows.
    pub flows: RefCell<Flows<F>>,
    /// Backends that clients had last.
    pub affinity: RefCell<BTreeMap<AffinityKey<F::Addr>, Affinity>>,
    /// Packets that were cut.
    pub fragments: RefCell<Cut<F, Fragment<F::Addr>>>,
    /// Pieces that wait, by their packet.
    pub early: RefCell<Cut<F, Vec<Vec<u8>>>>,
    /// What time it is.
    pub now: Cell<u32>,
    /// Flows opened, by (service, backend).
    pub picked: RefCell<BTreeMap<(u32, u32), u64>>,
}

impl<F: NodeFamily> Memory<F> {
    /// The tables of a world, without flows.
    #[must_use]
    pub fn new(world: &World) -> Self {
        let Records { config, frontends, sources, services, slab, backends, endpoints, routes, realms } =
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
            realms: realms.into_iter().collect(),
            flows: RefCell::default(),
            affinity: RefCell::default(),
            fragments: RefCell::default(),
            early: RefCell::default(),
            now: Cell::default(),
            picked: RefCell::default(),
        }
    }

    /// Another world; flows stay.
    pub fn change(&mut self, world: &World) {
        let old = std::mem::replace(self, Self::new(world));
        (self.flows, self.affinity, self.picked) = (old.flows, old.affinity, old.picked);
        (self.fragments, self.early) = (old.fragments, old.early);
    }

    /// Keeps a piece that came before the first one of its packet.
    ///
    /// # Panics
    /// It is none.
    pub fn wait(&self, frame: &[u8]) {
        assert!(frame.len() <= EARLY_BYTES, "a piece of {} bytes", frame.len());
        let key = piece::<F, _>(&Bytes(frame)).expect("what waits is a piece").key;
        let mut fragments = self.fragments.borrow_mut();
        match fragments.get_mut(&key) {
            Some(fragment) if fragment.fate == fate::WAITING => fragment.waiting += 1,
            _ => {
                fragments.insert(key, waiting(0, self.now.get()));
                self.early.borrow_mut().remove(&key);
            }
        }
        self.early.borrow_mut().entry(key).or_default().push(frame.to_vec());
    }

    /// What is left of a first piece when all that waited for it are put back: the last of them.
    ///
    /// # Panics
    /// Nothing waited.
    pub fn release(&self, frame: &[u8]) -> Vec<u8> {
        let key = piece::<F, _>(&Bytes(frame)).expect("a first piece is one").key;
        self.fragments.borrow_mut().get_mut(&key).expect("somebody waits").waiting = 0;
        self.early.borrow_mut().remove(&key).and_then(|mut pieces| pieces.pop()).expect("somebody waits")
    }
}

/// Beats are ticks here: both clocks are the test's.
#[must_use]
pub const fn beat(tick: u32) -> u8 {
    tick as u8
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

    fn realm(&self, addr: &F::Addr) -> Option<Realm> {
        let fits = |(key, _): &(&PrefixKey<F::Addr>, &Realm)| {
            number::<F>(key.addr, key.bits) == number::<F>(*addr, key.bits)
        };
        self.realms.iter().filter(fits).max_by_key(|(key, _)| key.bits).map(|(_, realm)| *realm)
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
            (flow.state, flow.seen, flow.beat) = (state, seen, beat(seen));
        }
    }

    fn claim(&self, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> bool {
        let taken = self.flows.borrow().get(key).copied();
        taken.is_none_or(|taken| yields(key.proto, &taken, flow)) && self.put(key, flow)
    }

    fn claim_free(&self, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> bool {
        // There are no sockets here.
        self.claim(key, flow)
    }

    fn put(&self, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> bool {
        self.flows.borrow_mut().insert(*key, Flow { beat: beat(flow.seen), ..*flow });
        true
    }

    fn fragment(&self, key: &FragmentKey<F::Addr>) -> Option<Fragment<F::Addr>> {
        self.fragments.borrow().get(key).copied()
    }

    fn keep(&self, key: &FragmentKey<F::Addr>, fragment: &Fragment<F::Addr>) {
        self.fragments.borrow_mut().insert(*key, *fragment);
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
