//! Direct server return: outside clients of a backend on another node are answered by that node.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_node::Tables;
use portolan_node::maps::Visit;
use portolan_tests::lab::{
    Agent, AgentOptions, Capture, Frames, LongLived, Netns, Shop, cluster_address, get, node_address, poll,
    public_address, udp_ask,
};
use portolan_tests::packet::build::{Mac, Packet, flag};
use serde_json::Value;

const FAMILIES: [bool; 2] = [false, true];
/// Bytes of an upload: many windows.
const UPLOAD: usize = 1 << 20;

/// A shop whose public range is routed to the first node.
fn open(nodes: &[usize], mode: &str) -> Result<Shop> {
    let arguments = vec!["--external-mode".to_owned(), mode.to_owned()];
    let shop = Shop::open_with(nodes, &AgentOptions { arguments, ..AgentOptions::default() })?;
    shop.cluster.route_public_to(0)?;
    Ok(shop)
}

fn outside(v6: bool) -> Result<IpAddr> {
    Ok(if v6 { "2001:db8:c::10" } else { "203.0.113.10" }.parse()?)
}

fn seen_over_tcp(shop: &Shop, to: SocketAddr) -> Result<IpAddr> {
    Ok(get(&shop.cluster.client, to)?.1.parse()?)
}

fn seen_over_udp(shop: &Shop, to: SocketAddr) -> Result<IpAddr> {
    Ok(udp_ask(&shop.cluster.client, to)?.1.parse()?)
}

fn json(agent: &Agent, line: &str) -> Result<Value> {
    Ok(serde_json::from_str(&agent.view(&format!("{line} -o json"))?)?)
}

/// Packets under a reason.
fn dropped(agent: &Agent, reason: &str) -> Result<u64> {
    let all = json(agent, "drop list --all")?;
    let entry = all.as_array().context("no list")?.iter().find(|entry| entry["reason"] == reason);
    entry.and_then(|entry| entry["packets"].as_u64()).with_context(|| format!("no reason {reason}"))
}

#[test]
fn a_backend_elsewhere_sees_the_client_and_its_node_answers_directly() -> Result<()> {
    let shop = open(&[1], "dsr")?;
    assert_eq!(json(&shop.agents[0], "status")?["externalMode"], "dsr");
    let [ingress, other] = [&shop.cluster.nodes[0].netns, &shop.cluster.nodes[1].netns];
    for v6 in FAMILIES {
        let pod = shop.backends[0].pod.address(v6);
        for to in [public_address(v6), node_address(0, v6)] {
            let answers = Capture::start(
                ingress,
                "eth0",
                &format!("src host {} and dst host {}", to.ip(), outside(v6)?),
            )?;
            let between = Capture::start(other, "eth0", &format!("dst host {pod}"))?;
            let client = Capture::start(
                &shop.cluster.client,
                "eth0",
                &format!("(tcp or udp) and dst host {}", outside(v6)?),
            )?;
            for _ in 0..3 {
                assert_eq!(seen_over_tcp(&shop, to)?, outside(v6)?, "{to} over TCP");
                assert_eq!(seen_over_udp(&shop, to)?, outside(v6)?, "{to} over UDP");
            }
            let inside = if v6 { "next-header IPv6 (41)" } else { "proto IPIP (4)" };
            let packets = between.until(&[inside, "UDP"])?;
            let strange: Vec<_> = packets.iter().filter(|packet| !packet.contains(inside)).collect();
            ensure!(packets.len() >= 6 && strange.is_empty(), "{strange:#?} of {}", packets.len());
            let packets = client.until(&["UDP"])?;
            let from = to.ip().to_string();
            ensure!(packets.iter().all(|packet| packet.contains(&from)), "{packets:#?}");
            ensure!(!packets.iter().any(|packet| packet.contains(&pod.to_string())), "{packets:#?}");
            assert_eq!(answers.packets()?, Vec::<String>::new(), "answers through the first node");
        }
    }
    let flows = json(&shop.agents[0], "flow list --limit 0")?.to_string();
    ensure!(flows.contains("encapsulated, answers return directly"), "{flows}");
    let story = shop.agents[0].view("explain 203.0.113.10 198.51.100.10:80")?;
    ensure!(story.contains("encapsulated to") && story.contains("answers return directly"), "{story}");
    for agent in &shop.agents {
        assert_eq!(agent.view("audit -o json")?.trim(), "[]");
    }
    Ok(())
}

