//! Which sealed keys belong into a backup.
//!
//! Keys are the one thing that a running system destroys, so the list of those that live is pulled twice: before the events
//! and after them. What the second list has is kept, and from before what the saved state still needs: a key that was
//! destroyed after the saved head. What was destroyed earlier leaves the backup with its next run.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use data_encoding::BASE64;
use keyring::{BlobKind, SealedBlob};
use serde::{Deserialize, Serialize};

use super::files::{Folder, Lines, create_part, keep_part};
use super::manifest::FileIs;
use super::{Error, Review};

/// A line of a file of keys.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyLine {
    /// Where the record stood on the stream of keys; 0 for one that only the vault's file had. It orders them: of two
    /// records of one thing the later counts.
    pub sequence: u64,
    /// The record, base64.
    pub sealed: String,
}

impl KeyLine {
    /// Of a record.
    pub fn of(sequence: u64, blob: &SealedBlob) -> Vec<u8> {
        let line = Self {
            sequence,
            sealed: BASE64.encode(blob.as_bytes()),
        };
        serde_json::to_vec(&line).expect("text and a number are always JSON")
    }

    /// Reads a line.
    ///
    /// # Errors
    /// In words.
    pub fn read(line: &[u8]) -> Result<(u64, SealedBlob), String> {
        let line: Self = serde_json::from_slice(line).map_err(|_| "a line is not of its form")?;
        Ok((line.sequence, unbase64(&line.sealed)?))
    }
}

/// A record from its base64.
///
/// # Errors
/// In words.
pub fn unbase64(sealed: &str) -> Result<SealedBlob, String> {
    let bytes = BASE64
        .decode(sealed.as_bytes())
        .map_err(|_| "a record is not base64")?;
    SealedBlob::from_bytes(bytes).map_err(|error| error.to_string())
}

/// What a record is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// A private key of a project, wrapped by the project's key of this id.
    Private(String, [u8; 32], [u8; 8]),
    /// A project's key.
    Project(String, [u8; 8]),
    /// A version of a region's key.
    Region(String, u32),
    /// A named secret.
    Secret(String),
    /// An ingestion key.
    Ingestion,
}

impl What {
    /// Of a record.
    pub fn of(blob: &SealedBlob) -> Self {
        let name = blob.name().to_owned();
        match blob.kind() {
            BlobKind::PrivateKey => Self::Private(
                name,
                blob.spki_sha256().unwrap_or_default(),
                blob.project_key_id().unwrap_or_default(),
            ),
            BlobKind::ProjectKey => Self::Project(name, blob.project_key_id().unwrap_or_default()),
            BlobKind::RegionKey => Self::Region(name, blob.region_version().unwrap_or_default()),
            BlobKind::Secret => Self::Secret(name),
            BlobKind::IngestionKey => Self::Ingestion,
        }
    }
}

/// What a set of records gives.
#[derive(Debug, Default)]
pub struct Kept {
    /// Private keys, and the id of the project's key that wraps the newest record of each.
    pub private: HashMap<(String, [u8; 32]), [u8; 8]>,
    others: HashSet<What>,
}

impl Kept {
    /// Adds a record. They are to come in the order of their sequences.
    pub fn add(&mut self, what: What) {
        match what {
            What::Private(project, spki, id) => {
                self.private.insert((project, spki), id);
            }
            other => {
                self.others.insert(other);
            }
        }
    }

    /// Whether there is a record that is no private key.
    pub fn has(&self, what: &What) -> bool {
        self.others.contains(what)
    }
}

/// Where the bytes of a record are.
#[derive(Debug)]
struct Known {
    what: What,
    file: usize,
    offset: u64,
    length: usize,
}

/// All records that were pulled, of which only what they are for is in memory.
#[derive(Debug)]
pub struct Keys {
    files: Vec<File>,
    spool: PathBuf,
    spooled: u64,
    known: BTreeMap<u64, Known>,
    /// Records that no stream has; there are a few after a crash.
    unpublished: BTreeMap<Vec<u8>, SealedBlob>,
}

