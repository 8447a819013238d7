//! Takes signed messages in: checks them, applies them, and says what to ask for next. No network, no clock of its own.

use std::sync::Arc;

use wire::feed::{Chunk, Cursor, Delta, FORMAT, Message, SIGNING_CONTEXT, Signed};

use crate::clock::Clock;
use crate::resolve::Resolver;
use crate::status::{Problem, Status};
use crate::store::{Applied, Chain, Error, Load, Position, Store};

/// What to ask upstream for next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing: this edge holds all that it knows of.
    Nothing,
    /// Nothing now: what came was refused, so an answer that was waited for is still to come.
    Refused,
    /// The deltas from the edge's position on.
    Sync,
    /// The part of a snapshot at this cursor; None asks for the first.
    Chunk(Option<Cursor>),
}

/// Why a message was refused.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("it is no signed message of a known format")]
    Malformed,
    #[error("it is not signed by the pinned signer for this region")]
    Signature,
    #[error(transparent)]
    Store(#[from] Error),
}

pub(crate) struct Intake {
    store: Arc<Store>,
    resolver: Arc<Resolver>,
    status: Arc<Status>,
    clock: Clock,
    load: Option<Load>,
    /// The cursor at which the load was last begun or taken up again.
    resumed: Option<Cursor>,
}

impl Intake {
    pub(crate) fn new(
        store: Arc<Store>,
        resolver: Arc<Resolver>,
        status: Arc<Status>,
        clock: Clock,
    ) -> Self {
        Self {
            store,
            resolver,
            status,
            clock,
            load: None,
            resumed: None,
        }
    }

    /// Takes messages in the order in which they came. Deltas that follow each other are applied in one transaction.
    pub(crate) fn receive<B: AsRef<[u8]>>(&mut self, messages: &[B]) -> Next {
        let mut next = Next::Nothing;
        let mut deltas = Vec::new();
        for message in messages {
            match self.check(message.as_ref()) {
                Ok(Message::Delta(delta)) => deltas.push(delta),
                Ok(other) => {
                    let before = self.deltas(&mut deltas);
                    next = self.settle(before, next);
                    let outcome = self.other(other);
                    next = self.settle(outcome, next);
                }
                Err(refused) => {
                    let before = self.deltas(&mut deltas);
                    next = self.settle(before, next);
                    next = self.settle(Err(refused), next);
                }
            }
        }
        let rest = self.deltas(&mut deltas);
        self.settle(rest, next)
    }

    fn settle(&self, outcome: Result<Next, Refused>, before: Next) -> Next {
        let refused = match outcome {
            Ok(Next::Nothing) => return before,
            Ok(next) => return next,
            Err(Refused::Store(Error::Gap | Error::Generation | Error::Cursor)) => {
                return Next::Sync;
            }
            Err(refused) => refused,
        };
        if let Refused::Store(error @ (Error::Database(_) | Error::Io(_) | Error::Malformed)) =
            &refused
        {
            // What was not written has to be asked for again.
            self.status
                .problem(Problem::Store, Chain(error).to_string());
            return Next::Sync;
        }
        self.status.problem(
            Problem::Feed,
            format!("a message of the feed was refused: {refused}"),
        );
        // Asking again because of bytes that anybody may have sent would let that somebody keep the edge busy.
        if before == Next::Nothing {
            Next::Refused
        } else {
            before
        }
    }

    fn check(&self, bytes: &[u8]) -> Result<Message, Refused> {
        let signed: Signed = decode(bytes)?;
        if signed.format != FORMAT {
            return Err(Refused::Malformed);
        }
        let region = self.store.custody().region().as_str().as_bytes();
        let covered = [region, b"\0", &signed.payload].concat();
        if signed.signer != self.store.signer()
            || keyring::feed::verify(&signed.signer, SIGNING_CONTEXT, &covered, &signed.signature)
                .is_err()
        {
            return Err(Refused::Signature);
        }
        self.status.heard();
        decode(&signed.payload)
    }

