//! A project's user who means harm, on a real server: what is refused, and that nobody else notices anything.
//!
//! Mallory of `acme` attacks; Bob of `other` is who must not notice. After each attack the log holds exactly what was
//! asked rightfully, Bob's own connection was not closed, and Bob is served. Each attack is first tried where it is allowed,
//! so that a client which does not work proves nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use harness::{Ca, Chancery, Cli, SOON, eventually};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::raw::{Heard, Raw};
use crate::stage::upload;

/// The operator, and two projects with one user each.
struct House {
    chancery: Chancery,
    operator: Cli,
    bob_cli: Cli,
    /// Stays connected throughout.
    bob: Raw,
    /// The log is examined from here on.
    from: u64,
    served: u32,
}

impl House {
    fn new() -> Self {
        let chancery = Chancery::up();
        let operator = chancery.operator();
        let _ = chancery.project("acme", "mallory");
        let bob_cli = chancery.project("other", "bob");
        let bob = Raw::connect(
            &chancery.nats(),
            &chancery.folder().join("other-bob.creds"),
            &Value::Null,
        );
        let mut house = Self {
            chancery,
            operator,
            bob_cli,
            bob,
            from: 0,
            served: 0,
        };
        house.from = house.head() + 1;
        house.undisturbed(&[]);
        house
    }

    fn creds(&self, project: &str, user: &str) -> PathBuf {
        self.chancery
            .folder()
            .join(format!("{project}-{user}.creds"))
    }

    /// A new connection of Mallory's.
    fn mallory(&self) -> Raw {
        Raw::connect(
            &self.chancery.nats(),
            &self.creds("acme", "mallory"),
            &Value::Null,
        )
    }

    fn status(&self) -> Value {
        self.operator.run(&["status"]).ok().json()
    }

    fn head(&self) -> u64 {
        self.status()["head"]
            .as_u64()
            .expect("the status tells the head")
    }

    /// What came into the log since it was last examined, as `<project> <fact> by <actor>`. What edges report of themselves
    /// comes when it comes and is left out.
    fn logged(&self) -> Vec<String> {
        let from = self.from.to_string();
        let events = self
            .operator
            .run(&["events", "replay", "--from", &from])
            .ok()
            .lines();
        events
            .iter()
            .map(|event| {
                let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
                let kind = text("type");
                let fact = kind
                    .trim_start_matches("dev.chancery.")
                    .trim_end_matches(".v1")
                    .to_owned();
                format!("{} {fact} by {}", text("project"), text("actor"))
            })
            .filter(|line| !line.contains(" region.applied by "))
            .collect()
    }

    /// The log holds exactly this since the last time, Bob's connection has heard nothing and is open, and Bob is served.
    #[track_caller]
    fn undisturbed(&mut self, expected: &[&str]) {
        let limit = if expected.is_empty() {
            Duration::ZERO
        } else {
            SOON
        };
        eventually(
            "the log holds what was rightfully asked, and nothing else",
            limit,
            || {
                let logged = self.logged();
                if logged == expected {
                    Ok(())
                } else {
                    Err(format!("{logged:#?}"))
                }
            },
        );
        assert_eq!(
            self.bob.settle(),
            vec![],
            "Bob hears nothing of what others do"
        );
        self.served += 1;
        let host = format!("bob-{}.example.org", self.served);
        let answer = self.bob.ask(
            "chancery.v1.cmd.other.domain.add",
            Some(Uuid::now_v7()),
            &json!({"host": host}),
        );
        assert_eq!(answer["outcome"], "accepted", "{answer}");
        let logged = self.logged();
        let mut with_bobs: Vec<&str> = expected.to_vec();
        with_bobs.push("other domain.added by bob");
        assert_eq!(logged, with_bobs);
        self.from = answer["sequence"]
            .as_u64()
            .expect("an accepted command has a sequence")
            + 1;
    }

    /// What the door has refused for this reason so far.
    fn refused(&self, code: &str) -> u64 {
        self.status()["door"]["counts"]["refused"][code]
            .as_u64()
            .unwrap_or(0)
    }
}

/// The problem's code of an answer.
#[track_caller]
fn code(answer: &Value) -> &str {
    answer["code"]
        .as_str()
        .unwrap_or_else(|| panic!("not refused: {answer}"))
}

/// Publishes or subscribes each subject, and returns those that the server let through.
fn let_through(raw: &mut Raw, publish: &[&str], subscribe: &[&str]) -> Vec<String> {
    let violates = |heard: &[Heard], what: &str| {
        let words = format!("Permissions Violation for {what}");
        heard
            .iter()
            .any(|heard| matches!(heard, Heard::Error(error) if error.contains(&words)))
    };
    let mut through = Vec::new();
    for subject in publish {
        raw.publish(subject, "", b"{}");
        if !violates(&raw.settle(), "Publish") {
            through.push(format!("publish {subject}"));
        }
    }
    for (sid, subject) in (100..).zip(subscribe) {
        raw.subscribe(subject, sid);
        if !violates(&raw.settle(), "Subscription") {
            through.push(format!("subscribe {subject}"));
        }
    }
    through
}

