//! Pods have addresses, reach each other, and cannot pretend. The real plugin, real sockets, real tools.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipnetwork::IpNetwork;
use portolan_tests::lab::{
    Agent, AgentOptions, Cluster, NODE_ADDRESSES, Netns, Pod, Shop, WebServer, get, poll, udp_ask,
};
use serde_json::Value;

const FAMILIES: [bool; 2] = [false, true];

fn cluster() -> Result<(Cluster, [Agent; 2])> {
    let cluster = Cluster::new()?;
    cluster.write_example("nodes.yaml")?;
    let agents = cluster.start_agents(&AgentOptions::default())?;
    Ok((cluster, agents))
}

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("reading {text}"))
}

/// Packets dropped for a reason on a node.
fn dropped(agent: &Agent, reason: &str) -> Result<u64> {
    let list = json(&agent.view("drop list --all -o json")?)?;
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
        let addresses = json(&pod.netns.run("ip -j addr show dev eth0 scope global")?)?;
        let addresses = addresses[0]["addr_info"].as_array().context("no addresses")?;
        let prefixes: Vec<_> = addresses.iter().map(|it| it["prefixlen"].as_u64()).collect();
        assert_eq!(prefixes, [Some(32), Some(128)], "{addresses:?}");
        let route = pod.netns.run("ip route show default")?;
        ensure!(route.starts_with("default via 169.254.1.1 dev eth0"), "{route}");
        let route = pod.netns.run("ip -6 route show default")?;
        ensure!(route.starts_with("default via fe80::1 dev eth0"), "{route}");
        let link = json(&pod.netns.run("ip -j link show dev eth0")?)?;
        assert_eq!(link[0]["mtu"], 1500, "the uplink's");
    }
    drop(cluster);
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
        json(&pod.run("ip -j link show dev eth0")?)?[0]["address"].as_str().context("no MAC")?.to_owned();
    pod.ip("link set dev eth0 address 02:00:00:00:00:77")?;
    // The kernel forgets neighbours with the old address.
    pod.ip("neigh replace 169.254.1.1 lladdr 02:70:6f:72:74:6c nud permanent dev eth0")?;
    ensure!(pod.run(&format!("ping -c 1 -W 1 {}", victim.address(false))).is_err(), "an answer came");
    ensure!(dropped(&shop.agents[0], "spoofed-mac")? > before, "nothing was counted");
    pod.ip(&format!("link set dev eth0 address {own}"))?;
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
    assert_eq!(json(&agents[0].view("pod list -o json")?)?.as_array().map(Vec::len), Some(50));
    std::thread::scope(|scope| {
        pods.into_iter().for_each(|pod| {
            scope.spawn(move || drop(pod));
        })
    });
    assert_eq!(json(&agents[0].view("pod list -o json")?)?.as_array().map(Vec::len), Some(0));
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
    pod.netns.ip(&format!("addr del {}/32 dev eth0", pod.address(false)))?;
    ensure!(!ok("CHECK")?, "the address is gone");
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
        || (json(&agents[0].view("pod list -o json").ok()?).ok()?.as_array()?.is_empty()).then_some(());
    poll(Duration::from_secs(5), "the queued DEL is done", none)?;
    drop(other);
    Ok(())
}
