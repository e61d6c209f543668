//! Metrics: what the agent counts itself, what it knows and what the programs count, in Prometheus' text format.

mod http;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portolan_abi::counter;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets, linear_buckets};
use prometheus_client::registry::Registry;

use crate::api::{PortView, ServiceView, Status};
pub use http::serve;

/// What only the agent can count, under the names that dashboards for kube-proxy have.
#[derive(Debug)]
pub struct Metrics {
    sync_duration: Histogram,
    last_sync: Gauge<f64, AtomicU64>,
    service_changes: Counter,
    endpoint_changes: Counter,
    differences: Counter,
    last_queued: Gauge<f64, AtomicU64>,
    network_programming: Histogram,
    healthz: Family<Labels, Counter>,
    livez: Family<Labels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Nothing counted yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            // 0.1 ms to 13 s: from one endpoint to a whole cluster on a busy node.
            sync_duration: Histogram::new(exponential_buckets(1e-4, 2.0, 18)),
            last_sync: Gauge::default(),
            service_changes: Counter::default(),
            endpoint_changes: Counter::default(),
            differences: Counter::default(),
            last_queued: Gauge::default(),
            network_programming: Histogram::new(network_programming_buckets()),
            healthz: Family::default(),
            livez: Family::default(),
        }
    }

    /// A change has become visible to packets just now, and took so long from being read.
    pub fn observe_sync(&self, took: Duration) {
        self.sync_duration.observe(took.as_secs_f64());
        self.last_sync.set(seconds_now());
    }

    /// A change has come and waits to be taken in.
    pub fn observe_queued(&self) {
        self.last_queued.set(seconds_now());
    }

    /// What a pod or service changed to at this time is visible to packets since just now.
    pub fn observe_network_programming(&self, since: SystemTime) {
        // Clocks of two nodes differ: what seems to lie ahead took no time.
        let took = SystemTime::now().duration_since(since).unwrap_or_default();
        self.network_programming.observe(took.as_secs_f64());
    }

    /// `/healthz` was answered with this status.
    pub fn count_healthz(&self, code: u16) {
        self.healthz.get_or_create(&vec![("code", code.to_string())]).inc();
    }

    /// `/livez` was answered with this status.
    pub fn count_livez(&self, code: u16) {
        self.livez.get_or_create(&vec![("code", code.to_string())]).inc();
    }

    /// So many Services have changed.
    pub fn count_changes(&self, services: usize) {
        self.service_changes.inc_by(services as u64);
    }

    /// So many EndpointSlices have changed.
    pub fn count_endpoint_changes(&self, slices: usize) {
        self.endpoint_changes.inc_by(slices as u64);
    }

    /// An audit has found so much that was not as it should be.
    pub fn count_differences(&self, found: usize) {
        self.differences.inc_by(found as u64);
    }

    /// All metrics as text, version 0.0.4. `outcomes` are packets in the order of [`counter::ALL`].
    #[must_use]
    pub fn render(&self, status: &Status, services: &[ServiceView], outcomes: &[u64]) -> String {
        let mut registry = Registry::default();
        let syncs = registry.sub_registry_with_prefix("kubeproxy_sync_proxy_rules");
        self.register(syncs);
        without_local(syncs, status);
        self.register_health(registry.sub_registry_with_prefix("kubeproxy"));
        let portolan = registry.sub_registry_with_prefix("portolan");
        packets(portolan, outcomes);
        agent(portolan, status);
        tables(portolan, status);
        pod_addresses(portolan, status);
        announcements(portolan, status);
        flows(portolan, services);
        let help = "What audits found in the kernel that was not as the objects want it, and mended";
        portolan.register("audit_differences", help, self.differences.clone());
        let mut text = String::new();
        // Writing to a string fails only if a metric cannot be encoded, which none of the kinds here can.
        if let Err(error) = text::encode_registry(&mut text, &registry) {
            tracing::error!(%error, "encoding metrics");
        }
        classic(&text)
    }

    fn register(&self, registry: &mut Registry) {
        let help = "Time that changes take from being read to being visible to packets";
        registry.register("duration_seconds", help, self.sync_duration.clone());
        let help = "When the last change became visible to packets";
        registry.register("last_timestamp_seconds", help, self.last_sync.clone());
        let help = "Services that changed";
        registry.register("service_changes", help, self.service_changes.clone());
        registry.register("endpoint_changes", "EndpointSlices that changed", self.endpoint_changes.clone());
        let help = "When the last change of objects came";
        registry.register("last_queued_timestamp_seconds", help, self.last_queued.clone());
    }

    fn register_health(&self, registry: &mut Registry) {
        let help = "Time from a change of a pod or service to its endpoints being visible to packets";
        registry.register("network_programming_duration_seconds", help, self.network_programming.clone());
        registry.register("proxy_healthz", "Answers of /healthz, by status", self.healthz.clone());
        registry.register("proxy_livez", "Answers of /livez, by status", self.livez.clone());
    }
}

/// kube-proxy's: objectives of clusters are written in them.
fn network_programming_buckets() -> impl Iterator<Item = f64> {
    let parts = [(0.25, 0.25, 2), (1.0, 1.0, 59), (60.0, 5.0, 12), (120.0, 30.0, 7)];
    parts.into_iter().flat_map(|(first, step, count)| linear_buckets(first, step, count))
}

/// Since 1970. A clock before that is no time to report.
fn seconds_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// A gauge, though its name ends as a counter's: kube-proxy's dashboards ask for it so.
fn without_local(registry: &mut Registry, status: &Status) {
    let ports = Family::<Labels, Gauge>::default();
    let numbers = [("internal", status.internal_without_local), ("external", status.external_without_local)];
    for (policy, number) in numbers {
        ports.get_or_create(&vec![("traffic_policy", policy.to_owned())]).set(signed(number as u64));
    }
    let help = "Ports of services with a Local traffic policy that have endpoints, but none on this node";
    registry.register("no_local_endpoints_total", help, ports);
}

