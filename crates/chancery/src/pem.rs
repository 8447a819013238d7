//! PEM as people have it in files (RFC 7468, leniently): cut into blocks, so that private keys are taken out before
//! anything leaves the process.
//!
//! Only whole blocks are ever sent, never the text around them: tools write comments there, and a key whose frame is
//! broken would look like one.

use data_encoding::BASE64;
use zeroize::Zeroizing;

use keyring::{KeyError, PrivateKey};
use lifecycle::rejection::Code;

use crate::failure::{Failure, Result};

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const DASHES: &str = "-----";

/// One block.
struct Block<'a> {
    label: &'a str,
    /// The block with its frame.
    text: &'a str,
    /// What stands within the frame.
    body: &'a str,
}

/// What a file holds: certificates and the like to send, and keys to seal.
pub struct Contents {
    /// All blocks that are no private keys, as PEM.
    pub public: String,
    /// The private keys.
    pub keys: Vec<PrivateKey>,
}

/// Reads a file's PEM.
///
/// # Errors
/// `not_pem` without a single block; `pem_malformed` for a broken frame; for keys `key_encrypted`, `key_unsupported`,
/// `key_too_small` and `pem_malformed`. Nothing of the input is quoted.
pub fn read(bytes: &[u8]) -> Result<Contents> {
    let text = std::str::from_utf8(bytes).map_err(|_| not_pem())?;
    let blocks = blocks(text)?;
    if blocks.is_empty() {
        return Err(not_pem());
    }
    let mut public = String::new();
    let mut keys = Vec::new();
    for block in blocks {
        let der = decode(block.body);
        if block.label.ends_with("PRIVATE KEY") {
            if block
                .body
                .lines()
                .any(|l| l.starts_with("Proc-Type:") && l.contains("ENCRYPTED"))
            {
                return Err(key_failure(&KeyError::Encrypted));
            }
            let der = der.ok_or_else(|| malformed("the base64 of a private key is broken"))?;
            keys.push(
                PrivateKey::from_pem(block.label, &der).map_err(|error| key_failure(&error))?,
            );
            continue;
        }
        // A label is only what somebody typed: what reads as a key is one, whatever it says.
        if der.is_some_and(|der| PrivateKey::from_der(&der).is_ok()) {
            return Err(malformed(
                "a private key stands in a block with another label",
            ));
        }
        public.push_str(block.text);
        public.push('\n');
    }
    Ok(Contents { public, keys })
}

/// The refusal that fits a key that cannot be used.
fn key_failure(error: &KeyError) -> Failure {
    let code = Code::parse(error.code()).unwrap_or(Code::PemMalformed);
    let hint = match code {
        Code::KeyEncrypted => {
            "decrypt it first: openssl pkey -in KEY -out OPEN-KEY; passphrases are not asked for"
        }
        Code::KeyTooSmall => {
            "make a new key, RSA with 2048 bits or more or ECDSA P-256, and have the certificate issued anew"
        }
        Code::KeyUnsupported => "RSA from 2048 bits, ECDSA P-256 and P-384, and Ed25519 are served",
        _ => "openssl pkey -in KEY -check tells more",
    };
    Failure::problem(code, error.to_string(), hint)
}

fn not_pem() -> Failure {
    Failure::problem(
        Code::NotPem,
        "the file holds no PEM block",
        "from DER: openssl x509 -inform der -in FILE -out chain.pem, and for a key: openssl pkey -inform der -in FILE -out key.pem",
    )
}

fn malformed(what: &str) -> Failure {
    Failure::problem(
        Code::PemMalformed,
        what,
        "each block runs from -----BEGIN X----- to -----END X----- with base64 between",
    )
}

fn blocks(text: &str) -> Result<Vec<Block<'_>>> {
    let mut blocks = Vec::new();
    let mut open: Option<(&str, usize, usize)> = None;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let start = at;
        at += line.len();
        let line = line.trim_start_matches('\u{feff}').trim();
        if let Some(label) = line
            .strip_prefix(BEGIN)
            .and_then(|l| l.strip_suffix(DASHES))
        {
            if open.is_some() {
                return Err(malformed("a block begins before the one above it ends"));
            }
            open = Some((label, start, at));
        } else if let Some(label) = line.strip_prefix(END).and_then(|l| l.strip_suffix(DASHES)) {
            match open.take() {
                Some((begun, from, body)) if begun == label => blocks.push(Block {
                    label,
                    text: text[from..at].trim_start_matches('\u{feff}').trim(),
                    body: &text[body..start],
                }),
                _ => {
                    return Err(malformed(
                        "a block ends that did not begin, or under another label",
                    ));
                }
            }
        } else if line.contains(BEGIN) || line.contains(END) {
            return Err(malformed(
                "a line that begins or ends a block holds something else as well",
            ));
        }
    }
    if open.is_some() {
        return Err(malformed("the last block does not end"));
    }
    Ok(blocks)
}

