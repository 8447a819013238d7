//! Files of lines: read with a bound and a checksum, written whole or not at all.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;

use super::manifest::{FileIs, NUMBER_END};
use super::{Error, LOCK, MANIFEST, PARTS};

/// Longest line: the largest object with its base64.
const LINE_MAX: u64 = 1 << 20;
/// Bytes and lines from which on a file is full.
const FULL: (usize, u64) = (8 << 20, 10_000);

/// The name of a file below the backup's folder.
pub fn name(kind: &str, first: u64, last: u64) -> String {
    format!("{kind}/{first:012}-{last:012}.jsonl")
}

/// First and last line of a file, from its name without folder.
fn span(name: &str) -> Option<(u64, u64)> {
    let (first, last) = name.strip_suffix(".jsonl")?.split_once('-')?;
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first < NUMBER_END && last < NUMBER_END).then_some((first, last))
}

/// Whether a backup names a file of this kind like that.
pub fn is_name(kind: &str, path: &str) -> bool {
    let inner = path
        .strip_prefix(kind)
        .and_then(|rest| rest.strip_prefix('/'));
    inner.is_some_and(|inner| {
        inner.len() < 80
            && inner
                .strip_suffix(".jsonl")
                .is_some_and(|stem| stem.bytes().all(|b| b.is_ascii_digit() || b == b'-'))
    })
}

/// Lines of a file, one after the other, and the checksum of what was read.
pub struct Lines {
    file: String,
    path: PathBuf,
    reader: BufReader<File>,
    digest: digest::Context,
    line: Vec<u8>,
    /// Bytes that were read.
    pub bytes: u64,
    /// Lines that were read.
    pub count: u64,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines")
            .field("file", &self.file)
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl Lines {
    /// Opens a file below the backup's folder.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it is not there.
    pub fn open(folder: &Path, name: &str) -> Result<Self, Error> {
        let path = folder.join(name);
        let file = File::open(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::damaged(name, "it is not there"),
            _ => Error::file(&path)(error),
        })?;
        Ok(Self {
            file: name.to_owned(),
            path,
            reader: BufReader::with_capacity(1 << 16, file),
            digest: digest::Context::new(&digest::SHA256),
            line: Vec::new(),
            bytes: 0,
            count: 0,
        })
    }

    /// The next line, without its end.
    ///
    /// # Errors
    /// [`Error::Damaged`] for one that is too long or has no end.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<&[u8]>, Error> {
        self.line.clear();
        let read = (&mut self.reader)
            .take(LINE_MAX)
            .read_until(b'\n', &mut self.line)
            .map_err(Error::file(&self.path))?;
        if read == 0 {
            return Ok(None);
        }
        self.digest.update(&self.line);
        self.bytes += read as u64;
        self.count += 1;
        match self.line.split_last() {
            Some((b'\n', line)) => Ok(Some(line)),
            _ => Err(Error::damaged(
                self.file.clone(),
                format!("line {} has no end", self.count),
            )),
        }
    }

    /// Ends the reading: the SHA-256 of all that was read, lower-case hex.
    pub fn sha256(self) -> String {
        HEXLOWER.encode(self.digest.finish().as_ref())
    }

    /// Ends the reading and compares with what the manifest says.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn is(self, file: &FileIs) -> Result<(), Error> {
        let lines = file.last.saturating_sub(file.first).saturating_add(1);
        if self.bytes != file.bytes || self.count != lines {
            return Err(Error::damaged(
                &file.name,
                format!(
                    "it has {} lines and {} bytes instead of {lines} and {}",
                    self.count, self.bytes, file.bytes
                ),
            ));
        }
        if self.sha256() != file.sha256 {
            return Err(Error::damaged(&file.name, "its checksum is another"));
        }
        Ok(())
    }
}

/// Makes a folder that only its owner can read; one that is there stays as it is.
///
/// # Errors
/// [`Error::File`].
pub fn make_folder(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(Error::file(path))
}

/// Makes what happened to a folder's names durable.
///
/// # Errors
/// [`Error::File`].
pub fn sync_folder(path: &Path) -> Result<(), Error> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::file(path))
}

/// A file that only its owner can read, under a name that no reader looks at.
///
/// # Errors
/// [`Error::File`].
pub fn create_part(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(Error::file(path))
}

