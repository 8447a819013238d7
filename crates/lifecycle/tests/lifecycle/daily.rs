//! The daily life of a project: how much it may have, keys that are born inside, leave or move, hosts that another project
//! proves, and warnings before the end.

use lifecycle::command::*;
use lifecycle::decide::{CSRS_MAX, ranking};
use lifecycle::event::*;
use lifecycle::names::{CertificateId, ResourceId};
use lifecycle::rejection::Code;
use lifecycle::selection::KeyKind;
use lifecycle::state::{ClaimStatus, Quota, State, count};
use lifecycle::store::{Read, Table};

use crate::world::*;

fn add(name: &str, number: u64, regions: &[&str]) -> AddCertificate {
    AddCertificate {
        name: slug(name),
        kind: CertificateKind::Server,
        regions: slugs(regions),
        standby: false,
        facts: facts(number, &["www.example.com"]),
    }
}

fn quota(certificates: u32, per_region: u32) -> SetQuota {
    SetQuota {
        project: slug("acme"),
        certificates: Some(certificates),
        per_region: Some(per_region),
    }
}

// ---- quotas

#[test]
fn a_project_has_a_hundred_certificates_unless_told() {
    let mut world = given(site()).world;
    for number in 0..100 {
        let region = if number % 2 == 0 { "ru-1" } else { "ru-2" };
        world
            .run(
                Who::User,
                "acme",
                add(&format!("c{number}"), number, &[region]),
                NOW,
            )
            .unwrap();
    }
    let one_more = || add("more", 500, &["eu-1"]);
    let refused = world.run(Who::User, "acme", one_more(), NOW).unwrap_err();
    assert_eq!(refused.0.code, Code::QuotaExceeded);
    assert!(
        refused.0.message.contains("100 of at most 100"),
        "{refused}"
    );
    assert!(
        refused.0.hint.contains("chancery project quota acme"),
        "{refused}"
    );

    // What is deleted frees its place.
    for event in world.log.clone() {
        if let Event::CertificateAdded(e) = event.event
            && e.name.as_str() == "c0"
        {
            world.commit(vec![acme(verified(e.id.0, 1))], NOW);
        }
    }
    let delete = DeleteCertificate {
        name: slug("c0"),
        confirm: "c0".into(),
        force: true,
        expect: None,
    };
    world.run(Who::User, "acme", delete, NOW).unwrap();
    world.run(Who::User, "acme", one_more(), NOW).unwrap();

    // The operator gives more, and a user cannot.
    let more = quota(101, 100);
    let asked = world.run(Who::User, "acme", more.clone(), NOW).unwrap_err();
    assert_eq!(asked.0.code, Code::Unauthorized);
    world.run(Who::Operator, "platform", more, NOW).unwrap();
    world
        .run(Who::User, "acme", add("last", 501, &["eu-1"]), NOW)
        .unwrap();
    assert_eq!(
        world.memory.count(&slug("acme"), count::CERTIFICATES, ""),
        101
    );
}

#[test]
fn each_region_and_kind_has_a_limit_of_its_own() {
    let mut world = given(site()).world;
    world
        .run(Who::Operator, "platform", quota(1_000, 2), NOW)
        .unwrap();
    for number in 0..2 {
        world
            .run(
                Who::User,
                "acme",
                add(&format!("c{number}"), number, &["ru"]),
                NOW,
            )
            .unwrap();
    }
    let refused = world
        .run(Who::User, "acme", add("c2", 2, &["eu-1", "ru-2"]), NOW)
        .unwrap_err();
    assert_eq!(refused.0.code, Code::QuotaExceeded);
    assert!(
        refused
            .0
            .message
            .contains("2 of at most 2 server certificates in region ru-2")
    );
    // Another kind, and another region, are counted by themselves.
    let ca = AddCertificate {
        kind: CertificateKind::Ca,
        ..add("ca", 9, &["ru-2"])
    };
    world.run(Who::User, "acme", ca, NOW).unwrap();
    world
        .run(Who::User, "acme", add("c2", 2, &["eu-1"]), NOW)
        .unwrap();
    // What is deployed later is counted too, and what is withdrawn is not any more.
    let c2 = world.memory.certificate_named("acme", "c2").unwrap().id;
    world.commit(vec![acme(verified(c2.0, 1))], NOW);
    let deploy = DeployCertificate {
        name: slug("c2"),
        regions: slugs(&["ru-1"]),
        expect: None,
    };
    let refused = world
        .run(Who::User, "acme", deploy.clone(), NOW)
        .unwrap_err();
    assert_eq!(refused.0.code, Code::QuotaExceeded);
    let c0 = world.memory.certificate_named("acme", "c0").unwrap().id;
    world.commit(vec![acme(verified(c0.0, 1))], NOW);
    let withdraw = WithdrawCertificate {
        name: slug("c0"),
        regions: slugs(&["ru-1"]),
        force: true,
        expect: None,
    };
    world.run(Who::User, "acme", withdraw, NOW).unwrap();
    world.run(Who::User, "acme", deploy, NOW).unwrap();
}

