//! What distribution sends to the edges of a region, and what they answer.
//!
//! The feed is a set of rows. Each row has a key and a value that replaces the former one, so that rows can be applied
//! again without harm, and a snapshot that was read while the log went on is made whole by the delta that follows it.
//! Rows are normalised: a change of one certificate touches one row for each of its names, however many hosts these
//! cover, and a change of one origin touches one row however many hosts point at it. The edge joins them when a name
//! is first used.
//!
//! Binary fields are bincode 2 with its standard configuration. Everything that an edge acts on arrives inside a
//! [`Signed`] message, checked against the signer that the edge pinned when it enrolled.

use serde::{Deserialize, Serialize};

use lifecycle::names::{CertificateId, Digest, Host, ResourceId, Slug};
use lifecycle::selection::{Candidate, Mode};

/// The format of the feed. An edge refuses a feed of a format that it does not know.
pub const FORMAT: u16 = 2;

/// The kind of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Kind {
    /// A [`Claim`], by the SHA-256 of the host.
    Claim = 1,
    /// [`Names`], by the SHA-256 of the project, a NUL and the certificate name.
    Names = 2,
    /// A [`Resource`], by the SHA-256 of its id as text.
    Resource = 3,
    /// A [`Bundle`], by the SHA-256 of the project, a NUL and the fingerprint of its leaf in hex.
    Bundle = 4,
    /// A [`RegionKey`], by the SHA-256 of the edge's name.
    RegionKey = 5,
}

/// The key of a row. Rows are ordered by kind and then by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// What the row holds.
    pub kind: Kind,
    /// Which one.
    pub id: Digest,
}

impl Key {
    /// The row of a [`Claim`].
    pub fn claim(host: &str) -> Self {
        Self::hashed(Kind::Claim, &[host])
    }

    /// The row of [`Names`].
    pub fn names(project: &str, name: &str) -> Self {
        Self::hashed(Kind::Names, &[project, name])
    }

    /// The row of a [`Resource`].
    pub fn resource(id: ResourceId) -> Self {
        Self::hashed(Kind::Resource, &[&id.to_string()])
    }

    /// The row of a [`Bundle`]. Two projects that hold the same certificate hold a row each, so that what one of them does to
    /// it does not touch the other.
    pub fn bundle(project: &str, fingerprint: &Digest) -> Self {
        Self::hashed(Kind::Bundle, &[project, &fingerprint.to_string()])
    }

    /// The row of a [`RegionKey`].
    pub fn region_key(edge: &str) -> Self {
        Self::hashed(Kind::RegionKey, &[edge])
    }

    /// SHA-256 of the parts with a NUL between them.
    fn hashed(kind: Kind, parts: &[&str]) -> Self {
        let mut id = [0; 32];
        let hash =
            aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, parts.join("\0").as_bytes());
        id.copy_from_slice(hash.as_ref());
        Self {
            kind,
            id: Digest(id),
        }
    }
}

/// A claim as an edge needs it: who serves this host, and from where.
///
/// There is a row for each proven claim, exact or wildcard, and one for each provider domain, whose project is `platform`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The host, or a wildcard for one level.
    pub host: Host,
    /// Whose certificates may be served for it.
    pub project: Slug,
    /// The resource that it is attached to in this region.
    pub resource: Option<ResourceId>,
    /// Its HTTPS mode in this region.
    pub mode: Mode,
}

/// The candidates that a project has for one certificate name in this region, in no order: the edge ranks them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// The project.
    pub project: Slug,
    /// The SAN: a host or a wildcard.
    pub name: Host,
    /// Ready versions that are deployed here. `exact` is set when the name is not a wildcard.
    pub candidates: Vec<Candidate>,
}

/// Where requests go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// Its id.
    pub id: ResourceId,
    /// Who owns it. A connection that was opened for a host of another project is answered 421.
    pub project: Slug,
    /// Its name.
    pub name: Slug,
    /// The origin, an http or https URL. The request's path is appended to its path.
    pub origin: String,
    /// Whether Host is passed on as the client sent it; else it is the origin's authority.
    pub keep_host: bool,
    /// Whether the origin may be a loopback, link-local or private address. Only an operator can allow it; checked at each connect.
    pub private_origin: bool,
    /// Whether only publicly trusted certificates are served for its hosts.
    pub demand_public: bool,
    /// Whether requests are served at all (a suspended project's are not).
    pub served: bool,
}

/// A chain with its key, sealed for this region. Sent once, however many hosts use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// The project that the key belongs to.
    pub project: Slug,
    /// The certificate, for the access log and reports.
    pub certificate: CertificateId,
    /// Its version.
    pub version: u32,
    /// SHA-256 of the key's SubjectPublicKeyInfo.
    pub spki: Digest,
    /// The chain as DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// The version of the region key that `sealed_key` is sealed to.
    pub region_key_version: u32,
    /// The private key, sealed to the region key (`keyring`'s format).
    pub sealed_key: Vec<u8>,
}

/// A version of the region key, sealed to one edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionKey {
    /// The edge that can open it.
    pub edge: Slug,
    /// All versions that bundles may still be sealed to: version number and sealed key.
    pub versions: Vec<(u32, Vec<u8>)>,
}

/// A row's new value, or its removal. The value is the bincode of the type that belongs to the key's kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Which row.
    pub key: Key,
    /// Its value; None removes it.
    pub value: Option<Vec<u8>>,
}

