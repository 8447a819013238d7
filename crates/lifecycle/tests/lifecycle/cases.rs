//! Each command: what it gives, and each rejection that it can meet.

use lifecycle::command::*;
use lifecycle::event::*;
use lifecycle::names::{CertificateId, ResourceId};
use lifecycle::rejection::{Code, Reason};
use lifecycle::selection::KeyKind;

use crate::world::*;

fn of(project: &str) -> OfProject {
    OfProject {
        project: slug(project),
    }
}

fn suspend(project: &str) -> Command {
    Command::SuspendProject(of(project))
}

fn resume(project: &str) -> Command {
    Command::ResumeProject(of(project))
}

#[test]
fn projects() {
    let create = |project: &str| CreateProject {
        project: slug(project),
    };
    given(vec![]).when(create("gamma")).then_of(vec![(
        slug("gamma"),
        ProjectCreated {
            project: slug("gamma"),
        }
        .into(),
    )]);
    for taken in [
        "acme", "quiet", "platform", "sys", "core", "edges", "internal",
    ] {
        given(vec![])
            .when(create(taken))
            .rejected(Code::DuplicateName);
    }
    for bad in ["ab".to_owned(), "a".repeat(41)] {
        given(vec![]).when(create(&bad)).rejected(Code::Malformed);
    }
    let gone = || {
        vec![beta(ProjectDeleted {
            project: slug("beta"),
        })]
    };
    given(gone())
        .when(create("beta"))
        .rejected(Code::DuplicateName);

    given(vec![])
        .when(suspend("acme"))
        .then_of(vec![acme(ProjectSuspended {
            project: slug("acme"),
        })]);
    given(vec![])
        .when(suspend("quiet"))
        .rejected(Code::Conflict);
    given(vec![])
        .when(suspend("platform"))
        .rejected(Code::Conflict);
    given(vec![])
        .when(suspend("nobody"))
        .rejected(Code::NotFound);
    given(gone()).when(suspend("beta")).rejected(Code::NotFound);

    given(vec![]).when(resume("quiet")).then(vec![
        ProjectResumed {
            project: slug("quiet"),
        }
        .into(),
    ]);
    given(vec![]).when(resume("acme")).rejected(Code::Conflict);
    given(vec![])
        .when(resume("nobody"))
        .rejected(Code::NotFound);

    let delete = |project: &str, confirm: &str| DeleteProject {
        project: slug(project),
        confirm: confirm.into(),
    };
    given(vec![])
        .when(delete("acme", "acme"))
        .then_of(vec![acme(ProjectDeleted {
            project: slug("acme"),
        })]);
    given(vec![]).when(delete("quiet", "quiet")).then(vec![
        ProjectDeleted {
            project: slug("quiet"),
        }
        .into(),
    ]);
    given(vec![])
        .when(delete("acme", "Acme"))
        .rejected(Code::ConfirmationMismatch);
    given(vec![])
        .when(delete("platform", "platform"))
        .rejected(Code::Conflict);
    given(vec![])
        .when(delete("nobody", "nobody"))
        .rejected(Code::NotFound);
    given(vec![acme(claimed("a.example.com"))])
        .when(delete("acme", "acme"))
        .rejected(Code::Conflict);
    given(vec![acme(resource(
        50,
        "web",
        ResourceKind::Cdn,
        &["ru-1"],
    ))])
    .when(delete("acme", "acme"))
    .rejected(Code::Conflict);
    given(ready(60, "main", &["ru-1"], facts(1, &["a.example.com"])))
        .when(delete("acme", "acme"))
        .rejected(Code::Conflict);
}

#[test]
fn who_may_ask_what() {
    let add = || AddDomain {
        host: "a.example.com".into(),
        resource: None,
        regions: vec![],
    };
    given(vec![])
        .by(Who::Stranger)
        .when(add())
        .rejected(Code::Unauthorized);
    given(vec![])
        .of("quiet")
        .when(add())
        .rejected(Code::Unauthorized);
    given(vec![])
        .of("nobody")
        .when(add())
        .rejected(Code::NotFound);
    given(vec![])
        .of("quiet")
        .by(Who::Operator)
        .when(add())
        .then(vec![claimed("a.example.com"), proven("a.example.com")]);
    let create = || CreateProject {
        project: slug("gamma"),
    };
    given(vec![])
        .by(Who::User)
        .when(create())
        .rejected(Code::Unauthorized);
    // An operator, but on a project's subject.
    given(vec![])
        .of("acme")
        .when(create())
        .rejected(Code::Unauthorized);
    let expire = || ExpireCertificate {
        id: CertificateId(60),
        version: 1,
    };
    given(live())
        .by(Who::Operator)
        .when(expire())
        .rejected(Code::Unauthorized);
    given(live())
        .of("acme")
        .by(Who::User)
        .when(expire())
        .rejected(Code::Unauthorized);
}

#[test]
fn access() {
    let create = || CreateAccess {
        project: slug("acme"),
        name: slug("bob"),
        nkey: NKEY.into(),
        rights: vec![],
        expires: None,
    };
    let created = |rights: Vec<&str>, expires| AccessCreated {
        project: slug("acme"),
        actor: slug("bob"),
        nkey: NKEY.into(),
        rights: rights.into_iter().map(str::to_owned).collect(),
        expires,
    };
    let everything = || created(vec!["cmd.>", "queue.>", "query.>", "evt.>"], None);
    given(vec![])
        .when(create())
        .then_of(vec![acme(everything())]);
    given(vec![])
        .when(CreateAccess {
            rights: vec!["cmd.certificate.*".into(), "query.>".into()],
            expires: Some(NOW + 1),
            ..create()
        })
        .then_of(vec![acme(created(
            vec!["cmd.certificate.*", "query.>"],
            Some(NOW + 1),
        ))]);
    given(vec![acme(everything())])
        .when(create())
        .rejected(Code::DuplicateName);
    given(vec![acme(everything())])
        .when(CreateAccess {
            project: slug("beta"),
            name: slug("rob"),
            ..create()
        })
        .rejected(Code::Conflict);
    given(vec![])
        .when(CreateAccess {
            project: slug("nobody"),
            ..create()
        })
        .rejected(Code::NotFound);
    for nkey in ["", "UABC", &NKEY.replace('U', "A"), &NKEY.to_lowercase()] {
        given(vec![])
            .when(CreateAccess {
                nkey: nkey.into(),
                ..create()
            })
            .rejected(Code::Malformed);
    }
    given(vec![])
        .when(CreateAccess {
            expires: Some(NOW),
            ..create()
        })
        .rejected(Code::Malformed);
    given(vec![])
        .when(CreateAccess {
            rights: vec!["query.>".into(); 33],
            ..create()
        })
        .rejected(Code::TooLarge);
    for right in [
        "",
        "cmd",
        "cmd.",
        "cmd..add",
        ">",
        "*.>",
        "cmd.>.add",
        "log.>",
        "region.>",
        "$SYS.>",
        "cmd.a.b.c.d",
        "cmd.certificate add",
        "cmd.certificate.*x",
        "CMD.>",
        "cmd.\u{441}.add",
        "cmd.a\n.b",
        "evt.>\0",
    ] {
        given(vec![])
            .when(CreateAccess {
                rights: vec![right.into()],
                ..create()
            })
            .rejected(Code::Malformed);
    }

    let revoke = || RevokeAccess {
        project: slug("acme"),
        name: slug("bob"),
    };
    let revoked = || AccessRevoked {
        project: slug("acme"),
        actor: slug("bob"),
        nkey: NKEY.into(),
    };
    given(vec![acme(everything())])
        .when(revoke())
        .then_of(vec![acme(revoked())]);
    given(vec![]).when(revoke()).rejected(Code::NotFound);
    given(vec![acme(everything()), acme(revoked())])
        .when(revoke())
        .rejected(Code::Conflict);
    // A revoked key stays burnt, and so does the name.
    given(vec![acme(everything()), acme(revoked())])
        .when(create())
        .rejected(Code::DuplicateName);
    let olga = AccessCreated {
        project: slug("platform"),
        actor: slug("olga"),
        ..everything()
    };
    given(vec![(slug("platform"), olga.into())])
        .when(RevokeAccess {
            project: slug("platform"),
            name: slug("olga"),
        })
        .rejected(Code::Conflict);
}

