//! Revocation: whether CAs have taken back what is served.
//!
//! Each certificate of a served chain that is not a root is looked up where it points to: the server's own by OCSP and then
//! by CRL, CAs the other way round. That happens when a version comes in and once a day. Revoked takes the version out, and
//! its hosts fall back; everything else that goes wrong is a warning, because a CA's outage must not become ours.
//!
//! **When a version comes in**, its verdict waits for the answer, but half a second at most. Without any wait a certificate
//! that is known to be revoked would displace a good one for a moment, since a bad upload must never displace; with a long
//! wait every CA's responder would be on the path from upload to served. What is known in time makes the version `error`
//! with the reason `revoked`, and it never was ready; what is known later revokes it. A certificate without addresses waits
//! for nothing, and neither does one whose host could not be reached a moment ago. Those that wait hold no place that others
//! need, and are few for each project.
//!
//! **Once a day**, in a second that follows from the certificate's id ([`schedule`]).
//!
//! **A version that is revoked stays so**, also when its CA lifts a hold: what was taken out does not come back by itself.
//!
//! * [`points`]: where a certificate points to; [`path`]: which certificates are looked up, and who may answer for them
//! * [`ocsp`], [`crl`]: what is asked and what is believed; [`der`]: reading it
//! * [`fetch`]: asking addresses that a stranger chose

mod answer;
mod crl;
mod der;
mod fetch;
mod look;
mod ocsp;
mod path;
mod points;
mod schedule;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use fetch::{Allowed, Proxy, Wrong};
pub use look::{Look, Part, Status};
pub(crate) use path::{Job, others};

use std::sync::Arc;
use std::time::Duration;

use actix::Addr;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use lifecycle::command::RevokeCertificate;
use lifecycle::event::CertificateKind;
use lifecycle::names::{CertificateId, Slug};
use lifecycle::rejection::Reason;
use lifecycle::state::{self, Certificate, Version};
use lifecycle::store::Key;
use wire::envelope::rfc3339;

use crate::checks::{Checks, Kind};
use crate::registrar::{Ask, Registrar};
use crate::tables::Tables;
use crate::turns::{Turn, Turns};

/// How long a version that comes in waits for the answer.
const PATIENCE: Duration = Duration::from_millis(500);
/// Versions that wait so, in all and of one project. What is more does not wait.
const WAITING: (usize, usize) = (256, 32);
/// Versions that are or shall be looked up, in all and of one project. What is more is left to the daily round.
const OWED: (usize, usize) = (1_024, 128);
/// Versions that are looked up at once, in all and of one project.
const LOOKING: (usize, usize) = (64, 4);

/// How revocation is looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether it is at all.
    pub enabled: bool,
    /// The operator's proxy; then names are resolved and connections made by it.
    pub proxy: Option<Proxy>,
    /// What may be reached although it is not public.
    pub allow: Vec<Allowed>,
    /// How often, at least a second; once a day unless told.
    pub every: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: true,
            proxy: None,
            allow: Vec::new(),
            every: Duration::from_secs(24 * 3_600),
        }
    }
}

/// Looks revocation up, keeps what was found, and commands what follows.
pub struct Revocation {
    settings: Settings,
    looker: look::Looker,
    checks: Checks,
    ledger: ledger::Ledger,
    registrar: Addr<Registrar>,
    roots: Arc<Vec<CertificateDer<'static>>>,
    waiting: Turns<Slug>,
    owed: Turns<Slug>,
    looking: Turns<Slug>,
    runtime: tokio::runtime::Handle,
}

impl Revocation {
    /// Begins, with the daily round.
    pub fn start(
        settings: Settings,
        checks: Checks,
        ledger: ledger::Ledger,
        registrar: Addr<Registrar>,
        roots: Vec<CertificateDer<'static>>,
        runtime: tokio::runtime::Handle,
    ) -> Arc<Self> {
        let enabled = settings.enabled;
        let revocation = Arc::new(Self {
            looker: look::Looker::new(&settings),
            settings,
            checks,
            ledger,
            registrar,
            roots: Arc::new(roots),
            waiting: Turns::new(WAITING.0, WAITING.1),
            owed: Turns::new(OWED.0, OWED.1),
            looking: Turns::new(LOOKING.0, LOOKING.1),
            runtime: runtime.clone(),
        });
        if enabled {
            runtime.spawn(schedule::rounds(Arc::clone(&revocation)));
        }
        revocation
    }

