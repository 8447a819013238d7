//! What the files hold: certificates and keys by their fingerprints, and where each stands.
//!
//! Keys are opened one at a time, to learn which public key they belong to, and wiped again; what stays in memory is a few
//! hundred bytes a certificate. Issuers are kept whole, since many certificates share them.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::BASE64;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde_json::value::RawValue;
use x509_parser::extensions::GeneralName;
use zeroize::{Zeroize as _, Zeroizing};

use keyring::PrivateKey;
use lifecycle::names::{Digest, Host};
use lifecycle::rejection::Code;

use super::walk::{File, Layout};
use crate::failure::Failure;
use crate::files;
use crate::material::{self, Passwords};

/// Largest acme.json, bytes: it holds everything in one file.
const STORE_MAX: u64 = 32 * 1024 * 1024;
/// Largest file without an ending that certificates have, bytes.
const STRANGER_MAX: u64 = 256 * 1024;
/// Bytes of issuers that are kept.
const ISSUERS_MAX: usize = 32 * 1024 * 1024;
/// The most certificates that are sent in one chain.
const CHAIN_MAX: usize = 10;

/// Where something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file, by its place in the list.
    pub file: u32,
    /// Which part of the file, where it has several.
    pub part: u32,
}

/// A certificate that may be served.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// SHA-256 of the certificate.
    pub fingerprint: Digest,
    /// SHA-256 of its public key.
    pub spki: Digest,
    /// The hosts that it names, as they are served.
    pub names: Vec<String>,
    /// Unix seconds.
    pub not_before: i64,
    /// Unix seconds.
    pub not_after: i64,
    /// Whether it says of itself to be a CA.
    pub ca: bool,
    /// The kind of key, by the OID of its algorithm and, for RSA and EC, nothing more.
    pub algorithm: String,
    issuer: Digest,
    /// The best of the places where it stands.
    pub place: Place,
    /// Issuers that stand beside it there.
    beside: Vec<u32>,
    score: (bool, bool, bool),
    /// What the file's writer says that it is for.
    pub label: Option<String>,
}

/// A file, or a part of one, that could not be read.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// The file.
    pub file: u32,
    /// None: the world said no, such as a missing right.
    pub code: Option<Code>,
    /// What is wrong.
    pub message: String,
    /// What mends it.
    pub hint: String,
    /// Whether certificates were in it, as far as can be told.
    pub certificates: bool,
}

struct Issuer {
    der: CertificateDer<'static>,
    subject: Digest,
    issuer: Digest,
}

/// What all files together hold.
#[derive(Default)]
pub struct Inventory {
    /// The certificates by fingerprint, each once.
    pub leaves: BTreeMap<Digest, Leaf>,
    /// Where the keys stand, by the SHA-256 of their public half.
    pub keys: HashMap<Digest, Vec<Place>>,
    /// What could not be read.
    pub troubles: Vec<Trouble>,
    issuers: Vec<Issuer>,
    issuer_ids: HashMap<Digest, u32>,
    by_subject: HashMap<Digest, Vec<u32>>,
    in_folder: HashMap<(u32, Digest), u32>,
    issuer_bytes: usize,
}

/// A certificate, as far as an import needs to know it.
struct Look {
    fingerprint: Digest,
    spki: Digest,
    names: Vec<String>,
    not_before: i64,
    not_after: i64,
    ca: bool,
    algorithm: String,
    subject: Digest,
    issuer: Digest,
}

/// Opens what needs a password with those of these files, and asks nobody.
#[derive(Clone, Debug)]
pub struct Opener {
    passwords: Arc<[PathBuf]>,
}

impl Opener {
    /// With these files.
    pub fn new(passwords: &[PathBuf]) -> Self {
        Self {
            passwords: passwords.into(),
        }
    }

    fn open(&self, bytes: &[u8], name: &str) -> Result<Held, Failure> {
        let mut outcome = material::parse(bytes, name, &mut Passwords::none());
        for file in &*self.passwords {
            match &outcome {
                Err(Failure::Refused(refused))
                    if refused.told.code == Code::KeyEncrypted.as_str() =>
                {
                    outcome = material::parse(bytes, name, &mut Passwords::new(Some(file)));
                }
                _ => break,
            }
        }
        outcome.map(|contents| Held {
            certificates: contents.certificates,
            keys: contents.keys,
            label: None,
        })
    }
}

/// What a part of a file holds.
struct Held {
    certificates: Vec<CertificateDer<'static>>,
    keys: Vec<PrivateKey>,
    label: Option<String>,
}

