//! Ingestion: what comes through the door is read, refused or made ready, and handed to the registrar.
//!
//! A certificate is examined from its bytes, its key is opened with the ingestion key, checked against the leaf, and sealed
//! anew by the vault, before the registrar hears of it. What the bytes alone decide is refused here and leaves no trace in
//! the log. Examination is work for the processor and runs on a bounded pool.

mod custody;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, RwLock};

use actix::Addr;
use bytes::Bytes;
use serde_json::{Value, json};
use uuid::Uuid;

use keyring::{IngestionKeys, PrivateKey, SealedKey};
use lifecycle::command::{AddCertificate, Asker, Command, ReplaceCertificate};
use lifecycle::decide::rights;
use lifecycle::event::{CertificateKind, Facts};
use lifecycle::names::Slug;
use lifecycle::rejection::Code;
use lifecycle::state::{State, key};
use lifecycle::store::{Read as _, Table, decode};
use rustls_pki_types::CertificateDer;
use wire::answer::{Answer, Problem};
use wire::request::{self, Asked};

use crate::rate::Buckets;
use crate::registrar::{Ask, Registrar, answer_of};
use crate::tables::{Tables, fatal};
use crate::turns::Turns;
use crate::vault::{self, Vault};
use crate::{access, chain};

/// Ingestion, shared by all requests.
pub struct Ingestion {
    /// The ledger, for what a refusal depends on.
    pub ledger: ledger::Ledger,
    /// The registrar.
    pub registrar: Addr<Registrar>,
    /// The vault.
    pub vault: Addr<Vault>,
    /// The content store's stream.
    pub objects: Arc<bus::objects::Objects>,
    /// Accounts, users and enrolment.
    pub access: Arc<access::Access>,
    /// The keys that commands are sealed to.
    pub keys: Arc<RwLock<IngestionKeys>>,
    /// Roots that the operator configured.
    pub roots: Vec<rustls_pki_types::CertificateDer<'static>>,
    /// Places for examination.
    pub examinations: Turns<Slug>,
    /// Claims proven in the DNS.
    pub prover: crate::prover::Prover,
    /// Commands that are answered before they are decided.
    pub queue: bus::queue::Queue,
    /// What a project may upload: counted before anything is examined or kept, unlike the registrar's count of what is decided.
    pub uploads: Mutex<Buckets>,
    /// What a project may put into the queue.
    pub queued: Mutex<Buckets>,
}

/// A command as it came.
pub struct Incoming {
    /// The project of the subject.
    pub project: Slug,
    /// Its noun.
    pub noun: String,
    /// Its verb.
    pub verb: String,
    /// Who asks.
    pub asker: Asker,
    /// The idempotency key of the header.
    pub id: Option<Uuid>,
    /// The body.
    pub body: Bytes,
    /// To be answered as soon as it is durable, and decided afterwards.
    pub queued: bool,
}

/// Bytes of a body above which it is read where examinations are done.
const LARGE: usize = 16 * 1024;

/// What comes with a certificate: its facts, and the certificates to keep.
struct Brought {
    facts: Facts,
    objects: Vec<([u8; 32], Vec<u8>)>,
    key: Option<PrivateKey>,
    repairs: Vec<chain::repair::Repair>,
}

impl Ingestion {
    /// Takes a command in, to its answer.
    pub async fn take(&self, incoming: Incoming) -> Answer {
        match self.accept(incoming).await {
            Ok(answer) => answer,
            Err(problem) => Answer::Problem(problem),
        }
    }

