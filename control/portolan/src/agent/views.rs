//! What the agent tells about itself.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Instant;

use portolan_apply::{Difference, PortState};
use portolan_model::ServiceKey;
use portolan_node::Mode;
use portolan_plan::{BackendAddr, ExternalMode, Scope, ServicePort};

use super::announce;
use super::audit::Findings;
use super::network::{Network, mac_of, mac_text};
use super::state::{Core, Shared};
use crate::api::{
    AuditView, BackendView, CidrView, FrontendView, LoadBalancerView, LocalView, PodView, PortView,
    ServiceView, Status,
};

/// Reason of a service whose health check port nobody answers on.
const UNCHECKED: &str = "HealthCheckPort";

pub(super) fn status(shared: &Shared, network: &Network) -> Status {
    let core = shared.core();
    let node = core.planner.node();
    let ipam = network.ipam();
    let mut not_ready = Vec::new();
    if !core.synced {
        not_ready.push("the objects have not been read yet".to_owned());
    }
    if !network.has_cidrs() {
        not_ready.push(format!(
            "node {} has no podCIDR: its Node object needs spec.podCIDRs before pods can be added",
            shared.node
        ));
    }
    if node.addresses.is_empty() {
        not_ready
            .push(format!("node {} has no InternalIP in its Node object's status.addresses", shared.node));
    }
    if let Some(waited) = shared.health.overdue(Instant::now()) {
        let waited = waited.as_secs();
        not_ready
            .push(format!("changes of objects have waited for {waited} s: the warnings and the log say why"));
    }
    let cidr = |pool: portolan_ipam::Availability| CidrView {
        cidr: pool.cidr.to_string(),
        used: pool.used.to_string(),
        capacity: pool.capacity.to_string(),
    };
    let refused =
        core.refused.iter().map(|refused| format!("{}: TableFull: {}", refused.service, refused.reason));
    let conditions = core.conditions.iter().filter(|it| !it.reason.is_note()).map(condition);
    let health = shared.health.failures();
    let unchecked = health.iter().map(|(service, failure)| format!("{service}: {UNCHECKED}: {failure}"));
    let without_local = |uses: fn(&ServicePort) -> bool| {
        let ports = core.planner.desired().flat_map(|(_, plan)| &plan.ports);
        ports.filter(|port| uses(port) && port.local.is_empty() && !port.cluster.is_empty()).count()
    };
    let mut warnings: Vec<String> = core.warnings.values().cloned().collect();
    warnings.extend(announce::warnings(&shared.announce));
    let mut status = Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: shared.node.clone(),
        ready: not_ready.is_empty(),
        not_ready,
        uptime_seconds: shared.started.elapsed().as_secs(),
        addresses: node.addresses.clone(),
        pod_cidrs: ipam.available().into_iter().map(cidr).collect(),
        attach_mode: match shared.mode {
            Mode::Tcx => "tcx".to_owned(),
            Mode::Clsact => "clsact".to_owned(),
        },
        external_mode: match core.planner.options().external_mode {
            ExternalMode::Snat => "snat".to_owned(),
            ExternalMode::Dsr => "dsr".to_owned(),
            ExternalMode::Hybrid => "hybrid".to_owned(),
        },
        interfaces: core.interfaces.clone(),
        socket_cgroup: core.socket_cgroup.as_ref().map(|path| path.display().to_string()),
        services: core.planner.desired().count(),
        internal_without_local: without_local(|port| port.internal_local),
        external_without_local: without_local(|port| port.external_local),
        pods: ipam.list().len(),
        routes: node.routes.len(),
        tables: tables(&core),
        refused_documents: core.refusals.iter().map(ToString::to_string).collect(),
        conditions: conditions.chain(refused).chain(unchecked).collect(),
        warnings,
        last_sync_microseconds: u64::try_from(core.last_sync.as_micros()).unwrap_or(u64::MAX),
        syncs: core.syncs,
        ..Status::default()
    };
    announce::numbers(&shared.announce, &mut status);
    status
}

/// All services of type LoadBalancer, with how their addresses are announced.
pub(super) fn load_balancers(shared: &Shared) -> Vec<LoadBalancerView> {
    announce::lb(&shared.announce, &shared.core().store)
}

fn condition(condition: &portolan_plan::Condition) -> String {
    format!("{}: {}: {}", condition.service, condition.reason.as_str(), condition.message)
}

