//! Orders, doubles and strangers, of chains that are made here.

use lifecycle::event::Trust;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

use super::*;

/// 2030-01-01.
const NOW: i64 = 1_893_456_000;

type Der = CertificateDer<'static>;

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2040, 1, 1);
    params
}

fn server(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = date_time_ymd(2029, 1, 1);
    params.not_after = date_time_ymd(2031, 1, 1);
    params
}

/// root → upper → lower → leaf, each with its key; and upper once more, signed by another root.
struct World {
    root: Der,
    upper: Der,
    lower: Der,
    leaf: Der,
    leaf_key: KeyPair,
    lower_issuer: Issuer<'static, KeyPair>,
    other_root: Der,
    cross: Der,
    stranger: Der,
}

impl World {
    fn new() -> Self {
        let [root_key, upper_key, lower_key, leaf_key, other_key] =
            std::array::from_fn(|_| KeyPair::generate().unwrap());
        let root_params = authority("Root");
        let root = root_params.self_signed(&root_key).unwrap().der().clone();
        let root = (root, Issuer::new(root_params, root_key));
        let other_params = authority("Other root");
        let other = other_params.self_signed(&other_key).unwrap().der().clone();
        let other_issuer = Issuer::new(other_params, other_key);
        let upper_params = authority("Upper");
        let upper = upper_params.signed_by(&upper_key, &root.1).unwrap();
        let cross = upper_params.signed_by(&upper_key, &other_issuer).unwrap();
        let upper_issuer = Issuer::new(upper_params, upper_key);
        let lower_params = authority("Lower");
        let lower = lower_params.signed_by(&lower_key, &upper_issuer).unwrap();
        let lower_issuer = Issuer::new(lower_params, lower_key);
        let leaf = server("www.example.com")
            .signed_by(&leaf_key, &lower_issuer)
            .unwrap();
        let stranger = authority("Stranger")
            .self_signed(&KeyPair::generate().unwrap())
            .unwrap();
        Self {
            root: root.0,
            upper: upper.der().clone(),
            lower: lower.der().clone(),
            leaf: leaf.der().clone(),
            leaf_key,
            lower_issuer,
            other_root: other,
            cross: cross.der().clone(),
            stranger: stranger.der().clone(),
        }
    }

    fn key(&self) -> Option<[u8; 32]> {
        Some(super::super::examine::sha256(
            Certificate::parse(&self.leaf).unwrap().spki(),
        ))
    }
}

fn kinds(repairs: &[Repair]) -> Vec<Kind> {
    repairs.iter().map(|repair| repair.repair).collect()
}

#[test]
fn any_order_becomes_the_one_that_is_served() {
    use Kind::{DuplicateDropped, Reordered, RootDropped, UnrelatedDropped};
    let w = World::new();
    let (l, lo, up, r) = (&w.leaf, &w.lower, &w.upper, &w.root);
    let good = vec![l.clone(), lo.clone(), up.clone()];
    for (name, given, expected) in [
        ("as it should be", vec![l, lo, up], vec![]),
        ("with its root", vec![l, lo, up, r], vec![RootDropped]),
        ("reversed", vec![up, lo, l], vec![Reordered]),
        (
            "reversed with root",
            vec![r, up, lo, l],
            vec![RootDropped, Reordered],
        ),
        ("leaf last", vec![lo, up, l], vec![Reordered]),
        (
            "doubles",
            vec![l, l, lo, lo, up, lo],
            vec![DuplicateDropped; 3],
        ),
        (
            "a stranger",
            vec![l, &w.stranger, lo, up],
            vec![UnrelatedDropped],
        ),
        (
            "everything at once",
            vec![r, lo, &w.stranger, l, up, l],
            vec![DuplicateDropped, RootDropped, UnrelatedDropped, Reordered],
        ),
    ] {
        let given: Vec<Der> = given.into_iter().cloned().collect();
        for key in [w.key(), None] {
            let repaired = repair(&given, key, &[], NOW).unwrap();
            assert_eq!(repaired.chain, good, "{name}");
            assert_eq!(kinds(&repaired.repairs), expected, "{name}");
            assert_eq!(repaired.root.is_some(), given.contains(r), "{name}");
            // Repaired once, nothing is left to do.
            let again = repair(&repaired.chain, key, &[], NOW).unwrap();
            assert_eq!(
                (again.chain, again.repairs),
                (good.clone(), vec![]),
                "{name}"
            );
        }
    }
}

