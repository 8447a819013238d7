//! What must not grow, and what must not be cut short.

use std::time::{Duration, Instant};

use lifecycle::command::*;
use lifecycle::decide::{DARK_NAMED, ENDED_KEPT, VERSIONS_MAX, ranking};
use lifecycle::event::*;
use lifecycle::names::CertificateId;
use lifecycle::rejection::Code;
use lifecycle::selection::active;
use lifecycle::state::{COVER_LIMIT, State, Status, is_served};
use lifecycle::store::{Read, Table};

use crate::world::*;

fn replace(world: &mut World, number: u64, names: &[&str], now: i64) -> Result<Vec<Event>, Code> {
    let command = ReplaceCertificate {
        name: slug("main"),
        facts: Facts {
            not_after: now + 90 * DAY,
            ..facts(number, names)
        },
        expect: None,
    };
    world
        .run(Who::User, "acme", command, now)
        .map_err(|r| r.0.code)
}

fn verify(world: &mut World, version: u32, now: i64) {
    let command = VerifyCertificate {
        id: CertificateId(60),
        version,
        verdict: Ok(Trust::Public),
    };
    world.run(Who::System, "platform", command, now).unwrap();
}

/// Renewed for years, a certificate keeps a bounded row, and keys go with the versions that leave.
#[test]
fn a_certificate_keeps_a_bounded_number_of_versions() {
    let mut world = given(live()).world;
    let mut sealed = 1;
    let mut gone = 0;
    for round in 1..=60u32 {
        let now = NOW + i64::from(round) * DAY;
        let events = replace(
            &mut world,
            100 + u64::from(round),
            &["www.example.com"],
            now,
        )
        .unwrap();
        sealed += events
            .iter()
            .filter(|e| matches!(e, Event::KeySealed(_)))
            .count();
        gone += events
            .iter()
            .filter(|e| matches!(e, Event::KeyDestroyed(_)))
            .count();
        verify(&mut world, round + 1, now);
        let certificate = world.memory.certificate(CertificateId(60)).unwrap();
        assert!(certificate.versions.len() <= VERSIONS_MAX);
        assert_eq!(certificate.latest().unwrap().version, round + 1);
        assert_eq!(certificate.place, 60, "a replacement keeps the place");
        let keys = world.memory.scan(Table::Key, &[], None, usize::MAX).len();
        assert_eq!(keys, certificate.versions.len());
        assert_eq!(keys, sealed - gone);
        let (_, ranked) = ranking(&world.memory, &host("www.example.com"), "ru-1").unwrap();
        assert_eq!(active(&ranked, now).map(|c| c.version), Some(round + 1));
        assert_eq!(ranked.len(), keys);
    }
    // Nothing is owed to versions that left.
    let expiries = world
        .memory
        .scan(Table::Expiry, &[], None, usize::MAX)
        .len();
    assert_eq!(expiries, VERSIONS_MAX);
    // Long ended ones leave all together.
    let now = NOW + 61 * DAY + 90 * DAY + ENDED_KEPT;
    let events = replace(&mut world, 999, &["www.example.com"], now).unwrap();
    let destroyed = events
        .iter()
        .filter(|e| matches!(e, Event::KeyDestroyed(_)))
        .count();
    assert_eq!(destroyed, VERSIONS_MAX);
    assert_eq!(
        world
            .memory
            .certificate(CertificateId(60))
            .unwrap()
            .versions
            .len(),
        1
    );
}

/// What has ended leaves before what could still be served, and a version that alone serves a host does not leave.
#[test]
fn no_host_goes_dark_by_a_version_too_many() {
    let mut world = given(live()).world;
    for round in 1..u32::try_from(VERSIONS_MAX).unwrap() {
        replace(
            &mut world,
            100 + u64::from(round),
            &["api.example.com"],
            NOW,
        )
        .unwrap();
        verify(&mut world, round + 1, NOW);
    }
    // Version 1 is the only one that names www.example.com, which is live.
    assert_eq!(
        replace(&mut world, 999, &["api.example.com"], NOW),
        Err(Code::LastUsable)
    );
    let off = SetHttps {
        host: "www.example.com".into(),
        https: Https::Off,
        region: None,
        expect: None,
    };
    world.run(Who::User, "acme", off, NOW).unwrap();
    let events = replace(&mut world, 999, &["api.example.com"], NOW).unwrap();
    assert!(
        matches!(&events[1], Event::CertificateReplaced(e) if e.dropped == [1]),
        "{events:?}"
    );
    // Its name is no longer covered, now; in the past it was.
    assert!(
        world
            .memory
            .covering(&slug("acme"), "www.example.com")
            .is_empty()
    );
    let before = world.next() - 5;
    let then = lifecycle::history::certificate_at(&world.memory, CertificateId(60), before);
    assert_eq!(then.unwrap().versions[0].version, 1);
    let past =
        lifecycle::history::ranking_at(&world.memory, &host("www.example.com"), "ru-1", before)
            .unwrap();
    assert_eq!(past.ranked.len(), 1);
}

