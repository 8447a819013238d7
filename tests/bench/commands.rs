//! Commands end to end: over NATS as a project's users send them, through ingestion, registrar, log and ledger, with each sync.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::task::JoinSet;

use crate::plant::{COMMANDS_PER_SECOND, PROJECTS, Plant, Prepared};
use crate::report::{Report, milliseconds, quantile};

/// Commands in flight at saturation, over all connections.
const IN_FLIGHT: usize = 512;
/// How long the load runs before it is counted.
const WARM_UP: Duration = Duration::from_secs(1);

/// How many commands a second, and how long each took, in milliseconds.
struct Measured {
    per_second: f64,
    latencies: Vec<f64>,
    /// All that were answered, the warm-up's too.
    all: usize,
}

/// As many as there can be: each worker sends its next when it has its answer. Counts what is answered after the warm-up.
async fn saturate(commands: Vec<Prepared>, span: Duration) -> Result<(Measured, Vec<Prepared>)> {
    let commands = Arc::new(commands);
    let next = Arc::new(AtomicUsize::new(0));
    let begun = Instant::now();
    let end = begun + WARM_UP + span;
    let mut workers = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let (commands, next) = (Arc::clone(&commands), Arc::clone(&next));
        workers.spawn(async move {
            let mut done = Vec::new();
            while Instant::now() < end {
                let Some(command) = commands.get(next.fetch_add(1, Ordering::Relaxed)) else {
                    break;
                };
                let sent = Instant::now();
                command.send().await?;
                done.push((sent, Instant::now()));
            }
            anyhow::Ok(done)
        });
    }
    let mut done = Vec::new();
    while let Some(worker) = workers.join_next().await {
        done.extend(worker??);
    }
    let all = done.len();
    let from = begun + WARM_UP;
    // When the commands ran out before the time did, the time ends with the last of them.
    let last = done.iter().map(|(_, at)| *at).max().unwrap_or(end).min(end);
    done.retain(|(_, at)| *at >= from && *at <= last);
    let seconds = last.saturating_duration_since(from).as_secs_f64();
    ensure!(seconds > 0.5, "the commands ran out during the warm-up");
    let used = next.load(Ordering::Relaxed).min(commands.len());
    let measured = Measured {
        per_second: done.len() as f64 / seconds,
        latencies: done
            .iter()
            .map(|(sent, at)| milliseconds(*at - *sent))
            .collect(),
        all,
    };
    Ok((measured, commands[used..].to_vec()))
}

/// So many a second, whatever becomes of them (an open loop): latencies count from the moment at which each was due, so a
/// stall is seen by all that it delays. Returns them in milliseconds.
pub(crate) async fn steadily(
    commands: Vec<Prepared>,
    per_second: f64,
    stop: Option<Arc<AtomicBool>>,
) -> Result<Vec<f64>> {
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    let mut latencies = Vec::new();
    for (n, command) in commands.into_iter().enumerate() {
        let due = begun + Duration::from_secs_f64(n as f64 / per_second);
        tokio::time::sleep_until(due.into()).await;
        if stop
            .as_ref()
            .is_some_and(|stop| stop.load(Ordering::Relaxed))
        {
            break;
        }
        tasks.spawn(async move {
            command.send().await?;
            anyhow::Ok((due, Instant::now()))
        });
        while let Some(done) = tasks.try_join_next() {
            let (due, at) = done??;
            latencies.push((due, at));
        }
    }
    while let Some(done) = tasks.join_next().await {
        latencies.push(done??);
    }
    let from = begun + WARM_UP;
    Ok(latencies
        .into_iter()
        .filter(|(due, _)| *due >= from)
        .map(|(due, at)| milliseconds(at - due))
        .collect())
}

