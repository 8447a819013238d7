//! The AsyncAPI 3 document of what can be asked of Chancery over NATS and what it tells: `docs/asyncapi.json`.
//!
//! It is made from the types that requests and events are read with, and from the subject table, so that it cannot say
//! anything else than the code does. A test compares it with the file, sends each of its examples to a running system, and
//! holds the answers and events that come against its schemas.

mod views;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use lifecycle::command;
use lifecycle::event::Event;
use lifecycle::rejection::{Code, Reason};

use crate::{request, subject};

/// A command: its name, what it does, the schema of its body, an example.
struct Asks {
    name: &'static str,
    summary: &'static str,
    schema: fn(&mut SchemaGenerator) -> Value,
    example: Value,
}

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

macro_rules! commands {
    ($($name:literal $type:ty, $summary:literal, $example:tt;)*) => {
        vec![$(Asks { name: $name, summary: $summary, schema: of::<$type>, example: json!($example) },)*]
    };
}

/// What the examples of commands that carry a certificate hold: the words stand for a chain and a sealed key, which are
/// different in each system.
pub const CHAIN: &str =
    "-----BEGIN CERTIFICATE-----\n(leaf, then intermediates)\n-----END CERTIFICATE-----\n";

fn sealed() -> Value {
    json!({"kid": "of query.<project>.ingestion-key", "enc": "base64url", "ct": "base64url"})
}

fn commands() -> Vec<Asks> {
    let mut all = commands! {
        "project.create" command::CreateProject, "Create a project. Its id is never used again.", {"project": "acme"};
        "project.suspend" command::OfProject, "Serve nothing of a project and take none of its commands.", {"project": "acme"};
        "project.resume" command::OfProject, "Serve a suspended project again.", {"project": "acme"};
        "project.quota-set" command::SetQuota, "Say how many certificates a project may have.", {"project": "acme", "certificates": 500, "per_region": 200};
        "project.export-set" command::SetExport, "Say whether private keys may leave a project.", {"project": "acme", "export": true};
        "project.delete" command::DeleteProject, "End a project that holds nothing any more.", {"project": "ended", "confirm": "ended"};
        "access.create" command::CreateAccess, "Give somebody access to a project. The answer has the user's JWT.", {"project": "acme", "name": "ci", "nkey": "UCNGL4W5QX66CFX6A6DCBVDH5VOHMI7B2UZZU7TXAUQQSI2JPHULCKBR", "rights": ["cmd.certificate.*", "query.*", "evt.certificate.*"]};
        "access.revoke" command::RevokeAccess, "End somebody's access at once.", {"project": "acme", "name": "ci"};
        "region.create" request::RegionCreate, "Create a region and its key.", {"region": "eu-1"};
        "region.country-set" command::SetCountry, "Give a country its set of regions.", {"country": "germany", "regions": ["eu-1", "local"]};
        "edge.enrol" request::EdgeEnrol, "Get the one-time token with which an edge enrols.", {"region": "eu-1", "edge": "edge-7"};
        "edge.evict" command::EvictEdge, "Put an edge out of its region.", {"region": "eu-1", "edge": "edge-7"};
        "domain.prove" command::ProveDomain, "Vouch for a project's claim.", {"project": "acme", "host": "www.example.com"};
        "certificate.move" command::MoveCertificate, "Move a certificate with its key to another project.", {"project": "acme", "name": "shop", "to": "beta", "confirm": "shop", "force": true};
        "resource.create" command::CreateResource, "Create what domains point at.", {"name": "media", "kind": "cdn", "regions": ["local"], "origin": "https://origin.example.net/media"};
        "resource.set" command::ChangeResource, "Change a resource; what is not given stays.", {"name": "media", "keep_host": true};
        "resource.delete" command::DeleteResource, "Delete a resource that no domain is attached to.", {"name": "media", "confirm": "media"};
        "domain.add" command::AddDomain, "Claim a host, and attach it to a resource.", {"host": "www.example.com", "resource": "media"};
        "domain.attach" command::AttachDomain, "Attach a host to a resource.", {"host": "www.example.com", "resource": "media", "regions": ["local"]};
        "domain.detach" command::DetachDomain, "Detach a host.", {"host": "www.example.com", "regions": ["local"]};
        "domain.bind" command::BindDomain, "Put a certificate first for a host.", {"host": "www.example.com", "certificate": "main"};
        "domain.unbind" command::UnbindDomain, "Let selection decide again.", {"host": "www.example.com"};
        "domain.https" command::SetHttps, "Switch HTTPS on or off for a host.", {"host": "www.example.com", "https": "auto"};
        "domain.check" request::CheckDomain, "Look for a claim's proof in the DNS now.", {"host": "new.example.com"};
        "domain.release" command::ReleaseDomain, "Give a host up.", {"host": "new.example.com"};
        "certificate.deploy" command::DeployCertificate, "Deploy a certificate to further regions.", {"name": "main", "regions": ["eu-1"]};
        "certificate.withdraw" command::WithdrawCertificate, "Withdraw a certificate from regions.", {"name": "main", "regions": ["eu-1"]};
        "certificate.delete" command::DeleteCertificate, "Delete a certificate with its versions and keys.", {"name": "main", "confirm": "main", "force": true};
        "certificate.csr" request::CreateCsr, "Have a key made inside, and get a signing request for it.", {"name": "shop", "names": ["shop.example.com"], "key": "p256"};
        "certificate.csr-discard" command::DiscardCsr, "Give up a signing request and its key.", {"name": "shop"};
        "certificate.export" request::ExportCertificate, "Take a certificate out with its key, sealed to a key of yours. A right of its own.", {"name": "main", "recipient": "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"};
    };
    all.push(Asks {
        name: "certificate.add",
        summary: "Upload a certificate.",
        schema: of::<request::AddCertificate>,
        example: json!({"name": "main", "chain": CHAIN, "key": sealed(), "regions": ["local"], "standby": false}),
    });
    all.push(Asks {
        name: "certificate.replace",
        summary: "Add a version under the same name; it keeps the certificate's place.",
        schema: of::<request::ReplaceCertificate>,
        example: json!({"name": "main", "chain": CHAIN, "key": sealed(), "expect": 1}),
    });
    all
}

