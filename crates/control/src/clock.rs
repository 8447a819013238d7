//! The clock: turns times that have come into commands.
//!
//! Nothing is served or refused because of it: the edges look at the dates themselves. It records what has happened. When
//! the wall clock jumps against the monotonic one, it stops until an operator has looked: one wrong clock must not mark
//! the certificates of a million hosts as expired.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actix::prelude::*;

use lifecycle::command::{ExpireCertificate, WarnCertificate};
use lifecycle::names::CertificateId;
use lifecycle::store::{Parts, Read, Table, decode};

use crate::registrar::{Ask, Registrar};
use crate::tables::Tables;

/// The wall clock may differ from the monotonic one by so much before timed commands stop.
const JUMP: Duration = Duration::from_secs(3_600);
/// Due times that are worked off in one turn.
const TURN: usize = 256;
/// Warnings that are asked for in one turn, that is in a second: each may cost milliseconds of the registrar's time, which all
/// share. Sixteen a second are more than a million a day.
const WARNINGS: usize = 16;

/// The actor.
pub struct Clock {
    ledger: ledger::Ledger,
    registrar: Addr<Registrar>,
    /// Where both clocks stood when it started.
    start: (Instant, i64),
    stopped: Arc<Mutex<Option<String>>>,
}

impl Clock {
    /// Starts it. `stopped` says why it stopped, if it did.
    pub fn spawn(
        ledger: ledger::Ledger,
        registrar: Addr<Registrar>,
        stopped: Arc<Mutex<Option<String>>>,
    ) -> Addr<Clock> {
        Clock::start_in_arbiter(&Arbiter::new().handle(), move |_| Clock {
            ledger,
            registrar,
            start: (Instant::now(), now()),
            stopped,
        })
    }

    fn tick(&mut self) {
        let mut stopped = self
            .stopped
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let expected =
            self.start.1 + i64::try_from(self.start.0.elapsed().as_secs()).unwrap_or(i64::MAX);
        if stopped.is_none() && now().abs_diff(expected) > JUMP.as_secs() {
            let why = "the wall clock jumped by more than an hour; timed commands stop until this node is restarted".to_owned();
            tracing::error!("{why}");
            *stopped = Some(why);
        }
        if stopped.is_some() {
            return;
        }
        drop(stopped);
        self.warn();
        for (row, _) in Tables::of(&self.ledger).scan(Table::Expiry, &[], None, TURN) {
            let mut parts = Parts::of(&row);
            let due = i64::try_from(parts.number()).unwrap_or(i64::MAX);
            if due > now() {
                return;
            }
            let (id, version) = (
                CertificateId(parts.number()),
                u32::try_from(parts.number()).unwrap_or(0),
            );
            let about = format!("certificate.expire {id} {version}");
            if self
                .registrar
                .try_send(Ask::internal(
                    "clock",
                    &about,
                    ExpireCertificate { id, version }.into(),
                ))
                .is_err()
            {
                return;
            }
        }
    }

    /// Warnings that are due. Each has one row, of its next stage, so that a clock which was away for long warns once of each
    /// certificate and not once for each stage; a turn's bound spreads what has gathered.
    fn warn(&self) {
        for (row, version) in Tables::of(&self.ledger).scan(Table::Warning, &[], None, WARNINGS) {
            let mut parts = Parts::of(&row);
            let due = i64::try_from(parts.number()).unwrap_or(i64::MAX);
            if due > now() {
                return;
            }
            let id = CertificateId(parts.number());
            let version: u32 = decode(&version);
            // The due time names the stage: the same warning has the same id, however often it is asked for.
            let about = format!("certificate.warn {id} {version} {due}");
            let command = WarnCertificate { id, version };
            let asked = self
                .registrar
                .try_send(Ask::internal("clock", &about, command.into()));
            if asked.is_err() {
                return;
            }
        }
    }
}

fn now() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}

impl Actor for Clock {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(Duration::from_secs(1), |actor, _| actor.tick());
    }
}
