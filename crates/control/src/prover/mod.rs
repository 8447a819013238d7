//! The prover: claims that their owners prove in the DNS.
//!
//! A claim is looked for at once when it is added and again and again, with growing pauses ([`schedule`]); what was found is
//! shown ([`show`]) until it is what was wanted ([`proof`]). Only what follows from a look is an event: a claim is proven, a
//! host that another project holds is contested, moves, or does not. What a look found is kept beside the ledger and is no
//! truth; without it everything is looked at anew.
//!
//! Against a project that holds the host only the TXT record counts. It was made for this claim, so whoever runs the zone
//! has decided after the claim was made. An alias of a provider domain may be left over from long ago, and would take the
//! host back to a project that its owner has left.
//!
//! Both projects' records may stand in the zone at once. Then the claim that was added later has the host: what its owner
//! did last is what counts. Proven claims are not looked at again.

pub mod proof;
pub mod resolver;
pub mod schedule;
pub mod show;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix::Addr;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use ledger::Ledger;
use lifecycle::command::{Asker, Command, ProveByDns, SettleContest};
use lifecycle::event::Proof;
use lifecycle::names::{Host, Slug};
use lifecycle::rejection::{Code, Reason};
use lifecycle::state::{Claim, ClaimStatus, ProjectStatus, State, key};
use wire::answer::{Accepted, Answer as Answered, Problem};
use wire::envelope::rfc3339;

use crate::checks::{Checks, Kind};
use crate::rate::{Buckets, Rate};
use crate::registrar::{Ask, Registrar};
use crate::tables::Tables;
use crate::turns::Turns;

use proof::Wanted;
use resolver::{Answer, Outcome, Resolver};
use schedule::Agenda;

/// How long a look by hand may take: whoever asked waits five seconds before asking again.
const ASKED: Duration = Duration::from_secs(4);
/// Looks at once, and those of one project.
const PLACES: (usize, usize) = (64, 8);
/// Looks by hand that a project may ask for.
const BY_HAND: Rate = Rate {
    per_second: 0.2,
    burst: 20.0,
};
/// How long a contest whose time has come waits for a DNS that does not answer, before it is given up: a day, in seconds.
const PATIENCE: i64 = 86_400;

/// How claims are proven.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The DNS client.
    pub dns: resolver::Settings,
    /// How long a holder is served after another project proved its host, in seconds.
    pub grace: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            dns: resolver::Settings::default(),
            grace: 7 * 86_400,
        }
    }
}

/// What one look at a claim found. This form is kept in `checks.redb`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// The sequence at which the claim was added that was looked for.
    pub added: u64,
    /// When, Unix seconds.
    pub at: i64,
    /// When these tries began, Unix seconds.
    pub first: i64,
    /// How many there were since.
    pub tries: u32,
    /// The TXT record.
    pub txt: Answer,
    /// The chain of aliases.
    pub cname: Answer,
    /// What proves the claim.
    pub proof: Option<Proof>,
    /// Whether an alias of the project's was there and did not count, because another project holds the host.
    #[serde(default)]
    pub stale: bool,
}

/// Why a look is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// Its time has come.
    Due,
    /// Somebody asked.
    Asked,
}

/// What followed from a look.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Followed {
    /// The project holds the host since this sequence.
    Proven(u64),
    /// It gets the host then, Unix seconds.
    Moves(i64),
    /// Nothing.
    Waits,
    /// The claim is no more.
    Gone,
    /// The registrar said no.
    Refused(Box<Problem>),
}

/// A claim, by its project and host.
type Key = (Slug, Host);

/// The prover; clones share it.
#[derive(Clone)]
pub struct Prover(Arc<Inner>);

struct Inner {
    ledger: Ledger,
    registrar: Addr<Registrar>,
    checks: Checks,
    resolver: Resolver,
    grace: u64,
    /// Why the clock stopped, if it did: then no host moves.
    clock: Arc<Mutex<Option<String>>>,
    places: Turns<Slug>,
    by_hand: Mutex<Buckets>,
    agenda: Mutex<Agenda>,
    looking: Mutex<HashSet<Key>>,
    wake: tokio::sync::Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}

