//! Views: what people and programs ask. Every answer comes from the tables in one short read transaction, and from what the
//! edges last reported.

pub(crate) mod certificates;
pub(crate) mod projects;
mod usable;

use std::sync::{Arc, Mutex};

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use ledger::Ledger;
use lifecycle::command::Asker;
use lifecycle::history;
use lifecycle::names::{Host, PLATFORM, Slug};
use lifecycle::rejection::Code;
use lifecycle::selection::{self, Candidate, Mode};
use lifecycle::state::{self, Claim, ClaimStatus, Resource, Served, State, key};
use lifecycle::store::{Parts, Read, Table, decode};
use wire::answer::Problem;
use wire::envelope::{Position, micros, rfc3339, rfc3339_micros};
use wire::request::{EventsQuery, HostQuery, ListQuery, OutcomeQuery, parse_query};

use crate::checks::Checks;
use crate::distribution::Edges;
use crate::ingestion::Ingestion;
use crate::registrar::{Observed, answer_of};
use crate::tables::{Tables, fatal};

/// Most things on a page.
const PAGE_MAX: usize = 500;
/// Things on a page unless told.
const PAGE: usize = 100;
/// Most bytes of a page: an answer must fit into one message.
const PAGE_BYTES: usize = 512 * 1024;
mod backup;

type Answered = Result<Value, Problem>;

/// What the views read.
pub struct Views {
    /// The ledger.
    pub ledger: Ledger,
    /// What edges reported.
    pub edges: Arc<Edges>,
    /// For the ingestion key.
    pub ingestion: Arc<Ingestion>,
    /// The registrar, seen from outside.
    pub registrar: Arc<Mutex<Observed>>,
    /// Why the clock stopped, if it did.
    pub clock: Arc<Mutex<Option<String>>>,
    /// The door.
    pub door: Arc<std::sync::OnceLock<bus::door::Door>>,
    /// The generation of the regions' feeds.
    pub generation: u64,
    /// Where a rebuild may put its files.
    pub scratch: std::path::PathBuf,
    /// What was last found in the world.
    pub checks: Checks,
    /// Signs checkpoints and proves events.
    pub auditor: Arc<crate::audit::Auditor>,
    /// One rebuild at a time.
    pub rebuilding: tokio::sync::Mutex<()>,
}

fn not_found(what: &str) -> Problem {
    Problem::new(Code::NotFound, format!("there is no such {what}"), "")
}

fn now() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}

