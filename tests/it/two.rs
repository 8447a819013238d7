//! Control and edge in two processes, started apart from configuration files as an operator would, and what becomes of an
//! edge that is evicted.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bus::identity::Credentials;
use data_encoding::BASE64URL_NOPAD;
use harness::{Ca, Cli, Origin, SOON, Serve, checkout, curl, eventually, free_address, throughout};
use nkeys::KeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::raw::{Heard, Raw};
use crate::stage::{resource, served_now, serves, upload, wait};

const HOST: &str = "www.example.com";

/// A folder with the samples of `deploy/config`, moved to where a test may listen.
struct Apart {
    folder: TempDir,
    https: SocketAddr,
    control: Option<Serve>,
}

impl Apart {
    fn start() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("chancery-two-")
            .tempdir()
            .expect("a folder");
        let (nats, https) = (free_address(), free_address());
        // The samples as they are, but for the places in them.
        let place = |name: &str, places: &[(&str, String)]| {
            let sample = checkout().join("deploy/config").join(name);
            let mut text = fs::read_to_string(sample).expect("the sample is there");
            for (from, to) in places {
                assert!(text.contains(from), "the sample {name} has no {from}");
                text = text.replacen(from, to, 1);
            }
            fs::write(folder.path().join(name), text).expect("written");
        };
        let below = |name: &str| folder.path().join(name).display().to_string();
        let metrics = ("127.0.0.1:9464", "127.0.0.1:0".to_owned());
        place(
            "control.toml",
            &[
                ("/var/lib/chancery", below("control")),
                ("127.0.0.1:4222", nats.to_string()),
                metrics.clone(),
            ],
        );
        place(
            "edge.toml",
            &[
                ("/var/lib/chancery-edge", below("edge")),
                ("127.0.0.1:4222", nats.to_string()),
                ("0.0.0.0:443", https.to_string()),
                ("0.0.0.0:80", "127.0.0.1:0".to_owned()),
                ("/etc/chancery/edge-7.token", below("edge-7.token")),
                metrics,
            ],
        );
        let control = Some(Serve::start(&folder.path().join("control.toml")));
        Self {
            folder,
            https,
            control,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn control(&self) -> &Serve {
        self.control.as_ref().expect("it runs")
    }

    fn operator(&self) -> Cli {
        self.control().operator()
    }

    fn nats(&self) -> String {
        self.control().ready["nats"]
            .as_str()
            .expect("the ready line tells")
            .to_owned()
    }

    fn restart_control(&mut self) {
        self.control.take().expect("it runs").stop();
        self.control = Some(Serve::start(&self.file("control.toml")));
    }

    /// The text of a new enrolment token, also in a file.
    fn token(&self, edge: &str) -> String {
        let path = self.file(&format!("{edge}.token"));
        let _ = fs::remove_file(&path);
        let file = path.display().to_string();
        self.operator()
            .run(&["edge", "enrol", "eu-1", edge, "--out", &file])
            .ok();
        fs::read_to_string(&path)
            .expect("the token is written")
            .trim()
            .to_owned()
    }
}

/// An edge that its attacker drives by hand: what the token and its own keys give, and nothing else.
struct Taken {
    nats: String,
    token: Value,
    edge: String,
    key: KeyPair,
    hpke: String,
}

impl Taken {
    fn new(nats: String, edge: &str, token: &str) -> Self {
        let token = BASE64URL_NOPAD
            .decode(token.as_bytes())
            .expect("a token is base64url");
        // Any 32 bytes are a public key of X25519; here nobody needs the private one.
        let hpke = harness::sha256(edge.as_bytes());
        let token = serde_json::from_slice(&token).expect("of JSON");
        Self {
            nats,
            token,
            edge: edge.to_owned(),
            key: KeyPair::new_user(),
            hpke,
        }
    }

    fn connect(&self, credentials: &Credentials) -> Result<Raw, Vec<Heard>> {
        let inbox = format!("_INBOX.eu-1.{}", self.edge);
        Raw::with_inbox(&self.nats, credentials, &Value::Null, &inbox)
    }

