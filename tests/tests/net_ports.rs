//! Masquerade ports: which ones are taken, and what an operator learns when there are none left.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{AgentOptions, Shop, poll, public_address};
use serde_json::Value;

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
    shop.wait_for_answer(false)?;

    let connections = open_all(&shop, public_address(false))?;
    ensure!(!connections.is_empty() && connections.len() <= PORTS, "{} connections", connections.len());
    let sources: Vec<String> = shop.backends[0]
        .pod
        .netns
        .run("ss -Htn state established sport = :8080")?
        .lines()
        .map(|line| line.split_whitespace().last().unwrap_or_default().to_owned())
        .collect();
    ensure!(sources.len() == connections.len(), "{sources:?}");
    for source in &sources {
        let port: u16 = source.rsplit(':').next().unwrap_or_default().parse().context("a port")?;
        ensure!((20_000..=20_011).contains(&port), "{source} is outside of the range");
    }

    let warning = poll(Duration::from_secs(40), "the agent warns", || {
        let status: Value = serde_json::from_str(&shop.agents[0].view("status -o json").ok()?).ok()?;
        let warnings = status["warnings"].as_array()?.iter().filter_map(Value::as_str);
        warnings.map(str::to_owned).find(|it| it.contains("masquerade ports"))
    })?;
    let backend = SocketAddr::new(shop.backends[0].pod.address(false), 8080).to_string();
    for word in ["shop/web", &backend, "203.0.113.10 with", "--masquerade-range"] {
        ensure!(warning.contains(word), "no {word} in: {warning}");
    }
    Ok(())
}