/// Gives a finished part its name, durably.
///
/// # Errors
/// [`Error::File`]; the part is removed then, so that a full disk has that room back.
pub fn keep_part(file: &File, part: &Path, path: &Path) -> Result<(), Error> {
    let kept = file.sync_all().and_then(|()| std::fs::rename(part, path));
    if let Err(error) = kept {
        let _ = std::fs::remove_file(part);
        return Err(Error::file(path)(error));
    }
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// Writes a file whole or not at all, readable by its owner only.
///
/// # Errors
/// [`Error::File`].
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    let mut file = create_part(&part)?;
    if let Err(error) = file.write_all(bytes) {
        let _ = std::fs::remove_file(&part);
        return Err(Error::file(path)(error));
    }
    keep_part(&file, &part, path)
}

/// A backup's folder while it is written.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes the folder where it is missing and locks it.
    ///
    /// # Errors
    /// [`Error::Foreign`] for a folder with something else in it, [`Error::Locked`].
    pub fn lock(path: &Path) -> Result<Self, Error> {
        make_folder(path)?;
        let is_backup = path.join(MANIFEST).exists();
        for entry in std::fs::read_dir(path).map_err(Error::file(path))? {
            let entry = entry.map_err(Error::file(path))?;
            let name = entry.file_name();
            let ours = PARTS.iter().any(|part| name == *part)
                || name == LOCK
                || name == "lost+found"
                || name == "manifest.json.part";
            if !ours && !is_backup {
                return Err(Error::Foreign {
                    folder: path.to_owned(),
                    found: name.to_string_lossy().into_owned(),
                });
            }
        }
        let lock = path.join(LOCK);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock)
            .map_err(Error::file(&lock))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(Error::file(&lock)(error)),
        }
        for part in PARTS {
            make_folder(&path.join(part))?;
        }
        Ok(Self {
            path: path.to_owned(),
            _lock: file,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files of a kind that are there, as a chain from line 1 on: of two that begin alike the longer one. Files that an
    /// interrupted backup left are among them.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn chain(&self, kind: &str) -> Result<Vec<(u64, u64)>, Error> {
        let mut spans: Vec<(u64, u64)> = self
            .names(kind)?
            .iter()
            .filter_map(|name| span(name))
            .filter(|(first, last)| *first >= 1 && last >= first)
            .collect();
        spans.sort_by_key(|&(first, last)| (first, std::cmp::Reverse(last)));
        let mut next = 1;
        Ok(spans
            .into_iter()
            .filter(|&(first, last)| {
                let follows = first == next;
                if follows {
                    next = last + 1;
                }
                follows
            })
            .collect())
    }

    fn names(&self, kind: &str) -> Result<Vec<String>, Error> {
        let path = self.path.join(kind);
        let entries = std::fs::read_dir(&path).map_err(Error::file(&path))?;
        Ok(entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect())
    }

    /// Removes the files that a finished backup does not name: those that were merged into others, and what an interrupted
    /// one left.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn prune(&self, manifest: &super::Manifest) -> Result<(), Error> {
        for (kind, part) in PARTS.into_iter().zip(manifest.parts()) {
            for inner in self.names(kind)? {
                let name = format!("{kind}/{inner}");
                let ours = is_name(kind, &name) || inner.ends_with(".part");
                if ours && !part.files.iter().any(|file| file.name == name) {
                    let path = self.path.join(&name);
                    std::fs::remove_file(&path).map_err(Error::file(&path))?;
                }
            }
        }
        Ok(())
    }
}

/// Files of one kind that follow each other, while lines are added.
#[derive(Debug)]
pub struct Series {
    folder: PathBuf,
    kind: &'static str,
    files: Vec<FileIs>,
    /// The last file as it was, if it was not full: its lines are the first of the next one.
    held: Option<FileIs>,
    lines: Vec<u8>,
    first: u64,
    next: u64,
}

