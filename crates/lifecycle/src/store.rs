//! Tables of rows: the one form in which state exists.
//!
//! The registrar decides on these tables, queries read them, and a replay must rebuild them byte for byte. So a row is
//! encoded in one way only (bincode 2, standard configuration), keys order as people expect (big-endian numbers,
//! strings ended by a NUL that no name contains), and nothing here depends on the order of a hash map.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The tables. A number, once used, never gets another meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// `control` → [`Control`](crate::state::Control).
    Control = 1,
    /// project → [`Project`](crate::state::Project).
    Project = 2,
    /// project, actor → [`Access`](crate::state::Access).
    Access = 3,
    /// region → [`Region`](crate::state::Region).
    Region = 4,
    /// country → [`Country`](crate::state::Country).
    Country = 5,
    /// region, edge → [`Edge`](crate::state::Edge).
    Edge = 6,
    /// region → [`Applied`](crate::state::Applied).
    Applied = 7,
    /// resource id → [`Resource`](crate::state::Resource).
    Resource = 8,
    /// project, name → resource id.
    ResourceName = 9,
    /// host, project → [`Claim`](crate::state::Claim).
    Claim = 10,
    /// host → the project that holds the proven claim.
    Holder = 11,
    /// project, host → nothing: a project's claims.
    ProjectClaim = 12,
    /// resource id, host → nothing: the hosts attached to a resource.
    Attachment = 13,
    /// certificate id → [`Certificate`](crate::state::Certificate).
    Certificate = 14,
    /// project, name → certificate id.
    CertificateName = 15,
    /// project, SAN, certificate id → nothing: which live certificates name this.
    Cover = 16,
    /// project, SPKI → [`Key`](crate::state::Key).
    Key = 17,
    /// certificate id, version → nothing: versions whose verification is owed.
    Unverified = 18,
    /// notAfter, certificate id, version → nothing: versions whose expiry is to be noted when it comes.
    Expiry = 19,
    /// host, project, sequence → the claim as it was from that sequence on.
    ClaimHistory = 20,
    /// certificate id, sequence → the certificate as it was from that sequence on.
    CertificateHistory = 21,
    /// region, sequence → what the region's edges had applied, as reported by the event of that sequence.
    AppliedHistory = 22,
    /// project, SAN, certificate id → the sequence at which it was deleted, if it was: every certificate that ever named this.
    CoverEver = 23,
    /// project, parent of a host, host → nothing: claims below a name, for wildcards.
    ClaimBelow = 24,
    /// host, sequence → the project that held the proven claim from that sequence on, or none.
    HolderHistory = 25,
    /// resource id, region, host → nothing: the hosts attached to a resource in a region.
    AttachedIn = 26,
    /// NKEY user public key → the project and the actor that it was given to, for ever.
    AccessKey = 27,
    /// id of an enrolment token → the region and the edge that used it and the NKEY user public key that it brought, for ever.
    EdgeToken = 28,
    /// project, sequence → the project as it was from that sequence on.
    ProjectHistory = 29,
    /// project, name, sequence → the resource of this name from that sequence on, or none.
    ResourceHistory = 30,
    /// project, what, region → how many there are: see [`count`](crate::state::count).
    Count = 31,
    /// project, name → [`Csr`](crate::state::Csr).
    Csr = 32,
    /// project, SPKI → the name of the signing request whose key this is.
    CsrKey = 33,
    /// due time, certificate id → the version whose end is to be warned of when it comes.
    Warning = 34,
    /// due time, host, project → the sequence at which the claim was added that is to take the host over.
    Contest = 35,
    /// project, host → the sequence at which the claim was added: claims that wait for their proof.
    Pending = 36,
    /// resource id → its project and its name, for ever.
    ResourceEver = 37,
}

impl Table {
    /// All tables, in order.
    pub const ALL: [Table; 37] = [
        Table::Control,
        Table::Project,
        Table::Access,
        Table::Region,
        Table::Country,
        Table::Edge,
        Table::Applied,
        Table::Resource,
        Table::ResourceName,
        Table::Claim,
        Table::Holder,
        Table::ProjectClaim,
        Table::Attachment,
        Table::Certificate,
        Table::CertificateName,
        Table::Cover,
        Table::Key,
        Table::Unverified,
        Table::Expiry,
        Table::ClaimHistory,
        Table::CertificateHistory,
        Table::AppliedHistory,
        Table::CoverEver,
        Table::ClaimBelow,
        Table::HolderHistory,
        Table::AttachedIn,
        Table::AccessKey,
        Table::EdgeToken,
        Table::ProjectHistory,
        Table::ResourceHistory,
        Table::Count,
        Table::Csr,
        Table::CsrKey,
        Table::Warning,
        Table::Contest,
        Table::Pending,
        Table::ResourceEver,
    ];
}

