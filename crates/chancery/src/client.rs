//! The connection of a command: which server, who asks, for which project; and asking with a bounded patience.
//!
//! Each of server, credentials and project comes from the first of these that names it: flags, `CHANCERY_*` variables,
//! the context file. A command is a request whose idempotency key stays the same over all its attempts, so that an
//! answer that was lost is asked for again and nothing happens twice.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use async_nats::client::{Request, RequestErrorKind};
use async_nats::{
    Auth, AuthError, ConnectErrorKind, ConnectOptions, Event, HeaderMap, ServerError,
};
use bytes::Bytes;
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;
use zeroize::Zeroizing;

use bus::identity::Credentials;
use lifecycle::names::Slug;
use lifecycle::rejection::Code;
use wire::subject;

use crate::cli::Global;
use crate::failure::{Failure, Refused, Result};

/// The server unless something names another.
const SERVER: &str = "nats://127.0.0.1:4222";
/// How long connecting may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long one attempt waits for its answer.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(5);
/// How long all attempts of a command or query may take together.
const ASK_LIMIT: Duration = Duration::from_secs(30);
/// How long nobody may be there to answer before that is told.
const SILENCE_LIMIT: Duration = Duration::from_secs(10);
/// Largest credentials file, bytes.
const CREDENTIALS_MAX: u64 = 64 * 1024;
/// Bytes of one message of a project's user, less what headers take (`bus::templates::USER_PAYLOAD` counts both).
pub const BODY_MAX: usize = wire::request::BODY_MAX - 1024;
/// Things on a page of a listing.
const PAGE: usize = 200;

/// The file that holds what would otherwise be flags.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ContextFile {
    server: Option<String>,
    creds: Option<PathBuf>,
    nkey: Option<PathBuf>,
    project: Option<Slug>,
}

/// How a user proves who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// With a credentials file.
    Creds(PathBuf),
    /// With a file that holds an NKEY seed.
    Nkey(PathBuf),
}

/// Where to connect, as whom, and for which project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The NATS server's URL; several with commas between.
    pub server: String,
    /// Who asks.
    pub login: Option<Login>,
    /// The project that was named.
    pub project: Option<Slug>,
}

impl Settings {
    /// From flags, then the environment, then the context file.
    ///
    /// # Errors
    /// A context file that is named and cannot be read, or one that is not of its form; a variable of the wrong form.
    pub fn resolve(flags: &Global, environment: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let variable = |name: &str| environment(name).filter(|v| !v.is_empty());
        let file = context_file(flags, &variable)?;
        let project = match (&flags.project, variable("CHANCERY_PROJECT")) {
            (Some(project), _) => Some(project.clone()),
            (None, Some(text)) => Some(Slug::project(&text).map_err(|error| {
                Failure::Usage(format!("CHANCERY_PROJECT is not a project: {error}"))
            })?),
            (None, None) => file.project,
        };
        // Credentials and key stand for one thing: whoever names either is asked no further.
        let login = [
            (flags.creds.clone(), flags.nkey.clone()),
            (
                variable("CHANCERY_CREDS").map(Into::into),
                variable("CHANCERY_NKEY").map(Into::into),
            ),
            (file.creds, file.nkey),
        ]
        .into_iter()
        .find_map(|place| match place {
            (Some(creds), _) => Some(Login::Creds(creds)),
            (None, Some(nkey)) => Some(Login::Nkey(nkey)),
            (None, None) => None,
        });
        let server = flags
            .server
            .clone()
            .or_else(|| variable("CHANCERY_SERVER"))
            .or(file.server)
            .unwrap_or_else(|| SERVER.to_owned());
        Ok(Self {
            server,
            login,
            project,
        })
    }
}

