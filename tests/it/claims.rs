//! Claims that their owners prove themselves, against a real DNS server, up to the host that is served.

use std::fs;
use std::path::Path;
use std::time::Duration;

use harness::{Chancery, Cli, Dns, SOON, Up, eventually, throughout};
use serde_json::{Value, json};

use crate::raw::Raw;
use crate::stage::{Stage, dark_now, resource, serves, upload};

const ZONE: &str = "example.test";
const HOST: &str = "www.example.test";
/// How long a holder is served after another project's proof, in seconds.
const GRACE: u64 = 3;

/// A system that asks a DNS server of its own.
struct Zoned {
    dns: Dns,
    stage: Stage,
    folder: tempfile::TempDir,
}

fn up(folder: &tempfile::TempDir, dns: &Dns) -> Chancery {
    up_with(folder, dns, GRACE)
}

fn up_with(folder: &tempfile::TempDir, dns: &Dns, grace: u64) -> Chancery {
    let config = folder.path().join("config.toml");
    let text = format!(
        "state = \"state\"\n[control]\nclaim_grace_seconds = {grace}\n[control.dns]\nresolvers = [\"{}\"]\ntimeout_ms = 500\n\
         [[edge]]\nregion = \"local\"\nname = \"local-1\"\nhttps = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\n",
        dns.address()
    );
    fs::write(&config, text).expect("a file");
    Up::in_folder(folder.path())
        .flag(&format!("--config={}", config.display()))
        .start()
}

impl Zoned {
    fn start() -> Self {
        Self::with_grace(GRACE)
    }

    fn with_grace(grace: u64) -> Self {
        let dns = Dns::start(&[ZONE, "alias.test"], &["broken.test"]);
        let folder = tempfile::tempdir().expect("a folder");
        let stage = Stage::of(up_with(&folder, &dns, grace));
        stage.resource("media", "bucket", &["local"]);
        Self { dns, stage, folder }
    }

    fn alice(&self) -> &Cli {
        &self.stage.alice
    }

    /// A second project with a user and a resource.
    fn bob(&self) -> Cli {
        let bob = self.stage.chancery.project("bravo", "bob");
        let origin = format!("{}/bravo", self.stage.origin.url());
        resource(
            &self.stage.operator,
            "bravo",
            "media",
            "bucket",
            &["local"],
            &origin,
        );
        bob
    }

    /// Sets the TXT records that these users' claims of a host want, and tells their values.
    fn publish(&self, host: &str, users: &[&Cli]) -> Vec<String> {
        let records: Vec<Value> = users.iter().map(|user| record(user, host, "TXT")).collect();
        let name = records[0]["name"].as_str().expect("a name");
        let values: Vec<&str> = records
            .iter()
            .map(|r| {
                assert_eq!(r["name"], name);
                r["value"].as_str().expect("a value")
            })
            .collect();
        self.dns.txt(name, &values);
        values.into_iter().map(str::to_owned).collect()
    }
}

fn add(user: &Cli, host: &str) {
    user.run(&["domain", "add", host, "--resource", "media"])
        .ok();
}

fn show(user: &Cli, host: &str) -> Value {
    user.run(&["domain", "show", host]).ok().json()
}

/// A record that a pending claim offers.
fn record(user: &Cli, host: &str, kind: &str) -> Value {
    let shown = show(user, host);
    let records = shown["verification"]["records"].as_array();
    records
        .into_iter()
        .flatten()
        .find(|record| record["type"] == kind)
        .unwrap_or_else(|| panic!("no {kind} record is offered: {shown}"))
        .clone()
}

fn status(user: &Cli, host: &str) -> String {
    show(user, host)["status"]
        .as_str()
        .expect("a status")
        .to_owned()
}

fn becomes(user: &Cli, host: &str, wanted: &str) {
    user.run(&[
        "domain",
        "wait",
        host,
        "--status",
        wanted,
        "--timeout",
        "60s",
    ])
    .ok();
}

