//! Backup and restore: everything that a control node knows, taken while it runs and brought back into an empty folder; what
//! refuses to be restored; and both killed in the middle.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::{Chancery, Cli, Key, Leaf, SOON, Serve, Up, eventually};
use serde_json::Value;

use crate::search::{needles, search};
use crate::stage::{Apart, Stage, dark, nats, resource, served_now, serves, upload, wait};

/// A folder for a backup, a copy of the root key and a second state.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("chancery-backup-")
            .tempdir()
            .expect("a folder");
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Keeps the root key where an operator would: elsewhere.
    fn keep_root_key(&self, state: &Path) {
        fs::copy(state.join("root.key"), self.path("root.key")).expect("the root key is there");
    }

    /// `chancery restore backup --state <state> --root-key root.key`, as somebody without any set-up.
    fn restore(&self, state: &str, further: &[&str]) -> harness::Outcome {
        let (backup, state, key) = (self.text("backup"), self.text(state), self.text("root.key"));
        let mut words = vec!["restore", &backup, "--state", &state, "--root-key", &key];
        words.extend(further);
        nobody().run(&words)
    }

    fn verify(&self) -> harness::Outcome {
        nobody().run(&["backup", "--verify", &self.text("backup")])
    }
}

fn nobody() -> Cli {
    Cli::new(Default::default())
}

fn events(operator: &Cli) -> Vec<String> {
    let replayed = operator.run(&["events", "replay"]).ok();
    replayed.stdout.lines().map(str::to_owned).collect()
}

/// Gives many commands at once, as a program would: the command line would take a process for each.
fn flood(chancery: &Chancery, count: usize) {
    let (runtime, client) = nats(&chancery.operator());
    runtime.block_on(async {
        let answered: usize = futures_util::StreamExt::fold(
            futures_util::StreamExt::buffer_unordered(
                futures_util::stream::iter((0..count).map(|i| {
                    let client = client.clone();
                    async move {
                        let body = serde_json::json!({"host": format!("h{i}.flood.example.com")});
                        let request = async_nats::Request::new()
                            .headers(async_nats::HeaderMap::from_iter([(
                                async_nats::HeaderName::from_static("Nats-Msg-Id"),
                                async_nats::HeaderValue::from(uuid::Uuid::now_v7().to_string()),
                            )]))
                            .timeout(Some(SOON))
                            .payload(body.to_string().into());
                        let answer = client
                            .send_request("chancery.v1.cmd.acme.domain.add", request)
                            .await
                            .expect("an answer");
                        let answer: Value =
                            serde_json::from_slice(&answer.payload).expect("an answer is JSON");
                        usize::from(answer["outcome"] == "accepted")
                    }
                })),
                64,
            ),
            0,
            |sum, one| async move { sum + one },
        )
        .await;
        assert_eq!(answered, count, "all are accepted");
    });
}

/// A command that a test will end before it ends itself.
fn spawn(words: &[&str], environment: &std::collections::BTreeMap<String, String>) -> Child {
    let mut command = Command::new(harness::binary());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CHANCERY_") && name != "CHANCERY_NATS_SERVER" {
            command.env_remove(name);
        }
    }
    command
        .arg("--json")
        .args(words)
        .env("XDG_CONFIG_HOME", "/nonexistent")
        .envs(environment)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs")
}

