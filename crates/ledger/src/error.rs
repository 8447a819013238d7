//! What can go wrong, by whose fault it is: the caller's batch, the file, or the disk.

use crate::Hash;

/// An error of the ledger.
///
/// A *refusal* ([`Error::is_refusal`]) is the answer to a batch that does not fit: nothing was
/// written and the writer goes on. [`Error::Storage`] from a writer is final: what reached the disk
/// is unknown, the writer refuses everything after it with [`Error::Poisoned`], and the process must
/// restart, which opens the file again and finds either the whole batch or nothing of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An event's sequence is not the one after the head.
    #[error("event {found} where {expected} comes next")]
    Gap {
        /// The sequence after the head.
        expected: u64,
        /// The one that the record has.
        found: u64,
    },
    /// An event names another event before it than the ledger's.
    #[error("event {sequence} follows {found}, but this ledger has {expected} before it")]
    Fork {
        /// The event's sequence.
        sequence: u64,
        /// The leaf hash of the event before, here.
        expected: Hash,
        /// The hash that the record names.
        found: Hash,
    },
    /// An event's number within its scope is not the next one there.
    #[error("event {found} of scope {scope} where {expected} comes next")]
    ScopeGap {
        /// The scope.
        scope: String,
        /// The next number in it.
        expected: u64,
        /// The number that the record has.
        found: u64,
    },
    /// The command id has an outcome already, or twice in this batch. Look it up before deciding.
    #[error("the command has an outcome already in space {space}")]
    Duplicate {
        /// The dedup space.
        space: String,
        /// The command id.
        id: [u8; 16],
    },
    /// An outcome must name at least one event, and its last one must be in the same batch, so that
    /// the outcome becomes durable together with what it reports.
    #[error("an outcome of {count} events from {first} does not end in its batch")]
    OutcomeOutside {
        /// The first event of the command.
        first: u64,
        /// How many there are.
        count: u32,
    },
    /// The object's SHA-256 is another than it was put under.
    #[error("the object put as {claimed} has another hash")]
    ObjectMismatch {
        /// The hash that the caller gave.
        claimed: Hash,
    },
    /// Something is longer than the format allows, or is empty where it must not be.
    #[error("{what} of {length} bytes, where {least} to {limit} are allowed")]
    Length {
        /// What it is.
        what: &'static str,
        /// Its length in bytes.
        length: usize,
        /// The fewest bytes it may have.
        least: usize,
        /// The most bytes it may have.
        limit: usize,
    },
    /// A writer exists already. There is only one; it is free again once dropped.
    #[error("the ledger has a writer already")]
    WriterTaken,
    /// A write failed earlier and what reached the disk is unknown. Restart the process.
    #[error("an earlier write failed; the process must restart")]
    Poisoned,
    /// Another process, or another [`Ledger`](crate::Ledger) in this one, has the file open.
    #[error("the ledger is open elsewhere")]
    Locked,
    /// The file is a redb database, but no ledger.
    #[error("the file is not a ledger")]
    NotALedger,
    /// The file was written by a newer release.
    #[error("the ledger has format {found}; this release reads up to {supported}")]
    NewerFormat {
        /// The file's version.
        found: u32,
        /// The newest that this release reads.
        supported: u32,
    },
    /// The file contradicts itself. Move it aside and build it again from the log.
    #[error("the ledger is damaged: {0}")]
    Damaged(String),
    /// redb failed. From a writer, this is final.
    #[error("{during}")]
    Storage {
        /// What was being done.
        during: &'static str,
        /// redb's own error.
        #[source]
        source: Box<redb::Error>,
    },
    /// The file system failed while the file was being created.
    #[error("cannot create the ledger")]
    Create(#[from] std::io::Error),
}

impl Error {
    pub(crate) fn storage<E: Into<redb::Error>>(during: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Storage {
            during,
            source: Box::new(source.into()),
        }
    }

    /// Whether this only says that a batch does not fit: nothing was written, and the writer can be
    /// used further.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Gap { .. }
                | Self::Fork { .. }
                | Self::ScopeGap { .. }
                | Self::Duplicate { .. }
                | Self::OutcomeOutside { .. }
                | Self::ObjectMismatch { .. }
                | Self::Length { .. }
        )
    }
}
