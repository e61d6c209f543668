//! The steps that show what there is: topology, pods, services, views, uninstall.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use aya::programs::{SchedClassifier, TcAttachType};
use portolan_tests::lab::{
    Agent, NODE_ADDRESSES, Netns, cluster_address as cluster, get, node_address, public_address as public,
};

use crate::chart;
use crate::objects;
use crate::say::{Say, faint};
use crate::serve::PORT;
use crate::stage::Stage;
use crate::traffic::Pace;

/// The namespaces that pods, nodes and the world are made of.
const TOPOLOGY: &str = "\
client 203.0.113.10 ──── router ──┬── node1 192.0.2.11      pods 10.244.1.0/24
       2001:db8:c::10             │         2001:db8:1::11       fd00:10:244:1::/64
                                  └── node2 192.0.2.12      pods 10.244.2.0/24
                                            2001:db8:1::12       fd00:10:244:2::/64";

/// Requests after which every backend must have answered: the chance that a fair choice among three misses one is
/// below 10⁻⁹.
const ENOUGH: usize = 60;

const FAMILIES: [bool; 2] = [false, true];

/// Step 1.
pub(crate) fn topology<'a>(say: &mut Say, stage: &'a mut Option<Stage>) -> Result<&'a mut Stage> {
    say.heading("A router, an outside client and two nodes, in network namespaces")?;
    say.lines(TOPOLOGY);
    let begun = Instant::now();
    let stage = stage.insert(Stage::open()?);
    for (agent, node) in stage.agents.iter().zip(&stage.cluster.nodes) {
        let process = agent.process().context("an agent has no process")?;
        say.note(&format!("{}: agent is process {process}, tables in {}", node.name, agent.pins().display()));
    }
    say.note(&format!("objects: {} {}", stage.cluster.objects().display(), faint("(nodes.yaml, web.yaml)")));
    say.claim(
        &format!("everything made, and both agents ready, in {:.1} s", begun.elapsed().as_secs_f64()),
        "",
    )?;
    Ok(stage)
}

/// Step 2.
pub(crate) fn pods(say: &mut Say, stage: &mut Stage) -> Result<()> {
    say.heading("Pods of examples/pods.yaml get their addresses from portolan-cni")?;
    for object in objects::pods()?.iter().filter(|pod| pod.version.as_deref() != Some("v2")) {
        say.go_on()?;
        stage.start_pod(object)?;
    }
    stage.publish(None)?;
    pod_table(say, stage);
    let web = stage.web().map(|running| &running.pod).flat_map(|pod| pod.addresses.iter().copied());
    let all: BTreeSet<_> = stage.pods().flat_map(|running| running.pod.addresses.iter().copied()).collect();
    let count = stage.pods().count();
    let wrong = if all.len() == 2 * count { String::new() } else { format!("{} addresses", all.len()) };
    say.claim(&format!("{count} pods have an IPv4 and an IPv6 address each, all different"), &wrong)?;
    let client = &stage.pod("client")?.netns;
    for name in ["web-v1-a", "web-v1-b"] {
        let address = stage.pod(name)?.address(false);
        curl(say, client, &[name.to_owned()], &format!("http://{address}:{PORT}/"))?;
    }
    let failed: Vec<String> = web
        .filter_map(|address| get(client, (address, PORT).into()).err().map(|error| format!("{error:#}")))
        .collect();
    say.claim(
        "the client pod reaches each on its node and on the other, over both families",
        &failed.join("\n"),
    )
}

fn pod_table(say: &Say, stage: &Stage) {
    say.note(&format!("{:10}  {:6}  {:12}  {}", "POD", "NODE", "IPv4", "IPv6"));
    for running in stage.pods() {
        let (pod, node) = (&running.pod, running.object.node + 1);
        let [v4, v6] = FAMILIES.map(|v6| pod.address(v6).to_string());
        say.note(&format!("{:10}  node{node:<2}  {v4:12}  {v6}", pod.name));
    }
}

/// Step 3.
pub(crate) fn cluster_address(say: &mut Say, stage: &Stage) -> Result<()> {
    say.heading("The service's cluster address, from a pod")?;
    let client = &stage.pod("client")?.netns;
    for v6 in FAMILIES {
        curl(say, client, &stage.ready(), &format!("http://{}/", cluster(v6)))?;
    }
    for v6 in FAMILIES {
        reaches_all(say, client, cluster(v6), stage, "a pod")?;
    }
    let node = &stage.cluster.nodes[1].netns;
    reaches_all(say, node, cluster(false), stage, "a process of node2 itself")
}

