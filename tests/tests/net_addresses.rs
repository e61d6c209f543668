//! What pods hold: addresses and MACs that are asked for, a state directory that takes no more, addresses that are used again.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{
    Agent, AgentOptions, Cluster, Netns, Pod, Runtime, UdpEcho, WebServer, get, poll, run, udp_ask,
};
use serde_json::{Value, json};

const FAMILIES: [bool; 2] = [false, true];

fn open() -> Result<(Cluster, [Agent; 2])> {
    let cluster = Cluster::new()?;
    cluster.write_example("nodes.yaml")?;
    let agents = cluster.start_agents(&AgentOptions::default())?;
    Ok((cluster, agents))
}

/// Code and text of an ADD that must fail.
fn refused(pod: Result<Pod>) -> Result<(u64, String)> {
    let text = format!("{:#}", pod.err().context("an ADD that must fail")?);
    let answer: Value = serde_json::from_str(&text[text.find('{').context("no answer")?..])?;
    Ok((answer["code"].as_u64().context("no code")?, text))
}

fn status(agent: &Agent) -> Result<Option<(u64, String)>> {
    status_of(&Runtime::of(agent))
}

/// Code and text of STATUS; `None`: an ADD would work.
fn status_of(runtime: &Runtime) -> Result<Option<(u64, String)>> {
    let output = runtime.operate("STATUS", &json!({}))?;
    if output.status.success() {
        return Ok(None);
    }
    let text = String::from_utf8(output.stdout)?;
    let answer: Value = serde_json::from_str(&text)?;
    Ok(Some((answer["code"].as_u64().context("no code")?, text)))
}

fn names(agent: &Agent) -> Result<BTreeSet<String>> {
    let pods: Vec<Value> = serde_json::from_str(&agent.view("pod list -o json")?)?;
    Ok(pods.iter().filter_map(|pod| Some(pod["name"].as_str()?.to_owned())).collect())
}

fn links(node: &Netns) -> Result<usize> {
    let list: Value = serde_json::from_str(&node.run("ip -j link show type veth")?)?;
    let names = list.as_array().into_iter().flatten().filter_map(|link| link["ifname"].as_str());
    Ok(names.filter(|name| name.starts_with("ptl")).count())
}

#[test]
fn a_pod_gets_the_addresses_and_the_mac_that_it_asks_for_and_keeps_them() -> Result<()> {
    let (_cluster, mut agents) = open()?;
    let asked = json!({"mac": "02:11:22:33:44:55", "ips": ["10.244.1.77/24", "fd00:10:244:1::77/64"]});
    let pod = Pod::add_with(&agents[0], "web", asked)?;
    assert_eq!(pod.addresses, ["10.244.1.77".parse::<IpAddr>()?, "fd00:10:244:1::77".parse()?]);
    let link: Value = serde_json::from_str(&pod.netns.run("ip -j link show dev eth0")?)?;
    assert_eq!(link[0]["address"], "02:11:22:33:44:55");
    ensure!(agents[0].view("pod list")?.contains("02:11:22:33:44:55"));
    let _web = WebServer::start(&pod.netns, 8080, "web")?;
    let (near, far) = (Pod::add(&agents[0], "near")?, Pod::add(&agents[1], "far")?);
    for restarted in [false, true] {
        if restarted {
            agents[0].restart()?;
        }
        for v6 in FAMILIES {
            for client in [&near, &far] {
                // Both directions: the pod's answers pass the guard with its MAC.
                let (name, seen) = get(&client.netns, SocketAddr::new(pod.address(v6), 8080))?;
                assert_eq!((name, seen), ("web".to_owned(), client.address(v6).to_string()));
            }
        }
        ensure!(pod.call("CHECK")?.status.success(), "restarted: {restarted}");
        agents[0].view("audit")?;
    }
    for (asked, code, text) in [
        (json!({"ips": ["10.244.1.77"]}), 11, "10.244.1.77 is held by pod shop/web"),
        (json!({"ips": ["10.244.2.7"]}), 7, "10.244.2.7 is not an address that this node gives"),
        (json!({"ips": ["10.244.1.0"]}), 7, "10.244.1.0 is not an address that this node gives"),
        (json!({"ips": ["10.244.1.8", "10.244.1.9"]}), 7, "are of one family"),
        (json!({"mac": "03:11:22:33:44:55"}), 7, "unicast MAC"),
        (json!({"mac": "02:70:6f:72:74:6c"}), 7, "the gateway's own"),
    ] {
        let (found, said) = refused(Pod::add_with(&agents[0], "two", asked.clone()))?;
        ensure!(found == code && said.contains(text), "{asked}: {said}");
    }
    assert_eq!(names(&agents[0])?, ["near", "web"].map(str::to_owned).into());
    // Who asks for one family gets the other as usual.
    let half = Pod::add_with(&agents[0], "half", json!({"ips": ["fd00:10:244:1::99"]}))?;
    ensure!(half.address(true) == "fd00:10:244:1::99".parse::<IpAddr>()? && half.address(false).is_ipv4());
    Ok(())
}

