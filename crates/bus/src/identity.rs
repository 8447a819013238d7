//! Operator, accounts and users: the JWTs that nats-server believes, minted from one secret.
//!
//! Every key is derived (HKDF-SHA256) from a 32-byte root and the key's name, so the whole identity is one small
//! thing for the vault to seal, a restored control plane has the same accounts, and a hundred thousand projects
//! need no table of seeds. A generation counter per name replaces a single key without touching the others.
//!
//! A user's rights are the permissions of the scoped key that signed its JWT, nothing in the JWT itself; chosen rights
//! ([`Rights::Only`]) are tags which the template of the role `limited` or `delegate` turns into subjects, so that the
//! *server* refuses the rest. The registrar compares the access record once more.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Mutex,
};

use aws_lc_rs::{digest, hkdf, rand};
use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD, HEXLOWER};
use nkeys::{KeyPair, KeyPairType};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    PREFIX,
    templates::{EXPORTS, Flow, Place, Role, TEMPLATES, Template, USER_PAYLOAD},
};

/// The slug of the operator's own project.
pub const PLATFORM: &str = "platform";

/// Verified JWTs that are remembered; a forgotten one is verified again (about 40 µs).
const CACHE_LIMIT: usize = 8_192;

/// Rights of one user at most.
pub const RIGHTS_LIMIT: usize = 32;

/// Connections that one project may hold.
const PROJECT_CONNECTIONS: i64 = 100;

/// Subscriptions that one project may hold, over all its connections.
const PROJECT_SUBSCRIPTIONS: i64 = 1_000;

/// Why something could not be minted or was not believed.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum Error {
    /// The sealed identity cannot be read by this release.
    #[error("the NATS identity is damaged or of an unknown version")]
    Damaged,
    /// A name would change the meaning of a subject or of a template.
    #[error("{0} is not usable as a name here")]
    Name(&'static str),
    /// A right is not of the form `cmd.<noun>.<verb>`, `query.<view>` or `evt.<noun>.<fact>`.
    #[error(
        "a right is `cmd.<noun>.<verb>`, `query.<view>` or `evt.<noun>.<fact>`, where `*` stands for any one word"
    )]
    Right,
    /// More rights than one user can carry.
    #[error("a user has at most {RIGHTS_LIMIT} rights")]
    TooManyRights,
    /// The JWT is not of the shape that we mint.
    #[error("the user JWT is malformed")]
    Malformed,
    /// The JWT was signed by a key that is not ours, or not at all.
    #[error("the user JWT is not signed by a key of this system")]
    Untrusted,
    /// The JWT's time is over.
    #[error("the user JWT has expired")]
    Expired,
}

/// The account that an actor uses.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Account {
    /// The server's system account.
    System,
    /// Streams and internal subjects.
    Core,
    /// All edges.
    Edges,
    /// A project's, by its slug; `platform` is the operator's.
    Project(String),
}

impl Account {
    fn key_name(&self) -> String {
        match self {
            Account::System => "account/SYS".to_owned(),
            Account::Core => "account/CORE".to_owned(),
            Account::Edges => "account/EDGES".to_owned(),
            Account::Project(slug) => format!("project/{slug}"),
        }
    }

    fn place(&self) -> Place {
        match self {
            Account::System => Place::System,
            Account::Core => Place::Core,
            Account::Edges => Place::Edges,
            Account::Project(slug) if slug == PLATFORM => Place::Platform,
            Account::Project(_) => Place::Project,
        }
    }
}

/// One subject pattern that a user may use: `cmd.certificate.*`, `query.*`, `evt.*.*`. A `cmd` right holds for `queue` too.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Right {
    kind: String,
    pattern: String,
}

impl Right {
    /// Reads a right.
    ///
    /// # Errors
    /// [`Error::Right`] when it is not of the form above.
    pub fn parse(text: &str) -> Result<Right, Error> {
        let (kind, pattern) = text.split_once('.').ok_or(Error::Right)?;
        let words = match kind {
            "cmd" | "evt" => 2,
            "query" => 1,
            _ => return Err(Error::Right),
        };
        let fits = pattern.split('.').count() == words
            && pattern.split('.').all(|word| word == "*" || is_token(word));
        if fits {
            Ok(Right {
                kind: kind.to_owned(),
                pattern: pattern.to_owned(),
            })
        } else {
            Err(Error::Right)
        }
    }

    /// Whether it is the right to take private keys out, by its name.
    fn is_export(&self) -> bool {
        self.kind == "cmd" && self.pattern.split('.').eq(EXPORT)
    }

    /// Whether the right allows a subject part like `cmd.certificate.add` (without project).
    #[must_use]
    pub fn allows(&self, kind: &str, words: &[&str]) -> bool {
        let kind = if kind == "queue" { "cmd" } else { kind };
        self.kind == kind
            && self.pattern.split('.').count() == words.len()
            && self
                .pattern
                .split('.')
                .zip(words)
                .all(|(pattern, word)| pattern == "*" || pattern == *word)
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.kind, self.pattern)
    }
}

