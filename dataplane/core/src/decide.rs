//! The decision on a packet, from top to bottom.

use portolan_abi::{Flow, NO_SERVICE, counter, frontend_flag, state};

use crate::answer::Rejection;
use crate::conntrack::{self, is_ending, is_quiet, next_state, tells_answer, tells_end};
use crate::icmp::Errand;
use crate::service::{
    Asked, Choice, choose, forwarded, has_backend, is_admitted, mark, reject, resolve, restore_reply, track,
    way_back,
};
use crate::wire::{Frame, Kind, Packet, parse};
use crate::{
    Address, Exit, Family, Hook, Reason, Tables, Verdict, egress, fragment, guard, icmp, overlay, ports,
    tunnel, wire,
};

/// Decides on a packet. `ifindex` is the interface that the program is attached to; `now` in ticks of 2^30 ns.
///
/// The parts it calls are public because a program has 512 bytes of stack for each of its functions, so that it
/// has to call them one by one.
#[inline(always)]
pub fn decide<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    frame: &P,
    tables: &T,
    now: u32,
) -> Verdict<F> {
    match decide_way(hook, ifindex, frame, tables, now) {
        Verdict::Encapsulate(_) => tunnel::parcel(hook, ifindex, frame, tables).verdict(),
        verdict => verdict,
    }
}

/// [`decide`], but for what is sent inside of another packet: whether that fits is [`tunnel::parcel`]'s to say.
#[inline(always)]
fn decide_way<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    frame: &P,
    tables: &T,
    now: u32,
) -> Verdict<F> {
    if let Some((_, verdict)) = decide_known(hook, ifindex, frame, tables, now) {
        return verdict;
    }
    match decide_new(hook, ifindex, frame, tables, now) {
        New::Verdict(verdict) => verdict,
        New::Open(choice) => match open(hook, ifindex, frame, choice, tables, now) {
            Ok(false) => Verdict::Pass(counter::PASSED),
            Ok(true) => match decide_known(hook, ifindex, frame, tables, now) {
                Some((_, verdict)) => verdict,
                None => Verdict::Drop(Reason::FlowTable),
            },
            Err(reason) => Verdict::Drop(reason),
        },
        New::Other => match decide_error(hook, frame, tables).verdict() {
            Some(verdict) => verdict,
            None if matches!(parse::<F, P>(frame).kind, Kind::Echo | Kind::EchoReply) => {
                decide_ping(hook, ifindex, frame, tables, now)
            }
            None if wire::is_piece::<F, P>(frame) => fragment::decide_all(hook, ifindex, frame, tables, now),
            None => decide_other(hook, ifindex, frame, tables),
        },
    }
}

/// The part of [`decide`] for a TCP or UDP packet of a flow in the table; `None` for all else. Packets that are not
/// admitted are left to [`decide_new`].
#[inline(always)]
pub fn decide_known<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    frame: &P,
    tables: &T,
    now: u32,
) -> Option<(Packet<F>, Verdict<F>)> {
    let found = match look_up(hook, ifindex, frame, false, tables, now) {
        Known::Torn => {
            mend(frame, tables);
            look_up(hook, ifindex, frame, true, tables, now)
        }
        found => found,
    };
    match found {
        Known::Verdict(packet, verdict) => Some((packet, verdict)),
        _ => None,
    }
}

/// What [`look_up`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known<F: Family> {
    /// The decision.
    Verdict(Packet<F>, Verdict<F>),
    /// The flow has lost the entry of its way back: [`mend`] it, and look again.
    Torn,
    /// No flow, or nothing that has one.
    Unknown,
}

/// [`decide_known`] without what a program's stack has no room for: `mended` says whether that was done.
#[inline(always)]
pub fn look_up<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    frame: &P,
    mended: bool,
    tables: &T,
    now: u32,
) -> Known<F> {
    let packet = parse::<F, P>(frame);
    if !packet.has_ports() || guard::check::<F, T, P>(hook, ifindex, &packet.key, frame, tables).is_err() {
        return Known::Unknown;
    }
    let Some((flow, entry)) = tables.flow(&packet.key) else { return Known::Unknown };
    if wants_new_backend(&packet, &flow, tables) || tunnel::would_return(hook, &flow) {
        return Known::Unknown;
    }
    if conntrack::has_departed(flow.state) {
        return Known::Verdict(packet, say_departed(hook, ifindex, (&packet, frame), tables));
    }
    let mut next = next_state(flow.state, packet.segment.flags);
    if tells_answer(packet.segment.flags, &flow) {
        next |= state::ESTABLISHED;
    }
    let whole = conntrack::record::<F, T>(entry, &flow, next, packet.key.proto, now, tables);
    if !whole && !mended && flow.state & state::REPLY == 0 {
        return Known::Torn;
    }
    Known::Verdict(packet, forwarded(hook, &packet, &flow, frame.len(), tables))
}

