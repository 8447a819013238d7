//! Distribution: publishes each region's feed, answers its edges, and knows who has applied what.
//!
//! An append to the ledger wakes it; what it then publishes follows from the tables and from how far it had got, so a lost
//! wake-up costs latency only. Edges that report are watched here: *served everywhere* means every healthy edge of a region.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use actix::prelude::*;
use serde::Serialize;

use bus::door::EdgeRequest;
use lifecycle::command::{EnrolEdge, ReportApplied};
use lifecycle::names::Slug;
use lifecycle::rejection::Code;
use lifecycle::state::State;
use wire::answer::{Answer, Problem};
use wire::feed::{ChunkRequest, EnrolRequest, EnrolResponse, Report, SyncRequest};

use crate::access::{self, Access};
use crate::feed::{self, Feed};
use crate::registrar::{Ask, Registrar};
use crate::tables::Tables;
use crate::turns::Turns;
use crate::vault::{self, Vault};

/// An edge is healthy if it reported within this time.
pub const HEALTHY: Duration = Duration::from_secs(10);
/// How many edges' requests are worked on at once.
const REQUESTS_MAX: usize = 64;
/// How many requests of one edge are worked on at once. A sound edge has one, and a second after a time-out.
const REQUESTS_EACH: usize = 2;
/// Bytes of a report at most, and of one text in it.
const REPORT_BYTES: usize = 64 * 1024;
const REPORT_TEXT: usize = 400;
/// Texts of a report at most.
const REPORT_PROBLEMS: usize = 16;

/// What an edge last reported, and when.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its report.
    pub report: Report,
    /// When it came, by this node's monotonic clock.
    pub at: Instant,
}

/// A region as its edges report it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Live {
    /// Applied by every healthy edge; 0 without any.
    pub applied: u64,
    /// How many edges are healthy.
    pub of: u32,
    /// Healthy edges that are behind the head of what concerns the region.
    pub behind: Vec<Slug>,
}

/// All regions' edges, shared with the views.
#[derive(Debug, Default)]
pub struct Edges {
    seen: RwLock<BTreeMap<(Slug, Slug), Seen>>,
    /// By region: the last sequence that changed a row of its feed.
    relevant: RwLock<HashMap<Slug, u64>>,
}

impl Edges {
    /// A region now.
    pub fn live(&self, region: &Slug) -> Live {
        self.live_since(region, self.relevant(region))
    }

    /// A region now, where an edge is behind that has not applied this sequence.
    pub fn live_since(&self, region: &Slug, relevant: u64) -> Live {
        let seen = self
            .seen
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut live = Live {
            applied: u64::MAX,
            of: 0,
            behind: Vec::new(),
        };
        for ((_, edge), seen) in seen
            .range((region.clone(), first())..)
            .take_while(|((r, _), _)| r == region)
        {
            if seen.at.elapsed() > HEALTHY {
                continue;
            }
            live.of += 1;
            live.applied = live.applied.min(seen.report.applied);
            if seen.report.applied < relevant {
                live.behind.push(edge.clone());
            }
        }
        if live.of == 0 {
            live.applied = 0;
        }
        live
    }

    /// The last sequence that changed a row of the region's feed.
    pub fn relevant(&self, region: &Slug) -> u64 {
        self.relevant
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .get(region)
            .copied()
            .unwrap_or(0)
    }

    /// What one edge last reported.
    pub fn seen(&self, region: &Slug, edge: &Slug) -> Option<Seen> {
        self.seen
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .get(&(region.clone(), edge.clone()))
            .cloned()
    }

    fn note(&self, region: Slug, edge: Slug, report: Report) {
        let mut seen = self
            .seen
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        seen.insert(
            (region, edge),
            Seen {
                report,
                at: Instant::now(),
            },
        );
    }

    fn forget(&self, region: &Slug, edge: &Slug) {
        self.seen
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .remove(&(region.clone(), edge.clone()));
    }

    fn moved(&self, region: &Slug, to: u64) {
        self.relevant
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .insert(region.clone(), to);
    }
}

/// The first of all names, in their order.
fn first() -> Slug {
    Slug::name("0").expect("a digit is a name")
}

/// What every part of distribution works with.
pub struct Shared {
    /// The ledger.
    pub ledger: ledger::Ledger,
    /// The vault.
    pub vault: Addr<Vault>,
    /// The registrar.
    pub registrar: Addr<Registrar>,
    /// JWTs for edges.
    pub access: Arc<Access>,
    /// Publishes deltas.
    pub client: async_nats::Client,
    /// The seed of the feed signer.
    pub signer: keyring::Secret,
    /// Rises only on a restore.
    pub generation: u64,
    /// Who reported what.
    pub edges: Arc<Edges>,
}