#[test]
fn who_was_revoked_and_who_has_chosen_rights_gets_no_further() {
    let access = |project: &str, actor: &str, rights: &[&str]| AccessCreated {
        project: slug(project),
        actor: slug(actor),
        nkey: NKEY.into(),
        rights: rights.iter().map(|&right| right.to_owned()).collect(),
        expires: None,
    };
    let everything = ["cmd.>", "queue.>", "query.>", "evt.>"];
    // Taken in before the revocation, decided after it: a command that waited in the queue.
    let revoked = AccessRevoked {
        project: slug("acme"),
        actor: slug("alice"),
        nkey: NKEY.into(),
    };
    let add = || AddDomain {
        host: "www.example.com".into(),
        resource: None,
        regions: vec![],
    };
    let alice = || acme(access("acme", "alice", &everything));
    given(vec![alice()])
        .when(add())
        .then(vec![claimed("www.example.com")]);
    given(vec![alice(), acme(revoked)])
        .when(add())
        .rejected(Code::Unauthorized);

    // Olga may give access to projects. If she could make operators, she could give herself everything.
    let give = |project: &str| CreateAccess {
        project: slug(project),
        name: slug("bob"),
        nkey: NKEY.replace('2', "3"),
        rights: vec![],
        expires: None,
    };
    let olga = |rights: &[&str]| {
        let event: Event = access("platform", "olga", rights).into();
        vec![(slug("platform"), event)]
    };
    let all = access("acme", "bob", &everything);
    let all = AccessCreated {
        nkey: give("acme").nkey,
        ..all
    };
    given(olga(&["cmd.access.*"]))
        .when(give("acme"))
        .then_of(vec![acme(all.clone())]);
    given(olga(&["cmd.access.*"]))
        .when(give("platform"))
        .rejected(Code::Unauthorized);
    given(olga(&["cmd.access.*"]))
        .when(RevokeAccess {
            project: slug("platform"),
            name: slug("root"),
        })
        .rejected(Code::Unauthorized);
    let operator = AccessCreated {
        project: slug("platform"),
        ..all
    };
    given(olga(&everything))
        .when(give("platform"))
        .then_of(vec![(slug("platform"), operator.into())]);
}

#[test]
fn rights_allow_what_they_match_and_nothing_else() {
    use lifecycle::decide::rights::{allow, member};
    for (rights, subject, may) in [
        (vec!["cmd.certificate.*"], "cmd.certificate.add", true),
        (vec!["cmd.certificate.*"], "cmd.certificate", false),
        (vec!["cmd.certificate.*"], "cmd.certificate.add.more", false),
        (vec!["cmd.certificate.*"], "cmd.domain.add", false),
        (vec!["cmd.>"], "cmd.certificate.add", true),
        (vec!["cmd.>"], "cmd", false),
        (vec!["cmd.>"], "query.certificates", false),
        (vec!["cmd.*.add", "query.host"], "cmd.domain.add", true),
        (vec!["cmd.*.add", "query.host"], "query.hosts", false),
        (vec![], "cmd.domain.add", false),
    ] {
        let rights: Vec<String> = rights.into_iter().map(str::to_owned).collect();
        assert_eq!(allow(&rights, subject), may, "{rights:?} {subject}");
    }
    assert!(allow(&member(), "evt.certificate.added"));
    assert!(!allow(&member(), "log.certificate.added"));
}

#[test]
fn regions_and_edges() {
    let create = |region: &str| CreateRegion {
        region: slug(region),
        key: digest(9),
        key_version: 1,
    };
    given(vec![]).when(create("us-1")).then(vec![
        RegionCreated {
            region: slug("us-1"),
            key: digest(9),
            key_version: 1,
        }
        .into(),
    ]);
    given(vec![])
        .when(create("ru-1"))
        .rejected(Code::DuplicateName);
    given(vec![])
        .when(create("ru"))
        .rejected(Code::DuplicateName);
    // A region is a label of provider domains, and a label has at most 63 bytes.
    given(vec![])
        .when(create(&"a".repeat(64)))
        .rejected(Code::TooLarge);

    let country = |country: &str, regions: &[&str]| SetCountry {
        country: slug(country),
        regions: slugs(regions),
    };
    given(vec![])
        .when(country("all", &["ru-2", "eu-1", "ru-2"]))
        .then(vec![
            RegionCountrySet {
                country: slug("all"),
                regions: slugs(&["eu-1", "ru-2"]),
            }
            .into(),
        ]);
    given(vec![])
        .when(country("ru-1", &["ru-2"]))
        .rejected(Code::DuplicateName);
    given(vec![])
        .when(country("all", &["mars"]))
        .rejected(Code::NotFound);
    given(vec![])
        .when(country("all", &["ru"]))
        .rejected(Code::Conflict);
    given(vec![])
        .when(country("all", &[]))
        .rejected(Code::Malformed);
    given(vec![])
        .when(country("all", &vec!["ru-1"; 101]))
        .rejected(Code::TooLarge);

    let enrol = |region: &str, edge: &str, token: &str| EnrolEdge {
        region: slug(region),
        edge: slug(edge),
        nkey: NKEY.into(),
        hpke: digest(11),
        token: token.into(),
    };
    let enrolled = |region: &str, edge: &str, token: &str| RegionEdgeEnrolled {
        region: slug(region),
        edge: slug(edge),
        nkey: NKEY.into(),
        hpke: digest(11),
        token: token.into(),
    };
    let here = |event: RegionEdgeEnrolled| (slug("platform"), Event::from(event));
    let evicted = || RegionEdgeEvicted {
        region: slug("ru-1"),
        edge: slug("one"),
        nkey: NKEY.into(),
    };
    let put_out = || (slug("platform"), Event::from(evicted()));
    given(vec![])
        .when(enrol("ru-1", "one", "t1"))
        .then(vec![enrolled("ru-1", "one", "t1").into()]);
    given(vec![])
        .when(enrol("mars", "one", "t1"))
        .rejected(Code::NotFound);
    let joined = || vec![here(enrolled("ru-1", "one", "t1"))];
    given(joined())
        .when(enrol("ru-1", "one", "t2"))
        .rejected(Code::DuplicateName);
    // A token works once: not for another name, nor in another region, nor after the edge came back with another token.
    given(joined())
        .when(enrol("ru-1", "two", "t1"))
        .rejected(Code::Conflict);
    given(joined())
        .when(enrol("ru-2", "one", "t1"))
        .rejected(Code::Conflict);
    let back = || {
        let mut events = joined();
        events.push(put_out());
        events.push(here(enrolled("ru-1", "one", "t2")));
        events.push(put_out());
        events
    };
    given(back())
        .when(enrol("ru-1", "one", "t1"))
        .rejected(Code::Conflict);
    given(back())
        .when(enrol("ru-1", "one", "t3"))
        .then(vec![enrolled("ru-1", "one", "t3").into()]);
    for token in ["", "a b", "a\0b", &"t".repeat(129)] {
        given(vec![])
            .when(enrol("ru-1", "one", token))
            .rejected(Code::Malformed);
    }
    given(vec![])
        .when(EnrolEdge {
            nkey: "nothing".into(),
            ..enrol("ru-1", "one", "t1")
        })
        .rejected(Code::Malformed);

    let evict = |edge: &str| EvictEdge {
        region: slug("ru-1"),
        edge: slug(edge),
    };
    given(joined())
        .when(evict("one"))
        .then(vec![evicted().into()]);
    given(joined()).when(evict("two")).rejected(Code::NotFound);
    given(back()).when(evict("one")).rejected(Code::NotFound);

    let rotate = |region: &str, key_version| RotateRegionKey {
        region: slug(region),
        key: digest(12),
        key_version,
    };
    given(vec![]).when(rotate("ru-1", 2)).then(vec![
        RegionKeyRotated {
            region: slug("ru-1"),
            key: digest(12),
            key_version: 2,
        }
        .into(),
    ]);
    given(vec![])
        .when(rotate("ru-1", 1))
        .rejected(Code::Conflict);
    given(vec![])
        .when(rotate("mars", 2))
        .rejected(Code::NotFound);

    let report = |region: &str| ReportApplied {
        region: slug(region),
        applied: 17,
        of: 2,
        behind: slugs(&["one"]),
    };
    given(vec![]).when(report("ru-1")).then(vec![
        RegionApplied {
            region: slug("ru-1"),
            applied: 17,
            of: 2,
            behind: slugs(&["one"]),
        }
        .into(),
    ]);
    given(vec![]).when(report("mars")).rejected(Code::NotFound);
}

