//! The one TLS configuration that all connections share, and its tickets.

use std::fmt;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::ClientHello;
use rustls::server::{NoServerSessionStorage, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, ServerConfig, SignatureScheme};

use lifecycle::names::Digest;
use lifecycle::selection::KeyKind;

/// A fatal `unrecognized_name` alert (RFC 6066 section 3) in a record of its own: what a client gets whose name has no
/// certificate here. rustls would send `access_denied`.
pub(crate) const UNRECOGNIZED_NAME: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x70];

/// How much of the fingerprint is put into a ticket. A ticket is authentic anyway; this only tells certificates apart.
const BINDING: usize = 16;

/// Makes the configuration of a certificate from the one that all share. Made once for each opened certificate and then
/// used by all its connections, so that a connection costs one reference count.
pub(crate) struct Template {
    base: ServerConfig,
}

impl Template {
    /// TLS 1.3 and 1.2, X25519MLKEM768 first, HTTP/2 before HTTP/1.1, rotating stateless tickets, no early data.
    pub(crate) fn new() -> Result<Self, rustls::Error> {
        let mut base = ServerConfig::builder_with_provider(keyring::provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Nothing));
        base.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        base.ticketer = Ticketer::new()?;
        // Sessions are kept by the clients, in tickets. A store here would be one more thing that grows.
        base.session_storage = Arc::new(NoServerSessionStorage {});
        // Replayed early data is a fault of the application above, which did not choose it.
        base.max_early_data_size = 0;
        Ok(Self { base })
    }

    /// The configuration that serves this certificate.
    pub(crate) fn with(&self, leaf: Digest, certified: Arc<CertifiedKey>) -> Arc<ServerConfig> {
        let mut config = self.base.clone();
        config.ticketer = Arc::new(BoundTickets {
            shared: self.base.ticketer.clone(),
            leaf,
        });
        config.cert_resolver = Arc::new(Chosen(certified));
        Arc::new(config)
    }
}

#[derive(Debug)]
struct Nothing;

impl ResolvesServerCert for Nothing {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

#[derive(Debug)]
struct Chosen(Arc<CertifiedKey>);

impl ResolvesServerCert for Chosen {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// Tickets that are good only while the certificate is served that the session began with.
///
/// rustls binds a session to its SNI. A host can change hands, though, and its certificate can be deleted or revoked: a
/// client that saw the former one must see the present one before it trusts the connection again.
struct BoundTickets {
    shared: Arc<dyn ProducesTickets>,
    leaf: Digest,
}

impl fmt::Debug for BoundTickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BoundTickets")
    }
}

impl ProducesTickets for BoundTickets {
    fn enabled(&self) -> bool {
        self.shared.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.shared.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut bound = zeroize::Zeroizing::new(Vec::with_capacity(BINDING + plain.len()));
        bound.extend_from_slice(&self.leaf.0[..BINDING]);
        bound.extend_from_slice(plain);
        self.shared.encrypt(&bound)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let bound = zeroize::Zeroizing::new(self.shared.decrypt(cipher)?);
        bound
            .strip_prefix(&self.leaf.0[..BINDING])
            .map(<[u8]>::to_vec)
    }
}

/// Which kinds of keys a client can check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offer {
    rsa: bool,
    p256: bool,
    p384: bool,
    ed25519: bool,
}

impl Offer {
    pub(crate) fn of(hello: &ClientHello<'_>) -> Self {
        let mut offer = Self::default();
        for scheme in hello.signature_schemes() {
            match scheme {
                SignatureScheme::RSA_PSS_SHA256
                | SignatureScheme::RSA_PSS_SHA384
                | SignatureScheme::RSA_PSS_SHA512
                | SignatureScheme::RSA_PKCS1_SHA256
                | SignatureScheme::RSA_PKCS1_SHA384
                | SignatureScheme::RSA_PKCS1_SHA512 => offer.rsa = true,
                SignatureScheme::ECDSA_NISTP256_SHA256 => offer.p256 = true,
                SignatureScheme::ECDSA_NISTP384_SHA384 => offer.p384 = true,
                SignatureScheme::ED25519 => offer.ed25519 = true,
                _ => {}
            }
        }
        // Before TLS 1.3 the suite names the kind of key as well (RFC 5246 section 7.4.2).
        let suites = hello.cipher_suites();
        let has = |wanted: &[CipherSuite]| suites.iter().any(|suite| wanted.contains(suite));
        if !has(&TLS13_SUITES) {
            let ecdsa = has(&ECDSA_SUITES);
            offer.p256 &= ecdsa;
            offer.p384 &= ecdsa;
            offer.ed25519 &= ecdsa;
            offer.rsa &= has(&RSA_SUITES);
        }
        offer
    }

    pub(crate) fn fits(self, key: KeyKind) -> bool {
        match key {
            KeyKind::Rsa(_) => self.rsa,
            KeyKind::P256 => self.p256,
            KeyKind::P384 => self.p384,
            KeyKind::Ed25519 => self.ed25519,
        }
    }
}

const TLS13_SUITES: [CipherSuite; 3] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
];
const ECDSA_SUITES: [CipherSuite; 3] = [
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
];
const RSA_SUITES: [CipherSuite; 3] = [
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];
