//! Commands for which a private key is made, given out or sealed anew before or after they are decided.
//!
//! The order is always the same. A key is durable before the event that names it; a key leaves only after the event that says
//! so. An outcome that is there already is looked up first, so the same id never makes another key, and what the tables
//! already show to be refused is refused before a key is touched.

use lifecycle::command::{self, Asker, Command, Context};
use lifecycle::decide::decide;
use lifecycle::event::CertificateKind;
use lifecycle::names::{Digest, Host, Slug};
use lifecycle::rejection::{Code, Reason};
use lifecycle::selection::KeyKind;
use lifecycle::state::{Certificate, State as _, Status, key};
use lifecycle::store::{Read as _, Table};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use uuid::Uuid;
use wire::answer::{Accepted, Answer, Problem};
use wire::request::{CreateCsr, ExportCertificate, NewKey};

use super::{Brought, Ingestion, later, refuse};
use crate::registrar::Ask;
use crate::tables::{Tables, fatal};
use crate::vault;
use crate::verifier::judge_in;
use crate::views::certificates::chain_pem;
use crate::views::projects::request_pem;

/// What binds an exported key to its purpose; a NUL and the project follow.
const EXPORT_INFO: &str = "chancery.v1.export";

fn sha256(bytes: &[u8]) -> [u8; 32] {
    ledger::Hash::of(bytes).0
}

fn of_new(key: NewKey) -> (keyring::KeyKind, KeyKind) {
    let rsa = |bits| (keyring::KeyKind::Rsa(bits), KeyKind::Rsa(bits));
    match key {
        NewKey::Rsa2048 => rsa(2048),
        NewKey::Rsa3072 => rsa(3072),
        NewKey::Rsa4096 => rsa(4096),
        NewKey::P256 => (keyring::KeyKind::EcdsaP256, KeyKind::P256),
        NewKey::P384 => (keyring::KeyKind::EcdsaP384, KeyKind::P384),
        NewKey::Ed25519 => (keyring::KeyKind::Ed25519, KeyKind::Ed25519),
    }
}

impl Ingestion {
    /// A server certificate that comes without a key is fine if the project holds the key: made here for a signing request, or
    /// that of an earlier version. The vault keeps it until this command had time to be decided.
    pub(super) async fn holds_key(
        &self,
        project: &Slug,
        kind: CertificateKind,
        brought: &Brought,
    ) -> Result<(), Box<Problem>> {
        if kind == CertificateKind::Ca || brought.key.is_some() {
            return Ok(());
        }
        let spki = brought.facts.spki;
        let known = Tables::of(&self.ledger)
            .get(Table::Key, &key::spki(project, spki))
            .is_some();
        let owner = project.as_str().to_owned();
        let held = known
            && vault::with(&self.vault, move |core| core.hold(&owner, &spki.0))
                .await
                .and_then(|held| held)
                .map_err(|e| later(&e))?;
        if held {
            return Ok(());
        }
        refuse(
            Code::KeyMissing,
            "a server certificate needs its private key, and the project holds none that belongs to it",
            "add it with --key FILE; without one, the certificate must have been signed for a request that was made here with \
             `chancery certificate csr`, or have the same key as a certificate that is there",
        )
    }

    /// What the registrar would say to a command now.
    fn foreseen(
        &self,
        project: &Slug,
        asker: &Asker,
        command: &Command,
    ) -> Result<(), Box<Problem>> {
        let context = Context {
            project: project.clone(),
            asker: asker.clone(),
            now: i64::try_from(time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000)
                .unwrap_or(i64::MAX),
            sequence: self.ledger.head().sequence + 1,
        };
        decide(&Tables::of(&self.ledger), command, &context)
            .map(drop)
            .map_err(|rejection| Box::new(Problem::of(vec![rejection.0])))
    }

