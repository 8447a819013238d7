//! Places where a crash sweep may stop the process, and bugs it must be able to see.
//!
//! Without the cargo feature `faults` nothing of this is compiled in. With it:
//!
//! - The fail points `ledger-before-write`, `ledger-before-commit` and `ledger-after-commit` lie
//!   around an append. The action `return` aborts the process there, as a `kill -9` would. The
//!   program arms them, from the variable `FAILPOINTS`, with `fail::FailScenario::setup()`.
//! - The variable `CHANCERY_PLANTED_BUG=half-batch`, read once, makes every append of more than one
//!   event keep only the first half of the events while it reports, and writes as the head, the
//!   whole batch. A sweep that does not notice this proves nothing.

/// A fail point that ends the process.
#[cfg(feature = "faults")]
pub(crate) fn point(name: &str) {
    fail::fail_point!(name, |_| -> () { std::process::abort() });
}

/// A fail point that is not there.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(crate) fn point(_name: &str) {}

/// How many of a batch's events are kept: all of them, unless the bug is planted.
#[cfg(feature = "faults")]
pub(crate) fn kept(records: usize) -> usize {
    static HALF: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    let half = *HALF.get_or_init(|| {
        std::env::var_os("CHANCERY_PLANTED_BUG").is_some_and(|bug| bug == "half-batch")
    });
    if half { records.div_ceil(2) } else { records }
}

/// How many of a batch's events are kept: all of them.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(crate) fn kept(records: usize) -> usize {
    records
}
