//! What holds after each command of any history.

use std::collections::{BTreeMap, BTreeSet};

use lifecycle::command::*;
use lifecycle::decide::ranking;
use lifecycle::event::*;
use lifecycle::evolve::evolve;
use lifecycle::history::ranking_at;
use lifecycle::names::{CertificateId, Digest, Host, Slug};
use lifecycle::rejection::{Code, Reason};
use lifecycle::selection;
use lifecycle::state::{Key, State, count, key};
use lifecycle::store::{Memory, Overlay, Read, Table, decode};
use proptest::prelude::*;

use crate::oracle::Oracle;
use crate::world::*;

const HOSTS: [&str; 7] = [
    "example.com",
    "www.example.com",
    "api.example.com",
    "*.example.com",
    "a.www.example.com",
    "*.www.example.com",
    "shop.example.net",
];
/// Hosts that clients ask for: those of claims, one that only a wildcard covers, and provider domains.
const ASKED: [&str; 10] = [
    "example.com",
    "www.example.com",
    "api.example.com",
    "*.example.com",
    "a.www.example.com",
    "b.www.example.com",
    "*.www.example.com",
    "shop.example.net",
    "web--acme.ru-1.chancery.test",
    "web--beta.eu-1.chancery.test",
];
const SANS: [&str; 9] = [
    "example.com",
    "www.example.com",
    "api.example.com",
    "*.example.com",
    "a.www.example.com",
    "*.www.example.com",
    "shop.example.net",
    "*.ru-1.chancery.test",
    "web--beta.eu-1.chancery.test",
];
const PROJECTS: [&str; 3] = ["acme", "beta", "platform"];
const REGIONS: [&str; 3] = ["eu-1", "ru-1", "ru-2"];
const CERTIFICATES: [&str; 4] = ["one", "two", "three", "four"];
const RESOURCES: [&str; 2] = ["web", "shop"];

/// So many cases, unless `PROPTEST_CASES` asks for more (or fewer).
fn config(cases: u32) -> ProptestConfig {
    let asked = ProptestConfig::default();
    ProptestConfig {
        cases: match std::env::var_os("PROPTEST_CASES") {
            Some(_) => asked.cases,
            None => cases,
        },
        max_shrink_time: 15_000,
        ..asked
    }
}

/// One step of a history: numbers that choose among what there is.
#[derive(Clone, Debug)]
struct Step {
    what: u8,
    project: usize,
    host: usize,
    certificate: usize,
    resource: usize,
    regions: Vec<usize>,
    sans: Vec<usize>,
    key: u64,
    days: (i64, i64),
    flag: bool,
    other: bool,
    pick: usize,
    wait: i64,
}

fn step() -> impl Strategy<Value = Step> {
    (
        (
            0u8..100,
            0usize..8,
            0..HOSTS.len(),
            0..CERTIFICATES.len(),
            0..RESOURCES.len(),
        ),
        prop::collection::vec(0..REGIONS.len(), 0..3),
        prop::collection::vec(0..SANS.len(), 1..4),
        (
            0u64..6,
            (0i64..3, 1i64..50),
            any::<bool>(),
            any::<bool>(),
            any::<usize>(),
        ),
        prop_oneof![20 => Just(0i64), 6 => 1i64..DAY, 1 => 3 * DAY..40 * DAY],
    )
        .prop_map(
            |(
                (what, project, host, certificate, resource),
                regions,
                sans,
                (key, days, flag, other, pick),
                wait,
            )| Step {
                what,
                // Mostly one project, so that its histories grow dense; the others to see that they do not mix.
                project: match project {
                    0..=4 => 0,
                    5 | 6 => 1,
                    _ => 2,
                },
                host,
                certificate,
                resource,
                regions,
                sans,
                key,
                days,
                flag,
                other,
                pick,
                wait,
            },
        )
}

/// A history that is played with all its checks.
struct Play {
    world: World,
    oracle: Oracle,
    read: usize,
    now: i64,
    fingerprints: u64,
    /// The tables as they were after each batch, by the sequence of its last event.
    snapshots: Vec<(u64, Memory)>,
}

impl Play {
    fn new() -> Self {
        let mut play = Self {
            world: estate(),
            oracle: Oracle::default(),
            read: 0,
            now: NOW,
            fingerprints: 100,
            snapshots: Vec::new(),
        };
        play.catch_up();
        play
    }

