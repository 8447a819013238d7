//! The stream `KEYS`: sealed private keys. It is their truth, and unlike the log it forgets.

use async_nats::Client;
use bytes::Bytes;
use serde_json::{Value, json};

pub use crate::group::Error;
use crate::{
    PREFIX,
    group::Group,
    jetstream::{Entry, Record, Tail, request},
};

/// Bytes of one sealed key at most.
pub const KEY_LIMIT: usize = 64 * 1024;

/// The stream of sealed keys, as one connection of the role `keys` writes and reads it. Clones share one writing task.
#[derive(Debug, Clone)]
pub struct Keys {
    group: Group,
}

impl Keys {
    /// Starts the writing task; it needs a running tokio runtime.
    #[must_use]
    pub fn start(client: Client) -> Keys {
        Keys {
            group: Group::start(client, "KEYS"),
        }
    }

    /// Stores sealed keys and returns the stream sequence of each once they are durable. It is the handle to delete one.
    ///
    /// # Errors
    /// See [`Error`]. While the server is away this waits.
    pub async fn put(&self, sealed: Vec<Bytes>) -> Result<Vec<u64>, Error> {
        let count = sealed.len() as u64;
        let records = sealed
            .into_iter()
            .map(|bytes| Record {
                subject: format!("{PREFIX}internal.keys.put"),
                headers: Vec::new(),
                bytes,
            })
            .collect();
        let first = self.group.put(records, KEY_LIMIT).await?;
        Ok((first..first + count).collect())
    }

    /// Deletes a sealed key by its stream sequence; the server overwrites its bytes. One that is gone is no error.
    ///
    /// # Errors
    /// [`Error::JetStream`]; the deletion can be repeated.
    pub async fn delete(&self, sequence: u64) -> Result<(), Error> {
        let client = &self.group.stream.client;
        let body = json!({"seq": sequence, "no_erase": false});
        let deleted = request::<Value>(client, "$JS.API.STREAM.MSG.DELETE.KEYS", &body).await;
        match deleted {
            Ok(_) => Ok(()),
            // The server's error for a missing message is that of any failed deletion, so the message decides.
            Err(error) => match self.group.stream.message(sequence).await {
                Ok(None) => Ok(()),
                _ => Err(error.into()),
            },
        }
    }

    /// One sealed key by its stream sequence.
    ///
    /// # Errors
    /// [`Error::JetStream`].
    pub async fn read(&self, sequence: u64) -> Result<Option<Entry>, Error> {
        Ok(self.group.stream.message(sequence).await?)
    }

    /// A reader from `from` on, which follows the stream for ever; [`Tail::page`] until it is empty loads all there is.
    /// Sequences have gaps where keys were deleted.
    ///
    /// # Errors
    /// [`Error::JetStream`] when the connection is closed.
    pub async fn tail(&self, from: u64) -> Result<Tail, Error> {
        let wake = format!("{PREFIX}internal.keys.stored");
        Ok(Tail::open(self.group.stream.clone(), from, wake, false).await?)
    }
}
