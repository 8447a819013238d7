//! `chancery region`: regions, and countries as named sets of them.

use std::process::ExitCode;

use serde::Deserialize;
use serde_json::value::RawValue;

use lifecycle::command::SetCountry;
use lifecycle::rejection::Code;
use wire::request::{ListQuery, RegionCreate};

use super::{accepted, showing};
use crate::cli::Region;
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::output::{Card, Out, Table, list};

#[derive(Deserialize)]
struct View {
    name: String,
    #[serde(default)]
    edges: serde_json::Value,
    #[serde(default)]
    applied: Option<u64>,
    #[serde(default)]
    behind: Vec<String>,
}

#[derive(Deserialize)]
struct Country {
    name: String,
    #[serde(default)]
    regions: Vec<String>,
}

pub(super) async fn run(client: &Client, command: Region, out: &Out) -> Result<ExitCode> {
    match command {
        Region::Create { name } => {
            let answer = client
                .platform_command(
                    "region.create",
                    &RegionCreate {
                        region: name.clone(),
                    },
                )
                .await?;
            accepted(
                out,
                &answer,
                format!(
                    "region {name} is created; enrol its edges with `chancery edge enrol {name} NAME`"
                ),
            )
        }
        Region::Country { name, regions } => {
            let body = SetCountry {
                country: name.clone(),
                regions: regions.clone(),
            };
            let answer = client.platform_command("region.country-set", &body).await?;
            accepted(
                out,
                &answer,
                format!("country {name} is {}", list(&regions, 20)),
            )
        }
        Region::List => {
            let project = client.project()?;
            let items = client
                .list(project, "regions", "regions", &ListQuery::default())
                .await?;
            let countries = client
                .list(project, "regions", "countries", &ListQuery::default())
                .await?;
            if out.json() {
                for item in items.iter().chain(&countries) {
                    out.raw(item);
                }
                return Ok(ExitCode::SUCCESS);
            }
            let mut table = Table::new(&["region", "edges", "applied", "behind"]);
            for item in &items {
                let view: View = crate::client::read(item.get().as_bytes())?;
                table.row([
                    view.name,
                    count(&view.edges),
                    number(view.applied),
                    list(&view.behind, 5),
                ]);
            }
            table.print(out, "no regions");
            if !countries.is_empty() {
                out.say("");
                let mut table = Table::new(&["country", "regions"]);
                for item in &countries {
                    let country: Country = crate::client::read(item.get().as_bytes())?;
                    table.row([country.name, list(&country.regions, 20)]);
                }
                table.print(out, "");
            }
            Ok(ExitCode::SUCCESS)
        }
        Region::Show { name } => {
            let items = client
                .list(
                    client.project()?,
                    "regions",
                    "regions",
                    &ListQuery::default(),
                )
                .await?;
            let item = find(&items, name.as_str())?;
            showing(out, item, |view: View| {
                let mut card = Card::default();
                card.add("region", view.name);
                card.add("edges", count(&view.edges));
                card.add("applied", number(view.applied));
                card.add("behind", list(&view.behind, 20));
                card.print(out);
            })
        }
    }
}

/// The view of the regions is never long, and has no names to ask for.
fn find<'a>(items: &'a [Box<RawValue>], name: &str) -> Result<&'a RawValue> {
    for item in items {
        let view: View = crate::client::read(item.get().as_bytes())?;
        if view.name == name {
            return Ok(item);
        }
    }
    Err(Failure::problem(
        Code::NotFound,
        "there is no such region",
        "`chancery region list` shows those that exist",
    ))
}

fn number(number: Option<u64>) -> String {
    number.map(|n| n.to_string()).unwrap_or_default()
}

/// Edges come as a number, or as a list of them.
fn count(edges: &serde_json::Value) -> String {
    match edges {
        serde_json::Value::Array(edges) => edges.len().to_string(),
        serde_json::Value::Number(number) => number.to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn edges_are_counted_in_either_form() {
        assert_eq!(super::count(&serde_json::json!(3)), "3");
        assert_eq!(super::count(&serde_json::json!(["a", "b"])), "2");
        assert_eq!(super::count(&serde_json::json!(null)), "");
    }
}
