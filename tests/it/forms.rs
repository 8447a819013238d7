//! What people have in files, through the real command line to a served handshake; and what they have by mistake, to a refusal
//! with its code and the command that mends it.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use harness::{Cli, Outcome, SOON, eventually, handshake, sha256};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::stage::{Stage, wait};

/// A folder with a root, an intermediate, and a shell that issues certificates with openssl.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir().expect("a folder"));
        desk.sh(
            r#"
            newkey() { openssl ecparam -name prime256v1 -genkey -noout -out $1; }
            newkey root.key; newkey int.key
            openssl req -x509 -new -key root.key -subj "/CN=Forms root" -days 30 -out root.pem -addext keyUsage=keyCertSign
            openssl req -new -key int.key -subj "/CN=Forms issuing" -out int.csr
            printf 'basicConstraints=critical,CA:true\nkeyUsage=keyCertSign\n' > ca.ext
            openssl x509 -req -in int.csr -CA root.pem -CAkey root.key -CAcreateserial -days 30 -extfile ca.ext -out int.pem
            "#,
        );
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a script with `newkey FILE` and `issue NAME HOST [openssl's arguments]`, which makes NAME.key, unless it is there,
    /// and NAME.pem.
    fn sh(&self, script: &str) {
        const FUNCTIONS: &str = r#"
            newkey() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }
            issue() {
                name=$1 host=$2; shift 2
                [ -e $name.key ] || newkey $name.key
                [ -e $name.csr ] || openssl req -new -key $name.key -subj "/CN=$name" -out $name.csr
                [ -e $name.ext ] || printf "subjectAltName=DNS:$host\nextendedKeyUsage=serverAuth\n" > $name.ext
                openssl x509 -req -in $name.csr -CA int.pem -CAkey int.key -CAcreateserial -days 20 -extfile $name.ext -out $name.pem "$@"
            }
        "#;
        let output = Command::new("sh")
            .args(["-ec", &format!("{FUNCTIONS}\n{script}")])
            .current_dir(self.0.path())
            .output()
            .expect("sh runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {said}");
    }

    /// SHA-256 of the certificates in these files.
    fn fingerprints(&self, names: &[&str]) -> Vec<String> {
        let text = |name: &&str| fs::read_to_string(self.path(name)).expect("it was made");
        let text: String = names.iter().map(text).collect();
        fingerprints(&text)
    }

    /// Words, those behind a colon being files of this folder.
    fn words(&self, words: &str) -> Vec<String> {
        let word = |word: &str| match word.strip_prefix(':') {
            Some(file) => self.path(file).display().to_string(),
            None => word.to_owned(),
        };
        words.split_whitespace().map(word).collect()
    }

    fn run(&self, user: &Cli, words: &str) -> Outcome {
        user.run(&self.words(words))
    }
}

fn fingerprints(text: &str) -> Vec<String> {
    text.split("-----BEGIN CERTIFICATE-----")
        .skip(1)
        .map(|rest| {
            let body = rest.split("-----END").next().unwrap_or_default();
            let body: String = body.split_whitespace().collect();
            let der = data_encoding::BASE64.decode(body.as_bytes());
            sha256(&der.expect("PEM"))
        })
        .collect()
}

/// Waits until the whole chain is served that these files hold.
fn serves(desk: &Desk, https: SocketAddr, host: &str, files: &[&str]) {
    let expected = desk.fingerprints(files);
    eventually(&format!("{host} is served with its chain"), SOON, || {
        let served = fingerprints(&handshake(https, host, &[]).said);
        if served == expected {
            Ok(())
        } else {
            Err(format!("{served:?} instead of {expected:?}"))
        }
    });
}

fn repairs(answer: &Value) -> Vec<String> {
    let told = answer["repairs"].as_array().into_iter().flatten();
    told.map(|repair| repair["repair"].as_str().unwrap_or_default().to_owned())
        .collect()
}

fn keytool() -> bool {
    let there = Command::new("keytool")
        .arg("-help")
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .is_ok();
    if !there {
        println!(
            "skipped what needs keytool: no Java is installed (Debian: apt-get install openjdk-17-jre-headless)"
        );
    }
    there
}

