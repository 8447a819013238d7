//! The daily life of a project: finding certificates and why they serve or do not, keys that are born inside, that leave, and
//! that go to another project.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use harness::{Key, Leaf, SOON, eventually, handshake, openssl};
use keyring::PrivateKey;
use keyring::hpke::{Recipient, Sealed};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use crate::search::{needles, search};
use crate::stage::{Stage, dark, nats, resource, serves, upload, wait};

fn words<'a>(words: &[&'a str]) -> Vec<&'a str> {
    words.to_vec()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn names(lines: &[Value]) -> Vec<String> {
    let mut names: Vec<String> = lines
        .iter()
        .map(|line| line["name"].as_str().expect("a name").to_owned())
        .collect();
    names.sort();
    names
}

// ---- finding

#[test]
fn certificates_are_found_by_their_end_and_status() {
    let stage = Stage::new();
    stage.bucket("www.example.com");
    let in_days = |days: i64| {
        stage
            .ca
            .leaf("www.example.com")
            .until(OffsetDateTime::now_utc() + Duration::days(days))
            .issue()
    };
    stage.upload("late", &in_days(80));
    stage.upload("soon", &in_days(20));
    stage.upload("sooner", &in_days(5));
    let list = |further: &[&str]| {
        let mut all = words(&["certificate", "list"]);
        all.extend(further);
        names(&stage.alice.run(&all).ok().lines())
    };
    assert_eq!(list(&[]), ["late", "soon", "sooner"]);
    assert_eq!(list(&["--expiring", "30"]), ["soon", "sooner"]);
    assert_eq!(list(&["--expiring", "7"]), ["sooner"]);
    assert_eq!(list(&["--expiring", "1"]), Vec::<String>::new());
    assert_eq!(list(&["--status", "active"]), ["sooner"]);
    assert_eq!(list(&["--status", "standby"]), ["late", "soon"]);
    assert_eq!(
        list(&["--status", "ready", "--expiring", "30"]),
        ["soon", "sooner"]
    );
    assert_eq!(list(&["--status", "error"]), Vec::<String>::new());
    let odd = stage
        .alice
        .run(&["certificate", "list", "--status", "shiny"]);
    assert_eq!(odd.refused(), "malformed");
    // For people, the first to end comes first.
    let said = stage
        .alice
        .say(&["certificate", "list", "--expiring", "30"])
        .ok()
        .stdout;
    assert!(said.find("sooner") < said.find("soon "), "{said}");
    let shown = stage
        .alice
        .run(&["certificate", "show", "soon"])
        .ok()
        .json();
    assert!(shown["next_warning"]["due"].is_string(), "{shown}");
    let chain = shown["chain"].as_str().expect("its chain");
    assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 2, "{chain}");
}

/// The reasons why a certificate does not serve a host, by code.
fn why(line: &Value) -> Vec<&str> {
    let reasons = line["usable"]["why"].as_array().expect("reasons");
    reasons
        .iter()
        .map(|reason| reason["code"].as_str().expect("a code"))
        .collect()
}

fn hint(line: &Value) -> &str {
    line["usable"]["why"][0]["hint"].as_str().expect("a hint")
}

