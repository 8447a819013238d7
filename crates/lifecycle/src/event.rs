//! What happened. These are the `data` of the log's events; the envelope around them is `wire`'s.
//!
//! Stored shapes: a field, once written, stays. A change of meaning is a new version of the event's type with an upcast
//! from the old one, and a golden file for each holds them in place.

use serde::{Deserialize, Serialize};

use crate::names::{CertificateId, Digest, Host, ResourceId, Slug};
use crate::rejection::Reason;
use crate::selection::KeyKind;

/// The kind of a certificate.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum CertificateKind {
    /// Chain and key, served to clients.
    #[default]
    Server,
    /// A CA that client certificates are checked against. Never a key.
    Ca,
}

/// Whom a chain is trusted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Trust {
    /// A path to a public root was found.
    Public,
    /// It ends at a CA that is not publicly trusted.
    Private,
    /// The leaf signed itself.
    SelfSigned,
}

/// The kind of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum ResourceKind {
    /// An object storage bucket, in exactly one region.
    Bucket,
    /// A CDN resource, in one or more regions.
    Cdn,
    /// A load balancer's listener, in one or more regions.
    Listener,
}

/// How a claim was proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Proof {
    /// An operator vouched for it.
    Operator,
    /// The claim's token stood in a TXT record.
    DnsTxt,
    /// The host was an alias (CNAME) of a provider domain of the project.
    DnsCname,
}

impl Proof {
    /// As programs see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Proof::Operator => "operator",
            Proof::DnsTxt => "dns-txt",
            Proof::DnsCname => "dns-cname",
        }
    }
}

/// HTTPS on or off, as people command it. `bound` is reached by `bind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Https {
    /// Selection decides.
    Auto,
    /// No HTTPS.
    Off,
}

/// What is known of one version of a certificate from its bytes alone, so that a replay parses no DER.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Facts {
    /// SHA-256 of the leaf's DER.
    pub fingerprint: Digest,
    /// SHA-256 of each certificate's DER, leaf first. The bytes are in the content store.
    pub chain: Vec<Digest>,
    /// DNS names of the leaf, lower-case A-labels, wildcards included; at most 250.
    pub names: Vec<String>,
    /// First second of validity, Unix time; RFC 3339 in events.
    #[serde(with = "second")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Time"))]
    pub not_before: i64,
    /// Last second of validity, Unix time; RFC 3339 in events.
    #[serde(with = "second")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Time"))]
    pub not_after: i64,
    /// The leaf's key.
    pub key: KeyKind,
    /// SHA-256 of the leaf's SubjectPublicKeyInfo.
    pub spki: Digest,
}

/// A time to the second: RFC 3339 in UTC in text formats, Unix seconds in rows.
pub mod second {
    use serde::{Deserialize, Deserializer, Serializer, de, ser};
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;

    fn text(seconds: i64) -> Option<String> {
        OffsetDateTime::from_unix_timestamp(seconds)
            .ok()?
            .format(&Rfc3339)
            .ok()
    }

    fn read(text: &str) -> Option<i64> {
        let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        Some(time.unix_timestamp())
    }

