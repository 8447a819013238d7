//! How an edge bears many names: start to first handshake, idle memory, first touch, time to add one.
//!
//! `cargo run --release -p edge --example names [CERTIFICATES]` fills a store in one process and measures it in another.

#![allow(clippy::unwrap_used)]

#[path = "../tests/upstream/mod.rs"]
mod upstream;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};

use edge::{Config, Edge};
use lifecycle::selection::Mode;
use upstream::{Nats, REGION, Upstream, Wanted, slug};

/// Certificates in one delta while the store is filled.
const BATCH: u32 = 1000;
/// Names that are touched, first and again.
const TOUCHED: u32 = 1000;

fn host(n: u32) -> String {
    format!("h{n}.shop.example")
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["fill", folder, count] => {
            runtime().block_on(fill(Path::new(folder), count.parse().unwrap()))
        }
        ["serve", folder, count] => serve(Path::new(folder), count.parse().unwrap()),
        rest => {
            let count = rest.first().map_or("10000", |count| count);
            let folder = tempfile::tempdir().unwrap();
            for phase in ["fill", "serve"] {
                let status = std::process::Command::new(std::env::current_exe().unwrap())
                    .arg(phase)
                    .arg(folder.path())
                    .arg(count)
                    .status()
                    .unwrap();
                assert!(status.success(), "{phase}");
            }
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

fn config(folder: &Path) -> Config {
    let mut config = Config::new(folder.join("edge"), slug(REGION));
    config.https = Some("127.0.0.1:0".parse().unwrap());
    config
}

async fn fill(folder: &Path, count: u32) {
    let nats = Nats::start();
    let upstream = Upstream::new();
    let _connected = upstream.connect(&nats).await;
    let mut config = config(folder);
    config.token = Some(upstream.token(&nats));
    let edge = edge::start(config).await.unwrap();
    let resource = upstream.resource("acme", "http://127.0.0.1:9/");
    // One key for all, so that making them is quick; each is opened and sealed by itself all the same.
    let key = rcgen::KeyPair::generate().unwrap();
    let mut applying = Duration::ZERO;
    for n in 0..=count {
        let name = host(n);
        upstream.claim(&name, "acme", Some(resource.id), Mode::Auto);
        upstream.certificate_with(&Wanted::new("acme", &[&name]), &key);
        if n == count {
            // One more, for the other process to add.
            let (_, delta) = upstream.commit();
            std::fs::write(folder.join("next.delta"), delta).unwrap();
        } else if n % BATCH == BATCH - 1 || n + 1 == count {
            let started = Instant::now();
            upstream.apply(&edge).await;
            applying += started.elapsed();
            upstream.forget_deltas();
        }
    }
    std::fs::write(folder.join("authority.der"), &upstream.authority.der).unwrap();
    edge.shutdown(tokio::time::Instant::now() + Duration::from_secs(5))
        .await;
    let size = std::fs::metadata(folder.join("edge/edge.redb"))
        .unwrap()
        .len();
    println!("certificates                    {count:>10}");
    println!(
        "filling the edge, s             {:>10.1}",
        applying.as_secs_f64()
    );
    println!(
        "store on disk, MiB              {:>10.1}",
        size as f64 / f64::from(1 << 20)
    );
}

fn serve(folder: &Path, count: u32) {
    let runtime = runtime();
    let before = resident();
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from(
            std::fs::read(folder.join("authority.der")).unwrap(),
        ))
        .unwrap();
    let mut client = ClientConfig::builder_with_provider(keyring::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.resumption = Resumption::disabled();
    let client = Arc::new(client);

    let started = Instant::now();
    let edge: Edge = runtime.block_on(edge::start(config(folder))).unwrap();
    let address = edge.https().unwrap();
    handshake(address, &client, &host(count / 2)).unwrap();
    println!(
        "start to first handshake, ms    {:>10.1}",
        started.elapsed().as_secs_f64() * 1e3
    );
    println!(
        "idle memory, MiB                {:>10.1} ({:.1} before the start)",
        mib(resident()),
        mib(before)
    );

    // Spread over the whole store.
    let names: Vec<String> = (0..TOUCHED.min(count))
        .map(|n| host((u64::from(n) * u64::from(count) / u64::from(TOUCHED.min(count))) as u32))
        .collect();
    let mut results = Vec::new();
    for _ in 0..2 {
        let (all, own) = (cpu(ClockId::ProcessCPUTime), cpu(ClockId::ThreadCPUTime));
        for name in &names {
            handshake(address, &client, name).unwrap();
        }
        results.push(
            (cpu(ClockId::ProcessCPUTime) - all - (cpu(ClockId::ThreadCPUTime) - own))
                / names.len() as f64,
        );
    }
    println!("first touch of a name, us CPU   {:>10.1}", results[0]);
    println!(
        "a later handshake, us CPU       {:>10.1} (ratio {:.2})",
        results[1],
        results[0] / results[1]
    );
    let used = edge.caches();
    println!(
        "memory after {:>6} names, MiB  {:>10.1} ({} open keys weigh {:.1})",
        names.len(),
        mib(resident()),
        used.keys,
        mib(used.key_bytes)
    );

    let delta = std::fs::read(folder.join("next.delta")).unwrap();
    assert!(handshake(address, &client, &host(count)).is_err());
    let started = Instant::now();
    runtime.block_on(edge.receive(vec![delta.into()])).unwrap();
    handshake(address, &client, &host(count)).unwrap();
    println!(
        "adding one, to served, ms       {:>10.2}",
        started.elapsed().as_secs_f64() * 1e3
    );
    runtime.block_on(edge.shutdown(tokio::time::Instant::now() + Duration::from_secs(5)));
}

fn handshake(address: SocketAddr, client: &Arc<ClientConfig>, name: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut tls = ClientConnection::new(
        client.clone(),
        ServerName::try_from(name.to_owned()).unwrap(),
    )
    .unwrap();
    while tls.is_handshaking() {
        tls.complete_io(&mut stream)?;
    }
    tls.send_close_notify();
    tls.complete_io(&mut stream).ok();
    stream.flush()?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let _ = stream.read_to_end(&mut Vec::new());
    Ok(())
}

fn cpu(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
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
