//! The streams, and the refusal to work on a server or a stream that could lose what it acknowledged.

use std::time::Duration;

use async_nats::Client;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    PREFIX,
    jetstream::{self, NO_STREAM, request},
    server::{MINIMUM_VERSION, Version},
};

/// Commands that may wait in the work queue; further ones are refused as busy.
const QUEUE_LIMIT: u64 = 100_000;

/// Bytes that may wait in the work queue.
const QUEUE_BYTES: u64 = 1 << 30;

/// How long the queue remembers an id, in nanoseconds: ten minutes.
const QUEUE_MEMORY: u64 = 600_000_000_000;

/// How long one taken command may take before it is given out again, in nanoseconds: thirty seconds.
const QUEUE_ACK_WAIT: u64 = 30_000_000_000;

/// Why the streams cannot be relied on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server is too old.
    #[error("nats-server is version {found}; {MINIMUM_VERSION} or later is needed")]
    TooOld {
        /// What the server says it is.
        found: String,
    },
    /// A server acknowledges writes before they are synced.
    #[error(
        "nats-server {server} does not sync each write: set `sync_interval: always` in its `jetstream` block"
    )]
    NotSynced {
        /// The server's name.
        server: String,
    },
    /// Fewer servers answered than the streams need.
    #[error("{found} of {wanted} servers with JetStream answered")]
    TooFewServers {
        /// Servers that answered.
        found: usize,
        /// Replicas that were asked for.
        wanted: usize,
    },
    /// A stream is there with settings under which it could lose, change or leak messages.
    #[error("stream {stream} has {field} = {found}, but it must be {wanted}")]
    Differs {
        /// The stream.
        stream: &'static str,
        /// The setting.
        field: &'static str,
        /// What it is.
        found: String,
        /// What it must be.
        wanted: String,
    },
    /// A request to JetStream had no result.
    #[error(transparent)]
    JetStream(#[from] jetstream::Error),
}

/// The settings of each stream. Every one named here is compared with an existing stream's.
fn configs(replicas: usize) -> Vec<(&'static str, Value)> {
    let stream = |name: &str, subject: &str, own: Value| {
        let mut config = json!({
            "name": name, "subjects": [format!("{PREFIX}{subject}")], "num_replicas": replicas,
            "storage": "file", "retention": "limits", "discard": "new",
            "max_msgs": -1, "max_bytes": -1, "max_age": 0, "max_msgs_per_subject": -1,
            "deny_delete": true, "deny_purge": true, "allow_atomic": true, "allow_direct": true,
            "allow_rollup_hdrs": false, "allow_msg_ttl": false, "sealed": false, "no_ack": false,
        });
        if let (Some(config), Value::Object(own)) = (config.as_object_mut(), own) {
            config.extend(own);
        }
        config
    };
    let stored = |name: &str| {
        json!({
            "src": format!("{PREFIX}internal.{name}.put"), "dest": format!("{PREFIX}internal.{name}.stored"),
            "headers_only": true,
        })
    };
    vec![
        (
            "LOG",
            stream(
                "LOG",
                "log.>",
                json!({"republish": {"src": format!("{PREFIX}log.>"), "dest": format!("{PREFIX}evt.>")}}),
            ),
        ),
        (
            "OBJECTS",
            stream(
                "OBJECTS",
                "internal.objects.put",
                json!({"republish": stored("objects")}),
            ),
        ),
        (
            "KEYS",
            stream(
                "KEYS",
                "internal.keys.put",
                json!({"deny_delete": false, "republish": stored("keys")}),
            ),
        ),
        (
            "QUEUE",
            stream(
                "QUEUE",
                "internal.queue.work",
                json!({
                    "retention": "workqueue", "max_msgs": QUEUE_LIMIT, "max_bytes": QUEUE_BYTES,
                    "duplicate_window": QUEUE_MEMORY, "deny_delete": false, "deny_purge": true,
                    "allow_atomic": false,
                }),
            ),
        ),
    ]
}

/// Checks the servers and makes the streams that are missing; one that is there must be as it should.
///
/// `installer` is a connection of the role of that name, `system` one of the role `system`. `replicas` is 1 or 3.
///
/// # Errors
/// See [`Error`]; nothing is written then, except streams made before the fault was seen.
pub async fn ensure(installer: &Client, system: &Client, replicas: usize) -> Result<(), Error> {
    check_servers(installer, system, replicas).await?;
    for (name, config) in configs(replicas) {
        let info = format!("$JS.API.STREAM.INFO.{name}");
        let found = match request::<Value>(installer, &info, &Value::Null).await {
            Ok(info) => info,
            Err(jetstream::Error::Refused {
                code: NO_STREAM, ..
            }) => {
                request::<Value>(installer, &format!("$JS.API.STREAM.CREATE.{name}"), &config)
                    .await?
            }
            Err(error) => return Err(error.into()),
        };
        compare(name, &config, &found["config"])?;
    }
    let worker = json!({
        "stream_name": "QUEUE",
        "config": {
            "durable_name": "worker", "name": "worker", "ack_policy": "explicit", "ack_wait": QUEUE_ACK_WAIT,
            "max_deliver": -1, "max_ack_pending": 256, "deliver_policy": "all",
        },
    });
    request::<Value>(installer, "$JS.API.CONSUMER.CREATE.QUEUE.worker", &worker).await?;
    Ok(())
}

