//! `chancery host`: what a host serves in each region, now or then, and why.

use std::process::ExitCode;

use serde::Deserialize;
use serde_json::Value;

use wire::request::HostQuery;

use crate::cli::Host;
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::output::{Card, Out, list, when};
use lifecycle::rejection::Code;

#[derive(Deserialize)]
struct Answer {
    host: String,
    regions: Vec<serde_json::Map<String, Value>>,
    #[serde(default)]
    revision: Option<u64>,
    /// That of the claim, when no region serves the host.
    #[serde(default)]
    status: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Region {
    region: String,
    project: Option<String>,
    resource: Option<String>,
    mode: Option<String>,
    bound: Option<String>,
    active: Option<Candidate>,
    fallbacks: Vec<Candidate>,
    runway_until: Option<String>,
    why: Value,
    at: Option<String>,
    since: Option<Since>,
    caused_by: Option<Since>,
    evidence: Option<String>,
    edges: Option<Edges>,
}

/// The event since which it was so, or by which the active certificate came in.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Since {
    sequence: u64,
    time: String,
    actor: String,
    event: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Candidate {
    certificate: String,
    version: u64,
    fingerprint: String,
    not_after: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Edges {
    applied: u64,
    of: u64,
    behind: Vec<Value>,
}

impl Candidate {
    fn line(&self) -> String {
        let print = self.fingerprint.get(..16).unwrap_or(&self.fingerprint);
        format!(
            "{} version {}, ends {}, SHA-256 {print}…",
            self.certificate,
            self.version,
            when(&self.not_after)
        )
    }
}

pub(super) async fn run(client: &Client, query: Host, out: &Out) -> Result<ExitCode> {
    let body = HostQuery {
        host: query.host,
        region: query.region,
        at: query.at.map(|time| time.text),
    };
    let answer: Answer = client.view(client.project()?, "host", &body).await?;
    if answer.regions.is_empty() {
        return Err(Failure::problem(
            Code::NotFound,
            match answer.status {
                Some(status) => {
                    format!("no region serves this host; the project's claim to it is {status}")
                }
                None => "no region serves this host".to_owned(),
            },
            "`chancery domain show HOST` tells whether it is claimed, proven and attached",
        ));
    }
    for (i, mut region) in answer.regions.into_iter().enumerate() {
        if out.json() {
            // A line must tell by itself what it is about.
            region.insert("host".to_owned(), answer.host.clone().into());
            if let Some(revision) = answer.revision {
                region.entry("revision").or_insert_with(|| revision.into());
            }
            out.document(&region);
            continue;
        }
        if i > 0 {
            out.say("");
        }
        let region: Region = serde_json::from_value(Value::Object(region)).map_err(|error| {
            anyhow::Error::new(error).context("the answer is not one that this release can read")
        })?;
        show(&answer.host, &region, out);
    }
    Ok(ExitCode::SUCCESS)
}

fn show(host: &str, region: &Region, out: &Out) {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let mut card = Card::default();
    card.add("host", host);
    card.add("region", region.region.clone());
    card.add("project", text(&region.project));
    card.add("resource", text(&region.resource));
    let bound = region
        .bound
        .as_ref()
        .map(|name| format!(" to {name}"))
        .unwrap_or_default();
    card.add("mode", format!("{}{bound}", text(&region.mode)));
    card.add(
        "active",
        region.active.as_ref().map_or(
            "none: HTTPS handshakes are refused".to_owned(),
            Candidate::line,
        ),
    );
    for fallback in &region.fallbacks {
        card.add("then", fallback.line());
    }
    card.add(
        "runway until",
        region.runway_until.as_deref().map(when).unwrap_or_default(),
    );
    card.add("why", super::status::text(&region.why));
    card.add("at", region.at.as_deref().map(when).unwrap_or_default());
    for (what, event) in [("caused by", &region.caused_by), ("since", &region.since)] {
        if let Some(event) = event {
            let time = when(&event.time);
            let line = format!(
                "{} by {}, {time} (sequence {})",
                event.event, event.actor, event.sequence
            );
            card.add(what, line);
        }
    }
    let evidence = match region.evidence.as_deref() {
        Some("reported") => "reported: the edges said by then that they had applied it".to_owned(),
        Some("intended") => "intended: no report of an edge covers that time".to_owned(),
        Some(other) => other.to_owned(),
        None => String::new(),
    };
    card.add("evidence", evidence);
    if let Some(edges) = &region.edges {
        let behind: Vec<_> = edges.behind.iter().map(super::status::text).collect();
        let behind = match behind.is_empty() {
            true => String::new(),
            false => format!("; behind: {}", list(&behind, 10)),
        };
        let edges = match edges.of {
            0 => "none is healthy".to_owned(),
            of => format!(
                "{of} healthy, all at sequence {} or later{behind}",
                edges.applied
            ),
        };
        card.add("edges", edges);
    }
    card.print(out);
}