fn context_file(flags: &Global, variable: &impl Fn(&str) -> Option<String>) -> Result<ContextFile> {
    let named = flags
        .context
        .clone()
        .or_else(|| variable("CHANCERY_CONTEXT").map(PathBuf::from));
    let must = named.is_some();
    let path = named.or_else(|| {
        let base = variable("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
            .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".config")))?;
        Some(base.join("chancery").join("context.toml"))
    });
    let Some(path) = path else {
        return Ok(ContextFile::default());
    };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if !must && error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(ContextFile::default());
        }
        Err(error) => {
            return Err(anyhow::Error::new(error)
                .context(format!("reading the context {}", path.display()))
                .into());
        }
    };
    let mut file: ContextFile =
        toml::from_str(&text).with_context(|| format!("reading the context {}", path.display()))?;
    // A path in the file means the same wherever the command is run.
    if let Some(folder) = path.parent() {
        for path in [&mut file.creds, &mut file.nkey].into_iter().flatten() {
            *path = folder.join(&*path);
        }
    }
    Ok(file)
}

/// What the server said beside the answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Word {
    #[default]
    Nothing,
    /// These credentials may not publish there.
    Denied,
    /// These credentials are no longer taken.
    Unknown,
}

/// A connection that asks.
pub struct Client {
    nats: async_nats::Client,
    server: String,
    named: Option<Slug>,
    own: Option<Slug>,
    id: Option<Uuid>,
    word: watch::Receiver<Word>,
}

/// The answer to an accepted command.
#[derive(Debug)]
pub struct Accepted {
    /// The document as it came.
    pub document: Box<RawValue>,
    /// What it says.
    pub answer: wire::answer::Accepted,
}

impl Accepted {
    /// A text beside the usual fields.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.answer
            .more
            .get(name)
            .and_then(serde_json::Value::as_str)
    }
}

impl Client {
    /// Connects as the flags, the environment and the context file say.
    ///
    /// # Errors
    /// When there are no credentials, they cannot be read or are refused, or the server cannot be reached.
    pub async fn connect(flags: &Global) -> Result<Self> {
        let settings = Settings::resolve(flags, |name| std::env::var(name).ok())?;
        let (says, word) = watch::channel(Word::Nothing);
        let (options, own) = match &settings.login {
            None => {
                return Err(Failure::Usage(
                    "no credentials: give --creds FILE, set CHANCERY_CREDS, or name them in the context file \
                     (the ready line of `chancery up` shows those of its operator)"
                        .to_owned(),
                ));
            }
            Some(Login::Creds(path)) => {
                let credentials = Credentials::parse(&read_secret(path)?)
                    .with_context(|| format!("{} is not a credentials file", path.display()))?;
                let own = project_of(&credentials.jwt);
                (options_for(credentials), own)
            }
            Some(Login::Nkey(path)) => {
                let text = read_secret(path)?;
                let seed = text
                    .lines()
                    .map(str::trim)
                    .find(|line| line.starts_with("SU"))
                    .filter(|line| nkeys::KeyPair::from_seed(line).is_ok())
                    .with_context(|| format!("{} holds no NKEY seed of a user", path.display()))?;
                (ConnectOptions::with_nkey(seed.to_owned()), None)
            }
        };
        let servers: Vec<_> = settings
            .server
            .split(',')
            .map(str::trim)
            .map(str::to_owned)
            .collect();
        let nats = options
            .name("chancery-cli")
            .connection_timeout(CONNECT_LIMIT)
            .event_callback(move |event| {
                tracing::debug!(%event, "NATS connection");
                match event {
                    Event::ServerError(ServerError::AuthorizationViolation) => {
                        says.send_replace(Word::Unknown);
                    }
                    Event::ServerError(ServerError::Other(text)) => {
                        let text = text.to_lowercase();
                        if text.contains("permissions violation for publish") {
                            says.send_replace(Word::Denied);
                        } else if text.contains("user authentication")
                            || text.contains("account authentication")
                        {
                            says.send_replace(Word::Unknown);
                        }
                    }
                    _ => {}
                }
                std::future::ready(())
            })
            .connect(servers)
            .await
            .map_err(|error| match error.kind() {
                ConnectErrorKind::AuthorizationViolation => unknown_user(),
                _ => Failure::CouldNotRun(anyhow::Error::new(error).context(format!(
                    "cannot connect to {}; is `chancery up` or `chancery serve` running there?",
                    settings.server
                ))),
            })?;
        Ok(Self {
            nats,
            server: settings.server,
            named: settings.project,
            own,
            id: flags.id,
            word,
        })
    }