/// The facts about domains in a project's events, with the host, in order.
fn facts(operator: &Cli, project: &str) -> Vec<String> {
    operator
        .project(project)
        .run(&["events", "replay"])
        .ok()
        .lines()
        .iter()
        .filter_map(|event| {
            let kind = event["type"].as_str()?;
            let fact = kind.strip_prefix("dev.chancery.domain.")?;
            Some(format!(
                "{} {}",
                fact.strip_suffix(".v1")?,
                event["data"]["host"].as_str()?
            ))
        })
        .collect()
}

/// The outcome of the last look, of the TXT record.
fn outcome(user: &Cli, host: &str) -> String {
    show(user, host)["verification"]["txt"]["outcome"]
        .as_str()
        .unwrap_or("none yet")
        .to_owned()
}

fn comes_to(user: &Cli, host: &str, wanted: &str) {
    eventually(&format!("the look says {wanted}"), SOON, || {
        match outcome(user, host) {
            found if found == wanted => Ok(()),
            found => Err(found),
        }
    });
}

#[test]
fn a_customer_proves_a_domain_and_is_served() {
    let zoned = Zoned::start();
    let alice = zoned.alice();
    let leaf = zoned.stage.ca.issue(HOST);
    upload(alice, "site", &leaf, &["--region", "local"]);

    // People are told what to do at once, as a line for their zone.
    let said = alice
        .say(&["domain", "add", HOST, "--resource", "media"])
        .ok()
        .stdout;
    assert!(
        said.contains("_chancery.www.example.test. 300 IN TXT \"chancery-verification=")
            && said
                .contains("www.example.test. 300 IN CNAME media--acme.local.chancery.localhost."),
        "{said}"
    );
    comes_to(alice, HOST, "no-name");
    let shown = show(alice, HOST);
    assert_eq!(shown["status"], "pending");
    assert!(shown["verification"]["next"].is_string(), "{shown}");
    assert!(dark_now(zoned.stage.chancery.https(), HOST).is_ok());

    // A wrong value is shown beside the one that is wanted.
    let name = record(alice, HOST, "TXT")["name"]
        .as_str()
        .expect("a name")
        .to_owned();
    zoned
        .dns
        .txt(&name, &["chancery-verification=wrong", "\\127other"]);
    let checked = alice.run(&["domain", "check", HOST]);
    assert_eq!(checked.refused(), "domain_unproven");
    let problem = checked.json();
    let detail = problem["detail"].as_str().expect("a detail");
    let wanted = record(alice, HOST, "TXT")["value"]
        .as_str()
        .expect("a value")
        .to_owned();
    assert!(
        detail.contains("\"chancery-verification=wrong\"")
            && detail.contains(&format!("expected \"{wanted}\"")),
        "{detail}"
    );
    assert!(
        detail.contains("\\127other"),
        "only what can be printed: {detail}"
    );
    assert_eq!(problem["verification"]["txt"]["outcome"], "found");
    let card = alice.say(&["domain", "show", HOST]).ok().stdout;
    assert!(card.contains(&wanted) && card.contains("wrong"), "{card}");

    // The right one among others, found by itself.
    zoned.dns.txt(&name, &["v=spf1 -all", &wanted, "more"]);
    becomes(alice, HOST, "proven");
    assert_eq!(show(alice, HOST)["proof"], "dns-txt");
    serves(zoned.stage.chancery.https(), HOST, &leaf);
    let accepted = alice.run(&["domain", "check", HOST]).ok().json();
    assert_eq!(
        (&accepted["outcome"], &accepted["status"]),
        (&Value::from("accepted"), &Value::from("proven"))
    );
    // Looks are no events; only what followed from them is one.
    assert_eq!(
        facts(&zoned.stage.operator, "acme"),
        ["added", "attached", "proven"].map(|fact| format!("{fact} {HOST}"))
    );
}

