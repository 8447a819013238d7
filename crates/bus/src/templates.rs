//! Who may publish and subscribe what: one permission template per role, as data.
//!
//! JWTs are minted from this table ([`crate::identity`]), the comments of `nats.conf` are rendered from it
//! ([`render_nats_conf`]), and the tests prove its refusals on a real server. Nothing else grants a permission.
//!
//! `{{account-name()}}`, `{{name()}}` and `{{tag(x)}}` are filled in by the server from the account's and the user's JWT;
//! an allowed subject whose tag the user does not carry is dropped, and a tag with several values yields several
//! subjects. Only our own keys sign those JWTs, and the minter checks every name that it puts in.

use std::fmt::Write as _;

/// The account in which users of a role live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The server's own system account.
    System,
    /// The streams and everything internal.
    Core,
    /// The edges of all regions.
    Edges,
    /// The operator's own project.
    Platform,
    /// Every other project.
    Project,
}

impl Place {
    /// The word used in `nats.conf` and in account JWTs; a project's account is named by its slug instead.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Place::System => "SYS",
            Place::Core => "CORE",
            Place::Edges => "EDGES",
            Place::Platform => "platform",
            Place::Project => "<project>",
        }
    }
}

/// What a user is for. Each role has one scoped signing key, and its users have exactly the role's permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Pushes accounts, reads server and connection state, disconnects.
    System,
    /// Creates and checks the streams at start; holds no right to change or delete one.
    Installer,
    /// Takes the projects' commands and queries in.
    Door,
    /// The one writer of the log.
    Registrar,
    /// Reads the log: followers, projections, audit.
    Follower,
    /// Writes and reads certificates' DER.
    Objects,
    /// Writes, reads and erases sealed keys.
    Keys,
    /// Feeds and drains the queue of durable commands.
    Queue,
    /// Publishes the regions' feeds and answers edges.
    Distribution,
    /// A person or program of the operator, with all commands.
    Operator,
    /// Reads everything that the operator may read, changes nothing.
    Auditor,
    /// An operator's user with chosen rights.
    Delegate,
    /// A user of a project with all of the project's commands.
    Member,
    /// A user of a project who reads only.
    Reader,
    /// A user of a project with chosen rights.
    Limited,
    /// One enrolled edge.
    Edge,
    /// A one-time token with which an edge enrols.
    Enrol,
}

/// How a role may answer requests whose reply subjects it may not otherwise publish to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answers {
    /// Messages per request.
    pub max: u32,
    /// Seconds after the request within which an answer is let through.
    pub seconds: u64,
}

/// The permissions of one role.
#[derive(Debug, Clone, Copy)]
pub struct Template {
    /// Whose permissions these are.
    pub role: Role,
    /// The role's name in JWTs and in `nats.conf`.
    pub name: &'static str,
    /// The account of its users.
    pub place: Place,
    /// Subjects that may be published; none means that publishing is denied altogether.
    pub publish: &'static [&'static str],
    /// Subjects that may be subscribed.
    pub subscribe: &'static [&'static str],
    /// Whether requests may be answered.
    pub answers: Option<Answers>,
    /// Subscriptions of one connection at most; -1 is no limit.
    pub subscriptions: i64,
    /// Bytes of one message at most, headers included; -1 is the server's limit of 1 MB.
    pub payload: i64,
    /// Why the role may do that, for the reader of the map.
    pub why: &'static str,
}

/// Bytes of one message that a user of a project may send, headers included.
pub const USER_PAYLOAD: i64 = 256 * 1024;

const OWN_INBOX: &str = "_INBOX_{{name()}}.>";

