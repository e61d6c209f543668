//! Sockets of a cgroup are given a backend when they connect or send, and never learn of it.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use portolan_tests::lab::{
    Agent, AgentOptions, Backend, Capture, Condition, Endpoint, LongLived, NODE_PORT, Netns, Shop,
    cluster_address, get, get_bound, node_address, object, poll, public_address, run, service, slice,
    udp_ask,
};

const FAMILIES: [bool; 2] = [false, true];

fn open(nodes: &[usize]) -> Result<Shop> {
    Shop::open_with(nodes, &AgentOptions { sockets: true, ..AgentOptions::default() })
}

/// The same address on a socket of family IPv6.
fn mapped(to: SocketAddr) -> SocketAddr {
    match to.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), to.port()),
        IpAddr::V6(_) => to,
    }
}

/// A UDP socket of the address's family.
fn udp(netns: &Netns, to: SocketAddr) -> Result<UdpSocket> {
    netns.enter(move || {
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(socket)
    })?
}

fn udp_connected(netns: &Netns, to: SocketAddr) -> Result<UdpSocket> {
    let socket = udp(netns, to)?;
    reconnect(netns, &socket, to)?;
    Ok(socket)
}

fn reconnect(netns: &Netns, socket: &UdpSocket, to: SocketAddr) -> Result<()> {
    let socket = socket.try_clone()?;
    Ok(netns.enter(move || socket.connect(to))??)
}

/// Who answers a socket, and from where.
fn answer(socket: &UdpSocket) -> std::io::Result<(String, SocketAddr)> {
    let mut buffer = [0; 512];
    let (len, from) = socket.recv_from(&mut buffer)?;
    let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
    Ok((text.split(' ').next().unwrap_or_default().to_owned(), from))
}

fn ask(socket: &UdpSocket) -> std::io::Result<String> {
    socket.send(b"ping")?;
    Ok(answer(socket)?.0)
}

/// Asks an address by sockets of every kind; all of them have to see it as their peer.
fn reaches(who: &str, netns: &Netns, to: SocketAddr) -> Result<()> {
    let peer = netns.enter(move || TcpStream::connect_timeout(&to, Duration::from_secs(3))?.peer_addr());
    assert_eq!(peer?.with_context(|| format!("{who}: TCP to {to}"))?, to, "{who}: the peer over TCP");
    assert_eq!(get(netns, to)?.0, "b0", "{who}: {to}");
    let connected = udp_connected(netns, to)?;
    assert_eq!(connected.peer_addr()?, to, "{who}: the peer over UDP");
    connected.send(b"ping")?;
    let met = answer(&connected).with_context(|| format!("{who}: UDP to {to}"))?;
    assert_eq!(met, ("b0".to_owned(), to), "{who}: a connected socket");
    let unconnected = udp(netns, to)?;
    for _ in 0..2 {
        unconnected.send_to(b"ping", to)?;
        let met = answer(&unconnected).with_context(|| format!("{who}: unconnected UDP to {to}"))?;
        assert_eq!(met, ("b0".to_owned(), to), "{who}: an unconnected socket");
    }
    Ok(())
}

#[test]
fn sockets_of_every_kind_see_the_address_that_they_asked_for() -> Result<()> {
    let shop = open(&[1])?;
    let node = &shop.cluster.nodes[0].netns;
    for v6 in FAMILIES {
        let loopback = if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
        let loopback = SocketAddr::new(loopback, NODE_PORT);
        for to in [cluster_address(v6), node_address(0, v6), public_address(v6)] {
            for to in [to, mapped(to)] {
                reaches("a pod", &shop.client.netns, to)?;
                reaches("the host", node, to)?;
            }
        }
        reaches("the host", node, loopback)?;
        reaches("the host", node, mapped(loopback))?;
        // A pod's loopback is its own.
        let refused = shop.client.netns.enter(move || TcpStream::connect(loopback))?;
        assert_eq!(refused.map_err(|error| error.kind()).err(), Some(ErrorKind::ConnectionRefused));
    }
    Ok(())
}

