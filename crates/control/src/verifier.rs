//! The verifier: looks at what came in with the world's eyes, and tells the registrar what it found.
//!
//! That is trust, which roots a chain leads to, and whether its CA has taken it back ([`revocation`](crate::revocation)).
//! What it owes stands in the table of unverified versions, so a restart or a lost wake-up loses nothing, and its command's
//! id follows from the version, so that a verdict is given once.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::prelude::*;
use rustls_pki_types::CertificateDer;

use lifecycle::command::VerifyCertificate;
use lifecycle::event::{CertificateKind, Trust};
use lifecycle::names::CertificateId;
use lifecycle::rejection::{Code, Reason};
use lifecycle::state::State;
use lifecycle::store::{Parts, Read, Table};
use wire::envelope::Envelope;

use crate::chain::{Known, Path, judge_trust};
use crate::distribution::Wake;
use crate::registrar::{Ask, Registrar};
use crate::revocation::{self, Revocation};
use crate::tables::{Tables, fatal};

/// Verifications at once.
const AT_ONCE: usize = 64;
/// Owed versions that are looked at in one turn.
const TURN: usize = 1_024;

/// The actor.
pub struct Verifier {
    ledger: ledger::Ledger,
    registrar: Addr<Registrar>,
    roots: Arc<Vec<CertificateDer<'static>>>,
    revocation: Arc<Revocation>,
    /// For rehearsals: how long each verification takes at least.
    delay: Duration,
    working: Arc<Mutex<HashSet<(CertificateId, u32)>>>,
    at_once: Arc<tokio::sync::Semaphore>,
    runtime: tokio::runtime::Handle,
}

impl Verifier {
    /// Starts it.
    pub fn spawn(
        ledger: ledger::Ledger,
        registrar: Addr<Registrar>,
        roots: Vec<CertificateDer<'static>>,
        revocation: Arc<Revocation>,
        delay: Duration,
        runtime: tokio::runtime::Handle,
    ) -> Addr<Verifier> {
        Verifier::start_in_arbiter(&Arbiter::new().handle(), move |ctx| {
            ctx.set_mailbox_capacity(64);
            Verifier {
                ledger,
                registrar,
                roots: Arc::new(roots),
                revocation,
                delay,
                working: Arc::default(),
                at_once: Arc::new(tokio::sync::Semaphore::new(AT_ONCE)),
                runtime,
            }
        })
    }

    fn work(&mut self) {
        let tables = Tables::of(&self.ledger);
        for (row, _) in tables.scan(Table::Unverified, &[], None, TURN) {
            let mut parts = Parts::of(&row);
            let (id, version) = (
                CertificateId(parts.number()),
                u32::try_from(parts.number()).unwrap_or(0),
            );
            let mut working = self
                .working
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            if working.contains(&(id, version)) {
                continue;
            }
            let Ok(permit) = Arc::clone(&self.at_once).try_acquire_owned() else {
                return;
            };
            working.insert((id, version));
            drop(working);
            let (ledger, registrar, roots, delay) = (
                self.ledger.clone(),
                self.registrar.clone(),
                Arc::clone(&self.roots),
                self.delay,
            );
            let (working, runtime) = (Arc::clone(&self.working), self.runtime.clone());
            let revocation = Arc::clone(&self.revocation);
            self.runtime.spawn(async move {
                tokio::time::sleep(delay).await;
                let looks = revocation.enabled();
                let judged = runtime
                    .spawn_blocking(move || judge(&ledger, id, version, &roots, looks))
                    .await;
                // Whoever waits for a CA's answer works no more, and lets others work.
                drop(permit);
                if let Ok(Some((verdict, job, upload))) = judged {
                    let revoked = match job {
                        Some(job) => revocation.came_in(job).await,
                        None => None,
                    };
                    let verdict = match revoked {
                        Some(reasons) => verdict.and(Err(reasons)),
                        None => verdict,
                    };
                    tracing::debug!(
                        correlation = upload,
                        certificate = %id,
                        version,
                        outcome = match &verdict {
                            Ok(_) => "ready",
                            Err(_) => "error",
                        },
                        code = verdict
                            .as_ref()
                            .err()
                            .and_then(|reasons| reasons.first())
                            .map(|reason| reason.code.as_str()),
                        "verified"
                    );
                    let command = VerifyCertificate {
                        id,
                        version,
                        verdict,
                    };
                    let about = format!("certificate.verify {id} {version}");
                    let _ = registrar
                        .send(Ask::internal("verifier", &about, command.into()))
                        .await;
                }
                working
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .remove(&(id, version));
            });
        }
    }
}

