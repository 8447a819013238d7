//! Selection once more, naively: read from the recorded events alone and from what is documented, sharing no code with the core.

use std::collections::{BTreeMap, BTreeSet};

use lifecycle::event::{CertificateKind, Event, Https, Recorded};

use crate::world::PLATFORM_DOMAIN;

#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) number: u32,
    pub(crate) names: Vec<String>,
    pub(crate) from: i64,
    pub(crate) to: i64,
    pub(crate) spki: String,
    pub(crate) ready: bool,
    pub(crate) revoked: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    pub(crate) project: String,
    pub(crate) server: bool,
    pub(crate) standby: bool,
    pub(crate) place: u64,
    pub(crate) regions: BTreeSet<String>,
    pub(crate) versions: Vec<Version>,
}

#[derive(Clone, Debug, PartialEq)]
enum Mode {
    Auto,
    Bound(u64),
    Off,
}

#[derive(Clone, Debug)]
struct Claim {
    proven: bool,
    attached: BTreeMap<String, u64>,
    mode: Mode,
    modes: BTreeMap<String, Mode>,
}

/// What somebody who reads the log believes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Oracle {
    suspended: BTreeSet<String>,
    claims: BTreeMap<(String, String), Claim>,
    /// Certificates that were not deleted, by id.
    pub(crate) certificates: BTreeMap<u64, Certificate>,
    /// Keys that are kept: project and SPKI.
    pub(crate) keys: BTreeSet<(String, String)>,
    resources: BTreeMap<u64, (String, String, BTreeSet<String>)>,
    pub(crate) regions: BTreeSet<String>,
}

/// The project that answers, and certificate and version in the order in which they would be served, with their validity.
pub(crate) type Chain = Vec<(u64, u32, i64, i64)>;

fn strings<T: std::fmt::Display>(items: &[T]) -> impl Iterator<Item = String> + '_ {
    items.iter().map(ToString::to_string)
}

