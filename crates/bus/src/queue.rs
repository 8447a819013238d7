//! The work queue behind `queue.<project>.…`: a command that was checked and sealed, durable before it is answered.

use std::time::Duration;

use async_nats::{Client, HeaderMap, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::json;

use crate::{
    PREFIX,
    jetstream::{self, request_with},
};

/// Bytes of one queued command at most.
pub const WORK_LIMIT: usize = 512 * 1024;

/// The server's own error numbers for a stream that holds as much as it may.
const FULL: &[u64] = &[10_077, 10_047];

/// Why something is not queued or not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The queue holds as much as it may; the asker should try again later.
    #[error("the work queue is full")]
    Full,
    /// It is larger than [`WORK_LIMIT`].
    #[error("the command is too large for the work queue")]
    TooLarge,
    /// There was no result; putting the same id again is safe for ten minutes, after which the registrar's
    /// permanent memory of ids takes over.
    #[error(transparent)]
    JetStream(#[from] jetstream::Error),
}

/// The work queue, over a connection of the role `queue`.
#[derive(Debug, Clone)]
pub struct Queue {
    client: Client,
}

/// One command taken from the queue. Not finished within thirty seconds, it is given out again.
#[derive(Debug)]
pub struct Work {
    /// The bytes that were put.
    pub bytes: Bytes,
    client: Client,
    token: String,
}

impl Queue {
    /// The queue over a connection.
    #[must_use]
    pub fn new(client: Client) -> Queue {
        Queue { client }
    }

    /// Puts a command in, under `<project>/<id>`; returns true if that id was there already.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn put(&self, id: &str, bytes: Bytes) -> Result<bool, Error> {
        #[derive(Deserialize)]
        struct Ack {
            #[serde(default)]
            duplicate: bool,
        }
        if bytes.len() > WORK_LIMIT {
            return Err(Error::TooLarge);
        }
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", id);
        headers.insert("Nats-Expected-Stream", "QUEUE");
        let subject = format!("{PREFIX}internal.queue.work");
        match request_with::<Ack>(&self.client, &subject, headers, bytes).await {
            Ok(ack) => Ok(ack.duplicate),
            Err(jetstream::Error::Refused { code, .. }) if FULL.contains(&code) => Err(Error::Full),
            Err(error) => Err(error.into()),
        }
    }

    /// How many commands wait in it, those that were taken and are not finished included.
    ///
    /// # Errors
    /// [`Error::JetStream`].
    pub async fn waiting(&self) -> Result<u64, Error> {
        #[derive(Deserialize)]
        struct Info {
            state: State,
        }
        #[derive(Deserialize)]
        struct State {
            messages: u64,
        }
        let info: Info = jetstream::request(
            &self.client,
            "$JS.API.STREAM.INFO.QUEUE",
            &serde_json::Value::Null,
        )
        .await?;
        Ok(info.state.messages)
    }

    /// Takes up to `max` commands, waiting up to `wait` for the first; none when none came.
    ///
    /// # Errors
    /// [`Error::JetStream`].
    pub async fn take(&self, max: usize, wait: Duration) -> Result<Vec<Work>, Error> {
        let now = self
            .pull(
                json!({"batch": max, "no_wait": true}),
                max,
                Duration::from_secs(2),
            )
            .await?;
        if !now.is_empty() || wait.is_zero() {
            return Ok(now);
        }
        let nanoseconds = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        self.pull(
            json!({"batch": 1, "expires": nanoseconds}),
            1,
            wait + Duration::from_secs(1),
        )
        .await
    }

    async fn pull(
        &self,
        body: serde_json::Value,
        max: usize,
        limit: Duration,
    ) -> Result<Vec<Work>, Error> {
        let subject = "$JS.API.CONSUMER.MSG.NEXT.QUEUE.worker";
        let no_answer = |reason: String| jetstream::Error::NoAnswer {
            what: subject.to_owned(),
            reason,
        };
        let inbox = self.client.new_inbox();
        let mut answers = self
            .client
            .subscribe(inbox.clone())
            .await
            .map_err(|error| no_answer(error.to_string()))?;
        self.client
            .publish_with_reply(subject, inbox, body.to_string().into())
            .await
            .map_err(|error| no_answer(error.to_string()))?;
        let mut taken = Vec::new();
        let deadline = tokio::time::Instant::now() + limit;
        while taken.len() < max {
            let Ok(Some(message)) = tokio::time::timeout_at(deadline, answers.next()).await else {
                // What was taken is worth more than the missing end of the batch.
                break;
            };
            match (message.status, message.reply) {
                (None, Some(token)) => taken.push(Work {
                    bytes: message.payload,
                    client: self.client.clone(),
                    token: token.to_string(),
                }),
                // 404: nothing there; 408: nothing came in time; 409: the server has had to end the request.
                (Some(StatusCode::NOT_FOUND), _) => break,
                (Some(status), _) if [408, 409].contains(&status.as_u16()) => break,
                (Some(status), _) => return Err(no_answer(format!("status {status}")).into()),
                (None, None) => {}
            }
        }
        Ok(taken)
    }
}

impl Work {
    /// Finishes the command and waits until the queue has forgotten it.
    ///
    /// # Errors
    /// [`Error::JetStream`]: it may be given out again, and the registrar's memory of ids then finds it done.
    pub async fn done(self) -> Result<(), Error> {
        self.client
            .request(self.token.clone(), "+ACK".into())
            .await
            .map(|_| ())
            .map_err(|error| {
                jetstream::Error::NoAnswer {
                    what: "acknowledging queued work".to_owned(),
                    reason: error.to_string(),
                }
                .into()
            })
    }

    /// Gives the command back at once, to be tried again after `after`.
    ///
    /// # Errors
    /// [`Error::JetStream`]: it is given out again after thirty seconds then.
    pub async fn later(self, after: Duration) -> Result<(), Error> {
        let body = format!("-NAK {{\"delay\":{}}}", after.as_nanos());
        self.client
            .publish(self.token.clone(), body.into())
            .await
            .map_err(|error| {
                jetstream::Error::NoAnswer {
                    what: "giving queued work back".to_owned(),
                    reason: error.to_string(),
                }
                .into()
            })
    }

    /// Asks for another thirty seconds.
    ///
    /// # Errors
    /// [`Error::JetStream`].
    pub async fn more_time(&self) -> Result<(), Error> {
        self.client
            .publish(self.token.clone(), "+WPI".into())
            .await
            .map_err(|error| {
                jetstream::Error::NoAnswer {
                    what: "asking for more time".to_owned(),
                    reason: error.to_string(),
                }
                .into()
            })
    }
}
