//! The whole log as files, in the layout of C2SP tlog-tiles: signed checkpoint, tiles of hashes, bundles of events. Any
//! auditor's tool reads them, and a plain web server serves them.
//!
//! Hashes are computed here from the events as they come; what the log has signed must come out. A second export into the
//! same folder goes on from what is there, and only if the log does too, so a log that was rewritten in between is found
//! out. The checkpoint is written last: until then the folder is the export that it was.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, anyhow, ensure};
use rustix::fs::{FlockOperation, flock, syncfs};
use serde::Serialize;

use ledger::tree::{Frontier, TILE, TreeHead, width};
use ledger::{Hash, leaf_hash};
use wire::tlog::{Of, entries, push_entry, tile_path};

use super::super::events::Source;
use super::trust::{Opened, Trust};
use super::{PAGE, signed, untrue, write_whole};
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::output::{Card, Out};
use crate::progress::Progress;

const CHECKPOINT: &str = "checkpoint";
const VKEY: &str = "vkey";
const TILES: &str = "tile";

/// What was exported.
#[derive(Debug, Serialize)]
struct Exported<'a> {
    folder: &'a Path,
    origin: String,
    /// How many events the folder has.
    size: u64,
    root: Hash,
    /// How many of them came with this export.
    new: u64,
    vkey: String,
}

