//! A log with its tables, and the words of `given … when … then`.

use lifecycle::command::{Asker, Command, Context};
use lifecycle::decide::{Decided, EVENTS_MAX, decide};
use lifecycle::event::*;
use lifecycle::evolve::evolve;
use lifecycle::names::{CertificateId, Digest, Host, ResourceId, Slug};
use lifecycle::rejection::{Code, Reason, Rejection};
use lifecycle::selection::KeyKind;
use lifecycle::store::{Memory, Overlay};

/// The moment at which most tests are played, Unix seconds.
pub(crate) const NOW: i64 = 1_800_000_000;
pub(crate) const DAY: i64 = 86_400;
pub(crate) const PLATFORM_DOMAIN: &str = "chancery.test";
pub(crate) const NKEY: &str = "UABCDEFGHIJKLMNOPQRSTUVWXYZ234567ABCDEFGHIJKLMNOPQRSTUVW";

pub(crate) fn slug(text: &str) -> Slug {
    Slug::name(text).unwrap()
}

pub(crate) fn slugs(texts: &[&str]) -> Vec<Slug> {
    texts.iter().map(|t| slug(t)).collect()
}

pub(crate) fn host(text: &str) -> Host {
    Host::parse(text).unwrap()
}

pub(crate) fn digest(number: u64) -> Digest {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    Digest(bytes)
}

