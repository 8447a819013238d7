//! The manifest: what a backup holds.

use std::path::Path;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Error, MANIFEST, PARTS};

/// What a manifest says that it is.
pub const FORMAT: &str = "chancery-backup";
/// The version of the format that this release writes.
pub const VERSION: u32 = 1;
/// Largest manifest that is read, bytes: a few hundred thousand files.
const SIZE_MAX: u64 = 64 << 20;
/// What every number of a manifest is below: whoever adds to it overflows nothing, and JSON's readers agree on it.
pub(super) const NUMBER_END: u64 = 1 << 53;

/// A place in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// The sequence of the last event.
    pub sequence: u64,
    /// Its leaf hash (RFC 6962 section 2.1), lower-case hex.
    pub hash: String,
    /// When it happened, RFC 3339.
    #[serde(default)]
    pub time: String,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIs {
    /// Its path below the backup's folder.
    pub name: String,
    /// The number of its first line: for events the sequence.
    pub first: u64,
    /// The number of its last line.
    pub last: u64,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its bytes, lower-case hex.
    pub sha256: String,
}

/// The files of one kind, in order and without gaps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Lines in all of them.
    pub count: u64,
    /// Their sizes together.
    pub bytes: u64,
    /// The files.
    pub files: Vec<FileIs>,
}

impl Part {
    /// Of these files.
    pub fn of(files: Vec<FileIs>) -> Self {
        Self {
            count: files.last().map_or(0, |file| file.last),
            bytes: files.iter().map(|file| file.bytes).sum(),
            files,
        }
    }
}

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// The version of the format.
    pub version: u32,
    /// The release of the control plane that it was taken from.
    pub release: String,
    /// The log's id.
    pub log: String,
    /// The domain below which provider domains live.
    pub platform_domain: String,
    /// The last event in the backup.
    pub head: Point,
    /// The generation of the regions' feeds.
    pub generation: u64,
    /// The id of the root key that wraps the keys, which tells nothing about the key.
    pub root_key: String,
    /// When it was finished, RFC 3339.
    pub taken: String,
    /// Commands that were queued and not decided then. They are not in the backup.
    pub queued: u64,
    /// The events, one a line, their exact bytes.
    pub events: Part,
    /// Certificates and signing requests that events name.
    pub objects: Part,
    /// Sealed keys.
    pub keys: Part,
}

/// SHA-256 of the document without its own checksum, as JSON with sorted keys and no blanks.
fn checksum(document: &Value) -> String {
    HEXLOWER.encode(&ledger::Hash::of(document.to_string().as_bytes()).0)
}

