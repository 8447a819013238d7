//! The command line against a real `chancery up`: what people and programs do with it, and what they are told.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take that is waited for.
const LIMIT: Duration = Duration::from_secs(120);
const HOST: &str = "www.shop.example.com";

/// A child that ends with the test, in order if it can, by its own process id.
struct Running(Child);

impl Running {
    fn signal(&self, signal: rustix::process::Signal) {
        let _ = rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), signal);
    }

    /// The exit status, within the limit.
    fn end(&mut self) -> Option<i32> {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.0.try_wait() {
                return status.code();
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.signal(rustix::process::Signal::TERM);
            if self.end().is_none() {
                let _ = self.0.kill();
                let _ = self.0.wait();
            }
        }
    }
}

/// The lines of a child's stdout, so that waiting for one has a deadline.
fn lines(stdout: ChildStdout) -> Receiver<String> {
    let (send, receive) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                break;
            }
        }
    });
    receive
}

/// One instance, and the way to talk to it as its operator.
struct Instance {
    home: tempfile::TempDir,
    environment: HashMap<String, String>,
    up: Running,
}

/// Starts a server and reads its ready line.
fn serve(home: &Path, log: &str, words: &[&str]) -> (Running, Value) {
    let file = std::fs::File::create(home.join(log)).expect("a log");
    let child = chancery(home)
        .args(words)
        .arg("--json")
        .stdout(Stdio::piped())
        .stderr(file)
        .spawn();
    let mut server = Running(child.expect("the binary runs"));
    let lines = lines(server.0.stdout.take().expect("piped"));
    match lines.recv_timeout(LIMIT) {
        Ok(line) => {
            let ready: Value = serde_json::from_str(&line).expect("the ready line is JSON");
            assert_eq!(ready["event"], "ready");
            (server, ready)
        }
        Err(_) => {
            let log = std::fs::read_to_string(home.join(log)).unwrap_or_default();
            panic!("{words:?}: no ready line; the log says:\n{log}");
        }
    }
}

impl Instance {
    /// `chancery up` with these words more.
    fn up(words: &[&str]) -> Self {
        let home = tempfile::tempdir().expect("a folder");
        let state = home.path().join("state");
        let state = ["up", "--state", state.to_str().expect("utf-8")];
        Self::of(home, &[&state, words].concat())
    }

    fn start() -> Self {
        Self::up(&[])
    }

    fn of(home: tempfile::TempDir, words: &[&str]) -> Self {
        let (up, ready) = serve(home.path(), "up.log", words);
        let environment = serde_json::from_value(ready["env"].clone()).expect("variables");
        Self {
            home,
            environment,
            up,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).expect("written");
        self.path(name).to_str().expect("utf-8").to_owned()
    }

    /// A command of the operator.
    fn command(&self) -> Command {
        let mut command = chancery(self.home.path());
        command.envs(&self.environment);
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command()
            .args(words)
            .output()
            .expect("the binary runs")
    }

    /// The documents that a command prints with `--json`, and its exit status.
    fn json(&self, words: &[&str]) -> (Option<i32>, Vec<Value>) {
        let output = self
            .command()
            .args(words)
            .arg("--json")
            .output()
            .expect("the binary runs");
        (output.status.code(), documents(&output))
    }

    /// The one document of a command that is to succeed.
    fn done(&self, words: &[&str]) -> Value {
        let (status, mut documents) = self.json(words);
        assert_eq!(status, Some(0), "{words:?}: {documents:?}");
        assert_eq!(documents.len(), 1, "{words:?}: {documents:?}");
        documents.remove(0)
    }

    /// The code with which a command is refused.
    fn refused(&self, words: &[&str]) -> String {
        let (status, documents) = self.json(words);
        assert_eq!(status, Some(1), "{words:?}: {documents:?}");
        documents[0]["code"].as_str().expect("a code").to_owned()
    }

    /// What people read; the command is to succeed.
    fn read(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("text")
    }
}

fn chancery(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chancery"));
    for (name, _) in std::env::vars_os() {
        // Where the nats-server is stays known; which instance to talk to does not.
        if name.to_string_lossy().starts_with("CHANCERY_") && name != "CHANCERY_NATS_SERVER" {
            command.env_remove(name);
        }
    }
    command
        .env("HOME", home)
        .env("XDG_CONFIG_HOME", home.join("config"))
        .stdin(Stdio::null());
    command
}

fn documents(output: &Output) -> Vec<Value> {
    let text = std::str::from_utf8(&output.stdout).expect("text");
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}")))
        .collect()
}

