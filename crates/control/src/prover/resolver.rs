//! The questions that a claim's proof asks the DNS, and what the answers say.
//!
//! Nothing is remembered between questions: whoever has just set a record should not wait for a cache of ours. The
//! resolvers that are asked have caches of their own, among them one for names that were not there (RFC 2308). Whoever
//! runs a zone decides what its answers hold, so all of it is bounded and cleaned before a person sees it.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{Resolver as Hickory, TokioResolver};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Steps from alias to alias that are followed.
pub const STEPS_MAX: usize = 8;
/// TXT records of one name that are looked at.
const TEXTS_MAX: usize = 64;
/// Values that are shown, and characters of each.
const SHOWN: (usize, usize) = (5, 160);
/// Resolvers that are used of those that are configured.
const RESOLVERS_MAX: usize = 8;
/// Questions to one resolver over one connection at once.
const AT_ONCE: usize = 1_024;
/// Where the system says whom to ask.
const SYSTEM: &str = "/etc/resolv.conf";

/// How questions are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Recursive resolvers; None: those of the system, as they are when the process starts.
    pub resolvers: Option<Vec<SocketAddr>>,
    /// How long one try may take.
    pub timeout: Duration,
    /// Tries of one question.
    pub attempts: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            resolvers: None,
            timeout: Duration::from_secs(3),
            attempts: 2,
        }
    }
}

/// How a question ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// There are records of this type.
    Found,
    /// NXDOMAIN: the name does not exist.
    NoName,
    /// The name exists, without a record of this type.
    NoRecord,
    /// SERVFAIL: the resolver could not get an answer from the zone's servers, or its signatures are broken.
    ServerFailure,
    /// REFUSED: the resolver does not answer this question.
    Refused,
    /// No answer in time.
    Timeout,
    /// The resolver could not be reached.
    Unreachable,
    /// An answer that makes no sense.
    Unreadable,
    /// Aliases lead to aliases without an end.
    TooManySteps,
    /// No name can be that long (RFC 1035 section 2.3.4).
    NameTooLong,
    /// No resolver is configured, and the system has none.
    NoResolver,
}

impl Outcome {
    /// As people read it, after "the look-up": a half sentence.
    #[must_use]
    pub fn as_text(self) -> &'static str {
        match self {
            Outcome::Found => "found",
            Outcome::NoName => "the name does not exist (NXDOMAIN)",
            Outcome::NoRecord => "the name has no such record",
            Outcome::ServerFailure => {
                "the zone's servers gave no good answer to the resolver (SERVFAIL)"
            }
            Outcome::Refused => "the resolver refused to answer (REFUSED)",
            Outcome::Timeout => "no answer in time",
            Outcome::Unreachable => "the resolver could not be reached",
            Outcome::Unreadable => "the answer could not be read",
            Outcome::TooManySteps => "aliases lead to aliases without an end",
            Outcome::NameTooLong => "the name of the record would be too long for the DNS",
            Outcome::NoResolver => {
                "no resolver is configured; the operator names them in control.dns.resolvers"
            }
        }
    }

    /// Whether the answer says how the zone is, unlike one that only says that it could not be asked.
    #[must_use]
    pub fn is_certain(self) -> bool {
        matches!(
            self,
            Outcome::Found
                | Outcome::NoName
                | Outcome::NoRecord
                | Outcome::TooManySteps
                | Outcome::NameTooLong
        )
    }
}

/// What a question brought, as it is shown: at most a few values, each clipped, in printable ASCII only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// How it ended.
    pub outcome: Outcome,
    /// Values of the records; of aliases the chain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub found: Vec<String>,
    /// Values beyond those.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Answer {
    fn without(outcome: Outcome) -> Self {
        Self {
            outcome,
            found: Vec::new(),
            more: 0,
        }
    }
}

/// Asks the DNS. Clones share their connections.
#[derive(Clone)]
pub struct Resolver {
    inner: Option<TokioResolver>,
    servers: Vec<SocketAddr>,
    /// How long one question may take in all, and a chain of them.
    limit: Duration,
}

