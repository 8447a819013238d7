//! What shall become of each certificate: pairs found by their public keys, names given, and all of it compared with what the
//! project has already.
//!
//! The same tree against the same project gives the same plan, and a tree that was imported gives one in which nothing is
//! left to do: what counts is the fingerprint, whatever the name.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

use lifecycle::names::{Digest, Slug};
use lifecycle::rejection::Code;

use super::line::{Line, Verdict};
use super::names::{NAME_MAX, SUFFIX, generic, slug, slug_of_path, stem};
use super::scan::{Inventory, Leaf, Place};
use super::there::{Known, Room, There};
use super::walk::{File, Layout, Tree};
use crate::output::list;

/// What is done with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A new one.
    Add,
    /// A new version, if the certificate still has this revision.
    Replace {
        /// The revision that was seen.
        expect: u64,
    },
}

/// A certificate to send.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub name: Slug,
    /// Where it stands.
    pub source: String,
    /// What is done with it.
    pub action: Action,
    /// SHA-256 of the certificate.
    pub fingerprint: Digest,
    /// SHA-256 of its public key.
    pub spki: Digest,
    /// Where the certificate stands.
    pub place: Place,
    /// Where its key stands.
    pub key: Place,
    /// Its issuers.
    pub chain: Vec<u32>,
}

/// A plan.
#[derive(Debug, Default)]
pub struct Plan {
    /// What is sent. Within a group one goes after the other: they share hosts, and the one that ends last shall be first in
    /// rank, which is the one that came last.
    pub groups: Vec<Vec<Entry>>,
    /// What is settled without asking.
    pub settled: Vec<Line>,
    /// How many certificates each layout has given.
    pub layouts: BTreeMap<Layout, u64>,
    /// How many new certificates there would be.
    pub wanted: u64,
}

/// What a plan depends on beside the files.
pub struct Asked<'a> {
    /// The folder as it was named.
    pub dir: &'a Path,
    /// The prefix of names.
    pub prefix: Option<&'a str>,
    /// The regions where they shall work.
    pub regions: &'a BTreeSet<String>,
    /// Unix seconds.
    pub now: i64,
    /// The project, for hints.
    pub project: &'a Slug,
}

/// A certificate on its way through the plan.
struct Candidate<'a> {
    leaf: &'a Leaf,
    file: &'a File,
    source: String,
    slug: String,
    key: Option<Place>,
}

