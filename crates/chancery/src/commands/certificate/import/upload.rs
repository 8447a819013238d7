//! Sends what was planned: as many at once as the other side takes, and no faster than it allows.
//!
//! The number in flight grows while answers come and is halved when `busy` or `rate_limited` is heard, as TCP does it (additive
//! increase, multiplicative decrease); after `retry_after_ms` and a little chance it goes on. A command keeps its id over all
//! attempts, so nothing happens twice, and what became of one whose answer was lost is found by its fingerprint.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use lifecycle::event::CertificateKind;
use lifecycle::names::Slug;
use lifecycle::rejection::Code;
use rustls::pki_types::CertificateDer;
use wire::request::{AddCertificate, ReplaceCertificate};

use super::line::{Line, Verdict};
use super::plan::{Action, Entry};
use super::scan::{Inventory, Opener, load};
use super::there::There;
use super::walk::File;
use crate::client::{BODY_MAX, Client};
use crate::commands::seal::IngestionKey;
use crate::failure::{Failure, Refused};
use crate::material;
use crate::progress::Progress;

/// In flight at first, and at most. The door takes 1,024 of one project, and the disk's syncs are shared by as many as wait.
const WINDOW: (f64, f64) = (8.0, 128.0);
/// How long nothing may be taken before an import gives up.
const PATIENCE: Duration = Duration::from_secs(120);
/// The longest that one `retry_after_ms` is believed.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often an entry may find nobody before the import ends.
const LOST_MAX: u32 = 3;
/// How long an ingestion key is used until the present one is asked for.
const KEY_LIFE: Duration = Duration::from_secs(300);

/// What all uploads share.
pub struct Upload<'a> {
    /// The connection.
    pub client: &'a Client,
    /// The project.
    pub project: &'a Slug,
    /// The folder.
    pub dir: Arc<Path>,
    /// Its files.
    pub files: Arc<[File]>,
    /// Opens what needs a password.
    pub opener: Opener,
    /// What they hold.
    pub inventory: &'a Inventory,
    /// Regions or countries.
    pub regions: &'a [Slug],
    /// As backups.
    pub standby: bool,
    /// For hints.
    pub hint_more: String,
    /// Where people are told why it goes slowly.
    pub progress: Progress,
}

/// An entry that is being sent.
struct Sending {
    group: usize,
    entry: Entry,
    id: Uuid,
    body: Option<Bytes>,
}

/// How an attempt ended.
enum Ended {
    Settled(Line),
    /// To be tried again not before so long.
    Later(Sending, Duration, String),
    /// No other would fare better.
    Pointless(Failure),
    /// Nobody answered; what became of it is not known.
    Lost(Line, Failure),
}

/// How many may be in flight.
#[derive(Debug)]
struct Window {
    size: f64,
    /// Until the first refusal the window grows fast.
    starting: bool,
    /// Nothing is sent before this moment, and the window is not halved twice.
    gate: Instant,
}

impl Window {
    fn new() -> Self {
        Self {
            size: WINDOW.0,
            starting: true,
            gate: Instant::now(),
        }
    }

    fn admits(&self, in_flight: usize) -> bool {
        #[allow(clippy::cast_precision_loss)]
        let taken = in_flight as f64;
        taken < self.size.floor()
    }

    fn taken(&mut self) {
        self.size += if self.starting { 1.0 } else { 1.0 / self.size };
        self.size = self.size.min(WINDOW.1);
    }

    fn refused(&mut self, pause: Duration) {
        let now = Instant::now();
        if now >= self.gate {
            self.size = (self.size / 2.0).max(1.0);
            self.starting = false;
        }
        self.gate = self.gate.max(now + pause);
    }
}