#[test]
fn a_quota_has_bounds() {
    let given = || given(site());
    given()
        .when(SetQuota {
            project: slug("acme"),
            certificates: None,
            per_region: None,
        })
        .rejected(Code::Malformed);
    given()
        .when(quota(Quota::HARD_CAP + 1, 1))
        .rejected(Code::TooLarge);
    given()
        .when(SetQuota {
            project: slug("nobody"),
            ..quota(1, 1)
        })
        .rejected(Code::NotFound);
    given()
        .when(SetQuota {
            project: slug("acme"),
            certificates: Some(7),
            per_region: None,
        })
        .then_of(vec![acme(ProjectQuotaSet {
            project: slug("acme"),
            certificates: 7,
            per_region: 100,
        })]);
}

// ---- signing requests

fn csr(name: &str, number: u64) -> CreateCsr {
    CreateCsr {
        name: slug(name),
        spki: digest(number),
        key: KeyKind::P256,
        names: vec!["www.example.com".into()],
        request: digest(900),
    }
}

fn csr_created(name: &str, number: u64) -> Event {
    CsrCreated {
        name: slug(name),
        spki: digest(number),
        key: KeyKind::P256,
        names: vec!["www.example.com".into()],
        request: digest(900),
    }
    .into()
}

#[test]
fn a_key_is_born_inside_and_goes_to_the_certificate_that_comes() {
    given(site())
        .when(csr("shop", 5))
        .then(vec![sealed(5), csr_created("shop", 5)]);
    let mut world = given(vec![acme(sealed(5)), acme(csr_created("shop", 5))]).world;
    assert!(world.memory.csr("acme", "shop").is_some());
    // The key is known: no other is sealed, and the request is done.
    let events = world
        .run(Who::User, "acme", add("other-name", 5, &["ru-1"]), NOW)
        .unwrap();
    assert_eq!(events.len(), 1, "{events:?}");
    assert!(world.memory.csr("acme", "shop").is_none());
    assert_eq!(world.memory.count(&slug("acme"), count::CSRS, ""), 0);
    // It goes with the certificate, its only user.
    let id = world
        .memory
        .certificate_named("acme", "other-name")
        .unwrap()
        .id;
    world.commit(vec![acme(verified(id.0, 1))], NOW);
    let delete = DeleteCertificate {
        name: slug("other-name"),
        confirm: "other-name".into(),
        force: true,
        expect: None,
    };
    let events = world.run(Who::User, "acme", delete, NOW).unwrap();
    assert_eq!(events.last(), Some(&destroyed(5)));
}

#[test]
fn a_request_that_is_given_up_takes_its_key_along() {
    let there = || given(vec![acme(sealed(5)), acme(csr_created("shop", 5))]);
    there().when(DiscardCsr { name: slug("shop") }).then(vec![
        CsrDiscarded {
            name: slug("shop"),
            spki: digest(5),
        }
        .into(),
        destroyed(5),
    ]);
    there().when(csr("shop", 6)).rejected(Code::DuplicateName);
    there().when(csr("other", 5)).rejected(Code::Conflict);
    there()
        .when(DiscardCsr {
            name: slug("other"),
        })
        .rejected(Code::NotFound);
    there()
        .when(CreateCsr {
            names: vec!["not a host".into()],
            ..csr("other", 6)
        })
        .rejected(Code::Malformed);
    there()
        .when(CreateCsr {
            names: vec![],
            ..csr("other", 6)
        })
        .rejected(Code::Malformed);
    there()
        .when(DeleteProject {
            project: slug("acme"),
            confirm: "acme".into(),
        })
        .rejected(Code::Conflict);
    let many = (0..CSRS_MAX).flat_map(|n| {
        let n = u64::from(n);
        [acme(sealed(n)), acme(csr_created(&format!("c{n}"), n))]
    });
    given(many.collect())
        .when(csr("one-more", 5_000))
        .rejected(Code::QuotaExceeded);
}

