//! Certificates to order: a private root, an intermediate below it, and leaves of every kind that is served.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, RsaKeySize, SerialNumber,
};
use tempfile::TempDir;
use time::OffsetDateTime;

/// Serials are unique within a run, so that what was served names exactly one leaf.
static SERIAL: AtomicU64 = AtomicU64::new(0x4000_0000_0000_0001);

/// The kind of a leaf's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// RSA with 2048 bits.
    Rsa2048,
    /// ECDSA on P-256.
    P256,
    /// ECDSA on P-384.
    P384,
    /// Ed25519.
    Ed25519,
}

impl Key {
    fn generate(self) -> KeyPair {
        match self {
            Key::Rsa2048 => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048),
            Key::P256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            Key::P384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            Key::Ed25519 => KeyPair::generate_for(&rcgen::PKCS_ED25519),
        }
        .expect("keys of these kinds can be made")
    }
}

/// A root, an intermediate that it signed, and a folder for what they issue.
#[derive(Debug)]
pub struct Ca {
    folder: TempDir,
    intermediate: Issuer<'static, KeyPair>,
    intermediate_pem: String,
    root_pem: String,
}

impl Default for Ca {
    fn default() -> Self {
        Self::new()
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(86_400);
    params.not_after = OffsetDateTime::now_utc() + Duration::from_secs(10 * 365 * 86_400);
    params
}

impl Ca {
    /// A new one, with keys of its own.
    ///
    /// # Panics
    /// When it cannot write.
    #[must_use]
    pub fn new() -> Self {
        let root_key = Key::P256.generate();
        let root_params = authority("Chancery test root");
        let root = root_params
            .self_signed(&root_key)
            .expect("a root signs itself");
        let root_issuer = Issuer::new(root_params, root_key);
        let key = Key::P256.generate();
        let params = authority("Chancery test issuing CA");
        let intermediate = params
            .signed_by(&key, &root_issuer)
            .expect("the root signs the intermediate");
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("root.pem"), root.pem()).expect("written");
        Self {
            folder,
            intermediate: Issuer::new(params, key),
            intermediate_pem: intermediate.pem(),
            root_pem: root.pem(),
        }
    }

    /// The file with the root, as clients need it.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root.pem")
    }

    /// The root as PEM.
    #[must_use]
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// Orders a leaf for a host.
    #[must_use]
    pub fn leaf(&self, host: &str) -> LeafSpec<'_> {
        LeafSpec {
            ca: self,
            names: vec![host.to_owned()],
            key: Key::P256,
            not_before: OffsetDateTime::now_utc() - Duration::from_secs(3_600),
            not_after: OffsetDateTime::now_utc() + Duration::from_secs(90 * 86_400),
        }
    }

    /// Signs a request (PKCS#10, PEM) that somebody else made, names as they stand in it: the leaf's DER, and the file with its
    /// chain.
    ///
    /// # Panics
    /// When it is no request, or its signature is wrong.
    #[must_use]
    pub fn sign(&self, request: &str) -> (Vec<u8>, PathBuf) {
        let mut request =
            CertificateSigningRequestParams::from_pem(request).expect("a signing request");
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        request.params.serial_number = Some(SerialNumber::from(serial));
        request.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        request.params.use_authority_key_identifier_extension = true;
        request.params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(3_600);
        request.params.not_after = OffsetDateTime::now_utc() + Duration::from_secs(90 * 86_400);
        let certificate = request
            .signed_by(&self.intermediate)
            .expect("the intermediate signs the leaf");
        let chain = self.folder.path().join(format!("{serial:x}.chain.pem"));
        fs::write(
            &chain,
            format!("{}{}", certificate.pem(), self.intermediate_pem),
        )
        .expect("written");
        (certificate.der().to_vec(), chain)
    }

    /// A leaf with everything as usual.
    #[must_use]
    pub fn issue(&self, host: &str) -> Leaf {
        self.leaf(host).issue()
    }
}

/// What a leaf shall be.
#[derive(Debug)]
pub struct LeafSpec<'a> {
    ca: &'a Ca,
    names: Vec<String>,
    key: Key,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl LeafSpec<'_> {
    /// With a further name.
    #[must_use]
    pub fn and(mut self, host: &str) -> Self {
        self.names.push(host.to_owned());
        self
    }

    /// With a key of this kind.
    #[must_use]
    pub fn key(mut self, key: Key) -> Self {
        self.key = key;
        self
    }

    /// That begins at this moment.
    #[must_use]
    pub fn since(mut self, not_before: OffsetDateTime) -> Self {
        self.not_before = not_before;
        self
    }

    /// That ends at this moment; X.509 counts in whole seconds.
    #[must_use]
    pub fn until(mut self, not_after: OffsetDateTime) -> Self {
        self.not_after = not_after;
        self
    }

    /// Made and written down.
    ///
    /// # Panics
    /// When it cannot be.
    #[must_use]
    pub fn issue(self) -> Leaf {
        let key = self.key.generate();
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let mut params =
            CertificateParams::new(self.names.clone()).expect("the names are host names");
        params
            .distinguished_name
            .push(DnType::CommonName, format!("leaf {serial:x}"));
        params.serial_number = Some(SerialNumber::from(serial));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = self.not_before;
        params.not_after = self.not_after;
        let certificate = params
            .signed_by(&key, &self.ca.intermediate)
            .expect("the intermediate signs the leaf");
        let path = |kind: &str| self.ca.folder.path().join(format!("{serial:x}.{kind}.pem"));
        let (chain, key_file) = (path("chain"), path("key"));
        fs::write(
            &chain,
            format!("{}{}", certificate.pem(), self.ca.intermediate_pem),
        )
        .expect("written");
        fs::write(&key_file, key.serialize_pem()).expect("written");
        Leaf {
            chain,
            key: key_file,
            der: certificate.der().to_vec(),
            key_der: key.serialize_der(),
            not_after: self
                .not_after
                .replace_nanosecond(0)
                .expect("zero is a nanosecond"),
        }
    }
}

/// A leaf, its key and its files.
#[derive(Debug, Clone)]
pub struct Leaf {
    chain: PathBuf,
    key: PathBuf,
    /// The certificate.
    pub der: Vec<u8>,
    /// The private key, PKCS#8.
    pub key_der: Vec<u8>,
    /// When it ends.
    pub not_after: OffsetDateTime,
}

impl Leaf {
    /// One that somebody else issued, in files that stay.
    #[must_use]
    pub(crate) fn in_files(
        chain: PathBuf,
        key: PathBuf,
        der: Vec<u8>,
        key_der: Vec<u8>,
        not_after: OffsetDateTime,
    ) -> Self {
        Self {
            chain,
            key,
            der,
            key_der,
            not_after,
        }
    }

    /// The file with the leaf and the intermediate.
    #[must_use]
    pub fn chain(&self) -> &Path {
        &self.chain
    }

    /// The file with the key.
    #[must_use]
    pub fn key(&self) -> &Path {
        &self.key
    }

    /// SHA-256 of the DER in lower-case hex.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        crate::sha256(&self.der)
    }
}
