//! From the moment in which `certificate add` is sent until every region's edge shows the new leaf.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::commands::steadily;
use crate::plant::{Leaf, Plant, Prepared, REGIONS, User, served, tls_client};
use crate::report::{Report, milliseconds, quantile};

/// Hosts that take turns, so that the fallback chain of none grows long.
const HOSTS: usize = 20;
/// Certificates a second that others add meanwhile.
const MEANWHILE: f64 = 100.0;
/// Between two looks at an edge.
const PAUSE: Duration = Duration::from_millis(1);
/// After so long it counts as never.
const PATIENCE: Duration = Duration::from_secs(30);

/// One upload that is ready to be sent.
struct Upload {
    host: String,
    leaf: Leaf,
    command: Prepared,
}

fn upload(plant: &Plant, user: &User, kind: &str, n: usize) -> Result<Upload> {
    let host = format!("live{}.{}.example", n % HOSTS, user.project);
    let leaf = plant.authority.issue(&host)?;
    let command = plant.add(user, n, &format!("{kind}-{n}"), &leaf, &REGIONS)?;
    Ok(Upload {
        host,
        leaf,
        command,
    })
}

/// Milliseconds until each upload was served everywhere, one after the other.
async fn rounds(plant: &Plant, uploads: Vec<Upload>) -> Result<Vec<f64>> {
    let client = tls_client(&plant.authority.root_der)?;
    let mut took = Vec::new();
    for Upload {
        host,
        leaf,
        command,
    } in uploads
    {
        let (host, leaf) = (Arc::new(host), Arc::new(leaf.der));
        let sent = Instant::now();
        let looks: Vec<_> = plant
            .https
            .iter()
            .map(|address| {
                let (address, client, host, leaf) = (
                    *address,
                    Arc::clone(&client),
                    Arc::clone(&host),
                    Arc::clone(&leaf),
                );
                tokio::task::spawn_blocking(move || {
                    while sent.elapsed() < PATIENCE {
                        if served(address, &client, &host).is_ok_and(|shown| shown == *leaf) {
                            return Some(sent.elapsed());
                        }
                        std::thread::sleep(PAUSE);
                    }
                    None
                })
            })
            .collect();
        command.send().await?;
        let mut last = Duration::ZERO;
        for look in looks {
            let seen = look.await?;
            ensure!(seen.is_some(), "{host} was not served within {PATIENCE:?}");
            last = last.max(seen.unwrap_or_default());
        }
        took.push(milliseconds(last));
    }
    Ok(took)
}

pub(crate) async fn run(plant: &Plant, report: &mut Report, count: usize) -> Result<()> {
    let user = plant.user(0);
    for n in 0..HOSTS {
        plant
            .claim(user, &format!("live{n}.{}.example", user.project))
            .await?;
    }
    let uploads = |kind: &str, count: usize| {
        (0..count)
            .map(|n| upload(plant, user, kind, n))
            .collect::<Result<Vec<_>>>()
    };
    // The first of each host is not counted: without a certificate before it there is no connection to refuse.
    rounds(plant, uploads("first", HOSTS)?).await?;
    plant.settle(Duration::from_secs(60)).await?;
    report.progress(&format!("upload to served, {count} rounds"));
    let mut idle = rounds(plant, uploads("idle", count)?).await?;
    let told = |took: &mut [f64]| {
        format!(
            "p50 {:.0} ms, p99 {:.0} ms, worst {:.0} ms",
            quantile(took, 0.5),
            quantile(took, 0.99),
            quantile(took, 1.0)
        )
    };
    report.row(
        "upload to served in 2 regions, idle",
        "p99 < 1 s",
        &told(&mut idle),
        "served",
    );

    // Enough for twice the time that the targets give.
    let others = plant.adds(
        "meanwhile",
        (MEANWHILE * count as f64 * 0.6) as usize + 300,
        &REGIONS,
    )?;
    let most = others.len();
    let uploads = uploads("busy", count)?;
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(steadily(others, MEANWHILE, Some(Arc::clone(&stop))));
    report.progress(&format!(
        "upload to served while {MEANWHILE} a second are added (up to {most})"
    ));
    let busy = rounds(plant, uploads).await;
    let lasted = !load.is_finished();
    stop.store(true, Ordering::Relaxed);
    let mut added = load.await??;
    let mut busy = busy?;
    report.row(
        "the same while 100 a second are added",
        "p99 < 2 s",
        &told(&mut busy),
        "served",
    );
    report.note(format!(
        "served: {count} rounds each, on {HOSTS} hosts in turn, each with certificates before; looked at with a full TLS 1.3 handshake every \
         {PAUSE:?} from outside, so both looking and signing cost processor time; those added meanwhile were answered with p50 {:.1} ms, p99 {:.1} ms{}",
        quantile(&mut added, 0.5),
        quantile(&mut added, 0.99),
        if lasted { "" } else { "; they were used up before the last round" },
    ));
    plant.settle(Duration::from_secs(120)).await
}
