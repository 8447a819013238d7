//! From the certificates of a file to the chain that is served: leaf first, each followed by its issuer, nothing twice, nothing
//! that does not belong, no root, and with intermediates that were left out but are known. Each change is told.
//!
//! What is in order already stays as it was sent, cross-signed certificates that no client of today needs included: the CA may
//! have had its reasons. Only what is not in order is searched for a path, and of several the choice depends on nothing but the
//! certificates: whether all are valid now, whether a public root issued one of them, how many of those that were sent are
//! used, how few were added, how few are served, and their order in the file.

use std::collections::HashSet;
use std::sync::OnceLock;

use lifecycle::event::CertificateKind;
use lifecycle::rejection::{Code, Reason};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::certificate::Certificate;
use super::{Examined, Known, Upload, examine, read_upload};

/// The longest chain that is looked for, in certificates.
const MAX_PATH: usize = 10;
/// Steps that a search takes at most, and signatures that it checks; what certificates of one name could be made to cost.
const MAX_STEPS: usize = 2_000;
const MAX_CHECKS: usize = 100;

/// What was done to what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The order was changed.
    Reordered,
    /// A root was left out: clients have it or do not trust it.
    RootDropped,
    /// A certificate was there more than once.
    DuplicateDropped,
    /// A certificate does not belong to the chain.
    UnrelatedDropped,
    /// A missing intermediate was filled in.
    IntermediateAdded,
    /// Text and blocks beside the certificates were passed over.
    TextIgnored,
}

/// One change, as answers tell it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repair {
    /// Which.
    pub repair: Kind,
    /// One sentence. Certificates are numbered by their place in the file; nothing of them is quoted but fingerprints.
    pub message: String,
}

impl Repair {
    fn new(repair: Kind, message: impl Into<String>) -> Self {
        Self {
            repair,
            message: message.into(),
        }
    }
}

/// A chain in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// The leaf and its intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// The root that was left out at its end.
    pub root: Option<CertificateDer<'static>>,
    /// What was done.
    pub repairs: Vec<Repair>,
}