impl TryFrom<String> for Right {
    type Error = Error;
    fn try_from(text: String) -> Result<Right, Error> {
        Right::parse(&text)
    }
}

impl From<Right> for String {
    fn from(right: Right) -> String {
        right.to_string()
    }
}

/// What a user of a project may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rights {
    /// Every command and query of the project, and its events; but not [`EXPORT`].
    All,
    /// The same, and [`EXPORT`].
    AllAndExport,
    /// Queries and events.
    Read,
    /// Only these. [`EXPORT`] is among them only when it is spelled out: no pattern covers it.
    Only(Vec<Right>),
}

/// The command that takes private keys out, as noun and verb. Server permissions are patterns and let it pass with the others,
/// so the user's JWT must name it, and the door looks.
pub const EXPORT: [&str; 2] = ["certificate", "export"];

impl Rights {
    /// Whether these rights allow `kind` (`cmd`, `queue`, `query` or `evt`) with these words after the project.
    #[must_use]
    pub fn allow(&self, kind: &str, words: &[&str]) -> bool {
        if words == EXPORT && matches!(kind, "cmd" | "queue") {
            let named = match self {
                Rights::AllAndExport => true,
                Rights::Only(rights) => rights.iter().any(Right::is_export),
                Rights::All | Rights::Read => false,
            };
            return named && kind == "cmd";
        }
        match self {
            Rights::All | Rights::AllAndExport => true,
            Rights::Read => matches!(kind, "query" | "evt"),
            Rights::Only(rights) => rights.iter().any(|right| right.allows(kind, words)),
        }
    }

    fn role(&self, project: &str) -> Role {
        match (self, project == PLATFORM) {
            (Rights::All | Rights::AllAndExport, true) => Role::Operator,
            (Rights::Read, true) => Role::Auditor,
            (Rights::Only(_), true) => Role::Delegate,
            (Rights::All | Rights::AllAndExport, false) => Role::Member,
            (Rights::Read, false) => Role::Reader,
            (Rights::Only(_), false) => Role::Limited,
        }
    }
}

/// A project's account as the access records have it.
#[derive(Debug, Clone, Default)]
pub struct ProjectAccount {
    /// The project's slug.
    pub project: String,
    /// A suspended project's account takes no connections, and open ones are closed.
    pub suspended: bool,
    /// Revoked users: public user key, and the Unix second up to which JWTs issued for it are void.
    pub revoked: BTreeMap<String, u64>,
}

/// The credentials of one user: a JWT and the seed that proves it.
#[derive(Clone)]
pub struct Credentials {
    /// The public user key, which revocation names.
    pub user: String,
    /// The signed JWT; not a secret by itself.
    pub jwt: String,
    seed: Zeroizing<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// The text of a `.creds` file, as every NATS client reads it. It is a secret.
    #[must_use]
    pub fn creds(&self) -> Zeroizing<String> {
        Zeroizing::new(format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\
             The seed below is a private key: whoever holds this file is this user.\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n\n\
             *************************************************************\n",
            self.jwt, *self.seed
        ))
    }

    /// Reads the text of a `.creds` file. The JWT's signature is the server's to check.
    ///
    /// # Errors
    /// [`Error::Malformed`] when a part is missing or the seed is not a user's.
    pub fn parse(creds: &str) -> Result<Credentials, Error> {
        let section = |name: &str| {
            let begin = format!("-----BEGIN {name}-----");
            let body = &creds[creds.find(&begin)? + begin.len()..];
            let body = &body[..body.find("-----")?];
            Some(body.trim().to_owned())
        };
        let jwt = section("NATS USER JWT").ok_or(Error::Malformed)?;
        let seed = Zeroizing::new(section("USER NKEY SEED").ok_or(Error::Malformed)?);
        let key = KeyPair::from_seed(&seed).map_err(|_| Error::Malformed)?;
        if key.key_pair_type() != KeyPairType::User {
            return Err(Error::Malformed);
        }
        Ok(Credentials {
            user: key.public_key(),
            jwt,
            seed,
        })
    }

    /// Signs the nonce with which a server greets.
    #[must_use]
    pub fn sign(&self, nonce: &[u8]) -> Vec<u8> {
        let key = KeyPair::from_seed(&self.seed).expect("the seed was checked or made by us");
        key.sign(nonce).expect("a key pair with a seed signs")
    }
}

/// Everything that proves who is who on the bus. The root never leaves this struct except by [`Identity::to_bytes`].
#[derive(Clone)]
pub struct Identity {
    root: Zeroizing<[u8; 32]>,
    /// How often a key was replaced, by its name; absent means never.
    generations: BTreeMap<String, u32>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("generations", &self.generations)
            .finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
struct Sealed {
    version: u32,
    root: String,
    generations: BTreeMap<String, u32>,
}

impl Drop for Sealed {
    fn drop(&mut self) {
        self.root.zeroize();
    }
}

struct Length;

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        32
    }
}

impl Identity {
    /// A new identity from the system's random source.
    #[must_use]
    pub fn generate() -> Identity {
        let mut root = Zeroizing::new([0; 32]);
        rand::fill(root.as_mut()).expect("the system's random source works");
        Identity {
            root,
            generations: BTreeMap::new(),
        }
    }

