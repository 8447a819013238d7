//! Ed25519 signatures (RFC 8032) on region feeds: distribution signs, edges verify.
//!
//! A context string is signed along with each message, so that a signature made for one purpose is
//! worth nothing for another.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use data_encoding::HEXLOWER;

use crate::random;
use crate::secret::Secret;

/// The signature was not made by the holder of this key over this message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not belong to this key, purpose and message")]
pub struct BadSignature;

/// The private half of a feed's signing key.
pub struct FeedSigner {
    seed: Secret,
    pair: Ed25519KeyPair,
}

impl FeedSigner {
    /// Makes a new key.
    pub fn generate() -> Self {
        let seed = random::key();
        Self::from_secret(&seed[..]).expect("a seed of 32 bytes makes a key")
    }

    /// Takes the 32 bytes that [`danger_to_secret`](Self::danger_to_secret) gave.
    ///
    /// # Errors
    /// When there are not 32 bytes.
    pub fn from_secret(seed: &[u8]) -> Result<Self, BadSignature> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| BadSignature)?;
        Ok(Self {
            seed: Secret::from_slice(seed),
            pair,
        })
    }

    /// The private half in the clear, to be sealed by the vault.
    pub fn danger_to_secret(&self) -> &Secret {
        &self.seed
    }

    /// The public half, which edges pin.
    pub fn public(&self) -> [u8; 32] {
        let mut public = [0; 32];
        public.copy_from_slice(self.pair.public_key().as_ref());
        public
    }

    /// Signs `message` for the purpose `context`.
    pub fn sign(&self, context: &str, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.pair.sign(&framed(context, message)).as_ref());
        signature
    }
}

impl std::fmt::Debug for FeedSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FeedSigner({})", HEXLOWER.encode(&self.public()[..8]))
    }
}

/// Checks a signature made by [`FeedSigner::sign`].
///
/// # Errors
/// When key, purpose, message or signature differ.
pub fn verify(
    public: &[u8; 32],
    context: &str,
    message: &[u8],
    signature: &[u8],
) -> Result<(), BadSignature> {
    UnparsedPublicKey::new(&ED25519, public)
        .verify(&framed(context, message), signature)
        .map_err(|_| BadSignature)
}

fn framed(context: &str, message: &[u8]) -> Vec<u8> {
    [context.as_bytes(), b"\0", message].concat()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_key_purpose_and_message_only() {
        let signer = FeedSigner::generate();
        let public = signer.public();
        let signature = signer.sign("chancery.v1.manifest", b"message");
        assert!(verify(&public, "chancery.v1.manifest", b"message", &signature).is_ok());
        assert!(verify(&public, "chancery.v1.delta", b"message", &signature).is_err());
        assert!(verify(&public, "chancery.v1.manifest", b"massage", &signature).is_err());
        assert!(verify(&public, "chancery.v1.manifest", b"message", &signature[1..]).is_err());
        let other = FeedSigner::generate().public();
        assert!(verify(&other, "chancery.v1.manifest", b"message", &signature).is_err());
        let again = FeedSigner::from_secret(signer.danger_to_secret().expose()).unwrap();
        assert_eq!(again.public(), public);
    }
}
