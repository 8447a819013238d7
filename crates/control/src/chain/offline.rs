//! The verdict of `chancery verify`: whether clients that trust certain roots will take a chain from a server.
//!
//! It is that of [`examine`](super::examine) and [`judge_trust`](super::judge_trust) and stricter in this: a path must lead
//! to a given root, which is itself judged, every certificate on the path is held to the profile of RFC 5280
//! ([`super::profile`]), and names are compared when there are any to compare with. It is more lenient in two things that
//! only matter to who serves: a certificate for addresses alone passes, and so does the very last second of its validity.

use std::collections::HashSet;
use std::net::IpAddr;
use std::str::FromStr;

use keyring::der;
use lifecycle::event::{CertificateKind, Trust};
use lifecycle::names::{Digest, Host};
use lifecycle::rejection::{Code, Reason};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Serialize;
use webpki::EndEntityCert;
use x509_parser::extensions::{GeneralName, ParsedExtension};

use super::certificate::Certificate;
use super::constraints::is_dns;
use super::examine::{self, rfc3339, sha256};
use super::path::{Node, Outcome, Path, Search};
use super::profile::{self, Role};
use super::repair::{self, Repair};
use super::trust::is_public_root;
use super::{CHAIN_HINT, MAX_CERTIFICATE, MAX_INPUT, MAX_NAMES, pem};

#[cfg(test)]
mod tests;

/// The most certificates of a chain with its help.
pub const MAX_HELP: usize = 256;
/// The most roots.
pub const MAX_ROOTS: usize = 1024;
/// The longest file of certificates, in bytes.
pub const MAX_FILE: usize = 4 * MAX_INPUT;

/// What a client would call the server: a DNS name or an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Domain {
    /// A DNS name in lower case, without a final dot.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

/// Why a text is no [`Domain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// A wildcard: clients ask for names, and only certificates have wildcards.
    #[error(
        "a wildcard is no name that a client asks for; pass one that it covers, as in www.example.com"
    )]
    Wildcard,
    /// Neither a DNS name nor an address.
    #[error("this is neither a DNS name nor an IP address")]
    Malformed,
}

impl FromStr for Domain {
    type Err = DomainError;

    /// Reads a name as people write it: upper case, a final dot and Unicode labels are brought to the one form. A name of one
    /// label, and underscores, are taken, since a client may ask for them.
    fn from_str(text: &str) -> Result<Self, DomainError> {
        let address = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'));
        if let Ok(address) = address.unwrap_or(text).parse() {
            return Ok(Self::Ip(address));
        }
        if text.contains('*') {
            return Err(DomainError::Wildcard);
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        let name = if name.is_ascii() {
            name.to_ascii_lowercase()
        } else {
            Host::parse(name)
                .map_err(|_| DomainError::Malformed)?
                .as_str()
                .to_owned()
        };
        let last = name.rsplit('.').next().unwrap_or_default();
        if !is_dns(&name.replace('_', "x")) || last.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(DomainError::Malformed);
        }
        Ok(Self::Dns(name))
    }
}

/// What is to be judged.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The leaf, then help in any order.
    pub chain: &'a [CertificateDer<'a>],
    /// The anchors; none: the public roots.
    pub roots: Option<&'a [CertificateDer<'a>]>,
    /// The names that the certificate must be good for; none: names are not looked at.
    pub domains: &'a [Domain],
    /// The SHA-256 of the public half of the key that came along.
    pub spki_of_key: Option<[u8; 32]>,
    /// The time, Unix seconds.
    pub at: i64,
}

/// Accepted or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// Clients that trust these roots will take it.
    Accept,
    /// They will not, or not all of them.
    Reject,
}

/// A certificate of the path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Its subject.
    pub subject: String,
    /// SHA-256 of its DER, hex.
    pub fingerprint: String,
    /// When it ends, RFC 3339.
    pub not_after: String,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Yes or no.
    pub verdict: Decision,
    /// Whom it is trusted by; none when nothing is known.
    pub trust: Option<Trust>,
    /// DNS names and addresses of the leaf.
    pub names: Vec<String>,
    /// The first second of the leaf's validity, RFC 3339; none when there is no leaf to read.
    pub not_before: Option<String>,
    /// The last second of the leaf's validity, RFC 3339; none when there is no leaf to read.
    pub not_after: Option<String>,
    /// SHA-256 of the leaf's DER, hex; none when there is no leaf.
    pub fingerprint: Option<String>,
    /// The path, leaf first, anchor last; when there is none, the one that comes nearest.
    pub chain: Vec<Step>,
    /// What `certificate add` would change about the chain before it serves it.
    pub repairs: Vec<Repair>,
    /// Why not: all that was found; empty when accepted.
    pub reasons: Vec<Reason>,
    /// What is odd but decides nothing.
    pub warnings: Vec<String>,
}