    /// The bytes to seal. They are the secret itself.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let sealed = Sealed {
            version: 1,
            root: HEXLOWER.encode(self.root.as_ref()),
            generations: self.generations.clone(),
        };
        Zeroizing::new(serde_json::to_vec(&sealed).expect("text and numbers are always JSON"))
    }

    /// The identity from bytes that [`Identity::to_bytes`] made.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Identity, Error> {
        let sealed: Sealed = serde_json::from_slice(bytes).map_err(|_| Error::Damaged)?;
        let decoded = Zeroizing::new(
            HEXLOWER
                .decode(sealed.root.as_bytes())
                .map_err(|_| Error::Damaged)?,
        );
        if sealed.version != 1 || decoded.len() != 32 {
            return Err(Error::Damaged);
        }
        let mut root = Zeroizing::new([0; 32]);
        root.copy_from_slice(&decoded);
        Ok(Identity {
            root,
            generations: sealed.generations.clone(),
        })
    }

    /// Replaces the signing key of a role. Users whose JWTs the old key signed are disconnected as soon as the
    /// accounts have been pushed anew, and need new credentials.
    pub fn replace_signing_key(&mut self, role: Role) {
        *self.generations.entry(signing_name(role)).or_default() += 1;
    }

    fn key(&self, kind: KeyPairType, name: &str) -> KeyPair {
        let generation = self.generations.get(name).copied().unwrap_or(0).to_string();
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"chancery nats identity v1");
        let mut seed = Zeroizing::new([0; 32]);
        salt.extract(self.root.as_ref())
            .expand(&[name.as_bytes(), b"\0", generation.as_bytes()], Length)
            .and_then(|output| output.fill(seed.as_mut()))
            .expect("32 bytes are within the limit of HKDF");
        KeyPair::new_from_raw(kind, *seed).expect("32 bytes make a key")
    }

    fn operator(&self) -> KeyPair {
        self.key(KeyPairType::Operator, "operator")
    }

    fn signing(&self, role: Role) -> KeyPair {
        self.key(KeyPairType::Account, &signing_name(role))
    }

    /// The public key of an account, by which the server names it.
    #[must_use]
    pub fn account_public(&self, account: &Account) -> String {
        self.key(KeyPairType::Account, &account.key_name())
            .public_key()
    }

    /// The public key of the scoped signing key of a role.
    #[must_use]
    pub fn signing_public(&self, role: Role) -> String {
        self.signing(role).public_key()
    }

    /// The operator's self-signed JWT.
    #[must_use]
    pub fn operator_jwt(&self, iat: u64) -> String {
        let operator = self.operator();
        let nats = json!({
            "type": "operator", "version": 2, "system_account": self.account_public(&Account::System),
        });
        mint(
            &operator,
            &operator.public_key(),
            "chancery",
            iat,
            None,
            nats,
        )
    }

    /// The JWT of EDGES. `revoked` names evicted edges by their public keys, each with the Unix second up to which JWTs that
    /// were issued for it are void.
    #[must_use]
    pub fn edges_account_jwt(&self, revoked: &BTreeMap<String, u64>, iat: u64) -> String {
        self.shared_account_jwt(&Account::Edges, revoked, iat)
    }

    /// The JWT of SYS, CORE or EDGES.
    fn shared_account_jwt(
        &self,
        account: &Account,
        revoked: &BTreeMap<String, u64>,
        iat: u64,
    ) -> String {
        let core = self.account_public(&Account::Core);
        let mut nats = json!({
            "type": "account", "version": 2,
            "limits": limits(json!({"conn": -1, "subs": -1, "payload": -1, "disallow_bearer": true})),
            "signing_keys": self.scopes(account.place()),
        });
        match account {
            Account::Core => {
                nats["limits"] = limits(json!({
                    "conn": -1, "subs": -1, "payload": -1, "disallow_bearer": true,
                    "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
                }));
                let exports = EXPORTS.iter().map(|export| {
                    let subject = format!("{PREFIX}{}.>", export.word);
                    match export.flow {
                        Flow::Service => {
                            json!({"name": export.word, "subject": subject, "type": "service", "response_type": "Singleton"})
                        }
                        Flow::Stream => json!({"name": export.word, "subject": subject, "type": "stream"}),
                    }
                });
                nats["exports"] = exports.collect();
            }
            Account::Edges => {
                nats["imports"] = imports(&core, true, None);
                if !revoked.is_empty() {
                    nats["revocations"] = json!(revoked);
                }
            }
            Account::System | Account::Project(_) => {}
        }
        let public = self.account_public(account);
        mint(
            &self.operator(),
            &public,
            account.place().word(),
            iat,
            None,
            nats,
        )
    }

    /// The JWT of a project's account, `platform` included.
    ///
    /// # Errors
    /// [`Error::Name`] when the project's slug is not one.
    pub fn project_account_jwt(&self, project: &ProjectAccount, iat: u64) -> Result<String, Error> {
        let slug = &project.project;
        if !is_token(slug) {
            return Err(Error::Name("the project"));
        }
        let account = Account::Project(slug.clone());
        let place = account.place();
        let part = (place == Place::Project).then_some(slug.as_str());
        let connections = match (place, project.suspended) {
            (Place::Platform, _) => -1,
            (_, true) => 0,
            (_, false) => PROJECT_CONNECTIONS,
        };
        let subscriptions = if place == Place::Platform {
            -1
        } else {
            PROJECT_SUBSCRIPTIONS
        };
        let mut nats = json!({
            "type": "account", "version": 2,
            "limits": limits(json!({
                "conn": connections, "subs": subscriptions, "payload": USER_PAYLOAD, "disallow_bearer": true,
            })),
            "imports": imports(&self.account_public(&Account::Core), false, part),
            "signing_keys": self.scopes(place),
        });
        if !project.revoked.is_empty() {
            nats["revocations"] = json!(project.revoked);
        }
        Ok(mint(
            &self.operator(),
            &self.account_public(&account),
            slug,
            iat,
            None,
            nats,
        ))
    }

    /// A request, signed by the operator, to delete the accounts of projects.
    #[must_use]
    pub fn delete_accounts_jwt(&self, projects: &[String], iat: u64) -> String {
        let operator = self.operator();
        let accounts: Vec<String> = projects
            .iter()
            .map(|project| self.account_public(&Account::Project(project.clone())))
            .collect();
        let nats = json!({"type": "generic", "version": 2, "accounts": accounts});
        mint(&operator, &operator.public_key(), "delete", iat, None, nats)
    }

    fn scopes(&self, place: Place) -> Value {
        TEMPLATES
            .iter()
            .filter(|template| template.place == place)
            .map(|template| {
                json!({
                    "kind": "user_scope", "key": self.signing_public(template.role), "role": template.name,
                    "template": permissions(template),
                })
            })
            .collect()
    }

    /// The text of `identity.conf`: the operator, the system account and the accounts that must be there at start.
    ///
    /// A server takes a preloaded account only if the one that it keeps is not newer. EDGES and `platform` are therefore
    /// dated as early as can be: what was pushed before, revocations above all, stays in force from the first moment after
    /// a restart, and the next push brings what has changed.
    #[must_use]
    pub fn server_conf(&self, iat: u64) -> String {
        const LONG_AGO: u64 = 1;
        let platform = ProjectAccount {
            project: PLATFORM.to_owned(),
            ..ProjectAccount::default()
        };
        let accounts = [Account::System, Account::Core, Account::Edges];
        let mut preload = String::new();
        for account in &accounts {
            let iat = if *account == Account::Edges {
                LONG_AGO
            } else {
                iat
            };
            preload.push_str(&format!(
                "  {}: {}\n",
                self.account_public(account),
                self.shared_account_jwt(account, &BTreeMap::new(), iat)
            ));
        }
        let platform_jwt = self
            .project_account_jwt(&platform, LONG_AGO)
            .expect("`platform` is a slug");
        preload.push_str(&format!(
            "  {}: {platform_jwt}\n",
            self.account_public(&Account::Project(PLATFORM.to_owned()))
        ));
        format!(
            "operator: {}\nsystem_account: {}\nresolver_preload {{\n{preload}}}\n",
            self.operator_jwt(iat),
            self.account_public(&Account::System),
        )
    }

    /// The credentials of one of our own roles, with a key pair made for this one use.
    ///
    /// `name` becomes part of the inbox's subject and must be one word.
    ///
    /// # Errors
    /// [`Error::Name`] for a name that is not one word, or a role that needs a project or a region.
    pub fn internal(
        &self,
        role: Role,
        name: &str,
        iat: u64,
        exp: u64,
    ) -> Result<Credentials, Error> {
        let account = match role.template().place {
            Place::System => Account::System,
            Place::Core => Account::Core,
            Place::Edges | Place::Platform | Place::Project => return Err(Error::Name("the role")),
        };
        if !is_token(name) {
            return Err(Error::Name("the user"));
        }
        Ok(self.user(role, &account, name, &[], iat, exp))
    }

    /// The credentials of a user of a project (of the operator, for `platform`). `actor` is an opaque id, which events name.
    ///
    /// # Errors
    /// [`Error::Name`] or [`Error::TooManyRights`].
    pub fn project_user(
        &self,
        project: &str,
        actor: &str,
        rights: &Rights,
        iat: u64,
        exp: u64,
    ) -> Result<Credentials, Error> {
        let tags = project_tags(project, actor, rights)?;
        Ok(self.user(
            rights.role(project),
            &Account::Project(project.to_owned()),
            actor,
            &tags,
            iat,
            exp,
        ))
    }

    /// The credentials of an edge, or with `enrol` of a token that can only ask for its enrolment.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn edge_user(
        &self,
        region: &str,
        edge: &str,
        enrol: bool,
        iat: u64,
        exp: u64,
    ) -> Result<Credentials, Error> {
        if !is_token(region) || !is_token(edge) {
            return Err(Error::Name("the region or the edge"));
        }
        let role = if enrol { Role::Enrol } else { Role::Edge };
        let tags = [format!("region:{region}"), format!("edge:{edge}")];
        Ok(self.user(
            role,
            &Account::Edges,
            &format!("{region}.{edge}"),
            &tags,
            iat,
            exp,
        ))
    }

    fn user(
        &self,
        role: Role,
        account: &Account,
        name: &str,
        tags: &[String],
        iat: u64,
        exp: u64,
    ) -> Credentials {
        let key = KeyPair::new_user();
        let user = key.public_key();
        let jwt = self.user_jwt(role, account, name, tags, &user, iat, exp);
        let seed = Zeroizing::new(key.seed().expect("a new key pair has its seed"));
        Credentials { user, jwt, seed }
    }

    #[allow(clippy::too_many_arguments)]
    fn user_jwt(
        &self,
        role: Role,
        account: &Account,
        name: &str,
        tags: &[String],
        user: &str,
        iat: u64,
        exp: u64,
    ) -> String {
        let mut nats =
            json!({"type": "user", "version": 2, "issuer_account": self.account_public(account)});
        if !tags.is_empty() {
            nats["tags"] = json!(tags);
        }
        mint(&self.signing(role), user, name, iat, Some(exp), nats)
    }

    /// The JWT of a user of a project who made the key pair: `user` is its public half, and the seed never left them.
    ///
    /// # Errors
    /// [`Error::Name`] or [`Error::TooManyRights`].
    pub fn project_user_jwt(
        &self,
        project: &str,
        actor: &str,
        rights: &Rights,
        user: &str,
        iat: u64,
        exp: u64,
    ) -> Result<String, Error> {
        let tags = project_tags(project, actor, rights)?;
        let account = Account::Project(project.to_owned());
        Ok(self.user_jwt(rights.role(project), &account, actor, &tags, user, iat, exp))
    }

    /// The JWT of an edge that made the key pair: `user` is its public half.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn edge_user_jwt(
        &self,
        region: &str,
        edge: &str,
        user: &str,
        iat: u64,
        exp: u64,
    ) -> Result<String, Error> {
        if !is_token(region) || !is_token(edge) {
            return Err(Error::Name("the region or the edge"));
        }
        let tags = [format!("region:{region}"), format!("edge:{edge}")];
        let name = format!("{region}.{edge}");
        Ok(self.user_jwt(Role::Edge, &Account::Edges, &name, &tags, user, iat, exp))
    }

    /// What checks the JWTs of users; it holds public keys only.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        let issuers = TEMPLATES
            .iter()
            .map(|template| (self.signing_public(template.role), template.role))
            .collect();
        Verifier {
            issuers,
            edges: self.account_public(&Account::Edges),
            platform: self.account_public(&Account::Project(PLATFORM.to_owned())),
            cache: Mutex::default(),
        }
    }
}

