//! Pods have addresses, reach each other, and cannot pretend. The real plugin, real sockets, real tools.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipnetwork::IpNetwork;
use portolan_abi::GATEWAY_MAC;
use portolan_tests::lab::{
    Agent, AgentOptions, Capture, Cluster, Frames, NODE_ADDRESSES, Netns, Pod, Shop, WebServer, get, operate,
    poll, udp_ask,
};
use portolan_tests::packet::build::Packet;
use serde_json::{Value, json};

const FAMILIES: [bool; 2] = [false, true];

fn cluster() -> Result<(Cluster, [Agent; 2])> {
    let cluster = Cluster::new()?;
    cluster.write_example("nodes.yaml")?;
    let agents = cluster.start_agents(&AgentOptions::default())?;
    Ok((cluster, agents))
}

fn read(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("reading {text}"))
}

/// Packets dropped for a reason on a node.
fn dropped(agent: &Agent, reason: &str) -> Result<u64> {
    let list = read(&agent.view("drop list --all -o json")?)?;
    let entry = list.as_array().and_then(|list| list.iter().find(|entry| entry["reason"] == reason));
    entry.and_then(|entry| entry["packets"].as_u64()).with_context(|| format!("no reason {reason}"))
}

#[test]
fn every_pod_has_one_address_of_each_podcidr_and_routes_only_to_its_gateway() -> Result<()> {
    let (cluster, agents) = cluster()?;
    let pods: Vec<Pod> = (0..4).map(|n| Pod::add(&agents[n % 2], &format!("p{n}"))).collect::<Result<_>>()?;
    let mut seen = BTreeSet::new();
    for (number, pod) in pods.iter().enumerate() {
        let node = number % 2 + 1;
        for (v6, cidr) in
            FAMILIES.into_iter().zip([format!("10.244.{node}.0/24"), format!("fd00:10:244:{node}::/64")])
        {
            let cidr: IpNetwork = cidr.parse()?;
            ensure!(cidr.contains(pod.address(v6)), "{} is not of {cidr}", pod.address(v6));
            ensure!(seen.insert(pod.address(v6)), "{} was given twice", pod.address(v6));
        }
        let addresses = read(&pod.netns.run("ip -j addr show dev eth0 scope global")?)?;
        let addresses = addresses[0]["addr_info"].as_array().context("no addresses")?;
        let prefixes: Vec<_> = addresses.iter().map(|it| it["prefixlen"].as_u64()).collect();
        assert_eq!(prefixes, [Some(32), Some(128)], "{addresses:?}");
        let route = pod.netns.run("ip route show default")?;
        ensure!(route.starts_with("default via 169.254.1.1 dev eth0"), "{route}");
        let route = pod.netns.run("ip -6 route show default")?;
        ensure!(route.starts_with("default via fe80::1 dev eth0"), "{route}");
        let link = read(&pod.netns.run("ip -j link show dev eth0")?)?;
        assert_eq!(link[0]["mtu"], 1500, "the uplink's");
        is_known_to_its_node(pod, &cluster.nodes[node - 1].netns)?;
    }
    Ok(())
}

/// The other end of the pod's interface: named and routed to as documented, and neither side asks for neighbours.
fn is_known_to_its_node(pod: &Pod, node: &Netns) -> Result<()> {
    for (v6, gateway) in FAMILIES.into_iter().zip(["169.254.1.1", "fe80::1"]) {
        let route = read(&node.run(&format!("ip -j route get {}", pod.address(v6)))?)?;
        let device = route[0]["dev"].as_str().context("no device")?;
        let id = device.strip_prefix("ptl").context("the host's side has another name")?;
        ensure!(id.len() == 10 && id.chars().all(|it| it.is_ascii_hexdigit()), "{device}");
        let neighbours = pod.netns.run("ip neigh show dev eth0")?;
        let permanent = |line: &str| line.starts_with(&format!("{gateway} ")) && line.contains("PERMANENT");
        ensure!(neighbours.lines().any(permanent), "{neighbours}");
    }
    Ok(())
}

