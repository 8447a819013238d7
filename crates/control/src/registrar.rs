//! The one writer: dedup → decide → commit → ledger → answer.
//!
//! It runs alone on a thread of its own and blocks there, so that back-pressure works: while a batch is being committed, what
//! comes meanwhile waits in the bounded mailbox and becomes the next batch. The steps C2 to C8 of the commit protocol are
//! marked below; what happens to a crash at each of them is in ARCHITECTURE.md.
//!
//! Safety needs neither clock nor lease: the stream refuses a batch that does not expect exactly its head, so of two writers
//! only one can go on, and the other learns that it was fenced.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, mpsc};

use actix::prelude::*;
use bus::jetstream::{Entry, Tail, TailError};
use bytes::Bytes;
use tokio::sync::oneshot;
use uuid::Uuid;

use ledger::{Batch, Head, Ledger, Outcome, Record, Writer, leaf_hash};
use lifecycle::command::{Asker, Command, Context as Decision};
use lifecycle::decide::decide;
use lifecycle::event::{CommandRejected, Event, Recorded};
use lifecycle::evolve::evolve;
use lifecycle::names::Slug;
use lifecycle::rejection::{Code, Reason};
use lifecycle::store::Overlay;
use wire::answer::{Accepted, Answer, Happened, Problem};
use wire::envelope::{CommandRef, Envelope, INTERNAL_SPACE};

use crate::rate::{Buckets, Rate};
use crate::tables::{
    Applier, ApplyError, Tables, await_the_end, fatal, ledger_changes, objects_of,
};

/// Most commands in one batch.
const COMMANDS_MAX: usize = 256;
/// Most events in one batch. A command brings at most 256, so the stream's limit of 1,000 holds.
const EVENTS_MAX: usize = 500;
/// Most bytes of events in one batch.
const BYTES_MAX: usize = 4 << 20;
/// How often an idle registrar compares the stream with the ledger.
const CHECK: std::time::Duration = std::time::Duration::from_secs(60);
/// How many commands may wait.
pub const MAILBOX: usize = 2_048;

/// A command for the registrar.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Ask {
    /// The dedup space: the project of the subject, or [`INTERNAL_SPACE`].
    pub space: String,
    /// The idempotency key.
    pub id: Uuid,
    /// SHA-256 of the canonical body.
    pub digest: [u8; 32],
    /// The project of the subject.
    pub project: Slug,
    /// Who asks.
    pub asker: Asker,
    /// `<noun>.<verb>`, for the rejection's event.
    pub name: String,
    /// What is asked.
    pub command: Command,
    /// Certificates that the command brings, by SHA-256: durable in the content store already.
    #[serde(with = "crate::queue::objects")]
    pub objects: Vec<([u8; 32], Vec<u8>)>,
    /// Whether it was counted against its project's rate already, when it was put into the queue.
    #[serde(default)]
    pub paid: bool,
}

impl Ask {
    /// A command that the system gives itself. Its id follows from what it is about, so that asking twice is asking once.
    pub fn internal(role: &str, about: &str, command: Command) -> Self {
        let digest = aws_lc_rs::digest::digest(
            &aws_lc_rs::digest::SHA256,
            format!("{role}\0{about}\0{command:?}").as_bytes(),
        );
        let id = aws_lc_rs::digest::digest(
            &aws_lc_rs::digest::SHA256,
            format!("{role}\0{about}").as_bytes(),
        );
        let mut bytes = [0u8; 16];
        bytes.copy_from_slice(&id.as_ref()[..16]);
        let mut of = [0u8; 32];
        of.copy_from_slice(digest.as_ref());
        Self {
            space: INTERNAL_SPACE.to_owned(),
            // UUID version 8 (RFC 9562 section 5.8): the content is ours.
            id: uuid::Builder::from_custom_bytes(bytes).into_uuid(),
            digest: of,
            project: Slug::platform(),
            asker: Asker {
                actor: format!("_{role}"),
                project: Slug::platform(),
                operator: true,
            },
            name: about.to_owned(),
            command,
            objects: Vec::new(),
            paid: false,
        }
    }

    fn is_internal(&self) -> bool {
        self.space == INTERNAL_SPACE
    }
}

impl Message for Ask {
    type Result = Answer;
}

