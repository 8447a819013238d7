//! Customers' private keys: which forms are read, which kinds are taken, and what they can do.
//!
//! Read are PKCS#8 (RFC 5958), PKCS#1 (RFC 8017, A.1.2) and SEC 1 (RFC 5915); kept is PKCS#8
//! alone, written anew from the parsed key, so attributes and oddities of the source are gone.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::encoding::{AsBigEndian, AsDer, EcPrivateKeyBin, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RsaKeyPair,
};
use rustls::sign::SigningKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::der::{self, CONTEXT_0, INTEGER, OCTET_STRING, OID, SEQUENCE};
use crate::secret::Secret;

/// The smallest RSA modulus taken, in bits (CA/Browser Forum Baseline Requirements, 6.1.5).
pub const RSA_MIN_BITS: u16 = 2048;
/// The largest RSA modulus taken, in bits: larger ones only serve to burn a server's time.
pub const RSA_MAX_BITS: u16 = 8192;
/// The longest DER taken for a private key, in bytes; RSA-8192 needs less than 5,000.
pub const MAX_DER: usize = 16 * 1024;

const OID_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const OID_EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const OID_P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const OID_P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const OID_ED25519: &[u8] = &[0x2b, 0x65, 0x70];

/// What kind of key it is. `Display` and `FromStr` use the stable names `rsa-2048`, `ecdsa-p256`,
/// `ecdsa-p384` and `ed25519`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyKind {
    /// RSA with a modulus of so many bits, [`RSA_MIN_BITS`] to [`RSA_MAX_BITS`].
    Rsa(u16),
    /// ECDSA on NIST P-256.
    EcdsaP256,
    /// ECDSA on NIST P-384.
    EcdsaP384,
    /// Ed25519 (RFC 8032).
    Ed25519,
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rsa(bits) => write!(f, "rsa-{bits}"),
            Self::EcdsaP256 => f.write_str("ecdsa-p256"),
            Self::EcdsaP384 => f.write_str("ecdsa-p384"),
            Self::Ed25519 => f.write_str("ed25519"),
        }
    }
}

impl FromStr for KeyKind {
    type Err = KeyError;

    fn from_str(name: &str) -> Result<Self, KeyError> {
        match name {
            "ecdsa-p256" => Ok(Self::EcdsaP256),
            "ecdsa-p384" => Ok(Self::EcdsaP384),
            "ed25519" => Ok(Self::Ed25519),
            _ => match name.strip_prefix("rsa-").and_then(|b| b.parse().ok()) {
                Some(bits) if bits < RSA_MIN_BITS => Err(KeyError::TooSmall { bits }),
                Some(bits) if bits <= RSA_MAX_BITS => Ok(Self::Rsa(bits)),
                _ => Err(KeyError::Unsupported(
                    "not a kind of key that is known here",
                )),
            },
        }
    }
}

/// Why a private key was not taken. No variant carries bytes of the input.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The key is protected by a passphrase.
    #[error("the private key is encrypted with a passphrase")]
    Encrypted,
    /// A kind, curve, size or file format that is not taken.
    #[error("the private key is of a kind that cannot be used: {0}")]
    Unsupported(&'static str),
    /// RSA below [`RSA_MIN_BITS`].
    #[error("the RSA key has {bits} bits, fewer than 2048")]
    TooSmall {
        /// The bits of the modulus.
        bits: u16,
    },
    /// The bytes are no private key, or are damaged.
    #[error("the private key is damaged: {0}")]
    Malformed(&'static str),
}

impl KeyError {
    /// The published reason code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Encrypted => "key_encrypted",
            Self::Unsupported(_) => "key_unsupported",
            Self::TooSmall { .. } => "key_too_small",
            Self::Malformed(_) => "pem_malformed",
        }
    }
}

/// A private key that has been parsed and found consistent, held as PKCS#8 and wiped when dropped.
///
/// Neither printed nor copied by accident: `Debug` shows the kind only and there is no `Clone`.
///
/// ```compile_fail
/// fn needs_clone<T: Clone>(_: &T) {}
/// needs_clone(&keyring::PrivateKey::generate(keyring::KeyKind::Ed25519).unwrap());
/// ```
pub struct PrivateKey {
    kind: KeyKind,
    pkcs8: Secret,
    spki: Vec<u8>,
}

