//! What is believed and what is not, with answers and lists that OpenSSL made.

use std::path::PathBuf;
use std::process::Command;

use bytes::Bytes;
use proptest::prelude::*;
use rustls_pki_types::CertificateDer;
use url::Url;
use x509_parser::parse_x509_certificate;

use super::answer::{Said, Unclear};
use super::crl::{self, Crl};
use super::ocsp;
use super::points::{Point, Points, issued, may_point};

/// A folder with CAs, made by the openssl command.
struct Folder(tempfile::TempDir);

const CONFIG: &str = "
[req]
distinguished_name = dn
prompt = no
[dn]
CN = unused
[ca]
default_ca = here
[here]
dir = .
database = $dir/index.txt
new_certs_dir = $dir
serial = $dir/serial
crlnumber = $dir/crlnumber
default_md = sha256
default_crl_days = 7
default_days = 30
policy = any
unique_subject = no
copy_extensions = none
[any]
commonName = supplied
[v3_ca]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[v3_leaf]
basicConstraints = CA:false
authorityKeyIdentifier = keyid
authorityInfoAccess = OCSP;URI:http://ocsp.example.test/q, OCSP;URI:https://ocsp.example.test/, caIssuers;URI:http://ca.example.test/ca.crt
crlDistributionPoints = ldap_point, http_point
[ldap_point]
fullname = URI:ldap://ldap.example.test/cn=ca
[http_point]
fullname = URI:ldap://ldap.example.test/cn=x, URI:http://crl.example.test/1.crl
[v3_responder]
keyUsage = critical, digitalSignature
extendedKeyUsage = OCSPSigning
[v3_other]
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
[crl_plain]
authorityKeyIdentifier = keyid
[crl_part]
issuingDistributionPoint = critical, @part
[part]
fullname = URI:http://crl.example.test/1.crl
onlyuser = TRUE
[crl_other_part]
issuingDistributionPoint = critical, @other_part
[other_part]
fullname = URI:http://crl.example.test/2.crl
[crl_cas]
issuingDistributionPoint = critical, @cas
[cas]
onlyCA = TRUE
[crl_indirect]
issuingDistributionPoint = critical, @indirect
[indirect]
indirectCRL = TRUE
[crl_some]
issuingDistributionPoint = critical, @some
[some]
onlysomereasons = keyCompromise
[crl_delta]
deltaCRL = critical, DER:020101
[crl_odd]
1.2.3.4.5 = critical, DER:0500
";

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().expect("a folder"));
        folder.write("openssl.cnf", CONFIG);
        folder.write("index.txt", "");
        folder.write("serial", "1000");
        folder.write("crlnumber", "01");
        folder.ca("ca");
        folder.leaf("leaf", "v3_leaf");
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("written");
    }

    fn bytes(&self, name: &str) -> Bytes {
        std::fs::read(self.path(name)).expect(name).into()
    }

    fn openssl(&self, words: &str) {
        let output = Command::new("openssl")
            .args(words.split_whitespace())
            .current_dir(self.0.path())
            .env("OPENSSL_CONF", self.path("openssl.cnf"))
            .output()
            .expect("openssl is installed");
        assert!(
            output.status.success(),
            "openssl {words}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn ca(&self, name: &str) {
        self.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.pem -days 60 -subj /CN=An-issuing-CA -extensions v3_ca"
        ));
        self.openssl(&format!("x509 -in {name}.pem -outform DER -out {name}.der"));
    }

    fn leaf(&self, name: &str, extensions: &str) {
        self.leaf_of("ca", name, extensions);
    }

    fn leaf_of(&self, ca: &str, name: &str, extensions: &str) {
        self.openssl(&format!(
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"
        ));
        self.openssl(&format!(
            "ca -batch -notext -cert {ca}.pem -keyfile {ca}.key -in {name}.csr -out {name}.pem -extensions {extensions}"
        ));
        self.openssl(&format!("x509 -in {name}.pem -outform DER -out {name}.der"));
    }

    fn revoke(&self, name: &str, reason: &str) {
        self.openssl(&format!(
            "ca -cert ca.pem -keyfile ca.key -revoke {name}.pem {reason}"
        ));
    }

    fn gencrl(&self, ca: &str, further: &str) -> Bytes {
        self.openssl(&format!(
            "ca -gencrl -cert {ca}.pem -keyfile {ca}.key -out list.pem {further}"
        ));
        self.openssl("crl -in list.pem -outform DER -out list.der");
        self.bytes("list.der")
    }

    /// Lets OpenSSL's responder answer the question that this module asks.
    fn answer(&self, signer: &str, further: &str) -> Bytes {
        self.with("leaf", "ca", |asked| {
            std::fs::write(self.path("question.der"), ocsp::request(asked)).expect("written");
        });
        self.openssl(&format!(
            "ocsp -index index.txt -CA ca.pem -rsigner {signer}.pem -rkey {signer}.key -reqin question.der -respout answer.der {further}"
        ));
        self.bytes("answer.der")
    }

    fn with<T>(&self, leaf: &str, ca: &str, run: impl FnOnce(ocsp::Asked<'_>) -> T) -> T {
        let (leaf, ca) = (
            self.bytes(&format!("{leaf}.der")),
            self.bytes(&format!("{ca}.der")),
        );
        let (_, leaf) = parse_x509_certificate(&leaf).expect("a certificate");
        let (_, issuer) = parse_x509_certificate(&ca).expect("a certificate");
        run(ocsp::Asked {
            serial: leaf.raw_serial(),
            issuer: &issuer,
        })
    }

    fn read(&self, answer: &[u8], now: i64) -> Result<Said, String> {
        self.with("leaf", "ca", |asked| {
            ocsp::read(answer, asked, now).map_err(|Unclear(why)| why)
        })
    }

    fn ask(&self, list: Bytes, is_ca: bool, now: i64) -> Result<Said, String> {
        self.ask_of("ca", list, is_ca, now)
    }

    fn ask_of(&self, ca: &str, list: Bytes, is_ca: bool, now: i64) -> Result<Said, String> {
        let crl = Crl::read(list).map_err(|Unclear(why)| why)?;
        self.with("leaf", ca, |asked| {
            let asked = crl::Asked {
                serial: asked.serial,
                is_ca,
                issuer: asked.issuer,
                point: &point(),
            };
            crl.ask(asked, now).map_err(|Unclear(why)| why)
        })
    }
}