impl Keys {
    /// With those of the backup's last run, which need not be pulled again.
    ///
    /// # Errors
    /// [`Error::File`], and [`Error::Damaged`] for a file that is not what was written.
    pub fn after(folder: &Folder, before: &[FileIs]) -> Result<Self, Error> {
        let spool = folder.path().join("keys").join("spool.part");
        let mut keys = Self {
            files: vec![create_part(&spool)?],
            spool,
            spooled: 0,
            known: BTreeMap::new(),
            unpublished: BTreeMap::new(),
        };
        for is in before {
            let mut lines = Lines::open(folder.path(), &is.name)?;
            let mut offset = 0;
            while let Some(line) = lines.next()? {
                let length = line.len();
                let (sequence, blob) =
                    KeyLine::read(line).map_err(|what| Error::damaged(&is.name, what))?;
                if sequence != 0 {
                    let known = Known {
                        what: What::of(&blob),
                        file: keys.files.len(),
                        offset,
                        length,
                    };
                    keys.known.insert(sequence, known);
                }
                offset += length as u64 + 1;
            }
            lines.is(is)?;
            let path = folder.path().join(&is.name);
            keys.files
                .push(File::open(&path).map_err(Error::file(&path))?);
        }
        Ok(keys)
    }

    /// The highest sequence below which everything that lives is known.
    pub fn since(&self) -> u64 {
        self.known.keys().next_back().copied().unwrap_or(0)
    }

    /// Whether the bytes of a record are here.
    pub fn knows(&self, sequence: u64) -> bool {
        self.known.contains_key(&sequence)
    }

    /// Takes a record that was pulled.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn take(&mut self, sequence: u64, blob: SealedBlob) -> Result<(), Error> {
        if sequence == 0 {
            self.unpublished.insert(blob.place(), blob);
            return Ok(());
        }
        let mut line = KeyLine::of(sequence, &blob);
        line.push(b'\n');
        self.files[0]
            .write_all(&line)
            .map_err(Error::file(&self.spool))?;
        let known = Known {
            what: What::of(&blob),
            file: 0,
            offset: self.spooled,
            length: line.len() - 1,
        };
        self.spooled += line.len() as u64;
        self.known.insert(sequence, known);
        Ok(())
    }

    /// Those that belong into the backup of this state: what lives by the last list, and from before what the state needs.
    pub fn choose(&self, living: &BTreeSet<u64>, state: &Review) -> BTreeSet<u64> {
        let mut newest: HashMap<&What, u64> = HashMap::new();
        // Older records of one private key differ in the id of what wraps them, and are found by who they are for.
        let mut private: HashMap<(&String, &[u8; 32]), u64> = HashMap::new();
        for (sequence, known) in &self.known {
            newest.insert(&known.what, *sequence);
            if let What::Private(project, spki, _) = &known.what {
                private.insert((project, spki), *sequence);
            }
        }
        let mut chosen: BTreeSet<u64> = living
            .iter()
            .copied()
            .filter(|sequence| self.knows(*sequence))
            .collect();
        for (project, spki) in &state.keys {
            if let Some(sequence) = private.get(&(project, spki)) {
                chosen.insert(*sequence);
            }
        }
        let wraps: Vec<u64> = chosen
            .iter()
            .filter_map(|sequence| match &self.known[sequence].what {
                What::Private(project, _, id) => {
                    newest.get(&What::Project(project.clone(), *id)).copied()
                }
                _ => None,
            })
            .collect();
        chosen.extend(wraps);
        let regions = state.regions.iter();
        chosen.extend(regions.filter_map(|(region, version)| {
            newest.get(&What::Region(region.clone(), *version)).copied()
        }));
        chosen
    }

    /// What the chosen ones give.
    pub fn kept(&self, chosen: &BTreeSet<u64>) -> Kept {
        let mut kept = Kept::default();
        for blob in self.unpublished.values() {
            kept.add(What::of(blob));
        }
        for sequence in chosen {
            kept.add(self.known[sequence].what.clone());
        }
        kept
    }

    /// Writes the chosen ones to a file of their own, in the order of their sequences.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write(
        &self,
        folder: &Folder,
        chosen: &BTreeSet<u64>,
        run: u64,
    ) -> Result<Vec<FileIs>, Error> {
        let count = (self.unpublished.len() + chosen.len()) as u64;
        if count == 0 {
            return Ok(Vec::new());
        }
        let name = super::files::name("keys", run, count);
        let path = folder.path().join(&name);
        let part = path.with_extension("part");
        let file = create_part(&part)?;
        let written = || -> std::io::Result<(u64, String)> {
            let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
            let mut bytes = 0;
            let mut to = std::io::BufWriter::with_capacity(1 << 16, &file);
            let mut add = |line: &[u8]| {
                digest.update(line);
                bytes += line.len() as u64;
                to.write_all(line)
            };
            for blob in self.unpublished.values() {
                let mut line = KeyLine::of(0, blob);
                line.push(b'\n');
                add(&line)?;
            }
            for sequence in chosen {
                let known = &self.known[sequence];
                let mut line = vec![0; known.length + 1];
                self.files[known.file].read_exact_at(&mut line, known.offset)?;
                add(&line)?;
            }
            to.flush()?;
            drop(to);
            let sum = data_encoding::HEXLOWER.encode(digest.finish().as_ref());
            Ok((bytes, sum))
        };
        match written() {
            Ok((bytes, sha256)) => {
                keep_part(&file, &part, &path)?;
                Ok(vec![FileIs {
                    name,
                    first: 1,
                    last: count,
                    bytes,
                    sha256,
                }])
            }
            Err(error) => {
                let _ = std::fs::remove_file(&part);
                Err(Error::file(&path)(error))
            }
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.spool);
    }
}