impl Prover {
    /// Starts it, inside the tokio runtime that is to ask.
    #[must_use]
    pub fn start(
        ledger: Ledger,
        registrar: Addr<Registrar>,
        checks: Checks,
        settings: &Settings,
        clock: Arc<Mutex<Option<String>>>,
    ) -> Self {
        let seen = ledger.head().sequence;
        let prover = Self(Arc::new(Inner {
            ledger,
            registrar,
            checks,
            resolver: Resolver::new(&settings.dns),
            grace: settings.grace,
            clock,
            places: Turns::new(PLACES.0, PLACES.1),
            by_hand: Mutex::new(Buckets::new(BY_HAND)),
            agenda: Mutex::default(),
            looking: Mutex::default(),
            wake: tokio::sync::Notify::new(),
        }));
        if prover.0.resolver.servers().is_empty() {
            tracing::warn!(
                "no DNS resolver is configured and the system has none; customers cannot prove their domains"
            );
        }
        tokio::spawn(schedule::run(prover.clone(), seen));
        prover
    }

    /// Something was committed.
    pub fn wake(&self) {
        self.0.wake.notify_one();
    }

    /// Whom it asks, and what is to be mended, for the operator.
    #[must_use]
    pub fn status(&self) -> Value {
        let resolvers = self.0.resolver.servers();
        let warning = resolvers.is_empty().then_some(
            "no resolver is configured (control.dns.resolvers) and the system has none: customers cannot prove their domains",
        );
        let looking = lock(&self.0.looking).len();
        json!({"resolvers": resolvers, "looking": looking, "warning": warning})
    }

    /// The last look at a claim as it is now.
    fn last(&self, claim: &Claim) -> Option<Look> {
        let row = key::pair(&claim.project, &claim.host);
        let check = self.0.checks.get(Kind::Domain, &row)?;
        // An older release's form is as good as none: the next look replaces it.
        let look: Look = serde_json::from_slice(&check.found).ok()?;
        (look.added == claim.added).then_some(look)
    }

    fn forget(&self, project: &Slug, host: &Host) {
        self.0
            .checks
            .remove(Kind::Domain, &key::pair(project, host));
    }

    /// A claim that waits for its proof, of a project that is in use.
    fn pending(&self, (project, host): &Key) -> Option<Claim> {
        let tables = Tables::of(&self.0.ledger);
        let active = tables
            .project(project.as_str())
            .is_some_and(|p| p.status == ProjectStatus::Active);
        tables
            .claim(host.as_str(), project.as_str())
            .filter(|claim| active && claim.status == ClaimStatus::Pending)
    }

    /// Whether another project holds the host of a claim.
    fn is_held(tables: &Tables, claim: &Claim) -> bool {
        tables
            .holder(claim.host.as_str())
            .is_some_and(|holder| holder != claim.project)
    }

    /// Looks, and keeps what was found.
    async fn look(&self, claim: &Claim, why: Why) -> Option<Look> {
        let (wanted, platform) = {
            let tables = Tables::of(&self.0.ledger);
            (
                Wanted::of(&tables, claim)?,
                tables.control()?.platform_domain,
            )
        };
        let platform = format!(".{platform}");
        let resolver = &self.0.resolver;
        let until = match why {
            Why::Due => Instant::now() + resolver.limit(),
            Why::Asked => Instant::now() + resolver.limit().min(ASKED),
        };
        let ((token, txt), (chain, cname)) = tokio::join!(
            resolver.texts(&wanted.name, &wanted.value, until),
            resolver.aliases(claim.host.as_str(), |name| name.ends_with(&platform), until),
        );
        let tables = Tables::of(&self.0.ledger);
        let alias = chain
            .last()
            .is_some_and(|name| proof::is_alias_of(&tables, &claim.project, name));
        let held = Self::is_held(&tables, claim);
        drop(tables);
        let proof = match (token, alias && !held) {
            (true, _) => Some(Proof::DnsTxt),
            (false, true) => Some(Proof::DnsCname),
            (false, false) => None,
        };
        let at = now();
        let before = match why {
            Why::Due => self.last(claim),
            // Whoever asks by hand is at work on the zone: the tries begin anew.
            Why::Asked => None,
        };
        let look = Look {
            added: claim.added,
            at,
            first: before.as_ref().map_or(at, |before| before.first.min(at)),
            tries: before.map_or(1, |before| before.tries.saturating_add(1)),
            txt,
            cname,
            proof,
            stale: alias && held && !token,
        };
        let outcome = match look.proof {
            Some(_) => "proven",
            None if look.txt.outcome.is_certain() => "unproven",
            None => "unanswered",
        };
        metrics::counter!("chancery_domain_checks_total", "outcome" => outcome).increment(1);
        self.keep(claim, &look);
        Some(look)
    }

