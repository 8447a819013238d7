//! How an event changes the tables. Never fails: an event in the log has happened.
//!
//! Where an event does not fit the tables (which cannot come from [`decide`](crate::decide::decide), but a reader must not
//! depend on that), it changes nothing.

use crate::event::{CertificateKind, Event, Facts, Https, Recorded};
use crate::names::{CertificateId, Digest, Host, Slug};
use crate::selection::Mode;
use crate::state::{
    Access, Applied, Certificate, Claim, ClaimStatus, Control, Country, Edge, Key, Project,
    ProjectStatus, Region, Resource, State, Status, Version, key,
};
use crate::store::{Overlay, Read, Table};

/// Applies an event.
pub fn evolve<R: Read>(state: &mut Overlay<'_, R>, recorded: &Recorded) {
    let at = At {
        sequence: recorded.sequence,
        project: &recorded.project,
        time: recorded.time,
    };
    match &recorded.event {
        Event::ControlGenesis(e) => state.put(
            Table::Control,
            key::control(),
            &Control {
                log: e.log.clone(),
                signer: e.signer,
                platform_domain: e.platform_domain.clone(),
                epoch: 0,
            },
        ),
        Event::ControlLeaderElected(e) => {
            if let Some(mut control) = state.control() {
                control.epoch = e.epoch;
                state.put(Table::Control, key::control(), &control);
            }
        }
        Event::ProjectCreated(e) => {
            state.put(
                Table::Project,
                key::text(&e.project),
                &Project {
                    status: ProjectStatus::Active,
                    created: at.sequence,
                },
            );
        }
        Event::ProjectSuspended(e) => project_status(state, &e.project, ProjectStatus::Suspended),
        Event::ProjectResumed(e) => project_status(state, &e.project, ProjectStatus::Active),
        Event::ProjectDeleted(e) => project_status(state, &e.project, ProjectStatus::Deleted),
        Event::AccessCreated(e) => state.put(
            Table::Access,
            key::pair(&e.project, &e.actor),
            &Access {
                nkey: e.nkey.clone(),
                rights: e.rights.clone(),
                expires: e.expires,
                revoked: false,
                created: at.sequence,
            },
        ),
        Event::AccessRevoked(e) => {
            if let Some(mut access) = state.access(e.project.as_str(), e.actor.as_str()) {
                access.revoked = true;
                state.put(Table::Access, key::pair(&e.project, &e.actor), &access);
            }
        }
        Event::RegionCreated(e) => {
            let region = Region {
                created: at.sequence,
                key: e.key,
                key_version: e.key_version,
            };
            state.put(Table::Region, key::text(&e.region), &region);
        }
        Event::RegionCountrySet(e) => {
            state.put(
                Table::Country,
                key::text(&e.country),
                &Country {
                    regions: e.regions.clone(),
                },
            );
        }
        Event::RegionEdgeEnrolled(e) => state.put(
            Table::Edge,
            key::pair(&e.region, &e.edge),
            &Edge {
                nkey: e.nkey.clone(),
                hpke: e.hpke,
                enrolled: at.sequence,
                evicted: false,
                token: e.token.clone(),
            },
        ),
        Event::RegionEdgeEvicted(e) => {
            if let Some(mut edge) = state.edge(e.region.as_str(), e.edge.as_str()) {
                edge.evicted = true;
                state.put(Table::Edge, key::pair(&e.region, &e.edge), &edge);
            }
        }
        Event::RegionKeyRotated(e) => {
            if let Some(mut region) = state.region(e.region.as_str()) {
                region.key = e.key;
                region.key_version = e.key_version;
                state.put(Table::Region, key::text(&e.region), &region);
            }
        }
        Event::RegionApplied(e) => {
            let applied = Applied {
                applied: e.applied,
                of: e.of,
                behind: e.behind.clone(),
                time: at.time,
            };
            state.put(Table::Applied, key::text(&e.region), &applied);
            state.put(
                Table::AppliedHistory,
                key::at(key::text(&e.region), at.sequence),
                &applied,
            );
        }
        Event::ResourceCreated(e) => {
            let resource = Resource {
                id: e.id,
                project: at.project.clone(),
                name: e.name.clone(),
                kind: e.kind,
                regions: e.regions.clone(),
                origin: e.origin.clone(),
                keep_host: e.keep_host,
                private_origin: e.private_origin,
                revision: 1,
            };
            state.put(Table::ResourceName, key::pair(at.project, &e.name), &e.id);
            state.put(Table::Resource, key::resource(e.id), &resource);
        }
        Event::ResourceChanged(e) => {
            if let Some(mut resource) = state.resource(e.id) {
                resource.regions = e.regions.clone();
                resource.origin = e.origin.clone();
                resource.keep_host = e.keep_host;
                resource.private_origin = e.private_origin;
                resource.revision += 1;
                state.put(Table::Resource, key::resource(e.id), &resource);
            }
        }
        Event::ResourceDeleted(e) => {
            state.remove(Table::Resource, key::resource(e.id));
            state.remove(Table::ResourceName, key::pair(at.project, &e.name));
        }
        Event::DomainAdded(e) => {
            let former = state.claim(e.host.as_str(), at.project.as_str());
            let claim = Claim {
                host: e.host.clone(),
                project: at.project.clone(),
                status: ClaimStatus::Pending,
                proof: None,
                attached: Default::default(),
                mode: Mode::Auto,
                modes: Default::default(),
                // Claimed again after a release: who compares revisions must see that it is not the same.
                revision: former.map_or(1, |c| c.revision + 1),
                changed: at.sequence,
            };
            state.mark(Table::ProjectClaim, key::pair(at.project, &e.host));
            put_claim(state, &at, claim);
        }
        Event::DomainProven(e) => {
            if let Some(mut claim) = state.claim(e.host.as_str(), at.project.as_str()) {
                claim.status = ClaimStatus::Proven;
                claim.proof = Some(e.proof);
                state.put(Table::Holder, key::text(&e.host), at.project);
                state.put(
                    Table::HolderHistory,
                    key::at(key::text(&e.host), at.sequence),
                    &Some(at.project),
                );
                state.mark(
                    Table::ClaimBelow,
                    key::below(at.project, e.host.parent(), e.host.as_str()),
                );
                put_claim(state, &at, claim);
            }
        }
        Event::DomainAttached(e) => change_claim(state, &at, &e.host, |claim, left| {
            for region in &e.regions {
                if let Some(before) = claim.attached.insert(region.clone(), e.resource)
                    && before != e.resource
                {
                    left.push(before);
                }
            }
        }),
        Event::DomainDetached(e) => change_claim(state, &at, &e.host, |claim, left| {
            for region in &e.regions {
                left.extend(claim.attached.remove(region));
            }
        }),
        Event::DomainBound(e) => change_claim(state, &at, &e.host, |claim, _| {
            set_mode(claim, e.region.as_ref(), Mode::Bound(e.certificate));
        }),
        Event::DomainUnbound(e) => change_claim(state, &at, &e.host, |claim, _| {
            set_mode(claim, e.region.as_ref(), Mode::Auto);
        }),
        Event::DomainHttpsSet(e) => change_claim(state, &at, &e.host, |claim, _| {
            let mode = match e.https {
                Https::Auto => Mode::Auto,
                Https::Off => Mode::Off,
            };
            set_mode(claim, e.region.as_ref(), mode);
        }),
        Event::DomainMoved(e) => end_claim(state, &at, &e.host, ClaimStatus::Moved),
        Event::DomainReleased(e) => end_claim(state, &at, &e.host, ClaimStatus::Released),
        Event::CertificateAdded(e) => {
            let certificate = Certificate {
                id: e.id,
                project: at.project.clone(),
                name: e.name.clone(),
                kind: e.kind,
                place: e.id.0,
                standby: e.standby,
                regions: e.regions.clone(),
                versions: Vec::new(),
                deleted: false,
                revision: 0,
                changed: at.sequence,
            };
            state.put(
                Table::CertificateName,
                key::pair(at.project, &e.name),
                &e.id,
            );
            add_version(state, &at, certificate, 1, &e.facts);
        }
        Event::CertificateReplaced(e) => {
            if let Some(certificate) = state.certificate(e.id) {
                add_version(state, &at, certificate, e.version, &e.facts);
            }
        }
        Event::CertificateVerified(e) => change_version(state, &at, e.id, e.version, |version| {
            version.status = Status::Ready;
            version.trust = Some(e.trust);
        }),
        Event::CertificateFailed(e) => change_version(state, &at, e.id, e.version, |version| {
            version.status = Status::Error;
            version.reasons = e.reasons.clone();
        }),
        Event::CertificateExpired(e) => {
            if let Some(version) = state
                .certificate(e.id)
                .and_then(|c| c.version(e.version).cloned())
            {
                state.remove(
                    Table::Expiry,
                    key::expiry(version.facts.not_after, e.id, e.version),
                );
            }
            change_version(state, &at, e.id, e.version, |version| {
                if version.status == Status::Ready {
                    version.status = Status::Expired;
                }
            });
        }
        Event::CertificateRevoked(e) => {
            change_version(state, &at, e.id, e.version, |version| {
                version.status = Status::Revoked
            });
        }
        Event::CertificateDeployed(e) => {
            if let Some(mut certificate) = state.certificate(e.id) {
                certificate.regions.extend(e.regions.iter().cloned());
                certificate.regions.sort();
                certificate.regions.dedup();
                certificate.revision += 1;
                put_certificate(state, &at, certificate);
            }
        }
        Event::CertificateWithdrawn(e) => {
            if let Some(mut certificate) = state.certificate(e.id) {
                certificate.regions.retain(|r| !e.regions.contains(r));
                certificate.revision += 1;
                put_certificate(state, &at, certificate);
            }
        }
        Event::CertificateDeleted(e) => {
            if let Some(mut certificate) = state.certificate(e.id) {
                state.remove(Table::CertificateName, key::pair(at.project, &e.name));
                for version in &mut certificate.versions {
                    for name in hosts(&version.facts) {
                        state.remove(Table::Cover, key::cover(at.project, &name, e.id));
                    }
                    state.remove(Table::Unverified, key::version(e.id, version.version));
                    state.remove(
                        Table::Expiry,
                        key::expiry(version.facts.not_after, e.id, version.version),
                    );
                    version.status = Status::Deleted;
                    if certificate.kind == CertificateKind::Server {
                        use_key(state, at.project, version.facts.spki, -1);
                    }
                }
                certificate.deleted = true;
                certificate.revision += 1;
                put_certificate(state, &at, certificate);
            }
        }
        Event::KeySealed(e) => {
            state.put(Table::Key, key::spki(at.project, e.spki), &Key { users: 0 })
        }
        Event::KeyDestroyed(e) => state.remove(Table::Key, key::spki(at.project, e.spki)),
        Event::CommandRejected(_) => {}
    }
}

