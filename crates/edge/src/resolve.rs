//! From the name that a client asks for to the certificate it gets.
//!
//! Rows are joined when a name is first used and kept in a bounded cache until one of them changes. Which certificate is
//! active is decided anew for each handshake from the dates that the cached host holds, so the switch happens in the
//! very second in which a certificate ends, with nothing upstream. Opened keys are in a second bounded cache, filled
//! once for each key, away from the threads that serve handshakes.

use std::sync::Arc;
use std::time::Duration;

use http::uri::{Authority, Scheme};
use http::{HeaderValue, Uri};
use quick_cache::sync::{Cache, GuardResult};
use quick_cache::{DefaultHashBuilder, Weighter};
use rustls::ServerConfig;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use tokio::sync::Semaphore;

use lifecycle::names::{CertificateId, Digest, ResourceId, Slug};
use lifecycle::selection::{Candidate, Mode, Policy, rank};

use wire::feed::Key;

use crate::clock::Clock;
use crate::meters::Meters;
use crate::status::{Problem, Status};
use crate::store::{self, Provenance, Store, StoredKey};
use crate::tls::{Offer, Template};

/// What a cached key weighs besides its chain, in bytes: the parsed key, the configuration, the cache's own share.
const KEY_WEIGHT: u64 = 2048;

/// How much the caches may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheBounds {
    /// The most hosts that are kept joined. One takes about half a KiB.
    pub hosts: usize,
    /// The most bytes of chains and opened keys, about 3 KiB a certificate.
    pub key_bytes: u64,
}

impl Default for CacheBounds {
    /// 100,000 hosts and 256 MiB.
    fn default() -> Self {
        Self {
            hosts: 100_000,
            key_bytes: 256 << 20,
        }
    }
}

/// A host, joined from its claim and the candidates of the claim's project.
#[derive(Debug)]
pub(crate) struct Site {
    /// The project whose certificates may be served.
    pub(crate) project: Slug,
    /// The resource that the claim is attached to here.
    pub(crate) resource: Option<ResourceId>,
    /// The HTTPS mode.
    pub(crate) mode: Mode,
    /// In the order in which they are to be served, each with the id of its bundle. Empty with HTTPS off.
    ranked: Box<[(Candidate, Digest)]>,
    provenance: Provenance,
}

impl Site {
    /// The active candidate and its fallbacks at this second.
    fn chain(&self, now: i64) -> impl Iterator<Item = &(Candidate, Digest)> {
        self.ranked
            .iter()
            .filter(move |(candidate, _)| candidate.usable(now))
    }
}

/// A resource, ready to send requests to.
#[derive(Debug)]
pub(crate) struct Target {
    /// Who owns it.
    pub(crate) project: Slug,
    pub(crate) scheme: Scheme,
    pub(crate) authority: Authority,
    /// The Host that the origin sees, unless the client's is kept.
    pub(crate) host: HeaderValue,
    /// What the request's path is appended to, without a final slash.
    pub(crate) base: Box<str>,
    pub(crate) keep_host: bool,
    pub(crate) private_origin: bool,
    pub(crate) served: bool,
    provenance: Provenance,
}

/// A certificate whose key is open.
pub(crate) struct Opened {
    pub(crate) fingerprint: Digest,
    pub(crate) certificate: CertificateId,
    pub(crate) version: u32,
    /// The names of the leaf, in lower case.
    pub(crate) names: Arc<[Box<str>]>,
    /// Serves this certificate.
    pub(crate) config: Arc<ServerConfig>,
    chain_bytes: u64,
}

#[derive(Clone)]
struct ChainBytes;

impl Weighter<Digest, Arc<Opened>> for ChainBytes {
    fn weight(&self, _: &Digest, opened: &Arc<Opened>) -> u64 {
        opened.chain_bytes + KEY_WEIGHT
    }
}

/// Why there is no answer about a name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("the edge is shutting down")]
    Stopping,
}

/// What a host is looked up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ahead {
    /// A handshake: its certificate is needed next.
    Handshake,
    /// A request: nothing but the resource is needed.
    Request,
}

/// How full the caches are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheUse {
    /// Hosts that are kept joined.
    pub hosts: usize,
    /// Opened certificates.
    pub keys: usize,
    /// Their weight in bytes.
    pub key_bytes: u64,
}

