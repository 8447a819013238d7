//! The audit of the log: that every event has its hash, names the one before it, that neither the log
//! nor any scope has a gap, and that the Merkle tree is the one over these hashes.

use std::{collections::HashMap, ops::ControlFlow};

use serde::Serialize;

use crate::{
    Error, Hash, Head, Ledger, Snapshot, leaf_hash,
    tree::{Frontier, TreeHead},
};

/// How many events are read in one transaction.
const PAGE: usize = 5_000;

/// How many problems a report lists; it counts the others.
pub const MAX_PROBLEMS: usize = 100;

/// How many scopes' last numbers are remembered; others are looked up.
const REMEMBERED_SCOPES: usize = 65_536;

/// What an event says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// Its sequence.
    pub sequence: u64,
    /// The leaf hash of the event before it.
    pub prevhash: Hash,
    /// Its scope.
    pub scope: String,
    /// Its number in the scope.
    pub scope_sequence: u64,
}

/// What is wrong with an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Fault {
    /// It, and all up to the next one found, are not there.
    Missing {
        /// How many are missing.
        count: u64,
    },
    /// The stored leaf hash is not that of the bytes.
    Hash {
        /// The one stored.
        stored: Hash,
        /// The one of the bytes.
        computed: Hash,
    },
    /// It names another event before it.
    Chain {
        /// The hash of the event before it.
        expected: Hash,
        /// The hash that it names.
        claimed: Hash,
    },
    /// It says that it has another sequence.
    Sequence {
        /// The sequence that it names.
        claimed: u64,
    },
    /// It is not the next one of its scope.
    ScopeGap {
        /// Its scope.
        scope: String,
        /// The next number there.
        expected: u64,
        /// The number that it names.
        claimed: u64,
    },
    /// The index of its scope does not lead to it.
    Index {
        /// Its scope.
        scope: String,
        /// Where the index leads to, if anywhere.
        leads_to: Option<u64>,
    },
    /// It cannot be read.
    Unreadable {
        /// Why, in the words of the caller's check.
        reason: String,
    },
    /// The ledger's head does not name the last event.
    Head {
        /// What the head names.
        head: Head,
    },
    /// A hash of the tree, of which this is the last event, is not that of the events' stored hashes.
    Tree {
        /// The level, from 1.
        level: u8,
        /// Its number in the level.
        index: u64,
        /// The one stored, if any.
        stored: Option<Hash>,
        /// The one that the events' stored hashes give.
        computed: Hash,
    },
    /// The tree up to this event has another root than its hashes give.
    Root {
        /// What is stored, or follows from what is stored.
        stored: TreeHead,
        /// What the hashes give.
        computed: Hash,
    },
}

/// A fault and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The event.
    pub sequence: u64,
    /// What is wrong with it.
    #[serde(flatten)]
    pub fault: Fault,
}

/// What an audit found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The first sequence asked for.
    pub from: u64,
    /// The last sequence asked for, or the head if that was less.
    pub to: u64,
    /// How many events were read.
    pub events: u64,
    /// The last event read and the hash of its bytes.
    pub head: Head,
    /// How many problems there are.
    pub problem_count: u64,
    /// The first [`MAX_PROBLEMS`] of them.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problem_count == 0
    }

    fn add(&mut self, sequence: u64, fault: Fault) {
        self.problem_count += 1;
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem { sequence, fault });
        }
    }
}

