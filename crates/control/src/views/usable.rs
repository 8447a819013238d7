//! Why a certificate can, or cannot, serve a host: for each region, with the command that mends it.
//!
//! A list that shows only what fits hides the reason of what does not. So every certificate is shown, each with what is in
//! its way, by the same ranking that the edges follow.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use lifecycle::event::{CertificateKind, Trust};
use lifecycle::names::{Host, Slug};
use lifecycle::rejection::{Code, Reason};
use lifecycle::selection::{self, Candidate, Mode};
use lifecycle::state::{self, Certificate, ClaimStatus, Served, State, Status, Version};
use wire::answer::Problem;
use wire::envelope::rfc3339;

use super::ranking;
use crate::tables::Tables;

/// One region, as it is for the host.
struct Place {
    region: Slug,
    served: Option<Served>,
    /// What may be served now, in order.
    chain: Vec<Candidate>,
    /// What is in the way of every certificate of the project here.
    obstacle: Option<Reason>,
    /// The certificate that was put first by hand.
    bound: Option<String>,
    demands_public: bool,
}

/// The host in all regions: looked up once for a whole page of certificates.
pub(super) struct Places {
    host: Host,
    now: i64,
    places: Vec<Place>,
}

impl Places {
    /// Looks the host up as a project sees it.
    pub(super) fn of(
        tables: &Tables,
        project: &Slug,
        host: &str,
        now: i64,
    ) -> Result<Self, Problem> {
        let host = Host::parse(host).map_err(|error| {
            Problem::new(
                Code::Malformed,
                error.to_string(),
                "give a name such as www.example.com",
            )
        })?;
        let places = tables
            .regions()
            .into_iter()
            .map(|region| place(tables, project, &host, region, now))
            .collect();
        Ok(Self { host, now, places })
    }

    /// Whether and where a certificate can serve the host. Regions of which neither the host nor the certificate knows are
    /// left out.
    pub(super) fn explain(&self, tables: &Tables, certificate: &Certificate) -> Value {
        let general = self.general(certificate);
        let mut regions = Vec::new();
        let mut usable = false;
        let mut why: Vec<Reason> = general.clone();
        for place in &self.places {
            let attached = place.served.as_ref().is_some_and(|s| s.resource.is_some());
            if !attached && !certificate.regions.contains(&place.region) {
                continue;
            }
            let rank = place
                .chain
                .iter()
                .position(|c| c.certificate == certificate.id);
            if let Some(rank) = rank {
                usable = true;
                regions.push(json!({
                    "region": place.region, "usable": true, "role": if rank == 0 { "active" } else { "fallback" },
                    "place": rank + 1, "of": place.chain.len(), "note": note(tables, place, certificate, rank), "why": [],
                }));
                continue;
            }
            let mut reasons = general.clone();
            reasons.extend(self.in_place(place, certificate));
            if reasons.is_empty() {
                // Everything that is known fits, and the ranking says no all the same.
                reasons.push(Reason::new(
                    Code::Conflict,
                    format!("the ranking of region {} leaves it out", place.region),
                    format!("chancery host {}", self.host),
                ));
            }
            why.extend(reasons.iter().filter(|r| !general.contains(r)).cloned());
            regions.push(json!({"region": place.region, "usable": false, "why": reasons}));
        }
        if usable {
            why.clear();
        } else if why.is_empty() {
            why.push(not_attached(&self.host, None));
        }
        json!({"host": self.host, "usable": usable, "why": why, "regions": regions})
    }

    /// What is in a certificate's way wherever it is.
    fn general(&self, certificate: &Certificate) -> Vec<Reason> {
        if certificate.kind == CertificateKind::Ca {
            return vec![Reason::new(
                Code::NotAServerCertificate,
                "it is of kind ca: clients are checked against it, and no host is served with it",
                "add a certificate of kind server",
            )];
        }
        let covers = |v: &&Version| v.facts.names.iter().any(|name| self.host.covered_by(name));
        let Some(latest) = certificate.latest() else {
            return Vec::new();
        };
        let name = &certificate.name;
        let Some(version) = certificate.versions.iter().rfind(covers) else {
            return vec![self.names(certificate, latest)];
        };
        let mut reasons = Vec::new();
        let replace = || format!("chancery certificate replace {name} --chain FILE --key FILE");
        match version.shown(self.now) {
            Status::Verifying => reasons.push(Reason::new(
                Code::InProgress,
                "it is still being verified",
                format!("chancery certificate wait {name} --status ready"),
            )),
            Status::Error => {
                reasons.extend(version.reasons.iter().cloned());
                if reasons.is_empty() {
                    reasons.push(Reason::new(
                        Code::ChainUntrusted,
                        "its verification failed",
                        replace(),
                    ));
                }
            }
            Status::Revoked => reasons.push(Reason::new(
                Code::Revoked,
                "its CA has revoked it",
                replace(),
            )),
            Status::Expired => reasons.push(Reason::new(
                Code::Expired,
                format!("it ended at {}", rfc3339(version.facts.not_after)),
                replace(),
            )),
            Status::Ready if self.now < version.facts.not_before => reasons.push(Reason::new(
                Code::NotYetValid,
                format!("it begins at {}", rfc3339(version.facts.not_before)),
                "it is served from then on, without anybody doing anything",
            )),
            Status::Ready | Status::Deleted => {}
        }
        reasons
    }

