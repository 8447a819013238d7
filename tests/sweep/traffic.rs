//! The clients: each asks for one thing after another, repeats with the same id until it is answered, across every crash,
//! and now and then asks again for what was answered long ago.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::check::{Checked, Finding, Key, must};

/// How many clients there are, which is how large batches become.
const CLIENTS: usize = 16;

/// A generator of numbers that a seed repeats (SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[usize::try_from(self.below(of.len() as u64)).unwrap_or(0)]
    }

    fn id(&mut self) -> Uuid {
        Uuid::from_u64_pair(self.next(), self.next())
    }
}

/// What a client asks.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    pub(crate) key: Key,
    /// The line for the node, but for its tag.
    pub(crate) line: Value,
    /// An id that was answered, with another body: never to be done.
    impostor: bool,
}

/// A command that waits for its answer.
struct Waiting {
    command: Command,
    /// To which of the two nodes it was sent and not yet answered, by the life of that node.
    sent: Vec<u64>,
}

/// All clients together.
pub(crate) struct Traffic {
    pub(crate) random: Random,
    waiting: BTreeMap<u64, Waiting>,
    next_tag: u64,
    answers: HashMap<Key, (Value, Command)>,
    /// What was told, in the order in which it was told first.
    pub(crate) told: Vec<(Key, Value)>,
    pub(crate) answered: u64,
    pub(crate) repeated: u64,
    pub(crate) rejected: u64,
    projects: u64,
}

const PROJECTS: [&str; 3] = ["acme", "bravo", "cargo"];
const REGIONS: [&str; 3] = ["north", "south", "west"];

impl Traffic {
    pub(crate) fn new(random: Random) -> Self {
        let mut traffic = Self {
            random,
            waiting: BTreeMap::new(),
            next_tag: 0,
            answers: HashMap::new(),
            told: Vec::new(),
            answered: 0,
            repeated: 0,
            rejected: 0,
            projects: 0,
        };
        for region in REGIONS {
            traffic.ask(
                "platform",
                "region.create",
                json!({"region": region, "key": "11".repeat(32), "key_version": 1}),
            );
        }
        for project in PROJECTS {
            traffic.ask("platform", "project.create", json!({"project": project}));
            // Far above what a sweep adds: certificates shall come in until the end of it.
            let quota =
                json!({"project": project, "certificates": 1_000_000, "per_region": 1_000_000});
            traffic.ask("platform", "project.quota-set", quota);
        }
        traffic
    }

    fn wait_for(&mut self, command: Command) {
        let sent = Vec::new();
        self.waiting
            .insert(self.next_tag, Waiting { command, sent });
        self.next_tag += 1;
    }

    fn ask(&mut self, space: &str, name: &str, body: Value) {
        self.ask_with(space, name, body, Value::Null);
    }

    fn ask_with(&mut self, space: &str, name: &str, body: Value, object: Value) {
        let id = self.random.id();
        let line = json!({"space": space, "id": id, "name": name, "body": body, "object": object});
        let command = Command {
            key: (space.to_owned(), id),
            line,
            impostor: false,
        };
        // Some clients are impatient and ask twice at once.
        if self.random.below(16) == 0 {
            self.wait_for(command.clone());
        }
        self.wait_for(command);
    }

