//! Pieces that came before the first one of their packet: kept as they are, and put back behind the first one as if they
//! had just arrived.

use aya_ebpf::bindings::{__sk_buff, BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT};
use aya_ebpf::helpers::generated::{
    bpf_clone_redirect, bpf_get_prandom_u32, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use portolan_abi::{EARLY_BYTES, EARLY_PIECES, EarlyKey, Fragment, counter, fate};
use portolan_core::Hook;
use portolan_core::fragment::{self, is_recent, waiting};
use portolan_core::wire::{Frame, piece};

use crate::apply::Done;
use crate::frame::Linear;
use crate::maps::{EARLY, PIECE};
use crate::tables::{Maps, Route};

/// Writes down what becomes of the pieces after this one.
#[inline(always)]
pub fn note<F: Route>(skb: *mut __sk_buff, now: u32) -> u64 {
    fragment::note::<F, _, _>(&Linear::new(skb), &Maps::<false>::new(skb), now);
    0
}

/// Writes down that the pieces after this one are of no flow.
#[inline(always)]
pub fn note_fate<F: Route>(skb: *mut __sk_buff, hook: Hook, dropped: bool, now: u32) -> u64 {
    fragment::note_fate::<F, _, _>(hook, &Linear::new(skb), dropped, &Maps::<false>::new(skb), now);
    0
}

/// Keeps a piece.
#[inline(always)]
pub fn wait<F: Route>(skb: *mut __sk_buff, now: u32) -> Done {
    if keep::<F>(skb, now).is_some() {
        Done::new(counter::FRAGMENT_WAITS, TC_ACT_SHOT)
    } else {
        Done::new(counter::DROP_FRAGMENT, TC_ACT_SHOT)
    }
}

#[inline(always)]
fn keep<F: Route>(skb: *mut __sk_buff, now: u32) -> Option<()> {
    let frame = Linear::new(skb);
    let len = frame.len();
    let copy = PIECE.get_ptr_mut(0)?;
    let key = number::<F>(skb, now)?;
    if len == 0 || len as usize > EARLY_BYTES {
        return None;
    }
    // SAFETY: the record is this CPU's own; the helper writes no more than it has room for.
    unsafe {
        (*copy).len = u64::from(len);
        let len = bounded(&raw const (*copy).len);
        if bpf_skb_load_bytes(skb.cast(), 0, (&raw mut (*copy).bytes).cast(), len) != 0 {
            return None;
        }
        EARLY.insert(&key, &*copy, 0).ok()
    }
}

/// A length from 1 to [`EARLY_BYTES`], which it is, in a form that shows it to the verifier: the compiler must not know.
///
/// # Safety
/// The pointer is one into a table's element.
#[inline(always)]
unsafe fn bounded(len: *const u64) -> u32 {
    // SAFETY: as the caller says.
    let len = unsafe { len.read_volatile() } as u32;
    (len.wrapping_sub(1) & (EARLY_BYTES as u32 - 1)) + 1
}

/// The name that a piece waits under.
#[inline(always)]
fn number<F: Route>(skb: *mut __sk_buff, now: u32) -> Option<EarlyKey> {
    let key = piece::<F, _>(&Linear::new(skb))?.key;
    if let Some(fragment) = F::fragments().get_ptr_mut(&key) {
        // SAFETY: elements of a preallocated table stay readable. All pieces of a packet arrive on one CPU, as they have
        // no ports to be spread by; where two do not, one is lost, as on a wire.
        unsafe {
            let Fragment { fate, waiting, token, .. } = *fragment;
            if fate == fate::WAITING && is_recent(&(*fragment).flow, now) {
                if waiting >= EARLY_PIECES {
                    return None;
                }
                (*fragment).waiting = waiting + 1;
                return Some(EarlyKey { token, number: waiting });
            }
        }
    }
    // SAFETY: the helper has no precondition.
    let token = unsafe { bpf_get_prandom_u32() };
    F::fragments().insert(&key, &waiting(token, now), 0).ok()?;
    Some(EarlyKey { token, number: 0 })
}

/// Puts a first piece back to where it arrived, and after it those that waited for it.
#[inline(always)]
pub fn release<F: Route>(skb: *mut __sk_buff, ifindex: u32, now: u32) -> Done {
    let released = Done::new(counter::FRAGMENTS_RELEASED, TC_ACT_SHOT);
    let Some(piece) = piece::<F, _>(&Linear::new(skb)) else { return Done::failed() };
    let Some(fragment) = F::fragments().get_ptr_mut(&piece.key) else { return Done::failed() };
    // SAFETY: as in `number`. Nobody waits any more, so that the first piece is decided on when it comes again.
    let (token, count) = unsafe {
        let found = ((*fragment).token, (*fragment).waiting);
        (*fragment).waiting = 0;
        (*fragment).flow.seen = now;
        found
    };
    // SAFETY: the context is the program's own.
    if unsafe { bpf_clone_redirect(skb, ifindex, u64::from(BPF_F_INGRESS)) } != 0 {
        return Done::failed();
    }
    let mut number = 0;
    while number < EARLY_PIECES && number < count {
        put_back(skb, ifindex, &EarlyKey { token, number });
        number += 1;
    }
    released
}

/// Makes the packet the piece that waited, and puts a copy of it to where it arrived. One that is gone was evicted.
#[inline(always)]
fn put_back(skb: *mut __sk_buff, ifindex: u32, key: &EarlyKey) {
    let Some(early) = EARLY.get_ptr(key) else { return };
    // SAFETY: as in `number`; the helpers read no more than there is.
    unsafe {
        let len = bounded(&raw const (*early).len);
        let bytes = (&raw const (*early).bytes).cast();
        let made = bpf_skb_change_tail(skb, len, 0) == 0
            && bpf_skb_store_bytes(skb, 0, bytes, len, u64::from(BPF_F_RECOMPUTE_CSUM)) == 0;
        if made {
            bpf_clone_redirect(skb, ifindex, u64::from(BPF_F_INGRESS));
        }
    }
    let _ = EARLY.remove(key);
}
