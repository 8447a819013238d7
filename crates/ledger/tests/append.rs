//! Given a ledger, when something is appended, then this is what it holds, also after it is opened
//! again.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is its failure")]

use std::{
    ops::ControlFlow,
    path::Path,
    sync::{Arc, Mutex},
};

use ledger::{
    Batch, Change, Durability, Error, FORMAT, Hash, Head, Ledger, Options, Outcome, Record,
    audit::{self, Claimed, Fault},
    leaf_hash,
};

fn open(path: &Path) -> Ledger {
    Ledger::open(path, &Options::default()).unwrap()
}

/// An event that says of itself what the audit checks: sequence, hash before, scope, number.
fn bytes(sequence: u64, prevhash: Hash, scope: &str, scope_sequence: u64) -> Vec<u8> {
    format!("{sequence} {prevhash} {scope} {scope_sequence}").into_bytes()
}

fn claimed(_: u64, bytes: &[u8]) -> Result<Claimed, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let parts: Vec<&str> = text.split(' ').collect();
    let [sequence, prevhash, scope, scope_sequence] = parts[..] else {
        return Err("not four words".into());
    };
    Ok(Claimed {
        sequence: sequence.parse().map_err(|_| "sequence")?,
        prevhash: prevhash.parse().map_err(|_| "prevhash")?,
        scope: scope.into(),
        scope_sequence: scope_sequence.parse().map_err(|_| "scope sequence")?,
    })
}

/// Records that follow `head`, one for each of (scope, number in it).
fn records(head: Head, scopes: &[(&str, u64)]) -> Vec<Record> {
    let mut head = head;
    scopes
        .iter()
        .map(|(scope, scope_sequence)| {
            let sequence = head.sequence + 1;
            let record = Record {
                sequence,
                prevhash: head.hash,
                scope: (*scope).into(),
                scope_sequence: *scope_sequence,
                bytes: bytes(sequence, head.hash, scope, *scope_sequence),
            };
            head = Head {
                sequence,
                hash: leaf_hash(&record.bytes),
            };
            record
        })
        .collect()
}

fn batch(head: Head, scopes: &[(&str, u64)]) -> Batch {
    Batch {
        records: records(head, scopes),
        ..Batch::default()
    }
}

fn outcome(space: &str, id: u8, first: u64, count: u32) -> Outcome {
    Outcome {
        space: space.into(),
        id: [id; 16],
        first,
        count,
        digest: [id; 32],
    }
}

fn put(table: u8, key: &[u8], value: &[u8]) -> Change {
    Change {
        table,
        key: key.into(),
        value: Some(value.into()),
    }
}

#[test]
fn a_new_ledger_is_empty_and_its_first_event_follows_zero() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let ledger = open(&path);
    assert_eq!(ledger.head(), Head::EMPTY);
    assert_eq!(ledger.read().unwrap().head().unwrap(), Head::EMPTY);
    assert_eq!(ledger.read().unwrap().event(1).unwrap(), None);
    let report = audit::verify(&ledger, 0, u64::MAX, claimed, |_| ()).unwrap();
    assert!(report.is_clean() && report.events == 0);
    // Nothing half-made is left beside it.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    let head = ledger
        .writer()
        .unwrap()
        .append(&batch(Head::EMPTY, &[("acme", 1)]))
        .unwrap();
    assert_eq!(head.sequence, 1);
    assert_eq!(head.hash, leaf_hash(&bytes(1, Hash::ZERO, "acme", 1)));
}

