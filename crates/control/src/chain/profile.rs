//! What a certificate must be by itself, beside what every client checks: the profile of RFC 5280 (4.1 and 4.2) and, for what
//! it leaves open, that of the CA/Browser Forum's baseline requirements.
//!
//! webpki reads as leniently as the web needs it and asks nothing of an anchor but its name and key. Here the fields are held
//! to their rules, so that a certificate that one client takes and the next one refuses does not pass as good.

use lifecycle::rejection::{Code, Reason};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::{SubjectPublicKeyInfo, X509Version};

use super::certificate::Certificate;
use super::constraints::{is_dns, well_formed};
use super::examine::{KEY_HINT, WEAK, key_kind, rsa_bits};

const INSPECT: &str = "Look at it: openssl x509 -in FILE -noout -text; have it issued anew in the form of RFC 5280, or use a chain without it.";
const CA_HINT: &str = "Use a chain whose CAs may issue, or have the CA's certificate issued anew: basicConstraints=critical,CA:TRUE and keyUsage=critical,keyCertSign,cRLSign.";

/// The longest serial number, in bytes (RFC 5280, 4.1.2.2).
const MAX_SERIAL: usize = 20;
const SECONDS_A_DAY: i64 = 86_400;

/// Extensions that are processed, so that they may be critical: key usage, subject alternative names, basic constraints, name
/// constraints, CRL distribution points, extended key usage.
const PROCESSED: &[&str] = &[
    "2.5.29.15",
    "2.5.29.17",
    "2.5.29.19",
    "2.5.29.30",
    "2.5.29.31",
    "2.5.29.37",
];
/// The certificate policies, which only inform unless somebody constrains them.
const POLICIES: &str = "2.5.29.32";

/// The place of a certificate in a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The server's own.
    Leaf,
    /// A CA that was given along.
    Issuer,
    /// A CA that is trusted because somebody says so.
    Anchor,
    /// A CA that is trusted because the public roots hold it: their keepers have judged it.
    PublicAnchor,
}

impl Role {
    fn anchor(self) -> bool {
        matches!(self, Self::Anchor | Self::PublicAnchor)
    }
}

/// All that is wrong with a certificate in its place, and what is odd about it. `name` names it in a sentence.
///
/// What [`super::examine`] says of a leaf, and dates, are not repeated.
pub(super) fn judge(
    certificate: &Certificate<'_>,
    role: Role,
    name: &str,
) -> (Vec<Reason>, Vec<String>) {
    let mut found = Findings {
        name,
        reasons: Vec::new(),
        warnings: Vec::new(),
    };
    form(certificate, role, &mut found);
    extensions(certificate, role, &mut found);
    match role {
        Role::Leaf => leaf(certificate, &mut found),
        _ => issuer(certificate, role, &mut found),
    }
    (found.reasons, found.warnings)
}

struct Findings<'a> {
    name: &'a str,
    reasons: Vec<Reason>,
    warnings: Vec<String>,
}

impl Findings<'_> {
    fn reject(&mut self, code: Code, what: &str, hint: &str) {
        self.reasons
            .push(Reason::new(code, format!("{} {what}", self.name), hint));
    }

    /// A fault of form.
    fn form(&mut self, what: &str) {
        self.reject(Code::PemMalformed, what, INSPECT);
    }

    fn warn(&mut self, what: &str) {
        self.warnings.push(format!("{} {what}", self.name));
    }
}

