//! What operators and their machines look at: one HTTP address for each process.
//!
//! * `/metrics`: numbers in the Prometheus text format
//! * `/health/live`: 200 while the process answers
//! * `/health/ready`: 200 while every role of the process may be relied upon, else 503; a JSON document says why
//!
//! It is plain HTTP for the inside of a network. It changes nothing, says nothing of tenants, and is bounded: connections,
//! the size of what is asked, and the time that any of it takes. Whoever asks often gets what was read a moment ago.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};

/// Connections at once. More wait in the system's queue.
const CONNECTIONS: usize = 32;
/// How long the head of a request may take, also the first after a connection was made.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// How long a connection may last. Prometheus connects anew.
const CONNECTION_LIMIT: Duration = Duration::from_secs(300);
/// Bytes of a request's head, and fields in it.
const HEAD_BYTES: usize = 16 * 1024;
const HEAD_FIELDS: usize = 64;
/// How long what was rendered counts as fresh.
const FRESH: Duration = Duration::from_millis(500);
/// How often recorded durations are put into their buckets while nobody looks.
const UPKEEP: Duration = Duration::from_secs(5);

/// Seconds: 1 ms is a look-up, 50 ms a commit's target, 1 s a command's worst, and beyond is trouble.
const SECONDS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0,
];
/// Events of a batch.
const EVENTS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// What runs in this process, as soon as it does.
#[derive(Default)]
struct Roles {
    control: OnceLock<Arc<control::monitor::Monitor>>,
    edges: OnceLock<Vec<(String, edge::Monitor)>>,
    /// The roles that are to run, so that a process that starts is not ready yet.
    expected: Vec<&'static str>,
}

/// The address that is looked at.
pub struct Monitor {
    handle: PrometheusHandle,
    roles: Roles,
    state: PathBuf,
    rendered: Mutex<Option<(Instant, Bytes)>>,
}

/// Begins to count and to answer on `listen`. From then on the process is alive, and ready once its roles are told.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn start(
    listen: SocketAddr,
    state: &Path,
    expected: Vec<&'static str>,
) -> anyhow::Result<(Arc<Monitor>, SocketAddr)> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Suffix("_events".to_owned()), &EVENTS)
        })
        .and_then(PrometheusBuilder::install_recorder)
        .context("beginning to count")?;
    describe(&expected);
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("listening on {listen} for whoever looks at metrics"))?;
    let address = listener.local_addr()?;
    let monitor = Arc::new(Monitor {
        handle,
        roles: Roles {
            expected,
            ..Roles::default()
        },
        state: state.to_owned(),
        rendered: Mutex::default(),
    });
    tokio::spawn(accept(listener, Arc::clone(&monitor)));
    tokio::spawn(upkeep(monitor.handle.clone()));
    Ok((monitor, address))
}

