//! A store that an older release wrote, brought to this release's form.
//!
//! An edge must serve through the loss of everything upstream, and that includes its own upgrade: so the rows are converted
//! where they lie, and whatever they do not say yet comes with the snapshot that the edge asks for next.

use redb::{Database, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use lifecycle::names::{CertificateId, Digest, Host, ResourceId, Slug};
use lifecycle::selection::{Candidate, KeyKind};
use wire::feed::{self, Kind};

use crate::store::Error;

/// Rows that one transaction converts: so much is held in memory at once.
const PAGE: usize = 10_000;

#[derive(Serialize, Deserialize)]
pub(crate) struct Candidate1 {
    pub(crate) certificate: CertificateId,
    pub(crate) version: u32,
    pub(crate) place: u64,
    pub(crate) standby: bool,
    pub(crate) exact: bool,
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    pub(crate) fingerprint: Digest,
    pub(crate) key: KeyKind,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Names1 {
    pub(crate) project: Slug,
    pub(crate) name: Host,
    pub(crate) candidates: Vec<Candidate1>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Resource1 {
    pub(crate) id: ResourceId,
    pub(crate) project: Slug,
    pub(crate) name: Slug,
    pub(crate) origin: String,
    pub(crate) keep_host: bool,
    pub(crate) private_origin: bool,
    pub(crate) served: bool,
}

fn read<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (value, length) =
        bincode::serde::decode_from_slice(bytes, bincode::config::standard()).ok()?;
    (length == bytes.len()).then_some(value)
}

/// A row of format 1 in the form of format 2. None: it is the same in both, or cannot be read, which is left to who reads it.
fn from_1(kind: u8, value: &[u8]) -> Option<Vec<u8>> {
    if kind == Kind::Names as u8 {
        let names: Names1 = read(value)?;
        let candidates = names.candidates.into_iter().map(|c| Candidate {
            certificate: c.certificate,
            version: c.version,
            place: c.place,
            standby: c.standby,
            exact: c.exact,
            not_before: c.not_before,
            not_after: c.not_after,
            fingerprint: c.fingerprint,
            key: c.key,
            // Not known; and no resource of that format demands it.
            public: false,
        });
        return Some(feed::encode(&feed::Names {
            project: names.project,
            name: names.name,
            candidates: candidates.collect(),
        }));
    }
    if kind == Kind::Resource as u8 {
        let resource: Resource1 = read(value)?;
        return Some(feed::encode(&feed::Resource {
            id: resource.id,
            project: resource.project,
            name: resource.name,
            origin: resource.origin,
            keep_host: resource.keep_host,
            private_origin: resource.private_origin,
            demand_public: false,
            served: resource.served,
        }));
    }
    None
}

/// Converts all rows from format 1 to 2. How far it came is kept with the rows, so that one which is interrupted goes on.
pub(crate) fn rows_from_1(
    database: &Database,
    rows: TableDefinition<'static, &'static [u8; 33], &'static [u8]>,
    meta: TableDefinition<'static, &'static str, &'static [u8]>,
) -> Result<(), Error> {
    tracing::info!("the edge's store is of format 1; it is converted where it lies");
    loop {
        let transaction = crate::store::begin(database)?;
        let done = {
            let mut meta = transaction.open_table(meta)?;
            let mut rows = transaction.open_table(rows)?;
            let begun: Option<[u8; 33]> = meta
                .get(PROGRESS)?
                .and_then(|key| key.value().try_into().ok());
            let from = begun.unwrap_or([0; 33]);
            let mut changed = Vec::new();
            let mut last = None;
            let mut seen = 0;
            for row in rows.range::<&[u8; 33]>(&from..)? {
                let (key, value) = row?;
                if begun.is_some_and(|begun| *key.value() == begun) {
                    continue;
                }
                if let Some(value) = from_1(key.value()[0], value.value()) {
                    changed.push((*key.value(), value));
                }
                last = Some(*key.value());
                seen += 1;
                if seen == PAGE {
                    break;
                }
            }
            for (key, value) in changed {
                rows.insert(&key, value.as_slice())?;
            }
            match last.filter(|_| seen == PAGE) {
                Some(last) => {
                    meta.insert(PROGRESS, last.as_slice())?;
                    false
                }
                None => {
                    meta.remove(PROGRESS)?;
                    true
                }
            }
        };
        if done {
            // What the rows did not say yet comes with a snapshot: the position of an empty store asks for one.
            crate::store::restart(&transaction)?;
        }
        transaction.commit()?;
        if done {
            return Ok(());
        }
    }
}

/// How far a conversion is.
const PROGRESS: &str = "converted";

#[cfg(test)]
mod tests {
    use redb::ReadableDatabase;

    use super::*;

    const ROWS: TableDefinition<'static, &'static [u8; 33], &'static [u8]> =
        TableDefinition::new("rows");
    const META: TableDefinition<'static, &'static str, &'static [u8]> =
        TableDefinition::new("meta");

    fn slug(text: &str) -> Slug {
        Slug::name(text).unwrap()
    }

    fn key(kind: Kind, number: u32) -> [u8; 33] {
        let mut key = [0; 33];
        key[0] = kind as u8;
        key[1..5].copy_from_slice(&number.to_be_bytes());
        key
    }

    #[test]
    fn rows_of_format_1_are_read_as_format_2() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::create(folder.path().join("edge.redb")).unwrap();
        // More than one transaction converts.
        let many = u32::try_from(PAGE).unwrap() + 7;
        let write = database.begin_write().unwrap();
        {
            let mut rows = write.open_table(ROWS).unwrap();
            for number in 0..many {
                let resource = Resource1 {
                    id: ResourceId(u64::from(number)),
                    project: slug("acme"),
                    name: slug("media"),
                    origin: "https://origin.example.net/".into(),
                    keep_host: true,
                    private_origin: false,
                    served: true,
                };
                let value = feed::encode(&resource);
                rows.insert(&key(Kind::Resource, number), value.as_slice())
                    .unwrap();
            }
            let names = Names1 {
                project: slug("acme"),
                name: Host::parse("www.example.com").unwrap(),
                candidates: vec![Candidate1 {
                    certificate: CertificateId(7),
                    version: 2,
                    place: 7,
                    standby: true,
                    exact: true,
                    not_before: 1,
                    not_after: 9,
                    fingerprint: Digest([3; 32]),
                    key: KeyKind::Rsa(2048),
                }],
            };
            let value = feed::encode(&names);
            rows.insert(&key(Kind::Names, 1), value.as_slice()).unwrap();
            rows.insert(&key(Kind::Bundle, 1), [1, 2, 3].as_slice())
                .unwrap();
            let mut meta = write.open_table(META).unwrap();
            let position = crate::store::Position {
                generation: 1,
                sequence: 99,
                time: 1_234,
            };
            meta.insert("format", feed::encode(&1u16).as_slice())
                .unwrap();
            meta.insert("position", feed::encode(&position).as_slice())
                .unwrap();
        }
        write.commit().unwrap();

        rows_from_1(&database, ROWS, META).unwrap();

        let read = database.begin_read().unwrap();
        let rows = read.open_table(ROWS).unwrap();
        for number in [0, many - 1] {
            let row = rows.get(&key(Kind::Resource, number)).unwrap().unwrap();
            let resource: feed::Resource = super::read(row.value()).unwrap();
            assert_eq!(resource.id, ResourceId(u64::from(number)));
            assert!(resource.keep_host && resource.served && !resource.demand_public);
        }
        let row = rows.get(&key(Kind::Names, 1)).unwrap().unwrap();
        let names: feed::Names = super::read(row.value()).unwrap();
        let candidate = &names.candidates[0];
        assert_eq!((candidate.version, candidate.standby), (2, true));
        assert_eq!(candidate.fingerprint, Digest([3; 32]));
        let untouched = rows.get(&key(Kind::Bundle, 1)).unwrap().unwrap();
        assert_eq!(untouched.value(), [1, 2, 3]);

        // It asks for a snapshot, and its clock does not fall back.
        let meta = read.open_table(META).unwrap();
        let position = meta.get("position").unwrap().unwrap();
        let position: crate::store::Position = super::read(position.value()).unwrap();
        assert_eq!(
            (position.generation, position.sequence, position.time),
            (0, 0, 1_234)
        );
        assert!(meta.get(PROGRESS).unwrap().is_none());
    }
}
