//! Audits: what the log signs, proves and exports is checked by others, with a script that shares no code with it, and every
//! change is seen.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::{Chancery, Cli, Outcome, SOON, Up, checkout, eventually, tool};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::stage::{Stage, nats};

/// Claims so many hosts for `acme`, all at once: each is an event.
fn grow(alice: &Cli, from: usize, count: usize) {
    let (runtime, client) = nats(alice);
    runtime.block_on(async {
        let all = (from..from + count).map(|n| {
            let client = client.clone();
            async move {
                let mut headers = async_nats::HeaderMap::new();
                headers.insert("Nats-Msg-Id", Uuid::now_v7().to_string());
                let body = json!({"host": format!("h{n}.example.com")}).to_string();
                let subject = "chancery.v1.cmd.acme.domain.add".to_owned();
                let asked = client.request_with_headers(subject, headers, body.into());
                let answer = tokio::time::timeout(Duration::from_secs(30), asked)
                    .await
                    .expect("in time")
                    .expect("an answer");
                let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
                assert_eq!(answer["outcome"], "accepted", "{answer}");
            }
        });
        futures_util::future::join_all(all).await;
    });
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// What the script says of a folder, without site packages and without anything of the environment.
fn script(folder: &Path, words: &[&str]) -> (i32, String) {
    let output = Command::new(tool("python"))
        .args(["-I", "-S", "-B"])
        .arg(checkout().join("tests/audit/verify_tiles.py"))
        .arg(folder)
        .args(words)
        .output()
        .expect("python runs");
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (output.status.code().unwrap_or(-1), said)
}

#[track_caller]
fn says_yes(folder: &Path, words: &[&str]) -> String {
    let (status, said) = script(folder, words);
    assert_eq!(status, 0, "{said}");
    said
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let kind = entry.file_type().expect("a kind");
        let to = to.join(entry.file_name());
        if kind.is_dir() {
            copy(&entry.path(), &to);
        } else if kind.is_file() {
            fs::copy(entry.path(), to).expect("copied");
        }
    }
}

/// What somebody may do to an export, by name.
type Change<'a> = (&'a str, Box<dyn Fn(&Path) + 'a>);

fn flip(file: &'static str, at: usize, bit: u8) -> Box<dyn Fn(&Path)> {
    Box::new(move |folder| {
        let path = folder.join(file);
        let mut bytes = fs::read(&path).expect("the file");
        let at = at % bytes.len();
        bytes[at] ^= bit;
        fs::write(&path, bytes).expect("written");
    })
}

/// The entries of a bundle, with their lengths.
fn entries(mut bundle: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    while !bundle.is_empty() {
        let length = 2 + usize::from(u16::from_be_bytes([bundle[0], bundle[1]]));
        found.push(bundle[..length].to_vec());
        bundle = &bundle[length..];
    }
    found
}

fn rewrite<'a>(
    file: &'static str,
    change: impl Fn(&mut Vec<Vec<u8>>) + 'a,
) -> Box<dyn Fn(&Path) + 'a> {
    Box::new(move |folder| {
        let path = folder.join(file);
        let mut all = entries(&fs::read(&path).expect("the bundle"));
        change(&mut all);
        fs::write(&path, all.concat()).expect("written");
    })
}

fn replaced(file: &'static str, from: String, to: String) -> Box<dyn Fn(&Path)> {
    Box::new(move |folder| {
        let path = folder.join(file);
        let text = fs::read_to_string(&path).expect("the file");
        assert!(text.contains(&from), "{text}");
        fs::write(&path, text.replacen(&from, &to, 1)).expect("written");
    })
}

/// A file with the key of this signer.
fn signer_key(folder: &Path, signer: &keyring::note::NoteSigner) -> PathBuf {
    let file = folder.join("signer.vkey");
    fs::write(&file, signer.verifier().to_string()).expect("written");
    file
}