    /// Shows the token, and returns the answer.
    fn enrol(&self) -> Value {
        let creds = Credentials::parse(
            self.token["creds"]
                .as_str()
                .expect("a token has credentials"),
        )
        .expect("readable");
        let mut raw = self.connect(&creds).expect("the server takes the token");
        let body = json!({"nkey": self.key.public_key(), "hpke": self.hpke});
        raw.ask(
            &format!("chancery.v1.edge.eu-1.{}.enrol", self.edge),
            None,
            &body,
        )
    }

    /// The credentials that the answer to the enrolment gives.
    fn credentials(&self, answer: &Value) -> Credentials {
        let jwt = answer["jwt"]
            .as_str()
            .unwrap_or_else(|| panic!("not enrolled: {answer}"));
        let seed = self.key.seed().expect("a new pair has its seed");
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        Credentials::parse(&text).expect("readable")
    }
}

fn project(operator: &Cli, origin: &Origin) -> Cli {
    operator.run(&["project", "create", "acme"]).ok();
    resource(
        operator,
        "acme",
        "media",
        "bucket",
        &["eu-1"],
        &origin.url(),
    );
    let acme = operator.project("acme");
    acme.run(&["domain", "add", HOST, "--resource", "media"])
        .ok();
    acme
}

#[test]
fn an_edge_of_another_process_serves_until_it_is_evicted() {
    let mut apart = Apart::start();
    let (ca, origin) = (Ca::new(), Origin::start("origin"));
    let acme = project(&apart.operator(), &origin);
    apart.token("edge-7");
    let edge = Serve::start(&apart.file("edge.toml"));
    let first = ca.issue(HOST);
    upload(&acme, "first", &first, &["--region", "eu-1"]);
    wait(&acme, "first", "active");
    served_now(apart.https, HOST, &first).expect("active means served");
    let body = curl(&ca, apart.https, &format!("https://{HOST}/hello"), &[])
        .ok()
        .expect("curl is content");
    assert_eq!(body, "origin /hello\n");

    // Alone, it starts and serves what it has, and no longer needs its token.
    fs::remove_file(apart.file("edge-7.token")).expect("the token is there");
    apart.control.take().expect("it runs").stop();
    edge.stop();
    let edge = Serve::start_unready(&apart.file("edge.toml"));
    let started = Instant::now();
    eventually("the edge serves without NATS", SOON, || {
        served_now(apart.https, HOST, &first)
    });
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "it took {:?}",
        started.elapsed()
    );
    apart.control = Some(Serve::start(&apart.file("control.toml")));
    let acme = apart.operator().project("acme");
    let second = ca.issue(HOST);
    upload(&acme, "second", &second, &["--region", "eu-1"]);
    serves(apart.https, HOST, &second);

    // Evicted, it keeps what it has and hears of nothing more, also not after a restart of everything.
    apart
        .operator()
        .run(&["edge", "evict", "eu-1", "edge-7"])
        .ok();
    let third = ca.issue(HOST);
    upload(&acme, "third", &third, &["--region", "eu-1"]);
    let stays = || served_now(apart.https, HOST, &second);
    throughout(
        "nothing new reaches the evicted edge",
        Duration::from_secs(3),
        stays,
    );
    edge.stop();
    apart.restart_control();
    let edge = Serve::start_unready(&apart.file("edge.toml"));
    let stays = || served_now(apart.https, HOST, &second);
    eventually("it serves what it has", SOON, stays);
    throughout("and still hears of nothing", Duration::from_secs(3), stays);
    let edges = apart.operator().run(&["edge", "list"]).ok().lines();
    let seven = edges
        .iter()
        .find(|edge| edge["name"] == "edge-7")
        .expect("it is listed");
    assert_eq!(
        (&seven["evicted"], &seven["healthy"]),
        (&json!(true), &json!(false)),
        "{seven}"
    );
    edge.stop();
}