    /// Writes it.
    ///
    /// # Errors
    /// For a text format, a year beyond 9999; and those of the format.
    pub fn serialize<S: Serializer>(seconds: &i64, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() {
            to.serialize_str(
                &text(*seconds).ok_or_else(|| ser::Error::custom("a time beyond the year 9999"))?,
            )
        } else {
            to.serialize_i64(*seconds)
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// When it is not a time, and those of the format.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
        if from.is_human_readable() {
            let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
            read(&text).ok_or_else(|| de::Error::custom("not a time in RFC 3339"))
        } else {
            i64::deserialize(from)
        }
    }

    /// The same, or none.
    pub mod optional {
        use serde::{Deserialize, Deserializer, Serialize, Serializer};

        #[derive(Serialize, Deserialize)]
        struct Second(#[serde(with = "super")] i64);

        /// Writes it.
        ///
        /// # Errors
        /// As for one that is there.
        pub fn serialize<S: Serializer>(seconds: &Option<i64>, to: S) -> Result<S::Ok, S::Error> {
            seconds.map(Second).serialize(to)
        }

        /// Reads it.
        ///
        /// # Errors
        /// As for one that is there.
        pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<i64>, D::Error> {
            Ok(Option::<Second>::deserialize(from)?.map(|second| second.0))
        }
    }
}

/// A host for which a version is active, and how long it stays valid if nothing is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Runway {
    /// The host.
    pub host: Host,
    /// The region.
    pub region: Slug,
    /// When the last certificate that covers the host there ends.
    #[serde(with = "second")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Time"))]
    pub until: i64,
}

macro_rules! events {
    ($($(#[$doc:meta])* $variant:ident = $name:literal { $($(#[$fdoc:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
            #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
            #[serde(deny_unknown_fields)]
            pub struct $variant { $($(#[$fdoc])* pub $field: $type,)* }

            impl From<$variant> for Event {
                fn from(event: $variant) -> Self { Event::$variant(event) }
            }
        )*

        /// An event's `data` with its noun and fact.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Event {
            $($(#[$doc])* $variant($variant),)*
        }

        impl Event {
            /// The names of all events, `<noun>.<fact>`.
            pub const NAMES: &[&str] = &[$($name),*];

            /// The JSON schema of each event's data, by its name.
            #[cfg(feature = "schema")]
            pub fn schemas(generator: &mut schemars::SchemaGenerator) -> Vec<(&'static str, schemars::Schema)> {
                vec![$(($name, generator.subschema_for::<$variant>()),)*]
            }

            /// `<noun>.<fact>`.
            pub fn name(&self) -> &'static str {
                match self { $(Event::$variant(_) => $name,)* }
            }

            /// The data as JSON.
            ///
            /// # Errors
            /// Those of the serializer.
            pub fn serialize_data<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                match self { $(Event::$variant(data) => data.serialize(to),)* }
            }

            /// Reads the data of the event of this name. None: there is no such event.
            pub fn deserialize_data<'de, D: serde::Deserializer<'de>>(name: &str, from: D) -> Option<Result<Self, D::Error>> {
                match name { $($name => Some($variant::deserialize(from).map(Event::$variant)),)* _ => None }
            }
        }
    };
}

events! {
    /// The log begins.
    ControlGenesis = "control.genesis" {
        /// The log's id, a UUID.
        log: String,
        /// The feed signer, Ed25519 public key.
        signer: Digest,
        /// The domain below which provider domains live.
        platform_domain: String,
    }
    /// A control node became the writer. What its predecessor had in flight can no longer be committed.
    ControlLeaderElected = "control.leader-elected" {
        /// The node's name.
        node: String,
        /// Rises by one with each.
        epoch: u64,
    }
    /// A project was created.
    ProjectCreated = "project.created" {
        /// Its id.
        project: Slug,
    }
    /// A project was suspended: nothing of it is served, its commands are refused.
    ProjectSuspended = "project.suspended" {
        /// Its id.
        project: Slug,
    }
    /// A suspended project is served again.
    ProjectResumed = "project.resumed" {
        /// Its id.
        project: Slug,
    }
    /// A project was told how many certificates it may have.
    ProjectQuotaSet = "project.quota-set" {
        /// Its id.
        project: Slug,
        /// Certificates of both kinds together that are not deleted.
        certificates: u32,
        /// The same of one kind in one region.
        per_region: u32,
    }
    /// Whether private keys may leave a project.
    ProjectExportSet = "project.export-set" {
        /// Its id.
        project: Slug,
        /// Whether `certificate.export` is allowed.
        export: bool,
    }
    /// A project ended. Its id is never used again.
    ProjectDeleted = "project.deleted" {
        /// Its id.
        project: Slug,
    }
    /// Somebody may act for a project.
    AccessCreated = "access.created" {
        /// The project.
        project: Slug,
        /// The opaque id of the actor.
        actor: Slug,
        /// The NKEY user public key.
        nkey: String,
        /// Subject patterns below the project, as `cmd.certificate.*`.
        rights: Vec<String>,
        /// When it ends, Unix seconds.
        #[serde(default, skip_serializing_if = "Option::is_none", with = "second::optional")]
        #[cfg_attr(feature = "schema", schemars(with = "Option<crate::schema::Time>"))]
        expires: Option<i64>,
    }
    /// Somebody may no longer act for a project.
    AccessRevoked = "access.revoked" {
        /// The project.
        project: Slug,
        /// The actor.
        actor: Slug,
        /// The NKEY user public key.
        nkey: String,
    }
    /// A region was created, with the first version of its key.
    RegionCreated = "region.created" {
        /// Its name.
        region: Slug,
        /// The public half of its key, X25519.
        key: Digest,
        /// The version of its key.
        key_version: u32,
    }
    /// A country was given its set of regions.
    RegionCountrySet = "region.country-set" {
        /// The country.
        country: Slug,
        /// The regions.
        regions: Vec<Slug>,
    }
    /// An edge joined a region.
    RegionEdgeEnrolled = "region.edge-enrolled" {
        /// The region.
        region: Slug,
        /// The edge's name.
        edge: Slug,
        /// Its NKEY user public key.
        nkey: String,
        /// Its HPKE public key, X25519.
        hpke: Digest,
        /// The one-time token that it used, by its id.
        token: String,
    }
    /// An edge was put out of a region.
    RegionEdgeEvicted = "region.edge-evicted" {
        /// The region.
        region: Slug,
        /// The edge's name.
        edge: Slug,
        /// Its NKEY user public key.
        nkey: String,
    }
    /// A region got the next version of its key.
    RegionKeyRotated = "region.key-rotated" {
        /// The region.
        region: Slug,
        /// The public half, X25519.
        key: Digest,
        /// The version.
        key_version: u32,
    }
    /// What the healthy edges of a region serve.
    RegionApplied = "region.applied" {
        /// The region.
        region: Slug,
        /// The sequence that every healthy edge has applied.
        applied: u64,
        /// How many edges are healthy.
        of: u32,
        /// The healthy edges that are behind the most advanced one.
        behind: Vec<Slug>,
    }
    /// A resource was created.
    ResourceCreated = "resource.created" {
        /// Its id.
        id: ResourceId,
        /// Its name.
        name: Slug,
        /// Its kind.
        kind: ResourceKind,
        /// Its regions.
        regions: Vec<Slug>,
        /// Its origin URL.
        origin: String,
        /// Whether the client's Host is passed on.
        keep_host: bool,
        /// Whether an operator allowed an origin at a private address.
        private_origin: bool,
        /// Whether only publicly trusted certificates are served for its hosts.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        demand_public: bool,
    }
    /// A resource was changed. All that can change is given, changed or not.
    ResourceChanged = "resource.changed" {
        /// Its id.
        id: ResourceId,
        /// Its name.
        name: Slug,
        /// Its regions.
        regions: Vec<Slug>,
        /// Its origin URL.
        origin: String,
        /// Whether the client's Host is passed on.
        keep_host: bool,
        /// Whether an operator allowed an origin at a private address.
        private_origin: bool,
        /// Whether only publicly trusted certificates are served for its hosts.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        demand_public: bool,
    }
    /// A resource was deleted; its name is free again.
    ResourceDeleted = "resource.deleted" {
        /// Its id.
        id: ResourceId,
        /// Its name.
        name: Slug,
    }
    /// A project claims a host.
    DomainAdded = "domain.added" {
        /// The host.
        host: Host,
    }
    /// A claim was proven; the project holds the host.
    DomainProven = "domain.proven" {
        /// The host.
        host: Host,
        /// How.
        proof: Proof,
    }
    /// A host was attached to a resource in some regions.
    DomainAttached = "domain.attached" {
        /// The host.
        host: Host,
        /// The resource.
        resource: ResourceId,
        /// Where.
        regions: Vec<Slug>,
    }
    /// A host was detached in some regions.
    DomainDetached = "domain.detached" {
        /// The host.
        host: Host,
        /// Where.
        regions: Vec<Slug>,
    }
    /// A certificate was put first for a host.
    DomainBound = "domain.bound" {
        /// The host.
        host: Host,
        /// The certificate.
        certificate: CertificateId,
        /// Where; None: everywhere.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        region: Option<Slug>,
    }
    /// A host went back to `auto`.
    DomainUnbound = "domain.unbound" {
        /// The host.
        host: Host,
        /// Where; None: everywhere.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        region: Option<Slug>,
    }
    /// HTTPS was set to `auto` or `off` for a host.
    DomainHttpsSet = "domain.https-set" {
        /// The host.
        host: Host,
        /// What it is now.
        https: Https,
        /// Where; None: everywhere.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        region: Option<Slug>,
    }
    /// Another project gave fresh proof of a host that this project holds. It is served as it is until then.
    DomainContested = "domain.contested" {
        /// The host.
        host: Host,
        /// When it moves, unless the proof is gone by then; Unix seconds, RFC 3339 in events.
        #[serde(with = "second")]
        #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Time"))]
        until: i64,
        /// How the other project proved it.
        proof: Proof,
    }
    /// This project's proof of a host that another one holds was found; it gets the host then, if the proof still stands.
    DomainMoveScheduled = "domain.move-scheduled" {
        /// The host.
        host: Host,
        /// When, Unix seconds; RFC 3339 in events.
        #[serde(with = "second")]
        #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Time"))]
        until: i64,
        /// How it was proven.
        proof: Proof,
    }
    /// A contest ended without a move, because the proof or the claim was gone when the time came. Told to both projects.
    DomainContestLapsed = "domain.contest-lapsed" {
        /// The host.
        host: Host,
    }
    /// Another project proved the host; this claim no longer holds it.
    DomainMoved = "domain.moved" {
        /// The host.
        host: Host,
    }
    /// A project gave a host up.
    DomainReleased = "domain.released" {
        /// The host.
        host: Host,
    }
    /// A certificate came in under a new name.
    CertificateAdded = "certificate.added" {
        /// Its id.
        id: CertificateId,
        /// Its name.
        name: Slug,
        /// Its kind.
        kind: CertificateKind,
        /// Where it is deployed.
        regions: Vec<Slug>,
        /// Whether it is a backup that never goes live by being uploaded.
        standby: bool,
        /// What its bytes say.
        facts: Facts,
    }
    /// A version was verified and is ready.
    CertificateVerified = "certificate.verified" {
        /// Its id.
        id: CertificateId,
        /// The version.
        version: u32,
        /// Whom it is trusted by.
        trust: Trust,
    }
    /// Verification of a version failed.
    CertificateFailed = "certificate.failed" {
        /// Its id.
        id: CertificateId,
        /// The version.
        version: u32,
        /// Why.
        reasons: Vec<Reason>,
    }
    /// A new version came in under the same name. It keeps the place.
    CertificateReplaced = "certificate.replaced" {
        /// Its id.
        id: CertificateId,
        /// The new version.
        version: u32,
        /// What its bytes say.
        facts: Facts,
        /// Older versions that left with this: failed, revoked, ended long ago, or one too many.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        dropped: Vec<u32>,
    }
    /// A certificate was deployed to further regions.
    CertificateDeployed = "certificate.deployed" {
        /// Its id.
        id: CertificateId,
        /// The regions that are new.
        regions: Vec<Slug>,
    }
    /// A certificate was withdrawn from regions.
    CertificateWithdrawn = "certificate.withdrawn" {
        /// Its id.
        id: CertificateId,
        /// From where.
        regions: Vec<Slug>,
    }
    /// A version reached its end.
    CertificateExpired = "certificate.expired" {
        /// Its id.
        id: CertificateId,
        /// The version.
        version: u32,
    }
    /// A version was revoked and is served no more.
    CertificateRevoked = "certificate.revoked" {
        /// Its id.
        id: CertificateId,
        /// The version.
        version: u32,
        /// Who said so, since when, and why.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        reasons: Vec<Reason>,
    }
    /// A version ends soon, and is the latest of its certificate.
    CertificateExpiring = "certificate.expiring" {
        /// Its id.
        id: CertificateId,
        /// Its name.
        name: Slug,
        /// The version.
        version: u32,
        /// From 1, the first warning, to 5, the last one.
        stage: u8,
        /// How long it is valid from now on, in seconds.
        left: u64,
        /// Its last second of validity.
        #[serde(with = "second")]
        #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Time"))]
        not_after: i64,
        /// Where it is deployed.
        regions: Vec<Slug>,
        /// Hosts for which it is active, with how long each stays valid without anybody doing anything; at most 20.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        hosts: Vec<Runway>,
        /// Whether there are, or may be, more hosts than those.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        more_hosts: bool,
        /// What to do next.
        next: String,
    }
    /// A private key left the system, sealed to a key that the asker made.
    CertificateExported = "certificate.exported" {
        /// Its id.
        id: CertificateId,
        /// The version.
        version: u32,
        /// SHA-256 of the SubjectPublicKeyInfo of the key that left.
        spki: Digest,
        /// SHA-256 of the HPKE public key that it was sealed to. None: it went to another project and never was open.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        recipient: Option<Digest>,
        /// The project that it was moved to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<Slug>,
    }
    /// A private key was made inside, and a signing request for it.
    CsrCreated = "csr.created" {
        /// The name of the certificate to come.
        name: Slug,
        /// SHA-256 of the key's SubjectPublicKeyInfo.
        spki: Digest,
        /// The key.
        key: KeyKind,
        /// DNS names that are asked for.
        names: Vec<String>,
        /// SHA-256 of the request's DER (PKCS#10, RFC 2986), which is in the content store.
        request: Digest,
    }
    /// A signing request was given up.
    CsrDiscarded = "csr.discarded" {
        /// Its name.
        name: Slug,
        /// SHA-256 of the key's SubjectPublicKeyInfo.
        spki: Digest,
    }
    /// A certificate was deleted with all its versions; its name is free again.
    CertificateDeleted = "certificate.deleted" {
        /// Its id.
        id: CertificateId,
        /// Its name.
        name: Slug,
        /// Hosts that it left without HTTPS, at most 20 named.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        dark: Vec<Host>,
    }
    /// A private key was sealed and is kept.
    KeySealed = "key.sealed" {
        /// SHA-256 of its SubjectPublicKeyInfo.
        spki: Digest,
        /// Its kind.
        key: KeyKind,
    }
    /// A private key lost its last user and was removed.
    KeyDestroyed = "key.destroyed" {
        /// SHA-256 of its SubjectPublicKeyInfo.
        spki: Digest,
    }
    /// The answer to a command was no.
    CommandRejected = "command.rejected" {
        /// What was asked, `<noun>.<verb>`.
        command: String,
        /// Why.
        reasons: Vec<Reason>,
    }
}

/// An event at its place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Its place, from 1.
    pub sequence: u64,
    /// The project that it belongs to.
    pub project: Slug,
    /// When it was decided, Unix microseconds. Never less than the event before.
    pub time: i64,
    /// Who caused it: an opaque id, or `_<role>` for the system's own actors.
    pub actor: String,
    /// What happened.
    pub event: Event,
}
