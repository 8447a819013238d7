//! The whole path: what a person does on the command line, seen by real TLS clients at the edge.

use std::fs;
use std::time::Duration;

use harness::{
    Ca, Chancery, Cli, Key, Leaf, Origin, SOON, SeaweedFs, Serve, Up, curl, eventually, handshake,
    throughout,
};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::stage::{
    Apart, Stage, dark, dark_now, ranking, resource, served_now, serves, upload, wait,
};

fn words(leaf: &Leaf) -> [String; 4] {
    [
        "--chain".to_owned(),
        leaf.chain().display().to_string(),
        "--key".to_owned(),
        leaf.key().display().to_string(),
    ]
}

/// `certificate <verb> <name> --chain … --key …` with further words.
fn certificate(
    user: &Cli,
    verb: &str,
    name: &str,
    leaf: &Leaf,
    further: &[&str],
) -> harness::Outcome {
    let files = words(leaf);
    let mut all = vec!["certificate", verb, name];
    all.extend(files.iter().map(String::as_str));
    all.extend(further);
    user.run(&all)
}

#[test]
fn each_kind_of_key_goes_from_the_command_to_https() {
    let stage = Stage::new();
    stage.resource("media", "bucket", &["local"]);
    for (name, kind) in [
        ("rsa", Key::Rsa2048),
        ("p256", Key::P256),
        ("p384", Key::P384),
        ("ed25519", Key::Ed25519),
    ] {
        let host = format!("{name}.example.com");
        stage.domain(&host, "media");
        dark(stage.chancery.https(), &host);
        let leaf = stage.ca.leaf(&host).key(kind).issue();
        stage.upload(name, &leaf);
        wait(&stage.alice, name, "active");
        // Active means served everywhere, so no waiting here.
        served_now(stage.chancery.https(), &host, &leaf).expect("an active certificate is served");
        for protocol in ["-tls1_2", "-tls1_3"] {
            // Older clients are asked too; Ed25519 is only in the newer signature schemes, which openssl offers in both.
            let seen = handshake(stage.chancery.https(), &host, &[protocol]);
            assert_eq!(
                seen.leaf.as_deref(),
                Some(&leaf.der[..]),
                "{kind:?} {protocol}: {}",
                seen.said
            );
        }
        let old = handshake(
            stage.chancery.https(),
            &host,
            &["-tls1_1", "-cipher", "DEFAULT:@SECLEVEL=0"],
        );
        assert!(old.leaf.is_none(), "TLS 1.1 must not connect: {}", old.said);
        // curl checks the chain, the name and the dates.
        assert_eq!(
            stage.get(&host, "/hello.txt?v=1").expect("curl is content"),
            "origin /media/hello.txt?v=1\n"
        );
        let show = stage.alice.run(&["certificate", "show", name]).ok().json();
        assert_eq!(
            (show["status"].as_str(), show["trust"].as_str()),
            (Some("ready"), Some("private")),
            "{show}"
        );
        assert_eq!(show["names"][0], host.as_str());
    }
}

