//! The nats-server of this machine as a child process.
//!
//! A single node runs its own server, so its version, its durability settings and its life are ours to answer for:
//! an old server has unsafe compare-and-swap, one that does not sync each write has lost whole streams in a power
//! failure, and two servers on one store folder both acknowledge the same sequence. The first two are refused
//! here and in [`crate::streams`]; the last is excluded by a lock on the folder and by ending, before each start, the
//! child that a crash may have left behind. That child is recognised by its process id together with its start time,
//! or by our own configuration path among its arguments, and never by its name.

use std::{
    env,
    fs::{self, File, TryLockError},
    io::{self, BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command as StdCommand, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};

use crate::templates::{Placement, render_nats_conf};

/// The oldest server that is accepted. Older ones lack atomic batches or have an unsafe compare-and-swap.
pub const MINIMUM_VERSION: Version = Version(2, 15, 1);

/// The name of the variable that names the server's executable; it wins over every other place.
pub const EXECUTABLE_VARIABLE: &str = "CHANCERY_NATS_SERVER";

/// How long a new server may take until it accepts connections. Recovering a large store takes seconds.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How long a server may take to end after it was asked to, before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// What went wrong with the server process.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No executable was found in any of the places that are searched.
    #[error(
        "nats-server was not found: install version {MINIMUM_VERSION} or later, put it on PATH, or set {EXECUTABLE_VARIABLE}"
    )]
    NotFound,
    /// The executable is older than [`MINIMUM_VERSION`].
    #[error("nats-server at {path} is version {found}; {MINIMUM_VERSION} or later is needed")]
    TooOld {
        /// The executable that was asked.
        path: PathBuf,
        /// What it says it is.
        found: Version,
    },
    /// The executable did not answer `--version` in the form that nats-server uses.
    #[error("{path} does not say its version like a nats-server")]
    UnknownVersion {
        /// The executable that was asked.
        path: PathBuf,
    },
    /// Another process of ours uses the same state folder.
    #[error("the state folder {0} is in use by another process")]
    Locked(PathBuf),
    /// A child that a crash left behind could not be ended.
    #[error("the nats-server left behind by an earlier run (process {0}) could not be ended")]
    OrphanStays(u32),
    /// The server ended, or did not accept, within the time limit.
    #[error("nats-server did not start: {reason}; its log is {log}")]
    NotStarted {
        /// What the server said last, or how it ended.
        reason: String,
        /// Where it writes its log.
        log: PathBuf,
    },
    /// A file or a process could not be handled.
    #[error("{what}")]
    Io {
        /// What was attempted.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}

/// A server's version: major, minor, patch. A pre-release suffix is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// Reads `2.15.1`, `v2.15.1` or `2.15.1-beta.1`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Version> {
        let text = text.trim().trim_start_matches('v');
        let text = text.split(['-', '+']).next()?;
        let mut numbers = text.split('.').map(|number| number.parse::<u32>().ok());
        let version = Version(numbers.next()??, numbers.next()??, numbers.next()??);
        numbers.next().is_none().then_some(version)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Finds a nats-server that is new enough: [`EXECUTABLE_VARIABLE`], then `PATH`, then `.tools/bin/nats-server` in the
/// working directory and in each directory above the running executable.
///
/// An executable that is named by the variable must do; one on `PATH` that is too old gives way to `.tools`.
///
/// # Errors
/// [`Error::NotFound`], or why the best one that was found cannot be used.
pub fn find() -> Result<PathBuf, Error> {
    const NAME: &str = "nats-server";
    if let Some(path) = env::var_os(EXECUTABLE_VARIABLE).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        check_version(&path)?;
        return Ok(path);
    }
    let mut places: Vec<PathBuf> = Vec::new();
    if let Some(path) = env::var_os("PATH") {
        places.extend(env::split_paths(&path).map(|folder| folder.join(NAME)));
    }
    let tools = Path::new(".tools/bin").join(NAME);
    if let Ok(folder) = env::current_dir() {
        places.extend(folder.ancestors().map(|folder| folder.join(&tools)));
    }
    if let Ok(executable) = env::current_exe() {
        places.extend(
            executable
                .ancestors()
                .skip(1)
                .map(|folder| folder.join(&tools)),
        );
    }
    let mut refused = None;
    for place in places {
        if !place.is_file() {
            continue;
        }
        match check_version(&place) {
            Ok(_) => return Ok(place),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or(Error::NotFound))
}

/// Asks an executable for its version and refuses one below [`MINIMUM_VERSION`].
///
/// # Errors
/// When it cannot be run, does not answer like a nats-server, or is too old.
pub fn check_version(executable: &Path) -> Result<Version, Error> {
    let output = StdCommand::new(executable)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(io_error(format!("running {}", executable.display())))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text
        .split_once("nats-server:")
        .and_then(|(_, version)| Version::parse(version))
        .ok_or_else(|| Error::UnknownVersion {
            path: executable.to_owned(),
        })?;
    if found < MINIMUM_VERSION {
        return Err(Error::TooOld {
            path: executable.to_owned(),
            found,
        });
    }
    Ok(found)
}

/// What a server needs to know to start.
#[derive(Debug, Clone)]
pub struct Config {
    /// The folder that holds its configuration, store, account JWTs, log and process file; made when missing.
    pub folder: PathBuf,
    /// The port on 127.0.0.1; 0 takes a free one at the first start and keeps it in the folder.
    pub port: u16,
    /// The name of this server; unique in a cluster.
    pub name: String,
    /// The text of `identity.conf`: [`crate::identity::Identity::server_conf`].
    pub identity_conf: String,
}

/// What the process file holds: enough to recognise a child that outlived us.
#[derive(Debug, Serialize, Deserialize, PartialEq)]
struct ProcessMark {
    pid: u32,
    /// Field 22 of `/proc/<pid>/stat`, in clock ticks since boot: a process id that was used again has another.
    start_ticks: u64,
    boot_id: String,
}

impl ProcessMark {
    fn of(pid: u32) -> Option<ProcessMark> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the program's name in parentheses and may itself hold spaces and parentheses.
        let after_name = &stat[stat.rfind(')')? + 1..];
        let mut fields = after_name.split_whitespace();
        // A zombie has ended; only its parent has not noticed yet.
        if fields.next()? == "Z" {
            return None;
        }
        let start_ticks = fields.nth(18)?.parse().ok()?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .ok()?
            .trim()
            .to_owned();
        Some(ProcessMark {
            pid,
            start_ticks,
            boot_id,
        })
    }

    fn still_runs(&self) -> bool {
        ProcessMark::of(self.pid).as_ref() == Some(self)
    }
}

