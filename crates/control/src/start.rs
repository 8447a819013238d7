//! Puts the control plane together in one process: its nats-server, its files, its actors.

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use actix::prelude::*;

use bus::connect::{Login, connect};
use bus::identity::{Credentials, Identity, Rights};
use bus::templates::Role;
use ledger::Ledger;
use lifecycle::command::{CreateAccess, CreateRegion};
use lifecycle::names::{Digest, Slug};
use lifecycle::state::State;
use wire::answer::Answer;

use crate::access::{self, Access};
use crate::checks::{self, Checks};
use crate::clock::Clock;
use crate::custodian::Custodian;
use crate::distribution::{Distribution, Edges, Shared, Wake};
use crate::front::Front;
use crate::ingestion::Ingestion;
use crate::rate::{Buckets, Rate};
use crate::registrar::{Ask, Genesis, Observed, Registrar};
use crate::revocation::{self, Revocation};
use crate::tables::Tables;
use crate::turns::Turns;
use crate::vault::{self, Core, Vault};
use crate::verifier::Verifier;
use crate::views::Views;

/// The name of the first operator, whose credentials the first start writes.
pub const OPERATOR: &str = "operator";
pub(crate) const NATS_IDENTITY: &str = "nats-identity";
const FEED_SIGNER: &str = "feed-signer";
/// Secrets without which a vault is not whole.
pub(crate) const SECRETS: &[&str] = &[NATS_IDENTITY, FEED_SIGNER];

/// How a control plane is started.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder of everything that is kept.
    pub state: PathBuf,
    /// The port of the own nats-server on 127.0.0.1; 0 takes a free one that stays the same.
    pub nats_port: u16,
    /// The nats-server's executable; None looks for it.
    pub nats_executable: Option<PathBuf>,
    /// Copies of each stream: 1, or 3 in a cluster.
    pub replicas: usize,
    /// The domain below which provider domains live. Fixed by the first start.
    pub platform_domain: String,
    /// The root key's file; `root.key` in the state folder unless told.
    pub root_key: Option<PathBuf>,
    /// Where the operator's credentials are; `operator.creds` in the state folder unless told.
    pub operator_creds: Option<PathBuf>,
    /// Roots that are trusted besides the public ones.
    pub roots: Vec<rustls_pki_types::CertificateDer<'static>>,
    /// The limit on users' commands of one project.
    pub rate: Rate,
    /// How claims are proven in the DNS.
    pub prover: crate::prover::Settings,
    /// For rehearsals: how long each verification takes at least.
    pub verify_delay: Duration,
    /// How revocation is looked up.
    pub revocation: revocation::Settings,
    /// The least generation of the regions' feeds. A restore raises the one that is kept in the state folder, so that edges
    /// take a whole snapshot instead of going on from a history that is no more; the greater of both counts.
    pub generation: u64,
    /// This node's name in the log.
    pub node: String,
    /// Regions to create if they are not there.
    pub regions: Vec<Slug>,
}

