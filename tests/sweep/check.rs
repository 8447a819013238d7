//! What must hold, looked at from outside: the stream's bytes as NATS gives them, the files of the ledgers, and what the
//! clients were told. Events are read with a JSON parser and nothing of the code that wrote them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs;
use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};
use control::tables::{Tables, rebuild};
use data_encoding::HEXLOWER;
use ledger::Ledger;
use lifecycle::state::{ClaimStatus, State};
use lifecycle::store::Table;
use serde_json::Value;
use uuid::Uuid;

/// What was found to be wrong, by the name of the invariant that it breaks.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    /// `I1` to `I6`, `I9`, or `model` for effects that no order of the commands can have.
    pub(crate) check: &'static str,
    pub(crate) what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}: {}", self.check, self.what)
    }
}

pub(crate) type Checked<T = ()> = Result<T, Finding>;

/// Breaks off with a finding unless the condition holds.
macro_rules! must {
    ($holds:expr, $check:literal, $($what:tt)+) => {
        if !$holds {
            return Err($crate::check::Finding { check: $check, what: format!($($what)+) });
        }
    };
}
pub(crate) use must;

/// A command's key: its dedup space and its id.
pub(crate) type Key = (String, Uuid);

/// A command as the log has it.
#[derive(Clone, Debug)]
struct Logged {
    first: u64,
    count: u64,
    rejected: bool,
}

/// The log as read from the stream, checked event by event.
pub(crate) struct Log {
    events: Vec<Event>,
    commands: HashMap<Key, Logged>,
    /// The command whose events are not all read yet.
    open: Option<Key>,
    projects: HashMap<String, u64>,
    time: String,
    model: Model,
    /// Acknowledgements that were found in the log already.
    pub(crate) told: usize,
}

struct Event {
    bytes: Vec<u8>,
    hash: [u8; 32],
    kind: String,
    data: Value,
}