/// Sends so many requests, fifty at a time, and counts their answers by outcome or code.
fn flood(
    raw: &mut Raw,
    subject: &str,
    count: u64,
    body: impl Fn(u64) -> Value,
) -> BTreeMap<String, u64> {
    let reply = format!("_INBOX.{}", Uuid::now_v7().simple());
    raw.subscribe(&reply, 9);
    let mut counts = BTreeMap::new();
    for batch in 0..count / 50 {
        for sent in 0..50 {
            raw.publish(
                subject,
                &reply,
                body(batch * 50 + sent).to_string().as_bytes(),
            );
        }
        for _ in 0..50 {
            let Heard::Message { body, .. } = raw.hear(SOON) else {
                panic!("each request of the flood is answered")
            };
            let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
            let what = answer["outcome"].as_str().or(answer["code"].as_str());
            let what = what.unwrap_or_else(|| panic!("{answer}")).to_owned();
            if what == "rate_limited" {
                assert!(
                    answer["retry_after_ms"].as_u64().is_some_and(|ms| ms > 0),
                    "{answer}"
                );
            }
            *counts.entry(what).or_default() += 1;
        }
    }
    raw.send(b"UNSUB 9\r\n");
    counts
}

#[test]
fn the_server_lets_a_project_reach_its_own_subjects_only() {
    let mut house = House::new();
    let mut mallory = house.mallory();
    let own = [
        "chancery.v1.query.acme.domains",
        "chancery.v1.query.acme.certificates",
    ];
    assert_eq!(
        let_through(&mut mallory, &own, &["chancery.v1.evt.acme.>", "_INBOX.>"]).len(),
        4,
        "what is Mallory's own goes through"
    );
    let publish = [
        "chancery.v1.cmd.other.domain.add",
        "chancery.v1.cmd.platform.project.create",
        "chancery.v1.queue.other.domain.add",
        "chancery.v1.query.other.domains",
        "chancery.v1.query.platform.log",
        "chancery.v1.query.acme.domains.other",
        "chancery.v1.cmd.acme.domain",
        "chancery.v1.cmd.acme.domain.add.now",
        "chancery.v1.evt.acme.domain.added",
        "chancery.v1.evt.other.domain.added",
        "chancery.v1.log.acme.domain.added",
        "chancery.v1.log.other.domain.added",
        "chancery.v1.internal.keys.put",
        "chancery.v1.internal.objects.put",
        "chancery.v1.internal.queue.work",
        "chancery.v1.region.local.delta",
        "chancery.v1.edge.local.local-1.sync",
        "chancery.v1.edge.local.local-1.report",
        "chancery.v1.edge.local.local-1.enrol",
        "$JS.API.INFO",
        "$JS.API.STREAM.INFO.LOG",
        "$JS.API.STREAM.DELETE.LOG",
        "$JS.API.STREAM.PURGE.LOG",
        "$JS.API.STREAM.CREATE.MINE",
        "$JS.API.STREAM.MSG.GET.KEYS",
        "$JS.API.DIRECT.GET.KEYS",
        "$JS.API.CONSUMER.CREATE.LOG",
        "$JS.API.CONSUMER.MSG.NEXT.QUEUE.worker",
        "$JS.ACK.QUEUE.worker.1.1.1.1.0",
        "$SYS.REQ.CLAIMS.UPDATE",
        "$SYS.REQ.CLAIMS.DELETE",
        "$SYS.REQ.SERVER.PING.CONNZ",
        "$SYS.REQ.ACCOUNT.PING.CONNZ",
        "$SYS.REQ.USER.INFO",
        "$SRV.PING",
        "_INBOX.bob",
        "_R_.bob",
        "anything",
    ];
    let subscribe = [
        ">",
        "*.>",
        "chancery.>",
        "chancery.v1.*.acme.>",
        "chancery.v1.log.>",
        "chancery.v1.internal.>",
        "chancery.v1.region.>",
        "chancery.v1.edge.>",
        "chancery.v1.evt.>",
        "chancery.v1.evt.*.domain.added",
        "chancery.v1.evt.other.>",
        "chancery.v1.evt.platform.>",
        "chancery.v1.cmd.acme.>",
        "chancery.v1.query.acme.>",
        "$JS.>",
        "$SYS.>",
        "$SRV.>",
        "_R_.>",
        "_INBOX_registrar.>",
    ];
    assert_eq!(
        let_through(&mut mallory, &publish, &subscribe),
        Vec::<String>::new()
    );
    // Mallory's connection is open still: a violation is an answer, and nothing that would have to be reconnected.
    let answer = mallory.ask("chancery.v1.query.acme.domains", None, &json!({}));
    assert_eq!(answer["domains"], json!([]));
    house.undisturbed(&[]);
}

