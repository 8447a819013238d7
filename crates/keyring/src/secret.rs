//! Bytes that must not leak: wiped when dropped, never printed, compared or copied by accident.

use std::fmt;

use zeroize::Zeroizing;

/// Secret bytes of a fixed length, overwritten with zeros when dropped.
///
/// There is no `Clone`, `PartialEq`, `Serialize` or `Deref`: reading the bytes takes the explicit
/// [`expose`](Self::expose), so that each place that does can be found.
///
/// ```compile_fail
/// fn needs_clone<T: Clone>(_: &T) {}
/// needs_clone(&keyring::Secret::from_slice(b"x"));
/// ```
/// ```compile_fail
/// fn needs_eq<T: PartialEq>(_: &T) {}
/// needs_eq(&keyring::Secret::from_slice(b"x"));
/// ```
/// ```compile_fail
/// fn needs_serialize<T: serde::Serialize>(_: &T) {}
/// needs_serialize(&keyring::Secret::from_slice(b"x"));
/// ```
pub struct Secret(Zeroizing<Box<[u8]>>);

impl Secret {
    /// Copies `bytes`; the caller's copy stays the caller's to wipe.
    pub fn from_slice(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// Takes over `bytes` and wipes the vector it came in, whose spare capacity may hold more.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        let bytes = Zeroizing::new(bytes);
        Self::from_slice(&bytes)
    }

    /// The bytes themselves. Whoever copies them is responsible for wiping the copy.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Compares in time that depends on the lengths only.
    pub fn equals(&self, other: &[u8]) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(&self.0, other).is_ok()
    }

    /// The bytes as an array, or nothing when the length differs.
    pub(crate) fn array<const N: usize>(&self) -> Option<Zeroizing<[u8; N]>> {
        let array: &[u8; N] = self.expose().try_into().ok()?;
        Some(Zeroizing::new(*array))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_neither_content_nor_length() {
        let secret = Secret::from_slice(b"hunter2");
        assert_eq!(format!("{secret:?}"), "Secret");
        assert!(secret.equals(b"hunter2"));
        assert!(!secret.equals(b"hunter3"));
        assert!(!secret.equals(b"hunter"));
    }
}