impl Oracle {
    pub(crate) fn read(&mut self, recorded: &Recorded) {
        let project = recorded.project.to_string();
        let claim = |host: &dyn std::fmt::Display| (host.to_string(), project.clone());
        match &recorded.event {
            Event::RegionCreated(e) => {
                self.regions.insert(e.region.to_string());
            }
            Event::ProjectSuspended(e) => {
                self.suspended.insert(e.project.to_string());
            }
            Event::ProjectResumed(e) => {
                self.suspended.remove(e.project.as_str());
            }
            Event::ResourceCreated(e) => {
                let regions = strings(&e.regions).collect();
                self.resources
                    .insert(e.id.0, (project, e.name.to_string(), regions));
            }
            Event::ResourceChanged(e) => {
                self.resources.get_mut(&e.id.0).unwrap().2 = strings(&e.regions).collect();
            }
            Event::ResourceDeleted(e) => {
                self.resources.remove(&e.id.0);
            }
            Event::DomainAdded(e) => {
                let fresh = Claim {
                    proven: false,
                    attached: BTreeMap::new(),
                    mode: Mode::Auto,
                    modes: BTreeMap::new(),
                };
                self.claims.insert(claim(&e.host), fresh);
            }
            Event::DomainProven(e) => self.claims.get_mut(&claim(&e.host)).unwrap().proven = true,
            Event::DomainMoved(e) => {
                self.claims.remove(&claim(&e.host));
                // A moved claim may be proven again as it is.
                let empty = Claim {
                    proven: false,
                    attached: BTreeMap::new(),
                    mode: Mode::Auto,
                    modes: BTreeMap::new(),
                };
                self.claims.insert(claim(&e.host), empty);
            }
            Event::DomainReleased(e) => {
                self.claims.remove(&claim(&e.host));
            }
            Event::DomainAttached(e) => {
                let claim = self.claims.get_mut(&claim(&e.host)).unwrap();
                for region in strings(&e.regions) {
                    claim.attached.insert(region, e.resource.0);
                }
            }
            Event::DomainDetached(e) => {
                let claim = self.claims.get_mut(&claim(&e.host)).unwrap();
                for region in strings(&e.regions) {
                    claim.attached.remove(&region);
                }
            }
            Event::DomainBound(e) => {
                let mode = Mode::Bound(e.certificate.0);
                self.mode(
                    &claim(&e.host),
                    e.region.as_ref().map(ToString::to_string),
                    mode,
                );
            }
            Event::DomainHttpsSet(e) => {
                let mode = match e.https {
                    Https::Auto => Mode::Auto,
                    Https::Off => Mode::Off,
                };
                self.mode(
                    &claim(&e.host),
                    e.region.as_ref().map(ToString::to_string),
                    mode,
                );
            }
            Event::DomainUnbound(e) => {
                // In each region that is asked about, what was bound there is automatic now.
                let key = claim(&e.host);
                let everywhere: Vec<String> = self.regions.iter().cloned().collect();
                let claim = self.claims.get_mut(&key).unwrap();
                let was = |claim: &Claim, region: &String| {
                    claim.modes.get(region).unwrap_or(&claim.mode).clone()
                };
                let regions = e
                    .region
                    .as_ref()
                    .map_or(everywhere, |r| vec![r.to_string()]);
                for region in &regions {
                    if matches!(was(claim, region), Mode::Bound(_)) {
                        claim.modes.insert(region.clone(), Mode::Auto);
                    }
                }
            }
            Event::KeySealed(e) => assert!(
                self.keys.insert((project, e.spki.to_string())),
                "a key was sealed twice"
            ),
            Event::KeyDestroyed(e) => assert!(
                self.keys.remove(&(project, e.spki.to_string())),
                "a key was destroyed that was not there"
            ),
            Event::CertificateAdded(e) => {
                let certificate = Certificate {
                    project,
                    server: e.kind == CertificateKind::Server,
                    standby: e.standby,
                    place: recorded.sequence,
                    regions: strings(&e.regions).collect(),
                    versions: vec![version(1, &e.facts)],
                };
                assert_eq!(
                    e.id.0, recorded.sequence,
                    "an id is the sequence of its event"
                );
                self.certificates.insert(e.id.0, certificate);
            }
            Event::CertificateReplaced(e) => {
                let versions = &mut self.certificates.get_mut(&e.id.0).unwrap().versions;
                versions.retain(|v| !e.dropped.contains(&v.number));
                versions.push(version(e.version, &e.facts));
            }
            Event::CertificateVerified(e) => self.version(e.id.0, e.version).ready = true,
            Event::CertificateRevoked(e) => self.version(e.id.0, e.version).revoked = true,
            Event::CertificateDeployed(e) => {
                let regions = strings(&e.regions);
                self.certificates
                    .get_mut(&e.id.0)
                    .unwrap()
                    .regions
                    .extend(regions);
            }
            Event::CertificateWithdrawn(e) => {
                let gone: BTreeSet<String> = strings(&e.regions).collect();
                self.certificates
                    .get_mut(&e.id.0)
                    .unwrap()
                    .regions
                    .retain(|r| !gone.contains(r));
            }
            Event::CertificateDeleted(e) => {
                self.certificates.remove(&e.id.0);
            }
            // That a version ran out is a matter of dates, and failing leaves it not ready.
            _ => {}
        }
    }

    fn version(&mut self, id: u64, number: u32) -> &mut Version {
        let versions = &mut self.certificates.get_mut(&id).unwrap().versions;
        versions.iter_mut().find(|v| v.number == number).unwrap()
    }

    fn mode(&mut self, claim: &(String, String), region: Option<String>, mode: Mode) {
        let claim = self.claims.get_mut(claim).unwrap();
        match region {
            Some(region) => {
                claim.modes.insert(region, mode);
            }
            None => {
                claim.modes.clear();
                claim.mode = mode;
            }
        }
    }

