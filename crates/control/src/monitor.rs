//! What operators watch of the control plane: numbers for Prometheus, and whether it is ready.
//!
//! Counters and durations are counted where they happen. What is a state (the head, regions, what is owed) is read here: the
//! cheap part whenever somebody looks, the part that goes through tables in the background, with pauses that keep its share
//! of a processor below a hundredth whatever the size of the tables.
//!
//! No label comes from a tenant: values are constants of this program, or regions, which the operator names.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use ledger::Ledger;
use lifecycle::event::CertificateKind;
use lifecycle::names::CertificateId;
use lifecycle::rejection::Code;
use lifecycle::state::{Certificate, Project, ProjectStatus, State, Status, count};
use lifecycle::store::{Parts, Read, Row, Table, decode};
use wire::answer::{Answer, Problem};

use crate::audit::Auditor;
use crate::distribution::Edges;
use crate::registrar::Observed;
use crate::tables::Tables;

/// How often NATS is asked whether it answers.
const PROBE: Duration = Duration::from_secs(1);
/// How long it may take to answer.
const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// An answer counts for so long.
const PROBE_HOLDS: Duration = Duration::from_secs(5);
/// What is owed is counted up to this number; more is as bad.
const OWED_MAX: usize = 10_000;
/// Rows that are read in one transaction while tables are counted.
const PAGE: usize = 500;
/// The shortest pause between two counts of the tables, and how many times the duration of the last count it is at least.
const COUNT_PAUSE: Duration = Duration::from_secs(15);
const COUNT_SHARE: u32 = 100;

const DAY: i64 = 86_400;
/// The windows of `chancery_certificates_expiring`: the label, and the seconds until the end.
const WINDOWS: [(&str, i64); 5] = [
    ("1d", DAY),
    ("3d", 3 * DAY),
    ("7d", 7 * DAY),
    ("14d", 14 * DAY),
    ("30d", 30 * DAY),
];

/// The outcomes of commands.
const OUTCOMES: [&str; 4] = ["accepted", "queued", "rejected", "refused"];
/// What is owed by kind, as in `chancery_owed`.
const OWED: [(&str, Table); 4] = [
    ("verification", Table::Unverified),
    ("proof", Table::Pending),
    ("warning", Table::Warning),
    ("expiry", Table::Expiry),
];
/// Codes with which the door itself refuses.
const DOOR_CODES: [&str; 4] = ["malformed", "unauthorized", "too_large", "busy"];

/// Describes all metrics of the control plane, and begins those whose labels are known with 0.
pub fn describe() {
    commands();
    log();
    let kinds = "Commands that the system owes and has not given yet, by kind; counted to 10,000.";
    describe_gauge!("chancery_owed", Unit::Count, kinds);
    for (kind, _) in OWED {
        gauge!("chancery_owed", "kind" => kind).set(0);
    }
    gauge!("chancery_owed", "kind" => "queue").set(0);
    describe_gauge!(
        "chancery_region_applied_sequence",
        Unit::Count,
        "The log sequence that every healthy edge of the region has applied; 0 without any."
    );
    describe_gauge!(
        "chancery_region_wanted_sequence",
        Unit::Count,
        "The last log sequence that changed what the region's edges serve."
    );
    describe_gauge!(
        "chancery_region_lag_events",
        Unit::Count,
        "Log sequences between what the region should have applied and what it has."
    );
    describe_gauge!(
        "chancery_region_edges",
        Unit::Count,
        "Edges of the region: enrolled, healthy (reported within 10 s), and behind (healthy, and not at the wanted sequence)."
    );
    tables();
    world();
    door();
}