/// A self-signed certificate and its key, as PEM.
fn certificate(host: &str) -> (String, String) {
    let made = rcgen::generate_simple_self_signed([host.to_owned()]).expect("made");
    (made.cert.pem(), made.signing_key.serialize_pem())
}

#[test]
fn a_certificate_comes_lives_and_goes() {
    let instance = Instance::start();
    let run = |words: &[&str]| instance.read(words);

    instance.done(&["project", "create", "acme"]);
    let (_, projects) = instance.json(&["project", "list"]);
    let names: Vec<_> = projects
        .iter()
        .filter_map(|p| p["project"].as_str())
        .collect();
    assert!(
        names.contains(&"acme") && names.contains(&"platform"),
        "{names:?}"
    );
    assert!(run(&["project", "show", "acme"]).contains("active"));

    // A user of the project, whose credentials say which project it is.
    let creds = instance.path("alice.creds");
    let creds = creds.to_str().expect("utf-8");
    instance.done(&[
        "access",
        "create",
        "alice",
        "--project",
        "acme",
        "--out",
        creds,
    ]);
    assert_eq!(
        std::fs::metadata(creds)
            .expect("there")
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
    assert!(run(&["access", "list", "--project", "acme"]).contains("alice"));
    let alice = |words: &[&'static str]| [&["--creds", creds], words].concat();

    let origin = [
        "resource",
        "create",
        "media",
        "--kind",
        "bucket",
        "--region",
        "local",
        "--origin",
        "http://127.0.0.1:9/m",
    ];
    instance.done(&[&origin[..], &["--project", "acme"]].concat());
    assert!(run(&alice(&["resource", "list"])).contains("media"));
    instance.done(&alice(&["resource", "set", "media", "--keep-host"]));
    assert_eq!(
        instance.done(&alice(&["resource", "show", "media"]))["keep_host"],
        true
    );
    instance.done(&[
        "domain",
        "add",
        HOST,
        "--resource",
        "media",
        "--project",
        "acme",
    ]);
    let domain = instance.done(&alice(&["domain", "show", HOST]));
    assert_eq!(
        domain["status"], "proven",
        "what an operator adds is proven: {domain}"
    );
    // What the project's own user adds waits for its proof.
    instance.done(&alice(&["domain", "add", "cdn.shop.example.com"]));
    assert_eq!(
        instance.done(&alice(&["domain", "show", "cdn.shop.example.com"]))["status"],
        "pending"
    );
    instance.done(&[
        "domain",
        "prove",
        "cdn.shop.example.com",
        "--project",
        "acme",
    ]);
    instance.done(&alice(&[
        "domain",
        "attach",
        "cdn.shop.example.com",
        "--resource",
        "media",
    ]));
    assert!(run(&alice(&["domain", "list"])).contains("media (local)"));

    // The key may stand in the chain's file.
    let (chain, key) = certificate(HOST);
    let both = instance.write("both.pem", &format!("{key}{chain}"));
    let add = [
        "--creds",
        creds,
        "certificate",
        "add",
        "site",
        "--chain",
        &both,
        "--region",
        "local",
        "--wait",
    ];
    let (status, told) = instance.json(&add);
    assert_eq!(status, Some(0), "{told:?}");
    assert_eq!(told[0]["outcome"], "accepted");
    assert_eq!(told[1]["status"], "ready");
    instance.done(&alice(&[
        "certificate",
        "wait",
        "site",
        "--status",
        "active",
        "--timeout",
        "60s",
    ]));
    let shown = instance.done(&alice(&["certificate", "show", "site"]));
    assert_eq!(shown["served_everywhere"], true, "{shown}");
    assert!(run(&alice(&["certificate", "show", "site"])).contains("everywhere"));
    assert!(run(&alice(&["certificate", "list"])).contains("site"));
    assert_eq!(
        instance.refused(&[&add[..9], &[]].concat()),
        "duplicate_name"
    );

    let host = instance.done(&alice(&["host", HOST]));
    assert_eq!(
        (&host["host"], &host["region"]),
        (&HOST.into(), &"local".into())
    );
    assert_eq!(host["active"]["certificate"], "site");
    assert!(run(&alice(&["host", HOST])).contains("site version 1"));

    // A replacement is the next version; one that was made from an older view is not taken.
    let (chain, key) = certificate(HOST);
    let (chain, key) = (
        instance.write("chain.pem", &chain),
        instance.write("key.pem", &key),
    );
    let revision = shown["revision"].to_string();
    let replace = [
        "--creds",
        creds,
        "certificate",
        "replace",
        "site",
        "--chain",
        &chain,
        "--key",
        &key,
        "--expect",
        &revision,
    ];
    instance.done(&replace);
    assert_eq!(instance.refused(&replace), "conflict");
    instance.done(&alice(&[
        "certificate",
        "wait",
        "site",
        "--status",
        "active",
    ]));
    assert_eq!(
        instance.done(&alice(&["certificate", "show", "site"]))["versions"]
            .as_array()
            .map(Vec::len),
        Some(2)
    );

    instance.done(&alice(&["domain", "bind", HOST, "site"]));
    assert_eq!(instance.done(&alice(&["host", HOST]))["mode"], "bound");
    instance.done(&alice(&["domain", "unbind", HOST]));
    instance.done(&alice(&["domain", "https", HOST, "off"]));
    assert!(instance.done(&alice(&["host", HOST]))["active"].is_null());
    instance.done(&alice(&["domain", "https", HOST, "auto"]));

    assert_eq!(
        instance.refused(&alice(&[
            "certificate",
            "delete",
            "site",
            "--confirm",
            "sit"
        ])),
        "confirmation_mismatch"
    );
    assert_eq!(
        instance.refused(&alice(&[
            "certificate",
            "delete",
            "site",
            "--confirm",
            "site"
        ])),
        "last_usable"
    );
    instance.done(&alice(&[
        "certificate",
        "delete",
        "site",
        "--confirm",
        "site",
        "--force",
    ]));
    instance.done(&alice(&[
        "certificate",
        "wait",
        "site",
        "--status",
        "deleted",
    ]));
    assert_eq!(
        instance.refused(&alice(&[
            "certificate",
            "wait",
            "site",
            "--status",
            "ready"
        ])),
        "not_found"
    );
    instance.done(&alice(&["domain", "detach", HOST]));
    instance.done(&alice(&["domain", "release", HOST]));
    assert_eq!(
        instance.refused(&alice(&["domain", "show", HOST])),
        "not_found"
    );

    // The past stays as it was: just before the deletion the certificate was active.
    let (_, events) = instance.json(&["events", "replay"]);
    let deleted = events
        .iter()
        .find(|e| e["type"] == "dev.chancery.certificate.deleted.v1")
        .expect("it was deleted");
    let before = events
        .iter()
        .rev()
        .skip_while(|e| e["sequence"] != deleted["sequence"])
        .skip(1)
        .find(|e| e["time"].as_str() < deleted["time"].as_str())
        .expect("something happened before");
    let then = instance.done(&[
        "host",
        HOST,
        "--at",
        before["time"].as_str().expect("a time"),
    ]);
    assert_eq!(then["active"]["certificate"], "site", "{then}");
    assert!(["reported", "intended"].contains(&then["evidence"].as_str().expect("evidence")));
}

#[test]
fn the_log_is_shown_and_proven() {
    let mut instance = Instance::start();

    // A tail hears what is committed from now on, and a replay gives the same bytes.
    let tail = instance
        .command()
        .args(["events", "tail", "--from", "1", "--json"])
        .stdout(Stdio::piped())
        .spawn();
    let mut tail = Running(tail.expect("the binary runs"));
    let heard = lines(tail.0.stdout.take().expect("piped"));
    for project in ["one", "two-2", "three"] {
        instance.done(&["project", "create", project]);
    }
    let mut tailed = Vec::new();
    while tailed
        .iter()
        .filter(|line: &&String| line.contains("project.created"))
        .count()
        < 4
    {
        match heard.recv_timeout(LIMIT) {
            Ok(line) => tailed.push(line),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                panic!("heard only {tailed:#?}")
            }
        }
    }
    let replayed = instance.read(&["events", "replay", "--json"]);
    let replayed: Vec<_> = replayed.lines().collect();
    assert_eq!(tailed, replayed[..tailed.len()]);
    tail.signal(rustix::process::Signal::INT);
    assert_eq!(tail.end(), Some(130));

    // Anybody can check the chain with nothing but the lines.
    let mut hash = ledger::Hash::ZERO;
    for (line, sequence) in replayed.iter().zip(1..) {
        let position = wire::envelope::Position::of(line.as_bytes()).expect("an event");
        assert_eq!((position.sequence, position.prevhash), (sequence, hash));
        hash = ledger::leaf_hash(line.as_bytes());
    }
    let part = instance.read(&["events", "replay", "--from", "2", "--to", "3", "--json"]);
    assert_eq!(part.lines().collect::<Vec<_>>(), replayed[1..3]);
    let of_one = instance.read(&["events", "replay", "--project", "one", "--json"]);
    assert!(
        of_one
            .lines()
            .all(|line| line.contains(r#""project":"one""#)),
        "{of_one}"
    );

    let report = instance.done(&["audit", "verify"]);
    assert_eq!(report["problem_count"], 0, "{report}");
    assert!(report["events"].as_u64() >= Some(replayed.len() as u64));
    assert!(
        instance
            .read(&["audit", "verify"])
            .contains("the log is whole")
    );
    assert_eq!(instance.done(&["audit", "rebuild"])["identical"], true);
    assert_eq!(
        instance.done(&["status"])["problems"],
        serde_json::json!([])
    );
    assert!(instance.read(&["status"]).contains("nothing is wrong"));

    // It ends in order when asked to.
    instance.up.signal(rustix::process::Signal::TERM);
    assert_eq!(instance.up.end(), Some(0));
    let output = instance.run(&["project", "list"]);
    assert_eq!(output.status.code(), Some(2), "nobody is there any more");
}

#[test]
fn commands_are_safe_to_repeat_and_rights_are_kept() {
    let instance = Instance::start();
    let id = "0190a5b0-0000-7000-8000-00000000000a";
    let first = instance.done(&["project", "create", "acme", "--id", id]);
    assert_eq!(first["id"], id);
    assert_eq!(
        instance.done(&["--id", id, "project", "create", "acme"]),
        first,
        "the same id, the same outcome"
    );
    assert_eq!(
        instance.refused(&["project", "create", "other", "--id", id]),
        "conflict"
    );

    let creds = instance.path("reader.creds");
    let creds = creds.to_str().expect("utf-8");
    let create = [
        "access",
        "create",
        "reader",
        "--project",
        "acme",
        "--out",
        creds,
        "--right",
        "query.*",
    ];
    instance.done(&create);
    let output = instance.run(&create);
    assert_eq!(output.status.code(), Some(2), "an existing file stays");
    assert_eq!(
        instance.json(&["--creds", creds, "certificate", "list"]),
        (Some(0), Vec::new())
    );

    // What the credentials do not allow is told at once and not after a time-out.
    let begun = Instant::now();
    for words in [
        &["project", "create", "mine"][..],
        &["project", "list"],
        &["certificate", "list", "--project", "platform"],
        &["domain", "add", "a.example.com"],
        &["status"],
        &["audit", "verify"],
    ] {
        assert_eq!(
            instance.refused(&[&["--creds", creds], words].concat()),
            "unauthorized",
            "{words:?}"
        );
    }
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "it took {:?}",
        begun.elapsed()
    );

    // Who has no right to hear events can wait all the same.
    let begun = Instant::now();
    let words = [
        "--creds",
        creds,
        "certificate",
        "wait",
        "none",
        "--status",
        "deleted",
        "--timeout",
        "5s",
    ];
    instance.done(&words);
    assert!(begun.elapsed() < Duration::from_secs(5));

    let (_, key) = certificate("a.example.com");
    let key = instance.write("key.pem", &key);
    let sealed = instance.done(&["seal", "--key", &key, "--project", "acme"]);
    for field in ["kid", "enc", "ct"] {
        assert!(sealed[field].is_string(), "{sealed}");
    }

    instance.done(&["region", "create", "eu-1"]);
    instance.done(&[
        "region", "country", "europe", "--region", "eu-1", "--region", "local",
    ]);
    let shown = instance.read(&["region", "list"]);
    assert!(
        shown.contains("eu-1") && shown.contains("europe"),
        "{shown}"
    );
    assert_eq!(instance.done(&["region", "show", "eu-1"])["edges"], 0);
    assert_eq!(instance.refused(&["region", "show", "eu-9"]), "not_found");
    let token = instance.path("edge.token");
    instance.done(&[
        "edge",
        "enrol",
        "eu-1",
        "edge-1",
        "--out",
        token.to_str().expect("utf-8"),
    ]);
    assert_eq!(
        std::fs::metadata(&token)
            .expect("there")
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
    assert!(instance.read(&["edge", "list"]).contains("local"));
    // A region without an edge is something that is wrong.
    let (status, told) = instance.json(&["status"]);
    assert_eq!(status, Some(1));
    assert!(told[0]["problems"].to_string().contains("eu-1"), "{told:?}");

    // In vain: nothing makes this certificate expire within a second.
    let (chain, key) = certificate("a.example.com");
    let both = instance.write("both.pem", &format!("{chain}{key}"));
    instance.done(&[
        "certificate",
        "add",
        "site",
        "--project",
        "acme",
        "--chain",
        &both,
        "--region",
        "local",
    ]);
    let words = [
        "certificate",
        "wait",
        "site",
        "--project",
        "acme",
        "--status",
        "expired",
        "--timeout",
        "1s",
    ];
    assert_eq!(instance.run(&words).status.code(), Some(3));

    instance.done(&["access", "revoke", "reader", "--project", "acme"]);
    assert_eq!(
        instance.refused(&["--creds", creds, "certificate", "list"]),
        "unauthorized"
    );
    instance.done(&["project", "suspend", "acme"]);
    assert_eq!(
        instance.done(&["project", "show", "acme"])["status"],
        "suspended"
    );
    instance.done(&["project", "resume", "acme"]);
    instance.done(&["project", "create", "empty"]);
    assert_eq!(
        instance.refused(&["project", "delete", "empty", "--confirm", "full"]),
        "confirmation_mismatch"
    );
    instance.done(&["project", "delete", "empty", "--confirm", "empty"]);

    let output = instance.run(&["certificate", "show", "nothing", "--project", "acme"]);
    let mut told = String::new();
    (&output.stderr[..])
        .read_to_string(&mut told)
        .expect("text");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        told.starts_with("error[not_found]: ") && told.contains("docs/errors/not_found"),
        "{told}"
    );
}

/// `rate_limited` passes: the same command is sent again when the answer says so, and people notice only that it takes
/// longer. Without that, the second of these would be refused.
#[test]
fn who_is_told_to_wait_waits_and_asks_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("config.toml");
    let text = "state = 'unused'\n[control]\ncommands_per_second = 4\ncommand_burst = 1\n\
                [[edge]]\nregion = 'local'\nname = 'local-1'\nhttps = '127.0.0.1:0'\n";
    std::fs::write(&config, text).expect("written");
    let instance = Instance::up(&["--config", config.to_str().expect("utf-8")]);
    instance.done(&["project", "create", "acme"]);
    let creds = instance.path("alice.creds");
    let creds = creds.to_str().expect("utf-8");
    instance.done(&[
        "access",
        "create",
        "alice",
        "--project",
        "acme",
        "--out",
        creds,
    ]);
    let begun = Instant::now();
    for host in [
        "a.example.com",
        "b.example.com",
        "c.example.com",
        "d.example.com",
    ] {
        instance.done(&["--creds", creds, "domain", "add", host]);
    }
    assert!(
        begun.elapsed() > Duration::from_millis(500),
        "nobody was told to wait: {:?}",
        begun.elapsed()
    );
    let (_, events) = instance.json(&["events", "replay", "--project", "acme"]);
    let added = events
        .iter()
        .filter(|e| e["type"] == "dev.chancery.domain.added.v1")
        .count();
    assert_eq!(added, 4, "each happened once");
}

/// The roles apart: a control plane without edges, and an edge that enrols with a token that a person brought.
#[test]
fn an_edge_joins_from_another_process() {
    let home = tempfile::tempdir().expect("a folder");
    let control = "state = 'control'\nroles = ['nats', 'control']\n[control]\nregions = ['eu-1']\n";
    let path = home.path().join("control.toml");
    std::fs::write(&path, control).expect("written");
    let instance = Instance::of(home, &["serve", "--config", path.to_str().expect("utf-8")]);
    let token = instance.path("edge.token");
    instance.done(&[
        "edge",
        "enrol",
        "eu-1",
        "edge-7",
        "--out",
        token.to_str().expect("utf-8"),
    ]);
    let (status, _) = instance.json(&["status"]);
    assert_eq!(
        status,
        Some(1),
        "a region without an edge is something that is wrong"
    );

    let server = &instance.environment["CHANCERY_SERVER"];
    let edge = instance.write(
        "edge.toml",
        &format!(
            "state = 'edge'\nroles = ['edge']\n[nats]\nurl = '{server}'\n\
             [[edge]]\nregion = 'eu-1'\nname = 'edge-7'\nhttps = '127.0.0.1:0'\ntoken = 'edge.token'\n"
        ),
    );
    let (mut edge, ready) = serve(
        instance.home.path(),
        "edge.log",
        &["serve", "--config", &edge],
    );
    assert_eq!(ready["https"][0]["region"], "eu-1");

    // The edge reports on its own time; `status` turns good once it has.
    let deadline = Instant::now() + LIMIT;
    loop {
        let (status, told) = instance.json(&["status"]);
        if status == Some(0) {
            break;
        }
        assert!(Instant::now() < deadline, "{told:?}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
    assert!(
        instance
            .read(&["edge", "list", "--region", "eu-1"])
            .contains("healthy")
    );
    instance.done(&["edge", "evict", "eu-1", "edge-7"]);
    assert!(instance.read(&["edge", "list"]).contains("evicted"));
    edge.signal(rustix::process::Signal::TERM);
    assert_eq!(edge.end(), Some(0));
}
