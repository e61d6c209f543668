//! The data plane outlives the agent: crashes, restarts and changes meanwhile break nothing.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use portolan_tests::lab::{
    Agent, AgentOptions, Condition, Datagrams, Load, LongLived, Netns, Pod, Random, Shop, Tally,
    balances_sockets, cluster_address, get, node_address, poll, public_address, run, udp_ask,
};
use serde_json::Value;

const FAMILIES: [bool; 2] = [false, true];
const PAUSE: Duration = Duration::from_millis(3);

/// Clients of every kind that ask all the time.
struct Clients {
    short: Vec<Load>,
    open: Vec<LongLived>,
    datagrams: Vec<Datagrams>,
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
        let datagrams =
            asked.iter().map(|(netns, to)| Datagrams::start(netns, *to, PAUSE)).collect::<Result<_>>()?;
        Ok(Self { short, open, datagrams })
    }

    /// Stops all; every request of every client must have had its answer.
    fn finish(self) -> Result<Vec<Tally>> {
        let tallies: Vec<Tally> = self
            .short
            .into_iter()
            .map(Load::finish)
            .chain(self.open.into_iter().map(LongLived::finish))
            .chain(self.datagrams.into_iter().map(Datagrams::finish))
            .collect();
        for tally in &tallies {
            ensure!(tally.failures.is_empty(), "{:?}", tally.failures);
            ensure!(tally.answers() > 20, "a client did next to nothing: {tally:?}");
        }
        Ok(tallies)
    }
}

/// New connections and datagrams for a while; each has to be answered, and both backends have to answer.
fn serve_for_a_while(shop: &Shop) -> Result<()> {
    let (pod, outside) = (&shop.client.netns, &shop.cluster.client);
    for (netns, to) in FAMILIES.map(|v6| [(pod, cluster_address(v6)), (outside, public_address(v6))]).concat()
    {
        let mut servers = BTreeSet::new();
        for _ in 0..30 {
            servers.insert(get(netns, to)?.0);
            servers.insert(udp_ask(netns, to)?.0);
        }
        ensure!(servers.len() == 2, "only {servers:?} answer at {to}");
    }
    Ok(())
}

#[test]
fn killing_both_agents_and_starting_them_again_breaks_nothing() -> Result<()> {
    for arguments in [vec![], vec!["--force-clsact".to_owned()]] {
        let options = AgentOptions { arguments, ..AgentOptions::default() };
        let mut shop = Shop::open_with(&[0, 1], &options)?;
        let clients = Clients::start(&shop)?;
        let before = shop.agents[0].footprint()?;
        for agent in 0..2 {
            shop.agents[agent].kill()?;
        }
        serve_for_a_while(&shop).context("without agents")?;
        for agent in 0..2 {
            shop.agents[agent].restart()?;
        }
        serve_for_a_while(&shop).context("with new agents")?;
        clients.finish()?;
        assert_eq!(shop.agents[0].footprint()?, before);
    }
    Ok(())
}

#[test]
fn an_agent_that_is_stopped_leaves_the_data_plane_as_it_is() -> Result<()> {
    let mut shop = Shop::open(&[0, 1])?;
    let clients = Clients::start(&shop)?;
    let before = attached(&shop.cluster.nodes[0].netns, "eth0")?;
    for agent in 0..2 {
        ensure!(shop.agents[agent].terminate()?.success(), "{}", shop.agents[agent].log());
    }
    assert_eq!(attached(&shop.cluster.nodes[0].netns, "eth0")?, before);
    serve_for_a_while(&shop)?;
    // What is in place can be looked at meanwhile.
    let status = shop.agents[0].view_command("status")?.output()?;
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert_eq!(status.status.code(), Some(1));
    ensure!(text.contains("does not run") && text.contains("goes on without the agent"), "{text}");
    // All of them: those of the short connections are more than are listed otherwise.
    ensure!(shop.agents[0].view("flow list --limit 0")?.contains("established"), "flows are listed");
    clients.finish().map(drop)
}

#[test]
fn an_agent_killed_at_any_moment_of_its_start_leaves_a_working_node() -> Result<()> {
    let mut shop = Shop::open(&[0, 1])?;
    let clients = Clients::start(&shop)?;
    let before = shop.agents[0].footprint()?;
    let mut random = Random::new();
    for round in 0..10 {
        shop.agents[0].kill()?;
        // A start takes about half a second.
        let moment = Duration::from_millis(random.below(700));
        shop.agents[0].start_and_kill(moment)?;
        get(&shop.client.netns, cluster_address(round % 2 == 0)).with_context(|| format!("{moment:?}"))?;
    }
    shop.agents[0].restart()?;
    assert_eq!(shop.agents[0].footprint()?, before);
    serve_for_a_while(&shop)?;
    clients.finish().map(drop)
}

