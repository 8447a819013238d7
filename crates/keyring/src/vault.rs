//! Custody of keys on a control node.
//!
//! The root key wraps a key for each project, the regions' keys, the ingestion keys and named
//! secrets; a project's key wraps one fresh data key for each private key. The truth is the stream
//! of sealed records; `vault.redb` is a copy of it that opens without the network. So whatever
//! makes a record returns it as a [`SealedBlob`] and changes nothing here: the caller publishes it
//! and hands it back with its stream sequence to [`Vault::install`], as does whoever follows the
//! stream. A lost file is rebuilt from the stream and the root key in the same way.
//!
//! Deleting is level-triggered too: what is forgotten or replaced here is owed to the stream until
//! [`Vault::deletion_done`], so a crash in between loses nothing ([`Vault::owed_deletions`]).

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io;
use std::ops::{Bound, RangeInclusive};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use data_encoding::HEXLOWER;
use redb::{
    Database, DatabaseError, ReadOnlyDatabase, ReadableDatabase, ReadableTable, TableDefinition,
    TableError, WriteTransaction,
};
use zeroize::Zeroizing;

use crate::aead;
use crate::blob::{self, BlobError, BlobKind, SealedBlob, View, check_name};
use crate::hpke::{PUBLIC, Recipient, SealedKey, key_id};
use crate::key::{KeyError, PrivateKey};
use crate::random;
use crate::region::{RegionError, RegionKey, RegionSealed};
use crate::root::RootKey;
use crate::secret::Secret;

/// Row key -> (stream sequence, record). Sequence 0 is a record that only this file has so far.
const ROWS: TableDefinition<'_, &[u8], (u64, &[u8])> = TableDefinition::new("sealed_v1");
/// Stream sequences that are still to be deleted from the stream.
const OWED: TableDefinition<'_, u64, ()> = TableDefinition::new("owed_deletions_v1");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta_v1");
const META_ROOT: &str = "root";
const META_HEAD: &str = "head";

/// Bytes of records from which on a page of an export ends; one record more may be in it.
const EXPORT_BYTES: usize = 256 * 1024;
/// Records that a page of an export names at most.
const EXPORT_ROWS: usize = 4_000;

type DataKey = Zeroizing<[u8; 32]>;

/// Why the vault could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The file could not be read or written. After a failed write, open it anew.
    #[error("the vault's file failed")]
    Database(#[source] Box<redb::Error>),
    /// The file could not be made.
    #[error("the vault's file could not be made")]
    Io(#[source] io::Error),
    /// The file, or a record, is wrapped by another root key.
    #[error("it is wrapped by root key {theirs}, but the root key given is {ours}")]
    WrongRoot {
        /// The id of the root key that is needed.
        theirs: String,
        /// The id of the root key that was given.
        ours: String,
    },
    /// The bytes are no record.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// A record does not open: damaged, or moved to where it does not belong.
    #[error("a sealed record of kind {0:?} does not open")]
    Unopenable(BlobKind),
    /// There is no such key here.
    #[error("the vault holds no such key")]
    NotFound,
    /// The project has no key yet: [`Vault::ensure_project_key`] makes one.
    #[error("the project has no key of its own yet")]
    NoProjectKey,
    /// The region has no key yet: [`Vault::new_region_key`] makes one.
    #[error("the region has no key yet")]
    NoRegionKey,
    /// So many private keys still need an older key of the project: see [`Vault::rewrap_project`].
    #[error("{0} private keys are still wrapped by an older key of the project")]
    StillWrapping(usize),
    /// Sealing to or opening for a region failed.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// What was sealed is no private key.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl<E: Into<redb::Error>> From<E> for VaultError {
    fn from(error: E) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

/// One private key that the vault holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub spki_sha256: [u8; 32],
    /// Where the record stands on the stream.
    pub sequence: u64,
}

/// What a rotation of a project's key asks for.
#[derive(Debug)]
pub struct Rotation {
    /// To be published and installed in this order: the new project key, then the living private
    /// keys, wrapped by it.
    pub put: Vec<SealedBlob>,
    /// Sequences to be deleted from the stream, but only after all of `put` is installed and
    /// [`Vault::destroy_retired`] has agreed.
    pub delete: Vec<u64>,
}

/// A page of [`Vault::export`].
#[derive(Debug)]
pub struct Export {
    /// The stream sequence of each record, 0 for one that the stream does not have yet, and its bytes where they are wanted.
    pub held: Vec<(u64, Option<SealedBlob>)>,
    /// Where the next page goes on; nothing after the last.
    pub next: Option<Vec<u8>>,
}

/// The public half of an ingestion key, as `query.….ingestion-key` gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestionPublic {
    /// Its name in [`SealedKey::kid`].
    pub kid: String,
    /// The X25519 public key.
    pub public: [u8; PUBLIC],
}

