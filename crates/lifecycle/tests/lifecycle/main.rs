//! The core, from outside: what each command gives, what holds over random histories, and the shapes that are stored.

#![allow(clippy::unwrap_used)]

mod cases;
mod daily;
mod golden;
mod limits;
mod oracle;
mod properties;
mod rights;
mod stories;
mod world;
