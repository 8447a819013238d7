//! One binary with every test of the whole: guards over the tree, and the path from a command to HTTPS through real parts.

mod dependencies;
mod guards;
mod path;
mod queue;
mod search;
mod stage;
mod tour;