#[test]
fn an_export_is_checked_without_our_code_and_every_change_is_seen() {
    let stage = Stage::new();
    let folder = stage.chancery.folder();
    let (key, first) = (folder.join("log.vkey"), folder.join("first.checkpoint"));
    let export = folder.join("export");
    let auditor = folder.join("auditor.creds");
    stage
        .operator
        .project("platform")
        .run(&[
            "access",
            "create",
            "eve",
            "--right",
            "query.>",
            "--out",
            &text(&auditor),
        ])
        .ok();
    let auditor = stage.operator.user(&auditor);
    auditor.run(&["audit", "key", "--out", &text(&key)]).ok();
    let key_text = text(&key);
    let audit = |words: &[&str]| {
        let mut all = vec!["audit"];
        all.extend(words);
        all.extend(["--key", key_text.as_str()]);
        auditor.run(&all)
    };

    grow(&stage.alice, 0, 300);
    let exported = audit(&["export", "--out", &text(&export)]).ok().json();
    let size = exported["size"].as_u64().expect("a size");
    assert_eq!(exported["new"], size);
    assert!(size > 300, "{exported}");
    says_yes(&export, &["--key", &key_text]);
    fs::copy(export.join("checkpoint"), &first).expect("copied");
    // The same again adds nothing, once the edges have reported what they applied, which is an event too.
    let size = eventually("nothing is new", SOON, || {
        let again = audit(&["export", "--out", &text(&export)]).ok().json();
        match again["new"].as_u64() {
            Some(0) => Ok(again["size"].as_u64().expect("a size")),
            _ => Err(again.to_string()),
        }
    });

    grow(&stage.alice, 300, 400);
    let touched = |file: &str| {
        let data = fs::metadata(export.join(file)).expect("the file");
        data.modified().expect("a time")
    };
    let before = (touched("tile/0/000"), touched("tile/entries/000"));
    let exported = audit(&["export", "--out", &text(&export)]).ok().json();
    let now = exported["size"].as_u64().expect("a size");
    assert_eq!(exported["new"], now - size, "{exported}");
    assert_eq!(before, (touched("tile/0/000"), touched("tile/entries/000")));
    assert!(
        !export.join("tile/entries/001.p").exists(),
        "it is full now: {exported}"
    );

    // An event of alice, proven by the log to alice, and by her to others.
    let (event, proof) = (folder.join("event.json"), folder.join("e.tlog-proof"));
    let proven = stage
        .alice
        .run(&["audit", "proof", "2", "--out", &text(&proof)])
        .ok()
        .json();
    let replayed = stage
        .alice
        .run(&["events", "replay", "--from", "2", "--to", "2"])
        .ok();
    fs::write(&event, replayed.stdout.trim_end()).expect("written");
    assert_eq!(proven["event"]["projectseq"], "2");
    let third = folder.join("third.checkpoint");
    audit(&[
        "checkpoint",
        "--out",
        &text(&third),
        "--since",
        &text(&first),
    ])
    .ok();
    let yes = says_yes(
        &export,
        &[
            "--key",
            &key_text,
            "--since",
            &text(&first),
            "--event",
            &text(&event),
            "--proof",
            &text(&proof),
        ],
    );
    assert!(
        yes.contains("only grown since") && yes.contains("is proven") && yes.contains("in the log"),
        "{yes}"
    );
    let whole = audit(&["verify", "--since", &text(&first), "--since", &text(&third)]);
    assert_eq!(whole.clone().ok().json()["problem_count"], 0, "{whole:?}");

    // Whatever is done to it, the script says no, and says what it is.
    let signed = fs::read_to_string(export.join("checkpoint")).expect("the checkpoint");
    let old = fs::read(&first).expect("the checkpoint");
    let lines: Vec<&str> = signed.split('\n').collect();
    let root = lines[2].to_owned();
    let (tail, width) = (now / 256, now % 256);
    assert!(
        tail == 2 && width > 0,
        "the names below are of such a log: {now}"
    );
    let part: &'static str = format!("tile/0/002.p/{width}").leak();
    let bundle: &'static str = format!("tile/entries/002.p/{width}").leak();
    let another = key_text.clone();
    let changes: Vec<Change> = vec![
        ("a byte of an event", flip("tile/entries/000", 700, 1)),
        ("a byte of the last event", flip(bundle, usize::MAX, 1)),
        ("the length of an entry", flip("tile/entries/001", 1, 2)),
        ("a bit of a tile", flip("tile/0/001", 4_000, 64)),
        ("a bit of a tile's part", flip(part, 3, 1)),
        ("a bit of a higher tile", flip("tile/1/000.p/2", 40, 8)),
        ("the signature", flip("checkpoint", signed.len() - 10, 1)),
        ("the origin", flip("checkpoint", 2, 1)),
        (
            "the size",
            replaced(
                "checkpoint",
                format!("\n{now}\n"),
                format!("\n{}\n", now - 1),
            ),
        ),
        (
            "the root",
            replaced("checkpoint", root.clone(), format!("A{}", &root[1..])),
        ),
        (
            "an entry dropped",
            rewrite("tile/entries/001", |all| {
                all.remove(9);
            }),
        ),
        (
            "the last entry dropped",
            rewrite(bundle, |all| {
                all.pop();
            }),
        ),
        (
            "an entry doubled",
            rewrite("tile/entries/000", |all| {
                let twice = all[4].clone();
                all.insert(4, twice);
            }),
        ),
        (
            "the last event, and its hash with it",
            Box::new(move |folder| {
                // Nothing names the last event but the root.
                let actor = |text: &str| text.replacen("\"actor\":\"alice", "\"actor\":\"eve00", 1);
                let path = folder.join(bundle);
                let mut all = entries(&fs::read(&path).expect("the bundle"));
                let last = all.last_mut().expect("an entry");
                let event = actor(std::str::from_utf8(&last[2..]).expect("text")).into_bytes();
                assert_ne!(event, last[2..]);
                last.truncate(2);
                last.extend(&event);
                fs::write(&path, all.concat()).expect("written");
                let path = folder.join(part);
                let mut hashes = fs::read(&path).expect("the tile");
                let at = hashes.len() - 32;
                hashes[at..].copy_from_slice(ledger::leaf_hash(&event).as_bytes());
                fs::write(&path, hashes).expect("written");
            }),
        ),
        (
            "two entries swapped",
            rewrite("tile/entries/000", |all| all.swap(5, 6)),
        ),
        (
            "a bundle gone",
            Box::new(|folder| {
                fs::remove_file(folder.join("tile/entries/001")).expect("removed");
            }),
        ),
        (
            "a tile gone",
            Box::new(|folder| {
                fs::remove_dir_all(folder.join("tile/1")).expect("removed");
            }),
        ),
        (
            "an older checkpoint",
            Box::new(|folder| {
                fs::write(folder.join("checkpoint"), &old).expect("written");
            }),
        ),
        (
            "another key's checkpoint",
            Box::new(move |folder| {
                // As the log would sign it with a key that the auditor was not given.
                let name = fs::read_to_string(&another).expect("the key");
                let name = name.split('+').next().expect("a name").to_owned();
                let path = folder.join("checkpoint");
                let note = fs::read_to_string(&path).expect("the checkpoint");
                let text = note.split_once("\n\n").expect("a note").0.to_owned() + "\n";
                let signer =
                    keyring::note::NoteSigner::from_secret(&name, &[9; 32]).expect("a key");
                fs::write(path, signer.sign(&text).expect("a note")).expect("written");
            }),
        ),
    ];
    for (name, change) in &changes {
        let spoilt = folder.join("spoilt");
        copy(&export, &spoilt);
        change(&spoilt);
        let third = text(&third);
        let mut words = vec!["--key", key_text.as_str()];
        if *name == "an older checkpoint" {
            // It is a good one, so only a later one shows that something is missing.
            says_yes(&spoilt, &words);
            words.extend(["--since", &third]);
        }
        let (status, said) = script(&spoilt, &words);
        assert_eq!(status, 1, "{name}: {said}");
        assert!(said.contains("no: "), "{name}: {said}");
        fs::remove_dir_all(&spoilt).expect("removed");
    }

    // A log that signs whatever it likes: it cannot have signed something else before.
    let signer = keyring::note::NoteSigner::from_secret("liar.example", &[7; 32]).expect("a key");
    let liar = folder.join("liar");
    let (copied, since) = (text(&signer_key(folder, &signer)), liar.join("since"));
    copy(&export, &liar);
    let sign = |note: &str, root: Option<&str>| {
        let mut lines: Vec<&str> = note.split('\n').take(3).collect();
        lines[0] = "liar.example";
        lines[2] = root.unwrap_or(lines[2]);
        signer.sign(&(lines.join("\n") + "\n")).expect("a note")
    };
    fs::write(liar.join("checkpoint"), sign(&signed, None)).expect("written");
    let early = String::from_utf8(old.clone()).expect("text");
    for (other, expected) in [(None, 0), (Some(root.as_str()), 1)] {
        fs::write(&since, sign(&early, other)).expect("written");
        let words = ["--key", copied.as_str(), "--since", &text(&since)];
        let (status, said) = script(&liar, &words);
        assert_eq!(status, expected, "{said}");
        assert_eq!(said.contains("rewritten"), expected == 1, "{said}");
    }

    // So does it for a kept checkpoint, an event and a proof that were changed, and without them all is well.
    for (word, file) in [
        ("--since", &first),
        ("--event", &event),
        ("--proof", &proof),
    ] {
        let changed = folder.join("changed");
        let good = fs::read_to_string(file).expect("the file");
        for (from, to) in [("8", "9"), ("a", "b"), ("A", "B")] {
            fs::write(&changed, good.replacen(from, to, 1)).expect("written");
            let (status, said) = script(&export, &["--key", &key_text, word, &text(&changed)]);
            let same = !good.contains(from);
            assert_eq!(status, i32::from(!same), "{word} {from}: {said}");
        }
    }
    assert_eq!(script(&export, &["--key", "nonsense"]).0, 2);
    assert_eq!(script(folder, &["--key", &key_text]).0, 2);

    // The exporter itself goes on from nothing that was changed.
    let spoilt = folder.join("spoilt");
    copy(&export, &spoilt);
    flip(part, 3, 1)(&spoilt);
    let refused = audit(&["export", "--out", &text(&spoilt)]);
    assert_eq!(refused.status, 2, "{refused:?}");
    let refused = auditor.run(&[
        "audit",
        "export",
        "--out",
        &text(folder),
        "--key",
        &key_text,
    ]);
    assert_eq!(refused.status, 2, "it holds other things: {refused:?}");
}

