//! The door: what projects and edges ask comes in here, and nothing else does.
//!
//! The door knows bytes, rights and load. It refuses what is not exactly of the documented form, says who asked from
//! the one source that cannot be forged, and hands the rest on. What it refuses is answered and counted, and neither
//! logged nor quoted.
//!
//! **Who asked** is the header `Nats-Request-Info`, which the server sets on the shared import: the account, and the
//! user JWT embedded in it, whose signature by one of our scoped keys is checked. The header's field `user` is what the
//! client chose to call itself and is not read. Header lines can be smuggled past the server, so the block is taken
//! only as a whole: CRLF alone ends a line, a known name stands at most once, each value has a strict grammar.
//!
//! The connection is the module `listener`'s, which no message can break, so projects need not be spread over connections
//! to be kept apart; a second one carries on while the first reconnects. Load is kept apart by a number of requests in
//! flight for each project, beyond which only that project hears `busy`.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, str,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinHandle};
use uuid::Uuid;

use crate::{
    PREFIX,
    connect::{Login, unix_now},
    identity::{EXPORT, PLATFORM, Rights, VerifiedUser, Verifier, is_token},
    listener::{Frame, Listener, Message, addresses, publish_frame},
    templates::{Place, Role},
};

/// The name under which `$SRV` lists the door (ADR-32).
pub const SERVICE: &str = "chancery";

/// Bytes of a body at most.
pub const BODY_LIMIT: usize = 256 * 1024;

/// Bytes of a header block at most; the server's part of it holds the user's JWT.
const HEADER_LIMIT: usize = 32 * 1024;

/// Bytes of an answer at most: the server closes a connection that sends more than its limit of 1 MB.
pub const ANSWER_LIMIT: usize = 1_000_000;

/// Refusals that wait to be written; further ones are counted and not sent.
const REFUSALS_WAITING: usize = 1_024;

/// When a caller that heard `busy` should try again, in milliseconds.
const RETRY_AFTER_MS: u64 = 200;

/// Why a door cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Only plain `nats://host:port` addresses are understood.
    #[error("the NATS address must be of the form nats://host:port")]
    Address,
    /// No connection came about in time.
    #[error("the door could not connect to NATS within {0} seconds")]
    NotConnected(u64),
}

/// What the door needs to open.
#[derive(Debug, Clone)]
pub struct Config {
    /// The server's URL, or several, separated by commas.
    pub url: String,
    /// The login: role `door`, or `distribution` for the edges' door.
    pub login: Login,
    /// Connections that share the requests.
    pub connections: usize,
    /// Requests in flight over all, beyond which everybody hears `busy`.
    pub in_flight: usize,
    /// Requests in flight of one project, beyond which it hears `busy`.
    pub in_flight_each: usize,
    /// Bytes of bodies in flight over all; one project may hold a quarter of them.
    pub in_flight_bytes: usize,
}

impl Config {
    /// The usual numbers: two connections, 4,096 requests and 128 MiB in flight, 1,024 and 32 MiB of one project.
    #[must_use]
    pub fn new(url: &str, login: Login) -> Config {
        Config {
            url: url.to_owned(),
            login,
            connections: 2,
            in_flight: 4_096,
            in_flight_each: 1_024,
            in_flight_bytes: 128 * 1024 * 1024,
        }
    }
}

/// What is asked of the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Answered when it is done.
    Command,
    /// Answered when it is durable.
    Queue,
    /// Changes nothing.
    Query,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Command => "cmd",
            Kind::Queue => "queue",
            Kind::Query => "query",
        }
    }
}

/// Who asked, as the server and our own signature say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// The project of the asker's account.
    pub project: String,
    /// The opaque id of the actor.
    pub actor: String,
    /// Whether the account is the operator's.
    pub operator: bool,
    /// What the asker's credentials allow. The server has enforced it, and the door once more.
    pub rights: Rights,
}

