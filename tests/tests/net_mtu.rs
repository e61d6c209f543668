//! Ways that are narrower than an interface: the sender is told, by whoever can.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use portolan_tests::lab::{
    AgentOptions, Cluster, NODE_ADDRESSES, Netns, Shop, cluster_address, node_address, public_address,
};

const FAMILIES: [bool; 2] = [false, true];

/// Sends a megabyte to a service whose one backend has nothing on port 8080; how much came there.
fn upload(from: &Netns, to: SocketAddr, backend: &Netns) -> Result<u64> {
    let listener = backend.listen(8080)?;
    let receiver = std::thread::spawn(move || -> std::io::Result<u64> {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        std::io::copy(&mut stream, &mut std::io::sink())
    });
    from.enter(move || -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
        stream.set_write_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(&[7; 1 << 20])
    })?
    .with_context(|| format!("sending to {to}"))?;
    Ok(receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))??)
}

#[test]
fn a_large_upload_survives_an_uplink_that_became_narrower() -> Result<()> {
    let mut shop = Shop::open(&[1])?;
    shop.backends[0].web = None;
    shop.cluster.nodes[0].netns.ip("link set eth0 mtu 1300")?;
    shop.cluster.router.ip("link set n0 mtu 1300")?;
    // Packets of many segments pass links of any width, until a device cuts them.
    shop.cluster.nodes[0].netns.run("ethtool -K eth0 tso off gso off")?;
    shop.client.netns.run("ethtool -K eth0 tso off gso off")?;
    let (backend, host) = (&shop.backends[0].pod, &shop.cluster.nodes[0].netns);
    let mut failures = Vec::new();
    for v6 in FAMILIES {
        let direct = SocketAddr::new(backend.address(v6), 8080);
        for (who, netns) in [("a pod", &shop.client.netns), ("the host", host)] {
            for to in [direct, cluster_address(v6)] {
                match upload(netns, to, &backend.netns) {
                    Ok(came) if came == 1 << 20 => {}
                    other => failures.push(format!("{who} to {to}: {other:?}")),
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    Ok(())
}

/// What the first node sends the second one takes a wire of its own, of 1300 bytes; answers come back by the usual one.
fn narrow_way(cluster: &Cluster) -> Result<()> {
    let [one, two] = cluster.nodes.each_ref().map(|node| &node.netns);
    one.ip(&format!("link add eth1 mtu 1300 type veth peer name eth1 mtu 1300 netns {}", two.name()))?;
    let link: serde_json::Value = serde_json::from_str(&two.run("ip -j link show dev eth1")?)?;
    let mac = link[0]["address"].as_str().context("no MAC")?;
    for netns in [one, two] {
        netns.ip("link set eth1 up")?;
    }
    for address in NODE_ADDRESSES[1] {
        let bits = if address.contains(':') { 128 } else { 32 };
        one.ip(&format!("route add {address}/{bits} dev eth1"))?;
        one.ip(&format!("neigh add {address} lladdr {mac} dev eth1"))?;
    }
    Ok(())
}

#[test]
fn a_large_upload_of_an_outside_client_survives_a_narrower_way_to_the_backends_node() -> Result<()> {
    let cluster = Cluster::new()?;
    narrow_way(&cluster)?;
    let mut shop = Shop::open_in(cluster, &[1], &AgentOptions::default())?;
    shop.backends[0].web = None;
    let (backend, client) = (&shop.backends[0].pod.netns, &shop.cluster.client);
    let mut failures = Vec::new();
    // As whole segments that a device would cut, then one by one.
    for offload in ["on", "off"] {
        client.run(&format!("ethtool -K eth0 tso {offload} gso {offload}"))?;
        for to in FAMILIES.into_iter().flat_map(|v6| [node_address(0, v6), public_address(v6)]) {
            match upload(client, to, backend) {
                Ok(came) if came == 1 << 20 => {}
                other => failures.push(format!("{to}, offload {offload}: {other:?}")),
            }
            // The client has learned the size of this way.
            client.ip(if to.is_ipv4() { "route flush cache" } else { "-6 route flush cache" })?;
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    let drops: serde_json::Value = serde_json::from_str(&shop.agents[0].view("drop list --all -o json")?)?;
    let told = drops.as_array().into_iter().flatten().find(|drop| drop["reason"] == "rejected-too-big");
    assert!(told.and_then(|drop| drop["packets"].as_u64()) >= Some(4), "{told:?}");
    Ok(())
}