fn limit(asked: Option<usize>) -> usize {
    asked.unwrap_or(PAGE).clamp(1, PAGE_MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Views {
    /// Answers a query, as JSON.
    pub async fn answer(
        &self,
        project: &Slug,
        view: &str,
        asker: &Asker,
        body: &[u8],
    ) -> Result<Vec<u8>, Problem> {
        let platform = asker.operator && project.is_platform();
        if wire::subject::PLATFORM_VIEWS.contains(&view) && !platform {
            return Err(Problem::new(
                Code::Unauthorized,
                "only an operator has this view, below query.platform",
                "",
            ));
        }
        let record = Tables::of(&self.ledger).access(asker.project.as_str(), &asker.actor);
        match record {
            Some(access) if access.revoked => {
                return Err(Problem::new(
                    Code::Unauthorized,
                    "this access was revoked",
                    "",
                ));
            }
            Some(access)
                if !lifecycle::decide::rights::allow(&access.rights, &format!("query.{view}")) =>
            {
                return Err(Problem::new(
                    Code::Unauthorized,
                    "the rights of this user do not allow this view",
                    "",
                ));
            }
            Some(access)
                if wire::subject::EXACT_VIEWS.contains(&view)
                    && !backup::allowed_exactly(&access.rights, view) =>
            {
                return Err(Problem::new(
                    Code::Unauthorized,
                    format!(
                        "this needs all of an operator's rights, or the right query.{view} by its name"
                    ),
                    format!(
                        "`chancery access create NAME --project platform --right query.{view} --out FILE`"
                    ),
                ));
            }
            Some(_) if asker.operator || asker.project == *project => {}
            _ => {
                return Err(Problem::new(
                    Code::Unauthorized,
                    "this belongs to another project",
                    "",
                ));
            }
        }
        if Tables::of(&self.ledger).project(project.as_str()).is_none() {
            return Err(not_found("project"));
        }
        let value = match view {
            "certificates" => self.certificates(project, &parse_query(body)?),
            "active-certificates" => self.serving(project, &parse_query(body)?, true),
            "fallbacks" => self.serving(project, &parse_query(body)?, false),
            "domains" => self.domains(project, &parse_query(body)?),
            "resources" => self.resources(project, &parse_query(body)?),
            "quotas" => self.quotas(project),
            "usage" => self.usage(project),
            "csrs" => self.csrs(project, &parse_query(body)?),
            "regions" => self.regions(),
            "host" => self.host(project, asker, &parse_query(body)?),
            "outcome" => return self.outcome(project, &parse_query(body)?),
            "events" => return self.events(Some(project), &parse_query(body)?),
            "log" => return self.events(None, &parse_query(body)?),
            "ingestion-key" => self.ingestion_key(),
            "projects" => self.projects(&parse_query(body)?),
            "access" => self.access(&parse_query(body)?),
            "edges" => self.all_edges(&parse_query(body)?),
            "status" => self.status(),
            "rebuild" => self.rebuild().await,
            "backup" => return self.backup(&parse_query(body)?).await,
            "checkpoint" | "checkpoint-key" | "proof" => {
                return self.auditor.answer(project, view, body);
            }
            _ => Err(not_found("view")),
        }?;
        Ok(serde_json::to_vec(&value).unwrap_or_default())
    }

    // ---- what is served

    /// For each live host of the project: the active certificate, or the fallbacks.
    fn serving(&self, project: &Slug, query: &ListQuery, active: bool) -> Answered {
        let tables = Tables::of(&self.ledger);
        let prefix = key::text(project);
        let mut rows = Vec::new();
        let after = query
            .name
            .is_none()
            .then_some(())
            .and(query.after.as_ref())
            .map(|host| key::pair(project, host));
        let page = match &query.name {
            Some(host) => vec![(key::pair(project, host), Vec::new())],
            None => tables.scan(
                Table::ProjectClaim,
                &prefix,
                after.as_deref(),
                limit(query.limit),
            ),
        };
        let mut next = None;
        for (row, _) in &page {
            let text = Parts::of(&row[prefix.len()..]).text();
            next = Some(text.to_owned());
            let (Ok(host), Some(claim)) = (Host::parse(text), tables.claim(text, project.as_str()))
            else {
                continue;
            };
            for region in claim.attached.keys() {
                let Some((_, ranked)) =
                    ranking(&tables, &host, region).filter(|(s, _)| s.project == *project)
                else {
                    continue;
                };
                let mut chain = selection::chain(&ranked, now()).map(|c| candidate(&tables, c));
                let first = chain.next();
                if active {
                    if let Some(first) = first {
                        rows.push(json!({"region": region, "host": host, "active": first}));
                    }
                } else {
                    let rest: Vec<Value> = chain.collect();
                    if !rest.is_empty() {
                        rows.push(json!({"region": region, "host": host, "fallbacks": rest}));
                    }
                }
            }
        }
        let more = query.name.is_none() && page.len() >= limit(query.limit);
        Ok(
            json!({ if active { "active-certificates" } else { "fallbacks" }: rows, "next": next.filter(|_| more) }),
        )
    }

    // ---- domains, resources, regions

    fn domains(&self, project: &Slug, query: &ListQuery) -> Answered {
        let tables = Tables::of(&self.ledger);
        if let Some(text) = &query.name {
            let claim = Host::parse(text)
                .ok()
                .and_then(|host| tables.claim(host.as_str(), project.as_str()));
            let claim = claim
                .filter(|c| c.status != ClaimStatus::Released)
                .ok_or_else(|| not_found("domain"))?;
            let mut shown = domain(&tables, &claim);
            self.ingestion
                .prover
                .show(&tables, &claim, true, &mut shown);
            return Ok(json!({"domains": [shown], "next": null}));
        }
        let prefix = key::text(project);
        let after = query.after.as_ref().map(|host| key::pair(project, host));
        let page = tables.scan(
            Table::ProjectClaim,
            &prefix,
            after.as_deref(),
            limit(query.limit),
        );
        let hosts: Vec<&str> = page
            .iter()
            .map(|(row, _)| Parts::of(&row[prefix.len()..]).text())
            .collect();
        let domains: Vec<Value> = hosts
            .iter()
            .filter_map(|host| tables.claim(host, project.as_str()))
            .map(|c| {
                let mut shown = domain(&tables, &c);
                self.ingestion.prover.show(&tables, &c, false, &mut shown);
                shown
            })
            .collect();
        let next = hosts.last().filter(|_| page.len() >= limit(query.limit));
        Ok(json!({"domains": domains, "next": next}))
    }

    fn resources(&self, project: &Slug, query: &ListQuery) -> Answered {
        let tables = Tables::of(&self.ledger);
        let platform = tables
            .control()
            .map(|c| c.platform_domain)
            .unwrap_or_default();
        if let Some(name) = &query.name {
            let resource = tables
                .resource_named(project.as_str(), name)
                .ok_or_else(|| not_found("resource"))?;
            return Ok(json!({"resources": [show_resource(&resource, &platform)], "next": null}));
        }
        let prefix = key::text(project);
        let after = query.after.as_ref().map(|name| key::pair(project, name));
        let page = tables.scan(
            Table::ResourceName,
            &prefix,
            after.as_deref(),
            limit(query.limit),
        );
        let resources: Vec<Resource> = page
            .iter()
            .filter_map(|(_, id)| tables.resource(decode(id)))
            .collect();
        let next = resources
            .last()
            .filter(|_| page.len() >= limit(query.limit))
            .map(|r| r.name.clone());
        Ok(
            json!({"resources": resources.iter().map(|r| show_resource(r, &platform)).collect::<Vec<_>>(), "next": next}),
        )
    }

    fn regions(&self) -> Answered {
        let tables = Tables::of(&self.ledger);
        let regions: Vec<Value> = tables
            .regions()
            .into_iter()
            .map(|name| {
                let live = self.edges.live(&name);
                json!({"name": name, "edges": live.of, "applied": live.applied, "behind": live.behind})
            })
            .collect();
        let countries: Vec<Value> = tables
            .scan(Table::Country, &[], None, PAGE_MAX)
            .iter()
            .map(|(row, value)| json!({"name": Parts::of(row).text(), "regions": decode::<state::Country>(value).regions}))
            .collect();
        Ok(json!({"regions": regions, "countries": countries}))
    }

    // ---- one host

    fn host(&self, project: &Slug, asker: &Asker, query: &HostQuery) -> Answered {
        let host = Host::parse(&query.host).map_err(|e| {
            Problem::new(
                Code::Malformed,
                e.to_string(),
                "give a name such as www.example.com",
            )
        })?;
        let at = match &query.at {
            None => None,
            Some(text) => Some(micros(text).ok_or_else(|| {
                Problem::new(
                    Code::Malformed,
                    "the time is not in RFC 3339",
                    "for example 2026-11-22T10:00:00Z",
                )
            })?),
        };
        let tables = Tables::of(&self.ledger);
        if let Some(region) = &query.region
            && tables.region(region.as_str()).is_none()
        {
            return Err(not_found("region"));
        }
        let sequence = at.map(|at| self.sequence_at(&tables, at));
        let regions = query
            .region
            .clone()
            .map_or_else(|| tables.regions(), |region| vec![region]);
        let mut shown = Vec::new();
        let mut revision = None;
        for region in regions {
            let found = match sequence {
                None => self.host_now(&tables, &host, &region),
                Some(sequence) => {
                    self.host_then(&tables, &host, &region, sequence, at.unwrap_or_default())
                }
            };
            let Some((served, mut entry)) = found else {
                continue;
            };
            let resource = served.resource.and_then(|id| tables.resource(id));
            // Whose host this is decides who may see it; a provider domain is its resource's project's.
            let owner = if served.claim.is_none() {
                resource.as_ref().map(|r| r.project.clone())
            } else {
                Some(served.project.clone())
            };
            let sees = (asker.operator && project.is_platform()) || owner.as_ref() == Some(project);
            if !sees
                || (query.region.is_none()
                    && served.resource.is_none()
                    && served
                        .claim
                        .as_ref()
                        .is_some_and(|c| !c.attached.is_empty()))
            {
                continue;
            }
            revision = revision.max(served.claim.as_ref().map(|c| c.revision));
            entry["resource"] = json!(resource.map(|r| r.name));
            shown.push(entry);
        }
        if shown.is_empty() {
            if let Some(claim) = tables
                .claim(host.as_str(), project.as_str())
                .filter(|_| at.is_none())
            {
                return Ok(
                    json!({"host": host, "regions": [], "status": claim.status, "revision": claim.revision}),
                );
            }
            return Err(Problem::new(
                Code::NotFound,
                "no such host is served for this project",
                "`chancery domain list` shows its domains",
            ));
        }
        Ok(json!({"host": host, "regions": shown, "revision": revision}))
    }

    fn host_now(&self, tables: &Tables, host: &Host, region: &Slug) -> Option<(Served, Value)> {
        let (served, ranked) = ranking(tables, host, region)?;
        let head = self.ledger.head().sequence;
        // Behind is who has not applied the last event that this host rests on, whatever else has happened since.
        let past = history::ranking_at(tables, host, region.as_str(), head);
        let live = self
            .edges
            .live_since(region, past.map_or(0, |past| past.since));
        let mut entry = entry(tables, region, &served, &ranked, now());
        entry["edges"] = json!({"applied": live.applied, "of": live.of, "behind": live.behind});
        entry["caused_by"] = self.uploaded(tables, &ranked, now(), head);
        Some((served, entry))
    }

    fn host_then(
        &self,
        tables: &Tables,
        host: &Host,
        region: &Slug,
        sequence: u64,
        at: i64,
    ) -> Option<(Served, Value)> {
        let seconds = at.div_euclid(1_000_000);
        let past = history::ranking_at(tables, host, region.as_str(), sequence)?;
        let reported =
            history::applied_at(tables, region.as_str(), sequence).map(|(_, applied)| applied);
        // What edges said by then covers this state if all of them had applied the event that it rests on.
        let covered = reported
            .as_ref()
            .is_some_and(|r| r.of > 0 && r.applied >= past.since);
        let mut entry = entry(tables, region, &past.served, &past.ranked, seconds);
        entry["evidence"] = json!(if covered { "reported" } else { "intended" });
        entry["at"] = json!(rfc3339_micros(at));
        entry["since"] = self.cause(tables, past.since);
        entry["caused_by"] = self.uploaded(tables, &past.ranked, seconds, sequence);
        entry["edges"] = reported.map_or(json!({"applied": 0, "of": 0, "behind": []}), |r| {
            json!({"applied": r.applied, "of": r.of, "behind": r.behind, "reported": rfc3339_micros(r.time)})
        });
        Some((past.served, entry))
    }

    /// Who brought the version that is active: the event with which it came in. Its verification, which made it active, is
    /// nobody's decision.
    fn uploaded(&self, tables: &Tables, ranked: &[Candidate], at: i64, sequence: u64) -> Value {
        let version = selection::active(ranked, at).and_then(|c| {
            history::certificate_at(tables, c.certificate, sequence)?
                .version(c.version)
                .map(|v| v.added)
        });
        version.map_or(Value::Null, |sequence| self.cause(tables, sequence))
    }

    /// The event at a sequence: what, when and who.
    fn cause(&self, tables: &Tables, sequence: u64) -> Value {
        let bytes = tables
            .0
            .event(sequence)
            .unwrap_or_else(|error| fatal("the ledger cannot be read", &error));
        let Some(event) = bytes.and_then(|bytes| wire::envelope::Envelope::decode(&bytes).ok())
        else {
            return Value::Null;
        };
        json!({"sequence": sequence, "time": rfc3339_micros(event.time), "actor": event.actor, "event": event.event.name()})
    }

    /// The last sequence whose event is not later than a moment. Times never fall, so halving finds it.
    fn sequence_at(&self, tables: &Tables, at: i64) -> u64 {
        let (mut low, mut high) = (0, self.ledger.head().sequence);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            let bytes = tables
                .0
                .event(middle)
                .unwrap_or_else(|error| fatal("the ledger cannot be read", &error));
            match bytes.and_then(|bytes| Position::of(&bytes).ok()) {
                Some(position) if position.time <= at => low = middle,
                _ => high = middle - 1,
            }
        }
        low
    }

    // ---- outcomes and events

    fn outcome(&self, project: &Slug, query: &OutcomeQuery) -> Result<Vec<u8>, Problem> {
        let tables = Tables::of(&self.ledger);
        let outcome = tables
            .0
            .outcome(project.as_str(), query.id.as_bytes())
            .unwrap_or_else(|error| fatal("the ledger cannot be read", &error));
        let outcome = outcome.ok_or_else(|| {
            Problem::new(
                Code::NotFound,
                "no command with this id was decided",
                "send it again with the same id if there was no answer",
            )
        })?;
        Ok(answer_of(&tables, &outcome, outcome.digest).to_json())
    }

    fn events(&self, project: Option<&Slug>, query: &EventsQuery) -> Result<Vec<u8>, Problem> {
        let tables = Tables::of(&self.ledger);
        let from = query.from.unwrap_or(1).max(1);
        let limit = limit(query.limit);
        let (head, page): (u64, Vec<(u64, Vec<u8>)>) = match project {
            Some(project) => (
                tables
                    .0
                    .scope_head(project.as_str())
                    .unwrap_or_else(|error| fatal("the ledger cannot be read", &error)),
                tables
                    .0
                    .scope_events(project.as_str(), from, limit)
                    .unwrap_or_else(|error| fatal("the ledger cannot be read", &error))
                    .into_iter()
                    .map(|(scope_sequence, _, bytes)| (scope_sequence, bytes))
                    .collect(),
            ),
            None => (
                self.ledger.head().sequence,
                tables
                    .0
                    .events(from, limit)
                    .unwrap_or_else(|error| fatal("the ledger cannot be read", &error)),
            ),
        };
        let mut events: Vec<Box<RawValue>> = Vec::new();
        let (mut bytes, mut next) = (0, None);
        for (sequence, event) in page {
            if bytes + event.len() > PAGE_BYTES && bytes > 0 {
                next = Some(sequence);
                break;
            }
            bytes += event.len();
            next = Some(sequence + 1);
            let text = String::from_utf8(event).map_err(|_| {
                Problem::new(
                    Code::Conflict,
                    "an event is not text",
                    "`chancery audit verify`",
                )
            })?;
            events.push(RawValue::from_string(text).map_err(|_| {
                Problem::new(
                    Code::Conflict,
                    "an event is not JSON",
                    "`chancery audit verify`",
                )
            })?);
        }
        #[derive(serde::Serialize)]
        struct Page {
            events: Vec<Box<RawValue>>,
            next: Option<u64>,
            head: u64,
        }
        let next = next.filter(|next| *next <= head);
        serde_json::to_vec(&Page { events, next, head })
            .map_err(|_| Problem::new(Code::Conflict, "the page cannot be written", ""))
    }

    fn ingestion_key(&self) -> Answered {
        let keys = self
            .ingestion
            .keys
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let current = keys
            .current()
            .ok_or_else(|| Problem::later(Code::Busy, "there is no ingestion key yet", 1_000))?;
        Ok(
            json!({"kid": current.kid, "public": data_encoding::BASE64URL_NOPAD.encode(&current.public)}),
        )
    }

    // ---- the operator's

    fn access(&self, query: &ListQuery) -> Answered {
        let tables = Tables::of(&self.ledger);
        let prefix = query.of.as_ref().map(key::text).unwrap_or_default();
        let after = query
            .after
            .as_ref()
            .and_then(|cursor| cursor.split_once('/'))
            .map(|(project, name)| key::pair(project, name));
        let page = tables.scan(Table::Access, &prefix, after.as_deref(), limit(query.limit));
        let access: Vec<Value> = page
            .iter()
            .map(|(row, value)| {
                let mut parts = Parts::of(row);
                let (project, name) = (parts.text(), parts.text());
                let record: state::Access = decode(value);
                json!({
                    "project": project, "name": name, "rights": record.rights,
                    "expires": record.expires.map(rfc3339), "revoked": record.revoked, "nkey": record.nkey,
                })
            })
            .collect();
        let next = access
            .last()
            .filter(|_| page.len() >= limit(query.limit))
            .map(|a| {
                format!(
                    "{}/{}",
                    a["project"].as_str().unwrap_or_default(),
                    a["name"].as_str().unwrap_or_default()
                )
            });
        Ok(json!({"access": access, "next": next}))
    }

    fn all_edges(&self, query: &ListQuery) -> Answered {
        let tables = Tables::of(&self.ledger);
        let mut edges = Vec::new();
        for region in tables
            .regions()
            .into_iter()
            .filter(|r| query.of.as_ref().is_none_or(|of| of == r))
        {
            for (name, edge) in tables.edges(region.as_str()) {
                let seen = self.edges.seen(&region, &name);
                let healthy = seen
                    .as_ref()
                    .is_some_and(|s| s.at.elapsed() <= crate::distribution::HEALTHY);
                edges.push(json!({
                    "region": region,
                    "name": name,
                    "evicted": edge.evicted,
                    "healthy": healthy,
                    "applied": seen.as_ref().map(|s| s.report.applied),
                    "https": seen.as_ref().and_then(|s| s.report.https.clone()),
                    "http": seen.as_ref().and_then(|s| s.report.http.clone()),
                    "problems": seen.as_ref().map(|s| s.report.problems.clone()).unwrap_or_default(),
                    "last_report": seen.as_ref().map(|s| rfc3339_micros(s.report.time * 1_000)),
                }));
            }
        }
        Ok(json!({"edges": edges, "next": null}))
    }

    fn status(&self) -> Answered {
        let tables = Tables::of(&self.ledger);
        let head = self.ledger.head();
        let observed = lock(&self.registrar).clone();
        let mut wrong: Vec<String> = Vec::new();
        if let Some(halted) = &observed.halted {
            wrong.push(format!("the registrar halted: {halted}"));
        }
        wrong.extend(observed.waiting.clone());
        if let Some(stopped) = lock(&self.clock).clone() {
            wrong.push(stopped);
        }
        let mut regions = Vec::new();
        for region in tables.regions() {
            let live = self.edges.live(&region);
            let relevant = self.edges.relevant(&region);
            if live.of == 0 {
                wrong.push(format!("region {region} has no healthy edge: nothing is served there by what this node knows"));
            }
            for (name, _) in tables
                .edges(region.as_str())
                .iter()
                .filter(|(_, edge)| !edge.evicted)
            {
                match self.edges.seen(&region, name) {
                    Some(seen) if seen.at.elapsed() <= crate::distribution::HEALTHY => {
                        wrong.extend(
                            seen.report
                                .problems
                                .iter()
                                .map(|p| format!("edge {name} of {region}: {p}")),
                        );
                    }
                    _ => wrong.push(format!("edge {name} of {region} does not report")),
                }
            }
            regions.push(json!({
                "region": region, "edges": live.of, "applied": live.applied, "wanted": relevant,
                "lag": relevant.saturating_sub(live.applied), "behind": live.behind,
            }));
        }
        let owed = tables.scan(Table::Unverified, &[], None, 1_001).len();
        let control = tables.control();
        let (audit, unsigned) = self.auditor.status();
        wrong.extend(unsigned);
        let door = self.door.get().map(
            |d| json!({"open": d.is_open(), "reconnects": d.reconnects(), "counts": d.counts()}),
        );
        Ok(json!({
            "ok": wrong.is_empty(),
            "problems": wrong,
            "version": env!("CARGO_PKG_VERSION"),
            "log": control.as_ref().map(|c| c.log.clone()),
            "epoch": control.as_ref().map(|c| c.epoch),
            "platform_domain": control.as_ref().map(|c| c.platform_domain.clone()),
            "head": head.sequence,
            "head_hash": head.hash.to_string(),
            "roles": ["ingestion", "registrar", "vault", "verifier", "clock", "distribution", "audit"],
            "registrar": observed,
            "door": door,
            "owed": {"verifications": owed, "proofs": tables.scan(Table::Pending, &[], None, 1_001).len()},
            "dns": self.ingestion.prover.status(),
            "audit": audit,
            "regions": regions,
        }))
    }

    /// Replays the log into fresh tables and compares them with the live ones, byte for byte.
    async fn rebuild(&self) -> Answered {
        let Ok(_one) = self.rebuilding.try_lock() else {
            return Err(Problem::later(
                Code::Busy,
                "a rebuild is running already",
                5_000,
            ));
        };
        let (ledger, folder) = (
            self.ledger.clone(),
            self.scratch
                .join(format!("rebuild-{}", uuid::Uuid::new_v4())),
        );
        let work = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
            let result = compare(&ledger, &folder);
            let _ = std::fs::remove_dir_all(&folder);
            result
        });
        match work.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(why)) => Err(Problem::new(
                Code::Conflict,
                format!("the log cannot be replayed: {why}"),
                "`chancery audit verify` finds where",
            )),
            Err(_) => Err(Problem::later(Code::Busy, "the rebuild ended early", 5_000)),
        }
    }
}

