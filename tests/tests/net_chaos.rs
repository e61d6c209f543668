//! Pods come and go while everything around them fails: no address is given twice, and nothing is left in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use portolan_tests::lab::{Agent, AgentOptions, Cluster, Netns, Random, Runtime, operate, poll};
use serde_json::{Value, json};

/// Rounds of the chaos, all threads together.
const ROUNDS: usize = 1000;
/// Runtimes that call the plugin at the same time.
const THREADS: usize = 4;
/// Pods of each of them, there or not.
const PODS: usize = 6;
/// Deaths of the agent meanwhile.
const DEATHS: usize = 8;
/// hostPorts that pods fight for.
const HOST_PORTS: u64 = 4;

fn open() -> Result<(Cluster, [Agent; 2])> {
    let cluster = Cluster::new()?;
    cluster.write_example("nodes.yaml")?;
    let agents = cluster.start_agents(&AgentOptions::default())?;
    Ok((cluster, agents))
}

/// What pods hold, from the end of an ADD that succeeded to the begin of DEL: never two the same.
#[derive(Default)]
struct Held {
    /// The holder's container id by what it holds.
    things: Mutex<BTreeMap<String, String>>,
    /// How many pods have got something.
    given: AtomicUsize,
}

impl Held {
    fn take(&self, container: &str, things: &[String]) -> Result<()> {
        let mut held = self.things.lock().map_err(|_| anyhow::anyhow!("another thread failed"))?;
        for thing in things {
            if let Some(other) = held.insert(thing.clone(), container.to_owned()) {
                bail!("{thing} was given to {container} while {other} has it");
            }
        }
        self.given.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn give_back(&self, container: &str) -> Result<()> {
        let mut held = self.things.lock().map_err(|_| anyhow::anyhow!("another thread failed"))?;
        held.retain(|_, holder| holder != container);
        Ok(())
    }
}

/// A pod, or the place for one.
#[derive(Default)]
struct Slot {
    /// Its namespace; none before the first ADD and after it was deleted under the pod.
    netns: Option<Netns>,
    /// Its container id, until a DEL of it succeeded.
    container: Option<String>,
    /// What ADD answered, if it succeeded.
    result: Option<Value>,
}

impl Slot {
    fn call(&self, runtime: &Runtime, command: &str, extra: &Value) -> Result<std::process::Output> {
        let container = self.container.as_deref().context("there is no pod")?;
        let path = self.netns.as_ref().map_or_else(|| "/run/netns/gone".to_owned(), Netns::path);
        runtime.call(command, (container, &path, container), extra)
    }

    /// Adds the pod under a new container id. An ADD that fails leaves its id to be deleted.
    fn add(&mut self, runtime: &Runtime, id: String, port: Option<u64>, held: &Held) -> Result<()> {
        // What was made for another id, or was in the middle of it, is no namespace for this one.
        self.netns = Some(Netns::new("chaos")?);
        self.container = Some(id.clone());
        let mappings = port.map(|port| json!({"hostPort": 9000 + port, "containerPort": 80}));
        let asked = json!({"runtimeConfig": {"portMappings": mappings.into_iter().collect::<Vec<_>>()}});
        let output = self.call(runtime, "ADD", &asked)?;
        let answer: Value = serde_json::from_slice(&output.stdout).context("reading the plugin's answer")?;
        if !output.status.success() {
            // The agent is away, or another has the port: try again later.
            ensure!(answer["code"] == 11, "ADD of {id}: {answer}");
            return Ok(());
        }
        let mut things = addresses(&answer)?;
        things.extend(port.map(|port| format!("port {port}")));
        held.take(&id, &things)?;
        self.result = Some(answer);
        Ok(())
    }

    fn del(&mut self, runtime: &Runtime, held: &Held) -> Result<()> {
        let Some(container) = self.container.clone() else { return Ok(()) };
        held.give_back(&container)?;
        let output = self.call(runtime, "DEL", &json!({}))?;
        ensure!(output.status.success(), "DEL: {}", String::from_utf8_lossy(&output.stdout));
        self.container = None;
        self.result = None;
        Ok(())
    }

    fn check(&self, runtime: &Runtime) -> Result<()> {
        let (Some(result), Some(_)) = (&self.result, &self.netns) else { return Ok(()) };
        let output = self.call(runtime, "CHECK", &json!({ "prevResult": result }))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success() || text.contains("\"code\":11"), "CHECK of a sound pod: {text}");
        Ok(())
    }
}