fn form(certificate: &Certificate<'_>, role: Role, found: &mut Findings<'_>) {
    let x509 = &certificate.x509;
    if x509.version() != X509Version::V3 {
        found.form("is not of version 3, the only one that can carry extensions.");
    }
    if !certificate.algorithms_agree() {
        found.form("names two different signature algorithms.");
    }
    let serial = x509.raw_serial();
    let digits = serial.iter().skip_while(|byte| **byte == 0).count();
    if serial.first().is_none_or(|first| first & 0x80 != 0) || digits == 0 {
        // Old roots have such numbers; nothing depends on an anchor's.
        if role.anchor() {
            found.warn("has a serial number that is not positive.");
        } else {
            found.form("has a serial number that is not positive.");
        }
    } else if serial.len() > MAX_SERIAL {
        if role.anchor() {
            found.warn("has a serial number of more than 20 bytes.");
        } else {
            found.form("has a serial number of more than 20 bytes.");
        }
    }
    if x509.issuer().iter_rdn().next().is_none() {
        found.form("has no issuer.");
    }
    let validity = x509.validity();
    if validity.not_after.timestamp() < validity.not_before.timestamp() {
        found.form("ends before it begins.");
    }
    key(x509.public_key(), role, found);
    let algorithm = x509.signature_algorithm.algorithm.to_id_string();
    let weak = WEAK.contains(&algorithm.as_str());
    // The leaf's is told with the other facts of the leaf; a signature of an anchor protects nothing.
    if role == Role::Issuer && weak {
        found.reject(
            Code::SignatureWeak,
            "is signed with SHA-1 or MD5, which can be forged.",
            "Have it issued anew with SHA-256 or better.",
        );
    } else if !role.anchor() && !weak && !certificate.signature_can_be_checked() {
        found.reject(
            Code::SignatureWeak,
            "is signed in a way that clients do not accept.",
            "Have it issued anew with RSA or ECDSA and SHA-256, SHA-384 or SHA-512, or with Ed25519.",
        );
    }
}

fn key(key: &SubjectPublicKeyInfo<'_>, role: Role, found: &mut Findings<'_>) {
    if let Ok(PublicKey::RSA(rsa)) = key.parsed() {
        match rsa_bits(key) {
            Some(bits) if bits >= 2048 && bits % 8 != 0 => found.reject(
                Code::KeyUnsupported,
                &format!("has an RSA key of {bits} bits, which is no whole number of bytes."),
                KEY_HINT,
            ),
            // The leaf's size is told with the other facts of the leaf.
            Some(bits) if bits < 2048 && role != Role::Leaf => found.reject(
                Code::KeyTooSmall,
                &format!("has an RSA key of {bits} bits, fewer than 2048."),
                "Use a chain whose CAs have keys of at least 2048 bits.",
            ),
            _ => {}
        }
        let exponent: &[u8] = {
            let zeros = rsa.exponent.iter().take_while(|byte| **byte == 0).count();
            &rsa.exponent[zeros..]
        };
        if exponent.last().is_none_or(|last| last % 2 == 0) || exponent == [1] {
            found.reject(
                Code::KeyUnsupported,
                "has an RSA key whose public exponent is even or 1.",
                KEY_HINT,
            );
        }
    } else if role != Role::Leaf && key_kind(key).is_err() && !is_p521(key) {
        found.reject(
            Code::KeyUnsupported,
            "has a key of a kind that clients do not accept from a CA.",
            "Use a chain whose CAs have keys of RSA, or of ECDSA on the named curves P-256, P-384 or P-521.",
        );
    }
    if let Ok(PublicKey::EC(point)) = key.parsed() {
        let data = point.data();
        if data.first() != Some(&4) || data.len() % 2 == 0 {
            found.reject(
                Code::KeyUnsupported,
                "has an elliptic curve key that is not an uncompressed point.",
                KEY_HINT,
            );
        }
    }
}

fn is_p521(key: &SubjectPublicKeyInfo<'_>) -> bool {
    key.algorithm
        .parameters
        .as_ref()
        .and_then(|parameters| parameters.as_oid().ok())
        .is_some_and(|curve| curve.to_id_string() == "1.3.132.0.35")
}

fn extensions(certificate: &Certificate<'_>, role: Role, found: &mut Findings<'_>) {
    let all = certificate.extensions();
    for (place, extension) in all.iter().enumerate() {
        if all[..place]
            .iter()
            .any(|earlier| earlier.oid == extension.oid)
        {
            found.form("has the same extension twice.");
            break;
        }
    }
    for extension in all {
        let oid = extension.oid.to_id_string();
        let critical = extension.critical;
        match extension.parsed_extension() {
            ParsedExtension::ParseError { .. } => {
                found.form(&format!("has an extension ({oid}) that cannot be read."));
            }
            ParsedExtension::AuthorityKeyIdentifier(_)
            | ParsedExtension::SubjectKeyIdentifier(_)
            | ParsedExtension::AuthorityInfoAccess(_)
            | ParsedExtension::SubjectInfoAccess(_)
                if critical =>
            {
                found.form(&format!(
                    "marks an extension ({oid}) as critical that must not be."
                ));
            }
            ParsedExtension::AuthorityInfoAccess(access) if access.accessdescs.is_empty() => {
                found.form("has an empty list of where information about its issuer is.");
            }
            ParsedExtension::PolicyConstraints(_) if !critical => {
                found.form("does not mark its policy constraints as critical.");
            }
            ParsedExtension::NameConstraints(constraints) => {
                if role == Role::Leaf {
                    found.form("has name constraints, which only a CA may have.");
                } else if !well_formed(constraints) {
                    found.form("has name constraints that are empty or not of their form.");
                }
            }
            // webpki says it of what is given along, and passes over it in an anchor.
            _ if critical
                && !PROCESSED.contains(&oid.as_str())
                && !(role.anchor() && oid == POLICIES) =>
            {
                found.form(&format!(
                    "has a critical extension ({oid}) that is not known; it must not be passed over."
                ));
            }
            _ => {}
        }
    }
}

