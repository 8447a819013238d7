//! Names as they may appear in commands, events and subjects, checked once and then carried as types.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The operator's own project. It always exists and cannot be created or deleted.
pub const PLATFORM: &str = "platform";

/// Longest project id, in bytes (`[a-z0-9-]{3,40}`).
pub const PROJECT_MAX: usize = 40;
/// Longest name of a certificate, resource, region or edge, in bytes.
pub const NAME_MAX: usize = 64;
/// Longest host, in bytes, without the final dot (RFC 1035 section 2.3.4).
pub const HOST_MAX: usize = 253;
/// Longest label of a host, in bytes (RFC 1035 section 2.3.4).
pub const LABEL_MAX: usize = 63;

/// Why a text is not a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Shorter or longer than allowed.
    #[error("it must have {min} to {max} characters")]
    Length {
        /// Least number of characters.
        min: usize,
        /// Greatest number of characters.
        max: usize,
    },
    /// A character outside `[a-z0-9-]`.
    #[error("only lower-case letters, digits and hyphens are allowed")]
    Character,
    /// A hyphen at either end, or two in a row. `--` separates name and project in provider domains.
    #[error("a hyphen may stand neither at an end nor beside another one")]
    Hyphen,
    /// The word is kept for the system's own use.
    #[error("this name is reserved")]
    Reserved,
    /// Not a host name: an address, an empty label, or a character that host names cannot have.
    #[error(
        "this is not a host name (letters, digits and hyphens in dot-separated labels, at most 253 characters)"
    )]
    Host,
    /// A wildcard somewhere else than as the whole first label, or straight below a top-level domain.
    #[error(
        "a wildcard must be the whole first label and stand below at least two labels, as in *.example.com"
    )]
    Wildcard,
}

/// A slug: the id of a project, or the name of a region, resource, certificate or edge.
///
/// A slug goes into subjects, file names and DNS labels as it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Slug(String);

impl Slug {
    /// Checks the name of a region, resource, certificate or edge: 1 to 64 of `[a-z0-9-]`.
    ///
    /// # Errors
    /// Says which rule the text breaks.
    pub fn name(text: &str) -> Result<Self, Error> {
        Self::checked(text, 1, NAME_MAX)
    }

    /// Checks the id of a project: 3 to 40 of `[a-z0-9-]`.
    ///
    /// # Errors
    /// Says which rule the text breaks. `platform` passes here; whether it may be created is decided elsewhere.
    pub fn project(text: &str) -> Result<Self, Error> {
        Self::checked(text, 3, PROJECT_MAX)
    }

    /// The operator's project.
    pub fn platform() -> Self {
        Self(PLATFORM.to_owned())
    }

