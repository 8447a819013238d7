//! The bus on a real nats-server: streams, commit protocol, permissions and the door.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "bus/bed.rs"]
mod bed;
#[path = "bus/commit.rs"]
mod commit;
#[path = "bus/raw.rs"]
mod raw;
#[path = "bus/stores.rs"]
mod stores;
#[cfg(feature = "faults")]
#[path = "bus/sweep.rs"]
mod sweep;
#[path = "bus/tenancy.rs"]
mod tenancy;
