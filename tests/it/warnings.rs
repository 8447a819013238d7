//! Warnings before a certificate's end: each stage once, also over a restart, and one for all that a late clock missed.

use std::time::Duration;

use harness::{Chancery, SOON, Up, eventually};
use serde_json::Value;
use time::OffsetDateTime;

use crate::stage::Stage;

/// The stages that the log has warned of so far.
fn warned(cli: &harness::Cli) -> Vec<Value> {
    cli.run(&["events", "replay"])
        .ok()
        .lines()
        .into_iter()
        .filter(|event| event["type"] == "dev.chancery.certificate.expiring.v1")
        .map(|event| event["data"].clone())
        .collect()
}

fn stages(cli: &harness::Cli) -> Vec<u64> {
    warned(cli)
        .iter()
        .filter_map(|data| data["stage"].as_u64())
        .collect()
}

#[test]
fn the_end_is_warned_of_in_stages_and_never_twice() {
    let stage = Stage::new();
    stage.bucket("www.example.com");
    // A life of a minute: its parts are due 20, 9.3, 4.7, 2 and 0.7 seconds before the end.
    let end = OffsetDateTime::now_utc() + Duration::from_secs(32);
    let leaf = stage
        .ca
        .leaf("www.example.com")
        .since(end - Duration::from_secs(60))
        .until(end)
        .issue();
    stage.upload("short", &leaf);
    stage.serves("www.example.com", &leaf);

    eventually(
        "the first warning",
        Duration::from_secs(30),
        || match stages(&stage.alice).as_slice() {
            [1] => Ok(()),
            other => Err(format!("{other:?}")),
        },
    );
    let first = warned(&stage.alice).remove(0);
    assert_eq!(first["name"], "short", "{first}");
    assert_eq!(first["hosts"][0]["host"], "www.example.com", "{first}");
    assert_eq!(first["hosts"][0]["until"], first["not_after"], "{first}");
    assert_eq!(first["regions"][0], "local", "{first}");
    assert!(
        first["left"].as_u64().is_some_and(|left| left <= 20),
        "{first}"
    );
    assert!(
        first["next"]
            .as_str()
            .is_some_and(|next| next.contains("chancery certificate replace short")),
        "{first}"
    );
    let listed = stage
        .alice
        .run(&["certificate", "list", "--expiring", "1"])
        .ok()
        .lines();
    assert_eq!(listed.len(), 1, "{listed:?}");

    // The system is away while the second and the third are due: it warns once, of the third.
    let Stage {
        chancery, origin, ..
    } = stage;
    let folder = chancery.kill().expect("the folder is its own");
    let third = leaf.not_after - Duration::from_millis(4_600);
    eventually(
        "the third warning is due",
        Duration::from_secs(30),
        || match OffsetDateTime::now_utc() {
            now if now >= third => Ok(()),
            now => Err(format!("{now}")),
        },
    );
    let chancery: Chancery = Up::in_folder(folder.path()).start();
    let acme = chancery.operator().project("acme");
    eventually("the end and all warnings", SOON, || {
        match stages(&acme).as_slice() {
            [1, 3, 4, 5] => Ok(()),
            // A machine that is slow to start skips what was due meanwhile, and that is as it should be.
            [1, 4, 5] | [1, 5] => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    drop(origin);
}
