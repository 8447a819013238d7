//! The tree in the file: proofs about every event at every size, files of the version before it, and changes behind the
//! ledger's back.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is its failure")]

use std::path::{Path, PathBuf};

use ledger::{
    Batch, Durability, Error, Hash, Head, Ledger, Options, Record,
    audit::{self, Claimed, Fault},
    leaf_hash,
    tree::{Frontier, TreeHead, verify_consistency, verify_inclusion},
};
use redb::{ReadableDatabase, ReadableTable, TableDefinition, TableHandle};

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const TREE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("tree");
const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");

fn open(path: &Path) -> Ledger {
    Ledger::open(path, &Options::default()).unwrap()
}

fn record(head: Head) -> (Record, Head) {
    let sequence = head.sequence + 1;
    let bytes = format!("{sequence} {}", head.hash).into_bytes();
    let next = Head {
        sequence,
        hash: leaf_hash(&bytes),
    };
    let record = Record {
        sequence,
        prevhash: head.hash,
        scope: "a".into(),
        scope_sequence: sequence,
        bytes,
    };
    (record, next)
}

fn claimed(sequence: u64, bytes: &[u8]) -> Result<Claimed, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let (number, prevhash) = text.split_once(' ').ok_or("one word")?;
    Ok(Claimed {
        sequence: number.parse().map_err(|_| "sequence")?,
        prevhash: prevhash.parse().map_err(|_| "prevhash")?,
        scope: "a".into(),
        scope_sequence: sequence,
    })
}

fn append(ledger: &Ledger, count: u64, per_batch: u64, durability: Durability) {
    let mut writer = ledger.writer().unwrap();
    writer.set_durability(durability);
    let until = writer.head().sequence + count;
    while writer.head().sequence < until {
        let mut batch = Batch::default();
        let mut head = writer.head();
        for _ in 0..per_batch.min(until - head.sequence) {
            let (record, next) = record(head);
            batch.records.push(record);
            head = next;
        }
        assert_eq!(writer.append(&batch).unwrap(), head);
    }
    writer.flush().unwrap();
}

/// The tree after each event, computed apart.
fn heads(count: u64) -> (Vec<Hash>, Vec<TreeHead>) {
    let (mut frontier, mut head) = (Frontier::new(), Head::EMPTY);
    let (mut leaves, mut heads) = (Vec::new(), vec![TreeHead::empty()]);
    for _ in 0..count {
        head = record(head).1;
        leaves.push(head.hash);
        frontier.push(head.hash, |_| ());
        heads.push(frontier.head());
    }
    (leaves, heads)
}

fn spoil(path: &Path, change: impl FnOnce(&redb::WriteTransaction)) {
    let database = redb::Database::open(path).unwrap();
    let transaction = database.begin_write().unwrap();
    change(&transaction);
    transaction.commit().unwrap();
}

/// What a file of version 1 was: the same without a tree.
fn as_version_1(path: &Path) {
    spoil(path, |transaction| {
        let mut meta = transaction.open_table(META).unwrap();
        meta.insert("format", 1u32.to_le_bytes().as_slice())
            .unwrap();
        meta.remove("tree").unwrap();
        drop(meta);
        assert!(transaction.delete_table(TREE).unwrap());
    });
}

fn version(path: &Path) -> (u32, bool) {
    let database = redb::Database::open(path).unwrap();
    let read = database.begin_read().unwrap();
    let meta = read.open_table(META).unwrap();
    let format = meta.get("format").unwrap().unwrap();
    let format = u32::from_le_bytes(format.value().try_into().unwrap());
    let tree = read
        .list_tables()
        .unwrap()
        .any(|table| table.name() == "tree");
    (format, tree)
}

#[test]
fn the_head_of_the_tree_is_that_of_the_events_after_each_batch_and_each_reopen() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let (_, heads) = heads(1_300);
    let mut ledger = open(&path);
    assert_eq!(ledger.tree().unwrap(), TreeHead::empty());
    for (turn, per_batch) in [1, 7, 255, 256, 257, 300].into_iter().enumerate() {
        append(&ledger, per_batch, per_batch, Durability::Immediate);
        let size = ledger.head().sequence;
        assert_eq!(ledger.tree().unwrap(), heads[size as usize]);
        if turn % 2 == 0 {
            ledger = {
                drop(ledger);
                open(&path)
            };
        }
    }
    let report = audit::verify(&ledger, 1, u64::MAX, claimed, |_| ()).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

/// A batch that is refused late, after it was checked, leaves the tree as it was.
#[test]
fn a_refused_batch_adds_no_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(&folder.path().join("ledger.redb"));
    let mut writer = ledger.writer().unwrap();
    let outcome = |first| ledger::Outcome {
        space: "a".into(),
        id: [1; 16],
        first,
        count: 1,
        digest: [0; 32],
    };
    for (refused, size) in [(false, 1), (true, 1)] {
        let (next, _) = record(writer.head());
        let batch = Batch {
            outcomes: vec![outcome(next.sequence)],
            records: vec![next],
            ..Batch::default()
        };
        let appended = writer.append(&batch);
        assert_eq!(
            matches!(appended, Err(Error::Duplicate { .. })),
            refused,
            "{appended:?}"
        );
        assert_eq!(ledger.tree().unwrap().size, size);
    }
    drop(writer);
    append(&ledger, 300, 9, Durability::Immediate);
    assert_eq!(ledger.tree().unwrap(), heads(301).1[301]);
}

