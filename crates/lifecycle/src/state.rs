//! The rows of the aggregates, and how to read them.
//!
//! Everything here is what the events said, arranged for deciding and asking. Who is active is never stored: it depends
//! on the date, and is computed from these rows when somebody asks.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::event::{CertificateKind, Facts, Proof, ResourceKind, Trust};
use crate::names::{CertificateId, Digest, Host, ResourceId, Slug};
use crate::rejection::Reason;
use crate::selection::{Candidate, Mode};
use crate::store::{Key as RowKey, Parts, Read, Table, decode};

/// What holds for the whole log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// The log's id.
    pub log: String,
    /// The feed signer.
    pub signer: Digest,
    /// The domain below which provider domains live.
    pub platform_domain: String,
    /// The writer's epoch.
    pub epoch: u64,
}

/// Where a project is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProjectStatus {
    /// In use.
    Active,
    /// Nothing is served and no command taken.
    Suspended,
    /// Ended; the id stays taken.
    Deleted,
}

/// A project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    /// Where it is in its life.
    pub status: ProjectStatus,
    /// The sequence at which it was created.
    pub created: u64,
    /// How many certificates it may have.
    pub quota: Quota,
    /// Whether its private keys may be exported.
    pub export: bool,
}

/// How many certificates that are not deleted a project may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Of both kinds together.
    pub certificates: u32,
    /// Of one kind in one region.
    pub per_region: u32,
}

impl Quota {
    /// The most that an operator can allow.
    pub const HARD_CAP: u32 = 1_000_000;
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            certificates: 100,
            per_region: 100,
        }
    }
}

/// Somebody's access to a project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// NKEY user public key.
    pub nkey: String,
    /// Subject patterns below the project.
    pub rights: Vec<String>,
    /// When it ends, Unix seconds.
    pub expires: Option<i64>,
    /// Whether it was revoked.
    pub revoked: bool,
    /// The sequence at which it was created.
    pub created: u64,
}

/// A region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// The sequence at which it was created.
    pub created: u64,
    /// The public half of its key, X25519.
    pub key: Digest,
    /// The version of its key.
    pub key_version: u32,
    /// The sequence at which it got this key.
    pub rotated: u64,
    /// The sequence at which an edge was last evicted, or 0. While that is after `rotated`, the next key is owed.
    pub evicted: u64,
}

/// A named set of regions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Country {
    /// Its regions.
    pub regions: Vec<Slug>,
}

/// An edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// NKEY user public key.
    pub nkey: String,
    /// HPKE public key.
    pub hpke: Digest,
    /// The sequence at which it enrolled.
    pub enrolled: u64,
    /// Whether it was evicted.
    pub evicted: bool,
    /// The token that it used.
    pub token: String,
}

/// What a region's edges last reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Applied by all healthy edges.
    pub applied: u64,
    /// How many were healthy.
    pub of: u32,
    /// Which were behind.
    pub behind: Vec<Slug>,
    /// When it was reported, Unix microseconds.
    pub time: i64,
}

/// A resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// Its id.
    pub id: ResourceId,
    /// Whose it is.
    pub project: Slug,
    /// Its name.
    pub name: Slug,
    /// Its kind.
    pub kind: ResourceKind,
    /// Its regions.
    pub regions: Vec<Slug>,
    /// Its origin URL.
    pub origin: String,
    /// Whether the client's Host is passed on.
    pub keep_host: bool,
    /// Whether an operator allowed a private address.
    pub private_origin: bool,
    /// Whether only publicly trusted certificates are served for its hosts.
    pub demand_public: bool,
    /// Raised by users' commands.
    pub revision: u64,
}

/// Where a claim is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClaimStatus {
    /// Claimed, not proven.
    Pending,
    /// The project holds the host.
    Proven,
    /// Another project proved it since.
    Moved,
    /// Given up.
    Released,
}

impl ClaimStatus {
    /// As people see it.
    pub fn as_str(self) -> &'static str {
        match self {
            ClaimStatus::Pending => "pending",
            ClaimStatus::Proven => "proven",
            ClaimStatus::Moved => "moved",
            ClaimStatus::Released => "released",
        }
    }
}