/// A row with its key, as bytes.
pub type Row = (Vec<u8>, Vec<u8>);

/// Reading of tables.
///
/// An implementation over a disk ends the process when the disk fails: a decision on half-read state would be worse than
/// none, and a restart with a replay is the recovery.
pub trait Read {
    /// The row of this key.
    fn get(&self, table: Table, key: &[u8]) -> Option<Vec<u8>>;

    /// At most `limit` rows whose key begins with `prefix` and is greater than `after`, in key order.
    fn scan(&self, table: Table, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Vec<Row>;

    /// The last row whose key begins with `prefix` and is not greater than `upper`, which begins with `prefix` too.
    fn last(&self, table: Table, prefix: &[u8], upper: &[u8]) -> Option<Row>;
}

/// Tables in memory, for tests and for replays that need no disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    rows: BTreeMap<(Table, Vec<u8>), Vec<u8>>,
}

impl Memory {
    /// Takes over what an overlay changed.
    pub fn apply(&mut self, changes: Changes) {
        for ((table, key), value) in changes {
            match value {
                Some(value) => self.rows.insert((table, key), value),
                None => self.rows.remove(&(table, key)),
            };
        }
    }
}

impl Read for Memory {
    fn get(&self, table: Table, key: &[u8]) -> Option<Vec<u8>> {
        self.rows.get(&(table, key.to_vec())).cloned()
    }

    fn scan(&self, table: Table, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Vec<Row> {
        self.rows
            .range((table, after.unwrap_or(prefix).max(prefix).to_vec())..)
            .take_while(|((t, key), _)| *t == table && key.starts_with(prefix))
            .filter(|((_, key), _)| after.is_none_or(|after| key.as_slice() > after))
            .take(limit)
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect()
    }

    fn last(&self, table: Table, prefix: &[u8], upper: &[u8]) -> Option<Row> {
        self.rows
            .range(..=(table, upper.to_vec()))
            .next_back()
            .filter(|((t, key), _)| *t == table && key.starts_with(prefix))
            .map(|((_, key), value)| (key.clone(), value.clone()))
    }
}

/// What an [`Overlay`] changed: new values, or None for a removed row.
pub type Changes = BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>;

/// Tables with changes on top that are not yet committed.
pub struct Overlay<'a, R: Read> {
    base: &'a R,
    changes: Changes,
}

impl<'a, R: Read> Overlay<'a, R> {
    /// An overlay without changes.
    pub fn new(base: &'a R) -> Self {
        Self {
            base,
            changes: Changes::new(),
        }
    }

    /// An overlay that goes on with changes made before.
    pub fn with(base: &'a R, changes: Changes) -> Self {
        Self { base, changes }
    }

    /// The changes so far.
    pub fn into_changes(self) -> Changes {
        self.changes
    }

    /// How many rows have changed.
    pub fn changed(&self) -> usize {
        self.changes.len()
    }

    /// Sets a row.
    pub fn put<T: Serialize>(&mut self, table: Table, key: Vec<u8>, row: &T) {
        self.changes.insert((table, key), Some(encode(row)));
    }

    /// Sets a row that has no content, only a key.
    pub fn mark(&mut self, table: Table, key: Vec<u8>) {
        self.changes.insert((table, key), Some(Vec::new()));
    }

    /// Removes a row.
    pub fn remove(&mut self, table: Table, key: Vec<u8>) {
        self.changes.insert((table, key), None);
    }
}

