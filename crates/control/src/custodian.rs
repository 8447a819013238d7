//! The custodian: what the log says is destroyed, or never came to be used, leaves the vault and its stream.
//!
//! The tables decide: a private key that no row of `Key` names has no user. It is looked for when a `key.destroyed` wakes
//! the custodian, and everywhere every half hour, which also finds the keys of uploads that the registrar rejected.

use std::collections::VecDeque;
use std::time::Duration;

use actix::prelude::*;

use ledger::Ledger;
use lifecycle::event::Event;
use lifecycle::names::Digest;
use lifecycle::state::{ProjectStatus, State, key};
use lifecycle::store::{Parts, Read, Table};
use wire::envelope::{Envelope, Position};

use crate::distribution::Wake;
use crate::tables::{Tables, fatal};
use crate::vault::{self, Vault};

/// How often everything is looked through.
const ROUND: Duration = Duration::from_secs(1_800);
/// Keys that wait for their turn; beyond that the next round finds them.
const WAITING_MAX: usize = 10_000;

/// The actor.
pub struct Custodian {
    ledger: Ledger,
    vault: Addr<Vault>,
    seen: u64,
    waiting: VecDeque<(String, [u8; 32])>,
    working: bool,
    /// The head of the stream of sealed keys at the last round. Only keys that were there then are looked for: what uses a
    /// younger one, a queued command for instance, may still be on its way, also across a restart.
    settled: u64,
}

impl Custodian {
    /// Starts it.
    pub fn spawn(ledger: Ledger, vault: Addr<Vault>) -> Addr<Custodian> {
        let seen = ledger.head().sequence;
        Custodian::start_in_arbiter(&Arbiter::new().handle(), move |ctx| {
            ctx.set_mailbox_capacity(16);
            Custodian {
                ledger,
                vault,
                seen,
                waiting: VecDeque::new(),
                working: false,
                settled: 0,
            }
        })
    }

    /// Notes the keys that new events destroyed.
    fn look(&mut self) {
        let tables = Tables::of(&self.ledger);
        loop {
            let page = tables
                .0
                .events(self.seen + 1, 1_000)
                .unwrap_or_else(|error| fatal("the ledger cannot be read", &error));
            if page.is_empty() {
                return;
            }
            for (sequence, bytes) in page {
                self.seen = sequence;
                // Most events are of no interest here; only the name of the others is read.
                if Position::of(&bytes).is_ok_and(|p| p.name == "key.destroyed")
                    && let Ok(envelope) = Envelope::decode(&bytes)
                    && let Event::KeyDestroyed(destroyed) = &envelope.event
                {
                    self.wait(envelope.project.to_string(), destroyed.spki.0);
                }
            }
        }
    }

    fn wait(&mut self, project: String, spki: [u8; 32]) {
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push_back((project, spki));
        }
    }

    fn work(&mut self, ctx: &mut Context<Self>) {
        if self.working || self.waiting.is_empty() {
            return;
        }
        self.working = true;
        let waiting: Vec<_> = self.waiting.drain(..).collect();
        let (ledger, vault) = (self.ledger.clone(), self.vault.clone());
        let turn = async move {
            let turn = vault::with(&vault, move |core| {
                let tables = Tables::of(&ledger);
                let mut later = Vec::new();
                for (project, spki) in waiting {
                    if is_used(&tables, &project, spki) {
                        continue;
                    }
                    match core.destroy(&project, &spki) {
                        Ok(true) => {}
                        Ok(false) => later.push((project, spki)),
                        Err(error) => {
                            tracing::error!(%error, "a key could not be destroyed; the next round tries again")
                        }
                    }
                }
                if let Err(error) = core.work_off_deletions() {
                    tracing::warn!(%error, "destroyed keys are still in the stream; trying again");
                }
                later
            });
            turn.await.unwrap_or_default()
        };
        ctx.spawn(
            actix::fut::wrap_future::<_, Self>(turn).map(|later, actor, _| {
                actor.working = false;
                for (project, spki) in later {
                    actor.wait(project, spki);
                }
            }),
        );
    }

    /// Looks through all keys that the vault holds.
    fn round(&mut self, ctx: &mut Context<Self>) {
        let ledger = self.ledger.clone();
        let vault = self.vault.clone();
        let settled = self.settled;
        let all = async move {
            let found = vault::with(&vault, move |core| {
                let head = core.keyring.head().unwrap_or(settled);
                let tables = Tables::of(&ledger);
                let mut unused = Vec::new();
                let mut after: Option<Vec<u8>> = None;
                loop {
                    let page = tables.scan(Table::Project, &[], after.as_deref(), 500);
                    let Some((last, _)) = page.last() else {
                        return (head, unused);
                    };
                    after = Some(last.clone());
                    for (row, _) in &page {
                        let project = Parts::of(row).text();
                        for held in core.keyring.list(project).unwrap_or_default() {
                            if held.sequence <= settled
                                && !is_used(&tables, project, held.spki_sha256)
                                && unused.len() < WAITING_MAX
                            {
                                unused.push((project.to_owned(), held.spki_sha256));
                            }
                        }
                    }
                }
            });
            found.await.unwrap_or((settled, Vec::new()))
        };
        ctx.spawn(
            actix::fut::wrap_future::<_, Self>(all).map(|(head, unused), actor, ctx| {
                actor.settled = head;
                for (project, spki) in unused {
                    actor.wait(project, spki);
                }
                actor.work(ctx);
            }),
        );
    }
}

fn is_used(tables: &Tables, project: &str, spki: [u8; 32]) -> bool {
    let Some(slug) = crate::tables::slug(project) else {
        return true;
    };
    let living = tables
        .project(project)
        .is_some_and(|p| p.status != ProjectStatus::Deleted);
    living
        && tables
            .get(Table::Key, &key::spki(&slug, Digest(spki)))
            .is_some()
}

impl Actor for Custodian {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.round(ctx);
        ctx.run_interval(ROUND, |actor, ctx| actor.round(ctx));
        ctx.run_interval(Duration::from_secs(5), |actor, ctx| actor.work(ctx));
    }
}

impl Handler<Wake> for Custodian {
    type Result = ();

    fn handle(&mut self, _: Wake, ctx: &mut Self::Context) {
        self.look();
        self.work(ctx);
    }
}
