//! The reverse proxy: one request in, one request to the resource's origin, both bodies streamed.
//!
//! Upgrades (WebSocket) are absent: the request goes on without `Upgrade`, which an origin may answer as it sees fit.

use std::error::Error as StdError;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls_pki_types::CertificateDer;
use tokio::time::Sleep;

use lifecycle::names::Slug;
use lifecycle::selection::Mode;

use crate::accesslog::{AccessLog, Entry, Tls, clip};
use crate::forward;
use crate::meters::Meters;
use crate::origin::{self, Origins};
use crate::resolve::{Ahead, Resolver, Target};

/// How long an origin may take from the last byte of the request to the head of its answer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a body may stand still in either direction.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an idle connection to an origin is kept.
const POOL_IDLE: Duration = Duration::from_secs(30);
/// What the access log says when the client left before there was a status. No client ever sees it.
const CLIENT_LEFT: u16 = 499;
/// How many idle connections are kept to one origin.
const POOL_SIZE: usize = 64;

/// The TLS side of a connection, fixed when it was opened.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) sni: Arc<str>,
    /// The project of the resource that the SNI led to.
    pub(crate) project: Slug,
    /// The names of the certificate that the client saw.
    pub(crate) names: Arc<[Box<str>]>,
}

/// A client's connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: SocketAddr,
    /// None over plain HTTP.
    pub(crate) session: Option<Session>,
    /// What the access log says about it.
    pub(crate) tls: Arc<Tls>,
    pub(crate) activity: Activity,
}

/// What tells an idle connection from a busy one.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Requests whose answer has not ended.
    pub(crate) running: AtomicUsize,
    /// Requests that ever began.
    pub(crate) requests: AtomicU64,
}

/// The proxy of one edge.
pub(crate) struct Proxy {
    resolver: Arc<Resolver>,
    /// Reaches public addresses only.
    public: Client<Origins, RequestBody>,
    /// For resources that an operator allowed to have a private origin. A pool of its own: a connection that was opened for
    /// one of these must never serve another resource.
    private: Client<Origins, RequestBody>,
    log: AccessLog,
    meters: Arc<Meters>,
}

