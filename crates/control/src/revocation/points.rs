//! Where a certificate points to for its revocation, and who may answer.

use rustls_pki_types::{AlgorithmIdentifier, CertificateDer};
use url::Url;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{DistributionPointName, GeneralName, ParsedExtension};

use super::der::{Element, Reader, SEQUENCE};

/// Addresses of OCSP responders that are asked at most.
const OCSP_MAX: usize = 2;
/// Distribution points that are asked at most, and addresses of each.
const CRL_MAX: (usize, usize) = (4, 2);
/// Bytes of an address at most.
const URL_MAX: usize = 1_024;

const ID_AD_OCSP: &str = "1.3.6.1.5.5.7.48.1";

/// The addresses that a certificate names (RFC 5280, 4.2.1.13 and 4.2.2.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Points {
    /// OCSP responders over HTTP.
    pub(super) ocsp: Vec<Url>,
    /// CRLs over HTTP.
    pub(super) crl: Vec<Point>,
    /// Whether it names addresses that are never asked: LDAP, HTTPS (whose own certificate would have to be looked at first;
    /// RFC 5280, 8, advises CAs against it), or what cannot be read.
    pub(super) others: bool,
}

/// A distribution point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Point {
    /// Where the CRL is; any of them.
    pub(super) urls: Vec<Url>,
    /// All its names as they stand in the certificate, which the CRL may have to repeat.
    pub(super) names: Vec<String>,
    /// Whether its CRL speaks of all reasons of revocation.
    pub(super) complete: bool,
}

/// Whether a certificate may name an address at all: it holds the OID of OCSP or of CRL distribution points. Most private
/// ones do not, and need not be parsed to know that.
pub(super) fn may_point(der: &[u8]) -> bool {
    const OCSP: &[u8] = &[0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01];
    const CRL: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x1f];
    let holds = |oid: &[u8]| der.windows(oid.len()).any(|bytes| bytes == oid);
    holds(CRL) || holds(OCSP)
}

impl Points {
    /// Whether there is nothing at all.
    pub(super) fn is_empty(&self) -> bool {
        self.ocsp.is_empty() && self.crl.is_empty() && !self.others
    }

    /// Reads them.
    pub(super) fn of(certificate: &X509Certificate<'_>) -> Self {
        let mut points = Self::default();
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::AuthorityInfoAccess(access) => {
                    for description in &access.accessdescs {
                        if description.access_method.to_id_string() != ID_AD_OCSP {
                            continue;
                        }
                        match http(&description.access_location) {
                            Some(url) if points.ocsp.len() < OCSP_MAX => points.ocsp.push(url),
                            _ => points.others = true,
                        }
                    }
                }
                ParsedExtension::CRLDistributionPoints(list) => {
                    for point in &list.points {
                        // A CRL of somebody else, or one that is named relative to its issuer, is not looked for.
                        let Some(DistributionPointName::FullName(names)) = point
                            .distribution_point
                            .as_ref()
                            .filter(|_| point.crl_issuer.is_none())
                        else {
                            points.others = true;
                            continue;
                        };
                        let urls: Vec<Url> =
                            names.iter().filter_map(http).take(CRL_MAX.1).collect();
                        if urls.is_empty() || points.crl.len() >= CRL_MAX.0 {
                            points.others = true;
                            continue;
                        }
                        let names = names
                            .iter()
                            .filter_map(|name| match name {
                                GeneralName::URI(uri) => Some((*uri).to_owned()),
                                _ => None,
                            })
                            .collect();
                        points.crl.push(Point {
                            urls,
                            names,
                            complete: point.reasons.is_none(),
                        });
                    }
                }
                _ => {}
            }
        }
        points
    }
}

fn http(name: &GeneralName<'_>) -> Option<Url> {
    let GeneralName::URI(uri) = name else {
        return None;
    };
    if uri.len() > URL_MAX {
        return None;
    }
    let mut url = Url::parse(uri).ok()?;
    url.set_fragment(None);
    let plain = url.scheme() == "http" && url.username().is_empty() && url.password().is_none();
    (plain && url.host().is_some()).then_some(url)
}

/// Something signed: a certificate, a CRL or an OCSP response (RFC 5280, 4.1.1; RFC 6960, 4.2.1).
pub(super) struct Signed<'a> {
    /// What was signed, with its header.
    pub(super) message: Element<'a>,
    /// The content of the AlgorithmIdentifier.
    pub(super) algorithm: &'a [u8],
    signature: &'a [u8],
    /// What follows.
    pub(super) rest: Reader<'a>,
}

impl<'a> Signed<'a> {
    /// Takes it apart.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut outer = Reader::new(bytes);
        let mut fields = outer.take(SEQUENCE)?.inside();
        if !outer.is_empty() {
            return None;
        }
        Some(Self {
            message: fields.take(SEQUENCE)?,
            algorithm: fields.take(SEQUENCE)?.content,
            signature: fields.bits()?,
            rest: fields,
        })
    }

    /// Whether the holder of this key signed it, by an algorithm that counts: SHA-256 or better.
    pub(super) fn is_signed_by(&self, spki: &[u8]) -> bool {
        let Some((of_key, key)) = Reader::new(spki).take(SEQUENCE).and_then(|spki| {
            let mut fields = spki.inside();
            Some((fields.take(SEQUENCE)?.content, fields.bits()?))
        }) else {
            return false;
        };
        let is = |id: AlgorithmIdentifier, content: &[u8]| id.as_ref() == content;
        webpki::ALL_VERIFICATION_ALGS
            .iter()
            .filter(|algorithm| {
                is(algorithm.signature_alg_id(), self.algorithm)
                    && is(algorithm.public_key_alg_id(), of_key)
            })
            .any(|algorithm| {
                algorithm
                    .verify_signature(key, self.message.whole, self.signature)
                    .is_ok()
            })
    }
}

/// Whether one certificate was issued by another: names and signature, nothing else.
pub(super) fn issued(
    certificate: &CertificateDer<'_>,
    parsed: &X509Certificate<'_>,
    issuer: &X509Certificate<'_>,
) -> bool {
    parsed.issuer().as_raw() == issuer.subject().as_raw()
        && Signed::read(certificate)
            .is_some_and(|signed| signed.is_signed_by(issuer.public_key().raw))
}

/// SHA-1, as the names of certificates in OCSP are made (RFC 5019, 2.1.1). Nothing rests on its strength: what it names was
/// signed by other means, and an answer must name the serial too.
pub(super) fn sha1(bytes: &[u8]) -> [u8; 20] {
    let mut hash = [0; 20];
    hash.copy_from_slice(
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref(),
    );
    hash
}
