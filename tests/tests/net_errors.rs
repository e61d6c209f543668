//! ICMP errors about the answers of a service go to its address, and the network may lead them to another node than its
//! clients: to one that knows nothing of the flow. Every node chooses alike, so that one finds the backend all the same.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{
    AgentOptions, Backend, Capture, NODE_ADDRESSES, Shop, poll, public_address, service,
};
use serde_json::Value;

const FAMILIES: [bool; 2] = [false, true];

/// Bytes of a download: many packets that are too long.
const DOWNLOAD: usize = 200_000;

/// A shop whose clients come through the first node. What the router says about answers to them, and what they themselves
/// say by ICMP, takes the way through the second one.
fn open(nodes: &[usize], mode: &str) -> Result<Shop> {
    let arguments = ["--external-selection", "maglev", "--external-mode", mode].map(str::to_owned).to_vec();
    let shop = Shop::open_with(nodes, &AgentOptions { arguments, ..AgentOptions::default() })?;
    shop.cluster.route_public_to(1)?;
    let router = &shop.cluster.router;
    let [v4, v6] = NODE_ADDRESSES[0];
    router.ip(&format!("route add 198.51.100.0/24 via {v4} table 100"))?;
    router.ip(&format!("route add 2001:db8:f::/64 via {v6} table 100"))?;
    for (family, icmp) in [("-4", "icmp"), ("-6", "ipv6-icmp")] {
        router.ip(&format!("{family} rule add pref 50 iif c0 ipproto {icmp} lookup main"))?;
        router.ip(&format!("{family} rule add pref 51 iif c0 lookup 100"))?;
    }
    // A host tells the same one no more than one such thing a second.
    shop.cluster.client.sysctl("net/ipv4/icmp_ratelimit", "0")?;
    shop.cluster.client.sysctl("net/ipv6/icmp/ratelimit", "0")?;
    Ok(shop)
}

/// Errors to the service's address, as they arrive at a node.
fn errors(shop: &Shop, node: usize, v6: bool) -> Result<Capture> {
    let filter = format!("{} and dst host {}", if v6 { "icmp6" } else { "icmp" }, public_address(v6).ip());
    Capture::start(&shop.cluster.nodes[node].netns, "eth0", &filter)
}

/// Downloads until several backends have served one, of every node that has any. Each learns anew how narrow the way to the
/// client is.
fn downloads_arrive(shop: &Shop, v6: bool) -> Result<()> {
    let mut met = BTreeSet::new();
    for number in 0..32 {
        for backend in &shop.backends {
            backend.pod.netns.ip(if v6 { "-6 route flush cache" } else { "route flush cache" })?;
        }
        let to = public_address(v6);
        let body = shop.cluster.client.run(&format!("curl -gsS --max-time 8 http://{to}/{DOWNLOAD}"));
        let body = body.with_context(|| format!("download {number} from {to}"))?;
        ensure!(body.len() > DOWNLOAD, "{} bytes from {to}", body.len());
        met.insert(body.split(' ').next().unwrap_or_default().to_owned());
        let served = shop.backends.iter().filter(|it| met.contains(&it.pod.name)).map(|it| it.node);
        let nodes: BTreeSet<usize> = shop.backends.iter().map(|it| it.node).collect();
        if met.len() > 1 && nodes == served.collect() && number >= 5 {
            return Ok(());
        }
    }
    anyhow::bail!("{met:?} alone serves")
}

fn downloads_survive_a_narrow_way(nodes: &[usize], mode: &str) -> Result<()> {
    let shop = open(nodes, mode)?;
    shop.cluster.router.ip("link set c0 mtu 1300")?;
    for v6 in FAMILIES {
        let (own, other) = (errors(&shop, 0, v6)?, errors(&shop, 1, v6)?);
        downloads_arrive(&shop, v6)?;
        other.until(&[if v6 { "packet too big" } else { "need to frag" }])?;
        assert_eq!(own.packets()?, Vec::<String>::new(), "errors at the flows' own node");
    }
    Ok(())
}

#[test]
fn downloads_survive_a_narrow_way_of_which_another_node_is_told() -> Result<()> {
    // Backends of the node that clients come through: they know the client by its own address, as routers do.
    downloads_survive_a_narrow_way(&[0, 0, 0], "snat")
}

#[test]
fn with_direct_return_they_do_wherever_the_backend_is() -> Result<()> {
    downloads_survive_a_narrow_way(&[0, 0, 1, 1], "dsr")
}

/// A server's socket in every backend. None answers by itself.
fn servers(shop: &Shop) -> Result<Vec<UdpSocket>> {
    let bind = |backend: &Backend| {
        let socket = backend.pod.netns.bind_udp(9000)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    shop.backends.iter().map(bind).collect()
}

/// A client asks and is gone before it is answered: who was asked, and what it hears when it answers.
fn answer_to_nobody(shop: &Shop, v6: bool) -> Result<(usize, Option<ErrorKind>)> {
    let servers = servers(shop)?;
    let to = public_address(v6);
    shop.cluster.client.enter(move || -> std::io::Result<()> {
        let any: IpAddr = if v6 { [0; 16].into() } else { [0; 4].into() };
        UdpSocket::bind((any, 0))?.send_to(b"question", to).map(drop)
    })??;
    let asked = || {
        let mut received = servers.iter().map(|server| server.recv_from(&mut [0; 64])).enumerate();
        received.find_map(|(index, it)| Some((index, it.ok()?.1)))
    };
    let (index, client) = poll(Duration::from_secs(2), "the question arrives", asked)?;
    // A socket hears of errors only about whom it is connected to.
    let server = &servers[index];
    server.connect(client)?;
    server.set_nonblocking(false)?;
    server.set_read_timeout(Some(Duration::from_millis(500)))?;
    server.send(b"answer")?;
    Ok((index, server.recv(&mut [0; 64]).err().map(|error| error.kind())))
}

/// Packets of a protocol that no service takes, as the second node counts them.
fn dropped(shop: &Shop) -> Result<u64> {
    let list: Value = serde_json::from_str(&shop.agents[1].view("drop list --all -o json")?)?;
    let entry = list.as_array().and_then(|list| list.iter().find(|entry| entry["reason"] == "protocol"));
    entry.and_then(|entry| entry["packets"].as_u64()).context("no such reason")
}

#[test]
fn a_server_hears_by_another_node_that_its_client_is_gone_unless_that_cannot_know_which_server() -> Result<()>
{
    let mut shop = open(&[0, 0, 0], "snat")?;
    shop.backends.iter_mut().for_each(|backend| backend.echo = None);
    for v6 in FAMILIES {
        let mut told = BTreeSet::new();
        for _ in 0..12 {
            let (server, heard) = answer_to_nobody(&shop, v6)?;
            ensure!(heard == Some(ErrorKind::ConnectionRefused), "b{server} heard {heard:?}");
            told.insert(server);
        }
        ensure!(told.len() > 1, "{told:?} alone is asked");
    }
    // What only the flow's own node knows: which backends are its own, and where the client was before.
    for own in ["externalTrafficPolicy: Local", "sessionAffinity: ClientIP"] {
        shop.cluster.write("service.yaml", &service(&format!("  {own}\n")))?;
        shop.settle()?;
        for v6 in FAMILIES {
            let before = dropped(&shop)?;
            let (server, heard) = answer_to_nobody(&shop, v6)?;
            ensure!(heard == Some(ErrorKind::WouldBlock), "{own}: b{server} heard {heard:?}");
            ensure!(dropped(&shop)? == before + 1, "{own}: dropped, and counted");
        }
    }
    Ok(())
}
