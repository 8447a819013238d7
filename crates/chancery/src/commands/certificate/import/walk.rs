//! Which files of a tree are looked at, and what wrote them: certbot, Caddy, acme.sh, lego, or people.
//!
//! What a tool has archived, backed up or keeps for its accounts is passed over by the tool's own layout. Folders are
//! never entered through a symbolic link, so there are no loops, and a link to a file is followed only within the tree; the one
//! exception is certbot, whose `live` folder is nothing but links into `archive` beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, FileType};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ValueEnum;
use serde::Serialize;

/// How deep folders may lie below the one that was named.
const DEPTH_MAX: usize = 24;
/// The most files and folders that are looked at in one import.
const ENTRIES_MAX: usize = 500_000;

/// What writes certificates in this form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// certbot: live/NAME/{cert,chain,fullchain,privkey}.pem as links into ../../archive
    Certbot,
    /// Caddy: certificates/ISSUER/HOST/HOST.{crt,key,json}
    Caddy,
    /// acme.sh: HOST or HOST_ecc with HOST.cer, HOST.key, ca.cer and fullchain.cer
    AcmeSh,
    /// lego: certificates/HOST.{crt,key,issuer.crt,json}
    Lego,
    /// Traefik: acme.json
    Traefik,
    /// Certificates and keys in files of any name
    Plain,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certbot => "certbot",
            Self::Caddy => "caddy",
            Self::AcmeSh => "acme-sh",
            Self::Lego => "lego",
            Self::Traefik => "traefik",
            Self::Plain => "plain",
        })
    }
}

/// A file to look into.
#[derive(Clone, Debug)]
pub struct File {
    /// Its path below the folder that was named.
    pub shown: PathBuf,
    /// Which folder it lies in: files with the same number lie in the same one.
    pub folder: u32,
    /// What wrote it, as far as its place tells.
    pub layout: Layout,
}

/// Something that was not looked into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Its path below the folder that was named.
    pub shown: PathBuf,
    /// Why, as a sentence.
    pub why: String,
    /// Whether somebody should mend that; else it is meant to be.
    pub failed: bool,
}

/// What a tree holds.
#[derive(Debug, Default)]
pub struct Tree {
    /// The files, in the order of their paths within each folder.
    pub files: Vec<File>,
    /// What could not be read or is not followed.
    pub passed: Vec<Passed>,
}

/// What a folder is, from where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Any folder.
    Open,
    /// certbot's `live`: a folder for each lineage.
    Live,
    /// A folder in certbot's `live`.
    Lineage,
}

struct Walk<'a> {
    /// The folder, resolved.
    root: PathBuf,
    forced: Option<Layout>,
    tree: Tree,
    entries: usize,
    folders: u32,
    stack: Vec<(PathBuf, usize, Place)>,
    dir: &'a Path,
}

/// Walks a folder. With `forced`, only files of that layout are given; `plain` takes every folder for an ordinary one.
///
/// # Errors
/// When the folder cannot be read, or holds more than can be imported at once.
pub fn walk(dir: &Path, forced: Option<Layout>) -> anyhow::Result<Tree> {
    let unreadable = || format!("{} cannot be read", dir.display());
    let root = fs::canonicalize(dir).with_context(unreadable)?;
    fs::read_dir(&root).with_context(unreadable)?;
    let place = if forced == Some(Layout::Plain) {
        Place::Open
    } else {
        place_of(&root)
    };
    let mut walk = Walk {
        stack: vec![(PathBuf::new(), 0, place)],
        root,
        forced,
        tree: Tree::default(),
        entries: 0,
        folders: 0,
        dir,
    };
    while let Some((folder, depth, place)) = walk.stack.pop() {
        walk.folder(&folder, depth, place)?;
    }
    Ok(walk.tree)
}

/// Somebody may name certbot's `live` itself, or one lineage in it.
fn place_of(root: &Path) -> Place {
    let is_live = |path: &Path| {
        path.file_name().is_some_and(|name| name == "live")
            && path
                .parent()
                .is_some_and(|certbot| certbot.join("archive").is_dir())
    };
    if is_live(root) {
        Place::Live
    } else if root.parent().is_some_and(is_live) {
        Place::Lineage
    } else {
        Place::Open
    }
}

