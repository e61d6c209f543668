//! What netfilter has been told: the chains of nftables, by netlink (nfnetlink(7)). Only read, never written.
//!
//! `iptables` keeps its chains there too, unless it is the older kind: that one's tables are listed in
//! `/proc/net/ip_tables_names`. Rules are not read: chains and how many rules they have is what tells whose they are, and
//! a proxy's rules are many.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::sockets::{acknowledged, message};

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// `ip`, `ip6`, `inet`, `arp`, `bridge` or `netdev`.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Where packets enter it; `None`: by jumps of other chains only.
    pub base: Option<Base>,
    /// Rules in it, and jumps to it.
    pub uses: u32,
}

/// What a chain has that packets enter from a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// Which hook.
    pub hook: Hook,
    /// What no rule decides about is dropped.
    pub drops: bool,
}

/// A hook of the families of IP (`enum nf_inet_hooks`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// What arrives.
    Prerouting,
    /// What is for the node.
    Input,
    /// What the node sends on.
    Forward,
    /// What the node sends.
    Output,
    /// What leaves.
    Postrouting,
    /// Another one, or one of another family.
    Other,
}

/// All chains of the calling thread's network namespace. A kernel without nftables has none; one that has them as a module
/// loads it for being asked. What changes meanwhile may be missing.
///
/// # Errors
/// The kernel refuses.
pub fn chains() -> io::Result<Vec<Chain>> {
    let mut netlink = match Socket::new(NETLINK_NETFILTER) {
        Ok(netlink) => netlink,
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    netlink.bind_auto()?;
    netlink.connect(&SocketAddr::new(0, 0))?;
    netlink.send(&get_chains(), 0)?;
    let (mut found, mut buffer) = (Vec::new(), vec![0; DATAGRAM]);
    loop {
        let length = netlink.recv(&mut &mut buffer[..], 0)?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some((kind, payload)) = message(&mut rest) {
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(found),
                libc::NLMSG_ERROR => match acknowledged(payload) {
                    // The kernel has no nftables.
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(Vec::new()),
                    answer => answer?,
                },
                _ => found.extend(chain(payload)),
            }
        }
    }
}

/// `NFT_MSG_GETCHAIN` for all families: header, then `struct nfgenmsg`.
fn get_chains() -> Vec<u8> {
    let length = (HEADER + NFGENMSG) as u32;
    let mut bytes = Vec::with_capacity(length as usize);
    bytes.extend(length.to_ne_bytes());
    bytes.extend((NFTABLES << 8 | GET_CHAIN).to_ne_bytes());
    bytes.extend(((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    bytes.extend([0; 8 + NFGENMSG]);
    bytes
}

/// From the payload of a message: `struct nfgenmsg`, attributes.
fn chain(payload: &[u8]) -> Option<Chain> {
    let family = family(*payload.first()?);
    let attributes = payload.get(NFGENMSG..)?;
    let hook = attribute(attributes, HOOK).and_then(|hook| Some(hook_of(family, word(hook, HOOK_NUMBER)?)));
    let drops = word(attributes, POLICY) == Some(DROP);
    Some(Chain {
        family,
        table: text(attribute(attributes, TABLE)?),
        name: text(attribute(attributes, NAME)?),
        base: hook.map(|hook| Base { hook, drops }),
        uses: word(attributes, USE).unwrap_or(0),
    })
}

/// `NFPROTO_*` of linux/netfilter.h.
fn family(number: u8) -> &'static str {
    match number {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "unknown",
    }
}

fn hook_of(family: &str, number: u32) -> Hook {
    match number {
        _ if !["ip", "ip6", "inet"].contains(&family) => Hook::Other,
        0 => Hook::Prerouting,
        1 => Hook::Input,
        2 => Hook::Forward,
        3 => Hook::Output,
        4 => Hook::Postrouting,
        _ => Hook::Other,
    }
}

/// The contents of the first attribute of this type.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        let contents = attributes.get(4..length)?;
        if kind & ATTRIBUTE_TYPE == wanted {
            return Some(contents);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// A number; nftables has them in network byte order.
fn word(attributes: &[u8], wanted: u16) -> Option<u32> {
    Some(u32::from_be_bytes(attribute(attributes, wanted)?.try_into().ok()?))
}

fn text(contents: &[u8]) -> String {
    String::from_utf8_lossy(contents.strip_suffix(&[0]).unwrap_or(contents)).into_owned()
}

/// Room for a datagram of a dump, which has 32 KiB at most.
const DATAGRAM: usize = 64 * 1024;
/// Lengths of a netlink message header and of `struct nfgenmsg`.
const HEADER: usize = 16;
const NFGENMSG: usize = 4;
/// `NLA_TYPE_MASK`: the upper bits say how the contents are to be read.
const ATTRIBUTE_TYPE: u16 = 0x3fff;
/// `NFNL_SUBSYS_NFTABLES`, `NFT_MSG_GETCHAIN`, `NFTA_CHAIN_*`, `NFTA_HOOK_HOOKNUM` and `NF_DROP` of linux/netfilter.
const NFTABLES: u16 = 10;
const GET_CHAIN: u16 = 4;
const TABLE: u16 = 1;
const NAME: u16 = 3;
const HOOK: u16 = 4;
const POLICY: u16 = 5;
const USE: u16 = 6;
const HOOK_NUMBER: u16 = 1;
const DROP: u32 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    fn with(kind: u16, contents: &[u8]) -> Vec<u8> {
        let mut bytes = ((contents.len() + 4) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(contents);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_chain_is_read_with_its_hook_and_policy() {
        let hook = with(1, &2u32.to_be_bytes());
        let payload = [
            vec![2, 0, 0, 0],
            with(1, b"filter\0"),
            with(3, b"FORWARD\0"),
            with(4 | 1 << 15, &hook),
            with(5, &0u32.to_be_bytes()),
            with(6, &7u32.to_be_bytes()),
        ]
        .concat();
        let base = Some(Base { hook: Hook::Forward, drops: true });
        let wanted = Chain { family: "ip", table: "filter".into(), name: "FORWARD".into(), base, uses: 7 };
        assert_eq!(chain(&payload), Some(wanted));
        for length in 0..payload.len() {
            // Whatever is cut off, nothing is read that is not there.
            let _ = chain(&payload[..length]);
        }
    }

    #[test]
    fn a_chain_without_hook_has_no_policy() {
        let payload = [vec![10, 0, 0, 0], with(1, b"kube-proxy\0"), with(3, b"services\0")].concat();
        let chain = chain(&payload).unwrap();
        assert_eq!((chain.family, chain.name.as_str(), chain.base), ("ip6", "services", None));
        assert_eq!(hook_of("bridge", 2), Hook::Other);
    }
}