#[test]
fn pods_have_the_mtu_of_the_uplink_and_large_transfers_fit() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.write_example("nodes.yaml")?;
    for node in &cluster.nodes {
        node.netns.ip("link set eth0 mtu 1400")?;
    }
    let agents = cluster.start_agents(&AgentOptions::default())?;
    let pods = [Pod::add(&agents[0], "one")?, Pod::add(&agents[1], "two")?];
    for pod in &pods {
        let link = read(&pod.netns.run("ip -j link show dev eth0")?)?;
        assert_eq!(link[0]["mtu"], 1400);
    }
    for v6 in FAMILIES {
        transfer(&pods[0].netns, &pods[1].netns, pods[1].address(v6))?;
        let most = 1400 - if v6 { 48 } else { 28 };
        pods[0].netns.run(&format!("ping -c 1 -W 2 -M do -s {most} {}", pods[1].address(v6)))?;
    }
    // New pods get what the uplink has now; old ones are as sound as they were.
    cluster.nodes[0].netns.ip("link set eth0 mtu 1300")?;
    poll(Duration::from_secs(10), "a new pod has the uplink's new MTU", || {
        let pod = Pod::add(&agents[0], "later").ok()?;
        let link = read(&pod.netns.run("ip -j link show dev eth0").ok()?).ok()?;
        (link[0]["mtu"] == 1300).then_some(())
    })?;
    ensure!(pods[0].call("CHECK")?.status.success(), "a pod of before");
    Ok(())
}

#[test]
fn pods_and_hosts_reach_each_other_on_one_node_and_across() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    for v6 in FAMILIES {
        let client = (&shop.client.netns, shop.client.address(v6));
        let host = (&shop.cluster.nodes[0].netns, NODE_ADDRESSES[0][usize::from(v6)].parse()?);
        for (netns, address) in [client, host] {
            for backend in &shop.backends {
                let to = backend.pod.address(v6);
                for (server, seen) in
                    [get(netns, SocketAddr::new(to, 8080))?, udp_ask(netns, SocketAddr::new(to, 9000))?]
                {
                    assert_eq!(server, backend.pod.name);
                    let seen: IpAddr = seen.parse()?;
                    // The host chooses among its addresses; a pod's own is never replaced.
                    ensure!(netns.name() == host.0.name() || seen == address, "{to} sees {seen}");
                }
                netns.run(&format!("ping -c 2 -i 0.1 -W 2 {to}"))?;
            }
        }
        let _web = WebServer::start(&shop.cluster.nodes[0].netns, 7000, "node1")?;
        let _other = WebServer::start(&shop.cluster.nodes[1].netns, 7000, "node2")?;
        for (node, addresses) in NODE_ADDRESSES.iter().enumerate() {
            let to = SocketAddr::new(addresses[usize::from(v6)].parse()?, 7000);
            assert_eq!(get(&shop.client.netns, to)?.0, format!("node{}", node + 1));
        }
    }
    Ok(())
}

/// Sends pseudo-random bytes over one connection, and compares what arrives.
fn transfer(from: &Netns, to: &Netns, address: IpAddr) -> Result<()> {
    const SIZE: usize = 10 << 20;
    let bytes: Vec<u8> = (0..SIZE as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let listener = to.enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)))??;
    let address = SocketAddr::new(address, listener.local_addr()?.port());
    let receiver = std::thread::spawn(move || -> std::io::Result<Vec<u8>> {
        let mut received = Vec::with_capacity(SIZE);
        listener.accept()?.0.read_to_end(&mut received)?;
        Ok(received)
    });
    let sent = bytes.clone();
    from.enter(move || -> Result<()> {
        TcpStream::connect_timeout(&address, Duration::from_secs(3))?.write_all(&sent)?;
        Ok(())
    })??;
    let received = receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))??;
    ensure!(received == bytes, "{} of {SIZE} bytes arrived, or others", received.len());
    Ok(())
}

#[test]
fn ten_megabytes_arrive_whole() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    for v6 in FAMILIES {
        for backend in &shop.backends {
            transfer(&shop.client.netns, &backend.pod.netns, backend.pod.address(v6))?;
            transfer(&backend.pod.netns, &shop.client.netns, shop.client.address(v6))?;
        }
    }
    Ok(())
}