/// The document.
///
/// `events` are examples of stored events, by `<noun>.<fact>`.
pub fn document(events: &[(String, Value)]) -> Value {
    let settings = SchemaSettings::draft07().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.inline_subschemas = false;
    });
    let mut generator = settings.into_generator();
    let mut channels = Map::new();
    let mut operations = Map::new();
    let mut messages = Map::new();

    let project = json!({
        "description": "The project's id. Only an operator's user may name one that is not its own.",
        "examples": ["acme"]
    });
    let reference = |to: &str| json!({"$ref": to});
    for asks in commands() {
        let platform = subject::PLATFORM_COMMANDS.contains(&asks.name);
        let schema = (asks.schema)(&mut generator);
        messages.insert(
            format!("cmd.{}", asks.name),
            json!({
                "name": asks.name,
                "summary": asks.summary,
                "contentType": "application/json",
                "headers": reference("#/components/schemas/CommandHeaders"),
                "payload": schema,
                "examples": [{"name": asks.name, "payload": asks.example}],
            }),
        );
        let mut kinds = vec!["cmd"];
        if !platform && !subject::NOT_QUEUED.contains(&asks.name) {
            kinds.push("queue");
        }
        for kind in kinds {
            let channel = format!("{kind}.{}", asks.name);
            let of = if platform { "platform" } else { "{project}" };
            let mut entry = json!({
                "address": subject::of(kind, of, asks.name),
                "summary": asks.summary,
                "messages": {"request": reference(&format!("#/components/messages/cmd.{}", asks.name))},
            });
            if !platform {
                entry["parameters"] = json!({"project": project});
            }
            channels.insert(channel.clone(), entry);
            operations.insert(
                channel.clone(),
                json!({
                    "action": "receive",
                    "channel": reference(&format!("#/channels/{channel}")),
                    "summary": asks.summary,
                    "messages": [reference(&format!("#/channels/{channel}/messages/request"))],
                    "reply": {
                        "channel": reference("#/channels/reply"),
                        "messages": [reference("#/channels/reply/messages/accepted"), reference("#/channels/reply/messages/problem")],
                    },
                }),
            );
        }
    }
    for shows in views::all() {
        let platform = subject::PLATFORM_VIEWS.contains(&shows.name);
        let channel = format!("query.{}", shows.name);
        let schema = (shows.schema)(&mut generator);
        messages.insert(
            channel.clone(),
            json!({
                "name": shows.name,
                "summary": shows.summary,
                "contentType": "application/json",
                "payload": schema,
                "examples": [{"name": shows.name, "payload": shows.example}],
            }),
        );
        messages.insert(
            format!("answer.{}", shows.name),
            json!({
                "name": format!("answer of {}", shows.name),
                "contentType": "application/json",
                "payload": shows.answer,
            }),
        );
        let of = if platform { "platform" } else { "{project}" };
        let mut entry = json!({
            "address": subject::of("query", of, shows.name),
            "summary": shows.summary,
            "messages": {"request": reference(&format!("#/components/messages/{channel}"))},
        });
        if !platform {
            entry["parameters"] = json!({"project": project});
        }
        channels.insert(channel.clone(), entry);
        let reply = format!("reply.{}", shows.name);
        channels.insert(
            reply.clone(),
            json!({
                "address": null,
                "summary": "The reply subject of the request.",
                "messages": {
                    "answer": reference(&format!("#/components/messages/answer.{}", shows.name)),
                    "problem": reference("#/components/messages/problem"),
                },
            }),
        );
        operations.insert(
            channel.clone(),
            json!({
                "action": "receive",
                "channel": reference(&format!("#/channels/{channel}")),
                "summary": shows.summary,
                "messages": [reference(&format!("#/channels/{channel}/messages/request"))],
                "reply": {
                    "channel": reference(&format!("#/channels/{reply}")),
                    "messages": [reference(&format!("#/channels/{reply}/messages/answer")), reference(&format!("#/channels/{reply}/messages/problem"))],
                },
            }),
        );
    }
    for (name, schema) in Event::schemas(&mut generator) {
        let channel = format!("evt.{name}");
        let examples: Vec<Value> = events
            .iter()
            .filter(|(of, _)| of == name)
            .map(|(_, event)| json!({"name": name, "payload": event}))
            .collect();
        messages.insert(
            channel.clone(),
            json!({
                "name": name,
                "contentType": "application/cloudevents+json",
                "payload": {
                    "allOf": [
                        reference("#/components/schemas/CloudEvent"),
                        {
                            "type": "object",
                            "properties": {
                                "type": {"const": format!("dev.chancery.{name}.v1")},
                                "data": schema.to_value(),
                            },
                        },
                    ],
                },
                "examples": examples,
            }),
        );
        channels.insert(
            channel.clone(),
            json!({
                "address": subject::of("evt", "{project}", name),
                "parameters": {"project": project},
                "messages": {"event": reference(&format!("#/components/messages/{channel}"))},
            }),
        );
        operations.insert(
            channel.clone(),
            json!({
                "action": "send",
                "channel": reference(&format!("#/channels/{channel}")),
                "messages": [reference(&format!("#/channels/{channel}/messages/event"))],
            }),
        );
    }
    channels.insert(
        "reply".to_owned(),
        json!({
            "address": null,
            "summary": "The reply subject of the request.",
            "messages": {
                "accepted": reference("#/components/messages/accepted"),
                "problem": reference("#/components/messages/problem"),
            },
        }),
    );
    messages.insert("accepted".to_owned(), accepted());
    messages.insert("problem".to_owned(), problem());
    let _ = (of::<Reason>(&mut generator), of::<Code>(&mut generator));
    let mut schemas: Map<String, Value> = generator.take_definitions(true);
    schemas.insert("CommandHeaders".to_owned(), headers());
    schemas.insert("CloudEvent".to_owned(), cloud_event());
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Chancery",
            "version": "1",
            "description": "Commands, queries and events of Chancery over NATS. A command is a request with a JSON body; its idempotency key is the header Nats-Msg-Id. Events are published as they were committed; whoever was away asks query.<project>.events from its last projectseq, then follows. A project's user may use the subjects of its own project only.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}
        },
        "defaultContentType": "application/json",
        "servers": {
            "nats": {
                "host": "127.0.0.1:4222",
                "protocol": "nats",
                "description": "The nats-server of the control plane; `chancery up` prints where it is.",
                "security": [{"$ref": "#/components/securitySchemes/creds"}]
            }
        },
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": messages,
            "schemas": schemas,
            "securitySchemes": {
                "creds": {
                    "type": "asymmetricEncryption",
                    "description": "A NATS credentials file (user JWT and NKEY seed), as `chancery access create` writes it."
                }
            }
        }
    })
}

