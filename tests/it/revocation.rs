//! Revocation on the whole path, with OpenSSL's CA and responder as peers: what a CA took back is served no more, and what
//! cannot be looked up is served on.

use std::fs;
use std::path::Path;
use std::time::Duration;

use harness::{
    Authority, Cli, Leaf, Points, Responder, SOON, Shelf, Up, eventually, free_port, throughout,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::stage::{Stage, served_now};

const HOST: &str = "www.example.com";

fn folder() -> TempDir {
    tempfile::Builder::new()
        .prefix("chancery-revocation-")
        .tempdir()
        .expect("a folder")
}

/// A system with these words in `[control.revocation]`.
fn up(folder: &Path, words: &str) -> harness::Chancery {
    let config = folder.join("chancery.toml");
    fs::write(
        &config,
        format!(
            "state = 'state'\n[control.revocation]\n{words}\n[[edge]]\nregion = 'local'\nname = 'local-1'\nhttps = '127.0.0.1:0'\nhttp = '127.0.0.1:0'\n"
        ),
    )
    .expect("written");
    Up::in_folder(folder)
        .flag("--config")
        .flag(&config.display().to_string())
        .start()
}

fn stage(folder: &Path, words: &str) -> Stage {
    let stage = Stage::of(up(folder, words));
    stage.bucket(HOST);
    stage
}

fn show(user: &Cli, name: &str) -> Value {
    user.run(&["certificate", "show", name])
        .ok()
        .lines()
        .remove(0)
}

/// Waits until a look came to this end.
fn looked(user: &Cli, name: &str, status: &str) -> Value {
    eventually(&format!("{name} is looked up as {status}"), SOON, || {
        let shown = show(user, name);
        if shown["revocation"]["status"] == status && !shown["revocation"]["checked"].is_null() {
            Ok(shown)
        } else {
            Err(shown.to_string())
        }
    })
}

fn add(user: &Cli, name: &str, leaf: &Leaf) {
    user.run(&[
        "certificate",
        "add",
        name,
        "--chain",
        &leaf.chain().display().to_string(),
        "--key",
        &leaf.key().display().to_string(),
        "--region",
        "local",
    ])
    .ok();
}

fn events(user: &Cli, kind: &str) -> Vec<Value> {
    user.run(&["events", "replay"])
        .ok()
        .lines()
        .into_iter()
        .filter(|event| event["type"] == kind)
        .collect()
}

fn warned(shown: &Value, warning: &str, words: &str) {
    let warnings = shown["warnings"].as_array().expect("warnings are a list");
    let found = warnings.iter().any(|given| {
        given["warning"] == warning
            && given["message"]
                .as_str()
                .is_some_and(|message| message.contains(words))
            && given["hint"].as_str().is_some_and(|hint| !hint.is_empty())
    });
    assert!(found, "no {warning} with {words:?}: {shown:#}");
}

/// The story of a stolen key: the CA revokes, and within a round the fallback is served; the CA's change of mind changes
/// nothing. Before and between, the responder's absence harms nobody.
#[test]
fn what_a_responder_revokes_gives_way_to_its_fallback() {
    let folder = folder();
    let stage = stage(folder.path(), "allow = ['127.0.0.1']\nevery_seconds = 1");
    let (authority, port) = (Authority::default(), free_port());
    let points = Points::ocsp(format!("http://127.0.0.1:{port}/"));
    let old = authority.issue("old", HOST, &points);
    let new = authority.issue("new", HOST, &points);

    // Nobody answers: a warning, and it is served.
    stage.upload("old", &old);
    stage.serves(HOST, &old);
    let shown = looked(&stage.alice, "old", "unreachable");
    assert_eq!(shown["status"], "ready");
    warned(
        &shown,
        "revocation_unreachable",
        "does not accept connections",
    );

    let responder = Responder::at(&authority, port);
    let shown = looked(&stage.alice, "old", "good");
    assert_eq!(shown["warnings"], serde_json::json!([]));
    assert_eq!(shown["revocation"]["source"], responder.url().as_str());
    stage.upload("new", &new);
    stage.serves(HOST, &new);
    looked(&stage.alice, "new", "good");

    authority.revoke("new", "keyCompromise");
    stage.serves(HOST, &old);
    stage
        .alice
        .run(&[
            "certificate",
            "wait",
            "new",
            "--status",
            "revoked",
            "--timeout",
            "10s",
        ])
        .ok();
    let shown = show(&stage.alice, "new");
    assert_eq!(
        (&shown["status"], &shown["shown"]),
        (&"revoked".into(), &"revoked".into())
    );
    assert_eq!(shown["revocation"]["status"], "revoked");
    let reason = &shown["reasons"][0];
    assert_eq!(reason["code"], "revoked");
    let message = reason["message"].as_str().expect("a message");
    for told in ["keyCompromise", "OCSP responder", &responder.url(), "T"] {
        assert!(message.contains(told), "{message} without {told}");
    }
    let hint = reason["hint"].as_str().expect("a hint");
    assert!(hint.contains("chancery certificate replace new"), "{hint}");
    let revoked = events(&stage.alice, "dev.chancery.certificate.revoked.v1");
    assert_eq!(revoked.len(), 1, "{revoked:#?}");
    assert_eq!(revoked[0]["data"]["reasons"][0]["code"], "revoked");
    assert_eq!(looked(&stage.alice, "old", "good")["status"], "ready");

    // The CA takes it back; we do not.
    authority.forgive();
    throughout("it stays revoked", Duration::from_secs(3), || {
        served_now(stage.chancery.https(), HOST, &old)
    });
    assert_eq!(show(&stage.alice, "new")["status"], "revoked");
    drop(responder);
    // And the absence of the responder takes nothing out.
    looked(&stage.alice, "old", "unreachable");
    stage.serves(HOST, &old);
}

/// A CA that has only CRLs, as Let's Encrypt since 2025: one fetch for all its certificates, and what is on the list when it
/// comes in never becomes ready.
#[test]
fn what_is_on_the_list_when_it_comes_in_never_displaces() {
    let folder = folder();
    let shelf = Shelf::start();
    let words = "allow = ['127.0.0.0/8']";
    let stage = stage(folder.path(), words);
    let authority = Authority::new(&Points::crl(shelf.url("/root.crl")));
    let points = Points::crl(shelf.url("/ca.crl"));
    let good = authority.issue("good", HOST, &points);
    let stolen = authority.issue("stolen", HOST, &points);
    authority.revoke("stolen", "keyCompromise");
    shelf.put("/ca.crl", authority.crl("issuing", ""));
    shelf.put("/root.crl", authority.crl("root", ""));

    stage.upload("good", &good);
    let shown = looked(&stage.alice, "good", "good");
    assert_eq!(shown["revocation"]["source"], shelf.url("/ca.crl"));
    // The CA above it is private and its root is not known here, so its own list cannot be checked.
    warned(&shown, "revocation_unknown", "issuer is not known here");
    stage.serves(HOST, &good);

    add(&stage.alice, "stolen", &stolen);
    let shown = eventually("it is refused", SOON, || {
        let shown = show(&stage.alice, "stolen");
        if shown["status"] == "error" {
            Ok(shown)
        } else {
            Err(shown.to_string())
        }
    });
    assert_eq!(shown["reasons"][0]["code"], "revoked");
    assert_eq!(shown["revocation"]["status"], "revoked");
    stage.serves(HOST, &good);
    let ready = events(&stage.alice, "dev.chancery.certificate.verified.v1");
    assert_eq!(
        ready.len(),
        1,
        "the revoked one never was ready: {ready:#?}"
    );

    for number in 0..10 {
        let leaf = authority.issue(&format!("one{number}"), HOST, &points);
        stage.upload(&format!("one{number}"), &leaf);
        looked(&stage.alice, &format!("one{number}"), "good");
    }
    let asked = shelf.asked();
    assert_eq!(asked, ["/ca.crl"], "one fetch for all");

    // What was found outlives a restart, and its file is not needed.
    let checked = show(&stage.alice, "good")["revocation"]["checked"].clone();
    let (alice, chancery) = (stage.alice, stage.chancery);
    let file = chancery.state().join("checks.redb");
    chancery.stop();
    let chancery = up(folder.path(), words);
    let alice = Cli::new(alice.environment().clone());
    let alice = with_server(&alice, &chancery);
    assert_eq!(show(&alice, "good")["revocation"]["checked"], checked);
    chancery.stop();
    fs::remove_file(file).expect("it is there");
    let chancery = up(folder.path(), words);
    let shown = show(&with_server(&alice, &chancery), "good");
    assert_eq!(shown["revocation"]["status"], "unknown");
    assert_eq!(shown["status"], "ready");
}

fn with_server(user: &Cli, chancery: &harness::Chancery) -> Cli {
    let mut environment = user.environment().clone();
    let operator = chancery.operator();
    if let Some(server) = operator.environment().get("CHANCERY_SERVER") {
        environment.insert("CHANCERY_SERVER".to_owned(), server.clone());
    }
    Cli::new(environment)
}

/// A revoked CA takes what is below it with it, by the list of a root that the operator trusts.
#[test]
fn a_revoked_ca_takes_what_it_issued_with_it() {
    let folder = folder();
    let shelf = Shelf::start();
    let authority = Authority::new(&Points::crl(shelf.url("/root.crl")));
    shelf.put("/root.crl", authority.crl("root", ""));
    let words = format!(
        "allow = ['127.0.0.1']\nevery_seconds = 1\n[control]\ntrusted_roots = ['{}']",
        authority.root().display()
    );
    let stage = stage(folder.path(), &words);
    // The leaf itself points nowhere.
    let leaf = authority.issue("leaf", HOST, &Points::default());
    let other = stage.ca.issue(HOST);
    stage.upload("other", &other);
    assert_eq!(show(&stage.alice, "other")["revocation"]["status"], "none");
    stage.upload("leaf", &leaf);
    stage.serves(HOST, &leaf);
    looked(&stage.alice, "leaf", "none");
    authority.revoke_issuing();
    shelf.put("/root.crl", authority.crl("root", ""));
    stage.serves(HOST, &other);
    let shown = looked(&stage.alice, "leaf", "revoked");
    let message = shown["reasons"][0]["message"].as_str().expect("a message");
    assert!(message.contains("Certificate 2 of the chain"), "{message}");
    assert!(message.contains("cACompromise"), "{message}");
}

/// Answers that anybody could give, or that were right once, take nothing out.
#[test]
fn what_is_not_believed_takes_nothing_out() {
    let folder = folder();
    let shelf = Shelf::start();
    let stage = stage(folder.path(), "allow = ['127.0.0.1']\nevery_seconds = 1");
    let (authority, stranger) = (Authority::default(), Authority::default());

    let forged = authority.issue("forged", HOST, &Points::ocsp(shelf.url("/forged")));
    let stale = authority.issue("stale", HOST, &Points::crl(shelf.url("/stale.crl")));
    authority.revoke("forged", "keyCompromise");
    authority.revoke("stale", "keyCompromise");
    shelf.put(
        "/forged",
        authority.answer("forged", &stranger.folder().join("responder")),
    );
    shelf.put(
        "/stale.crl",
        authority.crl(
            "issuing",
            "-crl_lastupdate 20260101000000Z -crl_nextupdate 20260108000000Z",
        ),
    );
    for (name, leaf, why) in [
        ("forged", &forged, "is signed neither by"),
        ("stale", &stale, "is out of date"),
    ] {
        stage.upload(name, leaf);
        let shown = looked(&stage.alice, name, "unknown");
        warned(&shown, "revocation_unknown", why);
        assert_eq!(shown["status"], "ready");
    }
    stage.serves(HOST, &stale);
    // The same words from the right mouth count.
    shelf.put(
        "/forged",
        authority.answer("forged", &authority.folder().join("responder")),
    );
    looked(&stage.alice, "forged", "revoked");
    shelf.put("/stale.crl", authority.crl("issuing", ""));
    looked(&stage.alice, "stale", "revoked");
}

/// A tenant's certificate may name any address; the control plane connects to no private one, whatever way leads there.
#[test]
fn a_certificate_cannot_send_the_control_plane_anywhere() {
    let folder = folder();
    let (victim, allowed) = (Shelf::start(), Shelf::at("127.0.0.2:0"));
    let stage = stage(folder.path(), "allow = ['127.0.0.2']\nevery_seconds = 1");
    let authority = Authority::default();
    allowed.redirect("/elsewhere.crl", &victim.url("/secret"));
    let port = victim
        .url("")
        .rsplit(':')
        .next()
        .expect("a port")
        .to_owned();
    for (name, points) in [
        ("address", Points::ocsp(victim.url("/secret"))),
        (
            "name",
            Points::crl(format!("http://localhost:{port}/secret")),
        ),
        (
            "mapped",
            Points::crl(format!("http://[::ffff:127.0.0.1]:{port}/secret")),
        ),
        ("redirect", Points::crl(allowed.url("/elsewhere.crl"))),
    ] {
        let leaf = authority.issue(name, HOST, &points);
        stage.upload(name, &leaf);
        let shown = looked(&stage.alice, name, "unreachable");
        warned(
            &shown,
            "revocation_unreachable",
            "is not at a public address",
        );
        stage.serves(HOST, &leaf);
    }
    assert!(allowed.connections() > 0, "the redirect was met");
    assert_eq!(victim.connections(), 0, "{:?}", victim.asked());
}

/// By the operator's proxy, which resolves and connects.
#[test]
fn a_proxy_is_asked_with_the_whole_address() {
    let folder = folder();
    let proxy = Shelf::start();
    let stage = stage(folder.path(), &format!("proxy = '{}'", proxy.url("")));
    let authority = Authority::default();
    let url = "http://crl.ca.example/1.crl";
    proxy.put(url, authority.crl("issuing", ""));
    let leaf = authority.issue("leaf", HOST, &Points::crl(url));
    stage.upload("leaf", &leaf);
    looked(&stage.alice, "leaf", "good");
    assert_eq!(proxy.asked(), [url]);
    // What the proxy must not be used for either.
    let leaf = authority.issue(
        "inside",
        HOST,
        &Points::crl("http://169.254.169.254/latest"),
    );
    stage.upload("inside", &leaf);
    looked(&stage.alice, "inside", "unreachable");
    assert_eq!(proxy.asked(), [url]);
}

/// A responder that takes the connection and then says nothing holds up neither the upload nor those of others.
#[test]
fn a_responder_that_hangs_holds_nobody_up() {
    let folder = folder();
    let stage = stage(folder.path(), "allow = ['127.0.0.1']");
    let authority = Authority::default();
    // Nobody accepts, but the system does.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let points = Points::ocsp(format!(
        "http://{}/",
        silent.local_addr().expect("it is bound")
    ));
    let leaf = authority.issue("hangs", HOST, &points);
    stage.upload("hangs", &leaf);
    stage.serves(HOST, &leaf);
    let shown = show(&stage.alice, "hangs");
    assert_eq!(shown["status"], "ready");
    assert_eq!(
        (
            &shown["revocation"]["status"],
            &shown["revocation"]["checked"]
        ),
        (&"unknown".into(), &Value::Null),
        "the look goes on for 15 seconds: {shown:#}"
    );
    let shown = looked(&stage.alice, "hangs", "unreachable");
    warned(&shown, "revocation_unreachable", "within 15 seconds");
}

/// Where an operator wants none of it, nobody is asked.
#[test]
fn it_can_be_turned_off() {
    let folder = folder();
    let shelf = Shelf::start();
    let stage = stage(
        folder.path(),
        "enabled = false\nallow = ['127.0.0.1']\nevery_seconds = 1",
    );
    let authority = Authority::default();
    let leaf = authority.issue("leaf", HOST, &Points::crl(shelf.url("/1.crl")));
    stage.upload("leaf", &leaf);
    stage.serves(HOST, &leaf);
    throughout("nobody is asked", Duration::from_secs(2), || {
        match shelf.connections() {
            0 => Ok(()),
            some => Err(some),
        }
    });
    assert_eq!(
        show(&stage.alice, "leaf")["revocation"]["status"],
        "unknown"
    );
}
