//! Which certificates of a chain are looked up, and who may answer for each.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::parse_x509_certificate;

use lifecycle::event::{CertificateKind, Trust};
use lifecycle::names::{CertificateId, Slug};
use lifecycle::state::{Certificate, Version};

use super::points::{Points, issued, may_point};
use crate::chain::{Known, judge_trust};
use crate::tables::{Tables, fatal};

/// Steps from a leaf towards a root at most.
const STEPS: usize = 8;

/// What is looked up for one version.
pub(crate) struct Job {
    pub(super) id: CertificateId,
    pub(super) version: u32,
    pub(super) project: Slug,
    pub(super) name: Slug,
    /// Whether a public root is above it: then the addresses were chosen by a CA and not by a tenant.
    pub(super) public: bool,
    /// From the leaf on, those that point anywhere.
    pub(super) links: Vec<Arc<Link>>,
    chain: Vec<CertificateDer<'static>>,
}

/// One certificate that is looked up.
pub(super) struct Link {
    /// Its place in the chain, from 1, the leaf's.
    pub(super) place: usize,
    pub(super) serial: Vec<u8>,
    pub(super) is_ca: bool,
    pub(super) points: Points,
    /// Who issued it, if that is known here.
    pub(super) issuer: Option<CertificateDer<'static>>,
}

impl Job {
    /// What there is to look up; nothing for most private certificates, which point nowhere. `more` gives further CAs that may
    /// have issued what is in the chain, and is only asked when they are needed.
    pub(crate) fn of(
        certificate: &Certificate,
        version: &Version,
        chain: &[CertificateDer<'static>],
        trust: Trust,
        roots: &[CertificateDer<'static>],
        more: impl Fn() -> Vec<CertificateDer<'static>>,
    ) -> Option<Self> {
        if certificate.kind != CertificateKind::Server {
            return None;
        }
        let links = links(chain, roots, &more);
        (!links.is_empty()).then(|| Self {
            id: certificate.id,
            version: version.version,
            project: certificate.project.clone(),
            name: certificate.name.clone(),
            public: trust == Trust::Public,
            links,
            chain: chain.to_vec(),
        })
    }

    /// The same for a version of the tables, as the daily round finds it.
    pub(super) fn of_row(
        ledger: &ledger::Ledger,
        certificate: &Certificate,
        version: &Version,
        roots: &[CertificateDer<'static>],
    ) -> Option<Self> {
        let tables = Tables::of(ledger);
        let chain = version
            .facts
            .chain
            .iter()
            .map(|hash| object(&tables, &hash.0))
            .collect::<Option<Vec<_>>>()?;
        drop(tables);
        let trust = version.trust.unwrap_or(Trust::Private);
        let more = || others(ledger, certificate.project.as_str());
        Self::of(certificate, version, &chain, trust, roots, more)
    }

    /// Whether clients need a certificate of the chain, by its place: a cross certificate that was taken back does no harm
    /// where another path leads to a public root.
    pub(super) fn needs(&self, place: usize) -> bool {
        if place == 1 || !self.public {
            return true;
        }
        let without: Vec<_> = self
            .chain
            .iter()
            .zip(1..)
            .filter(|(_, at)| *at != place)
            .map(|(certificate, _)| certificate.clone())
            .collect();
        let leaf = self.chain.first().and_then(|leaf| {
            let validity = parse_x509_certificate(leaf)
                .ok()?
                .1
                .tbs_certificate
                .validity;
            Some((
                validity.not_before.timestamp(),
                validity.not_after.timestamp(),
            ))
        });
        let Some((not_before, not_after)) = leaf else {
            return true;
        };
        let at = super::now().clamp(not_before, not_after.max(not_before));
        !judge_trust(&without, Known::default(), at).is_ok_and(|path| path.trust == Trust::Public)
    }
}

/// CAs that a project has shown.
pub(crate) fn others(ledger: &ledger::Ledger, project: &str) -> Vec<CertificateDer<'static>> {
    let (mut cas, issuers) = crate::ingestion::shown(ledger, project);
    cas.extend(issuers);
    cas
}

fn object(tables: &Tables, hash: &[u8; 32]) -> Option<CertificateDer<'static>> {
    tables
        .0
        .object(hash)
        .unwrap_or_else(|error| fatal("the ledger cannot be read", &error))
        .map(CertificateDer::from)
}

/// Whether the leaf of a version points anywhere.
pub(super) fn points_anywhere(tables: &Tables, version: &Version) -> bool {
    let leaf = version
        .facts
        .chain
        .first()
        .and_then(|hash| object(tables, &hash.0));
    leaf.is_some_and(|leaf| {
        may_point(&leaf)
            && parse_x509_certificate(&leaf)
                .is_ok_and(|(_, parsed)| !Points::of(&parsed).is_empty())
    })
}

pub(super) fn links(
    chain: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
    more: &dyn Fn() -> Vec<CertificateDer<'static>>,
) -> Vec<Arc<Link>> {
    if !chain.iter().any(|der| may_point(der)) {
        return Vec::new();
    }
    let parsed: Vec<X509Certificate<'_>> = chain
        .iter()
        .map_while(|der| parse_x509_certificate(der).ok())
        .map(|(_, parsed)| parsed)
        .collect();
    let mut links = Vec::new();
    let (mut place, mut seen) = (0, Vec::new());
    // From the leaf to whoever issued it and on, so that what only lies in the file beside the path is not asked about.
    while let Some(current) = parsed.get(place).filter(|_| seen.len() < STEPS) {
        seen.push(place);
        if current.subject().as_raw() == current.issuer().as_raw() {
            break;
        }
        let is = |issuer: &CertificateDer<'_>| {
            parse_x509_certificate(issuer)
                .is_ok_and(|(_, issuer)| issued(&chain[place], current, &issuer))
        };
        let next = (0..parsed.len()).find(|at| !seen.contains(at) && is(&chain[*at]));
        let points = Points::of(current);
        if !points.is_empty() {
            let issuer = next
                .map(|at| chain[at].clone())
                .or_else(|| roots.iter().find(|root| is(root)).cloned())
                .or_else(|| {
                    let public = public_roots().get(current.issuer().as_raw());
                    public
                        .into_iter()
                        .flatten()
                        .find(|root| is(root))
                        .map(|root| (*root).clone())
                })
                .or_else(|| more().into_iter().find(|ca| is(ca)));
            links.push(Arc::new(Link {
                place: place + 1,
                serial: current.raw_serial().to_vec(),
                is_ca: current.is_ca(),
                points,
                issuer,
            }));
        }
        match next {
            Some(next) => place = next,
            None => break,
        }
    }
    links
}

type Roots = HashMap<Vec<u8>, Vec<&'static CertificateDer<'static>>>;

/// The public roots by their names, parsed once.
fn public_roots() -> &'static Roots {
    static ROOTS: OnceLock<Roots> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = Roots::new();
        for root in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
            if let Ok((_, parsed)) = parse_x509_certificate(root) {
                let name = parsed.subject().as_raw().to_vec();
                roots.entry(name).or_default().push(root);
            }
        }
        roots
    })
}
