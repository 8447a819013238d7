//! The table of NATS subjects. Permissions and `nats.conf` are checked against it.

/// What every subject begins with.
pub const PREFIX: &str = "chancery.v1.";

/// Commands that only the operator has, as `<noun>.<verb>` below `cmd.platform.`.
pub const PLATFORM_COMMANDS: &[&str] = &[
    "project.create",
    "project.suspend",
    "project.resume",
    "project.delete",
    "project.quota-set",
    "project.export-set",
    "certificate.move",
    "access.create",
    "access.revoke",
    "region.create",
    "region.country-set",
    "edge.enrol",
    "edge.evict",
    "domain.prove",
];

/// Commands of a project, as `<noun>.<verb>` below `cmd.<project>.`.
pub const PROJECT_COMMANDS: &[&str] = &[
    "resource.create",
    "resource.set",
    "resource.delete",
    "domain.add",
    "domain.attach",
    "domain.detach",
    "domain.bind",
    "domain.unbind",
    "domain.https",
    "domain.release",
    "domain.check",
    "certificate.add",
    "certificate.replace",
    "certificate.deploy",
    "certificate.withdraw",
    "certificate.delete",
    "certificate.export",
    "certificate.csr",
    "certificate.csr-discard",
];

/// Those of them that are not taken into the queue, because whoever asks needs what the answer brings.
pub const NOT_QUEUED: &[&str] = &["certificate.csr", "certificate.export", "domain.check"];

/// Views of a project, below `query.<project>.`.
pub const PROJECT_VIEWS: &[&str] = &[
    "active-certificates",
    "fallbacks",
    "certificates",
    "domains",
    "resources",
    "csrs",
    "quotas",
    "usage",
    "regions",
    "host",
    "outcome",
    "events",
    "ingestion-key",
    "checkpoint-key",
    "proof",
];

/// Views that only the operator has, below `query.platform.`.
pub const PLATFORM_VIEWS: &[&str] = &[
    "log",
    "status",
    "projects",
    "access",
    "edges",
    "rebuild",
    "backup",
    "checkpoint",
];

/// Views for which no pattern is enough: a user has all rights, or one that is exactly `query.<view>`. What is in a backup is
/// more than whoever may look at everything needs.
pub const EXACT_VIEWS: &[&str] = &["backup"];

/// `chancery.v1.<kind>.<project>.<rest>`.
pub fn of(kind: &str, project: &str, rest: &str) -> String {
    format!("{PREFIX}{kind}.{project}.{rest}")
}

/// The log subject of an event.
pub fn log(project: &str, name: &str) -> String {
    of("log", project, name)
}

/// The subject on which a region's deltas are published.
pub fn delta(region: &str) -> String {
    format!("{PREFIX}region.{region}.delta")
}

/// A subject of one edge: `enrol`, `sync`, `chunk` or `report`.
pub fn edge(region: &str, edge: &str, what: &str) -> String {
    format!("{PREFIX}edge.{region}.{edge}.{what}")
}
