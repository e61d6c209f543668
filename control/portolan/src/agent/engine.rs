//! Objects in, tables and routes out.

mod node;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use portolan_abi::UPLINKS;
use portolan_apply::{Applier, Collected};
use portolan_model::{self as model, ServiceKey, Store};
use portolan_node::Tables;
use portolan_node::attach::Interface;
use portolan_node::link::{Links, Watch};
use portolan_node::sockets::Transport;
use portolan_plan::{Changes, Extent, NodePlan, health_check, is_eligible};
use portolan_source::Update;

use super::audit::{self, Findings};
use super::network::Network;
use super::ports::PortWatch;
use super::programs::Programs;
use super::sockets;
use super::state::{Core, Shared};
use super::{Departed, Options};
use crate::metrics::Metrics;

/// Differences that an audit logs at most.
const LOGGED: usize = 20;

/// Brings the node to what the objects say.
pub(super) struct Engine {
    options: Options,
    links: Links,
    programs: Arc<Programs>,
    shared: Arc<Shared>,
    network: Arc<Network>,
    metrics: Arc<Metrics>,
    service_ifindex: u32,
    /// MTU that the service device was last given, if it was since the start.
    service_mtu: Option<u32>,
    uplinks: Vec<Interface>,
    /// Those that the tables name from before, until some are found.
    known_uplinks: [u32; UPLINKS],
    /// Index of the overlay device, if there is an overlay.
    overlay: Option<u32>,
    ports: PortWatch,
    /// For what is done beside the applier.
    tables: Arc<Tables>,
    started: SystemTime,
}

impl Engine {
    pub(super) fn new(
        options: &Options,
        links: Links,
        programs: Arc<Programs>,
        (shared, network, metrics): (Arc<Shared>, Arc<Network>, Arc<Metrics>),
        tables: Tables,
        (service_ifindex, overlay): (u32, Option<u32>),
    ) -> Self {
        Self {
            options: options.clone(),
            links,
            programs,
            shared,
            network,
            metrics,
            service_ifindex,
            service_mtu: None,
            uplinks: Vec::new(),
            known_uplinks: tables.config.read(0).uplinks,
            overlay,
            ports: PortWatch::default(),
            tables: Arc::new(tables),
            started: SystemTime::now(),
        }
    }

    /// Changes of interfaces from now on.
    pub(super) async fn watch(&self) -> anyhow::Result<Watch> {
        Ok(self.links.watch().await?)
    }

    /// Takes in what the source says.
    pub(super) async fn update(&mut self, update: Update) {
        let begun = Instant::now();
        let (node, first) = tokio::task::block_in_place(|| self.change(update, begun));
        if let Some(node) = node {
            self.node(&node).await;
        }
        if first {
            self.attach_own().await;
            self.attach_sockets();
            match self.network.restore().await {
                Ok(pods) => tracing::info!(pods, "pods taken over"),
                Err(err) => self.warn("pods", Some(format!("restoring pods: {err:#}"))),
            }
            self.shared.core().synced = true;
            self.shared.announce.begin();
        }
        self.publish();
        if tokio::task::block_in_place(|| self.settle()) {
            self.end_sockets().await;
        }
    }

    /// Tells the network which public addresses the tables serve now.
    pub(super) fn publish(&self) {
        tokio::task::block_in_place(|| self.shared.announce.publish(&self.shared.core().store));
    }