/// Writes the entry of the way back of a packet's flow anew.
#[inline(always)]
pub fn mend<F: Family, T: Tables<F>, P: Frame>(frame: &P, tables: &T) {
    if let Some(key) = wire::key::<F, P>(frame)
        && let Some((flow, _)) = tables.flow(&key)
    {
        restore_reply(&key, &flow, tables);
    }
}

/// What [`decide_new`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum New<F: Family> {
    /// The decision.
    Verdict(Verdict<F>),
    /// A flow to [`open`].
    Open(Choice),
    /// Neither TCP nor UDP: ask [`decide_other`].
    Other,
}

/// The part of [`decide`] for a TCP or UDP packet that opens a flow, or is not to a service.
#[inline(always)]
pub fn decide_new<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    frame: &P,
    tables: &T,
    now: u32,
) -> New<F> {
    let packet = parse::<F, P>(frame);
    if let Some(reason) = packet.kind.defect() {
        // What the host's own stack built is not ours to judge.
        let theirs = !hook.is_ingress();
        return New::Verdict(if theirs { Verdict::Pass(counter::PASSED) } else { Verdict::Drop(reason) });
    }
    if let Err(reason) = guard::check::<F, T, P>(hook, ifindex, &packet.key, frame, tables) {
        return New::Verdict(Verdict::Drop(reason));
    }
    if !packet.has_ports() {
        return New::Other;
    }
    if guard::is_lease::<F>(hook, &packet.key) {
        return New::Verdict(Verdict::Drop(Reason::Dhcp));
    }
    if overlay::is_forged::<F, T>(hook, &packet.key, tables) {
        return New::Verdict(Verdict::Drop(Reason::Overlay));
    }
    if let Some(exit) = local_pod(hook, &packet, tables) {
        return New::Verdict(Verdict::Deliver(exit));
    }
    New::Verdict(match resolve::<F, T>(hook, &packet.key, tables) {
        Asked::Frontend(frontend)
            if hook == Hook::Tunnel && frontend.flags & frontend_flag::EXTERNAL == 0 =>
        {
            Verdict::Drop(Reason::Tunnel)
        }
        Asked::Frontend(frontend) if !is_admitted::<F, T>(&frontend, &packet.key.src, tables) => {
            Verdict::Drop(Reason::SourceRange)
        }
        Asked::Frontend(frontend) => match choose(hook, ifindex, (&packet, frame), frontend, tables, now) {
            Ok(choice) => return New::Open(choice),
            Err(verdict) => verdict,
        },
        Asked::UnknownPort => refuse(hook, ifindex, (&packet, frame), tables),
        Asked::Other if egress::opens::<F, T>(hook, &packet, tables) => {
            return New::Open(Choice::EGRESS);
        }
        Asked::Other => direct(hook, &packet, frame.len(), tables),
    })
}

/// The part of [`decide`] for ICMP echo, both what asks and what answers: [`egress::decide_echo`] with all that follows.
#[inline(always)]
pub fn decide_ping<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    frame: &P,
    tables: &T,
    now: u32,
) -> Verdict<F> {
    let echo = egress::decide_echo(hook, frame, false, tables, now);
    match echo.finding {
        egress::Finding::Open => {}
        _ => return echo.verdict().unwrap_or_else(|| decide_other(hook, ifindex, frame, tables)),
    }
    match in_rounds(|round| egress::depart(hook, ifindex, (frame, round), tables, now)) {
        Ok(false) => Verdict::Pass(counter::PASSED),
        Err(reason) => Verdict::Drop(reason),
        Ok(true) => {
            let opened = egress::decide_echo(hook, frame, true, tables, now).verdict();
            opened.unwrap_or(Verdict::Drop(Reason::FlowTable))
        }
    }
}

/// The part of [`decide`] that opens a flow to the chosen backend, or out of the cluster: afterwards both its entries are in the
/// table, and [`decide_known`] has the verdict. `Ok(false)`: nothing is to be done with it. `Err`: the reason to drop the packet.
#[inline(always)]
pub fn open<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    frame: &P,
    choice: Choice,
    tables: &T,
    now: u32,
) -> Result<bool, Reason> {
    in_rounds(|round| {
        if choice.is_egress() {
            return egress::depart(hook, ifindex, (frame, round), tables, now);
        }
        open_to_backend(hook, ifindex, frame, (choice, round), tables, now).map(|()| true)
    })
}

