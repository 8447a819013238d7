//! The log: appending to it, which is the commit, and reading it.
//!
//! The stream `LOG` is written with the condition that its head is the expected one. That one compare-and-swap is the
//! total order, the lock, the guard against repeating and the fence against a second writer. An append ends in one of
//! three ways: committed, fenced (somebody else's bytes are at our place, so nothing of ours is or ever will be there), or the
//! log contradicts itself, after which nobody may write. An unknown result is never one of them: the same bytes are
//! sent again until it is known, and the caller must not decide anew in between.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::Client;
use aws_lc_rs::digest;
use bytes::Bytes;
use tokio::sync::{Mutex, watch};

pub use crate::jetstream::{BATCH_LIMIT, Entry, Tail, TailError};
use crate::{
    PREFIX, faults,
    jetstream::{self, Attempt, Record, Stream},
};

/// Bytes of one record at most: an event is at most 48 KiB.
pub const RECORD_LIMIT: usize = 60 * 1024;

/// How long a head below the expected one may be the passing view of a leader that is catching up.
const REGRESSION_PATIENCE: Duration = Duration::from_secs(10);

/// Why an append did not commit, or a read failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another writer has written after the expected head; nothing of this append is in the log or ever will be.
    /// Catch up, check that one still leads, and decide again.
    #[error("another writer has moved the log to {head}")]
    Fenced {
        /// The head that was seen.
        head: u64,
    },
    /// The log contradicts what is known of it: it was rewound, replaced or answers for another place. Nobody may
    /// write until an operator has looked.
    #[error("the log contradicts what is known of it: {0}")]
    Regression(String),
    /// The caller stopped the wait. What was sent may be in the log or may still come: only a restart finds out.
    #[error("stopped while it is unknown whether the records are in the log")]
    Stopped,
    /// The records cannot be appended as they are.
    #[error("cannot append: {0}")]
    Unfit(&'static str),
    /// A read, or the question for the head, had no result; it can be repeated.
    #[error(transparent)]
    JetStream(#[from] jetstream::Error),
}

/// Where the records of one append are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The sequence of the first.
    pub first: u64,
    /// The sequence of the last, which is the new head.
    pub last: u64,
    /// Attempts that it took.
    pub attempts: u32,
}

/// An append whose result is not known yet, as told to the observer before each further attempt.
#[derive(Debug, Clone)]
pub struct Doubt {
    /// Attempts so far.
    pub attempts: u32,
    /// How long it has been unknown.
    pub since: Duration,
    /// What the last attempt came to.
    pub reason: String,
}

type Observer = Arc<dyn Fn(&Doubt) + Send + Sync>;

/// The compare-and-swap protocol on one stream, one append at a time.
pub(crate) struct Writer {
    pub(crate) stream: Stream,
    observer: Option<Observer>,
    stop: Option<watch::Receiver<bool>>,
    one_in_flight: Mutex<()>,
}

impl Writer {
    pub(crate) fn new(stream: Stream) -> Writer {
        Writer {
            stream,
            observer: None,
            stop: None,
            one_in_flight: Mutex::new(()),
        }
    }

    fn stopped(&self) -> bool {
        self.stop.as_ref().is_some_and(|stop| *stop.borrow())
    }

    /// Waits before the next attempt, unless the caller stops it meanwhile.
    async fn pause(&self, doubt: &Doubt) -> Result<(), Error> {
        if let Some(observer) = &self.observer {
            observer(doubt);
        }
        let pause = Duration::from_millis(10 << doubt.attempts.min(7)).min(Duration::from_secs(1));
        match self.stop.clone() {
            Some(mut stop) => {
                // A sender that is gone can no longer stop us; then only the time counts.
                let stopped = async {
                    if stop.wait_for(|stop| *stop).await.is_err() {
                        std::future::pending::<()>().await;
                    }
                };
                tokio::select! {
                    () = stopped => return Err(Error::Stopped),
                    () = tokio::time::sleep(pause) => {}
                }
            }
            None => tokio::time::sleep(pause).await,
        }
        Ok(())
    }