/// A child that ends with the test, however that ends.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Kills a child after a while; true if it had not ended by itself.
fn kill_after(mut child: Child, span: Duration) -> bool {
    let end = Instant::now() + span;
    while Instant::now() < end {
        if child.try_wait().expect("it can be waited for").is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let running = child.try_wait().expect("it can be waited for").is_none();
    let _ = child.kill();
    let _ = child.wait();
    running
}

#[test]
fn a_backup_under_load_restores_the_same_log_keys_and_hosts() {
    let stage = Stage::new();
    let bench = Bench::new();
    stage.resource("media", "bucket", &["local"]);
    let mut leaves: Vec<(String, Leaf)> = Vec::new();
    let mut secrets = Vec::new();
    for (name, kind) in [
        ("rsa", Key::Rsa2048),
        ("p256", Key::P256),
        ("ed25519", Key::Ed25519),
    ] {
        let host = format!("{name}.example.com");
        stage.domain(&host, "media");
        let leaf = stage.ca.leaf(&host).key(kind).issue();
        stage.upload(name, &leaf);
        stage.serves(&host, &leaf);
        secrets.extend(needles(name, kind, &leaf));
        leaves.push((host, leaf));
    }
    let id = uuid::Uuid::now_v7().to_string();
    let once = ["--id", &id, "domain", "add", "once.example.com"];
    let first = stage.alice.run(&once).ok().json();
    bench.keep_root_key(&stage.chancery.state());

    // While commands come, also uploads with keys, the backup is taken, and taken again into the same folder.
    let backup = bench.text("backup");
    let stop = AtomicBool::new(false);
    let (one, two) = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut done = 0;
            while !stop.load(Ordering::Relaxed) {
                let host = format!("load{done}.example.com");
                let leaf = stage.ca.issue(&host);
                let (chain, key) = (
                    leaf.chain().display().to_string(),
                    leaf.key().display().to_string(),
                );
                let name = format!("load{done}");
                stage.alice.run(&["domain", "add", &host]).ok();
                stage
                    .alice
                    .run(&[
                        "certificate",
                        "add",
                        &name,
                        "--chain",
                        &chain,
                        "--key",
                        &key,
                        "--region",
                        "local",
                    ])
                    .ok();
                done += 1;
            }
            done
        });
        let one = stage.operator.run(&["backup", &backup]).ok().json();
        let seen = one["head"]["sequence"].as_u64().expect("a sequence");
        eventually("the load goes on", SOON, || {
            let head = stage.operator.run(&["status"]).json()["head"].as_u64();
            match head {
                Some(head) if head > seen + 10 => Ok(()),
                head => Err(format!("{head:?}")),
            }
        });
        let two = stage.operator.run(&["backup", &backup]).ok().json();
        stop.store(true, Ordering::Relaxed);
        assert!(load.join().expect("the load") > 0);
        (one, two)
    });
    let head = two["head"]["sequence"].as_u64().expect("a sequence");
    assert!(head > one["head"]["sequence"].as_u64().expect("a sequence"));
    assert_eq!(
        two["new_events"].as_u64().expect("a number"),
        head - one["head"]["sequence"].as_u64().expect("a sequence"),
        "only what is new is pulled"
    );
    bench.verify().ok();
    // What only this machine's own user may read, and no key in it in any form.
    for (path, mode) in [("", 0o700), ("events", 0o700), ("manifest.json", 0o600)] {
        let is = fs::metadata(bench.path("backup").join(path)).expect("it is there");
        assert_eq!(is.permissions().mode() & 0o777, mode, "{path}");
    }
    search(&bench.path("backup"), &secrets);
    let root = fs::read_to_string(bench.path("root.key")).expect("the root key");
    let creds = fs::read_to_string(&stage.operator.environment()["CHANCERY_CREDS"]).expect("creds");
    let seed = creds
        .lines()
        .find(|line| line.starts_with("SU"))
        .expect("credentials have a seed");
    let mut read = 0;
    for part in ["events", "objects", "keys"] {
        for file in fs::read_dir(bench.path("backup").join(part)).expect("a folder") {
            let text = fs::read_to_string(file.expect("a file").path()).expect("text");
            assert!(!text.contains(root.trim()) && !text.contains(seed));
            read += 1;
        }
    }
    assert!(read >= 3);

    // What comes after the backup is lost with the machine.
    stage.alice.run(&["domain", "add", "late.example.com"]).ok();
    let before = events(&stage.operator);
    let alice_creds = stage.chancery.folder().join("acme-alice.creds");
    let Stage {
        chancery,
        origin: _origin,
        ..
    } = stage;
    let _kept = chancery.stop();
    fs::create_dir(bench.path("new")).expect("made");
    let restored = bench.restore("new/state", &[]).ok().json();
    assert_eq!(restored["head"]["sequence"], head);
    assert!(
        restored["lost"]
            .as_str()
            .expect("it says so")
            .contains("gone"),
        "{restored}"
    );
    let key_mode = fs::metadata(bench.path("new/state/root.key")).expect("it is there");
    assert_eq!(key_mode.permissions().mode() & 0o777, 0o600);

    let again = Up::in_folder(&bench.path("new")).start();
    let operator = again.operator();
    let after = events(&operator);
    let kept = usize::try_from(head).expect("few");
    assert_eq!(
        after[..kept],
        before[..kept],
        "the same bytes up to the head"
    );
    assert!(after.len() > kept, "the log goes on");
    let next: Value = serde_json::from_str(&after[kept]).expect("an event");
    assert_eq!(next["type"], "dev.chancery.control.leader-elected.v1");
    assert!(
        after[kept..].iter().any(|event| {
            let event: Value = serde_json::from_str(event).expect("an event");
            event["type"] == "dev.chancery.access.created.v1"
                && event["data"]["actor"] == "operator-2"
                && event["actor"] == "_start"
        }),
        "that an operator was made is in the log"
    );
    operator.run(&["audit", "verify"]).ok();
    operator.run(&["audit", "rebuild"]).ok();
    for (host, leaf) in &leaves {
        served_now(again.https(), host, leaf).expect("served with the same certificate");
    }
    // Whoever had access has it still, and is remembered with what they did.
    let alice = operator.user(&alice_creds);
    let alice = Cli::new({
        let mut environment = alice.environment().clone();
        environment.insert("CHANCERY_SERVER".to_owned(), again.nats());
        environment
    });
    let repeated = alice.run(&once).ok().json();
    assert_eq!(repeated["sequence"], first["sequence"], "the first outcome");
    let added = alice.run(&["domain", "add", "next.example.com"]).ok();
    assert!(added.json()["sequence"].as_u64().expect("a sequence") > head);
    let late = alice.run(&["domain", "show", "late.example.com"]);
    assert_eq!(late.refused(), "not_found");
    // A new certificate takes the whole way, with keys that were restored.
    let leaf = stage.ca.issue("p256.example.com");
    upload(&alice, "newer", &leaf, &["--region", "local"]);
    serves(again.https(), "p256.example.com", &leaf);
    // And the next backup of it goes on in the same folder.
    let three = operator.run(&["backup", &backup]).ok().json();
    assert!(three["generation"].as_u64() > one["generation"].as_u64());
    bench.verify().ok();
}