#[test]
fn what_was_appended_is_found_again_after_a_reopen() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let object = b"DER".to_vec();
    let name = Hash::of(&object).0;
    let ledger = open(&path);
    let mut writer = ledger.writer().unwrap();
    let appended = Batch {
        records: records(
            Head::EMPTY,
            &[("acme", 1), ("acme", 2), ("acme-2", 1), ("acme", 3)],
        ),
        changes: vec![
            put(7, b"b", b"1"),
            put(7, b"a", b"old"),
            put(7, b"a", b"new"),
        ],
        outcomes: vec![outcome("acme", 1, 1, 2), outcome("acme-2", 1, 3, 1)],
        objects: vec![(name, object.clone())],
    };
    let head = writer.append(&appended).unwrap();
    // The same object again is no second one and no error.
    writer.put_objects(vec![(name, object.clone())]).unwrap();
    drop(writer);
    drop(ledger);

    let ledger = open(&path);
    assert_eq!(ledger.head(), head);
    let read = ledger.read().unwrap();
    for record in &appended.records {
        assert_eq!(
            read.event(record.sequence).unwrap().as_ref(),
            Some(&record.bytes)
        );
        assert_eq!(
            read.hash(record.sequence).unwrap(),
            Some(leaf_hash(&record.bytes))
        );
    }
    let sequences = |events: Vec<(u64, Vec<u8>)>| -> Vec<u64> {
        events.into_iter().map(|(sequence, _)| sequence).collect()
    };
    assert_eq!(sequences(read.events(0, 10).unwrap()), [1, 2, 3, 4]);
    assert_eq!(sequences(read.events(2, 2).unwrap()), [2, 3]);
    let places: Vec<(u64, u64)> = read
        .scope_events("acme", 2, 10)
        .unwrap()
        .into_iter()
        .map(|(number, sequence, _)| (number, sequence))
        .collect();
    assert_eq!(places, [(2, 2), (3, 4)]);
    assert_eq!(read.scope_head("acme").unwrap(), 3);
    assert_eq!(read.scope_head("acme-2").unwrap(), 1);
    assert_eq!(read.scope_head("acm").unwrap(), 0);
    assert_eq!(
        read.outcome("acme", &[1; 16]).unwrap(),
        Some(outcome("acme", 1, 1, 2))
    );
    assert_eq!(read.outcome("acme", &[2; 16]).unwrap(), None);
    assert_eq!(read.object(&name).unwrap(), Some(object));
    assert_eq!(read.get(7, b"a").unwrap().as_deref(), Some(&b"new"[..]));
}

#[test]
fn a_batch_that_does_not_follow_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(&folder.path().join("ledger.redb"));
    let mut writer = ledger.writer().unwrap();
    let head = writer
        .append(&Batch {
            outcomes: vec![outcome("acme", 1, 1, 1)],
            ..batch(Head::EMPTY, &[("acme", 1)])
        })
        .unwrap();
    let good = || Batch {
        records: records(head, &[("acme", 2), ("acme", 3)]),
        changes: vec![put(1, b"k", b"v")],
        outcomes: vec![outcome("acme", 2, 2, 2)],
        objects: vec![(Hash::of(b"x").0, b"x".to_vec())],
    };
    type Spoil = fn(&mut Batch);
    type Expected = fn(&Error) -> bool;
    let cases: [(&str, Spoil, Expected); 12] = [
        (
            "sequence",
            |b| b.records[1].sequence = 4,
            |e| {
                matches!(
                    e,
                    Error::Gap {
                        expected: 3,
                        found: 4
                    }
                )
            },
        ),
        (
            "repeated",
            |b| b.records[0].sequence = 1,
            |e| {
                matches!(
                    e,
                    Error::Gap {
                        expected: 2,
                        found: 1
                    }
                )
            },
        ),
        (
            "prevhash",
            |b| b.records[1].prevhash = Hash::ZERO,
            |e| matches!(e, Error::Fork { sequence: 3, .. }),
        ),
        (
            "changed bytes",
            |b| b.records[0].bytes.push(b'!'),
            |e| matches!(e, Error::Fork { sequence: 3, .. }),
        ),
        (
            "scope gap",
            |b| b.records[0].scope_sequence = 3,
            |e| {
                matches!(
                    e,
                    Error::ScopeGap {
                        expected: 2,
                        found: 3,
                        ..
                    }
                )
            },
        ),
        (
            "new scope",
            |b| b.records[1].scope = "other".into(),
            |e| {
                matches!(
                    e,
                    Error::ScopeGap {
                        expected: 1,
                        found: 3,
                        ..
                    }
                )
            },
        ),
        (
            "known command",
            |b| b.outcomes[0].id = [1; 16],
            |e| matches!(e, Error::Duplicate { .. }),
        ),
        (
            "twice in the batch",
            |b| b.outcomes.push(b.outcomes[0].clone()),
            |e| matches!(e, Error::Duplicate { .. }),
        ),
        (
            "outcome beyond the batch",
            |b| b.outcomes[0].count = 3,
            |e| matches!(e, Error::OutcomeOutside { .. }),
        ),
        (
            "outcome overflows",
            |b| b.outcomes[0].first = u64::MAX,
            |e| matches!(e, Error::OutcomeOutside { .. }),
        ),
        (
            "object",
            |b| b.objects[0].0 = [0; 32],
            |e| matches!(e, Error::ObjectMismatch { .. }),
        ),
        (
            "length",
            |b| b.records[0].scope = "s".repeat(256),
            |e| matches!(e, Error::Length { length: 256, .. }),
        ),
    ];
    for (name, spoil, expected) in cases {
        let mut spoilt = good();
        spoil(&mut spoilt);
        let error = writer.append(&spoilt).unwrap_err();
        assert!(expected(&error), "{name}: {error}");
        assert!(error.is_refusal(), "{name}: {error}");
        let read = ledger.read().unwrap();
        assert_eq!(
            (ledger.head(), writer.head(), read.head().unwrap()),
            (head, head, head),
            "{name}"
        );
        assert_eq!(read.event(2).unwrap(), None, "{name}");
        assert_eq!(read.get(1, b"k").unwrap(), None, "{name}");
        assert_eq!(read.outcome("acme", &[2; 16]).unwrap(), None, "{name}");
        assert!(!read.has_object(&Hash::of(b"x").0).unwrap(), "{name}");
    }
    assert_eq!(writer.append(&good()).unwrap().sequence, 3);
}