    /// The projects that hold exactly this host.
    pub(crate) fn holders(&self, host: &str) -> Vec<&str> {
        self.claims
            .iter()
            .filter(|((claimed, _), claim)| claimed == host && claim.proven)
            .map(|((_, project), _)| project.as_str())
            .collect()
    }

    /// `*.b.c` for `a.b.c`.
    fn above(host: &str) -> Option<String> {
        let (first, rest) = host.split_once('.')?;
        (first != "*" && rest.contains('.')).then(|| format!("*.{rest}"))
    }

    /// Who answers for a host in a region, and with what, in order; dates are still to be compared. None: nobody.
    pub(crate) fn chain(&self, host: &str, region: &str) -> Option<(String, Chain)> {
        // Provider domains are the platform's.
        if host == PLATFORM_DOMAIN || host.ends_with(&format!(".{PLATFORM_DOMAIN}")) {
            let there = self.resources.values().find(|(project, name, regions)| {
                host == format!("{name}--{project}.{region}.{PLATFORM_DOMAIN}")
                    && regions.contains(region)
            })?;
            let live = !self.suspended.contains(&there.0);
            let chain = if live {
                self.order("platform", host, region, &Mode::Auto)
            } else {
                Chain::new()
            };
            return Some(("platform".to_owned(), chain));
        }
        // The most specific proven claim.
        let (claimed, project) = [Some(host.to_owned()), Self::above(host)]
            .into_iter()
            .flatten()
            .find_map(|name| {
                let holder = self.holders(&name).first().map(|p| (*p).to_owned())?;
                Some((name, holder))
            })?;
        let claim = &self.claims[&(claimed, project.clone())];
        let mode = claim.modes.get(region).unwrap_or(&claim.mode);
        let refused = !claim.attached.contains_key(region)
            || *mode == Mode::Off
            || self.suspended.contains(&project);
        let chain = if refused {
            Chain::new()
        } else {
            self.order(&project, host, region, mode)
        };
        Some((project, chain))
    }

    fn order(&self, project: &str, host: &str, region: &str, mode: &Mode) -> Chain {
        let above = Self::above(host);
        let mut found: Vec<(u64, &Certificate, &Version)> = self
            .certificates
            .iter()
            .filter(|(_, c)| c.project == project && c.server && c.regions.contains(region))
            .flat_map(|(id, c)| c.versions.iter().map(move |v| (*id, c, v)))
            .filter(|(_, _, v)| {
                v.ready
                    && !v.revoked
                    && v.names
                        .iter()
                        .any(|n| n == host || Some(n) == above.as_ref())
            })
            .collect();
        // Better ones first, compared word by word as the documentation has it.
        found.sort_by(|(a_id, a, av), (b_id, b, bv)| {
            let bound = |id: &u64| *mode == Mode::Bound(*id);
            let exact = |v: &Version| v.names.iter().any(|n| n == host);
            bound(b_id)
                .cmp(&bound(a_id))
                .then(a.standby.cmp(&b.standby))
                .then(exact(bv).cmp(&exact(av)))
                .then(b.place.cmp(&a.place))
                .then(bv.number.cmp(&av.number))
        });
        found
            .into_iter()
            .map(|(id, _, v)| (id, v.number, v.from, v.to))
            .collect()
    }

    /// The one that is active at a moment.
    pub(crate) fn active(&self, host: &str, region: &str, now: i64) -> Option<(u64, u32)> {
        let (_, chain) = self.chain(host, region)?;
        chain
            .into_iter()
            .find(|(_, _, from, to)| *from <= now && now < *to)
            .map(|(id, version, _, _)| (id, version))
    }
}

fn version(number: u32, facts: &lifecycle::event::Facts) -> Version {
    Version {
        number,
        names: facts.names.clone(),
        from: facts.not_before,
        to: facts.not_after,
        spki: facts.spki.to_string(),
        ready: false,
        revoked: false,
    }
}
