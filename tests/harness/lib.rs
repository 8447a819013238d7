//! What the integration tests stand on: the built binary, real servers and real clients, each in its own folder and on
//! its own port of 127.0.0.1, each ended by its own process id when it is dropped.
//!
//! Waits are level-triggered ([`eventually`]): they ask for a state until it holds or a deadline passes, so a slow machine
//! makes a test slow and not wrong.

mod authority;
mod ca;
mod chancery;
mod dns;
mod origin;
mod seaweedfs;
mod shelf;
mod spy;
mod tls;

pub use authority::{Authority, Points, Responder};
pub use ca::{Ca, Key, Leaf, LeafSpec};
pub use chancery::{Chancery, Cli, Outcome, Serve, Up, binary};
pub use dns::Dns;
pub use origin::{Origin, Seen};
pub use seaweedfs::SeaweedFs;
pub use shelf::Shelf;
pub use spy::Spy;
pub use tls::{Curl, Handshake, curl, handshake, openssl};

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a state may take to come about where nothing says otherwise. Generous: it is only used up by failures.
pub const SOON: Duration = Duration::from_secs(30);

/// The root of the checkout.
#[must_use]
pub fn checkout() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests
        .parent()
        .expect("the tests are a folder of the checkout")
        .to_owned()
}

/// A tool that `scripts/setup` installed.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn tool(name: &str) -> PathBuf {
    let path = checkout().join(".tools/bin").join(name);
    assert!(
        path.exists(),
        "{} is not there; run scripts/setup first (scripts/test does it by itself)",
        path.display()
    );
    path
}

/// Asks until the answer is `Ok`, at most for `limit`.
///
/// # Panics
/// When it never was, with the last answer.
pub fn eventually<T, E: std::fmt::Display>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(5);
    loop {
        match ask() {
            Ok(value) => return value,
            Err(last) if Instant::now() >= deadline => {
                panic!("{what}: not within {limit:?}; at last: {last}")
            }
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Asks again and again for the whole of `span` and demands `Ok` each time.
///
/// # Panics
/// At the first other answer.
pub fn throughout<E: std::fmt::Display>(
    what: &str,
    span: Duration,
    mut ask: impl FnMut() -> Result<(), E>,
) {
    let end = Instant::now() + span;
    let mut asked = 0_u32;
    while Instant::now() < end || asked < 3 {
        if let Err(error) = ask() {
            panic!("{what}: held {asked} times, then: {error}");
        }
        asked += 1;
    }
}

/// A port of 127.0.0.1 that was free a moment ago.
#[must_use]
pub fn free_port() -> u16 {
    free_address().port()
}

/// An address of 127.0.0.1 that was free a moment ago.
#[must_use]
pub fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("127.0.0.1 has a free port")
}

/// SHA-256 in lower-case hex.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER
        .encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}

/// Sends a signal to a child of ours. It may have ended already, which is as good.
fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Kills a process that one of ours started, if `argument` is among its arguments: a process id alone may be another's by now.
///
/// # Panics
/// When it is not that process.
pub fn kill_process_of(pid: &str, argument: &Path) {
    let pid: i32 = pid.trim().parse().expect("a process id");
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).expect("it runs");
    let wanted = argument.canonicalize().expect("it is there");
    let ours = arguments
        .split(|&byte| byte == 0)
        .any(|given| given == wanted.as_os_str().as_encoded_bytes());
    assert!(ours, "process {pid} is not ours");
    kill_process(Pid::from_raw(pid).expect("not zero"), Signal::KILL).expect("it can be killed");
}

/// Waits for a child of ours, at most for `limit`.
fn ended(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            _ => return None,
        }
    }
}

/// The last lines of a file, for a failure's message.
fn tail_of(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
