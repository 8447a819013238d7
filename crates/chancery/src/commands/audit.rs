//! `chancery audit`: proves the log to somebody who trusts nobody's word for it.
//!
//! `verify` computes everything here from the bytes as they come: the leaf hash of each event (RFC 6962 section 2.1),
//! that each names the one before it, that neither the log nor any project has a gap, that commands are whole, that time
//! does not run back, and that the tree over all of them is the one that was signed. A checkpoint that is kept apart from
//! the log tells for ever whether the log has only grown since. The other commands take one away, prove one event by it,
//! or copy the whole log in the form that others' tools read.

mod chain;
mod export;
mod proof;
mod trust;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use ledger::Hash;
use ledger::tree::verify_consistency;
use lifecycle::names::Slug;
use lifecycle::rejection::Code;
use wire::tlog::{CheckpointAnswer, CheckpointKey, CheckpointQuery};

use super::events::Source;
use super::verdict;
use crate::cli::{Audit, Global};
use crate::client::{Client, read};
use crate::failure::{Failure, Result};
use crate::output::{Card, Out};
use crate::progress::Progress;
use chain::{Chain, Report};
use trust::{Opened, Trust};

/// Events on a page, the most that are given.
const PAGE: usize = 500;
/// How long a rebuild may take.
const REBUILD_LIMIT: Duration = Duration::from_secs(1_800);

pub(super) async fn run(global: &Global, command: Audit, out: &Out) -> Result<ExitCode> {
    match command {
        Audit::Verify { since, key } => {
            let trust = Trust::of(&key)?;
            verify(&Client::connect(global).await?, &since, trust, out).await
        }
        Audit::Rebuild => rebuild(&Client::connect(global).await?, out).await,
        Audit::Key { out: to } => {
            let client = Client::connect(global).await?;
            key(&client, to.as_deref(), out).await
        }
        Audit::Checkpoint {
            out: to,
            since,
            key,
        } => {
            let trust = Trust::of(&key)?;
            let client = Client::connect(global).await?;
            checkpoint(&client, to.as_deref(), since.as_deref(), trust, out).await
        }
        // Whoever is handed a proof needs no account here.
        Audit::Proof {
            verify: Some(file),
            key,
            ..
        } => proof::verify(&file, &Trust::of(&key)?, out),
        Audit::Proof {
            sequence: Some(sequence),
            out: to,
            key,
            ..
        } => {
            let trust = Trust::of(&key)?;
            let client = Client::connect(global).await?;
            proof::prove(&client, sequence, to.as_deref(), trust, out).await
        }
        Audit::Proof { .. } => Err(Failure::Usage(
            "name the event to prove, or a file with --verify FILE".to_owned(),
        )),
        Audit::Export { out: to, key } => {
            let trust = Trust::of(&key)?;
            export::run(&Client::connect(global).await?, &to, trust, out).await
        }
    }
}

/// Asks for a checkpoint of the log as it is now, and checks its signature.
async fn signed(
    client: &Client,
    trust: &mut Trust,
    since: Option<u64>,
) -> Result<(CheckpointAnswer, Opened)> {
    let answer: CheckpointAnswer = client
        .view(&Slug::platform(), "checkpoint", &CheckpointQuery { since })
        .await?;
    trust.told(&answer.vkey)?;
    let opened = trust
        .open(&answer.checkpoint)
        .map_err(|why| untrue(format!("the checkpoint that the log gives: {why}")))?;
    Ok((answer, opened))
}

/// Something that was to be proven is not true.
fn untrue(what: impl Into<String>) -> Failure {
    Failure::problem(
        Code::Conflict,
        what,
        "keep what you have, ask the operator for the reason, and see docs/operate.md, \"Audits\"",
    )
}

/// Reads a checkpoint that was kept.
fn kept(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("reading the checkpoint {}", path.display()))?;
    Ok(text)
}

