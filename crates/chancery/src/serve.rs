//! `chancery serve`: the roles of a configuration file.

use std::process::ExitCode;

use crate::cli;
use crate::config::Config;

/// Runs until it is ended.
///
/// # Errors
/// When it cannot start, or a part of it fails for good.
pub async fn run(args: cli::Serve, config: Config, json: bool) -> anyhow::Result<ExitCode> {
    let _ = (args, config, json);
    anyhow::bail!("this build has no servers");
}
