//! One look: asks for each certificate of a path, and says what came of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use data_encoding::BASE64;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use url::Url;
use x509_parser::parse_x509_certificate;

use lifecycle::rejection::{Code, Reason};
use wire::envelope::rfc3339;

use super::answer::{Said, Unclear, reason_name};
use super::crl::{self, Crl};
use super::fetch::{Ask, Error, Fetcher};
use super::ocsp;
use super::path::{Job, Link};
use super::points::Point;
use super::{Settings, now};

/// MiB of a CRL at most: of one that a CA below a public root names, and of one that anybody may have named.
const CRL_MAX: (u32, u32) = (32, 8);
/// MiB of CRLs that are on their way at once at most, of the same two kinds.
const ON_THEIR_WAY: (usize, usize) = (128, 64);
/// Bytes of CRLs that are kept.
const KEPT: u64 = 128 * 1024 * 1024;
/// CRLs that are kept at most when they are small.
const KEPT_COUNT: usize = 4_096;
/// A CRL is fetched anew after this part of the time between two looks, however long it holds: CAs publish them more often.
const ANEW: u32 = 4;
/// How long a CRL that could not be had, or is out of date, is not fetched again.
const NOT_AGAIN: Duration = Duration::from_secs(60);
/// How long one certificate may take, whatever it names.
const PATIENCE: Duration = Duration::from_secs(60);
/// A question is asked by GET, which caches understand, while its address has no more bytes than this (RFC 5019, 5).
const GET_MAX: usize = 255;
/// Characters of an address that are shown.
const SHOWN: usize = 200;

/// What came of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Its CA says that it is not revoked.
    Good,
    /// Its CA revoked it.
    Revoked,
    /// An answer came and says nothing that can be believed, or none was asked for yet.
    Unknown,
    /// Nobody answered, or nobody may be asked.
    Unreachable,
    /// It names no address.
    None,
}

impl Status {
    /// As people and metrics see it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Revoked => "revoked",
            Self::Unknown => "unknown",
            Self::Unreachable => "unreachable",
            Self::None => "none",
        }
    }
}

/// What a look found; kept in `checks.redb` as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// `revoked` when any certificate of the chain that is needed is; else that of the server's own.
    pub status: Status,
    /// Who said so.
    pub source: Option<String>,
    /// Each certificate that names an address.
    pub parts: Vec<Part>,
}

/// What a look found of one certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its place in the chain, from 1, the server's own.
    pub place: usize,
    /// What came of it.
    pub status: Status,
    /// The address that decided it.
    pub source: Option<String>,
    /// Revoked: whose word it is, `OCSP responder` or `CRL`, since when and why. Else: what went wrong.
    pub message: String,
    /// Whether clients need it.
    pub needed: bool,
    /// The CA's reason, if it gave one.
    pub reason: Option<String>,
}

impl Look {
    /// The reasons for taking the version of this certificate out; none unless it was revoked.
    #[must_use]
    pub fn reasons(&self, name: &str) -> Vec<Reason> {
        let revoked = self
            .parts
            .iter()
            .filter(|part| part.status == Status::Revoked && part.needed);
        revoked
            .map(|part| {
                let replace =
                    format!("chancery certificate replace {name} --chain chain.pem --key key.pem");
                let hint = match (part.place, part.reason.as_deref()) {
                    (1, Some("certificateHold")) => format!(
                        "The CA has only suspended it, but it stays revoked here also when that ends: then add it again. Until then replace it by another: {replace}"
                    ),
                    (1, Some("superseded" | "cessationOfOperation" | "affiliationChanged")) => {
                        format!("Replace it by the certificate that came after it, or have one issued: {replace}")
                    }
                    (1, _) => format!(
                        "Find out from whoever manages it at the CA why, make a new key, have a certificate issued for it, then: {replace}"
                    ),
                    _ => format!(
                        "Have the CA issue a certificate below a CA that is not revoked, or send a chain without it, then: {replace}"
                    ),
                };
                Reason::new(Code::Revoked, part.message.clone(), hint)
            })
            .collect()
    }

