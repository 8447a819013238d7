//! A client that speaks the protocol byte by byte, as an attacker would.

use std::time::Duration;

use bus::identity::Credentials;
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

/// What the server sent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Heard {
    Message { subject: String, bytes: Vec<u8> },
    Error(String),
    Pong,
    Closed,
}

pub(crate) struct Raw {
    stream: BufReader<TcpStream>,
}

impl Raw {
    /// Connects with the credentials; `extra` goes into CONNECT as it is.
    pub(crate) async fn connect(
        address: std::net::SocketAddr,
        credentials: &Credentials,
        extra: Value,
    ) -> Raw {
        let (raw, heard) = Raw::try_connect(address, credentials, extra).await;
        assert_eq!(heard, Heard::Pong);
        raw
    }

    pub(crate) async fn try_connect(
        address: std::net::SocketAddr,
        credentials: &Credentials,
        extra: Value,
    ) -> (Raw, Heard) {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let info: Value = serde_json::from_str(line.strip_prefix("INFO ").unwrap()).unwrap();
        let nonce = info["nonce"].as_str().unwrap();
        let mut connect = json!({
            "verbose": false, "pedantic": false, "headers": true, "no_responders": true, "protocol": 1,
            "lang": "raw", "version": "0", "jwt": credentials.jwt,
            "sig": BASE64URL_NOPAD.encode(&credentials.sign(nonce.as_bytes())),
        });
        for (name, value) in extra.as_object().cloned().unwrap_or_default() {
            connect[name] = value;
        }
        let mut raw = Raw { stream };
        raw.send(format!("CONNECT {connect}\r\nPING\r\n").as_bytes())
            .await;
        let heard = raw.hear().await;
        (raw, heard)
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        // A server that has closed is noticed by the next read.
        let _ = self.stream.get_mut().write_all(bytes).await;
    }

    pub(crate) async fn publish(&mut self, subject: &str, reply: &str, body: &[u8]) {
        let mut bytes = format!("PUB {subject} {reply} {}\r\n", body.len()).into_bytes();
        bytes.extend_from_slice(body);
        bytes.extend_from_slice(b"\r\n");
        self.send(&bytes).await;
    }

    /// Publishes a header block exactly as given.
    pub(crate) async fn publish_raw(
        &mut self,
        subject: &str,
        reply: &str,
        header: &[u8],
        body: &[u8],
    ) {
        let mut bytes = format!(
            "HPUB {subject} {reply} {} {}\r\n",
            header.len(),
            header.len() + body.len()
        )
        .into_bytes();
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(body);
        bytes.extend_from_slice(b"\r\n");
        self.send(&bytes).await;
    }

    pub(crate) async fn subscribe(&mut self, subject: &str, sid: u32) {
        self.send(format!("SUB {subject} {sid}\r\n").as_bytes())
            .await;
    }

    /// The next thing that the server says, within ten seconds.
    pub(crate) async fn hear(&mut self) -> Heard {
        tokio::time::timeout(Duration::from_secs(10), self.hear_next())
            .await
            .expect("the server says something")
    }

    async fn hear_next(&mut self) -> Heard {
        loop {
            let mut line = Vec::new();
            if self.stream.read_until(b'\n', &mut line).await.unwrap_or(0) == 0 {
                return Heard::Closed;
            }
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            let words: Vec<&str> = line.split(' ').collect();
            match words[0] {
                "PONG" => return Heard::Pong,
                "PING" => self.send(b"PONG\r\n").await,
                "-ERR" => return Heard::Error(line),
                "MSG" | "HMSG" => {
                    let size: usize = words.last().unwrap().parse().unwrap();
                    let mut bytes = vec![0; size + 2];
                    self.stream.read_exact(&mut bytes).await.unwrap();
                    bytes.truncate(size);
                    return Heard::Message {
                        subject: words[1].to_owned(),
                        bytes,
                    };
                }
                _ => {}
            }
        }
    }

    /// Everything that came until the server has answered a PING: what was sent before has then been judged.
    pub(crate) async fn settle(&mut self) -> Vec<Heard> {
        self.send(b"PING\r\n").await;
        let mut all = Vec::new();
        loop {
            match self.hear().await {
                Heard::Pong => return all,
                Heard::Closed => {
                    all.push(Heard::Closed);
                    return all;
                }
                heard => all.push(heard),
            }
        }
    }

    /// Waits for a message on a subject and returns the JSON document in its body.
    pub(crate) async fn answer(&mut self) -> Value {
        loop {
            match self.hear().await {
                Heard::Message { bytes, .. } => {
                    let start = bytes
                        .windows(4)
                        .position(|four| four == b"\r\n\r\n")
                        .map_or(0, |end| end + 4);
                    return serde_json::from_slice(&bytes[start..]).unwrap_or(Value::Null);
                }
                Heard::Closed => panic!("the connection is closed"),
                Heard::Error(_) | Heard::Pong => {}
            }
        }
    }
}
