//! Sees an edge from outside: its gauges, and whether it may be sent clients.
//!
//! An edge is ready when it listens and holds what it was once given. Being cut off does not make it unready: it serves on,
//! through restarts too, and taking it out of a load balancer for that would turn an outage of the control plane into one of
//! everybody's sites.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::meters::Meters;
use crate::resolve::Resolver;
use crate::status::Status;
use crate::store::Store;
use crate::{Edge, Position};

/// Without a word from upstream for so long, what is served may be old. A feed in which nothing happens is asked every ten
/// seconds, and answered.
const STALE: Duration = Duration::from_secs(30);
/// The shortest pause between two counts of the store, and how many times the duration of the last one it is at least.
const COUNT_PAUSE: Duration = Duration::from_secs(15);
const COUNT_SHARE: u32 = 100;

/// Whether an edge may be sent clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether it listens and has something to serve from.
    pub ready: bool,
    /// Whether nothing has come from upstream for half a minute.
    pub stale: bool,
    /// Why it is not ready, and what is wrong although it is. Empty when all is well.
    pub why: Vec<String>,
}

/// The view on one edge. It keeps nothing of it running.
#[derive(Clone)]
pub struct Monitor {
    listens: bool,
    limit: usize,
    status: Arc<Status>,
    store: Arc<Store>,
    resolver: Arc<Resolver>,
    meters: Arc<Meters>,
    counted: Arc<Mutex<Option<(Instant, Duration)>>>,
}

impl Edge {
    /// The view on this edge.
    pub fn monitor(&self) -> Monitor {
        Monitor {
            listens: !self.listeners.is_empty(),
            limit: self.limit,
            status: self.status.clone(),
            store: self.store.clone(),
            resolver: self.resolver.clone(),
            meters: self.meters.clone(),
            counted: Arc::default(),
        }
    }
}

impl Monitor {
    /// Whether it may be sent clients.
    pub fn health(&self) -> Health {
        let mut why = Vec::new();
        if !self.listens {
            why.push("it listens nowhere".to_owned());
        }
        if self.status.position() == Position::default() {
            why.push("its store is empty: it has never heard from its region's feed".to_owned());
        }
        let ready = why.is_empty();
        let silence = self.status.silence();
        let stale = silence > STALE;
        if stale {
            why.push(format!(
                "nothing has come from upstream for {} s: it serves what it holds",
                silence.as_secs()
            ));
        }
        why.extend(self.status.problems());
        Health { ready, stale, why }
    }

    /// Sets the gauges. Blocks: now and then it counts what is in the store.
    pub fn sample(&self) {
        let gauges = &self.meters.state;
        let position = self.status.position();
        self.meters.tell_connections();
        gauges.limit.set(self.limit as f64);
        gauges.applied.set(position.sequence as f64);
        gauges.generation.set(position.generation as f64);
        gauges.silence.set(self.status.silence().as_secs_f64());
        gauges.problems.set(self.status.kinds() as f64);
        let caches = self.resolver.usage();
        gauges.cache_hosts.set(caches.hosts as f64);
        gauges.cache_keys.set(caches.keys as f64);
        gauges.cache_bytes.set(caches.key_bytes as f64);
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let due = counted
            .is_none_or(|(when, took)| when.elapsed() > (took * COUNT_SHARE).max(COUNT_PAUSE));
        if due {
            let begun = Instant::now();
            match self.store.count() {
                Ok((hosts, bundles)) => {
                    gauges.store_hosts.set(hosts as f64);
                    gauges.store_bundles.set(bundles as f64);
                }
                Err(error) => tracing::debug!(%error, "the store cannot be counted now"),
            }
            *counted = Some((Instant::now(), begun.elapsed()));
        }
    }
}