    /// What an operator should know and need not act on at once.
    #[must_use]
    pub fn warnings(&self) -> Vec<Value> {
        let warning = |part: &Part| {
            let (warning, hint) = match part.status {
                Status::Good | Status::None => return None,
                Status::Revoked if part.needed => return None,
                Status::Revoked => (
                    "revoked_in_chain",
                    "Clients reach a public root without it: leave it out of the chain at the next replacement.",
                ),
                Status::Unreachable => (
                    "revocation_unreachable",
                    "It is served all the same and looked up again within a day. If this stays, the operator should look at the way out: control.revocation.",
                ),
                Status::Unknown => (
                    "revocation_unknown",
                    "It is served all the same and looked up again within a day. If this stays, tell the CA.",
                ),
            };
            Some(json!({"warning": warning, "message": part.message, "hint": hint}))
        };
        self.parts.iter().filter_map(warning).collect()
    }
}

/// Why a CRL cannot be asked.
#[derive(Clone, Debug)]
enum Missing {
    Fetch(Error),
    Unclear(Unclear),
}

impl Missing {
    fn text(&self) -> String {
        match self {
            Self::Fetch(error) => error.to_string(),
            Self::Unclear(unclear) => unclear.to_string(),
        }
    }
}

#[derive(Clone)]
struct Kept {
    until: Instant,
    crl: Result<Arc<Crl>, Missing>,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<(bool, Url), Kept> for ByBytes {
    fn weight(&self, key: &(bool, Url), kept: &Kept) -> u64 {
        let crl = kept.crl.as_ref().map_or(0, |crl| crl.weight());
        crl + key.1.as_str().len() as u64 + 256
    }
}

/// Looks.
pub(super) struct Looker {
    fetcher: Fetcher,
    crls: Cache<(bool, Url), Kept, ByBytes>,
    on_their_way: (Semaphore, Semaphore),
    anew: Duration,
}

impl Looker {
    pub(super) fn new(settings: &Settings) -> Self {
        // One shard: a list may need a quarter of the whole.
        let options = OptionsBuilder::new()
            .shards(1)
            .estimated_items_capacity(KEPT_COUNT)
            .weight_capacity(KEPT)
            .build()
            .expect("both capacities are given");
        Self {
            fetcher: Fetcher::new(
                settings.proxy.clone(),
                settings.allow.clone(),
                settings.every,
            ),
            crls: Cache::with_options(
                options,
                ByBytes,
                DefaultHashBuilder::default(),
                DefaultLifecycle::default(),
            ),
            on_their_way: (
                Semaphore::new(ON_THEIR_WAY.0),
                Semaphore::new(ON_THEIR_WAY.1),
            ),
            anew: settings.every / ANEW,
        }
    }

    /// Looks up each certificate of the path that points anywhere.
    pub(super) async fn look(&self, job: &Job) -> Look {
        let mut parts = Vec::new();
        for link in &job.links {
            let mut part = match tokio::time::timeout(PATIENCE, self.part(link, job.public)).await {
                Ok(part) => part,
                Err(_) => part(
                    link,
                    Status::Unreachable,
                    None,
                    format!("{}: nobody answered in time.", could_not(link)),
                ),
            };
            if part.status == Status::Revoked {
                part.needed = job.needs(link.place);
            }
            parts.push(part);
        }
        let decides = parts
            .iter()
            .find(|part| part.status == Status::Revoked && part.needed)
            .or_else(|| parts.iter().find(|part| part.place == 1));
        Look {
            status: decides.map_or(Status::None, |part| part.status),
            source: decides.and_then(|part| part.source.clone()),
            parts,
        }
    }

