//! Trees on disk, and the plans that are made of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use data_encoding::BASE64;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SerialNumber, SignatureAlgorithm,
};
use tempfile::TempDir;
use time::OffsetDateTime;

use lifecycle::names::{Digest, Slug};

use super::line::{Line, Verdict};
use super::plan::{Action, Asked, Entry, Plan, plan};
use super::scan::{Inventory, Opener, load};
use super::there::{Known, Limit, Room, There};
use super::walk::{Tree, walk};

const DAY: u64 = 86_400;

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
}

fn ca(name: &str) -> Ca {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("made");
    let certificate = params.self_signed(&key).expect("signed");
    Ca {
        issuer: Issuer::new(params, key),
        certificate,
    }
}

impl Ca {
    /// A CA below this one, which a server has to send.
    fn below(&self, name: &str) -> Ca {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("made");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        Ca {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    fn leaf(&self, names: &[&str], days: u64) -> (String, String) {
        self.leaf_of(names, days, &PKCS_ECDSA_P256_SHA256)
    }

    fn leaf_of(
        &self,
        names: &[&str],
        days: u64,
        algorithm: &'static SignatureAlgorithm,
    ) -> (String, String) {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("host names");
        let key = KeyPair::generate_for(algorithm).expect("made");
        params.serial_number = Some(SerialNumber::from(key.public_key_raw()[5..13].to_vec()));
        params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(DAY);
        params.not_after = OffsetDateTime::now_utc() + Duration::from_secs(days * DAY);
        let leaf = params.signed_by(&key, &self.issuer).expect("signed");
        (leaf.pem(), key.serialize_pem())
    }
}

fn write(path: impl AsRef<Path>, text: impl AsRef<[u8]>) {
    let path = path.as_ref();
    fs::create_dir_all(path.parent().expect("it has a folder")).expect("made");
    fs::write(path, text).expect("written");
}

struct Trial {
    folder: TempDir,
    there: There,
    room: Room,
    prefix: Option<String>,
}

impl Trial {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder"),
            there: There::default(),
            room: Room::default(),
            prefix: None,
        }
    }

    fn pair(&self, name: &str, (certificate, key): &(String, String)) {
        write(self.folder.path().join(format!("{name}.crt")), certificate);
        write(self.folder.path().join(format!("{name}.key")), key);
    }

    fn look(&self) -> (Tree, Inventory) {
        let tree = walk(self.folder.path(), None).expect("walked");
        let mut inventory = Inventory::default();
        let opener = Opener::new(&[]);
        for (number, file) in (0..).zip(&tree.files) {
            inventory.read(self.folder.path(), number, file, &opener);
        }
        (tree, inventory)
    }

    fn plan(&self) -> Plan {
        let (tree, inventory) = self.look();
        let regions: BTreeSet<String> = ["local".to_owned()].into();
        let project = Slug::project("acme").expect("a project");
        let asked = Asked {
            dir: self.folder.path(),
            prefix: self.prefix.as_deref(),
            regions: &regions,
            now: OffsetDateTime::now_utc().unix_timestamp(),
            project: &project,
        };
        plan(&tree, &inventory, &self.there, &self.room, &asked)
    }

    /// Does what a plan says, as the project would show it afterwards.
    fn carry_out(&mut self, plan: &Plan) {
        let (_, inventory) = self.look();
        for entry in plan.groups.iter().flatten() {
            let leaf = &inventory.leaves[&entry.fingerprint];
            let known = Known {
                names: leaf.names.clone(),
                not_after: leaf.not_after,
                regions: vec!["local".to_owned()],
                status: "ready".to_owned(),
                key: if leaf.algorithm.starts_with("1.3.101") {
                    "ed25519".to_owned()
                } else {
                    "p256".to_owned()
                },
                ..Known::default()
            };
            self.there.names.insert(entry.name.to_string(), known);
            self.there
                .fingerprints
                .insert(entry.fingerprint, (entry.name.to_string(), 1));
        }
    }
}

