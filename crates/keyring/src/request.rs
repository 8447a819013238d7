//! Signing requests (PKCS#10, RFC 2986) for keys that are born here.
//!
//! A request says as little as a CA needs: the names, in the extension that counts (RFC 5280, 4.2.1.6), and the first of them
//! as common name, which some CAs still ask for. What a CA makes of it is the CA's to say.

use rustls::SignatureScheme;

use crate::der::{BIT_STRING, INTEGER, NULL, OCTET_STRING, OID, SEQUENCE, SET, element};
use crate::key::{KeyKind, PrivateKey};

/// Longest common name, bytes (RFC 5280, ub-common-name).
const COMMON_NAME_MAX: usize = 64;

const UTF8_STRING: u8 = 0x0c;
/// `[0]`, constructed: the attributes of a request.
const ATTRIBUTES: u8 = 0xa0;
/// `[2]`, primitive: a DNS name in a subject alternative name.
const DNS_NAME: u8 = 0x82;

const OID_COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const OID_SAN: &[u8] = &[0x55, 0x1d, 0x11];
const OID_EXTENSION_REQUEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x0e];
const OID_RSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];
const OID_ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const OID_ECDSA_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];
const OID_ED25519: &[u8] = &[0x2b, 0x65, 0x70];

/// Why no request could be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A name that is not ASCII: DNS names are sent as A-labels.
    #[error("a name is not a DNS name in ASCII")]
    Name,
    /// The key did not sign.
    #[error("the key does not sign")]
    Signing,
}

/// A signing request in DER for these DNS names, signed by the key that it is for.
///
/// # Errors
/// [`RequestError::Name`] for names that are not ASCII or when there is none; [`RequestError::Signing`] when the crypto library
/// says no.
pub fn signing_request(key: &PrivateKey, names: &[String]) -> Result<Vec<u8>, RequestError> {
    if names.is_empty()
        || names
            .iter()
            .any(|name| name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic()))
    {
        return Err(RequestError::Name);
    }
    let subject = match names.first().filter(|name| name.len() <= COMMON_NAME_MAX) {
        Some(name) => element(
            SET,
            &[&element(
                SEQUENCE,
                &[
                    &element(OID, &[OID_COMMON_NAME]),
                    &element(UTF8_STRING, &[name.as_bytes()]),
                ],
            )],
        ),
        None => Vec::new(),
    };
    let general_names: Vec<Vec<u8>> = names
        .iter()
        .map(|name| element(DNS_NAME, &[name.as_bytes()]))
        .collect();
    let general_names: Vec<&[u8]> = general_names.iter().map(Vec::as_slice).collect();
    let san = element(
        SEQUENCE,
        &[
            &element(OID, &[OID_SAN]),
            &element(OCTET_STRING, &[&element(SEQUENCE, &general_names)]),
        ],
    );
    let attributes = element(
        ATTRIBUTES,
        &[&element(
            SEQUENCE,
            &[
                &element(OID, &[OID_EXTENSION_REQUEST]),
                &element(SET, &[&element(SEQUENCE, &[&san])]),
            ],
        )],
    );
    let info = element(
        SEQUENCE,
        &[
            &element(INTEGER, &[&[0]]),
            &element(SEQUENCE, &[&subject]),
            key.spki_der(),
            &attributes,
        ],
    );
    let (scheme, algorithm) = algorithm(key.kind());
    let signing = key.signing_key();
    let signature = signing
        .choose_scheme(&[scheme])
        .and_then(|signer| signer.sign(&info).ok())
        .ok_or(RequestError::Signing)?;
    Ok(element(
        SEQUENCE,
        &[
            &info,
            &element(SEQUENCE, &[&algorithm]),
            &element(BIT_STRING, &[&[0], &signature]),
        ],
    ))
}

/// How a key of this kind signs its request, and what that is called (RFC 4055, 5758, 8410).
fn algorithm(kind: KeyKind) -> (SignatureScheme, Vec<u8>) {
    let oid = |oid: &[u8]| element(OID, &[oid]);
    match kind {
        KeyKind::Rsa(_) => (
            SignatureScheme::RSA_PKCS1_SHA256,
            [oid(OID_RSA_SHA256), element(NULL, &[])].concat(),
        ),
        KeyKind::EcdsaP256 => (
            SignatureScheme::ECDSA_NISTP256_SHA256,
            oid(OID_ECDSA_SHA256),
        ),
        KeyKind::EcdsaP384 => (
            SignatureScheme::ECDSA_NISTP384_SHA384,
            oid(OID_ECDSA_SHA384),
        ),
        KeyKind::Ed25519 => (SignatureScheme::ED25519, oid(OID_ED25519)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    /// OpenSSL's reading of a request, and whether its signature is good.
    fn openssl(der: &[u8]) -> (bool, String) {
        let mut child = Command::new("openssl")
            .args(["req", "-inform", "DER", "-verify", "-noout", "-text"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("openssl is installed");
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(der)
            .expect("written");
        let output = child.wait_with_output().expect("it ends");
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    #[test]
    fn openssl_reads_and_verifies_requests_of_every_kind_of_key() {
        let names = vec!["www.example.com".to_owned(), "*.example.com".to_owned()];
        for kind in [
            KeyKind::Rsa(2048),
            KeyKind::EcdsaP256,
            KeyKind::EcdsaP384,
            KeyKind::Ed25519,
        ] {
            let key = PrivateKey::generate(kind).expect("made");
            let request = signing_request(&key, &names).expect("made");
            let (good, text) = openssl(&request);
            assert!(good && text.contains("verify OK"), "{kind}: {text}");
            assert!(
                text.contains("DNS:www.example.com, DNS:*.example.com"),
                "{kind}: {text}"
            );
            assert!(text.contains("CN = www.example.com"), "{kind}: {text}");
            // Changed by one bit in a name, it is no longer good.
            let mut forged = request.clone();
            let at = forged
                .windows(3)
                .position(|w| w == b"www")
                .expect("the name is in it");
            forged[at] ^= 1;
            let (_, text) = openssl(&forged);
            assert!(!text.contains("verify OK"), "{kind}: {text}");
        }
    }

    #[test]
    fn a_first_name_too_long_for_a_common_name_is_left_out_of_the_subject() {
        let key = PrivateKey::generate(KeyKind::EcdsaP256).expect("made");
        let long = format!("{}.{}.example.com", "a".repeat(40), "b".repeat(40));
        let request = signing_request(&key, std::slice::from_ref(&long)).expect("made");
        let (good, text) = openssl(&request);
        assert!(good && text.contains(&format!("DNS:{long}")), "{text}");
        assert!(!text.contains("CN ="), "{text}");
    }

    #[test]
    fn names_are_ascii() {
        let key = PrivateKey::generate(KeyKind::EcdsaP256).expect("made");
        for wrong in [&[][..], &[String::new()], &["bücher.example".to_owned()]] {
            assert_eq!(signing_request(&key, wrong), Err(RequestError::Name));
        }
    }
}