#[test]
fn an_alias_of_the_project_s_own_provider_domain_proves_too() {
    let zoned = Zoned::start();
    let alice = zoned.alice();
    let bob = zoned.bob();
    let provider = record_of_alias(alice, &zoned);

    // Bob gains nothing from an alias of Acme's, nor from one of a resource that is not there.
    add(&bob, "shop.example.test");
    zoned.dns.cname("shop.example.test", &provider);
    assert_eq!(
        bob.run(&["domain", "check", "shop.example.test"]).refused(),
        "domain_unproven"
    );
    zoned.dns.cname(
        "shop.example.test",
        "absent--bravo.local.chancery.localhost",
    );
    let checked = bob.run(&["domain", "check", "shop.example.test"]);
    assert_eq!(checked.refused(), "domain_unproven");
    assert!(
        checked.stdout.contains("absent--bravo"),
        "what was found is shown: {checked:?}"
    );

    // Through a chain, in any case, for a wildcard, and with a record for it that is an alias itself.
    zoned.dns.cname(HOST, "One.Alias.Test");
    zoned.dns.cname("one.alias.test", "two.alias.test");
    zoned.dns.cname("two.alias.test", &provider.to_uppercase());
    add(alice, HOST);
    becomes(alice, HOST, "proven");
    assert_eq!(show(alice, HOST)["proof"], "dns-cname");

    zoned.dns.cname("*.wild.example.test", &provider);
    add(alice, "*.wild.example.test");
    becomes(alice, "*.wild.example.test", "proven");

    add(alice, "far.example.test");
    let txt = record(alice, "far.example.test", "TXT");
    zoned
        .dns
        .cname("_chancery.far.example.test", "proof.alias.test");
    zoned.dns.txt(
        "proof.alias.test",
        &[&"x".repeat(400), txt["value"].as_str().expect("a value")],
    );
    alice.run(&["domain", "check", "far.example.test"]).ok();

    // Aliases in a circle end.
    zoned.dns.cname("a.alias.test", "b.alias.test");
    zoned.dns.cname("b.alias.test", "a.alias.test");
    zoned.dns.cname("round.example.test", "a.alias.test");
    add(alice, "round.example.test");
    let checked = alice.run(&["domain", "check", "round.example.test"]);
    assert_eq!(checked.refused(), "domain_unproven");
    assert_eq!(
        checked.json()["verification"]["cname"]["outcome"],
        "too-many-steps"
    );
}

/// The provider domain of Acme's resource, as a claim offers it.
fn record_of_alias(alice: &Cli, zoned: &Zoned) -> String {
    add(alice, "offer.example.test");
    let offered = record(alice, "offer.example.test", "CNAME");
    let value = offered["value"].as_str().expect("a value").to_owned();
    assert_eq!(value, "media--acme.local.chancery.localhost");
    assert!(zoned.stage.chancery.state().exists());
    alice.run(&["domain", "release", "offer.example.test"]).ok();
    value
}

#[test]
fn what_the_dns_says_is_told_apart_and_comes_right_by_itself() {
    let zoned = Zoned::start();
    let alice = zoned.alice();
    for (host, wanted) in [
        ("nothing.example.test", "no-name"),
        ("here.example.test", "no-record"),
        ("www.broken.test", "server-failure"),
        ("www.elsewhere.test", "refused"),
    ] {
        if wanted == "no-record" {
            zoned
                .dns
                .set(&format!("_chancery.{host}"), "A", &["192.0.2.1".to_owned()]);
        }
        add(alice, host);
        comes_to(alice, host, wanted);
    }
    // A server that is silent says nothing about the zone; the claim is looked at again and proven.
    zoned.dns.pause();
    add(alice, HOST);
    comes_to(alice, HOST, "timeout");
    let checked = alice.run(&["domain", "check", HOST]);
    assert_eq!(checked.refused(), "domain_unproven");
    assert!(checked.stdout.contains("no answer in time"), "{checked:?}");
    zoned.dns.resume();
    zoned.publish(HOST, &[alice]);
    becomes(alice, HOST, "proven");
    // A long answer, which does not fit into one datagram.
    add(alice, "long.example.test");
    let txt = record(alice, "long.example.test", "TXT");
    let others: Vec<String> = (0..20).map(|i| format!("{i}{}", "x".repeat(200))).collect();
    let mut values: Vec<&str> = others.iter().map(String::as_str).collect();
    values.push(txt["value"].as_str().expect("a value"));
    zoned.dns.txt("_chancery.long.example.test", &values);
    alice.run(&["domain", "check", "long.example.test"]).ok();
}

