//! `docs/asyncapi.json` is what the code says, and what the code says is so: each example goes to a running system, and each
//! answer and event that comes back is held against its schema.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use harness::{checkout, eventually};
use lifecycle::event::Event;
use serde_json::{Value, json};

use crate::stage::{Stage, nats, wait};

fn committed() -> Value {
    let text = fs::read(checkout().join("docs/asyncapi.json")).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// The stored events that every release must read, as examples.
fn golden() -> Vec<(String, Value)> {
    let folder = checkout().join("crates/wire/tests/golden");
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("the golden files")
        .map(|entry| entry.expect("a file").path())
        .collect();
    files.sort();
    files
        .iter()
        .map(|path| {
            let event: Value = serde_json::from_slice(&fs::read(path).expect("read"))
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let kind = event["type"].as_str().expect("a type");
            let name = kind
                .strip_prefix("dev.chancery.")
                .and_then(|kind| kind.strip_suffix(".v1"))
                .expect("a type of ours");
            (name.to_owned(), event)
        })
        .collect()
}

#[test]
fn the_document_is_what_the_code_says() {
    let made = wire::asyncapi::document(&golden());
    let path = checkout().join("docs/asyncapi.json");
    if std::env::var_os("UPDATE_DOCS").is_some_and(|v| v == "1") {
        let mut text = serde_json::to_string_pretty(&made).expect("JSON");
        text.push('\n');
        fs::write(&path, text).expect("written");
    }
    assert!(
        committed() == made,
        "docs/asyncapi.json is not what the code says: UPDATE_DOCS=1 cargo test -p tests --test it asyncapi"
    );
    let names = |prefix: &str| -> BTreeSet<String> {
        let channels = made["channels"].as_object().expect("channels");
        channels
            .keys()
            .filter_map(|key| key.strip_prefix(prefix))
            .map(str::to_owned)
            .collect()
    };
    let of = |all: &[&[&str]]| -> BTreeSet<String> {
        all.concat().iter().map(|&name| name.to_owned()).collect()
    };
    use wire::subject::{PLATFORM_COMMANDS, PLATFORM_VIEWS, PROJECT_COMMANDS, PROJECT_VIEWS};
    assert_eq!(names("cmd."), of(&[PLATFORM_COMMANDS, PROJECT_COMMANDS]));
    assert_eq!(names("query."), of(&[PLATFORM_VIEWS, PROJECT_VIEWS]));
    assert_eq!(names("evt."), of(&[Event::NAMES]));
    // Every reference leads somewhere.
    fn follow(root: &Value, value: &Value) {
        match value {
            Value::Object(map) => {
                if let Some(to) = map.get("$ref").and_then(Value::as_str) {
                    let pointer = to.strip_prefix('#').expect("a local reference");
                    assert!(root.pointer(pointer).is_some(), "{to} leads nowhere");
                }
                map.values().for_each(|value| follow(root, value));
            }
            Value::Array(items) => items.iter().for_each(|value| follow(root, value)),
            _ => {}
        }
    }
    follow(&made, &made);
}

/// Checks payloads against the document's messages.
struct Schemas {
    document: Value,
    ready: BTreeMap<String, jsonschema::Validator>,
    wrong: Vec<String>,
}

impl Schemas {
    fn new() -> Self {
        Self {
            document: committed(),
            ready: BTreeMap::new(),
            wrong: Vec::new(),
        }
    }

    fn check(&mut self, message: &str, payload: &Value) {
        let document = &self.document;
        let validator = self.ready.entry(message.to_owned()).or_insert_with(|| {
            let schema = json!({
                "$schema": "http://json-schema.org/draft-07/schema#",
                "components": document["components"],
                "allOf": [document["components"]["messages"][message]["payload"]],
            });
            jsonschema::options()
                .should_validate_formats(true)
                .build(&schema)
                .unwrap_or_else(|error| panic!("the schema of {message}: {error}"))
        });
        let wrong: Vec<String> = validator
            .iter_errors(payload)
            .map(|error| format!("{} at {}", error, error.instance_path()))
            .collect();
        // All that is wrong is told at once, at the end.
        if !wrong.is_empty() {
            self.wrong
                .push(format!("{message}: {wrong:?}\n{payload:#}"));
        }
    }

    fn example(&self, message: &str) -> Value {
        let examples = &self.document["components"]["messages"][message]["examples"];
        examples[0]["payload"].clone()
    }
}

struct Live {
    client: async_nats::Client,
    runtime: tokio::runtime::Runtime,
    schemas: Schemas,
    commands: BTreeSet<String>,
}

impl Live {
    fn request(&self, address: &str, body: &Value) -> Value {
        let asked = self
            .client
            .request(address.to_owned(), body.to_string().into());
        let answer = self
            .runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(30), asked).await });
        let answer = answer.expect("in time").expect("an answer");
        serde_json::from_slice(&answer.payload).expect("JSON")
    }

    fn address(&self, channel: &str) -> String {
        self.schemas.document["channels"][channel]["address"]
            .as_str()
            .unwrap_or_else(|| panic!("no channel {channel}"))
            .replace("{project}", "acme")
    }

    /// Sends a command's example, with members that differ from system to system, and demands this outcome: `accepted`,
    /// `queued` or a reason code.
    fn send(&mut self, name: &str, differs: &Value, outcome: &str) -> Value {
        let message = format!("cmd.{name}");
        let mut body = self.schemas.example(&message);
        for (member, value) in differs.as_object().expect("members") {
            body[member] = value.clone();
        }
        self.schemas.check(&message, &body);
        self.commands.insert(name.to_owned());
        let answer = self.request(&self.address(&message), &body);
        if answer.get("code").is_some() {
            self.schemas.check("problem", &answer);
            if answer["code"] != outcome {
                self.schemas
                    .wrong
                    .push(format!("{name}: not {outcome}: {answer:#}"));
            }
        } else {
            self.schemas.check("accepted", &answer);
            if answer["outcome"] != outcome {
                self.schemas
                    .wrong
                    .push(format!("{name}: not {outcome}: {answer:#}"));
            }
        }
        answer
    }

    fn ask(&mut self, name: &str, differs: &Value) -> Value {
        let message = format!("query.{name}");
        let mut body = self.schemas.example(&message);
        for (member, value) in differs.as_object().expect("members") {
            body[member] = value.clone();
        }
        self.schemas.check(&message, &body);
        let answer = self.request(&self.address(&message), &body);
        self.schemas.check(&format!("answer.{name}"), &answer);
        answer
    }
}

