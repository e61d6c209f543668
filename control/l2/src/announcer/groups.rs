//! Multicast groups that solicitations are sent to.
//!
//! Joined as IPv6 has it and not by the packet socket: the kernel then also tells switches that look at MLD (RFC 4541), which would keep
//! the solicitations otherwise, and lets the frames through the interface's own filter.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv6Addr, UdpSocket};

/// The groups of one interface.
#[derive(Debug)]
pub(super) struct Groups {
    ifindex: u32,
    /// Sockets that are there for the groups they are in; never bound, so that nothing arrives. The kernel limits how many
    /// groups one can be in, by its memory for options (`net.core.optmem_max`).
    sockets: Vec<(UdpSocket, usize)>,
    /// Groups, each with the place of its socket.
    joined: BTreeMap<Ipv6Addr, usize>,
}

impl Groups {
    pub(super) fn new(ifindex: u32) -> Self {
        Self { ifindex, sockets: Vec::new(), joined: BTreeMap::new() }
    }

    /// Makes these the groups; goes on after a failure.
    ///
    /// # Errors
    /// The first failure. Most often the interface has no IPv6.
    pub(super) fn set(&mut self, wanted: impl Iterator<Item = Ipv6Addr>) -> io::Result<()> {
        let mut before = std::mem::take(&mut self.joined);
        let mut outcome = Ok(());
        for group in wanted {
            let place = match before.remove(&group) {
                Some(place) => Ok(place),
                None => self.join(group),
            };
            match place {
                Ok(place) => drop(self.joined.insert(group, place)),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        for (group, place) in before {
            self.leave(group, place);
        }
        outcome
    }

    fn join(&mut self, group: Ipv6Addr) -> io::Result<usize> {
        let free = self.sockets.iter().position(|(_, groups)| *groups < GROUPS_OF_A_SOCKET);
        let place = match free {
            Some(place) => place,
            None => {
                self.sockets.push((socket()?, 0));
                self.sockets.len() - 1
            }
        };
        let Some((socket, groups)) = self.sockets.get_mut(place) else { return Ok(place) };
        socket.join_multicast_v6(&group, self.ifindex)?;
        *groups += 1;
        Ok(place)
    }

    fn leave(&mut self, group: Ipv6Addr, place: usize) {
        if let Some((socket, groups)) = self.sockets.get_mut(place) {
            // With its interface, a group is gone by itself.
            let _ = socket.leave_multicast_v6(&group, self.ifindex);
            *groups -= 1;
        }
    }
}

fn socket() -> io::Result<UdpSocket> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    Ok(socket_with(AddressFamily::INET6, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?.into())
}

/// Far below what any kernel allows: 20 KiB for options, about 50 bytes each.
const GROUPS_OF_A_SOCKET: usize = 128;
