//! What differs between IPv4 and IPv6. All else is generic over [`Family`].

use core::fmt::Debug;

use portolan_abi::{Config, Words};

use crate::wire::{self, Buried, ETHERNET, Fields, Fragmented, Frame, v4, v6};
use crate::{checksum, flows};

/// An address family as a type.
pub trait Family: Copy + Eq + Debug + 'static {
    /// An address, in network byte order.
    type Addr: Address;
    /// The fixed IP header as words.
    type Header: Copy + Eq + Debug;
    /// A header of zeros.
    const EMPTY_HEADER: Self::Header;
    /// Length of [`Self::Header`] in bytes.
    const HEADER_LEN: usize;
    /// Bytes of the header that a piece of a packet has besides.
    const FRAGMENT_HEADER: usize;
    /// IP protocol number of the family's ICMP.
    const ICMP: u8;
    /// IP protocol number of a packet of the same family inside of another (RFC 2003, RFC 2473).
    const TUNNEL: u8;
    /// What [`compose`](Self::compose) takes for the length of a packet whose header cannot tell it.
    const UNSAID: u16;
    /// ICMP types of echo request and echo reply.
    const ECHO: (u8, u8);
    /// EtherType, host byte order.
    const ETHERTYPE: u16;
    /// UDP ports of DHCP, server's and client's (RFC 2131 4.1, RFC 8415 7.2), host byte order.
    const DHCP: (u16, u16);

    /// Loads the IP header at byte `at` of the frame.
    fn header<P: Frame>(frame: &P, at: usize) -> Option<Self::Header>;
    /// Reads the header's fields, checking what can be checked without the rest of the packet.
    fn fields(header: &Self::Header) -> Fields<Self::Addr>;
    /// What a [`Kind::Fragment`](crate::wire::Kind::Fragment) says of its packet.
    fn fragmented<P: Frame>(frame: &P, header: &Self::Header) -> Option<Fragmented>;
    /// Where the transport header of a [`Kind::Options`](crate::wire::Kind::Options) is, if that can be told.
    fn buried<P: Frame>(frame: &P, header: &Self::Header) -> Option<Buried>;
    /// The header with other addresses and time to live; IPv4's header checksum is updated.
    fn rewrite(header: Self::Header, src: Self::Addr, dst: Self::Addr, ttl: u8) -> Self::Header;
    /// A new header for a packet that we send: `len` bytes of protocol `proto` follow it.
    fn compose(src: Self::Addr, dst: Self::Addr, proto: u8, len: u16) -> Self::Header;
    /// One's complement sum of the header's words, for quoting it inside of an ICMP error.
    fn header_sum(header: &Self::Header) -> u32;
    /// Whether an ICMP message of this type is an error that quotes a packet.
    fn is_icmp_error(kind: u8) -> bool;
    /// First word of a "port unreachable" message, checksum zero.
    fn port_unreachable() -> u32;
    /// Both words of the message that only packets of `mtu` bytes pass, checksum zero.
    fn too_big(mtu: u32) -> [u32; 2];
    /// Whether the IP header has a checksum of its own, so that its words' sum does not change with its addresses.
    const HEADER_CHECKSUM: bool;
    /// Whether ICMP's checksum covers a pseudo header (RFC 4443 2.3).
    const ICMP_PSEUDO: bool;
    /// The node's own address; `None` if it has none in this family.
    fn node_address(config: &Config) -> Option<Self::Addr>;
    /// The client address that a pod sees when it reaches itself through a service.
    fn hairpin_address() -> Self::Addr;
}

/// What the packet path asks of an address.
pub trait Address: Copy + Eq + Debug {
    /// The unspecified address.
    const UNSPECIFIED: Self;
    /// One's complement sum of the 16-bit words, not folded.
    fn sum(self) -> u32;
    /// `sum(new) - sum(self)` in one's complement, not folded.
    fn difference(self, new: Self) -> u32;
    /// Mixes the address into a hash.
    fn mix(self, hash: u32) -> u32;
    /// Not zero if the other address is another one. Without a branch, and word by word: all at once would take stack.
    fn differs(&self, other: &Self) -> u32;
    /// Mixes the address with another for the [flow table](crate::flows).
    fn products(self, other: Self, secret: [u32; 2]) -> u64;
    /// 127/8 or ::1.
    fn is_loopback(self) -> bool;
    /// Multicast, or IPv4's limited broadcast.
    fn is_multicast(self) -> bool;
    /// fe80::/10 or unspecified: what a host uses before it has an address.
    fn is_link_local_control(self) -> bool;
}

/// IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V6;

impl Family for V4 {
    type Addr = Words<1>;
    type Header = [u32; 5];
    const EMPTY_HEADER: [u32; 5] = [0; 5];
    const HEADER_LEN: usize = 20;
    const FRAGMENT_HEADER: usize = 0;
    const ICMP: u8 = 1;
    const TUNNEL: u8 = 4;
    /// A total length of 2^16, of which zero is left.
    const UNSAID: u16 = u16::MAX - 19;
    const ECHO: (u8, u8) = (8, 0);
    const ETHERTYPE: u16 = 0x0800;
    const DHCP: (u16, u16) = (67, 68);
    const HEADER_CHECKSUM: bool = true;
    const ICMP_PSEUDO: bool = false;

    #[inline(always)]
    fn header<P: Frame>(frame: &P, at: usize) -> Option<[u32; 5]> {
        frame.words(at)
    }

    #[inline(always)]
    fn fields(header: &[u32; 5]) -> Fields<Words<1>> {
        v4::fields(header)
    }

    #[inline(always)]
    fn fragmented<P: Frame>(_: &P, header: &[u32; 5]) -> Option<Fragmented> {
        Some(v4::fragmented(header))
    }

    #[inline(always)]
    fn buried<P: Frame>(_: &P, header: &[u32; 5]) -> Option<Buried> {
        wire::behind_options(header)
    }

    #[inline(always)]
    fn rewrite(header: [u32; 5], src: Words<1>, dst: Words<1>, ttl: u8) -> [u32; 5] {
        v4::rewrite(header, src, dst, ttl)
    }

    #[inline(always)]
    fn compose(src: Words<1>, dst: Words<1>, proto: u8, len: u16) -> [u32; 5] {
        v4::compose(src, dst, proto, len)
    }

    #[inline(always)]
    fn header_sum(header: &[u32; 5]) -> u32 {
        checksum::sum(header)
    }

    /// Unreachable, redirect, time exceeded, parameter problem (RFC 792). Source quench is obsolete (RFC 6633).
    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        matches!(kind, 3 | 5 | 11 | 12)
    }

    /// Type 3, code 3 (RFC 792).
    #[inline(always)]
    fn port_unreachable() -> u32 {
        u32::from_ne_bytes([3, 3, 0, 0])
    }

    /// Type 3, code 4; the size is in the lower half of the second word (RFC 1191 4).
    #[inline(always)]
    fn too_big(mtu: u32) -> [u32; 2] {
        [u32::from_ne_bytes([3, 4, 0, 0]), (mtu & 0xffff).to_be()]
    }

    #[inline(always)]
    fn node_address(config: &Config) -> Option<Words<1>> {
        (config.node_v4 != Words::ZERO).then_some(config.node_v4)
    }

    #[inline(always)]
    fn hairpin_address() -> Words<1> {
        const { Words::<1>::from_octets(portolan_abi::GATEWAY_V4) }
    }
}

impl Family for V6 {
    type Addr = Words<4>;
    type Header = [u32; 10];
    const EMPTY_HEADER: [u32; 10] = [0; 10];
    const HEADER_LEN: usize = 40;
    const FRAGMENT_HEADER: usize = 8;
    const ICMP: u8 = 58;
    const TUNNEL: u8 = 41;
    const UNSAID: u16 = 0;
    const ECHO: (u8, u8) = (128, 129);
    const ETHERTYPE: u16 = 0x86dd;
    const DHCP: (u16, u16) = (547, 546);
    const HEADER_CHECKSUM: bool = false;
    const ICMP_PSEUDO: bool = true;

    #[inline(always)]
    fn header<P: Frame>(frame: &P, at: usize) -> Option<[u32; 10]> {
        frame.words(at)
    }

    #[inline(always)]
    fn fields(header: &[u32; 10]) -> Fields<Words<4>> {
        v6::fields(header)
    }

    #[inline(always)]
    fn fragmented<P: Frame>(frame: &P, _: &[u32; 10]) -> Option<Fragmented> {
        Some(v6::fragmented(frame.words(ETHERNET + Self::HEADER_LEN)?))
    }

    #[inline(always)]
    fn buried<P: Frame>(frame: &P, header: &[u32; 10]) -> Option<Buried> {
        wire::behind_extensions(frame, header)
    }

    #[inline(always)]
    fn rewrite(header: [u32; 10], src: Words<4>, dst: Words<4>, ttl: u8) -> [u32; 10] {
        v6::rewrite(header, src, dst, ttl)
    }