/// Every role there is.
pub const TEMPLATES: &[Template] = &[
    Template {
        role: Role::System,
        name: "system",
        place: Place::System,
        publish: &[
            "$SYS.REQ.CLAIMS.UPDATE",
            "$SYS.REQ.CLAIMS.DELETE",
            "$SYS.REQ.SERVER.PING.JSZ",
            "$SYS.REQ.SERVER.PING.CONNZ",
            "$SYS.REQ.SERVER.*.KICK",
            "$SYS.REQ.ACCOUNT.*.CONNZ",
        ],
        subscribe: &[
            "$SYS.ACCOUNT.*.CONNECT",
            "$SYS.ACCOUNT.*.DISCONNECT",
            OWN_INBOX,
        ],
        answers: None,
        subscriptions: -1,
        payload: -1,
        why: "pushes and deletes accounts, sees who is connected, disconnects, and asks whether each write is synced",
    },
    Template {
        role: Role::Installer,
        name: "installer",
        place: Place::Core,
        publish: &[
            "$JS.API.STREAM.CREATE.*",
            "$JS.API.STREAM.INFO.*",
            "$JS.API.CONSUMER.CREATE.QUEUE.worker",
            "$JS.API.CONSUMER.INFO.QUEUE.worker",
        ],
        subscribe: &[OWN_INBOX],
        answers: None,
        subscriptions: -1,
        payload: -1,
        why: "makes the streams at start and checks them; nobody may change, purge or delete a stream",
    },
    Template {
        role: Role::Door,
        name: "door",
        place: Place::Core,
        publish: &[],
        subscribe: &[
            "chancery.v1.cmd.>",
            "chancery.v1.queue.>",
            "chancery.v1.query.>",
            "$SRV.>",
        ],
        answers: Some(Answers {
            max: 1,
            seconds: 30,
        }),
        subscriptions: -1,
        payload: -1,
        why: "hears what projects ask and answers each once; a broken door can publish nothing of its own",
    },
    Template {
        role: Role::Registrar,
        name: "registrar",
        place: Place::Core,
        publish: &[
            "chancery.v1.log.>",
            "$JS.API.STREAM.INFO.LOG",
            "$JS.API.STREAM.MSG.GET.LOG",
            "$JS.API.DIRECT.GET.LOG",
        ],
        subscribe: &["chancery.v1.evt.>", OWN_INBOX],
        answers: None,
        subscriptions: -1,
        payload: -1,
        why: "the one writer of the log",
    },
    Template {
        role: Role::Follower,
        name: "follower",
        place: Place::Core,
        publish: &[
            "$JS.API.STREAM.INFO.LOG",
            "$JS.API.STREAM.MSG.GET.LOG",
            "$JS.API.DIRECT.GET.LOG",
            "$SRV.>",
        ],
        subscribe: &["chancery.v1.evt.>", OWN_INBOX],
        answers: None,
        subscriptions: -1,
        payload: -1,
        why: "reads the log and cannot write it; asks the services how they are",
    },
    Template {
        role: Role::Objects,
        name: "objects",
        place: Place::Core,
        publish: &[
            "chancery.v1.internal.objects.put",
            "$JS.API.STREAM.INFO.OBJECTS",
            "$JS.API.STREAM.MSG.GET.OBJECTS",
            "$JS.API.DIRECT.GET.OBJECTS",
        ],
        subscribe: &["chancery.v1.internal.objects.stored", OWN_INBOX],
        answers: None,
        subscriptions: -1,
        payload: -1,
        why: "writes and reads certificates' DER",
    },
    Template {
        role: Role::Keys,
        name: "keys",
        place: Place::Core,
        publish: &[
            "chancery.v1.internal.keys.put",
            "$JS.API.STREAM.INFO.KEYS",
            "$JS.API.STREAM.MSG.GET.KEYS",
            "$JS.API.STREAM.MSG.DELETE.KEYS",
            "$JS.API.DIRECT.GET.KEYS",
        ],
        subscribe: &["chancery.v1.internal.keys.stored", OWN_INBOX],
        answers: None,
        subscriptions: -1,
        payload: -1,
        why: "the vault: writes, reads and erases sealed keys",
    },
    Template {
        role: Role::Queue,
        name: "queue",
        place: Place::Core,
        publish: &[
            "chancery.v1.internal.queue.work",
            "$JS.API.STREAM.INFO.QUEUE",
            "$JS.API.CONSUMER.MSG.NEXT.QUEUE.worker",
            "$JS.ACK.QUEUE.worker.>",
        ],
        subscribe: &[OWN_INBOX],
        answers: None,
        subscriptions: -1,
        payload: -1,
        why: "puts checked and sealed commands into the work queue and takes them out",
    },
    Template {
        role: Role::Distribution,
        name: "distribution",
        place: Place::Core,
        publish: &["chancery.v1.region.*.delta"],
        subscribe: &["chancery.v1.edge.>"],
        answers: Some(Answers {
            max: 1,
            seconds: 30,
        }),
        subscriptions: -1,
        payload: -1,
        why: "publishes the regions' signed feeds and answers edges",
    },
    Template {
        role: Role::Operator,
        name: "operator",
        place: Place::Platform,
        publish: &[
            "chancery.v1.cmd.*.*.*",
            "chancery.v1.queue.*.*.*",
            "chancery.v1.query.*.*",
        ],
        subscribe: &["chancery.v1.evt.>", "_INBOX.>"],
        answers: None,
        subscriptions: 1_000,
        payload: USER_PAYLOAD,
        why: "commands and reads for every project; the registrar checks the rights once more",
    },
    Template {
        role: Role::Auditor,
        name: "auditor",
        place: Place::Platform,
        publish: &["chancery.v1.query.*.*"],
        subscribe: &["chancery.v1.evt.>", "_INBOX.>"],
        answers: None,
        subscriptions: 1_000,
        payload: USER_PAYLOAD,
        why: "reads for every project and changes nothing",
    },
    Template {
        role: Role::Delegate,
        name: "delegate",
        place: Place::Platform,
        publish: &[
            "chancery.v1.cmd.*.{{tag(cmd)}}",
            "chancery.v1.queue.*.{{tag(cmd)}}",
            "chancery.v1.query.*.{{tag(query)}}",
        ],
        subscribe: &["chancery.v1.evt.*.{{tag(evt)}}", "_INBOX.>"],
        answers: None,
        subscriptions: 1_000,
        payload: USER_PAYLOAD,
        why: "an operator's user with the rights that its tags name",
    },
    Template {
        role: Role::Member,
        name: "member",
        place: Place::Project,
        publish: &[
            "chancery.v1.cmd.{{account-name()}}.*.*",
            "chancery.v1.queue.{{account-name()}}.*.*",
            "chancery.v1.query.{{account-name()}}.*",
        ],
        subscribe: &["chancery.v1.evt.{{account-name()}}.>", "_INBOX.>"],
        answers: None,
        subscriptions: 64,
        payload: USER_PAYLOAD,
        why: "a project's user: its own commands, queries and events, and nothing else",
    },
    Template {
        role: Role::Reader,
        name: "reader",
        place: Place::Project,
        publish: &["chancery.v1.query.{{account-name()}}.*"],
        subscribe: &["chancery.v1.evt.{{account-name()}}.>", "_INBOX.>"],
        answers: None,
        subscriptions: 64,
        payload: USER_PAYLOAD,
        why: "a project's user who reads only",
    },
    Template {
        role: Role::Limited,
        name: "limited",
        place: Place::Project,
        publish: &[
            "chancery.v1.cmd.{{account-name()}}.{{tag(cmd)}}",
            "chancery.v1.queue.{{account-name()}}.{{tag(cmd)}}",
            "chancery.v1.query.{{account-name()}}.{{tag(query)}}",
        ],
        subscribe: &[
            "chancery.v1.evt.{{account-name()}}.{{tag(evt)}}",
            "_INBOX.>",
        ],
        answers: None,
        subscriptions: 64,
        payload: USER_PAYLOAD,
        why: "a project's user with the rights that its tags name",
    },
    Template {
        role: Role::Edge,
        name: "edge",
        place: Place::Edges,
        publish: &[
            "chancery.v1.edge.{{tag(region)}}.{{tag(edge)}}.sync",
            "chancery.v1.edge.{{tag(region)}}.{{tag(edge)}}.chunk",
            "chancery.v1.edge.{{tag(region)}}.{{tag(edge)}}.report",
        ],
        subscribe: &[
            "chancery.v1.region.{{tag(region)}}.>",
            "_INBOX.{{tag(region)}}.{{tag(edge)}}.>",
        ],
        answers: None,
        subscriptions: 16,
        payload: -1,
        why: "one edge: its own reports and requests, its own region's feed, its own inbox",
    },
    Template {
        role: Role::Enrol,
        name: "enrol",
        place: Place::Edges,
        publish: &["chancery.v1.edge.{{tag(region)}}.{{tag(edge)}}.enrol"],
        subscribe: &["_INBOX.{{tag(region)}}.{{tag(edge)}}.>"],
        answers: None,
        subscriptions: 4,
        payload: 16 * 1024,
        why: "a short-lived token that can ask for enrolment as one edge and for nothing else",
    },
];

