//! Quotas: 100 certificates of a project, 100 of one kind in one region, reached with real uploads; what the refusal says, what
//! frees a place, and who may give more.

use std::fs;
use std::time::Duration;

use harness::{Ca, Cli, Leaf};
use keyring::{PrivateKey, SealedKey};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::stage::{Stage, nats};

/// What a project has unless an operator says otherwise.
const QUOTA: u32 = 100;

/// A user of `acme` by a plain NATS client: a process for each of hundreds of uploads would take most of the time.
struct Uploader {
    runtime: tokio::runtime::Runtime,
    client: async_nats::Client,
    ingestion: [u8; 32],
}

impl Uploader {
    fn new(stage: &Stage) -> Self {
        let (runtime, client) = nats(&stage.alice);
        let mut uploader = Self {
            runtime,
            client,
            ingestion: [0; 32],
        };
        let key = uploader.ask("query.acme.ingestion-key", json!({}));
        let public = key["public"].as_str().expect("a key");
        uploader.ingestion = data_encoding::BASE64URL_NOPAD
            .decode(public.trim_end_matches('=').as_bytes())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .expect("32 bytes");
        uploader
    }

    fn ask(&self, subject: &str, body: Value) -> Value {
        self.ask_all(vec![(subject.to_owned(), body)]).remove(0)
    }

    /// Asks all at once; answers in the order of what was asked.
    fn ask_all(&self, all: Vec<(String, Value)>) -> Vec<Value> {
        let mut asked = JoinSet::new();
        for (n, (subject, body)) in all.into_iter().enumerate() {
            let client = self.client.clone();
            asked.spawn_on(
                async move {
                    let answer =
                        client.request(format!("chancery.v1.{subject}"), body.to_string().into());
                    let answer = tokio::time::timeout(Duration::from_secs(60), answer)
                        .await
                        .expect("in time")
                        .expect("an answer");
                    let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
                    (n, answer)
                },
                self.runtime.handle(),
            );
        }
        let mut answers = self.runtime.block_on(async {
            let mut answers = Vec::new();
            while let Some(answer) = asked.join_next().await {
                answers.push(answer.expect("it was asked"));
            }
            answers
        });
        answers.sort_by_key(|(n, _)| *n);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    fn server(&self, name: &str, leaf: &Leaf, regions: &[&str]) -> (String, Value) {
        let key = PrivateKey::from_der(&leaf.key_der).expect("a key");
        let key = SealedKey::seal(&self.ingestion, "acme", &key).expect("sealed");
        let chain = fs::read_to_string(leaf.chain()).expect("the chain");
        (
            "cmd.acme.certificate.add".to_owned(),
            json!({"name": name, "chain": chain, "key": key, "regions": regions}),
        )
    }
}

fn authority(name: &str, regions: &[&str]) -> (String, Value) {
    (
        "cmd.acme.certificate.add".to_owned(),
        json!({"name": name, "kind": "ca", "chain": Ca::new().root_pem(), "regions": regions}),
    )
}

fn accepted(answers: &[Value]) {
    for answer in answers {
        assert_eq!(answer["outcome"], "accepted", "{answer}");
    }
}

fn quotas(user: &Cli) -> Value {
    user.run(&["project", "quota", "acme"]).ok().json()
}

fn used(quotas: &Value, region: &str, kind: &str) -> u64 {
    let row = quotas["regions"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|row| row["region"] == region && row["kind"] == kind)
        .unwrap_or_else(|| panic!("no {kind} in {region}: {quotas}"));
    row["used"].as_u64().expect("a number")
}

/// A refusal for the quota: its message and its hint.
fn exceeded(answer: &Value) -> (String, String) {
    assert_eq!(answer["code"], "quota_exceeded", "{answer}");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&answer["detail"]), text(&answer["reasons"][0]["hint"]))
}

