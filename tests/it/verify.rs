//! `chancery verify` as programs drive it: exit status, one JSON document, every form of file, nothing but files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::{Ca, Cli, Outcome, checkout};
use serde_json::Value;

fn cli() -> Cli {
    Cli::new(BTreeMap::new())
}

/// Runs `chancery verify --json` with these words.
fn verify(words: &[&str]) -> Outcome {
    let words: Vec<&str> = std::iter::once("verify")
        .chain(words.iter().copied())
        .collect();
    let begun = Instant::now();
    let outcome = cli().run(&words);
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}: {outcome:#?}");
    outcome
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

fn codes(outcome: &Outcome) -> Vec<String> {
    let document = outcome.json();
    let reasons = document["reasons"].as_array().expect("a list of reasons");
    for reason in reasons {
        assert!(reason["message"].as_str().is_some_and(|m| !m.is_empty()));
        assert!(reason["hint"].as_str().is_some_and(|m| !m.is_empty()));
    }
    assert_eq!(
        document["verdict"],
        if reasons.is_empty() {
            "accept"
        } else {
            "reject"
        }
    );
    assert_eq!(outcome.status, i32::from(!reasons.is_empty()));
    reasons
        .iter()
        .map(|reason| reason["code"].as_str().expect("a code").to_owned())
        .collect()
}

fn openssl(words: &[&str]) {
    let output = Command::new("openssl")
        .args(words)
        .stdin(Stdio::null())
        .output()
        .expect("openssl is on the path");
    assert!(
        output.status.success(),
        "openssl {words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn real_chains_are_accepted_in_their_time_for_their_host() {
    let folder = checkout().join("tests/data/real-chains");
    let index = fs::read(folder.join("index.json")).expect("the index is there");
    let index: Vec<Value> = serde_json::from_slice(&index).expect("the index is JSON");
    assert_eq!(index.len(), 14);
    for entry in index {
        let host = entry["host"].as_str().expect("a host");
        let at = entry["at"].as_str().expect("a time");
        let chain = folder.join(host).join("chain.pem");
        let roots = folder.join(host).join("roots.pem");
        let (chain, roots) = (text(&chain), text(&roots));
        let ask = ["--chain", chain, "--domain", host, "--at", at];
        for given in [&ask[..], &[&ask[..], &["--roots", roots]].concat()] {
            let outcome = verify(given);
            assert_eq!(codes(&outcome), [""; 0], "{host}");
            let document = outcome.json();
            assert_eq!(document["trust"], "public");
            let path = document["chain"].as_array().expect("a path");
            assert!(path.len() >= 3, "{path:?}");
            assert_eq!(path[0]["fingerprint"], document["fingerprint"]);
        }
        let elsewhere = verify(&[
            "--chain",
            chain,
            "--roots",
            roots,
            "--at",
            at,
            "--domain",
            "example.org",
        ]);
        assert_eq!(codes(&elsewhere), ["name_mismatch"], "{host}");
        let later = at.replace("2025-", "2027-").replace("2026-", "2028-");
        let later = verify(&["--chain", chain, "--domain", host, "--at", &later]);
        assert!(codes(&later).contains(&"expired".to_owned()), "{host}");
    }
}

#[test]
fn what_is_wrong_with_the_files_is_a_verdict_and_what_is_wrong_with_the_words_is_none() {
    let ca = Ca::new();
    let leaf = ca.issue("www.example.com");
    let (chain, key, root) = (text(leaf.chain()), text(leaf.key()), ca.root());
    let root = text(&root);
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, content).expect("written");
        text(&path).to_owned()
    };

    // Accepted, with its key and without.
    for more in [&[][..], &["--key", key]] {
        let words = [
            &[
                "--chain",
                chain,
                "--roots",
                root,
                "--domain",
                "www.example.com",
            ],
            more,
        ];
        let outcome = verify(&words.concat());
        assert_eq!(codes(&outcome), [""; 0]);
        let document = outcome.json();
        assert_eq!(document["trust"], "private");
        assert_eq!(document["names"], serde_json::json!(["www.example.com"]));
        assert_eq!(document["fingerprint"], leaf.fingerprint().as_str());
        assert!(document["not_before"].is_string() && document["not_after"].is_string());
    }
    let other = ca.issue("www.example.com");
    let key_of_other = text(other.key());
    let damaged = file(
        "damaged.pem",
        b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
    );
    let nothing = file("nothing.pem", b"");
    let prose = file("prose.txt", b"this is a letter\n");
    for (words, code) in [
        (&["--chain", chain][..], "chain_untrusted"),
        (
            &["--chain", chain, "--roots", root, "--key", key_of_other],
            "key_mismatch",
        ),
        (
            &["--chain", chain, "--roots", root, "--key", chain],
            "key_missing",
        ),
        (&["--chain", &damaged, "--roots", root], "pem_malformed"),
        (&["--chain", &nothing, "--roots", root], "not_pem"),
        (&["--chain", &prose, "--roots", root], "not_pem"),
        (&["--chain", key, "--roots", root], "no_certificate"),
        (&["--chain", chain, "--roots", &prose], "not_pem"),
        (
            &[
                "--chain",
                chain,
                "--roots",
                root,
                "--at",
                "2000-01-01T00:00:00Z",
            ],
            "not_yet_valid",
        ),
    ] {
        let found = codes(&verify(words));
        let found: Vec<&str> = found.iter().map(String::as_str).collect();
        // A chain to a private root lacks it where only public ones are asked for.
        let incomplete = code == "chain_untrusted" && found == ["chain_incomplete"];
        assert!(found.contains(&code) || incomplete, "{words:?}: {found:?}");
    }
    for words in [
        &[][..],
        &["--chain"],
        &["--chain", "/nonexistent/chain.pem"],
        &["--chain", text(folder.path())],
        &["--chain", chain, "--key", "/nonexistent/key.pem"],
        &["--chain", chain, "--roots", "/nonexistent/roots.pem"],
        &["--chain", chain, "--domain", "*.example.com"],
        &["--chain", chain, "--domain", ""],
        &["--chain", chain, "--domain", "a b"],
        &["--chain", chain, "--domain", "https://example.com"],
        &["--chain", chain, "--at", "yesterday"],
        &["--chain", chain, "--colour"],
    ] {
        let outcome = verify(words);
        assert_eq!(outcome.status, 2, "{outcome:#?}");
        assert!(!outcome.stderr.is_empty());
    }
    // Several reasons at once, and people are told each.
    let words = [
        "verify",
        "--chain",
        chain,
        "--roots",
        root,
        "--key",
        key_of_other,
        "--domain",
        "a.test",
        "--domain",
        "192.0.2.7",
        "--at",
        "2000-01-01T00:00:00Z",
    ];
    let said = cli().say(&words);
    assert_eq!(said.status, 1);
    for expected in [
        "verdict     reject",
        "reject[key_mismatch]",
        "reject[not_yet_valid]",
        "does not name a.test",
        "does not name 192.0.2.7",
        "to do: ",
    ] {
        assert!(
            said.stdout.contains(expected),
            "{expected}: {}",
            said.stdout
        );
    }
}

