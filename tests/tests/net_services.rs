//! Service addresses lead to backends, or say at once that they do not. Real sockets and real tools.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use portolan_tests::lab::{
    Capture, Condition, LongLived, Netns, Shop, balances_sockets, cluster_address, get, node_address, poll,
    public_address, udp_ask,
};
use serde_json::Value;

const FAMILIES: [bool; 2] = [false, true];

/// Every place a client can be in, by name.
fn clients(shop: &Shop) -> [(&'static str, &Netns); 3] {
    [
        ("a pod", &shop.client.netns),
        ("the host", &shop.cluster.nodes[0].netns),
        ("an outside client", &shop.cluster.client),
    ]
}

/// The addresses that a client of that name can reach.
fn addresses(who: &str, v6: bool) -> Vec<SocketAddr> {
    let mut all = vec![public_address(v6), node_address(0, v6)];
    if who != "an outside client" {
        all.push(cluster_address(v6));
    }
    all
}

/// How connecting fails, and how soon.
fn tcp_failure(netns: &Netns, to: SocketAddr) -> Result<(Option<ErrorKind>, Duration)> {
    netns.enter(move || {
        let begun = Instant::now();
        let result = TcpStream::connect_timeout(&to, Duration::from_secs(3));
        (result.err().map(|error| error.kind()), begun.elapsed())
    })
}

fn udp_failure(netns: &Netns, to: SocketAddr) -> Result<Option<ErrorKind>> {
    Ok(udp_ask(netns, to).err().and_then(|error| Some(error.downcast_ref::<std::io::Error>()?.kind())))
}

/// Packets counted under an outcome on a node.
fn counted(shop: &Shop, node: usize, outcome: &str) -> Result<u64> {
    let list: Value = serde_json::from_str(&shop.agents[node].view("drop list --all -o json")?)?;
    let entry = list.as_array().and_then(|list| list.iter().find(|entry| entry["reason"] == outcome));
    entry.and_then(|entry| entry["packets"].as_u64()).with_context(|| format!("no outcome {outcome}"))
}

fn refused_everywhere(shop: &Shop, port: impl Fn(SocketAddr) -> SocketAddr) -> Result<()> {
    for (who, netns) in clients(shop) {
        for v6 in FAMILIES {
            for to in addresses(who, v6).into_iter().map(&port) {
                let (tcp, took) = tcp_failure(netns, to)?;
                assert_eq!(tcp, Some(ErrorKind::ConnectionRefused), "{who} connects to {to}");
                assert!(took < Duration::from_secs(1), "{who} waited {took:?} for {to}");
                assert_eq!(udp_failure(netns, to)?, Some(ErrorKind::ConnectionRefused), "{who} asks {to}");
            }
        }
    }
    Ok(())
}

#[test]
fn connections_spread_evenly_over_backends_of_both_nodes() -> Result<()> {
    let shop = Shop::open(&[0, 0, 1, 1])?;
    for v6 in FAMILIES {
        let mut shares: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..400 {
            *shares.entry(get(&shop.client.netns, cluster_address(v6))?.0).or_default() += 1;
        }
        // 100 each are expected; the standard deviation is below 9.
        assert!(shares.len() == 4 && shares.values().all(|share| (60..=140).contains(share)), "{shares:?}");
    }
    Ok(())
}

#[test]
fn without_a_ready_backend_every_client_is_refused_at_once() -> Result<()> {
    let shop = Shop::open(&[0])?;
    shop.publish(|_| Some(Condition::NotReady))?;
    shop.wait_for_backends(0)?;
    refused_everywhere(&shop, |to| to)?;
    shop.publish(|_| Some(Condition::Ready))?;
    shop.wait_for_backends(1)?;
    for v6 in FAMILIES {
        assert_eq!(get(&shop.client.netns, cluster_address(v6))?.0, "b0");
        assert_eq!(udp_ask(&shop.client.netns, cluster_address(v6))?.0, "b0", "no memory of the refusal");
    }
    Ok(())
}

#[test]
fn a_port_that_a_service_address_does_not_have_is_refused() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let before = counted(&shop, 0, "rejected-unknown-port")?;
    refused_everywhere(&shop, |to| SocketAddr::new(to.ip(), 81))?;
    assert!(counted(&shop, 0, "rejected-unknown-port")? >= before + 10);
    Ok(())
}

