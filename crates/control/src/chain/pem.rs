//! PEM (RFC 7468), read strictly where it matters: labels, order, base64.

use data_encoding::BASE64;
use lifecycle::rejection::{Code, Reason};
use zeroize::Zeroizing;

use super::{CHAIN_HINT, MAX_INPUT};

/// The most blocks that are looked at.
const MAX_BLOCKS: usize = 64;

/// One block.
pub(super) struct Block<'a> {
    /// Its place in the text, from 1.
    pub(super) number: usize,
    /// What stands between BEGIN and the dashes.
    pub(super) label: &'a str,
    /// Whether its headers say that the body is encrypted (RFC 1421).
    pub(super) encrypted: bool,
    /// The bytes, wiped when dropped, since they may be a key.
    pub(super) body: Zeroizing<Vec<u8>>,
}

/// The blocks of `text`, read one by one.
///
/// # Errors
/// `too_large` before anything is looked at; `not_pem` when there is no block at all.
pub(super) fn blocks(
    text: &[u8],
) -> Result<impl Iterator<Item = Result<Block<'_>, Reason>>, Reason> {
    if text.len() > MAX_INPUT {
        return Err(Reason::new(
            Code::TooLarge,
            format!("The file is longer than {MAX_INPUT} bytes."),
            "",
        ));
    }
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    if !text.windows(BEGIN.len()).any(|window| window == BEGIN) {
        return Err(not_pem(text));
    }
    let mut lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let mut number = 0;
    let mut failed = false;
    Ok(std::iter::from_fn(move || {
        if failed {
            return None;
        }
        let block = next(&mut lines, &mut number)?;
        failed = block.is_err();
        Some(block)
    }))
}

const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";

fn next<'a>(
    lines: &mut impl Iterator<Item = &'a [u8]>,
    number: &mut usize,
) -> Option<Result<Block<'a>, Reason>> {
    loop {
        let line = lines.next()?;
        if line.starts_with(END) {
            return Some(Err(malformed(*number + 1, "ends without having begun")));
        }
        if let Some(rest) = line.strip_prefix(BEGIN) {
            *number += 1;
            if *number > MAX_BLOCKS {
                return Some(Err(Reason::new(
                    Code::TooLarge,
                    format!("The file has more than {MAX_BLOCKS} blocks."),
                    CHAIN_HINT,
                )));
            }
            return Some(block(rest, lines, *number));
        }
        // Explanatory text may surround blocks, but must not contain what looks like a part of one: that is a block whose
        // line breaks were lost.
        if line.windows(BEGIN.len()).any(|window| window == BEGIN) {
            return Some(Err(malformed(
                *number + 1,
                "does not begin on a line of its own",
            )));
        }
    }
}

fn block<'a>(
    begin: &'a [u8],
    lines: &mut impl Iterator<Item = &'a [u8]>,
    number: usize,
) -> Result<Block<'a>, Reason> {
    let label = begin
        .strip_suffix(DASHES)
        .and_then(|label| std::str::from_utf8(label).ok())
        .filter(|label| !label.is_empty() && !label.contains("-----"))
        .ok_or_else(|| {
            malformed(
                number,
                "has a broken first line; perhaps its line breaks were lost",
            )
        })?;
    let mut body = Zeroizing::new(Vec::new());
    let mut encrypted = false;
    let mut in_headers = false;
    loop {
        let line = lines
            .next()
            .ok_or_else(|| malformed(number, "has no end; the file seems to be cut off"))?;
        if let Some(end) = line.strip_prefix(END) {
            if end.strip_suffix(DASHES) != Some(label.as_bytes()) {
                return Err(malformed(
                    number,
                    "ends with another label than it began with",
                ));
            }
            break;
        }
        if line.starts_with(BEGIN) {
            return Err(malformed(number, "has no end before the next one begins"));
        }
        if body.is_empty() && line.contains(&b':') {
            in_headers = true;
            encrypted |= line.starts_with(b"Proc-Type:")
                && line.windows(9).any(|window| window == b"ENCRYPTED");
            continue;
        }
        if in_headers && !line.is_empty() {
            // A folded header, or the body without the blank line that must come first.
            if !encrypted {
                return Err(malformed(number, "has headers that do not end"));
            }
            in_headers = false;
        }
        in_headers &= !line.is_empty();
        // Wiped when it grows too: the body of a key would otherwise be left behind in freed memory.
        if body.capacity() - body.len() < line.len() {
            let mut larger = Vec::with_capacity((body.len() + line.len()).max(4096) * 2);
            larger.extend_from_slice(&body);
            body = Zeroizing::new(larger);
        }
        body.extend_from_slice(line);
    }
    if encrypted {
        body = Zeroizing::new(Vec::new());
    } else {
        let mut decoded = Zeroizing::new(vec![0; body.len() / 4 * 3 + 3]);
        let length = BASE64
            .decode_len(body.len())
            .ok()
            .filter(|length| *length <= decoded.len())
            .and_then(|length| BASE64.decode_mut(&body, &mut decoded[..length]).ok())
            .ok_or_else(|| malformed(number, "is not base64"))?;
        if length == 0 {
            return Err(malformed(number, "is empty"));
        }
        decoded.truncate(length);
        body = decoded;
    }
    Ok(Block {
        number,
        label,
        encrypted,
        body,
    })
}

fn malformed(number: usize, what: &str) -> Reason {
    Reason::new(
        Code::PemMalformed,
        format!("Block {number} of the file {what}."),
        "Pass the file as the CA sent it, or check it: openssl x509 -in chain.pem -noout -text",
    )
}

fn not_pem(text: &[u8]) -> Reason {
    let (message, hint) = match text {
        [] => ("The file is empty.", CHAIN_HINT),
        [0x30, second, ..] if *second >= 0x80 => (
            "The file is binary, not PEM; it may be DER or PKCS#12.",
            "Convert DER by: openssl x509 -inform DER -in FILE -out chain.pem, or a key by: openssl pkey -inform DER -in FILE -out key.pem, or PKCS#12 by: openssl pkcs12 -in FILE -nodes",
        ),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => (
            "The file is UTF-16 text, not PEM.",
            "Save it as plain ASCII or UTF-8 text.",
        ),
        _ => (
            "The file is not PEM: no line starts with -----BEGIN.",
            CHAIN_HINT,
        ),
    };
    Reason::new(Code::NotPem, message, hint)
}
