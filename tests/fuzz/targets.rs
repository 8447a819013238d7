//! The parsers, each with what it may take.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use control::chain::{self, Known, pem as pem_text, pkcs7 as bundle, repair};
use keyring::{Password, PrivateKey, pkcs12 as container, protected};
use lifecycle::event::CertificateKind;
use lifecycle::names::{Digest, Host, Slug};
use rustls_pki_types::CertificateDer;
use wire::feed::{Change, Chunk, Cursor, Delta, FORMAT, Key, Message, Signed, encode};
use zeroize::Zeroizing;

use crate::mutate::Shape;

/// A parser.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    /// Its name, which is that of its folder of the corpus.
    pub(crate) name: &'static str,
    /// How its input is built.
    pub(crate) shape: Shape,
    /// Reads an input, and says whether it was taken.
    pub(crate) run: fn(&[u8]) -> bool,
    /// Valid inputs that are made instead of kept.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
    /// The most memory that one input may take, bytes, and for each byte of it.
    pub(crate) memory: usize,
    pub(crate) per_byte: usize,
    /// The most time. Tests run unoptimised, beside others.
    pub(crate) time: Duration,
}

const BASE: Target = Target {
    name: "",
    shape: Shape::Der,
    run: |_| false,
    seeds: Vec::new,
    memory: 4 << 20,
    per_byte: 64,
    time: Duration::from_secs(5),
};

/// 2027-01-15: within the dates of what the corpus holds.
const NOW: i64 = 1_800_000_000;

/// What this script of openssl writes, in the order of the files' names. Inputs with private keys are made, not kept.
fn made(script: &str) -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().expect("a folder");
    let output = Command::new("sh")
        .args(["-ec", script])
        .current_dir(folder.path())
        .output()
        .expect("sh runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let files = fs::read_dir(folder.path()).expect("a folder").flatten();
    let mut files: Vec<_> = files
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|e| e == "seed"))
        .collect();
    files.sort();
    let read = |path| fs::read(path).expect("it was written");
    files.into_iter().map(read).collect()
}

/// About as many bytes of BER: one element with empty ones in it, none of whose lengths is known beforehand.
pub(crate) fn siblings(size: usize) -> Vec<u8> {
    let mut ber = vec![0x30, 0x80];
    ber.extend([0x30, 0x80, 0, 0].repeat(size / 4 - 1));
    ber.extend([0, 0]);
    ber
}

pub(crate) fn pem() -> Target {
    Target {
        name: "pem",
        seeds: || {
            made(
                r#"
                openssl ecparam -name prime256v1 -genkey -out a.seed
                openssl genrsa 2048 | openssl rsa -traditional -aes128 -passout pass:x -out b.seed
                openssl req -x509 -new -key a.seed -subj /CN=x -out c
                openssl pkcs12 -export -inkey a.seed -in c -passout pass:x -out d
                openssl pkcs12 -in d -passin pass:x -nodes -out e.seed
                "#,
            )
        },
        shape: Shape::Text(&[
            "-----BEGIN CERTIFICATE-----\n",
            "-----END CERTIFICATE-----\n",
            "-----BEGIN PRIVATE KEY-----\n",
            "-----BEGIN ",
            "-----END ",
            "-----",
            "Proc-Type: 4,ENCRYPTED\n",
            "DEK-Info: AES-256-CBC,00\n",
            "PKCS7",
            "CERTIFICATE",
            "\u{feff}",
            "=",
            "\\n",
            ":",
        ]),
        run: |input| {
            let mut taken = false;
            for kind in [CertificateKind::Server, CertificateKind::Ca] {
                taken |=
                    chain::repair::take_in(input, None, kind, NOW, &[], Default::default).is_ok();
                taken |= chain::read_chain(input, kind).is_ok();
            }
            taken |= chain::read_key(input).is_ok();
            if let Ok(blocks) = pem_text::blocks(input) {
                for block in blocks.flatten() {
                    if let (Ok(body), Some(cipher)) = (block.decode(), block.encrypted) {
                        let _ = protected::decrypt_pem(cipher, &body, password());
                    }
                }
            }
            taken
        },
        ..BASE
    }
}