    async fn accept(&self, incoming: Incoming) -> Result<Answer, Box<Problem>> {
        let Incoming {
            project,
            noun,
            verb,
            asker,
            id,
            body,
            queued,
        } = incoming;
        // Rights and rate come before the body: reading a large one is work, and not for the threads that serve everybody.
        let admitted = self.admit(&project, &asker, &noun, &verb);
        let upload = noun == "certificate" && matches!(verb.as_str(), "add" | "replace" | "csr");
        let admitted = match upload {
            true => admitted.and_then(|()| self.admit_upload(&asker)),
            false => admitted,
        };
        if let Err(mut problem) = admitted {
            problem.id = id;
            return Err(problem);
        }
        let subject = (project.clone(), noun.clone(), verb.clone());
        let large = body.len() > LARGE;
        let read = move || read(&subject.0, &subject.1, &subject.2, id, &body);
        let Read { id, asked, fields } = if large {
            let turn = self.examinations.take(&project).await;
            let read = move || {
                let _turn = turn;
                read()
            };
            tokio::task::spawn_blocking(read)
                .await
                .map_err(|_| later(&"reading ended early"))??
        } else {
            read()?
        };
        tracing::Span::current().record("correlation", tracing::field::display(id));
        let with_id = |mut problem: Box<Problem>| {
            problem.id = Some(id);
            problem
        };
        let ask = |digest, command, objects| Ask {
            space: project.as_str().to_owned(),
            id,
            digest,
            project: project.clone(),
            asker: asker.clone(),
            name: format!("{noun}.{verb}"),
            command,
            objects,
            paid: false,
        };
        let plain = || digest(&project, &noun, &verb, &fields, None);
        let name = format!("{noun}.{verb}");
        let queueable = wire::subject::PROJECT_COMMANDS.contains(&name.as_str())
            && !wire::subject::NOT_QUEUED.contains(&name.as_str());
        if queued && !queueable {
            return refuse(
                Code::NotFound,
                "this command is not taken into the queue",
                "ask it below cmd instead of queue",
            )
            .map_err(with_id);
        }
        let answer = match asked {
            Asked::Ready(command) => {
                let follow = self.follow_up(&command);
                let answer = self.settle(ask(plain(), command, Vec::new()), queued).await;
                if let (Answer::Accepted(_), Some(project)) = (&answer, follow) {
                    self.access
                        .push_account(&project)
                        .await
                        .map_err(|e| with_id(later(&e)))?;
                }
                answer
            }
            Asked::Add(add) => {
                let brought = self
                    .examine(&project, add.kind, add.chain, add.key)
                    .await
                    .map_err(with_id);
                let mut brought = match brought {
                    Ok(brought) => brought,
                    Err(problem) => {
                        return self.first_outcome(&project, id, &problem).ok_or(problem);
                    }
                };
                let digest = digest(&project, &noun, &verb, &fields, Some(&brought.facts));
                if let Some(answer) = self.decided(&project, id, digest) {
                    return Ok(with_repairs(answer, &brought.repairs));
                }
                self.holds_key(&project, add.kind, &brought)
                    .await
                    .map_err(with_id)?;
                self.keep(&project, &mut brought).await.map_err(with_id)?;
                let command = AddCertificate {
                    name: add.name,
                    kind: add.kind,
                    regions: add.regions,
                    standby: add.standby,
                    facts: brought.facts,
                };
                let answer = self
                    .settle(ask(digest, command.into(), brought.objects), queued)
                    .await;
                with_repairs(answer, &brought.repairs)
            }
            Asked::Replace(replace) => {
                let kind = Tables::of(&self.ledger)
                    .certificate_named(project.as_str(), replace.name.as_str())
                    .map_or(CertificateKind::Server, |c| c.kind);
                let brought = self
                    .examine(&project, kind, replace.chain, replace.key)
                    .await
                    .map_err(with_id);
                let mut brought = match brought {
                    Ok(brought) => brought,
                    Err(problem) => {
                        return self.first_outcome(&project, id, &problem).ok_or(problem);
                    }
                };
                let digest = digest(&project, &noun, &verb, &fields, Some(&brought.facts));
                if let Some(answer) = self.decided(&project, id, digest) {
                    return Ok(with_repairs(answer, &brought.repairs));
                }
                self.holds_key(&project, kind, &brought)
                    .await
                    .map_err(with_id)?;
                self.keep(&project, &mut brought).await.map_err(with_id)?;
                let command = ReplaceCertificate {
                    name: replace.name,
                    facts: brought.facts,
                    expect: replace.expect,
                };
                let answer = self
                    .settle(ask(digest, command.into(), brought.objects), queued)
                    .await;
                with_repairs(answer, &brought.repairs)
            }
            Asked::Csr(csr) => {
                let digest = plain();
                let ask = |command, objects| ask(digest, command, objects);
                self.create_csr(csr, digest, ask, (&project, &asker, id))
                    .await
                    .map_err(with_id)?
            }
            Asked::Export(export) => {
                let ask = |command| ask(plain(), command, Vec::new());
                self.export(export, ask, &project).await.map_err(with_id)?
            }
            Asked::Move(moved) => {
                let digest = plain();
                let ask = |command| ask(digest, command, Vec::new());
                self.move_certificate(moved, digest, ask, (&project, &asker, id))
                    .await
                    .map_err(with_id)?
            }
            Asked::Region(region) => {
                let name = region.region.clone();
                let known = Tables::of(&self.ledger).region(name.as_str()).is_some();
                let (version, public) = vault::with(&self.vault, move |core| {
                    if !known && core.keyring.region_key_public(name.as_str())?.is_none() {
                        let blob = core.keyring.new_region_key(name.as_str())?;
                        core.publish(vec![blob])?;
                    }
                    Ok::<_, vault::Error>(
                        core.keyring
                            .region_key_public(name.as_str())?
                            .unwrap_or_default(),
                    )
                })
                .await
                .and_then(|done| done)
                .map_err(|e| with_id(later(&e)))?;
                let command = lifecycle::command::CreateRegion {
                    region: region.region,
                    key: lifecycle::names::Digest(public),
                    key_version: version,
                };
                self.decide(ask(plain(), command.into(), Vec::new())).await
            }
            Asked::Check(_) if queued => {
                return refuse(
                    Code::NotFound,
                    "this command is not taken into the queue",
                    "ask it below cmd instead of queue",
                )
                .map_err(with_id);
            }
            Asked::Check(check) => {
                let checked = self.prover.check(&project, &asker, id, &check.host).await;
                return checked.map(Answer::Accepted);
            }
            Asked::Enrol(enrol) => {
                return self
                    .access
                    .token(&enrol, id)
                    .map(|token| token_answer(id, self.ledger.head().sequence, &enrol, token))
                    .map_err(with_id);
            }
            Asked::Evict(evict) => {
                let answer = self
                    .decide(ask(plain(), evict.clone().into(), Vec::new()))
                    .await;
                if matches!(answer, Answer::Accepted(_)) {
                    self.access
                        .evicted(&self.vault, &self.registrar, &evict)
                        .await
                        .map_err(|e| with_id(later(&e)))?;
                }
                answer
            }
            Asked::Access(create) => {
                let access = Arc::clone(&self.access);
                access::rights_of(&create.rights).map_err(|p| with_id(Box::new(p)))?;
                let mut answer = self
                    .decide(ask(plain(), create.clone().into(), Vec::new()))
                    .await;
                // Asked again after the access was revoked: the first outcome stands, but nothing is signed any more.
                let record =
                    Tables::of(&self.ledger).access(create.project.as_str(), create.name.as_str());
                if let Answer::Accepted(accepted) = &mut answer
                    && record.is_some_and(|record| !record.revoked)
                {
                    let jwt = access.user_jwt(&create).map_err(|p| with_id(Box::new(p)))?;
                    accepted.more.insert("jwt".to_owned(), Value::String(jwt));
                }
                answer
            }
        };
        Ok(answer)
    }