#[test]
fn every_event_is_proven_at_every_size_around_the_tiles() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(&folder.path().join("ledger.redb"));
    append(&ledger, 800, 50, Durability::Deferred);
    let (leaves, heads) = heads(800);
    let read = ledger.read().unwrap();
    let sizes = [1, 2, 3, 254, 255, 256, 257, 511, 512, 513, 700, 799, 800];
    for size in sizes {
        let head = heads[size as usize];
        assert_eq!(read.tree_root(size).unwrap(), Some(head.root));
        for sequence in (1..=size).step_by(if size < 300 { 1 } else { 37 }) {
            let proof = read.inclusion_proof(sequence, size).unwrap().unwrap();
            let leaf = &leaves[sequence as usize - 1];
            assert!(verify_inclusion(leaf, sequence - 1, &head, &proof));
        }
        for old in sizes.into_iter().filter(|old| *old <= size) {
            let proof = read.consistency_proof(old, size).unwrap().unwrap();
            assert!(verify_consistency(&heads[old as usize], &head, &proof));
        }
    }
    for (sequence, size) in [(0, 5), (6, 5), (1, 801), (801, 801)] {
        assert_eq!(read.inclusion_proof(sequence, size).unwrap(), None);
    }
    assert_eq!(read.consistency_proof(6, 5).unwrap(), None);
    assert_eq!(read.consistency_proof(6, 801).unwrap(), None);
    assert_eq!(read.tree_root(801).unwrap(), None);
    // A tile is 256 neighbours of one level.
    assert_eq!(read.tree_hashes(0, 256, 256).unwrap(), leaves[256..512]);
    assert_eq!(read.tree_hashes(0, 768, 256).unwrap(), leaves[768..]);
    let above = read.tree_hashes(1, 0, 256).unwrap();
    assert_eq!(above.len(), 3);
    assert_eq!(read.tree_hash(1, 2).unwrap(), Some(above[2]));
    assert_eq!(read.tree_hash(1, 3).unwrap(), None);
    assert_eq!(above[0], heads[256].root);
}

/// More than 65,536 events, so that there are three levels; and the same again, replayed.
#[test]
fn three_levels_and_a_replay_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (
        open(&folder.path().join("one.redb")),
        open(&folder.path().join("two.redb")),
    );
    append(&one, 70_000, 5_000, Durability::Deferred);
    append(&two, 70_000, 1_777, Durability::Deferred);
    let (leaves, heads) = heads(70_000);
    assert_eq!(one.tree().unwrap(), heads[70_000]);
    let (one, two) = (one.read().unwrap(), two.read().unwrap());
    assert_eq!(one.first_tree_difference(&two).unwrap(), None);
    assert_eq!(one.tree_hashes(1, 0, 1_000).unwrap().len(), 273);
    assert_eq!(one.tree_hashes(2, 0, 256).unwrap(), [heads[65_536].root]);
    for (sequence, size) in [
        (1, 70_000),
        (65_536, 70_000),
        (65_537, 70_000),
        (70_000, 70_000),
        (65_000, 65_537),
        (12_345, 65_536),
    ] {
        let proof = one.inclusion_proof(sequence, size).unwrap().unwrap();
        let leaf = &leaves[sequence as usize - 1];
        let head = &heads[size as usize];
        assert!(verify_inclusion(leaf, sequence - 1, head, &proof));
    }
    for (old, size) in [(1, 70_000), (65_535, 65_537), (300, 66_000)] {
        let proof = one.consistency_proof(old, size).unwrap().unwrap();
        assert!(verify_consistency(
            &heads[old as usize],
            &heads[size as usize],
            &proof
        ));
    }
}

#[test]
fn a_file_of_version_1_gets_its_tree_when_it_is_opened() {
    for count in [0, 1, 256, 1_000, 66_000] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.redb");
        append(&open(&path), count, 5_000, Durability::Deferred);
        let (_, heads) = heads(count + 3);
        as_version_1(&path);
        assert_eq!(version(&path), (1, false));

        let ledger = open(&path);
        assert_eq!(ledger.tree().unwrap(), heads[count as usize], "{count}");
        let report = audit::verify(&ledger, 1, u64::MAX, claimed, |_| ()).unwrap();
        assert!(report.is_clean(), "{report:?}");
        // It goes on as if it had always had one.
        append(&ledger, 3, 1, Durability::Immediate);
        assert_eq!(ledger.tree().unwrap(), heads[count as usize + 3]);
        drop(ledger);
        assert_eq!(version(&path), (2, true));
        assert_eq!(open(&path).tree().unwrap(), heads[count as usize + 3]);
    }
}

