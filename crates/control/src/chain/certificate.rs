//! A certificate taken apart once, with what checking its signature needs.

use std::cell::OnceCell;
use std::sync::LazyLock;

use quick_cache::sync::Cache;
use webpki::ALL_VERIFICATION_ALGS;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{NameConstraints, ParsedExtension, X509Extension};

use super::examine::sha256;

/// The tag of a SEQUENCE.
const SEQUENCE: u8 = 0x30;

/// Signatures whose check is remembered, at about a hundred bytes each.
const SIGNATURES_KNOWN: usize = 32_768;

/// A certificate and its raw parts.
pub(super) struct Certificate<'a> {
    /// The whole of it.
    pub(super) der: &'a [u8],
    /// What it says.
    pub(super) x509: X509Certificate<'a>,
    /// The content of the outer `signatureAlgorithm`.
    algorithm: &'a [u8],
    /// The content of the inner `signature`.
    inner_algorithm: &'a [u8],
    /// The content of the key's `algorithm`.
    key_algorithm: &'a [u8],
    path_length: Option<u32>,
    fingerprint: OnceCell<[u8; 32]>,
}

impl<'a> Certificate<'a> {
    /// Takes DER apart. None: it is no certificate, or something follows it.
    pub(super) fn parse(der: &'a [u8]) -> Option<Self> {
        let (rest, x509) = x509_parser::parse_x509_certificate(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let (_, whole, _) = element(der)?;
        let (_, tbs, behind) = element(whole)?;
        let (SEQUENCE, algorithm, _) = element(behind)? else {
            return None;
        };
        let (SEQUENCE, key_algorithm, _) =
            element(element(x509.tbs_certificate.subject_pki.raw)?.1)?
        else {
            return None;
        };
        // Within: [0] version (absent in version 1), serialNumber, signature.
        let (tag, _, behind) = element(tbs)?;
        let behind = if tag == 0xa0 {
            element(behind)?.2
        } else {
            behind
        };
        let (SEQUENCE, inner_algorithm, _) = element(behind)? else {
            return None;
        };
        let path_length =
            x509.extensions()
                .iter()
                .find_map(|extension| match extension.parsed_extension() {
                    ParsedExtension::BasicConstraints(constraints) => {
                        constraints.path_len_constraint
                    }
                    _ => None,
                });
        Some(Self {
            der,
            x509,
            algorithm,
            inner_algorithm,
            key_algorithm,
            path_length,
            fingerprint: OnceCell::new(),
        })
    }

    /// The subject as it is encoded. Names are compared by their bytes, as webpki does.
    pub(super) fn subject(&self) -> &[u8] {
        self.x509.tbs_certificate.subject.as_raw()
    }

    /// The issuer as it is encoded.
    pub(super) fn issuer(&self) -> &[u8] {
        self.x509.tbs_certificate.issuer.as_raw()
    }

    /// Whether subject and issuer are the same name (RFC 5280, 3.2).
    pub(super) fn self_issued(&self) -> bool {
        self.subject() == self.issuer()
    }

    /// The public key with its algorithm, as it is encoded.
    pub(super) fn spki(&self) -> &'a [u8] {
        self.x509.tbs_certificate.subject_pki.raw
    }

    /// SHA-256 of the whole.
    pub(super) fn fingerprint(&self) -> [u8; 32] {
        *self.fingerprint.get_or_init(|| sha256(self.der))
    }

    /// Whether both places that name the signature's algorithm agree (RFC 5280, 4.1.1.2).
    pub(super) fn algorithms_agree(&self) -> bool {
        self.algorithm == self.inner_algorithm
    }

    /// Whether any client of today can check its signature.
    pub(super) fn signature_can_be_checked(&self) -> bool {
        ALL_VERIFICATION_ALGS
            .iter()
            .any(|known| known.signature_alg_id().as_ref() == self.algorithm)
    }

    /// Whether the key of `issuer` made its signature. Names are not compared.
    ///
    /// An upload asks it of the same two certificates when its chain is put in order, when it is examined and when it is
    /// verified, and all uploads ask it of the same intermediates and roots. It follows from the bytes alone, so it is remembered
    /// by their hashes.
    pub(super) fn is_signed_by(&self, issuer: &Certificate<'_>) -> bool {
        static KNOWN: LazyLock<Cache<[[u8; 32]; 2], bool>> =
            LazyLock::new(|| Cache::new(SIGNATURES_KNOWN));
        let pair = [self.fingerprint(), sha256(issuer.spki())];
        if let Some(signed) = KNOWN.get(&pair) {
            return signed;
        }
        let signed = self.check_signature(issuer);
        KNOWN.insert(pair, signed);
        signed
    }

