//! The stream `OBJECTS`: certificates as DER, durable before the event that names them by their hash.

use async_nats::Client;
use aws_lc_rs::digest;
use bytes::Bytes;
use data_encoding::HEXLOWER;

pub use crate::group::Error;
use crate::{
    PREFIX,
    group::Group,
    jetstream::{Entry, Record, Tail},
};

/// Bytes of one object at most.
pub const OBJECT_LIMIT: usize = 256 * 1024;

/// The content store, as one connection of the role `objects` writes and reads it. Clones share one writing task.
#[derive(Debug, Clone)]
pub struct Objects {
    group: Group,
}

/// The name of an object: the SHA-256 of its bytes.
#[must_use]
pub fn object_hash(bytes: &[u8]) -> [u8; 32] {
    digest::digest(&digest::SHA256, bytes)
        .as_ref()
        .try_into()
        .expect("a SHA-256 digest has 32 bytes")
}

impl Objects {
    /// Starts the writing task; it needs a running tokio runtime.
    #[must_use]
    pub fn start(client: Client) -> Objects {
        Objects {
            group: Group::start(client, "OBJECTS"),
        }
    }

    /// Stores objects and returns their names once they are durable. An object that is stored twice is the same object.
    ///
    /// # Errors
    /// See [`Error`]. While the server is away this waits.
    pub async fn put(&self, objects: Vec<Bytes>) -> Result<Vec<[u8; 32]>, Error> {
        let hashes: Vec<_> = objects.iter().map(|bytes| object_hash(bytes)).collect();
        let records = objects
            .into_iter()
            .zip(&hashes)
            .map(|(bytes, hash)| Record {
                subject: format!("{PREFIX}internal.objects.put"),
                headers: vec![("Chancery-Sha256", HEXLOWER.encode(hash))],
                bytes,
            })
            .collect();
        self.group.put(records, OBJECT_LIMIT).await?;
        Ok(hashes)
    }

    /// One object by its place in the stream.
    ///
    /// # Errors
    /// [`Error::JetStream`].
    pub async fn read(&self, sequence: u64) -> Result<Option<Entry>, Error> {
        Ok(self.group.stream.message(sequence).await?)
    }

    /// A reader from `from` on, which follows the stream for ever.
    ///
    /// # Errors
    /// [`Error::JetStream`] when the connection is closed.
    pub async fn tail(&self, from: u64) -> Result<Tail, Error> {
        let wake = format!("{PREFIX}internal.objects.stored");
        Ok(Tail::open(self.group.stream.clone(), from, wake, false).await?)
    }
}
