//! What is printed: tables for people, one JSON document a line for programs.
//!
//! A reader that goes away (`| head`) is no error: from then on nothing is printed, and commands that would print for
//! ever ask [`Out::closed`].

use std::cell::Cell;
use std::io::{IsTerminal, Write};

use serde::Serialize;
use serde_json::value::RawValue;

use crate::failure::Failure;

/// Where answers go.
#[derive(Debug)]
pub struct Out {
    json: bool,
    closed: Cell<bool>,
}

impl Out {
    /// An output; with `json`, for programs.
    pub fn new(json: bool) -> Self {
        Self {
            json,
            closed: Cell::new(false),
        }
    }

    /// Whether it is for programs.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Whether the reader has gone.
    pub fn closed(&self) -> bool {
        self.closed.get()
    }

    /// Prints a line as it is.
    pub fn line(&self, line: &str) {
        if self.closed.get() {
            return;
        }
        let mut stdout = std::io::stdout().lock();
        let written = stdout
            .write_all(line.as_bytes())
            .and_then(|()| stdout.write_all(b"\n"))
            .and_then(|()| stdout.flush());
        if written.is_err() {
            self.closed.set(true);
        }
    }

    /// Prints a document on one line.
    pub fn document<T: Serialize>(&self, document: &T) {
        match serde_json::to_string(document) {
            Ok(line) => self.line(&line),
            Err(error) => tracing::error!(%error, "a document cannot be written as JSON"),
        }
    }

    /// Prints a document's own bytes on one line. One that came with line breaks is written anew without them.
    pub fn raw(&self, document: &RawValue) {
        let text = document.get();
        if !text.contains('\n') {
            return self.line(text);
        }
        match serde_json::from_str::<serde_json::Value>(text) {
            Ok(value) => self.document(&value),
            Err(_) => self.line(&text.replace(['\n', '\r'], " ")),
        }
    }

    /// Prints a line for people only.
    pub fn say(&self, line: impl AsRef<str>) {
        if !self.json {
            self.line(&clean(line.as_ref()));
        }
    }

    /// Tells people something beside the answer, on stderr.
    pub fn note(&self, line: impl AsRef<str>) {
        if !self.json {
            let _ = writeln!(std::io::stderr(), "{}", clean(line.as_ref()));
        }
    }

    /// Shows progress of long work: on a terminal only, in one line that is written over. An empty text ends it.
    pub fn progress(&self, text: &str) {
        let mut stderr = std::io::stderr();
        if stderr.is_terminal() && !self.json {
            let _ = write!(stderr, "\r\x1b[K{text}");
            let _ = stderr.flush();
        }
    }

    /// Tells how a command failed: to stderr, a problem document with `--json` to stdout.
    pub fn failure(&self, failure: &Failure) {
        let mut lines = Vec::new();
        let mut document = None;
        match failure {
            Failure::Refused(refused) => {
                let told = &refused.told;
                lines.push(format!("error[{}]: {}", told.code, told.detail));
                // The first reason is the detail; later ones are told with their own codes.
                for (i, reason) in told.reasons.iter().enumerate() {
                    if i > 0 {
                        lines.push(format!("   also[{}]: {}", reason.code, reason.message));
                    }
                    if !reason.hint.is_empty() {
                        lines.push(format!("hint: {}", reason.hint));
                    }
                }
                lines.push(format!("docs: docs/errors/{}.md", told.code));
                document = Some(&refused.document);
            }
            Failure::Usage(text) => lines.push(format!("error: {text}")),
            Failure::CouldNotRun(error) => lines.push(format!("error: {error:#}")),
            Failure::InVain(text) => lines.push(format!("error: {text}")),
        }
        if self.json {
            match document {
                Some(document) => self.raw(document),
                // No published code says that something could not run: by RFC 9457 `about:blank` has only its texts.
                None => self.document(&serde_json::json!({
                    "type": "about:blank",
                    "title": match failure {
                        Failure::InVain(_) => "Waited in vain",
                        Failure::Usage(_) => "Wrong usage",
                        _ => "Could not run",
                    },
                    "detail": lines[0].trim_start_matches("error: "),
                })),
            }
            if document.is_some() {
                return;
            }
        }
        let mut stderr = std::io::stderr().lock();
        for line in lines {
            let _ = writeln!(stderr, "{}", clean(&line));
        }
    }
}

