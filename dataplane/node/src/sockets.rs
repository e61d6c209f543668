//! Connected sockets, and ending those whose backend is not there any more.
//!
//! What is sent on such a UDP socket would vanish: the kernel tells nobody. A socket that is ended tells its owner at
//! once (`ECONNABORTED`), who connects again and gets another backend; one of TCP resets its peer as well. Sockets are
//! listed and ended in one network namespace after the other (sock_diag(7)); which of them have a backend says
//! [`HeldSockets`].

use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use portolan_abi::{Held, MAPPED, Words};

use crate::sys;

/// What sockets speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

impl Transport {
    const fn protocol(self) -> u8 {
        match self {
            Self::Udp => libc::IPPROTO_UDP as u8,
            Self::Tcp => libc::IPPROTO_TCP as u8,
        }
    }

    /// States of connected sockets, as bits. Those of UDP are all `TCP_ESTABLISHED`; of TCP's, those are of no interest
    /// that nobody has open any more.
    const fn states(self) -> u32 {
        match self {
            Self::Udp => ESTABLISHED,
            Self::Tcp => ESTABLISHED | SYN_SENT | FIN_WAIT | CLOSE_WAIT,
        }
    }
}

/// Lists connected sockets that were given a backend, if [`Object::held_sockets`](crate::Object::held_sockets) can.
#[derive(Clone, Debug)]
pub struct HeldSockets {
    transport: Transport,
    link: Arc<OwnedFd>,
}

impl HeldSockets {
    pub(crate) fn new(transport: Transport, program: BorrowedFd<'_>) -> io::Result<Self> {
        sys::link_create_iterator(program).map(|link| Self { transport, link: Arc::new(link) })
    }

    /// What they speak.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Those of the calling thread's network namespace that these tables' programs translated.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn read(&self) -> io::Result<Vec<Held>> {
        let mut bytes = Vec::new();
        File::from(sys::iterate(self.link.as_fd())?).read_to_end(&mut bytes)?;
        // SAFETY: `Held` is `Pod`: every bit pattern of its size is valid, and the read needs no alignment.
        let held = |chunk: &[u8]| unsafe { chunk.as_ptr().cast::<Held>().read_unaligned() };
        Ok(bytes.chunks_exact(size_of::<Held>()).map(held).collect())
    }
}

/// A connected socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connected {
    transport: Transport,
    family: u8,
    /// `struct inet_diag_sockid`: ports, addresses, interface, cookie.
    id: [u8; ID],
}

impl Connected {
    /// The kernel's name for the socket.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        let [.., a, b, c, d, e, f, g, h] = self.id;
        // Two words, the lower one first.
        let word = u32::from_ne_bytes;
        u64::from(word([e, f, g, h])) << 32 | u64::from(word([a, b, c, d]))
    }

    /// The address and port that it sends to, both in network byte order; IPv4 is mapped.
    #[must_use]
    pub fn destination(&self) -> (Words<4>, u16) {
        let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|byte| self.id[at + byte]));
        let first = word(DESTINATION);
        let addr = if i32::from(self.family) == libc::AF_INET {
            [0, 0, MAPPED, first]
        } else {
            [first, word(DESTINATION + 4), word(DESTINATION + 8), word(DESTINATION + 12)]
        };
        (Words(addr), u16::from_ne_bytes([self.id[2], self.id[3]]))
    }
}

/// A socket that has a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// What it speaks.
    pub transport: Transport,
    /// Its own address; unspecified if it takes all.
    pub address: IpAddr,
    /// Its own port, in host byte order.
    pub port: u16,
    /// Whether it has no peer: a TCP listener, or an unconnected UDP socket.
    pub open: bool,
    /// Its inode, as the links in `/proc/PID/fd` name it; 0 for a socket of the kernel's own.
    pub inode: u32,
}

/// The sockets of one network namespace, whatever thread asks.
pub struct Sockets {
    netlink: Socket,
    buffer: Vec<u8>,
}

