//! `chancery up`: everything in one process, with its own nats-server child.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::ensure;

use lifecycle::names::Slug;

use crate::cli;
use crate::config::{self, Config, Role};

/// The region when none is named.
const REGION: &str = "local";

/// Runs until it is ended. `json`: the ready line is a JSON document.
///
/// # Errors
/// When it cannot start, or a part of it fails for good.
pub async fn run(args: cli::Up, json: bool) -> anyhow::Result<ExitCode> {
    let config = configuration(args)?;
    crate::servers::run(config, json).await
}

/// The flags on top of the file; without a file, one edge for each region on free ports.
fn configuration(args: cli::Up) -> anyhow::Result<Config> {
    let mut config = match &args.config {
        Some(path) => Config::load(path)?,
        None => Config::parse(&format!(
            "state = {:?}\n[[edge]]\nregion = \"{REGION}\"\nname = \"{REGION}-1\"\nhttps = \"127.0.0.1:0\"\n",
            "chancery-state"
        ))?,
    };
    if args.config.is_none() {
        config.edges.clear();
    }
    ensure!(
        Role::ALL.iter().all(|role| config.is(*role)),
        "up runs everything in one process; use `chancery serve` for the roles of this file"
    );
    if let Some(state) = args.state {
        config.state = state;
    } else if args.config.is_none() {
        config.state = PathBuf::from("chancery-state");
    }
    let regions = if args.regions.is_empty() && config.edges.is_empty() {
        vec![Slug::name(REGION).map_err(anyhow::Error::from)?]
    } else {
        args.regions
    };
    let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    for region in regions {
        if config.edges.iter().any(|e| e.region == region) {
            continue;
        }
        let name =
            Slug::name(&format!("{}-1", clip(region.as_str()))).map_err(anyhow::Error::from)?;
        config.edges.push(config::Edge {
            region,
            name,
            https: free,
            http: Some(free),
            token: None,
            cache_bytes: config::cache_bytes(),
        });
    }
    ensure!(
        args.https.len() <= config.edges.len(),
        "--https is given more often than there are regions"
    );
    ensure!(
        args.http.len() <= config.edges.len(),
        "--http is given more often than there are regions"
    );
    for (edge, address) in config.edges.iter_mut().zip(args.https) {
        edge.https = address;
    }
    for (edge, address) in config.edges.iter_mut().zip(args.http) {
        edge.http = Some(address);
    }
    if config.metrics.is_none() {
        config.metrics = Some(config::Metrics { listen: free });
    }
    Ok(config)
}

/// A region's name may be as long as an edge's, and the edge's gets a number.
fn clip(region: &str) -> &str {
    region[..region.len().min(60)].trim_end_matches('-')
}