impl Resolver {
    /// With these settings. To be made inside the tokio runtime that will ask.
    ///
    /// Without any resolver it answers every question with [`Outcome::NoResolver`].
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let mut servers = match &settings.resolvers {
            Some(servers) => servers.clone(),
            None => of_system(Path::new(SYSTEM)),
        };
        servers.truncate(RESOLVERS_MAX);
        let tries = u32::try_from(settings.attempts.max(1)).unwrap_or(u32::MAX);
        // Over UDP, and over TCP where that does not do.
        let limit = settings.timeout.saturating_mul(tries).saturating_mul(2);
        Self {
            inner: build(&servers, settings),
            servers,
            limit,
        }
    }

    /// How long it takes at most to learn something.
    #[must_use]
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Whom it asks.
    #[must_use]
    pub fn servers(&self) -> &[SocketAddr] {
        &self.servers
    }

    /// The TXT records of a name, an alias of which is followed: whether one of them is `wanted`, and what is shown of them.
    ///
    /// The strings of one record are joined (RFC 7208 section 3.3 does so too); blanks around the value do not count.
    pub async fn texts(&self, name: &str, wanted: &str, until: Instant) -> (bool, Answer) {
        let name = match absolute(name) {
            Ok(name) => name,
            Err(outcome) => return (false, Answer::without(outcome)),
        };
        let lookup = match self.ask(&name, RecordType::TXT, until).await {
            Ok(lookup) => lookup,
            Err(outcome) => return (false, Answer::without(outcome)),
        };
        let owner = end_of_chain(&name, &lookup);
        let records: Vec<Vec<u8>> = lookup
            .answers()
            .iter()
            .filter(|record| owner.as_ref() == Some(&record.name))
            .filter_map(|record| match &record.data {
                RData::TXT(text) => Some(text.txt_data.concat()),
                _ => None,
            })
            .take(TEXTS_MAX)
            .collect();
        let holds = |record: &Vec<u8>| record.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes());
        if records.is_empty() {
            return (false, Answer::without(Outcome::NoRecord));
        }
        let matched = records.iter().any(holds);
        // What was looked for comes first, however many other records the name has.
        let mut ordered: Vec<&Vec<u8>> = records.iter().filter(|r| holds(r)).collect();
        ordered.extend(records.iter().filter(|r| !holds(r)));
        let answer = Answer {
            outcome: Outcome::Found,
            found: ordered.iter().take(SHOWN.0).map(|r| printable(r)).collect(),
            more: u32::try_from(ordered.len().saturating_sub(SHOWN.0)).unwrap_or(u32::MAX),
        };
        (matched, answer)
    }

    /// Where the alias of a host leads: the names of the chain from the host's own CNAME on, in lower case without the
    /// final dot, up to the first one that `is_sought`, and what is shown of them.
    ///
    /// Each name of the chain is asked for its own CNAME, so that records that happen to stand in an answer beside it
    /// count for nothing. A name with several CNAMEs, which no zone may have, ends the chain.
    pub async fn aliases(
        &self,
        host: &str,
        is_sought: impl Fn(&str) -> bool,
        until: Instant,
    ) -> (Vec<String>, Answer) {
        let mut chain: Vec<String> = Vec::new();
        let mut name = match absolute(host) {
            Ok(name) => name,
            Err(outcome) => return (chain, Answer::without(outcome)),
        };
        let mut outcome = Outcome::Found;
        loop {
            let lookup = match self.ask(&name, RecordType::CNAME, until).await {
                Ok(lookup) => lookup,
                // The end of a chain is an ordinary name.
                Err(Outcome::NoName | Outcome::NoRecord) if !chain.is_empty() => break,
                Err(error) => {
                    outcome = error;
                    break;
                }
            };
            let mut targets = lookup.answers().iter().filter_map(|record| {
                match (&record.data, record.name == name) {
                    (RData::CNAME(target), true) => Some(&target.0),
                    _ => None,
                }
            });
            let target = match (targets.next(), targets.next()) {
                (Some(target), None) => target.clone(),
                (None, _) if !chain.is_empty() => break,
                (None, _) => {
                    outcome = Outcome::NoRecord;
                    break;
                }
                (Some(_), Some(_)) => {
                    outcome = Outcome::Unreadable;
                    break;
                }
            };
            let text = target.to_lowercase().to_ascii();
            let text = text.strip_suffix('.').unwrap_or(&text).to_owned();
            let enough = is_sought(&text);
            chain.push(text);
            if enough {
                break;
            }
            if chain.len() >= STEPS_MAX {
                outcome = Outcome::TooManySteps;
                break;
            }
            name = target;
        }
        let answer = Answer {
            outcome,
            found: chain
                .iter()
                .map(|name| printable(name.as_bytes()))
                .collect(),
            more: 0,
        };
        (chain, answer)
    }

    async fn ask(&self, name: &Name, of: RecordType, until: Instant) -> Result<Lookup, Outcome> {
        let inner = self.inner.as_ref().ok_or(Outcome::NoResolver)?;
        match tokio::time::timeout_at(until, inner.lookup(name.clone(), of)).await {
            Ok(Ok(lookup)) => Ok(lookup),
            Ok(Err(error)) => Err(outcome_of(&error)),
            Err(_) => Err(Outcome::Timeout),
        }
    }
}

