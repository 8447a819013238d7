//! Real chains, chains of our own making, and hostile bytes.
#![allow(clippy::unwrap_used)]

use std::path::{Path as FilePath, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use keyring::PrivateKey;
use lifecycle::event::{CertificateKind, Trust};
use lifecycle::rejection::{Code, Reason};
use lifecycle::selection::KeyKind;
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::*;

const NOW: i64 = 1_790_000_000;
const DAY: i64 = 86_400;

// What the tests are made of.

struct Real {
    host: String,
    text: Vec<u8>,
    roots: Vec<CertificateDer<'static>>,
    at: i64,
}

fn real_chains() -> Vec<Real> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/real-chains");
    let index = std::fs::read(folder.join("index.json")).unwrap();
    let index: Vec<serde_json::Value> = serde_json::from_slice(&index).unwrap();
    assert!(index.len() >= 3);
    index
        .iter()
        .map(|entry| {
            let host = entry["host"].as_str().unwrap().to_owned();
            let at = OffsetDateTime::parse(entry["at"].as_str().unwrap(), &Rfc3339).unwrap();
            let roots = std::fs::read(folder.join(&host).join("roots.pem")).unwrap();
            Real {
                text: std::fs::read(folder.join(&host).join("chain.pem")).unwrap(),
                roots: read_chain(&roots, CertificateKind::Ca).unwrap(),
                at: at.unix_timestamp(),
                host,
            }
        })
        .collect()
}

/// A private hierarchy: root, intermediate, and what is asked for below it.
struct Authority {
    root: CertificateDer<'static>,
    intermediate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap()
}

