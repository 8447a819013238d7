//! Which keys are taken for the log's: those that were given, else the one that the log tells itself.
//!
//! A key that the other side tells shows only that it is of one mind with itself. Whoever audits it is given the key once,
//! by another way.

use anyhow::Context as _;

use keyring::note::NoteVerifier;
use wire::tlog::Checkpoint;

use crate::failure::{Failure, Result};

/// Largest file of a key, bytes.
const KEY_MAX: u64 = 4_096;

/// A checkpoint whose signature is good, and by which key.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pub(super) checkpoint: Checkpoint,
    pub(super) key: NoteVerifier,
}

/// The keys.
#[derive(Debug)]
pub(super) struct Trust {
    keys: Vec<NoteVerifier>,
    pinned: bool,
}

impl Trust {
    /// The keys that were given: each the verifier key itself, or a file that holds it.
    ///
    /// # Errors
    /// A text that is neither.
    pub(super) fn of(given: &[String]) -> Result<Self> {
        let keys: Vec<NoteVerifier> = given.iter().map(|text| key(text)).collect::<Result<_>>()?;
        Ok(Self {
            pinned: !keys.is_empty(),
            keys,
        })
    }

    /// Whether the keys were given and not told.
    pub(super) fn pinned(&self) -> bool {
        self.pinned
    }

    /// Whether there is a key at all.
    pub(super) fn is_known(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Takes the key that the log tells, if none was given.
    ///
    /// # Errors
    /// When it is no key.
    pub(super) fn told(&mut self, vkey: &str) -> Result<()> {
        if self.keys.is_empty() {
            let key = vkey.parse().context("the log's key")?;
            self.keys.push(key);
        }
        Ok(())
    }

    /// Reads a signed checkpoint. Says why it is not to be believed otherwise.
    pub(super) fn open(&self, note: &str) -> std::result::Result<Opened, String> {
        let mut why = "there is no key to check it with".to_owned();
        for key in &self.keys {
            match key.open(note) {
                Ok(text) => {
                    let checkpoint = Checkpoint::parse(text).map_err(|e| e.to_string())?;
                    // The key's name is the log's origin; a key of that name that signs for another log is none of ours.
                    if checkpoint.origin != key.name() {
                        return Err(format!(
                            "it is of {}, and its key of {}",
                            checkpoint.origin,
                            key.name()
                        ));
                    }
                    return Ok(Opened {
                        checkpoint,
                        key: key.clone(),
                    });
                }
                Err(error) => why = format!("{error} ({key})"),
            }
        }
        Err(why)
    }
}

fn key(text: &str) -> Result<NoteVerifier> {
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    let wrong = || {
        Failure::Usage(
            "--key is a verifier key (<name>+<id>+<base64>, as `chancery audit key` shows it), or a file that holds one"
                .to_owned(),
        )
    };
    let length = std::fs::metadata(text).map_err(|_| wrong())?.len();
    if length > KEY_MAX {
        return Err(wrong());
    }
    let held = std::fs::read_to_string(text).with_context(|| format!("reading the key {text}"))?;
    held.trim().parse().map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use keyring::note::NoteSigner;
    use ledger::tree::TreeHead;

    use super::*;

    fn signer(name: &str, seed: u8) -> NoteSigner {
        NoteSigner::from_secret(name, &[seed; 32]).expect("a key")
    }

    fn note(signer: &NoteSigner, origin: &str) -> String {
        let checkpoint = Checkpoint {
            origin: origin.to_owned(),
            tree: TreeHead::empty(),
        };
        signer.sign(&checkpoint.text()).expect("a note")
    }

    #[test]
    fn any_of_the_given_keys_will_do_and_no_other() {
        let (old, new) = (signer("example.net/log", 1), signer("example.net/log", 2));
        let given = [old.verifier().to_string(), new.verifier().to_string()];
        let trust = Trust::of(&given).expect("keys");
        for signer in [&old, &new] {
            let opened = trust.open(&note(signer, "example.net/log")).expect("good");
            assert_eq!(&opened.key, signer.verifier());
        }
        let trust = Trust::of(&given[..1]).expect("a key");
        assert!(trust.pinned());
        let why = trust
            .open(&note(&new, "example.net/log"))
            .expect_err("another key");
        assert!(why.contains("no signature of this key"), "{why}");
        let why = trust
            .open(&note(&old, "example.net/other"))
            .expect_err("another log");
        assert!(why.contains("it is of example.net/other"), "{why}");
        assert!(trust.open("nonsense").is_err());
    }

    #[test]
    fn a_told_key_counts_only_where_none_was_given() {
        let (ours, theirs) = (signer("a", 1), signer("a", 2));
        let mut trust = Trust::of(&[ours.verifier().to_string()]).expect("a key");
        trust.told(&theirs.verifier().to_string()).expect("a key");
        assert!(trust.open(&note(&theirs, "a")).is_err());
        let mut trust = Trust::of(&[]).expect("no key");
        assert!(!trust.is_known() && trust.open(&note(&theirs, "a")).is_err());
        trust.told(&theirs.verifier().to_string()).expect("a key");
        assert!(!trust.pinned() && trust.open(&note(&theirs, "a")).is_ok());
        assert!(trust.told("nonsense").is_ok() && Trust::of(&[]).expect("none").told("x").is_err());
    }

    #[test]
    fn a_key_is_a_text_or_a_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("vkey");
        let vkey = signer("a", 1).verifier().to_string();
        std::fs::write(&file, format!("{vkey}\n")).expect("written");
        let trust = Trust::of(&[file.display().to_string()]).expect("a key");
        assert!(trust.is_known());
        std::fs::write(&file, "no key").expect("written");
        for wrong in [file.display().to_string(), "nothing-there".to_owned()] {
            assert!(matches!(Trust::of(&[wrong]), Err(Failure::Usage(_))));
        }
    }
}