/// The credentials that were kept are as good as before, and none are made.
#[test]
fn an_operator_who_kept_the_credentials_goes_on_with_them() {
    let chancery = Chancery::up();
    let bench = Bench::new();
    let operator = chancery.operator();
    let other = bench.text("revoked.creds");
    let platform = operator.project("platform");
    platform
        .run(&["access", "create", "second", "--out", &other])
        .ok();
    platform.run(&["access", "revoke", "second"]).ok();
    operator.run(&["backup", &bench.text("backup")]).ok();
    bench.keep_root_key(&chancery.state());
    fs::copy(
        &operator.environment()["CHANCERY_CREDS"],
        bench.path("operator.creds"),
    )
    .expect("copied");
    let foreign = chancery.project("acme", "alice");
    let foreign = foreign.environment()["CHANCERY_CREDS"].clone();
    for (creds, what) in [(&other, "revoked"), (&foreign, "of nobody")] {
        let refused = bench.restore("new/state", &["--creds", creds]);
        assert_eq!(refused.refused(), "unauthorized");
        assert!(refused.stdout.contains(what), "{refused:#?}");
        assert!(!bench.path("new").exists(), "nothing was written");
    }
    let _kept = chancery.stop();
    let restored = bench.restore("new/state", &["--creds", &bench.text("operator.creds")]);
    assert_eq!(restored.ok().json()["operator"], "operator");
    let again = Up::in_folder(&bench.path("new")).start();
    let events = events(&again.operator());
    assert!(
        !events.iter().any(|event| event.contains("operator-2")),
        "no other operator was made"
    );
    assert_eq!(
        fs::read(bench.path("new/state/operator.creds")).expect("there"),
        fs::read(bench.path("operator.creds")).expect("there")
    );
}

/// Copies a folder of files and folders.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("copied");
        }
    }
}