#[test]
fn a_pod_cannot_send_with_anothers_address_or_mac() -> Result<()> {
    let shop = Shop::open(&[1])?;
    let pod = &shop.client.netns;
    let victim = &shop.backends[0].pod;
    let seen = Capture::start(&victim.netns, "eth0", "icmp or icmp6")?;
    for (v6, foreign, bits) in [(false, "10.244.1.99", 32), (true, "fd00:10:244:1::99", 128)] {
        let before = dropped(&shop.agents[0], "spoofed-address")?;
        pod.ip(&format!("addr add {foreign}/{bits} dev eth0 nodad"))
            .or_else(|_| pod.ip(&format!("addr add {foreign}/{bits} dev eth0")))?;
        let ping = pod.run(&format!("ping -c 1 -W 1 -I {foreign} {}", victim.address(v6)));
        ensure!(ping.is_err(), "an answer came to {foreign}");
        ensure!(dropped(&shop.agents[0], "spoofed-address")? > before, "nothing of {foreign} was counted");
        pod.ip(&format!("addr del {foreign}/{bits} dev eth0"))?;
        pod.run(&format!("ping -c 1 -W 2 {}", victim.address(v6))).context("with its own address")?;
    }
    let before = dropped(&shop.agents[0], "spoofed-mac")?;
    let own =
        read(&pod.run("ip -j link show dev eth0")?)?[0]["address"].as_str().context("no MAC")?.to_owned();
    pod.ip("link set dev eth0 address 02:00:00:00:00:77")?;
    // The kernel forgets neighbours with the old address.
    pod.ip("neigh replace 169.254.1.1 lladdr 02:70:6f:72:74:6c nud permanent dev eth0")?;
    ensure!(pod.run(&format!("ping -c 1 -W 1 {}", victim.address(false))).is_err(), "an answer came");
    ensure!(dropped(&shop.agents[0], "spoofed-mac")? > before, "nothing was counted");
    pod.ip(&format!("link set dev eth0 address {own}"))?;
    // Whatever was let through came before this one.
    pod.ip("neigh replace 169.254.1.1 lladdr 02:70:6f:72:74:6c nud permanent dev eth0")?;
    pod.run(&format!("ping -c 1 -W 2 -s 777 {}", victim.address(false))).context("with its own MAC again")?;
    let packets = seen.until(&["echo request", "length 785"])?;
    let requests = packets.iter().filter(|it| it.contains("echo request")).count();
    assert_eq!(requests, 3, "one in each family and the last: {packets:#?}");
    Ok(())
}

/// Sends one frame as fast as it can from an interface of a namespace that is not there yet, until told to stop.
fn flood(netns: &Netns, stop: &Arc<AtomicBool>, frame: Vec<u8>) -> Result<JoinHandle<std::io::Result<()>>> {
    let stop = Arc::clone(stop);
    netns.spawn(move || {
        let frames = Frames::open("eth0")?;
        while !stop.load(Ordering::Relaxed) {
            // It fails until the interface is up.
            let _ = frames.send(&frame);
        }
        Ok(())
    })
}

#[test]
fn a_pod_cannot_send_anything_before_its_programs_are_attached() -> Result<()> {
    let (cluster, agents) = cluster()?;
    let target = (NODE_ADDRESSES[1][0].parse()?, 7777);
    let foreign = "10.244.1.200".parse()?;
    let frame = Packet::udp((foreign, 7777), target).macs(GATEWAY_MAC, [2, 0, 0, 0, 0, 9]).bytes();
    let capture = Capture::start(&cluster.router, "n0", "udp port 7777")?;
    // Every frame that a pod sends gets one of these; nobody else does.
    let reasons = ["spoofed-address", "spoofed-mac", "link-local", "multicast", "not-ip"];
    let all = || reasons.iter().map(|reason| dropped(&agents[0], reason)).sum::<Result<u64>>();
    let mut total = 0;
    for number in 0..10 {
        let name = format!("p{number}");
        let (netns, stop, before) = (Netns::new(&name)?, Arc::new(AtomicBool::new(false)), all()?);
        let flooding = flood(&netns, &stop, frame.clone())?;
        let pod = Pod::add_to(&agents[0], &name, netns);
        stop.store(true, Ordering::Relaxed);
        flooding.join().map_err(|_| anyhow::anyhow!("the flood panicked"))??;
        let pod = pod?;
        // What the other end took; what was sent before it was up went nowhere.
        let sent = || {
            let link = read(&pod.netns.run("ip -j -s link show dev eth0").ok()?).ok()?;
            link[0]["stats64"]["tx"]["packets"].as_u64()
        };
        // What the node is too busy to take in goes nowhere either: the kernel drops it before any program.
        let node = &cluster.nodes[0].netns;
        let overrun = || {
            let links = read(&node.run("ip -j -s link show").ok()?).ok()?;
            let mut pods = links.as_array()?.iter().filter(|it| it["address"] == "02:70:6f:72:74:6c");
            pods.try_fold(0, |sum, it| Some(sum + it["stats64"]["rx"]["dropped"].as_u64()?))
        };
        total += poll(Duration::from_secs(2), "each frame since the first has met the programs", || {
            let met = all().ok()? - before;
            sent().filter(|sent| met == *sent || overrun().is_some_and(|overrun| met + overrun >= *sent))
        })?;
    }
    ensure!(total > 100, "only {total} frames were sent");
    // The same frame from an interface without programs: the way is open.
    let plain = Netns::new("plain")?;
    let node = &cluster.nodes[0].netns;
    node.ip(&format!(
        "link add plain0 address 02:70:6f:72:74:6c type veth peer name eth0 netns {}",
        plain.name()
    ))?;
    node.ip("link set plain0 up")?;
    plain.ip("link set eth0 up")?;
    node.ip("route add 10.244.1.200/32 dev plain0")?;
    plain.enter(move || Frames::open("eth0")?.send(&frame))??;
    let packets = capture.until(&["10.244.1.200.7777 >"])?;
    assert_eq!(packets.len(), 1, "and nothing came from the pods: {packets:#?}");
    Ok(())
}