/// A project's claim of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The host.
    pub host: Host,
    /// The project.
    pub project: Slug,
    /// Where it is in its life.
    pub status: ClaimStatus,
    /// How it was proven.
    pub proof: Option<Proof>,
    /// The sequence at which it was added. Its token follows from it, so a proof of a former claim is none of this one.
    pub added: u64,
    /// Of the holder: another project gave fresh proof, and the host moves then; Unix seconds.
    pub contested: Option<i64>,
    /// Of a claimant whose proof was found: it gets the host then; Unix seconds.
    pub moves_at: Option<i64>,
    /// The resource that it is attached to, by region.
    pub attached: BTreeMap<Slug, ResourceId>,
    /// The mode where no region says otherwise.
    pub mode: Mode,
    /// Modes of single regions.
    pub modes: BTreeMap<Slug, Mode>,
    /// Raised by users' commands.
    pub revision: u64,
    /// The sequence of the event that last changed it: why it is as it is.
    pub changed: u64,
}

impl Claim {
    /// The mode in a region.
    pub fn mode_in(&self, region: &str) -> Mode {
        self.modes.get(region).copied().unwrap_or(self.mode)
    }
}

/// The status of a version, as the events left it. Whether it has run out is a question of the date: see [`Version::shown`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Being verified.
    Verifying,
    /// May be served.
    Ready,
    /// Verification failed.
    Error,
    /// Its end has been noted.
    Expired,
    /// Revoked.
    Revoked,
    /// Deleted.
    Deleted,
}

impl Status {
    /// As people see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Verifying => "verifying",
            Status::Ready => "ready",
            Status::Error => "error",
            Status::Expired => "expired",
            Status::Revoked => "revoked",
            Status::Deleted => "deleted",
        }
    }
}

/// A version of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// From 1.
    pub version: u32,
    /// Its status.
    pub status: Status,
    /// Why it is in error.
    pub reasons: Vec<Reason>,
    /// Whom it is trusted by, once verified.
    pub trust: Option<Trust>,
    /// What its bytes say.
    pub facts: Facts,
    /// The sequence at which it came in.
    pub added: u64,
}

impl Version {
    /// Its status at `now` (Unix seconds): a version whose end has come is expired whether or not that was noted.
    pub fn shown(&self, now: i64) -> Status {
        match self.status {
            Status::Ready if now >= self.facts.not_after => Status::Expired,
            status => status,
        }
    }

    /// Whether it may be served at `now` (Unix seconds): see [`Candidate::usable`].
    pub fn usable(&self, now: i64) -> bool {
        matches!(self.status, Status::Ready | Status::Expired)
            && self.facts.not_before <= now
            && now < self.facts.not_after
    }
}

/// A named certificate with its versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Its id.
    pub id: CertificateId,
    /// Whose it is.
    pub project: Slug,
    /// Its name.
    pub name: Slug,
    /// Its kind.
    pub kind: CertificateKind,
    /// The sequence at which somebody put it there.
    pub place: u64,
    /// Whether it is a backup.
    pub standby: bool,
    /// Where it is deployed.
    pub regions: Vec<Slug>,
    /// Its versions, oldest first.
    pub versions: Vec<Version>,
    /// When the next warning of the end of which version is due, Unix seconds.
    pub warning: Option<(i64, u32)>,
    /// Whether it was deleted.
    pub deleted: bool,
    /// Raised by users' commands.
    pub revision: u64,
    /// The sequence of the event that last changed it: why it is as it is.
    pub changed: u64,
}

impl Certificate {
    /// The latest version.
    pub fn latest(&self) -> Option<&Version> {
        self.versions.last()
    }

    /// A version by its number.
    pub fn version(&self, version: u32) -> Option<&Version> {
        self.versions.iter().find(|v| v.version == version)
    }

    /// The versions that may be served for a certificate name where it is deployed, whatever their dates.
    pub fn covering<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Version> + 'a {
        let served = self.kind == CertificateKind::Server && !self.deleted;
        self.versions.iter().filter(move |v| {
            served
                && matches!(v.status, Status::Ready | Status::Expired)
                && v.facts.names.iter().any(|n| n == name)
        })
    }

    /// The versions that may be served for a certificate name in a region, as candidates for it.
    pub fn candidates<'a>(
        &'a self,
        region: &'a str,
        name: &'a str,
    ) -> impl Iterator<Item = Candidate> + 'a {
        let deployed = self.regions.iter().any(|r| r.as_str() == region);
        self.covering(name)
            .filter(move |_| deployed)
            .map(move |v| Candidate {
                certificate: self.id,
                version: v.version,
                place: self.place,
                standby: self.standby,
                exact: !name.starts_with("*."),
                not_before: v.facts.not_before,
                not_after: v.facts.not_after,
                fingerprint: v.facts.fingerprint,
                key: v.facts.key,
                public: v.trust == Some(Trust::Public),
            })
    }
}