#[cfg(test)]
mod tests {
    use keyring::{PrivateKey, Vault};

    use super::super::{Manifest, Point, files, manifest};
    use super::*;

    /// A vault with what a stream would have given it, and the sequences that the stream would have given.
    struct Held {
        vault: Vault,
        sequence: u64,
    }

    impl Held {
        fn keep(&mut self, blob: &SealedBlob) -> u64 {
            self.sequence += 1;
            self.vault
                .install(self.sequence, blob)
                .expect("it opens here");
            self.sequence
        }

        fn key(&mut self) -> [u8; 32] {
            if let Some(blob) = self.vault.ensure_project_key("acme").expect("a key") {
                self.keep(&blob);
            }
            let key = PrivateKey::generate(keyring::KeyKind::EcdsaP256).expect("a key");
            let blob = self.vault.seal_private_key("acme", &key).expect("sealed");
            self.keep(&blob);
            key.spki_sha256()
        }

        /// As a control plane lists them: all rows, and the bytes of those above `since`.
        fn list(&self, keys: &mut Keys) -> BTreeSet<u64> {
            let page = self.vault.export(None, keys.since()).expect("a page");
            assert!(page.next.is_none());
            let mut living = BTreeSet::new();
            for (sequence, blob) in page.held {
                if let Some(blob) = blob {
                    keys.take(sequence, blob).expect("taken");
                }
                assert!(keys.knows(sequence));
                living.insert(sequence);
            }
            living
        }
    }

    fn state(needed: &[[u8; 32]]) -> Review {
        let mut review = Review::default();
        for spki in needed {
            review.keys.insert(("acme".to_owned(), *spki));
        }
        review
    }

    fn lacks(review: &Review, kept: &Kept) -> Vec<String> {
        let missing = review.missing(kept).into_iter();
        missing.filter(|what| !what.contains("secret")).collect()
    }

