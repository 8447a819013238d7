//! The built binary: as a server that is ready, and as a command that has ended.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::{ended, signal, tail_of};

/// How long a server may take until it is ready. Other tests run beside it.
const READY_LIMIT: Duration = Duration::from_secs(90);
/// How long a server may take to end in order.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// The binary that the build left beside the tests.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn binary() -> PathBuf {
    let tests = std::env::current_exe().expect("this process has an executable");
    let folder = tests
        .parent()
        .and_then(Path::parent)
        .expect("tests lie in target/<profile>/deps");
    let binary = folder.join("chancery");
    assert!(
        binary.is_file(),
        "{} is not there: `cargo test` of one package builds no other package's binary; run `cargo build -p chancery` first \
         (scripts/test does it by itself)",
        binary.display()
    );
    binary
}

/// A command that knows nothing of the caller's own set-up.
fn command() -> Command {
    let mut command = Command::new(binary());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CHANCERY_") && name != "CHANCERY_NATS_SERVER" {
            command.env_remove(name);
        }
    }
    command
        .env("XDG_CONFIG_HOME", "/nonexistent")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

/// What a command said when it ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its exit status; -1 when a signal ended it.
    pub status: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// The words that it was run with.
    pub asked: String,
}

impl Outcome {
    /// Demands that it succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.status == 0, "it failed: {self:#?}");
        self
    }

    /// Demands exit status 1 and gives the code of the problem.
    ///
    /// # Panics
    /// When it is another status, or there is no problem document.
    #[track_caller]
    #[must_use]
    pub fn refused(&self) -> String {
        assert!(self.status == 1, "it was not refused: {self:#?}");
        self.json()["code"]
            .as_str()
            .unwrap_or_else(|| panic!("no problem document: {self:#?}"))
            .to_owned()
    }

    /// The one JSON document on standard output.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(self.stdout.trim())
            .unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    /// The JSON documents on standard output, one a line.
    ///
    /// # Panics
    /// When a line is none.
    #[track_caller]
    #[must_use]
    pub fn lines(&self) -> Vec<Value> {
        let read =
            |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {self:#?}"));
        self.stdout
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(read)
            .collect()
    }
}

/// The command line as one user.
#[derive(Clone, Debug)]
pub struct Cli {
    environment: BTreeMap<String, String>,
}

impl Cli {
    /// With these variables.
    #[must_use]
    pub fn new(environment: BTreeMap<String, String>) -> Self {
        Self { environment }
    }

    /// The same user in another project.
    #[must_use]
    pub fn project(&self, project: &str) -> Self {
        self.with("CHANCERY_PROJECT", project)
    }

    /// Another user of the same server, by a credentials file.
    #[must_use]
    pub fn user(&self, creds: &Path) -> Self {
        let mut other = self.with("CHANCERY_CREDS", &creds.display().to_string());
        other.environment.remove("CHANCERY_NKEY");
        other.environment.remove("CHANCERY_PROJECT");
        other
    }

    fn with(&self, name: &str, value: &str) -> Self {
        let mut other = self.clone();
        other.environment.insert(name.to_owned(), value.to_owned());
        other
    }

    /// The variables.
    #[must_use]
    pub fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }

    /// Runs `chancery --json` with these words.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn run<S: AsRef<OsStr> + std::fmt::Debug>(&self, words: &[S]) -> Outcome {
        self.output(command().arg("--json"), words)
    }

    /// Runs it as for a person, without `--json`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn say<S: AsRef<OsStr> + std::fmt::Debug>(&self, words: &[S]) -> Outcome {
        self.output(&mut command(), words)
    }

    fn output<S: AsRef<OsStr> + std::fmt::Debug>(
        &self,
        command: &mut Command,
        words: &[S],
    ) -> Outcome {
        let output = command
            .args(words)
            .envs(&self.environment)
            .output()
            .expect("the binary runs");
        Outcome {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            asked: format!("{words:?}"),
        }
    }
}