/// A small file system of its own, unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path) -> Result<Self> {
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs"]).arg(at))?;
        Ok(Self(at.to_owned()))
    }

    /// Takes all the room that is left.
    fn fill(&self) -> Result<()> {
        let mut file = std::fs::File::create(self.0.join("filler"))?;
        while file.write_all(&[0; 4096]).is_ok() {}
        Ok(())
    }

    fn empty(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.0.join("filler"))?)
    }

    fn remount(&self, how: &str) -> Result<()> {
        run(Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(&self.0)).map(drop)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg("--lazy").arg(&self.0)) {
            eprintln!("unmounting after a test: {error:#}");
        }
    }
}

/// An agent whose state directory is small.
fn open_small() -> Result<(Cluster, [Agent; 2], Small)> {
    let (cluster, mut agents) = open()?;
    agents[0].kill()?;
    let small = Small::mount(&agents[0].directory().join("state"))?;
    agents[0].restart()?;
    Ok((cluster, agents, small))
}

/// Adds pods until one is refused; those that were there before that.
fn until_refused(agent: &Agent, name: &str) -> Result<(Vec<Pod>, u64, String)> {
    let mut pods = Vec::new();
    // A last page that is not full takes some more lines.
    for number in 0..50 {
        match Pod::add(agent, &format!("{name}{number}")) {
            Ok(pod) => pods.push(pod),
            refusal => {
                let (code, text) = refused(refusal)?;
                return Ok((pods, code, text));
            }
        }
    }
    anyhow::bail!("fifty pods fit where nothing does")
}

#[test]
fn a_full_state_directory_takes_no_pod_says_so_and_works_again_with_room() -> Result<()> {
    let (cluster, mut agents, small) = open_small()?;
    let node = &cluster.nodes[0].netns;
    let first = Pod::add(&agents[0], "first")?;
    assert_eq!(status(&agents[0])?, None);
    small.fill()?;
    let (code, text) = status(&agents[0])?.context("STATUS while the disk is full")?;
    ensure!(code == 50 && text.contains("free space there"), "{text}");
    let (more, code, text) = until_refused(&agents[0], "more")?;
    ensure!(code == 5 && text.contains("free space there"), "{text}");
    let known: BTreeSet<String> = more.iter().chain([&first]).map(|pod| pod.name.clone()).collect();
    assert_eq!(names(&agents[0])?, known, "what was refused holds nothing");
    assert_eq!(links(node)?, known.len(), "what was refused has no interface");
    agents[0].view("audit")?;
    for pod in more.iter().chain([&first]) {
        pod.netns.run("ping -c 1 -W 2 192.0.2.12").context("pods that are there go on")?;
    }
    // Also after a restart, which can read and not write.
    agents[0].restart()?;
    ensure!(status(&agents[0])?.is_some_and(|(code, _)| code == 50));
    assert_eq!(names(&agents[0])?, known);
    ensure!(!first.call("DEL")?.status.success(), "a DEL that cannot be recorded is to be tried again");
    small.empty()?;
    assert_eq!(status(&agents[0])?, None);
    ensure!(first.call("DEL")?.status.success(), "with room");
    let next = Pod::add(&agents[0], "next")?;
    let mut addresses: Vec<IpAddr> =
        more.iter().chain([&next]).flat_map(|pod| pod.addresses.clone()).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 2 * (more.len() + 1), "no address twice");
    agents[0].restart()?;
    agents[0].view("audit")?;
    drop((first, more, next));
    assert_eq!((names(&agents[0])?, links(node)?), (BTreeSet::new(), 0));
    Ok(())
}