type Labels = Vec<(&'static str, String)>;

fn packets(registry: &mut Registry, outcomes: &[u64]) {
    let (all, drops) = (Family::<Labels, Counter>::default(), Family::<Labels, Counter>::default());
    for (outcome, packets) in counter::ALL.iter().zip(outcomes) {
        all.get_or_create(&vec![("outcome", outcome.name.to_owned())]).inc_by(*packets);
        if outcome.is_drop() {
            drops.get_or_create(&vec![("reason", outcome.name.to_owned())]).inc_by(*packets);
        }
    }
    registry.register("packets", "Packets that programs saw, by what became of them", all);
    registry.register("drops", "Packets dropped or rejected, by reason", drops);
}

fn agent(registry: &mut Registry, status: &Status) {
    let build = Family::<Labels, Gauge>::default();
    let labels = vec![
        ("version", status.version.clone()),
        ("node", status.node.clone()),
        ("attach_mode", status.attach_mode.clone()),
    ];
    build.get_or_create(&labels).set(1);
    registry.register("build_info", "The agent: always 1", build);
    let numbers = [
        ("ready", "Whether pods can be added and services are as desired", usize::from(status.ready)),
        ("services", "Services", status.services),
        ("pods", "Pods of this node", status.pods),
        ("routes", "Routes to other nodes", status.routes),
        ("refused_documents", "Documents of the source that were refused", status.refused_documents.len()),
        ("conditions", "Conditions of services: what of them is not served", status.conditions.len()),
        ("warnings", "Warnings of the agent", status.warnings.len()),
    ];
    for (name, help, value) in numbers {
        registry.register(name, help, gauge(value as u64));
    }
    let syncs = Counter::<u64>::default();
    syncs.inc_by(status.syncs);
    registry.register("syncs", "Changes applied", syncs);
    let last = Gauge::<f64, AtomicU64>::default();
    last.set(Duration::from_micros(status.last_sync_microseconds).as_secs_f64());
    registry.register("last_sync_seconds", "Time that the last change took", last);
}

fn tables(registry: &mut Registry, status: &Status) {
    let (entries, capacity) = (Family::<Labels, Gauge>::default(), Family::<Labels, Gauge>::default());
    for (table, (used, all)) in &status.tables {
        let labels = vec![("table", table.clone())];
        entries.get_or_create(&labels).set(signed(*used));
        capacity.get_or_create(&labels).set(signed(*all));
    }
    registry.register("table_entries", "Entries in use, by table", entries);
    registry.register("table_capacity", "Entries there is room for, by table", capacity);
}

fn pod_addresses(registry: &mut Registry, status: &Status) {
    // As floats: an IPv6 podCIDR has more addresses than 64 bits count.
    type Addresses = Family<Labels, Gauge<f64, AtomicU64>>;
    let (used, capacity) = (Addresses::default(), Addresses::default());
    for cidr in &status.pod_cidrs {
        let labels = vec![("cidr", cidr.cidr.clone())];
        for (family, number) in [(&used, &cidr.used), (&capacity, &cidr.capacity)] {
            if let Ok(number) = number.parse() {
                family.get_or_create(&labels).set(number);
            }
        }
    }
    registry.register("pod_addresses_used", "Addresses given to pods, by podCIDR", used);
    registry.register("pod_addresses_capacity", "Addresses there are for pods, by podCIDR", capacity);
}

fn announcements(registry: &mut Registry, status: &Status) {
    let sessions = Family::<Labels, Gauge>::default();
    for (peer, up) in &status.bgp_sessions {
        sessions.get_or_create(&vec![("peer", peer.clone())]).set(i64::from(*up));
    }
    registry.register("bgp_session_up", "Whether the session with a BGP peer is there", sessions);
    registry.register("bgp_routes", "Prefixes announced by BGP", gauge(status.bgp_routes as u64));
    let help = "Public addresses that this node announces on layer 2";
    registry.register("l2_owned", help, gauge(status.l2_owned as u64));
}

fn flows(registry: &mut Registry, services: &[ServiceView]) {
    let flows = Family::<Labels, Counter>::default();
    for service in services {
        for port in &service.ports {
            let labels = vec![
                ("namespace", service.namespace.clone()),
                ("service", service.name.clone()),
                ("port", port_label(port)),
                ("protocol", port.protocol.clone()),
                ("family", port.family.clone()),
            ];
            flows.get_or_create(&labels).inc_by(port.flows);
        }
    }
    registry.register("service_flows", "Flows opened to a service's port", flows);
}

/// The port's name; its number if it has none, as only the sole port of a service may.
fn port_label(port: &PortView) -> String {
    match port.frontends.first() {
        Some(frontend) if port.name.is_empty() => frontend.port.to_string(),
        _ => port.name.clone(),
    }
}

fn gauge(value: u64) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(signed(value));
    gauge
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// From OpenMetrics to the older text format, which every scraper reads: there the description of a counter bears
/// the same name as its samples.
fn classic(open: &str) -> String {
    let counters: HashSet<&str> =
        open.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut text = String::with_capacity(open.len());
    for line in open.lines() {
        let about = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE "));
        match about.and_then(|about| about.split_once(' ')) {
            Some((name, rest)) if counters.contains(name) => {
                let kind = &line[..line.len() - name.len() - rest.len() - 1];
                text.extend([kind, name, "_total ", rest]);
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}
