//! Nodes that share no network: their pods reach each other by the overlay, and nothing of them shows outside of it.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{
    AgentOptions, Capture, Cluster, NODE_ADDRESSES, Netns, Shop, WebServer, cluster_address, get,
    node_address, poll, public_address, udp_ask,
};
use serde_json::Value;

const FAMILIES: [bool; 2] = [false, true];

/// Whatever of pods travels as it is.
const BARE: &str = "net 10.244.0.0/16 or net fd00:10:244::/48";

fn overlaid(outside: &str) -> AgentOptions {
    let arguments = ["--routing-mode", "vxlan", "--overlay-family", outside];
    AgentOptions { arguments: arguments.map(str::to_owned).into(), ..AgentOptions::default() }
}

fn parted(outside: &str, nodes: &[usize]) -> Result<Shop> {
    let cluster = Cluster::new()?;
    cluster.part_nodes()?;
    Shop::open_in(cluster, nodes, &overlaid(outside))
}

/// Sends a megabyte; how much of it came.
fn transfer(from: &Netns, to: &Netns, address: IpAddr) -> Result<u64> {
    let listener = to.listen(7001)?;
    let receiver = std::thread::spawn(move || -> std::io::Result<u64> {
        let (mut stream, _) = listener.accept()?;
        std::io::copy(&mut stream, &mut std::io::sink())
    });
    from.enter(move || -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&(address, 7001).into(), Duration::from_secs(3))?;
        stream.set_write_timeout(Some(Duration::from_secs(3)))?;
        stream.write_all(&[7; 1 << 20])
    })??;
    Ok(receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))??)
}

/// Pods, hosts and outside clients ask pods, hosts and services, in both families; all that travels between the nodes is in the
/// overlay.
fn everybody_reaches_everybody(outside: &str) -> Result<()> {
    let shop = parted(outside, &[1])?;
    let _node = WebServer::start(&shop.cluster.nodes[1].netns, 7000, "node2")?;
    let _home = WebServer::start(&shop.cluster.nodes[0].netns, 7000, "node1")?;
    let bare = Capture::start(&shop.cluster.router, "br0", BARE)?;
    let [one, two] = shop.cluster.nodes.each_ref().map(|node| &node.netns);
    let backend = &shop.backends[0].pod;
    shop.cluster.route_public_to(0)?;
    for v6 in FAMILIES {
        let pod = SocketAddr::new(backend.address(v6), 8080);
        let echo = SocketAddr::new(backend.address(v6), 9000);
        for (server, seen) in [get(&shop.client.netns, pod)?, udp_ask(&shop.client.netns, echo)?] {
            assert_eq!((server.as_str(), seen.parse()?), ("b0", shop.client.address(v6)), "pod to pod");
        }
        shop.client.netns.run(&format!("ping -c 2 -i 0.1 -W 2 {}", backend.address(v6)))?;
        for netns in [&shop.client.netns, one] {
            assert_eq!(get(netns, cluster_address(v6))?.0, "b0", "a service");
            assert_eq!(get(netns, pod)?.0, "b0", "a pod of the other node");
        }
        // A pod at the other node, and back: with its own address.
        let [there, home] = [1, 0].map(|node: usize| NODE_ADDRESSES[node][usize::from(v6)]);
        let (server, seen) = get(&shop.client.netns, SocketAddr::new(there.parse()?, 7000))?;
        assert_eq!((server.as_str(), seen.parse()?), ("node2", shop.client.address(v6)));
        assert_eq!(get(&backend.netns, SocketAddr::new(home.parse()?, 7000))?.0, "node1");
        ensure!(get(two, SocketAddr::new(shop.client.address(v6), 8080)).is_err(), "nobody listens");
        // Outside clients, by a node without a backend.
        for to in [public_address(v6), node_address(0, v6)] {
            let (server, seen) = get(&shop.cluster.client, to)?;
            assert_eq!((server.as_str(), seen.as_str()), ("b0", home), "{to}");
        }
        assert_eq!(transfer(&shop.client.netns, &backend.netns, backend.address(v6))?, 1 << 20);
        assert_eq!(transfer(&backend.netns, &shop.client.netns, shop.client.address(v6))?, 1 << 20);
    }
    let sentinel = format!("ping -c 1 -W 2 {}", NODE_ADDRESSES[1][0]);
    one.run(&sentinel)?;
    let seen = bare.packets()?;
    ensure!(seen.is_empty(), "outside of the overlay: {seen:#?}");
    Ok(())
}

#[test]
fn everybody_reaches_everybody_between_ipv4_addresses() -> Result<()> {
    everybody_reaches_everybody("ipv4")
}

#[test]
fn everybody_reaches_everybody_between_ipv6_addresses() -> Result<()> {
    everybody_reaches_everybody("ipv6")
}

