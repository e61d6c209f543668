//! The current good objects, indexed the way the planner walks them.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::{
    BgpAdvertisement, BgpPeer, EndpointSlice, Kind, LoadBalancerPool, Name, NamespacedName, Node, Object,
    ObjectKey, Pod, Service, ServiceKey, ServiceStatus,
};

/// A change of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The object is new or has changed.
    Upsert(Object),
    /// The object is gone.
    Delete(ObjectKey),
}

/// What events changed. An event that repeats what is known touches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Services that changed themselves, or of which a slice or the ServiceStatus did.
    pub services: BTreeSet<ServiceKey>,
    /// Nodes.
    pub nodes: BTreeSet<Name>,
    /// Pods.
    pub pods: BTreeSet<NamespacedName>,
    /// Pools.
    pub pools: BTreeSet<Name>,
    /// BGP peers.
    pub peers: BTreeSet<Name>,
    /// BGP advertisements.
    pub advertisements: BTreeSet<Name>,
}

impl Touched {
    /// Nothing changed.
    pub fn is_empty(&self) -> bool {
        let Self { services, nodes, pods, pools, peers, advertisements } = self;
        let names = [nodes, pools, peers, advertisements];
        services.is_empty() && pods.is_empty() && names.iter().all(|names| names.is_empty())
    }
}

/// All current objects. A service and its slices are kept together: planning is one walk in key order,
/// without a look-up per service.
#[derive(Debug, Default)]
pub struct Store {
    services: BTreeMap<ServiceKey, Entry>,
    slice_service: HashMap<NamespacedName, ServiceKey>,
    nodes: BTreeMap<Name, Node>,
    pods: BTreeMap<NamespacedName, Pod>,
    pools: BTreeMap<Name, LoadBalancerPool>,
    peers: BTreeMap<Name, BgpPeer>,
    advertisements: BTreeMap<Name, BgpAdvertisement>,
    names: Names,
}

/// A service and its slices; either may be there without the other.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The service. Its ingress addresses are its own and after them those of its ServiceStatus.
    pub service: Option<Service>,
    /// Its slices, sorted by name.
    pub slices: SmallVec<[EndpointSlice; 1]>,
    /// Few services have one: it is worth a pointer.
    given: Option<Box<Given>>,
}

/// What a ServiceStatus adds to a service.
#[derive(Debug, Default, PartialEq, Eq)]
struct Given {
    /// The addresses that it says.
    ips: Vec<IpAddr>,
    /// The ingress addresses of the service itself.
    own: Vec<IpAddr>,
}

impl Entry {
    /// Neither a service nor slices.
    pub const EMPTY: Self = Self { service: None, slices: SmallVec::new_const(), given: None };

    /// The ingress addresses that stand in the service's own status.
    pub fn own_ingress_ips(&self) -> &[IpAddr] {
        match (&self.given, &self.service) {
            (Some(given), _) => &given.own,
            (None, Some(service)) => &service.ingress_ips,
            (None, None) => &[],
        }
    }

    /// Puts a service in whose ingress addresses are its own alone.
    fn set_service(&mut self, mut service: Service) {
        if let Some(given) = &mut self.given {
            given.own = std::mem::take(&mut service.ingress_ips);
            service.ingress_ips = given.all();
        }
        self.service = Some(service);
    }

    /// Whether `service` is what [`set_service`](Self::set_service) put in last.
    fn has_service(&self, service: &Service) -> bool {
        let Some(known) = &self.service else { return false };
        match &self.given {
            None => known == service,
            Some(given) => {
                let own = Service { ingress_ips: given.all(), ..service.clone() };
                given.own == service.ingress_ips && *known == own
            }
        }
    }

    /// Puts the addresses of a ServiceStatus in; `None` takes them out.
    fn set_given(&mut self, ips: Option<Vec<IpAddr>>) {
        let own = self.own_ingress_ips().to_vec();
        self.given = ips.map(|ips| Box::new(Given { ips, own: own.clone() }));
        if let Some(service) = &mut self.service {
            service.ingress_ips = self.given.as_ref().map_or(own, |given| given.all());
        }
    }
}