fn entries(plan: &Plan) -> Vec<(String, &Entry)> {
    let mut all: Vec<_> = plan
        .groups
        .iter()
        .flatten()
        .map(|entry| (entry.name.to_string(), entry))
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn names(plan: &Plan) -> Vec<String> {
    entries(plan).into_iter().map(|(name, _)| name).collect()
}

fn only(plan: &Plan) -> &Line {
    assert_eq!(plan.settled.len(), 1, "{:#?}", plan.settled);
    &plan.settled[0]
}

#[test]
fn two_of_one_name_are_told_apart_the_same_way_every_time_and_followed_by_their_renewals() {
    let ca = ca("Test CA");
    let mut trial = Trial::new();
    trial.pair("a/x", &ca.leaf(&["h.example"], 30));
    trial.pair("b/y", &ca.leaf_of(&["h.example"], 30, &PKCS_ED25519));
    let first = trial.plan();
    assert_eq!(names(&first), names(&trial.plan()));
    let [plain, suffixed] = &names(&first)[..] else {
        panic!("{first:#?}")
    };
    assert_eq!(plain, "h-example");
    assert!(suffixed.starts_with("h-example-") && suffixed.len() == 18);
    assert_eq!(entries(&first)[0].1.source, "a/x.crt");
    trial.carry_out(&first);
    let again = trial.plan();
    assert_eq!(names(&again), Vec::<String>::new());
    assert!(
        again
            .settled
            .iter()
            .all(|line| line.outcome() == Verdict::Unchanged)
    );
    // One that sorts before both does not take the name from the one that has it.
    trial.pair("0/z", &ca.leaf(&["h.example"], 40));
    let third = trial.plan();
    assert_eq!(names(&third).len(), 1);
    assert_ne!(names(&third)[0], "h-example");
    assert_eq!(entries(&third)[0].1.action, Action::Add);
    fs::remove_dir_all(trial.folder.path().join("0")).expect("removed");
    // Both are renewed: each follows its own.
    trial.pair("a/x", &ca.leaf(&["h.example"], 60));
    trial.pair("b/y", &ca.leaf_of(&["h.example"], 60, &PKCS_ED25519));
    let renewed = trial.plan();
    assert_eq!(names(&renewed), names(&first));
    assert!(
        entries(&renewed)
            .iter()
            .all(|(_, entry)| matches!(entry.action, Action::Replace { .. }))
    );
}

#[test]
fn what_shares_a_host_goes_one_after_the_other_and_the_last_to_end_goes_last() {
    let ca = ca("Test CA");
    let trial = Trial::new();
    trial.pair("1", &ca.leaf(&["a.example", "b.example"], 90));
    trial.pair("2", &ca.leaf(&["b.example", "c.example"], 30));
    trial.pair("3", &ca.leaf(&["c.example"], 60));
    trial.pair("4", &ca.leaf(&["d.example"], 10));
    let plan = trial.plan();
    let groups: Vec<Vec<&str>> = plan
        .groups
        .iter()
        .map(|group| group.iter().map(|e| e.source.as_str()).collect())
        .collect();
    assert_eq!(groups, [vec!["2.crt", "3.crt", "1.crt"], vec!["4.crt"]]);
}

#[test]
fn what_may_follow_covers_as_much_and_ends_later() {
    let ca = ca("Test CA");
    for (old, new, days, refused) in [
        (&["a.example.com"][..], &["a.example.com"][..], 31, None),
        (&["a.example.com"], &["*.example.com"], 31, None),
        (
            &["a.example.com"],
            &["a.example.com", "b.example.com"],
            31,
            None,
        ),
        (
            &["*.example.com"],
            &["a.example.com"],
            31,
            Some("covers *.example.com"),
        ),
        (
            &["a.b.example.com"],
            &["*.example.com"],
            31,
            Some("covers a.b.example.com"),
        ),
        (
            &["a.example.com"],
            &["a.example.com"],
            29,
            Some("ends no sooner"),
        ),
    ] {
        let mut trial = Trial::new();
        trial.prefix = Some("x".to_owned());
        trial.pair("live", &ca.leaf(new, days));
        let name = names(&trial.plan())[0].clone();
        let known = Known {
            names: old.iter().map(|n| (*n).to_owned()).collect(),
            not_after: OffsetDateTime::now_utc().unix_timestamp() + 30 * DAY as i64,
            revision: 7,
            ..Known::default()
        };
        trial.there.names.insert(name.clone(), known);
        let plan = trial.plan();
        match refused {
            None => assert_eq!(
                entries(&plan)[0].1.action,
                Action::Replace { expect: 7 },
                "{old:?} {new:?}"
            ),
            Some(why) => {
                let line = only(&plan);
                assert_eq!(line.code.as_deref(), Some("duplicate_name"));
                assert!(line.reasons[0].message.contains(why), "{line:?}");
                let command = format!("chancery certificate replace {name} --chain ");
                assert!(line.reasons[0].hint.contains(&command), "{line:?}");
            }
        }
    }
}

#[test]
fn the_quota_is_kept_and_replacements_need_none() {
    let ca = ca("Test CA");
    let mut trial = Trial::new();
    for n in 0..5 {
        trial.pair(&format!("h{n}"), &ca.leaf(&[&format!("h{n}.example")], 30));
    }
    let limit = |region: Option<&str>, allocated| Limit {
        region: region.map(str::to_owned),
        allocated,
        used: 10,
    };
    trial.room.limits = vec![limit(None, 100), limit(Some("local"), 13)];
    trial.there.names.insert(
        "h0-example".to_owned(),
        Known {
            names: vec!["h0.example".to_owned()],
            ..Known::default()
        },
    );
    let plan = trial.plan();
    assert_eq!(
        names(&plan),
        ["h0-example", "h1-example", "h2-example", "h3-example"]
    );
    let line = only(&plan);
    assert_eq!(
        (line.name.as_str(), line.code.as_deref()),
        ("h4-example", Some("quota_exceeded"))
    );
    assert!(
        line.reasons[0]
            .hint
            .ends_with("chancery project quota acme --per-region 14"),
        "{line:?}"
    );
}

#[test]
fn pairs_are_found_by_their_keys_and_chains_by_their_issuers() {
    let root = ca("Test root");
    let intermediate = root.below("Test intermediate");
    let other = root.below("Another intermediate");
    let trial = Trial::new();
    let at = |name: &str| trial.folder.path().join(name);
    // Everything in one file, keys in another, the intermediates in a third, and a bundle as systems have it.
    let (a, b) = (
        intermediate.leaf(&["a.example"], 30),
        other.leaf(&["b.example"], 30),
    );
    write(at("all.pem"), format!("{}{}{}", b.0, a.0, b.1));
    write(at("keys/a.pem"), &a.1);
    write(
        at("ca/chain.pem"),
        format!(
            "{}{}{}",
            root.certificate.pem(),
            other.certificate.pem(),
            intermediate.certificate.pem()
        ),
    );
    let bundle: String = (0..30)
        .map(|n| ca(&format!("Root {n}")).certificate.pem())
        .collect();
    write(at("ca-certificates.crt"), bundle);
    let (tree, inventory) = trial.look();
    let plan = trial.plan();
    assert_eq!(names(&plan), ["a-example", "b-example"]);
    assert_eq!(plan.settled.len(), 0, "{:#?}", plan.settled);
    for (entry, issuer) in [
        (entries(&plan)[0].1, &intermediate),
        (entries(&plan)[1].1, &other),
    ] {
        let chain: Vec<_> = inventory.issuers(&entry.chain).collect();
        assert_eq!(
            chain,
            [issuer.certificate.der().clone()],
            "without the root"
        );
        let file = |place: super::scan::Place| &tree.files[place.file as usize];
        let (leaf, key) = load(
            trial.folder.path(),
            (entry.place, entry.fingerprint, file(entry.place)),
            (entry.key, entry.spki, file(entry.key)),
            &Opener::new(&[]),
        )
        .expect("read again");
        assert_eq!(Digest(key.spki_sha256()), entry.spki);
        assert!(!leaf.is_empty());
    }
    // What changes between the plan and the sending is not sent as something else.
    let entry = entries(&plan)[0].1.clone();
    write(at("keys/a.pem"), &b.1);
    let file = |place: super::scan::Place| &tree.files[place.file as usize];
    let error = load(
        trial.folder.path(),
        (entry.place, entry.fingerprint, file(entry.place)),
        (entry.key, entry.spki, file(entry.key)),
        &Opener::new(&[]),
    )
    .expect_err("another key");
    assert!(error.contains("keys/a.pem has changed"), "{error}");
}

#[test]
fn both_forms_of_traefiks_store_are_read_and_other_json_is_not() {
    let ca = ca("Test CA");
    let (a, b) = (ca.leaf(&["a.example"], 30), ca.leaf(&["b.example"], 30));
    let encode = |text: &str| BASE64.encode(text.as_bytes());
    let trial = Trial::new();
    let at = |name: &str| trial.folder.path().join(name);
    let old = serde_json::json!({
        "Account": {"Email": "x"},
        "Certificates": [{"Domain": {"Main": "a.example", "SANs": null}, "Certificate": encode(&a.0), "Key": encode(&a.1)}],
        "HTTPChallenges": {},
    });
    write(at("v1/acme.json"), old.to_string());
    let new = serde_json::json!({
        "empty": {"Account": null, "Certificates": null},
        "le": {"Account": {}, "Certificates": [
            {"domain": {"main": "b.example"}, "certificate": encode(&b.0), "key": encode(&b.1), "Store": "default"},
            {"domain": {"main": "c.example"}, "certificate": "!", "key": encode(&b.1)},
        ]},
    });
    write(at("v2/acme.json"), new.to_string());
    write(
        at("package.json"),
        r#"{"name": "x", "Certificates": "none"}"#,
    );
    write(at("broken.json"), r#"{"Certificates": [}"#);
    let plan = trial.plan();
    assert_eq!(names(&plan), ["a-example", "b-example"]);
    assert_eq!(entries(&plan)[1].1.source, "v2/acme.json#b.example");
    let line = only(&plan);
    assert_eq!(line.code.as_deref(), Some("pem_malformed"), "{line:?}");
}

#[test]
fn what_is_no_servers_certificate_is_no_business_of_an_import() {
    let root = ca("Test root");
    let trial = Trial::new();
    let at = |name: &str| trial.folder.path().join(name);
    // An SSH key, an account's key, a CA with its key, and a person's certificate without one.
    write(
        at("id_ed25519"),
        "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
    );
    write(
        at("account.key"),
        KeyPair::generate().expect("made").serialize_pem(),
    );
    write(at("root.crt"), root.certificate.pem());
    write(at("root.key"), root.issuer.key().serialize_pem());
    write(at("person.crt"), root.leaf(&[], 30).0);
    let plan = trial.plan();
    assert!(plan.groups.is_empty());
    assert_eq!(plan.settled.len(), 0, "{:#?}", plan.settled);
}