/// Walks the events `from` to `to`, both included (`from` 0 counts as 1, `to` beyond the head as the
/// head), in short read transactions, so that it may run beside the writer.
///
/// `check` gets each event's sequence and bytes and returns what the event says of itself, or why it
/// cannot be read. `progress` gets the last sequence done, after every few thousand. The first event
/// of a part is checked against the stored hash of the one before it. The tree is computed anew where
/// `from` is 1, as far as no event is missing; of a part only the root is checked.
///
/// # Errors
///
/// [`Error::Storage`] and [`Error::Damaged`] if the file itself cannot be read. What is wrong with
/// events is in the report.
pub fn verify(
    ledger: &Ledger,
    from: u64,
    to: u64,
    mut check: impl FnMut(u64, &[u8]) -> Result<Claimed, String>,
    mut progress: impl FnMut(u64),
) -> Result<Report, Error> {
    let from = from.max(1);
    let to = to.min(ledger.head().sequence);
    let mut report = Report {
        from,
        to,
        events: 0,
        head: Head::EMPTY,
        problem_count: 0,
        problems: Vec::new(),
    };
    if from > to {
        return Ok(report);
    }
    let mut previous = Head {
        sequence: from - 1,
        hash: match from {
            1 => Hash::ZERO,
            _ => ledger.read()?.hash(from - 1)?.unwrap_or(Hash::ZERO),
        },
    };
    let mut scope_heads: HashMap<String, u64> = HashMap::new();
    let mut tree = (from == 1).then(Frontier::new);
    while previous.sequence < to {
        let snapshot = ledger.read()?;
        let mut failure = None;
        let mut read = 0;
        snapshot.visit_events(previous.sequence + 1, PAGE, |sequence, stored, bytes| {
            if sequence > to {
                return ControlFlow::Break(());
            }
            read += 1;
            report.events += 1;
            let mut chained = true;
            if sequence != previous.sequence + 1 {
                report.add(
                    previous.sequence + 1,
                    Fault::Missing {
                        count: sequence - previous.sequence - 1,
                    },
                );
                chained = false;
                tree = None;
            }
            let computed = leaf_hash(bytes);
            // From the stored hash, which was just compared: one changed event is one problem.
            if let Some(tree) = &mut tree
                && let Err(error) = grow(&snapshot, tree, stored, &mut report)
            {
                failure = Some(error);
                return ControlFlow::Break(());
            }
            if computed != stored {
                report.add(sequence, Fault::Hash { stored, computed });
            }
            match check(sequence, bytes) {
                Ok(claimed) => {
                    if claimed.sequence != sequence {
                        report.add(
                            sequence,
                            Fault::Sequence {
                                claimed: claimed.sequence,
                            },
                        );
                    }
                    if chained && claimed.prevhash != previous.hash {
                        report.add(
                            sequence,
                            Fault::Chain {
                                expected: previous.hash,
                                claimed: claimed.prevhash,
                            },
                        );
                    }
                    if let Err(error) =
                        check_scope(&snapshot, &mut scope_heads, sequence, claimed, &mut report)
                    {
                        failure = Some(error);
                        return ControlFlow::Break(());
                    }
                }
                Err(reason) => report.add(sequence, Fault::Unreadable { reason }),
            }
            previous = Head {
                sequence,
                hash: computed,
            };
            ControlFlow::Continue(())
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        if read == 0 {
            report.add(
                previous.sequence + 1,
                Fault::Missing {
                    count: to - previous.sequence,
                },
            );
            break;
        }
        progress(previous.sequence);
    }
    report.head = previous;
    let snapshot = ledger.read()?;
    let head = snapshot.head()?;
    check_root(&snapshot, tree.as_ref(), head, &mut report)?;
    let named = match head.sequence {
        0 => Some(Hash::ZERO),
        sequence => snapshot.hash(sequence)?,
    };
    if named != Some(head.hash) {
        report.add(head.sequence, Fault::Head { head });
    }
    Ok(report)
}

/// Adds a leaf and compares the hashes that this completes with the stored ones.
fn grow(
    snapshot: &Snapshot,
    tree: &mut Frontier,
    leaf: Hash,
    report: &mut Report,
) -> Result<(), Error> {
    let mut completed = Vec::new();
    tree.push(leaf, |tile| {
        completed.push((tile.level + 1, tile.index, tile.root))
    });
    for (level, index, computed) in completed {
        let stored = snapshot.tree_hash(level, index)?;
        if stored != Some(computed) {
            report.add(
                tree.size(),
                Fault::Tree {
                    level,
                    index,
                    stored,
                    computed,
                },
            );
        }
    }
    Ok(())
}

/// Compares the root that is stored with that of the stored hashes, and these with what was computed.
fn check_root(
    snapshot: &Snapshot,
    computed: Option<&Frontier>,
    head: Head,
    report: &mut Report,
) -> Result<(), Error> {
    let mut compare = |stored: TreeHead, computed: Hash| {
        if stored.root != computed {
            report.add(stored.size, Fault::Root { stored, computed });
        }
    };
    let stored = snapshot.tree()?;
    // Where hashes are missing, that was reported already.
    match snapshot.tree_root(head.sequence) {
        Ok(Some(root)) if stored.size == head.sequence => compare(stored, root),
        Ok(_) => compare(stored, Hash::ZERO),
        Err(Error::Damaged(_)) => {}
        Err(error) => return Err(error),
    }
    if let Some(computed) = computed.map(Frontier::head) {
        match snapshot.tree_root(computed.size) {
            Ok(Some(root)) => compare(
                TreeHead {
                    size: computed.size,
                    root,
                },
                computed.root,
            ),
            Ok(None) | Err(Error::Damaged(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn check_scope(
    snapshot: &Snapshot,
    scope_heads: &mut HashMap<String, u64>,
    sequence: u64,
    claimed: Claimed,
    report: &mut Report,
) -> Result<(), Error> {
    let Claimed {
        scope,
        scope_sequence,
        ..
    } = claimed;
    let leads_to = snapshot.scope_event(&scope, scope_sequence)?;
    let expected = match scope_heads.get(&scope) {
        Some(last) => Some(last.saturating_add(1)),
        // In the middle of the log, or where the number was forgotten, the index knows whether the
        // number before is an earlier event.
        None => match scope_sequence.checked_sub(1) {
            Some(0) => None,
            Some(before) => match snapshot.scope_event(&scope, before)? {
                Some(earlier) if earlier < sequence => None,
                _ => Some(before),
            },
            None => Some(1),
        },
    };
    if leads_to != Some(sequence) {
        report.add(
            sequence,
            Fault::Index {
                scope: scope.clone(),
                leads_to,
            },
        );
    }
    if let Some(expected) = expected.filter(|expected| *expected != scope_sequence) {
        report.add(
            sequence,
            Fault::ScopeGap {
                scope: scope.clone(),
                expected,
                claimed: scope_sequence,
            },
        );
    }
    match scope_heads.get_mut(&scope) {
        Some(last) => *last = scope_sequence,
        None => {
            if scope_heads.len() >= REMEMBERED_SCOPES {
                scope_heads.clear();
            }
            scope_heads.insert(scope, scope_sequence);
        }
    }
    Ok(())
}