fn outcome_of(error: &NetError) -> Outcome {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => Outcome::NoName,
            ResponseCode::NoError => Outcome::NoRecord,
            ResponseCode::Refused => Outcome::Refused,
            _ => Outcome::ServerFailure,
        },
        NetError::Dns(DnsError::ResponseCode(ResponseCode::Refused)) => Outcome::Refused,
        NetError::Dns(DnsError::ResponseCode(_)) => Outcome::ServerFailure,
        NetError::Timeout => Outcome::Timeout,
        NetError::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => Outcome::Timeout,
        NetError::Io(_) | NetError::NoConnections | NetError::Busy => Outcome::Unreachable,
        _ => Outcome::Unreadable,
    }
}

/// A name with its root, so that no search list is tried.
fn absolute(name: &str) -> Result<Name, Outcome> {
    // The asterisk of a wildcard is a label like any other here: its record is asked for by name (RFC 4592 section 2.1).
    let mut name = Name::from_ascii(name).map_err(|_| Outcome::NameTooLong)?;
    name.set_fqdn(true);
    Ok(name)
}

/// Where the aliases in an answer lead from a name; None: in a circle.
fn end_of_chain(name: &Name, lookup: &Lookup) -> Option<Name> {
    let mut end = name.clone();
    for _ in 0..=STEPS_MAX {
        let next =
            lookup
                .answers()
                .iter()
                .find_map(|record| match (&record.data, record.name == end) {
                    (RData::CNAME(target), true) => Some(target.0.clone()),
                    _ => None,
                });
        match next {
            Some(next) => end = next,
            None => return Some(end),
        }
    }
    None
}

fn build(servers: &[SocketAddr], settings: &Settings) -> Option<TokioResolver> {
    if servers.is_empty() {
        return None;
    }
    let name_servers = servers
        .iter()
        .map(|server| {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()]
                .into_iter()
                .map(|mut connection| {
                    connection.port = server.port();
                    connection
                })
                .collect();
            // One resolver's word that a name is not there is enough, as it is for every program that uses it.
            NameServerConfig::new(server.ip(), true, connections)
        })
        .collect();
    let mut options = ResolverOpts::default();
    options.timeout = settings.timeout;
    options.attempts = settings.attempts.max(1) - 1;
    options.edns0 = true;
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.preserve_intermediates = true;
    options.try_tcp_on_error = true;
    options.max_active_requests = AT_ONCE;
    let config = ResolverConfig::from_parts(None, Vec::new(), name_servers);
    match Hickory::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
    {
        Ok(resolver) => Some(resolver),
        Err(error) => {
            tracing::error!(%error, "the DNS client cannot be made; claims are not looked up");
            None
        }
    }
}

/// The resolvers that the system uses. Link-local ones are left out: their interface is not in the address.
fn of_system(path: &Path) -> Vec<SocketAddr> {
    const PORT: u16 = 53;
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "the system's resolvers cannot be read");
            return Vec::new();
        }
    };
    let config = match resolv_conf::Config::parse(&text) {
        Ok(config) => config,
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "the system's resolvers cannot be read");
            return Vec::new();
        }
    };
    config
        .nameservers
        .iter()
        .filter_map(|address| match address {
            resolv_conf::ScopedIp::V4(address) => Some(IpAddr::V4(*address)),
            resolv_conf::ScopedIp::V6(address, None) => Some(IpAddr::V6(*address)),
            resolv_conf::ScopedIp::V6(_, Some(_)) => None,
        })
        .map(|address| SocketAddr::new(address, PORT))
        .collect()
}