/// A sealed private key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// How many certificate versions use it.
    pub users: u32,
}

/// A signing request whose certificate has not come yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Csr {
    /// The name of the certificate to come.
    pub name: Slug,
    /// SHA-256 of the key's SubjectPublicKeyInfo.
    pub spki: Digest,
    /// The key.
    pub key: crate::selection::KeyKind,
    /// DNS names that are asked for.
    pub names: Vec<String>,
    /// SHA-256 of the request's DER.
    pub request: Digest,
    /// The sequence at which it was made.
    pub created: u64,
}

/// What is counted of a project, as the second part of the keys of [`Table::Count`](crate::store::Table::Count).
pub mod count {
    /// Certificates of both kinds that are not deleted.
    pub const CERTIFICATES: &str = "certificates";
    /// Server certificates in a region.
    pub const SERVER: &str = "server";
    /// CA certificates in a region.
    pub const CA: &str = "ca";
    /// Claims that are not released.
    pub const DOMAINS: &str = "domains";
    /// Resources.
    pub const RESOURCES: &str = "resources";
    /// Signing requests.
    pub const CSRS: &str = "csrs";
}

/// Keys of rows, one function for each table.
pub mod key {
    use super::{CertificateId, Digest, ResourceId, RowKey, Slug};

    /// [`Table::Control`](crate::store::Table::Control).
    pub fn control() -> Vec<u8> {
        RowKey::new().text("control").done()
    }
    /// A single text.
    pub fn text(text: impl AsRef<str>) -> Vec<u8> {
        RowKey::new().text(text).done()
    }
    /// Two texts.
    pub fn pair(a: impl AsRef<str>, b: impl AsRef<str>) -> Vec<u8> {
        RowKey::new().text(a).text(b).done()
    }
    /// A resource's id.
    pub fn resource(id: ResourceId) -> Vec<u8> {
        RowKey::new().number(id.0).done()
    }
    /// A resource's host.
    pub fn attachment(id: ResourceId, host: &str) -> Vec<u8> {
        RowKey::new().number(id.0).text(host).done()
    }
    /// A certificate's id.
    pub fn certificate(id: CertificateId) -> Vec<u8> {
        RowKey::new().number(id.0).done()
    }
    /// A certificate's version.
    pub fn version(id: CertificateId, version: u32) -> Vec<u8> {
        RowKey::new().number(id.0).number(version.into()).done()
    }
    /// A due time and a certificate's version.
    pub fn expiry(not_after: i64, id: CertificateId, version: u32) -> Vec<u8> {
        RowKey::new()
            .number(u64::try_from(not_after).unwrap_or(0))
            .number(id.0)
            .number(version.into())
            .done()
    }
    /// A number of things of a project.
    pub fn count(project: &Slug, what: &str, region: &str) -> Vec<u8> {
        RowKey::new().text(project).text(what).text(region).done()
    }
    /// A due time and a certificate.
    pub fn warning(due: i64, id: CertificateId) -> Vec<u8> {
        RowKey::new()
            .number(u64::try_from(due).unwrap_or(0))
            .number(id.0)
            .done()
    }
    /// A due time and the claim that is to take a host over.
    pub fn contest(until: i64, host: &str, project: &Slug) -> Vec<u8> {
        RowKey::new()
            .number(u64::try_from(until).unwrap_or(0))
            .text(host)
            .text(project)
            .done()
    }
    /// The claims that are to take a host over at a time.
    pub fn contest_of(until: i64, host: &str) -> Vec<u8> {
        RowKey::new()
            .number(u64::try_from(until).unwrap_or(0))
            .text(host)
            .done()
    }
    /// Who names a SAN.
    pub fn cover(project: &Slug, name: &str, id: CertificateId) -> Vec<u8> {
        RowKey::new().text(project).text(name).number(id.0).done()
    }
    /// A private key.
    pub fn spki(project: &Slug, spki: Digest) -> Vec<u8> {
        RowKey::new().text(project).bytes(&spki.0).done()
    }
    /// A claim below a name.
    pub fn below(project: &Slug, parent: &str, host: &str) -> Vec<u8> {
        RowKey::new().text(project).text(parent).text(host).done()
    }
    /// A resource's hosts in a region.
    pub fn attached_in(id: ResourceId, region: &str, host: &str) -> Vec<u8> {
        RowKey::new().number(id.0).text(region).text(host).done()
    }
    /// A resource's region.
    pub fn resource_region(id: ResourceId, region: &str) -> Vec<u8> {
        RowKey::new().number(id.0).text(region).done()
    }
    /// Anything's history.
    pub fn at(mut key: Vec<u8>, sequence: u64) -> Vec<u8> {
        key.extend_from_slice(&sequence.to_be_bytes());
        key
    }
}