impl Proxy {
    pub(crate) fn new(
        resolver: Arc<Resolver>,
        extra_roots: &[CertificateDer<'static>],
        log: AccessLog,
        meters: Arc<Meters>,
    ) -> Result<Self, rustls::Error> {
        let tls = origin::client_config(extra_roots)?;
        let client = |private| {
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(POOL_IDLE)
                .pool_max_idle_per_host(POOL_SIZE)
                .build(origin::connector(private, tls.clone()))
        };
        Ok(Self {
            resolver,
            public: client(false),
            private: client(true),
            log,
            meters,
        })
    }

    /// Answers one request. Every answer leaves a line in the access log when its body has ended.
    pub(crate) async fn serve(
        &self,
        connection: Arc<Connection>,
        request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        let (parts, body) = request.into_parts();
        let progress = Arc::new(Progress::default());
        connection.activity.running.fetch_add(1, Ordering::Relaxed);
        connection.activity.requests.fetch_add(1, Ordering::Relaxed);
        let mut record = Record {
            log: self.log.clone(),
            meters: self.meters.clone(),
            method: parts.method.clone(),
            path: clip(parts.uri.path()),
            protocol: protocol(parts.version),
            host: None,
            project: None,
            status: None,
            progress: progress.clone(),
            bytes_out: 0,
            started: Instant::now(),
            upstream: None,
            error: None,
            connection,
        };
        let body = RequestBody {
            inner: body,
            progress,
        };
        match self.answer(&mut record, parts, body).await {
            Ok((mut response, body)) => {
                forward::to_client(response.headers_mut());
                record.status = Some(response.status());
                response.map(|()| ResponseBody {
                    inner: Inner::Origin {
                        body,
                        stalled: None,
                    },
                    record: Box::new(record),
                })
            }
            Err(Refusal { status, error }) => {
                record.status = Some(status);
                record.error = error;
                short_answer(status, record)
            }
        }
    }

    async fn answer(
        &self,
        record: &mut Record,
        parts: http::request::Parts,
        body: RequestBody,
    ) -> Result<(Response<()>, Incoming), Refusal> {
        let host = forward::request_host(&parts.uri, &parts.headers)?;
        record.host = Some(clip(&host.name));
        let target = self.route(&record.connection, &host.name).await?;
        record.project = Some(target.project.clone());
        if !target.served {
            return Err(Refusal {
                status: StatusCode::SERVICE_UNAVAILABLE,
                error: Some("suspended"),
            });
        }
        let from = forward::From {
            client: record.connection.client,
            secure: record.connection.session.is_some(),
        };
        let origin = forward::Origin {
            scheme: &target.scheme,
            authority: &target.authority,
            host: &target.host,
            base: &target.base,
            keep_host: target.keep_host,
        };
        let head = forward::to_origin(parts, &host, from, origin)?;
        let client = if target.private_origin {
            &self.private
        } else {
            &self.public
        };
        let progress = body.progress.clone();
        let sent = Instant::now();
        let response = in_time(client.request(head.map(|()| body)), &progress).await;
        record.upstream = Some(sent.elapsed());
        let response =
            response.map_err(|error| error.unwrap_or_else(|| Refusal::stalled(&progress)))?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Refusal {
                status: StatusCode::BAD_GATEWAY,
                error: Some("origin_upgraded"),
            });
        }
        let (head, body) = response.into_parts();
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        Ok((response, body))
    }

    /// Finds the resource for a host on this connection.
    ///
    /// # Errors
    /// 421 (RFC 9110 section 15.5.20) when the host is not served here, or not on this connection: when the certificate that
    /// the client saw does not cover it, or when it belongs to another project than the name that the client asked for.
    async fn route(&self, connection: &Connection, host: &str) -> Result<Arc<Target>, Refusal> {
        const MISDIRECTED: Refusal = Refusal {
            status: StatusCode::MISDIRECTED_REQUEST,
            error: None,
        };
        let unavailable = |_| Refusal {
            status: StatusCode::SERVICE_UNAVAILABLE,
            error: Some("store"),
        };
        let site = self
            .resolver
            .site(host, Ahead::Request)
            .await
            .map_err(unavailable)?
            .ok_or(MISDIRECTED)?;
        if let Some(session) = &connection.session {
            let covered = || session.names.iter().any(|name| covers(name, host));
            if site.mode == Mode::Off || (*session.sni != *host && !covered()) {
                return Err(MISDIRECTED);
            }
        }
        let resource = site.resource.ok_or(MISDIRECTED)?;
        let target = self
            .resolver
            .target(resource)
            .await
            .map_err(unavailable)?
            .ok_or(MISDIRECTED)?;
        if connection
            .session
            .as_ref()
            .is_some_and(|session| session.project != target.project)
        {
            return Err(MISDIRECTED);
        }
        Ok(target)
    }
}

/// Whether a name of a certificate covers a host, a wildcard one level (RFC 9525 section 6.3).
fn covers(name: &str, host: &str) -> bool {
    name.eq_ignore_ascii_case(host)
        || name
            .strip_prefix("*.")
            .zip(host.split_once('.'))
            .is_some_and(|(base, (label, parent))| {
                !label.is_empty() && base.eq_ignore_ascii_case(parent)
            })
}

