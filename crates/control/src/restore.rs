//! From a backup to a state folder that a control plane starts on, with the same log.
//!
//! Everything that can be known before anything is written is looked at first: that the folder is empty, that the root key
//! opens the keys, that every checksum and hash link holds. Then a marker is written, with which no control plane starts, and
//! it goes when everything else is durable. So a restore that was interrupted is told, and done again from the beginning.
//!
//! The streams are filled by the same compare-and-swap as ever, the ledger by the same replay: there is no second way into
//! either. Only sequences of the stream of keys are new, which nothing but the vault remembers.

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use bus::connect::{Login, connect};
use bus::identity::{Credentials, Identity};
use bus::templates::Role;
use keyring::{BlobKind, RootKey, SealedBlob, VaultError};
use wire::envelope::Envelope;

use crate::backup::check::{ObjectLine, each_line};
use crate::backup::files::{make_folder, sync_folder, write_whole};
use crate::backup::keys::KeyLine;
use crate::backup::{self, Checked, Manifest};
use crate::start::NATS_IDENTITY;
use crate::tables::{Applier, ApplyError, Tables};

/// The file in the state folder that keeps the generation of the regions' feeds, once a restore has raised it.
pub const GENERATION: &str = "generation";
/// The file that is in a state folder while it is being restored.
pub const MARKER: &str = "restore.json";
/// What the marker says that it is.
const MARKER_FORMAT: &str = "chancery-restore";
/// Files of the state folder that a restore writes, next to the operator's credentials.
const FILES: [&str; 7] = [
    MARKER,
    "restore.json.part",
    "vault.redb",
    "ledger.redb",
    "root.key",
    GENERATION,
    "generation.part",
];
/// Folders of the state folder that a restore writes.
const FOLDERS: [&str; 2] = ["nats", "scratch"];
/// What may stand in any state folder: a file system's own folder, and the lock of a start that went no further.
const ANYWHERE: [&str; 2] = ["lost+found", backup::LOCK];
/// Events, and bytes, that are written at once.
const BATCH: (usize, usize) = (500, 4 << 20);

