//! The current good objects, indexed the way the planner walks them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::{EndpointSlice, Kind, Name, NamespacedName, Node, Object, ObjectKey, Pod, Service, ServiceKey};

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
    /// Services that changed themselves or of which a slice did.
    pub services: BTreeSet<ServiceKey>,
    /// Nodes.
    pub nodes: BTreeSet<Name>,
    /// Pods.
    pub pods: BTreeSet<NamespacedName>,
}

impl Touched {
    /// Nothing changed.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.nodes.is_empty() && self.pods.is_empty()
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
    names: Names,
}

/// A service and its slices; either may be there without the other.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The service.
    pub service: Option<Service>,
    /// Its slices, sorted by name.
    pub slices: SmallVec<[EndpointSlice; 1]>,
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

    fn apply_into(&mut self, event: Event, touched: &mut Touched) {
        match event {
            Event::Upsert(Object::Service(service)) => self.put_service(service, touched),
            Event::Upsert(Object::EndpointSlice(slice)) => self.put_slice(slice, touched),
            Event::Upsert(Object::Node(node)) => {
                let name = node.name.clone();
                if self.nodes.get(&name) != Some(&node) {
                    self.nodes.insert(name.clone(), node);
                    touched.nodes.insert(name);
                }
            }
            Event::Upsert(Object::Pod(pod)) => {
                let key = pod.key.clone();
                if self.pods.get(&key) != Some(&pod) {
                    self.pods.insert(key.clone(), pod);
                    touched.pods.insert(key);
                }
            }
            Event::Delete(key) => self.delete(&key, touched),
        }
    }

    fn put_service(&mut self, mut service: Service, touched: &mut Touched) {
        for port in &mut service.ports {
            self.names.share(&mut port.name);
        }
        let key = service.key.clone();
        let entry = self.services.entry(key.clone()).or_default();
        if entry.service.as_ref() != Some(&service) {
            entry.service = Some(service);
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
                    touched.services.insert(key.id.clone());
                }
                self.forget_if_empty(&key.id);
            }
            Kind::EndpointSlice => self.drop_slice(&key.id, touched),
            Kind::Node => {
                if let Some((name, _)) = self.nodes.remove_entry(key.name()) {
                    touched.nodes.insert(name);
                }
            }
            Kind::Pod => {
                if self.pods.remove(&key.id).is_some() {
                    touched.pods.insert(key.id.clone());
                }
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