#[test]
fn what_cannot_be_restored_leaves_nothing_behind() {
    let stage = Stage::new();
    let bench = Bench::new();
    stage.bucket("www.example.com");
    stage.upload("site", &stage.ca.issue("www.example.com"));
    stage.operator.run(&["backup", &bench.text("backup")]).ok();
    bench.keep_root_key(&stage.chancery.state());
    bench.verify().ok();

    // Another root key.
    let right = fs::read(bench.path("root.key")).expect("the root key");
    fs::write(bench.path("root.key"), "ab".repeat(32)).expect("written");
    let refused = bench.restore("new", &[]);
    assert_eq!(refused.refused(), "unauthorized");
    assert!(
        refused.stdout.contains("wrapped by root key"),
        "{refused:#?}"
    );
    assert!(!bench.path("new").exists(), "nothing was written");
    fs::write(bench.path("root.key"), right).expect("written");

    // A folder that is used.
    fs::create_dir(bench.path("used")).expect("made");
    fs::write(bench.path("used/thesis.tex"), "x").expect("written");
    let refused = bench.restore("used", &[]);
    assert_eq!(refused.status, 2, "{refused:#?}");
    assert!(refused.stdout.contains("thesis.tex"), "{refused:#?}");
    assert_eq!(fs::read_dir(bench.path("used")).expect("there").count(), 1);
    let used = stage.operator.run(&["backup", &bench.text("used")]);
    assert_eq!(used.status, 2, "a backup is not put beside something else");

    // No backup, and one that was never finished.
    let none = nobody().run(&["backup", "--verify", &bench.text("used")]);
    assert_eq!(none.status, 2, "{none:#?}");

    // Each kind of file: changed, cut, gone.
    let good = bench.path("good");
    copy(&bench.path("backup"), &good);
    let mut files = vec![PathBuf::from("manifest.json")];
    for part in ["events", "objects", "keys"] {
        let inner = fs::read_dir(good.join(part)).expect("a folder");
        files.extend(inner.flatten().map(|f| Path::new(part).join(f.file_name())));
    }
    assert_eq!(files.len(), 4, "{files:?}");
    for file in &files {
        let path = bench.path("backup").join(file);
        let bytes = fs::read(&path).expect("it reads");
        let middle = bytes.len() / 2;
        let mut flipped = bytes.clone();
        flipped[middle] ^= 1;
        for (what, broken) in [
            ("changed", Some(flipped)),
            ("cut", Some(bytes[..middle].to_vec())),
            ("gone", None),
        ] {
            match broken {
                Some(broken) => fs::write(&path, broken).expect("written"),
                None => fs::remove_file(&path).expect("removed"),
            }
            let refused = bench.restore("new", &[]);
            let told = if what == "gone" && file.ends_with("manifest.json") {
                // Without a manifest there is no backup.
                2
            } else {
                1
            };
            assert_eq!(
                refused.status,
                told,
                "{} {what}: {refused:#?}",
                file.display()
            );
            assert!(
                refused.stdout.contains(&file.display().to_string()),
                "{} {what}: {refused:#?}",
                file.display()
            );
            assert!(!bench.path("new").exists(), "nothing was written");
            let verified = bench.verify();
            assert_eq!(verified.status, told, "{verified:#?}");
            // Nor is a damaged backup gone on with as if it were whole.
            if told == 1 {
                let onto = stage.operator.run(&["backup", &bench.text("backup")]);
                assert_eq!(onto.refused(), "malformed", "{} {what}", file.display());
            }
        }
        fs::write(&path, bytes).expect("written");
    }
    bench.verify().ok();
    stage.operator.run(&["backup", &bench.text("backup")]).ok();

    // A backup of another log.
    let other = Chancery::up();
    let refused = other.operator().run(&["backup", &bench.text("backup")]);
    assert_eq!(refused.refused(), "conflict");
    bench.restore("new", &[]).ok();
}

#[test]
fn whoever_may_only_look_takes_no_backup() {
    let chancery = Chancery::up();
    let bench = Bench::new();
    let operator = chancery.operator();
    let platform = operator.project("platform");
    let user = |name: &str, rights: &[&str]| {
        let creds = bench.text(&format!("{name}.creds"));
        let mut words = vec!["access", "create", name, "--out", &creds];
        for right in rights {
            words.extend(["--right", right]);
        }
        platform.run(&words).ok();
        operator.user(Path::new(&creds))
    };
    let auditor = user("auditor", &["query.>", "evt.>"]);
    let viewer = user("viewer", &["query.*"]);
    let keeper = user("keeper", &["query.backup"]);
    let backup = bench.text("backup");
    auditor.run(&["audit", "verify"]).ok();
    for less in [&auditor, &viewer, &chancery.project("acme", "alice")] {
        assert_eq!(less.run(&["backup", &backup]).refused(), "unauthorized");
        assert!(!bench.path("backup").exists());
    }
    keeper.run(&["backup", &backup]).ok();
    bench.verify().ok();
    assert_eq!(keeper.run(&["status"]).refused(), "unauthorized");
}