/// The generation that the state folder keeps; 1 where no restore has raised it.
///
/// # Errors
/// A file that cannot be read, or is no number: guessing a lower one would leave edges on a history that is no more.
pub fn generation(state: &Path) -> std::io::Result<u64> {
    match std::fs::read_to_string(state.join(GENERATION)) {
        Ok(text) => text.trim().parse().map_err(|_| {
            std::io::Error::new(std::io::ErrorKind::InvalidData, "it is not a number")
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(1),
        Err(error) => Err(error),
    }
}

/// Whether a restore into this folder was begun and not ended. A file of that name is enough: a start on what is half
/// restored does more harm than one that is refused.
pub fn is_unfinished(state: &Path) -> bool {
    state.join(MARKER).exists()
}

/// What stands in the folder while it is being restored.
#[derive(serde::Serialize, serde::Deserialize)]
struct Mark {
    format: String,
    what: String,
    log: String,
    head: u64,
}

/// Whether what is in this folder may be removed as that of a restore which did not end. Any program may have written a file
/// of the marker's name, so this asks for what only a restore writes into it.
fn is_marked(state: &Path) -> bool {
    let mut text = Vec::new();
    let read = std::fs::File::open(state.join(MARKER))
        .and_then(|file| file.take(1 << 16).read_to_end(&mut text));
    read.is_ok()
        && serde_json::from_slice::<Mark>(&text)
            .is_ok_and(|mark| mark.format == MARKER_FORMAT && !mark.log.is_empty())
}

/// What is restored, and where to.
#[derive(Clone, Debug)]
pub struct Config {
    /// The backup's folder.
    pub backup: PathBuf,
    /// The state folder: absent or empty, or left by a restore that was interrupted.
    pub state: PathBuf,
    /// The file with the root key.
    pub root_key: PathBuf,
    /// Where the control plane will look for its root key, if not in its state folder. It is not copied then.
    pub root_key_elsewhere: bool,
    /// Credentials of an operator whom the log knows, and where the control plane will look for them.
    pub operator: Option<(PathBuf, PathBuf)>,
    /// The nats-server's executable; None looks for it.
    pub nats_executable: Option<PathBuf>,
    /// The control node's name.
    pub node: String,
}

/// Why nothing is restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state folder holds something.
    #[error("{} is not empty: it holds {}; restore into an empty or absent folder", state.display(), found.join(", "))]
    NotEmpty {
        /// The folder.
        state: PathBuf,
        /// What is there, at most five names.
        found: Vec<String>,
    },
    /// Another process uses the state folder.
    #[error("the state folder {} is in use by another chancery", .0.display())]
    Locked(PathBuf),
    /// The root key's file.
    #[error("the root key {}: {source}", path.display())]
    RootKeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: keyring::KeyFileError,
    },
    /// It is not the root key that wraps this backup's keys.
    #[error("{} holds root key {ours}, but the keys of this backup are wrapped by root key {theirs}", path.display())]
    WrongRoot {
        /// The file.
        path: PathBuf,
        /// The id of its key.
        ours: String,
        /// The id of the key that is needed.
        theirs: String,
    },
    /// The backup cannot be read.
    #[error(transparent)]
    Backup(#[from] backup::Error),
    /// The backup is not what was written.
    #[error("the backup is damaged: {}", .0.join("; "))]
    Damaged(Vec<String>),
    /// The credentials are nobody's whom the restored log knows as an operator.
    #[error("the credentials in {} are {why}", path.display())]
    Operator {
        /// The file.
        path: PathBuf,
        /// What they are.
        why: String,
    },
    /// A file of the state folder.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The vault's file, or a record that does not open.
    #[error("the vault: {0}")]
    Vault(#[from] VaultError),
    /// The identity that NATS users are minted from.
    #[error(transparent)]
    Identity(#[from] bus::identity::Error),
    /// The nats-server.
    #[error("nats-server: {0}")]
    Server(#[from] bus::server::Error),
    /// A connection to it.
    #[error(transparent)]
    Connect(#[from] bus::connect::Error),
    /// The streams.
    #[error("the streams: {0}")]
    Streams(#[from] bus::streams::Error),
    /// The log's stream.
    #[error("the log stream: {0}")]
    Log(#[from] bus::log::Error),
    /// The streams of objects and keys.
    #[error("the streams of certificates and keys: {0}")]
    Put(#[from] bus::objects::Error),
    /// The ledger.
    #[error("the ledger: {0}")]
    Ledger(#[from] ledger::Error),
    /// The ledger's rows.
    #[error("the ledger: {0}")]
    Rows(#[from] crate::upgrade::Error),
    /// An event cannot be applied.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

impl Error {
    /// Whether the answer is no, rather than that it could not be tried.
    pub fn is_no(&self) -> bool {
        matches!(
            self,
            Self::WrongRoot { .. }
                | Self::Damaged(_)
                | Self::Operator { .. }
                | Self::Backup(backup::Error::Damaged { .. } | backup::Error::Newer { .. })
        )
    }

    fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::File {
            path: path.to_owned(),
            source,
        }
    }
}

/// What was restored.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Restored {
    /// The log's id.
    pub log: String,
    /// The last event.
    pub head: backup::Point,
    /// When the backup was finished.
    pub taken: String,
    /// Certificates and requests.
    pub objects: u64,
    /// Sealed keys.
    pub keys: u64,
    /// The generation from now on.
    pub generation: u64,
    /// Commands that were queued and are not here.
    pub queued: u64,
    /// The operator whose credentials were taken over.
    pub operator: Option<String>,
}

/// Restores. `progress` is told what is being done, and how many more lines of how many are done.
///
/// # Errors
/// [`Error`]. Unless it says otherwise, nothing was written; what was written is removed by the next restore.
pub async fn restore(
    config: &Config,
    mut progress: impl FnMut(&'static str, u64, u64),
) -> Result<Restored, Error> {
    let manifest = Manifest::read(&config.backup)?;
    refuse_used(config)?;
    let root = RootKey::load(&config.root_key).map_err(|source| Error::RootKeyFile {
        path: config.root_key.clone(),
        source,
    })?;
    if root.id() != manifest.root_key {
        return Err(Error::WrongRoot {
            path: config.root_key.clone(),
            ours: root.id(),
            theirs: manifest.root_key,
        });
    }
    let all = manifest.parts().iter().map(|part| part.count).sum();
    let checked = backup::check(&config.backup, |n| progress("checking", n, all))?;
    if !checked.problems.is_empty() {
        return Err(Error::Damaged(checked.problems));
    }
    let identity = std::sync::Arc::new(open_keys(config, &manifest, &root)?);
    let operator = config
        .operator
        .as_ref()
        .map(|(path, _)| known_operator(path, &checked))
        .transpose()?;

    make_folder(&config.state)?;
    let _lock = lock(&config.state)?;
    begin(config, &manifest).await?;
    let restored = fill(config, &checked, root, &identity, &mut |label, n| {
        let part = match label {
            "keys" => &checked.manifest.keys,
            "certificates" => &checked.manifest.objects,
            _ => &checked.manifest.events,
        };
        progress(label, n, part.count);
    })
    .await?;
    finish(config, operator, restored)
}

/// Says no to a folder in which anything is that a restore has not put there, and tells what a restore has.
fn refuse_used(config: &Config) -> Result<Vec<PathBuf>, Error> {
    let state = &config.state;
    let entries = match std::fs::read_dir(state) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::file(state)(error)),
    };
    let marked = is_marked(state);
    let operator = config.operator.as_ref().map(|(_, to)| to);
    let (mut ours, mut found) = (Vec::new(), Vec::new());
    for entry in entries {
        let entry = entry.map_err(Error::file(state))?;
        let (name, path) = (entry.file_name(), entry.path());
        let kind = entry.file_type().map_err(Error::file(&path))?;
        let written = if kind.is_dir() {
            FOLDERS.iter().any(|folder| name == *folder)
        } else {
            FILES.iter().any(|file| name == *file) || operator == Some(&path)
        };
        if ANYWHERE.iter().any(|kept| name == *kept) {
            continue;
        } else if marked && written {
            ours.push(path);
        } else if found.len() < 5 {
            found.push(name.to_string_lossy().into_owned());
        }
    }
    found.sort();
    match found.is_empty() {
        true => Ok(ours),
        false => Err(Error::NotEmpty {
            state: state.to_owned(),
            found,
        }),
    }
}

/// Whether both are one file.
fn is_same(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

/// Opens everything that the root key wraps, which shows that it is the right one by more than its name, and gives the
/// identity.
fn open_keys(config: &Config, manifest: &Manifest, root: &RootKey) -> Result<Identity, Error> {
    let mut identity = None;
    each_line(&config.backup, &manifest.keys, |line| {
        let (_, blob) = KeyLine::read(line)?;
        if blob.kind() != BlobKind::PrivateKey {
            let secret = keyring::open_with_root(root, &blob).map_err(|e| e.to_string())?;
            if blob.kind() == BlobKind::Secret && blob.name() == NATS_IDENTITY {
                let opened = Identity::from_bytes(secret.expose()).map_err(|e| e.to_string())?;
                identity = Some(opened);
            }
        }
        Ok(())
    })?;
    identity.ok_or_else(|| Error::Damaged(vec![format!("the secret {NATS_IDENTITY} is missing")]))
}

/// The operator whose credentials these are, if the restored log knows them.
fn known_operator(path: &Path, checked: &Checked) -> Result<String, Error> {
    let no = |why: &str| Error::Operator {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    let text = zeroize::Zeroizing::new(std::fs::read_to_string(path).map_err(Error::file(path))?);
    let credentials = Credentials::parse(&text).map_err(|_| no("no credentials of a NATS user"))?;
    match checked.review.operators.get(&credentials.user) {
        None => Err(no(
            "of nobody whom this backup's log knows as an operator; without --creds the first start makes new ones",
        )),
        Some(operator) if operator.revoked => Err(no(&format!(
            "those of {}, whose access was revoked",
            operator.name
        ))),
        Some(operator) => Ok(operator.name.clone()),
    }
}

fn lock(state: &Path) -> Result<std::fs::File, Error> {
    let path = state.join(backup::LOCK);
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(Error::file(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::Locked(state.to_owned())),
        Err(std::fs::TryLockError::Error(error)) => Err(Error::file(&path)(error)),
    }
}

/// Removes what an interrupted restore has left, and marks the folder as one that nothing starts on.
async fn begin(config: &Config, manifest: &Manifest) -> Result<(), Error> {
    let state = &config.state;
    // Again, as now the folder is locked.
    let left = refuse_used(config)?;
    if !left.is_empty() {
        bus::server::end_left_behind(&state.join("nats")).await?;
    }
    let read =
        std::iter::once(&config.root_key).chain(config.operator.iter().map(|(from, _)| from));
    let read: Vec<&PathBuf> = read.collect();
    for path in left {
        // The marker goes last; and what this restore reads from may have been copied here by the one before.
        if path == state.join(MARKER) || read.iter().any(|from| is_same(from, &path)) {
            continue;
        }
        let is_folder = std::fs::symlink_metadata(&path).is_ok_and(|is| is.is_dir());
        match is_folder {
            true => std::fs::remove_dir_all(&path),
            false => std::fs::remove_file(&path),
        }
        .map_err(Error::file(&path))?;
    }
    let mark = Mark {
        format: MARKER_FORMAT.to_owned(),
        what: "a restore that has not ended; nothing starts on this folder until `chancery restore` has been repeated".to_owned(),
        log: manifest.log.clone(),
        head: manifest.head.sequence,
    };
    let mut text = serde_json::to_vec(&mark).expect("a marker is plain data");
    text.push(b'\n');
    write_whole(&state.join(MARKER), &text).map_err(Error::from)
}

async fn fill(
    config: &Config,
    checked: &Checked,
    root: RootKey,
    identity: &std::sync::Arc<Identity>,
    progress: &mut impl FnMut(&'static str, u64),
) -> Result<Restored, Error> {
    let (state, manifest) = (&config.state, &checked.manifest);
    let executable = match &config.nats_executable {
        Some(path) => path.clone(),
        None => bus::server::find()?,
    };
    let now = u64::try_from(time::OffsetDateTime::now_utc().unix_timestamp()).unwrap_or(0);
    let server = bus::server::Server::start(
        &executable,
        &bus::server::Config {
            folder: state.join("nats"),
            port: 0,
            name: config.node.clone(),
            identity_conf: identity.server_conf(now),
        },
    )
    .await?;
    let nats = server.url();
    let filled = async {
        let login = |role| Login::minted(identity, role);
        let system = connect(&nats, &login(Role::System)).await?;
        let installer = connect(&nats, &login(Role::Installer)).await?;
        bus::streams::ensure(&installer, &system, 1).await?;
        let keys = bus::keys::Keys::start(connect(&nats, &login(Role::Keys)).await?);
        fill_keys(config, manifest, root, &keys, progress).await?;
        let objects = bus::objects::Objects::start(connect(&nats, &login(Role::Objects)).await?);
        let ledger = crate::upgrade::open(&state.join("ledger.redb"), &state.join("scratch"))?;
        let mut writer = ledger.writer()?;
        writer.set_durability(ledger::Durability::Deferred);
        fill_objects(config, manifest, &objects, &mut writer, progress).await?;
        let log = bus::log::Log::new(connect(&nats, &login(Role::Registrar)).await?);
        fill_log(config, manifest, &log, &ledger, &mut writer, progress).await?;
        let head = writer.flush()?;
        log.check_not_rewound(head.sequence, *head.hash.as_bytes())
            .await?;
        Ok::<_, Error>(())
    };
    let filled = filled.await;
    let stopped = server.stop().await;
    filled?;
    stopped?;
    Ok(Restored {
        log: manifest.log.clone(),
        head: manifest.head.clone(),
        taken: manifest.taken.clone(),
        objects: manifest.objects.count,
        keys: manifest.keys.count,
        generation: next_generation(manifest.generation, now),
        queued: manifest.queued,
        operator: None,
    })
}

/// Higher than every generation that an edge may have seen. That of the backup plus one is not always: it may have been
/// restored before, without a backup since. The seconds since 1970 are.
fn next_generation(backup: u64, now: u64) -> u64 {
    backup.saturating_add(1).max(now)
}

async fn fill_keys(
    config: &Config,
    manifest: &Manifest,
    root: RootKey,
    keys: &bus::keys::Keys,
    progress: &mut impl FnMut(&'static str, u64),
) -> Result<(), Error> {
    let vault = keyring::Vault::open(&config.state.join("vault.redb"), root)?;
    let put = |blobs: Vec<SealedBlob>| {
        let vault = &vault;
        async move {
            let bytes = blobs.iter().map(|blob| blob.as_bytes().to_vec().into());
            let sequences = keys.put(bytes.collect()).await?;
            vault.install_all(sequences.into_iter().zip(&blobs))?;
            Ok::<_, Error>(())
        }
    };
    let mut batches = Batches::new(&config.backup, &manifest.keys);
    while let Some(lines) = batches.next()? {
        progress("keys", lines.len() as u64);
        let blobs = lines
            .iter()
            .map(|line| KeyLine::read(line).map(|(_, blob)| blob))
            .collect::<Result<_, _>>()
            .map_err(|what| Error::Damaged(vec![what]))?;
        put(blobs).await?;
    }
    Ok(())
}

async fn fill_objects(
    config: &Config,
    manifest: &Manifest,
    objects: &bus::objects::Objects,
    writer: &mut ledger::Writer,
    progress: &mut impl FnMut(&'static str, u64),
) -> Result<(), Error> {
    let mut batches = Batches::new(&config.backup, &manifest.objects);
    while let Some(lines) = batches.next()? {
        progress("certificates", lines.len() as u64);
        let of = lines
            .iter()
            .map(|line| ObjectLine::read(line))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|what| Error::Damaged(vec![what]))?;
        objects
            .put(of.iter().map(|(_, bytes)| bytes.clone().into()).collect())
            .await?;
        writer.put_objects(of)?;
    }
    Ok(())
}

async fn fill_log(
    config: &Config,
    manifest: &Manifest,
    log: &bus::log::Log,
    ledger: &ledger::Ledger,
    writer: &mut ledger::Writer,
    progress: &mut impl FnMut(&'static str, u64),
) -> Result<(), Error> {
    let mut batches = Batches::new(&config.backup, &manifest.events);
    let mut time = 0;
    while let Some(lines) = batches.next()? {
        progress("events", lines.len() as u64);
        let head = writer.head();
        let mut messages = Vec::with_capacity(lines.len());
        let tables = Tables(ledger.read()?);
        let mut applier = Applier::new(&tables, head);
        applier.time = time;
        for (line, sequence) in lines.into_iter().zip(head.sequence + 1..) {
            let event = Envelope::decode(&line).map_err(|e| ApplyError::Unreadable(sequence, e))?;
            let subject = wire::subject::log(event.project.as_str(), event.event.name());
            messages.push((subject, Bytes::from(line.clone())));
            applier.push(sequence, line)?;
        }
        time = applier.time;
        log.append(head.sequence, &messages).await?;
        writer.append(&applier.done())?;
    }
    Ok(())
}

/// Lines of a part, as many as are written at once.
struct Batches<'a> {
    folder: &'a Path,
    files: std::slice::Iter<'a, backup::manifest::FileIs>,
    open: Option<(&'a backup::manifest::FileIs, backup::files::Lines)>,
}

impl<'a> Batches<'a> {
    fn new(folder: &'a Path, part: &'a backup::manifest::Part) -> Self {
        Self {
            folder,
            files: part.files.iter(),
            open: None,
        }
    }

    /// The next lines; a file that has changed since it was checked is found out at its end.
    fn next(&mut self) -> Result<Option<Vec<Vec<u8>>>, Error> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        loop {
            let Some((file, lines)) = &mut self.open else {
                match self.files.next() {
                    Some(file) => {
                        let lines = backup::files::Lines::open(self.folder, &file.name)?;
                        self.open = Some((file, lines));
                        continue;
                    }
                    None if batch.is_empty() => return Ok(None),
                    None => return Ok(Some(batch)),
                }
            };
            match lines.next()? {
                Some(line) => {
                    bytes += line.len();
                    batch.push(line.to_vec());
                    if batch.len() >= BATCH.0 || bytes >= BATCH.1 {
                        return Ok(Some(batch));
                    }
                }
                None => {
                    let file = *file;
                    if let Some((_, lines)) = self.open.take() {
                        lines.is(file)?;
                    }
                }
            }
        }
    }
}

/// The small files, and the end of the marker when everything is durable.
fn finish(
    config: &Config,
    operator: Option<String>,
    mut restored: Restored,
) -> Result<Restored, Error> {
    let state = &config.state;
    if !config.root_key_elsewhere {
        let to = state.join("root.key");
        let key = zeroize::Zeroizing::new(
            std::fs::read(&config.root_key).map_err(Error::file(&config.root_key))?,
        );
        if !is_same(&to, &config.root_key) {
            write_secret(&to, &key).map_err(Error::file(&to))?;
        }
    }
    if let Some((from, to)) = &config.operator {
        let text = zeroize::Zeroizing::new(std::fs::read(from).map_err(Error::file(from))?);
        // They may be where they are looked for already.
        if !to.exists() {
            write_secret(to, &text).map_err(Error::file(to))?;
        }
        restored.operator = operator;
    }
    let generation = format!("{}\n", restored.generation);
    write_whole(&state.join(GENERATION), generation.as_bytes())?;
    let marker = state.join(MARKER);
    sync_folder(state)?;
    std::fs::remove_file(&marker).map_err(Error::file(&marker))?;
    sync_folder(state)?;
    Ok(restored)
}

fn write_secret(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// What a restore cannot bring back, in one sentence.
pub fn lost(restored: &Restored) -> String {
    format!(
        "the log ends with event {} of {}; whatever came after is gone, revocations and evictions too",
        restored.head.sequence, restored.head.time
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generation_rises_with_every_restore() {
        assert_eq!(next_generation(1, 1_800_000_000), 1_800_000_000);
        // Restored twice from one backup, and with a clock that was ahead then.
        assert_eq!(next_generation(1, 1_800_000_060), 1_800_000_060);
        assert_eq!(next_generation(1_900_000_000, 1_800_000_000), 1_900_000_001);
    }

    fn config(state: &Path) -> Config {
        Config {
            backup: state.join("none"),
            state: state.to_owned(),
            root_key: state.join("root.key"),
            root_key_elsewhere: false,
            operator: None,
            nats_executable: None,
            node: "test".to_owned(),
        }
    }

    fn refused(state: &Path) -> Vec<String> {
        match refuse_used(&config(state)) {
            Err(Error::NotEmpty { found, .. }) => found,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_what_a_restore_has_written_may_go() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = folder.path();
        assert!(refuse_used(&config(state)).expect("empty").is_empty());
        let write = |name: &str, text: &str| {
            std::fs::write(state.join(name), text).expect("written");
        };
        write("vault.redb", "");
        for marker in [
            "",
            "{}",
            r#"{"what":"x","log":"l","head":1}"#,
            r#"{"format":"chancery-restore","what":"x","log":"","head":1}"#,
            r#"{"format":"other","what":"x","log":"l","head":1}"#,
        ] {
            write(MARKER, marker);
            assert_eq!(refused(state), [MARKER, "vault.redb"], "{marker}");
        }
        write(
            MARKER,
            r#"{"format":"chancery-restore","what":"x","log":"l","head":1}"#,
        );
        std::fs::create_dir(state.join("nats")).expect("made");
        std::fs::create_dir(state.join("lost+found")).expect("made");
        assert_eq!(refuse_used(&config(state)).expect("ours").len(), 3);
        // Somebody's own file next to it, and one where a restore makes a folder.
        write("thesis.tex", "");
        assert_eq!(refused(state), ["thesis.tex"]);
        std::fs::remove_file(state.join("thesis.tex")).expect("removed");
        write("scratch", "");
        assert_eq!(refused(state), ["scratch"]);
    }

    #[test]
    fn a_generation_that_cannot_be_read_is_no_lower_one() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(generation(folder.path()).expect("none"), 1);
        std::fs::write(folder.path().join(GENERATION), "7\n").expect("written");
        assert_eq!(generation(folder.path()).expect("it reads"), 7);
        std::fs::write(folder.path().join(GENERATION), "seven").expect("written");
        assert!(generation(folder.path()).is_err());
    }
}