/// The bytes of a block's base64; None when it is broken, which the other side tells with more detail.
fn decode(body: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut text = Zeroizing::new(Vec::with_capacity(body.len()));
    text.extend(body.bytes().filter(|b| !b.is_ascii_whitespace()));
    let mut bytes = Zeroizing::new(vec![0; BASE64.decode_len(text.len()).ok()?]);
    let length = BASE64.decode_mut(&text, &mut bytes).ok()?;
    bytes.truncate(length);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use keyring::KeyKind;

    use super::*;

    fn pem(label: &str, der: &[u8]) -> String {
        let base64 = BASE64.encode(der);
        let lines: Vec<_> = base64
            .as_bytes()
            .chunks(64)
            .map(|c| std::str::from_utf8(c).expect("ascii"))
            .collect();
        format!(
            "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
            lines.join("\n")
        )
    }

    fn key() -> String {
        let key = PrivateKey::generate(KeyKind::EcdsaP256).expect("a key is made");
        pem("PRIVATE KEY", key.danger_to_pkcs8_der().expose())
    }

    fn code(text: &str) -> String {
        match read(text.as_bytes()) {
            Err(Failure::Refused(refused)) => refused.told.code,
            Err(other) => format!("{other:?}"),
            Ok(_) => "ok".to_owned(),
        }
    }

    #[test]
    fn keys_are_taken_out_of_what_is_sent() {
        let certificate = pem("CERTIFICATE", b"not really one");
        let key = key();
        let text = format!(
            "\u{feff}Bag Attributes: secret note\r\n{certificate}{key}\nmore\n{certificate}"
        )
        .replace('\n', "\r\n");
        let contents = read(text.as_bytes()).expect("it is read");
        assert_eq!(contents.keys.len(), 1);
        assert_eq!(contents.public.matches("BEGIN CERTIFICATE").count(), 2);
        for secret in [
            "PRIVATE",
            "secret note",
            "more",
            key.lines().nth(1).expect("a line"),
        ] {
            assert!(!contents.public.contains(secret), "{secret} would be sent");
        }
    }

    /// Each of these would carry key material out of the process if text were sent as it came.
    #[test]
    fn a_broken_frame_sends_nothing() {
        let key = key();
        let mislabelled = key.replace("PRIVATE KEY", "CERTIFICATE");
        let cut = key.replace("-----END PRIVATE KEY-----\n", "");
        let headless = key.replace("-----BEGIN PRIVATE KEY-----\n", "");
        let bare = key
            .lines()
            .filter(|l| !l.starts_with('-'))
            .collect::<Vec<_>>()
            .join("\n");
        let nested = format!("-----BEGIN CERTIFICATE-----\n{key}-----END CERTIFICATE-----\n");
        let beside = key.replace("-----BEGIN", "x -----BEGIN");
        let other_end = key.replace("END PRIVATE KEY", "END CERTIFICATE");
        for text in [&mislabelled, &cut, &headless, &nested, &beside, &other_end] {
            assert_eq!(code(text), "pem_malformed", "{text}");
        }
        assert_eq!(code(&bare), "not_pem");
        let short = key.replace("-----BEGIN PRIVATE KEY-----", "----BEGIN PRIVATE KEY-----");
        assert_eq!(code(&short), "pem_malformed");
        // Text around a whole block is left out, keys without a frame in it too.
        let around = format!("{bare}\n{}", pem("CERTIFICATE", b"x"));
        assert!(
            !read(around.as_bytes())
                .expect("read")
                .public
                .contains(bare.lines().next().expect("a line"))
        );
    }

    #[test]
    fn keys_that_cannot_be_used_are_told_apart() {
        let encrypted = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
        assert_eq!(code(encrypted), "key_encrypted");
        assert_eq!(code(&pem("ENCRYPTED PRIVATE KEY", b"x")), "key_encrypted");
        assert_eq!(code(&pem("OPENSSH PRIVATE KEY", b"x")), "key_unsupported");
        assert_eq!(code(&pem("DSA PRIVATE KEY", b"x")), "key_unsupported");
        assert_eq!(code(&pem("PRIVATE KEY", b"x")), "pem_malformed");
        assert_eq!(
            code("-----BEGIN PRIVATE KEY-----\n!!\n-----END PRIVATE KEY-----\n"),
            "pem_malformed"
        );
        assert_eq!(code(""), "not_pem");
        assert_eq!(code("hello"), "not_pem");
    }
}
