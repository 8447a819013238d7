//! DER as far as revocation needs it (X.690): definite lengths in their shortest form, tags of one byte. It borrows,
//! allocates nothing and recurses nowhere, so that a CRL of a million entries is read in its own bytes.

use time::{Date, Month, OffsetDateTime, Time};

/// BOOLEAN.
pub(super) const BOOLEAN: u8 = 0x01;
/// INTEGER.
pub(super) const INTEGER: u8 = 0x02;
/// BIT STRING.
pub(super) const BIT_STRING: u8 = 0x03;
/// OCTET STRING.
pub(super) const OCTET_STRING: u8 = 0x04;
/// OBJECT IDENTIFIER.
pub(super) const OID: u8 = 0x06;
/// ENUMERATED.
pub(super) const ENUMERATED: u8 = 0x0a;
/// UTCTime.
const UTC_TIME: u8 = 0x17;
/// GeneralizedTime.
const GENERALIZED_TIME: u8 = 0x18;
/// SEQUENCE.
pub(super) const SEQUENCE: u8 = 0x30;

/// The tag of a constructed context-specific element.
pub(super) const fn explicit(number: u8) -> u8 {
    0xa0 | number
}

/// The tag of a primitive context-specific element.
pub(super) const fn implicit(number: u8) -> u8 {
    0x80 | number
}

/// One element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    pub(super) content: &'a [u8],
    /// With its header, as it was signed.
    pub(super) whole: &'a [u8],
}

impl<'a> Element<'a> {
    /// Reads what is in it.
    pub(super) fn inside(&self) -> Reader<'a> {
        Reader(self.content)
    }
}

/// Reads elements one after the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next element, whatever it is.
    pub(super) fn any(&mut self) -> Option<Element<'a>> {
        let (&tag, rest) = self.0.split_first()?;
        if tag & 0x1f == 0x1f {
            return None;
        }
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x0f))?;
                let length = bytes
                    .iter()
                    .fold(0usize, |length, byte| (length << 8) | usize::from(*byte));
                if length < 0x80 || bytes[0] == 0 {
                    return None;
                }
                (length, rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        let whole = &self.0[..self.0.len() - rest.len()];
        self.0 = rest;
        Some(Element {
            tag,
            content,
            whole,
        })
    }

    /// The next element if it has this tag; else nothing is read.
    pub(super) fn take(&mut self, tag: u8) -> Option<Element<'a>> {
        let mut ahead = *self;
        let element = ahead.any().filter(|element| element.tag == tag)?;
        *self = ahead;
        Some(element)
    }

    /// A UTCTime or GeneralizedTime as Unix seconds, in the forms of RFC 5280: UTC, with seconds, without fractions.
    pub(super) fn time(&mut self) -> Option<i64> {
        let mut ahead = *self;
        let element = ahead.any()?;
        let text = std::str::from_utf8(element.content)
            .ok()?
            .strip_suffix('Z')?;
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let (year, rest) = match (element.tag, text.len()) {
            (UTC_TIME, 12) => {
                let year: i32 = text[..2].parse().ok()?;
                (
                    if year < 50 { 2000 + year } else { 1900 + year },
                    &text[2..],
                )
            }
            (GENERALIZED_TIME, 14) => (text[..4].parse().ok()?, &text[4..]),
            _ => return None,
        };
        let two = |at: usize| rest[at..at + 2].parse::<u8>().ok();
        let date = Date::from_calendar_date(year, Month::try_from(two(0)?).ok()?, two(2)?).ok()?;
        let time = Time::from_hms(two(4)?, two(6)?, two(8)?).ok()?;
        *self = ahead;
        Some(OffsetDateTime::new_utc(date, time).unix_timestamp())
    }

    /// A BIT STRING of whole bytes.
    pub(super) fn bits(&mut self) -> Option<&'a [u8]> {
        let (unused, bits) = self.take(BIT_STRING)?.content.split_first()?;
        (*unused == 0).then_some(bits)
    }
}

