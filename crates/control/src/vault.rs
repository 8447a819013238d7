//! The vault: the only part that unwraps keys, on a thread of its own.
//!
//! Private keys that come in are sealed in groups: one publish to the stream `KEYS` and one fsync of `vault.redb` for
//! however many waited, so that a thousand uploads a second do not cost a thousand syncs. The stream is the truth, the file
//! a copy: what is published is installed, and what was published but not installed is found at the next start.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use bytes::Bytes;
use tokio::sync::oneshot;

use keyring::{PrivateKey, SealedBlob, Vault as Keyring, VaultError};

use crate::tables::await_the_end;

/// How many requests may wait.
pub const MAILBOX: usize = 2_048;
/// How long a key that came in may wait for the event that uses it. A command that was not decided by then was lost, and
/// whoever sends it again seals again.
pub const ON_ITS_WAY: Duration = Duration::from_secs(900);
/// Keys on their way beyond which those that have arrived are forgotten.
const RECENT_MAX: usize = 10_000;
/// Most keys in one group.
const GROUP_MAX: usize = 256;

/// Why the vault could not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The keyring refused or failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The stream `KEYS` did not take it.
    #[error("the stream of sealed keys: {0}")]
    Keys(String),
    /// The vault is going down, or its mailbox is full.
    #[error("the vault is busy")]
    Busy,
}

/// What the vault's thread works on.
pub struct Core {
    /// Sealing and opening.
    pub keyring: Keyring,
    keys: Arc<bus::keys::Keys>,
    runtime: tokio::runtime::Handle,
    /// Keys that came in lately. Their certificate may still be on its way to the registrar, so they are not destroyed yet.
    recent: HashMap<(String, [u8; 32]), Instant>,
}

impl Core {
    /// The vault over an opened keyring; first takes over what the stream has and the file lacks.
    ///
    /// # Errors
    /// [`Error`].
    pub fn start(
        keyring: Keyring,
        keys: Arc<bus::keys::Keys>,
        runtime: tokio::runtime::Handle,
    ) -> Result<Self, Error> {
        let mut core = Self {
            keyring,
            keys,
            runtime,
            recent: HashMap::new(),
        };
        core.catch_up()?;
        if core.keyring.ingestion_keys()?.current().is_none() {
            let blob = core.keyring.new_ingestion_key()?;
            core.publish(vec![blob])?;
        }
        core.work_off_deletions()?;
        Ok(core)
    }

