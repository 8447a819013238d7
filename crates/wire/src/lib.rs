//! The shapes that leave the process: events, commands, answers and the region feed.

pub mod feed;