/// A user whose JWT one of our keys signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedUser {
    /// The public key of the account that the user belongs to.
    pub account: String,
    /// The project of that account; none for edges and our own roles.
    pub project: Option<String>,
    /// Region and edge, for an edge.
    pub edge: Option<(String, String)>,
    /// The opaque id of the actor.
    pub actor: String,
    /// The role whose key signed.
    pub role: Role,
    /// What the user may do in the project.
    pub rights: Rights,
    /// The public key of the user.
    pub subject: String,
    /// When the JWT ends, Unix seconds.
    pub expires: u64,
}

/// Checks user JWTs against our signing keys, and remembers the good ones by their hash.
pub struct Verifier {
    issuers: HashMap<String, Role>,
    edges: String,
    platform: String,
    /// Two halves: when the young one is full it becomes the old one, so that memory is bounded and hot entries stay.
    cache: Mutex<(Cache, Cache)>,
}

type Cache = HashMap<[u8; 32], std::sync::Arc<VerifiedUser>>;

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("issuers", &self.issuers.len())
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct UserClaims {
    iss: String,
    sub: String,
    name: String,
    exp: u64,
    nats: UserNats,
}

#[derive(Deserialize)]
struct UserNats {
    #[serde(rename = "type")]
    kind: String,
    version: u32,
    issuer_account: String,
    #[serde(default)]
    tags: Vec<String>,
}