impl PrivateKey {
    /// Reads the body of a PEM block with this label (`PRIVATE KEY`, without BEGIN and dashes).
    ///
    /// The label decides what is refused as encrypted or unsupported; the three plain forms are
    /// told apart by their content, because tools and manuals mix up their labels.
    ///
    /// # Errors
    /// As [`from_der`](Self::from_der); `Malformed` too for a label that names no private key.
    pub fn from_pem(label: &str, der: &[u8]) -> Result<Self, KeyError> {
        match label {
            "PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY" => Self::from_der(der),
            "ENCRYPTED PRIVATE KEY" => Err(KeyError::Encrypted),
            "OPENSSH PRIVATE KEY" | "SSH2 ENCRYPTED PRIVATE KEY" => {
                Err(KeyError::Unsupported("it is in the format of OpenSSH"))
            }
            "DSA PRIVATE KEY" => Err(KeyError::Unsupported("it is a DSA key")),
            label if label.ends_with("PRIVATE KEY") => {
                Err(KeyError::Unsupported("its label is not one that is known"))
            }
            _ => Err(KeyError::Malformed("the block is not a private key")),
        }
    }

    /// Reads a DER-encoded key in any of the three forms.
    ///
    /// The crypto library checks that the parts of the key belong together: for RSA the primes, the
    /// exponents and the CRT values, for ECDSA and Ed25519 the public half where it is present.
    ///
    /// # Errors
    /// `Encrypted` for a PKCS#8 EncryptedPrivateKeyInfo, `Unsupported` for other kinds and curves,
    /// `TooSmall` for RSA below 2,048 bits, `Malformed` for everything else.
    pub fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        const NO_KEY: KeyError = KeyError::Malformed("the bytes are not a private key in DER");
        if der.len() > MAX_DER {
            return Err(KeyError::Malformed(
                "it is longer than any key that is taken",
            ));
        }
        let mut outer = der::sequence(der).ok_or(NO_KEY)?;
        let (first_tag, _) = outer.next().ok_or(NO_KEY)?;
        match (first_tag, outer.next()) {
            (SEQUENCE, Some((OCTET_STRING, _))) => Err(KeyError::Encrypted),
            (INTEGER, Some((SEQUENCE, algorithm))) => {
                let key = outer.expect(OCTET_STRING).ok_or(NO_KEY)?;
                let mut algorithm = der::Reader::new(algorithm);
                let oid = algorithm.expect(OID).ok_or(NO_KEY)?;
                match oid {
                    OID_RSA => {
                        let bits = rsa_bits(key)?;
                        from_rsa(bits, RsaKeyPair::from_pkcs8(der).ok())
                    }
                    OID_EC => {
                        let curve = algorithm
                            .next()
                            .ok_or(KeyError::Malformed("it does not name its curve"))?;
                        let (kind, parameters) = curve_of(curve)?;
                        from_ecdsa(kind, EcdsaKeyPair::from_pkcs8(parameters, der).ok())
                    }
                    OID_ED25519 => from_ed25519(Ed25519KeyPair::from_pkcs8(der).ok()),
                    _ => Err(KeyError::Unsupported(
                        "it is neither RSA nor ECDSA nor Ed25519",
                    )),
                }
            }
            (INTEGER, Some((INTEGER, _))) => {
                let bits = rsa_bits(der)?;
                from_rsa(bits, RsaKeyPair::from_der(der).ok())
            }
            (INTEGER, Some((OCTET_STRING, _))) => {
                let curve = outer
                    .expect(CONTEXT_0)
                    .and_then(|content| der::Reader::new(content).next())
                    .ok_or(KeyError::Malformed("it does not name its curve"))?;
                let (kind, parameters) = curve_of(curve)?;
                from_ecdsa(
                    kind,
                    EcdsaKeyPair::from_private_key_der(parameters, der).ok(),
                )
            }
            _ => Err(NO_KEY),
        }
    }

    /// Makes a new key.
    ///
    /// # Errors
    /// `Unsupported` for RSA sizes other than 2048, 3072, 4096 and 8192.
    pub fn generate(kind: KeyKind) -> Result<Self, KeyError> {
        match kind {
            KeyKind::Rsa(bits) => {
                let size = match bits {
                    2048 => KeySize::Rsa2048,
                    3072 => KeySize::Rsa3072,
                    4096 => KeySize::Rsa4096,
                    8192 => KeySize::Rsa8192,
                    _ => {
                        return Err(KeyError::Unsupported(
                            "RSA keys are made with 2048, 3072, 4096 or 8192 bits",
                        ));
                    }
                };
                from_rsa(bits, RsaKeyPair::generate(size).ok())
            }
            KeyKind::EcdsaP256 => from_ecdsa(
                kind,
                EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).ok(),
            ),
            KeyKind::EcdsaP384 => from_ecdsa(
                kind,
                EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING).ok(),
            ),
            KeyKind::Ed25519 => from_ed25519(Ed25519KeyPair::generate().ok()),
        }
    }

    /// The kind of key.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The public half as DER SubjectPublicKeyInfo (RFC 5280, 4.1.2.7).
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }

    /// SHA-256 of [`spki_der`](Self::spki_der): the name of the key everywhere else.
    pub fn spki_sha256(&self) -> [u8; 32] {
        sha256(&self.spki)
    }

    /// Whether this SubjectPublicKeyInfo, as it stands in a certificate, is the public half.
    pub fn matches_spki(&self, spki_der: &[u8]) -> bool {
        self.spki == spki_der
    }

    /// The key in the form that a TLS server signs with.
    pub fn signing_key(&self) -> Arc<dyn SigningKey> {
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pkcs8.expose()));
        rustls::crypto::aws_lc_rs::sign::any_supported_type(&der)
            .expect("the same library has written this key")
    }

    /// The private key itself as PKCS#8 DER, in the clear. Only sealing and an authorised export
    /// have any use for it.
    pub fn danger_to_pkcs8_der(&self) -> &Secret {
        &self.pkcs8
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.kind)
    }
}

