//! Proving one event to somebody who has no account here: a file with the event, the path to the root and the signed
//! checkpoint, and its check, which asks nobody.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::value::RawValue;

use ledger::tree::verify_inclusion;
use ledger::{Hash, leaf_hash};
use lifecycle::names::Slug;
use wire::envelope::Position;
use wire::tlog::{Proof, ProofAnswer, ProofQuery};

use super::super::events;
use super::super::verdict;
use super::trust::Trust;
use super::{untrue, write_whole};
use crate::client::Client;
use crate::failure::Result;
use crate::output::{Card, Out};

/// Largest file of a proof that is read, bytes.
const FILE_MAX: u64 = 1 << 20;

/// What a good proof says.
#[derive(Debug, Serialize)]
struct Proven {
    valid: bool,
    /// The event's place in the log.
    sequence: u64,
    /// How many events the checkpoint covers.
    size: u64,
    root: Hash,
    origin: String,
    key: String,
    /// The event's exact bytes.
    event: Box<RawValue>,
}

/// Checks a proof: the signature, the path, and that the event says the same of its place. Says why not otherwise.
fn check(text: &str, trust: &Trust) -> std::result::Result<Proven, String> {
    let proof = Proof::parse(text).map_err(|error| error.to_string())?;
    let opened = trust
        .open(&proof.checkpoint)
        .map_err(|why| format!("its checkpoint: {why}"))?;
    let tree = opened.checkpoint.tree;
    if !verify_inclusion(&leaf_hash(&proof.event), proof.index, &tree, &proof.path) {
        return Err(
            "the event is not in the signed tree at this place: the event or the path was changed"
                .to_owned(),
        );
    }
    let position = Position::of(&proof.event).map_err(|error| format!("the event: {error}"))?;
    if position.sequence != proof.index + 1 {
        return Err(format!(
            "the event says that it is {}, and stands at {}",
            position.sequence,
            proof.index + 1
        ));
    }
    let event = String::from_utf8(proof.event)
        .ok()
        .and_then(|event| RawValue::from_string(event).ok())
        .ok_or("the event is not JSON")?;
    Ok(Proven {
        valid: true,
        sequence: position.sequence,
        size: tree.size,
        root: tree.root,
        origin: opened.checkpoint.origin,
        key: opened.key.to_string(),
        event,
    })
}

/// Asks for the proof of an event, by its place in the log for an operator and in the project for others, checks it, and
/// gives it on.
pub(super) async fn prove(
    client: &Client,
    number: u64,
    to: Option<&Path>,
    mut trust: Trust,
    out: &Out,
) -> Result<ExitCode> {
    let whole = client.named_project().is_none() && client.is_operator();
    let (project, query) = if whole {
        let query = ProofQuery {
            sequence: Some(number),
            projectseq: None,
        };
        (Slug::platform(), query)
    } else {
        let query = ProofQuery {
            projectseq: Some(number),
            sequence: None,
        };
        (client.project()?.clone(), query)
    };
    let answer: ProofAnswer = client.view(&project, "proof", &query).await?;
    trust.told(&answer.vkey)?;
    let proven = check(&answer.proof, &trust)
        .map_err(|why| untrue(format!("the proof that the log gives: {why}")))?;
    if proven.sequence != answer.sequence || (whole && answer.sequence != number) {
        return Err(untrue("the log proves another event than was asked about"));
    }
    if let Some(to) = to {
        write_whole(to, answer.proof.as_bytes())?;
    }
    if out.json() {
        out.document(&answer);
    } else if let Some(to) = to {
        out.say(events::line(proven.event.get()));
        out.say(format!(
            "proven in {}, which needs only the key: chancery audit proof --verify {} --key {}",
            to.display(),
            to.display(),
            proven.key
        ));
    } else {
        for line in answer.proof.trim_end_matches('\n').split('\n') {
            out.line(line);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks a proof that somebody handed over.
pub(super) fn verify(file: &Path, trust: &Trust, out: &Out) -> Result<ExitCode> {
    let reading = || format!("reading the proof {}", file.display());
    let length = std::fs::metadata(file).with_context(reading)?.len();
    let checked = if length > FILE_MAX {
        Err(format!("it has {length} bytes of at most {FILE_MAX}"))
    } else {
        let bytes = std::fs::read(file).with_context(reading)?;
        String::from_utf8(bytes)
            .map_err(|_| "it is not text".to_owned())
            .and_then(|text| check(&text, trust))
    };
    match checked {
        Ok(proven) => {
            if out.json() {
                out.document(&proven);
            } else {
                out.say(events::line(proven.event.get()));
                let mut card = Card::default();
                card.add("log", &proven.origin);
                card.add("event", format!("{} of {}", proven.sequence, proven.size));
                card.add("root", proven.root.to_string());
                card.add("key", &proven.key);
                card.print(out);
                out.say("proven: the event is in the log that this key has signed");
            }
            Ok(verdict(true))
        }
        Err(why) => {
            if out.json() {
                out.document(&serde_json::json!({"valid": false, "reason": why}));
            } else {
                out.say(format!("not proven: {why}"));
            }
            Ok(verdict(false))
        }
    }
}

#[cfg(test)]
mod tests {
    use keyring::note::NoteSigner;
    use ledger::tree::TreeHead;
    use wire::tlog::Checkpoint;

    use super::*;

    /// A proof of the third of three leaves; that leaf says that it is event `says`.
    fn made(says: u64) -> (String, Trust) {
        let event = format!(
            r#"{{"specversion":"1.0","id":"00000000-0000-0000-0000-000000000001/1","source":"urn:uuid:1","type":"dev.chancery.project.created.v1","time":"2026-11-22T12:00:00.000000Z","sequence":"{says}","project":"acme","projectseq":"1","prevhash":"{}","commandid":"00000000-0000-0000-0000-000000000001","commandindex":"1","commandcount":"1","commandspace":"platform","cmddigest":"{}","actor":"a","correlation":"c","data":{{"project":"acme"}}}}"#,
            Hash::ZERO,
            Hash::ZERO
        );
        let leaves = [
            leaf_hash(b"1"),
            leaf_hash(b"2"),
            leaf_hash(event.as_bytes()),
        ];
        let mut tree = ledger::tree::Frontier::new();
        for leaf in leaves {
            tree.push(leaf, |_| ());
        }
        let signer = NoteSigner::from_secret("example.net/log", &[1; 32]).expect("a key");
        let checkpoint = Checkpoint {
            origin: "example.net/log".to_owned(),
            tree: tree.head(),
        };
        let proof = Proof {
            event: event.into_bytes(),
            index: 2,
            path: vec![ledger::tree::node_hash(&leaves[0], &leaves[1])],
            checkpoint: signer.sign(&checkpoint.text()).expect("a note"),
        };
        let trust = Trust::of(&[signer.verifier().to_string()]).expect("a key");
        (proof.text(), trust)
    }

    #[test]
    fn a_proof_stands_alone_and_any_change_breaks_it() {
        let (text, trust) = made(3);
        let proven = check(&text, &trust).expect("a good proof");
        assert_eq!((proven.sequence, proven.size), (3, 3));
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] ^= 1;
            if let Ok(changed) = String::from_utf8(changed) {
                assert!(check(&changed, &trust).is_err(), "byte {at}");
            }
        }
        let (text, trust) = made(2);
        let why = check(&text, &trust).expect_err("another place");
        assert!(why.contains("says that it is 2"), "{why}");
        // Nobody can prove anything about a log that has no events.
        let none = TreeHead::empty();
        assert!(!verify_inclusion(&leaf_hash(b"1"), 0, &none, &[]));
    }
}
