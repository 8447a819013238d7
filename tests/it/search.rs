//! The search for known keys: the system runs with keys that we know, and nothing that it writes, says or keeps at rest may
//! hold one of them in the clear, in any usual form.

use std::fs;
use std::path::{Path, PathBuf};

use data_encoding::{BASE64, BASE64URL, HEXLOWER, HEXUPPER};
use harness::{Key, Leaf, Spy, Up};

use crate::stage::{Apart, Stage, resource, upload, wait};

/// A part of a key that is as good as the key, and what it is called in a message.
pub(crate) struct Needle {
    what: String,
    bytes: Vec<u8>,
}

/// The secret parts of a PKCS#8 key of which each gives the whole away.
fn secrets(kind: Key, der: &[u8]) -> Vec<Vec<u8>> {
    let after = |mark: &[u8], length: usize| {
        let at = der
            .windows(mark.len())
            .position(|w| w == mark)
            .expect("PKCS#8 has this form")
            + mark.len();
        der[at..at + length].to_vec()
    };
    match kind {
        Key::P256 => vec![after(&[0x02, 0x01, 0x01, 0x04, 0x20], 32)],
        Key::P384 => vec![after(&[0x02, 0x01, 0x01, 0x04, 0x30], 48)],
        Key::Ed25519 => vec![after(&[0x04, 0x22, 0x04, 0x20], 32)],
        // Out of the private exponent, out of a prime, and the coefficient at the end.
        Key::Rsa2048 => vec![
            der[400..448].to_vec(),
            der[620..668].to_vec(),
            der[der.len() - 48..].to_vec(),
        ],
    }
}

pub(crate) fn needles(name: &str, kind: Key, leaf: &Leaf) -> Vec<Needle> {
    let mut needles = Vec::new();
    for (part, secret) in secrets(kind, &leaf.key_der).into_iter().enumerate() {
        let mut add = |form: &str, bytes: Vec<u8>| {
            needles.push(Needle {
                what: format!("{name} part {part} as {form}"),
                bytes,
            })
        };
        add("raw bytes", secret.clone());
        add("the same backwards", secret.iter().rev().copied().collect());
        add("hex", HEXLOWER.encode(&secret).into_bytes());
        add("HEX", HEXUPPER.encode(&secret).into_bytes());
        // Base64 of something that holds it depends on where it begins; what is next to it is cut off.
        for shift in 0..3 {
            let shifted = [&vec![0; shift][..], &secret].concat();
            let whole = shifted.len() / 3 * 4;
            let first = if shift == 0 { 0 } else { 4 };
            for (form, encoded) in [
                ("base64", BASE64.encode(&shifted)),
                ("base64url", BASE64URL.encode(&shifted)),
            ] {
                add(form, encoded.as_bytes()[first..whole].to_vec());
            }
        }
        // As JSON writes a list of bytes.
        let list: Vec<String> = secret.iter().map(u8::to_string).collect();
        add("a list of numbers", list.join(",").into_bytes());
    }
    needles
}

/// What of the needles is in there, line breaks left out too, as in PEM.
fn found(haystack: &[u8], needles: &[Needle]) -> Vec<String> {
    let mut joined = Vec::with_capacity(haystack.len());
    let mut rest = haystack.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        match byte {
            b'\n' | b'\r' | b' ' => {}
            b'\\' if matches!(rest.peek(), Some(b'n' | b'r')) => drop(rest.next()),
            _ => joined.push(byte),
        }
    }
    let holds = |text: &[u8], needle: &[u8]| {
        let first = needle[0];
        let mut at = 0;
        while let Some(next) = text[at..].iter().position(|&b| b == first) {
            at += next;
            if text[at..].starts_with(needle) {
                return true;
            }
            at += 1;
        }
        false
    };
    needles
        .iter()
        .filter(|n| holds(haystack, &n.bytes) || holds(&joined, &n.bytes))
        .map(|n| n.what.clone())
        .collect()
}

fn files_below(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder reads").flatten() {
        let path = entry.path();
        if path.is_dir() {
            files_below(&path, into);
        } else if path.is_file() {
            into.push(path);
        }
    }
}

