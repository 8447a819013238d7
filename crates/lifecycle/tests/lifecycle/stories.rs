//! Selection as people tell it: who is active after what.

use lifecycle::command::*;
use lifecycle::decide::ranking;
use lifecycle::event::*;
use lifecycle::names::CertificateId;
use lifecycle::rejection::{Code, Reason};
use lifecycle::selection::chain;
use lifecycle::state::State;

use crate::world::*;

const WWW: &str = "www.example.com";

struct Story {
    world: World,
    now: i64,
    number: u64,
}

/// `www.example.com` is attached in `ru-1`; no certificate yet.
fn story() -> Story {
    let mut world = estate();
    world.commit(site(), NOW);
    Story {
        world,
        now: NOW,
        number: 0,
    }
}

impl Story {
    fn ask(&mut self, command: impl Into<Command>) {
        let command = command.into();
        let (who, project) = usual(&command);
        self.world.run(who, project, command, self.now).unwrap();
    }

    fn facts(&mut self, names: &[&str], days: i64) -> Facts {
        self.number += 1;
        Facts {
            not_after: self.now + days * DAY,
            ..facts(self.number, names)
        }
    }

    fn upload(&mut self, name: &str, names: &[&str], days: i64, standby: bool) {
        let facts = self.facts(names, days);
        self.ask(AddCertificate {
            name: slug(name),
            kind: CertificateKind::Server,
            regions: slugs(&["ru-1"]),
            standby,
            facts,
        });
    }

    /// An upload that was verified.
    fn add(&mut self, name: &str, names: &[&str], days: i64, standby: bool) {
        self.upload(name, names, days, standby);
        self.verdict(name, Ok(Trust::Public));
    }

    fn latest(&self, name: &str) -> (CertificateId, u32) {
        let certificate = self.world.memory.certificate_named("acme", name).unwrap();
        (certificate.id, certificate.latest().unwrap().version)
    }

    fn verdict(&mut self, name: &str, verdict: Result<Trust, Vec<Reason>>) {
        let (id, version) = self.latest(name);
        self.ask(VerifyCertificate {
            id,
            version,
            verdict,
        });
    }

    fn replace(&mut self, name: &str, names: &[&str], days: i64) {
        let facts = self.facts(names, days);
        self.ask(ReplaceCertificate {
            name: slug(name),
            facts,
            expect: None,
        });
    }

    fn delete(&mut self, name: &str) {
        self.ask(DeleteCertificate {
            name: slug(name),
            confirm: name.into(),
            force: false,
            expect: None,
        });
    }

    fn revoke(&mut self, name: &str) {
        let (id, version) = self.latest(name);
        self.ask(RevokeCertificate {
            id,
            version,
            reasons: Vec::new(),
        });
    }

    /// The active one and its fallbacks, as `name/version`.
    fn chain_of(&self, asked: &str) -> String {
        let (_, ranked) = ranking(&self.world.memory, &host(asked), "ru-1").unwrap();
        let chain: Vec<String> = chain(&ranked, self.now)
            .map(|c| {
                let name = self.world.memory.certificate(c.certificate).unwrap().name;
                format!("{name}/{}", c.version)
            })
            .collect();
        chain.join(" ")
    }

    #[track_caller]
    fn serves(&self, expected: &str) {
        assert_eq!(self.chain_of(WWW), expected);
    }
}

#[test]
fn the_last_uploaded_is_active_and_the_chain_is_walked_back() {
    let mut s = story();
    s.add("old", &[WWW], 90, false);
    s.add("mid", &[WWW], 60, false);
    s.add("new", &[WWW], 30, false);
    s.serves("new/1 mid/1 old/1");
    s.delete("new");
    s.serves("mid/1 old/1");
    s.revoke("mid");
    s.serves("old/1");
    s.add("short", &[WWW], 1, false);
    s.serves("short/1 old/1");
    s.now += DAY - 1;
    s.serves("short/1 old/1");
    s.now += 1;
    s.serves("old/1");
}

#[test]
fn what_is_not_verified_displaces_nothing() {
    let mut s = story();
    s.add("good", &[WWW], 30, false);
    s.upload("bad", &[WWW], 90, false);
    s.serves("good/1");
    s.verdict(
        "bad",
        Err(vec![Reason::new(
            Code::ChainIncomplete,
            "an intermediate is missing",
            "",
        )]),
    );
    s.serves("good/1");
    s.replace("good", &[WWW], 90);
    s.serves("good/1");
    s.verdict("good", Ok(Trust::Public));
    s.serves("good/2 good/1");
}

#[test]
fn a_replacement_keeps_the_place() {
    let mut s = story();
    s.add("auto", &[WWW], 90, false);
    s.add("chosen", &[WWW], 90, false);
    s.replace("auto", &[WWW], 180);
    s.verdict("auto", Ok(Trust::Public));
    s.serves("chosen/1 auto/2 auto/1");
}

#[test]
fn a_standby_serves_only_when_nothing_else_can() {
    let mut s = story();
    s.add("main", &[WWW], 30, false);
    s.add("spare", &[WWW], 90, true);
    s.serves("main/1 spare/1");
    // Even one that names only the wildcard goes before it.
    s.add("wide", &["*.example.com"], 60, false);
    s.serves("main/1 wide/1 spare/1");
    s.now += 61 * DAY;
    s.serves("spare/1");
}

#[test]
fn bound_goes_before_chosen_and_exact_before_wildcard() {
    let mut s = story();
    s.add("exact", &[WWW], 90, false);
    s.add("wide", &["*.example.com"], 90, false);
    s.serves("exact/1 wide/1");
    s.ask(BindDomain {
        host: WWW.into(),
        certificate: slug("wide"),
        region: None,
        expect: None,
    });
    s.replace("wide", &["*.example.com"], 90);
    s.verdict("wide", Ok(Trust::Public));
    s.serves("wide/2 wide/1 exact/1");
    // What was bound goes, and the rest is there.
    s.delete("wide");
    s.serves("exact/1");
}

#[test]
fn a_wildcard_covers_one_level_and_one_project() {
    let mut s = story();
    for (project, claim) in [("acme", "*.example.com"), ("beta", "api.example.com")] {
        s.world
            .run(
                Who::Operator,
                project,
                CreateResource {
                    demand_public: false,
                    name: slug("all"),
                    kind: ResourceKind::Cdn,
                    regions: slugs(&["ru-1"]),
                    origin: "https://origin.example.net".into(),
                    keep_host: false,
                },
                NOW,
            )
            .unwrap();
        s.world
            .run(
                Who::Operator,
                project,
                AddDomain {
                    host: claim.into(),
                    resource: Some(slug("all")),
                    regions: vec![],
                },
                NOW,
            )
            .unwrap();
    }
    s.add("wide", &["*.example.com", "api.example.com"], 90, false);
    assert_eq!(s.chain_of("shop.example.com"), "wide/1");
    // Beta holds this host, and has no certificate: acme's is no candidate, though it names the host twice over.
    assert_eq!(s.chain_of("api.example.com"), "");
    // Neither the apex nor two levels below.
    for outside in ["example.com", "a.shop.example.com"] {
        assert!(
            ranking(&s.world.memory, &host(outside), "ru-1").is_none(),
            "{outside}"
        );
    }
}