    /// Whose NATS account a command changes.
    fn follow_up(&self, command: &Command) -> Option<Slug> {
        match command {
            Command::CreateProject(c) => Some(c.project.clone()),
            Command::SuspendProject(c) | Command::ResumeProject(c) => Some(c.project.clone()),
            Command::DeleteProject(c) => Some(c.project.clone()),
            Command::RevokeAccess(c) => Some(c.project.clone()),
            _ => None,
        }
    }

    /// Rights are checked by the server and the door; here once more, against the record in the log.
    fn admit(
        &self,
        project: &Slug,
        asker: &Asker,
        noun: &str,
        verb: &str,
    ) -> Result<(), Box<Problem>> {
        let record = Tables::of(&self.ledger).access(asker.project.as_str(), &asker.actor);
        let no = |why: &str| {
            Err(Box::new(Problem::new(
                Code::Unauthorized,
                why,
                "ask the operator for access",
            )))
        };
        match record {
            Some(access) if access.revoked => no("this access was revoked"),
            Some(access) if !rights::allow(&access.rights, &format!("cmd.{noun}.{verb}")) => {
                no("the rights of this user do not allow this command")
            }
            Some(_) if asker.operator || asker.project == *project => Ok(()),
            Some(_) => no("this belongs to another project"),
            None => no("this user is not known"),
        }
    }