#[test]
fn resources() {
    let create = || CreateResource {
        demand_public: false,
        name: slug("web"),
        kind: ResourceKind::Cdn,
        regions: slugs(&["ru", "eu-1"]),
        origin: "https://Origin.example.net:443/base/".into(),
        keep_host: true,
    };
    let created = |private_origin| ResourceCreated {
        demand_public: false,
        id: ResourceId(THEN),
        name: slug("web"),
        kind: ResourceKind::Cdn,
        regions: slugs(&["eu-1", "ru-1", "ru-2"]),
        // Brought to one form, so that no two readers of URLs see different hosts.
        origin: "https://origin.example.net/base".into(),
        keep_host: true,
        private_origin,
    };
    given(vec![])
        .when(create())
        .then(vec![created(false).into()]);
    given(vec![])
        .by(Who::Operator)
        .when(create())
        .then(vec![created(true).into()]);
    given(site()).when(create()).rejected(Code::DuplicateName);
    let named = |name: &str| CreateResource {
        name: slug(name),
        ..create()
    };
    // `<name>--<project>` has at most 63 bytes: acme leaves 57.
    given(vec![])
        .when(named(&"a".repeat(58)))
        .rejected(Code::TooLarge);
    given(vec![]).when(named("xn")).rejected(Code::Malformed);
    let in_regions = |regions: &[&str]| CreateResource {
        regions: slugs(regions),
        ..create()
    };
    given(vec![])
        .when(in_regions(&["mars"]))
        .rejected(Code::NotFound);
    given(vec![])
        .when(in_regions(&[]))
        .rejected(Code::Malformed);
    given(vec![])
        .when(in_regions(&vec!["ru-1"; 101]))
        .rejected(Code::TooLarge);
    given(vec![])
        .when(CreateResource {
            kind: ResourceKind::Bucket,
            ..create()
        })
        .rejected(Code::Conflict);

    let change = || ChangeResource {
        demand_public: None,
        name: slug("web"),
        regions: None,
        origin: None,
        keep_host: None,
        expect: None,
    };
    let changed = || ResourceChanged {
        demand_public: false,
        id: ResourceId(50),
        name: slug("web"),
        regions: slugs(&["eu-1", "ru-1", "ru-2"]),
        origin: "https://origin.example.net".into(),
        keep_host: false,
        private_origin: false,
    };
    given(site())
        .when(ChangeResource {
            regions: Some(slugs(&["ru"])),
            keep_host: Some(true),
            expect: Some(1),
            ..change()
        })
        .then(vec![
            ResourceChanged {
                regions: slugs(&["ru-1", "ru-2"]),
                keep_host: true,
                ..changed()
            }
            .into(),
        ]);
    given(site())
        .when(ChangeResource {
            origin: Some("http://93.184.216.34:8080".into()),
            ..change()
        })
        .then(vec![
            ResourceChanged {
                origin: "http://93.184.216.34:8080".into(),
                ..changed()
            }
            .into(),
        ]);
    given(vec![]).when(change()).rejected(Code::NotFound);
    given(site())
        .when(ChangeResource {
            expect: Some(2),
            ..change()
        })
        .rejected(Code::Conflict);
    // www.example.com is attached in ru-1.
    let reason = given(site())
        .when(ChangeResource {
            regions: Some(slugs(&["eu-1"])),
            ..change()
        })
        .rejected(Code::Conflict);
    assert!(reason.message.contains("www.example.com"), "{reason:?}");
    let mut left = site();
    left.push(acme(DomainDetached {
        host: host("www.example.com"),
        regions: slugs(&["ru-1"]),
    }));
    given(left)
        .when(ChangeResource {
            regions: Some(slugs(&["eu-1"])),
            ..change()
        })
        .then(vec![
            ResourceChanged {
                regions: slugs(&["eu-1"]),
                ..changed()
            }
            .into(),
        ]);
    given(vec![acme(resource(
        50,
        "web",
        ResourceKind::Bucket,
        &["ru-1"],
    ))])
    .when(ChangeResource {
        regions: Some(slugs(&["ru"])),
        ..change()
    })
    .rejected(Code::Conflict);
    given(site())
        .when(ChangeResource {
            regions: Some(slugs(&["mars"])),
            ..change()
        })
        .rejected(Code::NotFound);

    let delete = |name: &str, confirm: &str| DeleteResource {
        expect: None,
        name: slug(name),
        confirm: confirm.into(),
    };
    given(vec![acme(resource(
        50,
        "web",
        ResourceKind::Cdn,
        &["ru-1"],
    ))])
    .when(delete("web", "web"))
    .then(vec![
        ResourceDeleted {
            id: ResourceId(50),
            name: slug("web"),
        }
        .into(),
    ]);
    given(vec![])
        .when(delete("web", "web"))
        .rejected(Code::NotFound);
    given(site())
        .when(delete("web", "web "))
        .rejected(Code::ConfirmationMismatch);
    given(site())
        .when(delete("web", "web"))
        .rejected(Code::Conflict);
}

