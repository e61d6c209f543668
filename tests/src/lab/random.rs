//! Pseudo-random numbers for tests that repeat a run by its seed.

use std::time::{SystemTime, UNIX_EPOCH};

/// A row of numbers that its seed determines.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A row whose seed is printed, and is `PORTOLAN_SEED` where that is set.
    #[must_use]
    pub fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        let given = std::env::var("PORTOLAN_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or(now) | 1;
        println!("PORTOLAN_SEED={seed}");
        Self(seed)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        // Marsaglia, "Xorshift RNGs", 2003.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    /// A row of its own, for another thread.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self(self.below(u64::MAX) | 1)
    }
}

impl Default for Random {
    fn default() -> Self {
        Self::new()
    }
}