/// What the registrar shows of itself.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Observed {
    /// Batches committed since the start.
    pub batches: u64,
    /// Commands decided since the start.
    pub commands: u64,
    /// Commands found to be repeats.
    pub repeats: u64,
    /// Commands turned away by the rate limit.
    pub limited: u64,
    /// Why nothing is written any more; None when all is well.
    pub halted: Option<String>,
    /// Why the stream does not say whether the last batch is in it; None when all is well.
    pub waiting: Option<String>,
}

/// The registrar.
pub struct Registrar {
    ledger: Ledger,
    writer: Writer,
    log: Arc<bus::log::Log>,
    objects: Arc<bus::objects::Objects>,
    runtime: tokio::runtime::Handle,
    log_id: String,
    buckets: Buckets,
    /// The time of the last event, Unix microseconds: no event's time falls below it.
    time: i64,
    pending: Vec<(Ask, oneshot::Sender<Answer>)>,
    scheduled: bool,
    /// What the planted bug `answer-before-fsync` has told already and not yet committed.
    late: Option<Decided>,
    observed: Arc<std::sync::Mutex<Observed>>,
}

/// Why the registrar cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log cannot be applied.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The stream and the ledger do not agree.
    #[error("the log regressed: {0}; nothing is written. docs/operate.md tells how to go on")]
    Regression(String),
    /// The stream cannot be read or written.
    #[error("the log stream: {0}")]
    Log(#[from] bus::log::Error),
    /// The content store's stream cannot be read.
    #[error("the content store's stream: {0}")]
    Objects(#[from] bus::objects::Error),
    /// An event could not be made.
    #[error(transparent)]
    Envelope(#[from] wire::envelope::Error),
}

/// What a fresh log begins with.
#[derive(Clone, Debug)]
pub struct Genesis {
    /// The feed signer.
    pub signer: [u8; 32],
    /// The domain below which provider domains live.
    pub platform_domain: String,
    /// The first operator: opaque id and NKEY user public key.
    pub operator: (Slug, String),
    /// This node's name.
    pub node: String,
}

impl Registrar {
    /// Catches up with the log, writes the barrier by which any former writer is fenced, and is then the writer.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(
        ledger: Ledger,
        log: Arc<bus::log::Log>,
        objects: Arc<bus::objects::Objects>,
        runtime: tokio::runtime::Handle,
        genesis: &Genesis,
        rate: Rate,
        observed: Arc<std::sync::Mutex<Observed>>,
    ) -> Result<Self, StartError> {
        let writer = ledger.writer().map_err(ApplyError::from)?;
        let mut registrar = Self {
            ledger,
            writer,
            log,
            objects,
            runtime,
            log_id: String::new(),
            buckets: Buckets::new(rate),
            time: 0,
            pending: Vec::new(),
            scheduled: false,
            late: None,
            observed,
        };
        registrar.learn_time()?;
        registrar.catch_up()?;
        registrar.barrier(genesis)?;
        Ok(registrar)
    }

    /// Runs a future of the NATS client on its own runtime and waits for it on this thread.
    fn wait<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        let (tx, rx) = mpsc::sync_channel(1);
        self.runtime.spawn(async move {
            let _ = tx.send(future.await);
        });
        match rx.recv() {
            Ok(result) => result,
            // Only when the runtime is being torn down, at the end of the process.
            Err(_) => await_the_end("the registrar"),
        }
    }

    fn learn_time(&mut self) -> Result<(), StartError> {
        let head = self.writer.head();
        if head.sequence > 0
            && let Some(bytes) = self
                .ledger
                .read()
                .map_err(ApplyError::from)?
                .event(head.sequence)
                .map_err(ApplyError::from)?
        {
            let last = Envelope::decode(&bytes)?;
            self.time = last.time;
            self.log_id = last.log;
        }
        Ok(())
    }

    /// Applies what the log has and the ledger lacks (a crash between C5 and C6, or another writer's events).
    fn catch_up(&mut self) -> Result<(), StartError> {
        let head = self.writer.head();
        let log = Arc::clone(&self.log);
        self.wait(not_rewound(log, head))?;
        let log = Arc::clone(&self.log);
        let mut tail = self.wait(async move { log.tail(head.sequence + 1).await })?;
        let mut store = None;
        loop {
            let page;
            (tail, page) = self.wait(next_page(tail));
            let page = page.map_err(|gap| StartError::Regression(gap.to_string()))?;
            if page.is_empty() {
                return Ok(());
            }
            // The certificates come before the events that name them: after a crash in between only events that are not
            // there yet are looked at again.
            self.fetch_objects(&mut store, &page)?;
            let tables = Tables::of(&self.ledger);
            let mut applier = Applier::new(&tables, self.writer.head());
            applier.time = self.time;
            for entry in page {
                applier.push(entry.sequence, entry.bytes.to_vec())?;
            }
            self.time = applier.time;
            self.writer
                .append(&applier.done())
                .map_err(ApplyError::from)?;
            self.learn_time()?;
        }
    }

    /// Copies certificates that events name and this ledger lacks from the content store's stream, of which `store` is a
    /// reader once one was needed. All that it passes is kept: later events will name it.
    fn fetch_objects(
        &mut self,
        store: &mut Option<Tail>,
        events: &[Entry],
    ) -> Result<(), StartError> {
        let tables = Tables::of(&self.ledger);
        let mut wanted: HashSet<[u8; 32]> = events
            .iter()
            .filter_map(|entry| Envelope::decode(&entry.bytes).ok())
            .flat_map(|envelope| objects_of(&envelope.event))
            .filter(|hash| {
                !tables
                    .0
                    .has_object(hash)
                    .unwrap_or_else(|error| fatal("the ledger cannot be read", &error))
            })
            .collect();
        drop(tables);
        while !wanted.is_empty() {
            let tail = match store.take() {
                Some(tail) => tail,
                None => {
                    let objects = Arc::clone(&self.objects);
                    self.wait(async move { objects.tail(1).await })?
                }
            };
            let (tail, page) = self.wait(next_page(tail));
            *store = Some(tail);
            let page = page.map_err(|gap| StartError::Regression(gap.to_string()))?;
            if page.is_empty() {
                return Err(StartError::Regression(format!(
                    "{} certificates that events name are not in the content store",
                    wanted.len()
                )));
            }
            let passed: Vec<([u8; 32], Vec<u8>)> = page
                .into_iter()
                .map(|entry| (ledger::Hash::of(&entry.bytes).0, entry.bytes.to_vec()))
                .inspect(|(hash, _)| {
                    wanted.remove(hash);
                })
                .collect();
            self.writer.put_objects(passed).map_err(ApplyError::from)?;
        }
        Ok(())
    }

    /// The first event of this writer: whatever a former one still has in flight expects a head that is gone.
    fn barrier(&mut self, genesis: &Genesis) -> Result<(), StartError> {
        loop {
            let tables = Tables::of(&self.ledger);
            let control = lifecycle::state::State::control(&tables);
            let mut events: Vec<(Slug, Event)> = Vec::new();
            if control.is_none() {
                self.log_id = Uuid::new_v4().to_string();
                events.push((
                    Slug::platform(),
                    lifecycle::event::ControlGenesis {
                        log: self.log_id.clone(),
                        signer: lifecycle::names::Digest(genesis.signer),
                        platform_domain: genesis.platform_domain.clone(),
                    }
                    .into(),
                ));
                events.push((
                    Slug::platform(),
                    lifecycle::event::ProjectCreated {
                        project: Slug::platform(),
                    }
                    .into(),
                ));
                events.push((
                    Slug::platform(),
                    lifecycle::event::AccessCreated {
                        project: Slug::platform(),
                        actor: genesis.operator.0.clone(),
                        nkey: genesis.operator.1.clone(),
                        rights: lifecycle::decide::rights::operator(),
                        expires: None,
                    }
                    .into(),
                ));
            }
            let epoch = control.map_or(0, |c| c.epoch) + 1;
            events.push((
                Slug::platform(),
                lifecycle::event::ControlLeaderElected {
                    node: genesis.node.clone(),
                    epoch,
                }
                .into(),
            ));
            let ask = Ask {
                id: Uuid::now_v7(),
                ..Ask::internal(
                    "registrar",
                    "control.lead",
                    Command::SuspendProject(lifecycle::command::OfProject {
                        project: Slug::platform(),
                    }),
                )
            };
            let mut building = Building::new(&tables, self.writer.head());
            building.add(&ask, events, self.now(), &self.log_id)?;
            match self.commit(building.done()) {
                Ok(()) => return Ok(()),
                Err(CommitError::Fenced) => self.catch_up()?,
                Err(CommitError::Halt(error)) => return Err(error),
            }
        }
    }

    fn now(&self) -> i64 {
        let wall = time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000;
        i64::try_from(wall).unwrap_or(i64::MAX).max(self.time)
    }

    fn observe(&self, change: impl FnOnce(&mut Observed)) {
        change(
            &mut self
                .observed
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        );
    }

    /// Decides and commits what is waiting.
    fn flush(&mut self) {
        while !self.pending.is_empty() {
            let rest = self.pending.split_off(self.pending.len().min(COMMANDS_MAX));
            let asks = std::mem::replace(&mut self.pending, rest);
            self.round(asks);
        }
        self.scheduled = false;
    }

    fn round(&mut self, asks: Vec<(Ask, oneshot::Sender<Answer>)>) {
        let halted = self
            .observed
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .halted
            .clone();
        if let Some(why) = halted {
            for (ask, answer) in asks {
                let mut problem =
                    Problem::later(Code::Busy, format!("nothing is written: {why}"), 10_000);
                problem.id = Some(ask.id);
                let _ = answer.send(Answer::Problem(Box::new(problem)));
            }
            return;
        }
        // The rate is charged once for a command, not once for each time that it has to be decided again.
        let mut admitted = Vec::with_capacity(asks.len());
        for (ask, answer) in asks {
            // An operator's work, an import for instance, is not held up by what protects the log from tenants.
            let users = !ask.is_internal() && !ask.asker.operator && !ask.paid;
            if users
                && !self.is_repeat(&ask)
                && let Err(after) = self.buckets.take(&ask.project)
            {
                self.observe(|o| o.limited += 1);
                let mut problem = Problem::later(
                    Code::RateLimited,
                    "the project has sent too many commands",
                    after.max(10),
                );
                problem.id = Some(ask.id);
                let _ = answer.send(Answer::Problem(Box::new(problem)));
                continue;
            }
            admitted.push((ask, answer));
        }
        let mut queue = std::collections::VecDeque::from(admitted);
        while !queue.is_empty() {
            self.commit_late();
            let tables = Tables::of(&self.ledger);
            let mut building = Building::new(&tables, self.writer.head());
            let mut taken = Vec::new();
            while let Some((ask, answer)) = queue.pop_front() {
                let fate = building.decide(&ask, self.now(), &self.log_id);
                taken.push((ask, answer, fate));
                if building.messages.len() >= EVENTS_MAX || building.bytes >= BYTES_MAX {
                    break;
                }
            }
            let committed = if building.messages.is_empty() {
                Ok(())
            } else if faults::planted("answer-before-fsync")
                // A repeat is answered from the ledger, which would show the bug without any crash.
                && !taken.iter().any(|(_, _, fate)| matches!(fate, Fate::Repeat(_)))
            {
                self.late = Some(building.done());
                Ok(())
            } else {
                self.commit(building.done())
            };
            match committed {
                Ok(()) => self.answer(taken),
                Err(CommitError::Fenced) => {
                    // C5: somebody else wrote. What we decided rests on a state that is no longer the last: decide again.
                    tracing::warn!("another writer committed; catching up and deciding again");
                    for (ask, answer, _) in taken.into_iter().rev() {
                        queue.push_front((ask, answer));
                    }
                    if let Err(error) = self.catch_up() {
                        self.halt(&error, queue.drain(..));
                    }
                }
                Err(CommitError::Halt(error)) => {
                    self.halt(
                        &error,
                        taken
                            .into_iter()
                            .map(|(ask, answer, _)| (ask, answer))
                            .chain(queue.drain(..)),
                    );
                }
            }
        }
    }

    /// Halts when the stream is no longer the one that the ledger is a copy of. A server that is away is no reason to.
    fn check(&self) {
        let head = self.writer.head();
        let log = Arc::clone(&self.log);
        let checked = self.wait(async move {
            let check = log.check_not_rewound(head.sequence, *head.hash.as_bytes());
            tokio::time::timeout(std::time::Duration::from_secs(5), check).await
        });
        if let Ok(Err(bus::log::Error::Regression(what))) = checked {
            self.halt(&StartError::Regression(what), std::iter::empty());
        }
    }

    fn is_repeat(&self, ask: &Ask) -> bool {
        let found = Tables::of(&self.ledger)
            .0
            .outcome(&ask.space, ask.id.as_bytes());
        found
            .unwrap_or_else(|error| fatal("the ledger cannot be read", &error))
            .is_some()
    }

    fn halt(
        &self,
        error: &StartError,
        waiting: impl Iterator<Item = (Ask, oneshot::Sender<Answer>)>,
    ) {
        tracing::error!(%error, "the registrar halts: nothing is written any more");
        self.observe(|o| o.halted = Some(error.to_string()));
        for (ask, answer) in waiting {
            // Whether the command is in the log is not known: the same id asks again and finds out.
            let mut problem = Problem::later(
                Code::Busy,
                "nothing is written until an operator has looked at the log",
                10_000,
            );
            problem.id = Some(ask.id);
            tracing::warn!(correlation = %ask.id, command = %ask.name, "whether this command is in the log is not known");
            let _ = answer.send(Answer::Problem(Box::new(problem)));
        }
    }

    /// C4 to C6.
    fn commit(&mut self, decided: Decided) -> Result<(), CommitError> {
        let head = self.writer.head();
        let Decided {
            messages,
            batch,
            time,
            warnings,
        } = decided;
        let log = Arc::clone(&self.log);
        faults::point("registrar-before-append");
        metrics::histogram!("chancery_batch_events").record(messages.len() as f64);
        let begun = std::time::Instant::now();
        let appended = self.wait(async move { log.append(head.sequence, &messages).await });
        metrics::histogram!("chancery_log_append_seconds").record(begun.elapsed());
        let begun = std::time::Instant::now();
        match appended {
            Ok(appended) if appended.last == head.sequence + batch.records.len() as u64 => {}
            Ok(appended) => {
                return Err(CommitError::Halt(StartError::Regression(format!(
                    "the stream put our batch at {} to {} instead of after {}",
                    appended.first, appended.last, head.sequence
                ))));
            }
            Err(bus::log::Error::Fenced { .. }) => return Err(CommitError::Fenced),
            Err(bus::log::Error::Regression(what)) => {
                return Err(CommitError::Halt(StartError::Regression(what)));
            }
            Err(error) => return Err(CommitError::Halt(StartError::Log(error))),
        }
        faults::point("registrar-before-ledger");
        if let Err(error) = self.writer.append(&batch) {
            if error.is_refusal() {
                return Err(CommitError::Halt(StartError::Apply(ApplyError::Ledger(
                    error,
                ))));
            }
            fatal("the ledger cannot be written", &error);
        }
        metrics::histogram!("chancery_ledger_append_seconds").record(begun.elapsed());
        self.time = time.max(self.time);
        for (stage, warned) in crate::monitor::STAGES.into_iter().zip(warnings) {
            metrics::counter!("chancery_certificate_warnings_total", "stage" => stage)
                .increment(warned);
        }
        faults::point("registrar-after-ledger");
        Ok(())
    }

    /// The second half of the planted bug `answer-before-fsync`: the commit of what was told as done before it was.
    fn commit_late(&mut self) {
        let Some(late) = self.late.take() else { return };
        if let Err(CommitError::Halt(error)) = self.commit(late) {
            self.halt(&error, std::iter::empty());
        }
    }

    /// C7: what was decided is durable in the log and in this ledger; now it may be told.
    fn answer(&mut self, taken: Vec<(Ask, oneshot::Sender<Answer>, Fate)>) {
        let mut repeats = 0;
        let commands = taken.len() as u64;
        let tables = Tables::of(&self.ledger);
        for (ask, tell, fate) in taken {
            let answer = match fate {
                Fate::Answered(answer) => *answer,
                Fate::Repeat(outcome) => {
                    repeats += 1;
                    answer_of(&tables, &outcome, ask.digest)
                }
                Fate::Refused(problem) => {
                    let mut problem = problem;
                    problem.id = Some(ask.id);
                    Answer::Problem(problem)
                }
            };
            tracing::debug!(
                correlation = %ask.id,
                project = ask.project.as_str(),
                command = %ask.name,
                actor = %ask.asker.actor,
                outcome = crate::monitor::outcome(&answer).0,
                head = self.writer.head().sequence,
                "decided"
            );
            let _ = tell.send(answer);
        }
        self.observe(|o| {
            o.waiting = None;
            o.batches += 1;
            o.commands += commands;
            o.repeats += repeats;
        });
        metrics::counter!("chancery_registrar_commands_total").increment(commands);
        metrics::gauge!("chancery_log_head").set(self.writer.head().sequence as f64);
        faults::point("registrar-after-answer");
    }
}

