//! Every way into `core` for any bytes: what property tests, the corpus and the fuzzer call.

use std::collections::BTreeSet;

use portolan_abi::counter;
use portolan_core::fragment::{
    Next, decide_first, decide_later, decide_new_first, decide_stray, note, note_fate,
};
use portolan_core::wire::{FirstPiece, Frame, Kind, is_piece, parse};
use portolan_core::{Family, Hook, Short, Tables, V4, V6, Verdict};
use portolan_core::{
    New, decide, decide_error, decide_known, decide_new, decide_other, decide_ping, established, open, tunnel,
};

use super::apply::{Bytes, apply, unpack};
use super::family::Tested;
use super::fixture::site::Site;
use super::memory::{Memory, beat};
use super::world::World;

/// Every hook that has a program, with an interface it is at in [`Site`]'s world.
pub const HOOKS: [(Hook, u32); 7] = [
    (Hook::Pod, Site::A_IF),
    (Hook::Pod, Site::B_IF),
    (Hook::PodEgress, Site::A_IF),
    (Hook::Uplink, Site::UPLINK_IF),
    (Hook::UplinkEgress, Site::UPLINK_IF),
    (Hook::Service, Site::SERVICE_IF),
    (Hook::Loopback, Site::LOOPBACK_IF),
];

/// Decides the way the programs do, step by step; `true` if the short way was enough.
pub fn steps<F: Family, T: Tables<F>>(
    hook: Hook,
    ifindex: u32,
    frame: &impl Frame,
    tables: &T,
    now: u32,
) -> (Verdict<F>, bool) {
    let news = match established(hook, ifindex, frame, false, tables, beat(now)) {
        Short::Verdict(_, verdict) => return (verdict, true),
        Short::News => decide_known(hook, ifindex, frame, tables, now),
        Short::Unknown => None,
    };
    if let Some((_, verdict)) = news {
        return (verdict, false);
    }
    let verdict = match decide_new(hook, ifindex, frame, tables, now) {
        New::Verdict(verdict) => verdict,
        New::Open(choice) => match open(hook, ifindex, frame, choice, tables, now) {
            Err(reason) => Verdict::Drop(reason),
            Ok(false) => Verdict::Pass(counter::PASSED),
            Ok(true) => match opened(hook, ifindex, frame, tables, now) {
                Some(verdict) => verdict,
                None => Verdict::Drop(portolan_core::Reason::FlowTable),
            },
        },
        New::Other => match decide_error(hook, frame, tables).verdict() {
            Some(verdict) => verdict,
            None if is_echo::<F>(frame) => decide_ping(hook, ifindex, frame, tables, now),
            None if is_piece::<F, _>(frame) => pieces(hook, ifindex, frame, tables, now),
            None => decide_other(hook, ifindex, frame, tables),
        },
    };
    (verdict, false)
}

fn is_echo<F: Family>(frame: &impl Frame) -> bool {
    matches!(parse::<F, _>(frame).kind, Kind::Echo | Kind::EchoReply)
}

/// The steps for pieces of packets.
fn pieces<F: Family, T: Tables<F>>(
    hook: Hook,
    ifindex: u32,
    frame: &impl Frame,
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
    let first = || {
        note::<F, _, _>(frame, tables, now);
        decide_first(hook, ifindex, frame, tables, now).map(|(_, verdict)| verdict)
    };
    if let Some(verdict) = first() {
        return verdict;
    }
    let verdict = match decide_new_first(hook, ifindex, frame, tables, now) {
        New::Verdict(verdict) => verdict,
        New::Other => decide_stray(hook, frame, tables),
        New::Open(choice) => {
            return match open::<F, _, _>(hook, ifindex, &FirstPiece(frame), choice, tables, now) {
                Err(reason) => Verdict::Drop(reason),
                Ok(false) => Verdict::Pass(counter::PASSED_FRAGMENT),
                Ok(true) => first().expect("the flow was opened"),
            };
        }
    };
    note_fate(hook, frame, counter::is_drop(verdict.outcome()), tables, now);
    verdict
}

