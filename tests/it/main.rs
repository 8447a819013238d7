//! One binary with every test of the whole: guards over the tree, and the path from a command to HTTPS through real parts.

mod asyncapi;
mod audit;
mod backup;
mod claims;
mod daily;
mod dependencies;
mod forms;
mod guards;
mod hostile;
mod import;
mod monitor;
mod path;
mod queue;
mod quotas;
mod raw;
mod revocation;
mod search;
mod stage;
mod tour;
mod two;
mod upgrade;
mod verify;
mod warnings;
