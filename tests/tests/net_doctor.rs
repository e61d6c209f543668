//! `portolan doctor` finds nothing on a clean node, names what is in the way on others, and changes nothing.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::tc::{NlOptions, TcAttachOptions};
use aya::programs::{LinkOrder, TcAttachType};
use portolan_node::{Object, Sizes, features};
use portolan_tests::lab::{Agent, Cluster, Netns, Shop, binary, failure, run};
use serde_json::Value;

/// What the doctor says of a node, and whether it exits with 0.
struct Diagnosis {
    healthy: bool,
    findings: Vec<Value>,
}

impl Diagnosis {
    fn of(command: &mut Command) -> Result<Self> {
        let output = command.args(["-o", "json"]).output().context("starting the doctor")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let findings = serde_json::from_str(&text)
            .with_context(|| format!("{text}{}", String::from_utf8_lossy(&output.stderr)))?;
        let healthy = match output.status.code() {
            Some(0) => true,
            Some(1) => false,
            other => anyhow::bail!("exit code {other:?}"),
        };
        Ok(Self { healthy, findings })
    }

    /// Findings that are not ok, as `severity check: found => remedy`.
    fn faults(&self) -> Vec<String> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let bad = self.findings.iter().filter(|finding| finding["severity"] != "ok");
        bad.map(|it| {
            format!(
                "{} {}: {} => {}",
                text(&it["severity"]),
                text(&it["check"]),
                text(&it["found"]),
                text(&it["remedy"])
            )
        })
        .collect()
    }

    /// A finding that begins like this, with these words in it.
    fn names(&self, beginning: &str, words: &[&str]) -> Result<()> {
        let faults = self.faults();
        let found =
            faults.iter().any(|it| it.starts_with(beginning) && words.iter().all(|word| it.contains(word)));
        ensure!(found, "{beginning:?} with {words:?} is not in {faults:#?}");
        Ok(())
    }
}

/// On a node where an agent runs, or ran.
fn beside(agent: &Agent) -> Result<Diagnosis> {
    let mut command = agent.view_command("doctor --cni-conf-dir")?;
    Diagnosis::of(command.arg(agent.directory().join("net.d")))
}

/// On a node that never had an agent.
fn alone(node: &Netns, directory: &Path) -> Result<Command> {
    let mut command = node.command(binary("portolan")?);
    command.args(["doctor", "--socket"]).arg(directory.join("none.sock"));
    command.arg("--pins").arg("/sys/fs/bpf/portolan-test-none").arg("--cni-conf-dir").arg(directory);
    Ok(command)
}

#[test]
fn a_node_has_no_fault_before_the_agent_while_it_runs_and_after_it_was_killed() -> Result<()> {
    let cluster = Cluster::new()?;
    let before = Diagnosis::of(&mut alone(&cluster.nodes[0].netns, cluster.directory())?)?;
    assert!(before.healthy, "{:#?}", before.faults());
    assert!(before.faults().is_empty(), "{:#?}", before.faults());
    let forwarding = before.findings.iter().find(|it| it["check"] == "forwarding").context("no such rule")?;
    ensure!(forwarding["found"].as_str().is_some_and(|it| it.contains("the agent sets it")), "{forwarding}");
    drop(cluster);

    let mut shop = Shop::open(&[0, 1])?;
    for _ in ["running", "killed"] {
        let told = beside(&shop.agents[0])?;
        assert!(told.healthy && told.faults().is_empty(), "{:#?}", told.faults());
        shop.agents[0].kill()?;
    }
    Ok(())
}