/// Certificates and domains for parts that need a log when this one is not asked for.
pub(crate) async fn fill(plant: &Plant, report: &mut Report, span: Duration) -> Result<()> {
    report.progress("filling the log with certificates and domains");
    let certificates = plant.adds("fill", (span.as_secs_f64() * 1_000.0) as usize, &["north"])?;
    saturate(certificates, span * 2).await?;
    saturate(
        domains(plant, "fill", (span.as_secs_f64() * 4_000.0) as usize),
        span * 2,
    )
    .await?;
    plant.settle(Duration::from_secs(120)).await
}

fn domains(plant: &Plant, kind: &str, count: usize) -> Vec<Prepared> {
    (0..count)
        .map(|n| {
            plant.user(n).command(
                n / PROJECTS,
                "domain.add",
                &json!({"host": plant.host(kind, n)}),
            )
        })
        .collect()
}

/// Both kinds of commands.
pub(crate) async fn run(plant: &Plant, report: &mut Report, span: Duration) -> Result<()> {
    // More than can be done, so that they do not run out; those of the second turn come out of the rest.
    let most = |per_second: f64| (per_second * (span + WARM_UP).as_secs_f64()) as usize;
    report.progress("making certificates and sealing their keys");
    let adds = plant.adds(
        "load",
        most(if report.optimised { 5_000.0 } else { 1_800.0 }),
        &["north"],
    )?;
    let domains = domains(
        plant,
        "site",
        most(if report.optimised { 40_000.0 } else { 9_000.0 }),
    );
    for (what, commands, rate, half) in [
        (
            "domain add",
            domains,
            ">= 5,000/s",
            "p50 < 5 ms, p99 < 20 ms",
        ),
        (
            "certificate add",
            adds,
            ">= 1,000/s",
            "p50 < 10 ms, p99 < 30 ms",
        ),
    ] {
        report.progress(&format!("{what} at saturation"));
        let before = plant.processor()?;
        let (measured, rest) = saturate(commands, span).await?;
        let mut latencies = measured.latencies;
        report.row(
            &format!("{what}, {IN_FLIGHT} in flight"),
            rate,
            &format!(
                "{:.0}/s (p50 {:.0} ms, p99 {:.0} ms)",
                measured.per_second,
                quantile(&mut latencies, 0.5),
                quantile(&mut latencies, 0.99)
            ),
            "commands",
        );
        let answered = Instant::now();
        plant.settle(Duration::from_secs(120)).await?;
        let applied = answered.elapsed();
        let after = plant.processor()?;
        let each = |seconds: f64| seconds * 1e6 / measured.all as f64;
        report.row(
            &format!("{what}, processor time for one"),
            "-",
            &format!(
                "{:.0} us, and {:.0} us in nats-server; all applied {:.1} s after the last answer",
                each(after.0 - before.0),
                each(after.1 - before.1),
                applied.as_secs_f64()
            ),
            "commands",
        );
        let rate = measured.per_second / 2.0;
        report.progress(&format!("{what} at half of that"));
        let count = ((span + WARM_UP).as_secs_f64() * rate) as usize;
        let count = count.min(rest.len());
        let mut latencies = steadily(rest[..count].to_vec(), rate, None).await?;
        report.row(
            &format!("{what} at half of that, open loop"),
            half,
            &format!(
                "p50 {:.1} ms, p99 {:.1} ms, worst {:.0} ms at {rate:.0}/s",
                quantile(&mut latencies, 0.5),
                quantile(&mut latencies, 0.99),
                quantile(&mut latencies, 1.0)
            ),
            "commands",
        );
        plant.settle(Duration::from_secs(120)).await?;
    }
    report.note(format!(
        "commands: {PROJECTS} projects' users on {} connections; control.commands_per_second is raised to {COMMANDS_PER_SECOND}, so that \
         the limit on a tenant is not what is measured; each command is answered after the log and the ledger are synced; PEM of \
         leaf and issuing CA, a P-256 key of its own, made and sealed beforehand; the clients share the cores with the servers; processor time is that of control plane and both edges \
         until every edge has applied everything",
        2 * PROJECTS
    ));
    Ok(())
}