#[test]
fn http_goes_both_ways_and_nobody_can_forge_where_it_came_from() {
    let stage = Stage::new();
    stage.bucket("www.example.com");
    let leaf = stage.ca.issue("www.example.com");
    stage.upload("site", &leaf);
    wait(&stage.alice, "site", "active");

    let ask = |url: &str, further: &[&str]| curl(&stage.ca, stage.chancery.https(), url, further);
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let answer = ask("https://www.example.com/a", &[flag]);
        assert_eq!(
            (answer.status, answer.version.as_str()),
            (200, version),
            "{answer:?}"
        );
    }
    let body = "0123456789".repeat(100_000);
    let file = stage.chancery.folder().join("body");
    fs::write(&file, &body).expect("written");
    let data = format!("@{}", file.display());
    let forged = [
        "-H",
        "X-Forwarded-For: 203.0.113.9",
        "-H",
        "X-Forwarded-Proto: gopher",
        "-H",
        "Forwarded: for=203.0.113.9",
    ];
    for flag in ["--http1.1", "--http2"] {
        let mut further = vec![flag, "--data-binary", data.as_str()];
        further.extend(forged);
        let answer = ask("https://www.example.com/upload", &further);
        assert_eq!(answer.status, 200, "{answer:?}");
        let seen = stage.origin.seen().pop().expect("the origin was asked");
        assert_eq!(
            (seen.method.as_str(), seen.path.as_str(), seen.body.len()),
            ("POST", "/media/upload", body.len())
        );
        assert_eq!(
            seen.header("host"),
            Some(stage.origin.address().to_string()),
            "Host is the origin's authority"
        );
        let all = format!("{:?}", seen.headers);
        assert!(
            !all.contains("203.0.113.9") && !all.contains("gopher"),
            "what the client claims is stripped: {all}"
        );
        assert!(
            all.contains("127.0.0.1"),
            "who the client is, the origin is told: {all}"
        );
    }

    // A name that no project attached here: refused in the handshake; on plain HTTP, 421 without a body.
    dark_now(stage.chancery.https(), "stranger.example.com")
        .expect("an unknown name is refused by its alert");
    let plain = |host: &str| {
        curl(
            &stage.ca,
            stage.chancery.http(),
            &format!("http://{host}/a"),
            &[],
        )
    };
    assert_eq!(
        plain("www.example.com")
            .ok()
            .expect("plain HTTP is proxied too"),
        "origin /media/a\n"
    );
    let stranger = plain("stranger.example.com");
    assert_eq!(
        (stranger.status, stranger.body.as_str()),
        (421, ""),
        "{stranger:?}"
    );
    // A Host that the certificate of the connection does not cover is told to come back on another one.
    for flag in ["--http1.1", "--http2"] {
        let crossed = ask(
            "https://www.example.com/a",
            &[flag, "-H", "Host: stranger.example.com"],
        );
        assert_eq!(crossed.status, 421, "{crossed:?}");
    }

    // A second connection of the same client goes on where the first one ended.
    let again = handshake(
        stage.chancery.https(),
        "www.example.com",
        &["-tls1_2", "-reconnect"],
    );
    assert!(again.said.contains("Reused, TLSv1.2"), "{}", again.said);

    // The access log tells of each request, whom it came from and how long it took, and never of the query.
    ask("https://www.example.com/logged?token=secret", &["--http2"])
        .ok()
        .expect("it is proxied");
    let file = stage
        .chancery
        .state()
        .join("edges/local.local-1/access.log");
    let line = eventually("the request is in the access log", SOON, || {
        let text = fs::read_to_string(&file).unwrap_or_default();
        assert!(!text.contains("secret"), "queries often carry secrets");
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines
            .into_iter()
            .find(|line| line["path"] == "/logged")
            .ok_or("it is not there")
    });
    for (field, value) in [
        ("sni", "www.example.com"),
        ("host", "www.example.com"),
        ("method", "GET"),
        ("scheme", "https"),
        ("project", "acme"),
    ] {
        assert_eq!(line[field], value, "{field} in {line}");
    }
    assert_eq!(line["status"], 200, "{line}");
    assert_eq!(line["fingerprint"], leaf.fingerprint(), "{line}");
    for field in [
        "tls_version",
        "suite",
        "group",
        "resumed",
        "bytes_out",
        "duration_us",
        "upstream_us",
    ] {
        assert!(!line[field].is_null(), "{field} in {line}");
    }
}

#[test]
fn the_newest_serves_and_the_chain_behind_it_is_walked_back() {
    let stage = Stage::new();
    let host = "www.example.com";
    stage.bucket(host);
    let (first, second, third, backup) = (
        stage.ca.issue(host),
        stage.ca.issue(host),
        stage.ca.issue(host),
        stage.ca.issue(host),
    );

    stage.upload("first", &first);
    stage.serves(host, &first);
    // A backup never goes live by being uploaded.
    upload(
        &stage.alice,
        "backup",
        &backup,
        &["--region", "local", "--standby"],
    );
    wait(&stage.alice, "backup", "standby");
    stage.upload("second", &second);
    stage.serves(host, &second);
    assert_eq!(ranking(&stage.host(host)), ["second", "first", "backup"]);

    // A replacement keeps the place: `first` stays where it was.
    certificate(&stage.alice, "replace", "first", &third, &[]).ok();
    wait(&stage.alice, "first", "ready");
    assert_eq!(ranking(&stage.host(host))[0], "second");
    served_now(stage.chancery.https(), host, &second).expect("a renewal displaces nobody");

    // A bound certificate goes first, until it is unbound.
    stage.alice.run(&["domain", "bind", host, "backup"]).ok();
    stage.serves(host, &backup);
    stage.alice.run(&["domain", "unbind", host]).ok();
    stage.serves(host, &second);

    // A bad upload never displaces: another's key, and no key.
    let other = stage.ca.issue(host);
    let (chain, key) = (
        other.chain().display().to_string(),
        first.key().display().to_string(),
    );
    let bad = stage.alice.run(&[
        "certificate",
        "add",
        "bad",
        "--chain",
        &chain,
        "--key",
        &key,
        "--region",
        "local",
    ]);
    assert_eq!(bad.refused(), "key_mismatch");
    let bad = stage.alice.run(&[
        "certificate",
        "add",
        "bad",
        "--chain",
        &chain,
        "--region",
        "local",
    ]);
    assert_eq!(bad.refused(), "key_missing");
    let taken = certificate(&stage.alice, "add", "first", &other, &["--region", "local"]);
    assert_eq!(taken.refused(), "duplicate_name");
    served_now(stage.chancery.https(), host, &second).expect("a bad upload displaces nobody");

    // Deleting needs the exact name, and walks the chain back to the newest version of `first`.
    let unconfirmed = stage
        .alice
        .run(&["certificate", "delete", "second", "--confirm", "Second"]);
    assert_eq!(unconfirmed.refused(), "confirmation_mismatch");
    stage
        .alice
        .run(&["certificate", "delete", "second", "--confirm", "second"])
        .ok();
    stage.serves(host, &third);
    stage
        .alice
        .run(&["certificate", "delete", "first", "--confirm", "first"])
        .ok();
    stage.serves(host, &backup);

    // The last one takes --force, and the answer names who goes dark.
    let last = stage
        .alice
        .run(&["certificate", "delete", "backup", "--confirm", "backup"]);
    assert_eq!(last.refused(), "last_usable");
    assert!(
        last.stdout.contains(host),
        "the hosts that go dark are named: {}",
        last.stdout
    );
    stage
        .alice
        .run(&[
            "certificate",
            "delete",
            "backup",
            "--confirm",
            "backup",
            "--force",
        ])
        .ok();
    dark(stage.chancery.https(), host);
    let plain = curl(
        &stage.ca,
        stage.chancery.http(),
        &format!("http://{host}/a"),
        &[],
    );
    assert_eq!(plain.ok().expect("plain HTTP goes on"), "origin /media/a\n");
}