#[test]
fn the_search_finds_what_it_looks_for() {
    let ca = harness::Ca::new();
    for kind in [Key::Rsa2048, Key::P256, Key::P384, Key::Ed25519] {
        let leaf = ca.leaf("a.example.com").key(kind).issue();
        let needles = needles("planted", kind, &leaf);
        let pem = fs::read(leaf.key()).expect("it reads");
        let json = serde_json::json!({ "key": String::from_utf8_lossy(&pem) }).to_string();
        let forms = [
            pem,
            leaf.key_der.clone(),
            HEXLOWER.encode(&leaf.key_der).into_bytes(),
            HEXUPPER.encode(&leaf.key_der).into_bytes(),
            BASE64.encode(&leaf.key_der).into_bytes(),
            BASE64URL.encode(&leaf.key_der).into_bytes(),
            json.into_bytes(),
            format!("{:?}", leaf.key_der).into_bytes(),
        ];
        for form in forms {
            let planted = [b"before ".to_vec(), form, b" after".to_vec()].concat();
            assert!(
                !found(&planted, &needles).is_empty(),
                "{kind:?} was not found in {:?}",
                String::from_utf8_lossy(&planted)
            );
        }
        assert!(
            found(&leaf.der, &needles).is_empty(),
            "the certificate is no secret"
        );
    }
}

#[test]
fn no_known_key_is_found_in_files_messages_or_logs() {
    let stage = Stage::new();
    stage.resource("media", "bucket", &["local"]);
    let Stage {
        ca,
        chancery,
        origin,
        ..
    } = stage;
    let folder = chancery.folder().to_owned();
    let _kept = chancery.stop();
    let spy = Spy::from_state(&folder.join("state"));
    let chancery = Up::in_folder(&folder)
        .variable("CHANCERY_LOG", "trace")
        .start();
    for account in [
        "account/CORE",
        "account/EDGES",
        "project/platform",
        "project/acme",
    ] {
        spy.listen(&chancery.nats(), account);
    }
    let operator = chancery.operator();
    let alice = operator.user(&folder.join("acme-alice.creds"));

    let mut all = Vec::new();
    for (name, kind) in [
        ("rsa", Key::Rsa2048),
        ("p256", Key::P256),
        ("p384", Key::P384),
        ("ed25519", Key::Ed25519),
    ] {
        let host = format!("{name}.example.com");
        alice
            .run(&["domain", "add", &host, "--resource", "media"])
            .ok();
        operator
            .project("acme")
            .run(&["domain", "prove", &host])
            .ok();
        let (first, second) = (
            ca.leaf(&host).key(kind).issue(),
            ca.leaf(&host).key(kind).issue(),
        );
        upload(&alice, name, &first, &["--region", "local"]);
        wait(&alice, name, "active");
        let (chain, key) = (
            second.chain().display().to_string(),
            second.key().display().to_string(),
        );
        alice
            .run(&[
                "certificate",
                "replace",
                name,
                "--chain",
                &chain,
                "--key",
                &key,
                "--wait",
            ])
            .ok();
        // Refused uploads bring keys too.
        let odd = ca.leaf("odd.example.com").key(kind).issue();
        let odd_key = odd.key().display().to_string();
        let refused = alice.run(&[
            "certificate",
            "add",
            "odd",
            "--chain",
            &chain,
            "--key",
            &odd_key,
            "--region",
            "local",
        ]);
        assert_eq!(refused.refused(), "key_mismatch");
        crate::stage::serves(chancery.https(), &host, &second);
        for (which, leaf) in [("first", &first), ("second", &second), ("odd", &odd)] {
            all.extend(needles(&format!("{name} {which}"), kind, leaf));
        }
    }
    alice
        .run(&[
            "certificate",
            "delete",
            "rsa",
            "--confirm",
            "rsa",
            "--force",
        ])
        .ok();

    let heard = spy.heard();
    let subjects: Vec<String> = heard
        .iter()
        .map(|m| {
            String::from_utf8_lossy(m.split(|&b| b == b'\n').next().unwrap_or_default())
                .into_owned()
        })
        .collect();
    for expected in [
        "chancery.v1.cmd.acme.certificate.add",
        "chancery.v1.evt.acme.certificate.added",
        "chancery.v1.region.local.delta",
    ] {
        assert!(
            subjects.iter().any(|s| s == expected),
            "the spy did not hear {expected}: {subjects:?}"
        );
    }
    for (message, subject) in heard.iter().zip(&subjects) {
        assert_eq!(
            found(message, &all),
            Vec::<String>::new(),
            "in a message to {subject}"
        );
    }
    // The files of the running system, then those of the one at rest, with the logs of both at their loudest.
    search(&folder, &all);
    let _ = chancery.stop();
    search(&folder, &all);
    drop(origin);
}

pub(crate) fn search(folder: &Path, needles: &[Needle]) {
    let mut files = Vec::new();
    files_below(folder, &mut files);
    assert!(files.len() > 2, "the folder holds files: {files:?}");
    for file in files {
        // A running system may remove a file meanwhile.
        let Ok(bytes) = fs::read(&file) else { continue };
        assert_eq!(
            found(&bytes, needles),
            Vec::<String>::new(),
            "in {}",
            file.display()
        );
    }
}

