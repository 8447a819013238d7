//! The search for a path from a leaf to an anchor (RFC 4158), shortest first, through help in any order, related or not.
//!
//! webpki judges each path that is found here, alone, so that a bad one never hides a good one: given the whole heap, webpki
//! itself would stop at the hundredth signature or the first of its other limits. What only a path decides and webpki leaves
//! out or reads more narrowly than RFC 5280 is decided here: path lengths that do not count self-issued certificates, and name
//! constraints of all forms.
//!
//! Everything is bounded: each signature and each pair of constraints and names is looked at once, and a graph of cross
//! signatures without end costs no more than [`STEPS`].

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use lifecycle::rejection::{Code, Reason};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, Error, KeyUsage, anchor_from_trusted_cert};

use super::certificate::Certificate;
use super::constraints::{self, Broken, COMPARISONS};

/// The most intermediates of a path: what webpki, and with it the edge's peers, walk.
pub(super) const MAX_INTERMEDIATES: usize = 6;
/// Signatures that are checked for one verdict. Only certificates whose names fit are tried.
const SIGNATURES: usize = 400;
/// Partial paths that are looked at for one verdict.
const STEPS: usize = 2_000;
/// Whole paths that webpki judges for one verdict.
const JUDGED: usize = 48;

/// A certificate that may take part in a path.
pub(super) struct Node<'a> {
    /// The certificate.
    pub(super) certificate: Certificate<'a>,
    /// What keeps it out of every path.
    pub(super) flaws: Vec<Reason>,
    /// How it is named in a sentence.
    pub(super) name: String,
}

/// A path: indices of the help, from the leaf's issuer upwards, and the index of the anchor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Path {
    /// The help that is needed.
    pub(super) help: Vec<usize>,
    /// The anchor. None in a path that ends before one.
    pub(super) anchor: Option<usize>,
}

/// What the search found.
pub(super) enum Outcome {
    /// A path that may be used.
    Found(Path),
    /// None; all the reasons against the one that comes nearest, and that one.
    Refused(Vec<Reason>, Path),
}

/// One search.
pub(super) struct Search<'s, 'a> {
    leaf: &'s Certificate<'a>,
    help: &'s [Node<'a>],
    anchors: &'s [Node<'a>],
    help_by_subject: HashMap<&'s [u8], Vec<usize>>,
    anchors_by_subject: HashMap<&'s [u8], Vec<usize>>,
    /// For each of the help a number that those of the same name and key share.
    owners: Vec<usize>,
    candidates: HashMap<(Place, bool), Rc<[usize]>>,
    signed: HashMap<(Place, Place), bool>,
    constrained: HashMap<(Place, Place), Result<(), Broken>>,
    signatures: usize,
    comparisons: usize,
    steps: usize,
    judged: usize,
    exhausted: bool,
}

/// A certificate's place among those of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    Leaf,
    Help(usize),
    Anchor(usize),
}

