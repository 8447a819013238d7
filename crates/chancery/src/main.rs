//! The binary: roles, configuration, command line, telemetry.
//!
//! * [`cli`]: the words of the command line
//! * [`commands`]: what they do, one file a noun
//! * [`client`]: the connection of a command
//! * [`config`], [`up`], [`serve`]: the servers; [`monitor`]: what is looked at of them
//! * [`output`], [`failure`], [`telemetry`]: what is printed, how it ends, what is logged

// Nobody links to a binary: `pub` says what a module offers to the others here.
#![allow(unreachable_pub)]

use std::future::Future;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;

use crate::cli::{Cli, Command};
use crate::failure::{COULD_NOT_RUN, Failure, INTERRUPTED};
use crate::output::Out;
use crate::telemetry::Role;

mod cli;
mod client;
mod commands;
mod config;
mod failure;
mod files;
mod material;
mod monitor;
mod output;
mod progress;
mod serve;
mod servers;
mod telemetry;
mod up;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && json_is_asked(std::env::args_os().skip(1)) => {
            let failure = Failure::Usage(failure::misuse(&error));
            Out::new(true).failure(&failure);
            return failure.status();
        }
        Err(error) => {
            // Whoever pipes the help into a pager that ends early is told nothing.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(COULD_NOT_RUN));
        }
    };
    let out = Out::new(cli.global.json);
    match run(cli, &out) {
        Ok(status) => status,
        Err(failure) => {
            out.failure(&failure);
            failure.status()
        }
    }
}

/// Whether a program asks, as far as words show that could not be read as a whole.
fn json_is_asked(words: impl Iterator<Item = std::ffi::OsString>) -> bool {
    words
        .take_while(|word| word != "--")
        .any(|word| word == "--json")
}

fn run(cli: Cli, out: &Out) -> failure::Result<ExitCode> {
    let json = cli.global.json;
    match cli.command {
        Command::Up(args) => {
            telemetry::start(Role::Server, args.log.log_format, None)?;
            serving(up::run(args, json))
        }
        Command::Serve(args) => {
            let config = config::Config::load(&args.config)?;
            telemetry::start(Role::Server, args.log.log_format, config.log.format)?;
            serving(serve::run(args, config, json))
        }
        command => {
            telemetry::start(Role::Client, None, None)?;
            asking(async {
                tokio::select! {
                    // First, so that it is heard before anything has been asked.
                    biased;
                    pressed = tokio::signal::ctrl_c() => match pressed {
                        Ok(()) => Ok(ExitCode::from(INTERRUPTED)),
                        Err(error) => Err(anyhow::Error::new(error).context("listening for Ctrl-C").into()),
                    },
                    ended = commands::run(&cli.global, command, out) => ended,
                }
            })
        }
    }
}

/// A command is one conversation; one thread is enough.
fn asking(work: impl Future<Output = failure::Result<ExitCode>>) -> failure::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let ended = runtime.block_on(work);
    runtime.shutdown_background();
    ended
}

/// The servers' actors live on an actix system, whose arbiters need it around them.
fn serving(work: impl Future<Output = anyhow::Result<ExitCode>>) -> failure::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let runtime = std::cell::Cell::new(Some(runtime));
    let system = actix::System::with_tokio_rt(move || {
        runtime.take().expect("a system asks for its runtime once")
    });
    system.block_on(work).map_err(Failure::from)
}
