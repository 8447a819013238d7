//! The pure core of Chancery: what commands mean, which events follow from them, and which certificate is active.
//!
//! Nothing in this crate reads a clock, a random source, a file or a socket. Everything that
//! `decide` needs is in the state or in the command; `evolve` never
//! fails. The state is kept in tables ([`store`]), so that the state that decides and the projections that
//! people query are the same rows, and a replay rebuilds them byte for byte.
//!
//! * [`names`]: slugs, hosts and the ids of things
//! * [`command`], [`event`], [`rejection`]: what is asked, what happened, and why the answer was no
//! * [`state`]: the rows of the aggregates
//! * [`decide`], [`evolve`]: the business
//! * [`selection`]: which certificate is active for a host in a region, and which are its fallbacks
//! * [`history`]: the same question about a moment of the past

pub mod command;
pub mod decide;
pub mod event;
pub mod evolve;
pub mod history;
pub mod names;
pub mod rejection;
#[cfg(feature = "schema")]
pub mod schema;
pub mod selection;
pub mod state;
pub mod store;