/// Compares the log's head with the ledger's. A server that does not answer is asked again: to be fenced just when it is away
/// is no reason to halt.
async fn not_rewound(log: Arc<bus::log::Log>, head: Head) -> Result<(), StartError> {
    loop {
        let checked = log.check_not_rewound(head.sequence, *head.hash.as_bytes());
        match checked.await {
            Ok(()) => return Ok(()),
            Err(bus::log::Error::JetStream(error)) => {
                tracing::warn!(%error, "the log cannot be asked now; trying again");
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            }
            Err(bus::log::Error::Regression(what)) => return Err(StartError::Regression(what)),
            Err(error) => return Err(StartError::Log(error)),
        }
    }
}

/// The next page of a stream. One that cannot be read now is asked for again: without it nothing can go on.
async fn next_page(mut tail: Tail) -> (Tail, Result<Vec<Entry>, TailError>) {
    loop {
        match tail.page().await {
            Ok(page) => return (tail, page),
            Err(error) => {
                tracing::warn!(%error, "a stream cannot be read now; trying again");
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            }
        }
    }
}

enum CommitError {
    Fenced,
    Halt(StartError),
}

/// What becomes of a command in the batch that is being built.
enum Fate {
    /// Its events are in the batch.
    Answered(Box<Answer>),
    /// It was decided before.
    Repeat(Outcome),
    /// It is refused without an event: the system's own commands that came too late, and ids used for something else.
    Refused(Box<Problem>),
}