#[test]
fn a_tenant_proves_its_own_events_and_sees_nobody_elses() {
    let stage = Stage::new();
    let folder = stage.chancery.folder();
    let mallory = stage.chancery.project("other", "mallory");
    grow(&stage.alice, 0, 3);
    mallory.run(&["domain", "add", "secret.example.net"]).ok();
    let key = stage.alice.run(&["audit", "key"]).ok().json();
    let vkey = key["vkey"].as_str().expect("a key").to_owned();

    let proof = folder.join("alice.tlog-proof");
    let answer = stage
        .alice
        .run(&[
            "audit",
            "proof",
            "3",
            "--key",
            &vkey,
            "--out",
            &text(&proof),
        ])
        .ok()
        .json();
    // Who is handed it needs no account and no server.
    let nobody = Cli::new(std::collections::BTreeMap::from([(
        "CHANCERY_SERVER".to_owned(),
        "nats://127.0.0.1:1".to_owned(),
    )]));
    let check = |file: &Path, key: &str| -> Outcome {
        nobody.run(&["audit", "proof", "--verify", &text(file), "--key", key])
    };
    let proven = check(&proof, &vkey).ok().json();
    assert_eq!(proven["valid"], true);
    assert_eq!(proven["event"], answer["event"]);
    assert_eq!(proven["event"]["project"], "acme");
    assert_eq!(proven["sequence"], answer["sequence"]);
    // Exact bytes, as the log has them.
    let replayed = stage
        .alice
        .run(&["events", "replay", "--from", "3", "--to", "3"])
        .ok();
    let held = fs::read_to_string(&proof).expect("the proof");
    let line = held.lines().nth(1).expect("the event");
    let encoded = line.strip_prefix("extra ").expect("the event");
    let bytes = data_encoding::BASE64
        .decode(encoded.as_bytes())
        .expect("base64");
    assert_eq!(String::from_utf8_lossy(&bytes), replayed.stdout.trim_end());

    // Changed, cut, of another event, or under another key: no, with the reason.
    let changed = folder.join("changed");
    let index = held.lines().nth(2).expect("the index").to_owned();
    for text_of in [
        held.replacen("extra ey", "extra ez", 1),
        held.replacen(&index, "index 1", 1),
        held.split_once("\n\n").expect("two parts").0.to_owned(),
        String::new(),
    ] {
        fs::write(&changed, &text_of).expect("written");
        let no = check(&changed, &vkey);
        assert_eq!(
            (no.status, &no.json()["valid"]),
            (1, &json!(false)),
            "{no:?}"
        );
    }
    let other = keyring::note::NoteSigner::from_secret("example.net/log", &[3; 32])
        .expect("a key")
        .verifier()
        .to_string();
    let no = check(&proof, &other);
    assert_eq!(no.status, 1, "{no:?}");
    for (file, key) in [(&proof, "nonsense"), (&folder.join("nothing"), &*vkey)] {
        assert_eq!(check(file, key).status, 2);
    }
    assert_eq!(nobody.run(&["audit", "proof"]).status, 2);

    // Nothing beyond the own project, by whatever name.
    assert_eq!(
        stage.alice.run(&["audit", "proof", "9999"]).refused(),
        "not_found"
    );
    assert_eq!(
        stage.alice.run(&["audit", "checkpoint"]).refused(),
        "unauthorized"
    );
    assert_eq!(
        stage.alice.run(&["audit", "verify"]).refused(),
        "unauthorized"
    );
    let others = stage.alice.project("other").run(&["audit", "proof", "1"]);
    assert_eq!(others.refused(), "unauthorized");
    let (runtime, client) = nats(&stage.alice);
    runtime.block_on(async {
        for (body, code) in [
            (json!({"sequence": 1}), "unauthorized"),
            (json!({"sequence": 1, "projectseq": 1}), "malformed"),
            (json!({}), "malformed"),
            (json!({"projectseq": 0}), "not_found"),
            (json!({"projectseq": -1}), "malformed"),
            (json!({"projectseq": 1, "size": 4}), "malformed"),
        ] {
            let subject = "chancery.v1.query.acme.proof";
            let answer = client
                .request(subject, body.to_string().into())
                .await
                .expect("an answer");
            let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
            assert_eq!(answer["code"], code, "{body}: {answer}");
        }
    });

    // The operator proves any event by its sequence, and one of a project by its number there.
    let operator = &stage.operator;
    let any = operator.run(&["audit", "proof", "1"]).ok().json();
    assert_eq!(any["event"]["type"], "dev.chancery.control.genesis.v1");
    let of = operator
        .project("acme")
        .run(&["audit", "proof", "3"])
        .ok()
        .json();
    assert_eq!(of["event"], answer["event"]);
    let rebuilt = operator.run(&["audit", "rebuild"]).ok().json();
    assert_eq!(rebuilt["tree"]["identical"], true, "{rebuilt}");
    let whole = operator.run(&["audit", "verify"]).ok().json();
    assert_eq!(rebuilt["root"].as_str().map(str::len), Some(64));
    assert_eq!(whole["checkpoint"]["root"], whole["root"], "{whole}");
}

