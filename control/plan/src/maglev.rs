//! Tables that choose a backend by a flow's hash and hardly change when a backend comes or goes.
//!
//! Maglev's construction (Eisenbud et al., NSDI 2016, 3.4): every backend has an order of all slots of its own, and they
//! take turns at their next free one. Every node makes the same table of the same backends.

use std::net::IpAddr;

use crate::BackendAddr;

/// Numbers of slots. Primes, so that every step visits every slot.
const SIZES: [u32; 9] = [251, 509, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_537];

/// Slots for each backend, as far as there are sizes. With fewer, more flows of others move when one leaves: with 650
/// each 0.6 % do, with 160 1.4 %.
const SLOTS_EACH: usize = 500;

/// Number of slots for so many backends.
#[must_use]
pub fn size(backends: usize) -> u32 {
    let wanted = backends.saturating_mul(SLOTS_EACH);
    SIZES.into_iter().find(|size| *size as usize >= wanted).unwrap_or(SIZES[SIZES.len() - 1])
}

/// For each slot the place of its backend in `backends`; empty without any. The order of the backends does not matter for
/// which of them gets a slot.
#[must_use]
pub fn table(backends: &[BackendAddr]) -> Vec<u32> {
    if backends.len() < 2 {
        return (0..backends.len() as u32).collect();
    }
    let size = size(backends.len());
    let mut turns: Vec<Turn> = backends.iter().enumerate().map(|(at, it)| Turn::new(at, it, size)).collect();
    turns.sort_unstable_by_key(|turn| turn.identity);
    let mut table = vec![u32::MAX; size as usize];
    let mut free = table.len();
    loop {
        for turn in &mut turns {
            turn.take(&mut table);
            free -= 1;
            if free == 0 {
                return table;
            }
        }
    }
}

/// A backend that takes slots.
struct Turn {
    identity: u64,
    at: u32,
    next: u32,
    step: u32,
}

impl Turn {
    fn new(at: usize, backend: &BackendAddr, size: u32) -> Self {
        let identity = identity(backend);
        let (next, step) = (spread(identity), spread(identity ^ u64::MAX));
        let step = step % u64::from(size - 1) + 1;
        // Below the size, which has 17 bits.
        Self { identity, at: at as u32, next: (next % u64::from(size)) as u32, step: step as u32 }
    }

    /// Takes the next free slot in its own order. There is one.
    fn take(&mut self, table: &mut [u32]) {
        let size = table.len() as u32;
        loop {
            let slot = self.next;
            // A division for each step would take most of the time.
            self.next += self.step;
            if self.next >= size {
                self.next -= size;
            }
            if let Some(free @ &mut u32::MAX) = table.get_mut(slot as usize) {
                *free = self.at;
                return;
            }
        }
    }
}

/// The same on every node and for ever.
fn identity(backend: &BackendAddr) -> u64 {
    let addr = match backend.addr {
        IpAddr::V4(addr) => u64::from(addr.to_bits()),
        IpAddr::V6(addr) => {
            let bits = addr.to_bits();
            spread((bits >> 64) as u64) ^ bits as u64
        }
    };
    spread(spread(addr).wrapping_add(u64::from(backend.port)))
}

/// Every bit of the result depends on every bit given (SplitMix64's finaliser, Steele et al. 2014, public domain).
fn spread(bits: u64) -> u64 {
    let bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn backends(numbers: impl IntoIterator<Item = u32>) -> Vec<BackendAddr> {
        let backend = |number: u32| BackendAddr {
            addr: if number.is_multiple_of(2) {
                IpAddr::from(number.to_be_bytes())
            } else {
                std::net::Ipv6Addr::from_bits((0xfd00 << 112) + u128::from(number)).into()
            },
            port: 8080,
            local: false,
        };
        numbers.into_iter().map(backend).collect()
    }

    /// The backend in each slot.
    fn owners(backends: &[BackendAddr]) -> Vec<BackendAddr> {
        table(backends).into_iter().map(|at| backends[at as usize]).collect()
    }

    #[test]
    fn no_backend_has_no_slot_and_one_needs_one() {
        assert!(table(&[]).is_empty());
        assert_eq!(table(&backends([7])), [0]);
    }

    #[test]
    fn one_of_a_hundred_that_leaves_moves_less_than_a_hundredth_of_the_others_slots() {
        let all = backends(0..100);
        let before = owners(&all);
        for gone in [0usize, 1, 17, 50, 99] {
            let rest: Vec<_> = all.iter().copied().filter(|it| *it != all[gone]).collect();
            let after = owners(&rest);
            assert_eq!(before.len(), after.len(), "the same number of slots");
            let others = before.iter().zip(&after).filter(|(was, _)| **was != all[gone]);
            let (count, moved) = others
                .fold((0u32, 0u32), |(count, moved), (was, is)| (count + 1, moved + u32::from(was != is)));
            assert!(moved * 100 <= count, "{moved} of {count} slots moved when number {gone} left");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn slots_are_shared_alike_and_the_order_does_not_matter(
            numbers in prop::collection::btree_set(any::<u32>(), 2..80), turn in any::<prop::sample::Index>()
        ) {
            let mut numbers: Vec<u32> = numbers.into_iter().collect();
            let list = backends(numbers.iter().copied());
            let before = owners(&list);
            prop_assert_eq!(before.len(), size(list.len()) as usize);
            for backend in &list {
                let slots = before.iter().filter(|owner| *owner == backend).count();
                // Turns are taken in a row, so nobody is more than one ahead.
                let share = before.len() / list.len();
                prop_assert!((share..=share + 1).contains(&slots), "{slots} slots of {share}");
            }
            let at = turn.index(numbers.len());
            numbers.rotate_left(at);
            prop_assert_eq!(owners(&backends(numbers)), before);
        }
    }
}