impl Given {
    fn all(&self) -> Vec<IpAddr> {
        let added = self.ips.iter().filter(|ip| !self.own.contains(ip));
        self.own.iter().chain(added).copied().collect()
    }
}

impl Store {
    /// Takes one event in and tells what it changed.
    pub fn apply(&mut self, event: Event) -> Touched {
        let mut touched = Touched::default();
        self.apply_into(event, &mut touched);
        touched
    }

    /// Takes several events in and tells what they changed together.
    pub fn apply_all(&mut self, events: impl IntoIterator<Item = Event>) -> Touched {
        let mut touched = Touched::default();
        for event in events {
            self.apply_into(event, &mut touched);
        }
        touched
    }

    /// Services and their slices in key order.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceKey, &Entry)> {
        self.services.iter()
    }

    /// One service and its slices.
    pub fn service(&self, key: &ServiceKey) -> Option<&Entry> {
        self.services.get(key)
    }

    /// How many services and orphaned sets of slices there are.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// Nodes in name order.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// One node.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// Pods in key order.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// Pools in name order.
    pub fn pools(&self) -> impl Iterator<Item = &LoadBalancerPool> {
        self.pools.values()
    }

    /// One pool.
    pub fn pool(&self, name: &str) -> Option<&LoadBalancerPool> {
        self.pools.get(name)
    }

    /// BGP peers in name order.
    pub fn peers(&self) -> impl Iterator<Item = &BgpPeer> {
        self.peers.values()
    }

    /// BGP advertisements in name order.
    pub fn advertisements(&self) -> impl Iterator<Item = &BgpAdvertisement> {
        self.advertisements.values()
    }

    fn apply_into(&mut self, event: Event, touched: &mut Touched) {
        match event {
            Event::Upsert(Object::Service(service)) => self.put_service(service, touched),
            Event::Upsert(Object::EndpointSlice(slice)) => self.put_slice(slice, touched),
            Event::Upsert(Object::Node(node)) => {
                put(&mut self.nodes, node.name.clone(), node, &mut touched.nodes);
            }
            Event::Upsert(Object::Pod(pod)) => put(&mut self.pods, pod.key.clone(), pod, &mut touched.pods),
            Event::Upsert(Object::LoadBalancerPool(pool)) => {
                put(&mut self.pools, pool.name.clone(), pool, &mut touched.pools);
            }
            Event::Upsert(Object::BgpPeer(peer)) => {
                put(&mut self.peers, peer.name.clone(), peer, &mut touched.peers);
            }
            Event::Upsert(Object::BgpAdvertisement(advertisement)) => {
                let name = advertisement.name.clone();
                put(&mut self.advertisements, name, advertisement, &mut touched.advertisements);
            }
            Event::Upsert(Object::ServiceStatus(status)) => self.put_status(status, touched),
            Event::Delete(key) => self.delete(&key, touched),
        }
    }

    fn put_service(&mut self, mut service: Service, touched: &mut Touched) {
        for port in &mut service.ports {
            self.names.share(&mut port.name);
        }
        let key = service.key.clone();
        let entry = self.services.entry(key.clone()).or_default();
        if !entry.has_service(&service) {
            entry.set_service(service);
            touched.services.insert(key);
        }
    }

    fn put_status(&mut self, status: ServiceStatus, touched: &mut Touched) {
        let ServiceStatus { key, ingress_ips } = status;
        let entry = self.services.entry(key.clone()).or_default();
        if entry.given.as_ref().is_none_or(|given| given.ips != ingress_ips) {
            entry.set_given(Some(ingress_ips));
            touched.services.insert(key);
        }
    }

    fn put_slice(&mut self, mut slice: EndpointSlice, touched: &mut Touched) {
        let previous = self.slice_service.get(&slice.key);
        if previous.is_some() && previous != slice.service.as_ref() {
            self.drop_slice(&slice.key.clone(), touched);
        }
        let Some(service) = slice.service.clone() else { return };
        for port in &mut slice.ports {
            self.names.share(&mut port.name);
        }
        for node in slice.endpoints.iter_mut().filter_map(|endpoint| endpoint.node.as_mut()) {
            self.names.share(node);
        }
        let entry = self.services.entry(service.clone()).or_default();
        match entry.slices.binary_search_by(|known| known.key.cmp(&slice.key)) {
            Ok(at) if entry.slices[at] == slice => return,
            Ok(at) => entry.slices[at] = slice,
            Err(at) => {
                self.slice_service.insert(slice.key.clone(), service.clone());
                entry.slices.insert(at, slice);
            }
        }
        touched.services.insert(service);
    }

    fn delete(&mut self, key: &ObjectKey, touched: &mut Touched) {
        match key.kind {
            Kind::Service => {
                let Some(entry) = self.services.get_mut(&key.id) else { return };
                if entry.service.take().is_some() {
                    if let Some(given) = &mut entry.given {
                        given.own.clear();
                    }
                    touched.services.insert(key.id.clone());
                }
                self.forget_if_empty(&key.id);
            }
            Kind::EndpointSlice => self.drop_slice(&key.id, touched),
            Kind::ServiceStatus => {
                let Some(entry) = self.services.get_mut(&key.id) else { return };
                if entry.given.is_some() {
                    entry.set_given(None);
                    touched.services.insert(key.id.clone());
                }
                self.forget_if_empty(&key.id);
            }
            Kind::Node => touched.nodes.extend(remove(&mut self.nodes, key.name())),
            Kind::Pod => touched.pods.extend(remove(&mut self.pods, &key.id)),
            Kind::LoadBalancerPool => touched.pools.extend(remove(&mut self.pools, key.name())),
            Kind::BgpPeer => touched.peers.extend(remove(&mut self.peers, key.name())),
            Kind::BgpAdvertisement => {
                touched.advertisements.extend(remove(&mut self.advertisements, key.name()));
            }
        }
    }

    fn drop_slice(&mut self, slice: &NamespacedName, touched: &mut Touched) {
        let Some(service) = self.slice_service.remove(slice) else { return };
        if let Some(entry) = self.services.get_mut(&service) {
            entry.slices.retain(|known| known.key != *slice);
        }
        self.forget_if_empty(&service);
        touched.services.insert(service);
    }

    fn forget_if_empty(&mut self, key: &ServiceKey) {
        if self.services.get(key).is_some_and(|entry| *entry == Entry::default()) {
            self.services.remove(key);
        }
    }
}

/// Puts an object in; its key is touched if that changes something.
fn put<K: Ord + Clone, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: V, touched: &mut BTreeSet<K>) {
    if map.get(&key) != Some(&value) {
        map.insert(key.clone(), value);
        touched.insert(key);
    }
}

/// Takes an object out; its key, if it was there.
fn remove<K: Ord + Borrow<Q>, V, Q: Ord + ?Sized>(map: &mut BTreeMap<K, V>, key: &Q) -> Option<K> {
    map.remove_entry(key).map(|(key, _)| key)
}

/// One allocation per name of a node or port instead of one per mention: they then stay in the cache.
#[derive(Debug, Default)]
struct Names {
    shared: HashSet<Name>,
    /// How many there were after the last clearing out.
    kept: usize,
}

impl Names {
    fn share(&mut self, name: &mut Name) {
        if let Some(shared) = self.shared.get(name) {
            *name = shared.clone();
            return;
        }
        // Clusters that scale nodes up and down would otherwise collect names for ever.
        if self.shared.len() > 2 * self.kept + 1024 {
            self.shared.retain(|name| Arc::strong_count(name) > 1);
            self.kept = self.shared.len();
        }
        self.shared.insert(name.clone());
    }
}

#[cfg(test)]
mod tests;
