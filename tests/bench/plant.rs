//! The system that is measured: the built binary with its own nats-server and two regions, and its users.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bus::identity::Credentials;
use bytes::Bytes;
use harness::{Cli, Serve};
use keyring::{PrivateKey, SealedKey};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SerialNumber,
};
use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tempfile::TempDir;
use time::OffsetDateTime;
use uuid::Uuid;

/// Where certificates work.
pub(crate) const REGIONS: [&str; 2] = ["north", "south"];
/// Projects that send commands at the same time.
pub(crate) const PROJECTS: usize = 8;
/// NATS connections of each project's user.
const CONNECTIONS: usize = 2;
/// The limit on one project's commands, far above what is measured, so that it is not the limit.
pub(crate) const COMMANDS_PER_SECOND: u32 = 100_000;
/// The certificates that a project may have, far above what is measured too.
const QUOTA: u32 = 1_000_000;
/// How long a command may take before the measurement is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A root, an issuing CA, and leaves without end.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    intermediate: String,
    root: String,
    pub(crate) root_der: CertificateDer<'static>,
    serial: AtomicU64,
}

/// A certificate as its owner has it.
pub(crate) struct Leaf {
    pub(crate) chain: String,
    pub(crate) der: Vec<u8>,
    pub(crate) key: PrivateKey,
}

impl Authority {
    pub(crate) fn new() -> Result<Self> {
        let named = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(86_400);
            params.not_after = OffsetDateTime::now_utc() + Duration::from_secs(3_650 * 86_400);
            params
        };
        let (root_key, key) = (KeyPair::generate()?, KeyPair::generate()?);
        let root = named("Chancery bench root").self_signed(&root_key)?;
        let issuer = Issuer::new(named("Chancery bench root"), root_key);
        let intermediate = named("Chancery bench issuing CA").signed_by(&key, &issuer)?;
        Ok(Self {
            issuer: Issuer::new(named("Chancery bench issuing CA"), key),
            intermediate: intermediate.pem(),
            root: root.pem(),
            root_der: root.der().clone(),
            serial: AtomicU64::new(0x5000_0000_0000_0001),
        })
    }

    /// A leaf with a P-256 key of its own.
    pub(crate) fn issue(&self, host: &str) -> Result<Leaf> {
        self.issue_for(host, 90)
    }

    /// A leaf that ends after so many days.
    pub(crate) fn issue_for(&self, host: &str, days: u64) -> Result<Leaf> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([host.to_owned()])?;
        params.serial_number = Some(SerialNumber::from(
            self.serial.fetch_add(1, Ordering::Relaxed),
        ));
        params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(3_600);
        params.not_after = OffsetDateTime::now_utc() + Duration::from_secs(days * 86_400);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&key, &self.issuer)?;
        Ok(Leaf {
            chain: leaf.pem() + &self.intermediate,
            der: leaf.der().to_vec(),
            key: PrivateKey::from_der(key.serialized_der())?,
        })
    }
}

/// A project's user: nothing but NATS connections.
pub(crate) struct User {
    pub(crate) project: String,
    clients: Vec<async_nats::Client>,
}

/// The running system.
pub(crate) struct Plant {
    folder: TempDir,
    serve: Option<Serve>,
    pub(crate) authority: Authority,
    /// One a project.
    pub(crate) users: Vec<User>,
    operator: User,
    ingestion: [u8; 32],
    certificates: Arc<AtomicUsize>,
    nats: String,
    /// Each region's edge.
    pub(crate) https: Vec<SocketAddr>,
}

/// A command that is ready to be sent.
#[derive(Clone)]
pub(crate) struct Prepared {
    pub(crate) client: async_nats::Client,
    pub(crate) subject: String,
    pub(crate) body: Bytes,
    /// Counts those that were accepted.
    counter: Option<Arc<AtomicUsize>>,
}

