//! Socket options that have no safe interface elsewhere: TCP MD5 signatures and lowest TTLs.
//!
//! The one `unsafe` block of this crate is here: a system call with a pointer to a value that outlives it.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::c_int;

use crate::config::{MAX_PASSWORD, Password};

/// `struct tcp_md5sig` of linux/tcp.h, with the address as bytes.
#[repr(C)]
#[derive(Clone, Copy)]
struct TcpMd5Sig {
    /// `sockaddr_in` or `sockaddr_in6`: family in the machine's byte order, address in the network's.
    address: [u8; 128],
    flags: u8,
    prefix_len: u8,
    key_len: u16,
    interface: c_int,
    key: [u8; MAX_PASSWORD],
}

const _: () = assert!(size_of::<TcpMd5Sig>() == 216);

/// Signs all segments to and from a peer, and drops those without the right signature (RFC 2385). `None` ends that.
pub(super) fn set_key(socket: BorrowedFd<'_>, peer: IpAddr, password: Option<&Password>) -> io::Result<()> {
    let secret = password.map(Password::expose).unwrap_or_default();
    let (Ok(key_len), true) = (u16::try_from(secret.len()), secret.len() <= MAX_PASSWORD) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let mut key = [0; MAX_PASSWORD];
    key[..secret.len()].copy_from_slice(secret);
    let value = TcpMd5Sig { address: sockaddr(peer), flags: 0, prefix_len: 0, key_len, interface: 0, key };
    set(socket, libc::IPPROTO_TCP, libc::TCP_MD5SIG, &value)
}

fn sockaddr(address: IpAddr) -> [u8; 128] {
    let mut bytes = [0; 128];
    // After family and port; IPv6 has four bytes of flow label in between.
    let family = match address {
        IpAddr::V4(address) => {
            bytes[4..8].copy_from_slice(&address.octets());
            libc::AF_INET
        }
        IpAddr::V6(address) => {
            bytes[8..24].copy_from_slice(&address.octets());
            libc::AF_INET6
        }
    };
    bytes[..2].copy_from_slice(&u16::try_from(family).unwrap_or_default().to_ne_bytes());
    bytes
}

/// Packets leave with this TTL (IPv6: hop limit).
pub(super) fn set_ttl(socket: BorrowedFd<'_>, peer: IpAddr, ttl: u8) -> io::Result<()> {
    let value = c_int::from(ttl);
    match peer {
        IpAddr::V4(_) => set(socket, libc::IPPROTO_IP, libc::IP_TTL, &value),
        IpAddr::V6(_) => set(socket, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, &value),
    }
}

/// Packets that come with a lower TTL are dropped (RFC 5082).
pub(super) fn set_lowest_ttl(socket: BorrowedFd<'_>, peer: IpAddr, ttl: u8) -> io::Result<()> {
    let value = c_int::from(ttl);
    match peer {
        IpAddr::V4(_) => set(socket, libc::IPPROTO_IP, libc::IP_MINTTL, &value),
        IpAddr::V6(_) => set(socket, libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, &value),
    }
}

/// Packets leave with the class of network control, CS6 (RFC 4594 §3.1): routers forward them first.
pub(super) fn set_class(socket: BorrowedFd<'_>, peer: IpAddr) -> io::Result<()> {
    let value: c_int = 0xc0;
    match peer {
        IpAddr::V4(_) => set(socket, libc::IPPROTO_IP, libc::IP_TOS, &value),
        IpAddr::V6(_) => set(socket, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &value),
    }
}

/// An IPv6 socket takes no IPv4 connections.
pub(super) fn set_only_v6(socket: BorrowedFd<'_>) -> io::Result<()> {
    set::<c_int>(socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &1)
}

fn set<T: Copy>(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: the descriptor is open while it is borrowed; the kernel reads `len` bytes behind the pointer during
    // the call, which is the size of the value that it points to.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