#[test]
fn a_full_disk_is_told_and_nothing_half_is_called_done() {
    let stage = Stage::new();
    let bench = Bench::new();
    let backup = bench.text("backup");
    // No file may grow beyond 2 KiB, which fails a write as a full disk does.
    let limited = || {
        let mut command = Command::new("sh");
        command
            .args([
                "-c",
                "trap '' XFSZ; ulimit -f 4; exec \"$0\" --json backup \"$1\"",
            ])
            .arg(harness::binary())
            .arg(&backup)
            .envs(stage.operator.environment())
            .env("XDG_CONFIG_HOME", "/nonexistent");
        command.output().expect("sh runs")
    };
    let failed = limited();
    assert_eq!(failed.status.code(), Some(2), "{failed:?}");
    let told = String::from_utf8_lossy(&failed.stdout);
    assert!(told.contains("no room"), "{told}");
    assert_eq!(bench.verify().status, 2, "there is no backup");
    stage.operator.run(&["backup", &backup]).ok();
    let manifest = fs::read(bench.path("backup/manifest.json")).expect("there");
    stage.bucket("www.example.com");
    assert_eq!(limited().status.code(), Some(2));
    assert_eq!(
        fs::read(bench.path("backup/manifest.json")).expect("there"),
        manifest,
        "the former backup is as it was"
    );
    bench.verify().ok();
    stage.operator.run(&["backup", &backup]).ok();
    bench.verify().ok();
}

#[test]
fn both_are_killed_in_the_middle_and_done_again() {
    let stage = Stage::new();
    let bench = Bench::new();
    stage.bucket("www.example.com");
    let leaf = stage.ca.issue("www.example.com");
    stage.upload("site", &leaf);
    flood(&stage.chancery, 3_000);
    bench.keep_root_key(&stage.chancery.state());
    let backup = bench.text("backup");

    // The backup: whenever it is killed, what is there is a whole one or none, and the next goes on.
    let mut killed = 0;
    for round in 0..8_u64 {
        let child = spawn(&["backup", &backup], stage.operator.environment());
        if kill_after(child, Duration::from_millis(40 + 90 * round)) {
            killed += 1;
        }
        if bench.path("backup/manifest.json").exists() {
            bench.verify().ok();
        }
    }
    assert!(killed > 0, "it was killed in the middle");
    let done = stage.operator.run(&["backup", &backup]).ok().json();
    let head = done["head"]["sequence"].as_u64().expect("a sequence");
    bench.verify().ok();
    let names: Vec<String> = walk(&bench.path("backup"));
    assert!(!names.iter().any(|n| n.ends_with(".part")), "{names:?}");

    // The restore: nothing starts on what an interrupted one has left.
    let before = events(&stage.operator);
    let Stage {
        chancery,
        origin: _origin,
        ..
    } = stage;
    let _kept = chancery.stop();
    let (state, key) = (bench.text("new/state"), bench.text("root.key"));
    let marker = bench.path("new/state/restore.json");
    let mut refused = 0;
    for round in 0..5_u64 {
        let words = ["restore", &backup, "--state", &state, "--root-key", &key];
        let child = spawn(&words, &Default::default());
        let deadline = Instant::now() + SOON;
        while !marker.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !kill_after(child, Duration::from_millis(1 + 150 * round)) || !marker.exists() {
            break;
        }
        let said = bench.path("up.err");
        let mut up = Ended(
            Command::new(harness::binary())
                .args(["up", "--state", &state])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(fs::File::create(&said).expect("made"))
                .spawn()
                .expect("the binary runs"),
        );
        let status = eventually("up refuses the folder", SOON, || {
            match up.0.try_wait().expect("it can be waited for") {
                Some(status) => Ok(status),
                None => Err("it runs"),
            }
        });
        let said = fs::read_to_string(said).expect("text");
        assert_eq!(status.code(), Some(2), "{said}");
        assert!(said.contains("interrupted"), "{said}");
        refused += 1;
    }
    assert!(refused > 0, "it was killed in the middle");
    if marker.exists() {
        assert_eq!(
            bench.restore("new/state", &[]).ok().json()["head"]["sequence"],
            head
        );
    }
    let again = Up::in_folder(&bench.path("new")).start();
    let kept = usize::try_from(head).expect("few");
    assert_eq!(events(&again.operator())[..kept], before[..kept]);
    served_now(again.https(), "www.example.com", &leaf).expect("served");
}

