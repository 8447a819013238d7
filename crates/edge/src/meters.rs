//! The edge in numbers.
//!
//! Everything on the way of a handshake or a request is counted through handles that were made at the start: no look-up, no
//! allocation, an atomic addition each. Every series has the labels `region` and `edge`, which the operator names; nothing
//! that a client or a tenant chooses becomes a label.

use std::io;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use rustls::ProtocolVersion;

use lifecycle::names::Slug;

/// The TLS versions, as labels.
const VERSIONS: [&str; 2] = ["1.2", "1.3"];
/// The classes of statuses of answers, as labels; the last one is that of clients that left before there was a status.
const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "left"];

/// Why a handshake failed, as far as operators tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// Nobody has this name here, or it has no certificate now: alert `unrecognized_name`.
    UnrecognizedName,
    /// The store could not be read.
    Store,
    /// It took too long.
    Timeout,
    /// The client closed or reset the connection.
    Closed,
    /// The client sent an alert, mostly because it does not trust the certificate.
    Alert,
    /// Client and edge have no version, suite, group or signature in common.
    Incompatible,
    /// What came was no TLS, or broke its rules.
    Protocol,
    /// Anything else.
    Other,
}

impl Failed {
    const ALL: [(Failed, &'static str); 8] = [
        (Failed::UnrecognizedName, "unrecognized_name"),
        (Failed::Store, "store"),
        (Failed::Timeout, "timeout"),
        (Failed::Closed, "closed"),
        (Failed::Alert, "client_alert"),
        (Failed::Incompatible, "incompatible"),
        (Failed::Protocol, "protocol"),
        (Failed::Other, "other"),
    ];

    /// What an error of the connection means.
    pub(crate) fn of(error: &io::Error) -> Self {
        let tls = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls {
            Some(rustls::Error::AlertReceived(_)) => Failed::Alert,
            Some(
                rustls::Error::PeerIncompatible(_)
                | rustls::Error::NoApplicationProtocol
                | rustls::Error::NoCertificatesPresented,
            ) => Failed::Incompatible,
            Some(
                rustls::Error::InappropriateMessage { .. }
                | rustls::Error::InappropriateHandshakeMessage { .. }
                | rustls::Error::InvalidMessage(_)
                | rustls::Error::PeerMisbehaved(_)
                | rustls::Error::PeerSentOversizedRecord
                | rustls::Error::DecryptError,
            ) => Failed::Protocol,
            Some(_) => Failed::Other,
            None => match error.kind() {
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::NotConnected => Failed::Closed,
                io::ErrorKind::TimedOut => Failed::Timeout,
                _ => Failed::Other,
            },
        }
    }
}

/// Describes the metrics of edges. Those of one edge begin, with 0, when it starts.
pub fn describe() {
    describe_counter!(
        "chancery_edge_handshakes_total",
        Unit::Count,
        "TLS handshakes by outcome and version; those that failed have no version."
    );
    describe_counter!(
        "chancery_edge_handshake_failures_total",
        Unit::Count,
        "TLS handshakes that failed, by reason."
    );
    describe_histogram!(
        "chancery_edge_handshake_seconds",
        Unit::Seconds,
        "Time from accepting a connection to the end of its handshake, of those that succeeded."
    );
    describe_counter!(
        "chancery_edge_requests_total",
        Unit::Count,
        "Requests by class of the answer's status; left: the client was gone before there was one."
    );
    describe_histogram!(
        "chancery_edge_request_seconds",
        Unit::Seconds,
        "Time from a request's head to the end of its answer's body."
    );
    describe_gauge!(
        "chancery_edge_connections",
        Unit::Count,
        "Connections that are open, HTTP and HTTPS together."
    );
    describe_gauge!(
        "chancery_edge_connections_limit",
        Unit::Count,
        "Connections that may be open; more wait in the system's queue."
    );
    describe_counter!(
        "chancery_edge_body_bytes_total",
        Unit::Bytes,
        "Bytes of bodies: in from clients, out to clients."
    );
    describe_counter!(
        "chancery_edge_hosts_refused_total",
        Unit::Count,
        "Names that are not served here: handshakes with unrecognized_name, and requests answered 421."
    );
    describe_counter!(
        "chancery_edge_fallbacks_served_total",
        Unit::Count,
        "Handshakes in which another certificate than the first of the ranking was served: it has ended, does not open, or \
         the client cannot check it."
    );
    describe_counter!(
        "chancery_edge_keys_opened_total",
        Unit::Count,
        "Private keys that were opened because they were not in the cache."
    );
    describe_gauge!(
        "chancery_edge_applied_sequence",
        Unit::Count,
        "The log sequence up to which the edge serves."
    );
    describe_gauge!(
        "chancery_edge_generation",
        Unit::Count,
        "The generation of the feed; it rises on a restore."
    );
    describe_gauge!(
        "chancery_edge_upstream_silence_seconds",
        Unit::Seconds,
        "Time since the control plane was last heard of; since the start if it never was."
    );
    describe_gauge!(
        "chancery_edge_store_hosts",
        Unit::Count,
        "Hosts (claims) in the edge's store."
    );
    describe_gauge!(
        "chancery_edge_store_bundles",
        Unit::Count,
        "Certificates with their keys in the edge's store."
    );
    describe_gauge!(
        "chancery_edge_cache_hosts",
        Unit::Count,
        "Hosts that are kept joined in memory."
    );
    describe_gauge!(
        "chancery_edge_cache_keys",
        Unit::Count,
        "Opened keys in memory."
    );
    describe_gauge!(
        "chancery_edge_cache_bytes",
        Unit::Bytes,
        "What the opened keys and their chains take."
    );
    describe_gauge!(
        "chancery_edge_problems",
        Unit::Count,
        "Kinds of problems that the edge has had within the last minute; `chancery edge list` tells them."
    );
}

/// The handles of one edge.
#[derive(Debug)]
pub(crate) struct Meters {
    handshakes: [Counter; VERSIONS.len()],
    handshakes_failed: Counter,
    failures: [Counter; Failed::ALL.len()],
    handshake_seconds: Histogram,
    requests: [Counter; CLASSES.len()],
    request_seconds: Histogram,
    bytes_in: Counter,
    bytes_out: Counter,
    hosts_refused: Counter,
    pub(crate) fallbacks: Counter,
    pub(crate) keys_opened: Counter,
    open: AtomicI64,
    pub(crate) state: Gauges,
}

/// The gauges that are set when somebody looks.
#[derive(Debug)]
pub(crate) struct Gauges {
    connections: Gauge,
    pub(crate) limit: Gauge,
    pub(crate) applied: Gauge,
    pub(crate) generation: Gauge,
    pub(crate) silence: Gauge,
    pub(crate) store_hosts: Gauge,
    pub(crate) store_bundles: Gauge,
    pub(crate) cache_hosts: Gauge,
    pub(crate) cache_keys: Gauge,
    pub(crate) cache_bytes: Gauge,
    pub(crate) problems: Gauge,
}

impl Meters {
    /// Begins an edge's series with 0.
    pub(crate) fn new(region: &Slug, edge: &Slug) -> Self {
        let labels = [("region", region.to_string()), ("edge", edge.to_string())];
        let count = |name: &'static str, more: &[(&'static str, &'static str)]| {
            let mut all = labels.to_vec();
            all.extend(more.iter().map(|(key, value)| (*key, (*value).to_owned())));
            let counter = counter!(name, &all);
            counter.increment(0);
            counter
        };
        let level = |name: &'static str| gauge!(name, &labels);
        Self {
            handshakes: VERSIONS.map(|version| {
                count(
                    "chancery_edge_handshakes_total",
                    &[("outcome", "done"), ("version", version)],
                )
            }),
            handshakes_failed: count(
                "chancery_edge_handshakes_total",
                &[("outcome", "failed"), ("version", "none")],
            ),
            failures: Failed::ALL.map(|(_, reason)| {
                count(
                    "chancery_edge_handshake_failures_total",
                    &[("reason", reason)],
                )
            }),
            handshake_seconds: histogram!("chancery_edge_handshake_seconds", &labels),
            requests: CLASSES
                .map(|class| count("chancery_edge_requests_total", &[("class", class)])),
            request_seconds: histogram!("chancery_edge_request_seconds", &labels),
            bytes_in: count("chancery_edge_body_bytes_total", &[("direction", "in")]),
            bytes_out: count("chancery_edge_body_bytes_total", &[("direction", "out")]),
            hosts_refused: count("chancery_edge_hosts_refused_total", &[]),
            fallbacks: count("chancery_edge_fallbacks_served_total", &[]),
            keys_opened: count("chancery_edge_keys_opened_total", &[]),
            open: AtomicI64::new(0),
            state: Gauges {
                connections: level("chancery_edge_connections"),
                limit: level("chancery_edge_connections_limit"),
                applied: level("chancery_edge_applied_sequence"),
                generation: level("chancery_edge_generation"),
                silence: level("chancery_edge_upstream_silence_seconds"),
                store_hosts: level("chancery_edge_store_hosts"),
                store_bundles: level("chancery_edge_store_bundles"),
                cache_hosts: level("chancery_edge_cache_hosts"),
                cache_keys: level("chancery_edge_cache_keys"),
                cache_bytes: level("chancery_edge_cache_bytes"),
                problems: level("chancery_edge_problems"),
            },
        }
    }

