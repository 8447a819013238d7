//! The configuration file of `chancery serve --config` and `chancery up --config`, TOML.
//!
//! What a role does not need may be absent; an unknown name is an error, so that a typing mistake never passes for a
//! default. The samples in `deploy/config` are parsed by the tests.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum;
use serde::Deserialize;

use lifecycle::names::Slug;

use crate::telemetry::Format;

/// Largest file that is read, bytes.
const SIZE_MAX: u64 = 1024 * 1024;

/// What one process may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The NATS server, as a child process
    Nats,
    /// Ingestion, registrar, vault, verifier, clock, distribution and the views, with the ledger
    Control,
    /// The TLS edges
    Edge,
}

impl Role {
    /// All of them: what a process is unless told.
    pub const ALL: [Self; 3] = [Self::Nats, Self::Control, Self::Edge];
}

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The folder of everything that is kept. One process holds it at a time.
    pub state: PathBuf,
    /// What this process is; all three unless told.
    #[serde(default = "all_roles")]
    pub roles: Vec<Role>,
    /// The NATS server: where it listens, or where it is.
    #[serde(default)]
    pub nats: Nats,
    /// The control plane.
    #[serde(default)]
    pub control: Control,
    /// The edges of this process.
    #[serde(default, rename = "edge")]
    pub edges: Vec<Edge>,
    /// Metrics in the Prometheus text format; none unless told.
    #[serde(default)]
    pub metrics: Option<Metrics>,
    /// Logs.
    #[serde(default)]
    pub log: Log,
}

/// `[nats]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nats {
    /// Role `nats`: where it listens for clients; a free port of 127.0.0.1 that stays the same in this state unless told.
    #[serde(default)]
    pub listen: Option<SocketAddr>,
    /// Role `nats`: the executable; `CHANCERY_NATS_SERVER` or the one in PATH unless told.
    #[serde(default)]
    pub executable: Option<PathBuf>,
    /// Without role `nats`: the URL of the server.
    #[serde(default)]
    pub url: Option<String>,
}

/// `[control]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// Provider domains are `<name>--<project>.<region>.<this>`. Fixed by the first start.
    pub platform_domain: String,
    /// The file with the root key, 32 bytes, made at the first start; `root.key` in the state folder unless told. Keep
    /// a copy elsewhere: without it no customer key can be opened.
    pub root_key: Option<PathBuf>,
    /// Where the control plane writes its operator's credentials; `operator.creds` in the state folder unless told.
    pub operator_creds: Option<PathBuf>,
    /// PEM files with CAs that are trusted beside the public roots.
    pub trusted_roots: Vec<PathBuf>,
    /// Users' commands of one project a second, in the long run.
    pub commands_per_second: u32,
    /// Users' commands of one project at once.
    pub command_burst: u32,
    /// Regions that are created at the start if they are not there.
    pub regions: Vec<Slug>,
    /// The least generation of the regions' feeds. `chancery restore` raises the one in the state folder by itself; this is for
    /// a state folder that was copied back: raised, it makes edges take a whole snapshot.
    pub generation: u64,
    /// For rehearsals: how long each verification takes at least, milliseconds.
    pub verify_delay_ms: u64,
    /// Where and how revocation is looked up.
    pub revocation: Revocation,
    /// How long a project that holds a host is served after another one proved it afresh, seconds; a week unless told.
    pub claim_grace_seconds: u64,
    /// Whom the DNS is asked of when customers prove their domains.
    pub dns: Dns,
}

/// `[control.dns]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dns {
    /// Recursive resolvers, at most eight; those of /etc/resolv.conf as it is at the start unless told.
    pub resolvers: Option<Vec<SocketAddr>>,
    /// How long one try may take, milliseconds.
    pub timeout_ms: u64,
    /// Tries of one question.
    pub attempts: usize,
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            resolvers: None,
            timeout_ms: 3_000,
            attempts: 2,
        }
    }
}

impl Default for Control {
    fn default() -> Self {
        Self {
            platform_domain: "chancery.localhost".to_owned(),
            root_key: None,
            operator_creds: None,
            trusted_roots: Vec::new(),
            commands_per_second: 50,
            command_burst: 1_000,
            regions: Vec::new(),
            generation: 1,
            verify_delay_ms: 0,
            revocation: Revocation::default(),
            claim_grace_seconds: 7 * 86_400,
            dns: Dns::default(),
        }
    }
}

/// `[control.revocation]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Revocation {
    /// Whether OCSP responders and CRLs are asked whether certificates were revoked.
    pub enabled: bool,
    /// The proxy by which they are asked, `http://host:port`; directly unless told.
    pub proxy: Option<String>,
    /// What may be asked although it is not public: addresses, networks such as `10.0.0.0/8`, host names; any port of it.
    /// Whoever uploads a certificate chooses what is asked, so allow only what every tenant may reach.
    pub allow: Vec<String>,
    /// How often each certificate is looked up, hours.
    pub every_hours: u32,
    /// For rehearsals: how often, in seconds, instead.
    pub every_seconds: Option<u32>,
}

