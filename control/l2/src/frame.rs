//! Ethernet frames of address resolution: ARP (RFC 826, RFC 5227) and neighbour discovery (RFC 4861).
//!
//! What is read is what matters to who owns an address: somebody asks for it, or somebody else claims it. All fields of frames
//! are in network byte order.

mod arp;
mod ndp;

use std::net::{IpAddr, Ipv6Addr};

use crate::config::Mac;
pub(crate) use ndp::{ADVERTISEMENT, HOP_LIMIT, ICMPV6, SOLICITATION};

/// What a frame says about an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Somebody wants to know who has it.
    Question(Question),
    /// Somebody says that it has it.
    Claim {
        /// The address.
        address: IpAddr,
        /// Who.
        mac: Mac,
    },
}

/// Somebody wants to know who has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    /// The address.
    pub(crate) target: IpAddr,
    /// Who asks; unspecified where the asker wants the address for itself and looks whether it is free.
    pub(crate) asker: IpAddr,
    /// Where the answer goes.
    pub(crate) mac: Mac,
}

/// Reads a frame; `None` if it says nothing of the kind, or is not as it must be.
pub(crate) fn parse(frame: &[u8]) -> Option<Heard> {
    let (header, payload) = frame.split_first_chunk::<ETHERNET>()?;
    let [.., t0, t1] = *header;
    let source = header.get(6..12)?.try_into().ok()?;
    match u16::from_be_bytes([t0, t1]) {
        ARP => arp::parse(payload),
        IPV6 => ndp::parse(payload, source),
        _ => None,
    }
}

/// The answer to a question: `mac` has the address.
pub(crate) fn answer(question: &Question, mac: Mac) -> Vec<u8> {
    match (question.target, question.asker) {
        (IpAddr::V4(target), IpAddr::V4(asker)) => {
            arp::frame(mac, question.mac, arp::REPLY, [(mac, target), (question.mac, asker)])
        }
        (IpAddr::V6(target), IpAddr::V6(asker)) => {
            // RFC 4861 7.2.4: to all nodes where the asker has no address yet.
            let to = Some(asker).filter(|asker| !asker.is_unspecified());
            ndp::advertisement(mac, target, to.map(|asker| (asker, question.mac)))
        }
        // Questions are read with both of one family.
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Vec::new(),
    }
}

/// Frames that tell everybody that `mac` has the address.
///
/// For IPv4 as a request and as a reply: RFC 5227 3 has requests, which some devices ignore, and others do the same with replies.
pub(crate) fn announcements(address: IpAddr, mac: Mac) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(v4) => [(arp::REQUEST, NOBODY), (arp::REPLY, mac)]
            .map(|(operation, target)| arp::frame(mac, BROADCAST, operation, [(mac, v4), (target, v4)]))
            .into(),
        IpAddr::V6(v6) => vec![ndp::advertisement(mac, v6, None)],
    }
}

/// The multicast group that questions for an address are sent to (RFC 4291 2.7.1).
pub(crate) fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

fn ethernet(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(LONGEST);
    frame.extend(to);
    frame.extend(from);
    frame.extend(kind.to_be_bytes());
    frame
}

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// Types of Ethernet frames.
pub(crate) const ARP: u16 = 0x0806;
pub(crate) const IPV6: u16 = 0x86dd;
/// Bytes of the longest frame that is sent: a neighbour advertisement.
const LONGEST: usize = 86;
const BROADCAST: Mac = [0xff; 6];
const NOBODY: Mac = [0; 6];

/// Whether a station may send with it.
fn is_station(mac: Mac) -> bool {
    mac[0] & 1 == 0 && mac != NOBODY
}

#[cfg(test)]
mod tests;
