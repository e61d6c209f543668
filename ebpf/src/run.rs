//! From a hook to a verdict: which family, the short way first, then the whole decision.
//!
//! The functions that are not inlined each have a stack frame of their own: both families and all steps
//! together would not fit into 512 bytes. They are global functions: the verifier looks at each once, for whatever arguments
//! its types allow, and not once for each state in which it is called. Only integers and the context cross them.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_skb_pull_data};
use aya_ebpf::programs::TcContext;
use portolan_abi::{counter, exit};
use portolan_core::egress::decide_echo;
use portolan_core::fragment::{
    self, Next, decide_later, decide_new_first, decide_stray, depart_first, look_up_first, open_first,
};
use portolan_core::icmp::Finding;
use portolan_core::wire::is_piece;
use portolan_core::{
    Choice, Family, Hook, Known, New, Reason, Short, V4, V6, Verdict, decide_error, decide_new, decide_other,
    egress, established, look_up, open_to_backend, ports,
};

use crate::apply::{self, Done};
use crate::flows::beat;
use crate::frame::Linear;
use crate::maps;
use crate::pieces;
use crate::tables::{Maps, Route};
use crate::trace;
use crate::tunnel;

/// EtherTypes in the byte order of the context.
pub const IPV4: u32 = V4::ETHERTYPE.to_be() as u32;
pub const IPV6: u32 = V6::ETHERTYPE.to_be() as u32;

/// Decides on a packet, carries it out and counts it.
#[inline(always)]
pub fn classify(ctx: &TcContext, hook: Hook) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid for the whole run.
    let protocol = unsafe { (*skb).protocol };
    trace::begin(skb, hook);
    let done = Done(match protocol {
        IPV4 => v4::steps(skb, hook),
        IPV6 => v6::steps(skb, hook),
        _ if hook == Hook::Pod => Done::new(Reason::NotIp as u32, TC_ACT_SHOT).0,
        _ => Done::new(counter::PASSED, TC_ACT_UNSPEC).0,
    });
    maps::count(done.outcome());
    trace::end(skb, done.outcome());
    done.action()
}

