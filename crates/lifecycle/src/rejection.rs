//! Why the answer was no.

use std::fmt;

use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// The reason codes. A code, once published, never changes its meaning; each has a page in docs/errors.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Code {
            $($(#[$doc])* #[serde(rename = $text)] $variant,)*
        }

        impl Code {
            /// All codes.
            pub const ALL: &[Code] = &[$(Code::$variant),*];

            /// The code as programs see it.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text,)* }
            }

            /// The code of this text.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Code::$variant),)* _ => None }
            }
        }
    };
}

codes! {
    /// A PEM block is broken.
    PemMalformed = "pem_malformed",
    /// No certificate was found.
    NoCertificate = "no_certificate",
    /// The input is not PEM.
    NotPem = "not_pem",
    /// A server certificate came without its key.
    KeyMissing = "key_missing",
    /// A key where none belongs.
    KeyUnexpected = "key_unexpected",
    /// The key is not the leaf's.
    KeyMismatch = "key_mismatch",
    /// The key is encrypted.
    KeyEncrypted = "key_encrypted",
    /// The key came unsealed and must be seen as burnt.
    KeyInClear = "key_in_clear",
    /// A key of a kind that is not served.
    KeyUnsupported = "key_unsupported",
    /// RSA below 2048 bits.
    KeyTooSmall = "key_too_small",
    /// Signed with SHA-1 or MD5.
    SignatureWeak = "signature_weak",
    /// DH parameters, which no listener uses.
    DhParametersPresent = "dh_parameters_present",
    /// An intermediate is missing.
    ChainIncomplete = "chain_incomplete",
    /// The chain is not trusted where trust is demanded.
    ChainUntrusted = "chain_untrusted",
    /// It begins later.
    NotYetValid = "not_yet_valid",
    /// It has ended.
    Expired = "expired",
    /// It does not name the host.
    NameMismatch = "name_mismatch",
    /// It is not a certificate for servers.
    NotAServerCertificate = "not_a_server_certificate",
    /// It lives longer than the rules allow.
    LifetimeTooLong = "lifetime_too_long",
    /// It was revoked.
    Revoked = "revoked",
    /// The name is taken.
    DuplicateName = "duplicate_name",
    /// A quota is used up.
    QuotaExceeded = "quota_exceeded",
    /// It is still being verified.
    InProgress = "in_progress",
    /// Hosts would go dark.
    LastUsable = "last_usable",
    /// The confirmation is not the exact name.
    ConfirmationMismatch = "confirmation_mismatch",
    /// The claim is not proven.
    DomainUnproven = "domain_unproven",
    /// Another project, or the same one already, holds the claim.
    DomainClaimed = "domain_claimed",
    /// The name belongs to the platform or to everybody.
    DomainReserved = "domain_reserved",
    /// CAA forbids issuance.
    CaaForbids = "caa_forbids",
    /// A challenge cannot be reached.
    ChallengeUnreachable = "challenge_unreachable",
    /// Too many commands; says when to retry.
    RateLimited = "rate_limited",
    /// A TLS version that is not served.
    TlsVersionUnsupported = "tls_version_unsupported",
    /// A cipher suite that is not served.
    SuiteUnsupported = "suite_unsupported",
    /// HTTPS must be taken down in another order.
    DisableOrder = "disable_order",
    /// Larger than allowed.
    TooLarge = "too_large",
    /// Not now; says when to retry.
    Busy = "busy",
    /// The asker may not do this.
    Unauthorized = "unauthorized",
    /// There is no such thing.
    NotFound = "not_found",
    /// It clashes with the state as it is.
    Conflict = "conflict",
    /// The request is not of the form that its subject takes.
    Malformed = "malformed",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One reason with what mends it.
///
/// The texts name what the state holds and never quote what the command brought: a rejection goes into the log, and a log
/// must not carry whatever a client chose to write.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Reason {
    /// The code.
    pub code: Code,
    /// What was found, one sentence.
    pub message: String,
    /// What to do next; empty when there is nothing to do.
    #[serde(default)]
    pub hint: String,
}

impl Serialize for Reason {
    /// An empty hint is left out where fields have names. A row's fields have none: there each must be written, or what
    /// follows could not be read again.
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let skip = to.is_human_readable() && self.hint.is_empty();
        let mut fields = to.serialize_struct("Reason", if skip { 2 } else { 3 })?;
        fields.serialize_field("code", &self.code)?;
        fields.serialize_field("message", &self.message)?;
        if skip {
            fields.skip_field("hint")?;
        } else {
            fields.serialize_field("hint", &self.hint)?;
        }
        fields.end()
    }
}

impl Reason {
    /// A reason.
    pub fn new(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: hint.into(),
        }
    }
}

/// The domain said no. The first reason is the one that decided.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {}", .0.code, .0.message)]
pub struct Rejection(pub Reason);

impl Rejection {
    /// A rejection with one reason.
    pub fn new(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self(Reason::new(code, message, hint))
    }
}