    fn deltas(&mut self, deltas: &mut Vec<Delta>) -> Result<Next, Refused> {
        if deltas.is_empty() {
            return Ok(Next::Nothing);
        }
        let taken = std::mem::take(deltas);
        let applied = self.store.apply(&taken)?;
        self.applied(applied);
        let position = self.store.position();
        self.clock.raise_floor(position.time);
        self.status.advance(position);
        // The rest of what came in parts is on its way; should it be lost, the next delta or the next quiet shows the gap.
        // The sequences of another generation say nothing about this one.
        let current = |delta: &&Delta| delta.generation == position.generation;
        let mut current = taken.iter().filter(current);
        let head = current.clone().map(|delta| delta.head).max();
        let part = current
            .next_back()
            .is_some_and(|delta| delta.from == delta.to);
        Ok(if head > Some(position.sequence) && !part {
            Next::Sync
        } else {
            Next::Nothing
        })
    }

    fn other(&mut self, message: Message) -> Result<Next, Refused> {
        match message {
            Message::Delta(_) => Ok(Next::Nothing),
            Message::SnapshotNeeded {
                generation,
                sequence,
            } => {
                let held = self.store.position();
                if (generation, sequence) < (held.generation, held.sequence) {
                    return Err(Error::Rollback.into());
                }
                // What is loaded already is still good, as the deltas go on from the oldest part; unless nothing was added
                // since the last time: then its cursor leads nowhere any more.
                let usable = self.load.as_ref().is_some_and(|load| {
                    load.generation() == Some(generation) && self.resumed.as_ref() != load.cursor()
                });
                if !usable {
                    self.load = None;
                    self.load = Some(self.store.load()?);
                }
                let cursor = self.load.as_ref().and_then(|load| load.cursor().cloned());
                self.resumed.clone_from(&cursor);
                Ok(Next::Chunk(cursor))
            }
            Message::Chunk(chunk) => self.chunk(&chunk),
            Message::NextSigner { public } => {
                self.store.pin(public)?;
                tracing::info!(
                    "the signer of the feed has named the next one, which is pinned now"
                );
                Ok(Next::Nothing)
            }
        }
    }

    fn chunk(&mut self, chunk: &Chunk) -> Result<Next, Refused> {
        let Some(load) = &mut self.load else {
            return Ok(Next::Nothing);
        };
        match self.store.add(load, chunk) {
            Ok(Some(after)) => Ok(Next::Chunk(Some(after))),
            Ok(None) => {
                let Some(load) = self.load.take() else {
                    return Ok(Next::Nothing);
                };
                let before = self.store.position();
                let applied = self
                    .store
                    .swap(load, self.resolver.open_keys().into_iter())?;
                self.applied(applied);
                let position = self.store.position();
                if position.generation > before.generation {
                    self.clock.reset_floor(position.time);
                } else {
                    self.clock.raise_floor(position.time);
                }
                self.status.advance(position);
                tracing::info!(
                    generation = position.generation,
                    sequence = position.sequence,
                    "a snapshot has taken the place of the store"
                );
                Ok(Next::Sync)
            }
            Err(error) => {
                self.load = None;
                Err(error.into())
            }
        }
    }

    fn applied(&self, applied: Applied) {
        self.resolver.forget(&applied.removed);
        if applied.unreadable > 0 {
            self.status.problem(
                Problem::Row,
                format!(
                    "{} rows of the feed cannot be read and are left out",
                    applied.unreadable
                ),
            );
        }
        if applied.unopened > 0 {
            self.status.problem(
                Problem::Key,
                format!(
                    "{} keys do not open with the region keys that this edge holds",
                    applied.unopened
                ),
            );
        }
    }

    pub(crate) fn position(&self) -> Position {
        self.store.position()
    }
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Refused> {
    wire::feed::decode(bytes).ok_or(Refused::Malformed)
}