    fn keep(&self, claim: &Claim, look: &Look) {
        if let Ok(bytes) = serde_json::to_vec(look) {
            let row = key::pair(&claim.project, &claim.host);
            self.0.checks.put(Kind::Domain, &row, look.at, bytes);
        }
    }

    async fn command(&self, project: &Slug, about: &str, command: Command) -> Answered {
        let mut ask = Ask::internal("prover", about, command);
        ask.project = project.clone();
        self.0.registrar.send(ask).await.unwrap_or_else(|_| {
            Answered::Problem(Box::new(Problem::later(
                Code::Busy,
                "the registrar is not there",
                1_000,
            )))
        })
    }

    /// Does what follows from a look.
    async fn follow(&self, claim: &Claim, look: &Look) -> Followed {
        let key = (claim.project.clone(), claim.host.clone());
        let Some(current) = self.pending(&key).filter(|now| now.added == claim.added) else {
            return self.standing(&key);
        };
        // The id follows from the state that is decided on, so that one look's outcome is recorded once.
        let about = |what: &str| {
            format!(
                "domain.{what} {} {} {}",
                current.project, current.host, current.changed
            )
        };
        let (about, command): (String, Command) = match current.moves_at {
            None => match look.proof {
                Some(proof) => (
                    about("prove"),
                    ProveByDns {
                        host: current.host.clone(),
                        added: current.added,
                        proof,
                        grace: self.0.grace,
                    }
                    .into(),
                ),
                None => return Followed::Waits,
            },
            Some(until) if now() < until || lock(&self.0.clock).is_some() => {
                return Followed::Moves(until);
            }
            Some(until) => {
                let undecided = look.proof.is_none() && !look.txt.outcome.is_certain();
                if undecided && now() < until.saturating_add(PATIENCE) {
                    return Followed::Moves(until);
                }
                let what = match look.proof {
                    Some(_) => "settle",
                    None => "lapse",
                };
                (
                    about(what),
                    SettleContest {
                        host: current.host.clone(),
                        added: current.added,
                        proof: look.proof,
                    }
                    .into(),
                )
            }
        };
        match self.command(&current.project, &about, command).await {
            Answered::Accepted(_) => self.standing(&key),
            Answered::Problem(problem) => Followed::Refused(problem),
        }
    }

    /// Ends a contest of a project that is suspended: it gets nothing, and its claims are not looked up.
    async fn give_up(&self, claim: &Claim) {
        let about = format!(
            "domain.lapse {} {} {}",
            claim.project, claim.host, claim.changed
        );
        let settle = SettleContest {
            host: claim.host.clone(),
            added: claim.added,
            proof: None,
        };
        let _ = self.command(&claim.project, &about, settle.into()).await;
    }

    /// How a claim stands now.
    fn standing(&self, (project, host): &Key) -> Followed {
        let claim = Tables::of(&self.0.ledger).claim(host.as_str(), project.as_str());
        match claim {
            Some(claim) if claim.status == ClaimStatus::Proven => Followed::Proven(claim.changed),
            Some(claim) if claim.status == ClaimStatus::Pending => match claim.moves_at {
                Some(until) => Followed::Moves(until),
                None => Followed::Waits,
            },
            _ => Followed::Gone,
        }
    }