    /// Whether it is looked up at all.
    pub(crate) fn enabled(&self) -> bool {
        self.settings.enabled
    }

    /// Looks up a version that came in, and gives the reasons if it is known within half a second that it is revoked. The look
    /// goes on beyond that by itself.
    pub(crate) async fn came_in(self: &Arc<Self>, job: Job) -> Option<Vec<Reason>> {
        let Some(owed) = self.owed.try_take(&job.project) else {
            metrics::counter!("chancery_revocation_checks_total", "outcome" => "skipped")
                .increment(1);
            return None;
        };
        let waits = self.waiting.try_take(&job.project);
        let (tell, mut told) = tokio::sync::oneshot::channel();
        let this = Arc::clone(self);
        self.runtime.spawn(async move {
            let (id, version) = (job.id, job.version);
            let reasons = this.look(job, owed).await;
            // Nobody waits any more: then it is ready already, or never will be.
            if let Err(Some(reasons)) = tell.send(reasons) {
                this.revoke(id, version, reasons).await;
            }
        });
        if waits.is_some()
            && let Ok(told) = tokio::time::timeout(PATIENCE, &mut told).await
        {
            return told.ok().flatten();
        }
        told.close();
        told.try_recv().ok().flatten()
    }

    /// Looks up a version that is in use, and takes it out if it was revoked.
    async fn again(self: Arc<Self>, job: Job, owed: Turn) {
        let (id, version) = (job.id, job.version);
        if let Some(reasons) = self.look(job, owed).await {
            self.revoke(id, version, reasons).await;
        }
    }

    /// The reasons, if it was revoked.
    async fn look(&self, job: Job, owed: Turn) -> Option<Vec<Reason>> {
        let turn = self.looking.take(&job.project).await;
        let look = self.looker.look(&job).await;
        drop((turn, owed));
        metrics::counter!("chancery_revocation_checks_total", "outcome" => look.status.as_str())
            .increment(1);
        let reasons = look.reasons(job.name.as_str());
        match serde_json::to_vec(&look) {
            Ok(found) => {
                let row = row(job.id, job.version);
                self.checks.put(Kind::Revocation, &row, now(), found);
            }
            Err(error) => tracing::error!(%error, "a look at revocation cannot be kept"),
        }
        (!reasons.is_empty()).then_some(reasons)
    }

    async fn revoke(&self, id: CertificateId, version: u32, reasons: Vec<Reason>) {
        let command = RevokeCertificate {
            id,
            version,
            reasons,
        };
        tracing::warn!(certificate = %id, version, "a CA revoked what is in use; it is taken out");
        let about = format!("certificate.revoke {id} {version}");
        // What is lost on the way is found again by the next round.
        let _ = self
            .registrar
            .send(Ask::internal("verifier", &about, command.into()))
            .await;
    }
}

/// The key of a version's row.
fn row(id: CertificateId, version: u32) -> Vec<u8> {
    Key::new().number(id.0).number(u64::from(version)).done()
}

fn now() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}

/// What the views show of a version: `revocation`, and its part of `warnings`.
pub(crate) fn shown(
    checks: &Checks,
    tables: &Tables,
    certificate: &Certificate,
    version: &Version,
) -> (Value, Vec<Value>) {
    if certificate.kind != CertificateKind::Server {
        return (Value::Null, Vec::new());
    }
    let check = checks.get(Kind::Revocation, &row(certificate.id, version.version));
    let look = check
        .as_ref()
        .and_then(|check| serde_json::from_slice::<Look>(&check.found).ok());
    let checked = check.filter(|_| look.is_some()).map(|check| check.time);
    let status = match &look {
        // The log knows better than a look that was lost, or came before.
        _ if version.status == state::Status::Revoked => Status::Revoked,
        Some(look) => look.status,
        None => match path::points_anywhere(tables, version) {
            true => Status::Unknown,
            false => Status::None,
        },
    };
    let warnings = match status {
        Status::Revoked => Vec::new(),
        _ => look.as_ref().map(Look::warnings).unwrap_or_default(),
    };
    let shown = json!({
        "status": status,
        "checked": checked.map(rfc3339),
        "source": look.as_ref().and_then(|look| look.source.clone()),
    });
    (shown, warnings)
}
