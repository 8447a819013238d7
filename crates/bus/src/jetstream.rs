//! The few JetStream requests that we use, spoken directly.
//!
//! A commit must distinguish three outcomes and a batch must be sent exactly as ADR-50 says, so the requests are
//! written out here instead of going through a client library that has other aims.

use std::{collections::VecDeque, sync::atomic::Ordering, time::Duration};

use async_nats::{Client, HeaderMap, Message, StatusCode, Subscriber, client::RequestErrorKind};
use bytes::Bytes;
use data_encoding::BASE64;
use futures_util::StreamExt;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;

use crate::connect::REQUEST_LIMIT;

/// Messages of one atomic batch at most (ADR-50).
pub const BATCH_LIMIT: usize = 1_000;

/// The server's own error number for a failed compare-and-swap on the head.
const WRONG_LAST_SEQUENCE: u64 = 10_071;
/// The server's own error number for a message that is not there.
const NO_MESSAGE: u64 = 10_037;
/// The server's own error number for a stream that is not there.
pub(crate) const NO_STREAM: u64 = 10_059;

/// Messages and bytes asked for in one page.
const PAGE_MESSAGES: usize = 512;
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// Why a request to JetStream had no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// JetStream answered with an error.
    #[error("JetStream refuses {what}: {description} ({code})")]
    Refused {
        /// The request's subject.
        what: String,
        /// The server's own error number.
        code: u64,
        /// The server's own words.
        description: String,
    },
    /// Nobody answered, or not in time: the server is away, has no leader, or denies the subject.
    #[error("no answer from JetStream to {what}: {reason}")]
    NoAnswer {
        /// The request's subject.
        what: String,
        /// What the client says.
        reason: String,
    },
    /// The answer is not of the form that is documented.
    #[error("JetStream's answer to {what} cannot be read")]
    Unreadable {
        /// The request's subject.
        what: String,
    },
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// Sends a request to the JetStream API and reads its answer.
pub(crate) async fn request<T: DeserializeOwned>(
    client: &Client,
    subject: &str,
    body: &serde_json::Value,
) -> Result<T, Error> {
    let body = if body.is_null() {
        Bytes::new()
    } else {
        Bytes::from(body.to_string())
    };
    let answer = client
        .request(subject.to_owned(), body)
        .await
        .map_err(|error| Error::NoAnswer {
            what: subject.to_owned(),
            reason: error.to_string(),
        })?;
    read_answer(subject, &answer.payload)
}

/// Publishes a message to a stream and reads the acknowledgement.
pub(crate) async fn request_with<T: DeserializeOwned>(
    client: &Client,
    subject: &str,
    headers: HeaderMap,
    body: Bytes,
) -> Result<T, Error> {
    let answer = client
        .request_with_headers(subject.to_owned(), headers, body)
        .await
        .map_err(|error| Error::NoAnswer {
            what: subject.to_owned(),
            reason: error.to_string(),
        })?;
    read_answer(subject, &answer.payload)
}

fn read_answer<T: DeserializeOwned>(subject: &str, payload: &[u8]) -> Result<T, Error> {
    #[derive(Deserialize)]
    struct Failed {
        error: Option<ApiError>,
    }
    let unreadable = |_| Error::Unreadable {
        what: subject.to_owned(),
    };
    if let Some(error) = serde_json::from_slice::<Failed>(payload)
        .map_err(unreadable)?
        .error
    {
        return Err(Error::Refused {
            what: subject.to_owned(),
            code: error.err_code,
            description: error.description,
        });
    }
    serde_json::from_slice(payload).map_err(unreadable)
}

/// One message to store.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) subject: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) bytes: Bytes,
}

/// One stored message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the stream, from 1.
    pub sequence: u64,
    /// The subject under which it was stored.
    pub subject: String,
    /// The exact bytes.
    pub bytes: Bytes,
}

/// The ends of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) last: u64,
}

/// What one attempt to commit came to.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// Stored; the sequence of the last message.
    Stored(u64),
    /// The head is not the expected one, so this attempt stored nothing.
    WrongHead,
    /// Stored or not, now or later: nobody knows yet.
    Unknown(String),
}

