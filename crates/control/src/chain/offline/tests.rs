//! Hierarchies of every kind, good and bad, and chains that real hosts served.
#![allow(clippy::unwrap_used)]

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use keyring::PrivateKey;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints, SanType, SerialNumber,
};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::super::Known;
use super::*;

const DAY: i64 = 86_400;
/// 2026-06-01.
const NOW: i64 = 1_780_272_000;

type Der = CertificateDer<'static>;

/// A CA that can issue.
struct Ca {
    params: CertificateParams,
    key: KeyPair,
    der: Der,
}

fn params() -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = OffsetDateTime::from_unix_timestamp(NOW - 10 * DAY).unwrap();
    params.not_after = OffsetDateTime::from_unix_timestamp(NOW + 80 * DAY).unwrap();
    params.use_authority_key_identifier_extension = true;
    params
}

fn ca(name: &str) -> CertificateParams {
    let mut params = params();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn server(names: &[&str]) -> CertificateParams {
    let mut params = params();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "A tenant");
    params.subject_alt_names = names.iter().map(|name| san(name)).collect();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

fn san(name: &str) -> SanType {
    match name.parse::<IpAddr>() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) if name.contains("://") => SanType::URI(name.try_into().unwrap()),
        Err(_) if name.contains('@') => SanType::Rfc822Name(name.try_into().unwrap()),
        Err(_) => SanType::DnsName(name.try_into().unwrap()),
    }
}

impl Ca {
    fn root(params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { params, key, der }
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    fn sub(&self, params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let der = params.signed_by(&key, &self.issuer()).unwrap();
        Self {
            der: der.der().clone(),
            params,
            key,
        }
    }

    /// Another certificate for `other`, whose key and name stay.
    fn cross(&self, other: &Ca, params: &CertificateParams) -> Der {
        params
            .signed_by(&other.key, &self.issuer())
            .unwrap()
            .der()
            .clone()
    }

    fn leaf(&self, params: &CertificateParams) -> Der {
        let key = KeyPair::generate().unwrap();
        params
            .signed_by(&key, &self.issuer())
            .unwrap()
            .der()
            .clone()
    }
}

fn domains(texts: &[&str]) -> Vec<Domain> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn ask(chain: &[Der], roots: &[Der], names: &[&str], at: i64) -> Verdict {
    let verdict = verify(Question {
        chain,
        roots: Some(roots),
        domains: &domains(names),
        spki_of_key: None,
        at,
    });
    assert_eq!(
        verdict.verdict == Decision::Accept,
        verdict.reasons.is_empty()
    );
    for reason in &verdict.reasons {
        assert!(reason.message.ends_with('.'), "{reason:?}");
        assert!(!reason.hint.is_empty(), "{reason:?}");
    }
    verdict
}

fn codes(verdict: &Verdict) -> Vec<Code> {
    verdict.reasons.iter().map(|reason| reason.code).collect()
}

/// What one change to the root, the intermediate or the leaf of a good hierarchy makes of it.
fn changed(
    root: impl FnOnce(&mut CertificateParams),
    intermediate: impl FnOnce(&mut CertificateParams),
    leaf: impl FnOnce(&mut CertificateParams),
) -> Verdict {
    let mut params = ca("Root");
    root(&mut params);
    let root = Ca::root(params);
    let mut params = ca("Issuing CA");
    intermediate(&mut params);
    let intermediate = root.sub(params);
    let mut params = server(&["www.example.com"]);
    leaf(&mut params);
    let chain = [intermediate.leaf(&params), intermediate.der];
    let roots = [root.der];
    let verdict = ask(&chain, &roots, &["www.example.com"], NOW);
    // What an upload would be refused for is refused here too, and what is accepted here an upload takes.
    let known = Known {
        roots: &roots,
        issuers: &[],
    };
    let uploaded = super::super::examine(&chain, None, CertificateKind::Server, NOW, known);
    match (uploaded, verdict.verdict) {
        (Err(reasons), Decision::Accept) => panic!("{reasons:#?}"),
        (Ok(examined), Decision::Accept) => assert_eq!(examined.trust, Trust::Private),
        (_, Decision::Reject) => {}
    }
    verdict
}

fn same(_: &mut CertificateParams) {}

fn refused(verdict: &Verdict, code: Code) {
    assert!(codes(verdict).contains(&code), "{code} in {verdict:#?}");
}

fn dns(name: &str) -> GeneralSubtree {
    GeneralSubtree::DnsName(name.to_owned())
}

fn only(permitted: Vec<GeneralSubtree>) -> impl FnOnce(&mut CertificateParams) {
    constrained(permitted, Vec::new())
}

fn never(excluded: Vec<GeneralSubtree>) -> impl FnOnce(&mut CertificateParams) {
    constrained(Vec::new(), excluded)
}

fn constrained(
    permitted_subtrees: Vec<GeneralSubtree>,
    excluded_subtrees: Vec<GeneralSubtree>,
) -> impl FnOnce(&mut CertificateParams) {
    move |params| {
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees,
            excluded_subtrees,
        });
    }
}

