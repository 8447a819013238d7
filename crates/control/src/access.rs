//! Access: who may connect. Accounts of projects, users' JWTs, enrolment and eviction of edges.
//!
//! The log says who has access; this brings NATS in line with it. The keys that sign are in the bus's identity, which the
//! vault seals; users and edges make their own key pairs and send only the public half.

use std::collections::BTreeMap;
use std::sync::Arc;

use actix::Addr;
use uuid::Uuid;

use bus::claims::Claims;
use bus::identity::{Identity, ProjectAccount, Right, Rights};
use lifecycle::command::{CreateAccess, EvictEdge, RotateRegionKey};
use lifecycle::decide::rights::EXPORT;
use lifecycle::names::{Digest, Slug};
use lifecycle::rejection::Code;
use lifecycle::state::{Access as Record, ProjectStatus, State, key};
use lifecycle::store::{Parts, Read, Table, decode};
use wire::answer::{Answer, Problem};
use wire::feed::EnrolmentToken;
use wire::request::EdgeEnrol;

use crate::registrar::{Ask, Registrar};
use crate::tables::Tables;
use crate::vault::{self, Vault};

/// How long an enrolment token can be used, seconds.
pub const TOKEN_LIFE: u64 = 3_600;
/// How long an edge's JWT lasts, seconds. It is renewed by enrolling anew.
pub const EDGE_LIFE: u64 = 10 * 366 * 86_400;
/// Voids every JWT that was or ever will be issued for a key: NATS compares with the second of issue (2100-01-01).
const FOR_EVER: u64 = 4_102_444_800;
/// How long a user's JWT lasts when no end was given, seconds.
pub const USER_LIFE: u64 = 10 * 366 * 86_400;

/// Access, shared.
pub struct Access {
    /// What signs JWTs.
    pub identity: Arc<Identity>,
    /// The way to the server's accounts.
    pub claims: Claims,
    /// The log's record of who has access.
    pub ledger: ledger::Ledger,
    /// Where edges connect to.
    pub nats: String,
    /// The feed signer's public key.
    pub signer: [u8; 32],
}

