//! ICMP: errors about translated flows, and echo to service addresses.
//!
//! An error quotes the packet it is about as it was on the wire. Seen from the node, the error travels like the
//! packets of the opposite direction of that flow, so one look-up with the quoted addresses turned around gives
//! everything: where it goes, and what the quoted packet looked like before translation (RFC 5508 4).
//!
//! An error about a service's answer goes to the service's address, and from there to any node that announces it, not
//! only to the one that keeps the flow. All nodes choose alike, so every one of them can compute the backend.

use portolan_abi::{FlowKey, frontend_flag};

use crate::wire::{ETHERNET, Fields, Frame, Kind, Packet, join_ports, proto, split_ports, swap_ports};
use crate::{Address, Exit, Family, Hook, Reason, Tables, Verdict, checksum, service};

/// Where the quoted packet starts.
#[inline(always)]
#[must_use]
pub const fn quoted_at<F: Family>() -> usize {
    ETHERNET + F::HEADER_LEN + 8
}

/// How an ICMP error is translated: the addresses of both IP headers, the quoted ports, and what all that adds
/// to the ICMP checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation<F: Family> {
    /// Source of the error itself.
    pub src: F::Addr,
    /// Destination of the error, and source of the packet it quotes.
    pub dst: F::Addr,
    /// Destination of the packet it quotes.
    pub quoted_dst: F::Addr,
    /// Ports of the packet it quotes.
    pub ports: u32,
    /// Time to live of the error.
    pub ttl: u8,
    /// Difference to the ICMP checksum by changes of the message itself.
    pub difference: u32,
    /// Difference to the ICMP checksum by the pseudo header; zero for IPv4, which has none.
    pub pseudo: u32,
}

impl<F: Family> Translation<F> {
    /// The error's IP header, translated.
    #[inline(always)]
    #[must_use]
    pub fn outer(&self, header: F::Header) -> F::Header {
        F::rewrite(header, self.src, self.dst, self.ttl)
    }

    /// The quoted packet's IP header, translated; its time to live stays what it was.
    #[inline(always)]
    #[must_use]
    pub fn inner(&self, header: F::Header) -> F::Header {
        F::rewrite(header, self.dst, self.quoted_dst, F::fields(&header).ttl)
    }
}

/// What to do with an ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Nothing: it is not about a flow of ours.
    Foreign,
    /// Drop it: its time to live ran out.
    Expired,
    /// Translate it and send it.
    Flow,
}

/// The decision on an ICMP error. Everything in it always has a value, for the reason that [`Kind`] gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errand<F: Family> {
    /// What to do.
    pub finding: Finding,
    /// How to translate it.
    pub translation: Translation<F>,
    /// Where to send it.
    pub exit: Exit,
}

impl<F: Family> Errand<F> {
    /// Not about a flow of ours.
    #[inline(always)]
    #[must_use]
    pub fn foreign() -> Self {
        let nobody = F::Addr::UNSPECIFIED;
        let (src, dst, quoted_dst) = (nobody, nobody, nobody);
        let translation = Translation { src, dst, quoted_dst, ports: 0, ttl: 0, difference: 0, pseudo: 0 };
        Self { finding: Finding::Foreign, translation, exit: Exit::STACK }
    }

    /// As a verdict; `None` if it is not about a flow of ours.
    #[inline(always)]
    pub fn verdict(self) -> Option<Verdict<F>> {
        match self.finding {
            Finding::Foreign => None,
            Finding::Expired => Some(Verdict::Drop(Reason::Ttl)),
            Finding::Flow if self.exit.kind == portolan_abi::exit::TUNNEL => {
                Some(Verdict::Encapsulate(self.exit))
            }
            Finding::Flow => Some(Verdict::ForwardError(self.translation, self.exit)),
        }
    }
}

/// Decides on an ICMP error.
#[inline(always)]
pub(crate) fn error<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    packet: &Packet<F>,
    frame: &P,
    tables: &T,
) -> Errand<F> {
    let Some(quoted) = quoted_key::<F, P>(frame) else { return Errand::foreign() };
    let travel = travel_key(packet, &quoted);
    let Some(course) = course(hook, &travel, tables) else { return Errand::foreign() };
    let routed = course.exit.is_away();
    let finding = if routed && packet.ttl <= 1 { Finding::Expired } else { Finding::Flow };
    let ttl = packet.ttl.saturating_sub(u8::from(routed));
    Errand { finding, translation: translate(packet, &quoted, &course, ttl), exit: course.exit }
}