#[test]
fn an_edge_that_was_taken_over_is_out_for_good_when_it_is_evicted() {
    let mut apart = Apart::start();
    let (ca, origin) = (Ca::new(), Origin::start("origin"));
    let acme = project(&apart.operator(), &origin);
    let taken = Taken::new(apart.nats(), "edge-8", &apart.token("edge-8"));
    let answer = taken.enrol();
    let credentials = taken.credentials(&answer);
    let mut raw = taken
        .connect(&credentials)
        .expect("an enrolled edge is taken");
    raw.subscribe("chancery.v1.region.eu-1.delta", 7);
    assert_eq!(raw.settle(), vec![], "it may hear its region's feed");

    // Its own and nothing else.
    let others = [
        "chancery.v1.edge.eu-1.edge-7.report",
        "chancery.v1.edge.eu-2.edge-8.sync",
        "chancery.v1.edge.eu-1.edge-8.enrol",
        "chancery.v1.region.eu-1.delta",
        "chancery.v1.cmd.acme.domain.add",
        "chancery.v1.log.acme.domain.added",
        "$JS.API.STREAM.MSG.GET.KEYS",
    ];
    for subject in others {
        raw.publish(subject, "", b"{}");
        let heard = raw.settle();
        let refused =
            matches!(&heard[..], [Heard::Error(error)] if error.contains("Permissions Violation"));
        assert!(refused, "{subject}: {heard:?}");
    }
    for subject in [
        "chancery.v1.region.eu-2.delta",
        "chancery.v1.region.>",
        "chancery.v1.evt.>",
        "_INBOX.>",
        ">",
    ] {
        raw.subscribe(subject, 8);
        let heard = raw.settle();
        assert!(
            heard.iter().any(|heard| matches!(heard, Heard::Error(error) if error.contains("Permissions Violation"))),
            "{subject}: {heard:?}"
        );
    }

    // Reply subjects inside CORE and nonsense in reports change nothing.
    for reply in [
        "chancery.v1.log.acme.domain.added",
        "chancery.v1.internal.keys.put",
        "$JS.API.STREAM.DELETE.LOG",
    ] {
        raw.publish("chancery.v1.edge.eu-1.edge-8.chunk", reply, b"{}");
    }
    let problem = "x".repeat(30_000);
    let report = json!({"generation": 1, "applied": u64::MAX, "version": "9", "time": i64::MAX, "https": null, "http": null,
        "problems": [problem, "\u{1b}[2J"]});
    raw.publish(
        "chancery.v1.edge.eu-1.edge-8.report",
        "",
        report.to_string().as_bytes(),
    );
    for body in [&b"{}"[..], b"\xff", b"[[[[", b"{\"time\":1e400}"] {
        raw.publish("chancery.v1.edge.eu-1.edge-8.report", "", body);
    }
    raw.settle();
    let listed = eventually("the report has come", SOON, || {
        let edges = apart.operator().run(&["edge", "list"]).ok().lines();
        let eight = edges
            .into_iter()
            .find(|edge| edge["name"] == "edge-8")
            .unwrap_or_default();
        if eight["healthy"] == true {
            Ok(eight)
        } else {
            Err(eight)
        }
    });
    let text = listed.to_string();
    assert!(
        text.len() < 4_000 && !text.contains("\\u001b"),
        "what it says is cut: {text}"
    );
    // Something is wrong here, and the status says so in its exit; it tells the rest all the same.
    let status = apart.operator().run(&["status"]).json();
    let (head, region) = (status["head"].as_u64(), &status["regions"][0]);
    assert!(
        region["applied"].as_u64() <= head,
        "nobody has applied what there is not: {status}"
    );
    let audit = apart.operator().run(&["audit", "verify"]);
    assert_eq!(audit.status, 0, "the log is whole: {audit:?}");

    let leaf = ca.issue(HOST);
    upload(&acme, "before", &leaf, &["--region", "eu-1"]);
    let mut hears = false;
    for _ in 0..50 {
        hears |= matches!(raw.hear(Duration::from_millis(200)), Heard::Message { subject, .. } if subject.ends_with(".delta"));
        if hears {
            break;
        }
    }
    assert!(hears, "an edge that is enrolled hears what changes");

    apart
        .operator()
        .run(&["edge", "evict", "eu-1", "edge-8"])
        .ok();
    raw.closed();
    let out = |what: &str, taken: &Taken, credentials: &Credentials| {
        let heard = taken
            .connect(credentials)
            .err()
            .unwrap_or_else(|| panic!("{what}: it is taken"));
        assert!(
            matches!(&heard[0], Heard::Error(error) if error.contains("Authorization Violation")),
            "{what}: {heard:?}"
        );
    };
    out("evicted", &taken, &credentials);
    // The token that it used is still young. It gives nothing any more, not even to the keys that it was used with.
    let again = taken.enrol();
    assert_eq!(again["code"], "unauthorized", "{again}");
    assert!(
        again["jwt"].is_null() && again["region_key"].is_null(),
        "{again}"
    );
    let stranger = Taken {
        key: KeyPair::new_user(),
        ..Taken::new(apart.nats(), "edge-8", "e30")
    };
    let stranger = Taken {
        token: taken.token.clone(),
        ..stranger
    };
    let refused = stranger.enrol();
    assert!(
        refused["code"].is_string() && refused["jwt"].is_null(),
        "{refused}"
    );

    // It stays so through a restart, and when another machine gets its name.
    apart.restart_control();
    out("after a restart", &taken, &credentials);
    let heir = Taken::new(apart.nats(), "edge-8", &apart.token("edge-8"));
    let answer = heir.enrol();
    let heirs = heir.credentials(&answer);
    let mut raw = heir.connect(&heirs).expect("the heir is taken");
    out("beside its heir", &taken, &credentials);
    apart.restart_control();
    raw.closed();
    out("after another restart", &taken, &credentials);
    drop(heir.connect(&heirs).expect("the heir is taken"));
}

