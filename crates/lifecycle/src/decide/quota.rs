//! How many certificates a project may have, and what else an operator sets for it.

use super::{Decider, Decision, no};
use crate::command::{SetExport, SetQuota};
use crate::event::{CertificateKind, ProjectExportSet, ProjectQuotaSet};
use crate::evolve::counted_as;
use crate::names::Slug;
use crate::rejection::{Code, Rejection};
use crate::state::{Quota, State, count};
use crate::store::Read;

/// Most signing requests of a project whose certificates have not come.
pub const CSRS_MAX: u32 = 100;

impl<R: Read> Decider<'_, R> {
    pub(super) fn set_quota(&self, c: &SetQuota) -> Decision {
        self.living_project(&c.project)?;
        let now = self.quota(&c.project);
        if c.certificates.is_none() && c.per_region.is_none() {
            return no(
                Code::Malformed,
                "neither limit is given",
                "give --certificates, --per-region or both",
            );
        }
        let quota = Quota {
            certificates: c.certificates.unwrap_or(now.certificates),
            per_region: c.per_region.unwrap_or(now.per_region),
        };
        if quota.certificates.max(quota.per_region) > Quota::HARD_CAP {
            return no(
                Code::TooLarge,
                format!("no project can have more than {}", Quota::HARD_CAP),
                "spread the certificates over several projects",
            );
        }
        Ok(vec![(
            c.project.clone(),
            ProjectQuotaSet {
                project: c.project.clone(),
                certificates: quota.certificates,
                per_region: quota.per_region,
            }
            .into(),
        )])
    }

    pub(super) fn set_export(&self, c: &SetExport) -> Decision {
        self.living_project(&c.project)?;
        Ok(vec![(
            c.project.clone(),
            ProjectExportSet {
                project: c.project.clone(),
                export: c.export,
            }
            .into(),
        )])
    }

    pub(super) fn quota(&self, project: &Slug) -> Quota {
        self.state
            .project(project.as_str())
            .map(|p| p.quota)
            .unwrap_or_default()
    }

    /// Whether the project may have `more` certificates, one of this kind more in each of these regions.
    pub(super) fn room(
        &self,
        more: u32,
        kind: CertificateKind,
        regions: &[Slug],
    ) -> Result<(), Rejection> {
        let project = self.project();
        let quota = self.quota(project);
        let have = self.state.count(project, count::CERTIFICATES, "");
        if more > 0 && have.saturating_add(more) > quota.certificates {
            return no(
                Code::QuotaExceeded,
                format!(
                    "the project has {have} of at most {} certificates",
                    quota.certificates
                ),
                format!(
                    "delete one that is no longer needed (`chancery certificate list --status expired`), or ask the operator \
                     for more: chancery project quota {project} --certificates {}",
                    have.saturating_add(more)
                ),
            );
        }
        let what = counted_as(kind);
        for region in regions {
            let have = self.state.count(project, what, region.as_str());
            if have >= quota.per_region {
                return no(
                    Code::QuotaExceeded,
                    format!(
                        "the project has {have} of at most {} {what} certificates in region {region}",
                        quota.per_region
                    ),
                    format!(
                        "withdraw one from this region that is not needed there (`chancery certificate withdraw`), delete one, or \
                         ask the operator for more: chancery project quota {project} --per-region {}",
                        have.saturating_add(1)
                    ),
                );
            }
        }
        Ok(())
    }

    /// Whether the project may have another signing request.
    pub(super) fn room_for_csr(&self) -> Result<(), Rejection> {
        let have = self.state.count(self.project(), count::CSRS, "");
        if have >= CSRS_MAX {
            return no(
                Code::QuotaExceeded,
                format!("the project has {have} of at most {CSRS_MAX} open signing requests"),
                "add the certificates that they were made for, or discard those that are no longer needed: chancery certificate csr NAME --discard",
            );
        }
        Ok(())
    }
}