#[test]
fn an_rsa_and_an_ecdsa_certificate_stand_side_by_side() {
    let stage = Stage::new();
    let host = "www.example.com";
    stage.bucket(host);
    let rsa = stage.ca.leaf(host).key(Key::Rsa2048).issue();
    let ecdsa = stage.ca.issue(host);
    stage.upload("rsa", &rsa);
    stage.upload("ecdsa", &ecdsa);
    stage.serves(host, &ecdsa);
    let old = handshake(
        stage.chancery.https(),
        host,
        &["-tls1_2", "-sigalgs", "RSA-PSS+SHA256:RSA+SHA256"],
    );
    assert_eq!(
        old.leaf.as_deref(),
        Some(&rsa.der[..]),
        "a client without ECDSA gets RSA: {}",
        old.said
    );
}

#[test]
fn the_second_of_expiry_switches_and_nothing_else_does() {
    let stage = Stage::new();
    let host = "www.example.com";
    stage.bucket(host);
    let fallback = stage.ca.issue(host);
    stage.upload("fallback", &fallback);
    stage.serves(host, &fallback);
    let brief = stage
        .ca
        .leaf(host)
        .until(OffsetDateTime::now_utc() + Duration::from_secs(12))
        .issue();
    stage.upload("brief", &brief);
    stage.serves(host, &brief);
    assert_eq!(ranking(&stage.host(host)), ["brief", "fallback"]);

    // One handshake after the other: which leaf, and by which time at the latest it was asked for.
    let mut last_brief = None;
    let switched = eventually("the fallback takes over", Duration::from_secs(60), || {
        let asked = OffsetDateTime::now_utc();
        match handshake(stage.chancery.https(), host, &[]).leaf {
            Some(der) if der == fallback.der => Ok(asked),
            Some(der) if der == brief.der => {
                last_brief = Some(asked);
                Err("the brief one is still served".to_owned())
            }
            other => panic!("no handshake may fail: {other:?}"),
        }
    });
    let last_brief = last_brief.expect("it was served before");
    assert!(
        last_brief < brief.not_after,
        "served at {last_brief}, which is after its end {}",
        brief.not_after
    );
    let early = brief.not_after - switched;
    assert!(
        early < Duration::from_secs(2),
        "it gave way {early} before its end"
    );
    eventually("the status follows", SOON, || {
        let show = stage
            .alice
            .run(&["certificate", "show", "brief"])
            .ok()
            .json();
        if show["status"] == "expired" {
            Ok(())
        } else {
            Err(show)
        }
    });
}