#[test]
fn the_hundredth_certificate_is_the_last_until_a_place_is_free_or_the_operator_gives_more() {
    let stage = Stage::with_regions(&["de-1", "de-2"]);
    stage
        .operator
        .run(&[
            "region", "country", "germany", "--region", "de-1", "--region", "de-2",
        ])
        .ok();
    let uploader = Uploader::new(&stage);
    let leaf = stage.ca.issue("www.example.com");
    let server = |name: &str, regions: &[&str]| uploader.server(name, &leaf, regions);
    let one = |(subject, body): (String, Value)| uploader.ask(&subject, body);

    // A hundred of a project.
    let first: Vec<_> = (0..QUOTA)
        .map(|n| server(&format!("s-{n}"), &["de-1"]))
        .collect();
    accepted(&uploader.ask_all(first));
    let (message, hint) = exceeded(&one(server("one-more", &["de-2"])));
    assert_eq!(message, "the project has 100 of at most 100 certificates");
    assert!(
        hint.contains("delete one")
            && hint.contains("chancery project quota acme --certificates 101"),
        "{hint}"
    );
    let there = quotas(&stage.alice);
    assert_eq!(
        (
            &there["allocated"],
            &there["used"],
            &there["hard_cap"],
            &there["exceeded"]
        ),
        (&json!(100), &json!(100), &json!(1_000_000), &json!(false)),
        "{there}"
    );
    assert_eq!(used(&there, "de-1", "server"), 100);
    assert_eq!(used(&there, "de-2", "server"), 0);
    let shown = stage.operator.run(&["project", "show", "acme"]).ok().json();
    assert_eq!(shown["usage"]["certificates"], 100, "{shown}");
    assert_eq!(shown["quota"]["certificates"], 100, "{shown}");

    // A replacement takes no place.
    let renewed = stage.ca.issue("www.example.com");
    let (_, mut body) = uploader.server("s-0", &renewed, &[]);
    body.as_object_mut().expect("a body").remove("regions");
    accepted(&[uploader.ask("cmd.acme.certificate.replace", body)]);

    // Only the operator gives more.
    let more = ["project", "quota", "acme", "--certificates", "300"];
    assert_eq!(stage.alice.run(&more).refused(), "unauthorized");
    stage.operator.run(&more).ok();

    // A hundred of a kind in a region, also when the region is meant by its country.
    let (message, hint) = exceeded(&one(server("one-more", &["de-1"])));
    assert_eq!(
        message,
        "the project has 100 of at most 100 server certificates in region de-1"
    );
    assert!(
        hint.contains("chancery certificate withdraw") && hint.contains("--per-region 101"),
        "{hint}"
    );
    let (message, _) = exceeded(&one(server("one-more", &["germany"])));
    assert!(message.contains("region de-1"), "{message}");
    accepted(&[one(server("one-more", &["de-2"]))]);
    let refused = stage
        .alice
        .run(&["certificate", "deploy", "one-more", "--region", "germany"]);
    assert_eq!(refused.refused(), "quota_exceeded");
    // The other kind counts for itself.
    let authorities: Vec<_> = (0..QUOTA)
        .map(|n| authority(&format!("ca-{n}"), &["de-1"]))
        .collect();
    accepted(&uploader.ask_all(authorities));
    let (message, _) = exceeded(&one(authority("ca-more", &["de-1"])));
    assert_eq!(
        message,
        "the project has 100 of at most 100 ca certificates in region de-1"
    );

    // What is deleted or withdrawn frees its place.
    stage
        .alice
        .run(&["certificate", "delete", "s-1", "--confirm", "s-1"])
        .ok();
    accepted(&[one(server("again", &["de-1"]))]);
    exceeded(&one(server("and-again", &["de-1"])));
    stage
        .alice
        .run(&["certificate", "deploy", "s-2", "--region", "de-2"])
        .ok();
    stage
        .alice
        .run(&["certificate", "withdraw", "s-2", "--region", "de-1"])
        .ok();
    accepted(&[one(server("and-again", &["de-1"]))]);
    let there = quotas(&stage.alice);
    assert_eq!(there["used"], 202, "{there}");
    assert_eq!(used(&there, "de-1", "server"), 100);
    assert_eq!(used(&there, "de-2", "server"), 2);
    assert_eq!(used(&there, "de-1", "ca"), 100);

    // A number below what is there takes nothing away.
    stage.chancery.quota("acme", 10);
    let there = quotas(&stage.alice);
    assert_eq!(
        (&there["allocated"], &there["used"], &there["exceeded"]),
        (&json!(10), &json!(202), &json!(true))
    );
    exceeded(&one(server("too-many", &["de-2"])));
    // Nor has anybody else anything to see of it.
    let bob = stage.chancery.project("bravo", "bob");
    assert_eq!(
        bob.run(&["project", "quota", "acme"]).refused(),
        "unauthorized"
    );
    let theirs = bob.run(&["project", "quota", "bravo"]).ok().json();
    assert_eq!(theirs["used"], 0);
    assert_eq!(theirs["allocated"], QUOTA);
}

#[test]
fn a_country_is_the_regions_that_it_has_when_it_is_named() {
    let stage = Stage::with_regions(&["de-1", "de-2", "fr-1"]);
    let country = |regions: &[&str]| {
        let mut words = vec!["region", "country", "germany"];
        for region in regions {
            words.extend(["--region", region]);
        }
        stage.operator.run(&words).ok();
    };
    country(&["de-1", "de-2"]);
    let leaf = stage.ca.issue("www.example.com");
    let (chain, key) = (
        leaf.chain().display().to_string(),
        leaf.key().display().to_string(),
    );
    let add = |name: &str, region: &str| {
        let words = [
            "certificate",
            "add",
            name,
            "--chain",
            &chain,
            "--key",
            &key,
            "--region",
            region,
            "--region",
            "de-1",
        ];
        stage.alice.run(&words)
    };
    let regions =
        |name: &str| stage.alice.run(&["certificate", "show", name]).ok().json()["regions"].clone();
    let _ = add("site", "germany").ok();
    assert_eq!(regions("site"), json!(["de-1", "de-2"]));
    // What the country becomes later, it becomes for what comes later.
    country(&["de-1", "de-2", "fr-1"]);
    assert_eq!(regions("site"), json!(["de-1", "de-2"]));
    stage
        .alice
        .run(&["certificate", "deploy", "site", "--region", "germany"])
        .ok();
    assert_eq!(regions("site"), json!(["de-1", "de-2", "fr-1"]));
    stage
        .alice
        .run(&["certificate", "withdraw", "site", "--region", "fr-1"])
        .ok();
    assert_eq!(add("other", "atlantis").refused(), "not_found");
    let listed = stage.alice.run(&["region", "list"]).ok().lines();
    let germany = listed
        .iter()
        .find(|line| line["name"] == "germany")
        .expect("it is listed");
    assert_eq!(germany["regions"], json!(["de-1", "de-2", "fr-1"]));
    // A resource in a country, and a host attached there.
    let origin = stage.origin.url();
    crate::stage::resource(
        &stage.operator,
        "acme",
        "shop",
        "cdn",
        &["germany"],
        &origin,
    );
    let shop = stage.alice.run(&["resource", "show", "shop"]).ok().json();
    assert_eq!(shop["regions"], json!(["de-1", "de-2", "fr-1"]));
}