/// Makes the plan.
pub fn plan(
    tree: &Tree,
    inventory: &Inventory,
    there: &There,
    room: &Room,
    asked: &Asked<'_>,
) -> Plan {
    let mut plan = Plan::default();
    for passed in &tree.passed {
        let verdict = if passed.failed {
            Verdict::Failed
        } else {
            Verdict::Skipped
        };
        let source = passed.shown.display().to_string();
        plan.settled.push(
            Line::new(slug_of_path(&passed.shown, asked.prefix), source, verdict).because(
                None,
                passed.why.clone(),
                "",
            ),
        );
    }
    let mut candidates: Vec<Candidate<'_>> = inventory
        .leaves
        .values()
        .map(|leaf| candidate(leaf, tree, inventory, asked))
        // Certificates of CAs and of people are no business of an import, unless somebody keeps their keys here too.
        .filter(|c| c.key.is_some() || !(c.leaf.ca || c.leaf.names.is_empty()))
        .collect();
    candidates.sort_by(|a, b| {
        (&a.source, a.leaf.place, a.leaf.fingerprint).cmp(&(
            &b.source,
            b.leaf.place,
            b.leaf.fingerprint,
        ))
    });
    for c in &candidates {
        *plan.layouts.entry(c.file.layout).or_default() += 1;
    }
    let newest = newest(&candidates);
    let beside = Beside::of(tree, inventory);
    let mut used = HashSet::new();
    let mut rest = Vec::new();
    let mut claimed: HashSet<String> = HashSet::new();
    for c in candidates {
        match settled(
            &c, tree, inventory, there, asked, &newest, &beside, &mut used,
        ) {
            Some(line) => {
                if line.outcome() == Verdict::Unchanged {
                    claimed.insert(line.name.clone());
                }
                plan.settled.push(line);
            }
            None => rest.push(c),
        }
    }
    // What could not be read, and no certificate has asked for.
    for (at, trouble) in inventory.troubles.iter().enumerate() {
        let told = trouble.certificates || trouble.code.is_none();
        if !told || used.contains(&at) {
            continue;
        }
        let file = &tree.files[trouble.file as usize];
        let verdict = if trouble.code.is_some() {
            Verdict::Refused
        } else {
            Verdict::Failed
        };
        plan.settled.push(
            Line::new(
                slug_of_path(&file.shown, asked.prefix),
                file.shown.display().to_string(),
                verdict,
            )
            .because(trouble.code, trouble.message.clone(), trouble.hint.clone()),
        );
    }
    let mut ready: Vec<(Entry, &Leaf)> = Vec::new();
    let mut free = room.tightest().map_or(u64::MAX, |limit| limit.free());
    for c in rest {
        match name(&c, there, &mut claimed, asked, tree) {
            Ok((name, action)) => {
                if action == Action::Add {
                    plan.wanted += 1;
                    if free == 0 {
                        plan.settled.push(
                            Line::new(name.to_string(), c.source.clone(), Verdict::Refused)
                                .because(
                                    Some(Code::QuotaExceeded),
                                    full(room),
                                    format!("an operator gives more: {}", more(room, asked, 0)),
                                ),
                        );
                        continue;
                    }
                    free -= 1;
                }
                // A candidate without a key was settled above.
                let Some(key) = c.key else { continue };
                let entry = Entry {
                    name,
                    source: c.source,
                    action,
                    fingerprint: c.leaf.fingerprint,
                    spki: c.leaf.spki,
                    place: c.leaf.place,
                    key,
                    chain: inventory.chain(c.leaf, c.file.folder),
                };
                ready.push((entry, c.leaf));
            }
            Err(line) => plan.settled.push(*line),
        }
    }
    // The hint names what all of them need, which is only known now.
    let hint = format!("an operator gives more: {}", more(room, asked, plan.wanted));
    for line in &mut plan.settled {
        if line.code.as_deref() == Some(Code::QuotaExceeded.as_str()) {
            line.reasons[0].hint.clone_from(&hint);
        }
    }
    plan.groups = groups(ready);
    plan
}

fn full(room: &Room) -> String {
    match room.tightest() {
        Some(limit) => {
            let place = limit
                .region
                .as_ref()
                .map(|region| format!(" in region {region}"))
                .unwrap_or_default();
            format!(
                "the project has {} of at most {} certificates{place}, and those before this one take what is left",
                limit.used, limit.allocated
            )
        }
        None => "the project has no room left".to_owned(),
    }
}

/// The command with which an operator makes room for so many new certificates.
pub fn more(room: &Room, asked: &Asked<'_>, wanted: u64) -> String {
    let mut command = format!("chancery project quota {}", asked.project);
    let need = |of_region: bool| {
        room.limits
            .iter()
            .filter(|limit| limit.region.is_some() == of_region && limit.free() < wanted)
            .map(|limit| limit.used + wanted)
            .max()
    };
    if let Some(all) = need(false) {
        command.push_str(&format!(" --certificates {all}"));
    }
    if let Some(each) = need(true) {
        command.push_str(&format!(" --per-region {each}"));
    }
    command
}

fn candidate<'a>(
    leaf: &'a Leaf,
    tree: &'a Tree,
    inventory: &Inventory,
    asked: &Asked<'_>,
) -> Candidate<'a> {
    let file = &tree.files[leaf.place.file as usize];
    let folder = file.folder;
    // The key beside it, if it is there in several places.
    let key = inventory.keys.get(&leaf.spki).and_then(|places| {
        places
            .iter()
            .min_by_key(|place| {
                (
                    tree.files[place.file as usize].folder != folder,
                    place.file != leaf.place.file,
                    **place,
                )
            })
            .copied()
    });
    Candidate {
        leaf,
        file,
        source: source(file, leaf),
        slug: slug(leaf, file, asked.prefix),
        key,
    }
}