/// One family's functions, each with a stack frame of its own.
macro_rules! family {
    ($name:ident, $family:ty) => {
        mod $name {
            use super::*;

            /// All steps, each only where the one before has not decided. Which there are for a place is known at compile
            /// time: its program does without the others.
            #[inline(always)]
            pub fn steps(skb: *mut __sk_buff, place: Hook) -> u64 {
                pull::<$family>(skb);
                let Some(hook) = taken_out(skb, place) else { return Done::failed().0 };
                let mut done = of_flow(skb, hook);
                if done == Done::UNKNOWN {
                    done = of_new_flow(skb, place, hook);
                }
                if done == Done::UNKNOWN {
                    done = without_ports(skb, place, hook);
                }
                if done == Done::PIECE {
                    done = of_piece(skb, place, hook);
                }
                carried_out(skb, place, hook, done)
            }

            /// Where the packet counts as caught, once it is taken out of another node's; `None`: the kernel refused.
            #[inline(always)]
            fn taken_out(skb: *mut __sk_buff, place: Hook) -> Option<Hook> {
                if place != Hook::Uplink || !tunnel::may_carry::<$family>(skb) {
                    return Some(place);
                }
                match unpack(skb) {
                    tunnel::FOREIGN => Some(place),
                    tunnel::UNPACKED => {
                        pull::<$family>(skb);
                        Some(Hook::Tunnel)
                    }
                    _ => None,
                }
            }

            /// The short way for a flow in the table, then the long one.
            #[inline(always)]
            fn of_flow(skb: *mut __sk_buff, hook: Hook) -> u64 {
                let mut done = short(skb, hook, false);
                if done == Done::NEWS {
                    done = known(skb, hook, false);
                }
                if done == Done::TORN {
                    mend(skb);
                    done = known(skb, hook, true);
                }
                done
            }

            /// A flow that is not in the table.
            #[inline(always)]
            fn of_new_flow(skb: *mut __sk_buff, place: Hook, hook: Hook) -> u64 {
                let done = new(skb, hook);
                let Some(choice) = Done(done).choice() else { return done };
                let done = in_rounds(|round| {
                    if place == Hook::Pod && choice.is_egress() {
                        depart(skb, hook, round)
                    } else {
                        open(skb, hook, choice.service, choice.backend, round)
                    }
                });
                if done != Done::NEWS {
                    return done;
                }
                let mut done = short(skb, hook, true);
                if done == Done::NEWS {
                    done = known(skb, hook, true);
                }
                opened(done)
            }

            /// ICMP and all else that is neither TCP nor UDP.
            #[inline(always)]
            fn without_ports(skb: *mut __sk_buff, place: Hook, hook: Hook) -> u64 {
                let mut done = error(skb, hook);
                if matches!(place, Hook::Pod | Hook::Uplink) && done == Done::UNKNOWN {
                    done = echo(skb, hook, false);
                    if place == Hook::Pod && Done(done).choice().is_some() {
                        done = in_rounds(|round| depart(skb, hook, round));
                        if done == Done::NEWS {
                            done = opened(echo(skb, hook, true));
                        }
                    }
                }
                if done == Done::UNKNOWN { other(skb, hook) } else { done }
            }

            /// Pieces of packets. What the host sends is in order: nothing of it waits.
            #[inline(always)]
            fn of_piece(skb: *mut __sk_buff, place: Hook, hook: Hook) -> u64 {
                let mut done = later(skb, hook);
                if done == Done::UNKNOWN {
                    done = of_first_piece(skb, place, hook);
                }
                if done == Done::STRAY {
                    done = stray(skb, hook);
                }
                if matches!(place, Hook::Pod | Hook::Uplink) {
                    if done == Done::WAIT {
                        done = wait(skb);
                    }
                    if done == Done::RELEASE {
                        done = release(skb);
                    }
                }
                done
            }

            /// A first piece, and what it says of the others.
            #[inline(always)]
            fn of_first_piece(skb: *mut __sk_buff, place: Hook, hook: Hook) -> u64 {
                note(skb);
                let mut done = first(skb, hook, false);
                if done == Done::TORN {
                    mend_first(skb);
                    done = first(skb, hook, true);
                }
                if done != Done::UNKNOWN {
                    return done;
                }
                done = new_first(skb, hook);
                let Some(choice) = Done(done).choice() else {
                    if done == Done::UNKNOWN {
                        done = stray(skb, hook);
                    }
                    note_fate(skb, hook, counter::is_drop(Done(done).outcome()));
                    return done;
                };
                done = in_rounds(|round| {
                    if place == Hook::Pod && choice.is_egress() {
                        depart_first(skb, hook, round)
                    } else {
                        open_first(skb, hook, choice.service, choice.backend, round)
                    }
                });
                if done == Done::NEWS {
                    note(skb);
                    done = opened(first(skb, hook, true));
                }
                done
            }

            /// What is still to be done once it is decided: put the packet into another, or an answer in its place. Complaints
            /// are for what arrives alone: the stack tells the host's own processes.
            #[inline(always)]
            fn carried_out(skb: *mut __sk_buff, place: Hook, hook: Hook, mut done: u64) -> u64 {
                if done == Done::PARCEL {
                    done = if place == Hook::Uplink && hook == Hook::Uplink {
                        pack(skb)
                    } else {
                        Done::new(Reason::Tunnel as u32, TC_ACT_SHOT).0
                    };
                }
                if matches!(place, Hook::Pod | Hook::Uplink) && Done(done).is_complaint() {
                    done = Done::new(Done(done).outcome(), complain(skb, hook)).0;
                }
                if Done(done).is_refusal() {
                    done = Done::new(Done(done).outcome(), refuse(skb, hook)).0;
                }
                done
            }

            #[unsafe(export_name = concat!(stringify!($name), "_short"))]
            #[inline(never)]
            extern "C" fn short(skb: *mut __sk_buff, hook: Hook, fresh: bool) -> u64 {
                super::short::<$family>(skb, hook, fresh)
            }

            #[unsafe(export_name = concat!(stringify!($name), "_known"))]
            #[inline(never)]
            extern "C" fn known(skb: *mut __sk_buff, hook: Hook, mended: bool) -> u64 {
                super::known::<$family>(skb, hook, mended)
            }

            #[unsafe(export_name = concat!(stringify!($name), "_mend"))]
            #[inline(never)]
            extern "C" fn mend(skb: *mut __sk_buff) -> u64 {
                portolan_core::mend::<$family, _, _>(&Linear::new(skb), &Maps::<false>::new(skb));
                0
            }

            #[unsafe(export_name = concat!(stringify!($name), "_new"))]
            #[inline(never)]
            extern "C" fn new(skb: *mut __sk_buff, hook: Hook) -> u64 {
                super::new::<$family>(skb, hook)
            }

            #[unsafe(export_name = concat!(stringify!($name), "_open"))]
            #[inline(never)]
            extern "C" fn open(
                skb: *mut __sk_buff,
                hook: Hook,
                service: u32,
                backend: u32,
                round: u32,
            ) -> u64 {
                super::open::<$family>(skb, hook, (Choice { service, backend }, round))
            }

            #[unsafe(export_name = concat!(stringify!($name), "_depart"))]
            #[inline(never)]
            extern "C" fn depart(skb: *mut __sk_buff, hook: Hook, round: u32) -> u64 {
                super::depart::<$family>(skb, hook, round)
            }

            #[unsafe(export_name = concat!(stringify!($name), "_echo"))]
            #[inline(never)]
            extern "C" fn echo(skb: *mut __sk_buff, hook: Hook, fresh: bool) -> u64 {
                super::echo::<$family>(skb, hook, fresh)
            }

            #[unsafe(export_name = concat!(stringify!($name), "_error"))]
            #[inline(never)]
            extern "C" fn error(skb: *mut __sk_buff, hook: Hook) -> u64 {
                super::error::<$family>(skb, hook)
            }

            #[unsafe(export_name = concat!(stringify!($name), "_other"))]
            #[inline(never)]
            extern "C" fn other(skb: *mut __sk_buff, hook: Hook) -> u64 {
                super::other::<$family>(skb, hook)
            }

            #[unsafe(export_name = concat!(stringify!($name), "_later"))]
            #[inline(never)]
            extern "C" fn later(skb: *mut __sk_buff, hook: Hook) -> u64 {
                super::later::<$family>(skb, hook)
            }

            #[unsafe(export_name = concat!(stringify!($name), "_stray"))]
            #[inline(never)]
            extern "C" fn stray(skb: *mut __sk_buff, hook: Hook) -> u64 {
                super::stray::<$family>(skb, hook)
            }

            #[unsafe(export_name = concat!(stringify!($name), "_note"))]
            #[inline(never)]
            extern "C" fn note(skb: *mut __sk_buff) -> u64 {
                pieces::note::<$family>(skb, now())
            }

            #[unsafe(export_name = concat!(stringify!($name), "_note_fate"))]
            #[inline(never)]
            extern "C" fn note_fate(skb: *mut __sk_buff, hook: Hook, dropped: bool) -> u64 {
                pieces::note_fate::<$family>(skb, hook, dropped, now())
            }

            #[unsafe(export_name = concat!(stringify!($name), "_new_first"))]
            #[inline(never)]
            extern "C" fn new_first(skb: *mut __sk_buff, hook: Hook) -> u64 {
                super::new_first::<$family>(skb, hook)
            }

            #[unsafe(export_name = concat!(stringify!($name), "_first"))]
            #[inline(never)]
            extern "C" fn first(skb: *mut __sk_buff, hook: Hook, mended: bool) -> u64 {
                super::first::<$family>(skb, hook, mended)
            }

            #[unsafe(export_name = concat!(stringify!($name), "_mend_first"))]
            #[inline(never)]
            extern "C" fn mend_first(skb: *mut __sk_buff) -> u64 {
                fragment::mend_first::<$family, _, _>(&Linear::new(skb), &Maps::<false>::new(skb));
                0
            }

            #[unsafe(export_name = concat!(stringify!($name), "_open_first"))]
            #[inline(never)]
            extern "C" fn open_first(
                skb: *mut __sk_buff,
                hook: Hook,
                service: u32,
                backend: u32,
                round: u32,
            ) -> u64 {
                super::open_piece::<$family>(skb, hook, (Choice { service, backend }, round))
            }

            #[unsafe(export_name = concat!(stringify!($name), "_depart_first"))]
            #[inline(never)]
            extern "C" fn depart_first(skb: *mut __sk_buff, hook: Hook, round: u32) -> u64 {
                super::depart_piece::<$family>(skb, hook, round)
            }

            #[unsafe(export_name = concat!(stringify!($name), "_wait"))]
            #[inline(never)]
            extern "C" fn wait(skb: *mut __sk_buff) -> u64 {
                pieces::wait::<$family>(skb, now()).0
            }

            #[unsafe(export_name = concat!(stringify!($name), "_release"))]
            #[inline(never)]
            extern "C" fn release(skb: *mut __sk_buff) -> u64 {
                pieces::release::<$family>(skb, ifindex(skb), now()).0
            }

            #[unsafe(export_name = concat!(stringify!($name), "_refuse"))]
            #[inline(never)]
            extern "C" fn refuse(skb: *mut __sk_buff, hook: Hook) -> i32 {
                apply::refuse::<$family>(skb, hook, ifindex(skb))
            }

            #[unsafe(export_name = concat!(stringify!($name), "_unpack"))]
            #[inline(never)]
            extern "C" fn unpack(skb: *mut __sk_buff) -> u32 {
                tunnel::unpack::<$family>(skb)
            }

            #[unsafe(export_name = concat!(stringify!($name), "_pack"))]
            #[inline(never)]
            extern "C" fn pack(skb: *mut __sk_buff) -> u64 {
                tunnel::pack::<$family>(skb, ifindex(skb)).0
            }

            #[unsafe(export_name = concat!(stringify!($name), "_complain"))]
            #[inline(never)]
            extern "C" fn complain(skb: *mut __sk_buff, hook: Hook) -> i32 {
                tunnel::complain::<$family>(skb, hook, ifindex(skb))
            }
        }
    };
}