/// What a signed message says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The rows that changed between two log sequences.
    Delta(Delta),
    /// A part of a snapshot.
    Chunk(Chunk),
    /// The deltas do not reach back to where the edge is, or its generation is an older one: take a snapshot.
    SnapshotNeeded {
        /// The generation in force.
        generation: u64,
        /// The head.
        sequence: u64,
    },
    /// The former signer names the next one. The edge pins it from then on.
    NextSigner {
        /// Ed25519 public key.
        public: [u8; 32],
    },
}

/// The rows that changed between two log sequences.
///
/// What is too large for one message comes in parts: all but the last have `to` equal to `from`. Rows come in an order in
/// which each part can be applied by itself: bundles before the names that lead to them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// Rises only on a restore.
    pub generation: u64,
    /// The sequence that the edge must be at (or beyond) to apply this.
    pub from: u64,
    /// The sequence that it is at afterwards.
    pub to: u64,
    /// The log's head when this was made; a `to` below it means that more is to be asked for.
    pub head: u64,
    /// The time of the last event, Unix milliseconds. An edge's clock never falls below it.
    pub time: i64,
    /// The rows. Applied in one transaction.
    pub changes: Vec<Change>,
}

/// Where in a snapshot to go on. Only distribution knows what it means; an edge hands it back as it came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor(pub String);

/// A part of a snapshot. Chunks are linked by their cursors: a snapshot is whole when each chunk began where the one before
/// it ended and the last has no `next`. It is current as of the lowest `sequence` among them, from which deltas go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// The generation.
    pub generation: u64,
    /// The log's head when this part was read.
    pub sequence: u64,
    /// The time of the last event, Unix milliseconds.
    pub time: i64,
    /// The cursor that was asked for. None for the first.
    pub after: Option<Cursor>,
    /// The cursor to ask for next; None at the end.
    pub next: Option<Cursor>,
    /// The rows.
    pub rows: Vec<(Key, Vec<u8>)>,
}

/// A message with its signature. The signature is made in the context [`SIGNING_CONTEXT`] over [`signing_input`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// The [`FORMAT`].
    pub format: u16,
    /// The bincode of a [`Message`].
    pub payload: Vec<u8>,
    /// Ed25519 public key of the signer.
    pub signer: [u8; 32],
    /// Ed25519 signature.
    pub signature: Vec<u8>,
}

/// What sets a feed signature apart from every other signature.
pub const SIGNING_CONTEXT: &str = "chancery.v1.region-feed";

/// The bytes that a feed signature covers, besides its context [`SIGNING_CONTEXT`]: the region, a NUL and the payload.
pub fn signing_input(region: &str, payload: &[u8]) -> Vec<u8> {
    [region.as_bytes(), b"\0", payload].concat()
}

/// A one-time enrolment token, as JSON in base64url. Whoever holds it can become that edge, until it is used or ends.
#[derive(Clone, Serialize, Deserialize)]
pub struct EnrolmentToken {
    /// The NATS server's URL.
    pub nats: String,
    /// The region.
    pub region: Slug,
    /// The edge's name.
    pub edge: Slug,
    /// A short-lived user that may ask for enrolment as this edge and nothing else: a credentials file's text.
    pub creds: String,
    /// The feed signer to pin: Ed25519 public key, lower-case hex.
    pub signer: Digest,
}

/// Request on `edge.<region>.<edge>.enrol`, JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolRequest {
    /// The edge's own user public key (NKEY, `U…`).
    pub nkey: String,
    /// The edge's HPKE public key (X25519), lower-case hex.
    pub hpke: Digest,
}

/// Answer to [`EnrolRequest`], JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EnrolResponse {
    /// The edge's user JWT.
    pub jwt: String,
    /// The region key as of now, sealed to the edge: hex of the bincode of [`RegionKey`].
    pub region_key: String,
}

/// Request on `edge.<region>.<edge>.sync`, JSON. Answered by a [`Signed`] [`Message::Delta`] or [`Message::SnapshotNeeded`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncRequest {
    /// The format that the edge reads.
    pub format: u16,
    /// The generation that the edge holds; 0 with an empty store.
    pub generation: u64,
    /// The sequence that it has applied; 0 with an empty store.
    pub sequence: u64,
}

/// Request on `edge.<region>.<edge>.chunk`, JSON. Answered by a [`Signed`] [`Message::Chunk`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkRequest {
    /// The format that the edge reads.
    pub format: u16,
    /// The `next` of the chunk before. None for the first.
    pub after: Option<Cursor>,
}

/// Published on `edge.<region>.<edge>.report`, JSON: when something was applied, and every three seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The generation that the edge holds.
    pub generation: u64,
    /// The sequence up to which it serves.
    pub applied: u64,
    /// Its software version.
    pub version: String,
    /// Unix milliseconds by its own clock.
    pub time: i64,
    /// Where it accepts HTTPS.
    pub https: Option<String>,
    /// Where it accepts plain HTTP.
    pub http: Option<String>,
    /// What is wrong with it, in words; empty when all is well.
    #[serde(default)]
    pub problems: Vec<String>,
}

/// The bytes of a message or a row.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, bincode::config::standard())
        .expect("feed shapes are plain data, which bincode can always encode")
}

/// The longest message of a feed, bytes. NATS carries no longer ones here.
pub const MESSAGE_MAX: usize = 8 << 20;

/// Reads what [`encode`] wrote. None for anything else, for bytes behind it too, and for what would take more than
/// [`MESSAGE_MAX`] bytes of memory.
pub fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let config = bincode::config::standard().with_limit::<MESSAGE_MAX>();
    match bincode::serde::decode_from_slice(bytes, config) {
        Ok((value, read)) if read == bytes.len() => Some(value),
        _ => None,
    }
}