impl Sockets {
    /// Those of the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel has no sock_diag.
    pub fn open() -> io::Result<Self> {
        let mut netlink = Socket::new(NETLINK_SOCK_DIAG)?;
        netlink.bind_auto()?;
        netlink.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { netlink, buffer: vec![0; DATAGRAM] })
    }

    /// All connected sockets.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn connected(&mut self, transport: Transport) -> io::Result<Vec<Connected>> {
        let mut found = self.of_family(transport, libc::AF_INET as u8)?;
        found.extend(self.of_family(transport, libc::AF_INET6 as u8)?);
        Ok(found)
    }

    fn of_family(&mut self, transport: Transport, family: u8) -> io::Result<Vec<Connected>> {
        self.list(transport, family, transport.states(), |payload| connected(transport, payload))
    }

    /// Sockets that have a port: those that listen, and both ends of connections that are open. Not what only waits for
    /// the last packets of its connection.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn bound(&mut self) -> io::Result<Vec<Bound>> {
        let mut found = Vec::new();
        for transport in [Transport::Tcp, Transport::Udp] {
            let states = match transport {
                Transport::Tcp => transport.states() | LISTEN,
                Transport::Udp => transport.states() | CLOSE,
            };
            for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
                found.extend(self.list(transport, family, states, |payload| bound(transport, payload))?);
            }
        }
        Ok(found)
    }

    /// What `read` makes of every socket in these states.
    fn list<T>(
        &mut self,
        transport: Transport,
        family: u8,
        states: u32,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
        let all = Connected { transport, family, id: [0; ID] };
        self.netlink.send(&request(BY_FAMILY, flags, states, &all), 0)?;
        let mut found = Vec::new();
        loop {
            let length = self.netlink.recv(&mut &mut self.buffer[..], 0)?;
            let mut rest = self.buffer.get(..length).unwrap_or_default();
            while let Some((kind, payload)) = message(&mut rest) {
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(found),
                    libc::NLMSG_ERROR => acknowledged(payload)?,
                    _ => found.extend(read(payload)),
                }
            }
        }
    }

    /// Ends a socket; whether it was still there.
    ///
    /// # Errors
    /// The kernel refuses, or was built without `CONFIG_INET_DIAG_DESTROY`.
    pub fn end(&mut self, socket: &Connected) -> io::Result<bool> {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        self.netlink.send(&request(DESTROY, flags, socket.transport.states(), socket), 0)?;
        let length = self.netlink.recv(&mut &mut self.buffer[..], 0)?;
        let mut rest = self.buffer.get(..length).unwrap_or_default();
        let (_, payload) = message(&mut rest).ok_or(io::ErrorKind::InvalidData)?;
        match acknowledged(payload) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// `struct inet_diag_req_v2` in a netlink message.
fn request(kind: u16, flags: u16, states: u32, socket: &Connected) -> Vec<u8> {
    let Connected { transport, family, id } = socket;
    let length = (HEADER + 8 + ID) as u32;
    let mut bytes = Vec::with_capacity(length as usize);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([*family, transport.protocol(), 0, 0]);
    bytes.extend(states.to_ne_bytes());
    bytes.extend(id);
    bytes
}

/// Takes the first message off: its type and payload.
pub(crate) fn message<'a>(rest: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
    let payload = rest.get(HEADER..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, payload))
}

/// The kernel's answer: a negative errno, or 0.
pub(crate) fn acknowledged(payload: &[u8]) -> io::Result<()> {
    let code = payload.get(..4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match code.ok_or(io::ErrorKind::InvalidData)? {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}

/// Reads the beginning of `struct inet_diag_msg`: family, three bytes, identity.
fn connected(transport: Transport, payload: &[u8]) -> Option<Connected> {
    let family = *payload.first()?;
    let id = payload.get(4..4 + ID)?.try_into().ok()?;
    Some(Connected { transport, family, id })
}

/// Reads a `struct inet_diag_msg`; `None` for a socket that has no port yet.
fn bound(transport: Transport, payload: &[u8]) -> Option<Bound> {
    let word = |at: usize| <[u8; 4]>::try_from(payload.get(at..at + 4)?).ok();
    let (family, id) = (*payload.first()?, payload.get(4..4 + ID)?);
    let address = if i32::from(family) == libc::AF_INET {
        IpAddr::from(word(4 + SOURCE)?)
    } else {
        IpAddr::from(<[u8; 16]>::try_from(id.get(SOURCE..SOURCE + 16)?).ok()?).to_canonical()
    };
    let port = u16::from_be_bytes([id[0], id[1]]);
    let open = [id[2], id[3]] == [0; 2];
    (port != 0).then_some(Bound { transport, address, port, open, inode: u32::from_ne_bytes(word(INODE)?) })
}

/// Room for a datagram of a dump, which has 32 KiB at most.
const DATAGRAM: usize = 64 * 1024;
/// Length of a netlink message header.
const HEADER: usize = 16;
/// Length of `struct inet_diag_sockid`.
const ID: usize = 48;
/// Where in it the own address is; its port comes first.
const SOURCE: usize = 4;
/// Where in it the destination's address is; its port comes second.
const DESTINATION: usize = 20;
/// Where in `struct inet_diag_msg` the inode is: behind the identity and four words.
const INODE: usize = 4 + ID + 16;
/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY` of linux/sock_diag.h.
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// States of sockets, as bits (net/tcp_states.h).
const ESTABLISHED: u32 = 1 << 1;
const SYN_SENT: u32 = 1 << 2;
const FIN_WAIT: u32 = 1 << 4 | 1 << 5;
const CLOSE_WAIT: u32 = 1 << 8;
const CLOSE: u32 = 1 << 7;
const LISTEN: u32 = 1 << 10;