    /// A play that begins where two projects are at work already, so that more of what follows hits something.
    fn furnished() -> Self {
        let mut play = Self::new();
        for (project, resource) in [("acme", "web"), ("acme", "shop"), ("beta", "web")] {
            let create = CreateResource {
                demand_public: false,
                name: slug(resource),
                kind: ResourceKind::Cdn,
                regions: slugs(&REGIONS),
                origin: "https://origin.example.net".into(),
                keep_host: false,
            };
            play.world.run(Who::User, project, create, NOW).unwrap();
        }
        for (project, asked) in [
            ("acme", "www.example.com"),
            ("acme", "*.example.com"),
            ("beta", "api.example.com"),
            ("acme", "*.www.example.com"),
        ] {
            let add = AddDomain {
                host: asked.into(),
                resource: Some(slug("web")),
                regions: vec![],
            };
            play.world.run(Who::Operator, project, add, NOW).unwrap();
        }
        play.catch_up();
        play
    }

    /// A binding that fits what there is, if any does: what misses is tried often enough.
    fn bindable(&self, pick: usize) -> Option<(&'static str, &'static str, Slug)> {
        let mut found = Vec::new();
        for (id, c) in &self.oracle.certificates {
            for asked in HOSTS {
                let covers = |n: &String| host(asked).covered_by(n);
                let ready = c
                    .versions
                    .iter()
                    .any(|v| v.ready && v.names.iter().any(covers));
                if ready && self.oracle.holders(asked).contains(&c.project.as_str()) {
                    found.push((*id, asked, c.project.as_str()));
                }
            }
        }
        let (id, asked, project) = *found.get(pick % found.len().max(1))?;
        let project = PROJECTS.into_iter().find(|p| *p == project)?;
        Some((
            project,
            asked,
            self.world.memory.certificate(CertificateId(id))?.name,
        ))
    }

    /// A host to which a certificate is bound somewhere.
    fn bound(&self, pick: usize) -> Option<(&'static str, &'static str)> {
        let is = |mode: &selection::Mode| matches!(mode, selection::Mode::Bound(_));
        let found: Vec<_> = PROJECTS
            .into_iter()
            .flat_map(|project| HOSTS.map(|asked| (project, asked)))
            .filter(|(project, asked)| {
                let claim = self.world.memory.claim(asked, project);
                claim.is_some_and(|c| is(&c.mode) || c.modes.values().any(is))
            })
            .collect();
        found.get(pick % found.len().max(1)).copied()
    }

    /// A certificate that serves something now, with its project and region.
    fn serving(&self, pick: usize) -> Option<(&'static str, Slug, Slug)> {
        let found: Vec<_> = self
            .actives()
            .into_iter()
            .filter_map(|((_, region), active)| Some((region, active?.0)))
            .collect();
        let (region, id) = *found.get(pick % found.len().max(1))?;
        let certificate = self.world.memory.certificate(CertificateId(id))?;
        let project = PROJECTS
            .into_iter()
            .find(|p| *p == certificate.project.as_str())?;
        Some((project, certificate.name, slug(region)))
    }

    fn catch_up(&mut self) {
        for recorded in &self.world.log[self.read..] {
            self.oracle.read(recorded);
        }
        self.read = self.world.log.len();
    }

