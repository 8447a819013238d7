//! What travels to an edge, and the edge's side of it.
//!
//! A region has an HPKE key, in versions. The vault seals it to each enrolled edge's own public
//! key, and seals each private key that the region needs to the region's public key.

use zeroize::Zeroizing;

use crate::blob::{BlobError, check_name, pull, pull_array, pull_name, push};
use crate::hpke::{self, HpkeError, PUBLIC, Recipient, Sealed};
use crate::key::{KeyError, MAX_DER, PrivateKey};
use crate::random;
use crate::secret::Secret;

const BUNDLE: &[u8; 5] = b"CHRS\x01";
const REGION_KEY: &[u8; 5] = b"CHRK\x01";

/// Why sealed bytes did not give a key at an edge.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegionError {
    /// They do not have the form, or have a later one.
    #[error(transparent)]
    Form(#[from] BlobError),
    /// They are for another region or another version of its key.
    #[error("the bytes are sealed for region key version {version}, which is not the one given")]
    OtherKey {
        /// The version that they are sealed for.
        version: u32,
    },
    /// They do not open: sealed to somebody else, moved, or changed.
    #[error(transparent)]
    Hpke(#[from] HpkeError),
    /// They open, but what is inside is no private key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// They open, but the key inside is not the one that the name promises.
    #[error("the key inside is not the one that it is named after")]
    OtherPrivateKey,
}

/// A private key sealed to one version of one region's key.
#[derive(Clone, PartialEq, Eq)]
pub struct RegionSealed {
    /// The project that the key belongs to.
    pub project: String,
    /// SHA-256 of the key's SubjectPublicKeyInfo.
    pub spki_sha256: [u8; 32],
    /// The region.
    pub region: String,
    /// The version of the region's key.
    pub version: u32,
    sealed: Sealed,
}

impl RegionSealed {
    pub(crate) fn seal(
        project: &str,
        key: &PrivateKey,
        region: &str,
        version: u32,
        region_public: &[u8; PUBLIC],
    ) -> Result<Self, RegionError> {
        check_name(project)?;
        check_name(region)?;
        let mut this = Self {
            project: project.to_owned(),
            spki_sha256: key.spki_sha256(),
            region: region.to_owned(),
            version,
            sealed: Sealed {
                enc: [0; PUBLIC],
                ct: Vec::new(),
            },
        };
        this.sealed = hpke::seal(
            region_public,
            &this.info(),
            b"",
            key.danger_to_pkcs8_der().expose(),
        )?;
        Ok(this)
    }

    /// The bytes to store or send.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.head();
        push(&mut bytes, &self.sealed.enc);
        push(&mut bytes, &self.sealed.ct);
        bytes
    }

    /// Takes bytes that [`to_bytes`](Self::to_bytes) gave.
    ///
    /// # Errors
    /// When they do not have the form. Whether they open is not known yet.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BlobError> {
        let mut rest = bytes.strip_prefix(BUNDLE).ok_or(BlobError::Malformed)?;
        let rest = &mut rest;
        let this = Self {
            project: pull_name(rest)?.to_owned(),
            spki_sha256: pull_array(rest)?,
            region: pull_name(rest)?.to_owned(),
            version: u32::from_be_bytes(pull_array(rest)?),
            sealed: Sealed {
                enc: pull_array(rest)?,
                ct: pull(rest)?.to_vec(),
            },
        };
        if !rest.is_empty() || this.sealed.ct.len() > MAX_DER + hpke::TAG {
            return Err(BlobError::Malformed);
        }
        Ok(this)
    }

    fn head(&self) -> Vec<u8> {
        let mut bytes = BUNDLE.to_vec();
        push(&mut bytes, self.project.as_bytes());
        push(&mut bytes, &self.spki_sha256);
        push(&mut bytes, self.region.as_bytes());
        push(&mut bytes, &self.version.to_be_bytes());
        bytes
    }

    fn info(&self) -> Vec<u8> {
        [b"chancery.v1.region-bundle\0", &self.head()[..]].concat()
    }
}

impl std::fmt::Debug for RegionSealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegionSealed")
            .field("project", &self.project)
            .field("region", &self.region)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// One version of a region's private key, opened.
pub struct RegionKey {
    region: String,
    version: u32,
    recipient: Recipient,
}

impl RegionKey {
    pub(crate) fn new(region: &str, version: u32, recipient: Recipient) -> Self {
        Self {
            region: region.to_owned(),
            version,
            recipient,
        }
    }

    /// The region.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The version, from 1.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The public half.
    pub fn public(&self) -> [u8; PUBLIC] {
        self.recipient.public()
    }

    /// Opens a private key that was sealed to this version of this region's key, and checks that
    /// it is the one that the record names.
    ///
    /// # Errors
    /// See [`RegionError`].
    pub fn open(&self, sealed: &RegionSealed) -> Result<PrivateKey, RegionError> {
        if sealed.region != self.region || sealed.version != self.version {
            return Err(RegionError::OtherKey {
                version: sealed.version,
            });
        }
        let der = self.recipient.open(&sealed.sealed, &sealed.info(), b"")?;
        let key = PrivateKey::from_der(der.expose())?;
        if key.spki_sha256() != sealed.spki_sha256 {
            return Err(RegionError::OtherPrivateKey);
        }
        Ok(key)
    }