    /// That no name covers the host, with the one that comes nearest and why it does not.
    fn names(&self, certificate: &Certificate, version: &Version) -> Reason {
        let host = &self.host;
        let names = &version.facts.names;
        let found = match nearest(host, names) {
            Some((name, Miss::Apex)) => {
                format!(
                    "{name} stands for the names one level below {}, not for {host} itself",
                    name.trim_start_matches("*.")
                )
            }
            Some((name, Miss::Depth)) => {
                format!("{name} stands for one level only, and {host} is deeper")
            }
            Some((name, Miss::Other)) if names.len() == 1 => format!("it names {name} only"),
            Some((name, Miss::Other)) => {
                format!(
                    "none of its {} names is {host}; the nearest is {name}",
                    names.len()
                )
            }
            None => "it names no host".to_owned(),
        };
        Reason::new(
            Code::NameMismatch,
            found,
            format!(
                "get a certificate that names {host} and put it in: chancery certificate replace {} --chain FILE --key FILE",
                certificate.name
            ),
        )
    }

    /// What is in a certificate's way in a region.
    fn in_place(&self, place: &Place, certificate: &Certificate) -> Vec<Reason> {
        let mut reasons: Vec<Reason> = place.obstacle.iter().cloned().collect();
        if !certificate.regions.contains(&place.region) {
            reasons.push(Reason::new(
                Code::NotFound,
                format!("it is not deployed in region {}", place.region),
                format!(
                    "chancery certificate deploy {} --region {}",
                    certificate.name, place.region
                ),
            ));
        }
        let public = || {
            certificate
                .versions
                .iter()
                .any(|v| v.trust == Some(Trust::Public))
        };
        if place.demands_public && !public() {
            reasons.push(Reason::new(
                Code::ChainUntrusted,
                "the resource demands publicly trusted certificates, and this one is not",
                "add a certificate of a public CA, or turn it off: chancery resource set NAME --demand-public false",
            ));
        }
        reasons
    }
}

/// In words, what place a usable certificate has.
fn note(tables: &Tables, place: &Place, certificate: &Certificate, rank: usize) -> String {
    if rank == 0 {
        return match &place.bound {
            Some(name) if *name == certificate.name.as_str() => "it is bound".to_owned(),
            _ => "it is served".to_owned(),
        };
    }
    let first = place
        .chain
        .first()
        .and_then(|c| tables.certificate(c.certificate))
        .map(|c| c.name.to_string())
        .unwrap_or_default();
    let because = if place.bound.as_deref() == Some(first.as_str()) {
        format!("{first} is bound")
    } else if certificate.standby {
        format!("it is a standby, and {first} is served")
    } else {
        format!("{first} is served")
    };
    format!("fallback {rank}: {because}")
}

fn not_attached(host: &Host, region: Option<&Slug>) -> Reason {
    let (where_, flag) = match region {
        Some(region) => (
            format!(" in region {region}"),
            format!(" --region {region}"),
        ),
        None => (" in any region".to_owned(), String::new()),
    };
    Reason::new(
        Code::NotFound,
        format!("the host is not attached to a resource{where_}"),
        format!("chancery domain attach {host} --resource NAME{flag}"),
    )
}