/// Waits for the head of an answer as long as the request's body moves, and then for [`HEAD_TIMEOUT`].
///
/// # Errors
/// The refusal to answer with; None when nothing happened in time.
async fn in_time(
    response: impl Future<Output = Result<Response<Incoming>, hyper_util::client::legacy::Error>>,
    progress: &Progress,
) -> Result<Response<Incoming>, Option<Refusal>> {
    let mut response = std::pin::pin!(response);
    let mut seen = 0;
    loop {
        match tokio::time::timeout(HEAD_TIMEOUT, response.as_mut()).await {
            Ok(result) => return result.map_err(|error| Some(Refusal::failed(&error))),
            Err(_) => {
                let bytes = progress.bytes.load(Ordering::Relaxed);
                if bytes == seen {
                    return Err(None);
                }
                seen = bytes;
            }
        }
    }
}

/// An answer that the edge gives itself.
#[derive(Clone, Copy, Debug)]
struct Refusal {
    status: StatusCode,
    error: Option<&'static str>,
}

impl Refusal {
    fn failed(error: &hyper_util::client::legacy::Error) -> Self {
        let bad_gateway = |error| Self {
            status: StatusCode::BAD_GATEWAY,
            error: Some(error),
        };
        let mut source: Option<&(dyn StdError + 'static)> = Some(error);
        while let Some(error) = source {
            match error.downcast_ref::<origin::Error>() {
                Some(origin::Error::TimedOut) => {
                    return Self {
                        status: StatusCode::GATEWAY_TIMEOUT,
                        error: Some("origin_connect_timeout"),
                    };
                }
                Some(origin::Error::Refused) => return bad_gateway("origin_not_public"),
                Some(origin::Error::NoAddress) => return bad_gateway("origin_unknown"),
                Some(origin::Error::Io(_)) => return bad_gateway("origin_unreachable"),
                None => {}
            }
            if error.downcast_ref::<rustls::Error>().is_some() {
                return bad_gateway("origin_tls");
            }
            // An I/O error that wraps another error names that one's source as its own and so passes over it.
            source = match error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::get_ref)
            {
                Some(inner) => Some(inner),
                None => error.source(),
            };
        }
        bad_gateway(if error.is_connect() {
            "origin_unreachable"
        } else {
            "origin_failed"
        })
    }

    fn stalled(progress: &Progress) -> Self {
        if progress.waiting.load(Ordering::Relaxed) {
            Self {
                status: StatusCode::REQUEST_TIMEOUT,
                error: Some("client_stalled"),
            }
        } else {
            Self {
                status: StatusCode::GATEWAY_TIMEOUT,
                error: Some("origin_timeout"),
            }
        }
    }
}

impl From<StatusCode> for Refusal {
    fn from(status: StatusCode) -> Self {
        Self {
            status,
            error: None,
        }
    }
}

fn short_answer(status: StatusCode, record: Record) -> Response<ResponseBody> {
    let text: &'static str = match status {
        StatusCode::BAD_GATEWAY => "The origin could not be reached.\n",
        StatusCode::GATEWAY_TIMEOUT => "The origin did not answer in time.\n",
        StatusCode::SERVICE_UNAVAILABLE => {
            "This service is suspended or not available at the moment.\n"
        }
        StatusCode::LOOP_DETECTED => "The origin leads back to this proxy.\n",
        _ => "",
    };
    let head = record.method == Method::HEAD;
    let inner = if text.is_empty() {
        Inner::Empty
    } else {
        Inner::Text(Some(Bytes::from_static(text.as_bytes())).filter(|_| !head))
    };
    let mut response = Response::new(ResponseBody {
        inner,
        record: Box::new(record),
    });
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if !text.is_empty() {
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(
            header::ALLOW,
            HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        );
    }
    response
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

/// How far a request's body is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    bytes: AtomicU64,
    /// Whether the next part is still with the client.
    waiting: AtomicBool,
}

