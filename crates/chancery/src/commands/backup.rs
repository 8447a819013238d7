//! `chancery backup`: pulls everything that a control node knows, keys sealed, while it runs.
//!
//! Events are pulled up to the head of the moment, certificates as events name them, keys before and after the events
//! (`control::backup::keys` tells why). Only when everything that the state at that head needs is there is the manifest
//! written; else the next round begins where this one ended.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use data_encoding::{BASE64, HEXLOWER};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use control::backup::check::ObjectLine;
use control::backup::files::{Folder, Lines, Series, write_whole};
use control::backup::keys::{Keys, unbase64};
use control::backup::manifest::{FORMAT, FileIs, Part, VERSION};
use control::backup::{Error, MANIFEST, Manifest, Point, Review, check, files};
use lifecycle::names::Slug;
use lifecycle::rejection::Code;
use wire::envelope::rfc3339;
use wire::request::BackupQuery;

use super::verdict;
use crate::cli::{Backup, Global};
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::output::{Card, Out};
use crate::progress::Progress;

/// Rounds after which it is given up: each begins after the one before has pulled everything, so one is enough unless keys
/// are destroyed in that very moment.
const ROUNDS: usize = 8;
/// Objects that are asked for at once.
const HASHES: usize = 200;

pub(super) async fn run(global: &Global, args: Backup, out: &Out) -> Result<ExitCode> {
    if args.verify {
        return verify(&args.dir, out);
    }
    let client = Client::connect(global).await?;
    let begun = std::time::Instant::now();
    let mut pull = Pull::begin(&client, &args.dir).await?;
    pull.pull().await?;
    let (manifest, new) = pull.end()?;
    let seconds = begun.elapsed().as_secs_f64();
    if out.json() {
        out.document(&json!({
            "backup": args.dir.display().to_string(),
            "log": manifest.log,
            "head": manifest.head,
            "taken": manifest.taken,
            "root_key": manifest.root_key,
            "generation": manifest.generation,
            "queued": manifest.queued,
            "events": manifest.events.count,
            "objects": manifest.objects.count,
            "keys": manifest.keys.count,
            "bytes": manifest.parts().iter().map(|part| part.bytes).sum::<u64>(),
            "new_events": new,
            "seconds": (seconds * 1_000.0).round() / 1_000.0,
        }));
    } else {
        card(&manifest).print(out);
        out.say(format!("{new} events are new; it took {seconds:.1} s"));
        if manifest.queued > 0 {
            out.note(format!(
                "{} queued commands were not decided yet; they are not in the backup",
                manifest.queued
            ));
        }
        out.note(format!(
            "it is of no use without root key {}, which is not in it: keep a copy elsewhere",
            manifest.root_key
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn card(manifest: &Manifest) -> Card {
    let mut card = Card::default();
    card.add("log", manifest.log.clone());
    card.add(
        "head",
        format!("{} of {}", manifest.head.sequence, manifest.head.time),
    );
    card.add("hash", manifest.head.hash.clone());
    card.add("taken", manifest.taken.clone());
    card.add("events", manifest.events.count.to_string());
    card.add("certificates", manifest.objects.count.to_string());
    card.add("sealed keys", manifest.keys.count.to_string());
    card
}

/// `backup --verify`: needs neither server nor root key.
fn verify(folder: &Path, out: &Out) -> Result<ExitCode> {
    let manifest = Manifest::read(folder).map_err(failed)?;
    let lines = manifest.parts().iter().map(|part| part.count).sum();
    let progress = Progress::new(Some(lines), "checking");
    let checked = check(folder, |n| progress.advance(n)).map_err(failed)?;
    progress.end();
    let whole = checked.problems.is_empty();
    if out.json() {
        out.document(&json!({
            "whole": whole,
            "problems": checked.problems,
            "log": manifest.log,
            "head": manifest.head,
            "taken": manifest.taken,
            "root_key": manifest.root_key,
            "events": manifest.events.count,
            "objects": manifest.objects.count,
            "keys": manifest.keys.count,
        }));
    } else {
        card(&manifest).print(out);
        for problem in &checked.problems {
            out.say(format!("problem: {problem}"));
        }
        if whole {
            out.say("the backup is whole: no checksum and no hash link differs, no key and no certificate is missing");
        }
    }
    Ok(verdict(whole))
}

/// A backup that is no use as it is is a no; that it cannot be read or written is a failure.
pub(super) fn failed(error: Error) -> Failure {
    match &error {
        Error::Damaged { .. } | Error::Newer { .. } => Failure::problem(
            Code::Malformed,
            error.to_string(),
            "`chancery backup --verify DIR` tells all; take a new backup into an empty folder",
        ),
        Error::File { source, .. } if is_full(source.kind()) => {
            Failure::CouldNotRun(anyhow::Error::new(error).context(
                "there is no room; the backup that was there before is as it was, and once there is room the same command goes on",
            ))
        }
        _ => Failure::CouldNotRun(error.into()),
    }
}

fn is_full(kind: std::io::ErrorKind) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(kind, StorageFull | QuotaExceeded | FileTooLarge)
}

/// What `query.platform.backup` says of the log.
#[derive(Debug, Deserialize)]
struct Stands {
    release: String,
    log: String,
    platform_domain: String,
    head: Point,
    generation: u64,
    root_key: String,
    queued: u64,
}

#[derive(Debug, Deserialize)]
struct EventsPage {
    events: Vec<Box<RawValue>>,
}

#[derive(Debug, Deserialize)]
struct ObjectsPage {
    objects: Vec<Object>,
}

#[derive(Debug, Deserialize)]
struct Object {
    sha256: String,
    der: Option<String>,
}

#[derive(Debug, Deserialize)]
struct KeysPage {
    keys: Vec<Key>,
    next: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Key {
    sequence: u64,
    sealed: Option<String>,
}

struct Pull<'a> {
    client: &'a Client,
    folder: Folder,
    stands: Stands,
    before: Option<Manifest>,
    review: Review,
    events: Series,
    /// Certificates that are in the backup already.
    held: std::collections::HashSet<[u8; 32]>,
    objects: Series,
    keys: Keys,
    chosen: BTreeSet<u64>,
    new: u64,
}

async fn ask<T: serde::de::DeserializeOwned>(client: &Client, query: &BackupQuery) -> Result<T> {
    client.view(&Slug::platform(), "backup", query).await
}

fn conflict(what: impl Into<String>) -> Failure {
    Failure::problem(
        Code::Conflict,
        what,
        "name another, empty folder for this log's backup",
    )
}

impl<'a> Pull<'a> {
    /// Looks at what is there already and goes on from there, whoever left it.
    async fn begin(client: &'a Client, path: &Path) -> Result<Self> {
        // Asked first: who may not have a backup makes no folder.
        let stands: Stands = ask(client, &BackupQuery::Manifest).await?;
        let folder = Folder::lock(path).map_err(failed)?;
        let before = match Manifest::read(path) {
            Ok(manifest) => Some(manifest),
            Err(Error::None(_)) => None,
            Err(error) => return Err(failed(error)),
        };
        if let Some(before) = &before {
            if before.log != stands.log {
                return Err(conflict(format!(
                    "{} holds a backup of another log, {}",
                    path.display(),
                    before.log
                )));
            }
            if before.root_key != stands.root_key {
                return Err(conflict(format!(
                    "the keys of the backup in {} are wrapped by another root key",
                    path.display()
                )));
            }
            if before.head.sequence > stands.head.sequence {
                return Err(conflict(format!(
                    "the log ends with event {}, the backup in {} with {}: an older state was restored since",
                    stands.head.sequence,
                    path.display(),
                    before.head.sequence
                )));
            }
        }
        let mut taken = Taken::read(&folder, before.as_ref(), true).map_err(failed)?;
        // An interrupted run may have left events of a log that was rewound since; the finished backup is what counts.
        if taken.review.head.sequence > before.as_ref().map_or(0, |before| before.head.sequence)
            && !is_in_log(client, &taken.review).await?
        {
            taken = Taken::read(&folder, before.as_ref(), false).map_err(failed)?;
        }
        let Taken {
            review,
            held,
            events,
            objects,
        } = taken;
        let events = Series::after(&folder, "events", events).map_err(failed)?;
        let objects = Series::after(&folder, "objects", objects).map_err(failed)?;
        let known = before.as_ref().map_or(&[][..], |m| &m.keys.files);
        let keys = Keys::after(&folder, known).map_err(failed)?;
        Ok(Self {
            client,
            folder,
            stands,
            before,
            review,
            events,
            held,
            objects,
            keys,
            chosen: BTreeSet::new(),
            new: 0,
        })
    }

    async fn pull(&mut self) -> Result<()> {
        self.list_keys().await?;
        let mut missing = Vec::new();
        for round in 0..ROUNDS {
            if round > 0 {
                self.stands = ask(self.client, &BackupQuery::Manifest).await?;
            }
            self.pull_events().await?;
            let living = self.list_keys().await?;
            self.chosen = self.keys.choose(&living, &self.review);
            missing = self.review.missing(&self.keys.kept(&self.chosen));
            if missing.is_empty() {
                return Ok(());
            }
        }
        Err(Failure::problem(
            Code::Conflict,
            format!(
                "what the log names is not in the vault: {}",
                missing.join(", ")
            ),
            "`chancery status` and the control plane's log tell more; nothing was called a backup",
        ))
    }

    async fn pull_events(&mut self) -> Result<()> {
        let head = self.stands.head.sequence;
        let at = self.review.head.sequence;
        let path = self.folder.path().display().to_string();
        let contradicts = || {
            conflict(format!(
                "the log does not go on from event {at}, with which the backup in {path} ends"
            ))
        };
        if at > head {
            return Err(contradicts());
        }
        let progress = Progress::new(Some(head - at), "events");
        // All certificates that were named and are not here: also those of a run that was interrupted in between.
        let mut wanted: Vec<[u8; 32]> = self
            .review
            .objects
            .difference(&self.held)
            .copied()
            .collect();
        while self.review.head.sequence < head {
            let from = self.review.head.sequence + 1;
            let page: EventsPage = ask(self.client, &BackupQuery::Events { from }).await?;
            if page.events.is_empty() {
                return Err(contradicts());
            }
            let left = usize::try_from(head + 1 - from).unwrap_or(usize::MAX);
            for event in page.events.iter().take(left) {
                let bytes = event.get().as_bytes();
                let named = match self.review.push(bytes) {
                    Ok(named) => named,
                    Err(_) if self.review.head.sequence == at && at > 0 => {
                        return Err(contradicts());
                    }
                    Err(what) => {
                        return Err(Failure::problem(
                            Code::Conflict,
                            format!("what the log gives is not whole: {what}"),
                            "`chancery audit verify`; a log with events of a later release needs that release's command",
                        ));
                    }
                };
                wanted.extend(named.iter().filter(|hash| !self.held.contains(*hash)));
                self.events.push(bytes).map_err(failed)?;
                self.new += 1;
                progress.advance(1);
            }
            if wanted.len() >= HASHES {
                self.pull_objects(&mut wanted).await?;
            }
        }
        progress.end();
        if self.review.head.hash.to_string() != self.stands.head.hash || !self.review.is_whole() {
            return Err(contradicts());
        }
        self.pull_objects(&mut wanted).await
    }

    async fn pull_objects(&mut self, wanted: &mut Vec<[u8; 32]>) -> Result<()> {
        while !wanted.is_empty() {
            let some = &wanted[..wanted.len().min(HASHES)];
            let hashes = some.iter().map(|hash| HEXLOWER.encode(hash)).collect();
            let page: ObjectsPage = ask(self.client, &BackupQuery::Objects { hashes }).await?;
            let unfit = |what: String| {
                Failure::problem(
                    Code::Conflict,
                    what,
                    "`chancery status` and the control plane's log tell more",
                )
            };
            if page.objects.is_empty() {
                return Err(unfit("the content store answers nothing".to_owned()));
            }
            let count = page.objects.len().min(wanted.len());
            for (object, hash) in page.objects.into_iter().zip(&wanted[..count]) {
                let bytes = object
                    .der
                    .and_then(|der| BASE64.decode(der.as_bytes()).ok())
                    .filter(|bytes| ledger::Hash::of(bytes).0 == *hash);
                let Some(bytes) = bytes else {
                    return Err(unfit(format!(
                        "the certificate {} is not in the content store",
                        object.sha256
                    )));
                };
                if self.held.insert(*hash) {
                    let line = ObjectLine::of(&bytes);
                    self.objects.push(&line).map_err(failed)?;
                }
            }
            wanted.drain(..count);
        }
        Ok(())
    }

    /// Which records live now; those that are not here yet are taken.
    async fn list_keys(&mut self) -> Result<BTreeSet<u64>> {
        let since = self.keys.since();
        let progress = Progress::new(None, "keys");
        let mut living = BTreeSet::new();
        let mut after = None;
        loop {
            let page: KeysPage = ask(self.client, &BackupQuery::Keys { since, after }).await?;
            progress.advance(page.keys.len() as u64);
            for key in page.keys {
                if let Some(sealed) = key.sealed {
                    let blob = unbase64(&sealed)
                        .map_err(|what| conflict(format!("a sealed key does not read: {what}")))?;
                    self.keys.take(key.sequence, blob).map_err(failed)?;
                }
                if key.sequence != 0 {
                    if !self.keys.knows(key.sequence) {
                        return Err(conflict(format!(
                            "the key at {} is older than those in the backup, and was never in it",
                            key.sequence
                        )));
                    }
                    living.insert(key.sequence);
                }
            }
            after = page.next;
            if after.is_none() {
                progress.end();
                return Ok(living);
            }
        }
    }

    /// Writes what is left, and last the manifest: from then on this is the backup.
    fn end(mut self) -> Result<(Manifest, u64)> {
        let now = time::OffsetDateTime::now_utc();
        let events = self.events.end().map_err(failed)?;
        let objects = self.objects.end().map_err(failed)?;
        let run = u64::try_from(now.unix_timestamp_nanos() / 1_000).unwrap_or(0);
        let keys = self
            .keys
            .write(&self.folder, &self.chosen, run)
            .map_err(failed)?;
        let manifest = Manifest {
            format: FORMAT.to_owned(),
            version: VERSION,
            release: self.stands.release,
            log: self.stands.log,
            platform_domain: self.stands.platform_domain,
            head: self.stands.head,
            generation: self.stands.generation,
            root_key: self.stands.root_key,
            taken: rfc3339(now.unix_timestamp()),
            queued: self.stands.queued,
            events: Part::of(events),
            objects: Part::of(objects),
            keys: Part::of(keys),
        };
        drop(self.keys);
        debug_assert!(
            self.before
                .is_none_or(|b| b.events.count <= manifest.events.count)
        );
        write_whole(&self.folder.path().join(MANIFEST), &manifest.to_bytes()).map_err(failed)?;
        self.folder.prune(&manifest).map_err(failed)?;
        Ok((manifest, self.new))
    }
}

/// Whether the log has the event with which these end.
async fn is_in_log(client: &Client, review: &Review) -> Result<bool> {
    let from = review.head.sequence;
    let page: EventsPage = ask(client, &BackupQuery::Events { from }).await?;
    Ok(page
        .events
        .first()
        .is_some_and(|event| ledger::leaf_hash(event.get().as_bytes()) == review.head.hash))
}

/// What is in the folder already.
struct Taken {
    review: Review,
    held: std::collections::HashSet<[u8; 32]>,
    events: Vec<FileIs>,
    objects: Vec<FileIs>,
}

impl Taken {
    /// Reads it: the finished backup, and with `left` what an interrupted one has added.
    fn read(
        folder: &Folder,
        before: Option<&Manifest>,
        left: bool,
    ) -> std::result::Result<Self, Error> {
        let mut review = Review::default();
        let events = resume(folder, "events", before, left, |line| {
            review.push(line).map(drop)
        })?;
        let mut held = std::collections::HashSet::new();
        let objects = resume(folder, "objects", before, left, |line| {
            held.insert(ObjectLine::read(line)?.0);
            Ok(())
        })?;
        Ok(Self {
            review,
            held,
            events,
            objects,
        })
    }
}

/// Reads the files of a kind that are there, those of the last finished backup and, with `left`, what an interrupted one
/// added to them. A file that the finished one names must be as it says; another one that is not whole is as if it were not
/// there.
fn resume(
    folder: &Folder,
    kind: &'static str,
    before: Option<&Manifest>,
    left: bool,
    mut take: impl FnMut(&[u8]) -> std::result::Result<(), String>,
) -> std::result::Result<Vec<FileIs>, Error> {
    let part = match kind {
        "events" => before.map(|m| &m.events),
        _ => before.map(|m| &m.objects),
    };
    let named = part.map_or(&[][..], |part| &part.files);
    let mut found = Vec::new();
    // Only whole files beyond the finished backup are taken over; those inside it are the ones that it names.
    let beyond = part.map_or(0, |part| part.count);
    for file in named {
        let mut lines = Lines::open(folder.path(), &file.name)?;
        while let Some(line) = lines.next()? {
            take(line).map_err(|what| Error::Damaged {
                file: file.name.clone(),
                what,
            })?;
        }
        lines.is(file)?;
        found.push(file.clone());
    }
    let spans = match left {
        true => folder.chain(kind)?,
        false => Vec::new(),
    };
    for (first, last) in spans {
        if first <= beyond {
            continue;
        }
        let name = files::name(kind, first, last);
        let follows = first == found.last().map_or(1, |file| file.last + 1);
        // Read once for its form and once for what is in it: what was half taken could not be given back.
        let whole = follows && is_whole(folder.path(), &name, last + 1 - first)?;
        if !whole {
            break;
        }
        let mut lines = Lines::open(folder.path(), &name)?;
        while let Some(line) = lines.next()? {
            take(line).map_err(|what| Error::Damaged {
                file: name.clone(),
                what: format!("{what}; an interrupted backup left it, and it can be deleted"),
            })?;
        }
        found.push(FileIs {
            name,
            first,
            last,
            bytes: lines.bytes,
            sha256: lines.sha256(),
        });
    }
    Ok(found)
}

fn is_whole(folder: &Path, name: &str, count: u64) -> std::result::Result<bool, Error> {
    let mut lines = Lines::open(folder, name)?;
    loop {
        match lines.next() {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(lines.count == count),
            Err(Error::Damaged { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}