#[test]
fn rules_of_kube_proxy_are_named_with_the_tool_that_removes_them() -> Result<()> {
    let cluster = Cluster::new()?;
    let (node, directory) = (&cluster.nodes[0].netns, cluster.directory());
    let told = || Diagnosis::of(&mut alone(node, directory)?);
    node.run("iptables-nft -t nat -N KUBE-SERVICES")?;
    node.run("iptables-nft -t nat -A PREROUTING -j KUBE-SERVICES")?;
    node.run("iptables-nft -t mangle -N KUBE-KUBELET-CANARY")?;
    node.run("ip6tables-legacy -t nat -N KUBE-SVC-ERIFXISQEP7F7OF4")?;
    node.run("nft add table ip kube-proxy")?;
    node.run("nft add chain ip kube-proxy services")?;
    let found = told()?;
    assert!(!found.healthy);
    let rules = "error kube-proxy: kube-proxy's rules in";
    found.names(&format!("{rules} nftables, table ip nat: KUBE-SERVICES"), &["iptables-nft-restore"])?;
    found.names(
        &format!("{rules} iptables-legacy (ip6), table nat: KUBE-SVC-"),
        &["ip6tables-legacy-restore"],
    )?;
    found.names(
        &format!("{rules} nftables, table ip kube-proxy: services"),
        &["nft delete table ip kube-proxy"],
    )?;
    assert_eq!(found.faults().len(), 3, "the kubelet's own chain is no fault: {:#?}", found.faults());

    // The remedies are commands; they mend it.
    for finding in &found.findings {
        let Some(remedy) = finding["remedy"].as_str().filter(|it| it.contains("on this node `")) else {
            continue;
        };
        let command = commands(remedy).last().context("no command")?;
        run(node.command("sh").args(["-c", command]))?;
    }
    let mended = told()?;
    assert!(mended.healthy, "{:#?}", mended.faults());
    Ok(())
}

#[test]
fn what_was_changed_behind_the_agents_back_is_an_error() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let (agent, node) = (&shop.agents[0], &shop.cluster.nodes[0].netns);
    node.sysctl("net/ipv4/conf/all/rp_filter", "1")?;
    node.sysctl("net/ipv4/ip_forward", "0")?;
    // Nothing at all would not even be written.
    node.sysctl("net/ipv4/ip_local_reserved_ports", "\n")?;
    node.sysctl("net/ipv4/conf/all/route_localnet", "1")?;
    std::fs::create_dir_all(agent.directory().join("net.d"))?;
    std::fs::write(agent.directory().join("net.d/00-other.conflist"), "{}")?;
    let listener = node.enter(|| TcpListener::bind("0.0.0.0:30500"))??;
    let speaker = node.enter(|| TcpListener::bind("0.0.0.0:179"))??;
    node.ip("link add vx0 type vxlan id 7 dstport 8472 dev eth0")?;
    node.ip("address add 10.244.1.129/25 dev vx0")?;
    node.run("iptables-nft -P FORWARD DROP")?;
    let found = beside(agent)?;
    assert!(!found.healthy);
    found.names(
        "error rp-filter: net.ipv4.conf.all.rp_filter is 1",
        &["sysctl -w net.ipv4.conf.all.rp_filter=0"],
    )?;
    found.names("error forwarding: net.ipv4.ip_forward is 0", &["sysctl -w net.ipv4.ip_forward=1"])?;
    found.names("error reserved-ports: NodePorts", &["restart the agent"])?;
    found.names("warning route-localnet: net.ipv4.conf.all.route_localnet is 1", &["route_localnet=0"])?;
    found.names("error cni-config: ", &["00-other.conflist comes before 05-portolan.conflist", "`mv "])?;
    let own = format!("(process {})", std::process::id());
    found.names("warning sockets: listening at NodePorts", &["TCP 0.0.0.0:30500", &own])?;
    found.names("warning ports: ", &["TCP 0.0.0.0:179 speaks BGP", &own])?;
    found.names(
        "error network: podCIDR 10.244.1.0/24 overlaps 10.244.1.129/25 of vx0",
        &["ip address delete"],
    )?;
    found.names("error firewall: nftables chain ip filter FORWARD drops everything", &["nft insert rule"])?;
    // With an overlay, the device has its port.
    let mut command = agent.view_command("doctor --routing-mode vxlan")?;
    let overlay = Diagnosis::of(&mut command)?;
    overlay.names("error ports: VXLAN device vx0 has UDP port 8472", &["--overlay-port"])?;
    drop((listener, speaker));
    Ok(())
}

