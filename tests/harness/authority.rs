//! A CA that revokes, as OpenSSL keeps one: an index, OCSP answers, CRLs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use time::OffsetDateTime;

use crate::{Leaf, ended, free_port, signal};

const CONFIG: &str = "
[req]
distinguished_name = dn
prompt = no
[dn]
CN = unused
[ca]
default_ca = issuing
[root]
database = root.index
new_certs_dir = .
serial = root.serial
crlnumber = root.crlnumber
certificate = root.pem
private_key = root.key
default_md = sha256
default_days = 60
default_crl_days = 7
policy = any
unique_subject = no
[issuing]
database = ca.index
new_certs_dir = .
serial = ca.serial
crlnumber = ca.crlnumber
certificate = ca.pem
private_key = ca.key
default_md = sha256
default_days = 30
default_crl_days = 7
policy = any
unique_subject = no
[any]
commonName = supplied
[v3_ca]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[v3_responder]
keyUsage = critical, digitalSignature
extendedKeyUsage = OCSPSigning
[v3_leaf]
basicConstraints = CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
authorityKeyIdentifier = keyid
";

/// Where certificates point to.
#[derive(Clone, Debug, Default)]
pub struct Points {
    /// An OCSP responder.
    pub ocsp: Option<String>,
    /// A CRL.
    pub crl: Option<String>,
}

impl Points {
    /// An OCSP responder.
    #[must_use]
    pub fn ocsp(url: impl Into<String>) -> Self {
        Self {
            ocsp: Some(url.into()),
            crl: None,
        }
    }

    /// A CRL.
    #[must_use]
    pub fn crl(url: impl Into<String>) -> Self {
        Self {
            ocsp: None,
            crl: Some(url.into()),
        }
    }

    fn extensions(&self) -> String {
        let ocsp = self
            .ocsp
            .iter()
            .map(|url| format!("authorityInfoAccess = OCSP;URI:{url}\n"));
        let crl = self
            .crl
            .iter()
            .map(|url| format!("crlDistributionPoints = URI:{url}\n"));
        ocsp.chain(crl).collect()
    }
}

/// A root and an issuing CA below it, in a folder.
#[derive(Debug)]
pub struct Authority {
    folder: TempDir,
}

impl Default for Authority {
    fn default() -> Self {
        Self::new(&Points::default())
    }
}