    async fn part(&self, link: &Arc<Link>, public: bool) -> Part {
        let points = &link.points;
        if points.ocsp.is_empty() && points.crl.is_empty() {
            let why = "it names only addresses that are not asked; plain HTTP is";
            return part(
                link,
                Status::Unknown,
                None,
                format!("{}: {why}.", could_not(link)),
            );
        }
        let Some(issuer) = &link.issuer else {
            let why = "the certificate of its issuer is not known here, and without it no answer can be believed";
            return part(
                link,
                Status::Unknown,
                None,
                format!("{}: {why}.", could_not(link)),
            );
        };
        let ocsp = || points.ocsp.iter().map(Way::Ocsp);
        let crls = || {
            points
                .crl
                .iter()
                .flat_map(|point| point.urls.iter().map(move |url| Way::Crl(point, url)))
        };
        let ways: Vec<Way<'_>> = if link.is_ca {
            crls().chain(ocsp()).collect()
        } else {
            ocsp().chain(crls()).collect()
        };
        let (mut tried, mut status, mut source) = (Vec::new(), Status::Unreachable, None);
        for way in ways {
            let (url, kind) = match way {
                Way::Ocsp(url) => (url, "OCSP responder"),
                Way::Crl(_, url) => (url, "CRL"),
            };
            let asked = match way {
                Way::Ocsp(url) => self.ocsp(link, issuer, url).await,
                Way::Crl(point, url) => self.crl(link, issuer, point, url, public).await,
            };
            match asked {
                Ok(Said::Good) => {
                    return part(link, Status::Good, Some(url), String::new());
                }
                Ok(Said::Revoked { since, reason }) => {
                    let mut found = part(link, Status::Revoked, Some(url), String::new());
                    found.reason = reason.and_then(reason_name).map(str::to_owned);
                    let what = match link.place {
                        1 => "The CA revoked the certificate".to_owned(),
                        place => format!(
                            "Certificate {place} of the chain, which is above the server's, was revoked by its CA"
                        ),
                    };
                    let why = match &found.reason {
                        Some(reason) => format!("with the reason {reason}"),
                        None => "without a reason".to_owned(),
                    };
                    found.message = format!(
                        "{what} at {}, {why}; its {kind} {} says so.",
                        rfc3339(since),
                        shown(url)
                    );
                    return found;
                }
                Err(missing) => {
                    if matches!(
                        missing,
                        Missing::Unclear(_) | Missing::Fetch(Error::Status(_))
                    ) {
                        status = Status::Unknown;
                    }
                    source = Some(url);
                    tried.push(format!("{} {}", shown(url), missing.text()));
                }
            }
        }
        let why = tried.join(", and ");
        part(link, status, source, format!("{}: {why}.", could_not(link)))
    }

