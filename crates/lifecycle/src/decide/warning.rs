//! Warnings before a certificate's end.

use std::collections::BTreeSet;

use super::budget::{Enough, Reader};
use super::{Decider, Decision, no, not_found};
use crate::command::WarnCertificate;
use crate::event::{CertificateExpiring, CertificateKind, Runway};
use crate::evolve::warnings;
use crate::names::Host;
use crate::rejection::Code;
use crate::selection;
use crate::state::{self, Certificate, State, Version};
use crate::store::{Parts, Read, Table};

/// Most hosts named in a warning.
pub const WARNED_NAMED: usize = 20;
/// Most hosts that are looked at for a warning. Those beyond are not named; the warning says that there may be more.
const WARNED_SCAN: usize = 500;
/// How much is read for a warning: see [`Reader`]. Many may be due in the same second.
const WARNED_READ: usize = 1_000;

impl<R: Read> Decider<'_, R> {
    pub(super) fn warn_certificate(&self, c: &WarnCertificate) -> Decision {
        let certificate = self
            .state
            .certificate(c.id)
            .filter(|certificate| !certificate.deleted)
            .ok_or_else(|| not_found("certificate", "chancery certificate list"))?;
        let due = certificate
            .warning
            .is_some_and(|(due, version)| version == c.version && due <= self.now());
        let version = certificate.version(c.version);
        let (true, Some(version)) = (due, version) else {
            return no(Code::Conflict, "no warning of it is due", "");
        };
        // A clock that comes late warns once, of what is nearest.
        let passed = warnings(&version.facts)
            .iter()
            .filter(|due| **due <= self.now())
            .count();
        let (hosts, more_hosts) = self.depending(&certificate, version);
        let next = if hosts.is_empty() {
            format!(
                "no host depends on it; replace it if it is still needed, or delete it: chancery certificate delete {0} --confirm {0}",
                certificate.name
            )
        } else {
            format!(
                "get a new certificate for these names and put it in: chancery certificate replace {} --chain FILE --key FILE",
                certificate.name
            )
        };
        Ok(vec![(
            certificate.project.clone(),
            CertificateExpiring {
                id: certificate.id,
                name: certificate.name.clone(),
                version: version.version,
                stage: u8::try_from(passed.max(1)).unwrap_or(1),
                left: u64::try_from(version.facts.not_after - self.now()).unwrap_or(0),
                not_after: version.facts.not_after,
                regions: certificate.regions.clone(),
                hosts,
                more_hosts,
                next,
            }
            .into(),
        )])
    }

    /// The hosts for which a version is active now, with their runways, and whether there may be more.
    fn depending(&self, certificate: &Certificate, version: &Version) -> (Vec<Runway>, bool) {
        if certificate.kind != CertificateKind::Server {
            return (Vec::new(), false);
        }
        let mut hosts: BTreeSet<Host> = BTreeSet::new();
        let mut cut = false;
        for name in crate::evolve::hosts(&version.facts) {
            let Ok(host) = Host::parse(&name) else {
                continue;
            };
            if host.is_wildcard() {
                let prefix = state::key::pair(&certificate.project, host.parent());
                let left = WARNED_SCAN.saturating_sub(hosts.len());
                let below = self
                    .state
                    .scan(Table::ClaimBelow, &prefix, None, left.max(1));
                cut |= below.len() >= left;
                hosts.extend(below.iter().filter_map(|(row, _)| {
                    Host::parse(Parts::of(&row[prefix.len()..]).text()).ok()
                }));
            }
            hosts.insert(host);
            if hosts.len() >= WARNED_SCAN {
                cut = true;
                break;
            }
        }
        let mut found = Vec::new();
        let mut reader = Reader::new(self.state, &certificate.project, WARNED_READ);
        for host in hosts {
            for region in &certificate.regions {
                let ranked = match reader.ranking(&host, region.as_str()) {
                    Ok(Some((_, ranked))) => ranked,
                    Ok(None) => continue,
                    Err(Enough) => return (found, true),
                };
                let active = selection::active(&ranked, self.now());
                let mine = active.is_some_and(|c| {
                    c.certificate == certificate.id && c.version == version.version
                });
                if !mine {
                    continue;
                }
                if found.len() == WARNED_NAMED {
                    return (found, true);
                }
                found.push(Runway {
                    host: host.clone(),
                    region: region.clone(),
                    until: selection::runway(&ranked, self.now())
                        .unwrap_or(version.facts.not_after),
                });
            }
        }
        (found, cut)
    }
}
