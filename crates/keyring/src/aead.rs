//! AES-256-GCM with a random nonce in front of the ciphertext: the one symmetric construction here.
//!
//! Random 96-bit nonces are safe for 2^32 messages under one key (NIST SP 800-38D, 8.3). Data keys
//! seal one message each; a project's key wraps one data key for each private key of that project,
//! and the root key one key for each project, region and secret, both far below that.

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// Bytes that sealing adds: the nonce in front, the tag behind.
pub(crate) const OVERHEAD: usize = NONCE + 16;
const NONCE: usize = 12;

/// The ciphertext did not open: another key, another place, or changed bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unopenable;

/// Seals `plaintext`, binding `aad`. The result is nonce, ciphertext, tag.
pub(crate) fn seal(key: &[u8; 32], aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
    let key = RandomizedNonceKey::new(&AES_256_GCM, key).expect("the key has 32 bytes");
    // Room for the tag from the start: growing would leave a copy of the plaintext behind.
    let mut buffer = Zeroizing::new(Vec::with_capacity(plaintext.len() + OVERHEAD));
    buffer.extend_from_slice(plaintext);
    let nonce = key
        .seal_in_place_append_tag(Aad::from(aad), &mut *buffer)
        .expect("the plaintext is far below the limit of AES-GCM");
    [nonce.as_ref().as_slice(), &buffer].concat()
}

/// Opens what [`seal`] made with the same key and the same `aad`.
pub(crate) fn open(key: &[u8; 32], aad: &[u8], sealed: &[u8]) -> Result<Secret, Unopenable> {
    let (nonce, ciphertext) = sealed.split_at_checked(NONCE).ok_or(Unopenable)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Unopenable)?;
    let key = RandomizedNonceKey::new(&AES_256_GCM, key).expect("the key has 32 bytes");
    let mut buffer = Zeroizing::new(ciphertext.to_vec());
    let plaintext = key
        .open_in_place(nonce, Aad::from(aad), &mut buffer)
        .map_err(|_| Unopenable)?;
    Ok(Secret::from_slice(plaintext))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_bit_and_every_truncation_is_noticed() {
        let key = [7; 32];
        let sealed = seal(&key, b"place", b"plaintext");
        assert_eq!(sealed.len(), 9 + OVERHEAD);
        assert!(open(&key, b"place", &sealed).unwrap().equals(b"plaintext"));
        assert!(open(&key, b"other", &sealed).is_err());
        assert!(open(&[8; 32], b"place", &sealed).is_err());
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&key, b"place", &changed).is_err());
        }
        for length in 0..sealed.len() {
            assert!(open(&key, b"place", &sealed[..length]).is_err());
        }
    }
}
