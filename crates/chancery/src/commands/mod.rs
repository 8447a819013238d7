//! What the commands do: each asks through [`Client`] and prints through [`Out`].

use std::process::ExitCode;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::cli::{Command, Global};
use crate::client::{Accepted, Client, read};
use crate::failure::{NO, Result};
use crate::output::Out;

pub mod access;
pub mod audit;
pub mod backup;
pub mod certificate;
pub mod domain;
pub mod edge;
pub mod events;
pub mod host;
pub mod project;
pub mod region;
pub mod resource;
pub mod restore;
pub mod seal;
pub mod status;
pub mod verify;

/// Runs a command that asks and ends.
///
/// # Errors
/// See [`Failure`](crate::failure::Failure).
pub async fn run(global: &Global, command: Command, out: &Out) -> Result<ExitCode> {
    match command {
        Command::Up(_) | Command::Serve(_) => {
            Err(anyhow::anyhow!("a server is not a command that asks").into())
        }
        Command::Status => status::run(&Client::connect(global).await?, out).await,
        Command::Project(command) => {
            project::run(&Client::connect(global).await?, command, out).await
        }
        Command::Access(command) => access::run(global, command, out).await,
        Command::Region(command) => {
            region::run(&Client::connect(global).await?, command, out).await
        }
        Command::Edge(command) => edge::run(global, command, out).await,
        Command::Resource(command) => {
            resource::run(&Client::connect(global).await?, command, out).await
        }
        Command::Domain(command) => {
            domain::run(&Client::connect(global).await?, command, out).await
        }
        Command::Certificate(command) => certificate::run(global, command, out).await,
        Command::Host(query) => host::run(&Client::connect(global).await?, query, out).await,
        Command::Verify(args) => verify::run(&args, out),
        Command::Events(command) => {
            events::run(&Client::connect(global).await?, command, out).await
        }
        Command::Audit(command) => audit::run(global, command, out).await,
        Command::Backup(args) => backup::run(global, args, out).await,
        Command::Restore(args) => restore::run(global, args, out).await,
        Command::Seal(args) => seal::run(global, args, out).await,
    }
}

/// Tells that a command was accepted: the answer for programs, a sentence for people.
fn accepted(out: &Out, accepted: &Accepted, sentence: impl AsRef<str>) -> Result<ExitCode> {
    if out.json() {
        out.raw(&accepted.document);
    } else {
        out.say(format!(
            "{} (sequence {})",
            sentence.as_ref(),
            accepted.answer.sequence
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a listing: each item on a line for programs, by `table` for people.
fn listing<T: DeserializeOwned>(
    out: &Out,
    items: &[Box<RawValue>],
    table: impl FnOnce(Vec<T>),
) -> Result<ExitCode> {
    if out.json() {
        for item in items {
            out.raw(item);
        }
    } else {
        table(
            items
                .iter()
                .map(|item| read(item.get().as_bytes()))
                .collect::<Result<_>>()?,
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints one thing: as it came for programs, by `card` for people.
fn showing<T: DeserializeOwned>(
    out: &Out,
    item: &RawValue,
    card: impl FnOnce(T),
) -> Result<ExitCode> {
    if out.json() {
        out.raw(item);
    } else {
        card(read(item.get().as_bytes())?);
    }
    Ok(ExitCode::SUCCESS)
}

/// 0 for yes, 1 for no.
fn verdict(yes: bool) -> ExitCode {
    if yes {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(NO)
    }
}

/// Reads `null` as nothing: views show what is not known that way.
fn nullable<'de, D, T>(from: D) -> std::result::Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// A reason in a view, read leniently: views of a later release may know more codes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Reason {
    code: String,
    message: String,
    hint: String,
}

impl Reason {
    fn line(&self) -> String {
        let mut line = format!("{}: {}", self.code, self.message);
        if !self.hint.is_empty() {
            line.push_str(&format!(" ({})", self.hint));
        }
        line
    }
}
