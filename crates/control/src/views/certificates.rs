//! Certificates: one, and the listing with its filters.
//!
//! A page reads a bounded number of rows for a bounded time, however few of them pass the filters. A page may so be short, or
//! empty, and still have a `next`: whoever wants all goes on until there is none.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use lifecycle::event::CertificateKind;
use lifecycle::history;
use lifecycle::names::{CertificateId, Host, Slug};
use lifecycle::rejection::Code;
use lifecycle::selection;
use lifecycle::state::{Certificate, State, Status, Version, key};
use lifecycle::store::{Parts, Read, Table, decode};
use wire::answer::Problem;
use wire::envelope::rfc3339;
use wire::request::ListQuery;

use super::projects::pem;
use super::usable::Places;
use super::{Answered, PAGE_BYTES, Views, limit, not_found, now, ranking};
use crate::distribution::Live;
use crate::tables::{Tables, fatal};

/// Rows that one page looks at before it leaves the rest to the next, and how many of them are read at once.
const ROWS: (usize, usize) = (10_000, 500);
/// How long one page looks at rows before it leaves the rest to the next.
const LOOKING: Duration = Duration::from_millis(100);
/// Hosts that are looked at at least, however few are listed.
const HOSTS_MIN: usize = 300;
/// Roles that are listed for one certificate, alone and in a list.
const ROLES: (usize, usize) = (1_000, 20);

/// What `--status` can ask for: statuses, and the words that people are shown.
const WORDS: [&str; 9] = [
    "verifying",
    "in progress",
    "ready",
    "active",
    "standby",
    "error",
    "expired",
    "revoked",
    "deleted",
];

/// What a page of certificates is asked for, checked.
struct Filter<'a> {
    status: Option<&'a str>,
    /// The last second at which a certificate may end.
    ends_by: Option<i64>,
}

impl<'a> Filter<'a> {
    fn of(query: &'a ListQuery, now: i64) -> Result<Self, Problem> {
        let status = query.status.as_deref();
        if status.is_some_and(|word| !WORDS.contains(&word)) {
            return Err(Problem::new(
                Code::Malformed,
                "there is no such status",
                format!("one of: {}", WORDS.join(", ")),
            ));
        }
        Ok(Self {
            status,
            ends_by: query.expiring.map(|days| now + i64::from(days) * 86_400),
        })
    }

    /// Whether a certificate passes by what stands in its row. Only [`passes_shown`](Self::passes_shown) knows the rest, which
    /// costs more.
    fn passes(&self, certificate: &Certificate, now: i64) -> bool {
        let Some(latest) = certificate.latest() else {
            return false;
        };
        let in_time = self.ends_by.is_none_or(|by| latest.facts.not_after <= by);
        let status = latest.shown(now);
        in_time
            && self.status.is_none_or(|word| match word {
                "in progress" => status == Status::Verifying,
                "active" | "standby" => status == Status::Ready,
                word => status.as_str() == word,
            })
    }

    fn passes_shown(&self, shown: &Value) -> bool {
        match self.status {
            Some(word @ ("active" | "standby")) => shown["shown"] == word,
            _ => true,
        }
    }
}

