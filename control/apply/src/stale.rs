//! Which flows point to a backend that their service no longer has.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use portolan_abi::{Flow, FlowKey, FrontendKey, PrefixKey, exit, frontend_flag, realm_flag, state};
use portolan_core::conntrack::is_closed;
use portolan_core::wire::{proto, split_ports};
use portolan_model::Protocol;
use portolan_node::maps::NodeFamily;
use portolan_node::{FamilyTables, MapError, Tables};
use portolan_plan::{BackendAddr, ServicePlan, ServicePort};

use crate::applier::Applier;

/// Services whose flows may point to a backend they no longer have, and ways that flows may no longer take.
#[derive(Debug, Default)]
pub struct Stale {
    /// Those of UDP, whose flows then go.
    udp: HashSet<u32, RandomState>,
    /// Those of TCP that reset connections to such a backend.
    tcp: HashMap<u32, Option<Port>, RandomState>,
    /// Interfaces that are gone.
    gone: HashSet<u32, RandomState>,
    /// Whether flows to pods of other nodes may lead past the overlay.
    ways: bool,
}

/// A port of a plan; its backends are not copied.
#[derive(Debug)]
struct Port {
    plan: Arc<ServicePlan>,
    at: usize,
}

impl Port {
    /// Whether connections to a backend go on: it is in a set, or its slice still names it.
    fn keeps(&self, addr: IpAddr, number: u16) -> bool {
        let Some(port) = self.plan.ports.get(self.at) else { return false };
        let has =
            |set: &[BackendAddr]| set.binary_search_by_key(&(addr, number), |b| (b.addr, b.port)).is_ok();
        has(&port.cluster) || has(&port.local) || port.kept.as_deref().is_some_and(has)
    }
}

/// TCP ports as they are installed.
#[derive(Debug)]
pub struct Connections(HashMap<u32, Port, RandomState>);

impl Connections {
    /// Whether a service, by its index, still has a backend, or its slices do.
    #[must_use]
    pub fn keep(&self, service: u32, addr: IpAddr, port: u16) -> bool {
        self.0.get(&service).is_some_and(|found| found.keeps(addr, port))
    }
}

/// What shall become of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It must not live on: the next packet opens another.
    Stale,
    /// Both its ends are to be told.
    Reset,
}

impl Stale {
    fn is_empty(&self) -> bool {
        self.udp.is_empty() && self.tcp.is_empty() && self.gone.is_empty() && !self.ways
    }

    /// A service may have lost backends; `now`: the port of the plan it has now, if it has one.
    pub(crate) fn suspect(
        &mut self,
        index: u32,
        port: &ServicePort,
        now: Option<(&Arc<ServicePlan>, usize)>,
    ) {
        match port.name.protocol {
            Protocol::Udp => drop(self.udp.insert(index)),
            // Which backends nobody asked the planner for: they are kept.
            Protocol::Tcp if port.kept.is_none() => {}
            Protocol::Tcp => {
                let now = now.map(|(plan, at)| Port { plan: Arc::clone(plan), at });
                self.tcp.insert(index, now);
            }
        }
    }

    fn extend(&mut self, other: Self) {
        self.udp.extend(other.udp);
        self.gone.extend(other.gone);
        self.ways |= other.ways;
        for (index, port) in other.tcp {
            // What was found out since counts.
            self.tcp.entry(index).or_insert(port);
        }
    }

    /// Whether a flow leads, or its answers do, to where nothing gets through any more: an interface that is gone, or the network
    /// between nodes, which knows no pods where there is an overlay. Its next packet finds another way.
    pub(crate) fn is_misled<F: NodeFamily>(
        &self,
        flow: &Flow<F::Addr>,
        overlay: u32,
        family: &FamilyTables<F>,
    ) -> Result<bool, MapError> {
        let is_lost = |kind, ifindex| match kind {
            exit::OVERLAY => ifindex != overlay,
            exit::UPLINK | exit::TUNNEL => self.gone.contains(&ifindex),
            _ => false,
        };
        if is_lost(flow.exit, flow.ifindex) || is_lost(flow.from, flow.from_ifindex) {
            return Ok(true);
        }
        if !self.ways || overlay == 0 || flow.exit != exit::UPLINK || flow.ifindex == overlay {
            return Ok(false);
        }
        let bits = 8 * size_of::<F::Addr>() as u32;
        let realm = family.realms.get(&PrefixKey { bits, addr: flow.dst })?;
        if realm.is_none_or(|realm| realm.flags & (realm_flag::NODE_V4 | realm_flag::NODE_V6) == 0) {
            return Ok(false);
        }
        // What a node itself asks comes without the overlay, and is answered so.
        let mark = family.frontends.get(&FrontendKey { addr: flow.dst, port: 0, proto: 0, zero: 0 })?;
        Ok(mark.is_none_or(|mark| mark.flags & frontend_flag::PEER == 0))
    }

