//! The bodies of commands and queries, as users send them.
//!
//! Most commands go to the registrar as they come. Some need something first: a certificate is examined and its key
//! sealed anew, a region needs a key, an enrolment needs a token.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use lifecycle::command::{self, Command};
use lifecycle::event::CertificateKind;
use lifecycle::names::Slug;
use lifecycle::rejection::Code;

use crate::answer::Problem;
use crate::subject;

/// Largest body of a command or query, bytes.
pub const BODY_MAX: usize = 256 * 1024;

/// A command as it was asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked {
    /// Ready for the registrar.
    Ready(Command),
    /// `certificate.add`: to be examined.
    Add(AddCertificate),
    /// `certificate.replace`: to be examined.
    Replace(ReplaceCertificate),
    /// `region.create`: needs a key.
    Region(RegionCreate),
    /// `edge.enrol`: gives a token.
    Enrol(EdgeEnrol),
    /// `edge.evict`: followed by the next region key.
    Evict(command::EvictEdge),
    /// `access.create`: followed by a JWT.
    Access(command::CreateAccess),
    /// `certificate.csr`: the key is made first.
    Csr(CreateCsr),
    /// `certificate.export`: followed by the sealed key.
    Export(ExportCertificate),
    /// `certificate.move`: the key is sealed for the other project first.
    Move(command::MoveCertificate),
    /// `domain.check`: looked up in the DNS now.
    Check(CheckDomain),
}

/// Body of `certificate.add`.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddCertificate {
    /// Its name, unique in the project.
    pub name: Slug,
    /// `server` or `ca`.
    #[serde(default)]
    pub kind: CertificateKind,
    /// The chain as PEM, in any order; it is repaired where it comes in, and the answer says how.
    pub chain: String,
    /// The private key, sealed to the ingestion key: `{"kid","enc","ct"}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Value>,
    /// Regions or countries.
    pub regions: Vec<Slug>,
    /// A backup that never goes live by being uploaded.
    #[serde(default)]
    pub standby: bool,
}

/// Body of `certificate.replace`.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplaceCertificate {
    /// Its name.
    pub name: Slug,
    /// The chain as PEM, in any order; it is repaired where it comes in, and the answer says how.
    pub chain: String,
    /// The private key, sealed to the ingestion key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Value>,
    /// The revision that the asker saw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<u64>,
}

/// Body of `certificate.csr`.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateCsr {
    /// The name of the certificate to come.
    pub name: Slug,
    /// DNS names, 1 to 100.
    pub names: Vec<String>,
    /// What key to make; `p256` unless told.
    #[serde(default)]
    pub key: NewKey,
}

/// The keys that can be made inside.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NewKey {
    /// RSA with 2048 bits.
    Rsa2048,
    /// RSA with 3072 bits.
    Rsa3072,
    /// RSA with 4096 bits.
    Rsa4096,
    /// ECDSA on P-256.
    #[default]
    P256,
    /// ECDSA on P-384.
    P384,
    /// Ed25519, which public CAs do not sign.
    Ed25519,
}

/// Body of `certificate.export`.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportCertificate {
    /// Its name.
    pub name: Slug,
    /// The version; the latest that may be served unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// The X25519 public key that the private key is sealed to (HPKE base mode, RFC 9180), 32 bytes as lower-case hex.
    pub recipient: lifecycle::names::Digest,
}

/// Body of `domain.check`.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckDomain {
    /// The host.
    pub host: String,
}

/// Body of `region.create`.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionCreate {
    /// Its name.
    pub region: Slug,
}

/// Body of `edge.enrol`.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeEnrol {
    /// The region.
    pub region: Slug,
    /// The edge's name.
    pub edge: Slug,
}