impl Verdict {
    /// The verdict on what could not even be read.
    pub fn unreadable(reasons: Vec<Reason>) -> Self {
        Self {
            verdict: Decision::Reject,
            trust: None,
            names: Vec::new(),
            not_before: None,
            not_after: None,
            fingerprint: None,
            chain: Vec::new(),
            repairs: Vec::new(),
            reasons,
            warnings: Vec::new(),
        }
    }
}

/// Judges a chain.
#[must_use]
pub fn verify(question: Question<'_>) -> Verdict {
    let chain = match parse_chain(question.chain) {
        Ok(chain) => chain,
        Err(reason) => return Verdict::unreadable(vec![reason]),
    };
    let mut chain = chain.into_iter();
    let Some(leaf) = chain.next() else {
        return Verdict::unreadable(vec![nothing()]);
    };
    let (mut reasons, mut warnings) = judge_leaf(&leaf, question, chain.as_slice());

    let help = nodes_of_help(chain, question.at);
    let (anchors, mut odd) = anchors(question.roots, question.at);
    warnings.append(&mut odd);

    let outcome = Search::new(&leaf, &help, &anchors).run(question.at, reasons.is_empty());
    let path = match outcome {
        Outcome::Found(path) => path,
        Outcome::Refused(because, path) => {
            for reason in because {
                if !reasons.contains(&reason) {
                    reasons.push(reason);
                }
            }
            path
        }
    };
    let trust = trust_of(&leaf, &path, &anchors, question);
    if trust == Some(Trust::Public) && path.anchor.is_some() {
        reasons.extend(profile::lifetime(begins(&leaf.x509), ends(&leaf.x509)));
    }
    warnings.extend(warnings_of(&path, &help, &anchors));
    reasons.extend(mismatches(&leaf, question.domains));

    Verdict {
        verdict: if reasons.is_empty() {
            Decision::Accept
        } else {
            Decision::Reject
        },
        trust,
        names: names(&leaf),
        not_before: Some(rfc3339(begins(&leaf.x509))),
        not_after: Some(rfc3339(ends(&leaf.x509))),
        fingerprint: Some(Digest(leaf.fingerprint()).to_string()),
        chain: steps(&leaf, &path, &help, &anchors),
        repairs: repairs(question, &mut warnings),
        reasons,
        warnings,
    }
}

fn nothing() -> Reason {
    Reason::new(Code::NoCertificate, "There is no certificate.", CHAIN_HINT)
}

