//! Plans everything, or only what an event touched; both give the same.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use ipnetwork::IpNetwork;
use portolan_model::{Entry, Family, Name, Protocol, ServiceKey, Store, Touched};

use crate::claims::{Age, Claim, Claims};
use crate::host_port::{self, HostPort, HostPortConflict};
use crate::pods::PodRanges;
use crate::select::Place;
use crate::service::{ClaimList, Context, Refused, claims_of, granted, node_port_claim, plan, served};
use crate::{Changes, Condition, NodePlan, ServicePlan, node};

/// What the operator may choose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Serve `spec.externalIPs`. Off by default: whoever may write a Service could take over any address
    /// (CVE-2020-8554).
    pub external_ips: bool,
    /// First and last NodePort that nodes answer on; `None`: any.
    pub node_ports: Option<(u16, u16)>,
    /// Which of a node's InternalIPs answer NodePorts.
    pub node_port_addresses: NodePortAddresses,
    /// Ports that can be reached from outside choose their backends by consistent hashing.
    pub consistent: bool,
    /// How outside clients reach backends on other nodes.
    pub external_mode: ExternalMode,
    /// Pods of other nodes are reached by an overlay, which has addresses of this family outside; `None`: by plain routes.
    pub overlay: Option<Family>,
    /// Prefixes that are inside of the cluster besides its nodes and pods: what pods send there keeps its source address.
    pub inside: Vec<IpNetwork>,
    /// Reset TCP connections to backends that left their service though they may still answer; else they are kept.
    pub reset_departed: bool,
}

/// Which of a node's InternalIPs answer NodePorts (KEP-3866).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The first of each family.
    #[default]
    Primary,
    /// Those within one of these prefixes.
    Within(Vec<IpNetwork>),
}

/// How outside clients reach backends on other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExternalMode {
    /// The node masquerades, so that answers come back through it.
    #[default]
    Snat,
    /// Direct server return: the backend's node sees the client and answers it itself.
    Dsr,
    /// TCP as [`Dsr`](Self::Dsr), UDP as [`Snat`](Self::Snat).
    Hybrid,
}

impl ExternalMode {
    /// Whether the backend's node answers the clients of a protocol.
    #[must_use]
    pub fn is_direct(self, protocol: Protocol) -> bool {
        match self {
            Self::Snat => false,
            Self::Dsr => true,
            Self::Hybrid => protocol == Protocol::Tcp,
        }
    }
}

/// How much to plan.
#[derive(Clone, Copy, Debug)]
pub enum Extent<'a> {
    /// Every service and node.
    All,
    /// What the store said was touched, and whatever depends on it.
    Touched(&'a Touched),
}

/// The planner of one node. Remembers its last output to tell what changed.
#[derive(Debug)]
pub struct Planner {
    options: Options,
    place: Place,
    node_addrs: NodeAddrs,
    pod_ranges: PodRanges,
    node_plan: NodePlan,
    claims: Claims,
    known: BTreeMap<ServiceKey, Known>,
    conditions: BTreeMap<ServiceKey, Vec<Condition>>,
    host_ports: Vec<HostPort>,
    host_plans: BTreeMap<ServiceKey, Arc<ServicePlan>>,
}

/// Every node's own addresses, which no service may have, and whose they are.
type NodeAddrs = HashMap<IpAddr, Name, RandomState>;

/// What is known of one service from the last run.
#[derive(Debug, Default)]
struct Known {
    plan: Option<Arc<ServicePlan>>,
    age: Age,
    /// Claims that were not granted. Those that were are in the plan: kept once, this is small, and a first plan
    /// of many services spends most of its time on touching new memory.
    refused: Vec<Claim>,
}

impl Known {
    /// All claims, sorted and unique.
    fn claims(&self) -> ClaimList {
        let granted = self.plan.iter().flat_map(|plan| granted(plan));
        let mut claims: ClaimList = granted.chain(self.refused.iter().copied()).collect();
        claims.sort_unstable();
        claims.dedup();
        claims
    }
}

static NOTHING: Entry = Entry::EMPTY;

impl Planner {
    /// A planner for the node of this name, with default options.
    pub fn new(node_name: &str) -> Self {
        Self::with_options(node_name, Options::default())
    }