/// The leaf hash of RFC 6962, section 2.1.
fn leaf(bytes: &[u8]) -> [u8; 32] {
    sha256(&[&[0], bytes])
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

impl Log {
    pub(crate) fn new() -> Self {
        Self {
            events: Vec::new(),
            commands: HashMap::new(),
            open: None,
            projects: HashMap::new(),
            time: String::new(),
            model: Model::default(),
            told: 0,
        }
    }

    /// How many events were read.
    pub(crate) fn len(&self) -> u64 {
        self.events.len() as u64
    }

    /// How many commands were read.
    pub(crate) fn commands(&self) -> usize {
        self.commands.len()
    }

    /// Takes the stream's next message.
    pub(crate) fn push(&mut self, sequence: u64, subject: &str, bytes: Vec<u8>) -> Checked {
        must!(
            sequence == self.len() + 1,
            "I2",
            "the stream has {sequence} after {}",
            self.len()
        );
        let event: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let word = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
        let number = |name: &str| word(name).parse::<u64>().unwrap_or(0);
        must!(
            number("sequence") == sequence,
            "I2",
            "the stream's message {sequence} says that it is event {}",
            word("sequence")
        );
        let before = self.events.last().map_or([0; 32], |last| last.hash);
        must!(
            word("prevhash") == HEXLOWER.encode(&before),
            "I2",
            "event {sequence} does not name the hash of the one before it"
        );
        let project = word("project");
        let place = self.projects.entry(project.clone()).or_default();
        *place += 1;
        must!(
            number("projectseq") == *place,
            "I2",
            "event {sequence} is number {place} of {project} and says {}",
            word("projectseq")
        );
        let kind = word("type");
        let kind = kind
            .strip_prefix("dev.chancery.")
            .and_then(|kind| kind.strip_suffix(".v1"))
            .unwrap_or_default()
            .to_owned();
        must!(
            subject == format!("chancery.v1.log.{project}.{kind}"),
            "I2",
            "event {sequence}, {kind} of {project}, is stored under {subject}"
        );
        // RFC 3339 in UTC with the same number of digits: the order of the texts is that of the times.
        must!(
            word("time") >= self.time,
            "I2",
            "event {sequence} is of {}, after one of {}",
            word("time"),
            self.time
        );
        self.time = word("time");

        let key = (
            word("commandspace"),
            word("commandid").parse().unwrap_or_default(),
        );
        let (index, count) = (number("commandindex"), number("commandcount"));
        must!(
            word("id") == format!("{}/{index}", key.1) && index >= 1 && index <= count,
            "I3",
            "event {sequence} has the id {}",
            word("id")
        );
        if let Some(open) = &self.open {
            let logged = &self.commands[open];
            must!(
                *open == key && logged.count == count && sequence == logged.first + index - 1,
                "I3",
                "of command {} only {} of {} events are there before event {sequence}",
                open.1,
                sequence - logged.first,
                logged.count
            );
        } else {
            let earlier = self.commands.get(&key).map(|logged| logged.first);
            must!(
                earlier.is_none(),
                "I1",
                "command {} of {} is in the log twice, at {} and {sequence}",
                key.1,
                key.0,
                earlier.unwrap_or(0)
            );
            must!(
                index == 1,
                "I3",
                "command {} begins with its event {index} of {count}",
                key.1
            );
            let rejected = kind == "command.rejected";
            self.commands.insert(
                key.clone(),
                Logged {
                    first: sequence,
                    count,
                    rejected,
                },
            );
        }
        self.open = (index < count).then_some(key);
        self.model
            .apply(sequence, &project, &kind, &event["data"])?;
        self.events.push(Event {
            hash: leaf(&bytes),
            bytes,
            kind,
            data: event["data"].clone(),
        });
        Ok(())
    }

    /// To be asked when all that the stream has was read.
    pub(crate) fn complete(&self) -> Checked {
        if let Some(open) = &self.open {
            let logged = &self.commands[open];
            must!(
                false,
                "I3",
                "of command {} only {} of {} events are in the log",
                open.1,
                self.len() + 1 - logged.first,
                logged.count
            );
        }
        Ok(())
    }

    /// Looks for what clients were told.
    pub(crate) fn holds(&self, told: &[(Key, Value)]) -> Checked {
        for (key, answer) in told {
            let logged = self.commands.get(key);
            let rejected = answer.get("code").is_some();
            must!(
                logged.is_some(),
                "I1",
                "command {} of {} was answered and is not in the log: {answer}",
                key.1,
                key.0
            );
            let Some(logged) = logged else { continue };
            must!(
                !rejected || logged.rejected,
                "I4",
                "command {} was reported rejected and is in the log as accepted",
                key.1
            );
            must!(
                rejected == logged.rejected,
                "I1",
                "command {} was reported accepted and is in the log as rejected",
                key.1
            );
            let last = logged.first + logged.count - 1;
            must!(
                answer["sequence"].as_u64() == Some(last),
                "I1",
                "command {} ends at {last} of the log, and its client was told {}",
                key.1,
                answer["sequence"]
            );
            if rejected {
                let there = &self.at(last).data["reasons"];
                must!(
                    *there == answer["reasons"],
                    "I1",
                    "command {} was rejected because of {there}, and its client was told {}",
                    key.1,
                    answer["reasons"]
                );
                continue;
            }
            let events = answer["events"].as_array().map_or(&[][..], Vec::as_slice);
            must!(
                events.len() as u64 == logged.count,
                "I3",
                "command {} has {} events in the log, and its client was told of {}",
                key.1,
                logged.count,
                events.len()
            );
            for (sequence, event) in (logged.first..).zip(events) {
                let there = self.at(sequence);
                must!(
                    event["sequence"].as_u64() == Some(sequence)
                        && event["event"] == there.kind.as_str()
                        && event["data"] == there.data,
                    "I1",
                    "event {sequence} is {} {}, and its client was told {event}",
                    there.kind,
                    there.data
                );
            }
        }
        Ok(())
    }

    /// The root of the tree over the first `size` events (RFC 6962, section 2.1): pairs, level by level; a hash without a
    /// neighbour goes up as it is.
    fn root(&self, size: u64) -> [u8; 32] {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let mut hashes: Vec<[u8; 32]> = self.events.iter().take(size).map(|e| e.hash).collect();
        while hashes.len() > 1 {
            hashes = hashes
                .chunks(2)
                .map(|pair| match pair {
                    [left, right] => sha256(&[&[1], left, right]),
                    _ => pair[0],
                })
                .collect();
        }
        hashes.first().copied().unwrap_or_else(|| sha256(&[]))
    }

    fn at(&self, sequence: u64) -> &Event {
        // Only asked for sequences that were read.
        &self.events[usize::try_from(sequence).unwrap_or(0).saturating_sub(1)]
    }
}

/// What the log's events add up to, by rules that are written down here a second time.
#[derive(Default)]
struct Model {
    projects: BTreeSet<String>,
    resources: BTreeMap<(String, String), String>,
    domains: BTreeSet<(String, String)>,
    certificates: BTreeMap<(String, String), String>,
    objects: Vec<(u64, String)>,
}

impl Model {
    fn apply(&mut self, sequence: u64, project: &str, kind: &str, data: &Value) -> Checked {
        let word = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
        let of = |name: &str| (project.to_owned(), word(name));
        let possible = match kind {
            "project.created" => self.projects.insert(word("project")),
            "resource.created" => self.resources.insert(of("name"), word("id")).is_none(),
            "resource.deleted" => self.resources.remove(&of("name")) == Some(word("id")),
            "domain.added" => self.domains.insert(of("host")),
            "domain.released" => self.domains.remove(&of("host")),
            "domain.attached" => {
                self.domains.contains(&of("host"))
                    && self
                        .resources
                        .iter()
                        .any(|((owner, _), id)| owner == project && *id == word("resource"))
            }
            "certificate.added" => {
                let chain = data["facts"]["chain"].as_array().into_iter().flatten();
                self.objects.extend(
                    chain
                        .filter_map(Value::as_str)
                        .map(|hash| (sequence, hash.to_owned())),
                );
                self.certificates.insert(of("name"), word("id")).is_none()
            }
            _ => true,
        };
        must!(
            possible,
            "model",
            "event {sequence}, {kind} of {project}, cannot have happened then: {data}"
        );
        Ok(())
    }
}

/// A ledger's file, looked at in copies while no process has it open, and a second ledger that grows by replaying it.
pub(crate) struct Follower {
    name: &'static str,
    copy: std::path::PathBuf,
    rebuilt: Ledger,
    /// How far its events were compared with the log.
    compared: u64,
    objects: usize,
}

fn broken(check: &'static str, what: impl fmt::Display) -> Finding {
    Finding {
        check,
        what: what.to_string(),
    }
}

const SMALL: ledger::Options = ledger::Options {
    cache_bytes: 16 << 20,
};

impl Follower {
    pub(crate) fn new(name: &'static str, folder: &Path) -> Self {
        fs::create_dir_all(folder).expect("a folder");
        let rebuilt = Ledger::open(folder.join("rebuilt.redb"), &SMALL).expect("a fresh ledger");
        Self {
            name,
            copy: folder.join("copy.redb"),
            rebuilt,
            compared: 0,
            objects: 0,
        }
    }

    /// Compares a ledger that a process left behind with the log: I2 and I3 for its bytes and its index of commands, I5 for
    /// its tables. The file itself stays as it is, so that its next owner has to recover it.
    pub(crate) fn check(&mut self, file: &Path, log: &Log, whole: bool) -> Checked {
        if !file.exists() {
            return Ok(());
        }
        fs::copy(file, &self.copy).expect("a copy of the ledger");
        let name = self.name;
        let live = Ledger::open(&self.copy, &SMALL)
            .map_err(|error| broken("I2", format!("ledger {name} cannot be opened: {error}")))?;
        let checked = self.compare(&live, log, whole);
        drop(live);
        fs::remove_file(&self.copy).expect("the copy is there");
        checked
    }

    fn compare(&mut self, live: &Ledger, log: &Log, whole: bool) -> Checked {
        let name = self.name;
        let unreadable = |error: ledger::Error| broken("I2", format!("ledger {name}: {error}"));
        let head = live.head().sequence;
        must!(
            head <= log.len(),
            "I2",
            "ledger {name} has {head} events, the log only {}",
            log.len()
        );
        must!(
            head >= self.compared,
            "I2",
            "ledger {name} had {} events and has {head}",
            self.compared
        );
        let tables = Tables(live.read().map_err(unreadable)?);
        let mut next = if whole { 1 } else { self.compared + 1 };
        while next <= head {
            let page = tables.0.events(next, 1_000).map_err(unreadable)?;
            must!(!page.is_empty(), "I2", "ledger {name} lacks event {next}");
            for (sequence, bytes) in page {
                must!(
                    sequence == next,
                    "I2",
                    "ledger {name} lacks event {next} and has {sequence}"
                );
                let there = log.at(sequence);
                must!(
                    there.bytes == bytes,
                    "I2",
                    "event {sequence} has other bytes in ledger {name} than in the log"
                );
                let hash = tables.0.hash(sequence).map_err(unreadable)?;
                must!(
                    hash.is_some_and(|hash| *hash.as_bytes() == there.hash),
                    "I2",
                    "event {sequence} has another hash in ledger {name}"
                );
                next += 1;
            }
        }
        let mut known = 0;
        for ((space, id), logged) in &log.commands {
            let last = logged.first + logged.count - 1;
            if last > head {
                must!(
                    logged.first > head,
                    "I3",
                    "ledger {name} ends at {head}, in the midst of command {id}"
                );
                continue;
            }
            known += 1;
            if !whole && last <= self.compared {
                continue;
            }
            let outcome = tables
                .0
                .outcome(space, id.as_bytes())
                .map_err(unreadable)?
                .map(|outcome| (outcome.first, u64::from(outcome.count)));
            must!(
                outcome == Some((logged.first, logged.count)),
                "I3",
                "command {id} is {} events from {} on, ledger {name} knows {outcome:?}",
                logged.count,
                logged.first
            );
        }
        let outcomes = tables.0.outcome_count().map_err(unreadable)?;
        must!(
            outcomes == known,
            "I3",
            "ledger {name} knows {outcomes} commands, the log has {known} up to there"
        );
        for (sequence, hash) in log.model.objects.iter().skip(self.objects) {
            if *sequence > head {
                break;
            }
            self.objects += 1;
            let bytes = HEXLOWER
                .decode(hash.as_bytes())
                .ok()
                .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
                .unwrap_or_default();
            must!(
                tables.0.has_object(&bytes).map_err(unreadable)?,
                "I2",
                "event {sequence} names the certificate {hash}, which ledger {name} lacks"
            );
        }
        // Whatever is signed next is of this tree, so it must be the log's after every crash.
        let tree = tables.0.tree().map_err(unreadable)?;
        must!(
            tree.size == head && *tree.root.as_bytes() == log.root(head),
            "I6",
            "ledger {name} has a tree of {} events with the root {} at event {head}, which the log does not give",
            tree.size,
            tree.root
        );
        self.compared = head;
        self.tables(live, &tables, head)?;
        if head == log.len() {
            self.effects(&tables, log)?;
        }
        Ok(())
    }

    /// I5: the tables that grew with the commands are those that the events give.
    fn tables(&self, live: &Ledger, tables: &Tables, head: u64) -> Checked {
        let name = self.name;
        rebuild(live, &self.rebuilt, head, |_| {})
            .map_err(|error| broken("I5", format!("ledger {name} cannot be rebuilt: {error}")))?;
        let all: Vec<u8> = Table::ALL.iter().map(|table| *table as u8).collect();
        let damaged = |error: ledger::Error| broken("I5", format!("ledger {name}: {error}"));
        let rebuilt = self.rebuilt.read().map_err(damaged)?;
        if tables.0.tables_digest(&all).map_err(damaged)?
            != rebuilt.tables_digest(&all).map_err(damaged)?
        {
            let first = tables
                .0
                .first_difference(&rebuilt, &all)
                .map_err(damaged)?
                .map(|(table, key)| (table, String::from_utf8_lossy(&key).into_owned()));
            must!(
                false,
                "I5",
                "at {head} the tables of ledger {name} are not those that its events give: {first:?}"
            );
        }
        Ok(())
    }

    /// The same replayed from the first event in one go, as `audit rebuild` does.
    pub(crate) fn rebuild_afresh(&self, folder: &Path) -> Checked {
        let afresh = folder.join("afresh.redb");
        let name = self.name;
        let damaged = |error: ledger::Error| broken("I5", format!("ledger {name}: {error}"));
        let ledger = Ledger::open(&afresh, &SMALL).map_err(damaged)?;
        let head = self.rebuilt.head().sequence;
        rebuild(&self.rebuilt, &ledger, head, |_| {})
            .map_err(|error| broken("I5", format!("ledger {name} cannot be rebuilt: {error}")))?;
        let all: Vec<u8> = Table::ALL.iter().map(|table| *table as u8).collect();
        let digests = [&ledger, &self.rebuilt].map(|ledger| {
            ledger
                .read()
                .and_then(|tables| tables.tables_digest(&all))
                .map_err(damaged)
        });
        let [one, other] = digests;
        must!(
            one? == other?,
            "I5",
            "a replay of ledger {name} in one go gives other tables"
        );
        drop(ledger);
        fs::remove_file(afresh).expect("it is there");
        Ok(())
    }

    /// What the tables say is there, against the second set of rules.
    fn effects(&self, tables: &Tables, log: &Log) -> Checked {
        let name = self.name;
        let model = &log.model;
        for project in &model.projects {
            must!(
                tables.project(project).is_some(),
                "model",
                "ledger {name} does not know project {project}"
            );
        }
        for (project, resource) in model.resources.keys() {
            must!(
                tables.resource_named(project, resource).is_some(),
                "model",
                "ledger {name} does not know resource {resource} of {project}"
            );
        }
        for (project, certificate) in model.certificates.keys() {
            must!(
                tables.certificate_named(project, certificate).is_some(),
                "model",
                "ledger {name} does not know certificate {certificate} of {project}"
            );
        }
        for (project, host) in &model.domains {
            let claim = tables.claim(host, project);
            must!(
                claim.is_some_and(|claim| claim.status == ClaimStatus::Pending),
                "model",
                "ledger {name} does not know that {project} claims {host}"
            );
        }
        let rows = |table: Table| {
            use lifecycle::store::Read;
            tables.scan(table, &[], None, usize::MAX).len()
        };
        for (table, expected) in [
            (Table::Project, model.projects.len()),
            (Table::ResourceName, model.resources.len()),
            (Table::CertificateName, model.certificates.len()),
        ] {
            let found = rows(table);
            must!(
                found == expected,
                "model",
                "table {table:?} of ledger {name} has {found} rows instead of {expected}"
            );
        }
        Ok(())
    }
}

/// The checks themselves must be able to fail: each of these logs is wrong in one thing.
#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ID: &str = "0192d3a0-0000-7000-8000-000000000001";
    const OTHER: &str = "0192d3a0-0000-7000-8000-000000000002";

    /// A log to which events are added that follow, unless `change` makes them do otherwise.
    struct Written {
        log: Log,
        place: u64,
    }

    impl Written {
        fn new() -> Self {
            Self {
                log: Log::new(),
                place: 0,
            }
        }

        fn add(
            &mut self,
            (id, index, count): (&str, u64, u64),
            (kind, data): (&str, Value),
            change: impl FnOnce(&mut Value),
        ) -> Checked {
            let sequence = self.log.len() + 1;
            self.place += 1;
            let before = self.log.events.last().map_or([0; 32], |last| last.hash);
            let mut event = json!({
                "id": format!("{id}/{index}"), "type": format!("dev.chancery.{kind}.v1"), "time": "2026-01-01T00:00:00.000000Z",
                "project": "acme", "sequence": sequence.to_string(), "projectseq": self.place.to_string(),
                "prevhash": HEXLOWER.encode(&before), "commandid": id, "commandindex": index.to_string(),
                "commandcount": count.to_string(), "commandspace": "acme", "data": data,
            });
            change(&mut event);
            let subject = format!("chancery.v1.log.acme.{kind}");
            self.log
                .push(sequence, &subject, event.to_string().into_bytes())
        }
    }

    fn added() -> (&'static str, Value) {
        ("domain.added", json!({"host": "www.example.com"}))
    }

    fn rejected() -> (&'static str, Value) {
        ("command.rejected", json!({"reasons": []}))
    }

    fn found(checked: Checked) -> &'static str {
        checked.expect_err("it is noticed").check
    }

    fn told(answer: Value) -> Vec<(Key, Value)> {
        vec![(("acme".to_owned(), ID.parse().expect("an id")), answer)]
    }

    #[test]
    fn a_log_that_is_in_order_passes() {
        let mut written = Written::new();
        written.add((ID, 1, 1), added(), |_| {}).expect("in order");
        written
            .add((OTHER, 1, 1), rejected(), |_| {})
            .expect("in order");
        written.log.complete().expect("complete");
        let events =
            json!([{"sequence": 1, "event": "domain.added", "data": {"host": "www.example.com"}}]);
        let answer = json!({"sequence": 1, "events": events});
        written.log.holds(&told(answer)).expect("as it was told");
    }

    #[test]
    fn what_does_not_follow_is_noticed() {
        for (name, wrong) in [
            ("sequence", "3"),
            ("projectseq", "3"),
            ("prevhash", "00"),
            ("time", "2025-12-31T23:59:59.999999Z"),
            ("type", "dev.chancery.domain.released.v1"),
        ] {
            let mut written = Written::new();
            written.add((ID, 1, 1), added(), |_| {}).expect("in order");
            let checked = written.add((OTHER, 1, 1), rejected(), |event| {
                event[name] = Value::from(wrong)
            });
            assert_eq!(found(checked), "I2", "{name}");
        }
    }

    #[test]
    fn commands_that_are_there_twice_or_in_part_are_noticed() {
        let mut written = Written::new();
        written.add((ID, 1, 1), added(), |_| {}).expect("in order");
        assert_eq!(found(written.add((ID, 1, 1), rejected(), |_| {})), "I1");

        let mut written = Written::new();
        written.add((ID, 1, 2), added(), |_| {}).expect("in order");
        assert_eq!(found(written.log.complete()), "I3");
        assert_eq!(found(written.add((OTHER, 1, 1), rejected(), |_| {})), "I3");

        let mut written = Written::new();
        assert_eq!(found(written.add((ID, 2, 2), added(), |_| {})), "I3");
    }

    #[test]
    fn what_clients_were_told_is_held_against_the_log() {
        let mut written = Written::new();
        assert_eq!(
            found(written.log.holds(&told(json!({"sequence": 1})))),
            "I1"
        );
        written.add((ID, 1, 1), added(), |_| {}).expect("in order");
        let rejection = json!({"code": "conflict", "sequence": 1, "reasons": []});
        assert_eq!(found(written.log.holds(&told(rejection))), "I4");
        assert_eq!(
            found(written.log.holds(&told(json!({"sequence": 2})))),
            "I1"
        );
        assert_eq!(
            found(
                written
                    .log
                    .holds(&told(json!({"sequence": 1, "events": []})))
            ),
            "I3"
        );
        let events =
            json!([{"sequence": 1, "event": "domain.added", "data": {"host": "example.com"}}]);
        assert_eq!(
            found(
                written
                    .log
                    .holds(&told(json!({"sequence": 1, "events": events})))
            ),
            "I1"
        );
    }

    #[test]
    fn effects_that_no_order_explains_are_noticed() {
        let mut written = Written::new();
        written.add((ID, 1, 1), added(), |_| {}).expect("in order");
        assert_eq!(found(written.add((OTHER, 1, 1), added(), |_| {})), "model");
    }

    #[test]
    fn rows_that_no_event_gives_and_events_that_the_log_lacks_are_noticed() {
        use ledger::{Batch, Change, Record};
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ledger.redb");
        let live = Ledger::open(&file, &SMALL).expect("a ledger");
        let mut writer = live.writer().expect("a writer");
        let mut follower = Follower::new("live", &folder.path().join("check"));
        let stray = Change {
            table: Table::Project as u8,
            key: b"acme".to_vec(),
            value: Some(vec![1]),
        };
        let batch = Batch {
            changes: vec![stray],
            ..Batch::default()
        };
        writer.append(&batch).expect("it is appended");
        // Closed, as the file of a process that is gone.
        drop((writer, live));
        assert_eq!(found(follower.check(&file, &Log::new(), false)), "I5");

        let live = Ledger::open(&file, &SMALL).expect("a ledger");
        let mut writer = live.writer().expect("a writer");
        let record = Record {
            sequence: 1,
            prevhash: ledger::Hash::ZERO,
            scope: "acme".to_owned(),
            scope_sequence: 1,
            bytes: b"an event".to_vec(),
        };
        let batch = Batch {
            records: vec![record],
            ..Batch::default()
        };
        writer.append(&batch).expect("it is appended");
        drop((writer, live));
        assert_eq!(found(follower.check(&file, &Log::new(), false)), "I2");
        let mut written = Written::new();
        written.add((ID, 1, 1), added(), |_| {}).expect("in order");
        assert_eq!(found(follower.check(&file, &written.log, false)), "I2");
    }
}
