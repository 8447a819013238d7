//! A NATS client that speaks the protocol byte by byte, as an attacker would: nothing that it sends is checked before.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use bus::identity::Credentials;
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use uuid::Uuid;

/// How long the server may take to say something that is waited for.
const LIMIT: Duration = Duration::from_secs(20);

/// What the server sent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Heard {
    Message {
        subject: String,
        body: Vec<u8>,
    },
    Error(String),
    Pong,
    Closed,
    /// Nothing, for as long as was waited.
    Silence,
}

/// One connection.
pub(crate) struct Raw {
    stream: BufReader<TcpStream>,
    inbox: String,
    asked: u64,
}

impl Raw {
    /// Connects as the user of a credentials file; `extra` goes into CONNECT as it is.
    pub(crate) fn connect(nats: &str, creds: &Path, extra: &Value) -> Self {
        Self::try_connect(nats, creds, extra).unwrap_or_else(|heard| {
            panic!("the server does not take {}: {heard:?}", creds.display())
        })
    }

    /// As [`connect`](Self::connect), or what the server said instead.
    pub(crate) fn try_connect(nats: &str, creds: &Path, extra: &Value) -> Result<Self, Vec<Heard>> {
        let text = std::fs::read_to_string(creds).expect("the credentials can be read");
        Self::with_credentials(
            nats,
            &Credentials::parse(&text).expect("these are credentials"),
            extra,
        )
    }

    /// As [`try_connect`](Self::try_connect), with credentials from anywhere.
    pub(crate) fn with_credentials(
        nats: &str,
        credentials: &Credentials,
        extra: &Value,
    ) -> Result<Self, Vec<Heard>> {
        Self::with_inbox(nats, credentials, extra, "_INBOX")
    }

    /// As [`with_credentials`](Self::with_credentials), for who has another inbox than most.
    pub(crate) fn with_inbox(
        nats: &str,
        credentials: &Credentials,
        extra: &Value,
        inbox: &str,
    ) -> Result<Self, Vec<Heard>> {
        let address: SocketAddr = nats
            .strip_prefix("nats://")
            .and_then(|address| address.parse().ok())
            .expect("the URL is an address");
        let stream = TcpStream::connect(address).expect("the server listens");
        stream.set_nodelay(true).expect("it can be set");
        let mut raw = Self {
            stream: BufReader::new(stream),
            inbox: format!("{inbox}.{}", Uuid::now_v7().simple()),
            asked: 0,
        };
        let mut line = String::new();
        raw.stream.read_line(&mut line).expect("the server greets");
        let info: Value = line
            .strip_prefix("INFO ")
            .and_then(|info| serde_json::from_str(info).ok())
            .expect("it greets with INFO");
        let nonce = info["nonce"].as_str().expect("with a nonce");
        let mut connect = json!({
            "verbose": false, "pedantic": false, "headers": true, "no_responders": true, "protocol": 1, "lang": "raw",
            "version": "0", "jwt": credentials.jwt, "sig": BASE64URL_NOPAD.encode(&credentials.sign(nonce.as_bytes())),
        });
        for (name, value) in extra.as_object().cloned().unwrap_or_default() {
            connect[name] = value;
        }
        raw.send(format!("CONNECT {connect}\r\n").as_bytes());
        let heard = raw.settle();
        if !heard.is_empty() {
            return Err(heard);
        }
        let inbox = format!("{}.*", raw.inbox);
        raw.subscribe(&inbox, 1);
        let heard = raw.settle();
        if heard.is_empty() {
            Ok(raw)
        } else {
            Err(heard)
        }
    }