#[test]
fn service_addresses_answer_ping() -> Result<()> {
    let shop = Shop::open(&[1])?;
    for (who, netns) in clients(&shop) {
        for v6 in FAMILIES {
            for to in addresses(who, v6) {
                netns.run(&format!("ping -c 2 -i 0.1 -W 2 {}", to.ip())).with_context(|| who)?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_backend_sees_the_client_itself_wherever_its_answer_comes_back() -> Result<()> {
    let shop = Shop::open(&[1])?;
    let addr = |text: &str| text.parse::<IpAddr>();
    for v6 in FAMILIES {
        let client = &shop.client;
        assert_eq!(addr(&get(&client.netns, cluster_address(v6))?.1)?, client.address(v6), "a pod");
        let outside = addr(if v6 { "2001:db8:c::10" } else { "203.0.113.10" })?;
        let via_own = get(&shop.cluster.client, node_address(1, v6))?.1;
        assert_eq!(addr(&via_own)?, outside, "through the backend's node");
        let via_other = get(&shop.cluster.client, node_address(0, v6))?.1;
        assert_eq!(addr(&via_other)?, node_address(0, v6).ip(), "through the other node");
    }
    Ok(())
}

#[test]
fn a_pod_reaches_itself_by_its_service() -> Result<()> {
    let shop = Shop::open(&[0])?;
    let own = &shop.backends[0].pod.netns;
    let own_address = |v6| shop.backends[0].pod.address(v6).to_string();
    for (v6, seen_as) in FAMILIES.into_iter().zip(["169.254.1.1", "fd70:6f72:746f::1"]) {
        // A balanced socket connects to its own pod, without a packet that leaves it.
        let seen_as = if balances_sockets() { own_address(v6) } else { seen_as.to_owned() };
        for ask in [get as fn(&Netns, SocketAddr) -> Result<_>, udp_ask] {
            assert_eq!(ask(own, cluster_address(v6))?, ("b0".to_owned(), seen_as.clone()));
        }
    }
    Ok(())
}

#[test]
fn open_connections_keep_their_backend_and_new_ones_follow_the_set() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    let open: Vec<LongLived> = [(&shop.client.netns, false), (&shop.client.netns, true)]
        .into_iter()
        .map(|(netns, v6)| LongLived::start(netns, cluster_address(v6), 8))
        .chain([LongLived::start(&shop.cluster.client, node_address(0, false), 8)])
        .collect::<Result<_>>()?;
    shop.publish(|index| (index == 1).then_some(Condition::Ready))?;
    shop.wait_for_backends(1)?;
    for v6 in FAMILIES {
        for _ in 0..40 {
            assert_eq!(get(&shop.client.netns, cluster_address(v6))?.0, "b1", "a new connection");
        }
    }
    shop.publish(|_| Some(Condition::Ready))?;
    shop.wait_for_backends(2)?;
    for connections in open {
        let tally = connections.finish();
        assert!(tally.failures.is_empty(), "{:?}", tally.failures);
        assert_eq!(tally.by_server.len(), 2, "both backends had connections: {:?}", tally.by_server);
    }
    Ok(())
}

#[test]
fn terminating_backends_serve_only_while_no_other_is_ready() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    shop.publish(|index| Some(if index == 0 { Condition::Terminating } else { Condition::Ready }))?;
    shop.wait_for_backends(1)?;
    for _ in 0..20 {
        assert_eq!(get(&shop.client.netns, cluster_address(false))?.0, "b1");
    }
    shop.publish(|_| Some(Condition::Terminating))?;
    shop.wait_for_backends(2)?;
    let asked = |_| Ok(get(&shop.client.netns, cluster_address(true))?.0);
    let servers: std::collections::BTreeSet<String> = (0..40).map(asked).collect::<Result<_>>()?;
    assert_eq!(servers.len(), 2, "{servers:?}");
    Ok(())
}

#[test]
fn a_connected_udp_client_moves_on_when_its_backend_leaves() -> Result<()> {
    let mut shop = Shop::open(&[0, 1])?;
    for v6 in FAMILIES {
        let to = cluster_address(v6);
        let socket = shop.client.netns.enter(move || -> Result<UdpSocket> {
            let any: IpAddr = if v6 { [0; 16].into() } else { [0; 4].into() };
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            Ok(socket)
        })??;
        let ask = || -> Option<String> {
            let mut buffer = [0; 512];
            match socket.send(b"ping").and_then(|_| socket.recv(&mut buffer)) {
                Ok(len) => Some(String::from_utf8_lossy(&buffer[..len]).split(' ').next()?.to_owned()),
                Err(error) => {
                    // A balanced socket is ended, and has to be connected again.
                    if balances_sockets() && error.kind() != ErrorKind::WouldBlock {
                        let again = socket.try_clone().ok()?;
                        shop.client.netns.enter(move || again.connect(to)).ok()?.ok()?;
                    }
                    None
                }
            }
        };
        let first = ask().context("the first answer")?;
        let left = usize::from(first == "b1");
        shop.publish(|index| (index != left).then_some(Condition::Ready))?;
        shop.backends[left].echo = None;
        let answer = poll(Duration::from_secs(3), "an answer from another backend", ask)?;
        assert_ne!(answer, first);
        let pod = &shop.backends[left].pod;
        let again = portolan_tests::lab::UdpEcho::start(&pod.netns, 9000, &pod.name)?;
        shop.backends[left].echo = Some(again);
        shop.publish(|_| Some(Condition::Ready))?;
        shop.wait_for_backends(2)?;
    }
    Ok(())
}

#[test]
fn an_icmp_error_about_translated_packets_reaches_who_sent_them() -> Result<()> {
    let mut shop = Shop::open(&[1])?;
    // To the client: nobody listens in the backend pod.
    shop.backends[0].echo = None;
    for (who, netns) in clients(&shop) {
        for v6 in FAMILIES {
            for to in addresses(who, v6) {
                assert_eq!(udp_failure(netns, to)?, Some(ErrorKind::ConnectionRefused), "{who} asks {to}");
            }
        }
    }
    // To the backend: the way back to the client is narrower than it thinks.
    shop.cluster.router.ip("link set c0 mtu 1300")?;
    for v6 in FAMILIES {
        for node in [0, 1] {
            let to = node_address(node, v6);
            let line =
                format!("curl -gsS --max-time 8 -o /dev/null -w %{{size_download}} http://{to}/500000");
            let size: u64 = shop.cluster.client.run(&line)?.trim().parse()?;
            assert!(size > 500_000, "{size} bytes of {to}");
        }
    }
    Ok(())
}

/// Sends a megabyte to a service whose one backend has nothing on port 8080; how much came there.
fn upload(from: &Netns, to: SocketAddr, backend: &Netns) -> Result<u64> {
    // A child process that another test has just forked has the last listener for a moment, too.
    let bind = || backend.enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 8080))).ok()?.ok();
    let listener = poll(Duration::from_secs(3), "the port is free", bind)?;
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