impl Inventory {
    /// Reads one file.
    pub fn read(&mut self, dir: &Path, number: u32, file: &File, opener: &Opener) {
        let mut part = 0;
        let outcome = parts(&dir.join(&file.shown), file.layout, opener, &mut |held| {
            let place = Place { file: number, part };
            part += 1;
            match held {
                Ok(held) => self.take(place, file, held),
                Err(trouble) => self.troubles.push(trouble.of(number)),
            }
        });
        if let Err(trouble) = outcome {
            self.troubles.push(trouble.of(number));
        }
    }

    fn take(&mut self, place: Place, file: &File, held: Held) {
        for key in &held.keys {
            self.keys
                .entry(Digest(key.spki_sha256()))
                .or_default()
                .push(place);
        }
        let looks: Vec<Option<Look>> = held.certificates.iter().map(|c| look(c)).collect();
        if looks.iter().any(Option::is_none) {
            self.troubles.push(
                Unread {
                    code: Some(Code::PemMalformed),
                    message: "a certificate in it is damaged: its DER cannot be read".to_owned(),
                    hint: "take the file as the CA sent it; openssl x509 -in FILE -noout -text tells more".to_owned(),
                    certificates: true,
                }
                .of(place.file),
            );
        }
        let mut beside = Vec::new();
        let mut here = Vec::new();
        for (der, look) in held.certificates.iter().zip(looks) {
            let Some(look) = look else { continue };
            if look.ca || look.names.is_empty() {
                beside.extend(self.issuer(der, &look, file.folder));
            }
            here.push(look);
        }
        let several = here.iter().filter(|look| !look.ca).count() > 1;
        for look in here {
            // A CA without names is nobody's server certificate, and one that is nothing else is told when it has a key.
            if look.ca && look.names.is_empty() {
                continue;
            }
            let complete = beside
                .iter()
                .any(|id| self.issuers[*id as usize].subject == look.issuer);
            let score = (file.layout != Layout::Plain, complete, !several);
            let known = self.leaves.get(&look.fingerprint);
            if known.is_some_and(|known| known.score >= score) {
                continue;
            }
            let leaf = Leaf {
                fingerprint: look.fingerprint,
                spki: look.spki,
                names: look.names,
                not_before: look.not_before,
                not_after: look.not_after,
                ca: look.ca,
                algorithm: look.algorithm,
                issuer: look.issuer,
                place,
                beside: if several { Vec::new() } else { beside.clone() },
                score,
                label: held.label.clone(),
            };
            self.leaves.insert(leaf.fingerprint, leaf);
        }
    }

    fn issuer(&mut self, der: &CertificateDer<'static>, look: &Look, folder: u32) -> Option<u32> {
        let id = match self.issuer_ids.get(&look.fingerprint) {
            Some(id) => *id,
            None if self.issuer_bytes + der.len() > ISSUERS_MAX => return None,
            None => {
                let id = u32::try_from(self.issuers.len()).ok()?;
                self.issuer_bytes += der.len();
                self.issuers.push(Issuer {
                    der: der.clone(),
                    subject: look.subject,
                    issuer: look.issuer,
                });
                self.issuer_ids.insert(look.fingerprint, id);
                self.by_subject.entry(look.subject).or_default().push(id);
                id
            }
        };
        self.in_folder.entry((folder, look.subject)).or_insert(id);
        Some(id)
    }

    /// The issuers to send with a certificate: those that stand beside it in its file, and where they do not lead on, those of
    /// its folder, then any of the tree. Roots that nothing brought are not looked for: no client wants them.
    pub fn chain(&self, leaf: &Leaf, folder: u32) -> Vec<u32> {
        let mut chain: Vec<u32> = Vec::new();
        let mut wanted = leaf.issuer;
        let mut left = leaf.beside.clone();
        while chain.len() < CHAIN_MAX {
            let beside = left
                .iter()
                .position(|id| self.issuers[*id as usize].subject == wanted)
                .map(|at| left.remove(at));
            let next = beside.or_else(|| {
                let folder = self.in_folder.get(&(folder, wanted)).copied();
                let tree = self
                    .by_subject
                    .get(&wanted)
                    .and_then(|ids| ids.first().copied());
                folder.or(tree).filter(|id| {
                    let found = &self.issuers[*id as usize];
                    found.subject != found.issuer
                })
            });
            let Some(next) = next.filter(|next| !chain.contains(next)) else {
                break;
            };
            let found = &self.issuers[next as usize];
            chain.push(next);
            if found.subject == found.issuer {
                break;
            }
            wanted = found.issuer;
        }
        // What somebody put beside it for another path is sent too; what does not belong to it is sorted out and reported.
        chain.extend(left);
        chain.truncate(CHAIN_MAX);
        chain
    }

