//! Name constraints (RFC 5280, 4.2.1.10) over all forms of names that a certificate for servers can hold.
//!
//! webpki knows those of DNS names and addresses; here are directory names, mail addresses and URIs too, and what no form
//! says by itself: a wildcard counts as all the names that it matches.

use std::net::IpAddr;

use x509_parser::extensions::{GeneralName, GeneralSubtree, NameConstraints, ParsedExtension};
use x509_parser::x509::{AttributeTypeAndValue, RelativeDistinguishedName, X509Name};

use super::certificate::Certificate;

/// Comparisons of a name with a constraint that one verdict is worth. More are refused rather than made: two lists of
/// thousands multiply.
pub(super) const COMPARISONS: usize = 150_000;

/// The most attributes of one part of a directory name that are compared.
const MAX_SET: usize = 8;

/// Why a name may not stand below a CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The constraints forbid it, or are of a form that nobody can judge.
    Forbidden,
    /// There are too many names and constraints.
    TooMany,
}

/// Whether constraints are of the form that RFC 5280 prescribes. What cannot be read must not be passed over: it would
/// constrain nothing.
pub(super) fn well_formed(constraints: &NameConstraints<'_>) -> bool {
    let lists = [
        &constraints.permitted_subtrees,
        &constraints.excluded_subtrees,
    ];
    if lists
        .iter()
        .all(|list| list.as_ref().is_none_or(Vec::is_empty))
    {
        return false;
    }
    lists
        .into_iter()
        .flatten()
        .flatten()
        .all(|subtree| match &subtree.base {
            GeneralName::DNSName(name) => name.is_empty() || is_dns(name),
            GeneralName::IPAddress(bytes) => network(bytes).is_some(),
            GeneralName::RFC822Name(name) => match name.rsplit_once('@') {
                Some((local, host)) => !local.is_empty() && !local.contains('@') && is_dns(host),
                None => is_dns(name.strip_prefix('.').unwrap_or(name)),
            },
            GeneralName::URI(name) => is_dns(name.strip_prefix('.').unwrap_or(name)),
            GeneralName::Invalid(..) => false,
            _ => true,
        })
}

