//! Who may use a service's addresses, and which backends they get: affinity, source ranges, traffic policies.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use portolan_tests::lab::{
    Condition, Netns, Pod, Shop, cluster_address, get, node_address, poll, public_address, service, udp_ask,
};

const FAMILIES: [bool; 2] = [false, true];

/// Publishes the service with these lines in its spec, and waits until both agents have it.
fn change(shop: &Shop, extra: &str) -> Result<()> {
    let syncs = |agent: usize| -> Result<u64> {
        let status: serde_json::Value = serde_json::from_str(&shop.agents[agent].view("status -o json")?)?;
        status["syncs"].as_u64().context("status has no syncs")
    };
    let before = [syncs(0)?, syncs(1)?];
    shop.cluster.write("service.yaml", &service(extra))?;
    for (agent, before) in before.into_iter().enumerate() {
        let changed = || (syncs(agent).ok()? > before).then_some(());
        poll(Duration::from_secs(5), "the change is in the tables", changed)?;
    }
    Ok(())
}

/// The servers that answer `count` requests over TCP and as many over UDP.
fn servers(client: &Netns, to: SocketAddr, count: usize) -> Result<[BTreeSet<String>; 2]> {
    let ask = |ask: fn(&Netns, SocketAddr) -> Result<(String, String)>| {
        (0..count).map(|_| Ok(ask(client, to)?.0)).collect::<Result<BTreeSet<String>>>()
    };
    Ok([ask(get)?, ask(udp_ask)?])
}

/// Nothing comes back, not even a refusal.
fn is_silent(client: &Netns, to: SocketAddr) -> Result<()> {
    let error = client.enter(move || TcpStream::connect_timeout(&to, Duration::from_millis(700)).err())?;
    assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::TimedOut), "{to}");
    Ok(())
}

#[test]
fn session_affinity_is_switched_on_and_off() -> Result<()> {
    let shop = Shop::open(&[0, 0, 1, 1])?;
    let clients = [
        (&shop.client.netns, cluster_address as fn(bool) -> SocketAddr),
        (&shop.cluster.client, public_address),
        (&shop.cluster.client, |v6| node_address(0, v6)),
    ];
    shop.cluster.route_public_to(0)?;
    for affinity in [true, false, true] {
        change(&shop, if affinity { "  sessionAffinity: ClientIP\n" } else { "  sessionAffinity: None\n" })?;
        for v6 in FAMILIES {
            let mut outside = BTreeSet::new();
            for (client, to) in clients {
                let met = servers(client, to(v6), 24)?;
                for servers in &met {
                    assert_eq!(servers.len() == 1, affinity, "{} met {servers:?}", to(v6));
                }
                if client.name() == shop.cluster.client.name() {
                    outside.extend(met.into_iter().next());
                }
            }
            // The key is the client and the port of the service, whichever of its addresses was asked.
            assert!(!affinity || outside.len() == 1, "{outside:?}");
        }
    }
    Ok(())
}

#[test]
fn a_client_with_affinity_moves_on_when_its_backend_leaves() -> Result<()> {
    let shop = Shop::open(&[0, 1, 1])?;
    change(&shop, "  sessionAffinity: ClientIP\n")?;
    for v6 in FAMILIES {
        let to = cluster_address(v6);
        let [first, _] = servers(&shop.client.netns, to, 8)?;
        let left = shop.backends.iter().position(|backend| first.contains(&backend.pod.name));
        shop.publish(|index| (Some(index) != left).then_some(Condition::Ready))?;
        shop.wait_for_backends(2)?;
        let [next, _] = servers(&shop.client.netns, to, 8)?;
        assert!(next.len() == 1 && next != first, "{first:?}, then {next:?}");
        shop.publish(|_| Some(Condition::Ready))?;
        shop.wait_for_backends(3)?;
        assert_eq!(servers(&shop.client.netns, to, 8)?[0], next, "the new choice is remembered");
    }
    Ok(())
}

/// Who answers one question over UDP from an address of the client's choice.
fn ask_from(client: &Netns, from: IpAddr, to: SocketAddr) -> Result<String> {
    client.enter(move || -> Result<String> {
        let socket = UdpSocket::bind((from, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.send(b"ping")?;
        let mut buffer = [0; 512];
        let len = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..len]).split(' ').next().context("an empty answer")?.to_owned())
    })?
}

