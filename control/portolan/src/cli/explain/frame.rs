//! A packet to ask about.

use std::net::IpAddr;

use portolan_core::wire::Frame;

use super::Protocol;

/// Time to live of the packet: RFC 1700's recommended default.
const TTL: u8 = 64;

/// The first packet of a conversation. Checksums are zero: decisions do not read them.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    pub(super) protocol: Protocol,
    pub(super) source: (IpAddr, u16),
    pub(super) destination: (IpAddr, u16),
    bytes: Vec<u8>,
}

impl Probe {
    pub(super) fn new(
        protocol: Protocol,
        source: (IpAddr, u16),
        destination: (IpAddr, u16),
        mac: [u8; 6],
    ) -> Self {
        let transport = transport(protocol, source.1, destination.1);
        let proto = match protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        };
        let len = transport.len() as u16;
        let mut bytes = vec![0; 6];
        bytes.extend(mac);
        match (source.0, destination.0) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                bytes.extend([0x08, 0x00, 0x45, 0]);
                bytes.extend((20 + len).to_be_bytes());
                bytes.extend([0, 0, 0x40, 0, TTL, proto, 0, 0]);
                bytes.extend(from.octets().into_iter().chain(to.octets()));
            }
            (from, to) => {
                bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                bytes.extend(len.to_be_bytes());
                bytes.extend([proto, TTL]);
                for address in [from, to] {
                    // The two are of one family: the caller has compared them.
                    if let IpAddr::V6(address) = address {
                        bytes.extend(address.octets());
                    }
                }
            }
        }
        bytes.extend(transport);
        Self { protocol, source, destination, bytes }
    }
}

/// A SYN without options, or a datagram without data.
fn transport(protocol: Protocol, source: u16, destination: u16) -> Vec<u8> {
    let ports = source.to_be_bytes().into_iter().chain(destination.to_be_bytes());
    match protocol {
        Protocol::Tcp => ports.chain([0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, 2, 0xff, 0xff, 0, 0, 0, 0]).collect(),
        Protocol::Udp => ports.chain([0, 8, 0, 0]).collect(),
    }
}

impl Frame for Probe {
    fn words<const N: usize>(&self, at: usize) -> Option<[u32; N]> {
        let bytes = self.bytes.get(at..at + 4 * N)?;
        let word = |chunk: &[u8]| u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        let mut words = [0; N];
        for (place, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *place = word(chunk);
        }
        Some(words)
    }

    fn len(&self) -> u32 {
        self.bytes.len() as u32
    }
}