/// Sealed keys of a control node, in a file of their own.
pub struct Vault {
    database: Database,
    root: RootKey,
}

impl Vault {
    /// Opens `path`, or makes the file (mode 0600) if nothing is there.
    ///
    /// # Errors
    /// `WrongRoot`, before anything is written, when the file was made with another root key;
    /// `Database` when it is locked by another process or damaged.
    pub fn open(path: &Path, root: RootKey) -> Result<Self, VaultError> {
        let created = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        let database = match created {
            Ok(_) => Database::create(path)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                match ReadOnlyDatabase::open(path) {
                    Ok(reader) => check_root(&reader, &root)?,
                    // Left behind by a crash before its first commit, or in need of repair, which
                    // only a writing open can do; the check follows below either way.
                    Err(DatabaseError::RepairAborted | DatabaseError::Storage(_)) => {}
                    Err(error) => return Err(error.into()),
                }
                Database::create(path)?
            }
            Err(error) => return Err(VaultError::Io(error)),
        };
        check_root(&database, &root)?;
        let vault = Self { database, root };
        vault.write(|transaction| {
            transaction.open_table(ROWS)?;
            transaction.open_table(OWED)?;
            let mut meta = transaction.open_table(META)?;
            meta.insert(META_ROOT, &vault.root.id_bytes()[..])?;
            Ok(())
        })?;
        Ok(vault)
    }

    /// The id of the root key in use.
    pub fn root_id(&self) -> String {
        self.root.id()
    }

    // Installing what the stream holds.

    /// Takes over one record from the stream. Calling it again, or with an older record of the same
    /// name, changes nothing. Sequence 0 keeps a record here before the stream has it.
    ///
    /// # Errors
    /// When the record does not open with the keys that are here; nothing is changed then.
    pub fn install(&self, sequence: u64, blob: &SealedBlob) -> Result<(), VaultError> {
        self.install_all([(sequence, blob)])
    }

    /// Takes over many records in one durable transaction: all of them or none.
    ///
    /// # Errors
    /// As [`install`](Self::install).
    pub fn install_all<'a>(
        &self,
        records: impl IntoIterator<Item = (u64, &'a SealedBlob)>,
    ) -> Result<(), VaultError> {
        self.write(|transaction| {
            let mut rows = transaction.open_table(ROWS)?;
            let mut owed = transaction.open_table(OWED)?;
            let mut meta = transaction.open_table(META)?;
            let mut head = head_of(&meta)?;
            for (sequence, blob) in records {
                head = head.max(sequence);
                if sequence != 0 && owed.get(sequence)?.is_some() {
                    continue;
                }
                self.check(&rows, blob)?;
                let row = blob.row();
                let held = rows.get(&row[..])?.map(|held| held.value().0);
                match held {
                    Some(held) if sequence == held && held != 0 => {}
                    Some(held) if sequence < held => {
                        if sequence != 0 {
                            owed.insert(sequence, ())?;
                        }
                    }
                    _ => {
                        rows.insert(&row[..], (sequence, blob.as_bytes()))?;
                        if let Some(replaced) = held.filter(|held| *held != 0) {
                            owed.insert(replaced, ())?;
                        }
                        if blob.kind() == BlobKind::IngestionKey {
                            retire_ingestion_keys(&mut rows, &mut owed)?;
                        }
                    }
                }
            }
            meta.insert(META_HEAD, &head.to_be_bytes()[..])?;
            Ok(())
        })
    }

    /// The highest stream sequence that was installed: follow the stream from the next one.
    ///
    /// # Errors
    /// When the file fails.
    pub fn head(&self) -> Result<u64, VaultError> {
        let transaction = self.database.begin_read()?;
        head_of(&transaction.open_table(META)?)
    }

    /// Drops every record that the stream no longer holds: those with a sequence from 1 to `up_to`
    /// that are not among `live`. For a node that was away while others deleted.
    ///
    /// # Errors
    /// When the file fails.
    pub fn retain(&self, up_to: u64, live: &BTreeSet<u64>) -> Result<(), VaultError> {
        let gone = |sequence: u64| sequence != 0 && sequence <= up_to && !live.contains(&sequence);
        self.write(|transaction| {
            transaction
                .open_table(ROWS)?
                .retain(|_, (sequence, _)| !gone(sequence))?;
            transaction
                .open_table(OWED)?
                .retain(|sequence, ()| !gone(sequence))?;
            Ok(())
        })
    }

    /// Stream sequences that are to be deleted from the stream, oldest first, at most `limit`.
    ///
    /// # Errors
    /// When the file fails.
    pub fn owed_deletions(&self, limit: usize) -> Result<Vec<u64>, VaultError> {
        let transaction = self.database.begin_read()?;
        let owed = transaction.open_table(OWED)?;
        owed.iter()?
            .take(limit)
            .map(|entry| Ok(entry?.0.value()))
            .collect()
    }

    /// Notes that the stream has deleted these.
    ///
    /// # Errors
    /// When the file fails.
    pub fn deletion_done(&self, sequences: &[u64]) -> Result<(), VaultError> {
        self.write(|transaction| {
            let mut owed = transaction.open_table(OWED)?;
            for sequence in sequences {
                owed.remove(sequence)?;
            }
            Ok(())
        })
    }

    // Projects and their private keys.

    /// Makes a key for the project if it has none: a record to publish and install.
    ///
    /// # Errors
    /// When the file fails or the name cannot be used.
    pub fn ensure_project_key(&self, project: &str) -> Result<Option<SealedBlob>, VaultError> {
        check_name(project)?;
        let rows = self.rows()?;
        match current_project_key(&rows, project)? {
            Some(_) => Ok(None),
            None => self.new_project_key(project).map(|(blob, ..)| Some(blob)),
        }
    }

    /// Seals a private key for a project under a fresh data key: a record to publish and install.
    ///
    /// # Errors
    /// `NoProjectKey` when the project has no key yet.
    pub fn seal_private_key(
        &self,
        project: &str,
        key: &PrivateKey,
    ) -> Result<SealedBlob, VaultError> {
        check_name(project)?;
        let rows = self.rows()?;
        let (_, record) = current_project_key(&rows, project)?.ok_or(VaultError::NoProjectKey)?;
        let (id, project_key) = self.open_project_key(&record)?;
        let data_key = random::key();
        let spki = key.spki_sha256();
        let sealed = aead::seal(
            &data_key,
            &private_key_aad(project, &spki),
            key.danger_to_pkcs8_der().expose(),
        );
        private_key_blob(project, &spki, &id, &project_key, &data_key, &sealed)
    }

    /// Whether the vault holds this private key.
    ///
    /// # Errors
    /// When the file fails.
    pub fn contains(&self, project: &str, spki: &[u8; 32]) -> Result<bool, VaultError> {
        Ok(self.sequence_of(project, spki)?.is_some())
    }

    /// Where the record of this private key stands on the stream.
    ///
    /// # Errors
    /// When the file fails.
    pub fn sequence_of(&self, project: &str, spki: &[u8; 32]) -> Result<Option<u64>, VaultError> {
        let row = blob::row(BlobKind::PrivateKey, project, spki);
        Ok(self.rows()?.get(&row[..])?.map(|held| held.value().0))
    }

    /// The private keys of a project, ordered by their names.
    ///
    /// # Errors
    /// When the file fails.
    pub fn list(&self, project: &str) -> Result<Vec<Held>, VaultError> {
        check_name(project)?;
        let held = private_keys(&self.rows()?, project)?
            .into_iter()
            .filter_map(|(sequence, record)| {
                let spki_sha256 = record.spki_sha256()?;
                Some(Held {
                    spki_sha256,
                    sequence,
                })
            })
            .collect();
        Ok(held)
    }

    /// Drops a private key here and notes that its record is to be deleted from the stream.
    /// Returns the sequence of that record, or nothing when there is no such key.
    ///
    /// # Errors
    /// When the file fails.
    pub fn forget(&self, project: &str, spki: &[u8; 32]) -> Result<Option<u64>, VaultError> {
        let row = blob::row(BlobKind::PrivateKey, project, spki);
        self.write(|transaction| {
            let mut rows = transaction.open_table(ROWS)?;
            let sequence = rows.remove(&row[..])?.map(|held| held.value().0);
            if let Some(sequence) = sequence.filter(|sequence| *sequence != 0) {
                transaction.open_table(OWED)?.insert(sequence, ())?;
            }
            Ok(sequence)
        })
    }

    /// Opens a private key: for a CSR, and for an export that was authorised.
    ///
    /// # Errors
    /// `NotFound`, or `Unopenable` when the record was damaged or moved.
    pub fn open_private_key(
        &self,
        project: &str,
        spki: &[u8; 32],
    ) -> Result<PrivateKey, VaultError> {
        let rows = self.rows()?;
        let row = blob::row(BlobKind::PrivateKey, project, spki);
        let record = rows.get(&row[..])?.ok_or(VaultError::NotFound)?;
        let record = SealedBlob::from_bytes(record.value().1.to_vec())?;
        let data_key = self.open_data_key(&rows, &record)?;
        let damaged = || VaultError::Unopenable(BlobKind::PrivateKey);
        // The row must hold what its key says, whoever wrote the file.
        let View::PrivateKey { sealed, .. } = record.view() else {
            return Err(damaged());
        };
        let der = aead::open(&data_key, &private_key_aad(project, spki), sealed)
            .map_err(|_| damaged())?;
        let key = PrivateKey::from_der(der.expose())?;
        if key.spki_sha256() != *spki {
            return Err(damaged());
        }
        Ok(key)
    }

    /// Makes a new key for the project and wraps the data keys of its living private keys with it.
    /// No private key is opened. Nothing changes here until the result is installed.
    ///
    /// # Errors
    /// When the file fails or a record does not open.
    pub fn rotate_project_key(&self, project: &str) -> Result<Rotation, VaultError> {
        check_name(project)?;
        let (project_key, id, key) = self.new_project_key(project)?;
        let rows = self.rows()?;
        let mut rotation = Rotation {
            put: vec![project_key],
            delete: Vec::new(),
        };
        for (sequence, record) in private_keys(&rows, project)? {
            rotation.put.push(self.rewrap(&rows, &record, &id, &key)?);
            rotation.delete.push(sequence);
        }
        for (sequence, _) in project_keys(&rows, project)? {
            rotation.delete.push(sequence);
        }
        rotation.delete.retain(|sequence| *sequence != 0);
        rotation.delete.sort_unstable();
        Ok(rotation)
    }

    /// Wraps with the project's newest key what is still wrapped by an older one, because a
    /// rotation was interrupted or a key was sealed while it ran: records to publish and install.
    ///
    /// # Errors
    /// When the file fails or a record does not open.
    pub fn rewrap_project(&self, project: &str) -> Result<Vec<SealedBlob>, VaultError> {
        check_name(project)?;
        let rows = self.rows()?;
        let (_, newest) = current_project_key(&rows, project)?.ok_or(VaultError::NoProjectKey)?;
        let (id, key) = self.open_project_key(&newest)?;
        let mut blobs = Vec::new();
        for (_, record) in private_keys(&rows, project)? {
            if !wrapped_by(&record, &id) {
                blobs.push(self.rewrap(&rows, &record, &id, &key)?);
            }
        }
        Ok(blobs)
    }

    /// Destroys every key of the project but the newest, and returns the sequences to be deleted
    /// from the stream, which are noted as owed too. From then on records wrapped by them, wherever
    /// copies survive, open only for whoever kept a copy of the destroyed key and the root key.
    ///
    /// # Errors
    /// `StillWrapping`, and nothing is changed, while a living key needs an older one.
    pub fn destroy_retired(&self, project: &str) -> Result<Vec<u64>, VaultError> {
        check_name(project)?;
        self.write(|transaction| {
            let mut rows = transaction.open_table(ROWS)?;
            let Some((_, newest)) = current_project_key(&rows, project)? else {
                return Ok(Vec::new());
            };
            let View::ProjectKey { id, .. } = newest.view() else {
                return Err(VaultError::Unopenable(BlobKind::ProjectKey));
            };
            let waiting = private_keys(&rows, project)?
                .iter()
                .filter(|(_, record)| !wrapped_by(record, &id))
                .count();
            if waiting > 0 {
                return Err(VaultError::StillWrapping(waiting));
            }
            let mut owed = transaction.open_table(OWED)?;
            let mut destroyed = Vec::new();
            for (sequence, record) in project_keys(&rows, project)? {
                if record != newest {
                    rows.remove(&record.row()[..])?;
                    if sequence != 0 {
                        owed.insert(sequence, ())?;
                        destroyed.push(sequence);
                    }
                }
            }
            Ok(destroyed)
        })
    }

    /// Drops every private key and every key of a project that is deleted, and returns the sequences
    /// to be deleted from the stream, which are noted as owed too.
    ///
    /// # Errors
    /// When the file fails.
    pub fn destroy_project(&self, project: &str) -> Result<Vec<u64>, VaultError> {
        check_name(project)?;
        self.write(|transaction| {
            let mut rows = transaction.open_table(ROWS)?;
            let mut owed = transaction.open_table(OWED)?;
            let mut destroyed = Vec::new();
            let keys = private_keys(&rows, project)?;
            for (sequence, record) in keys.into_iter().chain(project_keys(&rows, project)?) {
                rows.remove(&record.row()[..])?;
                if sequence != 0 {
                    owed.insert(sequence, ())?;
                    destroyed.push(sequence);
                }
            }
            Ok(destroyed)
        })
    }

    // Regions.

    /// Makes the next version of a region's key: a record to publish and install.
    ///
    /// # Errors
    /// When the file fails or the name cannot be used.
    pub fn new_region_key(&self, region: &str) -> Result<SealedBlob, VaultError> {
        check_name(region)?;
        let version = match self.newest_region_key(region)? {
            Some(newest) => newest.version() + 1,
            None => 1,
        };
        let recipient = Recipient::generate();
        let public = recipient.public();
        self.wrap(
            BlobKind::RegionKey,
            &[region.as_bytes(), &version.to_be_bytes(), &public],
            recipient.danger_to_secret().expose(),
        )
    }

    /// The version and the public half of a region's newest key.
    ///
    /// # Errors
    /// When the file fails.
    pub fn region_key_public(
        &self,
        region: &str,
    ) -> Result<Option<(u32, [u8; PUBLIC])>, VaultError> {
        Ok(self
            .newest_region_key(region)?
            .map(|key| (key.version(), key.public())))
    }

    /// Seals one version of a region's key to an enrolled edge: bytes for
    /// [`EdgeKeys::open_region_key`](crate::EdgeKeys::open_region_key).
    ///
    /// # Errors
    /// `NoRegionKey` when there is no such version.
    pub fn seal_region_key(
        &self,
        region: &str,
        version: u32,
        edge: &str,
        edge_public: &[u8; PUBLIC],
    ) -> Result<Vec<u8>, VaultError> {
        let row = blob::row(BlobKind::RegionKey, region, &version.to_be_bytes());
        let rows = self.rows()?;
        let record = rows.get(&row[..])?.ok_or(VaultError::NoRegionKey)?;
        let record = SealedBlob::from_bytes(record.value().1.to_vec())?;
        Ok(self
            .open_region_key(&record)?
            .seal_to_edge(edge, edge_public)?)
    }

    /// Destroys the versions of a region's key before `first_kept` and returns the sequences to be
    /// deleted from the stream, which are noted as owed too.
    ///
    /// # Errors
    /// When the file fails.
    pub fn destroy_region_keys(
        &self,
        region: &str,
        first_kept: u32,
    ) -> Result<Vec<u64>, VaultError> {
        check_name(region)?;
        self.write(|transaction| {
            let mut rows = transaction.open_table(ROWS)?;
            let mut owed = transaction.open_table(OWED)?;
            let first = blob::row(BlobKind::RegionKey, region, &0_u32.to_be_bytes());
            let end = blob::row(BlobKind::RegionKey, region, &first_kept.to_be_bytes());
            let mut destroyed = Vec::new();
            for entry in rows.extract_from_if(&first[..]..&end[..], |_, _| true)? {
                let sequence = entry?.1.value().0;
                if sequence != 0 {
                    owed.insert(sequence, ())?;
                    destroyed.push(sequence);
                }
            }
            Ok(destroyed)
        })
    }

    /// Seals a private key to the newest version of a region's key.
    ///
    /// # Errors
    /// `NoRegionKey`, and as [`open_private_key`](Self::open_private_key).
    pub fn reseal_for_region(
        &self,
        project: &str,
        spki: &[u8; 32],
        region: &str,
    ) -> Result<RegionSealed, VaultError> {
        let (version, public) = self
            .region_key_public(region)?
            .ok_or(VaultError::NoRegionKey)?;
        let key = self.open_private_key(project, spki)?;
        Ok(RegionSealed::seal(project, &key, region, version, &public)?)
    }

    // The ingestion door.

    /// Makes a new ingestion key: a record to publish and install. The one before it is kept, older
    /// ones go when it is installed.
    ///
    /// # Errors
    /// When the record cannot be made.
    pub fn new_ingestion_key(&self) -> Result<SealedBlob, VaultError> {
        let recipient = Recipient::generate();
        self.wrap(
            BlobKind::IngestionKey,
            &[&recipient.public()],
            recipient.danger_to_secret().expose(),
        )
    }

    /// The ingestion keys, opened for the role that needs them.
    ///
    /// # Errors
    /// When the file fails or a record does not open.
    pub fn ingestion_keys(&self) -> Result<IngestionKeys, VaultError> {
        let rows = self.rows()?;
        let mut records = records(&rows, named::<32>(BlobKind::IngestionKey, ""))?;
        records.sort_by_key(|(sequence, _)| std::cmp::Reverse(*sequence));
        let keys = records
            .iter()
            .map(|(_, record)| {
                let View::IngestionKey { public, .. } = record.view() else {
                    return Err(VaultError::Unopenable(BlobKind::IngestionKey));
                };
                let secret = self.unwrap(record)?;
                recipient(&secret, &public, BlobKind::IngestionKey)
            })
            .collect::<Result<_, _>>()?;
        Ok(IngestionKeys { keys })
    }

    // Named secrets.

    /// Seals a secret under a name: a record to publish and install.
    ///
    /// # Errors
    /// When the name cannot be used or the secret is longer than a record.
    pub fn seal_secret(&self, name: &str, secret: &[u8]) -> Result<SealedBlob, VaultError> {
        check_name(name)?;
        self.wrap(BlobKind::Secret, &[name.as_bytes()], secret)
    }

    /// Opens a secret by its name.
    ///
    /// # Errors
    /// When the file fails or the record does not open.
    pub fn open_secret(&self, name: &str) -> Result<Option<Secret>, VaultError> {
        let rows = self.rows()?;
        let Some(record) = rows.get(&blob::row(BlobKind::Secret, name, b"")[..])? else {
            return Ok(None);
        };
        let record = SealedBlob::from_bytes(record.value().1.to_vec())?;
        if record.name() != name {
            return Err(VaultError::Unopenable(BlobKind::Secret));
        }
        self.unwrap(&record).map(Some)
    }

    /// Seals a secret and keeps it in this file at once, for what is needed before there is a
    /// stream: the identity that the NATS server itself is started with. The record may be
    /// published and installed later.
    ///
    /// # Errors
    /// As [`seal_secret`](Self::seal_secret) and [`install`](Self::install).
    pub fn keep_secret(&self, name: &str, secret: &[u8]) -> Result<SealedBlob, VaultError> {
        let blob = self.seal_secret(name, secret)?;
        self.install(0, &blob)?;
        Ok(blob)
    }

    // Copies of all records, for a backup.

    /// The records that the vault holds, sealed as they are, in the order of their rows: the page that follows `after`.
    /// The bytes come only with those above the stream sequence `since`, and with those that no stream has yet; of the
    /// others it is enough that they still live.
    ///
    /// # Errors
    /// When the file fails or a row is no record.
    pub fn export(&self, after: Option<&[u8]>, since: u64) -> Result<Export, VaultError> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut page = Export {
            held: Vec::new(),
            next: None,
        };
        let mut bytes = 0;
        for entry in self.rows()?.range::<&[u8]>((from, Bound::Unbounded))? {
            let (row, value) = entry?;
            let (sequence, record) = value.value();
            let known = sequence != 0 && sequence <= since;
            if !known {
                bytes += record.len();
            }
            let record = match known {
                true => None,
                false => Some(SealedBlob::from_bytes(record.to_vec())?),
            };
            page.held.push((sequence, record));
            if bytes >= EXPORT_BYTES || page.held.len() >= EXPORT_ROWS {
                page.next = Some(row.value().to_vec());
                break;
            }
        }
        Ok(page)
    }

    // How it is done.

    fn rows(&self) -> Result<impl Rows + use<>, VaultError> {
        Ok(self.database.begin_read()?.open_table(ROWS)?)
    }

    /// One durable transaction: two-phase, so that a crash never depends on a checksum that is not
    /// cryptographic, and with quick repair, so that opening after a crash does not walk the file.
    fn write<T>(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_two_phase_commit(true);
        transaction.set_quick_repair(true);
        let result = change(&transaction)?;
        transaction.commit()?;
        Ok(result)
    }

    /// Wraps bytes with the root key; `fields` without the root's id.
    fn wrap(
        &self,
        kind: BlobKind,
        fields: &[&[u8]],
        plaintext: &[u8],
    ) -> Result<SealedBlob, VaultError> {
        let root_id = self.root.id_bytes();
        let fields = [fields, &[&root_id[..]]].concat();
        let sealed = aead::seal(
            self.root.key(),
            &blob::aad("root", kind, &fields),
            plaintext,
        );
        Ok(SealedBlob::new(kind, &fields, &sealed)?)
    }

    /// Opens a record that the root key wraps.
    fn unwrap(&self, record: &SealedBlob) -> Result<Secret, VaultError> {
        open_with_root(&self.root, record)
    }

    fn new_project_key(&self, project: &str) -> Result<(SealedBlob, [u8; 8], DataKey), VaultError> {
        let key = random::key();
        let mut id = [0; 8];
        random::fill(&mut id);
        let blob = self.wrap(BlobKind::ProjectKey, &[project.as_bytes(), &id], &key[..])?;
        Ok((blob, id, key))
    }

    fn open_project_key(&self, record: &SealedBlob) -> Result<([u8; 8], DataKey), VaultError> {
        let unopenable = || VaultError::Unopenable(BlobKind::ProjectKey);
        let View::ProjectKey { id, .. } = record.view() else {
            return Err(unopenable());
        };
        let key = self.unwrap(record)?.array().ok_or_else(unopenable)?;
        Ok((id, key))
    }

    /// Opens the data key of a private key, with whichever of the project's keys wraps it.
    fn open_data_key(&self, rows: &impl Rows, record: &SealedBlob) -> Result<DataKey, VaultError> {
        let unopenable = || VaultError::Unopenable(BlobKind::PrivateKey);
        let View::PrivateKey {
            project,
            spki,
            project_key,
            wrapped,
            ..
        } = record.view()
        else {
            return Err(unopenable());
        };
        let row = blob::row(BlobKind::ProjectKey, project, &project_key);
        let held = rows.get(&row[..])?.ok_or_else(unopenable)?;
        let held = SealedBlob::from_bytes(held.value().1.to_vec())?;
        if held.name() != project {
            return Err(unopenable());
        }
        let (id, key) = self.open_project_key(&held)?;
        aead::open(&key, &data_key_aad(project, &spki, &id), wrapped)
            .ok()
            .and_then(|key| key.array())
            .ok_or_else(unopenable)
    }

    /// The same private key, untouched, with its data key wrapped by another key of the project.
    fn rewrap(
        &self,
        rows: &impl Rows,
        record: &SealedBlob,
        id: &[u8; 8],
        key: &DataKey,
    ) -> Result<SealedBlob, VaultError> {
        let data_key = self.open_data_key(rows, record)?;
        let View::PrivateKey {
            project,
            spki,
            sealed,
            ..
        } = record.view()
        else {
            return Err(VaultError::Unopenable(BlobKind::PrivateKey));
        };
        private_key_blob(project, &spki, id, key, &data_key, sealed)
    }

    fn open_region_key(&self, record: &SealedBlob) -> Result<RegionKey, VaultError> {
        let View::RegionKey {
            region,
            version,
            public,
            ..
        } = record.view()
        else {
            return Err(VaultError::Unopenable(BlobKind::RegionKey));
        };
        let secret = self.unwrap(record)?;
        let recipient = recipient(&secret, &public, BlobKind::RegionKey)?;
        Ok(RegionKey::new(region, version, recipient))
    }

    fn newest_region_key(&self, region: &str) -> Result<Option<RegionKey>, VaultError> {
        let rows = self.rows()?;
        let newest = records(&rows, named::<4>(BlobKind::RegionKey, region))?.pop();
        let Some((_, record)) = newest else {
            return Ok(None);
        };
        if record.name() != region {
            return Err(VaultError::Unopenable(BlobKind::RegionKey));
        }
        self.open_region_key(&record).map(Some)
    }

    /// Refuses a record that would be of no use here, so that a damaged one is noticed when it
    /// arrives and not when it is needed.
    fn check(&self, rows: &impl Rows, record: &SealedBlob) -> Result<(), VaultError> {
        match record.view() {
            View::ProjectKey { .. } => self.open_project_key(record).map(drop),
            View::RegionKey { .. } => self.open_region_key(record).map(drop),
            View::IngestionKey { public, .. } => {
                recipient(&self.unwrap(record)?, &public, BlobKind::IngestionKey).map(drop)
            }
            View::Secret { .. } => self.unwrap(record).map(drop),
            View::PrivateKey { .. } => self.open_data_key(rows, record).map(drop),
        }
    }
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vault({:?})", self.root)
    }
}

