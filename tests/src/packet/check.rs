//! Looks at packets that came out: every checksum from scratch, and the fields that tests ask for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::build::{internet_sum, proto, pseudo_header};

/// A packet, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Protocol or next header.
    pub proto: u8,
    /// Time to live.
    pub ttl: u8,
    /// What follows the IP header and its options.
    pub body: Vec<u8>,
}

impl Decoded {
    /// Source and destination port.
    #[must_use]
    pub fn ports(&self) -> Option<(u16, u16)> {
        let &[a, b, c, d, ..] = self.body.as_slice() else { return None };
        let has_ports = self.proto == proto::TCP || self.proto == proto::UDP;
        has_ports.then(|| (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
    }
}

/// Takes a frame apart; the reason if it is no whole IP packet.
///
/// # Errors
/// What is wrong with it.
pub fn decode(frame: &[u8]) -> Result<Decoded, String> {
    let (ether, packet) = frame.split_at_checked(14).ok_or("no Ethernet header")?;
    match ether[12..] {
        [0x08, 0x00] => decode_v4(packet),
        [0x86, 0xdd] => decode_v6(packet),
        _ => Err(format!("EtherType {:02x?}", &ether[12..])),
    }
}

fn decode_v4(packet: &[u8]) -> Result<Decoded, String> {
    let fixed: &[u8; 20] = packet.first_chunk().ok_or("no IPv4 header")?;
    let header = usize::from(fixed[0] & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    let octets =
        |at: usize| IpAddr::V4(Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]));
    let body = packet.get(header..total).ok_or_else(|| format!("IPv4 of {header} to {total} bytes"))?;
    Ok(Decoded { src: octets(12), dst: octets(16), proto: fixed[9], ttl: fixed[8], body: body.to_vec() })
}

fn decode_v6(packet: &[u8]) -> Result<Decoded, String> {
    let fixed: &[u8; 40] = packet.first_chunk().ok_or("no IPv6 header")?;
    let len = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    let octets = |at: usize| {
        let mut addr = [0; 16];
        addr.copy_from_slice(&fixed[at..at + 16]);
        IpAddr::V6(Ipv6Addr::from(addr))
    };
    let body = packet.get(40..40 + len).ok_or_else(|| format!("IPv6 with {len} bytes"))?;
    Ok(Decoded { src: octets(8), dst: octets(24), proto: fixed[6], ttl: fixed[7], body: body.to_vec() })
}

/// Checks every checksum in a frame: IP header, transport, and the IP header that an ICMP error quotes.
///
/// # Errors
/// Which one is wrong.
pub fn checksums(frame: &[u8]) -> Result<(), String> {
    let packet = decode(frame)?;
    ip_header(frame.get(14..).unwrap_or_default())?;
    let Decoded { src, dst, proto, body, .. } = &packet;
    let no_sum = *proto == proto::UDP && src.is_ipv4() && body.get(6..8) == Some(&[0, 0]);
    let mut summed = match *proto {
        1 => Vec::new(),
        proto::TCP | proto::UDP | 58 => pseudo_header(*src, *dst, *proto, body.len()),
        _ => return Ok(()),
    };
    summed.extend(body);
    if !no_sum && internet_sum(&summed) != 0 {
        return Err(format!("checksum of protocol {proto} is off by {:#06x}", internet_sum(&summed)));
    }
    let is_error = match proto {
        1 => matches!(body.first(), Some(3 | 5 | 11 | 12)),
        58 => matches!(body.first(), Some(1..=4)),
        _ => false,
    };
    if is_error { ip_header(&body[8..]).map_err(|error| format!("quoted: {error}")) } else { Ok(()) }
}

fn ip_header(packet: &[u8]) -> Result<(), String> {
    let Some(first) = packet.first() else { return Err("no IP header".into()) };
    if first >> 4 != 4 {
        return Ok(());
    }
    let header = packet.get(..usize::from(first & 0xf) * 4).ok_or("IPv4 header is cut")?;
    match internet_sum(header) {
        0 => Ok(()),
        sum => Err(format!("checksum of the IPv4 header is off by {sum:#06x}")),
    }
}

/// Bytes for people: 16 to a line.
#[must_use]
pub fn dump(frame: &[u8]) -> String {
    let lines = frame.chunks(16).enumerate().map(|(line, bytes)| {
        let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("    {:3}  {}\n", line * 16, bytes.join(" "))
    });
    lines.collect()
}
