//! Who reaches what: every refusal of the templates, the attacks on the door, and the peace of everybody else.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{Client, ConnectOptions, HeaderMap};
use bus::{
    claims::Claims,
    door::{self, Door, EdgeRequest, Intake, Kind, Request},
    identity::{Credentials, ProjectAccount, Right, Rights},
    log::Log,
    templates::Role,
};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    bed::{Bed, now, until},
    raw::{Heard, Raw},
};

/// A bed with some projects and an open door, whose requests an echo answers.
struct House {
    bed: Bed,
    claims: Claims,
    door: Door,
    /// What the door handed on: `<kind> <project> <noun> <verb> by <asker's project>/<actor>`.
    seen: mpsc::UnboundedReceiver<String>,
}

impl House {
    async fn open(projects: &[&str]) -> House {
        let bed = Bed::start().await;
        let claims = Claims::new(bed.role(Role::System).await, bed.identity.clone());
        for project in projects {
            claims.push(&account(project)).await.unwrap();
        }
        let (requests, mut waiting) = mpsc::channel::<Request>(1_024);
        let (tell, seen) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(request) = waiting.recv().await {
                let line = format!(
                    "{:?} {} {} {} by {}/{}",
                    request.kind,
                    request.project,
                    request.noun,
                    request.verb,
                    request.asker.project,
                    request.asker.actor
                );
                let _ = tell.send(line.clone());
                let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
                request.responder.answer(
                    json!({"did": line, "operator": request.asker.operator, "id": request.id, "echo": body})
                        .to_string()
                        .as_bytes(),
                );
            }
        });
        let config = door::Config::new(
            &bed.url(),
            bus::connect::Login::minted(&bed.identity, Role::Door),
        );
        let verifier = Arc::new(bed.identity.verifier());
        let door = Door::to_projects(config, verifier, Intake::Channel(requests))
            .await
            .unwrap();
        House {
            bed,
            claims,
            door,
            seen,
        }
    }

    fn user(&self, project: &str, actor: &str, rights: &Rights) -> Credentials {
        self.bed
            .identity
            .project_user(project, actor, rights, now(), now() + 600)
            .unwrap()
    }

    async fn raw(&self, credentials: &Credentials) -> Raw {
        Raw::connect(
            self.bed.server.as_ref().unwrap().address(),
            credentials,
            Value::Null,
        )
        .await
    }

    fn all_seen(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.seen.try_recv().ok()).collect()
    }
}

fn account(project: &str) -> ProjectAccount {
    ProjectAccount {
        project: project.to_owned(),
        ..ProjectAccount::default()
    }
}

async fn client(bed: &Bed, credentials: &Credentials) -> Client {
    ConnectOptions::with_credentials(&credentials.creds())
        .unwrap()
        .connect(bed.url())
        .await
        .unwrap()
}

