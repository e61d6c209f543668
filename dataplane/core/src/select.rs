//! Which backend of a ring a flow goes to: a hash of the flow, so that every packet of it and every node
//! choose alike while the ring stays the same.

use portolan_abi::{FlowKey, Ring};

use crate::{Address, Family, Tables};

/// Mixes a word into a hash (the round of MurmurHash3, public domain).
#[inline(always)]
pub(crate) const fn mix(hash: u32, word: u32) -> u32 {
    let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    (hash ^ word).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

/// Spreads every bit of a hash over all others (MurmurHash3's finaliser).
#[inline(always)]
pub(crate) const fn finish(hash: u32) -> u32 {
    let hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    let hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

/// Hash of a flow.
#[inline(always)]
#[must_use]
pub fn flow_hash<A: Address>(key: &FlowKey<A>, seed: u32) -> u32 {
    let hash = key.dst.mix(key.src.mix(seed));
    finish(mix(mix(hash, key.ports), key.proto))
}

/// Scales a hash to `0..bound` without a division.
#[inline(always)]
#[must_use]
pub(crate) const fn scale(hash: u32, bound: u32) -> u32 {
    ((hash as u64 * bound as u64) >> 32) as u32
}

/// The index of the backend that the ring gives to a hash.
#[inline(always)]
pub(crate) fn backend<F: Family, T: Tables<F>>(ring: Ring, hash: u32, tables: &T) -> Option<u32> {
    tables.slot(ring.offset().wrapping_add(scale(hash, ring.len())))
}
