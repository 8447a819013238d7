//! Private keys and everything that keeps them: parsing, sealing, custody, rotation.
//!
//! This crate is the only one that touches a private key. It is synchronous, speaks to no network
//! and knows nothing of certificates or of the log; it turns key material into sealed bytes that
//! the rest of the system may carry, and back again for the few roles that hold the right key.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`secret`] | bytes that wipe themselves and cannot be printed, compared or copied by accident |
//! | [`key`] | customers' private keys: PKCS#8, PKCS#1, SEC 1; RSA, ECDSA, Ed25519 |
//! | [`request`] | signing requests for keys that are made here |
//! | [`protected`] | keys under a password: encrypted PKCS#8 and PEM |
//! | [`pkcs12`] | containers of certificates and keys under a password, both ways |
//! | [`der`] | enough DER to take these to pieces |
//! | [`hpke`] | sealing to a public key (RFC 9180), and the ingestion door's JSON form |
//! | [`root`] | key files on disk: the root key and an edge's local store key |
//! | [`blob`] | the sealed records that travel on the stream of keys |
//! | [`vault`] | custody on a control node: project keys, region keys, ingestion keys, secrets |
//! | [`region`] | what travels to an edge, and the edge's side of it |
//! | [`feed`] | Ed25519 signatures on region feeds |
//! | [`note`] | signed notes: Ed25519 signatures on the log's checkpoints |
//! | [`process`] | hardening of a process that holds open keys |

pub mod blob;
pub mod der;
pub mod feed;
pub mod hpke;
pub mod key;
pub mod note;
pub mod pkcs12;
pub mod process;
pub mod protected;
pub mod region;
pub mod request;
pub mod root;
pub mod secret;
pub mod vault;

mod aead;
mod random;

pub use blob::{BlobError, BlobKind, SealedBlob};
pub use hpke::{Recipient, Sealed, SealedKey};
pub use key::{KeyError, KeyKind, PrivateKey};
pub use protected::{Password, ProtectedError};
pub use region::{EdgeKeys, RegionKey, RegionSealed};
pub use root::{KeyFileError, LocalKey, RootKey};
pub use secret::Secret;
pub use vault::{Export, IngestionKeys, Rotation, Vault, VaultError, open_with_root};

use std::sync::{Arc, OnceLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// The one TLS crypto provider of the whole program: aws-lc-rs with TLS 1.3 and 1.2 suites.
///
/// Key exchange prefers the hybrid X25519MLKEM768, then X25519, P-256 and P-384. It is built once
/// and shared, so that nobody depends on a process-wide default having been installed.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| {
            Arc::new(CryptoProvider {
                kx_groups: vec![
                    aws_lc_rs::kx_group::X25519MLKEM768,
                    aws_lc_rs::kx_group::X25519,
                    aws_lc_rs::kx_group::SECP256R1,
                    aws_lc_rs::kx_group::SECP384R1,
                ],
                ..aws_lc_rs::default_provider()
            })
        })
        .clone()
}

#[cfg(test)]
mod tests {
    use rustls::NamedGroup;
    use rustls::version::{TLS12, TLS13};

    #[test]
    fn the_provider_prefers_the_hybrid_group_and_has_both_versions() {
        let provider = super::provider();
        let groups: Vec<_> = provider.kx_groups.iter().map(|g| g.name()).collect();
        assert_eq!(
            groups,
            [
                NamedGroup::X25519MLKEM768,
                NamedGroup::X25519,
                NamedGroup::secp256r1,
                NamedGroup::secp384r1
            ]
        );
        for version in [&TLS13, &TLS12] {
            assert!(
                provider
                    .cipher_suites
                    .iter()
                    .any(|s| s.version().version == version.version)
            );
        }
    }
}
