//! CRLs (RFC 5280, 5): read once, asked often.
//!
//! A list may have a million entries, and a hundred thousand certificates may be asked for in one list. So it is kept in its
//! own bytes with the places of its entries sorted by serial number, four bytes an entry.

use std::sync::Mutex;

use bytes::Bytes;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;

use super::answer::{Said, Unclear, current, reason_name};
use super::der::{
    ENUMERATED, INTEGER, Reader, SEQUENCE, boolean_of, explicit, extension, implicit, magnitude,
};
use super::points::{Point, Signed};

/// Issuers whose signature on one list was checked and is remembered.
const CHECKED_MAX: usize = 8;
/// Addresses of a list's own distribution point that are compared at most.
const NAMES_MAX: usize = 16;

const KEY_IDENTIFIER: &[u8] = &[0x55, 0x1d, 0x23];
const DELTA: &[u8] = &[0x55, 0x1d, 0x1b];
const ISSUING_POINT: &[u8] = &[0x55, 0x1d, 0x1c];
const REASON: &[u8] = &[0x55, 0x1d, 0x15];

/// A list that can be read; whether it is believed is asked with each question.
#[derive(Debug)]
pub(super) struct Crl {
    der: Bytes,
    /// Where each entry begins, by serial number.
    entries: Vec<u32>,
    this_update: i64,
    next_update: i64,
    scope: Scope,
    /// SHA-256 of the issuers' names and keys that were compared with the signature, and how that ended.
    checked: Mutex<Vec<([u8; 32], bool)>>,
}

/// What a list speaks of: its issuing distribution point (RFC 5280, 5.2.5).
#[derive(Debug, Default)]
struct Scope {
    /// Its own addresses, if it names some: then only certificates that point there are meant.
    names: Option<Vec<String>>,
    only_users: bool,
    only_cas: bool,
    some_reasons: bool,
}

/// The certificate that is asked about.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    /// Its serial number, as it stands in it.
    pub(super) serial: &'a [u8],
    /// Whether it is a CA's.
    pub(super) is_ca: bool,
    /// Who issued it.
    pub(super) issuer: &'a X509Certificate<'a>,
    /// The distribution point that led here.
    pub(super) point: &'a Point,
}

fn broken() -> Unclear {
    "is no CRL".into()
}

impl Crl {
    /// Reads a list in DER, or in PEM, as some private CAs publish it against RFC 5280, 4.2.1.13.
    ///
    /// # Errors
    /// When it is none, or of a kind that is not understood: a delta, an indirect one, one for attribute certificates, or one
    /// with another critical extension.
    pub(super) fn read(bytes: Bytes) -> Result<Self, Unclear> {
        let der = if bytes.starts_with(b"-----BEGIN") {
            Bytes::from(unwrap_pem(&bytes).ok_or_else(broken)?)
        } else {
            bytes
        };
        if u32::try_from(der.len()).is_err() {
            return Err("is too long".into());
        }
        let signed = Signed::read(&der).ok_or_else(broken)?;
        let mut list = signed.message.inside();
        let version = list.take(INTEGER);
        if version.is_some_and(|version| version.content != [1]) {
            return Err("is of a version that is not known".into());
        }
        let algorithm = list.take(SEQUENCE).ok_or_else(broken)?.content;
        if algorithm != signed.algorithm || !signed.rest.is_empty() {
            return Err(broken());
        }
        let _issuer = list.take(SEQUENCE).ok_or_else(broken)?;
        let this_update = list.time().ok_or_else(broken)?;
        let next_update = list
            .time()
            .ok_or_else(|| Unclear::from("does not say until when it holds"))?;
        let mut entries: Vec<(&[u8], u32)> = Vec::new();
        if let Some(revoked) = list.take(SEQUENCE) {
            let mut revoked = revoked.inside();
            while !revoked.is_empty() {
                let entry = revoked.take(SEQUENCE).ok_or_else(broken)?;
                let (serial, ..) = entry_of(entry.content).ok_or_else(broken)?;
                // Within `der`, whose length fits.
                let place = entry.whole.as_ptr() as usize - der.as_ptr() as usize;
                entries.push((magnitude(serial), place as u32));
            }
        }
        let scope = match list.take(explicit(0)) {
            Some(extensions) => scope(
                extensions
                    .inside()
                    .take(SEQUENCE)
                    .ok_or_else(broken)?
                    .inside(),
            )?,
            None => Scope::default(),
        };
        if !list.is_empty() {
            return Err(broken());
        }
        entries.sort_unstable();
        let entries = entries.into_iter().map(|(_, place)| place).collect();
        Ok(Self {
            der,
            entries,
            this_update,
            next_update,
            scope,
            checked: Mutex::default(),
        })
    }

