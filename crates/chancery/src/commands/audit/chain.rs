//! The check that goes through the log once: hashes, gaps, order, whole commands, and the tree that grows from it all.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use ledger::tree::{Frontier, TreeHead};
use ledger::{Hash, leaf_hash};
use wire::envelope::Position;

/// How many problems are listed; the others are counted.
const LISTED: usize = 20;

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Problem {
    pub(super) sequence: u64,
    pub(super) what: String,
}

/// What an audit found.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub(super) events: u64,
    pub(super) sequence: u64,
    pub(super) hash: Hash,
    /// The root of the tree over all of them.
    pub(super) root: Hash,
    pub(super) problem_count: u64,
    pub(super) problems: Vec<Problem>,
}

/// A command of which not all events have come yet.
struct Open {
    command: String,
    index: u32,
    count: u32,
}

/// The state of a check that goes through the log once.
pub(super) struct Chain {
    pub(super) report: Report,
    tree: Frontier,
    /// Roots that others have seen, by the size of the tree: what each was and who said so.
    marks: BTreeMap<u64, Vec<(TreeHead, String)>>,
    time: i64,
    projects: HashMap<String, u64>,
    open: Option<Open>,
    log: Option<String>,
}

impl Default for Chain {
    fn default() -> Self {
        Self {
            report: Report {
                events: 0,
                sequence: 0,
                hash: Hash::ZERO,
                root: Frontier::new().root(),
                problem_count: 0,
                problems: Vec::new(),
            },
            tree: Frontier::new(),
            marks: BTreeMap::new(),
            time: i64::MIN,
            projects: HashMap::new(),
            open: None,
            log: None,
        }
    }
}

impl Chain {
    /// Demands that the tree has this root at this size. To be said before the events are read.
    pub(super) fn expect(&mut self, tree: TreeHead, who: impl Into<String>) {
        self.marks
            .entry(tree.size)
            .or_default()
            .push((tree, who.into()));
        if tree.size == 0 {
            self.compare();
        }
    }

    /// Compares the tree as it is with the roots that others have seen at this size.
    fn compare(&mut self) {
        let Some(marks) = self.marks.remove(&self.tree.size()) else {
            return;
        };
        let found = self.tree.head();
        for (expected, who) in marks {
            if expected != found {
                self.problem(
                    found.size,
                    format!(
                        "another history: the tree of the first {} events has the root {}, and {who} has {}",
                        found.size, found.root, expected.root
                    ),
                );
            }
        }
    }

    /// The sequence that comes next.
    pub(super) fn next(&self) -> u64 {
        self.report.sequence + 1
    }

    pub(super) fn problem(&mut self, sequence: u64, what: impl Into<String>) {
        self.report.problem_count += 1;
        if self.report.problems.len() < LISTED {
            self.report.problems.push(Problem {
                sequence,
                what: what.into(),
            });
        }
    }

    /// Takes the next event.
    pub(super) fn check(&mut self, bytes: &[u8]) {
        let expected = self.next();
        let before = std::mem::replace(&mut self.report.hash, leaf_hash(bytes));
        self.report.events += 1;
        self.tree.push(self.report.hash, |_| ());
        self.compare();
        let position = match Position::of(bytes) {
            Ok(position) => position,
            Err(error) => {
                self.report.sequence = expected;
                self.open = None;
                return self.problem(expected, format!("it is not an event: {error}"));
            }
        };
        if position.sequence != expected {
            self.problem(
                expected,
                format!(
                    "a gap: the event that follows says that it is {}",
                    position.sequence
                ),
            );
        }
        // Going on from what the event says keeps one gap from being told of every later event; going back would never end.
        self.report.sequence = position.sequence.max(expected);
        let sequence = self.report.sequence;
        if position.prevhash != before {
            self.problem(
                sequence,
                "a fork or a change: it does not name the hash of the event before it",
            );
        }
        if position.time < self.time {
            self.problem(sequence, "its time is before that of the event before it");
        }
        self.time = self.time.max(position.time);
        let place = self.projects.entry(position.project.clone()).or_default();
        let next = *place + 1;
        *place = position.project_sequence;
        if position.project_sequence != next {
            self.problem(
                sequence,
                format!(
                    "a gap in its project: it is {} there instead of {next}",
                    position.project_sequence
                ),
            );
        }
        self.command(sequence, position);
        self.source(sequence, bytes);
    }

