//! The edge's own copy of its region's rows, in one redb file.
//!
//! A name is looked up here when it is first used, so that neither the start nor the idle memory of an edge grows with
//! the number of names. A delta is one transaction. A snapshot is loaded into a second file, which takes the place of
//! the first when it is whole; until then the first goes on serving, and nothing that was deleted meanwhile comes back.
//!
//! The key of a bundle is opened with the region key when it arrives and sealed again under the edge's local key, since
//! opening the latter costs microseconds and the former a scalar multiplication.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use aws_lc_rs::digest::{SHA256, digest};
use redb::{
    Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition,
    WriteTransaction,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use lifecycle::names::{CertificateId, Digest, Host, ResourceId, Slug};
use wire::feed::{
    Bundle, Change, Chunk, Claim, Cursor, Delta, Key, Kind, Names, RegionKey, Resource,
};

use crate::custody::Custody;

/// The format of the file. One of format 1 is converted where it lies; a file of a later format is moved aside and taken anew
/// from upstream.
const FORMAT: u16 = 2;
/// The file that serves.
const FILE: &str = "edge.redb";
/// The file that a snapshot is loaded into.
const LOADING: &str = "edge.loading.redb";
/// Where a file goes that cannot be read.
const UNREADABLE: &str = "edge.unreadable.redb";
/// redb's page cache. Opened keys and joined hosts have caches of their own, and the system caches the file.
const PAGE_CACHE: usize = 8 << 20;
/// While a snapshot is loaded more pages are worth keeping: they are all written once.
const LOADING_CACHE: usize = 64 << 20;
/// The longest value that is read, in bytes: a chain of ten large certificates is far below it.
const VALUE_MAX: usize = 1 << 20;
/// From so many bundles on, opening their keys is shared among threads.
const PARALLEL_FROM: usize = 16;
/// The most threads that open keys while a snapshot is loaded; handshakes need the others.
const PARALLEL_MAX: usize = 4;
/// The longest cursor that is handed back, in bytes.
const CURSOR_MAX: usize = 4096;
/// How many counters the stamps have. Two rows may share one, which costs a needless look-up and nothing else.
const STAMPS: usize = 1 << 16;

type RowKey = [u8; 33];

const ROWS: TableDefinition<'static, &'static RowKey, &'static [u8]> = TableDefinition::new("rows");
/// Bundles whose key is still sealed to a version of the region key that this edge did not hold when they came.
const WAITING: TableDefinition<'static, &'static [u8; 32], ()> = TableDefinition::new("waiting");
const META: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("meta");

const META_FORMAT: &str = "format";
const META_POSITION: &str = "position";
const META_SIGNER: &str = "signer";

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database refused or failed.
    #[error("the edge's store failed")]
    Database(#[source] Box<redb::Error>),
    /// The file system refused.
    #[error("the edge's store could not touch its files")]
    Io(#[from] io::Error),
    /// A stored value does not decode. The store can be taken anew from upstream.
    #[error("a stored value does not decode")]
    Malformed,
    /// A message starts behind what it must follow: what lies between has to be asked for.
    #[error("there is a gap before this message")]
    Gap,
    /// A message would take the edge back to an older state.
    #[error("this message is older than what the edge holds")]
    Rollback,
    /// A message belongs to a later generation: a snapshot has to be taken.
    #[error("this message belongs to another generation")]
    Generation,
    /// A part of a snapshot does not continue the part before it.
    #[error("this part does not continue the snapshot")]
    Cursor,
}

impl Error {
    /// Whether the file itself is at fault, rather than the disk or another process that has it open.
    fn is_unreadable(&self) -> bool {
        match self {
            Self::Malformed => true,
            Self::Database(error) => match &**error {
                redb::Error::Corrupted(_)
                | redb::Error::UpgradeRequired(_)
                | redb::Error::RepairAborted => true,
                redb::Error::TableTypeMismatch { .. }
                | redb::Error::TypeDefinitionChanged { .. } => true,
                redb::Error::Io(error) => error.kind() == io::ErrorKind::InvalidData,
                _ => false,
            },
            _ => false,
        }
    }
}

macro_rules! database_errors {
    ($($kind:ty),*) => {$(
        impl From<$kind> for Error {
            fn from(error: $kind) -> Self {
                Self::Database(Box::new(error.into()))
            }
        }
    )*};
}
database_errors!(
    redb::Error,
    redb::DatabaseError,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError,
    redb::SetDurabilityError
);

/// How far an edge is. Positions are ordered by generation and then by sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Rises only on a restore. 0 with an empty store.
    pub generation: u64,
    /// The log sequence up to which rows are served. 0 with an empty store.
    pub sequence: u64,
    /// The time of the last event, Unix milliseconds.
    pub time: i64,
}

/// A bundle as it lies in the store.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct StoredBundle {
    pub(crate) project: Slug,
    pub(crate) certificate: CertificateId,
    pub(crate) version: u32,
    pub(crate) spki: Digest,
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) key: StoredKey,
}

