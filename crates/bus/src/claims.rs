//! Telling a running server about accounts: pushed, deleted, and with revoked users, while nobody else notices.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use async_nats::Client;
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::Mutex;

use crate::{
    connect::{REQUEST_LIMIT, unix_now},
    identity::{self, Account, Identity, ProjectAccount},
    templates::Place,
};

/// How long a server keeps an account's JWT against a later one of the same second.
const SPACING: Duration = Duration::from_secs(1);

/// Why the server does not know yet.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The account cannot be minted.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The server refuses; its words say why.
    #[error("nats-server refuses the account: {0}")]
    Refused(String),
    /// Nobody answered; the push can be repeated.
    #[error("no answer from nats-server: {0}")]
    NoAnswer(String),
}

/// The way to the server's accounts, over a connection of the role `system`.
#[derive(Debug)]
pub struct Claims {
    client: Client,
    identity: Arc<Identity>,
    /// When an account was last pushed, and with which `iat`; entries older than a few seconds are dropped.
    pushed: Mutex<HashMap<String, (Instant, u64)>>,
}

impl Claims {
    /// Accounts are minted from `identity` and pushed over `client`.
    #[must_use]
    pub fn new(client: Client, identity: Arc<Identity>) -> Claims {
        Claims {
            client,
            identity,
            pushed: Mutex::default(),
        }
    }

    /// Makes the server know a project's account as it is now: new, changed, suspended, or with revoked users, whose
    /// connections it closes. Returns once it does. Pushes of one account are at least a second apart, because the
    /// server takes only a later `iat`, which counts seconds; so this waits that long at most.
    ///
    /// # Errors
    /// See [`Error`]; repeating it is safe.
    pub async fn push(&self, project: &ProjectAccount) -> Result<(), Error> {
        self.push_current(&project.project, || project.clone())
            .await
    }

    /// As [`push`](Self::push), with the account as it is when its turn has come. Of several pushes that wait, the last one
    /// could otherwise bring the oldest state and take a revocation back.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub async fn push_current(
        &self,
        project: &str,
        account: impl FnOnce() -> ProjectAccount,
    ) -> Result<(), Error> {
        let iat = self.turn(project).await;
        let jwt = self.identity.project_account_jwt(&account(), iat)?;
        self.ask("$SYS.REQ.CLAIMS.UPDATE", jwt.into()).await
    }

    /// Makes the server know which edges are evicted; it closes their connections and takes them no more. `revoked` is asked
    /// when the turn has come, and gives what [`Identity::edges_account_jwt`] takes. Waits as [`push`](Self::push) does.
    ///
    /// # Errors
    /// See [`Error`]; repeating it is safe.
    pub async fn push_edges(
        &self,
        revoked: impl FnOnce() -> BTreeMap<String, u64>,
    ) -> Result<(), Error> {
        // No project has a name in capitals, so this is nobody else's turn.
        let iat = self.turn(Place::Edges.word()).await;
        let jwt = self.identity.edges_account_jwt(&revoked(), iat);
        self.ask("$SYS.REQ.CLAIMS.UPDATE", jwt.into()).await
    }

    /// The `iat` for the next push of an account, after having waited until the clock reaches it.
    async fn turn(&self, project: &str) -> u64 {
        loop {
            {
                let mut pushed = self.pushed.lock().await;
                pushed.retain(|_, (at, _)| at.elapsed() < 4 * SPACING);
                let now = unix_now();
                let free = pushed
                    .get(project)
                    .is_none_or(|&(at, iat)| at.elapsed() >= SPACING && iat < now);
                if free {
                    pushed.insert(project.to_owned(), (Instant::now(), now));
                    return now;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Makes the server forget projects' accounts; their connections are closed.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete(&self, projects: &[String]) -> Result<(), Error> {
        let jwt = self.identity.delete_accounts_jwt(projects, unix_now());
        self.ask("$SYS.REQ.CLAIMS.DELETE", jwt.into()).await
    }

    /// Closes the connections of one user of a project at once. It may come back unless it was revoked; returns how
    /// many there were.
    ///
    /// # Errors
    /// [`Error::NoAnswer`].
    pub async fn kick(&self, project: &str, user: &str) -> Result<usize, Error> {
        let account = self
            .identity
            .account_public(&Account::Project(project.to_owned()));
        let body = json!({"auth": true, "limit": 1_024, "acc": account});
        let mut kicked = 0;
        for answer in self.ask_all("$SYS.REQ.SERVER.PING.CONNZ", body).await? {
            let Some(server) = answer["server"]["id"].as_str() else {
                continue;
            };
            for connection in answer["data"]["connections"]
                .as_array()
                .into_iter()
                .flatten()
            {
                if connection["nkey"] != *user && connection["authorized_user"] != *user {
                    continue;
                }
                let subject = format!("$SYS.REQ.SERVER.{server}.KICK");
                let body = json!({"cid": connection["cid"]}).to_string();
                self.client
                    .request(subject, body.into())
                    .await
                    .map_err(|error| Error::NoAnswer(error.to_string()))?;
                kicked += 1;
            }
        }
        Ok(kicked)
    }

    /// Asks every server; the first answer is waited for, further ones only briefly.
    async fn ask_all(&self, subject: &str, body: Value) -> Result<Vec<Value>, Error> {
        let no_answer = |reason: String| Error::NoAnswer(reason);
        let inbox = self.client.new_inbox();
        let mut answers = self
            .client
            .subscribe(inbox.clone())
            .await
            .map_err(|error| no_answer(error.to_string()))?;
        self.client
            .publish_with_reply(subject.to_owned(), inbox, body.to_string().into())
            .await
            .map_err(|error| no_answer(error.to_string()))?;
        let mut all = Vec::new();
        let mut limit = REQUEST_LIMIT;
        while let Ok(Some(message)) = tokio::time::timeout(limit, answers.next()).await {
            all.extend(serde_json::from_slice::<Value>(&message.payload).ok());
            limit = Duration::from_millis(100);
        }
        if all.is_empty() {
            Err(no_answer("timed out".to_owned()))
        } else {
            Ok(all)
        }
    }

    async fn ask(&self, subject: &'static str, body: Bytes) -> Result<(), Error> {
        let answer = self
            .client
            .request(subject, body)
            .await
            .map_err(|error| Error::NoAnswer(error.to_string()))?;
        let answer: Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
        match (&answer["error"], answer["data"]["code"].as_u64()) {
            (Value::Null, Some(200)) => Ok(()),
            (Value::Null, _) => Err(Error::Refused("an answer that cannot be read".to_owned())),
            (error, _) => Err(Error::Refused(
                error["description"]
                    .as_str()
                    .unwrap_or("no reason given")
                    .to_owned(),
            )),
        }
    }
}