    /// The outcome of a command that was decided before and is asked again when its certificate has expired: it still has the
    /// outcome that it had. Whatever else is wrong with what was sent was so the first time too, so it is another command.
    fn first_outcome(&self, project: &Slug, id: Uuid, problem: &Problem) -> Option<Answer> {
        if problem.reasons.iter().any(|r| r.code != Code::Expired) {
            return None;
        }
        let tables = Tables::of(&self.ledger);
        let outcome = tables
            .0
            .outcome(project.as_str(), id.as_bytes())
            .ok()
            .flatten()?;
        Some(crate::registrar::answer_of(
            &tables,
            &outcome,
            outcome.digest,
        ))
    }

    /// Has a command decided, or puts it into the queue.
    ///
    /// What is queued is counted when it is put there and not when it is decided: one project's commands that are over its
    /// rate would otherwise fill the queue of all.
    async fn settle(&self, mut ask: Ask, queued: bool) -> Answer {
        if !queued {
            return self.decide(ask).await;
        }
        let taken = match ask.asker.operator {
            true => Ok(()),
            false => lock(&self.queued).take(&ask.project),
        };
        if let Err(after) = taken {
            let mut problem = Problem::later(
                Code::RateLimited,
                "the project has sent too many commands",
                after.max(10),
            );
            problem.id = Some(ask.id);
            return Answer::Problem(Box::new(problem));
        }
        ask.paid = true;
        crate::queue::put(&self.queue, &ask).await
    }

    async fn decide(&self, ask: Ask) -> Answer {
        let id = ask.id;
        self.registrar.send(ask).await.unwrap_or_else(|_| {
            let mut problem = Problem::later(Code::Busy, "the registrar is not there", 1_000);
            problem.id = Some(id);
            Answer::Problem(Box::new(problem))
        })
    }

    /// From the text of a chain and a sealed key to facts that the registrar can decide on, the key kept by the vault.
    async fn examine(
        &self,
        project: &Slug,
        kind: CertificateKind,
        text: String,
        key: Option<Value>,
    ) -> Result<Brought, Box<Problem>> {
        let turn = self.examinations.take(project).await;
        let sealed = key.map(read_sealed).transpose()?;
        if kind == CertificateKind::Ca && sealed.is_some() {
            return refuse(
                Code::KeyUnexpected,
                "a CA certificate never comes with its key",
                "leave --key away; the key stays with the CA",
            );
        }
        let roots = self.roots.clone();
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let keys = Arc::clone(&self.keys);
        let ledger = self.ledger.clone();
        let owner = project.as_str().to_owned();
        // Opening the key is as much work as all the rest of it.
        let (examined, repairs, key) = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let opened = sealed
                .map(|sealed| {
                    keys.read()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .open(&owner, &sealed)
                })
                .transpose();
            let key: Option<PrivateKey> = opened.map_err(|error| {
                let code = Code::parse(error.code()).unwrap_or(Code::Malformed);
                Box::new(Problem::new(
                    code,
                    error.to_string(),
                    "ask for the ingestion key again and seal with `chancery seal`",
                ))
            })?;
            let spki = key.as_ref().map(PrivateKey::spki_sha256);
            // Only a chain that does not stand by itself is worth looking through what the project has shown.
            let (examined, repairs) =
                chain::repair::take_in(text.as_bytes(), spki, kind, now, &roots, || {
                    shown(&ledger, &owner)
                })
                .map_err(|reasons| Box::new(Problem::of(reasons)))?;
            Ok::<_, Box<Problem>>((examined, repairs, key))
        })
        .await
        .map_err(|_| later(&"examination ended early"))??;
        let served: usize = examined.chain.iter().map(|der| der.as_ref().len()).sum();
        if kind == CertificateKind::Server && served > chain::MAX_SERVED {
            return refuse(
                Code::TooLarge,
                "the certificate and its intermediates have more than 48 KiB together",
                "spread the names over several certificates, and send the intermediates only",
            );
        }
        let objects = examined
            .facts
            .chain
            .iter()
            .zip(&examined.chain)
            .map(|(hash, der)| (hash.0, der.as_ref().to_vec()))
            .collect();
        Ok(Brought {
            facts: examined.facts,
            objects,
            key,
            repairs,
        })
    }

    /// Makes certificates and key durable before the event that names them: a certificate without its key cannot come to be.
    async fn keep(&self, project: &Slug, brought: &mut Brought) -> Result<(), Box<Problem>> {
        let key = brought.key.take();
        self.store(project, &brought.objects, key).await
    }

    async fn store(
        &self,
        project: &Slug,
        objects: &[([u8; 32], Vec<u8>)],
        key: Option<PrivateKey>,
    ) -> Result<(), Box<Problem>> {
        let bytes: Vec<Bytes> = objects
            .iter()
            .map(|(_, der)| Bytes::copy_from_slice(der))
            .collect();
        let stored = async {
            self.objects
                .put(bytes)
                .await
                .map(drop)
                .map_err(|e| later(&e))
        };
        let sealed = async {
            match key {
                Some(key) => self
                    .vault
                    .send(vault::Seal {
                        project: project.as_str().to_owned(),
                        key,
                    })
                    .await
                    .map_err(|e| later(&e))?
                    .map_err(|e| later(&e)),
                None => Ok(()),
            }
        };
        tokio::try_join!(stored, sealed)?;
        Ok(())
    }

    /// An upload costs an examination and two writes that are synced, and comes to nothing if the registrar says no. So it is
    /// counted here already; otherwise one project could fill the content store and the processor while its log stands still.
    fn admit_upload(&self, asker: &Asker) -> Result<(), Box<Problem>> {
        if asker.operator {
            return Ok(());
        }
        lock(&self.uploads).take(&asker.project).map_err(|after| {
            Box::new(Problem::later(
                Code::RateLimited,
                "the project has uploaded too many certificates",
                after.max(10),
            ))
        })
    }

    /// The answer to a command that was decided before: nothing has to be kept for it again.
    fn decided(&self, project: &Slug, id: Uuid, digest: [u8; 32]) -> Option<Answer> {
        let tables = Tables::of(&self.ledger);
        let outcome = tables
            .0
            .outcome(project.as_str(), id.as_bytes())
            .unwrap_or_else(|error| fatal("the ledger cannot be read", &error))?;
        Some(answer_of(&tables, &outcome, digest))
    }
}