#[test]
fn nobody_can_say_that_they_are_somebody_else() {
    let mut house = House::new();
    let nats = house.chancery.nats();
    let add = "chancery.v1.cmd.acme.domain.add";

    // What a client calls itself when it connects counts for nothing.
    let named = json!({"user": "operator", "name": "operator", "pass": "x", "auth_token": "y"});
    let mut mallory = Raw::connect(&nats, &house.creds("acme", "mallory"), &named);
    let answer = mallory.ask(add, None, &json!({"host": "named.example.com"}));
    assert_eq!(answer["outcome"], "accepted", "{answer}");
    house.undisturbed(&["acme domain.added by mallory"]);
    let answer = mallory.ask(
        "chancery.v1.cmd.acme.project.create",
        None,
        &json!({"project": "mine"}),
    );
    assert_eq!(code(&answer), "unauthorized");

    // The operator's true JWT, which is no secret, in a header of Mallory's.
    let text = std::fs::read_to_string(house.chancery.state().join("operator.creds"))
        .expect("the operator's file");
    let operator = bus::identity::Credentials::parse(&text).expect("credentials");
    let claims = operator
        .jwt
        .split('.')
        .nth(1)
        .expect("a JWT has three parts");
    let claims = data_encoding::BASE64URL_NOPAD
        .decode(claims.as_bytes())
        .expect("base64url");
    let claims: Value = serde_json::from_slice(&claims).expect("JSON");
    let info = json!({
        "acc": claims["nats"]["issuer_account"], "jwt": operator.jwt, "user": "operator", "name": "operator", "rtt": 1,
        "start": "2026-01-01T00:00:00Z",
    });
    let limit = Duration::from_secs(20);
    let body = br#"{"project":"mine"}"#;
    let create = "chancery.v1.cmd.acme.project.create";
    // A well-formed header of that name is replaced by the server's own: Mallory is asked as Mallory.
    let plain = format!("NATS/1.0\r\nNats-Request-Info: {info}\r\n\r\n");
    let answer = mallory
        .ask_with(create, plain.as_bytes(), body, limit)
        .expect("an answer");
    assert_eq!(code(&answer), "unauthorized", "{answer}");
    // Past the server: other readers would see a header of its own in each of these.
    let smuggled = [
        format!(
            "NATS/1.0\r\nContent-Type: application/json\nNats-Request-Info: {info}\nZ: z\r\n\r\n"
        ),
        format!("NATS/1.0\r\nX: y\nNats-Request-Info: {info}\nZ: ab\r\n\r\n"),
        format!("NATS/1.0\nNats-Request-Info: {info}\r\n\r\n"),
        format!("NATS/1.0\r\nX: y\rNats-Request-Info: {info}\r\n\r\n"),
        format!("NATS/1.0\r\nnats-request-info: {info}\r\n\r\n"),
        format!("NATS/1.0\r\nNats-Request-Info : {info}\r\n\r\n"),
        format!("NATS/1.0\r\n Nats-Request-Info: {info}\r\n\r\n"),
        format!("NATS/1.0\r\nNATS-REQUEST-INFO: {info}\r\nNats-Request-Info: {info}\r\n\r\n"),
        format!("NATS/1.0\r\n\r\nNats-Request-Info: {info}\r\n\r\n"),
        format!("NATS/1.0\r\nNats-Request-Info: {info}\r\n"),
        format!("NATS/1.0 503\r\nNats-Request-Info: {info}\r\n\r\n"),
    ];
    for header in &smuggled {
        let answer = mallory
            .ask_with(create, header.as_bytes(), body, limit)
            .unwrap_or_else(|heard| panic!("{header:?}: {heard:?}"));
        assert!(
            ["malformed", "unauthorized"].contains(&code(&answer)),
            "{header:?}: {answer}"
        );
    }
    assert!(
        house.refused("malformed") >= 8,
        "most of them were refused for their form: {}",
        house.status()["door"]
    );

    // Another's JWT without the seed that proves it.
    let mallory_text =
        std::fs::read_to_string(house.creds("acme", "mallory")).expect("Mallory's file");
    let mallorys = bus::identity::Credentials::parse(&mallory_text).expect("credentials");
    let mixed = mallory_text.replace(&mallorys.jwt, &operator.jwt);
    let mixed = bus::identity::Credentials::parse(&mixed).expect("it has the form of credentials");
    let refused = Raw::with_credentials(&nats, &mixed, &Value::Null)
        .err()
        .expect("a proof is asked for");
    assert!(
        matches!(&refused[0], Heard::Error(error) if error.contains("Authorization Violation")),
        "{refused:?}"
    );
    house.undisturbed(&[]);
}

#[test]
fn an_answer_goes_nowhere_but_to_who_asked() {
    let mut house = House::new();
    let mut mallory = house.mallory();
    house.bob.subscribe("chancery.v1.evt.other.>", 7);
    house.bob.subscribe("_INBOX.>", 8);
    house.bob.settle();
    let replies = [
        "chancery.v1.log.acme.domain.added",
        "chancery.v1.log.other.domain.added",
        "chancery.v1.evt.other.domain.added",
        "chancery.v1.evt.acme.domain.added",
        "chancery.v1.cmd.other.domain.add",
        "chancery.v1.queue.other.domain.add",
        "chancery.v1.cmd.platform.project.create",
        "chancery.v1.internal.keys.put",
        "chancery.v1.internal.objects.put",
        "chancery.v1.internal.queue.work",
        "chancery.v1.region.local.delta",
        "chancery.v1.edge.local.local-1.report",
        "$JS.API.STREAM.DELETE.LOG",
        "$JS.API.STREAM.PURGE.LOG",
        "$JS.API.STREAM.MSG.DELETE.KEYS",
        "$JS.ACK.QUEUE.worker.1.1.1.1.0",
        "$SYS.REQ.CLAIMS.DELETE",
        "$SRV.PING",
        "_INBOX.bob",
        "_INBOX_registrar.x",
        "_R_.x",
    ];
    // A query has no trace of its own, so its answers may only go astray. A command may run; its event is Mallory's.
    for reply in replies {
        mallory.publish("chancery.v1.query.acme.domains", reply, b"{}");
    }
    assert_eq!(
        mallory
            .settle()
            .iter()
            .filter(|heard| matches!(heard, Heard::Message { .. }))
            .count(),
        0,
        "and nothing came back"
    );
    let run = [
        ("a.example.com", "chancery.v1.log.acme.domain.added"),
        ("b.example.com", "chancery.v1.evt.other.domain.added"),
        ("c.example.com", "$JS.API.STREAM.DELETE.LOG"),
        ("d.example.com", "_INBOX.bob"),
    ];
    let mut added = Vec::new();
    for (host, reply) in run {
        let body = json!({"host": host}).to_string();
        mallory.publish("chancery.v1.cmd.acme.domain.add", reply, body.as_bytes());
        let heard = mallory.settle();
        let refused = heard.iter().any(|heard| matches!(heard, Heard::Error(_)));
        if !refused {
            added.push("acme domain.added by mallory");
        }
    }
    assert!(
        !added.is_empty(),
        "at least some of them run, or the attack was none"
    );
    // Bob's own reply is the only message that Bob hears, and it is checked there.
    house.bob.send(b"UNSUB 8\r\n");
    eventually("the commands have run", SOON, || {
        let logged = house.logged();
        if logged.len() == added.len() {
            Ok(())
        } else {
            Err(format!("{logged:?}"))
        }
    });
    assert_eq!(house.bob.settle(), vec![], "Bob has heard nothing");
    house.bob.send(b"UNSUB 7\r\n");
    house.undisturbed(&added);
    let audit = house.operator.run(&["audit", "verify"]);
    assert_eq!(audit.status, 0, "the log is whole: {audit:?}");
}

