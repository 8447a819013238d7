//! Everything that touches NATS: the server child, accounts and permissions, the log and the other streams,
//! and the door through which projects' commands and queries come in.
//!
//! The crate knows bytes, subjects and identities. What an event or a command means is decided elsewhere.

pub mod claims;
pub mod connect;
pub mod door;
mod faults;
mod group;
pub mod identity;
pub mod jetstream;
pub mod keys;
mod listener;
pub mod log;
pub mod objects;
pub mod queue;
pub mod server;
pub mod streams;
pub mod templates;

/// The prefix of every subject of ours, with its final dot. A change of it is a new protocol version.
pub const PREFIX: &str = "chancery.v1.";