impl<'s, 'a> Search<'s, 'a> {
    /// Prepares a search from `leaf` through `help` to one of `anchors`.
    pub(super) fn new(
        leaf: &'s Certificate<'a>,
        help: &'s [Node<'a>],
        anchors: &'s [Node<'a>],
    ) -> Self {
        fn index<'s>(nodes: &'s [Node<'_>]) -> HashMap<&'s [u8], Vec<usize>> {
            let mut index: HashMap<&[u8], Vec<usize>> = HashMap::new();
            for (place, node) in nodes.iter().enumerate() {
                index
                    .entry(node.certificate.subject())
                    .or_default()
                    .push(place);
            }
            index
        }
        let mut known: HashMap<(&[u8], &[u8]), usize> = HashMap::new();
        let owners = help
            .iter()
            .enumerate()
            .map(|(place, node)| {
                let owner = (node.certificate.subject(), node.certificate.spki());
                *known.entry(owner).or_insert(place)
            })
            .collect();
        Self {
            owners,
            leaf,
            help,
            anchors,
            help_by_subject: index(help),
            anchors_by_subject: index(anchors),
            candidates: HashMap::new(),
            signed: HashMap::new(),
            constrained: HashMap::new(),
            signatures: SIGNATURES,
            comparisons: COMPARISONS,
            steps: STEPS,
            judged: JUDGED,
            exhausted: false,
        }
    }

    /// Searches at the time `at` in Unix seconds. `judge`: whether webpki is asked; it refuses every path of a leaf that is
    /// refused anyway.
    pub(super) fn run(mut self, at: i64, judge: bool) -> Outcome {
        // Who trusts the very certificate needs no path.
        if let Some(anchor) = self
            .anchors
            .iter()
            .position(|anchor| anchor.certificate.der == self.leaf.der)
        {
            return Outcome::Found(Path {
                help: Vec::new(),
                anchor: Some(anchor),
            });
        }
        let mut refusals = Vec::new();
        if let Some(path) = self.walk(at, judge, &mut refusals) {
            return Outcome::Found(path);
        }
        let (mut reasons, path) = self.explain();
        for refusal in refusals {
            if reasons.iter().all(|reason| reason.code != refusal.code) {
                reasons.push(refusal);
            }
        }
        if self.exhausted {
            reasons.push(Reason::new(
                Code::TooLarge,
                "The certificates form more paths, signatures or name constraints than one verdict is worth.",
                "Pass the server certificate and the intermediates that it needs, without others.",
            ));
        }
        if reasons.is_empty() {
            reasons.push(no_path());
        }
        Outcome::Refused(reasons, path)
    }

    /// The shortest path without a flaw.
    fn walk(&mut self, at: i64, judge: bool, refusals: &mut Vec<Reason>) -> Option<Path> {
        let mut queue: VecDeque<Vec<usize>> = VecDeque::from([Vec::new()]);
        while let Some(path) = queue.pop_front() {
            if self.steps == 0 {
                self.exhausted = true;
                return None;
            }
            self.steps -= 1;
            for &anchor in self.candidates(&path, true).iter() {
                let place = Place::Anchor(anchor);
                if !self.anchors[anchor].flaws.is_empty() || !self.fits(&path, place) {
                    continue;
                }
                if !judge {
                    return Some(Path {
                        help: path,
                        anchor: Some(anchor),
                    });
                }
                if self.judged == 0 {
                    self.exhausted = true;
                    return None;
                }
                self.judged -= 1;
                match self.ask_webpki(&path, anchor, at) {
                    Ok(()) => {
                        return Some(Path {
                            help: path,
                            anchor: Some(anchor),
                        });
                    }
                    Err(error) => refusals.push(super::trust::reason(&error)),
                }
            }
            if path.len() == MAX_INTERMEDIATES {
                continue;
            }
            for &next in self.candidates(&path, false).iter() {
                if self.help[next].flaws.is_empty()
                    && !self.closes_a_loop(&path, next)
                    && self.fits(&path, Place::Help(next))
                {
                    let mut longer = path.clone();
                    longer.push(next);
                    queue.push_back(longer);
                }
            }
        }
        None
    }

    fn certificate(&self, place: Place) -> &'s Certificate<'a> {
        match place {
            Place::Leaf => self.leaf,
            Place::Help(index) => &self.help[index].certificate,
            Place::Anchor(index) => &self.anchors[index].certificate,
        }
    }

    fn head(&self, path: &[usize]) -> Place {
        path.last().map_or(Place::Leaf, |index| Place::Help(*index))
    }

    /// Those whose subject is the issuer of the path's end; first those whose key identifier is the one that it names.
    fn candidates(&mut self, path: &[usize], anchors: bool) -> Rc<[usize]> {
        let place = self.head(path);
        if let Some(known) = self.candidates.get(&(place, anchors)) {
            return known.clone();
        }
        let head = self.certificate(place);
        let (index, nodes) = if anchors {
            (&self.anchors_by_subject, self.anchors)
        } else {
            (&self.help_by_subject, self.help)
        };
        let mut found = index.get(head.issuer()).cloned().unwrap_or_default();
        let wanted = head.authority_key_id();
        found.sort_by_cached_key(|place| {
            wanted.is_none() || nodes[*place].certificate.subject_key_id() != wanted
        });
        let found: Rc<[usize]> = found.into();
        self.candidates.insert((place, anchors), found.clone());
        found
    }

    /// Whether a CA of the same name and key is on the path already (RFC 4158, 5.2).
    fn closes_a_loop(&self, path: &[usize], next: usize) -> bool {
        path.iter()
            .any(|place| self.owners[*place] == self.owners[next])
    }

    /// Whether `issuer` may stand above `path`: length, names, signature.
    fn fits(&mut self, path: &[usize], issuer: Place) -> bool {
        self.short_enough(path, issuer)
            && self.signed_by(self.head(path), issuer)
            && self.names_allowed(path, issuer) == Ok(())
    }

    /// The path length constraint (RFC 5280, 4.2.1.9): intermediates that are self-issued do not count.
    fn short_enough(&self, path: &[usize], issuer: Place) -> bool {
        let below = path
            .iter()
            .filter(|place| !self.help[**place].certificate.self_issued())
            .count();
        self.certificate(issuer)
            .path_length()
            .is_none_or(|longest| below <= longest as usize)
    }

    fn signed_by(&mut self, subject: Place, issuer: Place) -> bool {
        if let Some(known) = self.signed.get(&(subject, issuer)) {
            return *known;
        }
        if self.signatures == 0 {
            self.exhausted = true;
            return false;
        }
        self.signatures -= 1;
        let signed = self
            .certificate(subject)
            .is_signed_by(self.certificate(issuer));
        self.signed.insert((subject, issuer), signed);
        signed
    }

    /// The name constraints of `issuer` over all below it, but not over intermediates that are self-issued (RFC 5280, 6.1.3).
    fn names_allowed(&mut self, path: &[usize], issuer: Place) -> Result<(), Broken> {
        let Some(constraints) = self.certificate(issuer).name_constraints() else {
            return Ok(());
        };
        let below = path
            .iter()
            .map(|place| Place::Help(*place))
            .filter(|place| !self.certificate(*place).self_issued())
            .chain([Place::Leaf]);
        for subject in below.collect::<Vec<_>>() {
            let held = match self.constrained.get(&(issuer, subject)) {
                Some(known) => *known,
                None => {
                    let held = constraints::hold(
                        constraints,
                        self.certificate(subject),
                        &mut self.comparisons,
                    );
                    self.constrained.insert((issuer, subject), held);
                    held
                }
            };
            if held == Err(Broken::TooMany) {
                self.exhausted = true;
            }
            held?;
        }
        Ok(())
    }

    /// What webpki says of exactly this path, where it is not known to be narrower than RFC 5280.
    ///
    /// It holds self-issued intermediates against path lengths and name constraints, which they are exempt from. A path with
    /// one is therefore cut: webpki reads all of it and judges the leaf below its issuer, and the rest rests on what was
    /// checked here.
    fn ask_webpki(&self, path: &[usize], anchor: usize, at: i64) -> Result<(), Error> {
        let at = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(at).unwrap_or(0)));
        let leaf = CertificateDer::from(self.leaf.der);
        let leaf = EndEntityCert::try_from(&leaf)?;
        let mut intermediates: Vec<_> = path
            .iter()
            .map(|place| CertificateDer::from(self.help[*place].certificate.der))
            .collect();
        let mut anchor = CertificateDer::from(self.anchors[anchor].certificate.der);
        if path
            .iter()
            .any(|place| self.help[*place].certificate.self_issued())
        {
            anchor_from_trusted_cert(&anchor)?;
            for intermediate in &intermediates {
                EndEntityCert::try_from(intermediate)?;
            }
            anchor = intermediates.swap_remove(0);
            intermediates.clear();
        }
        let anchors = [anchor_from_trusted_cert(&anchor)?];
        match leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &intermediates,
            at,
            KeyUsage::server_auth(),
            None,
            None,
        ) {
            // It knows no constraints of directory names, mail addresses and URIs; all forms are judged here.
            Ok(_)
            | Err(
                Error::NameConstraintViolation | Error::MaximumNameConstraintComparisonsExceeded,
            ) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// All that speaks against the path that comes nearest to being one: one that leads to an anchor if flaws are overlooked,
    /// else the longest.
    fn explain(&mut self) -> (Vec<Reason>, Path) {
        let mut queue: VecDeque<Vec<usize>> = VecDeque::from([Vec::new()]);
        let mut longest = Vec::new();
        let mut reaching = None;
        let mut steps = STEPS / 4;
        // What was spent above must not hide why.
        self.signatures = self.signatures.max(SIGNATURES / 4);
        while let Some(path) = queue.pop_front() {
            if steps == 0 {
                break;
            }
            steps -= 1;
            let head = self.head(&path);
            if let Some(anchor) = self
                .candidates(&path, true)
                .iter()
                .copied()
                .find(|anchor| self.seems_signed(head, Place::Anchor(*anchor)))
            {
                reaching = Some(Path {
                    help: path,
                    anchor: Some(anchor),
                });
                break;
            }
            if path.len() < MAX_INTERMEDIATES + 2 {
                for &next in self.candidates(&path, false).iter() {
                    if !self.closes_a_loop(&path, next)
                        && self.seems_signed(head, Place::Help(next))
                    {
                        let mut longer = path.clone();
                        longer.push(next);
                        queue.push_back(longer);
                    }
                }
            }
            if path.len() > longest.len() {
                longest = path;
            }
        }
        let path = reaching.unwrap_or(Path {
            help: longest,
            anchor: None,
        });
        (self.reasons_against(&path), path)
    }

    /// As [`signed_by`](Self::signed_by), but what nobody can check counts as signed.
    fn seems_signed(&mut self, subject: Place, issuer: Place) -> bool {
        !self.certificate(subject).signature_can_be_checked() || self.signed_by(subject, issuer)
    }

    fn reasons_against(&mut self, path: &Path) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let places: Vec<Place> = path
            .help
            .iter()
            .map(|place| Place::Help(*place))
            .chain(path.anchor.map(Place::Anchor))
            .collect();
        for (above, place) in places.iter().enumerate() {
            let node = match place {
                Place::Anchor(index) => &self.anchors[*index],
                Place::Help(index) => &self.help[*index],
                Place::Leaf => continue,
            };
            reasons.extend(node.flaws.iter().cloned());
            let below = &path.help[..above];
            if !self.short_enough(below, *place) {
                reasons.push(Reason::new(
                    Code::ChainUntrusted,
                    format!(
                        "{} allows fewer CAs below it than there are (its path length constraint).",
                        node.name
                    ),
                    "Ask the CA for a certificate that its constraints allow.",
                ));
            }
            if self.names_allowed(below, *place) == Err(Broken::Forbidden) {
                reasons.push(Reason::new(
                    Code::ChainUntrusted,
                    format!("{} must not have issued what is below it: its name constraints forbid a name there, or name a form that cannot be judged.", node.name),
                    "Ask the CA for a certificate whose names its constraints allow.",
                ));
            }
        }
        if path.help.len() > MAX_INTERMEDIATES {
            reasons.push(Reason::new(
                Code::ChainUntrusted,
                format!("The path has more than {MAX_INTERMEDIATES} intermediates, which clients do not walk."),
                "Use a shorter chain, with a certificate of a CA nearer to the root.",
            ));
        }
        if path.anchor.is_none() {
            reasons.push(self.dead_end(path));
        }
        reasons
    }

    /// Why a path ends before an anchor.
    fn dead_end(&self, path: &Path) -> Reason {
        let end = self.certificate(self.head(&path.help));
        let issuer = end.issuer();
        if end.self_issued() && end.is_signed_by(end) {
            return Reason::new(
                Code::ChainUntrusted,
                if path.help.is_empty() {
                    "The certificate signed itself, and it is not among the roots.".to_owned()
                } else {
                    format!(
                        "The chain ends at a root that is not trusted here: {}.",
                        end.shown_subject()
                    )
                },
                "If that root is yours, judge against it: chancery verify --chain FILE --roots ROOT; `chancery certificate add` takes the chain, with the trust private or self-signed.",
            );
        }
        if self.anchors_by_subject.contains_key(issuer) || self.help_by_subject.contains_key(issuer)
        {
            return Reason::new(
                Code::ChainIncomplete,
                format!(
                    "A certificate of the right name is there but did not sign what names it as its issuer: {}.",
                    end.shown_issuer()
                ),
                "The CA may have changed its key: append the intermediate that belongs to this certificate.",
            );
        }
        Reason::new(
            Code::ChainIncomplete,
            format!(
                "No path leads to a root: the issuer is not there: {}.",
                end.shown_issuer()
            ),
            "Append the intermediates that the CA sent along, the server certificate first: cat cert.pem intermediate.pem > chain.pem; a root of your own is passed by --roots FILE",
        )
    }
}

fn no_path() -> Reason {
    Reason::new(
        Code::ChainIncomplete,
        "No path leads from the certificate to a root.",
        "Append the intermediates that the CA sent along, the server certificate first: cat cert.pem intermediate.pem > chain.pem",
    )
}