struct At<'a> {
    sequence: u64,
    project: &'a Slug,
    time: i64,
}

fn project_status<R: Read>(state: &mut Overlay<'_, R>, project: &Slug, status: ProjectStatus) {
    if let Some(mut row) = state.project(project.as_str()) {
        row.status = status;
        state.put(Table::Project, key::text(project), &row);
    }
}

fn put_claim<R: Read>(state: &mut Overlay<'_, R>, at: &At<'_>, mut claim: Claim) {
    claim.changed = at.sequence;
    let row = key::pair(&claim.host, &claim.project);
    state.put(
        Table::ClaimHistory,
        key::at(row.clone(), at.sequence),
        &claim,
    );
    state.put(Table::Claim, row, &claim);
}

/// Changes a claim by a user's command; `left` receives resources that may have lost the host.
fn change_claim<R: Read>(
    state: &mut Overlay<'_, R>,
    at: &At<'_>,
    host: &Host,
    change: impl FnOnce(&mut Claim, &mut Vec<crate::names::ResourceId>),
) {
    let Some(mut claim) = state.claim(host.as_str(), at.project.as_str()) else {
        return;
    };
    let mut left = Vec::new();
    change(&mut claim, &mut left);
    claim.revision += 1;
    for resource in left {
        if !claim.attached.values().any(|r| *r == resource) {
            state.remove(Table::Attachment, key::attachment(resource, host.as_str()));
        }
    }
    for resource in claim.attached.values() {
        state.mark(Table::Attachment, key::attachment(*resource, host.as_str()));
    }
    put_claim(state, at, claim);
}