fn issuer(certificate: &Certificate<'_>, role: Role, found: &mut Findings<'_>) {
    let x509 = &certificate.x509;
    if x509.subject().iter_rdn().next().is_none() {
        found.form("is of a CA without a name.");
    }
    match x509.basic_constraints() {
        Ok(Some(constraints)) if constraints.value.ca => {
            if !constraints.critical && role != Role::PublicAnchor {
                found.reject(
                    Code::ChainUntrusted,
                    "does not mark its basic constraints as critical, as a CA must.",
                    CA_HINT,
                );
            }
        }
        _ => found.reject(
            Code::ChainUntrusted,
            "is not a CA: its basic constraints do not say so.",
            CA_HINT,
        ),
    }
    match x509.key_usage() {
        Ok(Some(usage)) if !usage.value.key_cert_sign() => found.reject(
            Code::ChainUntrusted,
            "may not issue certificates: its key usage lacks keyCertSign.",
            CA_HINT,
        ),
        _ => {}
    }
    if let Ok(Some(usage)) = x509.extended_key_usage()
        && !usage.value.server_auth
        && !(role.anchor() && usage.value.any)
    {
        found.reject(
            Code::NotAServerCertificate,
            "may not issue certificates for servers: its extended key usage lacks serverAuth.",
            "Use a chain whose CAs allow the extended key usage serverAuth.",
        );
    }
    if certificate.subject_key_id().is_none() {
        found.warn("has no subject key identifier, by which some clients find issuers.");
    }
    if certificate.self_issued() {
        if role == Role::Anchor {
            own_authority(certificate, found);
        }
    } else if certificate.authority_key_id().is_none() {
        found.warn("has no authority key identifier, by which some clients find issuers.");
    }
}

/// The authority key identifier of a root names its own key or is not there (baseline requirements, 7.1.2.1.3).
fn own_authority(certificate: &Certificate<'_>, found: &mut Findings<'_>) {
    let Some((_, authority)) = certificate.find(|parsed| match parsed {
        ParsedExtension::AuthorityKeyIdentifier(id) => Some(id),
        _ => None,
    }) else {
        return;
    };
    if authority.authority_cert_issuer.is_some() || authority.authority_cert_serial.is_some() {
        found.form("is a root whose authority key identifier names an issuer or a serial number.");
    }
    match &authority.key_identifier {
        None => found.form("is a root whose authority key identifier names no key."),
        Some(id) if certificate.subject_key_id().is_some_and(|own| own != id.0) => {
            found.form("is a root whose authority key identifier names another key than its own.");
        }
        Some(_) => {}
    }
}

fn leaf(certificate: &Certificate<'_>, found: &mut Findings<'_>) {
    let x509 = &certificate.x509;
    if let Ok(Some(usage)) = x509.key_usage()
        && usage.value.key_cert_sign()
        && !x509.is_ca()
    {
        found.form("may issue certificates by its key usage but is no CA.");
    }
    if let Ok(Some(usage)) = x509.extended_key_usage()
        && usage.value.any
        && usage.value.server_auth
    {
        found.warn("is for any use, beside servers.");
    }
    let self_signed = certificate.self_issued();
    if !self_signed && certificate.authority_key_id().is_none() {
        // A certificate that identifies no key at all is merely plain; one that identifies its own alone was made wrongly.
        if certificate.subject_key_id().is_some() {
            found.form("identifies its own key but not that of its issuer.");
        } else {
            found.warn("has no authority key identifier, by which some clients find issuers.");
        }
    }
    let subject_is_empty = x509.subject().iter_rdn().next().is_none();
    let Some((critical, names)) = certificate.find(|parsed| match parsed {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    }) else {
        return;
    };
    match (subject_is_empty, critical) {
        (true, false) => found.form(
            "has no subject, so that its subject alternative names would have to be critical.",
        ),
        (false, true) => found.form(
            "marks its subject alternative names as critical, which is for an empty subject only.",
        ),
        _ => {}
    }
    for name in names {
        match name {
            GeneralName::Invalid(..) => {
                found.form("has a subject alternative name that cannot be read.");
                break;
            }
            GeneralName::IPAddress(bytes) if !matches!(bytes.len(), 4 | 16) => {
                found.form("has a subject alternative name that is no address but has its form.");
                break;
            }
            GeneralName::DNSName(name)
                if !is_dns(name.strip_prefix("*.").unwrap_or(name))
                    || name.parse::<std::net::IpAddr>().is_ok() =>
            {
                found.warn("has a DNS name that is none; clients pass over it.");
            }
            _ => {}
        }
    }
    common_name(certificate, names, found);
}