async fn ask(client: &Client, subject: &str, body: &str) -> Value {
    let answer = client
        .request(subject.to_owned(), body.to_owned().into())
        .await
        .unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_client_asks_and_is_answered() {
    let mut house = House::open(&["acme", "other"]).await;
    let member = client(&house.bed, &house.user("acme", "u-1", &Rights::All)).await;
    let answer = ask(
        &member,
        "chancery.v1.cmd.acme.domain.add",
        "{\"host\":\"a.example\"}",
    )
    .await;
    assert_eq!(answer["did"], "Command acme domain add by acme/u-1");
    assert_eq!(
        (&answer["operator"], &answer["echo"]["host"]),
        (&json!(false), &json!("a.example"))
    );
    assert_eq!(
        ask(&member, "chancery.v1.queue.acme.certificate.add", "").await["did"],
        "Queue acme certificate add by acme/u-1"
    );
    assert_eq!(
        ask(&member, "chancery.v1.query.acme.domains", "").await["did"],
        "Query acme domains  by acme/u-1"
    );

    let id = "0199f0aa-1111-7222-8333-444455556666";
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", id);
    headers.insert("Content-Type", "application/json");
    let answer = member
        .request_with_headers("chancery.v1.cmd.acme.domain.add", headers, "{}".into())
        .await
        .unwrap();
    assert_eq!(
        answer
            .headers
            .unwrap()
            .get("Content-Type")
            .unwrap()
            .as_str(),
        "application/json"
    );
    assert_eq!(
        serde_json::from_slice::<Value>(&answer.payload).unwrap()["id"],
        id
    );

    let operator = client(&house.bed, &house.user("platform", "op-1", &Rights::All)).await;
    let answer = ask(&operator, "chancery.v1.cmd.acme.project.suspend", "").await;
    assert_eq!(
        answer["did"],
        "Command acme project suspend by platform/op-1"
    );
    assert_eq!(answer["operator"], true);
    assert_eq!(
        ask(&operator, "chancery.v1.cmd.platform.project.create", "").await["operator"],
        true
    );

    // Without a reply subject it runs all the same.
    house.all_seen();
    member
        .publish("chancery.v1.cmd.acme.domain.release", "{}".into())
        .await
        .unwrap();
    assert_eq!(
        house.seen.recv().await.unwrap(),
        "Command acme domain release by acme/u-1"
    );

    // Refusals of the door are problems, also for micro-service clients.
    let large = vec![b' '; 200];
    let mut headers = HeaderMap::new();
    headers.insert("X-Other", "1");
    let answer = member
        .request_with_headers("chancery.v1.cmd.acme.domain.add", headers, large.into())
        .await
        .unwrap();
    assert_eq!(
        answer
            .headers
            .unwrap()
            .get("Nats-Service-Error-Code")
            .unwrap()
            .as_str(),
        "400"
    );
    let problem: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert_eq!(
        (&problem["code"], &problem["type"]),
        (&json!("malformed"), &json!("urn:chancery:error:malformed"))
    );
    assert_eq!(house.door.counts().refused["malformed"], 1);

    // The service is found as ADR-32 has it.
    let core = house.bed.role(Role::Follower).await;
    let ping = ask(&core, "$SRV.PING.chancery", "").await;
    assert_eq!(
        (&ping["name"], &ping["type"]),
        (&json!("chancery"), &json!("io.nats.micro.v1.ping_response"))
    );
    assert_eq!(
        ask(&core, "$SRV.INFO", "").await["endpoints"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
    assert!(
        ask(&core, "$SRV.STATS.chancery", "").await["endpoints"][0]["num_requests"]
            .as_u64()
            .unwrap()
            >= 4
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_reach_their_project_and_the_operator_only() {
    let house = House::open(&["acme", "other"]).await;
    let mut subscriptions = Vec::new();
    for (project, subject) in [
        ("acme", "chancery.v1.evt.acme.>"),
        ("other", "chancery.v1.evt.other.>"),
        ("platform", "chancery.v1.evt.>"),
    ] {
        let client = client(&house.bed, &house.user(project, "u-1", &Rights::All)).await;
        let subscription = client.subscribe(subject).await.unwrap();
        client.flush().await.unwrap();
        subscriptions.push((client, subscription));
    }
    let log = Log::new(house.bed.role(Role::Registrar).await);
    let one = |project: &str| {
        vec![(
            format!("chancery.v1.log.{project}.domain.added"),
            project.to_owned().into(),
        )]
    };
    log.append(0, &one("acme")).await.unwrap();
    log.append(1, &one("other")).await.unwrap();
    let mut heard = Vec::new();
    for (index, count) in [(0, 1), (1, 1), (2, 2)] {
        for _ in 0..count {
            let next = tokio::time::timeout(Duration::from_secs(5), subscriptions[index].1.next());
            heard.push((index, next.await.unwrap().unwrap().subject.to_string()));
        }
    }
    let expected = [(0, "acme"), (1, "other"), (2, "acme"), (2, "other")]
        .map(|(index, project)| (index, format!("chancery.v1.evt.{project}.domain.added")));
    assert_eq!(heard, expected);
    for (client, subscription) in &mut subscriptions {
        client.flush().await.unwrap();
        let more = tokio::time::timeout(Duration::from_millis(50), subscription.next()).await;
        assert!(more.is_err(), "{more:?}");
    }
}

/// Publishes or subscribes each subject and returns those that the server let through.
async fn let_through(raw: &mut Raw, publish: &[&str], subscribe: &[&str]) -> Vec<String> {
    let mut through = Vec::new();
    for subject in publish {
        raw.publish(subject, "", b"{}").await;
        if !raw.settle().await.iter().any(|heard| matches!(heard, Heard::Error(error) if error.contains("Permissions Violation for Publish"))) {
            through.push(format!("publish {subject}"));
        }
    }
    for (index, subject) in subscribe.iter().enumerate() {
        raw.subscribe(subject, 1_000 + index as u32).await;
        if !raw.settle().await.iter().any(|heard| matches!(heard, Heard::Error(error) if error.contains("Permissions Violation for Subscription"))) {
            through.push(format!("subscribe {subject}"));
        }
    }
    through
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_template_refuses_what_it_does_not_grant() {
    let house = House::open(&["acme", "other"]).await;
    let identity = &house.bed.identity;
    const NOBODYS: &[&str] = &[
        "chancery.v1.log.acme.domain.added",
        "chancery.v1.evt.acme.domain.added",
        "chancery.v1.internal.keys.put",
        "chancery.v1.region.eu.delta",
        "chancery.v1.edge.eu.e1.sync",
        "$JS.API.STREAM.INFO.LOG",
        "$JS.API.STREAM.DELETE.LOG",
        "$JS.API.STREAM.CREATE.MINE",
        "$JS.API.CONSUMER.CREATE.LOG",
        "$JS.ACK.QUEUE.worker.1.1.1.1.0",
        "$SYS.REQ.CLAIMS.UPDATE",
        "$SYS.REQ.SERVER.PING",
        "$SRV.PING",
        "_INBOX.someone",
        "_R_.someone",
        "acme",
    ];
    const NOT_HEARD: &[&str] = &[
        ">",
        "*.>",
        "chancery.>",
        "chancery.v1.log.>",
        "chancery.v1.evt.>",
        "chancery.v1.evt.other.>",
        "chancery.v1.evt.*.domain.added",
        "chancery.v1.cmd.acme.>",
        "chancery.v1.internal.>",
        "$SRV.>",
        "$SYS.>",
        "$JS.>",
        "_R_.>",
    ];
    let only = |rights: &[&str]| {
        Rights::Only(
            rights
                .iter()
                .map(|right| Right::parse(right).unwrap())
                .collect(),
        )
    };
    let cases: Vec<(&str, Rights, &[&str], &[&str])> = vec![
        (
            "member",
            Rights::All,
            &[
                "chancery.v1.cmd.other.domain.add",
                "chancery.v1.query.other.domains",
                "chancery.v1.cmd.acme.a.b.c",
            ],
            &[],
        ),
        (
            "reader",
            Rights::Read,
            &[
                "chancery.v1.cmd.acme.domain.add",
                "chancery.v1.queue.acme.domain.add",
            ],
            &[],
        ),
        (
            "limited",
            only(&["cmd.certificate.*", "query.host"]),
            &[
                "chancery.v1.cmd.acme.domain.add",
                "chancery.v1.query.acme.domains",
                "chancery.v1.cmd.other.certificate.add",
            ],
            &[
                "chancery.v1.evt.acme.>",
                "chancery.v1.evt.acme.domain.added",
            ],
        ),
        (
            "limited to nothing",
            only(&[]),
            &[
                "chancery.v1.cmd.acme.domain.add",
                "chancery.v1.query.acme.domains",
            ],
            &["chancery.v1.evt.acme.>"],
        ),
    ];
    for (name, rights, publish, subscribe) in &cases {
        let mut raw = house.raw(&house.user("acme", "u-1", rights)).await;
        let publish: Vec<&str> = NOBODYS.iter().chain(*publish).copied().collect();
        let subscribe: Vec<&str> = NOT_HEARD.iter().chain(*subscribe).copied().collect();
        assert_eq!(
            let_through(&mut raw, &publish, &subscribe).await,
            Vec::<String>::new(),
            "{name}"
        );
    }
    // What is granted does go through, so that the test above can fail.
    let mut limited = house
        .raw(&house.user(
            "acme",
            "u-1",
            &only(&["cmd.certificate.*", "query.host", "evt.domain.*"]),
        ))
        .await;
    let granted = let_through(
        &mut limited,
        &[
            "chancery.v1.cmd.acme.certificate.add",
            "chancery.v1.queue.acme.certificate.add",
            "chancery.v1.query.acme.host",
        ],
        &["chancery.v1.evt.acme.domain.added", "_INBOX.>"],
    );
    assert_eq!(granted.await.len(), 5);
    // The operator's readers and delegates.
    let mut auditor = house
        .raw(&house.user("platform", "a-1", &Rights::Read))
        .await;
    assert_eq!(
        let_through(
            &mut auditor,
            &[
                "chancery.v1.cmd.acme.domain.add",
                "chancery.v1.cmd.platform.project.create"
            ],
            &["chancery.v1.log.>"]
        )
        .await,
        Vec::<String>::new()
    );
    assert_eq!(
        let_through(
            &mut auditor,
            &["chancery.v1.query.acme.domains"],
            &["chancery.v1.evt.>"]
        )
        .await
        .len(),
        2
    );
    let mut delegate = house
        .raw(&house.user("platform", "d-1", &only(&["cmd.domain.prove"])))
        .await;
    assert_eq!(
        let_through(&mut delegate, &["chancery.v1.cmd.acme.domain.prove"], &[])
            .await
            .len(),
        1
    );
    assert_eq!(
        let_through(
            &mut delegate,
            &[
                "chancery.v1.cmd.acme.domain.add",
                "chancery.v1.query.acme.domains"
            ],
            &["chancery.v1.evt.>"]
        )
        .await,
        Vec::<String>::new()
    );

    // Edges: each its own region and name, and a token for enrolment nothing else.
    let mut edge = house
        .raw(
            &identity
                .edge_user("eu", "e1", false, now(), now() + 60)
                .unwrap(),
        )
        .await;
    let others = [
        "chancery.v1.edge.eu.e2.sync",
        "chancery.v1.edge.us.e1.report",
        "chancery.v1.edge.eu.e1.enrol",
        "chancery.v1.cmd.acme.domain.add",
        "chancery.v1.log.acme.domain.added",
        "chancery.v1.region.eu.delta",
        "$JS.API.STREAM.INFO.LOG",
    ];
    let foreign = [
        "chancery.v1.region.us.>",
        "chancery.v1.region.>",
        "_INBOX.>",
        "_INBOX.eu.e2.>",
        "chancery.v1.edge.>",
        ">",
    ];
    assert_eq!(
        let_through(&mut edge, &others, &foreign).await,
        Vec::<String>::new()
    );
    let own = [
        "chancery.v1.edge.eu.e1.sync",
        "chancery.v1.edge.eu.e1.chunk",
        "chancery.v1.edge.eu.e1.report",
    ];
    assert_eq!(
        let_through(
            &mut edge,
            &own,
            &["chancery.v1.region.eu.>", "_INBOX.eu.e1.>"]
        )
        .await
        .len(),
        5
    );
    let mut enrol = house
        .raw(
            &identity
                .edge_user("eu", "e1", true, now(), now() + 60)
                .unwrap(),
        )
        .await;
    assert_eq!(
        let_through(&mut enrol, &own, &["chancery.v1.region.eu.>", "_INBOX.>"]).await,
        Vec::<String>::new()
    );
    assert_eq!(
        let_through(
            &mut enrol,
            &["chancery.v1.edge.eu.e1.enrol"],
            &["_INBOX.eu.e1.>"]
        )
        .await
        .len(),
        2
    );

    // Our own roles: none may change, purge or delete a stream, and each writes its own part only.
    for role in [
        Role::Installer,
        Role::Door,
        Role::Registrar,
        Role::Follower,
        Role::Objects,
        Role::Keys,
        Role::Queue,
        Role::Distribution,
    ] {
        let credentials = identity
            .internal(role, "someone", now(), now() + 60)
            .unwrap();
        let mut raw = house.raw(&credentials).await;
        let mut refused = vec![
            "$JS.API.STREAM.DELETE.LOG",
            "$JS.API.STREAM.PURGE.LOG",
            "$JS.API.STREAM.UPDATE.LOG",
            "$JS.API.STREAM.MSG.DELETE.LOG",
            "$JS.API.CONSUMER.CREATE.LOG.x",
            "$SYS.REQ.CLAIMS.UPDATE",
            "chancery.v1.evt.acme.domain.added",
            "chancery.v1.cmd.acme.domain.add",
        ];
        for (owner, subject) in [
            (Role::Registrar, "chancery.v1.log.acme.domain.added"),
            (Role::Objects, "chancery.v1.internal.objects.put"),
            (Role::Keys, "chancery.v1.internal.keys.put"),
            (Role::Queue, "chancery.v1.internal.queue.work"),
            (Role::Distribution, "chancery.v1.region.eu.delta"),
        ] {
            if owner != role {
                refused.push(subject);
            }
        }
        let mut unheard = vec![
            ">",
            "_INBOX.>",
            "_INBOX_other.>",
            "$JS.>",
            "chancery.v1.internal.>",
        ];
        if role != Role::Door {
            unheard.push("chancery.v1.cmd.>");
        }
        assert_eq!(
            let_through(&mut raw, &refused, &unheard).await,
            Vec::<String>::new(),
            "{role:?}"
        );
    }
    assert_eq!(
        Log::new(house.bed.role(Role::Follower).await)
            .head()
            .await
            .unwrap(),
        0,
        "nothing reached the log"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_subject_reaches_nothing_of_others() {
    let mut house = House::open(&["acme", "other"]).await;
    let victim_user = house.user("other", "v-1", &Rights::All);
    let mut victim = house.raw(&victim_user).await;
    victim.subscribe("_INBOX.>", 1).await;
    victim.subscribe("chancery.v1.evt.other.>", 2).await;
    victim.settle().await;
    let follower = house.bed.role(Role::Follower).await;
    let mut events = follower.subscribe("chancery.v1.evt.>").await.unwrap();
    follower.flush().await.unwrap();
    let mut attacker = house.raw(&house.user("acme", "u-1", &Rights::All)).await;
    let replies = [
        "chancery.v1.log.acme.domain.added",
        "chancery.v1.evt.other.domain.added",
        "chancery.v1.evt.acme.domain.added",
        "chancery.v1.cmd.other.domain.add",
        "chancery.v1.internal.keys.put",
        "$JS.API.STREAM.DELETE.LOG",
        "$JS.API.STREAM.PURGE.LOG",
        "$JS.ACK.QUEUE.worker.1.1.1.1.0",
        "$SYS.REQ.CLAIMS.DELETE",
        "_INBOX.v-1",
        "_R_.x",
        "_INBOX_registrar.x",
    ];
    for reply in replies {
        attacker
            .publish("chancery.v1.cmd.acme.domain.add", reply, b"{}")
            .await;
    }
    attacker.settle().await;
    // Whatever ran has run when the attacker's last request is answered.
    attacker.subscribe("_INBOX.mine", 9).await;
    attacker
        .publish("chancery.v1.query.acme.domains", "_INBOX.mine", b"{}")
        .await;
    assert_eq!(
        attacker.answer().await["did"],
        "Query acme domains  by acme/u-1"
    );
    assert!(
        house
            .all_seen()
            .iter()
            .all(|line| line.contains(" acme ") && line.ends_with("by acme/u-1"))
    );
    assert_eq!(
        victim.settle().await,
        vec![],
        "the other project heard nothing"
    );
    let log = Log::new(house.bed.role(Role::Registrar).await);
    assert_eq!(log.head().await.unwrap(), 0);
    log.append(
        0,
        &[(
            "chancery.v1.log.acme.domain.added".to_owned(),
            "first".into(),
        )],
    )
    .await
    .unwrap();
    let first = tokio::time::timeout(Duration::from_secs(5), events.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        first.payload, "first",
        "nothing was published among the events before"
    );
    assert_eq!(
        ask(
            &client(&house.bed, &victim_user).await,
            "chancery.v1.query.other.domains",
            ""
        )
        .await["did"],
        "Query other domains  by other/v-1"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_can_pretend_to_be_another() {
    let mut house = House::open(&["acme", "other"]).await;
    let user = house.user("acme", "u-1", &Rights::All);
    let victim = house.user("other", "v-1", &Rights::All);
    let operator = house.user("platform", "op-1", &Rights::All);
    let address = house.bed.server.as_ref().unwrap().address();
    let named = json!({"user": "root", "name": "op-1", "pass": "x", "auth_token": "y"});
    let mut raw = Raw::connect(address, &user, named).await;
    raw.subscribe("_INBOX.mine", 1).await;
    let subject = "chancery.v1.cmd.acme.domain.add";
    raw.publish(subject, "_INBOX.mine", b"{}").await;
    let answer = raw.answer().await;
    assert_eq!(
        (&answer["did"], &answer["operator"]),
        (&json!("Command acme domain add by acme/u-1"), &json!(false))
    );

    // Even with the true JWTs of others, which are no secrets.
    for other in [&victim, &operator] {
        let account = house
            .bed
            .identity
            .verifier()
            .verify(&other.jwt, now())
            .unwrap()
            .account
            .clone();
        let forged = json!({"acc": account, "jwt": other.jwt, "user": "root"}).to_string();
        let plain = format!("NATS/1.0\r\nNats-Request-Info: {forged}\r\n\r\n");
        let other_case = format!("NATS/1.0\r\nnats-request-info: {forged}\r\n\r\n");
        let twice = format!(
            "NATS/1.0\r\nNats-Request-Info: {forged}\r\nNats-Request-Info: {forged}\r\n\r\n"
        );
        let smuggled = format!("NATS/1.0\r\nX: y\nNats-Request-Info: {forged}\nZ: ab");
        let smuggled_known = format!(
            "NATS/1.0\r\nContent-Type: application/json\nNats-Request-Info: {forged}\nZ: ab"
        );
        let ended = format!("NATS/1.0\r\nNats-Request-Info: {forged}\r\n\r\nZ: ab\r\n\r\n");
        let folded = format!(
            "NATS/1.0\r\nContent-Type: application/json\r\n Nats-Request-Info: {forged}\r\n\r\n"
        );
        let cr = format!(
            "NATS/1.0\r\nContent-Type: application/json\rNats-Request-Info: {forged}\r\n\r\n"
        );
        for header in [
            plain,
            other_case,
            twice,
            smuggled,
            smuggled_known,
            ended,
            folded,
            cr,
        ] {
            raw.publish_raw(subject, "_INBOX.mine", header.as_bytes(), b"{}")
                .await;
            let answer = raw.answer().await;
            let honest = answer["did"] == "Command acme domain add by acme/u-1"
                && answer["operator"] == false;
            assert!(
                honest || answer["code"] == "malformed" || answer["code"] == "unauthorized",
                "{header:?}: {answer}"
            );
        }
    }
    assert!(
        house
            .all_seen()
            .iter()
            .all(|line| line.ends_with("by acme/u-1"))
    );
    // A JWT of a scoped key of ours, but for another account, and JWTs of strangers, do not even connect.
    let stranger = bus::identity::Identity::generate()
        .project_user("acme", "u-1", &Rights::All, now(), now() + 60)
        .unwrap();
    let expired = house
        .bed
        .identity
        .project_user("acme", "u-1", &Rights::All, now() - 20, now() - 10)
        .unwrap();
    let unknown = house
        .bed
        .identity
        .project_user("never-pushed", "u-1", &Rights::All, now(), now() + 60)
        .unwrap();
    for credentials in [stranger, expired, unknown] {
        let (_, heard) = Raw::try_connect(address, &credentials, Value::Null).await;
        assert!(
            matches!(&heard, Heard::Error(error) if error.contains("Authorization Violation") || error.contains("Authentication")),
            "{heard:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_malformed_headers_leaves_others_served() {
    let house = House::open(&["acme", "other"]).await;
    let mut attacker = house.raw(&house.user("acme", "u-1", &Rights::All)).await;
    let victim = client(&house.bed, &house.user("other", "v-1", &Rights::All)).await;
    let headers: Vec<Vec<u8>> = vec![
        b"NATS/1.0\r\nX: a\rb\r\n\r\n".to_vec(),
        b"NATS/1.0\r\nno colon here\r\n\r\n".to_vec(),
        b"NATS/1.0\r\nX: \xff\xfe\r\n\r\n".to_vec(),
        b"HTTP/1.1\r\nX: y\r\n\r\n".to_vec(),
        b"NATS/1.0 999999 x\r\n\r\n".to_vec(),
        b"\r\n\r\n".to_vec(),
        b"NATS/1.0\r\n: empty\r\n\r\n".to_vec(),
        [
            b"NATS/1.0\r\nX: ".to_vec(),
            vec![b'y'; 60_000],
            b"\r\n\r\n".to_vec(),
        ]
        .concat(),
    ];
    let sent = Arc::new(AtomicU64::new(0));
    let flood = tokio::spawn({
        let sent = sent.clone();
        async move {
            loop {
                for header in &headers {
                    attacker
                        .publish_raw("chancery.v1.cmd.acme.domain.add", "_INBOX.x", header, b"{}")
                        .await;
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                assert_eq!(
                    attacker.settle().await,
                    vec![],
                    "the attacker itself is not disconnected"
                );
            }
        }
    });
    let mut round = 0;
    while round < 300 || sent.load(Ordering::Relaxed) < 2_000 {
        let answer = ask(
            &victim,
            "chancery.v1.cmd.other.domain.add",
            &format!("{{\"round\":{round}}}"),
        )
        .await;
        assert_eq!(answer["echo"]["round"], round);
        round += 1;
        assert!(!flood.is_finished(), "the flood goes on");
    }
    flood.abort();
    assert_eq!(house.door.reconnects(), 0);
    assert!(house.door.counts().refused["malformed"] > 1_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn projects_and_users_come_and_go_without_disturbing_anybody() {
    let house = House::open(&["acme", "other"]).await;
    let address = house.bed.server.as_ref().unwrap().address();
    let bystander = house.user("other", "v-1", &Rights::All);
    let mut witness = house.raw(&bystander).await;
    witness.subscribe("_INBOX.mine", 1).await;
    let colleague = house.user("acme", "u-2", &Rights::All);
    let mut colleague_raw = house.raw(&colleague).await;
    let leaver = house.user("acme", "u-1", &Rights::All);
    let mut leaver_raw = house.raw(&leaver).await;

    for index in 0..25 {
        let project = format!("new-{index}");
        house.claims.push(&account(&project)).await.unwrap();
        let member = client(&house.bed, &house.user(&project, "u-1", &Rights::All)).await;
        let answer = ask(
            &member,
            &format!("chancery.v1.cmd.{project}.domain.add"),
            "",
        )
        .await;
        assert_eq!(
            answer["did"],
            format!("Command {project} domain add by {project}/u-1")
        );
        witness
            .publish("chancery.v1.query.other.domains", "_INBOX.mine", b"")
            .await;
        assert_eq!(
            witness.answer().await["did"],
            "Query other domains  by other/v-1"
        );
    }

    let revoked = BTreeMap::from([(leaver.user.clone(), now())]);
    house
        .claims
        .push(&ProjectAccount {
            revoked: revoked.clone(),
            ..account("acme")
        })
        .await
        .unwrap();
    until("the revoked user is disconnected", async || {
        leaver_raw.settle().await.contains(&Heard::Closed)
    })
    .await;
    let (_, heard) = Raw::try_connect(address, &leaver, Value::Null).await;
    assert!(matches!(heard, Heard::Error(_)), "{heard:?}");
    assert_eq!(
        colleague_raw.settle().await,
        vec![],
        "a colleague stays connected"
    );
    assert_eq!(witness.settle().await, vec![]);

    // Kicked is not revoked: it may come back.
    assert_eq!(house.claims.kick("acme", &colleague.user).await.unwrap(), 1);
    until("the kicked user is disconnected", async || {
        colleague_raw.settle().await.contains(&Heard::Closed)
    })
    .await;
    let mut colleague_raw = house.raw(&colleague).await;
    // Suspended: out, and not in again, until it is resumed.
    house
        .claims
        .push(&ProjectAccount {
            suspended: true,
            revoked: revoked.clone(),
            ..account("acme")
        })
        .await
        .unwrap();
    until("the suspended project is disconnected", async || {
        colleague_raw.settle().await.contains(&Heard::Closed)
    })
    .await;
    let (_, heard) = Raw::try_connect(address, &colleague, Value::Null).await;
    assert!(matches!(heard, Heard::Error(_)), "{heard:?}");
    house
        .claims
        .push(&ProjectAccount {
            revoked,
            ..account("acme")
        })
        .await
        .unwrap();
    let mut colleague_raw = house.raw(&colleague).await;
    // Deleted: gone.
    house.claims.delete(&["acme".to_owned()]).await.unwrap();
    until("the deleted project is disconnected", async || {
        colleague_raw.settle().await.contains(&Heard::Closed)
    })
    .await;
    assert_eq!(
        witness.settle().await,
        vec![],
        "the bystander was never disconnected"
    );
    assert_eq!(house.door.reconnects(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_house_says_busy_to_the_one_who_fills_it() {
    let bed = Bed::start().await;
    let claims = Claims::new(bed.role(Role::System).await, bed.identity.clone());
    for project in ["acme", "other"] {
        claims.push(&account(project)).await.unwrap();
    }
    let (requests, mut waiting) = mpsc::channel::<Request>(100);
    let mut config = door::Config::new(
        &bed.url(),
        bus::connect::Login::minted(&bed.identity, Role::Door),
    );
    config.in_flight_each = 5;
    let door = Door::to_projects(
        config,
        Arc::new(bed.identity.verifier()),
        Intake::Channel(requests),
    )
    .await
    .unwrap();
    let user = |project: &str| {
        bed.identity
            .project_user(project, "u-1", &Rights::All, now(), now() + 60)
            .unwrap()
    };
    let (filler, other) = (
        client(&bed, &user("acme")).await,
        client(&bed, &user("other")).await,
    );
    for _ in 0..5 {
        filler
            .publish("chancery.v1.cmd.acme.domain.add", "{}".into())
            .await
            .unwrap();
    }
    until("five requests wait", || async {
        door.counts().in_flight == 5
    })
    .await;
    let busy = ask(&filler, "chancery.v1.cmd.acme.domain.add", "{}").await;
    assert_eq!(
        (&busy["code"], &busy["status"]),
        (&json!("busy"), &json!(503))
    );
    assert!(busy["retry_after_ms"].as_u64().unwrap() > 0);
    let served =
        tokio::spawn(async move { ask(&other, "chancery.v1.query.other.domains", "{}").await });
    let mut held = Vec::new();
    for _ in 0..6 {
        let request = waiting.recv().await.unwrap();
        if request.project == "other" {
            assert_eq!(request.kind, Kind::Query);
            request.responder.answer(b"{\"ok\":true}");
        } else {
            held.push(request);
        }
    }
    assert_eq!(served.await.unwrap()["ok"], true);
    drop(held);
    assert_eq!((door.counts().unanswered, door.counts().in_flight), (5, 0));
    let again =
        tokio::spawn(async move { ask(&filler, "chancery.v1.cmd.acme.domain.add", "{}").await });
    waiting
        .recv()
        .await
        .unwrap()
        .responder
        .answer(&vec![b'x'; door::ANSWER_LIMIT + 1]);
    assert_eq!(again.await.unwrap()["code"], "too_large");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edges_are_heard_as_who_they_are_and_the_feed_reaches_their_region() {
    let bed = Bed::start().await;
    let (requests, mut waiting) = mpsc::channel::<EdgeRequest>(100);
    let config = door::Config::new(
        &bed.url(),
        bus::connect::Login::minted(&bed.identity, Role::Distribution),
    );
    let _door = Door::to_edges(
        config,
        Arc::new(bed.identity.verifier()),
        Intake::Channel(requests),
    )
    .await
    .unwrap();
    let login = |region: &str, edge: &str, enrol| {
        let credentials = bed
            .identity
            .edge_user(region, edge, enrol, now(), now() + 60)
            .unwrap();
        bus::connect::Login::edge(credentials, region, edge, enrol)
    };
    let edge = bus::connect::connect(&bed.url(), &login("eu", "e1", false))
        .await
        .unwrap();
    let token = bus::connect::connect(&bed.url(), &login("eu", "e1", true))
        .await
        .unwrap();
    for (client, verb) in [
        (&edge, "sync"),
        (&edge, "chunk"),
        (&edge, "report"),
        (&token, "enrol"),
    ] {
        let asking = tokio::spawn({
            let (client, subject) = (client.clone(), format!("chancery.v1.edge.eu.e1.{verb}"));
            async move { ask(&client, &subject, "{\"applied\":7}").await }
        });
        let request = waiting.recv().await.unwrap();
        assert_eq!(
            (
                request.region.as_str(),
                request.edge.as_str(),
                request.verb.as_str()
            ),
            ("eu", "e1", verb)
        );
        assert_eq!(request.body, "{\"applied\":7}");
        request.responder.answer(b"{\"head\":9}");
        assert_eq!(asking.await.unwrap()["head"], 9);
    }
    let mut feed = edge.subscribe("chancery.v1.region.eu.delta").await.unwrap();
    edge.flush().await.unwrap();
    let distribution = bed.role(Role::Distribution).await;
    distribution
        .publish("chancery.v1.region.us.delta", "not for eu".into())
        .await
        .unwrap();
    distribution
        .publish("chancery.v1.region.eu.delta", "delta".into())
        .await
        .unwrap();
    let heard = tokio::time::timeout(Duration::from_secs(5), feed.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(heard.payload, "delta");
}

/// Server permissions are patterns, so the command that takes keys out passes nats-server for whoever has all commands: the
/// user's own JWT must name it, and the door looks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_taken_out_only_by_who_was_given_that_by_its_name() {
    let house = House::open(&["acme"]).await;
    let only = |rights: &[&str]| {
        Rights::Only(
            rights
                .iter()
                .map(|right| Right::parse(right).unwrap())
                .collect(),
        )
    };
    let export = "chancery.v1.cmd.acme.certificate.export";
    for (n, (project, rights)) in [
        ("acme", Rights::All),
        ("acme", only(&["cmd.*.*"])),
        ("acme", only(&["cmd.certificate.*"])),
        ("platform", Rights::All),
        ("platform", only(&["cmd.*.*", "query.*"])),
    ]
    .into_iter()
    .enumerate()
    {
        let user = client(&house.bed, &house.user(project, &format!("u-{n}"), &rights)).await;
        assert_eq!(
            ask(&user, export, "{}").await["code"],
            "unauthorized",
            "{rights:?}"
        );
        // All else that its patterns cover is still its own.
        assert!(
            ask(&user, "chancery.v1.cmd.acme.certificate.deploy", "{}").await["did"].is_string(),
            "{rights:?}"
        );
    }
    for (n, (project, rights)) in [
        ("acme", Rights::AllAndExport),
        ("acme", only(&["cmd.certificate.export"])),
        ("acme", only(&["cmd.*.*", "cmd.certificate.export"])),
        ("platform", Rights::AllAndExport),
    ]
    .into_iter()
    .enumerate()
    {
        let user = client(&house.bed, &house.user(project, &format!("e-{n}"), &rights)).await;
        assert!(
            ask(&user, export, "{}").await["did"].is_string(),
            "{rights:?}"
        );
        // It answers with what only the asker can open; nothing of that can wait.
        assert_eq!(
            ask(&user, "chancery.v1.queue.acme.certificate.export", "{}").await["code"],
            "unauthorized",
            "{rights:?}"
        );
    }
}