/// Why a control plane cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder.
    #[error("{0}: {1}")]
    File(PathBuf, #[source] std::io::Error),
    /// The root key.
    #[error("the root key {0}: {1}")]
    RootKey(PathBuf, #[source] keyring::KeyFileError),
    /// The vault's file.
    #[error("the vault: {0}")]
    Keyring(#[from] keyring::VaultError),
    /// The nats-server child.
    #[error("nats-server: {0}")]
    Server(#[from] bus::server::Error),
    /// A connection to it.
    #[error(transparent)]
    Connect(#[from] bus::connect::Error),
    /// Who is who.
    #[error(transparent)]
    Identity(#[from] bus::identity::Error),
    /// The streams.
    #[error("the streams: {0}")]
    Streams(#[from] bus::streams::Error),
    /// The ledger's file.
    #[error("the ledger: {0}")]
    Ledger(#[from] ledger::Error),
    /// The ledger's rows, which were written by another release.
    #[error("the ledger: {0}")]
    Upgrade(#[from] crate::upgrade::Error),
    /// The file of check results.
    #[error(transparent)]
    Checks(#[from] checks::Error),
    /// The log's stream cannot be asked.
    #[error("the log stream: {0}")]
    Log(#[from] bus::log::Error),
    /// The registrar.
    #[error("the registrar: {0}")]
    Registrar(#[from] crate::registrar::StartError),
    /// The vault's thread.
    #[error("the vault: {0}")]
    Vault(#[from] vault::Error),
    /// Accounts and users.
    #[error("access: {0}")]
    Access(#[from] access::Error),
    /// The door.
    #[error("the door: {0}")]
    Door(#[from] bus::door::Error),
    /// The checkpoints' key.
    #[error("audit: {0}")]
    Audit(#[from] crate::audit::Error),
    /// The registrar said no to what the start needs.
    #[error("{0}")]
    Refused(String),
    /// A part of the start ended early.
    #[error("the start was interrupted")]
    Interrupted,
}

/// A running control plane. Dropping it does not stop its child: call [`stop`](Self::stop).
pub struct Control {
    /// Where NATS is.
    pub nats: String,
    /// The operator's credentials file.
    pub operator_creds: PathBuf,
    /// The ledger, to see the head.
    pub ledger: Ledger,
    /// Edges as they report.
    pub edges: Arc<Edges>,
    /// What operators watch.
    pub monitor: Arc<crate::monitor::Monitor>,
    ingestion: Arc<Ingestion>,
    server: tokio::sync::watch::Sender<bool>,
    supervisor: tokio::task::JoinHandle<()>,
    _wake: ledger::Subscription,
}

impl Control {
    /// Starts everything, in the order in which each part needs the one before.
    ///
    /// # Errors
    /// [`Error`]; what was started is stopped again.
    pub async fn start(config: Config) -> Result<Self, Error> {
        make_folder(&config.state)?;
        // What a rebuild that was interrupted has left is as large as the ledger, and of no use.
        let _ = std::fs::remove_dir_all(config.state.join("scratch"));
        let root_path = config
            .root_key
            .clone()
            .unwrap_or_else(|| config.state.join("root.key"));
        let generation = crate::restore::generation(&config.state)
            .map_err(|e| Error::File(config.state.join(crate::restore::GENERATION), e))?
            .max(config.generation);
        let root = keyring::RootKey::create_or_load(&root_path)
            .map_err(|e| Error::RootKey(root_path.clone(), e))?;
        let keyring = keyring::Vault::open(&config.state.join("vault.redb"), root)?;
        let mut unpublished = Vec::new();
        let identity = match keyring.open_secret(NATS_IDENTITY)? {
            Some(secret) => Identity::from_bytes(secret.expose())?,
            None => {
                let identity = Identity::generate();
                unpublished.push(keyring.keep_secret(NATS_IDENTITY, &identity.to_bytes())?);
                identity
            }
        };
        let signer = match keyring.open_secret(FEED_SIGNER)? {
            Some(secret) => secret,
            None => {
                let signer = keyring::feed::FeedSigner::generate();
                unpublished
                    .push(keyring.keep_secret(FEED_SIGNER, signer.danger_to_secret().expose())?);
                keyring
                    .open_secret(FEED_SIGNER)?
                    .ok_or(Error::Interrupted)?
            }
        };
        let checkpoint_key =
            crate::audit::Key::open(&keyring, &config.state, generation, &mut unpublished)?;
        let signer_public = keyring::feed::FeedSigner::from_secret(signer.expose())
            .map_err(|_| Error::Interrupted)?
            .public();
        let identity = Arc::new(identity);

        let executable = match &config.nats_executable {
            Some(path) => path.clone(),
            None => bus::server::find()?,
        };
        let server_config = bus::server::Config {
            folder: config.state.join("nats"),
            port: config.nats_port,
            name: config.node.clone(),
            identity_conf: identity.server_conf(unix_now()),
        };
        let server = bus::server::Server::start(&executable, &server_config).await?;
        let nats = server.url();
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let supervisor = tokio::spawn(supervise(server, executable, server_config, stopped));
        match Self::start_actors(
            &config,
            generation,
            keyring,
            unpublished,
            identity,
            (signer, checkpoint_key),
            signer_public,
            &nats,
        )
        .await
        {
            Ok((operator_creds, ledger, edges, ingestion, monitor, wake)) => Ok(Self {
                nats,
                operator_creds,
                ledger,
                edges,
                monitor,
                ingestion,
                server: stop,
                supervisor,
                _wake: wake,
            }),
            Err(error) => {
                let _ = stop.send(true);
                let _ = supervisor.await;
                Err(error)
            }
        }
    }

    #[allow(clippy::type_complexity, clippy::too_many_arguments)]
    async fn start_actors(
        config: &Config,
        generation: u64,
        keyring: keyring::Vault,
        unpublished: Vec<keyring::SealedBlob>,
        identity: Arc<Identity>,
        (signer, checkpoint_key): (keyring::Secret, crate::audit::Key),
        signer_public: [u8; 32],
        nats: &str,
    ) -> Result<
        (
            PathBuf,
            Ledger,
            Arc<Edges>,
            Arc<Ingestion>,
            Arc<crate::monitor::Monitor>,
            ledger::Subscription,
        ),
        Error,
    > {
        let runtime = tokio::runtime::Handle::current();
        let login = |role| Login::minted(&identity, role);
        let system = connect(nats, &login(Role::System)).await?;
        let installer = connect(nats, &login(Role::Installer)).await?;
        bus::streams::ensure(&installer, &system, config.replicas).await?;
        drop(installer);

        let operator_creds = config
            .operator_creds
            .clone()
            .unwrap_or_else(|| config.state.join("operator.creds"));
        let objects = Arc::new(bus::objects::Objects::start(
            connect(nats, &login(Role::Objects)).await?,
        ));
        let keys = Arc::new(bus::keys::Keys::start(
            connect(nats, &login(Role::Keys)).await?,
        ));
        let observed: Arc<Mutex<Observed>> = Arc::default();
        let doubts = Arc::clone(&observed);
        let log = bus::log::Log::new(connect(nats, &login(Role::Registrar)).await?);
        let log = Arc::new(log.observed_by(move |doubt| {
            // A single lost answer is no news.
            if doubt.since > Duration::from_secs(3) {
                let mut observed = doubts.lock().unwrap_or_else(PoisonError::into_inner);
                observed.waiting = Some(format!(
                    "for {} s the log stream has not said whether a batch is in it ({}); commands wait",
                    doubt.since.as_secs(),
                    doubt.reason
                ));
            }
        }));

        let ledger_path = config.state.join("ledger.redb");
        let scratch = config.state.join("scratch");
        let ledger = blocking(move || crate::upgrade::open(&ledger_path, &scratch)).await??;
        // The log begins with the operator of the file. A log that has begun does not know an operator who is made now: that
        // happens after a restore, and when the file was lost.
        let begun = ledger.head().sequence > 0 || log.head().await? > 0;
        let operator = match operator_of(&operator_creds)? {
            Some(operator) => Some(operator),
            None if begun => None,
            None => {
                let made = new_operator(&identity, OPERATOR)?;
                write_operator(&made, &operator_creds)?;
                Some(made)
            }
        };
        let known = operator.is_some();
        let genesis = Genesis {
            signer: signer_public,
            platform_domain: config.platform_domain.clone(),
            operator: (
                Slug::name(OPERATOR).map_err(|_| Error::Interrupted)?,
                operator.map(|operator| operator.user).unwrap_or_default(),
            ),
            node: config.node.clone(),
        };
        let (of, log, rate, seen, to, objs) = (
            ledger.clone(),
            Arc::clone(&log),
            config.rate,
            Arc::clone(&observed),
            runtime.clone(),
            Arc::clone(&objects),
        );
        let registrar =
            blocking(move || Registrar::start(of, log, objs, to, &genesis, rate, seen)).await??;
        let registrar = Registrar::start_in_arbiter(&Arbiter::new().handle(), move |_| registrar);
        if !known {
            next_operator(&identity, &ledger, &registrar, &operator_creds).await?;
        }

        let (to, of_keys) = (runtime.clone(), Arc::clone(&keys));
        let core = blocking(move || {
            let mut core = Core::start(keyring, of_keys, to)?;
            core.publish(unpublished)?;
            Ok::<_, vault::Error>(core)
        })
        .await??;
        let ingestion_keys = core.keyring.ingestion_keys()?;
        let vault = Vault::spawn(core);

        let access = Arc::new(Access {
            identity: Arc::clone(&identity),
            claims: bus::claims::Claims::new(system, Arc::clone(&identity)),
            ledger: ledger.clone(),
            nats: nats.to_owned(),
            signer: signer_public,
        });
        access.push_all().await?;
        access.rotate_owed(&vault, &registrar).await?;

        let edges: Arc<Edges> = Arc::default();
        let distribution = Distribution::spawn(Shared {
            ledger: ledger.clone(),
            vault: vault.clone(),
            registrar: registrar.clone(),
            access: Arc::clone(&access),
            client: connect(nats, &login(Role::Distribution)).await?,
            signer,
            generation,
            edges: Arc::clone(&edges),
        });
        let checks_path = config.state.join("checks.redb");
        let checks = blocking(move || Checks::open(&checks_path)).await??;
        let revocation = Revocation::start(
            config.revocation.clone(),
            checks.clone(),
            ledger.clone(),
            registrar.clone(),
            config.roots.clone(),
            runtime.clone(),
        );
        let verifier = Verifier::spawn(
            ledger.clone(),
            registrar.clone(),
            config.roots.clone(),
            revocation,
            config.verify_delay,
            runtime.clone(),
        );
        let clock_stopped: Arc<Mutex<Option<String>>> = Arc::default();
        Clock::spawn(
            ledger.clone(),
            registrar.clone(),
            Arc::clone(&clock_stopped),
        );
        let prover = crate::prover::Prover::start(
            ledger.clone(),
            registrar.clone(),
            checks.clone(),
            &config.prover,
            Arc::clone(&clock_stopped),
        );
        // Events wake; who is woken looks at the state. A full mailbox means that a wake-up is waiting there already.
        let custodian = Custodian::spawn(ledger.clone(), vault.clone());
        let (wake_distribution, wake_verifier) = (distribution.clone(), verifier);
        let wake_prover = prover.clone();
        let wake = ledger.on_append(move |_| {
            wake_prover.wake();
            let _ = wake_distribution.try_send(Wake);
            let _ = wake_verifier.try_send(Wake);
            let _ = custodian.try_send(Wake);
        });

        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let queue = bus::queue::Queue::new(connect(nats, &login(Role::Queue)).await?);
        tokio::spawn(crate::queue::work(
            queue.clone(),
            registrar.clone(),
            vault.clone(),
        ));
        let ingestion = Arc::new(Ingestion {
            ledger: ledger.clone(),
            prover,
            queue,
            registrar,
            vault,
            objects,
            access,
            keys: Arc::new(RwLock::new(ingestion_keys)),
            roots: config.roots.clone(),
            examinations: Turns::new(2 * cores, cores),
            uploads: Mutex::new(Buckets::new(config.rate)),
            queued: Mutex::new(Buckets::new(config.rate)),
        });
        let door_seen: Arc<OnceLock<bus::door::Door>> = Arc::default();
        let edge_door_seen: Arc<OnceLock<bus::door::Door>> = Arc::default();
        let auditor = match Tables::of(&ledger).control() {
            Some(control) => Arc::new(crate::audit::Auditor::new(
                ledger.clone(),
                checkpoint_key,
                &control.platform_domain,
                &control.log,
            )?),
            // The registrar begins every log with it.
            None => return Err(Error::Interrupted),
        };
        let monitor = crate::monitor::Monitor::start(
            ledger.clone(),
            Arc::clone(&edges),
            Arc::clone(&observed),
            Arc::clone(&clock_stopped),
            [
                ("projects", Arc::clone(&door_seen)),
                ("edges", Arc::clone(&edge_door_seen)),
            ],
            Arc::clone(&auditor),
            ingestion.queue.clone(),
        );
        let views = Arc::new(Views {
            auditor,
            ledger: ledger.clone(),
            edges: Arc::clone(&edges),
            ingestion: Arc::clone(&ingestion),
            registrar: observed,
            clock: clock_stopped,
            door: Arc::clone(&door_seen),
            generation,
            scratch: config.state.join("scratch"),
            checks,
            rebuilding: tokio::sync::Mutex::new(()),
        });
        let control_regions = config.regions.clone();
        for region in control_regions {
            create_region(&ingestion, region).await?;
        }
        let front = Front::spawn(Front {
            ingestion: Arc::clone(&ingestion),
            views,
            queries: Arc::new(Turns::new(2 * cores, cores)),
            runtime,
        });
        let checks = Arc::new(identity.verifier());
        let edge_door = bus::door::Door::to_edges(
            bus::door::Config::new(nats, login(Role::Distribution)),
            Arc::clone(&checks),
            bus::door::Intake::Mailbox(distribution.recipient()),
        )
        .await?;
        let door = bus::door::Door::to_projects(
            bus::door::Config::new(nats, login(Role::Door)),
            checks,
            bus::door::Intake::Mailbox(front.recipient()),
        )
        .await?;
        let _ = door_seen.set(door);
        let _ = edge_door_seen.set(edge_door);
        Ok((operator_creds, ledger, edges, ingestion, monitor, wake))
    }

    /// A one-time token for an edge of this process.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn edge_token(&self, region: &Slug, edge: &Slug) -> Result<String, Error> {
        let enrol = wire::request::EdgeEnrol {
            region: region.clone(),
            edge: edge.clone(),
        };
        self.ingestion
            .access
            .token(&enrol, uuid::Uuid::now_v7())
            .map_err(|p| Error::Refused(p.detail))
    }

    /// The same for an edge that may have been enrolled before and lost its folder: what it was is evicted first.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn edge_token_anew(&self, region: &Slug, edge: &Slug) -> Result<String, Error> {
        let known = Tables::of(&self.ledger).edge(region.as_str(), edge.as_str());
        if known.is_some_and(|known| !known.evicted) {
            let evict = lifecycle::command::EvictEdge {
                region: region.clone(),
                edge: edge.clone(),
            };
            tracing::warn!(%region, %edge, "the edge lost its folder; it is evicted and let in anew");
            let ask = Ask {
                id: uuid::Uuid::now_v7(),
                ..Ask::internal("start", "edge.evict", evict.clone().into())
            };
            match self.ingestion.registrar.send(ask).await {
                Ok(Answer::Accepted(_)) => {}
                Ok(Answer::Problem(problem)) => return Err(Error::Refused(problem.detail)),
                Err(_) => return Err(Error::Interrupted),
            }
            let ingestion = &self.ingestion;
            let access = &ingestion.access;
            access
                .evicted(&ingestion.vault, &ingestion.registrar, &evict)
                .await?;
        }
        self.edge_token(region, edge)
    }

    /// Stops the nats-server and waits for it. What was answered is durable already.
    pub async fn stop(self) {
        let _ = self.server.send(true);
        let _ = self.supervisor.await;
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Error::Interrupted)
}

fn unix_now() -> u64 {
    u64::try_from(time::OffsetDateTime::now_utc().unix_timestamp()).unwrap_or(0)
}

fn make_folder(path: &Path) -> Result<(), Error> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| Error::File(path.to_owned(), e))
}

/// The operator's credentials, if the file is there.
fn operator_of(path: &Path) -> Result<Option<Credentials>, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(Credentials::parse(&text)?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::File(path.to_owned(), error)),
    }
}

/// New credentials of an operator of this name.
fn new_operator(identity: &Identity, name: &str) -> Result<Credentials, Error> {
    let now = unix_now();
    Ok(identity.project_user(
        lifecycle::names::PLATFORM,
        name,
        &Rights::AllAndExport,
        now,
        now + access::USER_LIFE,
    )?)
}

/// Writes credentials, readable by their owner only, whole or not at all: a crash in between must not leave half a file that
/// the next start takes for the operator.
fn write_operator(credentials: &Credentials, path: &Path) -> Result<(), Error> {
    let write = || -> std::io::Result<()> {
        use std::io::Write;
        let part = path.with_extension("creds.part");
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&part)?;
        file.write_all(credentials.creds().as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&part, path)
    };
    write().map_err(|e| Error::File(path.to_owned(), e))
}

/// Gives whoever holds the root key and this folder an operator's access, and has the log say so: their credentials are not
/// here. Names of users are never used again, so it is the next one that is free.
async fn next_operator(
    identity: &Identity,
    ledger: &Ledger,
    registrar: &Addr<Registrar>,
    path: &Path,
) -> Result<(), Error> {
    let platform = Slug::platform();
    let taken = |name: &str| Tables::of(ledger).access(platform.as_str(), name).is_some();
    let name = (2_u32..)
        .map(|n| format!("{OPERATOR}-{n}"))
        .find(|name| !taken(name))
        .ok_or(Error::Interrupted)?;
    let credentials = new_operator(identity, &name)?;
    let command = CreateAccess {
        project: platform.clone(),
        name: Slug::name(&name).map_err(|_| Error::Interrupted)?,
        nkey: credentials.user.clone(),
        rights: lifecycle::decide::rights::operator(),
        expires: None,
    };
    // Each start makes another key, so this is never a repeat of a former one.
    let ask = Ask {
        id: uuid::Uuid::now_v7(),
        ..Ask::internal("start", "access.create", command.into())
    };
    match registrar.send(ask).await {
        Ok(Answer::Accepted(_)) => {}
        Ok(Answer::Problem(problem)) => return Err(Error::Refused(problem.detail)),
        Err(_) => return Err(Error::Interrupted),
    }
    tracing::warn!(operator = %name, file = %path.display(), "the operator's credentials were not there; a further operator was made");
    write_operator(&credentials, path)
}

/// Creates a region with its key, as `region.create` does; one that is there stays.
async fn create_region(ingestion: &Ingestion, region: Slug) -> Result<(), Error> {
    if Tables::of(&ingestion.ledger)
        .region(region.as_str())
        .is_some()
    {
        return Ok(());
    }
    let name = region.clone();
    let (version, public) = vault::with(&ingestion.vault, move |core| {
        if core.keyring.region_key_public(name.as_str())?.is_none() {
            let blob = core.keyring.new_region_key(name.as_str())?;
            core.publish(vec![blob])?;
        }
        Ok::<_, vault::Error>(
            core.keyring
                .region_key_public(name.as_str())?
                .unwrap_or_default(),
        )
    })
    .await??;
    let about = format!("region.create {region}");
    let command = CreateRegion {
        region,
        key: Digest(public),
        key_version: version,
    };
    match ingestion
        .registrar
        .send(Ask::internal("start", &about, command.into()))
        .await
    {
        Ok(Answer::Accepted(_)) => Ok(()),
        Ok(Answer::Problem(problem)) => Err(Error::Refused(problem.detail)),
        Err(_) => Err(Error::Interrupted),
    }
}

async fn until_stopped(stop: &mut tokio::sync::watch::Receiver<bool>) {
    // A sender that is gone means the same.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Keeps the nats-server running: one that ends by itself is started again, until the control plane stops.
async fn supervise(
    mut server: bus::server::Server,
    executable: PathBuf,
    config: bus::server::Config,
    mut stop: tokio::sync::watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            () = until_stopped(&mut stop) => {
                if let Err(error) = server.stop().await {
                    tracing::warn!(%error, "nats-server did not stop well");
                }
                return;
            }
            ended = server.ended() => {
                tracing::error!(status = ?ended.ok(), log = %server.log().display(), "nats-server ended; starting it again");
                metrics::counter!("chancery_nats_restarts_total").increment(1);
            }
        }
        drop(server);
        let mut wait = Duration::from_millis(200);
        server = loop {
            match bus::server::Server::start(&executable, &config).await {
                Ok(server) => break server,
                Err(error) => {
                    tracing::error!(%error, "nats-server cannot be started; trying again");
                    tokio::select! {
                        () = until_stopped(&mut stop) => return,
                        () = tokio::time::sleep(wait) => wait = (wait * 2).min(Duration::from_secs(10)),
                    }
                }
            }
        };
    }
}
