//! Random batches, some of them spoilt, with reopens in between, leave what a plain model says.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is its failure")]

use std::collections::BTreeMap;

use ledger::{Batch, Change, Durability, Hash, Head, Ledger, Options, Outcome, Record, leaf_hash};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Append {
        /// Scope and bytes of each event.
        events: Vec<(u8, Vec<u8>)>,
        changes: Vec<(u8, Vec<u8>, Option<Vec<u8>>)>,
        /// The command id; one that was there already is refused.
        id: u8,
        object: Option<Vec<u8>>,
        spoilt: bool,
    },
    Deferred(bool),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bytes = || prop::collection::vec(any::<u8>(), 1..40);
    let key = || prop::collection::vec(0u8..3, 0..3);
    let change = (0u8..3, key(), prop::option::of(bytes()));
    let append = (
        prop::collection::vec((0u8..4, bytes()), 1..6),
        prop::collection::vec(change, 0..6),
        0u8..60,
        prop::option::of(bytes()),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(events, changes, id, object, spoilt)| Step::Append {
            events,
            changes,
            id,
            object,
            spoilt,
        });
    let step = prop_oneof![
        8 => append,
        1 => any::<bool>().prop_map(Step::Deferred),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..25)
}

#[derive(Default)]
struct Model {
    head: Head,
    events: Vec<Vec<u8>>,
    scopes: BTreeMap<String, Vec<u64>>,
    rows: BTreeMap<(u8, Vec<u8>), Vec<u8>>,
    outcomes: BTreeMap<u8, Outcome>,
    objects: BTreeMap<[u8; 32], Vec<u8>>,
}

impl Model {
    fn batch(&self, step: &Step) -> Batch {
        let Step::Append {
            events,
            changes,
            id,
            object,
            spoilt,
        } = step
        else {
            return Batch::default();
        };
        let mut head = self.head;
        let mut numbers: BTreeMap<String, u64> = BTreeMap::new();
        let mut records: Vec<Record> = Vec::new();
        for (scope, bytes) in events {
            let scope = format!("scope-{scope}");
            let before = self.scopes.get(&scope).map_or(0, Vec::len) as u64;
            let number = numbers.entry(scope.clone()).or_insert(before);
            *number += 1;
            let record = Record {
                sequence: head.sequence + 1,
                prevhash: head.hash,
                scope,
                scope_sequence: *number,
                bytes: bytes.clone(),
            };
            head = Head {
                sequence: record.sequence,
                hash: leaf_hash(bytes),
            };
            records.push(record);
        }
        if *spoilt {
            records[0].prevhash = Hash([9; 32]);
        }
        Batch {
            outcomes: vec![Outcome {
                space: "space".into(),
                id: [*id; 16],
                first: self.head.sequence + 1,
                count: records.len() as u32,
                digest: [*id; 32],
            }],
            records,
            changes: changes
                .iter()
                .map(|(table, key, value)| Change {
                    table: *table,
                    key: key.clone(),
                    value: value.clone(),
                })
                .collect(),
            objects: object
                .iter()
                .map(|object| (Hash::of(object).0, object.clone()))
                .collect(),
        }
    }

    fn apply(&mut self, batch: Batch) {
        for record in batch.records {
            self.head = Head {
                sequence: record.sequence,
                hash: leaf_hash(&record.bytes),
            };
            self.events.push(record.bytes);
            self.scopes
                .entry(record.scope)
                .or_default()
                .push(record.sequence);
        }
        for change in batch.changes {
            let place = (change.table, change.key);
            match change.value {
                Some(value) => self.rows.insert(place, value),
                None => self.rows.remove(&place),
            };
        }
        for outcome in batch.outcomes {
            self.outcomes.insert(outcome.id[0], outcome);
        }
        self.objects.extend(batch.objects);
    }

    fn compare(&self, ledger: &Ledger) -> Result<(), TestCaseError> {
        let read = ledger.read().unwrap();
        prop_assert_eq!(read.head().unwrap(), self.head);
        let events: Vec<_> = (1..).zip(self.events.iter().cloned()).collect();
        prop_assert_eq!(read.events(1, usize::MAX).unwrap(), events);
        for (scope, sequences) in &self.scopes {
            let found: Vec<u64> = read
                .scope_events(scope, 1, usize::MAX)
                .unwrap()
                .into_iter()
                .map(|(_, sequence, _)| sequence)
                .collect();
            prop_assert_eq!(&found, sequences);
            prop_assert_eq!(read.scope_head(scope).unwrap(), sequences.len() as u64);
        }
        for table in 0..3 {
            let rows: Vec<_> = self
                .rows
                .iter()
                .filter(|((of, _), _)| *of == table)
                .map(|((_, key), value)| (key.clone(), value.clone()))
                .collect();
            // By pages of two, as a caller would.
            let mut found: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
            loop {
                let after = found.last().map(|(key, _)| key.clone());
                let page = read.scan(table, b"", after.as_deref(), 2).unwrap();
                if page.is_empty() {
                    break;
                }
                found.extend(page);
            }
            prop_assert_eq!(&found, &rows);
            for (key, _) in &rows {
                let below = |(other, _): &&(Vec<u8>, Vec<u8>)| {
                    other <= key && other.starts_with(&key[..key.len() / 2])
                };
                let newest = rows.iter().rev().find(below).cloned();
                let prefix = &key[..key.len() / 2];
                prop_assert_eq!(read.last_at_or_below(table, prefix, key).unwrap(), newest);
            }
        }
        for id in 0..60 {
            let outcome = read.outcome("space", &[id; 16]).unwrap();
            prop_assert_eq!(outcome.as_ref(), self.outcomes.get(&id));
        }
        for (hash, object) in &self.objects {
            let found = read.object(hash).unwrap();
            prop_assert_eq!(found.as_ref(), Some(object));
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_ledger_is_its_model(steps in steps()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.redb");
        let mut ledger = Ledger::open(&path, &Options::default()).unwrap();
        let mut writer = ledger.writer().unwrap();
        let mut model = Model::default();
        for step in &steps {
            match step {
                Step::Append { id, spoilt, .. } => {
                    let batch = model.batch(step);
                    let refused = *spoilt || model.outcomes.contains_key(id);
                    let appended = writer.append(&batch);
                    match appended {
                        Ok(_) => {
                            prop_assert!(!refused);
                            model.apply(batch);
                        }
                        Err(error) => prop_assert!(refused && error.is_refusal(), "{error}"),
                    }
                }
                Step::Deferred(true) => writer.set_durability(Durability::Deferred),
                Step::Deferred(false) => writer.set_durability(Durability::Immediate),
                Step::Reopen => {
                    writer.flush().unwrap();
                    drop(writer);
                    drop(ledger);
                    ledger = Ledger::open(&path, &Options::default()).unwrap();
                    prop_assert_eq!(ledger.head(), model.head);
                    writer = ledger.writer().unwrap();
                }
            }
            model.compare(&ledger)?;
        }
    }
}