/// One stream, as seen by one connection.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(crate) client: Client,
    pub(crate) name: &'static str,
}

impl Stream {
    pub(crate) async fn state(&self) -> Result<State, Error> {
        #[derive(Deserialize)]
        struct Info {
            state: InfoState,
        }
        #[derive(Deserialize)]
        struct InfoState {
            last_seq: u64,
        }
        let subject = format!("$JS.API.STREAM.INFO.{}", self.name);
        let info: Info = request(&self.client, &subject, &serde_json::Value::Null).await?;
        Ok(State {
            last: info.state.last_seq,
        })
    }

    /// Reads one message through the stream's leader, which alone has every committed one.
    pub(crate) async fn message(&self, sequence: u64) -> Result<Option<Entry>, Error> {
        Ok(self.stored(sequence).await?.map(|(entry, _)| entry))
    }

    /// The same, with the id of the atomic batch that brought it, if one did.
    pub(crate) async fn stored(
        &self,
        sequence: u64,
    ) -> Result<Option<(Entry, Option<String>)>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            message: Stored,
        }
        #[derive(Deserialize)]
        struct Stored {
            subject: String,
            seq: u64,
            #[serde(default)]
            data: String,
            #[serde(default)]
            hdrs: String,
        }
        let subject = format!("$JS.API.STREAM.MSG.GET.{}", self.name);
        match request::<Answer>(&self.client, &subject, &json!({"seq": sequence})).await {
            Ok(Answer { message }) => {
                let decode = |text: &str| {
                    BASE64
                        .decode(text.as_bytes())
                        .map_err(|_| Error::Unreadable {
                            what: subject.clone(),
                        })
                };
                let headers = String::from_utf8_lossy(&decode(&message.hdrs)?).into_owned();
                let batch = headers
                    .lines()
                    .find_map(|line| line.strip_prefix("Nats-Batch-Id:"))
                    .map(|id| id.trim().to_owned());
                let entry = Entry {
                    sequence: message.seq,
                    subject: message.subject,
                    bytes: decode(&message.data)?.into(),
                };
                Ok(Some((entry, batch)))
            }
            Err(Error::Refused {
                code: NO_MESSAGE, ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn connects(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Relaxed)
    }

    /// Returns once the client has connected anew since it had connected `before` times.
    async fn reconnected(&self, before: u64) {
        while self.connects() == before {
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// Sends records once, as one plain message or one atomic batch, on the condition that the head is `expected`.
    ///
    /// `batch` is the batch's id: at most 64 characters, and another one for each attempt.
    pub(crate) async fn attempt(
        &self,
        expected: u64,
        records: &[Record],
        batch: String,
    ) -> Attempt {
        let Some((last, earlier)) = records.split_last() else {
            return Attempt::Unknown("nothing to store".to_owned());
        };
        let mut condition = HeaderMap::new();
        condition.insert("Nats-Expected-Stream", self.name);
        if !crate::faults::planted("no-cas") {
            condition.insert("Nats-Expected-Last-Sequence", expected.to_string());
        }
        let batch = (!earlier.is_empty()).then_some(batch);
        let headers_of = |index: usize, record: &Record| {
            let mut headers = if index == 0 {
                condition.clone()
            } else {
                HeaderMap::new()
            };
            for (name, value) in &record.headers {
                headers.insert(*name, value.as_str());
            }
            if let Some(batch) = &batch {
                headers.insert("Nats-Batch-Id", batch.as_str());
                headers.insert("Nats-Batch-Sequence", (index + 1).to_string());
            }
            headers
        };
        for (index, record) in earlier.iter().enumerate() {
            let sent = self
                .client
                .publish_with_headers(
                    record.subject.clone(),
                    headers_of(index, record),
                    record.bytes.clone(),
                )
                .await;
            if let Err(error) = sent {
                return Attempt::Unknown(error.to_string());
            }
            if index == earlier.len() / 2 {
                crate::faults::after_flush(&self.client, self.name, "mid-batch").await;
            }
        }
        let mut headers = headers_of(earlier.len(), last);
        if batch.is_some() {
            crate::faults::after_flush(&self.client, self.name, "before-commit-message").await;
            headers.insert("Nats-Batch-Commit", "1");
        }
        let request = async_nats::Request::new()
            .headers(headers)
            .payload(last.bytes.clone())
            .timeout(Some(REQUEST_LIMIT));
        let connects = self.connects();
        let answer = async {
            // A connection that was lost and is back brings no answer any more; waiting out the limit would help nobody.
            tokio::select! {
                answer = self.client.send_request(last.subject.clone(), request) => Some(answer),
                () = self.reconnected(connects) => None,
            }
        };
        let answer =
            crate::faults::between_sending_and_answer(&self.client, self.name, answer).await;
        let answer = match answer {
            Some(Ok(message)) => message,
            Some(Err(error)) if error.kind() == RequestErrorKind::NoResponders => {
                return Attempt::Unknown("no stream answers".to_owned());
            }
            Some(Err(error)) => return Attempt::Unknown(error.to_string()),
            None => {
                return Attempt::Unknown("the connection was lost before the answer".to_owned());
            }
        };
        #[derive(Deserialize)]
        struct Ack {
            stream: String,
            seq: u64,
        }
        match read_answer::<Ack>(&last.subject, &answer.payload) {
            Ok(ack) if ack.stream == self.name => Attempt::Stored(ack.seq),
            Ok(ack) => Attempt::Unknown(format!("another stream answered: {}", ack.stream)),
            Err(Error::Refused {
                code: WRONG_LAST_SEQUENCE,
                ..
            }) => Attempt::WrongHead,
            Err(error) => Attempt::Unknown(error.to_string()),
        }
    }
}

/// Why a reader cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// A sequence is missing: what follows must not be applied.
    #[error("stream {stream} skips from {after} to {found}")]
    Gap {
        /// The stream's name.
        stream: &'static str,
        /// The last sequence that was read.
        after: u64,
        /// The sequence that came instead of the next.
        found: u64,
    },
}

/// A reader of a stream from some place on, in order, without a consumer on the server.
///
/// It reads pages by direct get and then follows the server's republished messages. Those are delivered at most once, so
/// they are only taken when they are exactly the next; otherwise they say that a page can be read.
pub struct Tail {
    stream: Stream,
    gapless: bool,
    /// Whether republished messages carry the bytes, or only wake.
    whole: bool,
    wake: Subscriber,
    /// Answers to page requests come to `<inbox>.<page>`, so that a late answer is not taken for a later page's.
    inbox: String,
    answers: Subscriber,
    page: u64,
    ready: VecDeque<Entry>,
    last: u64,
    /// Set when there may be more than was read.
    behind: bool,
}

impl std::fmt::Debug for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tail")
            .field("stream", &self.stream.name)
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

/// How often a reader looks for more without having been woken.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Tail {
    pub(crate) async fn open(
        stream: Stream,
        from: u64,
        wake_subject: String,
        gapless: bool,
    ) -> Result<Tail, Error> {
        let no_answer = |error: async_nats::SubscribeError| Error::NoAnswer {
            what: "subscribing".to_owned(),
            reason: error.to_string(),
        };
        let client = stream.client.clone();
        let inbox = client.new_inbox();
        let wake = client.subscribe(wake_subject).await.map_err(no_answer)?;
        let answers = client
            .subscribe(format!("{inbox}.*"))
            .await
            .map_err(no_answer)?;
        Ok(Tail {
            stream,
            gapless,
            whole: gapless,
            wake,
            inbox,
            answers,
            page: 0,
            ready: VecDeque::new(),
            last: from.saturating_sub(1),
            behind: true,
        })
    }

    /// The sequence of the last entry that was handed out.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The next entry. Waits for ever while there is none, also through the loss of the server.
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`TailError::Gap`], for a stream that may have none.
    pub async fn next(&mut self) -> Result<Entry, TailError> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                if self.gapless && entry.sequence != self.last + 1 {
                    let found = entry.sequence;
                    return Err(TailError::Gap {
                        stream: self.stream.name,
                        after: self.last,
                        found,
                    });
                }
                if entry.sequence <= self.last {
                    continue;
                }
                self.last = entry.sequence;
                return Ok(entry);
            }
            if self.behind {
                match self.read_page().await {
                    Ok(()) => continue,
                    Err(error) => {
                        tracing::debug!(stream = self.stream.name, %error, "reading a page failed and is repeated");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                }
            }
            match tokio::time::timeout(LOOK_AGAIN, self.wake.next()).await {
                Ok(Some(message)) => self.take_republished(message),
                // The subscription ends only with the client; the pages then fail and say so.
                Ok(None) | Err(_) => self.behind = true,
            }
        }
    }

    /// The entries that are there now, without waiting for more: none means that the reader has reached the head.
    ///
    /// The two errors are apart because they ask for different things: a page that could not be read is asked for
    /// again, a gap ends the reading.
    ///
    /// # Errors
    /// Outside, [`Error`] when the page could not be read; inside, [`TailError::Gap`] for a stream that may have none.
    pub async fn page(&mut self) -> Result<Result<Vec<Entry>, TailError>, Error> {
        if self.ready.is_empty() {
            self.read_page().await?;
        }
        let mut entries = Vec::with_capacity(self.ready.len());
        while !self.ready.is_empty() {
            match self.next().await {
                Ok(entry) => entries.push(entry),
                Err(gap) => return Ok(Err(gap)),
            }
        }
        Ok(Ok(entries))
    }

    fn take_republished(&mut self, message: Message) {
        let header = |name: &str| {
            message
                .headers
                .as_ref()
                .and_then(|headers| headers.get(name))
        };
        let sequence = header("Nats-Sequence").and_then(|value| value.as_str().parse::<u64>().ok());
        match (sequence, header("Nats-Subject")) {
            (Some(sequence), _) if sequence <= self.last => {}
            (Some(sequence), Some(subject)) if self.whole && sequence == self.last + 1 => {
                let subject = subject.as_str().to_owned();
                self.ready.push_back(Entry {
                    sequence,
                    subject,
                    bytes: message.payload,
                });
            }
            _ => self.behind = true,
        }
    }

    async fn read_page(&mut self) -> Result<(), Error> {
        self.page += 1;
        let subject = format!("$JS.API.DIRECT.GET.{}", self.stream.name);
        let reply = format!("{}.{}", self.inbox, self.page);
        let body = json!({"seq": self.last + 1, "batch": PAGE_MESSAGES, "max_bytes": PAGE_BYTES})
            .to_string();
        let no_answer = |reason: String| Error::NoAnswer {
            what: subject.clone(),
            reason,
        };
        self.stream
            .client
            .publish_with_reply(subject.clone(), reply.clone(), body.into())
            .await
            .map_err(|error| no_answer(error.to_string()))?;
        let mut page = VecDeque::new();
        loop {
            let message = tokio::time::timeout(REQUEST_LIMIT, self.answers.next())
                .await
                .map_err(|_| no_answer("timed out".to_owned()))?
                .ok_or_else(|| no_answer("the connection is closed".to_owned()))?;
            if message.subject.as_str() != reply {
                continue;
            }
            match message.status {
                None => {}
                // 204 ends a batch; 404 says that there is nothing from there on.
                Some(status) if status.as_u16() == 204 => break,
                Some(StatusCode::NOT_FOUND) => {
                    self.behind = false;
                    break;
                }
                Some(status) => return Err(no_answer(format!("status {status}"))),
            }
            let header = |name: &str| {
                message
                    .headers
                    .as_ref()
                    .and_then(|headers| headers.get(name))
            };
            let sequence =
                header("Nats-Sequence").and_then(|value| value.as_str().parse::<u64>().ok());
            let (Some(sequence), Some(stored)) = (sequence, header("Nats-Subject")) else {
                return Err(Error::Unreadable { what: subject });
            };
            let stored = stored.as_str().to_owned();
            page.push_back(Entry {
                sequence,
                subject: stored,
                bytes: message.payload,
            });
        }
        // A short page does not prove the end: the limit may have been bytes. The next one, empty, does.
        self.ready.append(&mut page);
        Ok(())
    }
}
