//! Moving in: trees as certbot, Caddy, acme.sh, lego, Traefik and people leave them behind, imported into a running system.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use harness::{Ca, Chancery, Cli, Key, Leaf, Outcome, SOON, Up, binary, eventually};
use serde_json::{Value, json};
use tempfile::TempDir;
use time::OffsetDateTime;

fn days(n: u64) -> OffsetDateTime {
    OffsetDateTime::now_utc() + Duration::from_secs(n * 86_400)
}

/// The blocks of a leaf's chain: itself, then what issued it.
fn blocks(leaf: &Leaf) -> (String, String) {
    let text = fs::read_to_string(leaf.chain()).expect("read");
    let end = "-----END CERTIFICATE-----\n";
    let at = text.find(end).expect("a block") + end.len();
    (text[..at].to_owned(), text[at..].to_owned())
}

fn key(leaf: &Leaf) -> String {
    fs::read_to_string(leaf.key()).expect("read")
}

fn write(path: impl AsRef<Path>, text: impl AsRef<[u8]>) {
    let path = path.as_ref();
    fs::create_dir_all(path.parent().expect("it has a folder")).expect("made");
    fs::write(path, text).expect("written");
}

/// A pair as people name it.
fn pair(root: &Path, name: &str, leaf: &Leaf) {
    let (certificate, chain) = blocks(leaf);
    write(root.join(format!("{name}.crt")), certificate + &chain);
    write(root.join(format!("{name}.key")), key(leaf));
}

/// What certbot writes for one lineage and its renewals: checked against the files that certbot 5.8 makes.
fn certbot(root: &Path, name: &str, leaves: &[&Leaf]) {
    let (live, archive) = (
        root.join("live").join(name),
        root.join("archive").join(name),
    );
    fs::create_dir_all(&live).expect("made");
    write(
        root.join("live/README"),
        "This directory contains your keys.\n",
    );
    write(
        live.join("README"),
        "`privkey.pem`  : the private key for your certificate.\n",
    );
    let mut renewal = format!("version = 5.8.0\narchive_dir = {}\n", archive.display());
    for (leaf, version) in leaves.iter().zip(1..) {
        let (certificate, chain) = blocks(leaf);
        let whole = format!("{certificate}{chain}");
        for (kind, text) in [
            ("cert", certificate),
            ("chain", chain),
            ("fullchain", whole),
            ("privkey", key(leaf)),
        ] {
            write(archive.join(format!("{kind}{version}.pem")), text);
            let link = live.join(format!("{kind}.pem"));
            let _ = fs::remove_file(&link);
            symlink(format!("../../archive/{name}/{kind}{version}.pem"), &link).expect("linked");
        }
    }
    for kind in ["cert", "privkey", "chain", "fullchain"] {
        renewal.push_str(&format!(
            "{kind} = {}\n",
            live.join(format!("{kind}.pem")).display()
        ));
    }
    write(
        root.join("renewal").join(format!("{name}.conf")),
        renewal + "[renewalparams]\nauthenticator = webroot\n",
    );
}

/// Caddy's store; a wildcard's folder begins with `wildcard_`.
fn caddy(root: &Path, host: &str, leaf: &Leaf) {
    let safe = host.replace('*', "wildcard_");
    let folder = root
        .join("certificates/acme-v02.api.letsencrypt.org-directory")
        .join(&safe);
    let (certificate, chain) = blocks(leaf);
    write(folder.join(format!("{safe}.crt")), certificate + &chain);
    write(folder.join(format!("{safe}.key")), key(leaf));
    let meta = json!({"sans": [host], "issuer_data": {"url": "https://acme.example/cert/1"}});
    write(folder.join(format!("{safe}.json")), meta.to_string());
    write(root.join("instance.uuid"), "7a1f");
}