/// The leaf, its intermediate and the root that the corpus of certificates holds.
fn kept() -> &'static [CertificateDer<'static>] {
    static KEPT: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();
    KEPT.get_or_init(|| {
        let folder = harness::checkout().join("tests/corpus/certificate");
        ["leaf", "intermediate", "root"]
            .into_iter()
            .map(|name| fs::read(folder.join(name)).expect("it is kept").into())
            .collect()
    })
}

pub(crate) fn certificate() -> Target {
    Target {
        name: "certificate",
        run: |input| {
            let strange = CertificateDer::from(input);
            let [leaf, intermediate, root] = kept() else {
                return false;
            };
            let roots = std::slice::from_ref(root);
            let known = Known {
                roots,
                issuers: &[],
            };
            let mut taken = false;
            for kind in [CertificateKind::Server, CertificateKind::Ca] {
                for chain in [
                    vec![strange.clone()],
                    vec![strange.clone(), intermediate.clone()],
                    vec![leaf.clone(), strange.clone()],
                ] {
                    taken |= chain::examine(&chain, None, kind, NOW, known).is_ok();
                    let _ = repair::repair(&chain, None, roots, NOW);
                }
            }
            taken
        },
        ..BASE
    }
}

fn password() -> &'static Password {
    static PASSWORD: OnceLock<Password> = OnceLock::new();
    PASSWORD.get_or_init(|| Password::new(Zeroizing::new("x".to_owned())).expect("it is short"))
}

pub(crate) fn pkcs12() -> Target {
    Target {
        name: "pkcs12",
        run: |input| {
            let _ = container::looks_like(input);
            container::open(input, password()).is_ok()
        },
        seeds: || {
            let mut seeds = made(
                r#"
                openssl ecparam -name prime256v1 -genkey -noout -out k
                openssl req -x509 -new -key k -subj /CN=x -out c
                p() { openssl pkcs12 -export -inkey k -in c -passout pass:x -iter 10 "$@"; }
                p -nomac -keypbe NONE -certpbe NONE -out a.seed
                p -nomac -out b.seed
                p -nomac -legacy -out c.seed
                p -out d.seed
                "#,
            );
            seeds.push(siblings(1 << 16));
            seeds
        },
        // What scrypt may ask for, and what the rounds may take.
        memory: (4 << 20) + protected::MAX_SCRYPT_MEMORY as usize,
        time: Duration::from_secs(30),
        ..BASE
    }
}

pub(crate) fn pkcs7() -> Target {
    Target {
        name: "pkcs7",
        run: |input| {
            let _ = bundle::looks_like(input);
            bundle::certificates(input).is_ok()
        },
        seeds: || vec![siblings(1 << 16)],
        ..BASE
    }
}

pub(crate) fn key() -> Target {
    Target {
        name: "key",
        run: |input| {
            PrivateKey::from_der(input).is_ok()
                || protected::decrypt_pkcs8(input, password()).is_ok()
        },
        seeds: || {
            made(
                r#"
                openssl ecparam -name prime256v1 -genkey -noout -out k
                openssl pkcs8 -topk8 -nocrypt -in k -outform DER -out a.seed
                openssl ec -in k -outform DER -out b.seed
                openssl genpkey -algorithm ed25519 -outform DER -out c.seed
                openssl genrsa 2048 | openssl rsa -traditional -outform DER -out d.seed
                p() { openssl pkcs8 -topk8 -in k -passout pass:x -outform DER "$@"; }
                p -iter 10 -out e.seed
                p -scrypt -scrypt_N 16 -out f.seed
                p -v1 PBE-SHA1-3DES -iter 10 -out g.seed
                "#,
            )
        },
        memory: (4 << 20) + protected::MAX_SCRYPT_MEMORY as usize,
        time: Duration::from_secs(30),
        ..BASE
    }
}