fn commands() {
    describe_counter!(
        "chancery_commands_total",
        Unit::Count,
        "Users' commands by outcome: accepted, queued, rejected (decided against, in the log), refused (no trace in the log)."
    );
    describe_histogram!(
        "chancery_command_seconds",
        Unit::Seconds,
        "Time from a command's arrival to its answer, by outcome."
    );
    for outcome in OUTCOMES {
        counter!("chancery_commands_total", "outcome" => outcome).increment(0);
        let _ = histogram!("chancery_command_seconds", "outcome" => outcome);
    }
    describe_counter!(
        "chancery_commands_refused_total",
        Unit::Count,
        "Users' commands that left no trace in the log, by reason code."
    );
    describe_counter!(
        "chancery_commands_rejected_total",
        Unit::Count,
        "Users' commands that were decided against, by the first reason's code."
    );
    for code in Code::ALL {
        counter!("chancery_commands_refused_total", "code" => code.as_str()).increment(0);
        counter!("chancery_commands_rejected_total", "code" => code.as_str()).increment(0);
    }
    describe_counter!(
        "chancery_queries_total",
        Unit::Count,
        "Queries by view and outcome."
    );
    describe_histogram!(
        "chancery_query_seconds",
        Unit::Seconds,
        "Time from a query's arrival to its answer, by view."
    );
    for view in views().chain(["unknown"]) {
        for outcome in ["answered", "refused"] {
            counter!("chancery_queries_total", "view" => view, "outcome" => outcome).increment(0);
        }
        let _ = histogram!("chancery_query_seconds", "view" => view);
    }
}

fn log() {
    describe_counter!(
        "chancery_registrar_commands_total",
        Unit::Count,
        "Commands that the registrar has answered, the system's own included."
    );
    counter!("chancery_registrar_commands_total").increment(0);
    describe_gauge!(
        "chancery_registrar_halted",
        Unit::Count,
        "1 when nothing is written any more."
    );
    describe_gauge!(
        "chancery_registrar_waiting",
        Unit::Count,
        "1 while the log stream does not say whether the last batch is in it."
    );
    describe_gauge!(
        "chancery_clock_stopped",
        Unit::Count,
        "1 when timed commands have stopped because the wall clock jumped."
    );
    describe_gauge!(
        "chancery_log_head",
        Unit::Count,
        "The sequence of the last event."
    );
    describe_histogram!(
        "chancery_log_append_seconds",
        Unit::Seconds,
        "Time in which a batch became durable in the log stream."
    );
    describe_histogram!(
        "chancery_ledger_append_seconds",
        Unit::Seconds,
        "Time in which a batch became durable in the ledger."
    );
    describe_histogram!(
        "chancery_batch_events",
        Unit::Count,
        "Events of a batch that is appended to the log."
    );
    let _ = histogram!("chancery_log_append_seconds");
    let _ = histogram!("chancery_ledger_append_seconds");
    let _ = histogram!("chancery_batch_events");
    describe_gauge!(
        "chancery_checkpoint_events",
        Unit::Count,
        "Events that the last signed checkpoint covers."
    );
    describe_gauge!(
        "chancery_checkpoint_signable",
        Unit::Count,
        "0 when the log does not continue what was signed, so that no checkpoint can be signed."
    );
}

fn tables() {
    describe_gauge!(
        "chancery_certificates_expiring",
        Unit::Count,
        "Server certificates whose latest ready version ends within the window; a wider window holds the narrower ones."
    );
    for (within, _) in WINDOWS {
        gauge!("chancery_certificates_expiring", "within" => within).set(0);
    }
    describe_counter!(
        "chancery_certificate_warnings_total",
        Unit::Count,
        "Warnings of a certificate's end that are in the log since the start, by stage: 1 is 30 days before, 5 is 1 day."
    );
    for stage in STAGES {
        counter!("chancery_certificate_warnings_total", "stage" => stage).increment(0);
    }
    for (name, text) in [
        (
            "chancery_certificates",
            "Certificates that are not deleted, CA certificates included.",
        ),
        ("chancery_domains", "Claims that are not released."),
        (
            "chancery_domains_pending",
            "Claims that wait for their proof.",
        ),
        (
            "chancery_domains_contested",
            "Hosts that are about to move to another project.",
        ),
        ("chancery_resources", "Resources."),
        (
            "chancery_csrs",
            "Signing requests whose certificate has not come.",
        ),
    ] {
        describe_gauge!(name, Unit::Count, text);
        gauge!(name).set(0);
    }
    describe_gauge!("chancery_projects", Unit::Count, "Projects by status.");
    for status in ["active", "suspended"] {
        gauge!("chancery_projects", "status" => status).set(0);
    }
    describe_gauge!(
        "chancery_count_duration_seconds",
        Unit::Seconds,
        "How long the last count of the tables took."
    );
    gauge!("chancery_count_duration_seconds").set(0);
}

