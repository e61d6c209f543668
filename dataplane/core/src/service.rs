//! Service traffic: which frontend, which backend, and the two flow entries that remember it.

use portolan_abi::{
    Affinity, AffinityKey, Backend, Config, Flow, FlowKey, Frontend, FrontendKey, Service, backend_flag,
    frontend_flag, service_flag, state,
};

use crate::answer::may_answer;
use crate::conntrack::{is_forgotten, peer_key};
use crate::guard::source_mac;
use crate::select::{self, flow_hash};
use crate::wire::{Frame, Packet, join_ports, split_ports, swap_ports};
use crate::{Address, Exit, Family, Hook, Reason, Rewrite, Tables, Verdict, egress, overlay, ports, tunnel};

/// What a packet asks for by its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// A frontend.
    Frontend(Frontend),
    /// A service address, but none of its ports.
    UnknownPort,
    /// Nothing of ours.
    Other,
}

/// Finds the frontend of a destination. `port` is in network byte order.
#[inline(always)]
pub(crate) fn resolve<F: Family, T: Tables<F>>(hook: Hook, key: &FlowKey<F::Addr>, tables: &T) -> Asked {
    // The host's answers to pods are no requests. Loopback addresses are served at sockets alone.
    if hook == Hook::PodEgress || key.dst.is_loopback() {
        return Asked::Other;
    }
    let port = split_ports(key.ports).1;
    // What another node sent here may have been asked of that node's address.
    let nodes = frontend_flag::NODEPORT | if hook == Hook::Tunnel { frontend_flag::PEER } else { 0 };
    let asked = FrontendKey { addr: key.dst, port, proto: key.proto as u8, zero: 0 };
    destination::<F, T>(&asked, nodes, tables)
}

/// Finds the frontend of an address, port and protocol. An address that is marked with one of `nodes` answers NodePorts.
#[inline(always)]
pub(crate) fn destination<F: Family, T: Tables<F>>(
    key: &FrontendKey<F::Addr>,
    nodes: u32,
    tables: &T,
) -> Asked {
    if let Some(frontend) = tables.frontend(key) {
        return Asked::Frontend(frontend);
    }
    let flags = mark::<F, T>(&key.addr, tables);
    if flags & frontend_flag::VIP != 0 {
        return Asked::UnknownPort;
    }
    if flags & nodes == 0 {
        return Asked::Other;
    }
    node_port::<F, T>(key, tables)
}

/// Finds the NodePort of a destination at an address of the node.
#[inline(always)]
pub(crate) fn node_port<F: Family, T: Tables<F>>(key: &FrontendKey<F::Addr>, tables: &T) -> Asked {
    if !is_node_port::<F, T>(key.port, tables) {
        return Asked::Other;
    }
    match tables.frontend(&FrontendKey { addr: F::Addr::UNSPECIFIED, ..*key }) {
        Some(frontend) => Asked::Frontend(frontend),
        None => Asked::Other,
    }
}

/// Whether a frontend is open to a client.
#[inline(always)]
pub(crate) fn is_admitted<F: Family, T: Tables<F>>(
    frontend: &Frontend,
    client: &F::Addr,
    tables: &T,
) -> bool {
    frontend.flags & frontend_flag::SOURCES == 0 || tables.admits(frontend.service, client)
}

/// The mark of an address, without any flag if it is none of ours.
#[inline(always)]
pub(crate) fn marked<F: Family, T: Tables<F>>(addr: &F::Addr, tables: &T) -> Frontend {
    match tables.frontend(&FrontendKey { addr: *addr, port: 0, proto: 0, zero: 0 }) {
        Some(mark) => mark,
        None => Frontend { service: 0, flags: 0 },
    }
}

/// The flags of an address's mark.
#[inline(always)]
pub(crate) fn mark<F: Family, T: Tables<F>>(addr: &F::Addr, tables: &T) -> u32 {
    marked::<F, T>(addr, tables).flags
}

#[inline(always)]
fn is_node_port<F: Family, T: Tables<F>>(port: u16, tables: &T) -> bool {
    let Some(config) = tables.config() else { return false };
    let port = u16::from_be(port);
    config.nodeport_first <= port && port <= config.nodeport_last
}

/// Whether the backend that a flow was given still exists with the same address.
#[inline(always)]
pub(crate) fn has_backend<F: Family, T: Tables<F>>(flow: &Flow<F::Addr>, tables: &T) -> bool {
    match tables.backend(flow.backend) {
        Some(b) => {
            b.flags & backend_flag::LIVE != 0 && b.addr == flow.dst && b.port == split_ports(flow.ports).1
        }
        None => false,
    }
}

/// A service and the backend chosen for a new flow, by their indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Index of the service.
    pub service: u32,
    /// Index of the backend; with [`RETURNS`](Self::RETURNS), its answers come back through this node in every mode, and with
    /// [`LEAVES`](Self::LEAVES) to its address.
    pub backend: u32,
}

