//! Watching live packets through the programs' own eyes.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use portolan_abi::{Event, Trace};

use crate::clock;
use crate::maps::{MapError, Mapped, name};

/// Longest time that packets are watched at a stretch. The programs end it, whatever becomes of who watches.
pub const LONGEST: Duration = Duration::from_secs(3600);

/// Watching could not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// A table is missing, or of another shape.
    #[error(transparent)]
    Map(#[from] MapError),
    /// Somebody else watches; there is one stream of packets.
    #[error(
        "packets are watched already, for {seconds} s more at most: wait, or end the other `portolan trace`"
    )]
    Busy {
        /// When the other one ends by itself.
        seconds: u64,
    },
    /// The stream of packets cannot be waited for.
    #[error("waiting for packets")]
    Wait(#[source] io::Error),
}

/// A stream of packets. Dropping it ends the watching.
pub struct Tracer {
    control: Mapped<Trace>,
    events: RingBuf<MapData>,
}

impl Tracer {
    /// Begins to watch the packets that `wanted` describes, for `time` at most; its fields `until` and `lost` do not
    /// count.
    ///
    /// # Errors
    /// See [`TraceError`].
    pub fn start(pins: &Path, wanted: Trace, time: Duration) -> Result<Self, TraceError> {
        let mut control = Mapped::new(name::TRACE, crate::maps::pinned(pins, name::TRACE)?)?;
        let aya = |error| MapError::Aya { table: name::EVENTS.to_owned(), source: Box::new(error) };
        let events = aya::maps::Map::RingBuf(crate::maps::pinned(pins, name::EVENTS)?);
        let mut events = RingBuf::try_from(events).map_err(aya)?;
        let now = clock::ticks();
        let other: Trace = control.read(0);
        let left = other.until.wrapping_sub(now);
        if other.until != 0 && left < u32::MAX / 2 {
            return Err(TraceError::Busy { seconds: u64::from(left) + 1 });
        }
        // What an earlier watcher left behind.
        while events.next().is_some() {}
        let until = clock::after(now, time.min(LONGEST)).max(1);
        // In two steps: a program that sees the time sees all else.
        control.write(0, Trace { until: 0, lost: 0, ..wanted });
        control.write(0, Trace { until, lost: 0, ..wanted });
        Ok(Self { control, events })
    }

    /// The next packet; `None` if there was none in `time`.
    ///
    /// # Errors
    /// [`TraceError::Wait`].
    pub fn next(&mut self, time: Duration) -> Result<Option<Event>, TraceError> {
        if let Some(event) = self.take() {
            return Ok(Some(event));
        }
        let mut wait = libc::pollfd { fd: self.events.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let milliseconds = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one descriptor, which is open as long as `self`.
        if unsafe { libc::poll(&raw mut wait, 1, milliseconds) } < 0 {
            let error = io::Error::last_os_error();
            // A signal: the caller sees to it.
            return if error.kind() == io::ErrorKind::Interrupted {
                Ok(None)
            } else {
                Err(TraceError::Wait(error))
            };
        }
        Ok(self.take())
    }

    /// Packets that found no room in the stream so far.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.control.read(0).lost
    }

    fn take(&mut self) -> Option<Event> {
        let item = self.events.next()?;
        // SAFETY: the programs write whole events, and every bit pattern is one; a read from the ring need not be
        // aligned.
        (item.len() == size_of::<Event>()).then(|| unsafe { item.as_ptr().cast::<Event>().read_unaligned() })
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.control.write(0, Trace::default());
    }
}