/// Opens a flow in as many rounds as it takes to find a port for it.
#[inline(always)]
fn in_rounds(open: impl Fn(u32) -> Result<bool, Reason>) -> Result<bool, Reason> {
    let mut round = 0;
    loop {
        match open(round) {
            Err(Reason::NoPort) if round + 1 < ports::ROUNDS => round += 1,
            opened => return opened,
        }
    }
}

/// One round of [`open`] for a flow to a backend.
///
/// # Errors
/// The reason to drop the packet; [`Reason::NoPort`]: none in this round of the [search](ports).
#[inline(always)]
pub fn open_to_backend<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    frame: &P,
    choice: (Choice, u32),
    tables: &T,
    now: u32,
) -> Result<(), Reason> {
    match wire::key::<F, P>(frame) {
        Some(key) => track(hook, ifindex, (&key, frame), choice, tables, now),
        None => Err(Reason::Truncated),
    }
}

/// The part of [`decide`] for ICMP errors about flows, in the table or of another node. The packet's addresses have been checked by
/// [`decide_new`].
#[inline(always)]
pub fn decide_error<F: Family, T: Tables<F>, P: Frame>(hook: Hook, frame: &P, tables: &T) -> Errand<F> {
    let packet = parse::<F, P>(frame);
    if packet.kind != Kind::IcmpError {
        return Errand::foreign();
    }
    icmp::error(hook, &packet, frame, tables)
}

/// The part of [`decide`] for what else has no ports, but for [pieces](fragment) of packets. The packet's addresses have been
/// checked by [`decide_new`].
#[inline(always)]
pub fn decide_other<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    frame: &P,
    tables: &T,
) -> Verdict<F> {
    let packet = parse::<F, P>(frame);
    if hook == Hook::Tunnel || tunnel::is_foreign(hook, &packet.key.dst, packet.key.proto, tables) {
        return Verdict::Drop(Reason::Tunnel);
    }
    let ours = match packet.kind {
        Kind::Echo => icmp::echo(hook, ifindex, (&packet, frame), tables),
        Kind::Options => refuse_options(hook, &packet, frame, tables),
        // An error about a flow has its verdict already; a service address itself has no use for one.
        Kind::Protocol | Kind::EchoReply | Kind::IcmpError => {
            refuse_opaque(hook, &packet, Reason::Protocol, tables)
        }
        _ => None,
    };
    if let Some(verdict) = ours {
        return verdict;
    }
    // What answers has been asked by somebody who knows the way to the pod.
    let untranslated = match packet.kind {
        Kind::Options => Reason::Options,
        Kind::Protocol => Reason::Protocol,
        _ => return direct(hook, &packet, frame.len(), tables),
    };
    if egress::would_leak::<F, T>(hook, &packet.key, tables) {
        return Verdict::Drop(untranslated);
    }
    direct(hook, &packet, frame.len(), tables)
}

/// What [`established`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Short<F: Family> {
    /// A packet that tells nothing new about its flow: what [`decide`] would say, except that a UDP flow whose
    /// backend is gone moves with the next tick only.
    Verdict(Packet<F>, Verdict<F>),
    /// A packet of a flow in the table: ask [`decide_known`] first.
    News,
    /// No flow in the table, or nothing that has one: ask [`decide_new`] first.
    Unknown,
}

/// The short way for a packet of an established flow, and for the packet that [`open`] has just opened a flow for
/// (`fresh`): one look-up. `beat` is now, in [beats](portolan_abi::BEAT).
#[inline(always)]
pub fn established<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    frame: &P,
    fresh: bool,
    tables: &T,
    beat: u8,
) -> Short<F> {
    let packet = parse::<F, P>(frame);
    if !packet.has_ports() {
        return Short::Unknown;
    }
    let Some((flow, _)) = tables.flow(&packet.key) else { return Short::Unknown };
    let flags = packet.segment.flags;
    let told = if fresh { !tells_end(flags) } else { is_quiet(flags, &flow, beat) };
    let told = told && !tells_answer(flags, &flow) && !tunnel::would_return(hook, &flow);
    if !told || packet.ttl <= 1 || !guard::is_proven::<F, P>(hook, ifindex, &packet.key, &flow, frame) {
        return Short::News;
    }
    Short::Verdict(packet, forwarded(hook, &packet, &flow, frame.len(), tables))
}

/// What to put in the place of a packet that got [`Verdict::Reject`], and where it goes.
#[inline(always)]
pub fn refusal<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    frame: &P,
    tables: &T,
) -> Option<(Packet<F>, Rejection<F>, Exit)> {
    let packet = parse::<F, P>(frame);
    let config = tables.config()?;
    let exit = way_back(hook, ifindex, frame, &config)?;
    let rejection = Rejection::of(&packet);
    Some((packet, rejection, exit))
}