/// Step 4.
pub(crate) fn node_port(say: &mut Say, stage: &Stage) -> Result<()> {
    say.heading("Its node port, from outside, through both nodes")?;
    let client = &stage.cluster.client;
    for node in 0..2 {
        curl(say, client, &stage.ready(), &format!("http://{}/", node_address(node, false)))?;
    }
    for node in 0..2 {
        for v6 in FAMILIES {
            let who = format!("an outside client through node{}", node + 1);
            reaches_all(say, client, node_address(node, v6), stage, &who)?;
        }
    }
    Ok(())
}

fn reaches_all(say: &mut Say, from: &Netns, to: SocketAddr, stage: &Stage, who: &str) -> Result<()> {
    let (counts, failed) = ask(say, from, to, ENOUGH)?;
    let missing = stage.ready().into_iter().filter(|name| !counts.contains_key(name));
    let missing = missing.map(|name| format!("{name} never answered"));
    let wrong: Vec<String> = failed.into_iter().chain(missing).collect();
    let count = counts.len();
    say.claim(
        &format!("{who} asked {to} {ENOUGH} times: all answered, by {count} backends"),
        &wrong.join("\n"),
    )
}

/// Step 5.
pub(crate) fn public_address(say: &mut Say, stage: &Stage, pace: &Pace) -> Result<()> {
    say.heading("Its public address, from outside")?;
    let [v4, v6] = NODE_ADDRESSES[0];
    say.note(&format!("the router sends 198.51.100.0/24 to {v4} and 2001:db8:f::/64 to {v6}: node1"));
    let client = &stage.cluster.client;
    for v6 in FAMILIES {
        let to = public(v6);
        curl(say, client, &stage.ready(), &format!("http://{to}/"))?;
        let begun = Instant::now();
        let (counts, failed) = ask(say, client, to, pace.requests)?;
        let took = begun.elapsed().as_secs_f64();
        say.note(&format!(
            "{} requests to {to}, each on a connection of its own, in {took:.1} s:",
            pace.requests
        ));
        say.lines(&chart::bars(&counts));
        say.claim("every request was answered", &failed.join("\n"))?;
        say.claim("every backend got about its share", &chart::skew(&counts, &stage.ready()))?;
    }
    Ok(())
}

