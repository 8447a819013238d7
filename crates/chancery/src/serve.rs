//! `chancery serve`: the roles of a configuration file.

use std::process::ExitCode;

use crate::cli;
use crate::config::Config;

/// Runs until it is ended.
///
/// # Errors
/// When it cannot start, or a part of it fails for good.
pub async fn run(args: cli::Serve, mut config: Config, json: bool) -> anyhow::Result<ExitCode> {
    if !args.roles.is_empty() {
        config.roles = args.roles;
    }
    crate::servers::run(config, json).await
}