/// A batch that was decided: what the log gets, and what the ledger gets once the log has it.
struct Decided {
    messages: Vec<(String, Bytes)>,
    batch: Batch,
    time: i64,
    warnings: [u64; 5],
}

/// A batch that is being decided on speculative state.
struct Building<'a> {
    overlay: Overlay<'a, Tables>,
    tables: &'a Tables,
    head: Head,
    messages: Vec<(String, Bytes)>,
    bytes: usize,
    batch: Batch,
    objects: Vec<([u8; 32], Vec<u8>)>,
    scopes: HashMap<String, u64>,
    /// Commands of this batch by their keys, so that a repeat in the same batch is found too.
    outcomes: HashMap<(String, Uuid), Outcome>,
    time: i64,
    /// Warnings of a certificate's end in this batch, by stage.
    warnings: [u64; 5],
}

impl<'a> Building<'a> {
    fn new(tables: &'a Tables, head: Head) -> Self {
        Self {
            overlay: Overlay::new(tables),
            tables,
            head,
            messages: Vec::new(),
            bytes: 0,
            batch: Batch::default(),
            objects: Vec::new(),
            scopes: HashMap::new(),
            outcomes: HashMap::new(),
            time: 0,
            warnings: [0; 5],
        }
    }

    /// Ends the deciding.
    fn done(self) -> Decided {
        let mut batch = self.batch;
        batch.changes = ledger_changes(self.overlay.into_changes());
        batch.objects = self.objects;
        Decided {
            messages: self.messages,
            batch,
            time: self.time,
            warnings: self.warnings,
        }
    }

