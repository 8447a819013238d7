//! `chancery certificate list`: all, or those that pass the filters; with a host, why each can serve it or not.

use std::process::ExitCode;

use serde::Deserialize;
use serde_json::value::RawValue;

use lifecycle::names::Slug;
use wire::request::ListQuery;

use super::super::{Reason, listing, nullable};
use super::View;
use crate::client::{Client, read};
use crate::failure::Result;
use crate::output::{Out, Table, list, when};

/// What `--host` adds to a certificate.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Usable {
    usable: bool,
    why: Vec<Reason>,
    regions: Vec<Region>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Region {
    region: String,
    usable: bool,
    #[serde(deserialize_with = "nullable")]
    role: String,
    #[serde(deserialize_with = "nullable")]
    place: u64,
    #[serde(deserialize_with = "nullable")]
    note: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WithHost {
    name: String,
    shown: String,
    #[serde(deserialize_with = "nullable")]
    not_after: String,
    usable: Usable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Csr {
    name: String,
    names: Vec<String>,
    key: serde_json::Value,
    #[serde(deserialize_with = "nullable")]
    created: String,
    #[serde(deserialize_with = "nullable")]
    actor: String,
}

pub(super) async fn run(
    client: &Client,
    project: &Slug,
    query: ListQuery,
    out: &Out,
) -> Result<ExitCode> {
    let items = client
        .list(project, "certificates", "certificates", &query)
        .await?;
    if query.host.is_some() && !out.json() {
        return with_host(&items, out);
    }
    listing(out, &items, |mut views: Vec<View>| {
        if query.expiring.is_some() {
            views.sort_by(|a, b| a.not_after.cmp(&b.not_after));
        }
        let mut table = Table::new(&["certificate", "status", "names", "ends", "trust", "regions"]);
        for view in views {
            let word = view.word().to_owned();
            table.row([
                view.name,
                word,
                list(&view.names, 2),
                when(&view.not_after),
                view.trust.unwrap_or_default(),
                list(&view.regions, 3),
            ]);
        }
        table.print(out, "no certificates");
    })
}

/// For people: what serves the host first, then what could, then what cannot and why.
fn with_host(items: &[Box<RawValue>], out: &Out) -> Result<ExitCode> {
    let mut views = items
        .iter()
        .map(|item| read::<WithHost>(item.get().as_bytes()))
        .collect::<Result<Vec<_>>>()?;
    let order = |view: &WithHost| {
        let best = view
            .usable
            .regions
            .iter()
            .filter(|r| r.usable)
            .map(|r| r.place)
            .min();
        let far = view
            .usable
            .why
            .first()
            .is_some_and(|r| r.code == "name_mismatch");
        (best.unwrap_or(u64::MAX), far, view.name.clone())
    };
    views.sort_by_key(order);
    let mut table = Table::new(&["certificate", "status", "ends", "serves the host"]);
    for view in &views {
        let places: Vec<String> = view
            .usable
            .regions
            .iter()
            .filter(|r| r.usable)
            .map(|r| match r.role.as_str() {
                "active" => format!("active in {}", r.region),
                _ => format!("{} in {}", r.note, r.region),
            })
            .collect();
        let serves = match view.usable.usable {
            true => list(&places, 5),
            false => "no".to_owned(),
        };
        table.row([
            view.name.clone(),
            view.shown.clone(),
            when(&view.not_after),
            serves,
        ]);
    }
    table.print(out, "no certificates");
    for view in views.iter().filter(|view| !view.usable.usable) {
        out.say("");
        out.say(format!("{}:", view.name));
        for reason in &view.usable.why {
            out.say(format!("  {}", reason.line()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `--csrs`
pub(super) async fn requests(client: &Client, project: &Slug, out: &Out) -> Result<ExitCode> {
    let items = client
        .list(project, "csrs", "csrs", &ListQuery::default())
        .await?;
    listing(out, &items, |views: Vec<Csr>| {
        let mut table = Table::new(&["request", "names", "key", "made", "by"]);
        for view in views {
            table.row([
                view.name,
                list(&view.names, 3),
                super::key(&view.key),
                when(&view.created),
                view.actor,
            ]);
        }
        table.print(out, "no signing requests");
    })
}
