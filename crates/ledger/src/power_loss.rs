//! Power losses, simulated: a disk that keeps of what was not synced whatever a random choice of
//! 512-byte sectors and lengths leaves, and fails from a random operation on. After each loss the
//! ledger must open with everything that was acknowledged and with no part of a batch.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use redb::{Database, StorageBackend};

use crate::{
    Batch, Change, Durability, Error, Hash, Head, Ledger, Outcome, Record,
    audit::{self, Claimed},
    leaf_hash,
};

const SECTOR: usize = 512;

/// Random numbers that a seed repeats (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

#[derive(Default)]
struct Platter {
    /// What reads see.
    current: Vec<u8>,
    /// What a sync has made safe.
    synced: Vec<u8>,
    /// What was written since, in order: where, and the bytes.
    pending: Vec<(usize, Vec<u8>)>,
    /// The lengths since.
    lengths: Vec<usize>,
    /// Operations that change something until the power goes; none if it stays.
    left: Option<u64>,
    /// A disk that acknowledges a sync and does not do it.
    lies: bool,
}

impl Platter {
    fn step(&mut self) -> io::Result<()> {
        match &mut self.left {
            Some(0) => Err(io::Error::other("the power is gone")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// What is found when the power is back: each unsynced sector arrived or not, in any order.
    fn after_loss(&mut self, numbers: &mut Numbers) {
        let mut found = std::mem::take(&mut self.synced);
        if !self.lengths.is_empty() {
            let choice = numbers.below(self.lengths.len() as u64 + 1) as usize;
            if let Some(length) = self.lengths.get(choice) {
                found.resize(*length, 0);
            }
        }
        let mut sectors: Vec<(usize, &[u8])> = Vec::new();
        for (offset, bytes) in &self.pending {
            let mut at = 0;
            while at < bytes.len() {
                let room = SECTOR - (offset + at) % SECTOR;
                let end = bytes.len().min(at + room);
                sectors.push((offset + at, &bytes[at..end]));
                at = end;
            }
        }
        // Some losses keep nearly all, some nearly nothing, some anything.
        let kept = [3, 50, 97][numbers.below(3) as usize];
        for index in (1..sectors.len()).rev() {
            sectors.swap(index, numbers.below(index as u64 + 1) as usize);
        }
        for (offset, bytes) in sectors {
            if numbers.below(100) < kept {
                if found.len() < offset + bytes.len() {
                    // The file became longer on the disk as well if a write beyond its end is there.
                    if !self
                        .lengths
                        .iter()
                        .any(|length| *length >= offset + bytes.len())
                    {
                        continue;
                    }
                    found.resize(offset + bytes.len(), 0);
                }
                found[offset..offset + bytes.len()].copy_from_slice(bytes);
            }
        }
        *self = Self {
            current: found.clone(),
            synced: found,
            lies: self.lies,
            ..Self::default()
        };
    }
}

#[derive(Clone, Default)]
struct Disk(Arc<Mutex<Platter>>);

impl std::fmt::Debug for Disk {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Disk").finish_non_exhaustive()
    }
}

impl Disk {
    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<Ledger, Error> {
        let database = Database::builder()
            .set_cache_size(1 << 20)
            .create_with_backend(self.clone())
            .map_err(Error::storage("open"))?;
        Ledger::from_database(database)
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.platter().current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = offset as usize;
        let platter = self.platter();
        let bytes = platter
            .current
            .get(offset..offset + out.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut platter = self.platter();
        platter.step()?;
        platter.current.resize(length as usize, 0);
        platter.lengths.push(length as usize);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.platter();
        platter.step()?;
        if !platter.lies {
            platter.synced = platter.current.clone();
            platter.pending.clear();
            platter.lengths.clear();
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = offset as usize;
        let mut platter = self.platter();
        platter.step()?;
        platter
            .current
            .get_mut(offset..offset + data.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?
            .copy_from_slice(data);
        platter.pending.push((offset, data.to_vec()));
        Ok(())
    }
}

/// A batch that follows `head` and that says in every part of it how far the log goes with it.
fn batch(head: Head, numbers: &mut Numbers) -> Batch {
    let mut batch = Batch::default();
    let mut at = head;
    let count = 1 + numbers.below(8);
    for _ in 0..count {
        let sequence = at.sequence + 1;
        let mut bytes = format!("{sequence} {} ", at.hash).into_bytes();
        let length = bytes.len() + numbers.below(2_000) as usize;
        bytes.resize(length, b'.');
        batch.records.push(Record {
            sequence,
            prevhash: at.hash,
            scope: "a".into(),
            scope_sequence: sequence,
            bytes,
        });
        at = Head {
            sequence,
            hash: leaf_hash(&batch.records[batch.records.len() - 1].bytes),
        };
    }
    let key = numbers.below(50).to_be_bytes().to_vec();
    for (table, key) in [(0, b"head".to_vec()), (1, key)] {
        batch.changes.push(Change {
            table,
            key,
            value: Some(at.sequence.to_be_bytes().to_vec()),
        });
    }
    let mut id = [0; 16];
    id[8..].copy_from_slice(&at.sequence.to_be_bytes());
    batch.outcomes.push(Outcome {
        space: "a".into(),
        id,
        first: head.sequence + 1,
        count: count as u32,
        digest: at.hash.0,
    });
    let object = at.sequence.to_be_bytes().to_vec();
    batch.objects.push((Hash::of(&object).0, object));
    batch
}

fn claimed(_: u64, bytes: &[u8]) -> Result<Claimed, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let mut words = text.split(' ');
    let mut next = || words.next().ok_or("too short");
    let sequence = next()?.parse().map_err(|_| "sequence")?;
    Ok(Claimed {
        sequence,
        prevhash: next()?.parse().map_err(|_| "prevhash")?,
        scope: "a".into(),
        scope_sequence: sequence,
    })
}

/// Compares a ledger with the heads after each batch that it may have. Returns what is wrong.
fn examine(ledger: &Ledger, heads: &[Head], acknowledged: usize) -> Result<usize, String> {
    let head = ledger.head();
    let place = heads
        .iter()
        .position(|known| *known == head)
        .ok_or_else(|| format!("event {} ends no batch", head.sequence))?;
    if place < acknowledged {
        return Err(format!(
            "batch {acknowledged} was acknowledged, {place} found"
        ));
    }
    let report = audit::verify(ledger, 1, u64::MAX, claimed, |_| ())
        .map_err(|error| format!("audit: {error}"))?;
    if !report.is_clean() || report.events != head.sequence {
        return Err(format!("{report:?}"));
    }
    let read = ledger.read().map_err(|error| error.to_string())?;
    // The audit above has computed the tree anew up to the head; its own head was written with the events.
    let tree = read.tree().map_err(|error| error.to_string())?;
    if tree.size != head.sequence {
        return Err(format!(
            "a tree of {} leaves at event {}",
            tree.size, head.sequence
        ));
    }
    let state = read.get(0, b"head").map_err(|error| error.to_string())?;
    let expected = (place > 0).then(|| head.sequence.to_be_bytes().to_vec());
    if state != expected {
        return Err(format!("rows of another batch: {state:?}"));
    }
    let outcomes = read.outcome_count().map_err(|error| error.to_string())?;
    if outcomes != place as u64 {
        return Err(format!("{outcomes} outcomes of {place} batches"));
    }
    for head in &heads[1..=place] {
        let object = Hash::of(&head.sequence.to_be_bytes()).0;
        if !read
            .has_object(&object)
            .map_err(|error| error.to_string())?
        {
            return Err(format!("the object of event {} is missing", head.sequence));
        }
    }
    Ok(place)
}

#[derive(Default)]
struct Tally {
    losses: u64,
    acknowledged: u64,
    unacknowledged_found: u64,
}

/// One history: a disk, several losses of power, appends between them.
fn history(seed: u64, lies: bool, tally: &mut Tally) -> Result<(), String> {
    let mut numbers = Numbers::new(seed);
    let disk = Disk::default();
    disk.platter().lies = lies;
    drop(disk.open().map_err(|error| format!("create: {error}"))?);
    {
        // What a creation leaves is complete before it is linked into place, so losses begin here.
        let mut platter = disk.platter();
        platter.synced = platter.current.clone();
        platter.pending.clear();
        platter.lengths.clear();
    }
    // The heads after each batch, the empty ledger's first; how many batches must be there.
    let (mut heads, mut acknowledged) = (vec![Head::EMPTY], 0);
    for _ in 0..6 {
        // A loss may also hit the recovery from the one before.
        let patience = 1 + numbers.below(120);
        disk.platter().left = Some(patience);
        let opened = disk.open();
        if let Err(error) = &opened
            && disk.platter().left != Some(0)
        {
            return Err(format!("open with the power on: {error}"));
        }
        if let Ok(ledger) = opened {
            let place = examine(&ledger, &heads, acknowledged)?;
            heads.truncate(place + 1);
            // What was found is durable from here on: the ledger has reported it as its head.
            acknowledged = place;
            let mut writer = ledger.writer().map_err(|error| error.to_string())?;
            let deferred = numbers.below(4) == 0;
            if deferred {
                writer.set_durability(Durability::Deferred);
            }
            loop {
                let next = batch(writer.head(), &mut numbers);
                let last = &next.records[next.records.len() - 1];
                heads.push(Head {
                    sequence: last.sequence,
                    hash: leaf_hash(&last.bytes),
                });
                let mut appended = writer.append(&next);
                if appended.is_ok() && deferred && numbers.below(3) == 0 {
                    appended = writer.flush();
                }
                match appended {
                    Ok(head) if ledger.head() == head => {
                        tally.acknowledged += (heads.len() - 1 - acknowledged) as u64;
                        acknowledged = heads.len() - 1;
                    }
                    Ok(_) => {}
                    Err(Error::Storage { .. }) => break,
                    Err(error) => return Err(format!("append: {error}")),
                }
            }
            if !matches!(
                writer.append(&batch(writer.head(), &mut numbers)),
                Err(Error::Poisoned)
            ) {
                return Err("the writer goes on after a failed write".into());
            }
        }
        disk.platter().after_loss(&mut numbers);
        tally.losses += 1;
    }
    let ledger = disk.open().map_err(|error| format!("open: {error}"))?;
    let place = examine(&ledger, &heads, acknowledged)?;
    tally.unacknowledged_found += (place - acknowledged) as u64;
    Ok(())
}

#[test]
fn acknowledged_batches_survive_and_none_is_halved() {
    let mut tally = Tally::default();
    for seed in 1..=300 {
        if let Err(wrong) = history(seed, false, &mut tally) {
            panic!("seed {seed}: {wrong}");
        }
    }
    // A test that never got as far as losing something would prove nothing.
    assert_eq!(tally.losses, 1_800);
    assert!(tally.acknowledged > 1_000, "{}", tally.acknowledged);
    assert!(tally.unacknowledged_found > 0);
}

/// The same histories on a disk that only says that it synced: if these passed, the test above
/// would see nothing.
#[test]
fn a_disk_that_lies_about_its_syncs_is_noticed() {
    let noticed = (1..=20).filter(|seed| {
        // redb's own assertions may be what notices.
        let history = || history(*seed, true, &mut Tally::default());
        !matches!(catch_unwind(AssertUnwindSafe(history)), Ok(Ok(())))
    });
    assert!(noticed.count() > 15);
}
