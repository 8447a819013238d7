//! The forms as the tools that people use write them: openssl, and keytool where Java is there.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;

const PASSWORD: &str = "pass wörd";

/// A folder with a root, an intermediate, a leaf with its key in `key.pem`, and a file with the password.
struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let desk = Self {
            folder: tempfile::tempdir().expect("a folder"),
        };
        std::fs::write(desk.path("password"), format!("{PASSWORD}\r\n")).expect("written");
        desk.sh(
            r#"
            newkey() { openssl ecparam -name prime256v1 -genkey -noout -out $1; }
            newkey root.key; newkey int.key; openssl genrsa -traditional -out key.pem 2048
            openssl req -x509 -new -key root.key -subj "/CN=Root" -days 30 -out root.pem -addext keyUsage=keyCertSign
            openssl req -new -key int.key -subj "/CN=Issuing" -out int.csr
            printf 'basicConstraints=critical,CA:true\nkeyUsage=keyCertSign\n' > ca.ext
            openssl x509 -req -in int.csr -CA root.pem -CAkey root.key -CAcreateserial -days 30 -extfile ca.ext -out int.pem
            openssl req -new -key key.pem -subj "/CN=www.example.com" -out leaf.csr
            printf 'subjectAltName=DNS:www.example.com\n' > leaf.ext
            openssl x509 -req -in leaf.csr -CA int.pem -CAkey int.key -CAcreateserial -days 30 -extfile leaf.ext -out leaf.pem
            cat leaf.pem int.pem > chain.pem
            "#,
        );
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn sh(&self, script: &str) {
        let output = Command::new("sh")
            .args(["-ec", script])
            .env("P", PASSWORD)
            .env("LC_ALL", "C.UTF-8")
            .current_dir(self.folder.path())
            .output()
            .expect("sh runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {said}");
    }

    fn read(&self, name: &str) -> Result<Contents> {
        read(
            &self.path(name),
            &mut Passwords::new(Some(&self.path("password"))),
        )
    }

    fn der(&self, names: &[&str]) -> Vec<CertificateDer<'static>> {
        names
            .iter()
            .map(|name| {
                let text = std::fs::read(self.path(name)).expect("there");
                let block = pem::blocks(&text).expect("PEM").next().expect("a block");
                let der = block.expect("whole").decode().expect("base64");
                CertificateDer::from(der.to_vec())
            })
            .collect()
    }

    fn spki(&self) -> [u8; 32] {
        key(&self.path("key.pem"), &mut Passwords::new(None))
            .expect("read")
            .spki_sha256()
    }
}

/// Whether Java's keytool is here; where it is not, that is printed.
fn keytool() -> bool {
    let there = Command::new("keytool").arg("-help").output().is_ok();
    if !there {
        eprintln!("skipped what needs keytool: no Java is installed");
    }
    there
}

fn code<T>(result: Result<T>) -> String {
    match result {
        Err(Failure::Refused(refused)) => refused.told.code,
        Err(other) => format!("{other:?}"),
        Ok(_) => "ok".to_owned(),
    }
}