/// Holds the names of `certificate` against the constraints of a CA above it. Each comparison takes one from `left`.
pub(super) fn hold(
    constraints: &NameConstraints<'_>,
    certificate: &Certificate<'_>,
    left: &mut usize,
) -> Result<(), Broken> {
    let subject = certificate.x509.subject();
    if subject.iter_rdn().next().is_some() {
        // Compared in place: a general name of its own would be a copy.
        check(
            constraints,
            left,
            subject.as_raw().len(),
            |base| match base {
                GeneralName::DirectoryName(base) => Some(below(subject, base)),
                _ => None,
            },
        )?;
    }
    let alternative = certificate.find(|parsed| match parsed {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    let names: &[GeneralName<'_>] = alternative.map_or(&[], |(_, names)| names);
    for name in names {
        check(constraints, left, size(name), |base| compare(name, base))?;
    }
    if !names
        .iter()
        .any(|name| matches!(name, GeneralName::RFC822Name(_)))
    {
        for attribute in subject.iter_email() {
            let mail = attribute.as_str().unwrap_or_default();
            check(constraints, left, mail.len(), |base| match base {
                GeneralName::RFC822Name(base) => Some(Match::exactly(mail_within(mail, base))),
                _ => None,
            })?;
        }
    }
    Ok(())
}

/// How a name relates to a constraint of its form.
#[derive(Clone, Copy)]
struct Match {
    /// All that it can stand for lies within.
    wholly: bool,
    /// Something that it can stand for lies within.
    partly: bool,
}

impl Match {
    fn exactly(within: bool) -> Self {
        Self {
            wholly: within,
            partly: within,
        }
    }

    /// Neither permitted nor free of what is excluded.
    const UNKNOWABLE: Self = Self {
        wholly: false,
        partly: true,
    };
}

/// The length of a name, in bytes.
fn size(name: &GeneralName<'_>) -> usize {
    match name {
        GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => {
            name.len()
        }
        GeneralName::DirectoryName(name) => name.as_raw().len(),
        _ => 0,
    }
}

/// One name of `size` bytes against all constraints; `compare` gives nothing for constraints of other forms. A long name
/// counts for several.
fn check(
    constraints: &NameConstraints<'_>,
    left: &mut usize,
    size: usize,
    compare: impl Fn(&GeneralName<'_>) -> Option<Match>,
) -> Result<(), Broken> {
    let mut each = |list: &Option<Vec<GeneralSubtree<'_>>>,
                    visit: &mut dyn FnMut(Match) -> Result<(), Broken>| {
        for subtree in list.iter().flatten() {
            *left = left.checked_sub(1 + size / 64).ok_or(Broken::TooMany)?;
            if let Some(found) = compare(&subtree.base) {
                visit(found)?;
            }
        }
        Ok(())
    };
    each(&constraints.excluded_subtrees, &mut |found| {
        if found.partly {
            Err(Broken::Forbidden)
        } else {
            Ok(())
        }
    })?;
    let (mut constrained, mut permitted) = (false, false);
    each(&constraints.permitted_subtrees, &mut |found| {
        constrained = true;
        permitted |= found.wholly;
        Ok(())
    })?;
    if constrained && !permitted {
        return Err(Broken::Forbidden);
    }
    Ok(())
}

fn compare(name: &GeneralName<'_>, base: &GeneralName<'_>) -> Option<Match> {
    use GeneralName as N;
    Some(match (name, base) {
        (N::DNSName(name), N::DNSName(base)) => dns(name, base),
        (N::IPAddress(name), N::IPAddress(base)) => Match::exactly(address_within(name, base)),
        (N::DirectoryName(name), N::DirectoryName(base)) => below(name, base),
        (N::RFC822Name(name), N::RFC822Name(base)) => Match::exactly(mail_within(name, base)),
        (N::URI(name), N::URI(base)) => match uri_host(name) {
            Some(host) => Match::exactly(host_within(host, base)),
            None => Match::UNKNOWABLE,
        },
        // Names that could not be read have the form of their tag.
        (N::Invalid(tag, _), base) if form(base) == Some(tag.0) => Match::UNKNOWABLE,
        (N::OtherName(..), N::OtherName(..))
        | (N::X400Address(_), N::X400Address(_))
        | (N::EDIPartyName(_), N::EDIPartyName(_))
        | (N::RegisteredID(_), N::RegisteredID(_)) => Match::UNKNOWABLE,
        _ => return None,
    })
}

fn form(name: &GeneralName<'_>) -> Option<u32> {
    use GeneralName as N;
    Some(match name {
        N::OtherName(..) => 0,
        N::RFC822Name(_) => 1,
        N::DNSName(_) => 2,
        N::X400Address(_) => 3,
        N::DirectoryName(_) => 4,
        N::EDIPartyName(_) => 5,
        N::URI(_) => 6,
        N::IPAddress(_) => 7,
        N::RegisteredID(_) => 8,
        N::Invalid(tag, _) => tag.0,
    })
}

fn dns(name: &str, base: &str) -> Match {
    let name = name.strip_suffix('.').unwrap_or(name);
    match name.split_once('.') {
        // A wildcard stands for all names of one more label (RFC 9525, 6.3).
        Some((first, parent)) if first.contains('*') => {
            let wholly = domain_within(parent, base);
            let one_above = base
                .split_once('.')
                .is_some_and(|(_, above)| above.eq_ignore_ascii_case(parent));
            Match {
                wholly,
                partly: wholly || one_above,
            }
        }
        _ if name.contains('*') => Match::UNKNOWABLE,
        _ => Match::exactly(domain_within(name, base)),
    }
}

/// Whether a DNS name is `base` or lies below it.
fn domain_within(name: &str, base: &str) -> bool {
    base.is_empty()
        || match name.len().checked_sub(base.len()) {
            Some(0) => name.eq_ignore_ascii_case(base),
            Some(more) => {
                let (head, tail) = name.as_bytes().split_at(more);
                tail.eq_ignore_ascii_case(base.as_bytes())
                    && (head.ends_with(b".") || tail.starts_with(b"."))
            }
            None => false,
        }
}

/// Whether a host is `base`, or lies below it where `base` begins with a dot: the rule of mail addresses and URIs.
fn host_within(host: &str, base: &str) -> bool {
    if base.starts_with('.') {
        host.len() > base.len() && domain_within(host, base)
    } else {
        host.eq_ignore_ascii_case(base)
    }
}

fn mail_within(mail: &str, base: &str) -> bool {
    let Some((local, host)) = mail.rsplit_once('@') else {
        return false;
    };
    if local.is_empty() || local.contains('@') {
        return false;
    }
    match base.rsplit_once('@') {
        Some((base_local, base_host)) => {
            local == base_local && host.eq_ignore_ascii_case(base_host)
        }
        None => host_within(host, base),
    }
}

/// The host of a URI (RFC 3986, 3.2). None: it has none, or an address, which no constraint of this form can permit.
fn uri_host(uri: &str) -> Option<&str> {
    let (_, rest) = uri.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit('@').next()?;
    let host = host.split(':').next()?;
    (is_dns(host) && host.parse::<IpAddr>().is_err()).then_some(host)
}

/// Address and mask of a constraint. None: neither IPv4 nor IPv6, or a mask with holes.
fn network(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    if !matches!(bytes.len(), 8 | 32) {
        return None;
    }
    let (address, mask) = bytes.split_at(bytes.len() / 2);
    let mut ended = false;
    for byte in mask {
        if byte.leading_ones() + byte.trailing_zeros() < 8 || (ended && *byte != 0) {
            return None;
        }
        ended |= *byte != 0xff;
    }
    Some((address, mask))
}

fn address_within(address: &[u8], base: &[u8]) -> bool {
    network(base).is_some_and(|(network, mask)| {
        address.len() == network.len()
            && address
                .iter()
                .zip(network)
                .zip(mask)
                .all(|((have, want), mask)| have & mask == want & mask)
    })
}

/// Whether a name begins with all of `base` (RFC 5280, 7.1).
fn below(name: &X509Name<'_>, base: &X509Name<'_>) -> Match {
    // Sets are compared each with each; nobody has such long ones.
    let long = |rdn: &RelativeDistinguishedName<'_>| rdn.iter().nth(MAX_SET).is_some();
    if name.iter_rdn().chain(base.iter_rdn()).any(long) {
        return Match::UNKNOWABLE;
    }
    let mut have = name.iter_rdn();
    Match::exactly(
        base.iter_rdn()
            .all(|want| have.next().is_some_and(|have| same_rdn(have, want))),
    )
}

fn same_rdn(one: &RelativeDistinguishedName<'_>, other: &RelativeDistinguishedName<'_>) -> bool {
    one.iter().count() == other.iter().count()
        && one
            .iter()
            .all(|attribute| other.iter().any(|other| same_attribute(attribute, other)))
}

fn same_attribute(one: &AttributeTypeAndValue<'_>, other: &AttributeTypeAndValue<'_>) -> bool {
    if one.attr_type() != other.attr_type() {
        return false;
    }
    if one.as_slice() == other.as_slice() {
        return true;
    }
    match (one.as_str(), other.as_str()) {
        // Case and runs of blanks do not count in strings, whichever of the types they have.
        (Ok(one), Ok(other)) => one
            .split_whitespace()
            .flat_map(|word| std::iter::once(' ').chain(word.chars().flat_map(char::to_lowercase)))
            .eq(other.split_whitespace().flat_map(|word| {
                std::iter::once(' ').chain(word.chars().flat_map(char::to_lowercase))
            })),
        _ => false,
    }
}

/// Whether a text is a DNS name in the preferred syntax (RFC 1034, 3.5; RFC 1123, 2.1), without a final dot.
pub(super) fn is_dns(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        })
}
