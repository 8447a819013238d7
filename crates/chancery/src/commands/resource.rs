//! `chancery resource`

use std::process::ExitCode;

use serde::Deserialize;

use lifecycle::command::{ChangeResource, CreateResource, DeleteResource};

use super::{accepted, listing, showing};
use crate::cli::Resource;
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::output::{Card, Out, Table, list};

#[derive(Deserialize)]
struct View {
    name: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    regions: Vec<String>,
    #[serde(default)]
    origin: String,
    #[serde(default)]
    keep_host: bool,
    #[serde(default)]
    demand_public: bool,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
    #[serde(default)]
    revision: u64,
}

#[derive(Deserialize)]
struct Endpoint {
    #[serde(default)]
    region: String,
    #[serde(default)]
    host: String,
}

pub(super) async fn run(client: &Client, command: Resource, out: &Out) -> Result<ExitCode> {
    let project = client.project()?;
    match command {
        Resource::Create {
            name,
            kind,
            regions,
            origin,
            keep_host,
            demand_public,
        } => {
            let body = CreateResource {
                name: name.clone(),
                kind: kind.into(),
                regions,
                origin,
                keep_host,
                demand_public,
            };
            let answer = client.command(project, "resource.create", &body).await?;
            accepted(out, &answer, format!("resource {name} is created"))
        }
        Resource::Set {
            name,
            regions,
            origin,
            keep_host,
            demand_public,
            expect,
        } => {
            let regions = (!regions.is_empty()).then_some(regions);
            if regions.is_none()
                && origin.is_none()
                && keep_host.is_none()
                && demand_public.is_none()
            {
                return Err(Failure::Usage(
                    "nothing to change: give --region, --origin, --keep-host or --demand-public"
                        .to_owned(),
                ));
            }
            let body = ChangeResource {
                name: name.clone(),
                regions,
                origin,
                keep_host,
                demand_public,
                expect,
            };
            let answer = client.command(project, "resource.set", &body).await?;
            accepted(out, &answer, format!("resource {name} is changed"))
        }
        Resource::Delete { name, confirm } => {
            let body = DeleteResource {
                expect: None,
                name: name.clone(),
                confirm,
            };
            let answer = client.command(project, "resource.delete", &body).await?;
            accepted(out, &answer, format!("resource {name} is deleted"))
        }
        Resource::List => {
            let items = client
                .list(project, "resources", "resources", &Default::default())
                .await?;
            listing(out, &items, |views: Vec<View>| {
                let mut table = Table::new(&["resource", "kind", "regions", "origin", "endpoint"]);
                for view in views {
                    let endpoints: Vec<_> =
                        view.endpoints.iter().map(|e| e.host.as_str()).collect();
                    table.row([
                        view.name,
                        view.kind,
                        list(&view.regions, 3),
                        view.origin,
                        list(&endpoints, 1),
                    ]);
                }
                table.print(out, "no resources");
            })
        }
        Resource::Show { name } => {
            let item = client
                .one(project, "resources", "resources", name.as_str())
                .await?;
            showing(out, &item, |view: View| {
                let mut card = Card::default();
                card.add("resource", view.name);
                card.add("kind", view.kind);
                card.add("regions", list(&view.regions, 50));
                card.add("origin", view.origin);
                card.add(
                    "host sent",
                    if view.keep_host {
                        "the client's"
                    } else {
                        "the origin's"
                    },
                );
                if view.demand_public {
                    card.add("serves", "publicly trusted certificates only");
                }
                for endpoint in view.endpoints {
                    card.add(
                        "endpoint",
                        format!("{} ({})", endpoint.host, endpoint.region),
                    );
                }
                card.add("revision", view.revision.to_string());
                card.print(out);
            })
        }
    }
}
