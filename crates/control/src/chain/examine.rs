//! From a chain to its facts, or to all the reasons why it cannot be served.

use std::collections::BTreeSet;

use lifecycle::event::{CertificateKind, Facts, Trust};
use lifecycle::names::{Digest, Host};
use lifecycle::rejection::{Code, Reason};
use lifecycle::selection::KeyKind;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::OID_X509_EXT_BASIC_CONSTRAINTS;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::profile;
use super::trust::{Known, is_public_root, judge_trust};
use super::{CHAIN_HINT, MAX_CERTIFICATE, MAX_CERTIFICATES, MAX_NAMES};

/// Signature algorithms that no client should accept: MD2, MD5 and SHA-1 with RSA, SHA-1 with DSA and ECDSA.
pub(super) const WEAK: &[&str] = &[
    "1.2.840.113549.1.1.2",
    "1.2.840.113549.1.1.4",
    "1.2.840.113549.1.1.5",
    "1.3.14.3.2.29",
    "1.2.840.10040.4.3",
    "1.2.840.10045.4.1",
];
/// What mends a key that is not served.
pub(super) const KEY_HINT: &str = "Have a certificate issued for a key of RSA with 2048 to 8192 bits, ECDSA on P-256 or P-384, or Ed25519.";
const ED25519: &str = "1.3.101.112";
const P256: &str = "1.2.840.10045.3.1.7";
/// The most extensions of one certificate.
const MAX_EXTENSIONS: usize = 64;
/// The longest name or public key of a certificate, in bytes.
const MAX_PART: usize = 4096;
const P384: &str = "1.3.132.0.34";

/// What a chain that can be kept says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Examined {
    /// What the log keeps. `chain` in it are the fingerprints of [`chain`](Self::chain); a CA has no names.
    pub facts: Facts,
    /// The certificates to keep and serve, leaf first, completed with known intermediates where some were missing.
    pub chain: Vec<CertificateDer<'static>>,
    /// Whom it is trusted by.
    pub trust: Trust,
    /// Whether the first certificate names itself as its issuer.
    pub self_signed: bool,
    /// The serial number in lower-case hex, at most 64 bytes of it.
    pub serial: String,
    /// The issuer's common name, at most 64 printable characters of it; empty when there is none.
    pub issuer: String,
}