#[test]
fn what_changed_while_no_agent_ran_is_in_effect_after_the_start() -> Result<()> {
    let mut shop = Shop::open(&[0, 1])?;
    let before = shop.agents[0].footprint()?;
    let doomed = Pod::add(&shop.agents[0], "doomed")?;
    shop.cluster.write(
        "other.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: other, namespace: shop}\nspec: \
         {clusterIP: 10.96.0.77, ports: [{port: 80, protocol: UDP}]}\n",
    )?;
    uplink(&shop.cluster.nodes[0].netns)?;
    let to = "10.96.0.77:80".parse()?;
    let refused = || udp_ask(&shop.client.netns, to).is_err_and(|it| it.to_string().contains("refused"));
    poll(Duration::from_secs(3), "the other service is there", || refused().then_some(()))?;
    ensure!(shop.agents[0].footprint()?.len() >= before.len() + 6, "pod, service and uplink are there");
    for agent in &mut shop.agents {
        agent.kill()?;
    }
    shop.publish(|index| (index == 1).then_some(Condition::Ready))?;
    std::fs::remove_file(shop.cluster.objects().join("other.yaml"))?;
    shop.cluster.nodes[0].netns.ip("link del eth1")?;
    // A pod whose namespace goes, without a DEL.
    doomed.netns.ip("link del eth0")?;
    for agent in &mut shop.agents {
        agent.restart()?;
    }
    for v6 in FAMILIES {
        for _ in 0..20 {
            assert_eq!(get(&shop.client.netns, cluster_address(v6))?.0, "b1");
        }
    }
    shop.publish(|_| Some(Condition::Ready))?;
    shop.wait_for_backends(2)?;
    assert_eq!(shop.agents[0].footprint()?, before, "nothing of pod, service and uplink is left");
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

/// Every network namespace has these.
const RULES: [&str; 3] =
    ["0:\tfrom all lookup local", "32766:\tfrom all lookup main", "32767:\tfrom all lookup default"];

/// What a node has that could be ours: interfaces, routes, rules, programs, filters.
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
        node.run("iptables-save")?,
        node.run("ip6tables-save")?,
        node.run("ip rule")?.lines().filter(|it| !RULES.contains(&it.trim())).collect(),
    ]
    .concat())
}

#[test]
fn uninstall_leaves_nothing_with_tcx_and_with_clsact() -> Result<()> {
    for arguments in [vec![], vec!["--force-clsact".to_owned()]] {
        let options = AgentOptions { install_cni: true, arguments, ..AgentOptions::default() };
        let mut shop = Shop::open_with(&[0, 1], &options)?;
        let node = &shop.cluster.nodes[0].netns;
        ensure!(!traces(node)?.is_empty(), "there is something to remove");
        let (conf, bin) = (shop.agents[0].directory().join("net.d"), shop.agents[0].directory().join("bin"));
        ensure!(files(&conf) == 1 && files(&bin) == 1, "the plugin and its configuration are installed");
        let objects = kernel_objects(&shop.agents[0])?;
        ensure!(!objects.is_empty(), "tables are pinned");
        let refused = shop.agents[0].uninstall_command()?.output()?;
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(refused.status.code() == Some(1) && text.contains("stop it first"), "{text}");
        get(&shop.client.netns, cluster_address(false))
            .context("an uninstall that was refused changes nothing")?;
        for _ in 0..2 {
            shop.agents[0].uninstall()?;
            assert_eq!(traces(node)?, "");
            ensure!(files(&conf) == 0 && files(&bin) == 0, "the plugin is left");
            ensure!(!shop.agents[0].pins().exists(), "pins are left");
        }
        // The kernel frees tables and links some time after the last user has gone.
        for object in objects {
            let gone =
                || (!Command::new("bpftool").args(&object).output().ok()?.status.success()).then_some(());
            poll(Duration::from_secs(10), &format!("{object:?} is freed"), gone)?;
        }
    }
    Ok(())
}

fn files(directory: &Path) -> usize {
    std::fs::read_dir(directory).map_or(0, Iterator::count)
}

/// Makes another uplink and waits until it is attached.
fn uplink(node: &Netns) -> Result<()> {
    node.ip("link add eth1 type veth peer name x1")?;
    node.ip("link set eth1 up")?;
    node.ip("route add default dev eth1 metric 500")?;
    let both = || (attached(node, "eth1").ok()?.len() == 2).then_some(());
    poll(Duration::from_secs(5), "the new uplink is attached", both)
}

