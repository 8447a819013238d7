//! `just bench`: the project's targets, measured on this machine in one run, printed as one table.
//!
//! What is measured is the built binary with its own nats-server, driven from outside as users do, except for what has no
//! outside (replay, selection). The programs that measure an edge alone are the examples of the crate `edge`, which are run
//! as children. Nothing passes or fails here: a shared machine gives figures, not verdicts.

mod commands;
mod plant;
mod report;

use std::time::Duration;

use anyhow::{Result, bail};

use plant::Plant;
use report::Report;

const USAGE: &str = "bench [--quick] [--million] [--only PART]...
PART is one of: commands, served, replay, selection, edge, handshakes";
const PARTS: [&str; 6] = [
    "commands",
    "served",
    "replay",
    "selection",
    "edge",
    "handshakes",
];

struct Options {
    quick: bool,
    million: bool,
    only: Vec<String>,
}

fn options() -> Result<Options> {
    let mut options = Options {
        quick: false,
        million: false,
        only: Vec::new(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--quick" => options.quick = true,
            "--million" => options.million = true,
            "--only" => match words.next() {
                Some(part) if PARTS.contains(&part.as_str()) => options.only.push(part),
                _ => bail!("{USAGE}"),
            },
            _ => bail!("{USAGE}"),
        }
    }
    Ok(options)
}

fn main() -> Result<()> {
    let options = options()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let mut report = Report::new();
    let wanted =
        |part: &str| options.only.is_empty() || options.only.iter().any(|only| only == part);
    runtime.block_on(async {
        if wanted("commands") {
            report.progress("starting the system");
            let mut plant = Plant::start().await?;
            let span = Duration::from_secs(if options.quick { 4 } else { 10 });
            commands::run(&plant, &mut report, span).await?;
            plant.stop();
        }
        anyhow::Ok(())
    })?;
    report.print()?;
    Ok(())
}
