//! What a project has and may have: quotas, counts, signing requests, and the operator's list of projects.

use data_encoding::BASE64;
use serde_json::{Value, json};

use lifecycle::names::Slug;
use lifecycle::state::{self, Csr, Quota, State, count, key};
use lifecycle::store::{Parts, Read, Table, decode};
use wire::request::ListQuery;

use super::{Answered, Views, limit, not_found};
use crate::tables::{Tables, fatal};

impl Views {
    /// How many certificates a project may have and has. What is deleted does not count; what is expired, failed or still
    /// being verified does. A number that was lowered below what is there is `exceeded`: nothing is taken away, nothing
    /// comes in.
    pub(super) fn quotas(&self, project: &Slug) -> Answered {
        let tables = Tables::of(&self.ledger);
        let quota = quota(&tables, project.as_str());
        let used = tables.count(project, count::CERTIFICATES, "");
        let mut regions = Vec::new();
        for region in tables.regions() {
            for kind in [count::SERVER, count::CA] {
                let used = tables.count(project, kind, region.as_str());
                regions.push(json!({
                    "region": region, "kind": kind, "allocated": quota.per_region, "used": used,
                    "exceeded": used > quota.per_region,
                }));
            }
        }
        Ok(json!({
            "allocated": quota.certificates,
            "used": used,
            "hard_cap": Quota::HARD_CAP,
            "exceeded": used > quota.certificates,
            "per_region": quota.per_region,
            "regions": regions,
        }))
    }

    /// How many things a project has.
    pub(super) fn usage(&self, project: &Slug) -> Answered {
        Ok(usage(&Tables::of(&self.ledger), project))
    }

    /// Signing requests whose certificates have not come. One that is asked for by its name comes with its PEM.
    pub(super) fn csrs(&self, project: &Slug, query: &ListQuery) -> Answered {
        let tables = Tables::of(&self.ledger);
        if let Some(name) = &query.name {
            let csr = tables
                .csr(project.as_str(), name)
                .ok_or_else(|| not_found("signing request"))?;
            let mut shown = self.csr(&tables, &csr);
            shown["csr"] = json!(request_pem(&tables, csr.request));
            return Ok(json!({"csrs": [shown], "next": null}));
        }
        let prefix = key::text(project);
        let after = query.after.as_ref().map(|name| key::pair(project, name));
        let limit = limit(query.limit);
        let page: Vec<Csr> = tables
            .scan(Table::Csr, &prefix, after.as_deref(), limit)
            .iter()
            .map(|(_, row)| decode(row))
            .collect();
        let next = page
            .last()
            .filter(|_| page.len() >= limit)
            .map(|csr| csr.name.clone());
        let csrs: Vec<Value> = page.iter().map(|csr| self.csr(&tables, csr)).collect();
        Ok(json!({"csrs": csrs, "next": next}))
    }

    fn csr(&self, tables: &Tables, csr: &Csr) -> Value {
        let cause = self.cause(tables, csr.created);
        json!({
            "name": csr.name, "names": csr.names, "key": csr.key, "spki": csr.spki, "request": csr.request,
            "created": cause["time"], "actor": cause["actor"],
        })
    }

    /// All projects, for the operator.
    pub(super) fn projects(&self, query: &ListQuery) -> Answered {
        let tables = Tables::of(&self.ledger);
        let after = query.after.as_ref().map(key::text);
        let prefix = query.name.as_ref().map(key::text).unwrap_or_default();
        let limit = limit(query.limit);
        let page = tables.scan(Table::Project, &prefix, after.as_deref(), limit);
        let projects: Vec<Value> = page
            .iter()
            .map(|(row, value)| {
                let project: state::Project = decode(value);
                let status = match project.status {
                    state::ProjectStatus::Active => "active",
                    state::ProjectStatus::Suspended => "suspended",
                    state::ProjectStatus::Deleted => "deleted",
                };
                let name = Parts::of(row).text();
                let usage = Slug::name(name).map_or(Value::Null, |slug| usage(&tables, &slug));
                json!({
                    "project": name,
                    "status": status,
                    "created": self.cause(&tables, project.created)["time"],
                    "quota": {"certificates": project.quota.certificates, "per_region": project.quota.per_region},
                    "usage": usage,
                    "export": project.export,
                })
            })
            .collect();
        if query.name.is_some() && projects.is_empty() {
            return Err(not_found("project"));
        }
        let next = page
            .last()
            .filter(|_| page.len() >= limit)
            .map(|(row, _)| Parts::of(row).text().to_owned());
        Ok(json!({"projects": projects, "next": next}))
    }
}

fn quota(tables: &Tables, project: &str) -> Quota {
    tables.project(project).map(|p| p.quota).unwrap_or_default()
}

fn usage(tables: &Tables, project: &Slug) -> Value {
    let of = |what| tables.count(project, what, "");
    json!({
        "certificates": of(count::CERTIFICATES), "domains": of(count::DOMAINS), "resources": of(count::RESOURCES),
        "csrs": of(count::CSRS),
    })
}

/// A signing request out of the content store, as PEM (RFC 7468 section 7).
pub(crate) fn request_pem(tables: &Tables, digest: lifecycle::names::Digest) -> Option<String> {
    let der = tables
        .0
        .object(&digest.0)
        .unwrap_or_else(|error| fatal("the ledger cannot be read", &error))?;
    Some(pem("CERTIFICATE REQUEST", &der))
}

/// A PEM block with lines of 64 characters (RFC 7468 section 2).
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        // Base64 is ASCII, so every cut is between characters.
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}
