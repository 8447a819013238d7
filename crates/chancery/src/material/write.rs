//! Chains and keys in the forms that other servers read.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use keyring::{Password, PrivateKey};

use super::{block_of, to_pem};
use crate::failure::{Failure, Result};

/// For Nginx and most others: the chain as PEM, leaf first (`ssl_certificate`), and the key as PKCS#8 PEM
/// (`ssl_certificate_key`).
pub fn nginx_pair(chain: &[CertificateDer<'_>], key: &PrivateKey) -> (String, Zeroizing<String>) {
    (to_pem(chain), key_pem(key))
}

/// For HAProxy (`crt`): chain and key in one PEM file, leaf first.
pub fn haproxy_pem(chain: &[CertificateDer<'_>], key: &PrivateKey) -> Zeroizing<String> {
    let (chain, key) = nginx_pair(chain, key);
    let mut both = Zeroizing::new(String::with_capacity(chain.len() + key.len()));
    both.push_str(&chain);
    both.push_str(&key);
    both
}

/// A PKCS#12 container of chain and key under a password, leaf first: AES-256 and HMAC-SHA-256, which OpenSSL since 1.1, Java
/// since 8u301 and Windows since 10 version 1709 read.
pub fn pkcs12(
    chain: &[CertificateDer<'_>],
    key: &PrivateKey,
    password: &Password,
    name: &str,
) -> Vec<u8> {
    let chain: Vec<&[u8]> = chain.iter().map(|der| der.as_ref()).collect();
    keyring::pkcs12::write(&chain, key, password, name)
}

fn key_pem(key: &PrivateKey) -> Zeroizing<String> {
    Zeroizing::new(block_of("PRIVATE KEY", key.danger_to_pkcs8_der().expose()))
}

/// Writes a file that only its owner can read. Its name stands for the whole of it or for what was there before: it is written
/// under another name beside it first.
///
/// # Errors
/// When there is a file of this name already, unless `force` says that it may go; when it cannot be written.
pub fn save(path: &Path, bytes: &[u8], force: bool) -> Result<()> {
    Place::prepare(path, force)?.write(bytes)
}

/// Room for a file that only its owner can read, made before anything is asked that cannot be taken back. Dropped before it is
/// written, it leaves nothing behind.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    force: bool,
    folder: File,
    file: File,
    beside: Unfinished,
}

impl Place {
    /// Creates the file under another name beside the one that it is to have.
    ///
    /// # Errors
    /// When there is anything of this name already, a link that leads nowhere included, unless `force` says that it may go; when
    /// it is a folder; when no file can be created in its folder.
    pub fn prepare(path: &Path, force: bool) -> Result<Self> {
        match std::fs::symlink_metadata(path) {
            Ok(there) if there.is_dir() => {
                return Err(anyhow::anyhow!("{} is a folder; name a file", path.display()).into());
            }
            Ok(_) if !force => return Err(exists(path)),
            _ => {}
        }
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let folder = File::open(folder).with_context(|| format!("opening {}", folder.display()))?;
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}.new", std::process::id()));
        let beside = PathBuf::from(beside);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside)
            .with_context(|| format!("creating {}", beside.display()))?;
        Ok(Self {
            path: path.to_owned(),
            force,
            folder,
            file,
            beside: Unfinished(beside),
        })
    }

    /// Writes it to the disk and gives it its name.
    ///
    /// # Errors
    /// When there is a file of this name by now, unless it was forced; when it cannot be written.
    pub fn write(mut self, bytes: &[u8]) -> Result<()> {
        let (path, beside) = (&self.path, &self.beside.0);
        self.file
            .write_all(bytes)
            .and_then(|()| self.file.sync_all())
            .with_context(|| format!("writing {}", beside.display()))?;
        if self.force {
            std::fs::rename(beside, path).with_context(|| format!("writing {}", path.display()))?;
        } else {
            // A link, unlike a new name, never takes the place of what is there.
            match std::fs::hard_link(beside, path) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    return Err(exists(path));
                }
                // Some file systems know no links. What is to be written may have left its place for good, so it is named all the
                // same unless something is there.
                Err(_) if std::fs::symlink_metadata(path).is_ok() => return Err(exists(path)),
                Err(_) => std::fs::rename(beside, path)
                    .with_context(|| format!("writing {}", path.display()))?,
            }
        }
        drop(self.beside);
        self.folder
            .sync_all()
            .with_context(|| format!("writing the folder of {}", self.path.display()))?;
        Ok(())
    }
}

fn exists(path: &Path) -> Failure {
    anyhow::anyhow!(
        "{} exists; name another file, or overwrite it with --force",
        path.display()
    )
    .into()
}

/// A file that goes when it is not needed under its name.
#[derive(Debug)]
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