fn addresses(answer: &Value) -> Result<Vec<String>> {
    let ips = answer["ips"].as_array().context("the answer has no ips")?;
    let ips: Vec<String> = ips.iter().filter_map(|ip| Some(ip["address"].as_str()?.to_owned())).collect();
    ensure!(ips.len() == 2, "one address of each family: {answer}");
    Ok(ips)
}

/// One runtime: rounds until there are enough of them.
fn work(runtime: &Runtime, random: &mut Random, (held, rounds): (&Held, &AtomicUsize)) -> Result<Vec<Slot>> {
    let mut slots: Vec<Slot> = (0..PODS).map(|_| Slot::default()).collect();
    loop {
        let round = rounds.fetch_add(1, Ordering::Relaxed);
        if round >= ROUNDS {
            return Ok(slots);
        }
        let slot = &mut slots[random.below(PODS as u64) as usize];
        let port = (random.below(3) == 0).then(|| random.below(HOST_PORTS));
        let done = match (random.below(10), slot.container.is_some()) {
            // One in ten forgets what it had: that is left to GC.
            (0, true) if slot.result.is_none() => slot.add(runtime, format!("c{round}"), port, held),
            (0..3, true) => slot.check(runtime),
            // Its namespace is deleted under it.
            (3, true) => {
                slot.netns = None;
                Ok(())
            }
            (_, true) => slot.del(runtime, held),
            (_, false) => slot.add(runtime, format!("c{round}"), port, held),
        };
        done.with_context(|| format!("round {round}"))?;
    }
}

/// Names of the pods' interfaces on the node.
fn links(node: &Netns) -> Result<BTreeSet<String>> {
    let list: Value = serde_json::from_str(&node.run("ip -j link show type veth")?)?;
    let names = list.as_array().into_iter().flatten().filter_map(|link| link["ifname"].as_str());
    Ok(names.filter(|name| name.starts_with("ptl")).map(str::to_owned).collect())
}

/// What the agent has recorded: interface and addresses by container.
fn records(agent: &Agent) -> Result<BTreeMap<String, (String, Vec<IpAddr>)>> {
    let list: Vec<Value> = serde_json::from_str(&agent.view("pod list -o json")?)?;
    list.into_iter()
        .map(|pod| {
            let text = |field: &str| pod[field].as_str().unwrap_or_default().to_owned();
            let addresses = serde_json::from_value(pod["addresses"].clone())?;
            Ok((text("container"), (text("hostInterface"), addresses)))
        })
        .collect()
}