fn names(names: &'static [&'static str]) -> impl FnOnce(&mut CertificateParams) {
    move |params| params.subject_alt_names = names.iter().map(|name| san(name)).collect()
}

fn extension(oid: &'static [u64], critical: bool) -> impl Fn(&mut CertificateParams) {
    move |params| {
        let mut extension = CustomExtension::from_oid_content(oid, vec![5, 0]);
        extension.set_criticality(critical);
        params.custom_extensions.push(extension);
    }
}

#[test]
fn a_good_hierarchy_is_accepted() {
    let verdict = changed(same, same, same);
    assert_eq!(verdict.reasons, []);
    assert_eq!(verdict.warnings, [""; 0]);
    assert_eq!(verdict.trust, Some(Trust::Private));
    assert_eq!(verdict.names, ["www.example.com"]);
    assert_eq!(verdict.chain.len(), 3);
    assert_eq!(verdict.chain[2].subject, "CN=Root");
}

#[test]
fn each_fault_of_a_ca_is_found_wherever_it_stands() {
    const UNKNOWN: &[u64] = &[1, 3, 6, 1, 4, 1, 55_555, 1];
    type Change = Box<dyn Fn(&mut CertificateParams)>;
    let faults: Vec<(&str, Code, Change)> = vec![
        (
            "no basic constraints",
            Code::ChainUntrusted,
            Box::new(|params| params.is_ca = IsCa::NoCa),
        ),
        (
            "no CA",
            Code::ChainUntrusted,
            Box::new(|params| params.is_ca = IsCa::ExplicitNoCa),
        ),
        (
            "no keyCertSign",
            Code::ChainUntrusted,
            Box::new(|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]),
        ),
        (
            "not for servers",
            Code::NotAServerCertificate,
            Box::new(|params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection];
            }),
        ),
        (
            "an unknown critical extension",
            Code::PemMalformed,
            Box::new(extension(UNKNOWN, true)),
        ),
        (
            "expired",
            Code::Expired,
            Box::new(|params| {
                params.not_after = OffsetDateTime::from_unix_timestamp(NOW - 1).unwrap();
            }),
        ),
        (
            "not yet valid",
            Code::NotYetValid,
            Box::new(|params| {
                params.not_before = OffsetDateTime::from_unix_timestamp(NOW + 1).unwrap();
            }),
        ),
        (
            "constraints of names that are no names",
            Code::PemMalformed,
            Box::new(|params| only(vec![dns("*.example.com")])(params)),
        ),
        (
            "constraints with a leading dot",
            Code::PemMalformed,
            Box::new(|params| only(vec![dns(".example.com")])(params)),
        ),
        (
            "policy constraints that are not critical",
            Code::PemMalformed,
            Box::new(|params| {
                params
                    .custom_extensions
                    .push(CustomExtension::from_oid_content(
                        &[2, 5, 29, 36],
                        vec![0x30, 3, 0x80, 1, 0],
                    ));
            }),
        ),
    ];
    for (what, code, fault) in &faults {
        for verdict in [changed(fault, same, same), changed(same, fault, same)] {
            assert!(codes(&verdict).contains(code), "{what}: {verdict:#?}");
            assert_eq!(verdict.verdict, Decision::Reject, "{what}");
        }
    }
    // The same extension, if not critical, says nothing.
    let harmless = extension(UNKNOWN, false);
    assert_eq!(changed(&harmless, &harmless, &harmless).reasons, []);
}