#[test]
fn every_form_is_served() {
    let stage = Stage::new();
    let desk = Desk::new();
    stage.resource("media", "bucket", &["local"]);
    let https = stage.chancery.https();
    // Name, what makes the files, the words, the certificates that are served, and the repairs.
    type Form = (
        &'static str,
        &'static str,
        &'static str,
        &'static [&'static str],
        &'static [&'static str],
    );
    const INT: &str = "int.pem";
    let forms: &[Form] = &[
        (
            "windows",
            r#"{ printf '\357\273\277Dear customer,\r\n\r\n'; cat $n.pem int.pem | sed 's/$/\r/'; } > $n.chain; cp $n.key $n.k"#,
            "--chain :$n.chain --key :$n.k",
            &["$n.pem", INT],
            &[],
        ),
        (
            "reversed",
            "cat root.pem int.pem $n.pem int.pem $n.pem > $n.chain; cp $n.key $n.k",
            "--chain :$n.chain --key :$n.k",
            &["$n.pem", INT],
            &["duplicate_dropped", "root_dropped", "reordered"],
        ),
        (
            "stranger",
            "newkey s.key; openssl req -x509 -new -key s.key -subj /CN=stranger -out s.pem; cat s.pem $n.key $n.pem int.pem > $n.both",
            "--chain :$n.both",
            &["$n.pem", INT],
            &["unrelated_dropped"],
        ),
        (
            "alone",
            "cp $n.key $n.k",
            "--chain :$n.pem --key :$n.k",
            &["$n.pem", INT],
            &["intermediate_added"],
        ),
        (
            "der",
            "openssl x509 -in $n.pem -outform DER -out $n.cer; openssl pkey -in $n.key -outform DER -out $n.der",
            "--chain :$n.cer --key :$n.der",
            &["$n.pem", INT],
            &["intermediate_added"],
        ),
        (
            "p7b",
            "openssl crl2pkcs7 -nocrl -certfile int.pem -certfile $n.pem -certfile root.pem -outform DER -out $n.p7b",
            "--chain :$n.p7b --key :$n.key",
            &["$n.pem", INT],
            &["root_dropped", "reordered"],
        ),
        (
            "pfx",
            "openssl pkcs12 -export -inkey $n.key -in $n.pem -certfile int.pem -passout pass:geheim -out $n.pfx; echo geheim > $n.pw",
            "--chain :$n.pfx --password-file :$n.pw",
            &["$n.pem", INT],
            &[],
        ),
        (
            "legacy",
            "openssl pkcs12 -export -legacy -inkey $n.key -in $n.pem -certfile int.pem -passout pass:geheim -out $n.pfx; echo geheim > $n.pw",
            "--chain :$n.pfx --password-file :$n.pw",
            &["$n.pem", INT],
            &[],
        ),
        (
            "openpfx",
            "openssl pkcs12 -export -inkey $n.key -in $n.pem -certfile int.pem -passout pass: -out $n.pfx",
            "--chain :$n.pfx",
            &["$n.pem", INT],
            &[],
        ),
        (
            "encrypted",
            "cat $n.pem int.pem > $n.chain; openssl pkcs8 -topk8 -in $n.key -passout pass:geheim -out $n.enc; echo geheim > $n.pw",
            "--chain :$n.chain --key :$n.enc --password-file :$n.pw",
            &["$n.pem", INT],
            &[],
        ),
        (
            "traditional",
            "cat $n.pem int.pem > $n.chain; openssl ec -in $n.key -aes256 -passout pass:geheim -out $n.enc; echo geheim > $n.pw",
            "--chain :$n.chain --key :$n.enc --password-file :$n.pw",
            &["$n.pem", INT],
            &[],
        ),
    ];
    for (name, script, words, served, told) in forms {
        let host = format!("{name}.example.com");
        let named = |text: &str| text.replace("$n", name);
        stage.domain(&host, "media");
        desk.sh(&named(&format!("issue {name} {host}\n{script}")));
        let add = format!("certificate add {name} --region local {}", named(words));
        let answer = desk.run(&stage.alice, &add).ok().json();
        let mut told: Vec<String> = told.iter().map(|word| (*word).to_owned()).collect();
        let mut repairs = repairs(&answer);
        repairs.dedup();
        repairs.sort();
        told.sort();
        assert_eq!(repairs, told, "{name}: {answer}");
        wait(&stage.alice, name, "ready");
        let served: Vec<String> = served.iter().map(|file| named(file)).collect();
        let served: Vec<&str> = served.iter().map(String::as_str).collect();
        serves(&desk, https, &host, &served);
    }

    if keytool() {
        stage.domain("java.example.com", "media");
        desk.sh(r#"
            printf 'subjectAltName=DNS:java.example.com\n' > java.ext
            store() { keytool "$@" -keystore java.p12 -storepass changeit -noprompt; }
            store -genkeypair -alias site -keyalg RSA -keysize 2048 -dname CN=java -storetype PKCS12
            store -certreq -alias site -file java.csr
            touch java.key
            issue java java.example.com
            cat java.pem int.pem root.pem > reply.pem
            store -importcert -alias root -file root.pem
            store -importcert -alias site -file reply.pem
            echo changeit > java.pw
            "#);
        let add = "certificate add java --region local --chain :java.p12 --password-file :java.pw";
        desk.run(&stage.alice, add).ok();
        wait(&stage.alice, "java", "ready");
        serves(&desk, https, "java.example.com", &["java.pem", INT]);
    }

    // A person is told what was done, and a replacement is repaired as well.
    desk.sh("cp windows.key next.key; issue next windows.example.com; cat root.pem int.pem next.pem > again.pem");
    let file = |name: &str| desk.path(name).display().to_string();
    let (chain, key) = (file("again.pem"), file("windows.k"));
    let words = [
        "certificate",
        "replace",
        "windows",
        "--chain",
        &chain,
        "--key",
        &key,
    ];
    let said = stage.alice.say(&words).ok();
    assert!(said.stderr.contains("repaired: "), "{said:?}");
    assert!(said.stderr.contains("put in order"), "{said:?}");
    assert!(
        said.stderr.contains("is a root and was left out"),
        "{said:?}"
    );

    // A password on the terminal: asked for, not shown, and Ctrl-C gives up.
    asked_at_the_terminal(&stage, &desk);
}

