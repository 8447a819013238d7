//! `chancery certificate import` of a folder that somebody moves in with, as an operator does it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use data_encoding::BASE64;
use serde_json::Value;

use crate::plant::Plant;
use crate::report::Report;

/// Between two looks at the client's memory.
const LOOK: Duration = Duration::from_millis(10);
/// How long the edges may take to have all of it.
const SETTLED: Duration = Duration::from_secs(300);

/// What one run of the client said and took.
struct Ran {
    seconds: f64,
    /// KiB, from the kernel's own high-water mark.
    peak: u64,
    summary: Value,
}

/// Writes one PEM pair for each host, on all cores.
fn write_pairs(plant: &Plant, folder: &Path, count: usize) -> Result<()> {
    fs::create_dir_all(folder)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|first| {
                scope.spawn(move || -> Result<()> {
                    for n in (first..count).step_by(threads) {
                        let host = format!("host-{n:05}.moving.example");
                        let leaf = plant.authority.issue(&host)?;
                        let key = BASE64.encode(leaf.key.danger_to_pkcs8_der().expose());
                        let key = format!(
                            "-----BEGIN PRIVATE KEY-----\n{key}\n-----END PRIVATE KEY-----\n"
                        );
                        fs::write(folder.join(format!("{host}.crt")), &leaf.chain)?;
                        fs::write(folder.join(format!("{host}.key")), key)?;
                    }
                    Ok(())
                })
            })
            .collect();
        for worker in workers {
            worker
                .join()
                .map_err(|_| anyhow::anyhow!("making pairs"))??;
        }
        Ok(())
    })
}

fn client(plant: &Plant, folder: &Path) -> Result<Ran> {
    let begun = Instant::now();
    let cli = plant.cli()?.project("moving");
    let output = plant.folder().join("import.out");
    let mut child = Command::new(harness::binary())
        .args(["--json", "certificate", "import"])
        .arg(folder)
        .args(["--region", "north", "--yes"])
        .envs(cli.environment())
        .stdin(Stdio::null())
        .stdout(fs::File::create(&output)?)
        .spawn()?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let ended = loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let mark = text
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok());
        peak = peak.max(mark.unwrap_or(0));
        if let Some(ended) = child.try_wait()? {
            break ended;
        }
        std::thread::sleep(LOOK);
    };
    let seconds = begun.elapsed().as_secs_f64();
    let text = fs::read_to_string(&output)?;
    let last = text.lines().last().context("it says what it did")?;
    ensure!(ended.success(), "the import ended with {ended}: {last}");
    Ok(Ran {
        seconds,
        peak,
        summary: serde_json::from_str(last)?,
    })
}

/// A folder of so many pairs, imported once and once more.
pub(crate) async fn run(plant: &Plant, report: &mut Report, count: usize) -> Result<()> {
    report.progress(&format!("making {count} pairs to import"));
    let folder = plant.folder().join("moving");
    write_pairs(plant, &folder, count)?;
    plant.project("moving").await?;
    report.progress("importing them");
    let (first, again) = tokio::task::block_in_place(|| {
        let first = client(plant, &folder)?;
        ensure!(first.summary["added"] == count, "{}", first.summary);
        let again = client(plant, &folder)?;
        ensure!(again.summary["unchanged"] == count, "{}", again.summary);
        anyhow::Ok((first, again))
    })?;
    let mib = |ran: &Ran| ran.peak as f64 / 1024.0;
    report.row(
        &format!("import of {count} ECDSA pairs, reading, planning and sealing included"),
        "",
        &format!(
            "{:.1} s, {:.0} a second",
            first.seconds,
            count as f64 / first.seconds
        ),
        "import",
    );
    report.row(
        "  the client's memory at its peak",
        "",
        &format!("{:.0} MiB", mib(&first)),
        "import",
    );
    report.row(
        "  the same import again, nothing left to do",
        "",
        &format!("{:.1} s, {:.0} MiB", again.seconds, mib(&again)),
        "import",
    );
    let begun = Instant::now();
    plant.settle(SETTLED).await?;
    report.row(
        "  from the import's end until the edges have all of it",
        "",
        &format!("{:.1} s", begun.elapsed().as_secs_f64()),
        "import",
    );
    Ok(())
}
