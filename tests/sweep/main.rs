//! The crash sweep: a process with the real registrar, ledger and nats-server ends at each arrow of the commit protocol, or is
//! killed at any moment, or meets a second one; and after each round the log, the ledgers and the clients must agree.
//!
//! `cargo test -p tests --features faults --test sweep`, with `SWEEP_ROUNDS=5000` for a night and `SWEEP_SEED=…` to go the way
//! of a seed again (the timing stays the machine's own). With bugs planted on purpose the same sweep must fail.

mod check;
mod node;
mod traffic;
mod world;

use std::collections::BTreeMap;
use std::time::Instant;

use check::Finding;
use traffic::Random;
use world::{Fault, POINTS, World};

/// Rounds with one log. A new one begins after so many, so that looking at all of it stays quick.
const ROUNDS_OF_A_WORLD: u64 = 60;

/// Rounds unless `SWEEP_ROUNDS` says otherwise.
const ROUNDS: u64 = 400;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number")),
    )
}

fn rounds() -> u64 {
    number("SWEEP_ROUNDS").unwrap_or(ROUNDS)
}

/// What a sweep without a finding did.
#[derive(Debug, Default)]
struct Swept {
    faults: BTreeMap<Fault, u64>,
    aborted: BTreeMap<&'static str, u64>,
}

/// Sweeps until a finding, or through all rounds.
fn sweep(bug: Option<&'static str>) -> Result<Swept, (u64, Finding)> {
    let seed = number("SWEEP_SEED").unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
    let bug_name = bug.unwrap_or("no bug");
    println!("{bug_name}: SWEEP_SEED={seed} SWEEP_ROUNDS={}", rounds());
    let mut random = Random(seed);
    let began = Instant::now();
    let mut swept = Swept::default();
    let (mut round, mut turn) = (0, 0);
    while round < rounds() {
        let mut world = World::new(Random(random.next()), bug);
        let end = rounds().min(round + ROUNDS_OF_A_WORLD);
        while round < end {
            round += 1;
            let fault = Fault::choose(&mut random, &mut turn);
            *swept.faults.entry(fault).or_default() += 1;
            world
                .round(fault, false)
                .map_err(|finding| (round, finding))?;
        }
        println!(
            "{round} rounds in {:.0} s; this log has {} events of {} commands; clients got {} answers, {} of them to repeats, and \
             {} rejections, from {} processes",
            began.elapsed().as_secs_f64(),
            world.log.len(),
            world.log.commands(),
            world.traffic.answered,
            world.traffic.repeated,
            world.traffic.rejected,
            world.lives(),
        );
        for (point, count) in &world.aborted {
            *swept.aborted.entry(point).or_default() += count;
        }
        world.close().map_err(|finding| (round, finding))?;
    }
    Ok(swept)
}

#[test]
fn no_crash_breaks_an_invariant() {
    let swept = match sweep(None) {
        Ok(swept) => swept,
        Err((round, finding)) => panic!("round {round}: {finding}"),
    };
    println!("{swept:#?}");
    // Enough for each arrow to come up ten times; one that never ends a process is not there any more.
    if rounds() >= ROUNDS {
        for point in POINTS {
            assert!(
                swept.aborted.contains_key(point),
                "no process ended at {point}: {swept:#?}"
            );
        }
    }
}

/// The same sweep must stop at a planted bug, and by an invariant that this bug breaks. A sweep that stops for another
/// reason says nothing about the bug, so another one is begun; a bug that is found by accident only is not found.
fn caught(bug: &'static str, by: &[&str]) {
    for _ in 0..3 {
        match sweep(Some(bug)) {
            Ok(_) => panic!("{bug} was not noticed in {} rounds", rounds()),
            Err((round, finding)) => {
                println!("{bug}: round {round}: {finding}");
                if by.contains(&finding.check) {
                    return;
                }
            }
        }
    }
    panic!("{bug} was caught by accident only");
}

#[test]
fn without_compare_and_swap_it_is_caught() {
    caught("no-cas", &["I1", "I2", "I3"]);
}

#[test]
fn without_dedup_it_is_caught() {
    caught("no-dedup", &["I1"]);
}

#[test]
fn an_answer_before_the_commit_is_caught() {
    caught("answer-before-fsync", &["I1"]);
}

#[test]
fn half_a_batch_in_the_ledger_is_caught() {
    caught("half-batch", &["I2", "I5"]);
}