#[test]
fn origins() {
    let create = |origin: &str| CreateResource {
        demand_public: false,
        name: slug("web"),
        kind: ResourceKind::Cdn,
        regions: slugs(&["ru-1"]),
        origin: origin.into(),
        keep_host: false,
    };
    for bad in [
        "",
        "origin.example.net",
        "ftp://origin.example.net",
        "file:///etc/passwd",
        "https://",
        "https://u:p@origin.example.net",
        "https://u@origin.example.net",
        "https://origin.example.net/?q",
        "https://origin.example.net/#f",
        "javascript:1",
        &format!("https://origin.example.net/{}", "a".repeat(2_048)),
        // Longer only once it is brought to its one form.
        &format!("https://origin.example.net/{}", "é".repeat(700)),
    ] {
        given(vec![]).when(create(bad)).rejected(Code::Malformed);
        given(vec![])
            .by(Who::Operator)
            .when(create(bad))
            .rejected(Code::Malformed);
    }
    for inside in [
        "http://localhost:9000",
        "http://LOCALHOST.",
        "http://a.localhost",
        "http://minio:9000",
        "http://127.0.0.1",
        "http://127.1",
        "http://2130706433",
        "http://0x7f000001",
        "http://0177.0.0.1",
        "http://0x7f.1",
        "http://10.0.0.1",
        "http://172.16.0.1",
        "http://192.168.1.1",
        "http://169.254.169.254",
        "http://100.64.0.1",
        "http://0.0.0.0",
        "http://192.0.0.8",
        "http://192.88.99.1",
        "http://198.18.0.1",
        "http://224.0.0.1",
        "http://255.255.255.255",
        "http://[::1]",
        "http://[::]",
        "http://[::ffff:127.0.0.1]",
        "http://[::ffff:7f00:1]",
        "http://[::127.0.0.1]",
        "http://[fe80::1]",
        "http://[fc00::1]",
        "http://[64:ff9b::7f00:1]",
        "http://[2002:7f00:1::]",
        "http://[2001:0:7f00:1::]",
        "http://[2001:db8::1]",
        "http://[3fff::1]",
        "http://[ff02::1]",
        "http://１２７.0.0.1",
    ] {
        given(vec![])
            .when(create(inside))
            .rejected(Code::Unauthorized);
        assert!(
            given(vec![])
                .by(Who::Operator)
                .when(create(inside))
                .decided
                .is_ok(),
            "{inside}"
        );
    }
    for (outside, kept) in [
        ("http://93.184.216.34", "http://93.184.216.34"),
        ("http://1572395042/a", "http://93.184.216.34/a"),
        (
            "http://[2606:2800:220:1::1]/",
            "http://[2606:2800:220:1::1]",
        ),
        ("http://[::ffff:93.184.216.34]", "http://[::ffff:5db8:d822]"),
        (
            "HTTP://Bücher.example/a b/",
            "http://xn--bcher-kva.example/a%20b",
        ),
        // Readers of URLs differ on backslashes and line feeds; what is stored has neither.
        (
            "http:\\\\origin.example.net\\@x/",
            "http://origin.example.net/@x",
        ),
        ("http://origin.exam\nple.net", "http://origin.example.net"),
    ] {
        let decided = given(vec![]).when(create(outside)).decided;
        let Ok(events) = decided else {
            panic!("{outside}: {decided:?}")
        };
        let Event::ResourceCreated(created) = &events[0].1 else {
            panic!("{events:?}")
        };
        assert_eq!(created.origin, kept);
        assert!(!created.private_origin);
    }
}

#[test]
fn domains_are_added_and_proven() {
    let add = |host: &str| AddDomain {
        host: host.into(),
        resource: None,
        regions: vec![],
    };
    let web = || {
        vec![acme(resource(
            50,
            "web",
            ResourceKind::Cdn,
            &["eu-1", "ru-1", "ru-2"],
        ))]
    };
    given(vec![])
        .when(add("WWW.Example.com."))
        .then(vec![claimed("www.example.com")]);
    given(web())
        .when(AddDomain {
            resource: Some(slug("web")),
            ..add("www.example.com")
        })
        .then(vec![
            claimed("www.example.com"),
            attached("www.example.com", 50, &["eu-1", "ru-1", "ru-2"]),
        ]);
    given(web())
        .by(Who::Operator)
        .when(AddDomain {
            resource: Some(slug("web")),
            regions: slugs(&["ru"]),
            ..add("*.example.com")
        })
        .then(vec![
            claimed("*.example.com"),
            proven("*.example.com"),
            attached("*.example.com", 50, &["ru-1", "ru-2"]),
        ]);
    for bad in [
        "",
        "localhost",
        "10.0.0.1",
        "*.com",
        "a.*.example.com",
        "XN--\u{7f}.example",
        "XN--A.example.com",
        "1.0x7f",
    ] {
        given(vec![]).when(add(bad)).rejected(Code::Malformed);
    }
    for reserved in [
        PLATFORM_DOMAIN,
        "web--beta.ru-1.chancery.test",
        "*.chancery.test",
        "co.uk",
        "*.co.uk",
        "github.io",
    ] {
        given(vec![])
            .when(add(reserved))
            .rejected(Code::DomainReserved);
    }
    given(site())
        .when(add("www.example.com"))
        .rejected(Code::DomainClaimed);
    given(vec![acme(claimed("a.example.com"))])
        .when(add("a.example.com"))
        .rejected(Code::DomainClaimed);
    // Many may be pending, so another project's claim does not hinder; but an operator's word takes nothing from a holder.
    given(site())
        .of("beta")
        .when(add("www.example.com"))
        .then(vec![claimed("www.example.com")]);
    given(site())
        .of("beta")
        .by(Who::Operator)
        .when(add("www.example.com"))
        .rejected(Code::DomainClaimed);
    given(vec![])
        .when(AddDomain {
            resource: Some(slug("web")),
            ..add("a.example.com")
        })
        .rejected(Code::NotFound);
    given(vec![])
        .when(AddDomain {
            regions: slugs(&["ru-1"]),
            ..add("a.example.com")
        })
        .rejected(Code::Malformed);
    given(vec![acme(resource(
        50,
        "web",
        ResourceKind::Cdn,
        &["ru-1"],
    ))])
    .when(AddDomain {
        resource: Some(slug("web")),
        regions: slugs(&["ru"]),
        ..add("a.example.com")
    })
    .rejected(Code::Conflict);
    let given_up = || {
        let mut events = site();
        events.push(acme(DomainReleased {
            host: host("www.example.com"),
        }));
        events
    };
    given(given_up())
        .when(add("www.example.com"))
        .then(vec![claimed("www.example.com")]);

    let prove = |project: &str, host: &str, force| ProveDomain {
        project: slug(project),
        host: host.into(),
        force,
    };
    let contested = || {
        let mut events = site();
        events.push(beta(claimed("www.example.com")));
        events
    };
    given(vec![acme(claimed("a.example.com"))])
        .when(prove("acme", "a.example.com", false))
        .then_of(vec![acme(proven("a.example.com"))]);
    given(contested())
        .when(prove("beta", "www.example.com", false))
        .rejected(Code::DomainClaimed);
    given(contested())
        .when(prove("beta", "www.example.com", true))
        .then_of(vec![
            acme(DomainMoved {
                host: host("www.example.com"),
            }),
            beta(proven("www.example.com")),
        ]);
    given(site())
        .when(prove("acme", "www.example.com", true))
        .rejected(Code::Conflict);
    given(vec![])
        .when(prove("acme", "a.example.com", false))
        .rejected(Code::NotFound);
    given(given_up())
        .when(prove("acme", "www.example.com", false))
        .rejected(Code::NotFound);
    given(vec![])
        .when(prove("nobody", "a.example.com", false))
        .rejected(Code::NotFound);
    given(vec![])
        .when(prove("acme", "nothing", false))
        .rejected(Code::Malformed);
}

/// What `acme` has once `beta` proved its host.
fn moved() -> Vec<lifecycle::decide::Decided> {
    let mut events = live();
    events.push(beta(claimed("www.example.com")));
    events.push(acme(DomainMoved {
        host: host("www.example.com"),
    }));
    events.push(beta(proven("www.example.com")));
    events
}

