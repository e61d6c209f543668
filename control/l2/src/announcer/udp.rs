//! Heartbeats to and from other nodes.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
use tokio::net::UdpSocket;

/// One socket for each family: bound to this node's own address, so that others know whose datagrams these are.
#[derive(Debug, Default)]
pub(super) struct Udp {
    sockets: BTreeMap<SocketAddr, UdpSocket>,
}

impl Udp {
    /// Has a socket at the first of these addresses of each family; goes on after a failure.
    ///
    /// # Errors
    /// The first failure, and where.
    pub(super) fn set(&mut self, own: &[IpAddr], port: u16) -> Result<(), (SocketAddr, io::Error)> {
        let first = |v4: bool| own.iter().find(move |address| address.is_ipv4() == v4);
        let wanted = [first(true), first(false)].into_iter().flatten().map(|own| SocketAddr::new(*own, port));
        let mut before = std::mem::take(&mut self.sockets);
        let mut outcome = Ok(());
        for address in wanted {
            match before.remove(&address).map_or_else(|| open(address), Ok) {
                Ok(socket) => drop(self.sockets.insert(address, socket)),
                Err(error) => outcome = outcome.and(Err((address, error))),
            }
        }
        outcome
    }

    /// Whether there is no socket.
    pub(super) fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// Sends a datagram. One to a family that this node has no address of is none.
    pub(super) fn send(&self, to: IpAddr, port: u16, datagram: &[u8]) {
        let of_family = self.sockets.iter().find(|(own, _)| own.is_ipv4() == to.is_ipv4());
        let sent = of_family.map(|(_, socket)| socket.try_send_to(datagram, SocketAddr::new(to, port)));
        // The other node notices, and so does this one by what that one says.
        if let Some(Err(err)) = sent {
            tracing::debug!(%to, %err, "a heartbeat was not sent");
        }
    }

    /// The next datagram, if there is one: its length and where it came from.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> Option<(usize, IpAddr)> {
        self.sockets.values().find_map(|socket| {
            let (length, from) = socket.try_recv_from(buffer).ok()?;
            Some((length, from.ip()))
        })
    }

    /// Whether there is something to read.
    pub(super) fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()> {
        // All of them, so that each wakes this task.
        let ready = self.sockets.values().filter(|socket| socket.poll_recv_ready(context).is_ready()).count();
        if ready > 0 { Poll::Ready(()) } else { Poll::Pending }
    }
}

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::DGRAM, flags, None)?;
    // Before the interface has the address, too. And with the class of network control, CS6 (RFC 4594 3.1): when links are full,
    // heartbeats go first.
    if address.is_ipv4() {
        sockopt::set_ip_freebind(&socket, true)?;
        sockopt::set_ip_tos(&socket, NETWORK_CONTROL)?;
    } else {
        sockopt::set_ipv6_freebind(&socket, true)?;
        sockopt::set_ipv6_v6only(&socket, true)?;
        sockopt::set_ipv6_tclass(&socket, u32::from(NETWORK_CONTROL))?;
    }
    bind(&socket, &address)?;
    UdpSocket::from_std(socket.into())
}

const NETWORK_CONTROL: u8 = 0xc0;