    /// Objects to tables. The node's own plan comes back, if it changed or this is the first complete state, and
    /// whether it is the first.
    fn change(&self, update: Update, begun: Instant) -> (Option<NodePlan>, bool) {
        let mut core = self.shared.core();
        let first = !core.synced && update.synced;
        self.count(&update.events);
        let triggered = self.triggered(&core.store, &update.events);
        core.triggered.extend(triggered);
        let touched = core.store.apply_all(update.events);
        core.refusals = update.refusals;
        let Core { store, planner, synced, .. } = &mut *core;
        let extent = if *synced { Extent::Touched(&touched) } else { Extent::All };
        let mut changes = planner.plan(store, extent);
        if first {
            let host_ports = planner.set_host_ports(store, self.network.host_ports(None));
            changes.services.extend(host_ports.services);
            changes.conditions = host_ports.conditions;
        }
        if changes.services.is_empty() && changes.node.is_none() && !first {
            self.announced(&core, &touched, &changes);
            core.conditions = changes.conditions;
            self.taken(&mut core, &touched, true, false);
            return (None, false);
        }
        let mut written = true;
        // The node first: whether a backend is the host itself depends on its addresses.
        if let Some(node) = &changes.node {
            let config = self.config(node);
            core.config = Some(config);
            let set = core.applier.set_node(config, node);
            written &= note(&mut core, "node", set.map_err(Into::into));
        }
        written &= apply(&mut core, &changes);
        if first {
            let swept = core.applier.sweep();
            written &= note(&mut core, "sweep", swept.map_err(Into::into));
        }
        core.last_sync = begun.elapsed();
        core.syncs += 1;
        self.metrics.observe_sync(core.last_sync);
        tracing::info!(
            services = changes.services.len(),
            microseconds = core.last_sync.as_micros(),
            "tables changed"
        );
        self.announced(&core, &touched, &changes);
        core.conditions = changes.conditions;
        self.taken(&mut core, &touched, written, first);
        let node = if first { Some(core.planner.node().clone()) } else { changes.node };
        (node, first)
    }

    /// After an update was taken in: what of it matters to announcements.
    fn announced(&self, core: &Core, touched: &model::Touched, changes: &Changes) {
        let changed = changes.services.iter().map(|(key, _)| key);
        let model::Touched { nodes, pools, peers, advertisements, .. } = touched;
        let others = [nodes, pools, peers, advertisements].iter().any(|names| !names.is_empty());
        let announce = &self.shared.announce;
        announce.note(&core.store, &core.applier, touched.services.iter().chain(changed), others);
    }

    /// When those slices began to change that change now. What is older than this agent was waiting for it, not for
    /// being programmed.
    fn triggered(&self, store: &Store, events: &[model::Event]) -> Vec<SystemTime> {
        let slices = events.iter().filter_map(|event| match event {
            model::Event::Upsert(model::Object::EndpointSlice(slice)) => Some(slice),
            _ => None,
        });
        let known = |slice: &model::EndpointSlice| {
            let entry = store.service(slice.service.as_ref()?)?;
            entry.slices.iter().find(|known| known.key == slice.key)?.triggered
        };
        let news = slices.filter(|slice| slice.triggered != known(slice));
        news.filter_map(|slice| slice.triggered).filter(|at| *at > self.started).collect()
    }

    /// After an update was taken in: tells those who ask about health and latency.
    fn taken(&self, core: &mut Core, touched: &model::Touched, written: bool, first: bool) {
        let health = &self.shared.health;
        let node = &self.options.node_name;
        if first {
            let checks = core.store.services().filter_map(|(_, entry)| health_check(entry, node));
            health.set_checks(checks);
        } else if core.synced {
            for key in &touched.services {
                let check = core.store.service(key).and_then(|entry| health_check(entry, node));
                health.set_check(key, check);
            }
        }
        if first || core.synced {
            health.set_eligible(is_eligible(&core.store, node));
        }
        if health.taken(written, first) {
            self.observe_triggered(core);
        }
    }

    fn observe_triggered(&self, core: &mut Core) {
        for at in core.triggered.drain(..) {
            self.metrics.observe_network_programming(at);
        }
    }

    fn count(&self, events: &[model::Event]) {
        let kind = |event: &model::Event| match event {
            model::Event::Upsert(object) => object.key().kind,
            model::Event::Delete(key) => key.kind,
        };
        let of = |wanted| events.iter().filter(|event| kind(event) == wanted).count();
        self.metrics.count_changes(of(model::Kind::Service));
        self.metrics.count_endpoint_changes(of(model::Kind::EndpointSlice));
    }