/// Asks so many times: answers by server, and failures.
fn ask(
    say: &Say,
    from: &Netns,
    to: SocketAddr,
    times: usize,
) -> Result<(BTreeMap<String, usize>, Vec<String>)> {
    let (mut counts, mut failed) = (BTreeMap::new(), Vec::new());
    for _ in 0..times {
        say.go_on()?;
        match get(from, to) {
            Ok((server, _)) => *counts.entry(server).or_default() += 1,
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    Ok((counts, failed))
}

/// One request by curl; one of `servers` must answer.
pub(crate) fn curl(say: &mut Say, from: &Netns, servers: &[String], url: &str) -> Result<()> {
    let answer = say.run(&mut curl_command(from, url))?;
    let server = answer.split_whitespace().next().unwrap_or_default();
    let wrong =
        if servers.iter().any(|name| name == server) { String::new() } else { format!("got {answer:?}") };
    say.claim(&format!("{url} is answered by {server}"), &wrong)
}

fn curl_command(from: &Netns, url: &str) -> Command {
    let mut command = from.command("curl");
    command.args(["-sS", "--max-time", "5", url]);
    // A proxy of the machine is not reached from here.
    for name in ["http_proxy", "all_proxy", "ALL_PROXY"] {
        command.env_remove(name);
    }
    command
}

/// Step 8.
pub(crate) fn seeing(say: &mut Say, stage: &Stage) -> Result<()> {
    say.heading("Looking at it")?;
    provoke(say, stage)?;
    let agent = &stage.agents[0];
    for (view, expected) in [
        ("status", "node1"),
        ("service list", "10.96.0.10:80"),
        ("service show web", "198.51.100.10:80"),
        ("explain shop/client 10.96.0.10:80", "10.244."),
        ("drop list", "address"),
    ] {
        let text = say.run(&mut agent.view_command(view)?)?;
        let wrong = if text.contains(expected) { String::new() } else { format!("nothing says {expected}") };
        say.claim(&format!("`portolan {view}` tells"), &wrong)?;
    }
    Ok(())
}

/// Packets that must not get through, for `drop list` to tell of.
fn provoke(say: &mut Say, stage: &Stage) -> Result<()> {
    let client = &stage.pod("client")?.netns;
    let mut refused = curl_command(client, "http://10.96.0.10:81/");
    let begun = Instant::now();
    say.command(&crate::say::shown(&refused));
    let output = refused.output()?;
    say.lines(&format!("  {}", String::from_utf8_lossy(&output.stderr)));
    let quick = begun.elapsed().as_secs() < 2 && output.status.code() == Some(7);
    let wrong = if quick { String::new() } else { format!("curl ended with {}", output.status) };
    say.claim("a port that the service does not have is refused at once", &wrong)?;
    client.ip("address add 10.9.9.9/32 dev lo")?;
    let mut forged = client.command("curl");
    let victim = stage.pod("web-v1-a")?.address(false);
    forged.args(["-sS", "--max-time", "0.3", "--interface", "10.9.9.9", &format!("http://{victim}:{PORT}/")]);
    say.command(&crate::say::shown(&forged));
    let output = forged.output()?;
    say.lines(&format!("  {}", String::from_utf8_lossy(&output.stderr)));
    client.ip("address del 10.9.9.9/32 dev lo")?;
    let wrong = if output.status.code() == Some(28) { String::new() } else { format!("{}", output.status) };
    say.claim("a pod that sends with another's address reaches nobody", &wrong)
}

/// Step 9.
pub(crate) fn uninstall(say: &mut Say, stage: &mut Stage) -> Result<()> {
    say.heading("Uninstall leaves nothing")?;
    for (agent, node) in stage.agents.iter_mut().zip(&stage.cluster.nodes) {
        let before = traces(agent, &node.netns)?;
        let wrong = if before.is_empty() { "nothing was found" } else { "" };
        say.claim(&format!("{}: before, there are {} traces", node.name, before.len()), wrong)?;
        agent.kill()?;
        say.run(&mut agent.uninstall_command()?)?;
        let left = traces(agent, &node.netns)?;
        say.claim(
            &format!("{}: no interface, route, program, table, state or CNI file of ours is left", node.name),
            &left.join("\n"),
        )?;
    }
    Ok(())
}

/// What a node has that is ours: interfaces, routes, programs, pins, files.
fn traces(agent: &Agent, node: &Netns) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let links = node.run("ip -o link show")?;
    let ours = |line: &&str| line.contains(": portolan") || line.contains(": ptl");
    found.extend(links.lines().filter(ours).map(|line| format!("interface {line}")));
    for family in ["-4", "-6"] {
        let routes = node.run(&format!("ip {family} route show table all proto 112"))?;
        found.extend(routes.lines().map(|line| format!("route {line}")));
    }
    for interface in ["eth0", "lo"] {
        found.extend(programs(node, interface)?);
    }
    for file in ["net.d", "bin", "state"] {
        found.extend(entries(&agent.directory().join(file)));
    }
    found.extend(entries(agent.pins()));
    Ok(found)
}

/// Programs on an interface: by tcx as the kernel says, by clsact as `tc` says.
fn programs(node: &Netns, interface: &'static str) -> Result<Vec<String>> {
    let mut found = node.enter(move || -> Result<Vec<String>> {
        let mut found = Vec::new();
        for way in [TcAttachType::Ingress, TcAttachType::Egress] {
            // Kernels before 6.6 do not know the question.
            let Ok((_, programs)) = SchedClassifier::query_tcx(interface, way) else { continue };
            let name = |it: &aya::programs::ProgramInfo| it.name_as_str().unwrap_or("?").to_owned();
            found.extend(programs.iter().map(|it| format!("program {} on {interface}", name(it))));
        }
        Ok(found)
    })??;
    for way in ["ingress", "egress"] {
        let filters = node.run(&format!("tc filter show dev {interface} {way}"))?;
        let filters = filters.lines().filter(|line| line.contains("handle"));
        found.extend(filters.map(|line| format!("filter {line} on {interface}")));
    }
    Ok(found)
}

fn entries(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| format!("file {}", entry.path().display())).collect()
}
