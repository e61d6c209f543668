//! Frames of any contents, sent from an interface of the calling thread's namespace.

use std::ffi::CString;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::net::{self, AddressFamily, SocketType};

/// Sends frames as they are.
#[derive(Debug)]
pub struct Frames {
    socket: OwnedFd,
    interface: CString,
}

impl Frames {
    /// Opens a socket in this thread's namespace. The interface need not exist yet.
    ///
    /// # Errors
    /// Not root, as a rule.
    pub fn open(interface: &str) -> io::Result<Self> {
        // SAFETY: no pointer is passed; the descriptor is new and ours.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Self { socket, interface: CString::new(interface)? })
    }

    /// Sends one frame, with its Ethernet header.
    ///
    /// # Errors
    /// The interface is not there, or is down.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the name is a string that ends with zero.
        let index = unsafe { libc::if_nametoindex(self.interface.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: every bit pattern is valid for the address; the buffers live during the call, with their sizes.
        let sent = unsafe {
            let mut to: libc::sockaddr_ll = std::mem::zeroed();
            (to.sll_family, to.sll_ifindex, to.sll_halen) = (libc::AF_PACKET as u16, index as i32, 6);
            let size = size_of_val(&to) as libc::socklen_t;
            let fd = self.socket.as_raw_fd();
            libc::sendto(fd, frame.as_ptr().cast(), frame.len(), 0, (&raw const to).cast(), size)
        };
        if sent as usize == frame.len() { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Sends an IP packet as it is from this thread's namespace, by its routes.
///
/// # Errors
/// Not root, or no route.
pub fn send_ip(packet: &[u8], to: IpAddr) -> io::Result<()> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    // Of this protocol, what is sent begins with its IP header (raw(7), ipv6(7)).
    let socket = net::socket(family, SocketType::RAW, Some(net::ipproto::RAW))?;
    let sent = net::sendto(&socket, packet, net::SendFlags::empty(), &SocketAddr::new(to, 0))?;
    if sent == packet.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}