pub(crate) fn request() -> Target {
    Target {
        name: "request",
        shape: Shape::Text(&[
            "{",
            "}",
            "[",
            "]",
            "\"",
            ":",
            ",",
            "null",
            "true",
            "1e999",
            "-1",
            "\\u0000",
            "\\ud800",
            "\"name\"",
            "\"chain\"",
            "\"regions\"",
            "PRIVATE KEY-----",
            "[[[[[[[[[[[[[[[[",
            "{\"a\":{\"a\":{\"a\":",
            "18446744073709551616",
            "*.",
            "..",
            "\u{0}",
        ]),
        run: |input| {
            let mut taken = false;
            let all = wire::subject::PLATFORM_COMMANDS
                .iter()
                .chain(wire::subject::PROJECT_COMMANDS);
            for name in all {
                let (noun, verb) = name.split_once('.').expect("a noun and a verb");
                for project in ["platform", "acme"] {
                    taken |= wire::request::parse(project, noun, verb, input).is_ok();
                }
            }
            let _ = wire::request::parse_query::<wire::request::ListQuery>(input);
            let _ = wire::request::parse_query::<wire::request::HostQuery>(input);
            let _ = wire::request::parse_query::<wire::request::EventsQuery>(input);
            let _ = wire::answer::Answer::parse(input);
            taken
        },
        ..BASE
    }
}

pub(crate) fn header() -> Target {
    Target {
        name: "header",
        shape: Shape::Text(&[
            "NATS/1.0\r\n",
            "\r\n",
            "\r",
            "\n",
            ":",
            " ",
            "Nats-Msg-Id: ",
            "nats-request-info: ",
            "Nats-Request-Info: ",
            "traceparent: ",
            "\u{85}",
            "\u{2028}",
            "\0",
            "\u{e9}",
        ]),
        run: bus::door::takes_headers,
        ..BASE
    }
}

pub(crate) fn feed() -> Target {
    Target {
        name: "feed",
        shape: Shape::Bytes,
        run: |input| {
            let mut taken = wire::feed::decode::<Message>(input).is_some();
            if let Some(signed) = wire::feed::decode::<Signed>(input) {
                taken |= wire::feed::decode::<Message>(&signed.payload).is_some();
            }
            taken |= wire::feed::decode::<wire::feed::Bundle>(input).is_some();
            taken |= wire::feed::decode::<wire::feed::Claim>(input).is_some();
            taken |= wire::feed::decode::<wire::feed::Names>(input).is_some();
            taken |= wire::feed::decode::<wire::feed::Resource>(input).is_some();
            taken
        },
        seeds: || {
            let project = Slug::name("acme").expect("a slug");
            let bundle = wire::feed::Bundle {
                project,
                certificate: lifecycle::names::CertificateId(42),
                version: 1,
                spki: Digest([7; 32]),
                chain: vec![vec![0x30; 600], vec![0x30; 400]],
                region_key_version: 3,
                sealed_key: vec![9; 200],
            };
            let delta = Message::Delta(Delta {
                generation: 1,
                from: 5,
                to: 9,
                head: 9,
                time: 1,
                changes: vec![
                    Change {
                        key: Key::claim("www.example.com"),
                        value: Some(vec![1, 2, 3]),
                    },
                    Change {
                        key: Key::bundle("acme", &Digest([1; 32])),
                        value: Some(encode(&bundle)),
                    },
                ],
            });
            let chunk = Message::Chunk(Chunk {
                generation: 1,
                sequence: 9,
                time: 1,
                after: None,
                next: Some(Cursor("next".to_owned())),
                rows: vec![(Key::region_key("edge-1"), vec![0; 100])],
            });
            let mut seeds = vec![encode(&bundle)];
            for message in [delta, chunk] {
                let payload = encode(&message);
                seeds.push(payload.clone());
                seeds.push(encode(&Signed {
                    format: FORMAT,
                    payload,
                    signer: [1; 32],
                    signature: vec![2; 64],
                }));
            }
            seeds
        },
        // The limit of the decoder itself, for a message and what it carries.
        memory: 2 * wire::feed::MESSAGE_MAX,
        ..BASE
    }
}

pub(crate) fn host() -> Target {
    Target {
        name: "host",
        shape: Shape::Text(&[
            ".", "..", "*.", "xn--", "-", "\u{ad}", "\u{200d}", "\u{3002}", "ß", "İ", "\0", "a",
            "xn--a", "1.2.3.4", "[::1]",
        ]),
        run: |input| {
            let Ok(text) = std::str::from_utf8(input) else {
                return false;
            };
            let Ok(host) = Host::parse(text) else {
                return false;
            };
            // What was taken once is taken again, as itself.
            assert_eq!(Host::parse(host.as_str()).as_ref(), Ok(&host), "{text:?}");
            true
        },
        ..BASE
    }
}