/// One command or query of a project's user or an operator.
#[derive(Debug)]
pub struct Request {
    /// What kind of thing is asked.
    pub kind: Kind,
    /// The project that it is about: the subject's.
    pub project: String,
    /// The noun of a command; the view of a query.
    pub noun: String,
    /// The verb of a command; empty for a query.
    pub verb: String,
    /// Who asks.
    pub asker: Asker,
    /// The idempotency key, if the header `Nats-Msg-Id` carries one.
    pub id: Option<Uuid>,
    /// The W3C trace context, if the header `traceparent` carries one.
    pub traceparent: Option<String>,
    /// The body, at most [`BODY_LIMIT`] bytes, otherwise unread.
    pub body: Bytes,
    /// Takes the one answer.
    pub responder: Responder,
}

impl actix::Message for Request {
    type Result = ();
}

/// One request of an edge.
#[derive(Debug)]
pub struct EdgeRequest {
    /// The edge's region, as its JWT and the subject say.
    pub region: String,
    /// The edge's name.
    pub edge: String,
    /// `enrol`, `sync`, `chunk` or `report`.
    pub verb: String,
    /// The public key of the user: the one-time token's for `enrol`, else the edge's.
    pub user: String,
    /// The body, at most 1 MB, otherwise unread.
    pub body: Bytes,
    /// Takes the one answer.
    pub responder: Responder,
}

impl actix::Message for EdgeRequest {
    type Result = ();
}

/// Where requests go: a bounded mailbox or channel. A full one makes the asker hear `busy`.
pub enum Intake<T: actix::Message<Result = ()> + Send + 'static> {
    /// A channel.
    Channel(mpsc::Sender<T>),
    /// An actor's mailbox.
    Mailbox(actix::Recipient<T>),
}

impl<T: actix::Message<Result = ()> + Send + 'static> fmt::Debug for Intake<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Intake")
    }
}

impl<T: actix::Message<Result = ()> + Send + 'static> Intake<T> {
    /// Hands over without waiting, or gives the request back.
    fn offer(&self, request: T) -> Result<(), T> {
        match self {
            Intake::Channel(channel) => channel.try_send(request).map_err(|error| match error {
                mpsc::error::TrySendError::Full(request)
                | mpsc::error::TrySendError::Closed(request) => request,
            }),
            Intake::Mailbox(mailbox) => mailbox.try_send(request).map_err(|error| match error {
                actix::prelude::SendError::Full(request)
                | actix::prelude::SendError::Closed(request) => request,
            }),
        }
    }
}

/// Why the door said no. Its words never hold anything of what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    code: &'static str,
    status: u16,
    title: &'static str,
    detail: &'static str,
    hint: &'static str,
}

impl Refusal {
    const fn malformed(detail: &'static str, hint: &'static str) -> Refusal {
        Refusal {
            code: "malformed",
            status: 400,
            title: "The request is malformed",
            detail,
            hint,
        }
    }

    const fn unauthorized(detail: &'static str) -> Refusal {
        Refusal {
            code: "unauthorized",
            status: 403,
            title: "Not allowed",
            detail,
            hint: "",
        }
    }

    const TOO_LARGE: Refusal = Refusal {
        code: "too_large",
        status: 413,
        title: "Too large",
        detail: "the body is larger than 256 KiB",
        hint: "",
    };

    const BUSY: Refusal = Refusal {
        code: "busy",
        status: 503,
        title: "Busy",
        detail: "too many requests are in flight",
        hint: "try again with the same id",
    };

    const ANSWER_TOO_LARGE: Refusal = Refusal {
        code: "too_large",
        status: 413,
        title: "Too large",
        detail: "the answer is larger than one message can be",
        hint: "ask for a smaller page",
    };

    /// The problem document (RFC 9457), in the same shape as all others.
    fn to_json(self) -> String {
        let mut problem = json!({
            "type": format!("urn:chancery:error:{}", self.code), "title": self.title, "status": self.status,
            "code": self.code, "detail": self.detail,
            "reasons": [{"code": self.code, "message": self.detail, "hint": self.hint}],
        });
        if self.code == "busy" {
            problem["retry_after_ms"] = json!(RETRY_AFTER_MS);
        }
        problem.to_string()
    }
}

/// What the door has seen, since it opened. The same numbers for operators, tests and `$SRV.STATS`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Requests handed on, by kind; `edge` for edges.
    pub accepted: BTreeMap<&'static str, u64>,
    /// Refusals, by code.
    pub refused: BTreeMap<&'static str, u64>,
    /// Requests whose responder was dropped without an answer.
    pub unanswered: u64,
    /// Answers that were not written because the connection was gone or the asker named no reply subject.
    pub undelivered: u64,
    /// Requests in flight.
    pub in_flight: usize,
    /// Bytes of their bodies.
    pub in_flight_bytes: usize,
    /// Nanoseconds between request and answer, summed.
    pub processing_ns: u64,
}

