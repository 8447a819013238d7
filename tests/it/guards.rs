//! Rules that the tree itself must keep. Each is a fact that somebody relies on and that a change could break unseen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::checkout;
use lifecycle::rejection::Code;
use serde_json::Value;

/// A crate depends only on crates of a lower rank.
const RANKS: [(&str, u8); 8] = [
    ("lifecycle", 0),
    ("ledger", 0),
    ("wire", 1),
    ("keyring", 1),
    ("bus", 2),
    ("control", 3),
    ("edge", 3),
    ("chancery", 4),
];

/// Files that may hold `unsafe` code, because what they do has no safe form.
const UNSAFE: [&str; 1] = ["tests/fuzz/count.rs"];

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
            "--locked",
        ])
        .current_dir(checkout())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("cargo writes JSON")
}

/// The files of the checkout that git knows, or would take.
fn files() -> Vec<PathBuf> {
    let output = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(checkout())
        .output()
        .expect("git runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("our names are UTF-8");
    let files: Vec<_> = text
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(PathBuf::from)
        .collect();
    assert!(files.len() > 50, "git lists the files of the checkout");
    files
        .into_iter()
        .filter(|file| checkout().join(file).is_file())
        .collect()
}

fn with_extension(extension: &str) -> Vec<PathBuf> {
    files()
        .into_iter()
        .filter(|file| file.extension().is_some_and(|e| e == extension))
        .collect()
}

fn read(file: &Path) -> String {
    String::from_utf8_lossy(&fs::read(checkout().join(file)).expect("it is there")).into_owned()
}

#[test]
fn crates_depend_only_on_lower_ranks() {
    let metadata = metadata();
    let ranks: BTreeMap<&str, u8> = RANKS.into_iter().collect();
    let mut graph = String::new();
    let mut seen = BTreeSet::new();
    let mut packages: Vec<&Value> = metadata["packages"]
        .as_array()
        .expect("a list")
        .iter()
        .collect();
    packages.sort_by_key(|package| package["name"].as_str().expect("a name"));
    for package in packages {
        let name = package["name"].as_str().expect("a name");
        let depends = package["dependencies"].as_array().expect("a list").iter();
        let ours: BTreeSet<&str> = depends
            .filter(|dependency| dependency["path"].is_string())
            .map(|dependency| dependency["name"].as_str().expect("a name"))
            .collect();
        if name == "tests" {
            continue;
        }
        let rank = ranks.get(name).unwrap_or_else(|| {
            panic!("{name} has no rank; a ninth crate needs a reason in ARCHITECTURE.md")
        });
        for other in &ours {
            assert!(
                ranks.get(other).is_some_and(|r| r < rank),
                "{name} depends on {other}, which does not rank below it"
            );
        }
        seen.insert(name);
        graph.push_str(
            format!("{name}: {}", ours.into_iter().collect::<Vec<_>>().join(" ")).trim_end(),
        );
        graph.push('\n');
    }
    assert_eq!(seen, ranks.keys().copied().collect());
    let golden = read(Path::new("tests/data/crate-graph.txt"));
    assert_eq!(
        graph, golden,
        "the graph of crates changed, which is a change of the architecture: if it is meant, put it into tests/data/crate-graph.txt \
         and its reason into ARCHITECTURE.md"
    );
}

#[test]
fn each_reason_code_has_its_page_and_each_page_its_code() {
    let codes: BTreeSet<String> = Code::ALL
        .iter()
        .map(|code| code.as_str().to_owned())
        .collect();
    let folder = checkout().join("docs/errors");
    let pages: BTreeSet<String> = fs::read_dir(&folder)
        .expect("docs/errors is there")
        .map(|entry| entry.expect("it reads").path())
        .filter_map(|path| {
            path.file_stem()
                .map(|stem| stem.to_string_lossy().into_owned())
        })
        .filter(|name| name != "README")
        .collect();
    assert_eq!(codes, pages, "codes on the left, pages on the right");
    for code in &codes {
        let text = read(&Path::new("docs/errors").join(format!("{code}.md")));
        assert!(
            text.starts_with(&format!("# `{code}`")),
            "{code}.md begins with its code"
        );
        for part in ["## How it comes about", "## What to do", "## Example"] {
            assert!(text.contains(part), "{code}.md lacks `{part}`");
        }
    }
    let index = read(Path::new("docs/errors/README.md"));
    for code in &codes {
        assert!(
            index.contains(&format!("({code}.md)")),
            "the index of docs/errors lacks {code}"
        );
    }
}

/// The targets of `[text](target)`, code blocks left out.
fn links(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut links = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        for part in line.split("](").skip(1) {
            if let Some((target, _)) = part.split_once(')') {
                links.push(target.to_owned());
            }
        }
    }
    links
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| line.trim_start_matches('#').trim());
    headings
        .map(|heading| {
            let kept = heading.to_lowercase();
            kept.chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .collect::<String>()
                .replace(' ', "-")
        })
        .collect()
}