    /// A planner for the node of this name.
    pub fn with_options(node_name: &str, options: Options) -> Self {
        Self {
            options,
            place: Place { node: node_name.into(), zone: None },
            node_addrs: NodeAddrs::default(),
            pod_ranges: PodRanges::default(),
            node_plan: NodePlan::default(),
            claims: Claims::default(),
            known: BTreeMap::new(),
            conditions: BTreeMap::new(),
            host_ports: Vec::new(),
            host_plans: BTreeMap::new(),
        }
    }

    /// What the operator chose.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Brings the plan up to date with the store and tells what changed since the last run.
    ///
    /// Everything that the store reported as touched since then must be in the extent.
    pub fn plan(&mut self, store: &Store, extent: Extent<'_>) -> Changes {
        let mut changes = Changes::default();
        match extent {
            Extent::All => self.plan_all(store, &mut changes),
            Extent::Touched(touched) => self.plan_touched(store, touched, &mut changes),
        }
        if changes.node.is_some() {
            self.refresh_host_ports(&mut changes);
        }
        changes.conditions = self.conditions.values().flatten().cloned().collect();
        changes
    }

    /// Sets the hostPorts of this node's pods, all of them, and tells what that changes.
    pub fn set_host_ports(&mut self, store: &Store, mut ports: Vec<HostPort>) -> Changes {
        ports.sort_unstable();
        ports.dedup();
        let mut changes = Changes::default();
        if ports != self.host_ports {
            let before = std::mem::replace(&mut self.host_ports, ports);
            self.refresh_host_ports(&mut changes);
            // Services whose NodePort is a hostPort now, or no longer.
            let moved = |one: &[HostPort], other: &[HostPort]| -> Vec<HostPort> {
                one.iter().filter(|port| !other.contains(port)).cloned().collect()
            };
            let moved = [moved(&before, &self.host_ports), moved(&self.host_ports, &before)].concat();
            let owners: BTreeSet<ServiceKey> =
                moved.iter().filter_map(|port| self.node_port_owner(port).cloned()).collect();
            self.refresh_plans(store, &owners, &mut changes);
        }
        changes.conditions = self.conditions.values().flatten().cloned().collect();
        changes
    }

    /// Why the node cannot have a hostPort; other hostPorts are not asked.
    pub fn host_port_conflict(&self, port: &HostPort) -> Option<HostPortConflict> {
        if port.addresses(&self.node_plan).is_empty() {
            return Some(HostPortConflict::ForeignAddress(self.node_plan.addresses.clone()));
        }
        if !port.meets_node_ports(&self.node_plan) {
            return None;
        }
        self.node_port_owner(port).cloned().map(HostPortConflict::NodePort)
    }

    /// The service whose NodePort it is.
    fn node_port_owner(&self, port: &HostPort) -> Option<&ServiceKey> {
        let owner = self.claims.owner(&node_port_claim(port.port, port.family(), port.protocol))?;
        // The range of NodePorts may leave it out.
        let within = self.options.node_ports.is_none_or(|(first, last)| (first..=last).contains(&port.port));
        within.then_some(owner)
    }

    /// Plans the hostPorts anew: with other ports, or with other addresses of the node.
    fn refresh_host_ports(&mut self, changes: &mut Changes) {
        let plans = host_port::plans(&self.host_ports, &self.node_plan, self.options.reset_departed);
        let before = std::mem::replace(&mut self.host_plans, plans);
        let gone = before.keys().filter(|key| !self.host_plans.contains_key(*key));
        // What is no longer wanted first: its ports may be another's by now.
        changes.services.extend(gone.map(|key| (key.clone(), None)));
        let new = self.host_plans.iter().filter(|(key, plan)| before.get(*key) != Some(plan));
        changes.services.extend(new.map(|(key, plan)| (key.clone(), Some(Arc::clone(plan)))));
    }

    /// The complete current plan of all services, and that of hostPorts, each in key order: what an audit compares the
    /// kernel with.
    pub fn desired(&self) -> impl Iterator<Item = (&ServiceKey, &Arc<ServicePlan>)> {
        let services = self.known.iter().filter_map(|(key, known)| Some((key, known.plan.as_ref()?)));
        services.chain(&self.host_plans)
    }

    /// The complete current plan of the node.
    pub fn node(&self) -> &NodePlan {
        &self.node_plan
    }