#[test]
fn domains_are_attached_detached_and_released() {
    let attach = |host: &str, regions: &[&str]| AttachDomain {
        expect: None,
        host: host.into(),
        resource: slug("web"),
        regions: slugs(regions),
    };
    given(site())
        .when(attach("www.example.com", &["ru-2"]))
        .then(vec![attached("www.example.com", 50, &["ru-2"])]);
    given(site())
        .when(attach("www.example.com", &[]))
        .then(vec![attached(
            "www.example.com",
            50,
            &["eu-1", "ru-1", "ru-2"],
        )]);
    given(site())
        .when(attach("b.example.com", &[]))
        .rejected(Code::NotFound);
    // Each change can be guarded by the revision that was seen; no claim or resource has one as high as this.
    let seen = Some(99);
    given(site())
        .when(AttachDomain {
            expect: seen,
            ..attach("www.example.com", &[])
        })
        .rejected(Code::Conflict);
    given(site())
        .when(DetachDomain {
            expect: seen,
            host: "www.example.com".into(),
            regions: vec![],
        })
        .rejected(Code::Conflict);
    given(site())
        .when(ReleaseDomain {
            expect: seen,
            host: "www.example.com".into(),
        })
        .rejected(Code::Conflict);
    given(site())
        .when(DeleteResource {
            expect: seen,
            name: slug("web"),
            confirm: "web".into(),
        })
        .rejected(Code::Conflict);
    given(site())
        .when(attach("nothing", &[]))
        .rejected(Code::Malformed);
    given(site())
        .when(attach("www.example.com", &["mars"]))
        .rejected(Code::NotFound);
    given(vec![acme(claimed("a.example.com"))])
        .when(attach("a.example.com", &[]))
        .rejected(Code::NotFound);
    given(moved())
        .when(attach("www.example.com", &[]))
        .rejected(Code::DomainUnproven);
    given(vec![
        acme(claimed("a.example.com")),
        acme(resource(50, "web", ResourceKind::Cdn, &["ru-1"])),
    ])
    .when(attach("a.example.com", &["ru-2"]))
    .rejected(Code::Conflict);

    let detach = |host: &str, regions: &[&str]| DetachDomain {
        expect: None,
        host: host.into(),
        regions: slugs(regions),
    };
    let detached = || DomainDetached {
        host: host("www.example.com"),
        regions: slugs(&["ru-1"]),
    };
    given(site())
        .when(detach("www.example.com", &[]))
        .then(vec![detached().into()]);
    given(site())
        .when(detach("www.example.com", &["ru"]))
        .then(vec![detached().into()]);
    given(site())
        .when(detach("www.example.com", &["eu-1"]))
        .rejected(Code::Conflict);
    given(site())
        .when(detach("b.example.com", &[]))
        .rejected(Code::NotFound);
    given(site())
        .when(detach("www.example.com", &["mars"]))
        .rejected(Code::NotFound);
    given(moved())
        .when(detach("www.example.com", &[]))
        .rejected(Code::Conflict);

    let release = |host: &str| ReleaseDomain {
        expect: None,
        host: host.into(),
    };
    let released = || DomainReleased {
        host: host("www.example.com"),
    };
    given(site())
        .when(release("www.example.com"))
        .then(vec![released().into()]);
    given(moved())
        .when(release("www.example.com"))
        .then(vec![released().into()]);
    given(site())
        .when(release("b.example.com"))
        .rejected(Code::NotFound);
    let mut gone = site();
    gone.push(acme(released()));
    given(gone)
        .when(release("www.example.com"))
        .rejected(Code::NotFound);
}

#[test]
fn modes() {
    let bind = |certificate: &str| BindDomain {
        host: "www.example.com".into(),
        certificate: slug(certificate),
        region: None,
        expect: None,
    };
    let bound = |region: Option<&str>| DomainBound {
        host: host("www.example.com"),
        certificate: CertificateId(60),
        region: region.map(slug),
    };
    given(live())
        .when(bind("main"))
        .then(vec![bound(None).into()]);
    given(live())
        .when(BindDomain {
            region: Some(slug("ru-1")),
            expect: Some(2),
            ..bind("main")
        })
        .then(vec![bound(Some("ru-1")).into()]);
    given(live())
        .when(BindDomain {
            expect: Some(1),
            ..bind("main")
        })
        .rejected(Code::Conflict);
    given(live())
        .when(BindDomain {
            region: Some(slug("mars")),
            ..bind("main")
        })
        .rejected(Code::NotFound);
    given(live())
        .when(BindDomain {
            region: Some(slug("eu-1")),
            ..bind("main")
        })
        .rejected(Code::Conflict);
    given(live()).when(bind("other")).rejected(Code::NotFound);
    given(moved())
        .when(bind("main"))
        .rejected(Code::DomainUnproven);
    given(vec![acme(claimed("www.example.com"))])
        .when(bind("main"))
        .rejected(Code::DomainUnproven);
    given(vec![]).when(bind("main")).rejected(Code::NotFound);
    let with = |event: Event| {
        let mut events = live();
        events.push(acme(event));
        events
    };
    let roots = CertificateAdded {
        id: CertificateId(70),
        name: slug("roots"),
        kind: CertificateKind::Ca,
        regions: slugs(&["ru-1"]),
        standby: false,
        facts: facts(70, &["www.example.com"]),
    };
    given(with(roots.into()))
        .when(bind("roots"))
        .rejected(Code::NotAServerCertificate);
    let other = |names: &[&str]| added(70, "other", &["ru-1"], facts(70, names));
    let reason = given(with(other(&["api.example.com"])))
        .when(bind("other"))
        .rejected(Code::NameMismatch);
    assert!(reason.message.contains("api.example.com"), "{reason:?}");
    given(with(other(&["*.www.example.com"])))
        .when(bind("other"))
        .rejected(Code::NameMismatch);
    given(with(other(&["*.example.com"])))
        .when(bind("other"))
        .rejected(Code::InProgress);
    given(live())
        .at(NOW + 366 * DAY)
        .when(bind("main"))
        .rejected(Code::Expired);
    let revoked = CertificateRevoked {
        reasons: Vec::new(),
        id: CertificateId(60),
        version: 1,
    };
    given(with(revoked.into()))
        .when(bind("main"))
        .rejected(Code::Revoked);
    let failed = || CertificateFailed {
        id: CertificateId(70),
        version: 1,
        reasons: vec![Reason::new(
            Code::ChainIncomplete,
            "an intermediate is missing",
            "",
        )],
    };
    let mut broken = with(other(&["www.example.com"]));
    broken.push(acme(failed()));
    given(broken).when(bind("other")).rejected(Code::Conflict);
    // A later version that is not verified, or failed, displaces nothing: what is ready can be bound.
    let again = CertificateReplaced {
        id: CertificateId(60),
        version: 2,
        facts: facts(2, &["www.example.com"]),
        dropped: vec![],
    };
    let mut replaced = with(again.into());
    given(replaced.clone())
        .when(bind("main"))
        .then(vec![bound(None).into()]);
    replaced.push(acme(CertificateFailed {
        id: CertificateId(60),
        version: 2,
        reasons: vec![],
    }));
    given(replaced)
        .when(bind("main"))
        .then(vec![bound(None).into()]);

    let unbind = |region: Option<&str>| UnbindDomain {
        host: "www.example.com".into(),
        region: region.map(slug),
        expect: None,
    };
    let unbound = |region: Option<&str>| DomainUnbound {
        host: host("www.example.com"),
        region: region.map(slug),
    };
    given(with(bound(None).into()))
        .when(unbind(None))
        .then(vec![unbound(None).into()]);
    given(with(bound(None).into()))
        .when(unbind(Some("ru-1")))
        .then(vec![unbound(Some("ru-1")).into()]);
    given(with(bound(Some("ru-1")).into()))
        .when(unbind(None))
        .then(vec![unbound(None).into()]);
    given(with(bound(Some("ru-1")).into()))
        .when(unbind(Some("eu-1")))
        .rejected(Code::Conflict);
    given(live()).when(unbind(None)).rejected(Code::Conflict);
    given(live())
        .when(unbind(Some("mars")))
        .rejected(Code::NotFound);
    given(vec![]).when(unbind(None)).rejected(Code::NotFound);
    given(with(bound(None).into()))
        .when(UnbindDomain {
            expect: Some(2),
            ..unbind(None)
        })
        .rejected(Code::Conflict);

    let https = |https, region: Option<&str>| SetHttps {
        host: "www.example.com".into(),
        https,
        region: region.map(slug),
        expect: None,
    };
    let set = |https, region: Option<&str>| DomainHttpsSet {
        host: host("www.example.com"),
        https,
        region: region.map(slug),
    };
    given(live())
        .when(https(Https::Off, None))
        .then(vec![set(Https::Off, None).into()]);
    given(live())
        .when(https(Https::Auto, Some("ru-1")))
        .then(vec![set(Https::Auto, Some("ru-1")).into()]);
    given(live())
        .when(https(Https::Off, Some("mars")))
        .rejected(Code::NotFound);
    given(vec![])
        .when(https(Https::Off, None))
        .rejected(Code::NotFound);
    given(moved())
        .when(https(Https::Off, None))
        .rejected(Code::DomainUnproven);
    given(live())
        .when(SetHttps {
            expect: Some(9),
            ..https(Https::Off, None)
        })
        .rejected(Code::Conflict);
}

