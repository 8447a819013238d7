//! The daily round: every version in use once a day, spread over the day.
//!
//! A certificate's second of the day is its id modulo the seconds of a day. Ids are sequences of the log, so certificates
//! spread by themselves: a hundred thousand that came in one after the other take their turns over a day, and neither a
//! start nor midnight brings them all at once. Nothing is stored for it but how far the round has come; what was missed
//! while this node was down is made up for at four times the pace, and no more than one day of it.

use std::sync::Arc;
use std::time::Duration;

use lifecycle::names::CertificateId;
use lifecycle::state::State;

use super::path::Job;
use super::{Revocation, now, row};
use crate::checks::Kind;
use crate::tables::Tables;

/// Seconds of the day that are worked off in one second when some were missed.
const MADE_UP: i64 = 4;
/// How long a version waits for a place behind others of its project, until it is left to the next round.
const PATIENCE: Duration = Duration::from_secs(1);
/// Ids that are looked at in one go.
const GO: usize = 1_024;
/// Seconds after which it is kept how far the round has come.
const KEEP: i64 = 60;
const ROUND: &[u8] = b"revocation";

/// Goes round and round.
pub(super) async fn rounds(revocation: Arc<Revocation>) {
    let every = i64::try_from(revocation.settings.every.as_secs())
        .unwrap_or(i64::MAX)
        .max(1);
    let mut done = revocation
        .checks
        .get(Kind::Round, ROUND)
        .map_or_else(now, |round| round.time);
    let mut kept = 0;
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let at = now();
        let due = due(done, at, every);
        done = due.start - 1;
        for at in due {
            second(&revocation, every, at).await;
            done = at;
        }
        if (at - kept).abs() >= KEEP.min(every) {
            kept = at;
            revocation.checks.put(Kind::Round, ROUND, done, Vec::new());
        }
    }
}

/// The seconds whose turn is now, when those up to `done` had theirs.
fn due(done: i64, now: i64, every: i64) -> std::ops::Range<i64> {
    // A clock that was set back begins anew from where it is, and a long absence is one round.
    let done = done.clamp(now - every, now);
    done + 1..now.min(done + MADE_UP) + 1
}

/// The certificates whose turn is in one second.
async fn second(revocation: &Arc<Revocation>, every: i64, second: i64) {
    let (every, first) = (
        every.unsigned_abs(),
        second.rem_euclid(every).unsigned_abs(),
    );
    let mut next = Some(first);
    while let Some(from) = next {
        let of = Arc::clone(revocation);
        let found = tokio::task::spawn_blocking(move || jobs(&of, from, every)).await;
        let Ok((jobs, then)) = found else { return };
        next = then;
        for job in jobs {
            let owed = tokio::time::timeout(PATIENCE, revocation.owed.take(&job.project)).await;
            let Ok(owed) = owed else {
                metrics::counter!("chancery_revocation_checks_total", "outcome" => "skipped")
                    .increment(1);
                continue;
            };
            revocation
                .runtime
                .spawn(Arc::clone(revocation).again(job, owed));
        }
    }
}

/// What there is to look up among some ids, and the id to go on from.
fn jobs(revocation: &Revocation, from: u64, every: u64) -> (Vec<Job>, Option<u64>) {
    let head = revocation.ledger.head().sequence;
    let tables = Tables::of(&revocation.ledger);
    let mut jobs = Vec::new();
    let mut id = from;
    for _ in 0..GO {
        if id > head {
            return (jobs, None);
        }
        of(revocation, &tables, CertificateId(id), &mut jobs);
        id += every;
    }
    (jobs, Some(id))
}

/// The versions of a certificate that may be served now or later. Results of those that may not are forgotten, unless the
/// log says that they are revoked: then they tell who said so.
fn of(revocation: &Revocation, tables: &Tables, id: CertificateId, jobs: &mut Vec<Job>) {
    let Some(certificate) = tables.certificate(id) else {
        return;
    };
    let now = now();
    let mut keep = Vec::new();
    if !certificate.deleted {
        for version in &certificate.versions {
            use lifecycle::state::Status;
            if version.status == Status::Revoked || version.status == Status::Error {
                keep.push(row(id, version.version));
            }
            if version.status == Status::Ready && now < version.facts.not_after {
                keep.push(row(id, version.version));
                let job = Job::of_row(&revocation.ledger, &certificate, version, &revocation.roots);
                jobs.extend(job);
            }
        }
    }
    let prefix = id.0.to_be_bytes();
    for key in revocation.checks.keys(Kind::Revocation, &prefix, 64) {
        if !keep.contains(&key) {
            revocation.checks.remove(Kind::Revocation, &key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    /// Lets a clock run and gives the seconds that had their turn, with the most in one tick.
    fn run(mut done: i64, from: i64, ticks: i64) -> (Vec<i64>, i64) {
        let (mut had, mut most) = (Vec::new(), 0);
        for now in from..from + ticks {
            let due = due(done, now, DAY);
            most = most.max(due.end - due.start);
            done = due.end - 1;
            had.extend(due);
        }
        (had, most)
    }

    #[test]
    fn each_second_has_its_turn_once_a_day() {
        let (had, most) = run(1_000_000, 1_000_001, DAY);
        assert_eq!(most, 1);
        assert_eq!(had, (1_000_001..1_000_001 + DAY).collect::<Vec<_>>());
    }

    #[test]
    fn what_was_missed_is_made_up_for_slowly_and_for_one_day_only() {
        // Down for an hour, then up for an hour.
        let (had, most) = run(0, 3_600, 3_600);
        assert_eq!(most, MADE_UP);
        assert_eq!(had, (1..7_200).collect::<Vec<_>>());
        // Down for a year.
        let year = 365 * DAY;
        let (had, most) = run(0, year, DAY);
        assert_eq!(most, MADE_UP);
        assert_eq!(had.first(), Some(&(year - DAY + 1)));
        assert_eq!(had.last(), Some(&(year + DAY - 1)));
        assert!(had.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn a_clock_that_goes_back_brings_no_storm() {
        let (had, most) = run(1_000_000, 500_000, 100);
        assert_eq!(most, 1);
        assert_eq!(had.len(), 99);
    }
}
