//! Whom a chain leads to, by path building (RFC 5280, 6) with webpki.

use std::sync::OnceLock;
use std::time::Duration;

use lifecycle::event::Trust;
use lifecycle::rejection::{Code, Reason};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, Error, KeyUsage, anchor_from_trusted_cert};

use super::CHAIN_HINT;
use super::certificate::Certificate;
use super::path::{Node, Outcome, Search};

/// Certificates that are known from elsewhere than the upload.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known<'a> {
    /// Roots that the operator configured and the `ca` certificates of the project. A path to one of them is private.
    pub roots: &'a [CertificateDer<'a>],
    /// Intermediates that this project has shown before; they complete a chain that lacks them.
    pub issuers: &'a [CertificateDer<'a>],
}

/// Where a chain leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// Whom it is trusted by.
    pub trust: Trust,
    /// What to serve: the chain as it was given or, where intermediates were missing, completed with known ones.
    pub chain: Vec<CertificateDer<'static>>,
}

/// The public roots (Mozilla's), parsed once.
fn public_roots() -> &'static [TrustAnchor<'static>] {
    static ROOTS: OnceLock<Vec<TrustAnchor<'static>>> = OnceLock::new();
    ROOTS.get_or_init(|| anchors(webpki_root_certs::TLS_SERVER_ROOT_CERTS))
}

/// Whether this very certificate is a public root.
pub(super) fn is_public_root(certificate: &CertificateDer<'_>) -> bool {
    webpki_root_certs::TLS_SERVER_ROOT_CERTS.contains(certificate)
}

