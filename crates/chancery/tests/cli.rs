//! The built binary as scripts see it: exit status, what goes to stdout and what to stderr. Nothing here needs a server;
//! what does is in the tests of the whole path.

use std::io::{Read, pipe};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use bus::identity::{Identity, Rights};

/// A command that sees neither the variables nor the context of whoever runs the tests.
fn chancery(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chancery"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CHANCERY_") {
            command.env_remove(name);
        }
    }
    command
        .env("HOME", home)
        .env("XDG_CONFIG_HOME", home.join("config"))
        .stdin(Stdio::null());
    command
}

fn run(home: &Path, words: &[&str]) -> Output {
    chancery(home)
        .args(words)
        .output()
        .expect("the binary runs")
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("text")
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("text")
}

fn home() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// The credentials of a user whom no server knows.
fn creds(home: &Path) -> String {
    let credentials = Identity::generate()
        .project_user("acme", "alice", &Rights::All, 1, u64::MAX / 2)
        .expect("minted");
    let path = home.join("alice.creds");
    std::fs::write(&path, credentials.creds().as_bytes()).expect("written");
    path.to_str().expect("utf-8").to_owned()
}

fn pem(label: &str, der: &[u8]) -> String {
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        data_encoding::BASE64.encode(der)
    )
}

#[test]
fn help_is_an_answer_and_wrong_usage_is_not() {
    let home = home();
    for words in [
        &["--help"][..],
        &["certificate", "--help"],
        &["certificate", "add", "--help"],
        &["--version"],
    ] {
        let output = run(home.path(), words);
        assert_eq!(output.status.code(), Some(0), "{words:?}");
        assert!(
            stderr(&output).is_empty() && !stdout(&output).is_empty(),
            "{words:?}"
        );
    }
    for words in [
        &[][..],
        &["reign"],
        &["certificate"],
        &["certificate", "issue", "x"],
        &["domain", "add"],
        &["domain", "list", "--colour"],
        &["--json", "project", "create", "Not A Slug"],
        &["host", "a.example", "--at", "2026-13-01T00:00:00Z"],
        &["status", "--id", "not-a-uuid"],
        &["serve"],
        &["serve", "--config", "/nowhere/c.toml"],
        &["serve", "--config", "/nowhere/c.toml", "--role", "king"],
    ] {
        let output = run(home.path(), words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(
            !stderr(&output).is_empty() || words.contains(&"--json"),
            "{words:?} says nothing"
        );
    }
    let output = run(home.path(), &["certificate", "issue", "x"]);
    assert!(
        stderr(&output).contains("Usage: chancery certificate"),
        "{}",
        stderr(&output)
    );
}

/// A program reads one document from stdout, whatever was wrong with its words; people's help stays theirs.
#[test]
fn wrong_usage_is_a_document_for_programs() {
    let home = home();
    for (words, told) in [
        (&["--json"][..], "subcommand"),
        (&["reign", "--json"], "reign"),
        (&["--json", "certificate"], "missing"),
        (&["certificate", "delete", "x", "--json"], "--confirm"),
        (&["certificate", "list", "--colour", "--json"], "--colour"),
        (&["--json", "project", "create", "Not A Slug"], "Not A Slug"),
        (&["--json", "status", "--id", "not-a-uuid"], "not-a-uuid"),
        (&["--json", "status", "--", "--version"], "--version"),
        (&["up", "--json", "--state"], "--state"),
    ] {
        let output = run(home.path(), words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        let document: serde_json::Value = serde_json::from_str(stdout(&output))
            .unwrap_or_else(|e| panic!("{words:?}: {e}: {}", stdout(&output)));
        assert_eq!(stdout(&output).lines().count(), 1, "{words:?}");
        assert_eq!(document["type"], "about:blank", "{words:?}");
        assert_eq!(document["title"], "Wrong usage", "{words:?}");
        let detail = document["detail"].as_str().expect("a detail");
        assert!(
            detail.contains(told) && !detail.contains("Usage:") && !detail.starts_with("error"),
            "{words:?}: {detail}"
        );
        let said = stderr(&output);
        assert_eq!(said, format!("error: {detail}\n"), "{words:?}");
    }
    // Behind the end of the flags it is a word like any other.
    let output = run(home.path(), &["status", "--", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stdout(&output).is_empty() && stderr(&output).contains("Usage:"));
    for words in [&["--json", "--help"][..], &["--version", "--json"]] {
        let output = run(home.path(), words);
        assert_eq!(output.status.code(), Some(0), "{words:?}");
        assert!(stderr(&output).is_empty() && !stdout(&output).starts_with('{'));
    }
}

#[test]
fn who_has_no_credentials_is_told_what_to_do() {
    let home = home();
    let output = run(home.path(), &["certificate", "list"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stdout(&output).is_empty());
    assert!(
        stderr(&output).starts_with("error: no credentials: give --creds FILE"),
        "{}",
        stderr(&output)
    );

    let output = run(home.path(), &["certificate", "list", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    let document: serde_json::Value = serde_json::from_str(stdout(&output)).expect("one document");
    assert_eq!(document["title"], "Wrong usage");
    assert_eq!(stdout(&output).lines().count(), 1);
}

#[test]
fn an_unreachable_server_is_could_not_run() {
    let home = home();
    let creds = creds(home.path());
    // A port that was free a moment ago; nobody listens there.
    let port = TcpListener::bind("127.0.0.1:0")
        .expect("bound")
        .local_addr()
        .expect("an address")
        .port();
    let server = format!("nats://127.0.0.1:{port}");
    let output = run(
        home.path(),
        &[
            "--server",
            &server,
            "--creds",
            &creds,
            "certificate",
            "list",
        ],
    );
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains(&format!("cannot connect to {server}")),
        "{}",
        stderr(&output)
    );

    let output = chancery(home.path())
        .args(["certificate", "list"])
        .env("CHANCERY_SERVER", &server)
        .env("CHANCERY_CREDS", &creds)
        .output()
        .expect("the binary runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains(&server),
        "the variables are used: {}",
        stderr(&output)
    );

    let folder = home.path().join("config").join("chancery");
    std::fs::create_dir_all(&folder).expect("made");
    std::fs::write(
        folder.join("context.toml"),
        format!("server = '{server}'\ncreds = '{creds}'\n"),
    )
    .expect("written");
    let output = run(home.path(), &["certificate", "list"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains(&server),
        "the context is used: {}",
        stderr(&output)
    );
}

/// What the files themselves show is refused before anybody is asked: there is no server here.
#[test]
fn a_bad_file_is_refused_with_its_code() {
    let home = home();
    let file = |name: &str, text: &str| {
        let path = home.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("utf-8").to_owned()
    };
    let chain = file("chain.pem", &pem("CERTIFICATE", b"x"));
    let made = Command::new("openssl")
        .args(["genpkey", "-algorithm", "EC", "-aes256", "-pass", "pass:x"])
        .args(["-pkeyopt", "ec_paramgen_curve:P-256"])
        .output()
        .expect("openssl runs");
    let encrypted = file("encrypted.pem", stdout(&made));
    let damaged = file("damaged.pem", &pem("ENCRYPTED PRIVATE KEY", b"x"));
    let broken = file("broken.pem", &pem("PRIVATE KEY", b"x"));
    let text = file("text.pem", "hello");
    for (chain, key, code) in [
        (&chain, &encrypted, "key_encrypted"),
        (&chain, &damaged, "pem_malformed"),
        (&chain, &broken, "pem_malformed"),
        (&chain, &text, "not_pem"),
        (&text, &encrypted, "not_pem"),
        (&chain, &chain, "key_missing"),
    ] {
        let words = [
            "certificate",
            "add",
            "site",
            "--chain",
            chain,
            "--key",
            key,
            "--region",
            "local",
        ];
        let output = run(home.path(), &words);
        assert_eq!(output.status.code(), Some(1), "{code}");
        assert!(stdout(&output).is_empty());
        let told = stderr(&output);
        assert!(told.starts_with(&format!("error[{code}]: ")), "{told}");
        assert!(
            told.contains("\nhint: ") && told.contains(&format!("docs/errors/{code}")),
            "{told}"
        );

        let output = chancery(home.path())
            .args(words)
            .arg("--json")
            .output()
            .expect("the binary runs");
        assert_eq!(output.status.code(), Some(1), "{code}");
        assert!(stderr(&output).is_empty());
        let document: serde_json::Value =
            serde_json::from_str(stdout(&output)).expect("one document");
        assert_eq!(document["code"], code);
        assert_eq!(document["type"], format!("urn:chancery:error:{code}"));
        assert_eq!(stdout(&output).lines().count(), 1);
    }
    let words = [
        "certificate",
        "add",
        "site",
        "--chain",
        "/nowhere/chain.pem",
        "--region",
        "local",
    ];
    assert_eq!(run(home.path(), &words).status.code(), Some(2));
    let words = ["seal", "--key", &encrypted, "--project", "acme"];
    assert_eq!(run(home.path(), &words).status.code(), Some(1));
}

#[test]
fn an_existing_credentials_file_stays() {
    let home = home();
    let creds = creds(home.path());
    let before = std::fs::read(&creds).expect("read");
    let output = run(
        home.path(),
        &[
            "access",
            "create",
            "bob",
            "--project",
            "acme",
            "--out",
            &creds,
            "--creds",
            &creds,
        ],
    );
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("never overwritten"),
        "{}",
        stderr(&output)
    );
    assert_eq!(std::fs::read(&creds).expect("read"), before);
    // Without a server nothing is created, and nothing is left behind.
    let other = home.path().join("bob.creds");
    let words = [
        "--server",
        "nats://127.0.0.1:1",
        "--creds",
        &creds,
        "access",
        "create",
        "bob",
        "--project",
        "acme",
    ];
    let output = chancery(home.path())
        .args(words)
        .arg("--out")
        .arg(&other)
        .output()
        .expect("the binary runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(!other.exists());
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let home = home();
    for words in [&["--help"][..], &["--json", "certificate", "list"]] {
        let (reader, writer) = pipe().expect("a pipe");
        drop(reader);
        let output = chancery(home.path())
            .args(words)
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .and_then(Child::wait_with_output)
            .expect("the binary runs");
        assert!(
            output.status.code().is_some(),
            "{words:?} ended by a signal"
        );
        assert!(
            !stderr(&output).contains("panicked"),
            "{words:?}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn a_wrong_log_filter_is_told() {
    let home = home();
    for (name, value) in [
        ("CHANCERY_LOG", "=="),
        ("CHANCERY_LOG_FORMAT", "poem"),
        ("CHANCERY_PROJECT", "No Slug"),
    ] {
        let output = chancery(home.path())
            .arg("status")
            .env(name, value)
            .output()
            .expect("the binary runs");
        assert_eq!(output.status.code(), Some(2), "{name}");
        assert!(stderr(&output).contains(name), "{}", stderr(&output));
    }
}

/// Ends with the test, by its own process id.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn ctrl_c_ends_it_at_once() {
    let home = home();
    let creds = creds(home.path());
    // A server that takes the connection and never greets.
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let server = format!("nats://{}", listener.local_addr().expect("an address"));
    let child = chancery(home.path())
        .args(["--server", &server, "--creds", &creds, "events", "tail"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut child = Running(child);
    let connection = listener.accept().expect("it connects");
    let pid = rustix::process::Pid::from_child(&child.0);
    let pressed = Instant::now();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("sent");
    let status = child.0.wait().expect("it ends");
    assert_eq!(status.code(), Some(130));
    assert!(
        pressed.elapsed() < Duration::from_secs(3),
        "it took {:?}",
        pressed.elapsed()
    );
    let mut told = String::new();
    child
        .0
        .stderr
        .take()
        .expect("piped")
        .read_to_string(&mut told)
        .expect("text");
    assert!(!told.contains("panicked"), "{told}");
    drop(connection);
}