/// How `chancery up` shall be started.
#[derive(Debug)]
pub struct Up {
    folder: PathBuf,
    regions: Vec<String>,
    flags: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Up {
    /// In this folder, which holds the state and the logs.
    #[must_use]
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            regions: Vec::new(),
            flags: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// With these regions instead of `local`.
    #[must_use]
    pub fn regions(mut self, regions: &[&str]) -> Self {
        self.regions = regions.iter().map(|&r| r.to_owned()).collect();
        self
    }

    /// With a further flag.
    #[must_use]
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// With a variable.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready.
    #[must_use]
    pub fn start(self) -> Chancery {
        let mut command = command();
        command
            .args(["up", "--json", "--state"])
            .arg(self.folder.join("state"));
        for region in &self.regions {
            command.args(["--region", region]);
        }
        command
            .args(&self.flags)
            .envs(self.environment.iter().map(|(n, v)| (n, v)));
        let mut process = Process::start(command, &self.folder, "up");
        let ready = process.ready();
        Chancery {
            process,
            ready,
            folder: self.folder,
            owned: None,
        }
    }
}

/// A running `chancery up`. Dropped, it is ended, and so is what it started.
#[derive(Debug)]
pub struct Chancery {
    process: Process,
    /// The ready line.
    pub ready: Value,
    folder: PathBuf,
    owned: Option<TempDir>,
}

impl Chancery {
    /// One region, in a folder of its own.
    ///
    /// # Panics
    /// When it does not become ready.
    #[must_use]
    pub fn up() -> Self {
        Self::with_regions(&[])
    }

    /// With these regions, in a folder of its own.
    ///
    /// # Panics
    /// When it does not become ready.
    #[must_use]
    pub fn with_regions(regions: &[&str]) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("chancery-test-")
            .tempdir()
            .expect("a folder");
        let mut chancery = Up::in_folder(folder.path()).regions(regions).start();
        chancery.owned = Some(folder);
        chancery
    }

    /// The folder that holds everything: `state`, and the output of the process.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The state folder.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// The operator's command line.
    #[must_use]
    pub fn operator(&self) -> Cli {
        Cli::new(environment(&self.ready))
    }

    /// Where the first region's edge listens for HTTPS.
    #[must_use]
    pub fn https(&self) -> SocketAddr {
        self.address("https", 0)
    }

    /// Where a region's edge listens for HTTPS.
    ///
    /// # Panics
    /// When there is no such region.
    #[must_use]
    pub fn https_of(&self, region: &str) -> SocketAddr {
        let listeners = self.ready["https"]
            .as_array()
            .expect("the ready line lists them");
        let place = listeners.iter().position(|l| l["region"] == region);
        self.address(
            "https",
            place.unwrap_or_else(|| panic!("no region {region} in {}", self.ready)),
        )
    }

    /// Where the first region's edge listens for plain HTTP.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        self.address("http", 0)
    }

    fn address(&self, kind: &str, place: usize) -> SocketAddr {
        let address = self.ready[kind][place]["addr"].as_str();
        address
            .and_then(|a| a.parse().ok())
            .unwrap_or_else(|| panic!("no {kind} address in {}", self.ready))
    }

    /// The NATS server's URL.
    ///
    /// # Panics
    /// When the ready line does not tell.
    #[must_use]
    pub fn nats(&self) -> String {
        self.ready["nats"]
            .as_str()
            .expect("the ready line tells")
            .to_owned()
    }

    /// Makes a project and a user of it.
    ///
    /// # Panics
    /// When it is refused.
    #[must_use]
    pub fn project(&self, project: &str, user: &str) -> Cli {
        let operator = self.operator();
        let _ = operator.run(&["project", "create", project]).ok();
        let creds = self.folder.join(format!("{project}-{user}.creds"));
        let file = creds.display().to_string();
        let _ = operator
            .project(project)
            .run(&["access", "create", user, "--out", &file])
            .ok();
        operator.user(&creds)
    }

    /// Lets a project have so many certificates, in all and of one kind in one region.
    ///
    /// # Panics
    /// When it is refused.
    pub fn quota(&self, project: &str, number: u32) {
        let number = number.to_string();
        let _ = self
            .operator()
            .run(&[
                "project",
                "quota",
                project,
                "--certificates",
                &number,
                "--per-region",
                &number,
            ])
            .ok();
    }

    /// What the process and its children say; for messages.
    #[must_use]
    pub fn log(&self) -> String {
        tail_of(&self.process.stderr)
    }

    /// Asks it to end, and waits. The folder goes with what is given back.
    ///
    /// # Panics
    /// When it does not end, or does not end well.
    pub fn stop(mut self) -> Option<TempDir> {
        self.process.stop();
        self.owned.take()
    }

    /// Kills it as a crash would, and only it: its children find out by themselves.
    pub fn kill(mut self) -> Option<TempDir> {
        self.process.kill();
        self.owned.take()
    }
}

