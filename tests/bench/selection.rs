//! The choice of the active certificate, in nanoseconds.

use std::hint::black_box;
use std::time::Instant;

use lifecycle::names::{CertificateId, Digest};
use lifecycle::selection::{Candidate, KeyKind, Mode, Policy, active, rank};

use crate::report::{Report, spread};

const NOW: i64 = 1_800_000_000;

/// Candidates in no order, a third of them out of date, a tenth standby.
fn candidates(count: u64) -> Vec<Candidate> {
    (0..count)
        .map(|n| {
            let mixed = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            Candidate {
                certificate: CertificateId(mixed % 1_000 + 1),
                version: u32::try_from(mixed % 7).unwrap_or(0) + 1,
                place: mixed >> 40,
                standby: mixed % 10 == 9,
                exact: mixed % 2 == 0,
                not_before: NOW - 86_400,
                not_after: if mixed % 3 == 2 {
                    NOW - 1
                } else {
                    NOW + 86_400
                },
                fingerprint: Digest([n.to_le_bytes()[0]; 32]),
                key: KeyKind::P256,
                public: true,
            }
        })
        .collect()
}

/// Median and ends over rounds, in nanoseconds for one call.
fn nanoseconds(calls: u32, mut call: impl FnMut()) -> Vec<f64> {
    (0..31)
        .map(|_| {
            let begun = Instant::now();
            for _ in 0..calls {
                call();
            }
            begun.elapsed().as_secs_f64() * 1e9 / f64::from(calls)
        })
        .collect()
}

pub(crate) fn run(report: &mut Report) {
    report.progress("selection");
    let mut ranking = Vec::new();
    let mut choosing = Vec::new();
    for count in [1, 10, 100] {
        let unordered = candidates(count);
        let calls = 20_000 / u32::try_from(count).unwrap_or(1);
        let mut copy = nanoseconds(calls, || {
            black_box(black_box(&unordered).clone());
        });
        let copying = crate::report::quantile(&mut copy, 0.5);
        let mut took = nanoseconds(calls, || {
            let mut list = black_box(&unordered).clone();
            rank(Policy::default(), Mode::Auto, &mut list);
            black_box(list);
        });
        // Ranking sorts in place, so each call needs a fresh copy, whose time is taken off.
        for took in &mut took {
            *took = (*took - copying).max(0.0);
        }
        ranking.push(format!("{count}: {}", spread(&mut took, 0)));
        let mut ranked = unordered;
        rank(Policy::default(), Mode::Auto, &mut ranked);
        let mut took = nanoseconds(calls * 10, || {
            black_box(active(black_box(&ranked), black_box(NOW)));
        });
        choosing.push(format!("{count}: {}", spread(&mut took, 1)));
    }
    report.row(
        "selection: rank 1, 10, 100 candidates, ns",
        "-",
        &ranking.join(", "),
        "selection",
    );
    report.row(
        "selection: active of 1, 10, 100 ranked, ns",
        "-",
        &choosing.join(", "),
        "selection",
    );
}
