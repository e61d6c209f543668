//! Direct server return: packets of outside clients travel to their backend's node inside of a packet of this node,
//! as they came, and that node answers the client itself.
//!
//! IP inside of IP of the same family (RFC 2003, RFC 2473), addressed to the backend. The node that takes a packet in
//! believes only what another node of the cluster sent, and gives it to its own backends only.

use portolan_abi::{Flow, exit, frontend_flag, service_flag};

use crate::answer::{may_answer, pseudo_sum};
use crate::conntrack::is_one_way;
use crate::service::mark;
use crate::wire::{ETHERNET, Fields, Frame, Kind, Packet, parse, piece};
use crate::{Exit, Family, Hook, Reason, Tables, Verdict, checksum, fragment, icmp};

/// IP protocol numbers of IPv4 and of IPv6 inside of another packet.
const TUNNELS: [u32; 2] = [4, 41];

/// Bytes of a TCP header that a complaint quotes: its checksum is among them, which the device may have to complete. Of a
/// first piece as many, so that they go beyond IPv6's fragment header.
pub const QUOTED_TCP: usize = 20;
/// Bytes of any other transport header that a complaint quotes.
pub const QUOTED_OTHER: usize = 8;

/// Whether a packet that arrives on an uplink is of another node and for a pod of this one: what it carries is then to
/// be decided on at [`Hook::Tunnel`].
#[inline(always)]
#[must_use]
pub fn is_ours<F: Family, T: Tables<F>, P: Frame>(frame: &P, tables: &T) -> bool {
    let Some(header) = F::header(frame, ETHERNET) else { return false };
    let Fields { src, dst, proto, kind, .. } = F::fields(&header);
    // The kernel takes nothing out that has no whole header.
    let whole = frame.len() as usize >= ETHERNET + 2 * F::HEADER_LEN;
    proto == F::TUNNEL
        && kind == Kind::Protocol
        && whole
        && tables.endpoint(&dst).is_some()
        && mark::<F, T>(&src, tables) & frontend_flag::PEER != 0
}

/// Whether a packet carries another to a pod of this node, and [`is_ours`] did not take it: nobody else may.
#[inline(always)]
pub(crate) fn is_foreign<F: Family, T: Tables<F>>(hook: Hook, dst: &F::Addr, proto: u32, tables: &T) -> bool {
    hook.is_ingress() && TUNNELS.contains(&proto) && tables.endpoint(dst).is_some()
}

/// Whether a packet that another node sent here would be sent on to a node: the two would play ping-pong.
#[inline(always)]
pub(crate) fn would_return<A>(hook: Hook, flow: &Flow<A>) -> bool {
    hook == Hook::Tunnel && is_one_way(flow)
}

/// Whether an outside client's flow to a backend that is reached by `there` shall be answered by the backend's node.
///
/// A backend in another node's own network is no pod there: it is reached by masquerading, as without direct return.
#[inline(always)]
pub(crate) fn is_wanted<F: Family, T: Tables<F>>(
    there: Exit,
    service: u32,
    backend: &F::Addr,
    tables: &T,
) -> bool {
    if there.kind != exit::UPLINK {
        return false;
    }
    let Some(service) = tables.service(service) else { return false };
    service.flags & service_flag::DIRECT != 0 && mark::<F, T>(backend, tables) & frontend_flag::PEER == 0
}

/// What to do with a packet whose flow leaves inside of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Send it.
    Fits,
    /// Answer it: its flow's uplink does not take it with another header.
    TooBig,
    /// Drop it for this reason.
    Drop(Reason),
}

/// A packet and the one it travels in. All but the finding has a meaning only where it is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parcel<F: Family> {
    /// What to do.
    pub finding: Finding,
    /// The header of the packet outside.
    pub outer: F::Header,
    /// The header of the packet inside: as it came, but for its time to live.
    pub inner: F::Header,
    /// Where to send it, or whom to tell.
    pub exit: Exit,
}

impl<F: Family> Parcel<F> {
    #[inline(always)]
    fn none(finding: Finding, exit: Exit) -> Self {
        Self { finding, outer: F::EMPTY_HEADER, inner: F::EMPTY_HEADER, exit }
    }

    /// As a verdict.
    #[inline(always)]
    pub fn verdict(&self) -> Verdict<F> {
        match self.finding {
            Finding::Fits => Verdict::Encapsulate(self.exit),
            Finding::TooBig => Verdict::TooBig(self.exit),
            Finding::Drop(reason) => Verdict::Drop(reason),
        }
    }
}