impl<R: Read> Read for Overlay<'_, R> {
    fn get(&self, table: Table, key: &[u8]) -> Option<Vec<u8>> {
        if !self.changes.is_empty()
            && let Some(change) = self.changes.get(&(table, key.to_vec()))
        {
            return change.clone();
        }
        self.base.get(table, key)
    }

    fn scan(&self, table: Table, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Vec<Row> {
        let start = (table, after.unwrap_or(prefix).max(prefix).to_vec());
        let changed: Vec<_> = self
            .changes
            .range(start..)
            .take_while(|((t, key), _)| *t == table && key.starts_with(prefix))
            .filter(|((_, key), _)| after.is_none_or(|after| key.as_slice() > after))
            .collect();
        if changed.is_empty() {
            return self.base.scan(table, prefix, after, limit);
        }
        // Each change hides at most one row of the base, so this many are enough.
        let mut rows: BTreeMap<Vec<u8>, Vec<u8>> = self
            .base
            .scan(table, prefix, after, limit.saturating_add(changed.len()))
            .into_iter()
            .collect();
        for ((_, key), value) in changed {
            match value {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
        }
        rows.into_iter().take(limit).collect()
    }

    fn last(&self, table: Table, prefix: &[u8], upper: &[u8]) -> Option<Row> {
        let mut upper = upper.to_vec();
        loop {
            let changed = self
                .changes
                .range(..=(table, upper.clone()))
                .next_back()
                .filter(|((t, key), _)| *t == table && key.starts_with(prefix));
            let base = self.base.last(table, prefix, &upper);
            match (changed, base) {
                (None, base) => return base,
                (Some(((_, key), value)), base) => {
                    if let Some((base_key, base_value)) = base
                        && base_key > *key
                    {
                        return Some((base_key, base_value));
                    }
                    if let Some(value) = value {
                        return Some((key.clone(), value.clone()));
                    }
                    // Removed: look below it.
                    upper = below(key)?;
                }
            }
        }
    }
}

/// The greatest key of the same length or shorter that is smaller than this one.
fn below(key: &[u8]) -> Option<Vec<u8>> {
    let mut key = key.to_vec();
    while let Some(last) = key.pop() {
        if last > 0 {
            key.push(last - 1);
            key.resize(key.len() + 64, 0xff);
            return Some(key);
        }
        if !key.is_empty() {
            return Some(key);
        }
    }
    None
}

/// The bytes of a row.
pub fn encode<T: Serialize>(row: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(row, bincode::config::standard())
        .expect("rows are plain data, which bincode can always encode")
}

/// Reads a row.
///
/// # Panics
/// If the bytes are not a row of this type: then the tables were not written by this code, and a rebuild is needed.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> T {
    match bincode::serde::decode_from_slice(bytes, bincode::config::standard()) {
        Ok((row, _)) => row,
        Err(error) => panic!(
            "a stored row does not decode ({error}): rebuild the projections with `chancery audit rebuild`"
        ),
    }
}

/// Composes keys: strings are ended by a NUL, numbers are big-endian.
#[derive(Clone, Debug, Default)]
pub struct Key(Vec<u8>);

impl Key {
    /// An empty key.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a string.
    #[must_use]
    pub fn text(mut self, text: impl AsRef<str>) -> Self {
        self.0.extend_from_slice(text.as_ref().as_bytes());
        self.0.push(0);
        self
    }

    /// Appends a number.
    #[must_use]
    pub fn number(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    /// Appends bytes of a fixed length.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// The key.
    pub fn done(self) -> Vec<u8> {
        self.0
    }
}

/// Takes a key apart again.
pub struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    /// Begins at the start of a key.
    pub fn of(key: &'a [u8]) -> Self {
        Self(key)
    }

    /// The next string; empty at the end of the key.
    pub fn text(&mut self) -> &'a str {
        let end = self.0.iter().position(|b| *b == 0).unwrap_or(self.0.len());
        let (text, rest) = self.0.split_at(end);
        self.0 = rest.get(1..).unwrap_or_default();
        std::str::from_utf8(text).unwrap_or_default()
    }

    /// The next number; 0 at the end of the key.
    pub fn number(&mut self) -> u64 {
        let Some((head, rest)) = self.0.split_first_chunk::<8>() else {
            return 0;
        };
        self.0 = rest;
        u64::from_be_bytes(*head)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(0u8..4, 1..4)
    }

    proptest! {
        /// An overlay reads as if its changes had been applied.
        #[test]
        fn an_overlay_reads_like_the_tables_it_will_become(
            base in prop::collection::btree_map(key(), any::<u8>(), 0..20),
            changes in prop::collection::btree_map(key(), prop::option::of(any::<u8>()), 0..20),
            prefix in prop::collection::vec(0u8..4, 0..2),
            after in prop::option::of(key()),
            suffix in key(),
            limit in 1usize..6,
        ) {
            let mut memory = Memory::default();
            memory.apply(base.into_iter().map(|(k, v)| ((Table::Claim, k), Some(vec![v]))).collect());
            let changes: Changes = changes.into_iter().map(|(k, v)| ((Table::Claim, k), v.map(|v| vec![v]))).collect();
            let mut applied = memory.clone();
            applied.apply(changes.clone());
            let overlay = Overlay::with(&memory, changes);
            let upper = [prefix.clone(), suffix].concat();
            prop_assert_eq!(
                overlay.scan(Table::Claim, &prefix, after.as_deref(), limit),
                applied.scan(Table::Claim, &prefix, after.as_deref(), limit)
            );
            prop_assert_eq!(overlay.last(Table::Claim, &prefix, &upper), applied.last(Table::Claim, &prefix, &upper));
            prop_assert_eq!(overlay.get(Table::Claim, &upper), applied.get(Table::Claim, &upper));
        }
    }
}