family!(v4, V4);
family!(v6, V6);

/// An established flow that has nothing new to tell, or the packet that has just opened one.
#[inline(always)]
fn short<F: Route>(skb: *mut __sk_buff, hook: Hook, fresh: bool) -> u64 {
    let frame = Linear::new(skb);
    match established::<F, _, _>(hook, ifindex(skb), &frame, fresh, &Maps::<true>::new(skb), beat()) {
        Short::Verdict(packet, Verdict::Forward(rewrite, exit)) => {
            apply::forward::<F>(skb, hook, &packet, &rewrite, exit, 0).0
        }
        Short::Verdict(_, Verdict::Encapsulate(_)) => Done::PARCEL,
        Short::Verdict(_, Verdict::TooBig(_)) => Done::TOO_BIG.0,
        Short::News => Done::NEWS,
        _ => Done::UNKNOWN,
    }
}

/// TCP and UDP of a flow in the table.
#[inline(always)]
fn known<F: Route>(skb: *mut __sk_buff, hook: Hook, mended: bool) -> u64 {
    let frame = Linear::new(skb);
    let found = look_up::<F, _, _>(hook, ifindex(skb), &frame, mended, &Maps::<false>::new(skb), now());
    carry_out(skb, hook, found, 0)
}

/// Carries out what is known of a packet's flow. Its transport header is `extra` bytes behind the fixed IP header.
#[inline(always)]
fn carry_out<F: Route>(skb: *mut __sk_buff, hook: Hook, found: Known<F>, extra: usize) -> u64 {
    match found {
        Known::Verdict(packet, Verdict::Forward(rewrite, exit)) => {
            apply::forward::<F>(skb, hook, &packet, &rewrite, exit, extra).0
        }
        Known::Verdict(_, Verdict::Encapsulate(_)) => Done::PARCEL,
        Known::Verdict(_, verdict) => apply::untouched(skb, hook, verdict).0,
        Known::Torn => Done::TORN,
        Known::Unknown => Done::UNKNOWN,
    }
}