#[test]
fn a_wildcard_covers_one_level_and_the_exact_name_goes_first() {
    let stage = Stage::new();
    stage.resource("media", "cdn", &["local"]);
    stage.domain("*.example.com", "media");
    let wildcard = stage.ca.issue("*.example.com");
    stage.upload("wildcard", &wildcard);
    stage.serves("a.example.com", &wildcard);
    stage.serves("b.example.com", &wildcard);
    dark_now(stage.chancery.https(), "a.b.example.com").expect("one level only");
    dark_now(stage.chancery.https(), "example.com").expect("not the name itself");
    let exact = stage.ca.issue("b.example.com");
    stage.upload("exact", &exact);
    stage.serves("b.example.com", &exact);
    // The wildcard is newer now, but a name that is said exactly goes first.
    let newer = stage.ca.issue("*.example.com");
    stage.upload("newer", &newer);
    stage.serves("a.example.com", &newer);
    served_now(stage.chancery.https(), "b.example.com", &exact).expect("exact before wildcard");
    stage
        .alice
        .run(&["certificate", "delete", "exact", "--confirm", "exact"])
        .ok();
    stage.serves("b.example.com", &newer);
}

#[test]
fn each_region_has_its_own_answer() {
    let stage = Stage::with_regions(&["east", "west"]);
    let host = "www.example.com";
    let (east, west) = (
        stage.chancery.https_of("east"),
        stage.chancery.https_of("west"),
    );
    stage.resource("media", "cdn", &["east", "west"]);
    stage.domain(host, "media");
    let both = stage.ca.issue(host);
    upload(
        &stage.alice,
        "both",
        &both,
        &["--region", "east", "--region", "west"],
    );
    wait(&stage.alice, "both", "active");
    for edge in [east, west] {
        served_now(edge, host, &both).expect("active means served in each of its regions");
    }
    let one = stage.ca.issue(host);
    upload(&stage.alice, "one", &one, &["--region", "west"]);
    serves(west, host, &one);
    served_now(east, host, &both).expect("it was not deployed here");

    stage
        .alice
        .run(&["certificate", "deploy", "one", "--region", "east"])
        .ok();
    serves(east, host, &one);
    stage
        .alice
        .run(&["certificate", "withdraw", "one", "--region", "west"])
        .ok();
    serves(west, host, &both);
    served_now(east, host, &one).expect("it was withdrawn elsewhere");

    stage
        .alice
        .run(&["domain", "bind", host, "both", "--region", "east"])
        .ok();
    serves(east, host, &both);
    stage
        .alice
        .run(&["domain", "https", host, "off", "--region", "east"])
        .ok();
    dark(east, host);
    served_now(west, host, &both).expect("HTTPS is off elsewhere");
    stage
        .alice
        .run(&["domain", "https", host, "auto", "--region", "east"])
        .ok();
    serves(east, host, &one);
    stage
        .alice
        .run(&["domain", "detach", host, "--region", "west"])
        .ok();
    dark(west, host);
    let regions: Vec<_> = stage
        .alice
        .run(&["host", host])
        .ok()
        .lines()
        .iter()
        .map(|r| r["region"].clone())
        .collect();
    assert!(regions.contains(&"east".into()), "{regions:?}");
}

#[test]
fn projects_do_not_see_or_serve_each_other() {
    let stage = Stage::new();
    let host = "www.example.com";
    stage.bucket(host);
    let bob = stage.chancery.project("rival", "bob");
    resource(
        &stage.operator,
        "rival",
        "shop",
        "bucket",
        &["local"],
        &format!("{}/rival", stage.origin.url()),
    );

    // The rival's claim of a host that is proven for another stays pending or is refused; its certificate is never served.
    let mine = stage.ca.issue(host);
    stage.upload("site", &mine);
    stage.serves(host, &mine);
    let _ = bob.run(&["domain", "add", host, "--resource", "shop"]);
    let taken = stage
        .operator
        .project("rival")
        .run(&["domain", "prove", host]);
    assert_eq!(taken.refused(), "domain_claimed");
    let theirs = stage.ca.issue(host);
    upload(&bob, "site", &theirs, &["--region", "local"]);
    throughout(
        "the rival's newer certificate is not served",
        Duration::from_secs(2),
        || served_now(stage.chancery.https(), host, &mine),
    );
    stage
        .alice
        .run(&[
            "certificate",
            "delete",
            "site",
            "--confirm",
            "site",
            "--force",
        ])
        .ok();
    dark(stage.chancery.https(), host);

    // A certificate that also names the rival's host opens no way to it: the connection belongs to acme.
    bob.run(&["domain", "add", "shop.example.com", "--resource", "shop"])
        .ok();
    stage
        .operator
        .project("rival")
        .run(&["domain", "prove", "shop.example.com"])
        .ok();
    let broad = stage.ca.leaf(host).and("shop.example.com").issue();
    stage.upload("broad", &broad);
    stage.serves(host, &broad);
    for flag in ["--http1.1", "--http2"] {
        let crossed = curl(
            &stage.ca,
            stage.chancery.https(),
            &format!("https://{host}/a"),
            &[flag, "-H", "Host: shop.example.com"],
        );
        assert_eq!(crossed.status, 421, "{crossed:?}");
    }
    dark_now(stage.chancery.https(), "shop.example.com")
        .expect("the rival has no certificate, and acme's is not its fallback");

    // Neither by name nor by naming the project does one reach the other's.
    let across = bob.project("acme");
    assert_eq!(
        across.run(&["certificate", "list"]).refused(),
        "unauthorized"
    );
    assert_eq!(
        across.run(&["domain", "detach", host]).refused(),
        "unauthorized"
    );
    assert_eq!(
        bob.run(&["resource", "show", "media"]).refused(),
        "not_found"
    );
    assert_eq!(
        bob.run(&["project", "create", "mine"]).refused(),
        "unauthorized"
    );
    let events = bob.run(&["events", "replay"]).ok().lines();
    assert!(
        !events.is_empty() && events.iter().all(|event| event["project"] == "rival"),
        "{events:?}"
    );
    let gapless: Vec<_> = events
        .iter()
        .map(|event| event["projectseq"].as_str().expect("a string").to_owned())
        .collect();
    assert_eq!(
        gapless,
        (1..=events.len())
            .map(|n| n.to_string())
            .collect::<Vec<_>>()
    );

    // A revoked user is out at once; the other project notices nothing.
    stage
        .operator
        .project("rival")
        .run(&["access", "revoke", "bob"])
        .ok();
    eventually("the revoked user is refused", SOON, || {
        let outcome = bob.run(&["certificate", "list"]);
        if outcome.status == 1 {
            Ok(())
        } else {
            Err(format!("{outcome:?}"))
        }
    });
    stage.alice.run(&["certificate", "list"]).ok();
}

