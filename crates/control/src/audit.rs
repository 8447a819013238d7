//! The audit role: holds the checkpoint signing key, signs what the log is, and proves single events.
//!
//! **A key signs one history only** (c2sp.org/tlog-checkpoint: a log must not sign two checkpoints of which one does not
//! begin with the other). What a key has signed last, size and root, stands in a file of its own beside the ledger, and is
//! synced before the signature leaves. Nothing is signed that does not begin with it: not after a ledger was lost and built
//! again, and not after one file of several was put back from a backup.
//!
//! After a restore of everything the file is as old as the rest, and cannot know what was signed later. So a key belongs
//! to a generation: a restore raises it, and the log goes on under a key that nobody has seen. Whoever holds a checkpoint
//! of the former key notices the change of the key, asks for the reason, and compares: if the log is the same, the old
//! checkpoint is a part of the new tree, and if events were lost, it is not.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::value::RawValue;

use keyring::note::{NoteSigner, NoteVerifier};
use ledger::tree::TreeHead;
use ledger::{Ledger, Snapshot};
use lifecycle::names::Slug;
use lifecycle::rejection::Code;
use wire::answer::Problem;
use wire::request::parse_query;
use wire::tlog::{
    Checkpoint, CheckpointAnswer, CheckpointKey, CheckpointQuery, Proof, ProofAnswer, ProofQuery,
};

const SIGNER: &str = "checkpoint-signer";
/// The folder below the state of what each key has signed last.
const FOLDER: &str = "checkpoints";
/// The tool that tells what is wrong with the log itself.
const CHECK: &str = "`chancery audit verify` tells what the log itself says";
/// What to do when the key must not sign any more.
const NEW_KEY: &str = "docs/operate.md, \"Audits\": put the newer files back, or raise `control.generation` by one: the log then goes on under a new key, \
     which auditors are told of";