/// What becomes of the packets of a flow.
#[derive(Clone, Copy)]
struct Course<A> {
    src: A,
    dst: A,
    ports: u32,
    exit: Exit,
}

/// The course that a flow has, or would have if it were of another node.
#[inline(always)]
fn course<F: Family, T: Tables<F>>(
    hook: Hook,
    key: &FlowKey<F::Addr>,
    tables: &T,
) -> Option<Course<F::Addr>> {
    if let Some((flow, _)) = tables.flow(key) {
        return Some(Course { src: flow.src, dst: flow.dst, ports: flow.ports, exit: Exit::of_flow(&flow) });
    }
    if hook != Hook::Uplink {
        return None;
    }
    let (backend, exit) = service::elsewhere(hook, key, tables)?;
    let ports = join_ports(split_ports(key.ports).0, backend.port);
    Some(Course { src: key.src, dst: backend.addr, ports, exit })
}

/// The key of the flow whose way an error takes that quotes a packet of the opposite direction.
#[inline(always)]
pub(crate) fn travel_key<F: Family>(packet: &Packet<F>, quoted: &FlowKey<F::Addr>) -> FlowKey<F::Addr> {
    // Whom the error is sent to, not whom it quotes: nobody reaches into the flow of a third one. Where the two
    // differ, the quoted address is replaced by the right one.
    FlowKey { src: quoted.dst, dst: packet.key.dst, ports: swap_ports(quoted.ports), proto: quoted.proto }
}

/// The flow of the quoted packet, as it was on the wire.
#[inline(always)]
pub(crate) fn quoted_key<F: Family, P: Frame>(frame: &P) -> Option<FlowKey<F::Addr>> {
    let header = F::header(frame, quoted_at::<F>())?;
    let Fields { src, dst, proto: protocol, kind, .. } = F::fields(&header);
    if kind != Kind::Protocol || (protocol != proto::TCP && protocol != proto::UDP) {
        return None;
    }
    let [ports, _] = frame.words(quoted_at::<F>() + F::HEADER_LEN)?;
    Some(FlowKey { src, dst, ports, proto: u32::from(protocol) })
}

#[inline(always)]
fn translate<F: Family>(
    packet: &Packet<F>,
    quoted: &FlowKey<F::Addr>,
    flow: &Course<F::Addr>,
    ttl: u8,
) -> Translation<F> {
    // The backend itself speaks as the service; a router on the way keeps its own address.
    let src = if packet.key.src == quoted.dst { flow.src } else { packet.key.src };
    let ports = swap_ports(flow.ports);
    let mut difference = checksum::difference(quoted.ports, ports);
    let mut pseudo = 0;
    if F::ICMP_PSEUDO {
        // IPv4's quoted header keeps its own sum, because its checksum is part of it; IPv6's does not.
        difference += quoted.src.difference(flow.dst) + quoted.dst.difference(flow.src);
        pseudo = packet.key.src.difference(src) + packet.key.dst.difference(flow.dst);
    }
    Translation { src, dst: flow.dst, quoted_dst: flow.src, ports, ttl, difference, pseudo }
}

/// Decides on an echo request; `None` if it is not to a service address.
#[inline(always)]
pub(crate) fn echo<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    (packet, frame): (&Packet<F>, &P),
    tables: &T,
) -> Option<Verdict<F>> {
    let mark = service::marked::<F, T>(&packet.key.dst, tables);
    if mark.flags & frontend_flag::VIP == 0 || hook == Hook::PodEgress {
        return None;
    }
    if mark.flags & frontend_flag::ANSWERS == 0 {
        return Some(Verdict::Drop(Reason::Echo));
    }
    if !service::is_admitted::<F, T>(&mark, &packet.key.src, tables) {
        return Some(Verdict::Drop(Reason::SourceRange));
    }
    let config = tables.config()?;
    Some(match service::way_back(hook, ifindex, frame, &config) {
        Some(back) => Verdict::AnswerEcho(back),
        None => Verdict::Drop(Reason::Truncated),
    })
}

/// An echo request as its reply: the IP header, and the first word of the ICMP header before and after.
#[inline(always)]
#[must_use]
pub fn echo_reply<F: Family>(packet: &Packet<F>) -> (F::Header, u32, u32) {
    let header = F::rewrite(packet.header, packet.key.dst, packet.key.src, 64);
    let word = |kind: u8| u32::from_ne_bytes([kind, 0, 0, 0]);
    (header, word(F::ECHO.0), word(F::ECHO.1))
}
