//! Changes to valid input, by somebody who knows how it is built.

use keyring::der;

/// xorshift64*: a seed repeats a run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `end`, which is not zero.
    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 33) as usize % end.max(1)
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// How an input is built.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Elements of DER.
    Der,
    /// Text, with words that mean something.
    Text(&'static [&'static str]),
    /// Bytes.
    Bytes,
}

/// An input made from the corpus.
pub(crate) fn mutate(random: &mut Random, corpus: &[Vec<u8>], shape: Shape) -> Vec<u8> {
    let mut input = random.of(corpus).clone();
    for _ in 0..1 + random.below(4) {
        input = match shape {
            Shape::Der if !random.one_in(3) => tree(random, &input, corpus),
            Shape::Text(words) if !random.one_in(3) => text(random, &input, words),
            _ => bytes(random, input, corpus),
        };
        input.truncate(1 << 17);
    }
    input
}

fn bytes(random: &mut Random, mut input: Vec<u8>, corpus: &[Vec<u8>]) -> Vec<u8> {
    if input.is_empty() {
        return vec![random.next() as u8];
    }
    let at = random.below(input.len());
    match random.below(8) {
        0 => input[at] ^= 1 << random.below(8),
        1 => input[at] = random.next() as u8,
        2 => input[at] = *random.of(&[0, 1, 0x7f, 0x80, 0x81, 0x84, 0x88, 0xff]),
        3 => input.truncate(at),
        4 => {
            input.drain(at..(at + 1 + random.below(16)).min(input.len()));
        }
        5 => {
            let end = (at + 1 + random.below(64)).min(input.len());
            let again = input[at..end].to_vec();
            for _ in 0..1 + random.below(8) {
                input.splice(at..at, again.iter().copied());
            }
        }
        6 => {
            let other = random.of(corpus);
            let from = random.below(other.len().max(1)).min(other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => {
            let noise: Vec<u8> = (0..1 + random.below(16))
                .map(|_| random.next() as u8)
                .collect();
            input.splice(at..at, noise);
        }
    }
    input
}

fn text(random: &mut Random, input: &[u8], words: &[&str]) -> Vec<u8> {
    let lines: Vec<&[u8]> = input.split_inclusive(|byte| *byte == b'\n').collect();
    let at = random.below(input.len());
    let line = random.below(lines.len());
    let mut lines: Vec<Vec<u8>> = lines.into_iter().map(<[u8]>::to_vec).collect();
    match random.below(6) {
        0 => {
            let mut whole = input.to_vec();
            whole.splice(
                at.min(whole.len())..at.min(whole.len()),
                random.of(words).bytes(),
            );
            return whole;
        }
        1 if lines.len() > 1 => {
            lines.remove(line);
        }
        2 if !lines.is_empty() => {
            let other = random.below(lines.len());
            lines.swap(line, other);
        }
        3 if !lines.is_empty() => {
            let again = lines[line].clone();
            for _ in 0..1 + random.below(100) {
                lines.insert(line, again.clone());
            }
        }
        4 => {
            // A word for another, wherever one stands.
            let word = random.of(words).as_bytes();
            if let Some(at) = input.windows(word.len().max(1)).position(|w| w == word) {
                let mut whole = input.to_vec();
                whole.splice(at..at + word.len(), random.of(words).bytes());
                return whole;
            }
        }
        _ => {
            let ends = ["\r\n", "\r", "", "\n\n", "\u{feff}\n", "\0"];
            let end = random.of(&ends).as_bytes();
            for line in &mut lines {
                while line.last().is_some_and(u8::is_ascii_whitespace) {
                    line.pop();
                }
                line.extend_from_slice(end);
            }
        }
    }
    lines.concat()
}

/// Changes one element and writes those around it with lengths that fit, so that a reader comes as far as the change.
fn tree(random: &mut Random, input: &[u8], corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut count = 0;
    walk(input, 0, &mut count, &mut |_, _| None);
    if count == 0 {
        return bytes(random, input.to_vec(), corpus);
    }
    let chosen = random.below(count);
    let mut at = 0;
    let mut donor = Vec::new();
    // An element from elsewhere, to be put in its place.
    let other = random.of(corpus).clone();
    let mut others = 0;
    walk(&other, 0, &mut others, &mut |_, _| None);
    let wanted = random.below(others);
    let mut seen = 0;
    walk(&other, 0, &mut seen, &mut |number, element| {
        if number == wanted {
            donor = element.to_vec();
        }
        None
    });
    walk(input, 0, &mut at, &mut |number, element| {
        (number == chosen).then(|| change(random, element, &donor))
    })
}

/// What stands in the place of an element, by its number and bytes; none: itself.
type Replace<'a> = dyn FnMut(usize, &[u8]) -> Option<Vec<u8>> + 'a;

/// Gives each element of DER with its number to `replace`, and writes what comes of it.
fn walk(input: &[u8], depth: usize, number: &mut usize, replace: &mut Replace<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(input.len());
    let mut reader = der::Reader::new(input);
    while !reader.is_empty() {
        let Some(whole) = reader.whole() else {
            // What is no DER stays as it is.
            return input.to_vec();
        };
        let this = *number;
        *number += 1;
        if let Some(changed) = replace(this, whole) {
            out.extend(changed);
            continue;
        }
        let Some((tag, content)) = der::Reader::new(whole).next() else {
            return input.to_vec();
        };
        // Octet strings often hold further elements.
        let opens = tag & 0x20 != 0
            || (tag == der::OCTET_STRING
                && content.len() > 2
                && der::Reader::new(content).whole() == Some(content));
        if opens && depth < 24 {
            let inner = walk(content, depth + 1, number, replace);
            out.extend(der::element(tag, &[&inner]));
        } else {
            out.extend_from_slice(whole);
        }
    }
    out
}

fn change(random: &mut Random, element: &[u8], donor: &[u8]) -> Vec<u8> {
    let Some((tag, content)) = der::Reader::new(element).next() else {
        return element.to_vec();
    };
    match random.below(11) {
        0 => Vec::new(),
        1 => [element, element].concat(),
        2 => element.repeat(1 + random.below(300)),
        3 => donor.to_vec(),
        4 => [donor, element].concat(),
        // Another kind of element.
        5 => der::element(
            *random.of(&[
                0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x0c, 0x17, 0x1e, 0x30, 0x31, 0xa0, 0x80,
            ]),
            &[content],
        ),
        // Without anything, and with a number that is far too large.
        6 => der::element(tag, &[]),
        7 => {
            let number: &[u8] = match random.below(4) {
                0 => &[0],
                1 => &[0xff],
                2 => &[0x01, 0, 0, 0],
                _ => &[0x7f; 9][..1 + random.below(9)],
            };
            der::element(tag, &[number])
        }
        8 => {
            // Deep within itself.
            let mut nested = element.to_vec();
            for _ in 0..1 + random.below(200) {
                nested = der::element(*random.of(&[0x30, 0xa0, 0x24, tag | 0x20]), &[&nested]);
            }
            nested
        }
        // A length that is not known beforehand, ended or not.
        9 => {
            let end: &[u8] = if random.one_in(2) { &[0, 0] } else { &[] };
            [&[tag | 0x20, 0x80], content, end].concat()
        }
        _ => {
            let content = bytes(random, content.to_vec(), &[donor.to_vec()]);
            der::element(tag, &[&content])
        }
    }
}