pub(crate) struct Resolver {
    store: Arc<Store>,
    status: Arc<Status>,
    meters: Arc<Meters>,
    clock: Clock,
    template: Template,
    sites: Cache<Box<str>, Arc<Site>>,
    targets: Cache<ResourceId, Arc<Target>>,
    keys: Cache<Digest, Arc<Opened>, ChainBytes>,
    /// Bounds how many look-ups in the store run at once, so that a flood of unknown names leaves threads for the rest.
    lookups: Arc<Semaphore>,
}

impl Resolver {
    pub(crate) fn new(
        store: Arc<Store>,
        status: Arc<Status>,
        meters: Arc<Meters>,
        clock: Clock,
        bounds: CacheBounds,
    ) -> Result<Self, rustls::Error> {
        let lookups = std::thread::available_parallelism().map_or(2, |n| n.get().max(2));
        let expected_keys = usize::try_from(bounds.key_bytes / (KEY_WEIGHT + 1024))
            .unwrap_or(usize::MAX)
            .max(1);
        Ok(Self {
            store,
            status,
            meters,
            clock,
            template: Template::new()?,
            sites: Cache::new(bounds.hosts.max(1)),
            targets: Cache::new(bounds.hosts.max(1)),
            keys: Cache::with(
                expected_keys,
                bounds.key_bytes.max(KEY_WEIGHT + 1024),
                ChainBytes,
                DefaultHashBuilder::default(),
                quick_cache::sync::DefaultLifecycle::default(),
            ),
            lookups: Arc::new(Semaphore::new(lookups)),
        })
    }

    pub(crate) fn usage(&self) -> CacheUse {
        CacheUse {
            hosts: self.sites.len(),
            keys: self.keys.len(),
            key_bytes: self.keys.weight(),
        }
    }

    /// The bundles of all opened keys, by their ids.
    pub(crate) fn open_keys(&self) -> Vec<Digest> {
        self.keys.iter().map(|(leaf, _)| leaf).collect()
    }

    /// Drops opened keys. A key that is being opened right now is not kept either.
    pub(crate) fn forget(&self, leaves: &[Digest]) {
        for leaf in leaves {
            self.keys.remove(leaf);
        }
    }

    /// The host with this name: its own claim, else the wildcard claim one level above. None when nobody has claimed it.
    ///
    /// `host` is in lower case and without the final dot. What is unknown is not kept, so that asking for names that do not
    /// exist displaces none that do.
    pub(crate) async fn site(
        self: &Arc<Self>,
        host: &str,
        ahead: Ahead,
    ) -> Result<Option<Arc<Site>>, Error> {
        loop {
            let guard = match self.sites.get(host) {
                Some(site) if self.store.holds(&site.provenance) => return Ok(Some(site)),
                Some(stale) => {
                    self.sites.remove_if(host, |site| Arc::ptr_eq(site, &stale));
                    continue;
                }
                None => match self
                    .sites
                    .get_value_or_guard_async(&Box::<str>::from(host))
                    .await
                {
                    Ok(_) => continue,
                    Err(guard) => guard,
                },
            };
            let name = host.to_owned();
            let find = move |this: &Self| this.find_site(&name, ahead);
            let Some(site) = self.look_up(find).await? else {
                return Ok(None);
            };
            let site = Arc::new(site);
            // Not kept when it was removed meanwhile; what was read is still good for this one client.
            let _ = guard.insert(site.clone());
            return Ok(Some(site));
        }
    }

    /// The resource with this id. None when it is not in the feed, or when its origin cannot be read.
    pub(crate) async fn target(
        self: &Arc<Self>,
        id: ResourceId,
    ) -> Result<Option<Arc<Target>>, Error> {
        loop {
            let guard = match self.targets.get(&id) {
                Some(target) if self.store.holds(&target.provenance) => return Ok(Some(target)),
                Some(stale) => {
                    self.targets
                        .remove_if(&id, |target| Arc::ptr_eq(target, &stale));
                    continue;
                }
                None => match self.targets.get_value_or_guard_async(&id).await {
                    Ok(_) => continue,
                    Err(guard) => guard,
                },
            };
            let Some(target) = self
                .look_up(move |this| join_target(&this.store, id))
                .await?
            else {
                return Ok(None);
            };
            let target = Arc::new(target);
            let _ = guard.insert(target.clone());
            return Ok(Some(target));
        }
    }