#[test]
fn links_in_the_documents_resolve() {
    let documents = with_extension("md");
    let mut followed = 0;
    for document in &documents {
        for link in links(&read(document)) {
            if link.starts_with("http://")
                || link.starts_with("https://")
                || link.starts_with("mailto:")
            {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if path.is_empty() {
                document.clone()
            } else {
                document.parent().unwrap_or(Path::new("")).join(path)
            };
            assert!(
                checkout().join(&target).exists(),
                "{}: {link} leads nowhere",
                document.display()
            );
            if !anchor.is_empty() {
                assert!(
                    anchors(&read(&target)).contains(anchor),
                    "{}: {link} has no such heading",
                    document.display()
                );
            }
            followed += 1;
        }
    }
    assert!(followed > 40, "only {followed} links were found");
}

/// The bodies of the fenced blocks of a kind.
fn fenced(text: &str, kind: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(info) = line.strip_prefix("```") {
            let body: Vec<&str> = lines
                .by_ref()
                .take_while(|line| !line.starts_with("```"))
                .collect();
            if info.trim() == kind {
                blocks.push(body.join("\n"));
            }
        }
    }
    blocks
}

#[test]
fn the_readme_has_two_commands_to_run() {
    let readme = read(Path::new("README.md"));
    let blocks = fenced(&readme, "sh");
    assert_eq!(
        blocks.len(),
        2,
        "exactly two blocks that a newcomer runs: {blocks:?}"
    );
    for (block, expected) in blocks.iter().zip(["scripts/quickstart", "scripts/test"]) {
        assert_eq!(block.trim(), expected, "one command each");
        let file = checkout().join(expected);
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &fs::metadata(&file).expect("it is there").permissions(),
        );
        assert!(mode & 0o111 != 0, "{expected} is executable");
    }
    let start = readme
        .find("## Quick start")
        .expect("README has a quick start");
    assert!(
        start < readme.find("```").expect("README has blocks"),
        "the quick start comes before everything else to type"
    );
    let example = read(Path::new("tests/tour/tenant.py"));
    assert!(
        fenced(&readme, "python")
            .iter()
            .any(|block| example.contains(block.trim())),
        "README shows the program that the tests run"
    );
    let just = read(Path::new("justfile"));
    assert!(
        just.contains("scripts/quickstart") && just.contains("scripts/test"),
        "justfile indexes both"
    );
    assert!(
        read(Path::new(".ci/run")).contains("scripts/test"),
        ".ci/run runs what README runs"
    );
}

#[test]
fn sample_configurations_are_there() {
    for sample in ["all-in-one.toml", "control.toml", "edge.toml"] {
        let text = read(&Path::new("deploy/config").join(sample));
        let parsed: Result<toml::Table, _> = toml::from_str(&text);
        assert!(parsed.is_ok(), "{sample}: {parsed:?}");
    }
}

#[test]
fn no_file_names_the_place_where_it_was_written() {
    // Put together here, so that this file passes its own test.
    let places = [
        concat!("/wo", "rk/"),
        concat!("/home", "/user"),
        concat!("/root", "/."),
    ];
    let hosts = [
        concat!("pypi", ".org"),
        concat!("pythonhosted", ".org"),
        concat!("index.crates", ".io"),
    ];
    for file in files() {
        if file == Path::new("Cargo.lock") {
            continue;
        }
        let text = read(&file);
        for word in places.iter().chain(&hosts) {
            assert!(!text.contains(word), "{} mentions {word}", file.display());
        }
    }
}

#[test]
fn unsafe_code_stands_only_where_it_is_allowed_and_explained() {
    for file in with_extension("rs") {
        let text = read(&file);
        let code: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect();
        let word = concat!("uns", "afe");
        let uses = code.iter().any(|line| {
            [" {", " fn", " impl", " extern"]
                .iter()
                .any(|after| line.contains(&format!("{word}{after}")))
        });
        if uses {
            assert!(
                UNSAFE.contains(&file.to_string_lossy().as_ref()),
                "{} holds {word} code",
                file.display()
            );
            assert!(
                text.contains("SAFETY:"),
                "{} does not say why its {word} code is sound",
                file.display()
            );
        }
    }
}

#[test]
fn no_private_key_lies_in_the_tree() {
    for file in files() {
        let text = read(&file);
        let block = text.contains(concat!("-----BEGIN ", "PRIVATE KEY-----"))
            || text.contains(concat!("-----BEGIN EC ", "PRIVATE KEY-----"));
        let body = text.lines().filter(|line| {
            line.len() == 64
                && line
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "+/=".contains(c))
        });
        assert!(
            !(block && body.count() > 0),
            "{} holds a private key; tests make their own",
            file.display()
        );
    }
}
