//! `chancery certificate`: upload, list, replace, deploy, withdraw, delete, wait.
//!
//! A private key is read, checked and sealed in this process; what is sent holds only whole PEM blocks that are no keys.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde::Deserialize;

use keyring::PrivateKey;
use lifecycle::command::{DeleteCertificate, DeployCertificate, WithdrawCertificate};
use lifecycle::event::CertificateKind;
use lifecycle::names::Slug;
use wire::request::{AddCertificate, ListQuery, ReplaceCertificate};

use super::{Reason, accepted, seal, showing};
use crate::cli::{Certificate, Global};
use crate::client::Client;
use crate::failure::Result;
use crate::material::{self, Passwords, Upload};
use crate::output::{Card, Out, Table, list, when};

mod custody;
pub mod import;
mod listing;
pub mod wait;

/// How long `--wait` waits.
const VERIFIED_WITHIN: Duration = Duration::from_secs(60);

/// A certificate as its view shows it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct View {
    name: String,
    id: serde_json::Value,
    kind: String,
    status: String,
    shown: String,
    #[serde(deserialize_with = "super::nullable")]
    reasons: Vec<Reason>,
    #[serde(deserialize_with = "super::nullable")]
    names: Vec<String>,
    #[serde(deserialize_with = "super::nullable")]
    not_before: String,
    #[serde(deserialize_with = "super::nullable")]
    not_after: String,
    trust: Option<String>,
    #[serde(deserialize_with = "super::nullable")]
    revocation: Revocation,
    warnings: Vec<Warning>,
    #[serde(deserialize_with = "super::nullable")]
    next_warning: NextWarning,
    regions: Vec<String>,
    standby: bool,
    #[serde(deserialize_with = "super::nullable")]
    fingerprint: String,
    key: serde_json::Value,
    versions: Vec<Version>,
    roles: Vec<Role>,
    served_everywhere: bool,
    behind: Vec<serde_json::Value>,
    revision: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Version {
    version: u64,
    status: String,
    #[serde(deserialize_with = "super::nullable")]
    fingerprint: String,
    #[serde(deserialize_with = "super::nullable")]
    not_after: String,
    trust: Option<String>,
}

/// When its end is warned of next.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NextWarning {
    due: String,
}

/// What the last look at revocation found.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Revocation {
    status: String,
    #[serde(deserialize_with = "super::nullable")]
    checked: String,
    #[serde(deserialize_with = "super::nullable")]
    source: String,
}

impl Revocation {
    fn line(&self) -> String {
        let mut line = match self.status.as_str() {
            "good" => "not revoked".to_owned(),
            "none" => "its CA names no address to look it up".to_owned(),
            status => status.to_owned(),
        };
        if !self.checked.is_empty() {
            line.push_str(&format!(", looked up {}", when(&self.checked)));
        }
        if !self.source.is_empty() {
            line.push_str(&format!(" at {}", self.source));
        }
        line
    }
}

/// What somebody should know and need not act on at once.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Warning {
    message: String,
    hint: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Role {
    region: String,
    host: String,
    role: String,
}

impl View {
    /// The word that people know, with why it is not served where that matters.
    fn word(&self) -> &str {
        if self.shown.is_empty() {
            &self.status
        } else {
            &self.shown
        }
    }
}

/// Reads the files of an upload. What is wrong with them is told before anybody is asked.
fn upload(
    chain: &Path,
    key: Option<&Path>,
    password_file: Option<&Path>,
    kind: CertificateKind,
    out: &Out,
) -> Result<Upload> {
    let upload = material::upload(chain, key, kind, &mut Passwords::new(password_file))?;
    for note in &upload.notes {
        out.note(note);
    }
    Ok(upload)
}

/// Tells what was done to the chain that was sent, a line each; programs find it in the answer.
fn tell_repairs(answer: &crate::client::Accepted, out: &Out) {
    let repairs = answer.answer.more.get("repairs").cloned();
    let repairs: Vec<control::chain::repair::Repair> = repairs
        .and_then(|repairs| serde_json::from_value(repairs).ok())
        .unwrap_or_default();
    for repair in repairs {
        out.note(format!("repaired: {}", repair.message));
    }
}

pub(super) async fn run(global: &Global, command: Certificate, out: &Out) -> Result<ExitCode> {
    match command {
        Certificate::Add {
            name,
            chain,
            key,
            password_file,
            kind,
            regions,
            standby,
            wait,
        } => {
            let kind = kind.into();
            let upload = upload(&chain, key.as_deref(), password_file.as_deref(), kind, out)?;
            let client = Client::connect(global).await?;
            let project = client.project()?;
            let body = AddCertificate {
                name: name.clone(),
                kind,
                chain: upload.chain,
                key: sealed(&client, project, upload.key).await?,
                regions,
                standby,
            };
            let answer = client.command(project, "certificate.add", &body).await?;
            tell_repairs(&answer, out);
            accepted(
                out,
                &answer,
                format!("certificate {name} is accepted and being verified"),
            )?;
            then_wait(&client, project, &name, wait, out).await
        }
        Certificate::Replace {
            name,
            chain,
            key,
            password_file,
            expect,
            wait,
        } => {
            let upload = upload(
                &chain,
                key.as_deref(),
                password_file.as_deref(),
                CertificateKind::Server,
                out,
            )?;
            let client = Client::connect(global).await?;
            let project = client.project()?;
            let body = ReplaceCertificate {
                name: name.clone(),
                chain: upload.chain,
                key: sealed(&client, project, upload.key).await?,
                expect,
            };
            let answer = client
                .command(project, "certificate.replace", &body)
                .await?;
            tell_repairs(&answer, out);
            accepted(
                out,
                &answer,
                format!("the new version of certificate {name} is accepted and being verified"),
            )?;
            then_wait(&client, project, &name, wait, out).await
        }
        Certificate::Import(args) => import::run(global, args, out).await,
        command @ (Certificate::Csr { .. }
        | Certificate::Export { .. }
        | Certificate::Move { .. }) => custody::run(global, command, out).await,
        command => {
            let client = Client::connect(global).await?;
            let project = client.project()?;
            with_client(&client, project, command, out).await
        }
    }
}

