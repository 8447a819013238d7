//! The one writer: a batch is checked, written and made durable in one transaction.

use std::{
    collections::HashMap,
    fmt,
    ops::Bound,
    sync::{Arc, atomic::Ordering},
};

use redb::WriteTransaction;

use crate::{
    Error, Hash, Head, Snapshot, faults,
    format::{
        EVENTS, MAX_EVENT, MAX_KEY, MAX_NAME, MAX_OBJECT, MAX_ROW, META, META_HEAD, META_TREE,
        OBJECTS, OUTCOMES, SCOPES, STATE, TREE, checked, event_value, head_value, name_key,
        outcome_value, state_key, tree_key, tree_value,
    },
    leaf_hash,
    open::Shared,
    tree::Frontier,
};

/// How many scopes' heads the writer remembers; beyond that it forgets them and looks them up again.
const REMEMBERED_SCOPES: usize = 65_536;

/// How many events may be appended without an fsync. redb cannot reuse pages that a deferred commit
/// replaced, so without a bound a long replay would grow the file.
const DEFERRED_EVENTS: usize = 100_000;

/// From how many neighbouring rows on a cursor is opened for them: it makes a replay a third faster,
/// but for a few rows costs more than it saves and packs the pages less densely.
const LONG_RUN: usize = 16;

/// One event, as it was committed to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place in the log, from 1, without gaps.
    pub sequence: u64,
    /// The leaf hash of the event before it; [`Hash::ZERO`] for the first.
    pub prevhash: Hash,
    /// Whose event it is: 1 to 255 bytes.
    pub scope: String,
    /// Its place among the events of its scope, from 1, without gaps.
    pub scope_sequence: u64,
    /// The exact bytes, 1 to 65,535.
    pub bytes: Vec<u8>,
}

/// What a command became. Kept for ever, so that the same id gets the same answer again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whose ids these are: 1 to 255 bytes. The same id in two spaces is two commands.
    pub space: String,
    /// The command id (a UUID).
    pub id: [u8; 16],
    /// The sequence of its first event.
    pub first: u64,
    /// How many events it became, at least one. The last must be in the outcome's batch.
    pub count: u32,
    /// A digest of the command, by which the same id with another content is found out.
    pub digest: [u8; 32],
}

/// A row of a projection table that is written or, with no value, removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The table.
    pub table: u8,
    /// The key in it, at most 4,096 bytes. Of two changes to one key the later one counts.
    pub key: Vec<u8>,
    /// The row, at most 16 MiB; `None` removes it.
    pub value: Option<Vec<u8>>,
}

/// What one append makes durable, all of it or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The events, in order.
    pub records: Vec<Record>,
    /// What they change in the projections.
    pub changes: Vec<Change>,
    /// What the commands that end in this batch became.
    pub outcomes: Vec<Outcome>,
    /// Objects by their SHA-256, each 1 byte to 16 MiB.
    pub objects: Vec<([u8; 32], Vec<u8>)>,
}

impl Batch {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
            && self.changes.is_empty()
            && self.outcomes.is_empty()
            && self.objects.is_empty()
    }
}

/// When an append is on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Before it returns. The default.
    #[default]
    Immediate,
    /// At [`Writer::flush`], and by itself at the latest after 100,000 events. Until then snapshots
    /// see what was appended, but the head and its listeners do not, and a crash loses it. For a
    /// replay into a fresh ledger.
    Deferred,
}

