//! Who holds which address: the state that the log builds up. It changes only by [`Op`]s, live and on replay alike.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::IpAddr;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};

use crate::attachment::AttachmentId;
use crate::host_port::HostPort;
use crate::pool::{Availability, Pool};
use crate::record::{Op, VERSION};

/// What is known of an attachment besides its addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Meta {
    /// Name of the CNI network that it belongs to.
    pub network: String,
    /// Namespace of the pod, empty when the runtime did not say.
    pub pod_namespace: String,
    /// Name of the pod, empty when the runtime did not say.
    pub pod_name: String,
    /// UID of the pod, empty when the runtime did not say.
    pub pod_uid: String,
    /// Path of the pod's network namespace as the runtime named it. To be shown, not to be opened.
    pub netns: String,
    /// Name of the host's end of the link.
    pub host_ifname: String,
    /// MAC address of the pod's end, `02:…` text form.
    pub mac: String,
    /// Ports of the node that lead to the pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPort>,
}

impl Meta {
    /// `namespace/name` of the pod, as far as the runtime said.
    pub fn pod(&self) -> String {
        match (&*self.pod_namespace, &*self.pod_name) {
            ("", name) => name.to_owned(),
            (namespace, name) => format!("{namespace}/{name}"),
        }
    }
}

/// One address per family, each with the prefix length of the podCIDR that it is from. At least one is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The IPv4 address.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub v4: Option<Ipv4Network>,
    /// The IPv6 address.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub v6: Option<Ipv6Network>,
}

impl Addresses {
    /// The addresses without prefix lengths, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let (v4, v6) = (self.v4.map(|net| net.ip().into()), self.v6.map(|net| net.ip().into()));
        v4.into_iter().chain(v6)
    }

    /// The addresses with the prefix lengths of their podCIDRs, IPv4 first.
    pub fn networks(&self) -> impl Iterator<Item = IpNetwork> + use<> {
        self.v4.map(IpNetwork::V4).into_iter().chain(self.v6.map(IpNetwork::V6))
    }
}

/// What one attachment holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// Its holder.
    pub id: AttachmentId,
    /// Its addresses.
    pub addresses: Addresses,
    /// Its pod and devices.
    pub meta: Meta,
}

/// The state.
#[derive(Debug, Default, Clone)]
pub(crate) struct Ledger {
    live: BTreeMap<AttachmentId, Allocation>,
    held: HashMap<IpAddr, AttachmentId>,
    /// Free addresses in the order of their release, with the second of it.
    resting: VecDeque<(IpAddr, u64)>,
    last_v4: Option<IpAddr>,
    last_v6: Option<IpAddr>,
}

