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
    let exists = || -> Failure {
        anyhow::anyhow!(
            "{} exists; name another file, or overwrite it with --force",
            path.display()
        )
        .into()
    };
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = Unfinished(PathBuf::from(beside));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside.0)
        .with_context(|| format!("creating {}", beside.0.display()))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .with_context(|| format!("writing {}", beside.0.display()))?;
    if force {
        std::fs::rename(&beside.0, path).with_context(|| format!("writing {}", path.display()))?;
    } else {
        // A link, unlike a new name, never takes the place of what is there.
        std::fs::hard_link(&beside.0, path).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => exists(),
            _ => anyhow::Error::new(error)
                .context(format!("writing {}", path.display()))
                .into(),
        })?;
    }
    drop(beside);
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("writing {}", folder.display()))?;
    Ok(())
}

/// A file that goes when it is not needed under its name.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