    #[test]
    fn keys_that_the_saved_state_needs_stay_and_those_that_were_destroyed_go() {
        let temporary = tempfile::tempdir().expect("a folder");
        let root = keyring::RootKey::from_bytes(&[7; 32]);
        let vault = Vault::open(&temporary.path().join("vault.redb"), root).expect("opened");
        let mut held = Held { vault, sequence: 0 };
        let folder = files::Folder::lock(&temporary.path().join("backup")).expect("locked");
        let (stays, goes, used) = (held.key(), held.key(), held.key());

        // The first run: `goes` is destroyed before the saved head, `used` after it, and the project's key is replaced.
        let mut keys = Keys::after(&folder, &[]).expect("begun");
        held.list(&mut keys);
        held.vault.forget("acme", &goes).expect("forgotten");
        held.vault.forget("acme", &used).expect("forgotten");
        let rotation = held.vault.rotate_project_key("acme").expect("rotated");
        for blob in &rotation.put {
            held.keep(blob);
        }
        held.vault.destroy_retired("acme").expect("destroyed");
        let living = held.list(&mut keys);
        let saved = state(&[stays, used]);
        let chosen = keys.choose(&living, &saved);
        let kept = keys.kept(&chosen);
        assert_eq!(lacks(&saved, &kept), Vec::<String>::new());
        assert!(!kept.private.contains_key(&("acme".to_owned(), goes)));
        // Two private keys, and the project's keys that wrap them, which are two.
        assert_eq!(chosen.len(), 4, "{chosen:?}");
        let written = keys.write(&folder, &chosen, 1).expect("written");
        drop(keys);

        // The next run, some events later: only what the state needs now and what is new.
        let young = held.key();
        let mut keys = Keys::after(&folder, &written).expect("begun");
        let before = keys.since();
        let living = held.list(&mut keys);
        assert_eq!(keys.since(), before + 1, "one record is new");
        let saved = state(&[stays, young]);
        let chosen = keys.choose(&living, &saved);
        assert_eq!(chosen.len(), 3, "{chosen:?}");
        assert_eq!(lacks(&saved, &keys.kept(&chosen)), Vec::<String>::new());
        let again = keys.write(&folder, &chosen, 2).expect("written");
        drop(keys);
        let manifest = Manifest {
            format: manifest::FORMAT.to_owned(),
            version: manifest::VERSION,
            release: String::new(),
            log: String::new(),
            platform_domain: String::new(),
            head: Point {
                sequence: 0,
                hash: String::new(),
                time: String::new(),
            },
            generation: 1,
            root_key: String::new(),
            taken: String::new(),
            queued: 0,
            events: manifest::Part::default(),
            objects: manifest::Part::default(),
            keys: manifest::Part::of(again.clone()),
        };
        folder.prune(&manifest).expect("pruned");
        let left = std::fs::read_dir(folder.path().join("keys")).expect("a folder");
        assert_eq!(left.count(), 1, "what was destroyed has left the folder");

        // What it gives, a fresh vault takes in this order.
        let root = keyring::RootKey::from_bytes(&[7; 32]);
        let fresh = Vault::open(&temporary.path().join("fresh.redb"), root).expect("opened");
        let mut lines = Lines::open(folder.path(), &again[0].name).expect("there");
        let mut sequence = 0;
        while let Some(line) = lines.next().expect("a line") {
            let (_, blob) = KeyLine::read(line).expect("a record");
            sequence += 1;
            fresh.install(sequence, &blob).expect("it opens");
        }
        lines.is(&again[0]).expect("as written");
        for spki in [stays, young] {
            fresh.open_private_key("acme", &spki).expect("it opens");
        }
        assert!(fresh.open_private_key("acme", &used).is_err());
    }

    #[test]
    fn a_key_that_was_never_pulled_is_missed() {
        let temporary = tempfile::tempdir().expect("a folder");
        let folder = files::Folder::lock(temporary.path()).expect("locked");
        let keys = Keys::after(&folder, &[]).expect("begun");
        let mut saved = state(&[[1; 32]]);
        saved.regions.insert("eu-1".to_owned(), 3);
        let chosen = keys.choose(&BTreeSet::new(), &saved);
        let missing = saved.missing(&keys.kept(&chosen));
        assert!(missing[0].contains("private key"), "{missing:?}");
        assert!(missing.iter().any(|what| what.contains("eu-1")));
        assert!(missing.iter().any(|what| what.contains("nats-identity")));
    }
}
