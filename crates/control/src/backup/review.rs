//! The log, read through once: that it is whole, and what the state at its end needs besides it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use ledger::{Head, leaf_hash};
use lifecycle::event::Event;
use lifecycle::names::PLATFORM;
use wire::envelope::Envelope;

use super::keys::{Kept, What};
use crate::tables::objects_of;

/// An operator as the log knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// The actor.
    pub name: String,
    /// Whether the access was taken away.
    pub revoked: bool,
}

/// What is known of a log after its first events.
#[derive(Debug)]
pub struct Review {
    /// The last event.
    pub head: Head,
    /// Its time, Unix microseconds.
    pub time: i64,
    /// The log's id.
    pub log: Option<String>,
    /// Private keys that certificates or requests use, by project and SHA-256 of the public half.
    pub keys: BTreeSet<(String, [u8; 32])>,
    /// The version of each region's key.
    pub regions: BTreeMap<String, u32>,
    /// What of the content store is named.
    pub objects: HashSet<[u8; 32]>,
    /// The operator's users by their public keys.
    pub operators: HashMap<String, Operator>,
    scopes: HashMap<String, u64>,
    /// The command of the last event, and how many of its events are still to come.
    open: Option<(uuid::Uuid, u32, u32)>,
}

impl Default for Review {
    fn default() -> Self {
        Self {
            head: Head {
                sequence: 0,
                hash: ledger::Hash::ZERO,
            },
            time: 0,
            log: None,
            keys: BTreeSet::new(),
            regions: BTreeMap::new(),
            objects: HashSet::new(),
            operators: HashMap::new(),
            scopes: HashMap::new(),
            open: None,
        }
    }
}

impl Review {
    /// Takes the next event; gives what of the content store it names for the first time.
    ///
    /// # Errors
    /// In words, why it cannot be the next one. The review is then not to be used any more.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<[u8; 32]>, String> {
        let sequence = self.head.sequence + 1;
        let event =
            Envelope::decode(bytes).map_err(|error| format!("event {sequence}: {error}"))?;
        let wrong = |what: &str| Err(format!("event {sequence}: {what}"));
        if event.sequence != sequence {
            return wrong("it is not the one that comes next");
        }
        if event.prevhash != self.head.hash {
            return wrong("it does not name the hash of the event before it");
        }
        if *self.log.get_or_insert_with(|| event.log.clone()) != event.log {
            return wrong("it is of another log");
        }
        if event.time < self.time {
            return wrong("its time is before that of the event before it");
        }
        let place = self
            .scopes
            .entry(event.project.as_str().to_owned())
            .or_default();
        if event.project_sequence != *place + 1 {
            return wrong("its project has a gap before it");
        }
        *place = event.project_sequence;
        let command = &event.command;
        let follows = match self.open.take() {
            Some((id, index, count)) => {
                command.id == id && command.count == count && command.index == index + 1
            }
            None => command.index == 1,
        };
        if !follows || command.index > command.count {
            return wrong("a command before it is not whole");
        }
        if command.index < command.count {
            self.open = Some((command.id, command.index, command.count));
        }
        self.head = Head {
            sequence,
            hash: leaf_hash(bytes),
        };
        self.time = event.time;
        self.learn(&event);
        Ok(objects_of(&event.event)
            .into_iter()
            .filter(|hash| self.objects.insert(*hash))
            .collect())
    }

    /// What of an event says which keys must be there.
    fn learn(&mut self, event: &Envelope) {
        let project = event.project.as_str();
        match &event.event {
            Event::KeySealed(e) => {
                self.keys.insert((project.to_owned(), e.spki.0));
            }
            Event::KeyDestroyed(e) => {
                self.keys.remove(&(project.to_owned(), e.spki.0));
            }
            Event::ProjectDeleted(e) => {
                let gone = e.project.as_str();
                self.keys.retain(|(project, _)| project != gone);
            }
            Event::RegionCreated(e) => {
                self.regions.insert(e.region.to_string(), e.key_version);
            }
            Event::RegionKeyRotated(e) => {
                self.regions.insert(e.region.to_string(), e.key_version);
            }
            Event::AccessCreated(e) if e.project.as_str() == PLATFORM => {
                let operator = Operator {
                    name: e.actor.to_string(),
                    revoked: false,
                };
                self.operators.insert(e.nkey.clone(), operator);
            }
            Event::AccessRevoked(e) => {
                if let Some(operator) = self.operators.get_mut(&e.nkey) {
                    operator.revoked = true;
                }
            }
            _ => {}
        }
    }

    /// Whether the last command's events are all there.
    pub fn is_whole(&self) -> bool {
        self.open.is_none()
    }

    /// What the state at the end needs and these keys do not give, in words; at most twenty.
    pub fn missing(&self, kept: &Kept) -> Vec<String> {
        let keys = self.keys.iter().filter_map(|(project, spki)| {
            let short = data_encoding::HEXLOWER.encode(&spki[..8]);
            match kept.private.get(&(project.clone(), *spki)) {
                None => Some(format!("the private key {short}… of {project}")),
                Some(id) if !kept.has(&What::Project(project.clone(), *id)) => {
                    Some(format!("the key of {project} that wraps {short}…"))
                }
                Some(_) => None,
            }
        });
        let regions = self
            .regions
            .iter()
            .filter(|(region, version)| !kept.has(&What::Region((*region).clone(), **version)))
            .map(|(region, version)| format!("version {version} of the key of region {region}"));
        let secrets = crate::start::SECRETS
            .iter()
            .filter(|name| !kept.has(&What::Secret((**name).to_owned())))
            .map(|name| format!("the secret {name}"));
        keys.chain(regions).chain(secrets).take(20).collect()
    }
}