/// The tables that a replay rebuilds.
pub fn projection_tables() -> Vec<u8> {
    Table::ALL.iter().map(|t| *t as u8).collect()
}

fn compare(ledger: &Ledger, folder: &std::path::Path) -> Result<Value, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    // One snapshot of the live tables, so that both sides are of the same sequence however long the replay takes.
    let live = ledger.read().map_err(|e| text(&e))?;
    let head = live.head().map_err(|e| text(&e))?;
    let fresh = Ledger::open(folder.join("ledger.redb"), &ledger::Options::default())
        .map_err(|e| text(&e))?;
    crate::tables::rebuild(ledger, &fresh, head.sequence, |_| {}).map_err(|e| text(&e))?;
    let rebuilt = fresh.read().map_err(|e| text(&e))?;
    let tables = projection_tables();
    let digest = live.tables_digest(&tables).map_err(|e| text(&e))?;
    let identical = digest == rebuilt.tables_digest(&tables).map_err(|e| text(&e))?;
    let difference = if identical {
        None
    } else {
        live.first_difference(&rebuilt, &tables)
            .map_err(|e| text(&e))?
    };
    // The tree belongs to what a replay gives again: its hashes and its root.
    let tree = live.tree().map_err(|e| text(&e))?;
    let of_tree = live.first_tree_difference(&rebuilt).map_err(|e| text(&e))?;
    let same_tree = of_tree.is_none() && tree == rebuilt.tree().map_err(|e| text(&e))?;
    Ok(json!({
        "identical": identical && same_tree,
        "root": tree.root.to_string(),
        "tree": {"identical": same_tree, "difference": of_tree.map(|(level, index)| json!({"level": level, "index": index}))},
        "events": head.sequence,
        "sequence": head.sequence,
        "digest": digest.to_string(),
        "difference": difference.map(|(table, key)| json!({"table": table, "key": data_encoding::HEXLOWER.encode(&key)})),
    }))
}

