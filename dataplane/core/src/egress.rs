//! What pods send out of the cluster: it leaves with the node's address, because nobody outside knows the way to a pod.
//!
//! Such a flow has the same two entries as one to a service, without service and backend. ICMP echo has an identifier where
//! others have ports (RFC 5508 3.1): the one that asks has it as its source port, the one that answers as its destination port.

use portolan_abi::{
    Flow, FlowKey, NO_SERVICE, config_flag, endpoint_flag, exit, frontend_flag, realm_flag, state,
};

use crate::conntrack::{self, next_state};
use crate::service::{enter, forwarded, mark, way_back};
use crate::wire::{self, ETHERNET, Frame, Kind, Packet, join_ports, parse, split_ports, swap_ports};
use crate::{Address, Choice, Exit, Family, Hook, Reason, Rewrite, Tables, Verdict};

/// Whether what a pod sends to an address that no service and no pod of this node has is to be masqueraded, if it leaves by an
/// uplink.
#[inline(always)]
pub(crate) fn leaves<F: Family, T: Tables<F>>(
    hook: Hook,
    (src, dst): (&F::Addr, &F::Addr),
    tables: &T,
) -> bool {
    if hook != Hook::Pod {
        return false;
    }
    let masquerades = match tables.config() {
        Some(config) => config.flags & config_flag::MASQUERADE != 0,
        None => false,
    };
    masquerades && !is_inside::<F, T>(dst, tables) && !is_routable::<F, T>(src, tables)
}

/// Whether an address that was outside when a flow to it left is one of the cluster's now: a service's, or in one of its prefixes.
#[inline(always)]
pub(crate) fn came_inside<F: Family, T: Tables<F>>(addr: &F::Addr, tables: &T) -> bool {
    mark::<F, T>(addr, tables) & frontend_flag::VIP != 0 || is_inside::<F, T>(addr, tables)
}

#[inline(always)]
fn is_inside<F: Family, T: Tables<F>>(addr: &F::Addr, tables: &T) -> bool {
    match tables.realm(addr) {
        Some(realm) => realm.flags & realm_flag::INSIDE != 0,
        None => false,
    }
}

#[inline(always)]
fn is_routable<F: Family, T: Tables<F>>(addr: &F::Addr, tables: &T) -> bool {
    match tables.endpoint(addr) {
        Some(endpoint) => endpoint.flags & endpoint_flag::ROUTABLE != 0,
        None => false,
    }
}

/// Whether a packet of no flow opens one that leaves. What goes on with a TCP connection answers somebody who opened it to the pod
/// itself: with another address it would be nobody's.
#[inline(always)]
pub(crate) fn opens<F: Family, T: Tables<F>>(hook: Hook, packet: &Packet<F>, tables: &T) -> bool {
    let opens = packet.kind != Kind::Tcp || packet.segment.opens();
    opens && leaves::<F, T>(hook, (&packet.key.src, &packet.key.dst), tables)
}

/// The uplink by which a pod's packet leaves that [`leaves`]; `None` for what the host's stack has another way for, to an address
/// of its own or a network of the node itself.
#[inline(always)]
fn uplink<F: Family, T: Tables<F>>(key: &FlowKey<F::Addr>, tables: &T) -> Option<u32> {
    let ifindex = tables.route(&key.src, &key.dst)?;
    let config = tables.config()?;
    let mut found = false;
    for uplink in config.uplinks {
        found |= uplink == ifindex;
    }
    found.then_some(ifindex)
}

/// Whether a packet that no flow takes, or that nobody can translate, would leave the cluster with its pod's address.
#[inline(always)]
pub(crate) fn would_leak<F: Family, T: Tables<F>>(hook: Hook, key: &FlowKey<F::Addr>, tables: &T) -> bool {
    leaves::<F, T>(hook, (&key.src, &key.dst), tables) && uplink::<F, T>(key, tables).is_some()
}

/// Opens a flow that leaves the cluster: afterwards both its entries are in the table. `Ok(false)`: it does not leave by an uplink,
/// and stays as it is.
///
/// # Errors
/// The reason to drop the packet; [`Reason::NoPort`]: none in this round of the [search](crate::ports).
#[inline(always)]
pub fn depart<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    (frame, round): (&P, u32),
    tables: &T,
    now: u32,
) -> Result<bool, Reason> {
    let Some(key) = key::<F, P>(frame) else { return Err(Reason::Truncated) };
    let Some(out) = uplink::<F, T>(&key, tables) else { return Ok(false) };
    let Some(config) = tables.config() else { return Err(Reason::Dangling) };
    let Some(node) = F::node_address(&config) else { return Err(Reason::NoNodeAddress) };
    let Some(back) = way_back(hook, ifindex, frame, &config) else { return Err(Reason::Truncated) };
    let mut reply_key = FlowKey { src: key.dst, dst: node, ports: swap_ports(key.ports), proto: key.proto };
    let mut flow = Flow {
        src: key.dst,
        dst: key.src,
        ports: swap_ports(key.ports),
        ifindex: back.ifindex,
        mac: back.mac,
        exit: back.kind,
        state: state::REPLY | state::MASQUERADE,
        seen: now,
        service: NO_SERVICE,
        backend: 0,
        from_ifindex: out,
        from_mac: [0; 3],
        from: exit::UPLINK,
        beat: 0,
    };
    enter(&key, &mut reply_key, &mut flow, (false, round), &config, tables)?;
    Ok(true)
}

