//! Pieces of packets that were cut on their way. The first one has ports and is decided on as the whole would be; what
//! becomes of it is written down for the others, which follow it.
//!
//! Others may come before it. Where they can be for a service they wait, because only the first one can say so.

use portolan_abi::{EARLY_PIECES, Flow, Fragment, FragmentKey, counter, exit, fate, frontend_flag};

use crate::decide::{direct, refuse_opaque};
use crate::service::{Choice, forwarded, mark};
use crate::wire::{FirstPiece, Frame, Packet, Piece, parse, piece, proto};
use crate::{
    Address, Exit, Family, Hook, Known, New, Reason, Rewrite, Tables, Verdict, decide_known, decide_new,
    egress, look_up, mend, open, open_to_backend, tunnel, wire,
};

/// How long pieces belong together, in ticks of 2^30 ns: receivers wait 30 s (Linux, `ipfrag_time`) and up to 60
/// (RFC 8200 4.5), and no sender uses an identification again so soon.
const LIFETIME: u32 = 30;

/// What to do with a piece. Without data, as [`Kind`](crate::wire::Kind) is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Translate its addresses and send it.
    Send,
    /// Send it inside of another packet, if that fits.
    Parcel,
    /// See [`Verdict::Wait`].
    Wait,
    /// See [`Verdict::Release`].
    Release,
    /// Drop it.
    Drop,
    /// It is a first one: [`note`] what becomes of the others, then ask [`decide_first`].
    First,
    /// It is of no flow: ask [`decide_stray`].
    Stray,
}

/// The decision on a piece that has no ports. Everything in it always has a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Later<F: Family> {
    /// What to do.
    pub next: Next,
    /// The piece.
    pub packet: Packet<F>,
    /// What to send.
    pub rewrite: Rewrite<F::Addr>,
    /// Where to send it.
    pub exit: Exit,
    /// Why to drop it.
    pub reason: Reason,
}

impl<F: Family> Later<F> {
    #[inline(always)]
    fn of(packet: Packet<F>, next: Next, reason: Reason) -> Self {
        let nobody = F::Addr::UNSPECIFIED;
        let rewrite = Rewrite { src: nobody, dst: nobody, ports: 0, ttl: 0 };
        Self { next, packet, rewrite, exit: Exit::STACK, reason }
    }

    /// As a verdict; `None` where another step has it.
    #[inline(always)]
    pub fn verdict(&self) -> Option<Verdict<F>> {
        Some(match self.next {
            Next::Send => Verdict::Forward(self.rewrite, self.exit),
            Next::Parcel => Verdict::Encapsulate(self.exit),
            Next::Wait => Verdict::Wait,
            Next::Release => Verdict::Release,
            Next::Drop => Verdict::Drop(self.reason),
            Next::First | Next::Stray => return None,
        })
    }
}

/// Decides on a piece, once [`decide_new`] has checked its addresses, but for a first one.
#[inline(always)]
pub fn decide_later<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    frame: &P,
    tables: &T,
    now: u32,
) -> Later<F> {
    let packet = parse::<F, P>(frame);
    let Some(Piece { key, first }) = piece::<F, P>(frame) else {
        return Later::of(packet, Next::Drop, Reason::Truncated);
    };
    if tunnel::is_foreign(hook, &key.dst, key.proto, tables) {
        return Later::of(packet, Next::Drop, Reason::Tunnel);
    }
    let fragment = recent(&key, tables, now);
    let next = match fragment {
        Some(Fragment { fate: fate::WAITING, waiting: 1.., .. }) if first => Next::Release,
        _ if first => Next::First,
        Some(fragment) if fragment.fate == fate::FLOW => {
            return follow(hook, packet, &fragment.flow, frame, tables);
        }
        Some(fragment) if fragment.fate == fate::DROP => Next::Drop,
        Some(fragment) if fragment.fate == fate::DIRECT => Next::Stray,
        Some(fragment) if fragment.waiting >= EARLY_PIECES => Next::Drop,
        _ if may_wait(hook, &key, tables) => Next::Wait,
        _ => Next::Stray,
    };
    Later::of(packet, next, Reason::Fragment)
}

/// A piece whose packet is of no flow, or that nobody knows the packet of: no service takes it.
#[inline(always)]
pub fn decide_stray<F: Family, T: Tables<F>, P: Frame>(hook: Hook, frame: &P, tables: &T) -> Verdict<F> {
    let packet = parse::<F, P>(frame);
    match refuse_opaque(hook, &packet, Reason::Fragment, tables) {
        Some(verdict) => verdict,
        // Its address is all there is to translate, but the ports of the first one say into what.
        None if egress::would_leak::<F, T>(hook, &packet.key, tables) => Verdict::Drop(Reason::Fragment),
        None => direct(hook, &packet, frame.len(), tables),
    }
}

