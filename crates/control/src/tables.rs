//! The ledger's rows as the domain reads them, and events as the ledger stores them.

use std::collections::HashMap;

use ledger::{Change, Head, Outcome, Record, Snapshot, leaf_hash};
use lifecycle::event::Event;
use lifecycle::evolve::evolve;
use lifecycle::names::Slug;
use lifecycle::store::{Changes, Overlay, Read, Row, Table};
use wire::envelope::{self, Envelope};

/// Rows that belong to this node and not to the log: no replay rebuilds them.
pub const BOOKKEEPING: u8 = 255;

/// Ends the process: the disk below the ledger failed, and deciding on half-read state would be worse than stopping.
/// A restart opens the ledger again and replays what is missing.
pub fn fatal(what: &str, error: &dyn std::fmt::Display) -> ! {
    tracing::error!(%error, "{what}; the process ends, a restart recovers");
    std::process::exit(70)
}

/// For an actor's thread whose runtime is gone: the process is about to end by itself, with the exit status of whoever ended it.
/// Nothing can be done meanwhile, and ending it from here would turn an orderly end into a failed one.
pub fn await_the_end(what: &str) -> ! {
    std::thread::sleep(std::time::Duration::from_secs(10));
    fatal(what, &"its runtime is gone and the process did not end")
}

/// The tables as of one short read transaction.
pub struct Tables(pub Snapshot);

impl Tables {
    /// Begins to read.
    pub fn of(ledger: &ledger::Ledger) -> Self {
        match ledger.read() {
            Ok(snapshot) => Self(snapshot),
            Err(error) => fatal("the ledger cannot be read", &error),
        }
    }
}

impl Read for Tables {
    fn get(&self, table: Table, key: &[u8]) -> Option<Vec<u8>> {
        self.0
            .get(table as u8, key)
            .unwrap_or_else(|error| fatal("the ledger cannot be read", &error))
    }

    fn scan(&self, table: Table, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Vec<Row> {
        self.0
            .scan(table as u8, prefix, after, limit)
            .unwrap_or_else(|error| fatal("the ledger cannot be read", &error))
    }

    fn last(&self, table: Table, prefix: &[u8], upper: &[u8]) -> Option<Row> {
        self.0
            .last_at_or_below(table as u8, prefix, upper)
            .unwrap_or_else(|error| fatal("the ledger cannot be read", &error))
    }
}

/// The changes of an overlay as the ledger takes them, in key order.
pub fn ledger_changes(changes: Changes) -> Vec<Change> {
    changes
        .into_iter()
        .map(|((table, key), value)| Change {
            table: table as u8,
            key,
            value,
        })
        .collect()
}

/// Why events cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// An event cannot be read by this release.
    #[error("event {0}: {1}")]
    Unreadable(u64, envelope::Error),
    /// An event does not follow the one before it.
    #[error(
        "event {0} does not follow the one before it: the stream was rewound, forked or rewritten"
    )]
    Fork(u64),
    /// The ledger refused or failed.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
}

/// Turns the log's bytes into what the ledger stores. Used wherever events come from outside: at a start, on a follower,
/// and for a rebuild.
pub struct Applier<'a, R: Read> {
    overlay: Overlay<'a, R>,
    batch: ledger::Batch,
    head: Head,
    scopes: HashMap<String, u64>,
    /// The time of the last event, Unix microseconds.
    pub time: i64,
}

impl<'a, R: Read> Applier<'a, R> {
    /// Begins after `head`.
    pub fn new(base: &'a R, head: Head) -> Self {
        Self {
            overlay: Overlay::new(base),
            batch: ledger::Batch::default(),
            head,
            scopes: HashMap::new(),
            time: 0,
        }
    }

    /// Applies the next event.
    ///
    /// # Errors
    /// [`ApplyError::Unreadable`] for a shape that this release does not know, [`ApplyError::Fork`] for an event that does not
    /// follow. The batch is then not to be used.
    pub fn push(&mut self, sequence: u64, bytes: Vec<u8>) -> Result<(), ApplyError> {
        let event =
            Envelope::decode(&bytes).map_err(|error| ApplyError::Unreadable(sequence, error))?;
        if event.sequence != sequence
            || sequence != self.head.sequence + 1
            || event.prevhash != self.head.hash
        {
            return Err(ApplyError::Fork(sequence));
        }
        let expected = self
            .scopes
            .entry(event.project.as_str().to_owned())
            .or_insert(event.project_sequence - 1);
        if *expected + 1 != event.project_sequence {
            return Err(ApplyError::Fork(sequence));
        }
        *expected += 1;
        self.head = Head {
            sequence,
            hash: leaf_hash(&bytes),
        };
        self.time = self.time.max(event.time);
        self.batch.records.push(Record {
            sequence,
            prevhash: event.prevhash,
            scope: event.project.as_str().to_owned(),
            scope_sequence: event.project_sequence,
            bytes,
        });
        if event.command.index == event.command.count {
            self.batch.outcomes.push(outcome(&event));
        }
        evolve(&mut self.overlay, &event.recorded());
        Ok(())
    }

    /// How many rows the batch changes so far.
    pub fn changed(&self) -> usize {
        self.overlay.changed()
    }

    /// The batch.
    pub fn done(mut self) -> ledger::Batch {
        self.batch.changes = ledger_changes(self.overlay.into_changes());
        self.batch
    }
}

/// The outcome that a command's last event closes.
pub fn outcome(last: &Envelope) -> Outcome {
    Outcome {
        space: last.command.space.clone(),
        id: *last.command.id.as_bytes(),
        first: last.sequence + 1 - u64::from(last.command.count),
        count: last.command.count,
        digest: last.command.digest,
    }
}

/// Replays a ledger's events into a fresh ledger at `to`, verified, with one fsync at the end.
///
/// # Errors
/// [`ApplyError`].
pub fn rebuild(
    from: &ledger::Ledger,
    to: &ledger::Ledger,
    until: u64,
    mut progress: impl FnMut(u64),
) -> Result<Head, ApplyError> {
    const PAGE: usize = 5_000;
    let mut writer = to.writer()?;
    writer.set_durability(ledger::Durability::Deferred);
    let mut next = writer.head().sequence + 1;
    while next <= until {
        let page = usize::try_from(until - next + 1).unwrap_or(PAGE).min(PAGE);
        let events = from.read()?.events(next, page)?;
        if events.is_empty() {
            return Err(ApplyError::Fork(next));
        }
        let tables = Tables(to.read()?);
        let mut applier = Applier::new(&tables, writer.head());
        for (sequence, bytes) in events {
            applier.push(sequence, bytes)?;
            next = sequence + 1;
        }
        let batch = applier.done();
        writer.append(&batch)?;
        progress(next - 1);
    }
    writer.append(&ledger::Batch {
        changes: vec![crate::upgrade::stamp()],
        ..ledger::Batch::default()
    })?;
    Ok(writer.flush()?)
}

/// What of the content store an event names: without it the state after the event is not whole.
pub fn objects_of(event: &Event) -> Vec<[u8; 32]> {
    match event {
        Event::CertificateAdded(e) => e.facts.chain.iter().map(|d| d.0).collect(),
        Event::CertificateReplaced(e) => e.facts.chain.iter().map(|d| d.0).collect(),
        Event::CsrCreated(e) => vec![e.request.0],
        _ => Vec::new(),
    }
}

/// A project's name as it was checked when the subject was read.
pub fn slug(text: &str) -> Option<Slug> {
    Slug::name(text).ok()
}