    async fn ocsp(
        &self,
        link: &Link,
        issuer: &CertificateDer<'static>,
        url: &Url,
    ) -> Result<Said, Missing> {
        let parsed = parse_x509_certificate(issuer);
        let Ok((_, issuer)) = &parsed else {
            return Err(Missing::Unclear("cannot be checked".into()));
        };
        let asked = ocsp::Asked {
            serial: &link.serial,
            issuer,
        };
        let request = ocsp::request(asked);
        fn ask<'a>(url: &'a Url, body: Option<(&'static str, Bytes)>) -> Ask<'a> {
            Ask {
                url,
                accept: "application/ocsp-response",
                body,
                limit: ocsp::ANSWER_MAX,
            }
        }
        let read = |answer: Bytes| ocsp::read(&answer, asked, now()).map_err(Missing::Unclear);
        if let Some(url) = by_get(url, &request) {
            match self.fetcher.get(ask(&url, None)).await {
                Ok(answer) => {
                    if let Ok(said) = read(answer) {
                        return Ok(said);
                    }
                }
                // It is there, but takes no such question; or a cache before it answers with what is out of date.
                Err(Error::Status(_)) => {}
                Err(error) => return Err(Missing::Fetch(error)),
            }
        }
        let body = Some(("application/ocsp-request", Bytes::from(request.clone())));
        read(
            self.fetcher
                .get(ask(url, body))
                .await
                .map_err(Missing::Fetch)?,
        )
    }

    async fn crl(
        &self,
        link: &Arc<Link>,
        issuer: &CertificateDer<'static>,
        point: &Point,
        url: &Url,
        public: bool,
    ) -> Result<Said, Missing> {
        let crl = self.kept(url, public).await?;
        let (link, issuer, point) = (Arc::clone(link), issuer.clone(), point.clone());
        // The signature over a long list is work.
        let asked = tokio::task::spawn_blocking(move || {
            let (_, issuer) = parse_x509_certificate(&issuer).map_err(|_| "cannot be checked")?;
            let asked = crl::Asked {
                serial: &link.serial,
                is_ca: link.is_ca,
                issuer: &issuer,
                point: &point,
            };
            crl.ask(asked, now())
        });
        match asked.await {
            Ok(asked) => asked.map_err(Missing::Unclear),
            Err(_) => Err(Missing::Unclear("cannot be checked".into())),
        }
    }

    /// A list, fetched once for everybody who asks for it.
    async fn kept(&self, url: &Url, public: bool) -> Result<Arc<Crl>, Missing> {
        let key = (public, url.clone());
        self.crls
            .remove_if(&key, |kept| kept.until <= Instant::now());
        match self.crls.get_value_or_guard_async(&key).await {
            Ok(kept) => kept.crl,
            Err(place) => {
                let crl = self.fetch(url, public).await;
                let holds = crl.as_ref().ok().map(|crl| {
                    let left = crl.next_update().saturating_sub(now());
                    Duration::from_secs(u64::try_from(left).unwrap_or(0))
                });
                let keep = holds.unwrap_or_default().max(NOT_AGAIN).min(self.anew);
                let kept = Kept {
                    until: Instant::now() + keep,
                    crl,
                };
                let _ = place.insert(kept.clone());
                kept.crl
            }
        }
    }

    async fn fetch(&self, url: &Url, public: bool) -> Result<Arc<Crl>, Missing> {
        let (size, room) = if public {
            (CRL_MAX.0, &self.on_their_way.0)
        } else {
            (CRL_MAX.1, &self.on_their_way.1)
        };
        let _room = room.acquire_many(size).await;
        let ask = Ask {
            url,
            accept: "application/pkix-crl",
            body: None,
            limit: size as usize * 1024 * 1024,
        };
        let bytes = self.fetcher.get(ask).await.map_err(Missing::Fetch)?;
        let read = tokio::task::spawn_blocking(move || Crl::read(bytes));
        match read.await {
            Ok(read) => read.map(Arc::new).map_err(Missing::Unclear),
            Err(_) => Err(Missing::Unclear("cannot be read".into())),
        }
    }
}

#[derive(Clone, Copy)]
enum Way<'a> {
    Ocsp(&'a Url),
    Crl(&'a Point, &'a Url),
}

fn part(link: &Link, status: Status, source: Option<&Url>, message: String) -> Part {
    Part {
        place: link.place,
        status,
        source: source.map(shown),
        message,
        needed: true,
        reason: None,
    }
}

fn could_not(link: &Link) -> String {
    match link.place {
        1 => "Whether the certificate was revoked could not be looked up".to_owned(),
        place => {
            format!("Whether certificate {place} of the chain was revoked could not be looked up")
        }
    }
}

/// An address as it is shown: a URL has no characters but ASCII, and it may be long.
fn shown(url: &Url) -> String {
    match url.as_str().char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &url.as_str()[..end]),
        None => url.as_str().to_owned(),
    }
}

/// The question as an address, where it is short enough (RFC 6960, A.1).
fn by_get(url: &Url, request: &[u8]) -> Option<Url> {
    let question: String = BASE64
        .encode(request)
        .chars()
        .map(|character| match character {
            '+' => "%2B".to_owned(),
            '/' => "%2F".to_owned(),
            '=' => "%3D".to_owned(),
            character => character.to_string(),
        })
        .collect();
    let whole = format!("{}/{question}", url.as_str().trim_end_matches('/'));
    (url.query().is_none() && whole.len() <= GET_MAX)
        .then(|| Url::parse(&whole).ok())
        .flatten()
}