    /// The command of a step, and who asks.
    fn command(&mut self, step: &Step) -> (Who, &'static str, Command) {
        let project = PROJECTS[step.project];
        let asked = HOSTS[step.host].to_owned();
        let regions = || slugs(&step.regions.iter().map(|r| REGIONS[*r]).collect::<Vec<_>>());
        let region = step.regions.first().map(|r| slug(REGIONS[*r]));
        let certificate = slug(CERTIFICATES[step.certificate]);
        let resource = slug(RESOURCES[step.resource]);
        let user = if step.other || step.project == 2 {
            Who::Operator
        } else {
            Who::User
        };
        let (id, version) = self.some_version(step.pick);
        let facts = || {
            let names: Vec<&str> = step.sans.iter().map(|s| SANS[*s]).collect();
            Facts {
                not_before: self.now - step.days.0 * DAY,
                not_after: self.now + step.days.1 * DAY,
                spki: digest(step.key),
                fingerprint: digest(self.fingerprints),
                ..facts(0, &names)
            }
        };
        let verdict = if step.flag || step.other {
            Ok(Trust::Public)
        } else {
            Err(vec![Reason::new(
                Code::ChainIncomplete,
                "an intermediate is missing",
                "",
            )])
        };
        match step.what {
            0..=4 => (
                user,
                project,
                CreateResource {
                    demand_public: false,
                    name: resource,
                    kind: if step.flag {
                        ResourceKind::Cdn
                    } else {
                        ResourceKind::Bucket
                    },
                    regions: if step.flag {
                        slugs(&REGIONS)
                    } else {
                        regions()
                    },
                    origin: "https://origin.example.net".into(),
                    keep_host: false,
                }
                .into(),
            ),
            5..=8 => (
                user,
                project,
                ChangeResource {
                    demand_public: None,
                    name: resource,
                    regions: Some(regions()),
                    origin: None,
                    keep_host: Some(step.flag),
                    expect: None,
                }
                .into(),
            ),
            9 => (
                user,
                project,
                DeleteResource {
                    expect: None,
                    confirm: resource.to_string(),
                    name: resource,
                }
                .into(),
            ),
            10..=19 => (
                user,
                project,
                AddDomain {
                    host: asked,
                    resource: step.flag.then_some(resource),
                    regions: vec![],
                }
                .into(),
            ),
            20..=25 => (
                Who::Operator,
                "platform",
                ProveDomain {
                    project: slug(project),
                    host: asked,
                    force: step.flag,
                }
                .into(),
            ),
            26..=33 => (
                user,
                project,
                AttachDomain {
                    expect: None,
                    host: asked,
                    resource,
                    regions: regions(),
                }
                .into(),
            ),
            34 => (
                user,
                project,
                DetachDomain {
                    expect: None,
                    host: asked,
                    regions: regions(),
                }
                .into(),
            ),
            35..=39 => {
                let (project, host, certificate) = match self.bindable(step.pick) {
                    Some((project, host, name)) => (project, host.to_owned(), name),
                    None => (project, asked, certificate),
                };
                (
                    user,
                    project,
                    BindDomain {
                        host,
                        certificate,
                        region,
                        expect: None,
                    }
                    .into(),
                )
            }
            40 | 41 => {
                let (project, host) = match self.bound(step.pick) {
                    Some((project, host)) => (project, host.to_owned()),
                    None => (project, asked),
                };
                (
                    user,
                    project,
                    UnbindDomain {
                        host,
                        region,
                        expect: None,
                    }
                    .into(),
                )
            }
            42..=44 => (
                user,
                project,
                SetHttps {
                    host: asked,
                    https: if step.flag { Https::Auto } else { Https::Off },
                    region,
                    expect: None,
                }
                .into(),
            ),
            45 => (
                user,
                project,
                ReleaseDomain {
                    expect: None,
                    host: asked,
                }
                .into(),
            ),
            46..=60 => (
                user,
                project,
                AddCertificate {
                    name: certificate,
                    kind: if step.pick.is_multiple_of(17) {
                        CertificateKind::Ca
                    } else {
                        CertificateKind::Server
                    },
                    regions: if step.flag {
                        slugs(&REGIONS)
                    } else {
                        regions()
                    },
                    standby: step.other && step.flag,
                    facts: facts(),
                }
                .into(),
            ),
            61..=68 => (
                user,
                project,
                ReplaceCertificate {
                    name: certificate,
                    facts: facts(),
                    expect: None,
                }
                .into(),
            ),
            69..=71 => (
                user,
                project,
                DeployCertificate {
                    name: certificate,
                    regions: regions(),
                    expect: None,
                }
                .into(),
            ),
            72..=74 => {
                let (project, name, regions) = match self.serving(step.pick) {
                    Some((project, name, region)) => (project, name, vec![region]),
                    None => (project, certificate, regions()),
                };
                let force = step.flag && step.other;
                (
                    user,
                    project,
                    WithdrawCertificate {
                        name,
                        regions,
                        force,
                        expect: None,
                    }
                    .into(),
                )
            }
            75..=79 => {
                let (project, name) = match self.serving(step.pick) {
                    Some((project, name, _)) if step.other => (project, name),
                    _ => (project, certificate),
                };
                (
                    user,
                    project,
                    DeleteCertificate {
                        confirm: name.to_string(),
                        name,
                        force: step.flag && step.other,
                        expect: None,
                    }
                    .into(),
                )
            }
            80..=92 => (
                Who::System,
                "platform",
                VerifyCertificate {
                    id,
                    version,
                    verdict,
                }
                .into(),
            ),
            93..=95 => (
                Who::System,
                "platform",
                ExpireCertificate { id, version }.into(),
            ),
            96 | 97 => (
                Who::System,
                "platform",
                RevokeCertificate {
                    id,
                    version,
                    reasons: Vec::new(),
                }
                .into(),
            ),
            _ => {
                let project = OfProject {
                    project: slug(project),
                };
                let command = if step.flag || step.other {
                    Command::ResumeProject(project)
                } else {
                    Command::SuspendProject(project)
                };
                (Who::Operator, "platform", command)
            }
        }
    }