/// What passes the client pod's interface while `work` runs.
fn captured(shop: &Shop, last: &[&str], work: impl FnOnce() -> Result<()>) -> Result<Vec<String>> {
    let capture = Capture::start(&shop.client.netns, "eth0", "tcp or udp")?;
    work()?;
    capture.until(last)
}

fn names(packets: &[String], to: SocketAddr) -> bool {
    packets.iter().any(|packet| packet.contains(&format!("{}.{}", to.ip(), to.port())))
}

#[test]
fn packets_carry_the_backends_address_and_never_the_services() -> Result<()> {
    let shop = open(&[0])?;
    for v6 in FAMILIES {
        let to = cluster_address(v6);
        let backend = shop.backends[0].pod.address(v6);
        let packets = captured(&shop, &[&format!("{backend}.9000 >")], || {
            get(&shop.client.netns, to)?;
            udp_ask(&shop.client.netns, to).map(drop)
        })?;
        assert!(names(&packets, SocketAddr::new(backend, 8080)), "{packets:#?}");
        assert!(!names(&packets, to), "{packets:#?}");
    }
    Ok(())
}

/// Publishes the service with these lines in its spec, and waits until the first node's agent has it.
fn change(shop: &Shop, extra: &str) -> Result<()> {
    let syncs = || -> Option<u64> {
        let status: serde_json::Value =
            serde_json::from_str(&shop.agents[0].view("status -o json").ok()?).ok()?;
        status["syncs"].as_u64()
    };
    let before = syncs().context("status has no syncs")?;
    shop.cluster.write("service.yaml", &service(extra))?;
    poll(Duration::from_secs(5), "the change is in the tables", || (syncs()? > before).then_some(()))
}

#[test]
fn what_depends_on_the_client_is_left_to_the_packets() -> Result<()> {
    let shop = open(&[0, 0, 0])?;
    change(&shop, "  sessionAffinity: ClientIP\n")?;
    for v6 in FAMILIES {
        let to = cluster_address(v6);
        let packets = captured(&shop, &[&format!("{}.80 >", to.ip())], || {
            let met: BTreeSet<String> =
                (0..12).map(|_| Ok(get(&shop.client.netns, to)?.0)).collect::<Result<_>>()?;
            assert_eq!(met.len(), 1, "{met:?}");
            Ok(())
        })?;
        assert!(names(&packets, to), "the packets go to the service: {packets:#?}");
    }
    change(&shop, "  loadBalancerSourceRanges: [10.244.0.0/16]\n")?;
    get(&shop.client.netns, public_address(false)).context("the pod's range is there")?;
    let silent = shop
        .client
        .netns
        .enter(|| TcpStream::connect_timeout(&public_address(true), Duration::from_millis(700)).err())?;
    assert_eq!(silent.map(|error| error.kind()), Some(ErrorKind::TimedOut));
    Ok(())
}

/// Asks each address by one socket, twice; every answer has to come from the address that was asked.
fn asks_in_turn(netns: &Netns, all: &[SocketAddr]) -> Result<()> {
    let socket = udp(netns, all[0])?;
    for to in all.iter().chain(all) {
        socket.send_to(b"ping", to)?;
        let (_, from) = answer(&socket).with_context(|| format!("{to} after others"))?;
        assert_eq!(from, *to);
    }
    Ok(())
}

#[test]
fn one_datagram_socket_asks_many_services_and_tells_their_answers_apart() -> Result<()> {
    // One backend, which all addresses lead to, is the hardest case.
    for nodes in [[0].as_slice(), &[0, 0, 1, 1]] {
        let shop = open(nodes)?;
        let of = |v6| [cluster_address(v6), node_address(0, v6), public_address(v6)];
        let both: Vec<SocketAddr> = of(true).into_iter().chain(of(false).map(mapped)).collect();
        for netns in [&shop.client.netns, &shop.cluster.nodes[0].netns] {
            asks_in_turn(netns, &of(false))?;
            asks_in_turn(netns, &of(true))?;
            asks_in_turn(netns, &both)?;
        }
    }
    Ok(())
}

