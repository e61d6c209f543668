//! Pods leave the cluster with their node's address, and everything about that comes back to them.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{AgentOptions, NODE_ADDRESSES, Shop, UdpEcho, WebServer, get, poll, udp_ask};
use serde_json::Value;

const FAMILIES: [bool; 2] = [false, true];
/// The outside host's addresses.
const OUTSIDE: [&str; 2] = ["203.0.113.10", "2001:db8:c::10"];

fn outside(v6: bool, port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(OUTSIDE[usize::from(v6)].parse()?, port))
}

fn node(v6: bool) -> Result<IpAddr> {
    Ok(NODE_ADDRESSES[0][usize::from(v6)].parse()?)
}

fn with(arguments: &[&str]) -> Result<Shop> {
    let arguments = arguments.iter().map(|&it| it.to_owned()).collect();
    Shop::open_with(&[1], &AgentOptions { arguments, ..AgentOptions::default() })
}

/// Sends a datagram from a pod and returns what comes back.
fn exchange(shop: &Shop, to: SocketAddr, bytes: Vec<u8>) -> Result<std::io::Result<Vec<u8>>> {
    shop.client.netns.enter(move || {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        socket.connect(to)?;
        socket.send(&bytes)?;
        let mut buffer = vec![0; 65_536];
        let len = socket.recv(&mut buffer)?;
        buffer.truncate(len);
        Ok(buffer)
    })
}

#[test]
fn outside_hosts_see_the_node_and_their_answers_reach_the_pod() -> Result<()> {
    let shop = Shop::open(&[1])?;
    let _web = WebServer::start(&shop.cluster.client, 8080, "outside")?;
    let _echo = UdpEcho::start(&shop.cluster.client, 9000, "outside")?;
    let elsewhere = WebServer::start(&shop.cluster.nodes[1].netns, 7000, "node2")?;
    for v6 in FAMILIES {
        let pod = &shop.client.netns;
        for (server, seen) in [get(pod, outside(v6, 8080)?)?, udp_ask(pod, outside(v6, 9000)?)?] {
            assert_eq!((server.as_str(), seen.parse()?), ("outside", node(v6)?));
        }
        pod.run(&format!("ping -c 3 -i 0.1 -W 2 {}", OUTSIDE[usize::from(v6)]))?;
        // In pieces, both ways.
        let answer = exchange(&shop, outside(v6, 9000)?, vec![7; 4000])??;
        ensure!(answer.len() > 4000 && answer.ends_with(&[7; 4000]), "{} bytes", answer.len());
        // Other nodes see the pod itself, and so do other pods.
        let to = SocketAddr::new(NODE_ADDRESSES[1][usize::from(v6)].parse()?, 7000);
        assert_eq!(get(pod, to)?.1.parse::<IpAddr>()?, shop.client.address(v6));
        let to = SocketAddr::new(shop.backends[0].pod.address(v6), 8080);
        assert_eq!(get(pod, to)?.1.parse::<IpAddr>()?, shop.client.address(v6));
    }
    drop(elsewhere);
    let flows = shop.agents[0].view("flow list")?;
    ensure!(flows.contains("ICMP") && flows.contains("out of the cluster"), "{flows}");
    Ok(())
}

#[test]
fn errors_about_what_left_reach_the_pod_that_sent_it() -> Result<()> {
    let shop = Shop::open(&[1])?;
    for v6 in FAMILIES {
        // Nobody listens there: the outside host says so.
        let refused = exchange(&shop, outside(v6, 9)?, vec![1])?;
        assert_eq!(refused.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionRefused));
        // A narrower way behind the router: it tells the size, and a large transfer goes on with that.
        shop.cluster.router.ip("link set c0 mtu 1300")?;
        shop.client.netns.run("ethtool -K eth0 tso off gso off")?;
        let listener = shop.cluster.client.listen(7000)?;
        let receiver = std::thread::spawn(move || -> std::io::Result<u64> {
            let (mut stream, _) = listener.accept()?;
            std::io::copy(&mut stream, &mut std::io::sink())
        });
        let to = outside(v6, 7000)?;
        shop.client.netns.enter(move || -> std::io::Result<()> {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
            stream.set_write_timeout(Some(Duration::from_secs(3)))?;
            std::io::Write::write_all(&mut stream, &[7; 1 << 20])
        })??;
        let came = receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))??;
        assert_eq!(came, 1 << 20, "to {to}");
    }
    Ok(())
}

