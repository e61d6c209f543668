//! Services at addresses that are announced on layer 2: the router finds the node by ARP and neighbour discovery, the agents'
//! programs do the rest.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{
    AgentOptions, Announcing, Capture, LongLived, NODE_ADDRESSES, SERVICE_ADDRESSES, Shop, get, poll,
    public_address, udp_ask,
};
use serde_json::json;

/// What the issue promises.
const TAKE_OVER: Duration = Duration::from_secs(3);

struct Scene {
    nodes: Vec<Announcing>,
    shop: Shop,
}

impl Scene {
    /// A service on both nodes whose addresses both may own. To the router they are neighbours, and it does not know whose.
    fn new() -> Result<Self> {
        // Whichever node an answer sends a client to next, it leads to the same backend, which sees the client itself.
        let words = ["--external-mode", "dsr", "--external-selection", "maglev"];
        let arguments = words.map(str::to_owned).to_vec();
        let shop = Shop::open_with(&[0, 1], &AgentOptions { arguments, ..AgentOptions::default() })?;
        let router = &shop.cluster.router;
        router.ip("route replace 198.51.100.0/24 dev br0")?;
        router.ip("route replace 2001:db8:f::/64 dev br0")?;
        let mut nodes = Vec::new();
        for node in &shop.cluster.nodes {
            let mut announcing = Announcing::start(&node.netns, &node.name)?;
            announcing.set_vips(&SERVICE_ADDRESSES.map(|address| json!({ "address": address })))?;
            let addresses = NODE_ADDRESSES.map(|node| node.map(str::to_owned).to_vec());
            let names = ["node1", "node2"].map(str::to_owned);
            announcing.set_members(&names.into_iter().zip(addresses).collect())?;
            nodes.push(announcing);
        }
        for node in &mut nodes {
            node.until("both are ready", |status| status["members"][0]["countsUs"] == true)?;
        }
        Ok(Self { nodes, shop })
    }

    fn owner(&mut self, vip: &str) -> Result<usize> {
        let owns: Vec<bool> = self.nodes.iter_mut().map(|node| node.owns(vip)).collect::<Result<_>>()?;
        owns.iter().position(|owns| *owns).with_context(|| format!("nobody owns {vip}"))
    }

    fn mac(&self, node: usize) -> Result<String> {
        let shown = self.shop.cluster.nodes[node].netns.ip("link show dev eth0")?;
        let mac = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
        mac.map(str::to_owned).context("no Ethernet address")
    }

    /// Waits until the router has a node's Ethernet address for an address.
    fn leads_to(&self, vip: &str, node: usize) -> Result<()> {
        let (mac, router) = (self.mac(node)?, &self.shop.cluster.router);
        let shown = || router.ip(&format!("neigh show {vip} dev br0")).unwrap_or_default();
        let polled =
            poll(TAKE_OVER, &format!("{vip} leads to {mac}"), || shown().contains(&mac).then_some(()));
        polled.with_context(shown)
    }
}

#[test]
fn connections_go_on_at_their_backends_while_owners_are_stopped_and_come_back() -> Result<()> {
    let mut scene = Scene::new()?;
    for (v6, vip) in [false, true].into_iter().zip(SERVICE_ADDRESSES) {
        let owner = scene.owner(vip)?;
        let connections = LongLived::start(&scene.shop.cluster.client, public_address(v6), 8)?;
        scene.leads_to(vip, owner)?;
        scene.nodes[owner].stop()?;
        scene.leads_to(vip, 1 - owner)?;
        ask_some(&scene, v6)?;
        scene.nodes[owner].go_on()?;
        scene.leads_to(vip, owner)?;
        ask_some(&scene, v6)?;
        let tally = connections.finish();
        ensure!(tally.failures.is_empty(), "{:?}", tally.failures);
        assert_eq!(tally.by_server.len(), 2, "{:?}", tally.by_server);
    }
    Ok(())
}

/// New connections are answered as well.
fn ask_some(scene: &Scene, v6: bool) -> Result<()> {
    (0..20).try_for_each(|_| get(&scene.shop.cluster.client, public_address(v6)).map(drop))
}

/// Asks until it is over; how often. Every request must be answered.
fn ask(once: impl Fn() -> Result<(String, String)>, over: &AtomicBool) -> Result<usize> {
    let mut asked = 0;
    while !over.load(Ordering::Relaxed) {
        once().with_context(|| format!("request {asked}"))?;
        asked += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(asked)
}

#[test]
fn a_router_that_asks_the_owner_itself_whether_it_is_still_there_is_answered() -> Result<()> {
    let mut scene = Scene::new()?;
    let router = &scene.shop.cluster.router;
    for family in ["ipv4", "ipv6"] {
        // It doubts after a second what it knows.
        router.sysctl(&format!("net/{family}/neigh/br0/base_reachable_time_ms"), "500")?;
        router.sysctl(&format!("net/{family}/neigh/br0/delay_first_probe_time"), "1")?;
    }
    let capture = Capture::start(router, "br0", "arp or icmp6")?;
    let over = AtomicBool::new(false);
    let macs = [scene.mac(0)?, scene.mac(1)?];
    let owners = [scene.owner(SERVICE_ADDRESSES[0])?, scene.owner(SERVICE_ADDRESSES[1])?];
    let client = &scene.shop.cluster.client;
    std::thread::scope(|scope| -> Result<()> {
        // Not by TCP: its acknowledgements confirm neighbours, in a lab with one kernel those of others as well.
        let asking = [false, true].map(|v6| {
            let over = &over;
            scope.spawn(move || ask(|| udp_ask(client, public_address(v6)), over))
        });
        let asked = |family: usize| {
            let (vip, mac) = (SERVICE_ADDRESSES[family], &macs[owners[family]]);
            let words = [format!("who-has {vip} tell 192.0.2.1,"), format!("who has {vip} ")];
            let packets = capture.packets().unwrap_or_default();
            let questions = packets
                .iter()
                .filter(|packet| packet.contains(&format!("> {mac},")) && packet.contains(&words[family]));
            questions.count()
        };
        let polled = poll(Duration::from_secs(20), "the router asks the owner itself", || {
            (asked(0) >= 5 && asked(1) >= 5).then_some(())
        });
        over.store(true, Ordering::Relaxed);
        for asking in asking {
            asking.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
        }
        polled.with_context(|| format!("{:#?}", capture.packets()))
    })?;
    // One that got no answer would ask everybody again.
    let packets = capture.packets()?;
    for vip in SERVICE_ADDRESSES {
        let all = |packet: &&String| {
            let group = packet.contains("> ff:ff:ff:ff:ff:ff,") || packet.contains("> 33:33:ff:");
            group
                && (packet.contains(&format!("who-has {vip} tell 192.0.2.1,"))
                    || packet.contains(&format!("who has {vip} ")))
        };
        let questions = packets.iter().filter(all).count();
        ensure!(questions <= 1, "{vip}: {questions} questions to everybody: {packets:#?}");
    }
    Ok(())
}
