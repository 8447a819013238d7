//! How many events a second a ledger takes: synced appends of 1, 100 and 1,000 events, and a replay
//! into a fresh ledger with one sync at the end, as bare bytes and with projection rows.
//!
//! `cargo run -p ledger --example append_rate [FOLDER]`; the folder decides which disk is measured.

use std::{path::Path, time::Instant};

use ledger::{Batch, Change, Durability, Head, Ledger, Options, Outcome, Record, leaf_hash};

const SCOPES: u64 = 50;

/// A source of numbers that look random, always the same.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Batches that follow each other, of events of 600 bytes, one outcome for each.
fn batches(events: u64, per_batch: u64, rows: u64) -> Vec<Batch> {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut head = Head::EMPTY;
    let mut scope_heads = vec![0; SCOPES as usize];
    let mut batches = Vec::new();
    while head.sequence < events {
        let mut batch = Batch::default();
        for _ in 0..per_batch.min(events - head.sequence) {
            let sequence = head.sequence + 1;
            let scope = numbers.next() % SCOPES;
            scope_heads[scope as usize] += 1;
            let mut bytes = format!("{sequence} {}", head.hash).into_bytes();
            bytes.resize(600, b'.');
            let prevhash = head.hash;
            head = Head {
                sequence,
                hash: leaf_hash(&bytes),
            };
            batch.records.push(Record {
                sequence,
                prevhash,
                scope: format!("project-{scope}"),
                scope_sequence: scope_heads[scope as usize],
                bytes,
            });
            let mut id = [0; 16];
            id[..8].copy_from_slice(&sequence.to_be_bytes());
            id[8..].copy_from_slice(&numbers.next().to_be_bytes());
            batch.outcomes.push(Outcome {
                space: format!("project-{scope}"),
                id,
                first: sequence,
                count: 1,
                digest: [7; 32],
            });
            for row in 0..rows {
                let key = match row {
                    0 => sequence.to_be_bytes().to_vec(),
                    _ => numbers.next().to_be_bytes().to_vec(),
                };
                batch.changes.push(Change {
                    table: row as u8,
                    key,
                    value: Some(vec![1; 120]),
                });
            }
        }
        batches.push(batch);
    }
    batches
}

fn run(folder: &Path, name: &str, batches: &[Batch], durability: Durability) {
    let path = folder.join(format!("append-rate-{}.redb", std::process::id()));
    let ledger = Ledger::open(&path, &Options::default()).expect("the folder can be written");
    let mut writer = ledger.writer().expect("there is no other writer");
    writer.set_durability(durability);
    let mut latencies = Vec::with_capacity(batches.len());
    let start = Instant::now();
    for batch in batches {
        let begun = Instant::now();
        writer.append(batch).expect("the batches follow each other");
        latencies.push(begun.elapsed());
    }
    let head = writer.flush().expect("the disk takes it");
    let seconds = start.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |part: usize| latencies[(latencies.len() - 1) * part / 100].as_secs_f64() * 1e3;
    let size = std::fs::metadata(&path).map_or(0, |file| file.len());
    println!(
        "{name:<42} {:>9.0} events/s  append p50 {:>7.3} ms  p99 {:>7.3} ms  {:>5} bytes/event",
        head.sequence as f64 / seconds,
        at(50),
        at(99),
        size / head.sequence.max(1)
    );
    drop(writer);
    drop(ledger);
    std::fs::remove_file(&path).expect("the file is ours");
}

fn main() {
    let folder = std::env::args_os().nth(1).map(std::path::PathBuf::from);
    let folder = folder.unwrap_or_else(std::env::temp_dir);
    for (per_batch, events) in [(1, 2_000), (10, 10_000), (100, 50_000), (1_000, 100_000)] {
        run(
            &folder,
            &format!("synced, {per_batch} a batch, 1 row"),
            &batches(events, per_batch, 1),
            Durability::Immediate,
        );
    }
    for rows in [0, 1, 3] {
        for per_batch in [1_000, 10_000] {
            run(
                &folder,
                &format!("replay, {per_batch} a batch, {rows} rows"),
                &batches(200_000, per_batch, rows),
                Durability::Deferred,
            );
        }
    }
}