/// Takes one connection on a port and answers with the number of bytes that came.
fn sink(netns: &Netns, port: u16) -> Result<std::thread::JoinHandle<std::io::Result<()>>> {
    let listener = netns.enter(move || TcpListener::bind(("::", port)))??;
    netns.spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        write!(stream, "{}", all.len())
    })
}

/// Sends [`UPLOAD`] bytes; what came of them.
fn upload(client: &Netns, to: SocketAddr) -> Result<String> {
    client.enter(move || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(&vec![b'x'; UPLOAD]).context("sending")?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("waiting for the answer")?;
        Ok(answer)
    })?
}

#[test]
fn large_uploads_find_the_size_that_fits() -> Result<()> {
    let mut shop = open(&[1], "dsr")?;
    shop.backends[0].web = None;
    for offload in ["on", "off"] {
        shop.cluster.client.run(&format!("ethtool -K eth0 tso {offload} gso {offload} tx {offload}"))?;
        for v6 in FAMILIES {
            // What was learnt before is forgotten.
            for family in ["-4", "-6"] {
                shop.cluster.client.ip(&format!("{family} route flush cache"))?;
            }
            let before = dropped(&shop.agents[0], "rejected-too-big")?;
            let to = public_address(v6);
            let told = Capture::start(&shop.cluster.client, "eth0", if v6 { "icmp6" } else { "icmp" })?;
            let server = sink(&shop.backends[0].pod.netns, 8080)?;
            assert_eq!(upload(&shop.cluster.client, to)?, UPLOAD.to_string(), "{to}, offload {offload}");
            server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
            ensure!(dropped(&shop.agents[0], "rejected-too-big")? > before, "nothing was too big");
            let words = if v6 { "packet too big, mtu 1460" } else { "need to frag (mtu 1480)" };
            told.until(&[words, &to.ip().to_string()])?;
        }
    }
    assert_eq!(dropped(&shop.agents[0], "kernel-refused")? + dropped(&shop.agents[1], "kernel-refused")?, 0);
    Ok(())
}

fn mac(netns: &Netns, interface: &str) -> Result<Mac> {
    let text = netns.ip(&format!("-o link show {interface}"))?;
    let mac = text.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next()).context("no MAC")?;
    let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    bytes.try_into().map_err(|_| anyhow::anyhow!("no MAC: {mac}"))
}

#[test]
fn nobody_but_a_node_sends_packets_inside_of_others_to_a_pod() -> Result<()> {
    let shop = open(&[0, 1], "dsr")?;
    let cluster = &shop.cluster;
    let far = &shop.backends[1].pod;
    cluster.router.ip(&format!("route add {} via 192.0.2.12", far.address(false)))?;
    cluster.router.ip(&format!("route add {} via 2001:db8:1::12", far.address(true)))?;
    let near = &shop.backends[0].pod;
    for v6 in FAMILIES {
        let proto = if v6 { 41 } else { 4 };
        let to = public_address(v6);
        let inner = Packet::tcp((outside(v6)?, 4444), (to.ip(), to.port()), flag::SYN);
        // From outside, and from a pod to its neighbour.
        let (ours, router) = (mac(&cluster.client, "eth0")?, mac(&cluster.router, "c0")?);
        let pod = mac(&shop.client.netns, "eth0")?;
        let forged = [
            (1, &cluster.client, outside(v6)?, far.address(v6), (router, ours)),
            (
                0,
                &shop.client.netns,
                shop.client.address(v6),
                near.address(v6),
                (portolan_abi::GATEWAY_MAC, pod),
            ),
        ];
        for (agent, netns, from, to, (gateway, own)) in forged {
            let before = dropped(&shop.agents[agent], "tunnel")?;
            let frame = Packet::other(from, to, proto, inner.ip()).macs(gateway, own).bytes();
            netns.enter(move || -> std::io::Result<()> {
                let frames = Frames::open("eth0")?;
                (0..5).try_for_each(|_| frames.send(&frame))
            })??;
            let all = || (dropped(&shop.agents[agent], "tunnel").ok()? == before + 5).then_some(());
            poll(Duration::from_secs(3), "all five are counted", all)?;
        }
    }
    Ok(())
}