impl Verifier {
    /// The public key of the account of all edges.
    #[must_use]
    pub fn edges_account(&self) -> &str {
        &self.edges
    }

    /// Checks a user JWT: shape, signature by one of our scoped keys, and that `now` (Unix seconds) is before its end.
    ///
    /// # Errors
    /// [`Error::Malformed`], [`Error::Untrusted`] or [`Error::Expired`].
    pub fn verify(&self, jwt: &str, now: u64) -> Result<std::sync::Arc<VerifiedUser>, Error> {
        let hash: [u8; 32] = digest::digest(&digest::SHA256, jwt.as_bytes())
            .as_ref()
            .try_into()
            .expect("a SHA-256 digest has 32 bytes");
        let remembered = {
            let cache = self
                .cache
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            cache.0.get(&hash).or_else(|| cache.1.get(&hash)).cloned()
        };
        let user = match remembered {
            Some(user) => user,
            None => {
                let user = std::sync::Arc::new(self.read(jwt)?);
                let mut cache = self
                    .cache
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                if cache.0.len() >= CACHE_LIMIT / 2 {
                    cache.1 = std::mem::take(&mut cache.0);
                }
                cache.0.insert(hash, user.clone());
                user
            }
        };
        if user.expires <= now {
            Err(Error::Expired)
        } else {
            Ok(user)
        }
    }

