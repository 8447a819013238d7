//! What a region was to serve for a host at a sequence of the past, from the histories alone.
//!
//! Each change of a claim or a certificate leaves the row as it became under its sequence, so that a question about any
//! moment reads a handful of rows and replays nothing.

use crate::names::{CertificateId, Host, ResourceId, Slug};
use crate::selection::{self, Candidate, Mode};
use crate::state::{
    Applied, Certificate, Claim, Project, ProjectStatus, Resource, Served, State, key, names_for,
};
use crate::store::{Parts, Read, Table, decode};

/// A row of a history as of a sequence.
fn as_of<T: serde::de::DeserializeOwned>(
    state: &impl Read,
    table: Table,
    key_of: Vec<u8>,
    sequence: u64,
) -> Option<(u64, T)> {
    let upper = key::at(key_of.clone(), sequence);
    let (row, value) = state.last(table, &key_of, &upper)?;
    (row.len() == upper.len()).then(|| (Parts::of(&row[key_of.len()..]).number(), decode(&value)))
}

/// What a region was to serve, and since which event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    /// Who answered.
    pub served: Served,
    /// The candidates, ranked; dates are still to be compared.
    pub ranked: Vec<Candidate>,
    /// The certificates among them, as they were.
    pub certificates: Vec<Certificate>,
    /// The sequence of the latest event that any of this rests on.
    pub since: u64,
}

/// Who served a host in a region as of a sequence, and with which candidates.
pub fn ranking_at(state: &impl Read, host: &Host, region: &str, sequence: u64) -> Option<Past> {
    let (served, mut since, active) = served_at(state, host, region, sequence)?;
    let mut certificates: Vec<Certificate> = Vec::new();
    let mut ranked: Vec<Candidate> = Vec::new();
    for name in names_for(host) {
        let prefix = key::pair(&served.project, &name);
        for (row, deleted) in ever(state, &prefix, sequence) {
            let id = CertificateId(Parts::of(&row[prefix.len()..]).number());
            if let Some(deleted) = deleted.filter(|deleted| *deleted <= sequence) {
                since = since.max(deleted);
                continue;
            }
            let Some((changed, certificate)) = as_of::<Certificate>(
                state,
                Table::CertificateHistory,
                key::certificate(id),
                sequence,
            ) else {
                continue;
            };
            since = since.max(changed);
            let known = certificates.iter().any(|c| c.id == id);
            for candidate in certificate.candidates(region, &name) {
                if !ranked.iter().any(|c| {
                    c.certificate == candidate.certificate && c.version == candidate.version
                }) {
                    ranked.push(candidate);
                }
            }
            if !known {
                certificates.push(certificate);
            }
        }
    }
    if served.resource.is_none() || !active {
        ranked.clear();
    }
    let resource = served
        .resource
        .and_then(|id| resource_at(state, id, sequence));
    if let Some((changed, resource)) = resource {
        since = since.max(changed);
        if resource.demand_public {
            ranked.retain(|c| c.public);
        }
    }
    selection::rank(selection::Policy::default(), served.mode, &mut ranked);
    Some(Past {
        served,
        ranked,
        certificates,
        since,
    })
}

/// Every certificate that named this by a sequence, in order, with the sequence at which it was deleted.
fn ever<'a>(
    state: &'a impl Read,
    prefix: &'a [u8],
    sequence: u64,
) -> impl Iterator<Item = (Vec<u8>, Option<u64>)> + 'a {
    const PAGE: usize = 256;
    let mut after: Option<Vec<u8>> = Some(prefix.to_vec());
    std::iter::from_fn(move || {
        let page = state.scan(Table::CoverEver, prefix, Some(after.as_deref()?), PAGE);
        after = (page.len() == PAGE)
            .then(|| page.last().map(|(row, _)| row.clone()))
            .flatten();
        Some(page)
    })
    .flatten()
    // An id is the sequence at which the certificate came in, so later ones follow.
    .take_while(move |(row, _)| Parts::of(&row[prefix.len()..]).number() <= sequence)
    .map(|(row, value)| {
        let deleted = (!value.is_empty()).then(|| decode(&value));
        (row, deleted)
    })
}

/// Who answered, since which event, and whether the project was active.
fn served_at(
    state: &impl Read,
    host: &Host,
    region: &str,
    sequence: u64,
) -> Option<(Served, u64, bool)> {
    let control = state.control()?;
    if host.is_within(&control.platform_domain) {
        let label = host
            .as_str()
            .strip_suffix(&format!(".{region}.{}", control.platform_domain))?;
        let (name, project) = label.split_once("--")?;
        let (changed, resource) = as_of::<Option<Resource>>(
            state,
            Table::ResourceHistory,
            key::pair(project, name),
            sequence,
        )?;
        let resource =
            resource.filter(|r| r.regions.iter().any(|there| there.as_str() == region))?;
        let (since, active) = active_at(state, project, sequence);
        let served = Served {
            project: Slug::platform(),
            resource: Some(resource.id),
            mode: Mode::Auto,
            claim: None,
        };
        return Some((served, changed.max(since), active));
    }
    for name in names_for(host) {
        let holder = as_of::<Option<Slug>>(state, Table::HolderHistory, key::text(&name), sequence);
        if let Some((held, Some(project))) = holder {
            let (changed, claim) = as_of::<Claim>(
                state,
                Table::ClaimHistory,
                key::pair(&name, &project),
                sequence,
            )?;
            let (since, active) = active_at(state, project.as_str(), sequence);
            let served = Served {
                project,
                resource: claim.attached.get(region).copied(),
                mode: claim.mode_in(region),
                claim: Some(claim),
            };
            return Some((served, held.max(changed).max(since), active));
        }
    }
    None
}

/// Whether a project was active as of a sequence, and since which event.
fn active_at(state: &impl Read, project: &str, sequence: u64) -> (u64, bool) {
    as_of::<Project>(state, Table::ProjectHistory, key::text(project), sequence)
        .map_or((0, false), |(since, project)| {
            (since, project.status == ProjectStatus::Active)
        })
}

/// A resource as it was after the event of a sequence, and since which event; None if it was deleted by then.
pub fn resource_at(state: &impl Read, id: ResourceId, sequence: u64) -> Option<(u64, Resource)> {
    let (project, name) = state.resource_ever(id)?;
    let row = key::pair(&project, &name);
    let (since, resource) =
        as_of::<Option<Resource>>(state, Table::ResourceHistory, row, sequence)?;
    // The name may have gone to another resource since.
    Some((since, resource.filter(|resource| resource.id == id)?))
}

/// A certificate as it was after the event of a sequence, with versions that have left it since.
pub fn certificate_at(state: &impl Read, id: CertificateId, sequence: u64) -> Option<Certificate> {
    let row = key::certificate(id);
    as_of(state, Table::CertificateHistory, row, sequence).map(|(_, certificate)| certificate)
}

/// What the edges of a region had last reported by a sequence.
pub fn applied_at(state: &impl Read, region: &str, sequence: u64) -> Option<(u64, Applied)> {
    as_of(state, Table::AppliedHistory, key::text(region), sequence)
}