#[test]
fn each_fault_of_a_leaf_is_found() {
    type Change = Box<dyn Fn(&mut CertificateParams)>;
    let faults: Vec<(&str, Code, Change)> = vec![
        (
            "for clients",
            Code::NotAServerCertificate,
            Box::new(|params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }),
        ),
        (
            "no signatures",
            Code::NotAServerCertificate,
            Box::new(|params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment]),
        ),
        (
            "a CA",
            Code::NotAServerCertificate,
            Box::new(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        ),
        (
            "issues without being a CA",
            Code::PemMalformed,
            Box::new(|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign)),
        ),
        (
            "no names",
            Code::NotAServerCertificate,
            Box::new(|params| {
                params.subject_alt_names = Vec::new();
                params
                    .distinguished_name
                    .push(DnType::CommonName, "www.example.com");
            }),
        ),
        (
            "another spelling in the common name",
            Code::PemMalformed,
            Box::new(|params| {
                params
                    .distinguished_name
                    .push(DnType::CommonName, "WWW.example.com");
            }),
        ),
        (
            "a serial number of zero",
            Code::PemMalformed,
            Box::new(|params| params.serial_number = Some(SerialNumber::from_slice(&[0]))),
        ),
        (
            "a serial number that is too long",
            Code::PemMalformed,
            Box::new(|params| params.serial_number = Some(SerialNumber::from_slice(&[7; 21]))),
        ),
        (
            "name constraints",
            Code::PemMalformed,
            Box::new(|params| {
                let mut extension = CustomExtension::from_oid_content(
                    &[2, 5, 29, 30],
                    vec![0x30, 7, 0xa0, 5, 0x30, 3, 0x82, 1, b'a'],
                );
                extension.set_criticality(true);
                params.custom_extensions.push(extension);
            }),
        ),
        (
            "an empty list of where its issuer is",
            Code::PemMalformed,
            Box::new(|params| {
                params
                    .custom_extensions
                    .push(CustomExtension::from_oid_content(
                        &[1, 3, 6, 1, 5, 5, 7, 1, 1],
                        vec![0x30, 0],
                    ));
            }),
        ),
        (
            "an extension twice",
            Code::PemMalformed,
            Box::new(|params| {
                extension(&[1, 3, 6, 1, 4, 1, 55_555, 2], false)(params);
                extension(&[1, 3, 6, 1, 4, 1, 55_555, 2], false)(params);
            }),
        ),
        (
            "an unknown critical extension",
            Code::PemMalformed,
            Box::new(extension(&[1, 3, 6, 1, 4, 1, 55_555, 1], true)),
        ),
        (
            "another name",
            Code::NameMismatch,
            Box::new(|params| params.subject_alt_names = vec![san("example.com")]),
        ),
    ];
    for (what, code, fault) in &faults {
        let verdict = changed(same, same, fault);
        assert!(codes(&verdict).contains(code), "{what}: {verdict:#?}");
    }
}

#[test]
fn constraints_of_all_forms_are_held() {
    let network = |text: &str| GeneralSubtree::IpAddress(text.parse::<CidrSubnet>().unwrap());
    let organization = |name: &str| {
        let mut base = DistinguishedName::new();
        base.push(DnType::OrganizationName, name);
        GeneralSubtree::DirectoryName(base)
    };
    let mail = |text: &str| GeneralSubtree::Rfc822Name(text.to_owned());
    type Subtrees = Vec<GeneralSubtree>;
    // Permitted, excluded, names, whether it passes.
    let table: Vec<(Subtrees, Subtrees, &'static [&'static str], bool)> = vec![
        (vec![dns("example.com")], vec![], &["www.example.com"], true),
        (
            vec![dns("example.com")],
            vec![],
            &["www.example.com", "a.test"],
            false,
        ),
        (vec![dns("ample.com")], vec![], &["www.example.com"], false),
        (vec![dns("EXAMPLE.com")], vec![], &["www.example.com"], true),
        (
            vec![dns("a.www.example.com")],
            vec![],
            &["www.example.com"],
            false,
        ),
        (
            vec![dns("example.com")],
            vec![dns("www.example.com")],
            &["www.example.com"],
            false,
        ),
        (
            vec![dns("example.com")],
            vec![dns("ww.example.com")],
            &["www.example.com"],
            true,
        ),
        // A wildcard stands for every name that it matches.
        (
            vec![dns("example.com")],
            vec![],
            &["www.example.com", "*.example.com"],
            true,
        ),
        (
            vec![dns("www.example.com")],
            vec![],
            &["www.example.com", "*.example.com"],
            false,
        ),
        (
            vec![],
            vec![dns("other.example.com")],
            &["www.example.com", "*.example.com"],
            false,
        ),
        (
            vec![],
            vec![dns("a.other.example.com")],
            &["www.example.com", "*.example.com"],
            true,
        ),
        // Forms that are not constrained are free.
        (
            vec![network("192.0.2.0/24")],
            vec![],
            &["www.example.com"],
            true,
        ),
        (
            vec![dns("example.com")],
            vec![],
            &["www.example.com", "192.0.2.1"],
            true,
        ),
        (
            vec![network("192.0.2.0/24")],
            vec![],
            &["www.example.com", "192.0.2.1"],
            true,
        ),
        (
            vec![network("192.0.2.0/24")],
            vec![],
            &["www.example.com", "192.0.3.1"],
            false,
        ),
        (
            vec![network("192.0.2.0/24")],
            vec![],
            &["www.example.com", "2001:db8::1"],
            false,
        ),
        (
            vec![],
            vec![network("2001:db8::/32")],
            &["www.example.com", "2001:db8::1"],
            false,
        ),
        (
            vec![organization("a  TENANT")],
            vec![],
            &["www.example.com"],
            true,
        ),
        (
            vec![organization("Another")],
            vec![],
            &["www.example.com"],
            false,
        ),
        (
            vec![],
            vec![organization("A tenant")],
            &["www.example.com"],
            false,
        ),
        (
            vec![mail("example.com")],
            vec![],
            &["www.example.com", "me@example.com"],
            true,
        ),
        (
            vec![mail(".example.com")],
            vec![],
            &["www.example.com", "me@example.com"],
            false,
        ),
        (
            vec![mail("me@example.com")],
            vec![],
            &["www.example.com", "Me@example.com"],
            false,
        ),
        (
            vec![],
            vec![mail("example.com")],
            &["www.example.com", "me@EXAMPLE.com"],
            false,
        ),
    ];
    for (permitted, excluded, given, passes) in table {
        let what = format!("permitted {permitted:?}, excluded {excluded:?}, {given:?}");
        for at_root in [true, false] {
            let change = constrained(permitted.clone(), excluded.clone());
            let verdict = if at_root {
                changed(change, same, names(given))
            } else {
                changed(same, change, names(given))
            };
            // The intermediate has no organization, so that a root cannot demand one.
            if at_root && what.contains("DirectoryName") && !permitted.is_empty() {
                refused(&verdict, Code::ChainUntrusted);
                continue;
            }
            assert_eq!(
                verdict.verdict == Decision::Accept,
                passes,
                "{what}: {verdict:#?}"
            );
        }
    }
}