    /// The project that was named by flag, environment or context file.
    pub fn named_project(&self) -> Option<&Slug> {
        self.named.as_ref()
    }

    /// The project to act in: the named one, else that of the credentials.
    ///
    /// # Errors
    /// When neither says.
    pub fn project(&self) -> Result<&Slug> {
        self.named.as_ref().or(self.own.as_ref()).ok_or_else(|| {
            Failure::Usage(
                "these credentials do not name a project: give --project or set CHANCERY_PROJECT"
                    .to_owned(),
            )
        })
    }

    /// Whether the credentials are the operator's.
    pub fn is_operator(&self) -> bool {
        self.own.as_ref().is_some_and(Slug::is_platform)
    }

    /// Subscribes to committed events: of one project, or of all.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn events(&self, project: Option<&Slug>) -> Result<async_nats::Subscriber> {
        let subject = match project {
            Some(project) => subject::of("evt", project.as_str(), ">"),
            None => format!("{}evt.>", subject::PREFIX),
        };
        let subscriber = self
            .nats
            .subscribe(subject)
            .await
            .context("subscribing to events")?;
        // Only what the server knows before the next request is answered counts as subscribed.
        self.nats.flush().await.context("subscribing to events")?;
        Ok(subscriber)
    }

    /// Gives a command of a project, `<noun>.<verb>`, and waits for its answer.
    ///
    /// # Errors
    /// The problem document; or that no answer came, and with which id to ask again.
    pub async fn command<B: Serialize>(
        &self,
        project: &Slug,
        name: &str,
        body: &B,
    ) -> Result<Accepted> {
        let body = serde_json::to_vec(body).context("writing the command")?;
        if body.len() > BODY_MAX {
            return Err(Failure::problem(
                Code::TooLarge,
                format!(
                    "the command would have {} bytes of at most {BODY_MAX}",
                    body.len()
                ),
                "a chain is a leaf and its intermediates, a few kilobytes; leave out what does not belong to it",
            ));
        }
        let id = self.id.unwrap_or_else(Uuid::now_v7);
        self.give(project, name, id, body.into(), true).await
    }

    /// Gives a command whose body and id the caller keeps. `busy` and `rate_limited` come back at once, for a caller that
    /// gives many commands and keeps the pace for all of them; a lost answer is asked for again as ever.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub async fn command_once(
        &self,
        project: &Slug,
        name: &str,
        id: Uuid,
        body: Bytes,
    ) -> Result<Accepted> {
        self.give(project, name, id, body, false).await
    }

    async fn give(
        &self,
        project: &Slug,
        name: &str,
        id: Uuid,
        body: Bytes,
        patient: bool,
    ) -> Result<Accepted> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", id.to_string());
        let subject = subject::of("cmd", project.as_str(), name);
        let answer = self.ask(subject, body, Some(headers), ASK_LIMIT, patient).await.map_err(|silence| match silence {
            Silence::Failed(failure) => failure,
            Silence::NoAnswer => Failure::CouldNotRun(anyhow::anyhow!(
                "no answer within {} s, so whether it happened is not known; the same command with --id {id} tells, \
                 and does nothing twice",
                ASK_LIMIT.as_secs()
            )),
            silence => self.nobody(silence),
        })?;
        let unreadable = "the answer is not one that this release can read";
        Ok(Accepted {
            answer: serde_json::from_slice(&answer).context(unreadable)?,
            document: serde_json::from_slice(&answer).context(unreadable)?,
        })
    }

    /// Gives a command that only the operator has.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub async fn platform_command<B: Serialize>(&self, name: &str, body: &B) -> Result<Accepted> {
        self.command(&Slug::platform(), name, body).await
    }

    /// Asks for a view and gives the answer's bytes.
    ///
    /// # Errors
    /// The problem document; or that no answer came.
    pub async fn query<B: Serialize>(&self, project: &Slug, view: &str, body: &B) -> Result<Bytes> {
        self.long_query(project, view, body, ASK_LIMIT).await
    }

    /// Asks for a view whose answer may take as long as `limit`.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    pub async fn long_query<B: Serialize>(
        &self,
        project: &Slug,
        view: &str,
        body: &B,
        limit: Duration,
    ) -> Result<Bytes> {
        let body = serde_json::to_vec(body).context("writing the query")?;
        let subject = subject::of("query", project.as_str(), view);
        self.ask(subject, body.into(), None, limit, true)
            .await
            .map_err(|silence| match silence {
                Silence::Failed(failure) => failure,
                Silence::NoAnswer => {
                    Failure::CouldNotRun(anyhow::anyhow!("no answer within {} s", limit.as_secs()))
                }
                silence => self.nobody(silence),
            })
    }

    /// Asks for a view and reads it.
    ///
    /// # Errors
    /// As [`query`](Self::query), and an answer that cannot be read.
    pub async fn view<T: DeserializeOwned, B: Serialize>(
        &self,
        project: &Slug,
        view: &str,
        body: &B,
    ) -> Result<T> {
        let answer = self.query(project, view, body).await?;
        read(&answer)
    }

    /// All things of a listing, page by page, each as its own bytes. `key` is the field that holds them.
    ///
    /// # Errors
    /// As [`view`](Self::view).
    pub async fn list(
        &self,
        project: &Slug,
        view: &str,
        key: &str,
        query: &wire::request::ListQuery,
    ) -> Result<Vec<Box<RawValue>>> {
        let mut query = wire::request::ListQuery {
            limit: Some(PAGE),
            ..query.clone()
        };
        let mut all = Vec::new();
        loop {
            let mut page: std::collections::HashMap<String, Box<RawValue>> =
                self.view(project, view, &query).await?;
            if let Some(items) = page.remove(key) {
                all.append(&mut read::<Vec<Box<RawValue>>>(items.get().as_bytes())?);
            }
            let next = page
                .remove("next")
                .and_then(|next| serde_json::from_str::<Option<String>>(next.get()).ok());
            match next.flatten() {
                // A page that leads to itself would be asked for without end.
                Some(next) if query.after.as_ref() != Some(&next) => query.after = Some(next),
                _ => return Ok(all),
            }
        }
    }

    /// One thing of a listing by its name.
    ///
    /// # Errors
    /// As [`list`](Self::list); `not_found` when it is not there.
    pub async fn one(
        &self,
        project: &Slug,
        view: &str,
        key: &str,
        name: &str,
    ) -> Result<Box<RawValue>> {
        let query = wire::request::ListQuery {
            name: Some(name.to_owned()),
            ..Default::default()
        };
        self.list(project, view, key, &query)
            .await?
            .into_iter()
            .next()
            .ok_or_else(|| {
                Failure::problem(
                    Code::NotFound,
                    "there is nothing of this name in this project",
                    "the command `list` shows what is there",
                )
            })
    }

    fn nobody(&self, silence: Silence) -> Failure {
        match silence {
            Silence::Failed(failure) => failure,
            Silence::Denied => Failure::problem(
                Code::Unauthorized,
                "these credentials do not allow this",
                "use credentials with that right, or those of the operator",
            ),
            Silence::Nobody | Silence::NoAnswer => Failure::CouldNotRun(anyhow::anyhow!(
                "nobody answers at {}: the control plane is not running, or not ready yet",
                self.server
            )),
        }
    }

    /// Asks until there is an answer that will stay, with the same headers and thus the same id. `patient`: one that passes
    /// is none.
    async fn ask(
        &self,
        subject: String,
        body: Bytes,
        headers: Option<HeaderMap>,
        limit: Duration,
        patient: bool,
    ) -> std::result::Result<Bytes, Silence> {
        let begun = Instant::now();
        let mut word = self.word.clone();
        let mut pause = Duration::from_millis(50);
        // Long answers get one long attempt; the others are tried again after a while, in case a message was lost.
        let attempt_limit = ATTEMPT_LIMIT.max(if limit > ASK_LIMIT {
            limit
        } else {
            Duration::ZERO
        });
        let mut last = Silence::NoAnswer;
        loop {
            let left = limit.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(last);
            }
            let mut request = Request::new()
                .payload(body.clone())
                .timeout(Some(attempt_limit.min(left)));
            if let Some(headers) = &headers {
                request = request.headers(headers.clone());
            }
            let answer = tokio::select! {
                answer = self.nats.send_request(subject.clone(), request) => answer,
                said = said(&mut word) => return Err(said),
            };
            let mut wait = pause;
            match answer {
                Ok(message) => match Refused::read(&message.payload) {
                    None => return Ok(message.payload),
                    Some(refused) if patient && refused.passes() => {
                        if let Some(ms) = refused.told.retry_after_ms {
                            wait = Duration::from_millis(ms);
                        }
                        if begun.elapsed() + wait >= limit {
                            return Err(Silence::Failed(refused.into()));
                        }
                        last = Silence::Failed(refused.into());
                    }
                    Some(refused) => return Err(Silence::Failed(refused.into())),
                },
                Err(error) => match error.kind() {
                    RequestErrorKind::NoResponders => {
                        if begun.elapsed() >= SILENCE_LIMIT.min(limit) {
                            return Err(Silence::Nobody);
                        }
                        last = Silence::Nobody;
                    }
                    RequestErrorKind::TimedOut => last = Silence::NoAnswer,
                    RequestErrorKind::MaxPayloadExceeded => {
                        return Err(Silence::Failed(Failure::problem(
                            Code::TooLarge,
                            "the server takes no message of this size",
                            "leave out what does not belong to it",
                        )));
                    }
                    _ => {
                        let error = anyhow::Error::new(error).context("asking the server");
                        return Err(Silence::Failed(error.into()));
                    }
                },
            }
            pause = (pause * 2).min(Duration::from_secs(1));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                said = said(&mut word) => return Err(said),
            }
        }
    }
}

