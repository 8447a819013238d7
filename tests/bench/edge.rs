//! An edge alone: the examples of the crate `edge`, run as children so that memory and processor time are their own; and an edge
//! with an empty store that takes everything from the running system.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::Serve;

use crate::plant::{Plant, REGIONS};
use crate::report::{Report, quantile, spread};

/// An example of the crate `edge`, which the build left beside this one.
fn example(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(
        path.is_file(),
        "{} is not there: cargo build -p edge --examples",
        path.display()
    );
    Ok(path)
}

fn output(name: &str, arguments: &[String]) -> Result<String> {
    let output = Command::new(example(name)?).args(arguments).output()?;
    ensure!(
        output.status.success(),
        "{name} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Start, memory and change with so many certificates in the store: one process fills it, others each serve a copy of it.
pub(crate) fn names(report: &mut Report, counts: &[u32], times: usize) -> Result<()> {
    for count in counts {
        report.progress(&format!("an edge with {count} certificates"));
        let folder = tempfile::Builder::new()
            .prefix("chancery-bench-")
            .tempdir()?;
        let (filled, served) = (folder.path().join("filled"), folder.path().join("served"));
        std::fs::create_dir(&filled)?;
        let arguments = |phase: &str, folder: &Path| {
            [
                phase.to_owned(),
                folder.display().to_string(),
                count.to_string(),
            ]
        };
        output("names", &arguments("fill", &filled))?;
        let mut found: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for _ in 0..times {
            copy(&filled, &served)?;
            // Each line is a text, then a number, then perhaps more.
            for line in output("names", &arguments("serve", &served))?.lines() {
                let Some((name, rest)) = line.split_once("  ") else {
                    continue;
                };
                let Some(Ok(number)) = rest.split_whitespace().next().map(str::parse) else {
                    continue;
                };
                found
                    .entry(name.trim().to_owned())
                    .or_default()
                    .push(number);
            }
            std::fs::remove_dir_all(&served)?;
        }
        let mut values = |name: &str| {
            found
                .remove(name)
                .with_context(|| format!("the example names does not tell: {name}"))
        };
        let targets = match count {
            100_000 => ["< 50 ms", "< 50 MB", "< 5 ms"],
            1_000_000 => ["< 100 ms", "< 100 MB", "< 5 ms"],
            _ => ["-"; 3],
        };
        for (what, name, unit, target) in [
            (
                "start to first handshake",
                "start to first handshake, ms",
                "ms",
                targets[0],
            ),
            ("idle memory", "idle memory, MiB", "MiB", targets[1]),
            (
                "adding one, delta to served",
                "adding one, to served, ms",
                "ms",
                targets[2],
            ),
        ] {
            report.row(
                &format!("edge, {count} certificates: {what}"),
                target,
                &format!("{} {unit}", spread(&mut values(name)?, 1)),
                "edge",
            );
        }
        let (first, later) = (
            values("first touch of a name, us CPU")?,
            values("a later handshake, us CPU")?,
        );
        let mut ratios: Vec<f64> = first
            .iter()
            .zip(&later)
            .map(|(first, later)| first / later)
            .collect();
        report.row(
            &format!("edge, {count} certificates: CPU, first touch to later"),
            "< 1.7",
            &spread(&mut ratios, 2),
            "edge",
        );
    }
    report.note(format!(
        "edge: median (lowest to highest) of {times} processes, each over a copy of a store that another one filled; cargo run --release -p edge \
         --example names COUNT"
    ));
    Ok(())
}

/// A folder with its files and folders.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// Processor time of a handshake against bare rustls.
pub(crate) fn handshakes(report: &mut Report, runs: usize, rounds: u32, count: u32) -> Result<()> {
    // In the order of the first run.
    let mut kinds: Vec<(String, [Vec<f64>; 3])> = Vec::new();
    for run in 0..runs {
        report.progress(&format!("handshakes, run {} of {runs}", run + 1));
        for line in output("handshakes", &[rounds.to_string(), count.to_string()])?
            .lines()
            .skip(2)
        {
            let words: Vec<&str> = line.split_whitespace().collect();
            let Some((name, numbers)) = words.len().checked_sub(3).map(|at| words.split_at(at))
            else {
                continue;
            };
            let Ok(numbers) = numbers
                .iter()
                .map(|n| n.parse::<f64>())
                .collect::<Result<Vec<_>, _>>()
            else {
                continue;
            };
            let name = name.join(" ");
            let at = kinds
                .iter()
                .position(|(known, _)| *known == name)
                .unwrap_or_else(|| {
                    kinds.push((name, Default::default()));
                    kinds.len() - 1
                });
            for (values, number) in kinds[at].1.iter_mut().zip(numbers) {
                values.push(number);
            }
        }
    }
    ensure!(
        !kinds.is_empty(),
        "handshakes told nothing that can be read"
    );
    for (name, [mut bare, mut edge, mut ratio]) in kinds {
        report.row(
            &format!("handshake CPU against bare rustls: {name}"),
            "ratio <= 1.05",
            &format!(
                "{}; {:.0} against {:.0} us",
                spread(&mut ratio, 3),
                quantile(&mut edge, 0.5),
                quantile(&mut bare, 0.5)
            ),
            "handshakes",
        );
    }
    report.note(format!(
        "handshakes: median (lowest to highest) of {runs} runs' ratios, each of {rounds} interleaved rounds of {count}; P-256; cargo run --release -p edge --example handshakes"
    ));
    Ok(())
}

/// A second edge of the first region, with an empty store, until it has everything.
pub(crate) async fn empty_store(plant: &Plant, report: &mut Report) -> Result<()> {
    let certificates = plant.certificates();
    report.progress(&format!(
        "an edge with an empty store takes {certificates} certificates"
    ));
    let region = REGIONS[0];
    let folder = plant.folder().join("second");
    std::fs::create_dir(&folder)?;
    let enrolled = plant.cli()?.run(&["edge", "enrol", region, "second"]);
    ensure!(enrolled.status == 0, "{enrolled:?}");
    let token = enrolled.json()["token"]
        .as_str()
        .context("enrolling gives a token")?
        .to_owned();
    std::fs::write(folder.join("token"), token)?;
    let config = folder.join("edge.toml");
    std::fs::write(
        &config,
        format!(
            "state = \"state\"\nroles = [\"edge\"]\n[nats]\nurl = \"{}\"\n[[edge]]\nregion = \"{region}\"\nname = \"second\"\n\
             https = \"127.0.0.1:0\"\ntoken = \"token\"\n",
            plant.nats()
        ),
    )?;
    let begun = Instant::now();
    let serve = tokio::task::spawn_blocking(move || Serve::start_unready(&config)).await?;
    let limit = Duration::from_secs(180);
    loop {
        let status = plant.status().await?;
        let regions = status["regions"].as_array().cloned().unwrap_or_default();
        let ours = regions
            .iter()
            .find(|known| known["region"] == region)
            .context("the region is there")?;
        if ours["edges"] == 2 && ours["lag"] == 0 && ours["applied"].as_u64() > Some(0) {
            break;
        }
        ensure!(
            begun.elapsed() < limit,
            "the edge is not complete after {limit:?}: {status}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let seconds = begun.elapsed().as_secs_f64();
    report.row(
        &format!("edge, empty store to complete, {certificates} certificates"),
        "100,000 in < 60 s",
        &format!(
            "{seconds:.1} s, {:.0}/s (100,000 at this pace: {:.0} s)",
            certificates as f64 / seconds,
            seconds / certificates as f64 * 1e5
        ),
        "edge",
    );
    report.note("empty store: a process of its own enrols and takes a snapshot from the running system until its report says that nothing is missing; reports come now and then, which adds to the time".to_owned());
    tokio::task::spawn_blocking(move || serve.stop()).await?;
    Ok(())
}
