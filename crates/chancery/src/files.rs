//! Files that people name: read with a bound, written so that nobody else can read them and nothing is lost.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

use lifecycle::rejection::Code;

use crate::failure::{Failure, Result};

/// Reads a file of at most `max` bytes. It may hold a key, so what was read wipes itself.
///
/// # Errors
/// `too_large`, or that it cannot be read.
pub fn read(path: &Path, max: u64) -> Result<Zeroizing<Vec<u8>>> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let size = file.metadata().map_or(0, |m| m.len());
    // The room is taken at once, so that no smaller buffer with a part of a key is left behind by growing.
    let room = usize::try_from(size.min(max)).unwrap_or(0) + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(max + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("reading {}", path.display()))?;
    if bytes.len() as u64 > max {
        return Err(Failure::problem(
            Code::TooLarge,
            format!(
                "{} has more than the {max} bytes that are read",
                path.display()
            ),
            "is this the right file?",
        ));
    }
    Ok(bytes)
}

/// Reads the certificates of a PEM file, such as the roots of a company.
///
/// # Errors
/// When it cannot be read or holds none.
pub fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let certificates = CertificateDer::pem_slice_iter(&bytes)
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|error| anyhow::anyhow!("{} is not PEM: {error}", path.display()))?;
    anyhow::ensure!(
        !certificates.is_empty(),
        "{} holds no certificate",
        path.display()
    );
    Ok(certificates)
}

/// A new file that only its owner can read. Dropped before [`keep`](Self::keep) it is removed again.
#[derive(Debug)]
pub struct NewFile {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl NewFile {
    /// Creates it, before anything is asked that cannot be taken back.
    ///
    /// # Errors
    /// When there is a file of this name already, or it cannot be created.
    pub fn create(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::AlreadyExists => {
                    anyhow::anyhow!(
                        "{} exists and is never overwritten; name another file",
                        path.display()
                    )
                }
                _ => anyhow::Error::new(error).context(format!("creating {}", path.display())),
            })?;
        Ok(Self {
            path: path.to_owned(),
            file,
            kept: false,
        })
    }

    /// Writes it to the disk and keeps it.
    ///
    /// # Errors
    /// When it cannot be written; it is removed then.
    pub fn keep(mut self, text: &str) -> Result<()> {
        self.file
            .write_all(text.as_bytes())
            .and_then(|()| self.file.sync_all())
            .with_context(|| format!("writing {}", self.path.display()))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_new_file_is_its_owners_and_never_overwrites() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.creds");
        NewFile::create(&path)
            .expect("created")
            .keep("secret")
            .expect("kept");
        let mode = std::fs::metadata(&path)
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(
            NewFile::create(&path),
            Err(Failure::CouldNotRun(_))
        ));
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "secret");
        let other = folder.path().join("b.creds");
        drop(NewFile::create(&other).expect("created"));
        assert!(!other.exists(), "what was not kept is gone");
    }

    #[test]
    fn reading_is_bounded() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("f");
        std::fs::write(&path, b"12345").expect("written");
        assert_eq!(read(&path, 5).expect("read").as_slice(), b"12345");
        let Err(Failure::Refused(refused)) = read(&path, 4) else {
            panic!("it is too large")
        };
        assert_eq!(refused.told.code, "too_large");
        assert!(matches!(
            read(&folder.path().join("none"), 4),
            Err(Failure::CouldNotRun(_))
        ));
    }
}