    /// The certificate to serve for a host to a client that can check these kinds of keys, now. None when there is none.
    pub(crate) async fn certificate(
        self: &Arc<Self>,
        site: &Site,
        offer: Offer,
    ) -> Result<Option<Arc<Opened>>, Error> {
        if site.resource.is_none() || site.mode == Mode::Off {
            return Ok(None);
        }
        let now = self.clock.now();
        let mut usable: Vec<_> = site.chain(now.floored).collect();
        if usable.is_empty() && now.own < now.floored {
            usable = site.chain(now.own).collect();
            if !usable.is_empty() {
                self.status.problem(
                    Problem::Clock,
                    format!(
                        "the last signed entry is {} s ahead of this edge's clock and would leave hosts without a certificate; \
                         the edge's own clock decides for these",
                        now.floored - now.own
                    ),
                );
            }
        }
        // What the client can check comes first. When it can check none, the first is offered, so that the handshake ends
        // with the alert that tells the client what is wrong.
        let fitting = usable
            .iter()
            .filter(|(candidate, _)| offer.fits(candidate.key));
        let others = usable
            .iter()
            .filter(|(candidate, _)| !offer.fits(candidate.key));
        let first = site.ranked.first().map(|(_, bundle)| *bundle);
        for (_, bundle) in fitting.chain(others) {
            if let Some(opened) = self.opened(*bundle).await? {
                if first != Some(*bundle) {
                    self.meters.fallbacks.increment(1);
                }
                return Ok(Some(opened));
            }
        }
        Ok(None)
    }

    async fn opened(self: &Arc<Self>, bundle: Digest) -> Result<Option<Arc<Opened>>, Error> {
        let guard = match self.keys.get(&bundle) {
            Some(opened) => return Ok(Some(opened)),
            None => match self.keys.get_value_or_guard_async(&bundle).await {
                Ok(opened) => return Ok(Some(opened)),
                Err(guard) => guard,
            },
        };
        let Some(opened) = self.look_up(move |this| this.open(bundle)).await? else {
            return Ok(None);
        };
        let _ = guard.insert(opened.clone());
        Ok(Some(opened))
    }

    /// Joins a site and, for a handshake, opens the certificate that most clients will get: one turn on another thread for
    /// both. Blocks.
    fn find_site(&self, host: &str, ahead: Ahead) -> Result<Option<Site>, store::Error> {
        let site = join_site(&self.store, host)?;
        if ahead == Ahead::Handshake
            && let Some(bundle) = site
                .as_ref()
                .and_then(|site| site.chain(self.clock.now().floored).next())
        {
            let bundle = bundle.1;
            if let GuardResult::Guard(guard) =
                self.keys.get_value_or_guard(&bundle, Some(Duration::ZERO))
                && let Some(opened) = self.open(bundle)?
            {
                let _ = guard.insert(opened);
            }
        }
        Ok(site)
    }

    /// Opens a certificate. None, and a problem, when it cannot be opened. Blocks.
    fn open(&self, bundle: Digest) -> Result<Option<Arc<Opened>>, store::Error> {
        let (certificate, version, certified) = match open_bundle(&self.store, bundle)? {
            Ok(found) => found,
            Err(words) => {
                self.status.problem(Problem::Key, words);
                return Ok(None);
            }
        };
        self.meters.keys_opened.increment(1);
        let names = names_of(&certified);
        let chain_bytes = certified.cert.iter().map(|der| der.len() as u64 + 64).sum();
        let leaf = certified
            .cert
            .first()
            .map_or(bundle, |der| store::fingerprint(der));
        let config = self.template.with(leaf, Arc::new(certified));
        Ok(Some(Arc::new(Opened {
            fingerprint: leaf,
            certificate,
            version,
            names,
            config,
            chain_bytes,
        })))
    }

    async fn look_up<T: Send + 'static>(
        self: &Arc<Self>,
        find: impl FnOnce(&Self) -> Result<T, store::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let permit = self
            .lookups
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| Error::Stopping)?;
        let this = self.clone();
        let found = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            find(&this)
        });
        match found.await {
            Ok(found) => found.map_err(|error| {
                self.status
                    .problem(Problem::Store, store::Chain(&error).to_string());
                error.into()
            }),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(Error::Stopping),
        }
    }
}

