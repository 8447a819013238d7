//! `chancery project`

use std::process::ExitCode;

use serde::Deserialize;

use lifecycle::command::{CreateProject, DeleteProject, OfProject};
use lifecycle::names::Slug;

use super::{accepted, listing, showing};
use crate::cli::Project;
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
        Project::List => {
            let items = client
                .list(&platform, "projects", "projects", &Default::default())
                .await?;
            listing(out, &items, |views: Vec<View>| {
                let mut table = Table::new(&["project", "status", "created"]);
                for view in views {
                    table.row([view.project, view.status, when(&view.created)]);
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
                card.print(out);
            })
        }
    }
}