    /// C2 and C3.
    fn decide(&mut self, ask: &Ask, now: i64, log_id: &str) -> Fate {
        if !faults::planted("no-dedup")
            && let Some(outcome) = self.known(ask)
        {
            if outcome.digest == ask.digest {
                return Fate::Repeat(outcome);
            }
            return Fate::Refused(Box::new(Problem::new(
                Code::Conflict,
                "this id was used for another command",
                "make a new id for each command; repeat an id only with the same body",
            )));
        }
        let now = now.max(self.time);
        let context = Decision {
            project: ask.project.clone(),
            asker: ask.asker.clone(),
            now,
            sequence: self.head.sequence + 1,
        };
        let decided = match decide(&self.overlay, &ask.command, &context) {
            Ok(events) => events,
            Err(rejection) if ask.is_internal() => {
                return Fate::Refused(Box::new(Problem::of(vec![rejection.0])));
            }
            Err(rejection) => vec![self.rejected(ask, vec![rejection.0])],
        };
        match self.add(ask, decided, now, log_id) {
            Ok(answer) => {
                self.objects.extend(ask.objects.iter().cloned());
                Fate::Answered(Box::new(answer))
            }
            Err(wire::envelope::Error::TooLarge(size)) => {
                let reason = Reason::new(
                    Code::TooLarge,
                    format!(
                        "its event would have {size} bytes of at most {}",
                        wire::envelope::SIZE_MAX
                    ),
                    "name fewer things in one command",
                );
                let event = self.rejected(ask, vec![reason]);
                match self.add(ask, vec![event], now, log_id) {
                    Ok(answer) => Fate::Answered(Box::new(answer)),
                    Err(error) => Fate::Refused(Box::new(Problem::new(
                        Code::TooLarge,
                        error.to_string(),
                        "",
                    ))),
                }
            }
            Err(error) => Fate::Refused(Box::new(Problem::new(
                Code::Malformed,
                error.to_string(),
                "",
            ))),
        }
    }

