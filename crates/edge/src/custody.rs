//! The edge's keys, and what it opens and seals with them.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use keyring::{EdgeKeys, LocalKey, PrivateKey, RegionSealed, Secret};
use lifecycle::names::{Digest, Slug};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::SigningKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use wire::feed::RegionKey;

/// What one edge can open: the keys that it made, the versions of the region key that were sealed to it, and the local key
/// under which it keeps everything.
pub(crate) struct Custody {
    region: Slug,
    edge: Slug,
    local: LocalKey,
    own: EdgeKeys,
    region_keys: RwLock<BTreeMap<u32, Arc<keyring::RegionKey>>>,
}

impl Custody {
    pub(crate) fn new(region: Slug, edge: Slug, local: LocalKey, own: EdgeKeys) -> Self {
        Self {
            region,
            edge,
            local,
            own,
            region_keys: RwLock::default(),
        }
    }

    pub(crate) fn region(&self) -> &Slug {
        &self.region
    }

    pub(crate) fn edge(&self) -> &Slug {
        &self.edge
    }

    /// Takes the versions of the region key that bundles may be sealed to from now on; others are forgotten. A version that
    /// does not open is left out, and with it the bundles that are sealed to it.
    pub(crate) fn learn(&self, row: &RegionKey) {
        if row.edge != self.edge {
            return;
        }
        let mut keys = BTreeMap::new();
        for (version, sealed) in &row.versions {
            match self.own.open_region_key(self.edge.as_str(), sealed) {
                Ok(key) if key.region() == self.region.as_str() && key.version() == *version => {
                    keys.insert(*version, Arc::new(key));
                }
                Ok(_) => tracing::warn!(
                    version,
                    "a region key names another region or version; it is left out"
                ),
                Err(error) => {
                    tracing::warn!(version, %error, "a region key does not open; it is left out")
                }
            }
        }
        *self
            .region_keys
            .write()
            .unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// Opens a private key that is sealed to a version of the region key. None when that version is not here, or when what is
    /// inside is not the key that it should be.
    pub(crate) fn open_region(
        &self,
        project: &Slug,
        spki: &Digest,
        version: u32,
        sealed: &[u8],
    ) -> Option<PrivateKey> {
        let key = self
            .region_keys
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&version)?
            .clone();
        let sealed = RegionSealed::from_bytes(sealed).ok()?;
        if sealed.project != project.as_str() || sealed.spki_sha256 != spki.0 {
            return None;
        }
        key.open(&sealed).ok()
    }

    /// Seals a private key under the local key, bound to its project and its name.
    pub(crate) fn seal(&self, project: &Slug, spki: &Digest, key: &PrivateKey) -> Vec<u8> {
        self.local
            .seal(&place(project, spki), key.danger_to_pkcs8_der().expose())
    }

    /// Opens what [`seal`](Self::seal) sealed, ready to sign with.
    pub(crate) fn signing_key(
        &self,
        project: &Slug,
        spki: &Digest,
        sealed: &[u8],
    ) -> Option<Arc<dyn SigningKey>> {
        let pkcs8: Secret = self.local.open(&place(project, spki), sealed)?;
        any_supported_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(
            pkcs8.expose(),
        )))
        .ok()
    }
}

fn place(project: &Slug, spki: &Digest) -> Vec<u8> {
    [
        b"edge bundle\0",
        project.as_str().as_bytes(),
        b"\0",
        &spki.0,
    ]
    .concat()
}
