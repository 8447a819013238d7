//! Certificates and keys as people have them in files, read before anything leaves the process.
//!
//! PEM in any state of travel, DER, PKCS#12, PKCS#7, and keys under a password become certificates in DER and private keys.
//! What is sent afterwards is written anew from these, never copied from a file: tools write remarks there, and a key whose
//! frame is broken would look like one.
//!
//! * [`read`], [`parse`]: whatever a file holds
//! * [`upload`]: what `--chain` and `--key` bring together
//! * [`key`]: the one private key of a file
//! * [`Passwords`]: where a password comes from
//! * [`nginx_pair`], [`haproxy_pem`], [`pkcs12`], [`save`]: the other way

use std::path::Path;

use data_encoding::BASE64;
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use control::chain::{self, pem, pkcs7};
use keyring::der::{self, BIT_STRING, SEQUENCE};
use keyring::{KeyError, Password, PrivateKey, ProtectedError, protected};
use lifecycle::event::CertificateKind;
use lifecycle::rejection::{Code, Reason};
use wire::answer::Problem;

use crate::failure::{Failure, Refused, Result};
use crate::files;

mod passwords;
#[cfg(test)]
mod tests;
mod write;

pub use passwords::Passwords;
pub use write::{Place, haproxy_pem, nginx_pair, pkcs12, save};

/// Longest file with a chain or key that is read, bytes. It is what the control plane takes too.
pub const MAX_FILE: u64 = chain::MAX_INPUT as u64;

/// The form of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// PEM (RFC 7468).
    Pem,
    /// One certificate or key in DER.
    Der,
    /// PKCS#12 (RFC 7292).
    Pkcs12,
    /// PKCS#7 (RFC 5652).
    Pkcs7,
}

impl Form {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pem => "PEM",
            Self::Der => "DER",
            Self::Pkcs12 => "PKCS#12",
            Self::Pkcs7 => "PKCS#7",
        }
    }
}

/// What a file holds.
pub struct Contents {
    /// Its form.
    pub form: Form,
    /// The certificates in the order of the file, of at most 20 and 64 KiB each. That they are well formed is not said.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The private keys in the order of the file.
    pub keys: Vec<PrivateKey>,
    /// Whether text or blocks of other kinds stood beside them.
    pub text_beside: bool,
    /// Why keys of a container cannot be used.
    unusable: Vec<KeyError>,
    /// What stood there instead, when it is known.
    other: Option<(Code, &'static str, &'static str)>,
}

impl Contents {
    fn new(form: Form) -> Self {
        Self {
            form,
            certificates: Vec::new(),
            keys: Vec::new(),
            text_beside: false,
            unusable: Vec::new(),
            other: None,
        }
    }
}

/// Reads a file.
///
/// # Errors
/// That it cannot be read, or those of [`parse`].
pub fn read(path: &Path, passwords: &mut Passwords) -> Result<Contents> {
    if path.is_dir() {
        return Err(anyhow::anyhow!("{} is a folder; name the file in it", path.display()).into());
    }
    parse(
        &files::read(path, MAX_FILE)?,
        &path.display().to_string(),
        passwords,
    )
}

/// Reads what a file holds. `name` is told when a password is asked for, and in refusals.
///
/// # Errors
/// `not_pem` for what is none of the forms, with what it is where that is known; `pem_malformed`, `too_large`,
/// `dh_parameters_present`; for keys `key_encrypted` when there is no password or not the right one, `key_unsupported`,
/// `key_too_small`. Nothing of the input is quoted.
pub fn parse(bytes: &[u8], name: &str, passwords: &mut Passwords) -> Result<Contents> {
    if keyring::pkcs12::looks_like(bytes) {
        return container(bytes, name, passwords);
    }
    if pkcs7::looks_like(bytes) {
        let mut contents = Contents::new(Form::Pkcs7);
        contents.certificates = pkcs7::certificates(bytes).map_err(refused)?;
        return Ok(contents);
    }
    if bytes.first() == Some(&SEQUENCE) && der::from_ber(bytes).is_some() {
        return one_of_der(bytes, name, passwords);
    }
    match utf16(bytes) {
        Some(text) => blocks(&text, name, passwords),
        None => blocks(bytes, name, passwords),
    }
}

