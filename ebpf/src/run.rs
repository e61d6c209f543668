//! From a hook to a verdict: which family, the short way first, then the whole decision.
//!
//! The functions that are not inlined each have a stack frame of their own: both families and all steps
//! together would not fit into 512 bytes. Only integers and the context cross them.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_skb_pull_data};
use aya_ebpf::programs::TcContext;
use portolan_abi::{counter, exit};
use portolan_core::fragment::{Next, decide_first, decide_later, decide_new_first, decide_stray, open_first};
use portolan_core::icmp::Finding;
use portolan_core::wire::is_piece;
use portolan_core::{
    Choice, Family, Hook, New, Reason, Short, V4, V6, Verdict, decide_error, decide_known, decide_new,
    decide_other, established,
};

use crate::apply::{self, Done};
use crate::frame::Linear;
use crate::maps;
use crate::pieces;
use crate::tables::{Maps, Route};
use crate::trace;
use crate::tunnel;

/// EtherTypes in the byte order of the context.
const IPV4: u32 = V4::ETHERTYPE.to_be() as u32;
const IPV6: u32 = V6::ETHERTYPE.to_be() as u32;

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

            /// The short way, then the long one, each step only where the one before has not decided.
            #[inline(always)]
            pub fn steps(skb: *mut __sk_buff, place: Hook) -> u64 {
                pull::<$family>(skb);
                let mut hook = place;
                if place == Hook::Uplink && tunnel::may_carry::<$family>(skb) {
                    match unpack(skb) {
                        tunnel::FOREIGN => {}
                        tunnel::UNPACKED => {
                            hook = Hook::Tunnel;
                            pull::<$family>(skb);
                        }
                        _ => return Done::failed().0,
                    }
                }
                let mut done = short(skb, hook, false);
                if done == Done::NEWS {
                    done = known(skb, hook);
                }
                if done == Done::UNKNOWN {
                    done = new(skb, hook);
                    if let Some(choice) = Done(done).choice() {
                        done = open(skb, hook, choice.service, choice.backend);
                    }
                    if done == Done::NEWS {
                        done = short(skb, hook, true);
                        if done == Done::NEWS {
                            done = known(skb, hook);
                        }
                        done = opened(done);
                    }
                }
                if done == Done::UNKNOWN {
                    done = error(skb, hook);
                }
                if done == Done::UNKNOWN {
                    done = other(skb, hook);
                }
                if done == Done::PIECE {
                    done = later(skb, hook);
                    if done == Done::UNKNOWN {
                        note(skb);
                        done = first(skb, hook);
                    }
                    if done == Done::UNKNOWN {
                        done = new_first(skb, hook);
                        if let Some(choice) = Done(done).choice() {
                            done = open_first(skb, hook, choice.service, choice.backend);
                            if done == Done::NEWS {
                                note(skb);
                                done = opened(first(skb, hook));
                            }
                        } else {
                            if done == Done::UNKNOWN {
                                done = stray(skb, hook);
                            }
                            note_fate(skb, hook, counter::is_drop(Done(done).outcome()));
                        }
                    }
                    if done == Done::STRAY {
                        done = stray(skb, hook);
                    }
                    // Known at compile time where not: what the host sends is in order.
                    if matches!(place, Hook::Pod | Hook::Uplink) {
                        if done == Done::WAIT {
                            done = wait(skb);
                        }
                        if done == Done::RELEASE {
                            done = release(skb);
                        }
                    }
                }
                if done == Done::PARCEL {
                    done = Done::new(Reason::Tunnel as u32, TC_ACT_SHOT).0;
                    // Known at compile time where it is false: those programs do without the steps.
                    if place == Hook::Uplink && hook == Hook::Uplink {
                        done = pack(skb);
                        if Done(done).is_complaint() {
                            done = Done::new(Done(done).outcome(), complain(skb)).0;
                        }
                    }
                }
                if Done(done).is_refusal() {
                    done = Done::new(Done(done).outcome(), refuse(skb, hook)).0;
                }
                done
            }

            #[inline(never)]
            fn short(skb: *mut __sk_buff, hook: Hook, fresh: bool) -> u64 {
                super::short::<$family>(skb, hook, fresh)
            }

            #[inline(never)]
            fn known(skb: *mut __sk_buff, hook: Hook) -> u64 {
                super::known::<$family>(skb, hook)
            }

            #[inline(never)]
            fn new(skb: *mut __sk_buff, hook: Hook) -> u64 {
                super::new::<$family>(skb, hook)
            }

            #[inline(never)]
            fn open(skb: *mut __sk_buff, hook: Hook, service: u32, backend: u32) -> u64 {
                super::open::<$family>(skb, hook, Choice { service, backend })
            }

            #[inline(never)]
            fn error(skb: *mut __sk_buff, hook: Hook) -> u64 {
                super::error::<$family>(skb, hook)
            }

            #[inline(never)]
            fn other(skb: *mut __sk_buff, hook: Hook) -> u64 {
                super::other::<$family>(skb, hook)
            }

            #[inline(never)]
            fn later(skb: *mut __sk_buff, hook: Hook) -> u64 {
                super::later::<$family>(skb, hook)
            }

            #[inline(never)]
            fn stray(skb: *mut __sk_buff, hook: Hook) -> u64 {
                super::stray::<$family>(skb, hook)
            }

            #[inline(never)]
            fn note(skb: *mut __sk_buff) -> u64 {
                pieces::note::<$family>(skb, now())
            }

            #[inline(never)]
            fn note_fate(skb: *mut __sk_buff, hook: Hook, dropped: bool) -> u64 {
                pieces::note_fate::<$family>(skb, hook, dropped, now())
            }

            #[inline(never)]
            fn new_first(skb: *mut __sk_buff, hook: Hook) -> u64 {
                super::new_first::<$family>(skb, hook)
            }

            #[inline(never)]
            fn first(skb: *mut __sk_buff, hook: Hook) -> u64 {
                super::first::<$family>(skb, hook)
            }

            #[inline(never)]
            fn open_first(skb: *mut __sk_buff, hook: Hook, service: u32, backend: u32) -> u64 {
                super::open_piece::<$family>(skb, hook, Choice { service, backend })
            }

            #[inline(never)]
            fn wait(skb: *mut __sk_buff) -> u64 {
                pieces::wait::<$family>(skb, now()).0
            }

            #[inline(never)]
            fn release(skb: *mut __sk_buff) -> u64 {
                pieces::release::<$family>(skb, ifindex(skb), now()).0
            }

            #[inline(never)]
            fn refuse(skb: *mut __sk_buff, hook: Hook) -> i32 {
                apply::refuse::<$family>(skb, hook, ifindex(skb))
            }

            #[inline(never)]
            fn unpack(skb: *mut __sk_buff) -> u32 {
                tunnel::unpack::<$family>(skb)
            }

            #[inline(never)]
            fn pack(skb: *mut __sk_buff) -> u64 {
                tunnel::pack::<$family>(skb, ifindex(skb)).0
            }

            #[inline(never)]
            fn complain(skb: *mut __sk_buff) -> i32 {
                tunnel::complain::<$family>(skb, ifindex(skb))
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
    match established::<F, _, _>(hook, ifindex(skb), &frame, fresh, &Maps::new(skb), now()) {
        Short::Verdict(packet, Verdict::Forward(rewrite, exit)) => {
            apply::forward::<F>(skb, hook, &packet, &rewrite, exit, 0).0
        }
        Short::Verdict(_, Verdict::Encapsulate(_)) => Done::PARCEL,
        Short::News => Done::NEWS,
        _ => Done::UNKNOWN,
    }
}

