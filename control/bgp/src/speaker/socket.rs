//! Connecting to a peer as its settings say.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};

use super::option;
use crate::config::{Identity, Peer};

/// Connects; the error is for operators.
pub(super) async fn connect(identity: Arc<Identity>, peer: Peer) -> Result<TcpStream, String> {
    let socket = open(&identity, &peer)?;
    let to = SocketAddr::new(peer.peer_address, peer.peer_port);
    match tokio::time::timeout(PATIENCE, socket.connect(to)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(explain(&error)),
        Err(_) => Err(silence(&identity, &peer)),
    }
}

fn open(identity: &Identity, peer: &Peer) -> Result<TcpSocket, String> {
    let socket = if peer.peer_address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(|error| format!("opening a socket: {error}"))?;
    prepare(socket.as_fd(), identity, peer).map_err(|error| format!("preparing the socket: {error}"))?;
    if peer.password.is_some() {
        option::set_key(socket.as_fd(), peer.peer_address, peer.password.as_ref()).map_err(|error| {
            format!("setting the password: {error}; the kernel needs CONFIG_TCP_MD5SIG for it")
        })?;
    }
    if let Some(source) = peer.source_address {
        let bound = socket.bind(SocketAddr::new(source, 0));
        bound.map_err(|error| format!("source address {source}: {error}; is it an address of this node?"))?;
    }
    Ok(socket)
}

/// Sets how far a connection reaches.
pub(super) fn prepare(socket: BorrowedFd<'_>, identity: &Identity, peer: &Peer) -> io::Result<()> {
    let address = peer.peer_address;
    option::set_class(socket, address)?;
    if let Some(hops) = peer.ttl_security {
        option::set_ttl(socket, address, u8::MAX)?;
        // A peer one hop away sends packets that arrive as they left.
        return option::set_lowest_ttl(socket, address, u8::MAX - (hops - 1));
    }
    if peer.is_internal(identity) {
        return Ok(());
    }
    option::set_ttl(socket, address, peer.ebgp_multihop.unwrap_or(1))
}

fn explain(error: &io::Error) -> String {
    let advice = match error.kind() {
        ErrorKind::ConnectionRefused => "does BGP run there, and on this port?",
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => {
            "check the link and the routes to the peer; if it is behind a router, set ebgpMultiHop"
        }
        ErrorKind::TimedOut => "is it up, and does nothing on the way drop its packets?",
        _ => return error.to_string(),
    };
    format!("{error}; {advice}")
}

/// No answer has reasons that the settings tell.
fn silence(identity: &Identity, peer: &Peer) -> String {
    let mut text = format!("no answer within {} s", PATIENCE.as_secs());
    if peer.password.is_some() {
        text += "; has the peer the same password?";
    } else {
        text += "; is the peer up, and does it ask for a password?";
    }
    if !peer.is_internal(identity) && peer.ebgp_multihop.is_none() && peer.ttl_security.is_none() {
        text += " If it is behind a router, set ebgpMultiHop";
    }
    text
}

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
