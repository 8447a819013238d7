//! Accepts connections: TLS with the certificate that the name leads to, or plain HTTP.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::Request;
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::server::Acceptor;
use rustls::{CipherSuite, HandshakeKind, NamedGroup, ProtocolVersion, ServerConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use crate::accesslog::{AccessLog, Entry, Tls, clip};
use crate::meters::{Failed, Meters};
use crate::proxy::{Activity, Connection, Proxy, Session, micros};
use crate::resolve::{Ahead, Opened, Resolver};
use crate::status::{Problem, Status};
use crate::tls::{Offer, UNRECOGNIZED_NAME};

/// How long a handshake may take, from accepting the connection on.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the first request of a connection may take to arrive.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a connection is kept on which nothing happens, and how long the head of a later request may take.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a refused client may take to read its alert.
const LINGER: Duration = Duration::from_secs(1);
/// How long to wait when the system has no more descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// Connections that the system keeps for us before they are accepted.
const BACKLOG: u32 = 4096;
/// The most header fields of a request, and the most bytes of its head.
const HEADERS: usize = 128;
const HEAD_BYTES: usize = 64 << 10;
/// The most requests that one HTTP/2 connection runs at once.
const STREAMS: u32 = 128;

/// Binds a listening socket. The address can be taken again at once after a restart.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() {
        TcpSocket::new_v6()?
    } else {
        TcpSocket::new_v4()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// What all connections share.
pub(crate) struct Server {
    pub(crate) resolver: Arc<Resolver>,
    pub(crate) proxy: Proxy,
    pub(crate) log: AccessLog,
    pub(crate) status: Arc<Status>,
    pub(crate) meters: Arc<Meters>,
    /// Bounds the connections that are open at once, HTTP and HTTPS together.
    pub(crate) connections: Arc<Semaphore>,
    http: auto::Builder<TokioExecutor>,
    http1: auto::Builder<TokioExecutor>,
    http2: auto::Builder<TokioExecutor>,
}

/// Whether a listener speaks TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tls,
    Plain,
}

impl Server {
    pub(crate) fn new(
        resolver: Arc<Resolver>,
        proxy: Proxy,
        log: AccessLog,
        status: Arc<Status>,
        meters: Arc<Meters>,
        connections: usize,
    ) -> Self {
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1()
            .timer(TokioTimer::new())
            // hyper counts the time between requests as part of this.
            .header_read_timeout(IDLE_TIMEOUT)
            .max_headers(HEADERS)
            .max_buf_size(HEAD_BYTES)
            .keep_alive(true);
        http.http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(HEAD_BYTES as u32)
            .keep_alive_interval(Some(Duration::from_secs(30)))
            .keep_alive_timeout(Duration::from_secs(20));
        Self {
            resolver,
            proxy,
            log,
            status,
            meters,
            connections: Arc::new(Semaphore::new(connections.clamp(1, Semaphore::MAX_PERMITS))),
            http1: http.clone().http1_only(),
            http2: http.clone().http2_only(),
            http,
        }
    }