impl Views {
    pub(super) fn certificates(&self, project: &Slug, query: &ListQuery) -> Answered {
        let tables = Tables::of(&self.ledger);
        let now = now();
        let filter = Filter::of(query, now)?;
        let places = query
            .host
            .as_ref()
            .map(|host| Places::of(&tables, project, host, now))
            .transpose()?;
        let show = |certificate: &Certificate, roles: usize| {
            let mut shown = self.certificate(&tables, certificate, roles);
            if let Some(places) = &places {
                shown["usable"] = places.explain(&tables, certificate);
            }
            shown
        };
        if let Some(name) = &query.name {
            let certificate = tables
                .certificate_named(project.as_str(), name)
                .ok_or_else(|| not_found("certificate"))?;
            let mut shown = show(&certificate, ROLES.0);
            shown["chain"] = json!(chain_pem(&tables, certificate.latest()));
            return Ok(json!({"certificates": [shown], "next": null}));
        }
        let begun = Instant::now();
        let limit = limit(query.limit);
        let prefix = key::text(project);
        let mut after = query.after.as_ref().map(|name| key::pair(project, name));
        let mut found = Vec::new();
        let mut next = None;
        let (mut bytes, mut looked) = (0, 0);
        'pages: loop {
            let page = tables.scan(Table::CertificateName, &prefix, after.as_deref(), ROWS.1);
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            for (row, id) in &page {
                looked += 1;
                let certificate = tables.certificate(decode::<CertificateId>(id));
                if let Some(certificate) = certificate.filter(|c| filter.passes(c, now)) {
                    let shown = show(&certificate, ROLES.1);
                    if filter.passes_shown(&shown) {
                        bytes += shown.to_string().len();
                        found.push(shown);
                    }
                }
                let enough = found.len() >= limit || bytes > PAGE_BYTES;
                if enough || looked >= ROWS.0 || begun.elapsed() > LOOKING {
                    next = Some(Parts::of(&row[prefix.len()..]).text().to_owned());
                    break 'pages;
                }
            }
        }
        Ok(json!({"certificates": found, "next": next}))
    }

    pub(super) fn certificate(
        &self,
        tables: &Tables,
        certificate: &Certificate,
        roles_max: usize,
    ) -> Value {
        let now = now();
        let latest = certificate.latest();
        let status = latest.map_or(Status::Deleted, |v| v.shown(now));
        let (roles, behind, unserved) = self.roles(tables, certificate, roles_max);
        let active = roles.iter().any(|r| r["role"] == "active");
        let shown = match status {
            Status::Verifying => "in progress",
            Status::Ready if active => "active",
            Status::Ready => "standby",
            status => status.as_str(),
        };
        let (revocation, warnings) = latest
            .map(|v| crate::revocation::shown(&self.checks, tables, certificate, v))
            .unwrap_or_default();
        json!({
            "name": certificate.name,
            "id": certificate.id,
            "kind": certificate.kind,
            "status": status.as_str(),
            "shown": shown,
            "reasons": latest.map(|v| json!(v.reasons)).unwrap_or_default(),
            "names": latest.map(|v| json!(v.facts.names)).unwrap_or_default(),
            "not_before": latest.map(|v| rfc3339(v.facts.not_before)),
            "not_after": latest.map(|v| rfc3339(v.facts.not_after)),
            "trust": latest.and_then(|v| v.trust),
            "revocation": revocation,
            "warnings": warnings,
            "next_warning": certificate.warning.map(|(due, version)| json!({"due": rfc3339(due), "version": version})),
            "fingerprint": latest.map(|v| v.facts.fingerprint),
            "key": latest.map(|v| v.facts.key),
            "regions": certificate.regions,
            "standby": certificate.standby,
            "versions": certificate.versions.iter().rev().map(|v| version(v, now)).collect::<Vec<_>>(),
            "roles": roles,
            "served_everywhere": active && behind.is_empty() && !unserved,
            "behind": behind,
            "revision": certificate.revision,
        })
    }

    /// Where a certificate is active or standby, the edges that are behind with that, and whether a region has no edge.
    fn roles(
        &self,
        tables: &Tables,
        certificate: &Certificate,
        max: usize,
    ) -> (Vec<Value>, Vec<Value>, bool) {
        let (mut roles, mut behind, mut unserved) = (Vec::new(), Vec::new(), false);
        if certificate.kind != CertificateKind::Server || certificate.deleted {
            return (roles, behind, unserved);
        }
        for region in &certificate.regions {
            let live = self.edges.live(region);
            let mut since = 0;
            for host in self.hosts(tables, certificate, region, max.max(HOSTS_MIN)) {
                let Some(candidates) = ranking(tables, &host, region) else {
                    continue;
                };
                let mut chain = selection::chain(&candidates.1, now());
                let role = match chain.next() {
                    Some(first) if first.certificate == certificate.id => "active",
                    Some(_) if chain.any(|c| c.certificate == certificate.id) => "standby",
                    _ => continue,
                };
                if role == "active" {
                    // Also the end of what was active before it counts.
                    let head = self.ledger.head().sequence;
                    let past = history::ranking_at(tables, &host, region.as_str(), head);
                    since = since
                        .max(past.map_or(0, |past| past.since))
                        .max(certificate.changed);
                }
                if roles.len() < max {
                    roles.push(json!({"region": region, "host": host, "role": role}));
                }
            }
            if since > 0 {
                unserved |= live.of == 0;
                if live.of == 0 || live.applied < since {
                    behind.push(json!({"region": region, "edges": behind_names(&live), "applied": live.applied, "wanted": since}));
                }
            }
        }
        (roles, behind, unserved)
    }

    /// Hosts of the project that a certificate can serve in a region.
    fn hosts(
        &self,
        tables: &Tables,
        certificate: &Certificate,
        region: &Slug,
        max: usize,
    ) -> Vec<Host> {
        let mut hosts: Vec<Host> = Vec::new();
        let mut names: Vec<&String> = certificate
            .versions
            .iter()
            .flat_map(|v| &v.facts.names)
            .collect();
        names.sort();
        names.dedup();
        let platform = tables
            .control()
            .map(|c| format!("*.{region}.{}", c.platform_domain))
            .unwrap_or_default();
        for name in names {
            let Ok(host) = Host::parse(name) else {
                continue;
            };
            if host.is_wildcard() {
                let below = key::pair(&certificate.project, host.parent());
                hosts.extend(
                    tables
                        .scan(Table::ClaimBelow, &below, None, max)
                        .iter()
                        .filter_map(|(row, _)| {
                            Host::parse(Parts::of(&row[below.len()..]).text()).ok()
                        }),
                );
            }
            if *name == platform
                || tables.holder(name).as_ref() == Some(&certificate.project)
                || tables.holder(name).is_none()
            {
                hosts.push(host);
            }
            if hosts.len() >= max {
                break;
            }
        }
        hosts.sort();
        hosts.dedup();
        hosts
    }
}

fn version(version: &Version, now: i64) -> Value {
    json!({
        "version": version.version,
        "status": version.shown(now).as_str(),
        "fingerprint": version.facts.fingerprint,
        "names": version.facts.names,
        "not_before": rfc3339(version.facts.not_before),
        "not_after": rfc3339(version.facts.not_after),
        "trust": version.trust,
        "key": version.facts.key,
        "reasons": version.reasons,
        "added": version.added,
    })
}

fn behind_names(live: &Live) -> Vec<String> {
    live.behind.iter().map(ToString::to_string).collect()
}

/// What a version serves: leaf and intermediates, as PEM.
pub(crate) fn chain_pem(tables: &Tables, version: Option<&Version>) -> Option<String> {
    let mut chain = String::new();
    for digest in &version?.facts.chain {
        let der = tables
            .0
            .object(&digest.0)
            .unwrap_or_else(|error| fatal("the ledger cannot be read", &error))?;
        chain.push_str(&pem("CERTIFICATE", &der));
    }
    Some(chain)
}