/// Removes every flow of a node, as if others had displaced them.
fn lose_flows(agent: &Agent) -> Result<usize> {
    let tables = Tables::open(agent.pins())?;
    Ok(tables.v4.flows.sweep(|_, _| Visit::Remove)? + tables.v6.flows.sweep(|_, _| Visit::Remove)?)
}

/// Waits until connections have had more answers: some hundred packets.
fn go_on(shop: &Shop) -> Result<()> {
    for v6 in FAMILIES {
        for _ in 0..20 {
            seen_over_tcp(shop, public_address(v6))?;
        }
    }
    Ok(())
}

fn connections(shop: &Shop) -> Result<Vec<LongLived>> {
    let one = |v6: bool| LongLived::start(&shop.cluster.client, public_address(v6), 8);
    FAMILIES.into_iter().map(one).collect()
}

fn unbroken(connections: Vec<LongLived>) -> Result<()> {
    for tally in connections.into_iter().map(LongLived::finish) {
        ensure!(tally.failures.is_empty() && tally.answers() > 20, "{tally:?}");
    }
    Ok(())
}

#[test]
fn connections_survive_the_loss_of_flows_and_agents_of_the_node_that_sends_them_on() -> Result<()> {
    let mut shop = open(&[1, 1], "dsr")?;
    let connections = connections(&shop)?;
    ensure!(lose_flows(&shop.agents[0])? > 0, "there were flows");
    go_on(&shop)?;
    shop.agents.iter_mut().try_for_each(Agent::kill)?;
    go_on(&shop)?;
    shop.agents.iter_mut().try_for_each(Agent::restart)?;
    go_on(&shop)?;
    unbroken(connections)
}

#[test]
fn switching_the_mode_by_a_restart_keeps_connections() -> Result<()> {
    let mut shop = open(&[1], "snat")?;
    let node: [IpAddr; 2] = ["192.0.2.11".parse()?, "2001:db8:1::11".parse()?];
    let mut kept = Vec::new();
    for mode in ["snat", "dsr", "snat"] {
        for agent in &mut shop.agents {
            agent.restart_with("--external-mode", mode)?;
        }
        for v6 in FAMILIES {
            let expected = if mode == "dsr" { outside(v6)? } else { node[usize::from(v6)] };
            assert_eq!(seen_over_tcp(&shop, public_address(v6))?, expected, "{mode}");
        }
        kept.extend(connections(&shop)?);
    }
    go_on(&shop)?;
    unbroken(kept)
}

#[test]
fn the_hybrid_mode_is_direct_for_tcp_only() -> Result<()> {
    let shop = open(&[1], "hybrid")?;
    for v6 in FAMILIES {
        let node: IpAddr = node_address(0, v6).ip();
        for to in [public_address(v6), node_address(0, v6)] {
            assert_eq!(seen_over_tcp(&shop, to)?, outside(v6)?, "{to} over TCP");
            assert_eq!(seen_over_udp(&shop, to)?, node, "{to} over UDP");
        }
    }
    Ok(())
}

#[test]
fn outside_clients_of_cluster_addresses_are_masqueraded() -> Result<()> {
    let shop = open(&[1], "dsr")?;
    shop.cluster.route_services_to(0)?;
    for v6 in FAMILIES {
        let node = node_address(0, v6).ip();
        assert_eq!(seen_over_tcp(&shop, cluster_address(v6))?, node);
        assert_eq!(seen_over_udp(&shop, cluster_address(v6))?, node);
    }
    Ok(())
}