/// An acceptance says what was done to the chain that was sent.
fn with_repairs(mut answer: Answer, repairs: &[chain::repair::Repair]) -> Answer {
    if let Answer::Accepted(accepted) = &mut answer
        && !repairs.is_empty()
    {
        accepted.more.insert("repairs".to_owned(), json!(repairs));
    }
    answer
}

fn lock(buckets: &Mutex<Buckets>) -> std::sync::MutexGuard<'_, Buckets> {
    buckets
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Certificates of a project that are looked through for CAs and intermediates.
const SHOWN_MAX: usize = 500;

/// The CAs that a project has uploaded, and the intermediates that came with its certificates: those of the first
/// [`SHOWN_MAX`] certificates by name.
pub(crate) fn shown(
    ledger: &ledger::Ledger,
    project: &str,
) -> (Vec<CertificateDer<'static>>, Vec<CertificateDer<'static>>) {
    let tables = Tables::of(ledger);
    let (mut cas, mut issuers) = (BTreeSet::new(), BTreeSet::new());
    for (_, id) in tables.scan(Table::CertificateName, &key::text(project), None, SHOWN_MAX) {
        let Some(certificate) = tables.certificate(decode(&id)) else {
            continue;
        };
        for version in &certificate.versions {
            match certificate.kind {
                CertificateKind::Ca => cas.extend(version.facts.chain.iter().copied()),
                CertificateKind::Server => {
                    issuers.extend(version.facts.chain.iter().skip(1).copied())
                }
            }
        }
    }
    let load = |hashes: BTreeSet<lifecycle::names::Digest>| -> Vec<CertificateDer<'static>> {
        let object = |hash: lifecycle::names::Digest| {
            tables
                .0
                .object(&hash.0)
                .unwrap_or_else(|error| fatal("the ledger cannot be read", &error))
        };
        hashes
            .into_iter()
            .take(SHOWN_MAX)
            .filter_map(object)
            .map(CertificateDer::from)
            .collect()
    };
    (load(cas), load(issuers))
}