impl Prepared {
    /// Sends it and waits for the answer, which must be `accepted`; `busy` is obeyed and tried again with the same id.
    pub(crate) async fn send(&self) -> Result<()> {
        let id = Uuid::now_v7().to_string();
        let begun = Instant::now();
        loop {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Msg-Id", id.as_str());
            let request = async_nats::Request::new()
                .headers(headers)
                .payload(self.body.clone())
                .timeout(Some(PATIENCE));
            let answer = self
                .client
                .send_request(self.subject.clone(), request)
                .await?;
            if contains(&answer.payload, b"\"outcome\":\"accepted\"") {
                if let Some(counter) = &self.counter {
                    counter.fetch_add(1, Ordering::Relaxed);
                }
                return Ok(());
            }
            if !contains(&answer.payload, b"\"code\":\"busy\"") || begun.elapsed() > PATIENCE {
                bail!(
                    "{} was not accepted: {}",
                    self.subject,
                    String::from_utf8_lossy(&answer.payload)
                );
            }
            let problem: Value = serde_json::from_slice(&answer.payload)?;
            tokio::time::sleep(Duration::from_millis(
                problem["retry_after_ms"].as_u64().unwrap_or(100),
            ))
            .await;
        }
    }
}

fn contains(text: &[u8], words: &[u8]) -> bool {
    text.windows(words.len()).any(|window| window == words)
}

/// Lets a project have as many certificates as there can be, so that its quota is not what is measured.
async fn unbounded(operator: &User, project: &str) -> Result<()> {
    let body = json!({"project": project, "certificates": QUOTA, "per_region": QUOTA});
    operator
        .command_in(0, "platform", "project.quota-set", &body)
        .send()
        .await
}

async fn connect(nats: &str, creds: &str) -> Result<async_nats::Client> {
    let credentials = Arc::new(Credentials::parse(creds)?);
    let options = async_nats::ConnectOptions::with_auth_callback(move |nonce| {
        let mut auth = async_nats::Auth::new();
        auth.signature = Some(credentials.sign(&nonce));
        auth.jwt = Some(credentials.jwt.clone());
        std::future::ready(Ok::<_, async_nats::AuthError>(auth))
    });
    Ok(options.connect(nats).await?)
}

impl User {
    async fn connect(nats: &str, project: &str, creds: &Path) -> Result<Self> {
        let creds = fs::read_to_string(creds)?;
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(connect(nats, &creds).await?);
        }
        Ok(Self {
            project: project.to_owned(),
            clients,
        })
    }

    /// A command of this user's project; `n` chooses the connection.
    pub(crate) fn command(&self, n: usize, name: &str, body: &Value) -> Prepared {
        self.command_in(n, &self.project, name, body)
    }

    fn command_in(&self, n: usize, project: &str, name: &str, body: &Value) -> Prepared {
        Prepared {
            client: self.clients[n % self.clients.len()].clone(),
            subject: wire::subject::of("cmd", project, name),
            body: body.to_string().into(),
            counter: None,
        }
    }
}

impl Plant {
    /// Starts the binary and makes the projects.
    pub(crate) async fn start() -> Result<Self> {
        let authority = Authority::new()?;
        let folder = tempfile::Builder::new()
            .prefix("chancery-bench-")
            .tempdir()?;
        fs::write(folder.path().join("root.pem"), &authority.root)?;
        let mut config = format!(
            "state = \"state\"\n[metrics]\nlisten = \"127.0.0.1:0\"\n[control]\ntrusted_roots = [\"root.pem\"]\ncommands_per_second = {COMMANDS_PER_SECOND}\n\
             command_burst = {COMMANDS_PER_SECOND}\n"
        );
        // Where scripts/setup puts the server, unless the caller names one or has one in PATH.
        let server = harness::checkout().join(".tools/bin/nats-server");
        if std::env::var_os("CHANCERY_NATS_SERVER").is_none() && server.is_file() {
            config += &format!("[nats]\nexecutable = \"{}\"\n", server.display());
        }
        for region in REGIONS {
            config += &format!(
                "[[edge]]\nregion = \"{region}\"\nname = \"{region}-1\"\nhttps = \"127.0.0.1:0\"\n"
            );
        }
        let file = folder.path().join("bench.toml");
        fs::write(&file, config)?;
        let serve = tokio::task::spawn_blocking(move || Serve::start(&file)).await?;
        let nats = serve.ready["nats"]
            .as_str()
            .context("the ready line names the NATS server")?
            .to_owned();
        let https = serve.ready["https"]
            .as_array()
            .context("the ready line lists the edges")?;
        let https = https
            .iter()
            .map(|edge| Ok(edge["addr"].as_str().context("an address")?.parse()?))
            .collect::<Result<Vec<SocketAddr>>>()?;
        ensure!(https.len() == REGIONS.len(), "one edge a region");
        let cli = serve.operator();
        let creds = cli
            .environment()
            .get("CHANCERY_CREDS")
            .context("the ready line names the credentials")?;
        let operator = User::connect(&nats, "platform", Path::new(creds)).await?;
        let mut users = Vec::new();
        for n in 0..PROJECTS {
            let project = format!("bench-{n}");
            let file = folder.path().join(format!("{project}.creds"));
            create(&cli, &project, &file)?;
            users.push(User::connect(&nats, &project, &file).await?);
            unbounded(&operator, &project).await?;
        }
        let subject = wire::subject::of("query", "platform", "ingestion-key");
        let answer = operator.clients[0]
            .request(subject, Bytes::from_static(b"{}"))
            .await?;
        let answer: Value = serde_json::from_slice(&answer.payload)?;
        let public = answer["public"]
            .as_str()
            .context("the view gives the ingestion key")?;
        let public =
            data_encoding::BASE64URL_NOPAD.decode(public.trim_end_matches('=').as_bytes())?;
        let ingestion = public.as_slice().try_into()?;
        Ok(Self {
            folder,
            serve: Some(serve),
            authority,
            users,
            operator,
            ingestion,
            certificates: Arc::default(),
            nats,
            https,
        })
    }