#[test]
fn pods_without_an_agent_go_on_and_stay_guarded() -> Result<()> {
    let mut shop = Shop::open(&[0, 1])?;
    let before = dropped(&shop.agents[0], "spoofed-address")?;
    for agent in &mut shop.agents {
        agent.kill()?;
    }
    for v6 in FAMILIES {
        for backend in &shop.backends {
            let to = backend.pod.address(v6);
            assert_eq!(get(&shop.client.netns, SocketAddr::new(to, 8080))?.0, backend.pod.name);
            shop.client.netns.run(&format!("ping -c 1 -W 2 {to}"))?;
        }
    }
    shop.client.netns.ip("addr add 10.244.1.99/32 dev eth0")?;
    let to = shop.backends[1].pod.address(false);
    ensure!(shop.client.netns.run(&format!("ping -c 1 -W 1 -I 10.244.1.99 {to}")).is_err(), "an answer came");
    for agent in &mut shop.agents {
        agent.restart()?;
    }
    assert_eq!(dropped(&shop.agents[0], "spoofed-address")?, before + 1, "the counters lived on");
    Ok(())
}

#[test]
fn fifty_parallel_adds_and_dels_give_no_address_twice_and_leave_nothing() -> Result<()> {
    let (cluster, agents) = cluster()?;
    let links = || cluster.nodes[0].netns.run("ip -o link show type veth");
    let before = links()?.lines().count();
    let pods: Vec<Pod> = std::thread::scope(|scope| {
        let adds: Vec<_> = (0..50)
            .map(|n| {
                let agent = &agents[0];
                scope.spawn(move || Pod::add(agent, &format!("p{n}")))
            })
            .collect();
        adds.into_iter()
            .map(|add| add.join().map_err(|_| anyhow::anyhow!("an ADD panicked"))?)
            .collect::<Result<_>>()
    })?;
    let unique: BTreeSet<IpAddr> = pods.iter().flat_map(|pod| pod.addresses.clone()).collect();
    assert_eq!(unique.len(), 100);
    assert_eq!(read(&agents[0].view("pod list -o json")?)?.as_array().map(Vec::len), Some(50));
    std::thread::scope(|scope| {
        pods.into_iter().for_each(|pod| {
            scope.spawn(move || drop(pod));
        })
    });
    assert_eq!(read(&agents[0].view("pod list -o json")?)?.as_array().map(Vec::len), Some(0));
    // The kernel takes interfaces down behind the answer.
    poll(Duration::from_secs(5), "all interfaces are gone", || {
        (links().ok()?.lines().count() == before).then_some(())
    })?;
    Ok(())
}

