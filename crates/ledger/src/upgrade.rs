//! Files of older formats, brought up to the current one.

use std::ops::ControlFlow;

use redb::{Database, Durability, ReadableTable, WriteTransaction};

use crate::{
    Error, Ledger,
    format::{FORMAT, META, META_FORMAT, META_TREE, TREE, tree_key, tree_value},
    leaf_hash,
    tree::{Frontier, TreeHead},
};

/// How many events one transaction adds to the tree: 256 rows of it.
const PAGE: usize = 65_536;

/// Makes the tables that version 2 added, so that the file can be read as one. It stays of its version.
pub(crate) fn add_tables(database: &Database) -> Result<(), Error> {
    let during = "add the tree's table";
    let transaction = begin(database)?;
    {
        transaction
            .open_table(TREE)
            .map_err(Error::storage(during))?;
        let mut meta = transaction
            .open_table(META)
            .map_err(Error::storage(during))?;
        let begun = meta
            .get(META_TREE)
            .map_err(Error::storage(during))?
            .is_some();
        if !begun {
            meta.insert(META_TREE, tree_value(TreeHead::empty()).as_slice())
                .map_err(Error::storage(during))?;
        }
    }
    transaction.commit().map_err(Error::storage(during))
}

/// From version 1 to 2: the tree over the events that are there, from their bytes. Each step is durable with the tree's head
/// up to it, so that a crash costs one step; the version is written with the last. An older release that opens the file in
/// between appends events and leaves the tree alone, which is then taken up where it ended.
pub(crate) fn grow_tree(ledger: &Ledger) -> Result<(), Error> {
    let during = "build the tree";
    let head = ledger.head();
    let (built, mut frontier) = {
        let snapshot = ledger.read()?;
        let built = snapshot.tree()?;
        // What does not fit together is built anew from the events: the rows are overwritten.
        let edge = snapshot
            .frontier(built.size.min(head.sequence))
            .unwrap_or_default();
        (built, edge)
    };
    if frontier.head() != built {
        frontier = Frontier::new();
    }
    if head.sequence > 0 {
        tracing::info!(
            events = head.sequence,
            from = frontier.size(),
            "the ledger is of format 1; its Merkle tree is being built"
        );
    }
    loop {
        let mut rows = Vec::new();
        let mut damage = None;
        ledger
            .read()?
            .visit_events(frontier.size() + 1, PAGE, |sequence, stored, bytes| {
                let computed = leaf_hash(bytes);
                if sequence != frontier.size() + 1 {
                    damage = Some(format!("event {} is missing", frontier.size() + 1));
                } else if stored != computed {
                    damage = Some(format!(
                        "the bytes of event {sequence} do not have its hash"
                    ));
                } else {
                    frontier.push(computed, |tile| {
                        rows.push((tree_key(tile.level + 1, tile.index), tile.root));
                    });
                    return ControlFlow::Continue(());
                }
                ControlFlow::Break(())
            })?;
        if let Some(what) = damage {
            return Err(Error::Damaged(what));
        }
        let done = frontier.size() >= head.sequence;
        let transaction = begin(&ledger.shared.database)?;
        {
            let mut tree = transaction
                .open_table(TREE)
                .map_err(Error::storage(during))?;
            for (key, hash) in &rows {
                tree.insert(key.as_slice(), hash.0.as_slice())
                    .map_err(Error::storage(during))?;
            }
            let mut meta = transaction
                .open_table(META)
                .map_err(Error::storage(during))?;
            meta.insert(META_TREE, tree_value(frontier.head()).as_slice())
                .map_err(Error::storage(during))?;
            if done {
                meta.insert(META_FORMAT, FORMAT.to_le_bytes().as_slice())
                    .map_err(Error::storage(during))?;
            }
        }
        transaction.commit().map_err(Error::storage(during))?;
        if done {
            return Ok(());
        }
    }
}

fn begin(database: &Database) -> Result<WriteTransaction, Error> {
    let during = "begin an upgrade";
    let mut transaction = database.begin_write().map_err(Error::storage(during))?;
    transaction
        .set_durability(Durability::Immediate)
        .map_err(Error::storage(during))?;
    transaction.set_two_phase_commit(true);
    transaction.set_quick_repair(true);
    Ok(transaction)
}
