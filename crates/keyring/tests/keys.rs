//! Private keys as real tools write them, and what is done to damaged ones.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Stdio};

use data_encoding::BASE64;
use keyring::{KeyError, KeyKind, PrivateKey};
use proptest::prelude::*;

/// Runs openssl in a folder of its own and returns what it wrote to standard output.
fn openssl(folder: &Path, arguments: &str) -> Vec<u8> {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("openssl is on the path");
    assert!(
        output.status.success(),
        "openssl {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// The label and the body of the last PEM block; openssl writes curve parameters before a key.
fn block(pem: &[u8]) -> (String, Vec<u8>) {
    let text = std::str::from_utf8(pem).unwrap();
    let start = text.rfind("-----BEGIN ").unwrap() + "-----BEGIN ".len();
    let (label, rest) = text[start..].split_once("-----").unwrap();
    let (body, _) = rest.split_once("-----END").unwrap();
    // Legacy encryption puts headers before the body; what is left is ciphertext.
    let body = body.rsplit_once("\n\n").map_or(body, |(_, body)| body);
    let body: String = body.split_whitespace().collect();
    (label.to_owned(), BASE64.decode(body.as_bytes()).unwrap())
}

fn read(pem: &[u8]) -> Result<PrivateKey, KeyError> {
    let (label, der) = block(pem);
    PrivateKey::from_pem(&label, &der)
}

fn check(folder: &Path, make: &str, kind: KeyKind) {
    std::fs::write(folder.join("key.pem"), openssl(folder, make)).unwrap();
    let spki = openssl(folder, "pkey -in key.pem -pubout -outform DER");
    let mut forms = vec![
        std::fs::read(folder.join("key.pem")).unwrap(),
        openssl(folder, "pkcs8 -topk8 -nocrypt -in key.pem"),
    ];
    if kind != KeyKind::Ed25519 {
        forms.push(openssl(folder, "pkey -traditional -in key.pem"));
    }
    for form in forms {
        let key = read(&form).unwrap_or_else(|e| panic!("{make}: {e}"));
        assert_eq!(key.kind(), kind, "{make}");
        assert_eq!(key.spki_der(), spki, "{make}");
        assert!(key.matches_spki(&spki));
        // Whatever the form, what is kept is the same.
        let kept = key.danger_to_pkcs8_der().expose().to_vec();
        let again = PrivateKey::from_der(&kept).unwrap();
        assert!(again.danger_to_pkcs8_der().equals(&kept));
        assert_eq!(
            key.signing_key().public_key().unwrap().as_ref(),
            &spki[..],
            "{make}"
        );
        assert_eq!(format!("{key:?}"), format!("PrivateKey({kind})"));
        assert_eq!(kind.to_string().parse(), Ok(kind));
    }
    for cipher in ["-v2 aes-256-cbc", "-v1 PBE-SHA1-3DES"] {
        let command = format!("pkcs8 -topk8 {cipher} -passout pass:secret -in key.pem");
        assert_eq!(
            read(&openssl(folder, &command)).err(),
            Some(KeyError::Encrypted)
        );
        let der = openssl(folder, &format!("{command} -outform DER"));
        assert_eq!(
            PrivateKey::from_der(&der).err(),
            Some(KeyError::Encrypted),
            "{command}"
        );
    }
}

#[test]
fn every_form_that_openssl_writes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    check(folder, "genrsa 2048", KeyKind::Rsa(2048));
    check(folder, "genrsa -traditional 2048", KeyKind::Rsa(2048));
    check(folder, "genrsa 3072", KeyKind::Rsa(3072));
    check(
        folder,
        "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256",
        KeyKind::EcdsaP256,
    );
    check(
        folder,
        "ecparam -name prime256v1 -genkey",
        KeyKind::EcdsaP256,
    );
    check(
        folder,
        "ecparam -name secp384r1 -genkey -noout",
        KeyKind::EcdsaP384,
    );
    check(folder, "genpkey -algorithm ED25519", KeyKind::Ed25519);
}

#[test]
fn an_ec_key_without_its_public_half_gets_it_computed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(
        folder.join("key.pem"),
        openssl(folder, "ecparam -name prime256v1 -genkey -noout"),
    )
    .unwrap();
    let bare = openssl(folder, "ec -in key.pem -no_public");
    let spki = openssl(folder, "pkey -in key.pem -pubout -outform DER");
    assert_eq!(read(&bare).unwrap().spki_der(), spki);
}

#[test]
fn how_the_public_point_is_written_makes_no_difference() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for curve in ["prime256v1", "secp384r1"] {
        let make = format!("ecparam -name {curve} -genkey -noout");
        std::fs::write(folder.join("key.pem"), openssl(folder, &make)).unwrap();
        let plain = read(&std::fs::read(folder.join("key.pem")).unwrap()).unwrap();
        for form in ["compressed", "hybrid"] {
            let other = openssl(folder, &format!("ec -in key.pem -conv_form {form}"));
            let other = read(&other).unwrap();
            assert_eq!(other.spki_der(), plain.spki_der(), "{curve} {form}");
            let kept = plain.danger_to_pkcs8_der().expose();
            assert!(other.danger_to_pkcs8_der().equals(kept));
        }
    }
}