/// SHA-256 of some bytes.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    hash
}

/// Measures the modulus of an RSAPrivateKey before the library sees it: it says only "no".
fn rsa_bits(pkcs1: &[u8]) -> Result<u16, KeyError> {
    let modulus = der::sequence(pkcs1)
        .and_then(|mut key| {
            key.expect(INTEGER)?;
            key.expect(INTEGER)
        })
        .ok_or(KeyError::Malformed("it is not an RSA private key"))?;
    match der::bits(modulus) {
        0 => Err(KeyError::Malformed("its modulus is zero")),
        bits if bits < usize::from(RSA_MIN_BITS) => Err(KeyError::TooSmall { bits: bits as u16 }),
        bits if bits > usize::from(RSA_MAX_BITS) => {
            Err(KeyError::Unsupported("RSA keys have at most 8192 bits"))
        }
        bits => Ok(bits as u16),
    }
}

fn curve_of(
    (tag, content): (u8, &[u8]),
) -> Result<(KeyKind, &'static EcdsaSigningAlgorithm), KeyError> {
    match (tag, content) {
        (OID, OID_P256) => Ok((KeyKind::EcdsaP256, &ECDSA_P256_SHA256_ASN1_SIGNING)),
        (OID, OID_P384) => Ok((KeyKind::EcdsaP384, &ECDSA_P384_SHA384_ASN1_SIGNING)),
        (OID, _) => Err(KeyError::Unsupported(
            "its curve is neither P-256 nor P-384",
        )),
        (SEQUENCE, _) => Err(KeyError::Unsupported(
            "its curve is written out in parameters instead of being named",
        )),
        _ => Err(KeyError::Malformed("it does not name its curve")),
    }
}

const INCONSISTENT: KeyError = KeyError::Malformed("its parts do not belong together");

fn from_rsa(bits: u16, pair: Option<RsaKeyPair>) -> Result<PrivateKey, KeyError> {
    let pair = pair.ok_or(INCONSISTENT)?;
    let pkcs8: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| INCONSISTENT)?;
    let spki: PublicKeyX509Der<'_> = pair.public_key().as_der().map_err(|_| INCONSISTENT)?;
    Ok(PrivateKey {
        kind: KeyKind::Rsa(bits),
        pkcs8: Secret::from_slice(pkcs8.as_ref()),
        spki: spki.as_ref().to_vec(),
    })
}

fn from_ecdsa(kind: KeyKind, pair: Option<EcdsaKeyPair>) -> Result<PrivateKey, KeyError> {
    let pair = pair.ok_or(INCONSISTENT)?;
    // Built anew from the numbers: the library would keep a compressed or hybrid public point as it
    // found it, and the hash of the public half must not depend on how the point was written.
    let scalar: EcPrivateKeyBin<'_> = pair.private_key().as_be_bytes().map_err(|_| INCONSISTENT)?;
    let pair = EcdsaKeyPair::from_private_key_and_public_key(
        pair.algorithm(),
        scalar.as_ref(),
        pair.public_key().as_ref(),
    )
    .map_err(|_| INCONSISTENT)?;
    let spki: PublicKeyX509Der<'_> = pair.public_key().as_der().map_err(|_| INCONSISTENT)?;
    Ok(PrivateKey {
        kind,
        pkcs8: Secret::from_slice(pair.to_pkcs8v1().map_err(|_| INCONSISTENT)?.as_ref()),
        spki: spki.as_ref().to_vec(),
    })
}

fn from_ed25519(pair: Option<Ed25519KeyPair>) -> Result<PrivateKey, KeyError> {
    let pair = pair.ok_or(INCONSISTENT)?;
    let spki: PublicKeyX509Der<'_> = pair.public_key().as_der().map_err(|_| INCONSISTENT)?;
    Ok(PrivateKey {
        kind: KeyKind::Ed25519,
        pkcs8: Secret::from_slice(pair.to_pkcs8v1().map_err(|_| INCONSISTENT)?.as_ref()),
        spki: spki.as_ref().to_vec(),
    })
}