/// Facts of a certificate that is valid for a day before and a year after [`NOW`]; its key and its fingerprint have this number.
pub(crate) fn facts(number: u64, names: &[&str]) -> Facts {
    Facts {
        fingerprint: digest(number),
        chain: vec![digest(number), digest(u64::MAX)],
        names: names.iter().map(|n| (*n).to_owned()).collect(),
        not_before: NOW - DAY,
        not_after: NOW + 365 * DAY,
        key: KeyKind::P256,
        spki: digest(number),
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Who {
    /// A user of the project that is asked about.
    User,
    /// A user of another project.
    Stranger,
    /// One of the operator's people.
    Operator,
    /// The system itself.
    System,
}

/// A log and its tables.
#[derive(Clone, Default)]
pub(crate) struct World {
    pub(crate) memory: Memory,
    pub(crate) log: Vec<Recorded>,
}

impl World {
    /// The next sequence.
    pub(crate) fn next(&self) -> u64 {
        self.log.last().map_or(1, |last| last.sequence + 1)
    }

    /// Commits events at a time (Unix seconds), as one batch.
    pub(crate) fn commit(&mut self, decided: Vec<Decided>, now: i64) {
        let mut overlay = Overlay::new(&self.memory);
        let first = self.log.last().map_or(1, |last| last.sequence + 1);
        for (sequence, (project, event)) in (first..).zip(decided) {
            let recorded = Recorded {
                sequence,
                project,
                time: now * 1_000_000,
                actor: "someone".to_owned(),
                event,
            };
            evolve(&mut overlay, &recorded);
            self.log.push(recorded);
        }
        let changes = overlay.into_changes();
        self.memory.apply(changes);
    }

    /// Decides, without committing.
    pub(crate) fn decide(
        &self,
        who: Who,
        project: &str,
        command: &Command,
        now: i64,
    ) -> Result<Vec<Decided>, Rejection> {
        let (actor, from, operator) = match who {
            Who::User => ("alice", project, false),
            Who::Stranger => ("mallory", "stranger", false),
            Who::Operator => ("olga", "platform", true),
            Who::System => ("_system", "platform", true),
        };
        let context = Context {
            project: slug(project),
            asker: Asker {
                actor: actor.to_owned(),
                project: slug(from),
                operator,
            },
            now: now * 1_000_000 + 999_999,
            sequence: self.next(),
        };
        let decided = decide(&self.memory, command, &context);
        if let Ok(events) = &decided {
            assert!(
                (1..=EVENTS_MAX).contains(&events.len()),
                "{command:?} gave {} events",
                events.len()
            );
        }
        decided
    }

    /// Decides and commits.
    pub(crate) fn run(
        &mut self,
        who: Who,
        project: &str,
        command: impl Into<Command>,
        now: i64,
    ) -> Result<Vec<Event>, Rejection> {
        let decided = self.decide(who, project, &command.into(), now)?;
        self.commit(decided.clone(), now);
        Ok(decided.into_iter().map(|(_, event)| event).collect())
    }
}

/// An estate: the platform, three regions and a country, projects `acme`, `beta` and the suspended `quiet`.
pub(crate) fn estate() -> World {
    let mut world = World::default();
    let platform = Slug::platform();
    let mut events: Vec<Decided> = vec![(
        platform.clone(),
        ControlGenesis {
            log: "0190a5f4-0000-7000-8000-000000000000".into(),
            signer: digest(7),
            platform_domain: PLATFORM_DOMAIN.into(),
        }
        .into(),
    )];
    for project in ["platform", "acme", "beta", "quiet", "stranger"] {
        let project = slug(project);
        events.push((project.clone(), ProjectCreated { project }.into()));
    }
    let quiet = slug("quiet");
    events.push((quiet.clone(), ProjectSuspended { project: quiet }.into()));
    for (number, region) in (1..).zip(["eu-1", "ru-1", "ru-2"]) {
        let region = slug(region);
        events.push((
            platform.clone(),
            RegionCreated {
                region,
                key: digest(number),
                key_version: 1,
            }
            .into(),
        ));
    }
    events.push((
        platform,
        RegionCountrySet {
            country: slug("ru"),
            regions: slugs(&["ru-1", "ru-2"]),
        }
        .into(),
    ));
    world.commit(events, NOW - 30 * DAY);
    world
}

/// The sequence at which the command of a case is decided.
pub(crate) const THEN: u64 = 1_000;

/// `given` these events of project `acme` (or of the project that is named with them) …
pub(crate) fn given(events: Vec<Decided>) -> Given {
    let mut world = estate();
    world.commit(events, NOW - DAY);
    // A filler, so that what is created next has a known id.
    let fill = THEN - world.next();
    let filler = CommandRejected {
        command: "domain.add".into(),
        reasons: vec![],
    };
    for _ in 0..fill {
        let last = world.log.last().unwrap().clone();
        world.log.push(Recorded {
            sequence: last.sequence + 1,
            event: filler.clone().into(),
            ..last
        });
    }
    Given {
        world,
        who: None,
        project: None,
        now: NOW,
    }
}

/// See [`given`].
pub(crate) struct Given {
    pub(crate) world: World,
    who: Option<Who>,
    project: Option<&'static str>,
    now: i64,
}

impl Given {
    pub(crate) fn by(mut self, who: Who) -> Self {
        self.who = Some(who);
        self
    }

    pub(crate) fn of(mut self, project: &'static str) -> Self {
        self.project = Some(project);
        self
    }

    pub(crate) fn at(mut self, now: i64) -> Self {
        self.now = now;
        self
    }

    /// … `when` this is asked, by whom it is for unless the case says otherwise …
    pub(crate) fn when(self, command: impl Into<Command>) -> When {
        let command = command.into();
        let (who, project) = usual(&command);
        let decided = self.world.decide(
            self.who.unwrap_or(who),
            self.project.unwrap_or(project),
            &command,
            self.now,
        );
        let name = variant(&command);
        When { name, decided }
    }
}

/// The name of a command's variant.
pub(crate) fn variant(command: &Command) -> String {
    let text = format!("{command:?}");
    text.split('(').next().unwrap().to_owned()
}

/// Who usually asks a command, and on which project's subject.
pub(crate) fn usual(command: &Command) -> (Who, &'static str) {
    use Command::*;
    match command {
        CreateProject(_) | SuspendProject(_) | ResumeProject(_) | DeleteProject(_)
        | CreateAccess(_) | RevokeAccess(_) | CreateRegion(_) | SetCountry(_) | EvictEdge(_)
        | ProveDomain(_) | SetQuota(_) | SetExport(_) | MoveCertificate(_) => {
            (Who::Operator, "platform")
        }
        EnrolEdge(_) | RotateRegionKey(_) | ReportApplied(_) | VerifyCertificate(_)
        | ExpireCertificate(_) | RevokeCertificate(_) | WarnCertificate(_) => {
            (Who::System, "platform")
        }
        ProveByDns(_) | SettleContest(_) => (Who::System, "acme"),
        _ => (Who::User, "acme"),
    }
}

/// See [`given`].
pub(crate) struct When {
    pub(crate) name: String,
    pub(crate) decided: Result<Vec<Decided>, Rejection>,
}

impl When {
    /// … `then` exactly these events follow.
    #[track_caller]
    pub(crate) fn then(self, events: Vec<Event>) {
        let decided: Result<Vec<Event>, Rejection> = self
            .decided
            .map(|decided| decided.into_iter().map(|(_, event)| event).collect());
        assert_eq!(decided, Ok(events), "{}", self.name);
    }

    /// … `then` these events follow, with the projects that they belong to.
    #[track_caller]
    pub(crate) fn then_of(self, events: Vec<Decided>) {
        assert_eq!(self.decided, Ok(events), "{}", self.name);
    }

    /// … it is `rejected` with this code.
    #[track_caller]
    pub(crate) fn rejected(self, code: Code) -> Reason {
        match self.decided {
            Err(Rejection(reason)) if reason.code == code => reason,
            other => panic!("{}: expected {code}, got {other:?}", self.name),
        }
    }
}

// ---- events, in short

pub(crate) fn acme(event: impl Into<Event>) -> Decided {
    (slug("acme"), event.into())
}

pub(crate) fn beta(event: impl Into<Event>) -> Decided {
    (slug("beta"), event.into())
}

pub(crate) fn added(id: u64, name: &str, regions: &[&str], facts: Facts) -> Event {
    CertificateAdded {
        id: CertificateId(id),
        name: slug(name),
        kind: CertificateKind::Server,
        regions: slugs(regions),
        standby: false,
        facts,
    }
    .into()
}

pub(crate) fn sealed(number: u64) -> Event {
    KeySealed {
        spki: digest(number),
        key: KeyKind::P256,
    }
    .into()
}

pub(crate) fn destroyed(number: u64) -> Event {
    KeyDestroyed {
        spki: digest(number),
    }
    .into()
}

pub(crate) fn verified(id: u64, version: u32) -> Event {
    CertificateVerified {
        id: CertificateId(id),
        version,
        trust: Trust::Public,
    }
    .into()
}

/// A certificate of `acme` that is ready.
pub(crate) fn ready(id: u64, name: &str, regions: &[&str], facts: Facts) -> Vec<Decided> {
    let spki = facts.spki;
    vec![
        acme(KeySealed {
            spki,
            key: facts.key,
        }),
        acme(added(id, name, regions, facts)),
        acme(verified(id, 1)),
    ]
}

pub(crate) fn resource(id: u64, name: &str, kind: ResourceKind, regions: &[&str]) -> Event {
    ResourceCreated {
        demand_public: false,
        id: ResourceId(id),
        name: slug(name),
        kind,
        regions: slugs(regions),
        origin: "https://origin.example.net".into(),
        keep_host: false,
        private_origin: false,
    }
    .into()
}

pub(crate) fn claimed(name: &str) -> Event {
    DomainAdded { host: host(name) }.into()
}

pub(crate) fn proven(name: &str) -> Event {
    DomainProven {
        host: host(name),
        proof: Proof::Operator,
    }
    .into()
}

pub(crate) fn attached(name: &str, resource: u64, regions: &[&str]) -> Event {
    DomainAttached {
        host: host(name),
        resource: ResourceId(resource),
        regions: slugs(regions),
    }
    .into()
}

/// `www.example.com` of `acme`, proven and attached in `ru-1` to the CDN resource `web` (id 50), which is in all regions.
pub(crate) fn site() -> Vec<Decided> {
    vec![
        acme(resource(
            50,
            "web",
            ResourceKind::Cdn,
            &["eu-1", "ru-1", "ru-2"],
        )),
        acme(claimed("www.example.com")),
        acme(proven("www.example.com")),
        acme(attached("www.example.com", 50, &["ru-1"])),
    ]
}

/// The same with a ready certificate `main` (id 60) in `ru-1`.
pub(crate) fn live() -> Vec<Decided> {
    let mut events = site();
    events.extend(ready(60, "main", &["ru-1"], facts(1, &["www.example.com"])));
    events
}