#[test]
fn an_uplink_that_comes_back_is_attached_again() -> Result<()> {
    let mut shop = Shop::open(&[1])?;
    let node = &shop.cluster.nodes[0].netns;
    uplink(node)?;
    node.ip("link del eth1")?;
    uplink(node)?;
    // Also when nobody saw it go and come.
    shop.agents[0].kill()?;
    node.ip("link del eth1")?;
    node.ip("link add eth1 type veth peer name x1")?;
    node.ip("link set eth1 up")?;
    node.ip("route add default dev eth1 metric 500")?;
    assert_eq!(attached(node, "eth1")?.len(), 0);
    shop.agents[0].restart()?;
    assert_eq!(attached(node, "eth1")?.len(), 2);
    Ok(())
}

/// Ids of everything that is pinned, as the options of bpftool that show it.
fn kernel_objects(agent: &Agent) -> Result<Vec<[String; 4]>> {
    let id = |kind: &str, path: &Path| -> Result<[String; 4]> {
        let text = run(Command::new("bpftool").args(["-j", kind, "show", "pinned"]).arg(path))?;
        let shown: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        Ok([kind.to_owned(), "show".to_owned(), "id".to_owned(), shown["id"].to_string()])
    };
    let in_directory = |kind, directory: &Path| -> Result<Vec<_>> {
        let entries = std::fs::read_dir(directory)?.flatten().map(|entry| entry.path());
        entries.filter(|path| path.is_file()).map(|path| id(kind, &path)).collect()
    };
    let links = agent.pins().join("links");
    let links = if links.exists() { in_directory("link", &links)? } else { Vec::new() };
    Ok([in_directory("map", agent.pins())?, links].concat())
}

#[test]
fn a_restart_keeps_every_table_and_every_link() -> Result<()> {
    let mut shop = Shop::open(&[0])?;
    let before = kernel_objects(&shop.agents[0])?;
    // Uplink, service device and loopback have links; pods' interfaces have filters.
    let tables = portolan_node::maps::name::all().count();
    let sockets = if balances_sockets() { 8 } else { 0 };
    assert_eq!(before.len(), tables + 4 + sockets, "tables and links: {before:?}");
    shop.agents[0].restart()?;
    assert_eq!(kernel_objects(&shop.agents[0])?, before);
    Ok(())
}

#[test]
fn a_table_that_is_lost_or_of_another_shape_is_told_of_and_traffic_goes_on() -> Result<()> {
    let mut shop = Shop::open(&[0, 1])?;
    let clients = Clients::start(&shop)?;
    let before = shop.agents[0].footprint()?;
    let table = shop.agents[0].pins().join("SERVICES_ALL");
    shop.agents[0].kill()?;
    std::fs::remove_file(&table)?;
    let wrong = ["type", "hash", "key", "4", "value", "4", "entries", "1", "name", "wrong"];
    run(Command::new("bpftool").args(["map", "create"]).arg(&table).args(wrong))?;
    let refused = shop.agents[0].second()?;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{text}");
    let advice = format!("remove {} and start again", table.display());
    ensure!(text.contains("table SERVICES_ALL has") && text.contains(&advice), "{text}");
    serve_for_a_while(&shop).context("after a start that was refused")?;
    clients.finish()?;
    // The advice is good.
    std::fs::remove_file(&table)?;
    shop.agents[0].restart()?;
    serve_for_a_while(&shop).context("with a table that was lost")?;
    assert_eq!(shop.agents[0].footprint()?, before);
    Ok(())
}

#[test]
fn an_uplink_with_a_dot_in_its_name_stays_attached_over_a_restart() -> Result<()> {
    let mut shop = Shop::open(&[0])?;
    let node = shop.cluster.nodes[0].netns.path();
    let ip = |line: &str| -> Result<()> {
        let mut command = std::process::Command::new("nsenter");
        command.arg(format!("--net={node}")).arg("ip").args(line.split_whitespace());
        portolan_tests::lab::run(&mut command).map(drop)
    };
    // As VLANs are named.
    ip("link add eth0.100 type veth peer name x1")?;
    ip("link set eth0.100 up")?;
    ip("route add default dev eth0.100 metric 500")?;
    for round in 0..2 {
        let both = || (attached(&shop.cluster.nodes[0].netns, "eth0.100").ok()?.len() == 2).then_some(());
        poll(Duration::from_secs(5), &format!("the uplink is attached, round {round}"), both)?;
        shop.agents[0].restart()?;
    }
    assert_eq!(attached(&shop.cluster.nodes[0].netns, "eth0.100")?.len(), 2, "after the last restart");
    Ok(())
}