/// A folder of acme.sh, with what it keeps besides.
fn acme_sh(root: &Path, host: &str, ecc: bool, leaf: &Leaf) {
    let folder = root.join(format!("{host}{}", if ecc { "_ecc" } else { "" }));
    let (certificate, chain) = blocks(leaf);
    write(folder.join(format!("{host}.cer")), &certificate);
    write(folder.join("ca.cer"), &chain);
    write(folder.join("fullchain.cer"), certificate + &chain);
    write(folder.join(format!("{host}.key")), key(leaf));
    write(folder.join(format!("{host}.csr")), "not looked at");
    write(
        folder.join(format!("{host}.conf")),
        format!("Le_Domain='{host}'\nLe_Alt='no'\n"),
    );
    write(root.join("account.conf"), "ACCOUNT_EMAIL='a@example.com'\n");
}

/// lego: everything in one folder.
fn lego(root: &Path, host: &str, leaf: &Leaf) {
    let folder = root.join("certificates");
    let safe = host.replace('*', "_");
    let (certificate, chain) = blocks(leaf);
    write(
        folder.join(format!("{safe}.crt")),
        format!("{certificate}{chain}"),
    );
    write(folder.join(format!("{safe}.issuer.crt")), chain);
    write(folder.join(format!("{safe}.key")), key(leaf));
    write(
        folder.join(format!("{safe}.json")),
        json!({"domain": host, "certUrl": "https://acme.example/1"}).to_string(),
    );
    fs::create_dir_all(root.join("accounts")).expect("made");
}

/// Traefik's acme.json.
fn traefik(path: &Path, entries: &[(&str, &Leaf)]) {
    let certificates: Vec<Value> = entries
        .iter()
        .map(|(host, leaf)| {
            let (certificate, chain) = blocks(leaf);
            json!({
                "domain": {"main": host},
                "certificate": BASE64.encode((certificate + &chain).as_bytes()),
                "key": BASE64.encode(key(leaf).as_bytes()),
                "Store": "default",
            })
        })
        .collect();
    write(
        path,
        json!({"resolver": {"Account": {"Email": "a@example.com"}, "Certificates": certificates}})
            .to_string(),
    );
}

struct World {
    // Ended before the folder goes.
    operator: Cli,
    acme: Cli,
    chancery: Chancery,
    tree: TempDir,
}

fn world() -> World {
    let chancery = Chancery::up();
    let operator = chancery.operator();
    let _ = operator.run(&["project", "create", "acme"]).ok();
    World {
        acme: operator.project("acme"),
        operator,
        chancery,
        tree: tempfile::tempdir().expect("a folder"),
    }
}

impl World {
    fn root(&self) -> &Path {
        self.tree.path()
    }

    fn import(&self, more: &[&str]) -> Outcome {
        import(&self.acme, self.root(), more)
    }
}

fn import(cli: &Cli, root: &Path, more: &[&str]) -> Outcome {
    let root = root.display().to_string();
    let mut words = vec!["certificate", "import", root.as_str(), "--region", "local"];
    words.extend(more);
    if !more.contains(&"--dry-run") {
        words.push("--yes");
    }
    cli.run(&words)
}

/// The lines between plan and summary, by name.
#[track_caller]
fn verdicts(outcome: &Outcome) -> BTreeMap<String, Value> {
    let lines = outcome.lines();
    assert_eq!(lines[0]["event"], "plan", "{outcome:#?}");
    assert_eq!(lines[lines.len() - 1]["event"], "summary", "{outcome:#?}");
    let middle = &lines[1..lines.len() - 1];
    let named: BTreeMap<String, Value> = middle
        .iter()
        .map(|line| {
            (
                line["name"].as_str().unwrap_or_default().to_owned(),
                line.clone(),
            )
        })
        .collect();
    assert_eq!(named.len(), middle.len(), "a name twice: {outcome:#?}");
    named
}

#[track_caller]
fn words(outcome: &Outcome) -> BTreeMap<String, String> {
    verdicts(outcome)
        .into_iter()
        .map(|(name, line)| {
            let word = line["verdict"].as_str().or(line["plan"].as_str());
            let code = line["code"].as_str().map(|code| format!(" {code}"));
            (
                name,
                format!("{}{}", word.unwrap_or("?"), code.unwrap_or_default()),
            )
        })
        .collect()
}