#[test]
fn every_form_brings_the_same_certificates_and_key() {
    let desk = Desk::new();
    desk.sh(
        r#"
        openssl x509 -in leaf.pem -outform DER -out leaf.cer
        openssl pkey -in key.pem -outform DER -out key.pkcs8.der
        openssl rsa -in key.pem -traditional -outform DER -out key.pkcs1.der
        openssl crl2pkcs7 -nocrl -certfile chain.pem -out chain.p7b
        openssl crl2pkcs7 -nocrl -certfile chain.pem -outform DER -out chain.der.p7b
        pfx() { openssl pkcs12 -export -inkey key.pem -in leaf.pem -certfile int.pem -passout "pass:$P" "$@"; }
        pfx -out modern.p12
        pfx -legacy -out legacy.p12
        pfx -legacy -keypbe PBE-SHA1-RC2-40 -certpbe PBE-SHA1-RC2-128 -out rc2.p12
        pfx -keypbe PBE-SHA1-2DES -certpbe PBE-SHA1-2DES -macalg sha512 -out twokey.p12
        pfx -keypbe AES-128-CBC -certpbe AES-192-CBC -macalg sha384 -out aes.p12
        pfx -nomac -out nomac.p12
        pfx -keypbe NONE -certpbe NONE -out open.p12
        openssl pkcs12 -export -inkey key.pem -in leaf.pem -certfile int.pem -passout pass: -out empty.p12
        openssl pkcs12 -export -legacy -inkey key.pem -in leaf.pem -certfile int.pem -passout pass: -out empty-legacy.p12
        openssl pkcs12 -in modern.p12 -passin "pass:$P" -nodes -out bag.pem
        openssl pkcs8 -topk8 -in key.pem -passout "pass:$P" -out pbkdf2.pem
        openssl pkcs8 -topk8 -in key.pem -passout "pass:$P" -v2 aes-192-cbc -v2prf hmacWithSHA512 -out sha512.pem
        openssl pkcs8 -topk8 -in key.pem -passout "pass:$P" -v2 des3 -v2prf hmacWithSHA1 -out des3.pem
        openssl pkcs8 -topk8 -in key.pem -passout "pass:$P" -scrypt -out scrypt.pem
        openssl pkcs8 -topk8 -in key.pem -passout "pass:$P" -v1 PBE-SHA1-3DES -out pbe12.pem
        openssl pkcs8 -topk8 -in key.pem -passout "pass:$P" -v1 PBE-MD5-DES -provider legacy -provider default -out pbe1.pem
        openssl pkcs8 -topk8 -in key.pem -passout "pass:$P" -outform DER -out encrypted.der
        for c in aes128 aes192 aes256 des3; do openssl rsa -in key.pem -traditional -$c -passout "pass:$P" -out old-$c.pem; done
        openssl rsa -in key.pem -traditional -des -provider legacy -provider default -passout "pass:$P" -out old-des.pem
        cat key.pem chain.pem > both.pem
        openssl x509 -in leaf.pem -trustout -addtrust serverAuth -out trusted.pem
        printf '\377\376' > utf16.pem; iconv -f ASCII -t UTF-16LE chain.pem >> utf16.pem
        { printf '\357\273\277Dear customer:\r\n'; sed 's/$/\r/' chain.pem; } > mail.pem
        "#,
    );
    let chain = desk.der(&["leaf.pem", "int.pem"]);
    let spki = desk.spki();
    for (file, form, certificates, key) in [
        ("chain.pem", Form::Pem, 2, false),
        ("both.pem", Form::Pem, 2, true),
        ("bag.pem", Form::Pem, 2, true),
        ("mail.pem", Form::Pem, 2, false),
        ("utf16.pem", Form::Pem, 2, false),
        ("trusted.pem", Form::Pem, 1, false),
        ("leaf.cer", Form::Der, 1, false),
        ("chain.p7b", Form::Pkcs7, 2, false),
        ("chain.der.p7b", Form::Pkcs7, 2, false),
        ("modern.p12", Form::Pkcs12, 2, true),
        ("legacy.p12", Form::Pkcs12, 2, true),
        ("rc2.p12", Form::Pkcs12, 2, true),
        ("twokey.p12", Form::Pkcs12, 2, true),
        ("aes.p12", Form::Pkcs12, 2, true),
        ("nomac.p12", Form::Pkcs12, 2, true),
        ("open.p12", Form::Pkcs12, 2, true),
        ("empty.p12", Form::Pkcs12, 2, true),
        ("empty-legacy.p12", Form::Pkcs12, 2, true),
        ("key.pkcs8.der", Form::Der, 0, true),
        ("key.pkcs1.der", Form::Der, 0, true),
        ("encrypted.der", Form::Der, 0, true),
        ("pbkdf2.pem", Form::Pem, 0, true),
        ("sha512.pem", Form::Pem, 0, true),
        ("des3.pem", Form::Pem, 0, true),
        ("scrypt.pem", Form::Pem, 0, true),
        ("pbe12.pem", Form::Pem, 0, true),
        ("pbe1.pem", Form::Pem, 0, true),
        ("old-aes128.pem", Form::Pem, 0, true),
        ("old-aes192.pem", Form::Pem, 0, true),
        ("old-aes256.pem", Form::Pem, 0, true),
        ("old-des3.pem", Form::Pem, 0, true),
        ("old-des.pem", Form::Pem, 0, true),
    ] {
        let contents = desk
            .read(file)
            .unwrap_or_else(|failure| panic!("{file}: {failure:?}"));
        assert_eq!(contents.form, form, "{file}");
        assert_eq!(contents.certificates, chain[..certificates], "{file}");
        let keys: Vec<_> = contents.keys.iter().map(PrivateKey::spki_sha256).collect();
        assert_eq!(keys, vec![spki; usize::from(key)], "{file}");
        // What it is protected by matters: without a password it stays closed, and with a wrong one.
        let open = ["empty.p12", "empty-legacy.p12"].contains(&file);
        let needs =
            key && !open && !file.starts_with("key.") && !["both.pem", "bag.pem"].contains(&file);
        let mut none = Passwords::default();
        let without = code(read(&desk.path(file), &mut none));
        assert_eq!(
            without,
            if needs { "key_encrypted" } else { "ok" },
            "{file}"
        );
        std::fs::write(desk.path("wrong"), "something else").expect("written");
        let mut wrong = Passwords::new(Some(&desk.path("wrong")));
        let without = code(read(&desk.path(file), &mut wrong));
        assert_eq!(
            without,
            if needs { "key_encrypted" } else { "ok" },
            "{file}"
        );
    }
}