/// Examines a chain, leaf first, at the time `now` in Unix seconds.
///
/// `spki_of_key` is the SHA-256 of the public half of the key that came with it; without a key it is not compared.
///
/// # Errors
/// All reasons that were found, at least one, the most telling first: `no_certificate` (for a CA also a certificate that is
/// none), `too_large`, `pem_malformed`, `key_mismatch`, `key_unexpected`, `key_too_small`, `key_unsupported`,
/// `not_a_server_certificate`, `signature_weak`, `expired`, `not_yet_valid`, `lifetime_too_long`, and those of [`judge_trust`].
pub fn examine(
    chain: &[CertificateDer<'_>],
    spki_of_key: Option<[u8; 32]>,
    kind: CertificateKind,
    now: i64,
    known: Known<'_>,
) -> Result<Examined, Vec<Reason>> {
    let parsed = parse(chain).map_err(|reason| vec![reason])?;
    let leaf = &parsed[0];
    let mut reasons = Vec::new();

    let spki = sha256(leaf.public_key().raw);
    if let Some(of_key) = spki_of_key {
        compare_key(parsed.iter(), of_key, kind, &mut reasons);
    }
    let key = key_kind(leaf.public_key()).map_err(|reason| reasons.push(reason));
    let names = match kind {
        CertificateKind::Server => {
            check_server(leaf, &mut reasons);
            names(leaf).unwrap_or_else(|reason| {
                reasons.push(reason);
                Vec::new()
            })
        }
        CertificateKind::Ca => {
            check_ca(&parsed, &mut reasons);
            Vec::new()
        }
    };
    check_signatures(&parsed, kind, &mut reasons);

    // What stands so far is about the certificate itself and makes a path pointless; dates are not.
    let path_is_of_use = !reasons
        .iter()
        .any(|reason| reason.code != Code::KeyMismatch);
    let (not_before, not_after) = check_dates(leaf, now, &mut reasons);
    let self_signed = leaf.subject().as_raw() == leaf.issuer().as_raw();
    let mut path = None;
    if path_is_of_use {
        match kind {
            CertificateKind::Server => {
                // An expired leaf is one reason; it is not a second one that no path is valid now.
                let then = now.clamp(not_before, (not_after - 1).max(not_before));
                match judge_trust(chain, known, then) {
                    Ok(found) => {
                        if found.trust == Trust::Public {
                            reasons.extend(profile::lifetime(not_before, not_after));
                        }
                        path = Some((found.trust, found.chain));
                    }
                    Err(reason) => reasons.push(reason),
                }
            }
            CertificateKind::Ca => {
                let trust = if is_public_root(&chain[0]) {
                    Trust::Public
                } else if self_signed {
                    Trust::SelfSigned
                } else {
                    Trust::Private
                };
                path = Some((
                    trust,
                    chain.iter().map(|c| c.clone().into_owned()).collect(),
                ));
            }
        }
    }
    let (Ok(key), Some((trust, chain)), true) = (key, path, reasons.is_empty()) else {
        return Err(reasons);
    };
    let fingerprints: Vec<Digest> = chain.iter().map(|c| Digest(sha256(c))).collect();
    Ok(Examined {
        facts: Facts {
            fingerprint: fingerprints[0],
            chain: fingerprints,
            names,
            not_before,
            not_after,
            key,
            spki: Digest(spki),
        },
        trust,
        self_signed,
        serial: serial(leaf),
        issuer: common_name(leaf),
        chain,
    })
}

fn parse<'a>(chain: &'a [CertificateDer<'_>]) -> Result<Vec<X509Certificate<'a>>, Reason> {
    if chain.is_empty() {
        return Err(Reason::new(
            Code::NoCertificate,
            "There is no certificate.",
            CHAIN_HINT,
        ));
    }
    if chain.len() > MAX_CERTIFICATES || chain.iter().any(|c| c.len() > MAX_CERTIFICATE) {
        return Err(Reason::new(
            Code::TooLarge,
            format!(
                "A chain has at most {MAX_CERTIFICATES} certificates of {MAX_CERTIFICATE} bytes each."
            ),
            CHAIN_HINT,
        ));
    }
    chain
        .iter()
        .zip(1..)
        .map(
            |(der, number)| match x509_parser::parse_x509_certificate(der) {
                Ok((rest, parsed)) if oversized(&parsed) && rest.is_empty() => {
                    Err(too_much(number))
                }
                Ok((rest, parsed)) if rest.is_empty() && readable(&parsed) => Ok(parsed),
                _ => Err(damaged(number)),
            },
        )
        .collect()
}

/// Whether a certificate has more extensions, or a longer name or key, than any that is meant to be used. Those who build paths
/// read and compare them over and over.
pub(super) fn oversized(certificate: &X509Certificate<'_>) -> bool {
    let tbs = &certificate.tbs_certificate;
    certificate.extensions().len() > MAX_EXTENSIONS
        || [
            tbs.subject.as_raw(),
            tbs.issuer.as_raw(),
            tbs.subject_pki.raw,
        ]
        .iter()
        .any(|part| part.len() > MAX_PART)
}

/// The reason for an [`oversized`] certificate, counted from 1.
pub(super) fn too_much(number: usize) -> Reason {
    Reason::new(
        Code::TooLarge,
        format!(
            "Certificate {number} of the chain has more than {MAX_EXTENSIONS} extensions, or a name or key of more than {MAX_PART} bytes."
        ),
        "Have it issued anew in the usual form.",
    )
}

/// The reason for a certificate, counted from 1, that is none.
pub(super) fn damaged(number: usize) -> Reason {
    Reason::new(
        Code::PemMalformed,
        format!("Certificate {number} of the chain is damaged: its DER cannot be read."),
        "Pass the file as the CA sent it, or check it: openssl x509 -in chain.pem -noout -text",
    )
}

/// Whether the extensions that decide something here were understood and occur once. Others may be odd: clients pass over
/// them too.
fn readable(certificate: &X509Certificate<'_>) -> bool {
    let constraints_broken = certificate.extensions().iter().any(|extension| {
        extension.oid == OID_X509_EXT_BASIC_CONSTRAINTS
            && !matches!(
                extension.parsed_extension(),
                ParsedExtension::BasicConstraints(_)
            )
    });
    !constraints_broken
        && certificate.basic_constraints().is_ok()
        && certificate.key_usage().is_ok()
        && certificate.extended_key_usage().is_ok()
        && certificate.subject_alternative_name().is_ok()
}

/// Whether the key whose public half has the digest `of_key` is that of the first certificate.
pub(super) fn compare_key<'s, 'a: 's>(
    mut parsed: impl Iterator<Item = &'s X509Certificate<'a>>,
    of_key: [u8; 32],
    kind: CertificateKind,
    reasons: &mut Vec<Reason>,
) {
    let place = parsed.position(|certificate| sha256(certificate.public_key().raw) == of_key);
    if kind == CertificateKind::Ca {
        reasons.push(Reason::new(
            Code::KeyUnexpected,
            "A CA certificate is kept without a key.",
            "Keep the key of the CA to yourself: chancery certificate add NAME --kind ca --chain ca.pem",
        ));
    } else if place != Some(0) {
        reasons.push(match place {
            Some(place) => Reason::new(
                Code::KeyMismatch,
                format!(
                    "The private key belongs to certificate {} of the chain, not to the first.",
                    place + 1
                ),
                "Put the server certificate first and its intermediates after it.",
            ),
            None => Reason::new(
                Code::KeyMismatch,
                "The private key does not belong to the certificate: their public keys differ.",
                "Compare them: openssl x509 -in chain.pem -noout -pubkey and openssl pkey -in key.pem -pubout; pass the key that the signing request was made with.",
            ),
        });
    }
}

pub(super) fn key_kind(spki: &SubjectPublicKeyInfo<'_>) -> Result<KeyKind, Reason> {
    let unsupported = || {
        Reason::new(
            Code::KeyUnsupported,
            "The certificate's key is of a kind that is not served.",
            KEY_HINT,
        )
    };
    if spki.algorithm.algorithm.to_id_string() == ED25519 {
        return Ok(KeyKind::Ed25519);
    }
    match spki.parsed() {
        Ok(PublicKey::RSA(_)) => match rsa_bits(spki) {
            Some(bits) if bits < 2048 => Err(Reason::new(
                Code::KeyTooSmall,
                format!("The certificate's RSA key has {bits} bits, fewer than 2048."),
                KEY_HINT,
            )),
            Some(bits) if bits <= 8192 => Ok(KeyKind::Rsa(bits as u16)),
            _ => Err(unsupported()),
        },
        Ok(PublicKey::EC(_)) => {
            let curve = spki
                .algorithm
                .parameters
                .as_ref()
                .and_then(|parameters| parameters.as_oid().ok())
                .map(|oid| oid.to_id_string());
            match curve.as_deref() {
                Some(P256) => Ok(KeyKind::P256),
                Some(P384) => Ok(KeyKind::P384),
                _ => Err(unsupported()),
            }
        }
        _ => Err(unsupported()),
    }
}

pub(super) fn rsa_bits(spki: &SubjectPublicKeyInfo<'_>) -> Option<usize> {
    let Ok(PublicKey::RSA(key)) = spki.parsed() else {
        return None;
    };
    let significant = key.modulus.iter().position(|byte| *byte != 0)?;
    let modulus = &key.modulus[significant..];
    Some(modulus.len() * 8 - modulus[0].leading_zeros() as usize)
}

pub(super) fn ca_as_leaf() -> Reason {
    Reason::new(
        Code::NotAServerCertificate,
        "The first certificate is a CA certificate, which clients refuse from a server.",
        "Put the server certificate first, or keep a CA for client certificates: chancery certificate add NAME --kind ca --chain ca.pem. A self-signed one for tests: openssl req -x509 … -addext basicConstraints=critical,CA:FALSE",
    )
}

pub(super) fn check_server(leaf: &X509Certificate<'_>, reasons: &mut Vec<Reason>) {
    if leaf.is_ca() {
        reasons.push(ca_as_leaf());
    }
    if let Ok(Some(usage)) = leaf.extended_key_usage()
        && !usage.value.server_auth
    {
        reasons.push(Reason::new(
            Code::NotAServerCertificate,
            "The certificate's extended key usage does not include server authentication.",
            "Have a certificate issued for TLS servers (extended key usage serverAuth).",
        ));
    }
    if let Ok(Some(usage)) = leaf.key_usage()
        && !usage.value.digital_signature()
    {
        reasons.push(Reason::new(
            Code::NotAServerCertificate,
            "The certificate's key usage does not include digital signatures, which each handshake needs.",
            "Have a certificate issued with the key usage digitalSignature.",
        ));
    }
}

fn check_ca(parsed: &[X509Certificate<'_>], reasons: &mut Vec<Reason>) {
    for (certificate, number) in parsed.iter().zip(1..) {
        let signs =
            !matches!(certificate.key_usage(), Ok(Some(usage)) if !usage.value.key_cert_sign());
        if !certificate.is_ca() || !signs {
            reasons.push(Reason::new(
                Code::NoCertificate,
                format!("Certificate {number} of the file is not a CA certificate."),
                "Pass the CA that issues the client certificates; a server's certificate is added with its key: chancery certificate add NAME --chain chain.pem --key key.pem",
            ));
            return;
        }
    }
}

/// The DNS names that can be served: lower-case A-labels, each once, in the certificate's order. The common name does not
/// count (RFC 9525, 2), and names that are no host names, as some private CAs write them, are passed over.
fn names(leaf: &X509Certificate<'_>) -> Result<Vec<String>, Reason> {
    let extension = leaf.subject_alternative_name().ok().flatten();
    let general: &[GeneralName<'_>] = extension
        .as_ref()
        .map_or(&[], |extension| &extension.value.general_names);
    let dns = general.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(*name),
        _ => None,
    });
    let count = dns.clone().count();
    if count > MAX_NAMES {
        return Err(too_many_names(count));
    }
    let mut seen = BTreeSet::new();
    let names: Vec<String> = dns
        .filter_map(|name| Host::parse(name).ok())
        .map(|host| host.as_str().to_owned())
        .filter(|name| seen.insert(name.clone()))
        .collect();
    if names.is_empty() {
        return Err(no_names());
    }
    Ok(names)
}

pub(super) fn too_many_names(count: usize) -> Reason {
    Reason::new(
        Code::TooLarge,
        format!("The certificate has {count} DNS names, more than {MAX_NAMES}."),
        "Spread the names over several certificates.",
    )
}

pub(super) fn no_names() -> Reason {
    Reason::new(
        Code::NotAServerCertificate,
        "The certificate has no DNS name that can be served; the common name alone does not count.",
        "Have it issued with the host names as subject alternative names, for example: openssl req … -addext subjectAltName=DNS:www.example.com",
    )
}

/// Signatures and sizes of the leaf and of the CAs above it. A root's own signature protects nothing.
fn check_signatures(
    parsed: &[X509Certificate<'_>],
    kind: CertificateKind,
    reasons: &mut Vec<Reason>,
) {
    for (certificate, number) in parsed.iter().zip(1..) {
        let leaf = number == 1 && kind == CertificateKind::Server;
        let root = !leaf && certificate.subject().as_raw() == certificate.issuer().as_raw();
        if !root {
            check_signature(certificate, number, reasons);
        }
        if number > 1
            && let Some(bits) = rsa_bits(certificate.public_key()).filter(|bits| *bits < 2048)
        {
            reasons.push(Reason::new(
                Code::KeyTooSmall,
                format!("Certificate {number} of the chain has an RSA key of {bits} bits, fewer than 2048."),
                "Use a chain whose CAs have keys of at least 2048 bits.",
            ));
        }
    }
}

/// The algorithm of one signature, of the certificate at this place, counted from 1.
pub(super) fn check_signature(
    certificate: &X509Certificate<'_>,
    number: usize,
    reasons: &mut Vec<Reason>,
) {
    let algorithm = certificate.signature_algorithm.algorithm.to_id_string();
    if WEAK.contains(&algorithm.as_str()) {
        reasons.push(Reason::new(
            Code::SignatureWeak,
            format!("Certificate {number} of the chain is signed with SHA-1 or MD5, which can be forged."),
            "Have it issued anew with SHA-256 or better.",
        ));
    }
}

fn check_dates(leaf: &X509Certificate<'_>, now: i64, reasons: &mut Vec<Reason>) -> (i64, i64) {
    let not_before = leaf.validity().not_before.timestamp();
    let not_after = leaf.validity().not_after.timestamp();
    if not_after <= not_before {
        reasons.push(Reason::new(
            Code::PemMalformed,
            "The certificate ends before it begins.",
            "Have it issued anew.",
        ));
    } else if now >= not_after {
        reasons.push(Reason::new(
            Code::Expired,
            format!("The certificate expired at {}.", rfc3339(not_after)),
            "Have it renewed and add the new one: chancery certificate replace NAME --chain chain.pem --key key.pem",
        ));
    } else if now < not_before {
        reasons.push(Reason::new(
            Code::NotYetValid,
            format!("The certificate is valid from {} on.", rfc3339(not_before)),
            "Add it when its time has come, and check the clocks if it should have.",
        ));
    }
    (not_before, not_after)
}

pub(super) fn rfc3339(seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("Unix time {seconds}"))
}

fn serial(leaf: &X509Certificate<'_>) -> String {
    let raw = leaf.raw_serial();
    data_encoding::HEXLOWER.encode(&raw[..raw.len().min(64)])
}

fn common_name(leaf: &X509Certificate<'_>) -> String {
    leaf.issuer()
        .iter_common_name()
        .next()
        .and_then(|name| name.as_str().ok())
        .unwrap_or_default()
        .chars()
        .filter(|character| !character.is_control())
        .take(64)
        .collect()
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    hash
}