/// Refuses servers that are too old or that acknowledge before they have synced, as they say themselves.
async fn check_servers(installer: &Client, system: &Client, replicas: usize) -> Result<(), Error> {
    let version = installer.server_info().version;
    if Version::parse(&version).is_none_or(|found| found < MINIMUM_VERSION) {
        return Err(Error::TooOld { found: version });
    }
    #[derive(Deserialize)]
    struct Answer {
        server: AnswerServer,
        data: AnswerData,
    }
    #[derive(Deserialize)]
    struct AnswerServer {
        name: String,
        ver: String,
    }
    #[derive(Deserialize)]
    struct AnswerData {
        #[serde(default)]
        disabled: bool,
        #[serde(default)]
        config: AnswerConfig,
    }
    #[derive(Deserialize, Default)]
    struct AnswerConfig {
        #[serde(default)]
        sync_always: bool,
    }
    let subject = "$SYS.REQ.SERVER.PING.JSZ";
    let no_answer = |reason: String| jetstream::Error::NoAnswer {
        what: subject.to_owned(),
        reason,
    };
    let inbox = system.new_inbox();
    let mut answers = system
        .subscribe(inbox.clone())
        .await
        .map_err(|error| no_answer(error.to_string()))?;
    system
        .publish_with_reply(subject, inbox, r#"{"config":true}"#.into())
        .await
        .map_err(|error| no_answer(error.to_string()))?;
    let mut servers = 0;
    // Each server answers for itself. Those beyond the number of replicas are waited for only briefly.
    loop {
        let limit = if servers < replicas {
            Duration::from_secs(5)
        } else {
            Duration::from_millis(50)
        };
        let Ok(Some(message)) = tokio::time::timeout(limit, answers.next()).await else {
            break;
        };
        let answer: Answer =
            serde_json::from_slice(&message.payload).map_err(|_| jetstream::Error::Unreadable {
                what: subject.to_owned(),
            })?;
        if answer.data.disabled {
            continue;
        }
        if Version::parse(&answer.server.ver).is_none_or(|found| found < MINIMUM_VERSION) {
            return Err(Error::TooOld {
                found: answer.server.ver,
            });
        }
        if !answer.data.config.sync_always {
            return Err(Error::NotSynced {
                server: answer.server.name,
            });
        }
        servers += 1;
    }
    if servers < replicas {
        return Err(Error::TooFewServers {
            found: servers,
            wanted: replicas,
        });
    }
    Ok(())
}

/// Compares each wanted setting with what the server says; what it leaves out is false, nought or nothing.
fn compare(stream: &'static str, wanted: &Value, found: &Value) -> Result<(), Error> {
    const FIELDS: &[&str] = &[
        "subjects",
        "num_replicas",
        "storage",
        "retention",
        "discard",
        "max_msgs",
        "max_bytes",
        "max_age",
        "max_msgs_per_subject",
        "deny_delete",
        "deny_purge",
        "allow_atomic",
        "allow_direct",
        "allow_rollup_hdrs",
        "allow_msg_ttl",
        "sealed",
        "no_ack",
        "republish",
    ];
    // None of these is ever set by us; each would change what is stored, or acknowledge before it is durable.
    const ABSENT: &[&str] = &[
        "mirror",
        "sources",
        "subject_transform",
        "persist_mode",
        "allow_msg_counter",
        "discard_new_per_subject",
    ];
    let differs = |field: &'static str, found: &Value, wanted: &Value| Error::Differs {
        stream,
        field,
        found: found.to_string(),
        wanted: wanted.to_string(),
    };
    let nothing = |value: &Value| {
        value.is_null()
            || *value == json!(false)
            || *value == json!(0)
            || *value == json!("")
            || *value == json!("default")
    };
    for field in FIELDS {
        let (found, wanted) = (&found[field], &wanted[field]);
        if found != wanted && !(nothing(found) && nothing(wanted)) {
            return Err(differs(field, found, wanted));
        }
    }
    for field in ABSENT {
        if !nothing(&found[field]) {
            return Err(differs(field, &found[field], &Value::Null));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dangerous_difference_is_found() {
        for (name, wanted) in configs(1) {
            compare(name, &wanted, &wanted).expect("the same");
            for (field, value) in [
                ("storage", json!("memory")),
                ("discard", json!("old")),
                ("deny_purge", json!(false)),
                ("max_age", json!(1)),
                ("num_replicas", json!(3)),
                ("persist_mode", json!("async")),
                ("sources", json!([{"name": "OTHER"}])),
                ("subjects", json!([">"])),
            ] {
                let mut found = wanted.clone();
                found[field] = value;
                let error = compare(name, &wanted, &found).expect_err(field);
                assert!(
                    matches!(error, Error::Differs { field: named, .. } if named == field),
                    "{error}"
                );
            }
        }
    }
}
