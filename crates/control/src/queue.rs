//! Queued commands: examined and sealed when they come, answered as soon as they are durable, decided afterwards.
//!
//! What becomes of them is an event, and the view `outcome` tells it by the command's id. The registrar's memory of ids
//! makes it harmless that the queue may hand out a command twice.

use std::time::Duration;

use actix::Addr;
use bytes::Bytes;

use bus::queue::Queue;
use lifecycle::command::Command;
use lifecycle::event::CertificateKind;
use lifecycle::rejection::Code;
use wire::answer::{Accepted, Answer, Problem};

use crate::registrar::{Ask, Registrar};
use crate::vault::{self, Vault};

/// Commands taken at once.
const TAKE: usize = 64;
/// How long one look into the queue waits.
const LOOK: Duration = Duration::from_secs(5);

/// Puts a command into the queue.
pub async fn put(queue: &Queue, ask: &Ask) -> Answer {
    let problem = |mut problem: Problem| {
        problem.id = Some(ask.id);
        Answer::Problem(Box::new(problem))
    };
    let Ok(bytes) = serde_json::to_vec(ask) else {
        return problem(Problem::new(
            Code::Malformed,
            "the command cannot be queued",
            "",
        ));
    };
    if bytes.len() > bus::queue::WORK_LIMIT {
        return problem(Problem::new(
            Code::TooLarge,
            "the command is too large for the queue",
            "ask it below cmd instead of queue",
        ));
    }
    match queue
        .put(&format!("{}/{}", ask.space, ask.id), Bytes::from(bytes))
        .await
    {
        Ok(_) => Answer::Accepted(Accepted {
            id: ask.id,
            outcome: "queued".to_owned(),
            sequence: 0,
            events: Vec::new(),
            more: serde_json::Map::new(),
        }),
        Err(error) => {
            tracing::warn!(%error, "a command could not be queued");
            problem(Problem::later(
                Code::Busy,
                "the queue does not take commands now",
                1_000,
            ))
        }
    }
}

/// Works the queue off, for ever.
pub async fn work(queue: Queue, registrar: Addr<Registrar>, vault: Addr<Vault>) {
    loop {
        let taken = match queue.take(TAKE, LOOK).await {
            Ok(taken) => taken,
            Err(error) => {
                tracing::debug!(%error, "the queue cannot be read now");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let decide = |work: bus::queue::Work| {
            let (registrar, vault) = (registrar.clone(), vault.clone());
            async move {
                let ended = match serde_json::from_slice::<Ask>(&work.bytes) {
                    // No certificate without its durable key: it was kept before the command was queued, and is looked for
                    // once more before it is named.
                    Ok(ask) if !is_kept(&vault, &ask).await => {
                        tracing::error!(id = %ask.id, "the key of a queued command is gone; the command is dropped");
                        work.done().await
                    }
                    Ok(ask) => match registrar.send(ask).await {
                        Ok(Answer::Problem(problem)) if problem.retry_after_ms.is_some() => {
                            let after =
                                Duration::from_millis(problem.retry_after_ms.unwrap_or(1_000));
                            work.later(after).await
                        }
                        Ok(_) => work.done().await,
                        Err(_) => return,
                    },
                    // Whoever put it there heard that it is queued; a release that cannot read it must not lose it silently.
                    Err(error) => {
                        tracing::error!(%error, "a queued command cannot be read; it is dropped");
                        work.done().await
                    }
                };
                if let Err(error) = ended {
                    // It comes again, and its id shows that it is done.
                    tracing::debug!(%error, "the queue did not hear that a command is done");
                }
            }
        };
        futures_util::future::join_all(taken.into_iter().map(decide)).await;
    }
}

/// Whether the vault holds the key that a command needs.
async fn is_kept(vault: &Addr<Vault>, ask: &Ask) -> bool {
    let spki = match &ask.command {
        Command::AddCertificate(c) if c.kind == CertificateKind::Server => c.facts.spki,
        Command::ReplaceCertificate(c) => c.facts.spki,
        _ => return true,
    };
    // A CA's version has no key; whether this is one, the registrar knows.
    let replaces = matches!(ask.command, Command::ReplaceCertificate(_));
    let project = ask.project.as_str().to_owned();
    let held = vault::with(vault, move |core| core.keyring.contains(&project, &spki.0)).await;
    matches!(held, Ok(Ok(true))) || (replaces && ask.objects.is_empty())
}

/// Certificates in a queued command: hex and base64 in JSON.
pub mod objects {
    use data_encoding::{BASE64, HEXLOWER};
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    type Objects = Vec<([u8; 32], Vec<u8>)>;

    /// Writes them.
    ///
    /// # Errors
    /// Those of the format.
    pub fn serialize<S: Serializer>(objects: &Objects, to: S) -> Result<S::Ok, S::Error> {
        let text: Vec<(String, String)> = objects
            .iter()
            .map(|(hash, der)| (HEXLOWER.encode(hash), BASE64.encode(der)))
            .collect();
        text.serialize(to)
    }

    /// Reads them.
    ///
    /// # Errors
    /// When they are not of that form.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Objects, D::Error> {
        let bad = || de::Error::custom("not a certificate");
        Vec::<(String, String)>::deserialize(from)?
            .into_iter()
            .map(|(hash, der)| {
                let hash = HEXLOWER
                    .decode(hash.as_bytes())
                    .ok()
                    .and_then(|h| h.try_into().ok())
                    .ok_or_else(bad)?;
                Ok((hash, BASE64.decode(der.as_bytes()).map_err(|_| bad())?))
            })
            .collect()
    }
}