#[test]
fn path_lengths_do_not_count_what_is_self_issued() {
    let root = Ca::root(ca("Root"));
    let limited = |name: &str, length: u8| {
        let mut params = ca(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(length));
        params
    };
    let first = root.sub(limited("First", 0));
    let second = first.sub(ca("Second"));
    let leaf = second.leaf(&server(&["a.example.com"]));
    let verdict = ask(
        &[leaf, second.der, first.der],
        std::slice::from_ref(&root.der),
        &["a.example.com"],
        NOW,
    );
    refused(&verdict, Code::ChainUntrusted);

    // The same name with a new key, issued by the old one, as when a CA changes its key.
    let first = root.sub(limited("First", 0));
    let again = first.sub(limited("First", 0));
    let leaf = again.leaf(&server(&["a.example.com"]));
    let verdict = ask(
        &[leaf, first.der, again.der],
        std::slice::from_ref(&root.der),
        &["a.example.com"],
        NOW,
    );
    assert_eq!(verdict.reasons, []);
    assert_eq!(verdict.chain.len(), 4);
}

#[test]
fn a_bad_path_does_not_hide_a_good_one() {
    let root = Ca::root(ca("Root"));
    let other = Ca::root(ca("Other root"));
    let issuing = root.sub(ca("Issuing CA"));
    let leaf = issuing.leaf(&server(&["a.example.com"]));
    let bad = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = ca("Issuing CA");
        change(&mut params);
        root.cross(&issuing, &params)
    };
    let bads = [
        bad(&|params| params.not_after = OffsetDateTime::from_unix_timestamp(NOW - 1).unwrap()),
        bad(&|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]),
        bad(&|params| never(vec![dns("example.com")])(params)),
        bad(&extension(&[1, 3, 6, 1, 4, 1, 55_555, 1], true)),
        bad(&|params| params.is_ca = IsCa::ExplicitNoCa),
        other.cross(&issuing, &ca("Issuing CA")),
    ];
    let roots = [root.der.clone()];
    let chain: Vec<Der> = std::iter::once(leaf.clone())
        .chain(bads.clone())
        .chain([issuing.der.clone(), root.der.clone()])
        .collect();
    let verdict = ask(&chain, &roots, &["a.example.com"], NOW);
    assert_eq!(verdict.reasons, []);
    assert_eq!(verdict.chain.len(), 3);
    for bad in bads {
        let verdict = ask(&[leaf.clone(), bad], &roots, &["a.example.com"], NOW);
        assert_eq!(verdict.verdict, Decision::Reject);
    }
    // An expired cross sign of the root beside the root itself.
    let mut old = ca("Root");
    old.not_after = OffsetDateTime::from_unix_timestamp(NOW - 1).unwrap();
    let crossed = other.cross(&root, &old);
    let chain = [leaf, crossed, issuing.der];
    assert_eq!(ask(&chain, &roots, &[], NOW).reasons, []);
    assert_eq!(
        ask(&chain, &[other.der, root.der], &[], NOW).verdict,
        Decision::Accept
    );
}