impl Manifest {
    /// The bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut document = serde_json::to_value(self).expect("a manifest is plain data");
        let sum = checksum(&document);
        document["sha256"] = sum.into();
        let mut bytes =
            serde_json::to_vec_pretty(&document).expect("a JSON value can be written as JSON");
        bytes.push(b'\n');
        bytes
    }

    /// Reads the bytes of the file.
    ///
    /// # Errors
    /// [`Error::Newer`] and [`Error::Damaged`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let damaged = |what: &str| Error::damaged(MANIFEST, what);
        let mut document: Value =
            serde_json::from_slice(bytes).map_err(|_| damaged("it is not JSON"))?;
        if document["format"] != FORMAT {
            return Err(damaged("it is not the manifest of a backup"));
        }
        let version = document["version"]
            .as_u64()
            .and_then(|version| u32::try_from(version).ok())
            .ok_or_else(|| damaged("its version is no number"))?;
        if version > VERSION {
            return Err(Error::Newer { found: version });
        }
        let told = document.as_object_mut().and_then(|o| o.remove("sha256"));
        if told != Some(Value::String(checksum(&document))) {
            return Err(damaged("its checksum is another"));
        }
        let manifest: Self = serde_json::from_value(document)
            .map_err(|error| damaged(&format!("it is not of its form: {error}")))?;
        if !manifest.is_bounded() {
            return Err(damaged("a number is too large"));
        }
        for (part, kind) in manifest.parts().into_iter().zip(PARTS) {
            let mut next = 1;
            for file in &part.files {
                // The name is used as a path, so it must be one that a backup gives.
                let fits = super::files::is_name(kind, &file.name);
                if !fits || file.first != next || file.last < file.first {
                    return Err(damaged("a file's name or place is wrong"));
                }
                next = file.last + 1;
            }
            if part.count != next - 1 {
                return Err(damaged("a number of lines is wrong"));
            }
        }
        if manifest.events.count != manifest.head.sequence {
            return Err(damaged("its head is not the last event"));
        }
        Ok(manifest)
    }

    fn is_bounded(&self) -> bool {
        let own = [self.head.sequence, self.generation, self.queued];
        let of_parts = self.parts().into_iter().flat_map(|part| {
            let of_files = part.files.iter();
            let of_files = of_files.flat_map(|file| [file.first, file.last, file.bytes]);
            [part.count, part.bytes].into_iter().chain(of_files)
        });
        own.into_iter()
            .chain(of_parts)
            .all(|number| number < NUMBER_END)
    }

    /// The parts in the order of [`PARTS`].
    pub fn parts(&self) -> [&Part; 3] {
        [&self.events, &self.objects, &self.keys]
    }

    /// Reads the manifest of a folder.
    ///
    /// # Errors
    /// [`Error::None`] when there is none, and as [`parse`](Self::parse).
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(MANIFEST);
        match std::fs::metadata(&path) {
            Ok(is) if is.len() > SIZE_MAX => {
                return Err(Error::damaged(MANIFEST, "it is too large"));
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::None(folder.to_owned()));
            }
            Err(error) => return Err(Error::file(&path)(error)),
        }
        Self::parse(&std::fs::read(&path).map_err(Error::file(&path))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            format: FORMAT.to_owned(),
            version: VERSION,
            release: "0.1.0".to_owned(),
            log: "l".to_owned(),
            platform_domain: "example.net".to_owned(),
            head: Point {
                sequence: 2,
                hash: "00".repeat(32),
                time: String::new(),
            },
            generation: 1,
            root_key: "ab".repeat(8),
            taken: "2026-11-22T00:00:00Z".to_owned(),
            queued: 0,
            events: Part::of(vec![FileIs {
                name: super::super::files::name("events", 1, 2),
                first: 1,
                last: 2,
                bytes: 10,
                sha256: "cd".repeat(32),
            }]),
            objects: Part::default(),
            keys: Part::default(),
        }
    }

    #[test]
    fn a_manifest_reads_back_and_a_changed_one_does_not() {
        let bytes = manifest().to_bytes();
        assert_eq!(Manifest::parse(&bytes).expect("it reads"), manifest());
        let text = String::from_utf8(bytes).expect("text");
        for (from, to) in [
            ("\"generation\": 1", "\"generation\": 2"),
            ("example.net", "example.org"),
            ("\"queued\": 0", "\"queued\": 1"),
        ] {
            assert!(text.contains(from), "{text}");
            let error = Manifest::parse(text.replace(from, to).as_bytes()).expect_err("changed");
            assert!(error.to_string().contains("checksum"), "{error}");
        }
        let later = text.replace("\"version\": 1", "\"version\": 2");
        assert!(matches!(
            Manifest::parse(later.as_bytes()),
            Err(Error::Newer { found: 2 })
        ));
    }

    #[test]
    fn numbers_that_overflow_are_refused() {
        type Change = fn(&mut Manifest, u64);
        let changes: [Change; 6] = [
            |m, n| {
                m.events.files[0].last = n;
                m.events.count = n;
                m.head.sequence = n;
            },
            // Whose end wraps around to what an empty part has.
            |m, n| m.events.files[0].last = n,
            |m, n| m.generation = n,
            |m, n| m.queued = n,
            |m, n| m.events.bytes = n,
            |m, n| m.keys.bytes = n,
        ];
        for change in changes {
            for number in [u64::MAX, u64::MAX - 1, NUMBER_END] {
                let mut manifest = manifest();
                change(&mut manifest, number);
                let error = Manifest::parse(&manifest.to_bytes()).expect_err("it is refused");
                assert!(error.to_string().contains("too large"), "{error}");
            }
        }
    }

    #[test]
    fn names_lead_nowhere_else() {
        for wrong in [
            "../../etc/passwd",
            "events/../x.jsonl",
            "keys/1.jsonl",
            "/etc/passwd",
        ] {
            let mut manifest = manifest();
            manifest.events.files[0].name = wrong.to_owned();
            assert!(Manifest::parse(&manifest.to_bytes()).is_err(), "{wrong}");
        }
    }
}
