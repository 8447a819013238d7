//! The TLS edge: it holds the certificates and keys of its region, serves TLS with them, and sends requests on to origins.
//!
//! It is fed by signed messages and calls nobody during a handshake: everything upstream can be away, for ever and through
//! a restart, and it serves what it holds. A request takes this way:
//!
//! 1. the listener reads the ClientHello and asks the resolver for the name in it;
//! 2. the resolver joins claim, candidates and resource from the store, once, and picks the first candidate that is valid
//!    in this second and that the client can check; its key is opened once and cached;
//! 3. the proxy finds the resource of each request's host, checks that it may come over this connection, and streams it to
//!    the origin;
//! 4. the access log gets a line when the answer has ended.
//!
//! The receiver, an actor on a thread of its own, is the only writer of the store.
//!
//! What is absent: upgrades (WebSocket), HTTP/3, early data, TLS and redirect policies.

pub mod accesslog;
mod clock;
mod custody;
mod enrol;
mod forward;
mod intake;
mod listener;
mod meters;
mod monitor;
mod origin;
mod proxy;
mod receiver;
mod resolve;
mod status;
mod store;
mod tls;
mod upgrade;

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use keyring::LocalKey;
use lifecycle::names::Slug;

use crate::accesslog::AccessLog;
use crate::custody::Custody;
use crate::intake::Intake;
use crate::listener::{Server, Transport};
use crate::meters::Meters;
use crate::proxy::Proxy;
use crate::receiver::{Handle, Link};
use crate::resolve::Resolver;
use crate::status::Status;
use crate::store::Store;

pub use crate::clock::{Clock, Now};
pub use crate::enrol::Error as EnrolError;
pub use crate::intake::Next;
pub use crate::meters::describe;
pub use crate::monitor::{Health, Monitor};
pub use crate::receiver::Silent;
pub use crate::resolve::{CacheBounds, CacheUse};
pub use crate::store::{Error as StoreError, Position};

/// The local key's file in the state folder.
const LOCAL_KEY: &str = "local.key";
/// Held while an edge runs on the folder.
const LOCK: &str = "lock";

/// How an edge is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// The edge's own folder: keys, store, access log. Made if it is not there.
    pub state_dir: PathBuf,
    /// The region that it serves.
    pub region: Slug,
    /// Where HTTPS is accepted; port 0 takes a free one.
    pub https: Option<SocketAddr>,
    /// Where plain HTTP is accepted; port 0 takes a free one.
    pub http: Option<SocketAddr>,
    /// The NATS server, when it is not the one that the token named.
    pub nats: Option<String>,
    /// How much the caches may hold.
    pub caches: CacheBounds,
    /// The most connections that are open at once; more wait in the system's queue.
    pub connections: usize,
    /// The enrolment token, for an edge that is not enrolled yet.
    pub token: Option<String>,
    /// Roots that HTTPS origins may be checked against besides the public ones.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// The edge's time.
    pub clock: Clock,
}

impl Config {
    /// The configuration of an edge with a state folder, for a region, that listens nowhere yet. Everything else is as
    /// recommended.
    pub fn new(state_dir: impl Into<PathBuf>, region: Slug) -> Self {
        Self {
            state_dir: state_dir.into(),
            region,
            https: None,
            http: None,
            nats: None,
            caches: CacheBounds::default(),
            connections: 16_384,
            token: None,
            extra_roots: Vec::new(),
            clock: Clock::system(),
        }
    }
}