#[test]
fn graphs_without_end_are_left_in_time() {
    // Everybody has signed everybody, below a root that forbids the name: thousands of paths, all of them bad.
    let mut params = ca("Root");
    never(vec![dns("example.com")])(&mut params);
    let root = Ca::root(params);
    let count = 13;
    let cas: Vec<Ca> = (0..count)
        .map(|n| root.sub(ca(&format!("CA {n}"))))
        .collect();
    let mut chain = vec![cas[0].leaf(&server(&["a.example.com"]))];
    for (n, subject) in cas.iter().enumerate() {
        for (m, issuer) in cas.iter().enumerate() {
            if n != m {
                chain.push(issuer.cross(subject, &subject.params));
            }
        }
        chain.push(subject.der.clone());
    }
    let chain_of_good = Ca::root(ca("Good root"));
    let begun = Instant::now();
    let verdict = ask(
        &chain,
        std::slice::from_ref(&root.der),
        &["a.example.com"],
        NOW,
    );
    let took = begun.elapsed();
    assert_eq!(verdict.verdict, Decision::Reject);
    assert!(took < Duration::from_secs(2), "{took:?}");

    // The way out is found among them.
    let good = chain_of_good.cross(&cas[0], &cas[0].params);
    chain.push(good);
    let verdict = ask(
        &chain,
        &[root.der, chain_of_good.der],
        &["a.example.com"],
        NOW,
    );
    assert_eq!(verdict.reasons, []);

    // One name, many keys: every signature would have to be tried.
    let top = Ca::root(ca("Same"));
    let mut last = top;
    let mut chain = Vec::new();
    for _ in 0..100 {
        let next = last.sub(ca("Same"));
        chain.push(next.der.clone());
        last = next;
    }
    chain.insert(0, last.leaf(&server(&["a.example.com"])));
    let begun = Instant::now();
    let verdict = ask(&chain, &[Ca::root(ca("Root")).der], &[], NOW);
    let took = begun.elapsed();
    assert_eq!(verdict.verdict, Decision::Reject);
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn both_ends_of_the_validity_count() {
    let root = Ca::root(ca("Root"));
    let params = server(&["a.example.com"]);
    let (begin, end) = (
        params.not_before.unix_timestamp(),
        params.not_after.unix_timestamp(),
    );
    let chain = [root.leaf(&params)];
    // The root ends in the same second.
    for (at, code) in [
        (begin - 1, Some(Code::NotYetValid)),
        (begin, None),
        (end, None),
        (end + 1, Some(Code::Expired)),
    ] {
        let verdict = ask(&chain, std::slice::from_ref(&root.der), &[], at);
        assert_eq!(verdict.reasons.first().map(|r| r.code), code, "{at}");
    }
}

#[test]
fn names_are_compared_as_clients_do() {
    let root = Ca::root(ca("Root"));
    let given = [
        "www.example.com",
        "*.wild.example.com",
        "*.com",
        "*.co.uk",
        "*",
        "under_score.example.com",
        "192.0.2.1",
        "2001:db8::1",
    ];
    let chain = [root.leaf(&server(&given))];
    for (name, good) in [
        ("www.example.com", true),
        ("WWW.EXAMPLE.COM.", true),
        ("example.com", false),
        ("a.wild.example.com", true),
        ("a.b.wild.example.com", false),
        ("wild.example.com", false),
        ("other.com", false),
        ("other.co.uk", false),
        ("localhost", false),
        ("under_score.example.com", false),
        ("192.0.2.1", true),
        ("192.0.2.2", false),
        ("2001:db8:0:0::1", true),
        ("[2001:db8::1]", true),
        ("2001:db8::2", false),
    ] {
        let verdict = ask(&chain, std::slice::from_ref(&root.der), &[name], NOW);
        let expected: &[Code] = if good { &[] } else { &[Code::NameMismatch] };
        assert_eq!(codes(&verdict), expected, "{name}");
    }
    let verdict = ask(
        &chain,
        std::slice::from_ref(&root.der),
        &["a.test", "www.example.com", "b.test"],
        NOW,
    );
    assert_eq!(codes(&verdict), [Code::NameMismatch; 2]);
    for wrong in [
        "*.example.com",
        "",
        ".",
        "a..b",
        "-a.com",
        "a b",
        "1.2.3.999",
        "a/b",
        "http://a.com",
    ] {
        assert!(wrong.parse::<Domain>().is_err(), "{wrong}");
    }
    assert_eq!(
        "bücher.example".parse(),
        Ok(Domain::Dns("xn--bcher-kva.example".to_owned()))
    );
}

#[test]
fn a_certificate_may_be_its_own_anchor() {
    let key = KeyPair::generate().unwrap();
    let mut params = server(&["a.example.com"]);
    params.is_ca = IsCa::ExplicitNoCa;
    let own = params.self_signed(&key).unwrap().der().clone();
    let verdict = ask(
        std::slice::from_ref(&own),
        std::slice::from_ref(&own),
        &["a.example.com"],
        NOW,
    );
    assert_eq!(verdict.reasons, []);
    assert_eq!(verdict.trust, Some(Trust::SelfSigned));
    assert_eq!(verdict.chain.len(), 1);
    let root = Ca::root(ca("Root"));
    let verdict = ask(&[own], std::slice::from_ref(&root.der), &[], NOW);
    assert_eq!(codes(&verdict), [Code::ChainUntrusted]);
    assert_eq!(verdict.trust, Some(Trust::SelfSigned));

    // A leaf that somebody trusts by itself is still judged as a leaf.
    let leaf = root.leaf(&server(&["a.example.com"]));
    let pinned = [leaf.clone()];
    assert_eq!(ask(&pinned, &pinned, &["a.example.com"], NOW).reasons, []);
    refused(&ask(&pinned, &pinned, &["b.test"], NOW), Code::NameMismatch);
    refused(&ask(&pinned, &pinned, &[], NOW + 81 * DAY), Code::Expired);
    // An intermediate can be an anchor too, and its own issuer does not matter then.
    let issuing = root.sub(ca("Issuing CA"));
    let leaf = issuing.leaf(&server(&["a.example.com"]));
    assert_eq!(ask(&[leaf, root.der], &[issuing.der], &[], NOW).reasons, []);
}

#[test]
fn what_is_missing_damaged_or_foreign_is_told() {
    let root = Ca::root(ca("Root"));
    let issuing = root.sub(ca("Issuing CA"));
    let leaf = issuing.leaf(&server(&["a.example.com"]));
    let roots = [root.der.clone()];
    assert_eq!(
        codes(&ask(std::slice::from_ref(&leaf), &roots, &[], NOW)),
        [Code::ChainIncomplete]
    );
    assert_eq!(
        codes(&ask(
            &[leaf.clone(), issuing.der.clone(), root.der.clone()],
            &[Ca::root(ca("Another")).der],
            &[],
            NOW
        )),
        [Code::ChainUntrusted]
    );
    // Of the right name but with another key.
    let namesake = root.sub(ca("Issuing CA"));
    assert_eq!(
        codes(&ask(&[leaf.clone(), namesake.der], &roots, &[], NOW)),
        [Code::ChainIncomplete]
    );
    assert_eq!(codes(&ask(&[], &roots, &[], NOW)), [Code::NoCertificate]);
    let cut = CertificateDer::from(leaf[..leaf.len() - 9].to_vec());
    assert_eq!(
        codes(&ask(&[cut.clone(), issuing.der.clone()], &roots, &[], NOW)),
        [Code::PemMalformed]
    );
    assert_eq!(
        codes(&ask(
            &[leaf.clone(), issuing.der.clone(), cut.clone()],
            &roots,
            &[],
            NOW
        )),
        [Code::PemMalformed]
    );
    let mut broken = leaf.to_vec();
    *broken.last_mut().unwrap() ^= 1;
    let verdict = ask(
        &[CertificateDer::from(broken), issuing.der.clone()],
        &roots,
        &[],
        NOW,
    );
    assert_eq!(codes(&verdict), [Code::ChainIncomplete]);
    // A root that cannot be read is left out; it takes nothing from the others.
    let verdict = ask(
        &[leaf.clone(), issuing.der.clone()],
        &[cut, root.der.clone()],
        &[],
        NOW,
    );
    assert_eq!(verdict.verdict, Decision::Accept);
    assert_eq!(verdict.warnings.len(), 1);
    // Nothing is trusted where nothing is given.
    assert_eq!(
        ask(&[leaf, issuing.der], &[], &[], NOW).verdict,
        Decision::Reject
    );
}

#[test]
fn all_reasons_are_told_at_once() {
    let root = Ca::root(ca("Root"));
    let mut params = ca("Issuing CA");
    params.not_after = OffsetDateTime::from_unix_timestamp(NOW - 1).unwrap();
    params.key_usages = vec![KeyUsagePurpose::CrlSign];
    let issuing = root.sub(params);
    let mut params = server(&["a.example.com"]);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.not_after = OffsetDateTime::from_unix_timestamp(NOW - 5).unwrap();
    let leaf = issuing.leaf(&params);
    let stranger = PrivateKey::from_der(KeyPair::generate().unwrap().serialized_der()).unwrap();
    let verdict = verify(Question {
        chain: &[leaf, issuing.der],
        roots: Some(&[root.der]),
        domains: &domains(&["b.test"]),
        spki_of_key: Some(stranger.spki_sha256()),
        at: NOW,
    });
    for code in [
        Code::KeyMismatch,
        Code::NotAServerCertificate,
        Code::Expired,
        Code::ChainUntrusted,
        Code::NameMismatch,
    ] {
        refused(&verdict, code);
    }
    assert_eq!(verdict.chain.len(), 3);
}

#[test]
fn help_may_be_in_any_order_and_of_any_kind() {
    let root = Ca::root(ca("Root"));
    let upper = root.sub(ca("Upper"));
    let lower = upper.sub(ca("Lower"));
    let leaf = lower.leaf(&server(&["a.example.com"]));
    let stranger = Ca::root(ca("Stranger"));
    let chain = [
        leaf.clone(),
        stranger.der.clone(),
        upper.der.clone(),
        stranger.leaf(&server(&["b.test"])),
        lower.der.clone(),
        lower.der.clone(),
        root.der.clone(),
    ];
    let verdict = ask(&chain, &[stranger.der, root.der], &["a.example.com"], NOW);
    assert_eq!(verdict.reasons, []);
    assert_eq!(verdict.chain.len(), 4);
    assert!(!verdict.repairs.is_empty() || !verdict.warnings.is_empty());
}

#[test]
fn every_public_root_is_in_form() {
    // What is held against a given root must never speak against those that the web stands on.
    for root in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        let parsed = Certificate::parse(root).unwrap();
        let (reasons, _) = profile::judge(&parsed, Role::PublicAnchor, "The root");
        assert_eq!(reasons, [], "{}", parsed.shown_subject());
    }
}

