//! ARP over Ethernet (RFC 826).

use std::net::{IpAddr, Ipv4Addr};

use super::{ARP, Heard, Question, ethernet, is_station};
use crate::config::Mac;

/// Operations.
pub(super) const REQUEST: u16 = 1;
pub(super) const REPLY: u16 = 2;

/// Hardware Ethernet with addresses of 6 bytes, protocol IPv4 with addresses of 4.
const KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// Reads what follows the Ethernet header.
pub(super) fn parse(payload: &[u8]) -> Option<Heard> {
    let (kind, rest) = payload.split_first_chunk::<6>()?;
    let (operation, rest) = rest.split_first_chunk::<2>()?;
    let (mac, rest) = rest.split_first_chunk::<6>()?;
    let (sender, rest) = rest.split_first_chunk::<4>()?;
    let (_, rest) = rest.split_first_chunk::<6>()?;
    let (target, _) = rest.split_first_chunk::<4>()?;
    let (sender, target) = (Ipv4Addr::from(*sender), Ipv4Addr::from(*target));
    if *kind != KIND || !is_station(*mac) {
        return None;
    }
    match u16::from_be_bytes(*operation) {
        // Who asks for its own address announces it.
        REQUEST if sender != target => {
            Some(Heard::Question(Question { target: target.into(), asker: sender.into(), mac: *mac }))
        }
        REQUEST | REPLY => Some(Heard::Claim { address: IpAddr::V4(sender), mac: *mac }),
        _ => None,
    }
}

/// A frame with sender and target, each by both addresses.
pub(super) fn frame(from: Mac, to: Mac, operation: u16, ends: [(Mac, Ipv4Addr); 2]) -> Vec<u8> {
    let mut frame = ethernet(to, from, ARP);
    frame.extend(KIND);
    frame.extend(operation.to_be_bytes());
    for (mac, address) in ends {
        frame.extend(mac);
        frame.extend(address.octets());
    }
    frame
}