#[test]
fn a_read_only_state_directory_takes_no_pod_says_so_and_works_again() -> Result<()> {
    let (cluster, mut agents, small) = open_small()?;
    let node = &cluster.nodes[0].netns;
    let first = Pod::add(&agents[0], "first")?;
    // The log that is open for writing keeps the file system from that: the agent starts when it is read-only already.
    agents[0].kill()?;
    small.remount("ro")?;
    agents[0].restart()?;
    for _ in 0..2 {
        let (code, text) = status(&agents[0])?.context("STATUS of a read-only directory")?;
        ensure!(code == 50 && text.contains("make it writable"), "{text}");
        let (code, text) = refused(Pod::add(&agents[0], "more"))?;
        ensure!(code == 5 && text.contains("make it writable"), "{text}");
    }
    assert_eq!((names(&agents[0])?, links(node)?), (["first".to_owned()].into(), 1));
    first.netns.run("ping -c 1 -W 2 192.0.2.12").context("a pod that is there goes on")?;
    agents[0].view("audit")?;
    agents[0].kill()?;
    let output = first.call("DEL")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        text.contains("\"code\":5") && text.contains("could not be kept"),
        "DEL without an agent: {text}"
    );
    small.remount("rw")?;
    ensure!(first.call("DEL")?.status.success(), "DEL is queued");
    agents[0].restart()?;
    poll(Duration::from_secs(5), "the queued DEL is done", || {
        names(&agents[0]).ok()?.is_empty().then_some(())
    })?;
    assert_eq!(status(&agents[0])?, None);
    Pod::add(&agents[0], "next").map(drop)
}

#[test]
fn an_address_that_is_used_again_at_once_leads_to_its_new_pod_and_no_old_connection_does() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.write_example("nodes.yaml")?;
    let text = std::fs::read_to_string(cluster.objects().join("nodes.yaml"))?;
    cluster.write("nodes.yaml", &text.replace("10.244.1.0/24", "10.244.1.8/31"))?;
    let agents = cluster.start_agents(&AgentOptions::default())?;
    let mappings = json!({"portMappings": [
        {"hostPort": 8088, "containerPort": 8080, "protocol": "tcp"}, {"hostPort": 8088, "containerPort": 9000, "protocol": "udp"}
    ]});
    let client = Pod::add(&agents[0], "client")?;
    let old = Pod::add_with(&agents[0], "old", mappings.clone())?;
    let node: SocketAddr = "192.0.2.11:8088".parse()?;
    let direct = SocketAddr::new(old.address(false), 8080);
    let servers = (WebServer::start(&old.netns, 8080, "old")?, UdpEcho::start(&old.netns, 9000, "old")?);
    // Connections from outside by the node's address, and from a pod directly.
    let ask = |netns: &Netns, to: SocketAddr| -> Result<TcpStream> {
        let mut stream = netns.enter(move || TcpStream::connect_timeout(&to, Duration::from_secs(3)))??;
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
        // All of the answer, which comes in pieces: its last word is the client's address, with a line feed.
        let (mut answer, mut piece) = (String::new(), [0; 512]);
        while !(answer.contains("old ") && answer.ends_with('\n')) {
            let len = stream.read(&mut piece)?;
            ensure!(len > 0, "{answer}");
            answer += &String::from_utf8_lossy(&piece[..len]);
        }
        Ok(stream)
    };
    let mut open = vec![ask(&cluster.client, node)?, ask(&client.netns, direct)?];
    let asker = cluster.client.enter(|| std::net::UdpSocket::bind("0.0.0.0:0"))??;
    asker.set_read_timeout(Some(Duration::from_secs(3)))?;
    let udp = |name: &str| -> Result<()> {
        asker.send_to(b"ping", node)?;
        let mut buffer = [0; 512];
        let len = asker.recv(&mut buffer)?;
        ensure!(buffer[..len].starts_with(name.as_bytes()), "{}", String::from_utf8_lossy(&buffer[..len]));
        Ok(())
    };
    udp("old")?;
    let address = old.address(false);
    let (netns, _pod) = (old.netns.name().to_owned(), drop(old));
    drop(servers);
    let new = Pod::add_with(&agents[0], "new", mappings)?;
    ensure!(new.address(false) == address && new.netns.name() != netns, "the only address that is left");
    let _servers = (WebServer::start(&new.netns, 8080, "new")?, UdpEcho::start(&new.netns, 9000, "new")?);
    for to in [node, direct] {
        assert_eq!(get(&client.netns, to)?.0, "new", "{to}");
    }
    assert_eq!(get(&cluster.client, node)?.0, "new");
    assert_eq!(udp_ask(&cluster.client, node)?.0, "new");
    // One socket with one port all the time: its flow is another one now.
    udp("new").context("the same client over UDP")?;
    for stream in &mut open {
        let sent = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
        let answer = sent.and_then(|()| stream.read(&mut [0; 512]));
        ensure!(answer.as_ref().map_or(true, |len| *len == 0), "an old connection was answered: {answer:?}");
    }
    Ok(())
}