#[test]
fn affinity_ends_with_its_timeout_and_every_connection_begins_it_anew() -> Result<()> {
    let shop = Shop::open(&[0, 0, 1, 1])?;
    change(&shop, "  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 3}}\n")?;
    let client = &shop.cluster.client;
    let mut addresses: Vec<(IpAddr, SocketAddr)> = Vec::new();
    for number in 0x20..0x2c {
        for (v6, address) in
            [(false, format!("203.0.113.{number}")), (true, format!("2001:db8:c::{number:x}"))]
        {
            let options = if v6 { "/64 dev eth0 nodad" } else { "/24 dev eth0" };
            client.ip(&format!("address add {address}{options}"))?;
            addresses.push((address.parse()?, node_address(0, v6)));
        }
    }
    let mut remembered: Vec<(IpAddr, SocketAddr, String)> = Vec::new();
    for (from, to) in addresses {
        let server = ask_from(client, from, to)?;
        assert_eq!(ask_from(client, from, to)?, server, "{from} asks again at once");
        remembered.push((from, to, server));
    }
    // The last two go on, for longer than the timeout and the second by which it is exact; the others are silent.
    let (silent, busy) = remembered.split_at(remembered.len() - 2);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(4400) {
        for (from, to, server) in busy {
            assert_eq!(ask_from(client, *from, *to)?, *server, "{from} never stopped");
        }
        // Every question takes a masquerade port for minutes.
        std::thread::sleep(Duration::from_millis(20));
    }
    // That a client meets the same of four again by chance is nothing; that ten do is no chance.
    for v6 in FAMILIES {
        let mut moved = 0;
        for (from, to, server) in silent.iter().filter(|(from, ..)| from.is_ipv6() == v6) {
            moved += usize::from(ask_from(client, *from, *to)? != *server);
        }
        assert!(moved > 0, "IPv6 {v6}: all are remembered for longer than they may");
    }
    Ok(())
}

#[test]
fn load_balancer_source_ranges_admit_only_whom_they_name() -> Result<()> {
    let mut shop = Shop::open(&[0])?;
    change(&shop, "  loadBalancerSourceRanges: [203.0.113.128/25, \"2001:db8:c:1::/64\"]\n")?;
    for v6 in FAMILIES {
        is_silent(&shop.cluster.client, public_address(v6))?;
        is_silent(&shop.client.netns, public_address(v6))?;
        // Ranges bind the load balancer's address alone.
        get(&shop.cluster.client, node_address(0, v6))?;
        get(&shop.client.netns, cluster_address(v6))?;
    }
    change(&shop, "  loadBalancerSourceRanges: [203.0.113.0/28, \"2001:db8:c::/64\", 10.244.0.0/16]\n")?;
    // What is in the tables is taken over as it is by the next agent.
    shop.agents[0].restart()?;
    for v6 in FAMILIES {
        get(&shop.cluster.client, public_address(v6))?;
    }
    get(&shop.client.netns, public_address(false)).context("the pod's range is there")?;
    is_silent(&shop.client.netns, public_address(true))?;
    change(&shop, "")?;
    get(&shop.client.netns, public_address(true)).context("without ranges everybody may come")?;
    Ok(())
}

/// What `service show` says of the service.
fn conditions(shop: &Shop) -> Result<String> {
    let shown: serde_json::Value =
        serde_json::from_str(&shop.agents[0].view("service show shop/web -o json")?)?;
    Ok(shown["conditions"].to_string())
}

#[test]
fn a_range_that_admits_everybody_of_one_family_admits_nobody_of_the_other() -> Result<()> {
    let shop = Shop::open(&[0])?;
    for (ranges, open_v6, told) in [
        ("0.0.0.0/0, \"2001:db8:c:1::/64\"", false, ""),
        ("203.0.113.128/25, \"::/0\"", true, ""),
        // A family of which no range says anything is closed.
        ("0.0.0.0/0", false, "NobodyAdmitted: 2001:db8:f::10 is closed"),
        ("\"::/0\"", true, "NobodyAdmitted: 198.51.100.10 is closed"),
    ] {
        change(&shop, &format!("  loadBalancerSourceRanges: [{ranges}]\n"))?;
        for netns in [&shop.cluster.client, &shop.client.netns] {
            get(netns, public_address(open_v6))
                .with_context(|| format!("{ranges}: the family that is open"))?;
            is_silent(netns, public_address(!open_v6))?;
            assert!(is_pinged(netns, public_address(open_v6)), "{ranges}");
            assert!(!is_pinged(netns, public_address(!open_v6)), "{ranges}");
        }
        let found = conditions(&shop)?;
        assert!(found.contains(told) && (found == "[]") == told.is_empty(), "{ranges}: {found}");
    }
    Ok(())
}

/// Whether one ICMP echo to an address is answered.
fn is_pinged(client: &Netns, to: SocketAddr) -> bool {
    client.run(&format!("ping -c 1 -W 0.5 {}", to.ip())).is_ok()
}

