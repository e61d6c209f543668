//! One family's frontends, marks and backends: what was written, and what is to be.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash as StdHash;

use foldhash::fast::RandomState;
use portolan_abi::{Backend, Frontend, FrontendKey, backend_flag, frontend_flag, service_flag};
use portolan_core::Address;
use portolan_core::wire::proto;
use portolan_model::Protocol;
use portolan_node::maps::{Hash, NodeFamily};
use portolan_node::{FamilyTables, MapError};
use portolan_plan::{BackendAddr, FrontendAddr, NodePlan, Scope, ServicePort};

use crate::index::IndexPool;
use crate::realms::Realms;
use crate::sources::Sources;

type Map<K, V> = HashMap<K, V, RandomState>;

/// What this family's tables hold, and the changes that wait to be written.
#[derive(Debug)]
pub(crate) struct FamilyState<F: NodeFamily> {
    /// Frontends and marks as the kernel has them, or will after [`flush`](Self::flush).
    pub(crate) written: Map<FrontendKey<F::Addr>, Frontend>,
    /// Keys whose value or existence waits to be written; some more than once.
    changed: Vec<FrontendKey<F::Addr>>,
    capacity: u32,
    /// Uses of each service address.
    vips: Map<F::Addr, Vip>,
    /// Addresses whose mark may be another; some more than once.
    touched: Vec<F::Addr>,
    nodes: HashSet<F::Addr, RandomState>,
    /// Those of them that answer NodePorts.
    node_ports: HashSet<F::Addr, RandomState>,
    peers: HashSet<F::Addr, RandomState>,
    pub(crate) backends: Map<(F::Addr, u16), Use>,
    pub(crate) indexes: IndexPool,
    /// Records found at start that are of an address another one has.
    pub(crate) twins: Vec<u32>,
    pub(crate) sources: Sources<F>,
    pub(crate) realms: Realms<F>,
}

/// How much ports of one family need.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) ports: usize,
    pub(crate) frontends: usize,
    pub(crate) backends: usize,
}

impl Size {
    pub(crate) fn add(&mut self, port: &ServicePort) {
        self.ports += 1;
        self.frontends += port.frontends.len();
        self.backends += port.cluster.len();
    }
}

/// How often a service address is used, and by whom of those with a usable backend.
#[derive(Debug, Default, Clone)]
struct Vip {
    frontends: u32,
    /// Frontends that are open to everybody.
    open: u32,
    /// Services that admit their source ranges alone.
    restricted: BTreeSet<u32>,
}

/// A backend's index and how many sets it is in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Use {
    pub(crate) index: u32,
    pub(crate) uses: u32,
}

