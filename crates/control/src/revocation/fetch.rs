//! Fetching from addresses that a stranger chose.
//!
//! The addresses stand in certificates that tenants upload, so this is where a tenant could make the control plane reach
//! what only it can reach. Only plain HTTP to ports 80 and 443 of public addresses is spoken, checked at each connect and at
//! each redirect, unless the operator allows more; nothing of what came back is shown but what it means. Time, bytes and
//! connections are bounded, for each host and in all.

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_TYPE, HOST, LOCATION, USER_AGENT};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use quick_cache::sync::Cache;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::{Host, Url};

/// How long resolving a name and connecting may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long one fetch may take in all, redirects included.
const WHOLE: Duration = Duration::from_secs(15);
/// Addresses of a host that are tried.
const ADDRESSES: usize = 4;
/// Redirects that are followed.
const REDIRECTS: usize = 3;
/// Fetches at once, to one host and in all.
const AT_ONCE: (usize, usize) = (4, 64);
/// Hosts of which something is remembered.
const HOSTS: usize = 4_096;
/// How long a host that could not be reached is left alone. An import of 10,000 certificates of one CA asks it once.
const LEFT_ALONE: Duration = Duration::from_secs(60);
/// A host that cannot be reached is told in the log once in this time.
const TOLD: Duration = Duration::from_secs(3_600);
/// Names that are resolved at once. The system's resolver takes a thread for as long as it likes, also when nobody waits any
/// more, so whoever names hosts whose DNS never answers must not take the threads of everything else.
const RESOLVING: usize = 32;
/// Bytes of the head of an answer at most.
const HEAD_MAX: usize = 32 * 1024;

/// An operator's proxy: plain HTTP, asked with the whole address (RFC 9112, 3.2.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    host: String,
    port: u16,
}

/// Why words of the configuration cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Wrong(&'static str);

impl FromStr for Proxy {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        const FORM: Wrong = Wrong("a proxy is written http://host:port, without a user or a path");
        let url = Url::parse(text).map_err(|_| FORM)?;
        let bare = url.scheme() == "http"
            && url.username().is_empty()
            && url.password().is_none()
            && url.path() == "/"
            && url.query().is_none();
        match (url.host(), bare) {
            (Some(host), true) => Ok(Self {
                host: match host {
                    Host::Ipv6(address) => address.to_string(),
                    host => host.to_string(),
                },
                port: url.port().unwrap_or(80),
            }),
            _ => Err(FORM),
        }
    }
}

/// What may be reached although it is not public: addresses, or a host by its name. Any port of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// These addresses.
    Addresses(IpNet),
    /// Whatever this name resolves to.
    Host(String),
}

impl FromStr for Allowed {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Addresses(address.into()));
        }
        if let Ok(net) = text.parse() {
            return Ok(Self::Addresses(net));
        }
        match Host::parse(text) {
            Ok(Host::Domain(name)) if !text.contains('/') => Ok(Self::Host(name)),
            _ => Err(Wrong(
                "allowed is an address, a network such as 10.0.0.0/8, or a host name",
            )),
        }
    }
}