/// The sealed key of a stored bundle.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) enum StoredKey {
    /// Sealed under the edge's local key.
    Local(Vec<u8>),
    /// As it came: sealed to this version of the region key.
    Region(u32, Vec<u8>),
}

/// What an applied message changed beyond the rows themselves.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// Bundles that are gone. Their opened keys must not stay in memory.
    pub(crate) removed: Vec<Digest>,
    /// Rows that did not decode. They are left out; what they were about is not served.
    pub(crate) unreadable: usize,
    /// Bundles whose key did not open with any key that this edge holds.
    pub(crate) unopened: usize,
}

/// The fingerprint of a certificate: SHA-256 of its DER.
pub(crate) fn fingerprint(der: &[u8]) -> Digest {
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(digest(&SHA256, der).as_ref());
    Digest(fingerprint)
}

fn row_key(key: &Key) -> RowKey {
    let mut row = [0; 33];
    row[0] = key.kind as u8;
    row[1..].copy_from_slice(&key.id.0);
    row
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, bincode::config::standard())
        .expect("rows hold nothing that bincode cannot write")
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let config = bincode::config::standard().with_limit::<VALUE_MAX>();
    match bincode::serde::decode_from_slice(bytes, config) {
        Ok((value, read)) if read == bytes.len() => Some(value),
        _ => None,
    }
}

/// Counters that rise when a row changes, so that what was joined from rows knows whether it still holds.
pub(crate) struct Stamps {
    counters: Box<[AtomicU32]>,
    epoch: AtomicU64,
}

impl Stamps {
    fn new() -> Self {
        Self {
            counters: (0..STAMPS).map(|_| AtomicU32::new(0)).collect(),
            epoch: AtomicU64::new(0),
        }
    }

    fn slot(key: &Key) -> u16 {
        // The ids are digests already; the kind sets apart rows of different kinds with one id.
        u16::from_le_bytes([key.id.0[0], key.id.0[1]]) ^ ((key.kind as u16) << 12)
    }

    fn get(&self, slot: u16) -> u32 {
        self.counters[usize::from(slot)].load(Ordering::SeqCst)
    }

    /// Must be called after the commit. Whoever sees one of the new stamps sees the new epoch too.
    fn changed<'a>(&self, keys: impl Iterator<Item = &'a Key>) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        for key in keys {
            self.counters[usize::from(Self::slot(key))].fetch_add(1, Ordering::SeqCst);
        }
    }

    fn all_changed(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        for counter in &self.counters {
            counter.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// The stamps of the rows that something was joined from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Provenance {
    stamps: [(u16, u32); 4],
    count: u8,
    /// Set when the rows changed all the time while they were read: good for one use.
    fleeting: bool,
}

/// Rows as of one moment.
pub(crate) struct Rows<'a> {
    table: ReadOnlyTable<&'static RowKey, &'static [u8]>,
    stamps: &'a Stamps,
    provenance: Provenance,
}