impl Choice {
    /// Far above every index: a client from outside asked for an address inside, which other nodes take from nobody.
    pub const RETURNS: u32 = 1 << 31;

    /// As far above: a pod asks for a backend outside of the cluster, where nobody knows the way to the pod.
    pub const LEAVES: u32 = 1 << 30;

    /// Index of the backend alone.
    #[inline(always)]
    const fn backend(self) -> u32 {
        self.backend & !(Self::RETURNS | Self::LEAVES)
    }

    #[inline(always)]
    const fn is(self, flag: u32) -> bool {
        self.backend & flag != 0
    }
}

/// Chooses a backend for a new flow to a frontend.
#[inline(always)]
pub(crate) fn choose<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    (packet, frame): (&Packet<F>, &P),
    frontend: Frontend,
    tables: &T,
    now: u32,
) -> Result<Choice, Verdict<F>> {
    let Some(config) = tables.config() else { return Err(Verdict::Drop(Reason::Dangling)) };
    let Some(service) = tables.service(frontend.service) else { return Err(Verdict::Drop(Reason::Dangling)) };
    let local = hook == Hook::Tunnel || is_local(hook, frontend, &service);
    let ring = if local { service.local } else { service.cluster };
    if ring.is_empty() {
        if !service.cluster.is_empty() {
            return Err(Verdict::Drop(Reason::NoLocalBackend));
        }
        return Err(reject(hook, ifindex, (packet, frame), &config, Reason::NoBackend));
    }
    let key = AffinityKey::new(packet.key.src, frontend.service, local);
    let backend = match remembered::<F, T>(&key, service.affinity, tables, now) {
        Some(backend) => backend,
        None => match select::backend(ring, flow_hash(&packet.key, config.seed), tables) {
            Some(backend) => backend,
            None => return Err(Verdict::Drop(Reason::Dangling)),
        },
    };
    if service.affinity != 0 {
        tables.remember(&key, &Affinity { backend, seen: now });
    }
    let inside = hook == Hook::Uplink && frontend.flags & frontend_flag::EXTERNAL == 0;
    let backend = if inside { backend | Choice::RETURNS } else { backend };
    let outside = is_outside::<F, T>(hook, &packet.key.src, backend, tables);
    let backend = if outside { backend | Choice::LEAVES } else { backend };
    Ok(Choice { service: frontend.service, backend })
}

/// Whether a backend that a pod asks for is to see the node's address: a service may name any address as its endpoint.
#[inline(always)]
fn is_outside<F: Family, T: Tables<F>>(hook: Hook, client: &F::Addr, backend: u32, tables: &T) -> bool {
    if hook != Hook::Pod {
        return false;
    }
    match tables.backend(backend) {
        Some(backend) => egress::leaves::<F, T>(hook, (client, &backend.addr), tables),
        None => false,
    }
}

/// The backend that the client's last flow had, if that was not too long ago. Memories of backends that left the
/// set are removed by who changes the set; one whose record is not in use any more counts for nothing.
#[inline(always)]
pub(crate) fn remembered<F: Family, T: Tables<F>>(
    key: &AffinityKey<F::Addr>,
    seconds: u32,
    tables: &T,
    now: u32,
) -> Option<u32> {
    if seconds == 0 {
        return None;
    }
    let memory = tables.affinity(key)?;
    if is_forgotten(&memory, seconds, now) {
        return None;
    }
    let backend = tables.backend(memory.backend)?;
    if backend.flags & backend_flag::LIVE == 0 { None } else { Some(memory.backend) }
}

/// Whether a frontend's policy allows only this node's backends: to outside clients of a Local service, and to
/// inside clients of an internally Local one.
#[inline(always)]
pub(crate) fn is_local(hook: Hook, frontend: Frontend, service: &Service) -> bool {
    let external = frontend.flags & frontend_flag::EXTERNAL != 0;
    // A pod or process of the cluster that asks for a public address is short-circuited to all backends.
    if external {
        hook == Hook::Uplink && service.flags & service_flag::EXTERNAL_LOCAL != 0
    } else {
        service.flags & service_flag::INTERNAL_LOCAL != 0
    }
}

