//! The data plane outlives the agent: crashes, restarts and changes meanwhile break nothing.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use portolan_tests::lab::{
    Condition, Load, LongLived, Netns, Pod, Shop, Tally, cluster_address, get, node_address, poll,
    public_address, udp_ask,
};

const FAMILIES: [bool; 2] = [false, true];
const PAUSE: Duration = Duration::from_millis(3);

/// Clients of every kind that ask all the time.
struct Clients {
    short: Vec<Load>,
    open: Vec<LongLived>,
}

impl Clients {
    fn start(shop: &Shop) -> Result<Self> {
        let (pod, host, outside) = (&shop.client.netns, &shop.cluster.nodes[0].netns, &shop.cluster.client);
        let asked: Vec<(&Netns, SocketAddr)> = FAMILIES
            .into_iter()
            .flat_map(|v6| {
                [
                    (pod, cluster_address(v6)),
                    (host, cluster_address(v6)),
                    (outside, public_address(v6)),
                    (outside, node_address(1, v6)),
                ]
            })
            .collect();
        let short = asked.iter().map(|(netns, to)| Load::start(netns, *to, PAUSE)).collect::<Result<_>>()?;
        let open = asked.iter().map(|(netns, to)| LongLived::start(netns, *to, 3)).collect::<Result<_>>()?;
        Ok(Self { short, open })
    }

    /// Stops all; every request of every client must have had its answer.
    fn finish(self) -> Result<Vec<Tally>> {
        let tallies: Vec<Tally> = self
            .short
            .into_iter()
            .map(Load::finish)
            .chain(self.open.into_iter().map(LongLived::finish))
            .collect();
        for tally in &tallies {
            ensure!(tally.failures.is_empty(), "{:?}", tally.failures);
            ensure!(tally.answers() > 20, "a client did next to nothing: {tally:?}");
        }
        Ok(tallies)
    }
}

/// Waits until new connections from everywhere have been answered for a while.
fn serve_for_a_while(shop: &Shop) -> Result<()> {
    for _ in 0..60 {
        for v6 in FAMILIES {
            get(&shop.client.netns, cluster_address(v6))?;
            udp_ask(&shop.client.netns, cluster_address(v6))?;
        }
    }
    Ok(())
}

#[test]
fn killing_both_agents_and_starting_them_again_breaks_nothing() -> Result<()> {
    let mut shop = Shop::open(&[0, 1])?;
    let clients = Clients::start(&shop)?;
    serve_for_a_while(&shop)?;
    for agent in 0..2 {
        shop.agents[agent].kill()?;
    }
    serve_for_a_while(&shop)?;
    for agent in 0..2 {
        shop.agents[agent].restart()?;
    }
    serve_for_a_while(&shop)?;
    let tallies = clients.finish()?;
    let servers: BTreeSet<&String> = tallies.iter().flat_map(|tally| tally.by_server.keys()).collect();
    assert_eq!(servers.len(), 2, "connections were balanced all the time");
    Ok(())
}

#[test]
fn an_agent_killed_at_any_moment_of_its_start_leaves_a_working_node() -> Result<()> {
    let mut shop = Shop::open(&[0, 1])?;
    let clients = Clients::start(&shop)?;
    for round in 0..10 {
        shop.agents[0].kill()?;
        shop.agents[0].start_and_kill(Duration::from_millis(15 * round))?;
        get(&shop.client.netns, cluster_address(round % 2 == 0))?;
    }
    shop.agents[0].restart()?;
    clients.finish()?;
    Ok(())
}

#[test]
fn what_changed_while_no_agent_ran_is_in_effect_after_the_start() -> Result<()> {
    let mut shop = Shop::open(&[0, 1])?;
    let doomed = Pod::add(&shop.agents[0], "doomed")?;
    for agent in &mut shop.agents {
        agent.kill()?;
    }
    shop.publish(|index| (index == 1).then_some(Condition::Ready))?;
    // A machine that loses power while no agent runs takes its pods with it.
    doomed.netns.ip("link del eth0")?;
    for agent in &mut shop.agents {
        agent.restart()?;
    }
    for v6 in FAMILIES {
        for _ in 0..20 {
            assert_eq!(get(&shop.client.netns, cluster_address(v6))?.0, "b1");
        }
    }
    Ok(())
}

/// The programs attached to an interface on both ways, by tcx as the kernel says, or by clsact as `tc` says. Debian's
/// bpftool is older than tcx.
fn attached(node: &Netns, interface: &str) -> Result<Vec<String>> {
    let name = interface.to_owned();
    let mut found: Vec<String> = node.enter(move || -> Result<Vec<String>> {
        let mut found = Vec::new();
        for way in [TcAttachType::Ingress, TcAttachType::Egress] {
            let (_, programs) = SchedClassifier::query_tcx(name.as_str(), way)?;
            let text =
                |it: &aya::programs::ProgramInfo| format!("{} {}", it.name_as_str().unwrap_or("?"), it.id());
            found.extend(programs.iter().map(text));
        }
        Ok(found)
    })??;
    for way in ["ingress", "egress"] {
        let filters = node.run(&format!("tc filter show dev {interface} {way}"))?;
        found.extend(filters.lines().filter(|it| it.contains("handle")).map(str::to_owned));
    }
    Ok(found)
}