    #[inline(always)]
    fn compose(src: Words<4>, dst: Words<4>, proto: u8, len: u16) -> [u32; 10] {
        v6::compose(src, dst, proto, len)
    }

    #[inline(always)]
    fn header_sum(header: &[u32; 10]) -> u32 {
        checksum::sum(header)
    }

    /// Unreachable, packet too big, time exceeded, parameter problem (RFC 4443).
    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        matches!(kind, 1..=4)
    }

    /// Type 1, code 4 (RFC 4443 3.1).
    #[inline(always)]
    fn port_unreachable() -> u32 {
        u32::from_ne_bytes([1, 4, 0, 0])
    }

    /// Type 2, code 0 (RFC 4443 3.2).
    #[inline(always)]
    fn too_big(mtu: u32) -> [u32; 2] {
        [u32::from_ne_bytes([2, 0, 0, 0]), mtu.to_be()]
    }

    #[inline(always)]
    fn node_address(config: &Config) -> Option<Words<4>> {
        (config.node_v6 != Words::ZERO).then_some(config.node_v6)
    }

    #[inline(always)]
    fn hairpin_address() -> Words<4> {
        const { Words::<4>::from_octets(portolan_abi::HAIRPIN_V6) }
    }
}

impl Address for Words<1> {
    const UNSPECIFIED: Self = Words::ZERO;

    #[inline(always)]
    fn sum(self) -> u32 {
        checksum::sum(&self.0)
    }

    #[inline(always)]
    fn difference(self, new: Self) -> u32 {
        checksum::difference(self.0[0], new.0[0])
    }

    #[inline(always)]
    fn mix(self, hash: u32) -> u32 {
        crate::select::mix(hash, self.0[0])
    }

    #[inline(always)]
    fn differs(&self, other: &Self) -> u32 {
        self.0[0] ^ other.0[0]
    }

    #[inline(always)]
    fn products(self, other: Self, secret: [u32; 2]) -> u64 {
        flows::product(self.0[0], other.0[0], 0, secret)
    }

    #[inline(always)]
    fn is_loopback(self) -> bool {
        u32::from_be(self.0[0]) >> 24 == 127
    }

    #[inline(always)]
    fn is_multicast(self) -> bool {
        u32::from_be(self.0[0]) >> 28 == 0xe || self.0[0] == u32::MAX
    }

    #[inline(always)]
    fn is_link_local_control(self) -> bool {
        self.0[0] == 0
    }
}

impl Address for Words<4> {
    const UNSPECIFIED: Self = Words::ZERO;

    #[inline(always)]
    fn sum(self) -> u32 {
        checksum::sum(&self.0)
    }

    /// At most 8 × 2 × 0xffff, so it cannot overflow.
    #[inline(always)]
    fn difference(self, new: Self) -> u32 {
        let [a, b, c, d] = self.0;
        let [e, f, g, h] = new.0;
        checksum::difference(a, e)
            + checksum::difference(b, f)
            + checksum::difference(c, g)
            + checksum::difference(d, h)
    }

    #[inline(always)]
    fn mix(self, hash: u32) -> u32 {
        let [a, b, c, d] = self.0;
        let hash = crate::select::mix(hash, a);
        let hash = crate::select::mix(hash, b);
        let hash = crate::select::mix(hash, c);
        crate::select::mix(hash, d)
    }

    #[inline(always)]
    fn differs(&self, other: &Self) -> u32 {
        let ([a, b, c, d], [e, f, g, h]) = (&self.0, &other.0);
        (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h)
    }

    #[inline(always)]
    fn products(self, other: Self, secret: [u32; 2]) -> u64 {
        let [a, b, c, d] = self.0;
        let [e, f, g, h] = other.0;
        flows::product(a, e, 0, secret)
            .wrapping_add(flows::product(b, f, 1, secret))
            .wrapping_add(flows::product(c, g, 2, secret))
            .wrapping_add(flows::product(d, h, 3, secret))
    }

    #[inline(always)]
    fn is_loopback(self) -> bool {
        self.0 == [0, 0, 0, 1u32.to_be()]
    }

    #[inline(always)]
    fn is_multicast(self) -> bool {
        u32::from_be(self.0[0]) >> 24 == 0xff
    }

    #[inline(always)]
    fn is_link_local_control(self) -> bool {
        u32::from_be(self.0[0]) >> 22 == 0xfe80 >> 6 || self.0 == [0; 4]
    }
}
