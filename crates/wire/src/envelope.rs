//! An event as the log stores it: CloudEvents 1.0 in structured JSON.
//!
//! The bytes are the truth: they are the leaf of the RFC 6962 tree, and nobody ever serialises them again. Each event
//! says itself where it stands (`sequence`, `projectseq`, `prevhash`) and which part of which command it is, so that any
//! reader can find a gap, a fork or a rewrite without asking us.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use uuid::Uuid;

use ledger::Hash;
use lifecycle::event::{Event, Recorded};
use lifecycle::names::Slug;

/// Largest event, bytes.
pub const SIZE_MAX: usize = 48 * 1024;
/// The level of shapes that this release writes.
pub const LEVEL: u32 = 1;

const TYPE_PREFIX: &str = "dev.chancery.";
/// The dedup space of commands that the system gives itself.
pub const INTERNAL_SPACE: &str = "_internal";

/// Why bytes are not an event that this release can read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON of the envelope's shape, or data not of its type's shape.
    #[error("not an event: {0}")]
    Json(#[from] serde_json::Error),
    /// A type that this release does not know: a newer one wrote it.
    #[error(
        "unknown event type {0}: a newer release wrote it; upgrade this node before it goes on"
    )]
    UnknownType(String),
    /// An attribute is not what it should be.
    #[error("the attribute {0} is malformed")]
    Attribute(&'static str),
    /// Larger than [`SIZE_MAX`].
    #[error("the event would have {0} bytes of at most {SIZE_MAX}")]
    TooLarge(usize),
}

/// An event with everything around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The log's id.
    pub log: String,
    /// Its place in the log, from 1.
    pub sequence: u64,
    /// The project that it belongs to.
    pub project: Slug,
    /// Its place among the project's events, from 1.
    pub project_sequence: u64,
    /// When it was decided, Unix microseconds.
    pub time: i64,
    /// The leaf hash of the event before; zeros for the first.
    pub prevhash: Hash,
    /// The command that it follows from.
    pub command: CommandRef,
    /// Who caused it: an opaque id, or `_<role>`.
    pub actor: String,
    /// Ties together what belongs together.
    pub correlation: String,
    /// What happened.
    pub event: Event,
}

/// Which part of which command an event is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandRef {
    /// The idempotency key.
    pub id: Uuid,
    /// Its dedup space: the project of the command's subject, or [`INTERNAL_SPACE`].
    pub space: String,
    /// From 1.
    pub index: u32,
    /// How many events the command became.
    pub count: u32,
    /// SHA-256 of the command's canonical body.
    pub digest: [u8; 32],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shape<'a> {
    specversion: Cow<'a, str>,
    id: Cow<'a, str>,
    source: Cow<'a, str>,
    #[serde(rename = "type")]
    kind: Cow<'a, str>,
    time: Cow<'a, str>,
    datacontenttype: Cow<'a, str>,
    project: Cow<'a, str>,
    sequence: Cow<'a, str>,
    projectseq: Cow<'a, str>,
    prevhash: Cow<'a, str>,
    commandid: Cow<'a, str>,
    commandindex: Cow<'a, str>,
    commandcount: Cow<'a, str>,
    commandspace: Cow<'a, str>,
    cmddigest: Cow<'a, str>,
    actor: Cow<'a, str>,
    correlation: Cow<'a, str>,
    #[serde(borrow)]
    data: Cow<'a, RawValue>,
}

struct Data<'a>(&'a Event);

impl Serialize for Data<'_> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.serialize_data(to)
    }
}