struct Region {
    feed: Arc<Feed>,
    /// Published up to here: edges that have everything are here.
    published: u64,
    /// Looked through up to here. What lies in between changed no row; edges hear of it with the next rows or the next tick,
    /// so that commands which concern no edge cost the edges no sync each.
    looked: u64,
    publishing: bool,
    /// What was last put into the log.
    reported: Option<Live>,
    reported_at: Instant,
}

/// The actor.
pub struct Distribution {
    shared: Arc<Shared>,
    regions: HashMap<Slug, Region>,
    requests: Turns<(Slug, Slug)>,
}

impl Distribution {
    /// Starts it on a thread of its own.
    pub fn spawn(shared: Shared) -> Addr<Distribution> {
        let shared = Arc::new(shared);
        Distribution::start_in_arbiter(&Arbiter::new().handle(), move |ctx| {
            ctx.set_mailbox_capacity(4_096);
            Distribution {
                shared,
                regions: HashMap::new(),
                requests: Turns::new(REQUESTS_MAX, REQUESTS_EACH),
            }
        })
    }

    /// Every region of the log has its feed.
    fn know_regions(&mut self) {
        let tables = Tables::of(&self.shared.ledger);
        let head = self.shared.ledger.head().sequence;
        for region in tables.regions() {
            if self.regions.contains_key(&region) {
                continue;
            }
            let signer = match keyring::feed::FeedSigner::from_secret(self.shared.signer.expose()) {
                Ok(signer) => signer,
                Err(_) => {
                    crate::tables::fatal("the feed signer's key is damaged", &"restore the vault")
                }
            };
            let feed = Feed::new(
                region.clone(),
                self.shared.ledger.clone(),
                self.shared.vault.clone(),
                signer,
                self.shared.generation,
            );
            // What came before this start was published or will be asked for: edges compare their place with the head.
            let published = head.saturating_sub(1);
            self.shared.edges.moved(&region, head);
            let long_ago = Instant::now()
                .checked_sub(Duration::from_secs(60))
                .unwrap_or_else(Instant::now);
            self.regions.insert(
                region,
                Region {
                    feed: Arc::new(feed),
                    published,
                    looked: published,
                    publishing: false,
                    reported: None,
                    reported_at: long_ago,
                },
            );
        }
    }

    /// Publishes what changed in each region; with `position` also that nothing did, up to the head.
    fn publish(&mut self, position: bool, ctx: &mut Context<Self>) {
        let head = self.shared.ledger.head().sequence;
        for (name, region) in &mut self.regions {
            let reached = if position {
                region.published
            } else {
                region.looked
            };
            if region.publishing || reached >= head {
                continue;
            }
            region.publishing = true;
            let (feed, shared, name, from, looked) = (
                Arc::clone(&region.feed),
                Arc::clone(&self.shared),
                name.clone(),
                region.published,
                region.looked,
            );
            let work = async move {
                let made = feed.delta(from, looked).await?;
                if !made.rows && !position {
                    return Ok((name, from, made.to));
                }
                let subject = wire::subject::delta(name.as_str());
                for message in made.messages {
                    if let Err(error) = shared.client.publish(subject.clone(), message.into()).await
                    {
                        // The edges find the gap and ask.
                        tracing::warn!(%error, "a delta could not be published");
                    }
                }
                if made.rows {
                    shared.edges.moved(&name, made.to);
                }
                Ok::<_, feed::Error>((name, made.to, made.to))
            };
            ctx.spawn(
                actix::fut::wrap_future::<_, Self>(work)
                    .map(|done, actor, ctx| actor.published(done, ctx)),
            );
        }
    }

    fn published(&mut self, done: Result<(Slug, u64, u64), feed::Error>, ctx: &mut Context<Self>) {
        match done {
            Ok((name, published, looked)) => {
                if let Some(region) = self.regions.get_mut(&name) {
                    region.publishing = false;
                    region.published = published;
                    region.looked = looked;
                }
                self.publish(false, ctx);
            }
            Err(error) => {
                tracing::error!(%error, "a region's feed could not be made; trying again");
                for region in self.regions.values_mut() {
                    region.publishing = false;
                }
            }
        }
    }

