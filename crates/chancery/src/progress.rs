//! How far long work has come: one line on stderr that is written over, and nothing at all when stderr is no terminal.
//!
//! Programs read stdout and stay undisturbed; a pipe, a log file or a job of cron gets no half lines.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often the line is written anew at most, times a second.
const DRAWS: u8 = 8;
/// How often the line moves while nothing advances, so that people see that it lives.
const TICK: Duration = Duration::from_millis(250);

/// The line where the end is known, and where it is not.
const BAR: &str = "{msg} [{bar:30}] {pos}/{len} {per_sec:.0}, {eta} left";
const SPINNER: &str = "{msg} {spinner} {pos}, {elapsed}";

/// The progress of one piece of work. Dropped, its line is gone.
///
/// Cloned, both show the same line. Everything is silent unless stderr is a terminal.
#[derive(Clone, Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Begins, with the number of steps where it is known, and what is being done in a word or two ("importing").
    pub fn new(total: Option<u64>, label: &str) -> Self {
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(DRAWS));
        let template = if total.is_some() { BAR } else { SPINNER };
        // The templates are constants; were one wrong, the plain bar does as well.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> ").tick_chars("-\\|/ "));
        }
        bar.set_message(label.to_owned());
        if !bar.is_hidden() {
            bar.enable_steady_tick(TICK);
        }
        Self { bar }
    }

    /// So many steps are done.
    pub fn advance(&self, n: u64) {
        self.bar.inc(n);
    }

    /// Prints a line for people above the progress line; nothing where there is no progress line.
    pub fn note(&self, line: impl AsRef<str>) {
        if !self.bar.is_hidden() {
            self.bar.println(crate::output::clean(line.as_ref()));
        }
    }

    /// Takes the line away while something else is printed to the same terminal.
    pub fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }

    /// Ends it and takes the line away.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_count() {
        for total in [Some(10), None] {
            let progress = Progress::new(total, "counting");
            progress.advance(3);
            progress.note("a line");
            assert_eq!(progress.suspend(|| 7), 7);
            assert_eq!(progress.bar.position(), 3);
            progress.end();
            assert!(progress.bar.is_finished());
        }
    }

    #[test]
    fn the_templates_are_right() {
        for template in [BAR, SPINNER] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }
}