    /// Whether this is the operator's project.
    pub fn is_platform(&self) -> bool {
        self.0 == PLATFORM
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn checked(text: &str, min: usize, max: usize) -> Result<Self, Error> {
        if text.len() < min || text.len() > max {
            return Err(Error::Length { min, max });
        }
        if !text
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        {
            return Err(Error::Character);
        }
        if text.starts_with('-') || text.ends_with('-') || text.contains("--") {
            return Err(Error::Hyphen);
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Slug {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        Self::name(&text)
    }
}

impl FromStr for Slug {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::name(text)
    }
}

impl From<Slug> for String {
    fn from(slug: Slug) -> Self {
        slug.0
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Slug {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Slug {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A host: lower-case A-labels without the final dot, or a wildcard for one level, `*.example.com`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Host(String);

impl Host {
    /// Reads a host as people type it: upper case, a final dot and Unicode labels (UTS 46) are brought to the one form.
    ///
    /// # Errors
    /// [`Error::Host`] for anything that is not a DNS host name of at least two labels (addresses are none), and
    /// [`Error::Wildcard`] for a wildcard in the wrong place.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let text = text.strip_suffix('.').unwrap_or(text);
        // Before the costly Unicode step: no host that long can become a valid one.
        if text.is_empty() || text.len() > 4 * HOST_MAX {
            return Err(Error::Host);
        }
        let (wildcard, base) = match text.strip_prefix("*.") {
            Some(base) => (true, base),
            None => (false, text),
        };
        if base.contains('*') {
            return Err(Error::Wildcard);
        }
        let base = if base
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
            && !has_ace_prefix(base)
        {
            base.to_ascii_lowercase()
        } else {
            idna::domain_to_ascii_cow(base.as_bytes(), idna::AsciiDenyList::STD3)
                .map_err(|_| Error::Host)?
                .into_owned()
        };
        let whole = if wildcard {
            format!("*.{base}")
        } else {
            base.clone()
        };
        if whole.len() > HOST_MAX {
            return Err(Error::Host);
        }
        let labels: Vec<&str> = base.split('.').collect();
        if labels.len() < 2 {
            return Err(if wildcard {
                Error::Wildcard
            } else {
                Error::Host
            });
        }
        let proper = |label: &&str| {
            !label.is_empty()
                && label.len() <= LABEL_MAX
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        };
        if !labels.iter().all(proper) {
            return Err(Error::Host);
        }
        // A name whose last label is a number is read as an IPv4 address by browsers (WHATWG URL, "ends in a number").
        let number = |last: &&str| {
            last.bytes().all(|b| b.is_ascii_digit())
                || last
                    .strip_prefix("0x")
                    .is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
        };
        if labels.last().is_some_and(number) {
            return Err(Error::Host);
        }
        Ok(Self(whole))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is a wildcard.
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with("*.")
    }

    /// The host without its first label: `example.com` for both `www.example.com` and `*.example.com`.
    pub fn parent(&self) -> &str {
        self.0.split_once('.').map_or("", |(_, rest)| rest)
    }

    /// The wildcard that covers this host, one level only: `*.example.com` for `www.example.com`. None for a wildcard, and for
    /// a host of two labels (nobody may hold `*.com`).
    pub fn wildcard(&self) -> Option<Host> {
        if self.is_wildcard() || !self.parent().contains('.') {
            return None;
        }
        Some(Self(format!("*.{}", self.parent())))
    }

    /// Whether a certificate name covers this host: the same name, or a wildcard one level above (RFC 9525 section 6.3).
    pub fn covered_by(&self, name: &str) -> bool {
        self.0 == name
            || (!self.is_wildcard()
                && name
                    .strip_prefix("*.")
                    .is_some_and(|base| base == self.parent()))
    }

    /// Whether the host is the domain itself or below it.
    pub fn is_within(&self, domain: &str) -> bool {
        let base = self.0.strip_prefix("*.").unwrap_or(&self.0);
        base == domain
            || base
                .strip_suffix(domain)
                .is_some_and(|head| head.ends_with('.'))
    }

    /// Whether this is a public suffix, or a wildcard straight below one, by the Public Suffix List: names that belong to
    /// everybody below them (`co.uk`, `*.github.io`).
    pub fn is_public_suffix(&self) -> bool {
        let base = self.0.strip_prefix("*.").unwrap_or(&self.0);
        psl::suffix_str(base) == Some(base)
    }
}

/// Whether a label may be an A-label, in any case: then it must be checked, or a host that was stored would not be read again.
fn has_ace_prefix(base: &str) -> bool {
    base.as_bytes()
        .windows(4)
        .any(|four| four.eq_ignore_ascii_case(b"xn--"))
}

impl TryFrom<String> for Host {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        Self::parse(&text)
    }
}

impl FromStr for Host {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl From<Host> for String {
    fn from(host: Host) -> Self {
        host.0
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Host {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        ///
        /// The number is the log sequence of the event that created it, so ids are never used again and a replay gives the same.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "-{}"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                text.strip_prefix(concat!($prefix, "-")).and_then(|n| n.parse().ok()).map(Self).ok_or(Error::Character)
            }
        }

        // In events (text formats) an id reads as it is shown; in rows (binary formats) it is its number.
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                if to.is_human_readable() { to.collect_str(self) } else { to.serialize_u64(self.0) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                if from.is_human_readable() {
                    let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
                    text.parse().map_err(|_| serde::de::Error::custom(concat!("not an id of the form ", $prefix, "-<number>")))
                } else {
                    u64::deserialize(from).map(Self)
                }
            }
        }
    };
}

id! {
    /// The id of a named certificate with all its versions.
    CertificateId, "crt"
}
id! {
    /// The id of a resource.
    ResourceId, "res"
}

/// A SHA-256 digest: a fingerprint of a certificate's DER, or of a key's SubjectPublicKeyInfo. Written as lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let bytes = data_encoding::HEXLOWER
            .decode(text.as_bytes())
            .map_err(|_| Error::Character)?;
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| Error::Length { min: 64, max: 64 })
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() {
            to.collect_str(self)
        } else {
            self.0.serialize(to)
        }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        if from.is_human_readable() {
            let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
            text.parse()
                .map_err(|_| serde::de::Error::custom("not a SHA-256 digest in lower-case hex"))
        } else {
            <[u8; 32]>::deserialize(from).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_brought_to_one_form() {
        for (typed, host) in [
            ("WWW.Example.COM.", "www.example.com"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("*.Example.com", "*.example.com"),
            ("a-b.c--d.example", "a-b.c--d.example"),
        ] {
            assert_eq!(
                Host::parse(typed).map(String::from),
                Ok(host.to_owned()),
                "{typed}"
            );
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for (typed, why) in [
            ("", Error::Host),
            ("localhost", Error::Host),
            ("127.0.0.1", Error::Host),
            ("[::1]", Error::Host),
            ("a..b", Error::Host),
            ("-a.example", Error::Host),
            ("a_b.example", Error::Host),
            ("a b.example", Error::Host),
            ("a/b.example", Error::Host),
            ("*.com", Error::Wildcard),
            ("www.*.com", Error::Wildcard),
            ("w*.example.com", Error::Wildcard),
            ("*.*.example.com", Error::Wildcard),
            (&format!("{}.example", "a".repeat(64)), Error::Host),
            (&format!("{}example", "a.".repeat(130)), Error::Host),
        ] {
            assert_eq!(Host::parse(typed), Err(why), "{typed}");
        }
    }

    #[test]
    fn a_wildcard_covers_one_level_only() {
        let host = |text: &str| Host::parse(text).expect("a host");
        assert!(host("www.example.com").covered_by("*.example.com"));
        assert!(!host("cdn.oss.example.com").covered_by("*.example.com"));
        assert!(!host("example.com").covered_by("*.example.com"));
        assert!(host("*.example.com").covered_by("*.example.com"));
        assert!(!host("*.b.example.com").covered_by("*.example.com"));
        assert!(!host("*.example.com").covered_by("www.example.com"));
        assert_eq!(
            host("www.example.com").wildcard(),
            Some(host("*.example.com"))
        );
        assert_eq!(host("example.com").wildcard(), None);
    }

    #[test]
    fn public_suffixes_are_known() {
        for (name, is) in [
            ("co.uk", true),
            ("*.co.uk", true),
            ("github.io", true),
            ("example.co.uk", false),
            ("*.example.com", false),
        ] {
            assert_eq!(
                Host::parse(name).expect("a host").is_public_suffix(),
                is,
                "{name}"
            );
        }
    }

    #[test]
    fn slugs_keep_to_their_grammar() {
        assert!(Slug::project("acme").is_ok());
        assert!(Slug::project("ab").is_err());
        assert!(Slug::name("a").is_ok());
        for bad in ["", "A", "a.b", "a b", "-a", "a-", "a--b", "ä", "a*", "a>"] {
            assert!(Slug::name(bad).is_err(), "{bad}");
        }
    }
}