/// What `--chain` and `--key` bring.
pub struct Upload {
    /// The certificates as PEM, in the order of the file.
    pub chain: String,
    /// The private key.
    pub key: Option<PrivateKey>,
    /// What was passed over or taken from where, one sentence each.
    pub notes: Vec<String>,
}

/// Reads the files of an upload. Without `key` the file of the chain may hold the key; of several the one that belongs to one of
/// the certificates is taken.
///
/// # Errors
/// Those of [`read`], `no_certificate`, `key_missing` for a file of the key without one, `key_unexpected` for a CA with a key
/// and for several keys of which not exactly one belongs to a certificate.
pub fn upload(
    path: &Path,
    key: Option<&Path>,
    kind: CertificateKind,
    passwords: &mut Passwords,
) -> Result<Upload> {
    let mut contents = read(path, passwords)?;
    let shown = path.display();
    if kind == CertificateKind::Ca && (key.is_some() || !contents.keys.is_empty()) {
        return Err(Failure::problem(
            Code::KeyUnexpected,
            "a certificate of kind ca is client trust and never has a key here",
            "leave the private key out; the CA keeps it",
        ));
    }
    let mut notes = Vec::new();
    if contents.text_beside {
        notes.push(format!(
            "text or other blocks beside the certificates in {shown} were passed over"
        ));
    }
    if !matches!(contents.form, Form::Pem) {
        notes.push(format!(
            "{shown} is {}; its certificates are sent as PEM",
            contents.form.name()
        ));
    }
    if contents.certificates.is_empty() {
        return Err(no_certificate(&contents, &shown.to_string()));
    }
    let key = match key {
        Some(path) => Some(self::key(path, passwords)?),
        None if contents.keys.is_empty() && !contents.unusable.is_empty() => {
            return Err(unusable(&contents));
        }
        None if contents.keys.is_empty() => None,
        None => {
            notes.push(format!(
                "{shown} also holds the private key; it is sealed and used"
            ));
            Some(choose(&mut contents, &shown.to_string())?)
        }
    };
    Ok(Upload {
        chain: to_pem(&contents.certificates),
        key,
        notes,
    })
}

/// Reads the one private key of a file.
///
/// # Errors
/// Those of [`read`], `key_missing`, and `key_unexpected` for several.
pub fn key(path: &Path, passwords: &mut Passwords) -> Result<PrivateKey> {
    let shown = path.display().to_string();
    let mut contents = read(path, passwords).map_err(|failure| as_key(failure, &shown))?;
    if contents.keys.is_empty() {
        if !contents.unusable.is_empty() {
            return Err(unusable(&contents));
        }
        let (message, hint) = match contents.other {
            Some((_, message, _)) => (
                format!("{shown} holds no private key. {message}"),
                "pass the private key that the signing request was made with: --key key.pem",
            ),
            None => (
                format!("{shown} holds no private key"),
                "the block begins with -----BEGIN PRIVATE KEY----- or a like line; the key was made together with the signing request",
            ),
        };
        return Err(Failure::problem(Code::KeyMissing, message, hint));
    }
    choose(&mut contents, &shown)
}