    /// A handshake has succeeded.
    pub(crate) fn shaken(&self, version: Option<ProtocolVersion>, took: Duration) {
        let version = usize::from(version != Some(ProtocolVersion::TLSv1_2));
        self.handshakes[version].increment(1);
        self.handshake_seconds.record(took);
    }

    /// A handshake has failed.
    pub(crate) fn failed(&self, why: Failed) {
        self.handshakes_failed.increment(1);
        if let Some(place) = Failed::ALL.iter().position(|(failed, _)| *failed == why) {
            self.failures[place].increment(1);
        }
        if why == Failed::UnrecognizedName {
            self.hosts_refused.increment(1);
        }
    }

    /// A request's answer has ended, or its client has left.
    pub(crate) fn answered(
        &self,
        status: Option<http::StatusCode>,
        bytes: (u64, u64),
        took: Duration,
    ) {
        let class = match status.map(|status| status.as_u16()) {
            Some(status @ 100..=599) => usize::from(status / 100) - 1,
            // Origins may answer with numbers that nobody has defined.
            Some(_) => 4,
            None => CLASSES.len() - 1,
        };
        self.requests[class].increment(1);
        self.request_seconds.record(took);
        self.bytes_in.increment(bytes.0);
        self.bytes_out.increment(bytes.1);
        if status == Some(http::StatusCode::MISDIRECTED_REQUEST) {
            self.hosts_refused.increment(1);
        }
    }

    /// A connection was accepted; it is open while what is given back lives.
    pub(crate) fn opened(self: &std::sync::Arc<Self>) -> Open {
        self.open.fetch_add(1, Ordering::Relaxed);
        Open(self.clone())
    }

    /// Tells how many connections are open.
    pub(crate) fn tell_connections(&self) {
        let open = self.open.load(Ordering::Relaxed);
        self.state.connections.set(open as f64);
    }
}

/// An open connection.
pub(crate) struct Open(std::sync::Arc<Meters>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_place() {
        for (place, (failed, reason)) in Failed::ALL.iter().enumerate() {
            let first = Failed::ALL.iter().position(|(other, _)| other == failed);
            assert_eq!(first, Some(place), "{reason}");
        }
        let of = |error: rustls::Error| Failed::of(&io::Error::other(error));
        assert_eq!(
            of(rustls::Error::AlertReceived(
                rustls::AlertDescription::UnknownCA
            )),
            Failed::Alert
        );
        assert_eq!(
            Failed::of(&io::ErrorKind::UnexpectedEof.into()),
            Failed::Closed
        );
        assert_eq!(
            Failed::of(&io::ErrorKind::PermissionDenied.into()),
            Failed::Other
        );
    }
}