    /// Seals this key to one edge.
    pub(crate) fn seal_to_edge(
        &self,
        edge: &str,
        edge_public: &[u8; PUBLIC],
    ) -> Result<Vec<u8>, RegionError> {
        check_name(edge)?;
        let mut bytes = REGION_KEY.to_vec();
        push(&mut bytes, self.region.as_bytes());
        push(&mut bytes, &self.version.to_be_bytes());
        push(&mut bytes, &self.public());
        push(&mut bytes, edge.as_bytes());
        let sealed = hpke::seal(
            edge_public,
            &region_key_info(&bytes),
            b"",
            self.recipient.danger_to_secret().expose(),
        )?;
        push(&mut bytes, &sealed.enc);
        push(&mut bytes, &sealed.ct);
        Ok(bytes)
    }

    /// The key in the clear, for an edge to seal under its local key.
    pub fn danger_to_secret(&self) -> Secret {
        let mut bytes = Zeroizing::new(Vec::with_capacity(36 + self.region.len()));
        bytes.extend_from_slice(&self.version.to_be_bytes());
        bytes.extend_from_slice(self.recipient.danger_to_secret().expose());
        bytes.extend_from_slice(self.region.as_bytes());
        Secret::from_slice(&bytes)
    }

    /// Takes what [`danger_to_secret`](Self::danger_to_secret) gave.
    ///
    /// # Errors
    /// When it does not have the form.
    pub fn from_secret(secret: &Secret) -> Result<Self, BlobError> {
        let (version, rest) = secret
            .expose()
            .split_first_chunk::<4>()
            .ok_or(BlobError::Malformed)?;
        let (key, region) = rest.split_at_checked(32).ok_or(BlobError::Malformed)?;
        let region = std::str::from_utf8(region).map_err(|_| BlobError::Malformed)?;
        Ok(Self {
            region: check_name(region)?.to_owned(),
            version: u32::from_be_bytes(*version),
            recipient: Recipient::from_secret(key).map_err(|_| BlobError::Malformed)?,
        })
    }
}

impl std::fmt::Debug for RegionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RegionKey({}, version {})", self.region, self.version)
    }
}

/// The keys that an edge makes for itself when it enrols: an HPKE key that region keys are sealed
/// to, and the seed of the key that it proves itself with to NATS.
pub struct EdgeKeys {
    recipient: Recipient,
    nkey_seed: Secret,
}

impl EdgeKeys {
    /// Makes new keys.
    pub fn generate() -> Self {
        Self {
            recipient: Recipient::generate(),
            nkey_seed: Secret::from_slice(&random::key()[..]),
        }
    }

    /// The public half that region keys are sealed to.
    pub fn public(&self) -> [u8; PUBLIC] {
        self.recipient.public()
    }

    /// The raw Ed25519 seed (32 bytes) of the edge's NATS user key, in the clear.
    pub fn danger_nkey_seed(&self) -> &Secret {
        &self.nkey_seed
    }

    /// Opens a region key that the vault sealed to this edge under the name `edge`.
    ///
    /// # Errors
    /// When it is for another edge or name, or was changed.
    pub fn open_region_key(
        &self,
        edge: &str,
        sealed_to_edge: &[u8],
    ) -> Result<RegionKey, RegionError> {
        let mut rest = sealed_to_edge
            .strip_prefix(REGION_KEY)
            .ok_or(BlobError::Malformed)?;
        let rest = &mut rest;
        let region = pull_name(rest)?;
        let version = u32::from_be_bytes(pull_array(rest)?);
        let public: [u8; PUBLIC] = pull_array(rest)?;
        let named = pull_name(rest)?;
        let head = &sealed_to_edge[..sealed_to_edge.len() - rest.len()];
        let sealed = Sealed {
            enc: pull_array(rest)?,
            ct: pull(rest)?.to_vec(),
        };
        if !rest.is_empty() {
            return Err(BlobError::Malformed.into());
        }
        if named != edge {
            return Err(HpkeError.into());
        }
        let secret = self.recipient.open(&sealed, &region_key_info(head), b"")?;
        let recipient = Recipient::from_secret(secret.expose())?;
        if recipient.public() != public {
            return Err(HpkeError.into());
        }
        Ok(RegionKey::new(region, version, recipient))
    }

    /// Both private halves in the clear (64 bytes), for the edge to seal under its local key.
    pub fn danger_to_secret(&self) -> Secret {
        let mut bytes = Zeroizing::new([0; 64]);
        bytes[..32].copy_from_slice(self.recipient.danger_to_secret().expose());
        bytes[32..].copy_from_slice(self.nkey_seed.expose());
        Secret::from_slice(&bytes[..])
    }

    /// Takes what [`danger_to_secret`](Self::danger_to_secret) gave.
    ///
    /// # Errors
    /// When there are not 64 bytes.
    pub fn from_secret(secret: &Secret) -> Result<Self, BlobError> {
        let bytes: Zeroizing<[u8; 64]> = secret.array().ok_or(BlobError::Malformed)?;
        Ok(Self {
            recipient: Recipient::from_secret(&bytes[..32]).map_err(|_| BlobError::Malformed)?,
            nkey_seed: Secret::from_slice(&bytes[32..]),
        })
    }
}

impl std::fmt::Debug for EdgeKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EdgeKeys")
    }
}

fn region_key_info(head: &[u8]) -> Vec<u8> {
    [b"chancery.v1.region-key\0", head].concat()
}