impl<F: NodeFamily> FamilyState<F>
where
    F::Addr: StdHash,
{
    pub(crate) fn new(tables: &FamilyTables<F>) -> Self {
        Self {
            written: Map::default(),
            changed: Vec::new(),
            capacity: tables.frontends.capacity(),
            vips: Map::default(),
            touched: Vec::new(),
            nodes: HashSet::default(),
            node_ports: HashSet::default(),
            peers: HashSet::default(),
            backends: Map::default(),
            indexes: IndexPool::new(tables.backends.len()),
            twins: Vec::new(),
            sources: Sources::new(&tables.sources),
            realms: Realms::default(),
        }
    }

    /// Makes room for services of this size.
    pub(crate) fn reserve(&mut self, size: &Size) {
        // Each frontend has a mark, as a rule.
        self.written.reserve(2 * size.frontends);
        self.changed.reserve(size.frontends);
        self.vips.reserve(size.frontends);
        self.touched.reserve(size.frontends);
        self.backends.reserve(size.backends);
    }

    /// The keys of a port's frontends.
    pub(crate) fn keys(port: &ServicePort) -> impl Iterator<Item = (FrontendKey<F::Addr>, &FrontendAddr)> {
        let proto = match port.name.protocol {
            Protocol::Tcp => proto::TCP,
            Protocol::Udp => proto::UDP,
        };
        port.frontends.iter().filter_map(move |frontend| {
            let addr = match frontend.addr {
                Some(addr) => F::of(addr)?,
                None => F::Addr::UNSPECIFIED,
            };
            Some((FrontendKey { addr, port: frontend.port.to_be(), proto, zero: 0 }, frontend))
        })
    }

    /// Whether the frontends of a port that are not there yet fit, each with a mark in the worst case, besides `more`.
    pub(crate) fn missing(&self, port: &ServicePort) -> usize {
        2 * Self::keys(port).filter(|(key, _)| !self.written.contains_key(key)).count()
    }

    /// Whether that many more frontends and marks fit.
    pub(crate) fn has_room(&self, more: usize) -> bool {
        more == 0 || self.written.len() + more <= self.capacity as usize
    }

    /// Makes a port's frontends point to a service.
    pub(crate) fn claim(&mut self, port: &ServicePort, service: u32) {
        for (key, frontend) in Self::keys(port) {
            let value = Frontend { service, flags: frontend_flags(port, frontend) };
            if self.written.insert(key, value) != Some(value) {
                self.changed.push(key);
            }
        }
        if let Some(ranges) = &port.sources {
            self.sources.want(service, ranges);
        }
    }

    /// Removes a port's frontends that still point to the service.
    pub(crate) fn disclaim(&mut self, port: &ServicePort, service: u32) {
        for (key, _) in Self::keys(port) {
            self.remove_if(key, |value| value.service == service);
        }
        self.sources.drop(service);
    }

    fn remove_if(&mut self, key: FrontendKey<F::Addr>, test: impl Fn(&Frontend) -> bool) {
        if self.written.get(&key).is_some_and(test) {
            self.written.remove(&key);
            self.changed.push(key);
        }
    }

    /// Counts the addresses of a service's port in (`by` 1) or out (-1). The node's own stay the node's: its other ports
    /// are its stack's to answer.
    pub(crate) fn count_vips(&mut self, port: &ServicePort, service: u32, by: i32) {
        for frontend in &port.frontends {
            if frontend.scope == Scope::HostPort {
                continue;
            }
            let Some(addr) = frontend.addr.and_then(F::of) else { continue };
            let vip = self.vips.entry(addr).or_default();
            vip.frontends = vip.frontends.saturating_add_signed(by);
            let restricted = frontend_flags(port, frontend) & frontend_flag::SOURCES != 0;
            match (port.cluster.is_empty(), restricted) {
                (true, _) => {}
                (false, false) => vip.open = vip.open.saturating_add_signed(by),
                (false, true) if by > 0 => drop(vip.restricted.insert(service)),
                (false, true) => drop(vip.restricted.remove(&service)),
            }
            self.touched.push(addr);
        }
    }

    /// The node's own addresses, and those of the other nodes.
    pub(crate) fn set_nodes(&mut self, node: &NodePlan) {
        let sets = [
            (&mut self.nodes, &node.addresses),
            (&mut self.node_ports, &node.node_ports),
            (&mut self.peers, &node.peers),
        ];
        for (known, new) in sets {
            let new: HashSet<_, RandomState> = new.iter().copied().filter_map(F::of).collect();
            self.touched.extend(known.symmetric_difference(&new).copied());
            *known = new;
        }
    }

    /// Writes all that changed: frontends, then marks; removals after additions.
    ///
    /// Frontends before their mark, because a mark alone rejects; marks are removed after the frontends, so that a
    /// late packet is rejected rather than routed on.
    pub(crate) fn flush(&mut self, tables: &FamilyTables<F>) -> Result<(), MapError> {
        self.sources.add(tables)?;
        let frontends = std::mem::take(&mut self.changed);
        self.write(tables, frontends)?;
        for addr in std::mem::take(&mut self.touched) {
            self.mark(addr);
        }
        let marks = std::mem::take(&mut self.changed);
        self.write(tables, marks)?;
        self.sources.remove(tables)
    }

    fn write(
        &mut self,
        tables: &FamilyTables<F>,
        changed: Vec<FrontendKey<F::Addr>>,
    ) -> Result<(), MapError> {
        let (mut keys, mut values) = (Vec::with_capacity(changed.len()), Vec::with_capacity(changed.len()));
        let mut gone = Vec::new();
        for key in &changed {
            match self.written.get(key) {
                Some(value) => {
                    keys.push(*key);
                    values.push(*value);
                }
                None => gone.push(*key),
            }
        }
        let mut result = insert_all(&tables.frontends, &keys, &values);
        if matches!(result, Err(MapError::Full { .. })) && !gone.is_empty() {
            // Break before make, where there is no room for both.
            tables.frontends.remove_all(&gone).ok();
            result = insert_all(&tables.frontends, &keys, &values);
        }
        let result = result.and_then(|()| tables.frontends.remove_all(&gone));
        if result.is_err() {
            // Written again at the next opportunity: all of it is idempotent.
            self.changed.extend(changed);
        }
        result
    }

    fn mark(&mut self, addr: F::Addr) {
        let mut flags = if self.nodes.contains(&addr) { frontend_flag::NODE } else { 0 };
        if self.node_ports.contains(&addr) {
            flags |= frontend_flag::NODEPORT;
        }
        if self.peers.contains(&addr) {
            flags |= frontend_flag::PEER;
        }
        let mut service = 0;
        match self.vips.get(&addr) {
            Some(vip) if vip.frontends > 0 => {
                flags |= frontend_flag::VIP;
                if vip.open > 0 {
                    flags |= frontend_flag::ANSWERS;
                } else if let Some(first) = vip.restricted.first() {
                    // Of several services on one address, a mark has room for the ranges of one.
                    flags |= frontend_flag::ANSWERS | frontend_flag::SOURCES;
                    service = *first;
                }
            }
            _ => drop(self.vips.remove(&addr)),
        }
        let key = FrontendKey { addr, port: 0, proto: 0, zero: 0 };
        if flags == 0 {
            self.remove_if(key, |_| true);
            return;
        }
        let value = Frontend { service, flags };
        if self.written.insert(key, value) != Some(value) {
            self.changed.push(key);
        }
    }

    /// The indexes of backends, each counted as used once more, in the order given; `None` if they do not fit, and
    /// then none is counted.
    pub(crate) fn acquire(&mut self, set: &[BackendAddr], tables: &mut FamilyTables<F>) -> Option<Vec<u32>> {
        // Counted only where it may matter: there are hundred thousands of sets.
        if (self.indexes.free() as usize) < set.len()
            && (self.indexes.free() as usize) < self.missing_backends(set)
        {
            return None;
        }
        set.iter().map(|backend| self.acquire_one(backend, tables)).collect()
    }

    /// The indexes of backends that are in use, in the order given.
    pub(crate) fn indexes_of(&self, set: &[BackendAddr]) -> Vec<u32> {
        let index = |backend: &BackendAddr| {
            let key = (F::of(backend.addr)?, backend.port.to_be());
            self.backends.get(&key).map(|known| known.index)
        };
        set.iter().filter_map(index).collect()
    }

    fn missing_backends(&self, set: &[BackendAddr]) -> usize {
        let known = |backend: &BackendAddr| {
            F::of(backend.addr).is_some_and(|addr| self.backends.contains_key(&(addr, backend.port.to_be())))
        };
        set.iter().filter(|backend| !known(backend)).count()
    }

    fn acquire_one(&mut self, backend: &BackendAddr, tables: &mut FamilyTables<F>) -> Option<u32> {
        let addr = F::of(backend.addr)?;
        let port = backend.port.to_be();
        let flags = self.flags(&addr);
        match self.backends.entry((addr, port)) {
            Entry::Occupied(found) => {
                let found = found.into_mut();
                found.uses += 1;
                Some(found.index)
            }
            Entry::Vacant(place) => {
                let index = self.indexes.take()?;
                tables.backends.write(index, Backend { picked: 0, addr, port, flags });
                place.insert(Use { index, uses: 1 });
                Some(index)
            }
        }
    }

    fn flags(&self, addr: &F::Addr) -> u16 {
        let host = if self.nodes.contains(addr) { backend_flag::HOST } else { 0 };
        backend_flag::LIVE | host
    }

    /// Writes every backend's flags anew, after the node's addresses changed.
    pub(crate) fn refresh_flags(&self, tables: &mut FamilyTables<F>) {
        for ((addr, _), used) in &self.backends {
            let mut record = tables.backends.read(used.index);
            let flags = self.flags(addr);
            if record.flags != flags {
                record.flags = flags;
                tables.backends.write(used.index, record);
            }
        }
    }

    /// Ends one use of each; the indexes that are unused now, which have to rest.
    pub(crate) fn release(&mut self, set: &[BackendAddr]) -> Vec<u32> {
        let mut unused = Vec::new();
        for backend in set {
            let Some(addr) = F::of(backend.addr) else { continue };
            let key = (addr, backend.port.to_be());
            let Some(found) = self.backends.get_mut(&key) else { continue };
            found.uses = found.uses.saturating_sub(1);
            if found.uses == 0 {
                unused.push(found.index);
                self.backends.remove(&key);
            }
        }
        unused
    }

    /// Takes out backends that nobody uses: what was adopted and not wanted again.
    pub(crate) fn unused(&mut self) -> Vec<u32> {
        let mut unused = std::mem::take(&mut self.twins);
        unused.extend(self.backends.values().filter(|used| used.uses == 0).map(|used| used.index));
        self.backends.retain(|_, used| used.uses > 0);
        unused
    }

    /// Marks a record as out of use and gives its index back. Not before its grace period is over: a packet that
    /// was still about to use it goes to a backend that may well answer, instead of nowhere.
    pub(crate) fn recycle(&mut self, index: u32, tables: &mut FamilyTables<F>) {
        let mut record = tables.backends.read(index);
        record.flags = 0;
        tables.backends.write(index, record);
        self.indexes.give(index);
    }

    /// How many frontends and marks there are, and how many fit.
    pub(crate) fn usage(&self) -> (u32, u32) {
        (self.written.len() as u32, self.capacity)
    }

    /// Removes every frontend that no desired port has; after the first complete apply.
    pub(crate) fn retain(&mut self, wanted: &HashSet<FrontendKey<F::Addr>, RandomState>) {
        self.sources.touch_all();
        let keys: Vec<_> = self.written.keys().copied().collect();
        for key in keys {
            if key.port == 0 && key.proto == 0 {
                self.touched.push(key.addr);
            } else if !wanted.contains(&key) {
                self.remove_if(key, |_| true);
            }
        }
    }
}