type Verdict = Result<Trust, Vec<Reason>>;

/// Judges one version as the world sees it now. If it is trusted and points anywhere, its revocation is to be looked up.
fn judge(
    ledger: &ledger::Ledger,
    id: CertificateId,
    version: u32,
    roots: &[CertificateDer<'static>],
    looks: bool,
) -> Option<(Verdict, Option<revocation::Job>, Option<String>)> {
    let tables = Tables::of(ledger);
    let certificate = tables.certificate(id)?;
    let version = certificate.version(version)?;
    // The upload's id stands in its event, so that log lines tell which command a verdict belongs to.
    let upload = (tables.0.event(version.added).ok().flatten())
        .and_then(|event| Envelope::decode(&event).ok())
        .map(|event| event.correlation);
    let mut chain = Vec::new();
    for hash in &version.facts.chain {
        match tables.0.object(&hash.0) {
            Ok(Some(der)) => chain.push(CertificateDer::from(der)),
            Ok(None) => {
                let reason = Reason::new(
                    Code::NoCertificate,
                    "a certificate of the chain is missing from the content store",
                    "add the certificate again",
                );
                return Some((Err(vec![reason]), None, upload));
            }
            Err(error) => fatal("the ledger cannot be read", &error),
        }
    }
    drop(tables);
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    if certificate.kind == CertificateKind::Ca {
        return Some((Ok(Trust::Private), None, upload));
    }
    // A version whose end comes while it waits is ready and expired, not in error.
    let at = now.clamp(
        version.facts.not_before,
        (version.facts.not_after - 1).max(version.facts.not_before),
    );
    let judged = judge_in(ledger, certificate.project.as_str(), &chain, roots, at);
    let verdict = judged.map(|path| path.trust).map_err(|reason| vec![reason]);
    let job = verdict.as_ref().ok().filter(|_| looks).and_then(|trust| {
        let more = || revocation::others(ledger, certificate.project.as_str());
        revocation::Job::of(&certificate, version, &chain, *trust, roots, more)
    });
    Some((verdict, job, upload))
}

/// Judges a server's chain, leaf first, as a project knows the world: with the configured roots, and when these do not lead
/// anywhere with what the project has shown. `at` is in Unix seconds.
///
/// # Errors
/// Those of [`judge_trust`].
pub(crate) fn judge_in(
    ledger: &ledger::Ledger,
    project: &str,
    chain: &[CertificateDer<'_>],
    roots: &[CertificateDer<'static>],
    at: i64,
) -> Result<Path, Reason> {
    let judge = |roots: &[_], issuers: &[_]| judge_trust(chain, Known { roots, issuers }, at);
    match judge(roots, &[]) {
        Err(reason) if reason.code == Code::ChainIncomplete => {
            let (mut cas, issuers) = crate::ingestion::shown(ledger, project);
            cas.extend(roots.iter().cloned());
            judge(&cas, &issuers)
        }
        judged => judged,
    }
}

impl Actor for Verifier {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(Duration::from_millis(500), |actor, _| actor.work());
        self.work();
    }
}

impl Handler<Wake> for Verifier {
    type Result = ();

    fn handle(&mut self, _: Wake, _: &mut Self::Context) {
        self.work();
    }
}