    /// One of the versions that there are; of two chances one that is still to be verified.
    fn some_version(&self, pick: usize) -> (CertificateId, u32) {
        let owed = self
            .world
            .memory
            .scan(Table::Unverified, &[], None, usize::MAX);
        if !owed.is_empty() && pick.is_multiple_of(2) {
            let (row, _) = &owed[pick / 2 % owed.len()];
            let mut parts = lifecycle::store::Parts::of(row);
            return (
                CertificateId(parts.number()),
                u32::try_from(parts.number()).unwrap(),
            );
        }
        let all: Vec<(CertificateId, u32)> = self
            .oracle
            .certificates
            .iter()
            .flat_map(|(id, c)| c.versions.iter().map(|v| (CertificateId(*id), v.number)))
            .collect();
        all.get(pick % all.len().max(1))
            .copied()
            .unwrap_or((CertificateId(1), 1))
    }

    /// The rows that only count or point say what the rows that they are made of say.
    fn indexes(&self) -> Result<(), TestCaseError> {
        let state = &self.world.memory;
        let mut counts: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
        let mut warnings = BTreeSet::new();
        let mut count = |key: Vec<u8>| *counts.entry(key).or_default() += 1;
        for (_, row) in state.scan(Table::Certificate, &[], None, usize::MAX) {
            let certificate: lifecycle::state::Certificate = decode(&row);
            if certificate.deleted {
                prop_assert_eq!(certificate.warning, None);
                continue;
            }
            count(key::count(&certificate.project, count::CERTIFICATES, ""));
            let what = lifecycle::evolve::counted_as(certificate.kind);
            for region in &certificate.regions {
                count(key::count(&certificate.project, what, region.as_str()));
            }
            if let Some((due, version)) = certificate.warning {
                warnings.insert(key::warning(due, certificate.id));
                let latest = certificate
                    .versions
                    .iter()
                    .rfind(|v| v.status == lifecycle::state::Status::Ready);
                prop_assert_eq!(latest.map(|v| v.version), Some(version));
            }
        }
        let mut pending = BTreeSet::new();
        for (_, row) in state.scan(Table::Claim, &[], None, usize::MAX) {
            let claim: lifecycle::state::Claim = decode(&row);
            if claim.status != lifecycle::state::ClaimStatus::Released {
                count(key::count(&claim.project, count::DOMAINS, ""));
            }
            if claim.status == lifecycle::state::ClaimStatus::Pending {
                pending.insert(key::pair(&claim.project, &claim.host));
            }
        }
        for (_, row) in state.scan(Table::Resource, &[], None, usize::MAX) {
            let resource: lifecycle::state::Resource = decode(&row);
            count(key::count(&resource.project, count::RESOURCES, ""));
        }
        let rows = |table| -> Vec<(Vec<u8>, Vec<u8>)> { state.scan(table, &[], None, usize::MAX) };
        let counted: BTreeMap<Vec<u8>, u32> = rows(Table::Count)
            .into_iter()
            .map(|(key, value)| (key, decode(&value)))
            .collect();
        prop_assert_eq!(counted, counts);
        let keys =
            |table| -> BTreeSet<Vec<u8>> { rows(table).into_iter().map(|(key, _)| key).collect() };
        prop_assert_eq!(keys(Table::Warning), warnings);
        prop_assert_eq!(keys(Table::Pending), pending);
        Ok(())
    }

    fn actives(&self) -> BTreeMap<(&'static str, &'static str), Option<(u64, u32)>> {
        let mut found = BTreeMap::new();
        for asked in ASKED {
            for region in REGIONS {
                found.insert((asked, region), self.oracle.active(asked, region, self.now));
            }
        }
        found
    }

