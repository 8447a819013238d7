//! The receiver: the one writer of the store, and the link to NATS that feeds it.
//!
//! The actor runs alone on a thread of its own, with blocking handlers and a bounded mailbox, so that the link waits when
//! the disk is slow and nothing else does. The link is a task beside it: it connects for ever, follows the deltas, asks
//! for what is missing and reports. Neither is needed to serve.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use actix::{Actor, Addr, Context, Handler, Message, MessageResult};
use async_nats::{AuthError, Client, ConnectOptions, Event};
use bytes::Bytes;
use futures_util::StreamExt;
use nkeys::{KeyPair, KeyPairType};
use serde::Serialize;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use wire::feed::{ChunkRequest, FORMAT, Report, SyncRequest};
use wire::subject;

use crate::clock::Clock;
use crate::enrol::Identity;
use crate::intake::{Intake, Next};
use crate::listener::until;
use crate::status::{Problem, Status};
use crate::store::Position;

/// How often an edge asks for what it may have missed.
const SYNC_EVERY: Duration = Duration::from_secs(10);
/// How long to wait for an answer before asking again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often an edge reports when nothing changes. Healthy is who reported within ten seconds.
const REPORT_EVERY: Duration = Duration::from_secs(3);
/// The shortest time between two reports.
const REPORT_GAP: Duration = Duration::from_millis(50);
/// How many deltas are handed to the actor, and applied, at once.
const BATCH: usize = 64;
/// How many deltas wait while the store is busy. More are dropped by the client, and the gap is asked for.
const WAITING: usize = 1024;
/// How many messages wait for the actor.
const MAILBOX: usize = 8;

/// Signed messages, in the order in which they came.
#[derive(Message)]
#[rtype(result = "Next")]
struct Received(Vec<Bytes>);

/// What the receiver says about itself.
#[derive(Message)]
#[rtype(result = "Position")]
struct Observe;

struct Receiver {
    intake: Intake,
}

impl Actor for Receiver {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(MAILBOX);
    }
}

impl Handler<Received> for Receiver {
    type Result = MessageResult<Received>;

    fn handle(&mut self, Received(messages): Received, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.intake.receive(&messages))
    }
}

impl Handler<Observe> for Receiver {
    type Result = MessageResult<Observe>;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.intake.position())
    }
}

/// The receiver's thread. It is started again when it dies, since an edge whose updates have stopped must go on serving.
pub(crate) struct Handle {
    make: Box<dyn Fn() -> Intake + Send + Sync>,
    running: Mutex<Option<Running>>,
}

struct Running {
    address: Addr<Receiver>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The receiver does not answer: its thread died or is being stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the receiver does not answer")]
pub struct Silent;

impl Handle {
    pub(crate) fn new(make: impl Fn() -> Intake + Send + Sync + 'static) -> Self {
        Self {
            make: Box::new(make),
            running: Mutex::new(None),
        }
    }

    fn address(&self) -> Result<Addr<Receiver>, Silent> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = &*running
            && running.address.connected()
            && running
                .thread
                .as_ref()
                .is_some_and(|thread| !thread.is_finished())
        {
            return Ok(running.address.clone());
        }
        let intake = (self.make)();
        let (told, address) = std::sync::mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("edge-receiver".to_owned())
            .spawn(move || {
                actix::System::new().block_on(async move {
                    // Whoever asked for it may be gone, and then it is not needed.
                    let _ = told.send(Receiver { intake }.start());
                    let _ = stopped.await;
                });
            })
            .map_err(|_| Silent)?;
        let address = address.recv().map_err(|_| Silent)?;
        *running = Some(Running {
            address: address.clone(),
            stop: Some(stop),
            thread: Some(thread),
        });
        Ok(address)
    }

    /// Hands messages to the receiver and waits until they are applied.
    pub(crate) async fn receive(&self, messages: Vec<Bytes>) -> Result<Next, Silent> {
        self.address()?
            .send(Received(messages))
            .await
            .map_err(|_| Silent)
    }

    /// Where the receiver is.
    pub(crate) async fn observe(&self) -> Result<Position, Silent> {
        self.address()?.send(Observe).await.map_err(|_| Silent)
    }

    /// Ends the thread after what it is at. Blocks.
    pub(crate) fn stop(&self) {
        let running = self
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(mut running) = running {
            drop(running.stop.take());
            drop(running.address);
            if let Some(thread) = running.thread.take()
                && thread.join().is_err()
            {
                tracing::error!("the receiver's thread had died");
            }
        }
    }
}

