//! Claims that their owners prove in the DNS, and hosts that so go from one project to another.
//!
//! A host that another project holds does not move at once: whoever serves it is told and has time to object, for instance by
//! telling its customer. At the end of that time the proof must still stand.

use super::{Decider, Decision, no, not_found};
use crate::command::{ProveByDns, SettleContest};
use crate::event::{
    DomainContestLapsed, DomainContested, DomainMoveScheduled, DomainMoved, DomainProven, Event,
    Proof,
};
use crate::names::{Host, Slug};
use crate::rejection::{Code, Rejection};
use crate::state::{Claim, ClaimStatus, State};
use crate::store::{Parts, Read, Table};

/// Most claimants of one contest. There is one; a bound all the same.
const CLAIMANTS_MAX: usize = 16;
/// Longest time for which a holder is served after another project's proof, in seconds: a year.
const GRACE_MAX: u64 = 365 * 86_400;

/// Whether a proof is fresh by itself: a token belongs to one claim, an alias says nothing of when it was set.
fn stands_against_a_holder(proof: Proof) -> bool {
    proof == Proof::DnsTxt
}

impl<R: Read> Decider<'_, R> {
    /// The pending claim that was proven. A proof that comes late must not count for a later claim of the same host.
    fn claimant(&self, host: &Host, added: u64) -> Result<Claim, Rejection> {
        let claim = self
            .state
            .claim(host.as_str(), self.project().as_str())
            .ok_or_else(|| not_found("domain in this project", "chancery domain list"))?;
        if claim.status != ClaimStatus::Pending || claim.added != added {
            return no(Code::Conflict, "this claim does not wait for a proof", "");
        }
        Ok(claim)
    }

    fn other_holder(&self, host: &Host) -> Option<Slug> {
        self.state
            .holder(host.as_str())
            .filter(|holder| holder != self.project())
    }

    pub(super) fn prove_by_dns(&self, c: &ProveByDns) -> Decision {
        let claim = self.claimant(&c.host, c.added)?;
        let Some(holder) = self.other_holder(&c.host) else {
            return self.one(DomainProven {
                host: c.host.clone(),
                proof: c.proof,
            });
        };
        if !stands_against_a_holder(c.proof) {
            return no(
                Code::DomainClaimed,
                "another project holds this host, and an alias may be left over from long ago",
                "set the TXT record that `chancery domain show` prints",
            );
        }
        if claim.moves_at.is_some() {
            return no(
                Code::InProgress,
                "the host is about to move to this project",
                "",
            );
        }
        self.contest(&holder, &c.host, c.proof, c.grace)
    }

    fn contest(&self, holder: &Slug, host: &Host, proof: Proof, grace: u64) -> Decision {
        let held = self.state.claim(host.as_str(), holder.as_str());
        if held.is_some_and(|claim| claim.contested.is_some()) {
            return no(
                Code::InProgress,
                "another project's proof of this host came first and is being waited for",
                "it is looked at again when that is settled",
            );
        }
        let until = self
            .now()
            .saturating_add(i64::try_from(grace.min(GRACE_MAX)).unwrap_or(0));
        Ok(vec![
            (
                holder.clone(),
                DomainContested {
                    host: host.clone(),
                    until,
                    proof,
                }
                .into(),
            ),
            (
                self.project().clone(),
                DomainMoveScheduled {
                    host: host.clone(),
                    until,
                    proof,
                }
                .into(),
            ),
        ])
    }

    pub(super) fn settle_contest(&self, c: &SettleContest) -> Decision {
        let claim = self.claimant(&c.host, c.added)?;
        let Some(until) = claim.moves_at else {
            return no(Code::Conflict, "nothing is scheduled for this claim", "");
        };
        let holder = self.other_holder(&c.host);
        let proof = c
            .proof
            .filter(|proof| holder.is_none() || stands_against_a_holder(*proof));
        let Some(proof) = proof else {
            return Ok(self.lapse(&c.host, holder));
        };
        if self.now() < until {
            return no(Code::InProgress, "the time has not come", "");
        }
        let mut events = Vec::new();
        if let Some(holder) = holder {
            let told = self
                .state
                .claim(c.host.as_str(), holder.as_str())
                .is_some_and(|held| held.contested.is_some_and(|when| when <= self.now()));
            if !told {
                // An operator gave the host to somebody else meanwhile, who was not told yet: it begins anew by itself, for the
                // proof is looked for as long as the claim is pending.
                return Ok(self.lapse(&c.host, None));
            }
            events.push((
                holder,
                DomainMoved {
                    host: c.host.clone(),
                }
                .into(),
            ));
        }
        events.push((
            self.project().clone(),
            DomainProven {
                host: c.host.clone(),
                proof,
            }
            .into(),
        ));
        Ok(events)
    }

    /// A contest ends without a move, for the claimant and for the holder that was told of it.
    fn lapse(&self, host: &Host, holder: Option<Slug>) -> Vec<super::Decided> {
        let lapsed = || -> Event { DomainContestLapsed { host: host.clone() }.into() };
        let mut events = vec![(self.project().clone(), lapsed())];
        events.extend(holder.map(|holder| (holder, lapsed())));
        events
    }

    /// The claimants that a holder's claim kept waiting, when it goes: nothing is scheduled for them any more, so that whoever
    /// still has its proof in the zone is proven at the next look, which follows at once.
    pub(super) fn freed(&self, held: &Claim) -> Vec<super::Decided> {
        let Some(until) = held.contested else {
            return Vec::new();
        };
        let prefix = crate::state::key::contest_of(until, held.host.as_str());
        self.state
            .scan(Table::Contest, &prefix, None, CLAIMANTS_MAX)
            .iter()
            .filter_map(|(row, _)| Slug::name(Parts::of(&row[prefix.len()..]).text()).ok())
            .map(|claimant| {
                let lapsed = DomainContestLapsed {
                    host: held.host.clone(),
                };
                (claimant, lapsed.into())
            })
            .collect()
    }

    /// The holder that was told of a claim which now goes.
    pub(super) fn relieved(&self, claim: &Claim) -> Option<super::Decided> {
        claim.moves_at?;
        let holder = self.other_holder(&claim.host)?;
        self.state
            .claim(claim.host.as_str(), holder.as_str())
            .filter(|held| held.contested.is_some())?;
        Some((
            holder,
            DomainContestLapsed {
                host: claim.host.clone(),
            }
            .into(),
        ))
    }
}
