//! What stands above an edge, as small as it can be: a real nats-server, real keys and a real signer, and a feed that the
//! test writes row by row.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use futures_util::StreamExt;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::task::JoinHandle;

use keyring::feed::FeedSigner;
use keyring::{PrivateKey, RootKey, Vault};
use lifecycle::names::{CertificateId, Digest, Host, ResourceId, Slug};
use lifecycle::selection::{Candidate, KeyKind, Mode};
use wire::feed::{
    Bundle, Change, Chunk, ChunkRequest, Claim, Cursor, Delta, EnrolRequest, EnrolResponse,
    EnrolmentToken, FORMAT, Key, Message, Names, RegionKey, Report, Resource, SIGNING_CONTEXT,
    Signed, SyncRequest,
};

pub const REGION: &str = "north";
pub const EDGE: &str = "north-1";

pub fn slug(text: &str) -> Slug {
    Slug::name(text).unwrap()
}

pub fn host(text: &str) -> Host {
    Host::parse(text).unwrap()
}

pub fn unix_now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs() as i64
}

pub fn encode<T: serde::Serialize>(value: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, bincode::config::standard()).unwrap()
}

/// A nats-server child on a free port.
pub struct Nats {
    child: Child,
    pub port: u16,
    _folder: tempfile::TempDir,
}

impl Nats {
    pub fn start() -> Self {
        Self::on(free_port())
    }

    pub fn on(port: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = Command::new(nats_server())
            .args(["-a", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir(folder.path())
            .spawn()
            .expect("nats-server starts");
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "nats-server did not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self {
            child,
            port,
            _folder: folder,
        }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn nats_server() -> PathBuf {
    if let Some(path) = std::env::var_os("CHANCERY_NATS_SERVER") {
        return path.into();
    }
    let on_path = std::env::var_os("PATH")
        .into_iter()
        .flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
        .map(|folder| folder.join("nats-server"))
        .find(|path| path.is_file());
    on_path.unwrap_or_else(|| {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/bin/nats-server")
    })
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// A certification authority of the test's own.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
    pub der: Vec<u8>,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "Test Authority");
        let certificate = params.self_signed(&key).unwrap();
        Self {
            pem: certificate.pem(),
            der: certificate.der().to_vec(),
            issuer: Issuer::new(params, key),
        }
    }

    pub fn issue(&self, names: &[&str], key: &KeyPair, not_before: i64, not_after: i64) -> Vec<u8> {
        let mut params = CertificateParams::new(
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>(),
        )
        .unwrap();
        params.not_before = time::OffsetDateTime::from_unix_timestamp(not_before).unwrap();
        params.not_after = time::OffsetDateTime::from_unix_timestamp(not_after).unwrap();
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        params.signed_by(key, &self.issuer).unwrap().der().to_vec()
    }
}

/// A certificate as a test wants it.
#[derive(Clone)]
pub struct Wanted<'a> {
    pub project: &'a str,
    pub names: &'a [&'a str],
    pub not_before: i64,
    pub not_after: i64,
    pub standby: bool,
    pub key: KeyKind,
}