/// Packs a packet that got [`Verdict::Encapsulate`]. Only what arrives on an uplink is sent on in this way.
#[inline(always)]
#[must_use]
pub fn parcel<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    frame: &P,
    tables: &T,
) -> Parcel<F> {
    let packet = parse::<F, P>(frame);
    let drop = |reason| Parcel::none(Finding::Drop(reason), Exit::STACK);
    // An error to somebody else's flow, or one that another node has sent here.
    if hook != Hook::Uplink {
        return drop(Reason::Tunnel);
    }
    // Both were there a moment ago.
    let Some(flow) = flow_of(&packet, frame, tables) else { return drop(Reason::FlowTable) };
    let Some(config) = tables.config() else { return drop(Reason::Dangling) };
    let Some(node) = F::node_address(&config) else { return drop(Reason::NoNodeAddress) };
    if packet.ttl <= 1 {
        return drop(Reason::Ttl);
    }
    let exit = Exit::of_flow(&flow);
    if room::<F, T>(exit.ifindex, frame.len(), &packet, tables) != FITS {
        // No ICMP error is answered by another (RFC 1122 3.2.2, RFC 4443 2.4).
        let told = (packet.has_ports() || is_first(&packet, frame)) && may_answer(&packet);
        // Such flows are opened by what arrives on an uplink only, and that is the way back.
        let back = Exit::uplink(ifindex);
        return if told { Parcel::none(Finding::TooBig, back) } else { drop(Reason::TooBig) };
    }
    let outer = F::compose(node, flow.dst, F::TUNNEL, length_outside(&packet));
    let inner = F::rewrite(packet.header, packet.key.src, packet.key.dst, packet.ttl - 1);
    Parcel { finding: Finding::Fits, outer, inner, exit }
}

/// The flow that a packet travels with: its own, or that of the answer that an ICMP error is about.
#[inline(always)]
fn flow_of<F: Family, T: Tables<F>, P: Frame>(
    packet: &Packet<F>,
    frame: &P,
    tables: &T,
) -> Option<Flow<F::Addr>> {
    let key = if packet.has_ports() {
        packet.key
    } else if packet.kind == Kind::Fragment {
        return fragment::flow(frame, tables).filter(is_one_way);
    } else {
        icmp::travel_key(packet, &icmp::quoted_key::<F, P>(frame)?)
    };
    let (flow, _) = tables.flow(&key)?;
    is_one_way(&flow).then_some(flow)
}

/// Whether it is a first piece. One answer is enough for all pieces of a packet.
#[inline(always)]
fn is_first<F: Family, P: Frame>(packet: &Packet<F>, frame: &P) -> bool {
    packet.kind == Kind::Fragment && matches!(piece::<F, P>(frame), Some(piece) if piece.first)
}

/// What the outer header gives as its length.
#[inline(always)]
fn length_outside<F: Family>(packet: &Packet<F>) -> u16 {
    let whole = F::HEADER_LEN as u32 + u32::from(packet.len);
    if packet.len == 0 || whole + F::HEADER_LEN as u32 > u32::from(u16::MAX) {
        F::UNSAID
    } else {
        whole as u16
    }
}

/// Of [`room`]: no limit that the packet meets.
const FITS: u32 = 0;

/// The longest packet that an interface takes besides another header; [`FITS`] if this one is not longer. `len` is the
/// packet's with its Ethernet header.
#[inline(always)]
fn room<F: Family, T: Tables<F>>(ifindex: u32, len: u32, packet: &Packet<F>, tables: &T) -> u32 {
    let mtu = tables.mtu(ifindex);
    let transport = if packet.kind == Kind::Tcp { u32::from(packet.segment.header) } else { 8 };
    // A packet that is still to be cut: what counts is how long its pieces are.
    let longest = match tables.segment() {
        0 => len.saturating_sub(ETHERNET as u32),
        data => F::HEADER_LEN as u32 + transport + data,
    };
    let header = F::HEADER_LEN as u32;
    if mtu == 0 || longest + header <= mtu { FITS } else { mtu.saturating_sub(header) }
}

/// The ICMP error that takes the place of a packet that got [`Verdict::TooBig`]: before the packet's own IP header and
/// the first bytes of its transport header, which it quotes as they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Complaint<F: Family> {
    /// IP header.
    pub header: F::Header,
    /// ICMP header with its checksum.
    pub icmp: [u32; 2],
}

/// Complains to the client, as the address that it asked. `sum` is the one's complement sum of the `quoted` bytes of
/// its transport header.
///
/// IPv4 packets that may be fragmented are answered, too: the pieces of what is inside of a packet would be nobody's.
#[inline(always)]
pub fn complaint<F: Family, T: Tables<F>, P: Frame>(
    frame: &P,
    (quoted, sum): (usize, u32),
    tables: &T,
) -> Option<Complaint<F>> {
    let packet = parse::<F, P>(frame);
    let flow = flow_of(&packet, frame, tables)?;
    let [first, second] = F::too_big(room::<F, T>(flow.ifindex, frame.len(), &packet, tables));
    let len = (8 + F::HEADER_LEN + quoted) as u16;
    let (src, dst) = (packet.key.dst, packet.key.src);
    let mut all = checksum::sum(&[first, second]) + F::header_sum(&packet.header) + sum;
    if F::ICMP_PSEUDO {
        all += pseudo_sum::<F>(src, dst, F::ICMP, len);
    }
    let field = u32::from(u16::from_be(checksum::finish(all)));
    let icmp = [(u32::from_be(first) | field).to_be(), second];
    Some(Complaint { header: F::compose(src, dst, F::ICMP, len), icmp })
}
