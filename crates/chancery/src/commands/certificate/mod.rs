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
use lifecycle::rejection::Code;
use wire::request::{AddCertificate, ListQuery, ReplaceCertificate};

use super::{Reason, accepted, listing, seal, showing};
use crate::cli::{Certificate, Global};
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::files;
use crate::output::{Card, Out, Table, list, when};
use crate::pem;

pub mod import;
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

/// What files bring: the chain to send, and the key to seal.
struct Material {
    chain: String,
    key: Option<PrivateKey>,
}

/// Reads the files of an upload. What is wrong with them is told before anybody is asked.
fn material(
    chain: &Path,
    key: Option<&Path>,
    kind: CertificateKind,
    out: &Out,
) -> Result<Material> {
    let mut contents = pem::read(&files::read(chain, files::PEM_MAX)?)?;
    if kind == CertificateKind::Ca && (key.is_some() || !contents.keys.is_empty()) {
        return Err(Failure::problem(
            Code::KeyUnexpected,
            "a certificate of kind ca is client trust and never has a key here",
            "leave the private key out; the CA keeps it",
        ));
    }
    let key = match (key, contents.keys.len()) {
        (Some(path), _) => Some(seal::read_key(path)?),
        (None, 0) => None,
        (None, 1) => {
            out.note(format!(
                "{} also holds the private key; it is sealed and used",
                chain.display()
            ));
            contents.keys.pop()
        }
        (None, several) => {
            return Err(Failure::problem(
                Code::KeyUnexpected,
                format!("{} holds {several} private keys", chain.display()),
                "leave only the one that belongs to the certificate, or name its file with --key",
            ));
        }
    };
    if contents.public.is_empty() {
        return Err(Failure::problem(
            Code::NoCertificate,
            format!("{} holds no certificate", chain.display()),
            "the chain begins with -----BEGIN CERTIFICATE-----, the host's own certificate first",
        ));
    }
    if contents.public.len() > crate::client::BODY_MAX {
        return Err(Failure::problem(
            Code::TooLarge,
            format!(
                "the chain has {} bytes, more than any chain needs",
                contents.public.len()
            ),
            "a chain is the host's certificate and its intermediates; leave the others out",
        ));
    }
    Ok(Material {
        chain: contents.public,
        key,
    })
}

pub(super) async fn run(global: &Global, command: Certificate, out: &Out) -> Result<ExitCode> {
    match command {
        Certificate::Add {
            name,
            chain,
            key,
            kind,
            regions,
            standby,
            wait,
        } => {
            let kind = kind.into();
            let material = material(&chain, key.as_deref(), kind, out)?;
            let client = Client::connect(global).await?;
            let project = client.project()?;
            let body = AddCertificate {
                name: name.clone(),
                kind,
                chain: material.chain,
                key: sealed(&client, project, material.key).await?,
                regions,
                standby,
            };
            let answer = client.command(project, "certificate.add", &body).await?;
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
            expect,
            wait,
        } => {
            let material = material(&chain, key.as_deref(), CertificateKind::Server, out)?;
            let client = Client::connect(global).await?;
            let project = client.project()?;
            let body = ReplaceCertificate {
                name: name.clone(),
                chain: material.chain,
                key: sealed(&client, project, material.key).await?,
                expect,
            };
            let answer = client
                .command(project, "certificate.replace", &body)
                .await?;
            accepted(
                out,
                &answer,
                format!("the new version of certificate {name} is accepted and being verified"),
            )?;
            then_wait(&client, project, &name, wait, out).await
        }
        Certificate::Import(args) => import::run(global, args, out).await,
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
        Certificate::Add { .. } | Certificate::Replace { .. } | Certificate::Import(_) => {
            Err(anyhow::anyhow!("an upload reads its files before it connects").into())
        }
        Certificate::List { expiring } => {
            let query = ListQuery {
                expiring,
                ..Default::default()
            };
            let items = client
                .list(project, "certificates", "certificates", &query)
                .await?;
            listing(out, &items, |views: Vec<View>| {
                let mut table =
                    Table::new(&["certificate", "status", "names", "ends", "trust", "regions"]);
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
    card.add("trust", view.trust.clone().unwrap_or_default());
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

#[cfg(test)]
mod tests {
    use keyring::KeyKind;

    use super::*;

    fn pem(label: &str, der: &[u8]) -> String {
        format!(
            "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
            data_encoding::BASE64.encode(der)
        )
    }

    fn code(result: Result<Material>) -> String {
        match result {
            Err(Failure::Refused(refused)) => refused.told.code,
            Err(other) => format!("{other:?}"),
            Ok(_) => "ok".to_owned(),
        }
    }

    #[test]
    fn files_are_told_apart() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        let key = PrivateKey::generate(KeyKind::EcdsaP256).expect("made");
        let key = pem("PRIVATE KEY", key.danger_to_pkcs8_der().expose());
        let certificate = pem("CERTIFICATE", b"x");
        let alone = file("chain.pem", &certificate);
        let both = file("both.pem", &format!("{key}{certificate}"));
        let two = file("two.pem", &format!("{key}{key}{certificate}"));
        let only_key = file("key.pem", &key);
        let out = Out::new(true);
        let server = CertificateKind::Server;

        let read = material(&alone, Some(&only_key), server, &out).expect("read");
        assert!(read.key.is_some());
        let read = material(&both, None, server, &out).expect("read");
        assert!(read.key.is_some() && !read.chain.contains("PRIVATE"));
        let read = material(&both, Some(&only_key), server, &out).expect("read");
        assert!(read.key.is_some() && !read.chain.contains("PRIVATE"));
        // Whether a server certificate may come without a key is the other side's to say: a replacement may keep it.
        assert!(
            material(&alone, None, server, &out)
                .expect("read")
                .key
                .is_none()
        );

        assert_eq!(code(material(&two, None, server, &out)), "key_unexpected");
        assert_eq!(
            code(material(&only_key, None, server, &out)),
            "no_certificate"
        );
        assert_eq!(
            code(material(&alone, Some(&alone), server, &out)),
            "key_missing"
        );
        assert_eq!(
            code(material(&alone, Some(&only_key), CertificateKind::Ca, &out)),
            "key_unexpected"
        );
        assert_eq!(
            code(material(&both, None, CertificateKind::Ca, &out)),
            "key_unexpected"
        );
        let large = file("large.pem", &certificate.repeat(10_000));
        assert_eq!(code(material(&large, None, server, &out)), "too_large");
        let huge = folder.path().join("huge.pem");
        std::fs::File::create(&huge)
            .expect("made")
            .set_len(files::PEM_MAX + 1)
            .expect("grown");
        assert_eq!(code(material(&huge, None, server, &out)), "too_large");
    }
}