#[test]
fn a_connected_udp_socket_ends_with_its_backend_and_others_do_not() -> Result<()> {
    let mut shop = open(&[0, 1])?;
    for v6 in FAMILIES {
        for to in BTreeSet::from([cluster_address(v6), mapped(cluster_address(v6))]) {
            let client = &shop.client.netns;
            let waiting = udp_connected(client, to)?;
            let first = ask(&waiting)?;
            let left = usize::from(first == "b1");
            let direct = udp_connected(client, SocketAddr::new(shop.backends[left].pod.address(v6), 9000))?;
            assert_eq!(ask(&direct)?, first);
            let streams = LongLived::start(client, to, 6)?;
            shop.publish(|index| (index != left).then_some(Condition::Ready))?;
            // It is told while it waits for an answer that will not come, long before it gives up.
            waiting.set_read_timeout(Some(Duration::from_secs(20)))?;
            let begun = Instant::now();
            let error = answer(&waiting).map(|_| ()).map_err(|error| error.kind());
            assert_eq!(error, Err(ErrorKind::ConnectionAborted), "{to}");
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
            reconnect(client, &waiting, to)?;
            assert_ne!(ask(&waiting)?, first, "the socket connected again");
            assert_ne!(udp_ask(client, to)?.0, first, "a new socket");
            assert_eq!(ask(&direct)?, first, "a socket that was not balanced goes on");
            let tally = streams.finish();
            assert!(tally.failures.is_empty(), "connections go on: {:?}", tally.failures);
            shop.publish(|_| Some(Condition::Ready))?;
            shop.wait_for_backends(2)?;
        }
    }
    // Also a process of the host.
    let node = &shop.cluster.nodes[0].netns;
    let waiting = udp_connected(node, cluster_address(false))?;
    let left = usize::from(ask(&waiting)? == "b1");
    let name = shop.backends[left].pod.name.clone();
    shop.publish(|index| (index != left).then_some(Condition::Ready))?;
    assert_eq!(answer(&waiting).map_err(|error| error.kind()), Err(ErrorKind::ConnectionAborted));
    drop(shop.backends.remove(left));
    shop.backends.push(Backend::add(&shop.agents, 1, "new")?);
    shop.publish(|_| Some(Condition::Ready))?;
    shop.wait_for_backends(2)?;
    let met: BTreeSet<String> =
        (0..40).map(|_| Ok(udp_ask(node, cluster_address(false))?.0)).collect::<Result<_>>()?;
    assert!(met.contains("new") && !met.contains(&name), "{met:?}");
    Ok(())
}

/// A UDP socket that was given this backend.
fn udp_connected_to(netns: &Netns, to: SocketAddr, backend: &str) -> Result<UdpSocket> {
    for _ in 0..100 {
        let socket = udp_connected(netns, to)?;
        if ask(&socket)? == backend {
            return Ok(socket);
        }
    }
    bail!("{backend} answers none of a hundred sockets at {to}")
}

fn is_told(socket: &UdpSocket) -> Result<()> {
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    let told = answer(socket).map_err(|error| error.kind());
    assert_eq!(told, Err(ErrorKind::ConnectionAborted), "the socket is ended");
    Ok(())
}

#[test]
fn a_socket_that_is_connected_elsewhere_afterwards_forgets_the_service() -> Result<()> {
    let shop = open(&[0, 1])?;
    let client = &shop.client.netns;
    let direct = |index: usize, v6| SocketAddr::new(shop.backends[index].pod.address(v6), 9000);
    for v6 in FAMILIES {
        for to in BTreeSet::from([cluster_address(v6), mapped(cluster_address(v6))]) {
            let like = |addr: SocketAddr| if to.is_ipv6() { mapped(addr) } else { addr };
            let same = udp_connected_to(client, to, "b0")?;
            let other = udp_connected_to(client, to, "b0")?;
            reconnect(client, &same, like(direct(0, v6)))?;
            reconnect(client, &other, like(direct(1, v6)))?;
            for (socket, index, name) in [(&same, 0, "b0"), (&other, 1, "b1")] {
                assert_eq!(socket.peer_addr()?, like(direct(index, v6)), "the peer that was asked for last");
                socket.send(b"ping")?;
                assert_eq!(answer(socket)?, (name.to_owned(), like(direct(index, v6))));
            }
            let balanced = udp_connected_to(client, to, "b0")?;
            shop.publish(|index| (index != 0).then_some(Condition::Ready))?;
            is_told(&balanced)?;
            assert_eq!(ask(&other)?, "b1", "a socket that went elsewhere");
            assert_eq!(ask(&same)?, "b0", "a socket that went to the backend itself");
            shop.publish(|_| Some(Condition::Ready))?;
            shop.wait_for_backends(2)?;
        }
    }
    Ok(())
}