fn params(names: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.subject_alt_names = names
        .iter()
        .map(|name| SanType::DnsName((*name).try_into().unwrap()))
        .collect();
    params.not_before = at(NOW - 10 * DAY);
    params.not_after = at(NOW + 80 * DAY);
    params
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = params(&[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn authority(name: &str, change: impl Fn(&mut CertificateParams)) -> Authority {
    let root_key = KeyPair::generate().unwrap();
    let root_params = ca_params(&format!("{name} Root"));
    let root = root_params.self_signed(&root_key).unwrap().der().clone();
    let root = (root, Issuer::new(root_params, root_key));
    let key = KeyPair::generate().unwrap();
    let mut params = ca_params(&format!("{name} Issuing CA"));
    change(&mut params);
    let intermediate = params.signed_by(&key, &root.1).unwrap().der().clone();
    Authority {
        root: root.0,
        intermediate,
        issuer: Issuer::new(params, key),
    }
}

impl Authority {
    fn issue(&self, params: &CertificateParams) -> (CertificateDer<'static>, [u8; 32]) {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let spki = PrivateKey::from_der(key.serialized_der()).unwrap();
        (certificate.der().clone(), spki.spki_sha256())
    }
}

fn server(
    chain: &[CertificateDer<'_>],
    spki: Option<[u8; 32]>,
    now: i64,
    known: Known<'_>,
) -> Result<Examined, Vec<Code>> {
    examine(chain, spki, CertificateKind::Server, now, known).map_err(codes)
}

fn codes(reasons: Vec<Reason>) -> Vec<Code> {
    for reason in &reasons {
        assert!(reason.message.ends_with('.'), "{reason:?}");
        assert!(reason.message.len() < 250, "{reason:?}");
        // A chain is never refused for what only a signing or parsing library understands.
        assert!(!reason.message.contains("Error"), "{reason:?}");
    }
    reasons.into_iter().map(|reason| reason.code).collect()
}

fn pem(label: &str, der: &[u8]) -> String {
    let body = BASE64.encode(der);
    let lines: Vec<&str> = body
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}

fn openssl(folder: &FilePath, arguments: &str) -> Vec<u8> {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("openssl is on the path");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments}: {said}");
    output.stdout
}

// Chains.

#[test]
fn real_chains_are_public_at_their_time() {
    for real in real_chains() {
        let chain = read_chain(&real.text, CertificateKind::Server).unwrap();
        let examined = server(&chain, None, real.at, Known::default())
            .unwrap_or_else(|codes| panic!("{}: {codes:?}", real.host));
        assert_eq!(examined.trust, Trust::Public, "{}", real.host);
        assert_eq!(examined.chain, chain, "served as it was given");
        let above = real.host.split_once('.').unwrap().1;
        let wildcard = format!("*.{above}");
        assert!(
            examined
                .facts
                .names
                .iter()
                .any(|name| [&real.host, &wildcard].contains(&name)),
            "{}",
            real.host
        );
        assert!(!examined.self_signed);
        assert!(!examined.issuer.is_empty() && !examined.serial.is_empty());
        assert_eq!(examined.facts.chain[0], examined.facts.fingerprint);

        // With Windows line ends, in other text, and after the roots that some people append.
        let text = String::from_utf8(real.text.clone()).unwrap();
        let dressed = format!(
            "subject=…\r\n\r\n{}\r\n \r\n",
            text.replace('\n', "\r\n\r\n")
        );
        assert_eq!(
            read_chain(dressed.as_bytes(), CertificateKind::Server).unwrap(),
            chain
        );
        let with_root = [&chain[..], &real.roots].concat();
        let examined = server(&with_root, None, real.at, Known::default()).unwrap();
        assert_eq!(examined.trust, Trust::Public);
    }
}

#[test]
fn a_real_chain_outside_its_time_is_refused_for_that_alone() {
    for real in real_chains() {
        let chain = read_chain(&real.text, CertificateKind::Server).unwrap();
        let facts = server(&chain, None, real.at, Known::default())
            .unwrap()
            .facts;
        for (now, code) in [
            (facts.not_before - 1, Some(Code::NotYetValid)),
            (facts.not_before, None),
            (facts.not_after - 1, None),
            (facts.not_after, Some(Code::Expired)),
            (facts.not_after + 3000 * DAY, Some(Code::Expired)),
        ] {
            let found = server(&chain, None, now, Known::default()).err();
            assert_eq!(found, code.map(|code| vec![code]), "{} at {now}", real.host);
        }
    }
}

#[test]
fn a_real_leaf_alone_is_incomplete_until_its_issuer_is_known() {
    for real in real_chains() {
        let chain = read_chain(&real.text, CertificateKind::Server).unwrap();
        let leaf = &chain[..1];
        assert_eq!(
            server(leaf, None, real.at, Known::default()).unwrap_err(),
            [Code::ChainIncomplete],
            "{}",
            real.host
        );
        let known = Known {
            issuers: &chain[1..],
            ..Known::default()
        };
        let examined = server(leaf, None, real.at, known).unwrap();
        assert_eq!(examined.trust, Trust::Public);
        assert_eq!(examined.chain[0], chain[0]);
        assert!(examined.chain.len() > 1, "the intermediates are served too");
        let again = server(&examined.chain, None, real.at, Known::default()).unwrap();
        assert_eq!(again.trust, Trust::Public);
    }
}

#[test]
fn an_unknown_ca_makes_a_chain_private() {
    let ca = authority("Acme", |_| {});
    let other = authority("Other", |_| {});
    let (leaf, spki) = ca.issue(&params(&["www.example.com", "*.Example.com"]));
    let roots = [ca.root.clone()];
    let issuers = [ca.intermediate.clone()];
    let nothing = Known::default();
    let with_roots = Known {
        roots: &roots,
        ..nothing
    };
    let with_issuers = Known {
        issuers: &issuers,
        ..nothing
    };
    let with_both = Known {
        roots: &roots,
        issuers: &issuers,
    };
    let full = vec![leaf.clone(), ca.intermediate.clone()];
    let rooted = vec![leaf.clone(), ca.intermediate.clone(), ca.root.clone()];
    let shuffled = vec![leaf.clone(), ca.root.clone(), ca.intermediate.clone()];
    let alone = vec![leaf.clone()];
    for (given, known, served) in [
        (&full, nothing, &full),
        (&rooted, nothing, &rooted),
        (&shuffled, nothing, &shuffled),
        (&full, with_roots, &full),
        (&alone, with_both, &full),
        (&alone, with_issuers, &full),
    ] {
        let examined = server(given, Some(spki), NOW, known).unwrap();
        assert_eq!(examined.trust, Trust::Private);
        assert_eq!(&examined.chain, served);
        assert_eq!(examined.facts.names, ["www.example.com", "*.example.com"]);
        assert_eq!(examined.facts.key, KeyKind::P256);
        assert_eq!(examined.facts.spki.0, spki);
        assert_eq!(examined.issuer, "Acme Issuing CA");
    }
    for (given, known) in [
        (&alone, nothing),
        (&alone, with_roots),
        (&vec![leaf.clone(), ca.root.clone()], nothing),
        (
            &vec![leaf.clone(), other.intermediate.clone(), other.root],
            nothing,
        ),
    ] {
        let found = server(given, Some(spki), NOW, known);
        assert_eq!(found.unwrap_err(), [Code::ChainIncomplete]);
    }
    // Two faults at once are both told.
    assert_eq!(
        server(&alone, Some([0; 32]), NOW, nothing).unwrap_err(),
        [Code::KeyMismatch, Code::ChainIncomplete]
    );
    let ca_alone = std::slice::from_ref(&ca.intermediate);
    let reason = judge_trust(ca_alone, nothing, NOW).unwrap_err();
    assert_eq!(reason.code, Code::NotAServerCertificate);
    // The intermediate first: what comes first is served, and it is a CA.
    let turned = [ca.intermediate.clone(), leaf];
    let reasons = examine(&turned, Some(spki), CertificateKind::Server, NOW, nothing).unwrap_err();
    assert_eq!(reasons[0].code, Code::KeyMismatch);
    assert!(
        reasons[0].message.contains("certificate 2"),
        "{}",
        reasons[0].message
    );
    assert!(
        reasons
            .iter()
            .any(|r| r.code == Code::NotAServerCertificate)
    );
}

#[test]
fn a_forged_issuer_of_the_same_name_is_no_path() {
    let (real, forged) = (authority("Acme", |_| {}), authority("Acme", |_| {}));
    let (leaf, _) = real.issue(&params(&["www.example.com"]));
    let chain = [leaf, forged.intermediate];
    assert_eq!(
        server(&chain, None, NOW, Known::default()).unwrap_err(),
        [Code::ChainIncomplete]
    );
}

#[test]
fn an_intermediate_out_of_date_is_told_as_such() {
    let expired = authority("Acme", |params| params.not_after = at(NOW - DAY));
    let early = authority("Acme", |params| params.not_before = at(NOW + DAY));
    for (ca, code) in [(expired, Code::Expired), (early, Code::NotYetValid)] {
        let (leaf, _) = ca.issue(&params(&["www.example.com"]));
        for given in [
            vec![leaf.clone(), ca.intermediate.clone()],
            vec![leaf.clone(), ca.intermediate.clone(), ca.root.clone()],
        ] {
            assert_eq!(
                server(&given, None, NOW, Known::default()).unwrap_err(),
                [code]
            );
        }
    }
}

#[test]
fn a_ca_that_must_not_issue_this_is_told_as_such() {
    let constrained = authority("Acme", |params| {
        params.name_constraints = Some(rcgen::NameConstraints {
            permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("example.net".to_owned())],
            excluded_subtrees: Vec::new(),
        });
    });
    let (leaf, _) = constrained.issue(&params(&["www.example.com"]));
    let chain = [leaf, constrained.intermediate, constrained.root];
    assert_eq!(
        server(&chain, None, NOW, Known::default()).unwrap_err(),
        [Code::ChainUntrusted]
    );
}

#[test]
fn a_leaf_that_signed_itself() {
    let key = KeyPair::generate().unwrap();
    let mut params = params(&["www.example.com"]);
    params.is_ca = IsCa::ExplicitNoCa;
    let leaf = params.self_signed(&key).unwrap().der().clone();
    let examined = server(&[leaf], None, NOW, Known::default()).unwrap();
    assert_eq!(
        (examined.trust, examined.self_signed),
        (Trust::SelfSigned, true)
    );

    // As `openssl req -x509` makes it by default: a CA, which clients refuse.
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap().der().clone();
    assert_eq!(
        server(&[ca], None, NOW, Known::default()).unwrap_err(),
        [Code::NotAServerCertificate]
    );
}

#[test]
fn what_is_no_server_certificate() {
    let ca = authority("Acme", |_| {});
    let check = |params: &CertificateParams| {
        let (leaf, spki) = ca.issue(params);
        server(
            &[leaf, ca.intermediate.clone()],
            Some(spki),
            NOW,
            Known::default(),
        )
    };
    let mut client = params(&["www.example.com"]);
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    assert_eq!(check(&client).unwrap_err(), [Code::NotAServerCertificate]);
    client
        .extended_key_usages
        .push(ExtendedKeyUsagePurpose::ServerAuth);
    assert!(check(&client).is_ok());

    let mut agreement = params(&["www.example.com"]);
    agreement.key_usages = vec![KeyUsagePurpose::KeyAgreement];
    assert_eq!(
        check(&agreement).unwrap_err(),
        [Code::NotAServerCertificate]
    );

    let mut common_name = params(&[]);
    common_name
        .distinguished_name
        .push(DnType::CommonName, "www.example.com");
    assert_eq!(
        check(&common_name).unwrap_err(),
        [Code::NotAServerCertificate]
    );
    common_name.subject_alt_names = vec![SanType::IpAddress([192, 0, 2, 1].into())];
    assert_eq!(
        check(&common_name).unwrap_err(),
        [Code::NotAServerCertificate]
    );

    let (leaf, _) = ca.issue(&params(&["www.example.com"]));
    let chain = [leaf, ca.intermediate.clone()];
    assert_eq!(
        server(&chain, Some([0; 32]), NOW, Known::default()).unwrap_err(),
        [Code::KeyMismatch]
    );
}

#[test]
fn names_are_normal_and_bounded() {
    let ca = authority("Acme", |_| {});
    let check = |names: &[&str]| {
        let (leaf, _) = ca.issue(&params(names));
        server(
            &[leaf, ca.intermediate.clone()],
            None,
            NOW,
            Known::default(),
        )
    };
    let examined = check(&[
        "WWW.example.com",
        "www.example.com",
        "xn--mnchen-3ya.example",
        "under_score.example.com",
        "*.*.example.com",
        "local host",
        "*.example.com",
    ]);
    assert_eq!(
        examined.unwrap().facts.names,
        ["www.example.com", "xn--mnchen-3ya.example", "*.example.com"]
    );
    for (count, expected) in [
        (250, None),
        (251, Some(vec![Code::TooLarge])),
        (2500, Some(vec![Code::TooLarge])),
    ] {
        let names: Vec<String> = (0..count).map(|n| format!("n{n}.example.com")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let started = Instant::now();
        assert_eq!(check(&names).err(), expected, "{count} names");
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn weak_signatures_and_keys() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(
        folder.join("ext"),
        "subjectAltName=DNS:www.example.com\nbasicConstraints=CA:FALSE\n",
    )
    .unwrap();
    std::fs::write(folder.join("caext"), "basicConstraints=critical,CA:TRUE\n").unwrap();
    openssl(
        folder,
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=CA -days 3650",
    );
    openssl(
        folder,
        "req -newkey rsa:2048 -nodes -keyout sub.key -out sub.csr -subj /CN=Sub",
    );
    let now = OffsetDateTime::now_utc().unix_timestamp() + 60;
    for (new_key, leaf_hash, sub_hash, expected) in [
        ("rsa:2048", "sha256", "sha256", vec![]),
        ("rsa:2048", "sha1", "sha256", vec![Code::SignatureWeak]),
        ("rsa:2048", "md5", "sha256", vec![Code::SignatureWeak]),
        ("rsa:2048", "sha256", "sha1", vec![Code::SignatureWeak]),
        ("rsa:1024", "sha256", "sha256", vec![Code::KeyTooSmall]),
        (
            "rsa:1024",
            "sha1",
            "sha256",
            vec![Code::KeyTooSmall, Code::SignatureWeak],
        ),
        (
            "ec -pkeyopt ec_paramgen_curve:P-384",
            "sha384",
            "sha256",
            vec![],
        ),
        (
            "ec -pkeyopt ec_paramgen_curve:P-521",
            "sha256",
            "sha256",
            vec![Code::KeyUnsupported],
        ),
        ("ed25519", "sha256", "sha256", vec![]),
        ("ed448", "sha256", "sha256", vec![Code::KeyUnsupported]),
        (
            "ec -pkeyopt ec_paramgen_curve:P-256 -pkeyopt ec_param_enc:explicit",
            "sha256",
            "sha256",
            vec![Code::KeyUnsupported],
        ),
    ] {
        openssl(
            folder,
            &format!(
                "x509 -req -in sub.csr -CA ca.pem -CAkey ca.key -{sub_hash} -out sub.pem -extfile caext -days 365 -set_serial 2"
            ),
        );
        openssl(
            folder,
            &format!("req -newkey {new_key} -nodes -keyout key.pem -out csr -subj /CN=x"),
        );
        openssl(
            folder,
            &format!(
                "x509 -req -in csr -CA sub.pem -CAkey sub.key -{leaf_hash} -out leaf.pem -extfile ext -days 90 -set_serial 3"
            ),
        );
        let text = [
            std::fs::read(folder.join("leaf.pem")).unwrap(),
            std::fs::read(folder.join("sub.pem")).unwrap(),
        ]
        .concat();
        let chain = read_chain(&text, CertificateKind::Server).unwrap();
        let key = read_key(&std::fs::read(folder.join("key.pem")).unwrap());
        let spki = key.as_ref().ok().map(PrivateKey::spki_sha256);
        assert_eq!(
            server(&chain, spki, now, Known::default())
                .err()
                .unwrap_or_default(),
            expected,
            "{new_key} {leaf_hash} {sub_hash}"
        );
        assert_eq!(
            spki.is_some(),
            !expected
                .iter()
                .any(|c| matches!(c, Code::KeyTooSmall | Code::KeyUnsupported))
        );
    }
}

#[test]
fn a_ca_is_kept_without_a_key() {
    let ca = authority("Acme", |_| {});
    let (leaf, _) = ca.issue(&params(&["www.example.com"]));
    let examine = |chain: &[CertificateDer<'_>], spki| {
        examine(chain, spki, CertificateKind::Ca, NOW, Known::default()).map_err(codes)
    };
    let examined = examine(std::slice::from_ref(&ca.root), None).unwrap();
    assert_eq!(
        (examined.trust, examined.facts.names.len()),
        (Trust::SelfSigned, 0)
    );
    let examined = examine(std::slice::from_ref(&ca.intermediate), None).unwrap();
    assert_eq!(examined.trust, Trust::Private);
    assert!(examine(&[ca.intermediate.clone(), ca.root.clone()], None).is_ok());
    assert_eq!(
        examine(std::slice::from_ref(&ca.root), Some([0; 32])).unwrap_err(),
        [Code::KeyUnexpected]
    );
    assert_eq!(
        examine(std::slice::from_ref(&leaf), None).unwrap_err(),
        [Code::NoCertificate]
    );
    assert_eq!(
        examine(&[ca.root, leaf], None).unwrap_err(),
        [Code::NoCertificate]
    );
    assert_eq!(examine(&[], None).unwrap_err(), [Code::NoCertificate]);
    for real in real_chains() {
        assert_eq!(
            super::examine(
                &real.roots,
                None,
                CertificateKind::Ca,
                real.at,
                Known::default()
            )
            .unwrap()
            .trust,
            Trust::Public
        );
    }
}

// Text.

#[test]
fn chains_as_people_paste_them() {
    let ca = authority("Acme", |_| {});
    let (leaf, _) = ca.issue(&params(&["www.example.com"]));
    let good = pem("CERTIFICATE", &leaf);
    let key = pem("PRIVATE KEY", KeyPair::generate().unwrap().serialized_der());
    let body = BASE64.encode(&leaf);
    let read = |text: &str| {
        read_chain(text.as_bytes(), CertificateKind::Server)
            .map(|chain| chain.len())
            .map_err(|reason| reason.code)
    };
    for (name, text, expected) in [
        ("plain", good.clone(), Ok(1)),
        ("two", format!("{good}{good}"), Ok(2)),
        ("no final line end", good.trim_end().to_owned(), Ok(1)),
        ("byte order mark", format!("\u{feff}{good}"), Ok(1)),
        (
            "one long line",
            format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----"),
            Ok(1),
        ),
        ("indented", good.replace('\n', "\n   "), Ok(1)),
        ("empty", String::new(), Err(Code::NotPem)),
        (
            "prose",
            "Dear customer,\nhere it is.".to_owned(),
            Err(Code::NotPem),
        ),
        ("bare base64", body.clone(), Err(Code::NotPem)),
        (
            "line breaks lost",
            good.replace('\n', " "),
            Ok(1),
        ),
        (
            "line breaks as text",
            good.replace('\n', "\\n"),
            Ok(1),
        ),
        (
            "cut off",
            good[..good.len() / 2].to_owned(),
            Err(Code::PemMalformed),
        ),
        (
            "cut off in base64",
            good.replacen(&body[64..67], "", 1),
            Err(Code::PemMalformed),
        ),
        (
            "ends without begin",
            format!("-----END CERTIFICATE-----\n{good}"),
            Err(Code::PemMalformed),
        ),
        (
            "nested",
            format!("-----BEGIN CERTIFICATE-----\n{good}"),
            Err(Code::PemMalformed),
        ),
        (
            "other end",
            good.replace("END CERTIFICATE", "END X509"),
            Err(Code::PemMalformed),
        ),
        (
            "dashes lost",
            good.replace("CERTIFICATE-----", "CERTIFICATE----"),
            Err(Code::PemMalformed),
        ),
        (
            "base64url",
            good.replace(['+', '/'], "-"),
            Err(Code::PemMalformed),
        ),
        (
            "empty block",
            "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".to_owned(),
            Err(Code::PemMalformed),
        ),
        (
            "with its key",
            format!("{good}{key}"),
            Err(Code::KeyUnexpected),
        ),
        ("the key alone", key.clone(), Err(Code::KeyUnexpected)),
        (
            "DH parameters",
            format!("{good}{}", pem("DH PARAMETERS", b"xx")),
            Err(Code::DhParametersPresent),
        ),
        (
            "a request",
            pem("CERTIFICATE REQUEST", b"xx"),
            Err(Code::NoCertificate),
        ),
        ("PKCS#7", pem("PKCS7", b"xx"), Err(Code::PemMalformed)),
        ("old Mac line ends", good.replace('\n', "\r"), Ok(1)),
        (
            "blank lines within",
            good.replace('\n', "\n\n \n"),
            Ok(1),
        ),
        (
            "lines of one",
            format!(
                "-----BEGIN CERTIFICATE-----\n{}-----END CERTIFICATE-----",
                body.chars().map(|c| format!("{c}\n")).collect::<String>()
            ),
            Ok(1),
        ),
        (
            "one behind the other on a line",
            format!("{0}{0}", good.trim_end()),
            Ok(2),
        ),
        (
            "each with its own mark",
            format!("\u{feff}{good}\u{feff}{good}"),
            Ok(2),
        ),
        (
            "bag attributes",
            format!("Bag Attributes\n    localKeyID: 01 02\nsubject=CN = x\n\n{good}"),
            Ok(1),
        ),
        (
            "a request beside",
            format!("{}{good}", pem("CERTIFICATE REQUEST", b"xx")),
            Ok(1),
        ),
        (
            "OpenPGP",
            "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmQEN\n=AbCd\n-----END PGP PUBLIC KEY BLOCK-----".to_owned(),
            Err(Code::NoCertificate),
        ),
        (
            "something else",
            pem("OPENSSH THING", b"xx"),
            Err(Code::PemMalformed),
        ),
        ("21 certificates", good.repeat(21), Err(Code::TooLarge)),
        ("20 certificates", good.repeat(20), Ok(20)),
        (
            "a long certificate",
            pem("CERTIFICATE", &vec![0; MAX_CERTIFICATE + 1]),
            Err(Code::TooLarge),
        ),
    ] {
        let expected_here = if name == "base64url" && !body.contains(['+', '/']) {
            Ok(1)
        } else {
            expected
        };
        assert_eq!(read(&text), expected_here, "{name}");
    }
    let binary = read_chain(&leaf, CertificateKind::Server).unwrap_err();
    assert_eq!(binary.code, Code::NotPem);
    assert!(binary.hint.contains("-inform DER"));
    assert_eq!(
        read_chain(key.as_bytes(), CertificateKind::Ca)
            .unwrap_err()
            .code,
        Code::KeyUnexpected
    );
}

#[test]
fn keys_as_people_paste_them() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let read = |text: &[u8]| {
        read_key(text)
            .map(|key| key.spki_sha256())
            .map_err(|r| r.code)
    };
    let rsa = openssl(folder, "genrsa -traditional 2048");
    std::fs::write(folder.join("key.pem"), &rsa).unwrap();
    let spki = read(&rsa).unwrap();
    let good = String::from_utf8(rsa.clone()).unwrap();
    let certificate = pem("CERTIFICATE", b"whatever");
    for (name, text, expected) in [
        (
            "PKCS#8",
            openssl(folder, "pkcs8 -topk8 -nocrypt -in key.pem"),
            Ok(spki),
        ),
        ("CRLF", good.replace('\n', "\r\n").into_bytes(), Ok(spki)),
        (
            "with its certificate",
            format!("{certificate}{good}").into_bytes(),
            Ok(spki),
        ),
        (
            "mislabelled",
            good.replace("RSA PRIVATE", "PRIVATE").into_bytes(),
            Ok(spki),
        ),
        (
            "encrypted",
            openssl(folder, "pkcs8 -topk8 -passout pass:x -in key.pem"),
            Err(Code::KeyEncrypted),
        ),
        (
            "encrypted the old way",
            openssl(
                folder,
                "rsa -traditional -aes128 -passout pass:x -in key.pem",
            ),
            Err(Code::KeyEncrypted),
        ),
        (
            "1024 bits",
            openssl(folder, "genrsa 1024"),
            Err(Code::KeyTooSmall),
        ),
        (
            "P-521",
            openssl(folder, "ecparam -name secp521r1 -genkey"),
            Err(Code::KeyUnsupported),
        ),
        (
            "two keys",
            format!("{good}{good}").into_bytes(),
            Err(Code::KeyUnexpected),
        ),
        (
            "a certificate",
            certificate.clone().into_bytes(),
            Err(Code::KeyMissing),
        ),
        ("empty", Vec::new(), Err(Code::KeyMissing)),
        ("blank", b" \r\n\n".to_vec(), Err(Code::KeyMissing)),
        (
            "DH parameters",
            pem("DH PARAMETERS", b"xx").into_bytes(),
            Err(Code::DhParametersPresent),
        ),
        (
            "DER",
            openssl(folder, "rsa -in key.pem -outform DER"),
            Err(Code::NotPem),
        ),
        (
            "cut off",
            good.as_bytes()[..800].to_vec(),
            Err(Code::PemMalformed),
        ),
        (
            "not a key",
            pem("PRIVATE KEY", b"not a key").into_bytes(),
            Err(Code::PemMalformed),
        ),
        (
            "a public key",
            openssl(folder, "rsa -in key.pem -pubout"),
            Err(Code::KeyMissing),
        ),
    ] {
        assert_eq!(read(&text), expected, "{name}");
    }
    let ec = openssl(folder, "ecparam -name prime256v1 -genkey");
    assert!(ec.starts_with(b"-----BEGIN EC PARAMETERS"));
    assert!(read(&ec).is_ok());
}

// Hostile input.

/// DER of nested SEQUENCEs, so deep that recursion over it would end the stack.
fn nested(depth: usize) -> Vec<u8> {
    let mut der = Vec::new();
    let mut length = 0_usize;
    for _ in 0..depth {
        let head: Vec<u8> = match length {
            0..0x80 => vec![length as u8, 0x30],
            0x80..0x100 => vec![length as u8, 0x81, 0x30],
            0x100..0x1_0000 => vec![length as u8, (length >> 8) as u8, 0x82, 0x30],
            _ => vec![
                length as u8,
                (length >> 8) as u8,
                (length >> 16) as u8,
                0x83,
                0x30,
            ],
        };
        length += head.len();
        der.extend(head);
    }
    der.reverse();
    der
}

fn refused_quickly(name: &str, text: &[u8]) {
    let started = Instant::now();
    for kind in [CertificateKind::Server, CertificateKind::Ca] {
        if let Ok(chain) = read_chain(text, kind) {
            let refused = examine(&chain, None, kind, NOW, Known::default());
            codes(refused.expect_err(name));
        }
    }
    assert!(read_key(text).is_err(), "{name}");
    let took = started.elapsed();
    assert!(took < Duration::from_secs(2), "{name} took {took:?}");
}

#[test]
fn hostile_input_is_refused_quickly() {
    // The public roots are parsed once; that is not what is measured here.
    let real = &real_chains()[0];
    let chain = read_chain(&real.text, CertificateKind::Server).unwrap();
    server(&chain, None, real.at, Known::default()).unwrap();

    refused_quickly("10 MB of zeros", &vec![0; 10 << 20]);
    refused_quickly(
        "10 MB of text",
        pem("CERTIFICATE", &vec![0x30; 10 << 20]).as_bytes(),
    );
    refused_quickly("1 MB of dashes", &vec![b'-'; MAX_INPUT]);
    refused_quickly("1 MB of line ends", &vec![b'\n'; MAX_INPUT]);
    refused_quickly("begins only", &b"-----BEGIN \n".repeat(80_000));
    refused_quickly("one long begin", &b"-----BEGIN ".repeat(90_000));
    refused_quickly(
        "headers only",
        &[
            &b"-----BEGIN CERTIFICATE-----\n"[..],
            &b"a: b\n".repeat(200_000),
        ]
        .concat(),
    );
    let empty_blocks = pem("X", b"x").repeat(10_000);
    refused_quickly("10,000 blocks", empty_blocks.as_bytes());
    for depth in [10, 1000, 16_000] {
        let der = nested(depth);
        assert!(der.len() <= MAX_CERTIFICATE);
        refused_quickly("nested", pem("CERTIFICATE", &der).as_bytes());
        refused_quickly(
            "nested, twenty times",
            pem("CERTIFICATE", &der).repeat(19).as_bytes(),
        );
        refused_quickly("nested key", pem("PRIVATE KEY", &der).as_bytes());
        // Inside a real certificate: its subject, its key, its extensions.
        for at in [100, 300, chain[0].len() / 2, chain[0].len() - 300] {
            let mut der = chain[0].to_vec();
            der.splice(at..at, nested(depth));
            der.truncate(MAX_CERTIFICATE);
            refused_quickly("nested inside", pem("CERTIFICATE", &der).as_bytes());
        }
    }
    let started = Instant::now();
    let names: Vec<String> = (0..10_000).map(|n| format!("{n}.ab")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let ca = authority("Acme", |_| {});
    let (leaf, _) = ca.issue(&params(&names));
    let made = started.elapsed();
    refused_quickly("10,000 names", pem("CERTIFICATE", &leaf).as_bytes());
    let found = server(&[leaf], None, NOW, Known::default()).unwrap_err();
    assert_eq!(found, [Code::TooLarge], "made in {made:?}");
}

#[test]
fn many_issuers_of_one_name_do_not_make_path_building_explode() {
    let cas: Vec<Authority> = (0..MAX_CERTIFICATES - 1)
        .map(|_| authority("Same", |_| {}))
        .collect();
    let (leaf, _) = authority("Same", |_| {}).issue(&params(&["www.example.com"]));
    let chain: Vec<_> = std::iter::once(leaf)
        .chain(cas.iter().map(|ca| ca.intermediate.clone()))
        .collect();
    let issuers: Vec<_> = cas
        .iter()
        .map(|ca| ca.root.clone())
        .cycle()
        .take(500)
        .collect();
    let started = Instant::now();
    let known = Known {
        roots: &[],
        issuers: &issuers,
    };
    assert_eq!(
        server(&chain, None, NOW, known).unwrap_err(),
        [Code::ChainIncomplete]
    );
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn messages_never_quote_what_was_given() {
    const MARK: &str = "attacker.example";
    let ca = authority(MARK, |_| {});
    let mut bad = params(&[]);
    bad.distinguished_name.push(DnType::CommonName, MARK);
    bad.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    bad.not_after = at(NOW - DAY);
    let (leaf, _) = ca.issue(&bad);
    let reasons = examine(
        &[leaf],
        Some([0; 32]),
        CertificateKind::Server,
        NOW,
        Known::default(),
    );
    let mut reasons = reasons.unwrap_err();
    assert!(reasons.len() >= 4, "{reasons:?}");
    for text in [
        pem(MARK, b"x"),
        pem(&format!("{MARK} PRIVATE KEY"), b"x"),
        format!("-----BEGIN CERTIFICATE-----\n{MARK}\n-----END CERTIFICATE-----"),
        MARK.to_owned(),
    ] {
        reasons.push(read_chain(text.as_bytes(), CertificateKind::Server).unwrap_err());
        reasons.push(read_key(text.as_bytes()).unwrap_err());
    }
    for reason in reasons {
        assert!(!format!("{reason:?}").contains("attacker"), "{reason:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_text_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..4000)) {
        let wrapped = pem("CERTIFICATE", &bytes);
        if let Ok(chain) = read_chain(wrapped.as_bytes(), CertificateKind::Server) {
            prop_assert!(server(&chain, None, NOW, Known::default()).is_err());
        }
        let framed = [&b"-----BEGIN CERTIFICATE-----\n"[..], &bytes, b"\n-----END CERTIFICATE-----"].concat();
        prop_assert!(read_chain(&framed, CertificateKind::Server).is_err());
        prop_assert!(read_chain(&bytes, CertificateKind::Server).is_err());
        prop_assert!(read_key(&bytes).is_err());
    }

    #[test]
    fn a_mutated_real_chain_never_passes_for_another(
        which in any::<prop::sample::Index>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        in_text: bool,
    ) {
        let chains = real_chains();
        let real = &chains[which.index(chains.len())];
        let original = read_chain(&real.text, CertificateKind::Server).unwrap();
        let mutated = if in_text {
            let mut text = real.text.clone();
            for (at, byte) in changes {
                let at = at.index(text.len());
                text[at] = byte;
            }
            read_chain(&text, CertificateKind::Server)
        } else {
            let mut chain: Vec<Vec<u8>> = original.iter().map(|c| c.to_vec()).collect();
            for (at, byte) in changes {
                let certificate = at.index(chain.len());
                let at = at.index(chain[certificate].len());
                chain[certificate][at] = byte;
            }
            Ok(chain.into_iter().map(CertificateDer::from).collect())
        };
        if let Ok(chain) = mutated
            && let Ok(examined) = server(&chain, None, real.at, Known::default())
        {
            // Every byte of the leaf is signed; a broken extra certificate may be ignored.
            prop_assert_eq!(&examined.chain[0], &original[0]);
        }
    }
}
