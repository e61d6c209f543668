//! When to try again: later each time, and not all nodes at once.

use std::time::Duration;

/// Waits that double, and chance for all that should not happen everywhere at the same time (RFC 4271 §10).
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    wait: Duration,
    chance: u64,
}

/// The first wait and the longest.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

impl Backoff {
    /// Equal seeds lead to equal waits.
    pub(super) fn new(seed: u64) -> Self {
        Self { wait: FIRST, chance: seed }
    }

    /// How long to wait this time.
    pub(super) fn next(&mut self) -> Duration {
        let wait = self.wait;
        self.wait = (wait * 2).min(LONGEST);
        self.jittered(wait)
    }

    /// All is well again.
    pub(super) fn reset(&mut self) {
        self.wait = FIRST;
    }

    /// From three quarters of a time to all of it.
    pub(super) fn jittered(&mut self, time: Duration) -> Duration {
        // The step of SplitMix64: every seed will do.
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.chance;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let part = u32::try_from((mixed ^ (mixed >> 31)) >> 40).unwrap_or(0);
        time - time.mul_f64(f64::from(part) / f64::from(1_u32 << 24) / 4.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_differ_from_node_to_node() {
        let mut backoff = Backoff::new(7);
        let waits: Vec<Duration> = (0..8).map(|_| backoff.next()).collect();
        for (wait, most) in waits.iter().zip([1, 2, 4, 8, 16, 30, 30, 30]) {
            let most = Duration::from_secs(most);
            assert!(*wait <= most && *wait >= most * 3 / 4, "{wait:?} of {most:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= FIRST);
        assert_ne!(Backoff::new(1).next(), Backoff::new(2).next());
    }
}