impl Walk<'_> {
    fn folder(&mut self, folder: &Path, depth: usize, place: Place) -> anyhow::Result<()> {
        let path = self.root.join(folder);
        let mut entries: BTreeMap<String, FileType> = BTreeMap::new();
        let listing = match fs::read_dir(&path) {
            Ok(listing) => listing,
            Err(error) => {
                self.fail(folder, format!("the folder cannot be read: {error}"));
                return Ok(());
            }
        };
        for entry in listing {
            self.entries += 1;
            anyhow::ensure!(
                self.entries <= ENTRIES_MAX,
                "{} holds more than {ENTRIES_MAX} files and folders; import its folders one by one",
                self.dir.display()
            );
            let Ok(entry) = entry else { continue };
            // What is not UTF-8 is no name that any of the tools gives.
            let (Ok(name), Ok(kind)) = (entry.file_name().into_string(), entry.file_type()) else {
                continue;
            };
            entries.insert(name, kind);
        }
        let number = self.folders;
        self.folders += 1;
        let (layout, enter) = self.judge(&path, &entries, place);
        let mut below = Vec::new();
        for (name, kind) in &entries {
            let shown = folder.join(name);
            if kind.is_dir() {
                let Some(place) = enter(name) else { continue };
                if depth + 1 > DEPTH_MAX {
                    self.fail(&shown, format!("it lies deeper than {DEPTH_MAX} folders"));
                } else {
                    below.push((shown, depth + 1, place));
                }
                continue;
            }
            let Some(layout) = layout.filter(|layout| wanted(*layout, name)) else {
                continue;
            };
            // An acme.json may lie anywhere; whether it is one shows when it is read.
            let layout = if layout == Layout::Plain && name.ends_with(".json") {
                Layout::Traefik
            } else {
                layout
            };
            if self.forced.is_some_and(|forced| forced != layout) {
                continue;
            }
            if kind.is_symlink() {
                match self.linked(&path.join(name), layout) {
                    Ok(true) => {}
                    Ok(false) => continue,
                    Err((why, failed)) => {
                        self.tree.passed.push(Passed { shown, why, failed });
                        continue;
                    }
                }
            } else if !kind.is_file() {
                continue;
            }
            self.tree.files.push(File {
                shown,
                folder: number,
                layout,
            });
        }
        // The stack gives the last first.
        self.stack.extend(below.into_iter().rev());
        Ok(())
    }

    /// What the files of a folder are, and which folders below it are entered as what.
    #[allow(clippy::type_complexity)]
    fn judge(
        &self,
        path: &Path,
        entries: &BTreeMap<String, FileType>,
        place: Place,
    ) -> (Option<Layout>, Box<dyn Fn(&str) -> Option<Place>>) {
        let open = |name: &str| (!kept_aside(name)).then_some(Place::Open);
        if self.forced == Some(Layout::Plain) {
            return (Some(Layout::Plain), Box::new(open));
        }
        match place {
            Place::Live => return (None, Box::new(|_| Some(Place::Lineage))),
            Place::Lineage => return (Some(Layout::Certbot), Box::new(|_| None)),
            Place::Open => {}
        }
        let folder = |name: &str| entries.get(name).is_some_and(FileType::is_dir);
        let file = |name: &str| entries.get(name).is_some_and(|kind| !kind.is_dir());
        let only = |one: &'static str, place: Place| {
            Box::new(move |name: &str| (name == one).then_some(place))
        };
        if folder("live") && (folder("archive") || folder("renewal")) {
            return (None, only("live", Place::Live));
        }
        if folder("certificates") {
            let caddys = ["acme", "locks", "ocsp", "pki"].into_iter().any(folder)
                || ["instance.uuid", "last_clean.json"].into_iter().any(file);
            if caddys || folder("accounts") {
                return (None, only("certificates", Place::Open));
            }
        }
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let host = name.strip_suffix("_ecc").unwrap_or(&name);
        if file(&format!("{host}.conf"))
            && (file("fullchain.cer") || file(&format!("{host}.cer")) || file("ca.cer"))
        {
            return (Some(Layout::AcmeSh), Box::new(|_| None));
        }
        if file("account.conf") || file("acme.sh") || file("acme.sh.env") {
            // The keys of its accounts and its scripts.
            return (
                Some(Layout::Plain),
                Box::new(move |name| {
                    open(name).filter(|_| !["ca", "deploy", "dnsapi", "notify"].contains(&name))
                }),
            );
        }
        if file(&format!("{name}.crt")) && file(&format!("{name}.json")) {
            return (Some(Layout::Caddy), Box::new(|_| None));
        }
        let legos = entries.keys().any(|entry| {
            entry
                .strip_suffix(".issuer.crt")
                .or_else(|| entry.strip_suffix(".json"))
                .is_some_and(|host| file(&format!("{host}.crt")) && file(&format!("{host}.key")))
        });
        if legos {
            return (Some(Layout::Lego), Box::new(open));
        }
        (Some(Layout::Plain), Box::new(open))
    }

    /// Whether a link leads to a file that may be read.
    fn linked(&self, link: &Path, layout: Layout) -> Result<bool, (String, bool)> {
        let target = fs::canonicalize(link)
            .map_err(|error| (format!("the link leads nowhere: {error}"), true))?;
        let within = target.starts_with(&self.root)
            || (layout == Layout::Certbot
                && link
                    .ancestors()
                    .nth(3)
                    .is_some_and(|certbot| target.starts_with(certbot.join("archive"))));
        if !within {
            return Err((
                "the link leads out of the folder and is not followed".to_owned(),
                false,
            ));
        }
        Ok(target.is_file())
    }

    fn fail(&mut self, shown: &Path, why: String) {
        self.tree.passed.push(Passed {
            shown: shown.to_owned(),
            why,
            failed: true,
        });
    }
}