#[test]
fn an_id_belongs_to_the_project_that_used_it() {
    let mut house = House::new();
    let mut mallory = house.mallory();
    let id = Uuid::now_v7();
    let (acme, other) = (
        "chancery.v1.cmd.acme.domain.add",
        "chancery.v1.cmd.other.domain.add",
    );
    let first = house
        .bob
        .ask(other, Some(id), &json!({"host": "first.example.org"}));
    assert_eq!(first["outcome"], "accepted", "{first}");
    // Mallory has seen the id somewhere: it opens nothing, and blocks nothing.
    let query = json!({"id": id});
    assert_eq!(
        code(&mallory.ask("chancery.v1.query.acme.outcome", None, &query)),
        "not_found"
    );
    let mine = mallory.ask(acme, Some(id), &json!({"host": "mine.example.com"}));
    assert_eq!(mine["outcome"], "accepted", "{mine}");
    assert_ne!(mine["sequence"], first["sequence"]);
    // The same again is the first outcome; the same id for something else is told apart.
    assert_eq!(
        mallory.ask(acme, Some(id), &json!({"host": "mine.example.com"})),
        mine
    );
    let changed = mallory.ask(acme, Some(id), &json!({"host": "changed.example.com"}));
    assert_eq!(code(&changed), "conflict", "{changed}");
    let field = mallory.ask(
        acme,
        Some(id),
        &json!({"host": "mine.example.com", "id": Uuid::now_v7()}),
    );
    assert_eq!(code(&field), "malformed", "{field}");
    assert_eq!(
        house
            .bob
            .ask(other, Some(id), &json!({"host": "first.example.org"})),
        first
    );
    let outcome = house
        .bob
        .ask("chancery.v1.query.other.outcome", None, &query);
    assert_eq!(outcome["sequence"], first["sequence"], "{outcome}");
    house.undisturbed(&["other domain.added by bob", "acme domain.added by mallory"]);
}

#[test]
fn what_is_too_large_or_never_ends_is_cut_off() {
    let mut house = House::new();
    let add = "chancery.v1.cmd.acme.domain.add";
    let limit = Duration::from_secs(20);
    // Just below what is allowed: read, and refused for what it says.
    let mut mallory = house.mallory();
    let spaces = " ".repeat(250 * 1024);
    let answer = mallory
        .ask_with(add, b"NATS/1.0\r\n\r\n", spaces.as_bytes(), limit)
        .expect("an answer");
    assert_eq!(code(&answer), "malformed", "{answer}");
    let deep = "[".repeat(100_000);
    for body in [
        format!("{{\"host\":{deep}"),
        format!("{{\"id\":\"{}\",\"host\":{deep}", Uuid::now_v7()),
        format!("{{\"host\":\"{}\"}}", "a.".repeat(50_000)),
        "{\"host\":\"a.example.com\",\"host\":\"b.example.com\"}".to_owned(),
        "{\"host\":\"a.example.com\"}{}".to_owned(),
        "\u{0}".to_owned(),
    ] {
        let answer = mallory
            .ask_with(add, b"NATS/1.0\r\n\r\n", body.as_bytes(), limit)
            .expect("an answer");
        assert!(answer["code"].is_string(), "{answer}");
        assert_ne!(answer["code"], "busy", "{answer}");
        let quoted = answer.to_string();
        assert!(
            !quoted.contains("[[[[") && !quoted.contains("a.a.a."),
            "what was sent is not quoted: {quoted}"
        );
    }
    // Headers without an end.
    let many = format!("NATS/1.0\r\n{}\r\n", "X: y\r\n".repeat(10_000));
    let answer = mallory
        .ask_with(add, many.as_bytes(), b"{}", limit)
        .expect("an answer");
    assert_eq!(code(&answer), "malformed", "{answer}");

    // A message above the limit is not read.
    let mut large = house.mallory();
    let header = format!("PUB {add} {}\r\n", 300 * 1024);
    large.send(header.as_bytes());
    large.closed();
    // Nor one that announces more than there is, whose sender just goes on sending.
    let mut endless = house.mallory();
    endless.send(format!("PUB {add} 99999999999\r\n").as_bytes());
    endless.closed();
    // Nor a line without an end.
    let mut line = house.mallory();
    line.send(b"PUB ");
    for _ in 0..64 {
        line.send(&[b'a'; 1_024]);
    }
    line.closed();
    // A body whose end never comes holds up its own connection only.
    let mut half = house.mallory();
    half.send(format!("PUB {add} 200000\r\n{{\"host\":").as_bytes());
    // The name that is too long is the registrar's to reject or not; whatever it said stands in Mallory's own project.
    let logged = house.logged();
    assert!(
        logged
            .iter()
            .all(|line| line.starts_with("acme command.rejected by mallory")),
        "{logged:?}"
    );
    let logged: Vec<&str> = logged.iter().map(String::as_str).collect();
    house.undisturbed(&logged);
    drop(half);
}