    /// The events of a command stand together, first to last.
    fn command(&mut self, sequence: u64, position: Position) {
        let fits = match self.open.take() {
            Some(open) => {
                position.command == open.command
                    && position.count == open.count
                    && position.index == open.index + 1
            }
            None => position.index == 1,
        };
        if !fits || position.index > position.count {
            self.problem(
                sequence,
                "a command before it is not whole, or its own begins in the middle",
            );
        }
        if position.index < position.count {
            self.open = Some(Open {
                command: position.command,
                index: position.index,
                count: position.count,
            });
        }
    }

    /// All events are of one log.
    fn source(&mut self, sequence: u64, bytes: &[u8]) {
        #[derive(Deserialize)]
        struct From {
            source: String,
        }
        match (serde_json::from_slice::<From>(bytes), &self.log) {
            (Ok(from), Some(log)) if from.source == *log => {}
            (Ok(from), None) => self.log = Some(from.source),
            (Ok(_), Some(_)) => self.problem(sequence, "it is of another log"),
            (Err(_), _) => self.problem(sequence, "it does not say of which log it is"),
        }
    }

    /// Ends the check: `head` is how far the log says that it goes.
    pub(super) fn finish(mut self, head: u64) -> Report {
        self.report.root = self.tree.root();
        for (size, marks) in std::mem::take(&mut self.marks) {
            for (_, who) in marks {
                let end = self.report.sequence;
                self.problem(
                    end,
                    format!("the log was cut off: {who} covers {size} events, and it ends here"),
                );
            }
        }
        if self.report.sequence < head {
            let next = self.next();
            self.problem(
                next,
                format!("the log ends here and says that it goes to {head}"),
            );
        }
        if self.open.is_some() {
            let sequence = self.report.sequence;
            self.problem(sequence, "the last command is not whole");
        }
        self.report
    }
}

#[cfg(test)]
mod tests {
    use lifecycle::event::{Event, ProjectCreated};
    use lifecycle::names::Slug;
    use uuid::Uuid;
    use wire::envelope::{CommandRef, Envelope};

    use super::*;

    /// What of a synthetic event differs between tests.
    #[derive(Clone)]
    struct Made {
        project: &'static str,
        project_sequence: u64,
        time: i64,
        command: u128,
        index: u32,
        count: u32,
    }

    fn good() -> Vec<Made> {
        let made = |project, project_sequence, time, command, index, count| Made {
            project,
            project_sequence,
            time,
            command,
            index,
            count,
        };
        vec![
            made("platform", 1, 10, 1, 1, 1),
            made("acme", 1, 10, 2, 1, 2),
            made("acme", 2, 11, 2, 2, 2),
            made("other", 1, 12, 3, 1, 1),
            made("acme", 3, 12, 4, 1, 1),
        ]
    }

    fn bytes(made: &[Made]) -> Vec<Vec<u8>> {
        let mut prevhash = Hash::ZERO;
        made.iter()
            .zip(1..)
            .map(|(made, sequence)| {
                let project = Slug::project(made.project).expect("a slug");
                let envelope = Envelope {
                    log: "0190a5b0-0000-7000-8000-000000000000".to_owned(),
                    sequence,
                    project: project.clone(),
                    project_sequence: made.project_sequence,
                    time: made.time,
                    prevhash,
                    command: CommandRef {
                        id: Uuid::from_u128(made.command),
                        space: made.project.to_owned(),
                        index: made.index,
                        count: made.count,
                        digest: [0; 32],
                    },
                    actor: "alice".to_owned(),
                    correlation: "c".to_owned(),
                    event: Event::from(ProjectCreated { project }),
                };
                let bytes = envelope.encode().expect("an event");
                prevhash = leaf_hash(&bytes);
                bytes
            })
            .collect()
    }

    fn audit(events: &[Vec<u8>], head: u64) -> Report {
        let mut chain = Chain::default();
        for event in events {
            chain.check(event);
        }
        chain.finish(head)
    }

    fn told(report: &Report, sequence: u64, what: &str) {
        assert!(
            report
                .problems
                .iter()
                .any(|p| p.sequence == sequence && p.what.contains(what)),
            "no {what:?} at {sequence} in {:?}",
            report.problems
        );
    }

    #[test]
    fn a_good_log_is_whole() {
        let events = bytes(&good());
        let report = audit(&events, 5);
        assert_eq!(report.problems, []);
        assert_eq!((report.events, report.sequence), (5, 5));
        assert_eq!(report.hash, leaf_hash(&events[4]));
        assert_eq!(audit(&[], 0).problem_count, 0);
    }