    pub(crate) async fn append(
        &self,
        expected: u64,
        records: &[Record],
    ) -> Result<Appended, Error> {
        if records.is_empty() {
            return Err(Error::Unfit("there are no records"));
        }
        if records.len() > BATCH_LIMIT {
            return Err(Error::Unfit("there are more than 1,000 records"));
        }
        let count = records.len() as u64;
        let _alone = self.one_in_flight.lock().await;
        // Its attempts' batches are `<id>-<attempt>`, by which what is stored can be told from what looks the same.
        let id = uuid::Uuid::new_v4().simple().to_string();
        let began = Instant::now();
        let mut below_since: Option<Instant> = None;
        let mut attempts = 0;
        faults::point(self.stream.name, "before-publish");
        loop {
            if self.stopped() && attempts > 0 {
                return Err(Error::Stopped);
            }
            attempts += 1;
            let reason = match self
                .stream
                .attempt(expected, records, format!("{id}-{attempts}"))
                .await
            {
                Attempt::Stored(last) => {
                    faults::point(self.stream.name, "after-ack");
                    if last != expected + count && !faults::planted("no-cas") {
                        return Err(Error::Regression(format!(
                            "{count} records after {expected} were acknowledged at {last}"
                        )));
                    }
                    return Ok(Appended {
                        first: last + 1 - count,
                        last,
                        attempts,
                    });
                }
                Attempt::WrongHead => match self.resolve(expected, records, &id).await {
                    Ok(Resolved::Ours) => {
                        return Ok(Appended {
                            first: expected + 1,
                            last: expected + count,
                            attempts,
                        });
                    }
                    Ok(Resolved::Others { head }) => return Err(Error::Fenced { head }),
                    Ok(Resolved::Torn) => {
                        return Err(Error::Regression(format!(
                            "only a part of the records after {expected} is stored"
                        )));
                    }
                    Ok(Resolved::Below { head }) => {
                        let since = *below_since.get_or_insert_with(Instant::now);
                        if since.elapsed() >= REGRESSION_PATIENCE {
                            return Err(Error::Regression(format!(
                                "its head is {head}, but {expected} was committed"
                            )));
                        }
                        format!("the head is {head}, below {expected}")
                    }
                    Ok(Resolved::Unsettled) => "the head moves".to_owned(),
                    Err(error) => error.to_string(),
                },
                Attempt::Unknown(reason) => reason,
            };
            let doubt = Doubt {
                attempts,
                since: began.elapsed(),
                reason,
            };
            tracing::debug!(
                stream = self.stream.name,
                expected,
                attempts,
                reason = doubt.reason,
                "commit unknown"
            );
            self.pause(&doubt).await?;
        }
    }

    /// Finds out, after the compare-and-swap failed, whose bytes follow the expected head.
    async fn resolve(
        &self,
        expected: u64,
        records: &[Record],
        id: &str,
    ) -> Result<Resolved, jetstream::Error> {
        let head = self.stream.state().await?.last;
        if head < expected {
            return Ok(Resolved::Below { head });
        }
        if head == expected {
            return Ok(Resolved::Unsettled);
        }
        let mut first_is_ours = false;
        for (index, (sequence, record)) in (expected + 1..).zip(records).enumerate() {
            let stored = self.stream.stored(sequence).await?;
            let same = stored.as_ref().is_some_and(|(entry, _)| {
                entry.bytes == record.bytes && entry.subject == record.subject
            });
            if !same {
                // Another writer's batch may well begin with the same bytes: two were asked the same.
                return Ok(if first_is_ours {
                    Resolved::Torn
                } else {
                    Resolved::Others { head }
                });
            }
            if index == 0 {
                let batch = stored.and_then(|(_, batch)| batch);
                first_is_ours = batch
                    .and_then(|batch| Some(batch.strip_prefix(id)?.starts_with('-')))
                    .unwrap_or(false);
            }
        }
        Ok(Resolved::Ours)
    }
}

enum Resolved {
    /// Our exact bytes are there: an earlier attempt committed.
    Ours,
    /// Other bytes are there.
    Others { head: u64 },
    /// The first record of one of our batches is there and others follow, which an atomic batch excludes.
    Torn,
    /// The stream ends before the expected head.
    Below { head: u64 },
    /// The head is the expected one after all; only another attempt can tell.
    Unsettled,
}

/// The log, as one connection writes and reads it.
pub struct Log {
    writer: Writer,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").finish_non_exhaustive()
    }
}