fn walk(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        match entry.path().is_dir() {
            true => names.extend(walk(&entry.path())),
            false => names.push(entry.path().display().to_string()),
        }
    }
    names
}

/// An edge that has applied what came after the backup serves exactly what was restored, once the control plane is back.
#[test]
fn an_edge_that_is_ahead_goes_back_to_what_was_restored() {
    let apart = Apart::start();
    let bench = Bench::new();
    let operator = apart.operator();
    let token = apart.file("edge-7.token").display().to_string();
    operator
        .run(&["edge", "enrol", "eu-1", "edge-7", "--out", &token])
        .ok();
    let edge = Serve::start(&apart.file("edge.toml"));
    let (ca, origin) = (harness::Ca::new(), harness::Origin::start("origin"));
    operator.run(&["project", "create", "acme"]).ok();
    resource(
        &operator,
        "acme",
        "media",
        "bucket",
        &["eu-1"],
        &origin.url(),
    );
    let acme = operator.project("acme");
    let add = |name: &str, host: &str| {
        acme.run(&["domain", "add", host, "--resource", "media"])
            .ok();
        let leaf = ca.issue(host);
        upload(&acme, name, &leaf, &["--region", "eu-1"]);
        wait(&acme, name, "active");
        serves(apart.https, host, &leaf);
        leaf
    };
    let old = add("old", "old.example.com");
    let gone = add("gone", "gone.example.com");
    operator.run(&["backup", &bench.text("backup")]).ok();
    bench.keep_root_key(&apart.file("control"));

    // After the backup: another host, a replaced certificate, a deleted one. The edge has it all, and then some.
    add("new", "new.example.com");
    let newer = ca.issue("old.example.com");
    let (chain, key) = (
        newer.chain().display().to_string(),
        newer.key().display().to_string(),
    );
    acme.run(&[
        "certificate",
        "replace",
        "old",
        "--chain",
        &chain,
        "--key",
        &key,
    ])
    .ok();
    serves(apart.https, "old.example.com", &newer);
    let words = [
        "certificate",
        "delete",
        "gone",
        "--confirm",
        "gone",
        "--force",
    ];
    acme.run(&words).ok();
    dark(apart.https, "gone.example.com");

    let Apart {
        folder,
        https,
        control,
    } = apart;
    control.stop();
    fs::rename(folder.path().join("control"), folder.path().join("lost")).expect("moved");
    let config = folder.path().join("control.toml");
    for _ in 0..2 {
        // Twice from the same backup: the second time the edge has the generation of the first.
        let _ = fs::remove_dir_all(folder.path().join("control"));
        let (backup, key, config_file) = (
            bench.text("backup"),
            bench.text("root.key"),
            config.display().to_string(),
        );
        let words = [
            "restore",
            &backup,
            "--config",
            &config_file,
            "--root-key",
            &key,
        ];
        nobody().run(&words).ok();
        let control = Serve::start(&config);
        serves(https, "old.example.com", &old);
        serves(https, "gone.example.com", &gone);
        dark(https, "new.example.com");
        let operator = control.operator();
        eventually("status is well", SOON, || match operator.run(&["status"]) {
            outcome if outcome.status == 0 => Ok(()),
            outcome => Err(format!("{outcome:?}")),
        });
        // What is changed now gets there.
        let acme = operator.project("acme");
        acme.run(&["domain", "add", "again.example.com", "--resource", "media"])
            .ok();
        let leaf = ca.issue("again.example.com");
        upload(&acme, "again", &leaf, &["--region", "eu-1"]);
        serves(https, "again.example.com", &leaf);
        control.stop();
    }
    edge.stop();
}

