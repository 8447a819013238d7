//! The servers of one process: control plane and edges, from a configuration to the ready line and to an orderly end.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tokio::time::Instant;

use lifecycle::names::Slug;

use crate::config::{Config, Role};
use crate::monitor::Monitor;

/// The name of the control node, in the log and of its nats-server.
pub const NODE: &str = "control-1";
/// How long requests may go on when the process is asked to end.
const GRACE: Duration = Duration::from_secs(5);
/// How long the start may take until every edge of this process has applied the head.
const READY: Duration = Duration::from_secs(120);

/// Runs the roles of a configuration until the process is asked to end.
///
/// # Errors
/// When a part cannot start.
pub async fn run(config: Config, json: bool) -> anyhow::Result<ExitCode> {
    // From here on every way out is orderly, also one that is asked for while things start.
    let mut end = Ending::listen()?;
    fs::DirBuilder::new()
        .recursive(true)
        .create(&config.state)
        .with_context(|| format!("making the state folder {}", config.state.display()))?;
    let state = fs::canonicalize(&config.state)
        .with_context(|| format!("the state folder {}", config.state.display()))?;
    let _lock = lock(&state)?;
    if let Some(why) = crate::commands::restore::unfinished(&state) {
        bail!(why);
    }
    if let Err(error) = keyring::process::harden() {
        tracing::warn!(%error, "the process cannot be kept from being dumped; keys in memory are less safe");
    }
    ensure!(
        config.is(Role::Nats) == config.is(Role::Control),
        "the roles nats and control run in one process for now: name both, or neither"
    );
    let (monitor, metrics) = match monitor(&config, &state).await? {
        Some((monitor, address)) => (Some(monitor), Some(address)),
        None => (None, None),
    };
    let control = match config.is(Role::Control) {
        true => Some(tokio::select! {
            started = control::Control::start(control_config(&config, &state)?) => started.context("starting the control plane")?,
            () = end.asked() => return Ok(ExitCode::SUCCESS),
        }),
        false => None,
    };
    if let (Some(monitor), Some(control)) = (&monitor, &control) {
        monitor.control(Arc::clone(&control.monitor));
    }
    let started = tokio::select! {
        started = edges(&config, &state, control.as_ref()) => started,
        () = end.asked() => {
            if let Some(control) = control { control.stop().await; }
            return Ok(ExitCode::SUCCESS);
        }
    };
    let (edges, error) = match started {
        Ok(edges) => {
            if let Some(monitor) = &monitor {
                let name = |region: &Slug, edge: &edge::Edge| format!("{region}/{}", edge.name());
                monitor.edges(edges.iter().map(|(r, e)| (name(r, e), e.monitor())));
            }
            (edges, None)
        }
        Err(error) => (Vec::new(), Some(error)),
    };
    if error.is_none() {
        announce(&config, &state, control.as_ref(), &edges, metrics, json);
        end.asked().await;
        tracing::info!("ending");
    }
    let deadline = Instant::now() + GRACE;
    for (_, edge) in edges {
        edge.shutdown(deadline).await;
    }
    if let Some(control) = control {
        control.stop().await;
    }
    match error {
        Some(error) => Err(error),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Ctrl-C, SIGTERM and SIGHUP ask the process to end.
struct Ending(
    tokio::signal::unix::Signal,
    tokio::signal::unix::Signal,
    tokio::signal::unix::Signal,
);

impl Ending {
    fn listen() -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let on = |kind| signal(kind).context("listening for signals");
        Ok(Self(
            on(SignalKind::interrupt())?,
            on(SignalKind::terminate())?,
            on(SignalKind::hangup())?,
        ))
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
            _ = self.2.recv() => {}
        }
    }
}

/// One process at a time uses a state folder.
fn lock(state: &Path) -> anyhow::Result<fs::File> {
    let path = state.join("lock");
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => bail!(
            "the state folder {} is in use by another chancery",
            state.display()
        ),
        Err(fs::TryLockError::Error(error)) => Err(error).context("locking the state folder"),
    }
}