fn point() -> Point {
    let url = "http://crl.example.test/1.crl";
    Point {
        urls: vec![Url::parse(url).expect("a URL")],
        names: vec![url.to_owned()],
        complete: true,
    }
}

fn now() -> i64 {
    super::now()
}

fn refused(result: Result<Said, String>, why: &str) {
    let said = result.expect_err(why);
    assert!(said.contains(why), "{said}");
}

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

#[test]
fn addresses_are_those_of_plain_http() {
    let folder = Folder::new();
    let leaf = folder.bytes("leaf.der");
    let (_, leaf) = parse_x509_certificate(&leaf).expect("a certificate");
    let points = Points::of(&leaf);
    assert_eq!(
        points.ocsp,
        [Url::parse("http://ocsp.example.test/q").expect("a URL")]
    );
    assert_eq!(points.crl.len(), 1);
    assert_eq!(points.crl[0].urls, point().urls);
    assert_eq!(points.crl[0].names.len(), 2);
    assert!(points.others, "HTTPS and LDAP are told of");

    let ca = folder.bytes("ca.der");
    let (_, ca) = parse_x509_certificate(&ca).expect("a certificate");
    assert!(Points::of(&ca).is_empty());
    assert!(may_point(&folder.bytes("leaf.der")) && !may_point(&folder.bytes("ca.der")));
    let der = folder.bytes("leaf.der");
    assert!(issued(&CertificateDer::from(&der[..]), &leaf, &ca));
    assert!(!issued(&CertificateDer::from(&der[..]), &leaf, &leaf));
}