struct Shared {
    verifier: Arc<Verifier>,
    sink: Sink,
    in_flight: usize,
    in_flight_each: usize,
    in_flight_bytes: usize,
    counts: Mutex<Counts>,
    /// Requests in flight by project (or region and edge); an entry goes with its last request.
    flights: Mutex<HashMap<String, Flown>>,
    id: String,
    started: String,
}

enum Sink {
    Projects(Intake<Request>),
    Edges(Intake<EdgeRequest>),
}

impl Shared {
    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flights(&self) -> std::sync::MutexGuard<'_, HashMap<String, Flown>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests and bytes of bodies in flight of one project.
#[derive(Debug, Clone, Copy, Default)]
struct Flown {
    requests: usize,
    bytes: usize,
}

/// One request's place among those in flight; dropping it frees the place.
struct Flight {
    shared: Arc<Shared>,
    who: String,
    bytes: usize,
}

impl Flight {
    fn board(shared: &Arc<Shared>, who: String, bytes: usize) -> Result<Flight, Refusal> {
        let mut counts = shared.counts();
        let mut flights = shared.flights();
        let own = flights.get(&who).copied().unwrap_or_default();
        if counts.in_flight >= shared.in_flight
            || counts.in_flight_bytes + bytes > shared.in_flight_bytes
            || own.requests >= shared.in_flight_each
            || own.bytes + bytes > shared.in_flight_bytes / 4
        {
            return Err(Refusal::BUSY);
        }
        counts.in_flight += 1;
        counts.in_flight_bytes += bytes;
        flights.insert(
            who.clone(),
            Flown {
                requests: own.requests + 1,
                bytes: own.bytes + bytes,
            },
        );
        Ok(Flight {
            shared: shared.clone(),
            who,
            bytes,
        })
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut counts = self.shared.counts();
        let mut flights = self.shared.flights();
        counts.in_flight -= 1;
        counts.in_flight_bytes -= self.bytes;
        if let Some(own) = flights.get_mut(&self.who) {
            own.requests -= 1;
            own.bytes -= self.bytes;
            if own.requests == 0 {
                flights.remove(&self.who);
            }
        }
    }
}

/// Takes the one answer to a request. Dropped without one it leaves the asker to try again with the same id.
pub struct Responder {
    reply: Option<Bytes>,
    generation: u64,
    frames: mpsc::Sender<Frame>,
    began: Instant,
    flight: Option<Flight>,
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder")
            .field("reply", &self.reply.is_some())
            .finish_non_exhaustive()
    }
}

impl Responder {
    /// Answers with a JSON document.
    pub fn answer(self, body: &[u8]) {
        self.send(&[("Content-Type", "application/json")], body);
    }

    /// Ends a request that by its kind has no answer, such as an edge's report.
    pub fn silent(mut self) {
        self.flight = None;
    }

    /// Answers with a problem document, whose status and title micro-service clients read from headers.
    /// Characters that a header cannot hold are left out of the title.
    pub fn problem(self, status: u16, title: &str, body: &[u8]) {
        let title: String = title
            .chars()
            .filter(|c| c.is_ascii_graphic() || *c == ' ')
            .take(200)
            .collect();
        self.send(
            &[
                ("Content-Type", "application/problem+json"),
                ("Nats-Service-Error-Code", &status.to_string()),
                ("Nats-Service-Error", &title),
            ],
            body,
        );
    }

    /// Answers that there is too much to do now.
    pub fn busy(self) {
        self.refuse(Refusal::BUSY);
    }

    fn refuse(self, refusal: Refusal) {
        if let Some(flight) = &self.flight {
            *flight
                .shared
                .counts()
                .refused
                .entry(refusal.code)
                .or_default() += 1;
        }
        self.problem(refusal.status, refusal.title, refusal.to_json().as_bytes());
    }