impl Default for Revocation {
    fn default() -> Self {
        Self {
            enabled: true,
            proxy: None,
            allow: Vec::new(),
            every_hours: 24,
            every_seconds: None,
        }
    }
}

impl Revocation {
    /// As the control plane takes it.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn settings(&self) -> anyhow::Result<control::revocation::Settings> {
        let proxy = self.proxy.as_ref().map(|text| text.parse()).transpose();
        let allow = self
            .allow
            .iter()
            .map(|text| {
                text.parse()
                    .with_context(|| format!("control.revocation.allow: {text}"))
            })
            .collect::<anyhow::Result<_>>()?;
        let every = match self.every_seconds {
            Some(seconds) => u64::from(seconds),
            None => u64::from(self.every_hours) * 3_600,
        };
        ensure!(
            every > 0,
            "control.revocation.every_hours must be at least 1"
        );
        Ok(control::revocation::Settings {
            enabled: self.enabled,
            proxy: proxy.context("control.revocation.proxy")?,
            allow,
            every: std::time::Duration::from_secs(every),
        })
    }
}

/// `[[edge]]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edge {
    /// The region.
    pub region: Slug,
    /// The edge's name in its region.
    pub name: Slug,
    /// Where it listens for HTTPS.
    pub https: SocketAddr,
    /// Where it listens for plain HTTP; nowhere unless told.
    #[serde(default)]
    pub http: Option<SocketAddr>,
    /// The file with the token of `chancery edge enrol`, needed once. Not where role `control` is in the same process.
    #[serde(default)]
    pub token: Option<PathBuf>,
    /// Bytes of chains and opened keys that are kept in memory at most, about 3 KiB a certificate; 256 MiB unless told.
    #[serde(default = "cache_bytes")]
    pub cache_bytes: u64,
}

/// `[metrics]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Where `/metrics` is.
    pub listen: SocketAddr,
}

/// `[log]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// `auto`, `human` or `json`; the flag and `CHANCERY_LOG_FORMAT` go before it.
    #[serde(default)]
    pub format: Option<Format>,
}

fn all_roles() -> Vec<Role> {
    Role::ALL.to_vec()
}

/// Bytes of chains and opened keys that an edge keeps unless told.
pub fn cache_bytes() -> u64 {
    edge::CacheBounds::default().key_bytes
}