impl Role {
    /// The role's permissions.
    #[must_use]
    pub fn template(self) -> &'static Template {
        TEMPLATES
            .iter()
            .find(|template| template.role == self)
            .expect("every role has a template; a test holds that")
    }

    /// The role's name in JWTs and in `nats.conf`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.template().name
    }

    /// The role of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Role> {
        TEMPLATES
            .iter()
            .find(|template| template.name == name)
            .map(|template| template.role)
    }
}

/// How two accounts are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Requests of the importing account, answered in CORE; the server says who asked.
    Service,
    /// Messages from CORE to the importing account.
    Stream,
}

/// One export of CORE: the only ways in and out of it.
#[derive(Debug, Clone, Copy)]
pub struct Export {
    /// The second token of the subject, after the prefix's two.
    pub word: &'static str,
    /// Its direction.
    pub flow: Flow,
    /// Whether EDGES imports it; projects import the others.
    pub for_edges: bool,
}

/// What CORE exports. A project imports its own part (`chancery.v1.<word>.<project>.>`), `platform` and EDGES the whole.
pub const EXPORTS: &[Export] = &[
    Export {
        word: "cmd",
        flow: Flow::Service,
        for_edges: false,
    },
    Export {
        word: "queue",
        flow: Flow::Service,
        for_edges: false,
    },
    Export {
        word: "query",
        flow: Flow::Service,
        for_edges: false,
    },
    Export {
        word: "evt",
        flow: Flow::Stream,
        for_edges: false,
    },
    Export {
        word: "edge",
        flow: Flow::Service,
        for_edges: true,
    },
    Export {
        word: "region",
        flow: Flow::Stream,
        for_edges: true,
    },
];