#[test]
fn load_balancer_source_ranges_bind_ping_as_well() -> Result<()> {
    let mut shop = Shop::open(&[0])?;
    change(&shop, "  loadBalancerSourceRanges: [203.0.113.0/28, \"2001:db8:c::/64\", 192.0.2.11/32]\n")?;
    for restarted in [false, true] {
        for v6 in FAMILIES {
            let (pod, host, outside) =
                (&shop.client.netns, &shop.cluster.nodes[0].netns, &shop.cluster.client);
            assert!(is_pinged(outside, public_address(v6)), "named, restarted {restarted}");
            assert_eq!(is_pinged(host, public_address(v6)), !v6, "named over IPv4 alone");
            assert!(!is_pinged(pod, public_address(v6)), "not named, restarted {restarted}");
            assert!(is_pinged(pod, cluster_address(v6)), "ranges bind the load balancer's address alone");
        }
        shop.agents[0].restart()?;
    }
    change(&shop, "")?;
    for v6 in FAMILIES {
        assert!(is_pinged(&shop.client.netns, public_address(v6)), "without ranges everybody may come");
    }
    // Nobody answers for a service without a backend, named or not.
    shop.publish(|_| Some(Condition::NotReady))?;
    shop.wait_for_backends(0)?;
    for v6 in FAMILIES {
        assert!(!is_pinged(&shop.cluster.client, public_address(v6)));
    }
    Ok(())
}

/// Everybody, by a node, pings the service's addresses, all at once: those whose ping is answered, or not, against what is
/// expected.
fn wrong_pings(shop: &Shop, second: &Pod, node: usize, answered: bool) -> Vec<String> {
    let pod = if node == 0 { &shop.client } else { second };
    let everybody = [&pod.netns, &shop.cluster.nodes[node].netns, &shop.cluster.client];
    let addresses = FAMILIES.into_iter().flat_map(|v6| [public_address(v6), cluster_address(v6)]);
    std::thread::scope(|scope| {
        let pings: Vec<_> = everybody
            .into_iter()
            .flat_map(|netns| addresses.clone().map(move |to| (netns, to)))
            .map(|(netns, to)| (netns, to, scope.spawn(move || is_pinged(netns, to))))
            .collect();
        let wrong = pings.into_iter().filter_map(|(netns, to, ping)| {
            let found = ping.join().expect("a ping has no bug");
            (found != answered).then(|| format!("{} at {to} by node{}: {found}", netns.name(), node + 1))
        });
        wrong.collect()
    })
}

#[test]
fn ping_is_answered_by_every_node_while_any_has_an_endpoint_though_policies_are_local() -> Result<()> {
    let shop = Shop::open(&[1])?;
    let second = Pod::add(&shop.agents[1], "client2")?;
    change(&shop, "  internalTrafficPolicy: Local\n  externalTrafficPolicy: Local\n")?;
    for (condition, answered) in
        [(Condition::Ready, true), (Condition::Terminating, true), (Condition::NotReady, false)]
    {
        shop.publish(|_| Some(condition))?;
        shop.settle()?;
        for node in [0, 1] {
            shop.cluster.route_public_to(node)?;
            shop.cluster.route_services_to(node)?;
            assert_eq!(
                wrong_pings(&shop, &second, node, answered),
                Vec::<String>::new(),
                "{condition:?}, expected {answered}"
            );
        }
        // Echo is not a service's traffic: that stays on its node.
        shop.cluster.route_public_to(0)?;
        for v6 in FAMILIES.into_iter().filter(|_| answered) {
            is_silent(&shop.client.netns, cluster_address(v6))?;
            is_silent(&shop.cluster.client, public_address(v6))?;
        }
    }
    Ok(())
}

#[test]
fn external_traffic_policy_local_keeps_the_client_and_its_node() -> Result<()> {
    let shop = Shop::open(&[1])?;
    change(&shop, "  externalTrafficPolicy: Local\n")?;
    for v6 in FAMILIES {
        shop.cluster.route_public_to(1)?;
        let outside: IpAddr = if v6 { "2001:db8:c::10" } else { "203.0.113.10" }.parse()?;
        for to in [public_address(v6), node_address(1, v6)] {
            assert_eq!(get(&shop.cluster.client, to)?.1.parse::<IpAddr>()?, outside, "{to}");
        }
        // The other node has no backend: outside clients get nothing there …
        is_silent(&shop.cluster.client, node_address(0, v6))?;
        shop.cluster.route_public_to(0)?;
        is_silent(&shop.cluster.client, public_address(v6))?;
        // … while pods and hosts of the cluster are led to all backends.
        get(&shop.client.netns, public_address(v6))?;
        get(&shop.cluster.nodes[0].netns, public_address(v6))?;
        get(&shop.client.netns, cluster_address(v6))?;
    }
    Ok(())
}

#[test]
fn internal_traffic_policy_local_stays_on_the_node() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    change(&shop, "  internalTrafficPolicy: Local\n")?;
    for v6 in FAMILIES {
        for client in [&shop.client.netns, &shop.cluster.nodes[0].netns] {
            for servers in servers(client, cluster_address(v6), 16)? {
                assert_eq!(servers, BTreeSet::from(["b0".to_owned()]));
            }
        }
        // It does not concern who comes from outside.
        assert_eq!(servers(&shop.cluster.client, node_address(0, v6), 24)?[0].len(), 2);
    }
    shop.publish(|index| (index == 1).then_some(Condition::Ready))?;
    shop.wait_for_backends(1)?;
    for v6 in FAMILIES {
        is_silent(&shop.client.netns, cluster_address(v6))?;
    }
    Ok(())
}