fn environment(ready: &Value) -> BTreeMap<String, String> {
    let variables = ready["env"]
        .as_object()
        .expect("the ready line has an environment");
    variables
        .iter()
        .map(|(n, v)| (n.clone(), v.as_str().unwrap_or_default().to_owned()))
        .collect()
}

/// A running `chancery serve`.
#[derive(Debug)]
pub struct Serve {
    process: Process,
    /// The ready line.
    pub ready: Value,
}

impl Serve {
    /// Starts the roles of a configuration file and waits until they are ready. Output goes to the folder of the file.
    ///
    /// # Panics
    /// When it does not become ready.
    #[must_use]
    pub fn start(config: &Path) -> Self {
        let mut started = Self::start_unready(config);
        started.ready = started.process.ready();
        started
    }

    /// Starts the roles of a configuration file without waiting.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start_unready(config: &Path) -> Self {
        let folder = config.parent().expect("a file has a folder");
        let name = config
            .file_stem()
            .map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let mut command = command();
        command.args(["serve", "--json", "--config"]).arg(config);
        Self {
            process: Process::start(command, folder, &name),
            ready: Value::Null,
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// The operator's command line, if this process has the control role.
    #[must_use]
    pub fn operator(&self) -> Cli {
        Cli::new(environment(&self.ready))
    }

    /// What it said last.
    #[must_use]
    pub fn log(&self) -> String {
        tail_of(&self.process.stderr)
    }

    /// Asks it to end, and waits.
    ///
    /// # Panics
    /// When it does not end, or does not end well.
    pub fn stop(mut self) {
        self.process.stop();
    }

    /// Kills it as a crash would.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

/// A server process and its output.
#[derive(Debug)]
struct Process {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    fn start(mut command: Command, folder: &Path, name: &str) -> Self {
        static RUN: AtomicU32 = AtomicU32::new(0);
        let run = RUN.fetch_add(1, Ordering::Relaxed);
        let file = |kind: &str| folder.join(format!("{name}.{run}.{kind}"));
        let (stdout, stderr) = (file("out"), file("err"));
        let child = command
            .stdout(File::create(&stdout).expect("the folder can be written"))
            .stderr(File::create(&stderr).expect("the folder can be written"))
            .spawn()
            .expect("the binary runs");
        Self {
            child,
            stdout,
            stderr,
        }
    }

    fn ready(&mut self) -> Value {
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            let text = fs::read_to_string(&self.stdout).unwrap_or_default();
            let ready = text
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .find(|document| document["event"] == "ready");
            if let Some(ready) = ready {
                return ready;
            }
            let gone = self.child.try_wait().ok().flatten();
            if let Some(status) = gone {
                panic!(
                    "it ended with {status} before it was ready:\n{text}\n{}",
                    tail_of(&self.stderr)
                );
            }
            assert!(
                Instant::now() < deadline,
                "not ready within {READY_LIMIT:?}:\n{text}\n{}",
                tail_of(&self.stderr)
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn stop(&mut self) {
        let children = children(self.child.id());
        signal(&self.child, Signal::TERM);
        let status = ended(&mut self.child, STOP_LIMIT);
        let log = tail_of(&self.stderr);
        let status =
            status.unwrap_or_else(|| panic!("it did not end within {STOP_LIMIT:?}:\n{log}"));
        assert!(status.success(), "it ended with {status}:\n{log}");
        let left: Vec<_> = children.iter().filter(|child| child.still_runs()).collect();
        assert!(left.is_empty(), "it left {left:?} running");
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let children = children(self.child.id());
        signal(&self.child, Signal::TERM);
        if ended(&mut self.child, STOP_LIMIT).is_none() {
            self.kill();
        }
        for child in children.iter().filter(|child| child.still_runs()) {
            child.kill();
        }
    }
}

/// A process that ours started, recognised by its start time too.
#[derive(Debug, PartialEq, Eq)]
struct Descendant {
    pid: i32,
    start: String,
}

impl Descendant {
    fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
        if fields.next()? == "Z" {
            return None;
        }
        Some(Self {
            pid,
            start: fields.nth(18)?.to_owned(),
        })
    }

    fn still_runs(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    fn kill(&self) {
        if let Some(pid) = Pid::from_raw(self.pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

fn children(parent: u32) -> Vec<Descendant> {
    let Ok(threads) = fs::read_dir(format!("/proc/{parent}/task")) else {
        return Vec::new();
    };
    let lists = threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let text = lists.collect::<Vec<_>>().join(" ");
    text.split_whitespace()
        .filter_map(|pid| Descendant::of(pid.parse().ok()?))
        .collect()
}
