//! A NATS connection that takes what strangers wrote.
//!
//! The server passes header bytes through unchecked, and a client library that parses them while reading can be made to
//! drop its connection, or to see a header that was never sent, by a project's malformed message. So this side of the
//! door reads the protocol itself: a message is a subject, a block of header bytes and a body, and nothing of them is
//! interpreted here. Whatever they hold, the connection stays, and only that one message is refused.
//!
//! The protocol is the plain-text one of docs.nats.io ("Client Protocol"): INFO, CONNECT, SUB, MSG, HMSG, HPUB, PING, PONG.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
};

use crate::connect::{Login, reconnect_delay};

/// A line of the protocol at most, without bodies. The server's INFO is about 1 KiB.
const LINE_LIMIT: usize = 64 * 1024;

/// A message at most, above the server's own limit of 1 MB.
const MESSAGE_LIMIT: usize = 2 * 1024 * 1024;

/// How long the handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// How often the server is asked for a sign of life; three without one end the connection.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Bytes that are written at once, at most.
const WRITE_CHUNK: usize = 64 * 1024;

/// One message as it came.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) subject: Bytes,
    pub(crate) reply: Option<Bytes>,
    /// The header block with its version line, if there is one.
    pub(crate) header: Option<Bytes>,
    pub(crate) body: Bytes,
}

/// Bytes to write, for the connection on which the request came; on a later one the server would not let them through.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) generation: u64,
    pub(crate) bytes: Bytes,
}

/// One message to publish.
pub(crate) fn publish_frame(subject: &[u8], headers: &[(&str, &str)], body: &[u8]) -> Bytes {
    let mut block = String::from("NATS/1.0\r\n");
    for (name, value) in headers {
        block.push_str(name);
        block.push_str(": ");
        block.push_str(value);
        block.push_str("\r\n");
    }
    block.push_str("\r\n");
    let mut frame = BytesMut::with_capacity(block.len() + body.len() + subject.len() + 32);
    frame.extend_from_slice(b"HPUB ");
    frame.extend_from_slice(subject);
    frame
        .extend_from_slice(format!(" {} {}\r\n", block.len(), block.len() + body.len()).as_bytes());
    frame.extend_from_slice(block.as_bytes());
    frame.extend_from_slice(body);
    frame.extend_from_slice(b"\r\n");
    frame.freeze()
}

/// One listening connection, which comes back by itself for ever.
pub(crate) struct Listener {
    /// `host:port` of each server, tried in turn.
    pub(crate) addresses: Vec<String>,
    pub(crate) login: Login,
    /// Subjects, with the queue group that shares them.
    pub(crate) subscriptions: Vec<(String, Option<&'static str>)>,
}

/// The addresses in a comma-separated list of `nats://host:port`.
pub(crate) fn addresses(url: &str) -> Option<Vec<String>> {
    url.split(',')
        .map(|url| {
            let address = url.trim().strip_prefix("nats://").unwrap_or(url.trim());
            let address = address.trim_end_matches('/');
            let plain = !address.is_empty() && !address.contains("://") && !address.contains('@');
            plain.then(|| {
                if address.contains(':') {
                    address.to_owned()
                } else {
                    format!("{address}:4222")
                }
            })
        })
        .collect()
}

#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    nonce: String,
}