fn end_claim<R: Read>(state: &mut Overlay<'_, R>, at: &At<'_>, host: &Host, status: ClaimStatus) {
    let Some(mut claim) = state.claim(host.as_str(), at.project.as_str()) else {
        return;
    };
    for resource in claim.attached.values() {
        state.remove(Table::Attachment, key::attachment(*resource, host.as_str()));
    }
    // The holder may already be the project that it moved to.
    if state.holder(host.as_str()).as_ref() == Some(at.project) {
        state.remove(Table::Holder, key::text(host));
        state.put(
            Table::HolderHistory,
            key::at(key::text(host), at.sequence),
            &None::<Slug>,
        );
    }
    state.remove(
        Table::ClaimBelow,
        key::below(at.project, host.parent(), host.as_str()),
    );
    if status == ClaimStatus::Released {
        state.remove(Table::ProjectClaim, key::pair(at.project, host));
    }
    claim.attached.clear();
    claim.mode = Mode::Auto;
    claim.modes.clear();
    claim.status = status;
    claim.revision += 1;
    put_claim(state, at, claim);
}

fn set_mode(claim: &mut Claim, region: Option<&Slug>, mode: Mode) {
    match region {
        Some(region) => {
            claim.modes.insert(region.clone(), mode);
        }
        None => {
            claim.mode = mode;
            claim.modes.clear();
        }
    }
}