    /// At most once a second and only on change, what a region's edges have applied becomes an event.
    fn report(&mut self) {
        for (name, region) in &mut self.regions {
            let live = self.shared.edges.live(name);
            let relevant = self.shared.edges.relevant(name);
            let news = match &region.reported {
                None => live.of > 0,
                // Sequences that changed nothing in the region are no news, or each report would call for the next.
                Some(last) => {
                    last.of != live.of
                        || last.behind != live.behind
                        || (last.applied < relevant && live.applied > last.applied)
                }
            };
            if !news || region.reported_at.elapsed() < Duration::from_secs(1) {
                continue;
            }
            let command = ReportApplied {
                region: name.clone(),
                applied: live.applied,
                of: live.of,
                behind: live.behind.clone(),
            };
            let ask = Ask {
                id: uuid::Uuid::now_v7(),
                ..Ask::internal("distribution", "region.report-applied", command.into())
            };
            if self.shared.registrar.try_send(ask).is_ok() {
                region.reported_at = Instant::now();
                region.reported = Some(live);
            }
        }
    }
}

impl Actor for Distribution {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.know_regions();
        self.publish(true, ctx);
        ctx.run_interval(Duration::from_millis(250), |actor, ctx| {
            actor.know_regions();
            actor.publish(true, ctx);
            actor.report();
        });
    }
}

/// The ledger has risen.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Wake;

impl Handler<Wake> for Distribution {
    type Result = ();

    fn handle(&mut self, _: Wake, ctx: &mut Self::Context) {
        self.know_regions();
        self.publish(false, ctx);
    }
}

impl Handler<EdgeRequest> for Distribution {
    type Result = ();

    fn handle(&mut self, request: EdgeRequest, ctx: &mut Self::Context) {
        let (Ok(region), Ok(edge)) = (Slug::name(&request.region), Slug::name(&request.edge))
        else {
            return refuse(request, Code::Malformed, "no such name");
        };
        if request.verb == "enrol" {
            let shared = Arc::clone(&self.shared);
            ctx.spawn(actix::fut::wrap_future(enrol(
                shared, region, edge, request,
            )));
            return;
        }
        let record = Tables::of(&self.shared.ledger).edge(region.as_str(), edge.as_str());
        if record.is_none_or(|record| record.evicted || record.nkey != request.user) {
            self.shared.edges.forget(&region, &edge);
            return refuse(request, Code::Unauthorized, "this edge is not enrolled");
        }
        let Some(known) = self.regions.get(&region) else {
            return refuse(request, Code::NotFound, "there is no such region");
        };
        match request.verb.as_str() {
            "report" => {
                if let Some(mut report) = read_report(&request.body) {
                    // What nobody has written yet cannot have been applied: it would count as served when it comes.
                    report.applied = report.applied.min(self.shared.ledger.head().sequence);
                    // After a restore the sequences of an older generation are those of a history that is no more.
                    if report.generation != self.shared.generation {
                        report.applied = 0;
                    }
                    self.shared.edges.note(region, edge, report);
                }
                request.responder.silent();
            }
            "sync" | "chunk" => {
                let Some(turn) = self.requests.try_take(&(region, edge)) else {
                    return request.responder.busy();
                };
                let feed = Arc::clone(&known.feed);
                ctx.spawn(actix::fut::wrap_future(async move {
                    let _turn = turn;
                    let made = if request.verb == "sync" {
                        match serde_json::from_slice::<SyncRequest>(&request.body) {
                            Ok(body) if body.format == wire::feed::FORMAT => feed.sync(&body).await,
                            _ => {
                                return refuse(
                                    request,
                                    Code::Malformed,
                                    "not a request of this format",
                                );
                            }
                        }
                    } else {
                        match serde_json::from_slice::<ChunkRequest>(&request.body) {
                            Ok(body) if body.format == wire::feed::FORMAT => {
                                feed.chunk(body.after).await
                            }
                            _ => {
                                return refuse(
                                    request,
                                    Code::Malformed,
                                    "not a request of this format",
                                );
                            }
                        }
                    };
                    match made {
                        Ok(bytes) => request.responder.answer(&bytes),
                        Err(error) => {
                            tracing::error!(%error, "an edge's request could not be answered");
                            request.responder.busy();
                        }
                    }
                }));
            }
            _ => refuse(request, Code::NotFound, "edges have no such subject"),
        }
    }
}