/// Certificates as PEM, with lines of 64 characters (RFC 7468, 3).
pub fn to_pem(certificates: &[CertificateDer<'_>]) -> String {
    certificates
        .iter()
        .map(|der| block_of("CERTIFICATE", der))
        .collect()
}

fn block_of(label: &str, der: &[u8]) -> String {
    let base64 = Zeroizing::new(BASE64.encode(der));
    let mut text = String::with_capacity(base64.len() + base64.len() / 64 + 2 * label.len() + 40);
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    for at in (0..base64.len()).step_by(64) {
        text.push_str(&base64[at..base64.len().min(at + 64)]);
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// The key of a file with one; of several the one that belongs to a certificate in the same file.
fn choose(contents: &mut Contents, name: &str) -> Result<PrivateKey> {
    let several = contents.keys.len();
    let mut fitting: Vec<PrivateKey> = std::mem::take(&mut contents.keys);
    if several > 1 {
        fitting.retain(|key| {
            contents
                .certificates
                .iter()
                .any(|der| spki(der).is_some_and(|spki| key.matches_spki(spki)))
        });
        // The same key twice is one.
        fitting.dedup_by_key(|key| key.spki_sha256());
    }
    match (fitting.pop(), fitting.is_empty()) {
        (Some(key), true) => Ok(key),
        _ => Err(Failure::problem(
            Code::KeyUnexpected,
            format!(
                "{name} holds {several} private keys, and which of them is meant cannot be told"
            ),
            "leave only the one that belongs to the certificate, or name its file with --key; from a keystore: keytool -importkeystore -srckeystore FILE -srcalias ALIAS -destkeystore one.p12 -deststoretype PKCS12",
        )),
    }
}

/// The SubjectPublicKeyInfo of a certificate, as it stands in it.
fn spki(certificate: &[u8]) -> Option<&[u8]> {
    let mut tbs = der::sequence(der::Reader::new(der::sequence(certificate)?.whole()?).whole()?)?;
    if tbs.peek() == Some(der::CONTEXT_0) {
        tbs.next()?;
    }
    // serialNumber, signature, issuer, validity, subject.
    for _ in 0..5 {
        tbs.next()?;
    }
    tbs.whole()
}

fn no_certificate(contents: &Contents, name: &str) -> Failure {
    match contents.other {
        Some((code, message, hint)) => Failure::problem(code, message, hint),
        None if contents.keys.is_empty() => Failure::problem(
            Code::NoCertificate,
            format!("{name} holds no certificate"),
            "the chain begins with -----BEGIN CERTIFICATE-----, the host's own certificate first",
        ),
        None => Failure::problem(
            Code::NoCertificate,
            format!("{name} holds a private key but no certificate"),
            "pass the certificate that the CA sent with --chain, and this file with --key",
        ),
    }
}

fn unusable(contents: &Contents) -> Failure {
    let error = contents
        .unusable
        .first()
        .cloned()
        .unwrap_or(KeyError::Malformed("it cannot be read"));
    refused(chain::key_reason(&error))
}

/// What is said of a file that shall hold a key, where something else is said of one that shall hold a chain.
fn as_key(failure: Failure, name: &str) -> Failure {
    match &failure {
        Failure::Refused(refused) if refused.told.code == Code::NotPem.as_str() => {
            let hint = refused
                .told
                .reasons
                .first()
                .map(|reason| reason.hint.clone())
                .filter(|hint| !hint.contains("--chain"))
                .unwrap_or_else(|| {
                    "pass the file that was made together with the signing request: --key key.pem"
                        .to_owned()
                });
            let code = if refused.told.detail.contains("empty") {
                Code::KeyMissing
            } else {
                Code::NotPem
            };
            Failure::problem(code, format!("{name}: {}", refused.told.detail), hint)
        }
        _ => failure,
    }
}

fn refused(reason: Reason) -> Failure {
    Refused::from(Problem::of(vec![reason])).into()
}

/// The text of UTF-16 with its mark, as some editors and shells of Windows save it. PEM is ASCII; other characters stay behind as
/// question marks.
fn utf16(bytes: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (little, rest) = match bytes {
        [0xff, 0xfe, rest @ ..] => (true, rest),
        [0xfe, 0xff, rest @ ..] => (false, rest),
        _ => return None,
    };
    let mut text = Zeroizing::new(Vec::with_capacity(rest.len() / 2));
    text.extend(rest.chunks_exact(2).map(|pair| {
        let (high, low) = if little {
            (pair[1], pair[0])
        } else {
            (pair[0], pair[1])
        };
        if high == 0 && low < 0x80 { low } else { b'?' }
    }));
    Some(text)
}

/// One certificate or private key in DER.
fn one_of_der(bytes: &[u8], name: &str, passwords: &mut Passwords) -> Result<Contents> {
    let mut contents = Contents::new(Form::Der);
    if is_certificate(bytes) {
        contents.certificates.push(bounded(bytes, 1)?);
        return Ok(contents);
    }
    match PrivateKey::from_der(bytes) {
        Ok(key) => contents.keys.push(key),
        Err(KeyError::Encrypted) => contents
            .keys
            .push(passwords.unlock(name, |password| protected::decrypt_pkcs8(bytes, password))?),
        Err(KeyError::Malformed(_)) => {
            contents.other = Some(match der_of_other(bytes) {
                Some(label) => pem::other(label).unwrap_or(NO_KNOWN_DER),
                None => NO_KNOWN_DER,
            });
        }
        Err(error) => return Err(key_failure(&error)),
    }
    if let Some((Code::NotPem, message, hint)) = contents.other {
        return Err(Failure::problem(Code::NotPem, message, hint));
    }
    Ok(contents)
}

const NO_KNOWN_DER: (Code, &str, &str) = (
    Code::NotPem,
    "The file is binary, but neither a certificate nor a private key in DER, nor PKCS#12, nor PKCS#7.",
    "Look what it is: openssl asn1parse -inform DER -in FILE",
);

/// The label that PEM would give to DER that is neither a certificate nor a key.
fn der_of_other(bytes: &[u8]) -> Option<&'static str> {
    let mut outer = der::sequence(bytes)?;
    let (tag, first) = outer.next()?;
    match (tag, outer.next()?.0) {
        // AlgorithmIdentifier and key.
        (SEQUENCE, BIT_STRING) => Some("PUBLIC KEY"),
        // A request and a list of revoked certificates are framed as a certificate is; a request begins with version 0.
        (SEQUENCE, SEQUENCE) if first.starts_with(&[der::INTEGER, 1, 0, SEQUENCE]) => {
            Some("CERTIFICATE REQUEST")
        }
        (SEQUENCE, SEQUENCE) => Some("X509 CRL"),
        _ => None,
    }
}

/// Whether DER is framed as a certificate (RFC 5280, 4.1): what is to be signed, an algorithm, a bit string; and within first
/// the version in an explicit tag, or a serial number and then an algorithm, a name, and two times.
fn is_certificate(bytes: &[u8]) -> bool {
    let framed = || {
        let mut outer = der::sequence(bytes)?;
        let mut tbs = der::Reader::new(outer.expect(SEQUENCE)?);
        outer.expect(SEQUENCE)?;
        outer.expect(BIT_STRING)?;
        if tbs.peek()? == der::CONTEXT_0 {
            return Some(());
        }
        tbs.expect(der::INTEGER)?;
        tbs.expect(SEQUENCE)?;
        tbs.expect(SEQUENCE)?;
        tbs.expect(SEQUENCE)?;
        tbs.expect(SEQUENCE).map(drop)
    };
    framed().is_some()
}

fn bounded(der: &[u8], number: usize) -> Result<CertificateDer<'static>> {
    if number > chain::MAX_CERTIFICATES {
        return Err(Failure::problem(
            Code::TooLarge,
            format!(
                "the file holds more than {} certificates",
                chain::MAX_CERTIFICATES
            ),
            "a chain is the host's certificate and its intermediates; leave the others out",
        ));
    }
    if der.len() > chain::MAX_CERTIFICATE {
        return Err(Failure::problem(
            Code::TooLarge,
            format!(
                "certificate {number} of the file is longer than {} bytes",
                chain::MAX_CERTIFICATE
            ),
            "is this the right file?",
        ));
    }
    Ok(CertificateDer::from(der.to_vec()))
}

fn container(bytes: &[u8], name: &str, passwords: &mut Passwords) -> Result<Contents> {
    let opened = passwords.unlock(name, |password| keyring::pkcs12::open(bytes, password))?;
    let mut contents = Contents::new(Form::Pkcs12);
    for (der, number) in opened.certificates.iter().zip(1..) {
        contents.certificates.push(bounded(der, number)?);
    }
    contents.keys = opened.keys;
    contents.unusable = opened.unusable;
    Ok(contents)
}

/// Reads PEM.
fn blocks(text: &[u8], name: &str, passwords: &mut Passwords) -> Result<Contents> {
    let mut contents = Contents::new(Form::Pem);
    let mut blocks = pem::blocks(text).map_err(refused)?;
    for block in &mut blocks {
        let block = block.map_err(refused)?;
        match block.label {
            label if label.ends_with("PRIVATE KEY") => {
                contents.keys.push(private_key(&block, name, passwords)?);
            }
            "CERTIFICATE" | "X509 CERTIFICATE" | "TRUSTED CERTIFICATE" => {
                let der = block.decode().map_err(refused)?;
                // A label is only what somebody typed: what reads as a key is one, whatever it says.
                if PrivateKey::from_der(&der).is_ok() {
                    return Err(Failure::problem(
                        Code::PemMalformed,
                        format!(
                            "block {} of the file is a private key under the label of a certificate",
                            block.number
                        ),
                        "write the label as it is: -----BEGIN PRIVATE KEY-----, and pass the file with --key",
                    ));
                }
                // OpenSSL's trusted form has its own remarks behind the certificate.
                let der = match block.label {
                    "TRUSTED CERTIFICATE" => der::Reader::new(&der).whole().unwrap_or_default(),
                    _ => &der,
                };
                let number = contents.certificates.len() + 1;
                contents.certificates.push(bounded(der, number)?);
            }
            "PKCS7" | "PKCS #7 SIGNED DATA" | "CMS" => {
                let der = block.decode().map_err(refused)?;
                for certificate in pkcs7::certificates(&der).map_err(refused)? {
                    let number = contents.certificates.len() + 1;
                    contents.certificates.push(bounded(&certificate, number)?);
                }
                contents.form = Form::Pkcs7;
            }
            "PKCS12" | "PFX" => {
                let der = block.decode().map_err(refused)?;
                let inner = container(&der, name, passwords)?;
                contents.certificates.extend(inner.certificates);
                contents.keys.extend(inner.keys);
                contents.unusable.extend(inner.unusable);
            }
            "DH PARAMETERS" | "X9.42 DH PARAMETERS" => {
                return Err(refused(chain::dh_parameters()));
            }
            label => {
                contents.other = contents.other.or(pem::other(label)).or(Some((
                    Code::NoCertificate,
                    "The file holds a block that is neither a certificate nor a private key.",
                    "Pass the certificate as the CA sent it; it begins with -----BEGIN CERTIFICATE-----.",
                )));
                contents.text_beside = true;
            }
        }
    }
    contents.text_beside |= blocks.text_beside();
    Ok(contents)
}

fn private_key(
    block: &pem::Block<'_>,
    name: &str,
    passwords: &mut Passwords,
) -> Result<PrivateKey> {
    if block.label == "OPENSSH PRIVATE KEY" {
        return Err(Failure::problem(
            Code::KeyUnsupported,
            "the file holds a private key in the format of OpenSSH",
            "write it as PKCS#8 if it is the key of the certificate: cp KEY key.pem && ssh-keygen -p -m PKCS8 -f key.pem",
        ));
    }
    let der = block.decode().map_err(refused)?;
    if let Some(cipher) = block.encrypted {
        return passwords.unlock(name, |password| {
            protected::decrypt_pem(cipher, &der, password)
        });
    }
    match PrivateKey::from_pem(block.label, &der) {
        Err(KeyError::Encrypted) => {
            passwords.unlock(name, |password| protected::decrypt_pkcs8(&der, password))
        }
        key => key.map_err(|error| key_failure(&error)),
    }
}

fn key_failure(error: &KeyError) -> Failure {
    refused(chain::key_reason(error))
}

/// The refusal for what stays closed.
fn closed(error: &ProtectedError, name: &str) -> Failure {
    let (message, hint) = match error {
        ProtectedError::Key(error) => return key_failure(error),
        ProtectedError::WrongPassword => (
            format!("{name} is not opened by this password"),
            "check the password, for line ends and blanks in its file too; openssl pkey -in FILE -noout or openssl pkcs12 -in FILE -noout tries it",
        ),
        ProtectedError::TooCostly => (
            format!("{name}: {error}"),
            "write it anew with fewer iterations: openssl pkcs12 -in FILE -nodes | openssl pkcs12 -export -out NEW, or for a key: openssl pkcs8 -topk8 -in FILE -out NEW",
        ),
        ProtectedError::Unsupported(_) => (
            format!("{name}: {error}"),
            "write it anew: openssl pkcs12 -legacy -in FILE -nodes | openssl pkcs12 -export -out NEW, or for a key: openssl pkcs8 -topk8 -in FILE -out NEW",
        ),
        ProtectedError::Malformed(_) => (
            format!("{name}: {error}"),
            "check it: openssl pkcs12 -in FILE -info -noout, or for a key: openssl pkey -in FILE -check -noout",
        ),
    };
    let code = Code::parse(error.code()).unwrap_or(Code::PemMalformed);
    Failure::problem(code, message, hint)
}

/// The refusal for what needs a password when there is none.
fn no_password(name: &str) -> Failure {
    Failure::problem(
        Code::KeyEncrypted,
        format!("{name} is protected by a password"),
        "name a file that holds it with --password-file FILE, or run this on a terminal, where it is asked for; to open it by hand: openssl pkey -in FILE -out key.pem, or openssl pkcs12 -in FILE -nodes -out both.pem",
    )
}

/// A password that opens nothing but what was meant to be open.
fn empty() -> Password {
    Password::empty()
}