    fn send(mut self, headers: &[(&str, &str)], body: &[u8]) {
        if body.len() > ANSWER_LIMIT {
            return self.refuse(Refusal::ANSWER_TOO_LARGE);
        }
        let Some(flight) = self.flight.take() else {
            return;
        };
        let frame = self
            .reply
            .as_ref()
            .map(|reply| publish_frame(reply, headers, body));
        // There is room for as many frames as there are places in flight, so only a connection that does not drain
        // loses one; its asker tries again.
        let sent = frame.is_some_and(|bytes| {
            self.frames
                .try_send(Frame {
                    generation: self.generation,
                    bytes,
                })
                .is_ok()
        });
        let mut counts = flight.shared.counts();
        counts.undelivered += u64::from(!sent);
        let took = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        counts.processing_ns = counts.processing_ns.saturating_add(took);
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Some(flight) = &self.flight {
            flight.shared.counts().unanswered += 1;
        }
    }
}

/// An open door. Dropping it closes it; requests in flight stay unanswered then.
pub struct Door {
    shared: Arc<Shared>,
    generations: Vec<Arc<AtomicU64>>,
    tasks: Vec<JoinHandle<()>>,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door")
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Door {
    /// Opens the door to projects: `cmd`, `queue` and `query`, and `$SRV`. Returns when every connection listens.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn to_projects(
        config: Config,
        verifier: Arc<Verifier>,
        intake: Intake<Request>,
    ) -> Result<Door, Error> {
        let queue = Some("door");
        let mut subscriptions: Vec<_> = ["cmd", "queue", "query"]
            .iter()
            .map(|word| (format!("{PREFIX}{word}.>"), queue))
            .collect();
        // Discovery is answered by every instance, so it has no queue group. One connection is one instance.
        let discovery: Vec<_> = ["PING", "INFO", "STATS"]
            .iter()
            .flat_map(|verb| {
                [
                    format!("$SRV.{verb}"),
                    format!("$SRV.{verb}.{SERVICE}"),
                    format!("$SRV.{verb}.{SERVICE}.*"),
                ]
            })
            .map(|subject| (subject, None))
            .collect();
        let plain = subscriptions.clone();
        subscriptions.extend(discovery);
        Door::open(
            config,
            verifier,
            Sink::Projects(intake),
            subscriptions,
            plain,
        )
        .await
    }