// ---- export and move

fn export(version: Option<u32>) -> ExportCertificate {
    ExportCertificate {
        name: slug("main"),
        version,
        recipient: digest(77),
    }
}

fn no_export() -> lifecycle::decide::Decided {
    acme(ProjectExportSet {
        project: slug("acme"),
        export: false,
    })
}

#[test]
fn a_key_leaves_only_where_that_is_allowed() {
    given(live()).when(export(None)).then(vec![
        CertificateExported {
            id: CertificateId(60),
            version: 1,
            spki: digest(1),
            recipient: Some(digest(77)),
            to: None,
        }
        .into(),
    ]);
    given(live()).when(export(Some(2))).rejected(Code::NotFound);
    let mut off = live();
    off.push(no_export());
    given(off).when(export(None)).rejected(Code::Unauthorized);
    given(vec![acme(CertificateAdded {
        id: CertificateId(60),
        name: slug("main"),
        kind: CertificateKind::Ca,
        regions: slugs(&["ru-1"]),
        standby: false,
        facts: facts(1, &[]),
    })])
    .when(export(None))
    .rejected(Code::KeyMissing);
}

/// Who could hand out the right to take keys without having it would have it; and so would who moves them to where it has it.
#[test]
fn only_who_may_take_keys_out_lets_others_do_so() {
    let operator = |rights: &[&str]| {
        (
            slug("platform"),
            AccessCreated {
                project: slug("platform"),
                actor: slug("olga"),
                nkey: NKEY.into(),
                rights: rights.iter().map(|right| (*right).to_owned()).collect(),
                expires: None,
            }
            .into(),
        )
    };
    let with = |rights: &[&str]| {
        let mut events = live();
        events.push(operator(rights));
        given(events)
    };
    let grant = || CreateAccess {
        project: slug("acme"),
        name: slug("taker"),
        nkey: format!("UB{}", &NKEY[2..]),
        rights: vec!["cmd.certificate.export".into()],
        expires: None,
    };
    let all = ["cmd.>", "queue.>", "query.>", "evt.>"];
    with(&all).when(grant()).rejected(Code::Unauthorized);
    with(&all).when(to_beta()).rejected(Code::Unauthorized);
    let harmless = CreateAccess {
        rights: vec!["cmd.certificate.*".into()],
        ..grant()
    };
    assert!(with(&all).when(harmless).decided.is_ok());
    let mut more = all.to_vec();
    more.push("cmd.certificate.export");
    assert!(with(&more).when(grant()).decided.is_ok());
    assert!(with(&more).when(to_beta()).decided.is_ok());
}

fn to_beta() -> MoveCertificate {
    MoveCertificate {
        project: slug("acme"),
        name: slug("main"),
        to: slug("beta"),
        new_name: None,
        regions: None,
        confirm: "main".into(),
        force: true,
        expect: None,
    }
}

#[test]
fn a_certificate_moves_with_its_key_in_one_step() {
    given(live()).when(to_beta()).then_of(vec![
        acme(CertificateExported {
            id: CertificateId(60),
            version: 1,
            spki: digest(1),
            recipient: None,
            to: Some(slug("beta")),
        }),
        beta(sealed(1)),
        // Its id is the sequence of its own event.
        beta(added(
            THEN + 2,
            "main",
            &["ru-1"],
            facts(1, &["www.example.com"]),
        )),
        acme(CertificateDeleted {
            id: CertificateId(60),
            name: slug("main"),
            dark: vec![host("www.example.com")],
        }),
        acme(destroyed(1)),
    ]);
}