impl Rows<'_> {
    fn get<T: DeserializeOwned>(&mut self, key: &Key) -> Result<Option<T>, Error> {
        let slot = Stamps::slot(key);
        if let Some(place) = self
            .provenance
            .stamps
            .get_mut(usize::from(self.provenance.count))
        {
            *place = (slot, self.stamps.get(slot));
            self.provenance.count += 1;
        } else {
            self.provenance.fleeting = true;
        }
        match self.table.get(&row_key(key))? {
            Some(value) => decode(value.value()).map(Some).ok_or(Error::Malformed),
            None => Ok(None),
        }
    }

    pub(crate) fn claim(&mut self, host: &str) -> Result<Option<Claim>, Error> {
        self.get(&Key::claim(host))
    }

    pub(crate) fn names(&mut self, project: &Slug, name: &str) -> Result<Option<Names>, Error> {
        self.get(&Key::names(project.as_str(), name))
    }

    pub(crate) fn resource(&mut self, id: ResourceId) -> Result<Option<Resource>, Error> {
        self.get(&Key::resource(id))
    }

    pub(crate) fn bundle(&mut self, leaf: Digest) -> Result<Option<StoredBundle>, Error> {
        self.get(&Key {
            kind: Kind::Bundle,
            id: leaf,
        })
    }
}

/// A row that is ready to be written.
struct Prepared {
    key: Key,
    value: Option<Vec<u8>>,
    waiting: bool,
}

/// The store.
pub struct Store {
    folder: PathBuf,
    database: RwLock<Arc<Database>>,
    position: RwLock<Position>,
    signer: RwLock<[u8; 32]>,
    custody: Arc<Custody>,
    stamps: Stamps,
}