/// A running nats-server. Dropping it kills the process; [`Server::stop`] ends it in order.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: SocketAddr,
    mark_path: PathBuf,
    log: PathBuf,
    /// Held for as long as the server lives: two servers must never share a store.
    _lock: File,
}

impl Server {
    /// Ends an orphan of an earlier run, writes the configuration and starts the server; returns once it accepts.
    ///
    /// # Errors
    /// See [`Error`]. Nothing is left running when this fails.
    pub async fn start(executable: &Path, config: &Config) -> Result<Server, Error> {
        let folder = &config.folder;
        fs::create_dir_all(folder).map_err(io_error(format!("making {}", folder.display())))?;
        let folder = folder
            .canonicalize()
            .map_err(io_error(format!("resolving {}", folder.display())))?;
        let lock = lock(&folder)?;
        let mark_path = folder.join("process.json");
        let conf_path = folder.join("nats.conf");
        let pid_path = folder.join("nats.pid");
        end_orphan(&mark_path, &pid_path, &conf_path).await?;

        let port = choose_port(&folder, config.port)?;
        let log = folder.join("nats.log");
        let placement = Placement {
            listen: format!("127.0.0.1:{port}"),
            server_name: config.name.clone(),
            store: folder.join("jetstream").display().to_string(),
            log: Some(log.display().to_string()),
            pid: Some(pid_path.display().to_string()),
        };
        write_private(&folder.join("identity.conf"), &config.identity_conf)?;
        write_private(&conf_path, &render_nats_conf(&placement))?;

        let complaints_path = folder.join("nats.stderr");
        let complaints =
            File::create(&complaints_path).map_err(io_error("making the server's error file"))?;
        let child = Command::new(executable)
            .arg("-c")
            .arg(&conf_path)
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(complaints)
            .kill_on_drop(true)
            .spawn()
            .map_err(io_error(format!("starting {}", executable.display())))?;
        let mut server = Server {
            child,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            mark_path,
            log,
            _lock: lock,
        };
        server.remember()?;
        server
            .wait_until_it_accepts(&config.name, &complaints_path)
            .await?;
        Ok(server)
    }