/// TCP and UDP of a flow in the table.
#[inline(always)]
fn known<F: Route>(skb: *mut __sk_buff, hook: Hook) -> u64 {
    let frame = Linear::new(skb);
    match decide_known::<F, _, _>(hook, ifindex(skb), &frame, &Maps::new(skb), now()) {
        Some((packet, Verdict::Forward(rewrite, exit))) => {
            apply::forward::<F>(skb, hook, &packet, &rewrite, exit, 0).0
        }
        Some((_, Verdict::Encapsulate(_))) => Done::PARCEL,
        Some((_, verdict)) => apply::untouched(skb, hook, verdict).0,
        None => Done::UNKNOWN,
    }
}

/// TCP and UDP of no flow.
#[inline(always)]
fn new<F: Route>(skb: *mut __sk_buff, hook: Hook) -> u64 {
    let frame = Linear::new(skb);
    match decide_new::<F, _, _>(hook, ifindex(skb), &frame, &Maps::new(skb), now()) {
        New::Verdict(verdict) => apply::untouched(skb, hook, verdict).0,
        New::Open(choice) => Done::open(choice).0,
        New::Other => Done::UNKNOWN,
    }
}

/// A new flow to a chosen backend. Its packet is then left to [`short`] or [`known`], which find the entries just
/// written: this function's stack is full with making them.
#[inline(always)]
fn open<F: Route>(skb: *mut __sk_buff, hook: Hook, choice: Choice) -> u64 {
    let frame = Linear::new(skb);
    match portolan_core::open::<F, _, _>(hook, ifindex(skb), &frame, choice, &Maps::new(skb), now()) {
        Ok(()) => Done::NEWS,
        Err(reason) => Done::new(reason as u32, TC_ACT_SHOT).0,
    }
}