#[test]
fn what_the_operator_excepts_keeps_the_pods_address() -> Result<()> {
    let excepted = [
        ["--non-masquerade-cidr", "203.0.113.0/24,2001:db8:c::/64"],
        ["--routable-pods", "10.244.0.0/16,fd00:10:244::/48"],
    ];
    for arguments in excepted {
        let shop = with(&arguments)?;
        let _web = WebServer::start(&shop.cluster.client, 8080, "outside")?;
        // The outside knows the way to pods.
        shop.cluster.router.ip("route add 10.244.1.0/24 via 192.0.2.11")?;
        shop.cluster.router.ip("route add fd00:10:244:1::/64 via 2001:db8:1::11")?;
        for v6 in FAMILIES {
            let (server, seen) = get(&shop.client.netns, outside(v6, 8080)?)?;
            assert_eq!(
                (server.as_str(), seen.parse()?),
                ("outside", shop.client.address(v6)),
                "{arguments:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn ports_of_the_hosts_own_sockets_are_left_to_them_and_who_takes_all_others_is_named() -> Result<()> {
    let shop = with(&["--masquerade-range", "20000-20001"])?;
    let _echo = UdpEcho::start(&shop.cluster.client, 9000, "outside")?;
    let host = shop.cluster.nodes[0].netns.enter(|| UdpSocket::bind(("0.0.0.0", 20_000)))??;
    let seen = |port: u16| -> Result<std::io::Result<u16>> {
        shop.client.netns.enter(move || {
            let socket = UdpSocket::bind(("0.0.0.0", port))?;
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            socket.send_to(b"who", (OUTSIDE[0], 9000))?;
            socket.recv_from(&mut [0; 100])?;
            Ok(port)
        })
    };
    seen(5000)??;
    let flows: Value = serde_json::from_str(&shop.agents[0].view("flow list -o json")?)?;
    let own: Vec<&Value> = flows
        .as_array()
        .context("no list")?
        .iter()
        .filter(|flow| flow["translated"]["destination"]["port"] == 9000)
        .map(|flow| &flow["translated"]["source"]["port"])
        .collect();
    assert_eq!(own, [&Value::from(20_001)], "the host has the other one");
    // The second flow to the same place has none.
    let refused = seen(5001)?.map_err(|error| error.kind());
    assert_eq!(refused, Err(std::io::ErrorKind::WouldBlock));
    let warning = poll(Duration::from_secs(40), "the agent warns", || {
        let _ = seen(5001).ok()?;
        let status: Value = serde_json::from_str(&shop.agents[0].view("status -o json").ok()?).ok()?;
        let warnings = status["warnings"].as_array()?.iter().filter_map(Value::as_str);
        warnings.map(str::to_owned).find(|it| it.contains("masquerade ports"))
    })?;
    ensure!(warning.contains("out of the cluster at 203.0.113.10:9000"), "{warning}");
    drop(host);
    seen(5001)?.context("a port is free")?;
    Ok(())
}

#[test]
fn pods_leave_by_the_first_uplinks_where_there_are_too_many() -> Result<()> {
    let shop = Shop::open(&[1])?;
    let _web = WebServer::start(&shop.cluster.client, 8080, "outside")?;
    let node1 = &shop.cluster.nodes[0].netns;
    for more in 1..=8 {
        node1.ip(&format!("link add more{more} type veth peer name peer{more}"))?;
        node1.ip(&format!("link set more{more} up"))?;
        node1.ip(&format!("route add default dev more{more} metric {}", 20_000 + more))?;
        node1.ip(&format!("address add 198.51.100.{more}/32 dev more{more}"))?;
    }
    poll(Duration::from_secs(10), "the agent says that there are too many", || {
        shop.agents[0].view("status").ok()?.contains("there are 9 uplinks").then_some(())
    })?;
    for v6 in FAMILIES {
        assert_eq!(get(&shop.client.netns, outside(v6, 8080)?)?.1.parse::<IpAddr>()?, node(v6)?);
    }
    Ok(())
}

#[test]
fn connections_out_of_the_cluster_outlive_the_agent() -> Result<()> {
    let mut shop = Shop::open(&[1])?;
    let listener = shop.cluster.client.listen(7000)?;
    let server = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        std::io::copy(&mut stream.try_clone()?, &mut stream).map(drop)
    });
    let to = outside(false, 7000)?;
    let mut stream =
        shop.client.netns.enter(move || TcpStream::connect_timeout(&to, Duration::from_secs(3)))??;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut echo = |text: &[u8; 4]| -> Result<()> {
        std::io::Write::write_all(&mut stream, text)?;
        let mut back = [0; 4];
        std::io::Read::read_exact(&mut stream, &mut back)?;
        ensure!(back == *text, "{back:?}");
        Ok(())
    };
    echo(b"once")?;
    shop.agents[0].kill()?;
    echo(b"more")?;
    shop.agents[0].restart()?;
    echo(b"last")?;
    drop(stream);
    server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    Ok(())
}
