//! Events as the log stores them, byte for byte.
//!
//! The log outlives every release: what stands in these files stays readable, and what this release writes stays as it
//! stands here. `UPDATE_GOLDEN=1` writes files that are missing; none is ever rewritten.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ledger::Hash;
use lifecycle::event::Event;
use lifecycle::names::Slug;
use uuid::Uuid;
use wire::envelope::{CommandRef, Envelope, Error, Position};

fn folder(crate_name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(crate_name)
        .join("tests/golden")
}

/// Every golden `data` with its file's name, `<noun>.<fact>[+<case>].v1.json`.
fn data() -> Vec<(String, Event)> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder("lifecycle"))
        .expect("the golden data of lifecycle")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect();
    files.sort();
    let read = |path: PathBuf| {
        let file = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let name = file
            .split(['+'])
            .next()
            .expect("a name")
            .trim_end_matches(".v1.json")
            .to_owned();
        let text = fs::read_to_string(&path).expect("a golden file");
        let event = Event::deserialize_data(&name, &mut serde_json::Deserializer::from_str(&text))
            .unwrap_or_else(|| panic!("{file}: no event has this name"))
            .unwrap_or_else(|error| panic!("{file}: {error}"));
        (file, event)
    };
    files.into_iter().map(read).collect()
}

fn envelope(event: Event) -> Envelope {
    Envelope {
        log: "5f0c9c52-6a55-4c1e-9a57-0f1a2b3c4d5e".to_owned(),
        sequence: 1_042,
        project: Slug::name("acme").expect("a slug"),
        project_sequence: 318,
        time: 1_795_355_256_123_456,
        prevhash: Hash([0xab; 32]),
        command: CommandRef {
            id: Uuid::from_u128(0x0199_f000_0000_7000_8000_0000_0000_0001),
            space: "acme".to_owned(),
            index: 1,
            count: 2,
            digest: [0xcd; 32],
        },
        actor: "alice".to_owned(),
        correlation: "0199f000-0000-7000-8000-000000000001".to_owned(),
        event,
    }
}

#[test]
fn every_event_is_stored_in_the_bytes_of_its_golden_file() {
    let mut names = BTreeSet::new();
    for (file, event) in data() {
        names.insert(event.name());
        let envelope = envelope(event);
        let bytes = envelope.encode().expect("it is not too large");
        let path = folder("wire").join(&file);
        if !path.exists() && std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, &bytes).expect("write");
        }
        let golden = fs::read(&path).unwrap_or_else(|_| {
            panic!("{file} is missing: run with UPDATE_GOLDEN=1 and look at it")
        });
        assert_eq!(
            String::from_utf8_lossy(&bytes),
            String::from_utf8_lossy(&golden),
            "{file}"
        );
        assert_eq!(
            Envelope::decode(&golden).expect("it is readable"),
            envelope,
            "{file}"
        );
        let position = Position::of(&golden).expect("it says where it stands");
        assert_eq!((position.sequence, position.project_sequence), (1_042, 318));
        assert_eq!(position.prevhash, envelope.prevhash);
        assert_eq!(position.name, envelope.event.name());
    }
    let all: BTreeSet<&str> = Event::NAMES.iter().copied().collect();
    assert_eq!(names, all, "an event has no golden file");
}

#[test]
fn a_type_of_a_newer_release_stops_the_reader() {
    let event = data().swap_remove(0).1;
    let text = String::from_utf8(envelope(event).encode().expect("encoded")).expect("text");
    for newer in [
        text.replacen(".v1\"", ".v2\"", 1),
        text.replacen("dev.chancery.", "dev.chancery.new-", 1),
    ] {
        assert!(
            matches!(
                Envelope::decode(newer.as_bytes()),
                Err(Error::UnknownType(_))
            ),
            "{newer}"
        );
    }
}

#[test]
fn an_attribute_that_was_tampered_with_is_noticed() {
    let event = data().swap_remove(0).1;
    let text = String::from_utf8(envelope(event).encode().expect("encoded")).expect("text");
    for (from, to) in [
        ("\"sequence\":\"1042\"", "\"sequence\":\"x\""),
        ("\"sequence\":\"1042\"", "\"sequence\":\"-1\""),
        ("\"commandindex\":\"1\"", "\"commandindex\":\"\""),
        ("abababab", "ABABABAB"),
        ("\"specversion\"", "\"extra\":\"1\",\"specversion\""),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from} is not there");
        assert!(Envelope::decode(changed.as_bytes()).is_err(), "{to}");
    }
}
