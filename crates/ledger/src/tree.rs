//! The Merkle tree of RFC 6962, section 2.1 over the leaf hashes: what grows it, what is proven with it, and what checks
//! a proof without any ledger.
//!
//! Leaf `i` is the event with the sequence `i + 1`. Hashes are grouped as C2SP tlog-tiles does: level 0 are the leaf hashes,
//! a hash of level `l + 1` is the root of 256 complete hashes of level `l`, and 256 neighbours of one level make a tile.
//! Nothing here reads or writes a file.

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

use crate::Hash;

/// How many hashes a full tile has.
pub const TILE: usize = 256;
/// How many doublings lie between two levels.
const STEP: u32 = TILE.ilog2();

/// The node hash of RFC 6962, section 2.1: SHA-256 of a one byte and both children.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut bytes = [1; 65];
    bytes[1..33].copy_from_slice(&left.0);
    bytes[33..].copy_from_slice(&right.0);
    Hash::of(&bytes)
}

/// The root of a tree without leaves: the hash of nothing.
pub fn empty_root() -> Hash {
    Hash::from_digest(&digest::digest(&digest::SHA256, &[]))
}

/// How large a tree is and what its root is: all that a checkpoint says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeHead {
    /// How many leaves it has, which is also the sequence of the last event in it.
    pub size: u64,
    /// Its root.
    pub root: Hash,
}

impl TreeHead {
    /// The head of the tree without leaves.
    pub fn empty() -> Self {
        Self {
            size: 0,
            root: empty_root(),
        }
    }
}

/// A tile that has just become full.
#[derive(Clone, Copy, Debug)]
pub struct Tile<'a> {
    /// Its level.
    pub level: u8,
    /// Its place among the tiles of its level, from 0.
    pub index: u64,
    /// Its [`TILE`] hashes.
    pub hashes: &'a [Hash],
    /// Their root, which is hash number `index` of the next level.
    pub root: Hash,
}

/// The right edge of a tree, from which it can grow: the roots of its complete subtrees, and the hashes of the tiles that are
/// not full. It holds at most 255 hashes for each level, whatever the size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    /// Roots of the largest complete subtrees, left to right: one for each bit of the size.
    peaks: Vec<Hash>,
    /// For each level the hashes after its last full tile.
    partial: Vec<Vec<Hash>>,
}

impl Frontier {
    /// The tree without leaves.
    pub fn new() -> Self {
        Self::default()
    }

    /// The tree of `size` leaves, from the hashes after the last full tile of each level, level 0 first; levels beyond the
    /// last one given have none. None: these are not as many as a tree of that size has.
    pub fn restore(size: u64, mut partial: Vec<Vec<Hash>>) -> Option<Self> {
        let needed = usize::try_from(levels(size)).ok()?;
        while partial.last().is_some_and(Vec::is_empty) {
            partial.pop();
        }
        if partial.len() > needed {
            return None;
        }
        partial.resize(needed, Vec::new());
        let mut peaks = Vec::new();
        for (level, hashes) in partial.iter().enumerate().rev() {
            if hashes.len() != width(size, u32::try_from(level).ok()?) {
                return None;
            }
            let mut rest = hashes.as_slice();
            while !rest.is_empty() {
                let (subtree, after) = rest.split_at(1 << rest.len().ilog2());
                peaks.push(fold(subtree));
                rest = after;
            }
        }
        Some(Self {
            size,
            peaks,
            partial,
        })
    }

    /// How many leaves there are.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The root: a hash for each bit of the size.
    pub fn root(&self) -> Hash {
        let mut peaks = self.peaks.iter().rev();
        match peaks.next() {
            Some(last) => peaks.fold(*last, |right, left| node_hash(left, &right)),
            None => empty_root(),
        }
    }

    /// Size and root.
    pub fn head(&self) -> TreeHead {
        TreeHead {
            size: self.size,
            root: self.root(),
        }
    }

    /// For each level the hashes after its last full tile, level 0 first.
    pub fn partial(&self) -> &[Vec<Hash>] {
        &self.partial
    }

