//! CPU time of a full and of a resumed handshake at this edge, and at bare rustls in the same run.
//!
//! Both servers run on tokio in this process, with the same certificate, provider, tickets and ALPN; the client is a
//! thread of its own, and what it burns is taken off. Rounds alternate, and the medians are compared.
//!
//! `cargo run --release -p edge --example handshakes [ROUNDS] [HANDSHAKES]`

#![allow(clippy::unwrap_used)]

#[path = "../tests/upstream/mod.rs"]
mod upstream;

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustix::time::{ClockId, clock_gettime};
use rustls::client::Resumption;
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig,
    SupportedProtocolVersion,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::TlsAcceptor;

use edge::Config;
use lifecycle::selection::Mode;
use upstream::{Nats, REGION, Upstream, Wanted, slug};

const HOST: &str = "www.shop.example";

fn cpu(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// Microseconds of server CPU for each of `count` handshakes.
fn measure(
    address: SocketAddr,
    client: &Arc<ClientConfig>,
    count: u32,
    kind: HandshakeKind,
) -> f64 {
    let (all, own) = (cpu(ClockId::ProcessCPUTime), cpu(ClockId::ThreadCPUTime));
    for _ in 0..count {
        assert_eq!(handshake(address, client), kind);
    }
    // The server's side of the last connections ends a little later; it is a few of many.
    (cpu(ClockId::ProcessCPUTime) - all - (cpu(ClockId::ThreadCPUTime) - own)) / f64::from(count)
}

fn handshake(address: SocketAddr, client: &Arc<ClientConfig>) -> HandshakeKind {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut tls =
        ClientConnection::new(client.clone(), ServerName::try_from(HOST).unwrap()).unwrap();
    while tls.is_handshaking() {
        tls.complete_io(&mut stream).unwrap();
    }
    if tls.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3) {
        // The tickets come after the handshake.
        while tls.tls13_tickets_received() == 0 {
            tls.read_tls(&mut stream).unwrap();
            tls.process_new_packets().unwrap();
        }
    }
    tls.send_close_notify();
    tls.complete_io(&mut stream).ok();
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.read_to_end(&mut Vec::new());
    tls.handshake_kind().unwrap()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .map(|argument| argument.parse::<u32>().unwrap());
    let rounds = arguments.next().unwrap_or(11);
    let count = arguments.next().unwrap_or(200);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let nats = Nats::start();
    let upstream = Upstream::new();
    let state = tempfile::tempdir().unwrap();

    let (edge, bare, _connected) = runtime.block_on(async {
        let connected = upstream.connect(&nats).await;
        let mut config = Config::new(state.path(), slug(REGION));
        config.https = Some("127.0.0.1:0".parse().unwrap());
        config.token = Some(upstream.token(&nats));
        let edge = edge::start(config).await.unwrap();
        let resource = upstream.resource("acme", "http://127.0.0.1:9/");
        upstream.claim(HOST, "acme", Some(resource.id), Mode::Auto);
        let key = rcgen::KeyPair::generate().unwrap();
        upstream.certificate_with(&Wanted::new("acme", &[HOST]), &key);
        upstream.apply(&edge).await;

        let now = upstream::unix_now();
        let leaf = upstream
            .authority
            .issue(&[HOST], &key, now - 3600, now + 30 * 86_400);
        let mut config = ServerConfig::builder_with_provider(keyring::provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.into()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bare = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    stream.set_nodelay(true).unwrap();
                    if let Ok(mut stream) = acceptor.accept(stream).await {
                        // Until the client closes.
                        let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 1024]).await;
                        let _ = tokio::io::AsyncWriteExt::shutdown(&mut stream).await;
                    }
                });
            }
        });
        (edge, bare, connected)
    });
    let edge_address = edge.https().unwrap();

    let client = |versions: &[&'static SupportedProtocolVersion], resume: bool| {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from(upstream.authority.der.clone()))
            .unwrap();
        let mut config = ClientConfig::builder_with_provider(keyring::provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = if resume {
            Resumption::in_memory_sessions(8)
        } else {
            Resumption::disabled()
        };
        Arc::new(config)
    };
    println!("server CPU for a handshake, us, P-256, median of {rounds} rounds of {count}");
    println!("{:<28} {:>8} {:>8} {:>7}", "", "bare", "edge", "ratio");
    for (name, versions, resume) in [
        (
            "TLS 1.3 X25519MLKEM768 full",
            [&rustls::version::TLS13],
            false,
        ),
        ("TLS 1.2 full", [&rustls::version::TLS12], false),
        ("TLS 1.3 resumed", [&rustls::version::TLS13], true),
        ("TLS 1.2 resumed", [&rustls::version::TLS12], true),
    ] {
        let clients = [client(&versions, resume), client(&versions, resume)];
        let servers = [bare, edge_address];
        // Fills the edge's cache and, where it is wanted, the client's sessions.
        for (server, client) in servers.iter().zip(&clients) {
            handshake(*server, client);
        }
        let kind = if resume {
            HandshakeKind::Resumed
        } else {
            HandshakeKind::Full
        };
        let mut results = [Vec::new(), Vec::new()];
        for round in 0..rounds {
            for turn in 0..2 {
                // The first of a round changes, so that neither always has the warmer caches.
                let which = (turn + round as usize) % 2;
                results[which].push(measure(servers[which], &clients[which], count, kind));
            }
        }
        let [bare, edge] = &mut results;
        let (bare, edge) = (median(bare), median(edge));
        println!("{name:<28} {bare:>8.1} {edge:>8.1} {:>7.3}", edge / bare);
    }
    runtime
        .block_on(edge.shutdown(tokio::time::Instant::now() + std::time::Duration::from_secs(5)));
}