#[test]
fn looks_go_on_after_a_restart_and_a_former_claim_s_record_proves_nothing() {
    let zoned = Zoned::start();
    let alice = zoned.alice().clone();
    // The record of a claim that was released is none of the next one.
    add(&alice, HOST);
    zoned.publish(HOST, &[&alice]);
    becomes(&alice, HOST, "proven");
    alice.run(&["domain", "release", HOST]).ok();
    add(&alice, HOST);
    comes_to(&alice, HOST, "found");
    assert_eq!(status(&alice, HOST), "pending");
    let before = show(&alice, HOST);
    // What was found is still known after a restart, and the claim is looked at again.
    let Zoned { dns, stage, folder } = zoned;
    let looked = before["verification"]["looked_at"].clone();
    assert!(looked.is_string(), "{before}");
    let Stage { chancery, .. } = stage;
    drop(chancery.stop());
    let chancery = up(&folder, &dns);
    let alice = chancery.operator().project("acme");
    assert_eq!(
        show(&alice, HOST)["verification"]["records"],
        before["verification"]["records"]
    );
    assert!(show(&alice, HOST)["verification"]["looked_at"].is_string());
    let txt = record(&alice, HOST, "TXT");
    dns.txt(
        txt["name"].as_str().expect("a name"),
        &[txt["value"].as_str().expect("a value")],
    );
    becomes(&alice, HOST, "proven");
}

#[test]
fn a_host_moves_after_its_grace_and_its_holder_is_told() {
    let zoned = Zoned::start();
    let (alice, bob, operator) = (zoned.alice(), zoned.bob(), &zoned.stage.operator);
    let https = zoned.stage.chancery.https();
    let old = zoned.stage.ca.issue(HOST);
    upload(alice, "site", &old, &["--region", "local"]);
    add(alice, HOST);
    let acmes = zoned.publish(HOST, &[alice]).remove(0);
    becomes(alice, HOST, "proven");
    serves(https, HOST, &old);

    // An alias proves nothing against a holder: it may be left over. It is not offered either.
    add(&bob, HOST);
    let offered = show(&bob, HOST)["verification"]["records"].clone();
    assert_eq!(offered.as_array().map(Vec::len), Some(1), "{offered}");
    zoned
        .dns
        .cname(HOST, "media--bravo.local.chancery.localhost");
    let checked = bob.run(&["domain", "check", HOST]);
    assert_eq!(checked.refused(), "domain_unproven");
    assert!(
        checked
            .stdout
            .contains("proves nothing while another project holds"),
        "{checked:?}"
    );
    zoned.dns.remove(HOST, "CNAME");

    // Both projects' records stand: the later claim is the one that counts.
    let bravos = record(&bob, HOST, "TXT");
    zoned.dns.txt(
        bravos["name"].as_str().expect("a name"),
        &[bravos["value"].as_str().expect("a value"), &acmes],
    );
    let checked = bob.run(&["domain", "check", HOST]);
    assert_eq!(checked.refused(), "domain_unproven", "not yet: {checked:?}");
    assert!(checked.stdout.contains("is served until"), "{checked:?}");
    let held = show(alice, HOST);
    assert_eq!(held["status"], "proven");
    assert!(held["contested_until"].is_string(), "{held}");
    let card = alice.say(&["domain", "show", HOST]).ok().stdout;
    assert!(
        card.contains("another project proved this host afresh"),
        "{card}"
    );
    let claimed = show(&bob, HOST);
    assert!(claimed["moves_at"].is_string(), "{claimed}");
    assert!(
        claimed["warnings"]
            .to_string()
            .contains("no certificate of this project"),
        "it would go dark: {claimed}"
    );
    // The holder serves on until then.
    serves(https, HOST, &old);
    let new = zoned.stage.ca.issue(HOST);
    upload(&bob, "site", &new, &["--region", "local"]);
    becomes(&bob, HOST, "proven");
    assert_eq!(status(alice, HOST), "moved");
    serves(https, HOST, &new);
    let told = facts(operator, "acme");
    assert_eq!(
        told[told.len() - 2..],
        ["contested", "moved"].map(|fact| format!("{fact} {HOST}"))
    );
    assert_eq!(
        facts(operator, "bravo"),
        ["added", "attached", "move-scheduled", "proven"].map(|fact| format!("{fact} {HOST}"))
    );
    operator.run(&["audit", "verify"]).ok();
    operator.run(&["audit", "rebuild"]).ok();
}

