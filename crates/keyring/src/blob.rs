//! Sealed records, as they travel on the stream of keys and lie in the vault's file.
//!
//! A record is `CHKB`, a format byte, a kind byte and fields, each a 16-bit big-endian length and
//! its bytes; the last field is the ciphertext. Everything before the ciphertext is its associated
//! data, together with a purpose, so a record that is renamed, moved or relabelled does not open.
//!
//! | kind | fields |
//! | --- | --- |
//! | 1 project key | project, key id (8), root id (8), sealed key |
//! | 2 private key | project, SPKI hash (32), wrapped data key with the id of its project key (8) in front, sealed PKCS#8 |
//! | 3 region key | region, version (4), public half (32), root id (8), sealed secret |
//! | 4 ingestion key | public half (32), root id (8), sealed secret |
//! | 5 secret | name, root id (8), sealed bytes |

use data_encoding::HEXLOWER;

use crate::aead::OVERHEAD;

const MAGIC: &[u8; 4] = b"CHKB";
const FORMAT: u8 = 1;
/// The longest record, in bytes.
pub const MAX_BLOB: usize = 64 * 1024;
/// The longest name of a project, region, edge or secret, in bytes.
pub const MAX_NAME: usize = 128;

/// Bytes that are no sealed record, or one of a format that this version cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// Not a record, or a damaged one.
    #[error("the bytes are not a sealed record")]
    Malformed,
    /// Written by a later version.
    #[error("the sealed record has format {0}, which this version cannot read")]
    Format(u8),
    /// A name that is empty, too long or not printable ASCII.
    #[error("the name cannot be used for a sealed record")]
    Name,
}

/// What a sealed record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlobKind {
    /// A project's key-encryption key, wrapped by the root key.
    ProjectKey,
    /// A private key under its own data key, which the project's key wraps.
    PrivateKey,
    /// One version of a region's HPKE key, wrapped by the root key.
    RegionKey,
    /// One ingestion key, wrapped by the root key.
    IngestionKey,
    /// A named secret, wrapped by the root key.
    Secret,
}

impl BlobKind {
    fn byte(self) -> u8 {
        match self {
            Self::ProjectKey => 1,
            Self::PrivateKey => 2,
            Self::RegionKey => 3,
            Self::IngestionKey => 4,
            Self::Secret => 5,
        }
    }
}

/// One sealed record. It may be stored and sent anywhere; it opens only with the key that wraps it.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedBlob(Vec<u8>);

