//! PEM (RFC 7468) as people have it: what only says how a file travelled is passed over, what decides is strict.
//!
//! Passed over are byte order marks, all kinds of line ends, lost ones too, blank lines, indentation, lines of any length, text
//! around the blocks, such as the attributes that `openssl pkcs12` writes, and a block that begins right behind the end of the
//! one before, as `cat` makes them. Strict are labels, the order of BEGIN and END, and base64.

use data_encoding::BASE64;
use lifecycle::rejection::{Code, Reason};
use zeroize::Zeroizing;

use super::{CHAIN_HINT, MAX_INPUT};

/// The most blocks that are looked at.
pub const MAX_BLOCKS: usize = 64;
/// The longest label, in bytes.
const MAX_LABEL: usize = 64;

/// One block.
pub struct Block<'a> {
    /// Its place in the text, from 1.
    pub number: usize,
    /// What stands between BEGIN and the dashes.
    pub label: &'a str,
    /// The value of the header `DEK-Info` when headers say that the body is encrypted (RFC 1421, 4.6.1.1 and 4.6.1.3); empty
    /// when they say so without naming a cipher.
    pub encrypted: Option<&'a str>,
    /// What stands between the lines, without headers.
    body: &'a [u8],
}

impl Block<'_> {
    /// The bytes, wiped when dropped, since they may be a key. Those of an encrypted block are encrypted.
    ///
    /// # Errors
    /// `pem_malformed` for what is not base64, and for nothing.
    pub fn decode(&self) -> Result<Zeroizing<Vec<u8>>, Reason> {
        let mut text = Zeroizing::new(Vec::with_capacity(self.body.len()));
        let mut rest = self.body;
        while let Some((byte, behind)) = rest.split_first() {
            rest = match rest {
                // Line breaks that became text on their way through a variable or JSON.
                [b'\\', b'n' | b'r', behind @ ..] => behind,
                // A byte order mark, and the blank that word processors make.
                [0xef, 0xbb, 0xbf, behind @ ..] | [0xc2, 0xa0, behind @ ..] => behind,
                _ if byte.is_ascii_whitespace() => behind,
                _ => {
                    text.push(*byte);
                    behind
                }
            };
        }
        let mut bytes = Zeroizing::new(vec![0; text.len() / 4 * 3 + 3]);
        let length = BASE64
            .decode_len(text.len())
            .ok()
            .filter(|length| *length <= bytes.len())
            .and_then(|length| BASE64.decode_mut(&text, &mut bytes[..length]).ok())
            .ok_or_else(|| malformed(self.number, "is not base64"))?;
        if length == 0 {
            return Err(malformed(self.number, "is empty"));
        }
        bytes.truncate(length);
        Ok(bytes)
    }
}

/// The blocks of a text, read one by one; the first that is broken ends them.
pub struct Blocks<'a> {
    text: &'a [u8],
    at: usize,
    number: usize,
    beside: bool,
}

/// The blocks of `text`.
///
/// # Errors
/// `too_large` before anything is looked at; `not_pem` when there is no block at all.
pub fn blocks(text: &[u8]) -> Result<Blocks<'_>, Reason> {
    if text.len() > MAX_INPUT {
        return Err(Reason::new(
            Code::TooLarge,
            format!("The file is longer than {MAX_INPUT} bytes."),
            "",
        ));
    }
    if find(text, BEGIN).is_none() {
        return Err(if find(text, END).is_some() {
            malformed(1, "ends without having begun")
        } else {
            not_pem(text)
        });
    }
    Ok(Blocks {
        text,
        at: 0,
        number: 0,
        beside: false,
    })
}

const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

impl Blocks<'_> {
    /// Whether text stood around the blocks that were read so far.
    pub fn text_beside(&self) -> bool {
        self.beside
    }

    fn pass_over(&mut self, from: usize, to: usize) {
        let between = &self.text[from..to];
        let between = between.strip_prefix(b"\xef\xbb\xbf").unwrap_or(between);
        self.beside |= !between.iter().all(u8::is_ascii_whitespace);
    }
}

impl<'a> Iterator for Blocks<'a> {
    type Item = Result<Block<'a>, Reason>;