/// Reads a command.
///
/// # Errors
/// The refusal: an unknown subject, or a body that is not of its form. What was sent is never quoted.
pub fn parse(project: &str, noun: &str, verb: &str, body: &[u8]) -> Result<Asked, Problem> {
    if body.len() > BODY_MAX {
        return Err(Problem::new(
            Code::TooLarge,
            format!("the body has {} bytes of at most {BODY_MAX}", body.len()),
            "",
        ));
    }
    let name = format!("{noun}.{verb}");
    let platform = subject::PLATFORM_COMMANDS.contains(&name.as_str());
    if platform && project != lifecycle::names::PLATFORM {
        return Err(Problem::new(
            Code::Unauthorized,
            "only an operator has this command, below cmd.platform",
            "",
        ));
    }
    macro_rules! ready {
        ($type:ident) => {
            read::<command::$type>(body).map(|c| Asked::Ready(Command::$type(c)))
        };
    }
    match name.as_str() {
        "project.create" => ready!(CreateProject),
        "project.suspend" => read(body).map(|c| Asked::Ready(Command::SuspendProject(c))),
        "project.resume" => read(body).map(|c| Asked::Ready(Command::ResumeProject(c))),
        "project.delete" => ready!(DeleteProject),
        "project.quota-set" => ready!(SetQuota),
        "project.export-set" => ready!(SetExport),
        "certificate.move" => read(body).map(Asked::Move),
        "access.create" => read(body).map(Asked::Access),
        "access.revoke" => ready!(RevokeAccess),
        "region.create" => read(body).map(Asked::Region),
        "region.country-set" => ready!(SetCountry),
        "edge.enrol" => read(body).map(Asked::Enrol),
        "edge.evict" => read(body).map(Asked::Evict),
        "domain.prove" => ready!(ProveDomain),
        "resource.create" => ready!(CreateResource),
        "resource.set" => ready!(ChangeResource),
        "resource.delete" => ready!(DeleteResource),
        "domain.add" => ready!(AddDomain),
        "domain.attach" => ready!(AttachDomain),
        "domain.detach" => ready!(DetachDomain),
        "domain.bind" => ready!(BindDomain),
        "domain.unbind" => ready!(UnbindDomain),
        "domain.https" => ready!(SetHttps),
        "domain.release" => ready!(ReleaseDomain),
        "domain.check" => read(body).map(Asked::Check),
        "certificate.csr" => read(body).map(Asked::Csr),
        "certificate.csr-discard" => ready!(DiscardCsr),
        "certificate.export" => read(body).map(Asked::Export),
        "certificate.deploy" => ready!(DeployCertificate),
        "certificate.withdraw" => ready!(WithdrawCertificate),
        "certificate.delete" => ready!(DeleteCertificate),
        "certificate.add" => {
            in_clear(body)?;
            read(body).map(Asked::Add)
        }
        "certificate.replace" => {
            in_clear(body)?;
            read(body).map(Asked::Replace)
        }
        _ => Err(Problem::new(
            Code::NotFound,
            "there is no command of this name",
            "`chancery --help` lists them",
        )),
    }
}

/// A private key in the clear, wherever in the body it stands, is burnt: it went through a server and perhaps its logs.
fn in_clear(body: &[u8]) -> Result<(), Problem> {
    let label = b"PRIVATE KEY-----";
    if body.windows(label.len()).any(|w| w == label) {
        return Err(Problem::new(
            Code::KeyInClear,
            "a private key was sent in the clear; it is burnt and was not kept",
            "make a new key and certificate, and seal the key with `chancery seal` before sending it",
        ));
    }
    Ok(())
}

fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let mut body = serde_json::Deserializer::from_slice(body);
    let read = T::deserialize(&mut body).and_then(|t| body.end().map(|()| t));
    read.map_err(|error| {
        // Serde's own message may quote the input; only its kind and place are told.
        let what = match error.classify() {
            serde_json::error::Category::Syntax => "the body is not JSON",
            serde_json::error::Category::Eof => "the body ends too early",
            _ => "the body has a field that is missing, unknown or of the wrong form",
        };
        Problem::new(
            Code::Malformed,
            format!("{what} (line {}, column {})", error.line(), error.column()),
            "the README shows bodies of commands; those that the command line sends are examples of all others",
        )
    })
}

/// Reads the body of a query; an empty one is `{}`.
///
/// # Errors
/// The refusal.
pub fn parse_query<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    if body.len() > BODY_MAX {
        return Err(Problem::new(
            Code::TooLarge,
            format!("the body has {} bytes of at most {BODY_MAX}", body.len()),
            "",
        ));
    }
    read(if body.is_empty() { b"{}" } else { body })
}

/// A page of a listing.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    /// One thing by its name, host or id instead of a list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Of `query.platform.access` and `edges`: the project or region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<Slug>,
    /// Only certificates that end within so many days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiring: Option<u32>,
    /// Only certificates of this status, or of this word that people are shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Of certificates: say of each whether it can serve this host, and why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Go on after this name: the former page's `next`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Things on a page, at most 500; 100 unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// `query.<project>.host`
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostQuery {
    /// The host.
    pub host: String,
    /// One region only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Slug>,
    /// A moment of the past, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

/// `query.<project>.outcome`
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutcomeQuery {
    /// The command's id.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub id: uuid::Uuid,
}

/// `query.platform.backup`: one page of what a backup is made of. A page has about 512 KiB at most.
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "part", rename_all = "lowercase", deny_unknown_fields)]
pub enum BackupQuery {
    /// Which log this is, how far it goes, by which root key its keys are wrapped.
    Manifest,
    /// Events from a sequence on, their exact bytes.
    Events {
        /// The first one.
        from: u64,
    },
    /// Certificates and requests by the SHA-256 of their DER, in lower-case hex.
    Objects {
        /// At most 256. As many as fit are answered, in this order.
        hashes: Vec<String>,
    },
    /// Sealed keys, in an order of the vault's own.
    Keys {
        /// Bytes come only with records above this stream sequence; of the others it is told that they live.
        #[serde(default)]
        since: u64,
        /// The former page's `next`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
}

/// `query.<project>.events` (from a `projectseq`) and `query.platform.log` (from a `sequence`).
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    /// The first one; 1 unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
    /// Events on a page, at most 500; 100 unless told. A page holds at most 512 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}