impl Ledger {
    pub(crate) fn get(&self, id: &AttachmentId) -> Option<&Allocation> {
        self.live.get(id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Allocation> {
        self.live.values()
    }

    /// Whether an address rests after its release.
    pub(crate) fn is_resting(&self, address: IpAddr) -> bool {
        self.resting.iter().any(|(other, _)| *other == address)
    }

    /// Who holds an address.
    pub(crate) fn holder(&self, address: IpAddr) -> Option<&Allocation> {
        self.live.get(self.held.get(&address)?)
    }

    /// A port that one of these meets and another attachment holds, with its holder.
    pub(crate) fn port_holder(
        &self,
        id: &AttachmentId,
        ports: &[HostPort],
    ) -> Option<(HostPort, &Allocation)> {
        // Most pods have none.
        if ports.is_empty() {
            return None;
        }
        let mut others = self.live.values().filter(|other| other.id != *id);
        others.find_map(|other| {
            let mut theirs = other.meta.host_ports.iter();
            let held = theirs.find(|held| ports.iter().any(|port| port.meets(held)))?;
            Some((*held, other))
        })
    }

    /// An address of that pool's family, the one whose turn is furthest from its last use. `None`: all are held or reserved.
    pub(crate) fn pick(&self, pools: &[&Pool], reserved: &HashSet<IpAddr>) -> Option<(IpAddr, IpNetwork)> {
        let resting: HashSet<IpAddr> = self.resting.iter().map(|(address, _)| *address).collect();
        let taken = |address: IpAddr| reserved.contains(&address) || self.held.contains_key(&address);
        let rested = pools.iter().find_map(|pool| {
            let last = if pool.is_ipv4() { self.last_v4 } else { self.last_v6 };
            let free = pool.next_free(last, |address| taken(address) || resting.contains(&address));
            free.map(|address| (address, pool.cidr()))
        });
        rested.or_else(|| {
            let free = self.resting.iter().map(|(address, _)| *address).filter(|address| !taken(*address));
            let mut of_pools = free.filter_map(|address| {
                let pool = pools.iter().find(|pool| pool.contains(address))?;
                Some((address, pool.cidr()))
            });
            of_pools.next()
        })
    }

    /// Forgets that addresses rest which were released `quarantine` seconds before `now` or earlier.
    pub(crate) fn wake(&mut self, now: u64, quarantine: u64) {
        // A release in the future means that the clock was set back: its rest begins now.
        self.resting.iter_mut().for_each(|(_, at)| *at = (*at).min(now));
        self.resting.retain(|(_, at)| now - *at < quarantine);
    }

    /// Applies one line.
    ///
    /// # Errors
    /// The address that two attachments would hold. The state is unchanged then.
    pub(crate) fn apply(&mut self, op: Op) -> Result<(), IpAddr> {
        match op {
            Op::Snapshot { .. } => {}
            Op::Allocate(allocation) => self.hold(*allocation)?,
            Op::Release { id, at } => self.release(&id, at),
            Op::Resting { address, at } => self.resting.push_back((address, at)),
            Op::Last { address } => self.set_last(address),
        }
        Ok(())
    }

    /// The lines that rebuild this state, the first of them numbered `first`.
    pub(crate) fn snapshot(&self, first: u64) -> Vec<Op> {
        let live = self.live.values().map(|allocation| Op::Allocate(Box::new(allocation.clone())));
        let resting = self.resting.iter().map(|(address, at)| Op::Resting { address: *address, at: *at });
        let last = self.last_v4.iter().chain(&self.last_v6).map(|address| Op::Last { address: *address });
        let body: Vec<Op> = live.chain(resting).chain(last).collect();
        let head = Op::Snapshot { version: VERSION, last: first + body.len() as u64 };
        std::iter::once(head).chain(body).collect()
    }

    /// How full a pool is.
    pub(crate) fn availability(&self, pool: &Pool, reserved: &HashSet<IpAddr>) -> Availability {
        let free = |address: IpAddr| !self.held.contains_key(&address) && !reserved.contains(&address);
        let excluded = reserved.iter().filter(|address| pool.contains(**address)).count() as u128;
        let used = self.held.keys().filter(|address| pool.contains(**address)).count() as u128;
        // A held address may have been reserved afterwards: it counts once.
        let both =
            reserved.iter().filter(|address| pool.contains(**address) && self.held.contains_key(address));
        let blocked = excluded + used - both.count() as u128;
        let resting = self.resting.iter().filter(|(address, _)| pool.contains(*address) && free(*address));
        Availability {
            cidr: pool.cidr(),
            capacity: pool.count() - excluded,
            used,
            resting: resting.count() as u128,
            available: pool.count() - blocked,
        }
    }

    fn hold(&mut self, allocation: Allocation) -> Result<(), IpAddr> {
        let id = &allocation.id;
        let foreign = |address: &IpAddr| self.held.get(address).is_some_and(|holder| holder != id);
        if let Some(address) = allocation.addresses.iter().find(foreign) {
            return Err(address);
        }
        for address in allocation.addresses.iter() {
            self.held.insert(address, id.clone());
            self.resting.retain(|(other, _)| *other != address);
            self.set_last(address);
        }
        self.live.insert(id.clone(), allocation);
        Ok(())
    }

    fn release(&mut self, id: &AttachmentId, at: u64) {
        let Some(allocation) = self.live.remove(id) else { return };
        for address in allocation.addresses.iter() {
            self.held.remove(&address);
            self.resting.push_back((address, at));
        }
    }

    fn set_last(&mut self, address: IpAddr) {
        let last = if address.is_ipv4() { &mut self.last_v4 } else { &mut self.last_v6 };
        *last = Some(address);
    }
}