    /// Lets every idle client think of something.
    pub(crate) fn refill(&mut self) {
        while self.waiting.len() < CLIENTS {
            let project = *self.random.one(&PROJECTS);
            let name = |random: &mut Random, of: &str, end| format!("{of}-{}", random.below(end));
            match self.random.below(100) {
                0..12 => {
                    self.projects += 1;
                    let project = self.projects / 2 + self.random.below(2);
                    self.ask(
                        "platform",
                        "project.create",
                        json!({"project": format!("tenant-{project}")}),
                    );
                }
                12..30 => {
                    let resource = name(&mut self.random, "resource", 12);
                    let regions = &REGIONS[..1 + (self.random.below(3) as usize)];
                    self.ask(
                        project,
                        "resource.create",
                        json!({"name": resource, "kind": "cdn", "regions": regions, "origin": "https://origin.example.net"}),
                    );
                }
                30..36 => {
                    let resource = name(&mut self.random, "resource", 12);
                    self.ask(
                        project,
                        "resource.delete",
                        json!({"name": resource, "confirm": resource}),
                    );
                }
                36..62 => {
                    let host = name(&mut self.random, "host", 60) + ".example.com";
                    let resource = name(&mut self.random, "resource", 12);
                    self.ask(
                        project,
                        "domain.add",
                        json!({"host": host, "resource": resource}),
                    );
                }
                62..76 => {
                    let host = name(&mut self.random, "host", 60) + ".example.com";
                    self.ask(project, "domain.release", json!({"host": host}));
                }
                76..86 => {
                    let certificate = name(&mut self.random, "certificate", 1_000);
                    let object = format!("certificate {}", self.random.next());
                    let hash = harness::sha256(object.as_bytes());
                    let facts = json!({
                        "fingerprint": hash, "chain": [hash], "names": ["host-1.example.com"], "key": "p256", "spki": hash,
                        "not_before": "2020-01-01T00:00:00Z", "not_after": "2100-01-01T00:00:00Z",
                    });
                    let body = json!({"name": certificate, "kind": "server", "regions": REGIONS, "standby": false, "facts": facts});
                    self.ask_with(project, "certificate.add", body, Value::from(object));
                }
                kind => {
                    if self.told.is_empty() {
                        continue;
                    }
                    let key = self.random.one(&self.told).0.clone();
                    let mut command = self.answers[&key].1.clone();
                    if kind >= 97 {
                        command.line["name"] = Value::from("project.create");
                        command.line["body"] = json!({"project": format!("impostor-{kind}")});
                        command.line["object"] = Value::Null;
                        command.impostor = true;
                    }
                    self.wait_for(command);
                }
            }
        }
    }

    /// The tags of what waits at no node.
    pub(crate) fn unsent(&self) -> Vec<u64> {
        let unsent = self.waiting.iter().filter(|(_, w)| w.sent.is_empty());
        unsent.map(|(tag, _)| *tag).collect()
    }

    /// The tags of all that waits.
    pub(crate) fn waiting(&self) -> Vec<u64> {
        self.waiting.keys().copied().collect()
    }

    pub(crate) fn waits(&self, tag: u64) -> bool {
        self.waiting.contains_key(&tag)
    }

    /// The line for a node, which is marked as having it.
    pub(crate) fn line(&mut self, tag: u64, life: u64) -> Option<String> {
        let waiting = self.waiting.get_mut(&tag)?;
        waiting.sent.push(life);
        let mut line = waiting.command.line.clone();
        line["tag"] = Value::from(tag);
        Some(line.to_string())
    }

    /// A node is gone, or is not to be counted on: what it had is to be asked again.
    pub(crate) fn forget(&mut self, life: u64) {
        for waiting in self.waiting.values_mut() {
            waiting.sent.retain(|sent| *sent != life);
        }
    }

    /// Takes an answer. `Ok(Some(..))` says that nothing is written any more, and why.
    pub(crate) fn take(&mut self, life: u64, document: &Value) -> Checked<Option<String>> {
        let tag = document["tag"].as_u64().unwrap_or(u64::MAX);
        let answer = &document["answer"];
        let Some(waiting) = self.waiting.get_mut(&tag) else {
            // The other node was faster; its answer stands below if it was final.
            return Ok(None);
        };
        waiting.sent.retain(|sent| *sent != life);
        if let Some(unfit) = document["unfit"].as_str() {
            // The content store did not answer: nothing was asked of the registrar.
            return Ok(unfit.contains("contradicts").then(|| unfit.to_owned()));
        }
        let command = waiting.command.clone();
        must!(
            answer["id"] == command.line["id"],
            "I1",
            "the answer to {} is {answer}",
            command.line
        );
        let code = answer["code"].as_str();
        let is_final = code.is_none() || answer["sequence"].is_u64();
        if !is_final {
            match code {
                Some("conflict") if command.impostor => {
                    self.waiting.remove(&tag);
                    return Ok(None);
                }
                Some("busy") => {
                    let detail = answer["detail"].as_str().unwrap_or_default();
                    return Ok(detail
                        .contains("nothing is written")
                        .then(|| detail.to_owned()));
                }
                _ => {}
            }
        }
        must!(
            is_final && !command.impostor,
            "I1",
            "{} was answered with {answer}",
            command.line
        );
        self.waiting.remove(&tag);
        self.answered += 1;
        if let Some((before, _)) = self.answers.get(&command.key) {
            self.repeated += 1;
            if before != answer {
                return Err(Finding {
                    check: "I1",
                    what: format!(
                        "{} was answered with {before}, and later with {answer}",
                        command.line
                    ),
                });
            }
            return Ok(None);
        }
        if code.is_some() {
            self.rejected += 1;
        }
        self.told.push((command.key.clone(), answer.clone()));
        self.answers
            .insert(command.key.clone(), (answer.clone(), command));
        Ok(None)
    }
}