#[test]
fn a_move_is_guarded_on_both_sides() {
    let guarded = MoveCertificate {
        force: false,
        ..to_beta()
    };
    given(live()).when(guarded).rejected(Code::LastUsable);
    given(live())
        .by(Who::User)
        .of("acme")
        .when(to_beta())
        .rejected(Code::Unauthorized);
    let of = |change: fn(&mut MoveCertificate)| {
        let mut command = to_beta();
        change(&mut command);
        given(live()).when(command)
    };
    of(|c| c.confirm = "mein".into()).rejected(Code::ConfirmationMismatch);
    of(|c| c.to = slug("acme")).rejected(Code::Conflict);
    of(|c| c.to = slug("quiet")).rejected(Code::Conflict);
    of(|c| c.to = slug("nobody")).rejected(Code::NotFound);
    of(|c| c.expect = Some(9)).rejected(Code::Conflict);
    of(|c| c.regions = Some(vec![])).rejected(Code::Malformed);
    let mut taken = live();
    taken.extend([
        beta(sealed(3)),
        beta(added(80, "main", &["ru-1"], facts(3, &["a.example.com"]))),
    ]);
    given(taken).when(to_beta()).rejected(Code::DuplicateName);
    let mut off = live();
    off.push(no_export());
    given(off).when(to_beta()).rejected(Code::Unauthorized);
    let mut full = live();
    full.push(beta(ProjectQuotaSet {
        project: slug("beta"),
        certificates: 0,
        per_region: 100,
    }));
    given(full).when(to_beta()).rejected(Code::QuotaExceeded);
}

// ---- claims proven in the DNS

/// `www.example.com` is `acme`'s; `beta` claims it too, and its claim is the event of this sequence.
fn claimed_twice() -> (World, u64) {
    let mut world = given(live()).world;
    world.commit(vec![beta(claimed("www.example.com"))], NOW);
    let added = world.memory.claim("www.example.com", "beta").unwrap().added;
    (world, added)
}

fn found(added: u64) -> ProveByDns {
    ProveByDns {
        host: host("www.example.com"),
        added,
        proof: Proof::DnsTxt,
        grace: 7 * 86_400,
    }
}

fn settle(added: u64, proof: Option<Proof>) -> SettleContest {
    SettleContest {
        host: host("www.example.com"),
        added,
        proof,
    }
}

#[test]
fn a_free_host_is_proven_at_once() {
    let mut world = given(vec![]).world;
    world.commit(vec![acme(claimed("www.example.com"))], NOW);
    let added = world.memory.claim("www.example.com", "acme").unwrap().added;
    assert!(!world.memory.scan(Table::Pending, &[], None, 9).is_empty());
    let events = world.run(Who::System, "acme", found(added), NOW).unwrap();
    assert_eq!(
        events,
        vec![
            DomainProven {
                host: host("www.example.com"),
                proof: Proof::DnsTxt
            }
            .into()
        ]
    );
    assert!(world.memory.scan(Table::Pending, &[], None, 9).is_empty());
    // A second look finds that it is done; a look for a former claim, and one by a user, count for nothing.
    for (who, added) in [
        (Who::System, added),
        (Who::System, added - 1),
        (Who::User, added),
    ] {
        world.run(who, "acme", found(added), NOW).unwrap_err();
    }
}

#[test]
fn a_host_that_is_held_moves_when_its_holder_was_told_and_time_has_passed() {
    let (mut world, added) = claimed_twice();
    let until = NOW + 7 * DAY;
    let events = world.run(Who::System, "beta", found(added), NOW).unwrap();
    let told = DomainContested {
        host: host("www.example.com"),
        until,
        proof: Proof::DnsTxt,
    };
    let waits = DomainMoveScheduled {
        host: host("www.example.com"),
        until,
        proof: Proof::DnsTxt,
    };
    assert_eq!(events, vec![told.into(), waits.into()]);
    // It is served as it was.
    let holder = |world: &World| world.memory.holder("www.example.com").unwrap();
    assert_eq!(holder(&world), slug("acme"));
    assert!(ranking(&world.memory, &host("www.example.com"), "ru-1").is_some());
    assert_eq!(
        world
            .memory
            .claim("www.example.com", "acme")
            .unwrap()
            .contested,
        Some(until)
    );
    assert_eq!(
        world
            .memory
            .claim("www.example.com", "beta")
            .unwrap()
            .moves_at,
        Some(until)
    );
    // The same proof again changes nothing, and a third project waits.
    let again = world
        .run(Who::System, "beta", found(added), NOW)
        .unwrap_err();
    assert_eq!(again.0.code, Code::InProgress);
    world.commit(vec![(slug("stranger"), claimed("www.example.com"))], NOW);
    let third = world
        .memory
        .claim("www.example.com", "stranger")
        .unwrap()
        .added;
    let third = world
        .run(Who::System, "stranger", found(third), NOW)
        .unwrap_err();
    assert_eq!(third.0.code, Code::InProgress);

    let proof = Some(Proof::DnsTxt);
    let early = world
        .run(Who::System, "beta", settle(added, proof), until - 1)
        .unwrap_err();
    assert_eq!(early.0.code, Code::InProgress);
    world
        .run(Who::System, "beta", settle(added, proof), until)
        .unwrap();
    assert_eq!(holder(&world), slug("beta"));
    let former = world.memory.claim("www.example.com", "acme").unwrap();
    assert_eq!(
        (former.status, former.contested),
        (ClaimStatus::Moved, None)
    );
    assert!(world.memory.scan(Table::Contest, &[], None, 9).is_empty());
}