fn opened<F: Family, T: Tables<F>>(
    hook: Hook,
    ifindex: u32,
    frame: &impl Frame,
    tables: &T,
    now: u32,
) -> Option<Verdict<F>> {
    match established(hook, ifindex, frame, true, tables, beat(now)) {
        Short::Verdict(_, verdict) => Some(verdict),
        Short::News => decide_known(hook, ifindex, frame, tables, now).map(|(_, verdict)| verdict),
        Short::Unknown => None,
    }
}

/// Decides on any bytes in both ways, carries the verdict out, and returns it with what came out.
///
/// # Panics
/// The two ways do not agree on verdict and flows.
pub fn one<F: Tested>(
    hook: Hook,
    ifindex: u32,
    bytes: &[u8],
    tables: &Memory<F>,
    now: u32,
) -> (Verdict<F>, bool, Vec<u8>) {
    let packed = hook == Hook::Uplink && tunnel::is_ours::<F, _, _>(&Bytes(bytes), tables);
    if packed && u16::from_be_bytes([bytes[12], bytes[13]]) == F::ETHERTYPE {
        return one(Hook::Tunnel, ifindex, &unpack::<F>(bytes), tables, now);
    }
    let twin = tables.clone();
    let whole = decide::<F, _, _>(hook, ifindex, &Bytes(bytes), &twin, now);
    let (verdict, short) = steps::<F, _>(hook, ifindex, &Bytes(bytes), tables, now);
    let verdict = match verdict {
        Verdict::Encapsulate(_) => tunnel::parcel(hook, ifindex, &Bytes(bytes), tables).verdict(),
        verdict => verdict,
    };
    assert_eq!(verdict, whole, "step by step and at once");
    assert_eq!(tables.flows, twin.flows, "flows, step by step and at once");
    assert_eq!(tables.fragments, twin.fragments, "fragments, step by step and at once");
    let out = apply(hook, ifindex, bytes, &verdict, tables);
    (verdict, short, out)
}

/// Decides on any bytes at every hook, as a packet of either family; the outcomes.
///
/// # Panics
/// A decision does, or one is wrong in itself.
pub fn every_hook(bytes: &[u8]) -> BTreeSet<u32> {
    thread_local! {
        static V4_TABLES: [Memory<V4>; 3] = worlds(&Site::v4()).map(|world| Memory::new(&world));
        static V6_TABLES: [Memory<V6>; 3] = worlds(&Site::v6()).map(|world| Memory::new(&world));
    }
    fn worlds(site: &Site) -> [World; 3] {
        [site.busy_world(), site.direct_world(), site.overlaid_world()]
    }
    fn family<F: Tested>(tables: &Memory<F>, bytes: &[u8], outcomes: &mut BTreeSet<u32>) {
        for (hook, ifindex) in HOOKS.into_iter().chain([(Hook::Tunnel, Site::UPLINK_IF)]) {
            // First without any flow, then with that which the packet has opened, in time and later.
            tables.flows.borrow_mut().clear();
            tables.fragments.borrow_mut().clear();
            tables.early.borrow_mut().clear();
            for now in [7, 7, 8] {
                tables.now.set(now);
                let (verdict, _, out) = one(hook, ifindex, bytes, tables, now);
                let outcome = verdict.outcome();
                assert!((outcome as usize) < counter::ALL.len(), "{outcome} is no outcome");
                let untouched = matches!(verdict, Verdict::Pass(_) | Verdict::Drop(_));
                // What another node sent is taken out of its packet whatever becomes of it.
                let bytes = if out.len() < bytes.len() { &unpack::<F>(bytes) } else { bytes };
                assert!(!untouched || out == bytes, "what is passed or dropped is left as it is");
                outcomes.insert(outcome);
            }
            let flows = tables.flows.borrow().len();
            assert!(flows <= 2, "{flows} flow entries of one packet");
        }
    }
    let mut outcomes = BTreeSet::new();
    V4_TABLES.with(|all| all.iter().for_each(|tables| family(tables, bytes, &mut outcomes)));
    V6_TABLES.with(|all| all.iter().for_each(|tables| family(tables, bytes, &mut outcomes)));
    outcomes
}
