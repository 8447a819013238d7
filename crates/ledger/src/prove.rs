//! Reading the Merkle tree: its head, and proofs about events.
//!
//! Level 0 is not stored twice: its hashes lie with the events. Of the levels above, each complete hash is a row.

use std::collections::HashMap;

use redb::ReadableTable;

use crate::{
    Error, Hash, Ledger, Snapshot,
    format::{META, META_TREE, read_tree, read_tree_row, tree_key, tree_row},
    tree::{self, Frontier, TILE, TreeHead, fold},
};

impl Snapshot {
    /// Size and root of the tree over all events of this snapshot, as the append that made it has written them.
    ///
    /// # Errors
    /// [`Error::Storage`] and [`Error::Damaged`].
    pub fn tree(&self) -> Result<TreeHead, Error> {
        let during = "read the tree's head";
        let meta = self
            .transaction
            .open_table(META)
            .map_err(Error::storage(during))?;
        let value = meta
            .get(META_TREE)
            .map_err(Error::storage(during))?
            .ok_or_else(|| Error::Damaged("the tree's head is missing".into()))?;
        read_tree(value.value())
    }

    /// At most `limit` hashes of one level from number `from` on: leaf hashes at level 0, roots of 256^`level` leaves above.
    /// With `from` a multiple of 256 and `limit` 256, a tile as C2SP tlog-tiles defines it.
    ///
    /// # Errors
    /// [`Error::Storage`] and [`Error::Damaged`].
    pub fn tree_hashes(&self, level: u8, from: u64, limit: usize) -> Result<Vec<Hash>, Error> {
        let mut hashes = Vec::with_capacity(limit.min(TILE));
        let gap = |index: u64| {
            Error::Damaged(format!(
                "hash {index} of level {level} of the tree is missing"
            ))
        };
        let mut next = from;
        if level == 0 {
            let mut missing = None;
            self.visit_events(from.saturating_add(1), limit, |sequence, hash, _| {
                if sequence != next + 1 {
                    missing = Some(next);
                    return std::ops::ControlFlow::Break(());
                }
                next += 1;
                hashes.push(hash);
                std::ops::ControlFlow::Continue(())
            })?;
            return match missing {
                Some(index) => Err(gap(index)),
                None => Ok(hashes),
            };
        }
        let during = "read the tree";
        let (first, last) = (tree_key(level, from), tree_key(level, u64::MAX));
        for row in self
            .tree
            .range(first.as_slice()..=last.as_slice())
            .map_err(Error::storage(during))?
            .take(limit)
        {
            let (key, hash) = row.map_err(Error::storage(during))?;
            if key.value() != tree_key(level, next) {
                return Err(gap(next));
            }
            next += 1;
            hashes.push(read_tree_row(hash.value())?);
        }
        Ok(hashes)
    }

    /// One hash above level 0, if it is there: the root of the 256^`level` leaves number `index`.
    ///
    /// # Errors
    /// [`Error::Storage`] and [`Error::Damaged`].
    pub fn tree_hash(&self, level: u8, index: u64) -> Result<Option<Hash>, Error> {
        let row = self
            .tree
            .get(tree_key(level, index).as_slice())
            .map_err(Error::storage("read the tree"))?;
        row.map(|row| read_tree_row(row.value())).transpose()
    }

    /// The root of the first `size` events; none if there are fewer.
    ///
    /// # Errors
    /// [`Error::Storage`] and [`Error::Damaged`].
    pub fn tree_root(&self, size: u64) -> Result<Option<Hash>, Error> {
        if size > self.head()?.sequence {
            return Ok(None);
        }
        tree::root(size, Nodes::of(self).reader()).map(Some)
    }

    /// The audit path of an event, by its sequence, in the tree of the first `size` events: see
    /// [`tree::verify_inclusion`]. None if there are not so many events, or the event is not among them.
    ///
    /// # Errors
    /// [`Error::Storage`] and [`Error::Damaged`].
    pub fn inclusion_proof(&self, sequence: u64, size: u64) -> Result<Option<Vec<Hash>>, Error> {
        if sequence == 0 || sequence > size || size > self.head()?.sequence {
            return Ok(None);
        }
        tree::inclusion(sequence - 1, size, Nodes::of(self).reader()).map(Some)
    }