impl SealedBlob {
    /// Takes bytes that [`as_bytes`](Self::as_bytes) gave, and checks their form.
    ///
    /// # Errors
    /// When they are not one whole record of a known format. Whether it opens is not known yet.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, BlobError> {
        parse(&bytes)?;
        Ok(Self(bytes))
    }

    /// The bytes to store or send.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// What the record holds.
    pub fn kind(&self) -> BlobKind {
        match self.view() {
            View::ProjectKey { .. } => BlobKind::ProjectKey,
            View::PrivateKey { .. } => BlobKind::PrivateKey,
            View::RegionKey { .. } => BlobKind::RegionKey,
            View::IngestionKey { .. } => BlobKind::IngestionKey,
            View::Secret { .. } => BlobKind::Secret,
        }
    }

    /// The project, region or secret that the record belongs to; empty for an ingestion key.
    pub fn name(&self) -> &str {
        match self.view() {
            View::ProjectKey { project, .. } | View::PrivateKey { project, .. } => project,
            View::RegionKey { region, .. } => region,
            View::IngestionKey { .. } => "",
            View::Secret { name, .. } => name,
        }
    }

    /// The SHA-256 of the public half, for a private key.
    pub fn spki_sha256(&self) -> Option<[u8; 32]> {
        match self.view() {
            View::PrivateKey { spki, .. } => Some(spki),
            _ => None,
        }
    }

    /// What tells records apart: two with the same place are an older and a newer form of one thing.
    pub fn place(&self) -> Vec<u8> {
        self.row()
    }

    /// The id of the root key that wraps it, in hex; nothing for a private key, which its project's key wraps.
    pub fn root_id(&self) -> Option<String> {
        match self.view() {
            View::ProjectKey { root, .. }
            | View::RegionKey { root, .. }
            | View::IngestionKey { root, .. }
            | View::Secret { root, .. } => Some(HEXLOWER.encode(&root)),
            View::PrivateKey { .. } => None,
        }
    }

    /// The id of the project's key: its own for one of these, that of the key that wraps it for a private key.
    pub fn project_key_id(&self) -> Option<[u8; 8]> {
        match self.view() {
            View::ProjectKey { id, .. } => Some(id),
            View::PrivateKey { project_key, .. } => Some(project_key),
            _ => None,
        }
    }

    /// The version of a region's key.
    pub fn region_version(&self) -> Option<u32> {
        match self.view() {
            View::RegionKey { version, .. } => Some(version),
            _ => None,
        }
    }

    pub(crate) fn view(&self) -> View<'_> {
        parse(&self.0).expect("checked when it was made")
    }

    /// Puts a record together from its parts; `fields` without the ciphertext.
    pub(crate) fn new(
        kind: BlobKind,
        fields: &[&[u8]],
        ciphertext: &[u8],
    ) -> Result<Self, BlobError> {
        let mut bytes = prefix(kind, fields);
        push(&mut bytes, ciphertext);
        Self::from_bytes(bytes)
    }

    /// The associated data of the last field: a purpose and everything that stands before it.
    pub(crate) fn aad(&self, purpose: &str) -> Vec<u8> {
        let sealed = match self.view() {
            View::ProjectKey { sealed, .. }
            | View::PrivateKey { sealed, .. }
            | View::RegionKey { sealed, .. }
            | View::IngestionKey { sealed, .. }
            | View::Secret { sealed, .. } => sealed,
        };
        with_purpose(purpose, &self.0[..self.0.len() - sealed.len() - 2])
    }

    /// The key of the record's row: kind, name and what tells records of one name apart.
    pub(crate) fn row(&self) -> Vec<u8> {
        match self.view() {
            View::ProjectKey { project, id, .. } => row(BlobKind::ProjectKey, project, &id),
            View::PrivateKey { project, spki, .. } => row(BlobKind::PrivateKey, project, &spki),
            View::RegionKey {
                region, version, ..
            } => row(BlobKind::RegionKey, region, &version.to_be_bytes()),
            View::IngestionKey { public, .. } => row(BlobKind::IngestionKey, "", &public),
            View::Secret { name, .. } => row(BlobKind::Secret, name, b""),
        }
    }
}

impl std::fmt::Debug for SealedBlob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SealedBlob({:?}, {:?}", self.kind(), self.name())?;
        if let Some(spki) = self.spki_sha256() {
            write!(f, ", {}", HEXLOWER.encode(&spki[..8]))?;
        }
        f.write_str(")")
    }
}

/// The parts of a record.
pub(crate) enum View<'a> {
    ProjectKey {
        project: &'a str,
        id: [u8; 8],
        root: [u8; 8],
        sealed: &'a [u8],
    },
    PrivateKey {
        project: &'a str,
        spki: [u8; 32],
        project_key: [u8; 8],
        wrapped: &'a [u8],
        sealed: &'a [u8],
    },
    RegionKey {
        region: &'a str,
        version: u32,
        public: [u8; 32],
        root: [u8; 8],
        sealed: &'a [u8],
    },
    IngestionKey {
        public: [u8; 32],
        root: [u8; 8],
        sealed: &'a [u8],
    },
    Secret {
        name: &'a str,
        root: [u8; 8],
        sealed: &'a [u8],
    },
}

/// The key of a row, or, with an empty `rest`, the prefix of all rows of that name.
pub(crate) fn row(kind: BlobKind, name: &str, rest: &[u8]) -> Vec<u8> {
    [&[kind.byte()], name.as_bytes(), b"\0", rest].concat()
}