impl Log {
    /// The log over a connection of the role `registrar`, or `follower` for reading only.
    #[must_use]
    pub fn new(client: Client) -> Log {
        Log {
            writer: Writer::new(Stream {
                client,
                name: "LOG",
            }),
        }
    }

    /// Tells `observer` of each append that is unknown, before each further attempt.
    #[must_use]
    pub fn observed_by(mut self, observer: impl Fn(&Doubt) + Send + Sync + 'static) -> Log {
        self.writer.observer = Some(Arc::new(observer));
        self
    }

    /// Ends waiting appends with [`Error::Stopped`] once `stop` turns true.
    #[must_use]
    pub fn stopped_by(mut self, stop: watch::Receiver<bool>) -> Log {
        self.writer.stop = Some(stop);
        self
    }

    /// Appends records, each a full subject (`chancery.v1.log.…`) and its exact bytes, behind `expected_head`: all or none.
    ///
    /// Returns only when the result is known; while it is not, the same bytes are sent again. At most [`BATCH_LIMIT`]
    /// records of at most [`RECORD_LIMIT`] bytes. One append runs at a time, others wait.
    ///
    /// # Errors
    /// [`Error::Fenced`], [`Error::Regression`], [`Error::Stopped`] or [`Error::Unfit`].
    pub async fn append(
        &self,
        expected_head: u64,
        records: &[(String, Bytes)],
    ) -> Result<Appended, Error> {
        let own = format!("{PREFIX}log.");
        if records
            .iter()
            .any(|(subject, _)| !subject.starts_with(&own))
        {
            return Err(Error::Unfit("a subject is not one of the log"));
        }
        if records.iter().any(|(_, bytes)| bytes.len() > RECORD_LIMIT) {
            return Err(Error::Unfit("a record is too large"));
        }
        let records: Vec<Record> = records
            .iter()
            .map(|(subject, bytes)| Record {
                subject: subject.clone(),
                headers: Vec::new(),
                bytes: bytes.clone(),
            })
            .collect();
        self.writer.append(expected_head, &records).await
    }

    /// The sequence of the last record, 0 for an empty log, as the stream's leader knows it.
    ///
    /// # Errors
    /// [`Error::JetStream`].
    pub async fn head(&self) -> Result<u64, Error> {
        Ok(self.writer.stream.state().await?.last)
    }

    /// One record, read through the stream's leader; none behind the head.
    ///
    /// # Errors
    /// [`Error::JetStream`].
    pub async fn read(&self, sequence: u64) -> Result<Option<Entry>, Error> {
        Ok(self.writer.stream.message(sequence).await?)
    }

    /// A reader from `from` on (1 is the first record), which follows the log for ever.
    ///
    /// # Errors
    /// [`Error::JetStream`] when the connection is closed.
    pub async fn tail(&self, from: u64) -> Result<Tail, Error> {
        Ok(Tail::open(
            self.writer.stream.clone(),
            from,
            format!("{PREFIX}evt.>"),
            true,
        )
        .await?)
    }

    /// Compares the log with a ledger that has applied it up to `ledger_head`, whose last record has the RFC 6962 leaf
    /// hash `hash_of_last`. To be asked at start, after each reconnect and now and then.
    ///
    /// # Errors
    /// [`Error::Regression`] when the log ends before, or has other bytes there; [`Error::JetStream`] when it cannot be asked.
    pub async fn check_not_rewound(
        &self,
        ledger_head: u64,
        hash_of_last: [u8; 32],
    ) -> Result<(), Error> {
        if ledger_head == 0 {
            return Ok(());
        }
        let head = self.head().await?;
        if head < ledger_head {
            return Err(Error::Regression(format!(
                "its head is {head}, the ledger's {ledger_head}"
            )));
        }
        match self.read(ledger_head).await? {
            Some(entry) if leaf_hash(&entry.bytes) == hash_of_last => Ok(()),
            Some(_) => Err(Error::Regression(format!(
                "record {ledger_head} is not the one in the ledger"
            ))),
            None => Err(Error::Regression(format!("record {ledger_head} is gone"))),
        }
    }
}

/// The leaf hash of RFC 6962, section 2.1: SHA-256 over a zero byte and the record's bytes.
#[must_use]
pub fn leaf_hash(bytes: &[u8]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&[0]);
    context.update(bytes);
    context
        .finish()
        .as_ref()
        .try_into()
        .expect("a SHA-256 digest has 32 bytes")
}