/// The flow of a packet that may leave: with ports, or an ICMP echo.
#[inline(always)]
fn key<F: Family, P: Frame>(frame: &P) -> Option<FlowKey<F::Addr>> {
    let key = wire::key::<F, P>(frame)?;
    if key.proto == u32::from(F::ICMP) { echo_key::<F, P>(key, true, frame) } else { Some(key) }
}

/// The flow of an ICMP echo; `asks`: it is a request.
#[inline(always)]
fn echo_key<F: Family, P: Frame>(key: FlowKey<F::Addr>, asks: bool, frame: &P) -> Option<FlowKey<F::Addr>> {
    let [word] = frame.words(identifier_at::<F>())?;
    let (identifier, _) = split_ports(word);
    let ports = if asks { join_ports(identifier, 0) } else { join_ports(0, identifier) };
    Some(FlowKey { ports, ..key })
}

/// Where the identifier of an ICMP echo is.
#[inline(always)]
#[must_use]
pub const fn identifier_at<F: Family>() -> usize {
    ETHERNET + F::HEADER_LEN + 4
}

/// The identifier that the ports of a flow of ICMP echo are: one of them is zero. In packet order.
#[inline(always)]
#[must_use]
pub fn identifier(ports: u32) -> u16 {
    let (source, destination) = split_ports(ports);
    source | destination
}

/// What to do with an ICMP echo. Without data, as [`Kind`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Translate it, its identifier too, and send it.
    Send,
    /// Drop it.
    Drop,
    /// It opens a flow: [`depart`] with it.
    Open,
    /// It does not leave, and is no answer to one that did.
    Other,
}

/// The decision on an ICMP echo. Everything in it always has a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo<F: Family> {
    /// What to do.
    pub finding: Finding,
    /// The packet.
    pub packet: Packet<F>,
    /// What to send; the identifier is in its ports.
    pub rewrite: Rewrite<F::Addr>,
    /// Where to send it.
    pub exit: Exit,
    /// Why to drop it.
    pub reason: Reason,
}

impl<F: Family> Echo<F> {
    #[inline(always)]
    fn of(packet: Packet<F>, finding: Finding, reason: Reason) -> Self {
        let nobody = F::Addr::UNSPECIFIED;
        let rewrite = Rewrite { src: nobody, dst: nobody, ports: 0, ttl: 0 };
        Self { finding, packet, rewrite, exit: Exit::STACK, reason }
    }

    /// As a verdict; `None` where another step has it.
    #[inline(always)]
    pub fn verdict(&self) -> Option<Verdict<F>> {
        match self.finding {
            Finding::Send => Some(Verdict::Forward(self.rewrite, self.exit)),
            Finding::Drop => Some(Verdict::Drop(self.reason)),
            Finding::Open | Finding::Other => None,
        }
    }
}

/// The part of [`decide`](crate::decide()) for ICMP echo of pods with hosts outside of the cluster. Its addresses have been checked by
/// [`decide_new`](crate::decide_new). `fresh`: its flow was opened just now.
#[inline(always)]
pub fn decide_echo<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    frame: &P,
    fresh: bool,
    tables: &T,
    now: u32,
) -> Echo<F> {
    let packet = parse::<F, P>(frame);
    // Answers arrive on an uplink, and everything else that asks is none of ours.
    let ours = match packet.kind {
        Kind::Echo => hook == Hook::Pod,
        Kind::EchoReply => hook == Hook::Uplink,
        _ => false,
    };
    let other = Echo::of(packet, Finding::Other, Reason::Echo);
    if !ours {
        return other;
    }
    let asks = packet.kind == Kind::Echo;
    let Some(key) = echo_key::<F, P>(packet.key, asks, frame) else { return other };
    let Some((flow, entry)) = tables.flow(&key) else {
        // Services' addresses answer by themselves.
        let vip = mark::<F, T>(&key.dst, tables) & frontend_flag::VIP != 0;
        let opens = asks && !vip && leaves::<F, T>(hook, (&key.src, &key.dst), tables);
        return if opens { Echo { finding: Finding::Open, ..other } } else { other };
    };
    let whole = conntrack::record::<F, T>(entry, &flow, next_state(flow.state, 0), key.proto, now, tables);
    if !whole && asks && !fresh {
        // Its way back was displaced: opening it anew writes that, too.
        return Echo { finding: Finding::Open, ..other };
    }
    match forwarded(hook, &packet, &flow, frame.len(), tables) {
        Verdict::Forward(rewrite, exit) => Echo { finding: Finding::Send, rewrite, exit, ..other },
        Verdict::TooBig(_) => Echo::of(packet, Finding::Drop, Reason::TooBig),
        _ => Echo::of(packet, Finding::Drop, Reason::Ttl),
    }
}

impl Choice {
    /// In the place of a choice: the flow leaves the cluster.
    pub const EGRESS: Self = Self { service: NO_SERVICE, backend: 0 };

    /// Whether the flow leaves the cluster.
    #[inline(always)]
    #[must_use]
    pub const fn is_egress(self) -> bool {
        self.service == NO_SERVICE
    }
}
