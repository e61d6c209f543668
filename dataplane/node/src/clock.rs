//! The clock that flow entries are stamped with.

use std::time::Duration;

/// The time `later` than a time in ticks; up to a tick more.
#[must_use]
pub fn after(ticks: u32, later: Duration) -> u32 {
    // Longer than 136 years is not asked for.
    ticks.wrapping_add((later.as_nanos() >> 30) as u32 + 1)
}

/// Ticks of 2^30 ns (about 1.07 s) of `CLOCK_MONOTONIC_COARSE`, which is what `bpf_ktime_get_coarse_ns` reads.
#[must_use]
pub fn ticks() -> u32 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the struct is ours and the clock exists since Linux 2.6.32; failure would leave zero, which is a
    // valid time.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    ((time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64) >> 30) as u32
}
