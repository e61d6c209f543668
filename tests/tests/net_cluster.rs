//! The smallest whole cluster: every kind of client reaches every kind of address. The virtual machine with the
//! oldest kernel runs this too.

use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result};
use portolan_tests::lab::{
    AgentOptions, Netns, Shop, cluster_address, get, node_address, public_address, udp_ask,
};

/// Asks over TCP and UDP until all backends have answered both.
fn reaches_all(client: &Netns, who: &str, to: SocketAddr, shop: &Shop) -> Result<()> {
    for (protocol, ask) in [("TCP", get as fn(&Netns, SocketAddr) -> Result<_>), ("UDP", udp_ask)] {
        let mut waiting: Vec<&str> = shop.backends.iter().map(|backend| backend.pod.name.as_str()).collect();
        for _ in 0..64 {
            let (server, _) = ask(client, to).with_context(|| format!("{who} asks {to} over {protocol}"))?;
            waiting.retain(|name| *name != server);
            if waiting.is_empty() {
                break;
            }
        }
        assert!(
            waiting.is_empty(),
            "{who} asked {to} over {protocol} 64 times, and {waiting:?} never answered"
        );
    }
    Ok(())
}

#[test]
fn every_kind_of_client_reaches_every_kind_of_address() -> Result<()> {
    reach_everything(&Shop::open(&[0, 1])?)
}

#[test]
fn every_kind_of_client_reaches_every_kind_of_address_by_balanced_sockets() -> Result<()> {
    let shop = Shop::open_with(&[0, 1], &AgentOptions { sockets: true, ..AgentOptions::default() })?;
    let status = shop.agents[0].view("status")?;
    assert!(status.contains("balanced in cgroup"), "{status}");
    for v6 in [false, true] {
        let to = cluster_address(v6);
        let peer = shop.client.netns.enter(move || TcpStream::connect(to)?.peer_addr())?;
        assert_eq!(peer?, to);
    }
    reach_everything(&shop)
}

fn reach_everything(shop: &Shop) -> Result<()> {
    for v6 in [false, true] {
        for backend in &shop.backends {
            let direct = SocketAddr::new(backend.pod.address(v6), 8080);
            let (server, seen) = get(&shop.client.netns, direct)?;
            let expected = (backend.pod.name.clone(), Ok(shop.client.address(v6)));
            assert_eq!((server, seen.parse()), expected, "pod to pod {direct}");
        }
        reaches_all(&shop.client.netns, "a pod", cluster_address(v6), shop)?;
        reaches_all(&shop.cluster.nodes[0].netns, "a process of the host", cluster_address(v6), shop)?;
        for node in [0, 1] {
            shop.cluster.route_public_to(node)?;
            for to in [public_address(v6), node_address(node, v6)] {
                reaches_all(&shop.cluster.client, "an outside client", to, shop)?;
            }
        }
    }
    Ok(())
}