/// Makes the pieces that come after a first one follow its flow, if that is in the table.
#[inline(always)]
pub fn note<F: Family, T: Tables<F>, P: Frame>(frame: &P, tables: &T, now: u32) {
    let Some(flow_key) = wire::key::<F, _>(&FirstPiece(frame)) else { return };
    let Some((flow, _)) = tables.flow(&flow_key) else { return };
    if let Some(Piece { key, .. }) = piece::<F, P>(frame) {
        keep(&key, flow, fate::FLOW, tables, now);
    }
}

/// Decides on a first piece of a flow in the table; `None` for all else. Who sends pieces does not learn from being told of
/// a size.
#[inline(always)]
pub fn decide_first<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    frame: &P,
    tables: &T,
    now: u32,
) -> Option<(Packet<F>, Verdict<F>)> {
    let (packet, verdict) = decide_known::<F, T, _>(hook, ifindex, &FirstPiece(frame), tables, now)?;
    Some((
        packet,
        if matches!(verdict, Verdict::TooBig(_)) { Verdict::Drop(Reason::TooBig) } else { verdict },
    ))
}

/// [`decide_first`] without what a program's stack has no room for: see [`look_up`].
#[inline(always)]
pub fn look_up_first<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    frame: &P,
    mended: bool,
    tables: &T,
    now: u32,
) -> Known<F> {
    look_up::<F, T, _>(hook, ifindex, &FirstPiece(frame), mended, tables, now)
}

/// [`mend`] for the flow of a first piece.
#[inline(always)]
pub fn mend_first<F: Family, T: Tables<F>, P: Frame>(frame: &P, tables: &T) {
    mend::<F, T, _>(&FirstPiece(frame), tables);
}

/// Decides on a first piece of no flow. A flow is then to be opened by [`open_first`]; any other decision, and that of
/// [`decide_stray`] where there is none, is to be [noted](note_fate).
#[inline(always)]
pub fn decide_new_first<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    frame: &P,
    tables: &T,
    now: u32,
) -> New<F> {
    decide_new::<F, T, _>(hook, ifindex, &FirstPiece(frame), tables, now)
}

/// Makes the pieces that come after a first one of no flow share its fate, where they would wait otherwise.
#[inline(always)]
pub fn note_fate<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    frame: &P,
    dropped: bool,
    tables: &T,
    now: u32,
) {
    if let Some(Piece { key, .. }) = piece::<F, P>(frame)
        && may_wait(hook, &key, tables)
    {
        keep(&key, nowhere(), if dropped { fate::DROP } else { fate::DIRECT }, tables, now);
    }
}

/// [`open`] for a first piece; afterwards [`note`] it, and [`decide_first`] has the verdict.
#[inline(always)]
pub fn open_first<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    frame: &P,
    choice: (Choice, u32),
    tables: &T,
    now: u32,
) -> Result<(), Reason> {
    open_to_backend::<F, T, _>(hook, ifindex, &FirstPiece(frame), choice, tables, now)
}

/// [`egress::depart`] for a first piece.
///
/// # Errors
/// The reason to drop the packet.
#[inline(always)]
pub fn depart_first<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    (frame, round): (&P, u32),
    tables: &T,
    now: u32,
) -> Result<bool, Reason> {
    egress::depart::<F, T, _>(hook, ifindex, (&FirstPiece(frame), round), tables, now)
}

/// All steps after each other.
#[inline(always)]
pub(crate) fn decide_all<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    frame: &P,
    tables: &T,
    now: u32,
) -> Verdict<F> {
    let later = decide_later(hook, frame, tables, now);
    if later.next == Next::Stray {
        return decide_stray(hook, frame, tables);
    }
    if let Some(verdict) = later.verdict() {
        return verdict;
    }
    note(frame, tables, now);
    if let Some((_, verdict)) = decide_first(hook, ifindex, frame, tables, now) {
        return verdict;
    }
    let verdict = match decide_new_first(hook, ifindex, frame, tables, now) {
        New::Verdict(verdict) => verdict,
        New::Other => decide_stray(hook, frame, tables),
        New::Open(choice) => return open_all(hook, ifindex, frame, choice, tables, now),
    };
    note_fate(hook, frame, counter::is_drop(verdict.outcome()), tables, now);
    verdict
}

