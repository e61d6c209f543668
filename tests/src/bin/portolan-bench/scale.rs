//! From objects in memory to the kernel's tables.

mod cluster;
mod flows;
mod large;
mod nodes;

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portolan_abi::{Config, Words};
use portolan_apply::Applier;
use portolan_model::{Event, Store};
use portolan_node::{Object, Sizes};
use portolan_plan::{Changes, Extent, Planner};
use portolan_tests::lab::Netns;
use serde_json::{Value, json};

use crate::nft;
use crate::report::{Goal, Row, Section, Unit, median, quantile, seconds, thousands};

const HOW: &str = "The agent's own parts, without its process: `Store` → `Planner` → `Applier` → the kernel's tables of the \
default size, three endpoints for each service on 100 nodes. Each cold start is a process of its own, so that no heap \
or table is warm. *Cold start*: from parsed objects in memory to frontends, services, rings and backends in the \
kernel; making the tables and loading the programs is separate. *Endpoint change* and *new service*: from the event \
to the store of the ring's word, after which packets see it; of services all over the range; each change is looked \
up in the kernel afterwards. *Other nodes*: `Store` → `Planner` → `Applier` and `Links`, in a namespace of its own; each \
node has an address and a podCIDR of both families, so there are two routes for each, and four prefixes in the tables of what \
is inside and by the overlay where; a change gives one node other podCIDRs. *nft*: the time of `nft -f` with rules of kube-proxy's shape, in a namespace of its own.";

/// Numbers of services.
const SIZES: [u32; 3] = [10, 10_000, 100_000];

pub(crate) fn measure(quick: bool) -> Result<Section> {
    let mut rows = Vec::new();
    for services in SIZES {
        let rounds = if quick { 3 } else { 7 };
        let results: Vec<Value> = (0..rounds).map(|_| child(services, quick)).collect::<Result<_>>()?;
        rows.extend(summary(services, &results));
    }
    rows.extend(large::changes(if quick { 3 } else { 7 })?);
    rows.extend(flows::reconcile(if quick { 3 } else { 7 })?);
    rows.extend(nodes::ways(if quick { 2 } else { 5 })?);
    rows.extend(nftables(if quick { 3 } else { 7 })?);
    Ok(Section { name: "scale", title: "Scale: services into the kernel", how: HOW, rows })
}

/// The same of nftables, with rules as kube-proxy writes them and as few changes as are possible: without the time
/// that kube-proxy takes to make them. Every new connection waits for such a change when it needs it.
fn nftables(rounds: u32) -> Result<Vec<Row>> {
    const SERVICES: u32 = 1000;
    let netns = Netns::new("nft")?;
    let endpoint = |number: u32| (Ipv4Addr::from_bits(Ipv4Addr::new(11, 0, 0, 1).to_bits() + number), 8080);
    let load = nft::load(&netns, &nft::ruleset(SERVICES, endpoint(0)))?;
    let (mut moved, mut added) = (Vec::new(), Vec::new());
    for number in 0..rounds {
        moved.push(nft::load(&netns, &nft::moved(number * 7, endpoint(number + 1)))?.as_secs_f64());
        added.push(nft::load(&netns, &nft::added(SERVICES + number, endpoint(0)))?.as_secs_f64());
    }
    let row = |what: &str, samples| {
        Row::new(format!("nft, {} services: {what}", thousands(SERVICES)), Unit::Seconds, samples)
    };
    Ok(vec![
        row("all rules loaded (one endpoint each)", vec![load.as_secs_f64()]),
        row("one endpoint changes", moved),
        row("a new service", added),
    ])
}

/// One cold start in a process of its own.
fn child(services: u32, quick: bool) -> Result<Value> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--round", &services.to_string()]);
    if quick {
        command.arg("--quick");
    }
    let output = command.output().context("starting a round")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "a round with {services} services failed: {said}");
    serde_json::from_slice(&output.stdout).context("reading a round's results")
}

fn summary(services: u32, results: &[Value]) -> Vec<Row> {
    let samples = |name: &str| -> Vec<f64> {
        results
            .iter()
            .flat_map(|result| match &result[name] {
                Value::Array(list) => list.iter().filter_map(Value::as_f64).collect(),
                value => value.as_f64().into_iter().collect::<Vec<_>>(),
            })
            .collect()
    };
    let part = |name: &str| format!("{name} {}", seconds(median(&samples(name))));
    let p99 = |name: &str| format!("p99 {}", seconds(quantile(&samples(name), 0.99)));
    let at = format!("{} services", thousands(services));
    let row = |what: &str, name: &str| Row::new(format!("{at}: {what}"), Unit::Seconds, samples(name));
    let cold = row("cold start", "total").beside(format!("{}, {}", part("plan"), part("apply")));
    vec![
        if services == 100_000 { cold.goal(Goal::AtMost(0.15)) } else { cold },
        row("one endpoint changes", "endpoint").goal(Goal::P99AtMost(0.001)),
        row("a new service", "service").goal(Goal::AtMost(0.005)).beside(p99("service")),
        row("tables made, programs loaded", "load"),
        row("tables taken over (empty)", "open"),
        Row::new(format!("{at}: memory of the process"), Unit::Mebibytes, samples("rss"))
            .beside(format!("{:.0} MiB of it in the kernel's tables, mapped", median(&samples("mapped")))),
    ]
}

