//! What people are told about a claim's proof: which records to set, what was found when, and what happens next.

use serde_json::{Map, Value, json};

use lifecycle::event::CertificateKind;
use lifecycle::names::CertificateId;
use lifecycle::rejection::{Code, Reason};
use lifecycle::state::{Claim, ClaimStatus, State, key, names_for};
use lifecycle::store::{Parts, Read, Table};
use wire::envelope::rfc3339;

use super::proof::Wanted;
use super::resolver::{Answer, Outcome};
use super::{Look, Prover, now};
use crate::tables::Tables;

/// Seconds for which the offered records may be cached: a proof is set once and looked at soon.
const TTL: u32 = 300;
/// Certificates that are looked at to tell whether a host will have one.
const COVERS: usize = 64;

/// What was found, in a half sentence.
fn found(answer: &Answer) -> String {
    if answer.found.is_empty() {
        return answer.outcome.as_text().to_owned();
    }
    let mut text: Vec<String> = answer.found.iter().map(|v| format!("\"{v}\"")).collect();
    if answer.more > 0 {
        text.push(format!("{} more", answer.more));
    }
    let text = format!("found {}", text.join(", "));
    match answer.outcome {
        Outcome::Found => text,
        other => format!("{text}; then: {}", other.as_text()),
    }
}

/// Why a look did not prove a claim: the TXT record first.
pub(super) fn reasons(tables: &Tables, claim: &Claim, look: &Look) -> Vec<Reason> {
    let Some(wanted) = Wanted::of(tables, claim) else {
        return Vec::new();
    };
    let again = match look.txt.outcome.is_certain() {
        true => "answers may be cached for a while; it is looked at again by itself",
        false => "nothing is wrong with the claim; it is looked at again by itself",
    };
    let mut reasons = vec![Reason::new(
        Code::DomainUnproven,
        format!(
            "TXT {}: {}, expected \"{}\"",
            wanted.name,
            found(&look.txt),
            wanted.value
        ),
        format!(
            "set the record as `chancery domain show {}` prints it; {again}",
            claim.host
        ),
    )];
    if look.is_without_resolver() {
        reasons[0].hint = "ask the operator".to_owned();
        return reasons;
    }
    let expected = match wanted.aliases.first() {
        Some(alias) => format!("expected an alias of {alias}"),
        None => "expected an alias of a provider domain of this project".to_owned(),
    };
    let (message, hint) = if look.stale {
        (
            "an alias of this project is there, but proves nothing while another project holds the host",
            "set the TXT record, which is made for this claim",
        )
    } else if look.cname.outcome.is_certain() {
        ("", "instead of the TXT record")
    } else {
        ("", "")
    };
    let message = match message {
        "" => format!("{}, {expected}", found(&look.cname)),
        message => message.to_owned(),
    };
    reasons.push(Reason::new(
        Code::DomainUnproven,
        format!("CNAME {}: {message}", claim.host),
        hint,
    ));
    reasons
}

fn answer(answer: &Answer) -> Value {
    json!({
        "outcome": answer.outcome,
        "found": answer.found,
        "more": answer.more,
        "message": found(answer),
    })
}

impl Prover {
    /// How a claim is proven, what the last look found, and when the next one is.
    #[must_use]
    pub fn verification(&self, tables: &Tables, claim: &Claim) -> Value {
        let Some(wanted) = Wanted::of(tables, claim) else {
            return Value::Null;
        };
        let mut records = vec![json!({
            "type": "TXT",
            "name": wanted.name,
            "value": wanted.value,
            "line": format!("{}. {TTL} IN TXT \"{}\"", wanted.name, wanted.value),
        })];
        // An alias proves nothing against a holder, so it is not offered.
        if !Self::is_held(tables, claim) {
            records.extend(wanted.aliases.iter().map(|alias| {
                json!({
                    "type": "CNAME",
                    "name": claim.host,
                    "value": alias,
                    "line": format!("{}. {TTL} IN CNAME {alias}.", claim.host),
                })
            }));
        }
        let look = self.last(claim);
        let next = self.next(claim, look.as_ref());
        json!({
            "records": records,
            "looked_at": look.as_ref().map(|look| rfc3339(look.at)),
            "tries": look.as_ref().map_or(0, |look| look.tries),
            "txt": look.as_ref().map(|look| answer(&look.txt)),
            "cname": look.as_ref().map(|look| answer(&look.cname)),
            "proof": look.as_ref().and_then(|look| look.proof),
            "reasons": look
                .as_ref()
                .filter(|look| look.proof.is_none())
                .map(|look| reasons(tables, claim, look))
                .unwrap_or_default(),
            "next": next.map(rfc3339),
        })
    }

    /// Adds to a domain in a view what is known of its proof. `whole` is for one domain alone: a page of a listing has the
    /// times only.
    pub fn show(&self, tables: &Tables, claim: &Claim, whole: bool, shown: &mut Value) {
        let Some(shown) = shown.as_object_mut() else {
            return;
        };
        let mut add = |name: &str, value: Value| shown.insert(name.to_owned(), value);
        add("moves_at", json!(claim.moves_at.map(rfc3339)));
        add("contested_until", json!(claim.contested.map(rfc3339)));
        if claim.status != ClaimStatus::Pending {
            return;
        }
        if whole {
            add("verification", self.verification(tables, claim));
            if let Some(until) = claim.moves_at {
                add("warnings", json!(before_the_move(tables, claim, until)));
            }
            return;
        }
        let look = self.last(claim);
        let mut brief = Map::new();
        brief.insert(
            "looked_at".to_owned(),
            json!(look.as_ref().map(|look| rfc3339(look.at))),
        );
        brief.insert(
            "next".to_owned(),
            json!(self.next(claim, look.as_ref()).map(rfc3339)),
        );
        add("verification", Value::Object(brief));
    }

    /// When a claim is looked at next by itself, Unix seconds.
    fn next(&self, claim: &Claim, look: Option<&Look>) -> Option<i64> {
        if claim.status != ClaimStatus::Pending {
            return None;
        }
        if let Some(until) = claim.moves_at {
            return Some(until.max(now()));
        }
        let due = match look {
            Some(look) => look.next(claim)?,
            None => now(),
        };
        Some(due.max(now()))
    }
}

/// What would go dark when a host moves to a claimant: nothing of the former holder's serves it from then on.
fn before_the_move(tables: &Tables, claim: &Claim, until: i64) -> Vec<String> {
    let mut warnings = Vec::new();
    if claim.attached.is_empty() {
        warnings.push(format!(
            "the host is attached to nothing, so it is dark from {} on: chancery domain attach {} --resource NAME",
            rfc3339(until),
            claim.host
        ));
    }
    let covered = names_for(&claim.host).any(|name| {
        let prefix = key::pair(&claim.project, &name);
        tables
            .scan(Table::Cover, &prefix, None, COVERS)
            .iter()
            .any(|(row, _)| {
                let id = CertificateId(Parts::of(&row[prefix.len()..]).number());
                tables.certificate(id).is_some_and(|certificate| {
                    certificate.kind == CertificateKind::Server
                        && certificate.covering(&name).any(|v| v.usable(until))
                })
            })
    });
    if !covered {
        warnings.push(format!(
            "no certificate of this project covers the host at {}: it has no HTTPS from then on until one is added: chancery certificate add",
            rfc3339(until)
        ));
    }
    warnings
}