fn world() {
    describe_counter!(
        "chancery_revocation_checks_total",
        Unit::Count,
        "Looks at revocation by what was found; skipped were left to the next round."
    );
    for outcome in [
        "good",
        "revoked",
        "unknown",
        "unreachable",
        "none",
        "skipped",
    ] {
        counter!("chancery_revocation_checks_total", "outcome" => outcome).increment(0);
    }
    describe_counter!(
        "chancery_domain_checks_total",
        Unit::Count,
        "Looks at the DNS for a claim's proof, by what was found."
    );
    for outcome in ["proven", "unproven", "unanswered"] {
        counter!("chancery_domain_checks_total", "outcome" => outcome).increment(0);
    }
    describe_histogram!(
        "chancery_vault_seal_seconds",
        Unit::Seconds,
        "Time in which a group of private keys was sealed and became durable."
    );
    describe_histogram!(
        "chancery_vault_work_seconds",
        Unit::Seconds,
        "Time of other work on the vault's thread."
    );
    let _ = histogram!("chancery_vault_seal_seconds");
    let _ = histogram!("chancery_vault_work_seconds");
    describe_gauge!(
        "chancery_nats_up",
        Unit::Count,
        "1 while the nats-server answers."
    );
    describe_counter!(
        "chancery_nats_restarts_total",
        Unit::Count,
        "How often the nats-server ended by itself and was started again."
    );
    counter!("chancery_nats_restarts_total").increment(0);
}

fn door() {
    describe_gauge!(
        "chancery_door_open",
        Unit::Count,
        "1 while all connections of the door stand."
    );
    describe_gauge!(
        "chancery_door_in_flight_requests",
        Unit::Count,
        "Requests under way."
    );
    describe_gauge!(
        "chancery_door_in_flight_bytes",
        Unit::Bytes,
        "Bytes of the bodies of requests under way."
    );
    describe_counter!(
        "chancery_door_accepted_total",
        Unit::Count,
        "Requests that the door handed on, by kind."
    );
    describe_counter!(
        "chancery_door_refused_total",
        Unit::Count,
        "Requests that the door refused by itself, by reason code."
    );
    describe_counter!(
        "chancery_door_unanswered_total",
        Unit::Count,
        "Requests that were given up without an answer."
    );
    describe_counter!(
        "chancery_door_undelivered_total",
        Unit::Count,
        "Answers that could not be written, or that nobody waited for."
    );
    describe_counter!(
        "chancery_door_reconnects_total",
        Unit::Count,
        "Connections of the door that were lost."
    );
}

/// The stages of warnings, as labels.
pub(crate) const STAGES: [&str; 5] = ["1", "2", "3", "4", "5"];

fn views() -> impl Iterator<Item = &'static str> {
    let of = |views: &'static [&'static str]| views.iter().copied();
    of(wire::subject::PROJECT_VIEWS).chain(of(wire::subject::PLATFORM_VIEWS))
}

/// The view's name as a label; what a client invents has one name.
pub(crate) fn view(name: &str) -> &'static str {
    views().find(|view| *view == name).unwrap_or("unknown")
}

