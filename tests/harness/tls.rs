//! Real TLS clients: curl, and openssl for what a handshake alone shows.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use crate::Ca;

/// What curl got.
#[derive(Clone, Debug)]
pub struct Curl {
    /// curl's own exit status.
    pub exit: i32,
    /// The HTTP status; 0 when there was no answer.
    pub status: u16,
    /// `1.1` or `2`.
    pub version: String,
    /// The headers as they came.
    pub headers: String,
    /// The body.
    pub body: String,
    /// What curl complained about.
    pub complaint: String,
}

impl Curl {
    /// The body, if the answer is 200.
    ///
    /// # Errors
    /// What came instead.
    pub fn ok(self) -> Result<String, String> {
        if self.exit == 0 && self.status == 200 {
            Ok(self.body)
        } else {
            Err(format!("{self:?}"))
        }
    }
}

/// Asks for a URL whose host is found at `address`, with further arguments for curl. Certificates are checked against
/// the CA's root.
///
/// # Panics
/// When curl cannot be run.
#[must_use]
pub fn curl(ca: &Ca, address: SocketAddr, url: &str, further: &[&str]) -> Curl {
    const MARK: &str = "\n\u{1}chancery ";
    let host = url
        .split_once("://")
        .map_or(url, |(_, rest)| rest)
        .split('/')
        .next()
        .unwrap_or_default();
    let name = host.split(':').next().unwrap_or_default();
    let with_port = url.replacen(host, &format!("{name}:{}", address.port()), 1);
    let output = Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--include",
            "--max-time",
            "20",
            "--noproxy",
            "*",
        ])
        .args([
            "--resolve",
            &format!("{name}:{}:{}", address.port(), address.ip()),
        ])
        .arg("--cacert")
        .arg(ca.root())
        .args([
            "--write-out",
            &format!("{MARK}%{{http_code}} %{{http_version}}"),
        ])
        .args(further)
        .arg(with_port)
        .stdin(Stdio::null())
        .output()
        .expect("curl is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (answer, told) = text.rsplit_once(MARK).unwrap_or((&text, "0 0"));
    let (headers, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let (status, version) = told.split_once(' ').unwrap_or(("0", "0"));
    Curl {
        exit: output.status.code().unwrap_or(-1),
        status: status.parse().unwrap_or(0),
        version: version.to_owned(),
        headers: headers.to_owned(),
        body: body.to_owned(),
        complaint: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// What `openssl s_client` saw.
#[derive(Clone, Debug)]
pub struct Handshake {
    /// The leaf that the server sent, if the handshake came that far.
    pub leaf: Option<Vec<u8>>,
    /// As `TLSv1.3`.
    pub protocol: Option<String>,
    /// All that was said.
    pub said: String,
}

impl Handshake {
    /// The leaf that was served.
    ///
    /// # Errors
    /// What openssl said instead.
    pub fn served(self) -> Result<Vec<u8>, String> {
        self.leaf.ok_or(self.said)
    }

    /// The number of the alert that ended the handshake.
    #[must_use]
    pub fn alert(&self) -> Option<u16> {
        self.said
            .split("SSL alert number ")
            .nth(1)?
            .split(|c: char| !c.is_ascii_digit())
            .next()?
            .parse()
            .ok()
    }
}

/// A handshake for a host, with further arguments for `openssl s_client`.
///
/// # Panics
/// When openssl cannot be run.
#[must_use]
pub fn handshake(address: SocketAddr, host: &str, further: &[&str]) -> Handshake {
    let output = Command::new("openssl")
        .args([
            "s_client",
            "-connect",
            &address.to_string(),
            "-servername",
            host,
            "-showcerts",
        ])
        .args(further)
        .stdin(Stdio::null())
        .output()
        .expect("openssl is installed");
    let said = format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let leaf = pem_blocks(&said).next();
    let protocol = ["TLSv1.3", "TLSv1.2", "TLSv1.1"]
        .into_iter()
        .find(|p| said.contains(&format!("New, {p}")) || said.contains(&format!("Protocol  : {p}")))
        .map(str::to_owned);
    Handshake {
        leaf,
        protocol,
        said,
    }
}

/// The DER of each certificate in a text.
fn pem_blocks(text: &str) -> impl Iterator<Item = Vec<u8>> {
    text.split("-----BEGIN CERTIFICATE-----")
        .skip(1)
        .filter_map(|rest| {
            let body: String = rest.split("-----END").next()?.split_whitespace().collect();
            data_encoding::BASE64.decode(body.as_bytes()).ok()
        })
}

/// Runs openssl with an input and gives its output.
///
/// # Panics
/// When it fails.
#[must_use]
pub fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl is installed");
    child
        .stdin
        .take()
        .expect("it was piped")
        .write_all(input)
        .expect("openssl reads");
    let output = child.wait_with_output().expect("it was started");
    assert!(
        output.status.success(),
        "openssl {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}
