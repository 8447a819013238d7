//! Just enough DER (X.690) to tell key formats apart, to measure them before a crypto library does, and to take containers
//! of certificates and keys to pieces; and from BER, which some of their writers use, to DER.

use zeroize::Zeroizing;

/// INTEGER.
pub const INTEGER: u8 = 0x02;
/// BIT STRING.
pub const BIT_STRING: u8 = 0x03;
/// OCTET STRING.
pub const OCTET_STRING: u8 = 0x04;
/// NULL.
pub const NULL: u8 = 0x05;
/// OBJECT IDENTIFIER.
pub const OID: u8 = 0x06;
/// SEQUENCE.
pub const SEQUENCE: u8 = 0x30;
/// SET.
pub const SET: u8 = 0x31;
/// The context-specific constructed tag 0, which names the curve in a SEC 1 key.
pub const CONTEXT_0: u8 = 0xa0;

/// A reader over the elements of one DER value. It never recurses and never allocates.
#[derive(Clone)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Over these bytes: the content of an element, or whole elements one after the other.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next element with its tag and length, as it stands.
    pub fn whole(&mut self) -> Option<&'a [u8]> {
        let before = self.0;
        self.next()?;
        Some(&before[..before.len() - self.0.len()])
    }

    /// The tag of the next element.
    pub fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The next element: its tag (low form only) and content; nothing at the end or when malformed.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        if tag & 0x1f == 0x1f {
            return None;
        }
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = if first < 0x80 {
            (usize::from(first), rest)
        } else {
            let count = usize::from(first & 0x7f);
            if !(1..=4).contains(&count) {
                return None;
            }
            let (bytes, rest) = rest.split_at_checked(count)?;
            let length = bytes.iter().fold(0, |sum, b| sum << 8 | usize::from(*b));
            // DER wants the shortest form.
            if length < 0x80 || bytes[0] == 0 {
                return None;
            }
            (length, rest)
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// The content of the next element if it has this tag.
    pub fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(t, _)| *t == tag).map(|(_, c)| c)
    }
}

/// The elements of the one SEQUENCE that `der` is, with nothing behind it.
pub fn sequence(der: &[u8]) -> Option<Reader<'_>> {
    let mut outer = Reader::new(der);
    let content = outer.expect(SEQUENCE)?;
    outer.is_empty().then(|| Reader::new(content))
}

/// The bits of a positive INTEGER's content.
pub fn bits(integer: &[u8]) -> usize {
    let significant = integer
        .iter()
        .position(|b| *b != 0)
        .map_or(&[][..], |at| &integer[at..]);
    match significant.first() {
        Some(first) => significant.len() * 8 - first.leading_zeros() as usize,
        None => 0,
    }
}

/// One element of DER with the tag `tag` over the concatenated `parts`.
pub fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Vec::with_capacity(length + 6);
    head(tag, length, &mut out);
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

fn head(tag: u8, length: usize, out: &mut Vec<u8>) {
    out.push(tag);
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let significant = &bytes[bytes.iter().take_while(|b| **b == 0).count()..];
        out.push(0x80 | significant.len() as u8);
        out.extend_from_slice(significant);
    }
}

/// How deep elements of BER may stand in one another.
const DEPTH: usize = 32;
/// Elements of one value at most. A bundle of a thousand certificates has about a hundred thousand.
const ELEMENTS: usize = 1 << 20;
/// OCTET STRING in pieces.
const OCTET_STRINGS: u8 = 0x24;

/// The one element of BER that `bytes` are, with lengths and octet strings as DER writes them; what is DER comes back as it
/// is. Macs, Firefox and old Windows write their containers with lengths that are not known beforehand (X.690, 8.1.3.6).
///
/// The elements of a SET are not sorted and values other than octet strings are not touched: it is enough to be read here.
/// None when it is no BER, has anything behind it but zeros, is nested deeper than 32, or has more than 2^20 elements.
///
/// There is one buffer, which is wiped in the end, and each byte is moved at most once for each element that it stands in.
pub fn from_ber(bytes: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut rest = bytes;
    // Room for all that can come of it: a buffer that grew would leave secrets behind that nobody wipes.
    let mut out = Zeroizing::new(Vec::with_capacity(bytes.len() * 2 + 16));
    let mut elements = ELEMENTS;
    transcode(&mut rest, DEPTH, &mut elements, &mut out)?;
    rest.iter().all(|b| *b == 0).then_some(out)
}