    /// Adds a leaf by its hash, and calls `full` with each tile that it completes, from level 0 up.
    pub fn push(&mut self, leaf: Hash, mut full: impl FnMut(Tile<'_>)) {
        let index = self.size;
        self.size += 1;
        self.keep(0, leaf);
        let (mut node, mut height) = (leaf, 0u32);
        while (index >> height) & 1 == 1 {
            let left = self
                .peaks
                .pop()
                .expect("there is a peak for each bit of the size");
            node = node_hash(&left, &node);
            height += 1;
            if height.is_multiple_of(STEP) {
                let above = height / STEP;
                let below = above as usize - 1;
                full(Tile {
                    level: u8::try_from(below).unwrap_or(u8::MAX),
                    index: (self.size >> height) - 1,
                    hashes: &self.partial[below],
                    root: node,
                });
                self.partial[below].clear();
                self.keep(above as usize, node);
            }
        }
        self.peaks.push(node);
    }

    fn keep(&mut self, level: usize, hash: Hash) {
        if self.partial.len() <= level {
            self.partial.push(Vec::with_capacity(TILE));
        }
        self.partial[level].push(hash);
    }
}

/// How many levels a tree of `size` leaves has hashes in.
fn levels(size: u64) -> u32 {
    match size {
        0 => 0,
        size => size.ilog2() / STEP + 1,
    }
}

/// How many hashes a tree of `size` leaves has after the last full tile of `level`.
pub fn width(size: u64, level: u32) -> usize {
    let hashes = size.checked_shr(STEP * level).unwrap_or(0);
    usize::try_from(hashes % TILE as u64).unwrap_or(0)
}

/// The root of neighbouring complete subtrees of one height, of which there is a power of two.
pub(crate) fn fold(hashes: &[Hash]) -> Hash {
    match hashes {
        [] => empty_root(),
        [one] => *one,
        many => {
            let (left, right) = many.split_at(many.len() / 2);
            node_hash(&fold(left), &fold(right))
        }
    }
}

/// The root of the leaves `from` to `to`, the last not included, by the rule of RFC 6962, section 2.1. `node` gives the root
/// of the complete subtree number `index` of 2^`height` leaves; `from` is a multiple of the largest one asked for.
fn range<E>(
    from: u64,
    to: u64,
    node: &mut impl FnMut(u32, u64) -> Result<Hash, E>,
) -> Result<Hash, E> {
    let count = to - from;
    if count.is_power_of_two() {
        let height = count.ilog2();
        return node(height, from >> height);
    }
    let middle = from + split(count);
    Ok(node_hash(
        &range(from, middle, node)?,
        &range(middle, to, node)?,
    ))
}

/// The largest power of two below `count`, which is at least 2.
fn split(count: u64) -> u64 {
    1 << (count - 1).ilog2()
}

/// The root of the first `size` leaves. See [`inclusion`] for `node`.
///
/// # Errors
/// Those of `node`.
pub fn root<E>(size: u64, mut node: impl FnMut(u32, u64) -> Result<Hash, E>) -> Result<Hash, E> {
    match size {
        0 => Ok(empty_root()),
        size => range(0, size, &mut node),
    }
}

/// The audit path of RFC 6962, section 2.1.1 for the leaf `index` in the tree of `size` leaves, the leaf's sibling first.
/// `node` gives the root of the complete subtree number `index` of 2^`height` leaves. `index` is below `size`; else the
/// path is empty.
///
/// # Errors
/// Those of `node`.
pub fn inclusion<E>(
    index: u64,
    size: u64,
    mut node: impl FnMut(u32, u64) -> Result<Hash, E>,
) -> Result<Vec<Hash>, E> {
    let mut path = Vec::new();
    if index >= size {
        return Ok(path);
    }
    let (mut from, mut to) = (0, size);
    while to - from > 1 {
        let middle = from + split(to - from);
        if index < middle {
            path.push(range(middle, to, &mut node)?);
            to = middle;
        } else {
            path.push(range(from, middle, &mut node)?);
            from = middle;
        }
    }
    path.reverse();
    Ok(path)
}

/// The consistency proof of RFC 6962, section 2.1.2 from the tree of `old` leaves to that of `size`. Empty where there is
/// nothing to prove: `old` is 0, or not below `size`. See [`inclusion`] for `node`.
///
/// # Errors
/// Those of `node`.
pub fn consistency<E>(
    old: u64,
    size: u64,
    mut node: impl FnMut(u32, u64) -> Result<Hash, E>,
) -> Result<Vec<Hash>, E> {
    let mut proof = Vec::new();
    if old == 0 || old >= size {
        return Ok(proof);
    }
    let (mut from, mut to) = (0, size);
    // While the old tree's end lies inside, its right side is what is looked at next.
    while to != old {
        let middle = from + split(to - from);
        if old <= middle {
            proof.push(range(middle, to, &mut node)?);
            to = middle;
        } else {
            proof.push(range(from, middle, &mut node)?);
            from = middle;
        }
    }
    // The verifier knows the old root; only a part of it has to be told.
    if from != 0 {
        proof.push(range(from, to, &mut node)?);
    }
    proof.reverse();
    Ok(proof)
}

/// Whether `path` proves that the leaf with the hash `leaf` is number `index` of the tree `head` (RFC 9162, section 2.1.3.2).
pub fn verify_inclusion(leaf: &Hash, index: u64, head: &TreeHead, path: &[Hash]) -> bool {
    if index >= head.size {
        return false;
    }
    let (mut at, mut last, mut node) = (index, head.size - 1, *leaf);
    for sibling in path {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            node = node_hash(sibling, &node);
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            node = node_hash(&node, sibling);
        }
        at >>= 1;
        last >>= 1;
    }
    last == 0 && node == head.root
}

