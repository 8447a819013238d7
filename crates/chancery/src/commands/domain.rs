//! `chancery domain`: claims of hosts, where they are attached and how they are served.

pub mod proof;

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde::Deserialize;

use lifecycle::command::{
    AddDomain, AttachDomain, BindDomain, DetachDomain, ProveDomain, ReleaseDomain, SetHttps,
    UnbindDomain,
};
use lifecycle::names::Slug;
use wire::request::CheckDomain;

use self::proof::Verification;
use super::{accepted, listing, showing};
use crate::cli::{Domain, Mode};
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::output::{Card, Out, Table, list, when};

#[derive(Deserialize)]
struct View {
    host: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    proof: Option<String>,
    #[serde(default)]
    attached: BTreeMap<String, Option<String>>,
    #[serde(default)]
    mode: String,
    #[serde(default)]
    modes: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    certificate: Option<String>,
    #[serde(default)]
    revision: u64,
    /// Of a holder: it moves to another project then.
    #[serde(default)]
    contested_until: Option<String>,
    /// Of a claimant whose proof was found.
    #[serde(default)]
    moves_at: Option<String>,
    #[serde(default, deserialize_with = "super::nullable")]
    verification: Verification,
    #[serde(default)]
    warnings: Vec<String>,
}

impl View {
    fn attachments(&self) -> Vec<String> {
        self.attached
            .iter()
            .map(|(region, resource)| {
                format!(
                    "{} ({region})",
                    resource.as_deref().unwrap_or("a deleted resource")
                )
            })
            .collect()
    }

    fn shown_mode(&self) -> String {
        match &self.certificate {
            Some(certificate) => format!("{} to {certificate}", self.mode),
            None => self.mode.clone(),
        }
    }
}