/// A region that was switched off came back on when the binding elsewhere ended.
#[test]
fn unbinding_switches_nothing_on() {
    use lifecycle::selection::Mode;
    use lifecycle::state::State;
    let mut world = given(live()).world;
    let www = "www.example.com";
    let bind = BindDomain {
        host: www.into(),
        certificate: slug("main"),
        region: None,
        expect: None,
    };
    world.run(Who::User, "acme", bind, NOW).unwrap();
    let off = SetHttps {
        host: www.into(),
        https: Https::Off,
        region: Some(slug("eu-1")),
        expect: None,
    };
    world.run(Who::User, "acme", off, NOW).unwrap();
    let unbind = UnbindDomain {
        host: www.into(),
        region: None,
        expect: None,
    };
    world.run(Who::User, "acme", unbind, NOW).unwrap();
    let claim = world.memory.claim(www, "acme").unwrap();
    assert_eq!(claim.mode_in("eu-1"), Mode::Off);
    assert_eq!(claim.mode_in("ru-1"), Mode::Auto);
}

#[test]
fn certificates_are_added_and_replaced() {
    let add = || AddCertificate {
        name: slug("main"),
        kind: CertificateKind::Server,
        regions: slugs(&["ru"]),
        standby: false,
        facts: facts(1, &["www.example.com"]),
    };
    let ru = ["ru-1", "ru-2"];
    given(vec![]).when(add()).then(vec![
        sealed(1),
        added(THEN + 1, "main", &ru, facts(1, &["www.example.com"])),
    ]);
    // The same key under another name is not sealed again.
    given(live())
        .when(AddCertificate {
            name: slug("twin"),
            ..add()
        })
        .then(vec![added(
            THEN,
            "twin",
            &ru,
            facts(1, &["www.example.com"]),
        )]);
    // Another project's key of the same value is another key.
    given(live()).of("beta").when(add()).then(vec![
        sealed(1),
        added(THEN + 1, "main", &ru, facts(1, &["www.example.com"])),
    ]);
    let roots = || AddCertificate {
        name: slug("roots"),
        kind: CertificateKind::Ca,
        ..add()
    };
    let decided = given(vec![]).when(roots()).decided;
    assert!(
        matches!(decided.as_deref(), Ok([(_, Event::CertificateAdded(e))]) if e.kind == CertificateKind::Ca)
    );
    given(live()).when(add()).rejected(Code::DuplicateName);
    given(vec![])
        .at(NOW + 365 * DAY)
        .when(add())
        .rejected(Code::Expired);
    given(vec![])
        .at(NOW - 2 * DAY)
        .when(add())
        .rejected(Code::NotYetValid);
    for (regions, code) in [
        (vec![], Code::Malformed),
        (vec!["mars"], Code::NotFound),
        (vec!["ru-1"; 101], Code::TooLarge),
    ] {
        given(vec![])
            .when(AddCertificate {
                regions: slugs(&regions),
                ..add()
            })
            .rejected(code);
    }
    let many: Vec<String> = (0..251).map(|n| format!("h{n}.example.com")).collect();
    let long: Vec<String> = (0..200)
        .map(|n| format!("{}.{n}.example.com", ["a".repeat(60).as_str(); 3].join(".")))
        .collect();
    for names in [many, long] {
        given(vec![])
            .when(AddCertificate {
                facts: Facts {
                    names,
                    ..facts(1, &[])
                },
                ..add()
            })
            .rejected(Code::TooLarge);
    }
    given(vec![])
        .when(AddCertificate {
            facts: Facts {
                chain: vec![digest(1); 17],
                ..facts(1, &[])
            },
            ..add()
        })
        .rejected(Code::TooLarge);

    let replace = |number| ReplaceCertificate {
        name: slug("main"),
        facts: facts(number, &["www.example.com"]),
        expect: None,
    };
    let replaced = |number, dropped: Vec<u32>| {
        Event::from(CertificateReplaced {
            id: CertificateId(60),
            version: 2,
            facts: facts(number, &["www.example.com"]),
            dropped,
        })
    };
    given(live())
        .when(replace(2))
        .then(vec![sealed(2), replaced(2, vec![])]);
    given(live())
        .when(ReplaceCertificate {
            expect: Some(1),
            ..replace(2)
        })
        .then(vec![sealed(2), replaced(2, vec![])]);
    let same_key = || Facts {
        spki: digest(1),
        ..facts(2, &["www.example.com"])
    };
    given(live())
        .when(ReplaceCertificate {
            facts: same_key(),
            ..replace(2)
        })
        .then(vec![
            CertificateReplaced {
                id: CertificateId(60),
                version: 2,
                facts: same_key(),
                dropped: vec![],
            }
            .into(),
        ]);
    given(live()).when(replace(1)).rejected(Code::Conflict);
    given(live())
        .when(ReplaceCertificate {
            expect: Some(7),
            ..replace(2)
        })
        .rejected(Code::Conflict);
    given(vec![]).when(replace(2)).rejected(Code::NotFound);
    given(live())
        .at(NOW - 2 * DAY)
        .when(replace(2))
        .rejected(Code::NotYetValid);
    given(live())
        .at(NOW + 365 * DAY)
        .when(replace(2))
        .rejected(Code::Expired);
    given(live())
        .when(ReplaceCertificate {
            facts: Facts {
                chain: vec![digest(1); 17],
                ..facts(2, &[])
            },
            ..replace(2)
        })
        .rejected(Code::TooLarge);

    // A version that failed, was revoked, or ended a month ago leaves with its key when a new one comes.
    let failed = || {
        acme(CertificateFailed {
            id: CertificateId(60),
            version: 1,
            reasons: vec![],
        })
    };
    let mut broken = live();
    broken.push(failed());
    given(broken.clone()).when(replace(2)).then(vec![
        sealed(2),
        replaced(2, vec![1]),
        destroyed(1),
    ]);
    given(broken)
        .when(ReplaceCertificate {
            facts: same_key(),
            ..replace(2)
        })
        .then(vec![
            CertificateReplaced {
                id: CertificateId(60),
                version: 2,
                facts: same_key(),
                dropped: vec![1],
            }
            .into(),
        ]);
    let mut revoked = live();
    revoked.push(acme(CertificateRevoked {
        reasons: Vec::new(),
        id: CertificateId(60),
        version: 1,
    }));
    given(revoked)
        .when(replace(2))
        .then(vec![sealed(2), replaced(2, vec![1]), destroyed(1)]);
    let later = || Facts {
        not_after: NOW + 900 * DAY,
        ..facts(2, &["www.example.com"])
    };
    for (days, gone) in [(365 + 29, false), (365 + 30, true)] {
        let decided = given(live())
            .at(NOW + days * DAY)
            .when(ReplaceCertificate {
                facts: later(),
                ..replace(2)
            })
            .decided
            .unwrap();
        let destroyed = decided
            .iter()
            .any(|(_, e)| matches!(e, Event::KeyDestroyed(_)));
        assert_eq!(destroyed, gone, "after {days} days");
    }
}