impl Series {
    /// Goes on after these files.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn after(
        folder: &Folder,
        kind: &'static str,
        mut files: Vec<FileIs>,
    ) -> Result<Self, Error> {
        let next = files.last().map_or(1, |file| file.last + 1);
        let small = |file: &mut FileIs| {
            let lines = file.last + 1 - file.first;
            lines < FULL.1 && file.bytes < FULL.0 as u64
        };
        let held = files.pop_if(small);
        let (lines, first) = match &held {
            Some(file) => {
                let path = folder.path.join(&file.name);
                (
                    std::fs::read(&path).map_err(Error::file(&path))?,
                    file.first,
                )
            }
            None => (Vec::new(), next),
        };
        Ok(Self {
            folder: folder.path.clone(),
            kind,
            files,
            held,
            lines,
            first,
            next,
        })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// [`Error::File`] when a file that is full now cannot be written, [`Error::Damaged`] for a line that is two.
    pub fn push(&mut self, line: &[u8]) -> Result<(), Error> {
        if line.contains(&b'\n') || line.len() as u64 + 1 > LINE_MAX {
            return Err(Error::damaged(
                self.kind,
                format!("entry {} cannot be a line", self.next),
            ));
        }
        self.lines.extend_from_slice(line);
        self.lines.push(b'\n');
        self.next += 1;
        if self.lines.len() >= FULL.0 || self.next - self.first >= FULL.1 {
            self.write()?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), Error> {
        let (first, last) = (self.first, self.next - 1);
        let name = name(self.kind, first, last);
        write_whole(&self.folder.join(&name), &self.lines)?;
        self.files.push(FileIs {
            name,
            first,
            last,
            bytes: self.lines.len() as u64,
            sha256: HEXLOWER.encode(&ledger::Hash::of(&self.lines).0),
        });
        self.lines.clear();
        self.first = self.next;
        self.held = None;
        Ok(())
    }

    /// Writes what is left; all files in order.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn end(&mut self) -> Result<Vec<FileIs>, Error> {
        let grown = match &self.held {
            Some(held) => self.next > held.last + 1,
            None => self.next > self.first,
        };
        if grown {
            self.write()?;
        }
        let mut files = self.files.clone();
        files.extend(self.held.clone());
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(folder: &Path, files: &[FileIs]) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        for file in files {
            let mut lines = Lines::open(folder, &file.name).expect("it is there");
            while let Some(line) = lines.next().expect("a line") {
                all.push(line.to_vec());
            }
            lines.is(file).expect("it is what was written");
        }
        all
    }

    #[test]
    fn a_series_grows_and_a_small_last_file_is_merged() {
        let temporary = tempfile::tempdir().expect("a folder");
        let folder = Folder::lock(&temporary.path().join("b")).expect("locked");
        assert!(matches!(Folder::lock(folder.path()), Err(Error::Locked(_))));
        let mut files = Vec::new();
        let mut wanted = Vec::new();
        for round in 0..3 {
            let mut series = Series::after(&folder, "events", files).expect("a series");
            for line in 0..round * 6_000 + 5 {
                let line = format!("{round} {line}").into_bytes();
                series.push(&line).expect("pushed");
                wanted.push(line);
            }
            files = series.end().expect("written");
            assert_eq!(read(folder.path(), &files), wanted);
        }
        assert_eq!(files.last().map(|f| f.last), Some(wanted.len() as u64));
        assert_eq!(files.len(), 2, "{files:?}");
        // Nothing new writes nothing.
        let again = Series::after(&folder, "events", files.clone())
            .expect("a series")
            .end()
            .expect("nothing to do");
        assert_eq!(again, files);
        let spans: Vec<_> = files.iter().map(|f| (f.first, f.last)).collect();
        assert_eq!(folder.chain("events").expect("listed"), spans);
        // A name whose numbers overflow is no backup's.
        let wrong = folder.path().join(name("events", 1, u64::MAX));
        std::fs::write(wrong, "").expect("written");
        assert_eq!(folder.chain("events").expect("listed"), spans);
    }

    #[test]
    fn what_is_cut_or_changed_is_found() {
        let temporary = tempfile::tempdir().expect("a folder");
        let folder = Folder::lock(temporary.path()).expect("locked");
        let mut series = Series::after(&folder, "objects", Vec::new()).expect("a series");
        for line in ["one", "two"] {
            series.push(line.as_bytes()).expect("pushed");
        }
        assert!(series.push(b"two\nlines").is_err());
        let files = series.end().expect("written");
        let path = folder.path().join(&files[0].name);
        let good = std::fs::read(&path).expect("it reads");
        for bad in [
            &b"one\ntwo"[..],
            b"one\n",
            b"one\ntwa\n",
            b"one\ntwo\n\n",
            b"",
        ] {
            std::fs::write(&path, bad).expect("written");
            let mut lines = Lines::open(folder.path(), &files[0].name).expect("it is there");
            let whole = loop {
                match lines.next() {
                    Ok(Some(_)) => {}
                    Ok(None) => break lines.is(&files[0]),
                    Err(error) => break Err(error),
                }
            };
            assert!(whole.is_err(), "{bad:?}");
        }
        std::fs::write(&path, good).expect("written");
        assert_eq!(read(folder.path(), &files).len(), 2);
    }

    #[test]
    fn a_folder_with_something_else_is_left_alone() {
        let temporary = tempfile::tempdir().expect("a folder");
        std::fs::write(temporary.path().join("thesis.tex"), "x").expect("written");
        let error = Folder::lock(temporary.path()).expect_err("refused");
        assert!(error.to_string().contains("thesis.tex"), "{error}");
        assert!(!temporary.path().join("events").exists());
    }
}