    fn read(&self, jwt: &str) -> Result<VerifiedUser, Error> {
        let mut parts = jwt.split('.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Error::Malformed);
        };
        let decode = |part: &str| {
            BASE64URL_NOPAD
                .decode(part.as_bytes())
                .map_err(|_| Error::Malformed)
        };
        let signed = &jwt[..header.len() + 1 + claims.len()];
        let header: Value =
            serde_json::from_slice(&decode(header)?).map_err(|_| Error::Malformed)?;
        if header["typ"] != "JWT" || header["alg"] != "ed25519-nkey" {
            return Err(Error::Malformed);
        }
        let claims: UserClaims =
            serde_json::from_slice(&decode(claims)?).map_err(|_| Error::Malformed)?;
        let role = *self.issuers.get(&claims.iss).ok_or(Error::Untrusted)?;
        KeyPair::from_public_key(&claims.iss)
            .and_then(|key| key.verify(signed.as_bytes(), &decode(signature).unwrap_or_default()))
            .map_err(|_| Error::Untrusted)?;
        if claims.nats.kind != "user" || claims.nats.version != 2 {
            return Err(Error::Malformed);
        }
        let place = role.template().place;
        let is_edge = place == Place::Edges;
        if is_edge != (claims.nats.issuer_account == self.edges)
            || (place == Place::Platform) != (claims.nats.issuer_account == self.platform)
        {
            return Err(Error::Untrusted);
        }
        let tags = &claims.nats.tags;
        let edge = if is_edge {
            Some((only_tag(tags, "region")?, only_tag(tags, "edge")?))
        } else {
            None
        };
        let project = match place {
            Place::Project | Place::Platform => Some(only_tag(tags, "project")?),
            Place::System | Place::Core | Place::Edges => None,
        };
        if project
            .as_deref()
            .is_some_and(|project| (project == PLATFORM) != (place == Place::Platform))
        {
            return Err(Error::Untrusted);
        }
        let rights = match role {
            Role::Operator | Role::Member if tags.iter().any(|tag| *tag == export_tag()) => {
                Rights::AllAndExport
            }
            Role::Operator | Role::Member => Rights::All,
            Role::Auditor | Role::Reader => Rights::Read,
            _ => Rights::Only(
                tags.iter()
                    .filter_map(|tag| tag.split_once(':'))
                    .filter_map(|(kind, pattern)| Right::parse(&format!("{kind}.{pattern}")).ok())
                    .collect(),
            ),
        };
        Ok(VerifiedUser {
            account: claims.nats.issuer_account,
            project,
            edge,
            actor: claims.name,
            role,
            rights,
            subject: claims.sub,
            expires: claims.exp,
        })
    }
}

/// The value of a tag that must be there exactly once: two would give both.
fn only_tag(tags: &[String], name: &str) -> Result<String, Error> {
    let mut values = tags
        .iter()
        .filter_map(|tag| tag.split_once(':'))
        .filter(|(key, _)| *key == name);
    match (values.next(), values.next()) {
        (Some((_, value)), None) if is_token(value) => Ok(value.to_owned()),
        _ => Err(Error::Malformed),
    }
}

fn signing_name(role: Role) -> String {
    format!("signing/{}", role.name())
}

fn project_tags(project: &str, actor: &str, rights: &Rights) -> Result<Vec<String>, Error> {
    if !is_token(project) {
        return Err(Error::Name("the project"));
    }
    if !is_actor(actor) {
        return Err(Error::Name("the actor"));
    }
    let mut tags = vec![format!("project:{project}")];
    match rights {
        Rights::Only(rights) => {
            if rights.len() > RIGHTS_LIMIT {
                return Err(Error::TooManyRights);
            }
            tags.extend(
                rights
                    .iter()
                    .map(|right| format!("{}:{}", right.kind, right.pattern)),
            );
        }
        Rights::AllAndExport => tags.push(export_tag()),
        Rights::All | Rights::Read => {}
    }
    Ok(tags)
}

fn export_tag() -> String {
    format!("cmd:{}", EXPORT.join("."))
}