    /// What shall become of a flow of one of these services, if its backend is not the service's any more.
    pub(crate) fn fate<F: NodeFamily>(
        &self,
        key: &FlowKey<F::Addr>,
        flow: &Flow<F::Addr>,
        family: &FamilyTables<F>,
        tables: &Tables,
    ) -> Option<Fate> {
        if key.proto == u32::from(proto::UDP) {
            let lost = self.udp.contains(&flow.service) && !tables.draws(flow.service, flow.backend);
            return lost.then_some(Fate::Stale);
        }
        let port = self.tcp.get(&flow.service)?;
        // What is over needs nobody's help.
        if key.proto != u32::from(proto::TCP) || is_closed(flow.state) {
            return None;
        }
        let (addr, number) = backend(key, flow);
        let kept = port.as_ref().is_some_and(|port| port.keeps(F::ip(addr), number));
        // A backend that came since the plan was taken.
        let fresh =
            || tables.draws(flow.service, flow.backend) && has_record(addr, number, flow.backend, family);
        (!kept && !fresh()).then_some(Fate::Reset)
    }
}

/// The address and port of a flow's backend, from an entry of either direction.
fn backend<A: Copy>(key: &FlowKey<A>, flow: &Flow<A>) -> (A, u16) {
    let (addr, port) = if flow.state & state::REPLY != 0 {
        (key.src, split_ports(key.ports).0)
    } else {
        (flow.dst, split_ports(flow.ports).1)
    };
    (addr, u16::from_be(port))
}

/// Whether a backend's record is still of this address and port: it may have been given to another.
fn has_record<F: NodeFamily>(addr: F::Addr, number: u16, index: u32, family: &FamilyTables<F>) -> bool {
    if index >= family.backends.len() {
        return false;
    }
    let record = family.backends.read(index);
    record.addr == addr && u16::from_be(record.port) == number
}

impl Applier {
    /// Whether a change left something for [`collect`](crate::collect) to look at, which should be soon.
    #[must_use]
    pub fn has_stale(&self) -> bool {
        !self.stale.is_empty()
    }

    /// What a change left for [`collect`](crate::collect) to look at.
    pub fn take_stale(&mut self) -> Stale {
        std::mem::take(&mut self.stale)
    }

    /// What could not be looked at.
    pub fn give_stale(&mut self, stale: Stale) {
        self.stale.extend(stale);
    }

    /// An interface is gone: has the next [`collect`](crate::collect) remove flows that lead there.
    pub fn suspect_interface(&mut self, ifindex: u32) {
        self.stale.gone.insert(ifindex);
    }

    /// Which connections each TCP service keeps.
    #[must_use]
    pub fn connections(&self) -> Connections {
        let mut found = HashMap::default();
        for installed in self.installed.values() {
            for (at, (port, slot)) in installed.ports().enumerate() {
                if port.name.protocol == Protocol::Tcp {
                    found.insert(slot.index, Port { plan: Arc::clone(&installed.plan), at });
                }
            }
        }
        Connections(found)
    }

    /// Has the next [`collect`](crate::collect) look at all flows, also at UDP flows of services that are no more: one
    /// that a change should have removed, and did not, would go on for ever.
    pub fn suspect_flows(&mut self) {
        let mut gone: HashSet<u32, RandomState> = (0..self.tables.services.len()).collect();
        for installed in self.installed.values() {
            for (at, (port, slot)) in installed.ports().enumerate() {
                gone.remove(&slot.index);
                self.stale.suspect(slot.index, port, Some((&installed.plan, at)));
            }
        }
        self.stale.udp.extend(gone);
        self.stale.ways = true;
    }
}
