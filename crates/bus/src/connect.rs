//! Connections of our own roles.
//!
//! A role's user exists in memory only: key pair and JWT are made anew at each connect, so a process that holds the
//! identity needs no credential files, and nothing long-lived can be stolen from it. Roles on other machines get a
//! `.creds` file instead. Nothing here ever receives what a project wrote: that is [`crate::door`]'s.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_nats::{Auth, AuthError, Client, ConnectOptions};

use crate::{
    identity::{self, Credentials, Identity},
    templates::{Place, Role},
};

/// How long a user that was minted for one connection is valid; the server then disconnects, and a new one is minted.
const MINTED_LIFE: Duration = Duration::from_secs(24 * 3600);

/// How long a request waits for its answer unless it says otherwise.
pub(crate) const REQUEST_LIMIT: Duration = Duration::from_secs(3);

/// Messages that a subscription holds before it counts as slow and drops; every reader here notices the gap.
const SUBSCRIPTION_CAPACITY: usize = 8_192;

/// Operations that wait to be written to one connection.
const CLIENT_CAPACITY: usize = 2_048;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user could not be minted or read.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The server could not be reached or does not know us.
    #[error("connecting to NATS at {url} as {role}")]
    Connect {
        /// The server.
        url: String,
        /// The role's name.
        role: String,
        /// What the client says.
        source: async_nats::ConnectError,
    },
}

/// How a connection proves who it is.
#[derive(Debug, Clone)]
pub enum Login {
    /// As one of our roles, with a user minted for each connect.
    Minted {
        /// What mints.
        identity: Arc<Identity>,
        /// The role.
        role: Role,
    },
    /// With a credentials file's content, as on a machine that holds no identity.
    Credentials {
        /// The content.
        credentials: Credentials,
        /// The role for which it was minted.
        role: Role,
        /// The subject prefix of the inbox that the role's template grants.
        inbox: String,
    },
}

impl Login {
    /// As a role of ours.
    #[must_use]
    pub fn minted(identity: &Arc<Identity>, role: Role) -> Login {
        Login::Minted {
            identity: identity.clone(),
            role,
        }
    }

    /// As an edge, whose inbox is named by its region and itself.
    #[must_use]
    pub fn edge(credentials: Credentials, region: &str, edge: &str, enrol: bool) -> Login {
        let role = if enrol { Role::Enrol } else { Role::Edge };
        Login::Credentials {
            credentials,
            role,
            inbox: format!("_INBOX.{region}.{edge}"),
        }
    }

    pub(crate) fn role(&self) -> Role {
        match self {
            Login::Minted { role, .. } | Login::Credentials { role, .. } => *role,
        }
    }

    /// A name for this connection: unique, one word, and telling the role.
    pub(crate) fn name(&self) -> String {
        let random = uuid::Uuid::new_v4().simple().to_string();
        format!("{}-{}", self.role().name(), &random[..12])
    }

    /// The credentials for one connect at this moment.
    pub(crate) fn credentials(&self, name: &str) -> Result<Credentials, identity::Error> {
        match self {
            Login::Minted { identity, role } => {
                let now = unix_now();
                identity.internal(*role, name, now, now + MINTED_LIFE.as_secs())
            }
            Login::Credentials { credentials, .. } => Ok(credentials.clone()),
        }
    }
}

/// The wall clock in Unix seconds; only connections and accounts use it, events get their time from elsewhere.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// How long to wait before the next attempt: the first at once, then 10 ms doubling to a second.
pub(crate) fn reconnect_delay(attempt: usize) -> Duration {
    match attempt {
        0 | 1 => Duration::ZERO,
        attempt => Duration::from_millis(5 << attempt.min(8)).min(Duration::from_secs(1)),
    }
}

/// Connects, and from then on reconnects for ever by itself. Requests wait at most three seconds.
///
/// # Errors
/// When the first connect fails, or a user cannot be minted.
pub async fn connect(url: &str, login: &Login) -> Result<Client, Error> {
    let role = login.role();
    let name = login.name();
    let inbox = match login {
        Login::Credentials { inbox, .. } => inbox.clone(),
        Login::Minted { .. } if matches!(role.template().place, Place::Core | Place::System) => {
            format!("_INBOX_{name}")
        }
        Login::Minted { .. } => return Err(identity::Error::Name("the role").into()),
    };
    login.credentials(&name)?;
    let (login, user) = (login.clone(), name.clone());
    let authenticate = move |nonce: Vec<u8>| {
        let credentials = login.credentials(&user);
        async move {
            let credentials = credentials.map_err(AuthError::new)?;
            let mut auth = Auth::new();
            auth.signature = Some(credentials.sign(&nonce));
            auth.jwt = Some(credentials.jwt);
            Ok(auth)
        }
    };
    ConnectOptions::with_auth_callback(authenticate)
        .name(&name)
        .custom_inbox_prefix(inbox)
        .request_timeout(Some(REQUEST_LIMIT))
        .connection_timeout(Duration::from_secs(5))
        .ping_interval(Duration::from_secs(10))
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .client_capacity(CLIENT_CAPACITY)
        .reconnect_delay_callback(reconnect_delay)
        .event_callback(move |event| {
            let role = role.name();
            async move { tracing::debug!(role, %event, "NATS connection") }
        })
        .connect(url)
        .await
        .map_err(|source| Error::Connect {
            url: url.to_owned(),
            role: role.name().to_owned(),
            source,
        })
}
