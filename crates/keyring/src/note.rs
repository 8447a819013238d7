//! Signed notes (c2sp.org/signed-note@v1.0.0) with Ed25519: what the log's checkpoints are signed as, and verified by
//! anybody's tools.
//!
//! A note is a text, an empty line and signature lines. A key has a name beside its bytes, and both make its id, so that the
//! same bytes under two names are two keys.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use data_encoding::{BASE64, HEXLOWER};

use crate::random;
use crate::secret::Secret;

/// The signature type of Ed25519 over the note's text.
const TYPE: u8 = 0x01;
/// What a signature line begins with: an em dash and a space.
const DASH: &str = "\u{2014} ";
/// Most bytes of a note that are read. Sixteen post-quantum signatures, which every reader must take, have half as many.
pub const NOTE_MAX: usize = 256 * 1024;

/// Why a note is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// It is not of the form of a signed note.
    #[error("it is not a signed note (c2sp.org/signed-note)")]
    Malformed,
    /// No line names this key.
    #[error("it carries no signature of this key")]
    NotSigned,
    /// A line names this key and its signature is wrong.
    #[error("the signature of this key does not belong to its text")]
    BadSignature,
}

/// A text that is no verifier key of Ed25519.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is not a verifier key: <name>+<key id>+<base64 of an Ed25519 key> (c2sp.org/signed-note)"
)]
pub struct ParseVerifierError;

/// A key that signs notes, and its name.
pub struct NoteSigner {
    pair: Ed25519KeyPair,
    verifier: NoteVerifier,
}

impl NoteSigner {
    /// A new key's secret half, 32 bytes, to be sealed by the vault. It gets its name when it is used.
    pub fn danger_new_secret() -> Secret {
        Secret::from_slice(&random::key()[..])
    }

    /// The key of this name whose secret half is `seed`. None: not 32 bytes, or a name that no key may have (empty, or with
    /// spaces or a plus).
    pub fn from_secret(name: &str, seed: &[u8]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).ok()?;
        let public = pair.public_key().as_ref().try_into().ok()?;
        Some(Self {
            verifier: NoteVerifier::new(name, public)?,
            pair,
        })
    }

    /// The key to verify with.
    pub fn verifier(&self) -> &NoteVerifier {
        &self.verifier
    }

    /// The note of `text` with this key's signature. A text that does not end in a newline, or has other control characters,
    /// is refused.
    ///
    /// # Errors
    /// [`NoteError::Malformed`].
    pub fn sign(&self, text: &str) -> Result<String, NoteError> {
        if !is_text(text) {
            return Err(NoteError::Malformed);
        }
        let signature = self.pair.sign(text.as_bytes());
        let line = [&self.verifier.id[..], signature.as_ref()].concat();
        Ok(format!(
            "{text}\n{DASH}{} {}\n",
            self.verifier.name,
            BASE64.encode(&line)
        ))
    }
}

impl fmt::Debug for NoteSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NoteSigner({})", self.verifier)
    }
}

/// A public key with its name. Written and read as a *vkey*: `<name>+<key id in hex>+<base64 of type and key>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoteVerifier {
    name: String,
    id: [u8; 4],
    public: [u8; 32],
}

impl NoteVerifier {
    fn new(name: &str, public: [u8; 32]) -> Option<Self> {
        let fits = |c: char| !c.is_whitespace() && !c.is_control() && c != '+';
        if name.is_empty() || !name.chars().all(fits) {
            return None;
        }
        let hashed = digest(
            &SHA256,
            &[name.as_bytes(), b"\n", &[TYPE], &public[..]].concat(),
        );
        let id = hashed.as_ref().first_chunk().copied()?;
        Some(Self {
            name: name.to_owned(),
            id,
            public,
        })
    }

    /// The key's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The public key.
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// The text of `note`, if this key has signed it. Signatures of other keys are passed over.
    ///
    /// # Errors
    /// [`NoteError`].
    pub fn open<'n>(&self, note: &'n str) -> Result<&'n str, NoteError> {
        if note.len() > NOTE_MAX {
            return Err(NoteError::Malformed);
        }
        // The last empty line ends the text, which keeps its own newline.
        let split = note.rfind("\n\n").ok_or(NoteError::Malformed)?;
        let (text, signatures) = (&note[..=split], &note[split + 2..]);
        if !is_text(text) || !signatures.ends_with('\n') {
            return Err(NoteError::Malformed);
        }
        let mut signed = false;
        for line in signatures.trim_end_matches('\n').split('\n') {
            let (name, signature) = line
                .strip_prefix(DASH)
                .and_then(|line| line.split_once(' '))
                .ok_or(NoteError::Malformed)?;
            let bytes = BASE64
                .decode(signature.as_bytes())
                .map_err(|_| NoteError::Malformed)?;
            let (id, signature) = bytes.split_first_chunk::<4>().ok_or(NoteError::Malformed)?;
            if name != self.name || *id != self.id {
                continue;
            }
            UnparsedPublicKey::new(&ED25519, self.public)
                .verify(text.as_bytes(), signature)
                .map_err(|_| NoteError::BadSignature)?;
            signed = true;
        }
        if signed {
            Ok(text)
        } else {
            Err(NoteError::NotSigned)
        }
    }
}