#[test]
fn a_node_without_podcidrs_takes_no_pod_and_other_podcidrs_leave_its_pods_alone() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.write_example("nodes.yaml")?;
    let text = std::fs::read_to_string(cluster.objects().join("nodes.yaml"))?;
    let cidrs = "[10.244.1.0/24, \"fd00:10:244:1::/64\"]";
    ensure!(text.contains(cidrs), "{text}");
    let publish = |cidrs_now: &str| cluster.write("nodes.yaml", &text.replace(cidrs, cidrs_now));
    let mut agents = cluster.start_agents(&AgentOptions::default())?;
    let runtime = Runtime::of(&agents[0]);
    agents[0].kill()?;
    ensure!(status_of(&runtime)?.is_some_and(|(code, text)| code == 50 && text.contains("not running")));
    publish("[]")?;
    std::thread::scope(|scope| -> Result<()> {
        // It is not ready before it has podCIDRs.
        let starting = scope.spawn(|| agents[0].restart());
        let asked = || status_of(&runtime).ok()?.filter(|(_, text)| text.contains("no podCIDR yet"));
        let said = poll(Duration::from_secs(20), "STATUS says that there is no podCIDR", asked);
        let netns = Netns::new("early")?;
        let early = runtime.call("ADD", ("early", &netns.path(), "early"), &json!({}))?;
        publish(cidrs)?;
        starting.join().map_err(|_| anyhow::anyhow!("starting panicked"))??;
        assert_eq!(said?.0, 50);
        let text = String::from_utf8(early.stdout)?;
        ensure!(text.contains("\"code\":11") && text.contains("spec.podCIDRs"), "{text}");
        Ok(())
    })?;
    assert_eq!(status(&agents[0])?, None);
    let first = Pod::add(&agents[0], "first")?;
    let _web = WebServer::start(&first.netns, 8080, "first")?;
    // Nonsense is refused: what was goes on.
    publish("[10.244.1.0/24, 10.244.1.128/25]")?;
    let warned = || {
        let said = agents[0].view_command("status").ok()?.output().ok()?.stdout;
        String::from_utf8_lossy(&said).contains("at most one prefix of each family").then_some(())
    };
    poll(Duration::from_secs(10), "status says what is wrong", warned)?;
    let second = Pod::add(&agents[0], "second")?;
    publish("[10.244.7.0/24, \"fd00:10:244:7::/64\"]")?;
    let elsewhere = |pod: &Pod| pod.address(false).to_string().starts_with("10.244.7.");
    let third = poll(Duration::from_secs(10), "pods get addresses of the new podCIDR", || {
        Pod::add(&agents[0], "third").ok().filter(elsewhere)
    })?;
    ensure!(!elsewhere(&first) && !elsewhere(&second), "who was there keeps what it had");
    for v6 in FAMILIES {
        for client in [&second, &third] {
            assert_eq!(get(&client.netns, SocketAddr::new(first.address(v6), 8080))?.0, "first");
        }
    }
    agents[0].view("audit")?;
    drop((first, second, third));
    assert_eq!(names(&agents[0])?, BTreeSet::new());
    Ok(())
}
