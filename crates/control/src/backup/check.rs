//! Everything in a backup at once, checked from its bytes alone: no key is opened for it.

use std::collections::HashSet;
use std::path::Path;

use data_encoding::{BASE64, HEXLOWER};
use serde::{Deserialize, Serialize};

use super::files::Lines;
use super::keys::{Kept, KeyLine, What};
use super::manifest::{FileIs, Part};
use super::{Error, Manifest, Review};

/// How many problems are listed; checking ends there.
const LISTED: usize = 20;

/// A line of a file of objects.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectLine {
    /// SHA-256 of the bytes, lower-case hex.
    pub sha256: String,
    /// The DER, base64.
    pub der: String,
}

impl ObjectLine {
    /// Of an object.
    pub fn of(bytes: &[u8]) -> Vec<u8> {
        let line = Self {
            sha256: HEXLOWER.encode(&ledger::Hash::of(bytes).0),
            der: BASE64.encode(bytes),
        };
        serde_json::to_vec(&line).expect("text is always JSON")
    }

    /// Reads a line: the object's name and its bytes, which belong together.
    ///
    /// # Errors
    /// In words.
    pub fn read(line: &[u8]) -> Result<([u8; 32], Vec<u8>), String> {
        let line: Self = serde_json::from_slice(line).map_err(|_| "a line is not of its form")?;
        let bytes = BASE64
            .decode(line.der.as_bytes())
            .map_err(|_| "an object is not base64")?;
        let hash = ledger::Hash::of(&bytes).0;
        if HEXLOWER.encode(&hash) != line.sha256 {
            return Err("an object is not what its name says".to_owned());
        }
        Ok((hash, bytes))
    }
}

/// A backup that was read through.
#[derive(Debug)]
pub struct Checked {
    /// What it says of itself.
    pub manifest: Manifest,
    /// Its log.
    pub review: Review,
    /// What is wrong, in words; nothing when it can be restored.
    pub problems: Vec<String>,
}

/// Calls `take` for each line of a part's files, in order, and checks the files against the manifest on the way.
///
/// # Errors
/// [`Error::Damaged`] and [`Error::File`]; those of `take` become the former.
pub fn each_line(
    folder: &Path,
    part: &Part,
    mut take: impl FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), Error> {
    for file in &part.files {
        each_line_of(folder, file, &mut take)?;
    }
    Ok(())
}

fn each_line_of(
    folder: &Path,
    file: &FileIs,
    take: &mut impl FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), Error> {
    let mut lines = Lines::open(folder, &file.name)?;
    while let Some(line) = lines.next()? {
        take(line).map_err(|what| Error::damaged(&file.name, what))?;
    }
    lines.is(file)
}

/// Reads a backup through: checksums of all files, the hash links of the events, that certificates are what they are named
/// by, and that everything that the state needs is there. `progress` is told how many more lines were read.
///
/// # Errors
/// When there is no backup, or its manifest does not read. What is wrong below the manifest is in [`Checked::problems`].
pub fn check(folder: &Path, mut progress: impl FnMut(u64)) -> Result<Checked, Error> {
    let manifest = Manifest::read(folder)?;
    let mut problems: Vec<String> = Vec::new();
    let mut review = Review::default();
    let mut note = |result: Result<(), Error>| match result {
        Err(error @ Error::File { .. }) => Err(error),
        Err(error) if problems.len() < LISTED => {
            problems.push(error.to_string());
            Ok(())
        }
        _ => Ok(()),
    };

    let events = each_line(folder, &manifest.events, |line| {
        progress(1);
        review.push(line).map(drop)
    });
    let events_whole = events.is_ok();
    note(events)?;

    let mut objects: HashSet<[u8; 32]> = HashSet::new();
    for file in &manifest.objects.files {
        note(each_line_of(folder, file, &mut |line| {
            progress(1);
            objects.insert(ObjectLine::read(line)?.0);
            Ok(())
        }))?;
    }

    let mut kept = Kept::default();
    let (mut last, mut keys_whole) = (0, true);
    for file in &manifest.keys.files {
        let read = each_line_of(folder, file, &mut |line| {
            progress(1);
            let (sequence, blob) = KeyLine::read(line)?;
            if sequence < last {
                return Err("the keys are not in their order".to_owned());
            }
            last = sequence;
            if blob.root_id().is_some_and(|id| id != manifest.root_key) {
                return Err("a key is wrapped by another root key".to_owned());
            }
            kept.add(What::of(&blob));
            Ok(())
        });
        keys_whole &= read.is_ok();
        note(read)?;
    }

    // What a damaged file lacks would only be told twice.
    if events_whole {
        let head = &manifest.head;
        if review.head.sequence != head.sequence || review.head.hash.to_string() != head.hash {
            problems.push("the last event is not the one that the manifest names".to_owned());
        }
        if review.log.as_ref() != Some(&manifest.log) {
            problems.push("the events are of another log than the manifest".to_owned());
        }
        if !review.is_whole() {
            problems.push("the last command is not whole".to_owned());
        }
        let lost = review.objects.difference(&objects).count();
        if problems.is_empty() && lost > 0 {
            problems.push(format!(
                "{lost} certificates or requests that events name are missing"
            ));
        }
        if keys_whole {
            let missing = review.missing(&kept);
            problems.extend(missing.into_iter().map(|what| format!("{what} is missing")));
        }
    }
    problems.truncate(LISTED);
    Ok(Checked {
        manifest,
        review,
        problems,
    })
}
