//! Neighbour solicitations and advertisements (RFC 4861 4.3, 4.4, 7.1, 7.2).

use std::net::{IpAddr, Ipv6Addr};

use super::{Heard, IPV6, Question, ethernet, is_station};
use crate::config::Mac;

/// Types of ICMPv6 messages.
pub(crate) const SOLICITATION: u8 = 135;
pub(crate) const ADVERTISEMENT: u8 = 136;
/// The protocol ICMPv6 in a next header field.
pub(crate) const ICMPV6: u8 = 58;
/// What only a neighbour can send: routers count it down.
pub(crate) const HOP_LIMIT: u8 = 255;

/// Options.
const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;

/// Flags of an advertisement. The sender is no router: what it owns is a service.
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];

/// Reads what follows the Ethernet header; `source` is the sender by that header.
pub(super) fn parse(payload: &[u8], source: Mac) -> Option<Heard> {
    let (header, rest) = payload.split_first_chunk::<40>()?;
    let [version, _, _, _, l0, l1, next, hops, addresses @ ..] = *header;
    let (from, to) = addresses.split_first_chunk::<16>()?;
    let (from, to) = (Ipv6Addr::from(*from), Ipv6Addr::from(*to.first_chunk::<16>()?));
    let message = rest.get(..usize::from(u16::from_be_bytes([l0, l1])))?;
    // RFC 4861 7.1.1 and 7.1.2.
    let valid = version >> 4 == 6 && next == ICMPV6 && hops == HOP_LIMIT && checksum(from, to, message) == 0;
    let (icmp, options) = message.split_first_chunk::<24>()?;
    let [kind, code, _, _, flags, _, _, _, target @ ..] = *icmp;
    let target = Ipv6Addr::from(target);
    if !valid || code != 0 || target.is_multicast() || !is_station(source) {
        return None;
    }
    match kind {
        SOLICITATION => question(from, to, target, options, source),
        ADVERTISEMENT => {
            let may_be_solicited = !to.is_multicast() || flags & SOLICITED == 0;
            let mac = option(options, TARGET_MAC)?.unwrap_or(source);
            may_be_solicited.then_some(Heard::Claim { address: IpAddr::V6(target), mac })
        }
        _ => None,
    }
}

fn question(from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr, options: &[u8], source: Mac) -> Option<Heard> {
    let mac = option(options, SOURCE_MAC)?;
    let probe = from.is_unspecified();
    let valid = !probe || (mac.is_none() && to == super::solicited_node(target));
    let mac = mac.unwrap_or(source);
    let question = Question { target: target.into(), asker: from.into(), mac };
    (valid && is_station(mac)).then_some(Heard::Question(question))
}

/// The Ethernet address that an option has. `None`: options are not as they must be; `Some(None)`: it is not there.
fn option(mut options: &[u8], wanted: u8) -> Option<Option<Mac>> {
    let mut found = None;
    while let [kind, units, ..] = *options {
        let (option, rest) = options.split_at_checked(usize::from(units) * 8).filter(|_| units > 0)?;
        if kind == wanted && found.is_none() {
            found = option.get(2..8).and_then(|mac| mac.try_into().ok());
        }
        options = rest;
    }
    options.is_empty().then_some(found)
}

/// An advertisement for who asked, or for everybody.
pub(super) fn advertisement(mac: Mac, target: Ipv6Addr, to: Option<(Ipv6Addr, Mac)>) -> Vec<u8> {
    let solicited = if to.is_some() { SOLICITED } else { 0 };
    let (to, to_mac) = to.unwrap_or((ALL_NODES, ALL_NODES_MAC));
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, solicited | OVERRIDE, 0, 0, 0];
    message.extend(target.octets());
    message.extend([TARGET_MAC, 1]);
    message.extend(mac);
    let sum = checksum(target, to, &message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    let mut frame = ethernet(to_mac, mac, IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length(&message).to_be_bytes());
    frame.extend([ICMPV6, HOP_LIMIT]);
    frame.extend(target.octets());
    frame.extend(to.octets());
    frame.extend(message);
    frame
}

/// The checksum of a message (RFC 4443 2.3): what to write where its field is zero; zero where its field is right.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let pseudo = [u32::from(length(message)), u32::from(ICMPV6)].map(u32::to_be_bytes);
    let parts = [&from.octets()[..], &to.octets(), pseudo.as_flattened(), message];
    let words = parts.into_iter().flat_map(|part| part.chunks(2));
    let sum = words.fold(0_u32, |sum, word| {
        let [high, low] = [0, 1].map(|at| word.get(at).copied().unwrap_or(0));
        sum + u32::from(u16::from_be_bytes([high, low]))
    });
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).unwrap_or(u16::MAX)
}

/// The length of a message; none comes near what the field can say.
fn length(message: &[u8]) -> u16 {
    u16::try_from(message.len()).unwrap_or(u16::MAX)
}
