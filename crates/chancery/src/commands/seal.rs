//! `chancery seal`, and how every private key is sealed before it leaves this process.

use std::process::ExitCode;

use anyhow::Context as _;
use serde::Deserialize;

use keyring::{PrivateKey, SealedKey};
use lifecycle::names::Slug;

use crate::cli::{Global, Seal};
use crate::client::Client;
use crate::failure::Result;
use crate::material::{self, Passwords};
use crate::output::Out;

/// The key that private keys are sealed to.
#[derive(Clone, Deserialize)]
pub(super) struct IngestionKey {
    kid: String,
    public: String,
}

pub(super) async fn run(global: &Global, args: Seal, out: &Out) -> Result<ExitCode> {
    // What is wrong with the file is told before anybody is asked.
    let mut passwords = Passwords::new(args.password_file.as_deref());
    let key = material::key(&args.key, &mut passwords)?;
    let client = Client::connect(global).await?;
    let sealed = seal(&client, client.project()?, &key).await?;
    out.document(&sealed);
    Ok(ExitCode::SUCCESS)
}

/// Seals a key for one project to the present ingestion key.
pub(super) async fn seal(client: &Client, project: &Slug, key: &PrivateKey) -> Result<SealedKey> {
    IngestionKey::ask(client, project).await?.seal(project, key)
}

impl IngestionKey {
    /// Asks for the present one.
    pub(super) async fn ask(client: &Client, project: &Slug) -> Result<Self> {
        client
            .view(project, "ingestion-key", &serde_json::json!({}))
            .await
    }

    /// Seals a key for one project.
    pub(super) fn seal(&self, project: &Slug, key: &PrivateKey) -> Result<SealedKey> {
        let public: [u8; 32] = data_encoding::BASE64URL_NOPAD
            .decode(self.public.trim_end_matches('=').as_bytes())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .context("the ingestion key is not one that this release can seal to")?;
        let sealed =
            SealedKey::seal(&public, project.as_str(), key).context("sealing the private key")?;
        // The name is made from the key: another one would mean that something between changed one of them.
        if sealed.kid != self.kid {
            return Err(anyhow::anyhow!(
                "the ingestion key does not have the name that it came with"
            )
            .into());
        }
        Ok(sealed)
    }
}
