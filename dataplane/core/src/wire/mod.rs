//! From bytes to a [`Packet`]: checks and reads, never looks anything up.

mod buried;
mod piece;
pub mod v4;
pub mod v6;

use portolan_abi::FlowKey;

use crate::{Family, Reason};

pub use buried::{Buried, buried_key};
pub(crate) use buried::{behind_extensions, behind_options};
pub use piece::{FirstPiece, Fragmented, Piece, is_piece, piece};

/// Length of an Ethernet header. VLAN tags are taken off before a program sees the packet.
pub const ETHERNET: usize = 14;

/// TCP flag bits.
pub mod tcp {
    /// No more data.
    pub const FIN: u8 = 1;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 2;
    /// Reset.
    pub const RST: u8 = 4;
    /// The acknowledgement number is valid.
    pub const ACK: u8 = 16;
}

/// IP protocol numbers of the protocols with ports.
pub mod proto {
    /// Transmission control protocol.
    pub const TCP: u8 = 6;
    /// User datagram protocol.
    pub const UDP: u8 = 17;
}

/// A packet as a program may read it, from the Ethernet header on.
pub trait Frame {
    /// Whether it is the first piece of a packet that was cut, to be read as if it were the whole.
    const FIRST_PIECE: bool = false;

    /// `N` words in packet byte order at byte `at`; `None` if the packet ends before.
    fn words<const N: usize>(&self, at: usize) -> Option<[u32; N]>;
    /// Length of the whole packet in bytes.
    fn len(&self) -> u32;
    /// Whether the packet has no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Fields of an IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Protocol of what follows the fixed header.
    pub proto: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Bytes that follow the fixed header; 0 if the header does not say (jumbograms).
    pub len: u16,
    /// Why the transport header cannot be read; [`Kind::Protocol`] if it can.
    pub kind: Kind,
}

/// What a packet is. Without data, and everything beside it always has a value: the compiler may leave what has none
/// in any register, and the kernel refuses programs that touch such a register even in passing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TCP segment.
    Tcp,
    /// A UDP datagram.
    Udp,
    /// An ICMP echo request.
    Echo,
    /// The answer to one.
    EchoReply,
    /// An ICMP error.
    IcmpError,
    /// Part of a fragmented packet.
    Fragment,
    /// IP options or extension headers stand before the transport header.
    Options,
    /// Another protocol, or another ICMP message.
    Protocol,
    /// The packet ends before its headers do.
    Truncated,
    /// A header contradicts itself.
    Malformed,
}

impl Kind {
    /// Why nothing can be done with the packet, if so.
    #[inline(always)]
    #[must_use]
    pub const fn defect(self) -> Option<Reason> {
        match self {
            Self::Truncated => Some(Reason::Truncated),
            Self::Malformed => Some(Reason::Malformed),
            _ => None,
        }
    }
}

/// The fields of a TCP header that decisions need, host byte order; zero for all that is not TCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// See [`tcp`].
    pub flags: u8,
    /// Length of the TCP header in bytes.
    pub header: u16,
}

impl Segment {
    /// Whether the segment opens a connection.
    #[inline(always)]
    #[must_use]
    pub fn opens(self) -> bool {
        self.flags & (tcp::SYN | tcp::ACK) == tcp::SYN
    }
}

/// A packet, read. After a [defect](Kind::defect), only what stands before it has its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<F: Family> {
    /// The flow it belongs to; the ports are zero where there are none.
    pub key: FlowKey<F::Addr>,
    /// Its IP header.
    pub header: F::Header,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Bytes that follow the IP header, as the header says.
    pub len: u16,
    /// What it is.
    pub kind: Kind,
    /// Its TCP header.
    pub segment: Segment,
}

impl<F: Family> Packet<F> {
    /// Whether it is TCP or UDP.
    #[inline(always)]
    #[must_use]
    pub fn has_ports(&self) -> bool {
        matches!(self.kind, Kind::Tcp | Kind::Udp)
    }
}

/// Room for the transport header in a packet whose IP header cannot tell its length.
const BEYOND: u32 = u32::MAX;

/// Reads a packet.
#[inline(always)]
pub fn parse<F: Family, P: Frame>(frame: &P) -> Packet<F> {
    let (header, whole) = match F::header(frame, ETHERNET) {
        Some(header) => (header, true),
        None => (F::EMPTY_HEADER, false),
    };
    let fields = fields::<F, P>(frame, &header);
    let end = (ETHERNET + F::HEADER_LEN) as u32 + u32::from(fields.len);
    let transport = if !whole || (fields.kind != Kind::Malformed && frame.len() < end) {
        Transport::none(Kind::Truncated)
    } else if fields.kind != Kind::Protocol {
        Transport::none(fields.kind)
    } else {
        // The frame may be padded, so its length says nothing about the packet's, but for one over 64 KiB.
        let room = match fields.len {
            0 if frame.len() > u32::from(u16::MAX) => BEYOND,
            len => u32::from(len).saturating_sub((start::<F, P>() - ETHERNET - F::HEADER_LEN) as u32),
        };
        transport::<F, P>(frame, fields.proto, room)
    };
    let key =
        FlowKey { src: fields.src, dst: fields.dst, ports: transport.ports, proto: u32::from(fields.proto) };
    let Transport { kind, segment, .. } = transport;
    Packet { key, header, ttl: fields.ttl, len: fields.len, kind, segment }
}

