//! Which frames the kernel hands over: classic BPF programs for packet sockets.
//!
//! A socket for ARP alone costs other packets nothing. Neighbour discovery needs one that sees all protocols (`ETH_P_ALL`), because
//! only such a socket gets frames before programs at the interface's ingress do. The data plane drops what is for a service's
//! address and for no service, and so the solicitations by which a neighbour asks, again and again, whether the owner of an
//! IPv6 address is still there (RFC 4861 7.3.1): they are sent to the address itself. A socket for IPv6 alone would miss them, and
//! neighbours would lose packets. What this costs is a few instructions and a reference for each packet that comes in, so it is there only
//! while the node owns an IPv6 address.

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

/// Takes ARP, where that is all there is: for this host or everybody, and without a VLAN tag, because what is tagged belongs to
/// another interface.
pub(super) fn arp() -> Vec<sock_filter> {
    vec![
        // 0: for another host?
        load(LOAD_BYTE, PACKET_TYPE),
        jump(IS_MORE, u32::from(PACKET_MULTICAST), 6, 0),
        // 2: a tag with a VLAN? One with a priority only is none.
        load(LOAD_HALF, VLAN_TAG_PRESENT),
        jump(IS, 0, 3, 0),
        load(LOAD_HALF, VLAN_TAG),
        load(BPF_ALU | BPF_AND | BPF_K, 0x0fff),
        jump(IS, 0, 0, 1),
        // 7: all of it.
        load(BPF_RET | BPF_K, u32::MAX),
        // 8: nothing.
        load(BPF_RET | BPF_K, 0),
    ]
}

/// Takes solicitations and advertisements of neighbours, under the same conditions.
pub(super) fn neighbours() -> Vec<sock_filter> {
    let rest = arp();
    // What most packets are not comes first. Offsets lead to the last instruction of the rest, 8 after its first one.
    let first = [
        load(LOAD_HALF, ETHER_TYPE),
        jump(IS, u32::from(frame::IPV6), 0, 7 + 8),
        load(LOAD_BYTE, NEXT_HEADER),
        jump(IS, u32::from(frame::ICMPV6), 0, 5 + 8),
        load(LOAD_BYTE, HOP_LIMIT),
        jump(IS, u32::from(frame::HOP_LIMIT), 0, 3 + 8),
        load(LOAD_BYTE, ICMP_TYPE),
        jump(IS, u32::from(frame::SOLICITATION), 1, 0),
        jump(IS, u32::from(frame::ADVERTISEMENT), 0, 8),
    ];
    first.into_iter().chain(rest).collect()
}

fn load(code: u32, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

/// `jt` and `jf`: how many instructions to leave out if it is so, and if not.
fn jump(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    // Codes are bytes.
    sock_filter { code: u16::try_from(code).unwrap_or(0), jt, jf, k }
}
