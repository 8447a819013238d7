//! The tables of the file and how their keys and values are laid out.

use std::ops::RangeInclusive;

use redb::TableDefinition;

use crate::{Error, Hash, Head, tree::TreeHead};

/// The version of the file format that this release writes, and the newest that it reads.
pub const FORMAT: u32 = 2;
/// The oldest version that it reads. Files of before the current one are brought up to it when they are opened.
pub(crate) const OLDEST: u32 = 1;

/// The most bytes that one event may have. The publishers' own limit is lower.
pub const MAX_EVENT: usize = 65_535;
/// The most bytes that the name of a scope or of a dedup space may have.
pub const MAX_NAME: usize = 255;
/// The most bytes that a key of a projection table may have.
pub const MAX_KEY: usize = 4_096;
/// The most bytes that a row of a projection table may have.
pub const MAX_ROW: usize = 16 << 20;
/// The most bytes that an object may have.
pub const MAX_OBJECT: usize = 16 << 20;

pub(crate) const META: TableDefinition<'static, &'static str, &'static [u8]> =
    TableDefinition::new("meta");
pub(crate) const EVENTS: TableDefinition<'static, u64, &'static [u8]> =
    TableDefinition::new("events");
pub(crate) const SCOPES: TableDefinition<'static, &'static [u8], u64> =
    TableDefinition::new("scopes");
pub(crate) const OUTCOMES: TableDefinition<'static, &'static [u8], &'static [u8]> =
    TableDefinition::new("outcomes");
pub(crate) const OBJECTS: TableDefinition<'static, &'static [u8], &'static [u8]> =
    TableDefinition::new("objects");
pub(crate) const STATE: TableDefinition<'static, &'static [u8], &'static [u8]> =
    TableDefinition::new("state");

pub(crate) const TREE: TableDefinition<'static, &'static [u8], &'static [u8]> =
    TableDefinition::new("tree");

pub(crate) const META_FORMAT: &str = "format";
pub(crate) const META_HEAD: &str = "head";
pub(crate) const META_TREE: &str = "tree";

/// Refuses what the format has no room for.
pub(crate) fn checked(
    what: &'static str,
    length: usize,
    allowed: RangeInclusive<usize>,
) -> Result<(), Error> {
    if allowed.contains(&length) {
        Ok(())
    } else {
        Err(Error::Length {
            what,
            length,
            least: *allowed.start(),
            limit: *allowed.end(),
        })
    }
}

/// Writes `name` behind its length, so that no name is a prefix of another one's rows. The caller
/// has checked the length; a longer name finds nothing.
pub(crate) fn name_key(key: &mut Vec<u8>, name: &str, rest: &[u8]) {
    key.clear();
    key.push(u8::try_from(name.len()).unwrap_or(0));
    key.extend_from_slice(name.as_bytes());
    key.extend_from_slice(rest);
}

pub(crate) fn state_key(key: &mut Vec<u8>, table: u8, rest: &[u8]) {
    key.clear();
    key.push(table);
    key.extend_from_slice(rest);
}

/// The first key after all that begin with `prefix`; none if there is no such key.
pub(crate) fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut key = prefix[..=kept].to_vec();
    key[kept] += 1;
    Some(key)
}

pub(crate) fn head_value(head: Head) -> [u8; 40] {
    let mut value = [0; 40];
    value[..8].copy_from_slice(&head.sequence.to_le_bytes());
    value[8..].copy_from_slice(&head.hash.0);
    value
}

pub(crate) fn read_head(value: &[u8]) -> Result<Head, Error> {
    let damaged = || Error::Damaged("the head has an unknown shape".into());
    let value: &[u8; 40] = value.try_into().map_err(|_| damaged())?;
    let (sequence, hash) = value.split_first_chunk::<8>().ok_or_else(damaged)?;
    Ok(Head {
        sequence: u64::from_le_bytes(*sequence),
        hash: Hash(hash.try_into().map_err(|_| damaged())?),
    })
}

pub(crate) fn tree_value(head: TreeHead) -> [u8; 40] {
    head_value(Head {
        sequence: head.size,
        hash: head.root,
    })
}

pub(crate) fn read_tree(value: &[u8]) -> Result<TreeHead, Error> {
    let damaged = |_| Error::Damaged("the tree's head has an unknown shape".into());
    let Head { sequence, hash } = read_head(value).map_err(damaged)?;
    Ok(TreeHead {
        size: sequence,
        root: hash,
    })
}

/// The key of hash number `index` of a level of the tree.
pub(crate) fn tree_key(level: u8, index: u64) -> [u8; 9] {
    let mut key = [0; 9];
    key[0] = level;
    key[1..].copy_from_slice(&index.to_be_bytes());
    key
}

/// Level and number that a key of the tree names.
pub(crate) fn tree_row(key: &[u8]) -> Result<(u8, u64), Error> {
    let parts = || {
        let (level, index) = key.split_first()?;
        Some((*level, u64::from_be_bytes(index.try_into().ok()?)))
    };
    parts().ok_or_else(|| Error::Damaged("a key of the tree has an unknown shape".into()))
}

pub(crate) fn read_tree_row(value: &[u8]) -> Result<Hash, Error> {
    value
        .try_into()
        .map(Hash)
        .map_err(|_| Error::Damaged("a hash of the tree has an unknown shape".into()))
}

/// Lays out a row of `events`.
pub(crate) fn event_value(value: &mut Vec<u8>, hash: Hash, bytes: &[u8]) {
    value.clear();
    value.extend_from_slice(&hash.0);
    value.extend_from_slice(bytes);
}

/// Splits a row of `events`.
pub(crate) fn read_event(sequence: u64, value: &[u8]) -> Result<(Hash, &[u8]), Error> {
    match value.split_first_chunk::<32>() {
        Some((hash, bytes)) => Ok((Hash(*hash), bytes)),
        None => Err(Error::Damaged(format!(
            "event {sequence} is shorter than its hash"
        ))),
    }
}

pub(crate) fn outcome_value(first: u64, count: u32, digest: &[u8; 32]) -> [u8; 44] {
    let mut value = [0; 44];
    value[..8].copy_from_slice(&first.to_le_bytes());
    value[8..12].copy_from_slice(&count.to_le_bytes());
    value[12..].copy_from_slice(digest);
    value
}

pub(crate) fn read_outcome(value: &[u8]) -> Result<(u64, u32, [u8; 32]), Error> {
    let parts = || {
        let (first, rest) = value.split_first_chunk::<8>()?;
        let (count, digest) = rest.split_first_chunk::<4>()?;
        Some((
            u64::from_le_bytes(*first),
            u32::from_le_bytes(*count),
            digest.try_into().ok()?,
        ))
    };
    parts().ok_or_else(|| Error::Damaged("an outcome has an unknown shape".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_after_a_prefix_carries_over_full_bytes() {
        assert_eq!(after_prefix(&[1, 2]), Some(vec![1, 3]));
        assert_eq!(after_prefix(&[1, 255, 255]), Some(vec![2]));
        assert_eq!(after_prefix(&[255, 255]), None);
        assert_eq!(after_prefix(&[]), None);
    }
}