    /// The user whose turn it is.
    pub(crate) fn user(&self, n: usize) -> &User {
        &self.users[n % self.users.len()]
    }

    /// A host of the project whose turn it is.
    pub(crate) fn host(&self, kind: &str, n: usize) -> String {
        format!("{kind}{n}.{}.example", self.user(n).project)
    }

    /// The body of `certificate.add`, its key sealed.
    pub(crate) fn add(
        &self,
        user: &User,
        n: usize,
        name: &str,
        leaf: &Leaf,
        regions: &[&str],
    ) -> Result<Prepared> {
        let key = SealedKey::seal(&self.ingestion, &user.project, &leaf.key)
            .map_err(|_| anyhow::anyhow!("sealing"))?;
        let body = json!({"name": name, "chain": leaf.chain, "key": key, "regions": regions});
        let mut command = user.command(n, "certificate.add", &body);
        command.counter = Some(Arc::clone(&self.certificates));
        Ok(command)
    }

    /// `certificate.add` for as many certificates, each for a host of its own; made on all cores.
    pub(crate) fn adds(&self, kind: &str, count: usize, regions: &[&str]) -> Result<Vec<Prepared>> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            let made = |first: usize| {
                (first..count)
                    .step_by(threads)
                    .map(|n| {
                        let leaf = self.authority.issue(&self.host(kind, n))?;
                        self.add(
                            self.user(n),
                            n / PROJECTS,
                            &format!("{kind}-{n}"),
                            &leaf,
                            regions,
                        )
                    })
                    .collect::<Result<Vec<_>>>()
            };
            let workers: Vec<_> = (0..threads)
                .map(|first| scope.spawn(move || made(first)))
                .collect();
            let mut all = Vec::with_capacity(count);
            for worker in workers {
                all.extend(
                    worker
                        .join()
                        .map_err(|_| anyhow::anyhow!("making certificates"))??,
                );
            }
            Ok(all)
        })
    }

    /// Makes a project of the operator's, without users.
    pub(crate) async fn project(&self, name: &str) -> Result<()> {
        self.operator
            .command_in(0, "platform", "project.create", &json!({"project": name}))
            .send()
            .await?;
        unbounded(&self.operator, name).await
    }

    /// Has the operator claim a host for a user's project, proven and attached.
    pub(crate) async fn claim(&self, user: &User, host: &str) -> Result<()> {
        let body = json!({"host": host, "resource": "shop"});
        self.operator
            .command_in(0, &user.project, "domain.add", &body)
            .send()
            .await
    }

    /// The sequence of the log's last event.
    pub(crate) async fn status(&self) -> Result<Value> {
        let subject = wire::subject::of("query", "platform", "status");
        let answer = self.operator.clients[0]
            .request(subject, Bytes::from_static(b"{}"))
            .await?;
        Ok(serde_json::from_slice(&answer.payload)?)
    }

    /// Returns once nothing is left to verify and every edge has applied what concerns it.
    pub(crate) async fn settle(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut before = Value::Null;
        loop {
            let status = self.status().await?;
            let regions = status["regions"].as_array().cloned().unwrap_or_default();
            let quiet = status["owed"]["verifications"] == 0
                && regions.iter().all(|region| region["lag"] == 0);
            // An edge that has everything that was published may still lack what is about to be.
            let now = json!([quiet, status["regions"]]);
            if quiet && now == before {
                return Ok(());
            }
            before = now;
            ensure!(
                Instant::now() < deadline,
                "the edges are still behind after {limit:?}: {status}"
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Processor time that the servers have used so far, in seconds: the binary, and its nats-server.
    pub(crate) fn processor(&self) -> Result<(f64, f64)> {
        let config = self.folder().join("bench.toml").display().to_string();
        let mut used = (0.0, 0.0);
        let mut server = None;
        for process in processes() {
            if process.command.contains(&config) {
                used.0 = process.seconds;
                server = Some(process.pid);
            }
        }
        let server = server.context("the server runs")?;
        used.1 = processes()
            .filter(|process| process.parent == server)
            .map(|process| process.seconds)
            .sum();
        Ok(used)
    }

    /// How many certificates were added.
    pub(crate) fn certificates(&self) -> usize {
        self.certificates.load(Ordering::Relaxed)
    }

    /// The folder with the configuration and the state.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The operator's command line.
    pub(crate) fn cli(&self) -> Result<Cli> {
        Ok(self
            .serve
            .as_ref()
            .context("the system was stopped")?
            .operator())
    }

    /// The NATS server's URL.
    pub(crate) fn nats(&self) -> &str {
        &self.nats
    }

    /// Ends the system in order; what it stored stays until this is dropped.
    pub(crate) fn stop(&mut self) {
        if let Some(serve) = self.serve.take() {
            serve.stop();
        }
    }

    /// The ledger's file.
    pub(crate) fn ledger(&self) -> PathBuf {
        self.folder.path().join("state/ledger.redb")
    }
}

/// A process of this machine, as `/proc` shows it.
struct Process {
    pid: u32,
    parent: u32,
    command: Vec<String>,
    /// Processor time, its own.
    seconds: f64,
}

fn processes() -> impl Iterator<Item = Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let fields: Vec<&str> = stat
            .get(stat.rfind(')')? + 1..)?
            .split_whitespace()
            .collect();
        let ticks: u64 =
            fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        let command = fs::read(entry.path().join("cmdline")).ok()?;
        Some(Process {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            command: command
                .split(|b| *b == 0)
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect(),
            // Linux counts in hundredths for user space, whatever the kernel's own tick.
            seconds: ticks as f64 / 100.0,
        })
    })
}