    /// The bytes of issuers.
    pub fn issuers<'a>(
        &'a self,
        chain: &'a [u32],
    ) -> impl Iterator<Item = CertificateDer<'static>> + 'a {
        chain
            .iter()
            .filter_map(|id| self.issuers.get(*id as usize))
            .map(|issuer| issuer.der.clone())
    }
}

/// Why a file or a part of it cannot be read.
struct Unread {
    code: Option<Code>,
    message: String,
    hint: String,
    certificates: bool,
}

impl Unread {
    fn of(self, file: u32) -> Trouble {
        Trouble {
            file,
            code: self.code,
            message: self.message,
            hint: self.hint,
            certificates: self.certificates,
        }
    }

    fn from(failure: Failure, certificates: bool) -> Self {
        match failure {
            Failure::Refused(refused) => {
                let told = refused.told;
                Self {
                    code: Some(Code::parse(&told.code).unwrap_or(Code::PemMalformed)),
                    hint: told
                        .reasons
                        .into_iter()
                        .next()
                        .map(|r| r.hint)
                        .unwrap_or_default(),
                    message: told.detail,
                    certificates,
                }
            }
            Failure::CouldNotRun(error) => Self {
                code: None,
                message: format!("{error:#}"),
                hint: String::new(),
                certificates: true,
            },
            Failure::Usage(message) | Failure::InVain(message) => Self {
                code: None,
                message,
                hint: String::new(),
                certificates,
            },
        }
    }
}

/// Reads the parts of a file one after the other. A file that holds nothing of interest has none.
fn parts(
    path: &Path,
    layout: Layout,
    opener: &Opener,
    take: &mut dyn FnMut(Result<Held, Unread>),
) -> Result<(), Unread> {
    let ending = path
        .extension()
        .map(|e| e.to_string_lossy().to_ascii_lowercase())
        .unwrap_or_default();
    let familiar = [
        "pem",
        "crt",
        "cer",
        "cert",
        "key",
        "chain",
        "fullchain",
        "bundle",
        "der",
        "p7b",
        "p7c",
        "p12",
        "pfx",
    ]
    .contains(&ending.as_str());
    let max = match (layout, familiar) {
        (Layout::Traefik, _) => STORE_MAX,
        (_, true) => material::MAX_FILE,
        (_, false) => STRANGER_MAX,
    };
    let bytes = match files::read(path, max) {
        Ok(bytes) => bytes,
        Err(Failure::Refused(_)) if !familiar => return Ok(()),
        Err(failure) => return Err(Unread::from(failure, true)),
    };
    if layout == Layout::Traefik {
        store(&bytes, opener, take);
        return Ok(());
    }
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let pem = holds(&bytes, b"-----BEGIN ");
    let certificates = holds(&bytes, b"CERTIFICATE-----");
    let relevant = if pem {
        certificates || holds(&bytes, b"PRIVATE KEY-----") || holds(&bytes, b"-----BEGIN PKCS")
    } else {
        familiar && !bytes.trim_ascii().is_empty()
    };
    if !relevant {
        return Ok(());
    }
    match opener.open(&bytes, &name) {
        Ok(held) => take(Ok(held)),
        Err(Failure::Refused(refused)) if refused.told.code == Code::NoCertificate.as_str() => {}
        // More than any chain holds: the bundle of CAs that systems come with, or something to be looked at.
        Err(Failure::Refused(refused))
            if refused.told.code == Code::TooLarge.as_str() && only_issuers(&bytes) => {}
        Err(failure) => take(Err(Unread::from(
            failure,
            certificates || (!pem && ending != "key"),
        ))),
    }
    Ok(())
}

/// Whether PEM holds CAs and nothing that is served.
fn only_issuers(bytes: &[u8]) -> bool {
    CertificateDer::pem_slice_iter(bytes).all(|der| {
        der.is_ok_and(|der| look(&der).is_some_and(|look| look.ca || look.names.is_empty()))
    })
}

fn holds(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

#[derive(Deserialize)]
struct Resolver<'a> {
    #[serde(borrow, default, alias = "Certificates")]
    certificates: Option<Vec<Stored<'a>>>,
}

#[derive(Deserialize)]
struct Stored<'a> {
    #[serde(default, alias = "Domain")]
    domain: Domain,
    #[serde(borrow, alias = "Certificate")]
    certificate: Cow<'a, str>,
    #[serde(borrow, alias = "Key")]
    key: Cow<'a, str>,
}

#[derive(Default, Deserialize)]
struct Domain {
    #[serde(default, alias = "Main")]
    main: String,
}

