//! The edge as its clients see it: curl, openssl, HTTP/2, against real origins and a real feed.

#![allow(clippy::unwrap_used, missing_docs)]

mod upstream;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use edge::{CacheBounds, Clock, Config, Edge, Next};
use lifecycle::selection::{KeyKind, Mode};
use wire::feed::{Key, Message, Resource};

use upstream::{
    Connected, EDGE, Nats, REGION, Served, Upstream, Wanted, sign_with, slug, unix_now,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// An origin that says what it was sent.
struct Origin {
    address: SocketAddr,
    requests: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type OriginBody = http_body_util::combinators::BoxBody<Bytes, hyper::Error>;

async fn origin_answer(request: Request<Incoming>) -> Response<OriginBody> {
    let full = |text: String| {
        Full::new(Bytes::from(text))
            .map_err(|never| match never {})
            .boxed()
    };
    let path = request.uri().path().to_owned();
    if path.ends_with("/mirror") {
        // The body comes back as it is read.
        return Response::new(request.into_body().boxed());
    }
    if path.ends_with("/count") {
        let mut body = request.into_body();
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { break };
            bytes += frame.data_ref().map_or(0, Bytes::len);
        }
        return Response::new(full(bytes.to_string()));
    }
    if let Some((_, size)) = path.split_once("/zeros/") {
        let left: usize = size.parse().unwrap();
        let chunk = Bytes::from(vec![0; 64 << 10]);
        let frames = futures_util::stream::unfold(left, move |left| {
            let chunk = chunk.slice(..left.min(64 << 10));
            async move { (left > 0).then(|| (Ok(Frame::data(chunk.clone())), left - chunk.len())) }
        });
        return Response::new(StreamBody::new(frames).boxed());
    }
    let headers: Vec<_> = request
        .headers()
        .iter()
        .map(|(name, value)| format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())))
        .collect();
    let mut response = Response::new(full(format!(
        "{} {}\n{}",
        request.method(),
        request.uri(),
        headers.concat()
    )));
    response
        .headers_mut()
        .insert("keep-alive", "timeout=5".parse().unwrap());
    response
        .headers_mut()
        .insert("x-origin", "yes".parse().unwrap());
    response
}

impl Origin {
    async fn start() -> Self {
        Self::serve(None).await
    }

