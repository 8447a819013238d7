//! OCSP (RFC 6960, in the profile of RFC 5019): the question, and whether an answer is believed.

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;

use super::answer::{SKEW, Said, Unclear, current, reason_name};
use super::der::{
    ENUMERATED, Element, INTEGER, OCTET_STRING, OID, Reader, SEQUENCE, explicit, extension,
    implicit, magnitude, write,
};
use super::points::{Signed, issued, sha1};

/// Bytes of an answer at most.
pub(super) const ANSWER_MAX: usize = 64 * 1024;
/// Certificates in an answer that are looked at.
const RESPONDERS_MAX: usize = 8;
/// Single answers in an answer that are looked at; a responder may say more than it was asked.
const SINGLES_MAX: usize = 64;
/// How old an answer may be that does not say until when it holds, seconds.
const UNDATED_MAX: i64 = 24 * 3_600;

const SHA1: &[u8] = &[0x2b, 0x0e, 0x03, 0x02, 0x1a];
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
const BASIC: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x01];
const NULL: &[u8] = &[0x05, 0x00];

/// The certificate that is asked about.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    /// Its serial number, as it stands in it.
    pub(super) serial: &'a [u8],
    /// Who issued it.
    pub(super) issuer: &'a X509Certificate<'a>,
}

/// The question: one certificate, named by SHA-1, which every responder knows, without a nonce, so that caches may answer.
pub(super) fn request(asked: Asked<'_>) -> Vec<u8> {
    let name = sha1(asked.issuer.subject().as_raw());
    let key = sha1(&asked.issuer.public_key().subject_public_key.data);
    let id = write(
        SEQUENCE,
        &[
            &write(SEQUENCE, &[&write(OID, &[SHA1]), NULL]),
            &write(OCTET_STRING, &[&name]),
            &write(OCTET_STRING, &[&key]),
            &write(INTEGER, &[asked.serial]),
        ],
    );
    let list = write(SEQUENCE, &[&write(SEQUENCE, &[&id])]);
    write(SEQUENCE, &[&write(SEQUENCE, &[&list])])
}

/// What an answer says of the certificate at the time `now`, Unix seconds.
///
/// It is believed when the certificate's issuer signed it, or somebody whom the issuer has appointed for that (RFC 6960,
/// 4.2.2.2), and when it is current. Whether the appointed one was revoked itself is not looked at.
///
/// # Errors
/// Why it says nothing.
pub(super) fn read(answer: &[u8], asked: Asked<'_>, now: i64) -> Result<Said, Unclear> {
    const BROKEN: &str = "is no OCSP answer";
    let broken = || Unclear::from(BROKEN);
    let mut outer = Reader::new(answer);
    let mut fields = outer.take(SEQUENCE).ok_or_else(broken)?.inside();
    if !outer.is_empty() {
        return Err(broken());
    }
    match fields.take(ENUMERATED).ok_or_else(broken)?.content {
        [0] => {}
        [2] => return Err("says that it failed (internalError)".into()),
        [3] => return Err("says to come back later (tryLater)".into()),
        [6] => {
            return Err("says that it does not answer for this certificate (unauthorized)".into());
        }
        _ => return Err("says that it does not take the question".into()),
    }
    let mut bytes = fields
        .take(explicit(0))
        .and_then(|bytes| bytes.inside().take(SEQUENCE))
        .ok_or_else(broken)?
        .inside();
    if bytes.take(OID).ok_or_else(broken)?.content != BASIC {
        return Err("is of a kind that is not known".into());
    }
    let basic = bytes.take(OCTET_STRING).ok_or_else(broken)?.content;
    let signed = Signed::read(basic).ok_or_else(broken)?;

    let mut data = signed.message.inside();
    let _version = data.take(explicit(0));
    let responder = data.any().ok_or_else(broken)?;
    data.time().ok_or_else(broken)?;
    let singles = data.take(SEQUENCE).ok_or_else(broken)?;
    let mut clear = harmless(data.take(explicit(1)));
    if !believed(&signed, &responder, asked.issuer, now) {
        return Err("is signed neither by the certificate's issuer nor by a responder that the issuer appointed".into());
    }

    let mut singles = singles.inside();
    let mut why = Unclear::from("does not speak of this certificate");
    for _ in 0..SINGLES_MAX {
        if singles.is_empty() {
            break;
        }
        let mut single = singles.take(SEQUENCE).ok_or_else(broken)?.inside();
        let id = single.take(SEQUENCE).ok_or_else(broken)?;
        let status = single.any().ok_or_else(broken)?;
        let this_update = single.time().ok_or_else(broken)?;
        let next_update = match single.take(explicit(0)) {
            Some(next) => next.inside().time().ok_or_else(broken)?,
            None => this_update.saturating_add(UNDATED_MAX),
        };
        if !names(&id, asked) {
            continue;
        }
        clear &= harmless(single.take(explicit(1)));
        if !clear {
            return Err("has a critical extension that is not known".into());
        }
        match current(this_update, next_update, now) {
            Ok(()) => return said(&status),
            Err(unclear) => why = unclear,
        }
    }
    Err(why)
}

