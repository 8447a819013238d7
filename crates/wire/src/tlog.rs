//! The log as a transparency log: checkpoints, proofs, tiles and entry bundles as C2SP specifies them, and the views that
//! give them.
//!
//! Only the text and the bytes are here. Signatures are `keyring::note`, the tree is `ledger::tree`. What is read may come
//! from anybody, so every form is strict and bounded.

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use ledger::Hash;
use ledger::tree::{TILE, TreeHead};

/// The first line of a proof (c2sp.org/tlog-proof).
const PROOF: &str = "c2sp.org/tlog-proof@v1";
/// Most hashes on a path: one for each bit of the size.
const PATH_MAX: usize = 64;
/// Most bytes of a proof's text that are read.
const PROOF_MAX: usize = 1 << 20;

/// A text that is not of its form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not a {0}")]
pub struct Malformed(pub &'static str);

/// The origin of a log's checkpoints, which is also the name of the key that signs them.
pub fn origin(platform_domain: &str, log: &str) -> String {
    format!("{platform_domain}/chancery/{log}")
}

/// The text of a checkpoint (c2sp.org/tlog-checkpoint), which is signed as a note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log.
    pub origin: String,
    /// The tree.
    pub tree: TreeHead,
}

impl Checkpoint {
    /// The text, three lines.
    pub fn text(&self) -> String {
        format!(
            "{}\n{}\n{}\n",
            self.origin,
            self.tree.size,
            BASE64.encode(self.tree.root.as_bytes())
        )
    }

    /// Reads a text. Lines after the third are allowed by the specification and say nothing here.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let parse = || {
            let text = text.strip_suffix('\n')?;
            let mut lines = text.split('\n');
            let (origin, size, root) = (lines.next()?, lines.next()?, lines.next()?);
            if origin.is_empty() || lines.any(str::is_empty) {
                return None;
            }
            Some(Self {
                origin: origin.to_owned(),
                tree: TreeHead {
                    size: decimal(size)?,
                    root: hash(root)?,
                },
            })
        };
        parse().ok_or(Malformed("checkpoint (c2sp.org/tlog-checkpoint)"))
    }
}

/// A decimal number without leading zeros.
fn decimal(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| plain)?;
    (text == "0" || !text.starts_with('0')).then_some(number)
}

/// A hash in base64, as checkpoints and proofs write it.
fn hash(text: &str) -> Option<Hash> {
    let bytes = BASE64.decode(text.as_bytes()).ok()?;
    Some(Hash(bytes.try_into().ok()?))
}

/// A proof that one event is in the log (c2sp.org/tlog-proof), which needs nothing else to be checked but the log's key: the
/// event's own bytes are the extra data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The exact bytes of the event: the leaf.
    pub event: Vec<u8>,
    /// The event's place, from 0: its sequence less one.
    pub index: u64,
    /// The audit path, the leaf's sibling first.
    pub path: Vec<Hash>,
    /// The checkpoint as it was signed.
    pub checkpoint: String,
}

impl Proof {
    /// The text.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{PROOF}\nextra {}\nindex {}\n",
            BASE64.encode(&self.event),
            self.index
        );
        for hash in &self.path {
            BASE64.encode_append(hash.as_bytes(), &mut text);
            text.push('\n');
        }
        text.push('\n');
        text.push_str(&self.checkpoint);
        text
    }

    /// Reads a text. Nothing is proven by that: the hashes and the signature are to be checked.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let parse = || {
            if text.len() > PROOF_MAX {
                return None;
            }
            let (head, checkpoint) = text.split_once("\n\n")?;
            let mut lines = head.split('\n');
            if lines.next()? != PROOF {
                return None;
            }
            let event = lines.next()?.strip_prefix("extra ")?;
            let index = lines.next()?.strip_prefix("index ")?;
            let path: Vec<Hash> = lines.map(hash).collect::<Option<_>>()?;
            (path.len() <= PATH_MAX).then_some(())?;
            Some(Self {
                event: BASE64.decode(event.as_bytes()).ok()?,
                index: decimal(index)?,
                path,
                checkpoint: checkpoint.to_owned(),
            })
        };
        parse().ok_or(Malformed("proof of an event (c2sp.org/tlog-proof)"))
    }
}

/// What a tile holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// Hashes of a level of the tree.
    Hashes(u8),
    /// The entries themselves.
    Entries,
}

/// The path of a tile below a log's folder (c2sp.org/tlog-tiles): `tile/<level or entries>/x001/x234/067`, with `.p/<width>`
/// for one that has fewer than 256.
pub fn tile_path(of: Of, index: u64, width: usize) -> String {
    let mut groups = vec![format!("{:03}", index % 1_000)];
    let mut rest = index / 1_000;
    while rest > 0 {
        groups.push(format!("x{:03}", rest % 1_000));
        rest /= 1_000;
    }
    groups.reverse();
    let level = match of {
        Of::Hashes(level) => level.to_string(),
        Of::Entries => "entries".to_owned(),
    };
    let part = if width < TILE {
        format!(".p/{width}")
    } else {
        String::new()
    };
    format!("tile/{level}/{}{part}", groups.join("/"))
}

/// Appends an entry to a bundle: its length as a big-endian u16, and its bytes. False: it is longer than that can say.
#[must_use]
pub fn push_entry(bundle: &mut Vec<u8>, entry: &[u8]) -> bool {
    let Ok(length) = u16::try_from(entry.len()) else {
        return false;
    };
    bundle.extend_from_slice(&length.to_be_bytes());
    bundle.extend_from_slice(entry);
    true
}

