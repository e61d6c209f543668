//! The time that ownership goes by.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since the machine started. It goes on while the machine sleeps, and nobody can set it.
pub(super) fn now() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    // Never negative, and less than a second beside the seconds.
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