impl Listener {
    /// Listens for ever. `generation` counts the connections; it is even while there is none.
    pub(crate) async fn run(
        &self,
        generation: &AtomicU64,
        mut urgent: mpsc::Receiver<Frame>,
        mut frames: mpsc::Receiver<Frame>,
        mut take: impl FnMut(Message, u64),
    ) {
        let mut failures = 0;
        loop {
            tokio::time::sleep(reconnect_delay(failures)).await;
            let address = &self.addresses[failures % self.addresses.len()];
            failures += 1;
            let connected = tokio::time::timeout(HANDSHAKE_LIMIT, self.connect(address)).await;
            let error = match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok((reader, writer)) => {
                    failures = 0;
                    let current = generation.fetch_add(1, Ordering::SeqCst) + 1;
                    let (pong, pongs) = mpsc::channel(4);
                    let reading = read_messages(reader, &pong, |message| take(message, current));
                    let writing = write_frames(writer, current, pongs, &mut urgent, &mut frames);
                    let error = tokio::select! {
                        error = reading => error,
                        error = writing => error,
                    };
                    generation.fetch_add(1, Ordering::SeqCst);
                    error
                }
                Err(error) => error,
            };
            tracing::warn!(role = self.login.role().name(), %error, "the listening connection is lost and comes back");
        }
    }

    async fn connect(&self, address: &str) -> io::Result<(Reader, OwnedWriteHalf)> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (reader, mut writer) = stream.into_split();
        let mut reader = Reader {
            stream: reader,
            buffer: BytesMut::with_capacity(64 * 1024),
        };
        let line = reader.line().await?;
        let info = line
            .strip_prefix(b"INFO ".as_slice())
            .and_then(|info| serde_json::from_slice::<Info>(info).ok())
            .ok_or_else(|| invalid("the server does not greet with INFO"))?;
        let name = self.login.name();
        let credentials = self.login.credentials(&name).map_err(io::Error::other)?;
        let connect = json!({
            "verbose": false, "pedantic": false, "tls_required": false, "name": name, "lang": "rust",
            "version": env!("CARGO_PKG_VERSION"), "protocol": 1, "headers": true, "no_responders": false,
            "echo": false, "jwt": credentials.jwt,
            "sig": BASE64URL_NOPAD.encode(&credentials.sign(info.nonce.as_bytes())),
        });
        let mut greeting = format!("CONNECT {connect}\r\n");
        for (index, (subject, queue)) in self.subscriptions.iter().enumerate() {
            let queue = queue.map(|queue| format!(" {queue}")).unwrap_or_default();
            greeting.push_str(&format!("SUB {subject}{queue} {}\r\n", index + 1));
        }
        greeting.push_str("PING\r\n");
        writer.write_all(greeting.as_bytes()).await?;
        loop {
            let line = reader.line().await?;
            if line.as_ref() == b"PONG" {
                return Ok((reader, writer));
            }
            if line.as_ref() == b"PING" {
                writer.write_all(b"PONG\r\n").await?;
            } else if line.starts_with(b"-ERR") {
                return Err(invalid(&String::from_utf8_lossy(&line)));
            } else if line.starts_with(b"MSG ") || line.starts_with(b"HMSG ") {
                // A request can arrive between SUB and PONG. It is left unanswered, as if it had come a moment earlier.
                let head = message_head(&line)?;
                reader.body(head.total).await?;
            }
        }
    }
}

struct Reader {
    stream: OwnedReadHalf,
    buffer: BytesMut,
}

