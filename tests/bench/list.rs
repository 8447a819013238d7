//! `certificate list` over a project with very many certificates: all of them, and with filters that few pass.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::plant::Plant;
use crate::report::{Report, milliseconds, quantile};

/// Things on a page, as the command line asks.
const PAGE: usize = 200;
/// One certificate in so many ends soon, and one in so many is asked for by its host.
const SOON: usize = 1_000;
/// Uploads that are made before they are sent, and how many of them are under way at once.
const MADE: (usize, usize) = (10_000, 256);
/// How long verifying all of them may take.
const SETTLED: Duration = Duration::from_secs(900);

struct Walked {
    /// Milliseconds of each page.
    pages: Vec<f64>,
    seconds: f64,
    found: usize,
    usable: usize,
}

/// All pages of a listing, one after the other.
async fn walk(client: &async_nats::Client, project: &str, query: &Value) -> Result<Walked> {
    let subject = wire::subject::of("query", project, "certificates");
    let begun = Instant::now();
    let mut walked = Walked {
        pages: Vec::new(),
        seconds: 0.0,
        found: 0,
        usable: 0,
    };
    let mut query = query.clone();
    loop {
        let sent = Instant::now();
        let request = async_nats::Request::new()
            .payload(query.to_string().into())
            .timeout(Some(Duration::from_secs(30)));
        let answer: Bytes = client.send_request(subject.clone(), request).await?.payload;
        walked.pages.push(milliseconds(sent.elapsed()));
        let page: Value = serde_json::from_slice(&answer)?;
        let found = page["certificates"]
            .as_array()
            .with_context(|| format!("no page: {page}"))?;
        walked.found += found.len();
        let usable = |line: &&Value| line["usable"]["usable"] == true;
        walked.usable += found.iter().filter(usable).count();
        if page["next"].is_null() {
            break;
        }
        query["after"] = page["next"].clone();
    }
    walked.seconds = begun.elapsed().as_secs_f64();
    Ok(walked)
}

async fn fill(plant: &Plant, report: &Report, count: usize) -> Result<()> {
    let user = plant.user(0);
    for first in (0..count).step_by(MADE.0) {
        report.progress(&format!(
            "adding certificates {first} and more to one project"
        ));
        let numbers: Vec<usize> = (first..count.min(first + MADE.0)).collect();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let made: Vec<_> = std::thread::scope(|scope| {
            let workers: Vec<_> = numbers
                .chunks(numbers.len().div_ceil(threads).max(1))
                .map(|some| {
                    scope.spawn(move || {
                        some.iter()
                            .map(|&n| {
                                let days = if n % SOON == 0 { 20 } else { 90 };
                                let host = format!("n{n}.list.example");
                                let leaf = plant.authority.issue_for(&host, days)?;
                                plant.add(user, n, &format!("list-{n:07}"), &leaf, &["north"])
                            })
                            .collect::<Result<Vec<_>>>()
                    })
                })
                .collect();
            workers
                .into_iter()
                .map(|worker| {
                    worker
                        .join()
                        .map_err(|_| anyhow::anyhow!("making certificates"))?
                })
                .collect::<Result<Vec<_>>>()
        })?
        .into_iter()
        .flatten()
        .collect();
        let mut under_way = JoinSet::new();
        for command in made {
            if under_way.len() >= MADE.1 {
                under_way
                    .join_next()
                    .await
                    .context("one is under way")???;
            }
            under_way.spawn(async move { command.send().await });
        }
        while let Some(done) = under_way.join_next().await {
            done??;
        }
    }
    Ok(())
}

/// Fills one project and walks through it.
pub(crate) async fn run(plant: &Plant, report: &mut Report, count: usize) -> Result<()> {
    let begun = Instant::now();
    fill(plant, report, count).await?;
    let host = format!("n{}.list.example", count / 2);
    let user = plant.user(0);
    plant.claim(user, &host).await?;
    report.progress("waiting until all are verified");
    plant.settle(SETTLED).await?;
    report.progress(&format!(
        "{count} certificates in one project after {:.0} s",
        begun.elapsed().as_secs_f64()
    ));
    let client = user.command(0, "domain.add", &json!({})).client;
    let project = user.project.clone();
    let soon = count.div_ceil(SOON);
    for (what, query, found, usable) in [
        ("all", json!({"limit": PAGE}), count, 0),
        (
            "--expiring 30, which 1 in 1,000 passes",
            json!({"limit": PAGE, "expiring": 30}),
            soon,
            0,
        ),
        (
            "--status error, which none passes",
            json!({"limit": PAGE, "status": "error"}),
            0,
            0,
        ),
        (
            "--host, each with its reasons",
            json!({"limit": PAGE, "host": host}),
            count,
            1,
        ),
    ] {
        let mut walked = walk(&client, &project, &query).await?;
        ensure!(
            (walked.found, walked.usable) == (found, usable),
            "{what}: {} of {found} were found, {} of {usable} usable",
            walked.found,
            walked.usable
        );
        let pages = walked.pages.len();
        let all = walked.seconds;
        let (half, most) = (
            quantile(&mut walked.pages, 0.5),
            quantile(&mut walked.pages, 0.99),
        );
        report.row(
            &format!("`certificate list` over {count}, {what}"),
            "",
            &format!(
                "{:.0} pages a second; a page p50 {half:.1} ms, p99 {most:.1} ms; all {pages} in {all:.2} s",
                pages as f64 / all
            ),
            "list",
        );
    }
    Ok(())
}