#[test]
fn a_ping_in_fragments_to_a_service_is_dropped_and_counted_for_every_client() -> Result<()> {
    let shop = Shop::open(&[1])?;
    for (who, netns) in clients(&shop) {
        for v6 in FAMILIES {
            let before = counted(&shop, 0, "fragment")?;
            let to = if who == "an outside client" { public_address(v6) } else { cluster_address(v6) };
            let ping = netns.run(&format!("ping -c 1 -W 1 -s 3000 {}", to.ip()));
            assert!(ping.is_err(), "{who}: of a ping in fragments, the first one alone says that it is one");
            assert!(counted(&shop, 0, "fragment")? > before, "{who}: {to}");
        }
    }
    Ok(())
}

/// Asks a service over TCP and UDP, ten times each.
fn ask_often(netns: &Netns, to: SocketAddr, who: &str) -> Result<()> {
    for _ in 0..10 {
        get(netns, to).with_context(|| format!("{who}, TCP, {to}"))?;
        udp_ask(netns, to).with_context(|| format!("{who}, UDP, {to}"))?;
    }
    Ok(())
}

#[test]
fn translated_packets_have_right_checksums_on_devices_that_compute_none() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    // Whatever leaves these has its sum computed before, by what is noted in the packet.
    let node = &shop.cluster.nodes[0].netns;
    for netns in [node, &shop.cluster.nodes[1].netns] {
        netns.run("ethtool -K eth0 tx off")?;
    }
    node.run("ethtool -K portolan0 tx off")?;
    let local = shop.backends[0].pod.address(false);
    let route: Value = serde_json::from_str(&node.run(&format!("ip -j route get {local}"))?)?;
    let device = route[0]["dev"].as_str().context("no device")?;
    node.run(&format!("ethtool -K {device} tx off"))?;
    let wires = [0, 1].map(|number| {
        let link = shop.cluster.nodes[number].netns.run("ip -j link show dev eth0")?;
        let link: Value = serde_json::from_str(&link)?;
        let mac = link[0]["address"].as_str().context("no MAC")?;
        let filter = format!("ether src {mac} and (tcp or udp)");
        Capture::start(&shop.cluster.router, &format!("n{number}"), &filter)
    });
    for (who, netns) in clients(&shop) {
        for to in FAMILIES.into_iter().flat_map(|v6| addresses(who, v6)) {
            ask_often(netns, to, who)?;
        }
    }
    for wire in wires {
        have_right_sums(&wire?, 200)?;
    }
    // Senders that compute sums themselves, up to pods on the same node: nothing is left to any device.
    shop.client.netns.run("ethtool -K eth0 tx off")?;
    shop.backends[0].pod.netns.run("ethtool -K eth0 tx off")?;
    let inside = Capture::start(&shop.backends[0].pod.netns, "eth0", "tcp port 8080 or udp port 9000")?;
    for v6 in FAMILIES {
        ask_often(&shop.client.netns, cluster_address(v6), "a pod")?;
        ask_often(&shop.backends[0].pod.netns, cluster_address(v6), "a backend itself")?;
    }
    have_right_sums(&inside, 200)
}

