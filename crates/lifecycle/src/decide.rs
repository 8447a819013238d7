//! What a command means for the state as it is: the events that follow, or a rejection.
//!
//! Pure: time, sequence and asker come in with [`Context`]. Every accepted command gives at least one event, so that the
//! same command, asked again, can be found in the log; none gives more than [`EVENTS_MAX`].

mod budget;
mod contest;
mod custody;
mod quota;
mod warning;

use std::collections::BTreeSet;
use std::rc::Rc;

use budget::{Enough, Reader};
pub use quota::CSRS_MAX;
pub use warning::WARNED_NAMED;

use crate::command::*;
use crate::event::*;
use crate::names::{CertificateId, Host, ResourceId, Slug};
use crate::rejection::{Code, Rejection};
use crate::selection::{self, Mode};
use crate::state::{self, Certificate, Claim, ClaimStatus, ProjectStatus, Resource, State, Status};
use crate::store::{Parts, Read, Table, decode};

/// Most events that one command may become; larger work is several commands.
pub const EVENTS_MAX: usize = 256;
/// Most hosts named when hosts would go dark.
pub const DARK_NAMED: usize = 20;
/// Most rows that are read to tell whether any host would go dark. A command that would need more is not decided by guess:
/// without `force` the answer is no.
const DARK_SCAN: usize = 4_000;
/// Rows of one page of a longer reading.
const PAGE: usize = 500;
/// Most regions that one command may name.
const REGIONS_MAX: usize = 100;
/// Most versions that a certificate keeps. Each change of a certificate leaves a copy of its row in the history, so the row
/// must not grow with the years: a replacement drops what can never be served again, and above this number the oldest.
pub const VERSIONS_MAX: usize = 16;
/// How long a version that has ended stays with its certificate, in seconds: a month, in which people ask why it ended.
pub const ENDED_KEPT: i64 = 30 * 86_400;
/// Most DNS names of a certificate.
pub const NAMES_MAX: usize = 250;
/// Most bytes of all DNS names of a certificate together, so that its event stays below 48 KiB.
pub const NAMES_BYTES_MAX: usize = 32 * 1_024;
/// Most certificates in a chain.
pub const CHAIN_MAX: usize = 16;
/// The name of the operator that a log begins with.
const FIRST_OPERATOR: &str = "operator";
/// Most rights of one user.
const RIGHTS_MAX: usize = 32;
/// Most reasons kept of a failed verification.
const REASONS_MAX: usize = 16;
/// Most edges named as behind in a report; how many there are in all is said beside it.
const BEHIND_MAX: usize = 256;
/// Longest id of an enrolment token.
const TOKEN_MAX: usize = 128;
/// Longest origin URL, in bytes.
const ORIGIN_MAX: usize = 2_048;

/// An event with the project that it belongs to.
pub type Decided = (Slug, Event);

type Decision = Result<Vec<Decided>, Rejection>;

/// Decides a command.
///
/// # Errors
/// The rejection, which the registrar records as an event of its own.
pub fn decide(state: &impl Read, command: &Command, context: &Context) -> Decision {
    let d = Decider { state, context };
    d.admit(command)?;
    match command {
        Command::CreateProject(c) => d.create_project(c),
        Command::SuspendProject(c) => d.suspend_project(&c.project),
        Command::ResumeProject(c) => d.resume_project(&c.project),
        Command::DeleteProject(c) => d.delete_project(c),
        Command::SetQuota(c) => d.set_quota(c),
        Command::SetExport(c) => d.set_export(c),
        Command::MoveCertificate(c) => d.move_certificate(c),
        Command::CreateAccess(c) => d.create_access(c),
        Command::RevokeAccess(c) => d.revoke_access(c),
        Command::CreateRegion(c) => d.create_region(c),
        Command::SetCountry(c) => d.set_country(c),
        Command::EnrolEdge(c) => d.enrol_edge(c),
        Command::EvictEdge(c) => d.evict_edge(c),
        Command::RotateRegionKey(c) => d.rotate_region_key(c),
        Command::ReportApplied(c) => d.report_applied(c),
        Command::CreateResource(c) => d.create_resource(c),
        Command::ChangeResource(c) => d.change_resource(c),
        Command::DeleteResource(c) => d.delete_resource(c),
        Command::AddDomain(c) => d.add_domain(c),
        Command::ProveDomain(c) => d.prove_domain(c),
        Command::AttachDomain(c) => d.attach_domain(c),
        Command::DetachDomain(c) => d.detach_domain(c),
        Command::BindDomain(c) => d.bind_domain(c),
        Command::UnbindDomain(c) => d.unbind_domain(c),
        Command::SetHttps(c) => d.set_https(c),
        Command::ReleaseDomain(c) => d.release_domain(c),
        Command::AddCertificate(c) => d.add_certificate(c),
        Command::ReplaceCertificate(c) => d.replace_certificate(c),
        Command::DeployCertificate(c) => d.deploy_certificate(c),
        Command::WithdrawCertificate(c) => d.withdraw_certificate(c),
        Command::DeleteCertificate(c) => d.delete_certificate(c),
        Command::CreateCsr(c) => d.create_csr(c),
        Command::DiscardCsr(c) => d.discard_csr(c),
        Command::ExportCertificate(c) => d.export_certificate(c),
        Command::ProveByDns(c) => d.prove_by_dns(c),
        Command::SettleContest(c) => d.settle_contest(c),
        Command::WarnCertificate(c) => d.warn_certificate(c),
        Command::VerifyCertificate(c) => d.verify_certificate(c),
        Command::ExpireCertificate(c) => d.expire_certificate(c),
        Command::RevokeCertificate(c) => d.revoke_certificate(c),
    }
}

struct Decider<'a, R> {
    state: &'a R,
    context: &'a Context,
}

