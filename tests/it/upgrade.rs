//! A ledger whose rows were written by another release: they are rebuilt from the log before anything reads them.

use harness::Up;
use ledger::{Batch, Change, Ledger, Options};
use lifecycle::store::Table;

use crate::stage::Stage;

/// What the releases that did not know of the form of rows left behind, and worse: rows that cannot be read at all.
fn rows_of_another_release(path: &std::path::Path) -> Vec<[u8; 32]> {
    let ledger = Ledger::open(path, &Options::default()).expect("the ledger opens");
    let snapshot = ledger.read().expect("it is read");
    let mut changes = vec![Change {
        table: control::tables::BOOKKEEPING,
        key: b"rows".to_vec(),
        value: None,
    }];
    for table in [Table::Certificate, Table::Claim, Table::Project] {
        let rows = snapshot
            .scan(table as u8, &[], None, 1_000)
            .expect("rows are read");
        assert!(!rows.is_empty(), "{table:?} has no rows");
        changes.extend(rows.into_iter().map(|(key, mut value)| {
            value.truncate(value.len() / 2);
            Change {
                table: table as u8,
                key,
                value: Some(value),
            }
        }));
    }
    let mut objects = Vec::new();
    for (_, bytes) in snapshot.events(1, 1_000).expect("events are read") {
        let event = wire::envelope::Envelope::decode(&bytes).expect("an event");
        objects.extend(control::tables::objects_of(&event.event));
    }
    drop(snapshot);
    let mut writer = ledger.writer().expect("the only writer");
    let batch = Batch {
        changes,
        ..Batch::default()
    };
    writer.append(&batch).expect("written");
    objects
}

#[test]
fn rows_of_another_release_are_rebuilt_at_the_start() {
    let stage = Stage::new();
    stage.bucket("www.example.com");
    let leaf = stage.ca.issue("www.example.com");
    stage.upload("main", &leaf);
    stage.serves("www.example.com", &leaf);
    let before = stage.operator.run(&["events", "replay"]).ok().stdout;
    let Stage {
        chancery, origin, ..
    } = stage;
    let folder = chancery.stop().expect("the folder is its own");
    let path = folder.path().join("state/ledger.redb");
    let objects = rows_of_another_release(&path);
    assert!(objects.len() >= 2, "a leaf and its intermediate");

    let chancery = Up::in_folder(folder.path()).start();
    let operator = chancery.operator();
    let acme = operator.project("acme");
    let show = acme.run(&["certificate", "show", "main"]).ok().json();
    assert_eq!(show["status"], "ready", "{show}");
    let after = operator.run(&["events", "replay"]).ok().stdout;
    assert!(after.starts_with(&before), "the log is the same");
    let rebuilt = operator.run(&["audit", "rebuild"]).ok().json();
    assert_eq!(rebuilt["identical"], true, "{rebuilt}");
    operator.run(&["audit", "verify"]).ok();
    crate::stage::serves(chancery.https(), "www.example.com", &leaf);

    // Once is enough, and what certificates consist of came along.
    let folder2 = chancery.stop();
    let ledger = Ledger::open(&path, &Options::default()).expect("the ledger opens");
    let snapshot = ledger.read().expect("it is read");
    for hash in objects {
        assert!(snapshot.has_object(&hash).expect("it is read"));
    }
    drop((origin, folder2));
}