fn parse_chain<'a>(chain: &'a [CertificateDer<'a>]) -> Result<Vec<Certificate<'a>>, Reason> {
    if chain.is_empty() {
        return Err(nothing());
    }
    if chain.len() > MAX_HELP || chain.iter().any(|der| der.len() > MAX_CERTIFICATE) {
        return Err(Reason::new(
            Code::TooLarge,
            format!(
                "More than {MAX_HELP} certificates, or one of more than {MAX_CERTIFICATE} bytes, are not judged."
            ),
            CHAIN_HINT,
        ));
    }
    chain
        .iter()
        .zip(1..)
        .map(|(der, number)| {
            let parsed = Certificate::parse(der).ok_or_else(|| examine::damaged(number))?;
            if examine::oversized(&parsed.x509) {
                return Err(examine::too_much(number));
            }
            Ok(parsed)
        })
        .collect()
}

/// What is to be said of the leaf without a path.
fn judge_leaf(
    leaf: &Certificate<'_>,
    question: Question<'_>,
    help: &[Certificate<'_>],
) -> (Vec<Reason>, Vec<String>) {
    let mut reasons = Vec::new();
    if let Some(of_key) = question.spki_of_key {
        let parsed = std::iter::once(leaf).chain(help).map(|c| &c.x509);
        examine::compare_key(parsed, of_key, CertificateKind::Server, &mut reasons);
    }
    if let Err(reason) = examine::key_kind(leaf.x509.public_key()) {
        reasons.push(reason);
    }
    examine::check_server(&leaf.x509, &mut reasons);
    examine::check_signature(&leaf.x509, 1, &mut reasons);
    let (of_form, mut warnings) = profile::judge(leaf, Role::Leaf, "The certificate");
    reasons.extend(of_form);

    let alternative = leaf.find(|parsed| match parsed {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    let count = |pick: fn(&GeneralName<'_>) -> bool| {
        alternative.map_or(0, |(_, names)| {
            names.iter().filter(|name| pick(name)).count()
        })
    };
    let dns = count(|name| matches!(name, GeneralName::DNSName(_)));
    if alternative.is_none_or(|(_, names)| names.is_empty()) {
        reasons.push(examine::no_names());
    } else if dns > MAX_NAMES {
        reasons.push(examine::too_many_names(dns));
    } else if dns == 0 {
        warnings.push(
            "The certificate has no DNS name: Chancery serves hosts, so `certificate add` refuses it."
                .to_owned(),
        );
    }

    let (not_before, not_after) = (begins(&leaf.x509), ends(&leaf.x509));
    if question.at > not_after {
        reasons.push(Reason::new(
            Code::Expired,
            format!("The certificate expired at {}.", rfc3339(not_after)),
            "Have it renewed and add the new one: chancery certificate replace NAME --chain chain.pem --key key.pem",
        ));
    } else if question.at < not_before {
        reasons.push(Reason::new(
            Code::NotYetValid,
            format!("The certificate is valid from {} on.", rfc3339(not_before)),
            "Use it when its time has come, and check the clocks if it should have.",
        ));
    }
    (reasons, warnings)
}

fn begins(certificate: &x509_parser::certificate::X509Certificate<'_>) -> i64 {
    certificate.validity().not_before.timestamp()
}

fn ends(certificate: &x509_parser::certificate::X509Certificate<'_>) -> i64 {
    certificate.validity().not_after.timestamp()
}

/// The dates of a CA on the path. Both ends of a validity count (RFC 5280, 4.1.2.5).
fn dates(certificate: &Certificate<'_>, at: i64, name: &str) -> Option<Reason> {
    if at > ends(&certificate.x509) {
        Some(Reason::new(
            Code::Expired,
            format!(
                "{name} has expired, at {}.",
                rfc3339(ends(&certificate.x509))
            ),
            "Fetch the current certificate of this CA and build the chain again.",
        ))
    } else if at < begins(&certificate.x509) {
        Some(Reason::new(
            Code::NotYetValid,
            format!(
                "{name} is not valid before {}.",
                rfc3339(begins(&certificate.x509))
            ),
            "Use the certificate of this CA that is valid now, and check the clocks.",
        ))
    } else {
        None
    }
}

fn nodes_of_help<'a>(help: impl Iterator<Item = Certificate<'a>>, at: i64) -> Vec<Node<'a>> {
    let mut seen = HashSet::new();
    help.zip(2..)
        .filter(|(certificate, _)| seen.insert(certificate.der))
        .map(|(certificate, number)| {
            let name = format!("Certificate {number} of the chain");
            let (mut flaws, _) = profile::judge(&certificate, Role::Issuer, &name);
            flaws.extend(dates(&certificate, at, &name));
            Node {
                certificate,
                flaws,
                name,
            }
        })
        .collect()
}

/// The anchors, and what is odd about those that are none.
fn anchors<'a>(roots: Option<&'a [CertificateDer<'a>]>, at: i64) -> (Vec<Node<'a>>, Vec<String>) {
    let public = roots.is_none();
    let roots = roots.unwrap_or(webpki_root_certs::TLS_SERVER_ROOT_CERTS);
    let mut warnings = Vec::new();
    if roots.len() > MAX_ROOTS {
        warnings.push(format!(
            "Only the first {MAX_ROOTS} of {} roots were used.",
            roots.len()
        ));
    }
    let mut nodes = Vec::new();
    for (der, number) in roots.iter().take(MAX_ROOTS).zip(1..) {
        let name = if public {
            "The public root".to_owned()
        } else {
            format!("Root {number}")
        };
        let Some(certificate) = Some(der)
            .filter(|der| der.len() <= MAX_CERTIFICATE)
            .and_then(|der| Certificate::parse(der))
            .filter(|certificate| !examine::oversized(&certificate.x509))
        else {
            warnings.push(format!("{name} cannot be read and was left out."));
            continue;
        };
        let role = if public || is_public_root(der) {
            Role::PublicAnchor
        } else {
            Role::Anchor
        };
        let (mut flaws, _) = profile::judge(&certificate, role, &name);
        flaws.extend(dates(&certificate, at, &name));
        nodes.push(Node {
            certificate,
            flaws,
            name,
        });
    }
    (nodes, warnings)
}

/// What an upload of this chain would undergo.
fn repairs(question: Question<'_>, warnings: &mut Vec<String>) -> Vec<Repair> {
    if question.chain.len() > super::MAX_CERTIFICATES {
        warnings.push(format!(
            "`certificate add` takes at most {} certificates in one file.",
            super::MAX_CERTIFICATES
        ));
        return Vec::new();
    }
    match repair::repair(question.chain, question.spki_of_key, &[], question.at) {
        Ok(repaired) if repaired.chain.first() == question.chain.first() => repaired.repairs,
        Ok(_) => {
            warnings.push(
                "`certificate add` would take another certificate of the file for the server's; here the first one is judged."
                    .to_owned(),
            );
            Vec::new()
        }
        Err(reason) => {
            warnings.push(format!(
                "`certificate add` would ask back: {}",
                reason.message
            ));
            Vec::new()
        }
    }
}

fn trust_of(
    leaf: &Certificate<'_>,
    path: &Path,
    anchors: &[Node<'_>],
    question: Question<'_>,
) -> Option<Trust> {
    if leaf.self_issued() && leaf.is_signed_by(leaf) {
        return Some(Trust::SelfSigned);
    }
    match path.anchor {
        Some(anchor) => {
            let der = CertificateDer::from(anchors[anchor].certificate.der);
            Some(if is_public_root(&der) {
                Trust::Public
            } else {
                Trust::Private
            })
        }
        // No public root, but a CA: an upload would be shown as private.
        None => (question.roots.is_none() && !path.help.is_empty()).then_some(Trust::Private),
    }
}

fn steps(
    leaf: &Certificate<'_>,
    path: &Path,
    help: &[Node<'_>],
    anchors: &[Node<'_>],
) -> Vec<Step> {
    let anchor = path
        .anchor
        .map(|anchor| &anchors[anchor].certificate)
        .filter(|anchor| anchor.der != leaf.der);
    std::iter::once(leaf)
        .chain(path.help.iter().map(|place| &help[*place].certificate))
        .chain(anchor)
        .map(|certificate| Step {
            subject: certificate.shown_subject(),
            fingerprint: Digest(certificate.fingerprint()).to_string(),
            not_after: rfc3339(ends(&certificate.x509)),
        })
        .collect()
}

/// What is odd about the CAs of the path; of others it does not matter.
fn warnings_of(path: &Path, help: &[Node<'_>], anchors: &[Node<'_>]) -> Vec<String> {
    let mut warnings = Vec::new();
    for place in &path.help {
        let node = &help[*place];
        warnings.extend(profile::judge(&node.certificate, Role::Issuer, &node.name).1);
    }
    if let Some(anchor) = path.anchor {
        let node = &anchors[anchor];
        let der = CertificateDer::from(node.certificate.der);
        if !is_public_root(&der) {
            warnings.extend(profile::judge(&node.certificate, Role::Anchor, &node.name).1);
        }
    }
    warnings
}

/// The DNS names and addresses of the leaf, at most [`MAX_NAMES`], in its order.
fn names(leaf: &Certificate<'_>) -> Vec<String> {
    let alternative = leaf.find(|parsed| match parsed {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    alternative
        .map_or(&[][..], |(_, names)| names)
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(
                name.chars()
                    .filter(|character| !character.is_control())
                    .take(255)
                    .collect(),
            ),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        })
        .take(MAX_NAMES)
        .collect()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(four));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// A reason for each domain that the leaf is not good for.
fn mismatches(leaf: &Certificate<'_>, domains: &[Domain]) -> Vec<Reason> {
    let alternative = leaf.find(|parsed| match parsed {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    let names: &[GeneralName<'_>] = alternative.map_or(&[], |(_, names)| names);
    let der = CertificateDer::from(leaf.der);
    // Who cannot be read by webpki has been refused already; its word is a second one.
    let second = EndEntityCert::try_from(&der).ok();
    domains
        .iter()
        .filter(|domain| {
            !names.iter().any(|name| covers(name, domain))
                || second.as_ref().is_some_and(|leaf| !agrees(leaf, domain))
        })
        .map(|domain| {
            let shown = match domain {
                Domain::Dns(name) => name.clone(),
                Domain::Ip(address) => address.to_string(),
            };
            Reason::new(
                Code::NameMismatch,
                format!("The certificate does not name {shown}."),
                "Have one issued with this name among its subject alternative names, or check which names it has: openssl x509 -in chain.pem -noout -ext subjectAltName",
            )
        })
        .collect()
}

fn agrees(leaf: &EndEntityCert<'_>, domain: &Domain) -> bool {
    let name = match domain {
        Domain::Dns(name) => match ServerName::try_from(name.as_str()) {
            Ok(name) => name,
            Err(_) => return false,
        },
        Domain::Ip(address) => ServerName::from(*address),
    };
    leaf.verify_is_valid_for_subject_name(&name).is_ok()
}

/// Whether a name of a certificate stands for a domain (RFC 9525, 6.3). The common name never does.
fn covers(name: &GeneralName<'_>, domain: &Domain) -> bool {
    match (name, domain) {
        (GeneralName::IPAddress(bytes), Domain::Ip(wanted)) => address(bytes) == Some(*wanted),
        (GeneralName::DNSName(name), Domain::Dns(wanted)) => match name.strip_prefix("*.") {
            Some(parent) => {
                is_dns(parent)
                    && !is_registry(parent)
                    && wanted
                        .split_once('.')
                        .is_some_and(|(_, above)| above.eq_ignore_ascii_case(parent))
            }
            None => is_dns(name) && name.eq_ignore_ascii_case(wanted),
        },
        _ => false,
    }
}

/// Whether a name is one below which a registry sells names to anybody, as `com` and `co.uk`. A wildcard below it belongs to
/// nobody. Suffixes that companies list for their own customers are theirs, and certificates for all of them exist.
fn is_registry(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    psl::suffix(name.as_bytes()).is_some_and(|suffix| {
        suffix.as_bytes() == name.as_bytes() && suffix.typ() == Some(psl::Type::Icann)
    })
}

/// The SHA-256 of a public key with its algorithm, as [`Question::spki_of_key`] takes it.
#[must_use]
pub fn spki_digest(spki: &[u8]) -> [u8; 32] {
    sha256(spki)
}

/// Reads the certificates of PEM, of a chain or of roots. Keys and other blocks beside them are passed over, and there may be
/// more than an upload may bring: as many as [`MAX_ROOTS`], and one.
///
/// # Errors
/// `too_large`, `not_pem`, `pem_malformed`, `no_certificate`.
pub fn read_certificates(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, Reason> {
    if bytes.len() > MAX_FILE {
        return Err(Reason::new(
            Code::TooLarge,
            format!("The file is longer than {MAX_FILE} bytes."),
            CHAIN_HINT,
        ));
    }
    let found = if bytes.len() <= MAX_INPUT && count(bytes, b"-----BEGIN ") <= pem::MAX_BLOCKS {
        read_blocks(bytes)?
    } else {
        // Bundles of hundreds, as systems keep their roots, are clean; a stricter reader without a limit takes them.
        CertificateDer::pem_slice_iter(bytes)
            .take(MAX_ROOTS + 1)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| {
                Reason::new(
                    Code::PemMalformed,
                    "A block of the file is not the PEM of a certificate.",
                    "Pass the file as it was sent, or check it: openssl crl2pkcs7 -nocrl -certfile FILE | openssl pkcs7 -print_certs -noout",
                )
            })?
    };
    if found.is_empty() {
        return Err(Reason::new(
            Code::NoCertificate,
            "The file holds no certificate.",
            CHAIN_HINT,
        ));
    }
    Ok(found)
}

fn read_blocks(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, Reason> {
    let mut found = Vec::new();
    for block in pem::blocks(bytes)? {
        let block = block?;
        match block.label {
            "CERTIFICATE" | "X509 CERTIFICATE" => {
                found.push(CertificateDer::from(block.decode()?.to_vec()));
            }
            "TRUSTED CERTIFICATE" => {
                let body = block.decode()?;
                let whole = der::Reader::new(&body).whole().unwrap_or_default();
                found.push(CertificateDer::from(whole.to_vec()));
            }
            _ => {}
        }
    }
    Ok(found)
}

fn count(text: &[u8], wanted: &[u8]) -> usize {
    text.windows(wanted.len())
        .filter(|window| *window == wanted)
        .count()
}