/// Writes a file whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write as _;
    let write = || -> std::io::Result<()> {
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let mut file = std::fs::File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&part, path)?;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        std::fs::File::open(folder)?.sync_all()
    };
    write().with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

// ---- verify

/// What an audit found, with what was signed.
#[derive(Debug, Serialize)]
struct Audited {
    #[serde(flatten)]
    report: Report,
    /// What the log has signed itself; absent where these rights do not reach it.
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<Signed>,
}

#[derive(Debug, Serialize)]
struct Signed {
    size: u64,
    root: Hash,
    key: String,
}

async fn verify(
    client: &Client,
    since: &[PathBuf],
    mut trust: Trust,
    out: &Out,
) -> Result<ExitCode> {
    let source = Source::log();
    let mut chain = Chain::default();
    // The checkpoint first: it then covers nothing that the events read afterwards lack.
    let checkpoint = match signed(client, &mut trust, None).await {
        Ok((_, opened)) => {
            chain.expect(opened.checkpoint.tree, "the log's own checkpoint");
            Some(Signed {
                size: opened.checkpoint.tree.size,
                root: opened.checkpoint.tree.root,
                key: opened.key.to_string(),
            })
        }
        Err(Failure::Refused(refused)) if refused.told.code == Code::Unauthorized.as_str() => {
            out.note(
                "these rights do not reach the view `checkpoint`: the signature is not checked",
            );
            if !since.is_empty() && !trust.is_known() {
                return Err(Failure::Usage(
                    "--since needs --key: these rights do not reach the log's key".to_owned(),
                ));
            }
            None
        }
        Err(Failure::Refused(refused)) => {
            chain.problem(0, refused.told.detail.clone());
            None
        }
        Err(failure) => return Err(failure),
    };
    for path in since {
        match trust.open(&kept(path)?) {
            Ok(opened) => chain.expect(opened.checkpoint.tree, path.display().to_string()),
            Err(why) => chain.problem(0, format!("{}: {why}", path.display())),
        }
    }
    let progress = Progress::new(None, "checking");
    let mut head = 0;
    // The head of the first page is the goal: a log that grows while it is read would never be done.
    loop {
        let page = source.page(client, chain.next(), PAGE).await?;
        if head == 0 {
            head = page.head;
        }
        let before = chain.report.events;
        for event in &page.events {
            chain.check(event.get().as_bytes());
        }
        progress.advance(chain.report.events - before);
        let stuck = chain.report.events == before;
        if stuck || page.next.is_none() || chain.report.sequence >= head {
            break;
        }
    }
    progress.end();
    let audited = Audited {
        report: chain.finish(head),
        checkpoint,
    };
    let report = &audited.report;
    if out.json() {
        out.document(&audited);
    } else {
        let mut card = Card::default();
        card.add("events", report.events.to_string());
        card.add("head", report.sequence.to_string());
        card.add("hash", report.hash.to_string());
        card.add("root", report.root.to_string());
        if let Some(signed) = &audited.checkpoint {
            card.add(
                "signed",
                format!("{} events, by {}", signed.size, signed.key),
            );
        }
        card.print(out);
        for problem in &report.problems {
            out.say(format!("problem at {}: {}", problem.sequence, problem.what));
        }
        match report.problem_count {
            0 if since.is_empty() => out.say("the log is whole: no gap, no fork, no change"),
            0 => out.say("the log is whole, and has only grown since: no gap, no fork, no change"),
            count if count as usize > report.problems.len() => {
                out.say(format!("{count} problems in all"))
            }
            _ => {}
        }
        if audited.checkpoint.is_some() && !trust.pinned() {
            out.note(
                "the key is the one that the log told; --key VKEY pins the one that you were given",
            );
        }
    }
    Ok(verdict(audited.report.problem_count == 0))
}

// ---- rebuild

#[derive(Debug, Deserialize)]
struct Rebuilt {
    identical: bool,
    #[serde(default)]
    events: u64,
    #[serde(default)]
    sequence: u64,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    root: String,
    #[serde(default)]
    difference: Option<serde_json::Value>,
    #[serde(default)]
    tree: Option<serde_json::Value>,
}