/// Opens a record that the root key wraps, without a vault: to find out whether a root key is the right one before
/// anything is written.
///
/// # Errors
/// `WrongRoot` when another key wraps it, `Unopenable` when it does not open, or is a private key, which only its
/// project's key opens.
pub fn open_with_root(root: &RootKey, record: &SealedBlob) -> Result<Secret, VaultError> {
    let kind = record.kind();
    let (by, sealed) = match record.view() {
        View::ProjectKey { root, sealed, .. }
        | View::RegionKey { root, sealed, .. }
        | View::IngestionKey { root, sealed, .. }
        | View::Secret { root, sealed, .. } => (root, sealed),
        View::PrivateKey { .. } => return Err(VaultError::Unopenable(kind)),
    };
    if by != root.id_bytes() {
        return Err(wrong_root(&by, root));
    }
    aead::open(root.key(), &record.aad("root"), sealed).map_err(|_| VaultError::Unopenable(kind))
}

/// Why a sealed key was not taken at the door.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IngestionError {
    /// It is sealed to a key that is not, or no longer, held.
    #[error(
        "it is sealed to an ingestion key that is not in use; fetch the current one and seal it again"
    )]
    UnknownKey,
    /// It does not open.
    #[error("it does not open; was it sealed for another project, or changed on the way?")]
    Unopenable,
    /// What is inside is no private key that is taken.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl IngestionError {
    /// The published reason code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownKey => "not_found",
            Self::Unopenable => "key_unsupported",
            Self::Key(error) => error.code(),
        }
    }
}