fn no<T>(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Result<T, Rejection> {
    Err(Rejection::new(code, message, hint))
}

fn not_found(what: &str, list: &str) -> Rejection {
    Rejection::new(
        Code::NotFound,
        format!("there is no such {what}"),
        format!("`{list}` shows those that exist"),
    )
}

fn host(text: &str) -> Result<Host, Rejection> {
    Host::parse(text).map_err(|error| {
        Rejection::new(
            Code::Malformed,
            error.to_string(),
            "give a name such as www.example.com",
        )
    })
}

/// An NKEY user public key: `U`, then base32, 56 characters.
fn user_key(nkey: &str) -> Result<(), Rejection> {
    if nkey.len() != 56
        || !nkey.starts_with('U')
        || !nkey.bytes().all(|b| matches!(b, b'A'..=b'Z' | b'2'..=b'7'))
    {
        return no(
            Code::Malformed,
            "the user's key is not an NKEY user public key (U…)",
            "",
        );
    }
    Ok(())
}

fn check_expect(expect: Option<u64>, revision: u64) -> Result<(), Rejection> {
    match expect {
        Some(expect) if expect != revision => no(
            Code::Conflict,
            format!("it is at revision {revision} now"),
            "look at it again, and repeat the command with that revision if it still applies",
        ),
        _ => Ok(()),
    }
}

/// What takes a certificate away asks for its name once more.
fn confirmed(confirm: &str, name: &Slug) -> Result<(), Rejection> {
    if confirm == name.as_str() {
        return Ok(());
    }
    no(
        Code::ConfirmationMismatch,
        "the confirmation is not the exact name of the certificate",
        "repeat the name with --confirm",
    )
}

/// What takes a certificate away waits until it is known what it is.
fn settled(certificate: &Certificate) -> Result<(), Rejection> {
    let verifying = |v: &state::Version| v.status == Status::Verifying;
    if !certificate.versions.iter().any(verifying) {
        return Ok(());
    }
    no(
        Code::InProgress,
        "it is still being verified",
        "wait for it: `chancery certificate wait`",
    )
}

impl<R: Read> Decider<'_, R> {
    fn project(&self) -> &Slug {
        &self.context.project
    }

    fn now(&self) -> i64 {
        self.context.now.div_euclid(1_000_000)
    }

    /// Events of the project that the command is for.
    fn here(&self, events: impl IntoIterator<Item = Event>) -> Vec<Decided> {
        events
            .into_iter()
            .map(|e| (self.project().clone(), e))
            .collect()
    }

    fn one(&self, event: impl Into<Event>) -> Decision {
        Ok(self.here([event.into()]))
    }

    /// Whether this project may command anything now, and whether the asker may ask this.
    fn admit(&self, command: &Command) -> Result<(), Rejection> {
        let platform_only = matches!(
            command,
            Command::CreateProject(_)
                | Command::SuspendProject(_)
                | Command::ResumeProject(_)
                | Command::DeleteProject(_)
                | Command::CreateAccess(_)
                | Command::RevokeAccess(_)
                | Command::CreateRegion(_)
                | Command::SetCountry(_)
                | Command::EnrolEdge(_)
                | Command::EvictEdge(_)
                | Command::RotateRegionKey(_)
                | Command::ReportApplied(_)
                | Command::ProveDomain(_)
                | Command::SetQuota(_)
                | Command::SetExport(_)
                | Command::MoveCertificate(_)
        );
        let system_only = matches!(
            command,
            Command::EnrolEdge(_)
                | Command::RotateRegionKey(_)
                | Command::ReportApplied(_)
                | Command::VerifyCertificate(_)
                | Command::ExpireCertificate(_)
                | Command::RevokeCertificate(_)
                | Command::WarnCertificate(_)
                | Command::ProveByDns(_)
                | Command::SettleContest(_)
        );
        let asker = &self.context.asker;
        if platform_only && !(asker.operator && self.project().is_platform()) {
            return no(Code::Unauthorized, "only an operator may do this", "");
        }
        if system_only && !asker.actor.starts_with('_') {
            return no(Code::Unauthorized, "only the system itself does this", "");
        }
        if !asker.operator && asker.project != *self.project() {
            return no(Code::Unauthorized, "this belongs to another project", "");
        }
        // What was taken in before the revocation, and waited, is not done after it.
        let access = self
            .state
            .access(asker.project.as_str(), asker.actor.as_str());
        if access.as_ref().is_some_and(|access| access.revoked) {
            return no(Code::Unauthorized, "this access was revoked", "");
        }
        // Whoever could make operators or take them away would have all their rights, whatever their own are.
        let of_operators = match command {
            Command::CreateAccess(c) => c.project.is_platform(),
            Command::RevokeAccess(c) => c.project.is_platform(),
            _ => false,
        };
        if of_operators && access.is_some_and(|access| !rights::include_all(&access.rights)) {
            return no(
                Code::Unauthorized,
                "only an operator with all rights may change who operates",
                "",
            );
        }
        match self
            .state
            .project(self.project().as_str())
            .map(|p| p.status)
        {
            None | Some(ProjectStatus::Deleted) => {
                Err(not_found("project", "chancery project list"))
            }
            Some(ProjectStatus::Suspended) if !asker.operator => no(
                Code::Unauthorized,
                "the project is suspended",
                "ask the operator to resume it",
            ),
            Some(_) => Ok(()),
        }
    }

    /// A project named in an operator's command.
    fn living_project(&self, project: &Slug) -> Result<ProjectStatus, Rejection> {
        match self.state.project(project.as_str()).map(|p| p.status) {
            None | Some(ProjectStatus::Deleted) => {
                Err(not_found("project", "chancery project list"))
            }
            Some(status) => Ok(status),
        }
    }

    /// Regions and countries as the set of regions they are now.
    fn expand(&self, named: &[Slug]) -> Result<Vec<Slug>, Rejection> {
        if named.len() > REGIONS_MAX {
            return no(
                Code::TooLarge,
                format!("at most {REGIONS_MAX} regions can be named at once"),
                "use several commands",
            );
        }
        let mut regions = Vec::new();
        for name in named {
            if self.state.region(name.as_str()).is_some() {
                regions.push(name.clone());
            } else if let Some(country) = self.state.country(name.as_str()) {
                regions.extend(country.regions);
            } else {
                return Err(not_found("region or country", "chancery region list"));
            }
        }
        regions.sort();
        regions.dedup();
        if regions.is_empty() {
            return no(
                Code::Malformed,
                "no region is named",
                "name at least one with --region",
            );
        }
        Ok(regions)
    }

    // ---- projects and access

    fn create_project(&self, c: &CreateProject) -> Decision {
        if let Err(error) = Slug::project(c.project.as_str()) {
            return no(Code::Malformed, format!("a project's id: {error}"), "");
        }
        if ["_internal", "internal", "core", "edges", "sys"].contains(&c.project.as_str()) {
            return no(
                Code::DuplicateName,
                "this name is reserved for the system",
                "choose another",
            );
        }
        if self.state.project(c.project.as_str()).is_some() {
            return no(
                Code::DuplicateName,
                "a project of this id exists or existed",
                "ids of projects are never used again: choose another",
            );
        }
        Ok(vec![(
            c.project.clone(),
            ProjectCreated {
                project: c.project.clone(),
            }
            .into(),
        )])
    }

    fn suspend_project(&self, project: &Slug) -> Decision {
        if project.is_platform() {
            return no(
                Code::Conflict,
                "the platform's own project cannot be suspended",
                "",
            );
        }
        match self.living_project(project)? {
            ProjectStatus::Suspended => no(Code::Conflict, "the project is suspended already", ""),
            _ => Ok(vec![(
                project.clone(),
                ProjectSuspended {
                    project: project.clone(),
                }
                .into(),
            )]),
        }
    }

    fn resume_project(&self, project: &Slug) -> Decision {
        match self.living_project(project)? {
            ProjectStatus::Suspended => Ok(vec![(
                project.clone(),
                ProjectResumed {
                    project: project.clone(),
                }
                .into(),
            )]),
            _ => no(Code::Conflict, "the project is not suspended", ""),
        }
    }

    fn delete_project(&self, c: &DeleteProject) -> Decision {
        self.living_project(&c.project)?;
        if c.project.is_platform() {
            return no(
                Code::Conflict,
                "the platform's own project cannot be deleted",
                "",
            );
        }
        if c.confirm != c.project.as_str() {
            return no(
                Code::ConfirmationMismatch,
                "the confirmation is not the exact id of the project",
                "repeat the id with --confirm",
            );
        }
        for (table, what) in [
            (Table::CertificateName, "certificates"),
            (Table::ResourceName, "resources"),
            (Table::ProjectClaim, "domains"),
            (Table::Csr, "signing requests"),
        ] {
            if !self
                .state
                .scan(table, &state::key::text(&c.project), None, 1)
                .is_empty()
            {
                return no(
                    Code::Conflict,
                    format!("the project still has {what}"),
                    format!("delete its {what} first"),
                );
            }
        }
        Ok(vec![(
            c.project.clone(),
            ProjectDeleted {
                project: c.project.clone(),
            }
            .into(),
        )])
    }

    /// Whether the asker may let private keys go: who could hand out this right without having it would have it.
    fn may_give_keys(&self) -> Result<(), Rejection> {
        let asker = &self.context.asker;
        let record = self
            .state
            .access(asker.project.as_str(), asker.actor.as_str());
        let has = record.is_none_or(|access| {
            access.rights.iter().any(|right| right == rights::EXPORT)
                // Logs that began before there was this right have it nowhere: their first operator gives it.
                || (asker.project.is_platform() && asker.actor == FIRST_OPERATOR)
        });
        if has {
            return Ok(());
        }
        no(
            Code::Unauthorized,
            format!(
                "only an operator with the right {} may do this",
                rights::EXPORT
            ),
            "ask an operator who has it; `chancery access list --project platform` tells who",
        )
    }

    fn create_access(&self, c: &CreateAccess) -> Decision {
        self.living_project(&c.project)?;
        if self
            .state
            .access(c.project.as_str(), c.name.as_str())
            .is_some()
        {
            return no(
                Code::DuplicateName,
                "this project has or had a user of this name",
                "names of users are never used again: choose another",
            );
        }
        user_key(&c.nkey)?;
        if self.state.access_of_key(&c.nkey).is_some() {
            return no(
                Code::Conflict,
                "a user has or had this key",
                "make a new one: who asks is known by the key alone",
            );
        }
        if c.expires.is_some_and(|end| end <= self.now()) {
            return no(
                Code::Malformed,
                "the access would have ended already",
                "give a time to come",
            );
        }
        if c.rights.len() > RIGHTS_MAX {
            return no(
                Code::TooLarge,
                format!("at most {RIGHTS_MAX} rights can be given"),
                "",
            );
        }
        for right in &c.rights {
            if !rights::well_formed(right) {
                return no(
                    Code::Malformed,
                    "a right is a subject pattern such as cmd.certificate.*, query.* or evt.>",
                    "",
                );
            }
        }
        if c.rights.iter().any(|right| right == rights::EXPORT) {
            self.may_give_keys()?;
        }
        let rights = if c.rights.is_empty() {
            rights::member()
        } else {
            c.rights.clone()
        };
        Ok(vec![(
            c.project.clone(),
            AccessCreated {
                project: c.project.clone(),
                actor: c.name.clone(),
                nkey: c.nkey.clone(),
                rights,
                expires: c.expires,
            }
            .into(),
        )])
    }

    fn revoke_access(&self, c: &RevokeAccess) -> Decision {
        let access = self
            .state
            .access(c.project.as_str(), c.name.as_str())
            .ok_or_else(|| not_found("user", "chancery access list"))?;
        if access.revoked {
            return no(Code::Conflict, "this access is revoked already", "");
        }
        if self.context.asker.project == c.project && self.context.asker.actor == c.name.as_str() {
            return no(
                Code::Conflict,
                "nobody can revoke their own access",
                "ask another operator",
            );
        }
        Ok(vec![(
            c.project.clone(),
            AccessRevoked {
                project: c.project.clone(),
                actor: c.name.clone(),
                nkey: access.nkey,
            }
            .into(),
        )])
    }

    // ---- regions and edges

    fn create_region(&self, c: &CreateRegion) -> Decision {
        if c.region.as_str().len() > crate::names::LABEL_MAX {
            return no(
                Code::TooLarge,
                format!(
                    "a region is a label of provider domains, at most {} bytes",
                    crate::names::LABEL_MAX
                ),
                "choose a shorter name",
            );
        }
        if self.state.region(c.region.as_str()).is_some()
            || self.state.country(c.region.as_str()).is_some()
        {
            return no(
                Code::DuplicateName,
                "a region or country of this name exists",
                "choose another name",
            );
        }
        self.one(RegionCreated {
            region: c.region.clone(),
            key: c.key,
            key_version: c.key_version,
        })
    }

    fn set_country(&self, c: &SetCountry) -> Decision {
        if self.state.region(c.country.as_str()).is_some() {
            return no(
                Code::DuplicateName,
                "a region has this name",
                "choose another name",
            );
        }
        let regions = self.expand(&c.regions)?;
        if c.regions
            .iter()
            .any(|region| self.state.region(region.as_str()).is_none())
        {
            return no(
                Code::Conflict,
                "a country is made of regions, not of countries",
                "name its regions",
            );
        }
        self.one(RegionCountrySet {
            country: c.country.clone(),
            regions,
        })
    }

    fn enrol_edge(&self, c: &EnrolEdge) -> Decision {
        if self.state.region(c.region.as_str()).is_none() {
            return Err(not_found("region", "chancery region list"));
        }
        user_key(&c.nkey)?;
        if c.token.is_empty()
            || c.token.len() > TOKEN_MAX
            || !c.token.bytes().all(|b| b.is_ascii_graphic())
        {
            return no(
                Code::Malformed,
                "this is not the id of a token",
                "`chancery edge enrol` gives one",
            );
        }
        if self
            .state
            .get(Table::EdgeToken, &state::key::text(&c.token))
            .is_some()
        {
            return no(
                Code::Conflict,
                "this token was used already",
                "`chancery edge enrol` gives a new one",
            );
        }
        if self
            .state
            .edge(c.region.as_str(), c.edge.as_str())
            .is_some_and(|edge| !edge.evicted)
        {
            return no(
                Code::DuplicateName,
                "the region has an edge of this name",
                "evict it first, or choose another name",
            );
        }
        self.one(RegionEdgeEnrolled {
            region: c.region.clone(),
            edge: c.edge.clone(),
            nkey: c.nkey.clone(),
            hpke: c.hpke,
            token: c.token.clone(),
        })
    }

    fn evict_edge(&self, c: &EvictEdge) -> Decision {
        match self.state.edge(c.region.as_str(), c.edge.as_str()) {
            Some(edge) if !edge.evicted => self.one(RegionEdgeEvicted {
                region: c.region.clone(),
                edge: c.edge.clone(),
                nkey: edge.nkey,
            }),
            _ => Err(not_found("edge", "chancery edge list")),
        }
    }

    fn rotate_region_key(&self, c: &RotateRegionKey) -> Decision {
        let Some(region) = self.state.region(c.region.as_str()) else {
            return Err(not_found("region", "chancery region list"));
        };
        if c.key_version <= region.key_version {
            return no(
                Code::Conflict,
                format!("the region's key is at version {} now", region.key_version),
                "",
            );
        }
        self.one(RegionKeyRotated {
            region: c.region.clone(),
            key: c.key,
            key_version: c.key_version,
        })
    }

    fn report_applied(&self, c: &ReportApplied) -> Decision {
        if self.state.region(c.region.as_str()).is_none() {
            return Err(not_found("region", "chancery region list"));
        }
        self.one(RegionApplied {
            region: c.region.clone(),
            applied: c.applied,
            of: c.of,
            behind: c.behind.iter().take(BEHIND_MAX).cloned().collect(),
        })
    }

    // ---- resources

    /// Checks an origin; gives it in the one form in which every reader of URLs sees the same host, and whether it may be
    /// at an address that only an operator may name.
    fn origin(&self, origin: &str) -> Result<(String, bool), Rejection> {
        let bad = |why: &str| {
            no(
                Code::Malformed,
                format!("the origin {why}"),
                "give an http or https URL such as https://bucket.example.net/path",
            )
        };
        if origin.len() > ORIGIN_MAX {
            return bad("is longer than 2,048 characters");
        }
        let Ok(url) = url::Url::parse(origin) else {
            return bad("is not a URL");
        };
        if !matches!(url.scheme(), "http" | "https") {
            return bad("is neither http nor https");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return bad("carries credentials, which would stand in the log for ever");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return bad("has a query or a fragment");
        }
        let local = match url.host() {
            None => return bad("has no host"),
            Some(url::Host::Ipv4(address)) => !public_v4(address),
            Some(url::Host::Ipv6(address)) => !public_v6(address),
            Some(url::Host::Domain(name)) => {
                let name = name.trim_end_matches('.');
                name == "localhost" || name.ends_with(".localhost") || !name.contains('.')
            }
        };
        if local && !self.context.asker.operator {
            return no(
                Code::Unauthorized,
                "an origin at a loopback, link-local or private address needs the operator",
                "ask the operator to set this origin, or give a public one",
            );
        }
        // The request's path, which begins with a slash, is appended.
        let origin = url.as_str().trim_end_matches('/').to_owned();
        if origin.len() > ORIGIN_MAX {
            return bad("is longer than 2,048 characters");
        }
        // An operator's word covers whatever a name resolves to; a user's name is checked at each connect.
        Ok((origin, self.context.asker.operator))
    }

    fn create_resource(&self, c: &CreateResource) -> Decision {
        if self
            .state
            .resource_named(self.project().as_str(), c.name.as_str())
            .is_some()
        {
            return no(
                Code::DuplicateName,
                "the project has a resource of this name",
                "choose another name",
            );
        }
        if c.name.as_str() == "xn" {
            return no(
                Code::Malformed,
                "with this name its provider domain would begin like an internationalised label",
                "choose another name",
            );
        }
        let label = c.name.as_str().len() + 2 + self.project().as_str().len();
        if label > crate::names::LABEL_MAX {
            return no(
                Code::TooLarge,
                format!(
                    "its provider domain's label would have {label} bytes of at most {}",
                    crate::names::LABEL_MAX
                ),
                "choose a shorter name",
            );
        }
        let regions = self.expand(&c.regions)?;
        if c.kind == ResourceKind::Bucket && regions.len() != 1 {
            return no(
                Code::Conflict,
                "a bucket is in exactly one region",
                "name one region, or make it a cdn resource",
            );
        }
        let (origin, private_origin) = self.origin(&c.origin)?;
        self.one(ResourceCreated {
            id: ResourceId(self.context.sequence),
            name: c.name.clone(),
            kind: c.kind,
            regions,
            origin,
            keep_host: c.keep_host,
            private_origin,
            demand_public: c.demand_public,
        })
    }

    fn resource(&self, name: &Slug) -> Result<Resource, Rejection> {
        self.state
            .resource_named(self.project().as_str(), name.as_str())
            .ok_or_else(|| not_found("resource", "chancery resource list"))
    }

    fn change_resource(&self, c: &ChangeResource) -> Decision {
        let resource = self.resource(&c.name)?;
        check_expect(c.expect, resource.revision)?;
        let regions = c
            .regions
            .as_ref()
            .map_or_else(|| Ok(resource.regions.clone()), |named| self.expand(named))?;
        if resource.kind == ResourceKind::Bucket && regions.len() != 1 {
            return no(
                Code::Conflict,
                "a bucket is in exactly one region",
                "name one region",
            );
        }
        for region in resource.regions.iter().filter(|r| !regions.contains(r)) {
            let there = state::key::resource_region(resource.id, region.as_str());
            let hosts = self.state.scan(Table::AttachedIn, &there, None, DARK_NAMED);
            if !hosts.is_empty() {
                let named: Vec<&str> = hosts
                    .iter()
                    .map(|(row, _)| Parts::of(&row[there.len()..]).text())
                    .collect();
                return no(
                    Code::Conflict,
                    format!(
                        "hosts are attached to it in region {region}: {}",
                        named.join(", ")
                    ),
                    "`chancery domain detach` them there first",
                );
            }
        }
        let (origin, private_origin) = match &c.origin {
            Some(origin) => self.origin(origin)?,
            None => (resource.origin.clone(), resource.private_origin),
        };
        let demand_public = c.demand_public.unwrap_or(resource.demand_public);
        if demand_public && !resource.demand_public {
            self.publicly_trusted(&resource)?;
        }
        self.one(ResourceChanged {
            id: resource.id,
            name: resource.name,
            regions,
            origin,
            keep_host: c.keep_host.unwrap_or(resource.keep_host),
            private_origin,
            demand_public,
        })
    }

    /// Refuses to demand public trust where hosts that are served now would have nothing left: the first
    /// [`DARK_NAMED`] among those that are looked at.
    fn publicly_trusted(&self, resource: &Resource) -> Result<(), Rejection> {
        let mut dark: Vec<Host> = Vec::new();
        let complete = self.look_for_private(resource, &mut dark).is_ok();
        if dark.is_empty() && complete {
            return Ok(());
        }
        if dark.is_empty() {
            return no(
                Code::ChainUntrusted,
                "so many hosts are attached to it that not all could be looked at: some may have no publicly trusted certificate",
                "make another resource that demands it, and attach the hosts to that one",
            );
        }
        no(
            Code::ChainUntrusted,
            format!(
                "these hosts have no publicly trusted certificate: {}",
                dark.iter().map(Host::as_str).collect::<Vec<_>>().join(", ")
            ),
            "add publicly trusted certificates for them first",
        )
    }

    /// Finds hosts of a resource that are served now, and by nothing that is publicly trusted.
    fn look_for_private(&self, resource: &Resource, dark: &mut Vec<Host>) -> Result<(), Enough> {
        let mut reader = Reader::new(self.state, self.project(), DARK_SCAN);
        let prefix = state::key::resource(resource.id);
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = self
                .state
                .scan(Table::Attachment, &prefix, after.as_deref(), PAGE);
            for (row, _) in &page {
                reader.spend(1)?;
                let Ok(host) = Host::parse(Parts::of(&row[8..]).text()) else {
                    continue;
                };
                for region in &resource.regions {
                    let Some((served, ranked)) = reader.ranking(&host, region.as_str())? else {
                        continue;
                    };
                    let usable = |c: &selection::Candidate| c.usable(self.now());
                    if served.resource == Some(resource.id)
                        && ranked.iter().any(usable)
                        && !ranked.iter().any(|c| usable(c) && c.public)
                    {
                        dark.push(host);
                        if dark.len() >= DARK_NAMED {
                            return Err(Enough);
                        }
                        break;
                    }
                }
            }
            match page.last() {
                Some((row, _)) if page.len() == PAGE => after = Some(row.clone()),
                _ => return Ok(()),
            }
        }
    }

    fn delete_resource(&self, c: &DeleteResource) -> Decision {
        let resource = self.resource(&c.name)?;
        check_expect(c.expect, resource.revision)?;
        if c.confirm != c.name.as_str() {
            return no(
                Code::ConfirmationMismatch,
                "the confirmation is not the exact name of the resource",
                "repeat the name with --confirm",
            );
        }
        let hosts = self.state.scan(
            Table::Attachment,
            &state::key::resource(resource.id),
            None,
            DARK_NAMED,
        );
        if !hosts.is_empty() {
            let named: Vec<&str> = hosts
                .iter()
                .map(|(row, _)| Parts::of(&row[8..]).text())
                .collect();
            return no(
                Code::Conflict,
                format!("hosts are attached to it: {}", named.join(", ")),
                "`chancery domain detach` them first",
            );
        }
        self.one(ResourceDeleted {
            id: resource.id,
            name: resource.name,
        })
    }

    // ---- domains

    fn claim(&self, host: &Host) -> Result<Claim, Rejection> {
        self.state
            .claim(host.as_str(), self.project().as_str())
            .filter(|c| c.status != ClaimStatus::Released)
            .ok_or_else(|| not_found("domain in this project", "chancery domain list"))
    }

    fn proven(&self, host: &Host) -> Result<Claim, Rejection> {
        let claim = self.claim(host)?;
        match claim.status {
            ClaimStatus::Proven => Ok(claim),
            _ => no(
                Code::DomainUnproven,
                format!("the claim is {}", claim.status.as_str()),
                "prove it first; `chancery domain show` tells how",
            ),
        }
    }

    /// A claim that this project may still arrange: pending or proven.
    fn own(&self, host: &Host) -> Result<Claim, Rejection> {
        let claim = self.claim(host)?;
        if claim.status == ClaimStatus::Moved {
            return no(
                Code::DomainUnproven,
                "another project proved this host since",
                "add and prove it again, or release it",
            );
        }
        Ok(claim)
    }

    fn attach_regions(&self, resource: &Resource, named: &[Slug]) -> Result<Vec<Slug>, Rejection> {
        if named.is_empty() {
            return Ok(resource.regions.clone());
        }
        let regions = self.expand(named)?;
        if regions.iter().any(|r| !resource.regions.contains(r)) {
            return no(
                Code::Conflict,
                "the resource is not in all of these regions",
                "`chancery resource show` tells where it is",
            );
        }
        Ok(regions)
    }

    fn add_domain(&self, c: &AddDomain) -> Decision {
        let host = host(&c.host)?;
        let control = self.state.control();
        if control.is_some_and(|control| host.is_within(&control.platform_domain)) {
            return no(
                Code::DomainReserved,
                "this name belongs to the platform",
                "provider domains need no claim",
            );
        }
        if host.is_public_suffix() {
            return no(
                Code::DomainReserved,
                "this is a public suffix, below which everybody may have names",
                "claim a name of your own below it",
            );
        }
        if let Some(claim) = self.state.claim(host.as_str(), self.project().as_str())
            && matches!(claim.status, ClaimStatus::Pending | ClaimStatus::Proven)
        {
            return no(
                Code::DomainClaimed,
                format!(
                    "the project claims this host already; the claim is {}",
                    claim.status.as_str()
                ),
                "`chancery domain attach` points it at another resource",
            );
        }
        let mut events: Vec<Event> = vec![DomainAdded { host: host.clone() }.into()];
        if self.context.asker.operator {
            // An operator's word is the proof, but never against a project that holds the host.
            if self.state.holder(host.as_str()).is_some() {
                return no(
                    Code::DomainClaimed,
                    // A rejection stands in this project's log, which must not name another tenant.
                    "another project holds this host",
                    "`chancery domain prove --force` moves it once it was added by a user of the project",
                );
            }
            events.push(
                DomainProven {
                    host: host.clone(),
                    proof: Proof::Operator,
                }
                .into(),
            );
        }
        if c.resource.is_none() && !c.regions.is_empty() {
            return no(
                Code::Malformed,
                "regions are named, but no resource to attach the host to",
                "name the resource too, or attach the host later",
            );
        }
        if let Some(name) = &c.resource {
            let resource = self.resource(name)?;
            let regions = self.attach_regions(&resource, &c.regions)?;
            events.push(
                DomainAttached {
                    host,
                    resource: resource.id,
                    regions,
                }
                .into(),
            );
        }
        Ok(self.here(events))
    }

    fn prove_domain(&self, c: &ProveDomain) -> Decision {
        self.living_project(&c.project)?;
        let host = host(&c.host)?;
        let claim = self
            .state
            .claim(host.as_str(), c.project.as_str())
            .filter(|claim| claim.status != ClaimStatus::Released)
            .ok_or_else(|| not_found("domain in this project", "chancery domain list"))?;
        if claim.status == ClaimStatus::Proven {
            return no(Code::Conflict, "the claim is proven already", "");
        }
        let mut events = Vec::new();
        match self.state.holder(host.as_str()) {
            Some(holder) if holder != c.project => {
                if !c.force {
                    return no(
                        Code::DomainClaimed,
                        format!("project {holder} holds this host"),
                        "--force moves it to this project",
                    );
                }
                // First the former holder lets go, then the new one holds: in this order at no sequence two hold it.
                let held = self.state.claim(host.as_str(), holder.as_str());
                events.push((holder, DomainMoved { host: host.clone() }.into()));
                // What another project's proof had begun ends with the claim that it was against.
                let freed = held.map(|held| self.freed(&held)).unwrap_or_default();
                events.extend(freed.into_iter().filter(|(to, _)| *to != c.project));
            }
            _ => {}
        }
        events.push((
            c.project.clone(),
            DomainProven {
                host,
                proof: Proof::Operator,
            }
            .into(),
        ));
        Ok(events)
    }

    fn attach_domain(&self, c: &AttachDomain) -> Decision {
        let host = host(&c.host)?;
        check_expect(c.expect, self.own(&host)?.revision)?;
        let resource = self.resource(&c.resource)?;
        let regions = self.attach_regions(&resource, &c.regions)?;
        self.one(DomainAttached {
            host,
            resource: resource.id,
            regions,
        })
    }

    fn detach_domain(&self, c: &DetachDomain) -> Decision {
        let host = host(&c.host)?;
        let claim = self.claim(&host)?;
        check_expect(c.expect, claim.revision)?;
        let named = if c.regions.is_empty() {
            claim.attached.keys().cloned().collect()
        } else {
            self.expand(&c.regions)?
        };
        let regions: Vec<Slug> = named
            .into_iter()
            .filter(|r| claim.attached.contains_key(r))
            .collect();
        if regions.is_empty() {
            return no(
                Code::Conflict,
                "the host is not attached there",
                "`chancery domain show` tells where it is",
            );
        }
        self.one(DomainDetached { host, regions })
    }

    fn mode_region(&self, region: Option<&Slug>) -> Result<(), Rejection> {
        match region {
            Some(region) if self.state.region(region.as_str()).is_none() => {
                Err(not_found("region", "chancery region list"))
            }
            _ => Ok(()),
        }
    }

    fn bind_domain(&self, c: &BindDomain) -> Decision {
        let host = host(&c.host)?;
        let claim = self.proven(&host)?;
        check_expect(c.expect, claim.revision)?;
        self.mode_region(c.region.as_ref())?;
        let certificate = self.certificate(&c.certificate)?;
        if certificate.kind != CertificateKind::Server {
            return no(
                Code::NotAServerCertificate,
                "this is a CA certificate",
                "bind a server certificate",
            );
        }
        let covers = |v: &&state::Version| v.facts.names.iter().any(|name| host.covered_by(name));
        // A version that may be served is enough: a later one that failed, or is not verified yet, displaces nothing.
        let ready = |v: &&state::Version| covers(v) && v.shown(self.now()) == Status::Ready;
        let versions = || certificate.versions.iter().rev();
        let Some(version) = versions().find(ready).or_else(|| versions().find(covers)) else {
            let names = certificate
                .latest()
                .map(|v| v.facts.names.join(", "))
                .unwrap_or_default();
            return no(
                Code::NameMismatch,
                format!(
                    "the certificate does not cover the host; it names {}",
                    clip(&names)
                ),
                "bind one that names it",
            );
        };
        match version.shown(self.now()) {
            Status::Ready => {}
            Status::Verifying => {
                return no(
                    Code::InProgress,
                    "the certificate is still being verified",
                    "wait for it: `chancery certificate wait`",
                );
            }
            Status::Expired => {
                return no(
                    Code::Expired,
                    "the certificate has expired",
                    "replace it first",
                );
            }
            Status::Revoked => {
                return no(
                    Code::Revoked,
                    "the certificate was revoked",
                    "replace it first",
                );
            }
            Status::Error | Status::Deleted => {
                return no(
                    Code::Conflict,
                    "the certificate is in error",
                    "`chancery certificate show` tells why",
                );
            }
        }
        let regions: Vec<&Slug> = c
            .region
            .as_ref()
            .map_or_else(|| claim.attached.keys().collect(), |region| vec![region]);
        if let Some(missing) = regions.iter().find(|r| !certificate.regions.contains(r)) {
            return no(
                Code::Conflict,
                format!("the certificate is not deployed to region {missing}"),
                "`chancery certificate deploy` it there first",
            );
        }
        let demanding = regions.iter().find(|region| {
            state::demands_public(self.state, claim.attached.get(**region).copied())
        });
        if let Some(region) = demanding
            && version.trust != Some(Trust::Public)
        {
            return no(
                Code::ChainUntrusted,
                format!(
                    "the certificate is not publicly trusted, which the resource in region {region} demands"
                ),
                "bind a publicly trusted one, or change the resource: chancery resource set NAME --demand-public false",
            );
        }
        self.one(DomainBound {
            host,
            certificate: certificate.id,
            region: c.region.clone(),
        })
    }

    fn unbind_domain(&self, c: &UnbindDomain) -> Decision {
        let host = host(&c.host)?;
        let claim = self.claim(&host)?;
        check_expect(c.expect, claim.revision)?;
        self.mode_region(c.region.as_ref())?;
        let bound = |mode: &Mode| matches!(mode, Mode::Bound(_));
        let any = match &c.region {
            Some(region) => bound(&claim.mode_in(region.as_str())),
            None => bound(&claim.mode) || claim.modes.values().any(bound),
        };
        if !any {
            return no(Code::Conflict, "no certificate is bound there", "");
        }
        self.one(DomainUnbound {
            host,
            region: c.region.clone(),
        })
    }

    fn set_https(&self, c: &SetHttps) -> Decision {
        let host = host(&c.host)?;
        let claim = self.own(&host)?;
        check_expect(c.expect, claim.revision)?;
        self.mode_region(c.region.as_ref())?;
        self.one(DomainHttpsSet {
            host,
            https: c.https,
            region: c.region.clone(),
        })
    }

    fn release_domain(&self, c: &ReleaseDomain) -> Decision {
        let host = host(&c.host)?;
        let claim = self.claim(&host)?;
        check_expect(c.expect, claim.revision)?;
        let mut events = self.here([DomainReleased { host }.into()]);
        events.extend(self.relieved(&claim));
        events.extend(self.freed(&claim));
        Ok(events)
    }

    // ---- certificates

    fn certificate(&self, name: &Slug) -> Result<Certificate, Rejection> {
        self.state
            .certificate_named(self.project().as_str(), name.as_str())
            .ok_or_else(|| not_found("certificate", "chancery certificate list"))
    }

    /// The event that a key is kept, if it is not known yet.
    fn seal(&self, facts: &Facts) -> Option<Event> {
        let known = self
            .state
            .get(Table::Key, &state::key::spki(self.project(), facts.spki))
            .is_some();
        (!known).then(|| {
            KeySealed {
                spki: facts.spki,
                key: facts.key,
            }
            .into()
        })
    }

    fn dates(&self, facts: &Facts) -> Result<(), Rejection> {
        if self.now() >= facts.not_after {
            return no(
                Code::Expired,
                "its notAfter has passed",
                "renew it and add the new one",
            );
        }
        if self.now() < facts.not_before {
            return no(
                Code::NotYetValid,
                "its notBefore has not come",
                "add it then, or check this system's clock",
            );
        }
        Ok(())
    }

    /// Bounds of what goes into the event, the rows and their histories.
    fn bounds(
        &self,
        kind: CertificateKind,
        facts: &Facts,
        known: Option<&Certificate>,
    ) -> Result<(), Rejection> {
        let too_large = |message: String| {
            no(
                Code::TooLarge,
                message,
                "spread the names over several certificates",
            )
        };
        if facts.names.len() > NAMES_MAX {
            return too_large(format!("it has more than {NAMES_MAX} names"));
        }
        if facts.names.iter().map(String::len).sum::<usize>() > NAMES_BYTES_MAX {
            return too_large(format!("its names have more than {NAMES_BYTES_MAX} bytes"));
        }
        if facts.chain.len() > CHAIN_MAX {
            return no(
                Code::TooLarge,
                format!("its chain has more than {CHAIN_MAX} certificates"),
                "leave out what is not between the leaf and its root",
            );
        }
        if kind != CertificateKind::Server {
            return Ok(());
        }
        for name in crate::evolve::hosts(facts) {
            let prefix = state::key::pair(self.project(), &name);
            let others = self
                .state
                .scan(Table::Cover, &prefix, None, state::COVER_LIMIT);
            let counted = known.is_some_and(|known| {
                let row = state::key::cover(self.project(), &name, known.id);
                self.state.get(Table::Cover, &row).is_some()
            });
            if others.len() >= state::COVER_LIMIT && !counted {
                return no(
                    Code::QuotaExceeded,
                    format!(
                        "{} certificates of the project name one of its hosts already",
                        state::COVER_LIMIT
                    ),
                    "delete those that are no longer needed",
                );
            }
        }
        Ok(())
    }

    fn add_certificate(&self, c: &AddCertificate) -> Decision {
        self.add_certificate_after(c, 0)
    }

    /// The same, with so many events of the same command before it.
    fn add_certificate_after(&self, c: &AddCertificate, before: u64) -> Decision {
        if self
            .state
            .certificate_named(self.project().as_str(), c.name.as_str())
            .is_some()
        {
            return no(
                Code::DuplicateName,
                "the project has a certificate of this name",
                "choose another name, or use `chancery certificate replace` for a new version of it",
            );
        }
        self.dates(&c.facts)?;
        self.bounds(c.kind, &c.facts, None)?;
        let regions = self.expand(&c.regions)?;
        self.room(1, c.kind, &regions)?;
        let mut events: Vec<Event> = Vec::with_capacity(2);
        if c.kind == CertificateKind::Server {
            events.extend(self.seal(&c.facts));
        }
        let id = CertificateId(self.context.sequence + before + events.len() as u64);
        events.push(
            CertificateAdded {
                id,
                name: c.name.clone(),
                kind: c.kind,
                regions,
                standby: c.standby,
                facts: c.facts.clone(),
            }
            .into(),
        );
        Ok(self.here(events))
    }

    fn replace_certificate(&self, c: &ReplaceCertificate) -> Decision {
        let certificate = self.certificate(&c.name)?;
        check_expect(c.expect, certificate.revision)?;
        self.dates(&c.facts)?;
        if let Some(same) = certificate
            .versions
            .iter()
            .find(|v| v.facts.fingerprint == c.facts.fingerprint)
        {
            return no(
                Code::Conflict,
                format!("this is version {} of it already", same.version),
                "",
            );
        }
        self.bounds(certificate.kind, &c.facts, Some(&certificate))?;
        let dropped = self.superseded(&certificate)?;
        let mut events: Vec<Event> = Vec::with_capacity(2);
        if certificate.kind == CertificateKind::Server {
            events.extend(self.seal(&c.facts));
        }
        let version = certificate.latest().map_or(1, |v| v.version + 1);
        let orphans = self.orphans(&certificate, |v| {
            dropped.contains(&v.version) && v.facts.spki != c.facts.spki
        });
        events.push(
            CertificateReplaced {
                id: certificate.id,
                version,
                facts: c.facts.clone(),
                dropped,
            }
            .into(),
        );
        events.extend(orphans);
        Ok(self.here(events))
    }

    /// The versions that leave a certificate when it gets a new one: those that can never be served again, and so many of
    /// the oldest that [`VERSIONS_MAX`] remain with the new one.
    fn superseded(&self, certificate: &Certificate) -> Result<Vec<u32>, Rejection> {
        let spent = |v: &state::Version| match v.status {
            Status::Error | Status::Revoked | Status::Deleted => true,
            Status::Ready | Status::Expired => {
                self.now() >= v.facts.not_after.saturating_add(ENDED_KEPT)
            }
            Status::Verifying => false,
        };
        let mut dropped: Vec<u32> = certificate
            .versions
            .iter()
            .filter(|v| spent(v))
            .map(|v| v.version)
            .collect();
        let surplus = (certificate.versions.len() + 1 - dropped.len()).saturating_sub(VERSIONS_MAX);
        // First those that have ended, then those that might still be served, the oldest of each first.
        let mut spare: Vec<(bool, u32)> = certificate
            .versions
            .iter()
            .filter(|v| !spent(v) && v.status != Status::Verifying)
            .map(|v| (v.shown(self.now()) == Status::Ready, v.version))
            .collect();
        if spare.len() < surplus {
            return no(
                Code::InProgress,
                format!(
                    "{} versions of it are still being verified",
                    VERSIONS_MAX - spare.len()
                ),
                "wait for them: `chancery certificate wait`",
            );
        }
        spare.sort_unstable();
        dropped.extend(spare.into_iter().take(surplus).map(|(_, version)| version));
        dropped.sort_unstable();
        let leaves = |version: u32| dropped.binary_search(&version).is_ok();
        let (dark, complete) = self.goes_dark(certificate, &certificate.regions, &leaves);
        if !dark.is_empty() || !complete {
            return no(
                Code::LastUsable,
                format!(
                    "only its oldest version serves some hosts: {}",
                    dark_message(&dark, complete)
                ),
                "add it under a new name instead",
            );
        }
        Ok(dropped)
    }

    /// `key.destroyed` for each key that loses its last user when these versions of a certificate go.
    fn orphans(
        &self,
        certificate: &Certificate,
        go: impl Fn(&state::Version) -> bool,
    ) -> Vec<Event> {
        if certificate.kind != CertificateKind::Server {
            return Vec::new();
        }
        let mut keys: Vec<(crate::names::Digest, u32)> = Vec::new();
        for version in certificate.versions.iter().filter(|v| go(v)) {
            match keys
                .iter_mut()
                .find(|(spki, _)| *spki == version.facts.spki)
            {
                Some((_, users)) => *users += 1,
                None => keys.push((version.facts.spki, 1)),
            }
        }
        keys.into_iter()
            .filter(|(spki, users)| {
                self.state
                    .row::<state::Key>(Table::Key, &state::key::spki(self.project(), *spki))
                    .is_some_and(|key| key.users <= *users)
            })
            .map(|(spki, _)| KeyDestroyed { spki }.into())
            .collect()
    }

    fn deploy_certificate(&self, c: &DeployCertificate) -> Decision {
        let certificate = self.certificate(&c.name)?;
        check_expect(c.expect, certificate.revision)?;
        let regions: Vec<Slug> = self
            .expand(&c.regions)?
            .into_iter()
            .filter(|r| !certificate.regions.contains(r))
            .collect();
        if regions.is_empty() {
            return no(
                Code::Conflict,
                "it is deployed to all of these regions already",
                "",
            );
        }
        self.room(0, certificate.kind, &regions)?;
        self.one(CertificateDeployed {
            id: certificate.id,
            regions,
        })
    }

    fn withdraw_certificate(&self, c: &WithdrawCertificate) -> Decision {
        let certificate = self.certificate(&c.name)?;
        check_expect(c.expect, certificate.revision)?;
        let regions: Vec<Slug> = self
            .expand(&c.regions)?
            .into_iter()
            .filter(|r| certificate.regions.contains(r))
            .collect();
        if regions.is_empty() {
            return no(
                Code::Conflict,
                "it is deployed to none of these regions",
                "`chancery certificate show` tells where it is",
            );
        }
        settled(&certificate)?;
        self.guard(&certificate, &regions, c.force)?;
        self.one(CertificateWithdrawn {
            id: certificate.id,
            regions,
        })
    }

    fn delete_certificate(&self, c: &DeleteCertificate) -> Decision {
        let certificate = self.certificate(&c.name)?;
        check_expect(c.expect, certificate.revision)?;
        confirmed(&c.confirm, &certificate.name)?;
        settled(&certificate)?;
        let dark = self.guard(&certificate, &certificate.regions, c.force)?;
        let mut events: Vec<Event> = vec![
            CertificateDeleted {
                id: certificate.id,
                name: certificate.name.clone(),
                dark,
            }
            .into(),
        ];
        events.extend(self.orphans(&certificate, |_| true));
        Ok(self.here(events))
    }

    /// Hosts that lose their last usable version when these versions of a certificate leave these regions, at most
    /// [`DARK_NAMED`], and whether all hosts were looked at.
    fn goes_dark(
        &self,
        certificate: &Certificate,
        regions: &[Slug],
        leaves: &dyn Fn(u32) -> bool,
    ) -> (Vec<Host>, bool) {
        let active = self
            .state
            .project(self.project().as_str())
            .is_some_and(|p| p.status == ProjectStatus::Active);
        // A suspended project serves nothing that could go dark.
        if !active || certificate.kind != CertificateKind::Server {
            return (Vec::new(), true);
        }
        let mut search = Search {
            decider: self,
            certificate,
            regions,
            leaves,
            dark: Vec::new(),
            reader: Reader::new(self.state, self.project(), DARK_SCAN),
        };
        let complete = search.run().is_ok();
        (search.dark, complete)
    }

    /// Refuses to take a certificate out of regions where live hosts have no other; with `force`, names the hosts that go dark.
    fn guard(
        &self,
        certificate: &Certificate,
        regions: &[Slug],
        force: bool,
    ) -> Result<Vec<Host>, Rejection> {
        let (dark, complete) = self.goes_dark(certificate, regions, &|_| true);
        if force || (dark.is_empty() && complete) {
            return Ok(dark);
        }
        no(
            Code::LastUsable,
            dark_message(&dark, complete),
            "add another certificate for them first, or use --force",
        )
    }

    fn version(&self, id: CertificateId, version: u32) -> Result<(Certificate, Status), Rejection> {
        let certificate = self.state.certificate(id).filter(|c| !c.deleted);
        match certificate
            .as_ref()
            .and_then(|c| c.version(version))
            .map(|v| v.status)
        {
            Some(status) => Ok((
                certificate.ok_or_else(|| not_found("certificate", "chancery certificate list"))?,
                status,
            )),
            None => Err(not_found("version", "chancery certificate show")),
        }
    }

    fn verify_certificate(&self, c: &VerifyCertificate) -> Decision {
        let (certificate, status) = self.version(c.id, c.version)?;
        if status != Status::Verifying {
            return no(Code::Conflict, "it is not being verified", "");
        }
        let event: Event = match &c.verdict {
            Ok(trust) => CertificateVerified {
                id: c.id,
                version: c.version,
                trust: *trust,
            }
            .into(),
            Err(reasons) => CertificateFailed {
                id: c.id,
                version: c.version,
                reasons: reasons.iter().take(REASONS_MAX).cloned().collect(),
            }
            .into(),
        };
        Ok(vec![(certificate.project, event)])
    }

    fn expire_certificate(&self, c: &ExpireCertificate) -> Decision {
        let (certificate, status) = self.version(c.id, c.version)?;
        // The due row goes when the end is noted, whatever the status was; without it every tick could note it anew.
        let ended = certificate.version(c.version).is_some_and(|v| {
            let due = state::key::expiry(v.facts.not_after, c.id, c.version);
            self.now() >= v.facts.not_after && self.state.get(Table::Expiry, &due).is_some()
        });
        if !ended || status == Status::Expired {
            return no(
                Code::Conflict,
                "its end has not come, or was noted already",
                "",
            );
        }
        Ok(vec![(
            certificate.project,
            CertificateExpired {
                id: c.id,
                version: c.version,
            }
            .into(),
        )])
    }

    fn revoke_certificate(&self, c: &RevokeCertificate) -> Decision {
        let (certificate, status) = self.version(c.id, c.version)?;
        if status == Status::Revoked {
            return no(Code::Conflict, "it is revoked already", "");
        }
        Ok(vec![(
            certificate.project,
            CertificateRevoked {
                id: c.id,
                version: c.version,
                reasons: c.reasons.iter().take(REASONS_MAX).cloned().collect(),
            }
            .into(),
        )])
    }
}