/// What people know it by: the folder that a tool made for it, else the file.
fn source(file: &File, leaf: &Leaf) -> String {
    let folder = file.shown.parent().filter(|p| !p.as_os_str().is_empty());
    match (file.layout, folder, &leaf.label) {
        (Layout::Certbot | Layout::Caddy | Layout::AcmeSh, Some(folder), _) => {
            folder.display().to_string()
        }
        (Layout::Traefik, _, Some(label)) => format!("{}#{label}", file.shown.display()),
        _ => file.shown.display().to_string(),
    }
}

/// Of those in one folder with the same hosts and kind of key, the one that ends last.
type Newest = HashMap<(u32, Vec<String>, String), (i64, i64, Digest, String)>;

fn kin(leaf: &Leaf, file: &File) -> (u32, Vec<String>, String) {
    let mut names = leaf.names.clone();
    names.sort();
    (file.folder, names, leaf.algorithm.clone())
}

fn newest(candidates: &[Candidate<'_>]) -> Newest {
    let mut newest = Newest::new();
    for c in candidates.iter().filter(|c| c.key.is_some()) {
        let mine = (
            c.leaf.not_after,
            c.leaf.not_before,
            c.leaf.fingerprint,
            c.source.clone(),
        );
        newest
            .entry(kin(c.leaf, c.file))
            .and_modify(|best| {
                if (best.0, best.1, best.2) < (mine.0, mine.1, mine.2) {
                    best.clone_from(&mine);
                }
            })
            .or_insert(mine);
    }
    newest
}

/// What stands in a folder and belongs to no certificate: places in the list of troubles, and keys.
#[derive(Default)]
struct Beside {
    troubles: HashMap<u32, Vec<usize>>,
    keys: HashMap<u32, Vec<Place>>,
}

impl Beside {
    fn of(tree: &Tree, inventory: &Inventory) -> Self {
        let mut beside = Self::default();
        let folder = |file: u32| tree.files[file as usize].folder;
        for (at, trouble) in inventory.troubles.iter().enumerate() {
            beside
                .troubles
                .entry(folder(trouble.file))
                .or_default()
                .push(at);
        }
        let owned: HashSet<Digest> = inventory.leaves.values().map(|leaf| leaf.spki).collect();
        for (_, places) in inventory
            .keys
            .iter()
            .filter(|(spki, _)| !owned.contains(spki))
        {
            for place in places {
                beside
                    .keys
                    .entry(folder(place.file))
                    .or_default()
                    .push(*place);
            }
        }
        beside.keys.values_mut().for_each(|places| places.sort());
        beside
    }
}

/// What needs no asking.
#[allow(clippy::too_many_arguments)]
fn settled(
    c: &Candidate<'_>,
    tree: &Tree,
    inventory: &Inventory,
    there: &There,
    asked: &Asked<'_>,
    newest: &Newest,
    beside: &Beside,
    used: &mut HashSet<usize>,
) -> Option<Line> {
    let line = |verdict| Line::new(c.slug.clone(), c.source.clone(), verdict);
    if c.leaf.names.is_empty() {
        return Some(line(Verdict::Skipped).because(
            Some(Code::NotAServerCertificate),
            "it names no host that can be served; the common name alone does not count",
            "have it issued with the host names as subject alternative names",
        ));
    }
    if c.leaf.not_after <= asked.now {
        return Some(line(Verdict::Skipped).because(
            Some(Code::Expired),
            format!("it ended at {}", wire::envelope::rfc3339(c.leaf.not_after)),
            "",
        ));
    }
    if let Some((name, version)) = there.fingerprints.get(&c.leaf.fingerprint) {
        return Some(unchanged(name, *version, c, there, asked));
    }
    if let Some((_, _, fingerprint, source)) = newest.get(&kin(c.leaf, c.file))
        && *fingerprint != c.leaf.fingerprint
    {
        let there = if *source == c.source {
            "there is a later one of the same hosts beside it".to_owned()
        } else {
            format!("{source} is of the same hosts and ends later")
        };
        return Some(line(Verdict::Skipped).because(None, there, ""));
    }
    if c.key.is_some() {
        return None;
    }
    // A key that could not be opened beside it is why there is none.
    let near = |file: u32| {
        let other = &tree.files[file as usize];
        let alone = ![Layout::Plain, Layout::Lego].contains(&c.file.layout);
        alone || stem(&other.shown) == stem(&c.file.shown) || generic(&stem(&other.shown))
    };
    let here = |of: &HashMap<u32, Vec<usize>>| of.get(&c.file.folder).cloned().unwrap_or_default();
    let trouble = here(&beside.troubles)
        .into_iter()
        .find(|at| !used.contains(at) && near(inventory.troubles[*at].file));
    if let Some(at) = trouble {
        let trouble = &inventory.troubles[at];
        used.insert(at);
        let file = tree.files[trouble.file as usize].shown.display();
        let verdict = if trouble.code.is_some() {
            Verdict::Refused
        } else {
            Verdict::Failed
        };
        return Some(line(verdict).because(
            trouble.code,
            format!("{file}: {}", trouble.message),
            trouble.hint.clone(),
        ));
    }
    let other_key = beside
        .keys
        .get(&c.file.folder)
        .and_then(|places| places.iter().find(|place| near(place.file)));
    Some(match other_key {
        Some(place) => line(Verdict::Refused).because(
            Some(Code::KeyMismatch),
            format!(
                "the private key in {} does not belong to it: their public keys differ",
                tree.files[place.file as usize].shown.display()
            ),
            "put the key there that the signing request was made with",
        ),
        None => line(Verdict::Refused).because(
            Some(Code::KeyMissing),
            "no private key in the folder belongs to it",
            "put its key beside it, or move the certificate away if it is not to be served here",
        ),
    })
}

fn unchanged(
    name: &str,
    version: u64,
    c: &Candidate<'_>,
    there: &There,
    asked: &Asked<'_>,
) -> Line {
    let mut line = Line::new(name, c.source.clone(), Verdict::Unchanged);
    let Some(known) = there.names.get(name) else {
        return line;
    };
    if !["ready", "verifying"].contains(&known.status.as_str()) {
        line = line.because(
            None,
            format!("version {version} of it; its status is {}", known.status),
            format!("chancery certificate show {name}"),
        );
    }
    let missing: Vec<&str> = asked
        .regions
        .iter()
        .filter(|region| !known.regions.contains(region))
        .map(String::as_str)
        .collect();
    if !missing.is_empty() {
        line = line.because(
            None,
            format!("it is not deployed to {}", list(&missing, 5)),
            format!(
                "chancery certificate deploy {name} --region {}",
                missing.join(" --region ")
            ),
        );
    }
    line
}

/// Finds the name, and what is done under it.
fn name(
    c: &Candidate<'_>,
    there: &There,
    claimed: &mut HashSet<String>,
    asked: &Asked<'_>,
    tree: &Tree,
) -> Result<(Slug, Action), Box<Line>> {
    let take = |name: &str, action: Action, claimed: &mut HashSet<String>| {
        claimed.insert(name.to_owned());
        Slug::name(name)
            .map(|name| (name, action))
            .map_err(|error| {
                Box::new(Line::new(name, c.source.clone(), Verdict::Refused).because(
                    Some(Code::Malformed),
                    format!("no name can be made of it: {error}"),
                    "give --name-prefix",
                ))
            })
    };
    if !there.names.contains_key(&c.slug) && !claimed.contains(&c.slug) {
        return take(&c.slug, Action::Add, claimed);
    }
    if !claimed.contains(&c.slug) {
        let known = &there.names[&c.slug];
        return match follows(c.leaf, known) {
            Ok(()) => take(
                &c.slug,
                Action::Replace {
                    expect: known.revision,
                },
                claimed,
            ),
            Err(why) => {
                claimed.insert(c.slug.clone());
                Err(Box::new(
                    Line::new(c.slug.clone(), c.source.clone(), Verdict::Refused).because(
                        Some(Code::DuplicateName),
                        format!("the project has another certificate of this name, and {why}"),
                        force(c, tree, asked),
                    ),
                ))
            }
        };
    }
    // A second one of this name: the successor of what a former import told apart by its suffix, else a new one.
    let stem = base(&c.slug);
    let successor = there
        .names
        .iter()
        .filter(|(name, known)| {
            let suffixed = name
                .strip_prefix(&stem)
                .and_then(|rest| rest.strip_prefix('-'))
                .is_some_and(|rest| {
                    rest.len() == SUFFIX && rest.bytes().all(|b| b.is_ascii_hexdigit())
                });
            suffixed
                && !claimed.contains(*name)
                && known.key.contains(family(&c.leaf.algorithm))
                && follows(c.leaf, known).is_ok()
        })
        .min_by_key(|(name, _)| *name);
    if let Some((name, known)) = successor {
        let action = Action::Replace {
            expect: known.revision,
        };
        let name = name.clone();
        return take(&name, action, claimed);
    }
    take(
        &format!("{}-{}", stem, &c.leaf.fingerprint.to_string()[..SUFFIX]),
        Action::Add,
        claimed,
    )
}

/// A part of the word that views use for keys of this algorithm.
fn family(algorithm: &str) -> &'static str {
    match algorithm {
        "1.2.840.113549.1.1.1" => "rsa",
        "1.2.840.10045.2.1" => "p",
        _ => "ed",
    }
}

