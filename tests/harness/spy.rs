//! Hears every message of every account of a NATS server. No role of the system may do that; the spy forges its own users
//! with the accounts' identity keys, which it takes out of the vault with the root key.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::hkdf;
use bus::identity::Identity;
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use futures_util::StreamExt;
use nkeys::{KeyPair, KeyPairType};
use serde_json::json;
use tokio::runtime::Runtime;

/// What was heard: subject, headers and payload of each message, one after the other.
type Heard = Arc<Mutex<Vec<Vec<u8>>>>;

/// The subscriptions; they end when it is dropped.
#[derive(Debug)]
pub struct Spy {
    heard: Heard,
    root: [u8; 32],
    runtime: Runtime,
}

struct Length;

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        32
    }
}

impl Spy {
    /// Takes the identity out of the vault of a system that does not run.
    ///
    /// # Panics
    /// When it is not there.
    #[must_use]
    pub fn from_state(state: &Path) -> Self {
        let root = keyring::RootKey::load(&state.join("root.key"))
            .expect("the root key is in the state folder");
        let vault = keyring::Vault::open(&state.join("vault.redb"), root).expect("the vault opens");
        let secret = vault
            .open_secret("nats-identity")
            .expect("the vault reads")
            .expect("the identity is there");
        let _ = Identity::from_bytes(secret.expose()).expect("it is an identity");
        let document: serde_json::Value =
            serde_json::from_slice(secret.expose()).expect("it is JSON");
        let root = HEXLOWER
            .decode(document["root"].as_str().expect("it has a root").as_bytes())
            .expect("it is hex");
        Self {
            heard: Heard::default(),
            root: root.try_into().expect("it has 32 bytes"),
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .expect("a runtime"),
        }
    }

    /// Listens to everything in an account: `account/CORE`, `account/EDGES` or `project/<name>`.
    ///
    /// # Panics
    /// When the server does not let it.
    pub fn listen(&self, url: &str, account: &str) {
        let mut seed = [0; 32];
        hkdf::Salt::new(hkdf::HKDF_SHA256, b"chancery nats identity v1")
            .extract(&self.root)
            .expand(&[account.as_bytes(), b"\0", b"0"], Length)
            .and_then(|output| output.fill(&mut seed))
            .expect("32 bytes are within the limit of HKDF");
        let account =
            KeyPair::new_from_raw(KeyPairType::Account, seed).expect("32 bytes make a key");
        let user = KeyPair::new_user();
        let claims = json!({
            "jti": uuid::Uuid::now_v7().to_string(), "iat": 1, "iss": account.public_key(), "sub": user.public_key(), "name": "spy",
            "nats": {"type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1},
        });
        let signed = format!(
            "{}.{}",
            BASE64URL_NOPAD.encode(br#"{"typ":"JWT","alg":"ed25519-nkey"}"#),
            BASE64URL_NOPAD.encode(claims.to_string().as_bytes())
        );
        let jwt = format!(
            "{signed}.{}",
            BASE64URL_NOPAD.encode(&account.sign(signed.as_bytes()).expect("it signs"))
        );
        let heard = Arc::clone(&self.heard);
        let url = url.to_owned();
        self.runtime.block_on(async move {
            let user = Arc::new(user);
            let client = async_nats::ConnectOptions::with_jwt(jwt, move |nonce| {
                let user = Arc::clone(&user);
                async move { user.sign(&nonce).map_err(async_nats::AuthError::new) }
            })
            .connect(url)
            .await
            .expect("the server knows the account");
            let mut messages = client.subscribe(">").await.expect("it may subscribe");
            client.flush().await.expect("the server answers");
            tokio::spawn(async move {
                while let Some(message) = messages.next().await {
                    let mut bytes = message.subject.as_bytes().to_vec();
                    for (name, values) in message.headers.iter().flat_map(|h| h.iter()) {
                        for value in values {
                            bytes.extend_from_slice(format!("\n{name}: {value}").as_bytes());
                        }
                    }
                    bytes.extend_from_slice(b"\n\n");
                    bytes.extend_from_slice(&message.payload);
                    heard
                        .lock()
                        .expect("nobody panics with it in hand")
                        .push(bytes);
                }
                drop(client);
            });
        });
    }

    /// What was heard so far.
    ///
    /// # Panics
    /// When a listener did.
    #[must_use]
    pub fn heard(&self) -> Vec<Vec<u8>> {
        // What is under way arrives within this; a message that is missed makes the search weaker, never wrong.
        std::thread::sleep(Duration::from_millis(300));
        self.heard
            .lock()
            .expect("nobody panics with it in hand")
            .clone()
    }
}
