//! The control plane: the actors that take commands in, decide them, and bring what follows to the edges.
//!
//! * [`ingestion`]: reads what comes through the door, examines certificates ([`chain`]), has their keys sealed
//! * [`registrar`]: the one writer of the log; [`queue`]: commands that are decided later
//! * [`tables`]: the ledger's rows as the domain reads them
//! * [`audit`]: signed checkpoints of the log, and proofs of single events
//! * [`vault`]: sealed private keys; [`custodian`]: their end; [`access`]: who may connect
//! * [`verifier`], [`clock`]: what is owed to the world and to time, turned into commands
//! * [`revocation`]: whether CAs have taken back what is served
//! * [`prover`]: claims that their owners prove in the DNS
//! * [`checks`]: what was last found in the world, kept beside the ledger
//! * [`distribution`], [`feed`]: what the edges of a region need
//! * [`views`]: what people ask; [`backup`]: what they may take away of it, and [`restore`]: what becomes of that
//! * [`upgrade`]: rows that another release wrote
//! * [`monitor`]: what operators watch
//! * [`rate`], [`turns`]: how much of all this one project may take
//!
//! [`Control::start`] puts them together in one process.

pub mod access;
pub mod audit;
pub mod backup;
pub mod chain;
pub mod checks;
pub mod clock;
pub mod custodian;
pub mod distribution;
pub mod feed;
mod front;
pub mod ingestion;
pub mod monitor;
pub mod prover;
pub mod queue;
pub mod rate;
pub mod registrar;
pub mod restore;
pub mod revocation;
pub mod start;
pub mod tables;
pub mod turns;
pub mod upgrade;
pub mod vault;
pub mod verifier;
pub mod views;

pub use start::{Config, Control, Error};