/// The slug with room for a suffix.
fn base(slug: &str) -> String {
    let mut base = slug.to_owned();
    base.truncate(NAME_MAX - SUFFIX - 1);
    base.trim_end_matches('-').to_owned()
}

/// Whether a certificate may follow what is there without being asked twice: it covers as many hosts, and for longer.
fn follows(leaf: &Leaf, known: &Known) -> Result<(), String> {
    if known.ca {
        return Err("that one is client trust, of kind ca".to_owned());
    }
    let covers = |host: &String| {
        leaf.names.contains(host)
            || host
                .split_once('.')
                .is_some_and(|(_, parent)| leaf.names.contains(&format!("*.{parent}")))
    };
    if let Some(host) = known.names.iter().find(|host| !covers(host)) {
        return Err(format!("that one also covers {host}"));
    }
    if leaf.not_after <= known.not_after {
        return Err(format!(
            "that one ends no sooner, at {}",
            wire::envelope::rfc3339(known.not_after)
        ));
    }
    Ok(())
}

/// The command that puts it under this name all the same.
fn force(c: &Candidate<'_>, tree: &Tree, asked: &Asked<'_>) -> String {
    let quoted = |file: &File| {
        let path = asked.dir.join(&file.shown).display().to_string();
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-@+,:".contains(&b);
        if path.bytes().all(plain) {
            path
        } else {
            format!("'{}'", path.replace('\'', "'\\''"))
        }
    };
    if c.file.layout == Layout::Traefik {
        return "give --name-prefix to import it beside that one".to_owned();
    }
    let key = c
        .key
        .filter(|key| key.file != c.leaf.place.file)
        .map(|key| format!(" --key {}", quoted(&tree.files[key.file as usize])))
        .unwrap_or_default();
    format!(
        "to replace it all the same: chancery certificate replace {} --chain {}{key} --project {}; to keep both: --name-prefix",
        c.slug,
        quoted(c.file),
        asked.project
    )
}