impl<'a> Wanted<'a> {
    /// Valid from an hour ago for thirty days, ECDSA P-256.
    pub fn new(project: &'a str, names: &'a [&'a str]) -> Self {
        let now = unix_now();
        Self {
            project,
            names,
            not_before: now - 3600,
            not_after: now + 30 * 86_400,
            standby: false,
            key: KeyKind::P256,
        }
    }
}

/// What became of it.
#[derive(Clone, Debug)]
pub struct Served {
    pub project: String,
    pub names: Vec<String>,
    pub candidate: Candidate,
}

impl Served {
    pub fn fingerprint(&self) -> String {
        self.candidate.fingerprint.to_string()
    }
}

#[derive(Default)]
struct State {
    generation: u64,
    sequence: u64,
    time: i64,
    rows: BTreeMap<Key, Vec<u8>>,
    deltas: Vec<Delta>,
    /// Deltas from before this sequence are forgotten: a snapshot is needed.
    reach: u64,
    names: BTreeMap<(String, String), Vec<Candidate>>,
    edge_public: Option<[u8; 32]>,
    nkey: Option<String>,
    reports: Vec<Report>,
    syncs: u64,
    chunks: u64,
    enrolments: u64,
    chunk_rows: usize,
}

/// The control plane, seen from below.
pub struct Upstream {
    pub authority: Authority,
    pub signer: Mutex<Arc<FeedSigner>>,
    pub vault: Vault,
    state: Arc<Mutex<State>>,
    pending: Mutex<Vec<Change>>,
    next_id: Mutex<u64>,
    folder: tempfile::TempDir,
}

/// A running responder on a NATS server.
pub struct Connected {
    pub client: async_nats::Client,
    task: JoinHandle<()>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Upstream {
    pub fn new() -> Arc<Self> {
        let folder = tempfile::tempdir().unwrap();
        let root = RootKey::create_or_load(&folder.path().join("root.key")).unwrap();
        let vault = Vault::open(&folder.path().join("vault.redb"), root).unwrap();
        let this = Arc::new(Self {
            authority: Authority::new(),
            signer: Mutex::new(Arc::new(FeedSigner::generate())),
            vault,
            state: Arc::new(Mutex::new(State {
                generation: 1,
                time: unix_now() * 1000,
                chunk_rows: 3,
                ..State::default()
            })),
            pending: Mutex::default(),
            next_id: Mutex::new(1),
            folder,
        });
        this.rotate_region_key();
        this
    }

    pub fn rotate_region_key(&self) {
        let blob = self.vault.new_region_key(REGION).unwrap();
        self.vault.install(0, &blob).unwrap();
    }

    fn id(&self) -> u64 {
        let mut next = self.next_id.lock().unwrap();
        *next += 1;
        *next
    }

    pub fn token(&self, nats: &Nats) -> String {
        let user = nkeys::KeyPair::new_user();
        let creds = format!(
            "-----BEGIN NATS USER JWT-----\ne30.e30.e30\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            user.seed().unwrap()
        );
        let token = EnrolmentToken {
            nats: nats.url(),
            region: slug(REGION),
            edge: slug(EDGE),
            creds,
            signer: Digest(self.signer.lock().unwrap().public()),
        };
        BASE64URL_NOPAD.encode(&serde_json::to_vec(&token).unwrap())
    }

    /// Answers edges on this server until it is dropped.
    pub async fn connect(self: &Arc<Self>, nats: &Nats) -> Connected {
        let client = async_nats::connect(nats.url()).await.unwrap();
        let mut requests = client.subscribe("chancery.v1.edge.>").await.unwrap();
        client.flush().await.unwrap();
        let this = self.clone();
        let answers = client.clone();
        let task = tokio::spawn(async move {
            while let Some(message) = requests.next().await {
                let what = message.subject.rsplit('.').next().unwrap().to_owned();
                let answer = match what.as_str() {
                    "enrol" => serde_json::to_vec(
                        &this.enrol(&serde_json::from_slice(&message.payload).unwrap()),
                    )
                    .unwrap(),
                    "sync" => this.sync(&serde_json::from_slice(&message.payload).unwrap()),
                    "chunk" => this.chunk(&serde_json::from_slice(&message.payload).unwrap()),
                    "report" => {
                        this.state
                            .lock()
                            .unwrap()
                            .reports
                            .push(serde_json::from_slice(&message.payload).unwrap());
                        continue;
                    }
                    other => panic!("an edge asked for {other}"),
                };
                if let Some(reply) = message.reply {
                    answers.publish(reply, answer.into()).await.unwrap();
                }
            }
        });
        Connected { client, task }
    }

    fn enrol(&self, request: &EnrolRequest) -> EnrolResponse {
        let mut state = self.state.lock().unwrap();
        state.enrolments += 1;
        state.edge_public = Some(request.hpke.0);
        state.nkey = Some(request.nkey.clone());
        drop(state);
        EnrolResponse {
            jwt: "e30.e30.e30".to_owned(),
            region_key: HEXLOWER.encode(&encode(&self.region_key_row(1))),
        }
    }

    /// All versions of the region key from `first` on, sealed to the edge.
    pub fn region_key_row(&self, first: u32) -> RegionKey {
        let public = self
            .state
            .lock()
            .unwrap()
            .edge_public
            .expect("the edge has enrolled");
        let (newest, _) = self.vault.region_key_public(REGION).unwrap().unwrap();
        let versions = (first..=newest)
            .map(|version| {
                (
                    version,
                    self.vault
                        .seal_region_key(REGION, version, EDGE, &public)
                        .unwrap(),
                )
            })
            .collect();
        RegionKey {
            edge: slug(EDGE),
            versions,
        }
    }

    pub fn sync(&self, request: &SyncRequest) -> Vec<u8> {
        let mut state = self.state.lock().unwrap();
        state.syncs += 1;
        let held = if request.generation == 0 {
            state.generation
        } else {
            request.generation
        };
        let message = if held != state.generation || request.sequence < state.reach {
            Message::SnapshotNeeded {
                generation: state.generation,
                sequence: state.sequence,
            }
        } else {
            Message::Delta(Delta {
                generation: state.generation,
                from: request.sequence,
                to: state.sequence,
                head: state.sequence,
                time: state.time,
                changes: state
                    .deltas
                    .iter()
                    .filter(|delta| delta.to > request.sequence)
                    .flat_map(|delta| delta.changes.clone())
                    .collect(),
            })
        };
        drop(state);
        self.sign(&message)
    }

    pub fn chunk(&self, request: &ChunkRequest) -> Vec<u8> {
        let mut state = self.state.lock().unwrap();
        state.chunks += 1;
        let at: usize = request
            .after
            .as_ref()
            .map_or(0, |cursor| cursor.0.parse().unwrap());
        let rows: Vec<_> = state
            .rows
            .iter()
            .skip(at)
            .take(state.chunk_rows)
            .map(|(key, value)| (*key, value.clone()))
            .collect();
        let end = at + rows.len();
        let message = Message::Chunk(Chunk {
            generation: state.generation,
            sequence: state.sequence,
            time: state.time,
            after: request.after.clone(),
            next: (end < state.rows.len()).then(|| Cursor(end.to_string())),
            rows,
        });
        drop(state);
        self.sign(&message)
    }

    pub fn sign(&self, message: &Message) -> Vec<u8> {
        sign_with(&self.signer.lock().unwrap(), REGION, message)
    }

    /// Makes another signer; the message in which the former names it.
    pub fn next_signer(&self) -> Vec<u8> {
        let next = Arc::new(FeedSigner::generate());
        let message = self.sign(&Message::NextSigner {
            public: next.public(),
        });
        *self.signer.lock().unwrap() = next;
        message
    }

    // Rows.

    fn put<T: serde::Serialize>(&self, key: Key, value: &T) {
        self.pending.lock().unwrap().push(Change {
            key,
            value: Some(encode(value)),
        });
    }

    pub fn remove(&self, key: Key) {
        self.pending
            .lock()
            .unwrap()
            .push(Change { key, value: None });
    }

    pub fn put_region_key(&self, first: u32) {
        let row = self.region_key_row(first);
        self.put(Key::region_key(row.edge.as_str()), &row);
    }

    pub fn resource(&self, project: &str, origin: &str) -> Resource {
        let resource = Resource {
            id: ResourceId(self.id()),
            project: slug(project),
            name: slug("files"),
            origin: origin.to_owned(),
            keep_host: false,
            private_origin: true,
            demand_public: false,
            served: true,
        };
        self.put_resource(&resource);
        resource
    }

    pub fn put_resource(&self, resource: &Resource) {
        self.put(Key::resource(resource.id), resource);
    }

    pub fn claim(&self, name: &str, project: &str, resource: Option<ResourceId>, mode: Mode) {
        self.put(
            Key::claim(name),
            &Claim {
                host: host(name),
                project: slug(project),
                resource,
                mode,
            },
        );
    }

    pub fn certificate(&self, wanted: &Wanted<'_>) -> Served {
        let key = match wanted.key {
            KeyKind::P256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            KeyKind::P384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            KeyKind::Ed25519 => KeyPair::generate_for(&rcgen::PKCS_ED25519),
            KeyKind::Rsa(_) => KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256),
        }
        .unwrap();
        self.certificate_with(wanted, &key)
    }

