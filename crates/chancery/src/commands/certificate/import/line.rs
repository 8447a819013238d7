//! The lines that an import prints: one a certificate, and what they add up to.

use serde::Serialize;

use lifecycle::rejection::Code;

/// What became of a certificate, or would.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is a new certificate of the project.
    Added,
    /// It is a new version of one.
    Replaced,
    /// The project has it already.
    Unchanged,
    /// It cannot be taken as it is.
    Refused,
    /// It is not meant to be taken.
    Skipped,
    /// The world said no: a file that cannot be read, an answer that did not come.
    Failed,
}

impl Verdict {
    /// As it is printed: when it has happened, and in a plan.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Added => ("added", "add"),
            Self::Replaced => ("replaced", "replace"),
            Self::Unchanged => ("unchanged", "unchanged"),
            Self::Refused => ("refused", "refuse"),
            Self::Skipped => ("skipped", "skip"),
            Self::Failed => ("failed", "fail"),
        }
    }
}

/// A line.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// The certificate's name.
    pub name: String,
    /// Where it stands below the folder.
    pub source: String,
    /// What became of it; absent in a plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// What would become of it; in a plan alone.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_planned")]
    pub plan: Option<Verdict>,
    /// The first reason's code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Why, and what mends it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Because>,
    /// The sequence of the event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
}

// Serde hands over a reference.
#[allow(clippy::ref_option)]
fn as_planned<S: serde::Serializer>(
    plan: &Option<Verdict>,
    to: S,
) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_str(plan.unwrap_or(Verdict::Failed).words().1)
}

/// A reason; what has no published code has none.
#[derive(Clone, Debug, Serialize)]
pub struct Because {
    /// Its code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// What was found.
    pub message: String,
    /// What mends it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hint: String,
}

impl Line {
    /// A line without reasons.
    pub fn new(name: impl Into<String>, source: impl Into<String>, verdict: Verdict) -> Self {
        Self {
            name: name.into(),
            source: source.into(),
            verdict: Some(verdict),
            plan: None,
            code: None,
            reasons: Vec::new(),
            sequence: None,
        }
    }

    /// With a reason; the first one's code is the line's.
    #[must_use]
    pub fn because(
        mut self,
        code: Option<Code>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        let code = code.map(|code| code.as_str().to_owned());
        if self.reasons.is_empty() {
            self.code.clone_from(&code);
        }
        self.reasons.push(Because {
            code,
            message: message.into(),
            hint: hint.into(),
        });
        self
    }

    /// With what a problem document says, codes of a later release too.
    #[must_use]
    pub fn told(mut self, told: &crate::failure::Told) -> Self {
        self.code = Some(told.code.clone());
        self.reasons = told
            .reasons
            .iter()
            .map(|reason| Because {
                code: Some(reason.code.clone()),
                message: reason.message.clone(),
                hint: reason.hint.clone(),
            })
            .collect();
        if self.reasons.is_empty() {
            self.reasons.push(Because {
                code: Some(told.code.clone()),
                message: told.detail.clone(),
                hint: String::new(),
            });
        }
        self
    }

    /// What became of it, or would.
    pub fn outcome(&self) -> Verdict {
        self.verdict.or(self.plan).unwrap_or(Verdict::Failed)
    }

    /// As a part of a plan.
    #[must_use]
    pub fn planned(mut self) -> Self {
        self.plan = self.verdict.take();
        self
    }

    /// For people, on one line.
    pub fn text(&self) -> String {
        let (done, planned) = self.outcome().words();
        let word = if self.plan.is_some() { planned } else { done };
        let mut text = format!("{word:9}  {}  {}", self.name, self.source);
        if let Some(sequence) = self.sequence {
            text.push_str(&format!(" (sequence {sequence})"));
        }
        for (i, reason) in self.reasons.iter().enumerate() {
            text.push_str(if i == 0 { ": " } else { "; " });
            if let Some(code) = &reason.code {
                text.push_str(code);
                text.push_str(": ");
            }
            text.push_str(&reason.message);
            if !reason.hint.is_empty() {
                text.push_str(&format!(" (hint: {})", reason.hint));
            }
        }
        text
    }
}

/// How many of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// See [`Verdict::Added`].
    pub added: u64,
    /// See [`Verdict::Replaced`].
    pub replaced: u64,
    /// See [`Verdict::Unchanged`].
    pub unchanged: u64,
    /// See [`Verdict::Refused`].
    pub refused: u64,
    /// See [`Verdict::Skipped`].
    pub skipped: u64,
    /// See [`Verdict::Failed`].
    pub failed: u64,
}

impl Count {
    /// Counts one more.
    pub fn count(&mut self, verdict: Verdict) {
        *match verdict {
            Verdict::Added => &mut self.added,
            Verdict::Replaced => &mut self.replaced,
            Verdict::Unchanged => &mut self.unchanged,
            Verdict::Refused => &mut self.refused,
            Verdict::Skipped => &mut self.skipped,
            Verdict::Failed => &mut self.failed,
        } += 1;
    }

    /// Whether nothing was refused and nothing failed.
    pub fn all_well(&self) -> bool {
        self.refused == 0 && self.failed == 0
    }

    /// For people.
    pub fn text(&self, one: [&str; 6]) -> String {
        [
            (self.added, one[0]),
            (self.replaced, one[1]),
            (self.unchanged, one[2]),
            (self.refused, one[3]),
            (self.skipped, one[4]),
            (self.failed, one[5]),
        ]
        .iter()
        .map(|(n, word)| format!("{n} {word}"))
        .collect::<Vec<_>>()
        .join(", ")
    }
}