/// The ranking of a host, and of a wildcard claim as of any host below it.
fn ranking(tables: &Tables, host: &Host, region: &Slug) -> Option<(Served, Vec<Candidate>)> {
    if let Some(control) = tables.control()
        && host.as_str() == format!("*.{region}.{}", control.platform_domain)
    {
        let served = Served {
            project: Slug::platform(),
            resource: None,
            mode: Mode::Auto,
            claim: None,
        };
        let mut ranked = state::candidates(tables, &served.project, host, region.as_str());
        selection::rank(selection::Policy::default(), served.mode, &mut ranked);
        return Some((served, ranked));
    }
    lifecycle::decide::ranking(tables, host, region.as_str())
}

fn candidate(tables: &Tables, c: &Candidate) -> Value {
    json!({
        "certificate": tables.certificate(c.certificate).map_or_else(|| c.certificate.to_string(), |row| row.name.to_string()),
        "id": c.certificate,
        "version": c.version,
        "fingerprint": c.fingerprint,
        "not_before": rfc3339(c.not_before),
        "not_after": rfc3339(c.not_after),
        "standby": c.standby,
        "exact": c.exact,
    })
}

fn mode_name(tables: &Tables, mode: Mode) -> (&'static str, Option<String>) {
    match mode {
        Mode::Auto => ("auto", None),
        Mode::Off => ("off", None),
        Mode::Bound(id) => match tables.certificate(id) {
            Some(certificate) if !certificate.deleted => {
                ("bound", Some(certificate.name.to_string()))
            }
            // What was bound is deleted: selection decides again.
            _ => ("auto", None),
        },
    }
}