    /// Opens the door to edges. Returns when every connection listens.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn to_edges(
        config: Config,
        verifier: Arc<Verifier>,
        intake: Intake<EdgeRequest>,
    ) -> Result<Door, Error> {
        let subscriptions = vec![(format!("{PREFIX}edge.>"), Some("distribution"))];
        Door::open(
            config,
            verifier,
            Sink::Edges(intake),
            subscriptions.clone(),
            subscriptions,
        )
        .await
    }

    async fn open(
        config: Config,
        verifier: Arc<Verifier>,
        sink: Sink,
        first: Vec<(String, Option<&'static str>)>,
        others: Vec<(String, Option<&'static str>)>,
    ) -> Result<Door, Error> {
        const LIMIT: Duration = Duration::from_secs(10);
        let addresses = addresses(&config.url).ok_or(Error::Address)?;
        let shared = Arc::new(Shared {
            verifier,
            sink,
            in_flight: config.in_flight,
            in_flight_each: config.in_flight_each,
            in_flight_bytes: config.in_flight_bytes,
            counts: Mutex::default(),
            flights: Mutex::default(),
            id: Uuid::new_v4().simple().to_string(),
            started: rfc3339(unix_now()),
        });
        let mut door = Door {
            shared,
            generations: Vec::new(),
            tasks: Vec::new(),
        };
        for index in 0..config.connections.max(1) {
            let listener = Listener {
                addresses: addresses.clone(),
                login: config.login.clone(),
                subscriptions: if index == 0 {
                    first.clone()
                } else {
                    others.clone()
                },
            };
            let (answers, answers_waiting) = mpsc::channel(config.in_flight.max(1));
            let (refusals, refusals_waiting) = mpsc::channel(REFUSALS_WAITING);
            let (shared, generation) = (door.shared.clone(), Arc::new(AtomicU64::new(0)));
            door.generations.push(generation.clone());
            door.tasks.push(tokio::spawn(async move {
                let take =
                    |message, generation| shared.take(message, generation, &answers, &refusals);
                listener
                    .run(&generation, answers_waiting, refusals_waiting, take)
                    .await;
            }));
        }
        let deadline = Instant::now() + LIMIT;
        while !door.is_open() {
            if Instant::now() > deadline {
                return Err(Error::NotConnected(LIMIT.as_secs()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(door)
    }

    /// Whether every connection listens at this moment.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.generations
            .iter()
            .all(|generation| generation.load(Ordering::SeqCst) % 2 == 1)
    }

    /// How often a connection was lost since the door opened.
    #[must_use]
    pub fn reconnects(&self) -> u64 {
        self.generations
            .iter()
            .map(|generation| generation.load(Ordering::SeqCst) / 2)
            .sum()
    }

    /// What the door has seen.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.counts().clone()
    }
}

impl Shared {
    /// Judges one message: hands it on, or refuses it. Never waits.
    fn take(
        self: &Arc<Self>,
        message: Message,
        generation: u64,
        answers: &mpsc::Sender<Frame>,
        refusals: &mpsc::Sender<Frame>,
    ) {
        let frame = |headers: &[(&str, &str)], body: &[u8]| {
            message.reply.as_ref().map(|reply| Frame {
                generation,
                bytes: publish_frame(reply, headers, body),
            })
        };
        if let Some(question) = message.subject.strip_prefix(b"$SRV.".as_slice()) {
            if let (Some(answer), true) = (self.describe(question), message.reply.is_some()) {
                let _ = frame(
                    &[("Content-Type", "application/json")],
                    answer.to_string().as_bytes(),
                )
                .map(|frame| refusals.try_send(frame));
            }
            return;
        }
        let responder = |flight| Responder {
            // Copied, so that one request in flight does not keep the whole buffer it came in.
            reply: message.reply.as_deref().map(Bytes::copy_from_slice),
            generation,
            frames: answers.clone(),
            began: Instant::now(),
            flight: Some(flight),
        };
        if let Err(refusal) = self.judge(&message, responder) {
            *self.counts().refused.entry(refusal.code).or_default() += 1;
            let status = refusal.status.to_string();
            let headers = [
                ("Content-Type", "application/problem+json"),
                ("Nats-Service-Error-Code", status.as_str()),
                ("Nats-Service-Error", refusal.title),
            ];
            let _ =
                frame(&headers, refusal.to_json().as_bytes()).map(|frame| refusals.try_send(frame));
        }
    }

    fn judge(
        self: &Arc<Self>,
        message: &Message,
        responder: impl FnOnce(Flight) -> Responder,
    ) -> Result<(), Refusal> {
        let headers = Headers::parse(message.header.as_deref().unwrap_or_default())?;
        let user = headers.asker(&self.verifier)?;
        let subject = str::from_utf8(&message.subject)
            .ok()
            .and_then(|subject| subject.strip_prefix(PREFIX))
            .ok_or(Refusal::malformed(
                "the subject is not of the documented form",
                "chancery.v1.cmd.<project>.<noun>.<verb>",
            ))?;
        let words: Vec<&str> = subject.split('.').collect();
        if !words.iter().all(|word| is_token(word)) {
            return Err(Refusal::malformed(
                "a word of the subject has other characters than a-z, 0-9 and -",
                "",
            ));
        }
        match &self.sink {
            Sink::Projects(intake) => {
                let (kind, project, noun, verb) = match words[..] {
                    ["cmd", project, noun, verb] => (Kind::Command, project, noun, verb),
                    ["queue", project, noun, verb] => (Kind::Queue, project, noun, verb),
                    ["query", project, view] => (Kind::Query, project, view, ""),
                    _ => {
                        return Err(Refusal::malformed(
                            "the subject has the wrong number of words",
                            "",
                        ));
                    }
                };
                let place = user.role.template().place;
                let own = user
                    .project
                    .as_deref()
                    .ok_or(Refusal::unauthorized("this user has no project"))?;
                let operator = place == Place::Platform && own == PLATFORM;
                if own != project && !operator {
                    return Err(Refusal::unauthorized(
                        "the subject names another project than the user's",
                    ));
                }
                let asked = if kind == Kind::Query {
                    vec![noun]
                } else {
                    vec![noun, verb]
                };
                if !user.rights.allow(kind.word(), &asked) {
                    return Err(Refusal::unauthorized(match asked == EXPORT {
                        true => {
                            "taking private keys out is a right of its own, which this user was not given by its name"
                        }
                        false => "the user's rights do not include this",
                    }));
                }
                if message.body.len() > BODY_LIMIT {
                    return Err(Refusal::TOO_LARGE);
                }
                let responder = responder(Flight::board(self, own.to_owned(), message.body.len())?);
                let request = Request {
                    kind,
                    project: project.to_owned(),
                    noun: noun.to_owned(),
                    verb: verb.to_owned(),
                    asker: Asker {
                        project: own.to_owned(),
                        actor: user.actor.clone(),
                        operator,
                        rights: user.rights.clone(),
                    },
                    id: headers.id,
                    traceparent: headers.traceparent.map(str::to_owned),
                    body: Bytes::copy_from_slice(&message.body),
                    responder,
                };
                self.hand_on(kind.word(), intake, request, |request| request.responder)
            }
            Sink::Edges(intake) => {
                let ["edge", region, edge, verb] = words[..] else {
                    return Err(Refusal::malformed(
                        "the subject has the wrong number of words",
                        "",
                    ));
                };
                let wanted = match verb {
                    "enrol" => Role::Enrol,
                    "sync" | "chunk" | "report" => Role::Edge,
                    _ => {
                        return Err(Refusal::malformed(
                            "there is no such request of an edge",
                            "",
                        ));
                    }
                };
                let is_that_edge = user
                    .edge
                    .as_ref()
                    .is_some_and(|(own_region, own_edge)| own_region == region && own_edge == edge);
                if user.role != wanted || !is_that_edge {
                    return Err(Refusal::unauthorized(
                        "the subject names another edge than the user's",
                    ));
                }
                let responder = responder(Flight::board(
                    self,
                    format!("{region}.{edge}"),
                    message.body.len(),
                )?);
                let request = EdgeRequest {
                    region: region.to_owned(),
                    edge: edge.to_owned(),
                    verb: verb.to_owned(),
                    user: user.subject.clone(),
                    body: Bytes::copy_from_slice(&message.body),
                    responder,
                };
                self.hand_on("edge", intake, request, |request| request.responder)
            }
        }
    }

    fn hand_on<T: actix::Message<Result = ()> + Send + 'static>(
        &self,
        kind: &'static str,
        intake: &Intake<T>,
        request: T,
        responder: impl FnOnce(T) -> Responder,
    ) -> Result<(), Refusal> {
        match intake.offer(request) {
            Ok(()) => {
                *self.counts().accepted.entry(kind).or_default() += 1;
                Ok(())
            }
            Err(request) => {
                // The refusal is answered by the caller; the responder only gives its place back.
                responder(request).flight = None;
                Err(Refusal::BUSY)
            }
        }
    }

    /// The answers of ADR-32: `PING`, `INFO` and `STATS`, for all, for this service, or for this instance.
    fn describe(&self, question: &[u8]) -> Option<Value> {
        let mut words = str::from_utf8(question).ok()?.split('.');
        let verb = words.next()?;
        if words.next().is_some_and(|name| name != SERVICE)
            || words.next().is_some_and(|id| id != self.id)
        {
            return None;
        }
        let mut answer = json!({
            "name": SERVICE, "id": self.id, "version": env!("CARGO_PKG_VERSION"), "metadata": {},
        });
        let endpoint = |word: &str| json!({"name": word, "subject": format!("{PREFIX}{word}.>"), "queue_group": "door"});
        match verb {
            "PING" => answer["type"] = json!("io.nats.micro.v1.ping_response"),
            "INFO" => {
                answer["type"] = json!("io.nats.micro.v1.info_response");
                answer["description"] = json!("certificates of projects: commands and queries");
                answer["endpoints"] = ["cmd", "queue", "query"]
                    .into_iter()
                    .map(endpoint)
                    .collect();
            }
            "STATS" => {
                let counts = self.counts().clone();
                answer["type"] = json!("io.nats.micro.v1.stats_response");
                answer["started"] = json!(self.started);
                let refused: u64 = counts.refused.values().sum();
                let all: u64 = counts.accepted.values().sum();
                let stats = |word: &'static str| {
                    let accepted = counts.accepted.get(word).copied().unwrap_or(0);
                    let mut endpoint = endpoint(word);
                    endpoint["num_requests"] = json!(accepted);
                    // Refusals are counted before their kind is known, so they are the first endpoint's.
                    endpoint["num_errors"] = json!(if word == "cmd" { refused } else { 0 });
                    let share = counts.processing_ns.checked_div(all).unwrap_or(0);
                    endpoint["average_processing_time"] = json!(share);
                    endpoint["processing_time"] = json!(share.saturating_mul(accepted));
                    endpoint
                };
                answer["endpoints"] = ["cmd", "queue", "query"].into_iter().map(stats).collect();
            }
            _ => return None,
        }
        Some(answer)
    }
}

/// Whether a request with this header block is looked at any further: only headers that are known, each at most once, each
/// value of its grammar.
pub fn takes_headers(block: &[u8]) -> bool {
    Headers::parse(block).is_ok()
}

/// The headers that are known, each at most once.
#[derive(Debug, Default)]
struct Headers<'a> {
    info: Option<&'a str>,
    id: Option<Uuid>,
    traceparent: Option<&'a str>,
    has_content_type: bool,
}