#[test]
fn every_form_of_file_gets_the_same_verdict() {
    let ca = Ca::new();
    let leaf = ca.issue("www.example.com");
    let (chain, key, root) = (text(leaf.chain()), text(leaf.key()), ca.root());
    let root = text(&root);
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    let pem = fs::read_to_string(chain).expect("read");
    let (end_entity, rest) = pem.split_at(
        pem.find("-----END CERTIFICATE-----").expect("a block")
            + "-----END CERTIFICATE-----\n".len(),
    );
    fs::write(path("leaf.pem"), end_entity).expect("written");
    fs::write(path("rest.pem"), rest).expect("written");
    fs::write(
        path("dressed.pem"),
        format!(
            "\u{feff}subject=CN = x\r\n{}{}{rest}\r\n\r\ntrailing words\r\n",
            pem.replace('\n', "\r\n"),
            ca.root_pem()
        ),
    )
    .expect("written");
    fs::write(path("password"), "open sesame\n").expect("written");
    let (p7b, p12) = (path("chain.p7b"), path("chain.p12"));
    openssl(&[
        "crl2pkcs7",
        "-nocrl",
        "-certfile",
        chain,
        "-outform",
        "DER",
        "-out",
        text(&p7b),
    ]);
    openssl(&[
        "pkcs12",
        "-export",
        "-in",
        text(&path("leaf.pem")),
        "-certfile",
        text(&path("rest.pem")),
        "-inkey",
        key,
        "-passout",
        &format!("file:{}", text(&path("password"))),
        "-out",
        text(&p12),
    ]);
    let sealed = path("sealed.pem");
    openssl(&[
        "pkcs8",
        "-topk8",
        "-in",
        key,
        "-passout",
        &format!("file:{}", text(&path("password"))),
        "-out",
        text(&sealed),
    ]);
    let password = path("password");
    let common = [
        "--roots",
        root,
        "--domain",
        "www.example.com",
        "--password-file",
        text(&password),
    ];
    for (chain, key) in [
        (text(&path("dressed.pem")), Some(key)),
        (text(&p7b), Some(key)),
        (text(&p12), None),
        (chain, Some(text(&sealed))),
    ] {
        let mut words = vec!["--chain", chain];
        words.extend(common);
        words.extend(key.iter().flat_map(|key| ["--key", key]));
        let outcome = verify(&words);
        assert_eq!(codes(&outcome), [""; 0], "{outcome:#?}");
        assert_eq!(outcome.json()["fingerprint"], leaf.fingerprint().as_str());
    }
    // A bundle is a set: its order says nothing.
    let turned = path("turned.p7b");
    openssl(&[
        "crl2pkcs7",
        "-nocrl",
        "-certfile",
        text(&path("rest.pem")),
        "-certfile",
        text(&path("leaf.pem")),
        "-out",
        text(&turned),
    ]);
    let outcome = verify(&["--chain", text(&turned), "--roots", root]);
    assert_eq!(codes(&outcome), [""; 0], "{outcome:#?}");

    let dressed = path("dressed.pem");
    let outcome = verify(&["--chain", text(&dressed), "--roots", root]);
    let repairs: Vec<String> = outcome.json()["repairs"]
        .as_array()
        .expect("repairs")
        .iter()
        .map(|repair| repair["repair"].as_str().expect("a word").to_owned())
        .collect();
    for expected in ["text_ignored", "root_dropped", "duplicate_dropped"] {
        assert!(repairs.iter().any(|r| r == expected), "{repairs:?}");
    }
    // DER: the leaf alone, below its issuer as the root.
    let (der, issuer) = (path("leaf.der"), path("rest.pem"));
    openssl(&[
        "x509",
        "-in",
        text(&path("leaf.pem")),
        "-outform",
        "DER",
        "-out",
        text(&der),
    ]);
    let outcome = verify(&["--chain", text(&der), "--roots", text(&issuer)]);
    assert_eq!(codes(&outcome), [""; 0]);
}