/// TCP and UDP of no flow.
#[inline(always)]
fn new<F: Route>(skb: *mut __sk_buff, hook: Hook) -> u64 {
    let frame = Linear::new(skb);
    match decide_new::<F, _, _>(hook, ifindex(skb), &frame, &Maps::<false>::new(skb), now()) {
        New::Verdict(verdict) => apply::untouched(skb, hook, verdict).0,
        New::Open(choice) => Done::open(choice).0,
        New::Other => Done::UNKNOWN,
    }
}

/// A new flow to a chosen backend. Its packet is then left to [`short`] or [`known`], which find the entries just
/// written: this function's stack is full with making them.
#[inline(always)]
fn open<F: Route>(skb: *mut __sk_buff, hook: Hook, choice: (Choice, u32)) -> u64 {
    let frame = Linear::new(skb);
    let maps = Maps::<false>::new(skb);
    match open_to_backend::<F, _, _>(hook, ifindex(skb), &frame, choice, &maps, now()) {
        Ok(()) => Done::NEWS,
        Err(reason) => Done::new(reason as u32, TC_ACT_SHOT).0,
    }
}

/// A new flow out of the cluster; as with [`open`].
#[inline(always)]
fn depart<F: Route>(skb: *mut __sk_buff, hook: Hook, round: u32) -> u64 {
    let frame = Linear::new(skb);
    departed(
        egress::depart::<F, _, _>(hook, ifindex(skb), (&frame, round), &Maps::<false>::new(skb), now()),
        counter::PASSED,
    )
}