fn describe(expected: &[&'static str]) {
    describe_gauge!(
        "chancery_build_info",
        Unit::Count,
        "1; the labels tell which build this is."
    );
    gauge!("chancery_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1);
    describe_gauge!(
        "chancery_role_ready",
        Unit::Count,
        "1 while the role may be relied upon, as /health/ready says; for edges while all of this process may."
    );
    describe_gauge!(
        "chancery_state_size_bytes",
        Unit::Bytes,
        "The size of the file system that the state folder is on."
    );
    describe_gauge!(
        "chancery_state_available_bytes",
        Unit::Bytes,
        "What is free on it for this process."
    );
    describe_counter!(
        "process_cpu_seconds_total",
        Unit::Seconds,
        "Processor time of this process, without its nats-server child."
    );
    describe_gauge!(
        "process_resident_memory_bytes",
        Unit::Bytes,
        "Resident memory of this process."
    );
    describe_gauge!(
        "process_virtual_memory_bytes",
        Unit::Bytes,
        "Virtual memory of this process."
    );
    describe_gauge!(
        "process_open_fds",
        Unit::Count,
        "Open file descriptors of this process."
    );
    describe_gauge!(
        "process_max_fds",
        Unit::Count,
        "File descriptors that this process may have open."
    );
    describe_gauge!("process_threads", Unit::Count, "Threads of this process.");
    describe_gauge!(
        "process_start_time_seconds",
        Unit::Seconds,
        "When this process started, in seconds since 1970."
    );
    if expected.contains(&"control") {
        control::monitor::describe();
    }
    if expected.contains(&"edge") {
        edge::describe();
    }
}

impl Monitor {
    /// The control plane runs.
    pub fn control(&self, monitor: Arc<control::monitor::Monitor>) {
        let _ = self.roles.control.set(monitor);
    }

    /// The edges run.
    pub fn edges(&self, edges: impl Iterator<Item = (String, edge::Monitor)>) {
        let _ = self.roles.edges.set(edges.collect());
    }

    /// Whether the process is ready, and the document that says so.
    fn health(&self) -> (bool, Value) {
        let mut roles = Vec::new();
        let starting =
            |role: &str| json!({"role": role, "ready": false, "why": ["it is starting"]});
        for role in &self.roles.expected {
            match (*role, self.roles.control.get(), self.roles.edges.get()) {
                ("control", Some(control), _) => {
                    let health = control.health();
                    roles
                        .push(json!({"role": "control", "ready": health.ready, "why": health.why}));
                }
                ("edge", _, Some(edges)) => {
                    for (name, edge) in edges {
                        let health = edge.health();
                        roles.push(json!({
                            "role": "edge", "edge": name, "ready": health.ready, "stale": health.stale, "why": health.why,
                        }));
                    }
                }
                (role, _, _) => roles.push(starting(role)),
            }
        }
        let ready = roles.iter().all(|role| role["ready"] == true);
        (ready, json!({"ready": ready, "roles": roles}))
    }

    /// The text of `/metrics`. Blocks.
    fn render(&self) -> String {
        if let Some(control) = self.roles.control.get() {
            control.sample();
        }
        for (_, edge) in self.roles.edges.get().into_iter().flatten() {
            edge.sample();
        }
        let (_, health) = self.health();
        for role in &self.roles.expected {
            let ready = health["roles"].as_array().is_some_and(|all| {
                all.iter()
                    .all(|of| of["role"] != *role || of["ready"] == true)
            });
            gauge!("chancery_role_ready", "role" => *role).set(f64::from(u8::from(ready)));
        }
        if let Ok(disk) = rustix::fs::statvfs(&self.state) {
            gauge!("chancery_state_size_bytes").set((disk.f_blocks * disk.f_frsize) as f64);
            gauge!("chancery_state_available_bytes").set((disk.f_bavail * disk.f_frsize) as f64);
        }
        process::sample();
        self.handle.render()
    }

    /// The same, but not more often than it can change to anybody's use.
    async fn text(self: &Arc<Self>) -> Result<Bytes, tokio::task::JoinError> {
        let mut rendered = self.rendered.lock().await;
        if let Some((when, text)) = &*rendered
            && when.elapsed() < FRESH
        {
            return Ok(text.clone());
        }
        let this = Arc::clone(self);
        let text = Bytes::from(tokio::task::spawn_blocking(move || this.render()).await?);
        *rendered = Some((Instant::now(), text.clone()));
        Ok(text)
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let head = request.method() == Method::HEAD;
        let (status, kind, body) = if !head && request.method() != Method::GET {
            let text = Bytes::from_static(b"only GET and HEAD\n");
            (StatusCode::METHOD_NOT_ALLOWED, "text/plain", text)
        } else {
            match request.uri().path() {
                "/metrics" => match self.text().await {
                    Ok(text) => (
                        StatusCode::OK,
                        "text/plain; version=0.0.4; charset=utf-8",
                        text,
                    ),
                    Err(error) => {
                        tracing::error!(%error, "the metrics could not be read");
                        let text = Bytes::from_static(b"the metrics could not be read\n");
                        (StatusCode::INTERNAL_SERVER_ERROR, "text/plain", text)
                    }
                },
                "/health/live" => (
                    StatusCode::OK,
                    "application/json",
                    Bytes::from_static(b"{\"live\":true}\n"),
                ),
                "/health/ready" => {
                    let (ready, document) = self.health();
                    let status = match ready {
                        true => StatusCode::OK,
                        false => StatusCode::SERVICE_UNAVAILABLE,
                    };
                    let text = Bytes::from(format!("{document}\n"));
                    (status, "application/json", text)
                }
                _ => (
                    StatusCode::NOT_FOUND,
                    "text/plain",
                    Bytes::from_static(b"/metrics, /health/live, /health/ready\n"),
                ),
            }
        };
        // hyper leaves the body of an answer to HEAD away and keeps its length.
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

async fn accept(listener: TcpListener, monitor: Arc<Monitor>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let monitor = Arc::clone(&monitor);
                tokio::spawn(async move {
                    let _place = place;
                    // How a connection ends concerns nobody else.
                    let _ = tokio::time::timeout(CONNECTION_LIMIT, serve(stream, monitor)).await;
                });
            }
            // No descriptors, or a connection that was gone before it was there.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve(stream: TcpStream, monitor: Arc<Monitor>) -> Result<(), hyper::Error> {
    let service = hyper::service::service_fn(move |request| {
        let monitor = Arc::clone(&monitor);
        async move { Ok::<_, Infallible>(monitor.answer(request).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEAD_FIELDS)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

/// Durations wait in memory until somebody looks; without this they would grow while nobody does.
async fn upkeep(handle: PrometheusHandle) {
    loop {
        tokio::time::sleep(UPKEEP).await;
        let handle = handle.clone();
        let _ = tokio::task::spawn_blocking(move || handle.run_upkeep()).await;
    }
}

/// What the kernel says of this process (proc(5)).
mod process {
    use super::{counter, gauge};

    /// Sets what can be read; what cannot keeps its former value.
    pub(super) fn sample() {
        let text = |name: &str| std::fs::read_to_string(format!("/proc/{name}")).ok();
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        // The second field is the name in parentheses, which may hold anything.
        let stat = text("self/stat");
        let fields: Vec<&str> = stat
            .as_deref()
            .and_then(|stat| stat.rsplit_once(')'))
            .map(|(_, rest)| rest.split_whitespace().collect())
            .unwrap_or_default();
        // Fields by their number in proc(5); the first two are gone.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        if let (Some(user), Some(system)) = (field(14), field(15)) {
            // Counters of this library are whole numbers.
            counter!("process_cpu_seconds_total").absolute((user + system) / ticks);
        }
        if let Some(threads) = field(20) {
            gauge!("process_threads").set(threads as f64);
        }
        if let Some(bytes) = field(23) {
            gauge!("process_virtual_memory_bytes").set(bytes as f64);
        }
        if let Some(pages) = field(24) {
            let bytes = pages * rustix::param::page_size() as u64;
            gauge!("process_resident_memory_bytes").set(bytes as f64);
        }
        let boot = text("stat").and_then(|stat| {
            let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
            line.trim().parse::<u64>().ok()
        });
        if let (Some(boot), Some(start)) = (boot, field(22)) {
            gauge!("process_start_time_seconds").set(boot as f64 + start as f64 / ticks as f64);
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            // One of them is the folder that is being read.
            gauge!("process_open_fds").set(open.count().saturating_sub(1) as f64);
        }
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        gauge!("process_max_fds").set(limit.current.map_or(f64::INFINITY, |limit| limit as f64));
    }
}