#[track_caller]
fn expect(outcome: &Outcome, expected: &[(&str, &str)]) {
    let expected: BTreeMap<String, String> = expected
        .iter()
        .map(|(name, word)| ((*name).to_owned(), (*word).to_owned()))
        .collect();
    assert_eq!(words(outcome), expected, "{outcome:#?}");
}

fn fingerprint(cli: &Cli, name: &str) -> String {
    let shown = cli.run(&["certificate", "show", name]).ok().json();
    shown["fingerprint"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn every_layout_in_one_tree_is_recognised_and_a_second_run_changes_nothing() {
    let world = world();
    let ca = Ca::new();
    let root = world.root();
    let old = ca.leaf("one.example").until(days(20)).issue();
    let one = ca.leaf("one.example").and("www.one.example").issue();
    certbot(&root.join("letsencrypt"), "my-lineage", &[&old, &one]);
    let wild = ca.issue("*.two.example");
    caddy(&root.join("caddy"), "*.two.example", &wild);
    let three = ca.leaf("three.example").key(Key::Rsa2048).issue();
    let three_ecc = ca.leaf("three.example").key(Key::P384).issue();
    acme_sh(&root.join(".acme.sh"), "three.example", false, &three);
    acme_sh(&root.join(".acme.sh"), "three.example", true, &three_ecc);
    let four = ca.issue("*.four.example");
    lego(&root.join(".lego"), "*.four.example", &four);
    let five = ca.issue("five.example");
    traefik(&root.join("traefik/acme.json"), &[("five.example", &five)]);
    // People: names that say nothing, a chain apart, a copy of something else, and both kinds of key for one host.
    let six = ca.issue("six.example");
    let (certificate, chain) = blocks(&six);
    write(root.join("certs/a.pem"), certificate);
    write(root.join("certs/intermediate.pem"), chain);
    write(root.join("private/b.pem"), key(&six));
    pair(&root.join("copies"), "again", &one);
    let (rsa, ecdsa) = (
        ca.leaf("seven.example").key(Key::Rsa2048).issue(),
        ca.leaf("seven.example").key(Key::P256).issue(),
    );
    pair(&root.join("both"), "rsa", &rsa);
    pair(&root.join("both"), "ecdsa", &ecdsa);
    // One folder, two years.
    let (last_year, this_year) = (
        ca.leaf("eight.example").until(days(9)).issue(),
        ca.leaf("eight.example").until(days(90)).issue(),
    );
    pair(&root.join("eight"), "2025", &last_year);
    pair(&root.join("eight"), "2026", &this_year);
    // What is broken, and does not keep the others from coming in.
    let gone = ca
        .leaf("gone.example")
        .until(OffsetDateTime::now_utc() - Duration::from_secs(60))
        .issue();
    pair(root, "gone.example", &gone);
    let (mismatched, other) = (ca.issue("mismatched.example"), ca.issue("other.example"));
    pair(root, "mismatched.example", &mismatched);
    write(root.join("mismatched.example.key"), key(&other));
    let bare = ca.issue("bare.example");
    write(root.join("bare.example.crt"), blocks(&bare).0);
    let cut = ca.issue("cut.example");
    pair(root, "cut.example", &cut);
    let text = blocks(&cut).0;
    write(root.join("cut.example.crt"), &text[..text.len() / 2]);
    symlink("nowhere.pem", root.join("dangling.pem")).expect("linked");
    symlink("/etc/ssl/certs", root.join("outside.pem")).expect("linked");
    write(
        root.join("dhparam.pem"),
        "-----BEGIN DH PARAMETERS-----\nMEYCQQ==\n-----END DH PARAMETERS-----\n",
    );
    write(root.join("notes.txt"), "nothing of interest");

    let seven = format!("seven-example-{}", &rsa.fingerprint()[..8]);
    let rest = [
        ("gone-example", "skipped expired"),
        ("mismatched-example", "refused key_mismatch"),
        ("bare-example", "refused key_missing"),
        ("cut-example", "refused pem_malformed"),
        ("dangling", "failed"),
        ("outside", "skipped"),
        ("eight-example", "?"),
    ];
    let names = [
        "my-lineage",
        "wildcard-two-example",
        "three-example",
        "three-example-ecc",
        "wildcard-four-example",
        "five-example",
        "six-example",
        "seven-example",
        &seven,
    ];
    // The superseded one has the same name as its successor, so these lines are looked at one by one.
    let of = |outcome: &Outcome, name: &str| -> Vec<Value> {
        outcome
            .lines()
            .into_iter()
            .filter(|line| line["name"] == name)
            .collect()
    };
    let plan = world.import(&["--dry-run"]);
    assert_eq!(plan.status, 1, "{plan:#?}");
    assert_eq!(plan.lines()[0]["add"], names.len() + 1, "{plan:#?}");
    assert_eq!(
        plan.lines()[0]["layouts"],
        json!({"acme-sh": 2, "caddy": 1, "certbot": 1, "lego": 1, "plain": 8, "traefik": 1}),
        "{plan:#?}"
    );
    assert_eq!(world.acme.run(&["certificate", "list"]).ok().stdout, "");
    for (run, verdict) in [(1, "added"), (2, "unchanged")] {
        let outcome = world.import(&[]);
        assert_eq!(outcome.status, 1, "{outcome:#?}");
        assert_eq!(outcome.stderr, "", "a pipe stays quiet");
        for name in names {
            let lines = of(&outcome, name);
            assert_eq!(lines.len(), 1, "{name}: {outcome:#?}");
            assert_eq!(lines[0]["verdict"], verdict, "run {run}: {}", lines[0]);
            assert_eq!(
                lines[0]["sequence"].is_u64(),
                run == 1,
                "run {run}: {}",
                lines[0]
            );
        }
        let eight: Vec<_> = of(&outcome, "eight-example")
            .iter()
            .map(|line| line["verdict"].clone())
            .collect();
        assert_eq!(eight, [json!("skipped"), json!(verdict)], "{outcome:#?}");
        for (name, expected) in rest.iter().filter(|(_, word)| *word != "?") {
            let line = &of(&outcome, name)[0];
            let code = line["code"].as_str().map(|c| format!(" {c}"));
            let found = format!(
                "{}{}",
                line["verdict"].as_str().unwrap_or_default(),
                code.unwrap_or_default()
            );
            assert_eq!(found, *expected, "{line}");
            assert_ne!(line["reasons"][0]["message"], "", "{line}");
        }
        let summary = outcome.lines().pop().expect("a summary");
        let counted: u64 = [
            "added",
            "replaced",
            "unchanged",
            "refused",
            "skipped",
            "failed",
        ]
        .iter()
        .map(|word| summary[*word].as_u64().unwrap_or_default())
        .sum();
        assert_eq!(counted as usize, outcome.lines().len() - 2, "{outcome:#?}");
    }
    for (name, leaf) in [
        ("my-lineage", &one),
        ("wildcard-two-example", &wild),
        ("three-example", &three),
        ("three-example-ecc", &three_ecc),
        ("wildcard-four-example", &four),
        ("five-example", &five),
        ("six-example", &six),
        ("seven-example", &ecdsa),
        (&seven, &rsa),
        ("eight-example", &this_year),
    ] {
        assert_eq!(fingerprint(&world.acme, name), leaf.fingerprint(), "{name}");
        // Verified with its key and with the intermediate that stood beside it.
        let _ = world
            .acme
            .run(&["certificate", "wait", name, "--status", "ready"])
            .ok();
    }
    // A part of a tool's folder alone is known too, under the same names.
    for part in [
        "letsencrypt/live",
        "letsencrypt/live/my-lineage",
        "caddy/certificates",
    ] {
        let outcome = import(&world.acme, &root.join(part), &["--dry-run"]).ok();
        assert_eq!(outcome.lines()[0]["unchanged"], 1, "{outcome:#?}");
    }
    let forced = import(&world.acme, root, &["--dry-run", "--layout", "lego"]).ok();
    expect(&forced, &[("wildcard-four-example", "unchanged")]);
}

#[test]
fn a_renewal_follows_and_what_would_be_a_step_back_is_refused_with_the_command_that_forces_it() {
    let world = world();
    let ca = Ca::new();
    let live = world.root().join("letsencrypt");
    let first = ca
        .leaf("a.example")
        .and("b.example")
        .until(days(30))
        .issue();
    certbot(&live, "site", &[&first]);
    expect(&world.import(&[]).ok(), &[("site", "added")]);
    let renewed = ca
        .leaf("a.example")
        .and("b.example")
        .until(days(90))
        .issue();
    certbot(&live, "site", &[&first, &renewed]);
    let outcome = world.import(&[]).ok();
    expect(&outcome, &[("site", "replaced")]);
    assert_eq!(outcome.lines()[0]["replace"], 1);
    assert_eq!(fingerprint(&world.acme, "site"), renewed.fingerprint());
    // The older one is known, whichever version it is now.
    certbot(&live, "site", &[&first]);
    expect(&world.import(&[]).ok(), &[("site", "unchanged")]);
    // Fewer hosts: nobody wants that by accident.
    let fewer = ca.leaf("a.example").until(days(120)).issue();
    certbot(&live, "site", &[&fewer]);
    let outcome = world.import(&[]);
    assert_eq!(outcome.status, 1);
    expect(&outcome, &[("site", "refused duplicate_name")]);
    let line = &verdicts(&outcome)["site"];
    assert!(
        line["reasons"][0]["message"]
            .as_str()
            .is_some_and(|text| text.contains("b.example")),
        "{line}"
    );
    let hint = line["reasons"][0]["hint"].as_str().expect("a hint");
    let command = hint
        .split_once("chancery ")
        .and_then(|(_, rest)| rest.split_once(';'))
        .expect("a command")
        .0;
    let words: Vec<&str> = command.split(' ').collect();
    let _ = world.acme.run(&words).ok();
    assert_eq!(fingerprint(&world.acme, "site"), fewer.fingerprint());
    // With a prefix it stands beside it.
    let sooner = ca.leaf("a.example").until(days(50)).issue();
    certbot(&live, "site", &[&sooner]);
    expect(&world.import(&[]), &[("site", "refused duplicate_name")]);
    expect(
        &world.import(&["--name-prefix", "old", "--standby"]).ok(),
        &[("old-site", "added")],
    );
    let shown = world
        .acme
        .run(&["certificate", "show", "old-site"])
        .ok()
        .json();
    assert_eq!(shown["standby"], true, "{shown}");
}

/// Kills imports at several moments, runs two at once, and demands that all of it is there once.
#[test]
fn an_import_that_is_killed_goes_on_and_two_at_once_do_no_harm() {
    const PAIRS: usize = 90;
    let world = world();
    let ca = Ca::new();
    for n in 0..PAIRS {
        let leaf = ca.issue(&format!("host-{n:02}.example"));
        pair(world.root(), &format!("host-{n:02}.example"), &leaf);
    }
    let start = || {
        Command::new(binary())
            .args(["--json", "certificate", "import"])
            .arg(world.root())
            .args(["--region", "local", "--yes"])
            .envs(world.acme.environment())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary runs")
    };
    for seen in [3, 30] {
        let mut child = start();
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let added = stdout
            .lines()
            .map_while(Result::ok)
            .filter(|line| line.contains("\"added\"") && line.contains("sequence"))
            .take(seen)
            .count();
        child.kill().expect("killed");
        let _ = child.wait();
        assert_eq!(added, seen, "it ended before it could be killed");
    }
    let there = world.acme.run(&["certificate", "list"]).ok().lines().len();
    assert!((33..PAIRS).contains(&there), "{there} after two kills");
    let children = [start(), start()];
    let outcomes: Vec<Vec<Value>> = children
        .into_iter()
        .map(|child| {
            let output = child.wait_with_output().expect("it ends");
            assert!(output.status.success(), "{output:?}");
            String::from_utf8_lossy(&output.stdout)
                .lines()
                .map(|line| serde_json::from_str(line).expect("JSON"))
                .collect()
        })
        .collect();
    let sum = |word: &str| -> u64 {
        outcomes
            .iter()
            .filter_map(|lines| lines.last()?[word].as_u64())
            .sum()
    };
    // A command that was on its way when its sender was killed may have come through after the listing above.
    assert!(sum("added") as usize <= PAIRS - there);
    assert_eq!(sum("added") + sum("unchanged"), 2 * PAIRS as u64);
    let certificates = world.acme.run(&["certificate", "list"]).ok().lines();
    assert_eq!(certificates.len(), PAIRS);
    for certificate in &certificates {
        assert_eq!(
            certificate["versions"].as_array().map(Vec::len),
            Some(1),
            "{certificate}"
        );
    }
    let log = world.operator.run(&["events", "replay"]).ok().stdout;
    assert_eq!(
        log.matches("dev.chancery.certificate.added.v1").count(),
        PAIRS
    );
    let last = world.import(&[]).ok();
    assert_eq!(last.lines()[0]["unchanged"], PAIRS);
    assert_eq!(last.lines()[0]["add"], 0);
}

/// The control plane dies in the middle and comes back; the client neither notices nor asks for anything twice.
#[test]
fn an_import_outlives_the_control_plane() {
    const PAIRS: usize = 80;
    let folder = tempfile::tempdir().expect("a folder");
    let chancery = Up::in_folder(folder.path()).start();
    let operator = chancery.operator();
    let _ = operator.run(&["project", "create", "acme"]).ok();
    let acme = operator.project("acme");
    let tree = tempfile::tempdir().expect("a folder");
    let ca = Ca::new();
    for n in 0..PAIRS {
        pair(
            tree.path(),
            &format!("h{n}"),
            &ca.issue(&format!("h{n}.example")),
        );
    }
    let mut child = Command::new(binary())
        .args(["--json", "certificate", "import"])
        .arg(tree.path())
        .args(["--region", "local", "--yes"])
        .envs(acme.environment())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped"))
        .lines()
        .map_while(Result::ok);
    let first = lines.by_ref().find(|line| line.contains("sequence"));
    assert!(first.is_some(), "nothing was added");
    let _ = chancery.kill();
    let chancery = Up::in_folder(folder.path()).start();
    let last = lines.last().expect("a summary");
    let ended = child.wait().expect("it ends");
    let summary: Value = serde_json::from_str(&last).expect("JSON");
    assert!(ended.success(), "{summary}");
    let (added, unchanged) = (&summary["added"], &summary["unchanged"]);
    assert_eq!(
        added.as_u64().unwrap_or_default() + unchanged.as_u64().unwrap_or_default(),
        PAIRS as u64,
        "{summary}"
    );
    let log = chancery.operator().run(&["events", "replay"]).ok().stdout;
    assert_eq!(
        log.matches("dev.chancery.certificate.added.v1").count(),
        PAIRS
    );
}

#[test]
fn a_tenant_is_imported_as_fast_as_the_rate_allows_and_no_faster() {
    const PAIRS: usize = 40;
    const PER_SECOND: f64 = 10.0;
    const BURST: usize = 5;
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("slow.toml");
    fs::write(
        &config,
        format!("state = \"state\"\n[control]\ncommands_per_second = {PER_SECOND}\ncommand_burst = {BURST}\n\
             [[edge]]\nregion = \"local\"\nname = \"local-1\"\nhttps = \"127.0.0.1:0\"\n"),
    )
    .expect("written");
    let chancery = Up::in_folder(folder.path())
        .flag("--config")
        .flag(&config.display().to_string())
        .start();
    let user = chancery.project("acme", "alice");
    let tree = tempfile::tempdir().expect("a folder");
    let ca = Ca::new();
    for n in 0..PAIRS {
        pair(
            tree.path(),
            &format!("h{n}"),
            &ca.issue(&format!("h{n}.example")),
        );
    }
    let begun = Instant::now();
    let outcome = import(&user, tree.path(), &[]).ok();
    let took = begun.elapsed().as_secs_f64();
    let least = (PAIRS - BURST) as f64 / PER_SECOND;
    assert!(took >= least, "{took} s, at least {least} s are due");
    assert_eq!(outcome.lines().last().expect("a summary")["added"], PAIRS);
    let status = chancery.operator().run(&["status"]).json();
    assert_eq!(user.run(&["certificate", "list"]).ok().lines().len(), PAIRS);
    // It waited for its turn instead of knocking all the time.
    let log = chancery
        .operator()
        .run(&["events", "replay"])
        .ok()
        .lines()
        .iter()
        .filter(|event| event["type"] == "dev.chancery.command.rejected.v1")
        .count();
    assert_eq!(log, 0, "{status}");
}

#[test]
fn what_does_not_fit_the_quota_is_told_before_anything_is_sent() {
    const QUOTA: usize = 100;
    const OVER: usize = 3;
    let world = world();
    let ca = Ca::new();
    for n in 0..QUOTA + OVER {
        pair(
            world.root(),
            &format!("h{n:03}"),
            &ca.issue(&format!("h{n:03}.example")),
        );
    }
    let plan = world.import(&["--dry-run"]);
    assert_eq!(plan.status, 1);
    let quota = &plan.lines()[0]["quota"];
    assert_eq!(quota["fits"], false, "{quota}");
    assert_eq!(quota["limits"][0]["free"], QUOTA, "{quota}");
    let outcome = world.import(&[]);
    assert_eq!(outcome.status, 1);
    let summary = outcome.lines().pop().expect("a summary");
    assert_eq!(
        (&summary["added"], &summary["refused"]),
        (&json!(QUOTA), &json!(OVER)),
        "{summary}"
    );
    let refused = &verdicts(&outcome)["h102-example"];
    assert_eq!(refused["code"], "quota_exceeded", "{refused}");
    let hint = refused["reasons"][0]["hint"].as_str().expect("a hint");
    let rejected = world
        .operator
        .run(&["events", "replay"])
        .ok()
        .stdout
        .matches("command.rejected")
        .count();
    assert_eq!(rejected, 0, "nothing was sent that could not fit");
    // The operator does what the hint says, and the same import goes on.
    let command = hint.split_once("chancery ").expect("a command").1;
    let words: Vec<&str> = command.split(' ').collect();
    let _ = world.operator.run(&words).ok();
    let outcome = world.import(&[]).ok();
    let summary = outcome.lines().pop().expect("a summary");
    assert_eq!(
        (&summary["added"], &summary["unchanged"]),
        (&json!(OVER), &json!(QUOTA)),
        "{summary}"
    );
}

fn openssl(words: &[&str], at: &Path) {
    let output = Command::new("openssl")
        .args(words)
        .current_dir(at)
        .output()
        .expect("openssl runs");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn containers_and_encrypted_keys_come_in_with_the_passwords_that_are_named() {
    let world = world();
    let ca = Ca::new();
    let root = world.root();
    let (first, second, third) = (
        ca.issue("first.example"),
        ca.issue("second.example"),
        ca.issue("third.example"),
    );
    pair(&root.join("a"), "first", &first);
    pair(&root.join("b"), "second", &second);
    let (pkcs8, container) = (root.join("a"), root.join("b"));
    openssl(
        &[
            "pkcs8",
            "-topk8",
            "-in",
            "first.key",
            "-out",
            "closed.key",
            "-passout",
            "pass:one",
        ],
        &pkcs8,
    );
    fs::rename(pkcs8.join("closed.key"), pkcs8.join("first.key")).expect("moved");
    openssl(
        &[
            "pkcs12",
            "-export",
            "-in",
            "second.crt",
            "-inkey",
            "second.key",
            "-out",
            "second.p12",
            "-passout",
            "pass:two",
        ],
        &container,
    );
    fs::remove_file(container.join("second.crt")).expect("removed");
    fs::remove_file(container.join("second.key")).expect("removed");
    pair(&root.join("c"), "third", &third);
    openssl(
        &[
            "x509",
            "-in",
            "third.crt",
            "-outform",
            "der",
            "-out",
            "third.der",
        ],
        &root.join("c"),
    );
    fs::rename(root.join("c/third.der"), root.join("c/third.crt")).expect("moved");
    let outcome = world.import(&[]);
    assert_eq!(outcome.status, 1);
    expect(
        &outcome,
        &[
            ("first-example", "refused key_encrypted"),
            ("second", "refused key_encrypted"),
            // DER holds no chain; the intermediate stands in the first one's file.
            ("third-example", "added"),
        ],
    );
    let (one, two) = (
        world.chancery.folder().join("1"),
        world.chancery.folder().join("2"),
    );
    write(&one, "one\n");
    write(&two, "two\n");
    let outcome = world.import(&[
        "--password-file",
        &one.display().to_string(),
        "--password-file",
        &two.display().to_string(),
    ]);
    expect(
        &outcome.ok(),
        &[
            ("first-example", "added"),
            ("second-example", "added"),
            ("third-example", "unchanged"),
        ],
    );
}

#[test]
fn what_cannot_run_says_so() {
    let world = world();
    let root = world.root().display().to_string();
    let words = ["certificate", "import", root.as_str(), "--region", "local"];
    for more in [
        &[][..],
        &["--yes", "--id", "0190a5b0-0000-7000-8000-000000000000"],
        &["--yes", "--layout", "nginx"],
        &["--yes", "--name-prefix", "No"],
    ] {
        let outcome = world.acme.run(&[&words[..], more].concat());
        assert_eq!(outcome.status, 2, "{outcome:#?}");
    }
    let nowhere = world.acme.run(&[
        "certificate",
        "import",
        "/nonexistent",
        "--region",
        "local",
        "--yes",
    ]);
    assert_eq!(nowhere.status, 2, "{nowhere:#?}");
    // An empty folder is imported at once.
    let outcome = world.import(&[]).ok();
    assert_eq!(outcome.lines().len(), 2);
    // Somebody who may only look is told once.
    let creds = world.chancery.folder().join("looker.creds");
    let file = creds.display().to_string();
    let _ = world
        .acme
        .run(&[
            "access", "create", "looker", "--out", &file, "--right", "query.*",
        ])
        .ok();
    pair(world.root(), "a", &Ca::new().issue("a.example"));
    let outcome = import(&world.operator.user(&creds), world.root(), &[]);
    assert_eq!(outcome.status, 1, "{outcome:#?}");
    let codes: Vec<_> = outcome.lines().iter().map(|l| l["code"].clone()).collect();
    assert_eq!(codes.last(), Some(&json!("unauthorized")), "{outcome:#?}");
    // A region that is not there.
    let outcome = world
        .acme
        .run(&["certificate", "import", &root, "--region", "moon", "--yes"]);
    assert_eq!(outcome.status, 1, "{outcome:#?}");
    expect(&outcome, &[("a-example", "refused not_found")]);
}

/// `script` gives the command a terminal, as a person has one.
fn on_a_terminal(world: &World, answer: &str) -> (i32, String) {
    let command = format!(
        "{} certificate import {} --region local",
        binary().display(),
        world.root().display()
    );
    let answers: PathBuf = world.chancery.folder().join("answer");
    write(&answers, answer);
    let output = Command::new("script")
        .args(["-qefc", &command, "/dev/null"])
        .envs(world.acme.environment())
        .env("TERM", "xterm")
        .stdin(fs::File::open(&answers).expect("there"))
        .output()
        .expect("script runs");
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

#[test]
fn a_person_is_asked_and_sees_how_far_it_has_come() {
    let world = world();
    let ca = Ca::new();
    for n in 0..20 {
        pair(
            world.root(),
            &format!("h{n}"),
            &ca.issue(&format!("h{n}.example")),
        );
    }
    let (status, said) = on_a_terminal(&world, "n\n");
    assert_eq!(status, 1, "{said}");
    assert!(
        said.contains("20 to add") && said.contains("[y/N]"),
        "{said}"
    );
    assert_eq!(world.acme.run(&["certificate", "list"]).ok().stdout, "");
    let (status, said) = on_a_terminal(&world, "y\n");
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("importing ["), "no progress: {said}");
    assert!(said.contains("20 added"), "{said}");
    eventually("all of them", SOON, || {
        let there = world.acme.run(&["certificate", "list"]).ok().lines().len();
        if there == 20 {
            Ok(())
        } else {
            Err(there.to_string())
        }
    });
}