    /// Bytes that it takes in memory.
    pub(super) fn weight(&self) -> u64 {
        (self.der.len() + 4 * self.entries.len()) as u64
    }

    /// Until when it holds, Unix seconds.
    pub(super) fn next_update(&self) -> i64 {
        self.next_update
    }

    /// What it says of a certificate at the time `now`, Unix seconds.
    ///
    /// # Errors
    /// Why it says nothing: it was not signed by the certificate's issuer, is out of date, or is about other certificates.
    pub(super) fn ask(&self, asked: Asked<'_>, now: i64) -> Result<Said, Unclear> {
        if !self.is_of(asked.issuer) {
            return Err("is not signed by the issuer of the certificate".into());
        }
        current(self.this_update, self.next_update, now)?;
        let scope = &self.scope;
        if (scope.only_users && asked.is_ca) || (scope.only_cas && !asked.is_ca) {
            return Err("is for certificates of another kind".into());
        }
        if let Some(names) = &scope.names
            && !names.iter().any(|name| asked.point.names.contains(name))
        {
            return Err("is for other certificates of this CA".into());
        }
        let place = self
            .entries
            .binary_search_by(|place| serial_at(&self.der, *place).cmp(magnitude(asked.serial)));
        let Ok(place) = place else {
            if scope.some_reasons || !asked.point.complete {
                return Err("does not list it, but speaks of some reasons only".into());
            }
            return Ok(Said::Good);
        };
        let content = Reader::new(
            self.der
                .get(self.entries[place] as usize..)
                .unwrap_or_default(),
        )
        .any()
        .map(|entry| entry.content);
        let Some((_, since, reason)) = content.and_then(entry_of) else {
            return Err(broken());
        };
        Ok(Said::Revoked { since, reason })
    }

    /// Whether this CA signed it and may sign such lists.
    fn is_of(&self, issuer: &X509Certificate<'_>) -> bool {
        if matches!(issuer.key_usage(), Ok(Some(usage)) if !usage.value.crl_sign()) {
            return false;
        }
        let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        digest.update(issuer.subject().as_raw());
        digest.update(issuer.public_key().raw);
        digest.update(&key_identifier(issuer).unwrap_or_default());
        let mut who = [0; 32];
        who.copy_from_slice(digest.finish().as_ref());
        let mut checked = self
            .checked
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, known)) = checked.iter().find(|(of, _)| *of == who) {
            return *known;
        }
        drop(checked);
        let is = self.verify(issuer).unwrap_or(false);
        checked = self
            .checked
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if checked.len() >= CHECKED_MAX {
            checked.remove(0);
        }
        checked.push((who, is));
        is
    }

    fn verify(&self, issuer: &X509Certificate<'_>) -> Option<bool> {
        let signed = Signed::read(&self.der)?;
        let mut list = signed.message.inside();
        let _version = list.take(INTEGER);
        let _algorithm = list.take(SEQUENCE)?;
        if list.take(SEQUENCE)?.whole != issuer.subject().as_raw() {
            return Some(false);
        }
        let (_, _) = (list.time()?, list.time()?);
        let _revoked = list.take(SEQUENCE);
        // Which of a CA's keys signed: where both sides say so, they must agree (RFC 5280, 5.2.1).
        if let (Some(extensions), Some(of_issuer)) =
            (list.take(explicit(0)), key_identifier(issuer))
        {
            let mut extensions = extensions.inside().take(SEQUENCE)?.inside();
            while !extensions.is_empty() {
                let extension = extension(&extensions.any()?)?;
                if extension.id == KEY_IDENTIFIER {
                    let mut fields = Reader::new(extension.value).take(SEQUENCE)?.inside();
                    if let Some(named) = fields.take(implicit(0))
                        && named.content != of_issuer
                    {
                        return Some(false);
                    }
                }
            }
        }
        Some(signed.is_signed_by(issuer.public_key().raw))
    }
}

