//! Frames to and from one interface, by a packet socket (packet(7)).
//!
//! The one home of `unsafe` in this crate: two system calls with pointers to values that outlive them, and a descriptor that tokio
//! watches.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll};

use libc::c_int;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::filter;

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// ARP.
    Arp,
    /// Neighbour discovery.
    Neighbours,
}

/// A socket for address resolution on one interface.
#[derive(Debug)]
pub(super) struct PacketSocket(AsyncFd<OwnedFd>);

impl PacketSocket {
    /// Opens it in this thread's namespace. Needs `CAP_NET_RAW`.
    pub(super) fn open(ifindex: u32, protocol: Protocol) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Without a protocol it gets nothing yet, not even what its filter would take out.
        let socket = net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
        set::<c_int>(socket.as_fd(), libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1)?;
        let (mut program, ether_type) = match protocol {
            Protocol::Arp => (filter::arp(), libc::ETH_P_ARP),
            Protocol::Neighbours => (filter::neighbours(), libc::ETH_P_ALL),
        };
        let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
        set(socket.as_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        bind(socket.as_fd(), ifindex, ether_type)?;
        // SAFETY: `OwnedFd` answers with the same descriptor always, and closes it only when it is dropped, which `AsyncFd`
        // does last.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        Ok(Self(socket.map_err(io::Error::from)?))
    }

    /// The next frame, if there is one, and its length.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let received = self.0.try_io(Interest::READABLE, |socket| {
            let (_, length) = net::recv(socket, &mut *buffer, RecvFlags::empty())?;
            Ok(length)
        });
        match received {
            Ok(length) => Ok(Some(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a frame as it is.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        net::send(self.0.get_ref(), frame, SendFlags::empty())?;
        Ok(())
    }

    /// Whether there is something to read.
    pub(super) fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()> {
        // An error is found by reading.
        self.0.poll_read_ready(context).map(drop)
    }
}

/// Attaches a socket to an interface, for frames of one protocol or all.
fn bind(socket: BorrowedFd<'_>, ifindex: u32, ether_type: c_int) -> io::Result<()> {
    let family = u16::try_from(libc::AF_PACKET).map_err(|_| io::ErrorKind::InvalidInput)?;
    let protocol = u16::try_from(ether_type).map_err(|_| io::ErrorKind::InvalidInput)?;
    let ifindex = i32::try_from(ifindex).map_err(|_| io::ErrorKind::InvalidInput)?;
    let address = libc::sockaddr_ll {
        sll_family: family,
        sll_protocol: protocol.to_be(),
        sll_ifindex: ifindex,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or(0);
    // SAFETY: the descriptor is open while it is borrowed; the kernel reads `len` bytes behind the pointer during the
    // call, which is the size of the value that it points to.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets an option. A pointer inside of `value` must be valid as the option's documentation says.
fn set<T: Copy>(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: the descriptor is open while it is borrowed; the kernel reads `len` bytes behind the pointer during the
    // call, which is the size of the value that it points to. The only option with another pointer inside is the filter, whose
    // program lives as long as the call, with the length that is said beside it.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
