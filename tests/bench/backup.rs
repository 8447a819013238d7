//! A backup of the running system that the run filled, and what it takes to have it back.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use harness::{Cli, Up};

use crate::plant::{Plant, REGIONS};
use crate::report::Report;

/// Below the folder of the run.
const BACKUP: &str = "backup";

/// What a command takes, in seconds; a command that fails ends the run.
fn seconds(cli: &Cli, words: &[&str]) -> f64 {
    let begun = Instant::now();
    cli.run(words).ok();
    begun.elapsed().as_secs_f64()
}

/// Somebody without any set-up, as whoever restores is.
fn nobody() -> Cli {
    Cli::new(Default::default())
}

/// Takes it, and takes it again, while the system runs.
pub(crate) fn take(plant: &Plant, report: &mut Report) -> Result<()> {
    report.progress("backing up");
    let (operator, folder) = (plant.cli()?, plant.folder().join(BACKUP));
    let folder = folder.display().to_string();
    for what in ["the first", "the next one, with nothing new"] {
        let taken = seconds(&operator, &["backup", &folder]);
        report.row(
            &format!("backup, {what}"),
            "",
            &format!("{taken:.2} s"),
            "backup",
        );
    }
    let checked = seconds(&nobody(), &["backup", "--verify", &folder]);
    report.row("  checking it", "", &format!("{checked:.2} s"), "backup");
    Ok(())
}

/// Brings it back beside the system, which has ended, and starts what came of it.
pub(crate) fn restore(run: &Path, report: &mut Report) -> Result<()> {
    report.progress("restoring");
    let text = |name: &str| run.join(name).display().to_string();
    let (backup, state, key) = (text(BACKUP), text("restored/state"), text("state/root.key"));
    std::fs::create_dir(run.join("restored"))?;
    let words = ["restore", &backup, "--state", &state, "--root-key", &key];
    let restored = seconds(&nobody(), &words);
    report.row("  restoring it", "", &format!("{restored:.2} s"), "backup");
    let begun = Instant::now();
    drop(
        Up::in_folder(&run.join("restored"))
            .regions(&REGIONS)
            .start(),
    );
    report.row(
        "  from the first start until its edges serve all of it, and its end",
        "",
        &format!("{:.2} s", begun.elapsed().as_secs_f64()),
        "backup",
    );
    Ok(())
}