/// Reading rows as what they are.
pub trait State: Read {
    /// A row of a type.
    fn row<T: serde::de::DeserializeOwned>(&self, table: Table, key: &[u8]) -> Option<T> {
        self.get(table, key).map(|bytes| decode(&bytes))
    }
    /// What holds for the whole log; None before genesis.
    fn control(&self) -> Option<Control> {
        self.row(Table::Control, &key::control())
    }
    /// A project.
    fn project(&self, project: &str) -> Option<Project> {
        self.row(Table::Project, &key::text(project))
    }
    /// Somebody's access.
    fn access(&self, project: &str, actor: &str) -> Option<Access> {
        self.row(Table::Access, &key::pair(project, actor))
    }
    /// The project and the actor that an NKEY user public key was given to.
    fn access_of_key(&self, nkey: &str) -> Option<(Slug, Slug)> {
        self.row(Table::AccessKey, &key::text(nkey))
    }
    /// A region.
    fn region(&self, region: &str) -> Option<Region> {
        self.row(Table::Region, &key::text(region))
    }
    /// A country.
    fn country(&self, country: &str) -> Option<Country> {
        self.row(Table::Country, &key::text(country))
    }
    /// An edge.
    fn edge(&self, region: &str, edge: &str) -> Option<Edge> {
        self.row(Table::Edge, &key::pair(region, edge))
    }
    /// A resource by id.
    fn resource(&self, id: ResourceId) -> Option<Resource> {
        self.row(Table::Resource, &key::resource(id))
    }
    /// A resource by name.
    fn resource_named(&self, project: &str, name: &str) -> Option<Resource> {
        self.resource(self.row(Table::ResourceName, &key::pair(project, name))?)
    }
    /// The project and the name of a resource that is or was.
    fn resource_ever(&self, id: ResourceId) -> Option<(Slug, Slug)> {
        self.row(Table::ResourceEver, &key::resource(id))
    }
    /// How many of something a project has: see [`count`]. `region` is empty for what is counted over all.
    fn count(&self, project: &Slug, what: &str, region: &str) -> u32 {
        self.row(Table::Count, &key::count(project, what, region))
            .unwrap_or(0)
    }
    /// A signing request by name.
    fn csr(&self, project: &str, name: &str) -> Option<Csr> {
        self.row(Table::Csr, &key::pair(project, name))
    }
    /// A project's claim of a host.
    fn claim(&self, host: &str, project: &str) -> Option<Claim> {
        self.row(Table::Claim, &key::pair(host, project))
    }
    /// The project that holds exactly this host (or wildcard).
    fn holder(&self, host: &str) -> Option<Slug> {
        self.row(Table::Holder, &key::text(host))
    }
    /// A certificate by id, deleted ones too.
    fn certificate(&self, id: CertificateId) -> Option<Certificate> {
        self.row(Table::Certificate, &key::certificate(id))
    }
    /// A living certificate by name.
    fn certificate_named(&self, project: &str, name: &str) -> Option<Certificate> {
        self.certificate(self.row(Table::CertificateName, &key::pair(project, name))?)
    }
    /// The living certificates of a project that name exactly this SAN.
    fn covering(&self, project: &Slug, name: &str) -> Vec<Certificate> {
        let prefix = key::pair(project, name);
        self.scan(Table::Cover, &prefix, None, COVER_LIMIT)
            .iter()
            .filter_map(|(row, _)| {
                self.certificate(CertificateId(Parts::of(&row[prefix.len()..]).number()))
            })
            .collect()
    }
    /// All regions, in order.
    fn regions(&self) -> Vec<Slug> {
        self.scan(Table::Region, &[], None, usize::MAX)
            .iter()
            .filter_map(|(row, _)| Slug::name(Parts::of(row).text()).ok())
            .collect()
    }
    /// All edges of a region, in order of their names.
    fn edges(&self, region: &str) -> Vec<(Slug, Edge)> {
        let prefix = key::text(region);
        self.scan(Table::Edge, &prefix, None, usize::MAX)
            .iter()
            .filter_map(|(row, value)| {
                Some((
                    Slug::name(Parts::of(&row[prefix.len()..]).text()).ok()?,
                    decode(value),
                ))
            })
            .collect()
    }
}