#[test]
fn each_certificate_says_why_it_serves_a_host_or_does_not() {
    let stage = Stage::with_regions(&["eu-1", "us-1"]);
    let host = "www.example.com";
    stage.resource("shop", "cdn", &["eu-1", "us-1"]);
    stage.domain(host, "shop");
    let everywhere = ["--region", "eu-1", "--region", "us-1"];
    let alice = &stage.alice;
    upload(alice, "first", &stage.ca.issue(host), &everywhere);
    upload(
        alice,
        "second",
        &stage.ca.issue(host),
        &["--region", "eu-1"],
    );
    let spare = [&everywhere[..], &["--standby"]].concat();
    upload(alice, "spare", &stage.ca.issue("*.example.com"), &spare);
    upload(
        alice,
        "apex",
        &stage.ca.issue("*.www.example.com"),
        &everywhere,
    );
    upload(alice, "deep", &stage.ca.issue("*.com.example"), &everywhere);
    let find = |host: &str, name: &str| -> Value {
        let lines = alice
            .run(&["certificate", "list", "--host", host])
            .ok()
            .lines();
        assert_eq!(lines.len(), 5, "none is hidden");
        lines
            .into_iter()
            .find(|line| line["name"] == name)
            .expect("it is listed")
    };
    let region = |line: &Value, region: &str| -> Value {
        let regions = line["usable"]["regions"].as_array().expect("regions");
        let found = regions.iter().find(|r| r["region"] == region);
        found
            .cloned()
            .unwrap_or_else(|| panic!("no {region}: {line}"))
    };

    // The later one is active where it is, the first one where it is alone.
    let first = find(host, "first");
    assert_eq!(first["usable"]["usable"], true);
    assert_eq!(region(&first, "us-1")["role"], "active");
    let eu = region(&first, "eu-1");
    assert_eq!(
        (&eu["role"], &eu["place"]),
        (&json!("fallback"), &json!(2)),
        "{eu}"
    );
    assert!(
        eu["note"]
            .as_str()
            .is_some_and(|n| n.contains("second is served")),
        "{eu}"
    );
    let second = find(host, "second");
    assert_eq!(region(&second, "eu-1")["role"], "active");
    let us = region(&second, "us-1");
    assert_eq!(
        us["why"][0]["hint"], "chancery certificate deploy second --region us-1",
        "{us}"
    );
    let spare = find(host, "spare");
    assert!(
        region(&spare, "us-1")["note"]
            .as_str()
            .is_some_and(|n| n.contains("standby")),
        "{spare}"
    );
    // Names that come near, and why they do not cover.
    let apex = find(host, "apex");
    assert_eq!(why(&apex), ["name_mismatch"]);
    let message = apex["usable"]["why"][0]["message"].as_str().expect("text");
    assert!(
        message.contains("*.www.example.com") && message.contains("not for www.example.com itself"),
        "{message}"
    );
    assert!(
        hint(&apex).contains("certificate replace apex"),
        "{}",
        hint(&apex)
    );
    let deep = find("a.b.example.com", "spare");
    let message = deep["usable"]["why"][0]["message"].as_str().expect("text");
    assert!(message.contains("one level only"), "{message}");

    // A claim that is not proven, then one that is not attached, then one of another project.
    alice.run(&["domain", "add", "new.example.com"]).ok();
    let spare = find("new.example.com", "spare");
    assert_eq!(why(&spare)[0], "domain_unproven");
    assert!(hint(&spare).contains("chancery domain check new.example.com"));
    stage
        .operator
        .project("acme")
        .run(&["domain", "prove", "new.example.com"])
        .ok();
    let spare = find("new.example.com", "spare");
    assert_eq!(why(&spare)[0], "not_found");
    assert!(
        hint(&spare).contains("chancery domain attach new.example.com"),
        "{}",
        hint(&spare)
    );
    let spare = find("unheard.example.com", "spare");
    assert_eq!(why(&spare)[0], "domain_unproven");
    assert!(hint(&spare).contains("chancery domain add unheard.example.com"));
    let bob = stage.chancery.project("bravo", "bob");
    bob.run(&["domain", "add", "taken.example.com"]).ok();
    stage
        .operator
        .project("bravo")
        .run(&["domain", "prove", "taken.example.com"])
        .ok();
    assert_eq!(
        why(&find("taken.example.com", "spare"))[0],
        "domain_claimed"
    );

    // What people did: bound to another, off, only public ones.
    alice
        .run(&["domain", "bind", host, "first", "--region", "eu-1"])
        .ok();
    let second = find(host, "second");
    let eu = region(&second, "eu-1");
    assert!(
        eu["note"]
            .as_str()
            .is_some_and(|n| n.contains("first is bound")),
        "{eu}"
    );
    alice
        .run(&["domain", "https", host, "off", "--region", "us-1"])
        .ok();
    let us = region(&find(host, "first"), "us-1");
    assert_eq!(us["usable"], false);
    assert_eq!(
        us["why"][0]["hint"], "chancery domain https www.example.com auto --region us-1",
        "{us}"
    );
    alice
        .run(&["domain", "https", host, "auto", "--region", "us-1"])
        .ok();
    let origin = stage.origin.url();
    let words = [
        "resource",
        "create",
        "strict",
        "--kind",
        "cdn",
        "--region",
        "eu-1",
        "--origin",
        &origin,
        "--demand-public",
    ];
    stage.operator.project("acme").run(&words).ok();
    let strict = "strict.example.com";
    stage.domain(strict, "strict");
    let spare = find(strict, "spare");
    assert_eq!(spare["usable"]["usable"], false);
    assert!(why(&spare).contains(&"chain_untrusted"), "{spare}");
    let shown = alice.run(&["resource", "show", "strict"]).ok().json();
    assert_eq!(shown["demand_public"], true);
    // People see what serves first, and reasons below.
    let said = |host: &str| {
        let outcome = alice.say(&["certificate", "list", "--host", host]);
        outcome.ok().stdout
    };
    let text = said(strict);
    assert!(
        text.contains("demands publicly trusted") && text.contains("name_mismatch"),
        "{text}"
    );
    let text = said(host);
    assert!(
        text.contains("active in eu-1") && text.find("first") < text.find("apex"),
        "{text}"
    );
    let odd = alice.run(&["certificate", "list", "--host", "-"]);
    assert_eq!(odd.refused(), "malformed");
}

