//! How a claim is proven: which records to set, what was found, and waiting for it.

use std::fmt;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use futures_util::StreamExt;
use serde::Deserialize;
use tokio::time::Instant;

use lifecycle::names::Slug;
use lifecycle::rejection::Code;

use super::View;
use crate::client::{Client, read};
use crate::commands::{Reason, nullable};
use crate::failure::{Failure, Result};
use crate::output::{Card, Out, when};

/// How long to look again after, when no event came.
const TICK: Duration = Duration::from_millis(500);

/// How a view shows a claim's proof. All of it is absent once the claim is proven.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Verification {
    #[serde(deserialize_with = "nullable")]
    records: Vec<Record>,
    looked_at: Option<String>,
    tries: u32,
    #[serde(deserialize_with = "nullable")]
    reasons: Vec<Reason>,
    next: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Record {
    line: String,
}

impl Verification {
    /// Adds to a card what proves the claim, and how far that has come.
    pub(super) fn add_to(&self, host: &str, card: &mut Card) {
        for (i, record) in self.records.iter().enumerate() {
            let name = if i == 0 { "set this record" } else { "or this" };
            card.add(name, record.line.clone());
        }
        match &self.looked_at {
            Some(at) => card.add(
                "last look",
                format!("{}, the {}", when(at), ordinal(self.tries)),
            ),
            None => card.add("last look", "none yet"),
        }
        for reason in &self.reasons {
            card.add("found", reason.message.clone());
        }
        match &self.next {
            Some(next) => card.add("next look", when(next)),
            None => card.add(
                "next look",
                format!("none by itself any more; `chancery domain check {host}` looks now"),
            ),
        }
    }
}

fn ordinal(number: u32) -> String {
    let ending = match (number % 10, number % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}

/// Tells after `domain add` how the claim is proven, if it has to be.
pub(super) async fn tell(client: &Client, project: &Slug, host: &str, out: &Out) -> Result<()> {
    let item = client.one(project, "domains", "domains", host).await?;
    let view: View = read(item.get().as_bytes())?;
    if view.status != "pending" {
        return Ok(());
    }
    out.say("it is pending: set one of these records in its zone, and it is proven by itself");
    for record in &view.verification.records {
        out.say(format!("  {}", record.line));
    }
    out.say(format!(
        "`chancery domain check {}` looks at once",
        view.host
    ));
    Ok(())
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Claimed, not proven.
    Pending,
    /// The project holds the host.
    Proven,
    /// Another project proved it since.
    Moved,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "pending" => Ok(Self::Pending),
            "proven" => Ok(Self::Proven),
            "moved" => Ok(Self::Moved),
            _ => Err("a status is pending, proven or moved".to_owned()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pending => "pending",
            Self::Proven => "proven",
            Self::Moved => "moved",
        })
    }
}

/// Waits until a claim has a status, and prints the domain then. Events wake it, the view decides.
///
/// # Errors
/// Exit 3 when the time is over; 1 when there is no such domain, or it has moved to another project and is waited for as proven.
pub(super) async fn wait(
    client: &Client,
    project: &Slug,
    host: &str,
    target: Target,
    timeout: Duration,
    out: &Out,
) -> Result<ExitCode> {
    let deadline = Instant::now() + timeout;
    // Only who has the right to hear events is woken by them; for the others the tick must do.
    let mut events = client.events(Some(project)).await.ok();
    loop {
        let item = client.one(project, "domains", "domains", host).await?;
        let view: View = read(item.get().as_bytes())?;
        if view.status == target.to_string() {
            out.progress("");
            if out.json() {
                out.raw(&item);
            } else {
                out.say(format!("domain {} is {target}", view.host));
            }
            return Ok(ExitCode::SUCCESS);
        }
        if view.status == "moved" {
            out.progress("");
            return Err(Failure::problem(
                Code::DomainUnproven,
                format!("domain {} has moved to another project", view.host),
                "add it again with `chancery domain add` and prove it afresh, or release it",
            ));
        }
        out.progress(&format!(
            "domain {} is {}; waiting for {target}",
            view.host, view.status
        ));
        let now = Instant::now();
        if now >= deadline {
            return Err(Failure::InVain(format!(
                "domain {} is {}, not {target}, after {} s",
                view.host,
                view.status,
                timeout.as_secs_f64()
            )));
        }
        let tick = tokio::time::sleep_until(deadline.min(now + TICK));
        match &mut events {
            Some(stream) => tokio::select! {
                () = tick => {}
                event = stream.next() => if event.is_none() { events = None },
            },
            None => tick.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_counted_as_people_do() {
        for (number, text) in [
            (1, "1st"),
            (2, "2nd"),
            (3, "3rd"),
            (4, "4th"),
            (11, "11th"),
            (21, "21st"),
            (112, "112th"),
        ] {
            assert_eq!(ordinal(number), text);
        }
    }
}
