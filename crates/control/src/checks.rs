//! What was last found in the world: results of looks at revocation, at DNS, with the time of each.
//!
//! It lies in `checks.redb` beside the ledger and is no truth: nothing is decided on it, a replay does not rebuild it, a
//! backup may leave it out, and deleting it costs one round of looks. It spares a restart those looks, and lets the views
//! say what was found. So it may also lag: what was put a second ago may be lost in a crash.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};

/// Kind and key → (Unix seconds, what was found).
const ROWS: TableDefinition<'_, &[u8], (i64, &[u8])> = TableDefinition::new("checks_v1");
/// Rows at most. When there are more, the first ones in key order go: what they said is found anew by the next look.
const ROWS_MAX: u64 = 4_000_000;
/// Rows that go at once.
const SHED: usize = 4_096;
/// Bytes of one result at most.
pub const RESULT_MAX: usize = 16 * 1024;
/// Bytes of one key at most.
pub const KEY_MAX: usize = 1_024;
/// Results that wait for the disk at most; what is more is not kept.
const WAITING_MAX: usize = 16_384;
/// The time between two writes, so that thousands of results share one sync.
const PAUSE: Duration = Duration::from_millis(500);
/// Bytes of the file that are kept in memory.
const CACHE: usize = 8 * 1024 * 1024;

/// What was looked at. A number, once used, never gets another meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Revocation of a certificate's version.
    Revocation = 1,
    /// Proof of a domain by DNS.
    Domain = 2,
    /// How far a daily round has come.
    Round = 3,
}

/// What was found, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Unix seconds.
    pub time: i64,
    /// What was found, in the form of whoever looked.
    pub found: Vec<u8>,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the file of check results cannot be used")]