    /// The proof that the tree of the first `size` events begins with the first `old` of them: see
    /// [`tree::verify_consistency`]. None if there are not so many events, or `old` is larger than `size`.
    ///
    /// # Errors
    /// [`Error::Storage`] and [`Error::Damaged`].
    pub fn consistency_proof(&self, old: u64, size: u64) -> Result<Option<Vec<Hash>>, Error> {
        if old > size || size > self.head()?.sequence {
            return Ok(None);
        }
        tree::consistency(old, size, Nodes::of(self).reader()).map(Some)
    }

    /// The first hash above level 0 that only one of two snapshots of the same head has, or that differs, as (level, number).
    ///
    /// # Errors
    /// [`Error::Storage`] and [`Error::Damaged`].
    pub fn first_tree_difference(&self, other: &Snapshot) -> Result<Option<(u8, u64)>, Error> {
        let during = "compare trees";
        let (mut ours, mut theirs) = (
            self.tree.iter().map_err(Error::storage(during))?,
            other.tree.iter().map_err(Error::storage(during))?,
        );
        loop {
            let our = ours.next().transpose().map_err(Error::storage(during))?;
            let their = theirs.next().transpose().map_err(Error::storage(during))?;
            let key = match (&our, &their) {
                (None, None) => return Ok(None),
                (Some(our), Some(their)) => {
                    if our.0.value() == their.0.value() && our.1.value() == their.1.value() {
                        continue;
                    }
                    our.0.value().min(their.0.value())
                }
                (Some(one), None) | (None, Some(one)) => one.0.value(),
            };
            return tree_row(key).map(Some);
        }
    }

    /// The right edge of the tree of the first `size` events, from which it can be grown.
    pub(crate) fn frontier(&self, size: u64) -> Result<Frontier, Error> {
        let mut partial = Vec::new();
        for level in 0..=7u8 {
            let hashes = size >> (8 * u32::from(level));
            if hashes == 0 {
                break;
            }
            let width = tree::width(size, u32::from(level));
            partial.push(self.tree_hashes(level, hashes - width as u64, width)?);
        }
        Frontier::restore(size, partial).ok_or_else(|| {
            Error::Damaged(format!(
                "the tree of {size} events has no right edge of that size"
            ))
        })
    }
}

impl Ledger {
    /// Size and root of the tree over all events that are in the file now.
    ///
    /// # Errors
    /// [`Error::Storage`] and [`Error::Damaged`].
    pub fn tree(&self) -> Result<TreeHead, Error> {
        self.read()?.tree()
    }
}

/// Roots of complete subtrees. A proof asks for several of one tile, so the tiles that were read are kept until it is done.
struct Nodes<'a> {
    snapshot: &'a Snapshot,
    tiles: HashMap<(u8, u64), Vec<Hash>>,
}

impl<'a> Nodes<'a> {
    fn of(snapshot: &'a Snapshot) -> Self {
        Self {
            snapshot,
            tiles: HashMap::new(),
        }
    }

    fn reader(mut self) -> impl FnMut(u32, u64) -> Result<Hash, Error> + 'a {
        move |height, index| self.node(height, index)
    }

    fn node(&mut self, height: u32, index: u64) -> Result<Hash, Error> {
        let damaged = || {
            Error::Damaged(format!(
                "the tree lacks node {index} at height {height}, though its events are there"
            ))
        };
        let level = u8::try_from(height / 8).map_err(|_| damaged())?;
        let first = index << (height % 8);
        let (tile, at) = (first / TILE as u64, (first % TILE as u64) as usize);
        let hashes = match self.tiles.entry((level, tile)) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => {
                let read = self.snapshot.tree_hashes(level, tile * TILE as u64, TILE)?;
                new.insert(read)
            }
        };
        let hashes = hashes
            .get(at..at + (1 << (height % 8)))
            .ok_or_else(damaged)?;
        Ok(fold(hashes))
    }
}
