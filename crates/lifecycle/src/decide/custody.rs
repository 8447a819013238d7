//! Keys that are born inside, that leave, and that go to another project.

use super::{Decider, Decision, check_expect, confirmed, no, not_found, settled};
use crate::command::Context;
use crate::command::{AddCertificate, CreateCsr, DiscardCsr, ExportCertificate, MoveCertificate};
use crate::event::{
    CertificateDeleted, CertificateExported, CertificateKind, CsrCreated, CsrDiscarded, Event,
    KeyDestroyed, KeySealed,
};
use crate::names::Host;
use crate::rejection::{Code, Rejection};
use crate::state::{self, Certificate, ProjectStatus, State};
use crate::store::{Read, Table};

/// Most names of a signing request: what CAs of the public web sign.
const CSR_NAMES_MAX: usize = 100;

impl<R: Read> Decider<'_, R> {
    pub(super) fn create_csr(&self, c: &CreateCsr) -> Decision {
        let project = self.project();
        if self.state.csr(project.as_str(), c.name.as_str()).is_some() {
            return no(
                Code::DuplicateName,
                "there is a signing request of this name",
                "add the certificate that the CA made of it, or discard it: chancery certificate csr NAME --discard",
            );
        }
        self.room_for_csr()?;
        if c.names.is_empty() || c.names.len() > CSR_NAMES_MAX {
            return no(
                Code::Malformed,
                format!("a signing request has 1 to {CSR_NAMES_MAX} names"),
                "name the hosts of the certificate with --host",
            );
        }
        if c.names.iter().any(|name| Host::parse(name).is_err()) {
            return no(
                Code::Malformed,
                "one of the names is not a host",
                "give names such as www.example.com",
            );
        }
        let known = self
            .state
            .get(Table::Key, &state::key::spki(project, c.spki))
            .is_some();
        if known {
            return no(
                Code::Conflict,
                "this key is known already",
                "a signing request is made with a key of its own",
            );
        }
        Ok(self.here([
            KeySealed {
                spki: c.spki,
                key: c.key,
            }
            .into(),
            CsrCreated {
                name: c.name.clone(),
                spki: c.spki,
                key: c.key,
                names: c.names.clone(),
                request: c.request,
            }
            .into(),
        ]))
    }

    pub(super) fn discard_csr(&self, c: &DiscardCsr) -> Decision {
        let project = self.project();
        let csr = self
            .state
            .csr(project.as_str(), c.name.as_str())
            .ok_or_else(|| not_found("signing request", "chancery certificate list --csrs"))?;
        let mut events: Vec<Event> = vec![
            CsrDiscarded {
                name: csr.name,
                spki: csr.spki,
            }
            .into(),
        ];
        let key: Option<state::Key> = self
            .state
            .row(Table::Key, &state::key::spki(project, csr.spki));
        if key.is_some_and(|key| key.users <= 1) {
            events.push(KeyDestroyed { spki: csr.spki }.into());
        }
        Ok(self.here(events))
    }

    /// Whether keys may leave the project.
    fn may_export(&self) -> Result<(), Rejection> {
        let allowed = self
            .state
            .project(self.project().as_str())
            .is_some_and(|project| project.export);
        if allowed {
            return Ok(());
        }
        no(
            Code::Unauthorized,
            "export of private keys is off for this project",
            "an operator can turn it on: chancery project set PROJECT --export on",
        )
    }

    fn with_key(&self, certificate: &Certificate) -> Result<(), Rejection> {
        match certificate.kind {
            CertificateKind::Server => Ok(()),
            CertificateKind::Ca => no(
                Code::KeyMissing,
                "this is a CA certificate, which is kept without a key",
                "`chancery certificate show --json` gives its chain",
            ),
        }
    }

    pub(super) fn export_certificate(&self, c: &ExportCertificate) -> Decision {
        let certificate = self.certificate(&c.name)?;
        self.may_export()?;
        self.with_key(&certificate)?;
        let wanted = match c.version {
            Some(version) => certificate.version(version),
            // The one that people mean: what is or could be served; else the latest there is.
            None => certificate
                .versions
                .iter()
                .rfind(|v| v.usable(self.now()))
                .or(certificate.latest()),
        };
        let version = wanted.ok_or_else(|| not_found("version", "chancery certificate show"))?;
        self.one(CertificateExported {
            id: certificate.id,
            version: version.version,
            spki: version.facts.spki,
            recipient: Some(c.recipient),
            to: None,
        })
    }

    pub(super) fn move_certificate(&self, c: &MoveCertificate) -> Decision {
        self.living_project(&c.project)?;
        if c.to == c.project {
            return no(
                Code::Conflict,
                "the certificate is in this project already",
                "name another project with --to",
            );
        }
        if self.living_project(&c.to)? == ProjectStatus::Suspended {
            return no(
                Code::Conflict,
                "the project that it would go to is suspended",
                "resume it first: chancery project resume",
            );
        }
        let of = |project: &crate::names::Slug| Context {
            project: project.clone(),
            ..self.context.clone()
        };
        let (from_context, to_context) = (of(&c.project), of(&c.to));
        let from = Decider {
            state: self.state,
            context: &from_context,
        };
        let to = Decider {
            state: self.state,
            context: &to_context,
        };
        let certificate = from.certificate(&c.name)?;
        check_expect(c.expect, certificate.revision)?;
        self.may_give_keys()?;
        from.may_export()?;
        confirmed(&c.confirm, &certificate.name)?;
        settled(&certificate)?;
        let Some(version) = certificate.versions.iter().rfind(|v| v.usable(self.now())) else {
            return no(
                Code::Conflict,
                "no version of it may be served",
                "`chancery certificate show` tells why; add a new one in the other project instead",
            );
        };
        let dark = from.guard(&certificate, &certificate.regions, c.force)?;
        let added = to.add_certificate_after(
            &AddCertificate {
                name: c
                    .new_name
                    .clone()
                    .unwrap_or_else(|| certificate.name.clone()),
                kind: certificate.kind,
                regions: c
                    .regions
                    .clone()
                    .unwrap_or_else(|| certificate.regions.clone()),
                standby: certificate.standby,
                facts: version.facts.clone(),
            },
            u64::from(certificate.kind == CertificateKind::Server),
        )?;
        let mut events = Vec::new();
        if certificate.kind == CertificateKind::Server {
            events.extend(
                from.here([CertificateExported {
                    id: certificate.id,
                    version: version.version,
                    spki: version.facts.spki,
                    recipient: None,
                    to: Some(c.to.clone()),
                }
                .into()]),
            );
        }
        events.extend(added);
        events.extend(
            from.here([CertificateDeleted {
                id: certificate.id,
                name: certificate.name.clone(),
                dark,
            }
            .into()]),
        );
        events.extend(from.here(from.orphans(&certificate, |_| true)));
        Ok(events)
    }
}
