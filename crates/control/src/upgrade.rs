//! Rows of another release: the tables are rebuilt from the log when their form has changed.
//!
//! Events outlive releases, rows do not: they are encoded as this release thinks of them. So the ledger remembers in which
//! form its rows were written, and a release that has another one replays the log into a new file before anything reads a
//! row. It takes as long as a rebuild (about ten seconds for a million events) and as much disk as the ledger meanwhile; a
//! crash on the way leaves the old file as it was.

use std::path::Path;

use ledger::{Batch, Change, Ledger, Options};
use wire::envelope::Envelope;

use crate::tables::{ApplyError, BOOKKEEPING, objects_of, rebuild};

/// The form of the rows. To be raised with every change of a row's type, of a key, or of what `evolve` writes.
pub const ROWS: u32 = 2;

const KEY: &[u8] = b"rows";
/// Events whose objects are copied at once.
const PAGE: usize = 1_000;

/// Why the rows could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// An event cannot be replayed.
    #[error("the log cannot be replayed into the rows of this release: {0}")]
    Apply(#[from] ApplyError),
    /// A file or folder.
    #[error("the rebuilt ledger cannot be put into place: {0}")]
    File(#[from] std::io::Error),
}

/// What a ledger says of the form of its rows, as a change to be written with them.
pub fn stamp() -> Change {
    Change {
        table: BOOKKEEPING,
        key: KEY.to_vec(),
        value: Some(ROWS.to_be_bytes().to_vec()),
    }
}

/// Opens the ledger at `path`, with its rows in the form of this release. `scratch` is where a rebuild puts its files.
///
/// # Errors
/// [`Error`]; the ledger stays as it was.
pub fn open(path: &Path, scratch: &Path) -> Result<Ledger, Error> {
    let ledger = Ledger::open(path, &Options::default())?;
    let found = ledger.read()?.get(BOOKKEEPING, KEY)?;
    // The first release did not write it.
    let found = match found.as_deref() {
        Some(bytes) => <[u8; 4]>::try_from(bytes).map_or(0, u32::from_be_bytes),
        None => 1,
    };
    if found == ROWS {
        return Ok(ledger);
    }
    let head = ledger.head();
    if head.sequence == 0 {
        ledger.writer()?.append(&Batch {
            changes: vec![stamp()],
            ..Batch::default()
        })?;
        return Ok(ledger);
    }
    tracing::info!(
        events = head.sequence,
        from = found,
        to = ROWS,
        "the rows of the ledger are of another release; they are being rebuilt from the log"
    );
    let folder = scratch.join("rows");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    let new = folder.join("ledger.redb");
    {
        let fresh = Ledger::open(&new, &Options::default())?;
        rebuild(&ledger, &fresh, head.sequence, |_| {})?;
        copy_objects(&ledger, &fresh)?;
    }
    drop(ledger);
    std::fs::rename(&new, path)?;
    if let Some(parent) = path.parent() {
        std::fs::File::open(parent)?.sync_all()?;
    }
    let _ = std::fs::remove_dir_all(&folder);
    Ok(Ledger::open(path, &Options::default())?)
}

/// Copies what of the content store the events name.
fn copy_objects(from: &Ledger, to: &Ledger) -> Result<(), Error> {
    let snapshot = from.read()?;
    let head = from.head().sequence;
    let mut writer = to.writer()?;
    let mut next = 1;
    while next <= head {
        let mut objects = Vec::new();
        for (sequence, bytes) in snapshot.events(next, PAGE)? {
            next = sequence + 1;
            let event =
                Envelope::decode(&bytes).map_err(|e| ApplyError::Unreadable(sequence, e))?;
            for hash in objects_of(&event.event) {
                if let Some(der) = snapshot.object(&hash)? {
                    objects.push((hash, der));
                }
            }
        }
        if !objects.is_empty() {
            writer.put_objects(objects)?;
        }
    }
    writer.flush()?;
    Ok(())
}
