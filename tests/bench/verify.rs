//! The judgement of real chains, as `chancery verify` gives it: in the process, and with the start of one.

use std::hint::black_box;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use control::chain::offline::{Decision, Domain, Question, read_certificates, verify};
use rustls::pki_types::CertificateDer;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::report::{Report, spread};

struct Real {
    host: String,
    text_of_time: String,
    at: i64,
    domains: [Domain; 1],
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
}

fn real_chains() -> Result<Vec<Real>> {
    let folder = harness::checkout().join("tests/data/real-chains");
    let index: Vec<Value> = serde_json::from_slice(&std::fs::read(folder.join("index.json"))?)?;
    index
        .iter()
        .map(|entry| {
            let host = entry["host"].as_str().context("a host")?.to_owned();
            let text_of_time = entry["at"].as_str().context("a time")?.to_owned();
            let read = |name: &str| -> Result<_> {
                let bytes = std::fs::read(folder.join(&host).join(name))?;
                read_certificates(&bytes).map_err(|reason| anyhow::anyhow!(reason.message))
            };
            Ok(Real {
                at: OffsetDateTime::parse(&text_of_time, &Rfc3339)?.unix_timestamp(),
                domains: [host.parse()?],
                chain: read("chain.pem")?,
                roots: read("roots.pem")?,
                host,
                text_of_time,
            })
        })
        .collect()
}

pub(crate) fn run(report: &mut Report, rounds: u32) -> Result<()> {
    let chains = real_chains()?;
    report.progress(&format!("judging {} real chains", chains.len()));
    for (what, public) in [("their root given", false), ("all public roots", true)] {
        let mut times = Vec::new();
        for _ in 0..15 {
            let begun = Instant::now();
            for _ in 0..rounds {
                for real in &chains {
                    let verdict = verify(Question {
                        chain: black_box(&real.chain),
                        roots: (!public).then_some(&real.roots[..]),
                        domains: &real.domains,
                        spki_of_key: None,
                        at: real.at,
                    });
                    ensure!(
                        verdict.verdict == Decision::Accept,
                        "{}: {:?}",
                        real.host,
                        verdict.reasons
                    );
                }
            }
            let judged = f64::from(rounds) * chains.len() as f64;
            times.push(begun.elapsed().as_secs_f64() * 1e6 / judged);
        }
        report.row(
            &format!("verify, one of {} real chains, {what}", chains.len()),
            "-",
            &format!("{} us", spread(&mut times, 0)),
            "verify",
        );
    }
    let folder = harness::checkout().join("tests/data/real-chains");
    let mut times = Vec::new();
    for real in &chains {
        let begun = Instant::now();
        let status = Command::new(harness::binary())
            .args(["verify", "--json", "--domain", &real.host])
            .args(["--at", &real.text_of_time, "--chain"])
            .arg(folder.join(&real.host).join("chain.pem"))
            .stdout(Stdio::null())
            .status()?;
        ensure!(status.success(), "{}", real.host);
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    report.row(
        "chancery verify, the whole process",
        "< 2 s",
        &format!("{} ms", spread(&mut times, 1)),
        "verify",
    );
    Ok(())
}