    /// One walk over what is known and what the store has, both in key order: claims of all, then plans of all.
    fn plan_all(&mut self, store: &Store, changes: &mut Changes) {
        self.refresh_nodes(store, changes);
        let mut rows = rows(std::mem::take(&mut self.known), store);
        self.claims.reserve(rows.len());
        // Who is affected does not matter: everybody's turn comes.
        let mut affected = BTreeSet::new();
        for (key, known, entry) in &mut rows {
            self.refresh_claims(key, known, entry, &mut affected);
        }
        self.conditions.clear();
        let (plans, conditions) = refresh_all(&self.context(), &mut rows);
        changes.services.extend(plans);
        self.conditions.extend(conditions);
        let served = rows.into_iter().filter(|(_, known, _)| known.plan.is_some());
        self.known = served.map(|(key, known, _)| (key, known)).collect();
    }

    fn plan_touched(&mut self, store: &Store, touched: &Touched, changes: &mut Changes) {
        let mut work = touched.services.clone();
        if !touched.nodes.is_empty() {
            let moved = self.refresh_nodes(store, changes);
            if !moved.addrs.is_empty() || moved.ranges.is_some() {
                self.claims.claimants_of(|addr| moved.concerns(addr, &self.pod_ranges), &mut work);
            }
            if moved.zone {
                work.extend(store.services().map(|(key, _)| key.clone()));
            }
        }
        for key in &touched.services {
            let mut known = self.known.remove(key).unwrap_or_default();
            self.refresh_claims(key, &mut known, store.service(key).unwrap_or(&NOTHING), &mut work);
            self.known.insert(key.clone(), known);
        }
        self.refresh_plans(store, &work, changes);
    }

    /// Plans some services anew; their claims are as they were.
    fn refresh_plans(&mut self, store: &Store, keys: &BTreeSet<ServiceKey>, changes: &mut Changes) {
        for key in keys {
            let mut known = self.known.remove(key).unwrap_or_default();
            let (plan, conditions) =
                refresh_plan(&self.context(), key, &mut known, store.service(key).unwrap_or(&NOTHING));
            changes.services.extend(plan);
            self.conditions.remove(key);
            self.conditions.extend(conditions);
            if known.plan.is_some() {
                self.known.insert(key.clone(), known);
            }
        }
    }

    /// Takes the nodes in, before any service is planned with them.
    fn refresh_nodes(&mut self, store: &Store, changes: &mut Changes) -> Moved {
        let plan = node::plan(store, &self.place.node, &self.options);
        if plan != self.node_plan {
            changes.node = Some(plan.clone());
            self.node_plan = plan;
        }
        let mut addrs = NodeAddrs::default();
        for node in store.nodes() {
            for addr in node.addresses.iter().chain(&node.external) {
                addrs.entry(*addr).or_insert_with(|| node.name.clone());
            }
        }
        let zone = store.node(&self.place.node).and_then(|node| node.zone.clone());
        let ranges = PodRanges::of(store.nodes());
        let moved = Moved {
            addrs: difference(&self.node_addrs, &addrs),
            ranges: (ranges != self.pod_ranges).then(|| std::mem::replace(&mut self.pod_ranges, ranges)),
            zone: zone != self.place.zone,
        };
        self.node_addrs = addrs;
        self.place.zone = zone;
        moved
    }

    fn refresh_claims(
        &mut self,
        key: &ServiceKey,
        known: &mut Known,
        entry: &Entry,
        affected: &mut BTreeSet<ServiceKey>,
    ) {
        let service = served(entry);
        let age = Age::of(service.and_then(|service| service.created));
        let claims = service.map(|service| claims_of(service, &self.options)).unwrap_or_default();
        let before = known.claims();
        if before == claims && known.age == age {
            return;
        }
        for claim in &before {
            self.claims.remove(claim, key, affected);
        }
        for claim in claims {
            self.claims.add(claim, key, age, affected);
        }
        known.age = age;
    }

    fn context(&self) -> Context<'_> {
        Context {
            place: &self.place,
            options: &self.options,
            claims: &self.claims,
            node_addrs: &self.node_addrs,
            pod_ranges: &self.pod_ranges,
            host_ports: &self.host_ports,
            node_plan: &self.node_plan,
        }
    }
}

