//! Logs: facts as fields, to stderr, so that stdout stays the answer.

use std::io::IsTerminal;

use clap::ValueEnum;
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people on a terminal, else as JSON
    #[default]
    Auto,
    /// For people
    Human,
    /// One JSON document a line
    Json,
}

/// What is logged unless `CHANCERY_LOG` says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A command that asks and ends: only what is wrong.
    Client,
    /// A server: what it does.
    Server,
}

/// Begins to log. The format is the argument, else `CHANCERY_LOG_FORMAT` (`auto`, `human` or `json`), else `configured`,
/// else [`Format::Auto`]; for clients lines are for people unless told. Call it once; a second call changes nothing.
///
/// # Errors
/// When `CHANCERY_LOG` or `CHANCERY_LOG_FORMAT` cannot be read.
pub fn start(role: Role, format: Option<Format>, configured: Option<Format>) -> anyhow::Result<()> {
    let format = match (
        format,
        std::env::var("CHANCERY_LOG_FORMAT")
            .ok()
            .filter(|v| !v.is_empty()),
    ) {
        (Some(format), _) => format,
        (None, Some(text)) => Format::from_str(&text, true)
            .map_err(|_| anyhow::anyhow!("CHANCERY_LOG_FORMAT is auto, human or json"))?,
        (None, None) => configured.unwrap_or_default(),
    };
    let filter = match std::env::var("CHANCERY_LOG").ok().filter(|v| !v.is_empty()) {
        Some(text) => EnvFilter::try_new(text).map_err(|error| {
            anyhow::anyhow!("CHANCERY_LOG is not a filter such as info,edge=debug: {error}")
        })?,
        None => EnvFilter::new(match role {
            Role::Client => "warn,async_nats=error",
            Role::Server => "info,async_nats=warn",
        }),
    };
    let terminal = std::io::stderr().is_terminal();
    let json = match format {
        Format::Json => true,
        Format::Human => false,
        Format::Auto => role == Role::Server && !terminal,
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // An error here only says that somebody else, such as a test, began to log first.
    let _ = if json {
        builder
            .json()
            .flatten_event(true)
            .with_ansi(false)
            .try_init()
            .map_err(drop)
    } else {
        let colours = terminal && std::env::var_os("NO_COLOR").is_none();
        builder
            .with_ansi(colours)
            .with_target(role == Role::Server)
            .try_init()
            .map_err(drop)
    };
    Ok(())
}