/// One word of a subject as we use them: lower-case letters, digits and hyphens, 1 to 64.
#[must_use]
pub fn is_token(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

fn is_actor(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// The account limits that are the same everywhere, and those given. What is not named, JetStream above all, is nought.
fn limits(given: Value) -> Value {
    let mut limits =
        json!({"data": -1, "imports": -1, "exports": -1, "wildcards": true, "leaf": 0});
    if let (Some(limits), Value::Object(given)) = (limits.as_object_mut(), given) {
        limits.extend(given);
    }
    limits
}

/// What an account imports from CORE: its own part, or all.
fn imports(core: &str, for_edges: bool, part: Option<&str>) -> Value {
    EXPORTS
        .iter()
        .filter(|export| export.for_edges == for_edges)
        .map(|export| {
            let subject = match part {
                Some(slug) => format!("{PREFIX}{}.{slug}.>", export.word),
                None => format!("{PREFIX}{}.>", export.word),
            };
            match export.flow {
                Flow::Service => json!({
                    "name": export.word, "subject": subject, "account": core, "type": "service", "share": true,
                }),
                Flow::Stream => json!({"name": export.word, "subject": subject, "account": core, "type": "stream"}),
            }
        })
        .collect()
}

fn permissions(template: &Template) -> Value {
    let mut permissions = json!({
        "sub": {"allow": template.subscribe},
        "subs": template.subscriptions, "data": -1, "payload": template.payload,
        "allowed_connection_types": ["STANDARD"],
    });
    permissions["pub"] = if template.publish.is_empty() {
        json!({"deny": [">"]})
    } else {
        json!({"allow": template.publish})
    };
    if let Some(answers) = template.answers {
        permissions["resp"] = json!({"max": answers.max, "ttl": answers.seconds * 1_000_000_000});
    }
    permissions
}

/// Signs claims in the form that nats-server reads: `jti` is the base32 of the SHA-512/256 of the claims without it.
fn mint(
    signer: &KeyPair,
    subject: &str,
    name: &str,
    iat: u64,
    exp: Option<u64>,
    nats: Value,
) -> String {
    let mut claims =
        json!({"iat": iat, "iss": signer.public_key(), "sub": subject, "name": name, "nats": nats});
    if let Some(exp) = exp {
        claims["exp"] = json!(exp);
    }
    let id = digest::digest(&digest::SHA512_256, claims.to_string().as_bytes());
    claims["jti"] = json!(BASE32_NOPAD.encode(id.as_ref()));
    let header = BASE64URL_NOPAD.encode(br#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let body = BASE64URL_NOPAD.encode(claims.to_string().as_bytes());
    let signed = format!("{header}.{body}");
    let signature = signer
        .sign(signed.as_bytes())
        .expect("a derived key pair has its seed");
    format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(jwt: &str) -> Value {
        let body = jwt.split('.').nth(1).expect("claims");
        serde_json::from_slice(&BASE64URL_NOPAD.decode(body.as_bytes()).expect("base64url"))
            .expect("JSON")
    }

    #[test]
    fn sealed_and_read_back_it_is_the_same_identity() {
        let identity = Identity::generate();
        let again = Identity::from_bytes(&identity.to_bytes()).expect("readable");
        assert_eq!(identity.operator_jwt(7), again.operator_jwt(7));
        for account in [Account::Core, Account::Project("acme".to_owned())] {
            assert_eq!(
                identity.account_public(&account),
                again.account_public(&account)
            );
        }
        assert_ne!(
            Identity::generate().operator_jwt(7),
            identity.operator_jwt(7)
        );
        assert_eq!(
            Identity::from_bytes(b"{}").expect_err("damaged"),
            Error::Damaged
        );
    }

    #[test]
    fn a_replaced_key_is_another_and_leaves_the_rest() {
        let mut identity = Identity::generate();
        let (member, reader) = (
            identity.signing_public(Role::Member),
            identity.signing_public(Role::Reader),
        );
        identity.replace_signing_key(Role::Member);
        assert_ne!(identity.signing_public(Role::Member), member);
        assert_eq!(identity.signing_public(Role::Reader), reader);
        let again = Identity::from_bytes(&identity.to_bytes()).expect("readable");
        assert_eq!(
            identity.signing_public(Role::Member),
            again.signing_public(Role::Member)
        );
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let identity = Identity::generate();
        let user = identity
            .project_user("acme", "a1", &Rights::All, 1, 2)
            .expect("minted");
        let root = HEXLOWER.encode(identity.root.as_ref());
        assert!(!format!("{identity:?}").contains(&root));
        assert!(!format!("{user:?}").contains(&*user.seed));
    }

    #[test]
    fn account_jwts_carry_the_templates_and_nothing_else() {
        let identity = Identity::generate();
        let project = ProjectAccount {
            project: "acme".to_owned(),
            ..ProjectAccount::default()
        };
        let platform = ProjectAccount {
            project: PLATFORM.to_owned(),
            ..ProjectAccount::default()
        };
        let accounts = [
            (
                Place::System,
                identity.shared_account_jwt(&Account::System, &BTreeMap::new(), 1),
            ),
            (
                Place::Core,
                identity.shared_account_jwt(&Account::Core, &BTreeMap::new(), 1),
            ),
            (
                Place::Edges,
                identity.shared_account_jwt(&Account::Edges, &BTreeMap::new(), 1),
            ),
            (
                Place::Platform,
                identity.project_account_jwt(&platform, 1).expect("minted"),
            ),
            (
                Place::Project,
                identity.project_account_jwt(&project, 1).expect("minted"),
            ),
        ];
        for (place, jwt) in accounts {
            let claims = claims(&jwt);
            let scopes = claims["nats"]["signing_keys"]
                .as_array()
                .expect("scopes")
                .clone();
            let templates: Vec<_> = TEMPLATES
                .iter()
                .filter(|template| template.place == place)
                .collect();
            assert_eq!(scopes.len(), templates.len());
            for (scope, template) in scopes.iter().zip(templates) {
                assert_eq!(scope["role"], template.name);
                assert_eq!(
                    scope["template"]["sub"],
                    json!({"allow": template.subscribe})
                );
                let published = &scope["template"]["pub"];
                if template.publish.is_empty() {
                    assert_eq!(*published, json!({"deny": [">"]}));
                } else {
                    assert_eq!(*published, json!({"allow": template.publish}));
                }
            }
            assert_eq!(claims["nats"]["limits"]["disallow_bearer"], true);
            let storage = claims["nats"]["limits"]["disk_storage"]
                .as_i64()
                .unwrap_or(0);
            assert_eq!(
                storage != 0,
                place == Place::Core,
                "only CORE has JetStream"
            );
        }
    }

    #[test]
    fn a_project_imports_its_own_part_only_and_shares_who_asks() {
        let identity = Identity::generate();
        let project = ProjectAccount {
            project: "acme".to_owned(),
            ..ProjectAccount::default()
        };
        let claims = claims(&identity.project_account_jwt(&project, 1).expect("minted"));
        let imports = claims["nats"]["imports"]
            .as_array()
            .expect("imports")
            .clone();
        assert_eq!(imports.len(), 4);
        for import in imports {
            let subject = import["subject"].as_str().expect("text");
            assert!(subject.ends_with(".acme.>"), "{subject}");
            assert_eq!(import["share"] == true, import["type"] == "service");
        }
        for slug in ["", "a.b", "*", ">", "A", "a b"] {
            let project = ProjectAccount {
                project: slug.to_owned(),
                ..ProjectAccount::default()
            };
            assert_eq!(
                identity.project_account_jwt(&project, 1),
                Err(Error::Name("the project"))
            );
        }
    }

    #[test]
    fn only_our_signature_before_its_end_is_believed() {
        let identity = Identity::generate();
        let verifier = identity.verifier();
        let rights = Rights::Only(vec![Right::parse("cmd.certificate.*").expect("a right")]);
        let credentials = identity
            .project_user("acme", "u-1", &rights, 100, 200)
            .expect("minted");
        for _ in 0..2 {
            let user = verifier.verify(&credentials.jwt, 199).expect("believed");
            assert_eq!(user.project.as_deref(), Some("acme"));
            assert_eq!((user.actor.as_str(), user.role), ("u-1", Role::Limited));
            assert_eq!(user.rights, rights);
            assert_eq!(
                user.account,
                identity.account_public(&Account::Project("acme".to_owned()))
            );
            assert_eq!(verifier.verify(&credentials.jwt, 200), Err(Error::Expired));
        }
        let stranger = Identity::generate()
            .project_user("acme", "u-1", &Rights::All, 100, 200)
            .expect("minted");
        assert_eq!(verifier.verify(&stranger.jwt, 150), Err(Error::Untrusted));
        // The claims of one with the signature of another.
        let other = identity
            .project_user("acme", "u-2", &Rights::All, 100, 200)
            .expect("minted");
        let (body, _) = other.jwt.rsplit_once('.').expect("three parts");
        let (_, signature) = credentials.jwt.rsplit_once('.').expect("three parts");
        assert_eq!(
            verifier.verify(&format!("{body}.{signature}"), 150),
            Err(Error::Untrusted)
        );
        for text in ["", "a.b.c", "..", "a.b", "a.b.c.d"] {
            assert_eq!(verifier.verify(text, 150), Err(Error::Malformed), "{text}");
        }
    }

    #[test]
    fn rights_are_patterns_of_whole_words() {
        let right = Right::parse("cmd.certificate.*").expect("a right");
        assert!(
            right.allows("cmd", &["certificate", "add"])
                && right.allows("queue", &["certificate", "add"])
        );
        assert!(
            !right.allows("cmd", &["domain", "add"]) && !right.allows("query", &["certificate"])
        );
        assert_eq!(right.to_string(), "cmd.certificate.*");
        for text in [
            "cmd",
            "cmd.a",
            "cmd.a.b.c",
            "cmd.>",
            "log.a.b",
            "query.a.b",
            "cmd.A.b",
            "cmd.a.b*",
            "cmd..b",
        ] {
            assert_eq!(Right::parse(text), Err(Error::Right), "{text}");
        }
    }

    #[test]
    fn a_creds_file_reads_back() {
        let identity = Identity::generate();
        let credentials = identity.edge_user("eu", "e1", false, 1, 2).expect("minted");
        let again = Credentials::parse(&credentials.creds()).expect("readable");
        assert_eq!(
            (again.user.as_str(), again.jwt.as_str()),
            (credentials.user.as_str(), credentials.jwt.as_str())
        );
        assert_eq!(again.sign(b"nonce"), credentials.sign(b"nonce"));
        assert!(Credentials::parse("nothing").is_err());
    }
}