/// The backend that another node has chosen for an outside client's flow, and the way there. Not where the choice
/// depends on what only that node knows: the client's earlier flows, or which backends are its own.
#[inline(always)]
pub(crate) fn elsewhere<F: Family, T: Tables<F>>(
    hook: Hook,
    key: &FlowKey<F::Addr>,
    tables: &T,
) -> Option<(Backend<F::Addr>, Exit)> {
    let Asked::Frontend(frontend) = resolve::<F, T>(hook, key, tables) else { return None };
    let (config, service) = (tables.config()?, tables.service(frontend.service)?);
    if service.cluster.is_empty() || service.affinity != 0 || is_local(hook, frontend, &service) {
        return None;
    }
    let backend = select::backend(service.cluster, flow_hash(key, config.seed), tables)?;
    let backend = tables.backend(backend)?;
    if backend.flags & (backend_flag::LIVE | backend_flag::HOST) != backend_flag::LIVE {
        return None;
    }
    Some((backend, locate(hook, &key.src, &backend, &config, tables).ok()?))
}

/// Writes both entries of a new flow; the packet's verdict is then that of its entry.
#[inline(always)]
pub(crate) fn track<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    (key, frame): (&FlowKey<F::Addr>, &P),
    (choice, round): (Choice, u32),
    tables: &T,
    now: u32,
) -> Result<(), Reason> {
    let Some(config) = tables.config() else { return Err(Reason::Dangling) };
    let index = choice.backend();
    let Some(backend) = tables.backend(index) else { return Err(Reason::Dangling) };
    if backend.flags & backend_flag::LIVE == 0 {
        return Err(Reason::Dangling);
    }
    let mut there = locate(hook, &key.src, &backend, &config, tables)?;
    let direct = hook == Hook::Uplink && !choice.is(Choice::RETURNS);
    if direct && tunnel::is_wanted::<F, T>(there, choice.service, &backend.addr, tables) {
        if F::node_address(&config).is_none() {
            return Err(Reason::NoNodeAddress);
        }
        there.kind = portolan_abi::exit::TUNNEL;
    }
    let Some(back) = way_back(hook, ifindex, frame, &config) else { return Err(Reason::Truncated) };
    let away = hook == Hook::Uplink || choice.is(Choice::LEAVES);
    let (src, masquerade) = source::<F>((hook, away), key, &backend, there, &config)?;
    let ports = join_ports(backend.port, split_ports(key.ports).0);
    let mut reply_key = FlowKey { src: backend.addr, dst: src, ports, proto: key.proto };
    let state = state::REPLY | if masquerade { state::MASQUERADE } else { 0 };
    let mut flow = Flow {
        src: key.dst,
        dst: key.src,
        ports: swap_ports(key.ports),
        ifindex: back.ifindex,
        mac: back.mac,
        exit: back.kind,
        state,
        seen: now,
        service: choice.service,
        backend: index,
        from_ifindex: there.ifindex,
        from_mac: there.mac,
        from: there.kind,
        beat: 0,
    };
    // What leaves with an address of the node may only use the range set aside for it: other ports are the host's own.
    let own = !masquerade || reply_key.dst == F::hairpin_address();
    enter(key, &mut reply_key, &mut flow, (own, round), &config, tables)?;
    tables.picked(choice.service, index);
    Ok(())
}

/// Writes both entries of a new flow. `round`: see [`ports`]. `reply` under its key, with another port of its destination where the plain one is taken or
/// not the flow's `own` to take, then its other direction.
#[inline(always)]
pub(crate) fn enter<F: Family, T: Tables<F>>(
    key: &FlowKey<F::Addr>,
    reply_key: &mut FlowKey<F::Addr>,
    reply: &mut Flow<F::Addr>,
    (own, round): (bool, u32),
    config: &Config,
    tables: &T,
) -> Result<(), Reason> {
    let hash = flow_hash(key, config.seed);
    // What the backend's node answers does not come back here.
    let comes_back = reply.from != portolan_abi::exit::TUNNEL;
    if comes_back && !ports::claim(reply_key, reply, (hash, own, round), config, tables) {
        return Err(Reason::NoPort);
    }
    // In place: a program has no stack for two of them.
    turn(reply, reply_key);
    if tables.put(key, reply) { Ok(()) } else { Err(Reason::FlowTable) }
}

/// Makes the entry at `key` the one of the other direction.
#[inline(always)]
fn turn<A: Address>(flow: &mut Flow<A>, key: &FlowKey<A>) {
    let (there, back) = (Exit::of_flow(flow), Exit::back_of_flow(flow));
    flow.src = key.dst;
    flow.dst = key.src;
    flow.ports = swap_ports(key.ports);
    (flow.ifindex, flow.mac, flow.exit) = (back.ifindex, back.mac, back.kind);
    (flow.from_ifindex, flow.from_mac, flow.from) = (there.ifindex, there.mac, there.kind);
    flow.state ^= state::REPLY;
}

/// Writes the entry of the way back anew, if it was evicted under a flow that is alive.
#[inline(always)]
pub(crate) fn restore_reply<F: Family, T: Tables<F>>(
    key: &FlowKey<F::Addr>,
    flow: &Flow<F::Addr>,
    tables: &T,
) {
    let mut reply = *flow;
    turn(&mut reply, key);
    // A key taken by another flow meanwhile stays with that one.
    let _ = tables.claim(&peer_key(flow, key.proto), &reply);
}