impl Upload<'_> {
    /// Sends all groups and tells of each certificate as soon as it is settled.
    ///
    /// # Errors
    /// When nobody answers any more. What was told until then stands; the same import goes on from there.
    pub async fn run(
        &self,
        groups: Vec<Vec<Entry>>,
        tell: &mut dyn FnMut(Line),
    ) -> Result<(), Failure> {
        let mut rest: Vec<VecDeque<Entry>> = groups.into_iter().map(Into::into).collect();
        let mut next_group = 0;
        let mut again: VecDeque<Sending> = VecDeque::new();
        let mut in_flight = FuturesUnordered::new();
        let mut window = Window::new();
        let mut key = (
            IngestionKey::ask(self.client, self.project).await?,
            Instant::now(),
        );
        let mut lost = 0;
        let mut full: Option<Line> = None;
        let mut progressed = Instant::now();
        let mut told_why = false;
        loop {
            if key.1.elapsed() > KEY_LIFE {
                key = (
                    IngestionKey::ask(self.client, self.project).await?,
                    Instant::now(),
                );
            }
            let open = Instant::now() >= window.gate;
            while open && window.admits(in_flight.len()) {
                let sending = match again.pop_front() {
                    Some(sending) => sending,
                    None => match start(&mut rest, &mut next_group) {
                        Some(sending) => sending,
                        None => break,
                    },
                };
                // Where one found no room, the others find none either; asking for each would only fill the log.
                if let (Some(full), Action::Add) = (&full, sending.entry.action) {
                    let mut line = full.clone();
                    line.name = sending.entry.name.to_string();
                    line.source = sending.entry.source;
                    tell(line);
                    again.extend(follow(&mut rest, sending.group));
                    continue;
                }
                in_flight.push(self.attempt(sending, key.0.clone()));
            }
            if in_flight.is_empty() && again.is_empty() && next_group >= rest.len() {
                return Ok(());
            }
            let ended = tokio::select! {
                ended = in_flight.next(), if !in_flight.is_empty() => ended,
                () = sleep_until(window.gate), if !open => None,
            };
            let Some((group, ended)) = ended else {
                continue;
            };
            match ended {
                Ended::Settled(line) => {
                    lost = 0;
                    progressed = Instant::now();
                    window.taken();
                    if line.code.as_deref() == Some(Code::QuotaExceeded.as_str()) {
                        full = Some(line.clone());
                    }
                    tell(line);
                    again.extend(follow(&mut rest, group));
                }
                Ended::Later(sending, pause, code) => {
                    if !told_why && code == Code::RateLimited.as_str() {
                        told_why = true;
                        self.progress.note(
                            "the project's rate of commands is used up; going on as fast as it allows",
                        );
                    }
                    if progressed.elapsed() > PATIENCE {
                        return Err(Failure::CouldNotRun(anyhow::anyhow!(
                            "nothing was taken for {} s; the same command goes on from here",
                            PATIENCE.as_secs()
                        )));
                    }
                    window.refused(pause);
                    again.push_back(sending);
                }
                Ended::Pointless(failure) => return Err(failure),
                Ended::Lost(line, failure) => {
                    tell(line);
                    lost += 1;
                    if lost >= LOST_MAX {
                        return Err(failure);
                    }
                    again.extend(follow(&mut rest, group));
                }
            }
        }
    }

    async fn attempt(&self, mut sending: Sending, key: IngestionKey) -> (usize, Ended) {
        let group = sending.group;
        let line = |entry: &Entry, verdict| {
            Line::new(entry.name.to_string(), entry.source.clone(), verdict)
        };
        let body = match sending.body.take() {
            Some(body) => body,
            None => match self.prepare(&sending.entry, key).await {
                Ok(body) => body,
                Err((code, why)) => {
                    let verdict = if code.is_some() {
                        Verdict::Refused
                    } else {
                        Verdict::Failed
                    };
                    let line = line(&sending.entry, verdict).because(code, why, "");
                    return (group, Ended::Settled(line));
                }
            },
        };
        let (command, done) = match sending.entry.action {
            Action::Add => ("certificate.add", Verdict::Added),
            Action::Replace { .. } => ("certificate.replace", Verdict::Replaced),
        };
        let asked = self
            .client
            .command_once(self.project, command, sending.id, body.clone())
            .await;
        let ended = match asked {
            Ok(accepted) => {
                let mut line = line(&sending.entry, done);
                line.sequence = Some(accepted.answer.sequence);
                Ended::Settled(line)
            }
            Err(Failure::Refused(refused)) if refused.passes() => {
                sending.body = Some(body);
                Ended::Later(sending, pause(&refused), refused.told.code)
            }
            Err(Failure::Refused(refused)) if refused.told.code == Code::Unauthorized.as_str() => {
                Ended::Pointless(Failure::Refused(refused))
            }
            // Somebody else was faster, or an answer was lost: what is there now tells.
            Err(Failure::Refused(refused))
                if [Code::DuplicateName.as_str(), Code::Conflict.as_str()]
                    .contains(&refused.told.code.as_str()) =>
            {
                match self.is_there(&sending.entry).await {
                    Ok(Some(line)) => Ended::Settled(line),
                    _ => Ended::Settled(line(&sending.entry, Verdict::Refused).told(&refused.told)),
                }
            }
            Err(Failure::Refused(refused)) => {
                let mut line = line(&sending.entry, Verdict::Refused).told(&refused.told);
                if refused.told.code == Code::QuotaExceeded.as_str()
                    && let Some(first) = line.reasons.first_mut()
                {
                    first.hint = format!("an operator gives more: {}", self.hint_more);
                }
                Ended::Settled(line)
            }
            Err(failure) => match self.is_there(&sending.entry).await {
                Ok(Some(line)) => Ended::Settled(line),
                Ok(None) => {
                    let line = line(&sending.entry, Verdict::Failed).because(
                        None,
                        text(&failure),
                        "the same import goes on from here",
                    );
                    Ended::Settled(line)
                }
                Err(_) => {
                    let line = line(&sending.entry, Verdict::Failed).because(
                        None,
                        text(&failure),
                        "the same import goes on from here",
                    );
                    Ended::Lost(line, failure)
                }
            },
        };
        (group, ended)
    }

    /// Reads the pair and seals the key, on a thread of its own: neither disks nor cryptography shall hold the others up.
    async fn prepare(
        &self,
        entry: &Entry,
        key: IngestionKey,
    ) -> Result<Bytes, (Option<Code>, String)> {
        let issuers: Vec<CertificateDer<'static>> = self.inventory.issuers(&entry.chain).collect();
        let (dir, files) = (Arc::clone(&self.dir), Arc::clone(&self.files));
        let (regions, project) = (self.regions.to_vec(), self.project.clone());
        let (standby, opener) = (self.standby, self.opener.clone());
        let entry = entry.clone();
        let work = move || {
            let at = |place: super::scan::Place| &files[place.file as usize];
            let (leaf, private) = load(
                &dir,
                (entry.place, entry.fingerprint, at(entry.place)),
                (entry.key, entry.spki, at(entry.key)),
                &opener,
            )
            .map_err(|why| (None, why))?;
            let whole: Vec<_> = std::iter::once(leaf).chain(issuers).collect();
            let chain = material::to_pem(&whole);
            let sealed = key
                .seal(&project, &private)
                .map_err(|failure| (None, text(&failure)))?;
            let sealed = serde_json::to_value(&sealed).map_err(|e| (None, e.to_string()))?;
            let body = match entry.action {
                Action::Add => serde_json::to_vec(&AddCertificate {
                    name: entry.name,
                    kind: CertificateKind::Server,
                    chain,
                    key: Some(sealed),
                    regions,
                    standby,
                }),
                Action::Replace { expect } => serde_json::to_vec(&ReplaceCertificate {
                    name: entry.name,
                    chain,
                    key: Some(sealed),
                    expect: Some(expect),
                }),
            };
            let body = body.map_err(|error| (None, error.to_string()))?;
            if body.len() > BODY_MAX {
                return Err((
                    Some(Code::TooLarge),
                    format!(
                        "with its chain it has {} bytes of at most {BODY_MAX}",
                        body.len()
                    ),
                ));
            }
            Ok(Bytes::from(body))
        };
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|error| Err((None, error.to_string())))
    }

    /// Looks whether the project holds it by now.
    async fn is_there(&self, entry: &Entry) -> Result<Option<Line>, Failure> {
        let there = There::one(self.client, self.project, &entry.name).await?;
        let version = there
            .as_ref()
            .and_then(|there| there.fingerprints.get(&entry.fingerprint));
        Ok(version
            .map(|(name, _)| Line::new(name.clone(), entry.source.clone(), Verdict::Unchanged)))
    }
}

