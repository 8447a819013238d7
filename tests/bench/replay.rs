//! Replay of the log that the run made: verified in memory, and into a fresh ledger.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use ledger::{Hash, Ledger, Options, leaf_hash};
use wire::envelope::Envelope;

use crate::report::{Report, spread};

/// Events that are replayed at most.
const EVENTS_MAX: u64 = 200_000;

/// Decodes each event, hashes its bytes and checks that it names the hash and the number of the one before.
fn verify(events: &[(u64, Vec<u8>)]) -> Result<()> {
    let mut before = Hash::ZERO;
    for (sequence, bytes) in events {
        let envelope = Envelope::decode(bytes)?;
        ensure!(
            envelope.sequence == *sequence && envelope.prevhash == before,
            "event {sequence} does not follow"
        );
        before = leaf_hash(bytes);
    }
    Ok(())
}

pub(crate) fn run(file: &Path, scratch: &Path, report: &mut Report, times: usize) -> Result<()> {
    let from = Ledger::open(file, &Options::default())?;
    let until = from.head().sequence.min(EVENTS_MAX);
    report.progress(&format!("replaying {until} events, {times} times"));
    let mut events = Vec::new();
    while (events.len() as u64) < until {
        let page = from.read()?.events(events.len() as u64 + 1, 5_000)?;
        ensure!(!page.is_empty(), "the ledger ends before its head");
        events.extend(page);
    }
    events.truncate(usize::try_from(until)?);
    let bytes: usize = events.iter().map(|(_, bytes)| bytes.len()).sum();
    let mut kinds = std::collections::BTreeMap::new();
    for (_, bytes) in &events {
        *kinds
            .entry(wire::envelope::Position::of(bytes)?.name)
            .or_insert(0_u64) += 1;
    }
    let mut rates = Vec::new();
    for _ in 0..times {
        let begun = Instant::now();
        verify(&events)?;
        rates.push(until as f64 / begun.elapsed().as_secs_f64() / 1e3);
    }
    report.row(
        "replay, verified (one core)",
        ">= 300,000 events/s",
        &format!("{} thousand/s", spread(&mut rates, 0)),
        "replay",
    );
    drop(events);
    let mut rates = Vec::new();
    for n in 0..times {
        let path = scratch.join(format!("rebuilt-{n}.redb"));
        let to = Ledger::open(&path, &Options::default())?;
        let begun = Instant::now();
        let head = control::tables::rebuild(&from, &to, until, |_| {})?;
        rates.push(until as f64 / begun.elapsed().as_secs_f64() / 1e3);
        ensure!(
            head.sequence == until,
            "the rebuilt ledger ends at {}",
            head.sequence
        );
        drop(to);
        std::fs::remove_file(path)?;
    }
    report.row(
        "replay, verified, into fresh projections",
        ">= 60,000 events/s",
        &format!("{} thousand/s", spread(&mut rates, 0)),
        "replay",
    );
    let most: Vec<String> = {
        let mut kinds: Vec<_> = kinds.into_iter().collect();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        kinds
            .iter()
            .take(4)
            .map(|(name, count)| format!("{count} {name}"))
            .collect()
    };
    report.note(format!(
        "replay: {until} events of this run's log, {} bytes each on average ({}); {times} times; the second includes reading them from redb",
        bytes / usize::try_from(until.max(1))?,
        most.join(", ")
    ));
    Ok(())
}