/// Whether a packet of a known flow shall be decided on as if it opened it: a client that starts again after either
/// side has said that it is done, or whose backend is gone. A TCP connection that is neither opened nor closed goes on, whatever became of
/// its backend: only the two ends know whether it still answers.
#[inline(always)]
fn wants_new_backend<F: Family, T: Tables<F>>(packet: &Packet<F>, flow: &Flow<F::Addr>, tables: &T) -> bool {
    if flow.state & state::REPLY != 0 {
        return false;
    }
    if flow.service == NO_SERVICE {
        let opens = packet.segment.opens();
        let may = packet.kind != Kind::Tcp || opens;
        return opens && is_ending(flow.state) || may && egress::came_inside::<F, T>(&packet.key.dst, tables);
    }
    if packet.kind != Kind::Tcp {
        return !has_backend::<F, T>(flow, tables);
    }
    packet.segment.opens() && (is_ending(flow.state) || !has_backend::<F, T>(flow, tables))
}

/// Says no to a port that a service address does not have.
#[inline(always)]
fn refuse<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    (packet, frame): (&Packet<F>, &P),
    tables: &T,
) -> Verdict<F> {
    let Some(config) = tables.config() else { return Verdict::Drop(Reason::Dangling) };
    reject(hook, ifindex, (packet, frame), &config, Reason::UnknownPort)
}

/// Tells either end of a connection that its backend left. What the host sends to a pod is on its way out of the node's
/// stack, where there is no way back to its sender: that one hears of it by its own timer.
#[inline(always)]
fn say_departed<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    (packet, frame): (&Packet<F>, &P),
    tables: &T,
) -> Verdict<F> {
    match tables.config() {
        Some(config) if hook != Hook::PodEgress => {
            reject(hook, ifindex, (packet, frame), &config, Reason::Departed)
        }
        _ => Verdict::Drop(Reason::Departed),
    }
}

/// Packets without ports: no service takes them.
#[inline(always)]
pub(crate) fn refuse_opaque<F: Family, T: Tables<F>>(
    hook: Hook,
    packet: &Packet<F>,
    reason: Reason,
    tables: &T,
) -> Option<Verdict<F>> {
    let vip = mark::<F, T>(&packet.key.dst, tables) & frontend_flag::VIP != 0;
    (vip && hook != Hook::PodEgress).then_some(Verdict::Drop(reason))
}

/// Packets with IP options or extension headers: nobody translates them, and what would need that must not leave as it is.
#[inline(always)]
fn refuse_options<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    packet: &Packet<F>,
    frame: &P,
    tables: &T,
) -> Option<Verdict<F>> {
    let refused = refuse_opaque(hook, packet, Reason::Options, tables);
    if refused.is_some() {
        return refused;
    }
    let key = wire::buried_key(frame, packet)?;
    let ours =
        tables.flow(&key).is_some() || matches!(resolve::<F, T>(hook, &key, tables), Asked::Frontend(_));
    ours.then_some(Verdict::Drop(Reason::Options))
}

/// The pod of this node that a packet which arrives is for. No service has the address of a pod.
#[inline(always)]
fn local_pod<F: Family, T: Tables<F>>(hook: Hook, packet: &Packet<F>, tables: &T) -> Option<Exit> {
    // What another node sent inside of its own is for services.
    if !hook.is_ingress() || hook == Hook::Tunnel {
        return None;
    }
    Some(Exit::pod(&tables.endpoint(&packet.key.dst)?))
}

/// Traffic that is not to a service: pod to pod, or the host's own. `len`: of the frame, in bytes.
#[inline(always)]
pub(crate) fn direct<F: Family, T: Tables<F>>(
    hook: Hook,
    packet: &Packet<F>,
    len: u32,
    tables: &T,
) -> Verdict<F> {
    if hook == Hook::Service {
        // The host's stack announces its groups on every interface.
        let announced = packet.key.dst.is_multicast();
        return Verdict::Drop(if announced { Reason::LinkLocal } else { Reason::UnknownService });
    }
    if hook == Hook::Tunnel {
        return Verdict::Drop(Reason::Tunnel);
    }
    if let Some(exit) = local_pod(hook, packet, tables) {
        return Verdict::Deliver(exit);
    }
    if let Some(exit) = overlay::direct::<F, T>(hook, &packet.key.dst, len, tables) {
        return if packet.ttl > 1 { Verdict::Deliver(exit) } else { Verdict::Pass(counter::PASSED) };
    }
    Verdict::Pass(match packet.kind {
        Kind::Fragment => counter::PASSED_FRAGMENT,
        Kind::Options => counter::PASSED_OPTIONS,
        Kind::Protocol | Kind::EchoReply => counter::PASSED_PROTOCOL,
        _ => counter::PASSED,
    })
}