/// A project with a user and a resource in every region.
fn create(cli: &Cli, project: &str, creds: &Path) -> Result<()> {
    let file = creds.display().to_string();
    let own = cli.project(project);
    let mut resource = vec![
        "resource",
        "create",
        "shop",
        "--kind",
        "cdn",
        "--origin",
        "https://origin.example.com/",
    ];
    for region in REGIONS {
        resource.extend(["--region", region]);
    }
    for (cli, words) in [
        (cli, vec!["project", "create", project]),
        (&own, vec!["access", "create", "user", "--out", &file]),
        (&own, resource),
    ] {
        let outcome = cli.run(&words);
        ensure!(outcome.status == 0, "{outcome:?}");
    }
    Ok(())
}

/// A TLS client without tickets that trusts one root.
pub(crate) fn tls_client(root: &CertificateDer<'static>) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone())?;
    let mut config = ClientConfig::builder_with_provider(keyring::provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The leaf that is served for a host; an error when the handshake does not succeed.
pub(crate) fn served(
    address: SocketAddr,
    client: &Arc<ClientConfig>,
    host: &str,
) -> Result<Vec<u8>> {
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut tls =
        ClientConnection::new(Arc::clone(client), ServerName::try_from(host.to_owned())?)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream)?;
    }
    let leaf = tls
        .peer_certificates()
        .and_then(|chain| chain.first())
        .context("a server shows its certificate")?;
    Ok(leaf.to_vec())
}