/// The flow of a packet that [`parse`] found to have ports; meaningless for any other.
#[inline(always)]
pub fn key<F: Family, P: Frame>(frame: &P) -> Option<FlowKey<F::Addr>> {
    let fields = fields::<F, P>(frame, &F::header(frame, ETHERNET)?);
    let [ports] = frame.words(start::<F, P>())?;
    Some(FlowKey { src: fields.src, dst: fields.dst, ports, proto: u32::from(fields.proto) })
}

/// Where the transport header begins.
#[inline(always)]
const fn start<F: Family, P: Frame>() -> usize {
    ETHERNET + F::HEADER_LEN + if P::FIRST_PIECE { F::FRAGMENT_HEADER } else { 0 }
}

/// The IP header's fields; of a first piece, as those of the whole packet would be, but for the length.
#[inline(always)]
fn fields<F: Family, P: Frame>(frame: &P, header: &F::Header) -> Fields<F::Addr> {
    let fields = F::fields(header);
    if P::FIRST_PIECE
        && let Some(said) = F::fragmented(frame, header)
    {
        return Fields { proto: said.proto, kind: Kind::Protocol, ..fields };
    }
    fields
}

/// What the transport header says.
#[derive(Clone, Copy)]
struct Transport {
    kind: Kind,
    ports: u32,
    segment: Segment,
}

impl Transport {
    #[inline(always)]
    const fn none(kind: Kind) -> Self {
        Self { kind, ports: 0, segment: Segment { seq: 0, ack: 0, flags: 0, header: 0 } }
    }
}

/// Reads the transport header; `room` is how many bytes there are from it on.
#[inline(always)]
fn transport<F: Family, P: Frame>(frame: &P, proto: u8, room: u32) -> Transport {
    let at = start::<F, P>();
    if proto == proto::TCP {
        return match frame.words(at) {
            Some(words) if room >= 20 => segment(words, room),
            _ => Transport::none(Kind::Truncated),
        };
    }
    if proto != proto::UDP && proto != F::ICMP {
        return Transport::none(Kind::Protocol);
    }
    let Some([first, second]) = frame.words(at) else { return Transport::none(Kind::Truncated) };
    if room < 8 {
        return Transport::none(Kind::Truncated);
    }
    if proto == proto::UDP {
        datagram::<P>(first, second, room)
    } else {
        Transport::none(icmp_kind::<F>(first))
    }
}

#[inline(always)]
fn segment([ports, seq, ack, control, _]: [u32; 5], room: u32) -> Transport {
    let control = u32::from_be(control);
    let header = (control >> 28) as u16 * 4;
    if header < 20 || room < u32::from(header) {
        return Transport::none(Kind::Malformed);
    }
    let flags = (control >> 16) as u8;
    let segment = Segment { seq: u32::from_be(seq), ack: u32::from_be(ack), flags, header };
    Transport { kind: Kind::Tcp, ports, segment }
}

#[inline(always)]
fn datagram<P: Frame>(ports: u32, length: u32, room: u32) -> Transport {
    let claimed = u32::from_be(length) >> 16;
    // A length of 0 is a jumbogram's (RFC 2675) or that of a packet the kernel will still cut in pieces.
    let unsaid = claimed == 0 && room == BEYOND;
    // The length of the whole is not in its first piece.
    let beyond = !P::FIRST_PIECE && claimed > room;
    if !unsaid && (claimed < 8 || beyond) {
        return Transport::none(Kind::Malformed);
    }
    Transport { ports, ..Transport::none(Kind::Udp) }
}

#[inline(always)]
fn icmp_kind<F: Family>(first: u32) -> Kind {
    let kind = (u32::from_be(first) >> 24) as u8;
    if kind == F::ECHO.0 {
        Kind::Echo
    } else if kind == F::ECHO.1 {
        Kind::EchoReply
    } else if F::is_icmp_error(kind) {
        Kind::IcmpError
    } else {
        Kind::Protocol
    }
}

/// Source and destination port exchanged.
#[inline(always)]
#[must_use]
pub fn swap_ports(ports: u32) -> u32 {
    ports.rotate_left(16)
}

/// The word of the ports, from both in network byte order.
#[inline(always)]
#[must_use]
pub fn join_ports(source: u16, destination: u16) -> u32 {
    if cfg!(target_endian = "little") {
        u32::from(source) | u32::from(destination) << 16
    } else {
        u32::from(source) << 16 | u32::from(destination)
    }
}

/// Source and destination port, in network byte order.
#[inline(always)]
#[must_use]
pub fn split_ports(ports: u32) -> (u16, u16) {
    if cfg!(target_endian = "little") {
        (ports as u16, (ports >> 16) as u16)
    } else {
        ((ports >> 16) as u16, ports as u16)
    }
}