fn dark_message(dark: &[Host], complete: bool) -> String {
    if dark.is_empty() {
        return "it serves so many hosts that not all could be looked at: some may lose HTTPS"
            .into();
    }
    let named: Vec<&str> = dark.iter().map(Host::as_str).collect();
    let more = if complete { "" } else { " and perhaps more" };
    format!("these hosts would lose HTTPS: {}{more}", named.join(", "))
}

/// The search for hosts that go dark. It reads a bounded number of rows, however many hosts there are.
struct Search<'a, R> {
    decider: &'a Decider<'a, R>,
    certificate: &'a Certificate,
    /// Where versions of it leave.
    regions: &'a [Slug],
    /// Which versions leave.
    leaves: &'a dyn Fn(u32) -> bool,
    /// What was found.
    dark: Vec<Host>,
    /// What may still be read.
    reader: Reader<'a, R>,
}

impl<R: Read> Search<'_, R> {
    fn run(&mut self) -> Result<(), Enough> {
        // Only what is usable now can be the last usable one.
        let names: BTreeSet<Host> = self
            .certificate
            .versions
            .iter()
            .filter(|v| (self.leaves)(v.version) && v.usable(self.decider.now()))
            .flat_map(|v| &v.facts.names)
            .filter_map(|name| Host::parse(name).ok())
            .collect();
        let control = self.decider.state.control();
        for name in names {
            self.host(&name)?;
            if !name.is_wildcard() {
                continue;
            }
            if let Some(control) = &control
                && name.is_within(&control.platform_domain)
            {
                self.provider_domains(&name, &control.platform_domain)?;
                continue;
            }
            let covering = self.covering(name.as_str())?;
            // What only demanding resources lose is found host by host, so the stricter count decides whether to look.
            let kept = self.kept(&covering, name.as_str(), true);
            if self.regions.iter().any(|region| !kept.contains(region)) {
                self.below(&name)?;
            }
        }
        Ok(())
    }

    fn read(&mut self, rows: usize) -> Result<(), Enough> {
        self.reader.spend(rows)
    }

    fn found(&mut self, host: &Host) -> Result<(), Enough> {
        if !self.dark.contains(host) {
            self.dark.push(host.clone());
        }
        if self.dark.len() < DARK_NAMED {
            Ok(())
        } else {
            Err(Enough)
        }
    }

    fn covering(&mut self, name: &str) -> Result<Rc<Vec<Certificate>>, Enough> {
        self.reader.covering(name)
    }

    /// The regions in which something usable for this name stays.
    /// With `public`, only what is publicly trusted counts.
    fn kept(&self, covering: &[Certificate], name: &str, public: bool) -> BTreeSet<Slug> {
        let now = self.decider.now();
        let counts =
            |v: &state::Version| v.usable(now) && (!public || v.trust == Some(Trust::Public));
        covering
            .iter()
            .filter(|c| {
                c.covering(name).any(|v| {
                    counts(v) && (c.id != self.certificate.id || !(self.leaves)(v.version))
                })
            })
            .flat_map(|c| {
                c.regions.iter().filter(|region| {
                    c.id != self.certificate.id
                        || !self.regions.contains(region)
                        || c.covering(name)
                            .any(|v| counts(v) && !(self.leaves)(v.version))
                })
            })
            .cloned()
            .collect()
    }

    /// The regions among those asked about in which a host is live: attached, HTTPS on, and this project's; with whether its
    /// resource there demands public trust.
    fn live(&mut self, host: &Host) -> Result<Vec<(Slug, bool)>, Enough> {
        let Some(first) = self.regions.first() else {
            return Ok(Vec::new());
        };
        self.read(1)?;
        let mine = |served: &state::Served| served.project == *self.decider.project();
        let state = self.decider.state;
        let claim = state::served(state, host, first.as_str())
            .filter(mine)
            .and_then(|served| served.claim);
        if let Some(claim) = claim {
            return Ok(self
                .regions
                .iter()
                .filter(|region| claim.mode_in(region.as_str()) != Mode::Off)
                .filter_map(|region| {
                    let resource = *claim.attached.get(region.as_str())?;
                    Some((region.clone(), state::demands_public(state, Some(resource))))
                })
                .collect());
        }
        if !self.decider.project().is_platform() {
            return Ok(Vec::new());
        }
        // A provider domain carries its region in itself.
        let live: Vec<(Slug, bool)> = self
            .regions
            .iter()
            .filter_map(|region| {
                let served = state::served(state, host, region.as_str()).filter(mine)?;
                served.resource?;
                Some((
                    region.clone(),
                    state::demands_public(state, served.resource),
                ))
            })
            .collect();
        self.read(self.regions.len())?;
        Ok(live)
    }

    fn host(&mut self, host: &Host) -> Result<(), Enough> {
        let live = self.live(host)?;
        if live.is_empty() {
            return Ok(());
        }
        let now = self.decider.now();
        for public in [false, true] {
            let live: Vec<&Slug> = live
                .iter()
                .filter(|(_, demands)| *demands == public)
                .map(|(region, _)| region)
                .collect();
            if live.is_empty() {
                continue;
            }
            let mut kept: BTreeSet<Slug> = BTreeSet::new();
            let mut had = false;
            for name in state::names_for(host) {
                let covering = self.covering(&name)?;
                had |= self.certificate.covering(&name).any(|v| {
                    v.usable(now)
                        && (!public || v.trust == Some(Trust::Public))
                        && (self.leaves)(v.version)
                });
                kept.extend(self.kept(&covering, &name, public));
            }
            if had
                && live
                    .iter()
                    .any(|r| self.certificate.regions.contains(r) && !kept.contains(*r))
            {
                self.found(host)?;
            }
        }
        Ok(())
    }

    /// The hosts below a wildcard that have claims of their own.
    fn below(&mut self, wildcard: &Host) -> Result<(), Enough> {
        let prefix = state::key::pair(self.decider.project(), wildcard.parent());
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = self
                .decider
                .state
                .scan(Table::ClaimBelow, &prefix, after.as_deref(), PAGE);
            for (row, _) in &page {
                if let Ok(host) = Host::parse(Parts::of(&row[prefix.len()..]).text()) {
                    self.host(&host)?;
                }
            }
            match page.last() {
                Some((row, _)) if page.len() == PAGE => after = Some(row.clone()),
                _ => return Ok(()),
            }
        }
    }

    /// The provider domains of a region, which live below the platform's wildcard without claims.
    fn provider_domains(&mut self, wildcard: &Host, platform: &str) -> Result<(), Enough> {
        if !self.decider.project().is_platform() {
            return Ok(());
        }
        let Some(region) = self
            .regions
            .iter()
            .find(|region| wildcard.parent().strip_suffix(platform) == Some(&format!("{region}.")))
        else {
            return Ok(());
        };
        let covering = self.covering(wildcard.as_str())?;
        if self
            .kept(&covering, wildcard.as_str(), false)
            .contains(region)
        {
            return Ok(());
        }
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = self
                .decider
                .state
                .scan(Table::Resource, &[], after.as_deref(), PAGE);
            self.read(page.len())?;
            let there = page
                .iter()
                .any(|(_, row)| decode::<Resource>(row).regions.contains(region));
            if there {
                return self.found(wildcard);
            }
            match page.last() {
                Some((row, _)) if page.len() == PAGE => after = Some(row.clone()),
                _ => return Ok(()),
            }
        }
    }
}