#[test]
fn pages_follow_each_other_also_when_few_pass_the_filter() {
    let stage = Stage::new();
    stage.chancery.quota("acme", 1_000);
    let leaf = stage.ca.issue("many.example.com");
    let last = stage
        .ca
        .leaf("last.example.com")
        .until(OffsetDateTime::now_utc() + Duration::days(3))
        .issue();
    let (runtime, client) = nats(&stage.alice);
    let ask = |subject: &str, body: Value| -> Value {
        let answer = runtime
            .block_on(client.request(format!("chancery.v1.{subject}"), body.to_string().into()))
            .expect("an answer");
        serde_json::from_slice(&answer.payload).expect("JSON")
    };
    let sealed = |leaf: &Leaf| {
        let key = text(leaf.key());
        stage.alice.run(&["seal", "--key", &key]).ok().json()
    };
    let (key, chain) = (
        sealed(&leaf),
        fs::read_to_string(leaf.chain()).expect("chain"),
    );
    for n in 0..250 {
        let body =
            json!({"name": format!("c-{n:03}"), "chain": chain, "key": key, "regions": ["local"]});
        let answer = ask("cmd.acme.certificate.add", body);
        assert_eq!(answer["outcome"], "accepted", "{answer}");
    }
    upload(&stage.alice, "z-last", &last, &["--region", "local"]);
    // The command line takes 200 a page.
    let all = stage.alice.run(&["certificate", "list"]).ok().lines();
    assert_eq!(all.len(), 251);
    let soon = stage
        .alice
        .run(&["certificate", "list", "--expiring", "7"])
        .ok()
        .lines();
    assert_eq!(names(&soon), ["z-last"]);
    let (mut after, mut seen, mut pages) = (Value::Null, Vec::new(), 0);
    loop {
        let page = ask(
            "query.acme.certificates",
            json!({"limit": 100, "after": after}),
        );
        let found = page["certificates"].as_array().expect("a page").clone();
        assert!(found.len() <= 100);
        seen.extend(names(&found));
        pages += 1;
        after = page["next"].clone();
        if after.is_null() {
            break;
        }
    }
    let mut once = seen.clone();
    once.dedup();
    assert_eq!((seen.len(), once.len(), pages), (251, 251, 3));
}

// ---- born inside

fn made(stage: &Stage, name: &str, further: &[&str]) -> Value {
    let mut all = words(&["certificate", "csr", name]);
    all.extend(further);
    stage.alice.run(&all).ok().json()
}

