//! Enrolment: how an edge gets its identity.
//!
//! The edge makes its own keys; a one-time token lets it have them certified, and brings the signer to pin. The keys are
//! kept before anything is asked, so that an edge that dies in between asks again with the same ones.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use async_nats::{ConnectErrorKind, ConnectOptions};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use nkeys::{KeyPair, KeyPairType};
use serde::{Deserialize, Serialize};

use keyring::{EdgeKeys, LocalKey, Secret};
use lifecycle::names::{Digest, Slug};
use wire::feed::{EnrolRequest, EnrolResponse, EnrolmentToken, RegionKey};
use wire::subject;

use crate::store::{decode, encode};

/// The edge's identity, sealed under its local key.
pub(crate) const FILE: &str = "identity.sealed";
/// The keys of an enrolment that has begun.
const BEGUN: &str = "enrolling.sealed";
/// How long enrolment is tried.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long one answer is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait before asking again.
const RETRY: Duration = Duration::from_millis(100);
/// The longest token that is read, in characters.
const TOKEN_MAX: usize = 16 << 10;

/// Why an edge has no identity.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The edge has never been enrolled and was given no token.
    #[error("this edge is not enrolled; start it with a token from `chancery edge enrol`")]
    NotEnrolled,
    /// The token cannot be read.
    #[error("the enrolment token cannot be read")]
    Token,
    /// The token is for another region.
    #[error("the enrolment token is for region {0}")]
    Region(Slug),
    /// The identity on disk is for another region.
    #[error("this state folder belongs to an edge of region {0}")]
    Elsewhere(Slug),
    /// The identity cannot be opened with the local key, or is of a later format.
    #[error("the edge's identity cannot be opened with its local key")]
    Sealed,
    /// The control plane said no.
    #[error("enrolment was refused: {0}")]
    Refused(String),
    /// Nobody answered in time. It can be tried again with the same token.
    #[error("enrolment got no answer: {0}")]
    NoAnswer(String),
    /// The file system refused.
    #[error("the edge's identity cannot be kept")]
    Io(#[from] io::Error),
}

#[derive(Serialize, Deserialize)]
struct Stored {
    nats: String,
    region: Slug,
    edge: Slug,
    jwt: String,
    signer: [u8; 32],
    keys: Vec<u8>,
    region_key: RegionKey,
}

/// Who an edge is.
pub(crate) struct Identity {
    nats: String,
    region: Slug,
    edge: Slug,
    jwt: String,
    signer: [u8; 32],
    keys: EdgeKeys,
    region_key: RegionKey,
}

impl Identity {
    pub(crate) fn nats(&self) -> &str {
        &self.nats
    }

    pub(crate) fn region(&self) -> &Slug {
        &self.region
    }

    pub(crate) fn edge(&self) -> &Slug {
        &self.edge
    }

    pub(crate) fn jwt(&self) -> &str {
        &self.jwt
    }

    pub(crate) fn signer(&self) -> [u8; 32] {
        self.signer
    }

    pub(crate) fn keys(&self) -> &EdgeKeys {
        &self.keys
    }

    /// The region key as it was when the edge enrolled; the feed brings later ones.
    pub(crate) fn region_key(&self) -> &RegionKey {
        &self.region_key
    }