    /// A rejection belongs to the project of the subject; where there is none, to whoever asked.
    fn rejected(&self, ask: &Ask, reasons: Vec<Reason>) -> (Slug, Event) {
        let known = lifecycle::state::State::project(&self.overlay, ask.project.as_str()).is_some();
        (
            if known {
                ask.project.clone()
            } else {
                ask.asker.project.clone()
            },
            CommandRejected {
                command: ask.name.clone(),
                reasons,
            }
            .into(),
        )
    }

    fn known(&self, ask: &Ask) -> Option<Outcome> {
        if let Some(outcome) = self.outcomes.get(&(ask.space.clone(), ask.id)) {
            return Some(outcome.clone());
        }
        self.tables
            .0
            .outcome(&ask.space, ask.id.as_bytes())
            .unwrap_or_else(|error| fatal("the ledger cannot be read", &error))
    }

    /// Puts a command's events into the batch: all of them, or none if one cannot be encoded.
    fn add(
        &mut self,
        ask: &Ask,
        events: Vec<(Slug, Event)>,
        now: i64,
        log_id: &str,
    ) -> Result<Answer, wire::envelope::Error> {
        let count = u32::try_from(events.len()).unwrap_or(u32::MAX);
        let mut head = self.head;
        let mut scopes: HashMap<String, u64> = HashMap::new();
        let mut made = Vec::with_capacity(events.len());
        let mut happened = Vec::with_capacity(events.len());
        let mut rejection = None;
        for (index, (project, event)) in events.into_iter().enumerate() {
            let scope = project.as_str().to_owned();
            let before = scopes
                .get(&scope)
                .or_else(|| self.scopes.get(&scope))
                .copied()
                .unwrap_or_else(|| {
                    self.tables
                        .0
                        .scope_head(&scope)
                        .unwrap_or_else(|error| fatal("the ledger cannot be read", &error))
                });
            scopes.insert(scope.clone(), before + 1);
            let envelope = Envelope {
                log: log_id.to_owned(),
                sequence: head.sequence + 1,
                project,
                project_sequence: before + 1,
                time: now,
                prevhash: head.hash,
                command: CommandRef {
                    id: ask.id,
                    space: ask.space.clone(),
                    index: u32::try_from(index).unwrap_or(u32::MAX) + 1,
                    count,
                    digest: ask.digest,
                },
                actor: ask.asker.actor.clone(),
                correlation: ask.id.to_string(),
                event,
            };
            let bytes = envelope.encode()?;
            head = Head {
                sequence: envelope.sequence,
                hash: leaf_hash(&bytes),
            };
            if let Event::CommandRejected(rejected) = &envelope.event {
                rejection = Some((rejected.reasons.clone(), envelope.sequence));
            }
            if !ask.is_internal() {
                happened.push(happened_of(&envelope));
            }
            made.push((envelope, bytes));
        }
        let first = self.head.sequence + 1;
        self.head = head;
        self.time = now;
        self.scopes.extend(scopes);
        for (envelope, bytes) in made {
            if let Event::CertificateExpiring(warned) = &envelope.event
                && let Some(stage) = self
                    .warnings
                    .get_mut(usize::from(warned.stage).wrapping_sub(1))
            {
                *stage += 1;
            }
            self.messages.push((
                wire::subject::log(envelope.project.as_str(), envelope.event.name()),
                Bytes::from(bytes.clone()),
            ));
            self.bytes += bytes.len();
            self.batch.records.push(Record {
                sequence: envelope.sequence,
                prevhash: envelope.prevhash,
                scope: envelope.project.as_str().to_owned(),
                scope_sequence: envelope.project_sequence,
                bytes,
            });
            let recorded: Recorded = envelope.recorded();
            evolve(&mut self.overlay, &recorded);
        }
        let outcome = Outcome {
            space: ask.space.clone(),
            id: *ask.id.as_bytes(),
            first,
            count,
            digest: ask.digest,
        };
        self.outcomes
            .insert((ask.space.clone(), ask.id), outcome.clone());
        self.batch.outcomes.push(outcome);
        Ok(match rejection {
            Some((reasons, sequence)) => rejected_answer(ask.id, reasons, sequence),
            None => accepted_answer(ask.id, head.sequence, happened),
        })
    }
}