    /// Plays a step and checks what it did. Gives the code if it was rejected.
    fn step(&mut self, step: &Step) -> Result<Option<Code>, TestCaseError> {
        self.now += step.wait;
        self.fingerprints += 1;
        let (who, project, command) = self.command(step);
        let before = self.actives();
        let keys = self.oracle.keys.clone();
        let run = self.world.run(who, project, command.clone(), self.now);
        let events = match run {
            Ok(events) => events,
            Err(rejection) => return Ok(Some(rejection.0.code)),
        };
        self.catch_up();
        self.selection()?;
        self.keys(&events, &keys)?;
        self.indexes()?;
        let after = self.actives();
        match &command {
            Command::DeleteCertificate(DeleteCertificate { force: false, .. })
            | Command::WithdrawCertificate(WithdrawCertificate { force: false, .. })
            | Command::ReplaceCertificate(_) => {
                for (place, active) in &before {
                    prop_assert!(
                        active.is_none() || after[place].is_some(),
                        "{:?} made {:?} dark",
                        command,
                        place
                    );
                }
            }
            _ => {}
        }
        match &command {
            // What is not verified changes nothing for anybody: not an upload, not a replacement, not a failure.
            Command::AddCertificate(_)
            | Command::VerifyCertificate(VerifyCertificate {
                verdict: Err(_), ..
            }) => {
                prop_assert_eq!(&before, &after);
            }
            Command::ReplaceCertificate(_) => {
                for (place, active) in &before {
                    let dropped = events.iter().any(|e| match (e, active) {
                        (Event::CertificateReplaced(e), Some((id, version))) => {
                            e.id.0 == *id && e.dropped.contains(version)
                        }
                        _ => false,
                    });
                    prop_assert!(dropped || after[place] == *active, "{:?}", place);
                }
            }
            // A standby goes live only where nothing was.
            Command::VerifyCertificate(verify)
                if self.oracle.certificates[&verify.id.0].standby =>
            {
                let bound = |place: &(&str, &str)| {
                    self.ranking(place.0, place.1)
                        .is_some_and(|(served, _)| served.mode == selection::Mode::Bound(verify.id))
                };
                for (place, active) in &before {
                    let from = active.map(|(id, _)| self.oracle.certificates[&id].standby);
                    prop_assert!(
                        after[place] == *active || from != Some(false) || bound(place),
                        "a standby displaced {:?} at {:?}",
                        active,
                        place
                    );
                }
            }
            // Going away moves to the next in the chain, and never upsets a host that something else served.
            Command::DeleteCertificate(_)
            | Command::RevokeCertificate(_)
            | Command::WithdrawCertificate(_) => {
                let gone = events.iter().find_map(|e| match e {
                    Event::CertificateDeleted(e) => Some((e.id.0, None)),
                    Event::CertificateRevoked(e) => Some((e.id.0, Some(e.version))),
                    Event::CertificateWithdrawn(e) => Some((e.id.0, None)),
                    _ => None,
                });
                let (id, version) = gone.unwrap();
                for (place, active) in &before {
                    let hit = active
                        .is_some_and(|(a, v)| a == id && version.is_none_or(|gone| gone == v));
                    prop_assert!(
                        hit || after[place] == *active,
                        "{:?} upset {:?}",
                        command,
                        place
                    );
                }
            }
            _ => {}
        }
        let last = self.world.next() - 1;
        self.snapshots.push((last, self.world.memory.clone()));
        Ok(None)
    }

    fn ranking(
        &self,
        asked: &str,
        region: &str,
    ) -> Option<(lifecycle::state::Served, Vec<selection::Candidate>)> {
        ranking(&self.world.memory, &host(asked), region)
    }