#[test]
fn a_wildcard_claim_gives_way_to_another_projects_exact_one() {
    let stage = Stage::new();
    stage.resource("media", "cdn", &["local"]);
    stage.domain("*.example.com", "media");
    let bob = stage.chancery.project("rival", "bob");
    resource(
        &stage.operator,
        "rival",
        "shop",
        "bucket",
        &["local"],
        &format!("{}/rival", stage.origin.url()),
    );
    let wildcard = stage.ca.issue("*.example.com");
    stage.upload("wildcard", &wildcard);
    stage.serves("shop.example.com", &wildcard);
    bob.run(&["domain", "add", "shop.example.com", "--resource", "shop"])
        .ok();
    served_now(stage.chancery.https(), "shop.example.com", &wildcard)
        .expect("a pending claim decides nothing");
    stage
        .operator
        .project("rival")
        .run(&["domain", "prove", "shop.example.com"])
        .ok();
    // From here on only the certificates of the exact claim's project are ranked, and it has none yet.
    dark(stage.chancery.https(), "shop.example.com");
    served_now(stage.chancery.https(), "a.example.com", &wildcard)
        .expect("the rest of the wildcard stays");
    let own = stage.ca.issue("shop.example.com");
    upload(&bob, "own", &own, &["--region", "local"]);
    stage.serves("shop.example.com", &own);
}

#[test]
fn a_provider_domain_is_served_with_the_platforms_wildcard() {
    let stage = Stage::new();
    stage.bucket("www.example.com");
    let host = "media--acme.local.chancery.localhost";
    let wildcard = stage.ca.issue("*.local.chancery.localhost");
    upload(
        &stage.operator.project("platform"),
        "provider",
        &wildcard,
        &["--region", "local"],
    );
    stage.serves(host, &wildcard);
    assert_eq!(
        stage.get(host, "/a").expect("it is proxied"),
        "origin /media/a\n"
    );
    dark_now(
        stage.chancery.https(),
        "other--acme.local.chancery.localhost",
    )
    .expect("there is no such resource");
    assert_eq!(
        stage
            .alice
            .run(&["domain", "add", "x.local.chancery.localhost"])
            .refused(),
        "domain_reserved"
    );
    assert_eq!(
        stage.alice.run(&["domain", "add", "co.uk"]).refused(),
        "domain_reserved"
    );
}

