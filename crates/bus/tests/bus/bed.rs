//! A nats-server of its own for each test, with our identity, and clients of every kind.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use async_nats::Client;
use bus::{
    connect::{self, Login},
    identity::Identity,
    server::{self, Server},
    streams,
    templates::Role,
};

/// One server in a folder of its own. Dropping it kills the server.
pub(crate) struct Bed {
    pub(crate) identity: Arc<Identity>,
    pub(crate) server: Option<Server>,
    pub(crate) folder: tempfile::TempDir,
}

pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

pub(crate) fn executable() -> PathBuf {
    server::find().expect("nats-server >= 2.15.1: see the quick start in README.md")
}

impl Bed {
    /// A running server with all streams.
    pub(crate) async fn start() -> Bed {
        let bed = Bed::bare().await;
        streams::ensure(
            &bed.role(Role::Installer).await,
            &bed.role(Role::System).await,
            1,
        )
        .await
        .unwrap();
        bed
    }

    /// A running server without streams.
    pub(crate) async fn bare() -> Bed {
        let identity = Arc::new(Identity::generate());
        let folder = tempfile::tempdir().unwrap();
        let mut bed = Bed {
            identity,
            server: None,
            folder,
        };
        bed.restart().await;
        bed
    }

    pub(crate) fn config(&self) -> server::Config {
        server::Config {
            folder: self.folder.path().join("nats"),
            port: 0,
            name: "chancery".to_owned(),
            identity_conf: self.identity.server_conf(now()),
        }
    }

    pub(crate) async fn restart(&mut self) {
        self.server = Some(Server::start(&executable(), &self.config()).await.unwrap());
    }

    pub(crate) async fn kill(&mut self) {
        self.server.take().unwrap().kill().await.unwrap();
    }

    pub(crate) fn url(&self) -> String {
        self.server.as_ref().unwrap().url()
    }

    pub(crate) async fn role(&self, role: Role) -> Client {
        connect::connect(&self.url(), &Login::minted(&self.identity, role))
            .await
            .unwrap()
    }
}

/// Waits until something holds, and fails with its name when it does not within twenty seconds.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