#[test]
fn what_keytool_writes_is_read_and_it_reads_what_is_written() {
    if !keytool() {
        return;
    }
    let desk = Desk::new();
    desk.sh(
        r#"
        printf 'changeit\n' > password
        store() { keytool "$@" -storepass changeit -noprompt; }
        store -genkeypair -alias site -keyalg EC -groupname secp256r1 -dname CN=www.example.com -keystore java.p12 -storetype PKCS12
        store -genkeypair -alias old -keyalg RSA -keysize 2048 -dname CN=old.example.com -keystore old.p12 -storetype PKCS12 -J-Dkeystore.pkcs12.legacy
        store -genkeypair -alias site -keyalg RSA -keysize 2048 -dname CN=jks.example.com -keypass changeit -keystore java.jks -storetype JKS
        store -importkeystore -srckeystore java.p12 -srcstorepass changeit -destkeystore two.p12 -deststoretype PKCS12
        store -genkeypair -alias second -keyalg EC -groupname secp256r1 -dname CN=two.example.com -keystore two.p12
        "#,
    );
    for file in ["java.p12", "old.p12"] {
        let contents = desk.read(file).expect(file);
        assert_eq!(
            (contents.certificates.len(), contents.keys.len()),
            (1, 1),
            "{file}"
        );
        let spki = spki(&contents.certificates[0]).expect("a certificate");
        assert!(contents.keys[0].matches_spki(spki), "{file}");
    }
    // Two entries, each with its certificate: which is meant only people know.
    let mut passwords = Passwords::new(Some(&desk.path("password")));
    let server = CertificateKind::Server;
    let two = upload(&desk.path("two.p12"), None, server, &mut passwords);
    assert_eq!(code(two), "key_unexpected");
    // A keystore of the old kind is told apart, with the command that converts it, and that command works.
    let Err(Failure::Refused(jks)) = desk.read("java.jks") else {
        panic!("a JKS keystore is not read")
    };
    assert_eq!(jks.told.code, "not_pem");
    let hint = jks.told.reasons[0].hint.clone();
    let convert = &hint[hint.find("keytool").expect("a command")..];
    let convert = convert.replace("FILE", "java.jks");
    desk.sh(&format!(
        "{convert} -srcstorepass changeit -deststorepass changeit -noprompt"
    ));
    assert_eq!(desk.read("java.jks.p12").expect("converted").keys.len(), 1);

    let password = Password::new(Zeroizing::new("changeit".to_owned())).expect("short");
    let key = key(&desk.path("key.pem"), &mut passwords).expect("read");
    let written = pkcs12(&desk.der(&["leaf.pem", "int.pem"]), &key, &password, "site");
    std::fs::write(desk.path("written.p12"), written).expect("written");
    desk.sh(
        r#"
        keytool -list -v -keystore written.p12 -storepass changeit -storetype PKCS12 > listed
        grep -q 'Alias name: site' listed
        grep -q 'Entry type: PrivateKeyEntry' listed
        grep -q 'Certificate chain length: 2' listed
        keytool -importkeystore -srckeystore written.p12 -srcstorepass changeit -destkeystore out.p12 -deststorepass changeit -noprompt
        "#,
    );
}

