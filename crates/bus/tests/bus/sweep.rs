//! A writer that ends at each arrow of the commit, and what its successor finds.
//!
//! `cargo test -p bus --features faults` runs it. The writer is this test binary itself, as a child.

use std::{process::Stdio, sync::Arc};

use bus::{
    connect::{self, Login},
    identity::Identity,
    log::Log,
    templates::Role,
};
use bytes::Bytes;

use crate::bed::Bed;

const URL: &str = "CHANCERY_SWEEP_URL";
const IDENTITY: &str = "CHANCERY_SWEEP_IDENTITY";

fn records(of: &str, count: usize) -> Vec<(String, Bytes)> {
    let subject = "chancery.v1.log.acme.domain.added".to_owned();
    (0..count)
        .map(|i| (subject.clone(), Bytes::from(format!("{of} {i}"))))
        .collect()
}

/// Not a test by itself: the child of the one below.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it is the child that the sweep starts and that ends at a fail point"]
async fn child() {
    let (Ok(url), Ok(path)) = (std::env::var(URL), std::env::var(IDENTITY)) else {
        return;
    };
    let identity = Arc::new(Identity::from_bytes(&std::fs::read(path).unwrap()).unwrap());
    let client = connect::connect(&url, &Login::minted(&identity, Role::Registrar))
        .await
        .unwrap();
    let _scenario = fail::FailScenario::setup();
    let log = Log::new(client);
    if std::env::var("CHANCERY_PLANTED_BUG").is_ok() {
        // With the bug, a writer that is behind is not fenced.
        log.append(0, &records("late", 2)).await.unwrap();
    } else {
        let _ = log.append(0, &records("swept", 4)).await;
    }
}

async fn run_child(bed: &Bed, variable: &str, value: &str) -> std::process::ExitStatus {
    let path = bed.folder.path().join("identity");
    std::fs::write(&path, &*bed.identity.to_bytes()).unwrap();
    tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "sweep::child"])
        .env(URL, bed.url())
        .env(IDENTITY, &path)
        .env(variable, value)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_ends_at_any_arrow_leaves_all_or_nothing() {
    for (point, head) in [
        ("log-before-publish", 0),
        ("log-mid-batch", 0),
        ("log-before-commit-message", 0),
        ("log-after-commit-before-ack", 4),
        ("log-after-ack", 4),
    ] {
        let bed = Bed::start().await;
        let status = run_child(&bed, "FAILPOINTS", &format!("{point}=return")).await;
        assert!(!status.success(), "{point} was not reached");
        let log = Log::new(bed.role(Role::Registrar).await);
        // The commit message may still be on its way through the server when the child is gone.
        crate::bed::until(point, async || log.head().await.unwrap() == head).await;
        // The successor sends the same bytes, and each is there once.
        let appended = log.append(0, &records("swept", 4)).await.unwrap();
        assert_eq!((appended.first, appended.last), (1, 4), "{point}");
        assert_eq!(log.head().await.unwrap(), 4, "{point}");
        for (sequence, (_, bytes)) in (1..).zip(records("swept", 4)) {
            assert_eq!(
                log.read(sequence).await.unwrap().unwrap().bytes,
                bytes,
                "{point}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_compare_and_swap_a_late_writer_would_not_be_fenced() {
    let bed = Bed::start().await;
    let log = Log::new(bed.role(Role::Registrar).await);
    log.append(0, &records("first", 3)).await.unwrap();
    assert!(
        !run_child(&bed, "FAILPOINTS", "").await.success() || log.head().await.unwrap() == 3,
        "it is fenced"
    );
    assert!(
        run_child(&bed, "CHANCERY_PLANTED_BUG", "no-cas")
            .await
            .success()
    );
    assert_eq!(
        log.head().await.unwrap(),
        5,
        "the planted bug lets it through"
    );
}