#[test]
fn questions_are_answered_about_ones_own_only() {
    let mut house = House::new();
    let ca = Ca::new();
    let host = "secret-name.example.org";
    house.bob_cli.run(&["domain", "add", host]).ok();
    house
        .operator
        .project("other")
        .run(&["domain", "prove", host])
        .ok();
    upload(
        &house.bob_cli,
        "bobs",
        &ca.issue(host),
        &["--region", "local"],
    );
    let bobs = house.bob.ask(
        "chancery.v1.query.other.certificates",
        None,
        &json!({"name": "bobs"}),
    );
    assert_eq!(
        bobs["certificates"][0]["name"], "bobs",
        "there is something to be seen: {bobs}"
    );
    house.from = house.head() + 1;

    let mut mallory = house.mallory();
    let ask = |mallory: &mut Raw, view: &str, body: Value| {
        mallory.ask(&format!("chancery.v1.query.acme.{view}"), None, &body)
    };
    for (view, body) in [
        ("host", json!({"host": host})),
        ("host", json!({"host": host, "region": "local"})),
        ("host", json!({"host": host, "at": "2100-01-01T00:00:00Z"})),
        ("certificates", json!({"name": "bobs"})),
        ("domains", json!({"name": host})),
        ("resources", json!({"name": "bobs"})),
    ] {
        let answer = ask(&mut mallory, view, body);
        assert_eq!(code(&answer), "not_found", "{view}: {answer}");
    }
    for view in ["log", "status", "projects", "access", "edges", "rebuild"] {
        let answer = ask(&mut mallory, view, json!({}));
        assert_eq!(code(&answer), "unauthorized", "{view}: {answer}");
    }
    // Places to go on from that lie outside what is Mallory's.
    let own = mallory.ask(
        "chancery.v1.cmd.acme.domain.add",
        None,
        &json!({"host": "own.example.com"}),
    );
    assert_eq!(own["outcome"], "accepted", "{own}");
    for after in [
        "",
        "\u{0}",
        "\u{0}other",
        "other",
        "\u{0}other\u{0}",
        "../other",
        "zzzz",
        "\u{10ffff}",
    ] {
        for view in [
            "certificates",
            "domains",
            "resources",
            "active-certificates",
            "fallbacks",
        ] {
            for body in [
                json!({"after": after}),
                json!({"after": after, "of": "other", "limit": 500}),
                json!({"name": after}),
            ] {
                let answer = ask(&mut mallory, view, body);
                let text = answer.to_string();
                assert!(
                    !text.contains("bobs") && !text.contains(host) && !text.contains("example.org"),
                    "{view}: {text}"
                );
            }
        }
    }
    let mut from = 1;
    loop {
        let page = ask(&mut mallory, "events", json!({"from": from, "limit": 500}));
        let events = page["events"].as_array().expect("a page of events").clone();
        assert!(
            events.iter().all(|event| event["project"] == "acme"),
            "{page}"
        );
        match page["next"].as_u64() {
            Some(next) if next > from && !events.is_empty() => from = next,
            _ => break,
        }
    }
    // A name that another has proven cannot be taken, and saying so tells no more than everybody sees in the DNS.
    let claim = mallory.ask(
        "chancery.v1.cmd.acme.domain.add",
        None,
        &json!({"host": host}),
    );
    assert!(
        !claim.to_string().contains("other"),
        "who holds it is not told: {claim}"
    );
    let prove = mallory.ask(
        "chancery.v1.cmd.acme.domain.prove",
        None,
        &json!({"project": "acme", "host": host}),
    );
    assert_eq!(code(&prove), "unauthorized", "{prove}");
    let bind = mallory.ask(
        "chancery.v1.cmd.acme.domain.bind",
        None,
        &json!({"host": host, "certificate": "bobs"}),
    );
    assert!(bind["code"].is_string(), "{bind}");
    let delete = json!({"name": "bobs", "confirm": "bobs", "force": true});
    let delete = mallory.ask("chancery.v1.cmd.acme.certificate.delete", None, &delete);
    assert!(delete["code"].is_string(), "{delete}");
    let logged = house.logged();
    assert!(
        logged.iter().all(|line| line.starts_with("acme ")),
        "{logged:?}"
    );
    let logged: Vec<&str> = logged.iter().map(String::as_str).collect();
    house.undisturbed(&logged);
    let again = house.bob.ask(
        "chancery.v1.query.other.certificates",
        None,
        &json!({"name": "bobs"}),
    );
    assert_eq!(
        again["certificates"][0]["revision"], bobs["certificates"][0]["revision"],
        "nobody touched it"
    );
}