    /// `certificate.csr`: makes the key and the request, and has that decided. The answer carries the request as PEM.
    pub(super) async fn create_csr(
        &self,
        csr: CreateCsr,
        digest: [u8; 32],
        ask: impl FnOnce(Command, Vec<([u8; 32], Vec<u8>)>) -> Ask,
        (project, asker, id): (&Slug, &Asker, Uuid),
    ) -> Result<Answer, Box<Problem>> {
        if let Some(answer) = self.decided(project, id, digest) {
            return Ok(self.with_request(answer));
        }
        // What people write is brought to the one form that certificates use.
        let names = csr
            .names
            .iter()
            .map(|name| Host::parse(name).map(|host| host.as_str().to_owned()))
            .collect::<Result<Vec<String>, _>>()
            .map_err(|error| {
                Box::new(Problem::new(
                    Code::Malformed,
                    error.to_string(),
                    "give names such as www.example.com with --host",
                ))
            })?;
        let (kind, shown) = of_new(csr.key);
        let command = |spki, request| command::CreateCsr {
            name: csr.name.clone(),
            spki: Digest(spki),
            key: shown,
            names: names.clone(),
            request: Digest(request),
        };
        // A key of RSA takes seconds of a processor: not for a name that is taken.
        if let Err(problem) = self.foreseen(project, asker, &command([0; 32], [0; 32]).into()) {
            // The same command may have been decided meanwhile, on another connection.
            return match self.decided(project, id, digest) {
                Some(answer) => Ok(self.with_request(answer)),
                None => Err(problem),
            };
        }
        let turn = self.examinations.take(project).await;
        let of = names.clone();
        let (key, request) = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let key = keyring::PrivateKey::generate(kind).map_err(|e| later(&e))?;
            let request = keyring::request::signing_request(&key, &of).map_err(|e| later(&e))?;
            Ok::<_, Box<Problem>>((key, request))
        })
        .await
        .map_err(|_| later(&"making a key ended early"))??;
        let objects = vec![(sha256(&request), request)];
        let spki = key.spki_sha256();
        self.store(project, &objects, Some(key)).await?;
        let command = command(spki, objects[0].0);
        Ok(self.with_request(self.decide(ask(command.into(), objects)).await))
    }

    /// Adds the request that an outcome names: that of the first time, whichever was made last.
    fn with_request(&self, mut answer: Answer) -> Answer {
        if let Answer::Accepted(accepted) = &mut answer
            && let Some(digest) = of_event(accepted, "csr.created", "request")
            && let Some(pem) = request_pem(&Tables::of(&self.ledger), digest)
        {
            accepted.more.insert("csr".to_owned(), json!(pem));
        }
        answer
    }

    /// `certificate.export`: once it is in the log that the key leaves, the vault opens it and seals it to the asker's key.
    pub(super) async fn export(
        &self,
        export: ExportCertificate,
        ask: impl FnOnce(Command) -> Ask,
        project: &Slug,
    ) -> Result<Answer, Box<Problem>> {
        let info = [EXPORT_INFO.as_bytes(), b"\0", project.as_str().as_bytes()].concat();
        let public = export.recipient.0;
        // A point of low order would make the secret one that everybody knows.
        if keyring::hpke::seal(&public, &info, b"", b"").is_err() {
            return refuse(
                Code::Malformed,
                "the recipient is not an X25519 public key that can be sealed to",
                "make a key pair for each export; `chancery certificate export` does",
            );
        }
        let command = command::ExportCertificate {
            name: export.name,
            version: export.version,
            recipient: Digest(sha256(&public)),
        };
        let answer = self.decide(ask(command.into())).await;
        let Answer::Accepted(mut accepted) = answer else {
            return Ok(answer);
        };
        let gone = || {
            let mut problem = Box::new(Problem::new(
                Code::NotFound,
                "the export is in the log, but the certificate or its key has been deleted since",
                "nothing is left to export",
            ));
            problem.sequence = Some(accepted.sequence);
            problem
        };
        // Asked again later, the first outcome stands; what has been forbidden since is forbidden.
        let tables = Tables::of(&self.ledger);
        if !tables.project(project.as_str()).is_some_and(|p| p.export) {
            return refuse(
                Code::Unauthorized,
                "export of private keys is off for this project",
                "an operator can turn it on: chancery project set PROJECT --export on",
            );
        }
        let event = accepted
            .events
            .iter()
            .find(|e| e.event == "certificate.exported");
        let certificate: Option<Certificate> = event
            .and_then(|e| serde_json::from_value(e.data["id"].clone()).ok())
            .and_then(|id| tables.certificate(id))
            .filter(|c| !c.deleted);
        let version = event.and_then(|e| e.data["version"].as_u64());
        let (Some(certificate), Some(number)) = (certificate, version) else {
            return Err(gone());
        };
        let version = certificate
            .versions
            .iter()
            .find(|v| u64::from(v.version) == number);
        let (Some(version), Some(chain)) = (version, chain_pem(&tables, version)) else {
            return Err(gone());
        };
        drop(tables);
        let (owner, spki) = (project.as_str().to_owned(), version.facts.spki.0);
        let sealed = vault::with(&self.vault, move |core| {
            let key = core.keyring.open_private_key(&owner, &spki)?;
            Ok::<_, keyring::VaultError>(keyring::hpke::seal(
                &public,
                &info,
                b"",
                key.danger_to_pkcs8_der().expose(),
            ))
        })
        .await
        .map_err(|e| later(&e))?;
        let sealed = match sealed {
            Ok(Ok(sealed)) => sealed,
            Err(keyring::VaultError::NotFound) => return Err(gone()),
            Ok(Err(error)) => return Err(later(&error)),
            Err(error) => return Err(later(&error)),
        };
        let encode = |bytes: &[u8]| data_encoding::BASE64URL_NOPAD.encode(bytes);
        for (field, value) in [
            ("name", json!(certificate.name)),
            ("version", json!(version.version)),
            ("chain", json!(chain)),
            (
                "key",
                json!({"enc": encode(&sealed.enc), "ct": encode(&sealed.ct)}),
            ),
        ] {
            accepted.more.insert(field.to_owned(), value);
        }
        Ok(Answer::Accepted(accepted))
    }

    /// `certificate.move`: the keys that the move may need are sealed for the other project before it is decided. The old ones
    /// go as with a deletion.
    pub(super) async fn move_certificate(
        &self,
        moved: command::MoveCertificate,
        digest: [u8; 32],
        ask: impl FnOnce(Command) -> Ask,
        (project, asker, id): (&Slug, &Asker, Uuid),
    ) -> Result<Answer, Box<Problem>> {
        if let Some(answer) = self.decided(project, id, digest) {
            return Ok(answer);
        }
        // The revision is read before the decision is foreseen: with it, no version comes in between whose key is not there.
        let certificate =
            Tables::of(&self.ledger).certificate_named(moved.project.as_str(), moved.name.as_str());
        let mut moved = moved;
        let expect = moved.expect.or(certificate.as_ref().map(|c| c.revision));
        moved.expect = expect;
        let command = Command::from(moved.clone());
        if let Err(problem) = self.foreseen(project, asker, &command) {
            return self.decided(project, id, digest).ok_or(problem);
        }
        if let Some(certificate) = &certificate
            && let Err(problem) = self.trusted_there(certificate, &moved).await
        {
            return self.decided(project, id, digest).ok_or(problem);
        }
        if let Some(certificate) = certificate.filter(|c| c.kind == CertificateKind::Server) {
            let mut spkis: Vec<[u8; 32]> = certificate
                .versions
                .iter()
                .filter(|v| {
                    matches!(
                        v.status,
                        Status::Ready | Status::Verifying | Status::Expired
                    )
                })
                .map(|v| v.facts.spki.0)
                .collect();
            spkis.sort_unstable();
            spkis.dedup();
            let (from, to) = (moved.project.to_string(), moved.to.to_string());
            vault::with(&self.vault, move |core| core.reseal(&from, &to, &spkis))
                .await
                .and_then(|done| done)
                .map_err(|e| later(&e))?;
        }
        Ok(self.decide(ask(command)).await)
    }

    /// What the verifier will find in the project that a certificate goes to. What is ready by grace of a CA or an intermediate
    /// that only the old project knows would be in error there, and by then the old one and its key are gone.
    async fn trusted_there(
        &self,
        certificate: &Certificate,
        moved: &command::MoveCertificate,
    ) -> Result<(), Box<Problem>> {
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        // The one that goes over; without one, the registrar says no.
        let version = certificate.versions.iter().rfind(|v| v.usable(now));
        let Some(version) = version.filter(|_| certificate.kind == CertificateKind::Server) else {
            return Ok(());
        };
        let turn = self.examinations.take(&moved.to).await;
        let (ledger, roots, to) = (self.ledger.clone(), self.roots.clone(), moved.to.clone());
        let digests = version.facts.chain.clone();
        let judged = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let tables = Tables::of(&ledger);
            let mut chain = Vec::with_capacity(digests.len());
            for digest in &digests {
                let object = tables
                    .0
                    .object(&digest.0)
                    .unwrap_or_else(|error| fatal("the ledger cannot be read", &error));
                chain.push(CertificateDer::from(object.ok_or_else(|| {
                    Reason::new(
                        Code::NoCertificate,
                        "a certificate of the chain is missing from the content store",
                        "replace the certificate before it is moved",
                    )
                })?));
            }
            drop(tables);
            judge_in(&ledger, to.as_str(), &chain, &roots, now)
        })
        .await
        .map_err(|_| later(&"examination ended early"))?;
        judged.map(drop).map_err(|reason| {
            Box::new(match reason.code {
                Code::ChainIncomplete => Problem::new(
                    reason.code,
                    format!(
                        "the project {} knows neither the CA nor the intermediate that issued the certificate: there it would \
                         be in error",
                        moved.to
                    ),
                    format!(
                        "add the CA to the target project first: chancery --project {} certificate add NAME --kind ca --chain \
                         ca.pem --region REGION",
                        moved.to
                    ),
                ),
                _ => Problem::of(vec![reason]),
            })
        })
    }
}

/// A digest out of the event of this name in an answer.
fn of_event(accepted: &Accepted, event: &str, field: &str) -> Option<Digest> {
    let happened = accepted.events.iter().find(|e| e.event == event)?;
    let value: Value = happened.data.get(field)?.clone();
    serde_json::from_value(value).ok()
}