    fn next(&mut self) -> Option<Self::Item> {
        let text = self.text;
        let here = self.at;
        let begin = find(&text[here..], BEGIN).map(|at| here + at);
        // After a block that is broken nothing more is said.
        self.at = text.len();
        let end = find(&text[here..begin.unwrap_or(text.len())], END);
        if end.is_some() {
            return Some(Err(malformed(self.number + 1, "ends without having begun")));
        }
        let Some(begin) = begin else {
            self.pass_over(here, text.len());
            return None;
        };
        self.pass_over(here, begin);
        self.number += 1;
        if self.number > MAX_BLOCKS {
            return Some(Err(Reason::new(
                Code::TooLarge,
                format!("The file has more than {MAX_BLOCKS} blocks."),
                CHAIN_HINT,
            )));
        }
        match block(text, begin + BEGIN.len(), self.number) {
            Ok((block, behind)) => {
                self.at = behind;
                Some(Ok(block))
            }
            Err(reason) => Some(Err(reason)),
        }
    }
}

/// The label at `from`, and where the text goes on behind its dashes.
fn label(text: &[u8], from: usize) -> Option<(&str, usize)> {
    let rest = &text[from..text.len().min(from + MAX_LABEL + DASHES.len())];
    let length = find(rest, DASHES)?;
    let label = std::str::from_utf8(&rest[..length]).ok()?;
    let plain = !label.is_empty() && label.bytes().all(|b| (b' '..=b'~').contains(&b));
    plain.then_some((label, from + length + DASHES.len()))
}

/// The block whose label begins at `from`, and where the text goes on behind it.
fn block(text: &[u8], from: usize, number: usize) -> Result<(Block<'_>, usize), Reason> {
    let (begun, body) = label(text, from).ok_or_else(|| {
        malformed(
            number,
            "has a broken first line: five dashes, BEGIN, what it is, five dashes",
        )
    })?;
    let end = find(&text[body..], END).map(|at| body + at);
    let nested = find(&text[body..end.unwrap_or(text.len())], BEGIN);
    if nested.is_some() {
        return Err(malformed(number, "has no end before the next one begins"));
    }
    let end = end.ok_or_else(|| malformed(number, "has no end; the file seems to be cut off"))?;
    let behind = label(text, end + END.len())
        .filter(|(ended, _)| *ended == begun)
        .map(|(_, behind)| behind)
        .ok_or_else(|| malformed(number, "ends with another label than it began with"))?;
    let (encrypted, body) = headers(&text[body..end], number)?;
    Ok((
        Block {
            number,
            label: begun,
            encrypted,
            body,
        },
        behind,
    ))
}

/// The headers of a block's body (RFC 1421, 4.4), of which only those of encryption matter, and what stands behind them.
fn headers(body: &[u8], number: usize) -> Result<(Option<&str>, &[u8]), Reason> {
    if !body.contains(&b':') {
        return Ok((None, body));
    }
    let (mut encrypted, mut cipher) = (false, "");
    let mut rest = body;
    while let Some((line, behind)) = rest
        .iter()
        .position(|byte| matches!(byte, b'\n' | b'\r'))
        .map(|length| (rest[..length].trim_ascii(), &rest[length + 1..]))
    {
        if !line.is_empty() && !line.contains(&b':') {
            // The body, perhaps without the blank line that must come before it.
            break;
        }
        let value = |name: &[u8]| line.strip_prefix(name).map(<[u8]>::trim_ascii);
        encrypted |= value(b"Proc-Type:").is_some_and(|value| find(value, b"ENCRYPTED").is_some());
        if let Some(Ok(value)) = value(b"DEK-Info:").map(std::str::from_utf8) {
            cipher = value;
        }
        rest = behind;
    }
    if rest.contains(&b':') {
        return Err(malformed(number, "has headers that do not end"));
    }
    Ok((encrypted.then_some(cipher), rest))
}

fn malformed(number: usize, what: &str) -> Reason {
    Reason::new(
        Code::PemMalformed,
        format!("Block {number} of the file {what}."),
        "Pass the file as the CA sent it, or check it: openssl x509 -in chain.pem -noout -text",
    )
}