fn asked_at_the_terminal(stage: &Stage, desk: &Desk) {
    let typed = |keys: &str| {
        let words = format!(
            "{} certificate add typed --region local --chain {} --json",
            harness::binary().display(),
            desk.path("pfx.pfx").display()
        );
        let mut child = Command::new("script")
            .args(["-qec", &words, "/dev/null"])
            .envs(stage.alice.environment())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("script is part of every Debian");
        let mut stdin = child.stdin.take().expect("piped");
        let mut stdout = child.stdout.take().expect("piped");
        let mut said = Vec::new();
        // Typed when it was asked, as people do.
        let mut byte = [0];
        while !said.ends_with(b"pfx.pfx: ") {
            let read = std::io::Read::read(&mut stdout, &mut byte).expect("it speaks");
            assert!(read == 1, "{}", String::from_utf8_lossy(&said));
            said.push(byte[0]);
        }
        std::io::Write::write_all(&mut stdin, keys.as_bytes()).expect("typed");
        std::io::Write::flush(&mut stdin).expect("typed");
        std::io::Read::read_to_end(&mut stdout, &mut said).expect("it ends");
        drop(stdin);
        let status = child.wait().expect("it ends");
        (status.code(), String::from_utf8_lossy(&said).into_owned())
    };
    let (status, said) = typed("geheimm\u{7f}\r");
    assert_eq!(status, Some(0), "{said}");
    assert!(!said.contains("geheim"), "{said}");
    let (status, said) = typed("gehe\u{3}");
    assert_eq!(status, Some(2), "{said}");
    assert!(!said.contains("gehe"), "{said}");
}

