//! Which frames the kernel hands over: a classic BPF program for one packet socket.
//!
//! One socket sees all protocols of an interface (`ETH_P_ALL`), because only such a socket gets frames before programs at the
//! interface's ingress do. The data plane drops what is for a service's address and for no service, and so the solicitations by which a
//! neighbour asks, again and again, whether the owner of an IPv6 address is still there (RFC 4861 7.3.1): they are
//! sent to the address itself. A socket for IPv6 alone would miss them. What this costs is the filter, for each packet that comes in.

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_JEQ, BPF_JGT, BPF_JMP, BPF_K, BPF_LD, BPF_RET,
    PACKET_MULTICAST, SKF_AD_OFF, SKF_AD_PKTTYPE, SKF_AD_VLAN_TAG, SKF_AD_VLAN_TAG_PRESENT, sock_filter,
};

use crate::frame;

/// Loads.
const LOAD_BYTE: u32 = BPF_LD | BPF_B | BPF_ABS;
const LOAD_HALF: u32 = BPF_LD | BPF_H | BPF_ABS;
/// Jumps.
const IS: u32 = BPF_JMP | BPF_JEQ | BPF_K;
const IS_MORE: u32 = BPF_JMP | BPF_JGT | BPF_K;

/// What the kernel knows of a frame beside its bytes.
const PACKET_TYPE: u32 = (SKF_AD_OFF + SKF_AD_PKTTYPE) as u32;
const VLAN_TAG: u32 = (SKF_AD_OFF + SKF_AD_VLAN_TAG) as u32;
const VLAN_TAG_PRESENT: u32 = (SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT) as u32;

/// Offsets in frames, in bytes.
const ETHER_TYPE: u32 = 12;
const NEXT_HEADER: u32 = 14 + 6;
const HOP_LIMIT: u32 = 14 + 7;
const ICMP_TYPE: u32 = 14 + 40;

/// Takes ARP, and solicitations and advertisements of neighbours, that are for this host or everybody, without a VLAN tag: what
/// is tagged belongs to another interface.
pub(super) fn program() -> [sock_filter; 19] {
    let solicitation = u32::from(frame::SOLICITATION);
    [
        // 0: for another host?
        load(LOAD_BYTE, PACKET_TYPE),
        jump(IS_MORE, u32::from(PACKET_MULTICAST), 16, 0),
        // 2: a tag with a VLAN? One with priority only is none.
        load(LOAD_HALF, VLAN_TAG_PRESENT),
        jump(IS, 0, 3, 0),
        load(LOAD_HALF, VLAN_TAG),
        load(BPF_ALU | BPF_AND | BPF_K, 0x0fff),
        jump(IS, 0, 0, 11),
        // 7: ARP?
        load(LOAD_HALF, ETHER_TYPE),
        jump(IS, u32::from(frame::ARP), 8, 0),
        // 9: ICMPv6 of a neighbour?
        jump(IS, u32::from(frame::IPV6), 0, 8),
        load(LOAD_BYTE, NEXT_HEADER),
        jump(IS, u32::from(frame::ICMPV6), 0, 6),
        load(LOAD_BYTE, HOP_LIMIT),
        jump(IS, u32::from(frame::HOP_LIMIT), 0, 4),
        load(LOAD_BYTE, ICMP_TYPE),
        jump(IS, solicitation, 1, 0),
        jump(IS, u32::from(frame::ADVERTISEMENT), 0, 1),
        // 17: all of it.
        load(BPF_RET | BPF_K, u32::MAX),
        // 18: nothing.
        load(BPF_RET | BPF_K, 0),
    ]
}

fn load(code: u32, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

/// `jt` and `jf`: how many instructions to leave out if it is so, and if not.
fn jump(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    // Codes are bytes.
    sock_filter { code: u16::try_from(code).unwrap_or(0), jt, jf, k }
}