/// The current ingestion key and the one before it.
pub struct IngestionKeys {
    keys: Vec<Recipient>,
}

impl IngestionKeys {
    /// The key to seal to, or nothing when none was made yet.
    pub fn current(&self) -> Option<IngestionPublic> {
        self.keys.first().map(|key| IngestionPublic {
            kid: key_id(&key.public()),
            public: key.public(),
        })
    }

    /// Opens a sealed key for the project that the command is for.
    ///
    /// # Errors
    /// See [`IngestionError`].
    pub fn open(&self, project: &str, sealed: &SealedKey) -> Result<PrivateKey, IngestionError> {
        let key = self
            .keys
            .iter()
            .find(|key| key_id(&key.public()) == sealed.kid)
            .ok_or(IngestionError::UnknownKey)?;
        sealed.open(key, project).map_err(|error| match error {
            None => IngestionError::Unopenable,
            Some(error) => IngestionError::Key(error),
        })
    }
}

impl std::fmt::Debug for IngestionKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.keys).finish()
    }
}

/// Both the reading and the writing form of the table of records.
trait Rows: ReadableTable<&'static [u8], (u64, &'static [u8])> {}
impl<T: ReadableTable<&'static [u8], (u64, &'static [u8])>> Rows for T {}

/// The rows of one name, whose keys end in `N` more bytes.
fn named<const N: usize>(kind: BlobKind, name: &str) -> RangeInclusive<Vec<u8>> {
    blob::row(kind, name, &[0; N])..=blob::row(kind, name, &[0xff; N])
}