fn tables(core: &Core) -> BTreeMap<String, (u64, u64)> {
    let usage = core.applier.usage();
    [
        ("services", usage.services),
        ("slots", usage.slots),
        ("frontends-v4", usage.frontends_v4),
        ("frontends-v6", usage.frontends_v6),
        ("backends-v4", usage.backends_v4),
        ("backends-v6", usage.backends_v6),
    ]
    .into_iter()
    .map(|(name, (used, all))| (name.to_owned(), (u64::from(used), u64::from(all))))
    .collect()
}

/// All services that are served or of which there is something to say, sorted by namespace and name.
pub(super) fn services(shared: &Shared) -> Vec<ServiceView> {
    let core = shared.core();
    let mut views: HashMap<ServiceKey, ServiceView> = core
        .applier
        .services()
        .map(|(key, plan, states)| {
            let ports = plan.ports.iter().zip(&states).map(|(port, state)| port_view(port, state)).collect();
            (key.clone(), ServiceView { ports, ..nothing_of(key) })
        })
        .collect();
    for condition in &core.conditions {
        let text = format!("{}: {}", condition.reason.as_str(), condition.message);
        let view = view_of(&mut views, &condition.service);
        if condition.reason.is_note() { view.notes.push(text) } else { view.conditions.push(text) }
    }
    for refused in &core.refused {
        view_of(&mut views, &refused.service).conditions.push(format!("TableFull: {}", refused.reason));
    }
    for (service, failure) in shared.health.failures() {
        view_of(&mut views, &service).conditions.push(format!("{UNCHECKED}: {failure}"));
    }
    for refusal in &core.refusals {
        if let Some(service) = &refusal.service {
            view_of(&mut views, service).conditions.push(format!("Invalid: {refusal}"));
        }
    }
    let mut views: Vec<ServiceView> = views.into_values().collect();
    views.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    views
}

fn view_of<'a>(views: &'a mut HashMap<ServiceKey, ServiceView>, key: &ServiceKey) -> &'a mut ServiceView {
    views.entry(key.clone()).or_insert_with(|| nothing_of(key))
}

/// A service of which no port is served.
fn nothing_of(key: &ServiceKey) -> ServiceView {
    ServiceView {
        namespace: key.namespace().to_owned(),
        name: key.name().to_owned(),
        ..ServiceView::default()
    }
}

fn port_view(port: &ServicePort, state: &PortState) -> PortView {
    let frontends = port.frontends.iter().map(|frontend| FrontendView {
        kind: match frontend.scope {
            Scope::ClusterIp => "ClusterIP",
            Scope::NodePort => "NodePort",
            Scope::LoadBalancer => "LoadBalancer",
            Scope::External => "ExternalIP",
            Scope::HostPort => "HostPort",
        }
        .to_owned(),
        address: frontend.addr,
        port: frontend.port,
    });
    let backends = port.cluster.iter().zip(&state.backends).map(|(backend, (_, flows))| BackendView {
        address: backend.addr,
        port: backend.port,
        local: backend.local,
        flows: *flows,
    });
    PortView {
        name: port.name.port.to_string(),
        protocol: port.name.protocol.to_string(),
        family: port.name.family.to_string(),
        frontends: frontends.collect(),
        backends: backends.collect(),
        flows: state.picked,
        internal_local: port.internal_local,
        external_local: port.external_local,
        affinity: port.affinity,
        why: port.why.into(),
        local: port.uses_local().then(|| local_view(port)),
        sources: port.sources.as_ref().map(|ranges| ranges.iter().map(ToString::to_string).collect()),
        direct: port.direct,
        consistent: port.consistent,
    }
}

fn local_view(port: &ServicePort) -> LocalView {
    let address = |backend: &BackendAddr| SocketAddr::new(backend.addr, backend.port);
    LocalView { backends: port.local.iter().map(address).collect(), why: port.local_why.into() }
}

/// What of the node is not as the objects want it.
pub(super) fn audit(findings: &Findings) -> Vec<AuditView> {
    let view = |Difference { place, desired, kernel }| AuditView { place, desired, kernel };
    findings.all().cloned().map(view).collect()
}

/// All pods of this node, by attachment.
pub(super) fn pods(network: &Network) -> Vec<PodView> {
    let allocations = network.ipam().list();
    let absent = network.absent().clone();
    let view = |allocation: portolan_ipam::Allocation| PodView {
        mac: mac_text(mac_of(&allocation)),
        interface_present: !absent.contains(&allocation.meta.host_ifname),
        host_ports: allocation.meta.host_ports,
        namespace: allocation.meta.pod_namespace,
        name: allocation.meta.pod_name,
        container: allocation.id.container().to_owned(),
        interface: allocation.id.ifname().to_owned(),
        host_interface: allocation.meta.host_ifname,
        addresses: allocation.addresses.iter().collect(),
    };
    allocations.into_iter().map(view).collect()
}
