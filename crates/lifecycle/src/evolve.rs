//! How an event changes the tables. Never fails: an event in the log has happened.
//!
//! Where an event does not fit the tables (which cannot come from [`decide`](crate::decide::decide), but a reader must not
//! depend on that), it changes nothing.

use std::collections::BTreeSet;

use crate::event::{CertificateKind, Event, Facts, Https, Recorded};
use crate::names::{CertificateId, Digest, Host, ResourceId, Slug};
use crate::selection::Mode;
use crate::state::{
    Access, Applied, Certificate, Claim, ClaimStatus, Control, Country, Csr, Edge, Key, Project,
    ProjectStatus, Quota, Region, Resource, State, Status, Version, count, key,
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
        Event::ControlGenesis(e) => {
            if state.control().is_none() {
                let control = Control {
                    log: e.log.clone(),
                    signer: e.signer,
                    platform_domain: e.platform_domain.clone(),
                    epoch: 0,
                };
                state.put(Table::Control, key::control(), &control);
            }
        }
        Event::ControlLeaderElected(e) => {
            if let Some(mut control) = state.control() {
                control.epoch = e.epoch;
                state.put(Table::Control, key::control(), &control);
            }
        }
        Event::ProjectCreated(e) => {
            if state.project(e.project.as_str()).is_none() {
                let project = Project {
                    status: ProjectStatus::Active,
                    created: at.sequence,
                    quota: Quota::default(),
                    export: true,
                };
                put_project(state, &at, &e.project, &project);
            }
        }
        Event::ProjectSuspended(e) => {
            project_status(state, &at, &e.project, ProjectStatus::Suspended);
        }
        Event::ProjectResumed(e) => project_status(state, &at, &e.project, ProjectStatus::Active),
        Event::ProjectDeleted(e) => project_status(state, &at, &e.project, ProjectStatus::Deleted),
        Event::ProjectQuotaSet(e) => {
            if let Some(mut project) = state.project(e.project.as_str()) {
                project.quota = Quota {
                    certificates: e.certificates,
                    per_region: e.per_region,
                };
                put_project(state, &at, &e.project, &project);
            }
        }
        Event::ProjectExportSet(e) => {
            if let Some(mut project) = state.project(e.project.as_str()) {
                project.export = e.export;
                put_project(state, &at, &e.project, &project);
            }
        }
        Event::AccessCreated(e) => {
            let access = Access {
                nkey: e.nkey.clone(),
                rights: e.rights.clone(),
                expires: e.expires,
                revoked: false,
                created: at.sequence,
            };
            state.put(Table::Access, key::pair(&e.project, &e.actor), &access);
            state.put(
                Table::AccessKey,
                key::text(&e.nkey),
                &(&e.project, &e.actor),
            );
        }
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
                rotated: at.sequence,
                evicted: 0,
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
        Event::RegionEdgeEnrolled(e) => {
            let edge = Edge {
                nkey: e.nkey.clone(),
                hpke: e.hpke,
                enrolled: at.sequence,
                evicted: false,
                token: e.token.clone(),
            };
            state.put(Table::Edge, key::pair(&e.region, &e.edge), &edge);
            state.put(
                Table::EdgeToken,
                key::text(&e.token),
                &(&e.region, &e.edge, &e.nkey),
            );
        }
        Event::RegionEdgeEvicted(e) => {
            if let Some(mut edge) = state.edge(e.region.as_str(), e.edge.as_str()) {
                edge.evicted = true;
                state.put(Table::Edge, key::pair(&e.region, &e.edge), &edge);
                if let Some(mut region) = state.region(e.region.as_str()) {
                    region.evicted = at.sequence;
                    state.put(Table::Region, key::text(&e.region), &region);
                }
            }
        }
        Event::RegionKeyRotated(e) => {
            if let Some(mut region) = state.region(e.region.as_str()) {
                region.key = e.key;
                region.key_version = e.key_version;
                region.rotated = at.sequence;
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
                demand_public: e.demand_public,
                revision: 1,
            };
            state.put(Table::ResourceName, key::pair(at.project, &e.name), &e.id);
            state.put(
                Table::ResourceEver,
                key::resource(e.id),
                &(at.project, &e.name),
            );
            tally(state, at.project, count::RESOURCES, "", 1);
            put_resource(state, &at, &resource);
        }
        Event::ResourceChanged(e) => {
            if let Some(mut resource) = state.resource(e.id) {
                resource.regions = e.regions.clone();
                resource.origin = e.origin.clone();
                resource.keep_host = e.keep_host;
                resource.private_origin = e.private_origin;
                resource.demand_public = e.demand_public;
                resource.revision += 1;
                put_resource(state, &at, &resource);
            }
        }
        Event::ResourceDeleted(e) => {
            if let Some(resource) = state.resource(e.id) {
                let name = key::pair(&resource.project, &resource.name);
                state.remove(Table::Resource, key::resource(e.id));
                state.put(
                    Table::ResourceHistory,
                    key::at(name.clone(), at.sequence),
                    &None::<Resource>,
                );
                state.remove(Table::ResourceName, name);
                tally(state, &resource.project, count::RESOURCES, "", -1);
            }
        }
        Event::DomainAdded(e) => {
            let former = state.claim(e.host.as_str(), at.project.as_str());
            // A claim that moved away is still listed, and counted, until it is released.
            let listed = former
                .as_ref()
                .is_some_and(|claim| claim.status != ClaimStatus::Released);
            if former.as_ref().is_some_and(|claim| {
                matches!(claim.status, ClaimStatus::Pending | ClaimStatus::Proven)
            }) {
                return;
            }
            let claim = Claim {
                host: e.host.clone(),
                project: at.project.clone(),
                status: ClaimStatus::Pending,
                proof: None,
                added: at.sequence,
                contested: None,
                moves_at: None,
                attached: Default::default(),
                mode: Mode::Auto,
                modes: Default::default(),
                // Claimed again after a release: who compares revisions must see that it is not the same.
                revision: former.map_or(1, |c| c.revision + 1),
                changed: at.sequence,
            };
            state.mark(Table::ProjectClaim, key::pair(at.project, &e.host));
            if !listed {
                tally(state, at.project, count::DOMAINS, "", 1);
            }
            put_claim(state, &at, claim);
        }
        Event::DomainProven(e) => {
            let free = state
                .holder(e.host.as_str())
                .is_none_or(|holder| holder == *at.project);
            let claim = state
                .claim(e.host.as_str(), at.project.as_str())
                .filter(|claim| free && claim.status != ClaimStatus::Released);
            if let Some(mut claim) = claim {
                claim.status = ClaimStatus::Proven;
                claim.proof = Some(e.proof);
                unschedule(state, &mut claim);
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
                if let Some(before) = claim.attached.insert(region.clone(), e.resource) {
                    left.push((before, region.clone()));
                }
            }
        }),
        Event::DomainDetached(e) => change_claim(state, &at, &e.host, |claim, left| {
            for region in &e.regions {
                let before = claim.attached.remove(region);
                left.extend(before.map(|resource| (resource, region.clone())));
            }
        }),
        Event::DomainBound(e) => change_claim(state, &at, &e.host, |claim, _| {
            set_mode(claim, e.region.as_ref(), Mode::Bound(e.certificate));
        }),
        Event::DomainUnbound(e) => change_claim(state, &at, &e.host, |claim, _| {
            // What was switched off stays off: only a binding ends.
            let unbind = |mode: &mut Mode| {
                if matches!(mode, Mode::Bound(_)) {
                    *mode = Mode::Auto;
                }
            };
            match &e.region {
                Some(region) => {
                    let mut mode = claim.mode_in(region.as_str());
                    unbind(&mut mode);
                    claim.modes.insert(region.clone(), mode);
                }
                None => {
                    unbind(&mut claim.mode);
                    claim.modes.values_mut().for_each(unbind);
                }
            }
        }),
        Event::DomainHttpsSet(e) => change_claim(state, &at, &e.host, |claim, _| {
            let mode = match e.https {
                Https::Auto => Mode::Auto,
                Https::Off => Mode::Off,
            };
            set_mode(claim, e.region.as_ref(), mode);
        }),
        Event::DomainContested(e) => amend_claim(state, &at, &e.host, |_, claim| {
            claim.contested = Some(e.until);
        }),
        Event::DomainMoveScheduled(e) => amend_claim(state, &at, &e.host, |state, claim| {
            unschedule(state, claim);
            claim.moves_at = Some(e.until);
            state.put(
                Table::Contest,
                key::contest(e.until, claim.host.as_str(), &claim.project),
                &claim.added,
            );
        }),
        Event::DomainContestLapsed(e) => amend_claim(state, &at, &e.host, |state, claim| {
            unschedule(state, claim);
            claim.contested = None;
        }),
        Event::DomainMoved(e) => end_claim(state, &at, &e.host, ClaimStatus::Moved),
        Event::DomainReleased(e) => end_claim(state, &at, &e.host, ClaimStatus::Released),
        Event::CertificateAdded(e) => {
            if state
                .certificate_named(at.project.as_str(), e.name.as_str())
                .is_some()
                || state.certificate(e.id).is_some()
            {
                return;
            }
            let certificate = Certificate {
                id: e.id,
                project: at.project.clone(),
                name: e.name.clone(),
                kind: e.kind,
                place: e.id.0,
                standby: e.standby,
                regions: Vec::new(),
                versions: Vec::new(),
                warning: None,
                deleted: false,
                revision: 0,
                changed: at.sequence,
            };
            state.put(
                Table::CertificateName,
                key::pair(at.project, &e.name),
                &e.id,
            );
            let mut certificate = add_version(state, certificate, at.sequence, 1, &e.facts);
            tally(state, at.project, count::CERTIFICATES, "", 1);
            set_regions(state, &mut certificate, e.regions.clone());
            put_certificate(state, &at, certificate);
        }
        Event::CertificateReplaced(e) => {
            let fits = |c: &Certificate| c.latest().is_some_and(|v| v.version < e.version);
            if let Some(certificate) = living(state, e.id).filter(fits) {
                let mut certificate =
                    add_version(state, certificate, at.sequence, e.version, &e.facts);
                drop_versions(state, &mut certificate, &e.dropped);
                put_certificate(state, &at, certificate);
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
                version.status = Status::Revoked;
                version.reasons = e.reasons.clone();
            });
        }
        Event::CertificateExpiring(e) => {
            if let Some(mut certificate) = living(state, e.id) {
                warned(state, &mut certificate);
                put_certificate(state, &at, certificate);
            }
        }
        Event::CertificateExported(_) => {}
        Event::CsrCreated(e) => {
            let csr = Csr {
                name: e.name.clone(),
                spki: e.spki,
                key: e.key,
                names: e.names.clone(),
                request: e.request,
                created: at.sequence,
            };
            if state.csr(at.project.as_str(), e.name.as_str()).is_none() {
                state.put(Table::Csr, key::pair(at.project, &e.name), &csr);
                state.put(Table::CsrKey, key::spki(at.project, e.spki), &e.name);
                use_key(state, at.project, e.spki, 1);
                tally(state, at.project, count::CSRS, "", 1);
            }
        }
        Event::CsrDiscarded(e) => end_csr(state, at.project, e.spki),
        Event::CertificateDeployed(e) => {
            if let Some(mut certificate) = living(state, e.id) {
                let mut regions = certificate.regions.clone();
                regions.extend(e.regions.iter().cloned());
                regions.sort();
                regions.dedup();
                set_regions(state, &mut certificate, regions);
                certificate.revision += 1;
                put_certificate(state, &at, certificate);
            }
        }
        Event::CertificateWithdrawn(e) => {
            if let Some(mut certificate) = living(state, e.id) {
                let mut regions = certificate.regions.clone();
                regions.retain(|r| !e.regions.contains(r));
                set_regions(state, &mut certificate, regions);
                certificate.revision += 1;
                put_certificate(state, &at, certificate);
            }
        }
        Event::CertificateDeleted(e) => {
            if let Some(mut certificate) = living(state, e.id) {
                let project = certificate.project.clone();
                state.remove(
                    Table::CertificateName,
                    key::pair(&project, &certificate.name),
                );
                for version in &mut certificate.versions {
                    if certificate.kind == CertificateKind::Server {
                        for name in hosts(&version.facts) {
                            let cover = key::cover(&project, &name, e.id);
                            state.remove(Table::Cover, cover.clone());
                            state.put(Table::CoverEver, cover, &at.sequence);
                        }
                        use_key(state, &project, version.facts.spki, -1);
                    }
                    forget_dues(state, e.id, version);
                    version.status = Status::Deleted;
                }
                // The row keeps where it was, for those who ask later; only the counts end.
                let regions = certificate.regions.clone();
                set_regions(state, &mut certificate, Vec::new());
                certificate.regions = regions;
                tally(state, &project, count::CERTIFICATES, "", -1);
                certificate.deleted = true;
                certificate.revision += 1;
                put_certificate(state, &at, certificate);
            }
        }
        Event::KeySealed(e) => {
            let row = key::spki(at.project, e.spki);
            if state.get(Table::Key, &row).is_none() {
                state.put(Table::Key, row, &Key { users: 0 });
            }
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

fn project_status<R: Read>(
    state: &mut Overlay<'_, R>,
    at: &At<'_>,
    project: &Slug,
    status: ProjectStatus,
) {
    let row = state.project(project.as_str());
    if let Some(mut row) = row.filter(|row| row.status != ProjectStatus::Deleted) {
        row.status = status;
        put_project(state, at, project, &row);
    }
}

fn put_project<R: Read>(state: &mut Overlay<'_, R>, at: &At<'_>, project: &Slug, row: &Project) {
    let key = key::text(project);
    state.put(
        Table::ProjectHistory,
        key::at(key.clone(), at.sequence),
        row,
    );
    state.put(Table::Project, key, row);
}

fn put_resource<R: Read>(state: &mut Overlay<'_, R>, at: &At<'_>, resource: &Resource) {
    let name = key::pair(&resource.project, &resource.name);
    state.put(
        Table::ResourceHistory,
        key::at(name, at.sequence),
        &Some(resource),
    );
    state.put(Table::Resource, key::resource(resource.id), resource);
}

/// Counts things of a project.
fn tally<R: Read>(state: &mut Overlay<'_, R>, project: &Slug, what: &str, region: &str, by: i32) {
    let row = key::count(project, what, region);
    match state.count(project, what, region).saturating_add_signed(by) {
        0 => state.remove(Table::Count, row),
        left => state.put(Table::Count, row, &left),
    }
}

/// Where a certificate is deployed from now on, counted.
fn set_regions<R: Read>(
    state: &mut Overlay<'_, R>,
    certificate: &mut Certificate,
    regions: Vec<Slug>,
) {
    let what = counted_as(certificate.kind);
    for region in certificate.regions.iter().filter(|r| !regions.contains(r)) {
        tally(state, &certificate.project, what, region.as_str(), -1);
    }
    for region in regions.iter().filter(|r| !certificate.regions.contains(r)) {
        tally(state, &certificate.project, what, region.as_str(), 1);
    }
    certificate.regions = regions;
}

/// What a certificate of this kind is counted as in a region.
pub fn counted_as(kind: CertificateKind) -> &'static str {
    match kind {
        CertificateKind::Server => count::SERVER,
        CertificateKind::Ca => count::CA,
    }
}