/// Whether `proof` proves that the tree `new` begins with the leaves of the tree `old` (RFC 9162, section 2.1.4.2). The tree
/// without leaves is the beginning of every tree, and of two of the same size the roots are compared; the proof is empty
/// then.
pub fn verify_consistency(old: &TreeHead, new: &TreeHead, proof: &[Hash]) -> bool {
    if old.size > new.size {
        return false;
    }
    if old.size == 0 {
        return proof.is_empty() && old.root == empty_root();
    }
    if old.size == new.size {
        return proof.is_empty() && old.root == new.root;
    }
    let (mut at, mut last) = (old.size - 1, new.size - 1);
    while at & 1 == 1 {
        at >>= 1;
        last >>= 1;
    }
    let mut rest = proof.iter();
    // An old tree that is one complete subtree is not told: its root is known.
    let first = match old.size.is_power_of_two() {
        true => Some(&old.root),
        false => rest.next(),
    };
    let Some(first) = first else { return false };
    let (mut before, mut after) = (*first, *first);
    for hash in rest {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            before = node_hash(hash, &before);
            after = node_hash(hash, &after);
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            after = node_hash(&after, hash);
        }
        at >>= 1;
        last >>= 1;
    }
    last == 0 && before == old.root && after == new.root
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::HashMap, convert::Infallible};

    use proptest::prelude::*;

    use super::*;
    use crate::leaf_hash;

    /// MTH of RFC 6962, section 2.1, word by word.
    fn mth(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => empty_root(),
            [leaf] => *leaf,
            _ => {
                let k = halves(leaves.len());
                node_hash(&mth(&leaves[..k]), &mth(&leaves[k..]))
            }
        }
    }

    /// The largest power of two smaller than n.
    fn halves(n: usize) -> usize {
        let mut k = 1;
        while k * 2 < n {
            k *= 2;
        }
        k
    }

    /// The definition over the leaves `from` to `to` of a list, where what was computed once is remembered.
    struct Definition {
        leaves: Vec<Hash>,
        known: RefCell<HashMap<(usize, usize), Hash>>,
    }

    impl Definition {
        fn of(leaves: Vec<Hash>) -> Self {
            Self {
                leaves,
                known: RefCell::default(),
            }
        }

        fn mth(&self, from: usize, to: usize) -> Hash {
            if to - from == 1 {
                return self.leaves[from];
            }
            if let Some(known) = self.known.borrow().get(&(from, to)) {
                return *known;
            }
            let k = from + halves(to - from);
            let hash = node_hash(&self.mth(from, k), &self.mth(k, to));
            self.known.borrow_mut().insert((from, to), hash);
            hash
        }

        fn head(&self, size: usize) -> TreeHead {
            TreeHead {
                size: size as u64,
                root: match size {
                    0 => empty_root(),
                    size => self.mth(0, size),
                },
            }
        }

        /// PATH(m, D[from:to]) of section 2.1.1, m counted from the list's begin.
        fn path(&self, m: usize, from: usize, to: usize) -> Vec<Hash> {
            if to - from == 1 {
                return Vec::new();
            }
            let k = from + halves(to - from);
            let (mut found, other) = if m < k {
                (self.path(m, from, k), self.mth(k, to))
            } else {
                (self.path(m, k, to), self.mth(from, k))
            };
            found.push(other);
            found
        }

        /// SUBPROOF(m, D[from:to], whole) of section 2.1.2, m counted from the list's begin.
        fn subproof(&self, m: usize, from: usize, to: usize, whole: bool) -> Vec<Hash> {
            if m == to {
                return if whole {
                    Vec::new()
                } else {
                    vec![self.mth(from, to)]
                };
            }
            let k = from + halves(to - from);
            let (mut found, other) = if m <= k {
                (self.subproof(m, from, k, whole), self.mth(k, to))
            } else {
                (self.subproof(m, k, to, false), self.mth(from, k))
            };
            found.push(other);
            found
        }

        fn nodes(&self) -> impl FnMut(u32, u64) -> Result<Hash, Infallible> + '_ {
            |height, index| {
                let from = (index << height) as usize;
                Ok(self.mth(from, from + (1 << height)))
            }
        }
    }

    fn leaves(count: usize) -> Vec<Hash> {
        (0..count)
            .map(|i| leaf_hash(format!("event {i}").as_bytes()))
            .collect()
    }

    fn grown(leaves: &[Hash]) -> Frontier {
        let mut frontier = Frontier::new();
        for leaf in leaves {
            frontier.push(*leaf, |_| ());
        }
        frontier
    }

    /// The vectors of the Certificate Transparency implementations: the roots of their first eight leaves.
    #[test]
    fn roots_are_those_that_others_compute() {
        let leaves: Vec<Hash> = [
            "",
            "00",
            "10",
            "2021",
            "3031",
            "40414243",
            "5051525354555657",
            "606162636465666768696a6b6c6d6e6f",
        ]
        .iter()
        .map(|leaf| leaf_hash(&data_encoding::HEXLOWER.decode(leaf.as_bytes()).unwrap()))
        .collect();
        let roots = [
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        for (size, root) in roots.iter().enumerate() {
            assert_eq!(grown(&leaves[..size]).root().to_string(), *root, "{size}");
        }
    }

    #[test]
    fn a_tree_grows_as_the_definition_says_and_can_be_taken_up_anywhere() {
        let leaves = leaves(700);
        let definition = Definition::of(leaves.clone());
        let mut frontier = Frontier::new();
        let mut tiles = Vec::new();
        for (index, leaf) in leaves.iter().enumerate() {
            assert_eq!(frontier.head(), definition.head(index));
            let again = Frontier::restore(frontier.size(), frontier.partial().to_vec());
            assert_eq!(again.as_ref(), Some(&frontier));
            frontier.push(*leaf, |tile| {
                tiles.push((tile.level, tile.index, tile.hashes.to_vec(), tile.root));
            });
        }
        let expected: Vec<_> = (0..2usize)
            .map(|n| {
                let hashes = leaves[n * TILE..(n + 1) * TILE].to_vec();
                let root = mth(&hashes);
                (0, n as u64, hashes, root)
            })
            .collect();
        assert_eq!(tiles, expected);
    }

    /// Full tiles of a higher level: the leaves are all the same, so that roots can be told without hashing them all.
    #[test]
    fn higher_levels_have_full_tiles_too() {
        let leaf = leaf_hash(b"x");
        let mut frontier = Frontier::new();
        let (mut zeros, mut ones) = (0, Vec::new());
        for _ in 0..TILE * TILE + 300 {
            frontier.push(leaf, |tile| match tile.level {
                0 => zeros += 1,
                level => ones.push((level, tile.index, tile.hashes.to_vec())),
            });
        }
        let row = fold(&vec![leaf; TILE]);
        assert_eq!(zeros, 257);
        assert_eq!(ones, [(1, 0, vec![row; TILE])]);
        assert_eq!(
            frontier.partial(),
            [vec![leaf; 44], vec![row; 1], vec![fold(&vec![row; TILE])]]
        );
    }

    #[test]
    fn a_frontier_of_another_size_is_not_taken_up() {
        let leaves = leaves(300);
        let frontier = grown(&leaves);
        for size in [0, 44, 299, 301, 556, u64::MAX] {
            assert_eq!(
                Frontier::restore(size, frontier.partial().to_vec()),
                None,
                "{size}"
            );
        }
        let mut more = frontier.partial().to_vec();
        more.push(vec![leaves[0]]);
        assert_eq!(Frontier::restore(300, more), None);
        assert_eq!(Frontier::restore(0, Vec::new()), Some(Frontier::new()));
    }

    /// Every leaf of every tree, and every pair of trees, beyond the width of a tile.
    #[test]
    fn proofs_are_those_of_the_definition_for_every_size() {
        const MOST: usize = 330;
        let definition = Definition::of(leaves(MOST));
        let wrong = leaf_hash(b"?");
        for size in 1..=MOST {
            let new = definition.head(size);
            assert_eq!(root(size as u64, definition.nodes()), Ok(new.root));
            for index in 0..size {
                let leaf = &definition.leaves[index];
                let Ok(proof) = inclusion(index as u64, size as u64, definition.nodes());
                assert_eq!(proof, definition.path(index, 0, size), "{index} of {size}");
                assert!(verify_inclusion(leaf, index as u64, &new, &proof));
                assert!(!verify_inclusion(&wrong, index as u64, &new, &proof));
            }
            for old in 1..=size {
                let Ok(proof) = consistency(old as u64, size as u64, definition.nodes());
                let expected = definition.subproof(old, 0, size, true);
                assert_eq!(proof, expected, "{old} of {size}");
                let before = definition.head(old);
                assert!(verify_consistency(&before, &new, &proof), "{old} of {size}");
                let other = TreeHead {
                    root: wrong,
                    ..before
                };
                assert!(!verify_consistency(&other, &new, &proof));
            }
        }
    }

    #[test]
    fn the_edges_of_the_definition() {
        let definition = Definition::of(leaves(5));
        let leaves = &definition.leaves;
        let (none, some) = (TreeHead::empty(), definition.head(5));
        assert!(verify_consistency(&none, &none, &[]));
        assert!(verify_consistency(&none, &some, &[]));
        assert!(!verify_consistency(&some, &none, &[]));
        assert!(!verify_consistency(&none, &some, &leaves[..1]));
        assert!(verify_consistency(&some, &some, &[]));
        assert!(!verify_consistency(&some, &some, &leaves[..1]));
        assert_eq!(inclusion(5, 5, definition.nodes()), Ok(Vec::new()));
        assert!(!verify_inclusion(&leaves[4], 5, &some, &[]));
        assert_eq!(consistency(0, 5, definition.nodes()), Ok(Vec::new()));
        assert_eq!(consistency(6, 5, definition.nodes()), Ok(Vec::new()));
        assert_eq!((width(0, 0), width(256, 0), width(256, 1)), (0, 0, 1));
        assert_eq!(width(u64::MAX, 63), 0);
        // C2SP tlog-tiles works this one out.
        assert_eq!(
            [0, 1, 2, 3].map(|level| width(70_000, level)),
            [112, 17, 1, 0]
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn larger_trees_agree_with_the_definition(size in 1usize..1_500, index: prop::sample::Index, old: prop::sample::Index) {
            let definition = Definition::of(leaves(size));
            let new = definition.head(size);
            prop_assert_eq!(grown(&definition.leaves).head(), new);
            let index = index.index(size);
            let Ok(proof) = inclusion(index as u64, size as u64, definition.nodes());
            prop_assert_eq!(&proof, &definition.path(index, 0, size));
            prop_assert!(verify_inclusion(&definition.leaves[index], index as u64, &new, &proof));
            let old = old.index(size) + 1;
            let Ok(proof) = consistency(old as u64, size as u64, definition.nodes());
            prop_assert_eq!(&proof, &definition.subproof(old, 0, size, true));
            prop_assert!(verify_consistency(&definition.head(old), &new, &proof));
        }

        /// Whatever is changed about a good proof, it proves nothing any more, and nothing panics.
        #[test]
        fn a_changed_proof_proves_nothing(size in 2usize..300, index: prop::sample::Index, which: prop::sample::Index, kind in 0..6) {
            let definition = Definition::of(leaves(size));
            let mut new = definition.head(size);
            let mut index = index.index(size) as u64;
            let old = definition.head(index as usize);
            let Ok(mut path) = inclusion(index, size as u64, definition.nodes());
            let Ok(mut proof) = consistency(old.size, size as u64, definition.nodes());
            let leaf = definition.leaves[index as usize];
            for hashes in [&mut path, &mut proof] {
                if kind < 4 && hashes.is_empty() {
                    hashes.push(leaf_hash(b"?"));
                    continue;
                }
                let at = which.index(hashes.len().max(1));
                match kind {
                    0 => hashes[at].0[at % 32] ^= 1,
                    1 => { hashes.remove(at); }
                    2 => hashes.push(leaf),
                    3 => hashes.insert(at, leaf_hash(b"?")),
                    _ => {}
                }
            }
            match kind {
                4 => new.root.0[7] ^= 128,
                5 => index = (index + 1 + which.index(size - 1) as u64) % size as u64,
                _ => {}
            }
            prop_assert!(!verify_inclusion(&leaf, index, &new, &path));
            if kind < 4 || (kind == 4 && old.size > 0) {
                prop_assert!(!verify_consistency(&old, &new, &proof));
            }
            // Sizes that cannot be are a no as well.
            let huge = TreeHead { size: u64::MAX, root: new.root };
            prop_assert!(!verify_inclusion(&leaf, index, &huge, &path));
            prop_assert!(!verify_inclusion(&leaf, u64::MAX, &huge, &path));
        }
    }
}
