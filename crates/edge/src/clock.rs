//! The edge's time, which never falls below the time of the last signed entry.
//!
//! An edge whose own clock lags would go on serving a certificate that has ended; the feed's time is a floor under it.
//! The floor can be wrong as well (a control plane whose clock ran ahead): where it would leave a host without any
//! certificate, the edge's own clock decides, and the edge says so in its reports.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Two readings of the time, both in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The later of the edge's own time and the time of the last signed entry. It decides.
    pub floored: i64,
    /// The edge's own time.
    pub own: i64,
}

/// The system's clock with a floor under it. Clones share the floor and the shift.
#[derive(Clone, Debug, Default)]
pub struct Clock(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Milliseconds that are added to the system's time.
    shift: AtomicI64,
    /// Unix milliseconds.
    floor: AtomicI64,
}

impl Clock {
    /// The system's clock, with no floor yet.
    pub fn system() -> Self {
        Self::default()
    }

    /// Moves this clock against the system's by so many milliseconds from now on, so that what happens in ninety days can be
    /// seen today. It is the edge's own time that is moved, not the floor.
    pub fn shift(&self, milliseconds: i64) {
        self.0.shift.store(milliseconds, Ordering::SeqCst);
    }

    /// The edge's own time, Unix milliseconds.
    pub fn own_millis(&self) -> i64 {
        let system = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| {
                i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
            });
        system.saturating_add(self.0.shift.load(Ordering::Relaxed))
    }

    /// Both readings, in whole seconds.
    pub fn now(&self) -> Now {
        let own = self.own_millis();
        let floor = self.0.floor.load(Ordering::Relaxed);
        Now {
            floored: own.max(floor).div_euclid(1000),
            own: own.div_euclid(1000),
        }
    }

    /// Raises the floor to the time of a signed entry, Unix milliseconds. It never sinks, except through [`reset_floor`](Self::reset_floor).
    pub(crate) fn raise_floor(&self, time: i64) {
        self.0.floor.fetch_max(time, Ordering::SeqCst);
    }

    /// Sets the floor to the time of a snapshot, which may lie before the former one when the control plane was restored.
    pub(crate) fn reset_floor(&self, time: i64) {
        self.0.floor.store(time, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_never_falls_below_the_last_signed_entry() {
        let clock = Clock::system();
        let before = clock.now();
        assert_eq!(before.floored, before.own);
        let ahead = clock.own_millis() + 100_000;
        clock.raise_floor(ahead);
        clock.raise_floor(ahead - 50_000);
        let now = clock.now();
        assert_eq!(now.floored, ahead.div_euclid(1000));
        assert!(now.own < now.floored);
        clock.shift(200_000);
        let now = clock.now();
        assert_eq!(now.floored, now.own);
        assert!(now.own > ahead.div_euclid(1000));
    }
}