impl Envelope {
    /// The bytes for the log.
    ///
    /// # Errors
    /// [`Error::TooLarge`]; a command whose event is that large is to be refused before it gets here.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let data = serde_json::value::to_raw_value(&Data(&self.event))?;
        let bytes = serde_json::to_vec(&Shape {
            specversion: "1.0".into(),
            id: format!("{}/{}", self.command.id, self.command.index).into(),
            source: format!("urn:chancery:log:{}", self.log).into(),
            kind: format!("{TYPE_PREFIX}{}.v1", self.event.name()).into(),
            time: rfc3339_micros(self.time).into(),
            datacontenttype: "application/json".into(),
            project: self.project.as_str().into(),
            sequence: self.sequence.to_string().into(),
            projectseq: self.project_sequence.to_string().into(),
            prevhash: self.prevhash.to_string().into(),
            commandid: self.command.id.to_string().into(),
            commandindex: self.command.index.to_string().into(),
            commandcount: self.command.count.to_string().into(),
            commandspace: self.command.space.as_str().into(),
            cmddigest: data_encoding::HEXLOWER.encode(&self.command.digest).into(),
            actor: self.actor.as_str().into(),
            correlation: self.correlation.as_str().into(),
            data: Cow::Owned(data),
        })?;
        if bytes.len() > SIZE_MAX {
            return Err(Error::TooLarge(bytes.len()));
        }
        Ok(bytes)
    }

    /// Reads an event, upcasting older shapes of its data.
    ///
    /// # Errors
    /// See [`Error`]. [`Error::UnknownType`] means that whoever applies events must stop here.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let shape: Shape<'_> = serde_json::from_slice(bytes)?;
        let unknown = || Error::UnknownType(shape.kind.clone().into_owned());
        // The place for upcasts: a type of an older version is brought to today's data before it is read. There is none yet.
        let name = shape
            .kind
            .strip_prefix(TYPE_PREFIX)
            .and_then(|k| k.strip_suffix(".v1"))
            .ok_or_else(unknown)?;
        let mut data = serde_json::Deserializer::from_str(shape.data.get());
        let event = Event::deserialize_data(name, &mut data).ok_or_else(unknown)??;
        Ok(Self {
            log: shape
                .source
                .strip_prefix("urn:chancery:log:")
                .ok_or(Error::Attribute("source"))?
                .to_owned(),
            sequence: number(&shape.sequence, "sequence")?,
            project: Slug::name(&shape.project).map_err(|_| Error::Attribute("project"))?,
            project_sequence: number(&shape.projectseq, "projectseq")?,
            time: micros(&shape.time).ok_or(Error::Attribute("time"))?,
            prevhash: shape
                .prevhash
                .parse()
                .map_err(|_| Error::Attribute("prevhash"))?,
            command: CommandRef {
                id: shape
                    .commandid
                    .parse()
                    .map_err(|_| Error::Attribute("commandid"))?,
                space: shape.commandspace.into_owned(),
                index: number(&shape.commandindex, "commandindex")?,
                count: number(&shape.commandcount, "commandcount")?,
                digest: data_encoding::HEXLOWER
                    .decode(shape.cmddigest.as_bytes())
                    .ok()
                    .and_then(|d| d.try_into().ok())
                    .ok_or(Error::Attribute("cmddigest"))?,
            },
            actor: shape.actor.into_owned(),
            correlation: shape.correlation.into_owned(),
            event,
        })
    }

    /// The event as the tables take it.
    pub fn recorded(self) -> Recorded {
        Recorded {
            sequence: self.sequence,
            project: self.project,
            time: self.time,
            actor: self.actor,
            event: self.event,
        }
    }
}

/// Where an event says that it stands, read without its data: enough to verify the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Its place in the log.
    pub sequence: u64,
    /// Its project.
    pub project: String,
    /// Its place in the project.
    pub project_sequence: u64,
    /// The hash of the event before.
    pub prevhash: Hash,
    /// Its type's `<noun>.<fact>`, empty if the type is of another form.
    pub name: String,
    /// From 1.
    pub index: u32,
    /// How many events its command became.
    pub count: u32,
    /// The command's id, as text.
    pub command: String,
    /// When, Unix microseconds.
    pub time: i64,
}

impl Position {
    /// Reads the position from an event's bytes.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn of(bytes: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Head<'a> {
            #[serde(rename = "type", borrow)]
            kind: Cow<'a, str>,
            #[serde(borrow)]
            time: Cow<'a, str>,
            #[serde(borrow)]
            project: Cow<'a, str>,
            #[serde(borrow)]
            sequence: Cow<'a, str>,
            #[serde(borrow)]
            projectseq: Cow<'a, str>,
            #[serde(borrow)]
            prevhash: Cow<'a, str>,
            #[serde(borrow)]
            commandid: Cow<'a, str>,
            #[serde(borrow)]
            commandindex: Cow<'a, str>,
            #[serde(borrow)]
            commandcount: Cow<'a, str>,
        }
        let head: Head<'_> = serde_json::from_slice(bytes)?;
        Ok(Self {
            sequence: number(&head.sequence, "sequence")?,
            project: head.project.into_owned(),
            project_sequence: number(&head.projectseq, "projectseq")?,
            prevhash: head
                .prevhash
                .parse()
                .map_err(|_| Error::Attribute("prevhash"))?,
            name: head
                .kind
                .strip_prefix(TYPE_PREFIX)
                .and_then(|k| k.rsplit_once(".v"))
                .map_or("", |(n, _)| n)
                .to_owned(),
            index: number(&head.commandindex, "commandindex")?,
            count: number(&head.commandcount, "commandcount")?,
            command: head.commandid.into_owned(),
            time: micros(&head.time).ok_or(Error::Attribute("time"))?,
        })
    }
}

fn number<N: std::str::FromStr>(text: &str, name: &'static str) -> Result<N, Error> {
    text.parse().map_err(|_| Error::Attribute(name))
}

const MICROS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
const SECONDS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");

/// Unix microseconds as RFC 3339 in UTC with six digits of a second.
pub fn rfc3339_micros(time: i64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(time) * 1_000)
        .ok()
        .and_then(|t| t.format(MICROS).ok())
        .unwrap_or_else(|| "9999-12-31T23:59:59.999999Z".to_owned())
}

/// Unix seconds as RFC 3339 in UTC.
pub fn rfc3339(seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|t| t.format(SECONDS).ok())
        .unwrap_or_else(|| "9999-12-31T23:59:59Z".to_owned())
}

/// Reads an RFC 3339 time as Unix microseconds.
pub fn micros(text: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos() / 1_000).ok()
}