fn place(tables: &Tables, project: &Slug, host: &Host, region: Slug, now: i64) -> Place {
    let found = ranking(tables, host, &region);
    let (served, ranked) = match found {
        Some((served, ranked)) => (Some(served), ranked),
        None => (None, Vec::new()),
    };
    let ours = served.as_ref().is_some_and(|s| s.project == *project);
    let resource = served.as_ref().and_then(|s| s.resource);
    let obstacle = match &served {
        _ if !ours => Some(unheld(tables, project, host, served.as_ref())),
        // The wildcard of a region's provider domains has no claim and no resource of its own.
        Some(s) if s.claim.is_none() => None,
        Some(s) if s.mode == Mode::Off => Some(Reason::new(
            Code::Conflict,
            format!("HTTPS is off for the host in region {region}"),
            format!("chancery domain https {host} auto --region {region}"),
        )),
        Some(_) => match resource {
            None => Some(not_attached(host, Some(&region))),
            Some(id) if !state::is_served(tables, id) => Some(Reason::new(
                Code::Conflict,
                "the project is suspended, and nothing of it is served",
                "an operator can resume it: chancery project resume NAME",
            )),
            Some(_) => None,
        },
        None => None,
    };
    let bound = match served.as_ref().map(|s| s.mode) {
        Some(Mode::Bound(id)) => tables
            .certificate(id)
            .filter(|c| !c.deleted)
            .map(|c| c.name.to_string()),
        _ => None,
    };
    Place {
        chain: match ours {
            true => once(selection::chain(&ranked, now)),
            false => Vec::new(),
        },
        demands_public: state::demands_public(tables, resource),
        served: served.filter(|_| ours),
        region,
        obstacle,
        bound,
    }
}

/// The best version of each certificate.
fn once<'a>(chain: impl Iterator<Item = &'a Candidate>) -> Vec<Candidate> {
    let mut seen = BTreeSet::new();
    chain
        .filter(|c| seen.insert(c.certificate))
        .cloned()
        .collect()
}

/// Why the host is not this project's to serve.
fn unheld(tables: &Tables, project: &Slug, host: &Host, served: Option<&Served>) -> Reason {
    if served.is_some_and(|s| s.claim.is_none()) {
        return Reason::new(
            Code::DomainReserved,
            "it is a provider domain, which is served with the platform's own certificate",
            "claim a host of your own: chancery domain add HOST --resource NAME",
        );
    }
    let claim = state::names_for(host).find_map(|name| tables.claim(&name, project.as_str()));
    let pending = claim.filter(|c| c.status == ClaimStatus::Pending);
    if served.is_some() {
        return Reason::new(
            Code::DomainClaimed,
            "another project holds the host",
            match &pending {
                Some(claim) => format!(
                    "prove that it is yours: chancery domain check {}",
                    claim.host
                ),
                None => {
                    format!("if it is yours, claim it and prove it: chancery domain add {host}")
                }
            },
        );
    }
    match pending {
        Some(claim) => Reason::new(
            Code::DomainUnproven,
            "the claim of the host is not proven yet",
            format!(
                "`chancery domain show {0}` tells which record to make; then: chancery domain check {0}",
                claim.host
            ),
        ),
        None => Reason::new(
            Code::DomainUnproven,
            "the project has not claimed the host",
            format!("chancery domain add {host} --resource NAME"),
        ),
    }
}

/// Why a name misses a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Miss {
    /// A wildcard, and the host is the name that it stands below.
    Apex,
    /// A wildcard further up: it stands for one level.
    Depth,
    /// Another name.
    Other,
}

/// The name that comes nearest to a host that none covers.
fn nearest<'a>(host: &Host, names: &'a [String]) -> Option<(&'a str, Miss)> {
    let score = |name: &str| {
        let wildcard = name.strip_prefix("*.");
        if wildcard == Some(host.as_str()) {
            return (usize::MAX, Miss::Apex);
        }
        if let Some(base) = wildcard
            && host.is_within(base)
        {
            return (usize::MAX - 1, Miss::Depth);
        }
        let same = host
            .as_str()
            .rsplit('.')
            .zip(name.rsplit('.'))
            .take_while(|(a, b)| a == b)
            .count();
        (same, Miss::Other)
    };
    // The first of those that are equally near.
    let best = names
        .iter()
        .map(|name| (score(name), name.as_str()))
        .reduce(|best, next| if next.0.0 > best.0.0 { next } else { best })?;
    Some((best.1, best.0.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_says_why_it_does_not_cover() {
        let near = |host: &str, names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
            let host = Host::parse(host).expect("a host");
            nearest(&host, &names).map(|(name, miss)| (name.to_owned(), miss))
        };
        let is = |name: &str, miss| Some((name.to_owned(), miss));
        let names = ["other.net", "*.example.com", "www.example.org"];
        assert_eq!(near("example.com", &names), is("*.example.com", Miss::Apex));
        assert_eq!(
            near("cdn.oss.example.com", &names),
            is("*.example.com", Miss::Depth)
        );
        assert_eq!(
            near("oss.example.org", &names),
            is("www.example.org", Miss::Other)
        );
        assert_eq!(near("a.test", &names), is("other.net", Miss::Other));
        assert_eq!(near("a.test", &[]), None);
    }
}