#[test]
fn certificates_are_deployed_withdrawn_and_deleted() {
    let deploy = |regions: &[&str]| DeployCertificate {
        name: slug("main"),
        regions: slugs(regions),
        expect: None,
    };
    given(live()).when(deploy(&["ru"])).then(vec![
        CertificateDeployed {
            id: CertificateId(60),
            regions: slugs(&["ru-2"]),
        }
        .into(),
    ]);
    given(live())
        .when(deploy(&["ru-1"]))
        .rejected(Code::Conflict);
    given(live())
        .when(deploy(&["mars"]))
        .rejected(Code::NotFound);
    given(vec![])
        .when(deploy(&["ru-1"]))
        .rejected(Code::NotFound);
    given(live())
        .when(DeployCertificate {
            expect: Some(2),
            ..deploy(&["ru"])
        })
        .rejected(Code::Conflict);

    let withdraw = |regions: &[&str], force| WithdrawCertificate {
        name: slug("main"),
        regions: slugs(regions),
        force,
        expect: None,
    };
    let withdrawn = |regions: &[&str]| CertificateWithdrawn {
        id: CertificateId(60),
        regions: slugs(regions),
    };
    let reason = given(live())
        .when(withdraw(&["ru"], false))
        .rejected(Code::LastUsable);
    assert!(reason.message.contains("www.example.com"), "{reason:?}");
    given(live())
        .when(withdraw(&["ru"], true))
        .then(vec![withdrawn(&["ru-1"]).into()]);
    given(live())
        .when(withdraw(&["eu-1"], false))
        .rejected(Code::Conflict);
    given(live())
        .when(withdraw(&["mars"], false))
        .rejected(Code::NotFound);
    given(vec![])
        .when(withdraw(&["ru-1"], false))
        .rejected(Code::NotFound);
    given(live())
        .when(WithdrawCertificate {
            expect: Some(2),
            ..withdraw(&["ru"], true)
        })
        .rejected(Code::Conflict);
    let verifying = || {
        let mut events = site();
        events.push(acme(sealed(1)));
        events.push(acme(added(
            60,
            "main",
            &["ru-1"],
            facts(1, &["www.example.com"]),
        )));
        events
    };
    given(verifying())
        .when(withdraw(&["ru-1"], true))
        .rejected(Code::InProgress);

    let delete = || DeleteCertificate {
        name: slug("main"),
        confirm: "main".into(),
        force: false,
        expect: None,
    };
    let deleted = |dark: &[&str]| {
        Event::from(CertificateDeleted {
            id: CertificateId(60),
            name: slug("main"),
            dark: dark.iter().map(|h| host(h)).collect(),
        })
    };
    let forced = || DeleteCertificate {
        force: true,
        ..delete()
    };
    let reason = given(live()).when(delete()).rejected(Code::LastUsable);
    assert!(reason.message.contains("www.example.com"), "{reason:?}");
    given(live())
        .when(forced())
        .then(vec![deleted(&["www.example.com"]), destroyed(1)]);
    for confirm in ["", "Main", "main ", "mai"] {
        given(live())
            .when(DeleteCertificate {
                confirm: confirm.into(),
                ..forced()
            })
            .rejected(Code::ConfirmationMismatch);
    }
    given(verifying()).when(forced()).rejected(Code::InProgress);
    given(vec![]).when(delete()).rejected(Code::NotFound);
    given(live())
        .when(DeleteCertificate {
            expect: Some(2),
            ..forced()
        })
        .rejected(Code::Conflict);
    // Nothing goes dark when the host is not live …
    for event in [
        DomainDetached {
            host: host("www.example.com"),
            regions: slugs(&["ru-1"]),
        }
        .into(),
        DomainHttpsSet {
            host: host("www.example.com"),
            https: Https::Off,
            region: None,
        }
        .into(),
        Event::from(DomainReleased {
            host: host("www.example.com"),
        }),
    ] {
        let mut events = live();
        events.push(acme(event));
        given(events)
            .when(delete())
            .then(vec![deleted(&[]), destroyed(1)]);
    }
    // … or when the certificate serves nothing any more …
    given(live())
        .at(NOW + 365 * DAY)
        .when(delete())
        .then(vec![deleted(&[]), destroyed(1)]);
    // … or when another one is there. Its key stays where it is used twice.
    let mut two = live();
    two.push(acme(added(
        61,
        "twin",
        &["ru-1"],
        facts(1, &["*.example.com"]),
    )));
    two.push(acme(verified(61, 1)));
    given(two).when(delete()).then(vec![deleted(&[])]);
    // Another that is not usable, or not there, is no help.
    for (regions, from) in [(["eu-1"], NOW - DAY), (["ru-1"], NOW + DAY)] {
        let mut events = live();
        let later = Facts {
            not_before: from,
            ..facts(2, &["www.example.com"])
        };
        events.extend(ready(61, "twin", &regions, later));
        given(events).when(delete()).rejected(Code::LastUsable);
    }
}

/// A host below a wildcard claim's certificate, and the platform's wildcard, go dark too.
#[test]
fn the_guard_sees_what_hangs_on_a_wildcard() {
    let mut events = site();
    events.extend(ready(60, "main", &["ru-1"], facts(1, &["*.example.com"])));
    let delete = || DeleteCertificate {
        name: slug("main"),
        confirm: "main".into(),
        force: false,
        expect: None,
    };
    let reason = given(events.clone())
        .when(delete())
        .rejected(Code::LastUsable);
    assert!(reason.message.contains("www.example.com"), "{reason:?}");
    // Not what another project has below it.
    let mut moved = events;
    moved.push(beta(claimed("www.example.com")));
    moved.push(acme(DomainMoved {
        host: host("www.example.com"),
    }));
    moved.push(beta(proven("www.example.com")));
    assert!(given(moved).when(delete()).decided.is_ok());

    let platform = slug("platform");
    let wildcard = || {
        let name = "*.ru-1.chancery.test";
        vec![
            (platform.clone(), sealed(9)),
            (
                platform.clone(),
                added(90, "main", &["ru-1"], facts(9, &[name])),
            ),
            (platform.clone(), verified(90, 1)),
        ]
    };
    let asked = |events| {
        given(events)
            .of("platform")
            .by(Who::Operator)
            .when(delete())
    };
    assert!(
        asked(wildcard()).decided.is_ok(),
        "nobody has a resource yet"
    );
    let mut served = wildcard();
    served.push(acme(resource(50, "web", ResourceKind::Cdn, &["eu-1"])));
    assert!(
        asked(served.clone()).decided.is_ok(),
        "nobody has a resource there"
    );
    served.push(acme(resource(51, "shop", ResourceKind::Cdn, &["ru-1"])));
    asked(served).rejected(Code::LastUsable);
}