fn happened_of(envelope: &Envelope) -> Happened {
    let mut data = Vec::new();
    let mut to = serde_json::Serializer::new(&mut data);
    let data = envelope
        .event
        .serialize_data(&mut to)
        .ok()
        .and_then(|()| serde_json::from_slice(&data).ok());
    Happened {
        sequence: envelope.sequence,
        event: envelope.event.name().to_owned(),
        data: data.unwrap_or_default(),
    }
}

fn accepted_answer(id: Uuid, sequence: u64, events: Vec<Happened>) -> Answer {
    Answer::Accepted(Accepted {
        id,
        outcome: "accepted".to_owned(),
        sequence,
        events,
        more: serde_json::Map::new(),
    })
}

fn rejected_answer(id: Uuid, reasons: Vec<Reason>, sequence: u64) -> Answer {
    let mut problem = Problem::of(reasons);
    problem.id = Some(id);
    problem.sequence = Some(sequence);
    Answer::Problem(Box::new(problem))
}

/// The answer to a command that the log has: the same as the first time, made from its events.
pub fn answer_of(tables: &Tables, outcome: &Outcome, digest: [u8; 32]) -> Answer {
    let id = Uuid::from_bytes(outcome.id);
    if outcome.digest != digest {
        let mut problem = Problem::new(
            Code::Conflict,
            "this id was used for another command",
            "make a new id for each command",
        );
        problem.id = Some(id);
        return Answer::Problem(Box::new(problem));
    }
    let mut happened = Vec::new();
    for sequence in outcome.first..outcome.first + u64::from(outcome.count) {
        let bytes = tables
            .0
            .event(sequence)
            .unwrap_or_else(|error| fatal("the ledger cannot be read", &error));
        let Some(envelope) = bytes.and_then(|bytes| Envelope::decode(&bytes).ok()) else {
            continue;
        };
        if let Event::CommandRejected(rejected) = &envelope.event {
            return rejected_answer(id, rejected.reasons.clone(), sequence);
        }
        happened.push(happened_of(&envelope));
    }
    accepted_answer(id, outcome.first + u64::from(outcome.count) - 1, happened)
}

