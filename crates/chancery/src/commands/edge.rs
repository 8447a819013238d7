//! `chancery edge`: the edges of a region.

use std::process::ExitCode;

use anyhow::Context as _;
use serde::Deserialize;

use lifecycle::command::EvictEdge;
use lifecycle::names::Slug;
use wire::request::{EdgeEnrol, ListQuery};

use super::{accepted, listing};
use crate::cli::{Edge, Global};
use crate::client::Client;
use crate::failure::Result;
use crate::files::NewFile;
use crate::output::{Out, Table, list, when};

#[derive(Deserialize)]
struct View {
    region: String,
    name: String,
    #[serde(default)]
    applied: Option<u64>,
    #[serde(default)]
    healthy: bool,
    #[serde(default)]
    evicted: bool,
    #[serde(default)]
    https: Option<String>,
    #[serde(default)]
    http: Option<String>,
    #[serde(default)]
    problems: Vec<serde_json::Value>,
    #[serde(default)]
    last_report: Option<String>,
}

pub(super) async fn run(global: &Global, command: Edge, out: &Out) -> Result<ExitCode> {
    match command {
        Edge::Enrol {
            region,
            name,
            out: path,
        } => {
            let file = path.as_deref().map(NewFile::create).transpose()?;
            let client = Client::connect(global).await?;
            let body = EdgeEnrol {
                region: region.clone(),
                edge: name.clone(),
            };
            let answer = client.platform_command("edge.enrol", &body).await?;
            let token = answer.text("token").context("the answer brings no token")?;
            match (file, &path) {
                (Some(file), Some(path)) => {
                    file.keep(&format!("{}\n", token.trim_end()))?;
                    accepted(
                        out,
                        &answer,
                        format!(
                            "edge {name} may enrol once in {region} with the token in {}",
                            path.display()
                        ),
                    )
                }
                _ if out.json() => accepted(out, &answer, ""),
                _ => {
                    for line in token.lines() {
                        out.line(line);
                    }
                    out.note(format!(
                        "edge {name} may enrol once in {region} with this token; it is a secret"
                    ));
                    Ok(ExitCode::SUCCESS)
                }
            }
        }
        Edge::List { region } => {
            let client = Client::connect(global).await?;
            let query = ListQuery {
                of: region,
                ..Default::default()
            };
            let items = client
                .list(&Slug::platform(), "edges", "edges", &query)
                .await?;
            listing(out, &items, |views: Vec<View>| {
                let mut table = Table::new(&[
                    "region",
                    "edge",
                    "health",
                    "applied",
                    "https",
                    "http",
                    "last report",
                    "problems",
                ]);
                for view in views {
                    let health = match (view.evicted, view.healthy) {
                        (true, _) => "evicted",
                        (false, true) => "healthy",
                        (false, false) => "silent",
                    };
                    let problems: Vec<_> = view.problems.iter().map(super::status::text).collect();
                    table.row([
                        view.region,
                        view.name,
                        health.to_owned(),
                        view.applied.map(|n| n.to_string()).unwrap_or_default(),
                        view.https.unwrap_or_default(),
                        view.http.unwrap_or_default(),
                        view.last_report.map_or("never".to_owned(), |at| when(&at)),
                        list(&problems, 3),
                    ]);
                }
                table.print(out, "no edges");
            })
        }
        Edge::Evict { region, name } => {
            let client = Client::connect(global).await?;
            let body = EvictEdge {
                region: region.clone(),
                edge: name.clone(),
            };
            let answer = client.platform_command("edge.evict", &body).await?;
            accepted(
                out,
                &answer,
                format!(
                    "edge {name} is out of {region}; replace the certificates whose keys it may have kept"
                ),
            )
        }
    }
}