/// An alias carries no token: it may be left over from years ago.
#[test]
fn an_alias_takes_no_host_from_its_holder() {
    let (mut world, added) = claimed_twice();
    let alias = || ProveByDns {
        proof: Proof::DnsCname,
        ..found(added)
    };
    let refused = world.run(Who::System, "beta", alias(), NOW).unwrap_err();
    assert_eq!(refused.0.code, Code::DomainClaimed);
    world.run(Who::System, "beta", found(added), NOW).unwrap();
    let settled = settle(added, Some(Proof::DnsCname));
    let events = world
        .run(Who::System, "beta", settled, NOW + 7 * DAY)
        .unwrap();
    assert!(matches!(events[0], Event::DomainContestLapsed(_)));
    assert_eq!(world.memory.holder("www.example.com"), Some(slug("acme")));
    // Where nobody holds the host, it is enough.
    let release = ReleaseDomain {
        host: "www.example.com".into(),
        expect: None,
    };
    world
        .run(Who::User, "acme", release, NOW + 8 * DAY)
        .unwrap();
    world
        .run(Who::System, "beta", alias(), NOW + 8 * DAY)
        .unwrap();
    assert_eq!(world.memory.holder("www.example.com"), Some(slug("beta")));
}

#[test]
fn a_proof_that_is_gone_moves_nothing() {
    let (mut world, added) = claimed_twice();
    world.run(Who::System, "beta", found(added), NOW).unwrap();
    let events = world
        .run(Who::System, "beta", settle(added, None), NOW + 7 * DAY)
        .unwrap();
    assert_eq!(events.len(), 2, "both are told: {events:?}");
    assert_eq!(world.memory.holder("www.example.com"), Some(slug("acme")));
    assert_eq!(
        world
            .memory
            .claim("www.example.com", "acme")
            .unwrap()
            .contested,
        None
    );
    assert_eq!(
        world
            .memory
            .claim("www.example.com", "beta")
            .unwrap()
            .moves_at,
        None
    );
    assert!(world.memory.scan(Table::Contest, &[], None, 9).is_empty());
    // It may be proven anew.
    world
        .run(Who::System, "beta", found(added), NOW + 8 * DAY)
        .unwrap();
}

#[test]
fn a_claimant_that_gives_up_relieves_the_holder() {
    let (mut world, added) = claimed_twice();
    world.run(Who::System, "beta", found(added), NOW).unwrap();
    let release = ReleaseDomain {
        host: "www.example.com".into(),
        expect: None,
    };
    world.run(Who::User, "beta", release, NOW).unwrap();
    assert_eq!(
        world
            .memory
            .claim("www.example.com", "acme")
            .unwrap()
            .contested,
        None
    );
    assert!(world.memory.scan(Table::Contest, &[], None, 9).is_empty());
}

/// Nobody holds the host any more: whoever proved it must not wait for a grace that protects nobody.
#[test]
fn a_holder_that_gives_up_frees_the_claimant() {
    let (mut world, added) = claimed_twice();
    world.run(Who::System, "beta", found(added), NOW).unwrap();
    let release = ReleaseDomain {
        host: "www.example.com".into(),
        expect: None,
    };
    let events = world.run(Who::User, "acme", release, NOW).unwrap();
    assert!(
        matches!(events.last(), Some(Event::DomainContestLapsed(_))),
        "the prover is woken by it: {events:?}"
    );
    let claim = world.memory.claim("www.example.com", "beta").unwrap();
    assert_eq!(claim.moves_at, None);
    assert!(world.memory.scan(Table::Contest, &[], None, 9).is_empty());
    world.run(Who::System, "beta", found(added), NOW).unwrap();
    assert_eq!(world.memory.holder("www.example.com"), Some(slug("beta")));
}