#[test]
fn lives_are_bounded_by_the_day_they_begin() {
    for (begin, days) in [
        (1_598_918_399, 825),
        (1_598_918_400, 398),
        (1_773_532_799, 398),
        (1_773_532_800, 200),
        (1_805_068_800, 100),
        (1_868_227_200, 47),
    ] {
        assert_eq!(profile::lifetime(begin, begin + days * DAY - 1), None);
        let reason = profile::lifetime(begin, begin + days * DAY).unwrap();
        assert_eq!(reason.code, Code::LifetimeTooLong);
    }
}

#[test]
fn real_chains_are_judged_as_their_hosts_clients_did() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/real-chains");
    let index = std::fs::read(folder.join("index.json")).unwrap();
    let index: Vec<serde_json::Value> = serde_json::from_slice(&index).unwrap();
    assert_eq!(index.len(), 14);
    for entry in index {
        let host = entry["host"].as_str().unwrap();
        let at = OffsetDateTime::parse(entry["at"].as_str().unwrap(), &Rfc3339)
            .unwrap()
            .unix_timestamp();
        let read = |name| read_certificates(&std::fs::read(folder.join(host).join(name)).unwrap());
        let chain = read("chain.pem").unwrap();
        let roots = read("roots.pem").unwrap();
        let verdict = ask(&chain, &roots, &[host], at);
        assert_eq!(verdict.reasons, [], "{host}");
        assert_eq!(verdict.trust, Some(Trust::Public), "{host}");
        refused(
            &ask(&chain, &roots, &["www.wrong.example"], at),
            Code::NameMismatch,
        );
        refused(&ask(&chain, &roots, &[host], at + 400 * DAY), Code::Expired);
        let by_default = verify(Question {
            chain: &chain,
            roots: None,
            domains: &domains(&[host]),
            spki_of_key: None,
            at,
        });
        assert_eq!(by_default.reasons, [], "{host}");
        let mut turned = chain;
        turned[1..].reverse();
        assert_eq!(ask(&turned, &roots, &[host], at).reasons, [], "{host}");
        refused(&ask(&turned[..1], &roots, &[], at), Code::ChainIncomplete);
    }
}

