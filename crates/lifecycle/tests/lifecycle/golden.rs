//! The stored shape of each event's `data`, byte for byte.
//!
//! The log outlives every release: a shape that was written is read for ever. `UPDATE_GOLDEN=1` writes the files that are
//! missing; it never changes one that is there, and neither should anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use lifecycle::event::*;
use lifecycle::names::{CertificateId, ResourceId, Slug};
use lifecycle::rejection::{Code, Reason};
use lifecycle::selection::KeyKind;

use crate::world::*;

/// Files by their names without `.v1.json`, with what they hold. A variant whose fields may be absent has one for each way.
fn shapes() -> BTreeMap<String, Event> {
    let acme = || slug("acme");
    let region = || slug("ru-1");
    let www = || host("www.example.com");
    let id = CertificateId(60);
    let reasons = || {
        vec![
            Reason::new(
                Code::ChainIncomplete,
                "an intermediate is missing",
                "send it with the leaf",
            ),
            Reason::new(Code::Revoked, "it was revoked", ""),
        ]
    };
    let facts = |key| Facts {
        key,
        ..facts(1, &["www.example.com", "*.example.com"])
    };
    let plain: Vec<Event> = vec![
        ControlGenesis {
            log: "0190a5f4-0000-7000-8000-000000000000".into(),
            signer: digest(7),
            platform_domain: PLATFORM_DOMAIN.into(),
        }
        .into(),
        ControlLeaderElected {
            node: "control-1".into(),
            epoch: 3,
        }
        .into(),
        ProjectCreated { project: acme() }.into(),
        ProjectSuspended { project: acme() }.into(),
        ProjectResumed { project: acme() }.into(),
        ProjectQuotaSet {
            project: acme(),
            certificates: 5_000,
            per_region: 1_000,
        }
        .into(),
        ProjectExportSet {
            project: acme(),
            export: false,
        }
        .into(),
        ProjectDeleted { project: acme() }.into(),
        AccessCreated {
            project: acme(),
            actor: slug("bob"),
            nkey: NKEY.into(),
            rights: vec!["cmd.certificate.*".into(), "query.>".into()],
            expires: None,
        }
        .into(),
        AccessRevoked {
            project: acme(),
            actor: slug("bob"),
            nkey: NKEY.into(),
        }
        .into(),
        RegionCreated {
            region: region(),
            key: digest(8),
            key_version: 1,
        }
        .into(),
        RegionCountrySet {
            country: slug("ru"),
            regions: slugs(&["ru-1", "ru-2"]),
        }
        .into(),
        RegionEdgeEnrolled {
            region: region(),
            edge: slug("one"),
            nkey: NKEY.into(),
            hpke: digest(9),
            token: "t-1".into(),
        }
        .into(),
        RegionEdgeEvicted {
            region: region(),
            edge: slug("one"),
            nkey: NKEY.into(),
        }
        .into(),
        RegionKeyRotated {
            region: region(),
            key: digest(10),
            key_version: 2,
        }
        .into(),
        RegionApplied {
            region: region(),
            applied: 17,
            of: 2,
            behind: slugs(&["one"]),
        }
        .into(),
        resource(50, "web", ResourceKind::Cdn, &["eu-1", "ru-1"]),
        ResourceChanged {
            demand_public: false,
            id: ResourceId(50),
            name: slug("web"),
            regions: slugs(&["ru-1"]),
            origin: "http://10.0.0.1:9000/base".into(),
            keep_host: true,
            private_origin: true,
        }
        .into(),
        ResourceDeleted {
            id: ResourceId(50),
            name: slug("web"),
        }
        .into(),
        DomainAdded { host: www() }.into(),
        DomainProven {
            host: www(),
            proof: Proof::Operator,
        }
        .into(),
        attached("*.example.com", 50, &["ru-1"]),
        DomainDetached {
            host: www(),
            regions: slugs(&["ru-1"]),
        }
        .into(),
        DomainBound {
            host: www(),
            certificate: id,
            region: None,
        }
        .into(),
        DomainUnbound {
            host: www(),
            region: None,
        }
        .into(),
        DomainHttpsSet {
            host: www(),
            https: Https::Auto,
            region: None,
        }
        .into(),
        DomainContested {
            host: www(),
            until: 1_800_000_000,
            proof: Proof::DnsTxt,
        }
        .into(),
        DomainMoveScheduled {
            host: www(),
            until: 1_800_000_000,
            proof: Proof::DnsCname,
        }
        .into(),
        DomainContestLapsed { host: www() }.into(),
        DomainMoved { host: www() }.into(),
        DomainReleased { host: www() }.into(),
        CertificateAdded {
            id,
            name: slug("main"),
            kind: CertificateKind::Server,
            regions: slugs(&["ru-1"]),
            standby: false,
            facts: facts(KeyKind::P256),
        }
        .into(),
        verified(60, 1),
        CertificateFailed {
            id,
            version: 1,
            reasons: reasons(),
        }
        .into(),
        CertificateReplaced {
            id,
            version: 2,
            facts: facts(KeyKind::P384),
            dropped: vec![],
        }
        .into(),
        CertificateDeployed {
            id,
            regions: slugs(&["ru-2"]),
        }
        .into(),
        CertificateWithdrawn {
            id,
            regions: slugs(&["ru-2"]),
        }
        .into(),
        CertificateExpired { id, version: 1 }.into(),
        CertificateRevoked {
            reasons: Vec::new(),
            id,
            version: 1,
        }
        .into(),
        CertificateExpiring {
            id,
            name: slug("main"),
            version: 2,
            stage: 1,
            left: 2_592_000,
            not_after: 1_800_000_000,
            regions: slugs(&["ru-1"]),
            hosts: Vec::new(),
            more_hosts: false,
            next: "replace it".into(),
        }
        .into(),
        CertificateExported {
            id,
            version: 2,
            spki: digest(3),
            recipient: Some(digest(4)),
            to: None,
        }
        .into(),
        CsrCreated {
            name: slug("main"),
            spki: digest(3),
            key: KeyKind::P256,
            names: vec!["www.example.com".into()],
            request: digest(5),
        }
        .into(),
        CsrDiscarded {
            name: slug("main"),
            spki: digest(3),
        }
        .into(),
        CertificateDeleted {
            id,
            name: slug("main"),
            dark: vec![],
        }
        .into(),
        KeySealed {
            spki: digest(1),
            key: KeyKind::Rsa(2048),
        }
        .into(),
        KeyDestroyed { spki: digest(1) }.into(),
        CommandRejected {
            command: "certificate.add".into(),
            reasons: reasons(),
        }
        .into(),
    ];
    let some = |region: &Slug| Some(region.clone());
    let full: Vec<(&str, Event)> = vec![
        (
            "expires",
            AccessCreated {
                project: acme(),
                actor: slug("bob"),
                nkey: NKEY.into(),
                rights: vec!["cmd.>".into()],
                expires: Some(NOW),
            }
            .into(),
        ),
        (
            "bucket",
            resource(51, "media", ResourceKind::Bucket, &["ru-1"]),
        ),
        (
            "listener",
            resource(52, "front", ResourceKind::Listener, &["ru-1"]),
        ),
        (
            "region",
            DomainBound {
                host: www(),
                certificate: id,
                region: some(&region()),
            }
            .into(),
        ),
        (
            "region",
            DomainUnbound {
                host: www(),
                region: some(&region()),
            }
            .into(),
        ),
        (
            "region",
            DomainHttpsSet {
                host: www(),
                https: Https::Off,
                region: some(&region()),
            }
            .into(),
        ),
        (
            "ca",
            CertificateAdded {
                id,
                name: slug("roots"),
                kind: CertificateKind::Ca,
                regions: slugs(&["ru-1"]),
                standby: true,
                facts: facts(KeyKind::Rsa(4096)),
            }
            .into(),
        ),
        (
            "private",
            CertificateVerified {
                id,
                version: 1,
                trust: Trust::Private,
            }
            .into(),
        ),
        (
            "self-signed",
            CertificateVerified {
                id,
                version: 1,
                trust: Trust::SelfSigned,
            }
            .into(),
        ),
        (
            "dropped",
            CertificateReplaced {
                id,
                version: 9,
                facts: facts(KeyKind::Ed25519),
                dropped: vec![1, 2],
            }
            .into(),
        ),
        (
            "demanding",
            ResourceCreated {
                id: ResourceId(53),
                name: slug("shop"),
                kind: ResourceKind::Cdn,
                regions: slugs(&["ru-1"]),
                origin: "https://origin.example.net/".into(),
                keep_host: false,
                private_origin: false,
                demand_public: true,
            }
            .into(),
        ),
        (
            "demanding",
            ResourceChanged {
                id: ResourceId(53),
                name: slug("shop"),
                regions: slugs(&["ru-1"]),
                origin: "https://origin.example.net/".into(),
                keep_host: false,
                private_origin: false,
                demand_public: true,
            }
            .into(),
        ),
        (
            "dns-txt",
            DomainProven {
                host: www(),
                proof: Proof::DnsTxt,
            }
            .into(),
        ),
        (
            "dns-cname",
            DomainProven {
                host: www(),
                proof: Proof::DnsCname,
            }
            .into(),
        ),
        (
            "reasons",
            CertificateRevoked {
                id,
                version: 1,
                reasons: reasons(),
            }
            .into(),
        ),
        (
            "hosts",
            CertificateExpiring {
                id,
                name: slug("main"),
                version: 2,
                stage: 5,
                left: 86_400,
                not_after: 1_800_000_000,
                regions: slugs(&["ru-1"]),
                hosts: vec![Runway {
                    host: www(),
                    region: region(),
                    until: 1_800_086_400,
                }],
                more_hosts: true,
                next: "replace it".into(),
            }
            .into(),
        ),
        (
            "moved",
            CertificateExported {
                id,
                version: 2,
                spki: digest(3),
                recipient: None,
                to: some(&slug("beta")),
            }
            .into(),
        ),
        (
            "dark",
            CertificateDeleted {
                id,
                name: slug("main"),
                dark: vec![www(), host("*.example.com")],
            }
            .into(),
        ),
    ];
    let plain = plain
        .into_iter()
        .map(|event| (event.name().to_owned(), event));
    let full = full
        .into_iter()
        .map(|(way, event)| (format!("{}+{way}", event.name()), event));
    plain.chain(full).collect()
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

#[test]
fn each_shape_is_as_it_was_stored() {
    let shapes = shapes();
    let named: BTreeSet<&str> = shapes.values().map(Event::name).collect();
    let all: BTreeSet<&str> = Event::NAMES.iter().copied().collect();
    assert_eq!(named, all, "an event has no shape here");
    let mut missing = Vec::new();
    for (file, event) in &shapes {
        let path = folder().join(format!("{file}.v1.json"));
        let mut bytes = Vec::new();
        event
            .serialize_data(&mut serde_json::Serializer::new(&mut bytes))
            .unwrap();
        bytes.push(b'\n');
        if !path.exists() {
            if std::env::var_os("UPDATE_GOLDEN").is_some_and(|v| v == "1") {
                fs::write(&path, &bytes).unwrap();
            } else {
                missing.push(file.clone());
                continue;
            }
        }
        let stored = fs::read(&path).unwrap();
        assert_eq!(
            String::from_utf8_lossy(&stored),
            String::from_utf8_lossy(&bytes),
            "{file}: a stored shape is never edited; a change is a new version of the event"
        );
        let read = Event::deserialize_data(
            event.name(),
            &mut serde_json::Deserializer::from_slice(&stored),
        );
        assert_eq!(read.unwrap().unwrap(), *event, "{file}");
    }
    assert!(
        missing.is_empty(),
        "no golden files for {missing:?}: UPDATE_GOLDEN=1 writes them"
    );
    for entry in fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let known = name
            .strip_suffix(".v1.json")
            .is_some_and(|file| shapes.contains_key(file));
        assert!(known, "{name} belongs to no event");
    }
}

/// A field that nobody knows is a newer shape: it is refused, not dropped.
#[test]
fn an_unknown_field_or_event_is_not_read() {
    let read = |name: &str, data: &str| {
        Event::deserialize_data(name, &mut serde_json::Deserializer::from_str(data))
            .map(|read| read.is_ok())
    };
    assert_eq!(
        read("domain.added", r#"{"host":"a.example.com"}"#),
        Some(true)
    );
    assert_eq!(
        read("domain.added", r#"{"host":"a.example.com","new":1}"#),
        Some(false)
    );
    assert_eq!(
        read("domain.added", r#"{"host":"a..example"}"#),
        Some(false)
    );
    assert_eq!(read("domain.taught", r#"{"host":"a.example.com"}"#), None);
}