    /// Opens the identity in a folder. None when the edge has not been enrolled.
    pub(crate) fn load(folder: &Path, local: &LocalKey) -> Result<Option<Self>, Error> {
        let sealed = match fs::read(folder.join(FILE)) {
            Ok(sealed) => sealed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let opened = local.open(FILE.as_bytes(), &sealed).ok_or(Error::Sealed)?;
        let stored: Stored = decode(opened.expose()).ok_or(Error::Sealed)?;
        let Stored {
            nats,
            region,
            edge,
            jwt,
            signer,
            keys,
            region_key,
        } = stored;
        let keys = EdgeKeys::from_secret(&Secret::from_vec(keys)).map_err(|_| Error::Sealed)?;
        Ok(Some(Self {
            nats,
            region,
            edge,
            jwt,
            signer,
            keys,
            region_key,
        }))
    }

    fn save(&self, folder: &Path, local: &LocalKey) -> Result<(), Error> {
        let stored = Stored {
            nats: self.nats.clone(),
            region: self.region.clone(),
            edge: self.edge.clone(),
            jwt: self.jwt.clone(),
            signer: self.signer,
            keys: self.keys.danger_to_secret().expose().to_vec(),
            region_key: self.region_key.clone(),
        };
        let clear = Secret::from_vec(encode(&stored));
        zeroize::Zeroize::zeroize(&mut { stored }.keys);
        write_sealed(folder, FILE, &local.seal(FILE.as_bytes(), clear.expose()))
    }
}

/// Reads a token: JSON in base64url, with white space around it where a shell or a file left some.
fn read_token(token: &str) -> Result<EnrolmentToken, Error> {
    let token = token.trim().trim_end_matches('=');
    if token.len() > TOKEN_MAX {
        return Err(Error::Token);
    }
    let json = BASE64URL_NOPAD
        .decode(token.as_bytes())
        .map_err(|_| Error::Token)?;
    serde_json::from_slice(&json).map_err(|_| Error::Token)
}

/// The identity of the edge in this folder, enrolled now if it was not before. A token that is given to an edge that is
/// enrolled already is not used.
pub(crate) async fn enrol(
    folder: &Path,
    local: &LocalKey,
    region: &Slug,
    token: Option<&str>,
    nats: Option<&str>,
) -> Result<Identity, Error> {
    if let Some(identity) = Identity::load(folder, local)? {
        if identity.region != *region {
            return Err(Error::Elsewhere(identity.region));
        }
        return Ok(identity);
    }
    let token = read_token(token.ok_or(Error::NotEnrolled)?)?;
    if token.region != *region {
        return Err(Error::Region(token.region));
    }
    let keys = begun_keys(folder, local)?;
    let url = nats.unwrap_or(&token.nats);
    let mut last = "the time is over".to_owned();
    let answer = match tokio::time::timeout(TIMEOUT, ask(&token, url, &keys, &mut last)).await {
        Ok(answer) => answer?,
        Err(_) => return Err(Error::NoAnswer(last)),
    };
    let unreadable = || Error::Refused("the answer cannot be read".to_owned());
    let region_key = HEXLOWER
        .decode(answer.region_key.as_bytes())
        .ok()
        .as_deref()
        .and_then(decode)
        .ok_or_else(unreadable)?;
    let identity = Identity {
        nats: token.nats,
        region: token.region,
        edge: token.edge,
        jwt: answer.jwt,
        signer: token.signer.0,
        keys,
        region_key,
    };
    identity.save(folder, local)?;
    // It says nothing that the identity does not say.
    let _ = fs::remove_file(folder.join(BEGUN));
    tracing::info!(region = %identity.region, edge = %identity.edge, "this edge is enrolled");
    Ok(identity)
}

fn begun_keys(folder: &Path, local: &LocalKey) -> Result<EdgeKeys, Error> {
    match fs::read(folder.join(BEGUN)) {
        Ok(sealed) => {
            let opened = local.open(BEGUN.as_bytes(), &sealed).ok_or(Error::Sealed)?;
            EdgeKeys::from_secret(&opened).map_err(|_| Error::Sealed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let keys = EdgeKeys::generate();
            write_sealed(
                folder,
                BEGUN,
                &local.seal(BEGUN.as_bytes(), keys.danger_to_secret().expose()),
            )?;
            Ok(keys)
        }
        Err(error) => Err(error.into()),
    }
}

async fn ask(
    token: &EnrolmentToken,
    url: &str,
    keys: &EdgeKeys,
    last: &mut String,
) -> Result<EnrolResponse, Error> {
    let seed: [u8; 32] = keys
        .danger_nkey_seed()
        .expose()
        .try_into()
        .map_err(|_| Error::Sealed)?;
    let nkey = KeyPair::new_from_raw(KeyPairType::User, seed)
        .map_err(|_| Error::Sealed)?
        .public_key();
    let request = EnrolRequest {
        nkey,
        hpke: Digest(keys.public()),
    };
    let body = serde_json::to_vec(&request).map_err(|_| Error::Token)?;
    let options = ConnectOptions::with_credentials(&token.creds)
        .map_err(|_| Error::Token)?
        .name(format!("enrol-{}-{}", token.region, token.edge))
        .custom_inbox_prefix(format!("_INBOX.{}.{}", token.region, token.edge))
        .request_timeout(Some(ANSWER_TIMEOUT));
    let client = loop {
        match options.clone().connect(url).await {
            Ok(client) => break client,
            Err(error)
                if matches!(
                    error.kind(),
                    ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication
                ) =>
            {
                return Err(Error::Refused(
                    "the token has been used or is too old; take a new one".to_owned(),
                ));
            }
            // Upstream may be starting as well; the caller bounds how long this goes on.
            Err(error) => {
                *last = error.to_string();
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    let subject = subject::edge(token.region.as_str(), token.edge.as_str(), "enrol");
    loop {
        match client.request(subject.clone(), body.clone().into()).await {
            Ok(answer) => {
                return serde_json::from_slice(&answer.payload)
                    .map_err(|_| Error::Refused(refusal(&answer.payload)));
            }
            Err(error) => {
                *last = error.to_string();
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// What a problem document says, if it is one.
fn refusal(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Problem {
        detail: String,
    }
    serde_json::from_slice::<Problem>(body).map_or_else(
        |_| "the answer cannot be read".to_owned(),
        |problem| problem.detail,
    )
}

/// Writes a file that is there whole or not at all, for its owner only.
fn write_sealed(folder: &Path, name: &str, sealed: &[u8]) -> Result<(), Error> {
    use std::os::unix::fs::OpenOptionsExt;
    let new = folder.join(format!("{name}.new"));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(sealed)?;
    file.sync_all()?;
    fs::rename(&new, folder.join(name))?;
    fs::File::open(folder)?.sync_all()?;
    Ok(())
}