    /// Where the server accepts connections.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The server's URL for clients.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// The server's process id, until it has ended.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// The server's log; the server itself starts a new one at 16 MiB and keeps three.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Waits until the process ends by itself, which is always a fault.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub async fn ended(&mut self) -> io::Result<std::process::ExitStatus> {
        self.child.wait().await
    }

    /// Ends the server: an orderly shutdown without lame-duck delay, and after ten seconds a kill.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub async fn stop(mut self) -> Result<(), Error> {
        if let Some(pid) = self.child.id().and_then(pid) {
            // It may have ended meanwhile; the wait below finds that out.
            let _ = kill_process(pid, Signal::TERM);
        }
        match tokio::time::timeout(STOP_LIMIT, self.child.wait()).await {
            Ok(ended) => {
                ended.map_err(io_error("waiting for nats-server"))?;
            }
            Err(_) => self
                .child
                .kill()
                .await
                .map_err(io_error("killing nats-server"))?,
        }
        self.forget();
        Ok(())
    }

    /// Ends the server as a crash would: SIGKILL, nothing flushed by it.
    ///
    /// # Errors
    /// When the process cannot be killed.
    pub async fn kill(mut self) -> Result<(), Error> {
        self.child
            .kill()
            .await
            .map_err(io_error("killing nats-server"))?;
        self.forget();
        Ok(())
    }

    fn remember(&self) -> Result<(), Error> {
        let Some(mark) = self.child.id().and_then(ProcessMark::of) else {
            return Ok(()); // It has ended already; the wait that follows says why.
        };
        let text = serde_json::to_string(&mark).expect("a process mark is plain numbers and text");
        write_private(&self.mark_path, &text)
    }

    fn forget(&self) {
        let _ = fs::remove_file(&self.mark_path);
    }

    async fn wait_until_it_accepts(&mut self, name: &str, complaints: &Path) -> Result<(), Error> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Some(status) = self
                .child
                .try_wait()
                .map_err(io_error("waiting for nats-server"))?
            {
                self.forget();
                let reason = last_line(complaints)
                    .or_else(|| last_line(&self.log))
                    .unwrap_or_else(|| format!("it ended with {status}"));
                return Err(Error::NotStarted {
                    reason,
                    log: self.log.clone(),
                });
            }
            let address = self.address;
            let expected = name.to_owned();
            let greets = tokio::task::spawn_blocking(move || greets(address, &expected))
                .await
                .unwrap_or(false);
            if greets {
                return Ok(());
            }
            if Instant::now() > deadline {
                let reason = format!("it did not accept within {} seconds", START_LIMIT.as_secs());
                return Err(Error::NotStarted {
                    reason,
                    log: self.log.clone(),
                });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Whether the server there greets as the one that we started, of a version that we accept.
fn greets(address: SocketAddr, name: &str) -> bool {
    #[derive(Deserialize)]
    struct Info {
        server_name: String,
        version: String,
        #[serde(default)]
        jetstream: bool,
    }
    let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(500)) else {
        return false;
    };
    if stream
        .set_read_timeout(Some(Duration::from_secs(2)))
        .is_err()
    {
        return false;
    }
    let mut line = String::new();
    if BufReader::new(io::Read::take(stream, 64 * 1024))
        .read_line(&mut line)
        .is_err()
    {
        return false;
    }
    line.strip_prefix("INFO ")
        .and_then(|info| serde_json::from_str::<Info>(info).ok())
        .is_some_and(|info| {
            info.server_name == name
                && info.jetstream
                && Version::parse(&info.version).is_some_and(|version| version >= MINIMUM_VERSION)
        })
}

fn lock(folder: &Path) -> Result<File, Error> {
    let path = folder.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(io_error(format!("opening {}", path.display())))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked(folder.to_owned())),
        Err(TryLockError::Error(source)) => Err(Error::Io {
            what: format!("locking {}", path.display()),
            source,
        }),
    }
}

