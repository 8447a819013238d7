//! What is asked. These are the bodies of commands after ingestion has looked at the bytes: where a user sends a chain and a
//! sealed key, the registrar gets the facts.

use serde::{Deserialize, Serialize};

use crate::event::{CertificateKind, Facts, Https, Proof, ResourceKind, Trust};
use crate::names::{CertificateId, Digest, Host, Slug};
use crate::rejection::Reason;
use crate::selection::KeyKind;

/// A command. Its JSON form is only for commands that wait in a queue for the release that put them there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Operator: see [`CreateProject`].
    CreateProject(CreateProject),
    /// Operator.
    SuspendProject(OfProject),
    /// Operator.
    ResumeProject(OfProject),
    /// Operator.
    DeleteProject(DeleteProject),
    /// Operator.
    SetQuota(SetQuota),
    /// Operator.
    SetExport(SetExport),
    /// Operator.
    MoveCertificate(MoveCertificate),
    /// Operator.
    CreateAccess(CreateAccess),
    /// Operator.
    RevokeAccess(RevokeAccess),
    /// Operator.
    CreateRegion(CreateRegion),
    /// Operator.
    SetCountry(SetCountry),
    /// The vault, for an edge that showed a token.
    EnrolEdge(EnrolEdge),
    /// Operator.
    EvictEdge(EvictEdge),
    /// The vault.
    RotateRegionKey(RotateRegionKey),
    /// Distribution.
    ReportApplied(ReportApplied),
    /// A project.
    CreateResource(CreateResource),
    /// A project.
    ChangeResource(ChangeResource),
    /// A project.
    DeleteResource(DeleteResource),
    /// A project.
    AddDomain(AddDomain),
    /// Operator.
    ProveDomain(ProveDomain),
    /// A project.
    AttachDomain(AttachDomain),
    /// A project.
    DetachDomain(DetachDomain),
    /// A project.
    BindDomain(BindDomain),
    /// A project.
    UnbindDomain(UnbindDomain),
    /// A project.
    SetHttps(SetHttps),
    /// A project.
    ReleaseDomain(ReleaseDomain),
    /// A project.
    AddCertificate(AddCertificate),
    /// A project.
    ReplaceCertificate(ReplaceCertificate),
    /// A project.
    DeployCertificate(DeployCertificate),
    /// A project.
    WithdrawCertificate(WithdrawCertificate),
    /// A project.
    DeleteCertificate(DeleteCertificate),
    /// A project, after the vault made the key.
    CreateCsr(CreateCsr),
    /// A project.
    DiscardCsr(DiscardCsr),
    /// A project; the key is sealed to the asker once this is committed.
    ExportCertificate(ExportCertificate),
    /// The prover.
    ProveByDns(ProveByDns),
    /// The prover, when a contest's time has come.
    SettleContest(SettleContest),
    /// The clock.
    WarnCertificate(WarnCertificate),
    /// The verifier.
    VerifyCertificate(VerifyCertificate),
    /// The clock.
    ExpireCertificate(ExpireCertificate),
    /// The verifier, when it learns of a revocation.
    RevokeCertificate(RevokeCertificate),
}

macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
            #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
            #[serde(deny_unknown_fields)]
            pub struct $name { $($(#[$fdoc])* pub $field: $type,)* }

            impl From<$name> for Command {
                fn from(command: $name) -> Self { Command::$name(command) }
            }
        )*
    };
}

/// Names a project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct OfProject {
    /// Its id.
    pub project: Slug,
}