#[test]
fn everything_survives_an_orderly_restart_and_a_crash() {
    let stage = Stage::new();
    let host = "www.example.com";
    stage.bucket(host);
    let leaf = stage.ca.issue(host);
    stage.upload("site", &leaf);
    stage.serves(host, &leaf);
    let Stage {
        ca,
        chancery,
        origin: _origin,
        ..
    } = stage;
    let folder = chancery.folder().to_owned();

    // A second one on the same state is refused with 2.
    let state = chancery.state().display().to_string();
    let second = chancery.operator().run(&["up", "--state", &state]);
    assert_eq!(second.status, 2, "{second:?}");

    let log = |chancery: &Chancery| chancery.operator().run(&["events", "replay"]).ok().stdout;
    let before = log(&chancery);
    let https = chancery.https();
    let kept = chancery.stop();
    let again = Up::in_folder(&folder).start();
    assert_eq!(
        again.https(),
        https,
        "free ports stay the same in one state"
    );
    served_now(https, host, &leaf).expect("ready means that the edge has applied the head");
    assert!(
        log(&again).starts_with(&before),
        "the log is the same bytes"
    );

    // A crash leaves the NATS child behind, which the next start ends first.
    again.kill();
    let again = Up::in_folder(&folder).start();
    served_now(again.https(), host, &leaf).expect("ready means that the edge has applied the head");
    let newer = ca.issue(host);
    let alice = again.operator().user(&folder.join("acme-alice.creds"));
    upload(&alice, "newer", &newer, &["--region", "local"]);
    serves(again.https(), host, &newer);
    assert!(
        log(&again).starts_with(&before),
        "the log is the same bytes"
    );
    again.operator().run(&["audit", "verify"]).ok();
    again.operator().run(&["audit", "rebuild"]).ok();
    drop(again);
    drop(kept);
}

#[test]
fn the_loss_of_nats_costs_time_and_nothing_else() {
    let stage = Stage::new();
    let host = "www.example.com";
    stage.bucket(host);
    let mut current = stage.ca.issue(host);
    stage.upload("site", &current);
    stage.serves(host, &current);
    for _ in 0..2 {
        let pid = fs::read_to_string(stage.chancery.state().join("nats/nats.pid"))
            .expect("the server writes its process id");
        harness::kill_process_of(&pid, &stage.chancery.state().join("nats/nats.conf"));
        throughout(
            "the edge serves without NATS",
            Duration::from_secs(1),
            || served_now(stage.chancery.https(), host, &current),
        );
        // The command line asks until somebody answers, with the same id.
        let newer = stage.ca.issue(host);
        eventually("an upload goes through again", SOON, || {
            let outcome = certificate(&stage.alice, "replace", "site", &newer, &["--wait"]);
            if outcome.status == 0 {
                Ok(())
            } else {
                Err(format!("{outcome:?}"))
            }
        });
        stage.serves(host, &newer);
        stage.operator.run(&["audit", "verify"]).ok();
        stage.operator.run(&["audit", "rebuild"]).ok();
        current = newer;
    }
}

#[test]
fn what_can_be_rebuilt_is_rebuilt() {
    let stage = Stage::new();
    let host = "www.example.com";
    stage.bucket(host);
    let leaf = stage.ca.issue(host);
    stage.upload("site", &leaf);
    stage.serves(host, &leaf);
    let before = stage.operator.run(&["events", "replay"]).ok().stdout;
    let Stage {
        chancery,
        origin: _origin,
        ..
    } = stage;
    let state = chancery.state();
    let folder = chancery.folder().to_owned();
    let kept = chancery.stop();
    // As docs/operate.md says: these are copies.
    fs::remove_file(state.join("ledger.redb")).expect("it was there");
    fs::remove_file(state.join("operator.creds")).expect("it was there");
    fs::remove_file(state.join("edges/local.local-1/edge.redb")).expect("it was there");
    let again = Up::in_folder(&folder).start();
    served_now(again.https(), host, &leaf).expect("ready means that the edge has applied the head");
    assert!(
        again
            .operator()
            .run(&["events", "replay"])
            .ok()
            .stdout
            .starts_with(&before),
        "the same log"
    );
    again.operator().run(&["audit", "verify"]).ok();
    again.operator().run(&["audit", "rebuild"]).ok();
    // An edge that lost all that it had, its own keys too, is let in anew by the process that it belongs to.
    drop(again.stop());
    fs::remove_dir_all(state.join("edges")).expect("it was there");
    let again = Up::in_folder(&folder).start();
    served_now(again.https(), host, &leaf).expect("ready means that the edge has applied the head");
    again.operator().run(&["status"]).ok();
    drop(again);
    drop(kept);
}

/// While a certificate is being verified, it is in progress, cannot be deleted and displaces nothing.
#[test]
fn what_is_still_being_verified_displaces_nothing_and_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("slow.toml");
    let text = "state = \"state\"\n[control]\nverify_delay_ms = 3000\n\
                [[edge]]\nregion = \"local\"\nname = \"local-1\"\nhttps = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\n";
    fs::write(&config, text).expect("a file");
    let chancery = Up::in_folder(folder.path())
        .flag(&format!("--config={}", config.display()))
        .start();
    let stage = Stage::of(chancery);
    let host = "www.example.com";
    stage.bucket(host);
    let first = stage.ca.issue(host);
    stage.upload("first", &first);
    stage.serves(host, &first);
    let second = stage.ca.issue(host);
    certificate(
        &stage.alice,
        "add",
        "second",
        &second,
        &["--region", "local"],
    )
    .ok();
    let shown = stage
        .alice
        .run(&["certificate", "show", "second"])
        .ok()
        .json();
    assert_eq!(
        (shown["status"].as_str(), shown["shown"].as_str()),
        (Some("verifying"), Some("in progress")),
        "{shown}"
    );
    let delete = ["certificate", "delete", "second", "--confirm", "second"];
    assert_eq!(stage.alice.run(&delete).refused(), "in_progress");
    stage.serves(host, &first);
    // Then it is active, and can be deleted.
    wait(&stage.alice, "second", "active");
    stage.serves(host, &second);
    stage.alice.run(&delete).ok();
    stage.serves(host, &first);
}