impl Store {
    /// Opens the store in a folder, or makes an empty one. A file that cannot be read is moved aside: all that is in it can
    /// be taken again from upstream. `signer` is what enrolment pinned; a later one that the store holds goes before it.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub(crate) fn open(
        folder: &Path,
        custody: Arc<Custody>,
        signer: [u8; 32],
    ) -> Result<Self, Error> {
        // A snapshot that was not whole when the process ended is worth nothing.
        remove_if_there(&folder.join(LOADING))?;
        let path = folder.join(FILE);
        let (database, position, signer) = match Self::open_file(&path, signer) {
            Ok(opened) => opened,
            Err(error) if error.is_unreadable() => {
                tracing::error!(error = %Chain(&error), "the edge's store cannot be read; it is moved aside and taken anew");
                fs::rename(&path, folder.join(UNREADABLE))?;
                Self::open_file(&path, signer)?
            }
            Err(error) => return Err(error),
        };
        let store = Self {
            folder: folder.to_owned(),
            database: RwLock::new(Arc::new(database)),
            position: RwLock::new(position),
            signer: RwLock::new(signer),
            custody,
            stamps: Stamps::new(),
        };
        let own = store
            .read(|rows| rows.get::<RegionKey>(&Key::region_key(store.custody.edge().as_str())))?
            .0;
        if let Some(row) = own {
            store.custody.learn(&row);
        }
        Ok(store)
    }

    fn open_file(path: &Path, signer: [u8; 32]) -> Result<(Database, Position, [u8; 32]), Error> {
        let database = Database::builder()
            .set_cache_size(PAGE_CACHE)
            .create(path)?;
        restrict(path)?;
        let read = database.begin_read()?;
        match read.open_table(META) {
            Ok(meta) => {
                let get = |name: &str| -> Result<Option<Vec<u8>>, Error> {
                    Ok(meta.get(name)?.map(|value| value.value().to_vec()))
                };
                let format: u16 = get(META_FORMAT)?
                    .as_deref()
                    .and_then(decode)
                    .ok_or(Error::Malformed)?;
                if format == 1 {
                    drop(meta);
                    drop(read);
                    crate::upgrade::rows_from_1(&database, ROWS, META)?;
                    drop(database);
                    return Self::open_file(path, signer);
                }
                if format != FORMAT {
                    return Err(Error::Malformed);
                }
                let position = get(META_POSITION)?
                    .as_deref()
                    .and_then(decode)
                    .ok_or(Error::Malformed)?;
                let signer = get(META_SIGNER)?
                    .as_deref()
                    .and_then(decode)
                    .unwrap_or(signer);
                drop(meta);
                drop(read);
                Ok((database, position, signer))
            }
            Err(redb::TableError::TableDoesNotExist(_)) => {
                drop(read);
                let transaction = begin(&database)?;
                write_meta(&transaction, Position::default(), signer)?;
                transaction.open_table(ROWS)?;
                transaction.open_table(WAITING)?;
                transaction.commit()?;
                Ok((database, Position::default(), signer))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Where the rows stand.
    pub fn position(&self) -> Position {
        *self.position.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The signer that messages are checked against.
    pub(crate) fn signer(&self) -> [u8; 32] {
        *self.signer.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pins another signer, named by the former one.
    pub(crate) fn pin(&self, signer: [u8; 32]) -> Result<(), Error> {
        let database = self.database();
        let transaction = begin(&database)?;
        write_meta(&transaction, self.position(), signer)?;
        transaction.commit()?;
        *self.signer.write().unwrap_or_else(PoisonError::into_inner) = signer;
        Ok(())
    }

    fn database(&self) -> Arc<Database> {
        self.database
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Reads rows as of one moment, and says from which they came.
    pub(crate) fn read<T>(
        &self,
        mut join: impl FnMut(&mut Rows<'_>) -> Result<T, Error>,
    ) -> Result<(T, Provenance), Error> {
        // A stamp that is read after the rows changed would vouch for rows that were read before. Since a change raises the
        // epoch before any stamp, an unchanged epoch says that the stamps are no younger than the rows.
        for turn in 0.. {
            let epoch = self.stamps.epoch.load(Ordering::SeqCst);
            let table = self.database().begin_read()?.open_table(ROWS)?;
            let mut rows = Rows {
                table,
                stamps: &self.stamps,
                provenance: Provenance::default(),
            };
            let joined = join(&mut rows)?;
            let steady = self.stamps.epoch.load(Ordering::SeqCst) == epoch;
            if steady || turn == 3 {
                rows.provenance.fleeting |= !steady;
                return Ok((joined, rows.provenance));
            }
        }
        unreachable!("the loop above ends by returning")
    }

    /// Whether the rows that something was joined from are still the same.
    pub(crate) fn holds(&self, provenance: &Provenance) -> bool {
        !provenance.fleeting
            && provenance.stamps[..usize::from(provenance.count)]
                .iter()
                .all(|(slot, stamp)| self.stamps.get(*slot) == *stamp)
    }

    /// Applies deltas that follow each other, parts of deltas included, in one transaction. Those that bring nothing new are passed over.
    ///
    /// # Errors
    /// [`Error::Gap`] or [`Error::Generation`] when a delta does not continue what is there; nothing is applied then.
    pub(crate) fn apply(&self, deltas: &[Delta]) -> Result<Applied, Error> {
        let before = self.position();
        let mut position = before;
        let mut fresh = Vec::with_capacity(deltas.len());
        for delta in deltas {
            if position == Position::default() && delta.from == 0 {
                position.generation = delta.generation;
            }
            match delta.generation.cmp(&position.generation) {
                // Sent before a restore, and taken from the queue after it: as old as a delta of an earlier sequence.
                std::cmp::Ordering::Less => continue,
                std::cmp::Ordering::Greater => return Err(Error::Generation),
                std::cmp::Ordering::Equal => {}
            }
            // A part of a delta that is to come has `to` equal to `from` and brings rows without moving the edge on.
            let part = delta.from == delta.to && delta.to == position.sequence;
            if delta.from == delta.to && delta.to < position.sequence && !delta.changes.is_empty() {
                // A part of a delta that began before where this edge is: what it brings may be newer or older than what is
                // here, and without it the delta's last part would leave rows out. Asking tells what is true now.
                return Err(Error::Gap);
            }
            if delta.to <= position.sequence && !part {
                continue;
            }
            if delta.from > position.sequence || delta.to < delta.from {
                return Err(Error::Gap);
            }
            position.sequence = delta.to;
            position.time = position.time.max(delta.time);
            fresh.push(delta);
        }
        if fresh.is_empty() {
            return Ok(Applied::default());
        }

        let database = self.database();
        let mut applied = Applied::default();
        // Region keys first: bundles of the same message may be sealed to them.
        let own = Key::region_key(self.custody.edge().as_str());
        let mut learned = false;
        for change in fresh
            .iter()
            .flat_map(|delta| &delta.changes)
            .filter(|change| change.key == own)
        {
            if let Some(row) = change.value.as_deref().and_then(decode::<RegionKey>) {
                self.custody.learn(&row);
                learned = true;
            }
        }
        let changes: Vec<&Change> = fresh.iter().flat_map(|delta| &delta.changes).collect();
        let rows = changes
            .iter()
            .map(|change| (change.key, change.value.as_deref()))
            .collect();
        let prepared = self.prepare(&database, rows, &mut applied)?;

        let transaction = begin(&database)?;
        {
            let mut rows = transaction.open_table(ROWS)?;
            let mut waiting = transaction.open_table(WAITING)?;
            for row in &prepared {
                write_row(&mut rows, &mut waiting, row)?;
                if row.key.kind == Kind::Bundle && row.value.is_none() {
                    applied.removed.push(row.key.id);
                }
            }
        }
        if learned {
            self.open_waiting(&transaction)?;
        }
        write_meta(&transaction, position, self.signer())?;
        transaction.commit()?;
        self.stamps
            .changed(changes.iter().map(|change| &change.key));
        *self
            .position
            .write()
            .unwrap_or_else(PoisonError::into_inner) = position;
        Ok(applied)
    }

    /// Checks rows and seals the keys of bundles again, on several threads when they are many.
    fn prepare(
        &self,
        database: &Database,
        rows: Vec<(Key, Option<&[u8]>)>,
        applied: &mut Applied,
    ) -> Result<Vec<Prepared>, Error> {
        // A bundle whose key the edge holds already needs no opening: a rewrap to a new region key brings all of them.
        let known = database.begin_read()?.open_table(ROWS)?;
        let held = |leaf: &Digest| -> Option<StoredBundle> {
            let row = known
                .get(&row_key(&Key {
                    kind: Kind::Bundle,
                    id: *leaf,
                }))
                .ok()??;
            decode(row.value())
        };
        let one = |(key, value): &(Key, Option<&[u8]>)| -> (Prepared, bool, bool) {
            let Some(value) = value else {
                return (
                    Prepared {
                        key: *key,
                        value: None,
                        waiting: false,
                    },
                    false,
                    false,
                );
            };
            let unreadable = || {
                (
                    Prepared {
                        key: *key,
                        value: None,
                        waiting: false,
                    },
                    true,
                    false,
                )
            };
            if value.len() > VALUE_MAX {
                return unreadable();
            }
            let readable = match key.kind {
                Kind::Claim => decode::<Claim>(value)
                    .is_some_and(|claim| Key::claim(claim.host.as_ref()) == *key),
                Kind::Names => decode::<Names>(value).is_some_and(|names| {
                    Key::names(names.project.as_str(), names.name.as_ref()) == *key
                }),
                Kind::Resource => decode::<Resource>(value)
                    .is_some_and(|resource| Key::resource(resource.id) == *key),
                Kind::RegionKey => decode::<RegionKey>(value)
                    .is_some_and(|row| Key::region_key(row.edge.as_str()) == *key),
                Kind::Bundle => {
                    let Some(bundle) = decode::<Bundle>(value) else {
                        return unreadable();
                    };
                    if bundle.chain.first().is_none_or(|leaf| {
                        Key::bundle(bundle.project.as_str(), &fingerprint(leaf)) != *key
                    }) {
                        return unreadable();
                    }
                    let (stored, opened) = self.store_bundle(bundle, held(&key.id));
                    let waiting = matches!(stored.key, StoredKey::Region(..));
                    return (
                        Prepared {
                            key: *key,
                            value: Some(encode(&stored)),
                            waiting,
                        },
                        false,
                        !opened,
                    );
                }
            };
            if readable {
                (
                    Prepared {
                        key: *key,
                        value: Some(value.to_vec()),
                        waiting: false,
                    },
                    false,
                    false,
                )
            } else {
                unreadable()
            }
        };
        let bundles = rows
            .iter()
            .filter(|(key, value)| key.kind == Kind::Bundle && value.is_some())
            .count();
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(PARALLEL_MAX));
        let prepared: Vec<_> = if bundles < PARALLEL_FROM || threads == 1 {
            rows.iter().map(one).collect()
        } else {
            let share = rows.len().div_ceil(threads);
            std::thread::scope(|scope| {
                let shares: Vec<_> = rows
                    .chunks(share)
                    .map(|share| scope.spawn(|| share.iter().map(one).collect::<Vec<_>>()))
                    .collect();
                shares
                    .into_iter()
                    .flat_map(|share| {
                        share
                            .join()
                            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                    })
                    .collect()
            })
        };
        Ok(prepared
            .into_iter()
            .map(|(row, unreadable, unopened)| {
                applied.unreadable += usize::from(unreadable);
                applied.unopened += usize::from(unopened);
                row
            })
            .collect())
    }

    /// Says with `false` that the key stays sealed as it came.
    fn store_bundle(&self, bundle: Bundle, held: Option<StoredBundle>) -> (StoredBundle, bool) {
        let key = match held {
            Some(StoredBundle {
                spki,
                key: StoredKey::Local(sealed),
                ..
            }) if spki == bundle.spki => StoredKey::Local(sealed),
            _ => match self.custody.open_region(
                &bundle.project,
                &bundle.spki,
                bundle.region_key_version,
                &bundle.sealed_key,
            ) {
                Some(key) => {
                    StoredKey::Local(self.custody.seal(&bundle.project, &bundle.spki, &key))
                }
                None => StoredKey::Region(bundle.region_key_version, bundle.sealed_key),
            },
        };
        let opened = matches!(key, StoredKey::Local(_));
        let Bundle {
            project,
            certificate,
            version,
            spki,
            chain,
            ..
        } = bundle;
        (
            StoredBundle {
                project,
                certificate,
                version,
                spki,
                chain,
                key,
            },
            opened,
        )
    }

    /// Opens what waited for a region key that is here now.
    fn open_waiting(&self, transaction: &WriteTransaction) -> Result<(), Error> {
        let mut rows = transaction.open_table(ROWS)?;
        let mut waiting = transaction.open_table(WAITING)?;
        let leaves: Vec<[u8; 32]> = waiting
            .iter()?
            .map(|entry| Ok(*entry?.0.value()))
            .collect::<Result<_, redb::StorageError>>()?;
        for leaf in leaves {
            let key = row_key(&Key {
                kind: Kind::Bundle,
                id: Digest(leaf),
            });
            let stored = rows
                .get(&key)?
                .and_then(|row| decode::<StoredBundle>(row.value()));
            let Some(mut stored) = stored else {
                waiting.remove(&leaf)?;
                continue;
            };
            if let StoredKey::Region(version, sealed) = &stored.key
                && let Some(opened) =
                    self.custody
                        .open_region(&stored.project, &stored.spki, *version, sealed)
            {
                stored.key =
                    StoredKey::Local(self.custody.seal(&stored.project, &stored.spki, &opened));
                rows.insert(&key, encode(&stored).as_slice())?;
                waiting.remove(&leaf)?;
            }
        }
        Ok(())
    }

    /// Begins to load a snapshot beside the rows that serve.
    pub(crate) fn load(&self) -> Result<Load, Error> {
        let path = self.folder.join(LOADING);
        remove_if_there(&path)?;
        let database = Database::builder()
            .set_cache_size(LOADING_CACHE)
            .create(&path)?;
        restrict(&path)?;
        let transaction = begin(&database)?;
        transaction.open_table(ROWS)?;
        transaction.open_table(WAITING)?;
        transaction.commit()?;
        Ok(Load {
            database,
            position: None,
            cursor: None,
            whole: false,
            applied: Applied::default(),
        })
    }

    /// Adds a part to a snapshot and returns the cursor to ask for next, None when it is whole.
    ///
    /// # Errors
    /// [`Error::Cursor`] when the part does not continue the one before it, [`Error::Rollback`] when the snapshot is older
    /// than what the edge serves.
    pub(crate) fn add(&self, load: &mut Load, chunk: &Chunk) -> Result<Option<Cursor>, Error> {
        let too_long = chunk
            .next
            .as_ref()
            .is_some_and(|cursor| cursor.0.len() > CURSOR_MAX);
        if load.whole
            || chunk.after != load.cursor
            || too_long
            || (chunk.next.is_some() && chunk.next == chunk.after)
        {
            return Err(Error::Cursor);
        }
        let mut position = load.position.unwrap_or(Position {
            generation: chunk.generation,
            sequence: chunk.sequence,
            time: chunk.time,
        });
        if position.generation != chunk.generation {
            return Err(Error::Generation);
        }
        // Deltas go on from the oldest part; the rows of the younger ones are then applied again, without harm.
        position.sequence = position.sequence.min(chunk.sequence);
        position.time = position.time.min(chunk.time);
        let serving = self.position();
        if (position.generation, position.sequence) < (serving.generation, serving.sequence) {
            return Err(Error::Rollback);
        }
        let own = Key::region_key(self.custody.edge().as_str());
        for (_, value) in chunk.rows.iter().filter(|(key, _)| *key == own) {
            if let Some(row) = decode::<RegionKey>(value) {
                self.custody.learn(&row);
            }
        }
        let rows = chunk
            .rows
            .iter()
            .map(|(key, value)| (*key, Some(value.as_slice())))
            .collect();
        let mut prepared = self.prepare(&self.database(), rows, &mut load.applied)?;
        prepared.sort_unstable_by_key(|row| row.key);
        let mut transaction = load.database.begin_write()?;
        // The file is worth nothing until it is whole, so only the last commit has to reach the disk.
        transaction.set_durability(Durability::None)?;
        {
            let mut rows = transaction.open_table(ROWS)?;
            let mut waiting = transaction.open_table(WAITING)?;
            for row in &prepared {
                write_row(&mut rows, &mut waiting, row)?;
            }
        }
        transaction.commit()?;
        load.position = Some(position);
        load.cursor.clone_from(&chunk.next);
        load.whole = chunk.next.is_none();
        Ok(chunk.next.clone())
    }

    /// Lets a whole snapshot take the place of the rows that serve.
    ///
    /// # Errors
    /// [`Error::Cursor`] when it is not whole.
    pub(crate) fn swap(
        &self,
        load: Load,
        open: impl Iterator<Item = Digest>,
    ) -> Result<Applied, Error> {
        let Load {
            database,
            position: Some(position),
            whole: true,
            mut applied,
            ..
        } = load
        else {
            return Err(Error::Cursor);
        };
        let transaction = begin(&database)?;
        self.open_waiting(&transaction)?;
        write_meta(&transaction, position, self.signer())?;
        transaction.commit()?;
        drop(database);
        let path = self.folder.join(FILE);
        fs::rename(self.folder.join(LOADING), &path)?;
        fs::File::open(&self.folder)?.sync_all()?;
        // Opened anew for the smaller page cache.
        let database = Arc::new(Database::builder().set_cache_size(PAGE_CACHE).open(&path)?);
        let rows = database.begin_read()?.open_table(ROWS)?;
        for leaf in open {
            if rows
                .get(&row_key(&Key {
                    kind: Kind::Bundle,
                    id: leaf,
                }))?
                .is_none()
            {
                applied.removed.push(leaf);
            }
        }
        drop(rows);
        *self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner) = database;
        self.stamps.all_changed();
        *self
            .position
            .write()
            .unwrap_or_else(PoisonError::into_inner) = position;
        Ok(applied)
    }

    /// The custody of the keys in this store.
    pub(crate) fn custody(&self) -> &Custody {
        &self.custody
    }

    /// How many claims and bundles are in the store. Goes through their keys: a second with some millions of them. Blocks.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) fn count(&self) -> Result<(u64, u64), Error> {
        let table = self.database().begin_read()?.open_table(ROWS)?;
        let count = |kind| -> Result<u64, Error> {
            let of = |id| {
                row_key(&Key {
                    kind,
                    id: Digest([id; 32]),
                })
            };
            let mut rows = 0;
            for row in table.range::<&RowKey>(&of(0)..=&of(0xff))? {
                row?;
                rows += 1;
            }
            Ok(rows)
        };
        Ok((count(Kind::Claim)?, count(Kind::Bundle)?))
    }

    /// The hosts whose claim is in the store, for tests and for people who look for one.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn hosts(&self) -> Result<BTreeSet<Host>, Error> {
        let table = self.database().begin_read()?.open_table(ROWS)?;
        let from = row_key(&Key {
            kind: Kind::Claim,
            id: Digest([0; 32]),
        });
        let to = row_key(&Key {
            kind: Kind::Claim,
            id: Digest([0xff; 32]),
        });
        let mut hosts = BTreeSet::new();
        for row in table.range::<&RowKey>(&from..=&to)? {
            let claim: Claim = decode(row?.1.value()).ok_or(Error::Malformed)?;
            hosts.insert(claim.host);
        }
        Ok(hosts)
    }
}

/// A snapshot that is being loaded.
pub(crate) struct Load {
    database: Database,
    position: Option<Position>,
    cursor: Option<Cursor>,
    whole: bool,
    applied: Applied,
}

impl Load {
    /// The cursor to ask for next.
    pub(crate) fn cursor(&self) -> Option<&Cursor> {
        self.cursor.as_ref()
    }

    /// The generation that is being loaded; None before the first part.
    pub(crate) fn generation(&self) -> Option<u64> {
        self.position.map(|position| position.generation)
    }
}

pub(crate) fn begin(database: &Database) -> Result<WriteTransaction, Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    transaction.set_two_phase_commit(true);
    Ok(transaction)
}

fn write_meta(
    transaction: &WriteTransaction,
    position: Position,
    signer: [u8; 32],
) -> Result<(), Error> {
    let mut meta = transaction.open_table(META)?;
    meta.insert(META_FORMAT, encode(&FORMAT).as_slice())?;
    meta.insert(META_POSITION, encode(&position).as_slice())?;
    meta.insert(META_SIGNER, encode(&signer).as_slice())?;
    Ok(())
}

/// Makes a store ask for a snapshot as an empty one does, and go on serving what it holds until that is whole. The time of its
/// last event stays: the clock must not fall behind it.
pub(crate) fn restart(transaction: &WriteTransaction) -> Result<(), Error> {
    let mut meta = transaction.open_table(META)?;
    let time = meta
        .get(META_POSITION)?
        .and_then(|position| decode::<Position>(position.value()))
        .map_or(0, |position| position.time);
    let position = Position {
        time,
        ..Position::default()
    };
    meta.insert(META_FORMAT, encode(&FORMAT).as_slice())?;
    meta.insert(META_POSITION, encode(&position).as_slice())?;
    Ok(())
}

fn write_row(
    rows: &mut redb::Table<'_, &'static RowKey, &'static [u8]>,
    waiting: &mut redb::Table<'_, &'static [u8; 32], ()>,
    row: &Prepared,
) -> Result<(), Error> {
    match &row.value {
        Some(value) => rows.insert(&row_key(&row.key), value.as_slice())?,
        None => rows.remove(&row_key(&row.key))?,
    };
    if row.key.kind == Kind::Bundle {
        if row.waiting {
            waiting.insert(&row.key.id.0, ())?;
        } else {
            waiting.remove(&row.key.id.0)?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Sealed or not, what the edge keeps is its own business.
fn restrict(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
}

/// An error with its sources, in one line.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