/// The one writer of a ledger. It blocks on the disk: give it a thread of its own.
///
/// After [`Error::Storage`] it is poisoned, as is the ledger: what reached the disk is unknown until
/// the process restarts and opens the file again.
pub struct Writer {
    shared: Arc<Shared>,
    head: Head,
    durability: Durability,
    /// Events that were appended but not synced.
    deferred: usize,
    /// Something was written that was not synced, if only an object.
    unsynced: bool,
    scope_heads: HashMap<String, u64>,
    hashes: Vec<Hash>,
    /// The right edge of the tree over all events up to the head.
    tree: Frontier,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl fmt::Debug for Writer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Writer")
            .field("head", &self.head)
            .field("durability", &self.durability)
            .finish_non_exhaustive()
    }
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>) -> Result<Self, Error> {
        if shared.poisoned.load(Ordering::Acquire) {
            return Err(Error::Poisoned);
        }
        if shared.writing.swap(true, Ordering::AcqRel) {
            return Err(Error::WriterTaken);
        }
        let mut writer = Self {
            head: shared.head(),
            shared,
            durability: Durability::Immediate,
            deferred: 0,
            unsynced: false,
            scope_heads: HashMap::new(),
            hashes: Vec::new(),
            tree: Frontier::new(),
            key: Vec::new(),
            value: Vec::new(),
        };
        // A writer that was dropped before its flush left a head that nobody was told of.
        let snapshot = Snapshot::new(&writer.shared)?;
        writer.head = snapshot.head()?;
        writer.tree = snapshot.frontier(writer.head.sequence)?;
        writer.unsynced = writer.head != writer.shared.head();
        Ok(writer)
    }

    /// The last event that was appended, synced or not.
    pub fn head(&self) -> Head {
        self.head
    }

    /// Sets when the following appends are on the disk. Returning to [`Durability::Immediate`] syncs
    /// what was deferred with the next append or [`Writer::flush`].
    pub fn set_durability(&mut self, durability: Durability) {
        self.durability = durability;
    }

    /// Appends `batch` in one transaction and returns the new head.
    ///
    /// A batch without events may still change rows and put objects. An empty one does nothing.
    ///
    /// # Errors
    ///
    /// A refusal ([`Error::is_refusal`]) if the batch does not follow the head; nothing is written
    /// then. Otherwise [`Error::Storage`], which is final, or [`Error::Poisoned`] after it.
    pub fn append(&mut self, batch: &Batch) -> Result<Head, Error> {
        self.usable()?;
        if batch.is_empty() {
            return Ok(self.head);
        }
        self.check(batch)?;
        match self.write(batch) {
            Ok(synced) => {
                self.advance(batch, synced);
                faults::point("ledger-after-commit");
                if synced {
                    self.shared.publish(self.head);
                }
                Ok(self.head)
            }
            Err(error) => {
                if !error.is_refusal() {
                    self.shared.poisoned.store(true, Ordering::Release);
                }
                Err(error)
            }
        }
    }

    /// Puts objects into the content store, durable before the events that will name them. Those
    /// that are there already cost a look-up.
    ///
    /// # Errors
    ///
    /// As [`Writer::append`].
    pub fn put_objects(&mut self, objects: Vec<([u8; 32], Vec<u8>)>) -> Result<(), Error> {
        self.append(&Batch {
            objects,
            ..Batch::default()
        })
        .map(|_| ())
    }

    /// Syncs whatever was deferred, then tells the listeners.
    ///
    /// # Errors
    ///
    /// As [`Writer::append`].
    pub fn flush(&mut self) -> Result<Head, Error> {
        self.usable()?;
        if !self.unsynced {
            return Ok(self.head);
        }
        let flushed = self.begin(Durability::Immediate).and_then(commit);
        if let Err(error) = flushed {
            self.shared.poisoned.store(true, Ordering::Release);
            return Err(error);
        }
        self.synced();
        self.shared.publish(self.head);
        Ok(self.head)
    }

    fn usable(&self) -> Result<(), Error> {
        if self.shared.poisoned.load(Ordering::Acquire) {
            return Err(Error::Poisoned);
        }
        Ok(())
    }

    /// Everything that can be known without the write transaction. Leaves the leaf hashes of the
    /// records in `self.hashes`.
    fn check(&mut self, batch: &Batch) -> Result<(), Error> {
        self.hashes.clear();
        let mut head = self.head;
        for record in &batch.records {
            checked("an event", record.bytes.len(), 1..=MAX_EVENT)?;
            checked("a scope", record.scope.len(), 1..=MAX_NAME)?;
            if record.sequence != head.sequence + 1 {
                return Err(Error::Gap {
                    expected: head.sequence + 1,
                    found: record.sequence,
                });
            }
            if record.prevhash != head.hash {
                return Err(Error::Fork {
                    sequence: record.sequence,
                    expected: head.hash,
                    found: record.prevhash,
                });
            }
            head = Head {
                sequence: record.sequence,
                hash: leaf_hash(&record.bytes),
            };
            self.hashes.push(head.hash);
        }
        self.check_scopes(batch)?;
        for change in &batch.changes {
            checked("a key", change.key.len(), 0..=MAX_KEY)?;
            checked(
                "a row",
                change.value.as_ref().map_or(0, Vec::len),
                0..=MAX_ROW,
            )?;
        }
        for outcome in &batch.outcomes {
            checked("a space", outcome.space.len(), 1..=MAX_NAME)?;
            let last = outcome
                .first
                .checked_add(u64::from(outcome.count))
                .map_or(0, |end| end - 1);
            if outcome.first == 0
                || outcome.count == 0
                || last <= self.head.sequence
                || last > head.sequence
            {
                return Err(Error::OutcomeOutside {
                    first: outcome.first,
                    count: outcome.count,
                });
            }
        }
        for (claimed, object) in &batch.objects {
            checked("an object", object.len(), 1..=MAX_OBJECT)?;
            if Hash::of(object).0 != *claimed {
                return Err(Error::ObjectMismatch {
                    claimed: Hash(*claimed),
                });
            }
        }
        Ok(())
    }

    fn check_scopes(&mut self, batch: &Batch) -> Result<(), Error> {
        if self.scope_heads.len() >= REMEMBERED_SCOPES {
            self.scope_heads.clear();
        }
        let mut snapshot = None;
        let mut here: HashMap<&str, u64> = HashMap::new();
        for record in &batch.records {
            let last = match here.get_mut(record.scope.as_str()) {
                Some(last) => last,
                None => {
                    let last = match self.scope_heads.get(&record.scope) {
                        Some(last) => *last,
                        None => {
                            let last = match &snapshot {
                                Some(snapshot) => snapshot,
                                None => snapshot.insert(Snapshot::new(&self.shared)?),
                            }
                            .scope_head(&record.scope)?;
                            self.scope_heads.insert(record.scope.clone(), last);
                            last
                        }
                    };
                    here.entry(&record.scope).or_insert(last)
                }
            };
            if record.scope_sequence != *last + 1 {
                return Err(Error::ScopeGap {
                    scope: record.scope.clone(),
                    expected: *last + 1,
                    found: record.scope_sequence,
                });
            }
            *last = record.scope_sequence;
        }
        Ok(())
    }

    fn begin(&self, durability: Durability) -> Result<WriteTransaction, Error> {
        let during = "begin a write";
        let mut transaction = self
            .shared
            .database
            .begin_write()
            .map_err(Error::storage(during))?;
        match durability {
            Durability::Immediate => {
                transaction
                    .set_durability(redb::Durability::Immediate)
                    .map_err(Error::storage(during))?;
                transaction.set_two_phase_commit(true);
                transaction.set_quick_repair(true);
            }
            Durability::Deferred => transaction
                .set_durability(redb::Durability::None)
                .map_err(Error::storage(during))?,
        }
        Ok(transaction)
    }

    /// Writes a checked batch, each table in the order of its keys, so that neighbours find their page
    /// still at hand. True if it is on the disk, false if that is deferred.
    fn write(&mut self, batch: &Batch) -> Result<bool, Error> {
        let durability = match self.durability {
            Durability::Deferred if self.deferred + batch.records.len() < DEFERRED_EVENTS => {
                Durability::Deferred
            }
            _ => Durability::Immediate,
        };
        let transaction = self.begin(durability)?;
        faults::point("ledger-before-write");
        if let Err(refused) = self.write_outcomes(&transaction, batch) {
            transaction
                .abort()
                .map_err(Error::storage("undo a refused batch"))?;
            return Err(refused);
        }
        self.write_records(&transaction, batch)?;
        self.write_tree(&transaction)?;
        self.write_objects(&transaction, batch)?;
        self.write_changes(&transaction, batch)?;
        faults::point("ledger-before-commit");
        commit(transaction)?;
        Ok(durability == Durability::Immediate)
    }

    /// First of all, since only here a batch can still be refused.
    fn write_outcomes(
        &mut self,
        transaction: &WriteTransaction,
        batch: &Batch,
    ) -> Result<(), Error> {
        if batch.outcomes.is_empty() {
            return Ok(());
        }
        let during = "write outcomes";
        let mut table = transaction
            .open_table(OUTCOMES)
            .map_err(Error::storage(during))?;
        let mut outcomes: Vec<&Outcome> = batch.outcomes.iter().collect();
        outcomes.sort_by_key(|outcome| (outcome.space.as_str(), &outcome.id));
        for outcome in outcomes {
            name_key(&mut self.key, &outcome.space, &outcome.id);
            let value = outcome_value(outcome.first, outcome.count, &outcome.digest);
            let before = table
                .insert(self.key.as_slice(), value.as_slice())
                .map_err(Error::storage(during))?;
            if before.is_some() {
                return Err(Error::Duplicate {
                    space: outcome.space.clone(),
                    id: outcome.id,
                });
            }
        }
        Ok(())
    }

    fn write_records(
        &mut self,
        transaction: &WriteTransaction,
        batch: &Batch,
    ) -> Result<(), Error> {
        let (Some(record), Some(hash)) = (batch.records.last(), self.hashes.last()) else {
            return Ok(());
        };
        let during = "write events";
        let head = Head {
            sequence: record.sequence,
            hash: *hash,
        };
        let mut meta = transaction
            .open_table(META)
            .map_err(Error::storage(during))?;
        meta.insert(META_HEAD, head_value(head).as_slice())
            .map_err(Error::storage(during))?;
        let mut events = transaction
            .open_table(EVENTS)
            .map_err(Error::storage(during))?;
        let mut scopes = transaction
            .open_table(SCOPES)
            .map_err(Error::storage(during))?;
        let kept = faults::kept(batch.records.len());
        let rows = batch.records.iter().zip(&self.hashes).take(kept);
        if kept < LONG_RUN {
            for (record, hash) in rows {
                event_value(&mut self.value, *hash, &record.bytes);
                events
                    .insert(record.sequence, self.value.as_slice())
                    .map_err(Error::storage(during))?;
            }
        } else {
            let mut end = events
                .upper_bound_mut(Bound::<u64>::Unbounded)
                .map_err(Error::storage(during))?;
            for (record, hash) in rows {
                event_value(&mut self.value, *hash, &record.bytes);
                end.insert_before(record.sequence, self.value.as_slice())
                    .map_err(Error::storage(during))?;
            }
            end.close().map_err(Error::storage(during))?;
        }
        let mut records: Vec<&Record> = batch.records.iter().take(kept).collect();
        records.sort_by_key(|record| (record.scope.as_str(), record.scope_sequence));
        for run in records.chunk_by(|one, next| one.scope == next.scope) {
            let key = |key: &mut Vec<u8>, record: &Record| {
                name_key(key, &record.scope, &record.scope_sequence.to_be_bytes());
            };
            if run.len() < LONG_RUN {
                for record in run {
                    key(&mut self.key, record);
                    scopes
                        .insert(self.key.as_slice(), record.sequence)
                        .map_err(Error::storage(during))?;
                }
                continue;
            }
            key(&mut self.key, run[0]);
            let mut end = scopes
                .upper_bound_mut(Bound::Included(self.key.as_slice()))
                .map_err(Error::storage(during))?;
            for record in run {
                key(&mut self.key, record);
                end.insert_before(self.key.as_slice(), record.sequence)
                    .map_err(Error::storage(during))?;
            }
            end.close().map_err(Error::storage(during))?;
        }
        Ok(())
    }

    /// Grows the tree by the leaf hashes of the batch. What fails from here on poisons the writer, so its tree need not be
    /// taken back.
    fn write_tree(&mut self, transaction: &WriteTransaction) -> Result<(), Error> {
        if self.hashes.is_empty() {
            return Ok(());
        }
        let during = "write the tree";
        let mut rows: Vec<([u8; 9], Hash)> = Vec::new();
        for hash in &self.hashes {
            self.tree.push(*hash, |tile| {
                rows.push((tree_key(tile.level + 1, tile.index), tile.root));
            });
        }
        if !rows.is_empty() {
            let mut table = transaction
                .open_table(TREE)
                .map_err(Error::storage(during))?;
            for (key, hash) in rows {
                table
                    .insert(key.as_slice(), hash.0.as_slice())
                    .map_err(Error::storage(during))?;
            }
        }
        let mut meta = transaction
            .open_table(META)
            .map_err(Error::storage(during))?;
        meta.insert(META_TREE, tree_value(self.tree.head()).as_slice())
            .map_err(Error::storage(during))?;
        Ok(())
    }

    fn write_objects(&self, transaction: &WriteTransaction, batch: &Batch) -> Result<(), Error> {
        use redb::ReadableTable;

        if batch.objects.is_empty() {
            return Ok(());
        }
        let during = "write objects";
        let mut table = transaction
            .open_table(OBJECTS)
            .map_err(Error::storage(during))?;
        for (hash, object) in &batch.objects {
            let known = table
                .get(hash.as_slice())
                .map_err(Error::storage(during))?
                .is_some();
            if !known {
                table
                    .insert(hash.as_slice(), object.as_slice())
                    .map_err(Error::storage(during))?;
            }
        }
        Ok(())
    }

    fn write_changes(
        &mut self,
        transaction: &WriteTransaction,
        batch: &Batch,
    ) -> Result<(), Error> {
        if batch.changes.is_empty() {
            return Ok(());
        }
        let during = "write projections";
        let mut table = transaction
            .open_table(STATE)
            .map_err(Error::storage(during))?;
        // Of several changes to one key only the last one needs to be written. The sort is stable,
        // so that is the last of its run.
        let mut changes: Vec<&Change> = batch.changes.iter().collect();
        changes.sort_by_key(|change| (change.table, change.key.as_slice()));
        let mut changes = changes.into_iter().peekable();
        while let Some(change) = changes.next() {
            if changes
                .peek()
                .is_some_and(|next| next.table == change.table && next.key == change.key)
            {
                continue;
            }
            state_key(&mut self.key, change.table, &change.key);
            match &change.value {
                Some(value) => table.insert(self.key.as_slice(), value.as_slice()),
                None => table.remove(self.key.as_slice()),
            }
            .map_err(Error::storage(during))?;
        }
        Ok(())
    }

    /// After the commit: the batch counts.
    fn advance(&mut self, batch: &Batch, synced: bool) {
        if let (Some(record), Some(hash)) = (batch.records.last(), self.hashes.last()) {
            self.head = Head {
                sequence: record.sequence,
                hash: *hash,
            };
        }
        for record in &batch.records {
            if let Some(last) = self.scope_heads.get_mut(&record.scope) {
                *last = record.scope_sequence;
            }
        }
        if synced {
            self.synced();
        } else {
            self.deferred += batch.records.len();
            self.unsynced = true;
        }
    }

    fn synced(&mut self) {
        self.deferred = 0;
        self.unsynced = false;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.writing.store(false, Ordering::Release);
    }
}

fn commit(transaction: WriteTransaction) -> Result<(), Error> {
    transaction.commit().map_err(Error::storage("commit"))
}