#[test]
fn a_flood_of_malformed_headers_leaves_others_served() {
    const FLOOD: usize = 4_000;
    let mut house = House::new();
    let nats = house.chancery.nats();
    let file = house.creds("acme", "mallory");
    let before = house.refused("malformed");
    let flood = std::thread::spawn(move || {
        // What a client with a usual header parser breaks on.
        let bad: [&[u8]; 6] = [
            b"NATS/1.0\r\nX: a\rb\r\n\r\n",
            b"NATS/1.0\r\nno colon\r\n\r\n",
            b"NATS/1.0\r\nX: \xff\xfe\r\n\r\n",
            b"NATS/9.9\r\n\r\n",
            b"NATS/1.0\r\nX: y\nNats-Request-Info: {}\nZ: ab\r\n\r\n",
            b"NATS/1.0\r\n\0\0\0\0\r\n\r\n",
        ];
        let mut mallory = Raw::connect(&nats, &file, &Value::Null);
        for (sent, header) in (0..FLOOD).zip(bad.iter().cycle()) {
            mallory.publish_with(
                "chancery.v1.cmd.acme.domain.add",
                "_INBOX.flood",
                header,
                b"{}",
            );
            if sent % 200 == 199 {
                mallory.settle();
            }
        }
        let open = !mallory.settle().contains(&Heard::Closed);
        assert!(
            open,
            "the server itself takes such bytes, so they have all come"
        );
    });
    let mut bobs = Vec::new();
    let mut repeats = 0;
    while !flood.is_finished() || bobs.len() < 20 {
        let (id, body) = (
            Uuid::now_v7(),
            json!({"host": format!("flood-{}.example.org", bobs.len())}),
        );
        let deadline = Instant::now() + SOON;
        loop {
            let answer = house.bob.try_ask(
                "chancery.v1.cmd.other.domain.add",
                Some(id),
                &body,
                Duration::from_secs(2),
            );
            match answer {
                Ok(answer) if answer["outcome"] == "accepted" => break,
                other => assert!(Instant::now() < deadline, "Bob asks in vain: {other:?}"),
            }
            repeats += 1;
        }
        bobs.push("other domain.added by bob");
        assert!(bobs.len() < 900, "the flood ends");
    }
    flood.join().expect("the flood went through");
    eventually("the door has seen the whole flood", SOON, || {
        let refused = house.refused("malformed") - before;
        if refused >= FLOOD as u64 {
            Ok(())
        } else {
            Err(refused)
        }
    });
    assert_eq!(
        house.status()["door"]["reconnects"],
        0,
        "the door's connections stayed up"
    );
    assert!(repeats <= 2, "Bob had to ask again {repeats} times");
    // Each of Bob's commands once, however often it was sent, and nothing of Mallory's.
    house.undisturbed(&bobs);
}

#[test]
fn a_flood_of_large_bodies_leaves_others_served() {
    const CONNECTIONS: usize = 4;
    const EACH: usize = 400;
    let mut house = House::new();
    let nats = house.chancery.nats();
    let file = house.creds("acme", "mallory");
    let floods: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (nats, file) = (nats.clone(), file.clone());
            std::thread::spawn(move || {
                let mut mallory = Raw::connect(&nats, &file, &Value::Null);
                let body = vec![b'['; 250 * 1024];
                for sent in 0..EACH {
                    mallory.publish("chancery.v1.cmd.acme.certificate.add", "", &body);
                    if sent % 50 == 49 {
                        assert_eq!(mallory.settle(), vec![], "the server takes them all");
                    }
                }
            })
        })
        .collect();
    let mut bobs = Vec::new();
    let mut repeats = 0;
    while floods.iter().any(|flood| !flood.is_finished()) || bobs.len() < 5 {
        let (id, body) = (
            Uuid::now_v7(),
            json!({"host": format!("large-{}.example.org", bobs.len())}),
        );
        let deadline = Instant::now() + SOON;
        loop {
            let answer = house.bob.try_ask(
                "chancery.v1.cmd.other.domain.add",
                Some(id),
                &body,
                Duration::from_secs(2),
            );
            match answer {
                Ok(answer) if answer["outcome"] == "accepted" => break,
                other => assert!(Instant::now() < deadline, "Bob asks in vain: {other:?}"),
            }
            repeats += 1;
        }
        bobs.push("other domain.added by bob");
    }
    for flood in floods {
        flood.join().expect("the flood went through");
    }
    let door = house.status()["door"].clone();
    assert_eq!(door["reconnects"], 0, "{door}");
    assert!(repeats <= 5, "Bob had to ask again {repeats} times");
    house.undisturbed(&bobs);
}

