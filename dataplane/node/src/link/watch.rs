//! Changes of interfaces, addresses and default routes as they happen.

use std::{collections::VecDeque, io};

use ipnetwork::IpNetwork;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_sys::protocols::NETLINK_ROUTE;
use tokio::io::{Interest, unix::AsyncFd};

use super::{Error, Interface, Links, read, socket};

/// Multicast groups of rtnetlink(7): links; addresses and routes of IPv4, then of IPv6.
const GROUPS: [u32; 5] = [1, 5, 7, 9, 11];
/// The kernel sends no larger notification.
const DATAGRAM: usize = 64 * 1024;

/// Something changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An interface is new or changed. Its addresses are not listed.
    Link(Interface),
    /// An interface is gone.
    LinkGone(Interface),
    /// An interface has this address.
    Address {
        /// Index of the interface.
        ifindex: u32,
        /// The address.
        address: IpNetwork,
    },
    /// An interface no longer has this address.
    AddressGone {
        /// Index of the interface.
        ifindex: u32,
        /// The address.
        address: IpNetwork,
    },
    /// A default route came or went.
    DefaultRoute,
    /// More happened than the socket could hold: read everything again.
    Lost,
}

/// A subscription. What happens after it was made is delivered in order; read the full state after
/// subscribing, not before.
#[derive(Debug)]
pub struct Watch {
    socket: AsyncFd<netlink_sys::Socket>,
    buffer: Vec<u8>,
    queue: VecDeque<Event>,
}

impl Links {
    /// Subscribes to changes in the node's namespace.
    ///
    /// # Errors
    /// If no socket can be opened.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O.
    pub async fn watch(&self) -> Result<Watch, Error> {
        let inner = self.call(|_| subscribe().map_err(failed)).await?;
        // SAFETY: the socket owns its descriptor, answers with it always, and closes it only when it is
        // dropped, which `AsyncFd` does last.
        let socket = unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) }
            .map_err(|error| failed(error.into()))?;
        Ok(Watch { socket, buffer: vec![0; DATAGRAM], queue: VecDeque::new() })
    }
}

impl Watch {
    /// The next change. Dropping the future loses none.
    ///
    /// # Errors
    /// If the socket fails; overruns are [`Event::Lost`].
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Ok(event);
            }
            let (socket, buffer) = (&self.socket, &mut self.buffer);
            let received =
                socket.async_io(Interest::READABLE, |inner| inner.recv(&mut &mut buffer[..], 0)).await;
            match received {
                Ok(length) => self.queue.extend(events(&self.buffer[..length])),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Event::Lost),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

fn subscribe() -> io::Result<netlink_sys::Socket> {
    let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.set_non_blocking(true)?;
    GROUPS.iter().try_for_each(|group| socket.add_membership(*group))?;
    Ok(socket)
}

/// The events of one datagram. One that cannot be decoded must not hide a change.
fn events(datagram: &[u8]) -> Vec<Event> {
    let messages = match socket::parse(datagram) {
        Ok(messages) => messages,
        Err(err) => {
            tracing::warn!(err, "a netlink notification could not be decoded");
            return vec![Event::Lost];
        }
    };
    let event = |payload| match payload {
        NetlinkPayload::InnerMessage(Message::NewLink(link)) => Some(Event::Link(read::interface(&link))),
        NetlinkPayload::InnerMessage(Message::DelLink(link)) => Some(Event::LinkGone(read::interface(&link))),
        NetlinkPayload::InnerMessage(Message::NewAddress(message)) => {
            read::address(&message).map(|address| Event::Address { ifindex: message.header.index, address })
        }
        NetlinkPayload::InnerMessage(Message::DelAddress(message)) => read::address(&message)
            .map(|address| Event::AddressGone { ifindex: message.header.index, address }),
        NetlinkPayload::InnerMessage(Message::NewRoute(route) | Message::DelRoute(route)) => {
            (route.header.destination_prefix_length == 0).then_some(Event::DefaultRoute)
        }
        _ => None,
    };
    messages.into_iter().filter_map(|message| event(message.payload)).collect()
}

fn failed(source: io::Error) -> Error {
    Error::Netlink { doing: "watching interfaces".into(), reason: None, source }
}
