//! Token buckets: how much of something a project may ask for, in the long run and at once.

use std::collections::HashMap;
use std::time::Instant;

use lifecycle::names::Slug;

/// How many projects' buckets are remembered; full ones are forgotten first.
const BUCKETS_MAX: usize = 100_000;

/// Limits on users' commands.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Commands a second that a project may have decided.
    pub per_second: f64,
    /// Commands at once after a rest.
    pub burst: f64,
}

impl Default for Rate {
    fn default() -> Self {
        Self {
            per_second: 50.0,
            burst: 1_000.0,
        }
    }
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

/// A bucket for each project.
#[derive(Debug)]
pub struct Buckets {
    rate: Rate,
    buckets: HashMap<Slug, Bucket>,
}

impl Buckets {
    /// All full.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self {
            rate,
            buckets: HashMap::new(),
        }
    }

    /// Takes a token of the project's bucket.
    ///
    /// # Errors
    /// How many milliseconds until there is one.
    pub fn take(&mut self, project: &Slug) -> Result<(), u64> {
        let rate = self.rate;
        let now = Instant::now();
        if self.buckets.len() >= BUCKETS_MAX && !self.buckets.contains_key(project) {
            self.buckets.retain(|_, b| {
                b.tokens + now.duration_since(b.at).as_secs_f64() * rate.per_second < rate.burst
            });
        }
        let bucket = self.buckets.entry(project.clone()).or_insert(Bucket {
            tokens: rate.burst,
            at: now,
        });
        bucket.tokens = (bucket.tokens
            + now.duration_since(bucket.at).as_secs_f64() * rate.per_second)
            .min(rate.burst);
        bucket.at = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Err(((1.0 - bucket.tokens) / rate.per_second * 1_000.0).ceil() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_through_and_the_rest_hears_when_to_come_back() {
        let mut buckets = Buckets::new(Rate {
            per_second: 0.1,
            burst: 3.0,
        });
        let (acme, other) = (
            Slug::name("acme").expect("a name"),
            Slug::name("other").expect("a name"),
        );
        for _ in 0..3 {
            assert_eq!(buckets.take(&acme), Ok(()));
        }
        let wait = buckets.take(&acme).expect_err("the bucket is empty");
        assert!((9_000..=10_000).contains(&wait), "{wait}");
        assert_eq!(buckets.take(&other), Ok(()), "each project has its own");
    }
}
