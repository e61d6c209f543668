//! Source ports of flows that leave with another address than their sender's.
//!
//! Ports are tried in rounds, because a program's stack has no room for the search beside what is searched for: a flow is opened
//! anew in each, until one finds a port.

use portolan_abi::{Config, Flow, FlowKey};

use crate::wire::{join_ports, split_ports};
use crate::{Family, Tables};

/// Ports that a round tries.
const TRIES: u32 = 4;

/// Rounds of a search. With a range that is nine tenths full, a free port is found after some fifty tries.
pub const ROUNDS: u32 = 18;

/// How far apart the ports are that are tried one after the other. A prime, so that all ports of a range are tried before one is
/// tried again.
const STRIDE: u32 = 7919;

/// Adds the entry of the way back under `key`, with another port of its destination where the plain one is taken, and
/// leaves in `key` which it was. An ICMP echo has an identifier in the place of that port.
///
/// `own`: the sender's port will do, if it is free. `hash` is the flow's.
#[inline(always)]
pub(crate) fn claim<F: Family, T: Tables<F>>(
    key: &mut FlowKey<F::Addr>,
    reply: &Flow<F::Addr>,
    (hash, own, round): (u32, bool, u32),
    config: &Config,
    tables: &T,
) -> bool {
    if own && round == 0 && tables.claim(key, reply) {
        return true;
    }
    let remote = split_ports(key.ports).0;
    let mut place = hash.wrapping_add(round.wrapping_mul(TRIES * STRIDE));
    let mut attempt = 0;
    while attempt < TRIES {
        let Some(number) = place.checked_rem(u32::from(config.masquerade_count)) else { return false };
        let port = config.masquerade_first.wrapping_add(number as u16);
        key.ports = join_ports(remote, port.to_be());
        if tables.claim_free(key, reply) {
            return true;
        }
        place = place.wrapping_add(STRIDE);
        attempt += 1;
    }
    false
}