    /// Looks now because somebody asked: `domain.check`. Accepted if the claim is proven, before or by this look.
    ///
    /// # Errors
    /// `domain_unproven` with what was looked for and what was found, and what keeps a project from asking.
    pub async fn check(
        &self,
        project: &Slug,
        asker: &Asker,
        id: Uuid,
        host: &str,
    ) -> Result<Accepted, Box<Problem>> {
        let refuse = |code, message: &str, hint: &str| {
            let mut problem = Problem::new(code, message, hint);
            problem.id = Some(id);
            Err(Box::new(problem))
        };
        let Ok(host) = Host::parse(host) else {
            return refuse(
                Code::Malformed,
                "this is not a host",
                "give a name such as www.example.com",
            );
        };
        let (claim, active) = {
            let tables = Tables::of(&self.0.ledger);
            let active = tables
                .project(project.as_str())
                .is_some_and(|p| p.status == ProjectStatus::Active);
            (tables.claim(host.as_str(), project.as_str()), active)
        };
        let claim = match claim {
            Some(claim) if claim.status == ClaimStatus::Proven => {
                return Ok(proven(id, claim.changed, claim.proof));
            }
            Some(claim) if claim.status == ClaimStatus::Pending => claim,
            Some(claim) if claim.status == ClaimStatus::Moved => {
                return refuse(
                    Code::DomainUnproven,
                    "another project proved this host since",
                    "add it again with `chancery domain add` and prove it afresh, or release it",
                );
            }
            _ => {
                return refuse(
                    Code::NotFound,
                    "there is no such domain in this project",
                    "`chancery domain list` shows those that exist",
                );
            }
        };
        if !active {
            return refuse(
                Code::Unauthorized,
                "the project is suspended; nothing is looked up for it",
                "ask the operator",
            );
        }
        if !asker.operator
            && let Err(after) = lock(&self.0.by_hand).take(project)
        {
            let mut problem = Problem::later(
                Code::RateLimited,
                "the project has asked for many looks; pending domains are also looked at by themselves",
                after.max(10),
            );
            problem.id = Some(id);
            return Err(Box::new(problem));
        }
        let turn = self.0.places.take(project).await;
        let look = self.look(&claim, Why::Asked).await;
        drop(turn);
        let Some(look) = look else {
            return refuse(Code::Busy, "the log has not begun", "try again");
        };
        let followed = self.follow(&claim, &look).await;
        self.plan(&claim, &look);
        let moves_at = match followed {
            Followed::Proven(sequence) => return Ok(proven(id, sequence, look.proof)),
            Followed::Gone => {
                return refuse(Code::Conflict, "the claim ended meanwhile", "");
            }
            Followed::Moves(until) => Some(until),
            Followed::Waits | Followed::Refused(_) => None,
        };
        let tables = Tables::of(&self.0.ledger);
        let claim = tables
            .claim(host.as_str(), project.as_str())
            .unwrap_or(claim);
        let mut reasons = match moves_at {
            Some(until) => vec![Reason::new(
                Code::DomainUnproven,
                format!(
                    "another project holds this host and is served until {}; then it moves here, if the record still stands",
                    rfc3339(until)
                ),
                "leave the record in place until then",
            )],
            None => show::reasons(&tables, &claim, &look),
        };
        if let Followed::Refused(problem) = followed {
            reasons.extend(problem.reasons);
        }
        let mut problem = Problem::of(reasons);
        problem.id = Some(id);
        problem.verification = Some(self.verification(&tables, &claim));
        Err(Box::new(problem))
    }
}

fn proven(id: Uuid, sequence: u64, proof: Option<Proof>) -> Accepted {
    let mut more = Map::new();
    more.insert("status".to_owned(), "proven".into());
    if let Some(proof) = proof {
        more.insert("proof".to_owned(), proof.as_str().into());
    }
    Accepted {
        id,
        outcome: "accepted".to_owned(),
        sequence,
        events: Vec::new(),
        more,
    }
}

impl Look {
    /// Whether nobody could be asked.
    fn is_without_resolver(&self) -> bool {
        self.txt.outcome == Outcome::NoResolver
    }
}