#[test]
fn each_example_is_taken_by_a_running_system() {
    let stage = Stage::of(harness::Chancery::up());
    let (runtime, client) = nats(&stage.operator);
    let mut live = Live {
        client,
        runtime,
        schemas: Schemas::new(),
        commands: BTreeSet::new(),
    };
    let none = json!({});
    let acme = stage.operator.project("acme");
    let brought = |leaf: &harness::Leaf| {
        let chain = fs::read_to_string(leaf.chain()).expect("the chain");
        let key = leaf.key().display().to_string();
        let sealed = acme.run(&["seal", "--key", &key]).ok().json();
        json!({"chain": chain, "key": sealed})
    };
    let named = |mut body: Value, name: &str| {
        body["name"] = json!(name);
        body
    };
    let ready = |name: &str| wait(&acme, name, "ready");
    let issue = |host: &str| brought(&stage.ca.issue(host));

    // The project of the examples is there already in this system; another one shows that the example is taken.
    live.send("project.create", &none, "duplicate_name");
    for project in ["beta", "ended"] {
        live.send("project.create", &json!({"project": project}), "accepted");
    }
    live.send("project.quota-set", &none, "accepted");
    live.send("project.export-set", &none, "accepted");
    live.send("region.create", &none, "accepted");
    live.send("region.country-set", &none, "accepted");
    let token = live.send("edge.enrol", &none, "accepted");
    assert!(token["token"].is_string(), "{token}");
    // It has not enrolled.
    live.send("edge.evict", &none, "not_found");
    let access = live.send("access.create", &none, "accepted");
    assert!(access["jwt"].is_string(), "{access}");
    live.send("resource.create", &none, "accepted");
    live.send("domain.add", &none, "accepted");
    // An operator's word was the proof already.
    live.send("domain.prove", &none, "conflict");
    live.send("domain.attach", &none, "accepted");
    live.send("certificate.add", &issue("www.example.com"), "accepted");
    ready("main");
    live.send("domain.bind", &none, "accepted");
    live.send("domain.unbind", &none, "accepted");
    live.send("domain.https", &none, "accepted");
    live.send("certificate.replace", &issue("www.example.com"), "accepted");
    ready("main");
    live.send("certificate.deploy", &none, "accepted");
    live.send("certificate.withdraw", &json!({"force": true}), "accepted");
    let exported = live.send("certificate.export", &none, "accepted");
    assert!(exported["key"]["ct"].is_string(), "{exported}");
    let csr = live.send("certificate.csr", &none, "accepted");
    assert!(
        csr["csr"]
            .as_str()
            .is_some_and(|csr| csr.starts_with("-----BEGIN CERTIFICATE REQUEST-----")),
        "{csr}"
    );
    live.ask("csrs", &none);
    live.send("certificate.csr-discard", &none, "accepted");
    let shop = named(issue("shop.example.com"), "shop");
    live.send("certificate.add", &shop, "accepted");
    ready("shop");
    live.send("certificate.move", &none, "accepted");
    stage.alice.run(&["domain", "add", "new.example.com"]).ok();
    live.send("domain.check", &none, "domain_unproven");
    live.send("domain.release", &none, "accepted");
    live.send("resource.set", &none, "accepted");
    // The same bodies are taken into the queue.
    let queued = live.request(
        &live.address("queue.domain.add"),
        &json!({"host": "queued.example.com"}),
    );
    assert_eq!(queued["outcome"], "queued", "{queued}");
    live.schemas.check("accepted", &queued);

    // Views, while there is something to see.
    eventually("main is active", Duration::from_secs(30), || {
        let host = stage.host("www.example.com");
        match host["active"].is_null() {
            false => Ok(()),
            true => Err(host.to_string()),
        }
    });
    let id = exported["id"].clone();
    let views: Vec<String> = live.schemas.document["channels"]
        .as_object()
        .expect("channels")
        .keys()
        .filter_map(|channel| channel.strip_prefix("query."))
        .map(str::to_owned)
        .collect();
    for view in &views {
        let differs = match view.as_str() {
            "outcome" => json!({"id": id}),
            _ => none.clone(),
        };
        live.ask(view, &differs);
    }
    live.ask("certificates", &json!({"host": "www.example.com"}));
    live.ask("domains", &json!({"name": "www.example.com"}));

    live.send("domain.detach", &none, "accepted");
    live.send("certificate.delete", &none, "accepted");
    live.send("resource.delete", &none, "accepted");
    live.send("project.suspend", &none, "accepted");
    live.send("project.resume", &none, "accepted");
    live.send("access.revoke", &none, "accepted");
    live.send("project.delete", &none, "accepted");

    let all: BTreeSet<String> = live.schemas.document["channels"]
        .as_object()
        .expect("channels")
        .keys()
        .filter_map(|channel| channel.strip_prefix("cmd."))
        .map(str::to_owned)
        .collect();
    assert_eq!(live.commands, all, "a command's example was not sent");

    // What happened, and what every release must read, is of the form that the document says.
    let happened = stage.operator.run(&["events", "replay"]).ok().lines();
    let mut seen = BTreeSet::new();
    for event in happened
        .into_iter()
        .chain(golden().into_iter().map(|(_, event)| event))
    {
        let kind = event["type"].as_str().expect("a type").to_owned();
        let name = kind
            .trim_start_matches("dev.chancery.")
            .trim_end_matches(".v1");
        live.schemas.check(&format!("evt.{name}"), &event);
        seen.insert(name.to_owned());
    }
    assert_eq!(seen.len(), Event::NAMES.len());
    let wrong = live.schemas.wrong;
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
