//! Limits of pods' traffic. No test says how fast anything is; a limit says how fast nothing is.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{Agent, AgentOptions, Cluster, Netns, Pod, WebServer, get};
use serde_json::{Value, json};

/// Bits per second, and bits at once.
const RATE: u64 = 8_000_000;
const BURST: u64 = 800_000;
/// Bytes that are sent, and how long they take at least at that rate: without what goes at once, and what the
/// connection's ends hold when the clock starts.
const BYTES: usize = 1_000_000;
const LEAST: Duration = Duration::from_millis(500);

fn open() -> Result<(Cluster, [Agent; 2])> {
    let cluster = Cluster::new()?;
    cluster.write_example("nodes.yaml")?;
    let agents = cluster.start_agents(&AgentOptions::default())?;
    Ok((cluster, agents))
}

/// Sends [`BYTES`] and says how long it took until all had arrived.
fn time(from: &Netns, to: &Netns, address: SocketAddr) -> Result<Duration> {
    let port = address.port();
    let listener = to.enter(move || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))??;
    let receiver = std::thread::spawn(move || -> std::io::Result<Duration> {
        let (mut stream, _) = listener.accept()?;
        let begin = Instant::now();
        let (mut left, mut piece) = (BYTES, vec![0; 1 << 16]);
        while left > 0 {
            match stream.read(&mut piece)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                len => left -= len,
            }
        }
        stream.write_all(b"!")?;
        Ok(begin.elapsed())
    });
    from.enter(move || -> Result<()> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.write_all(&vec![7; BYTES])?;
        stream.read_exact(&mut [0])?;
        Ok(())
    })??;
    Ok(receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))??)
}

fn limited(agent: &Agent, name: &str, limits: Value) -> Result<Pod> {
    Pod::add_with(agent, name, json!({ "bandwidth": limits }))
}

#[test]
fn a_pod_sends_no_faster_than_it_may_and_gets_as_it_likes() -> Result<()> {
    let (cluster, agents) = open()?;
    let pod = limited(&agents[0], "slow", json!({"egressRate": RATE, "egressBurst": BURST}))?;
    let (near, far) = (Pod::add(&agents[0], "near")?, Pod::add(&agents[1], "far")?);
    let node = &cluster.nodes[0].netns;
    for v6 in [false, true] {
        let host = if v6 { "2001:db8:1::11" } else { "192.0.2.11" };
        for (to, address) in
            [(&near.netns, near.address(v6)), (&far.netns, far.address(v6)), (node, host.parse()?)]
        {
            let took = time(&pod.netns, to, SocketAddr::new(address, 5001))?;
            ensure!(took >= LEAST, "{BYTES} bytes to {address} took {took:?}");
        }
    }
    let root = pod.netns.run("tc qdisc show dev eth0")?;
    ensure!(root.contains("tbf") && root.contains("8Mbit") && !root.contains("ingress"), "{root}");
    // The other direction has no queue at all.
    assert_eq!(pod.netns.run("ip -o link show type ifb")?, "");
    let free = pod.netns.run("ip -o link")?.lines().count();
    assert_eq!(free, 2, "loopback and eth0");
    Ok(())
}

#[test]
fn a_pod_gets_no_faster_than_it_may_from_wherever() -> Result<()> {
    let (cluster, agents) = open()?;
    let limits = json!({"ingressRate": RATE, "ingressBurst": BURST});
    let pod = limited(&agents[0], "slow", limits)?;
    let (near, far) = (Pod::add(&agents[0], "near")?, Pod::add(&agents[1], "far")?);
    let _web = WebServer::start(&pod.netns, 8080, "slow")?;
    for v6 in [false, true] {
        let to = SocketAddr::new(pod.address(v6), 5001);
        for from in [&near.netns, &far.netns, &cluster.nodes[0].netns] {
            let took = time(from, &pod.netns, to)?;
            ensure!(took >= LEAST, "{BYTES} bytes from {} took {took:?}", from.name());
            assert_eq!(get(from, SocketAddr::new(pod.address(v6), 8080))?.0, "slow");
        }
    }
    ensure!(pod.call("CHECK")?.status.success());
    // A second container of the same namespace finds what the first one left.
    ensure!(pod.call("DEL")?.status.success());
    ensure!(pod.call("ADD")?.status.success(), "again");
    let queue = pod.netns.run("tc qdisc show")?;
    assert_eq!(queue.lines().filter(|line| line.contains("tbf")).count(), 1, "{queue}");
    Ok(())
}

#[test]
fn a_limit_and_a_host_port_work_together_and_outlive_the_agent() -> Result<()> {
    let (cluster, mut agents) = open()?;
    let asked = json!({
        "bandwidth": {"ingressRate": RATE, "ingressBurst": BURST, "egressRate": RATE},
        "portMappings": [{"hostPort": 5001, "containerPort": 5001, "protocol": "tcp"}],
    });
    let pod = Pod::add_with(&agents[0], "slow", asked)?;
    for restarted in [false, true] {
        if restarted {
            agents[0].restart()?;
        }
        let took =
            time(&cluster.client, &pod.netns, "192.0.2.11:5001".parse()?).context("by the node's port")?;
        ensure!(took >= LEAST, "restarted: {restarted}: {took:?}");
    }
    agents[0].view("audit").map(drop)
}
