//! One log with its nats-server, two places where a node may run, the clients, and what happens to all of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use bus::connect::{self, Login};
use bus::identity::Identity;
use bus::server::{self, Server};
use bus::streams;
use bus::templates::Role;
use data_encoding::BASE64;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::check::{Checked, Finding, Follower, Log};
use crate::node::{Node, Said, crashed};
use crate::traffic::{Random, Traffic};

/// I9: how long after a fault the work may stand still. A server that was killed may need most of it to recover its streams
/// while other sweeps use the same cores.
const PROGRESS: Duration = Duration::from_secs(60);
/// How long a node waits for an answer from NATS.
const REQUEST: Duration = Duration::from_secs(3);
/// How long a fail point is waited for before the process is killed instead.
const REACHED: Duration = Duration::from_secs(3);

/// The arrows of the protocol, in its order, and those of the content store, which works the same way.
pub(crate) const POINTS: [&str; 16] = [
    "objects-before-publish",
    "objects-before-commit-message",
    "objects-after-commit-before-ack",
    "objects-after-ack",
    "registrar-before-append",
    "log-before-publish",
    "log-mid-batch",
    "log-before-commit-message",
    "log-after-commit-before-ack",
    "log-after-ack",
    "registrar-before-ledger",
    "ledger-before-write",
    "ledger-before-commit",
    "ledger-after-commit",
    "registrar-after-ledger",
    "registrar-after-answer",
];

const PLACES: [&str; 2] = ["node-a", "node-b"];