/// Why there is no answer, as a half sentence that follows the address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    /// It must not be asked.
    #[error("{0}")]
    Refused(&'static str),
    /// Nobody answered.
    #[error("{0}")]
    Unreachable(&'static str),
    /// It was not asked, for want of a place to resolve its name. That says nothing about it.
    #[error("was not asked: too many other names are being resolved")]
    NoTurn,
    /// What came was no answer.
    #[error("answered with status {0}")]
    Status(u16),
    /// It was too long.
    #[error("answered with more than {0} bytes")]
    TooLong(usize),
}

const NOT_PUBLIC: Error = Error::Refused(
    "is not at a public address; the operator can allow it in control.revocation.allow",
);

/// What is fetched.
pub(super) struct Ask<'a> {
    pub(super) url: &'a Url,
    /// The media type that is wanted.
    pub(super) accept: &'static str,
    /// Its media type and bytes; then it is a POST.
    pub(super) body: Option<(&'static str, Bytes)>,
    /// Bytes of the answer at most.
    pub(super) limit: usize,
}

/// Fetches.
pub(super) struct Fetcher {
    proxy: Option<Proxy>,
    allow: Vec<Allowed>,
    left_alone: Duration,
    all: Semaphore,
    resolving: Arc<Semaphore>,
    hosts: Cache<String, Arc<Remembered>>,
}

struct Remembered {
    places: Semaphore,
    failed: Mutex<Option<(Instant, Error)>>,
    told: Mutex<Option<Instant>>,
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetcher").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fetcher {
    /// `every` is the time between two looks at the same certificate: a host is not left alone for longer than that.
    pub(super) fn new(proxy: Option<Proxy>, allow: Vec<Allowed>, every: Duration) -> Self {
        Self {
            proxy,
            allow,
            left_alone: LEFT_ALONE.min(every / 2),
            all: Semaphore::new(AT_ONCE.1),
            resolving: Arc::new(Semaphore::new(RESOLVING)),
            hosts: Cache::new(HOSTS),
        }
    }

    /// Fetches. A host that could not be reached a moment ago is not asked again.
    ///
    /// # Errors
    /// [`Error`].
    pub(super) async fn get(&self, ask: Ask<'_>) -> Result<Bytes, Error> {
        // What is refused is so before anything is counted or remembered.
        self.check(ask.url)?;
        let host = format!(
            "{}:{}",
            ask.url.host_str().unwrap_or_default(),
            ask.url.port_or_known_default().unwrap_or(80)
        );
        let known = self.hosts.get_or_insert_with(&host, || {
            Ok::<_, std::convert::Infallible>(Arc::new(Remembered {
                places: Semaphore::new(AT_ONCE.0),
                failed: Mutex::default(),
                told: Mutex::default(),
            }))
        });
        let known = known.unwrap_or_else(|never| match never {});
        let recently = || {
            lock(&known.failed)
                .as_ref()
                .filter(|(at, _)| at.elapsed() < self.left_alone)
                .map(|(_, error)| error.clone())
        };
        if let Some(error) = recently() {
            return Err(error);
        }
        let closed = |_| Error::Unreachable("is not asked any more");
        let _own = known.places.acquire().await.map_err(closed)?;
        let _common = self.all.acquire().await.map_err(closed)?;
        // Whoever waited with many others for a host that is down has the answer now.
        if let Some(error) = recently() {
            return Err(error);
        }
        let fetched = match tokio::time::timeout(WHOLE, self.follow(&ask)).await {
            Ok(fetched) => fetched,
            Err(_) => Err(Error::Unreachable("did not answer within 15 seconds")),
        };
        match &fetched {
            Err(error @ Error::Unreachable(why)) => {
                *lock(&known.failed) = Some((Instant::now(), error.clone()));
                let mut told = lock(&known.told);
                if told.is_none_or(|at| at.elapsed() >= TOLD) {
                    *told = Some(Instant::now());
                    tracing::warn!(host = %host, why, "revocation cannot be looked up there; this is told once an hour");
                }
            }
            Err(Error::NoTurn) => {}
            _ => *lock(&known.failed) = None,
        }
        fetched
    }

    async fn follow(&self, ask: &Ask<'_>) -> Result<Bytes, Error> {
        let mut url = ask.url.clone();
        for _ in 0..=REDIRECTS {
            match self.once(&url, ask).await? {
                Answered::Body(bytes) => return Ok(bytes),
                Answered::Elsewhere(next) if ask.body.is_none() => {
                    self.check(&next)?;
                    url = next;
                }
                Answered::Elsewhere(_) => return Err(Error::Unreachable("answers by a redirect")),
            }
        }
        Err(Error::Unreachable("redirects without an end"))
    }

    /// What the address alone tells.
    fn check(&self, url: &Url) -> Result<(), Error> {
        if url.scheme() != "http" || !url.username().is_empty() || url.password().is_some() {
            return Err(Error::Refused("is not asked over plain HTTP"));
        }
        let usual = matches!(url.port_or_known_default(), Some(80 | 443));
        match url.host() {
            None => Err(Error::Refused("names no host")),
            Some(Host::Domain(name)) => {
                if self.is_allowed_name(name) {
                    return Ok(());
                }
                let name = name.trim_end_matches('.');
                if name == "localhost" || name.ends_with(".localhost") || !name.contains('.') {
                    return Err(NOT_PUBLIC);
                }
                // By a proxy the addresses are not seen here, so a network cannot allow the port.
                let may_be_allowed = self.proxy.is_none()
                    && self
                        .allow
                        .iter()
                        .any(|allowed| matches!(allowed, Allowed::Addresses(_)));
                if usual || may_be_allowed {
                    Ok(())
                } else {
                    Err(Error::Refused("is at a port that is not asked"))
                }
            }
            Some(Host::Ipv4(address)) => self.check_address(address.into(), usual),
            Some(Host::Ipv6(address)) => self.check_address(address.into(), usual),
        }
    }

    fn is_allowed_name(&self, name: &str) -> bool {
        self.allow
            .iter()
            .any(|allowed| matches!(allowed, Allowed::Host(host) if host == name))
    }

    fn check_address(&self, address: IpAddr, usual_port: bool) -> Result<(), Error> {
        let address = address.to_canonical();
        let allowed = self
            .allow
            .iter()
            .any(|allowed| matches!(allowed, Allowed::Addresses(net) if net.contains(&address)));
        let public = match address {
            IpAddr::V4(v4) => lifecycle::decide::public_v4(v4),
            IpAddr::V6(v6) => lifecycle::decide::public_v6(v6),
        };
        if allowed || (public && usual_port) {
            Ok(())
        } else if public {
            Err(Error::Refused("is at a port that is not asked"))
        } else {
            Err(NOT_PUBLIC)
        }
    }

    async fn once(&self, url: &Url, ask: &Ask<'_>) -> Result<Answered, Error> {
        const BROKEN: Error = Error::Unreachable("does not speak HTTP");
        // Waited for apart: what others make this one wait is not the host's doing.
        let turn = self.turn(url).await?;
        let stream = match tokio::time::timeout(CONNECT, self.connect(url, turn)).await {
            Ok(connected) => connected?,
            Err(_) => {
                return Err(Error::Unreachable(
                    "did not accept a connection within 5 seconds",
                ));
            }
        };
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(HEAD_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|_| BROKEN)?;
        // It ends with this function, however that ends.
        let mut driver = tokio::task::JoinSet::new();
        driver.spawn(connection);
        let target = match (&self.proxy, url.query()) {
            (Some(_), _) => url.as_str().to_owned(),
            (None, Some(query)) => format!("{}?{query}", url.path()),
            (None, None) => url.path().to_owned(),
        };
        let authority = match url.port() {
            Some(port) => format!("{}:{port}", url.host_str().unwrap_or_default()),
            None => url.host_str().unwrap_or_default().to_owned(),
        };
        let mut request = Request::builder()
            .uri(target)
            .header(HOST, authority)
            .header(USER_AGENT, concat!("chancery/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, ask.accept);
        let body = match &ask.body {
            Some((kind, body)) => {
                request = request.method(Method::POST).header(CONTENT_TYPE, *kind);
                body.clone()
            }
            None => Bytes::new(),
        };
        let request = request
            .body(Full::new(body))
            .map_err(|_| Error::Refused("is no address that can be asked"))?;
        let answer = sender.send_request(request).await.map_err(|_| BROKEN)?;
        let status = answer.status();
        if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
            let next = answer
                .headers()
                .get(LOCATION)
                .and_then(|location| location.to_str().ok())
                .and_then(|location| url.join(location).ok());
            return match next {
                Some(next) => Ok(Answered::Elsewhere(next)),
                None => Err(Error::Status(status.as_u16())),
            };
        }
        if status != StatusCode::OK {
            return Err(Error::Status(status.as_u16()));
        }
        let mut body = answer.into_body();
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Error::Unreachable("ended its answer early"))?;
            if let Ok(data) = frame.into_data() {
                if bytes.len() + data.len() > ask.limit {
                    return Err(Error::TooLong(ask.limit));
                }
                bytes.extend_from_slice(&data);
            }
        }
        Ok(Answered::Body(bytes.freeze()))
    }

    /// A place to resolve the host's name, if it has one that is resolved here.
    async fn turn(&self, url: &Url) -> Result<Option<OwnedSemaphorePermit>, Error> {
        if self.proxy.is_some() || !matches!(url.host(), Some(Host::Domain(_))) {
            return Ok(None);
        }
        let turn = Arc::clone(&self.resolving).acquire_owned();
        match tokio::time::timeout(CONNECT, turn).await {
            Ok(Ok(turn)) => Ok(Some(turn)),
            Ok(Err(_)) | Err(_) => Err(Error::NoTurn),
        }
    }

    async fn resolve(
        name: &str,
        port: u16,
        turn: Option<OwnedSemaphorePermit>,
    ) -> Option<Vec<SocketAddr>> {
        let name = name.to_owned();
        let resolved = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let addresses = (name.as_str(), port).to_socket_addrs();
            addresses.map(|addresses| addresses.take(ADDRESSES).collect())
        });
        resolved.await.ok()?.ok()
    }

    async fn connect(
        &self,
        url: &Url,
        turn: Option<OwnedSemaphorePermit>,
    ) -> Result<TcpStream, Error> {
        const NO_ADDRESS: Error = Error::Unreachable("has no address in DNS");
        if let Some(proxy) = &self.proxy {
            return TcpStream::connect((proxy.host.as_str(), proxy.port))
                .await
                .map_err(|_| Error::Unreachable("could not be asked: the proxy does not answer"));
        }
        let port = url.port_or_known_default().unwrap_or(80);
        let (addresses, named): (Vec<SocketAddr>, bool) = match url.host() {
            Some(Host::Ipv4(address)) => (vec![(address, port).into()], false),
            Some(Host::Ipv6(address)) => (vec![(address, port).into()], false),
            Some(Host::Domain(name)) => (
                Self::resolve(name, port, turn).await.ok_or(NO_ADDRESS)?,
                self.is_allowed_name(name),
            ),
            None => return Err(NO_ADDRESS),
        };
        let mut last = NO_ADDRESS;
        for address in addresses {
            if !named && let Err(error) = self.check_address(address.ip(), matches!(port, 80 | 443))
            {
                last = error;
                continue;
            }
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(_) => last = Error::Unreachable("does not accept connections"),
            }
        }
        Err(last)
    }
}