#[test]
fn pods_know_what_fits_and_nothing_is_cut_outside() -> Result<()> {
    let shop = parted("ipv4", &[1])?;
    let links: Value = serde_json::from_str(&shop.client.netns.run("ip -j link show dev eth0")?)?;
    assert_eq!(links[0]["mtu"], 1450);
    let pieces = Capture::start(&shop.cluster.router, "br0", "ip[6:2] & 0x3fff != 0")?;
    for v6 in FAMILIES {
        let most = 1450 - if v6 { 48 } else { 28 };
        let to = shop.backends[0].pod.address(v6);
        shop.client.netns.run(&format!("ping -c 1 -W 2 -M do -s {most} {to}"))?;
        ensure!(shop.client.netns.run(&format!("ping -c 1 -W 1 -M do -s {} {to}", most + 1)).is_err());
        ensure!(get(&shop.client.netns, cluster_address(v6)).is_ok());
    }
    let seen = pieces.packets()?;
    ensure!(seen.is_empty(), "{seen:#?}");
    Ok(())
}

#[test]
fn only_nodes_speak_in_the_overlay() -> Result<()> {
    let shop = parted("ipv4", &[1])?;
    // A pod that sends what a node would take for a packet of the overlay, and an outside host that does.
    let frame = [&[8, 0, 0, 0, 0, 0, 1, 0][..], &[0x02; 14], &[0x45; 40]].concat();
    for (netns, agent) in [(&shop.client.netns, 0), (&shop.cluster.client, 1)] {
        let before = dropped(&shop, agent)?;
        let (bytes, to) = (frame.clone(), NODE_ADDRESSES[1][0]);
        netns.enter(move || -> std::io::Result<()> {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
            socket.send_to(&bytes, (to, 8472)).map(drop)
        })??;
        poll(Duration::from_secs(3), "it is dropped with its reason", || {
            (dropped(&shop, agent).ok()? > before).then_some(())
        })?;
    }
    Ok(())
}

fn dropped(shop: &Shop, agent: usize) -> Result<u64> {
    let list: Value = serde_json::from_str(&shop.agents[agent].view("drop list --all -o json")?)?;
    let entry = list.as_array().and_then(|list| list.iter().find(|entry| entry["reason"] == "overlay"));
    entry.and_then(|entry| entry["packets"].as_u64()).context("no reason overlay")
}

#[test]
fn the_mode_changes_under_running_pods_and_their_connections() -> Result<()> {
    let mut shop = Shop::open(&[1])?;
    let listener = shop.backends[0].pod.netns.listen(7000)?;
    let server = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        std::io::copy(&mut stream.try_clone()?, &mut stream).map(drop)
    });
    let to = SocketAddr::new(shop.backends[0].pod.address(false), 7000);
    let mut stream =
        shop.client.netns.enter(move || TcpStream::connect_timeout(&to, Duration::from_secs(3)))??;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut echo = |text: &[u8; 4]| -> Result<()> {
        stream.write_all(text)?;
        let mut back = [0; 4];
        stream.read_exact(&mut back)?;
        ensure!(back == *text, "{back:?}");
        Ok(())
    };
    echo(b"once")?;
    for mode in ["vxlan", "native"] {
        for agent in &mut shop.agents {
            agent.kill()?;
            agent.restart_with("--routing-mode", mode)?;
        }
        echo(mode.as_bytes()[..4].try_into()?)?;
        for v6 in FAMILIES {
            assert_eq!(get(&shop.client.netns, cluster_address(v6))?.0, "b0", "{mode}");
        }
        let device = shop.cluster.nodes[0].netns.ip("link show portolan2");
        assert_eq!(device.is_ok(), mode == "vxlan", "{device:?}");
    }
    drop(stream);
    server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    let left = shop.agents[0].uninstall()?;
    ensure!(shop.cluster.nodes[0].netns.ip("link show portolan2").is_err(), "{left}");
    Ok(())
}

#[test]
fn nodes_that_come_and_go_are_reached_and_forgotten() -> Result<()> {
    let shop = parted("ipv4", &[1])?;
    let backend = SocketAddr::new(shop.backends[0].pod.address(false), 8080);
    let nodes = std::fs::read_to_string(shop.cluster.objects().join("nodes.yaml"))?;
    let only_first =
        nodes.split("---").find(|node| node.contains("name: node1")).context("no node1")?.to_owned();
    shop.cluster.write("nodes.yaml", &only_first)?;
    poll(Duration::from_secs(5), "the node is forgotten", || {
        let routes = shop.cluster.nodes[0].netns.ip("route show dev portolan2").ok()?;
        routes.trim().is_empty().then_some(())
    })?;
    ensure!(get(&shop.client.netns, backend).is_err(), "nobody knows the way");
    shop.cluster.write("nodes.yaml", &nodes)?;
    poll(Duration::from_secs(20), "the node is back", || get(&shop.client.netns, backend).ok())?;
    // Exits with 1 where the tables are not as they should be.
    shop.agents[0].view("audit")?;
    Ok(())
}