/// Waits for that many packets; every one must have a checksum that tcpdump says is right.
fn have_right_sums(capture: &Capture, least: usize) -> Result<()> {
    let packets = poll(Duration::from_secs(3), "packets are captured", || {
        capture.packets().ok().filter(|packets| packets.len() >= least)
    })?;
    let right = |packet: &&String| packet.contains("(correct)") || packet.contains("udp sum ok");
    let wrong: Vec<_> = packets.iter().filter(|packet| !right(packet)).collect();
    assert!(
        wrong.is_empty(),
        "{} of {} are wrong: {:#?}",
        wrong.len(),
        packets.len(),
        &wrong[..wrong.len().min(4)]
    );
    Ok(())
}

#[test]
fn answers_of_the_data_plane_itself_have_right_checksums_on_any_device() -> Result<()> {
    let shop = Shop::open(&[])?;
    // The client leaves checksums to devices; the node's device then has to be told what to do.
    shop.cluster.nodes[0].netns.run("ethtool -K eth0 tx off")?;
    let capture = Capture::start(&shop.cluster.client, "eth0", "")?;
    for v6 in FAMILIES {
        let to = public_address(v6);
        assert_eq!(tcp_failure(&shop.cluster.client, to)?.0, Some(ErrorKind::ConnectionRefused), "{to}");
        assert_eq!(udp_failure(&shop.cluster.client, to)?, Some(ErrorKind::ConnectionRefused), "{to}");
    }
    let answers = poll(Duration::from_secs(3), "tcpdump has seen all four answers", || {
        let packets = capture.packets().ok()?;
        let answers: Vec<String> = packets.into_iter().filter(|it| is_answer(it)).collect();
        (answers.len() == 4).then_some(answers)
    })?;
    for answer in &answers {
        // tcpdump names what is wrong; what is right it calls "correct", "sum ok" or nothing.
        let wrong =
            ["incorrect", "wrong icmp cksum", "bad icmp6 cksum"].iter().any(|word| answer.contains(word));
        assert!(!wrong, "{answer}");
    }
    let named = answers.iter().filter(|it| it.contains("(correct)") || it.contains("icmp6 sum ok")).count();
    assert_eq!(named, 3, "two resets and the ICMPv6 error are said to be right: {answers:#?}");
    Ok(())
}

/// Whether a packet is a reset or an ICMP error.
fn is_answer(packet: &str) -> bool {
    packet.contains("Flags [R") || (packet.contains("unreachable") && packet.contains("ICMP"))
}