#[test]
fn a_responder_is_believed_when_the_issuer_signed_or_appointed_it() {
    let folder = Folder::new();
    folder.leaf("responder", "v3_responder");
    folder.leaf("server", "v3_other");
    folder.ca("stranger");

    for signer in ["ca", "responder"] {
        for further in [
            "-nmin 60",
            "-nmin 60 -resp_key_id",
            "-ndays 1 -rmd sha384",
            "",
        ] {
            let answer = folder.answer(signer, further);
            assert_eq!(
                folder.read(&answer, now()),
                Ok(Said::Good),
                "{signer} {further}"
            );
        }
    }
    // A certificate for something else, of the same CA; and a CA of the same name with another key.
    let whose = "is signed neither";
    refused(
        folder.read(&folder.answer("server", "-nmin 60"), now()),
        whose,
    );
    refused(
        folder.read(&folder.answer("stranger", "-nmin 60"), now()),
        whose,
    );
    // A responder that the other CA appointed, and one that does not show its certificate.
    folder.leaf_of("stranger", "theirs", "v3_responder");
    refused(
        folder.read(&folder.answer("theirs", "-nmin 60"), now()),
        whose,
    );
    refused(
        folder.read(
            &folder.answer("responder", "-nmin 60 -resp_no_certs"),
            now(),
        ),
        whose,
    );
    // One whose own certificate has ended.
    let answer = folder.answer("responder", "-ndays 300");
    assert_eq!(folder.read(&answer, now() + 29 * DAY), Ok(Said::Good));
    refused(folder.read(&answer, now() + 31 * DAY), whose);
}

#[test]
fn revoked_says_since_when_and_why() {
    let folder = Folder::new();
    folder.revoke("leaf", "-crl_compromise 20260203040506Z");
    let Ok(Said::Revoked { since, reason }) = folder.read(&folder.answer("ca", "-nmin 60"), now())
    else {
        panic!("it is revoked");
    };
    assert!((now() - since).abs() < DAY);
    assert_eq!(reason, Some(1));

    let other = Folder::new();
    other.revoke("leaf", "-crl_hold holdInstructionReject");
    let Ok(Said::Revoked { reason, .. }) = other.read(&other.answer("ca", "-nmin 60"), now())
    else {
        panic!("it is on hold");
    };
    assert_eq!(reason, Some(6));

    let third = Folder::new();
    third.revoke("leaf", "");
    assert!(matches!(
        third.read(&third.answer("ca", "-nmin 60"), now()),
        Ok(Said::Revoked { reason: None, .. })
    ));
}

#[test]
fn an_answer_is_believed_only_in_its_time_and_for_its_certificate() {
    let folder = Folder::new();
    let answer = folder.answer("ca", "-nmin 60");
    assert_eq!(folder.read(&answer, now() + HOUR), Ok(Said::Good));
    refused(folder.read(&answer, now() + 2 * HOUR), "out of date");
    refused(folder.read(&answer, now() - HOUR), "later time");
    // One that does not say until when holds a day.
    let undated = folder.answer("ca", "");
    assert_eq!(folder.read(&undated, now() + DAY), Ok(Said::Good));
    refused(folder.read(&undated, now() + 2 * DAY), "out of date");

    folder.leaf("sibling", "v3_leaf");
    let of_sibling = folder.with("sibling", "ca", |asked| {
        ocsp::read(&answer, asked, now()).map_err(|Unclear(why)| why)
    });
    refused(of_sibling, "does not speak of this certificate");
    // A CA that does not know what it is asked for.
    folder.write("index.txt", "");
    refused(
        folder.read(&folder.answer("ca", "-nmin 60"), now()),
        "does not know",
    );
    for (status, why) in [(3u8, "tryLater"), (6, "unauthorized"), (1, "does not take")] {
        refused(folder.read(&[0x30, 3, 0x0a, 1, status], now()), why);
    }
    refused(folder.read(b"<html>", now()), "is no OCSP answer");
}

