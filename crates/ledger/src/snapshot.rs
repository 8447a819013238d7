//! Reading: one redb read transaction with its tables open.

use std::{
    ops::{Bound, ControlFlow},
    sync::Arc,
};

use aws_lc_rs::digest;
use redb::{
    ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata,
};

use crate::{
    Error, Hash, Head, Outcome,
    format::{
        EVENTS, META, META_HEAD, OBJECTS, OUTCOMES, SCOPES, STATE, TREE, after_prefix, name_key,
        read_event, read_head, read_outcome, state_key,
    },
    open::Shared,
};

type Bytes = &'static [u8];

/// The key of a row in its projection table, and the row.
pub type Row = (Vec<u8>, Vec<u8>);

/// The ledger at one moment. It does not change while it lives, and costs file space while it does:
/// milliseconds are fine, minutes are not. Every list has a limit for that reason; take a new
/// snapshot for the next page.
///
/// Every method can fail with [`Error::Storage`], and with [`Error::Damaged`] where a row does not
/// have the shape that was written.
pub struct Snapshot {
    pub(crate) transaction: ReadTransaction,
    events: ReadOnlyTable<u64, Bytes>,
    scopes: ReadOnlyTable<Bytes, u64>,
    outcomes: ReadOnlyTable<Bytes, Bytes>,
    objects: ReadOnlyTable<Bytes, Bytes>,
    state: ReadOnlyTable<Bytes, Bytes>,
    pub(crate) tree: ReadOnlyTable<Bytes, Bytes>,
    /// redb closes under its readers once the database is dropped. Last, so that it goes last.
    _shared: Arc<Shared>,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Snapshot").finish_non_exhaustive()
    }
}

/// A range of raw keys of the state table.
type Span = (Bound<Vec<u8>>, Bound<Vec<u8>>);

fn span_of(prefix: Vec<u8>) -> Span {
    let end = after_prefix(&prefix).map_or(Bound::Unbounded, Bound::Excluded);
    (Bound::Included(prefix), end)
}

fn as_slices(span: &Span) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (
        span.0.as_ref().map(Vec::as_slice),
        span.1.as_ref().map(Vec::as_slice),
    )
}

impl Snapshot {
    pub(crate) fn new(shared: &Arc<Shared>) -> Result<Self, Error> {
        let during = "begin a read";
        let transaction = shared
            .database
            .begin_read()
            .map_err(Error::storage(during))?;
        let bytes = |definition| {
            transaction
                .open_table(definition)
                .map_err(Error::storage(during))
        };
        Ok(Self {
            events: transaction
                .open_table(EVENTS)
                .map_err(Error::storage(during))?,
            scopes: transaction
                .open_table(SCOPES)
                .map_err(Error::storage(during))?,
            outcomes: bytes(OUTCOMES)?,
            objects: bytes(OBJECTS)?,
            state: bytes(STATE)?,
            tree: bytes(TREE)?,
            transaction,
            _shared: Arc::clone(shared),
        })
    }

    /// The last event of this snapshot, whether synced or not.
    pub fn head(&self) -> Result<Head, Error> {
        let during = "read the head";
        let meta = self
            .transaction
            .open_table(META)
            .map_err(Error::storage(during))?;
        let value = meta
            .get(META_HEAD)
            .map_err(Error::storage(during))?
            .ok_or_else(|| Error::Damaged("the head is missing".into()))?;
        read_head(value.value())
    }

    /// The exact bytes of one event.
    pub fn event(&self, sequence: u64) -> Result<Option<Vec<u8>>, Error> {
        match self
            .events
            .get(sequence)
            .map_err(Error::storage("read an event"))?
        {
            Some(value) => Ok(Some(read_event(sequence, value.value())?.1.to_vec())),
            None => Ok(None),
        }
    }

    /// The leaf hash of one event, as it was computed when it was appended.
    pub fn hash(&self, sequence: u64) -> Result<Option<Hash>, Error> {
        match self
            .events
            .get(sequence)
            .map_err(Error::storage("read a hash"))?
        {
            Some(value) => Ok(Some(read_event(sequence, value.value())?.0)),
            None => Ok(None),
        }
    }

