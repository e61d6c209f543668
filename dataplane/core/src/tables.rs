//! The node's state as decisions see it.

use portolan_abi::{
    Affinity, AffinityKey, Backend, Config, Endpoint, Flow, FlowKey, Fragment, FragmentKey, Frontend,
    FrontendKey, Realm, Service,
};

use crate::Family;

/// Tables of one address family. Look-ups return copies: an entry may change while a packet is decided.
pub trait Tables<F: Family> {
    /// Names an entry of the flow table for [`update`](Self::update).
    type Entry: Copy;

    /// What the node is.
    fn config(&self) -> Option<Config>;
    /// A frontend, or an address mark.
    fn frontend(&self, key: &FrontendKey<F::Addr>) -> Option<Frontend>;
    /// Whether a client is in one of a service's source ranges.
    fn admits(&self, service: u32, client: &F::Addr) -> bool;
    /// A service.
    fn service(&self, index: u32) -> Option<Service>;
    /// The backend index in a slot of the slab.
    fn slot(&self, slot: u32) -> Option<u32>;
    /// A backend.
    fn backend(&self, index: u32) -> Option<Backend<F::Addr>>;
    /// A pod of this node.
    fn endpoint(&self, addr: &F::Addr) -> Option<Endpoint>;
    /// What is known of an address of the cluster.
    fn realm(&self, addr: &F::Addr) -> Option<Realm>;
    /// The interface that packets from `src` to `dst` leave by; `None` without a route.
    fn route(&self, src: &F::Addr, dst: &F::Addr) -> Option<u32>;

    /// The backend that a client had last.
    fn affinity(&self, key: &AffinityKey<F::Addr>) -> Option<Affinity>;
    /// Remembers the backend that a client has now.
    fn remember(&self, key: &AffinityKey<F::Addr>, affinity: &Affinity);

    /// Whether the packet, of `len` bytes with its Ethernet header, is not longer than an interface takes.
    fn fits(&self, ifindex: u32, len: u32) -> bool;

    /// The longest IP packet that an interface takes; 0 if nobody knows.
    fn mtu(&self, ifindex: u32) -> u32;
    /// Bytes of data in each packet that the kernel will cut this one into; 0 if it is one packet.
    fn segment(&self) -> u32;

    /// A flow.
    fn flow(&self, key: &FlowKey<F::Addr>) -> Option<(Flow<F::Addr>, Self::Entry)>;
    /// Changes state and time of a flow entry.
    fn update(&self, entry: Self::Entry, state: u8, seen: u32);
    /// Adds a flow unless the key is taken by one that does not [yield](crate::conntrack::yields); whether it was added.
    fn claim(&self, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> bool;
    /// [`claim`](Self::claim), unless a socket of the host takes what has this key.
    fn claim_free(&self, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> bool;
    /// Adds or replaces a flow; whether the table took it.
    fn put(&self, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> bool;
    /// What becomes of the pieces of a packet.
    fn fragment(&self, key: &FragmentKey<F::Addr>) -> Option<Fragment<F::Addr>>;
    /// Says what becomes of the pieces of a packet.
    fn keep(&self, key: &FragmentKey<F::Addr>, fragment: &Fragment<F::Addr>);
    /// Counts a flow opened for a service and its backend.
    fn picked(&self, service: u32, backend: u32);
}