#[test]
fn programs_of_others_are_named_with_their_place_before_or_behind_ours() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let (agent, node) = (&shop.agents[0], &shop.cluster.nodes[0].netns);
    let tcx = features::tcx()?;
    // The same object serves as somebody else's: what is whose is told by links, not by names.
    let foreign = node.enter(move || -> Result<Object> {
        let mut object = Object::load(None, Sizes { flows: 1024, slots: 1024, ..Sizes::default() })?;
        let program = object.classifier("to_loopback")?;
        if tcx {
            let order = LinkOrder::first();
            program.attach_with_options("eth0", TcAttachType::Ingress, TcAttachOptions::TcxOrder(order))?;
            let order = LinkOrder::last();
            program.attach_with_options("eth0", TcAttachType::Egress, TcAttachOptions::TcxOrder(order))?;
        }
        let _ = aya::programs::tc::qdisc_add_clsact("eth0");
        let options = NlOptions { priority: 3, ..NlOptions::default() };
        program.attach_with_options("eth0", TcAttachType::Ingress, TcAttachOptions::Netlink(options))?;
        Ok(object)
    })??;
    let found = beside(agent)?;
    assert!(found.healthy, "a warning is no error: {:#?}", found.faults());
    let noted = |words: &[&str]| {
        let is_it = |text: &str| words.iter().all(|word| text.contains(word));
        found.findings.iter().any(|it| it["severity"] == "ok" && it["found"].as_str().is_some_and(is_it))
    };
    if tcx {
        found.names(
            "warning programs: tcx program to_loopback",
            &["on eth0 ingress comes before Portolan's", "TCX_NEXT"],
        )?;
        assert!(noted(&["tcx program to_loopback", "on eth0 egress comes after"]), "{:#?}", found.findings);
        assert!(
            noted(&["clsact filter bpf", "(priority 3) on eth0 ingress comes after"]),
            "{:#?}",
            found.findings
        );
    } else {
        found.names(
            "warning programs: clsact filter bpf",
            &["(priority 3) on eth0 ingress comes before", "TC_ACT_UNSPEC"],
        )?;
    }
    drop(foreign);
    Ok(())
}

/// The commands of a remedy: what stands between backquotes.
fn commands(remedy: &str) -> impl Iterator<Item = &str> {
    remedy.split('`').skip(1).step_by(2)
}

#[test]
fn a_firewall_that_stops_pods_is_mended_by_its_remedy() -> Result<()> {
    let shop = Shop::open(&[1])?;
    let (agent, node) = (&shop.agents[0], &shop.cluster.nodes[0].netns);
    let to = SocketAddr::new(shop.backends[0].pod.address(false), 8080);
    let asks = || failure(&shop.client.netns, false, to, Duration::from_millis(400));
    assert_eq!(asks()?, None);
    node.run("iptables-nft -P FORWARD DROP")?;
    assert_eq!(asks()?, Some(ErrorKind::TimedOut));
    let found = beside(agent)?;
    let is_it = |it: &&Value| it["check"] == "firewall" && it["severity"] == "error";
    let finding = found.findings.iter().find(is_it).context("no such finding")?;
    for command in commands(finding["remedy"].as_str().unwrap_or_default()) {
        run(node.command("sh").args(["-c", command]))?;
    }
    assert_eq!(asks()?, None);
    let mended = beside(agent)?;
    assert!(mended.healthy, "{:#?}", mended.faults());
    mended.names(
        "warning firewall: nftables chain ip filter FORWARD drops what none of its 2 rules accepts",
        &[],
    )
}

/// All that the doctor could have changed.
fn state(node: &Netns) -> Result<String> {
    let commands = [
        "sysctl -a --pattern ^net\\.ipv[46]\\.(conf\\..*(forwarding|rp_filter|accept_ra)|ip_)",
        "nft list ruleset",
        "ip -d link show",
        "ip address show",
        "ip route show table all",
        "tc filter show dev eth0 ingress",
        "tc qdisc show",
        "cat /proc/net/ip_tables_names",
    ];
    commands.map(|command| node.run(command)).into_iter().collect()
}

#[test]
fn the_doctor_changes_nothing_and_wrong_usage_is_told_from_sickness() -> Result<()> {
    let cluster = Cluster::new()?;
    let (node, directory) = (&cluster.nodes[0].netns, cluster.directory());
    node.run("iptables-nft -t nat -N KUBE-SERVICES")?;
    let before = state(node)?;
    let output = alone(node, directory)?.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for words in
        ["error    kube-proxy: ", "         why   ", "         mend  stop kube-proxy", "1 error, 0 warnings"]
    {
        assert!(text.contains(words), "{words:?} is not in {text}");
    }
    assert_eq!(state(node)?, before);
    let wrong = alone(node, directory)?.args(["--node-port-range", "9-1"]).output()?;
    assert_eq!(wrong.status.code(), Some(2));
    Ok(())
}