/// See [`service_flag`].
pub(crate) fn service_flags(port: &ServicePort) -> u32 {
    let internal = if port.internal_local { service_flag::INTERNAL_LOCAL } else { 0 };
    let external = if port.external_local { service_flag::EXTERNAL_LOCAL } else { 0 };
    let direct = if port.direct { service_flag::DIRECT } else { 0 };
    internal | external | direct
}

/// See [`frontend_flag`].
pub(crate) fn frontend_flags(port: &ServicePort, frontend: &FrontendAddr) -> u32 {
    let restricted = frontend.scope == Scope::LoadBalancer && port.sources.is_some();
    let external = if frontend.scope == Scope::ClusterIp { 0 } else { frontend_flag::EXTERNAL };
    external | if restricted { frontend_flag::SOURCES } else { 0 }
}

/// From so many elements on, a second thread pays.
const SHARED: usize = 1 << 14;

/// Adds or replaces elements in no particular order. Many at once are the start of an agent: nothing else is worth a
/// CPU then.
fn insert_all<K: Copy + Sync, V: Copy + Sync>(
    table: &Hash<K, V>,
    keys: &[K],
    values: &[V],
) -> Result<(), MapError> {
    let write = |keys, values| table.insert_all(keys, values).map_err(|(_, error)| error);
    if keys.len() < SHARED {
        return write(keys, values);
    }
    let (first_keys, other_keys) = keys.split_at(keys.len() / 2);
    let (first_values, other_values) = values.split_at(keys.len() / 2);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| write(other_keys, other_values));
        let first = write(first_keys, first_values);
        match other.join() {
            Ok(other) => first.and(other),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