    /// The hooks at the sockets of a cgroup, which spare packets their translation. The node works without.
    fn attach_sockets(&mut self) {
        let cgroup = self.options.socket_cgroup.clone();
        let attached = tokio::task::block_in_place(|| self.programs.attach_sockets(cgroup.as_deref()));
        if attached.is_ok() && cgroup.is_some() {
            for transport in self.ended_sockets() {
                let listed = tokio::task::block_in_place(|| self.programs.list_sockets(*transport));
                let refused = listed.err().map(|err| sockets::unlisted(*transport, err));
                self.warn(sockets::name(*transport), refused);
            }
        }
        if attached.is_ok() {
            self.shared.core().socket_cgroup = cgroup;
        }
        self.warn("sockets", attached.err().map(|err| format!("sockets: {:#}", anyhow::Error::from(err))));
    }

    /// Removes flows that are over, beside everything else: there may be hundreds of thousands.
    pub(super) fn collect(&self) {
        let (shared, tables) = (Arc::clone(&self.shared), Arc::clone(&self.tables));
        tokio::task::spawn_blocking(move || {
            let stale = shared.core().applier.take_stale();
            match portolan_apply::collect(&tables, &stale, portolan_apply::ticks()) {
                Ok(Collected { seen, expired, stale, reset }) if expired + stale + reset > 0 => {
                    tracing::debug!(entries = seen, expired, stale, reset, "flows");
                }
                Ok(_) => {}
                Err(err) => {
                    shared.core().applier.give_stale(stale);
                    tracing::error!(%err, "collecting flows");
                }
            }
        });
    }

    /// [`collect`](Self::collect), with an eye on all flows.
    pub(super) fn collect_all(&self) {
        self.shared.core().applier.suspect_flows();
        self.collect();
    }

    /// Warns while flows find no masquerade port.
    pub(super) fn watch_ports(&mut self) {
        let range = self.options.masquerade_range;
        tokio::task::block_in_place(|| {
            let mut core = self.shared.core();
            let warning = self.ports.look(&core, range);
            set_warning(&mut core, "masquerade ports", warning);
        });
    }

    /// Tries again what did not fit or could not be written: others may have made room.
    pub(super) fn retry(&self) {
        self.network.publish(None);
        tokio::task::block_in_place(|| {
            let mut core = self.shared.core();
            let refused: HashSet<ServiceKey> = core.refused.iter().map(|it| it.service.clone()).collect();
            let services: Vec<_> = (!refused.is_empty())
                .then(|| core.planner.desired())
                .into_iter()
                .flatten()
                .filter(|(key, _)| refused.contains(*key))
                .map(|(key, plan)| (key.clone(), Some(Arc::clone(plan))))
                .collect();
            if !services.is_empty() {
                let changes = Changes { services, ..Changes::default() };
                apply(&mut core, &changes);
                self.announced(&core, &model::Touched::default(), &changes);
            }
            settle(&mut core);
        });
        self.publish();
    }

    /// Compares the kernel's tables, programs and pins with what they should be, and mends what differs.
    pub(super) async fn audit(&mut self) {
        if !self.shared.core().synced {
            return;
        }
        let found = audit::inspect(&self.shared, &self.network).await;
        let findings = match found {
            Ok(findings) => findings,
            Err(err) => return self.warn("audit", Some(format!("audit: {err:#}"))),
        };
        self.warn("audit", None);
        let count = findings.all().count();
        if count == 0 {
            return self.compared(&mut self.shared.core());
        }
        for difference in findings.all().take(LOGGED) {
            tracing::error!(?difference, "not as the objects want it");
        }
        let failed = self.mend(&findings).await;
        tracing::warn!(count, ok = failed.is_empty(), "what an audit found was mended");
        self.metrics.count_differences(count);
        if failed.is_empty() {
            self.compared(&mut self.shared.core());
        }
        self.warn("repair", (!failed.is_empty()).then(|| format!("repair: {}", failed.join("; "))));
    }