    /// The core's ranking is the oracle's, for each host in each region, now and at moments to come.
    fn selection(&self) -> Result<(), TestCaseError> {
        for asked in ASKED {
            for region in REGIONS {
                let core = self.ranking(asked, region);
                let expected = self.oracle.chain(asked, region);
                let shown = core.as_ref().map(|(served, ranked)| {
                    let chain: Vec<_> = ranked
                        .iter()
                        .map(|c| (c.certificate.0, c.version, c.not_before, c.not_after))
                        .collect();
                    (served.project.to_string(), chain)
                });
                prop_assert_eq!(&shown, &expected, "{} in {}", asked, region);
                let Some((served, ranked)) = core else {
                    continue;
                };
                for candidate in &ranked {
                    let certificate = self
                        .world
                        .memory
                        .certificate(candidate.certificate)
                        .unwrap();
                    prop_assert_eq!(
                        &certificate.project,
                        &served.project,
                        "another project's certificate"
                    );
                }
                // Time alone: the whole chain is walked back, one end after the other.
                for later in [0, DAY, 10 * DAY, 60 * DAY] {
                    let active = selection::active(&ranked, self.now + later)
                        .map(|c| (c.certificate.0, c.version));
                    prop_assert_eq!(active, self.oracle.active(asked, region, self.now + later));
                }
                if let Some(until) = selection::runway(&ranked, self.now) {
                    for moment in [self.now, (self.now + until) / 2, until - 1] {
                        prop_assert!(
                            selection::active(&ranked, moment).is_some(),
                            "a hole in the runway"
                        );
                    }
                    prop_assert!(selection::active(&ranked, until).is_none());
                }
            }
        }
        for claimed in HOSTS {
            let holders = self.oracle.holders(claimed);
            prop_assert!(holders.len() <= 1, "{} is held by {:?}", claimed, holders);
            let core = self.world.memory.holder(claimed).map(|p| p.to_string());
            prop_assert_eq!(core.as_deref(), holders.first().copied());
        }
        Ok(())
    }

    /// A key has as many users as versions that live, and goes with the last.
    fn keys(
        &self,
        events: &[Event],
        before: &std::collections::BTreeSet<(String, String)>,
    ) -> Result<(), TestCaseError> {
        let mut users: BTreeMap<(String, String), u32> = BTreeMap::new();
        for certificate in self.oracle.certificates.values().filter(|c| c.server) {
            for version in &certificate.versions {
                *users
                    .entry((certificate.project.clone(), version.spki.clone()))
                    .or_default() += 1;
            }
        }
        let kept: Vec<_> = self.oracle.keys.iter().cloned().collect();
        prop_assert_eq!(
            users.keys().cloned().collect::<Vec<_>>(),
            kept,
            "keys without users, or users without keys"
        );
        for ((project, spki), users) in users {
            let spki: Digest = spki.parse().unwrap();
            let row: Option<Key> = self
                .world
                .memory
                .row(Table::Key, &key::spki(&slug(&project), spki));
            prop_assert_eq!(row, Some(Key { users }));
        }
        let gone = before.difference(&self.oracle.keys).count();
        let destroyed = events
            .iter()
            .filter(|e| matches!(e, Event::KeyDestroyed(_)))
            .count();
        prop_assert_eq!(gone, destroyed);
        Ok(())
    }

    /// A replay from the events' stored form gives the same tables, and the histories tell what they were at each sequence.
    fn replay(&self) -> Result<(), TestCaseError> {
        let mut replayed = Memory::default();
        let mut snapshots = self.snapshots.iter().peekable();
        for recorded in &self.world.log {
            let mut bytes = Vec::new();
            recorded
                .event
                .serialize_data(&mut serde_json::Serializer::new(&mut bytes))
                .unwrap();
            let event = Event::deserialize_data(
                recorded.event.name(),
                &mut serde_json::Deserializer::from_slice(&bytes),
            );
            let event = event.unwrap().unwrap();
            prop_assert_eq!(&event, &recorded.event);
            let mut overlay = Overlay::new(&replayed);
            evolve(
                &mut overlay,
                &Recorded {
                    event,
                    ..recorded.clone()
                },
            );
            let changes = overlay.into_changes();
            replayed.apply(changes);
            if let Some((_, live)) =
                snapshots.next_if(|(sequence, _)| *sequence == recorded.sequence)
            {
                prop_assert!(
                    replayed == *live,
                    "the replay differs at {}",
                    recorded.sequence
                );
                for asked in ASKED {
                    for region in REGIONS {
                        let then = ranking(live, &host(asked), region);
                        let told =
                            ranking_at(&self.world.memory, &host(asked), region, recorded.sequence);
                        prop_assert_eq!(told.map(|past| (past.served, past.ranked)), then);
                    }
                }
            }
        }
        prop_assert!(snapshots.next().is_none());
        prop_assert!(replayed == self.world.memory);
        Ok(())
    }
}

