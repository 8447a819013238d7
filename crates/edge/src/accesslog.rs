//! One JSON line for each request and for each handshake that failed.
//!
//! Lines are written by a thread of their own, behind a bounded queue: when the disk is slower than the clients, lines
//! are dropped and counted, and the next line that is written says how many. The log is two files of bounded size.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::SystemTime;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use lifecycle::names::{Digest, Slug};

/// The file in the edge's folder; what was before it is in the same name with `.1`.
pub const FILE: &str = "access.log";
/// How large a file grows, in bytes.
const FILE_MAX: u64 = 64 << 20;
/// How many lines wait for the disk.
const QUEUE: usize = 8192;
/// The longest text that is taken over from a client, in bytes; the rest is cut off.
const TEXT_MAX: usize = 2048;

/// What all connections of a client share in their lines.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Tls {
    pub(crate) sni: Option<Arc<str>>,
    pub(crate) tls_version: Option<&'static str>,
    pub(crate) suite: Option<&'static str>,
    pub(crate) group: Option<&'static str>,
    pub(crate) resumed: Option<bool>,
    pub(crate) alpn: Option<&'static str>,
    /// The certificate that the connection was opened with.
    pub(crate) fingerprint: Option<Digest>,
    /// Its named certificate and version.
    pub(crate) certificate: Option<String>,
}

/// What a line says.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(crate) enum Entry {
    /// A request was answered.
    Request {
        client: IpAddr,
        #[serde(flatten)]
        tls: Arc<Tls>,
        scheme: &'static str,
        host: Option<String>,
        project: Option<Slug>,
        method: String,
        /// Without the query, which often carries secrets.
        path: String,
        protocol: &'static str,
        status: u16,
        bytes_in: u64,
        bytes_out: u64,
        duration_us: u64,
        /// From sending the request on until the head of the answer was there.
        upstream_us: Option<u64>,
        /// Why it did not end as it should have.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<&'static str>,
    },
    /// A handshake did not come about.
    Handshake {
        client: IpAddr,
        sni: Option<String>,
        reason: String,
        duration_us: u64,
    },
}

#[derive(Serialize)]
struct Line<'a> {
    time: &'a str,
    region: &'a str,
    edge: &'a str,
    #[serde(flatten)]
    entry: &'a Entry,
    /// How many lines were lost before this one.
    #[serde(skip_serializing_if = "is_zero")]
    dropped: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Where lines are handed in.
#[derive(Clone)]
pub(crate) struct AccessLog {
    queue: SyncSender<(SystemTime, Entry)>,
    dropped: Arc<AtomicU64>,
}

impl AccessLog {
    /// Starts the writing thread, which ends when the last clone of the log is gone.
    pub(crate) fn start(folder: &Path, region: &Slug, edge: &Slug) -> io::Result<Self> {
        let (queue, lines) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let mut writer = Writer::open(folder.join(FILE), FILE_MAX)?;
        let log = Self {
            queue,
            dropped: dropped.clone(),
        };
        let (region, edge) = (region.clone(), edge.clone());
        std::thread::Builder::new()
            .name("edge-access-log".to_owned())
            .spawn(move || {
                write_all(
                    &lines,
                    &mut writer,
                    &dropped,
                    region.as_str(),
                    edge.as_str(),
                )
            })?;
        Ok(log)
    }

    /// Hands in a line. It never waits: a line that finds the queue full is dropped and counted.
    pub(crate) fn write(&self, entry: Entry) {
        if let Err(TrySendError::Full(_)) = self.queue.try_send((SystemTime::now(), entry)) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// At most the first [`TEXT_MAX`] bytes of what a client sent.
pub(crate) fn clip(text: &str) -> String {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

fn write_all(
    lines: &Receiver<(SystemTime, Entry)>,
    writer: &mut Writer,
    dropped: &AtomicU64,
    region: &str,
    edge: &str,
) {
    let mut text = Vec::with_capacity(1024);
    while let Ok(first) = lines.recv() {
        let mut next = Some(first);
        while let Some((time, entry)) = next {
            let time = OffsetDateTime::from(time)
                .format(&Rfc3339)
                .unwrap_or_default();
            let line = Line {
                time: &time,
                region,
                edge,
                entry: &entry,
                dropped: dropped.swap(0, Ordering::Relaxed),
            };
            text.clear();
            if serde_json::to_writer(&mut text, &line).is_ok() {
                text.push(b'\n');
                if writer.write(&text).is_err() {
                    dropped.fetch_add(1 + line.dropped, Ordering::Relaxed);
                }
            }
            next = lines.try_recv().ok();
        }
        // Nobody waits in the queue, so whoever reads the file sees everything.
        if writer.flush().is_err() {
            dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A file that is moved aside when it has grown large.
struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    size: u64,
    limit: u64,
}

impl Writer {
    fn open(path: PathBuf, limit: u64) -> io::Result<Self> {
        let file = append(&path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path,
            file: BufWriter::with_capacity(64 << 10, file),
            size,
            limit,
        })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.size + line.len() as u64 > self.limit && self.size > 0 {
            self.file.flush()?;
            let mut before = self.path.clone().into_os_string();
            before.push(".1");
            fs::rename(&self.path, before)?;
            self.file = BufWriter::with_capacity(64 << 10, append(&self.path)?);
            self.size = 0;
        }
        self.file.write_all(line)?;
        self.size += line.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn append(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn two_files_bound_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let mut writer = Writer::open(path.clone(), 100).unwrap();
        for n in 0..50 {
            writer.write(format!("line {n:02}\n").as_bytes()).unwrap();
        }
        writer.flush().unwrap();
        let now = fs::read_to_string(&path).unwrap();
        let before = fs::read_to_string(folder.path().join("access.log.1")).unwrap();
        assert!(now.len() <= 100 && before.len() <= 100);
        assert!(now.ends_with("line 49\n"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        // Opened again, it goes on where it was.
        let mut writer = Writer::open(path.clone(), 100).unwrap();
        writer.write(b"again\n").unwrap();
        writer.flush().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{now}again\n"));
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (queue, lines) = sync_channel(1);
        let log = AccessLog {
            queue,
            dropped: Arc::new(AtomicU64::new(0)),
        };
        let entry = || Entry::Handshake {
            client: [127, 0, 0, 1].into(),
            sni: None,
            reason: String::new(),
            duration_us: 1,
        };
        log.write(entry());
        log.write(entry());
        log.write(entry());
        let dropped = log.dropped.clone();
        assert_eq!(dropped.load(Ordering::Relaxed), 2);
        drop(log);
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(folder.path().join(FILE), 1 << 20).unwrap();
        write_all(&lines, &mut writer, &dropped, "north", "north-1");
        let text = fs::read_to_string(folder.path().join(FILE)).unwrap();
        assert_eq!(text.lines().count(), 1);
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(line["dropped"], 2);
        assert_eq!(line["event"], "handshake");
    }

    #[test]
    fn what_clients_send_is_clipped() {
        let long = "ä".repeat(3000);
        assert!(clip(&long).len() <= TEXT_MAX);
        assert_eq!(clip("short"), "short");
    }
}