/// Why the audit role cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key cannot be opened or kept.
    #[error(transparent)]
    Vault(#[from] keyring::VaultError),
    /// The file of what was signed cannot be written.
    #[error("{0}: {1}")]
    File(PathBuf, #[source] std::io::Error),
    /// The origin cannot be the name of a key: the platform domain has a space or a plus.
    #[error("the origin {0} cannot be the name of a key")]
    Origin(String),
}

/// The signing key as the vault keeps it, before the log's id and with it the key's name are known.
pub struct Key {
    seed: keyring::Secret,
    /// What this key has signed last.
    file: PathBuf,
}

impl Key {
    /// The key of this generation, made at its first start; `unpublished` gets its sealed record then.
    ///
    /// # Errors
    /// [`Error::Vault`] and [`Error::File`].
    pub fn open(
        keyring: &keyring::Vault,
        state: &Path,
        generation: u64,
        unpublished: &mut Vec<keyring::SealedBlob>,
    ) -> Result<Self, Error> {
        let name = match generation {
            0 | 1 => SIGNER.to_owned(),
            later => format!("{SIGNER}-{later}"),
        };
        let file = state.join(FOLDER).join(format!("{name}.json"));
        if let Some(seed) = keyring.open_secret(&name)? {
            return Ok(Self { seed, file });
        }
        let seed = NoteSigner::danger_new_secret();
        // A new key has signed nothing, and says so before it is there: a key without its file is one that forgot.
        remember(&file, &TreeHead::empty()).map_err(|e| Error::File(file.clone(), e))?;
        unpublished.push(keyring.keep_secret(&name, seed.expose())?);
        Ok(Self { seed, file })
    }
}

/// Signs checkpoints and proves events.
pub struct Auditor {
    ledger: Ledger,
    signer: NoteSigner,
    file: PathBuf,
    /// One signature at a time: what was signed last must be on disk before the next is looked at.
    signing: Mutex<()>,
}

/// What of the log is signed.
struct Signed {
    note: String,
    tree: TreeHead,
}

impl Auditor {
    /// The auditor of the log `log`.
    ///
    /// # Errors
    /// [`Error::Origin`].
    pub fn new(ledger: Ledger, key: Key, platform_domain: &str, log: &str) -> Result<Self, Error> {
        let origin = wire::tlog::origin(platform_domain, log);
        let signer = NoteSigner::from_secret(&origin, key.seed.expose())
            .ok_or_else(|| Error::Origin(origin.clone()))?;
        Ok(Self {
            ledger,
            signer,
            file: key.file,
            signing: Mutex::new(()),
        })
    }

    /// The key that auditors verify with.
    pub fn verifier(&self) -> &NoteVerifier {
        self.signer.verifier()
    }

    /// Answers `checkpoint`, `checkpoint-key` and `proof`, as JSON. Who may ask is decided already.
    ///
    /// # Errors
    /// Those of the three below, and `malformed`.
    pub fn answer(&self, project: &Slug, view: &str, body: &[u8]) -> Result<Vec<u8>, Problem> {
        let written = match view {
            "checkpoint" => serde_json::to_vec(&self.checkpoint(&parse_query(body)?)?),
            "checkpoint-key" => serde_json::to_vec(&self.key()),
            "proof" => serde_json::to_vec(&self.proof(project, &parse_query(body)?)?),
            _ => {
                return Err(Problem::new(
                    Code::NotFound,
                    "there is no such view of the audit",
                    "",
                ));
            }
        };
        written.map_err(|_| Problem::new(Code::Conflict, "the answer cannot be written", ""))
    }

    /// `query.<project>.checkpoint-key`
    pub fn key(&self) -> CheckpointKey {
        CheckpointKey {
            origin: self.verifier().name().to_owned(),
            vkey: self.verifier().to_string(),
        }
    }

    /// For `status`: the key, the size of the last checkpoint, and why none can be signed any more, if so.
    pub fn status(&self) -> (serde_json::Value, Option<String>) {
        let last = self.last();
        let problem = match &last {
            Ok(last) => self
                .snapshot()
                .and_then(|snapshot| self.continues(&snapshot, last))
                .err(),
            Err(problem) => Some(problem.clone()),
        };
        let shown = serde_json::json!({
            "vkey": self.verifier().to_string(),
            "signed": last.ok().map(|last| last.size),
        });
        let problem =
            problem.map(|problem| format!("no checkpoint can be signed: {}", problem.detail));
        (shown, problem)
    }

    /// `query.platform.checkpoint`: signs the log as it is now.
    ///
    /// # Errors
    /// `conflict` when the log does not begin with what was signed before, `not_found` when it is shorter than `since`.
    pub fn checkpoint(&self, query: &CheckpointQuery) -> Result<CheckpointAnswer, Problem> {
        let snapshot = self.snapshot()?;
        let signed = self.sign(&snapshot, None)?;
        let consistency = match query.since {
            Some(old) => Some(
                snapshot
                    .consistency_proof(old, signed.tree.size)
                    .map_err(unreadable)?
                    .ok_or_else(|| {
                        Problem::new(
                            Code::NotFound,
                            format!(
                                "the log has {} events, and a checkpoint of {old} was asked about: events were lost, or it is of another log",
                                signed.tree.size
                            ),
                            CHECK,
                        )
                    })?,
            ),
            None => None,
        };
        Ok(CheckpointAnswer {
            checkpoint: signed.note,
            origin: self.verifier().name().to_owned(),
            size: signed.tree.size,
            root: signed.tree.root,
            vkey: self.verifier().to_string(),
            consistency,
        })
    }

    /// `query.<project>.proof`: proves one event. Nothing but hashes of other events is in it.
    ///
    /// # Errors
    /// `malformed`, `unauthorized` for a place in the log that a project asks about, `not_found`, and those of
    /// [`checkpoint`](Self::checkpoint).
    pub fn proof(&self, project: &Slug, query: &ProofQuery) -> Result<ProofAnswer, Problem> {
        let snapshot = self.snapshot()?;
        let sequence = match (query.projectseq, query.sequence) {
            (Some(number), None) => snapshot
                .scope_event(project.as_str(), number)
                .map_err(unreadable)?
                .ok_or_else(no_event)?,
            (None, Some(sequence)) if project.is_platform() => sequence,
            (None, Some(_)) => {
                return Err(Problem::new(
                    Code::Unauthorized,
                    "a project asks for its events by their `projectseq`",
                    "`chancery events replay` shows it",
                ));
            }
            _ => {
                return Err(Problem::new(
                    Code::Malformed,
                    "exactly one of `projectseq` and `sequence` names the event",
                    "`chancery audit proof SEQ`",
                ));
            }
        };
        let event = snapshot
            .event(sequence)
            .map_err(unreadable)?
            .ok_or_else(no_event)?;
        let signed = self.sign(&snapshot, Some(sequence))?;
        let path = snapshot
            .inclusion_proof(sequence, signed.tree.size)
            .map_err(unreadable)?
            .ok_or_else(no_event)?;
        let text = |_| Problem::new(Code::Conflict, "the event is not JSON", CHECK);
        let shown = std::str::from_utf8(&event).map_err(|_| text(()))?;
        let shown = RawValue::from_string(shown.to_owned()).map_err(|_| text(()))?;
        let proof = Proof {
            event,
            index: sequence - 1,
            path,
            checkpoint: signed.note,
        };
        Ok(ProofAnswer {
            sequence,
            proof: proof.text(),
            vkey: self.verifier().to_string(),
            event: shown,
        })
    }

    fn snapshot(&self) -> Result<Snapshot, Problem> {
        self.ledger.read().map_err(unreadable)
    }

    /// Signs the tree of `snapshot`; or, where one event is asked about that the last checkpoint covers, that one again, so
    /// that proofs cost no write.
    fn sign(&self, snapshot: &Snapshot, about: Option<u64>) -> Result<Signed, Problem> {
        let _one = self.signing.lock().unwrap_or_else(PoisonError::into_inner);
        let last = self.last()?;
        self.continues(snapshot, &last)?;
        let tree = match about {
            Some(sequence) if sequence <= last.size => last,
            _ => {
                let tree = snapshot.tree().map_err(unreadable)?;
                // What stands there was computed as the events came; what is signed is computed from the hashes once more.
                let computed = snapshot.tree_root(tree.size).map_err(unreadable)?;
                if computed != Some(tree.root) {
                    return Err(Problem::new(
                        Code::Conflict,
                        "the tree's hashes do not give its root",
                        "`chancery audit rebuild` tells where; the ledger is to be moved aside, it is built again from the log",
                    ));
                }
                tree
            }
        };
        let checkpoint = Checkpoint {
            origin: self.verifier().name().to_owned(),
            tree,
        };
        let note = self.signer.sign(&checkpoint.text()).map_err(|error| {
            Problem::new(Code::Conflict, format!("the checkpoint: {error}"), "")
        })?;
        if tree != last {
            remember(&self.file, &tree).map_err(|error| {
                tracing::error!(%error, file = %self.file.display(), "what is signed cannot be remembered");
                Problem::later(Code::Busy, "what is signed cannot be remembered now: the disk", 5_000)
            })?;
        }
        Ok(Signed { note, tree })
    }

    /// What this key has signed last.
    fn last(&self) -> Result<TreeHead, Problem> {
        let read = std::fs::read(&self.file).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
        read.map_err(|error| {
            Problem::new(
                Code::Conflict,
                format!("what the key signed last cannot be read ({error}), so it signs nothing"),
                NEW_KEY,
            )
        })
    }

    /// Whether the log begins with what was signed last.
    fn continues(&self, snapshot: &Snapshot, last: &TreeHead) -> Result<(), Problem> {
        match snapshot.tree_root(last.size).map_err(unreadable)? {
            Some(root) if root == last.root => Ok(()),
            Some(_) => Err(Problem::new(
                Code::Conflict,
                format!(
                    "this key has signed another history of the first {} events: the log was forked",
                    last.size
                ),
                NEW_KEY,
            )),
            None => Err(Problem::new(
                Code::Conflict,
                format!(
                    "this key has signed {} events, and there are not so many: the log was put back to an older state",
                    last.size
                ),
                NEW_KEY,
            )),
        }
    }
}

fn no_event() -> Problem {
    Problem::new(
        Code::NotFound,
        "there is no such event",
        "`chancery events replay` lists them",
    )
}

fn unreadable(error: ledger::Error) -> Problem {
    match error {
        ledger::Error::Damaged(_) => Problem::new(
            Code::Conflict,
            error.to_string(),
            "docs/operate.md, \"The log is halted\": the ledger is built again from the log",
        ),
        error => crate::tables::fatal("the ledger cannot be read", &error),
    }
}

/// Writes what was signed, whole or not at all, and waits until it is on the disk.
fn remember(file: &Path, tree: &TreeHead) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let part = file.with_extension("part");
    let mut to = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&part)?;
    to.write_all(&serde_json::to_vec(tree)?)?;
    to.sync_all()?;
    std::fs::rename(&part, file)?;
    std::fs::File::open(folder)?.sync_all()
}