#[test]
fn what_is_missing_comes_from_what_is_known() {
    let w = World::new();
    let known = [w.stranger.clone(), w.upper.clone(), w.lower.clone()];
    let good = vec![w.leaf.clone(), w.lower.clone(), w.upper.clone()];
    for given in [
        vec![w.leaf.clone()],
        vec![w.leaf.clone(), w.upper.clone()],
        vec![w.upper.clone(), w.leaf.clone()],
    ] {
        assert_eq!(repair(&given, w.key(), &known, NOW).unwrap().chain, good);
    }
    // Without it, what does not connect is left out, and examination says what is missing.
    let given = [w.leaf.clone(), w.upper.clone()];
    let repaired = repair(&given, w.key(), &[], NOW).unwrap();
    assert_eq!(repaired.chain, given[..1]);
    assert_eq!(kinds(&repaired.repairs), [Kind::UnrelatedDropped]);
}

#[test]
fn of_cross_signed_ones_one_path_is_served_whatever_the_order() {
    let w = World::new();
    // What is in order stays, whoever signed it.
    let sent = vec![w.leaf.clone(), w.lower.clone(), w.cross.clone()];
    let kept = repair(&sent, w.key(), &[], NOW).unwrap();
    assert_eq!((kept.chain, kept.repairs), (sent, vec![]));
    // With both and one root, the path to the root that is there, in all orders.
    let all = [&w.leaf, &w.lower, &w.upper, &w.cross, &w.root];
    for turn in 0..all.len() {
        let mut given: Vec<Der> = all.iter().map(|der| (*der).clone()).collect();
        given.rotate_left(turn);
        let repaired = repair(&given, w.key(), &[], NOW).unwrap();
        assert_eq!(
            repaired.chain,
            [w.leaf.clone(), w.lower.clone(), w.upper.clone()]
        );
        assert!(kinds(&repaired.repairs).contains(&Kind::UnrelatedDropped));
    }
    // With both roots, whichever way: one of them, and the same each time.
    let given: Vec<Der> = [
        &w.other_root,
        &w.root,
        &w.cross,
        &w.upper,
        &w.lower,
        &w.leaf,
    ]
    .into_iter()
    .cloned()
    .collect();
    let first = repair(&given, w.key(), &[], NOW).unwrap();
    assert_eq!(first.chain.len(), 3);
    assert_eq!(first, repair(&given, w.key(), &[], NOW).unwrap());
}

#[test]
fn the_leaf_is_the_one_of_the_key_or_there_is_no_guess() {
    let w = World::new();
    let other_key = KeyPair::generate().unwrap();
    let other = server("other.example.com")
        .signed_by(&other_key, &w.lower_issuer)
        .unwrap();
    let other = other.der().clone();
    let given = [
        other.clone(),
        w.leaf.clone(),
        w.lower.clone(),
        w.upper.clone(),
    ];
    let by_key = repair(&given, w.key(), &[], NOW).unwrap();
    assert_eq!(by_key.chain[0], w.leaf);
    assert_eq!(kinds(&by_key.repairs), [Kind::UnrelatedDropped]);
    let refused = repair(&given, None, &[], NOW).unwrap_err();
    assert_eq!(refused.code, Code::PemMalformed);
    assert!(
        refused.message.contains("certificates 1 and 2"),
        "{}",
        refused.message
    );
    // The same key in two certificates, as after a renewal.
    let renewed = server("www.example.com")
        .signed_by(&w.leaf_key, &w.lower_issuer)
        .unwrap();
    let given = [w.leaf.clone(), renewed.der().clone(), w.lower.clone()];
    assert_eq!(
        repair(&given, w.key(), &[], NOW).unwrap_err().code,
        Code::PemMalformed
    );
    // A key that belongs to none of them is examination's to refuse.
    let foreign = repair(&given[1..], Some([7; 32]), &[], NOW).unwrap();
    assert_eq!(foreign.chain[0], *renewed.der());
}

fn pem_of(chain: &[&Der]) -> String {
    let block = |der: &&Der| {
        let body = data_encoding::BASE64.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
    };
    chain.iter().map(block).collect()
}

#[test]
fn taking_in_says_all_that_was_done() {
    let w = World::new();
    let take = |text: &str, shown: &[&Der]| {
        let shown: Vec<Der> = shown.iter().map(|der| (*der).clone()).collect();
        take_in(
            text.as_bytes(),
            w.key(),
            CertificateKind::Server,
            NOW,
            &[],
            || (Vec::new(), shown),
        )
        .map(|(examined, repairs)| (examined.chain, examined.trust, kinds(&repairs)))
        .map_err(|reasons| reasons[0].code)
    };
    let good = vec![w.leaf.clone(), w.lower.clone(), w.upper.clone()];
    let text = format!("note\n{}", pem_of(&[&w.upper, &w.leaf, &w.lower, &w.leaf]));
    let told = vec![Kind::TextIgnored, Kind::DuplicateDropped, Kind::Reordered];
    assert_eq!(take(&text, &[]), Ok((good.clone(), Trust::Private, told)));
    let lone = pem_of(&[&w.leaf]);
    assert_eq!(take(&lone, &[]), Err(Code::ChainIncomplete));
    let (chain, _, told) = take(&lone, &[&w.lower]).unwrap();
    assert_eq!(chain, good[..2]);
    assert_eq!(told, [Kind::IntermediateAdded]);
    let gap = pem_of(&[&w.upper, &w.leaf]);
    let (chain, _, told) = take(&gap, &[&w.lower]).unwrap();
    assert_eq!(chain, good);
    assert_eq!(told, [Kind::Reordered, Kind::IntermediateAdded]);
}