/// Why there is no answer.
enum Silence {
    /// There is one, and it is no; or asking failed.
    Failed(Failure),
    /// The server does not let these credentials ask.
    Denied,
    /// Nobody is there.
    Nobody,
    /// The time is over.
    NoAnswer,
}

/// Waits until the server says that there will be no answer.
async fn said(word: &mut watch::Receiver<Word>) -> Silence {
    loop {
        if word.changed().await.is_err() {
            return std::future::pending().await;
        }
        match *word.borrow_and_update() {
            Word::Nothing => {}
            Word::Denied => return Silence::Denied,
            Word::Unknown => return Silence::Failed(unknown_user()),
        }
    }
}

fn unknown_user() -> Failure {
    Failure::problem(
        Code::Unauthorized,
        "the server does not take these credentials: they are unknown, expired or revoked, or the project is suspended",
        "ask an operator for new ones (`chancery access create`)",
    )
}

fn options_for(credentials: Credentials) -> ConnectOptions {
    ConnectOptions::with_auth_callback(move |nonce| {
        let mut auth = Auth::new();
        auth.signature = Some(credentials.sign(&nonce));
        auth.jwt = Some(credentials.jwt.clone());
        std::future::ready(Ok::<_, AuthError>(auth))
    })
}

/// The project of a user's JWT, from its tag `project:<slug>`. The server checks the signature, we only want to know
/// which subjects to use.
fn project_of(jwt: &str) -> Option<Slug> {
    #[derive(Deserialize)]
    struct Claims {
        nats: Nats,
    }
    #[derive(Deserialize)]
    struct Nats {
        #[serde(default)]
        tags: Vec<String>,
    }
    let payload = jwt.split('.').nth(1)?;
    let payload = data_encoding::BASE64URL_NOPAD
        .decode(payload.as_bytes())
        .ok()?;
    let claims: Claims = serde_json::from_slice(&payload).ok()?;
    claims
        .nats
        .tags
        .iter()
        .find_map(|tag| Slug::project(tag.strip_prefix("project:")?).ok())
}