#[test]
fn every_refusal_says_what_mends_it() {
    let stage = Stage::new();
    let desk = Desk::new();
    desk.sh(
        r#"
        issue good www.example.com; cat good.pem int.pem > chain.pem
        issue other other.example.com
        issue small small.example.com
        openssl genrsa -out rsa1024.key 1024; cp rsa1024.key tiny.key; issue tiny tiny.example.com; cat tiny.pem int.pem > tiny.chain
        openssl ecparam -name secp521r1 -genkey -noout -out p521.key
        openssl pkcs8 -topk8 -in good.key -passout pass:geheim -out encrypted.key
        openssl pkcs12 -export -inkey good.key -in good.pem -passout pass:geheim -out good.pfx
        echo falsch > wrong
        openssl dhparam -dsaparam -out dh.pem 1024
        cat chain.pem dh.pem > with-dh.pem
        cat good.key other.key good.pem other.pem int.pem > keys.pem
        head -c 900 chain.pem > cut.pem
        : > empty
        printf '<html><body>Please log in</body></html>' > page.html
        openssl pkey -in good.key -pubout -out public.pem
        ssh-keygen -q -t ed25519 -N '' -f ssh.key || printf -- '-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmU=\n-----END OPENSSH PRIVATE KEY-----\n' > ssh.key
        issue sha1 sha1.example.com -sha1; cat sha1.pem int.pem > sha1.chain
        issue old old.example.com -days -1 2>/dev/null || true
        openssl req -new -key good.key -subj /CN=x -out date.csr
        touch index.txt; echo 01 > serial
        printf '[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\nunique_subject=no\n[p]\ncommonName=supplied\n' > ca.cnf
        printf 'subjectAltName=DNS:www.example.com\n' > date.ext
        ca() { openssl ca -batch -config ca.cnf -cert int.pem -keyfile int.key -in date.csr -extfile date.ext -notext "$@"; }
        ca -startdate 20200101000000Z -enddate 20210101000000Z -out expired.pem; cat expired.pem int.pem > expired.chain
        ca -startdate 20990101000000Z -enddate 20991231000000Z -out early.pem; cat early.pem int.pem > early.chain
        printf 'subjectAltName=DNS:client.example.com\nextendedKeyUsage=clientAuth\n' > client.ext
        issue client client.example.com; cat client.pem int.pem > client.chain
        head -c 1500000 /dev/zero | tr '\0' 'x' > large.pem
        for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21; do cat int.pem; done > many.pem
        newkey far.key; openssl req -x509 -new -key far.key -subj "/CN=Far" -out far.pem -addext keyUsage=keyCertSign
        newkey lone.key; openssl req -new -key lone.key -subj /CN=lone -out lone.csr
        printf 'subjectAltName=DNS:lone.example.com\n' > lone.ext
        openssl x509 -req -in lone.csr -CA far.pem -CAkey far.key -CAcreateserial -days 5 -extfile lone.ext -out lone.pem
        cat good.pem other.pem int.pem > twoleaves.pem
        openssl x509 -req -in good.csr -CA int.pem -CAkey int.key -CAcreateserial -days 9 -extfile good.ext -out good2.pem
        cat good.pem good2.pem int.pem > renewed.pem
        printf 'PK\003\004' > archive.zip
        mkdir folder
        "#,
    );
    // The code, the words behind `certificate add x --region local`, what the message says, and what the hint says.
    let mut table = vec![
        (
            "pem_malformed",
            "--chain :cut.pem --key :good.key",
            "cut off",
            "openssl x509",
        ),
        (
            "pem_malformed",
            "--chain :renewed.pem --key :good.key",
            "certificates 1 and 2",
            "openssl",
        ),
        (
            "no_certificate",
            "--chain :good.csr --key :good.key",
            "signing request",
            "CA",
        ),
        (
            "no_certificate",
            "--chain :good.key",
            "private key but no certificate",
            "--chain",
        ),
        (
            "no_certificate",
            "--chain :public.pem --key :good.key",
            "public key",
            "private key",
        ),
        (
            "not_pem",
            "--chain :page.html --key :good.key",
            "web page",
            "Download it again",
        ),
        (
            "not_pem",
            "--chain :archive.zip --key :good.key",
            "ZIP",
            "unzip",
        ),
        (
            "not_pem",
            "--chain :empty --key :good.key",
            "empty",
            "chancery certificate add",
        ),
        ("key_missing", "--chain :chain.pem", "private key", "--key"),
        (
            "key_missing",
            "--chain :chain.pem --key :chain.pem",
            "no private key",
            "BEGIN PRIVATE KEY",
        ),
        (
            "key_missing",
            "--chain :chain.pem --key :empty",
            "empty",
            "--key",
        ),
        (
            "key_missing",
            "--chain :chain.pem --key :good.csr",
            "signing request",
            "--key",
        ),
        (
            "key_unexpected",
            "--chain :keys.pem",
            "private keys",
            "--key",
        ),
        (
            "key_unexpected",
            "--kind ca --chain :int.pem --key :int.key",
            "client trust",
            "leave the private key out",
        ),
        (
            "key_mismatch",
            "--chain :chain.pem --key :other.key",
            "does not belong",
            "openssl x509",
        ),
        (
            "key_encrypted",
            "--chain :chain.pem --key :encrypted.key",
            "password",
            "--password-file",
        ),
        (
            "key_encrypted",
            "--chain :good.pfx",
            "password",
            "--password-file",
        ),
        (
            "key_encrypted",
            "--chain :good.pfx --password-file :wrong",
            "not opened by this password",
            "openssl pkcs12",
        ),
        (
            "key_unsupported",
            "--chain :chain.pem --key :p521.key",
            "curve",
            "openssl ecparam",
        ),
        (
            "key_unsupported",
            "--chain :chain.pem --key :ssh.key",
            "OpenSSH",
            "ssh-keygen -p -m PKCS8",
        ),
        (
            "key_too_small",
            "--chain :tiny.chain --key :tiny.key",
            "1024 bits",
            "openssl genrsa",
        ),
        (
            "signature_weak",
            "--chain :sha1.chain --key :sha1.key",
            "SHA-1",
            "SHA-256",
        ),
        (
            "dh_parameters_present",
            "--chain :with-dh.pem --key :good.key",
            "DH parameters",
            "Remove",
        ),
        (
            "chain_incomplete",
            "--chain :lone.pem --key :lone.key",
            "intermediate",
            "cat cert.pem intermediate.pem",
        ),
        (
            "not_yet_valid",
            "--chain :early.chain --key :good.key",
            "2099-01-01",
            "time",
        ),
        (
            "expired",
            "--chain :expired.chain --key :good.key",
            "2021-01-01",
            "certificate replace",
        ),
        (
            "not_a_server_certificate",
            "--chain :client.chain --key :client.key",
            "server authentication",
            "serverAuth",
        ),
        (
            "not_a_server_certificate",
            "--chain :int.pem --key :int.key",
            "CA certificate",
            "--kind ca",
        ),
        (
            "too_large",
            "--chain :large.pem --key :good.key",
            "bytes",
            "right file",
        ),
        (
            "too_large",
            "--chain :many.pem --key :good.key",
            "20 certificates",
            "leave the others out",
        ),
    ];
    if keytool() {
        desk.sh("keytool -genkeypair -alias a -keyalg EC -groupname secp256r1 -dname CN=x -storetype JKS -keystore store.jks -storepass changeit -keypass changeit");
        table.push((
            "not_pem",
            "--chain :store.jks --key :good.key",
            "Java keystore",
            "keytool -importkeystore",
        ));
    }
    for (code, words, message, hint) in table {
        let add = format!("certificate add x --region local {words}");
        let outcome = desk.run(&stage.alice, &add);
        assert_eq!(outcome.refused(), code, "{words}: {outcome:#?}");
        let problem = outcome.json();
        let reason = &problem["reasons"][0];
        assert_eq!(reason["code"], code);
        let said = reason["message"].as_str().unwrap_or_default().to_owned();
        let mends = reason["hint"].as_str().unwrap_or_default().to_owned();
        assert!(said.contains(message), "{code} {words}: {said}");
        assert!(mends.contains(hint), "{code} {words}: {mends}");
        let page = harness::checkout().join(format!("docs/errors/{code}.md"));
        assert!(page.is_file(), "{code} has no page");
        // A person reads the same in two lines.
        let told = stage.alice.say(&desk.words(&add));
        assert!(told.stderr.contains(&format!("error[{code}]")), "{told:?}");
        assert!(told.stderr.contains(&mends), "{told:?}");
    }
    // A folder and a file that is not there are mistakes in the command, not in a certificate.
    for words in [
        "--chain :folder --key :good.key",
        "--chain :none --key :good.key",
    ] {
        let outcome = desk.run(
            &stage.alice,
            &format!("certificate add x --region local {words}"),
        );
        assert_eq!(outcome.status, 2, "{outcome:?}");
    }
    // Nothing of all this has left a trace.
    let listed = stage.alice.run(&["certificate", "list"]).ok().lines();
    assert_eq!(listed, Vec::<Value>::new());

    // The name counts when a certificate is bound.
    stage.bucket("www.example.com");
    // Alone it leads nowhere until the project has shown its intermediate.
    let add_other = "certificate add other --region local --chain :other.pem --key :other.key";
    assert_eq!(
        desk.run(&stage.alice, add_other).refused(),
        "chain_incomplete"
    );
    desk.run(
        &stage.alice,
        "certificate add good --region local --chain :chain.pem --key :good.key",
    )
    .ok();
    desk.run(&stage.alice, add_other).ok();
    wait(&stage.alice, "other", "ready");
    let bound = stage
        .alice
        .run(&["domain", "bind", "www.example.com", "other"]);
    assert_eq!(bound.refused(), "name_mismatch");
    assert_ne!(bound.json()["reasons"][0]["hint"], json!(""));
}

/// The command line never sends one, so this is what a program hears that does.
#[test]
fn a_key_in_the_clear_is_burnt_wherever_it_stands() {
    let label = concat!("-----BEGIN ", "PRIVATE KEY-----");
    for body in [
        json!({"name": "x", "regions": ["local"], "chain": "c", "key": label}),
        json!({"name": "x", "regions": ["local"], "chain": format!("c\n{label}\nAAAA")}),
    ] {
        for verb in ["add", "replace"] {
            let body = body.to_string();
            let refused = wire::request::parse("acme", "certificate", verb, body.as_bytes());
            let problem = refused.expect_err("it is refused");
            assert_eq!(problem.code.as_str(), "key_in_clear");
            assert!(problem.reasons[0].hint.contains("chancery seal"));
        }
    }
}