/// Stopped after its first step, and once more with rows that belong to nothing: the next opening ends it either way.
#[test]
fn an_interrupted_upgrade_is_taken_up() {
    const COUNT: u64 = 70_000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    append(&open(&path), COUNT, 5_000, Durability::Deferred);
    let (_, heads) = heads(COUNT);
    for garbage in [false, true] {
        // The rows of the first 65,536 events are there, those after them are not, and the head of the tree is between.
        spoil(&path, |transaction| {
            let mut meta = transaction.open_table(META).unwrap();
            let between = heads[65_536];
            let mut value = between.size.to_le_bytes().to_vec();
            value.extend_from_slice(&between.root.0);
            if garbage {
                value[20] ^= 1;
            }
            meta.insert("format", 1u32.to_le_bytes().as_slice())
                .unwrap();
            meta.insert("tree", value.as_slice()).unwrap();
            let mut tree = transaction.open_table(TREE).unwrap();
            tree.retain(|key, _| key[0] != 1 || key[7] == 0).unwrap();
        });
        let ledger = open(&path);
        assert_eq!(ledger.tree().unwrap(), heads[COUNT as usize]);
        let report = audit::verify(&ledger, 1, u64::MAX, claimed, |_| ()).unwrap();
        assert!(report.is_clean(), "{report:?}");
        drop(ledger);
        assert_eq!(version(&path), (2, true));
    }
}

/// A file of version 1 whose events were changed must not get a tree that vouches for them.
#[test]
fn a_changed_file_of_version_1_gets_no_tree() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    append(&open(&path), 2_000, 500, Durability::Deferred);
    as_version_1(&path);
    spoil(&path, |transaction| {
        let mut events = transaction.open_table(EVENTS).unwrap();
        let mut row = events.get(300).unwrap().unwrap().value().to_vec();
        *row.last_mut().unwrap() ^= 1;
        events.insert(300, row.as_slice()).unwrap();
    });
    let refused = Ledger::open(&path, &Options::default());
    assert!(
        matches!(&refused, Err(Error::Damaged(what)) if what.contains("event 300")),
        "{refused:?}"
    );
    assert_eq!(version(&path).0, 1);
}

#[test]
fn a_tree_that_was_changed_is_refused_or_reported() {
    let folder = tempfile::tempdir().unwrap();
    let filled = |name: &str| -> PathBuf {
        let path = folder.path().join(name);
        append(&open(&path), 66_000, 5_000, Durability::Deferred);
        path
    };
    let change = |path: &Path, key: [u8; 9]| {
        spoil(path, |transaction| {
            let mut tree = transaction.open_table(TREE).unwrap();
            let mut row = tree.get(key.as_slice()).unwrap().unwrap().value().to_vec();
            row[5] ^= 4;
            tree.insert(key.as_slice(), row.as_slice()).unwrap();
        });
    };

    // The right edge is looked at whenever the file is opened.
    let path = filled("edge");
    change(&path, [1, 0, 0, 0, 0, 0, 0, 1, 0]);
    let refused = Ledger::open(&path, &Options::default());
    assert!(matches!(refused, Err(Error::Damaged(_))), "{refused:?}");

    let path = filled("head");
    spoil(&path, |transaction| {
        let mut meta = transaction.open_table(META).unwrap();
        let mut value = meta.get("tree").unwrap().unwrap().value().to_vec();
        value[0] ^= 1;
        meta.insert("tree", value.as_slice()).unwrap();
    });
    let refused = Ledger::open(&path, &Options::default());
    assert!(matches!(refused, Err(Error::Damaged(_))), "{refused:?}");

    // What lies deeper is found by the audit, and by a comparison with a rebuilt ledger.
    let path = filled("deep");
    change(&path, [1, 0, 0, 0, 0, 0, 0, 0, 7]);
    let ledger = open(&path);
    let report = audit::verify(&ledger, 1, u64::MAX, claimed, |_| ()).unwrap();
    assert_eq!(report.problem_count, 1, "{report:?}");
    assert!(
        matches!(
            report.problems[0].fault,
            Fault::Tree {
                level: 1,
                index: 7,
                ..
            }
        ) && report.problems[0].sequence == 8 * 256,
        "{report:?}"
    );
    let other = open(&filled("other"));
    let difference = ledger
        .read()
        .unwrap()
        .first_tree_difference(&other.read().unwrap());
    assert_eq!(difference.unwrap(), Some((1, 7)));

    // An event that was changed together with its stored hash fits no longer into the tree.
    let path = filled("event");
    spoil(&path, |transaction| {
        let mut events = transaction.open_table(EVENTS).unwrap();
        let row = events.get(300).unwrap().unwrap().value().to_vec();
        let mut bytes = row[32..].to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        let changed = [leaf_hash(&bytes).0.as_slice(), &bytes].concat();
        events.insert(300, changed.as_slice()).unwrap();
    });
    let report = audit::verify(&open(&path), 1, u64::MAX, claimed, |_| ()).unwrap();
    let tree = |problem: &audit::Problem| {
        matches!(
            problem.fault,
            Fault::Tree {
                level: 1,
                index: 1,
                ..
            }
        )
    };
    assert!(report.problems.iter().any(tree), "{report:?}");
}