pub(super) async fn run(
    client: &Client,
    folder: &Path,
    mut trust: Trust,
    out: &Out,
) -> Result<ExitCode> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let handle = fs::File::open(folder).with_context(|| format!("opening {}", folder.display()))?;
    flock(handle.as_fd(), FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("another export is writing to {}", folder.display()))?;
    let before = Before::read(folder)?;
    let (answer, now) = signed(client, &mut trust, None).await?;
    let old = before.checkpoint(&now)?;
    let target = now.checkpoint.tree;
    if old.size > target.size {
        return Err(untrue(format!(
            "{} has {} signed events, and the log only {}: it was put back to an older state, or cut off",
            folder.display(),
            old.size,
            target.size
        )));
    }
    let mut to = Tiles::take_up(folder, old)?;
    let progress = Progress::new(Some(target.size - old.size), "exporting");
    let source = Source::log();
    while to.tree.size() < target.size {
        let page = source.page(client, to.tree.size() + 1, PAGE).await?;
        let left = usize::try_from(target.size - to.tree.size()).unwrap_or(usize::MAX);
        let came = page.events.len().min(left);
        if came == 0 {
            return Err(untrue(format!(
                "the log has signed {} events and gives only {}",
                target.size,
                to.tree.size()
            )));
        }
        for event in &page.events[..came] {
            to.push(event.get().as_bytes())?;
        }
        progress.advance(came as u64);
    }
    progress.end();
    let found = to.tree.head();
    if found != target {
        return Err(untrue(if old.size > 0 {
            format!(
                "the events do not give the signed tree: those in {} are {} of another history, or some were changed on the way",
                folder.display(),
                old.size
            )
        } else {
            "the events do not give the signed tree: the log was changed".to_owned()
        }));
    }
    to.end()?;
    // Everything before the checkpoint: what names the files must not be there without them.
    syncfs(handle.as_fd()).with_context(|| format!("syncing {}", folder.display()))?;
    write_whole(&folder.join(VKEY), format!("{}\n", now.key).as_bytes())?;
    write_whole(&folder.join(CHECKPOINT), answer.checkpoint.as_bytes())?;
    to.tidy(old, target);
    let exported = Exported {
        folder,
        origin: now.checkpoint.origin,
        size: target.size,
        root: target.root,
        new: target.size - old.size,
        vkey: now.key.to_string(),
    };
    if out.json() {
        out.document(&exported);
    } else {
        let mut card = Card::default();
        card.add("log", &exported.origin);
        card.add(
            "events",
            format!("{}, {} of them new", exported.size, exported.new),
        );
        card.add("root", exported.root.to_string());
        card.add("key", &exported.vkey);
        card.print(out);
        if !trust.pinned() {
            out.note(
                "the key is the one that the log told; --key VKEY pins the one that you were given",
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What an earlier export has left.
struct Before {
    folder: PathBuf,
    /// Checkpoint and key; none in a new folder, and in one whose first export was broken off.
    signed: Option<(String, String)>,
}

impl Before {
    fn read(folder: &Path) -> Result<Self> {
        let checkpoint = folder.join(CHECKPOINT);
        let signed = match fs::read_to_string(&checkpoint) {
            Ok(note) => {
                let key = fs::read_to_string(folder.join(VKEY))
                    .with_context(|| format!("reading {}", folder.join(VKEY).display()))?;
                Some((note, key.trim().to_owned()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                only_ours(folder)?;
                None
            }
            Err(error) => {
                return Err(anyhow::Error::new(error)
                    .context(format!("reading {}", checkpoint.display()))
                    .into());
            }
        };
        Ok(Self {
            folder: folder.to_owned(),
            signed,
        })
    }

    /// The tree that the folder has, if it is one of the log that signs now.
    fn checkpoint(&self, now: &Opened) -> Result<TreeHead> {
        let Some((note, key)) = &self.signed else {
            return Ok(TreeHead::empty());
        };
        if *key != now.key.to_string() {
            return Err(untrue(format!(
                "{} is an export under the key {key}, and the log signs with {}: it was restored, or is another log. Export to a new folder; \
                 `chancery audit checkpoint --since {}/{CHECKPOINT} --key OLD --key NEW` tells whether it has only grown since",
                self.folder.display(),
                now.key,
                self.folder.display()
            )));
        }
        let before = Trust::of(std::slice::from_ref(key))?
            .open(note)
            .map_err(|why| anyhow!("{}/{CHECKPOINT}: {why}", self.folder.display()))?;
        Ok(before.checkpoint.tree)
    }
}

/// A folder without a checkpoint is written to only if nothing else is in it.
fn only_ours(folder: &Path) -> Result<()> {
    let reading = || format!("reading {}", folder.display());
    for entry in fs::read_dir(folder).with_context(reading)? {
        let name = entry.with_context(reading)?.file_name();
        let name = name.to_string_lossy();
        if ![TILES, VKEY].contains(&&*name) && !name.ends_with(".part") {
            return Err(Failure::Usage(format!(
                "{} is no export and holds other things ({name}): name a new folder",
                folder.display()
            )));
        }
    }
    Ok(())
}

/// The files of the tree, and where it ends.
struct Tiles {
    folder: PathBuf,
    tree: Frontier,
    /// The events after the last full bundle.
    bundle: Vec<u8>,
}

impl Tiles {
    /// Takes up the tree that the folder has, which must be the signed one. Its right edge is read; what lies before it stays
    /// as it is.
    fn take_up(folder: &Path, old: TreeHead) -> Result<Self> {
        let damaged = || {
            format!(
                "{} is not whole any more: export to a new folder, and keep this one if somebody may have changed it",
                folder.display()
            )
        };
        let read = || -> anyhow::Result<(Frontier, Vec<u8>)> {
            let mut partial = Vec::new();
            for level in 0..8u8 {
                let hashes = old.size >> (8 * u32::from(level));
                if hashes == 0 {
                    break;
                }
                let width = width(old.size, u32::from(level));
                let tile = match width {
                    0 => Vec::new(),
                    width => read_tile(folder, Of::Hashes(level), hashes / TILE as u64, width)?,
                };
                let (tile, rest) = tile.as_chunks::<32>();
                ensure!(rest.is_empty(), "a tile of level {level} is cut");
                ensure!(tile.len() >= width, "a tile of level {level} is too short");
                partial.push(tile[..width].iter().map(|hash| Hash(*hash)).collect());
            }
            let tree = Frontier::restore(old.size, partial)
                .filter(|tree| tree.head() == old)
                .context("the tiles do not give the signed root")?;
            let mut bundle = Vec::new();
            let width = width(old.size, 0);
            if width > 0 {
                let bytes = read_tile(folder, Of::Entries, old.size / TILE as u64, width)?;
                let found = entries(&bytes)?;
                ensure!(found.len() >= width, "the last bundle is too short");
                for (entry, hash) in found[..width].iter().zip(&tree.partial()[0]) {
                    ensure!(
                        leaf_hash(entry) == *hash,
                        "an event in the last bundle was changed"
                    );
                    ensure!(push_entry(&mut bundle, entry), "an event is too long");
                }
            }
            Ok((tree, bundle))
        };
        let (tree, bundle) = read().with_context(damaged)?;
        Ok(Self {
            folder: folder.to_owned(),
            tree,
            bundle,
        })
    }

    /// Adds an event, and writes what it completes.
    fn push(&mut self, event: &[u8]) -> Result<()> {
        if !push_entry(&mut self.bundle, event) {
            return Err(anyhow!(
                "event {} has {} bytes, and a bundle's entry at most 65,535",
                self.tree.size() + 1,
                event.len()
            )
            .into());
        }
        let mut full = Vec::new();
        self.tree.push(leaf_hash(event), |tile| {
            full.push((tile.level, tile.index, bytes_of(tile.hashes)));
        });
        for (level, index, hashes) in full {
            if level == 0 {
                let bundle = std::mem::take(&mut self.bundle);
                self.write(Of::Entries, index, TILE, &bundle)?;
            }
            self.write(Of::Hashes(level), index, TILE, &hashes)?;
        }
        Ok(())
    }

    /// Writes what is not full.
    fn end(&self) -> Result<()> {
        for (level, hashes) in (0u8..).zip(self.tree.partial()) {
            if hashes.is_empty() {
                continue;
            }
            let index = (self.tree.size() >> (8 * u32::from(level))) / TILE as u64;
            if level == 0 {
                self.write(Of::Entries, index, hashes.len(), &self.bundle)?;
            }
            self.write(Of::Hashes(level), index, hashes.len(), &bytes_of(hashes))?;
        }
        Ok(())
    }

    /// A file appears under its name with all of its bytes. It need not be on the disk before the checkpoint is.
    fn write(&self, of: Of, index: u64, width: usize, bytes: &[u8]) -> Result<()> {
        let path = self.folder.join(tile_path(of, index, width));
        let write = || -> std::io::Result<()> {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            let part = path.with_extension("part");
            fs::write(&part, bytes)?;
            fs::rename(&part, &path)
        };
        write().with_context(|| format!("writing {}", path.display()))?;
        Ok(())
    }

    /// Removes the parts of tiles that are full now. Where that fails they are in nobody's way.
    fn tidy(&self, old: TreeHead, new: TreeHead) {
        let obsolete = |of: Of, level: u32| {
            let (before, after) = (old.size >> (8 * level), new.size >> (8 * level));
            let index = before / TILE as u64;
            if before % TILE as u64 != 0 && after / TILE as u64 > index {
                let mut parts = self
                    .folder
                    .join(tile_path(of, index, TILE))
                    .into_os_string();
                parts.push(".p");
                let _ = fs::remove_dir_all(parts);
            }
        };
        obsolete(Of::Entries, 0);
        for level in 0..8u8 {
            obsolete(Of::Hashes(level), u32::from(level));
        }
    }
}

/// A tile of at least `width`, or the full one that has come in its place.
fn read_tile(folder: &Path, of: Of, index: u64, width: usize) -> anyhow::Result<Vec<u8>> {
    let path = folder.join(tile_path(of, index, width));
    match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            fs::read(folder.join(tile_path(of, index, TILE)))
                .with_context(|| format!("reading {}", path.display()))
        }
        read => read.with_context(|| format!("reading {}", path.display())),
    }
}

fn bytes_of(hashes: &[Hash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: u64) -> Vec<u8> {
        format!("event {number}").into_bytes()
    }

    /// Exports in steps, as if run again and again while the log grows.
    fn grown(folder: &Path, sizes: &[u64]) -> TreeHead {
        let mut old = TreeHead::empty();
        for size in sizes {
            let mut tiles = Tiles::take_up(folder, old).expect("what was there");
            while tiles.tree.size() < *size {
                tiles.push(&event(tiles.tree.size())).expect("written");
            }
            tiles.end().expect("written");
            tiles.tidy(old, tiles.tree.head());
            old = tiles.tree.head();
        }
        old
    }

    fn files(folder: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
        let mut found = std::collections::BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(&next).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(folder).expect("below").to_owned();
                    found.insert(name, fs::read(&path).expect("readable"));
                }
            }
        }
        found
    }

    /// In however many steps: the same files, apart from smaller parts of a tile that is still growing.
    #[test]
    fn steps_make_the_files_of_one_go() {
        let whole = tempfile::tempdir().expect("a folder");
        let head = grown(whole.path(), &[70_100]);
        let expected = files(whole.path());
        assert!(expected.contains_key(Path::new("tile/2/000.p/1")));
        assert_eq!(expected[Path::new("tile/1/000")].len(), 8_192);
        for steps in [
            &[1, 256, 300, 511, 512, 65_536, 70_000, 70_100][..],
            &[0, 70_000, 70_100],
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            assert_eq!(grown(folder.path(), steps), head);
            let found = files(folder.path());
            for (path, bytes) in &expected {
                assert_eq!(found.get(path), Some(bytes), "{}", path.display());
            }
            for path in found.keys().filter(|path| !expected.contains_key(*path)) {
                // 70,000 events were a checkpoint, and their tiles are still parts.
                let text = path.display().to_string();
                assert!(text.contains("273.p/112") || text.contains(".p/"), "{text}");
                let full = text.split(".p/").next().expect("a path");
                assert!(!found.contains_key(Path::new(full)), "{text} is obsolete");
            }
        }
    }

    /// A crash between the full tile and the checkpoint: the old checkpoint's part is gone or not, both can be taken up.
    #[test]
    fn a_full_tile_stands_in_for_its_part() {
        let folder = tempfile::tempdir().expect("a folder");
        let old = grown(folder.path(), &[300]);
        let mut tiles = Tiles::take_up(folder.path(), old).expect("what was there");
        while tiles.tree.size() < 600 {
            tiles.push(&event(tiles.tree.size())).expect("written");
        }
        for part in ["tile/0/001.p", "tile/entries/001.p"] {
            fs::remove_dir_all(folder.path().join(part)).expect("removed");
        }
        let tiles = Tiles::take_up(folder.path(), old).expect("the full tile will do");
        assert_eq!(tiles.tree.head(), old);
    }

    #[test]
    fn what_was_changed_is_not_taken_up() {
        for path in ["tile/0/001.p/44", "tile/1/000.p/1", "tile/entries/001.p/44"] {
            let folder = tempfile::tempdir().expect("a folder");
            let old = grown(folder.path(), &[300]);
            let path = folder.path().join(path);
            let good = fs::read(&path).expect("there");
            let mut changed = good.clone();
            changed[20] ^= 1;
            for bytes in [&changed, &good[..good.len() - 1].to_vec(), &Vec::new()] {
                fs::write(&path, bytes).expect("written");
                assert!(Tiles::take_up(folder.path(), old).is_err());
            }
            fs::remove_file(&path).expect("removed");
            assert!(Tiles::take_up(folder.path(), old).is_err());
            fs::write(&path, good).expect("written");
            assert!(Tiles::take_up(folder.path(), old).is_ok());
        }
    }

    #[test]
    fn a_folder_with_other_things_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("tile")).expect("made");
        assert!(only_ours(folder.path()).is_ok());
        fs::write(folder.path().join("letter.txt"), "dear").expect("written");
        assert!(matches!(only_ours(folder.path()), Err(Failure::Usage(_))));
    }
}