/// Why an edge does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process uses the state folder.
    #[error("another edge runs on {}", .0.display())]
    Locked(PathBuf),
    /// The state folder cannot be used.
    #[error("the state folder cannot be used")]
    State(#[source] io::Error),
    /// The local key cannot be read or made.
    #[error("the edge's local key cannot be used")]
    LocalKey(#[from] keyring::KeyFileError),
    /// The edge has no identity.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The TLS library refused what it was given, a root for instance.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    /// An address cannot be listened on.
    #[error("{address} cannot be listened on")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A running edge. It stops when this is dropped, without waiting for what it is at; [`shutdown`](Self::shutdown) waits.
pub struct Edge {
    name: Slug,
    https: Option<SocketAddr>,
    http: Option<SocketAddr>,
    status: Arc<Status>,
    store: Arc<Store>,
    resolver: Arc<Resolver>,
    meters: Arc<Meters>,
    limit: usize,
    receiver: Arc<Handle>,
    stop: watch::Sender<bool>,
    listeners: Vec<JoinHandle<()>>,
    link: Option<JoinHandle<()>>,
    _lock: File,
}

/// Starts an edge: enrols it if it has to, serves what its store holds, and then follows its feed for ever. Needs a
/// multi-threaded tokio runtime.
///
/// An edge that is enrolled needs nobody: it serves before NATS is reachable.
///
/// # Errors
/// See [`Error`]. An edge that is not enrolled waits up to half a minute for its enrolment.
pub async fn start(config: Config) -> Result<Edge, Error> {
    let lock = lock(&config.state_dir)?;
    let local = LocalKey::create_or_load(&config.state_dir.join(LOCAL_KEY))?;
    let identity = enrol::enrol(
        &config.state_dir,
        &local,
        &config.region,
        config.token.as_deref(),
        config.nats.as_deref(),
    )
    .await?;
    let keys = keyring::EdgeKeys::from_secret(&identity.keys().danger_to_secret())
        .map_err(|_| EnrolError::Sealed)?;
    let custody = Arc::new(Custody::new(
        identity.region().clone(),
        identity.edge().clone(),
        local,
        keys,
    ));
    custody.learn(identity.region_key());
    let store = Arc::new(Store::open(&config.state_dir, custody, identity.signer())?);
    let position = store.position();
    config.clock.raise_floor(position.time);
    let status = Arc::new(Status::new(position));
    let meters = Arc::new(Meters::new(identity.region(), identity.edge()));
    let resolver = Arc::new(Resolver::new(
        store.clone(),
        status.clone(),
        meters.clone(),
        config.clock.clone(),
        config.caches,
    )?);

    // The log's thread ends with the last connection that can write to it.
    let log = AccessLog::start(&config.state_dir, identity.region(), identity.edge())
        .map_err(Error::State)?;
    let proxy = Proxy::new(
        resolver.clone(),
        &config.extra_roots,
        log.clone(),
        meters.clone(),
    )?;
    let server = Arc::new(Server::new(
        resolver.clone(),
        proxy,
        log,
        status.clone(),
        meters.clone(),
        config.connections,
    ));
    let (stop, stopped) = watch::channel(false);
    let mut listeners = Vec::new();
    let mut listen =
        |address: Option<SocketAddr>, transport| -> Result<Option<SocketAddr>, Error> {
            let Some(address) = address else {
                return Ok(None);
            };
            let failed = |source| Error::Bind { address, source };
            let listener = listener::bind(address).map_err(failed)?;
            let bound = listener.local_addr().map_err(failed)?;
            listeners.push(tokio::spawn(server.clone().accept(
                listener,
                transport,
                stopped.clone(),
            )));
            Ok(Some(bound))
        };
    let https = listen(config.https, Transport::Tls)?;
    let http = listen(config.http, Transport::Plain)?;

    let receiver = Arc::new(Handle::new({
        let (store, resolver, status, clock) = (
            store.clone(),
            resolver.clone(),
            status.clone(),
            config.clock.clone(),
        );
        move || {
            Intake::new(
                store.clone(),
                resolver.clone(),
                status.clone(),
                clock.clone(),
            )
        }
    }));
    let name = identity.edge().clone();
    let link = Link {
        url: config.nats.unwrap_or_else(|| identity.nats().to_owned()),
        identity: Arc::new(identity),
        receiver: receiver.clone(),
        status: status.clone(),
        clock: config.clock,
        https: https.map(|address| address.to_string()),
        http: http.map(|address| address.to_string()),
    };
    let link = tokio::spawn(link.run(stopped));
    Ok(Edge {
        name,
        https,
        http,
        status,
        store,
        resolver,
        meters,
        limit: config.connections,
        receiver,
        stop,
        listeners,
        link: Some(link),
        _lock: lock,
    })
}

/// Whether a state folder holds an edge's identity, so that it needs no token.
pub fn is_enrolled(state_dir: &Path) -> bool {
    state_dir.join(enrol::FILE).exists()
}

impl Edge {
    /// The edge's name.
    pub fn name(&self) -> &Slug {
        &self.name
    }

    /// Where it accepts HTTPS.
    pub fn https(&self) -> Option<SocketAddr> {
        self.https
    }

    /// Where it accepts plain HTTP.
    pub fn http(&self) -> Option<SocketAddr> {
        self.http
    }

    /// The log sequence up to which it serves.
    pub fn applied(&self) -> u64 {
        self.status.position().sequence
    }

    /// The position up to which it serves.
    pub fn position(&self) -> Position {
        self.status.position()
    }

    /// Waits until this sequence is served, at most until `deadline`. Says whether it is.
    pub async fn wait_applied(&self, sequence: u64, deadline: Instant) -> bool {
        let mut position = self.status.watch();
        let served = position.wait_for(|position| position.sequence >= sequence);
        matches!(tokio::time::timeout_at(deadline, served).await, Ok(Ok(_)))
    }

    /// What is wrong with it, in words; empty when all is well.
    pub fn problems(&self) -> Vec<String> {
        self.status.problems()
    }

    /// How full its caches are.
    pub fn caches(&self) -> CacheUse {
        self.resolver.usage()
    }

    /// Hands in signed messages as though they had come from NATS, and says what the edge would ask for next. For edges
    /// that are fed by hand: from a file, where no network reaches, or in a test.
    ///
    /// # Errors
    /// When the receiver is being stopped.
    pub async fn receive(&self, messages: Vec<Bytes>) -> Result<Next, Silent> {
        self.receiver.receive(messages).await
    }

    /// Where the receiver, the only writer, is. Answered by the receiver itself, so an answer says that it lives.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn observe(&self) -> Result<Position, Silent> {
        self.receiver.observe().await
    }

    /// The store, to be looked at.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Stops: accepts nothing more, lets requests end until `deadline`, and then closes what is left.
    pub async fn shutdown(mut self, deadline: Instant) {
        self.stop.send_replace(true);
        for listener in &mut self.listeners {
            if tokio::time::timeout_at(deadline, &mut *listener)
                .await
                .is_err()
            {
                listener.abort();
            }
        }
        if let Some(mut link) = self.link.take()
            && tokio::time::timeout_at(
                deadline.max(Instant::now() + Duration::from_secs(1)),
                &mut link,
            )
            .await
            .is_err()
        {
            link.abort();
        }
        let receiver = self.receiver.clone();
        // A panic in the receiver has been reported where it happened.
        let _ = tokio::task::spawn_blocking(move || receiver.stop()).await;
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for listener in &self.listeners {
            listener.abort();
        }
        if let Some(link) = self.link.take() {
            link.abort();
        }
    }
}

/// Makes the state folder for its owner only, and locks it while the file that is returned is open.
fn lock(folder: &Path) -> Result<File, Error> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(Error::State)?;
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(folder.join(LOCK))
        .map_err(Error::State)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::Locked(folder.to_owned())),
        Err(fs::TryLockError::Error(error)) => Err(Error::State(error)),
    }
}
