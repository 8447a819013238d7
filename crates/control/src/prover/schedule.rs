//! When claims are looked at: at once, after growing pauses, and after a month only when somebody asks.
//!
//! The tables say which claims wait, and the results beside the ledger when each was last looked at; so nothing here must
//! outlive a restart, and memory does not grow with a million claims. A round goes through them page by page and takes what
//! is due soon into the [`Agenda`], which is bounded, also for each project. Looks are paced, so that a restart after a long
//! pause asks the resolvers no faster than any other hour.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use lifecycle::event::Event;
use lifecycle::names::{Host, Slug};
use lifecycle::state::{Claim, ProjectStatus, State, key};
use lifecycle::store::{Parts, Read, Table};
use wire::envelope::{Envelope, Position};

use super::{Followed, Key, Look, Prover, Why, lock, now};
use crate::rate::Rate;
use crate::tables::{Tables, fatal};

/// The pauses between the first looks, in seconds, and the one between all later ones.
const PAUSES: [i64; 6] = [5, 15, 60, 300, 900, 3_600];
const PAUSE: i64 = 6 * 3_600;
/// How long a claim is looked at by itself, in seconds.
const MONTH: i64 = 30 * 86_400;
/// Claims in the agenda: all, those that a round may put there, and those of one project.
const AGENDA_MAX: usize = 20_000;
const OF_ROUNDS: usize = 15_000;
const OF_PROJECT: usize = 1_000;
/// What is due within so many seconds is taken into the agenda.
const HORIZON: i64 = 900;
/// Between two rounds: at least so long, and so many times as long as the last one took.
const REST: (Duration, u32) = (Duration::from_secs(60), 20);
/// And no longer than so, or what is due would be found late.
const REST_MAX: Duration = Duration::from_secs(600);
/// Rows of one page of a round.
const PAGE: usize = 500;
/// The time between two turns; what is new has a turn at once.
const TURN: Duration = Duration::from_millis(250);
/// Looks that begin in a second, in the long run and at once.
const LOOKS: Rate = Rate {
    per_second: 100.0,
    burst: 25.0,
};
/// Entries that one turn looks at to find those.
const TRIED: usize = 500;
/// A look that found no place, or no answer at a contest's end, is tried again after so many seconds.
const LATER: (i64, i64) = (1, 15);
/// Contests whose time has come that are looked through in one turn.
const CONTESTS: usize = 4_096;

/// Claims in the order in which they are due.
#[derive(Debug, Default)]
pub struct Agenda {
    due: BTreeSet<(i64, Key)>,
    when: HashMap<Key, i64>,
    of: HashMap<Slug, usize>,
}

/// Why a claim is not taken into the agenda.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Full {
    /// Its project has enough there.
    Project,
    /// There is no room.
    All,
}

impl Agenda {
    /// Puts a claim there; one that is there keeps the earlier time.
    fn put(&mut self, claim: Key, due: i64, max: usize) -> Result<(), Full> {
        if let Some(when) = self.when.get_mut(&claim) {
            if due < *when {
                self.due.remove(&(*when, claim.clone()));
                *when = due;
                self.due.insert((due, claim));
            }
            return Ok(());
        }
        if self.of.get(&claim.0).copied().unwrap_or(0) >= OF_PROJECT {
            return Err(Full::Project);
        }
        if self.when.len() >= max {
            return Err(Full::All);
        }
        *self.of.entry(claim.0.clone()).or_default() += 1;
        self.when.insert(claim.clone(), due);
        self.due.insert((due, claim));
        Ok(())
    }

    /// Takes the first one, if it is due.
    fn take(&mut self, now: i64) -> Option<Key> {
        let first = self.due.first()?;
        if first.0 > now {
            return None;
        }
        let (_, claim) = self.due.pop_first()?;
        self.when.remove(&claim);
        if let Some(count) = self.of.get_mut(&claim.0) {
            *count -= 1;
            if *count == 0 {
                self.of.remove(&claim.0);
            }
        }
        Some(claim)
    }
}

/// Spreads what would come at once: a number below `below` that belongs to a claim and a try.
fn spread(claim: &Claim, tries: u32, below: i64) -> i64 {
    let mut hasher = DefaultHasher::new();
    (claim.project.as_str(), claim.host.as_str(), tries).hash(&mut hasher);
    i64::try_from(hasher.finish() % u64::try_from(below.max(1)).unwrap_or(1)).unwrap_or(0)
}