/// Why access could not be brought in line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server's accounts.
    #[error(transparent)]
    Claims(#[from] bus::claims::Error),
    /// The vault.
    #[error(transparent)]
    Vault(#[from] vault::Error),
    /// The registrar said no.
    #[error("the registrar: {0}")]
    Registrar(String),
}

fn unix_now() -> u64 {
    u64::try_from(time::OffsetDateTime::now_utc().unix_timestamp()).unwrap_or(0)
}

/// A user's rights as credentials carry them.
///
/// # Errors
/// A right that credentials cannot carry.
pub fn rights_of(rights: &[String]) -> Result<Rights, Problem> {
    let is = |set: &[&str]| {
        rights.len() == set.len() && set.iter().all(|s| rights.iter().any(|r| r == s))
    };
    if rights.is_empty() || is(&["cmd.>", "queue.>", "query.>", "evt.>"]) {
        return Ok(Rights::All);
    }
    if is(&["cmd.>", "queue.>", "query.>", "evt.>", EXPORT]) {
        return Ok(Rights::AllAndExport);
    }
    if is(&["query.>", "evt.>"]) || is(&["query.*", "evt.*.*"]) {
        return Ok(Rights::Read);
    }
    let one = |right: &String| {
        // Questions alone bring no events, which is less than the role of readers has.
        let right = if right == "query.>" { "query.*" } else { right };
        Right::parse(right).map_err(|_| {
            Problem::new(
                Code::Malformed,
                "a right is cmd.<noun>.<verb>, query.<view> or evt.<noun>.<fact>, with * for any one word",
                "for example --right 'cmd.certificate.*' --right 'query.*'",
            )
        })
    };
    rights
        .iter()
        .map(one)
        .collect::<Result<_, _>>()
        .map(Rights::Only)
}

impl Access {
    /// A project's account as the log has it.
    fn account(&self, project: &Slug) -> ProjectAccount {
        let tables = Tables::of(&self.ledger);
        let status = tables.project(project.as_str()).map(|p| p.status);
        let prefix = key::text(project);
        let mut revoked = BTreeMap::new();
        for (_, row) in tables.scan(Table::Access, &prefix, None, usize::MAX) {
            let record: Record = decode(&row);
            if record.revoked {
                // Names of users are never used again, so all that was ever issued for this key is void.
                revoked.insert(record.nkey, FOR_EVER);
            }
        }
        ProjectAccount {
            project: project.as_str().to_owned(),
            suspended: status != Some(ProjectStatus::Active),
            revoked,
        }
    }

    /// Brings a project's account in line with the log, now.
    ///
    /// # Errors
    /// The server did not take it; it is tried again at the next start.
    pub async fn push_account(&self, project: &Slug) -> Result<(), Error> {
        let deleted = Tables::of(&self.ledger)
            .project(project.as_str())
            .is_none_or(|p| p.status == ProjectStatus::Deleted);
        if deleted {
            self.claims.delete(&[project.as_str().to_owned()]).await?;
        } else {
            let account = || self.account(project);
            self.claims.push_current(project.as_str(), account).await?;
        }
        Ok(())
    }

    /// The keys of all edges that were evicted. An edge's name may be given again, its old key never counts again.
    fn evicted_keys(&self) -> BTreeMap<String, u64> {
        let tables = Tables::of(&self.ledger);
        let now = unix_now();
        tables
            .scan(Table::EdgeToken, &[], None, usize::MAX)
            .iter()
            .map(|(_, row)| decode::<(Slug, Slug, String)>(row))
            .filter(|(region, edge, nkey)| {
                tables
                    .edge(region.as_str(), edge.as_str())
                    .is_none_or(|edge| edge.evicted || edge.nkey != *nkey)
            })
            .map(|(_, _, nkey)| (nkey, now))
            .collect()
    }

    /// Has the server close the connections of evicted edges, and take them no more.
    ///
    /// # Errors
    /// The server did not take it; it is tried again at the next start.
    pub async fn push_edges(&self) -> Result<(), Error> {
        Ok(self.claims.push_edges(|| self.evicted_keys()).await?)
    }

    /// Brings all accounts in line, as after a start: a crash may have come between the log and the server.
    ///
    /// # Errors
    /// The server did not take one.
    pub async fn push_all(&self) -> Result<usize, Error> {
        self.push_edges().await?;
        let mut after: Option<Vec<u8>> = None;
        let mut pushed = 0;
        loop {
            let page = Tables::of(&self.ledger).scan(Table::Project, &[], after.as_deref(), 500);
            let Some((last, _)) = page.last() else {
                return Ok(pushed);
            };
            after = Some(last.clone());
            for (row, _) in &page {
                if let Ok(project) = Slug::name(Parts::of(row).text()) {
                    self.push_account(&project).await?;
                    pushed += 1;
                }
            }
        }
    }

    /// The JWT for a user who made the key pair. A command that is sent again gets one again, but not after the revocation:
    /// a JWT that is younger than the revocation would be taken.
    ///
    /// # Errors
    /// The refusal.
    pub fn user_jwt(&self, create: &CreateAccess) -> Result<String, Problem> {
        let record = Tables::of(&self.ledger).access(create.project.as_str(), create.name.as_str());
        if record.is_none_or(|record| record.revoked || record.nkey != create.nkey) {
            return Err(Problem::new(
                Code::Unauthorized,
                "this access was revoked",
                "create another one, under another name",
            ));
        }
        let rights = rights_of(&create.rights)?;
        let now = unix_now();
        let end = create
            .expires
            .and_then(|e| u64::try_from(e).ok())
            .unwrap_or(now + USER_LIFE);
        self.identity
            .project_user_jwt(
                create.project.as_str(),
                create.name.as_str(),
                &rights,
                &create.nkey,
                now,
                end,
            )
            .map_err(|error| Problem::new(Code::Malformed, error.to_string(), ""))
    }

    /// A one-time token with which an edge can enrol.
    ///
    /// # Errors
    /// The refusal.
    pub fn token(&self, enrol: &EdgeEnrol, _id: Uuid) -> Result<String, Box<Problem>> {
        let tables = Tables::of(&self.ledger);
        if tables.region(enrol.region.as_str()).is_none() {
            return Err(Box::new(Problem::new(
                Code::NotFound,
                "there is no such region",
                "`chancery region list` shows those that exist",
            )));
        }
        if tables
            .edge(enrol.region.as_str(), enrol.edge.as_str())
            .is_some_and(|edge| !edge.evicted)
        {
            return Err(Box::new(Problem::new(
                Code::DuplicateName,
                "the region has an edge of this name",
                "evict it first, or choose another name",
            )));
        }
        let now = unix_now();
        let credentials = self
            .identity
            .edge_user(
                enrol.region.as_str(),
                enrol.edge.as_str(),
                true,
                now,
                now + TOKEN_LIFE,
            )
            .map_err(|error| Box::new(Problem::new(Code::Malformed, error.to_string(), "")))?;
        let token = EnrolmentToken {
            nats: self.nats.clone(),
            region: enrol.region.clone(),
            edge: enrol.edge.clone(),
            creds: credentials.creds().to_string(),
            signer: Digest(self.signer),
        };
        let json = serde_json::to_vec(&token).expect("a token is plain data");
        Ok(data_encoding::BASE64URL_NOPAD.encode(&json))
    }

    /// After an eviction: the evicted edge is disconnected, and the region gets the next version of its key, which that edge
    /// does not get.
    ///
    /// # Errors
    /// [`Error`]; what is left is owed, and done at the next start.
    pub async fn evicted(
        &self,
        vault: &Addr<Vault>,
        registrar: &Addr<Registrar>,
        evict: &EvictEdge,
    ) -> Result<(), Error> {
        self.push_edges().await?;
        self.rotate_if_owed(vault, registrar, &evict.region).await
    }

    /// Gives every region the key that it is owed since an eviction: a crash may have come between the two.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn rotate_owed(
        &self,
        vault: &Addr<Vault>,
        registrar: &Addr<Registrar>,
    ) -> Result<(), Error> {
        let regions = Tables::of(&self.ledger).regions();
        for region in regions {
            self.rotate_if_owed(vault, registrar, &region).await?;
        }
        Ok(())
    }

    async fn rotate_if_owed(
        &self,
        vault: &Addr<Vault>,
        registrar: &Addr<Registrar>,
        region: &Slug,
    ) -> Result<(), Error> {
        let known = Tables::of(&self.ledger).region(region.as_str());
        let Some(known) = known.filter(|known| known.evicted > known.rotated) else {
            return Ok(());
        };
        let name = region.as_str().to_owned();
        let (version, public) = vault::with(vault, move |core| {
            let newest = core.keyring.region_key_public(&name)?;
            // A key that was made before a crash, and that no event names yet, is taken.
            if newest.is_none_or(|(version, _)| version <= known.key_version) {
                let blob = core.keyring.new_region_key(&name)?;
                core.publish(vec![blob])?;
            }
            Ok::<_, vault::Error>(core.keyring.region_key_public(&name)?.unwrap_or_default())
        })
        .await??;
        let command = RotateRegionKey {
            region: region.clone(),
            key: Digest(public),
            key_version: version,
        };
        let about = format!("region.key-rotate {region} {version}");
        match registrar
            .send(Ask::internal("vault", &about, command.into()))
            .await
        {
            Ok(Answer::Accepted(_)) => Ok(()),
            Ok(Answer::Problem(problem)) => Err(Error::Registrar(problem.detail)),
            Err(error) => Err(Error::Registrar(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_carry_the_rights_that_were_given_and_no_more() {
        let of = |rights: &[&str]| {
            let rights: Vec<String> = rights.iter().map(|&right| right.to_owned()).collect();
            rights_of(&rights).ok()
        };
        let only = |rights: &[&str]| {
            let rights = rights.iter().map(|right| Right::parse(right));
            Some(Rights::Only(
                rights.collect::<Result<_, _>>().expect("rights"),
            ))
        };
        assert_eq!(of(&[]), Some(Rights::All));
        assert_eq!(
            of(&["evt.>", "query.>", "queue.>", "cmd.>"]),
            Some(Rights::All)
        );
        assert_eq!(
            of(&[
                "cmd.>",
                "queue.>",
                "query.>",
                "evt.>",
                "cmd.certificate.export"
            ]),
            Some(Rights::AllAndExport)
        );
        assert_eq!(of(&["query.>", "evt.>"]), Some(Rights::Read));
        assert_eq!(of(&["query.>"]), only(&["query.*"]));
        assert_eq!(
            of(&["cmd.domain.*", "query.host"]),
            only(&["cmd.domain.*", "query.host"])
        );
        for wrong in [
            &["cmd.>"][..],
            &[">"],
            &["cmd.domain.add", "log.>"],
            &["queue.domain.add"],
        ] {
            assert_eq!(of(wrong), None, "{wrong:?}");
        }
    }
}