commands! {
    /// `cmd.platform.project.create`
    CreateProject {
        /// Its id: 3 to 40 of `[a-z0-9-]`.
        project: Slug,
    }
    /// `cmd.platform.project.delete`: a project without resources, domains and certificates.
    DeleteProject {
        /// Its id.
        project: Slug,
        /// The id once more.
        confirm: String,
    }
    /// `cmd.platform.project.quota-set`: what is not given stays.
    SetQuota {
        /// Its id.
        project: Slug,
        /// Certificates of both kinds together that are not deleted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        certificates: Option<u32>,
        /// The same of one kind in one region.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        per_region: Option<u32>,
    }
    /// `cmd.platform.project.export-set`
    SetExport {
        /// Its id.
        project: Slug,
        /// Whether private keys may leave the project.
        export: bool,
    }
    /// `cmd.platform.certificate.move`: the latest version that may be served goes to another project, key and all, and the
    /// certificate is deleted where it was.
    MoveCertificate {
        /// The project that has it.
        project: Slug,
        /// Its name there.
        name: Slug,
        /// The project that gets it.
        to: Slug,
        /// Its name there; the same unless told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        new_name: Option<Slug>,
        /// Regions or countries; those that it has unless told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        regions: Option<Vec<Slug>>,
        /// The name once more, exactly.
        confirm: String,
        /// Even when hosts go dark.
        #[serde(default)]
        force: bool,
        /// The revision that the asker saw.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expect: Option<u64>,
    }
    /// `cmd.platform.access.create`
    CreateAccess {
        /// The project.
        project: Slug,
        /// The actor's opaque id, unique in the project.
        name: Slug,
        /// The NKEY user public key that the user made.
        nkey: String,
        /// Subject patterns; empty: all that a member may do.
        #[serde(default)]
        rights: Vec<String>,
        /// When it ends, Unix seconds.
        #[serde(default)]
        expires: Option<i64>,
    }
    /// `cmd.platform.access.revoke`
    RevokeAccess {
        /// The project.
        project: Slug,
        /// The actor.
        name: Slug,
    }
    /// `cmd.platform.region.create`, with the key that the vault made for it.
    CreateRegion {
        /// Its name.
        region: Slug,
        /// The public half of its key.
        key: Digest,
        /// The version of its key.
        key_version: u32,
    }
    /// `cmd.platform.region.country-set`
    SetCountry {
        /// The country.
        country: Slug,
        /// Its regions.
        regions: Vec<Slug>,
    }
    /// An edge showed its token and its public keys.
    EnrolEdge {
        /// The region.
        region: Slug,
        /// The edge.
        edge: Slug,
        /// Its NKEY user public key.
        nkey: String,
        /// Its HPKE public key.
        hpke: Digest,
        /// The id of the token that it showed.
        token: String,
    }
    /// `cmd.platform.edge.evict`
    EvictEdge {
        /// The region.
        region: Slug,
        /// The edge.
        edge: Slug,
    }
    /// The vault made the next version of a region's key.
    RotateRegionKey {
        /// The region.
        region: Slug,
        /// The public half.
        key: Digest,
        /// The version.
        key_version: u32,
    }
    /// What a region's edges have applied.
    ReportApplied {
        /// The region.
        region: Slug,
        /// Applied by all healthy edges.
        applied: u64,
        /// How many are healthy.
        of: u32,
        /// Which are behind.
        behind: Vec<Slug>,
    }
    /// `cmd.<project>.resource.create`
    CreateResource {
        /// Its name.
        name: Slug,
        /// Its kind.
        kind: ResourceKind,
        /// Regions, or countries that stand for theirs.
        regions: Vec<Slug>,
        /// An http or https URL.
        origin: String,
        /// Pass on the client's Host.
        #[serde(default)]
        keep_host: bool,
        /// Serve only publicly trusted certificates for its hosts.
        #[serde(default)]
        demand_public: bool,
    }
    /// `cmd.<project>.resource.set`: what is not given stays.
    ChangeResource {
        /// Its name.
        name: Slug,
        /// Regions or countries.
        #[serde(default)]
        regions: Option<Vec<Slug>>,
        /// An http or https URL.
        #[serde(default)]
        origin: Option<String>,
        /// Pass on the client's Host.
        #[serde(default)]
        keep_host: Option<bool>,
        /// Serve only publicly trusted certificates for its hosts.
        #[serde(default)]
        demand_public: Option<bool>,
        /// The revision that the asker saw.
        #[serde(default)]
        expect: Option<u64>,
    }
    /// `cmd.<project>.resource.delete`
    DeleteResource {
        /// Its name.
        name: Slug,
        /// The name once more.
        confirm: String,
        /// The revision that the asker saw.
        #[serde(default)]
        expect: Option<u64>,
    }
    /// `cmd.<project>.domain.add`
    AddDomain {
        /// The host, as people write it.
        host: String,
        /// The resource to attach it to.
        #[serde(default)]
        resource: Option<Slug>,
        /// Where; empty: in all regions of the resource.
        #[serde(default)]
        regions: Vec<Slug>,
    }
    /// `cmd.platform.domain.prove`
    ProveDomain {
        /// The project.
        project: Slug,
        /// The host.
        host: String,
        /// Take it from the project that holds it.
        #[serde(default)]
        force: bool,
    }
    /// `cmd.<project>.domain.attach`
    AttachDomain {
        /// The host.
        host: String,
        /// The resource.
        resource: Slug,
        /// Where; empty: in all regions of the resource.
        #[serde(default)]
        regions: Vec<Slug>,
        /// The revision that the asker saw.
        #[serde(default)]
        expect: Option<u64>,
    }
    /// `cmd.<project>.domain.detach`
    DetachDomain {
        /// The host.
        host: String,
        /// Where; empty: everywhere.
        #[serde(default)]
        regions: Vec<Slug>,
        /// The revision that the asker saw.
        #[serde(default)]
        expect: Option<u64>,
    }
    /// `cmd.<project>.domain.bind`
    BindDomain {
        /// The host.
        host: String,
        /// The certificate's name.
        certificate: Slug,
        /// Where; None: everywhere.
        #[serde(default)]
        region: Option<Slug>,
        /// The revision that the asker saw.
        #[serde(default)]
        expect: Option<u64>,
    }
    /// `cmd.<project>.domain.unbind`
    UnbindDomain {
        /// The host.
        host: String,
        /// Where; None: everywhere.
        #[serde(default)]
        region: Option<Slug>,
        /// The revision that the asker saw.
        #[serde(default)]
        expect: Option<u64>,
    }
    /// `cmd.<project>.domain.https`
    SetHttps {
        /// The host.
        host: String,
        /// `auto` or `off`.
        https: Https,
        /// Where; None: everywhere.
        #[serde(default)]
        region: Option<Slug>,
        /// The revision that the asker saw.
        #[serde(default)]
        expect: Option<u64>,
    }
    /// `cmd.<project>.domain.release`
    ReleaseDomain {
        /// The host.
        host: String,
        /// The revision that the asker saw.
        #[serde(default)]
        expect: Option<u64>,
    }
    /// `cmd.<project>.certificate.add`, after ingestion.
    AddCertificate {
        /// Its name.
        name: Slug,
        /// Its kind.
        kind: CertificateKind,
        /// Regions or countries.
        regions: Vec<Slug>,
        /// A backup.
        standby: bool,
        /// What its bytes say.
        facts: Facts,
    }
    /// `cmd.<project>.certificate.replace`, after ingestion.
    ReplaceCertificate {
        /// Its name.
        name: Slug,
        /// What its bytes say.
        facts: Facts,
        /// The revision that the asker saw.
        expect: Option<u64>,
    }
    /// `cmd.<project>.certificate.deploy`
    DeployCertificate {
        /// Its name.
        name: Slug,
        /// Regions or countries.
        regions: Vec<Slug>,
        /// The revision that the asker saw.
        #[serde(default)]
        expect: Option<u64>,
    }
    /// `cmd.<project>.certificate.withdraw`
    WithdrawCertificate {
        /// Its name.
        name: Slug,
        /// Regions or countries.
        regions: Vec<Slug>,
        /// Even when hosts go dark.
        #[serde(default)]
        force: bool,
        /// The revision that the asker saw.
        #[serde(default)]
        expect: Option<u64>,
    }
    /// `cmd.<project>.certificate.delete`
    DeleteCertificate {
        /// Its name.
        name: Slug,
        /// The name once more, exactly.
        confirm: String,
        /// Even when hosts go dark.
        #[serde(default)]
        force: bool,
        /// The revision that the asker saw.
        #[serde(default)]
        expect: Option<u64>,
    }
    /// `cmd.<project>.certificate.csr`, after the vault made the key and signed the request.
    CreateCsr {
        /// The name of the certificate to come.
        name: Slug,
        /// SHA-256 of the key's SubjectPublicKeyInfo.
        spki: Digest,
        /// The key.
        key: KeyKind,
        /// DNS names that are asked for.
        names: Vec<String>,
        /// SHA-256 of the request's DER.
        request: Digest,
    }
    /// `cmd.<project>.certificate.csr-discard`: the request and its key go.
    DiscardCsr {
        /// Its name.
        name: Slug,
    }
    /// `cmd.<project>.certificate.export`
    ExportCertificate {
        /// Its name.
        name: Slug,
        /// The version; the latest that is ready unless told.
        version: Option<u32>,
        /// SHA-256 of the HPKE public key that the key is to be sealed to.
        recipient: Digest,
    }
    /// The prover found a claim's token or alias in the DNS.
    ProveByDns {
        /// The host.
        host: Host,
        /// The sequence at which the claim was added: a proof of a former claim is none of this one.
        added: u64,
        /// How.
        proof: Proof,
        /// How long a holder is served before the host moves, in seconds.
        grace: u64,
    }
    /// The prover looked again when a contest's time had come. In the project of the claimant.
    SettleContest {
        /// The host.
        host: Host,
        /// The sequence at which the claimant's claim was added.
        added: u64,
        /// What it found; None: the proof is gone.
        proof: Option<Proof>,
    }
    /// The time of a warning has come.
    WarnCertificate {
        /// The certificate.
        id: CertificateId,
        /// The version.
        version: u32,
    }
    /// What verification found.
    VerifyCertificate {
        /// The certificate.
        id: CertificateId,
        /// The version.
        version: u32,
        /// Trust, or the reasons why not.
        verdict: Result<Trust, Vec<Reason>>,
    }
    /// A version's end has come.
    ExpireCertificate {
        /// The certificate.
        id: CertificateId,
        /// The version.
        version: u32,
    }
    /// A version was revoked by its CA.
    RevokeCertificate {
        /// The certificate.
        id: CertificateId,
        /// The version.
        version: u32,
        /// Who said so, since when, and why.
        #[serde(default)]
        reasons: Vec<Reason>,
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asker {
    /// The opaque id, or `_<role>` for the system's own actors.
    pub actor: String,
    /// The project of the asker's account.
    pub project: Slug,
    /// Whether it is one of the operator's people, or the system itself.
    pub operator: bool,
}

/// What a decision may depend on besides the state and the command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// The project of the subject that the command came on.
    pub project: Slug,
    /// Who asks.
    pub asker: Asker,
    /// The decision's time, Unix microseconds; not less than that of the last event.
    pub now: i64,
    /// The sequence that the first event of this decision will get.
    pub sequence: u64,
}