#[test]
fn there_is_one_writer_and_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let ledger = open(&path);
    let writer = ledger.writer().unwrap();
    assert!(matches!(ledger.writer(), Err(Error::WriterTaken)));
    drop(writer);
    drop(ledger.writer().unwrap());
    assert!(matches!(
        Ledger::open(&path, &Options::default()),
        Err(Error::Locked)
    ));
    drop(ledger);
    open(&path);
}

#[test]
fn listeners_hear_of_durable_heads_until_they_leave() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(&folder.path().join("ledger.redb"));
    let heard = Arc::new(Mutex::new(Vec::new()));
    let subscription = ledger.on_append({
        let heard = Arc::clone(&heard);
        move |head| heard.lock().unwrap().push(head.sequence)
    });
    let mut writer = ledger.writer().unwrap();
    let head = writer.append(&batch(Head::EMPTY, &[("a", 1)])).unwrap();
    writer.set_durability(Durability::Deferred);
    let head = writer.append(&batch(head, &[("a", 2)])).unwrap();
    let head = writer.append(&batch(head, &[("a", 3)])).unwrap();
    assert_eq!(ledger.head().sequence, 1);
    assert_eq!(ledger.read().unwrap().head().unwrap(), head);
    assert_eq!(writer.flush().unwrap(), head);
    assert_eq!(ledger.head(), head);
    drop(subscription);
    writer.append(&batch(head, &[("a", 4)])).unwrap();
    writer.flush().unwrap();
    assert_eq!(*heard.lock().unwrap(), [1, 3]);
}

#[test]
fn a_writer_goes_on_where_one_was_dropped_before_its_flush() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(&folder.path().join("ledger.redb"));
    let mut writer = ledger.writer().unwrap();
    writer.set_durability(Durability::Deferred);
    let head = writer.append(&batch(Head::EMPTY, &[("a", 1)])).unwrap();
    drop(writer);
    assert_eq!(ledger.head(), Head::EMPTY);
    let mut writer = ledger.writer().unwrap();
    assert_eq!(writer.head(), head);
    assert_eq!(writer.flush().unwrap(), head);
    assert_eq!(ledger.head(), head);
}

#[test]
fn rows_are_paged_and_the_newest_below_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(&folder.path().join("ledger.redb"));
    let mut writer = ledger.writer().unwrap();
    let keys: [&[u8]; 6] = [b"a1", b"a3", b"a5", b"b1", b"\xff\xff", b"\xff\xff\x01"];
    let mut changes: Vec<Change> = keys.iter().map(|key| put(255, key, key)).collect();
    changes.push(put(0, b"", b"one row"));
    changes.push(put(254, b"\xff", b"below"));
    writer
        .append(&Batch {
            changes,
            ..Batch::default()
        })
        .unwrap();
    let read = ledger.read().unwrap();
    let scan = |prefix: &[u8], after: Option<&[u8]>, limit| -> Vec<Vec<u8>> {
        let rows = read.scan(255, prefix, after, limit).unwrap();
        rows.into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(scan(b"", None, 10), keys);
    assert_eq!(scan(b"a", None, 10), keys[..3]);
    assert_eq!(scan(b"a", None, 2), keys[..2]);
    assert_eq!(scan(b"a", Some(b"a3"), 10), keys[2..3]);
    assert_eq!(scan(b"a", Some(b"A"), 10), keys[..3]);
    assert!(scan(b"a", Some(b"b"), 10).is_empty());
    assert_eq!(scan(b"\xff", Some(b"\xff\xff"), 10), keys[5..]);
    let newest = |prefix: &[u8], upper: &[u8]| {
        let row = read.last_at_or_below(255, prefix, upper).unwrap();
        row.map(|(key, _)| key)
    };
    assert_eq!(newest(b"a", b"a4").as_deref(), Some(&b"a3"[..]));
    assert_eq!(newest(b"a", b"a3").as_deref(), Some(&b"a3"[..]));
    assert_eq!(newest(b"a", b"z").as_deref(), Some(&b"a5"[..]));
    assert_eq!(newest(b"a", b"a0"), None);
    assert_eq!(newest(b"b", b"a9"), None);
    assert_eq!(read.tables().unwrap(), [0, 254, 255]);
    assert_eq!(read.get(0, b"").unwrap().as_deref(), Some(&b"one row"[..]));
}

