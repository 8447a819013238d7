//! The views and the forms of their answers.

use schemars::JsonSchema;
use schemars::SchemaGenerator;
use serde_json::{Map, Value, json};

use crate::{request, tlog};

/// A view: its name, what it shows, the schema of its body, an example, and the schema of the answer.
pub(super) struct Shows {
    pub(super) name: &'static str,
    pub(super) summary: &'static str,
    pub(super) schema: fn(&mut SchemaGenerator) -> Value,
    pub(super) example: Value,
    pub(super) answer: Value,
}

fn shows<T: JsonSchema>(
    name: &'static str,
    summary: &'static str,
    example: Value,
    answer: Value,
) -> Shows {
    Shows {
        name,
        summary,
        schema: super::of::<T>,
        example,
        answer,
    }
}

/// The schema of an object from words `name:type`. A `?` behind the name says that it may be absent; a type that ends with `[]`
/// is a list, one that ends with `?` may be null.
fn object(words: &str) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for word in words.split_whitespace() {
        let (name, kind) = word.split_once(':').unwrap_or((word, "any"));
        let name = match name.strip_suffix('?') {
            Some(name) => name,
            None => {
                required.push(name);
                name
            }
        };
        properties.insert(name.to_owned(), type_of(kind));
    }
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

fn type_of(kind: &str) -> Value {
    if let Some(item) = kind.strip_suffix("[]") {
        return list(type_of(item));
    }
    if let Some(some) = kind.strip_suffix('?') {
        return json!({"oneOf": [type_of(some), {"type": "null"}]});
    }
    match kind {
        "any" => json!({}),
        "time" => json!({"type": "string", "format": "date-time"}),
        "code" => json!({"$ref": "#/components/schemas/Code"}),
        "reason" => json!({"$ref": "#/components/schemas/Reason"}),
        "key" => json!({"$ref": "#/components/schemas/KeyKind"}),
        "event" => json!({"$ref": "#/components/schemas/CloudEvent"}),
        kind => json!({"type": kind}),
    }
}

fn list(item: Value) -> Value {
    json!({"type": "array", "items": item})
}

fn or_null(some: Value) -> Value {
    json!({"oneOf": [some, {"type": "null"}]})
}

/// The same object with these members.
fn with<const N: usize>(mut object: Value, members: [(&str, Value); N]) -> Value {
    for (name, schema) in members {
        object["properties"][name] = schema;
        if let Some(required) = object["required"].as_array_mut() {
            required.push(json!(name));
        }
    }
    object
}

/// The same object with these members, which may be absent.
fn perhaps<const N: usize>(mut object: Value, members: [(&str, Value); N]) -> Value {
    for (name, schema) in members {
        object["properties"][name] = schema;
    }
    object
}

/// A page: a list of such things, and where to go on.
fn page(of: &str, item: Value) -> Value {
    with(object("next:string?"), [(of, list(item))])
}