#[test]
fn an_upload_of_namesakes_is_judged_in_time() {
    let mut last = Ca::root(ca("Same"));
    let mut chain = Vec::new();
    for _ in 0..18 {
        let next = last.sub(ca("Same"));
        chain.push(next.der.clone());
        last = next;
    }
    let stranger = Ca::root(ca("Same"));
    chain.insert(0, stranger.leaf(&server(&["a.example.com"])));
    let begun = Instant::now();
    let judged = super::super::judge_trust(&chain, Known::default(), NOW);
    let took = begun.elapsed();
    assert_eq!(judged.unwrap_err().code, Code::ChainIncomplete);
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn what_is_oversized_is_refused_before_it_costs_anything() {
    let root = Ca::root(ca("Root"));
    let mut params = server(&["a.example.com"]);
    for number in 0..65 {
        params
            .custom_extensions
            .push(CustomExtension::from_oid_content(
                &[1, 3, 6, 1, 4, 1, 55_555, 2, number],
                vec![5, 0],
            ));
    }
    let many = root.leaf(&params);
    let mut params = server(&["a.example.com"]);
    params
        .distinguished_name
        .push(DnType::OrganizationalUnitName, "x".repeat(5_000));
    let long = root.leaf(&params);
    for leaf in [many, long] {
        let verdict = ask(
            std::slice::from_ref(&leaf),
            std::slice::from_ref(&root.der),
            &[],
            NOW,
        );
        assert_eq!(codes(&verdict), [Code::TooLarge]);
        let known = Known::default();
        let examined = super::super::examine(&[leaf], None, CertificateKind::Server, NOW, known);
        assert_eq!(examined.unwrap_err()[0].code, Code::TooLarge);
    }
}

#[test]
fn names_and_constraints_that_multiply_are_left_in_time() {
    let mut params = ca("Root");
    never(
        (0..1_500)
            .map(|n| dns(&format!("{}{n}.test", "x".repeat(10))))
            .collect(),
    )(&mut params);
    let root = Ca::root(params);
    let names: Vec<String> = (0..240)
        .map(|n| format!("{}{n}.example.com", "y".repeat(50)))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let leaf = root.leaf(&server(&names));
    let begun = Instant::now();
    let verdict = ask(&[leaf], &[root.der], &[], NOW);
    let took = begun.elapsed();
    refused(&verdict, Code::TooLarge);
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn no_bytes_make_the_judgement_panic_or_linger() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/real-chains");
    let read = |name| read_certificates(&std::fs::read(folder.join(name)).unwrap()).unwrap();
    let chain = read("microsoft.com/chain.pem");
    let roots = read("microsoft.com/roots.pem");
    let mut params = ca("Root");
    constrained(vec![dns("example.com")], vec![dns("a.example.com")])(&mut params);
    let root = Ca::root(params);
    let made = [
        root.leaf(&server(&["www.example.com", "192.0.2.1", "u://x"])),
        root.der,
    ];
    // A generator of its own, so that a failure comes again.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let begun = Instant::now();
    for round in 0..1_500 {
        let (chain, roots) = if round % 2 == 0 {
            (chain.clone(), roots.clone())
        } else {
            (made[..1].to_vec(), made[1..].to_vec())
        };
        let mut all = [chain.clone(), roots.clone()].concat();
        let which = next(all.len());
        let mut bytes = all[which].to_vec();
        for _ in 0..=next(3) {
            let at = next(bytes.len());
            match next(4) {
                0 => bytes[at] ^= 1 << next(8),
                1 => bytes[at] = next(256) as u8,
                2 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, next(256) as u8),
            }
        }
        let changed = bytes != all[which].to_vec();
        all[which] = CertificateDer::from(bytes);
        let (new_chain, new_roots) = all.split_at(chain.len());
        let verdict = ask(new_chain, new_roots, &["microsoft.com", "192.0.2.1"], NOW);
        assert!(changed || verdict.verdict == Decision::Reject);
    }
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[test]
fn who_only_names_itself_as_its_issuer_has_not_signed_itself() {
    let mut params = ca("www.example.com");
    let namesake = Ca::root(params.clone());
    params.is_ca = IsCa::NoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.subject_alt_names = vec![san("www.example.com")];
    let leaf = [namesake.leaf(&params)];
    let judged = super::super::judge_trust(&leaf, Known::default(), NOW);
    assert_eq!(judged.unwrap_err().code, Code::ChainIncomplete);
    let own = [params.self_signed(&namesake.key).unwrap().der().clone()];
    let judged = super::super::judge_trust(&own, Known::default(), NOW);
    assert_eq!(judged.unwrap().trust, Trust::SelfSigned);
}