/// An operator gave the host to somebody who was never told of the contest: it must not move at once.
#[test]
fn a_holder_that_was_not_told_keeps_the_host() {
    let (mut world, added) = claimed_twice();
    world.run(Who::System, "beta", found(added), NOW).unwrap();
    world.commit(vec![(slug("stranger"), claimed("www.example.com"))], NOW);
    let prove = ProveDomain {
        project: slug("stranger"),
        host: "www.example.com".into(),
        force: true,
    };
    world.run(Who::Operator, "platform", prove, NOW).unwrap();
    assert_eq!(
        world
            .memory
            .claim("www.example.com", "beta")
            .unwrap()
            .moves_at,
        None
    );
    assert!(world.memory.scan(Table::Contest, &[], None, 9).is_empty());
    world
        .run(
            Who::System,
            "beta",
            settle(added, Some(Proof::DnsTxt)),
            NOW + 7 * DAY,
        )
        .unwrap_err();
    assert_eq!(
        world.memory.holder("www.example.com"),
        Some(slug("stranger"))
    );
    // The proof that still stands begins a contest with the new holder.
    let events = world
        .run(Who::System, "beta", found(added), NOW + 7 * DAY)
        .unwrap();
    assert!(matches!(events[0], Event::DomainContested(_)), "{events:?}");
}

// ---- warnings

fn warn(version: u32) -> WarnCertificate {
    WarnCertificate {
        id: CertificateId(60),
        version,
    }
}

fn warned(world: &mut World, version: u32, now: i64) -> Result<CertificateExpiring, Code> {
    match world.run(Who::System, "platform", warn(version), now) {
        Ok(events) => match events.into_iter().next() {
            Some(Event::CertificateExpiring(event)) => Ok(event),
            other => panic!("{other:?}"),
        },
        Err(rejection) => Err(rejection.0.code),
    }
}

#[test]
fn each_stage_is_warned_of_once() {
    let mut world = given(live()).world;
    let end = NOW + 365 * DAY;
    for (stage, days) in [(1, 30), (2, 14), (3, 7), (4, 3), (5, 1)] {
        let due = end - days * DAY;
        assert_eq!(warned(&mut world, 1, due - 1), Err(Code::Conflict));
        let event = warned(&mut world, 1, due).unwrap();
        assert_eq!(
            (event.stage, event.left),
            (stage, u64::try_from(days * DAY).unwrap())
        );
        assert_eq!(event.hosts.len(), 1);
        assert_eq!(event.hosts[0].until, end);
        assert!(event.next.contains("chancery certificate replace main"));
        assert_eq!(
            warned(&mut world, 1, due),
            Err(Code::Conflict),
            "no warning twice"
        );
    }
    assert!(world.memory.scan(Table::Warning, &[], None, 9).is_empty());
}

#[test]
fn a_clock_that_comes_late_warns_of_the_nearest_only() {
    let mut world = given(live()).world;
    let end = NOW + 365 * DAY;
    let event = warned(&mut world, 1, end - 5 * DAY).unwrap();
    assert_eq!(event.stage, 3);
    assert_eq!(warned(&mut world, 1, end - 5 * DAY), Err(Code::Conflict));
    assert_eq!(warned(&mut world, 1, end - 3 * DAY).unwrap().stage, 4);
}

#[test]
fn a_short_life_is_warned_of_in_its_own_measure() {
    let short = Facts {
        not_before: NOW - DAY,
        not_after: NOW - DAY + 9 * DAY,
        ..facts(1, &["www.example.com"])
    };
    assert_eq!(
        lifecycle::evolve::warnings(&short).map(|due| (short.not_after - due) / 360),
        [30 * 24, 14 * 24, 7 * 24, 3 * 24, 24]
    );
}