/// One cold start and the changes after it; the results as JSON on standard output.
pub(crate) fn round(services: u32, quick: bool) -> Result<()> {
    let mut store = Store::default();
    store.apply(Event::Upsert(cluster::node()));
    for number in 0..services {
        for object in cluster::service(number) {
            store.apply(Event::Upsert(object));
        }
    }
    let (object, load) = timed(|| Object::load(None, Sizes::default()));
    let tables = object.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?.tables()?;
    let (applier, open) = timed(|| Applier::open(tables));
    let mut world = Agent { store, planner: Planner::new(cluster::NODE), applier: applier? };

    let (plan, apply) = world.cold_start(services)?;
    let (rss, mapped) = memory()?;
    let changes = if quick { 50 } else { 200 };
    let endpoint = world.change_endpoints(services, changes)?;
    let service = world.add_services(services, changes)?;
    let list = |times: &[Duration]| times.iter().map(Duration::as_secs_f64).collect::<Vec<_>>();
    println!(
        "{}",
        json!({
            "plan": plan.as_secs_f64(), "apply": apply.as_secs_f64(), "total": (plan + apply).as_secs_f64(),
            "load": load.as_secs_f64(), "open": open.as_secs_f64(), "rss": rss, "mapped": mapped,
            "endpoint": list(&endpoint), "service": list(&service),
        })
    );
    Ok(())
}

/// The agent's parts.
struct Agent {
    store: Store,
    planner: Planner,
    applier: Applier,
}

impl Agent {
    /// Plans everything and writes it, as the agent does at its start.
    fn cold_start(&mut self, services: u32) -> Result<(Duration, Duration)> {
        let (changes, plan) = timed(|| self.planner.plan(&self.store, Extent::All));
        let (outcome, apply) = timed(|| self.apply(&changes));
        let applied = outcome?;
        ensure!(applied == services as usize, "{applied} of {services} services applied");
        Ok((plan, apply))
    }

    fn apply(&mut self, changes: &Changes) -> Result<usize> {
        if let Some(node) = &changes.node {
            self.applier.set_node(config(), node)?;
        }
        let outcome = self.applier.apply(&changes.services)?;
        ensure!(outcome.refused.is_empty(), "refused: {:?}", outcome.refused.first());
        Ok(outcome.applied)
    }

    /// One endpoint of a service gets another address; the time until packets go there.
    fn change_endpoints(&mut self, services: u32, count: u32) -> Result<Vec<Duration>> {
        (0..count)
            .map(|number| {
                let service = (number.wrapping_mul(7919)) % services;
                let event = Event::Upsert(cluster::moved(service, number));
                let taken = self.bring(event)?;
                ensure!(cluster::is_moved(&self.applier, service, number)?, "service {service} is as before");
                self.applier.settle()?;
                Ok(taken)
            })
            .collect()
    }

    /// A service is new, with its endpoints; the time until packets find it.
    fn add_services(&mut self, services: u32, count: u32) -> Result<Vec<Duration>> {
        (0..count)
            .map(|number| {
                let service = services + number;
                let [object, slice] = cluster::service(service);
                self.bring(Event::Upsert(slice))?;
                let taken = self.bring(Event::Upsert(object))?;
                ensure!(cluster::is_there(&self.applier, service)?, "service {service} is not there");
                Ok(taken)
            })
            .collect()
    }

    /// From an event to the tables.
    fn bring(&mut self, event: Event) -> Result<Duration> {
        let begun = Instant::now();
        let touched = self.store.apply(event);
        let changes = self.planner.plan(&self.store, Extent::Touched(&touched));
        self.apply(&changes)?;
        Ok(begun.elapsed())
    }
}

fn config() -> Config {
    Config {
        node_v4: Words::<1>::from_octets([192, 0, 2, 1]),
        node_v6: Words::ZERO,
        service_ifindex: 1,
        masquerade_first: 61_000,
        masquerade_count: 1000,
        nodeport_first: 30_000,
        nodeport_last: 32_767,
        seed: 0x706f_7274,
        overlay_ifindex: 0,
        overlay_id: 0,
        overlay_port: 0,
        flags: 0,
        uplinks: [0; 8],
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begun = Instant::now();
    let value = work();
    (value, begun.elapsed())
}

/// Resident memory of this process in MiB: all of it, and what is mapped from the kernel's tables.
fn memory() -> Result<(f64, f64)> {
    let status = std::fs::read_to_string("/proc/self/status").context("reading this process's status")?;
    let field = |name: &str| -> f64 {
        let line = status.lines().find(|line| line.starts_with(name));
        let number = line.and_then(|line| line.split_whitespace().nth(1)).and_then(|word| word.parse().ok());
        number.unwrap_or(f64::NAN) / 1024.0
    };
    Ok((field("VmRSS:"), field("RssFile:") + field("RssShmem:")))
}
