//! Consistent hashing: when a backend leaves, clients of the others stay where they are, though nobody remembers them.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_node::Tables;
use portolan_node::maps::Visit;
use portolan_tests::lab::{AgentOptions, Condition, Shop, cluster_address};

/// Clients, by their source ports.
const PORTS: std::ops::Range<u16> = 20_000..20_300;

/// Who answers each client.
fn answers(shop: &Shop, v6: bool) -> Result<BTreeMap<u16, String>> {
    let to = cluster_address(v6);
    let own = shop.client.address(v6);
    shop.client.netns.enter(move || {
        PORTS
            .map(|port| {
                let socket = UdpSocket::bind((own, port))?;
                socket.connect(to)?;
                socket.set_read_timeout(Some(Duration::from_secs(3)))?;
                socket.send(b"ping")?;
                let mut buffer = [0; 512];
                let len = socket.recv(&mut buffer).with_context(|| format!("an answer at port {port}"))?;
                let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
                Ok((port, text.split_whitespace().next().unwrap_or_default().to_owned()))
            })
            .collect()
    })?
}

/// Forgets every flow, as a node does that is new to them.
fn forget(shop: &Shop) -> Result<()> {
    let tables = Tables::open(shop.agents[0].pins())?;
    tables.v4.flows.sweep(|_, _| Visit::Remove)?;
    tables.v6.flows.sweep(|_, _| Visit::Remove)?;
    Ok(())
}

/// Of the clients that did not ask the backend that leaves, how many ask another one afterwards, in percent.
fn moved(selection: &str, v6: bool) -> Result<usize> {
    let arguments = ["--external-selection", selection].map(str::to_owned).to_vec();
    let shop = Shop::open_with(&[0, 0, 0, 0], &AgentOptions { arguments, ..AgentOptions::default() })?;
    let before = answers(&shop, v6)?;
    let reached: std::collections::BTreeSet<&String> = before.values().collect();
    ensure!(reached.len() == 4, "only {reached:?} are asked");
    ensure!(shop.agents[0].view("audit")?.contains("are what the objects want"));

    shop.publish(|index| (index != 0).then_some(Condition::Ready))?;
    shop.settle()?;
    forget(&shop)?;
    let after = answers(&shop, v6)?;
    ensure!(after.values().all(|name| name != "b0"), "nobody asks who left");
    let others: Vec<_> = before.iter().filter(|(_, name)| *name != "b0").collect();
    let moved = others.iter().filter(|(port, name)| after.get(*port) != Some(*name)).count();
    println!("{selection}: {moved} of {} clients moved", others.len());
    Ok(100 * moved / others.len())
}

#[test]
fn by_a_maglev_table_hardly_anybody_moves_who_need_not() -> Result<()> {
    for v6 in [false, true] {
        let moved = moved("maglev", v6)?;
        ensure!(moved <= 6, "{moved} % of the clients of others moved");
    }
    Ok(())
}

#[test]
fn by_the_list_many_move() -> Result<()> {
    let moved = moved("list", false)?;
    ensure!(moved > 20, "only {moved} %: what the table is good for would not show");
    Ok(())
}