#[test]
fn two_ledgers_are_compared_row_by_row() {
    let folder = tempfile::tempdir().unwrap();
    let fill = |name: &str, rows: &[(u8, &[u8], &[u8])]| {
        let ledger = open(&folder.path().join(name));
        let changes = rows.iter().map(|(t, k, v)| put(*t, k, v)).collect();
        let mut writer = ledger.writer().unwrap();
        writer
            .append(&Batch {
                changes,
                ..Batch::default()
            })
            .unwrap();
        ledger.read().unwrap()
    };
    let one = fill("one", &[(1, b"a", b"x"), (1, b"b", b"y"), (2, b"c", b"z")]);
    let same = fill("same", &[(2, b"c", b"z"), (1, b"b", b"y"), (1, b"a", b"x")]);
    let tables = [2, 1, 1];
    assert_eq!(
        one.tables_digest(&tables).unwrap(),
        same.tables_digest(&[1, 2]).unwrap()
    );
    assert_eq!(one.first_difference(&same, &tables).unwrap(), None);
    type Rows = [(u8, &'static [u8], &'static [u8])];
    let others: [(&Rows, (u8, &[u8])); 4] = [
        (
            &[(1, b"a", b"x"), (1, b"b", b"!"), (2, b"c", b"z")],
            (1, b"b"),
        ),
        (&[(1, b"a", b"x"), (2, b"c", b"z")], (1, b"b")),
        (&[(1, b"a", b"x"), (1, b"b", b"y")], (2, b"c")),
        (
            &[(1, b"a", b"x"), (1, b"a0", b"y"), (2, b"c", b"z")],
            (1, b"a0"),
        ),
    ];
    for (number, (rows, (table, key))) in others.into_iter().enumerate() {
        let other = fill(&format!("other-{number}"), rows);
        assert_ne!(
            one.tables_digest(&[1, 2]).unwrap(),
            other.tables_digest(&[1, 2]).unwrap()
        );
        assert_eq!(
            one.first_difference(&other, &tables).unwrap(),
            Some((table, key.to_vec()))
        );
    }
}

#[test]
fn the_audit_passes_what_is_whole_and_works_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(&folder.path().join("ledger.redb"));
    let mut writer = ledger.writer().unwrap();
    writer.set_durability(Durability::Deferred);
    let mut head = Head::EMPTY;
    for number in 1..=4_000u64 {
        head = writer
            .append(&batch(
                head,
                &[("a", 2 * number - 1), ("b", number), ("a", 2 * number)],
            ))
            .unwrap();
    }
    writer.flush().unwrap();
    let mut seen = Vec::new();
    let report = audit::verify(&ledger, 1, u64::MAX, claimed, |done| seen.push(done)).unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.events, report.head), (12_000, head));
    assert_eq!(seen, [5_000, 10_000, 12_000]);
    let part = audit::verify(&ledger, 4_001, 4_010, claimed, |_| ()).unwrap();
    assert!(part.is_clean(), "{part:?}");
    assert_eq!(part.events, 10);
}

#[test]
fn the_audit_names_what_an_event_says_wrongly() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(&folder.path().join("ledger.redb"));
    let mut writer = ledger.writer().unwrap();
    writer
        .append(&batch(
            Head::EMPTY,
            &[("a", 1), ("a", 2), ("b", 1), ("a", 3)],
        ))
        .unwrap();
    type Spoil = fn(&mut Claimed);
    type Expected = fn(&Fault) -> bool;
    let cases: [(Spoil, Expected); 4] = [
        (
            |c| c.sequence = 9,
            |f| matches!(f, Fault::Sequence { claimed: 9 }),
        ),
        (
            |c| c.prevhash = Hash::ZERO,
            |f| matches!(f, Fault::Chain { .. }),
        ),
        (
            |c| c.scope = "c".into(),
            |f| matches!(f, Fault::Index { leads_to: None, .. }),
        ),
        (
            |c| c.scope_sequence = u64::MAX,
            |f| matches!(f, Fault::Index { .. }),
        ),
    ];
    for (spoil, expected) in cases {
        let check = |sequence, bytes: &[u8]| {
            let mut claim = claimed(sequence, bytes)?;
            if sequence == 2 {
                spoil(&mut claim);
            }
            Ok(claim)
        };
        let report = audit::verify(&ledger, 1, 4, check, |_| ()).unwrap();
        assert!(!report.is_clean());
        assert!(expected(&report.problems[0].fault), "{report:?}");
        assert_eq!(report.problems[0].sequence, 2);
    }
    let unreadable = |_, _: &[u8]| Err("no".to_owned());
    let report = audit::verify(&ledger, 1, 4, unreadable, |_| ()).unwrap();
    assert_eq!(report.problem_count, 4);
}