/// What they say about a packet whose flow was just opened. Entries that are gone again are no way to the
/// host's stack.
#[inline(always)]
fn opened(done: u64) -> u64 {
    if done == Done::UNKNOWN { Done::new(Reason::FlowTable as u32, TC_ACT_SHOT).0 } else { done }
}

/// ICMP errors about flows.
#[inline(always)]
fn error<F: Route>(skb: *mut __sk_buff, hook: Hook) -> u64 {
    let frame = Linear::new(skb);
    let errand = decide_error::<F, _, _>(hook, &frame, &Maps::new(skb));
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
    match decide_other::<F, _, _>(hook, ifindex(skb), &frame, &Maps::new(skb)) {
        Verdict::AnswerEcho(exit) => apply::echo::<F>(skb, hook, exit).0,
        verdict => apply::untouched(skb, hook, verdict).0,
    }
}

/// Pieces of packets, but for first ones.
#[inline(always)]
fn later<F: Route>(skb: *mut __sk_buff, hook: Hook) -> u64 {
    let frame = Linear::new(skb);
    let later = decide_later::<F, _, _>(hook, &frame, &Maps::new(skb), now());
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
    apply::untouched(skb, hook, decide_stray::<F, _, _>(hook, &frame, &Maps::new(skb))).0
}

/// First pieces of a flow in the table.
#[inline(always)]
fn first<F: Route>(skb: *mut __sk_buff, hook: Hook) -> u64 {
    let frame = Linear::new(skb);
    match decide_first::<F, _, _>(hook, ifindex(skb), &frame, &Maps::new(skb), now()) {
        Some((packet, Verdict::Forward(rewrite, exit))) => {
            apply::forward::<F>(skb, hook, &packet, &rewrite, exit, F::FRAGMENT_HEADER).0
        }
        Some((_, Verdict::Encapsulate(_))) => Done::PARCEL,
        Some((_, verdict)) => apply::untouched(skb, hook, verdict).0,
        None => Done::UNKNOWN,
    }
}

/// First pieces of no flow.
#[inline(always)]
fn new_first<F: Route>(skb: *mut __sk_buff, hook: Hook) -> u64 {
    let frame = Linear::new(skb);
    match decide_new_first::<F, _, _>(hook, ifindex(skb), &frame, &Maps::new(skb), now()) {
        New::Verdict(verdict) => apply::untouched(skb, hook, verdict).0,
        New::Open(choice) => Done::open(choice).0,
        New::Other => Done::UNKNOWN,
    }
}

/// [`open`] for a first piece.
#[inline(always)]
fn open_piece<F: Route>(skb: *mut __sk_buff, hook: Hook, choice: Choice) -> u64 {
    let frame = Linear::new(skb);
    match open_first::<F, _, _>(hook, ifindex(skb), &frame, choice, &Maps::new(skb), now()) {
        Ok(()) => Done::NEWS,
        Err(reason) => Done::new(reason as u32, TC_ACT_SHOT).0,
    }
}

/// Makes the headers linear, up to those an ICMP error quotes and to ports behind IPv4 options. Failure shows as a truncated packet.
#[inline(always)]
fn pull<F: Family>(skb: *mut __sk_buff) {
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