    /// At most `limit` events from the sequence `from` on, with their sequences.
    pub fn events(&self, from: u64, limit: usize) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        let mut events = Vec::new();
        self.visit_events(from, limit, |sequence, _, bytes| {
            events.push((sequence, bytes.to_vec()));
            ControlFlow::Continue(())
        })?;
        Ok(events)
    }

    /// As [`Snapshot::events`], without copying: calls `visit` with sequence, stored leaf hash and
    /// bytes of each until it breaks.
    pub fn visit_events(
        &self,
        from: u64,
        limit: usize,
        mut visit: impl FnMut(u64, Hash, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let during = "read events";
        for row in self
            .events
            .range(from..)
            .map_err(Error::storage(during))?
            .take(limit)
        {
            let (sequence, value) = row.map_err(Error::storage(during))?;
            let sequence = sequence.value();
            let (hash, bytes) = read_event(sequence, value.value())?;
            if visit(sequence, hash, bytes).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// At most `limit` events of one scope from the scope sequence `from` on, each as (scope
    /// sequence, sequence, bytes).
    pub fn scope_events(
        &self,
        scope: &str,
        from: u64,
        limit: usize,
    ) -> Result<Vec<(u64, u64, Vec<u8>)>, Error> {
        let during = "read the events of a scope";
        let damaged = || {
            Error::Damaged(format!(
                "the index of scope {scope} does not match its events"
            ))
        };
        let (mut first, mut last) = (Vec::new(), Vec::new());
        name_key(&mut first, scope, &from.to_be_bytes());
        name_key(&mut last, scope, &u64::MAX.to_be_bytes());
        let mut events = Vec::new();
        for row in self
            .scopes
            .range(first.as_slice()..=last.as_slice())
            .map_err(Error::storage(during))?
            .take(limit)
        {
            let (key, sequence) = row.map_err(Error::storage(during))?;
            let number = key.value().last_chunk().ok_or_else(damaged)?;
            let sequence = sequence.value();
            let bytes = self.event(sequence)?.ok_or_else(damaged)?;
            events.push((u64::from_be_bytes(*number), sequence, bytes));
        }
        Ok(events)
    }

    /// The sequence of the event that is number `scope_sequence` of its scope.
    pub fn scope_event(&self, scope: &str, scope_sequence: u64) -> Result<Option<u64>, Error> {
        let mut key = Vec::new();
        name_key(&mut key, scope, &scope_sequence.to_be_bytes());
        let sequence = self
            .scopes
            .get(key.as_slice())
            .map_err(Error::storage("read the index of a scope"))?;
        Ok(sequence.map(|sequence| sequence.value()))
    }

    /// The number of the last event of a scope, which is how many it has; 0 if none.
    pub fn scope_head(&self, scope: &str) -> Result<u64, Error> {
        let during = "read the head of a scope";
        let (mut first, mut last) = (Vec::new(), Vec::new());
        name_key(&mut first, scope, &[]);
        name_key(&mut last, scope, &u64::MAX.to_be_bytes());
        match self
            .scopes
            .range(first.as_slice()..=last.as_slice())
            .map_err(Error::storage(during))?
            .next_back()
        {
            Some(row) => {
                let (key, _) = row.map_err(Error::storage(during))?;
                let number = key.value().last_chunk().ok_or_else(|| {
                    Error::Damaged(format!("the index of scope {scope} has an unknown shape"))
                })?;
                Ok(u64::from_be_bytes(*number))
            }
            None => Ok(0),
        }
    }

    /// What the command `id` of `space` became, if it was ever answered.
    pub fn outcome(&self, space: &str, id: &[u8; 16]) -> Result<Option<Outcome>, Error> {
        let mut key = Vec::new();
        name_key(&mut key, space, id);
        let Some(value) = self
            .outcomes
            .get(key.as_slice())
            .map_err(Error::storage("read an outcome"))?
        else {
            return Ok(None);
        };
        let (first, count, digest) = read_outcome(value.value())?;
        Ok(Some(Outcome {
            space: space.to_owned(),
            id: *id,
            first,
            count,
            digest,
        }))
    }

    /// How many commands have an outcome.
    pub fn outcome_count(&self) -> Result<u64, Error> {
        self.outcomes
            .len()
            .map_err(Error::storage("count the outcomes"))
    }

    /// An object by its SHA-256.
    pub fn object(&self, hash: &[u8; 32]) -> Result<Option<Vec<u8>>, Error> {
        let object = self
            .objects
            .get(hash.as_slice())
            .map_err(Error::storage("read an object"))?;
        Ok(object.map(|object| object.value().to_vec()))
    }

    /// Whether an object is there, without reading it.
    pub fn has_object(&self, hash: &[u8; 32]) -> Result<bool, Error> {
        let object = self
            .objects
            .get(hash.as_slice())
            .map_err(Error::storage("look for an object"))?;
        Ok(object.is_some())
    }

    /// A row of a projection table.
    pub fn get(&self, table: u8, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let mut raw = Vec::with_capacity(key.len() + 1);
        state_key(&mut raw, table, key);
        let value = self
            .state
            .get(raw.as_slice())
            .map_err(Error::storage("read a row"))?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    /// At most `limit` rows whose keys begin with `prefix`, in key order, from the first key after
    /// `after` on. The last key of one page is `after` of the next.
    pub fn scan(
        &self,
        table: u8,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Row>, Error> {
        let during = "read rows";
        let mut raw = Vec::with_capacity(prefix.len() + 1);
        state_key(&mut raw, table, prefix);
        let mut span = span_of(raw);
        if let Some(after) = after {
            let mut raw = Vec::with_capacity(after.len() + 1);
            state_key(&mut raw, table, after);
            // A bound before the prefix changes nothing, and one beyond it leaves nothing.
            if !matches!(&span.0, Bound::Included(first) if raw < *first) {
                if matches!(&span.1, Bound::Excluded(end) if raw >= *end) {
                    return Ok(Vec::new());
                }
                span.0 = Bound::Excluded(raw);
            }
        }
        let mut rows = Vec::new();
        for row in self
            .state
            .range::<&[u8]>(as_slices(&span))
            .map_err(Error::storage(during))?
            .take(limit)
        {
            let (key, value) = row.map_err(Error::storage(during))?;
            rows.push((
                key.value().get(1..).unwrap_or_default().to_vec(),
                value.value().to_vec(),
            ));
        }
        Ok(rows)
    }

    /// The row with the greatest key that begins with `prefix` and is not above `upper_key`, a whole
    /// key. With keys of (thing, big-endian sequence) this is the newest row about a thing as of a
    /// sequence.
    pub fn last_at_or_below(
        &self,
        table: u8,
        prefix: &[u8],
        upper_key: &[u8],
    ) -> Result<Option<Row>, Error> {
        let during = "read the newest row";
        let (mut first, mut last) = (Vec::new(), Vec::new());
        state_key(&mut first, table, prefix);
        state_key(&mut last, table, upper_key);
        if last < first {
            return Ok(None);
        }
        // An upper key beyond the prefix means the prefix's last row.
        let mut span = span_of(first);
        if !matches!(&span.1, Bound::Excluded(end) if last >= *end) {
            span.1 = Bound::Included(last);
        }
        match self
            .state
            .range::<&[u8]>(as_slices(&span))
            .map_err(Error::storage(during))?
            .next_back()
        {
            Some(row) => {
                let (key, value) = row.map_err(Error::storage(during))?;
                Ok(Some((
                    key.value().get(1..).unwrap_or_default().to_vec(),
                    value.value().to_vec(),
                )))
            }
            None => Ok(None),
        }
    }

    /// The projection tables that have rows, in order.
    pub fn tables(&self) -> Result<Vec<u8>, Error> {
        let during = "list the tables";
        let mut tables = Vec::new();
        let mut from = Some(0u8);
        while let Some(table) = from {
            let Some(row) = self
                .state
                .range([table].as_slice()..)
                .map_err(Error::storage(during))?
                .next()
            else {
                break;
            };
            let (key, _) = row.map_err(Error::storage(during))?;
            let Some(found) = key.value().first().copied() else {
                break;
            };
            tables.push(found);
            from = found.checked_add(1);
        }
        Ok(tables)
    }

    /// SHA-256 over all rows of `tables` (taken in ascending order, each once): for each row the
    /// table's byte, the key behind its length and the value behind its length, lengths as
    /// little-endian u64. Equal digests mean equal rows, byte for byte. Reads every row: use a
    /// snapshot for nothing else meanwhile, and a quiet moment for large tables.
    pub fn tables_digest(&self, tables: &[u8]) -> Result<Hash, Error> {
        let mut context = digest::Context::new(&digest::SHA256);
        for table in in_order(tables) {
            for row in self.rows(table)? {
                let (key, value) = row.map_err(Error::storage("read rows"))?;
                let (key, value) = (key.value().get(1..).unwrap_or_default(), value.value());
                context.update(&[table]);
                context.update(&(key.len() as u64).to_le_bytes());
                context.update(key);
                context.update(&(value.len() as u64).to_le_bytes());
                context.update(value);
            }
        }
        Ok(Hash::from_digest(&context.finish()))
    }

    /// The first row of `tables` that only one of the two snapshots has, or that differs: its table
    /// and key. `None` if their rows are the same.
    pub fn first_difference(
        &self,
        other: &Snapshot,
        tables: &[u8],
    ) -> Result<Option<(u8, Vec<u8>)>, Error> {
        let during = "compare rows";
        for table in in_order(tables) {
            let (mut ours, mut theirs) = (self.rows(table)?, other.rows(table)?);
            loop {
                let our = ours.next().transpose().map_err(Error::storage(during))?;
                let their = theirs.next().transpose().map_err(Error::storage(during))?;
                let key = match (&our, &their) {
                    (None, None) => break,
                    (Some(our), Some(their)) => {
                        let same =
                            our.0.value() == their.0.value() && our.1.value() == their.1.value();
                        if same {
                            continue;
                        }
                        our.0.value().min(their.0.value())
                    }
                    (Some(one), None) | (None, Some(one)) => one.0.value(),
                };
                return Ok(Some((table, key.get(1..).unwrap_or_default().to_vec())));
            }
        }
        Ok(None)
    }

    fn rows(&self, table: u8) -> Result<redb::Range<'_, Bytes, Bytes>, Error> {
        let span = span_of(vec![table]);
        ReadableTable::range::<&[u8]>(&self.state, as_slices(&span))
            .map_err(Error::storage("read rows"))
    }
}

fn in_order(tables: &[u8]) -> Vec<u8> {
    let mut tables = tables.to_vec();
    tables.sort_unstable();
    tables.dedup();
    tables
}
