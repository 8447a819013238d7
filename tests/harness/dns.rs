//! A real DNS server with zones that a test writes while it runs.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::{ended, eventually, free_address, signal, tail_of, tool};

/// Knot DNS, authoritative for the zones that it was started with; it ends when it is dropped. Its records have a TTL of 0,
/// and it refuses names outside its zones.
#[derive(Debug)]
pub struct Dns {
    child: Child,
    folder: TempDir,
    address: SocketAddr,
}

impl Dns {
    /// Starts it with these zones, empty, and with those whose file is missing, for which it answers SERVFAIL.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start(zones: &[&str], broken: &[&str]) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("chancery-dns-")
            .tempdir()
            .expect("a folder");
        let address = free_address();
        let child = run(&folder, address, zones, broken);
        let mut dns = Self {
            child,
            folder,
            address,
        };
        dns.up();
        dns
    }

    fn up(&mut self) {
        let log = self.folder.path().join("log");
        eventually("the DNS server is up", Duration::from_secs(30), || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the DNS server ended with {status}:\n{}", tail_of(&log));
            }
            self.control(&["status"])
        });
    }

    /// Where it answers, over UDP and TCP.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets a TXT record in the place of those that the name has. Values longer than 255 bytes become several strings.
    ///
    /// # Panics
    /// When it is not taken.
    pub fn txt(&self, name: &str, values: &[&str]) {
        let records: Vec<String> = values
            .iter()
            .map(|value| {
                let mut data = String::new();
                for part in value.as_bytes().chunks(255) {
                    let part = std::str::from_utf8(part).expect("ASCII");
                    let _ = write!(data, "\"{part}\" ");
                }
                data
            })
            .collect();
        self.set(name, "TXT", &records);
    }

    /// Makes a name an alias.
    ///
    /// # Panics
    /// When it is not taken.
    pub fn cname(&self, name: &str, target: &str) {
        self.set(name, "CNAME", &[format!("{target}.")]);
    }

    /// Removes all records of a type from a name.
    ///
    /// # Panics
    /// When it is not taken.
    pub fn remove(&self, name: &str, kind: &str) {
        self.set(name, kind, &[]);
    }

    /// Puts records of a type in the place of those that the name has.
    ///
    /// # Panics
    /// When they are not taken.
    pub fn set(&self, name: &str, kind: &str, records: &[String]) {
        let zone = self.zone_of(name);
        let owner = format!("{name}.");
        let must = |words: &[&str]| {
            if let Err(error) = self.control(words) {
                panic!("knotc {words:?}: {error}");
            }
        };
        must(&["zone-begin", &zone]);
        // That there was nothing to remove is no fault.
        let _ = self.control(&["zone-unset", &zone, &owner, kind]);
        for record in records {
            must(&["zone-set", &zone, &owner, "0", kind, record]);
        }
        // A change that changes nothing is refused as such.
        if let Err(error) = self.control(&["zone-commit", &zone]) {
            let _ = self.control(&["zone-abort", &zone]);
            assert!(
                error.contains("no change") || error.contains("up-to-date"),
                "{error}"
            );
        }
    }

    fn zone_of(&self, name: &str) -> String {
        let zones = fs::read_to_string(self.folder.path().join("zones")).expect("it was written");
        zones
            .lines()
            .filter(|zone| name == *zone || name.ends_with(&format!(".{zone}")))
            .max_by_key(|zone| zone.len())
            .unwrap_or_else(|| panic!("no zone has {name}"))
            .to_owned()
    }

    /// From now on it is silent, as a server that hangs.
    pub fn pause(&self) {
        signal(&self.child, Signal::STOP);
    }

    /// It answers again.
    pub fn resume(&self) {
        signal(&self.child, Signal::CONT);
    }

    fn control(&self, words: &[&str]) -> Result<(), String> {
        let output = Command::new(tool("knotc"))
            .args(["-t", "10", "-s"])
            .arg(self.folder.path().join("socket"))
            .args(words)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.resume();
        signal(&self.child, Signal::TERM);
        if ended(&mut self.child, Duration::from_secs(5)).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn run(folder: &TempDir, address: SocketAddr, zones: &[&str], broken: &[&str]) -> Child {
    let path = folder.path();
    let write = |name: &str, text: &str| fs::write(path.join(name), text).expect("written");
    let mut config = format!(
        "server:\n  rundir: \"{0}\"\n  listen: {1}@{2}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n\
         database:\n  storage: \"{0}\"\n\
         control:\n  listen: \"{0}/socket\"\n\
         log:\n  - target: stderr\n    any: warning\n\
         template:\n  - id: default\n    storage: \"{0}\"\n    zonefile-sync: -1\n    zonefile-load: whole\n    journal-content: none\n\
         zone:\n",
        path.display(),
        address.ip(),
        address.port(),
    );
    for zone in zones.iter().chain(broken) {
        let _ = writeln!(config, "  - domain: {zone}\n    file: {zone}.zone");
    }
    for zone in zones {
        write(
            &format!("{zone}.zone"),
            &format!(
                "$ORIGIN {zone}.\n$TTL 0\n@ SOA ns hostmaster 1 3600 600 86400 0\n@ NS ns\nns A 127.0.0.1\n"
            ),
        );
    }
    write("zones", &zones.join("\n"));
    write("knot.conf", &config);
    Command::new(tool("knotd"))
        .arg("-c")
        .arg(path.join("knot.conf"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(path.join("log")).expect("the folder can be written"))
        .spawn()
        .expect("knotd runs")
}