/// The library of Firefox, which writes BER and stretches the password for every bag.
#[test]
fn what_nss_writes_is_read_and_it_reads_what_is_written() {
    if Command::new("pk12util").arg("-H").output().is_err() {
        eprintln!("skipped what needs pk12util: libnss3-tools is not installed");
        return;
    }
    let desk = Desk::new();
    desk.sh(
        r#"
        printf 'geheim\n' > password; printf '\n' > none; mkdir db; certutil -N -d db --empty-password
        openssl pkcs12 -export -inkey key.pem -in leaf.pem -certfile int.pem -name site -passout pass:geheim -out in.p12
        pk12util -i in.p12 -d db -K '' -W geheim
        certutil -M -d db -n Issuing -t C,, 2> /dev/null || true
        pk12util -o nss.p12 -n site -d db -K '' -W geheim
        pk12util -o nss-old.p12 -n site -d db -K '' -W geheim -c 'PKCS #12 V2 PBE With SHA-1 And 3KEY Triple DES-CBC' -C 'PKCS #12 V2 PBE With SHA-1 And 40 Bit RC2 CBC'
        "#,
    );
    let spki = desk.spki();
    for file in ["nss.p12", "nss-old.p12"] {
        let contents = desk
            .read(file)
            .unwrap_or_else(|why| panic!("{file}: {why:?}"));
        assert!(
            contents.certificates.contains(&desk.der(&["leaf.pem"])[0]),
            "{file}"
        );
        assert_eq!(contents.keys[0].spki_sha256(), spki, "{file}");
    }
    let mut passwords = Passwords::new(Some(&desk.path("password")));
    let key = key(&desk.path("key.pem"), &mut passwords).expect("read");
    let password = passwords.new_one("a file").expect("from the file");
    let written = pkcs12(&desk.der(&["leaf.pem", "int.pem"]), &key, &password, "site");
    std::fs::write(desk.path("written.p12"), written).expect("written");
    desk.sh("mkdir other; certutil -N -d other --empty-password; pk12util -i written.p12 -d other -K '' -W geheim; certutil -K -d other | grep -q site");
}

