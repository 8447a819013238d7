//! How much one command may read.
//!
//! Decisions are made one after the other, for everybody. So no command may read as much as its project happens to have: what
//! goes through many hosts or certificates pays for each row, by its size, and stops when nothing is left.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::names::{CertificateId, Host, Slug};
use crate::selection::{self, Candidate, Policy};
use crate::state::{self, COVER_LIMIT, Certificate, Served, key};
use crate::store::{Parts, Read, Table, decode};

/// Bytes of a row that cost as much as reading one at all.
const UNIT: usize = 1_024;

/// A reading ended early: enough was found, or too much was read.
pub(super) struct Enough;

/// Reads the certificates of a project for its hosts, within a budget.
pub(super) struct Reader<'a, R> {
    state: &'a R,
    project: &'a Slug,
    /// What is left, in rows of up to [`UNIT`] bytes; about ten microseconds each.
    left: usize,
    /// The certificates that name something, read once. The budget bounds them.
    known: BTreeMap<String, Rc<Vec<Certificate>>>,
}

impl<'a, R: Read> Reader<'a, R> {
    pub(super) fn new(state: &'a R, project: &'a Slug, budget: usize) -> Self {
        Self {
            state,
            project,
            left: budget,
            known: BTreeMap::new(),
        }
    }

    /// Pays for what is about to be done.
    pub(super) fn spend(&mut self, units: usize) -> Result<(), Enough> {
        match self.left.checked_sub(units) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(Enough)
            }
        }
    }

    /// The living certificates of the project that name exactly this SAN.
    pub(super) fn covering(&mut self, name: &str) -> Result<Rc<Vec<Certificate>>, Enough> {
        if let Some(known) = self.known.get(name).cloned() {
            self.spend(known.len())?;
            return Ok(known);
        }
        self.spend(1)?;
        let prefix = key::pair(self.project, name);
        let mut found = Vec::new();
        for (row, _) in self.state.scan(Table::Cover, &prefix, None, COVER_LIMIT) {
            let id = CertificateId(Parts::of(&row[prefix.len()..]).number());
            let Some(bytes) = self.state.get(Table::Certificate, &key::certificate(id)) else {
                continue;
            };
            self.spend(1 + bytes.len() / UNIT)?;
            found.push(decode(&bytes));
        }
        let found = Rc::new(found);
        self.known.insert(name.to_owned(), Rc::clone(&found));
        Ok(found)
    }

    /// What [`ranking`](super::ranking) says of a host in a region, if this project's certificates are ranked for it.
    pub(super) fn ranking(
        &mut self,
        host: &Host,
        region: &str,
    ) -> Result<Option<(Served, Vec<Candidate>)>, Enough> {
        self.spend(3)?;
        let served = state::served(self.state, host, region);
        let Some(served) = served.filter(|served| served.project == *self.project) else {
            return Ok(None);
        };
        if !served
            .resource
            .is_some_and(|resource| state::is_served(self.state, resource))
        {
            return Ok(Some((served, Vec::new())));
        }
        let mut ranked: Vec<Candidate> = Vec::new();
        for name in state::names_for(host) {
            for certificate in self.covering(&name)?.iter() {
                for candidate in certificate.candidates(region, &name) {
                    let twice = ranked.iter().any(|c| {
                        c.certificate == candidate.certificate && c.version == candidate.version
                    });
                    if !twice {
                        ranked.push(candidate);
                    }
                }
            }
        }
        if state::demands_public(self.state, served.resource) {
            ranked.retain(|candidate| candidate.public);
        }
        selection::rank(Policy::default(), served.mode, &mut ranked);
        Ok(Some((served, ranked)))
    }
}
