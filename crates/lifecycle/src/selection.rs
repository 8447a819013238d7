//! Which certificate is active for a host in a region, and which are its fallbacks.
//!
//! One pure function for the control plane and the edge alike. The control plane calls it with candidates from its
//! tables, the edge with candidates from its store; the dates are compared with whatever time the caller passes, so
//! that the edge can switch in the very second in which a certificate ends, with nobody upstream.

use serde::{Deserialize, Serialize};

use crate::names::{CertificateId, Digest};

/// The rule by which candidates are ordered. A rule, once published, never changes: a new one gets a new name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    /// `last-uploaded.v1`: bound, then normal before standby, exact before wildcard, later place, later version.
    #[default]
    #[serde(rename = "last-uploaded.v1")]
    LastUploadedV1,
}

/// A host's HTTPS mode in a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Selection decides.
    #[default]
    Auto,
    /// This certificate first, with its older versions; the rest are its fallbacks.
    Bound(CertificateId),
    /// No HTTPS, whatever certificates exist.
    Off,
}

/// The kind of a certificate's key. A client gets the first candidate whose key its signature schemes can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KeyKind {
    /// RSA with a modulus of so many bits.
    #[serde(rename = "rsa")]
    Rsa(u16),
    /// ECDSA on P-256.
    #[serde(rename = "p256")]
    P256,
    /// ECDSA on P-384.
    #[serde(rename = "p384")]
    P384,
    /// Ed25519.
    #[serde(rename = "ed25519")]
    Ed25519,
}

/// One version of a certificate that may be served for a host: ready, deployed to the region, covering the host, of the
/// project that holds the claim, neither deleted nor revoked. Only its dates are still open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// The named certificate.
    pub certificate: CertificateId,
    /// Its version, from 1.
    pub version: u32,
    /// The log sequence at which somebody put the named certificate there. `replace` and renewals keep it.
    pub place: u64,
    /// Whether it was uploaded as a backup, which never goes live by being uploaded.
    pub standby: bool,
    /// Whether a SAN names the host itself, not only a wildcard above it.
    pub exact: bool,
    /// First second of validity, Unix time.
    pub not_before: i64,
    /// Last second of validity, Unix time.
    pub not_after: i64,
    /// SHA-256 of the leaf's DER; names the bundle.
    pub fingerprint: Digest,
    /// The leaf's key.
    pub key: KeyKind,
    /// Whether it is publicly trusted. A resource may demand that; the caller leaves the others out.
    pub public: bool,
}

impl Candidate {
    /// Whether the dates allow serving it at `now` (Unix seconds): `not_before <= now < not_after`.
    ///
    /// RFC 5280 section 4.1.2.5 counts the second of notAfter too; an edge that stops one second early is never late.
    pub fn usable(&self, now: i64) -> bool {
        self.not_before <= now && now < self.not_after
    }
}

/// Puts candidates in the order in which they are to be served. Dates play no part: the order holds until an event changes it.
pub fn rank(policy: Policy, mode: Mode, candidates: &mut Vec<Candidate>) {
    let Policy::LastUploadedV1 = policy;
    let bound = match mode {
        Mode::Auto => None,
        Mode::Bound(certificate) => Some(certificate),
        Mode::Off => {
            candidates.clear();
            return;
        }
    };
    candidates.sort_by_key(|c| {
        std::cmp::Reverse((
            bound == Some(c.certificate),
            !c.standby,
            c.exact,
            c.place,
            c.version,
        ))
    });
}

/// The usable ones among ranked candidates at `now`: the first is active, the rest are the fallback chain.
pub fn chain(ranked: &[Candidate], now: i64) -> impl Iterator<Item = &Candidate> {
    ranked.iter().filter(move |c| c.usable(now))
}

/// The active one among ranked candidates at `now`.
pub fn active(ranked: &[Candidate], now: i64) -> Option<&Candidate> {
    chain(ranked, now).next()
}

/// Until when the host stays valid if everything upstream stops now: the end of the unbroken cover by candidates from
/// `now` on, Unix seconds. None if it is not covered even now.
pub fn runway(ranked: &[Candidate], now: i64) -> Option<i64> {
    let mut until = now;
    // Each turn either reaches further or ends the loop, and there are no more reaches than candidates.
    while let Some(next) = ranked
        .iter()
        .filter(|c| c.usable(until))
        .map(|c| c.not_after)
        .max()
    {
        until = next;
    }
    (until > now).then_some(until)
}

/// The next second after `now` at which the usable chain changes, so that whoever cached it knows when to look again.
pub fn next_change(ranked: &[Candidate], now: i64) -> Option<i64> {
    ranked
        .iter()
        .flat_map(|c| [c.not_before, c.not_after])
        .filter(|t| *t > now)
        .min()
}