/// Whoever can write to a backup's folder can make it tell another history, with all checksums and hash links right. Only a
/// checkpoint that was kept elsewhere shows it.
#[test]
fn a_kept_checkpoint_tells_a_rewritten_backup() {
    let bench = Bench::new();
    fs::create_dir(bench.path("old")).expect("made");
    let chancery = Up::in_folder(&bench.path("old")).start();
    let operator = chancery.operator();
    operator.run(&["project", "create", "acme"]).ok();
    let acme = operator.project("acme");
    acme.run(&["domain", "add", "aaaa.example.com"]).ok();
    let kept = bench.text("kept.checkpoint");
    operator.run(&["audit", "checkpoint", "--out", &kept]).ok();
    let key = |operator: &Cli| {
        let key = operator.run(&["audit", "key"]).ok().json();
        key["vkey"].as_str().expect("a key").to_owned()
    };
    let signed_by = key(&operator);
    acme.run(&["domain", "add", "late.example.com"]).ok();
    operator.run(&["backup", &bench.text("backup")]).ok();
    bench.keep_root_key(&chancery.state());
    drop(chancery);

    // Restored, and asked as docs/backup.md says.
    let since = |folder: &str| {
        bench.restore(&format!("{folder}/state"), &[]).ok();
        let again = Up::in_folder(&bench.path(folder)).start();
        let operator = again.operator();
        let now = key(&operator);
        assert_ne!(now, signed_by, "a restored log has a key of its own");
        let keys = ["--since", &kept, "--key", &signed_by, "--key", &now];
        operator.run(&[&["audit", "verify"][..], &keys].concat())
    };
    fs::create_dir(bench.path("one")).expect("made");
    since("one").ok();
    rewrite(
        &bench.path("backup"),
        "aaaa.example.com",
        "evil.example.com",
    );
    bench.verify().ok();
    fs::create_dir(bench.path("two")).expect("made");
    let refused = since("two");
    assert_eq!(refused.status, 1, "{refused:?}");
    assert!(refused.stdout.contains("kept.checkpoint"), "{refused:?}");
}

/// Replaces words in a backup's events, and makes everything that hangs on them fit again.
fn rewrite(backup: &Path, from: &str, to: &str) {
    let path = backup.join("manifest.json");
    let text = fs::read_to_string(&path).expect("a manifest");
    let mut manifest: Value = serde_json::from_str(&text).expect("JSON");
    let files = manifest["events"]["files"].as_array().expect("files");
    let [file] = files.as_slice() else {
        panic!("{files:?}")
    };
    let name = backup.join(file["name"].as_str().expect("a name"));
    let events = fs::read_to_string(&name).expect("events");
    let leaf = |line: &str| harness::sha256(&[b"\0", line.as_bytes()].concat());
    let (mut lines, mut hashes) = (Vec::new(), Vec::<(String, String)>::new());
    for line in events.lines() {
        let mut new = line.replace(from, to);
        if let Some((before, after)) = hashes.last() {
            assert!(new.contains(before), "{new}");
            new = new.replace(before, after);
        }
        hashes.push((leaf(line), leaf(&new)));
        lines.push(new);
    }
    let events = lines.join("\n") + "\n";
    fs::write(&name, &events).expect("written");
    manifest["events"]["files"][0]["sha256"] = harness::sha256(events.as_bytes()).into();
    manifest["head"]["hash"] = hashes.last().expect("events").1.clone().into();
    let all = manifest.as_object_mut().expect("an object");
    all.remove("sha256");
    manifest["sha256"] = harness::sha256(manifest.to_string().as_bytes()).into();
    fs::write(&path, manifest.to_string()).expect("written");
}

/// Somebody's folder in which a file happens to be called like the marker of a restore.
#[test]
fn a_restore_leaves_alone_what_is_not_its_own() {
    let bench = Bench::new();
    fs::create_dir(bench.path("old")).expect("made");
    let chancery = Up::in_folder(&bench.path("old")).start();
    chancery
        .operator()
        .run(&["backup", &bench.text("backup")])
        .ok();
    bench.keep_root_key(&chancery.state());
    drop(chancery);
    let state = bench.path("photos");
    fs::create_dir_all(state.join("2019")).expect("made");
    for name in ["restore.json", "letter.txt", "2019/one.jpg"] {
        fs::write(state.join(name), "").expect("written");
    }
    let before = walk(&state);
    let refused = bench.restore("photos", &[]);
    assert_eq!(refused.status, 2, "{refused:?}");
    for name in ["restore.json", "letter.txt", "2019"] {
        assert!(format!("{refused:?}").contains(name), "{refused:?}");
    }
    assert_eq!(walk(&state), before);
}