/// [`depart`] for a first piece.
#[inline(always)]
fn depart_piece<F: Route>(skb: *mut __sk_buff, hook: Hook, round: u32) -> u64 {
    let frame = Linear::new(skb);
    departed(
        depart_first::<F, _, _>(hook, ifindex(skb), (&frame, round), &Maps::<false>::new(skb), now()),
        counter::PASSED_FRAGMENT,
    )
}

/// `passed`: the outcome of what does not leave.
#[inline(always)]
fn departed(opened: Result<bool, Reason>, passed: u32) -> u64 {
    match opened {
        Ok(true) => Done::NEWS,
        Ok(false) => Done::new(passed, TC_ACT_UNSPEC).0,
        Err(reason) => Done::new(reason as u32, TC_ACT_SHOT).0,
    }
}

/// ICMP echo that leaves the cluster, and its answers. `fresh`: its flow was opened just now.
#[inline(always)]
fn echo<F: Route>(skb: *mut __sk_buff, hook: Hook, fresh: bool) -> u64 {
    let frame = Linear::new(skb);
    let echo = decide_echo::<F, _, _>(hook, &frame, fresh, &Maps::<false>::new(skb), now());
    match echo.finding {
        egress::Finding::Send => {
            apply::forward_echo::<F>(skb, hook, &echo.packet, &echo.rewrite, echo.exit).0
        }
        egress::Finding::Drop => Done::new(echo.reason as u32, TC_ACT_SHOT).0,
        egress::Finding::Open => Done::open(Choice::EGRESS).0,
        egress::Finding::Other => Done::UNKNOWN,
    }
}

/// Opens a flow in as many rounds as it takes to find a port for it.
#[inline(always)]
fn in_rounds(open: impl Fn(u32) -> u64) -> u64 {
    let mut done = open(0);
    let mut round = 1;
    while Done(done).outcome() == counter::DROP_NO_PORT && round < ports::ROUNDS {
        done = open(round);
        round += 1;
    }
    done
}

/// What they say about a packet whose flow was just opened. Entries that are gone again are no way to the
/// host's stack, and not opened a second time.
#[inline(always)]
fn opened(done: u64) -> u64 {
    let gone = done == Done::UNKNOWN || Done(done).choice().is_some();
    if gone { Done::new(Reason::FlowTable as u32, TC_ACT_SHOT).0 } else { done }
}

/// ICMP errors about flows.
#[inline(always)]
fn error<F: Route>(skb: *mut __sk_buff, hook: Hook) -> u64 {
    let frame = Linear::new(skb);
    let errand = decide_error::<F, _, _>(hook, &frame, &Maps::<false>::new(skb));
    match errand.finding {
        Finding::Flow if errand.exit.kind == exit::TUNNEL => Done::PARCEL,
        Finding::Flow => apply::error::<F>(skb, hook, &errand.translation, errand.exit).0,
        Finding::Expired => Done::new(Reason::Ttl as u32, TC_ACT_SHOT).0,
        Finding::Foreign => Done::UNKNOWN,
    }
}

