//! The fail points end the process where they say, and the planted bug is one that is seen.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is its failure")]

use std::{
    path::Path,
    process::{Command, Stdio},
};

use ledger::{Batch, Error, Head, Ledger, Options, Record, leaf_hash};

const CHILD: &str = "LEDGER_FAULTS_CHILD";

/// Not a test of its own: what the children do. Three batches of four events, and out.
#[test]
fn child() {
    let Some(path) = std::env::var_os(CHILD) else {
        return;
    };
    let _scenario = fail::FailScenario::setup();
    let ledger = Ledger::open(path, &Options::default()).unwrap();
    let mut writer = ledger.writer().unwrap();
    for _ in 0..3 {
        let mut batch = Batch::default();
        let mut head = writer.head();
        for _ in 0..4 {
            let sequence = head.sequence + 1;
            let bytes = sequence.to_string().into_bytes();
            let prevhash = head.hash;
            head = Head {
                sequence,
                hash: leaf_hash(&bytes),
            };
            batch.records.push(Record {
                sequence,
                prevhash,
                scope: "a".into(),
                scope_sequence: sequence,
                bytes,
            });
        }
        assert_eq!(writer.append(&batch).unwrap(), head);
    }
}

/// Runs the child on `path` and returns whether it ended well.
fn run(path: &Path, variable: &str, value: &str) -> bool {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child"])
        .env_remove("FAILPOINTS")
        .env_remove("CHANCERY_PLANTED_BUG")
        .env(CHILD, path)
        .env(variable, value)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap()
        .success()
}

#[test]
fn an_abort_leaves_whole_batches() {
    for (point, expected) in [
        ("ledger-before-write", 8),
        ("ledger-before-commit", 8),
        ("ledger-after-commit", 12),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.redb");
        let armed = format!("{point}=2*off->return");
        assert!(!run(&path, "FAILPOINTS", &armed), "{point}");
        let ledger = Ledger::open(&path, &Options::default()).unwrap();
        assert_eq!(ledger.head().sequence, expected, "{point}");
        drop(ledger);
        assert!(run(&path, "FAILPOINTS", ""), "{point}");
    }
}

#[test]
fn half_a_batch_is_seen_when_the_ledger_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    assert!(run(&path, "CHANCERY_PLANTED_BUG", "half-batch"));
    let opened = Ledger::open(&path, &Options::default());
    assert!(matches!(opened, Err(Error::Damaged(_))), "{opened:?}");
}
