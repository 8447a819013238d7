//! Just enough DER to tell key formats apart and to measure them before a crypto library does.

pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OID: u8 = 0x06;
pub(crate) const SEQUENCE: u8 = 0x30;
/// The context-specific constructed tag 0, which names the curve in a SEC 1 key.
pub(crate) const CONTEXT_0: u8 = 0xa0;

/// A reader over the elements of one DER value. It never recurses and never allocates.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next element: its tag (low form only) and content; nothing at the end or when malformed.
    pub(crate) fn next(&mut self) -> Option<(u8, &'a [u8])> {
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
    pub(crate) fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(t, _)| *t == tag).map(|(_, c)| c)
    }
}

/// The elements of the one SEQUENCE that `der` is, with nothing behind it.
pub(crate) fn sequence(der: &[u8]) -> Option<Reader<'_>> {
    let mut outer = Reader::new(der);
    let content = outer.expect(SEQUENCE)?;
    outer.is_empty().then(|| Reader::new(content))
}

/// The bits of a positive INTEGER's content.
pub(crate) fn bits(integer: &[u8]) -> usize {
    let significant = integer
        .iter()
        .position(|b| *b != 0)
        .map_or(&[][..], |at| &integer[at..]);
    match significant.first() {
        Some(first) => significant.len() * 8 - first.leading_zeros() as usize,
        None => 0,
    }
}