/// The first of the next group.
fn start(rest: &mut [VecDeque<Entry>], next: &mut usize) -> Option<Sending> {
    while *next < rest.len() {
        let group = *next;
        *next += 1;
        if let Some(sending) = follow(rest, group) {
            return Some(sending);
        }
    }
    None
}

/// The next of a group, once the one before it is settled.
fn follow(rest: &mut [VecDeque<Entry>], group: usize) -> Option<Sending> {
    rest[group].pop_front().map(|entry| Sending {
        group,
        entry,
        id: Uuid::now_v7(),
        body: None,
    })
}

/// What the other side asks for, and up to half as much again, so that those who wait do not all come back at once.
fn pause(refused: &Refused) -> Duration {
    let ms = refused.told.retry_after_ms.unwrap_or(200).max(1);
    let chance = u64::from(Uuid::new_v4().as_bytes()[0]);
    Duration::from_millis(ms + ms * chance / 512).min(PAUSE_MAX)
}

fn text(failure: &Failure) -> String {
    match failure {
        Failure::Refused(refused) => refused.told.detail.clone(),
        Failure::CouldNotRun(error) => format!("{error:#}"),
        Failure::Usage(text) | Failure::InVain(text) => text.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_window_grows_with_answers_and_halves_once_a_pause() {
        let mut window = Window::new();
        assert!(window.admits(7) && !window.admits(8));
        (0..200).for_each(|_| window.taken());
        assert!(window.admits(127) && !window.admits(128), "{window:?}");
        let pause = Duration::from_secs(60);
        (0..20).for_each(|_| window.refused(pause));
        assert!(window.admits(63) && !window.admits(64), "{window:?}");
        assert!(Instant::now() < window.gate);
        window.taken();
        assert!(!window.admits(64), "afterwards it grows slowly");
    }

    #[test]
    fn pauses_are_a_little_longer_than_asked_for_and_bounded() {
        for (asked, least, most) in [(100, 100, 150), (10_000_000, 30_000, 30_000)] {
            let problem = wire::answer::Problem::later(Code::Busy, "full", asked);
            let pause = pause(&Refused::from(problem)).as_millis();
            assert!((least..=most).contains(&pause), "{pause}");
        }
    }
}
