//! How long a container runtime waits for a pod's network.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{Agent, AgentOptions, Cluster, Pod, Runtime};
use serde_json::json;

use crate::net::node::sized;
use crate::report::{Goal, Row, Section, Unit, median, quantile, seconds};

const HOW: &str = "The plugin's process from its start to its end, as a container runtime calls it, with a running agent: \
address on disk, veth pair, addresses of both families, routes, neighbours, programs attached before the interface \
comes up. The pod's namespace exists already. In parallel: all at once, so that each waits for most of the others on a \
small machine; beside: as many calls of VERSION at once, which start the plugin and do nothing else. Memory: what is resident \
of the agent, with tables of the default size; without: less the pages of the kernel's tables that it maps, which are there \
whether it runs or not.";

/// Pods added at once: as many as a node has by Kubernetes' default.
const PARALLEL: usize = 110;
/// Pods whose agent's memory is looked at.
const PODS: usize = 250;

pub(crate) fn measure(quick: bool) -> Result<Section> {
    let (_cluster, agent) = start()?;
    let empty = Memory::of(&agent)?;
    let (sequential, rounds) = if quick { (20, 1) } else { (150, 5) };
    let (add, del) = one_by_one(&agent, sequential)?;
    let p99 = |samples: &[f64]| format!("p99 {}", seconds(quantile(samples, 0.99)));
    let (add_p99, del_p99) = (p99(&add), p99(&del));
    let mut rows = vec![
        Row::new("ADD, one after the other", Unit::Seconds, add).goal(Goal::AtMost(0.010)).beside(add_p99),
        Row::new("DEL, one after the other", Unit::Seconds, del).beside(del_p99),
    ];
    let mut pods =
        (0..PARALLEL).map(|number| Pod::add(&agent, &format!("p{number}"))).collect::<Result<Vec<_>>>()?;
    rows.extend(parallel(&agent, &pods, rounds)?);
    for number in PARALLEL..PODS {
        pods.push(Pod::add(&agent, &format!("p{number}"))?);
    }
    rows.push(memory(empty, Memory::of(&agent)?));
    Ok(Section { name: "cni", title: "Pods: CNI ADD", how: HOW, rows })
}

