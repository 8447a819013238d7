//! `chancery certificate csr`, `export` and `move`: keys that are born inside, that leave, and that go to another project.
//!
//! An exported key is sealed to a key pair that lives as long as this process, opened here, and written so that only its owner
//! can read it. It is never in an answer, a log or on a terminal.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::json;

use keyring::hpke::{Recipient, Sealed};
use keyring::{Password, PrivateKey};
use lifecycle::command::{DiscardCsr, MoveCertificate};
use lifecycle::names::{Digest, Slug};
use wire::request::{CreateCsr, ExportCertificate};

use super::super::accepted;
use crate::cli::{Certificate, Format, Global};
use crate::client::{Accepted, Client, read};
use crate::failure::{Failure, Result};
use crate::material::{self, Passwords, Place};
use crate::output::Out;

pub(super) async fn run(global: &Global, command: Certificate, out: &Out) -> Result<ExitCode> {
    match command {
        Certificate::Csr {
            name,
            discard: true,
            ..
        } => {
            let client = Client::connect(global).await?;
            let body = DiscardCsr { name: name.clone() };
            let answer = client
                .command(client.project()?, "certificate.csr-discard", &body)
                .await?;
            accepted(
                out,
                &answer,
                format!("signing request {name} is given up; its key goes"),
            )
        }
        Certificate::Csr {
            name,
            show: true,
            out: file,
            ..
        } => {
            #[derive(Deserialize)]
            struct Shown {
                csr: String,
            }
            let client = Client::connect(global).await?;
            let item = client
                .one(client.project()?, "csrs", "csrs", name.as_str())
                .await?;
            let pem = read::<Shown>(item.get().as_bytes())?.csr;
            if let Some(file) = &file {
                material::save(file, pem.as_bytes(), false)?;
            }
            if out.json() {
                out.raw(&item);
            } else if file.is_none() {
                out.line(pem.trim_end());
            }
            Ok(ExitCode::SUCCESS)
        }
        Certificate::Csr {
            name,
            hosts,
            key_type,
            out: file,
            ..
        } => {
            let place = file
                .as_deref()
                .map(|file| Place::prepare(file, false))
                .transpose()?;
            let client = Client::connect(global).await?;
            let body = CreateCsr {
                name: name.clone(),
                names: hosts,
                key: key_type.into(),
            };
            let answer = client
                .command(client.project()?, "certificate.csr", &body)
                .await?;
            let pem = answer
                .text("csr")
                .context("the answer brings no signing request")?;
            let next = format!(
                "have it signed, then: chancery certificate add {name} --chain FILE --region REGION (without --key)"
            );
            match file.zip(place) {
                Some((file, place)) => {
                    place.write(pem.as_bytes())?;
                    accepted(
                        out,
                        &answer,
                        format!("signing request {name} is in {}", file.display()),
                    )?;
                    out.say(next);
                }
                None if out.json() => out.raw(&answer.document),
                None => {
                    out.line(pem.trim_end());
                    out.note(next);
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        Certificate::Export {
            name,
            format,
            out: file,
            key_out,
            password_file,
            version,
            force,
        } => {
            // What needs a person, or may be wrong, comes before the key is asked for: that it left is written down for ever.
            let to = Targets::of(format, &file, key_out, force, out)?;
            let password = match format {
                Format::Pkcs12 => Some(
                    Passwords::new(password_file.as_deref())
                        .new_one(&file.display().to_string())?,
                ),
                Format::Nginx | Format::Haproxy => None,
            };
            let client = Client::connect(global).await?;
            let project = client.project()?;
            let recipient = Recipient::generate();
            let body = ExportCertificate {
                name: name.clone(),
                version,
                recipient: Digest(recipient.public()),
            };
            let answer = client.command(project, "certificate.export", &body).await?;
            let taken = Taken::open(&answer, &recipient, project)?;
            let written = to.write(format, &taken, password.as_ref(), name.as_str())?;
            if out.json() {
                if written.iter().any(|file| file == "-") {
                    return Ok(ExitCode::SUCCESS);
                }
                out.document(&json!({
                    "id": answer.answer.id, "outcome": answer.answer.outcome, "sequence": answer.answer.sequence,
                    "name": name, "version": taken.version, "files": written,
                }));
            } else {
                out.note(format!(
                    "version {} of certificate {name} with its private key is in {} (sequence {})",
                    taken.version,
                    written.join(" and "),
                    answer.answer.sequence
                ));
            }
            Ok(ExitCode::SUCCESS)
        }
        Certificate::Move {
            name,
            to,
            new_name,
            regions,
            confirm,
            force,
            expect,
        } => {
            let client = Client::connect(global).await?;
            let project = client.project()?.clone();
            let body = MoveCertificate {
                project: project.clone(),
                name: name.clone(),
                to: to.clone(),
                new_name: new_name.clone(),
                regions: (!regions.is_empty()).then_some(regions),
                confirm,
                force,
                expect,
            };
            let answer = client.platform_command("certificate.move", &body).await?;
            let there = new_name.unwrap_or_else(|| name.clone());
            accepted(
                out,
                &answer,
                format!(
                    "certificate {name} of {project} is now {there} of {to}, and being verified there"
                ),
            )
        }
        _ => Err(anyhow::anyhow!("this is another command").into()),
    }
}

/// What came out, opened.
struct Taken {
    chain: Vec<rustls::pki_types::CertificateDer<'static>>,
    key: PrivateKey,
    version: u64,
}

#[derive(Deserialize)]
struct SealedForUs {
    enc: String,
    ct: String,
}

impl Taken {
    fn open(answer: &Accepted, recipient: &Recipient, project: &Slug) -> Result<Self> {
        let unreadable = "the answer brings no key that this release can open";
        let sealed: SealedForUs = answer
            .answer
            .more
            .get("key")
            .cloned()
            .and_then(|key| serde_json::from_value(key).ok())
            .context(unreadable)?;
        let decode = |text: &str| {
            data_encoding::BASE64URL_NOPAD
                .decode(text.as_bytes())
                .context(unreadable)
        };
        let sealed = Sealed {
            enc: decode(&sealed.enc)?.try_into().ok().context(unreadable)?,
            ct: decode(&sealed.ct)?,
        };
        let info = [b"chancery.v1.export\0", project.as_str().as_bytes()].concat();
        let der = recipient.open(&sealed, &info, b"").context(unreadable)?;
        let key = PrivateKey::from_der(der.expose()).context(unreadable)?;
        let chain = answer.text("chain").context("the answer brings no chain")?;
        let chain =
            material::parse(chain.as_bytes(), "the answer", &mut Passwords::none())?.certificates;
        Ok(Self {
            chain,
            key,
            version: answer
                .answer
                .more
                .get("version")
                .and_then(serde_json::Value::as_u64)
                .unwrap_or_default(),
        })
    }
}

/// Where it goes.
struct Targets {
    first: Target,
    key: Option<Target>,
}

/// One file, created already, or standard output.
struct Target {
    name: String,
    place: Option<Place>,
}

impl Target {
    fn of(file: &Path, force: bool) -> Result<Self> {
        let place = match file == Path::new("-") {
            true => None,
            false => Some(Place::prepare(file, force)?),
        };
        Ok(Self {
            name: file.display().to_string(),
            place,
        })
    }

    /// Its name, once it is written.
    fn write(self, bytes: &[u8]) -> Result<String> {
        match self.place {
            Some(place) => place.write(bytes)?,
            None => {
                let mut stdout = std::io::stdout().lock();
                stdout
                    .write_all(bytes)
                    .and_then(|()| stdout.flush())
                    .context("writing to standard output")?;
            }
        }
        Ok(self.name)
    }
}

impl Targets {
    fn of(
        format: Format,
        file: &Path,
        key_out: Option<PathBuf>,
        force: bool,
        out: &Out,
    ) -> Result<Self> {
        let stdout = file == Path::new("-");
        let usage = |text: &str| Err(Failure::Usage(text.to_owned()));
        if stdout && out.json() {
            return usage("with --json standard output has the answer: name a file with --out");
        }
        let key = match (format, key_out) {
            (Format::Nginx, Some(key)) if key == file => {
                return usage("chain and key go to two files: name another one with --key-out");
            }
            (Format::Nginx, Some(key)) => Some(key),
            (Format::Nginx, None) if stdout => {
                return usage("name the file of the key with --key-out");
            }
            (Format::Nginx, None) => {
                let key = file.with_extension("key");
                if key == file {
                    return usage("name the file of the key with --key-out");
                }
                Some(key)
            }
            (Format::Haproxy | Format::Pkcs12, Some(_)) => {
                return usage("this format has the key in the one file of --out");
            }
            (Format::Haproxy | Format::Pkcs12, None) => None,
        };
        if key.as_deref() == Some(Path::new("-")) {
            return usage("a private key alone goes to a file: name one with --key-out");
        }
        if stdout && key.is_none() && std::io::stdout().is_terminal() {
            return usage("a private key is not shown on a terminal: name a file with --out");
        }
        Ok(Self {
            first: Target::of(file, force)?,
            key: key.map(|key| Target::of(&key, force)).transpose()?,
        })
    }

    fn write(
        self,
        format: Format,
        taken: &Taken,
        password: Option<&Password>,
        name: &str,
    ) -> Result<Vec<String>> {
        match (format, self.key, password) {
            (Format::Nginx, Some(key), _) => {
                let (chain, pem) = material::nginx_pair(&taken.chain, &taken.key);
                // A server that sees a new chain must find its key.
                let key = key.write(pem.as_bytes())?;
                Ok(vec![self.first.write(chain.as_bytes())?, key])
            }
            (Format::Pkcs12, _, Some(password)) => {
                let bytes = material::pkcs12(&taken.chain, &taken.key, password, name);
                Ok(vec![self.first.write(&bytes)?])
            }
            _ => {
                let pem = material::haproxy_pem(&taken.chain, &taken.key);
                Ok(vec![self.first.write(pem.as_bytes())?])
            }
        }
    }
}
