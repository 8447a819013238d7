//! What the bytes of an upload alone decide: is it PEM, a chain, a key that matches; may it be served?
//!
//! Everything here is a pure function over bytes and a time. The input is hostile: sizes are checked before anything is
//! parsed, nothing recurses, and no message quotes what was given, because messages end up in the log.
//!
//! * [`read_chain`], [`read_key`]: from PEM text to DER, or the reason why not
//! * [`examine`]: from a chain to its facts, or all the reasons why it cannot be served
//! * [`judge_trust`]: whom a chain leads to, and what has to be served with the leaf

mod certificate;
mod constraints;
mod examine;
pub mod offline;
mod path;
pub mod pem;
pub mod pkcs7;
mod profile;
pub mod repair;
#[cfg(test)]
mod tests;
mod trust;

pub use examine::{Examined, examine};
pub use trust::{Known, Path, judge_trust};

use keyring::{PrivateKey, der};
use lifecycle::event::CertificateKind;
use lifecycle::rejection::{Code, Reason};
use rustls_pki_types::CertificateDer;

/// The longest input, in bytes.
pub const MAX_INPUT: usize = 1024 * 1024;
/// The most certificates in one chain.
pub const MAX_CERTIFICATES: usize = 20;
/// The longest certificate, in bytes of DER.
pub const MAX_CERTIFICATE: usize = 64 * 1024;
/// Bytes of DER that a server certificate and its intermediates have at most together. All versions of one certificate are
/// carried to an edge in one message, so 16 of them must fit into that.
pub const MAX_SERVED: usize = 48 * 1024;
/// The most DNS names of one certificate; an event must hold them all.
pub const MAX_NAMES: usize = 250;

const CHAIN_HINT: &str = "Pass the server certificate followed by its intermediates: chancery certificate add NAME --chain chain.pem --key key.pem";
const KEY_HINT: &str = "Pass the private key in a file of its own: chancery certificate add NAME --chain chain.pem --key key.pem";

/// Reads the PEM text of a chain: the certificates in the order of the text, at least one.
///
/// What [`pem`] passes over is passed over, PKCS#7 bundles are taken to pieces, and blocks of known other kinds, such as a
/// signing request, may stand beside certificates.
///
/// # Errors
/// One of `too_large`, `not_pem`, `no_certificate`, `pem_malformed`, `key_unexpected`, `dh_parameters_present`.
pub fn read_chain(
    text: &[u8],
    kind: CertificateKind,
) -> Result<Vec<CertificateDer<'static>>, Reason> {
    read_upload(text, kind).map(|upload| upload.chain)
}

/// What a text held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// The certificates, in the order of the text.
    pub chain: Vec<CertificateDer<'static>>,
    /// Whether text or blocks of other kinds stood beside them.
    pub text_beside: bool,
}

/// As [`read_chain`], and says whether anything was passed over.
///
/// # Errors
/// Those of [`read_chain`].
pub fn read_upload(text: &[u8], kind: CertificateKind) -> Result<Upload, Reason> {
    let mut chain: Vec<CertificateDer<'static>> = Vec::new();
    let mut blocks = pem::blocks(text)?;
    let mut other = None;
    for block in &mut blocks {
        let block = block?;
        match block.label {
            "CERTIFICATE" | "X509 CERTIFICATE" | "TRUSTED CERTIFICATE" => {
                let body = block.decode()?;
                // OpenSSL's trusted form has its own remarks behind the certificate.
                let body = match block.label {
                    "TRUSTED CERTIFICATE" => der::Reader::new(&body).whole().unwrap_or_default(),
                    _ => &body,
                };
                let number = chain.len() + 1;
                if number > MAX_CERTIFICATES {
                    return Err(Reason::new(
                        Code::TooLarge,
                        format!("The file holds more than {MAX_CERTIFICATES} certificates."),
                        CHAIN_HINT,
                    ));
                }
                if body.len() > MAX_CERTIFICATE {
                    return Err(Reason::new(
                        Code::TooLarge,
                        format!(
                            "Certificate {number} of the file is longer than {MAX_CERTIFICATE} bytes."
                        ),
                        "",
                    ));
                }
                chain.push(CertificateDer::from(body.to_vec()));
            }
            label if label.ends_with("PRIVATE KEY") => {
                return Err(match kind {
                    CertificateKind::Server => Reason::new(
                        Code::KeyUnexpected,
                        "The file of the chain holds a private key.",
                        KEY_HINT,
                    ),
                    CertificateKind::Ca => Reason::new(
                        Code::KeyUnexpected,
                        "The file holds a private key, and a CA certificate is kept without one.",
                        "Keep the key of the CA to yourself: chancery certificate add NAME --kind ca --chain ca.pem",
                    ),
                });
            }
            "DH PARAMETERS" | "X9.42 DH PARAMETERS" => return Err(dh_parameters()),
            "PKCS7" | "PKCS #7 SIGNED DATA" | "CMS" => {
                chain.extend(pkcs7::certificates(&block.decode()?)?);
                if chain.len() > MAX_CERTIFICATES {
                    return Err(Reason::new(
                        Code::TooLarge,
                        format!("The file holds more than {MAX_CERTIFICATES} certificates."),
                        CHAIN_HINT,
                    ));
                }
            }
            label if pem::other(label).is_some() => other = other.or(pem::other(label)),
            _ => {
                return Err(Reason::new(
                    Code::PemMalformed,
                    format!(
                        "Block {} of the file is neither a certificate nor anything else that belongs into a chain.",
                        block.number
                    ),
                    CHAIN_HINT,
                ));
            }
        }
    }
    if chain.is_empty() {
        let (code, message, hint) = other.unwrap_or((
            Code::NoCertificate,
            "The file holds no certificate.",
            CHAIN_HINT,
        ));
        return Err(Reason::new(code, message, hint));
    }
    Ok(Upload {
        chain,
        text_beside: blocks.text_beside() || other.is_some(),
    })
}