impl Authority {
    /// A new one. The issuing CA's own certificate points there.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(issuing: &Points) -> Self {
        let authority = Self {
            folder: tempfile::tempdir().expect("a folder"),
        };
        for of in ["root", "ca"] {
            authority.write(&format!("{of}.index"), "");
            authority.write(&format!("{of}.serial"), "4000000000000001");
            authority.write(&format!("{of}.crlnumber"), "01");
        }
        authority.write("openssl.cnf", CONFIG);
        authority.openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout root.key -out root.pem -days 60 -subj /CN=Revoking-root -extensions v3_ca");
        authority.certify("root", "ca", "Revoking-CA", "v3_ca", &issuing.extensions());
        authority.certify("issuing", "responder", "Responder", "v3_responder", "");
        authority
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The file with the root.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.path("root.pem")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
    }

    fn openssl(&self, words: &str) {
        let output = Command::new("openssl")
            .args(words.split_whitespace())
            .current_dir(self.folder.path())
            .env("OPENSSL_CONF", self.path("openssl.cnf"))
            .output()
            .expect("openssl is installed");
        assert!(
            output.status.success(),
            "openssl {words}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn certify(&self, by: &str, name: &str, subject: &str, section: &str, further: &str) {
        self.openssl(&format!(
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj /CN={subject}"
        ));
        let of_section = CONFIG
            .split(&format!("[{section}]\n"))
            .nth(1)
            .and_then(|rest| rest.split("\n[").next())
            .unwrap_or_else(|| panic!("no section {section}"));
        self.write(
            &format!("{name}.ext"),
            &format!("[here]\n{of_section}\n{further}\n"),
        );
        self.openssl(&format!(
            "ca -batch -notext -name {by} -in {name}.csr -out {name}.pem -extfile {name}.ext -extensions here"
        ));
        self.openssl(&format!("x509 -in {name}.pem -outform DER -out {name}.der"));
    }

    /// A leaf for a host that points there.
    ///
    /// # Panics
    /// When it cannot be issued.
    #[must_use]
    pub fn issue(&self, name: &str, host: &str, points: &Points) -> Leaf {
        let further = format!("subjectAltName = DNS:{host}\n{}", points.extensions());
        self.certify("issuing", name, name, "v3_leaf", &further);
        let read = |of: &str| fs::read(self.path(of)).expect("it was written");
        let chain = [read(&format!("{name}.pem")), read("ca.pem")].concat();
        fs::write(self.path(&format!("{name}.chain.pem")), chain).expect("written");
        self.openssl(&format!(
            "pkey -in {name}.key -outform DER -out {name}.key.der"
        ));
        Leaf::in_files(
            self.path(&format!("{name}.chain.pem")),
            self.path(&format!("{name}.key")),
            read(&format!("{name}.der")),
            read(&format!("{name}.key.der")),
            OffsetDateTime::now_utc() + Duration::from_secs(30 * 86_400),
        )
    }

    /// Revokes a leaf by the name that it was issued under.
    pub fn revoke(&self, name: &str, reason: &str) {
        self.openssl(&format!("ca -revoke {name}.pem -crl_reason {reason}"));
    }

    /// Revokes the issuing CA itself.
    pub fn revoke_issuing(&self) {
        self.openssl("ca -name root -revoke ca.pem -crl_reason cACompromise");
    }

    /// Forgets that anything was revoked.
    pub fn forgive(&self) {
        let index = fs::read_to_string(self.path("ca.index")).expect("it is there");
        let valid = |line: &str| {
            let mut fields: Vec<&str> = line.split('\t').collect();
            if fields[0] == "R" {
                (fields[0], fields[2]) = ("V", "");
            }
            fields.join("\t") + "\n"
        };
        let text: String = index.lines().map(valid).collect();
        self.write("ca.index", &text);
    }

    /// The CRL of the issuing CA or, by `root`, of the root, DER, with further words for `openssl ca -gencrl`.
    #[must_use]
    pub fn crl(&self, of: &str, further: &str) -> Vec<u8> {
        self.openssl(&format!("ca -name {of} -gencrl -out list.pem {further}"));
        self.openssl("crl -in list.pem -outform DER -out list.der");
        fs::read(self.path("list.der")).expect("it was written")
    }

    /// An OCSP answer about a leaf of this CA's index, signed by whose files those are, whoever that is.
    #[must_use]
    pub fn answer(&self, name: &str, signer: &Path) -> Vec<u8> {
        let signer = signer.display();
        self.openssl(&format!(
            "ocsp -index ca.index -CA ca.pem -rsigner {signer}.pem -rkey {signer}.key -issuer ca.pem -cert {name}.pem -nmin 60 -respout answer.der -no_nonce -noverify"
        ));
        fs::read(self.path("answer.der")).expect("it was written")
    }
}

/// `openssl ocsp` as a server over an authority's index, which it reads anew when it changes.
#[derive(Debug)]
pub struct Responder {
    child: Child,
    port: u16,
}

impl Responder {
    /// Starts it, signing as a responder that the CA appointed.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(authority: &Authority) -> Self {
        Self::at(authority, free_port())
    }

    /// At a port.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn at(authority: &Authority, port: u16) -> Self {
        let child = Command::new("openssl")
            .args(["ocsp", "-index", "ca.index", "-CA", "ca.pem"])
            .args(["-rsigner", "responder.pem", "-rkey", "responder.key"])
            .args(["-nmin", "10", "-port", &port.to_string()])
            .current_dir(authority.folder())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl is installed");
        Self { child, port }
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        signal(&self.child, Signal::TERM);
        if ended(&mut self.child, Duration::from_secs(2)).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