    /// Mends each kind of finding; what failed.
    async fn mend(&mut self, findings: &Findings) -> Vec<String> {
        let mut results: Vec<anyhow::Result<()>> = Vec::new();
        for (table, _) in &findings.pins {
            results.push(self.programs.pin_again(table).map_err(Into::into));
        }
        if !findings.tables.is_empty() {
            results.push(tokio::task::block_in_place(|| self.repair(&mut self.shared.core())));
        }
        for (interface, role, _) in &findings.interfaces {
            results.push(self.programs.attach(interface, *role).map_err(Into::into));
        }
        if !findings.sockets.is_empty() {
            self.attach_sockets();
        }
        // Programs first: what is let in meets them.
        results.push(self.network.mend(findings.pods.keys()).await);
        results.into_iter().filter_map(|result| result.err().map(|err| format!("{err:#}"))).collect()
    }

    /// The tables are as they should be, also what could not be written before.
    fn compared(&self, core: &mut Core) {
        self.shared.health.compared();
        self.observe_triggered(core);
    }

    /// As after a restart: takes the tables over as they are and brings them to the plan.
    fn repair(&self, core: &mut Core) -> anyhow::Result<()> {
        core.applier.settle()?;
        core.applier = Applier::open(self.programs.object().tables()?)?;
        let node = core.planner.node();
        let config = self.config(node);
        core.applier.set_node(config, node)?;
        core.config = Some(config);
        let all: Vec<_> =
            core.planner.desired().map(|(key, plan)| (key.clone(), Some(Arc::clone(plan)))).collect();
        core.refused = core.applier.apply(&all)?.refused;
        let changes = Changes { services: all, ..Changes::default() };
        self.announced(core, &model::Touched::default(), &changes);
        Ok(core.applier.sweep()?)
    }

    /// After a change is visible: what it took out of use becomes available again. Whether services may have lost
    /// backends whose flows must not live on.
    fn settle(&self) -> bool {
        let stale = {
            let mut core = self.shared.core();
            let settled = core.applier.settle();
            note(&mut core, "grace", settled.map_err(Into::into));
            core.applier.has_stale()
        };
        if stale {
            self.collect();
        }
        stale
    }

    /// Ends connected sockets whose backend left their service: nobody else tells their owners.
    pub(super) async fn end_sockets(&self) {
        for transport in self.ended_sockets() {
            let Some(held) = self.programs.held_sockets(*transport) else { continue };
            let ended = sockets::end_lost(&held, &self.links, &self.network, &self.shared).await;
            let about = sockets::name(*transport);
            self.warn(about, ended.err().map(|err| format!("{about}: {err:#}")));
        }
    }

    /// Sockets that do not outlive their backend's place in the service.
    fn ended_sockets(&self) -> &'static [Transport] {
        match self.options.departed_backends {
            Departed::Keep => &[Transport::Udp],
            Departed::Reset => &[Transport::Udp, Transport::Tcp],
        }
    }

    /// Notes or clears a warning.
    fn warn(&self, about: &'static str, warning: Option<String>) {
        set_warning(&mut self.shared.core(), about, warning);
    }
}

fn set_warning(core: &mut Core, about: &'static str, warning: Option<String>) {
    match warning {
        Some(warning) if core.warnings.get(about) == Some(&warning) => {}
        Some(warning) => {
            tracing::warn!(about, "{warning}");
            core.warnings.insert(about, warning);
        }
        None => {
            core.warnings.remove(about);
        }
    }
}

/// Whether it was done.
fn note(core: &mut Core, about: &'static str, result: anyhow::Result<()>) -> bool {
    let done = result.is_ok();
    set_warning(core, about, result.err().map(|err| format!("{about}: {err:#}")));
    done
}

/// Makes available again what the last changes took out of use.
pub(super) fn settle(core: &mut Core) {
    let settled = core.applier.settle();
    note(core, "grace", settled.map_err(Into::into));
}

/// Writes services, and remembers which did not fit. Whether the tables could be written.
pub(super) fn apply(core: &mut Core, changes: &Changes) -> bool {
    match core.applier.apply(&changes.services) {
        Ok(outcome) => {
            core.refused.retain(|old| !changes.services.iter().any(|(key, _)| *key == old.service));
            core.refused.extend(outcome.refused);
            note(core, "tables", Ok(()))
        }
        Err(err) => note(core, "tables", Err(err.into())),
    }
}