/// A node with addresses for all pods, and for those that were just deleted.
fn start() -> Result<(Cluster, Agent)> {
    let cluster = Cluster::new()?;
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: node1}\n\
                spec: {podCIDRs: [10.244.16.0/20, \"fd00:10:244:1::/64\"]}\n\
                status: {addresses: [{type: InternalIP, address: 192.0.2.11}, \
                {type: InternalIP, address: \"2001:db8:1::11\"}]}\n";
    cluster.write("nodes.yaml", node)?;
    let agent = cluster.start_agent(&cluster.nodes[0], &sized(AgentOptions::default()))?;
    Ok((cluster, agent))
}

/// ADD of all pods at once, in turns with as many calls that do nothing.
fn parallel(agent: &Agent, pods: &[Pod], rounds: u32) -> Result<[Row; 3]> {
    let runtime = Runtime::of(agent);
    let (mut each, mut whole, mut nothing, mut whole_nothing) = (vec![], vec![], vec![], vec![]);
    let last = |times: &[f64]| times.iter().copied().fold(0.0, f64::max);
    for _ in 0..rounds {
        let idle = at_once(pods, |_| version(&runtime))?;
        for pod in pods {
            call(pod, "DEL")?;
        }
        let added = at_once(pods, |pod| call(pod, "ADD"))?;
        whole.push(last(&added));
        whole_nothing.push(last(&idle));
        each.extend(added);
        nothing.extend(idle);
    }
    let at = format!("ADD, {} in parallel", pods.len());
    let beside = |samples: &[f64]| format!("VERSION {}", seconds(median(samples)));
    let typical = Row::new(at.as_str(), Unit::Seconds, each.clone()).goal(Goal::AtMost(0.010));
    let slow = Row::new(format!("{at}: the slowest"), Unit::Seconds, each).goal(Goal::P99AtMost(0.050));
    let whole =
        Row::new(format!("{at}: until the last is done"), Unit::Seconds, whole).goal(Goal::AtMost(2.0));
    let idle_p99 = format!("VERSION p99 {}", seconds(quantile(&nothing, 0.99)));
    Ok([typical.beside(beside(&nothing)), slow.beside(idle_p99), whole.beside(beside(&whole_nothing))])
}

/// Resident memory of an agent in MiB.
#[derive(Clone, Copy, Debug)]
struct Memory {
    all: f64,
    /// The part that is in the kernel's tables.
    tables: f64,
}

impl Memory {
    fn of(agent: &Agent) -> Result<Self> {
        let process = agent.process().context("the agent does not run")?;
        let path = format!("/proc/{process}/smaps");
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let memory = Self::read(&text).with_context(|| format!("reading {path}"))?;
        ensure!(memory.tables > 0.0, "the agent maps no table: {path} has changed");
        Ok(memory)
    }

    /// From the text of `smaps` (proc_pid_smaps(5)).
    fn read(text: &str) -> Result<Self> {
        let mut memory = Self { all: 0.0, tables: 0.0 };
        let mut is_table = false;
        for line in text.lines() {
            let first = line.split_whitespace().next().unwrap_or_default();
            if let Some(size) = line.strip_prefix("Rss:") {
                let kibibytes: f64 = size.trim().trim_end_matches(" kB").parse().context("a size")?;
                memory.all += kibibytes / 1024.0;
                memory.tables += if is_table { kibibytes / 1024.0 } else { 0.0 };
            } else if !first.ends_with(':') {
                // A mapping begins with its addresses and ends with what is mapped.
                is_table = line.ends_with("bpf-map");
            }
        }
        Ok(memory)
    }

    fn own(self) -> f64 {
        self.all - self.tables
    }
}

fn memory(empty: Memory, full: Memory) -> Row {
    let beside = format!(
        "{:.0} MiB with {:.0} MiB of the kernel's tables; without pods {:.0} MiB",
        full.all,
        full.tables,
        empty.own()
    );
    Row::new(format!("agent's memory, {PODS} pods"), Unit::Mebibytes, vec![full.own()])
        .goal(Goal::AtMost(40.0))
        .beside(beside)
}

/// Seconds of ADD and DEL of a pod, again and again.
fn one_by_one(agent: &Agent, count: u32) -> Result<(Vec<f64>, Vec<f64>)> {
    let pod = Pod::add(agent, "pod")?;
    let (mut add, mut del) = (Vec::new(), Vec::new());
    for _ in 0..count {
        del.push(call(&pod, "DEL")?.as_secs_f64());
        add.push(call(&pod, "ADD")?.as_secs_f64());
    }
    Ok((add, del))
}

/// Seconds of each call, all at the same time.
fn at_once(pods: &[Pod], call: impl Fn(&Pod) -> Result<Duration> + Sync) -> Result<Vec<f64>> {
    std::thread::scope(|scope| {
        let call = &call;
        let threads: Vec<_> = pods.iter().map(|pod| scope.spawn(move || call(pod))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Duration>>| {
            let taken = thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
            Ok(taken?.as_secs_f64())
        };
        threads.into_iter().map(join).collect()
    })
}

/// The plugin without anything to do.
fn version(runtime: &Runtime) -> Result<Duration> {
    let begun = Instant::now();
    let output = runtime.operate("VERSION", &json!({}))?;
    ensure!(output.status.success(), "VERSION: {}", String::from_utf8_lossy(&output.stdout));
    Ok(begun.elapsed())
}

fn call(pod: &Pod, command: &str) -> Result<Duration> {
    let begun = Instant::now();
    let output = pod.call(command).with_context(|| format!("{command} of pod {}", pod.name))?;
    let taken = begun.elapsed();
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{command} of pod {}: {said}", pod.name);
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_tables_are_told_from_others() {
        let text = "7f10-7f20 rw-s 00000000 00:0e 1 anon_inode:bpf-map\nSize: 4096 kB\nRss:  2048 kB\nVmFlags: rd\n\
                    7f20-7f30 rw-p 00000000 00:00 0 \nRss:  512 kB\n7f30-7f40 rw-p 0 00:00 0 [heap]\nRss: 1024 kB\n";
        let memory = Memory::read(text).unwrap();
        assert!((memory.all - 3.5).abs() < 1e-9 && (memory.own() - 1.5).abs() < 1e-9, "{memory:?}");
    }
}