    /// Accepts until `stop` changes; then lets the connections end what they are at, for as long as the caller keeps this
    /// future alive.
    pub(crate) async fn accept(
        self: Arc<Self>,
        listener: TcpListener,
        transport: Transport,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut connections = JoinSet::new();
        loop {
            // The permit comes first: what cannot be served now waits in the system's queue.
            let permit = tokio::select! {
                permit = self.connections.clone().acquire_owned() => permit,
                _ = stop.wait_for(|stop| *stop) => break,
                Some(_) = connections.join_next() => continue,
            };
            let Ok(permit) = permit else { break };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stop.wait_for(|stop| *stop) => break,
                Some(_) = connections.join_next() => continue,
            };
            match accepted {
                Ok((stream, client)) => {
                    let (server, stop) = (self.clone(), stop.clone());
                    connections.spawn(async move {
                        let (_permit, _open) = (permit, server.meters.opened());
                        // The connection may be gone already; it is then noticed soon enough.
                        let _ = stream.set_nodelay(true);
                        match transport {
                            Transport::Tls => server.tls(stream, client, stop).await,
                            Transport::Plain => server.plain(stream, client, stop).await,
                        }
                    });
                }
                // These concern one connection that never came about.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
                    ) => {}
                Err(error) => {
                    self.status.problem(
                        Problem::System,
                        format!("connections cannot be accepted: {error}"),
                    );
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    async fn plain(
        self: &Arc<Self>,
        stream: TcpStream,
        client: SocketAddr,
        stop: watch::Receiver<bool>,
    ) {
        let connection = Arc::new(Connection {
            client,
            session: None,
            tls: Arc::new(Tls::default()),
            activity: Activity::default(),
        });
        self.requests(&self.http, TokioIo::new(stream), connection, stop)
            .await;
    }

    async fn tls(
        self: &Arc<Self>,
        stream: TcpStream,
        client: SocketAddr,
        stop: watch::Receiver<bool>,
    ) {
        let started = Instant::now();
        let mut sni = None;
        let handshake =
            tokio::time::timeout(HANDSHAKE_TIMEOUT, self.handshake(stream, &mut sni)).await;
        let (failed, reason) = match handshake {
            Ok(Ok((stream, session, opened))) => {
                let (_, tls) = stream.get_ref();
                self.meters
                    .shaken(tls.protocol_version(), started.elapsed());
                let tls = Arc::new(describe(tls, &session, &opened));
                drop(opened);
                let http = if tls.alpn == Some("h2") {
                    &self.http2
                } else {
                    &self.http1
                };
                let connection = Arc::new(Connection {
                    client,
                    session: Some(session),
                    tls,
                    activity: Activity::default(),
                });
                return self
                    .requests(http, TokioIo::new(stream), connection, stop)
                    .await;
            }
            Ok(Err(Failure::Unrecognized)) => {
                (Failed::UnrecognizedName, "unrecognized_name".to_owned())
            }
            Ok(Err(Failure::Unavailable)) => (Failed::Store, "store".to_owned()),
            Ok(Err(Failure::Io(error))) => {
                let tls = error
                    .get_ref()
                    .and_then(|inner| inner.downcast_ref::<rustls::Error>());
                let words = match tls {
                    Some(error) => clip(&error.to_string()),
                    None => error.kind().to_string(),
                };
                (Failed::of(&error), words)
            }
            Err(_) => (Failed::Timeout, "timeout".to_owned()),
        };
        self.meters.failed(failed);
        self.log.write(Entry::Handshake {
            client: client.ip().to_canonical(),
            sni: sni.map(|sni: String| clip(&sni)),
            reason,
            duration_us: micros(started.elapsed()),
        });
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        seen: &mut Option<String>,
    ) -> Result<(TlsStream<TcpStream>, Session, Arc<Opened>), Failure> {
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let hello = start.client_hello();
        let offer = Offer::of(&hello);
        // rustls has checked that it is a DNS name, and gives it in lower case or not, as the client did.
        *seen = hello
            .server_name()
            .map(|name| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase());
        match self.choose(seen.as_deref(), offer).await {
            Ok((session, opened)) => {
                let stream = start.into_stream(opened.config.clone()).await?;
                Ok((stream, session, opened))
            }
            Err(failure) => {
                if matches!(failure, Failure::Unrecognized) {
                    refuse(start.io).await;
                }
                Err(failure)
            }
        }
    }

    async fn choose(
        &self,
        sni: Option<&str>,
        offer: Offer,
    ) -> Result<(Session, Arc<Opened>), Failure> {
        let sni = sni.ok_or(Failure::Unrecognized)?;
        let site = self
            .resolver
            .site(sni, Ahead::Handshake)
            .await
            .map_err(|_| Failure::Unavailable)?
            .ok_or(Failure::Unrecognized)?;
        let opened = self
            .resolver
            .certificate(&site, offer)
            .await
            .map_err(|_| Failure::Unavailable)?
            .ok_or(Failure::Unrecognized)?;
        let project = match site.resource {
            Some(resource) => self
                .resolver
                .target(resource)
                .await
                .map_err(|_| Failure::Unavailable)?
                .map(|target| target.project.clone()),
            None => None,
        };
        // A host whose resource is not in the feed answers every request with 421; its certificate is still right.
        let project = project.unwrap_or_else(|| site.project.clone());
        Ok((
            Session {
                sni: sni.into(),
                project,
                names: opened.names.clone(),
            },
            opened,
        ))
    }

    async fn requests<I>(
        self: &Arc<Self>,
        http: &auto::Builder<TokioExecutor>,
        io: I,
        connection: Arc<Connection>,
        mut stop: watch::Receiver<bool>,
    ) where
        I: Read + Write + Unpin + Send + 'static,
    {
        let service = hyper::service::service_fn(|request: Request<Incoming>| {
            let (server, connection) = (self.clone(), connection.clone());
            async move { Ok::<_, Infallible>(server.proxy.serve(connection, request).await) }
        });
        let mut serving = std::pin::pin!(http.serve_connection(io, service));
        let mut stopping = false;
        let mut idle = std::pin::pin!(tokio::time::sleep(FIRST_REQUEST_TIMEOUT));
        let mut answered = 0;
        loop {
            tokio::select! {
                // How a client's connection ends is its own business; the requests on it have lines of their own.
                _ = &mut serving => return,
                _ = stop.wait_for(|stop| *stop), if !stopping => {
                    stopping = true;
                    serving.as_mut().graceful_shutdown();
                }
                () = &mut idle => {
                    let requests = connection.activity.requests.load(Ordering::Relaxed);
                    let running = connection.activity.running.load(Ordering::Relaxed);
                    if running == 0 && requests == answered {
                        if requests == 0 || stopping {
                            return;
                        }
                        stopping = true;
                        serving.as_mut().graceful_shutdown();
                    }
                    answered = requests;
                    idle.as_mut().reset(tokio::time::Instant::now() + IDLE_TIMEOUT);
                }
            }
        }
    }
}

enum Failure {
    /// Nobody has this name here, or it has no certificate at the moment.
    Unrecognized,
    /// The store could not be read.
    Unavailable,
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Tells a client that its name is not known, and waits for it to close: a socket that is closed while bytes of the client
/// are unread resets the connection, and the alert may be lost.
async fn refuse(mut stream: TcpStream) {
    let told = async {
        stream.write_all(&UNRECOGNIZED_NAME).await?;
        stream.shutdown().await?;
        let mut rest = [0; 1024];
        let mut left = 64 << 10;
        while left > 0 {
            match stream.read(&mut rest).await? {
                0 => break,
                read => left -= read.min(left),
            }
        }
        Ok::<_, io::Error>(())
    };
    // Whether the client reads it is up to the client.
    let _ = tokio::time::timeout(LINGER, told).await;
}

fn describe(tls: &ServerConnection, session: &Session, opened: &Opened) -> Tls {
    Tls {
        sni: Some(session.sni.clone()),
        tls_version: tls.protocol_version().map(|version| match version {
            ProtocolVersion::TLSv1_3 => "TLSv1.3",
            ProtocolVersion::TLSv1_2 => "TLSv1.2",
            _ => "unknown",
        }),
        suite: tls
            .negotiated_cipher_suite()
            .map(|suite| suite_name(suite.suite())),
        group: tls
            .negotiated_key_exchange_group()
            .map(|group| group_name(group.name())),
        resumed: tls
            .handshake_kind()
            .map(|kind| kind == HandshakeKind::Resumed),
        alpn: match tls.alpn_protocol() {
            Some(b"h2") => Some("h2"),
            Some(b"http/1.1") => Some("http/1.1"),
            _ => None,
        },
        fingerprint: Some(opened.fingerprint),
        certificate: Some(format!("{}/{}", opened.certificate, opened.version)),
    }
}

/// The names of the IANA registry.
fn suite_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        other => other.as_str().unwrap_or("unknown"),
    }
}

fn group_name(group: NamedGroup) -> &'static str {
    match group {
        NamedGroup::X25519 => "X25519",
        NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        other => other.as_str().unwrap_or("unknown"),
    }
}

/// Runs until the future ends or `stop` changes.
pub(crate) async fn until<T>(
    mut stop: watch::Receiver<bool>,
    future: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        value = future => Some(value),
        _ = stop.wait_for(|stop| *stop) => None,
    }
}