#[test]
fn an_edge_serves_through_the_loss_of_everything_upstream() {
    let mut apart = Apart::start();
    let (ca, origin) = (Ca::new(), Origin::start("origin"));
    let operator = apart.operator();
    let token = apart.file("edge-7.token").display().to_string();
    operator
        .run(&["edge", "enrol", "eu-1", "edge-7", "--out", &token])
        .ok();
    let edge = Serve::start(&apart.file("edge.toml"));

    let host = "www.example.com";
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
    acme.run(&["domain", "add", host, "--resource", "media"])
        .ok();
    let fallback = ca.issue(host);
    upload(&acme, "fallback", &fallback, &["--region", "eu-1"]);
    wait(&acme, "fallback", "active");
    served_now(apart.https, host, &fallback).expect("active means served");
    let brief = ca
        .leaf(host)
        .until(OffsetDateTime::now_utc() + Duration::from_secs(15))
        .issue();
    upload(&acme, "brief", &brief, &["--region", "eu-1"]);
    serves(apart.https, host, &brief);

    // NATS and control are gone at once, as in a crash.
    apart.control.kill();
    served_now(apart.https, host, &brief).expect("the edge needs nobody");
    // The edge restarts alone and serves at once, and at the second of expiry it switches alone.
    edge.stop();
    let edge = Serve::start_unready(&apart.file("edge.toml"));
    let listening = std::time::Instant::now();
    eventually("the edge alone serves after a restart", SOON, || {
        handshake(apart.https, host, &[]).served().map(drop)
    });
    assert!(
        listening.elapsed() < Duration::from_secs(10),
        "it took {:?}",
        listening.elapsed()
    );
    eventually(
        "the fallback takes over with nothing upstream",
        Duration::from_secs(60),
        || served_now(apart.https, host, &fallback),
    );

    // Upstream is back: what is new arrives, without a hand on the edge.
    apart.control = Serve::start(&apart.file("control.toml"));
    let newer = ca.issue(host);
    let acme = apart.operator().project("acme");
    upload(&acme, "newer", &newer, &["--region", "eu-1"]);
    serves(apart.https, host, &newer);
    wait(&acme, "newer", "active");
    edge.stop();
    apart.control.stop();
}

#[test]
fn a_real_object_store_is_the_origin() {
    let store = SeaweedFs::start("photos");
    store.put("/photos/hello.txt", b"Hello from a bucket.\n");
    let stage = Stage::new();
    let host = "photos.example.com";
    resource(
        &stage.operator,
        "acme",
        "photos",
        "bucket",
        &["local"],
        &format!("{}/photos", store.url()),
    );
    stage.domain(host, "photos");
    let leaf = stage.ca.issue(host);
    stage.upload("site", &leaf);
    stage.serves(host, &leaf);
    assert_eq!(
        stage.get(host, "/hello.txt").expect("the object comes"),
        "Hello from a bucket.\n"
    );
    let missing = curl(
        &stage.ca,
        stage.chancery.https(),
        &format!("https://{host}/none"),
        &[],
    );
    assert_eq!(
        missing.status, 404,
        "the store's own answer comes through: {missing:?}"
    );
}

#[test]
fn the_same_command_twice_happens_once() {
    let stage = Stage::new();
    stage.resource("media", "bucket", &["local"]);
    let id = "0190a5b0-0000-7000-8000-00000000000a";
    let add = |host: &str| {
        stage
            .alice
            .run(&["domain", "add", host, "--resource", "media", "--id", id])
    };
    let first = add("www.example.com").ok().json();
    assert_eq!(
        add("www.example.com").ok().json()["sequence"],
        first["sequence"],
        "the first outcome comes again"
    );
    assert_eq!(
        add("other.example.com").refused(),
        "conflict",
        "the same id with another body"
    );
    let list = stage.alice.run(&["domain", "list"]).ok().stdout;
    assert!(!list.contains("other.example.com"), "{list}");
}