impl fmt::Display for NoteVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}+{}+{}",
            self.name,
            HEXLOWER.encode(&self.id),
            BASE64.encode(&[&[TYPE], &self.public[..]].concat())
        )
    }
}

impl FromStr for NoteVerifier {
    type Err = ParseVerifierError;

    fn from_str(text: &str) -> Result<Self, ParseVerifierError> {
        let parse = || {
            // The name has no plus; base64 may.
            let (name, rest) = text.split_once('+')?;
            let (id, key) = rest.split_once('+')?;
            let key = BASE64.decode(key.as_bytes()).ok()?;
            let (kind, public) = key.split_first()?;
            let verifier = Self::new(name, public.try_into().ok()?)?;
            let named = HEXLOWER.decode(id.as_bytes()).ok()?;
            (*kind == TYPE && named == verifier.id).then_some(verifier)
        };
        parse().ok_or(ParseVerifierError)
    }
}

/// Whether it is a note's text: ends in a newline and has no other control character of ASCII.
fn is_text(text: &str) -> bool {
    text.ends_with('\n') && text.bytes().all(|byte| byte >= b' ' || byte == b'\n')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The example of the specification.
    const VKEY: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
    const NOTE: &str = "This is an example message.\n\n\u{2014} example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";

    #[test]
    fn the_specifications_example_is_taken() {
        let key: NoteVerifier = VKEY.parse().unwrap();
        assert_eq!(key.to_string(), VKEY);
        assert_eq!(key.name(), "example.com/foo");
        assert_eq!(key.open(NOTE), Ok("This is an example message.\n"));
        // Somebody else's signature beside it, of whatever kind and length, changes nothing.
        let more = format!("{NOTE}\u{2014} witness.example/w1 AAAAAAAB\n");
        assert_eq!(key.open(&more), Ok("This is an example message.\n"));
    }

    #[test]
    fn what_was_signed_is_taken_and_nothing_else() {
        let seed = NoteSigner::danger_new_secret();
        let signer = NoteSigner::from_secret("example.net/chancery/log", seed.expose()).unwrap();
        let key: NoteVerifier = signer.verifier().to_string().parse().unwrap();
        assert_eq!(&key, signer.verifier());
        let text = "first\n\nafter an empty line: \u{e8} sera\n";
        let note = signer.sign(text).unwrap();
        assert_eq!(key.open(&note), Ok(text));

        for at in 0..note.len() {
            let mut changed = note.clone().into_bytes();
            changed[at] ^= 1;
            let Ok(changed) = String::from_utf8(changed) else {
                continue;
            };
            assert!(key.open(&changed).is_err(), "byte {at}: {changed}");
        }
        assert_eq!(
            key.open(&note.replace("first", "First")),
            Err(NoteError::BadSignature)
        );
        let other = NoteSigner::from_secret("example.net/other", seed.expose()).unwrap();
        assert_eq!(other.verifier().public(), key.public());
        assert_eq!(other.verifier().open(&note), Err(NoteError::NotSigned));
        for malformed in [
            "",
            "\n",
            text,
            note.trim_end(),
            &note.replace("first", "fi\trst"),
            &note.replace(DASH, "- "),
            &format!("{note}more\n"),
            &format!("{note}\u{2014} name !!!!\n"),
            &format!("{note}\u{2014} name AAA=\n"),
            &"x\n".repeat(NOTE_MAX),
        ] {
            assert_eq!(
                key.open(malformed),
                Err(NoteError::Malformed),
                "{malformed:.80}"
            );
        }
        for text in ["", "no newline", "a\tb\n", "a\r\n"] {
            assert_eq!(signer.sign(text), Err(NoteError::Malformed));
        }
    }

    #[test]
    fn only_a_whole_verifier_key_is_one() {
        for name in ["", "a b", "a+b", "a\u{a0}b", "a\nb"] {
            assert!(
                NoteSigner::from_secret(name, &[1; 32]).is_none(),
                "{name:?}"
            );
        }
        assert!(NoteSigner::from_secret("a", &[1; 31]).is_none());
        for wrong in [
            "",
            "example.com/foo",
            "example.com/foo+530d903a",
            // Another id, another type, a byte less.
            &VKEY.replace("530d903a", "530d903b"),
            &VKEY.replace("+Aeky", "+BEky"),
            &VKEY[..VKEY.len() - 4],
            &VKEY.replace("example.com", "example.org"),
        ] {
            assert_eq!(
                wrong.parse::<NoteVerifier>(),
                Err(ParseVerifierError),
                "{wrong}"
            );
        }
    }
}