/// Traefik's acme.json: for each resolver an account and the certificates, PEM within base64. Before version 2 there was one
/// resolver without a name. Other JSON has no parts.
fn store(bytes: &[u8], opener: &Opener, take: &mut dyn FnMut(Result<Held, Unread>)) {
    if !holds(bytes, b"ertificates\"") {
        return;
    }
    let Ok(resolvers) = serde_json::from_slice::<BTreeMap<Cow<'_, str>, &RawValue>>(bytes) else {
        return;
    };
    let whole = std::str::from_utf8(bytes).unwrap_or_default();
    let texts: Vec<&str> = if resolvers.contains_key("Certificates") {
        vec![whole]
    } else {
        resolvers.values().map(|value| value.get()).collect()
    };
    for text in texts {
        let Ok(resolver) = serde_json::from_str::<Resolver<'_>>(text) else {
            continue;
        };
        for stored in resolver.certificates.unwrap_or_default() {
            take(unpack(stored, opener));
        }
    }
}

fn unpack(mut stored: Stored<'_>, opener: &Opener) -> Result<Held, Unread> {
    let decode = |text: &str| BASE64.decode(text.as_bytes()).map(Zeroizing::new);
    let decoded = (
        decode(&stored.certificate),
        decode(&stored.key),
        stored.domain.main,
    );
    // Borrowed, it is wiped with the file's bytes.
    if let Cow::Owned(key) = &mut stored.key {
        key.zeroize();
    }
    let (Ok(certificate), Ok(key), label) = decoded else {
        return Err(Unread {
            code: Some(Code::PemMalformed),
            message: "the base64 of an entry is broken".to_owned(),
            hint: String::new(),
            certificates: true,
        });
    };
    let unread = |failure| Unread::from(failure, true);
    let mut all = opener.open(&certificate, &label).map_err(unread)?;
    all.keys
        .extend(opener.open(&key, &label).map_err(unread)?.keys);
    all.label = Some(label);
    Ok(all)
}

fn sha256(bytes: &[u8]) -> Digest {
    let mut hash = [0; 32];
    hash.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    Digest(hash)
}

/// None: it is no certificate.
fn look(der: &CertificateDer<'_>) -> Option<Look> {
    let (rest, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let mut names: Vec<String> = certificate
        .subject_alternative_name()
        .ok()
        .flatten()
        .map(|extension| {
            extension
                .value
                .general_names
                .iter()
                .filter_map(|name| match name {
                    GeneralName::DNSName(name) => Host::parse(name).ok(),
                    _ => None,
                })
                .map(|host| host.as_str().to_owned())
                .collect()
        })
        .unwrap_or_default();
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    Some(Look {
        fingerprint: sha256(der),
        spki: sha256(certificate.public_key().raw),
        names,
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
        ca: certificate.is_ca(),
        algorithm: certificate.public_key().algorithm.algorithm.to_id_string(),
        subject: sha256(certificate.subject().as_raw()),
        issuer: sha256(certificate.issuer().as_raw()),
    })
}

/// Reads a certificate and its key once more, to send them.
///
/// # Errors
/// What is wrong by now, as a sentence: the files may have changed in between.
pub fn load(
    dir: &Path,
    certificate: (Place, Digest, &File),
    key: (Place, Digest, &File),
    opener: &Opener,
) -> Result<(CertificateDer<'static>, PrivateKey), String> {
    let mut found: (Option<CertificateDer<'static>>, Option<PrivateKey>) = (None, None);
    let mut read = |(place, _, file): (Place, Digest, &File), is_key: bool| {
        let path: PathBuf = dir.join(&file.shown);
        let mut part = 0;
        let outcome = parts(&path, file.layout, opener, &mut |held| {
            part += 1;
            let Ok(held) = held else { return };
            if part - 1 != place.part {
                return;
            }
            if !is_key || place == certificate.0 {
                found.0 = held
                    .certificates
                    .into_iter()
                    .find(|der| sha256(der) == certificate.1);
            }
            found.1 = found
                .1
                .take()
                .or_else(|| held.keys.into_iter().find(|k| k.spki_sha256() == key.1.0));
        });
        outcome.map_err(|unread| format!("{}: {}", file.shown.display(), unread.message))
    };
    read(certificate, false)?;
    if key.0 != certificate.0 {
        read(key, true)?;
    }
    match found {
        (Some(certificate), Some(key)) => Ok((certificate, key)),
        (None, _) => Err(format!(
            "{} has changed since the plan was made",
            certificate.2.shown.display()
        )),
        (_, None) => Err(format!(
            "{} has changed since the plan was made",
            key.2.shown.display()
        )),
    }
}