enum Answered {
    Body(Bytes),
    Elsewhere(Url),
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn fetcher(allow: &[&str], proxy: Option<&str>) -> Fetcher {
        Fetcher::new(
            proxy.map(|proxy| proxy.parse().unwrap()),
            allow.iter().map(|text| text.parse().unwrap()).collect(),
            LEFT_ALONE,
        )
    }

    fn check(fetcher: &Fetcher, url: &str) -> bool {
        fetcher.check(&Url::parse(url).unwrap()).is_ok()
    }

    #[test]
    fn only_public_addresses_and_usual_ports_are_asked() {
        let strict = fetcher(&[], None);
        for url in [
            "http://ocsp.example.com/",
            "http://1.1.1.1:443/x",
            "http://x.example:80/",
        ] {
            assert!(check(&strict, url), "{url}");
        }
        for url in [
            "https://ocsp.example.com/",
            "ftp://ocsp.example.com/",
            "ldap://ocsp.example.com/",
            "http://user@ocsp.example.com/",
            "http://ocsp.example.com:8080/",
            "http://1.1.1.1:25/",
            "http://127.0.0.1/",
            "http://0x7f000001/",
            "http://2130706433/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[64:ff9b::7f00:1]/",
            "http://169.254.169.254/latest/meta-data/",
            "http://10.0.0.1/",
            "http://localhost/",
            "http://a.localhost./",
            "http://intranet/",
        ] {
            assert!(!check(&strict, url), "{url}");
            assert!(
                !check(&fetcher(&[], Some("http://127.0.0.1:3128")), url),
                "{url} by a proxy"
            );
        }
    }