fn join_site(store: &Store, host: &str) -> Result<Option<Site>, store::Error> {
    let wildcard = host
        .split_once('.')
        .map(|(_, parent)| format!("*.{parent}"));
    let (joined, provenance) = store.read(|rows| {
        let claim = match rows.claim(host)? {
            Some(claim) => Some(claim),
            None => match &wildcard {
                Some(wildcard) => rows.claim(wildcard)?,
                None => None,
            },
        };
        let Some(claim) = claim else { return Ok(None) };
        let mut candidates = Vec::new();
        let resource = match claim.resource {
            Some(id) => rows.resource(id)?,
            None => None,
        };
        // Of a suspended project nothing is active, here as in every view.
        if resource.as_ref().is_some_and(|resource| !resource.served) {
            return Ok(Some((claim, candidates)));
        }
        for name in [Some(host), wildcard.as_deref()].into_iter().flatten() {
            if let Some(names) = rows.names(&claim.project, name)? {
                candidates.extend(names.candidates);
            }
        }
        if resource.is_some_and(|resource| resource.demand_public) {
            candidates.retain(|candidate| candidate.public);
        }
        Ok(Some((claim, candidates)))
    })?;
    Ok(joined.map(
        |(claim, mut candidates): (wire::feed::Claim, Vec<Candidate>)| {
            // A certificate that has both names is one candidate, and an exact one.
            candidates.sort_by_key(|candidate| {
                (
                    candidate.fingerprint,
                    candidate.certificate,
                    candidate.version,
                    !candidate.exact,
                )
            });
            candidates.dedup_by_key(|candidate| {
                (
                    candidate.fingerprint,
                    candidate.certificate,
                    candidate.version,
                )
            });
            rank(Policy::default(), claim.mode, &mut candidates);
            // Each project has a bundle of its own, also of a certificate that another one holds too.
            let bundle = |candidate: &Candidate| {
                Key::bundle(claim.project.as_str(), &candidate.fingerprint).id
            };
            let ranked = candidates
                .into_iter()
                .map(|candidate| {
                    let id = bundle(&candidate);
                    (candidate, id)
                })
                .collect();
            Site {
                project: claim.project,
                resource: claim.resource,
                mode: claim.mode,
                ranked,
                provenance,
            }
        },
    ))
}

fn join_target(store: &Store, id: ResourceId) -> Result<Option<Target>, store::Error> {
    let (row, provenance) = store.read(|rows| rows.resource(id))?;
    let Some(row) = row else { return Ok(None) };
    let Some((scheme, authority, base)) = row.origin.parse::<Uri>().ok().and_then(|uri| {
        let scheme = uri
            .scheme()
            .filter(|scheme| **scheme == Scheme::HTTP || **scheme == Scheme::HTTPS)?
            .clone();
        let authority = uri
            .authority()
            .filter(|authority| !authority.as_str().contains('@'))?
            .clone();
        Some((scheme, authority, uri.path().trim_end_matches('/').into()))
    }) else {
        tracing::warn!(resource = %id, "the origin of a resource cannot be read; it is not served");
        return Ok(None);
    };
    let Ok(host) = HeaderValue::from_str(authority.as_str()) else {
        return Ok(None);
    };
    Ok(Some(Target {
        project: row.project,
        scheme,
        authority,
        host,
        base,
        keep_host: row.keep_host,
        private_origin: row.private_origin,
        served: row.served,
        provenance,
    }))
}

type Found = (CertificateId, u32, CertifiedKey);

/// The inner error says in words what is wrong with this one bundle.
fn open_bundle(store: &Store, id: Digest) -> Result<Result<Found, &'static str>, store::Error> {
    let (bundle, _) = match store.read(|rows| rows.bundle(id)) {
        Err(store::Error::Malformed) => {
            return Ok(Err(
                "a certificate in the store cannot be read and is passed over",
            ));
        }
        found => found?,
    };
    let Some(bundle) = bundle else {
        return Ok(Err(
            "a certificate that should be served is not in the store and is passed over",
        ));
    };
    let custody = store.custody();
    let key = match &bundle.key {
        StoredKey::Local(sealed) => custody.signing_key(&bundle.project, &bundle.spki, sealed),
        StoredKey::Region(version, sealed) => custody
            .open_region(&bundle.project, &bundle.spki, *version, sealed)
            .map(|key| key.signing_key()),
    };
    let Some(key) = key else {
        return Ok(Err(
            "the key of a certificate does not open with any key that this edge holds; it is passed over",
        ));
    };
    let chain = bundle.chain.into_iter().map(CertificateDer::from).collect();
    let certified = CertifiedKey::new(chain, key);
    if certified.keys_match().is_err() {
        return Ok(Err(
            "the key of a certificate does not belong to it; it is passed over",
        ));
    }
    Ok(Ok((bundle.certificate, bundle.version, certified)))
}

fn names_of(certified: &CertifiedKey) -> Arc<[Box<str>]> {
    let Some(leaf) = certified
        .cert
        .first()
        .and_then(|leaf| webpki::EndEntityCert::try_from(leaf).ok())
    else {
        return Arc::default();
    };
    leaf.valid_dns_names()
        .map(|name| name.to_ascii_lowercase().into())
        .collect()
}