fn entry(tables: &Tables, region: &Slug, served: &Served, ranked: &[Candidate], at: i64) -> Value {
    let mut chain = selection::chain(ranked, at);
    let active = chain.next();
    let fallbacks: Vec<Value> = chain.map(|c| candidate(tables, c)).collect();
    let (mode, bound) = mode_name(tables, served.mode);
    json!({
        "region": region,
        "project": served.project,
        "mode": mode,
        "bound": bound,
        "active": active.map(|c| candidate(tables, c)),
        "fallbacks": fallbacks,
        "runway_until": selection::runway(ranked, at).map(rfc3339),
        "why": why(tables, served, ranked, active, at),
    })
}

/// In words, why this certificate is active, or why none is.
fn why(
    tables: &Tables,
    served: &Served,
    ranked: &[Candidate],
    active: Option<&Candidate>,
    at: i64,
) -> String {
    if served.mode == Mode::Off {
        return "HTTPS is off for this host here".to_owned();
    }
    if served.resource.is_none() {
        return "the host is not attached to a resource here".to_owned();
    }
    let suspended = || {
        served
            .resource
            .and_then(|id| tables.resource(id))
            .is_some_and(|r| !state::is_served(tables, r.id))
    };
    if active.is_none() && ranked.is_empty() && suspended() {
        return "the project is suspended: HTTPS handshakes are refused, plain requests are answered 503".to_owned();
    }
    let name = |c: &Candidate| {
        tables
            .certificate(c.certificate)
            .map_or_else(|| c.certificate.to_string(), |row| row.name.to_string())
    };
    let Some(active) = active else {
        return match ranked.first() {
            None => "no ready certificate of the project covers this host here".to_owned(),
            Some(c) if at >= c.not_after => format!(
                "the last one, {}, expired at {}",
                name(c),
                rfc3339(c.not_after)
            ),
            Some(c) => format!(
                "the first one, {}, begins at {}",
                name(c),
                rfc3339(c.not_before)
            ),
        };
    };
    let mut reasons = Vec::new();
    match served.mode {
        Mode::Bound(id) if id == active.certificate => reasons.push("it is bound".to_owned()),
        _ if ranked.iter().filter(|c| c.usable(at)).count() == 1 => {
            reasons.push("it is the only usable one".to_owned())
        }
        _ if active.standby => reasons.push("only standby certificates are left".to_owned()),
        _ if active.exact && ranked.iter().any(|c| !c.exact) => {
            reasons.push("it names the host itself".to_owned())
        }
        _ => reasons.push("it was put there last".to_owned()),
    }
    for passed in ranked.iter().take_while(|c| *c != active) {
        let when = if at >= passed.not_after {
            "expired at"
        } else {
            "begins at"
        };
        let time = if at >= passed.not_after {
            passed.not_after
        } else {
            passed.not_before
        };
        reasons.push(format!(
            "{} version {} {when} {}",
            name(passed),
            passed.version,
            rfc3339(time)
        ));
    }
    reasons.truncate(4);
    reasons.join("; ")
}