    /// Sends bytes as they are. That the server has closed is noticed by the next read.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.get_mut().write_all(bytes);
    }

    /// Publishes; `reply` may be empty.
    pub(crate) fn publish(&mut self, subject: &str, reply: &str, body: &[u8]) {
        let mut bytes = format!("PUB {subject} {reply} {}\r\n", body.len()).into_bytes();
        bytes.extend_from_slice(body);
        bytes.extend_from_slice(b"\r\n");
        self.send(&bytes);
    }

    /// Publishes a header block exactly as given.
    pub(crate) fn publish_with(&mut self, subject: &str, reply: &str, header: &[u8], body: &[u8]) {
        let sizes = (header.len(), header.len() + body.len());
        let mut bytes = format!("HPUB {subject} {reply} {} {}\r\n", sizes.0, sizes.1).into_bytes();
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(body);
        bytes.extend_from_slice(b"\r\n");
        self.send(&bytes);
    }

    /// Subscribes; 1 is taken.
    pub(crate) fn subscribe(&mut self, subject: &str, sid: u32) {
        self.send(format!("SUB {subject} {sid}\r\n").as_bytes());
    }

    /// The next thing that the server says within `limit`.
    pub(crate) fn hear(&mut self, limit: Duration) -> Heard {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Heard::Silence;
            }
            let mut line = Vec::new();
            let _ = self.stream.get_ref().set_read_timeout(Some(left));
            match self.stream.read_until(b'\n', &mut line) {
                Ok(0) => return Heard::Closed,
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    assert!(line.is_empty(), "the server stopped within a line");
                    return Heard::Silence;
                }
                Err(_) => return Heard::Closed,
            }
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            let words: Vec<&str> = line.split(' ').collect();
            match words[0] {
                "PONG" => return Heard::Pong,
                "PING" => self.send(b"PONG\r\n"),
                "-ERR" => return Heard::Error(line),
                "MSG" | "HMSG" => {
                    let number = |word: &str| word.parse::<usize>().expect("a size");
                    let size = number(words[words.len() - 1]);
                    let header = if words[0] == "HMSG" {
                        number(words[words.len() - 2])
                    } else {
                        0
                    };
                    let mut bytes = vec![0; size + 2];
                    let _ = self.stream.get_ref().set_read_timeout(Some(LIMIT));
                    if self.stream.read_exact(&mut bytes).is_err() {
                        return Heard::Closed;
                    }
                    bytes.truncate(size);
                    return Heard::Message {
                        subject: words[1].to_owned(),
                        body: bytes.split_off(header),
                    };
                }
                _ => {}
            }
        }
    }

    /// Everything that came until the server has answered a PING: what was sent before has then been judged.
    pub(crate) fn settle(&mut self) -> Vec<Heard> {
        self.send(b"PING\r\n");
        let mut all = Vec::new();
        loop {
            match self.hear(LIMIT) {
                Heard::Pong => return all,
                end @ (Heard::Closed | Heard::Silence) => {
                    all.push(end);
                    return all;
                }
                heard => all.push(heard),
            }
        }
    }

    /// Asks, and waits for the answer, a JSON document.
    #[track_caller]
    pub(crate) fn ask(&mut self, subject: &str, id: Option<Uuid>, body: &Value) -> Value {
        self.try_ask(subject, id, body, LIMIT)
            .unwrap_or_else(|heard| panic!("{subject} has no answer: {heard:?}"))
    }

    /// Asks, and waits so long for the answer; else what was heard instead.
    pub(crate) fn try_ask(
        &mut self,
        subject: &str,
        id: Option<Uuid>,
        body: &Value,
        limit: Duration,
    ) -> Result<Value, Vec<Heard>> {
        let header = match id {
            Some(id) => format!("NATS/1.0\r\nNats-Msg-Id: {id}\r\n\r\n"),
            None => "NATS/1.0\r\n\r\n".to_owned(),
        };
        self.ask_with(
            subject,
            header.as_bytes(),
            body.to_string().as_bytes(),
            limit,
        )
    }

    /// As [`try_ask`](Self::try_ask), with headers and body exactly as given.
    pub(crate) fn ask_with(
        &mut self,
        subject: &str,
        header: &[u8],
        body: &[u8],
        limit: Duration,
    ) -> Result<Value, Vec<Heard>> {
        self.asked += 1;
        let reply = format!("{}.{}", self.inbox, self.asked);
        self.publish_with(subject, &reply, header, body);
        let deadline = Instant::now() + limit;
        let mut all = Vec::new();
        loop {
            match self.hear(deadline.saturating_duration_since(Instant::now())) {
                // The server answers by itself, with nothing in it, when there is nobody who would.
                Heard::Message { subject, body } if subject == reply => {
                    return serde_json::from_slice(&body).map_err(|_| all);
                }
                end @ (Heard::Closed | Heard::Silence) => {
                    all.push(end);
                    return Err(all);
                }
                heard => all.push(heard),
            }
        }
    }

    /// Waits until the server has closed the connection.
    #[track_caller]
    pub(crate) fn closed(&mut self) {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            if self.hear(Duration::from_millis(200)) == Heard::Closed {
                return;
            }
        }
        panic!("the server keeps the connection");
    }
}