/// The private, writable memory of a process: what a core dump of it would hold. Nothing, if the kernel does not let us.
fn memory_of(pid: u32) -> Option<Vec<Vec<u8>>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let memory = fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut pieces = Vec::new();
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next()?, words.next()?);
        if !rights.starts_with("rw") {
            continue;
        }
        let (begin, end) = range.split_once('-')?;
        let (begin, end) = (
            u64::from_str_radix(begin, 16).ok()?,
            u64::from_str_radix(end, 16).ok()?,
        );
        let mut piece = vec![0; usize::try_from(end - begin).ok()?];
        // Some pages, such as those of the kernel itself, do not read.
        if std::os::unix::fs::FileExt::read_exact_at(&memory, &mut piece, begin).is_ok() {
            pieces.push(piece);
        }
    }
    Some(pieces)
}

/// Where in the memory of a process a needle stands, beginning with its first bytes, which are rare.
fn in_memory(pieces: &[Vec<u8>], needles: &[Needle]) -> Vec<String> {
    let mut seen = Vec::new();
    let starts: std::collections::HashMap<[u8; 4], Vec<&Needle>> =
        needles.iter().fold(Default::default(), |mut map, needle| {
            let start = needle.bytes[..4].try_into().expect("four bytes");
            let list: &mut Vec<&Needle> =
                std::collections::HashMap::entry(&mut map, start).or_default();
            list.push(needle);
            map
        });
    for piece in pieces {
        for (at, window) in piece.windows(4).enumerate() {
            let Some(list) = starts.get(window) else {
                continue;
            };
            seen.extend(
                list.iter()
                    .filter(|needle| piece[at..].starts_with(&needle.bytes))
                    .map(|needle| needle.what.clone()),
            );
        }
    }
    seen
}

#[test]
fn the_control_plane_at_rest_holds_no_open_key_and_the_edge_cannot_be_dumped() {
    let apart = Apart::start();
    let operator = apart.operator();
    let token = apart.file("edge-7.token").display().to_string();
    operator
        .run(&["edge", "enrol", "eu-1", "edge-7", "--out", &token])
        .ok();
    let edge = harness::Serve::start(&apart.file("edge.toml"));
    let (ca, origin) = (harness::Ca::new(), harness::Origin::start("origin"));
    operator.run(&["project", "create", "acme"]).ok();
    resource(
        &operator,
        "acme",
        "media",
        "bucket",
        &["eu-1"],
        &origin.url(),
    );
    let acme = operator.project("acme");
    let mut all = Vec::new();
    for (name, kind) in [
        ("rsa", Key::Rsa2048),
        ("p256", Key::P256),
        ("p384", Key::P384),
        ("ed25519", Key::Ed25519),
    ] {
        let host = format!("{name}.example.com");
        acme.run(&["domain", "add", &host, "--resource", "media"])
            .ok();
        let leaf = ca.leaf(&host).key(kind).issue();
        upload(&acme, name, &leaf, &["--region", "eu-1"]);
        wait(&acme, name, "active");
        crate::stage::serves(apart.https, &host, &leaf);
        all.extend(needles(name, kind, &leaf));
    }
    // At rest: nothing is under way any more.
    for (role, pid) in [("control", apart.control.pid()), ("edge", edge.pid())] {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("it runs");
        let core = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"))
            .expect("the kernel lists it");
        let words: Vec<&str> = core.split_whitespace().collect();
        assert_eq!(
            words[4..6],
            ["0", "0"],
            "{role} writes no core file: {core}"
        );
    }
    if let Some(pieces) = memory_of(apart.control.pid()) {
        assert!(
            pieces.iter().map(Vec::len).sum::<usize>() > 1 << 20,
            "the memory was read"
        );
        harness::eventually(
            "the control plane forgets open keys",
            std::time::Duration::from_secs(10),
            || {
                let seen = in_memory(
                    &memory_of(apart.control.pid()).expect("it was readable before"),
                    &all,
                );
                if seen.is_empty() {
                    Ok(())
                } else {
                    Err(format!("in the memory of the control plane: {seen:?}"))
                }
            },
        );
    }
    // The search itself works: the edge, which must hold open keys in its cache, is where it finds them, if it may look at all.
    if let Some(pieces) = memory_of(edge.pid()) {
        assert!(
            !in_memory(&pieces, &all).is_empty(),
            "the edge serves, so it holds open keys"
        );
    }
    edge.stop();
    apart.control.stop();
}