#[inline(always)]
fn open_all<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    ifindex: u32,
    frame: &P,
    choice: Choice,
    tables: &T,
    now: u32,
) -> Verdict<F> {
    match open::<F, T, _>(hook, ifindex, &FirstPiece(frame), choice, tables, now) {
        Ok(true) => {}
        Ok(false) => return Verdict::Pass(counter::PASSED_FRAGMENT),
        Err(reason) => return Verdict::Drop(reason),
    }
    note(frame, tables, now);
    match decide_first(hook, ifindex, frame, tables, now) {
        Some((_, verdict)) => verdict,
        None => Verdict::Drop(Reason::FlowTable),
    }
}

/// The flow that the pieces of a packet follow.
#[inline(always)]
pub(crate) fn flow<F: Family, T: Tables<F>, P: Frame>(frame: &P, tables: &T) -> Option<Flow<F::Addr>> {
    let Piece { key, .. } = piece::<F, P>(frame)?;
    let fragment = tables.fragment(&key)?;
    (fragment.fate == fate::FLOW).then_some(fragment.flow)
}

/// What is known of a packet's pieces, unless it was another packet.
#[inline(always)]
fn recent<F: Family, T: Tables<F>>(
    key: &FragmentKey<F::Addr>,
    tables: &T,
    now: u32,
) -> Option<Fragment<F::Addr>> {
    let fragment = tables.fragment(key)?;
    is_recent(&fragment.flow, now).then_some(fragment)
}

/// Whether what is known of a packet's pieces was not of another packet, by the time in its record.
#[inline(always)]
#[must_use]
pub fn is_recent<A>(flow: &Flow<A>, now: u32) -> bool {
    let idle = now.wrapping_sub(flow.seen);
    // A clock read on another CPU may be a tick behind.
    idle <= LIFETIME || idle > u32::MAX / 2
}

/// The record of a packet of which the first piece that came is not its first.
#[inline(always)]
#[must_use]
pub fn waiting<A: Address>(token: u32, now: u32) -> Fragment<A> {
    Fragment { flow: Flow { seen: now, ..nowhere() }, fate: fate::WAITING, waiting: 1, token, zero: 0 }
}

#[inline(always)]
fn keep<F: Family, T: Tables<F>>(
    key: &FragmentKey<F::Addr>,
    flow: Flow<F::Addr>,
    fate: u32,
    tables: &T,
    now: u32,
) {
    let flow = Flow { seen: now, ..flow };
    tables.keep(key, &Fragment { flow, fate, waiting: 0, token: 0, zero: 0 });
}

/// A piece whose first one is known.
#[inline(always)]
fn follow<F: Family, T: Tables<F>, P: Frame>(
    hook: Hook,
    packet: Packet<F>,
    flow: &Flow<F::Addr>,
    frame: &P,
    tables: &T,
) -> Later<F> {
    if tunnel::would_return(hook, flow) {
        return Later::of(packet, Next::Drop, Reason::Tunnel);
    }
    match forwarded(hook, &packet, flow, frame.len(), tables) {
        Verdict::Forward(rewrite, exit) => {
            Later { rewrite, exit, ..Later::of(packet, Next::Send, Reason::Fragment) }
        }
        Verdict::Encapsulate(exit) => Later { exit, ..Later::of(packet, Next::Parcel, Reason::Fragment) },
        Verdict::TooBig(_) => Later::of(packet, Next::Drop, Reason::TooBig),
        _ => Later::of(packet, Next::Drop, Reason::Ttl),
    }
}

/// Whether a piece may be for a service though nothing in it says so. What the host itself sends is in order; what another
/// node sent inside of its own packet cannot be put back there.
#[inline(always)]
fn may_wait<F: Family, T: Tables<F>>(hook: Hook, key: &FragmentKey<F::Addr>, tables: &T) -> bool {
    let ports = key.proto == u32::from(proto::TCP) || key.proto == u32::from(proto::UDP);
    let arrives = matches!(hook, Hook::Pod | Hook::Uplink);
    ports && arrives && mark::<F, T>(&key.dst, tables) & (frontend_flag::VIP | frontend_flag::NODE) != 0
}

/// In the place of a flow where there is none.
#[inline(always)]
fn nowhere<A: Address>() -> Flow<A> {
    Flow {
        src: A::UNSPECIFIED,
        dst: A::UNSPECIFIED,
        ports: 0,
        ifindex: 0,
        mac: [0; 3],
        exit: exit::STACK,
        state: 0,
        seen: 0,
        service: 0,
        backend: 0,
        from_ifindex: 0,
        from_mac: [0; 3],
        from: 0,
        beat: 0,
    }
}
