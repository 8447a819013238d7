//! control

pub mod chain;