impl Look {
    /// When the claim is due again, Unix seconds; None: when somebody asks.
    pub(super) fn next(&self, claim: &Claim) -> Option<i64> {
        let tries = usize::try_from(self.tries.max(1) - 1).unwrap_or(usize::MAX);
        let pause = PAUSES.get(tries).copied().unwrap_or(PAUSE);
        let due = self.at + pause + spread(claim, self.tries, pause / 8);
        (due < self.first + MONTH).then_some(due)
    }
}

impl Prover {
    /// When a claim is due, by what is known of it.
    fn due(&self, claim: &Claim) -> Option<i64> {
        match self.last(claim) {
            Some(look) => look.next(claim),
            None => Some(0),
        }
    }

    /// Puts a claim into the agenda after a look, if it is due again soon; a round finds it otherwise.
    pub(super) fn plan(&self, claim: &Claim, look: &Look) {
        if let Some(due) = look.next(claim)
            && due <= now() + HORIZON
        {
            let key = (claim.project.clone(), claim.host.clone());
            let _ = lock(&self.0.agenda).put(key, due, AGENDA_MAX);
        }
    }

    /// Looks at the claims that new events added, at once, and forgets what was found of those that ended.
    fn read(&self, seen: &mut u64) {
        let tables = Tables::of(&self.0.ledger);
        loop {
            let page = tables
                .0
                .events(*seen + 1, 1_000)
                .unwrap_or_else(|error| fatal("the ledger cannot be read", &error));
            if page.is_empty() {
                return;
            }
            for (sequence, bytes) in page {
                *seen = sequence;
                // Most events are of no interest here; only the names of the others are read.
                let interesting = |p: Position| {
                    matches!(
                        p.name.as_str(),
                        "domain.added" | "domain.released" | "domain.contest-lapsed"
                    )
                };
                if !Position::of(&bytes).is_ok_and(interesting) {
                    continue;
                }
                let Ok(envelope) = Envelope::decode(&bytes) else {
                    continue;
                };
                match &envelope.event {
                    Event::DomainAdded(added) => {
                        let key = (envelope.project.clone(), added.host.clone());
                        let _ = lock(&self.0.agenda).put(key, 0, AGENDA_MAX);
                    }
                    // Whoever held it may have let it go: if the proof still stands, the host need not be dark for an hour.
                    Event::DomainContestLapsed(lapsed) => {
                        let key = (envelope.project.clone(), lapsed.host.clone());
                        let _ = lock(&self.0.agenda).put(key, 0, AGENDA_MAX);
                    }
                    Event::DomainReleased(released) => {
                        self.forget(&envelope.project, &released.host);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Goes one page further through the claims that wait. None when the round has come to its end.
    fn page(&self, after: Option<Vec<u8>>) -> Option<Vec<u8>> {
        let tables = Tables::of(&self.0.ledger);
        let mut after = after;
        let page = tables.scan(Table::Pending, &[], after.as_deref(), PAGE);
        let mut full: Option<String> = None;
        for (row, _) in &page {
            let mut parts = Parts::of(row);
            let (project, host) = (parts.text(), parts.text());
            if full.as_deref() == Some(project) {
                after = Some(row.clone());
                continue;
            }
            if let Some(claim) = tables.claim(host, project)
                && claim.moves_at.is_none()
                && let Some(due) = self.due(&claim).filter(|due| *due <= now() + HORIZON)
            {
                let key = (claim.project.clone(), claim.host.clone());
                match lock(&self.0.agenda).put(key, due, OF_ROUNDS) {
                    Ok(()) => {}
                    Err(Full::All) => return after,
                    Err(Full::Project) => full = Some(project.to_owned()),
                }
            }
            after = Some(row.clone());
        }
        if page.len() < PAGE {
            return None;
        }
        // The rest of a project that has enough is left for the next round, without being read.
        match full {
            Some(project) => {
                let mut end = key::text(&project);
                end.push(0xff);
                Some(after.map_or(end.clone(), |after| after.max(end)))
            }
            None => after,
        }
    }

    /// Begins the looks that are due, as many as a turn may.
    fn begin(&self, pace: &mut Pace) {
        let mut blocked = Vec::new();
        for _ in 0..TRIED {
            if !pace.has() {
                break;
            }
            let Some(key) = lock(&self.0.agenda).take(now()) else {
                break;
            };
            match self.0.places.try_take(&key.0) {
                Some(turn) => {
                    pace.take();
                    self.spawn(key, turn);
                }
                None => blocked.push(key),
            }
        }
        let mut agenda = lock(&self.0.agenda);
        for key in blocked {
            let _ = agenda.put(key, now() + LATER.0, AGENDA_MAX);
        }
    }

    /// A claim whose time to take a host over has come while its project is suspended.
    fn suspended(&self, (project, host): &Key) -> Option<Claim> {
        let tables = Tables::of(&self.0.ledger);
        let status = tables.project(project.as_str()).map(|p| p.status);
        tables
            .claim(host.as_str(), project.as_str())
            .filter(|_| status == Some(ProjectStatus::Suspended))
            .filter(|claim| claim.moves_at.is_some_and(|until| until <= now()))
    }

    fn spawn(&self, key: Key, turn: crate::turns::Turn) {
        if !lock(&self.0.looking).insert(key.clone()) {
            return;
        }
        let prover = self.clone();
        tokio::spawn(async move {
            if let Some(claim) = prover.suspended(&key) {
                prover.give_up(&claim).await;
            } else if let Some(claim) = prover.pending(&key)
                && let Some(look) = prover.look(&claim, Why::Due).await
            {
                let followed = prover.follow(&claim, &look).await;
                if !matches!(followed, Followed::Proven(_) | Followed::Gone) {
                    prover.plan(&claim, &look);
                }
                if let Followed::Refused(problem) = followed {
                    tracing::debug!(code = %problem.code, detail = %problem.detail, "a proof was not taken");
                }
            }
            lock(&prover.0.looking).remove(&key);
            drop(turn);
        });
    }

    /// Looks again at claims whose time to take a host over has come.
    fn settle(&self, tried: &mut HashMap<Key, i64>, pace: &mut Pace) {
        if lock(&self.0.clock).is_some() {
            return;
        }
        let now = now();
        tried.retain(|_, when| *when > now);
        let rows = Tables::of(&self.0.ledger).scan(Table::Contest, &[], None, CONTESTS);
        for (row, _) in &rows {
            let mut parts = Parts::of(row);
            if i64::try_from(parts.number()).unwrap_or(i64::MAX) > now || !pace.has() {
                return;
            }
            let (host, project) = (parts.text(), parts.text());
            let (Ok(host), Ok(project)) = (Host::parse(host), Slug::name(project)) else {
                continue;
            };
            let key = (project, host);
            if tried.contains_key(&key) {
                continue;
            }
            let Some(turn) = self.0.places.try_take(&key.0) else {
                continue;
            };
            tried.insert(key.clone(), now + LATER.1);
            pace.take();
            self.spawn(key, turn);
        }
    }
}

/// How many looks may begin now.
struct Pace {
    tokens: f64,
    at: Instant,
}

impl Pace {
    fn new() -> Self {
        Self {
            tokens: LOOKS.burst,
            at: Instant::now(),
        }
    }

    fn has(&mut self) -> bool {
        let now = Instant::now();
        let since = now.duration_since(self.at).as_secs_f64();
        self.tokens = LOOKS.burst.min(self.tokens + since * LOOKS.per_second);
        self.at = now;
        self.tokens >= 1.0
    }

    fn take(&mut self) {
        self.tokens -= 1.0;
    }
}

/// What a turn hands to the next one.
struct Progress {
    /// The last event that was read.
    seen: u64,
    /// Contests that were tried, until when they are left alone.
    tried: HashMap<Key, i64>,
    pace: Pace,
    /// How far the round has come, and when it began; None: it rests.
    round: Option<(Option<Vec<u8>>, Instant)>,
    /// When the next page, or the next round, is due.
    next_page: Instant,
}

impl Prover {
    /// One turn.
    fn turn(&self, progress: &mut Progress) {
        self.read(&mut progress.seen);
        self.settle(&mut progress.tried, &mut progress.pace);
        let now = Instant::now();
        if now >= progress.next_page {
            let (cursor, began) = progress.round.take().unwrap_or((None, now));
            match self.page(cursor) {
                Some(cursor) => {
                    progress.round = Some((Some(cursor), began));
                    progress.next_page = now + TURN;
                }
                None => {
                    let took = began.elapsed().saturating_mul(REST.1);
                    progress.next_page = Instant::now() + REST.0.max(took.min(REST_MAX));
                }
            }
        }
        self.begin(&mut progress.pace);
    }
}

/// Works until the process ends.
pub(super) async fn run(prover: Prover, seen: u64) {
    let mut progress = Progress {
        seen,
        tried: HashMap::new(),
        pace: Pace::new(),
        round: None,
        next_page: Instant::now(),
    };
    loop {
        // The tables are on a disk: that is no work for the threads that serve everybody.
        let turn = {
            let prover = prover.clone();
            tokio::task::spawn_blocking(move || {
                prover.turn(&mut progress);
                progress
            })
        };
        progress = match turn.await {
            Ok(progress) => progress,
            Err(error) if error.is_cancelled() => return,
            Err(error) => fatal("the schedule of claims broke", &error),
        };
        tokio::select! {
            () = prover.0.wake.notified() => {}
            () = tokio::time::sleep(TURN) => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use lifecycle::selection::Mode;
    use lifecycle::state::ClaimStatus;

    use crate::prover::resolver::{Answer, Outcome};

    fn key(project: &str, host: usize) -> Key {
        (
            Slug::name(project).unwrap(),
            Host::parse(&format!("h{host}.example.com")).unwrap(),
        )
    }

    fn claim(host: usize) -> Claim {
        let (project, host) = key("acme", host);
        Claim {
            host,
            project,
            status: ClaimStatus::Pending,
            proof: None,
            added: 1,
            contested: None,
            moves_at: None,
            attached: BTreeMap::new(),
            mode: Mode::Auto,
            modes: BTreeMap::new(),
            revision: 1,
            changed: 1,
        }
    }

    fn look(at: i64, first: i64, tries: u32) -> Look {
        let nothing = Answer {
            outcome: Outcome::NoName,
            found: Vec::new(),
            more: 0,
        };
        Look {
            added: 1,
            at,
            first,
            tries,
            txt: nothing.clone(),
            cname: nothing,
            proof: None,
            stale: false,
        }
    }

    #[test]
    fn pauses_grow_and_end_after_a_month() {
        let claim = claim(1);
        let (mut at, mut tries) = (1_000_000, 1);
        let first = at;
        let mut pauses = Vec::new();
        while let Some(next) = look(at, first, tries).next(&claim) {
            pauses.push(next - at);
            (at, tries) = (next, tries + 1);
        }
        for (i, pause) in pauses.iter().enumerate() {
            let base = PAUSES.get(i).copied().unwrap_or(PAUSE);
            assert!((base..=base + base / 8).contains(pause), "{i}: {pause}");
        }
        assert!(at - first < MONTH && at - first > MONTH - 2 * PAUSE);
        assert!((105..=125).contains(&pauses.len()), "{}", pauses.len());
    }

    #[test]
    fn what_came_at_once_is_spread_later() {
        let mut dues: Vec<i64> = (0..1_000)
            .filter_map(|host| look(0, 0, 6).next(&claim(host)))
            .collect();
        dues.sort_unstable();
        dues.dedup();
        assert!(dues.len() > 300, "{} different times", dues.len());
    }

    #[test]
    fn one_project_s_flood_leaves_the_others_their_place() {
        let mut agenda = Agenda::default();
        for host in 0..OF_PROJECT {
            agenda.put(key("crowd", host), 0, OF_ROUNDS).unwrap();
        }
        assert_eq!(
            agenda.put(key("crowd", OF_PROJECT), 0, OF_ROUNDS),
            Err(Full::Project)
        );
        agenda.put(key("other", 0), 0, OF_ROUNDS).unwrap();
        // What is new has room even when rounds have filled theirs.
        for project in 0..20 {
            for host in 0..OF_PROJECT {
                let _ = agenda.put(key(&format!("p{project}"), host), 5, OF_ROUNDS);
            }
        }
        assert_eq!(agenda.put(key("new", 0), 0, OF_ROUNDS), Err(Full::All));
        agenda.put(key("new", 0), 0, AGENDA_MAX).unwrap();
        assert_eq!(agenda.when.len(), OF_ROUNDS + 1);
        let mut taken = 0;
        while agenda.take(0).is_some() {
            taken += 1;
        }
        assert_eq!(taken, OF_PROJECT + 2);
        while agenda.take(10).is_some() {}
        assert!(agenda.when.is_empty() && agenda.of.is_empty());
    }

    #[test]
    fn an_earlier_time_counts_and_a_later_one_does_not() {
        let mut agenda = Agenda::default();
        agenda.put(key("acme", 1), 100, AGENDA_MAX).unwrap();
        agenda.put(key("acme", 1), 50, AGENDA_MAX).unwrap();
        agenda.put(key("acme", 1), 70, AGENDA_MAX).unwrap();
        assert_eq!(agenda.take(49), None);
        assert_eq!(agenda.take(50), Some(key("acme", 1)));
        assert_eq!(agenda.take(1_000), None);
    }

    #[test]
    fn looks_begin_no_faster_than_the_pace() {
        let mut pace = Pace::new();
        let mut begun = 0;
        let since = Instant::now();
        while pace.has() && begun < 10_000 {
            pace.take();
            begun += 1;
        }
        let most = LOOKS.burst + since.elapsed().as_secs_f64() * LOOKS.per_second + 1.0;
        assert!(f64::from(begun) <= most, "{begun}");
    }
}