/// How a command ended, as a label, with its code unless it was accepted.
pub(crate) fn outcome(answer: &Answer) -> (&'static str, Option<Code>) {
    match answer {
        Answer::Accepted(accepted) if accepted.outcome == "queued" => ("queued", None),
        Answer::Accepted(_) => ("accepted", None),
        // Only what the log has says where it stands there.
        Answer::Problem(problem) if problem.sequence.is_some() => ("rejected", Some(problem.code)),
        Answer::Problem(problem) => ("refused", Some(problem.code)),
    }
}

/// Counts a command that was answered after `took`.
pub(crate) fn command(answer: &Answer, took: Duration) {
    let (outcome, code) = outcome(answer);
    counter!("chancery_commands_total", "outcome" => outcome).increment(1);
    histogram!("chancery_command_seconds", "outcome" => outcome).record(took);
    match (outcome, code) {
        ("rejected", Some(code)) => {
            counter!("chancery_commands_rejected_total", "code" => code.as_str()).increment(1);
        }
        (_, Some(code)) => {
            counter!("chancery_commands_refused_total", "code" => code.as_str()).increment(1);
        }
        _ => {}
    }
}

/// Counts a query that was answered after `took`.
pub(crate) fn query(name: &str, answered: &Result<Vec<u8>, Problem>, took: Duration) {
    let view = view(name);
    let outcome = match answered {
        Ok(_) => "answered",
        Err(_) => "refused",
    };
    counter!("chancery_queries_total", "view" => view, "outcome" => outcome).increment(1);
    histogram!("chancery_query_seconds", "view" => view).record(took);
}

/// The lines about users' commands that are written at level info in one second at most. A tenant's flood of refusals must
/// not become the log's; the counters have them all.
const LINES: u32 = 50;

/// Writes the line of a command: at info when it was refused or rejected, at debug when it was accepted. Never its body.
pub(crate) fn line(
    answer: &Answer,
    project: &str,
    command: &str,
    actor: &str,
    asker: &str,
    took: Duration,
) {
    let (outcome, code) = outcome(answer);
    let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let id = match answer {
        Answer::Accepted(accepted) => Some(accepted.id),
        Answer::Problem(problem) => problem.id,
    };
    // The span has it too, if it came as far as that.
    let correlation = id.map(tracing::field::display);
    match code {
        Some(code) if may_write() => {
            tracing::info!(
                correlation,
                project,
                command,
                actor,
                asker,
                outcome,
                code = code.as_str(),
                ms,
                "command"
            );
        }
        code => {
            let code = code.map(Code::as_str);
            tracing::debug!(
                correlation,
                project,
                command,
                actor,
                asker,
                outcome,
                code,
                ms,
                "command"
            );
        }
    }
}

/// Whether one more line fits into this second.
fn may_write() -> bool {
    static SECOND: Mutex<Option<(Instant, u32)>> = Mutex::new(None);
    let mut second = SECOND.lock().unwrap_or_else(PoisonError::into_inner);
    let (since, lines) = second.unwrap_or_else(|| (Instant::now(), 0));
    if since.elapsed() >= Duration::from_secs(1) {
        if lines > LINES {
            tracing::warn!(
                left_out = lines - LINES,
                "commands were refused faster than lines are written; the metrics count them all"
            );
        }
        *second = Some((Instant::now(), 1));
        return true;
    }
    *second = Some((since, lines.saturating_add(1)));
    lines < LINES
}

/// Whether a part may be relied upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether it is.
    pub ready: bool,
    /// Why not; or what is wrong although it is. Empty when all is well.
    pub why: Vec<String>,
}

#[derive(Debug, Default)]
struct Probe {
    answered: Option<Instant>,
    error: Option<String>,
    queued: u64,
}

