//! `chancery restore`: makes a state folder out of a backup. No server is asked; one is started for it and stopped again.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use control::restore::{Config, Error, lost, restore};
use lifecycle::rejection::Code;

use super::backup;
use crate::cli::{Global, Restore};
use crate::config;
use crate::failure::{Failure, Result};
use crate::output::{Card, Out};
use crate::progress::Progress;

pub(super) async fn run(global: &Global, args: Restore, out: &Out) -> Result<ExitCode> {
    let settings = args
        .config
        .as_deref()
        .map(config::Config::load)
        .transpose()?;
    let state = args
        .state
        .or_else(|| settings.as_ref().map(|settings| settings.state.clone()))
        .ok_or_else(|| {
            Failure::Usage(
                "where to? give --state DIR, or --config with a file that names it".to_owned(),
            )
        })?;
    let control = settings.as_ref().map(|settings| &settings.control);
    let operator_creds = control
        .and_then(|control| control.operator_creds.clone())
        .unwrap_or_else(|| state.join("operator.creds"));
    let elsewhere = control.and_then(|control| control.root_key.clone());
    let plan = Config {
        backup: args.dir,
        root_key: args.root_key,
        root_key_elsewhere: elsewhere.is_some(),
        // The flag only: a variable or context that names some operator is not meant for this.
        operator: global
            .creds
            .clone()
            .map(|creds| (creds, operator_creds.clone())),
        nats_executable: settings
            .as_ref()
            .and_then(|settings| settings.nats.executable.clone()),
        node: crate::servers::NODE.to_owned(),
        state,
    };
    let mut shown: Option<(&'static str, Progress)> = None;
    let restored = restore(&plan, |label, n, all| {
        if shown.as_ref().is_none_or(|(before, _)| *before != label) {
            if let Some((_, progress)) = shown.take() {
                progress.end();
            }
            shown = Some((label, Progress::new(Some(all), label)));
        }
        if let Some((_, progress)) = &shown {
            progress.advance(n);
        }
    })
    .await;
    if let Some((_, progress)) = shown {
        progress.end();
    }
    let restored = restored.map_err(failed)?;
    if out.json() {
        let mut document = serde_json::to_value(&restored).context("writing the answer")?;
        document["state"] = plan.state.display().to_string().into();
        document["lost"] = lost(&restored).into();
        out.document(&document);
        return Ok(ExitCode::SUCCESS);
    }
    let mut card = Card::default();
    card.add("log", restored.log.clone());
    card.add(
        "head",
        format!("{} of {}", restored.head.sequence, restored.head.time),
    );
    card.add("backup of", restored.taken.clone());
    card.add("generation", restored.generation.to_string());
    card.add("state", plan.state.display().to_string());
    card.print(out);
    out.say(lost(&restored));
    if restored.queued > 0 {
        out.say(format!(
            "{} commands that were queued and not decided are gone too; who sent them asks again with the same ids",
            restored.queued
        ));
    }
    out.say(match &restored.operator {
        Some(name) => format!("the operator {name} goes on with the credentials that were given"),
        None => "the first start makes an operator, and writes the credentials".to_owned(),
    });
    if let Some(path) = elsewhere {
        out.note(format!(
            "the configuration keeps the root key at {}; put it there before the start",
            path.display()
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn failed(error: Error) -> Failure {
    let hint = match &error {
        Error::WrongRoot { .. } => {
            "name the file with the root key that was in use when the backup was taken"
        }
        Error::Operator { .. } => "leave --creds out: the first start makes an operator",
        _ => "`chancery backup --verify DIR` tells all; restore another backup",
    };
    match error {
        Error::Backup(error) => backup::failed(error),
        error if error.is_no() => {
            let code = match &error {
                Error::WrongRoot { .. } | Error::Operator { .. } => Code::Unauthorized,
                _ => Code::Malformed,
            };
            Failure::problem(code, error.to_string(), hint)
        }
        error => Failure::CouldNotRun(error.into()),
    }
}

/// The folder that a start may not use, in words.
pub fn unfinished(state: &std::path::Path) -> Option<String> {
    control::restore::is_unfinished(state).then(|| {
        let state: PathBuf = state.to_owned();
        format!(
            "the state folder {} holds a restore that was interrupted; repeat `chancery restore DIR --state {} --root-key FILE`",
            state.display(),
            state.display()
        )
    })
}