/// A leaf with an extension of so many bytes, and its issuer.
fn bulky(folder: &std::path::Path, name: &str, bytes: usize) -> (PathBuf, PathBuf) {
    use rcgen::{BasicConstraints, CertificateParams, CustomExtension, IsCa, Issuer, KeyPair};
    let key = || KeyPair::generate().expect("a key");
    let (root_key, leaf_key) = (key(), key());
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_der = root.self_signed(&root_key).expect("it signs itself");
    let mut leaf = CertificateParams::new(vec![HOST.to_owned()]).expect("a name");
    leaf.not_before = time::OffsetDateTime::now_utc() - Duration::from_secs(3_600);
    leaf.not_after = time::OffsetDateTime::now_utc() + Duration::from_secs(30 * 86_400);
    // An OCTET STRING, which nobody has to know.
    let mut content = vec![0x04, 0x82];
    let size = u16::try_from(bytes).expect("a length of two bytes");
    content.extend(size.to_be_bytes());
    content.extend(vec![0x2a; bytes]);
    leaf.custom_extensions = vec![CustomExtension::from_oid_content(
        &[1, 3, 6, 1, 4, 1, 55_555, 1],
        content,
    )];
    let leaf = leaf
        .signed_by(&leaf_key, &Issuer::new(root, root_key))
        .expect("the root signs");
    let (chain, secret) = (
        folder.join(format!("{name}.pem")),
        folder.join(format!("{name}.key")),
    );
    fs::write(&chain, format!("{}{}", leaf.pem(), root_der.pem())).expect("written");
    fs::write(&secret, leaf_key.serialize_pem()).expect("written");
    (chain, secret)
}

#[test]
fn the_largest_certificates_of_one_project_keep_no_edge_from_its_snapshot() {
    let apart = Apart::start();
    let origin = Origin::start("origin");
    let acme = project(&apart.operator(), &origin);
    let add = |verb: &str, name: &str, file: &str, bytes: usize| {
        let (chain, key) = bulky(apart.folder.path(), file, bytes);
        let (chain, key) = (chain.display().to_string(), key.display().to_string());
        let mut words = vec!["certificate", verb, name, "--chain", &chain, "--key", &key];
        if verb == "add" {
            words.extend(["--region", "eu-1"]);
        }
        acme.run(&words)
    };
    assert_eq!(add("add", "vast", "vast", 50_000).refused(), "too_large");
    for (name, versions) in [("first", 9), ("second", 16)] {
        for version in 0..versions {
            let verb = if version == 0 { "add" } else { "replace" };
            add(verb, name, &format!("{name}-{version}"), 47_000).ok();
            wait(&acme, name, "ready");
        }
    }
    // An edge that begins with nothing takes it all as a snapshot.
    apart.token("edge-7");
    let edge = Serve::start(&apart.file("edge.toml"));
    let newest = fs::read(apart.file("second-15.pem")).expect("it was written");
    let newest = harness::openssl(&["x509", "-outform", "DER"], &newest);
    eventually("the newest is served", SOON, || {
        let served = harness::handshake(apart.https, HOST, &[]).served()?;
        if served == newest {
            Ok(())
        } else {
            Err(harness::sha256(&served))
        }
    });
    edge.stop();
}
