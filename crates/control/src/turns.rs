//! Turns: much work on few places, where the queue of one is not in front of everybody else's.
//!
//! Whoever works waits first for one of a few places of its own and only then among all. So of one project's thousand
//! requests at most a few stand in the common queue, and another project's single one waits for those at most.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Entries without work that may stay until they are swept.
const IDLE_MAX: usize = 1_024;

/// Places for work, shared fairly between the owners of the work.
#[derive(Debug)]
pub struct Turns<K> {
    all: Arc<Semaphore>,
    each: usize,
    /// Places of each owner that works or waits; one that does neither is swept.
    owners: Mutex<HashMap<K, Weak<Semaphore>>>,
}

/// One place; dropping it frees it.
#[derive(Debug)]
pub struct Turn {
    _own: OwnedSemaphorePermit,
    _common: OwnedSemaphorePermit,
}

impl<K: Eq + Hash + Clone> Turns<K> {
    /// With so many places for all, of which one owner may hold `each`.
    #[must_use]
    pub fn new(all: usize, each: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(all.max(1))),
            each: each.max(1),
            owners: Mutex::default(),
        }
    }

    fn of(&self, owner: &K) -> Arc<Semaphore> {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = owners.get(owner).and_then(Weak::upgrade) {
            return places;
        }
        if owners.len() >= IDLE_MAX {
            owners.retain(|_, places| places.strong_count() > 0);
        }
        let places = Arc::new(Semaphore::new(self.each));
        owners.insert(owner.clone(), Arc::downgrade(&places));
        places
    }

    /// Waits for a place.
    pub async fn take(&self, owner: &K) -> Turn {
        const NEVER_CLOSED: &str = "nobody closes these semaphores";
        let own = self.of(owner);
        let own = own.acquire_owned().await.expect(NEVER_CLOSED);
        let common = Arc::clone(&self.all);
        let common = common.acquire_owned().await.expect(NEVER_CLOSED);
        Turn {
            _own: own,
            _common: common,
        }
    }

    /// A place, if one is free at once.
    #[must_use]
    pub fn try_take(&self, owner: &K) -> Option<Turn> {
        let own = self.of(owner).try_acquire_owned().ok()?;
        let common = Arc::clone(&self.all).try_acquire_owned().ok()?;
        Some(Turn {
            _own: own,
            _common: common,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_crowd_of_one_owner_leaves_the_other_its_turn() {
        let turns: Arc<Turns<&str>> = Arc::new(Turns::new(2, 1));
        let held = turns.take(&"crowd").await;
        let crowd: Vec<_> = (0..1_000)
            .map(|_| {
                let turns = Arc::clone(&turns);
                tokio::spawn(async move { turns.take(&"crowd").await })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(turns.try_take(&"crowd").is_none());
        drop(turns.take(&"other").await);
        assert!(turns.try_take(&"other").is_some());
        drop(held);
        for one in crowd {
            drop(one.await.expect("each of the crowd has its turn too"));
        }
    }

    #[tokio::test]
    async fn owners_who_left_are_forgotten() {
        let turns: Turns<usize> = Turns::new(2, 1);
        for owner in 0..10 * IDLE_MAX {
            drop(turns.take(&owner).await);
        }
        let known = turns
            .owners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len();
        assert!(known <= IDLE_MAX, "{known}");
    }
}