fn refuse<T>(code: Code, message: &str, hint: &str) -> Result<T, Box<Problem>> {
    Err(Box::new(Problem::new(code, message, hint)))
}

fn later(error: &dyn std::fmt::Display) -> Box<Problem> {
    tracing::warn!(%error, "a command could not be taken in now");
    Box::new(Problem::later(
        Code::Busy,
        "a part that this command needs is not available",
        500,
    ))
}

fn read_sealed(value: Value) -> Result<SealedKey, Box<Problem>> {
    serde_json::from_value(value).map_err(|_| {
        Box::new(Problem::new(
            Code::Malformed,
            "the key is not of the form {\"kid\",\"enc\",\"ct\"}",
            "seal it with `chancery seal`; a key that was sent in another form is to be seen as burnt",
        ))
    })
}

/// A command's body, read.
struct Read {
    id: Uuid,
    asked: Asked,
    /// Its fields without the id, for the digest.
    fields: Value,
}

/// Reads a command's body. The idempotency key is the header's, else the body's field `id`, else a fresh one; the field is
/// no part of the command.
fn read(
    project: &Slug,
    noun: &str,
    verb: &str,
    header: Option<Uuid>,
    body: &[u8],
) -> Result<Read, Box<Problem>> {
    let (id, without_id) = identify(header, body)?;
    let body = without_id.as_deref().unwrap_or(body);
    let parsed = request::parse(project.as_str(), noun, verb, body).and_then(|asked| {
        let body = if body.is_empty() { b"{}" } else { body };
        Ok((asked, request::parse_query(body)?))
    });
    let (asked, fields) = parsed.map_err(|mut problem| {
        problem.id = Some(id);
        Box::new(problem)
    })?;
    Ok(Read { id, asked, fields })
}

/// The idempotency key, and the body without the field that named it, if it was there.
fn identify(header: Option<Uuid>, body: &[u8]) -> Result<(Uuid, Option<Vec<u8>>), Box<Problem>> {
    let absent = || Ok((header.unwrap_or_else(Uuid::now_v7), None));
    // Most bodies have no such field; only those are parsed twice.
    let needle = b"\"id\"";
    if !body.windows(needle.len()).any(|w| w == needle) {
        return absent();
    }
    let Ok(Value::Object(mut fields)) = serde_json::from_slice::<Value>(body) else {
        return absent();
    };
    let Some(field) = fields.remove("id") else {
        return absent();
    };
    let field: Option<Uuid> = field.as_str().and_then(|text| text.parse().ok());
    let (Some(field), true) = (field, header.is_none_or(|header| Some(header) == field)) else {
        return refuse(
            Code::Malformed,
            "the field id is not a UUID, or not that of the header",
            "send one UUIDv7 as Nats-Msg-Id or as id",
        );
    };
    Ok((field, Some(serde_json::to_vec(&fields).unwrap_or_default())))
}

/// SHA-256 of the command's canonical body: its subject and its fields in the order of their names, with a sealed key, which
/// differs each time that it is sealed, replaced by the hash of its public half.
fn digest(
    project: &Slug,
    noun: &str,
    verb: &str,
    fields: &Value,
    facts: Option<&Facts>,
) -> [u8; 32] {
    let mut value = fields.clone();
    if let (Some(facts), Some(fields)) = (facts, value.as_object_mut())
        && fields.contains_key("key")
    {
        fields.insert("key".to_owned(), Value::String(facts.spki.to_string()));
    }
    let canonical = json!([format!("{project}.{noun}.{verb}"), value]).to_string();
    let mut out = [0; 32];
    out.copy_from_slice(
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, canonical.as_bytes()).as_ref(),
    );
    out
}

fn token_answer(id: Uuid, sequence: u64, enrol: &request::EdgeEnrol, token: String) -> Answer {
    let mut more = serde_json::Map::new();
    more.insert("token".to_owned(), Value::String(token));
    more.insert("region".to_owned(), json!(enrol.region));
    more.insert("edge".to_owned(), json!(enrol.edge));
    Answer::Accepted(wire::answer::Accepted {
        id,
        outcome: "accepted".to_owned(),
        sequence,
        events: Vec::new(),
        more,
    })
}