fn not_pem(text: &[u8]) -> Reason {
    let (message, hint) = match binary(text) {
        Some(known) => known,
        None => (
            "The file is not PEM: no line starts with -----BEGIN.",
            CHAIN_HINT,
        ),
    };
    Reason::new(Code::NotPem, message, hint)
}

/// What a file without PEM is by its first bytes, and the command that makes something of it; none when it is nothing that is
/// known.
pub fn binary(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    let text = bytes.trim_ascii_start();
    let lower: Vec<u8> = text.iter().take(16).map(u8::to_ascii_lowercase).collect();
    Some(match bytes {
        [] => ("The file is empty.", CHAIN_HINT),
        [0xfe, 0xed, 0xfe, 0xed, ..] | [0xce, 0xce, 0xce, 0xce, ..] => (
            "The file is a Java keystore (JKS or JCEKS).",
            "Convert it to PKCS#12, which is taken as it is: keytool -importkeystore -srckeystore FILE -destkeystore FILE.p12 -deststoretype PKCS12",
        ),
        [b'P', b'K', 3, 4, ..] => (
            "The file is a ZIP archive.",
            "Unpack it and pass the certificate that is in it: unzip FILE",
        ),
        [0x1f, 0x8b, ..] => (
            "The file is compressed by gzip.",
            "Unpack it and pass the certificate that is in it: tar -xzf FILE, or gunzip FILE",
        ),
        [b'%', b'P', b'D', b'F', ..] => (
            "The file is a PDF document.",
            "Pass the certificate itself, as the CA sent it.",
        ),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => (
            "The file is UTF-16 text, not PEM.",
            "Save it as plain ASCII or UTF-8 text: iconv -f UTF-16 -t ASCII FILE > chain.pem",
        ),
        [0x30, second, ..] if *second >= 0x80 => (
            "The file is binary, not PEM; it may be DER or PKCS#12.",
            "The command line takes DER and PKCS#12 as they are. By hand, DER: openssl x509 -inform DER -in FILE -out chain.pem, or a key: openssl pkey -inform DER -in FILE -out key.pem, or PKCS#12: openssl pkcs12 -in FILE -nodes",
        ),
        _ if lower.starts_with(b"<!doctype") || lower.starts_with(b"<html") => (
            "The file is a web page, not a certificate.",
            "Download it again while logged in to the CA, and look at what was saved: head FILE",
        ),
        _ if text.starts_with(b"---- BEGIN SSH2")
            || text.starts_with(b"ssh-")
            || text.starts_with(b"ecdsa-sha2-") =>
        {
            (
                "The file is a key for SSH, which no certificate is issued for.",
                CHAIN_HINT,
            )
        }
        _ => return None,
    })
}

/// What a block is that holds neither a certificate nor a private key in a form that is read; none when its label is not known.
pub fn other(label: &str) -> Option<(Code, &'static str, &'static str)> {
    Some(match label {
        "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST" => (
            Code::NoCertificate,
            "The file holds a signing request, which a CA makes a certificate of.",
            "Send it to the CA, and pass what the CA sends back.",
        ),
        "PUBLIC KEY" | "RSA PUBLIC KEY" | "SSH2 PUBLIC KEY" => (
            Code::NoCertificate,
            "The file holds a public key, which is neither a certificate nor its private key.",
            "Pass the certificate that the CA sent, and the private key that its signing request was made with.",
        ),
        "PGP PUBLIC KEY BLOCK"
        | "PGP PRIVATE KEY BLOCK"
        | "PGP MESSAGE"
        | "PGP SIGNATURE"
        | "PGP SIGNED MESSAGE" => (
            Code::NoCertificate,
            "The file is of OpenPGP (GnuPG), whose keys TLS does not use.",
            "Pass the certificate that a CA issued for the host.",
        ),
        "X509 CRL" => (
            Code::NoCertificate,
            "The file holds a list of revoked certificates.",
            CHAIN_HINT,
        ),
        "EC PARAMETERS" | "DSA PARAMETERS" => (
            Code::NoCertificate,
            "The file holds parameters only, without a key and without a certificate.",
            CHAIN_HINT,
        ),
        _ => return None,
    })
}