fn transcode(
    input: &mut &[u8],
    depth: usize,
    elements: &mut usize,
    out: &mut Vec<u8>,
) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    *elements = elements.checked_sub(1)?;
    let start = out.len();
    let whole = *input;
    let (&tag, rest) = whole.split_first()?;
    let (&first, rest) = rest.split_first()?;
    if tag & 0x1f == 0x1f {
        return None;
    }
    let constructed = tag & 0x20 != 0;
    if first == 0x80 {
        if !constructed {
            return None;
        }
        let mut rest = rest;
        while !rest.starts_with(&[0, 0]) {
            transcode(&mut rest, depth, elements, out)?;
        }
        *input = &rest[2..];
        return close(tag, start, out);
    }
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let count = usize::from(first & 0x7f);
        if count > 8 {
            return None;
        }
        let (bytes, rest) = rest.split_at_checked(count)?;
        let length = bytes.iter().try_fold(0_usize, |sum, byte| {
            sum.checked_mul(256)?.checked_add(usize::from(*byte))
        })?;
        (length, rest)
    };
    let (content, behind) = rest.split_at_checked(length)?;
    *input = behind;
    if constructed {
        let mut left = content;
        let mut read = Some(());
        while read.is_some() && !left.is_empty() {
            read = transcode(&mut left, depth, elements, out);
        }
        if read.is_some() {
            return close(tag, start, out);
        }
        out.truncate(start);
    }
    head(tag, length, out);
    out.extend_from_slice(content);
    Some(())
}

/// Makes one element of the content that stands in `out` from `start` on, its octet string put together when it came in
/// pieces.
fn close(tag: u8, start: usize, out: &mut Vec<u8>) -> Option<()> {
    let tag = if tag == OCTET_STRINGS {
        let (mut from, mut to) = (start, start);
        while from < out.len() {
            let mut reader = Reader::new(&out[from..]);
            let length = reader.expect(OCTET_STRING)?.len();
            let end = out.len() - reader.0.len();
            out.copy_within(end - length..end, to);
            (from, to) = (end, to + length);
        }
        out.truncate(to);
        OCTET_STRING
    } else {
        tag
    };
    let length = out.len() - start;
    head(tag, length, out);
    let written = out.len() - start - length;
    out[start..].rotate_right(written);
    Some(())
}

/// The concatenation of octet strings.
pub fn pieces(content: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut whole = Zeroizing::new(Vec::with_capacity(content.len()));
    let mut reader = Reader::new(content);
    while !reader.is_empty() {
        whole.extend_from_slice(reader.expect(OCTET_STRING)?);
    }
    Some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(depth: usize, inner: &[u8]) -> Vec<u8> {
        let mut ber = [SEQUENCE, 0x80].repeat(depth);
        ber.extend_from_slice(inner);
        ber.resize(ber.len() + 2 * depth, 0);
        ber
    }

    #[test]
    fn lengths_that_are_not_known_beforehand_are_written_as_der() {
        let ber = nested(
            2,
            &[INTEGER, 0x81, 1, 5, 0x24, 0x80, 4, 1, 7, 4, 2, 8, 9, 0, 0],
        );
        let der = element(
            SEQUENCE,
            &[&element(
                SEQUENCE,
                &[
                    &element(INTEGER, &[&[5]]),
                    &element(OCTET_STRING, &[&[7, 8, 9]]),
                ],
            )],
        );
        assert_eq!(&**from_ber(&ber).expect("BER"), &der[..]);
        assert_eq!(&**from_ber(&der).expect("DER"), &der[..]);
        // What only looks like elements comes back as it is.
        let opaque = element(SEQUENCE, &[&[INTEGER, 1, 1], &[0x24, 9, 4]]);
        assert_eq!(&**from_ber(&opaque).expect("DER"), &opaque[..]);
        assert!(from_ber(&nested(1, &[0x24, 0x80, 2, 1, 7, 0, 0])).is_none());
        assert!(from_ber(&nested(DEPTH, &[])).is_some());
        assert!(from_ber(&nested(DEPTH + 1, &[])).is_none());
    }

    #[test]
    fn the_buffer_never_grows() {
        // The most that lengths can grow: content of each size stands in as many elements as it may.
        for size in [0, 1, 127, 128, 255, 256, 65_535, 65_536, 1 << 20] {
            let inner = element(OCTET_STRING, &[&vec![7; size]]);
            for depth in [1, 2, DEPTH - 1] {
                let ber = nested(depth, &inner);
                let out = from_ber(&ber).expect("BER");
                assert_eq!(out.capacity(), ber.len() * 2 + 16, "{size} in {depth}");
            }
        }
    }

    #[test]
    fn elements_are_counted() {
        let siblings = |count: usize| nested(1, &[SEQUENCE, 0x80, 0, 0].repeat(count));
        assert!(from_ber(&siblings(ELEMENTS - 1)).is_some());
        assert!(from_ber(&siblings(ELEMENTS)).is_none());
    }
}
