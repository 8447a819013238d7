//! `chancery up`: everything in one process, with its own nats-server child.

use std::process::ExitCode;

use crate::cli;

/// Runs until it is ended. `json`: the ready line is a JSON document.
///
/// # Errors
/// When it cannot start, or a part of it fails for good.
pub async fn run(args: cli::Up, json: bool) -> anyhow::Result<ExitCode> {
    let _ = (args, json);
    anyhow::bail!("this build has no servers");
}