fn control_config(config: &Config, state: &Path) -> anyhow::Result<control::Config> {
    let listen = config
        .nats
        .listen
        .unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    ensure!(
        listen.ip().is_loopback(),
        "nats.listen must be a loopback address for now: nats-server is not given TLS yet; use a tunnel between machines"
    );
    let mut regions = config.control.regions.clone();
    for edge in &config.edges {
        if !regions.contains(&edge.region) {
            regions.push(edge.region.clone());
        }
    }
    let mut roots = Vec::new();
    for path in &config.control.trusted_roots {
        roots.extend(crate::files::certificates(path)?);
    }
    Ok(control::Config {
        state: state.to_owned(),
        nats_port: listen.port(),
        nats_executable: config.nats.executable.clone(),
        replicas: 1,
        platform_domain: config.control.platform_domain.clone(),
        root_key: config.control.root_key.clone(),
        operator_creds: config.control.operator_creds.clone(),
        roots,
        rate: control::rate::Rate {
            per_second: f64::from(config.control.commands_per_second),
            burst: f64::from(config.control.command_burst),
        },
        prover: control::prover::Settings {
            dns: control::prover::resolver::Settings {
                resolvers: config.control.dns.resolvers.clone(),
                timeout: Duration::from_millis(config.control.dns.timeout_ms),
                attempts: config.control.dns.attempts,
            },
            grace: config.control.claim_grace_seconds,
        },
        verify_delay: Duration::from_millis(config.control.verify_delay_ms),
        revocation: config.control.revocation.settings()?,
        generation: config.control.generation,
        node: NODE.to_owned(),
        regions,
    })
}