/// What the link needs to know.
pub(crate) struct Link {
    pub(crate) url: String,
    pub(crate) identity: Arc<Identity>,
    pub(crate) receiver: Arc<Handle>,
    pub(crate) status: Arc<Status>,
    pub(crate) clock: Clock,
    pub(crate) https: Option<String>,
    pub(crate) http: Option<String>,
}

impl Link {
    /// Follows the feed until `stop` changes. It never gives up: without NATS the edge serves what it holds.
    pub(crate) async fn run(self, stop: watch::Receiver<bool>) {
        let (breaks, broken) = watch::channel(0_u64);
        let client = loop {
            match self.connect(breaks.clone()).await {
                Ok(client) => break client,
                // Only options that cannot be used end here, as the connection itself is retried for ever.
                Err(error) => {
                    self.status.problem(
                        Problem::System,
                        format!("the connection to NATS cannot be made: {error}"),
                    );
                    if until(stop.clone(), tokio::time::sleep(SYNC_EVERY))
                        .await
                        .is_none()
                    {
                        return;
                    }
                }
            }
        };
        until(stop, async {
            tokio::join!(self.follow(&client, broken), self.report(&client))
        })
        .await;
        // The last report may still be on its way.
        let _ = tokio::time::timeout(Duration::from_secs(1), client.flush()).await;
    }

    async fn connect(&self, broken: watch::Sender<u64>) -> Result<Client, String> {
        let identity = &self.identity;
        let seed: [u8; 32] = identity
            .keys()
            .danger_nkey_seed()
            .expose()
            .try_into()
            .map_err(|_| "the seed is damaged")?;
        let pair = Arc::new(
            KeyPair::new_from_raw(KeyPairType::User, seed).map_err(|error| error.to_string())?,
        );
        ConnectOptions::with_jwt(identity.jwt().to_owned(), move |nonce| {
            let pair = pair.clone();
            async move { pair.sign(&nonce).map_err(AuthError::new) }
        })
        .name(format!("edge-{}-{}", identity.region(), identity.edge()))
        .custom_inbox_prefix(format!("_INBOX.{}.{}", identity.region(), identity.edge()))
        .subscription_capacity(WAITING)
        .request_timeout(Some(ANSWER_TIMEOUT))
        .ping_interval(Duration::from_secs(10))
        .retry_on_initial_connect()
        .max_reconnects(None)
        .reconnect_delay_callback(reconnect_delay)
        .event_callback(move |event| {
            let broken = broken.clone();
            async move {
                match event {
                    Event::Connected => broken.send_modify(|count| *count += 1),
                    Event::SlowConsumer(_) => {
                        tracing::info!(
                            "deltas came faster than they were applied; the rest is asked for"
                        );
                        broken.send_modify(|count| *count += 1);
                    }
                    Event::Disconnected => tracing::info!(
                        "the connection to NATS is lost; the edge serves what it holds"
                    ),
                    event => tracing::debug!(%event, "NATS connection"),
                }
            }
        })
        .connect(&self.url)
        .await
        .map_err(|error| error.to_string())
    }

    /// Applies deltas as they come and asks for what is missing.
    ///
    /// A delta may come in parts, and a part that was lost on the way leaves no gap in the sequences. So after each
    /// interruption (`broken` rises) the edge first asks for everything from its own position on, and takes no delta until
    /// that is answered.
    async fn follow(&self, client: &Client, mut broken: watch::Receiver<u64>) {
        loop {
            let Ok(deltas) = client
                .subscribe(subject::delta(self.identity.region().as_str()))
                .await
            else {
                tokio::time::sleep(SYNC_EVERY).await;
                continue;
            };
            let mut deltas = deltas.ready_chunks(BATCH);
            let mut synced = false;
            let mut failures = 0_u32;
            // A lost last delta is missed by nobody, so a quiet feed is asked whether it is. What got no answer is asked again
            // sooner, but never at the pace at which deltas come.
            let mut due = Instant::now();
            loop {
                let ask = tokio::select! {
                    biased;
                    Ok(()) = broken.changed() => Some(Next::Sync),
                    () = tokio::time::sleep_until(due) => {
                        failures = failures.saturating_add(1);
                        due = Instant::now() + ask_again(failures);
                        (*broken.borrow() > 0).then_some(Next::Sync)
                    }
                    batch = deltas.next() => match batch {
                        None => break,
                        // The answer that is waited for says the same.
                        Some(_) if !synced => None,
                        Some(batch) => {
                            due = Instant::now() + SYNC_EVERY;
                            let messages = batch.into_iter().map(|message| message.payload).collect();
                            match self.hand(messages).await {
                                Some(Next::Nothing | Next::Refused) => None,
                                Some(next) => Some(next),
                                None => Some(Next::Sync),
                            }
                        }
                    },
                };
                if let Some(next) = ask {
                    synced = self.catch_up(client, next).await;
                    failures = if synced {
                        0
                    } else {
                        failures.saturating_add(1)
                    };
                    due = Instant::now()
                        + if synced {
                            SYNC_EVERY
                        } else {
                            ask_again(failures)
                        };
                }
            }
        }
    }

