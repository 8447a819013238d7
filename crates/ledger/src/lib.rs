//! The ledger: a control node's own copy of the log, in one redb file.
//!
//! It stores the exact bytes of every event with their RFC 6962 leaf hash and grows the Merkle tree over
//! them, finds them again by sequence and by scope (a project, to the callers), remembers for ever which command ids were
//! answered and with what, keeps content-addressed objects, and holds the projection tables, whose
//! rows it does not understand. All of one batch becomes durable in one transaction or not at all.
//! It knows bytes, sequences and hashes; it knows no certificate, no JSON and no NATS.
//!
//! One [`Writer`] exists at a time. Readers take a [`Snapshot`], which is one short redb read
//! transaction: a long one keeps every page that was replaced meanwhile from being reused, so walk
//! by pages of a few thousand rows and take a new snapshot for each. Every call blocks on the disk
//! and so belongs on a thread of its own, never in an async worker.
//!
//! # File format, version 2
//!
//! One redb file in mode `ExclusiveWriter`. Integers inside keys are big-endian, so that byte order
//! is number order; integers inside values are little-endian, as redb's own. `scope` and `space`
//! are at most 255 bytes.
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | `meta` | `"format"` | the version, u32 |
//! | `meta` | `"head"` | sequence of the last event, u64; its leaf hash, 32 bytes |
//! | `meta` | `"tree"` | size of the tree, u64; its root, 32 bytes |
//! | `events` | sequence, u64 | leaf hash, 32 bytes; the exact bytes of the event |
//! | `tree` | level, u8, from 1; number in it, u64 | root of the complete subtree of 256^level leaves, 32 bytes |
//! | `scopes` | length of scope, u8; scope; scope sequence, u64 | sequence, u64 |
//! | `outcomes` | length of space, u8; space; command id, 16 bytes | first sequence, u64; count of events, u32; digest, 32 bytes |
//! | `objects` | SHA-256, 32 bytes | the object |
//! | `state` | table, u8; key | the row |
//!
//! `head`, `tree` and the rows of the tree are written in the transaction that appends, so they always
//! belong to the last row of `events`. The leaf hashes, level 0 of the tree, lie with the events: an
//! append costs one row of the tree for 256 events. A ledger of a newer version is refused, never
//! guessed at.
//!
//! Version 1 was the same without a tree. Such a file gets its tree when it is opened, from the bytes of
//! its events, in steps that a crash does not undo.
//!
//! # Durability
//!
//! A commit is redb's two-phase commit with quick-repair: two fsyncs, no reliance on a checksum
//! that an attacker can meet, and no walk through the file after a crash. [`Durability::Deferred`]
//! leaves the fsync to [`Writer::flush`], for a replay into a fresh file that can be thrown away.

pub mod audit;
mod error;
pub mod faults;
mod format;
mod hash;
mod open;
#[cfg(test)]
mod power_loss;
mod prove;
mod snapshot;
pub mod tree;
mod upgrade;
mod writer;

pub use error::Error;
pub use format::{FORMAT, MAX_EVENT, MAX_KEY, MAX_NAME, MAX_OBJECT, MAX_ROW};
pub use hash::{Hash, Head, ParseHashError, leaf_hash};
pub use open::{Ledger, Options, Subscription};
pub use snapshot::{Row, Snapshot};
pub use writer::{Batch, Change, Durability, Outcome, Record, Writer};
