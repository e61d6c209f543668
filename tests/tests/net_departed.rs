//! Connections to a backend that left its service though it still answers: kept, or reset at both ends, as the agent is told.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use portolan_tests::lab::{
    AgentOptions, Capture, Condition, Netns, Shop, balances_sockets, cluster_address, node_address, poll,
};

const FAMILIES: [bool; 2] = [false, true];
const PATIENCE: Duration = Duration::from_secs(5);

fn open(setting: &str) -> Result<Shop> {
    let arguments = vec!["--departed-backends".to_owned(), setting.to_owned()];
    let mut shop = Shop::open_with(&[0, 1], &AgentOptions { arguments, ..AgentOptions::default() })?;
    // The tests have listeners of their own, whose side of a connection they see.
    shop.backends.iter_mut().for_each(|backend| backend.web = None);
    Ok(shop)
}

/// Both ends of a connection.
struct Connection {
    who: String,
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn open(who: String, from: &Netns, to: SocketAddr, listener: &TcpListener) -> Result<Self> {
        let client = from.enter(move || TcpStream::connect_timeout(&to, PATIENCE))?;
        let client = client.with_context(|| who.clone())?;
        let (server, _) = listener.accept()?;
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_nodelay(true)?;
        }
        Ok(Self { who, client, server })
    }

    /// Bytes pass both ways.
    fn works(&mut self) -> Result<()> {
        let mut buffer = [0; 4];
        self.client.write_all(b"ask.").context("sending to the backend")?;
        self.server.read_exact(&mut buffer).context("receiving at the backend")?;
        self.server.write_all(b"told").context("sending to the client")?;
        self.client.read_exact(&mut buffer).context("receiving at the client")
    }

    /// Both ends hear that it is over: the backend's when it sends, then the client's. The owner of a balanced socket need
    /// not send.
    fn is_reset(&mut self) -> Result<()> {
        let ended = balances_sockets() && !self.who.starts_with("an outside client");
        let aborted = if ended { ErrorKind::ConnectionAborted } else { ErrorKind::ConnectionReset };
        hears(&mut self.server, ErrorKind::ConnectionReset).context("the backend")?;
        hears(&mut self.client, aborted).context("the client")
    }
}

/// Sends until it hears that the connection is over. The agent looks at flows a moment after it has changed a service.
fn hears(stream: &mut TcpStream, wanted: ErrorKind) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_millis(50)))?;
    let send_and_receive = || -> Option<Result<()>> {
        let result = stream.write_all(b"?").and_then(|()| stream.read(&mut [0; 256]));
        match result {
            Ok(1..) => None,
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) if error.kind() == wanted => Some(Ok(())),
            other => Some(Err(anyhow::anyhow!("{other:?} instead of {wanted:?}"))),
        }
    };
    poll(PATIENCE, "the connection is over", send_and_receive)?
}

/// A connection of every kind of client, in both families, to the one backend that is published.
fn connect_all(shop: &Shop, listener: &TcpListener) -> Result<Vec<Connection>> {
    let mut all = Vec::new();
    for v6 in FAMILIES {
        let (cluster, node) = (cluster_address(v6), node_address(0, v6));
        let clients = [
            ("a pod", &shop.client.netns, cluster),
            ("the host", &shop.cluster.nodes[0].netns, cluster),
            ("an outside client", &shop.cluster.client, node),
        ];
        for (who, netns, to) in clients {
            all.push(Connection::open(format!("{who} to {to}"), netns, to, listener)?);
        }
    }
    Ok(all)
}

/// Publishes these conditions, and waits until both agents know them.
fn publish(shop: &Shop, conditions: [Option<Condition>; 2]) -> Result<()> {
    shop.publish(|index| conditions[index])?;
    shop.settle()
}

/// With the other backend ready, so that new connections have where to go.
fn beside(own: usize, condition: Option<Condition>) -> [Option<Condition>; 2] {
    std::array::from_fn(|index| if index == own { condition } else { Some(Condition::Ready) })
}

fn only(own: usize) -> [Option<Condition>; 2] {
    std::array::from_fn(|index| (index == own).then_some(Condition::Ready))
}

fn all_work(connections: &mut [Connection], when: &str) -> Result<()> {
    for connection in connections {
        connection.works().with_context(|| format!("{when}: {}", connection.who))?;
    }
    Ok(())
}

#[test]
fn connections_to_a_backend_that_left_are_reset_at_both_ends_if_the_agent_is_told_to() -> Result<()> {
    let shop = open("reset")?;
    for own in [0, 1] {
        publish(&shop, only(own))?;
        let listener = shop.backends[own].pod.netns.listen(8080)?;
        let mut connections = connect_all(&shop, &listener)?;
        all_work(&mut connections, "at first")?;
        for condition in [Condition::Terminating, Condition::NotReady] {
            publish(&shop, beside(own, Some(condition)))?;
            all_work(&mut connections, &format!("{condition:?}"))?;
        }
        let pod = &shop.backends[own].pod;
        let filter = format!("tcp and (src host {} or src host {})", pod.address(false), pod.address(true));
        let leaks = [(&shop.client.netns, "eth0"), (&shop.cluster.client, "eth0")]
            .map(|(netns, device)| Capture::start(netns, device, &filter));
        publish(&shop, beside(own, None))?;
        for connection in &mut connections {
            connection.is_reset().with_context(|| format!("{own}: {}", connection.who))?;
        }
        if !balances_sockets() {
            for leak in leaks {
                let packets = leak?.packets()?;
                assert!(packets.is_empty(), "untranslated: {packets:#?}");
            }
        }
    }
    Ok(())
}

#[test]
fn connections_to_a_backend_that_left_are_kept_otherwise() -> Result<()> {
    let shop = open("keep")?;
    for own in [0, 1] {
        publish(&shop, only(own))?;
        let listener = shop.backends[own].pod.netns.listen(8080)?;
        let mut connections = connect_all(&shop, &listener)?;
        publish(&shop, beside(own, None))?;
        all_work(&mut connections, "after its backend left")?;
        // The periodic look at all flows has nothing to say either.
        publish(&shop, [None, None])?;
        all_work(&mut connections, "without any backend")?;
    }
    Ok(())
}

#[test]
fn a_backend_that_left_while_its_agent_was_away_is_found_by_the_next_one() -> Result<()> {
    let mut shop = open("reset")?;
    publish(&shop, only(1))?;
    let listener = shop.backends[1].pod.netns.listen(8080)?;
    let mut connections = connect_all(&shop, &listener)?;
    shop.agents[0].kill()?;
    shop.publish(|index| (index == 0).then_some(Condition::Ready))?;
    shop.agents[0].restart()?;
    shop.settle()?;
    for connection in &mut connections {
        connection.is_reset().with_context(|| connection.who.clone())?;
    }
    Ok(())
}
