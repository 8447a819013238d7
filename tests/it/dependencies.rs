//! What we build upon, held against `deny.toml`: licences, sources, banned crates, and that each has its line in
//! docs/dependencies.md. `cargo deny check` reads the same file and adds the advisories, which need a download.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use harness::checkout;
use serde_json::Value;

/// What is built on this platform. The lock file and `cargo metadata` also name crates of features that are off, so the
/// tree decides.
fn packages() -> Vec<Value> {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let cargo = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO"))
            .args(arguments)
            // Not offline: metadata names crates that no build has fetched.
            .arg("--locked")
            .current_dir(checkout())
            .output()
            .expect("cargo runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("cargo writes UTF-8")
    };
    let tree = cargo(&[
        "tree",
        "--workspace",
        "--prefix",
        "none",
        "--format",
        "{p}",
        "--target",
        &platform,
    ]);
    let used: BTreeSet<(&str, &str)> = tree
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?, words.next()?.strip_prefix('v')?))
        })
        .collect();
    let metadata: Value = serde_json::from_str(&cargo(&[
        "metadata",
        "--format-version",
        "1",
        "--filter-platform",
        &platform,
    ]))
    .expect("cargo writes JSON");
    let all = metadata["packages"].as_array().expect("a list").iter();
    let packages: Vec<Value> = all
        .filter(|p| used.contains(&(text(p, "name"), text(p, "version"))))
        .cloned()
        .collect();
    assert_eq!(
        packages.len(),
        used.len(),
        "each crate of the tree has its metadata"
    );
    packages
}

fn deny() -> toml::Table {
    let text = fs::read_to_string(checkout().join("deny.toml")).expect("deny.toml is there");
    toml::from_str(&text).expect("deny.toml is TOML")
}

fn texts(table: &toml::Table, section: &str, name: &str) -> BTreeSet<String> {
    let list = table[section][name].as_array().expect("a list");
    list.iter()
        .map(|v| v.as_str().expect("a text").to_owned())
        .collect()
}

fn text<'a>(package: &'a Value, name: &str) -> &'a str {
    package[name].as_str().unwrap_or_default()
}

/// Whether an SPDX expression can be met with these licences. `/` is the old way of writing OR.
fn allowed(expression: &str, licences: &BTreeSet<String>) -> bool {
    struct Reader<'a> {
        words: std::iter::Peekable<std::vec::IntoIter<String>>,
        licences: &'a BTreeSet<String>,
    }
    impl Reader<'_> {
        fn any(&mut self) -> bool {
            let mut met = self.all();
            while self.words.next_if_eq("OR").is_some() {
                met |= self.all();
            }
            met
        }
        fn all(&mut self) -> bool {
            let mut met = self.one();
            while self.words.next_if_eq("AND").is_some() {
                met &= self.one();
            }
            met
        }
        fn one(&mut self) -> bool {
            let Some(word) = self.words.next() else {
                return false;
            };
            if word == "(" {
                let met = self.any();
                return self.words.next().as_deref() == Some(")") && met;
            }
            let mut name = word;
            if self.words.next_if_eq("WITH").is_some() {
                name = format!("{name} WITH {}", self.words.next().unwrap_or_default());
            }
            self.licences.contains(&name)
        }
    }
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<String> = spaced.split_whitespace().map(str::to_owned).collect();
    let mut reader = Reader {
        words: words.into_iter().peekable(),
        licences,
    };
    reader.any() && reader.words.next().is_none()
}

#[test]
fn expressions_of_licences_are_read() {
    let licences = [
        "MIT".to_owned(),
        "Apache-2.0".to_owned(),
        "Apache-2.0 WITH LLVM-exception".to_owned(),
    ]
    .into();
    for good in [
        "MIT",
        "MIT OR GPL-3.0",
        "GPL-3.0/MIT",
        "(GPL-3.0 OR MIT) AND Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
    ] {
        assert!(allowed(good, &licences), "{good}");
    }
    for bad in [
        "",
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "(MIT",
        "MIT MIT",
        "MIT WITH LLVM-exception",
    ] {
        assert!(!allowed(bad, &licences), "{bad}");
    }
}

#[test]
fn licences_are_allowed() {
    let licences = texts(&deny(), "licenses", "allow");
    for package in packages() {
        let licence = text(&package, "license");
        assert!(
            allowed(licence, &licences),
            "{} {} is under `{licence}`, which deny.toml does not allow",
            text(&package, "name"),
            text(&package, "version")
        );
    }
}

#[test]
fn everything_comes_from_the_registry_or_from_here() {
    let mut registries = BTreeSet::new();
    for package in packages() {
        if let Some(source) = package["source"].as_str() {
            let name = text(&package, "name");
            assert!(
                source.starts_with("registry+"),
                "{name} comes from {source}"
            );
            registries.insert(source.to_owned());
        }
    }
    // The default one, and no other beside it; cargo-deny holds the same.
    assert_eq!(registries.len(), 1, "{registries:?}");
}

#[test]
fn banned_crates_stay_out_and_important_ones_are_there_once() {
    let deny = deny();
    let banned = deny["bans"]["deny"].as_array().expect("a list").iter();
    let banned: BTreeSet<String> = banned
        .map(|ban| ban["crate"].as_str().expect("a name").to_owned())
        .collect();
    assert!(!banned.is_empty());
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages() {
        let name = text(&package, "name").to_owned();
        assert!(!banned.contains(&name), "{name} is banned by deny.toml");
        versions
            .entry(name)
            .or_default()
            .insert(text(&package, "version").to_owned());
    }
    // Two of these in one process would be two trust stores, two providers or two runtimes.
    for single in [
        "rustls",
        "aws-lc-rs",
        "aws-lc-sys",
        "tokio",
        "hyper",
        "redb",
        "async-nats",
        "rustls-webpki",
        "bincode",
        "x509-parser",
    ] {
        let found = versions
            .get(single)
            .unwrap_or_else(|| panic!("{single} is not there at all"));
        assert_eq!(
            found.len(),
            1,
            "{single} is there more than once: {found:?}"
        );
    }
}

#[test]
fn the_exception_for_bincode_is_recorded_and_still_needed() {
    let ignored = format!("{:?}", deny()["advisories"]["ignore"]);
    assert!(
        ignored.contains("RUSTSEC-2025-0141"),
        "deny.toml records the exception"
    );
    let document =
        fs::read_to_string(checkout().join("docs/dependencies.md")).expect("it is there");
    assert!(
        document.contains("RUSTSEC-2025-0141"),
        "docs/dependencies.md explains the exception"
    );
    assert!(
        packages().iter().any(|p| text(p, "name") == "bincode"),
        "bincode is gone: remove the exception"
    );
}

#[test]
fn each_dependency_has_its_line() {
    let manifest: toml::Table =
        toml::from_str(&fs::read_to_string(checkout().join("Cargo.toml")).expect("it is there"))
            .expect("it is TOML");
    let document = fs::read_to_string(checkout().join("docs/dependencies.md"))
        .expect("docs/dependencies.md is there");
    let named: BTreeSet<&str> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    let mut external = BTreeSet::new();
    for (name, dependency) in manifest["workspace"]["dependencies"]
        .as_table()
        .expect("a table")
    {
        if dependency.get("path").is_none() {
            external.insert(
                dependency
                    .get("package")
                    .and_then(toml::Value::as_str)
                    .unwrap_or(name),
            );
        }
    }
    assert_eq!(
        external, named,
        "the root Cargo.toml on the left, docs/dependencies.md on the right"
    );
}
