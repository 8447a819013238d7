//! `chancery project`

use std::process::ExitCode;

use serde::Deserialize;

use serde_json::value::RawValue;

use lifecycle::command::{CreateProject, DeleteProject, OfProject, SetExport, SetQuota};
use lifecycle::names::Slug;

use super::{accepted, listing, showing};
use crate::cli::{Project, Switch};
use crate::client::Client;
use crate::failure::Result;
use crate::output::{Card, Out, Table, when};

#[derive(Deserialize)]
struct View {
    project: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    created: String,
    #[serde(default)]
    quota: Quota,
    #[serde(default)]
    usage: Usage,
    #[serde(default)]
    export: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Quota {
    certificates: u64,
    per_region: u64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Usage {
    certificates: u64,
    domains: u64,
    resources: u64,
    csrs: u64,
}

/// The view `quotas`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Quotas {
    allocated: u64,
    used: u64,
    hard_cap: u64,
    exceeded: bool,
    per_region: u64,
    regions: Vec<RegionQuota>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RegionQuota {
    region: String,
    kind: String,
    allocated: u64,
    used: u64,
    exceeded: bool,
}

pub(super) async fn run(client: &Client, command: Project, out: &Out) -> Result<ExitCode> {
    let platform = Slug::platform();
    match command {
        Project::Create { name } => {
            let answer = client
                .platform_command(
                    "project.create",
                    &CreateProject {
                        project: name.clone(),
                    },
                )
                .await?;
            accepted(out, &answer, format!("project {name} is created"))
        }
        Project::Suspend { name } => {
            let answer = client
                .platform_command(
                    "project.suspend",
                    &OfProject {
                        project: name.clone(),
                    },
                )
                .await?;
            accepted(
                out,
                &answer,
                format!("project {name} is suspended: nothing of it is served"),
            )
        }
        Project::Resume { name } => {
            let answer = client
                .platform_command(
                    "project.resume",
                    &OfProject {
                        project: name.clone(),
                    },
                )
                .await?;
            accepted(out, &answer, format!("project {name} is served again"))
        }
        Project::Delete { name, confirm } => {
            let answer = client
                .platform_command(
                    "project.delete",
                    &DeleteProject {
                        project: name.clone(),
                        confirm,
                    },
                )
                .await?;
            accepted(
                out,
                &answer,
                format!("project {name} is deleted; its id is never used again"),
            )
        }
        Project::Quota {
            name,
            certificates: None,
            per_region: None,
        } => {
            let answer: Box<RawValue> =
                client.view(&name, "quotas", &serde_json::json!({})).await?;
            showing(out, &answer, |view: Quotas| {
                quotas(name.as_str(), &view, out)
            })
        }
        Project::Quota {
            name,
            certificates,
            per_region,
        } => {
            let body = SetQuota {
                project: name.clone(),
                certificates,
                per_region,
            };
            let answer = client.platform_command("project.quota-set", &body).await?;
            accepted(out, &answer, format!("project {name} has the new quota"))
        }
        Project::Set { name, export } => {
            let body = SetExport {
                project: name.clone(),
                export: export == Switch::On,
            };
            let answer = client.platform_command("project.export-set", &body).await?;
            let sentence = match export {
                Switch::On => {
                    format!("private keys may leave project {name}, by the right to export")
                }
                Switch::Off => format!("no private key leaves project {name}"),
            };
            accepted(out, &answer, sentence)
        }
        Project::List => {
            let items = client
                .list(&platform, "projects", "projects", &Default::default())
                .await?;
            listing(out, &items, |views: Vec<View>| {
                let mut table = Table::new(&["project", "status", "certificates", "created"]);
                for view in views {
                    let used =
                        format!("{} of {}", view.usage.certificates, view.quota.certificates);
                    table.row([view.project, view.status, used, when(&view.created)]);
                }
                table.print(out, "no projects");
            })
        }
        Project::Show { name } => {
            let item = client
                .one(&platform, "projects", "projects", name.as_str())
                .await?;
            showing(out, &item, |view: View| {
                let mut card = Card::default();
                card.add("project", view.project);
                card.add("status", view.status);
                card.add("created", when(&view.created));
                card.add(
                    "certificates",
                    format!(
                        "{} of {}, of one kind in one region at most {}",
                        view.usage.certificates, view.quota.certificates, view.quota.per_region
                    ),
                );
                card.add("domains", view.usage.domains.to_string());
                card.add("resources", view.usage.resources.to_string());
                card.add("requests", view.usage.csrs.to_string());
                card.add("export of keys", if view.export { "on" } else { "off" });
                card.print(out);
            })
        }
    }
}

fn quotas(project: &str, view: &Quotas, out: &Out) {
    let exceeded = |exceeded: bool| if exceeded { "yes" } else { "" };
    let mut card = Card::default();
    card.add("project", project);
    card.add(
        "certificates",
        format!(
            "{} of {}{}",
            view.used,
            view.allocated,
            if view.exceeded { ", exceeded" } else { "" }
        ),
    );
    card.add(
        "of one kind in one region",
        format!("at most {}", view.per_region),
    );
    card.add("an operator can allow", format!("up to {}", view.hard_cap));
    card.print(out);
    out.say("");
    let mut table = Table::new(&["region", "kind", "used", "of", "exceeded"]);
    for row in &view.regions {
        table.row([
            row.region.clone(),
            row.kind.clone(),
            row.used.to_string(),
            row.allocated.to_string(),
            exceeded(row.exceeded).to_owned(),
        ]);
    }
    table.print(out, "no regions");
}