/// The places that differ between the committed `nats.conf` and a running server's.
#[derive(Debug, Clone)]
pub struct Placement {
    /// Address and port to listen on.
    pub listen: String,
    /// The server's name.
    pub server_name: String,
    /// The folder of the streams and of the accounts' JWTs.
    pub store: String,
    /// The log file, if not the standard error.
    pub log: Option<String>,
    /// The server's process file.
    pub pid: Option<String>,
}

impl Default for Placement {
    /// The placement of the committed file.
    fn default() -> Placement {
        Placement {
            listen: "127.0.0.1:4222".to_owned(),
            server_name: "chancery".to_owned(),
            store: "./jetstream".to_owned(),
            log: None,
            pid: None,
        }
    }
}

/// Renders `nats.conf`: the server's settings, and in comments the whole security map.
#[must_use]
pub fn render_nats_conf(placement: &Placement) -> String {
    let mut text = String::with_capacity(16 * 1024);
    let quoted = |value: &str| serde_json::to_string(value).expect("text is always JSON");
    text.push_str(
        "# The nats-server's settings, and below them, as comments, who may publish and subscribe what.\n\
         #\n\
         # Accounts and users are JWTs (operator mode), so their permissions cannot stand here as settings. Both the JWTs\n\
         # and these comments come from one table, crates/bus/src/templates.rs; tests compare this file with the\n\
         # table, decode the JWTs against it and try each refusal on a real server.\n\n",
    );
    let _ = writeln!(text, "listen: {}", quoted(&placement.listen));
    let _ = writeln!(text, "server_name: {}", quoted(&placement.server_name));
    text.push_str("max_payload: 1MB\n");
    if let Some(log) = &placement.log {
        let _ = writeln!(text, "log_file: {}", quoted(log));
        text.push_str("logfile_size_limit: 16MB\nlogfile_max_num: 3\n");
    }
    if let Some(pid) = &placement.pid {
        let _ = writeln!(text, "pid_file: {}", quoted(pid));
    }
    text.push_str("\n# Each write is synced before it is acknowledged; the default of two minutes lost whole streams.\n");
    let _ = writeln!(
        text,
        "jetstream {{\n  store_dir: {}\n  sync_interval: always\n}}",
        quoted(&placement.store)
    );
    text.push_str("\n# The operator, the system account and the first accounts; made at the first start.\ninclude \"identity.conf\"\n");
    let accounts = format!("{}/accounts", placement.store);
    let _ = writeln!(
        text,
        "resolver {{\n  type: full\n  dir: {}\n  allow_delete: true\n  interval: \"2m\"\n}}",
        quoted(&accounts)
    );

    text.push_str(
        "\n# Accounts\n\
         #\n\
         # SYS        the server's own\n\
         # CORE       every stream and everything internal\n\
         # EDGES      the edges of all regions\n\
         # platform   the operator's project\n\
         # <project>  one account for each project, without JetStream\n\
         #\n\
         # They are joined only by these exports of CORE. Each service import shares who asked (Nats-Request-Info).\n#\n",
    );
    for export in EXPORTS {
        let flow = match export.flow {
            Flow::Service => "service",
            Flow::Stream => "stream ",
        };
        let importers = if export.for_edges {
            "EDGES".to_owned()
        } else {
            format!(
                "platform; <project> imports {}{}.<project>.>",
                crate::PREFIX,
                export.word
            )
        };
        let _ = writeln!(
            text,
            "#   {flow} {}{}.>  to {importers}",
            crate::PREFIX,
            export.word
        );
    }
    text.push_str("\n# Roles\n");
    for template in TEMPLATES {
        let _ = writeln!(
            text,
            "#\n# {} (account {}): {}",
            template.name,
            template.place.word(),
            template.why
        );
        for subject in template.publish {
            let _ = writeln!(text, "#   publish    {subject}");
        }
        if template.publish.is_empty() {
            text.push_str("#   publish    nothing\n");
        }
        for subject in template.subscribe {
            let _ = writeln!(text, "#   subscribe  {subject}");
        }
        if let Some(answers) = template.answers {
            let _ = writeln!(
                text,
                "#   answers    {} to each request, within {} s",
                answers.max, answers.seconds
            );
        }
        if template.subscriptions >= 0 || template.payload >= 0 {
            let limit = |value: i64| {
                if value < 0 {
                    "no limit".to_owned()
                } else {
                    value.to_string()
                }
            };
            let _ = writeln!(
                text,
                "#   limits     {} subscriptions, {} bytes a message",
                limit(template.subscriptions),
                limit(template.payload)
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_has_exactly_one_template() {
        for template in TEMPLATES {
            assert_eq!(
                TEMPLATES
                    .iter()
                    .filter(|other| other.role == template.role)
                    .count(),
                1,
                "{}",
                template.name
            );
            assert_eq!(
                TEMPLATES
                    .iter()
                    .filter(|other| other.name == template.name)
                    .count(),
                1,
                "{}",
                template.name
            );
            assert_eq!(Role::from_name(template.name), Some(template.role));
            assert_eq!(template.role.template().name, template.name);
        }
    }

    #[test]
    fn no_role_outside_core_reaches_core_or_the_stream_api() {
        for template in TEMPLATES {
            if template.place == Place::Core || template.place == Place::System {
                continue;
            }
            for subject in template.publish.iter().chain(template.subscribe) {
                assert!(
                    !subject.starts_with('$') && *subject != ">",
                    "{}: {subject}",
                    template.name
                );
                for word in ["log", "internal"] {
                    assert!(
                        !subject.starts_with(&format!("{}{word}", crate::PREFIX)),
                        "{}: {subject}",
                        template.name
                    );
                }
            }
        }
    }

    #[test]
    fn the_committed_map_is_the_rendered_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../nats.conf");
        let rendered = render_nats_conf(&Placement::default());
        if std::env::var_os("CHANCERY_WRITE_GOLDEN").is_some() {
            std::fs::write(path, &rendered).expect("the repository can be written");
        }
        let committed = std::fs::read_to_string(path).expect("nats.conf at the repository's root");
        assert!(
            committed == rendered,
            "nats.conf differs from the templates; CHANCERY_WRITE_GOLDEN=1 renders it anew"
        );
    }
}
