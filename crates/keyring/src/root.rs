//! Keys that live in a file of their own: the root key of a control plane and the local store key
//! of an edge.
//!
//! Such a file holds 32 random bytes, raw or as 64 hex digits (`openssl rand -hex 32`), belongs to
//! the user of the process or to root, and is readable by nobody else.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use zeroize::Zeroizing;

use crate::aead;
use crate::key::sha256;
use crate::random;
use crate::secret::Secret;

/// Why a key file was not used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file cannot be read or made.
    #[error("the key file {} cannot be used", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Others than its owner may read or write the file.
    #[error("the key file {} is open to other users (mode {mode:04o}); run: chmod 600 {}", path.display(), path.display())]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file belongs to somebody who is neither this user nor root.
    #[error("the key file {} belongs to another user", path.display())]
    Owner {
        /// The file.
        path: PathBuf,
    },
    /// The file does not hold a key.
    #[error("the key file {} holds neither 32 bytes nor 64 hex digits", path.display())]
    Content {
        /// The file.
        path: PathBuf,
    },
}

/// The key that wraps all others of a control plane. Whoever has it and the stream of sealed keys
/// has every private key; keep it apart from backups of either.
pub struct RootKey {
    key: Zeroizing<[u8; 32]>,
    id: [u8; 8],
}

impl RootKey {
    /// Reads the key from `path`, or makes one there (mode 0600, synced) if nothing is there.
    ///
    /// # Errors
    /// See [`KeyFileError`]; an existing file is never changed.
    pub fn create_or_load(path: &Path) -> Result<Self, KeyFileError> {
        Ok(Self::new(create_or_load(path)?))
    }

    /// Reads the key from `path`.
    ///
    /// # Errors
    /// See [`KeyFileError`].
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        Ok(Self::new(load(path)?))
    }

    /// Takes the bytes themselves, for keys that come from elsewhere than a file.
    pub fn from_bytes(key: &[u8; 32]) -> Self {
        Self::new(Zeroizing::new(*key))
    }

    fn new(key: Zeroizing<[u8; 32]>) -> Self {
        let named = Zeroizing::new([b"chancery.v1.root-key-id\0", &key[..]].concat());
        let mut id = [0; 8];
        id.copy_from_slice(&sha256(&named)[..8]);
        Self { key, id }
    }

    /// The name of the key: 16 hex digits of a hash, which tell nothing about the key.
    pub fn id(&self) -> String {
        HEXLOWER.encode(&self.id)
    }

    pub(crate) fn id_bytes(&self) -> [u8; 8] {
        self.id
    }

    pub(crate) fn key(&self) -> &[u8; 32] {
        &self.key
    }
}

impl std::fmt::Debug for RootKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RootKey({})", self.id())
    }
}

/// The key under which an edge seals what it keeps on its own disk.
pub struct LocalKey {
    key: Zeroizing<[u8; 32]>,
}

impl LocalKey {
    /// Reads the key from `path`, or makes one there (mode 0600, synced) if nothing is there.
    ///
    /// # Errors
    /// See [`KeyFileError`]; an existing file is never changed.
    pub fn create_or_load(path: &Path) -> Result<Self, KeyFileError> {
        Ok(Self {
            key: create_or_load(path)?,
        })
    }

    /// Seals `plaintext` and binds it to `place`, which must be given again to open it: name the
    /// table and the row, so that a row that was moved does not open.
    pub fn seal(&self, place: &[u8], plaintext: &[u8]) -> Vec<u8> {
        aead::seal(&self.key, &local_aad(place), plaintext)
    }

    /// Opens what [`seal`](Self::seal) made for the same place.
    ///
    /// # Errors
    /// `None` when the key, the place or the bytes differ.
    pub fn open(&self, place: &[u8], sealed: &[u8]) -> Option<Secret> {
        aead::open(&self.key, &local_aad(place), sealed).ok()
    }
}

impl std::fmt::Debug for LocalKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LocalKey")
    }
}

fn local_aad(place: &[u8]) -> Vec<u8> {
    [b"chancery.v1.local\0", place].concat()
}

