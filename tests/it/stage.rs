//! What most tests of the whole path begin with: a running system, a project with a user, an origin and a CA.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use harness::{
    Ca, Chancery, Cli, Leaf, Origin, SOON, Serve, curl, eventually, free_address, handshake,
};
use serde_json::Value;

/// The TLS alert `unrecognized_name` (RFC 6066, 3).
pub(crate) const UNRECOGNIZED_NAME: u16 = 112;

/// A running system with the project `acme` and its user `alice`.
pub(crate) struct Stage {
    pub(crate) ca: Ca,
    pub(crate) origin: Origin,
    pub(crate) chancery: Chancery,
    pub(crate) operator: Cli,
    pub(crate) alice: Cli,
}

impl Stage {
    /// With one region, `local`.
    pub(crate) fn new() -> Self {
        Self::of(Chancery::up())
    }

    /// With these regions.
    pub(crate) fn with_regions(regions: &[&str]) -> Self {
        Self::of(Chancery::with_regions(regions))
    }

    pub(crate) fn of(chancery: Chancery) -> Self {
        let (operator, alice) = (chancery.operator(), chancery.project("acme", "alice"));
        Self {
            ca: Ca::new(),
            origin: Origin::start("origin"),
            chancery,
            operator,
            alice,
        }
    }

    /// A resource of `acme` in front of the origin, below `/<name>`. The origin is on this machine, so the operator makes it.
    pub(crate) fn resource(&self, name: &str, kind: &str, regions: &[&str]) {
        let origin = format!("{}/{name}", self.origin.url());
        resource(&self.operator, "acme", name, kind, regions, &origin);
    }

    /// A proven domain of `acme`, attached to the resource.
    pub(crate) fn domain(&self, host: &str, resource: &str) {
        self.alice
            .run(&["domain", "add", host, "--resource", resource])
            .ok();
        self.operator
            .project("acme")
            .run(&["domain", "prove", host])
            .ok();
    }

    /// The bucket `media` in `local` with one domain.
    pub(crate) fn bucket(&self, host: &str) {
        self.resource("media", "bucket", &["local"]);
        self.domain(host, "media");
    }

    /// Uploads a leaf to `local` as `acme`.
    pub(crate) fn upload(&self, name: &str, leaf: &Leaf) {
        upload(&self.alice, name, leaf, &["--region", "local"]);
    }

    /// Waits until the first region serves this leaf.
    pub(crate) fn serves(&self, host: &str, leaf: &Leaf) {
        serves(self.chancery.https(), host, leaf);
    }

    /// What `host` says of the first region.
    pub(crate) fn host(&self, host: &str) -> Value {
        self.alice.run(&["host", host]).ok().lines().remove(0)
    }

    /// The object at a path, over HTTPS, with the certificate checked by curl.
    pub(crate) fn get(&self, host: &str, path: &str) -> Result<String, String> {
        curl(
            &self.ca,
            self.chancery.https(),
            &format!("https://{host}{path}"),
            &[],
        )
        .ok()
    }
}

/// A user's NATS client, as any program would have it, and the runtime that it lives on.
pub(crate) fn nats(user: &Cli) -> (tokio::runtime::Runtime, async_nats::Client) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let environment = user.environment();
    let client = runtime.block_on(async {
        async_nats::ConnectOptions::with_credentials_file(&environment["CHANCERY_CREDS"])
            .await
            .expect("the credentials file")
            .connect(&environment["CHANCERY_SERVER"])
            .await
            .expect("a connection")
    });
    (runtime, client)
}

/// A resource, made by the operator because its origin is on this machine.
pub(crate) fn resource(
    operator: &Cli,
    project: &str,
    name: &str,
    kind: &str,
    regions: &[&str],
    origin: &str,
) {
    let mut words = vec![
        "resource", "create", name, "--kind", kind, "--origin", origin,
    ];
    for region in regions {
        words.extend(["--region", region]);
    }
    operator.project(project).run(&words).ok();
}

/// Uploads a leaf and waits until it is verified.
pub(crate) fn upload(user: &Cli, name: &str, leaf: &Leaf, further: &[&str]) {
    let (chain, key) = (
        leaf.chain().display().to_string(),
        leaf.key().display().to_string(),
    );
    let mut words = vec!["certificate", "add", name, "--chain", &chain, "--key", &key];
    words.extend(further);
    user.run(&words).ok();
    wait(user, name, "ready");
}

/// Waits until a certificate has a status.
pub(crate) fn wait(user: &Cli, name: &str, status: &str) {
    user.run(&[
        "certificate",
        "wait",
        name,
        "--status",
        status,
        "--timeout",
        "30s",
    ])
    .ok();
}

/// Whether this leaf is served right now.
pub(crate) fn served_now(https: SocketAddr, host: &str, leaf: &Leaf) -> Result<(), String> {
    let der = handshake(https, host, &[]).served()?;
    if der == leaf.der {
        Ok(())
    } else {
        Err(format!("another leaf is served: {}", harness::sha256(&der)))
    }
}

/// Waits until an edge serves this leaf.
pub(crate) fn serves(https: SocketAddr, host: &str, leaf: &Leaf) {
    eventually(&format!("{host} is served with the leaf"), SOON, || {
        served_now(https, host, leaf)
    });
}

/// Whether the handshake is refused right now with `unrecognized_name`.
pub(crate) fn dark_now(https: SocketAddr, host: &str) -> Result<(), String> {
    let handshake = handshake(https, host, &[]);
    match (&handshake.leaf, handshake.alert()) {
        (None, Some(UNRECOGNIZED_NAME)) => Ok(()),
        _ => Err(handshake.said),
    }
}

/// Waits until an edge refuses the host.
pub(crate) fn dark(https: SocketAddr, host: &str) {
    eventually(&format!("{host} is refused"), SOON, || {
        dark_now(https, host)
    });
}

/// The names of the active certificate and of its fallbacks, in order.
pub(crate) fn ranking(host: &Value) -> Vec<String> {
    let name = |candidate: &Value| {
        candidate["certificate"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let fallbacks = host["fallbacks"].as_array().into_iter().flatten();
    std::iter::once(&host["active"])
        .filter(|active| !active.is_null())
        .chain(fallbacks)
        .map(name)
        .collect()
}

/// Control with its NATS server, and the edge, in two processes that start and end apart.
pub(crate) struct Apart {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) https: SocketAddr,
    pub(crate) control: Serve,
}

impl Apart {
    pub(crate) fn start() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("chancery-apart-")
            .tempdir()
            .expect("a folder");
        let (nats, https, http) = (free_address(), free_address(), free_address());
        fs::write(
            folder.path().join("control.toml"),
            format!("state = 'control'\nroles = ['nats', 'control']\n[nats]\nlisten = '{nats}'\n[control]\nregions = ['eu-1']\n"),
        )
        .expect("written");
        fs::write(
            folder.path().join("edge.toml"),
            format!(
                "state = 'edge'\nroles = ['edge']\n[nats]\nurl = 'nats://{nats}'\n[[edge]]\nregion = 'eu-1'\nname = 'edge-7'\n\
                 https = '{https}'\nhttp = '{http}'\ntoken = 'edge-7.token'\n"
            ),
        )
        .expect("written");
        let control = Serve::start(&folder.path().join("control.toml"));
        Self {
            folder,
            https,
            control,
        }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn operator(&self) -> Cli {
        self.control.operator()
    }
}