impl Reader {
    async fn more(&mut self) -> io::Result<()> {
        let read =
            tokio::time::timeout(3 * PING_INTERVAL, self.stream.read_buf(&mut self.buffer)).await;
        match read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    async fn line(&mut self) -> io::Result<Bytes> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.buffer[searched..]
                .windows(2)
                .position(|pair| pair == b"\r\n")
            {
                let line = self.buffer.split_to(searched + end).freeze();
                self.buffer.advance(2);
                return Ok(line);
            }
            searched = self.buffer.len().saturating_sub(1);
            if searched > LINE_LIMIT {
                return Err(invalid("a line of the protocol is too long"));
            }
            self.more().await?;
        }
    }

    async fn body(&mut self, size: usize) -> io::Result<Bytes> {
        // Room for the whole of it at once: a large body is then read in few turns.
        self.buffer
            .reserve((size + 2).saturating_sub(self.buffer.len()));
        while self.buffer.len() < size + 2 {
            self.more().await?;
        }
        let body = self.buffer.split_to(size).freeze();
        self.buffer.advance(2);
        Ok(body)
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// What a line `MSG` or `HMSG` says of the message that follows it.
#[derive(Debug)]
struct Head {
    subject: Bytes,
    reply: Option<Bytes>,
    /// Bytes of the header block, which is the beginning of what follows.
    header: Option<usize>,
    /// Bytes that follow, without their final CRLF.
    total: usize,
}

fn message_head(line: &Bytes) -> io::Result<Head> {
    let with_header = line.starts_with(b"HMSG ");
    let words: Vec<&[u8]> = line
        .split(|&byte| byte == b' ')
        .skip(1)
        .filter(|word| !word.is_empty())
        .collect();
    let number = |word: &[u8]| {
        std::str::from_utf8(word)
            .ok()
            .and_then(|word| word.parse::<usize>().ok())
    };
    let numbers = if with_header { 2 } else { 1 };
    let reply = match words.len().checked_sub(numbers) {
        Some(2) => None,
        Some(3) => Some(line.slice_ref(words[2])),
        _ => return Err(invalid("a message line has the wrong number of words")),
    };
    let total = words
        .last()
        .and_then(|word| number(word))
        .filter(|&total| total <= MESSAGE_LIMIT);
    let total = total.ok_or_else(|| invalid("a message's length is wrong"))?;
    let header = if with_header {
        let header = number(words[words.len() - 2]).filter(|&header| header <= total);
        Some(header.ok_or_else(|| invalid("a message's header length is wrong"))?)
    } else {
        None
    };
    Ok(Head {
        subject: line.slice_ref(words[0]),
        reply,
        header,
        total,
    })
}

async fn read_messages(
    mut reader: Reader,
    pong: &mpsc::Sender<()>,
    mut take: impl FnMut(Message),
) -> io::Error {
    loop {
        match read_message(&mut reader, pong).await {
            Ok(Some(message)) => take(message),
            Ok(None) => {}
            Err(error) => return error,
        }
    }
}

async fn read_message(reader: &mut Reader, pong: &mpsc::Sender<()>) -> io::Result<Option<Message>> {
    let line = reader.line().await?;
    if line.starts_with(b"MSG ") || line.starts_with(b"HMSG ") {
        let head = message_head(&line)?;
        let mut body = reader.body(head.total).await?;
        let header = head.header.map(|length| body.split_to(length));
        return Ok(Some(Message {
            subject: head.subject,
            reply: head.reply,
            header,
            body,
        }));
    }
    if line.as_ref() == b"PING" {
        // A full channel means that a PONG is about to be written anyway.
        let _ = pong.try_send(());
    } else if line.starts_with(b"-ERR") {
        // The server closes after an error that is fatal; a refused publication is not.
        tracing::debug!(error = %String::from_utf8_lossy(&line), "NATS");
    }
    Ok(None)
}

async fn write_frames(
    mut writer: OwnedWriteHalf,
    generation: u64,
    mut pongs: mpsc::Receiver<()>,
    urgent: &mut mpsc::Receiver<Frame>,
    frames: &mut mpsc::Receiver<Frame>,
) -> io::Error {
    let mut pings = tokio::time::interval(PING_INTERVAL);
    let mut chunk = BytesMut::with_capacity(WRITE_CHUNK);
    loop {
        let add = |frame: Frame, chunk: &mut BytesMut| {
            if frame.generation == generation {
                chunk.extend_from_slice(&frame.bytes);
            }
        };
        tokio::select! {
            biased;
            Some(()) = pongs.recv() => chunk.extend_from_slice(b"PONG\r\n"),
            _ = pings.tick() => chunk.extend_from_slice(b"PING\r\n"),
            Some(frame) = urgent.recv() => add(frame, &mut chunk),
            Some(frame) = frames.recv() => add(frame, &mut chunk),
        }
        while chunk.len() < WRITE_CHUNK {
            match urgent.try_recv().or_else(|_| frames.try_recv()) {
                Ok(frame) => add(frame, &mut chunk),
                Err(_) => break,
            }
        }
        if let Err(error) = writer.write_all(&chunk).await {
            return error;
        }
        chunk.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_lines_are_read_by_their_words() {
        let head = |line: &str| message_head(&Bytes::from(line.to_owned()));
        let plain = head("MSG a.b 7 12").expect("without reply");
        assert_eq!(
            (
                plain.subject.as_ref(),
                plain.reply,
                plain.header,
                plain.total
            ),
            (b"a.b".as_slice(), None, None, 12)
        );
        let full = head("HMSG a.b 7 _R_.x 10 12").expect("with reply and header");
        assert_eq!(
            (full.reply.as_deref(), full.header, full.total),
            (Some(b"_R_.x".as_slice()), Some(10), 12)
        );
        for line in [
            "MSG a",
            "MSG a 1 r 2 3",
            "HMSG a 1 13 12",
            "MSG a 1 -1",
            "MSG a 1 99999999",
            "HMSG a 1 x 12",
        ] {
            assert!(head(line).is_err(), "{line}");
        }
    }

    #[test]
    fn addresses_are_plain_hosts_and_ports() {
        assert_eq!(
            addresses("nats://a:1, b"),
            Some(vec!["a:1".to_owned(), "b:4222".to_owned()])
        );
        assert_eq!(addresses("tls://a:1"), None);
        assert_eq!(addresses("nats://user@a:1"), None);
        assert_eq!(addresses(""), None);
    }
}