#[test]
fn a_restart_replaces_programs_and_never_detaches_them() -> Result<()> {
    let mut shop = Shop::open(&[0])?;
    let before = attached(&shop.cluster.nodes[0].netns, "eth0")?;
    ensure!(before.len() == 2, "one on each way: {before:?}");
    let (stop, names) = (Arc::new(AtomicBool::new(false)), ["from_uplink", "to_uplink"]);
    let flag = Arc::clone(&stop);
    let watcher = shop.cluster.nodes[0].netns.spawn(move || -> Result<usize> {
        let mut looks = 0;
        while !flag.load(Ordering::Relaxed) {
            for (way, name) in [TcAttachType::Ingress, TcAttachType::Egress].into_iter().zip(names) {
                // A program that was replaced between being listed and being looked at.
                let Ok((_, programs)) = SchedClassifier::query_tcx("eth0", way) else { continue };
                let found: Vec<_> = programs.iter().filter_map(|it| it.name_as_str()).collect();
                ensure!(found == [name], "{found:?} at look {looks}");
            }
            looks += 1;
        }
        Ok(looks)
    })?;
    for _ in 0..3 {
        shop.agents[0].restart()?;
    }
    stop.store(true, Ordering::Relaxed);
    let looks = watcher.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))??;
    ensure!(looks > 1000, "only {looks} looks");
    ensure!(attached(&shop.cluster.nodes[0].netns, "eth0")? != before, "the programs are new ones");
    Ok(())
}

#[test]
fn a_second_agent_on_a_node_is_refused_and_says_why() -> Result<()> {
    let shop = Shop::open(&[])?;
    let second = shop.agents[0].second()?;
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{text}");
    ensure!(text.contains("another agent answers on") && text.contains("stop it first"), "{text}");
    shop.agents[0].view("status").map(drop)
}

/// What a node has that could be ours: interfaces, routes, programs.
fn traces(node: &Netns) -> Result<String> {
    Ok([
        node.run("ip -o link show")?
            .lines()
            .filter(|it| it.contains(": portolan") || it.contains(": ptl"))
            .collect(),
        node.run("ip route show table all proto 112")?,
        node.run("ip -6 route show table all proto 112")?,
        attached(node, "eth0")?.join("\n"),
        attached(node, "lo")?.join("\n"),
        node.run("tc qdisc show dev eth0")?.lines().filter(|it| it.contains("clsact")).collect(),
        node.run("nft list ruleset")?,
    ]
    .concat())
}

#[test]
fn uninstall_leaves_nothing_with_tcx_and_with_clsact() -> Result<()> {
    for arguments in [vec![], vec!["--force-clsact".to_owned()]] {
        let options = portolan_tests::lab::AgentOptions { install_cni: true, arguments };
        let mut shop = Shop::open_with(&[0, 1], &options)?;
        let node = &shop.cluster.nodes[0].netns;
        ensure!(!traces(node)?.is_empty(), "there is something to remove");
        let (conf, bin) = (shop.agents[0].directory().join("net.d"), shop.agents[0].directory().join("bin"));
        ensure!(files(&conf) == 1 && files(&bin) == 1, "the plugin and its configuration are installed");
        ensure!(shop.agents[0].pins().exists(), "tables are pinned");
        for _ in 0..2 {
            shop.agents[0].uninstall()?;
            assert_eq!(traces(node)?, "");
            ensure!(files(&conf) == 0 && files(&bin) == 0, "the plugin is left");
            ensure!(!shop.agents[0].pins().exists(), "pins are left");
        }
    }
    Ok(())
}

fn files(directory: &Path) -> usize {
    std::fs::read_dir(directory).map_or(0, Iterator::count)
}

#[test]
fn an_uplink_that_comes_back_is_attached_again() -> Result<()> {
    let shop = Shop::open(&[1])?;
    let node = &shop.cluster.nodes[0].netns;
    node.ip("link add eth1 type veth peer name x1")?;
    node.ip("link set eth1 up")?;
    node.ip("route add default dev eth1 metric 500")?;
    let programs = |name: &str| attached(node, name).map(|list| list.len());
    poll(Duration::from_secs(5), "the new uplink is attached", || {
        (programs("eth1").ok()? == 2).then_some(())
    })?;
    node.ip("link del eth1")?;
    node.ip("link add eth1 type veth peer name x1")?;
    node.ip("link set eth1 up")?;
    node.ip("route add default dev eth1 metric 500")?;
    poll(Duration::from_secs(5), "it is attached again", || (programs("eth1").ok()? == 2).then_some(()))?;
    Ok(())
}
