//! Packets from scratch, every checksum right unless it is said to be wrong.

use std::net::IpAddr;

/// A MAC address.
pub type Mac = [u8; 6];

/// TCP flags.
pub mod flag {
    /// No more data.
    pub const FIN: u8 = 1;
    /// Synchronise.
    pub const SYN: u8 = 2;
    /// Reset.
    pub const RST: u8 = 4;
    /// Acknowledge.
    pub const ACK: u8 = 16;
}

/// IP protocol numbers.
pub mod proto {
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
}

/// An address and a port.
pub type Socket = (IpAddr, u16);

/// A checksum field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// The right one.
    Right,
    /// This one.
    Is(u16),
}

/// What an IP packet carries.
#[derive(Clone, Debug)]
pub enum Body {
    /// A TCP segment.
    Tcp {
        /// Source and destination port.
        ports: (u16, u16),
        /// Sequence number.
        seq: u32,
        /// Acknowledgement number.
        ack: u32,
        /// See [`flag`].
        flags: u8,
        /// Options, a multiple of four bytes.
        options: Vec<u8>,
        /// Data.
        data: Vec<u8>,
    },
    /// A UDP datagram.
    Udp {
        /// Source and destination port.
        ports: (u16, u16),
        /// Checksum.
        sum: Sum,
        /// Data.
        data: Vec<u8>,
    },
    /// An ICMP or ICMPv6 message.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// The second word of the header.
        rest: [u8; 4],
        /// Data.
        data: Vec<u8>,
    },
    /// Bytes of another protocol, or extension headers and what follows them.
    Other {
        /// Protocol or next header.
        proto: u8,
        /// Bytes.
        data: Vec<u8>,
    },
}

/// An Ethernet frame with an IP packet.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Ethernet destination and source.
    pub macs: (Mac, Mac),
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Time to live.
    pub ttl: u8,
    /// IPv4 identification; IPv6 flow label.
    pub id: u16,
    /// IPv4 flags and fragment offset.
    pub fragment: u16,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// What it carries.
    pub body: Body,
}

impl Packet {
    fn new(src: IpAddr, dst: IpAddr, body: Body) -> Self {
        let options = Vec::new();
        Self { macs: ([0; 6], [0; 6]), src, dst, ttl: 64, id: 0x1c46, fragment: 0x4000, options, body }
    }

    /// A TCP segment.
    #[must_use]
    pub fn tcp(src: Socket, dst: Socket, flags: u8) -> Self {
        let ack = if flags & flag::ACK != 0 { 0xa000_0001 } else { 0 };
        let (ports, options, data) = ((src.1, dst.1), Vec::new(), Vec::new());
        Self::new(src.0, dst.0, Body::Tcp { ports, seq: 0x5000_0001, ack, flags, options, data })
    }

    /// A UDP datagram.
    #[must_use]
    pub fn udp(src: Socket, dst: Socket) -> Self {
        let body = Body::Udp { ports: (src.1, dst.1), sum: Sum::Right, data: b"portolan".to_vec() };
        Self::new(src.0, dst.0, body)
    }

    /// A TCP segment or UDP datagram.
    #[must_use]
    pub fn of(proto: u8, src: Socket, dst: Socket, flags: u8) -> Self {
        if proto == proto::TCP { Self::tcp(src, dst, flags) } else { Self::udp(src, dst) }
    }

    /// An ICMP message.
    #[must_use]
    pub fn icmp(src: IpAddr, dst: IpAddr, kind: u8, code: u8, rest: [u8; 4], data: Vec<u8>) -> Self {
        Self::new(src, dst, Body::Icmp { kind, code, rest, data })
    }

    /// A packet of another protocol, or with extension headers.
    #[must_use]
    pub fn other(src: IpAddr, dst: IpAddr, proto: u8, data: Vec<u8>) -> Self {
        Self::new(src, dst, Body::Other { proto, data })
    }

    /// With these Ethernet addresses.
    #[must_use]
    pub fn macs(mut self, dst: Mac, src: Mac) -> Self {
        self.macs = (dst, src);
        self
    }

    /// With this time to live.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// As the data plane composes packets itself: no identification.
    #[must_use]
    pub fn composed(mut self) -> Self {
        self.id = 0;
        self
    }

    /// With this sequence and acknowledgement number.
    #[must_use]
    pub fn numbers(mut self, new_seq: u32, new_ack: u32) -> Self {
        if let Body::Tcp { seq, ack, .. } = &mut self.body {
            (*seq, *ack) = (new_seq, new_ack);
        }
        self
    }

    /// With this data.
    #[must_use]
    pub fn data(mut self, bytes: &[u8]) -> Self {
        let (Body::Tcp { data, .. }
        | Body::Udp { data, .. }
        | Body::Icmp { data, .. }
        | Body::Other { data, .. }) = &mut self.body;
        *data = bytes.to_vec();
        self
    }

    /// With this UDP checksum.
    #[must_use]
    pub fn udp_sum(mut self, new: Sum) -> Self {
        if let Body::Udp { sum, .. } = &mut self.body {
            *sum = new;
        }
        self
    }

    /// With these IPv4 options.
    #[must_use]
    pub fn ip_options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// With these IPv4 fragment flags and offset.
    #[must_use]
    pub fn fragment(mut self, fragment: u16) -> Self {
        self.fragment = fragment;
        self
    }

    /// The pieces that a router makes of it: up to each of these bytes of what follows the IP header, all multiples of
    /// eight, and the rest.
    #[must_use]
    pub fn cut(&self, at: &[usize]) -> Vec<Self> {
        let (proto, body) = self.transport();
        let starts = std::iter::once(0).chain(at.iter().copied());
        let ends = at.iter().copied().chain([body.len()]);
        starts
            .zip(ends)
            .map(|(start, end)| self.piece(proto, &body[start..end], start, end < body.len()))
            .collect()
    }