    pub fn certificate_with(&self, wanted: &Wanted<'_>, key: &KeyPair) -> Served {
        let leaf = self
            .authority
            .issue(wanted.names, key, wanted.not_before, wanted.not_after);
        let key = PrivateKey::from_der(key.serialized_der()).unwrap();
        let id = self.id();
        if let Some(blob) = self.vault.ensure_project_key(wanted.project).unwrap() {
            self.vault.install(0, &blob).unwrap();
        }
        let spki = key.spki_sha256();
        if !self.vault.contains(wanted.project, &spki).unwrap() {
            let blob = self.vault.seal_private_key(wanted.project, &key).unwrap();
            self.vault.install(0, &blob).unwrap();
        }
        let sealed = self
            .vault
            .reseal_for_region(wanted.project, &spki, REGION)
            .unwrap();
        let bundle = Bundle {
            project: slug(wanted.project),
            certificate: CertificateId(id),
            version: 1,
            spki: Digest(spki),
            chain: vec![leaf.clone()],
            region_key_version: sealed.version,
            sealed_key: sealed.to_bytes(),
        };
        let mut fingerprint = [0; 32];
        fingerprint
            .copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &leaf).as_ref());
        let candidate = Candidate {
            certificate: CertificateId(id),
            version: 1,
            place: id,
            standby: wanted.standby,
            exact: false,
            not_before: wanted.not_before,
            not_after: wanted.not_after,
            fingerprint: Digest(fingerprint),
            key: wanted.key,
            public: true,
        };
        self.put(Key::bundle(wanted.project, &Digest(fingerprint)), &bundle);
        for name in wanted.names {
            let candidates = {
                let mut state = self.state.lock().unwrap();
                let candidates = state
                    .names
                    .entry((wanted.project.to_owned(), (*name).to_owned()))
                    .or_default();
                candidates.push(Candidate {
                    exact: !name.starts_with("*."),
                    ..candidate.clone()
                });
                candidates.clone()
            };
            self.put_names(wanted.project, name, candidates);
        }
        Served {
            project: wanted.project.to_owned(),
            names: wanted.names.iter().map(|name| (*name).to_owned()).collect(),
            candidate,
        }
    }

    fn put_names(&self, project: &str, name: &str, candidates: Vec<Candidate>) {
        let names = Names {
            project: slug(project),
            name: host(name),
            candidates,
        };
        self.put(Key::names(names.project.as_str(), name), &names);
    }

    pub fn delete(&self, served: &Served) {
        for name in &served.names {
            let candidates = {
                let mut state = self.state.lock().unwrap();
                let candidates = state
                    .names
                    .get_mut(&(served.project.clone(), name.clone()))
                    .unwrap();
                candidates
                    .retain(|candidate| candidate.fingerprint != served.candidate.fingerprint);
                candidates.clone()
            };
            if candidates.is_empty() {
                self.remove(Key::names(&served.project, name));
            } else {
                self.put_names(&served.project, name, candidates);
            }
        }
        self.remove(Key::bundle(&served.project, &served.candidate.fingerprint));
    }

    /// Commits what was put since the last time: the delta, as it is signed.
    pub fn commit(&self) -> (u64, Vec<u8>) {
        let changes = std::mem::take(&mut *self.pending.lock().unwrap());
        let mut state = self.state.lock().unwrap();
        for change in &changes {
            match &change.value {
                Some(value) => state.rows.insert(change.key, value.clone()),
                None => state.rows.remove(&change.key),
            };
        }
        let from = state.sequence;
        state.sequence += changes.len().max(1) as u64;
        let delta = Delta {
            generation: state.generation,
            from,
            to: state.sequence,
            head: state.sequence,
            time: state.time,
            changes,
        };
        state.deltas.push(delta.clone());
        let sequence = state.sequence;
        drop(state);
        (sequence, self.sign(&Message::Delta(delta)))
    }

    /// Commits and publishes.
    pub async fn publish(&self, connected: &Connected) -> u64 {
        let (sequence, delta) = self.commit();
        connected
            .client
            .publish(format!("chancery.v1.region.{REGION}.delta"), delta.into())
            .await
            .unwrap();
        sequence
    }

    /// Commits, and hands the delta to the edge.
    pub async fn apply(&self, edge: &edge::Edge) -> u64 {
        let (sequence, delta) = self.commit();
        assert_eq!(
            edge.receive(vec![Bytes::from(delta)]).await.unwrap(),
            edge::Next::Nothing
        );
        assert_eq!(edge.applied(), sequence);
        sequence
    }

    // What a test turns.

    pub fn set_time(&self, milliseconds: i64) {
        self.state.lock().unwrap().time = milliseconds;
    }

    pub fn forget_deltas(&self) {
        let mut state = self.state.lock().unwrap();
        state.reach = state.sequence;
        state.deltas.clear();
    }

    pub fn restore(&self, generation: u64, sequence: u64) {
        let mut state = self.state.lock().unwrap();
        state.generation = generation;
        state.sequence = sequence;
        state.reach = sequence;
        state.deltas.clear();
    }

    pub fn chunk_rows(&self, rows: usize) {
        self.state.lock().unwrap().chunk_rows = rows;
    }

    pub fn position(&self) -> (u64, u64) {
        let state = self.state.lock().unwrap();
        (state.generation, state.sequence)
    }

    pub fn syncs(&self) -> u64 {
        self.state.lock().unwrap().syncs
    }

    pub fn chunks(&self) -> u64 {
        self.state.lock().unwrap().chunks
    }

    pub fn enrolments(&self) -> u64 {
        self.state.lock().unwrap().enrolments
    }

    pub fn reports(&self) -> Vec<Report> {
        self.state.lock().unwrap().reports.clone()
    }

    /// The authority's certificate as a file, for curl and openssl.
    pub fn authority_file(&self) -> PathBuf {
        let path = self.folder.path().join("authority.pem");
        std::fs::write(&path, &self.authority.pem).unwrap();
        path
    }
}

pub fn sign_with(signer: &FeedSigner, region: &str, message: &Message) -> Vec<u8> {
    let payload = encode(message);
    let covered = [region.as_bytes(), b"\0", &payload].concat();
    let signature = signer.sign(SIGNING_CONTEXT, &covered).to_vec();
    encode(&Signed {
        format: FORMAT,
        payload,
        signer: signer.public(),
        signature,
    })
}