/// Once nobody holds the host, its claimant waits for a look and not for the grace.
#[test]
fn a_host_that_its_holder_lets_go_is_the_claimant_s_at_once() {
    let zoned = Zoned::with_grace(86_400);
    let (alice, bob) = (zoned.alice(), zoned.bob());
    add(alice, HOST);
    zoned.publish(HOST, &[alice]);
    becomes(alice, HOST, "proven");
    add(&bob, HOST);
    zoned.publish(HOST, &[&bob]);
    assert_eq!(
        bob.run(&["domain", "check", HOST]).refused(),
        "domain_unproven"
    );
    assert!(show(&bob, HOST)["moves_at"].is_string());
    alice.run(&["domain", "release", HOST]).ok();
    becomes(&bob, HOST, "proven");
    assert_eq!(
        facts(&zoned.stage.operator, "bravo"),
        [
            "added",
            "attached",
            "move-scheduled",
            "contest-lapsed",
            "proven"
        ]
        .map(|fact| format!("{fact} {HOST}"))
    );
}

#[test]
fn a_contest_lapses_when_the_record_is_gone_by_then() {
    let zoned = Zoned::start();
    let (alice, bob, operator) = (zoned.alice(), zoned.bob(), &zoned.stage.operator);
    let https = zoned.stage.chancery.https();
    let leaf = zoned.stage.ca.issue(HOST);
    upload(alice, "site", &leaf, &["--region", "local"]);
    add(alice, HOST);
    zoned.publish(HOST, &[alice]);
    becomes(alice, HOST, "proven");
    add(&bob, HOST);
    zoned.publish(HOST, &[&bob]);
    eventually("the contest begins", SOON, || {
        let shown = show(&bob, HOST);
        shown["moves_at"].as_str().map(|_| ()).ok_or(shown)
    });
    zoned.dns.remove("_chancery.www.example.test", "TXT");
    eventually("the contest lapses", SOON, || {
        let shown = show(&bob, HOST);
        shown["moves_at"].is_null().then_some(()).ok_or(shown)
    });
    let held = show(alice, HOST);
    assert_eq!(
        (held["status"].as_str(), &held["contested_until"]),
        (Some("proven"), &Value::Null)
    );
    throughout("the holder is served", Duration::from_millis(300), || {
        crate::stage::served_now(https, HOST, &leaf)
    });
    for project in ["acme", "bravo"] {
        assert_eq!(
            facts(operator, project).last(),
            Some(&format!("contest-lapsed {HOST}"))
        );
    }
    // It begins anew when the record is back.
    zoned.publish(HOST, &[&bob]);
    assert!(
        bob.run(&["domain", "check", HOST])
            .stdout
            .contains("is served until")
    );
    becomes(&bob, HOST, "proven");
    assert_eq!(status(alice, HOST), "moved");
    // The former holder may do the same.
    add(alice, HOST);
    zoned.publish(HOST, &[alice]);
    assert_eq!(
        alice.run(&["domain", "check", HOST]).refused(),
        "domain_unproven"
    );
    becomes(alice, HOST, "proven");
    assert_eq!(status(&bob, HOST), "moved");
}