/// Ends the server that a run which crashed may have left behind in this folder, so that the folder can be removed.
///
/// # Errors
/// [`Error::Locked`] when it is in use, [`Error::OrphanStays`], or that a file cannot be handled.
pub async fn end_left_behind(folder: &Path) -> Result<(), Error> {
    let Ok(folder) = folder.canonicalize() else {
        return Ok(());
    };
    let _lock = lock(&folder)?;
    let file = |name: &str| folder.join(name);
    end_orphan(&file("process.json"), &file("nats.pid"), &file("nats.conf")).await
}

/// Ends the child of a run that crashed. The lock is held, so whatever is found is not in use by a living parent.
async fn end_orphan(mark_path: &Path, pid_path: &Path, conf_path: &Path) -> Result<(), Error> {
    let remembered = fs::read_to_string(mark_path)
        .ok()
        .and_then(|text| serde_json::from_str::<ProcessMark>(&text).ok())
        .filter(ProcessMark::still_runs);
    // A crash between the start of a child and the writing of its mark leaves only the server's own process file.
    let orphan = remembered.or_else(|| {
        let pid = fs::read_to_string(pid_path)
            .ok()?
            .trim()
            .parse::<u32>()
            .ok()?;
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let ours = conf_path.as_os_str().as_encoded_bytes();
        arguments
            .split(|&byte| byte == 0)
            .any(|argument| argument == ours)
            .then(|| ProcessMark::of(pid))?
    });
    let Some(orphan) = orphan else {
        return Ok(());
    };
    tracing::warn!(
        pid = orphan.pid,
        "ending the nats-server that an earlier run left behind"
    );
    for (signal, limit) in [(Signal::TERM, STOP_LIMIT), (Signal::KILL, STOP_LIMIT)] {
        if let Some(pid) = pid(orphan.pid) {
            let _ = kill_process(pid, signal);
        }
        let deadline = Instant::now() + limit;
        while orphan.still_runs() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if !orphan.still_runs() {
            return Ok(());
        }
    }
    Err(Error::OrphanStays(orphan.pid))
}

/// The port asked for, or the one kept in the folder, or a free one that is kept from now on.
fn choose_port(folder: &Path, asked: u16) -> Result<u16, Error> {
    if asked != 0 {
        return Ok(asked);
    }
    let path = folder.join("port");
    let kept = fs::read_to_string(&path)
        .ok()
        .and_then(|text| text.trim().parse::<u16>().ok());
    if let Some(port) = kept.filter(|&port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
    {
        return Ok(port);
    }
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(io_error("finding a free port"))?
        .port();
    write_private(&path, &port.to_string())?;
    Ok(port)
}

/// Writes a file that only its owner can read, whole or not at all.
fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let new = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(io_error(format!("writing {}", path.display())))
}

fn last_line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .map(|line| line.trim().chars().take(300).collect())
}

fn pid(id: u32) -> Option<Pid> {
    i32::try_from(id).ok().and_then(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert_eq!(Version::parse("v2.15.1\n"), Some(Version(2, 15, 1)));
        assert_eq!(Version::parse("2.16.0-beta.2"), Some(Version(2, 16, 0)));
        assert!(Version::parse("2.9.10").expect("three numbers") < MINIMUM_VERSION);
        assert!(Version::parse("2.100.0").expect("three numbers") > MINIMUM_VERSION);
        for text in ["", "2.15", "2.15.1.4", "x.y.z"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_process_is_known_by_its_start_and_not_by_its_number_alone() {
        let own = ProcessMark::of(std::process::id()).expect("this process runs");
        assert!(own.still_runs());
        let earlier = ProcessMark {
            start_ticks: own.start_ticks - 1,
            ..ProcessMark::of(own.pid).expect("it runs")
        };
        assert!(!earlier.still_runs());
    }

    #[tokio::test]
    async fn an_old_server_is_refused_by_name_of_both_versions() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("nats-server");
        fs::write(&path, "#!/bin/sh\necho 'nats-server: v2.9.10'\n").expect("a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
        let message = check_version(&path).expect_err("too old").to_string();
        assert!(
            message.contains("2.9.10") && message.contains("2.15.1"),
            "{message}"
        );
    }
}
