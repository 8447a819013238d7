//! Queued commands: answered as soon as they are durable, decided once, their outcome told by id.

use std::time::Duration;

use harness::{SOON, Up, eventually};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::stage::{Stage, nats, served_now};

async fn ask(client: &async_nats::Client, subject: &str, id: Option<Uuid>, body: Value) -> Value {
    let mut headers = async_nats::HeaderMap::new();
    if let Some(id) = id {
        headers.insert("Nats-Msg-Id", id.to_string());
    }
    let asked = client.request_with_headers(
        format!("chancery.v1.{subject}"),
        headers,
        body.to_string().into(),
    );
    let answer = tokio::time::timeout(Duration::from_secs(10), asked)
        .await
        .expect("in time")
        .expect("an answer");
    serde_json::from_slice(&answer.payload).expect("JSON")
}

#[test]
fn a_queued_command_is_decided_once_and_its_outcome_is_told_by_its_id() {
    let stage = Stage::new();
    let (runtime, client) = nats(&stage.alice);
    let id = Uuid::now_v7();
    let body = json!({"host": "queued.example.com"});
    for _ in 0..3 {
        let answer = runtime.block_on(ask(
            &client,
            "queue.acme.domain.add",
            Some(id),
            body.clone(),
        ));
        assert_eq!(
            (&answer["outcome"], &answer["id"]),
            (&json!("queued"), &json!(id.to_string())),
            "{answer}"
        );
    }
    let outcome = eventually("the outcome", SOON, || {
        let answer = runtime.block_on(ask(&client, "query.acme.outcome", None, json!({"id": id})));
        if answer["outcome"] == "accepted" {
            Ok(answer)
        } else {
            Err(answer.to_string())
        }
    });
    assert_eq!(outcome["events"][0]["event"], "domain.added", "{outcome}");
    // Asked below cmd with the same id, it is the same command.
    let again = runtime.block_on(ask(&client, "cmd.acme.domain.add", Some(id), body));
    assert_eq!(again["sequence"], outcome["sequence"], "{again}");
    let added = stage
        .operator
        .run(&["events", "replay", "--json"])
        .ok()
        .lines()
        .iter()
        .filter(|e| e["type"] == "dev.chancery.domain.added.v1")
        .count();
    assert_eq!(added, 1);
}

#[test]
fn what_is_malformed_is_refused_before_it_is_queued() {
    let stage = Stage::new();
    let (runtime, client) = nats(&stage.alice);
    let answer = runtime.block_on(ask(
        &client,
        "queue.acme.domain.add",
        None,
        json!({"host": "-"}),
    ));
    // Its form is right, so it is queued; that the registrar says no is its outcome.
    assert_eq!(answer["outcome"], "queued", "{answer}");
    let malformed = runtime.block_on(ask(
        &client,
        "queue.acme.domain.add",
        None,
        json!({"hosts": []}),
    ));
    assert_eq!(malformed["code"], "malformed", "{malformed}");
}

/// The key of a queued upload is durable before the answer, and stays while nothing names it yet: also through a crash.
#[test]
fn a_queued_upload_survives_a_crash_with_its_key() {
    let stage = Stage::new();
    let host = "www.example.com";
    stage.bucket(host);
    let leaf = stage.ca.issue(host);
    let key = leaf.key().display().to_string();
    let sealed = stage.alice.run(&["seal", "--key", &key]).ok().json();
    let chain = std::fs::read_to_string(leaf.chain()).expect("the chain");
    let body = json!({"name": "site", "chain": chain, "key": sealed, "regions": ["local"]});
    let (runtime, client) = nats(&stage.alice);
    let answer = runtime.block_on(ask(&client, "queue.acme.certificate.add", None, body));
    assert_eq!(answer["outcome"], "queued", "{answer}");
    let Stage {
        chancery,
        origin: _origin,
        alice,
        ..
    } = stage;
    let folder = chancery.folder().to_owned();
    let kept = chancery.kill();
    let again = Up::in_folder(&folder).start();
    // What was given out and not finished comes again after half a minute.
    eventually("the certificate is served", Duration::from_secs(60), || {
        served_now(again.https(), host, &leaf)
    });
    drop((again, kept, alice));
}