fn said(status: &Element<'_>) -> Result<Said, Unclear> {
    let broken = || Unclear::from("is no OCSP answer");
    if status.tag == implicit(0) {
        return Ok(Said::Good);
    }
    if status.tag == implicit(2) || status.tag == explicit(2) {
        return Err("says that it does not know this certificate".into());
    }
    if status.tag != explicit(1) {
        return Err(broken());
    }
    let mut fields = status.inside();
    let since = fields.time().ok_or_else(broken)?;
    let reason = match fields.take(explicit(0)) {
        None => None,
        Some(reason) => match reason.inside().take(ENUMERATED).map(|r| r.content) {
            Some([reason]) if reason_name(*reason).is_some() => Some(*reason),
            _ => return Err(broken()),
        },
    };
    Ok(Said::Revoked { since, reason })
}

/// Whether a CertID names the certificate that was asked about.
fn names(id: &Element<'_>, asked: Asked<'_>) -> bool {
    let matches = || -> Option<bool> {
        let mut fields = id.inside();
        let algorithm = fields.take(SEQUENCE)?.inside().take(OID)?.content;
        let name = fields.take(OCTET_STRING)?.content;
        let key = fields.take(OCTET_STRING)?.content;
        let serial = fields.take(INTEGER)?.content;
        let (of_name, of_key) = (
            asked.issuer.subject().as_raw(),
            &asked.issuer.public_key().subject_public_key.data,
        );
        let hashes = if algorithm == SHA1 {
            name == sha1(of_name) && key == sha1(of_key)
        } else if algorithm == SHA256 {
            let sha256 =
                |bytes: &[u8]| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
            name == sha256(of_name).as_ref() && key == sha256(of_key).as_ref()
        } else {
            false
        };
        Some(hashes && magnitude(serial) == magnitude(asked.serial))
    };
    matches().unwrap_or(false)
}

fn believed(
    signed: &Signed<'_>,
    responder: &Element<'_>,
    issuer: &X509Certificate<'_>,
    now: i64,
) -> bool {
    if is(responder, issuer) && signed.is_signed_by(issuer.public_key().raw) {
        return true;
    }
    let Some(list) = signed
        .rest
        .clone()
        .take(explicit(0))
        .and_then(|list| list.inside().take(SEQUENCE))
    else {
        return false;
    };
    let mut list = list.inside();
    for _ in 0..RESPONDERS_MAX {
        let Some(element) = list.take(SEQUENCE) else {
            return false;
        };
        let Ok((_, delegate)) = x509_parser::parse_x509_certificate(element.whole) else {
            continue;
        };
        if is(responder, &delegate)
            && appointed(element.whole, &delegate, issuer, now)
            && signed.is_signed_by(delegate.public_key().raw)
        {
            return true;
        }
    }
    false
}

/// Whether a ResponderID means the holder of this certificate.
fn is(responder: &Element<'_>, certificate: &X509Certificate<'_>) -> bool {
    if responder.tag == explicit(1) {
        responder.content == certificate.subject().as_raw()
    } else if responder.tag == explicit(2) {
        responder.inside().take(OCTET_STRING).is_some_and(|hash| {
            hash.content == sha1(&certificate.public_key().subject_public_key.data)
        })
    } else {
        false
    }
}

/// Whether the issuer appointed the holder of this certificate to answer in its place.
fn appointed(
    der: &[u8],
    delegate: &X509Certificate<'_>,
    issuer: &X509Certificate<'_>,
    now: i64,
) -> bool {
    let signs = matches!(delegate.extended_key_usage(), Ok(Some(usage)) if usage.value.ocsp_signing)
        && !matches!(delegate.key_usage(), Ok(Some(usage)) if !usage.value.digital_signature());
    let validity = delegate.validity();
    let in_time = validity.not_before.timestamp() <= now.saturating_add(SKEW)
        && now.saturating_sub(SKEW) <= validity.not_after.timestamp();
    signs && in_time && issued(&CertificateDer::from(der), delegate, issuer)
}

/// Whether extensions contain none that must be understood: none is that changes what an answer means.
fn harmless(extensions: Option<Element<'_>>) -> bool {
    let Some(extensions) = extensions else {
        return true;
    };
    let Some(list) = extensions.inside().take(SEQUENCE) else {
        return false;
    };
    let mut list = list.inside();
    while !list.is_empty() {
        match list.any().as_ref().and_then(extension) {
            Some(extension) if !extension.critical => {}
            _ => return false,
        }
    }
    true
}