#[test]
fn a_changed_answer_is_not_believed() {
    let folder = Folder::new();
    folder.leaf("responder", "v3_responder");
    let answer = folder.answer("responder", "-nmin 60");
    let mut believed = 0;
    for place in 0..answer.len() {
        for bit in [0x01, 0x80] {
            let mut changed = answer.to_vec();
            changed[place] ^= bit;
            // Certificates beside the signature may change in what nobody looks at, but never the answer.
            if let Ok(said) = folder.read(&changed, now()) {
                assert_eq!(said, Said::Good);
                believed += 1;
            }
        }
    }
    assert!(
        believed < answer.len() / 20,
        "{believed} changes of {} bytes went unnoticed",
        answer.len()
    );
}

#[test]
fn a_list_tells_who_is_on_it() {
    let folder = Folder::new();
    for number in 0..5 {
        folder.leaf(&format!("other{number}"), "v3_leaf");
        folder.revoke(&format!("other{number}"), "-crl_reason superseded");
    }
    assert_eq!(
        folder.ask(folder.gencrl("ca", ""), false, now()),
        Ok(Said::Good)
    );
    folder.revoke("leaf", "-crl_reason keyCompromise");
    for further in ["", "-crlexts crl_plain", "-crlexts crl_part"] {
        let said = folder.ask(folder.gencrl("ca", further), false, now());
        assert!(
            matches!(
                said,
                Ok(Said::Revoked {
                    reason: Some(1),
                    ..
                })
            ),
            "{further}: {said:?}"
        );
    }
    // In PEM too.
    assert!(matches!(
        folder.ask(folder.bytes("list.pem"), false, now()),
        Ok(Said::Revoked { .. })
    ));
}

#[test]
fn a_list_is_believed_only_in_its_time_and_for_its_certificates() {
    let folder = Folder::new();
    folder.ca("stranger");
    let plain = folder.gencrl("ca", "");
    assert_eq!(
        folder.ask(plain.clone(), true, now() + 7 * DAY),
        Ok(Said::Good)
    );
    refused(
        folder.ask(plain.clone(), false, now() + 8 * DAY),
        "out of date",
    );
    refused(folder.ask(plain.clone(), false, now() - DAY), "later time");
    // The name of both CAs is the same, their keys are not.
    refused(
        folder.ask_of("stranger", plain, false, now()),
        "not signed by the issuer",
    );
    refused(
        folder.ask(folder.gencrl("stranger", ""), false, now()),
        "not signed by the issuer",
    );

    let list = |extensions: &str| folder.gencrl("ca", &format!("-crlexts {extensions}"));
    assert_eq!(folder.ask(list("crl_part"), false, now()), Ok(Said::Good));
    refused(folder.ask(list("crl_part"), true, now()), "another kind");
    refused(
        folder.ask(list("crl_other_part"), false, now()),
        "other certificates",
    );
    refused(folder.ask(list("crl_cas"), false, now()), "another kind");
    assert_eq!(folder.ask(list("crl_cas"), true, now()), Ok(Said::Good));
    refused(folder.ask(list("crl_indirect"), false, now()), "indirect");
    refused(folder.ask(list("crl_delta"), false, now()), "delta");
    refused(
        folder.ask(list("crl_odd"), false, now()),
        "critical extension",
    );
    refused(
        folder.ask(list("crl_some"), false, now()),
        "some reasons only",
    );
    folder.revoke("leaf", "-crl_reason keyCompromise");
    assert!(matches!(
        folder.ask(list("crl_some"), false, now()),
        Ok(Said::Revoked { .. })
    ));
    refused(
        folder.ask(Bytes::from_static(b"<html>"), false, now()),
        "is no CRL",
    );
}

#[test]
fn a_changed_list_is_not_believed() {
    let folder = Folder::new();
    folder.revoke("leaf", "-crl_reason keyCompromise");
    let list = folder.gencrl("ca", "-crlexts crl_plain");
    for place in 0..list.len() {
        let mut changed = list.to_vec();
        changed[place] ^= 0x01;
        let said = folder.ask(changed.into(), false, now());
        assert!(said.is_err(), "byte {place}: {said:?}");
    }
}