    /// Asks until nothing is missing and returns true, or false when nobody answers; the next tick asks again.
    async fn catch_up(&self, client: &Client, mut next: Next) -> bool {
        let (region, edge) = (self.identity.region(), self.identity.edge());
        let mut last = None;
        loop {
            let (what, body) = match next {
                Next::Nothing => return true,
                Next::Refused => return false,
                Next::Sync => {
                    let Position {
                        generation,
                        sequence,
                        ..
                    } = self.status.position();
                    // An answer that brought nothing will not bring more when it is asked for at once.
                    if last.replace((generation, sequence)) == Some((generation, sequence)) {
                        return false;
                    }
                    (
                        "sync",
                        json(&SyncRequest {
                            format: FORMAT,
                            generation,
                            sequence,
                        }),
                    )
                }
                Next::Chunk(after) => (
                    "chunk",
                    json(&ChunkRequest {
                        format: FORMAT,
                        after,
                    }),
                ),
            };
            match client
                .request(subject::edge(region.as_str(), edge.as_str(), what), body)
                .await
            {
                Ok(answer) => match self.hand(vec![answer.payload]).await {
                    Some(asked) => next = asked,
                    None => return false,
                },
                Err(error) => {
                    tracing::debug!(%error, what, "nobody answers upstream");
                    return false;
                }
            }
        }
    }

    async fn hand(&self, messages: Vec<Bytes>) -> Option<Next> {
        match self.receiver.receive(messages).await {
            Ok(next) => Some(next),
            Err(error) => {
                self.status.problem(Problem::System, error.to_string());
                None
            }
        }
    }

    /// Says what is applied: at once when it changes, and every three seconds.
    async fn report(&self, client: &Client) {
        let subject = subject::edge(
            self.identity.region().as_str(),
            self.identity.edge().as_str(),
            "report",
        );
        let mut position = self.status.watch();
        let mut due = Instant::now();
        loop {
            let Position {
                generation,
                sequence,
                ..
            } = *position.borrow_and_update();
            let report = Report {
                generation,
                applied: sequence,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                time: self.clock.own_millis(),
                https: self.https.clone(),
                http: self.http.clone(),
                problems: self.status.problems(),
            };
            // Reports wait for nothing: without a connection this one is worth nothing by the time there is one.
            if client.connection_state() == async_nats::connection::State::Connected
                && let Err(error) = client.publish(subject.clone(), json(&report)).await
            {
                tracing::debug!(%error, "a report was not sent");
            }
            due = (due + REPORT_GAP).max(Instant::now() + REPORT_GAP);
            tokio::time::sleep_until(due).await;
            tokio::select! {
                changed = position.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep(REPORT_EVERY - REPORT_GAP) => {}
            }
        }
    }
}

fn json<T: Serialize>(value: &T) -> Bytes {
    serde_json::to_vec(value)
        .expect("these shapes hold nothing that JSON cannot write")
        .into()
}

/// 50 ms doubling to the time after which it would be asked anyway.
fn ask_again(failures: u32) -> Duration {
    Duration::from_millis(50 << failures.min(8)).min(SYNC_EVERY)
}

/// At once, then 10 ms doubling to two seconds.
fn reconnect_delay(attempt: usize) -> Duration {
    match attempt {
        0 | 1 => Duration::ZERO,
        attempt => Duration::from_millis(5 << attempt.min(9)).min(Duration::from_secs(2)),
    }
}
