//! Segments that do not belong where a TCP connection is: neither end hears of the other's own address, and none resets.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_tests::lab::{Capture, Frames, Netns, Pod, Shop, cluster_address, node_address, public_address};
use portolan_tests::packet::build::{Mac, Packet, flag};
use serde_json::Value;

const FAMILIES: [bool; 2] = [false, true];
/// The MAC address that every pod has for its gateway.
const GATEWAY: Mac = [0x02, 0x70, 0x6f, 0x72, 0x74, 0x6c];
/// Data of the segments that a test makes; no other segment is as long.
const STRAY: &[u8] = &[b'?'; 333];

fn open(netns: &Netns, to: SocketAddr) -> Result<TcpStream> {
    let stream = netns.enter(move || TcpStream::connect_timeout(&to, Duration::from_secs(3)))??;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    Ok(stream)
}

/// One request on an open connection.
fn ask(mut stream: &TcpStream) -> Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n")?;
    let mut text = String::new();
    let mut buffer = [0; 512];
    while !(text.contains("\r\n\r\n") && text.ends_with('\n') && !text.ends_with("\r\n\r\n")) {
        let len = stream.read(&mut buffer)?;
        ensure!(len > 0, "closed after {text:?}");
        text += &String::from_utf8_lossy(&buffer[..len]);
    }
    Ok(())
}

fn mac(netns: &Netns) -> Result<Mac> {
    let link: Value = serde_json::from_str(&netns.run("ip -j link show dev eth0")?)?;
    let text = link[0]["address"].as_str().context("no MAC")?;
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>()?;
    bytes.try_into().map_err(|_| anyhow::anyhow!("{text} is no MAC"))
}

/// Sends a segment with numbers that no connection has, from a pod.
fn send_stray(pod: &Pod, from: SocketAddr, to: SocketAddr) -> Result<()> {
    let packet = Packet::tcp((from.ip(), from.port()), (to.ip(), to.port()), flag::ACK)
        .numbers(0x1357_9bdf, 0x2468_ace0)
        .data(STRAY)
        .macs(GATEWAY, mac(&pod.netns)?);
    pod.netns.enter(move || Frames::open("eth0")?.send(&packet.bytes()))?.context("sending a segment")
}

/// As tcpdump writes an end of a connection.
fn end(of: SocketAddr) -> String {
    format!("{}.{}", of.ip(), of.port())
}

/// The stray segment arrived with these ends, and nobody sent a reset.
fn arrived(capture: &Capture, from: SocketAddr, to: SocketAddr) -> Result<()> {
    let way = format!("{} > {}:", end(from), end(to));
    let packets = capture.until(&[&way, &format!("length {}", STRAY.len())])?;
    let resets: Vec<_> = packets.iter().filter(|packet| packet.contains("Flags [R")).collect();
    ensure!(resets.is_empty(), "{resets:#?}");
    Ok(())
}

#[test]
fn segments_outside_of_the_window_are_translated_and_reset_nothing() -> Result<()> {
    for node in [0, 1] {
        let shop = Shop::open(&[node])?;
        let backend = &shop.backends[0].pod;
        for v6 in FAMILIES {
            for vip in [cluster_address(v6), public_address(v6), node_address(0, v6)] {
                let at_client = Capture::start(&shop.client.netns, "eth0", "tcp")?;
                let at_backend = Capture::start(&backend.netns, "eth0", "tcp")?;
                let stream = open(&shop.client.netns, vip)?;
                ask(&stream)?;
                let (client, server) = (stream.local_addr()?, SocketAddr::new(backend.address(v6), 8080));
                send_stray(backend, server, client)?;
                arrived(&at_client, vip, client).with_context(|| format!("to a client of {vip}"))?;
                send_stray(&shop.client, client, vip)?;
                arrived(&at_backend, client, server).with_context(|| format!("to a backend of {vip}"))?;
                ask(&stream).context("the connection goes on")?;
                let leaked = at_client.packets()?;
                let leaked = leaked.iter().filter(|it| it.contains(&end(server))).count();
                assert_eq!(leaked, 0, "segments with the backend's own address");
            }
        }
    }
    Ok(())
}

#[test]
fn segments_outside_of_the_window_reset_no_connection_of_outside_clients() -> Result<()> {
    for node in [0, 1] {
        let shop = Shop::open(&[node])?;
        let backend = &shop.backends[0].pod;
        for v6 in FAMILIES {
            for vip in [public_address(v6), node_address(0, v6)] {
                let at_client = Capture::start(&shop.cluster.client, "eth0", "tcp")?;
                let at_backend = Capture::start(&backend.netns, "eth0", "tcp")?;
                let stream = open(&shop.cluster.client, vip)?;
                ask(&stream)?;
                let client = stream.local_addr()?;
                let server = SocketAddr::new(backend.address(v6), 8080);
                let seen = peer(backend, v6)?;
                send_stray(backend, server, seen)?;
                arrived(&at_client, vip, client).with_context(|| format!("to a client of {vip}"))?;
                ask(&stream).context("the connection goes on")?;
                let resets: Vec<_> =
                    at_backend.packets()?.into_iter().filter(|it| it.contains("Flags [R")).collect();
                ensure!(resets.is_empty(), "{resets:#?}");
            }
        }
    }
    Ok(())
}

/// The client's address and port as the backend's newest connection of a family has them.
fn peer(backend: &Pod, v6: bool) -> Result<SocketAddr> {
    let text = backend.netns.run("ss -Htn state established sport = :8080")?;
    let peers = text.lines().filter_map(|line| line.split_whitespace().last()?.parse::<SocketAddr>().ok());
    // The server's socket is of both families.
    let peers = peers.map(|peer| SocketAddr::new(peer.ip().to_canonical(), peer.port()));
    let mut peers = peers.filter(|peer| peer.is_ipv6() == v6);
    peers.next().context("the backend has no connection")
}