pub(super) async fn run(client: &Client, command: Domain, out: &Out) -> Result<ExitCode> {
    // Proving is a command of the platform, whatever project the claim is of.
    let project = match &command {
        Domain::Prove { .. } => &Slug::platform(),
        _ => client.project()?,
    };
    match command {
        Domain::Add {
            host,
            resource,
            regions,
        } => {
            let body = AddDomain {
                host: host.clone(),
                resource,
                regions,
            };
            let answer = client.command(project, "domain.add", &body).await?;
            let done = accepted(out, &answer, format!("domain {host} is added"))?;
            // It is added whether or not this can be told.
            if !out.json() && proof::tell(client, project, &host, out).await.is_err() {
                out.say(format!(
                    "`chancery domain show {host}` tells whether it is proven, and how to prove it"
                ));
            }
            Ok(done)
        }
        Domain::Check { host } => {
            let answer = client
                .command(project, "domain.check", &CheckDomain { host: host.clone() })
                .await?;
            accepted(out, &answer, format!("domain {host} is proven"))
        }
        Domain::Wait {
            host,
            status,
            timeout,
        } => proof::wait(client, project, &host, status, timeout, out).await,
        Domain::Prove { host, force } => {
            let claimant = client
                .named_project()
                .ok_or_else(|| Failure::Usage("say whose claim it is with --project".to_owned()))?;
            let body = ProveDomain {
                project: claimant.clone(),
                host: host.clone(),
                force,
            };
            let answer = client.command(project, "domain.prove", &body).await?;
            accepted(
                out,
                &answer,
                format!("the claim of project {claimant} to {host} is proven"),
            )
        }
        Domain::Attach {
            host,
            resource,
            regions,
        } => {
            let body = AttachDomain {
                expect: None,
                host: host.clone(),
                resource: resource.clone(),
                regions,
            };
            let answer = client.command(project, "domain.attach", &body).await?;
            accepted(
                out,
                &answer,
                format!("domain {host} is attached to {resource}"),
            )
        }
        Domain::Detach { host, regions } => {
            let whence = place(regions.first().map(|_| list(&regions, 20)));
            let answer = client
                .command(
                    project,
                    "domain.detach",
                    &DetachDomain {
                        expect: None,
                        host: host.clone(),
                        regions,
                    },
                )
                .await?;
            accepted(out, &answer, format!("domain {host} is detached {whence}"))
        }
        Domain::Bind {
            host,
            certificate,
            region,
            expect,
        } => {
            let place = place(region.as_ref().map(Slug::to_string));
            let body = BindDomain {
                host: host.clone(),
                certificate: certificate.clone(),
                region,
                expect,
            };
            let answer = client.command(project, "domain.bind", &body).await?;
            accepted(
                out,
                &answer,
                format!("domain {host} is bound to {certificate} {place}"),
            )
        }
        Domain::Unbind {
            host,
            region,
            expect,
        } => {
            let place = place(region.as_ref().map(Slug::to_string));
            let body = UnbindDomain {
                host: host.clone(),
                region,
                expect,
            };
            let answer = client.command(project, "domain.unbind", &body).await?;
            accepted(
                out,
                &answer,
                format!("domain {host} is left to selection {place}"),
            )
        }
        Domain::Https {
            host,
            mode,
            region,
            expect,
        } => {
            let place = place(region.as_ref().map(Slug::to_string));
            let word = match mode {
                Mode::Auto => "auto",
                Mode::Off => "off",
            };
            let body = SetHttps {
                host: host.clone(),
                https: mode.into(),
                region,
                expect,
            };
            let answer = client.command(project, "domain.https", &body).await?;
            accepted(out, &answer, format!("HTTPS of {host} is {word} {place}"))
        }
        Domain::Release { host } => {
            let answer = client
                .command(
                    project,
                    "domain.release",
                    &ReleaseDomain {
                        expect: None,
                        host: host.clone(),
                    },
                )
                .await?;
            accepted(out, &answer, format!("domain {host} is released"))
        }
        Domain::List => {
            let items = client
                .list(project, "domains", "domains", &Default::default())
                .await?;
            listing(out, &items, |views: Vec<View>| {
                let mut table = Table::new(&["domain", "status", "https", "attached to"]);
                for view in views {
                    let attached = list(&view.attachments(), 3);
                    let mode = view.shown_mode();
                    table.row([view.host, view.status, mode, attached]);
                }
                table.print(out, "no domains");
            })
        }
        Domain::Show { host } => {
            let item = client.one(project, "domains", "domains", &host).await?;
            showing(out, &item, |view: View| {
                let mut card = Card::default();
                card.add("domain", view.host.clone());
                card.add("status", view.status.clone());
                card.add("proof", view.proof.clone().unwrap_or_default());
                if let Some(until) = &view.contested_until {
                    card.add(
                        "contested",
                        format!(
                            "another project proved this host afresh; it is served from here until {}, then it moves there",
                            when(until)
                        ),
                    );
                    card.add(
                        "to keep it",
                        "whoever runs the zone removes the other project's record, or you prove it afresh after the move: release it, add it again, set the new record",
                    );
                }
                if let Some(at) = &view.moves_at {
                    card.add(
                        "moves here",
                        format!(
                            "{}, from the project that holds it, if the record still stands",
                            when(at)
                        ),
                    );
                }
                for warning in &view.warnings {
                    card.add("warning", warning.clone());
                }
                if view.status == "pending" {
                    view.verification.add_to(&view.host, &mut card);
                }
                card.add("https", view.shown_mode());
                for (region, mode) in &view.modes {
                    card.add(
                        "https in",
                        format!("{region}: {}", super::status::text(mode)),
                    );
                }
                for attached in view.attachments() {
                    card.add("attached to", attached);
                }
                card.add("revision", view.revision.to_string());
                card.print(out);
            })
        }
    }
}

fn place(region: Option<String>) -> String {
    region.map_or("everywhere".to_owned(), |region| format!("in {region}"))
}