/// A service's plan, if it is another than before.
type Change = (ServiceKey, Option<Arc<ServicePlan>>);
/// What of a service is not served.
type Note = (ServiceKey, Vec<Condition>);
/// A service: what is known of it, and its objects.
type Row<'a> = (ServiceKey, Known, &'a Entry);

fn refresh_plan(
    context: &Context<'_>,
    key: &ServiceKey,
    known: &mut Known,
    entry: &Entry,
) -> (Option<Change>, Option<Note>) {
    let mut refused = Refused::default();
    let plan = plan(key, entry, context, &mut refused);
    let Refused { claims, mut conditions } = refused;
    known.refused = claims;
    conditions.sort_unstable();
    conditions.dedup();
    let note = (!conditions.is_empty()).then(|| (key.clone(), conditions));
    if known.plan.as_deref() == plan.as_ref() {
        return (None, note);
    }
    known.plan = plan.map(Arc::new);
    (Some((key.clone(), known.plan.clone())), note)
}

/// From so many services on, a second thread pays.
const SHARED: usize = 1 << 13;

/// Plans of all rows, in their order. A plan depends on no other: many are shared with a second thread, because at
/// the start of an agent nothing else is worth a CPU.
fn refresh_all(context: &Context<'_>, rows: &mut [Row<'_>]) -> (Vec<Change>, Vec<Note>) {
    if rows.len() < SHARED {
        return refresh_some(context, rows);
    }
    let (first, second) = rows.split_at_mut(rows.len() / 2);
    std::thread::scope(|scope| {
        let second = scope.spawn(|| refresh_some(context, second));
        let (mut plans, mut notes) = refresh_some(context, first);
        match second.join() {
            Ok((more_plans, more_notes)) => {
                plans.extend(more_plans);
                notes.extend(more_notes);
                (plans, notes)
            }
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn refresh_some(context: &Context<'_>, rows: &mut [Row<'_>]) -> (Vec<Change>, Vec<Note>) {
    let (mut plans, mut notes) = (Vec::with_capacity(rows.len()), Vec::new());
    for (key, known, entry) in rows {
        let (plan, note) = refresh_plan(context, key, known, entry);
        plans.extend(plan);
        notes.extend(note);
    }
    (plans, notes)
}

/// Joins what is known with what the store has, in key order; what the store no longer has joins [`NOTHING`].
fn rows(known: BTreeMap<ServiceKey, Known>, store: &Store) -> Vec<Row<'_>> {
    let mut rows = Vec::with_capacity(store.service_count());
    let mut known = known.into_iter().peekable();
    for (key, entry) in store.services() {
        while let Some((gone, last)) = known.next_if(|(other, _)| other < key) {
            rows.push((gone, last, &NOTHING));
        }
        let last = known.next_if(|(other, _)| other == key).map(|(_, last)| last);
        rows.push((key.clone(), last.unwrap_or_default(), entry));
    }
    rows.extend(known.map(|(gone, last)| (gone, last, &NOTHING)));
    rows
}

/// What changed about the nodes that services depend on.
struct Moved {
    /// Addresses that became or ceased to be a node's, or went to another node.
    addrs: BTreeSet<IpAddr>,
    /// The podCIDRs of before, if they are others now.
    ranges: Option<PodRanges>,
    /// This node is in another zone.
    zone: bool,
}

impl Moved {
    /// Whether an address became or ceased to be a node's or a pod's; `ranges` are the podCIDRs of now.
    fn concerns(&self, addr: IpAddr, ranges: &PodRanges) -> bool {
        let moved = |before: &PodRanges| before.node_of(addr) != ranges.node_of(addr);
        self.addrs.contains(&addr) || self.ranges.as_ref().is_some_and(moved)
    }
}

fn difference(before: &NodeAddrs, after: &NodeAddrs) -> BTreeSet<IpAddr> {
    let changed = |from: &NodeAddrs, to: &NodeAddrs| {
        from.iter().filter(|(addr, node)| to.get(*addr) != Some(*node)).map(|(addr, _)| *addr).collect()
    };
    let mut addrs: BTreeSet<IpAddr> = changed(before, after);
    addrs.extend(changed(after, before));
    addrs
}

#[cfg(test)]
mod tests;