#[test]
fn only_the_latest_version_that_is_ready_is_warned_of() {
    let mut events = live();
    let new = Facts {
        not_after: NOW + 700 * DAY,
        ..facts(2, &["www.example.com"])
    };
    events.extend([
        acme(sealed(2)),
        acme(CertificateReplaced {
            id: CertificateId(60),
            version: 2,
            facts: new,
            dropped: vec![],
        }),
    ]);
    let world = given(events).world;
    let first = NOW + 335 * DAY;
    // Not verified yet: the old one is what there is.
    assert_eq!(warned(&mut world.clone(), 1, first).unwrap().version, 1);
    let mut verified_too = world.clone();
    verified_too.commit(vec![acme(verified(60, 2))], NOW);
    assert_eq!(warned(&mut verified_too, 1, first), Err(Code::Conflict));
    assert_eq!(
        warned(&mut verified_too.clone(), 2, NOW + 670 * DAY)
            .unwrap()
            .stage,
        1
    );
    // Revoked again: the old one counts again.
    verified_too.commit(
        vec![acme(CertificateRevoked {
            id: CertificateId(60),
            version: 2,
            reasons: vec![],
        })],
        NOW,
    );
    assert_eq!(warned(&mut verified_too, 1, first).unwrap().version, 1);
}

#[test]
fn a_warning_says_when_nothing_depends_on_it() {
    let mut events = live();
    events.extend(ready(
        70,
        "newer",
        &["ru-1"],
        facts(2, &["www.example.com"]),
    ));
    let mut world = given(events).world;
    let event = warned(&mut world, 1, NOW + 335 * DAY).unwrap();
    assert!(event.hosts.is_empty());
    assert!(event.next.contains("no host depends on it"));
}

// ---- what one command may read

/// Counts the rows that are read, and their bytes.
struct Counting<'a> {
    memory: &'a lifecycle::store::Memory,
    rows: std::cell::Cell<usize>,
    bytes: std::cell::Cell<usize>,
}

impl Counting<'_> {
    fn count(&self, row: &[u8]) {
        self.rows.set(self.rows.get() + 1);
        self.bytes.set(self.bytes.get() + row.len());
    }
}

impl Read for Counting<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Option<Vec<u8>> {
        let row = self.memory.get(table, key);
        self.count(row.as_deref().unwrap_or_default());
        row
    }

    fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Vec<lifecycle::store::Row> {
        let rows = self.memory.scan(table, prefix, after, limit);
        rows.iter().for_each(|(_, row)| self.count(row));
        rows
    }

    fn last(&self, table: Table, prefix: &[u8], upper: &[u8]) -> Option<lifecycle::store::Row> {
        self.memory.last(table, prefix, upper)
    }
}

/// A wildcard with many hosts below it, and many large certificates for it: all that a project may have.
fn crowded() -> World {
    let mut world = given(site()).world;
    let mut events = vec![acme(ProjectQuotaSet {
        project: slug("acme"),
        certificates: 1_000,
        per_region: 1_000,
    })];
    events.extend([
        acme(claimed("*.example.org")),
        acme(proven("*.example.org")),
    ]);
    events.push(acme(attached("*.example.org", 50, &["ru-1"])));
    for number in 0..400 {
        let name = format!("h{number}.example.org");
        events.push(acme(claimed(&name)));
        events.push(acme(proven(&name)));
        events.push(acme(attached(&name, 50, &["ru-1", "ru-2", "eu-1"])));
    }
    let mut names: Vec<String> = (0..249).map(|n| format!("h{n}.example.org")).collect();
    names.push("*.example.org".into());
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    world.commit(events, NOW);
    for number in 0..100u64 {
        let at = world.next();
        let regions = ["eu-1", "ru-1", "ru-2"];
        let events = ready(
            at + 1,
            &format!("c{number}"),
            &regions,
            facts(number, &names),
        );
        world.commit(events, NOW);
    }
    world
}