/// The common name may be there as a copy of an alternative name, not as another spelling of one (baseline requirements,
/// 7.1.4.3): who compares strings and who compares names would see two different ones.
fn common_name(certificate: &Certificate<'_>, names: &[GeneralName<'_>], found: &mut Findings<'_>) {
    for attribute in certificate.x509.subject().iter_common_name().take(8) {
        let Ok(common) = attribute.as_str() else {
            continue;
        };
        let ascii = match url::Host::parse(common) {
            Ok(url::Host::Domain(name)) if !common.is_ascii() => Some(name),
            _ => None,
        };
        let address = address(common);
        let mut copied = false;
        let mut respelt = false;
        for name in names {
            match name {
                GeneralName::DNSName(name) => {
                    copied |= *name == common;
                    respelt |= name.eq_ignore_ascii_case(common)
                        || ascii
                            .as_ref()
                            .is_some_and(|ascii| ascii.eq_ignore_ascii_case(name));
                }
                GeneralName::IPAddress(bytes) => {
                    if let Some(address) = address.filter(|a| octets(a) == *bytes) {
                        respelt = true;
                        copied |= address.to_string() == common;
                    }
                }
                _ => {}
            }
        }
        if respelt && !copied {
            found.form("has a common name that spells one of its names differently.");
        } else if ascii.is_some() && common.contains('.') && !common.contains(char::is_whitespace) {
            found.form("has a common name that is a host name in other letters than DNS has.");
        }
    }
}

fn octets(address: &std::net::IpAddr) -> Vec<u8> {
    match address {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// An address however it is spelt: also in the forms that lax parsers take (hexadecimal, leading zeros).
fn address(text: &str) -> Option<std::net::IpAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    if let Some(hexadecimal) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let number = u32::from_str_radix(hexadecimal, 16).ok()?;
        return Some(std::net::Ipv4Addr::from_bits(number).into());
    }
    let mut parts = [0_u8; 4];
    let mut given = text.split('.');
    for part in &mut parts {
        let digits = given.next()?;
        if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        *part = digits.parse().ok()?;
    }
    given
        .next()
        .is_none()
        .then(|| std::net::Ipv4Addr::from(parts).into())
}

/// How many days a publicly trusted certificate may live that begins at `not_before`, in Unix seconds (baseline requirements,
/// 6.3.2).
pub(super) fn longest_life(not_before: i64) -> i64 {
    match not_before {
        // From 2029-03-15.
        1_868_227_200.. => 47,
        // From 2027-03-15.
        1_805_068_800.. => 100,
        // From 2026-03-15.
        1_773_532_800.. => 200,
        // From 2020-09-01.
        1_598_918_400.. => 398,
        _ => 825,
    }
}

/// The reason for a publicly trusted certificate that lives longer than the rule of the day of its issuance allows. Both ends
/// of the validity count.
pub(super) fn lifetime(not_before: i64, not_after: i64) -> Option<Reason> {
    let days = longest_life(not_before);
    let seconds = not_after.saturating_sub(not_before).saturating_add(1);
    (seconds > days * SECONDS_A_DAY).then(|| {
        Reason::new(
            Code::LifetimeTooLong,
            format!(
                "The certificate lives {} days, and at most {days} are allowed from a public CA for one that begins when it does.",
                seconds.div_euclid(SECONDS_A_DAY)
            ),
            "Have it issued anew with a shorter life; clients refuse it.",
        )
    })
}