/// A list as a large CA has it: what is kept of it is its bytes and four more an entry.
#[test]
fn a_long_list_costs_little_more_than_its_bytes() {
    use super::der::{INTEGER, SEQUENCE, write};
    const ENTRIES: u32 = 300_000;
    let algorithm = write(SEQUENCE, &[&write(0x06, &[&[0x2a, 0x03]])]);
    let time = write(0x17, &[b"260101000000Z"]);
    // Not in order, as CAs write them by date.
    let entries: Vec<u8> = (0..ENTRIES)
        .flat_map(|number| {
            let serial = number.wrapping_mul(2_654_435_761).to_be_bytes();
            write(SEQUENCE, &[&write(INTEGER, &[&[1], &serial]), &time])
        })
        .collect();
    let list = write(
        SEQUENCE,
        &[
            &write(INTEGER, &[&[1]]),
            &algorithm,
            &write(SEQUENCE, &[]),
            &time,
            &time,
            &write(SEQUENCE, &[&entries]),
        ],
    );
    let whole = Bytes::from(write(
        SEQUENCE,
        &[&list, &algorithm, &write(0x03, &[&[0, 1, 2]])],
    ));
    let length = whole.len() as u64;
    let begun = std::time::Instant::now();
    let crl = Crl::read(whole).expect("it is a list");
    assert_eq!(crl.weight(), length + 4 * u64::from(ENTRIES));
    eprintln!("{length} bytes read in {:?}", begun.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// Whatever comes, nothing panics, and nothing is believed.
    #[test]
    fn rubbish_is_only_rubbish(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        place in any::<prop::sample::Index>(),
        length in 0usize..64,
    ) {
        static SEEDS: std::sync::OnceLock<(Folder, Bytes, Bytes)> = std::sync::OnceLock::new();
        let (folder, answer, list) = SEEDS.get_or_init(|| {
            let folder = Folder::new();
            folder.revoke("leaf", "");
            let (answer, list) = (folder.answer("ca", "-nmin 60"), folder.gencrl("ca", "-crlexts crl_part"));
            (folder, answer, list)
        });
        prop_assert!(folder.read(&bytes, now()).is_err());
        prop_assert!(folder.ask(bytes.clone().into(), false, now()).is_err());
        // Real ones with a part of it in their middle.
        for whole in [answer, list] {
            let at = place.index(whole.len());
            let mut mixed = whole.to_vec();
            let end = (at + length).min(whole.len());
            mixed.splice(at..end, bytes.iter().copied());
            if mixed != whole[..] {
                prop_assert!(!matches!(folder.read(&mixed, now()), Ok(Said::Good)));
                prop_assert!(!matches!(folder.ask(mixed.into(), false, now()), Ok(Said::Good)));
            }
        }
    }
}

/// Certificates as real hosts serve them: each points somewhere, and whoever may answer is known, up to the public roots.
#[test]
fn real_chains_can_be_looked_up() {
    let folder =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/real-chains");
    let mut seen = 0;
    for host in std::fs::read_dir(folder).expect("the chains are there") {
        let host = host.expect("it can be read").path();
        let Ok(text) = std::fs::read(host.join("chain.pem")) else {
            continue;
        };
        let kind = lifecycle::event::CertificateKind::Server;
        let chain = crate::chain::read_chain(&text, kind).expect("a chain");
        let links = super::path::links(&chain, &[], &Vec::new);
        assert_eq!(links.first().map(|link| link.place), Some(1), "{host:?}");
        for link in &links {
            let points = &link.points;
            assert!(
                !(points.ocsp.is_empty() && points.crl.is_empty()),
                "{host:?} {}: {points:?}",
                link.place
            );
            assert!(link.issuer.is_some(), "{host:?} {}", link.place);
        }
        seen += 1;
    }
    assert!(seen >= 4, "{seen} chains");
}