fn domain(tables: &Tables, claim: &Claim) -> Value {
    let (mode, certificate) = mode_name(tables, claim.mode);
    let modes: Map<String, Value> = claim
        .modes
        .iter()
        .map(|(region, mode)| {
            let (mode, certificate) = mode_name(tables, *mode);
            (
                region.to_string(),
                json!({"mode": mode, "certificate": certificate}),
            )
        })
        .collect();
    let attached: Map<String, Value> = claim
        .attached
        .iter()
        .map(|(region, id)| {
            (
                region.to_string(),
                json!(tables.resource(*id).map(|r| r.name)),
            )
        })
        .collect();
    json!({
        "host": claim.host, "status": claim.status, "proof": claim.proof, "attached": attached, "mode": mode,
        "certificate": certificate, "modes": modes, "revision": claim.revision,
    })
}

fn show_resource(resource: &Resource, platform: &str) -> Value {
    let endpoints: Vec<Value> = resource
        .regions
        .iter()
        .map(|region| json!({"region": region, "host": state::provider_domain(resource, region.as_str(), platform)}))
        .collect();
    json!({
        "name": resource.name, "id": resource.id, "kind": resource.kind, "regions": resource.regions, "origin": resource.origin,
        "keep_host": resource.keep_host, "demand_public": resource.demand_public, "private_origin": resource.private_origin, "endpoints": endpoints, "revision": resource.revision,
    })
}

/// Whether a project is the operator's own.
pub fn is_platform(project: &str) -> bool {
    project == PLATFORM
}