impl Config {
    /// Reads a file. Relative paths in it are below the file's folder.
    ///
    /// # Errors
    /// When it cannot be read, is not of this form, or contradicts itself.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let size = std::fs::metadata(path)
            .with_context(|| format!("reading {}", path.display()))?
            .len();
        ensure!(
            size <= SIZE_MAX,
            "{} has more than {SIZE_MAX} bytes",
            path.display()
        );
        let text =
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let mut config =
            Self::parse(&text).with_context(|| format!("reading {}", path.display()))?;
        if let Some(folder) = path.parent() {
            for path in config.paths() {
                *path = folder.join(&*path);
            }
        }
        Ok(config)
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    /// Whether this process is that too.
    pub fn is(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Checks what belongs together.
    ///
    /// # Errors
    /// What contradicts what.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(
            !self.roles.is_empty(),
            "roles is empty: this process would be nothing"
        );
        if self.is(Role::Nats) {
            ensure!(
                self.nats.url.is_none(),
                "nats.url is for processes that are not nats themselves; use nats.listen"
            );
        } else {
            ensure!(
                self.nats.url.is_some(),
                "nats.url is missing: this process is not nats itself"
            );
            ensure!(
                self.nats.listen.is_none() && self.nats.executable.is_none(),
                "nats.listen and nats.executable are for the process with the role nats"
            );
        }
        if self.is(Role::Edge) {
            ensure!(
                !self.edges.is_empty(),
                "the role edge needs at least one [[edge]]"
            );
        }
        ensure!(
            self.control.commands_per_second > 0,
            "control.commands_per_second must be at least 1"
        );
        ensure!(
            self.control.command_burst > 0,
            "control.command_burst must be at least 1"
        );
        self.control.revocation.settings()?;
        let dns = &self.control.dns;
        ensure!(
            (100..=30_000).contains(&dns.timeout_ms) && (1..=5).contains(&dns.attempts),
            "control.dns.timeout_ms must be 100 to 30000, and control.dns.attempts 1 to 5"
        );
        for (i, edge) in self.edges.iter().enumerate() {
            for other in &self.edges[..i] {
                if (&edge.region, &edge.name) == (&other.region, &other.name) {
                    bail!("the edge {} of {} is there twice", edge.name, edge.region);
                }
            }
        }
        let mut addresses: Vec<_> = self
            .edges
            .iter()
            .flat_map(|e| [Some(e.https), e.http])
            .chain([self.nats.listen, self.metrics.as_ref().map(|m| m.listen)])
            .flatten()
            .filter(|a| a.port() != 0)
            .collect();
        addresses.sort_unstable();
        if let Some(twice) = addresses.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("the address {} is used twice", twice[0]);
        }
        Ok(())
    }

    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let control = &mut self.control;
        let mut paths = vec![&mut self.state];
        paths.extend(
            [&mut self.nats.executable, &mut control.root_key]
                .into_iter()
                .flatten(),
        );
        paths.extend(control.operator_creds.as_mut());
        paths.extend(control.trusted_roots.iter_mut());
        for edge in &mut self.edges {
            paths.extend(edge.token.as_mut());
        }
        paths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLES: [(&str, &str, &[Role]); 3] = [
        (
            "all-in-one.toml",
            include_str!("../../../deploy/config/all-in-one.toml"),
            &[Role::Nats, Role::Control, Role::Edge],
        ),
        (
            "control.toml",
            include_str!("../../../deploy/config/control.toml"),
            &[Role::Nats, Role::Control],
        ),
        (
            "edge.toml",
            include_str!("../../../deploy/config/edge.toml"),
            &[Role::Edge],
        ),
    ];

    #[test]
    fn the_samples_parse() {
        for (name, text, roles) in SAMPLES {
            let config = Config::parse(text).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            assert_eq!(config.roles, roles, "{name}");
        }
    }

    /// A line that is commented out in a sample is an offer; it must work for whoever takes it.
    #[test]
    fn what_the_samples_offer_parses_too() {
        for (name, text, _) in SAMPLES {
            let all: String = text
                .lines()
                .map(|l| l.strip_prefix("#: ").unwrap_or(l))
                .flat_map(|l| [l, "\n"])
                .collect();
            assert_ne!(all.trim(), text.trim(), "{name} offers nothing");
            if let Err(error) = Config::parse(&all) {
                panic!("{name}: {error:#}");
            }
        }
    }

    #[test]
    fn mistakes_are_told() {
        for (text, told) in [
            ("", "state"),
            (
                "state = 's'\nstat = 1\n[[edge]]\nregion='r'\nname='e'\nhttps='127.0.0.1:1'",
                "stat",
            ),
            ("state = 's'", "at least one [[edge]]"),
            ("state = 's'\nroles = []", "roles is empty"),
            ("state = 's'\nroles = ['king']", "king"),
            ("state = 's'\nroles = ['control']", "nats.url is missing"),
            (
                "state = 's'\nroles = ['nats', 'control']\n[nats]\nurl = 'nats://x'",
                "nats.listen",
            ),
            (
                "state = 's'\nroles = ['nats']\n[control]\ncommand_burst = 0",
                "command_burst",
            ),
            (
                "state = 's'\nroles = ['nats']\n[control.revocation]\nproxy = 'socks5://p:1'",
                "http://host:port",
            ),
            (
                "state = 's'\nroles = ['nats']\n[control.revocation]\nallow = ['10.0.0.0/99']",
                "10.0.0.0/99",
            ),
            (
                "state = 's'\nroles = ['nats']\n[control.revocation]\nevery_hours = 0",
                "every_hours",
            ),
            (
                "state = 's'\nroles = ['nats']\n[control]\nregions = ['A B']",
                "lower-case",
            ),
            (
                "state = 's'\n[[edge]]\nregion='r'\nname='e'\nhttps='127.0.0.1:1'\n[[edge]]\nregion='r'\nname='e'\nhttps='127.0.0.1:2'",
                "twice",
            ),
            (
                "state = 's'\n[metrics]\nlisten='127.0.0.1:1'\n[[edge]]\nregion='r'\nname='e'\nhttps='127.0.0.1:1'",
                "used twice",
            ),
        ] {
            let error = Config::parse(text).expect_err(text);
            assert!(format!("{error:#}").contains(told), "{text}: {error:#}");
        }
    }

    #[test]
    fn relative_paths_are_below_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("c.toml");
        std::fs::write(
            &path,
            "state = 'state'\nroles = ['nats', 'control']\n[control]\nroot_key = '/etc/root.key'\ntrusted_roots = ['ca.pem']",
        )
        .expect("written");
        let config = Config::load(&path).expect("loaded");
        assert_eq!(config.state, folder.path().join("state"));
        assert_eq!(
            config.control.root_key.as_deref(),
            Some(Path::new("/etc/root.key"))
        );
        assert_eq!(config.control.trusted_roots, [folder.path().join("ca.pem")]);
    }
}