#[test]
fn check_tells_the_truth_and_a_second_add_is_refused() -> Result<()> {
    let (_cluster, agents) = cluster()?;
    let pod = Pod::add(&agents[0], "one")?;
    let ok = |command| Ok::<bool, anyhow::Error>(pod.call(command)?.status.success());
    ensure!(ok("CHECK")?, "a sound pod");
    let again = pod.call("ADD")?;
    ensure!(!again.status.success(), "ADD of an interface that is there");
    ensure!(ok("CHECK")?, "the refused ADD left the pod alone");
    let (v4, v6) = (pod.address(false), pod.address(true));
    let damages = [
        ("addr del {v4}/32 dev eth0", "addr add {v4}/32 dev eth0"),
        ("addr del {v6}/128 dev eth0", "addr add {v6}/128 dev eth0 nodad"),
        ("route del default via 169.254.1.1", "route add default via 169.254.1.1 dev eth0"),
        ("-6 route del default", "-6 route add default via fe80::1 dev eth0"),
        ("link set eth0 mtu 1300", "link set eth0 mtu 1500"),
    ];
    for (damage, repair) in damages {
        let words = |line: &str| line.replace("{v4}", &v4.to_string()).replace("{v6}", &v6.to_string());
        pod.netns.ip(&words(damage))?;
        ensure!(!ok("CHECK")?, "after: ip {}", words(damage));
        // Taking an IPv4 address away takes its routes along.
        pod.netns.ip(&words(repair))?;
        if damage.contains("addr del {v4}") {
            let _ = pod.netns.ip("route add 169.254.1.1 dev eth0 scope link");
            let _ = pod.netns.ip("route add default via 169.254.1.1 dev eth0");
        }
    }
    pod.netns.ip("link del eth0")?;
    ensure!(!ok("CHECK")?, "the interface is gone");
    ensure!(ok("DEL")? && ok("DEL")?, "DEL again and again");
    ensure!(pod.netns.run("ip link show dev eth0").is_err(), "the interface is gone");
    Ok(())
}

#[test]
fn without_an_agent_add_says_so_and_del_is_done_later() -> Result<()> {
    let (_cluster, mut agents) = cluster()?;
    let pod = Pod::add(&agents[0], "one")?;
    agents[0].kill()?;
    let other = Netns::new("two")?;
    let refused = Pod::add(&agents[0], "three");
    let text = format!("{:#}", refused.err().context("an ADD without an agent")?);
    ensure!(text.contains("\"code\":11"), "{text}");
    ensure!(pod.call("DEL")?.status.success(), "DEL without an agent");
    agents[0].restart()?;
    let none =
        || (read(&agents[0].view("pod list -o json").ok()?).ok()?.as_array()?.is_empty()).then_some(());
    poll(Duration::from_secs(5), "the queued DEL is done", none)?;
    drop(other);
    Ok(())
}

#[test]
fn a_refused_add_leaves_nothing_and_touches_nothing() -> Result<()> {
    let (cluster, agents) = cluster()?;
    let links = || cluster.nodes[0].netns.run("ip -o link show type veth");
    let before = links()?;
    let pod = Pod::add(&agents[0], "one")?;
    ensure!(pod.call("DEL")?.status.success());
    pod.netns.ip("link add eth0 type veth peer name other")?;
    let refused = pod.call("ADD")?;
    let answer = read(&String::from_utf8(refused.stdout)?)?;
    assert_eq!(answer["code"], 102, "{answer}");
    assert_eq!(read(&agents[0].view("pod list -o json")?)?, json!([]), "an address is held by nobody");
    pod.netns.run("ip link show dev eth0").context("another's interface")?;
    assert_eq!(links()?, before);
    Ok(())
}

/// The code of STATUS; `None`: an ADD would work.
fn status(agent: &Agent) -> Result<Option<u64>> {
    let output = operate(agent, "STATUS", &json!({}))?;
    if output.status.success() {
        return Ok(None);
    }
    let answer = read(&String::from_utf8(output.stdout)?)?;
    Ok(Some(answer["code"].as_u64().context("an error without a code")?))
}