/// One extension (RFC 5280, 4.1).
#[derive(Clone, Copy, Debug)]
pub(super) struct Extension<'a> {
    /// The content of the OID.
    pub(super) id: &'a [u8],
    pub(super) critical: bool,
    pub(super) value: &'a [u8],
}

/// Takes an extension apart.
pub(super) fn extension<'a>(element: &Element<'a>) -> Option<Extension<'a>> {
    let mut fields = (element.tag == SEQUENCE).then(|| element.inside())?;
    let id = fields.take(OID)?.content;
    let critical = match fields.take(BOOLEAN) {
        Some(boolean) => boolean_of(boolean.content)?,
        None => false,
    };
    let value = fields.take(OCTET_STRING)?.content;
    fields.is_empty().then_some(Extension {
        id,
        critical,
        value,
    })
}

/// The value of a BOOLEAN's content.
pub(super) fn boolean_of(content: &[u8]) -> Option<bool> {
    match content {
        [0] => Some(false),
        [0xff] => Some(true),
        _ => None,
    }
}

/// A serial number without leading zeros, so that what differs only in how it was padded is equal.
pub(super) fn magnitude(integer: &[u8]) -> &[u8] {
    let zeros = integer.iter().take_while(|byte| **byte == 0).count();
    &integer[zeros.min(integer.len().saturating_sub(1))..]
}

/// Writes an element.
pub(super) fn write(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut bytes = vec![tag];
    let be = length.to_be_bytes();
    let significant = &be[be.iter().take_while(|byte| **byte == 0).count()..];
    match length {
        0..=0x7f => bytes.push(length as u8),
        _ => {
            bytes.push(0x80 | significant.len() as u8);
            bytes.extend_from_slice(significant);
        }
    }
    for part in parts {
        bytes.extend_from_slice(part);
    }
    bytes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for length in [0, 1, 127, 128, 255, 256, 65_535, 65_536, 100_000] {
            let content = vec![7; length];
            let bytes = write(OCTET_STRING, &[&content, &[]]);
            let mut reader = Reader::new(&bytes);
            let element = reader.take(OCTET_STRING).unwrap();
            assert_eq!((element.content, element.whole), (&content[..], &bytes[..]));
            assert!(reader.is_empty());
        }
    }

    #[test]
    fn what_is_no_der_is_not_read() {
        for bytes in [
            &[][..],
            &[0x04],
            &[0x04, 0x01],
            &[0x04, 0x80, 0, 0],
            &[0x04, 0x81, 0x01, 0],
            &[0x04, 0x82, 0x00, 0x80],
            &[0x04, 0x85, 0, 0, 0, 0, 1, 0],
            &[0x1f, 0x01, 0x00],
            &[0x04, 0xff],
        ] {
            assert_eq!(Reader::new(bytes).any(), None, "{bytes:?}");
        }
    }

    #[test]
    fn times_are_those_of_rfc_5280() {
        let time = |tag: u8, text: &str| Reader::new(&write(tag, &[text.as_bytes()])).time();
        assert_eq!(time(0x17, "700101000000Z"), Some(0));
        assert_eq!(time(0x18, "20261122100000Z"), Some(1_795_341_600));
        assert_eq!(time(0x17, "261122100000Z"), Some(1_795_341_600));
        for (tag, wrong) in [
            (0x18, "20261122100000"),
            (0x18, "20261322100000Z"),
            (0x18, "20261122100000.5Z"),
            (0x17, "2611221000Z"),
            (0x17, "261122100060Z"),
            (0x17, "26112210006éZ"),
            (0x04, "20261122100000Z"),
        ] {
            assert_eq!(time(tag, wrong), None, "{wrong}");
        }
    }

    #[test]
    fn padding_of_a_serial_does_not_count() {
        assert_eq!(magnitude(&[0, 0x80]), &[0x80]);
        assert_eq!(magnitude(&[0]), &[0]);
        assert_eq!(magnitude(&[0, 0, 0]), &[0]);
        assert_eq!(magnitude(&[]), &[] as &[u8]);
        assert_eq!(magnitude(&[1, 0]), &[1, 0]);
    }
}