/// A signing request ends; its key stays with those who use it.
fn end_csr<R: Read>(state: &mut Overlay<'_, R>, project: &Slug, spki: Digest) {
    let row = key::spki(project, spki);
    if let Some(name) = state.row::<Slug>(Table::CsrKey, &row) {
        state.remove(Table::CsrKey, row);
        state.remove(Table::Csr, key::pair(project, &name));
        use_key(state, project, spki, -1);
        tally(state, project, count::CSRS, "", -1);
    }
}

/// A certificate that was not deleted.
fn living<R: Read>(state: &Overlay<'_, R>, id: CertificateId) -> Option<Certificate> {
    state.certificate(id).filter(|c| !c.deleted)
}

fn put_claim<R: Read>(state: &mut Overlay<'_, R>, at: &At<'_>, mut claim: Claim) {
    claim.changed = at.sequence;
    let row = key::pair(&claim.host, &claim.project);
    let waits = key::pair(&claim.project, &claim.host);
    // Only what changed is written: most changes of a claim leave its proof alone.
    let waiting = claim.status == ClaimStatus::Pending;
    if claim.added == at.sequence || waiting != state.get(Table::Pending, &waits).is_some() {
        if waiting {
            state.put(Table::Pending, waits, &claim.added);
        } else {
            state.remove(Table::Pending, waits);
        }
    }
    state.put(
        Table::ClaimHistory,
        key::at(row.clone(), at.sequence),
        &claim,
    );
    state.put(Table::Claim, row, &claim);
}

