//! Group commit: many small puts become one atomic batch with one sync.
//!
//! One task per stream writes by the same compare-and-swap as the log, so that a put whose acknowledgement was lost is
//! found instead of stored twice. While one batch is being synced the next one gathers.

use async_nats::Client;
use tokio::sync::{mpsc, oneshot};

use crate::{
    jetstream::{self, BATCH_LIMIT, Record, Stream},
    log::{self, Writer},
};

/// Puts that wait for the next batch; further callers wait in turn.
const WAITING: usize = 4_096;

/// Bytes of one batch at most.
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// Why a put is not stored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More than a batch holds, none, or one that is larger than a message can be.
    #[error("cannot put: {0}")]
    Unfit(&'static str),
    /// The stream contradicts what is known of it.
    #[error(transparent)]
    Log(#[from] log::Error),
    /// A read or an erasure had no result; it can be repeated.
    #[error(transparent)]
    JetStream(#[from] jetstream::Error),
    /// The writing task has ended, because the process ends or the stream contradicted itself before.
    #[error("the writer of the stream has ended")]
    Ended,
}

struct Put {
    records: Vec<Record>,
    done: oneshot::Sender<Result<u64, String>>,
}

impl Put {
    fn bytes(&self) -> usize {
        self.records.iter().map(|record| record.bytes.len()).sum()
    }
}

/// The way to one stream's writing task, which ends when the last of these is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    puts: mpsc::Sender<Put>,
    pub(crate) stream: Stream,
}

impl Group {
    pub(crate) fn start(client: Client, name: &'static str) -> Group {
        let stream = Stream { client, name };
        let (puts, waiting) = mpsc::channel(WAITING);
        tokio::spawn(write(Writer::new(stream.clone()), waiting));
        Group { puts, stream }
    }

    /// Stores records next to each other, all or none; returns the sequence of the first.
    pub(crate) async fn put(&self, records: Vec<Record>, largest: usize) -> Result<u64, Error> {
        if records.is_empty() || records.len() > BATCH_LIMIT {
            return Err(Error::Unfit("there are none, or more than 1,000"));
        }
        if records.iter().any(|record| record.bytes.len() > largest) {
            return Err(Error::Unfit("one is too large"));
        }
        let (done, stored) = oneshot::channel();
        self.puts
            .send(Put { records, done })
            .await
            .map_err(|_| Error::Ended)?;
        let stored = stored.await.map_err(|_| Error::Ended)?;
        Ok(stored.map_err(log::Error::Regression)?)
    }
}

async fn write(writer: Writer, mut waiting: mpsc::Receiver<Put>) {
    let mut head = None;
    let mut held: Option<Put> = None;
    loop {
        let Some(first) = (match held.take() {
            Some(put) => Some(put),
            None => waiting.recv().await,
        }) else {
            return;
        };
        let (mut count, mut bytes) = (first.records.len(), first.bytes());
        let mut puts = vec![first];
        while let Ok(put) = waiting.try_recv() {
            if count + put.records.len() > BATCH_LIMIT || bytes + put.bytes() > BATCH_BYTES {
                held = Some(put);
                break;
            }
            count += put.records.len();
            bytes += put.bytes();
            puts.push(put);
        }
        let records: Vec<Record> = puts
            .iter()
            .flat_map(|put| put.records.iter().cloned())
            .collect();
        match append(&writer, &mut head, &records).await {
            Ok(mut first) => {
                for put in puts {
                    let count = put.records.len() as u64;
                    // A caller that no longer waits has its records stored all the same.
                    let _ = put.done.send(Ok(first));
                    first += count;
                }
            }
            Err(error) => {
                tracing::error!(stream = writer.stream.name, %error, "the stream cannot be written");
                for put in puts {
                    let _ = put.done.send(Err(error.to_string()));
                }
                head = None;
            }
        }
    }
}

/// Appends behind whatever the head is. Another writer's records are no conflict here, they only move it.
async fn append(
    writer: &Writer,
    head: &mut Option<u64>,
    records: &[Record],
) -> Result<u64, log::Error> {
    loop {
        let expected = match *head {
            Some(head) => head,
            None => loop {
                match writer.stream.state().await {
                    Ok(state) => break state.last,
                    Err(error) => {
                        tracing::debug!(stream = writer.stream.name, %error, "the head is not known yet");
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    }
                }
            },
        };
        match writer.append(expected, records).await {
            Ok(appended) => {
                *head = Some(appended.last);
                return Ok(appended.first);
            }
            Err(log::Error::Fenced { head: seen }) => *head = Some(seen),
            Err(error) => return Err(error),
        }
    }
}