fn anchors<'a>(certificates: &'a [CertificateDer<'a>]) -> Vec<TrustAnchor<'a>> {
    certificates
        .iter()
        .filter_map(|certificate| anchor_from_trusted_cert(certificate).ok())
        .collect()
}

/// Judges a server's chain, leaf first, at the time `now` in Unix seconds.
///
/// A path to a public root makes it `public`; else one to a known root, or to any CA within the chain, `private`; else a leaf
/// that signed itself `self-signed`. Revocation is not looked at, and neither are names.
///
/// # Errors
/// `chain_incomplete` when no path can be built; `expired`, `not_yet_valid`, `chain_untrusted`, `signature_weak`,
/// `not_a_server_certificate` or `pem_malformed` when there is one that must not be used for that reason.
pub fn judge_trust(
    chain: &[CertificateDer<'_>],
    known: Known<'_>,
    now: i64,
) -> Result<Path, Reason> {
    let Some((leaf, given)) = chain.split_first() else {
        return Err(Reason::new(
            Code::NoCertificate,
            "There is no certificate.",
            CHAIN_HINT,
        ));
    };
    let end_entity = EndEntityCert::try_from(leaf).map_err(|error| reason(&error))?;
    let all: Vec<CertificateDer<'_>> = given.iter().chain(known.issuers).cloned().collect();
    let as_given = |trust| Path {
        trust,
        chain: chain.iter().map(|c| c.clone().into_owned()).collect(),
    };
    let completed = |trust, path: Vec<CertificateDer<'static>>| Path {
        trust,
        chain: std::iter::once(leaf.clone().into_owned())
            .chain(path)
            .collect(),
    };

    let roots = anchors(known.roots);
    let mut first_error = None;
    for (trust, anchors) in [
        (
            Trust::Public,
            Anchors {
                anchors: public_roots(),
                certificates: webpki_root_certs::TLS_SERVER_ROOT_CERTS,
            },
        ),
        (
            Trust::Private,
            Anchors {
                anchors: &roots,
                certificates: known.roots,
            },
        ),
    ] {
        match build(leaf, &end_entity, anchors, given, now) {
            Ok(_) => return Ok(as_given(trust)),
            Err(error) => first_error = worse(first_error, error),
        }
        if known.issuers.is_empty() {
            continue;
        }
        match build(leaf, &end_entity, anchors, &all, now) {
            Ok(path) => return Ok(completed(trust, path.0)),
            Err(error) => first_error = worse(first_error, error),
        }
    }

    // A leaf that signed itself is its own root; it must not be taken for a CA, so it is asked before the given ones are.
    if let Ok(anchor) = anchor_from_trusted_cert(leaf) {
        let own = Anchors {
            anchors: &[anchor],
            certificates: std::slice::from_ref(leaf),
        };
        match build(leaf, &end_entity, own, &[], now) {
            Ok(_) => return Ok(as_given(Trust::SelfSigned)),
            Err(error) => first_error = worse(first_error, error),
        }
    }

    // The unknown CA that the chain ends at: whatever CA it shows. A path that needs one that is out of date is none.
    for (candidates, complete) in [(given, false), (&all[..], true)] {
        let (current, dated): (Vec<_>, Vec<_>) = candidates
            .iter()
            .cloned()
            .partition(|certificate| outdated(certificate, now).is_none());
        let unknown = Anchors {
            anchors: &anchors(&current),
            certificates: &current,
        };
        match build(leaf, &end_entity, unknown, candidates, now) {
            Ok(_) if !complete => return Ok(as_given(Trust::Private)),
            Ok((mut path, anchor)) => {
                // The anchor itself was not in anybody's trust store, so it is served too, unless it is a root.
                path.extend(
                    current
                        .into_iter()
                        .find(|c| anchor_from_trusted_cert(c).is_ok_and(|a| a == anchor))
                        .filter(|c| !self_issued(c))
                        .map(CertificateDer::into_owned),
                );
                return Ok(completed(Trust::Private, path));
            }
            Err(error) => first_error = worse(first_error, error),
        }
        let outdated_ones = Anchors {
            anchors: &anchors(&dated),
            certificates: &dated,
        };
        if build(leaf, &end_entity, outdated_ones, candidates, now).is_ok() {
            let code = dated
                .iter()
                .find_map(|certificate| outdated(certificate, now))
                .unwrap_or(Code::Expired);
            return Err(outdated_issuer(code));
        }
    }
    Err(reason(&first_error.unwrap_or(Error::UnknownIssuer)))
}

/// Of two errors the one that tells more.
fn worse(first: Option<Error>, second: Error) -> Option<Error> {
    match first {
        None | Some(Error::UnknownIssuer) => Some(second),
        first => first,
    }
}

type Built = (Vec<CertificateDer<'static>>, TrustAnchor<'static>);

/// Anchors for webpki, and the certificates that they were made of.
#[derive(Clone, Copy)]
struct Anchors<'a> {
    anchors: &'a [TrustAnchor<'a>],
    certificates: &'a [CertificateDer<'a>],
}

/// The intermediates of a path from the leaf to one of the anchors, and that anchor.
fn build(
    leaf: &CertificateDer<'_>,
    end_entity: &EndEntityCert<'_>,
    anchors: Anchors<'_>,
    intermediates: &[CertificateDer<'_>],
    now: i64,
) -> Result<Built, Error> {
    let at = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap_or(0)));
    match end_entity.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        anchors.anchors,
        intermediates,
        at,
        KeyUsage::server_auth(),
        None,
        None,
    ) {
        Ok(path) => Ok((
            path.intermediate_certificates()
                .map(|certificate| certificate.der().into_owned())
                .collect(),
            path.anchor().to_owned(),
        )),
        // Where webpki is narrower than RFC 5280, the search that judges each path alone has the last word.
        Err(error @ (Error::NameConstraintViolation | Error::PathLenConstraintViolated)) => {
            search(leaf, anchors.certificates, intermediates, now).ok_or(error)
        }
        Err(error) => Err(error),
    }
}