pub struct Error(#[source] Box<redb::Error>);

impl<E: Into<redb::Error>> From<E> for Error {
    fn from(error: E) -> Self {
        Self(Box::new(error.into()))
    }
}

/// The store; clones share it. Readers and whoever puts never wait for the disk's sync, which a thread of its own does.
#[derive(Clone)]
pub struct Checks(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
}

struct Shared {
    database: Database,
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

/// None removes the row.
type Changes = BTreeMap<Vec<u8>, Option<Check>>;

#[derive(Default)]
struct Waiting {
    changes: Changes,
    /// What the writer has taken and not yet committed, so that a reader sees it all the same.
    writing: Changes,
    ended: bool,
}

fn row(kind: Kind, key: &[u8]) -> Vec<u8> {
    [&[kind as u8], key].concat()
}

impl Checks {
    /// Opens the file, or makes it. A file that cannot be read is moved out of the way and made anew: nothing in it is worth
    /// not starting for.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let open = || -> Result<Database, Error> {
            let database = Database::builder().set_cache_size(CACHE).create(path)?;
            let write = database.begin_write()?;
            write.open_table(ROWS)?;
            write.commit()?;
            Ok(database)
        };
        let database = match open() {
            Ok(database) => database,
            Err(error) if path.exists() => {
                tracing::warn!(%error, source = ?error.0, path = %path.display(), "the file of check results is made anew");
                let _ = std::fs::rename(path, path.with_extension("redb.damaged"));
                open()?
            }
            Err(error) => return Err(error),
        };
        let shared = Arc::new(Shared {
            database,
            waiting: Mutex::default(),
            wake: Condvar::new(),
        });
        let writing = Arc::clone(&shared);
        let writer = std::thread::Builder::new()
            .name("checks".to_owned())
            .spawn(move || writing.run())
            .map_err(|error| Error(Box::new(redb::Error::Io(error))))?;
        Ok(Self(Arc::new(Inner {
            shared,
            writer: Mutex::new(Some(writer)),
        })))
    }

    /// The last result, if there is one.
    #[must_use]
    pub fn get(&self, kind: Kind, key: &[u8]) -> Option<Check> {
        let row = row(kind, key);
        {
            let waiting = self.0.shared.lock();
            if let Some(change) = waiting
                .changes
                .get(&row)
                .or_else(|| waiting.writing.get(&row))
            {
                return change.clone();
            }
        }
        match self.0.shared.read(&row) {
            Ok(check) => check,
            Err(error) => {
                tracing::warn!(%error, source = ?error.0, "a check result cannot be read");
                None
            }
        }
    }

    /// Keeps a result in the place of the last one. A key of more than [`KEY_MAX`] or a result of more than [`RESULT_MAX`]
    /// bytes is not kept, and neither is one that comes while too many wait for the disk.
    pub fn put(&self, kind: Kind, key: &[u8], time: i64, found: Vec<u8>) {
        if key.len() > KEY_MAX || found.len() > RESULT_MAX {
            tracing::warn!(?kind, "a check result is too long to be kept");
            return;
        }
        self.change(row(kind, key), Some(Check { time, found }));
    }

    /// Forgets a result.
    pub fn remove(&self, kind: Kind, key: &[u8]) {
        self.change(row(kind, key), None);
    }

    /// The keys of a kind that begin with `prefix`, at most `limit`, in key order. For whoever sweeps what is gone.
    #[must_use]
    pub fn keys(&self, kind: Kind, prefix: &[u8], limit: usize) -> Vec<Vec<u8>> {
        let prefix = row(kind, prefix);
        let mut keys: BTreeMap<Vec<u8>, bool> = match self.0.shared.scan(&prefix, limit) {
            Ok(rows) => rows.into_iter().map(|row| (row, true)).collect(),
            Err(error) => {
                tracing::warn!(%error, source = ?error.0, "check results cannot be read");
                BTreeMap::new()
            }
        };
        let waiting = self.0.shared.lock();
        for changes in [&waiting.writing, &waiting.changes] {
            for (row, change) in changes.range(prefix.clone()..) {
                if !row.starts_with(&prefix) {
                    break;
                }
                keys.insert(row.clone(), change.is_some());
            }
        }
        keys.into_iter()
            .filter(|(_, there)| *there)
            .map(|(row, _)| row[1..].to_vec())
            .take(limit)
            .collect()
    }

    fn change(&self, row: Vec<u8>, change: Option<Check>) {
        let mut waiting = self.0.shared.lock();
        if waiting.changes.len() < WAITING_MAX || waiting.changes.contains_key(&row) {
            waiting.changes.insert(row, change);
        }
        drop(waiting);
        self.0.shared.wake.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, row: &[u8]) -> Result<Option<Check>, Error> {
        let read = self.database.begin_read()?;
        let table = read.open_table(ROWS)?;
        Ok(table.get(row)?.map(|value| {
            let (time, found) = value.value();
            Check {
                time,
                found: found.to_vec(),
            }
        }))
    }

    fn scan(&self, prefix: &[u8], limit: usize) -> Result<Vec<Vec<u8>>, Error> {
        let read = self.database.begin_read()?;
        let table = read.open_table(ROWS)?;
        let mut rows = Vec::new();
        for entry in table.range(prefix..)? {
            let (key, _) = entry?;
            if !key.value().starts_with(prefix) || rows.len() >= limit {
                break;
            }
            rows.push(key.value().to_vec());
        }
        Ok(rows)
    }

    /// The writer's thread: takes what waits, commits it, pauses.
    fn run(&self) {
        loop {
            let mut waiting = self.lock();
            while waiting.changes.is_empty() && !waiting.ended {
                waiting = self
                    .wake
                    .wait(waiting)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            let ended = waiting.ended;
            let changes = std::mem::take(&mut waiting.changes);
            waiting.writing.clone_from(&changes);
            drop(waiting);
            if let Err(error) = self.write(&changes) {
                // It is found anew by the next look, and a full disk is told by everything else.
                tracing::warn!(%error, source = ?error.0, "check results are not kept");
            }
            let mut waiting = self.lock();
            waiting.writing.clear();
            if ended {
                return;
            }
            let (waiting, _) = self
                .wake
                .wait_timeout_while(waiting, PAUSE, |waiting| !waiting.ended)
                .unwrap_or_else(PoisonError::into_inner);
            drop(waiting);
        }
    }

    fn write(&self, changes: &Changes) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let write = self.database.begin_write()?;
        {
            let mut table = write.open_table(ROWS)?;
            for (row, change) in changes {
                match change {
                    Some(check) => {
                        table.insert(row.as_slice(), (check.time, check.found.as_slice()))?
                    }
                    None => table.remove(row.as_slice())?,
                };
            }
            if table.len()? > ROWS_MAX {
                let first: Vec<Vec<u8>> = table
                    .iter()?
                    .take(SHED + changes.len())
                    .map(|entry| entry.map(|(key, _)| key.value().to_vec()))
                    .collect::<Result<_, _>>()?;
                for row in first {
                    table.remove(row.as_slice())?;
                }
            }
        }
        write.commit()?;
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.wake.notify_all();
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(writer) = writer {
            let _ = writer.join();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_there_at_once_and_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checks.redb");
        let checks = Checks::open(&path).unwrap();
        for i in 0..1_000u64 {
            checks.put(Kind::Revocation, &i.to_be_bytes(), 7, vec![1; 10]);
        }
        checks.put(Kind::Revocation, &3u64.to_be_bytes(), 8, b"later".to_vec());
        checks.put(Kind::Domain, &3u64.to_be_bytes(), 9, b"other".to_vec());
        checks.remove(Kind::Revocation, &4u64.to_be_bytes());
        let holds = |checks: &Checks| {
            let later = checks.get(Kind::Revocation, &3u64.to_be_bytes()).unwrap();
            assert_eq!((later.time, later.found.as_slice()), (8, &b"later"[..]));
            assert_eq!(
                checks.get(Kind::Domain, &3u64.to_be_bytes()).unwrap().found,
                b"other"
            );
            assert_eq!(checks.get(Kind::Revocation, &4u64.to_be_bytes()), None);
            assert_eq!(checks.keys(Kind::Revocation, &[], 5_000).len(), 999);
            assert_eq!(checks.keys(Kind::Domain, &[], 5_000).len(), 1);
        };
        holds(&checks);
        drop(checks);
        holds(&Checks::open(&path).unwrap());
    }

    #[test]
    fn a_damaged_file_keeps_nobody_from_starting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checks.redb");
        std::fs::write(&path, b"this was never a database").unwrap();
        let checks = Checks::open(&path).unwrap();
        assert_eq!(checks.get(Kind::Domain, b"k"), None);
        checks.put(Kind::Domain, b"k", 1, b"v".to_vec());
        drop(checks);
        assert!(
            Checks::open(&path)
                .unwrap()
                .get(Kind::Domain, b"k")
                .is_some()
        );
    }

    #[test]
    fn what_is_too_long_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let checks = Checks::open(&folder.path().join("checks.redb")).unwrap();
        checks.put(Kind::Domain, b"k", 1, vec![0; RESULT_MAX + 1]);
        checks.put(Kind::Domain, &[0; KEY_MAX + 1], 1, vec![0]);
        assert!(checks.keys(Kind::Domain, &[], 10).is_empty());
    }
}