/// Publishes a second service over UDP with the shop's backends; its address.
fn second_service(shop: &Shop, v6: bool) -> Result<SocketAddr> {
    let addr = if v6 { "fd00:10:96::11" } else { "10.96.0.11" };
    let family = if v6 { "IPv6" } else { "IPv4" };
    let spec = format!(
        "clusterIP: \"{addr}\", ipFamilies: [{family}], ports: [{{name: echo, port: 80, protocol: UDP}}]"
    );
    let endpoints: Vec<Endpoint> = (shop.backends.iter())
        .map(|backend| Endpoint::new(backend.pod.address(v6), backend.node, "conditions: {ready: true}"))
        .collect();
    let slice = slice("second", "second", "{name: echo, port: 9000, protocol: UDP}", &endpoints);
    shop.cluster.write("second.yaml", &(object("second", "", &spec) + &slice))?;
    shop.settle()?;
    Ok(SocketAddr::new(addr.parse()?, 80))
}

#[test]
fn a_backend_that_leaves_one_service_loses_its_sockets_though_another_service_has_it() -> Result<()> {
    for v6 in FAMILIES {
        let shop = open(&[0, 1])?;
        let (client, to, second) = (&shop.client.netns, cluster_address(v6), second_service(&shop, v6)?);
        let waiting = udp_connected_to(client, to, "b0")?;
        let stays = udp_connected_to(client, second, "b0")?;
        let free = loop {
            let socket = udp(client, to)?;
            socket.send_to(b"ping", to)?;
            if answer(&socket)?.0 == "b0" {
                break socket;
            }
        };
        shop.publish(|index| (index != 0).then_some(Condition::Ready))?;
        is_told(&waiting)?;
        free.send_to(b"ping", to)?;
        assert_eq!(answer(&free)?.0, "b1", "an unconnected socket");
        assert_eq!(ask(&stays)?, "b0", "a socket of the service that has it still");
        shop.publish(|_| Some(Condition::Ready))?;
        shop.wait_for_backends(2)?;
        let stays_too = udp_connected_to(client, to, "b0")?;
        shop.cluster.write("second.yaml", "")?;
        is_told(&stays)?;
        assert_eq!(ask(&stays_too)?, "b0", "a socket of the service that was not deleted");
    }
    Ok(())
}

#[test]
fn node_ports_on_loopback_serve_bound_sockets_and_affinity_and_refuse_loopback_sources() -> Result<()> {
    let shop = open(&[0, 1, 1])?;
    let node = &shop.cluster.nodes[0].netns;
    let loopback =
        |v6| -> IpAddr { if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() } };
    for v6 in FAMILIES {
        let to = SocketAddr::new(loopback(v6), NODE_PORT);
        get_bound(node, to).with_context(|| format!("TCP from a port of its own to {to}"))?;
        udp_ask(node, to).with_context(|| format!("UDP from a port of its own to {to}"))?;
        // With that source nothing leaves the node: refused at once, instead of silence.
        let bound = node.enter(move || -> Result<UdpSocket> {
            let socket = UdpSocket::bind((to.ip(), 0))?;
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
            socket.connect(to)?;
            Ok(socket)
        })??;
        assert_eq!(ask(&bound).map_err(|error| error.kind()), Err(ErrorKind::ConnectionRefused), "{to}");
    }
    change(&shop, "  sessionAffinity: ClientIP\n")?;
    for v6 in FAMILIES {
        let to = SocketAddr::new(loopback(v6), NODE_PORT);
        let met: BTreeSet<String> = (0..12).map(|_| Ok(get(node, to)?.0)).collect::<Result<_>>()?;
        assert_eq!(met.len(), 1, "{to}: {met:?}");
    }
    Ok(())
}