#[test]
fn what_cannot_be_used_is_refused_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (make, code) in [
        ("genrsa 1024", "key_too_small"),
        ("genrsa -traditional 1024", "key_too_small"),
        ("genrsa 2040", "key_too_small"),
        (
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-521",
            "key_unsupported",
        ),
        ("ecparam -name secp521r1 -genkey -noout", "key_unsupported"),
        ("ecparam -name secp256k1 -genkey -noout", "key_unsupported"),
        (
            "ecparam -name prime256v1 -genkey -noout -param_enc explicit",
            "key_unsupported",
        ),
        ("genpkey -algorithm ED448", "key_unsupported"),
        ("genpkey -algorithm X25519", "key_unsupported"),
        (
            "genpkey -algorithm RSA-PSS -pkeyopt rsa_keygen_bits:2048",
            "key_unsupported",
        ),
    ] {
        let error = read(&openssl(folder, make)).expect_err(make);
        assert_eq!(error.code(), code, "{make}: {error}");
    }
    assert_eq!(
        PrivateKey::from_pem("CERTIFICATE", b"").unwrap_err().code(),
        "pem_malformed"
    );
    assert_eq!(
        PrivateKey::from_pem("OPENSSH PRIVATE KEY", b"")
            .unwrap_err()
            .code(),
        "key_unsupported"
    );
    assert_eq!(
        PrivateKey::from_der(&vec![0x30; 1 << 20])
            .unwrap_err()
            .code(),
        "pem_malformed"
    );
    assert_eq!(
        PrivateKey::generate(KeyKind::Rsa(2047)).unwrap_err().code(),
        "key_unsupported"
    );
}

#[test]
fn a_damaged_key_is_never_taken_for_another() {
    for kind in [KeyKind::Rsa(2048), KeyKind::EcdsaP256, KeyKind::EcdsaP384] {
        let key = PrivateKey::generate(kind).unwrap();
        let der = key.danger_to_pkcs8_der().expose();
        for at in 0..der.len() {
            let mut changed = der.to_vec();
            changed[at] ^= 1 << (at % 8);
            // A flag of the encoding may be ignored, but the numbers must be the same ones.
            if let Ok(read) = PrivateKey::from_der(&changed) {
                assert!(read.danger_to_pkcs8_der().equals(der), "{kind}, byte {at}");
            }
            assert!(
                PrivateKey::from_der(&der[..at]).is_err(),
                "{kind}, {at} bytes"
            );
        }
        let longer = [der, &[0]].concat();
        assert!(PrivateKey::from_der(&longer).is_err());
    }
}

#[test]
fn two_halves_that_do_not_belong_together_are_refused() {
    // SEC 1 ends with the public point, so one key's scalar can be joined with another's point.
    let folder = tempfile::tempdir().unwrap();
    let make = "ecparam -name prime256v1 -genkey -noout -outform DER";
    let (first, second) = (openssl(folder.path(), make), openssl(folder.path(), make));
    assert_eq!(first.len(), second.len());
    let joined = [&first[..first.len() - 64], &second[second.len() - 64..]].concat();
    assert!(PrivateKey::from_der(&first).is_ok());
    assert_eq!(
        PrivateKey::from_der(&joined).unwrap_err().code(),
        "pem_malformed"
    );
}

#[test]
fn generated_keys_sign() {
    for kind in [
        KeyKind::Rsa(2048),
        KeyKind::EcdsaP256,
        KeyKind::EcdsaP384,
        KeyKind::Ed25519,
    ] {
        let key = PrivateKey::generate(kind).unwrap();
        assert_eq!(key.kind(), kind);
        let schemes = keyring::provider()
            .signature_verification_algorithms
            .supported_schemes();
        let signer = key.signing_key().choose_scheme(&schemes).unwrap();
        assert!(!signer.sign(b"message").unwrap().is_empty());
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(PrivateKey::from_der(&bytes).is_err());
    }

    #[test]
    fn mutated_keys_never_panic(
        kind in prop_oneof![Just(KeyKind::EcdsaP256), Just(KeyKind::EcdsaP384), Just(KeyKind::Ed25519)],
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let key = PrivateKey::generate(kind).unwrap();
        let mut der = key.danger_to_pkcs8_der().expose().to_vec();
        for (at, byte) in changes {
            let at = at.index(der.len());
            der[at] = byte;
        }
        let _ = PrivateKey::from_der(&der);
        der.truncate(cut.index(der.len()));
        prop_assert!(PrivateKey::from_der(&der).is_err());
    }
}