/// What is done to the world in one round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// A running node ends at a fail point, in some later batch.
    AtPoint(&'static str),
    /// A node ends at a fail point soon after its start, or in the midst of it.
    AtPointOfStart(&'static str),
    /// `kill -9` of the node.
    KillNode,
    /// `kill -9` of the nats-server; the node lives on.
    KillNats,
    /// The nats-server stands still for longer than a request waits, and then does what it was asked.
    PauseNats,
    /// `kill -9` of both.
    KillBoth,
    /// A second node begins while the first one is stopped; then both run.
    TwoWriters,
    /// The same, and the nats-server is killed while they fence each other.
    TwoWritersKillNats,
}

impl Fault {
    /// Any of them; the fail points in turn, `turn` counting them, so that no arrow is left out by chance.
    pub(crate) fn choose(random: &mut Random, turn: &mut usize) -> Self {
        let mut point = || {
            *turn += 1;
            POINTS[*turn % POINTS.len()]
        };
        match random.below(40) {
            0..18 => Self::AtPoint(point()),
            18..22 => Self::AtPointOfStart(point()),
            22..28 => Self::KillNode,
            28..30 => Self::KillNats,
            30 => Self::PauseNats,
            31..34 => Self::KillBoth,
            34..38 => Self::TwoWriters,
            _ => Self::TwoWritersKillNats,
        }
    }
}

/// Why a wait ended before what was waited for.
enum Trouble {
    Found(Finding),
    /// Nothing is written any more, or a node gave up: the checks tell more.
    Stuck(String),
}

impl From<Finding> for Trouble {
    fn from(finding: Finding) -> Self {
        Self::Found(finding)
    }
}

pub(crate) struct World {
    runtime: Runtime,
    folder: TempDir,
    server: Option<Server>,
    executable: PathBuf,
    config: server::Config,
    reader: async_nats::Client,
    bug: Option<&'static str>,
    nodes: [Option<Node>; 2],
    lives: u64,
    sender: Sender<(u64, Said)>,
    said: Receiver<(u64, Said)>,
    pub(crate) traffic: Traffic,
    pub(crate) log: Log,
    followers: [Follower; 2],
    /// Fail points, and how many processes each of them ended.
    pub(crate) aborted: BTreeMap<&'static str, u64>,
}

impl World {
    pub(crate) fn new(random: Random, bug: Option<&'static str>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let folder = tempfile::tempdir().expect("a folder");
        let identity = Arc::new(Identity::generate());
        std::fs::write(folder.path().join("identity"), &*identity.to_bytes()).expect("a file");
        let executable = server::find().expect("nats-server is there: scripts/setup installs it");
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("after 1970")
            .as_secs();
        let config = server::Config {
            folder: folder.path().join("nats"),
            port: harness::free_port(),
            name: "sweep".to_owned(),
            identity_conf: identity.server_conf(now),
        };
        let (server, reader) = runtime.block_on(async {
            let server = Server::start(&executable, &config)
                .await
                .expect("it starts");
            let role = async |role| {
                connect::connect(&server.url(), &Login::minted(&identity, role))
                    .await
                    .expect("it lets us in")
            };
            streams::ensure(&role(Role::Installer).await, &role(Role::System).await, 1)
                .await
                .expect("the streams are made");
            let reader = role(Role::Follower).await;
            (server, reader)
        });
        let followers =
            PLACES.map(|place| Follower::new(place, &folder.path().join("check").join(place)));
        let (sender, said) = channel();
        Self {
            runtime,
            server: Some(server),
            executable,
            config,
            reader,
            bug,
            nodes: [None, None],
            lives: 0,
            sender,
            said,
            traffic: Traffic::new(random),
            log: Log::new(),
            followers,
            aborted: BTreeMap::new(),
            folder,
        }
    }

    fn start(&mut self, place: usize, armed: Option<&str>) {
        self.lives += 1;
        self.nodes[place] = Some(Node::start(
            &self.folder.path().join(PLACES[place]),
            &format!("nats://127.0.0.1:{}", self.config.port),
            &self.folder.path().join("identity"),
            self.bug,
            armed,
            self.lives,
            self.sender.clone(),
        ));
    }

    fn kill_nats(&mut self) {
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.kill()).expect("it is killed");
        }
    }

    fn signal_nats(&self, signal: Signal) {
        let pid = self.server.as_ref().and_then(Server::pid);
        if let Some(pid) = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
            let _ = kill_process(pid, signal);
        }
    }

    fn start_nats(&mut self) {
        if self.server.is_none() {
            let started = Server::start(&self.executable, &self.config);
            self.server = Some(
                self.runtime
                    .block_on(started)
                    .expect("nats-server starts again"),
            );
        }
    }

    /// The last lines that a node wrote.
    fn complaint(&self, place: usize) -> String {
        let text = std::fs::read_to_string(self.folder.path().join(PLACES[place]).join("stderr"));
        let text = text.unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(4)..].join(" | ")
    }

    /// Which of the two may be spoken to.
    fn running(&self) -> Vec<usize> {
        let speaks = |place: &usize| {
            let node = self.nodes[*place].as_ref();
            node.is_some_and(|node| node.ready && !node.stopped)
        };
        (0..2).filter(speaks).collect()
    }

    /// Gives the nodes what waits, and sees to it that something does.
    fn pump(&mut self) {
        let running = self.running();
        if running.is_empty() {
            return;
        }
        self.traffic.refill();
        for tag in self.traffic.unsent() {
            let both = running.len() == 2 && self.traffic.random.below(5) == 0;
            let one = *self.traffic.random.one(&running);
            for place in running.iter().copied() {
                if place == one || both {
                    self.send(place, tag);
                }
            }
        }
    }

    fn send(&mut self, place: usize, tag: u64) {
        if let Some(node) = &mut self.nodes[place]
            && let Some(line) = self.traffic.line(tag, node.life)
        {
            node.send(&line);
        }
    }

    /// Takes what is said until `done`, at most for `limit`. True if it came to that; else the time is over.
    ///
    /// A node that ends by a signal is taken away; one that gives up by itself ends the wait.
    fn until(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Result<bool, Trouble> {
        let deadline = Instant::now() + limit;
        loop {
            self.pump();
            if done(self) {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            match self.said.recv_timeout(left.min(Duration::from_millis(20))) {
                Ok((life, said)) => self.hear(life, said)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(false),
            }
        }
    }

    fn hear(&mut self, life: u64, said: Said) -> Result<(), Trouble> {
        let place =
            (0..2).find(|place| self.nodes[*place].as_ref().is_some_and(|n| n.life == life));
        match said {
            Said::Line(line) if line["ready"] == true => {
                if let Some(node) = place.and_then(|place| self.nodes[place].as_mut()) {
                    node.ready = true;
                }
            }
            // What a node said before it was killed was said: its clients heard it.
            Said::Line(line) => {
                if let Some(why) = self.traffic.take(life, &line)? {
                    return Err(Trouble::Stuck(why));
                }
            }
            Said::End => {
                self.traffic.forget(life);
                if let Some(place) = place
                    && let Some(mut node) = self.nodes[place].take()
                {
                    let status = node.ended();
                    if !crashed(status) {
                        let complaint = self.complaint(place);
                        return Err(Trouble::Stuck(format!(
                            "{} gave up ({status}): {complaint}",
                            PLACES[place]
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    /// `kill -9`. What it had said before still counts, and is heard first.
    fn kill(&mut self, place: usize) -> Result<(), Trouble> {
        let Some(node) = self.nodes[place].take() else {
            return Ok(());
        };
        let life = node.life;
        node.kill();
        let deadline = Instant::now() + PROGRESS;
        loop {
            match self
                .said
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok((of, Said::End)) if of == life => break,
                Ok((of, said)) => self.hear(of, said)?,
                Err(_) => {
                    return Err(Trouble::Stuck(
                        "the pipe of a killed process stays open".to_owned(),
                    ));
                }
            }
        }
        self.traffic.forget(life);
        Ok(())
    }

    /// Lets the running nodes work for a while.
    fn work(&mut self, limit: Duration) -> Result<(), Trouble> {
        self.until(limit, |_| false).map(|_| ())
    }

    fn moment(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.traffic.random.below(most))
    }

    /// Does the fault and brings the world back to work, or says what is wrong.
    pub(crate) fn round(&mut self, fault: Fault, whole: bool) -> Checked {
        let done = self.fault(fault).and_then(|()| self.recover());
        let checked = match done {
            Ok(()) => self.check(whole),
            Err(Trouble::Found(finding)) => Err(finding),
            // What lies on the disks says more about a system that stands still than its standing still.
            Err(Trouble::Stuck(why)) => self.check(true).and(Err(Finding {
                check: "I9",
                what: why,
            })),
        };
        checked.map_err(|finding| {
            let said: Vec<String> = (0..2)
                .map(|place| format!("{} says: {}", PLACES[place], self.complaint(place)))
                .collect();
            Finding {
                what: format!("{} (after {fault:?})\n{}", finding.what, said.join("\n")),
                ..finding
            }
        })
    }

    fn fault(&mut self, fault: Fault) -> Result<(), Trouble> {
        let place = self.running().first().copied().unwrap_or(0);
        let other = 1 - place;
        match fault {
            Fault::AtPoint(point) => {
                let batches = self.traffic.random.below(12);
                let Some(node) = &mut self.nodes[place] else {
                    return Ok(());
                };
                node.arm(point, &arming(batches));
                self.await_abort(place, point)?;
            }
            Fault::AtPointOfStart(point) => {
                self.kill(place)?;
                // A start is a batch or two: catching up, the barrier.
                let batches = self.traffic.random.below(4);
                self.start(place, Some(&format!("{point}={}", arming(batches))));
                self.await_abort(place, point)?;
            }
            Fault::KillNode => {
                let moment = self.moment(120);
                self.work(moment)?;
                self.kill(place)?;
            }
            Fault::KillNats => {
                let moment = self.moment(120);
                self.work(moment)?;
                self.kill_nats();
                let moment = self.moment(300);
                self.work(moment)?;
                self.start_nats();
            }
            Fault::PauseNats => {
                let moment = self.moment(120);
                self.work(moment)?;
                self.signal_nats(Signal::STOP);
                let moment = self.moment(1_000);
                self.work(REQUEST + moment)?;
                self.signal_nats(Signal::CONT);
            }
            Fault::KillBoth => {
                let moment = self.moment(120);
                self.work(moment)?;
                if self.traffic.random.below(2) == 0 {
                    self.kill_nats();
                    self.kill(place)?;
                } else {
                    self.kill(place)?;
                    self.kill_nats();
                }
                self.start_nats();
            }
            Fault::TwoWriters | Fault::TwoWritersKillNats => {
                let moment = self.moment(60);
                self.work(moment)?;
                // Stopped in the midst of its work, whatever that is just then.
                if let Some(node) = &mut self.nodes[place] {
                    node.signal(Signal::STOP);
                    node.stopped = true;
                    let life = node.life;
                    self.traffic.forget(life);
                }
                self.start(other, None);
                let target = self.traffic.answered + 20;
                if !self.until(PROGRESS, |world| world.traffic.answered >= target)? {
                    return Err(Trouble::Stuck(
                        "the second node does not work while the first is stopped".to_owned(),
                    ));
                }
                if let Some(node) = &mut self.nodes[place] {
                    node.signal(Signal::CONT);
                    node.stopped = false;
                }
                if fault == Fault::TwoWritersKillNats {
                    let moment = self.moment(60);
                    self.work(moment)?;
                    self.kill_nats();
                    let moment = self.moment(300);
                    self.work(moment)?;
                    self.start_nats();
                }
                // Both write now, and fence each other.
                let waiting = self.traffic.waiting();
                let target = self.traffic.answered + 60;
                let answered = |world: &Self| {
                    world.traffic.answered >= target
                        && !waiting.iter().any(|tag| world.traffic.waits(*tag))
                };
                if !self.until(PROGRESS, answered)? {
                    return Err(Trouble::Stuck(
                        "two nodes at once bring each other to a standstill".to_owned(),
                    ));
                }
                let victim = usize::from(self.traffic.random.below(2) == 0);
                self.kill(victim)?;
            }
        }
        Ok(())
    }

    /// Works until the node has ended at its fail point. One that does not get there is killed.
    fn await_abort(&mut self, place: usize, point: &'static str) -> Result<(), Trouble> {
        if self.until(REACHED, |world| world.nodes[place].is_none())? {
            *self.aborted.entry(point).or_default() += 1;
            return Ok(());
        }
        self.kill(place)
    }

    /// I9: within twenty seconds everything that waited is answered. Before a node starts, what the dead one left is looked at.
    fn recover(&mut self) -> Result<(), Trouble> {
        self.check(false)?;
        if self.nodes.iter().all(Option::is_none) {
            let place = usize::from(self.traffic.random.below(4) == 0);
            self.start(place, None);
        }
        let waiting = self.traffic.waiting();
        let target = self.traffic.answered + 10;
        let answered = |world: &Self| {
            world.traffic.answered >= target && !waiting.iter().any(|tag| world.traffic.waits(*tag))
        };
        if self.until(PROGRESS, answered)? {
            return Ok(());
        }
        Err(Trouble::Stuck(format!("no progress within {PROGRESS:?}")))
    }

    /// Compares the stream, the ledgers that nobody has open, and what clients were told.
    pub(crate) fn check(&mut self, whole: bool) -> Checked {
        self.read_log()?;
        self.log.complete()?;
        self.log.holds(&self.traffic.told[self.log.told..])?;
        self.log.told = self.traffic.told.len();
        for (place, follower) in self.followers.iter_mut().enumerate() {
            if self.nodes[place].is_none() {
                let file = self.folder.path().join(PLACES[place]).join("ledger.redb");
                follower.check(&file, &self.log, whole)?;
            }
        }
        Ok(())
    }

    /// The last look: every process is ended, everything is read again from the first byte.
    pub(crate) fn close(mut self) -> Checked {
        for place in 0..2 {
            if let Err(Trouble::Found(finding)) = self.kill(place) {
                return Err(finding);
            }
        }
        let mut log = Log::new();
        std::mem::swap(&mut self.log, &mut log);
        self.check(true)?;
        for (place, follower) in PLACES.iter().zip(&self.followers) {
            follower.rebuild_afresh(&self.folder.path().join("check").join(place))?;
        }
        Ok(())
    }

    /// Reads what the stream has and was not read yet, with plain requests.
    fn read_log(&mut self) -> Checked {
        let deadline = Instant::now() + PROGRESS;
        let info = self.request("$JS.API.STREAM.INFO.LOG", &Value::Null, deadline)?;
        let head = info["state"]["last_seq"].as_u64().unwrap_or(0);
        for sequence in self.log.len() + 1..=head {
            let answer = self.request(
                "$JS.API.STREAM.MSG.GET.LOG",
                &json!({"seq": sequence}),
                deadline,
            )?;
            let message = &answer["message"];
            let bytes = BASE64
                .decode(message["data"].as_str().unwrap_or_default().as_bytes())
                .unwrap_or_default();
            self.log.push(
                message["seq"].as_u64().unwrap_or(0),
                message["subject"].as_str().unwrap_or_default(),
                bytes,
            )?;
        }
        Ok(())
    }

    fn request(&self, subject: &str, body: &Value, deadline: Instant) -> Checked<Value> {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        loop {
            let asked = self.reader.request(subject.to_owned(), body.clone().into());
            match self.runtime.block_on(asked) {
                Ok(answer) => {
                    return Ok(serde_json::from_slice(&answer.payload).unwrap_or_default());
                }
                Err(error) if Instant::now() >= deadline => {
                    return Err(Finding {
                        check: "I9",
                        what: format!("the stream cannot be read: {error}"),
                    });
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// The number of processes that were started.
    pub(crate) fn lives(&self) -> u64 {
        self.lives
    }
}

/// `return` ends the process; before that the point is passed so many times.
fn arming(passes: u64) -> String {
    if passes == 0 {
        "return".to_owned()
    } else {
        format!("{passes}*off->return")
    }
}