    /// Over HTTPS when it is given a configuration.
    async fn serve(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicU64::new(0));
        let counted = requests.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, counted) = (tls.clone(), counted.clone());
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        counted.fetch_add(1, Ordering::SeqCst);
                        async move { Ok::<_, Infallible>(origin_answer(request).await) }
                    });
                    let server = auto::Builder::new(TokioExecutor::new());
                    match tls {
                        Some(tls) => {
                            if let Ok(stream) =
                                tokio_rustls::TlsAcceptor::from(tls).accept(stream).await
                            {
                                let _ =
                                    server.serve_connection(TokioIo::new(stream), service).await;
                            }
                        }
                        None => {
                            let _ = server.serve_connection(TokioIo::new(stream), service).await;
                        }
                    }
                });
            }
        });
        Self {
            address,
            requests,
            task,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// Everything that a test of an edge needs.
struct Bench {
    upstream: Arc<Upstream>,
    edge: Edge,
    clock: Clock,
    connected: Connected,
    nats: Nats,
    state: tempfile::TempDir,
}

fn config(state: &tempfile::TempDir, clock: &Clock) -> Config {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    Config {
        https: Some(any),
        http: Some(any),
        clock: clock.clone(),
        ..Config::new(state.path().join("edge"), slug(REGION))
    }
}

impl Bench {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(adjust: impl FnOnce(&mut Config)) -> Self {
        let nats = Nats::start();
        let upstream = Upstream::new();
        let connected = upstream.connect(&nats).await;
        let state = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let mut config = config(&state, &clock);
        config.token = Some(upstream.token(&nats));
        config.extra_roots = vec![CertificateDer::from(upstream.authority.der.clone())];
        adjust(&mut config);
        let edge = edge::start(config).await.unwrap();
        Self {
            upstream,
            edge,
            clock,
            connected,
            nats,
            state,
        }
    }

    /// A host of a project with one certificate, in front of an origin.
    async fn host(&self, project: &str, host: &str, origin: &str) -> (Resource, Served) {
        let resource = self.upstream.resource(project, origin);
        self.upstream
            .claim(host, project, Some(resource.id), Mode::Auto);
        let served = self.upstream.certificate(&Wanted::new(project, &[host]));
        self.apply().await;
        (resource, served)
    }

    /// Publishes what was put, and waits until the edge serves it.
    async fn apply(&self) -> u64 {
        let sequence = self.upstream.publish(&self.connected).await;
        assert!(
            self.edge.wait_applied(sequence, deadline()).await,
            "not applied: {:?}",
            self.edge.problems()
        );
        sequence
    }

    fn port(&self) -> u16 {
        self.edge.https().unwrap().port()
    }

    /// curl to a host at this edge.
    async fn curl(&self, host: &str, path: &str, more: &[&str]) -> Curl {
        let url = format!("https://{host}:{}{path}", self.port());
        let resolve = format!("{host}:{}:127.0.0.1", self.port());
        let authority = self.upstream.authority_file();
        let mut all = vec![
            "--resolve",
            &resolve,
            "--cacert",
            authority.to_str().unwrap(),
        ];
        all.extend(more);
        curl(&url, &all).await
    }

    async fn plain(&self, host: &str, path: &str, more: &[&str]) -> Curl {
        let port = self.edge.http().unwrap().port();
        let resolve = format!("{host}:{port}:127.0.0.1");
        let mut all = vec!["--resolve", &resolve];
        all.extend(more);
        curl(&format!("http://{host}:{port}{path}"), &all).await
    }

    /// openssl s_client; what it says.
    async fn openssl(&self, host: Option<&str>, more: &[&str]) -> String {
        let mut command = tokio::process::Command::new("openssl");
        command.args([
            "s_client",
            "-connect",
            &format!("127.0.0.1:{}", self.port()),
        ]);
        match host {
            Some(host) => command.args(["-servername", host]),
            None => command.arg("-noservername"),
        };
        let output = command
            .args(more)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(PATIENCE, output)
            .await
            .unwrap()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    }

    /// The fingerprint that the edge serves for a host; None for the alert `unrecognized_name`.
    async fn served(&self, host: &str) -> Option<String> {
        served(self.edge.https().unwrap(), host).await
    }

    async fn restart(self, adjust: impl FnOnce(&mut Config)) -> Self {
        let Self {
            upstream,
            edge,
            clock,
            connected,
            nats,
            state,
        } = self;
        edge.shutdown(deadline()).await;
        let mut config = config(&state, &clock);
        adjust(&mut config);
        let edge = edge::start(config).await.unwrap();
        Self {
            upstream,
            edge,
            clock,
            connected,
            nats,
            state,
        }
    }

    /// Waits for a line of the access log that fits.
    async fn log_line(&self, fits: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let path = self.state.path().join("edge").join(edge::accesslog::FILE);
        let until = deadline();
        loop {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let found = text
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .find(|line| fits(line));
            if let Some(line) = found {
                return line;
            }
            assert!(Instant::now() < until, "no such line in\n{text}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

struct Curl {
    exit: i32,
    status: u16,
    body: Vec<u8>,
    stderr: String,
}

impl Curl {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

async fn curl(url: &str, more: &[&str]) -> Curl {
    let mut command = tokio::process::Command::new("curl");
    command
        .args([
            "--silent",
            "--show-error",
            "--max-time",
            "60",
            "--noproxy",
            "*",
            "--write-out",
            "\n%{http_code}",
        ])
        .args(more)
        .arg(url);
    let Output {
        status,
        mut stdout,
        stderr,
    } = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let end = stdout.iter().rposition(|byte| *byte == b'\n').unwrap();
    let code = String::from_utf8_lossy(&stdout[end + 1..]).parse().unwrap();
    stdout.truncate(end);
    Curl {
        exit: status.code().unwrap(),
        status: code,
        body: stdout,
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

/// A client that trusts whatever it is shown, and says what that was.
mod looker {
    use std::sync::Arc;

    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
    use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

    #[derive(Debug)]
    struct Anything(Vec<SignatureScheme>);

    impl ServerCertVerifier for Anything {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.clone()
        }
    }

    pub(crate) fn config(schemes: &[SignatureScheme]) -> ClientConfig {
        ClientConfig::builder_with_provider(keyring::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anything(schemes.to_vec())))
            .with_no_client_auth()
    }

    pub(crate) fn all_schemes() -> Vec<SignatureScheme> {
        keyring::provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

type Shown = Result<tokio_rustls::client::TlsStream<TcpStream>, std::io::Error>;

async fn connect_with(edge: SocketAddr, host: &str, config: &Arc<rustls::ClientConfig>) -> Shown {
    let stream = TcpStream::connect(edge).await?;
    tokio_rustls::TlsConnector::from(config.clone())
        .connect(ServerName::try_from(host.to_owned()).unwrap(), stream)
        .await
}

fn fingerprint(stream: &tokio_rustls::client::TlsStream<TcpStream>) -> String {
    let leaf = &stream.get_ref().1.peer_certificates().unwrap()[0];
    data_encoding::HEXLOWER
        .encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, leaf).as_ref())
}

async fn served(edge: SocketAddr, host: &str) -> Option<String> {
    let config = Arc::new(looker::config(&looker::all_schemes()));
    match connect_with(edge, host, &config).await {
        Ok(stream) => Some(fingerprint(&stream)),
        Err(error) => {
            let alert = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<rustls::Error>())
                .cloned();
            assert_eq!(
                alert,
                Some(rustls::Error::AlertReceived(
                    rustls::AlertDescription::UnrecognisedName
                )),
                "{error}"
            );
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_served_and_requests_reach_the_origin() {
    let origin = Origin::start().await;
    let bench = Bench::start().await;
    let (_, cert) = bench
        .host("acme", "www.shop.example", &origin.url("/bucket/"))
        .await;

    for (version, alpn) in [("--http1.1", "http/1.1"), ("--http2", "h2")] {
        let answer = bench
            .curl(
                "www.shop.example",
                "/a/b?secret=1",
                &[
                    version,
                    "-D",
                    "-",
                    "-H",
                    "X-Forwarded-For: 6.6.6.6",
                    "-H",
                    "Forwarded: for=6.6.6.6",
                    "-H",
                    "X-Real-IP: 6.6.6.6",
                    "-H",
                    "Connection: x-hop",
                    "-H",
                    "X-Hop: 1",
                    "-H",
                    "X-Kept: 1",
                ],
            )
            .await;
        assert_eq!((answer.exit, answer.status), (0, 200), "{}", answer.stderr);
        let text = answer.text();
        assert!(text.contains("GET /bucket/a/b?secret=1\n"), "{text}");
        assert!(
            text.contains(&format!("host: {}\n", origin.address)),
            "{text}"
        );
        assert!(
            text.contains("x-forwarded-for: 127.0.0.1\n")
                && text.contains("x-forwarded-proto: https\n"),
            "{text}"
        );
        assert!(
            text.contains("x-forwarded-host: www.shop.example"),
            "{text}"
        );
        assert!(
            text.contains("x-kept: 1\n") && text.contains("x-origin: yes"),
            "{text}"
        );
        assert!(
            !text.contains("6.6.6.6")
                && (alpn == "h2" || !text.contains("x-hop: 1"))
                && !text.contains("x-real-ip"),
            "{text}"
        );
        assert!(!text.contains("keep-alive:"), "{text}");

        let line = bench
            .log_line(|line| line["event"] == "request" && line["alpn"] == alpn)
            .await;
        assert_eq!(line["sni"], "www.shop.example");
        assert_eq!(line["host"], "www.shop.example");
        assert_eq!(line["path"], "/a/b");
        assert_eq!(line["status"], 200);
        assert_eq!(line["region"], REGION);
        assert_eq!(line["edge"], EDGE);
        assert_eq!(line["project"], "acme");
        assert_eq!(line["tls_version"], "TLSv1.3");
        assert_eq!(line["suite"], "TLS_AES_256_GCM_SHA384");
        assert_eq!(line["group"], "X25519");
        assert_eq!(line["resumed"], false);
        assert_eq!(line["client"], "127.0.0.1");
        assert_eq!(line["fingerprint"], cert.fingerprint());
        assert!(
            line["bytes_out"].as_u64().unwrap() > 0
                && line["duration_us"].as_u64().unwrap() >= line["upstream_us"].as_u64().unwrap()
        );
        assert!(!line.to_string().contains("secret"));
    }
    // The post-quantum group comes first for those who have it.
    let stream = connect_with(
        bench.edge.https().unwrap(),
        "www.shop.example",
        &Arc::new(looker::config(&looker::all_schemes())),
    )
    .await
    .unwrap();
    assert_eq!(
        stream
            .get_ref()
            .1
            .negotiated_key_exchange_group()
            .unwrap()
            .name(),
        rustls::NamedGroup::X25519MLKEM768
    );
    // And the reports say so.
    let until = deadline();
    while !bench.upstream.reports().iter().any(|report| {
        report.applied == bench.edge.applied()
            && report.https.is_some()
            && report.problems.is_empty()
    }) {
        assert!(Instant::now() < until, "{:?}", bench.upstream.reports());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_and_unknown_names() {
    let origin = Origin::start().await;
    let bench = Bench::start().await;
    bench
        .host("acme", "www.shop.example", &origin.url(""))
        .await;

    for version in ["-tls1_2", "-tls1_3"] {
        let said = bench.openssl(Some("www.shop.example"), &[version]).await;
        let name = if version == "-tls1_2" {
            "TLSv1.2"
        } else {
            "TLSv1.3"
        };
        assert!(
            said.contains(&format!("New, {name}")) || said.contains(&format!("Protocol  : {name}")),
            "{said}"
        );
    }
    // Security level 0, else openssl would not even ask.
    let said = bench
        .openssl(
            Some("www.shop.example"),
            &["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"],
        )
        .await;
    // Without signature algorithms, which TLS 1.1 has not, the hello does not even come to its version.
    assert!(
        said.contains("alert number 40") || said.contains("alert number 70"),
        "{said}"
    );
    assert!(said.contains("Cipher is (NONE)"), "{said}");

    for (name, version) in [
        (Some("other.example"), "-tls1_3"),
        (Some("other.example"), "-tls1_2"),
        (None, "-tls1_3"),
        (None, "-tls1_2"),
        (Some("a.www.shop.example"), "-tls1_3"),
        (Some("localhost"), "-tls1_3"),
    ] {
        let said = bench.openssl(name, &[version]).await;
        assert!(said.contains("alert number 112"), "{name:?} {said}");
    }
    // Exactly these bytes, then the end of the stream.
    let mut stream = TcpStream::connect(bench.edge.https().unwrap())
        .await
        .unwrap();
    let mut client = rustls::ClientConnection::new(
        Arc::new(looker::config(&looker::all_schemes())),
        ServerName::try_from("other.example").unwrap(),
    )
    .unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    stream.write_all(&hello).await.unwrap();
    let mut alert = Vec::new();
    stream.read_to_end(&mut alert).await.unwrap();
    assert_eq!(alert, [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x70]);
    let line = bench
        .log_line(|line| line["event"] == "handshake" && line["sni"] == "other.example")
        .await;
    assert_eq!(line["reason"], "unrecognized_name");
    bench
        .log_line(|line| {
            line["event"] == "handshake"
                && line["sni"].is_null()
                && line["reason"]
                    .as_str()
                    .is_some_and(|reason| reason.contains("incompatible"))
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_switch_comes_in_the_second_of_expiry_with_nothing_upstream() {
    let bench = Bench::start().await;
    let now = unix_now();
    let resource = bench.upstream.resource("acme", "http://127.0.0.1:9/");
    bench
        .upstream
        .claim("www.shop.example", "acme", Some(resource.id), Mode::Auto);
    let backup = bench.upstream.certificate(&Wanted {
        standby: true,
        not_after: now + 9000,
        ..Wanted::new("acme", &["www.shop.example"])
    });
    let wildcard = bench.upstream.certificate(&Wanted {
        not_after: now + 6000,
        ..Wanted::new("acme", &["*.shop.example"])
    });
    let first = bench.upstream.certificate(&Wanted {
        not_after: now + 3000,
        ..Wanted::new("acme", &["www.shop.example"])
    });
    let later = bench.upstream.certificate(&Wanted {
        not_before: now + 7000,
        not_after: now + 8000,
        ..Wanted::new("acme", &["www.shop.example"])
    });
    bench.apply().await;
    // Nothing upstream.
    let Bench {
        upstream,
        edge,
        clock,
        connected,
        nats,
        state,
    } = bench;
    drop(connected);
    drop(nats);

    let at = |second: i64| clock.shift((second - unix_now()) * 1000);
    let address = edge.https().unwrap();
    for (second, expected) in [
        (now, Some(&first)),
        (now + 2990, Some(&first)),
        (now + 3010, Some(&wildcard)),
        (now + 6010, Some(&backup)),
        (now + 7010, Some(&later)),
        (now + 8010, Some(&backup)),
        (now + 9010, None),
    ] {
        at(second);
        assert_eq!(
            served(address, "www.shop.example").await,
            expected.map(Served::fingerprint),
            "{}",
            second - now
        );
    }
    // A second before and in the very second: the clock is set to a fraction of it, and asked within that second.
    let expiry = now + 3000;
    let real = || {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_millis() as i64
    };
    clock.shift(expiry * 1000 - 900 - real());
    assert_eq!(
        served(address, "www.shop.example").await,
        Some(first.fingerprint())
    );
    clock.shift(expiry * 1000 - real());
    assert_eq!(
        served(address, "www.shop.example").await,
        Some(wildcard.fingerprint())
    );
    drop((upstream, state));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_wildcards_modes_and_key_kinds() {
    let bench = Bench::start().await;
    let up = &bench.upstream;
    let resource = up.resource("acme", "http://127.0.0.1:9/");
    up.claim("*.shop.example", "acme", Some(resource.id), Mode::Auto);
    let wildcard = up.certificate(&Wanted::new("acme", &["*.shop.example"]));
    bench.apply().await;
    assert_eq!(
        bench.served("a.shop.example").await,
        Some(wildcard.fingerprint())
    );
    assert_eq!(
        bench.served("b.shop.example").await,
        Some(wildcard.fingerprint())
    );
    assert_eq!(bench.served("a.b.shop.example").await, None);
    assert_eq!(bench.served("shop.example").await, None);

    // Somebody else's exact claim takes one host out of the wildcard, and nobody's certificate serves another's host.
    let other = up.resource("other", "http://127.0.0.1:9/");
    up.claim("b.shop.example", "other", Some(other.id), Mode::Auto);
    bench.apply().await;
    assert_eq!(bench.served("b.shop.example").await, None);
    assert_eq!(
        bench.served("a.shop.example").await,
        Some(wildcard.fingerprint())
    );
    let theirs = up.certificate(&Wanted::new("other", &["b.shop.example"]));
    bench.apply().await;
    assert_eq!(
        bench.served("b.shop.example").await,
        Some(theirs.fingerprint())
    );

    // A certificate for an exact host goes before the wildcard, for all that were cached under it too.
    let exact = up.certificate(&Wanted::new("acme", &["a.shop.example"]));
    bench.apply().await;
    assert_eq!(
        bench.served("a.shop.example").await,
        Some(exact.fingerprint())
    );
    let newer = up.certificate(&Wanted::new("acme", &["*.shop.example"]));
    assert_eq!(
        bench.served("c.shop.example").await,
        Some(wildcard.fingerprint())
    );
    bench.apply().await;
    assert_eq!(
        bench.served("c.shop.example").await,
        Some(newer.fingerprint())
    );
    up.delete(&exact);
    up.delete(&newer);
    bench.apply().await;
    assert_eq!(
        bench.served("c.shop.example").await,
        Some(wildcard.fingerprint())
    );
    assert_eq!(
        bench.served("a.shop.example").await,
        Some(wildcard.fingerprint())
    );

    // Bound, off, not attached, gone.
    let second = up.certificate(&Wanted::new("other", &["b.shop.example"]));
    bench.apply().await;
    assert_eq!(
        bench.served("b.shop.example").await,
        Some(second.fingerprint())
    );
    up.claim(
        "b.shop.example",
        "other",
        Some(other.id),
        Mode::Bound(theirs.candidate.certificate),
    );
    bench.apply().await;
    assert_eq!(
        bench.served("b.shop.example").await,
        Some(theirs.fingerprint())
    );
    for (resource, mode) in [(Some(other.id), Mode::Off), (None, Mode::Auto)] {
        up.claim("b.shop.example", "other", resource, mode);
        bench.apply().await;
        assert_eq!(bench.served("b.shop.example").await, None);
    }
    up.remove(Key::claim("b.shop.example"));
    bench.apply().await;
    assert_eq!(
        bench.served("b.shop.example").await,
        Some(wildcard.fingerprint()),
        "the wildcard claim is left"
    );

    // Kinds of keys side by side: each client gets the first that it can check.
    let resource = up.resource("acme", "http://127.0.0.1:9/");
    up.claim("kinds.example", "acme", Some(resource.id), Mode::Auto);
    let rsa = up.certificate(&Wanted {
        key: KeyKind::Rsa(2048),
        ..Wanted::new("acme", &["kinds.example"])
    });
    let p384 = up.certificate(&Wanted {
        key: KeyKind::P384,
        ..Wanted::new("acme", &["kinds.example"])
    });
    let ed25519 = up.certificate(&Wanted {
        key: KeyKind::Ed25519,
        ..Wanted::new("acme", &["kinds.example"])
    });
    bench.apply().await;
    use rustls::SignatureScheme as Scheme;
    for (schemes, expected) in [
        (
            vec![
                Scheme::RSA_PSS_SHA256,
                Scheme::ECDSA_NISTP384_SHA384,
                Scheme::ED25519,
            ],
            &ed25519,
        ),
        (
            vec![Scheme::RSA_PSS_SHA256, Scheme::ECDSA_NISTP384_SHA384],
            &p384,
        ),
        (
            vec![Scheme::ECDSA_NISTP256_SHA256, Scheme::RSA_PSS_SHA256],
            &rsa,
        ),
    ] {
        let stream = connect_with(
            bench.edge.https().unwrap(),
            "kinds.example",
            &Arc::new(looker::config(&schemes)),
        )
        .await
        .unwrap();
        assert_eq!(fingerprint(&stream), expected.fingerprint());
    }
    // Before TLS 1.3 the suite decides as well.
    let said = bench
        .openssl(
            Some("kinds.example"),
            &["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"],
        )
        .await;
    assert!(
        said.contains("ECDHE-RSA-AES128-GCM-SHA256")
            && said.contains("Server public key is 2048 bit"),
        "{said}"
    );
    let error = connect_with(
        bench.edge.https().unwrap(),
        "kinds.example",
        &Arc::new(looker::config(&[Scheme::ECDSA_NISTP256_SHA256])),
    )
    .await
    .err()
    .unwrap();
    assert!(error.to_string().contains("HandshakeFailure"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn misdirected_requests() {
    let origin = Origin::start().await;
    let bench = Bench::start().await;
    let up = &bench.upstream;
    let url = origin.url("");
    // One certificate for two hosts of acme, one of which is switched off, and the platform's wildcard over two projects.
    let acme = up.resource("acme", &url);
    let other = up.resource("other", &url);
    let names = [
        "a.example.net",
        "b.example.net",
        "off.example.net",
        "elsewhere.example.net",
    ];
    up.certificate(&Wanted::new("acme", &names));
    for host in ["a.example.net", "b.example.net", "c.example.net"] {
        up.claim(host, "acme", Some(acme.id), Mode::Auto);
    }
    up.claim("off.example.net", "acme", Some(acme.id), Mode::Off);
    up.claim("elsewhere.example.net", "other", Some(other.id), Mode::Auto);
    up.claim("unattached.example.net", "acme", None, Mode::Auto);
    up.certificate(&Wanted::new("platform", &["*.north.platform.example"]));
    up.claim(
        "files--acme.north.platform.example",
        "platform",
        Some(acme.id),
        Mode::Auto,
    );
    up.claim(
        "files--other.north.platform.example",
        "platform",
        Some(other.id),
        Mode::Auto,
    );
    bench.apply().await;

    for version in ["--http1.1", "--http2"] {
        for (sni, host, status) in [
            ("a.example.net", "a.example.net", 200),
            ("a.example.net", "A.Example.Net.:8443", 200),
            ("a.example.net", "b.example.net", 200),
            // Not in the certificate; switched off; another project's; nobody's; not attached.
            ("a.example.net", "c.example.net", 421),
            ("a.example.net", "off.example.net", 421),
            ("a.example.net", "elsewhere.example.net", 421),
            ("a.example.net", "nobody.example.net", 421),
            ("a.example.net", "127.0.0.1", 421),
            // Covered by the wildcard of the platform, but of two projects.
            (
                "files--acme.north.platform.example",
                "files--acme.north.platform.example",
                200,
            ),
            (
                "files--acme.north.platform.example",
                "files--other.north.platform.example",
                421,
            ),
        ] {
            let answer = bench
                .curl(sni, "/", &[version, "-H", &format!("Host: {host}")])
                .await;
            assert_eq!(
                answer.status, status,
                "{version} {sni} {host} {}",
                answer.stderr
            );
            if status == 421 {
                assert!(answer.body.is_empty());
            }
        }
    }
    assert_eq!(bench.served("nobody.north.platform.example").await, None);

    // Plain HTTP: no certificate is needed, but a place to go.
    for (host, status) in [
        ("a.example.net", 200),
        ("c.example.net", 200),
        ("off.example.net", 200),
        ("files--other.north.platform.example", 200),
        ("unattached.example.net", 421),
        ("nobody.example.net", 421),
    ] {
        let answer = bench.plain(host, "/x", &[]).await;
        assert_eq!(answer.status, status, "{host}");
        if status == 421 {
            assert!(answer.body.is_empty());
        } else {
            assert!(
                answer.text().contains("x-forwarded-proto: http\n"),
                "{}",
                answer.text()
            );
        }
    }
    // Plain HTTP/2 too, and a host that is there twice or not at all.
    assert_eq!(
        bench
            .plain("a.example.net", "/", &["--http2-prior-knowledge"])
            .await
            .status,
        200
    );
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example.net\r\nHost: b.example.net\r\n\r\n",
        "GET http://a.example.net/ HTTP/1.1\r\nHost: b.example.net\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(bench.edge.http().unwrap())
            .await
            .unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 400", "{request}");
    }

    // Suspended.
    let mut suspended = acme.clone();
    suspended.served = false;
    up.put_resource(&suspended);
    bench.apply().await;
    assert_eq!(bench.plain("a.example.net", "/", &[]).await.status, 503);
    assert!(bench.served("a.example.net").await.is_none());
    up.put_resource(&acme);
    bench.apply().await;
    assert!(bench.served("a.example.net").await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_stream_in_both_directions() {
    const SIZE: usize = 256 << 20;
    let origin = Origin::start().await;
    let bench = Bench::start().await;
    bench
        .host("acme", "www.shop.example", &origin.url(""))
        .await;

    // What goes in comes out before the next goes in: nothing waits for the end.
    let mut config = looker::config(&looker::all_schemes());
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = connect_with(
        bench.edge.https().unwrap(),
        "www.shop.example",
        &Arc::new(config),
    )
    .await
    .unwrap();
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let driver = tokio::spawn(connection);
    let (send, parts) = tokio::sync::mpsc::channel::<Bytes>(1);
    let body = StreamBody::new(Box::pin(futures_util::stream::unfold(
        parts,
        |mut parts| async {
            parts
                .recv()
                .await
                .map(|part| (Ok::<_, Infallible>(Frame::data(part)), parts))
        },
    )));
    let request = Request::post("https://www.shop.example/mirror")
        .body(body)
        .unwrap();
    let response = client.send_request(request);
    send.send(Bytes::from_static(b"first")).await.unwrap();
    let response = tokio::time::timeout(PATIENCE, response)
        .await
        .unwrap()
        .unwrap();
    let mut body = response.into_body();
    for part in ["first", "second", "third"] {
        if part != "first" {
            send.send(Bytes::copy_from_slice(part.as_bytes()))
                .await
                .unwrap();
        }
        let frame = tokio::time::timeout(PATIENCE, body.frame())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(frame.into_data().unwrap(), part);
    }
    drop(send);
    let rest = tokio::time::timeout(PATIENCE, body.collect())
        .await
        .unwrap()
        .unwrap();
    assert!(rest.to_bytes().is_empty());
    driver.abort();

    // And much more than memory may grow.
    let before = resident();
    for version in ["--http1.1", "--http2"] {
        let down = bench
            .curl(
                "www.shop.example",
                &format!("/zeros/{SIZE}"),
                &[
                    version,
                    "-o",
                    "/dev/null",
                    "-w",
                    "\n%{size_download}\n%{http_code}",
                ],
            )
            .await;
        assert_eq!(down.text().trim(), SIZE.to_string(), "{}", down.stderr);
        let upload = bench.state.path().join("upload");
        std::fs::File::create(&upload)
            .unwrap()
            .set_len(SIZE as u64)
            .unwrap();
        let up = bench
            .curl(
                "www.shop.example",
                "/count",
                &[version, "-T", upload.to_str().unwrap()],
            )
            .await;
        assert_eq!(
            (up.status, up.text()),
            (200, SIZE.to_string()),
            "{}",
            up.stderr
        );
        let grown = resident().saturating_sub(before);
        // Other tests of this process run and grow meanwhile; a body that is held would be all of it.
        assert!(grown < (SIZE / 2) as u64, "{grown} bytes more for {SIZE}");
        let protocol = if version == "--http2" {
            "HTTP/2"
        } else {
            "HTTP/1.1"
        };
        bench
            .log_line(|line| line["bytes_out"] == SIZE && line["protocol"] == protocol)
            .await;
        bench
            .log_line(|line| line["bytes_in"] == SIZE && line["protocol"] == protocol)
            .await;
    }
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn origins_that_fail_or_are_refused() {
    let bench = Bench::start().await;
    let up = &bench.upstream;
    let closed = format!("http://127.0.0.1:{}/", upstream::free_port());
    let (mut resource, _) = bench.host("acme", "www.shop.example", &closed).await;
    let answer = bench.curl("www.shop.example", "/", &[]).await;
    assert_eq!(
        (answer.status, answer.text().trim()),
        (502, "The origin could not be reached.")
    );
    let line = bench.log_line(|line| line["status"] == 502).await;
    assert_eq!(line["error"], "origin_unreachable");

    // An origin that a tenant chose may not be inside, by whatever name.
    let origin = Origin::start().await;
    let port = origin.address.port();
    for inside in [
        format!("http://127.0.0.1:{port}/"),
        format!("http://localhost:{port}/"),
        format!("http://[::1]:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
        format!("http://0.0.0.0:{port}/"),
    ] {
        resource.origin.clone_from(&inside);
        // Opened while it was allowed, a pooled connection must not serve after it is not.
        resource.private_origin = true;
        up.put_resource(&resource);
        bench.apply().await;
        if inside.contains("127.0.0.1:") && !inside.contains('[') {
            assert_eq!(bench.curl("www.shop.example", "/", &[]).await.status, 200);
        }
        resource.private_origin = false;
        up.put_resource(&resource);
        bench.apply().await;
        let before = origin.requests.load(Ordering::SeqCst);
        let answer = bench.curl("www.shop.example", "/", &[]).await;
        assert_eq!(answer.status, 502, "{inside}");
        assert_eq!(origin.requests.load(Ordering::SeqCst), before);
    }
    bench
        .log_line(|line| line["error"] == "origin_not_public")
        .await;

    // HTTPS origins must show a certificate that holds.
    let key = rcgen::KeyPair::generate().unwrap();
    let now = unix_now();
    let leaf = up
        .authority
        .issue(&["localhost"], &key, now - 3600, now + 3600);
    let tls = |leaf: Vec<u8>, key: &rcgen::KeyPair| {
        let key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(keyring::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.into()], key)
            .unwrap();
        Arc::new(config)
    };
    let good = Origin::serve(Some(tls(leaf, &key))).await;
    let stranger = upstream::Authority::new();
    let bad = Origin::serve(Some(tls(
        stranger.issue(&["localhost"], &key, now - 3600, now + 3600),
        &key,
    )))
    .await;
    resource.private_origin = true;
    for (origin, status) in [(&good, 200), (&bad, 502)] {
        resource.origin = format!("https://localhost:{}", origin.address.port());
        up.put_resource(&resource);
        bench.apply().await;
        let answer = bench.curl("www.shop.example", "/", &[]).await;
        assert_eq!(answer.status, status, "{}", answer.text());
    }
    bench.log_line(|line| line["error"] == "origin_tls").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resumption_is_bound_to_the_certificate_and_the_name() {
    let origin = Origin::start().await;
    let bench = Bench::start().await;
    let up = &bench.upstream;
    let (resource, first) = bench
        .host("acme", "www.shop.example", &origin.url(""))
        .await;
    let address = bench.edge.https().unwrap();
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let mut config = rustls::ClientConfig::builder_with_provider(keyring::provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates({
                let mut roots = rustls::RootCertStore::empty();
                roots
                    .add(CertificateDer::from(up.authority.der.clone()))
                    .unwrap();
                roots
            })
            .with_no_client_auth();
        config.resumption = rustls::client::Resumption::in_memory_sessions(8);
        let config = Arc::new(config);
        let resumed = || async {
            let mut stream = connect_with(address, "www.shop.example", &config)
                .await
                .unwrap();
            // A request is made, so that tickets arrive.
            stream
                .write_all(b"GET / HTTP/1.1\r\nHost: www.shop.example\r\nConnection: close\r\n\r\n")
                .await
                .unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            assert!(
                answer.starts_with(b"HTTP/1.1 200"),
                "{}",
                String::from_utf8_lossy(&answer)
            );
            stream.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
        };
        assert!(!resumed().await);
        assert!(resumed().await, "{version:?}");
        // Another certificate for the same name: shown before anything is trusted again.
        let second = up.certificate(&Wanted::new("acme", &["www.shop.example"]));
        bench.apply().await;
        assert!(!resumed().await, "{version:?}");
        assert!(resumed().await);
        up.delete(&second);
        bench.apply().await;
        assert!(!resumed().await, "{version:?}");
        // Off: no resumption either.
        up.claim("www.shop.example", "acme", Some(resource.id), Mode::Off);
        bench.apply().await;
        assert!(
            connect_with(address, "www.shop.example", &config)
                .await
                .is_err()
        );
        up.claim("www.shop.example", "acme", Some(resource.id), Mode::Auto);
        bench.apply().await;
    }
    bench
        .log_line(|line| {
            line["resumed"] == true
                && line["fingerprint"] == first.fingerprint()
                && line["tls_version"] == "TLSv1.2"
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_serves_without_anybody_upstream() {
    let origin = Origin::start().await;
    let bench = Bench::start().await;
    let (_, cert) = bench
        .host("acme", "www.shop.example", &origin.url(""))
        .await;
    let applied = bench.edge.applied();
    // A second edge on the same folder is refused.
    let second = edge::start(config(&bench.state, &bench.clock)).await;
    assert!(matches!(second.err(), Some(edge::Error::Locked(_))));

    let Bench {
        upstream,
        edge,
        clock,
        connected,
        nats,
        state,
    } = bench;
    let port = nats.port;
    drop(connected);
    drop(nats);
    edge.shutdown(deadline()).await;
    let started = Instant::now();
    // No token, no NATS.
    let edge = edge::start(config(&state, &clock)).await.unwrap();
    assert_eq!(
        served(edge.https().unwrap(), "www.shop.example").await,
        Some(cert.fingerprint())
    );
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(edge.applied(), applied);
    for file in std::fs::read_dir(state.path().join("edge")).unwrap() {
        use std::os::unix::fs::PermissionsExt;
        let file = file.unwrap();
        assert_eq!(
            file.metadata().unwrap().permissions().mode() & 0o077,
            0,
            "{:?}",
            file.path()
        );
    }

    // What happened meanwhile arrives when NATS is back.
    upstream.delete(&cert);
    let newer = upstream.certificate(&Wanted::new("acme", &["www.shop.example"]));
    let (sequence, _) = upstream.commit();
    assert_eq!(
        served(edge.https().unwrap(), "www.shop.example").await,
        Some(cert.fingerprint())
    );
    let nats = Nats::on(port);
    let connected = upstream.connect(&nats).await;
    assert!(edge.wait_applied(sequence, deadline()).await);
    assert_eq!(
        served(edge.https().unwrap(), "www.shop.example").await,
        Some(newer.fingerprint())
    );
    assert_eq!(upstream.enrolments(), 1);

    // A certificate that is gone leaves no opened key behind.
    assert_eq!(edge.caches().keys, 1);
    upstream.delete(&newer);
    let sequence = upstream.publish(&connected).await;
    assert!(edge.wait_applied(sequence, deadline()).await);
    assert_eq!(edge.caches().keys, 0);
    // An edge that is not enrolled says so.
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(
        edge::start(config(&empty, &clock)).await.err(),
        Some(edge::Error::Enrol(edge::EnrolError::NotEnrolled))
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cache_keeps_its_bound() {
    let bench = Bench::with(|config| {
        config.caches = CacheBounds {
            hosts: 20,
            key_bytes: 64 << 10,
        }
    })
    .await;
    let up = &bench.upstream;
    let resource = up.resource("acme", "http://127.0.0.1:9/");
    let hosts: Vec<_> = (0..100).map(|n| format!("h{n}.shop.example")).collect();
    let mut certs = Vec::new();
    for host in &hosts {
        up.claim(host, "acme", Some(resource.id), Mode::Auto);
        certs.push(up.certificate(&Wanted::new("acme", &[host])));
    }
    bench.apply().await;
    for _ in 0..2 {
        for (host, cert) in hosts.iter().zip(&certs) {
            assert_eq!(bench.served(host).await, Some(cert.fingerprint()));
            let used = bench.edge.caches();
            assert!(used.hosts <= 20 && used.key_bytes <= 64 << 10, "{used:?}");
        }
    }
    assert!(bench.edge.caches().keys > 5);
    // Names that nobody has displace none.
    let before = bench.edge.caches();
    for n in 0..50 {
        assert_eq!(
            bench.served(&format!("nobody{n}.other.example")).await,
            None
        );
    }
    assert_eq!(bench.edge.caches(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_is_asked_for_and_a_long_absence_takes_a_snapshot() {
    let bench = Bench::start().await;
    let up = &bench.upstream;
    let (_, old) = bench
        .host("acme", "www.shop.example", "http://127.0.0.1:9/")
        .await;
    up.chunk_rows(1);
    // A delta that never arrives, and one that does.
    up.claim("lost.shop.example", "acme", None, Mode::Auto);
    up.commit();
    up.claim("seen.shop.example", "acme", None, Mode::Auto);
    let syncs = up.syncs();
    bench.apply().await;
    assert!(up.syncs() > syncs);
    let hosts = bench.edge.store().hosts().unwrap();
    assert_eq!(hosts.len(), 3, "{hosts:?}");

    // Away for longer than the deltas reach: what was deleted meanwhile does not come back.
    up.delete(&old);
    up.remove(Key::claim("lost.shop.example"));
    up.commit();
    let newer = up.certificate(&Wanted::new("acme", &["www.shop.example"]));
    up.commit();
    up.forget_deltas();
    up.claim("last.shop.example", "acme", None, Mode::Auto);
    bench.apply().await;
    assert!(up.chunks() > 2);
    let hosts: Vec<_> = bench
        .edge
        .store()
        .hosts()
        .unwrap()
        .into_iter()
        .map(String::from)
        .collect();
    assert_eq!(
        hosts,
        ["last.shop.example", "seen.shop.example", "www.shop.example"]
    );
    assert_eq!(
        bench.served("www.shop.example").await,
        Some(newer.fingerprint())
    );

    // A restore begins a generation, at whatever sequence.
    let (generation, _) = up.position();
    up.delete(&newer);
    let restored = up.certificate(&Wanted::new("acme", &["www.shop.example"]));
    let (_, left) = up.commit();
    up.restore(generation + 1, 3);
    up.claim("after.shop.example", "acme", None, Mode::Auto);
    up.publish(&bench.connected).await;
    let until = deadline();
    while bench.edge.position().generation != generation + 1 {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(bench.edge.applied(), 4);
    assert_eq!(
        bench.served("www.shop.example").await,
        Some(restored.fingerprint())
    );
    // What was sent before the restore and waited until after it is passed over, without holding up what follows.
    assert_eq!(bench.edge.problems(), Vec::<String>::new());
    up.claim("later.shop.example", "acme", None, Mode::Auto);
    let (to, next) = up.commit();
    let both = vec![left.into(), next.into()];
    assert_eq!(bench.edge.receive(both).await.unwrap(), Next::Nothing);
    assert_eq!(bench.edge.applied(), to);
    assert_eq!(bench.edge.problems(), Vec::<String>::new());
    // And survives a restart.
    let bench = bench.restart(|_| {}).await;
    assert_eq!(
        bench.served("www.shop.example").await,
        Some(restored.fingerprint())
    );
    assert_eq!(
        (bench.edge.position().generation, bench.edge.applied()),
        (generation + 1, to)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_pinned_signer_of_this_region_is_heard() {
    let bench = Bench::start().await;
    let up = &bench.upstream;
    let (_, cert) = bench
        .host("acme", "www.shop.example", "http://127.0.0.1:9/")
        .await;
    let applied = bench.edge.position();
    let edge = &bench.edge;
    let receive =
        |message: Vec<u8>| async move { edge.receive(vec![message.into()]).await.unwrap() };

    up.delete(&cert);
    let (sequence, genuine) = up.commit();
    let signed: wire::feed::Signed =
        bincode::serde::decode_from_slice(&genuine, bincode::config::standard())
            .unwrap()
            .0;
    let message: Message =
        bincode::serde::decode_from_slice(&signed.payload, bincode::config::standard())
            .unwrap()
            .0;
    let signer = up.signer.lock().unwrap().clone();
    let stranger = keyring::feed::FeedSigner::generate();
    let mut flipped = genuine.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut dressed = signed.clone();
    dressed.signature = stranger.sign("x", b"x").to_vec();
    let mut later = signed.clone();
    later.format = wire::feed::FORMAT + 1;
    for (what, forged) in [
        ("a stranger's", sign_with(&stranger, REGION, &message)),
        ("another region's", sign_with(&signer, "south", &message)),
        ("a changed one", flipped),
        (
            "a stranger's under the signer's name",
            upstream::encode(&dressed),
        ),
        ("one of a later format", upstream::encode(&later)),
        ("one with a tail", [genuine.as_slice(), b"x"].concat()),
        ("a cut one", genuine[..genuine.len() / 2].to_vec()),
        ("an empty one", Vec::new()),
        (
            "a stranger's signer",
            sign_with(
                &stranger,
                REGION,
                &Message::NextSigner {
                    public: stranger.public(),
                },
            ),
        ),
    ] {
        assert_eq!(receive(forged).await, Next::Refused, "{what}");
        assert_eq!(bench.edge.position(), applied, "{what}");
    }
    assert!(!bench.edge.problems().is_empty());
    assert_eq!(
        bench.served("www.shop.example").await,
        Some(cert.fingerprint())
    );
    assert_eq!(receive(genuine.clone()).await, Next::Nothing);
    assert_eq!(bench.edge.applied(), sequence);
    assert_eq!(bench.served("www.shop.example").await, None);
    // Again, without harm; and an older generation not at all.
    assert_eq!(receive(genuine).await, Next::Nothing);
    assert_eq!(bench.edge.applied(), sequence);
    let Message::Delta(mut older) = message else {
        panic!("a delta")
    };
    older.generation = 0;
    assert_eq!(
        receive(sign_with(&signer, REGION, &Message::Delta(older.clone()))).await,
        Next::Nothing
    );
    assert_eq!(bench.edge.applied(), sequence);
    assert_eq!(
        receive(sign_with(
            &signer,
            REGION,
            &Message::SnapshotNeeded {
                generation: 1,
                sequence: 1
            }
        ))
        .await,
        Next::Refused
    );
    older.generation = 2;
    assert_eq!(
        receive(sign_with(&signer, REGION, &Message::Delta(older))).await,
        Next::Sync
    );
    assert_eq!(bench.edge.applied(), sequence);

    // The old signer names the next one, and is heard no longer; also after a restart.
    assert_eq!(receive(up.next_signer()).await, Next::Nothing);
    let newer = up.certificate(&Wanted::new("acme", &["www.shop.example"]));
    bench.apply().await;
    assert_eq!(
        bench.served("www.shop.example").await,
        Some(newer.fingerprint())
    );
    let applied = bench.edge.position();
    let replay = sign_with(
        &signer,
        REGION,
        &Message::NextSigner {
            public: signer.public(),
        },
    );
    let bench = bench.restart(|_| {}).await;
    assert_eq!(
        bench.edge.receive(vec![replay.into()]).await.unwrap(),
        Next::Refused
    );
    assert_eq!(bench.edge.position(), applied);
    up_claim_and_check(&bench).await;
}

async fn up_claim_and_check(bench: &Bench) {
    bench
        .upstream
        .claim("more.shop.example", "acme", None, Mode::Auto);
    bench.apply().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_swapped_in_under_load_without_a_failed_handshake() {
    let bench = Bench::start().await;
    let up = &bench.upstream;
    let resource = up.resource("acme", "http://127.0.0.1:9/");
    let hosts: Vec<_> = (0..30).map(|n| format!("h{n}.shop.example")).collect();
    for host in &hosts {
        up.claim(host, "acme", Some(resource.id), Mode::Auto);
        up.certificate(&Wanted::new("acme", &[host]));
    }
    bench.apply().await;
    let address = bench.edge.https().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|n| {
            let (hosts, stop) = (hosts.clone(), stop.clone());
            tokio::spawn(async move {
                let mut done = 0;
                for host in hosts.iter().cycle().skip(n * 7) {
                    assert!(served(address, host).await.is_some(), "{host}");
                    done += 1;
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                }
                done
            })
        })
        .collect();
    for _ in 0..3 {
        up.forget_deltas();
        up.claim("new.shop.example", "acme", None, Mode::Auto);
        up.commit();
        up.forget_deltas();
        up.claim("newer.shop.example", "acme", None, Mode::Auto);
        bench.apply().await;
    }
    assert!(up.chunks() > 30, "{}", up.chunks());
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        assert!(client.await.unwrap() > 0);
    }
    assert!(
        bench.edge.problems().is_empty(),
        "{:?}",
        bench.edge.problems()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn region_keys_turn_and_bundles_wait_for_them() {
    let bench = Bench::start().await;
    let up = &bench.upstream;
    let (_, first) = bench
        .host("acme", "www.shop.example", "http://127.0.0.1:9/")
        .await;
    // The next region key is in use before this edge has it: what is sealed to it waits, and what is before it serves on.
    up.rotate_region_key();
    let second = up.certificate(&Wanted::new("acme", &["www.shop.example"]));
    bench.apply().await;
    assert_eq!(
        bench.served("www.shop.example").await,
        Some(first.fingerprint())
    );
    assert!(
        bench
            .edge
            .problems()
            .iter()
            .any(|problem| problem.contains("key")),
        "{:?}",
        bench.edge.problems()
    );
    up.put_region_key(1);
    bench.apply().await;
    assert_eq!(
        bench.served("www.shop.example").await,
        Some(second.fingerprint())
    );
    // The former version goes; what was sealed to it lies under the local key.
    up.put_region_key(2);
    bench.apply().await;
    let bench = bench.restart(|_| {}).await;
    bench.upstream.delete(&second);
    bench.apply().await;
    assert_eq!(
        bench.served("www.shop.example").await,
        Some(first.fingerprint())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_signed_time_is_a_floor_unless_it_would_darken() {
    let bench = Bench::start().await;
    let up = &bench.upstream;
    let now = unix_now();
    let resource = up.resource("acme", "http://127.0.0.1:9/");
    for host in ["two.shop.example", "one.shop.example"] {
        up.claim(host, "acme", Some(resource.id), Mode::Auto);
    }
    let long = up.certificate(&Wanted {
        not_after: now + 9000,
        ..Wanted::new("acme", &["two.shop.example"])
    });
    let short = up.certificate(&Wanted {
        not_after: now + 1000,
        ..Wanted::new("acme", &["two.shop.example"])
    });
    let only = up.certificate(&Wanted {
        not_after: now + 1000,
        ..Wanted::new("acme", &["one.shop.example"])
    });
    bench.apply().await;
    assert_eq!(
        bench.served("two.shop.example").await,
        Some(short.fingerprint())
    );
    // A signed entry from later than the edge's own clock.
    up.set_time((now + 2000) * 1000);
    up.claim("x.shop.example", "acme", None, Mode::Auto);
    bench.apply().await;
    assert_eq!(
        bench.served("two.shop.example").await,
        Some(long.fingerprint())
    );
    assert!(bench.edge.problems().is_empty());
    assert_eq!(
        bench.served("one.shop.example").await,
        Some(only.fingerprint())
    );
    assert!(
        bench.edge.problems()[0].contains("clock"),
        "{:?}",
        bench.edge.problems()
    );
    // The floor outlives a restart.
    let bench = bench.restart(|_| {}).await;
    assert_eq!(
        bench.served("two.shop.example").await,
        Some(long.fingerprint())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_cannot_be_read_harm_nobody_else() {
    let bench = Bench::start().await;
    let up = &bench.upstream;
    let (_, cert) = bench
        .host("acme", "www.shop.example", "http://127.0.0.1:9/")
        .await;
    let broken = up.certificate(&Wanted::new("acme", &["www.shop.example"]));
    bench.apply().await;
    assert_eq!(
        bench.served("www.shop.example").await,
        Some(broken.fingerprint())
    );
    // The bundle of the active certificate is overwritten with rubbish: the next in the chain serves.
    let rubbish = wire::feed::Change {
        key: Key::bundle("acme", &broken.candidate.fingerprint),
        value: Some(b"rubbish".to_vec()),
    };
    let (generation, sequence) = up.position();
    let delta = wire::feed::Delta {
        generation,
        from: sequence,
        to: sequence + 1,
        head: sequence + 1,
        time: 0,
        changes: vec![rubbish],
    };
    assert_eq!(
        bench
            .edge
            .receive(vec![up.sign(&Message::Delta(delta)).into()])
            .await
            .unwrap(),
        Next::Nothing
    );
    assert_eq!(bench.edge.applied(), sequence + 1);
    assert!(!bench.edge.problems().is_empty());
    assert_eq!(
        bench.served("www.shop.example").await,
        Some(cert.fingerprint())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_cannot_be_read_is_taken_anew() {
    let bench = Bench::start().await;
    let (_, cert) = bench
        .host("acme", "www.shop.example", "http://127.0.0.1:9/")
        .await;
    let applied = bench.edge.applied();
    let Bench {
        upstream,
        edge,
        clock,
        connected,
        nats,
        state,
    } = bench;
    edge.shutdown(deadline()).await;
    let file = state.path().join("edge/edge.redb");
    for damage in ["cut", "rubbish", "gone"] {
        match damage {
            "cut" => std::fs::File::options()
                .write(true)
                .open(&file)
                .unwrap()
                .set_len(5000)
                .unwrap(),
            "rubbish" => std::fs::write(&file, b"rubbish".repeat(1000)).unwrap(),
            _ => std::fs::remove_file(&file).unwrap(),
        }
        let edge = edge::start(config(&state, &clock)).await.unwrap();
        assert!(edge.wait_applied(applied, deadline()).await, "{damage}");
        assert_eq!(
            served(edge.https().unwrap(), "www.shop.example").await,
            Some(cert.fingerprint()),
            "{damage}"
        );
        edge.shutdown(deadline()).await;
    }
    assert_eq!(upstream.enrolments(), 1);
    drop((connected, nats));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delta_may_come_in_parts() {
    let bench = Bench::start().await;
    let up = &bench.upstream;
    let (_, cert) = bench
        .host("acme", "www.shop.example", "http://127.0.0.1:9/")
        .await;
    let newer = up.certificate(&Wanted::new("acme", &["www.shop.example"]));
    let (_, whole) = up.commit();
    let config = bincode::config::standard();
    let signed: wire::feed::Signed = bincode::serde::decode_from_slice(&whole, config).unwrap().0;
    let message: Message = bincode::serde::decode_from_slice(&signed.payload, config)
        .unwrap()
        .0;
    let Message::Delta(delta) = message else {
        panic!("a delta")
    };
    let mut changes = delta.changes.clone();
    let names = changes.split_off(1);
    let part = up.sign(&Message::Delta(wire::feed::Delta {
        to: delta.from,
        changes,
        ..delta.clone()
    }));
    let rest = up.sign(&Message::Delta(wire::feed::Delta {
        changes: names,
        ..delta.clone()
    }));
    // The first part brings its rows and does not move the edge on.
    assert_eq!(
        bench.edge.receive(vec![part.clone().into()]).await.unwrap(),
        Next::Nothing
    );
    assert_eq!(bench.edge.applied(), delta.from);
    assert_eq!(
        bench.served("www.shop.example").await,
        Some(cert.fingerprint())
    );
    assert_eq!(
        bench
            .edge
            .receive(vec![part.into(), rest.into()])
            .await
            .unwrap(),
        Next::Nothing
    );
    assert_eq!(bench.edge.applied(), delta.to);
    assert_eq!(
        bench.served("www.shop.example").await,
        Some(newer.fingerprint())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_when_the_edge_stops_is_ended_first() {
    let origin = Origin::start().await;
    let bench = Bench::start().await;
    bench
        .host("acme", "www.shop.example", &origin.url(""))
        .await;
    let address = bench.edge.https().unwrap();
    let mut config = looker::config(&looker::all_schemes());
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = connect_with(address, "www.shop.example", &Arc::new(config))
        .await
        .unwrap();
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let (send, parts) = tokio::sync::mpsc::channel::<Bytes>(1);
    let body = StreamBody::new(Box::pin(futures_util::stream::unfold(
        parts,
        |mut parts| async {
            parts
                .recv()
                .await
                .map(|part| (Ok::<_, Infallible>(Frame::data(part)), parts))
        },
    )));
    let response = client.send_request(
        Request::post("https://www.shop.example/count")
            .body(body)
            .unwrap(),
    );
    let response = tokio::spawn(response);
    send.send(Bytes::from_static(b"1")).await.unwrap();
    while origin.requests.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let Bench {
        edge,
        upstream,
        connected,
        nats,
        state,
        ..
    } = bench;
    let stopping = tokio::spawn(edge.shutdown(deadline()));
    // Nobody new comes in, and who is in is heard to the end.
    let until = deadline();
    while TcpStream::connect(address).await.is_ok() {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!stopping.is_finished());
    send.send(Bytes::from_static(b"23")).await.unwrap();
    drop(send);
    let answer = response
        .await
        .unwrap()
        .unwrap()
        .into_body()
        .collect()
        .await
        .unwrap()
        .to_bytes();
    assert_eq!(answer, "3");
    tokio::time::timeout(PATIENCE, stopping)
        .await
        .unwrap()
        .unwrap();
    drop((upstream, connected, nats, state));
}