/// The associated data of a ciphertext: its purpose and everything that stands before it.
pub(crate) fn aad(purpose: &str, kind: BlobKind, fields: &[&[u8]]) -> Vec<u8> {
    with_purpose(purpose, &prefix(kind, fields))
}

fn with_purpose(purpose: &str, bound: &[u8]) -> Vec<u8> {
    [b"chancery.v1.keyring\0", purpose.as_bytes(), b"\0", bound].concat()
}

fn prefix(kind: BlobKind, fields: &[&[u8]]) -> Vec<u8> {
    let mut bytes = [&MAGIC[..], &[FORMAT, kind.byte()]].concat();
    fields.iter().for_each(|field| push(&mut bytes, field));
    bytes
}

/// Appends a field. One that is too long for its length makes a record that no parser takes.
pub(crate) fn push(bytes: &mut Vec<u8>, field: &[u8]) {
    let length = u16::try_from(field.len()).unwrap_or(u16::MAX);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(field);
}

/// Takes one field off the front.
pub(crate) fn pull<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], BlobError> {
    let (length, rest) = bytes.split_first_chunk::<2>().ok_or(BlobError::Malformed)?;
    let (field, rest) = rest
        .split_at_checked(usize::from(u16::from_be_bytes(*length)))
        .ok_or(BlobError::Malformed)?;
    *bytes = rest;
    Ok(field)
}

/// Takes one field of exactly `N` bytes off the front.
pub(crate) fn pull_array<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], BlobError> {
    pull(bytes)?.try_into().map_err(|_| BlobError::Malformed)
}

/// Takes one field that is a name off the front.
pub(crate) fn pull_name<'a>(bytes: &mut &'a [u8]) -> Result<&'a str, BlobError> {
    let name = std::str::from_utf8(pull(bytes)?).map_err(|_| BlobError::Malformed)?;
    check_name(name)
}

/// Names stand in row keys and in associated data, so they must not be able to imitate either.
pub(crate) fn check_name(name: &str) -> Result<&str, BlobError> {
    let fits = (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
    fits.then_some(name).ok_or(BlobError::Name)
}

fn parse(bytes: &[u8]) -> Result<View<'_>, BlobError> {
    if bytes.len() > MAX_BLOB {
        return Err(BlobError::Malformed);
    }
    let rest = bytes.strip_prefix(MAGIC).ok_or(BlobError::Malformed)?;
    let (&[format, kind], mut rest) = rest.split_first_chunk::<2>().ok_or(BlobError::Malformed)?;
    if format != FORMAT {
        return Err(BlobError::Format(format));
    }
    let rest = &mut rest;
    let view = match kind {
        1 => View::ProjectKey {
            project: pull_name(rest)?,
            id: pull_array(rest)?,
            root: pull_array(rest)?,
            sealed: pull(rest)?,
        },
        2 => {
            let project = pull_name(rest)?;
            let spki = pull_array(rest)?;
            let wrapped = pull(rest)?;
            let (project_key, wrapped) = wrapped.split_first_chunk().ok_or(BlobError::Malformed)?;
            if wrapped.len() != 32 + OVERHEAD {
                return Err(BlobError::Malformed);
            }
            View::PrivateKey {
                project,
                spki,
                project_key: *project_key,
                wrapped,
                sealed: pull(rest)?,
            }
        }
        3 => View::RegionKey {
            region: pull_name(rest)?,
            version: u32::from_be_bytes(pull_array(rest)?),
            public: pull_array(rest)?,
            root: pull_array(rest)?,
            sealed: pull(rest)?,
        },
        4 => View::IngestionKey {
            public: pull_array(rest)?,
            root: pull_array(rest)?,
            sealed: pull(rest)?,
        },
        5 => View::Secret {
            name: pull_name(rest)?,
            root: pull_array(rest)?,
            sealed: pull(rest)?,
        },
        _ => return Err(BlobError::Malformed),
    };
    if rest.is_empty() {
        Ok(view)
    } else {
        Err(BlobError::Malformed)
    }
}