impl<R: Read> State for R {}

/// How many living certificates of one project may name the same SAN. Far above any quota; a bound all the same, and one that
/// [`decide`](crate::decide::decide) keeps, so that no ranking is ever cut short.
pub const COVER_LIMIT: usize = 256;

/// Who answers for a host in a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The project whose certificates are ranked.
    pub project: Slug,
    /// The resource that requests go to. None: not attached in this region.
    pub resource: Option<ResourceId>,
    /// The mode.
    pub mode: Mode,
    /// The claim that decided, None for a provider domain.
    pub claim: Option<Claim>,
}

/// The provider domain of a resource in a region.
pub fn provider_domain(resource: &Resource, region: &str, platform_domain: &str) -> String {
    format!(
        "{}--{}.{region}.{platform_domain}",
        resource.name, resource.project
    )
}

/// Who answers for a host in a region: its provider domain's resource, or the most specific proven claim.
pub fn served(state: &impl State, host: &Host, region: &str) -> Option<Served> {
    let control = state.control()?;
    if host.is_within(&control.platform_domain) {
        let label = host
            .as_str()
            .strip_suffix(&format!(".{region}.{}", control.platform_domain))?;
        let (name, project) = label.split_once("--")?;
        let resource = state
            .resource_named(project, name)
            .filter(|r| r.regions.iter().any(|r| r.as_str() == region))?;
        return Some(Served {
            project: Slug::platform(),
            resource: Some(resource.id),
            mode: Mode::Auto,
            claim: None,
        });
    }
    let project = |name: &str| state.holder(name).map(|project| (name.to_owned(), project));
    let (name, project) = project(host.as_str()).or_else(|| project(host.wildcard()?.as_str()))?;
    let claim = state.claim(&name, project.as_str())?;
    Some(Served {
        project,
        resource: claim.attached.get(region).copied(),
        mode: claim.mode_in(region),
        claim: Some(claim),
    })
}

/// Whether requests may go to a resource: nothing of a suspended project is served, whatever is attached.
pub fn is_served(state: &impl State, resource: ResourceId) -> bool {
    state
        .resource(resource)
        .and_then(|resource| state.project(resource.project.as_str()))
        .is_some_and(|project| project.status == ProjectStatus::Active)
}

/// Whether only publicly trusted certificates may be served where requests go to this resource.
pub fn demands_public(state: &impl State, resource: Option<ResourceId>) -> bool {
    resource
        .and_then(|id| state.resource(id))
        .is_some_and(|resource| resource.demand_public)
}

/// The certificate names that can serve a host: itself, and the wildcard one level above it.
pub fn names_for(host: &Host) -> impl Iterator<Item = String> {
    std::iter::once(host.as_str().to_owned()).chain(host.wildcard().map(String::from))
}

/// The candidates of a project for a host in a region, unranked.
pub fn candidates(state: &impl State, project: &Slug, host: &Host, region: &str) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::new();
    // A version may name both the host and the wildcard above it: the host's own name, which comes first, counts.
    let mut seen: BTreeSet<(CertificateId, u32)> = BTreeSet::new();
    for name in names_for(host) {
        for certificate in state.covering(project, &name) {
            found.extend(
                certificate
                    .candidates(region, &name)
                    .filter(|c| seen.insert((c.certificate, c.version))),
            );
        }
    }
    found
}