/// Reads the PEM text of a private key. Certificates and curve parameters beside it are passed over.
///
/// # Errors
/// One of `too_large`, `not_pem`, `key_missing`, `pem_malformed`, `key_unexpected` (more than one key), `key_encrypted`,
/// `key_unsupported`, `key_too_small`, `dh_parameters_present`.
pub fn read_key(text: &[u8]) -> Result<PrivateKey, Reason> {
    if text.iter().all(u8::is_ascii_whitespace) {
        return Err(no_key("The file of the private key is empty."));
    }
    let mut key = None;
    for block in pem::blocks(text)? {
        let block = block?;
        match block.label {
            label if label.ends_with("PRIVATE KEY") => {
                if block.encrypted.is_some() {
                    return Err(key_reason(&keyring::KeyError::Encrypted));
                }
                let read =
                    PrivateKey::from_pem(label, &block.decode()?).map_err(|e| key_reason(&e))?;
                if key.replace(read).is_some() {
                    return Err(Reason::new(
                        Code::KeyUnexpected,
                        "The file holds more than one private key.",
                        "Pass a file with the key of this certificate only.",
                    ));
                }
            }
            "DH PARAMETERS" | "X9.42 DH PARAMETERS" => return Err(dh_parameters()),
            _ => {}
        }
    }
    key.ok_or_else(|| no_key("The file holds no private key."))
}

fn no_key(message: &str) -> Reason {
    Reason::new(Code::KeyMissing, message, KEY_HINT)
}

/// The reason for a private key that was not taken. Sealed keys are opened elsewhere, hence public.
pub fn key_reason(error: &keyring::KeyError) -> Reason {
    use keyring::KeyError;
    let (code, hint) = match error {
        KeyError::Encrypted => (
            Code::KeyEncrypted,
            "Decrypt it where it is safe: openssl pkey -in key.pem -out plain.pem; it is sealed again before it leaves your machine",
        ),
        KeyError::Unsupported(_) => (
            Code::KeyUnsupported,
            "Use RSA with 2048 to 8192 bits, ECDSA on P-256 or P-384, or Ed25519: openssl ecparam -name prime256v1 -genkey -noout -out key.pem",
        ),
        KeyError::TooSmall { .. } => (
            Code::KeyTooSmall,
            "Make a new key and have a certificate issued for it: openssl genrsa -out key.pem 2048",
        ),
        KeyError::Malformed(_) => (
            Code::PemMalformed,
            "Check the file: openssl pkey -in key.pem -noout -check",
        ),
    };
    Reason::new(code, sentence(&error.to_string()), hint)
}

/// The refusal for DH parameters, in whatever file they stand.
pub fn dh_parameters() -> Reason {
    Reason::new(
        Code::DhParametersPresent,
        "The file holds DH parameters, which are never used: key exchange is ECDHE or better.",
        "Remove the block between BEGIN DH PARAMETERS and END DH PARAMETERS.",
    )
}

/// An error text as a sentence.
fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    match characters.next() {
        Some(first) => format!("{}{}.", first.to_uppercase(), characters.as_str()),
        None => String::new(),
    }
}