#[test]
fn what_the_system_reports() {
    let verify = |verdict| VerifyCertificate {
        id: CertificateId(60),
        version: 1,
        verdict,
    };
    let mut verifying = vec![acme(sealed(1))];
    verifying.push(acme(added(
        60,
        "main",
        &["ru-1"],
        facts(1, &["www.example.com"]),
    )));
    given(verifying.clone())
        .when(verify(Ok(Trust::Public)))
        .then_of(vec![acme(verified(60, 1))]);
    let reasons = vec![Reason::new(
        Code::ChainIncomplete,
        "an intermediate is missing",
        "send it",
    )];
    given(verifying.clone())
        .when(verify(Err(reasons.clone())))
        .then_of(vec![acme(CertificateFailed {
            id: CertificateId(60),
            version: 1,
            reasons,
        })]);
    given(live())
        .when(verify(Ok(Trust::Public)))
        .rejected(Code::Conflict);
    given(vec![])
        .when(verify(Ok(Trust::Public)))
        .rejected(Code::NotFound);

    let expire = |version| ExpireCertificate {
        id: CertificateId(60),
        version,
    };
    let end = NOW + 365 * DAY;
    let expired = || {
        acme(CertificateExpired {
            id: CertificateId(60),
            version: 1,
        })
    };
    given(live())
        .at(end)
        .when(expire(1))
        .then_of(vec![expired()]);
    given(live())
        .at(end - 1)
        .when(expire(1))
        .rejected(Code::Conflict);
    given(live())
        .at(end)
        .when(expire(2))
        .rejected(Code::NotFound);
    let mut noted = live();
    noted.push(expired());
    given(noted)
        .at(end)
        .when(expire(1))
        .rejected(Code::Conflict);
    // Its end is noted once, also when it was not ready: else each tick would note it again.
    verifying.push(expired());
    given(verifying)
        .at(end)
        .when(expire(1))
        .rejected(Code::Conflict);

    let revoke = || RevokeCertificate {
        reasons: Vec::new(),
        id: CertificateId(60),
        version: 1,
    };
    let revoked = || {
        acme(CertificateRevoked {
            reasons: Vec::new(),
            id: CertificateId(60),
            version: 1,
        })
    };
    given(live()).when(revoke()).then_of(vec![revoked()]);
    given(vec![]).when(revoke()).rejected(Code::NotFound);
    let mut twice = live();
    twice.push(revoked());
    given(twice).when(revoke()).rejected(Code::Conflict);
    let mut deleted = live();
    deleted.push(acme(CertificateDeleted {
        id: CertificateId(60),
        name: slug("main"),
        dark: vec![],
    }));
    given(deleted).when(revoke()).rejected(Code::NotFound);
}

/// A rejection goes into the log, which must not carry what a client chose to write.
#[test]
fn rejections_quote_nothing_that_was_given() {
    let canary = "zqcanary";
    let commands: Vec<Command> = vec![
        CreateProject {
            project: slug(&canary.repeat(6)),
        }
        .into(),
        suspend(canary),
        DeleteProject {
            project: slug("acme"),
            confirm: canary.into(),
        }
        .into(),
        CreateAccess {
            project: slug("acme"),
            name: slug(canary),
            nkey: canary.into(),
            rights: vec![],
            expires: None,
        }
        .into(),
        CreateAccess {
            project: slug("acme"),
            name: slug(canary),
            nkey: NKEY.into(),
            rights: vec![canary.into()],
            expires: None,
        }
        .into(),
        SetCountry {
            country: slug(canary),
            regions: slugs(&[canary]),
        }
        .into(),
        EnrolEdge {
            region: slug("ru-1"),
            edge: slug(canary),
            nkey: NKEY.into(),
            hpke: digest(1),
            token: format!("{canary} {canary}"),
        }
        .into(),
        CreateResource {
            demand_public: false,
            name: slug(canary),
            kind: ResourceKind::Cdn,
            regions: slugs(&["ru-1"]),
            origin: format!("https://{canary}:{canary}@{canary}.example/"),
            keep_host: false,
        }
        .into(),
        DeleteResource {
            expect: None,
            name: slug("web"),
            confirm: canary.into(),
        }
        .into(),
        AddDomain {
            host: format!("{canary}..example"),
            resource: None,
            regions: vec![],
        }
        .into(),
        AddDomain {
            host: format!("{canary}.chancery.test"),
            resource: None,
            regions: vec![],
        }
        .into(),
        AddDomain {
            host: "a.example.com".into(),
            resource: Some(slug(canary)),
            regions: vec![],
        }
        .into(),
        ReleaseDomain {
            expect: None,
            host: format!("{canary}.example.com"),
        }
        .into(),
        AttachDomain {
            expect: None,
            host: "www.example.com".into(),
            resource: slug("web"),
            regions: slugs(&[canary]),
        }
        .into(),
        BindDomain {
            host: "www.example.com".into(),
            certificate: slug(canary),
            region: None,
            expect: None,
        }
        .into(),
        ReplaceCertificate {
            name: slug("main"),
            facts: Facts {
                names: vec![canary.into(); 251],
                ..facts(2, &[])
            },
            expect: None,
        }
        .into(),
        AddCertificate {
            name: slug(canary),
            kind: CertificateKind::Server,
            regions: slugs(&["ru-1"]),
            standby: false,
            // The digits of its dates are the client's choice as well.
            facts: Facts {
                names: vec![canary.into()],
                not_after: 1_234_567,
                ..facts(2, &[])
            },
        }
        .into(),
        DeleteCertificate {
            name: slug("main"),
            confirm: canary.into(),
            force: false,
            expect: None,
        }
        .into(),
    ];
    for command in commands {
        let shown = format!("{command:?}");
        let Err(rejection) = given(live()).when(command).decided else {
            panic!("accepted: {shown}")
        };
        let text = format!("{rejection:?} {rejection}");
        assert!(
            !text.contains(canary) && !text.contains("1970"),
            "{shown}: {text}"
        );
    }
}

/// The key kind belongs to the key's event too.
#[test]
fn a_key_is_sealed_with_its_kind() {
    let add = AddCertificate {
        name: slug("main"),
        kind: CertificateKind::Server,
        regions: slugs(&["ru-1"]),
        standby: true,
        facts: Facts {
            key: KeyKind::Rsa(2048),
            ..facts(1, &["www.example.com"])
        },
    };
    let decided = given(vec![]).when(add).decided.unwrap();
    assert!(matches!(&decided[0].1, Event::KeySealed(e) if e.key == KeyKind::Rsa(2048)));
    assert!(matches!(&decided[1].1, Event::CertificateAdded(e) if e.standby));
}

/// A failed version whose reason has no hint made its row unreadable, and with it every command about the certificate.
#[test]
fn a_reason_without_a_hint_can_be_read_again() {
    use lifecycle::state::State;
    let reasons = vec![
        Reason::new(Code::ChainIncomplete, "an intermediate is missing", ""),
        Reason::new(Code::Revoked, "it was revoked", "replace it"),
    ];
    let mut events = live();
    events.push(acme(CertificateFailed {
        id: CertificateId(60),
        version: 1,
        reasons: reasons.clone(),
    }));
    let certificate = given(events)
        .world
        .memory
        .certificate_named("acme", "main")
        .unwrap();
    assert_eq!(certificate.latest().unwrap().reasons, reasons);
    let json = serde_json::to_string(&reasons[0]).unwrap();
    assert_eq!(
        json,
        r#"{"code":"chain_incomplete","message":"an intermediate is missing"}"#
    );
    assert_eq!(serde_json::from_str::<Reason>(&json).unwrap(), reasons[0]);
}