/// The address a backend shall see as its client, and whether that is another than the client's own. `away`: outside of the
/// node it would not do.
#[inline(always)]
fn source<F: Family>(
    (hook, away): (Hook, bool),
    key: &FlowKey<F::Addr>,
    backend: &Backend<F::Addr>,
    exit: Exit,
    config: &Config,
) -> Result<(F::Addr, bool), Reason> {
    // A host drops what claims to come from itself, so a pod that reaches itself needs another source.
    if backend.addr == key.src && hook == Hook::Pod {
        return Ok((F::hairpin_address(), true));
    }
    // The backend's node would answer an outside client directly, with an address the client never asked, and a backend outside
    // of the cluster would not find the pod.
    if away && exit.is_away() {
        return match F::node_address(config) {
            Some(address) => Ok((address, true)),
            None => Err(Reason::NoNodeAddress),
        };
    }
    Ok((key.src, false))
}

/// How to reach a backend.
#[inline(always)]
fn locate<F: Family, T: Tables<F>>(
    hook: Hook,
    src: &F::Addr,
    backend: &Backend<F::Addr>,
    config: &Config,
    tables: &T,
) -> Result<Exit, Reason> {
    if backend.flags & backend_flag::HOST != 0 {
        return Ok(if hook.is_host() { Exit::host(config.service_ifindex) } else { Exit::STACK });
    }
    if let Some(endpoint) = tables.endpoint(&backend.addr) {
        return Ok(Exit::pod(&endpoint));
    }
    if let Some(exit) = overlay::way::<F, T>(&backend.addr, config, tables) {
        return Ok(exit);
    }
    match tables.route(src, &backend.addr) {
        Some(ifindex) => Ok(Exit::uplink(ifindex)),
        None => Err(Reason::NoRoute),
    }
}

/// How to reach who sent the packet. A pod's interface and MAC are its own: [`crate::guard`] has seen to that.
#[inline(always)]
pub(crate) fn way_back<P: Frame>(hook: Hook, ifindex: u32, frame: &P, config: &Config) -> Option<Exit> {
    match hook {
        Hook::Pod => Some(Exit { kind: portolan_abi::exit::POD, ifindex, mac: source_mac(frame)? }),
        Hook::Uplink | Hook::Tunnel => Some(Exit::uplink(ifindex)),
        _ => Some(Exit::host(config.service_ifindex)),
    }
}

/// Tells the sender at once that nobody will answer.
#[inline(always)]
pub(crate) fn reject<F: Family, P: Frame>(
    hook: Hook,
    ifindex: u32,
    (packet, frame): (&Packet<F>, &P),
    config: &Config,
    reason: Reason,
) -> Verdict<F> {
    match way_back(hook, ifindex, frame, config) {
        Some(back) if may_answer(packet) => Verdict::Reject(back, reason),
        _ => Verdict::Drop(reason),
    }
}

/// Whatever is not longer than this, with its Ethernet header, fits every interface: the least MTU of IPv6 (RFC 8200 5).
const FITS_ALWAYS: u32 = 14 + 1280;

/// The verdict of a flow entry on a packet of the flow, `len` bytes long.
///
/// What is too long for its uplink goes to the host's stack instead, translated: the stack tells the sender, as it
/// does for all that it routes, and that error is translated on its way back. Redirected, the packet would get lost.
/// But the stack takes nothing that claims to come from the node itself: of that, the sender is told from here.
#[inline(always)]
pub(crate) fn forwarded<F: Family, T: Tables<F>>(
    hook: Hook,
    packet: &Packet<F>,
    flow: &Flow<F::Addr>,
    len: u32,
    tables: &T,
) -> Verdict<F> {
    let mut exit = Exit::of_flow(flow);
    if exit.kind == portolan_abi::exit::TUNNEL {
        return Verdict::Encapsulate(exit);
    }
    if exit.is_away() && hook.is_ingress() && len > FITS_ALWAYS && !tables.fits(exit.ifindex, len) {
        // The stack knows no way by the overlay to another node's own address.
        let overlay = exit.kind == portolan_abi::exit::OVERLAY;
        if overlay || mark::<F, T>(&flow.src, tables) & frontend_flag::NODE != 0 {
            return Verdict::TooBig(Exit::back_of_flow(flow));
        }
        exit = Exit::STACK;
    }
    let routed = exit.is_away();
    if routed && packet.ttl <= 1 {
        return Verdict::Drop(Reason::Ttl);
    }
    let ttl = if routed { packet.ttl - 1 } else { packet.ttl };
    Verdict::Forward(Rewrite { src: flow.src, dst: flow.dst, ports: flow.ports, ttl }, exit)
}