/// Reads the PEM of an upload, repairs its chain and examines it at the time `now` in Unix seconds.
///
/// `known` is asked for the CAs and the intermediates that the project has shown only when the chain does not stand by itself.
/// A root is served when without it nothing would say which CA the leaf leads to.
///
/// # Errors
/// Those of [`read_chain`](super::read_chain), [`repair`] and [`examine`].
pub fn take_in(
    text: &[u8],
    spki_of_key: Option<[u8; 32]>,
    kind: CertificateKind,
    now: i64,
    roots: &[CertificateDer<'static>],
    known: impl FnOnce() -> (Vec<CertificateDer<'static>>, Vec<CertificateDer<'static>>),
) -> Result<(Examined, Vec<Repair>), Vec<Reason>> {
    let Upload { chain, text_beside } = read_upload(text, kind).map_err(|reason| vec![reason])?;
    let mut repairs = Vec::new();
    if text_beside {
        repairs.push(Repair::new(
            Kind::TextIgnored,
            "Text or other blocks beside the certificates were passed over.",
        ));
    }
    if kind == CertificateKind::Ca {
        let (unique, dropped) = without_duplicates(&chain);
        repairs.extend(dropped);
        let unique: Vec<_> = unique.into_iter().map(|at| chain[at].clone()).collect();
        let known = Known {
            roots,
            issuers: &[],
        };
        return Ok((examine(&unique, spki_of_key, kind, now, known)?, repairs));
    }
    let attempt = |roots: &[CertificateDer<'static>], issuers: &[CertificateDer<'static>]| {
        let repaired = repair(&chain, spki_of_key, issuers, now).map_err(|reason| vec![reason])?;
        let known = Known { roots, issuers };
        let examined = examine(&repaired.chain, spki_of_key, kind, now, known);
        Ok::<_, Vec<Reason>>((repaired, examined))
    };
    let incomplete = |reasons: &[Reason]| reasons.iter().any(|r| r.code == Code::ChainIncomplete);
    let (mut repaired, mut examined) = attempt(roots, &[])?;
    if matches!(&examined, Err(reasons) if incomplete(reasons)) {
        let (mut cas, issuers) = known();
        cas.extend(roots.iter().cloned());
        (repaired, examined) = attempt(&cas, &issuers)?;
        if matches!(&examined, Err(reasons) if incomplete(reasons))
            && let Some(root) = repaired.root.take()
        {
            repaired.chain.push(root);
            let known = Known {
                roots: &cas,
                issuers: &issuers,
            };
            examined = examine(&repaired.chain, spki_of_key, kind, now, known);
            let told = &mut repaired.repairs;
            told.retain(|r| r.repair != Kind::RootDropped);
            let place = |der| chain.iter().position(|of_file| of_file == der);
            if !repaired.chain.iter().filter_map(place).is_sorted()
                && told.iter().all(|r| r.repair != Kind::Reordered)
            {
                told.push(reordered());
            }
        }
    }
    let examined = examined?;
    repairs.extend(repaired.repairs);
    for (added, digest) in examined.chain.iter().zip(&examined.facts.chain) {
        if !chain.contains(added) {
            repairs.push(Repair::new(
                Kind::IntermediateAdded,
                format!(
                    "An intermediate was missing and was filled in from what this project has shown before (SHA-256 {digest})."
                ),
            ));
        }
    }
    Ok((examined, repairs))
}

/// Puts a server's chain in order. `issuers` are intermediates that are known; `now` is in Unix seconds and matters only where
/// there is a choice.
///
/// The leaf is the certificate of the key whose SHA-256 is given; without one, or when it belongs to none, the one that issued
/// no other. What cannot be read comes back as it was, so that examination tells what is wrong with it.
///
/// # Errors
/// `pem_malformed` when more than one certificate could be the leaf.
pub fn repair(
    given: &[CertificateDer<'_>],
    spki_of_key: Option<[u8; 32]>,
    issuers: &[CertificateDer<'_>],
    now: i64,
) -> Result<Repaired, Reason> {
    let owned = |der: &CertificateDer<'_>| der.clone().into_owned();
    let as_given = || Repaired {
        chain: given.iter().map(owned).collect(),
        root: None,
        repairs: Vec::new(),
    };
    let parsed: Option<Vec<_>> = given.iter().map(|der| Certificate::parse(der)).collect();
    let Some(mut all) = parsed.filter(|parsed| !parsed.is_empty()) else {
        return Ok(as_given());
    };
    let (unique, mut repairs) = without_duplicates(given);
    let count = given.len();
    let mut ders: Vec<&CertificateDer<'_>> = given.iter().collect();
    for issuer in issuers.iter().filter(|issuer| !given.contains(issuer)) {
        if let Some(parsed) = Certificate::parse(issuer) {
            all.push(parsed);
            ders.push(issuer);
        }
    }
    let mut search = Search {
        all: &all,
        given: count,
        unique: &unique,
        now,
        steps: 0,
        checks: MAX_CHECKS,
        issued: vec![None; all.len() * all.len()],
        best: None,
    };
    let leaf = search.leaf(spki_of_key)?;
    // Known ones are given only when what was sent leads nowhere, in whatever order it is.
    let mut path = if issuers.is_empty() && search.in_order(leaf) {
        unique.clone()
    } else {
        search.walk(&mut vec![leaf]);
        search.best.take().map_or_else(|| vec![leaf], |best| best.1)
    };
    let mut root = None;
    if path.len() > 1
        && let Some(&last) = path.last()
        && search.is_root(last)
    {
        path.pop();
        if last < count {
            repairs.push(Repair::new(
                Kind::RootDropped,
                format!(
                    "Certificate {} of the file is a root and was left out: clients never need it from a server.",
                    last + 1
                ),
            ));
        }
        root = Some(last);
    }
    let kept: Vec<usize> = path.iter().copied().filter(|at| *at < count).collect();
    for at in &unique {
        if kept.contains(at) || root == Some(*at) {
            continue;
        }
        let double = path
            .iter()
            .any(|of_path| all[*of_path].subject() == all[*at].subject());
        let why = if double {
            "is another certificate of one that the chain has already"
        } else {
            "does not belong to the chain"
        };
        repairs.push(Repair::new(
            Kind::UnrelatedDropped,
            format!("Certificate {} of the file {why} and was left out.", at + 1),
        ));
    }
    if !kept.is_sorted() {
        repairs.push(reordered());
    }
    Ok(Repaired {
        chain: path.iter().map(|at| owned(ders[*at])).collect(),
        root: root.map(|at| owned(ders[at])),
        repairs,
    })
}

fn reordered() -> Repair {
    Repair::new(
        Kind::Reordered,
        "The certificates were put in order: the server certificate first, each followed by its issuer.",
    )
}

/// The places of the certificates without those that came before, and what to tell.
fn without_duplicates(given: &[CertificateDer<'_>]) -> (Vec<usize>, Vec<Repair>) {
    let mut unique: Vec<usize> = Vec::new();
    let mut repairs = Vec::new();
    for (at, der) in given.iter().enumerate() {
        match unique.iter().find(|first| given[**first] == *der) {
            None => unique.push(at),
            Some(first) => repairs.push(Repair::new(
                Kind::DuplicateDropped,
                format!(
                    "Certificate {} of the file is the same as certificate {} and was left out.",
                    at + 1,
                    first + 1
                ),
            )),
        }
    }
    (unique, repairs)
}

/// Subjects of the public roots, as they are encoded.
fn public_subjects() -> &'static HashSet<Vec<u8>> {
    static SUBJECTS: OnceLock<HashSet<Vec<u8>>> = OnceLock::new();
    SUBJECTS.get_or_init(|| {
        webpki_root_certs::TLS_SERVER_ROOT_CERTS
            .iter()
            .filter_map(|root| Some(Certificate::parse(root)?.subject().to_vec()))
            .collect()
    })
}

/// Which of two paths is served: the larger.
type Rank = (
    bool,
    bool,
    usize,
    i64,
    std::cmp::Reverse<usize>,
    std::cmp::Reverse<Vec<usize>>,
);

struct Search<'a> {
    /// Those of the file, then the known ones.
    all: &'a [Certificate<'a>],
    /// How many are of the file.
    given: usize,
    /// Those of the file that are looked at.
    unique: &'a [usize],
    now: i64,
    steps: usize,
    checks: usize,
    /// What was found out: whether one issued the other.
    issued: Vec<Option<bool>>,
    best: Option<(Rank, Vec<usize>)>,
}

impl Search<'_> {
    /// Whether the certificate at `by` issued the one at `of`: by its name, and by its signature where that can be checked.
    fn issued(&mut self, by: usize, of: usize) -> bool {
        let (issuer, certificate) = (&self.all[by], &self.all[of]);
        if by == of || issuer.subject() != certificate.issuer() {
            return false;
        }
        let place = by * self.all.len() + of;
        if let Some(known) = self.issued[place] {
            return known;
        }
        let issued = if certificate.signature_can_be_checked() && self.checks > 0 {
            self.checks -= 1;
            certificate.is_signed_by(issuer)
        } else {
            // The path is built and judged by others; here a name must do.
            true
        };
        self.issued[place] = Some(issued);
        issued
    }

    /// Whether a certificate signed itself. The names alone do not tell: people give a CA the name of the leaf that it issues, and
    /// a CA that changes its key issues a certificate to itself.
    fn is_root(&mut self, at: usize) -> bool {
        let certificate = &self.all[at];
        if !certificate.self_issued() {
            return false;
        }
        let place = at * self.all.len() + at;
        if let Some(known) = self.issued[place] {
            return known;
        }
        let root = if certificate.signature_can_be_checked() && self.checks > 0 {
            self.checks -= 1;
            certificate.is_signed_by(certificate)
        } else {
            true
        };
        self.issued[place] = Some(root);
        root
    }

    /// Which certificate of the file is the server's.
    fn leaf(&mut self, spki_of_key: Option<[u8; 32]>) -> Result<usize, Reason> {
        let unique = self.unique;
        let of_key = |at: &usize| {
            spki_of_key.is_some_and(|key| super::examine::sha256(self.all[*at].spki()) == key)
        };
        let is_ca = |at: &usize| self.all[*at].x509.is_ca();
        let mut candidates: Vec<usize> = unique
            .iter()
            .copied()
            .filter(|at| of_key(at) && !is_ca(at))
            .collect();
        let by_key = !candidates.is_empty();
        if !by_key {
            candidates = unique.iter().copied().filter(|at| !is_ca(at)).collect();
        }
        if candidates.is_empty() {
            // Only CAs: examination says so.
            candidates = unique.to_vec();
        }
        if candidates.len() > 1 {
            let last: Vec<usize> = candidates
                .iter()
                .copied()
                .filter(|at| !unique.iter().any(|other| self.issued(*at, *other)))
                .collect();
            if !last.is_empty() {
                candidates = last;
            }
        }
        let first = candidates[0];
        let ambiguous = candidates.len() > 1 && (by_key || spki_of_key.is_none());
        if ambiguous {
            let places: Vec<String> = candidates.iter().map(|at| (at + 1).to_string()).collect();
            return Err(Reason::new(
                Code::PemMalformed,
                format!(
                    "More than one certificate of the file could be the server's: certificates {}.",
                    places.join(" and ")
                ),
                "Leave only the one to be added in the file, with its intermediates; list them by: openssl crl2pkcs7 -nocrl -certfile chain.pem | openssl pkcs7 -print_certs -noout",
            ));
        }
        Ok(first)
    }

    /// Whether the file begins with the leaf and each certificate is followed by its issuer.
    fn in_order(&mut self, leaf: usize) -> bool {
        let unique = self.unique;
        unique.first() == Some(&leaf) && unique.windows(2).all(|pair| self.issued(pair[1], pair[0]))
    }

    /// Looks at all paths that go on from here.
    fn walk(&mut self, path: &mut Vec<usize>) {
        self.steps += 1;
        let Some(&last) = path.last() else { return };
        self.rate(path);
        if self.steps > MAX_STEPS || path.len() >= MAX_PATH || self.is_root(last) {
            return;
        }
        for next in 0..self.all.len() {
            let twin = next < self.given && !self.unique.contains(&next);
            if !twin && !path.contains(&next) && self.issued(next, last) {
                path.push(next);
                self.walk(path);
                path.pop();
            }
        }
    }

    /// Keeps the path if it is the best so far.
    fn rate(&mut self, path: &[usize]) {
        let valid = path.iter().all(|at| {
            let validity = self.all[*at].x509.validity();
            (validity.not_before.timestamp()..=validity.not_after.timestamp()).contains(&self.now)
        });
        let anchored = path
            .iter()
            .any(|at| self.is_root(*at) || public_subjects().contains(self.all[*at].issuer()));
        let added = path.iter().filter(|at| **at >= self.given).count();
        let root = path.last().is_some_and(|at| self.is_root(*at));
        let rank = (
            valid,
            anchored,
            path.len() - added,
            // What leads to a root needs nothing more; what does not is better the further it leads.
            if anchored {
                -(added as i64)
            } else {
                added as i64
            },
            std::cmp::Reverse(path.len() - usize::from(root)),
            std::cmp::Reverse(path.to_vec()),
        );
        if self.best.as_ref().is_none_or(|(best, _)| rank > *best) {
            self.best = Some((rank, path.to_vec()));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