    #[test]
    fn an_operator_allows_addresses_networks_and_names() {
        let allowing = fetcher(&["127.0.0.1", "10.1.0.0/16", "fd00::/8", "crl.corp"], None);
        for url in [
            "http://127.0.0.1:8888/",
            "http://[::ffff:127.0.0.1]:8888/",
            "http://10.1.2.3/",
            "http://[fd00::1]:81/",
            "http://crl.corp:8080/",
        ] {
            assert!(check(&allowing, url), "{url}");
        }
        for url in ["http://127.0.0.2/", "http://10.2.0.1/", "https://crl.corp/"] {
            assert!(!check(&allowing, url), "{url}");
        }
        for wrong in ["10.0.0.0/33", "a b", "", "http://x", "x/y"] {
            assert!(wrong.parse::<Allowed>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_proxy_is_a_host_and_a_port() {
        for right in [
            "http://proxy:3128",
            "http://10.0.0.1:3128/",
            "http://[::1]:3128",
            "http://proxy",
        ] {
            assert!(right.parse::<Proxy>().is_ok(), "{right}");
        }
        for wrong in [
            "proxy:3128",
            "https://proxy:1",
            "http://a:b@proxy",
            "http://proxy/path",
            "socks5://p:1",
            "",
        ] {
            assert!(wrong.parse::<Proxy>().is_err(), "{wrong}");
        }
    }

    /// A name is judged by what it resolves to when the connection is made, not by how it looks.
    #[tokio::test]
    async fn a_name_that_resolves_to_a_private_address_is_not_connected_to() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = Url::parse(&format!("http://localhost:{port}/")).unwrap();
        let error = fetcher(&["10.0.0.0/8"], None)
            .connect(&url, None)
            .await
            .unwrap_err();
        assert_eq!(error, NOT_PUBLIC);
        let accepted = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(accepted.is_err(), "it was connected to");
        assert!(
            fetcher(&["localhost"], None)
                .connect(&url, None)
                .await
                .is_ok()
        );
    }

    /// A server that answers each connection with these bytes, and counts them.
    async fn server(answer: Vec<u8>) -> (Url, Arc<std::sync::atomic::AtomicUsize>) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/a", listener.local_addr().unwrap());
        let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let _ = stream.read(&mut [0; 4_096]).await;
                let _ = stream.write_all(&answer).await;
            }
        });
        (Url::parse(&url).unwrap(), count)
    }

    async fn get(fetcher: &Fetcher, url: &Url, limit: usize) -> Result<Bytes, Error> {
        let ask = Ask {
            url,
            accept: "*/*",
            body: None,
            limit,
        };
        fetcher.get(ask).await
    }

    #[tokio::test]
    async fn a_host_that_does_not_answer_is_left_alone() {
        use std::sync::atomic::Ordering::SeqCst;
        let fetcher = fetcher(&["127.0.0.1"], None);
        let (url, count) = server(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()).await;
        for _ in 0..20 {
            let error = get(&fetcher, &url, 100).await.unwrap_err();
            assert_eq!(error, Error::Unreachable("does not speak HTTP"));
        }
        assert_eq!(count.load(SeqCst), 1);
        // A page that is missing says nothing about the host.
        let (url, count) = server(b"HTTP/1.1 404 x\r\ncontent-length: 0\r\n\r\n".to_vec()).await;
        for _ in 0..3 {
            assert_eq!(get(&fetcher, &url, 100).await, Err(Error::Status(404)));
        }
        assert_eq!(count.load(SeqCst), 3);
    }

    /// Names whose DNS never answers take all places: whoever waits behind them is asked as soon as there is one.
    #[tokio::test]
    async fn a_host_that_had_no_turn_is_not_left_alone() {
        let fetcher = fetcher(&["localhost"], None);
        let answer = b"HTTP/1.1 200 x\r\ncontent-length: 1\r\n\r\na".to_vec();
        let (mut url, _) = server(answer).await;
        url.set_host(Some("localhost")).unwrap();
        let all = Arc::clone(&fetcher.resolving)
            .acquire_many_owned(RESOLVING as u32)
            .await
            .unwrap();
        assert_eq!(get(&fetcher, &url, 100).await, Err(Error::NoTurn));
        drop(all);
        assert_eq!(get(&fetcher, &url, 100).await.unwrap(), b"a"[..]);
    }

    #[tokio::test]
    async fn an_answer_ends_at_its_bound_whatever_it_announces() {
        let fetcher = fetcher(&["127.0.0.1"], None);
        let body = vec![7; 1_000];
        let with = |head: &str, body: &[u8]| [head.as_bytes(), body].concat();
        for head in [
            "HTTP/1.1 200 x\r\ncontent-length: 1000\r\n\r\n",
            "HTTP/1.1 200 x\r\nconnection: close\r\n\r\n",
        ] {
            let (url, _) = server(with(head, &body)).await;
            assert_eq!(get(&fetcher, &url, 1_000).await.unwrap(), body);
            assert_eq!(get(&fetcher, &url, 999).await, Err(Error::TooLong(999)));
        }
        let (url, _) = server(with("HTTP/1.1 200 x\r\nx: ", &vec![b'a'; 2 * HEAD_MAX])).await;
        assert_eq!(
            get(&fetcher, &url, 100).await,
            Err(Error::Unreachable("does not speak HTTP"))
        );
    }

    #[tokio::test]
    async fn redirects_end_and_lead_nowhere_else() {
        let fetcher = fetcher(&["127.0.0.1"], None);
        for (to, error) in [
            ("/a", Error::Unreachable("redirects without an end")),
            (
                "file:///etc/passwd",
                Error::Refused("is not asked over plain HTTP"),
            ),
            (
                "https://example.com/",
                Error::Refused("is not asked over plain HTTP"),
            ),
            ("http://10.0.0.1/", NOT_PUBLIC),
        ] {
            let head = format!("HTTP/1.1 302 x\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n");
            let (url, _) = server(head.into_bytes()).await;
            assert_eq!(get(&fetcher, &url, 100).await, Err(error), "{to}");
        }
    }
}