fn collect(agent: &Agent, valid: &[&str]) -> Result<()> {
    let list: Vec<Value> = valid.iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect();
    let output = operate(agent, "GC", &json!({ "cni.dev/valid-attachments": list }))?;
    ensure!(output.status.success(), "GC: {}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

/// The kernel takes interfaces down behind the answer.
fn has_links(node: &Netns, wanted: &BTreeSet<String>) -> Result<()> {
    let same = || (links(node).ok()? == *wanted).then_some(());
    poll(Duration::from_secs(10), &format!("the node's pod interfaces are {wanted:?}"), same)
        .with_context(|| format!("{:?}", links(node)))
}

#[test]
fn a_thousand_rounds_of_pods_kills_and_lost_namespaces_give_nothing_twice_and_leave_nothing() -> Result<()> {
    let (cluster, mut agents) = open()?;
    let node = &cluster.nodes[0].netns;
    let before = agents[0].footprint()?;
    let mut random = Random::new();
    let (runtime, held, rounds) = (Runtime::of(&agents[0]), Held::default(), AtomicUsize::new(0));
    let mut slots = std::thread::scope(|scope| -> Result<Vec<Slot>> {
        let shared = (&held, &rounds);
        let workers: Vec<_> = (0..THREADS)
            .map(|_| {
                let (runtime, mut random) = (runtime.clone(), random.fork());
                scope.spawn(move || {
                    let slots = work(&runtime, &mut random, shared);
                    // Nobody goes on without this one, and nobody dies for it.
                    if slots.is_err() {
                        shared.1.store(ROUNDS, Ordering::Relaxed);
                    }
                    slots
                })
            })
            .collect();
        for death in 1..=DEATHS {
            // Each in the middle of its part of the rounds, where it finds calls under way.
            let moment = death * ROUNDS / (DEATHS + 1) + random.below((ROUNDS / DEATHS / 3) as u64) as usize;
            while rounds.load(Ordering::Relaxed) < moment {
                std::thread::sleep(Duration::from_millis(1));
            }
            agents[0].kill()?;
            std::thread::sleep(Duration::from_millis(random.below(100)));
            agents[0].restart()?;
        }
        let join = |worker: std::thread::ScopedJoinHandle<'_, Result<Vec<Slot>>>| {
            worker.join().map_err(|_| anyhow::anyhow!("a runtime panicked"))?
        };
        let slots: Vec<Vec<Slot>> = workers.into_iter().map(join).collect::<Result<_>>()?;
        Ok(slots.into_iter().flatten().collect())
    })?;
    let (live, dead): (Vec<&Slot>, Vec<&Slot>) =
        slots.iter().filter(|slot| slot.result.is_some()).partition(|slot| slot.netns.is_some());
    // Calls that find nobody are rounds, too; but most must not be.
    ensure!(held.given.load(Ordering::Relaxed) > ROUNDS / 10, "{:?} pods started", held.given);
    ensure!(live.len() > 3, "only {} pods are left to look at", live.len());
    let known: Vec<&str> = live.iter().chain(&dead).filter_map(|slot| slot.container.as_deref()).collect();
    collect(&agents[0], &known)?;
    // What is there is what was promised, record by record.
    let recorded = records(&agents[0])?;
    assert_eq!(recorded.keys().map(String::as_str).collect::<BTreeSet<_>>(), known.iter().copied().collect());
    for slot in live.iter().chain(&dead) {
        let id = slot.container.as_deref().unwrap_or_default();
        let promised = addresses(slot.result.as_ref().context("no result")?)?;
        let found: Vec<String> =
            recorded[id].1.iter().map(|it| format!("{it}/{}", if it.is_ipv4() { 32 } else { 128 })).collect();
        assert_eq!(found, promised, "{id}");
    }
    let interfaces = live.iter().filter_map(|slot| Some(recorded[slot.container.as_deref()?].0.clone()));
    has_links(node, &interfaces.collect())?;
    for slot in &live {
        slot.check(&runtime)?;
        let netns = slot.netns.as_ref().context("no namespace")?;
        netns.run("ping -c 1 -W 2 192.0.2.11").context("a pod that is there has its network")?;
    }
    agents[0].view("audit").context("tables, programs and pins")?;
    for slot in &mut slots {
        slot.del(&runtime, &held)?;
    }
    empty(&agents[0], node, &before)
}

/// Nothing of any pod is left.
fn empty(agent: &Agent, node: &Netns, before: &[String]) -> Result<()> {
    assert_eq!(records(agent)?, BTreeMap::new());
    has_links(node, &BTreeSet::new())?;
    agent.view("audit").context("tables, programs and pins")?;
    let pending = std::fs::read_dir(agent.directory().join("state/cni-pending"));
    assert_eq!(pending.into_iter().flatten().count(), 0, "queued requests");
    // What left the tables is out of use with the next look at them.
    let same = || (agent.footprint().ok()? == before).then_some(());
    poll(Duration::from_secs(20), "the tables are as they were", same)
        .with_context(|| format!("{before:#?}\nand now {:#?}", agent.footprint()))
}

/// Adds a pod as a kubelet does: what fails is deleted and tried again under another id.
fn insist(runtime: &Runtime, name: &str, held: &Held) -> Result<Slot> {
    for attempt in 0..200 {
        let mut slot = Slot::default();
        slot.add(runtime, format!("{name}-{attempt}"), None, held)?;
        if slot.result.is_some() {
            return Ok(slot);
        }
        slot.del(runtime, held)?;
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("{name} does not start")
}

#[test]
fn all_pods_of_a_booting_node_start_though_the_agent_restarts_and_a_reboot_leaves_nothing_of_them()
-> Result<()> {
    const ALL: usize = 110;
    let (cluster, mut agents) = open()?;
    let node = &cluster.nodes[0].netns;
    let before = agents[0].footprint()?;
    let (runtime, held, started) = (Runtime::of(&agents[0]), Held::default(), AtomicUsize::new(0));
    let mut slots = std::thread::scope(|scope| -> Result<Vec<Slot>> {
        let (runtime, held, started) = (&runtime, &held, &started);
        let starting: Vec<_> = (0..ALL)
            .map(|number| {
                scope.spawn(move || {
                    let slot = insist(runtime, &format!("p{number}"), held);
                    started.fetch_add(1, Ordering::Relaxed);
                    slot
                })
            })
            .collect();
        poll(Duration::from_secs(60), "some have started", || {
            (started.load(Ordering::Relaxed) >= ALL / 4).then_some(())
        })?;
        agents[0].kill()?;
        ensure!(started.load(Ordering::Relaxed) < ALL, "the agent dies in the middle");
        agents[0].restart()?;
        let join = |it: std::thread::ScopedJoinHandle<'_, Result<Slot>>| {
            it.join().map_err(|_| anyhow::anyhow!("a runtime panicked"))?
        };
        starting.into_iter().map(join).collect()
    })?;
    let ids: BTreeSet<String> = slots.iter().filter_map(|slot| slot.container.clone()).collect();
    // What a call that was cut off had made, its DEL has removed.
    assert_eq!(records(&agents[0])?.into_keys().collect::<BTreeSet<_>>(), ids);
    assert_eq!(links(node)?.len(), ALL);
    agents[0].view("audit")?;
    slots.iter().try_for_each(|slot| slot.check(&runtime))?;
    // Some go while no agent runs.
    agents[0].kill()?;
    slots.drain(..10).try_for_each(|mut slot| slot.del(&runtime, &held))?;
    agents[0].restart()?;
    poll(Duration::from_secs(10), "the queued requests are done", || {
        (records(&agents[0]).ok()?.len() == ALL - 10).then_some(())
    })?;
    // The node boots: interfaces, namespaces and tables are gone, the state directory is not.
    agents[0].reboot()?;
    for slot in &mut slots {
        slot.netns = None;
    }
    agents[0].restart()?;
    has_links(node, &BTreeSet::new())?;
    let list: Vec<Value> = serde_json::from_str(&agents[0].view("pod list -o json")?)?;
    ensure!(list.iter().all(|pod| pod["interfacePresent"] == false), "{list:?}");
    agents[0].view("audit").context("what is gone is not missed")?;
    slots.drain(..50).try_for_each(|mut slot| slot.del(&runtime, &held))?;
    assert_eq!(records(&agents[0])?.len(), ALL - 60);
    collect(&agents[0], &[])?;
    empty(&agents[0], node, &before)?;
    // And everything works again.
    let mut slot = insist(&runtime, "after", &Held::default())?;
    slot.check(&runtime)?;
    slot.del(&runtime, &held)
}

#[test]
fn a_namespace_that_is_deleted_while_its_pod_is_added_leaves_nothing() -> Result<()> {
    let (cluster, agents) = open()?;
    let before = agents[0].footprint()?;
    let (mut random, runtime) = (Random::new(), Runtime::of(&agents[0]));
    let mut failed = 0;
    for round in 0..40 {
        let netns = Netns::new("doomed")?;
        let (id, path) = (format!("d{round}"), netns.path());
        let pause = Duration::from_micros(random.below(6_000));
        let output = std::thread::scope(|scope| {
            let add = scope.spawn(|| runtime.call("ADD", (&id, &path, &id), &json!({})));
            std::thread::sleep(pause);
            drop(netns);
            add.join().map_err(|_| anyhow::anyhow!("the runtime panicked"))?
        })?;
        if !output.status.success() {
            failed += 1;
            let answer: Value =
                serde_json::from_slice(&output.stdout).context("reading the plugin's answer")?;
            // Gone before it was opened, or while the interface was made.
            ensure!(answer["code"] == 4 || answer["code"] == 5, "{answer}");
            ensure!(!records(&agents[0])?.contains_key(&id), "{id} holds something");
        }
        let output = runtime.call("DEL", (&id, &path, &id), &json!({}))?;
        ensure!(output.status.success(), "DEL: {}", String::from_utf8_lossy(&output.stdout));
    }
    println!("{failed} of 40 failed");
    empty(&agents[0], &cluster.nodes[0].netns, &before)
}