#[test]
fn a_contest_waits_for_a_dns_that_is_silent_and_a_suspended_project_gets_nothing() {
    let zoned = Zoned::start();
    let (alice, bob, operator) = (zoned.alice(), zoned.bob(), &zoned.stage.operator);
    add(alice, HOST);
    zoned.publish(HOST, &[alice]);
    becomes(alice, HOST, "proven");
    add(&bob, HOST);
    let contested = || {
        zoned.publish(HOST, &[&bob]);
        assert_eq!(
            bob.run(&["domain", "check", HOST]).refused(),
            "domain_unproven"
        );
        assert!(show(&bob, HOST)["moves_at"].is_string());
    };
    contested();
    operator.run(&["project", "suspend", "bravo"]).ok();
    eventually("the contest lapses", SOON, || {
        let shown = show(alice, HOST);
        shown["contested_until"]
            .is_null()
            .then_some(())
            .ok_or(shown)
    });
    assert_eq!(status(alice, HOST), "proven");
    operator.run(&["project", "resume", "bravo"]).ok();
    // Now the time comes while nobody answers: that says nothing of the zone.
    contested();
    zoned.dns.pause();
    let silent = Duration::from_secs(GRACE + 3);
    throughout("it neither moves nor lapses", silent, || {
        let shown = show(alice, HOST);
        match (shown["status"].as_str(), &shown["contested_until"]) {
            (Some("proven"), Value::String(_)) => Ok(()),
            _ => Err(shown),
        }
    });
    zoned.dns.resume();
    becomes(&bob, HOST, "proven");
    assert_eq!(status(alice, HOST), "moved");
}

#[test]
fn of_two_projects_at_once_one_holds_the_host_and_contests_survive_a_restart() {
    let zoned = Zoned::start();
    let (alice, bob) = (zoned.alice().clone(), zoned.bob());
    add(&alice, HOST);
    add(&bob, HOST);
    // Both records stand in the zone; both look at the same time.
    zoned.publish(HOST, &[&alice, &bob]);
    std::thread::scope(|scope| {
        for user in [&alice, &bob] {
            scope.spawn(|| user.run(&["domain", "check", HOST]));
        }
    });
    let statuses = || [status(&alice, HOST), status(&bob, HOST)];
    let one = eventually("one holds it", SOON, || {
        let statuses = statuses();
        match statuses.iter().position(|s| s == "proven") {
            Some(one) => Ok(one),
            None => Err(statuses.join(" ")),
        }
    });
    assert_ne!(statuses(), ["proven", "proven"]);
    // The other one's record was made for it too, so it takes the host over after the grace; also when that ends while
    // nothing runs.
    let (first, second) = if one == 0 {
        ("acme", "bravo")
    } else {
        ("bravo", "acme")
    };
    let operator = zoned.stage.operator.clone();
    eventually("the host is contested", SOON, || {
        let shown = show(&operator.project(first), HOST);
        shown["contested_until"].as_str().map(|_| ()).ok_or(shown)
    });
    let Zoned { dns, stage, folder } = zoned;
    let Stage { chancery, .. } = stage;
    drop(chancery.stop());
    let chancery = up(&folder, &dns);
    let operator = chancery.operator();
    becomes(&operator.project(second), HOST, "proven");
    assert_eq!(status(&operator.project(first), HOST), "moved");
    operator.run(&["audit", "verify"]).ok();
}

#[test]
fn a_suspended_project_s_claims_are_not_looked_up_and_a_project_cannot_ask_for_ever() {
    let zoned = Zoned::start();
    let (alice, operator) = (zoned.alice(), &zoned.stage.operator);
    add(alice, HOST);
    comes_to(alice, HOST, "no-name");
    operator.run(&["project", "suspend", "acme"]).ok();
    let txt = record(&operator.project("acme"), HOST, "TXT");
    zoned.dns.txt(
        txt["name"].as_str().expect("a name"),
        &[txt["value"].as_str().expect("a value")],
    );
    // The second look is due five seconds after the first.
    throughout(
        "nothing is proven",
        Duration::from_secs(8),
        || match status(&operator.project("acme"), HOST).as_str() {
            "pending" => Ok(()),
            other => Err(other.to_owned()),
        },
    );
    operator.run(&["project", "resume", "acme"]).ok();
    alice.run(&["domain", "check", HOST]).ok();
    // A look by hand is work for others' servers.
    add(alice, "other.example.test");
    let creds = Path::new(&alice.environment()["CHANCERY_CREDS"]);
    let mut raw = Raw::connect(&zoned.stage.chancery.nats(), creds, &json!({}));
    let limited = (0..60).any(|_| {
        let body = json!({"host": "other.example.test"});
        raw.ask("chancery.v1.cmd.acme.domain.check", None, &body)["code"] == "rate_limited"
    });
    assert!(limited, "a project may ask for looks without an end");
}