fn headers() -> Value {
    json!({
        "type": "object",
        "properties": {
            "Nats-Msg-Id": {
                "type": "string",
                "format": "uuid",
                "description": "The command's idempotency key, a UUIDv7: the same id again gives the first outcome. The body's field `id` does the same."
            }
        }
    })
}

fn cloud_event() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    let number = |description: &str| json!({"type": "string", "pattern": "^[0-9]+$", "description": description});
    let hash = |description: &str| json!({"type": "string", "pattern": "^[0-9a-f]{64}$", "description": description});
    json!({
        "type": "object",
        "description": "CloudEvents 1.0, structured mode. The bytes are those of the log: the leaf of its RFC 6962 tree.",
        "properties": {
            "specversion": {"const": "1.0"},
            "id": text("The command's id and the event's place in it; unique in the log."),
            "source": text("urn:chancery:log:<log id>"),
            "type": text("dev.chancery.<noun>.<fact>.v1"),
            "time": {"type": "string", "format": "date-time"},
            "datacontenttype": {"const": "application/json"},
            "project": text("The project that it belongs to."),
            "sequence": number("Its place in the log; gapless."),
            "projectseq": number("Its place among the project's events; gapless, so a gap shows."),
            "prevhash": hash("The leaf hash of the event before it in the log; zeros for the first."),
            "commandid": text("The idempotency key of the command that it follows from."),
            "commandindex": number("Which of the command's events it is, from 1."),
            "commandcount": number("How many events the command became."),
            "commandspace": text("Where the command's id is unique: the project of its subject, or _internal."),
            "cmddigest": hash("SHA-256 of the command's canonical body."),
            "actor": text("Who caused it: an opaque id, or _<role> for the system's own actors."),
            "correlation": text("Ties together what belongs together."),
            "data": {"type": "object"}
        },
        "required": [
            "specversion", "id", "source", "type", "time", "datacontenttype", "project", "sequence", "projectseq", "prevhash",
            "commandid", "commandindex", "commandcount", "commandspace", "cmddigest", "actor", "correlation", "data"
        ],
        // What the parts of an `allOf` share is closed here: both name only attributes of this list.
        "additionalProperties": false
    })
}

