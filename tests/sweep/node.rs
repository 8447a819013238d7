//! A running `sweep-node`, as its parent holds it.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// What a node's reader says.
pub(crate) enum Said {
    /// A line.
    Line(Value),
    /// The process is gone, or will be at once.
    End,
}

/// One life of a node. Dropping it kills the process.
pub(crate) struct Node {
    child: Child,
    input: Option<ChildStdin>,
    /// Counts the lives of all nodes.
    pub(crate) life: u64,
    pub(crate) ready: bool,
    pub(crate) stopped: bool,
}

impl Node {
    pub(crate) fn start(
        folder: &Path,
        url: &str,
        identity: &Path,
        bug: Option<&str>,
        armed: Option<&str>,
        life: u64,
        said: Sender<(u64, Said)>,
    ) -> Self {
        std::fs::create_dir_all(folder).expect("a folder");
        let log = File::create(folder.join("stderr")).expect("a file");
        let mut child = Command::new(env!("CARGO_BIN_EXE_sweep-node"))
            .arg(folder)
            .arg(url)
            .arg(identity)
            .env("CHANCERY_PLANTED_BUG", bug.unwrap_or_default())
            .env("FAILPOINTS", armed.unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the sweep's node starts");
        let output = child.stdout.take().expect("it is piped");
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let Ok(line) = line else { break };
                // A line that the end of the process cut off is no answer.
                let Ok(line) = serde_json::from_str(&line) else {
                    break;
                };
                if said.send((life, Said::Line(line))).is_err() {
                    return;
                }
            }
            let _ = said.send((life, Said::End));
        });
        Self {
            input: child.stdin.take(),
            child,
            life,
            ready: false,
            stopped: false,
        }
    }

    /// Sends a line. A process that has ended does not hear it, and its reader will say so.
    pub(crate) fn send(&mut self, line: &str) {
        if let Some(input) = &mut self.input {
            let _ = input.write_all(line.as_bytes());
            let _ = input.write_all(b"\n");
        }
    }

    pub(crate) fn arm(&mut self, point: &str, actions: &str) {
        self.send(&json!({"arm": {"point": point, "actions": actions}}).to_string());
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits for its end.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        self.child
            .wait()
            .expect("a child of ours can be waited for")
    }

    /// Kills it as a crash would.
    pub(crate) fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a signal ended it, which is what a crash is; otherwise it gave up by itself.
pub(crate) fn crashed(status: ExitStatus) -> bool {
    status.signal().is_some()
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