#[test]
fn no_command_reads_all_that_a_project_has() {
    let world = crowded();
    let first = world.memory.certificate_named("acme", "c0").unwrap();
    let (due, _) = first.warning.unwrap();
    let demand = ChangeResource {
        name: slug("web"),
        regions: None,
        origin: None,
        keep_host: None,
        demand_public: Some(true),
        expect: None,
    };
    let delete = DeleteCertificate {
        name: slug("c0"),
        confirm: "c0".into(),
        force: false,
        expect: None,
    };
    let warn = WarnCertificate {
        id: first.id,
        version: 1,
    };
    let commands: [(Who, &str, Command, i64); 3] = [
        (Who::System, "platform", warn.into(), due),
        (Who::User, "acme", demand.into(), NOW),
        (Who::User, "acme", delete.into(), NOW),
    ];
    for (who, project, command, now) in commands {
        let counting = Counting {
            memory: &world.memory,
            rows: 0.into(),
            bytes: 0.into(),
        };
        let (actor, operator) = match who {
            Who::System => ("_system", true),
            _ => ("alice", false),
        };
        let context = Context {
            project: slug(project),
            asker: Asker {
                actor: actor.into(),
                project: slug(project),
                operator,
            },
            now: now * 1_000_000,
            sequence: world.next(),
        };
        let decided = lifecycle::decide::decide(&counting, &command, &context);
        let (rows, bytes) = (counting.rows.get(), counting.bytes.get());
        assert!(
            rows < 40_000 && bytes < 16 << 20,
            "{}: {rows} rows, {bytes} bytes",
            variant(&command)
        );
        if let Command::WarnCertificate(_) = command {
            let Ok([(_, Event::CertificateExpiring(event))]) = decided.as_deref() else {
                panic!("{decided:?}");
            };
            assert!(event.more_hosts, "it says that it did not look at all");
        }
    }
}

// ---- public trust

#[test]
fn a_resource_that_demands_public_trust_gets_nothing_else() {
    let private = |number: u64, id: u64, name: &str| {
        vec![
            acme(sealed(number)),
            acme(added(
                id,
                name,
                &["ru-1"],
                facts(number, &["www.example.com"]),
            )),
            acme(CertificateVerified {
                id: CertificateId(id),
                version: 1,
                trust: Trust::Private,
            }),
        ]
    };
    let demand = |demand_public| ChangeResource {
        name: slug("web"),
        regions: None,
        origin: None,
        keep_host: None,
        demand_public: Some(demand_public),
        expect: None,
    };
    let mut only_private = site();
    only_private.extend(private(1, 60, "main"));
    let refused = given(only_private.clone())
        .when(demand(true))
        .rejected(Code::ChainUntrusted);
    assert!(refused.message.contains("www.example.com"));

    let mut both = only_private;
    both.extend(ready(
        65,
        "public",
        &["ru-1"],
        facts(2, &["www.example.com"]),
    ));
    both.extend(private(3, 70, "newest"));
    let mut world = given(both).world;
    let active = |world: &World| {
        let (_, ranked) = ranking(&world.memory, &host("www.example.com"), "ru-1").unwrap();
        ranked.iter().map(|c| c.certificate.0).collect::<Vec<_>>()
    };
    assert_eq!(active(&world), [70, 65, 60]);
    world.run(Who::User, "acme", demand(true), NOW).unwrap();
    assert_eq!(active(&world), [65]);
    let before = world.log.last().unwrap().sequence;
    let past =
        lifecycle::history::ranking_at(&world.memory, &host("www.example.com"), "ru-1", before);
    assert_eq!(past.unwrap().ranked.len(), 1, "history knows it too");
    let past =
        lifecycle::history::ranking_at(&world.memory, &host("www.example.com"), "ru-1", before - 1);
    assert_eq!(
        past.unwrap().ranked.len(),
        3,
        "and that it was not so before"
    );
    let bind = BindDomain {
        host: "www.example.com".into(),
        certificate: slug("main"),
        region: None,
        expect: None,
    };
    let refused = world.run(Who::User, "acme", bind, NOW).unwrap_err();
    assert_eq!(refused.0.code, Code::ChainUntrusted);
    // The one public certificate is now the last usable one.
    let delete = DeleteCertificate {
        name: slug("public"),
        confirm: "public".into(),
        force: false,
        expect: None,
    };
    let refused = world
        .run(Who::User, "acme", delete.clone(), NOW)
        .unwrap_err();
    assert_eq!(refused.0.code, Code::LastUsable);
    world.run(Who::User, "acme", demand(false), NOW).unwrap();
    world.run(Who::User, "acme", delete, NOW).unwrap();
    assert!(world.memory.resource(ResourceId(50)).is_some());
}