#[test]
fn a_root_that_alone_says_whose_the_leaf_is_stays() {
    let root_key = KeyPair::generate().unwrap();
    let params = authority("Office root");
    let root = params.self_signed(&root_key).unwrap().der().clone();
    let issuer = Issuer::new(params, root_key);
    let key = KeyPair::generate().unwrap();
    let leaf = server("www.example.com").signed_by(&key, &issuer).unwrap();
    let leaf = leaf.der().clone();
    let text = pem_of(&[&root, &leaf]);
    let take = |cas: Vec<Der>| {
        let spki = super::super::examine::sha256(Certificate::parse(&leaf).unwrap().spki());
        take_in(
            text.as_bytes(),
            Some(spki),
            CertificateKind::Server,
            NOW,
            &[],
            || (cas, vec![]),
        )
    };
    let (examined, repairs) = take(vec![]).unwrap();
    assert_eq!(examined.chain, [leaf.clone(), root.clone()]);
    assert_eq!(kinds(&repairs), [Kind::Reordered]);
    // Where the project keeps it as a CA, it need not be served.
    let (examined, repairs) = take(vec![root]).unwrap();
    assert_eq!(examined.chain, [leaf]);
    assert_eq!(kinds(&repairs), [Kind::RootDropped]);
}

#[test]
fn a_self_signed_leaf_stays_and_so_does_what_cannot_be_read() {
    let key = KeyPair::generate().unwrap();
    let leaf = server("www.example.com")
        .self_signed(&key)
        .unwrap()
        .der()
        .clone();
    let repaired = repair(&[leaf.clone(), leaf.clone()], None, &[], NOW).unwrap();
    assert_eq!(repaired.chain, std::slice::from_ref(&leaf));
    assert_eq!(kinds(&repaired.repairs), [Kind::DuplicateDropped]);
    let broken = [leaf, Der::from(vec![0x30, 0])];
    assert_eq!(repair(&broken, None, &[], NOW).unwrap().chain, broken);
    assert!(repair(&[], None, &[], NOW).unwrap().chain.is_empty());
}

/// Twenty CAs of one name and one key would have more paths between them than anybody can look at.
#[test]
fn many_of_one_name_take_little_time() {
    let key = KeyPair::generate().unwrap();
    let params = authority("Same");
    let issuer = Issuer::new(params.clone(), key);
    let leaf_key = KeyPair::generate().unwrap();
    let mut given: Vec<Der> = (0..18)
        .map(|_| {
            let twin = params
                .signed_by(&KeyPair::generate().unwrap(), &issuer)
                .unwrap();
            twin.der().clone()
        })
        .collect();
    given.push(
        server("www.example.com")
            .signed_by(&leaf_key, &issuer)
            .unwrap()
            .der()
            .clone(),
    );
    let begun = std::time::Instant::now();
    let _ = repair(&given, None, &given, NOW);
    assert!(begun.elapsed() < std::time::Duration::from_secs(1));
}

/// People give their CA the name of its only leaf. The names alone would make the leaf a root, and its issuer a stranger.
#[test]
fn a_leaf_that_is_called_like_its_ca_is_no_root() {
    let upload = || {
        let (ca_key, leaf_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let ca = authority("www.example.com");
        let ca_der = ca.self_signed(&ca_key).unwrap().der().clone();
        let leaf = server("www.example.com")
            .signed_by(&leaf_key, &Issuer::new(ca, ca_key))
            .unwrap()
            .der()
            .clone();
        (leaf, ca_der)
    };
    let ((_, former), (leaf, ca)) = (upload(), upload());
    for known in [&[][..], &[former][..]] {
        let repaired = repair(&[leaf.clone(), ca.clone()], None, known, NOW).unwrap();
        assert_eq!(repaired.chain, std::slice::from_ref(&leaf));
        assert_eq!(repaired.root.as_ref(), Some(&ca), "{:?}", repaired.repairs);
    }
}