/// The file is changed behind the ledger's back, through redb itself, as no disk error would: a
/// well-formed database with another content.
#[test]
fn a_file_that_was_tampered_with_is_refused_or_reported() {
    const EVENTS: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new("events");
    const META: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("meta");
    let folder = tempfile::tempdir().unwrap();
    let filled = |name: &str| {
        let path = folder.path().join(name);
        let ledger = open(&path);
        let mut writer = ledger.writer().unwrap();
        writer.set_durability(Durability::Deferred);
        let mut head = Head::EMPTY;
        for number in 1..=2_000 {
            head = writer.append(&batch(head, &[("a", number)])).unwrap();
        }
        writer.flush().unwrap();
        path
    };
    let spoil = |path: &Path, change: &dyn Fn(&redb::WriteTransaction)| {
        let database = redb::Database::open(path).unwrap();
        let transaction = database.begin_write().unwrap();
        change(&transaction);
        transaction.commit().unwrap();
    };
    let replace = |sequence: u64| {
        move |transaction: &redb::WriteTransaction| {
            let mut events = transaction.open_table(EVENTS).unwrap();
            let mut row = events.get(sequence).unwrap().unwrap().value().to_vec();
            *row.last_mut().unwrap() ^= 1;
            events.insert(sequence, row.as_slice()).unwrap();
        }
    };
    use redb::ReadableTable;

    let path = filled("tail");
    spoil(&path, &replace(1_999));
    let refused = Ledger::open(&path, &Options::default());
    assert!(matches!(refused, Err(Error::Damaged(_))), "{refused:?}");

    let path = filled("last");
    spoil(&path, &|transaction| {
        let mut events = transaction.open_table(EVENTS).unwrap();
        events.remove(2_000).unwrap();
    });
    let refused = Ledger::open(&path, &Options::default());
    assert!(matches!(refused, Err(Error::Damaged(_))), "{refused:?}");

    let path = filled("middle");
    spoil(&path, &replace(500));
    spoil(&path, &|transaction| {
        let mut events = transaction.open_table(EVENTS).unwrap();
        events.remove(700).unwrap();
    });
    let report = audit::verify(&open(&path), 1, u64::MAX, claimed, |_| ()).unwrap();
    let at: Vec<u64> = report.problems.iter().map(|p| p.sequence).collect();
    assert!(at.contains(&500) && at.contains(&700), "{report:?}");
    assert!(
        at.iter().all(|at| [500, 501, 700, 701].contains(at)),
        "{report:?}"
    );

    let path = filled("newer");
    spoil(&path, &|transaction| {
        let mut meta = transaction.open_table(META).unwrap();
        meta.insert("format", (FORMAT + 1).to_le_bytes().as_slice())
            .unwrap();
    });
    assert!(matches!(
        Ledger::open(&path, &Options::default()),
        Err(Error::NewerFormat { found, supported: FORMAT }) if found == FORMAT + 1
    ));

    let path = folder.path().join("foreign");
    let database = redb::Database::create(&path).unwrap();
    spoil_foreign(&database);
    drop(database);
    assert!(matches!(
        Ledger::open(&path, &Options::default()),
        Err(Error::NotALedger)
    ));
}

fn spoil_foreign(database: &redb::Database) {
    let transaction = database.begin_write().unwrap();
    let table: redb::TableDefinition<'_, u64, u64> = redb::TableDefinition::new("else");
    transaction.open_table(table).unwrap();
    transaction.commit().unwrap();
}

#[test]
fn visiting_stops_where_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(&folder.path().join("ledger.redb"));
    let mut writer = ledger.writer().unwrap();
    writer
        .append(&batch(Head::EMPTY, &[("a", 1), ("a", 2), ("a", 3)]))
        .unwrap();
    let mut seen = Vec::new();
    let read = ledger.read().unwrap();
    read.visit_events(1, 10, |sequence, hash, bytes| {
        assert_eq!(hash, leaf_hash(bytes));
        seen.push(sequence);
        if sequence == 2 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })
    .unwrap();
    assert_eq!(seen, [1, 2]);
}
