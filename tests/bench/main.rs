//! `just bench`: the project's targets, measured on this machine in one run, printed as one table.
//!
//! What is measured is the built binary with its own nats-server, driven from outside as users do, except for what has no
//! outside (replay, selection). The programs that measure an edge alone are the examples of the crate `edge`, which are run
//! as children. Nothing passes or fails here: a shared machine gives figures, not verdicts.

mod backup;
mod commands;
mod edge;
mod import;
mod list;
mod plant;
mod replay;
mod report;
mod selection;
mod served;
mod verify;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use plant::Plant;
use report::Report;

const USAGE: &str = "bench [--quick] [--million] [--only PART]...
PART is one of: commands, served, import, list, replay, backup, selection, verify, edge, handshakes";
const PARTS: [&str; 10] = [
    "commands",
    "served",
    "import",
    "list",
    "replay",
    "backup",
    "selection",
    "verify",
    "edge",
    "handshakes",
];

struct Options {
    quick: bool,
    million: bool,
    only: Vec<String>,
}

fn options() -> Option<Options> {
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
                _ => return None,
            },
            _ => return None,
        }
    }
    Some(options)
}

fn main() -> Result<ExitCode> {
    let Some(options) = options() else {
        eprintln!("{USAGE}");
        return Ok(ExitCode::from(2));
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let mut report = Report::new();
    let quick = options.quick;
    let wanted =
        |part: &str| options.only.is_empty() || options.only.iter().any(|only| only == part);
    let load = load_average();
    let disk = report::disk(&std::env::temp_dir())?;

    if [
        "commands", "served", "import", "list", "edge", "replay", "backup",
    ]
    .into_iter()
    .any(wanted)
    {
        report.progress("starting the system");
        let mut plant = runtime.block_on(Plant::start())?;
        let span = Duration::from_secs(if quick { 4 } else { 10 });
        runtime.block_on(async {
            if wanted("commands") {
                commands::run(&plant, &mut report, span).await?;
            } else if wanted("edge") || wanted("replay") || wanted("backup") {
                commands::fill(&plant, &mut report, span).await?;
            }
            if wanted("served") {
                served::run(&plant, &mut report, if quick { 30 } else { 100 }).await?;
            }
            if wanted("import") {
                import::run(&plant, &mut report, if quick { 1_000 } else { 10_000 }).await?;
            }
            if wanted("edge") {
                edge::empty_store(&plant, &mut report).await?;
            }
            if wanted("list") {
                list::run(&plant, &mut report, if quick { 10_000 } else { 100_000 }).await?;
            }
            if wanted("backup") {
                tokio::task::block_in_place(|| backup::take(&plant, &mut report))?;
            }
            anyhow::Ok(())
        })?;
        // What the clients hold of it must not be connected when it goes.
        plant.stop();
        if wanted("backup") {
            backup::restore(plant.folder(), &mut report)?;
        }
        if wanted("replay") {
            replay::run(
                &plant.ledger(),
                plant.folder(),
                &mut report,
                if quick { 3 } else { 5 },
            )?;
        }
    }
    if wanted("selection") {
        selection::run(&mut report);
    }
    if wanted("verify") {
        verify::run(&mut report, if quick { 10 } else { 50 })?;
    }
    if wanted("edge") {
        let mut counts = vec![1_000, 10_000];
        if !quick {
            counts.push(100_000);
        }
        if options.million {
            counts.push(1_000_000);
        }
        edge::names(&mut report, &counts, if quick { 3 } else { 5 })?;
    }
    if wanted("handshakes") {
        let (runs, rounds) = if quick { (3, 2) } else { (7, 4) };
        edge::handshakes(&mut report, runs, rounds, 200)?;
    }
    report.note(format!(
        "{} cores, {}; load average {load} before the start (anything else that runs here makes all of this slower); a sync of 4 KiB in {} \
         takes {:.2} ms (median), {:.2} ms (99th of 100)",
        std::thread::available_parallelism().map_or(0, usize::from),
        if report.optimised { "release build" } else { "debug build: figures mean little" },
        std::env::temp_dir().display(),
        disk.0,
        disk.1,
    ));
    report.print()?;
    Ok(ExitCode::SUCCESS)
}

fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace()
        .next()
        .unwrap_or("unknown")
        .to_owned()
}