async fn sealed(
    client: &Client,
    project: &Slug,
    key: Option<PrivateKey>,
) -> Result<Option<serde_json::Value>> {
    let Some(key) = key else { return Ok(None) };
    let sealed = seal::seal(client, project, &key).await?;
    Ok(Some(
        serde_json::to_value(&sealed).map_err(anyhow::Error::new)?,
    ))
}

async fn then_wait(
    client: &Client,
    project: &Slug,
    name: &Slug,
    wait: bool,
    out: &Out,
) -> Result<ExitCode> {
    if !wait {
        return Ok(ExitCode::SUCCESS);
    }
    wait::run(
        client,
        project,
        name,
        wait::Target::Ready,
        VERIFIED_WITHIN,
        out,
    )
    .await
}

async fn with_client(
    client: &Client,
    project: &Slug,
    command: Certificate,
    out: &Out,
) -> Result<ExitCode> {
    match command {
        Certificate::Add { .. }
        | Certificate::Replace { .. }
        | Certificate::Import(_)
        | Certificate::Csr { .. }
        | Certificate::Export { .. }
        | Certificate::Move { .. } => {
            Err(anyhow::anyhow!("an upload reads its files before it connects").into())
        }
        Certificate::List { csrs: true, .. } => listing::requests(client, project, out).await,
        Certificate::List {
            expiring,
            host,
            status,
            csrs: false,
        } => {
            let query = ListQuery {
                expiring,
                host,
                status,
                ..Default::default()
            };
            listing::run(client, project, query, out).await
        }
        Certificate::Show { name } => {
            let item = client
                .one(project, "certificates", "certificates", name.as_str())
                .await?;
            showing(out, &item, |view: View| show(&view, out))
        }
        Certificate::Deploy {
            name,
            regions,
            expect,
        } => {
            let places = list(&regions, 20);
            let body = DeployCertificate {
                name: name.clone(),
                regions,
                expect,
            };
            let answer = client.command(project, "certificate.deploy", &body).await?;
            accepted(
                out,
                &answer,
                format!("certificate {name} is deployed to {places}"),
            )
        }
        Certificate::Withdraw {
            name,
            regions,
            force,
            expect,
        } => {
            let places = list(&regions, 20);
            let body = WithdrawCertificate {
                name: name.clone(),
                regions,
                force,
                expect,
            };
            let answer = client
                .command(project, "certificate.withdraw", &body)
                .await?;
            accepted(
                out,
                &answer,
                format!("certificate {name} is withdrawn from {places}"),
            )
        }
        Certificate::Delete {
            name,
            confirm,
            force,
            expect,
        } => {
            let body = DeleteCertificate {
                name: name.clone(),
                confirm,
                force,
                expect,
            };
            let answer = client.command(project, "certificate.delete", &body).await?;
            accepted(out, &answer, format!("certificate {name} is deleted"))
        }
        Certificate::Wait {
            name,
            status,
            timeout,
        } => wait::run(client, project, &name, status, timeout, out).await,
    }
}

/// A key's kind: a name, or a name with its bits.
fn key(kind: &serde_json::Value) -> String {
    match kind {
        serde_json::Value::Null => String::new(),
        serde_json::Value::String(name) => name.clone(),
        other => super::status::text(other),
    }
}

fn show(view: &View, out: &Out) {
    let mut card = Card::default();
    card.add("certificate", view.name.clone());
    card.add("id", super::status::text(&view.id));
    card.add("kind", view.kind.clone());
    let standby = if view.standby {
        ", uploaded as a standby"
    } else {
        ""
    };
    card.add("status", format!("{}{standby}", view.word()));
    for reason in &view.reasons {
        card.add("because", reason.line());
    }
    card.add("names", list(&view.names, 20));
    card.add("begins", when(&view.not_before));
    card.add("ends", when(&view.not_after));
    card.add("next warning", when(&view.next_warning.due));
    card.add("trust", view.trust.clone().unwrap_or_default());
    card.add("revocation", view.revocation.line());
    for warning in &view.warnings {
        card.add("warning", format!("{} ({})", warning.message, warning.hint));
    }
    card.add("key", key(&view.key));
    card.add("fingerprint", view.fingerprint.clone());
    card.add("regions", list(&view.regions, 50));
    let behind: Vec<_> = view.behind.iter().map(super::status::text).collect();
    let served = match (view.served_everywhere, behind.is_empty()) {
        (true, _) => "everywhere".to_owned(),
        (false, true) => "not everywhere".to_owned(),
        (false, false) => format!("not everywhere; behind: {}", list(&behind, 10)),
    };
    card.add("served", served);
    card.add("revision", view.revision.to_string());
    card.print(out);
    if !view.versions.is_empty() {
        out.say("");
        let mut table = Table::new(&["version", "status", "ends", "trust", "fingerprint"]);
        for version in &view.versions {
            table.row([
                version.version.to_string(),
                version.status.clone(),
                when(&version.not_after),
                version.trust.clone().unwrap_or_default(),
                version.fingerprint.clone(),
            ]);
        }
        table.print(out, "");
    }
    if !view.roles.is_empty() {
        out.say("");
        let mut table = Table::new(&["region", "host", "role"]);
        for role in &view.roles {
            table.row([role.region.clone(), role.host.clone(), role.role.clone()]);
        }
        table.print(out, "");
    }
}