impl<'a> Headers<'a> {
    fn parse(block: &'a [u8]) -> Result<Headers<'a>, Refusal> {
        const FORM: Refusal = Refusal::malformed("the headers are not of the documented form", "");
        const UNKNOWN: Refusal = Refusal::malformed(
            "a header is not one of those that are taken",
            "Nats-Msg-Id, traceparent and Content-Type",
        );
        const TWICE: Refusal = Refusal::malformed("a header stands twice", "");
        const VALUE: Refusal = Refusal::malformed("a header's value is not of its form", "");
        if block.len() > HEADER_LIMIT {
            return Err(FORM);
        }
        let block = str::from_utf8(block).map_err(|_| FORM)?;
        let lines = block
            .strip_prefix("NATS/1.0\r\n")
            .and_then(|lines| lines.strip_suffix("\r\n"))
            .ok_or(FORM)?;
        let mut headers = Headers::default();
        let mut rest = lines;
        while !rest.is_empty() {
            let (line, after) = rest.split_once("\r\n").ok_or(FORM)?;
            rest = after;
            // A lone carriage return or line feed is where other readers would see another line.
            if line.chars().any(char::is_control) {
                return Err(FORM);
            }
            let (name, value) = line.split_once(':').ok_or(FORM)?;
            let value = value.strip_prefix(' ').unwrap_or(value);
            match name.to_ascii_lowercase().as_str() {
                // The server writes this name in this way; in another case it is somebody else's.
                "nats-request-info" if name != "Nats-Request-Info" => return Err(UNKNOWN),
                "nats-request-info" if headers.info.is_some() => return Err(TWICE),
                "nats-request-info" => headers.info = Some(value),
                "nats-msg-id" if headers.id.is_some() => return Err(TWICE),
                "nats-msg-id" => headers.id = Some(read_uuid(value).ok_or(VALUE)?),
                "traceparent" if headers.traceparent.is_some() => return Err(TWICE),
                "traceparent" => headers.traceparent = Some(read_traceparent(value).ok_or(VALUE)?),
                "content-type" if headers.has_content_type => return Err(TWICE),
                "content-type" => {
                    let known = [
                        "application/json",
                        "application/json; charset=utf-8",
                        "application/json;charset=utf-8",
                    ];
                    if !known.contains(&value.to_ascii_lowercase().as_str()) {
                        return Err(VALUE);
                    }
                    headers.has_content_type = true;
                }
                _ => return Err(UNKNOWN),
            }
        }
        Ok(headers)
    }

    fn asker(&self, verifier: &Verifier) -> Result<Arc<VerifiedUser>, Refusal> {
        /// Only these fields are read; `user` and `name` are what the client calls itself.
        #[derive(Deserialize)]
        struct Info {
            acc: String,
            jwt: String,
        }
        const NOT_SAID: Refusal = Refusal::unauthorized("the server does not say who asked");
        let info: Info = serde_json::from_str(self.info.ok_or(NOT_SAID)?).map_err(|_| NOT_SAID)?;
        let user = verifier.verify(&info.jwt, unix_now()).map_err(|_| {
            Refusal::unauthorized("the user is not one of this system, or no longer")
        })?;
        if user.account != info.acc {
            return Err(Refusal::unauthorized("the user belongs to another account"));
        }
        Ok(user)
    }
}

/// A UUID in its usual form of 36 characters (RFC 9562, section 4).
fn read_uuid(text: &str) -> Option<Uuid> {
    (text.len() == 36)
        .then(|| Uuid::try_parse(text).ok())
        .flatten()
}

/// A `traceparent` of version 00 (W3C Trace Context, section 3.2).
fn read_traceparent(text: &str) -> Option<&str> {
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |part: &str, length| {
        part.len() == length
            && part
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    match parts[..] {
        ["00", trace, parent, flags] if hex(trace, 32) && hex(parent, 16) && hex(flags, 2) => {
            Some(text)
        }
        _ => None,
    }
}

/// Unix seconds as RFC 3339 in UTC, which `$SRV.STATS` wants.
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // The civil calendar counted in eras of 400 years that begin on 1 March.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day_of_month:02}T{:02}:{:02}:{:02}Z",
        rest / 3_600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(block: &str) -> Result<(), &'static str> {
        Headers::parse(block.as_bytes())
            .map(|_| ())
            .map_err(|refusal| refusal.detail)
    }

