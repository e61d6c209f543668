//! Carries a verdict out. Order matters: headers through packet pointers first, helpers that move the packet
//! last, because they end the life of every pointer.

use aya_ebpf::bindings::{__sk_buff, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::{
    bpf_csum_update, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
    bpf_skb_change_tail, bpf_skb_pull_data,
};
use portolan_abi::{counter, exit};
use portolan_core::answer::{QUOTED, Rejection, awaiting, may_await, unreachable_checksum};
use portolan_core::checksum;
use portolan_core::egress::{identifier, identifier_at};
use portolan_core::icmp::{Translation, echo_reply, quoted_at};
use portolan_core::wire::{ETHERNET, Frame, Kind, Packet, parse, proto};
use portolan_core::{Address, Choice, Exit, Family, Hook, Rewrite, Verdict, gateway_mac, refusal};

use crate::frame::Linear;
use crate::tables::{Maps, Route};

/// Marks a [`Done`] that is a flow to open.
const OPEN: u64 = 1 << 63;

/// What became of a packet: the outcome to count in the upper half, the program's result in the lower.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Done(pub u64);

impl Done {
    /// No decision yet; nothing is known about the packet's flow.
    pub const UNKNOWN: u64 = u64::MAX;
    /// No decision yet; the packet's flow is in the table.
    pub const NEWS: u64 = u64::MAX - 1;
    /// The packet leaves inside of another, if that fits.
    pub const PARCEL: u64 = u64::MAX - 2;
    /// No decision yet: the packet is a piece of one.
    pub const PIECE: u64 = u64::MAX - 3;
    /// The piece waits for the first one.
    pub const WAIT: u64 = u64::MAX - 4;
    /// The first piece, for which others wait.
    pub const RELEASE: u64 = u64::MAX - 5;
    /// The piece is of no flow.
    pub const STRAY: u64 = u64::MAX - 6;
    /// No decision yet: the packet's flow has lost the entry of its way back.
    pub const TORN: u64 = u64::MAX - 7;

    #[inline(always)]
    pub const fn new(outcome: u32, action: i32) -> Self {
        Self((outcome as u64) << 32 | action as u32 as u64)
    }

    #[inline(always)]
    pub const fn outcome(self) -> u32 {
        (self.0 >> 32) as u32
    }

    #[inline(always)]
    pub const fn action(self) -> i32 {
        self.0 as u32 as i32
    }

    /// The packet is to be replaced by [`refuse`], which is a function of its own: its caller's stack is full.
    const REFUSE: i32 = i32::MAX;

    /// The packet is to be replaced by [`complain`](crate::tunnel::complain).
    pub const COMPLAIN: i32 = i32::MAX - 1;

    /// The packet's sender is to be told what gets through.
    pub const TOO_BIG: Self = Self::new(portolan_abi::counter::REJECTED_TOO_BIG, Self::COMPLAIN);

    /// Whether the packet awaits [`complain`](crate::tunnel::complain).
    #[inline(always)]
    pub const fn is_complaint(self) -> bool {
        self.action() == Self::COMPLAIN
    }

    /// No decision yet: a flow is to be opened. Both indexes are far below 2^31.
    #[inline(always)]
    pub const fn open(choice: Choice) -> Self {
        Self(OPEN | (choice.service as u64) << 32 | choice.backend as u64)
    }

    /// The flow to open, if that is what comes next.
    #[inline(always)]
    pub const fn choice(self) -> Option<Choice> {
        if self.0 & OPEN == 0 || self.0 >= Self::TORN {
            return None;
        }
        Some(Choice { service: ((self.0 & !OPEN) >> 32) as u32, backend: self.0 as u32 })
    }

    /// Whether the packet awaits [`refuse`].
    #[inline(always)]
    pub const fn is_refusal(self) -> bool {
        self.action() == Self::REFUSE
    }

    #[inline(always)]
    pub const fn failed() -> Self {
        Self::new(counter::DROP_KERNEL, TC_ACT_SHOT)
    }
}

/// Carries out a verdict that leaves the packet's contents alone. Each function that translates does its own, so
/// that the code for it stands in one function only.
#[inline(always)]
pub fn untouched<F: Family>(skb: *mut __sk_buff, hook: Hook, verdict: Verdict<F>) -> Done {
    match verdict {
        Verdict::Pass(outcome) => Done::new(outcome, TC_ACT_UNSPEC),
        Verdict::Drop(reason) => Done::new(reason as u32, TC_ACT_SHOT),
        Verdict::Reject(_, reason) => Done::new(reason as u32, Done::REFUSE),
        Verdict::TooBig(_) => Done::TOO_BIG,
        Verdict::Deliver(exit) if address(skb, hook, exit) => leave(hook, exit, exit.outcome()),
        _ => Done::failed(),
    }
}

/// Translates a packet with ports and sends it. Its transport header is `extra` bytes behind the fixed IP header.
#[inline(always)]
pub fn forward<F: Family>(
    skb: *mut __sk_buff,
    hook: Hook,
    packet: &Packet<F>,
    rewrite: &Rewrite<F::Addr>,
    exit: Exit,
    extra: usize,
) -> Done {
    let frame = Linear::new(skb);
    let transport = ETHERNET + F::HEADER_LEN + extra;
    // Loaded again: kept since the decision, it would take more stack than there is.
    let Some(header) = F::header(&frame, ETHERNET) else { return Done::failed() };
    let header = F::rewrite(header, rewrite.src, rewrite.dst, rewrite.ttl);
    let written =
        address(skb, hook, exit) && frame.write(ETHERNET, header) && frame.write(transport, rewrite.ports);
    if !written {
        return Done::failed();
    }
    if !correct(skb, hook, packet, rewrite, transport) {
        return Done::failed();
    }
    leave(hook, exit, exit.outcome())
}

/// Corrects the transport checksum of a packet whose headers are translated already. Most packets' is whole, and is corrected
/// here; one that may await the device is the kernel's to correct, which alone knows.
#[inline(always)]
fn correct<F: Family>(
    skb: *mut __sk_buff,
    hook: Hook,
    packet: &Packet<F>,
    rewrite: &Rewrite<F::Addr>,
    transport: usize,
) -> bool {
    let frame = Linear::new(skb);
    let key = &packet.key;
    let addresses = key.src.difference(rewrite.src) + key.dst.difference(rewrite.dst);
    let is_udp = key.proto == proto::UDP as u32;
    let at = transport + if is_udp { 6 } else { 16 };
    // SAFETY: the context is valid for the whole run.
    let is_cut_later = unsafe { (*skb).gso_size } != 0;
    let Some(field) = frame.half(at) else { return false };
    // What senders leave in a packet that the device will cut is not the same for all.
    if is_cut_later || may_await(packet, field) {
        return correct_by_kernel(skb, at, is_udp, addresses, (key.ports, rewrite.ports));
    }
    let new = checksum::update(field, addresses + checksum::difference(key.ports, rewrite.ports));
    // UDP's zero says that there is no checksum (RFC 768), and to TCP the two are one.
    let new = if new == 0 { u16::MAX } else { new };
    if !frame.write(at, new) {
        return false;
    }
    if F::HEADER_CHECKSUM && hook == Hook::Uplink {
        // A device may have summed the whole packet (`CHECKSUM_COMPLETE`): only the field above changes that sum by more than
        // something else takes back. It is an error, and of no importance, where no device has.
        // SAFETY: the context is the program's own.
        unsafe { bpf_csum_update(skb, u32::from(!checksum::fold(addresses))) };
    }
    true
}

/// Has the kernel correct a checksum: it knows whether the sum is whole or awaits the device. An address belongs to the pseudo
/// header, a port does not.
#[inline(always)]
fn correct_by_kernel(
    skb: *mut __sk_buff,
    at: usize,
    is_udp: bool,
    addresses: u32,
    (old, new): (u32, u32),
) -> bool {
    let udp = if is_udp { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
    // SAFETY: the context is the program's own; the helpers check the offset.
    unsafe {
        let pseudo = u64::from(BPF_F_PSEUDO_HDR) | udp;
        bpf_l4_csum_replace(skb, at as u32, 0, u64::from(addresses), pseudo) == 0
            && (old == new
                || bpf_l4_csum_replace(skb, at as u32, u64::from(old), u64::from(new), 4 | udp) == 0)
    }
}

/// Translates an ICMP echo, with the identifier that its ports are, and sends it.
#[inline(always)]
pub fn forward_echo<F: Family>(
    skb: *mut __sk_buff,
    hook: Hook,
    packet: &Packet<F>,
    rewrite: &Rewrite<F::Addr>,
    exit: Exit,
) -> Done {
    let frame = Linear::new(skb);
    let (at, sum) = (identifier_at::<F>(), (ETHERNET + F::HEADER_LEN + 2) as u32);
    let Some(header) = F::header(&frame, ETHERNET) else { return Done::failed() };
    let Some(old) = frame.half(at) else { return Done::failed() };
    let header = F::rewrite(header, rewrite.src, rewrite.dst, rewrite.ttl);
    let new = identifier(rewrite.ports);
    if !address(skb, hook, exit) || !frame.write(ETHERNET, header) || !frame.write(at, new) {
        return Done::failed();
    }
    let key = &packet.key;
    let addresses = key.src.difference(rewrite.src) + key.dst.difference(rewrite.dst);
    // SAFETY: the context is the program's own; the helpers check the offset.
    let failed = unsafe {
        bpf_l4_csum_replace(skb, sum, u64::from(old), u64::from(new), 2) != 0
            || (F::ICMP_PSEUDO
                && bpf_l4_csum_replace(skb, sum, 0, u64::from(addresses), u64::from(BPF_F_PSEUDO_HDR)) != 0)
    };
    if failed { Done::failed() } else { leave(hook, exit, exit.outcome()) }
}

/// Translates a piece without ports and sends it.
#[inline(always)]
pub fn forward_later<F: Family>(
    skb: *mut __sk_buff,
    hook: Hook,
    packet: &Packet<F>,
    rewrite: &Rewrite<F::Addr>,
    exit: Exit,
) -> Done {
    let header = F::rewrite(packet.header, rewrite.src, rewrite.dst, rewrite.ttl);
    if !address(skb, hook, exit) || !Linear::new(skb).write(ETHERNET, header) {
        return Done::failed();
    }
    leave(hook, exit, exit.outcome())
}

/// Translates an ICMP error and sends it.
#[inline(always)]
pub fn error<F: Family>(skb: *mut __sk_buff, hook: Hook, new: &Translation<F>, exit: Exit) -> Done {
    let frame = Linear::new(skb);
    let (Some(outer), Some(inner)) = (F::header(&frame, ETHERNET), F::header(&frame, quoted_at::<F>()))
    else {
        return Done::failed();
    };
    let written = address(skb, hook, exit)
        && frame.write(ETHERNET, new.outer(outer))
        && frame.write(quoted_at::<F>(), new.inner(inner))
        && frame.write(quoted_at::<F>() + F::HEADER_LEN, new.ports);
    if !written {
        return Done::failed();
    }
    let at = (ETHERNET + F::HEADER_LEN + 2) as u32;
    // SAFETY: as in `forward`.
    unsafe {
        if bpf_l4_csum_replace(skb, at, 0, u64::from(new.difference), 0) != 0 {
            return Done::failed();
        }
        if F::ICMP_PSEUDO
            && bpf_l4_csum_replace(skb, at, 0, u64::from(new.pseudo), u64::from(BPF_F_PSEUDO_HDR)) != 0
        {
            return Done::failed();
        }
    }
    leave(hook, exit, exit.outcome())
}

/// Turns an echo request into its reply.
#[inline(always)]
pub fn echo<F: Family>(skb: *mut __sk_buff, hook: Hook, exit: Exit) -> Done {
    let frame = Linear::new(skb);
    let packet = parse::<F, _>(&frame);
    let (header, old, new) = echo_reply(&packet);
    let transport = ETHERNET + F::HEADER_LEN;
    let kind = (new & u32::from_ne_bytes([0xff, 0, 0, 0])).to_ne_bytes()[0];
    let written = address(skb, hook, exit) && frame.write(ETHERNET, header) && frame.write(transport, kind);
    if !written {
        return Done::failed();
    }
    // SAFETY: as in `forward`. The pseudo header does not change when its addresses are exchanged.
    let failed = unsafe {
        bpf_l4_csum_replace(skb, (transport + 2) as u32, u64::from(old as u16), u64::from(new as u16), 2)
    };
    if failed != 0 {
        return Done::failed();
    }
    leave(hook, exit, counter::ECHO_ANSWERED)
}

/// Puts the answer to its sender in the place of a refused packet.
#[inline(always)]
pub fn refuse<F: Route>(skb: *mut __sk_buff, hook: Hook, ifindex: u32) -> i32 {
    let frame = Linear::new(skb);
    let transport = ETHERNET + F::HEADER_LEN;
    let Some((packet, rejection, exit)) = refusal::<F, _, _>(hook, ifindex, &frame, &Maps::<false>::new(skb))
    else {
        return TC_ACT_SHOT;
    };
    let Some(quoted) = frame.words::<2>(transport) else { return TC_ACT_SHOT };
    let sum = transport + if packet.kind == Kind::Tcp { 16 } else { 6 };
    let awaits = matches!(packet.kind, Kind::Tcp | Kind::Udp) && awaits_device(skb, sum);
    let written = match rejection {
        Rejection::Reset(header, segment) => {
            resize(skb, transport + 20) && frame.write(ETHERNET, header) && frame.write(transport, segment)
        }
        Rejection::Unreachable(header, icmp) => unreachable::<F>(skb, &packet, quoted, (header, icmp)),
    };
    let completed = !awaits || frame.write(sum, awaiting(&packet));
    if !written || !completed || !address(skb, hook, exit) {
        return TC_ACT_SHOT;
    }
    leave(hook, exit, 0).action()
}

/// Whether the packet's checksum awaits the device (`CHECKSUM_PARTIAL`), as that of local senders and of virtual
/// machines on the same host does. Only the kernel knows; it shows it by leaving such a sum as it is when something
/// outside of the pseudo header changes. The sum is spoiled afterwards.
#[inline(always)]
pub fn awaits_device(skb: *mut __sk_buff, at: usize) -> bool {
    let read = || Linear::new(skb).half(at);
    let before = read();
    // SAFETY: the context is the program's own; the helper checks the offset.
    let changed = unsafe { bpf_l4_csum_replace(skb, at as u32, 0, 1, 2) };
    changed == 0 && before == read()
}

/// Writes a "port unreachable" that quotes the packet it replaces.
#[inline(always)]
fn unreachable<F: Family>(
    skb: *mut __sk_buff,
    packet: &Packet<F>,
    quoted: [u32; 2],
    (header, icmp): (F::Header, [u32; 2]),
) -> bool {
    let frame = Linear::new(skb);
    let transport = ETHERNET + F::HEADER_LEN;
    let icmp = unreachable_checksum(packet, icmp, quoted);
    resize(skb, quoted_at::<F>() + F::HEADER_LEN + QUOTED)
        && frame.write(ETHERNET, header)
        && frame.write(transport, icmp)
        && frame.write(quoted_at::<F>(), packet.header)
        && frame.write(quoted_at::<F>() + F::HEADER_LEN, quoted)
}

/// Makes the packet `len` bytes long, all of them linear.
#[inline(always)]
pub fn resize(skb: *mut __sk_buff, len: usize) -> bool {
    // SAFETY: the context is the program's own.
    unsafe { bpf_skb_change_tail(skb, len as u32, 0) == 0 && bpf_skb_pull_data(skb, len as u32) == 0 }
}

/// Writes the Ethernet addresses that the way out needs; the others are left to the kernel.
#[inline(always)]
pub fn address(skb: *mut __sk_buff, hook: Hook, exit: Exit) -> bool {
    if !matches!(exit.kind, exit::POD | exit::HOST) || hook == Hook::PodEgress {
        return true;
    }
    let ([a, b, c], [d, e, f]) = (exit.mac, gateway_mac());
    Linear::new(skb).write(0, [a, b, c, d, e, f])
}

/// Hands the packet to the kernel for its way out.
#[inline(always)]
pub fn leave(hook: Hook, exit: Exit, outcome: u32) -> Done {
    // On the way to the pod already: the stack has done the rest.
    if hook == Hook::PodEgress {
        return Done::new(outcome, TC_ACT_UNSPEC);
    }
    // SAFETY: the helpers only note where the packet goes after the program's end.
    let action = unsafe {
        match exit.kind {
            // Straight into the pod's namespace, past the host's side; that exists on arrival only.
            exit::POD if hook.is_ingress() => bpf_redirect_peer(exit.ifindex, 0),
            exit::POD | exit::OVERLAY => bpf_redirect(exit.ifindex, 0),
            exit::UPLINK | exit::TUNNEL => bpf_redirect_neigh(exit.ifindex, core::ptr::null_mut(), 0, 0),
            exit::HOST => bpf_redirect(exit.ifindex, u64::from(BPF_F_INGRESS)),
            _ => return Done::new(outcome, TC_ACT_UNSPEC),
        }
    };
    Done::new(outcome, action as i32)
}