proptest! {
    #![proptest_config(config(32))]

    /// Events in an order that no decision gives change what fits, and never end the process.
    #[test]
    fn evolve_takes_any_events_in_any_order(
        steps in prop::collection::vec(step(), 40..90),
        order in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 60),
    ) {
        let mut play = Play::furnished();
        for step in &steps {
            play.step(step)?;
        }
        let mut world = World::default();
        for (index, elsewhere) in order {
            let recorded = index.get(&play.world.log);
            let project = if elsewhere { slug("beta") } else { recorded.project.clone() };
            world.commit(vec![(project, recorded.event.clone())], NOW);
            // What is left can be asked and decided on.
            for asked in ASKED {
                ranking(&world.memory, &host(asked), "ru-1");
                ranking_at(&world.memory, &host(asked), "ru-1", world.next());
            }
            for step in &steps[..4] {
                let (who, project, command) = play.command(step);
                let _ = world.decide(who, project, &command, NOW);
            }
        }
    }
}

proptest! {
    #![proptest_config(config(256))]

    /// The invariants of selection, keys and guards hold after each command, and a replay gives the same.
    #[test]
    fn any_history_keeps_the_invariants(steps in prop::collection::vec(step(), 1..120), furnished in any::<bool>()) {
        let mut play = if furnished { Play::furnished() } else { Play::new() };
        for step in &steps {
            play.step(step)?;
        }
        play.replay()?;
    }

    /// A host that was read is read again as the same: else an event that names it could not be replayed.
    #[test]
    fn a_host_has_one_form(text in "(\\*\\.)?([a-zA-Z0-9-]{0,5}|[xX][nN]--[a-zA-Z0-9-]{0,8}|[äßΣ。．＊ｅ١\u{200d}]{1,3}|xn--mnchen-3ya)(\\.([a-z0-9-]{1,4}|[xX][Nn]--[a-z0-9]{1,6}|é)){0,4}\\.?") {
        if let Ok(host) = Host::parse(&text) {
            prop_assert_eq!(Host::parse(host.as_str()), Ok(host.clone()));
            prop_assert!(host.as_str().len() <= 253);
        }
    }

    /// Nor does anything else that people type end the process.
    #[test]
    fn any_text_is_a_host_or_not(text in "\\PC{0,40}") {
        if let Ok(host) = Host::parse(&text) {
            prop_assert_eq!(Host::parse(host.as_str()), Ok(host));
        }
        let _ = Slug::name(&text);
    }
}

/// The histories above reach what they are to test: most commands are accepted somewhere, and certificates go live.
#[test]
fn the_histories_are_not_empty() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut accepted: BTreeMap<String, u32> = BTreeMap::new();
    let mut rejected: BTreeMap<(String, Code), u32> = BTreeMap::new();
    let mut live = 0;
    let mut fallbacks = 0;
    for _ in 0..40 {
        let steps = prop::collection::vec(step(), 120)
            .new_tree(&mut runner)
            .unwrap()
            .current();
        let mut play = Play::furnished();
        for step in &steps {
            let (_, _, command) = play.command(step);
            match play.step(step).unwrap() {
                None => *accepted.entry(variant(&command)).or_default() += 1,
                Some(code) => *rejected.entry((variant(&command), code)).or_default() += 1,
            }
            for asked in ASKED {
                let ranked = play
                    .ranking(asked, "ru-1")
                    .map(|(_, ranked)| ranked)
                    .unwrap_or_default();
                let usable = selection::chain(&ranked, play.now).count();
                live += u32::from(usable > 0);
                fallbacks += u32::from(usable > 1);
            }
        }
    }
    for command in [
        "CreateResource",
        "ChangeResource",
        "DeleteResource",
        "AddDomain",
        "ProveDomain",
        "AttachDomain",
        "DetachDomain",
        "BindDomain",
        "UnbindDomain",
        "SetHttps",
        "ReleaseDomain",
        "AddCertificate",
        "ReplaceCertificate",
        "DeployCertificate",
        "WithdrawCertificate",
        "DeleteCertificate",
        "VerifyCertificate",
        "ExpireCertificate",
        "RevokeCertificate",
        "SuspendProject",
        "ResumeProject",
    ] {
        assert!(
            accepted.contains_key(command),
            "{command} was never accepted: {accepted:?}"
        );
    }
    for command in ["DeleteCertificate", "WithdrawCertificate"] {
        let last = (command.to_owned(), Code::LastUsable);
        assert!(
            rejected.contains_key(&last),
            "{command} met no live host: {rejected:?}"
        );
    }
    assert!(
        live > 1_000 && fallbacks > 100,
        "{live} hosts live, {fallbacks} with fallbacks: {accepted:?}"
    );
}