fn read_secret(path: &Path) -> Result<Zeroizing<String>> {
    let bytes = crate::files::read(path, CREDENTIALS_MAX)?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(_) => Err(anyhow::anyhow!("{} is not text", path.display()).into()),
    }
}

/// Reads an answer.
///
/// # Errors
/// When it is not of the form that this release knows.
pub fn read<T: DeserializeOwned>(answer: &[u8]) -> Result<T> {
    Ok(serde_json::from_slice(answer)
        .context("the answer is not one that this release can read")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |name| {
            pairs
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| (*v).to_owned())
        }
    }

    #[test]
    fn flags_go_before_variables_and_variables_before_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let context = folder.path().join("chancery").join("context.toml");
        std::fs::create_dir_all(context.parent().expect("it has a folder")).expect("made");
        std::fs::write(
            &context,
            "server = 'nats://file'\ncreds = 'file.creds'\nproject = 'of-file'\n",
        )
        .expect("written");
        let xdg = folder.path().to_str().expect("utf-8");

        let plain = Settings::resolve(&Global::default(), environment(&[])).expect("resolved");
        assert_eq!(
            plain,
            Settings {
                server: SERVER.to_owned(),
                login: None,
                project: None
            }
        );

        let of_file =
            Settings::resolve(&Global::default(), environment(&[("XDG_CONFIG_HOME", xdg)]))
                .expect("resolved");
        assert_eq!(of_file.server, "nats://file");
        assert_eq!(
            of_file.login,
            Some(Login::Creds(context.with_file_name("file.creds")))
        );
        assert_eq!(of_file.project.as_ref().map(Slug::as_str), Some("of-file"));

        let variables = [
            ("XDG_CONFIG_HOME", xdg),
            ("CHANCERY_SERVER", "nats://env"),
            ("CHANCERY_NKEY", "env.seed"),
            ("CHANCERY_PROJECT", "of-env"),
        ];
        let of_env =
            Settings::resolve(&Global::default(), environment(&variables)).expect("resolved");
        assert_eq!(of_env.server, "nats://env");
        assert_eq!(
            of_env.login,
            Some(Login::Nkey("env.seed".into())),
            "a key in the environment outdoes the file's credentials"
        );
        assert_eq!(of_env.project.as_ref().map(Slug::as_str), Some("of-env"));

        let flags = Global {
            server: Some("nats://flag".to_owned()),
            creds: Some("flag.creds".into()),
            project: Some(Slug::project("of-flag").expect("a slug")),
            ..Global::default()
        };
        let of_flags = Settings::resolve(&flags, environment(&variables)).expect("resolved");
        assert_eq!(of_flags.server, "nats://flag");
        assert_eq!(of_flags.login, Some(Login::Creds("flag.creds".into())));
        assert_eq!(of_flags.project.as_ref().map(Slug::as_str), Some("of-flag"));
    }

    #[test]
    fn a_context_that_is_named_must_be_there_and_right() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("c.toml");
        let flags = Global {
            context: Some(path.clone()),
            ..Global::default()
        };
        assert!(matches!(
            Settings::resolve(&flags, environment(&[])),
            Err(Failure::CouldNotRun(_))
        ));
        std::fs::write(&path, "sever = 'x'").expect("written");
        assert!(matches!(
            Settings::resolve(&flags, environment(&[])),
            Err(Failure::CouldNotRun(_))
        ));
        std::fs::write(&path, "server = 'x'").expect("written");
        assert_eq!(
            Settings::resolve(&flags, environment(&[]))
                .expect("resolved")
                .server,
            "x"
        );
        let wrong = [("CHANCERY_PROJECT", "No Project")];
        assert!(matches!(
            Settings::resolve(&flags, environment(&wrong)),
            Err(Failure::Usage(_))
        ));
    }

    #[test]
    fn the_project_is_read_from_the_users_tags() {
        let identity = bus::identity::Identity::generate();
        let credentials = identity
            .project_user("acme", "alice", &bus::identity::Rights::All, 1, 2)
            .expect("a user is minted");
        assert_eq!(
            project_of(&credentials.jwt).as_ref().map(Slug::as_str),
            Some("acme")
        );
        for wrong in ["", "a.b.c", "a..c", "x"] {
            assert_eq!(project_of(wrong), None);
        }
    }
}