/// Those that share a host go one after the other, the one that ends last at the end.
fn groups(ready: Vec<(Entry, &Leaf)>) -> Vec<Vec<Entry>> {
    let mut parent: Vec<usize> = (0..ready.len()).collect();
    fn root(parent: &mut [usize], mut at: usize) -> usize {
        while parent[at] != at {
            parent[at] = parent[parent[at]];
            at = parent[at];
        }
        at
    }
    let mut first: HashMap<&str, usize> = HashMap::new();
    for (at, (_, leaf)) in ready.iter().enumerate() {
        for name in &leaf.names {
            let other = *first.entry(name).or_insert(at);
            let (a, b) = (root(&mut parent, at), root(&mut parent, other));
            parent[a.max(b)] = a.min(b);
        }
    }
    let mut groups: BTreeMap<usize, Vec<(i64, i64, Entry)>> = BTreeMap::new();
    for (at, (entry, leaf)) in ready.into_iter().enumerate() {
        groups.entry(root(&mut parent, at)).or_default().push((
            leaf.not_after,
            leaf.not_before,
            entry,
        ));
    }
    groups
        .into_values()
        .map(|mut group| {
            group.sort_by_key(|(end, begin, entry)| (*end, *begin, entry.fingerprint));
            group.into_iter().map(|(_, _, entry)| entry).collect()
        })
        .collect()
}