#[test]
fn the_log_tells_what_was_served_then_and_by_whose_doing() {
    let stage = Stage::new();
    let host = "www.example.com";
    stage.bucket(host);
    let (first, second) = (stage.ca.issue(host), stage.ca.issue(host));
    stage.upload("first", &first);
    wait(&stage.alice, "first", "active");
    let then = OffsetDateTime::now_utc();
    // A moment lies in between that belongs to the first alone.
    eventually("the clock moves on", SOON, || {
        if OffsetDateTime::now_utc() > then + Duration::from_secs(4) {
            Ok(())
        } else {
            Err("not yet")
        }
    });
    stage.upload("second", &second);
    wait(&stage.alice, "second", "active");
    let at = (then + Duration::from_millis(3_500))
        .format(&Rfc3339)
        .expect("it is a time");
    let answer = stage
        .alice
        .run(&["host", host, "--at", &at])
        .ok()
        .lines()
        .remove(0);
    assert_eq!(answer["active"]["certificate"], "first", "{answer}");
    assert_eq!(
        answer["active"]["fingerprint"],
        first.fingerprint(),
        "{answer}"
    );
    assert_eq!(answer["evidence"], "reported", "{answer}");
    assert_eq!(
        (&answer["caused_by"]["actor"], &answer["caused_by"]["event"]),
        (&"alice".into(), &"certificate.added".into()),
        "{answer}"
    );
    assert_eq!(answer["why"], "it is the only usable one", "{answer}");
    assert_eq!(
        stage.host(host)["active"]["fingerprint"],
        second.fingerprint()
    );

    // The exact bytes, gapless, linked and countable.
    let replay = stage.operator.run(&["events", "replay"]).ok().lines();
    let sequences: Vec<_> = replay
        .iter()
        .map(|e| {
            e["sequence"]
                .as_str()
                .expect("a string")
                .parse::<usize>()
                .expect("a number")
        })
        .collect();
    assert_eq!(sequences, (1..=replay.len()).collect::<Vec<_>>());
    stage.operator.run(&["audit", "verify"]).ok();
    stage.operator.run(&["audit", "rebuild"]).ok();
    stage.operator.run(&["status"]).ok();
}

/// Where no edge has reported, the log tells what was to be served, and says so.
#[test]
fn without_an_edges_report_the_past_is_intended() {
    let stage = Stage::new();
    stage.operator.run(&["region", "create", "north"]).ok();
    stage.resource("media", "cdn", &["north"]);
    let host = "www.example.com";
    stage.domain(host, "media");
    let leaf = stage.ca.issue(host);
    upload(&stage.alice, "site", &leaf, &["--region", "north"]);
    let now = OffsetDateTime::now_utc().format(&Rfc3339).expect("a time");
    let answer = stage
        .alice
        .run(&["host", host, "--region", "north", "--at", &now])
        .ok()
        .lines()
        .remove(0);
    assert_eq!(answer["active"]["certificate"], "site", "{answer}");
    assert_eq!(answer["evidence"], "intended", "{answer}");
    let shown = stage
        .alice
        .run(&["certificate", "show", "site"])
        .ok()
        .json();
    assert_eq!(
        shown["served_everywhere"], false,
        "no edge serves it: {shown}"
    );
}

/// A leaf without its intermediate is refused, unless this project, and no other, has shown that intermediate before.
#[test]
fn a_leaf_alone_is_completed_from_what_the_project_has_shown() {
    let stage = Stage::new();
    let host = "www.example.com";
    stage.bucket(host);
    let (whole, alone) = (stage.ca.issue(host), stage.ca.issue(host));
    let text = fs::read_to_string(alone.chain()).expect("the chain");
    let end = "-----END CERTIFICATE-----\n";
    let leaf_only = &text[..text.find(end).expect("a certificate") + end.len()];
    let file = stage.chancery.folder().join("alone.pem");
    fs::write(&file, leaf_only).expect("a file");
    let (chain, key) = (
        file.display().to_string(),
        alone.key().display().to_string(),
    );
    let add = |user: &Cli, name: &str| {
        let files = ["--chain", &chain, "--key", &key, "--region", "local"];
        user.run(&[&["certificate", "add", name][..], &files[..]].concat())
    };
    assert_eq!(add(&stage.alice, "early").refused(), "chain_incomplete");
    stage.upload("whole", &whole);
    add(&stage.alice, "late").ok();
    wait(&stage.alice, "late", "active");
    stage.serves(host, &alone);
    // curl knows the root alone, so the edge sends the intermediate.
    stage.get(host, "/").expect("the chain is complete");
    let bob = stage.chancery.project("other", "bob");
    assert_eq!(add(&bob, "theirs").refused(), "chain_incomplete");
}