    fn wait<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        let (tx, rx) = mpsc::sync_channel(1);
        self.runtime.spawn(async move {
            let _ = tx.send(future.await);
        });
        rx.recv().unwrap_or_else(|_| await_the_end("the vault"))
    }

    fn catch_up(&mut self) -> Result<(), Error> {
        let from = self.keyring.head()? + 1;
        let keys = Arc::clone(&self.keys);
        let mut tail = self
            .wait(async move { keys.tail(from).await })
            .map_err(|e| Error::Keys(e.to_string()))?;
        loop {
            let (returned, page) = self.wait(async move {
                let page = tail.page().await;
                (tail, page)
            });
            tail = returned;
            // Deleted keys leave gaps in this stream; only LOG must have none.
            let page = page
                .map_err(|e| Error::Keys(e.to_string()))?
                .map_err(|e| Error::Keys(e.to_string()))?;
            if page.is_empty() {
                return Ok(());
            }
            let mut blobs = Vec::with_capacity(page.len());
            for entry in page {
                match SealedBlob::from_bytes(entry.bytes.to_vec()) {
                    Ok(blob) => blobs.push((entry.sequence, blob)),
                    Err(error) => {
                        tracing::warn!(sequence = entry.sequence, %error, "an entry of KEYS is not a sealed key; left alone")
                    }
                }
            }
            self.keyring
                .install_all(blobs.iter().map(|(sequence, blob)| (*sequence, blob)))?;
        }
    }

    /// Makes sealed keys durable in the stream and then here.
    ///
    /// # Errors
    /// [`Error`]; what the stream took is found at the next start.
    pub fn publish(&mut self, blobs: Vec<SealedBlob>) -> Result<(), Error> {
        if blobs.is_empty() {
            return Ok(());
        }
        let keys = Arc::clone(&self.keys);
        let bytes: Vec<Bytes> = blobs
            .iter()
            .map(|blob| Bytes::copy_from_slice(blob.as_bytes()))
            .collect();
        let sequences = self
            .wait(async move { keys.put(bytes).await })
            .map_err(|e| Error::Keys(e.to_string()))?;
        self.keyring
            .install_all(sequences.into_iter().zip(&blobs))?;
        Ok(())
    }

    /// Destroys a private key that nothing uses: here at once, in the stream with the next deletions. Says no to one that came
    /// in within [`ON_ITS_WAY`].
    ///
    /// # Errors
    /// [`Error`].
    pub fn destroy(&mut self, project: &str, spki: &[u8; 32]) -> Result<bool, Error> {
        self.recent.retain(|_, at| at.elapsed() < ON_ITS_WAY);
        if self.recent.contains_key(&(project.to_owned(), *spki)) {
            return Ok(false);
        }
        self.keyring.forget(project, spki)?;
        Ok(true)
    }

    /// Deletes from the stream what is owed to be deleted.
    ///
    /// # Errors
    /// [`Error`]; what is left is tried again later.
    pub fn work_off_deletions(&mut self) -> Result<(), Error> {
        loop {
            let owed = self.keyring.owed_deletions(100)?;
            if owed.is_empty() {
                return Ok(());
            }
            for sequence in &owed {
                let keys = Arc::clone(&self.keys);
                let sequence = *sequence;
                self.wait(async move { keys.delete(sequence).await })
                    .map_err(|e| Error::Keys(e.to_string()))?;
            }
            self.keyring.deletion_done(&owed)?;
        }
    }

    /// Keeps a key that is there from being destroyed for as long as one that just came in, and says whether it is there.
    ///
    /// # Errors
    /// [`Error`].
    pub fn hold(&mut self, project: &str, spki: &[u8; 32]) -> Result<bool, Error> {
        if !self.keyring.contains(project, spki)? {
            return Ok(false);
        }
        self.make_room();
        self.recent
            .insert((project.to_owned(), *spki), Instant::now());
        Ok(true)
    }

    /// Seals private keys of one project for another one too. What was not there is left out: whoever needs it finds out.
    ///
    /// # Errors
    /// [`Error`].
    pub fn reseal(&mut self, from: &str, to: &str, spkis: &[[u8; 32]]) -> Result<(), Error> {
        let mut seals = Vec::with_capacity(spkis.len());
        for spki in spkis {
            match self.keyring.open_private_key(from, spki) {
                Ok(key) => seals.push(Seal {
                    project: to.to_owned(),
                    key,
                }),
                Err(VaultError::NotFound) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.seal(&seals)
    }

    fn make_room(&mut self) {
        if self.recent.len() >= RECENT_MAX {
            self.recent.retain(|_, at| at.elapsed() < ON_ITS_WAY);
        }
    }

    fn seal(&mut self, seals: &[Seal]) -> Result<(), Error> {
        let mut new_projects = Vec::new();
        for seal in seals {
            if let Some(blob) = self.keyring.ensure_project_key(&seal.project)?
                && !new_projects
                    .iter()
                    .any(|(project, _)| *project == &seal.project)
            {
                new_projects.push((&seal.project, blob));
            }
        }
        self.publish(new_projects.into_iter().map(|(_, blob)| blob).collect())?;
        self.make_room();
        let mut blobs: Vec<SealedBlob> = Vec::new();
        let mut seen: Vec<(&str, [u8; 32])> = Vec::new();
        for seal in seals {
            let spki = seal.key.spki_sha256();
            self.recent
                .insert((seal.project.clone(), spki), Instant::now());
            if seen.contains(&(&seal.project, spki))
                || self.keyring.contains(&seal.project, &spki)?
            {
                continue;
            }
            seen.push((&seal.project, spki));
            blobs.push(self.keyring.seal_private_key(&seal.project, &seal.key)?);
        }
        self.publish(blobs)?;
        Ok(())
    }
}

type SealAnswer = oneshot::Sender<Result<(), Arc<Error>>>;

/// The vault's actor.
pub struct Vault {
    core: Core,
    pending: Vec<(Seal, SealAnswer)>,
    scheduled: bool,
}

impl Vault {
    /// Starts it on a thread of its own.
    pub fn spawn(core: Core) -> Addr<Vault> {
        Vault::start_in_arbiter(&Arbiter::new().handle(), |ctx| {
            ctx.set_mailbox_capacity(MAILBOX);
            Vault {
                core,
                pending: Vec::new(),
                scheduled: false,
            }
        })
    }

    fn flush(&mut self) {
        self.scheduled = false;
        while !self.pending.is_empty() {
            let rest = self.pending.split_off(self.pending.len().min(GROUP_MAX));
            let group = std::mem::replace(&mut self.pending, rest);
            let (seals, answers): (Vec<_>, Vec<_>) = group.into_iter().unzip();
            let begun = Instant::now();
            let result = self.core.seal(&seals).map_err(Arc::new);
            metrics::histogram!("chancery_vault_seal_seconds").record(begun.elapsed());
            if let Err(error) = &result {
                tracing::error!(%error, "keys could not be sealed");
            }
            for answer in answers {
                let _ = answer.send(result.clone());
            }
        }
    }
}

impl Actor for Vault {
    type Context = Context<Self>;
}

/// Keeps a private key: sealed, in the stream and in the file. A key that is kept already is kept once.
pub struct Seal {
    /// Whose it is.
    pub project: String,
    /// The key.
    pub key: PrivateKey,
}

impl Message for Seal {
    type Result = Result<(), Arc<Error>>;
}

impl Handler<Seal> for Vault {
    type Result = ResponseFuture<Result<(), Arc<Error>>>;

    fn handle(&mut self, seal: Seal, ctx: &mut Self::Context) -> Self::Result {
        let (tx, rx) = oneshot::channel();
        self.pending.push((seal, tx));
        if self.pending.len() >= GROUP_MAX {
            self.flush();
        } else if !self.scheduled {
            self.scheduled = true;
            ctx.notify(Flush);
        }
        Box::pin(async move { rx.await.unwrap_or_else(|_| Err(Arc::new(Error::Busy))) })
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Flush;

impl Handler<Flush> for Vault {
    type Result = ();

    fn handle(&mut self, _: Flush, _: &mut Self::Context) {
        self.flush();
    }
}

/// Anything else that needs the vault, done on its thread.
pub struct With<T: Send + 'static>(Box<dyn FnOnce(&mut Core) -> T + Send>);

impl<T: Send + 'static> Message for With<T> {
    type Result = Done<T>;
}

/// The result of a [`With`].
pub struct Done<T>(pub T);

impl<T: Send + 'static> actix::dev::MessageResponse<Vault, With<T>> for Done<T> {
    fn handle(self, _: &mut Context<Vault>, tx: Option<actix::dev::OneshotSender<Done<T>>>) {
        if let Some(tx) = tx {
            let _ = tx.send(self);
        }
    }
}

impl<T: Send + 'static> Handler<With<T>> for Vault {
    type Result = Done<T>;

    fn handle(&mut self, with: With<T>, _: &mut Self::Context) -> Self::Result {
        let begun = Instant::now();
        let done = Done(with.0(&mut self.core));
        metrics::histogram!("chancery_vault_work_seconds").record(begun.elapsed());
        done
    }
}

/// Does something on the vault's thread.
///
/// # Errors
/// [`Error::Busy`] when the vault is gone.
pub async fn with<T: Send + 'static>(
    vault: &Addr<Vault>,
    work: impl FnOnce(&mut Core) -> T + Send + 'static,
) -> Result<T, Error> {
    vault
        .send(With(Box::new(work)))
        .await
        .map(|done| done.0)
        .map_err(|_| Error::Busy)
}