/// As [`build`], by [`path`](super::path).
fn search(
    leaf: &CertificateDer<'_>,
    anchors: &[CertificateDer<'_>],
    intermediates: &[CertificateDer<'_>],
    now: i64,
) -> Option<Built> {
    fn nodes<'a>(certificates: &'a [CertificateDer<'_>]) -> Vec<Node<'a>> {
        certificates
            .iter()
            .filter_map(|der| Certificate::parse(der))
            .map(|certificate| Node {
                certificate,
                flaws: Vec::new(),
                name: String::new(),
            })
            .collect()
    }
    let leaf = Certificate::parse(leaf)?;
    let (help, anchors) = (nodes(intermediates), nodes(anchors));
    let Outcome::Found(path) = Search::new(&leaf, &help, &anchors).run(now, true) else {
        return None;
    };
    let owned = |node: &Node<'_>| CertificateDer::from(node.certificate.der.to_vec());
    let anchor = owned(&anchors[path.anchor?]);
    Some((
        path.help.iter().map(|place| owned(&help[*place])).collect(),
        anchor_from_trusted_cert(&anchor).ok()?.to_owned(),
    ))
}

fn outdated(certificate: &CertificateDer<'_>, now: i64) -> Option<Code> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    if now < parsed.validity().not_before.timestamp() {
        Some(Code::NotYetValid)
    } else if now >= parsed.validity().not_after.timestamp() {
        Some(Code::Expired)
    } else {
        None
    }
}

fn self_issued(certificate: &CertificateDer<'_>) -> bool {
    x509_parser::parse_x509_certificate(certificate)
        .is_ok_and(|(_, parsed)| parsed.subject().as_raw() == parsed.issuer().as_raw())
}

fn outdated_issuer(code: Code) -> Reason {
    let when = match code {
        Code::NotYetValid => "is not valid yet",
        _ => "has expired",
    };
    Reason::new(
        code,
        format!("An intermediate certificate that the chain needs {when}."),
        "Fetch the current intermediate from the CA and add the chain again.",
    )
}

pub(super) fn reason(error: &Error) -> Reason {
    match error {
        Error::CertExpired { .. } => outdated_issuer(Code::Expired),
        Error::CertNotValidYet { .. } => outdated_issuer(Code::NotYetValid),
        Error::UnsupportedSignatureAlgorithmContext(_)
        | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => Reason::new(
            Code::SignatureWeak,
            "A certificate of the chain is signed in a way that clients do not accept.",
            "Have the certificate issued anew with SHA-256 or better.",
        ),
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => Reason::new(
            Code::NotAServerCertificate,
            "A CA of the chain must not issue certificates for servers.",
            "Use a chain whose CAs allow the extended key usage serverAuth.",
        ),
        Error::NameConstraintViolation | Error::PathLenConstraintViolated => Reason::new(
            Code::ChainUntrusted,
            "A CA of the chain must not have issued this certificate: its name or path length constraints forbid it.",
            "Ask the CA for a certificate that its constraints allow.",
        ),
        Error::CaUsedAsEndEntity => super::examine::ca_as_leaf(),
        Error::UnknownIssuer
        | Error::InvalidSignatureForPublicKey
        | Error::EndEntityUsedAsCa
        | Error::SignatureAlgorithmMismatch
        | Error::MaximumPathDepthExceeded
        | Error::MaximumPathBuildCallsExceeded
        | Error::MaximumSignatureChecksExceeded
        | Error::MaximumNameConstraintComparisonsExceeded => Reason::new(
            Code::ChainIncomplete,
            "No path leads from the certificate to a CA: the intermediate that issued it is missing, or the certificates do not belong together.",
            "Append the intermediates that the CA sent along, the server certificate first: cat cert.pem intermediate.pem > chain.pem; chancery certificate add NAME --chain chain.pem --key key.pem",
        ),
        _ => Reason::new(
            Code::PemMalformed,
            "A certificate of the chain is not of the form that clients read.",
            "Check it: openssl x509 -in chain.pem -noout -text",
        ),
    }
}