    fn piece(&self, proto: u8, bytes: &[u8], start: usize, more: bool) -> Self {
        let (offset, more) = ((start / 8) as u16, u16::from(more));
        let (proto, data) = if self.src.is_ipv4() {
            (proto, bytes.to_vec())
        } else {
            let [high, low] = (offset << 3 | more).to_be_bytes();
            let [a, b] = self.id.to_be_bytes();
            (44, [&[proto, 0, high, low, 0, 7, a, b], bytes].concat())
        };
        Self { fragment: offset | more << 13, body: Body::Other { proto, data }, ..self.clone() }
    }

    /// The frame.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let ether_type: u16 = if self.src.is_ipv4() { 0x0800 } else { 0x86dd };
        let mut bytes = [self.macs.0, self.macs.1].concat();
        bytes.extend(ether_type.to_be_bytes());
        bytes.extend(self.ip());
        bytes
    }

    /// The IP packet alone.
    #[must_use]
    pub fn ip(&self) -> Vec<u8> {
        let (proto, body) = self.transport();
        let mut bytes = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => self.v4(proto, body.len(), src.octets(), dst.octets()),
            (IpAddr::V6(src), IpAddr::V6(dst)) => self.v6(proto, body.len(), src.octets(), dst.octets()),
            _ => panic!("a packet from {} to {}", self.src, self.dst),
        };
        bytes.extend(body);
        bytes
    }

    /// The start of the IP packet, as an ICMP error quotes it: its header and `len` bytes more.
    #[must_use]
    pub fn quoted(&self, len: usize) -> Vec<u8> {
        let mut bytes = self.ip();
        bytes.truncate(if self.src.is_ipv4() { 20 } else { 40 } + len);
        bytes
    }

    /// The checksum that stands in its transport header.
    #[must_use]
    pub fn transport_sum(&self) -> u16 {
        let (proto, body) = self.transport();
        let at = if proto == proto::TCP { 16 } else { 6 };
        u16::from_be_bytes([body[at], body[at + 1]])
    }

    fn v4(&self, proto: u8, len: usize, src: [u8; 4], dst: [u8; 4]) -> Vec<u8> {
        let header = 20 + self.options.len();
        let mut bytes = vec![0x40 | (header / 4) as u8, 0];
        bytes.extend(((header + len) as u16).to_be_bytes());
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([self.ttl, proto, 0, 0]);
        bytes.extend(src);
        bytes.extend(dst);
        bytes.extend(&self.options);
        let sum = internet_sum(&bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn v6(&self, proto: u8, len: usize, src: [u8; 16], dst: [u8; 16]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0];
        bytes.extend(self.id.to_be_bytes());
        bytes.extend((len as u16).to_be_bytes());
        bytes.extend([proto, self.ttl]);
        bytes.extend(src);
        bytes.extend(dst);
        bytes
    }

    fn transport(&self) -> (u8, Vec<u8>) {
        match &self.body {
            Body::Tcp { ports, seq, ack, flags, options, data } => {
                let mut bytes = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
                bytes.extend(seq.to_be_bytes());
                bytes.extend(ack.to_be_bytes());
                bytes.extend([((5 + options.len() / 4) << 4) as u8, *flags, 0, 0, 0, 0, 0, 0]);
                bytes.extend(options);
                bytes.extend(data);
                if *flags & flag::RST == 0 {
                    bytes[14..16].copy_from_slice(&0xfaf0u16.to_be_bytes());
                }
                self.seal(proto::TCP, bytes, 16)
            }
            Body::Udp { ports, sum, data } => {
                let mut bytes = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
                bytes.extend((8 + data.len() as u16).to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(data);
                let (proto, mut bytes) = self.seal(proto::UDP, bytes, 6);
                match sum {
                    // RFC 768: all zeros mean "none".
                    Sum::Right if bytes[6..8] == [0, 0] => bytes[6..8].fill(0xff),
                    Sum::Right => {}
                    Sum::Is(sum) => bytes[6..8].copy_from_slice(&sum.to_be_bytes()),
                }
                (proto, bytes)
            }
            Body::Icmp { kind, code, rest, data } => {
                let mut bytes = vec![*kind, *code, 0, 0];
                bytes.extend(rest);
                bytes.extend(data);
                self.seal(if self.src.is_ipv4() { 1 } else { 58 }, bytes, 2)
            }
            Body::Other { proto, data } => (*proto, data.clone()),
        }
    }

    /// Puts the checksum in its place.
    fn seal(&self, proto: u8, mut bytes: Vec<u8>, at: usize) -> (u8, Vec<u8>) {
        let mut summed =
            if proto == 1 { Vec::new() } else { pseudo_header(self.src, self.dst, proto, bytes.len()) };
        summed.extend(&bytes);
        bytes[at..at + 2].copy_from_slice(&internet_sum(&summed).to_be_bytes());
        (proto, bytes)
    }
}

/// The pseudo header that TCP, UDP and ICMPv6 include in their checksum.
#[must_use]
pub fn pseudo_header(src: IpAddr, dst: IpAddr, proto: u8, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for addr in [src, dst] {
        match addr {
            IpAddr::V4(addr) => bytes.extend(addr.octets()),
            IpAddr::V6(addr) => bytes.extend(addr.octets()),
        }
    }
    bytes.extend((len as u32).to_be_bytes());
    bytes.extend([0, 0, 0, proto]);
    bytes
}

/// The Internet checksum of bytes, one 16-bit word after the other (RFC 1071 1).
#[must_use]
pub fn internet_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
