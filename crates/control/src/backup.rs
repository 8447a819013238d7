//! A backup as it lies in a folder: what is in it, how it is read and checked, how it is written so that a crash at any
//! moment leaves a whole one. The format is described in docs/backup.md.
//!
//! Everything is lines of text: an event is a line of its exact bytes, certificates and sealed keys are JSON with base64.
//! The manifest is written last and names every file with its SHA-256; what it does not name is not part of the backup. Files
//! are never changed: a file that grows is written anew under another name, and the old one goes when the manifest no longer
//! names it.
//!
//! * [`manifest`]: what is there; [`files`]: lines, and series of files of them
//! * [`review`]: the log as it is read through, and what the state at its end needs
//! * [`keys`]: which sealed keys belong into the backup; [`check`]: everything at once

use std::path::{Path, PathBuf};

pub mod check;
pub mod files;
pub mod keys;
pub mod manifest;
pub mod review;

pub use check::{Checked, check};
pub use manifest::{Manifest, Point};
pub use review::Review;

/// The folders of a backup.
pub const PARTS: [&str; 3] = ["events", "objects", "keys"];
/// The file that says what belongs to the backup.
pub const MANIFEST: &str = "manifest.json";
/// Held locked while the backup is written.
pub const LOCK: &str = "lock";

/// Why a backup cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder failed. A full disk is one of these.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// There is no backup.
    #[error("{} holds no finished backup: there is no {MANIFEST}", .0.display())]
    None(PathBuf),
    /// The folder is used for something else.
    #[error("{} holds {found}, which is no part of a backup; name an empty folder or one with a backup", folder.display())]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// What is there.
        found: String,
    },
    /// Another process writes into it.
    #[error("{} is being written by another backup", .0.display())]
    Locked(PathBuf),
    /// A later release has written it.
    #[error(
        "the backup has format version {found}; this release reads up to {}",
        manifest::VERSION
    )]
    Newer {
        /// Its version.
        found: u32,
    },
    /// A file is not what was written.
    #[error("{file} is damaged: {what}")]
    Damaged {
        /// The file, below the folder.
        file: String,
        /// What is wrong.
        what: String,
    },
}

impl Error {
    pub(crate) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::File {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn damaged(file: impl Into<String>, what: impl std::fmt::Display) -> Self {
        Self::Damaged {
            file: file.into(),
            what: what.to_string(),
        }
    }
}