/// Ports that were chosen once stay the same in this state.
fn remembered(state: &Path) -> BTreeMap<String, u16> {
    fs::read(state.join("ports.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default()
}

async fn edges(
    config: &Config,
    state: &Path,
    control: Option<&control::Control>,
) -> anyhow::Result<Vec<(Slug, edge::Edge)>> {
    if !config.is(Role::Edge) {
        return Ok(Vec::new());
    }
    let mut ports = remembered(state);
    let mut edges = Vec::new();
    for one in &config.edges {
        let folder = state
            .join("edges")
            .join(format!("{}.{}", one.region, one.name));
        let mut edge_config = edge::Config::new(&folder, one.region.clone());
        let pick = |what: &str, address: SocketAddr| match (
            address.port(),
            ports.get(&format!("{}.{}.{what}", one.region, one.name)),
        ) {
            (0, Some(port)) => SocketAddr::new(address.ip(), *port),
            _ => address,
        };
        edge_config.https = Some(pick("https", one.https));
        edge_config.http = one.http.map(|address| pick("http", address));
        edge_config.nats = control
            .map(|c| c.nats.clone())
            .or_else(|| config.nats.url.clone());
        edge_config.caches.key_bytes = one.cache_bytes;
        edge_config.extra_roots = {
            let mut roots = Vec::new();
            for path in &config.control.trusted_roots {
                roots.extend(crate::files::certificates(path)?);
            }
            roots
        };
        edge_config.token = match (&one.token, control) {
            (Some(path), _) if path.exists() => Some(
                fs::read_to_string(path)
                    .with_context(|| format!("reading {}", path.display()))?
                    .trim()
                    .to_owned(),
            ),
            // An edge of this process that is enrolled needs none. One whose folder is gone is let in anew.
            (_, Some(control)) if !edge::is_enrolled(&folder) => Some(
                control
                    .edge_token_anew(&one.region, &one.name)
                    .await
                    .with_context(|| {
                        format!("letting the edge {} of {} in", one.name, one.region)
                    })?,
            ),
            _ => None,
        };
        let edge = edge::start(edge_config)
            .await
            .with_context(|| format!("starting the edge {} of {}", one.name, one.region))?;
        for (what, address) in [("https", edge.https()), ("http", edge.http())] {
            if let Some(address) = address {
                ports.insert(
                    format!("{}.{}.{what}", one.region, one.name),
                    address.port(),
                );
            }
        }
        edges.push((one.region.clone(), edge));
    }
    let text = serde_json::to_vec_pretty(&ports)?;
    fs::write(state.join("ports.json"), text).context("writing ports.json")?;
    if let Some(control) = control {
        let head = control.ledger.head().sequence;
        let deadline = Instant::now() + READY;
        for (region, edge) in &edges {
            ensure!(
                edge.wait_applied(head, deadline).await,
                "the edge {} of {region} did not apply the log's head in time: {}",
                edge.name(),
                edge.problems().join("; ")
            );
        }
        // Only when the control plane has heard of them does its `status` say that all is well.
        let heard = || {
            edges
                .iter()
                .all(|(region, _)| control.edges.live(region).applied >= head)
        };
        while !heard() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(edges)
}

/// Where the process can be looked at. A free port that was chosen once stays the same in this state.
async fn monitor(
    config: &Config,
    state: &Path,
) -> anyhow::Result<Option<(Arc<Monitor>, SocketAddr)>> {
    let Some(metrics) = &config.metrics else {
        return Ok(None);
    };
    let mut listen = metrics.listen;
    let path = state.join("metrics.port");
    let free = listen.port() == 0;
    if free
        && let Some(port) = fs::read_to_string(&path)
            .ok()
            .and_then(|text| text.trim().parse().ok())
    {
        listen.set_port(port);
    }
    let expected = [Role::Control, Role::Edge]
        .into_iter()
        .filter(|role| config.is(*role))
        .map(|role| match role {
            Role::Edge => "edge",
            _ => "control",
        })
        .collect();
    let (monitor, address) = crate::monitor::start(listen, state, expected).await?;
    if free {
        fs::write(&path, address.port().to_string())?;
    }
    Ok(Some((monitor, address)))
}

/// The one line that says that everything listens and is up to date.
fn announce(
    config: &Config,
    state: &Path,
    control: Option<&control::Control>,
    edges: &[(Slug, edge::Edge)],
    metrics: Option<SocketAddr>,
    json: bool,
) {
    let mut env = BTreeMap::new();
    if let Some(control) = control {
        env.insert("CHANCERY_SERVER", control.nats.clone());
        env.insert("CHANCERY_CREDS", absolute(&control.operator_creds));
    }
    let listening = |of: fn(&edge::Edge) -> Option<SocketAddr>| -> Vec<Value> {
        edges
            .iter()
            .filter_map(|(region, edge)| {
                Some(json!({"region": region, "addr": of(edge)?.to_string()}))
            })
            .collect()
    };
    let (https, http) = (listening(edge::Edge::https), listening(edge::Edge::http));
    let nats = control
        .map(|c| c.nats.clone())
        .or_else(|| config.nats.url.clone());
    let mut text = String::new();
    if json {
        let line = json!({
            "event": "ready",
            "https": https,
            "http": http,
            "nats": nats,
            "metrics": metrics.map(|m| format!("http://{m}/metrics")),
            "state": state.display().to_string(),
            "env": env,
        });
        text.push_str(&line.to_string());
    } else {
        let all = |of: &[Value]| {
            of.iter()
                .map(|v| {
                    format!(
                        "{} {}",
                        v["region"].as_str().unwrap_or_default(),
                        v["addr"].as_str().unwrap_or_default()
                    )
                })
                .collect::<Vec<_>>()
                .join(", ")
        };
        text.push_str("ready");
        for (what, addresses) in [("https", &https), ("http", &http)] {
            if !addresses.is_empty() {
                text.push_str(&format!("  {what} {}", all(addresses)));
            }
        }
        if let Some(nats) = nats {
            text.push_str(&format!("  nats {nats}"));
        }
        text.push_str(&format!("  state {}", state.display()));
        if !env.is_empty() {
            let exports: Vec<String> = env
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            text.push_str(&format!(
                "\nin another shell:  export {}",
                exports.join(" ")
            ));
        }
    }
    // Whoever started this may have closed the pipe already; that is no reason to end.
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

fn absolute(path: &PathBuf) -> String {
    fs::canonicalize(path)
        .unwrap_or_else(|_| path.clone())
        .display()
        .to_string()
}
