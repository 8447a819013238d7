//! The feed of one region: from the tables to the rows that its edges need.
//!
//! A row is always made from the tables as they are, never from the event that touched it: applying it twice does no harm,
//! and a delta over a thousand events carries each row once. The order of rows in a delta lets each part of it be applied
//! by itself: what others lead to comes first, and is taken away last.

use std::collections::BTreeMap;

use actix::Addr;

use ledger::Ledger;
use lifecycle::event::{CertificateKind, Event};
use lifecycle::evolve::hosts;
use lifecycle::history;
use lifecycle::names::{CertificateId, Digest, Host, ResourceId, Slug};
use lifecycle::selection::{Candidate, Mode};
use lifecycle::state::{self, Certificate, ProjectStatus, State, Status};
use lifecycle::store::{Parts, Read, Table, decode};
use wire::envelope::Envelope;
use wire::feed::{self, Change, Chunk, Cursor, Delta, Key, Kind, Message, RegionKey, Signed};

use crate::tables::{Tables, fatal};
use crate::vault::{self, Vault};

/// Events that a delta may span; beyond that an edge takes a snapshot.
pub const DELTA_REACH: u64 = 20_000;
/// Bytes of rows in one message: well below the server's 1 MB.
const MESSAGE_BYTES: usize = 600_000;
/// Rows that the vault is given in one turn.
const SEALED_AT_ONCE: usize = 64;
/// Rows of one scan for a snapshot.
const CHUNK_ROWS: usize = 256;

/// Which row is meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    RegionKey(Slug),
    /// Project, fingerprint, and a name under which its certificate is found.
    Bundle(Slug, Digest, String),
    Resource(ResourceId),
    Names(Slug, String),
    Claim(String),
}

/// A row's value before bundles are sealed.
enum Value {
    Bytes(Vec<u8>),
    Bundle(Box<feed::Bundle>),
    Gone,
}

/// The feed of one region.
pub struct Feed {
    /// The region.
    pub region: Slug,
    ledger: Ledger,
    vault: Addr<Vault>,
    signer: keyring::feed::FeedSigner,
    generation: u64,
}

/// Why a feed could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The vault could not seal a bundle.
    #[error(transparent)]
    Vault(#[from] vault::Error),
    /// The event at this sequence cannot be read.
    #[error("event {0} cannot be read: {1}")]
    Event(u64, wire::envelope::Error),
}

/// What a delta came to.
pub struct Made {
    /// The signed messages, in order; each is the bincode of a [`Signed`].
    pub messages: Vec<Vec<u8>>,
    /// The sequence that an edge is at after the last.
    pub to: u64,
    /// Whether any row changed.
    pub rows: bool,
}

impl Feed {
    /// The feed of a region, signed by `signer`.
    pub fn new(
        region: Slug,
        ledger: Ledger,
        vault: Addr<Vault>,
        signer: keyring::feed::FeedSigner,
        generation: u64,
    ) -> Self {
        Self {
            region,
            ledger,
            vault,
            signer,
            generation,
        }
    }