/// The subject key identifier of a CA.
fn key_identifier(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(identifier) => Some(identifier.0.to_vec()),
            _ => None,
        })
}

/// The serial number of the entry that begins there.
fn serial_at(der: &[u8], place: u32) -> &[u8] {
    der.get(place as usize..)
        .and_then(|bytes| Reader::new(bytes).any())
        .and_then(|entry| entry.inside().take(INTEGER))
        .map_or(&[], |serial| magnitude(serial.content))
}

/// An entry's serial number, its time and its reason. One that speaks for another CA, or has another extension that must be
/// understood, makes the list unreadable.
fn entry_of(content: &[u8]) -> Option<(&[u8], i64, Option<u8>)> {
    let mut fields = Reader::new(content);
    let serial = fields.take(INTEGER)?.content;
    let since = fields.time()?;
    let mut reason = None;
    if let Some(extensions) = fields.take(SEQUENCE) {
        let mut extensions = extensions.inside();
        while !extensions.is_empty() {
            let extension = extension(&extensions.any()?)?;
            if extension.id == REASON {
                let [code] = Reader::new(extension.value).take(ENUMERATED)?.content else {
                    return None;
                };
                reason_name(*code)?;
                reason = Some(*code);
            } else if extension.critical {
                return None;
            }
        }
    }
    fields.is_empty().then_some((serial, since, reason))
}

fn scope(mut extensions: Reader<'_>) -> Result<Scope, Unclear> {
    let mut found = Scope::default();
    while !extensions.is_empty() {
        let element = extensions.any().ok_or_else(broken)?;
        let extension = extension(&element).ok_or_else(broken)?;
        if extension.id == ISSUING_POINT {
            let mut fields = Reader::new(extension.value)
                .take(SEQUENCE)
                .ok_or_else(broken)?
                .inside();
            if let Some(point) = fields.take(explicit(0)) {
                found.names = Some(point_names(point.inside()).ok_or_else(|| {
                    Unclear::from("names its distribution point in a way that is not known")
                })?);
            }
            let mut flag = |number| match fields.take(implicit(number)) {
                None => Ok(false),
                Some(flag) => boolean_of(flag.content).ok_or_else(broken),
            };
            (found.only_users, found.only_cas) = (flag(1)?, flag(2)?);
            found.some_reasons = fields.take(implicit(3)).is_some();
            let mut flag = |number| match fields.take(implicit(number)) {
                None => Ok(false),
                Some(flag) => boolean_of(flag.content).ok_or_else(broken),
            };
            if flag(4)? {
                return Err("is an indirect CRL, which is not used".into());
            }
            if flag(5)? {
                return Err("is for attribute certificates".into());
            }
            if !fields.is_empty() {
                return Err(broken());
            }
        } else if extension.id == DELTA {
            return Err("is a delta CRL".into());
        } else if extension.critical && extension.id != KEY_IDENTIFIER {
            return Err("has a critical extension that is not known".into());
        }
        if extension.id == KEY_IDENTIFIER && Reader::new(extension.value).take(SEQUENCE).is_none() {
            return Err(broken());
        }
    }
    Ok(found)
}

/// The addresses of a DistributionPointName; None when it is given relative to the issuer.
fn point_names(mut point: Reader<'_>) -> Option<Vec<String>> {
    let mut full = point.take(explicit(0))?.inside();
    let mut names = Vec::new();
    while !full.is_empty() && names.len() < NAMES_MAX {
        let name = full.any()?;
        // uniformResourceIdentifier [6] IA5String
        if name.tag == implicit(6) {
            names.push(std::str::from_utf8(name.content).ok()?.to_owned());
        }
    }
    Some(names)
}

fn unwrap_pem(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let body = text.split_once("-----BEGIN X509 CRL-----")?.1;
    let body = body.split_once("-----END X509 CRL-----")?.0;
    let packed: Vec<u8> = body
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    data_encoding::BASE64.decode(&packed).ok()
}