/// The names of a certificate that a host can have.
pub fn hosts(facts: &Facts) -> impl Iterator<Item = String> {
    facts
        .names
        .iter()
        .filter_map(|name| Host::parse(name).ok())
        .map(String::from)
}

fn put_certificate<R: Read>(state: &mut Overlay<'_, R>, at: &At<'_>, mut certificate: Certificate) {
    certificate.changed = at.sequence;
    let row = key::certificate(certificate.id);
    state.put(
        Table::CertificateHistory,
        key::at(row.clone(), at.sequence),
        &certificate,
    );
    state.put(Table::Certificate, row, &certificate);
}

fn add_version<R: Read>(
    state: &mut Overlay<'_, R>,
    at: &At<'_>,
    mut certificate: Certificate,
    version: u32,
    facts: &Facts,
) {
    if certificate.kind == CertificateKind::Server {
        for name in hosts(facts) {
            let cover = key::cover(at.project, &name, certificate.id);
            state.mark(Table::Cover, cover.clone());
            state.mark(Table::CoverEver, cover);
        }
        use_key(state, at.project, facts.spki, 1);
    }
    state.mark(Table::Unverified, key::version(certificate.id, version));
    state.mark(
        Table::Expiry,
        key::expiry(facts.not_after, certificate.id, version),
    );
    certificate.versions.push(Version {
        version,
        status: Status::Verifying,
        reasons: Vec::new(),
        trust: None,
        facts: facts.clone(),
        added: at.sequence,
    });
    certificate.revision += 1;
    put_certificate(state, at, certificate);
}

fn change_version<R: Read>(
    state: &mut Overlay<'_, R>,
    at: &At<'_>,
    id: CertificateId,
    version: u32,
    change: impl FnOnce(&mut Version),
) {
    let Some(mut certificate) = state.certificate(id) else {
        return;
    };
    let Some(row) = certificate
        .versions
        .iter_mut()
        .find(|v| v.version == version)
    else {
        return;
    };
    change(row);
    if row.status != Status::Verifying {
        state.remove(Table::Unverified, key::version(id, version));
    }
    put_certificate(state, at, certificate);
}

fn use_key<R: Read>(state: &mut Overlay<'_, R>, project: &Slug, spki: Digest, by: i32) {
    let row = key::spki(project, spki);
    if let Some(mut sealed) = state.row::<Key>(Table::Key, &row) {
        sealed.users = sealed.users.saturating_add_signed(by);
        state.put(Table::Key, row, &sealed);
    }
}
