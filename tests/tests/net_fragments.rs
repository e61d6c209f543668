//! Datagrams that are longer than a packet.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{
    AgentOptions, Netns, Shop, cluster_address, node_address, poll, public_address, send_ip,
};
use portolan_tests::packet::build::Packet;

const FAMILIES: [bool; 2] = [false, true];
/// Bytes of data: two pieces, some, and nearly as many as there can be, of which the answer is a little longer.
const SIZES: [usize; 3] = [2_000, 9_001, 65_000];

fn data(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at / 7 + at) as u8).collect()
}

/// A socket of a namespace that is connected to a service.
fn connected(netns: &Netns, to: SocketAddr) -> Result<UdpSocket> {
    netns.enter(move || -> Result<UdpSocket> {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(socket)
    })?
}

/// The server's name out of an answer, which has to end with what was sent.
fn server(socket: &UdpSocket, sent: &[u8]) -> Result<String> {
    let mut buffer = vec![0; 65_536];
    let len = socket.recv(&mut buffer).context("no answer")?;
    let head = buffer[..len].strip_suffix(sent).with_context(|| format!("{len} bytes of something else"))?;
    Ok(String::from_utf8_lossy(head).split(' ').next().context("an empty answer")?.to_owned())
}

#[test]
fn large_datagrams_reach_services_and_their_answers_come_back() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    let (pod, host, outside) = (&shop.client.netns, &shop.cluster.nodes[0].netns, &shop.cluster.client);
    for v6 in FAMILIES {
        for (netns, to) in [
            (pod, cluster_address(v6)),
            (pod, public_address(v6)),
            (host, cluster_address(v6)),
            (host, node_address(1, v6)),
            (outside, public_address(v6)),
            (outside, node_address(0, v6)),
            (outside, node_address(1, v6)),
        ] {
            let mut servers = std::collections::BTreeSet::new();
            for size in SIZES {
                for _ in 0..8 {
                    let (socket, sent) = (connected(netns, to)?, data(size));
                    socket.send(&sent)?;
                    servers.insert(server(&socket, &sent).with_context(|| format!("{size} bytes to {to}"))?);
                }
            }
            ensure!(servers.len() == 2, "only {servers:?} answer at {to}");
        }
    }
    Ok(())
}

/// Puts pieces into an order.
type Order = fn(&mut Vec<Packet>);

/// Sends a datagram of a socket in pieces of this length, in this order.
fn send_in_pieces(netns: &Netns, socket: &UdpSocket, sent: &[u8], order: Order) -> Result<()> {
    let (from, to) = (socket.local_addr()?, socket.peer_addr()?);
    let mut whole = Packet::udp((from.ip(), from.port()), (to.ip(), to.port())).data(sent);
    whole.id = from.port();
    let cuts: Vec<usize> = (1_400..sent.len()).step_by(1_400).collect();
    let mut pieces = whole.cut(&cuts);
    order(&mut pieces);
    let packets: Vec<Vec<u8>> = pieces.iter().map(Packet::ip).collect();
    netns.enter(move || packets.iter().try_for_each(|packet| send_ip(packet, to.ip())))??;
    Ok(())
}

#[test]
fn pieces_arrive_whole_in_whatever_order_they_come() -> Result<()> {
    let shop = Shop::open(&[0, 1])?;
    let (pod, outside) = (&shop.client.netns, &shop.cluster.client);
    let orders: [(&str, Order); 4] = [
        ("as they were cut", |_| {}),
        ("the first as the last", |pieces| pieces.rotate_left(1)),
        ("backwards", |pieces| pieces.reverse()),
        ("the first in the middle", |pieces| pieces.swap(0, 3)),
    ];
    for v6 in FAMILIES {
        for (netns, to) in [
            (outside, public_address(v6)),
            (outside, node_address(0, v6)),
            (outside, node_address(1, v6)),
            (pod, cluster_address(v6)),
        ] {
            for (order, arrange) in orders {
                for size in [6_000, 50_000] {
                    let (socket, sent) = (connected(netns, to)?, data(size));
                    send_in_pieces(netns, &socket, &sent, arrange)?;
                    server(&socket, &sent).with_context(|| format!("{size} bytes to {to}, {order}"))?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn pieces_are_carried_to_the_backends_node_by_direct_return() -> Result<()> {
    let arguments = vec!["--external-mode".to_owned(), "dsr".to_owned()];
    let shop = Shop::open_with(&[1], &AgentOptions { arguments, ..AgentOptions::default() })?;
    shop.cluster.route_public_to(0)?;
    for v6 in FAMILIES {
        for to in [public_address(v6), node_address(0, v6)] {
            for size in SIZES {
                // The client is told the size that fits, and does not send the first datagram again by itself.
                let (socket, sent) = (connected(&shop.cluster.client, to)?, data(size));
                let answered = || {
                    socket.send(&sent).ok()?;
                    server(&socket, &sent).ok()
                };
                poll(Duration::from_secs(10), &format!("{size} bytes to {to} are answered"), answered)?;
            }
        }
    }
    Ok(())
}