/// All else.
#[inline(always)]
fn other<F: Route>(skb: *mut __sk_buff, hook: Hook) -> u64 {
    let frame = Linear::new(skb);
    if is_piece::<F, _>(&frame) {
        return Done::PIECE;
    }
    match decide_other::<F, _, _>(hook, ifindex(skb), &frame, &Maps::<false>::new(skb)) {
        Verdict::AnswerEcho(exit) => apply::echo::<F>(skb, hook, exit).0,
        verdict => apply::untouched(skb, hook, verdict).0,
    }
}

/// Pieces of packets, but for first ones.
#[inline(always)]
fn later<F: Route>(skb: *mut __sk_buff, hook: Hook) -> u64 {
    let frame = Linear::new(skb);
    let later = decide_later::<F, _, _>(hook, &frame, &Maps::<false>::new(skb), now());
    match later.next {
        Next::Send => apply::forward_later::<F>(skb, hook, &later.packet, &later.rewrite, later.exit).0,
        Next::Parcel => Done::PARCEL,
        Next::Wait => Done::WAIT,
        Next::Release => Done::RELEASE,
        Next::Drop => Done::new(later.reason as u32, TC_ACT_SHOT).0,
        Next::First => Done::UNKNOWN,
        Next::Stray => Done::STRAY,
    }
}

/// Pieces of no flow.
#[inline(always)]
fn stray<F: Route>(skb: *mut __sk_buff, hook: Hook) -> u64 {
    let frame = Linear::new(skb);
    apply::untouched(skb, hook, decide_stray::<F, _, _>(hook, &frame, &Maps::<false>::new(skb))).0
}

/// First pieces of a flow in the table.
#[inline(always)]
fn first<F: Route>(skb: *mut __sk_buff, hook: Hook, mended: bool) -> u64 {
    let frame = Linear::new(skb);
    let found = look_up_first::<F, _, _>(hook, ifindex(skb), &frame, mended, &Maps::<false>::new(skb), now());
    carry_out(skb, hook, found, F::FRAGMENT_HEADER)
}

/// First pieces of no flow.
#[inline(always)]
fn new_first<F: Route>(skb: *mut __sk_buff, hook: Hook) -> u64 {
    let frame = Linear::new(skb);
    match decide_new_first::<F, _, _>(hook, ifindex(skb), &frame, &Maps::<false>::new(skb), now()) {
        New::Verdict(verdict) => apply::untouched(skb, hook, verdict).0,
        New::Open(choice) => Done::open(choice).0,
        New::Other => Done::UNKNOWN,
    }
}

/// [`open`] for a first piece.
#[inline(always)]
fn open_piece<F: Route>(skb: *mut __sk_buff, hook: Hook, choice: (Choice, u32)) -> u64 {
    let frame = Linear::new(skb);
    match open_first::<F, _, _>(hook, ifindex(skb), &frame, choice, &Maps::<false>::new(skb), now()) {
        Ok(()) => Done::NEWS,
        Err(reason) => Done::new(reason as u32, TC_ACT_SHOT).0,
    }
}

/// Makes the headers linear, up to those an ICMP error quotes and to ports behind IPv4 options. Failure shows as a truncated packet.
#[inline(always)]
pub fn pull<F: Family>(skb: *mut __sk_buff) {
    let need = (14 + (2 * (F::HEADER_LEN + 8)).max(60 + 8)) as u32;
    // SAFETY: the context is valid for the whole run.
    unsafe {
        let linear = (*skb).data_end - (*skb).data;
        let len = (*skb).len;
        if linear < need && linear < len {
            bpf_skb_pull_data(skb, if len < need { len } else { need });
        }
    }
}

#[inline(always)]
fn ifindex(skb: *mut __sk_buff) -> u32 {
    // SAFETY: the context is valid for the whole run.
    unsafe { (*skb).ifindex }
}

/// Time in ticks of 2^30 ns: a shift instead of a division. The coarse clock costs a tenth of the exact one.
#[inline(always)]
fn now() -> u32 {
    // SAFETY: the helper has no precondition.
    (unsafe { bpf_ktime_get_coarse_ns() } >> 30) as u32
}