    #[test]
    fn a_missing_event_is_a_gap() {
        let mut events = bytes(&good());
        events.remove(3);
        let report = audit(&events, 5);
        told(&report, 4, "a gap");
        told(&report, 5, "a fork or a change");
        let mut events = bytes(&good());
        events.pop();
        told(&audit(&events, 5), 5, "the log ends here");
    }

    #[test]
    fn a_changed_byte_shows_at_the_next_event() {
        for which in 0..4 {
            let mut events = bytes(&good());
            let text = String::from_utf8(events[which].clone())
                .expect("text")
                .replace("alice", "alicf");
            events[which] = text.into_bytes();
            let report = audit(&events, 5);
            assert_eq!(report.problem_count, 1, "{:?}", report.problems);
            told(&report, which as u64 + 2, "a fork or a change");
        }
        // The last event has no successor yet; its hash is what is printed, and it is another one.
        let good_events = bytes(&good());
        let mut events = good_events.clone();
        events[4] = String::from_utf8(events[4].clone())
            .expect("text")
            .replace("alice", "alicf")
            .into_bytes();
        assert_ne!(audit(&events, 5).hash, audit(&good_events, 5).hash);
    }

    #[test]
    fn a_fork_shows_where_it_begins() {
        let mut other = good();
        other[2].time = 12;
        let (ours, theirs) = (bytes(&good()), bytes(&other));
        let forked = [&ours[..3], &theirs[3..]].concat();
        told(&audit(&forked, 5), 4, "a fork or a change");
    }

    #[test]
    fn order_within_projects_commands_and_time_is_checked() {
        for (change, sequence, what) in [
            (
                Box::new(|m: &mut Vec<Made>| m[4].project_sequence = 4)
                    as Box<dyn Fn(&mut Vec<Made>)>,
                5,
                "a gap in its project",
            ),
            (
                Box::new(|m: &mut Vec<Made>| m[3].time = 1),
                4,
                "its time is before",
            ),
            (
                Box::new(|m: &mut Vec<Made>| m[2].command = 9),
                3,
                "not whole",
            ),
            (
                Box::new(|m: &mut Vec<Made>| m[1].index = 2),
                2,
                "begins in the middle",
            ),
            (
                Box::new(|m: &mut Vec<Made>| m[4].count = 2),
                5,
                "the last command is not whole",
            ),
        ] {
            let mut made = good();
            change(&mut made);
            told(&audit(&bytes(&made), 5), sequence, what);
        }
    }

    #[test]
    fn foreign_bytes_are_told_and_not_trusted() {
        let mut events = bytes(&good());
        events[1] = b"{}".to_vec();
        let report = audit(&events, 5);
        told(&report, 2, "not an event");
        told(&report, 3, "a fork or a change");
        let mut events = bytes(&good());
        events[4] = String::from_utf8(events[4].clone())
            .expect("text")
            .replace("0190a5b0", "0190a5b1")
            .into_bytes();
        told(&audit(&events, 5), 5, "another log");
    }

    #[test]
    fn roots_that_others_have_seen_must_come_by() {
        let events = bytes(&good());
        let heads: Vec<TreeHead> = (0..=5)
            .map(|size| {
                let mut tree = Frontier::new();
                for event in &events[..size] {
                    tree.push(leaf_hash(event), |_| ());
                }
                tree.head()
            })
            .collect();
        let with = |expected: &[TreeHead]| {
            let mut chain = Chain::default();
            for tree in expected {
                chain.expect(*tree, "a witness");
            }
            for event in &events {
                chain.check(event);
            }
            chain.finish(5)
        };
        let report = with(&heads);
        assert_eq!(report.problems, []);
        assert_eq!(report.root, heads[5].root);
        for size in 0..=5 {
            let root = Hash([7; 32]);
            let report = with(&[TreeHead { size, root }, heads[3]]);
            assert_eq!(report.problem_count, 1);
            told(&report, size, "another history");
        }
        let size = 6;
        told(&with(&[TreeHead { size, ..heads[5] }]), 5, "cut off");
    }

    #[test]
    fn many_problems_are_counted_and_few_listed() {
        let events: Vec<_> = (0..100).map(|_| b"x".to_vec()).collect();
        let report = audit(&events, 100);
        assert_eq!(report.problem_count, 100);
        assert_eq!(report.problems.len(), LISTED);
    }
}
