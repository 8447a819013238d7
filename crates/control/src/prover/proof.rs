//! What proves a claim: the record with its token, and the alias of a provider domain.
//!
//! The token follows from the log, the project, the host and the sequence at which the claim was added. So nobody has to keep
//! it, no other project's claim has the same, and a record that was set for a former claim proves nothing for a later one.

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;

use lifecycle::names::{Host, Slug};
use lifecycle::state::{Claim, State, provider_domain};

/// What is hashed first, so that no other hash of ours is ever a token.
const LABEL: &str = "chancery.v1.claim";
/// Hex digits of a token: 128 bits.
const DIGITS: usize = 32;
/// The label of the record, below the host.
const PREFIX: &str = "_chancery";
/// Aliases that are offered at most.
const ALIASES_MAX: usize = 4;

/// The token of a claim that was added at a sequence.
#[must_use]
pub fn token(log: &str, project: &Slug, host: &Host, added: u64) -> String {
    let text = format!("{LABEL}\0{log}\0{project}\0{}\0{added}", host.as_str());
    let mut token = HEXLOWER.encode(digest(&SHA256, text.as_bytes()).as_ref());
    token.truncate(DIGITS);
    token
}

/// The value of the TXT record.
#[must_use]
pub fn value(token: &str) -> String {
    format!("chancery-verification={token}")
}

/// The name of the TXT record: below the host, and for a wildcard below its parent, since it could not be below an asterisk
/// that stands for a label.
#[must_use]
pub fn record_name(host: &Host) -> String {
    let base = if host.is_wildcard() {
        host.parent()
    } else {
        host.as_str()
    };
    format!("{PREFIX}.{base}")
}

/// What is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The name of the TXT record.
    pub name: String,
    /// Its value.
    pub value: String,
    /// Provider domains of resources that the host is attached to; an alias of any of the project's proves too.
    pub aliases: Vec<String>,
}

impl Wanted {
    /// Of a claim. None before the log began.
    pub fn of(tables: &impl State, claim: &Claim) -> Option<Self> {
        let control = tables.control()?;
        let mut aliases: Vec<String> = claim
            .attached
            .iter()
            .filter_map(|(region, id)| {
                let resource = tables.resource(*id)?;
                Some(provider_domain(
                    &resource,
                    region.as_str(),
                    &control.platform_domain,
                ))
            })
            .collect();
        aliases.truncate(ALIASES_MAX);
        Some(Self {
            name: record_name(&claim.host),
            value: value(&token(
                &control.log,
                &claim.project,
                &claim.host,
                claim.added,
            )),
            aliases,
        })
    }
}

/// Whether a name is the provider domain of a resource that this project has now.
pub fn is_alias_of(tables: &impl State, project: &Slug, name: &str) -> bool {
    let find = || {
        let platform = tables.control()?.platform_domain;
        let head = name.strip_suffix(&platform)?.strip_suffix('.')?;
        let (label, region) = head.split_once('.')?;
        let (resource, of) = label.split_once("--")?;
        if of != project.as_str() {
            return None;
        }
        let resource = tables.resource_named(of, resource)?;
        resource
            .regions
            .iter()
            .any(|r| r.as_str() == region)
            .then_some(())
    };
    find().is_some()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_belongs_to_one_claim() {
        let project = |name: &str| Slug::project(name).unwrap();
        let host = |name: &str| Host::parse(name).unwrap();
        let one = token("log", &project("acme"), &host("www.example.com"), 7);
        assert_eq!(one.len(), DIGITS);
        // Fixed for ever: customers' zones hold it.
        assert_eq!(one, "f7e859cef113835772ac9343e8f12c40");
        for other in [
            token("gol", &project("acme"), &host("www.example.com"), 7),
            token("log", &project("acme2"), &host("www.example.com"), 7),
            token("log", &project("acme"), &host("ww.example.com"), 7),
            token("log", &project("acme"), &host("www.example.com"), 8),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn the_record_is_below_the_host_or_the_wildcard_s_parent() {
        let name = |host: &str| record_name(&Host::parse(host).unwrap());
        assert_eq!(name("www.example.com"), "_chancery.www.example.com");
        assert_eq!(name("*.example.com"), "_chancery.example.com");
        assert_eq!(name("example.com"), "_chancery.example.com");
    }
}