/// A report as far as it is kept: an edge that was taken over must not fill this node's memory or the operator's screen.
fn read_report(body: &[u8]) -> Option<Report> {
    let short = |text: &mut String| {
        if text.len() > REPORT_TEXT || text.chars().any(char::is_control) {
            *text = text
                .chars()
                .filter(|c| !c.is_control())
                .take(REPORT_TEXT / 4)
                .collect();
        }
    };
    let mut report: Report = (body.len() <= REPORT_BYTES)
        .then(|| serde_json::from_slice(body).ok())
        .flatten()?;
    report.problems.truncate(REPORT_PROBLEMS);
    let texts = [&mut report.version].into_iter();
    let texts = texts
        .chain(report.https.as_mut())
        .chain(report.http.as_mut());
    texts.chain(&mut report.problems).for_each(short);
    // The years that RFC 3339 can write.
    report.time = report.time.clamp(0, 253_402_300_799_000);
    Some(report)
}

fn refuse(request: EdgeRequest, code: Code, message: &str) {
    let problem = Problem::new(code, message, "");
    request
        .responder
        .problem(problem.status, &problem.title, &problem.to_json());
}

/// An edge showed its one-time token: the token's user is who asks, and its key names the token.
async fn enrol(shared: Arc<Shared>, region: Slug, edge: Slug, request: EdgeRequest) {
    let Ok(body) = serde_json::from_slice::<EnrolRequest>(&request.body) else {
        return refuse(request, Code::Malformed, "not an enrolment request");
    };
    let command = EnrolEdge {
        region: region.clone(),
        edge: edge.clone(),
        nkey: body.nkey.clone(),
        hpke: body.hpke,
        token: request.user.clone(),
    };
    let about = format!("region.edge-enrol {}", request.user);
    // The same token with the same keys is the same enrolment: an edge that lost the answer asks again.
    match shared
        .registrar
        .send(Ask::internal("access", &about, command.into()))
        .await
    {
        Ok(Answer::Accepted(_)) => {}
        Ok(Answer::Problem(problem)) => {
            return request
                .responder
                .problem(problem.status, &problem.title, &problem.to_json());
        }
        Err(_) => return request.responder.busy(),
    }
    // An edge that was evicted since then could otherwise come back with the token that it used.
    let enrolled = Tables::of(&shared.ledger).edge(region.as_str(), edge.as_str());
    if enrolled.is_none_or(|of| of.evicted || of.nkey != body.nkey || of.hpke != body.hpke) {
        return refuse(
            request,
            Code::Unauthorized,
            "this enrolment is no longer in force",
        );
    }
    let now = u64::try_from(time::OffsetDateTime::now_utc().unix_timestamp()).unwrap_or(0);
    let jwt = shared.access.identity.edge_user_jwt(
        region.as_str(),
        edge.as_str(),
        &body.nkey,
        now,
        now + access::EDGE_LIFE,
    );
    let (name, of) = (edge.clone(), region.clone());
    let sealed = vault::with(&shared.vault, move |core| {
        feed::region_key(core, of.as_str(), &name, &body.hpke.0)
    })
    .await;
    match (jwt, sealed) {
        (Ok(jwt), Ok(Ok(row))) => {
            let response = EnrolResponse {
                jwt,
                region_key: data_encoding::HEXLOWER.encode(&wire::feed::encode(&row)),
            };
            request
                .responder
                .answer(&serde_json::to_vec(&response).unwrap_or_default());
        }
        (jwt, sealed) => {
            let sealed = sealed.map(|s| s.map(drop).map_err(|e| e.to_string()));
            tracing::error!(jwt = ?jwt.map(drop), ?sealed, "an edge could not be enrolled");
            request.responder.busy();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_edge_says_of_itself_is_kept_within_bounds() {
        let report = |time: i64, problem: &str, count: usize| Report {
            generation: 1,
            applied: 7,
            version: "1".to_owned(),
            time,
            https: Some("127.0.0.1:443".to_owned()),
            http: None,
            problems: vec![problem.to_owned(); count],
        };
        let kept = |report: &Report| read_report(&serde_json::to_vec(report).expect("plain data"));
        let sound = report(1_700_000_000_000, "the origin does not answer", 2);
        assert_eq!(kept(&sound), Some(sound));
        let hostile = kept(&report(i64::MAX, "\u{1b}[2J\u{e9}".repeat(60).as_str(), 20))
            .expect("what is too long is cut");
        assert_eq!(hostile.problems.len(), REPORT_PROBLEMS);
        assert!(hostile.problems[0].len() <= REPORT_TEXT);
        assert!(!hostile.problems[0].contains('\u{1b}'));
        assert!(
            hostile.time.checked_mul(1_000).is_some(),
            "it can be told in microseconds"
        );
        assert_eq!(kept(&report(0, &"x".repeat(REPORT_BYTES), 1)), None);
        assert_eq!(read_report(b"{}"), None);
    }
}
