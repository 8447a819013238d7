//! How a command ends when it does not end well, and the exit status that says so.

use std::process::ExitCode;

use serde::Deserialize;
use serde_json::value::RawValue;

use lifecycle::rejection::Code;
use wire::answer::Problem;

/// Exit status: the answer was no.
pub const NO: u8 = 1;
/// Exit status: it could not run, or was used wrongly.
pub const COULD_NOT_RUN: u8 = 2;
/// Exit status: waited in vain.
pub const IN_VAIN: u8 = 3;
/// Exit status: ended by Ctrl-C, as shells report SIGINT.
pub const INTERRUPTED: u8 = 130;

/// Why a command did not end well.
#[derive(Debug)]
pub enum Failure {
    /// A problem document, from the other side or from checks made here. Exit 1.
    Refused(Box<Refused>),
    /// Wrong usage that only shows when everything is known. Exit 2.
    Usage(String),
    /// The world said no: files, network, time-outs. Exit 2.
    CouldNotRun(anyhow::Error),
    /// The time is over. Exit 3.
    InVain(String),
}

/// What [`Failure`]s come as.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A problem that was found here.
    pub fn problem(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Refused::from(Problem::new(code, message, hint)).into()
    }

    /// The exit status.
    pub fn status(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Refused(_) => NO,
            Self::Usage(_) | Self::CouldNotRun(_) => COULD_NOT_RUN,
            Self::InVain(_) => IN_VAIN,
        })
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::CouldNotRun(error)
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Self::Refused(Box::new(refused))
    }
}

/// What was found wrong with the words of a command line, in one line without the usage that follows it.
pub fn misuse(error: &clap::Error) -> String {
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "a command or an argument is missing; --help lists them".to_owned();
    }
    let text = error.render().to_string();
    let text = ["\nUsage:", "\nFor more information"]
        .iter()
        .filter_map(|end| text.find(end))
        .min()
        .map_or(text.as_str(), |end| &text[..end]);
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ");
    match line.strip_prefix("error: ") {
        Some(line) => line.to_owned(),
        None => line,
    }
}

/// A problem document, read so that codes of a later release are still told.
#[derive(Debug)]
pub struct Refused {
    /// The document as it came.
    pub document: Box<RawValue>,
    /// What it says.
    pub told: Told,
}

/// What a problem document says.
#[derive(Clone, Debug, Deserialize)]
pub struct Told {
    /// `urn:chancery:error:<code>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The first reason's code.
    pub code: String,
    /// What is wrong.
    #[serde(default)]
    pub detail: String,
    /// All reasons.
    #[serde(default)]
    pub reasons: Vec<Because>,
    /// When to try again, milliseconds.
    #[serde(default)]
    pub retry_after_ms: Option<u64>,
}

/// One reason.
#[derive(Clone, Debug, Deserialize)]
pub struct Because {
    /// Its code.
    pub code: String,
    /// What was found.
    #[serde(default)]
    pub message: String,
    /// What to do next.
    #[serde(default)]
    pub hint: String,
}

impl Refused {
    /// Reads an answer as a problem document. None: it is something else.
    pub fn read(answer: &[u8]) -> Option<Self> {
        let told: Told = serde_json::from_slice(answer).ok()?;
        if !told.kind.starts_with("urn:chancery:error:") {
            return None;
        }
        Some(Self {
            document: serde_json::from_slice(answer).ok()?,
            told,
        })
    }

    /// Whether the same command may pass a little later.
    pub fn passes(&self) -> bool {
        [Code::Busy.as_str(), Code::RateLimited.as_str()].contains(&self.told.code.as_str())
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self::read(&problem.to_json()).expect("a problem reads back as a problem")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_of_a_later_release_is_still_a_problem() {
        let document = br#"{"type":"urn:chancery:error:moon_is_full","title":"T","status":422,"code":"moon_is_full","detail":"wait","reasons":[{"code":"moon_is_full","message":"wait"}]}"#;
        let refused = Refused::read(document).expect("it is a problem");
        assert_eq!(refused.told.code, "moon_is_full");
        assert_eq!(refused.document.get().as_bytes(), document);
        assert!(!refused.passes());
    }

    #[test]
    fn an_answer_is_not_a_problem() {
        for answer in [
            &br#"{"id":"x","outcome":"accepted","sequence":1}"#[..],
            br#"{"code":"x","status":1}"#,
            b"",
            b"[]",
        ] {
            assert!(Refused::read(answer).is_none());
        }
    }

    #[test]
    fn what_passes_is_known() {
        assert!(Refused::from(Problem::later(Code::Busy, "full", 5)).passes());
        assert!(!Refused::from(Problem::new(Code::NotFound, "no", "")).passes());
    }
}