#[test]
fn an_unconnected_socket_follows_the_set() -> Result<()> {
    let shop = open(&[0, 1])?;
    for v6 in FAMILIES {
        let to = cluster_address(v6);
        let socket = udp(&shop.client.netns, to)?;
        let ask = || -> Result<String> {
            socket.send_to(b"ping", to)?;
            let (name, from) = answer(&socket)?;
            if from != to {
                bail!("answered by {from}")
            }
            Ok(name)
        };
        let first = ask()?;
        for _ in 0..8 {
            assert_eq!(ask()?, first, "a socket keeps its backend");
        }
        let left = usize::from(first == "b1");
        shop.publish(|index| (index != left).then_some(Condition::Ready))?;
        let other = || ask().ok().filter(|name| *name != first);
        poll(Duration::from_secs(3), "another backend answers", other)?;
        shop.publish(|_| Some(Condition::Ready))?;
        shop.wait_for_backends(2)?;
    }
    Ok(())
}

/// Programs at the agent's cgroup, as bpftool lists them.
fn attached(agent: &Agent) -> Result<String> {
    let cgroup = agent.cgroup().context("the agent has a cgroup")?;
    run(Command::new("bpftool").args(["cgroup", "show"]).arg(cgroup.path()))
}

#[test]
fn links_outlive_a_killed_agent_and_go_with_the_option_and_with_uninstalling() -> Result<()> {
    let mut shop = open(&[0, 0])?;
    let status = |shop: &Shop| shop.agents[0].view("status");
    assert!(status(&shop)?.contains("balanced in cgroup"), "{}", status(&shop)?);
    let hooks = attached(&shop.agents[0])?;
    assert_eq!(
        hooks.lines().filter(|line| line.contains("cgroup_inet") || line.contains("cgroup_udp")).count(),
        8,
        "{hooks}"
    );
    let open = LongLived::start(&shop.client.netns, cluster_address(false), 4)?;
    shop.agents[0].kill()?;
    let to = cluster_address(false);
    let packets = captured(&shop, &[".8080 >"], || {
        let met: BTreeSet<String> =
            (0..24).map(|_| Ok(get(&shop.client.netns, to)?.0)).collect::<Result<_>>()?;
        assert_eq!(met.len(), 2, "{met:?}");
        Ok(())
    })?;
    assert!(!names(&packets, to), "{packets:#?}");
    shop.agents[0].restart()?;
    let peer = shop.client.netns.enter(move || TcpStream::connect(to)?.peer_addr())??;
    assert_eq!(peer, to);
    // Without the option: packets alone.
    shop.agents[0].leave_sockets();
    shop.agents[0].restart()?;
    let none = |agent: &Agent| attached(agent).ok().filter(|text| !text.contains("inet")).map(drop);
    poll(Duration::from_secs(5), "the programs are detached", || none(&shop.agents[0]))?;
    assert!(status(&shop)?.contains("left alone"), "{}", status(&shop)?);
    let packets = captured(&shop, &[&format!("{}.80 >", to.ip())], || get(&shop.client.netns, to).map(drop))?;
    assert!(names(&packets, to), "{packets:#?}");
    for loopback in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let refused = shop.cluster.nodes[0].netns.enter(move || TcpStream::connect((loopback, NODE_PORT)))?;
        assert_eq!(refused.map_err(|error| error.kind()).err(), Some(ErrorKind::ConnectionRefused));
    }
    let tally = open.finish();
    assert!(tally.failures.is_empty(), "{:?}", tally.failures);
    shop.agents[1].uninstall()?;
    poll(Duration::from_secs(5), "uninstalling detaches", || none(&shop.agents[1]))
}