/// Changes a claim by what the system found, which is no revision of it.
fn amend_claim<R: Read>(
    state: &mut Overlay<'_, R>,
    at: &At<'_>,
    host: &Host,
    change: impl FnOnce(&mut Overlay<'_, R>, &mut Claim),
) {
    if let Some(mut claim) = state.claim(host.as_str(), at.project.as_str()) {
        change(state, &mut claim);
        put_claim(state, at, claim);
    }
}

/// Nothing is scheduled for a claimant any more.
fn unschedule<R: Read>(state: &mut Overlay<'_, R>, claim: &mut Claim) {
    if let Some(until) = claim.moves_at.take() {
        let row = key::contest(until, claim.host.as_str(), &claim.project);
        state.remove(Table::Contest, row);
    }
}

/// Changes a claim by a user's command; `left` receives the resources that had the host, with the regions.
fn change_claim<R: Read>(
    state: &mut Overlay<'_, R>,
    at: &At<'_>,
    host: &Host,
    change: impl FnOnce(&mut Claim, &mut Vec<(ResourceId, Slug)>),
) {
    let Some(mut claim) = state.claim(host.as_str(), at.project.as_str()) else {
        return;
    };
    let mut left = Vec::new();
    change(&mut claim, &mut left);
    claim.revision += 1;
    for (resource, region) in &left {
        detach(state, host, *resource, region);
    }
    for (region, resource) in &claim.attached {
        state.mark(Table::Attachment, key::attachment(*resource, host.as_str()));
        state.mark(
            Table::AttachedIn,
            key::attached_in(*resource, region.as_str(), host.as_str()),
        );
    }
    put_claim(state, at, claim);
}

/// Takes a host out of a resource's indexes. What remains attached is marked again by the caller.
fn detach<R: Read>(state: &mut Overlay<'_, R>, host: &Host, resource: ResourceId, region: &Slug) {
    state.remove(Table::Attachment, key::attachment(resource, host.as_str()));
    state.remove(
        Table::AttachedIn,
        key::attached_in(resource, region.as_str(), host.as_str()),
    );
}

fn end_claim<R: Read>(state: &mut Overlay<'_, R>, at: &At<'_>, host: &Host, status: ClaimStatus) {
    let Some(mut claim) = state.claim(host.as_str(), at.project.as_str()) else {
        return;
    };
    for (region, resource) in &claim.attached {
        detach(state, host, *resource, region);
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
        if claim.status != ClaimStatus::Released {
            tally(state, at.project, count::DOMAINS, "", -1);
        }
        state.remove(Table::ProjectClaim, key::pair(at.project, host));
    }
    unschedule(state, &mut claim);
    claim.contested = None;
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

/// The stages of the warnings before a version's end: days before it, of a life of 90 days or more.
const WARNINGS: [i64; 5] = [30, 14, 7, 3, 1];
const DAY: i64 = 86_400;

/// When the warnings of the end of a version are due, Unix seconds: 30, 14, 7, 3 and 1 days before it, and the same parts of
/// a life that is shorter than 90 days.
pub fn warnings(facts: &Facts) -> [i64; 5] {
    let life = facts.not_after.saturating_sub(facts.not_before).max(0);
    WARNINGS.map(|days| {
        let before = if life < 90 * DAY {
            life * days / 90
        } else {
            days * DAY
        };
        facts.not_after.saturating_sub(before)
    })
}

/// The version whose end is to be warned of: the latest one that is ready.
fn warned_of(certificate: &Certificate) -> Option<&Version> {
    if certificate.deleted {
        return None;
    }
    certificate
        .versions
        .iter()
        .rfind(|v| v.status == Status::Ready)
}

/// Takes away the warning that is due next.
fn warned<R: Read>(state: &mut Overlay<'_, R>, certificate: &mut Certificate) {
    if let Some((due, _)) = certificate.warning.take() {
        state.remove(Table::Warning, key::warning(due, certificate.id));
    }
}

/// Plans the next warning. One that is planned for the same version stays, also when its time has passed and the clock has
/// not come to it yet.
fn plan_warning<R: Read>(state: &mut Overlay<'_, R>, at: &At<'_>, certificate: &mut Certificate) {
    let now = at.time.div_euclid(1_000_000);
    let next = warned_of(certificate).and_then(|v| {
        let due = warnings(&v.facts).into_iter().find(|due| *due > now)?;
        Some((due, v.version))
    });
    let planned_for = certificate.warning.map(|(_, version)| version);
    if planned_for.is_some() && planned_for == warned_of(certificate).map(|v| v.version) {
        return;
    }
    warned(state, certificate);
    if let Some((due, version)) = next {
        state.put(Table::Warning, key::warning(due, certificate.id), &version);
        certificate.warning = next;
    }
}

fn put_certificate<R: Read>(state: &mut Overlay<'_, R>, at: &At<'_>, mut certificate: Certificate) {
    certificate.changed = at.sequence;
    plan_warning(state, at, &mut certificate);
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
    mut certificate: Certificate,
    added: u64,
    version: u32,
    facts: &Facts,
) -> Certificate {
    if certificate.kind == CertificateKind::Server {
        for name in hosts(facts) {
            let cover = key::cover(&certificate.project, &name, certificate.id);
            state.mark(Table::Cover, cover.clone());
            state.mark(Table::CoverEver, cover);
        }
        // A key that nobody used before has no signing request either: most uploads need no look.
        if use_key(state, &certificate.project, facts.spki, 1) > 1 {
            end_csr(state, &certificate.project, facts.spki);
        }
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
        added,
    });
    certificate.revision += 1;
    certificate
}

/// Takes versions out of a certificate, with their names where no version that stays has them. Their history remains.
fn drop_versions<R: Read>(
    state: &mut Overlay<'_, R>,
    certificate: &mut Certificate,
    dropped: &[u32],
) {
    let (left, stay): (Vec<Version>, Vec<Version>) = std::mem::take(&mut certificate.versions)
        .into_iter()
        .partition(|v| dropped.contains(&v.version));
    certificate.versions = stay;
    let kept: BTreeSet<String> = certificate
        .versions
        .iter()
        .flat_map(|v| hosts(&v.facts))
        .collect();
    for version in &left {
        forget_dues(state, certificate.id, version);
        if certificate.kind == CertificateKind::Server {
            for name in hosts(&version.facts).filter(|name| !kept.contains(name)) {
                let cover = key::cover(&certificate.project, &name, certificate.id);
                state.remove(Table::Cover, cover);
            }
            use_key(state, &certificate.project, version.facts.spki, -1);
        }
    }
}

/// Nothing more is owed to a version.
fn forget_dues<R: Read>(state: &mut Overlay<'_, R>, id: CertificateId, version: &Version) {
    state.remove(Table::Unverified, key::version(id, version.version));
    state.remove(
        Table::Expiry,
        key::expiry(version.facts.not_after, id, version.version),
    );
}

fn change_version<R: Read>(
    state: &mut Overlay<'_, R>,
    at: &At<'_>,
    id: CertificateId,
    version: u32,
    change: impl FnOnce(&mut Version),
) {
    let Some(mut certificate) = living(state, id) else {
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

/// Counts the users of a key; gives how many there are now.
fn use_key<R: Read>(state: &mut Overlay<'_, R>, project: &Slug, spki: Digest, by: i32) -> u32 {
    let row = key::spki(project, spki);
    let Some(mut sealed) = state.row::<Key>(Table::Key, &row) else {
        return 0;
    };
    sealed.users = sealed.users.saturating_add_signed(by);
    state.put(Table::Key, row, &sealed);
    sealed.users
}