    fn check_signature(&self, issuer: &Certificate<'_>) -> bool {
        let key = &issuer.x509.tbs_certificate.subject_pki.subject_public_key;
        ALL_VERIFICATION_ALGS
            .iter()
            .filter(|known| {
                known.signature_alg_id().as_ref() == self.algorithm
                    && known.public_key_alg_id().as_ref() == issuer.key_algorithm
            })
            .any(|known| {
                known
                    .verify_signature(
                        key.data.as_ref(),
                        self.x509.tbs_certificate.as_ref(),
                        self.x509.signature_value.data.as_ref(),
                    )
                    .is_ok()
            })
    }

    /// What its extensions say, in their order.
    pub(super) fn extensions(&self) -> &[X509Extension<'a>] {
        self.x509.extensions()
    }

    /// The first extension that `pick` takes, and whether it is critical.
    pub(super) fn find<'s, T>(
        &'s self,
        pick: impl Fn(&'s ParsedExtension<'a>) -> Option<T>,
    ) -> Option<(bool, T)> {
        self.extensions()
            .iter()
            .find_map(|found| Some((found.critical, pick(found.parsed_extension())?)))
    }

    /// The name constraints (RFC 5280, 4.2.1.10).
    pub(super) fn name_constraints(&self) -> Option<&NameConstraints<'a>> {
        let (_, constraints) = self.find(|parsed| match parsed {
            ParsedExtension::NameConstraints(constraints) => Some(constraints),
            _ => None,
        })?;
        Some(constraints)
    }

    /// How many intermediates that are not self-issued may stand below it; none: as many as there are.
    pub(super) fn path_length(&self) -> Option<u32> {
        self.path_length
    }

    /// The identifier of its own key.
    pub(super) fn subject_key_id(&self) -> Option<&'a [u8]> {
        self.find(|parsed| match parsed {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
            _ => None,
        })
        .map(|(_, id)| id)
    }

    /// The identifier of its issuer's key.
    pub(super) fn authority_key_id(&self) -> Option<&'a [u8]> {
        self.find(|parsed| match parsed {
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                id.key_identifier.as_ref().map(|id| id.0)
            }
            _ => None,
        })
        .map(|(_, id)| id)
    }

    /// The subject for people: its attributes, at most 200 characters, none of which can drive a terminal.
    pub(super) fn shown_subject(&self) -> String {
        shown(&self.x509.subject().to_string())
    }

    /// The issuer, likewise.
    pub(super) fn shown_issuer(&self) -> String {
        shown(&self.x509.issuer().to_string())
    }
}

fn shown(name: &str) -> String {
    name.chars()
        .filter(|character| !character.is_control())
        .take(200)
        .collect()
}

/// The first DER element: its tag, its content and what follows. Tags above 30 and lengths above 4 bytes do not occur where
/// this is used.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            let length = digits
                .iter()
                .fold(0, |length, digit| length << 8 | usize::from(*digit));
            (length, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rcgen::{CertificateParams, Issuer, KeyPair};

    use super::*;

    /// What was found of one pair must never answer for another one, however alike they are.
    #[test]
    fn a_remembered_signature_speaks_for_these_two_certificates_only() {
        let names = || CertificateParams::new(["ca.example.com".to_owned()]).unwrap();
        let [right, wrong, own] = std::array::from_fn(|_| KeyPair::generate().unwrap());
        let (ca, other) = (
            names().self_signed(&right).unwrap(),
            names().self_signed(&wrong).unwrap(),
        );
        let leaf = names()
            .signed_by(&own, &Issuer::new(names(), right))
            .unwrap();
        let mut changed = leaf.der().to_vec();
        *changed.last_mut().unwrap() ^= 1;
        let [ca, other, leaf, changed] = [ca.der(), other.der(), leaf.der(), &changed[..]]
            .map(|der| Certificate::parse(der).unwrap());
        for _ in 0..3 {
            assert!(leaf.is_signed_by(&ca));
            assert!(!leaf.is_signed_by(&other));
            assert!(!changed.is_signed_by(&ca));
            assert!(!ca.is_signed_by(&leaf));
        }
    }
}