/// A log that was put back to an older state is a fork of what was signed, once it goes on.
#[test]
fn no_key_signs_two_histories() {
    let folder = tempfile::tempdir().expect("a folder");
    let start = || Up::in_folder(folder.path()).start();
    let state = folder.path().join("state");
    let older = folder.path().join("older");
    let kept = |name: &str| folder.path().join(name);
    let checkpoint = |chancery: &Chancery, name: &str| {
        let file = text(&kept(name));
        chancery
            .operator()
            .run(&["audit", "checkpoint", "--out", &file])
    };

    let chancery = start();
    let alice = chancery.project("acme", "alice");
    checkpoint(&chancery, "one").ok();
    let export = text(&folder.path().join("export"));
    let _ = chancery.stop();
    copy(&state, &older);
    let chancery = start();
    grow(&alice, 0, 8);
    checkpoint(&chancery, "two").ok();
    chancery
        .operator()
        .run(&["audit", "export", "--out", &export])
        .ok();
    let first_key = chancery.operator().run(&["audit", "key"]).ok().json();
    let first_key = first_key["vkey"].as_str().expect("a key").to_owned();
    let _ = chancery.stop();

    // Ledger and streams of before, and the memory of what was signed since: shorter at first, then another history.
    let put_back = |memory: bool| {
        let signed = kept("signed");
        if memory {
            copy(&state.join("checkpoints"), &signed);
        }
        fs::remove_dir_all(&state).expect("removed");
        copy(&older, &state);
        if memory {
            copy(&signed, &state.join("checkpoints"));
        }
    };
    put_back(true);
    let chancery = start();
    let operator = chancery.operator();
    for (grown, why) in [(0, "put back to an older state"), (20, "forked")] {
        if grown > 0 {
            grow(&alice, 100, grown);
        }
        let refused = checkpoint(&chancery, "never");
        assert_eq!(refused.refused(), "conflict");
        let told = refused.json()["detail"].to_string();
        assert!(told.contains(why), "{told}");
        assert!(!kept("never").exists());
        assert_eq!(operator.run(&["audit", "proof", "1"]).refused(), "conflict");
        let status = operator.run(&["status"]).json();
        assert_eq!(status["ok"], false);
        assert!(status["problems"].to_string().contains(why), "{status}");
        let verified = operator.run(&["audit", "verify"]);
        assert_eq!(verified.status, 1, "{verified:?}");
    }
    let _ = chancery.stop();

    // Without the memory nothing here can know. Whoever has kept a checkpoint does.
    put_back(false);
    let chancery = start();
    grow(&alice, 200, 20);
    let operator = chancery.operator();
    let since = |name: &str, keys: &[&str]| {
        let file = text(&kept(name));
        let mut words = vec!["audit", "checkpoint", "--since", &file];
        for key in keys {
            words.extend(["--key", key]);
        }
        let proven = operator.run(&words);
        let mut words = vec!["audit", "verify", "--since", &file];
        for key in keys {
            words.extend(["--key", key]);
        }
        let pulled = operator.run(&words);
        assert_eq!(proven.status, pulled.status, "{proven:?} {pulled:?}");
        proven
    };
    since("one", &[&first_key]).ok();
    assert_eq!(since("two", &[&first_key]).refused(), "conflict");
    let stale = operator.run(&["audit", "export", "--out", &export]);
    assert_eq!(stale.refused(), "conflict");
    let _ = chancery.stop();

    // A restore raises the generation: the log goes on under a key that nobody takes for the old one.
    put_back(false);
    fs::write(state.join("generation"), "7\n").expect("written");
    let chancery = start();
    grow(&alice, 300, 20);
    let operator = chancery.operator();
    let key = operator.run(&["audit", "key"]).ok().json();
    let second_key = key["vkey"].as_str().expect("a key").to_owned();
    assert_ne!(first_key, second_key);
    let pinned = operator.run(&["audit", "checkpoint", "--key", &first_key]);
    assert_eq!(pinned.refused(), "conflict");
    let since = |name: &str| {
        let file = text(&kept(name));
        let keys = ["--key", &first_key, "--key", &second_key];
        operator.run(&[&["audit", "checkpoint", "--since", &*file], &keys[..]].concat())
    };
    since("one").ok();
    assert_eq!(since("two").refused(), "conflict");
    let stale = operator.run(&["audit", "export", "--out", &export]);
    assert_eq!(stale.refused(), "conflict");
    checkpoint(&chancery, "three").ok();
    let _ = chancery.stop();

    // A key whose memory is gone signs nothing, rather than anything.
    fs::remove_dir_all(state.join("checkpoints")).expect("removed");
    let chancery = start();
    let refused = checkpoint(&chancery, "never");
    assert_eq!(refused.refused(), "conflict");
    assert_eq!(chancery.operator().run(&["status"]).json()["ok"], false);
}