/// Aligned columns without borders. Cells are measured in characters; control characters are shown as `?`, so that
/// nothing from elsewhere can drive the terminal.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        Self {
            rows: vec![headings.iter().map(|h| h.to_uppercase()).collect()],
        }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(
            cells
                .iter()
                .map(|c| {
                    if c.is_empty() {
                        "-".to_owned()
                    } else {
                        clean(c)
                    }
                })
                .collect(),
        );
    }

    /// Whether there is no row below the headings.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// The lines.
    pub fn lines(&self) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|c| {
                self.rows
                    .iter()
                    .filter_map(|r| r.get(c))
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        self.rows
            .iter()
            .map(|row| {
                let mut line = String::new();
                for (cell, width) in row.iter().zip(&widths) {
                    line.push_str(cell);
                    line.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
                }
                line.truncate(line.trim_end().len());
                line
            })
            .collect()
    }

    /// Prints it, or on stderr that there is nothing.
    pub fn print(&self, out: &Out, nothing: &str) {
        if self.is_empty() {
            return out.note(nothing);
        }
        for line in self.lines() {
            out.say(line);
        }
    }
}

/// One thing as `name: value` lines, aligned.
#[derive(Debug, Default)]
pub struct Card {
    lines: Vec<(String, String)>,
}

impl Card {
    /// Adds a line; an empty value is left out.
    pub fn add(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let value = value.into();
        if !value.is_empty() {
            self.lines.push((name.into(), value));
        }
    }

    /// Prints it.
    pub fn print(&self, out: &Out) {
        let width = self
            .lines
            .iter()
            .map(|(name, _)| name.len())
            .max()
            .unwrap_or(0);
        for (name, value) in &self.lines {
            out.say(format!("{name:width$}  {value}"));
        }
    }
}

/// Replaces control characters.
pub fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\t' { '?' } else { c })
        .collect()
}

/// Joins with commas, the first `most` only.
pub fn list<S: AsRef<str>>(items: &[S], most: usize) -> String {
    let mut text = items
        .iter()
        .take(most)
        .map(AsRef::as_ref)
        .collect::<Vec<_>>()
        .join(", ");
    if items.len() > most {
        text.push_str(&format!(" and {} more", items.len() - most));
    }
    text
}

/// A time with its distance from now: `2026-12-01T00:00:00Z (in 61 days)`. What is not RFC 3339 is shown as it is.
pub fn when(text: &str) -> String {
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    when_seen_from(text, now)
}

fn when_seen_from(text: &str, now: i64) -> String {
    match wire::envelope::micros(text) {
        Some(micros) => {
            // Parts of a second tell people nothing; programs get the text as it is.
            let seconds = micros.div_euclid(1_000_000);
            format!(
                "{} ({})",
                wire::envelope::rfc3339(seconds),
                distance(seconds - now)
            )
        }
        None => text.to_owned(),
    }
}

/// A distance in seconds as people say it.
fn distance(seconds: i64) -> String {
    let span = seconds.unsigned_abs();
    let (number, unit) = match span {
        0..120 => (span, "second"),
        120..7_200 => (span / 60, "minute"),
        7_200..172_800 => (span / 3_600, "hour"),
        172_800..63_072_000 => (span / 86_400, "day"),
        _ => (span / 31_536_000, "year"),
    };
    let plural = if number == 1 { "" } else { "s" };
    match seconds {
        0 => "now".to_owned(),
        1.. => format!("in {number} {unit}{plural}"),
        _ => format!("{number} {unit}{plural} ago"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_as_people_say_them() {
        for (seconds, text) in [
            (0, "now"),
            (1, "in 1 second"),
            (-45, "45 seconds ago"),
            (180, "in 3 minutes"),
            (-7_200, "2 hours ago"),
            (61 * 86_400, "in 61 days"),
            (3 * 31_536_000, "in 3 years"),
        ] {
            assert_eq!(distance(seconds), text);
        }
        assert_eq!(
            when_seen_from("1970-01-03T00:00:00Z", 0),
            "1970-01-03T00:00:00Z (in 2 days)"
        );
        assert_eq!(when_seen_from("soon", 0), "soon");
    }

    #[test]
    fn columns_are_aligned_and_harmless() {
        let mut table = Table::new(&["name", "status"]);
        table.row(["a".to_owned(), "ready".to_owned()]);
        table.row(["längere".to_owned(), "\x1b[31mred".to_owned()]);
        table.row([String::new(), "x".to_owned()]);
        assert_eq!(
            table.lines(),
            [
                "NAME     STATUS",
                "a        ready",
                "längere  ?[31mred",
                "-        x"
            ]
        );
    }

    #[test]
    fn parts_of_a_second_are_left_out() {
        assert_eq!(
            when_seen_from("1970-01-01T00:00:05.123456Z", 0),
            "1970-01-01T00:00:05Z (in 5 seconds)"
        );
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(list(&["a", "b", "c"], 2), "a, b and 1 more");
        assert_eq!(list(&["a"], 2), "a");
    }
}