/// The entries of a bundle.
///
/// # Errors
/// [`Malformed`] when it ends within an entry.
pub fn entries(mut bundle: &[u8]) -> Result<Vec<&[u8]>, Malformed> {
    let mut entries = Vec::new();
    while !bundle.is_empty() {
        let parts = bundle
            .split_first_chunk::<2>()
            .and_then(|(length, rest)| {
                rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
            })
            .ok_or(Malformed("whole bundle of entries (c2sp.org/tlog-tiles)"))?;
        entries.push(parts.0);
        bundle = parts.1;
    }
    Ok(entries)
}

/// `query.platform.checkpoint`
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointQuery {
    /// The size of an earlier checkpoint: the answer then has the proof that the log has only grown since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
}

/// The answer to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointAnswer {
    /// The signed note.
    pub checkpoint: String,
    /// The log.
    pub origin: String,
    /// How many events it covers.
    pub size: u64,
    /// The root of their tree, in hex.
    pub root: Hash,
    /// The key that signed it.
    pub vkey: String,
    /// The consistency proof from `since` to `size` (RFC 6962, section 2.1.2), hashes in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Vec<Hash>>,
}

/// The answer to `query.<project>.checkpoint-key`: what auditors are given, once and by another way than the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointKey {
    /// The log.
    pub origin: String,
    /// The verifier key (c2sp.org/signed-note).
    pub vkey: String,
}

/// `query.<project>.proof`: of which event. Exactly one of the two.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProofQuery {
    /// Its place in its project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projectseq: Option<u64>,
    /// Its place in the log; below `query.platform` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
}

/// The answer to it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProofAnswer {
    /// The event's place in the log.
    pub sequence: u64,
    /// The proof as text: event, path and checkpoint.
    pub proof: String,
    /// The key that signed the checkpoint in it.
    pub vkey: String,
    /// The event's exact bytes once more, to be read at once.
    pub event: Box<RawValue>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        Checkpoint {
            origin: "example.com/behind-the-sofa".to_owned(),
            tree: TreeHead {
                size: 20_852_163,
                root: hash("CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=").unwrap(),
            },
        }
    }

    /// The example of the specification.
    const TEXT: &str =
        "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";

    #[test]
    fn a_checkpoint_is_the_text_of_the_specification() {
        assert_eq!(checkpoint().text(), TEXT);
        assert_eq!(Checkpoint::parse(TEXT), Ok(checkpoint()));
        assert_eq!(
            Checkpoint::parse(&format!("{TEXT}an extension\n")),
            Ok(checkpoint())
        );
        for wrong in [
            "",
            "\n",
            "a\n1\n",
            TEXT.trim_end(),
            &TEXT.replace("20852163", "020852163"),
            &TEXT.replace("20852163", "+20852163"),
            &TEXT.replace("20852163", "20852163 "),
            &TEXT.replace("20852163", "99999999999999999999"),
            &TEXT.replace("example.com/behind-the-sofa", ""),
            &TEXT.replace("q2I=", "q2I"),
            &TEXT.replace("q2I=", "q2J="),
            &TEXT.replace("CsUY", ""),
            &format!("{TEXT}\n"),
            &format!("{TEXT}\nafter an empty line\n"),
        ] {
            assert!(Checkpoint::parse(wrong).is_err(), "{wrong}");
        }
        let empty = Checkpoint {
            tree: TreeHead::empty(),
            ..checkpoint()
        };
        assert_eq!(Checkpoint::parse(&empty.text()), Ok(empty));
    }

    #[test]
    fn a_proof_reads_back_and_nothing_half_does() {
        let proof = Proof {
            event: b"{}".to_vec(),
            index: 73_894,
            path: vec![Hash([1; 32]), Hash([2; 32])],
            checkpoint: format!("{TEXT}\n\u{2014} example.com AAAAAAAA\n"),
        };
        let text = proof.text();
        assert!(text.starts_with("c2sp.org/tlog-proof@v1\nextra e30=\nindex 73894\nAQEB"));
        assert_eq!(Proof::parse(&text), Ok(proof.clone()));
        let alone = Proof {
            index: 0,
            path: Vec::new(),
            ..proof.clone()
        };
        assert_eq!(Proof::parse(&alone.text()), Ok(alone));
        let long = Proof {
            path: vec![Hash([3; 32]); 65],
            ..proof
        };
        for wrong in [
            "",
            &text.replace("@v1", "@v2"),
            &text.replace("index 73894", "index 073894"),
            &text.replace("index ", "index"),
            &text.replace("extra e30=\n", ""),
            &text.replace("AQEB", "AQE"),
            &text.replace("\n\n", "\n"),
            &long.text(),
            &" ".repeat(PROOF_MAX + 1),
        ] {
            assert!(Proof::parse(wrong).is_err(), "{wrong:.100}");
        }
    }

    #[test]
    fn tiles_lie_where_the_specification_says() {
        for (of, index, width, path) in [
            (Of::Hashes(0), 0, 256, "tile/0/000"),
            (Of::Hashes(0), 273, 112, "tile/0/273.p/112"),
            (Of::Hashes(1), 1_234_067, 256, "tile/1/x001/x234/067"),
            (Of::Entries, 1_000, 1, "tile/entries/x001/000.p/1"),
        ] {
            assert_eq!(tile_path(of, index, width), path);
        }
    }

    #[test]
    fn bundles_read_back() {
        let mut bundle = Vec::new();
        let long = vec![b'x'; 65_535];
        for entry in [&b"a"[..], b"", &long] {
            assert!(push_entry(&mut bundle, entry));
        }
        assert!(!push_entry(&mut bundle, &[long.as_slice(), b"x"].concat()));
        assert_eq!(entries(&bundle), Ok(vec![&b"a"[..], b"", &long]));
        assert_eq!(entries(&[]), Ok(vec![]));
        assert!(entries(&bundle[..bundle.len() - 1]).is_err());
        assert!(entries(&[0]).is_err());
    }
}