/// Whether an IPv4 address is one that an edge may connect to without an operator's word.
pub fn public_v4(address: std::net::Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_multicast()
        || address.is_documentation()
        || a == 0
        || a >= 240
        // Shared address space (RFC 6598), protocol assignments (RFC 6890) and benchmarking (RFC 2544).
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        // Relays of 6to4 (RFC 7526).
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (b == 18 || b == 19)))
}

/// Whether an IPv6 address is one that an edge may connect to without an operator's word.
pub fn public_v6(address: std::net::Ipv6Addr) -> bool {
    if let Some(v4) = address.to_ipv4_mapped() {
        return public_v4(v4);
    }
    let [s0, s1, ..] = address.segments();
    // Only global unicast (RFC 4291), less the ranges in it that embed other addresses: NAT64 and 6to4 may lead anywhere.
    (s0 & 0xe000) == 0x2000
        && !(s0 == 0x2001 && s1 == 0xdb8)
        && !(s0 == 0x2001 && s1 < 0x200)
        && s0 != 0x2002
        // Documentation (RFC 9637).
        && !(s0 == 0x3fff && s1 < 0x1000)
}

fn clip(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Rights: which subjects of a project somebody may use.
pub mod rights {
    /// What a member may do by default: everything of its own project.
    pub fn member() -> Vec<String> {
        ["cmd.>", "queue.>", "query.>", "evt.>"]
            .map(str::to_owned)
            .to_vec()
    }

    /// Whether this is a pattern: `cmd`, `queue`, `query` or `evt`, then tokens, `*` or a final `>`.
    pub fn well_formed(right: &str) -> bool {
        let mut tokens = right.split('.');
        if right.len() > 128 || !matches!(tokens.next(), Some("cmd" | "queue" | "query" | "evt")) {
            return false;
        }
        let rest: Vec<&str> = tokens.collect();
        let literal = |t: &str| {
            !t.is_empty()
                && t.bytes()
                    .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        };
        !rest.is_empty()
            && rest.len() <= 3
            && rest
                .iter()
                .enumerate()
                .all(|(i, t)| literal(t) || *t == "*" || (*t == ">" && i + 1 == rest.len()))
    }

    /// The right to take private keys out. No pattern covers it: it is held only by who was given exactly this.
    pub const EXPORT: &str = "cmd.certificate.export";

    /// What the operator of a new log may do: everything, the export of keys too.
    pub fn operator() -> Vec<String> {
        let mut rights = member();
        rights.push(EXPORT.to_owned());
        rights
    }

    /// Whether these are all of a member's rights, perhaps with others besides.
    pub fn include_all(rights: &[String]) -> bool {
        member().iter().all(|right| rights.contains(right))
    }

    /// Whether a set of rights allows a subject such as `cmd.certificate.add`.
    pub fn allow(rights: &[String], subject: &str) -> bool {
        match subject {
            EXPORT => rights.iter().any(|right| right == EXPORT),
            // It answers with what the asker alone can open, so there is nothing that could wait in a queue.
            "queue.certificate.export" => false,
            subject => rights.iter().any(|right| matches(right, subject)),
        }
    }

    fn matches(pattern: &str, subject: &str) -> bool {
        let mut subject = subject.split('.');
        for token in pattern.split('.') {
            if token == ">" {
                return subject.next().is_some();
            }
            match subject.next() {
                Some(part) if token == "*" || token == part => {}
                _ => return false,
            }
        }
        subject.next().is_none()
    }
}

/// The ranked candidates of a host in a region, as the state has them now.
pub fn ranking(
    state: &impl Read,
    host: &Host,
    region: &str,
) -> Option<(state::Served, Vec<selection::Candidate>)> {
    let served = state::served(state, host, region)?;
    let mut ranked = if served.resource.is_some_and(|r| state::is_served(state, r)) {
        state::candidates(state, &served.project, host, region)
    } else {
        Vec::new()
    };
    if state::demands_public(state, served.resource) {
        ranked.retain(|c| c.public);
    }
    selection::rank(selection::Policy::default(), served.mode, &mut ranked);
    Some((served, ranked))
}
