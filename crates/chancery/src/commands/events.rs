//! `chancery events`: the committed events, as exact bytes for programs.
//!
//! Nothing on the way parses and writes an event anew: its bytes are what the log's hashes are made of.

use std::borrow::Cow;
use std::process::ExitCode;
use std::time::Duration;

use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use lifecycle::names::Slug;
use wire::envelope::Position;
use wire::request::EventsQuery;

use crate::cli::Events;
use crate::client::Client;
use crate::failure::Result;
use crate::output::Out;

/// Events on a page, the most that are given.
const PAGE: usize = 500;
/// How often the head is asked for while no event comes: a message that was lost is noticed by then.
const TICK: Duration = Duration::from_secs(5);

/// A page of the log or of a project's events.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    /// Each event's own bytes.
    pub(super) events: Vec<Box<RawValue>>,
    /// Where the next page begins.
    #[serde(default)]
    pub(super) next: Option<u64>,
    /// The last one that there is.
    #[serde(default)]
    pub(super) head: u64,
}

/// Which order of events is read: the whole log's, or one project's.
#[derive(Clone, Debug)]
pub(super) struct Source {
    project: Option<Slug>,
}

impl Source {
    /// The project that was named; else the whole log for an operator, and their project for others.
    fn of(client: &Client) -> Result<Self> {
        let project = match client.named_project() {
            Some(project) => Some(project.clone()),
            None if client.is_operator() => None,
            None => Some(client.project()?.clone()),
        };
        Ok(Self { project })
    }

    /// The whole log.
    pub(super) fn log() -> Self {
        Self { project: None }
    }

    /// A page that begins with `from`.
    pub(super) async fn page(&self, client: &Client, from: u64, limit: usize) -> Result<Page> {
        let query = EventsQuery {
            from: Some(from),
            limit: Some(limit),
        };
        match &self.project {
            Some(project) => client.view(project, "events", &query).await,
            None => client.view(&Slug::platform(), "log", &query).await,
        }
    }

    /// An event's place in this order.
    fn place(&self, position: &Position) -> u64 {
        if self.project.is_some() {
            position.project_sequence
        } else {
            position.sequence
        }
    }
}

pub(super) async fn run(client: &Client, command: Events, out: &Out) -> Result<ExitCode> {
    let source = Source::of(client)?;
    match command {
        Events::Replay { from, to } => {
            replay(
                client,
                &source,
                from.unwrap_or(1).max(1),
                to.unwrap_or(u64::MAX),
                out,
            )
            .await?;
            Ok(ExitCode::SUCCESS)
        }
        Events::Tail { from } => tail(client, &source, from, out).await,
    }
}

/// Prints `from` to `to`, both included, and gives the place after the last one printed.
async fn replay(client: &Client, source: &Source, from: u64, to: u64, out: &Out) -> Result<u64> {
    let mut at = from;
    while at <= to && !out.closed() {
        let left = usize::try_from(to - at)
            .unwrap_or(usize::MAX)
            .saturating_add(1);
        let page = source.page(client, at, PAGE.min(left)).await?;
        let count = page.events.len() as u64;
        let wanted = to.saturating_sub(at).saturating_add(1);
        for event in page
            .events
            .iter()
            .take(usize::try_from(wanted).unwrap_or(usize::MAX))
        {
            print(out, event);
        }
        at += count.min(wanted);
        match page.next {
            Some(next) if next > from && count > 0 => at = at.max(next.min(to.saturating_add(1))),
            _ => break,
        }
    }
    Ok(at)
}

/// Subscribes first and reads what was before afterwards, so that nothing falls between. What arrives is only a sign
/// that there is more, unless it is exactly the next one.
async fn tail(client: &Client, source: &Source, from: Option<u64>, out: &Out) -> Result<ExitCode> {
    let mut events = client.events(source.project.as_ref()).await?;
    let mut next = match from {
        Some(from) => replay(client, source, from.max(1), u64::MAX, out).await?,
        None => source.page(client, 1, 1).await?.head + 1,
    };
    while !out.closed() {
        tokio::select! {
            event = events.next() => {
                let Some(message) = event else {
                    return Err(anyhow::anyhow!("the connection to the server is closed").into());
                };
                let place = Position::of(&message.payload).map(|position| source.place(&position));
                match place {
                    Ok(place) if place < next => {}
                    Ok(place) if place == next => {
                        match serde_json::from_slice::<&RawValue>(&message.payload) {
                            Ok(event) => print(out, event),
                            Err(error) => return Err(anyhow::Error::new(error).context("reading an event").into()),
                        }
                        next += 1;
                    }
                    _ => next = replay(client, source, next, u64::MAX, out).await?,
                }
            }
            () = tokio::time::sleep(TICK) => next = replay(client, source, next, u64::MAX, out).await?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print(out: &Out, event: &RawValue) {
    if out.json() {
        out.raw(event);
    } else {
        out.say(line(event.get()));
    }
}

/// An event as a line for people: place, time, project, what happened, who, and what its data says.
pub(super) fn line(event: &str) -> String {
    #[derive(Deserialize)]
    struct Shown<'a> {
        #[serde(rename = "type", borrow)]
        kind: Cow<'a, str>,
        #[serde(borrow)]
        time: Cow<'a, str>,
        #[serde(borrow)]
        project: Cow<'a, str>,
        #[serde(borrow)]
        sequence: Cow<'a, str>,
        #[serde(borrow)]
        projectseq: Cow<'a, str>,
        #[serde(borrow)]
        actor: Cow<'a, str>,
        data: Value,
    }
    let Ok(shown) = serde_json::from_str::<Shown<'_>>(event) else {
        return event.to_owned();
    };
    let kind = shown
        .kind
        .strip_prefix("dev.chancery.")
        .unwrap_or(&shown.kind);
    let kind = kind.rsplit_once(".v").map_or(kind, |(name, _)| name);
    let mut text = format!(
        "{:>6}  {}  {}/{}  {kind}  by {}",
        shown.sequence, shown.time, shown.project, shown.projectseq, shown.actor
    );
    if let Value::Object(fields) = &shown.data {
        for (name, value) in fields {
            match value {
                Value::Object(_) | Value::Null => {}
                value => text.push_str(&format!(
                    "  {name}={}",
                    super::status::text(value).replace(", ", ",")
                )),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_keeps_the_bytes_of_its_events() {
        let event = r#"{ "b" : 1.0,"a":"\u00e9"}"#;
        let page: Page =
            serde_json::from_str(&format!(r#"{{"events":[{event}],"next":null,"head":1}}"#))
                .expect("a page");
        assert_eq!(page.events[0].get(), event);
    }

    #[test]
    fn an_event_is_a_line() {
        let event = r#"{"type":"dev.chancery.domain.attached.v1","time":"2026-11-22T12:00:00.000000Z","project":"acme","sequence":"7","projectseq":"3","actor":"alice","data":{"host":"a.example","regions":["r","s"],"facts":{}}}"#;
        assert_eq!(
            line(event),
            "     7  2026-11-22T12:00:00.000000Z  acme/3  domain.attached  by alice  host=a.example  regions=r,s"
        );
        assert_eq!(line("?"), "?");
    }
}