pub(super) fn all() -> Vec<Shows> {
    let none = || json!({});
    let candidate = || {
        object(
            "certificate:string id:string version:integer fingerprint:string not_before:time not_after:time standby:boolean exact:boolean",
        )
    };
    let edges = || object("applied:integer of:integer behind:string[] reported?:time");
    let usage = || object("certificates:integer csrs:integer domains:integer resources:integer");
    let version = object(
        "version:integer status:string fingerprint:string names:string[] not_before:time not_after:time trust:string? key:key reasons:reason[] added:integer",
    );
    let usable_in = object(
        "region:string usable:boolean why:reason[] role?:string place?:integer of?:integer note?:string",
    );
    let usable = with(
        object("host:string usable:boolean why:reason[]"),
        [("regions", list(usable_in))],
    );
    let certificate = with(
        object(
            "id:string name:string kind:string status:string shown:string standby:boolean served_everywhere:boolean fingerprint:string? names:string[] not_before:time? not_after:time? trust:string? key:any reasons:reason[] regions:string[] revision:integer warnings:any[]",
        ),
        [
            (
                "behind",
                list(object(
                    "region:string edges:string[] applied:integer wanted:integer",
                )),
            ),
            ("next_warning", or_null(object("due:time version:integer"))),
            (
                "revocation",
                or_null(object("status:string checked:time? source:string?")),
            ),
            (
                "roles",
                list(object("region:string host:string role:string")),
            ),
            ("versions", list(version)),
        ],
    );
    let certificate = perhaps(certificate, [("usable", usable)]);
    let domain = object(
        "host:string status:string proof:string? attached:object certificate:string? mode:string modes:object revision:integer contested_until:time? moves_at:time? prove?:object check?:any",
    );
    let resource = with(
        object(
            "id:string name:string kind:string regions:string[] origin:string keep_host:boolean private_origin:boolean demand_public:boolean revision:integer",
        ),
        [("endpoints", list(object("region:string host:string")))],
    );
    let place = with(
        object(
            "region:string project:string? resource:string? mode:string? bound:string? runway_until:time? why:string",
        ),
        [
            ("active", or_null(candidate())),
            ("fallbacks", list(candidate())),
            (
                "caused_by",
                or_null(object(
                    "sequence:integer time:time actor:string event:string",
                )),
            ),
            ("edges", edges()),
        ],
    );
    let place = perhaps(
        place,
        [
            ("at", json!({})),
            ("since", json!({})),
            ("evidence", json!({})),
        ],
    );
    let events = || {
        with(
            object("next:integer? head:integer"),
            [("events", list(type_of("event")))],
        )
    };
    vec![
        shows::<request::ListQuery>(
            "certificates",
            "The project's certificates with their versions and roles. With `host`, whether each can serve it, and why not.",
            json!({"limit": 50}),
            page("certificates", certificate),
        ),
        shows::<request::ListQuery>(
            "active-certificates",
            "What each host of the project serves in each region.",
            none(),
            page(
                "active-certificates",
                with(
                    object("region:string host:string"),
                    [("active", candidate())],
                ),
            ),
        ),
        shows::<request::ListQuery>(
            "fallbacks",
            "What each host of the project would serve next, in order.",
            none(),
            page(
                "fallbacks",
                with(
                    object("region:string host:string"),
                    [("fallbacks", list(candidate()))],
                ),
            ),
        ),
        shows::<request::ListQuery>(
            "domains",
            "The project's claims.",
            none(),
            page("domains", domain),
        ),
        shows::<request::ListQuery>(
            "resources",
            "The project's resources.",
            none(),
            page("resources", resource),
        ),
        shows::<request::ListQuery>(
            "csrs",
            "Signing requests whose certificates have not come.",
            none(),
            page(
                "csrs",
                object(
                    "name:string spki:string key:key names:string[] created:any actor:string request?:string csr?:string?",
                ),
            ),
        ),
        shows::<request::ListQuery>(
            "quotas",
            "How many certificates the project may have, and has.",
            none(),
            with(
                object(
                    "allocated:integer used:integer hard_cap:integer exceeded:boolean per_region:integer",
                ),
                [(
                    "regions",
                    list(object(
                        "region:string kind:string allocated:integer used:integer exceeded:boolean",
                    )),
                )],
            ),
        ),
        shows::<request::ListQuery>("usage", "How many things the project has.", none(), usage()),
        shows::<request::ListQuery>(
            "regions",
            "Regions and countries.",
            none(),
            with(
                object(""),
                [
                    (
                        "regions",
                        list(object(
                            "name:string edges:integer applied:integer behind:string[]",
                        )),
                    ),
                    ("countries", list(object("name:string regions:string[]"))),
                ],
            ),
        ),
        shows::<request::HostQuery>(
            "host",
            "What a host serves in each region, the fallback chain, the runway, and why.",
            json!({"host": "www.example.com"}),
            with(
                object("host:string revision:integer? status?:string"),
                [("regions", list(place))],
            ),
        ),
        shows::<request::OutcomeQuery>(
            "outcome",
            "What became of a command.",
            json!({"id": "0190a5b0-0000-7000-8000-000000000000"}),
            json!({"oneOf": [
                {"$ref": "#/components/messages/accepted/payload"},
                {"$ref": "#/components/messages/problem/payload"}
            ]}),
        ),
        shows::<request::EventsQuery>(
            "events",
            "The project's events, their exact bytes, from a projectseq.",
            json!({"from": 1, "limit": 10}),
            events(),
        ),
        shows::<request::ListQuery>(
            "ingestion-key",
            "The X25519 key that private keys are sealed to (HPKE base mode, RFC 9180).",
            none(),
            object("kid:string public:string"),
        ),
        shows::<request::ListQuery>(
            "checkpoint-key",
            "The key that checkpoints of the log are signed with.",
            none(),
            object("origin:string vkey:string"),
        ),
        shows::<tlog::ProofQuery>(
            "proof",
            "That an event of the project is in the log, for anybody to check.",
            json!({"projectseq": 1}),
            object("sequence:integer proof:string vkey:string event:event"),
        ),
        shows::<request::EventsQuery>(
            "log",
            "The log, its exact bytes, from a sequence.",
            json!({"from": 1, "limit": 10}),
            events(),
        ),
        shows::<request::ListQuery>(
            "status",
            "Roles, head, lag, what is owed and what is wrong.",
            none(),
            with(
                object(
                    "ok:boolean problems:string[] version:string roles:string[] log:string platform_domain:string head:integer head_hash:string epoch:integer owed:object door:any registrar:object audit:any dns:any",
                ),
                [(
                    "regions",
                    list(object(
                        "region:string edges:integer applied:integer wanted:integer lag:integer behind:string[]",
                    )),
                )],
            ),
        ),
        shows::<request::ListQuery>(
            "projects",
            "The projects.",
            none(),
            page(
                "projects",
                with(
                    object("project:string status:string created:time? export:boolean"),
                    [
                        ("quota", object("certificates:integer per_region:integer")),
                        ("usage", usage()),
                    ],
                ),
            ),
        ),
        shows::<request::ListQuery>(
            "access",
            "Who has access to a project.",
            json!({"of": "acme"}),
            page("access", json!({"type": "object"})),
        ),
        shows::<request::ListQuery>(
            "edges",
            "The edges, and what they last reported.",
            none(),
            page(
                "edges",
                object(
                    "region:string name:string healthy:boolean evicted:boolean applied:integer? http:string? https:string? last_report:time? problems:string[]",
                ),
            ),
        ),
        shows::<request::ListQuery>(
            "rebuild",
            "Replay the log into fresh views and compare them with the live ones.",
            none(),
            object(
                "identical:boolean events:integer sequence:integer digest:string difference:any root:string tree:object",
            ),
        ),
        shows::<request::BackupQuery>(
            "backup",
            "Part of a backup. A right of its own.",
            json!({"part": "manifest"}),
            json!({"type": "object"}),
        ),
        shows::<tlog::CheckpointQuery>(
            "checkpoint",
            "A signed checkpoint of the log (C2SP tlog-checkpoint).",
            none(),
            object(
                "checkpoint:string origin:string size:integer root:string vkey:string consistency?:any",
            ),
        ),
    ]
}
