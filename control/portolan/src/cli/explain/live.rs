//! The live tables, for reading; what the decision writes stays here. Every look is written down.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;

use portolan_abi::{
    Affinity, AffinityKey, Backend, Config, Endpoint, Flow, FlowKey, Fragment, FragmentKey, Frontend,
    FrontendKey, PrefixKey, Realm, Service, SourceKey,
};
use portolan_core::conntrack::yields;
use portolan_node::maps::NodeFamily;
use portolan_node::{FamilyTables, Tables};

/// One look into a table, and what was there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Look<A> {
    Flow(FlowKey<A>, Option<Flow<A>>),
    Frontend(FrontendKey<A>, Option<Frontend>),
    /// Whether a service admits the client.
    Source(u32, bool),
    Service(u32, Option<Service>),
    Affinity(AffinityKey<A>, Option<Affinity>),
    Slot(u32, Option<u32>),
    Backend(u32, Option<Backend<A>>),
    Endpoint(A, Option<Endpoint>),
    Route(A, Option<u32>),
    /// What is known of an address of the cluster.
    Realm(A, Option<Realm>),
    /// A flow entry that would be written.
    Write(FlowKey<A>, Flow<A>),
}

/// Flow entries by key.
type Flows<A> = HashMap<FlowKey<A>, Flow<A>>;

/// Reads the kernel's tables and keeps a diary.
pub(super) struct Recorder<'a, F: NodeFamily> {
    pub(super) config: Option<Config>,
    tables: &'a Tables,
    family: &'a FamilyTables<F>,
    routes: &'a dyn Fn(IpAddr) -> Option<u32>,
    written: RefCell<Flows<F::Addr>>,
    looks: RefCell<Vec<Look<F::Addr>>>,
}

impl<'a, F: NodeFamily> Recorder<'a, F> {
    pub(super) fn new(
        tables: &'a Tables,
        family: &'a FamilyTables<F>,
        routes: &'a dyn Fn(IpAddr) -> Option<u32>,
    ) -> Self {
        let (written, looks) = (RefCell::default(), RefCell::default());
        Self {
            config: (!tables.config.is_empty()).then(|| tables.config.read(0)),
            tables,
            family,
            routes,
            written,
            looks,
        }
    }

    /// Everything that was looked at, in order.
    pub(super) fn looks(&self) -> Vec<Look<F::Addr>> {
        self.looks.borrow().clone()
    }

    fn note<T>(&self, found: T, look: impl FnOnce(T) -> Look<F::Addr>) -> T
    where
        T: Copy,
    {
        self.looks.borrow_mut().push(look(found));
        found
    }
}

impl<F: NodeFamily> portolan_core::Tables<F> for Recorder<'_, F> {
    type Entry = FlowKey<F::Addr>;

    fn config(&self) -> Option<Config> {
        self.config
    }

    fn frontend(&self, key: &FrontendKey<F::Addr>) -> Option<Frontend> {
        // A table that cannot be read is as good as empty; opening it has succeeded.
        self.note(self.family.frontends.get(key).ok().flatten(), |found| Look::Frontend(*key, found))
    }

    fn admits(&self, service: u32, client: &F::Addr) -> bool {
        let key = SourceKey::new(8 * size_of::<F::Addr>() as u32, service, *client);
        // A look-up in a prefix table is by the longest prefix, here as in the kernel.
        let admitted = self.family.sources.get(&key).is_ok_and(|found| found.is_some());
        self.note(admitted, |admitted| Look::Source(service, admitted))
    }

    fn service(&self, index: u32) -> Option<Service> {
        let services = &self.tables.services;
        let found = (index < services.len()).then(|| services.read(index));
        self.note(found, |found| Look::Service(index, found))
    }

    fn slot(&self, slot: u32) -> Option<u32> {
        let found = (slot < self.tables.slab.len()).then(|| self.tables.slab.read(slot));
        self.note(found, |found| Look::Slot(slot, found))
    }

    fn backend(&self, index: u32) -> Option<Backend<F::Addr>> {
        let backends = &self.family.backends;
        let found = (index < backends.len()).then(|| backends.read(index));
        self.note(found, |found| Look::Backend(index, found))
    }

    fn endpoint(&self, addr: &F::Addr) -> Option<Endpoint> {
        self.note(self.family.endpoints.get(addr).ok().flatten(), |found| Look::Endpoint(*addr, found))
    }

    fn realm(&self, addr: &F::Addr) -> Option<Realm> {
        let key = PrefixKey { bits: 8 * size_of::<F::Addr>() as u32, addr: *addr };
        self.note(self.family.realms.get(&key).ok().flatten(), |found| Look::Realm(*addr, found))
    }

    fn route(&self, _src: &F::Addr, dst: &F::Addr) -> Option<u32> {
        self.note((self.routes)(F::ip(*dst)), |found| Look::Route(*dst, found))
    }

    fn fits(&self, _ifindex: u32, _len: u32) -> bool {
        // The packet asked about has no data.
        true
    }

    fn mtu(&self, _ifindex: u32) -> u32 {
        0
    }

    fn segment(&self) -> u32 {
        0
    }

    fn affinity(&self, key: &AffinityKey<F::Addr>) -> Option<Affinity> {
        let found = self.family.affinity.get(key).ok().flatten();
        self.note(found, |found| Look::Affinity(*key, found))
    }

    fn remember(&self, _key: &AffinityKey<F::Addr>, _affinity: &Affinity) {}

    fn flow(&self, key: &FlowKey<F::Addr>) -> Option<(Flow<F::Addr>, Self::Entry)> {
        let written = self.written.borrow().get(key).copied();
        let found = written.or_else(|| self.family.flows.get(key).ok().flatten());
        self.note(found, |found| Look::Flow(*key, found)).map(|flow| (flow, *key))
    }

    fn update(&self, _entry: Self::Entry, _state: u8, _seen: u32) {}

    fn claim(&self, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> bool {
        let written = self.written.borrow().get(key).copied();
        let taken = written.or_else(|| self.family.flows.get(key).ok().flatten());
        taken.is_none_or(|taken| yields(key.proto, &taken, flow)) && self.put(key, flow)
    }

    fn claim_free(&self, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> bool {
        // Which ports the host's sockets have is not asked for: another one may be taken than is told here.
        self.claim(key, flow)
    }

    fn put(&self, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> bool {
        self.written.borrow_mut().insert(*key, *flow);
        self.looks.borrow_mut().push(Look::Write(*key, *flow));
        true
    }

    fn fragment(&self, _key: &FragmentKey<F::Addr>) -> Option<Fragment<F::Addr>> {
        // What is asked about is a whole packet.
        None
    }

    fn keep(&self, _key: &FragmentKey<F::Addr>, _fragment: &Fragment<F::Addr>) {}

    fn picked(&self, _service: u32, _backend: u32) {}
}