/// Folders that hold what somebody put aside.
fn kept_aside(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    // `..data` and the like are the folders that Kubernetes' links point to.
    name.starts_with("..")
        || [
            ".git",
            ".hg",
            ".svn",
            "backup",
            "backups",
            "archives",
            "lost+found",
        ]
        .contains(&lower.as_str())
        || aside(&lower)
}

/// Endings that editors, packagers and careful people give to a copy.
fn aside(lower: &str) -> bool {
    lower.ends_with('~')
        || [
            ".bak",
            ".backup",
            ".old",
            ".orig",
            ".save",
            ".swp",
            ".tmp",
            ".rpmsave",
            ".rpmnew",
            ".dpkg-old",
            ".dpkg-dist",
            ".disabled",
        ]
        .iter()
        .any(|ending| lower.ends_with(ending))
}

/// Whether a file of this name may hold certificates or keys.
fn wanted(layout: Layout, name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    if aside(&lower) {
        return false;
    }
    let extension = lower.rsplit_once('.').map_or("", |(_, ending)| ending);
    match layout {
        Layout::Certbot => extension == "pem",
        Layout::Caddy | Layout::Lego => ["crt", "key", "pem"].contains(&extension),
        Layout::AcmeSh => ["cer", "key"].contains(&extension),
        Layout::Traefik => extension == "json",
        Layout::Plain => {
            let others: BTreeSet<&str> = [
                "conf", "cnf", "cfg", "ini", "csr", "req", "crl", "srl", "sh", "py", "pl", "rb",
                "md", "rst", "html", "htm", "log", "toml", "yaml", "yml", "xml", "gz", "tgz",
                "zip", "xz", "bz2", "tar", "zst", "pub", "sig", "asc", "gpg", "lock", "pid", "db",
                "jks", "so", "c", "h", "go", "rs", "js", "css", "png", "jpg", "svg", "service",
            ]
            .into();
            !others.contains(extension) && !lower.starts_with("readme") && !lower.starts_with('.')
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn make(root: &Path, files: &[&str]) {
        for file in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().expect("it has a folder")).expect("made");
            fs::write(path, file).expect("written");
        }
    }

    fn seen(tree: &Tree) -> Vec<String> {
        tree.files
            .iter()
            .map(|file| format!("{} {}", file.layout, file.shown.display()))
            .collect()
    }

    #[test]
    fn each_layout_gives_its_own_files_and_nothing_that_was_put_aside() {
        let folder = tempfile::tempdir().expect("a folder");
        make(
            folder.path(),
            &[
                "README",
                "own/site.pem",
                "own/site.pem.bak",
                "own/backup/site.pem",
                "own/openssl.cnf",
                "letsencrypt/live/README",
                "letsencrypt/live/a/README",
                "letsencrypt/archive/a/fullchain1.pem",
                "letsencrypt/archive/a/fullchain2.pem",
                "letsencrypt/renewal/a.conf",
                "letsencrypt/keys/0000_key-certbot.pem",
                "caddy/certificates/ca-dir/b.example/b.example.crt",
                "caddy/certificates/ca-dir/b.example/b.example.key",
                "caddy/certificates/ca-dir/b.example/b.example.json",
                "caddy/pki/authorities/local/root.crt",
                "caddy/acme/ca-dir/users/x/x.key",
                ".acme.sh/account.conf",
                ".acme.sh/acme.sh",
                ".acme.sh/dnsapi/dns_x.sh",
                ".acme.sh/ca/ca.example/directory/account.key",
                ".acme.sh/c.example_ecc/c.example.conf",
                ".acme.sh/c.example_ecc/c.example.cer",
                ".acme.sh/c.example_ecc/c.example.key",
                ".acme.sh/c.example_ecc/c.example.csr",
                ".acme.sh/c.example_ecc/fullchain.cer",
                ".acme.sh/c.example_ecc/ca.cer",
                ".acme.sh/c.example_ecc/backup/key.bak",
                ".lego/accounts/ca/x/keys/x.key",
                ".lego/certificates/_.d.example.crt",
                ".lego/certificates/_.d.example.key",
                ".lego/certificates/_.d.example.json",
                ".lego/certificates/_.d.example.issuer.crt",
                ".lego/archives/old.zip",
                "traefik/acme.json",
            ],
        );
        let live = folder.path().join("letsencrypt/live/a");
        symlink("../../archive/a/fullchain2.pem", live.join("fullchain.pem")).expect("linked");
        let tree = walk(folder.path(), None).expect("walked");
        assert_eq!(tree.passed, []);
        assert_eq!(
            seen(&tree),
            [
                "acme-sh .acme.sh/c.example_ecc/c.example.cer",
                "acme-sh .acme.sh/c.example_ecc/c.example.key",
                "acme-sh .acme.sh/c.example_ecc/ca.cer",
                "acme-sh .acme.sh/c.example_ecc/fullchain.cer",
                "lego .lego/certificates/_.d.example.crt",
                "lego .lego/certificates/_.d.example.issuer.crt",
                "lego .lego/certificates/_.d.example.key",
                "caddy caddy/certificates/ca-dir/b.example/b.example.crt",
                "caddy caddy/certificates/ca-dir/b.example/b.example.key",
                "certbot letsencrypt/live/a/fullchain.pem",
                "plain own/site.pem",
                "traefik traefik/acme.json",
            ]
        );
        let forced = walk(folder.path(), Some(Layout::Caddy)).expect("walked");
        assert_eq!(forced.files.len(), 2);
        // A part of a tool's folder is known as such too.
        for part in ["letsencrypt", "letsencrypt/live", "letsencrypt/live/a"] {
            let part = walk(&folder.path().join(part), None).expect("walked");
            assert_eq!(part.files.len(), 1, "{part:?}");
            assert_eq!(part.files[0].layout, Layout::Certbot);
            assert_eq!(part.passed, []);
        }
    }

    #[test]
    fn links_neither_loop_nor_lead_out() {
        let outside = tempfile::tempdir().expect("a folder");
        make(outside.path(), &["secret.pem"]);
        let folder = tempfile::tempdir().expect("a folder");
        make(folder.path(), &["..data/tls.crt"]);
        let at = |name: &str| folder.path().join(name);
        symlink("..data/tls.crt", at("tls.crt")).expect("linked");
        symlink(folder.path(), at("loop")).expect("linked");
        symlink("self.pem", at("self.pem")).expect("linked");
        symlink(outside.path().join("secret.pem"), at("out.pem")).expect("linked");
        symlink(outside.path(), at("folder")).expect("linked");
        let tree = walk(folder.path(), None).expect("walked");
        assert_eq!(seen(&tree), ["plain tls.crt"]);
        let passed: Vec<_> = tree
            .passed
            .iter()
            .map(|p| (p.shown.to_string_lossy().into_owned(), p.failed))
            .collect();
        assert_eq!(
            passed,
            [
                ("folder".to_owned(), false),
                ("out.pem".to_owned(), false),
                ("self.pem".to_owned(), true)
            ]
        );
    }

    /// certbot's exception holds for its own archive alone.
    #[test]
    fn certbots_links_lead_only_into_its_own_archive() {
        let folder = tempfile::tempdir().expect("a folder");
        make(
            folder.path(),
            &[
                "one/archive/a/privkey1.pem",
                "one/live/README",
                "two/archive/b/privkey1.pem",
                "two/live/README",
            ],
        );
        let lineage = folder.path().join("one/live/a");
        fs::create_dir_all(&lineage).expect("made");
        symlink("../../archive/a/privkey1.pem", lineage.join("privkey.pem")).expect("linked");
        symlink(
            "../../../two/archive/b/privkey1.pem",
            lineage.join("cert.pem"),
        )
        .expect("linked");
        let tree = walk(&folder.path().join("one/live"), None).expect("walked");
        assert_eq!(seen(&tree), ["certbot a/privkey.pem"]);
        assert_eq!(tree.passed.len(), 1);
    }
}