fn accepted() -> Value {
    json!({
        "name": "accepted",
        "summary": "The command was accepted: it is in the log, or durable in the queue.",
        "contentType": "application/json",
        "payload": {
            "type": "object",
            "properties": {
                "id": {"type": "string", "format": "uuid", "description": "The idempotency key."},
                "outcome": {"enum": ["accepted", "queued"]},
                "sequence": {"type": "integer", "minimum": 0, "description": "Of the command's last event. What was asked is in force wherever this sequence is applied."},
                "events": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"sequence": {"type": "integer"}, "event": {"type": "string"}, "data": {"type": "object"}},
                        "required": ["sequence", "event", "data"],
                        "additionalProperties": false
                    }
                },
                "repairs": {"type": "array", "description": "How the chain that was sent was repaired."},
                "jwt": {"type": "string", "description": "Of access.create: the user's JWT."},
                "token": {"type": "string", "description": "Of edge.enrol: the one-time token."},
                "csr": {"type": "string", "description": "Of certificate.csr: the signing request, PEM."},
                "chain": {"type": "string", "description": "Of certificate.export: the chain, PEM."},
                "key": {"type": "object", "description": "Of certificate.export: the private key (PKCS#8 DER), sealed by HPKE to the recipient."}
            },
            "required": ["id", "outcome"]
        }
    })
}

fn problem() -> Value {
    json!({
        "name": "problem",
        "summary": "The answer is no (RFC 9457). A code never changes its meaning; docs/errors has a page for each.",
        "contentType": "application/problem+json",
        "payload": {
            "type": "object",
            "properties": {
                "type": {"type": "string", "pattern": "^urn:chancery:error:[a-z_]+$"},
                "title": {"type": "string"},
                "status": {"type": "integer"},
                "code": {"$ref": "#/components/schemas/Code"},
                "detail": {"type": "string"},
                "reasons": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Reason"}},
                "retry_after_ms": {"type": "integer", "description": "Of busy and rate_limited: when to try again with the same id."},
                "id": {"type": "string", "format": "uuid"},
                "verification": {"type": "object", "description": "Of domain.check: what was looked for and what was found."},
                "sequence": {"type": "integer", "description": "Of the command.rejected event; absent for what the door refused."}
            },
            "required": ["type", "title", "status", "code", "detail", "reasons"],
            "additionalProperties": false
        }
    })
}
