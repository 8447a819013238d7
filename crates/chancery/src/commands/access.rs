//! `chancery access`: who may act for a project. The key pair of a user is made here, and its seed never leaves.

use std::process::ExitCode;

use anyhow::Context as _;
use nkeys::KeyPair;
use serde::Deserialize;
use zeroize::Zeroizing;

use bus::identity::Credentials;
use lifecycle::command::{CreateAccess, RevokeAccess};
use lifecycle::names::Slug;
use wire::request::ListQuery;

use super::{accepted, listing};
use crate::cli::{Access, Global};
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::files::NewFile;
use crate::output::{Out, Table, list, when};

#[derive(Deserialize)]
struct View {
    project: String,
    name: String,
    #[serde(default)]
    rights: Vec<String>,
    #[serde(default)]
    expires: Option<String>,
    #[serde(default)]
    revoked: serde_json::Value,
}

pub(super) async fn run(global: &Global, command: Access, out: &Out) -> Result<ExitCode> {
    match command {
        Access::Create {
            name,
            out: path,
            mut rights,
            export,
            expires,
        } => {
            if export {
                if rights.is_empty() {
                    rights = lifecycle::decide::rights::member();
                }
                rights.push(lifecycle::decide::rights::EXPORT.to_owned());
                rights.dedup();
            }
            // The file comes first: an access whose credentials cannot be written would help nobody.
            let file = NewFile::create(&path)?;
            let client = Client::connect(global).await?;
            let project = named(&client)?;
            let key = KeyPair::new_user();
            let seed = Zeroizing::new(key.seed().context("making a key pair")?);
            let body = CreateAccess {
                project: project.clone(),
                name: name.clone(),
                nkey: key.public_key(),
                rights,
                expires: expires.map(|time| time.micros.div_euclid(1_000_000)),
            };
            let answer = client.platform_command("access.create", &body).await?;
            let jwt = answer.text("jwt").context("the answer brings no JWT")?;
            let text = credentials(jwt, &seed);
            Credentials::parse(&text).context("the answer's JWT cannot be used")?;
            file.keep(&text)?;
            accepted(
                out,
                &answer,
                format!(
                    "{name} has access to project {project}; the credentials are in {}",
                    path.display()
                ),
            )
        }
        Access::List => {
            let client = Client::connect(global).await?;
            let query = ListQuery {
                of: client.named_project().cloned(),
                ..Default::default()
            };
            let items = client
                .list(&Slug::platform(), "access", "access", &query)
                .await?;
            listing(out, &items, |views: Vec<View>| {
                let mut table = Table::new(&["project", "name", "rights", "expires", "revoked"]);
                for view in views {
                    let rights = if view.rights.iter().all(|right| right.ends_with(".>"))
                        && view.rights.len() != 1
                    {
                        "all".to_owned()
                    } else {
                        list(&view.rights, 4)
                    };
                    let revoked = match view.revoked {
                        serde_json::Value::Bool(true) => "revoked".to_owned(),
                        serde_json::Value::String(at) => when(&at),
                        _ => String::new(),
                    };
                    let expires = view.expires.map_or("never".to_owned(), |at| when(&at));
                    table.row([view.project, view.name, rights, expires, revoked]);
                }
                table.print(out, "nobody has access");
            })
        }
        Access::Revoke { name } => {
            let client = Client::connect(global).await?;
            let project = named(&client)?;
            let body = RevokeAccess {
                project: project.clone(),
                name: name.clone(),
            };
            let answer = client.platform_command("access.revoke", &body).await?;
            accepted(
                out,
                &answer,
                format!("{name} no longer has access to project {project}"),
            )
        }
    }
}

/// The operator's own project is no default here: who forgets the flag would make another operator.
fn named(client: &Client) -> Result<&Slug> {
    client.named_project().ok_or_else(|| {
        Failure::Usage(
            "say for which project with --project (`platform` is the operators')".to_owned(),
        )
    })
}

/// A `.creds` file as every NATS client reads it.
fn credentials(jwt: &str, seed: &str) -> Zeroizing<String> {
    Zeroizing::new(format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         The seed below is a private key: whoever holds this file is this user.\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two clients that people use read the file: ours, and async-nats by its own parser.
    #[test]
    fn clients_read_the_credentials() {
        let identity = bus::identity::Identity::generate();
        let jwt = identity
            .project_user("acme", "ci", &bus::identity::Rights::All, 1, 2)
            .expect("minted")
            .jwt;
        let key = KeyPair::new_user();
        let text = credentials(&jwt, &key.seed().expect("a seed"));
        let read = Credentials::parse(&text).expect("read");
        assert_eq!((read.jwt, read.user), (jwt, key.public_key()));
        async_nats::ConnectOptions::with_credentials(&text).expect("async-nats reads it");
    }
}