/// Versions that nobody verifies do not pile up.
#[test]
fn unverified_versions_are_bounded() {
    let mut world = given(live()).world;
    let mut round = 1;
    let code = loop {
        match replace(&mut world, 100 + round, &["www.example.com"], NOW) {
            Ok(_) => round += 1,
            Err(code) => break code,
        }
        assert!(round < 100);
    };
    // The one that serves www.example.com stays in any case.
    assert_eq!(code, Code::LastUsable);
    let certificate = world.memory.certificate(CertificateId(60)).unwrap();
    assert_eq!(certificate.versions.len(), VERSIONS_MAX);
    assert_eq!(certificate.versions[0].status, Status::Ready);
    let release = ReleaseDomain {
        expect: None,
        host: "www.example.com".into(),
    };
    world.run(Who::User, "acme", release, NOW).unwrap();
    replace(&mut world, 998, &["www.example.com"], NOW).unwrap();
    assert_eq!(
        replace(&mut world, 999, &["www.example.com"], NOW),
        Err(Code::InProgress)
    );
}

/// More certificates for a name than are ranked once meant that the newest was not among them.
#[test]
fn no_ranking_is_cut_short() {
    let mut world = given(site()).world;
    let quota = SetQuota {
        project: slug("acme"),
        certificates: Some(1_000),
        per_region: Some(1_000),
    };
    world.run(Who::Operator, "platform", quota, NOW).unwrap();
    let add = |number: u64, names: &[&str]| AddCertificate {
        name: slug(&format!("c{number}")),
        kind: CertificateKind::Server,
        regions: slugs(&["ru-1"]),
        standby: false,
        facts: facts(number, names),
    };
    for number in 1..=COVER_LIMIT as u64 {
        let events = world
            .run(Who::User, "acme", add(number, &["*.example.com"]), NOW)
            .unwrap();
        let Some(Event::CertificateAdded(added)) = events.last() else {
            panic!("{events:?}")
        };
        let id = added.id;
        let verify = VerifyCertificate {
            id,
            version: 1,
            verdict: Ok(Trust::Public),
        };
        world.run(Who::System, "platform", verify, NOW).unwrap();
        let (_, ranked) = ranking(&world.memory, &host("www.example.com"), "ru-1").unwrap();
        assert_eq!(ranked.first().map(|c| c.certificate), Some(id));
    }
    let more = world.run(
        Who::User,
        "acme",
        add(9_999, &["a.example.com", "*.example.com"]),
        NOW,
    );
    assert_eq!(more.map_err(|r| r.0.code), Err(Code::QuotaExceeded));
    // A new version of one that is among them is none more; another name, or another project, is free.
    let again = ReplaceCertificate {
        name: slug("c7"),
        facts: facts(10_000, &["*.example.com"]),
        expect: None,
    };
    world.run(Who::User, "acme", again, NOW).unwrap();
    world
        .run(Who::User, "acme", add(9_999, &["a.example.com"]), NOW)
        .unwrap();
    world
        .run(Who::User, "beta", add(9_999, &["*.example.com"]), NOW)
        .unwrap();
    let remove = DeleteCertificate {
        name: slug("c8"),
        confirm: "c8".into(),
        force: false,
        expect: None,
    };
    world.run(Who::User, "acme", remove, NOW).unwrap();
    world
        .run(Who::User, "acme", add(10_001, &["*.example.com"]), NOW)
        .unwrap();
}