    /// The generation in force.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What changed after `from`, up to the head. That nothing did up to `looked` is known already.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn delta(&self, from: u64, looked: u64) -> Result<Made, Error> {
        let (to, time, values) = self.collect(looked.max(from))?;
        let rows = !values.is_empty();
        let changes = self.seal(values).await?;
        let mut parts: Vec<Vec<Change>> = vec![Vec::new()];
        let mut size = 0;
        for change in changes {
            let bytes = change.value.as_ref().map_or(0, Vec::len) + 48;
            if size + bytes > MESSAGE_BYTES && size > 0 {
                parts.push(Vec::new());
                size = 0;
            }
            size += bytes;
            if let Some(part) = parts.last_mut() {
                part.push(change);
            }
        }
        let last = parts.len() - 1;
        let head = to;
        let message = |from, to, changes| {
            self.sign(&Message::Delta(Delta {
                generation: self.generation,
                from,
                to,
                // Not the head of this moment: what came while this was sealed follows by itself, and an edge that asked for it
                // would have the same keys sealed a second time.
                head,
                time,
                changes,
            }))
        };
        let mut messages = Vec::with_capacity(parts.len() + 1);
        let mut from = from;
        if last > 0 && looked > from {
            // Parts are taken only at the very place where they begin, so every edge is brought there first.
            messages.push(message(from, looked, Vec::new()));
            from = looked;
        }
        for (i, changes) in parts.into_iter().enumerate() {
            let to = if i == last { to } else { from };
            messages.push(message(from, to, changes));
        }
        Ok(Made { messages, to, rows })
    }

    /// An edge asks for what it lacks.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn sync(&self, request: &feed::SyncRequest) -> Result<Vec<u8>, Error> {
        // As deltas and snapshots read it, and not as the writer tells it a moment after its commit: an edge that had the event
        // already would be told to go back.
        let head = Tables::of(&self.ledger)
            .0
            .head()
            .unwrap_or_else(|error| fatal("the ledger cannot be read", &error))
            .sequence;
        let behind = head.saturating_sub(request.sequence);
        let stale = request.generation != self.generation
            || request.sequence > head
            || request.sequence == 0;
        if stale || behind > DELTA_REACH {
            return Ok(self.sign(&Message::SnapshotNeeded {
                generation: self.generation,
                sequence: head,
            }));
        }
        let mut made = self.delta(request.sequence, request.sequence).await?;
        // One answer is one message. What needs several is a lot: a snapshot does that better.
        match (made.messages.len(), made.messages.pop()) {
            (1, Some(message)) => Ok(message),
            _ => Ok(self.sign(&Message::SnapshotNeeded {
                generation: self.generation,
                sequence: head,
            })),
        }
    }

    fn sign(&self, message: &Message) -> Vec<u8> {
        let payload = feed::encode(message);
        let signature = self.signer.sign(
            feed::SIGNING_CONTEXT,
            &feed::signing_input(self.region.as_str(), &payload),
        );
        feed::encode(&Signed {
            format: feed::FORMAT,
            payload,
            signer: self.signer.public(),
            signature: signature.to_vec(),
        })
    }

    /// The rows that events after `from` touched, with their values now. Synchronous: one read transaction.
    fn collect(&self, from: u64) -> Result<(u64, i64, BTreeMap<Row, Value>), Error> {
        let tables = Tables::of(&self.ledger);
        let head = tables
            .0
            .head()
            .unwrap_or_else(|error| fatal("the ledger cannot be read", &error))
            .sequence;
        let mut rows = BTreeMap::new();
        let mut next = from + 1;
        let mut time = 0;
        while next <= head {
            let events = tables
                .0
                .events(next, 1_000)
                .unwrap_or_else(|error| fatal("the ledger cannot be read", &error));
            if events.is_empty() {
                break;
            }
            for (sequence, bytes) in events {
                let envelope =
                    Envelope::decode(&bytes).map_err(|error| Error::Event(sequence, error))?;
                time = envelope.time / 1_000;
                for row in self.touched(&tables, &envelope) {
                    rows.insert(row, Value::Gone);
                }
                next = sequence + 1;
            }
        }
        if time == 0
            && let Ok(Some(bytes)) = tables.0.event(head)
            && let Ok(last) = wire::envelope::Position::of(&bytes)
        {
            time = last.time / 1_000;
        }
        for (row, value) in &mut rows {
            *value = self.value(&tables, row);
        }
        Ok((head, time, rows))
    }

    fn touched(&self, tables: &Tables, envelope: &Envelope) -> Vec<Row> {
        let project = &envelope.project;
        let here = |region: &Slug| *region == self.region;
        match &envelope.event {
            // A version that is being verified is no candidate yet: what it changes at the edges, its verification changes.
            Event::CertificateAdded(_) => Vec::new(),
            // Versions that left with it are in the row of before only; what led to them must go from the edges.
            Event::CertificateReplaced(e) if !e.dropped.is_empty() => {
                history::certificate_at(tables, e.id, envelope.sequence - 1)
                    .map(|before| rows_of(&before))
                    .unwrap_or_default()
            }
            Event::CertificateVerified(e) => self.certificate_rows(tables, e.id),
            Event::CertificateRevoked(e) => self.certificate_rows(tables, e.id),
            Event::CertificateDeployed(e) => self.certificate_rows(tables, e.id),
            Event::CertificateWithdrawn(e) => self.certificate_rows(tables, e.id),
            Event::CertificateDeleted(e) => self.certificate_rows(tables, e.id),
            Event::DomainProven(e) => vec![Row::Claim(e.host.to_string())],
            Event::DomainAttached(e) => vec![Row::Claim(e.host.to_string())],
            Event::DomainDetached(e) => vec![Row::Claim(e.host.to_string())],
            Event::DomainBound(e) => vec![Row::Claim(e.host.to_string())],
            Event::DomainUnbound(e) => vec![Row::Claim(e.host.to_string())],
            Event::DomainHttpsSet(e) => vec![Row::Claim(e.host.to_string())],
            Event::DomainMoved(e) => vec![Row::Claim(e.host.to_string())],
            Event::DomainReleased(e) => vec![Row::Claim(e.host.to_string())],
            Event::ResourceCreated(e) => self.resource_rows(tables, project, &e.name, e.id),
            Event::ResourceChanged(e) => self.resource_rows(tables, project, &e.name, e.id),
            Event::ResourceDeleted(e) => self.resource_rows(tables, project, &e.name, e.id),
            Event::ProjectSuspended(e) => self.project_rows(tables, &e.project),
            Event::ProjectResumed(e) => self.project_rows(tables, &e.project),
            Event::RegionEdgeEnrolled(e) if here(&e.region) => vec![Row::RegionKey(e.edge.clone())],
            Event::RegionEdgeEvicted(e) if here(&e.region) => vec![Row::RegionKey(e.edge.clone())],
            Event::RegionKeyRotated(e) if here(&e.region) => {
                let edges = tables.edges(self.region.as_str());
                edges
                    .into_iter()
                    .map(|(name, _)| Row::RegionKey(name))
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    fn certificate_rows(&self, tables: &Tables, id: CertificateId) -> Vec<Row> {
        tables
            .certificate(id)
            .map(|certificate| rows_of(&certificate))
            .unwrap_or_default()
    }

    fn resource_rows(
        &self,
        tables: &Tables,
        project: &Slug,
        name: &Slug,
        id: ResourceId,
    ) -> Vec<Row> {
        let mut rows = vec![Row::Resource(id)];
        if let Some(control) = tables.control() {
            rows.push(Row::Claim(format!(
                "{name}--{project}.{}.{}",
                self.region, control.platform_domain
            )));
        }
        rows
    }

    fn project_rows(&self, tables: &Tables, project: &Slug) -> Vec<Row> {
        let prefix = state::key::text(project);
        tables
            .scan(Table::ResourceName, &prefix, None, usize::MAX)
            .iter()
            .map(|(_, id)| Row::Resource(decode(id)))
            .collect()
    }

    fn value(&self, tables: &Tables, row: &Row) -> Value {
        let region = self.region.as_str();
        match row {
            Row::Claim(host) => self.claim(tables, host),
            Row::Names(project, name) => {
                let candidates: Vec<Candidate> = tables
                    .covering(project, name)
                    .iter()
                    .flat_map(|certificate| {
                        certificate.candidates(region, name).collect::<Vec<_>>()
                    })
                    .collect();
                match Host::parse(name) {
                    Ok(host) if !candidates.is_empty() => {
                        Value::Bytes(feed::encode(&feed::Names {
                            project: project.clone(),
                            name: host,
                            candidates,
                        }))
                    }
                    _ => Value::Gone,
                }
            }
            Row::Resource(id) => match tables.resource(*id) {
                Some(resource) if resource.regions.contains(&self.region) => {
                    let active = tables
                        .project(resource.project.as_str())
                        .is_some_and(|p| p.status == ProjectStatus::Active);
                    Value::Bytes(feed::encode(&feed::Resource {
                        id: resource.id,
                        project: resource.project,
                        name: resource.name,
                        origin: resource.origin,
                        keep_host: resource.keep_host,
                        private_origin: resource.private_origin,
                        demand_public: resource.demand_public,
                        served: active,
                    }))
                }
                _ => Value::Gone,
            },
            Row::Bundle(project, fingerprint, name) => tables
                .covering(project, name)
                .iter()
                .find_map(|certificate| self.bundle(tables, certificate, fingerprint))
                .map_or(Value::Gone, |bundle| Value::Bundle(Box::new(bundle))),
            // Sealed to the edge by the vault, in `seal`.
            Row::RegionKey(edge) => match tables.edge(region, edge.as_str()) {
                Some(edge) if !edge.evicted => Value::Bytes(edge.hpke.0.to_vec()),
                _ => Value::Gone,
            },
        }
    }

    fn claim(&self, tables: &Tables, text: &str) -> Value {
        let Ok(host) = Host::parse(text) else {
            return Value::Gone;
        };
        let provider = tables
            .control()
            .is_some_and(|c| host.is_within(&c.platform_domain));
        let claim = if provider {
            state::served(tables, &host, self.region.as_str()).map(|served| feed::Claim {
                host,
                project: served.project,
                resource: served.resource,
                mode: served.mode,
            })
        } else {
            tables
                .holder(text)
                .and_then(|project| tables.claim(text, project.as_str()))
                .map(|claim| feed::Claim {
                    host,
                    resource: claim.attached.get(&self.region).copied(),
                    mode: match claim.mode_in(self.region.as_str()) {
                        // What is bound may have been deleted since; then selection decides.
                        Mode::Bound(id) if tables.certificate(id).is_none_or(|c| c.deleted) => {
                            Mode::Auto
                        }
                        mode => mode,
                    },
                    project: claim.project,
                })
        };
        claim.map_or(Value::Gone, |claim| Value::Bytes(feed::encode(&claim)))
    }

    fn bundle(
        &self,
        tables: &Tables,
        certificate: &Certificate,
        fingerprint: &Digest,
    ) -> Option<feed::Bundle> {
        if certificate.deleted || !certificate.regions.contains(&self.region) {
            return None;
        }
        let served = |status| matches!(status, Status::Ready | Status::Expired);
        let version = certificate
            .versions
            .iter()
            .find(|v| v.facts.fingerprint == *fingerprint && served(v.status))?;
        let chain = version
            .facts
            .chain
            .iter()
            .map(|hash| {
                tables
                    .0
                    .object(&hash.0)
                    .unwrap_or_else(|error| fatal("the ledger cannot be read", &error))
            })
            .collect::<Option<Vec<_>>>();
        if chain.is_none() {
            tracing::error!(certificate = %certificate.id, "a certificate is missing from the content store");
        }
        Some(feed::Bundle {
            project: certificate.project.clone(),
            certificate: certificate.id,
            version: version.version,
            spki: version.facts.spki,
            chain: chain?,
            region_key_version: 0,
            sealed_key: Vec::new(),
        })
    }

    /// Has the vault seal what must be sealed, in turns so short that uploads, whose keys wait for the same thread, go on.
    async fn seal(&self, rows: BTreeMap<Row, Value>) -> Result<Vec<Change>, Error> {
        let mut sealed = Vec::with_capacity(rows.len());
        let mut rows = rows.into_iter().peekable();
        while rows.peek().is_some() {
            let turn: Vec<(Row, Value)> = rows.by_ref().take(SEALED_AT_ONCE).collect();
            sealed.extend(self.seal_some(turn).await?);
        }
        // What others lead to first; removals in the opposite order at the end.
        let (set, mut gone): (Vec<_>, Vec<_>) =
            sealed.into_iter().partition(|(_, value)| value.is_some());
        gone.reverse();
        Ok(set
            .into_iter()
            .chain(gone)
            .map(|(row, value)| Change {
                key: row.key(),
                value,
            })
            .collect())
    }

    async fn seal_some(
        &self,
        rows: Vec<(Row, Value)>,
    ) -> Result<Vec<(Row, Option<Vec<u8>>)>, Error> {
        let region = self.region.as_str().to_owned();
        let sealed = vault::with(&self.vault, move |core| {
            rows.into_iter()
                .map(|(row, value)| {
                    let value = match (&row, value) {
                        (_, Value::Gone) => None,
                        (Row::RegionKey(edge), Value::Bytes(hpke)) => Some(feed::encode(&region_key(core, &region, edge, &hpke)?)),
                        (_, Value::Bytes(bytes)) => Some(bytes),
                        (_, Value::Bundle(mut bundle)) => {
                            match core.keyring.reseal_for_region(bundle.project.as_str(), &bundle.spki.0, &region) {
                                Ok(sealed) => {
                                    bundle.region_key_version = sealed.version;
                                    bundle.sealed_key = sealed.to_bytes();
                                    Some(feed::encode(&*bundle))
                                }
                                Err(error) => {
                                    // One key that does not open must not keep all other hosts from their changes.
                                    tracing::error!(certificate = %bundle.certificate, %error, "a key cannot be sealed for the region");
                                    None
                                }
                            }
                        }
                    };
                    Ok((row, value))
                })
                .collect::<Result<Vec<(Row, Option<Vec<u8>>)>, vault::Error>>()
        })
        .await??;
        Ok(sealed)
    }

    /// A part of a snapshot.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn chunk(&self, after: Option<Cursor>) -> Result<Vec<u8>, Error> {
        let (sequence, time, rows, next) = self.page(after.as_ref());
        let changes = self.seal(rows).await?;
        let rows = changes
            .into_iter()
            .filter_map(|c| Some((c.key, c.value?)))
            .collect();
        Ok(self.sign(&Message::Chunk(Chunk {
            generation: self.generation,
            sequence,
            time,
            after,
            next,
            rows,
        })))
    }

    /// The rows of one part of a snapshot, and where the next begins. A cursor is the table's number and the last key, in hex.
    fn page(&self, after: Option<&Cursor>) -> (u64, i64, BTreeMap<Row, Value>, Option<Cursor>) {
        const TABLES: [Table; 5] = [
            Table::Edge,
            Table::Certificate,
            Table::Resource,
            Table::Cover,
            Table::Holder,
        ];
        let tables = Tables::of(&self.ledger);
        let head = tables
            .0
            .head()
            .unwrap_or_else(|error| fatal("the ledger cannot be read", &error))
            .sequence;
        let time = tables
            .0
            .event(head)
            .ok()
            .flatten()
            .and_then(|bytes| wire::envelope::Position::of(&bytes).ok())
            .map_or(0, |p| p.time / 1_000);
        let (mut at, mut from) = after
            .and_then(|cursor| read_cursor(&cursor.0))
            .unwrap_or((0, Vec::new()));
        let region_key_versions = tables
            .region(self.region.as_str())
            .and_then(|region| usize::try_from(region.key_version).ok())
            .unwrap_or(1);
        let mut rows = BTreeMap::new();
        let mut size = 0;
        while let Some(table) = TABLES.get(at) {
            let start = (!from.is_empty()).then_some(from.as_slice());
            let page = tables.scan(*table, &[], start, CHUNK_ROWS);
            if page.is_empty() {
                (at, from) = (at + 1, Vec::new());
                continue;
            }
            let mut reached = from.clone();
            let mut full = false;
            for (key, value) in &page {
                let mut own = Vec::new();
                let mut own_size = 0;
                for row in self.snapshot_rows(&tables, *table, key, value) {
                    let value = self.value(&tables, &row);
                    own_size += match (&row, &value) {
                        (_, Value::Gone) => continue,
                        // Sealed, it holds every version of the region's key.
                        (Row::RegionKey(_), _) => 200 * region_key_versions + 48,
                        (_, Value::Bytes(bytes)) => bytes.len() + 48,
                        (_, Value::Bundle(bundle)) => {
                            bundle.chain.iter().map(Vec::len).sum::<usize>() + 3_000
                        }
                    };
                    own.push((row, value));
                }
                // What one key leads to is sent at once, alone if need be: it never has more than fits into one message,
                // as the bytes of a chain and the number of versions are bounded where they come in.
                if size > 0 && size + own_size > MESSAGE_BYTES {
                    full = true;
                    break;
                }
                size += own_size;
                rows.extend(own);
                reached.clone_from(key);
            }
            from = reached;
            if full || size > MESSAGE_BYTES / 2 {
                break;
            }
        }
        let next = TABLES
            .get(at)
            .map(|_| Cursor(format!("{at:02}{}", data_encoding::HEXLOWER.encode(&from))));
        (head, time, rows, next)
    }

    fn snapshot_rows(&self, tables: &Tables, table: Table, key: &[u8], value: &[u8]) -> Vec<Row> {
        let mut parts = Parts::of(key);
        match table {
            Table::Edge => {
                let (region, edge) = (parts.text(), parts.text());
                let ours = region == self.region.as_str();
                Slug::name(edge)
                    .ok()
                    .filter(|_| ours)
                    .map(Row::RegionKey)
                    .into_iter()
                    .collect()
            }
            Table::Certificate => {
                let certificate: Certificate = decode(value);
                if certificate.deleted || !certificate.regions.contains(&self.region) {
                    return Vec::new();
                }
                self.certificate_rows(tables, certificate.id)
                    .into_iter()
                    .filter(|row| matches!(row, Row::Bundle(..)))
                    .collect()
            }
            Table::Resource => {
                let resource: state::Resource = decode(value);
                self.resource_rows(tables, &resource.project, &resource.name, resource.id)
            }
            Table::Cover => {
                let (project, name) = (parts.text(), parts.text());
                Slug::name(project)
                    .ok()
                    .map(|project| Row::Names(project, name.to_owned()))
                    .into_iter()
                    .collect()
            }
            Table::Holder => vec![Row::Claim(parts.text().to_owned())],
            _ => Vec::new(),
        }
    }
}

impl Row {
    fn key(&self) -> Key {
        match self {
            Row::Claim(host) => Key::claim(host),
            Row::Names(project, name) => Key::names(project.as_str(), name),
            Row::Resource(id) => Key::resource(*id),
            Row::Bundle(project, fingerprint, _) => Key::bundle(project.as_str(), fingerprint),
            Row::RegionKey(edge) => Key::region_key(edge.as_str()),
        }
    }
}

/// The rows that a certificate's versions lead to: their bundles, and their names.
fn rows_of(certificate: &Certificate) -> Vec<Row> {
    let mut rows = Vec::new();
    if certificate.kind != CertificateKind::Server {
        return rows;
    }
    for version in &certificate.versions {
        let mut names = hosts(&version.facts).peekable();
        if let Some(name) = names.peek() {
            rows.push(Row::Bundle(
                certificate.project.clone(),
                version.facts.fingerprint,
                name.clone(),
            ));
        }
        rows.extend(names.map(|name| Row::Names(certificate.project.clone(), name)));
    }
    rows
}

/// A region's key sealed to one edge.
///
/// # Errors
/// The vault's.
pub fn region_key(
    core: &vault::Core,
    region: &str,
    edge: &Slug,
    hpke: &[u8],
) -> Result<RegionKey, vault::Error> {
    let hpke: [u8; 32] = hpke.try_into().unwrap_or_default();
    let newest = core
        .keyring
        .region_key_public(region)?
        .map_or(0, |(version, _)| version);
    let mut versions = Vec::new();
    // What is sent is always sealed to the newest; the one before it is for bundles that were on their way.
    for version in newest.saturating_sub(1).max(1)..=newest {
        match core
            .keyring
            .seal_region_key(region, version, edge.as_str(), &hpke)
        {
            Ok(sealed) => versions.push((version, sealed)),
            // Destroyed: nothing is sealed to it any more.
            Err(_) if version != newest => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(RegionKey {
        edge: edge.clone(),
        versions,
    })
}

fn read_cursor(text: &str) -> Option<(usize, Vec<u8>)> {
    let (at, key) = text.split_at_checked(2)?;
    Some((
        at.parse().ok()?,
        data_encoding::HEXLOWER.decode(key.as_bytes()).ok()?,
    ))
}

/// The kinds of rows, for the numbers that distribution shows of itself.
pub const KINDS: [Kind; 5] = [
    Kind::Claim,
    Kind::Names,
    Kind::Resource,
    Kind::Bundle,
    Kind::RegionKey,
];
