//! Whom a chain leads to, by path building (RFC 5280, 6) with webpki.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;
use std::time::Duration;

use lifecycle::event::Trust;
use lifecycle::rejection::{Code, Reason};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, Error, KeyUsage, anchor_from_trusted_cert};

use super::CHAIN_HINT;
use super::certificate::Certificate;
use super::path::{MAX_INTERMEDIATES, Node, Outcome, Search};

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

/// The public roots (Mozilla's) by their subjects.
fn public_roots() -> &'static HashMap<Vec<u8>, Vec<CertificateDer<'static>>> {
    static ROOTS: OnceLock<HashMap<Vec<u8>, Vec<CertificateDer<'static>>>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots: HashMap<Vec<u8>, Vec<_>> = HashMap::new();
        for root in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
            if let Some(parsed) = Certificate::parse(root) {
                let of_name = roots.entry(parsed.subject().to_vec()).or_default();
                of_name.push(root.clone());
            }
        }
        roots
    })
}

/// Whether this very certificate is a public root.
pub(super) fn is_public_root(certificate: &CertificateDer<'_>) -> bool {
    webpki_root_certs::TLS_SERVER_ROOT_CERTS.contains(certificate)
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

    let mut first_error = None;
    for (trust, anchors) in [
        (Trust::Public, webpki_root_certs::TLS_SERVER_ROOT_CERTS),
        (Trust::Private, known.roots),
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
    match build(leaf, &end_entity, std::slice::from_ref(leaf), &[], now) {
        Ok(_) => return Ok(as_given(Trust::SelfSigned)),
        Err(error) => first_error = worse(first_error, error),
    }

    // The unknown CA that the chain ends at: whatever CA it shows. A path that needs one that is out of date is none.
    for (candidates, complete) in [(given, false), (&all[..], true)] {
        let (current, dated): (Vec<_>, Vec<_>) = candidates
            .iter()
            .cloned()
            .partition(|certificate| outdated(certificate, now).is_none());
        match build(leaf, &end_entity, &current, candidates, now) {
            Ok(_) if !complete => return Ok(as_given(Trust::Private)),
            Ok((mut path, anchor)) => {
                // The anchor itself was not in anybody's trust store, so it is served too, unless it is a root.
                path.extend(
                    current
                        .into_iter()
                        .find(|certificate| *certificate == anchor)
                        .filter(|c| !self_issued(c))
                        .map(CertificateDer::into_owned),
                );
                return Ok(completed(Trust::Private, path));
            }
            Err(error) => first_error = worse(first_error, error),
        }
        if build(leaf, &end_entity, &dated, candidates, now).is_ok() {
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

type Built = (Vec<CertificateDer<'static>>, CertificateDer<'static>);

/// The intermediates of a path from the leaf to one of the anchors, and that anchor.
///
/// The search finds it, and webpki judges it alone: given everything at once, webpki would follow names before it checks a
/// signature, and a few namesakes would keep it busy for seconds.
fn build(
    leaf: &CertificateDer<'_>,
    end_entity: &EndEntityCert<'_>,
    anchors: &[CertificateDer<'_>],
    intermediates: &[CertificateDer<'_>],
    now: i64,
) -> Result<Built, Error> {
    let parsed = Certificate::parse(leaf).ok_or(Error::BadDer)?;
    let mut help = nodes(intermediates.iter());
    for node in &mut help {
        node.flaws.extend(unusable(&node.certificate, now));
    }
    // Of the many public roots only those are read that an issuer's name leads to.
    let roots = if std::ptr::eq(anchors, webpki_root_certs::TLS_SERVER_ROOT_CERTS) {
        let issuers: HashSet<&[u8]> = help
            .iter()
            .map(|node| node.certificate.issuer())
            .chain([parsed.issuer()])
            .collect();
        let named = issuers.iter().filter_map(|name| public_roots().get(*name));
        nodes(named.flatten())
    } else {
        nodes(anchors.iter())
    };
    let owned = |node: &Node<'_>| CertificateDer::from(node.certificate.der.to_vec());
    let (found, nearest) = match Search::new(&parsed, &help, &roots).run(now, true) {
        Outcome::Found(path) => (true, path),
        Outcome::Refused(_, path) => (false, path),
    };
    let path: Vec<_> = nearest
        .help
        .iter()
        .take(MAX_INTERMEDIATES)
        .map(|place| owned(&help[*place]))
        .collect();
    let anchor = nearest.anchor.map(|place| owned(&roots[place]));
    // A certificate that is its own anchor was not judged on the way.
    if found && let Some(anchor) = anchor.clone().filter(|anchor| anchor != leaf) {
        return Ok((path, anchor));
    }
    // Why not, in webpki's words.
    let at = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap_or(0)));
    let trusted = anchor.as_ref().map(anchor_from_trusted_cert).transpose()?;
    end_entity.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        trusted.as_slice(),
        &path,
        at,
        KeyUsage::server_auth(),
        None,
        None,
    )?;
    match anchor.filter(|_| found) {
        Some(anchor) => Ok((path, anchor)),
        None => Err(Error::UnknownIssuer),
    }
}

/// What keeps a CA out of every path. webpki says it again of a path without self-issued certificates, and only here is it
/// said of one with them.
fn unusable(certificate: &Certificate<'_>, now: i64) -> Option<Reason> {
    let x509 = &certificate.x509;
    let validity = x509.validity();
    if now > validity.not_after.timestamp() {
        Some(outdated_issuer(Code::Expired))
    } else if now < validity.not_before.timestamp() {
        Some(outdated_issuer(Code::NotYetValid))
    } else if !x509.is_ca() {
        Some(reason(&Error::EndEntityUsedAsCa))
    } else if matches!(x509.extended_key_usage(), Ok(Some(usage)) if !usage.value.server_auth) {
        Some(reason(&Error::EmptyEkuExtension))
    } else {
        None
    }
}

fn nodes<'a>(certificates: impl Iterator<Item = &'a CertificateDer<'a>>) -> Vec<Node<'a>> {
    certificates
        .filter_map(|der| Certificate::parse(der))
        .map(|certificate| Node {
            certificate,
            flaws: Vec::new(),
            name: String::new(),
        })
        .collect()
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