fn create_or_load(path: &Path) -> Result<Zeroizing<[u8; 32]>, KeyFileError> {
    match load(path) {
        Err(KeyFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let failed = |source| KeyFileError::Io {
        path: path.to_owned(),
        source,
    };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // Written beside its place and then linked there: a crash never leaves half a key behind, and
    // of two processes that start at once the second finds the first one's key.
    let mut suffix = [0; 8];
    random::fill(&mut suffix);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", HEXLOWER.encode(&suffix)));
    let draft = folder.join(name);
    let written = write_key(&draft).and_then(|()| match std::fs::hard_link(&draft, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    });
    let removed = std::fs::remove_file(&draft);
    written.and(removed).map_err(failed)?;
    File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(failed)?;
    load(path)
}

fn write_key(path: &Path) -> io::Result<()> {
    let key = random::key();
    let line = Zeroizing::new(HEXLOWER.encode(&key[..]) + "\n");
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(line.as_bytes())?;
    file.sync_all()
}

fn load(path: &Path) -> Result<Zeroizing<[u8; 32]>, KeyFileError> {
    let failed = |source| KeyFileError::Io {
        path: path.to_owned(),
        source,
    };
    // What is checked is the open file, so nobody can swap it in between.
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.mode() & 0o7777;
    if !metadata.is_file() {
        return Err(KeyFileError::Content {
            path: path.to_owned(),
        });
    }
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Permissions {
            path: path.to_owned(),
            mode,
        });
    }
    if metadata.uid() != 0 && metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(KeyFileError::Owner {
            path: path.to_owned(),
        });
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(128));
    file.take(100).read_to_end(&mut bytes).map_err(failed)?;
    let mut key = Zeroizing::new([0; 32]);
    if bytes.len() == 32 {
        key.copy_from_slice(&bytes);
        return Ok(key);
    }
    let content = || KeyFileError::Content {
        path: path.to_owned(),
    };
    let digits = bytes.trim_ascii_end();
    if digits.len() != 64 {
        return Err(content());
    }
    HEXLOWER_PERMISSIVE
        .decode_mut(digits, &mut key[..])
        .map_err(|_| content())?;
    Ok(key)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_file_is_made_once_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        assert!(RootKey::load(&path).is_err());
        let first = RootKey::create_or_load(&path).unwrap();
        let again = RootKey::create_or_load(&path).unwrap();
        assert_eq!(first.id(), again.id());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(!format!("{first:?}").contains(&HEXLOWER.encode(first.key())));
        // The id is not simply a hash of the key, which other tools might print.
        assert_ne!(first.id_bytes(), sha256(first.key())[..8]);
    }

    #[test]
    fn files_open_to_others_or_without_a_key_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        RootKey::create_or_load(&path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o602, 0o644] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert!(matches!(
                RootKey::create_or_load(&path),
                Err(KeyFileError::Permissions { .. })
            ));
        }
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        assert!(RootKey::load(&path).is_ok());
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        for content in [&b""[..], b"short", &[b'z'; 64], &[b'a'; 65], &[1; 200]] {
            fs::write(&path, content).unwrap();
            assert!(matches!(
                RootKey::create_or_load(&path),
                Err(KeyFileError::Content { .. })
            ));
            assert_eq!(fs::read(&path).unwrap(), content);
        }
        fs::write(&path, [9; 32]).unwrap();
        let raw = RootKey::load(&path).unwrap();
        fs::write(&path, "09".repeat(32) + "\n").unwrap();
        assert_eq!(RootKey::load(&path).unwrap().id(), raw.id());
        assert_eq!(RootKey::from_bytes(&[9; 32]).id(), raw.id());
        assert!(RootKey::load(folder.path()).is_err());
    }

    #[test]
    fn what_an_edge_seals_opens_in_its_place_only() {
        let folder = tempfile::tempdir().unwrap();
        let key = LocalKey::create_or_load(&folder.path().join("a")).unwrap();
        let other = LocalKey::create_or_load(&folder.path().join("b")).unwrap();
        let sealed = key.seal(b"bundles/1", b"bytes");
        assert!(key.open(b"bundles/1", &sealed).unwrap().equals(b"bytes"));
        assert!(key.open(b"bundles/2", &sealed).is_none());
        assert!(other.open(b"bundles/1", &sealed).is_none());
    }
}