#[test]
fn what_is_written_is_read_by_openssl_and_by_us() {
    let desk = Desk::new();
    let mut passwords = Passwords::new(Some(&desk.path("password")));
    let key = key(&desk.path("key.pem"), &mut passwords).expect("read");
    let chain = desk.der(&["leaf.pem", "int.pem"]);
    let password = passwords.new_one("a file").expect("from the file");
    let save = |name: &str, bytes: &[u8]| save(&desk.path(name), bytes, false).expect("saved");
    save("written.p12", &pkcs12(&chain, &key, &password, "Café"));
    let (certificates, private) = nginx_pair(&chain, &key);
    save("fullchain.pem", certificates.as_bytes());
    save("privkey.pem", private.as_bytes());
    save("haproxy.pem", haproxy_pem(&chain, &key).as_bytes());
    desk.sh(r#"
        openssl pkcs12 -in written.p12 -passin "pass:$P" -nodes -out opened.pem
        grep -q 'friendlyName: Caf' opened.pem
        openssl pkcs12 -in written.p12 -passin "pass:$P" -info -noout 2> info
        grep -q 'PBES2, PBKDF2, AES-256-CBC, Iteration 100000, PRF hmacWithSHA256' info
        grep -q 'MAC: sha256, Iteration 100000' info
        [ "$(openssl pkey -in opened.pem -pubout)" = "$(openssl pkey -in key.pem -pubout)" ]
        [ "$(openssl pkey -in privkey.pem -pubout)" = "$(openssl pkey -in key.pem -pubout)" ]
        [ "$(openssl pkey -in haproxy.pem -pubout)" = "$(openssl pkey -in key.pem -pubout)" ]
        cmp fullchain.pem chain.pem
        openssl x509 -in haproxy.pem -noout -subject | grep -q www.example.com
        [ "$(stat -c %a written.p12 privkey.pem haproxy.pem | sort -u)" = 600 ]
        "#);
    let read = desk.read("written.p12").expect("read again");
    assert_eq!(read.certificates, chain);
    assert_eq!(read.keys[0].spki_sha256(), key.spki_sha256());
    // Nothing is overwritten unless somebody says so, and what cannot be written leaves nothing behind.
    let path = desk.path("privkey.pem");
    assert!(matches!(
        super::save(&path, b"x", false),
        Err(Failure::CouldNotRun(_))
    ));
    assert_eq!(std::fs::read(&path).expect("there"), private.as_bytes());
    super::save(&path, b"x", true).expect("forced");
    assert_eq!(std::fs::read(&path).expect("there"), b"x");
    assert!(super::save(Path::new("/nonexistent/x"), b"x", false).is_err());
    let left = std::fs::read_dir(desk.folder.path()).expect("a folder");
    assert!(
        !left
            .flatten()
            .any(|file| file.file_name().to_string_lossy().ends_with(".new"))
    );
}

/// Firefox and Macs write lengths that are not known beforehand, and octet strings in pieces.
#[test]
fn ber_is_read_as_der_is() {
    let desk = Desk::new();
    desk.sh(
        r#"openssl pkcs12 -export -inkey key.pem -in leaf.pem -certfile int.pem -passout "pass:$P" -out a.p12
           openssl crl2pkcs7 -nocrl -certfile chain.pem -outform DER -out a.p7b"#,
    );
    for file in ["a.p12", "a.p7b"] {
        let der = std::fs::read(desk.path(file)).expect("there");
        let ber = indefinite(&der);
        assert_ne!(der, ber);
        assert_eq!(&**der::from_ber(&ber).expect("BER"), &der[..], "{file}");
        std::fs::write(desk.path("ber"), ber).expect("written");
        let (of_der, of_ber) = (
            desk.read(file).expect("DER"),
            desk.read("ber").expect("BER"),
        );
        assert_eq!(of_der.certificates, of_ber.certificates);
        assert_eq!(of_der.keys.len(), of_ber.keys.len());
    }
}

/// DER with the outer four layers of indefinite length and their octet strings in pieces of 100 bytes.
fn indefinite(der: &[u8]) -> Vec<u8> {
    fn write(reader: &mut der::Reader<'_>, depth: usize, out: &mut Vec<u8>) {
        while let Some(whole) = reader.clone().whole() {
            let (tag, content) = reader.next().expect("whole");
            if depth == 0 || tag & 0x20 == 0 && tag != der::OCTET_STRING {
                out.extend(whole);
            } else if tag == der::OCTET_STRING {
                out.extend([0x24, 0x80]);
                for piece in content.chunks(100) {
                    out.extend(der::element(der::OCTET_STRING, &[piece]));
                }
                out.extend([0, 0]);
            } else {
                out.extend([tag, 0x80]);
                write(&mut der::Reader::new(content), depth - 1, out);
                out.extend([0, 0]);
            }
        }
    }
    let mut out = Vec::new();
    write(&mut der::Reader::new(der), 4, &mut out);
    out
}

#[test]
fn a_file_cannot_ask_for_minutes_of_work() {
    let desk = Desk::new();
    desk.sh(
        r#"
        openssl pkcs12 -export -inkey key.pem -in leaf.pem -passout "pass:$P" -iter 3000000 -nomac -keypbe NONE -certpbe AES-256-CBC -out costly.p12 &
        openssl pkcs8 -topk8 -in key.pem -passout "pass:$P" -iter 3000000 -out costly.pem
        openssl pkcs8 -topk8 -in key.pem -passout "pass:$P" -scrypt -outform DER -out scrypt.der
        wait
        "#,
    );
    // openssl itself refuses to write it: r becomes 127 instead of 8.
    let mut der = std::fs::read(desk.path("scrypt.der")).expect("there");
    let n_r_p = [2, 2, 0x40, 0, 2, 1, 8, 2, 1, 1];
    let at = der.windows(10).position(|window| window == n_r_p);
    der[at.expect("the parameters are there") + 6] = 0x7f;
    std::fs::write(desk.path("costly.der"), der).expect("written");
    for file in ["costly.p12", "costly.pem", "costly.der"] {
        let begun = std::time::Instant::now();
        assert_eq!(code(desk.read(file)), "too_large", "{file}");
        assert!(
            begun.elapsed() < std::time::Duration::from_secs(3),
            "{file}"
        );
    }
}

#[test]
fn wrong_things_are_told_in_one_sentence() {
    let desk = Desk::new();
    desk.sh(
        r#"
        openssl dhparam -out dh.pem -dsaparam 1024 2>/dev/null || openssl dhparam -dsaparam 1024 > dh.pem
        openssl pkey -in key.pem -pubout -out public.pem
        openssl pkey -in key.pem -pubout -outform DER -out public.der
        openssl req -in leaf.csr -outform DER -out csr.der
        ssh-keygen -q -t ecdsa -N '' -f ssh || {
            printf -- '-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmU=\n-----END OPENSSH PRIVATE KEY-----\n' > ssh
            echo 'ecdsa-sha2-nistp256 AAAA' > ssh.pub; }
        printf 'PK\003\004 and so on' > a.zip
        printf '\n<!DOCTYPE html><html>log in</html>' > page.html
        : > empty
        printf -- '-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmQENBF\n=Ab12\n-----END PGP PUBLIC KEY BLOCK-----\n' > pgp.asc
        openssl genrsa -out small.key 1024
        openssl ecparam -name secp521r1 -genkey -noout -out p521.key
        openssl rand 300 > noise; printf '0\202\001\050' | cat - noise > noise.der
        head -c 2000000 /dev/zero > large
        cat leaf.pem dh.pem > with-dh.pem
        sed 's/PRIVATE KEY/CERTIFICATE/;s/RSA CERT/CERT/' key.pem > mislabelled.pem
        "#,
    );
    let mut passwords = Passwords::default();
    let server = CertificateKind::Server;
    for (file, as_chain, as_key, word) in [
        (
            "leaf.csr",
            "no_certificate",
            "key_missing",
            "signing request",
        ),
        (
            "csr.der",
            "no_certificate",
            "key_missing",
            "signing request",
        ),
        ("public.pem", "no_certificate", "key_missing", "public key"),
        ("public.der", "no_certificate", "key_missing", "public key"),
        ("pgp.asc", "no_certificate", "key_missing", "OpenPGP"),
        ("ssh", "key_unsupported", "key_unsupported", "OpenSSH"),
        ("ssh.pub", "not_pem", "not_pem", "SSH"),
        ("a.zip", "not_pem", "not_pem", "ZIP"),
        ("page.html", "not_pem", "not_pem", "web page"),
        ("empty", "not_pem", "key_missing", "empty"),
        ("noise.der", "not_pem", "not_pem", "binary"),
        ("large", "too_large", "too_large", "large"),
        (
            "with-dh.pem",
            "dh_parameters_present",
            "dh_parameters_present",
            "DH",
        ),
        ("small.key", "key_too_small", "key_too_small", "1024 bits"),
        ("p521.key", "key_unsupported", "key_unsupported", "curve"),
        ("key.pem", "no_certificate", "ok", "private key"),
        ("leaf.pem", "ok", "key_missing", "private key"),
        (
            "mislabelled.pem",
            "pem_malformed",
            "pem_malformed",
            "private key",
        ),
    ] {
        let path = desk.path(file);
        let chain = upload(&path, None, server, &mut passwords);
        let key = key(&path, &mut passwords);
        let told = format!("{:?} {:?}", chain.as_ref().err(), key.as_ref().err());
        assert!(told.contains(word), "{file}: {told}");
        for failure in [chain.as_ref().err(), key.as_ref().err()]
            .into_iter()
            .flatten()
        {
            let Failure::Refused(refused) = failure else {
                panic!("{file}: {failure:?}")
            };
            assert!(
                !refused.told.reasons[0].hint.is_empty(),
                "{file} has no hint"
            );
        }
        assert_eq!(code(chain), as_chain, "{file} as a chain");
        assert_eq!(code(key), as_key, "{file} as a key");
    }
    for result in [
        read(desk.folder.path(), &mut passwords),
        read(&desk.path("none"), &mut passwords),
    ] {
        assert!(matches!(result, Err(Failure::CouldNotRun(_))));
    }
}

#[test]
fn nothing_of_a_broken_file_is_sent_or_quoted() {
    let desk = Desk::new();
    let key = std::fs::read_to_string(desk.path("key.pem")).expect("there");
    let leaf = std::fs::read_to_string(desk.path("leaf.pem")).expect("there");
    let secret = key.lines().nth(3).expect("a line").to_owned();
    for text in [
        key.replace("-----END RSA PRIVATE KEY-----\n", ""),
        key.replace("-----BEGIN RSA PRIVATE KEY-----\n", ""),
        format!("-----BEGIN CERTIFICATE-----\n{key}-----END CERTIFICATE-----\n"),
        key.replace("END RSA PRIVATE KEY", "END CERTIFICATE"),
        key.replace("-----BEGIN", "----BEGIN"),
        key.replace(&secret, &format!("!{secret}")),
    ] {
        let text = format!("{leaf}{text}");
        let result = parse(text.as_bytes(), "a file", &mut Passwords::default());
        let failure = result.err().expect("it is refused");
        assert!(!format!("{failure:?}").contains(&secret));
        assert_eq!(code::<()>(Err(failure)), "pem_malformed");
    }
    // Text around whole blocks is left out, a key without its frame in it too.
    let bare: String = key.lines().filter(|l| !l.starts_with('-')).collect();
    std::fs::write(desk.path("around"), format!("{bare}\n{leaf}\nnote\n")).expect("written");
    let server = CertificateKind::Server;
    let sent = upload(
        &desk.path("around"),
        None,
        server,
        &mut Passwords::default(),
    )
    .expect("read");
    assert!(!sent.chain.contains(&secret) && !sent.chain.contains("note"));
    assert_eq!(sent.notes.len(), 1);
}