/// A request's body on its way to the origin.
#[derive(Debug)]
pub(crate) struct RequestBody {
    inner: Incoming,
    progress: Arc<Progress>,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        self.progress
            .waiting
            .store(polled.is_pending(), Ordering::Relaxed);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.progress
                .bytes
                .fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// An answer's body on its way to the client. Its line is written when it is dropped, whole or not.
pub(crate) struct ResponseBody {
    inner: Inner,
    record: Box<Record>,
}

enum Inner {
    Empty,
    Text(Option<Bytes>),
    Origin {
        body: Incoming,
        /// Made when the body first stands still.
        stalled: Option<Pin<Box<Sleep>>>,
    },
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        let record = &mut this.record;
        let polled = match &mut this.inner {
            Inner::Empty => return Poll::Ready(None),
            Inner::Text(text) => {
                record.bytes_out += text.as_ref().map_or(0, Bytes::len) as u64;
                return Poll::Ready(text.take().map(|text| Ok(Frame::data(text))));
            }
            Inner::Origin { body, stalled } => match Pin::new(body).poll_frame(context) {
                Poll::Ready(frame) => {
                    *stalled = None;
                    frame
                }
                Poll::Pending => {
                    let stalled =
                        stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(BODY_TIMEOUT)));
                    if stalled.as_mut().poll(context).is_pending() {
                        return Poll::Pending;
                    }
                    record.error = Some("origin_stalled");
                    return Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())));
                }
            },
        };
        match &polled {
            Some(Ok(frame)) => record.bytes_out += frame.data_ref().map_or(0, Bytes::len) as u64,
            Some(Err(_)) => record.error = Some("origin_aborted"),
            None => {}
        }
        Poll::Ready(polled.map(|frame| frame.map_err(io::Error::other)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Empty => true,
            Inner::Text(text) => text.is_none(),
            Inner::Origin { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Empty => SizeHint::with_exact(0),
            Inner::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            Inner::Origin { body, .. } => body.size_hint(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        let whole = self.is_end_stream()
            || self.size_hint().exact() == Some(0)
            || self.record.method == Method::HEAD;
        if !whole && self.record.error.is_none() {
            self.record.error = Some("client_aborted");
        }
    }
}

/// A line of the access log that is being gathered.
struct Record {
    log: AccessLog,
    meters: Arc<Meters>,
    connection: Arc<Connection>,
    method: Method,
    path: String,
    protocol: &'static str,
    host: Option<String>,
    project: Option<Slug>,
    status: Option<StatusCode>,
    progress: Arc<Progress>,
    bytes_out: u64,
    started: Instant,
    upstream: Option<Duration>,
    error: Option<&'static str>,
}

// Also when the client leaves before there is an answer: then nothing but the drop is left to notice it.
impl Drop for Record {
    fn drop(&mut self) {
        self.connection
            .activity
            .running
            .fetch_sub(1, Ordering::Relaxed);
        let bytes = (self.progress.bytes.load(Ordering::Relaxed), self.bytes_out);
        self.meters
            .answered(self.status, bytes, self.started.elapsed());
        self.log.write(Entry::Request {
            client: self.connection.client.ip().to_canonical(),
            tls: self.connection.tls.clone(),
            scheme: if self.connection.session.is_some() {
                "https"
            } else {
                "http"
            },
            host: self.host.take(),
            project: self.project.take(),
            method: clip(self.method.as_str()),
            path: std::mem::take(&mut self.path),
            protocol: self.protocol,
            status: self.status.map_or(CLIENT_LEFT, |status| status.as_u16()),
            bytes_in: self.progress.bytes.load(Ordering::Relaxed),
            bytes_out: self.bytes_out,
            duration_us: micros(self.started.elapsed()),
            upstream_us: self.upstream.map(micros),
            error: self
                .error
                .or_else(|| self.status.is_none().then_some("client_aborted")),
        });
    }
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_covers_one_level() {
        assert!(covers("www.example.com", "www.example.com"));
        assert!(covers("*.Example.com", "www.example.com"));
        assert!(!covers("*.example.com", "a.b.example.com"));
        assert!(!covers("*.example.com", "example.com"));
        assert!(!covers("www.example.com", "example.com"));
    }
}