/// The guard against darkness reads a bounded number of rows, and where that is not enough it does not say yes.
#[test]
fn a_wildcard_with_many_hosts_is_not_deleted_by_guess() {
    let hosts = 5_000;
    let mut events = site();
    for number in 0..hosts {
        let name = format!("h{number:05}.example.com");
        events.push(acme(claimed(&name)));
        events.push(acme(proven(&name)));
        // All but the last are not attached, so only the last would go dark.
        if number == hosts - 1 {
            events.push(acme(attached(&name, 50, &["ru-1"])));
        }
    }
    events.push(acme(DomainReleased {
        host: host("www.example.com"),
    }));
    let mut world = estate();
    world.commit(events, NOW);
    let first = world.next();
    world.commit(
        ready(first + 1, "main", &["ru-1"], facts(1, &["*.example.com"])),
        NOW,
    );
    let delete = |force| DeleteCertificate {
        name: slug("main"),
        confirm: "main".into(),
        force,
        expect: None,
    };
    let started = Instant::now();
    let refused = world.decide(Who::User, "acme", &delete(false).into(), NOW);
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(refused.map_err(|r| r.0.code), Err(Code::LastUsable));
    let forced = world
        .decide(Who::User, "acme", &delete(true).into(), NOW)
        .unwrap();
    assert_eq!(forced.len(), 2);
}

/// A message names some of many hosts, not all of them.
#[test]
fn few_of_many_dark_hosts_are_named() {
    let mut events = site();
    for number in 0..100 {
        let name = format!("h{number:03}.example.com");
        events.extend([
            acme(claimed(&name)),
            acme(proven(&name)),
            acme(attached(&name, 50, &["ru-1"])),
        ]);
    }
    events.extend(ready(600, "main", &["ru-1"], facts(1, &["*.example.com"])));
    let delete = |force| DeleteCertificate {
        name: slug("main"),
        confirm: "main".into(),
        force,
        expect: None,
    };
    let reason = given(events.clone())
        .when(delete(false))
        .rejected(Code::LastUsable);
    assert_eq!(
        reason.message.matches(".example.com").count(),
        DARK_NAMED,
        "{reason:?}"
    );
    assert!(reason.message.contains("more"), "{reason:?}");
    let forced = given(events).when(delete(true)).decided.unwrap();
    assert!(matches!(&forced[0].1, Event::CertificateDeleted(e) if e.dark.len() == DARK_NAMED));
}

/// A resource with more hosts than anybody would scan still knows which of its regions is free of them.
#[test]
fn a_resource_with_many_hosts_can_leave_a_region() {
    let mut events = site();
    for number in 0..3_000 {
        let name = format!("h{number:05}.example.com");
        events.extend([acme(claimed(&name)), acme(attached(&name, 50, &["eu-1"]))]);
    }
    let mut world = estate();
    world.commit(events, NOW);
    let change = |regions: &[&str]| {
        Command::from(ChangeResource {
            demand_public: None,
            name: slug("web"),
            regions: Some(slugs(regions)),
            origin: None,
            keep_host: None,
            expect: None,
        })
    };
    let asked = |regions: &[&str]| {
        world
            .decide(Who::User, "acme", &change(regions), NOW)
            .map(|events| events.len())
            .map_err(|r| r.0.code)
    };
    assert_eq!(asked(&["eu-1", "ru-1"]), Ok(1));
    // www.example.com, attached in ru-1, comes after the 3,000 in the order of names.
    assert_eq!(asked(&["eu-1", "ru-2"]), Err(Code::Conflict));
}

/// A suspended project serves nothing, and serves again when it is resumed.
#[test]
fn nothing_of_a_suspended_project_is_served() {
    let mut world = given(live()).world;
    let served = |world: &World| {
        let (_, ranked) = ranking(&world.memory, &host("www.example.com"), "ru-1").unwrap();
        let provider = ranking(&world.memory, &host("web--acme.ru-1.chancery.test"), "ru-1");
        let resource = provider.unwrap().0.resource.unwrap();
        (ranked.len(), is_served(&world.memory, resource))
    };
    assert_eq!(served(&world), (1, true));
    let acme = || OfProject {
        project: slug("acme"),
    };
    world
        .run(
            Who::Operator,
            "platform",
            Command::SuspendProject(acme()),
            NOW,
        )
        .unwrap();
    assert_eq!(served(&world), (0, false));
    world
        .run(
            Who::Operator,
            "platform",
            Command::ResumeProject(acme()),
            NOW,
        )
        .unwrap();
    assert_eq!(served(&world), (1, true));
}