    #[test]
    fn headers_are_taken_as_a_whole_or_not_at_all() {
        let id = "0199f0aa-1111-7222-8333-444455556666";
        let block = format!(
            "NATS/1.0\r\nNats-Msg-Id: {id}\r\nContent-Type: application/json\r\n\
             traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nNats-Request-Info: {{}}\r\n\r\n"
        );
        let headers = Headers::parse(block.as_bytes()).expect("well formed");
        assert_eq!(headers.id.map(|id| id.to_string()).as_deref(), Some(id));
        assert_eq!(headers.info, Some("{}"));
        assert!(headers.traceparent.is_some());
        parse("NATS/1.0\r\n\r\n").expect("no headers at all");
        for bad in [
            "",
            "NATS/1.0",
            "NATS/1.0\r\n",
            "NATS/1.1\r\n\r\n",
            "NATS/1.0 503\r\n\r\n",
            "NATS/1.0\r\nX: y\r\n\r\n",
            "NATS/1.0\r\nno colon\r\n\r\n",
            "NATS/1.0\r\nX: y\nNats-Request-Info: {}\nZ: ab\r\n\r\n",
            "NATS/1.0\nNats-Request-Info: {}\r\n\r\n",
            "NATS/1.0\r\nContent-Type: application/json\rX: y\r\n\r\n",
            "NATS/1.0\r\nContent-Type: application/json\r\n more\r\n\r\n",
            "NATS/1.0\r\nContent-Type: text/plain\r\n\r\n",
            "NATS/1.0\r\nContent-Type: application/json\r\ncontent-type: application/json\r\n\r\n",
            "NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n",
            "NATS/1.0\r\nNats-Msg-Id: {0199f0aa-1111-7222-8333-444455556666}\r\n\r\n",
            "NATS/1.0\r\nNats-Request-Info: {}\r\nNats-Request-Info: {}\r\n\r\n",
            "NATS/1.0\r\nnats-request-info: {}\r\n\r\n",
            "NATS/1.0\r\n Nats-Request-Info: {}\r\n\r\n",
            "NATS/1.0\r\nNats-Request-Info : {}\r\n\r\n",
            "NATS/1.0\r\ntraceparent: 00-0-0-0\r\n\r\n",
            "NATS/1.0\r\nNats-Request-Info: {}\r\n\r\nX: y\r\n\r\n",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn dates_follow_the_calendar() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(rfc3339(4_102_444_799), "2099-12-31T23:59:59Z");
    }

    #[test]
    fn a_refusal_is_a_problem_document_of_fixed_words() {
        let problem: Value = serde_json::from_str(&Refusal::BUSY.to_json()).expect("JSON");
        assert_eq!(problem["type"], "urn:chancery:error:busy");
        assert_eq!(problem["reasons"][0]["code"], problem["code"]);
        assert_eq!(problem["retry_after_ms"], RETRY_AFTER_MS);
    }
}
