//! PKCS#7 bundles (RFC 5652, 5.1 and 10.2.3): certificates in a signed message without a message, as Windows and many CAs send
//! them (`.p7b`). What they hold is taken out; signatures on them are not looked at, since certificates speak for themselves.

use keyring::der::{self, CONTEXT_0, INTEGER, OID, Reader, SEQUENCE, SET};
use lifecycle::rejection::{Code, Reason};
use rustls_pki_types::CertificateDer;

use super::{CHAIN_HINT, MAX_CERTIFICATE, MAX_CERTIFICATES, MAX_INPUT};

const SIGNED: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];

/// Whether bytes begin as a ContentInfo of a signed message does.
pub fn looks_like(bytes: &[u8]) -> bool {
    // Behind the tag and the length, which may not be known beforehand.
    let skip = match bytes {
        [SEQUENCE, length, ..] if *length < 0x80 => 2,
        [SEQUENCE, length, ..] => 2 + usize::from(length & 0x7f),
        _ => return false,
    };
    bytes
        .get(skip..)
        .and_then(|rest| rest.strip_prefix(&[OID, 9]))
        .is_some_and(|rest| rest.starts_with(SIGNED))
}

/// The certificates of a bundle in DER or BER, in its order.
///
/// # Errors
/// `too_large`, `pem_malformed` for what is no bundle, `no_certificate` for one that holds none.
pub fn certificates(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, Reason> {
    if bytes.len() > MAX_INPUT {
        return Err(Reason::new(
            Code::TooLarge,
            format!("The file is longer than {MAX_INPUT} bytes."),
            "",
        ));
    }
    let damaged = || {
        Reason::new(
            Code::PemMalformed,
            "The PKCS#7 bundle cannot be read.",
            "Check it: openssl pkcs7 -in FILE -inform DER -print_certs -noout, or -inform PEM",
        )
    };
    let bundle = der::from_ber(bytes).ok_or_else(damaged)?;
    let set = set_of(&bundle).ok_or_else(damaged)?;
    let mut set = Reader::new(set);
    let mut certificates = Vec::new();
    while !set.is_empty() {
        let tag = set.peek();
        let whole = set.whole().ok_or_else(damaged)?;
        // Other choices are attribute certificates and the like.
        if tag != Some(SEQUENCE) {
            continue;
        }
        if certificates.len() == MAX_CERTIFICATES {
            return Err(Reason::new(
                Code::TooLarge,
                format!("The file holds more than {MAX_CERTIFICATES} certificates."),
                CHAIN_HINT,
            ));
        }
        if whole.len() > MAX_CERTIFICATE {
            return Err(Reason::new(
                Code::TooLarge,
                format!("A certificate of the file is longer than {MAX_CERTIFICATE} bytes."),
                "",
            ));
        }
        certificates.push(CertificateDer::from(whole.to_vec()));
    }
    if certificates.is_empty() {
        return Err(Reason::new(
            Code::NoCertificate,
            "The PKCS#7 bundle holds no certificate.",
            CHAIN_HINT,
        ));
    }
    Ok(certificates)
}

/// The content of the field `certificates` of the SignedData, empty when it is absent.
fn set_of(bundle: &[u8]) -> Option<&[u8]> {
    let mut info = der::sequence(bundle)?;
    if info.expect(OID)? != SIGNED {
        return None;
    }
    let mut signed = der::sequence(info.expect(CONTEXT_0)?)?;
    signed.expect(INTEGER)?;
    signed.expect(SET)?;
    signed.expect(SEQUENCE)?;
    match signed.peek() {
        Some(CONTEXT_0) => signed.expect(CONTEXT_0),
        _ => Some(&[]),
    }
}