/// Sees the control plane from outside.
pub struct Monitor {
    pub(crate) ledger: Ledger,
    pub(crate) edges: Arc<Edges>,
    pub(crate) registrar: Arc<Mutex<Observed>>,
    pub(crate) clock: Arc<Mutex<Option<String>>>,
    pub(crate) doors: [(&'static str, Arc<OnceLock<bus::door::Door>>); 2],
    pub(crate) auditor: Arc<Auditor>,
    probe: Mutex<Probe>,
}

impl Monitor {
    pub(crate) fn start(
        ledger: Ledger,
        edges: Arc<Edges>,
        registrar: Arc<Mutex<Observed>>,
        clock: Arc<Mutex<Option<String>>>,
        doors: [(&'static str, Arc<OnceLock<bus::door::Door>>); 2],
        auditor: Arc<Auditor>,
        queue: bus::queue::Queue,
    ) -> Arc<Self> {
        let monitor = Arc::new(Self {
            ledger,
            edges,
            registrar,
            clock,
            doors,
            auditor,
            probe: Mutex::default(),
        });
        tokio::spawn(probe(Arc::downgrade(&monitor), queue));
        tokio::spawn(count_for_ever(Arc::downgrade(&monitor)));
        monitor
    }

    /// Whether the control plane takes commands.
    pub fn health(&self) -> Health {
        let mut why = Vec::new();
        let observed = lock(&self.registrar).clone();
        if let Some(halted) = observed.halted {
            why.push(format!("the registrar halted: {halted}"));
        }
        let mut doors = self.doors.iter().filter_map(|(_, door)| door.get());
        if !doors.all(bus::door::Door::is_open) {
            why.push("the door is not open".to_owned());
        }
        let probe = lock(&self.probe);
        match (probe.answered, &probe.error) {
            (_, Some(error)) => why.push(format!("NATS does not answer: {error}")),
            (Some(at), None) if at.elapsed() <= PROBE_HOLDS => {}
            _ => why.push("NATS has not answered for seconds".to_owned()),
        }
        let ready = why.is_empty();
        // These stop nobody's command.
        why.extend(observed.waiting);
        why.extend(lock(&self.clock).clone());
        Health { ready, why }
    }

    /// Sets the gauges that are cheap to read: a few short look-ups in the tables. Blocks.
    pub fn sample(&self) {
        let tables = Tables::of(&self.ledger);
        let observed = lock(&self.registrar).clone();
        gauge!("chancery_registrar_halted").set(flag(observed.halted.is_some()));
        gauge!("chancery_registrar_waiting").set(flag(observed.waiting.is_some()));
        gauge!("chancery_clock_stopped").set(flag(lock(&self.clock).is_some()));
        gauge!("chancery_log_head").set(self.ledger.head().sequence as f64);
        let now = now();
        for (kind, table) in OWED {
            // These tables begin with the time at which something is owed, and hold what is owed in a year too.
            let timed = matches!(kind, "warning" | "expiry");
            let owed = owed(&tables, table, |row| !timed || due(row) <= now);
            gauge!("chancery_owed", "kind" => kind).set(owed as f64);
        }
        gauge!("chancery_owed", "kind" => "queue").set(lock(&self.probe).queued as f64);
        for region in tables.regions() {
            let name = region.to_string();
            let live = self.edges.live(&region);
            let wanted = self.edges.relevant(&region);
            let enrolled = tables
                .edges(&name)
                .iter()
                .filter(|(_, edge)| !edge.evicted)
                .count();
            gauge!("chancery_region_applied_sequence", "region" => name.clone())
                .set(live.applied as f64);
            gauge!("chancery_region_wanted_sequence", "region" => name.clone()).set(wanted as f64);
            // Without a healthy edge nobody knows; that has a number of its own.
            let lag = match live.of {
                0 => 0,
                _ => wanted.saturating_sub(live.applied),
            };
            gauge!("chancery_region_lag_events", "region" => name.clone()).set(lag as f64);
            for (state, number) in [
                ("enrolled", enrolled),
                ("healthy", live.of as usize),
                ("behind", live.behind.len()),
            ] {
                gauge!("chancery_region_edges", "region" => name.clone(), "state" => state)
                    .set(number as f64);
            }
        }
        let (signed, problem) = self.auditor.status();
        gauge!("chancery_checkpoint_events").set(signed["signed"].as_u64().unwrap_or(0) as f64);
        gauge!("chancery_checkpoint_signable").set(flag(problem.is_none()));
        for (name, door) in &self.doors {
            if let Some(door) = door.get() {
                sample_door(name, door);
            }
        }
        let answers = lock(&self.probe);
        let up = answers.error.is_none()
            && answers
                .answered
                .is_some_and(|at| at.elapsed() <= PROBE_HOLDS);
        gauge!("chancery_nats_up").set(flag(up));
    }

    /// Counts what only whole tables tell. Blocks, for seconds with a million certificates.
    fn count(&self) {
        let mut projects = [0_u64; 2];
        self.pages(Table::Project, |_, rows| {
            for (_, row) in rows {
                match decode::<Project>(row).status {
                    ProjectStatus::Active => projects[0] += 1,
                    ProjectStatus::Suspended => projects[1] += 1,
                    ProjectStatus::Deleted => {}
                }
            }
            true
        });
        for (status, number) in ["active", "suspended"].into_iter().zip(projects) {
            gauge!("chancery_projects", "status" => status).set(number as f64);
        }
        let mut sums = [
            (count::CERTIFICATES, "chancery_certificates", 0_u64),
            (count::DOMAINS, "chancery_domains", 0),
            (count::RESOURCES, "chancery_resources", 0),
            (count::CSRS, "chancery_csrs", 0),
        ];
        self.pages(Table::Count, |_, rows| {
            for (key, number) in rows {
                let mut parts = Parts::of(key);
                let (_, what) = (parts.text(), parts.text());
                if let Some(sum) = sums.iter_mut().find(|sum| sum.0 == what) {
                    sum.2 += u64::from(decode::<u32>(number));
                }
            }
            true
        });
        for (_, name, number) in sums {
            gauge!(name).set(number as f64);
        }
        for (table, name) in [
            (Table::Pending, "chancery_domains_pending"),
            (Table::Contest, "chancery_domains_contested"),
        ] {
            let mut number = 0;
            self.pages(table, |_, rows| {
                number += rows.len();
                true
            });
            gauge!(name).set(number as f64);
        }
        for ((within, _), number) in WINDOWS.into_iter().zip(self.expiring(now())) {
            gauge!("chancery_certificates_expiring", "within" => within).set(number as f64);
        }
    }

    /// Living server certificates whose latest ready version ends within each of the windows. Only the rows up to the widest
    /// window are read: the table is ordered by the end.
    fn expiring(&self, now: i64) -> [u64; WINDOWS.len()] {
        let mut counts = [0; WINDOWS.len()];
        let horizon = now.saturating_add(WINDOWS[WINDOWS.len() - 1].1);
        self.pages(Table::Expiry, |tables, rows| {
            for row in rows {
                if due(row) > horizon {
                    return false;
                }
                let mut parts = Parts::of(&row.0);
                let left = due(row) - now;
                let _ = parts.number();
                let (id, version) = (CertificateId(parts.number()), parts.number());
                let alarms = tables
                    .certificate(id)
                    .and_then(|certificate| latest_ready(&certificate))
                    .is_some_and(|latest| u64::from(latest) == version);
                if alarms {
                    for (count, (_, window)) in counts.iter_mut().zip(WINDOWS) {
                        *count += u64::from(left <= window);
                    }
                }
            }
            true
        });
        counts
    }

    /// Goes through a table, each page in a transaction of its own: a long one would keep old pages of the file alive.
    fn pages(&self, table: Table, mut each: impl FnMut(&Tables, &[Row]) -> bool) {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let tables = Tables::of(&self.ledger);
            let rows = tables.scan(table, &[], after.as_deref(), PAGE);
            if !each(&tables, &rows) || rows.len() < PAGE {
                return;
            }
            after = rows.last().map(|(key, _)| key.clone());
        }
    }
}

/// How many rows a table begins with that are owed, up to [`OWED_MAX`].
fn owed(tables: &Tables, table: Table, is_owed: impl Fn(&Row) -> bool) -> usize {
    let mut number = 0;
    let mut after: Option<Vec<u8>> = None;
    while number < OWED_MAX {
        let rows = tables.scan(table, &[], after.as_deref(), PAGE);
        let owed = rows.iter().take_while(|row| is_owed(row)).count();
        number += owed;
        if owed < PAGE {
            break;
        }
        after = rows.last().map(|(key, _)| key.clone());
    }
    number
}

/// The version of a living server certificate whose end matters: an older one that ends has been replaced.
fn latest_ready(certificate: &Certificate) -> Option<u32> {
    (!certificate.deleted && certificate.kind == CertificateKind::Server)
        .then_some(certificate)?
        .versions
        .iter()
        .rfind(|version| version.status == Status::Ready)
        .map(|version| version.version)
}

/// The time with which a row of a table of due times begins.
fn due(row: &Row) -> i64 {
    i64::try_from(Parts::of(&row.0).number()).unwrap_or(i64::MAX)
}

fn sample_door(name: &'static str, door: &bus::door::Door) {
    let counts = door.counts();
    gauge!("chancery_door_open", "door" => name).set(flag(door.is_open()));
    gauge!("chancery_door_in_flight_requests", "door" => name).set(counts.in_flight as f64);
    gauge!("chancery_door_in_flight_bytes", "door" => name).set(counts.in_flight_bytes as f64);
    let kinds: &[&'static str] = match name {
        "edges" => &["edge"],
        _ => &["cmd", "queue", "query"],
    };
    for &kind in kinds {
        let number = counts.accepted.get(kind).copied().unwrap_or(0);
        counter!("chancery_door_accepted_total", "door" => name, "kind" => kind).absolute(number);
    }
    for code in DOOR_CODES {
        let number = counts.refused.get(code).copied().unwrap_or(0);
        counter!("chancery_door_refused_total", "door" => name, "code" => code).absolute(number);
    }
    counter!("chancery_door_unanswered_total", "door" => name).absolute(counts.unanswered);
    counter!("chancery_door_undelivered_total", "door" => name).absolute(counts.undelivered);
    counter!("chancery_door_reconnects_total", "door" => name).absolute(door.reconnects());
}

/// Asks NATS once a second whether it answers, through JetStream, which commands need.
async fn probe(monitor: std::sync::Weak<Monitor>, queue: bus::queue::Queue) {
    loop {
        let asked = tokio::time::timeout(PROBE_LIMIT, queue.waiting()).await;
        let Some(monitor) = monitor.upgrade() else {
            return;
        };
        {
            let mut probe = lock(&monitor.probe);
            match asked {
                Ok(Ok(queued)) => {
                    *probe = Probe {
                        answered: Some(Instant::now()),
                        error: None,
                        queued,
                    };
                }
                Ok(Err(error)) => probe.error = Some(error.to_string()),
                Err(_) => {
                    probe.error = Some(format!("nothing came in {} s", PROBE_LIMIT.as_secs()));
                }
            }
        }
        drop(monitor);
        tokio::time::sleep(PROBE).await;
    }
}

async fn count_for_ever(monitor: std::sync::Weak<Monitor>) {
    loop {
        let Some(seen) = monitor.upgrade() else {
            return;
        };
        let begun = Instant::now();
        // A count that panicked is counted again after the pause.
        let _ = tokio::task::spawn_blocking(move || seen.count()).await;
        let took = begun.elapsed();
        gauge!("chancery_count_duration_seconds").set(took.as_secs_f64());
        tokio::time::sleep((took * COUNT_SHARE).max(COUNT_PAUSE)).await;
    }
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn now() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
