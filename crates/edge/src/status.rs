//! What the edge says about itself: how far it is, and what is wrong with it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::store::Position;

/// How long something that happened once stays among the problems.
const REMEMBERED: Duration = Duration::from_secs(60);

/// The kinds of things that can be wrong, each reported once with its latest words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Problem {
    /// The signed time would leave a host dark.
    Clock,
    /// A row of the feed could not be read.
    Row,
    /// A key could not be opened.
    Key,
    /// The store failed to read or write.
    Store,
    /// A message of the feed was refused.
    Feed,
    /// The system refused a connection or a file.
    System,
}

/// How far the edge is and what is wrong, shared by all its parts.
#[derive(Debug)]
pub(crate) struct Status {
    position: watch::Sender<Position>,
    /// When the control plane was last heard of; when this edge started, if it never was.
    heard: Mutex<Instant>,
    problems: Mutex<BTreeMap<Problem, (Instant, String)>>,
}

impl Status {
    pub(crate) fn new(position: Position) -> Self {
        Self {
            position: watch::Sender::new(position),
            heard: Mutex::new(Instant::now()),
            problems: Mutex::default(),
        }
    }

    /// Where the served state is.
    pub(crate) fn position(&self) -> Position {
        *self.position.borrow()
    }

    /// Tells everybody who waits that more is served now.
    pub(crate) fn advance(&self, position: Position) {
        self.position.send_replace(position);
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Position> {
        self.position.subscribe()
    }

    /// Something signed came from upstream.
    pub(crate) fn heard(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// How long nothing has come from upstream.
    pub(crate) fn silence(&self) -> Duration {
        self.heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed()
    }

    /// Notes a problem. It is forgotten a minute after the last time. The words must not name hosts of customers.
    pub(crate) fn problem(&self, problem: Problem, words: impl Into<String>) {
        let words = words.into();
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = problems
            .get(&problem)
            .is_none_or(|(when, _)| when.elapsed() > REMEMBERED);
        if fresh {
            tracing::warn!(kind = ?problem, problem = %words, "the edge has a problem");
        }
        problems.insert(problem, (Instant::now(), words));
    }

    /// How many kinds of things went wrong within the last minute.
    pub(crate) fn kinds(&self) -> usize {
        let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = |when: &Instant| when.elapsed() <= REMEMBERED;
        problems.values().filter(|(when, _)| recent(when)).count()
    }

    /// What went wrong within the last minute.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        problems.retain(|_, (when, _)| when.elapsed() <= REMEMBERED);
        problems.values().map(|(_, words)| words.clone()).collect()
    }
}
