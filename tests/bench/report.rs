//! The table, and the numbers in it.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// A row of the table.
struct Row {
    what: String,
    target: String,
    measured: String,
    part: String,
}

/// What was found out.
pub(crate) struct Report {
    rows: Vec<Row>,
    notes: Vec<String>,
    begun: Instant,
    /// Whether the compiler optimised what is measured.
    pub(crate) optimised: bool,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self {
            rows: Vec::new(),
            notes: Vec::new(),
            begun: Instant::now(),
            optimised: !cfg!(debug_assertions),
        }
    }

    /// Tells on stderr what is being done.
    pub(crate) fn progress(&self, what: &str) {
        eprintln!("[{:>5.1} s] {what}", self.begun.elapsed().as_secs_f64());
    }

    /// `part` is what `--only` takes to measure this alone.
    pub(crate) fn row(&mut self, what: &str, target: &str, measured: &str, part: &str) {
        self.progress(&format!("    {what}: {measured}"));
        self.rows.push(Row {
            what: what.to_owned(),
            target: target.to_owned(),
            measured: measured.to_owned(),
            part: format!("just bench --only {part}"),
        });
    }

    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Prints the table and how it came to be.
    pub(crate) fn print(&self) -> std::io::Result<()> {
        let header = ["what", "target", "measured", "alone"].map(str::to_owned);
        let rows: Vec<[String; 4]> = std::iter::once(header)
            .chain(self.rows.iter().map(|r| {
                [
                    r.what.clone(),
                    r.target.clone(),
                    r.measured.clone(),
                    r.part.clone(),
                ]
            }))
            .collect();
        let width = |column: usize| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths = [width(0), width(1), width(2), width(3)];
        let mut out = std::io::stdout().lock();
        for (n, row) in rows.iter().enumerate() {
            let [a, b, c, d] = row;
            writeln!(
                out,
                "{a:<0$} | {b:<1$} | {c:<2$} | {d}",
                widths[0], widths[1], widths[2]
            )?;
            if n == 0 {
                let line = widths.map(|w| "-".repeat(w)).join("-|-");
                writeln!(out, "{line}")?;
            }
        }
        writeln!(out)?;
        for note in &self.notes {
            writeln!(out, "* {note}")?;
        }
        out.flush()
    }
}

/// The value below which this part of all values lies. Sorts them.
pub(crate) fn quantile(values: &mut [f64], part: f64) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * part).round() as usize]
}

/// The median and the two ends, as `1.2 (1.1 to 1.4)`.
pub(crate) fn spread(values: &mut [f64], digits: usize) -> String {
    let (low, middle, high) = (
        quantile(values, 0.0),
        quantile(values, 0.5),
        quantile(values, 1.0),
    );
    if values.len() < 2 {
        return format!("{middle:.digits$}");
    }
    format!("{middle:.digits$} ({low:.digits$} to {high:.digits$})")
}

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// How long the disk below a folder takes to make 4 KiB durable, in milliseconds: median and 99th of a hundred.
///
/// # Errors
/// When the folder cannot be written.
pub(crate) fn disk(folder: &Path) -> std::io::Result<(f64, f64)> {
    let mut file = tempfile::tempfile_in(folder)?;
    let mut took = Vec::new();
    for _ in 0..200 {
        let begun = Instant::now();
        file.write_all(&[0x5a; 4_096])?;
        file.sync_data()?;
        took.push(milliseconds(begun.elapsed()));
    }
    Ok((quantile(&mut took, 0.5), quantile(&mut took, 0.99)))
}
