//! Masquerade ports: which ones are taken, and what an operator learns when there are none left.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{AgentOptions, NODE_ADDRESSES, Shop, poll, public_address};
use serde_json::Value;

const FAMILIES: [bool; 2] = [false, true];

/// Ports in the range that the agents are given.
const PORTS: usize = 12;

/// Opens connections until one finds no port; those that were opened.
fn open_all(shop: &Shop, to: SocketAddr) -> Result<Vec<TcpStream>> {
    shop.cluster.client.enter(move || {
        let open = |_| TcpStream::connect_timeout(&to, Duration::from_millis(500)).ok();
        (0..3 * PORTS).map_while(open).collect()
    })
}

#[test]
fn who_takes_all_masquerade_ports_is_named() -> Result<()> {
    let arguments = ["--masquerade-range", "20000-20011"].map(str::to_owned).to_vec();
    let shop = Shop::open_with(&[1], &AgentOptions { arguments, ..AgentOptions::default() })?;
    let reserved = shop.cluster.nodes[0].netns.run("cat /proc/sys/net/ipv4/ip_local_reserved_ports")?;
    ensure!(reserved.trim() == "20000-20011,30000-32767", "{reserved}");
    // Through the first node to a backend on the second: with the first node's address and one of its ports.
    shop.cluster.route_public_to(0)?;
    let mut connections = Vec::new();
    for v6 in FAMILIES {
        connections.push(open_all(&shop, public_address(v6))?);
        let count = connections.last().map_or(0, Vec::len);
        ensure!((1..=PORTS).contains(&count), "{count} connections");
        are_of_the_range(&shop, v6, count)?;
    }
    let backends = FAMILIES.map(|v6| SocketAddr::new(shop.backends[0].pod.address(v6), 8080).to_string());
    let warning = poll(Duration::from_secs(40), "the agent warns of both", || {
        // As others go on to ask: what found a port meanwhile is closed at once.
        FAMILIES.into_iter().try_for_each(|v6| open_all(&shop, public_address(v6)).map(drop)).ok()?;
        let status: Value = serde_json::from_str(&shop.agents[0].view("status -o json").ok()?).ok()?;
        let mut warnings = status["warnings"].as_array()?.iter().filter_map(Value::as_str).map(str::to_owned);
        warnings.find(|it| backends.iter().all(|backend| it.contains(backend)))
    })?;
    for word in
        ["masquerade ports", "shop/web", "203.0.113.10 with", "2001:db8:c::10 with", "--masquerade-range"]
    {
        ensure!(warning.contains(word), "no {word} in: {warning}");
    }
    Ok(())
}

/// So many connections have reached the backend, each from a port of the range.
fn are_of_the_range(shop: &Shop, v6: bool, count: usize) -> Result<()> {
    let list = shop.backends[0].pod.netns.run("ss -Htn state established sport = :8080")?;
    let node = NODE_ADDRESSES[0][usize::from(v6)];
    let sources = list.lines().filter_map(|line| line.split_whitespace().last());
    let sources: Vec<&str> = sources.filter(|source| source.contains(node)).collect();
    ensure!(sources.len() == count, "{list}");
    for source in &sources {
        let port: u16 = source.rsplit(':').next().unwrap_or_default().parse().context("a port")?;
        ensure!((20_000..=20_011).contains(&port), "{source} is outside of the range");
    }
    Ok(())
}