impl Actor for Registrar {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        // A stream that was rewound or replaced while nobody wrote is to be noticed before somebody does.
        ctx.run_interval(CHECK, |registrar, _| registrar.check());
    }
}

/// Commits what has gathered. It runs when the mailbox is empty for the moment, which makes the batches as large as the
/// load: one command alone waits for nobody.
#[derive(Message)]
#[rtype(result = "()")]
struct Flush;

impl Handler<Ask> for Registrar {
    type Result = ResponseFuture<Answer>;

    fn handle(&mut self, ask: Ask, ctx: &mut Self::Context) -> Self::Result {
        let (tx, rx) = oneshot::channel();
        let id = ask.id;
        self.pending.push((ask, tx));
        if self.pending.len() >= COMMANDS_MAX {
            self.flush();
        } else if !self.scheduled {
            self.scheduled = true;
            ctx.notify(Flush);
        }
        Box::pin(async move {
            rx.await.unwrap_or_else(|_| {
                let mut problem = Problem::later(Code::Busy, "the registrar is going down", 1_000);
                problem.id = Some(id);
                Answer::Problem(Box::new(problem))
            })
        })
    }
}

impl Handler<Flush> for Registrar {
    type Result = ();

    fn handle(&mut self, _: Flush, ctx: &mut Self::Context) {
        self.flush();
        if self.late.is_some() {
            // The answers leave only once this thread is free again.
            ctx.run_later(std::time::Duration::from_millis(20), |registrar, _| {
                registrar.commit_late();
            });
        }
    }
}

/// Places at which a test may end the process, and bugs that a test may plant to see that it would be caught. Without the
/// feature `faults` there are none.
mod faults {
    #[cfg(feature = "faults")]
    pub(super) fn point(name: &str) {
        fail::fail_point!(name, |_| std::process::abort());
    }
    #[cfg(not(feature = "faults"))]
    pub(super) fn point(_: &str) {}

    #[cfg(feature = "faults")]
    pub(super) fn planted(bug: &str) -> bool {
        static BUG: std::sync::OnceLock<String> = std::sync::OnceLock::new();
        BUG.get_or_init(|| std::env::var("CHANCERY_PLANTED_BUG").unwrap_or_default()) == bug
    }
    #[cfg(not(feature = "faults"))]
    pub(super) fn planted(_: &str) -> bool {
        false
    }
}