#[test]
fn gc_removes_what_is_not_in_the_list_and_nothing_else() -> Result<()> {
    let (_cluster, agents) = cluster()?;
    let pods: Vec<Pod> =
        ["one", "two", "three"].iter().map(|name| Pod::add(&agents[0], name)).collect::<Result<_>>()?;
    let valid = |kept: &[&Pod]| {
        let list: Vec<Value> =
            kept.iter().map(|pod| json!({"containerID": pod.netns.name(), "ifname": "eth0"})).collect();
        operate(&agents[0], "GC", &json!({"cni.dev/valid-attachments": list}))
    };
    ensure!(!operate(&agents[0], "GC", &json!({}))?.status.success(), "GC without a list");
    let output = valid(&[&pods[0], &pods[2]])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let works = |pod: &Pod| pod.netns.run("ping -c 1 -W 2 192.0.2.12").is_ok();
    ensure!(works(&pods[0]) && works(&pods[2]), "the others live");
    ensure!(pods[1].netns.run("ip link show dev eth0").is_err(), "the interface is gone");
    assert_eq!(read(&agents[0].view("pod list -o json")?)?.as_array().map(Vec::len), Some(2));
    ensure!(valid(&[])?.status.success());
    assert_eq!(read(&agents[0].view("pod list -o json")?)?, json!([]));
    Ok(())
}

/// Adds and deletes a pod a few times; no one else may have its addresses meanwhile.
fn come_and_go(agent: &Agent, name: &str, held: &Mutex<BTreeSet<IpAddr>>) -> Result<()> {
    for _ in 0..4 {
        let pod = Pod::add(agent, name)?;
        let addresses = pod.addresses.clone();
        let mut others = held.lock().map_err(|_| anyhow::anyhow!("another thread failed"))?;
        let fresh = addresses.iter().all(|address| others.insert(*address));
        drop(others);
        ensure!(fresh, "{addresses:?} are given twice");
        held.lock()
            .map_err(|_| anyhow::anyhow!("another thread failed"))?
            .retain(|it| !addresses.contains(it));
        drop(pod);
    }
    Ok(())
}

#[test]
fn a_small_podcidr_is_used_again_and_again_never_twice_at_once_and_says_when_it_is_full() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.write_example("nodes.yaml")?;
    let text = std::fs::read_to_string(cluster.objects().join("nodes.yaml"))?;
    cluster.write("nodes.yaml", &text.replace("10.244.1.0/24", "10.244.1.8/29"))?;
    let agents = cluster.start_agents(&AgentOptions::default())?;
    let first = Pod::add(&agents[0], "one")?;
    let address = first.address(false);
    drop(first);
    let mut pods: Vec<Pod> = (0..5).map(|n| Pod::add(&agents[0], &format!("p{n}"))).collect::<Result<_>>()?;
    ensure!(pods.iter().all(|pod| pod.address(false) != address), "{address} rests while others are free");
    assert_eq!(status(&agents[0])?, None);
    pods.push(Pod::add(&agents[0], "last")?);
    assert_eq!(pods[5].address(false), address, "it is given again when no other is left");
    assert_eq!(status(&agents[0])?, Some(50));
    let refused = format!("{:#}", Pod::add(&agents[0], "more").err().context("an ADD with no address left")?);
    ensure!(refused.contains("\"code\":101"), "{refused}");
    pods.clear();
    assert_eq!(status(&agents[0])?, None);
    let held = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        let (held, agent) = (&held, &agents[0]);
        let threads: Vec<_> =
            (0..6).map(|n| scope.spawn(move || come_and_go(agent, &format!("t{n}"), held))).collect();
        threads.into_iter().try_for_each(|it| it.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })?;
    assert_eq!(read(&agents[0].view("pod list -o json")?)?, json!([]));
    Ok(())
}

#[test]
fn del_is_content_with_a_pod_of_which_nothing_is_left() -> Result<()> {
    let (cluster, agents) = cluster()?;
    let node = &cluster.nodes[0].netns;
    let pods = [Pod::add(&agents[0], "one")?, Pod::add(&agents[0], "two")?];
    let route = read(&node.run(&format!("ip -j route get {}", pods[0].address(false)))?)?;
    node.ip(&format!("link del {}", route[0]["dev"].as_str().context("no device")?))?;
    ensure!(pods[0].call("DEL")?.status.success(), "the interface was gone");
    // A namespace that is deleted takes its interfaces with it.
    std::process::Command::new("umount").arg(pods[1].netns.path()).status()?;
    std::fs::remove_file(pods[1].netns.path())?;
    ensure!(pods[1].call("DEL")?.status.success(), "the namespace was gone");
    assert_eq!(read(&agents[0].view("pod list -o json")?)?, json!([]));
    Ok(())
}