fn check_root(database: &impl ReadableDatabase, root: &RootKey) -> Result<(), VaultError> {
    let meta = match database.begin_read()?.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    match meta.get(META_ROOT)? {
        Some(theirs) if theirs.value() != root.id_bytes() => Err(wrong_root(theirs.value(), root)),
        _ => Ok(()),
    }
}

fn wrong_root(theirs: &[u8], ours: &RootKey) -> VaultError {
    VaultError::WrongRoot {
        theirs: HEXLOWER.encode(theirs),
        ours: ours.id(),
    }
}

fn head_of(meta: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<u64, VaultError> {
    Ok(match meta.get(META_HEAD)? {
        Some(head) => {
            u64::from_be_bytes(head.value().try_into().map_err(|_| BlobError::Malformed)?)
        }
        None => 0,
    })
}

fn records(
    rows: &impl Rows,
    range: RangeInclusive<Vec<u8>>,
) -> Result<Vec<(u64, SealedBlob)>, VaultError> {
    rows.range::<&[u8]>(&range.start()[..]..=&range.end()[..])?
        .map(|entry| {
            let (_, value) = entry?;
            let (sequence, bytes) = value.value();
            Ok((sequence, SealedBlob::from_bytes(bytes.to_vec())?))
        })
        .collect()
}

fn private_keys(rows: &impl Rows, project: &str) -> Result<Vec<(u64, SealedBlob)>, VaultError> {
    records(rows, named::<32>(BlobKind::PrivateKey, project))
}

fn project_keys(rows: &impl Rows, project: &str) -> Result<Vec<(u64, SealedBlob)>, VaultError> {
    records(rows, named::<8>(BlobKind::ProjectKey, project))
}

fn current_project_key(
    rows: &impl Rows,
    project: &str,
) -> Result<Option<(u64, SealedBlob)>, VaultError> {
    let newest = project_keys(rows, project)?
        .into_iter()
        .max_by_key(|(sequence, _)| *sequence);
    match newest {
        Some((_, record)) if record.name() != project => {
            Err(VaultError::Unopenable(BlobKind::ProjectKey))
        }
        newest => Ok(newest),
    }
}

fn wrapped_by(record: &SealedBlob, id: &[u8; 8]) -> bool {
    matches!(record.view(), View::PrivateKey { project_key, .. } if project_key == *id)
}

fn private_key_aad(project: &str, spki: &[u8; 32]) -> Vec<u8> {
    blob::aad(
        "private-key",
        BlobKind::PrivateKey,
        &[project.as_bytes(), spki],
    )
}

fn data_key_aad(project: &str, spki: &[u8; 32], project_key: &[u8; 8]) -> Vec<u8> {
    blob::aad(
        "data-key",
        BlobKind::PrivateKey,
        &[project.as_bytes(), spki, project_key],
    )
}

fn private_key_blob(
    project: &str,
    spki: &[u8; 32],
    id: &[u8; 8],
    project_key: &DataKey,
    data_key: &DataKey,
    sealed: &[u8],
) -> Result<SealedBlob, VaultError> {
    let wrapped = aead::seal(project_key, &data_key_aad(project, spki, id), &data_key[..]);
    let wrapped = [&id[..], &wrapped].concat();
    Ok(SealedBlob::new(
        BlobKind::PrivateKey,
        &[project.as_bytes(), spki, &wrapped],
        sealed,
    )?)
}

fn recipient(
    secret: &Secret,
    public: &[u8; PUBLIC],
    kind: BlobKind,
) -> Result<Recipient, VaultError> {
    Recipient::from_secret(secret.expose())
        .ok()
        .filter(|recipient| recipient.public() == *public)
        .ok_or(VaultError::Unopenable(kind))
}

/// Keeps the two newest ingestion keys.
fn retire_ingestion_keys(
    rows: &mut redb::Table<'_, &'static [u8], (u64, &'static [u8])>,
    owed: &mut redb::Table<'_, u64, ()>,
) -> Result<(), VaultError> {
    let mut keys = records(rows, named::<32>(BlobKind::IngestionKey, ""))?;
    keys.sort_by_key(|(sequence, _)| std::cmp::Reverse(*sequence));
    for (sequence, record) in keys.drain(..).skip(2) {
        rows.remove(&record.row()[..])?;
        if sequence != 0 {
            owed.insert(sequence, ())?;
        }
    }
    Ok(())
}
