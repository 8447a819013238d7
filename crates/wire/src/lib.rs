//! The shapes that leave the process: events, commands, answers and the region feed.
//!
//! * [`envelope`]: an event as the log stores it, CloudEvents 1.0 structured JSON
//! * [`subject`]: the table of NATS subjects
//! * [`request`]: the bodies of commands and queries
//! * [`answer`]: what comes back: an acceptance, or a problem document with reason codes
//! * [`feed`]: what distribution sends to edges
//! * `asyncapi` (feature `schema`): the document of all this for programs
//! * [`tlog`]: checkpoints, proofs and tiles of the log, for auditors

pub mod answer;
#[cfg(feature = "schema")]
pub mod asyncapi;
pub mod envelope;
pub mod feed;
pub mod request;
pub mod subject;
pub mod tlog;