#[test]
fn who_floods_is_limited_and_the_others_are_served() {
    /// The bucket of a project unless told, and what it refills in a second.
    const BURST: u64 = 1_000;
    const A_SECOND: u64 = 50;
    let mut house = House::new();
    let nats = house.chancery.nats();
    let began = Instant::now();
    let file = house.creds("acme", "mallory");
    let flooding = std::thread::spawn(move || {
        let mut mallory = Raw::connect(&nats, &file, &Value::Null);
        let body = |n| json!({"host": format!("flood-{n}.example.com")});
        flood(&mut mallory, "chancery.v1.cmd.acme.domain.add", 3_000, body)
    });
    let mut slowest = Duration::ZERO;
    let mut asked = 0_u64;
    while !flooding.is_finished() || asked < 20 {
        let began = Instant::now();
        let id = Uuid::now_v7();
        let body = json!({"host": format!("flood-{asked}.example.org")});
        let answer = house
            .bob
            .ask("chancery.v1.cmd.other.domain.add", Some(id), &body);
        assert_eq!(answer["outcome"], "accepted", "{answer}");
        slowest = slowest.max(began.elapsed());
        asked += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    let counts = flooding.join().expect("the flood went through");
    let of = |what: &str| counts.get(what).copied().unwrap_or(0);
    let (accepted, limited) = (of("accepted"), of("rate_limited"));
    let seconds = began.elapsed().as_secs() + 1;
    assert!(accepted >= BURST, "the flood was one: {counts:?}");
    assert!(
        accepted <= BURST + A_SECOND * seconds,
        "{accepted} in {seconds} s"
    );
    assert!(limited > 500, "{counts:?}");
    assert!(slowest < Duration::from_secs(5), "Bob waited {slowest:?}");
    let logged = house.logged();
    let of = |project: &str| {
        logged
            .iter()
            .filter(|line| line.starts_with(project))
            .count() as u64
    };
    assert_eq!(
        (of("acme "), of("other ")),
        (accepted, asked),
        "the log grew by what was accepted"
    );

    // Uploads cost more than their event; they are counted before they are looked at, also those that come to nothing.
    let mut mallory = house.mallory();
    let nothing =
        |_| json!({"name": "flood", "kind": "ca", "chain": "nothing", "regions": ["local"]});
    let counts = flood(
        &mut mallory,
        "chancery.v1.cmd.acme.certificate.add",
        2_000,
        nothing,
    );
    let of = |what: &str| counts.get(what).copied().unwrap_or(0);
    assert!(
        of("not_pem") >= BURST && of("rate_limited") > 100,
        "{counts:?}"
    );

    // What is queued is limited where it is put, so the queue of all stays free for the others.
    let body = |n| json!({"host": format!("queued-{n}.example.com")});
    let counts = flood(
        &mut mallory,
        "chancery.v1.queue.acme.domain.add",
        2_000,
        body,
    );
    let of = |what: &str| counts.get(what).copied().unwrap_or(0);
    assert!(
        of("queued") >= BURST && of("rate_limited") > 100,
        "{counts:?}"
    );
    let id = Uuid::now_v7();
    let queued = house.bob.ask(
        "chancery.v1.queue.other.domain.add",
        Some(id),
        &json!({"host": "queued.example.org"}),
    );
    assert_eq!(queued["outcome"], "queued", "{queued}");
    eventually("Bob's queued command is decided", SOON, || {
        let outcome = house
            .bob
            .ask("chancery.v1.query.other.outcome", None, &json!({"id": id}));
        if outcome["outcome"] == "accepted" {
            Ok(())
        } else {
            Err(outcome)
        }
    });

    // The operator is not held up by what Mallory used up.
    house
        .operator
        .project("acme")
        .run(&["domain", "prove", "flood-0.example.com"])
        .ok();
    house.operator.run(&["project", "suspend", "acme"]).ok();
    mallory.closed();
    house.from = house.head() + 1;
    house.undisturbed(&[]);
}

#[test]
fn a_flood_of_questions_keeps_nobody_waiting() {
    let mut house = House::new();
    let nats = house.chancery.nats();
    let mut mallory = house.mallory();
    for n in 0..300 {
        let answer = mallory.ask(
            "chancery.v1.cmd.acme.domain.add",
            None,
            &json!({"host": format!("q-{n}.example.com")}),
        );
        assert_eq!(answer["outcome"], "accepted", "{answer}");
    }
    house.from = house.head() + 1;
    let file = house.creds("acme", "mallory");
    let flood = std::thread::spawn(move || {
        let mut mallory = Raw::connect(&nats, &file, &Value::Null);
        mallory.subscribe("_INBOX.flood", 9);
        let began = Instant::now();
        let (mut asked, mut answered, mut busy) = (0, 0, 0);
        while began.elapsed() < Duration::from_secs(5) {
            for _ in 0..200 {
                mallory.publish(
                    "chancery.v1.query.acme.events",
                    "_INBOX.flood",
                    b"{\"limit\":500}",
                );
                asked += 1;
            }
            for heard in mallory.settle() {
                // Who does not read what it asked for is disconnected by the server, and comes back.
                if heard == Heard::Closed {
                    mallory = Raw::connect(&nats, &file, &Value::Null);
                    mallory.subscribe("_INBOX.flood", 9);
                }
                if let Heard::Message { body, .. } = heard {
                    answered += 1;
                    let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
                    busy += u32::from(answer["code"] == "busy");
                }
            }
        }
        (asked, answered, busy)
    });
    let mut slowest = Duration::ZERO;
    let mut bobs = Vec::new();
    while !flood.is_finished() {
        let began = Instant::now();
        let answer = house
            .bob
            .ask("chancery.v1.query.other.domains", None, &json!({}));
        assert!(answer["domains"].is_array(), "{answer}");
        let host = format!("question-{}.example.org", bobs.len());
        let answer = house.bob.ask(
            "chancery.v1.cmd.other.domain.add",
            Some(Uuid::now_v7()),
            &json!({"host": host}),
        );
        assert_eq!(answer["outcome"], "accepted", "{answer}");
        slowest = slowest.max(began.elapsed());
        bobs.push("other domain.added by bob");
    }
    let (asked, answered, busy) = flood.join().expect("the flood went through");
    assert!(
        asked >= 400 && answered >= 20,
        "the flood was one: {asked} questions, {answered} answers, {busy} of them busy"
    );
    assert!(
        bobs.len() >= 5,
        "Bob was served {} times, at the slowest in {slowest:?}",
        bobs.len()
    );
    house.undisturbed(&bobs);
}

#[test]
fn who_is_revoked_suspended_or_limited_gets_no_further() {
    let mut house = House::new();
    let nats = house.chancery.nats();
    let acme = house.operator.project("acme");

    // Chosen rights: these, and nothing else of the project.
    let limited = house.creds("acme", "limited");
    let file = limited.display().to_string();
    acme.run(&[
        "access",
        "create",
        "limited",
        "--out",
        &file,
        "--right",
        "cmd.domain.*",
    ])
    .ok();
    let mut raw = Raw::connect(&nats, &limited, &Value::Null);
    let answer = raw.ask(
        "chancery.v1.cmd.acme.domain.add",
        None,
        &json!({"host": "limited.example.com"}),
    );
    assert_eq!(answer["outcome"], "accepted", "{answer}");
    let beyond = [
        "chancery.v1.cmd.acme.certificate.delete",
        "chancery.v1.cmd.acme.certificate.add",
        "chancery.v1.queue.acme.certificate.add",
        "chancery.v1.cmd.acme.resource.create",
        "chancery.v1.cmd.acme.access.create",
        "chancery.v1.query.acme.domains",
        "chancery.v1.cmd.other.domain.add",
    ];
    let unheard = [
        "chancery.v1.evt.acme.>",
        "chancery.v1.evt.acme.domain.added",
    ];
    assert_eq!(
        let_through(&mut raw, &beyond, &unheard),
        Vec::<String>::new()
    );
    // A right with the operator's words in it gives none of the operator's.
    let answer = raw.ask(
        "chancery.v1.cmd.acme.domain.prove",
        None,
        &json!({"project": "acme", "host": "limited.example.com"}),
    );
    assert_eq!(code(&answer), "unauthorized", "{answer}");
    let made = [
        "acme access.created by operator",
        "acme domain.added by limited",
    ];
    house.undisturbed(&made);

    // Revoked while connected: closed, not taken again, and the others of the project stay.
    let mut mallory = house.mallory();
    acme.run(&["access", "revoke", "limited"]).ok();
    raw.closed();
    let refused = Raw::try_connect(&nats, &limited, &Value::Null)
        .err()
        .expect("a revoked user is not taken");
    assert!(
        matches!(&refused[0], Heard::Error(error) if error.contains("Authorization")),
        "{refused:?}"
    );
    let answer = mallory.ask(
        "chancery.v1.cmd.acme.domain.add",
        None,
        &json!({"host": "stays.example.com"}),
    );
    assert_eq!(answer["outcome"], "accepted", "{answer}");
    house.undisturbed(&[
        "acme access.revoked by operator",
        "acme domain.added by mallory",
    ]);

    // Asked again with the same id, the command that gave the access signs nothing new.
    let operator = Cli::clone(&house.operator);
    let mut op = Raw::connect(
        &nats,
        &house.chancery.state().join("operator.creds"),
        &Value::Null,
    );
    let (id, key) = (Uuid::now_v7(), nkeys::KeyPair::new_user());
    let create =
        json!({"project": "acme", "name": "again", "nkey": key.public_key(), "rights": []});
    let first = op.ask("chancery.v1.cmd.platform.access.create", Some(id), &create);
    assert!(first["jwt"].is_string(), "{first}");
    let repeated = op.ask("chancery.v1.cmd.platform.access.create", Some(id), &create);
    assert!(
        repeated["jwt"].is_string(),
        "before the revocation it does: {repeated}"
    );
    operator
        .project("acme")
        .run(&["access", "revoke", "again"])
        .ok();
    let repeated = op.ask("chancery.v1.cmd.platform.access.create", Some(id), &create);
    assert!(repeated["jwt"].is_null(), "{repeated}");
    house.undisturbed(&[
        "acme access.created by operator",
        "acme access.revoked by operator",
    ]);

    // A suspended project is shut out as a whole, and let in again.
    house.operator.run(&["project", "suspend", "acme"]).ok();
    mallory.closed();
    let file = house.creds("acme", "mallory");
    let refused = Raw::try_connect(&nats, &file, &Value::Null)
        .err()
        .expect("nobody of a suspended project is taken");
    assert!(
        matches!(&refused[0], Heard::Error(_) | Heard::Closed),
        "{refused:?}"
    );
    house.undisturbed(&["acme project.suspended by operator"]);
    house.operator.run(&["project", "resume", "acme"]).ok();
    let mut mallory = house.mallory();
    let answer = mallory.ask("chancery.v1.query.acme.domains", None, &json!({}));
    assert!(answer["domains"].is_array(), "{answer}");
    let refused = Raw::try_connect(&nats, &limited, &Value::Null);
    assert!(refused.is_err(), "who was revoked stays so");
    house.undisturbed(&["acme project.resumed by operator"]);
}

#[test]
fn revocations_at_the_same_moment_all_hold() {
    const USERS: usize = 6;
    let mut house = House::new();
    let nats = house.chancery.nats();
    let acme = house.operator.project("acme");
    let users: Vec<(String, PathBuf)> = (0..USERS)
        .map(|n| {
            let name = format!("user-{n}");
            let creds = house.creds("acme", &name);
            let file = creds.display().to_string();
            acme.run(&["access", "create", &name, "--out", &file]).ok();
            (name, creds)
        })
        .collect();
    let mut connected: Vec<Raw> = users
        .iter()
        .map(|(_, creds)| Raw::connect(&nats, creds, &Value::Null))
        .collect();
    let operator = house.chancery.state().join("operator.creds");
    // The server takes an account once a second, so most of these wait, each with another state before it.
    let revocations: Vec<_> = users
        .iter()
        .zip((0..).map(|n| Duration::from_millis(150) * n))
        .map(|((name, _), pause)| {
            let body = json!({"project": "acme", "name": name});
            let mut raw = Raw::connect(&nats, &operator, &Value::Null);
            std::thread::spawn(move || {
                std::thread::sleep(pause);
                raw.ask("chancery.v1.cmd.platform.access.revoke", None, &body)
            })
        })
        .collect();
    for revocation in revocations {
        let answer = revocation.join().expect("it is answered");
        assert_eq!(answer["outcome"], "accepted", "{answer}");
    }
    for ((name, creds), raw) in users.iter().zip(&mut connected) {
        raw.closed();
        let back = Raw::try_connect(&nats, creds, &Value::Null);
        assert!(back.is_err(), "{name} is back");
    }
    let expected: Vec<&str> = [
        vec!["acme access.created by operator"; USERS],
        vec!["acme access.revoked by operator"; USERS],
    ]
    .concat();
    house.undisturbed(&expected);
}
