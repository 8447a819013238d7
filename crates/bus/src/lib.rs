//! Everything that touches NATS: the server child, accounts and permissions, the log and the other streams,
//! and the door through which projects' commands and queries come in.
//!
//! The crate knows bytes, subjects and identities. What an event or a command means is decided elsewhere.

pub mod connect;
mod faults;
pub mod identity;
pub mod jetstream;
pub mod log;
pub mod server;
pub mod streams;
pub mod templates;

/// The prefix of every subject of ours, with its final dot. A change of it is a new protocol version.
pub const PREFIX: &str = "chancery.v1.";