/// Bytes of a stranger's record as a person may see them: printable ASCII, the rest as `\DDD` as in a zone file (RFC 1035
/// section 5.1), clipped.
fn printable(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (i, byte) in bytes.iter().enumerate() {
        if text.len() >= SHOWN.1 {
            let _ = write!(text, "… ({} bytes more)", bytes.len() - i);
            break;
        }
        match byte {
            b'\\' => text.push_str("\\\\"),
            b' '..=b'~' => text.push(char::from(*byte)),
            _ => {
                let _ = write!(text, "\\{byte:03}");
            }
        }
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn what_a_stranger_wrote_is_shown_clean_and_short() {
        assert_eq!(printable(b"plain text"), "plain text");
        assert_eq!(
            printable(b"\x1b[31mred\x07\n\\\xc3\xa4"),
            "\\027[31mred\\007\\010\\\\\\195\\164"
        );
        let long = printable(&[b'a'; 60_000]);
        assert!(long.ends_with("(59840 bytes more)"), "{long}");
        assert!(long.len() < 200);
        assert!(printable(&[0; 60_000]).len() < 200);
    }

    #[test]
    fn the_system_s_resolvers_are_read_and_a_scoped_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        std::fs::write(
            &path,
            "# comment\nsearch example.com\nnameserver 192.0.2.1\nnameserver 2001:db8::1\nnameserver fe80::1%eth0\noptions ndots:5\n",
        )
        .unwrap();
        assert_eq!(
            of_system(&path),
            [
                "192.0.2.1:53".parse().unwrap(),
                "[2001:db8::1]:53".parse::<SocketAddr>().unwrap()
            ]
        );
        std::fs::write(&path, "nameserver nonsense\n").unwrap();
        assert_eq!(of_system(&path), []);
        assert_eq!(of_system(&folder.path().join("absent")), []);
    }

    #[tokio::test]
    async fn without_a_resolver_every_answer_says_so() {
        let resolver = Resolver::new(&Settings {
            resolvers: Some(Vec::new()),
            ..Settings::default()
        });
        let (matched, answer) = resolver.texts("_chancery.example.com", "x", soon()).await;
        assert!(!matched);
        assert_eq!(answer.outcome, Outcome::NoResolver);
        let (chain, answer) = resolver.aliases("www.example.com", |_| false, soon()).await;
        assert!(chain.is_empty());
        assert_eq!(answer.outcome, Outcome::NoResolver);
    }

    #[tokio::test]
    async fn a_resolver_that_is_silent_or_gone_says_nothing_about_the_zone() {
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        // Its TCP half accepts and says nothing either.
        let tcp = std::net::TcpListener::bind(silent.local_addr().unwrap());
        let gone = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let absent = gone.local_addr().unwrap();
        drop(gone);
        let ask = async |server| {
            let resolver = Resolver::new(&Settings {
                resolvers: Some(vec![server]),
                timeout: Duration::from_millis(200),
                attempts: 1,
            });
            resolver
                .texts("_chancery.example.com", "x", soon())
                .await
                .1
                .outcome
        };
        assert_eq!(ask(silent.local_addr().unwrap()).await, Outcome::Timeout);
        // UDP does not tell that nobody is there.
        let gone = ask(absent).await;
        assert!(matches!(gone, Outcome::Timeout | Outcome::Unreachable));
        assert!(!gone.is_certain());
        drop(tcp);
    }

    #[tokio::test]
    async fn names_beyond_the_dns_are_not_asked_for() {
        let resolver = Resolver::new(&Settings::default());
        let host = format!("_chancery.{}.example", "a23456789.".repeat(24));
        let (_, answer) = resolver
            .texts(host.trim_end_matches('.'), "x", soon())
            .await;
        assert_eq!(answer.outcome, Outcome::NameTooLong);
    }
}
