//! Fail points and planted bugs for the crash sweep. Without the feature `faults` all of it is nothing.
//!
//! A fail point's action `return` aborts the process there, so that a test can stop it at each arrow of the protocol.
//! The points are named `<stream>-<where>` in lower case, as `log-before-publish`.

use std::future::Future;

use async_nats::Client;

/// Whether the named bug was planted by `CHANCERY_PLANTED_BUG`: a test must notice it.
#[cfg(feature = "faults")]
pub(crate) fn planted(bug: &str) -> bool {
    static PLANTED: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    PLANTED
        .get_or_init(|| std::env::var("CHANCERY_PLANTED_BUG").ok())
        .as_deref()
        == Some(bug)
}

#[cfg(not(feature = "faults"))]
pub(crate) fn planted(_bug: &str) -> bool {
    false
}

/// A place where the process may be made to end.
#[cfg(feature = "faults")]
pub(crate) fn point(stream: &str, place: &str) {
    let name = format!("{}-{place}", stream.to_ascii_lowercase());
    let _: Option<()> = fail::eval(&name, |_| std::process::abort());
}

#[cfg(not(feature = "faults"))]
pub(crate) fn point(_stream: &str, _place: &str) {}

/// The same, after all that was published has been written to the connection.
pub(crate) async fn after_flush(client: &Client, stream: &str, place: &str) {
    if cfg!(feature = "faults") {
        // With the server away nothing can be flushed, and the protocol must go on as it does without fail points.
        let _ = tokio::time::timeout(std::time::Duration::from_millis(500), client.flush()).await;
        point(stream, place);
    }
}

/// Awaits an answer, with the point `…-after-commit-before-ack` between sending the request and reading it.
pub(crate) async fn between_sending_and_answer<T>(
    client: &Client,
    stream: &str,
    answer: impl Future<Output = T>,
) -> T {
    if !cfg!(feature = "faults") {
        return answer.await;
    }
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => return answer,
        _ = client.flush() => {}
    }
    point(stream, "after-commit-before-ack");
    answer.await
}