async fn rebuild(client: &Client, out: &Out) -> Result<ExitCode> {
    let progress = Progress::new(None, "replaying the log into fresh views");
    let answer = client
        .long_query(
            &Slug::platform(),
            "rebuild",
            &serde_json::json!({}),
            REBUILD_LIMIT,
        )
        .await;
    progress.end();
    let answer = answer?;
    let rebuilt: Rebuilt = read(&answer)?;
    if out.json() {
        out.raw(&read::<Box<RawValue>>(&answer)?);
        return Ok(verdict(rebuilt.identical));
    }
    let mut card = Card::default();
    card.add("events", rebuilt.events.to_string());
    card.add("sequence", rebuilt.sequence.to_string());
    card.add("digest", rebuilt.digest);
    card.add("root", rebuilt.root);
    card.print(out);
    if rebuilt.identical {
        out.say("the live views and the tree are what the log says, byte for byte");
    } else {
        let where_ = rebuilt
            .difference
            .as_ref()
            .or(rebuilt.tree.as_ref())
            .map(super::status::text)
            .unwrap_or_default();
        out.say(format!(
            "what is kept differs from what the log says: {where_}"
        ));
    }
    Ok(verdict(rebuilt.identical))
}

// ---- key and checkpoint

/// The key as the log tells it. Whoever pins it compares it with what the operator has published elsewhere.
async fn key(client: &Client, to: Option<&Path>, out: &Out) -> Result<ExitCode> {
    let key: CheckpointKey = client
        .view(client.project()?, "checkpoint-key", &serde_json::json!({}))
        .await?;
    if let Some(to) = to {
        write_whole(to, format!("{}\n", key.vkey).as_bytes())?;
    }
    if out.json() {
        out.document(&key);
    } else if let Some(to) = to {
        out.say(format!("the key is in {}", to.display()));
    } else {
        out.say(&key.vkey);
    }
    Ok(ExitCode::SUCCESS)
}

/// A checkpoint of the log as it is now; with one of before, and the proof that the log has only grown since.
async fn checkpoint(
    client: &Client,
    to: Option<&Path>,
    since: Option<&Path>,
    mut trust: Trust,
    out: &Out,
) -> Result<ExitCode> {
    let before = since.map(kept).transpose()?;
    // Without a key of their own people trust the one that the log tells, so the old checkpoint waits for it.
    if before.is_some() && !trust.is_known() {
        let key: CheckpointKey = client
            .view(client.project()?, "checkpoint-key", &serde_json::json!({}))
            .await?;
        trust.told(&key.vkey)?;
    }
    let before = match &before {
        Some(note) => Some(
            trust
                .open(note)
                .map_err(|why| untrue(format!("the checkpoint that was kept: {why}")))?,
        ),
        None => None,
    };
    let old = before.as_ref().map(|before| before.checkpoint.tree);
    let (answer, now) = signed(client, &mut trust, old.map(|old| old.size)).await?;
    if let Some(old) = old {
        let proof = answer.consistency.as_deref().unwrap_or_default();
        if !verify_consistency(&old, &now.checkpoint.tree, proof) {
            return Err(untrue(format!(
                "the log has another history: its {} events do not begin with the {} that were signed before",
                now.checkpoint.tree.size, old.size
            )));
        }
    }
    if let Some(to) = to {
        write_whole(to, answer.checkpoint.as_bytes())?;
    }
    if out.json() {
        out.document(&answer);
    } else {
        match to {
            Some(to) => out.say(format!(
                "the checkpoint of {} events is in {}",
                answer.size,
                to.display()
            )),
            None => out.line(answer.checkpoint.trim_end_matches('\n')),
        }
        if let Some(old) = old {
            out.note(format!(
                "the log has only grown since: {} events then, {} now",
                old.size, answer.size
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}