#[test]
fn a_key_that_was_born_inside_serves_once_its_certificate_comes() {
    let stage = Stage::new();
    let host = "shop.example.com";
    stage.bucket(host);
    for (kind, name) in [
        ("rsa2048", "rsa"),
        ("p256", "p256"),
        ("p384", "p384"),
        ("ed25519", "ed"),
    ] {
        let answer = made(
            &stage,
            name,
            &[
                "--host",
                host,
                "--host",
                "WWW.Shop.Example.com",
                "--key-type",
                kind,
            ],
        );
        let pem = answer["csr"].as_str().expect("a request");
        let read = openssl(&["req", "-verify", "-noout", "-text"], pem.as_bytes());
        let read = String::from_utf8_lossy(&read);
        assert!(
            read.contains("DNS:shop.example.com, DNS:www.shop.example.com"),
            "{read}"
        );
    }
    let listed = stage
        .alice
        .run(&["certificate", "list", "--csrs"])
        .ok()
        .lines();
    assert_eq!(names(&listed), ["ed", "p256", "p384", "rsa"]);
    let usage = stage.operator.run(&["project", "show", "acme"]).ok().json();
    assert_eq!(usage["usage"]["csrs"], 4, "{usage}");
    // A name is taken until its certificate comes.
    let again = stage
        .alice
        .run(&["certificate", "csr", "p256", "--host", host]);
    assert_eq!(again.refused(), "duplicate_name");

    // The same id is the same request, whatever else was made meanwhile.
    let id = uuid::Uuid::now_v7().to_string();
    let first = made(&stage, "twice", &["--host", host, "--id", &id]);
    let second = made(&stage, "twice", &["--host", host, "--id", &id]);
    assert_eq!(first["csr"], second["csr"]);
    assert_eq!(first["sequence"], second["sequence"]);
    let file = stage.chancery.folder().join("twice.csr");
    stage
        .alice
        .run(&[
            "certificate",
            "csr",
            "twice",
            "--show",
            "--out",
            &text(&file),
        ])
        .ok();
    assert_eq!(
        json!(fs::read_to_string(&file).expect("written")),
        first["csr"]
    );

    // The CA signs; the certificate comes without a key, under a name of its own, and is served.
    let (leaf, chain) = stage.ca.sign(first["csr"].as_str().expect("a request"));
    let add = |name: &str, chain: &Path| {
        stage.alice.run(&[
            "certificate",
            "add",
            name,
            "--chain",
            &text(chain),
            "--region",
            "local",
        ])
    };
    add("site", &chain).ok();
    wait(&stage.alice, "site", "active");
    eventually("the signed leaf is served", SOON, || {
        match handshake(stage.chancery.https(), host, &[]).served() {
            Ok(der) if der == leaf => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let left = stage
        .alice
        .run(&["certificate", "list", "--csrs"])
        .ok()
        .lines();
    assert_eq!(names(&left), ["ed", "p256", "p384", "rsa"]);
    // The same key once more, as some CAs renew: `replace` without a key.
    let (renewed, chain) = stage.ca.sign(first["csr"].as_str().expect("a request"));
    stage
        .alice
        .run(&[
            "certificate",
            "replace",
            "site",
            "--chain",
            &text(&chain),
            "--wait",
        ])
        .ok();
    eventually("the renewed leaf is served", SOON, || {
        match handshake(stage.chancery.https(), host, &[]).served() {
            Ok(der) if der == renewed => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });

    // A certificate whose key nobody has here is told so, with both ways to mend it.
    let other = stage.ca.issue(host);
    let refused = add("other", other.chain());
    assert_eq!(refused.refused(), "key_missing");
    let hint = refused.json()["reasons"][0]["hint"].to_string();
    assert!(
        hint.contains("--key FILE") && hint.contains("certificate csr"),
        "{hint}"
    );
    // Nor is another project's key this one's.
    let bob = stage.chancery.project("bravo", "bob");
    let theirs = bob.run(&[
        "certificate",
        "add",
        "site",
        "--chain",
        &text(&chain),
        "--region",
        "local",
    ]);
    assert_eq!(theirs.refused(), "key_missing");

    // Given up, its key is gone: what was signed for it comes too late.
    let (_, late) = stage.ca.sign(
        stage
            .alice
            .run(&["certificate", "csr", "p384", "--show"])
            .ok()
            .json()["csr"]
            .as_str()
            .expect("a request"),
    );
    stage
        .alice
        .run(&["certificate", "csr", "p384", "--discard"])
        .ok();
    assert_eq!(add("late", &late).refused(), "key_missing");
    assert_eq!(
        stage
            .alice
            .run(&["certificate", "csr", "p384", "--discard"])
            .refused(),
        "not_found"
    );
    assert_eq!(
        stage
            .alice
            .run(&["certificate", "csr", "bad", "--host", "-"])
            .refused(),
        "malformed"
    );
}

// ---- out

/// A user of `acme` who may export.
fn exporter(stage: &Stage) -> harness::Cli {
    let creds = stage.chancery.folder().join("exporter.creds");
    stage
        .operator
        .project("acme")
        .run(&[
            "access",
            "create",
            "exporter",
            "--export",
            "--out",
            &text(&creds),
        ])
        .ok();
    stage.operator.user(&creds)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path)
        .expect("it is there")
        .permissions()
        .mode()
        & 0o777
}

fn public_of_key(pem: &[u8]) -> Vec<u8> {
    openssl(&["pkey", "-pubout"], pem)
}

fn public_of_certificate(pem: &[u8]) -> Vec<u8> {
    openssl(&["x509", "-pubkey", "-noout"], pem)
}

#[test]
fn a_certificate_leaves_in_the_forms_that_others_read() {
    let stage = Stage::new();
    let exporter = exporter(&stage);
    let folder = stage.chancery.folder().to_owned();
    let file = |name: &str| folder.join(name);
    let password = file("password");
    fs::write(&password, "correct horse\n").expect("written");
    for (name, kind) in [
        ("rsa", Key::Rsa2048),
        ("p256", Key::P256),
        ("p384", Key::P384),
        ("ed25519", Key::Ed25519),
    ] {
        let leaf = stage.ca.leaf("www.example.com").key(kind).issue();
        stage.upload(name, &leaf);
        let export = |format: &str, out: &Path, further: &[&str]| {
            let out = text(out);
            let mut all = words(&[
                "certificate",
                "export",
                name,
                "--format",
                format,
                "--out",
                &out,
            ]);
            all.extend(further);
            exporter.run(&all).ok().json()
        };
        let (pem, key) = (file(&format!("{name}.pem")), file(&format!("{name}.key")));
        let told = export("nginx", &pem, &[]);
        assert_eq!(told["files"], json!([text(&pem), text(&key)]), "{told}");
        assert_eq!((mode(&pem), mode(&key)), (0o600, 0o600));
        let chain = fs::read(&pem).expect("written");
        assert_eq!(
            openssl(&["x509", "-outform", "DER"], &chain),
            leaf.der,
            "the leaf comes first"
        );
        let key = fs::read(&key).expect("written");
        assert_eq!(public_of_key(&key), public_of_certificate(&chain));
        let both = file(&format!("{name}.haproxy"));
        export("haproxy", &both, &[]);
        let both = fs::read(&both).expect("written");
        assert_eq!(public_of_key(&both), public_of_certificate(&both));
        let container = file(&format!("{name}.pfx"));
        export("pkcs12", &container, &["--password-file", &text(&password)]);
        assert_eq!(mode(&container), 0o600);
        let opened = openssl(
            &["pkcs12", "-nodes", "-passin", "pass:correct horse"],
            &fs::read(&container).expect("written"),
        );
        assert_eq!(public_of_key(&opened), public_of_certificate(&chain));
        let all = String::from_utf8_lossy(&opened)
            .matches("BEGIN CERTIFICATE")
            .count();
        assert_eq!(all, 2, "leaf and intermediate");
    }
    // Nothing is overwritten unless that is said, and then nothing has left either.
    let count = || {
        let lines = stage.operator.run(&["events", "replay"]).ok().lines();
        let left = lines
            .iter()
            .filter(|e| e["type"] == "dev.chancery.certificate.exported.v1");
        left.count()
    };
    let before = count();
    assert_eq!(before, 12);
    let again = ["certificate", "export", "rsa", "--format", "nginx", "--out"];
    let pem = text(&file("rsa.pem"));
    let refused = exporter.run(&[&again[..], &[&pem]].concat());
    assert_eq!((refused.status, count()), (2, before), "{refused:?}");
    exporter
        .run(&[&again[..], &[&pem, "--force"]].concat())
        .ok();
    // To standard output, where that is no terminal.
    let out = exporter
        .say(&[
            "certificate",
            "export",
            "rsa",
            "--format",
            "haproxy",
            "--out",
            "-",
        ])
        .ok();
    assert!(
        out.stdout.contains("PRIVATE KEY") && !out.stderr.contains("PRIVATE"),
        "{}",
        out.stderr
    );
    let wrong = exporter.run(&[
        "certificate",
        "export",
        "rsa",
        "--format",
        "haproxy",
        "--out",
        "-",
    ]);
    assert_eq!(wrong.status, 2);
    // Real servers read them, where they are installed.
    if let Some(nginx) = installed("nginx") {
        let conf = file("nginx.conf");
        fs::write(&conf, format!(
            "pid {0}/nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{ access_log off; server {{ listen 127.0.0.1:1 ssl; ssl_certificate {0}/p256.pem; ssl_certificate_key {0}/p256.key; }} }}\n",
            folder.display()
        )).expect("written");
        let tried = Command::new(nginx)
            .args(["-t", "-p"])
            .arg(&folder)
            .arg("-c")
            .arg(&conf)
            .output()
            .expect("nginx runs");
        let said = String::from_utf8_lossy(&tried.stderr).into_owned();
        assert!(
            tried.status.success() || said.contains("syntax is ok"),
            "{said}"
        );
    }
    if let Some(haproxy) = installed("haproxy") {
        let conf = file("haproxy.cfg");
        fs::write(&conf, format!(
            "defaults\n mode http\n timeout connect 1s\n timeout client 1s\n timeout server 1s\nfrontend f\n bind 127.0.0.1:1 ssl crt {}/p256.haproxy\n",
            folder.display()
        )).expect("written");
        let tried = Command::new(haproxy)
            .arg("-c")
            .arg("-f")
            .arg(&conf)
            .output()
            .expect("haproxy runs");
        assert!(
            tried.status.success(),
            "{}",
            String::from_utf8_lossy(&tried.stderr)
        );
    }
}

/// That a key left is written down for ever, so what cannot be written is told before it is asked for.
#[test]
fn what_cannot_be_written_has_not_left() {
    let stage = Stage::new();
    stage.upload("site", &stage.ca.issue("www.example.com"));
    let exporter = exporter(&stage);
    let folder = stage.chancery.folder().join("out");
    fs::create_dir(&folder).expect("made");
    let count = |kind: &str| {
        let kind = format!("dev.chancery.{kind}.v1");
        let lines = stage.operator.run(&["events", "replay"]).ok().lines();
        lines.iter().filter(|e| e["type"] == kind.as_str()).count()
    };
    let there = || {
        let mut there: Vec<String> = fs::read_dir(&folder)
            .expect("a folder")
            .map(|entry| {
                let name = entry.expect("an entry").file_name();
                name.to_string_lossy().into_owned()
            })
            .collect();
        there.sort();
        there
    };
    let export = |format: &str, out: &Path, further: &[&str]| {
        let out = text(out);
        let first = ["certificate", "export", "site", "--format", format];
        exporter.run(&[&first[..], &["--out", &out], further].concat())
    };
    let dangling = folder.join("dangling.pem");
    std::os::unix::fs::symlink("nowhere/else.pem", &dangling).expect("linked");
    let missing = folder.join("missing");
    for (format, out, further) in [
        ("haproxy", missing.join("site.pem"), &[][..]),
        ("haproxy", missing.join("site.pem"), &["--force"]),
        ("haproxy", dangling.clone(), &[]),
        ("haproxy", folder.clone(), &["--force"]),
        ("nginx", dangling.clone(), &[]),
        // The second file counts as much as the first.
        (
            "nginx",
            folder.join("site.pem"),
            &["--key-out", &text(&missing.join("site.key"))],
        ),
        (
            "nginx",
            folder.join("site.pem"),
            &["--key-out", &text(&dangling)],
        ),
    ] {
        let refused = export(format, &out, further);
        assert_eq!(refused.status, 2, "{refused:?}");
    }
    let lost = text(&missing.join("site.csr"));
    for out in [&lost, &text(&dangling)] {
        let words = ["--host", "www.example.com", "--out", out];
        let refused = exporter.run(&[&["certificate", "csr", "lost"][..], &words].concat());
        assert_eq!(refused.status, 2, "{refused:?}");
    }
    assert_eq!(count("certificate.exported"), 0);
    assert_eq!(count("csr.created"), 0);
    assert_eq!(there(), ["dangling.pem"], "nothing is left behind");
    // A refusal by the other side leaves nothing behind either.
    let first = ["certificate", "export", "other", "--format", "haproxy"];
    let out = text(&folder.join("other.pem"));
    let refused = exporter.run(&[&first[..], &["--out", &out]].concat());
    assert_eq!(refused.refused(), "not_found");
    assert_eq!(there(), ["dangling.pem"]);
    // Said so, the link gives way.
    export("haproxy", &dangling, &["--force"]).ok();
    assert_eq!((mode(&dangling), count("certificate.exported")), (0o600, 1));
    assert!(!dangling.is_symlink());
    assert_eq!(there(), ["dangling.pem"]);
}

fn installed(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

#[test]
fn a_key_leaves_only_by_the_right_to_its_name_and_only_to_whom_the_log_names() {
    let stage = Stage::new();
    let leaf = stage.ca.issue("www.example.com");
    stage.upload("site", &leaf);
    let exporter = exporter(&stage);
    let out = text(&stage.chancery.folder().join("out.pem"));
    let export = [
        "certificate",
        "export",
        "site",
        "--format",
        "haproxy",
        "--out",
        &out,
    ];
    // Who may command everything may not do this; nor may who was given a pattern that covers it.
    assert_eq!(stage.alice.run(&export).refused(), "unauthorized");
    let creds = stage.chancery.folder().join("pattern.creds");
    stage
        .operator
        .project("acme")
        .run(&[
            "access",
            "create",
            "pattern",
            "--right",
            "cmd.certificate.*",
            "--right",
            "query.*",
            "--out",
            &text(&creds),
        ])
        .ok();
    assert_eq!(
        stage.operator.user(&creds).run(&export).refused(),
        "unauthorized"
    );
    let creds = stage.chancery.folder().join("second.creds");
    stage
        .operator
        .project("platform")
        .run(&["access", "create", "second", "--out", &text(&creds)])
        .ok();
    let second = stage.operator.user(&creds).project("acme");
    assert_eq!(second.run(&export).refused(), "unauthorized");
    assert!(!Path::new(&out).exists());
    // The first operator was given it.
    stage.operator.project("acme").run(&export).ok();
    fs::remove_file(&out).expect("it was written");

    // What the answer brings opens for its recipient, in its project, and for nobody else.
    let (runtime, client) = nats(&exporter);
    let ask = |subject: &str, id: &str, recipient: &[u8]| -> Value {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", id);
        let body = json!({"name": "site", "recipient": data_encoding::HEXLOWER.encode(recipient)});
        let answer = runtime
            .block_on(client.request_with_headers(
                format!("chancery.v1.{subject}"),
                headers,
                body.to_string().into(),
            ))
            .expect("an answer");
        serde_json::from_slice(&answer.payload).expect("JSON")
    };
    let (ours, other) = (Recipient::generate(), Recipient::generate());
    let id = uuid::Uuid::now_v7().to_string();
    let subject = "cmd.acme.certificate.export";
    let answer = ask(subject, &id, &ours.public());
    let open = |answer: &Value, with: &Recipient, project: &str| {
        let decode = |field: &str| {
            let text = answer["key"][field]
                .as_str()
                .unwrap_or_else(|| panic!("no {field}: {answer}"));
            data_encoding::BASE64URL_NOPAD
                .decode(text.as_bytes())
                .expect("base64url")
        };
        let sealed = Sealed {
            enc: decode("enc").try_into().expect("32 bytes"),
            ct: decode("ct"),
        };
        let info = format!("chancery.v1.export\0{project}");
        with.open(&sealed, info.as_bytes(), b"")
            .map(|der| PrivateKey::from_der(der.expose()).expect("a key"))
    };
    let own = PrivateKey::from_der(&leaf.key_der).expect("a key");
    let opened = open(&answer, &ours, "acme").expect("it is sealed to us");
    assert_eq!(opened.spki_sha256(), own.spki_sha256());
    assert!(open(&answer, &other, "acme").is_err() && open(&answer, &ours, "bravo").is_err());
    // Again, it is the same outcome, sealed anew to the same recipient; to another one it is another command.
    let again = ask(subject, &id, &ours.public());
    assert_eq!(again["sequence"], answer["sequence"]);
    assert!(open(&again, &ours, "acme").is_ok());
    assert_eq!(ask(subject, &id, &other.public())["code"], "conflict");
    // A key that everybody can open to is none, and nothing of it waits.
    let fresh = || uuid::Uuid::now_v7().to_string();
    assert_eq!(ask(subject, &fresh(), &[0; 32])["code"], "malformed");
    assert_eq!(
        ask("queue.acme.certificate.export", &fresh(), &ours.public())["code"],
        "unauthorized"
    );
    let events = stage.operator.run(&["events", "replay"]).ok().lines();
    let left: Vec<&Value> = events
        .iter()
        .filter(|e| e["type"] == "dev.chancery.certificate.exported.v1")
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!(left[1]["actor"], "exporter");
    assert_eq!(
        left[1]["data"]["recipient"],
        harness::sha256(&ours.public())
    );

    // Off for the project, it is off for all, and for what was answered before.
    assert_eq!(
        stage
            .alice
            .run(&["project", "set", "acme", "--export", "off"])
            .refused(),
        "unauthorized"
    );
    stage
        .operator
        .run(&["project", "set", "acme", "--export", "off"])
        .ok();
    let refused = exporter.run(&export);
    assert_eq!(refused.refused(), "unauthorized");
    assert!(
        refused.json()["reasons"][0]["hint"]
            .to_string()
            .contains("chancery project set")
    );
    assert_eq!(
        stage.operator.project("acme").run(&export).refused(),
        "unauthorized"
    );
    let again = ask(subject, &id, &ours.public());
    assert_eq!(
        (&again["code"], again.get("key")),
        (&json!("unauthorized"), None)
    );
    let shown = stage.operator.run(&["project", "show", "acme"]).ok().json();
    assert_eq!(shown["export"], false);
    stage
        .operator
        .run(&["project", "set", "acme", "--export", "on"])
        .ok();
    exporter.run(&export).ok();
    // A CA certificate has no key here, and what is deleted has none any more.
    let root = text(&stage.ca.root());
    stage
        .alice
        .run(&[
            "certificate",
            "add",
            "clients",
            "--kind",
            "ca",
            "--chain",
            &root,
            "--region",
            "local",
        ])
        .ok();
    let other = text(&stage.chancery.folder().join("other.pem"));
    let export = [
        "certificate",
        "export",
        "clients",
        "--format",
        "haproxy",
        "--out",
        &other,
    ];
    assert_eq!(exporter.run(&export).refused(), "key_missing");
    stage
        .alice
        .run(&["certificate", "delete", "site", "--confirm", "site"])
        .ok();
    assert_eq!(ask(subject, &id, &ours.public())["code"], "not_found");
}

// ---- over

#[test]
fn a_certificate_moves_with_its_key_and_leaves_nothing_behind() {
    let stage = Stage::new();
    let host = "www.example.com";
    stage.bucket(host);
    let leaf = stage.ca.issue(host);
    stage.upload("site", &leaf);
    stage.serves(host, &leaf);
    let bob = stage.chancery.project("bravo", "bob");
    let acme = stage.operator.project("acme");
    let go = |further: &[&str]| {
        let mut all = words(&["certificate", "move", "site", "--to", "bravo"]);
        all.extend(further);
        acme.run(&all)
    };
    // It is the operator's, guarded as a deletion is.
    let alone = stage.alice.run(&[
        "certificate",
        "move",
        "site",
        "--to",
        "bravo",
        "--confirm",
        "site",
    ]);
    assert_eq!(alone.refused(), "unauthorized");
    assert_eq!(go(&["--confirm", "sit"]).refused(), "confirmation_mismatch");
    assert_eq!(go(&["--confirm", "site"]).refused(), "last_usable");
    assert_eq!(
        go(&["--confirm", "site", "--force", "--expect", "77"]).refused(),
        "conflict"
    );
    stage
        .operator
        .run(&["project", "set", "acme", "--export", "off"])
        .ok();
    assert_eq!(
        go(&["--confirm", "site", "--force"]).refused(),
        "unauthorized"
    );
    stage
        .operator
        .run(&["project", "set", "acme", "--export", "on"])
        .ok();
    stage
        .operator
        .run(&["project", "quota", "bravo", "--certificates", "0"])
        .ok();
    assert_eq!(
        go(&["--confirm", "site", "--force"]).refused(),
        "quota_exceeded"
    );
    stage
        .operator
        .run(&["project", "quota", "bravo", "--certificates", "5"])
        .ok();
    serves(stage.chancery.https(), host, &leaf);

    let id = uuid::Uuid::now_v7().to_string();
    let moved = go(&[
        "--confirm",
        "site",
        "--force",
        "--as",
        "theirs",
        "--id",
        &id,
    ])
    .ok()
    .json();
    let again = go(&[
        "--confirm",
        "site",
        "--force",
        "--as",
        "theirs",
        "--id",
        &id,
    ])
    .ok()
    .json();
    assert_eq!(moved["sequence"], again["sequence"]);
    let happened: Vec<&str> = moved["events"]
        .as_array()
        .expect("events")
        .iter()
        .map(|e| e["event"].as_str().expect("a name"))
        .collect();
    assert_eq!(
        happened,
        [
            "certificate.exported",
            "key.sealed",
            "certificate.added",
            "certificate.deleted",
            "key.destroyed"
        ]
    );
    dark(stage.chancery.https(), host);
    assert_eq!(
        stage.alice.run(&["certificate", "show", "site"]).refused(),
        "not_found"
    );
    let export = stage.chancery.folder().join("gone.pem");
    let gone = acme.run(&[
        "certificate",
        "export",
        "site",
        "--format",
        "haproxy",
        "--out",
        &text(&export),
    ]);
    assert_eq!(gone.refused(), "not_found");

    // There it serves that project's hosts, once it holds one that the certificate names.
    wait(&bob, "theirs", "ready");
    stage.alice.run(&["domain", "release", host]).ok();
    let origin = format!("{}/theirs", stage.origin.url());
    resource(
        &stage.operator,
        "bravo",
        "shop",
        "bucket",
        &["local"],
        &origin,
    );
    bob.run(&["domain", "add", host, "--resource", "shop"]).ok();
    stage
        .operator
        .project("bravo")
        .run(&["domain", "prove", host])
        .ok();
    serves(stage.chancery.https(), host, &leaf);
    // Nothing of the key is anywhere in the clear.
    let folder = stage.chancery.folder().to_owned();
    let all = needles("moved", Key::P256, &leaf);
    search(&folder, &all);
    let kept = stage.chancery.stop();
    search(&folder, &all);
    drop(kept);
}

/// What is ready by grace of a CA that only its project knows would be in error elsewhere: it stays where it works.
#[test]
fn a_certificate_does_not_move_to_where_its_ca_is_unknown() {
    let stage = Stage::new();
    let host = "www.example.com";
    stage.bucket(host);
    let leaf = stage.ca.issue(host);
    let whole = fs::read_to_string(leaf.chain()).expect("a chain");
    let (alone, issuer) = whole.split_at(whole.rfind("-----BEGIN").expect("an intermediate"));
    let (chain, ca) = (
        stage.chancery.folder().join("alone.pem"),
        stage.chancery.folder().join("issuer.pem"),
    );
    fs::write(&chain, alone).expect("written");
    fs::write(&ca, issuer).expect("written");
    let bob = stage.chancery.project("bravo", "bob");
    let know = |user: &harness::Cli| {
        let ca = text(&ca);
        let words = ["--kind", "ca", "--chain", &ca, "--region", "local"];
        user.run(&[&["certificate", "add", "issuer"][..], &words].concat())
            .ok();
        wait(user, "issuer", "ready");
    };
    know(&stage.alice);
    let (chain, key) = (text(&chain), text(leaf.key()));
    let words = ["--chain", &chain, "--key", &key, "--region", "local"];
    stage
        .alice
        .run(&[&["certificate", "add", "site"][..], &words].concat())
        .ok();
    wait(&stage.alice, "site", "active");
    stage.serves(host, &leaf);

    let go = || {
        let words = ["--to", "bravo", "--confirm", "site", "--force"];
        stage
            .operator
            .project("acme")
            .run(&[&["certificate", "move", "site"][..], &words].concat())
    };
    let refused = go();
    assert_eq!(refused.refused(), "chain_incomplete");
    let hint = refused.json()["reasons"][0]["hint"].to_string();
    assert!(
        hint.contains("chancery --project bravo certificate add NAME --kind ca"),
        "{hint}"
    );
    // Nothing has happened: it is there, and served.
    wait(&stage.alice, "site", "active");
    serves(stage.chancery.https(), host, &leaf);
    assert_eq!(
        bob.run(&["certificate", "show", "site"]).refused(),
        "not_found"
    );
    // With the CA there, as the hint says, it goes and is ready.
    know(&bob);
    go().ok();
    wait(&bob, "site", "ready");
}

/// A certificate whose key is also used by another one of its project: that one keeps it.
#[test]
fn a_move_takes_no_key_from_those_who_stay() {
    let stage = Stage::new();
    let host = "www.example.com";
    stage.bucket(host);
    let csr = made(&stage, "shared", &["--host", host]);
    let request = csr["csr"].as_str().expect("a request");
    for name in ["stays", "goes"] {
        let (_, chain) = stage.ca.sign(request);
        stage
            .alice
            .run(&[
                "certificate",
                "add",
                name,
                "--chain",
                &text(&chain),
                "--region",
                "local",
            ])
            .ok();
        wait(&stage.alice, name, "ready");
    }
    let bob = stage.chancery.project("bravo", "bob");
    stage
        .operator
        .project("acme")
        .run(&[
            "certificate",
            "move",
            "goes",
            "--to",
            "bravo",
            "--confirm",
            "goes",
        ])
        .ok();
    wait(&bob, "goes", "ready");
    wait(&stage.alice, "stays", "active");
    let out = stage.chancery.folder().join("stays.pem");
    for (project, name) in [("acme", "stays"), ("bravo", "goes")] {
        stage
            .operator
            .project(project)
            .run(&[
                "certificate",
                "export",
                name,
                "--format",
                "haproxy",
                "--force",
                "--out",
                &text(&out),
            ])
            .ok();
        let both = fs::read(&out).expect("written");
        assert_eq!(public_of_key(&both), public_of_certificate(&both));
    }
}
