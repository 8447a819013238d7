//! What comes back: an acceptance, or a problem document.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use lifecycle::rejection::{Code, Reason};

/// The answer to an accepted command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The command's idempotency key.
    pub id: Uuid,
    /// `accepted`, or `queued` for a command that is durable and will be decided.
    pub outcome: String,
    /// The sequence of the command's last event. What was asked is in force wherever this sequence is applied. Absent while
    /// it is queued.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub sequence: u64,
    /// The events that it became, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<Happened>,
    /// What else there is to say, by name.
    #[serde(flatten)]
    pub more: serde_json::Map<String, serde_json::Value>,
}

// Serde hands over a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(sequence: &u64) -> bool {
    *sequence == 0
}

/// An event in an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Happened {
    /// Its sequence.
    pub sequence: u64,
    /// `<noun>.<fact>`.
    pub event: String,
    /// Its data.
    pub data: serde_json::Value,
}

/// A problem document (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `urn:chancery:error:<code>`; docs/errors has a page for each.
    #[serde(rename = "type")]
    pub kind: String,
    /// The same for every problem of this code.
    pub title: String,
    /// The HTTP status that fits it.
    pub status: u16,
    /// The first reason's code.
    pub code: Code,
    /// What is wrong, in a sentence.
    pub detail: String,
    /// All reasons, the deciding one first.
    pub reasons: Vec<Reason>,
    /// For `busy` and `rate_limited`: when to try again with the same id, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// Of `domain.check`: the records that would prove the claim, and what was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<serde_json::Value>,
    /// The command's idempotency key, when it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// The sequence of the `command.rejected` event; none for what the door refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
}

impl Problem {
    /// A problem with one reason.
    pub fn new(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::of(vec![Reason::new(code, message, hint)])
    }

    /// A problem with several reasons.
    pub fn of(reasons: Vec<Reason>) -> Self {
        let first = reasons
            .first()
            .cloned()
            .unwrap_or_else(|| Reason::new(Code::Malformed, "no reason is known", ""));
        Self {
            kind: format!("urn:chancery:error:{}", first.code),
            title: title(first.code).to_owned(),
            status: status(first.code),
            code: first.code,
            detail: first.message,
            reasons,
            retry_after_ms: None,
            verification: None,
            id: None,
            sequence: None,
        }
    }

    /// A problem that passes: try again with the same id after so many milliseconds.
    pub fn later(code: Code, message: impl Into<String>, after_ms: u64) -> Self {
        let mut problem = Self::new(
            code,
            message,
            format!("try again with the same id in {after_ms} ms"),
        );
        problem.retry_after_ms = Some(after_ms);
        problem
    }

    /// As JSON.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a problem is plain data")
    }
}

/// An answer of either kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Accepted(Accepted),
    /// Not done.
    Problem(Box<Problem>),
}

impl Answer {
    /// As JSON.
    pub fn to_json(&self) -> Vec<u8> {
        match self {
            Answer::Accepted(accepted) => {
                serde_json::to_vec(accepted).expect("an acceptance is plain data")
            }
            Answer::Problem(problem) => problem.to_json(),
        }
    }

    /// Reads an answer: a document with a `code` is a problem.
    ///
    /// # Errors
    /// Those of the JSON parser.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let value: serde_json::Value = serde_json::from_slice(bytes)?;
        if value.get("code").is_some() && value.get("status").is_some_and(serde_json::Value::is_u64)
        {
            serde_json::from_value(value).map(|p| Answer::Problem(Box::new(p)))
        } else {
            serde_json::from_value(value).map(Answer::Accepted)
        }
    }
}

fn title(code: Code) -> &'static str {
    match code {
        Code::PemMalformed => "The PEM is broken",
        Code::NoCertificate => "No certificate was found",
        Code::NotPem => "The input is not PEM",
        Code::KeyMissing => "The private key is missing",
        Code::KeyUnexpected => "A private key where none belongs",
        Code::KeyMismatch => "The private key does not belong to the certificate",
        Code::KeyEncrypted => "The private key is encrypted",
        Code::KeyInClear => "The private key came in the clear",
        Code::KeyUnsupported => "This kind of key is not served",
        Code::KeyTooSmall => "The key is too small",
        Code::SignatureWeak => "The signature is weak",
        Code::DhParametersPresent => "DH parameters do not belong here",
        Code::ChainIncomplete => "An intermediate certificate is missing",
        Code::ChainUntrusted => "The chain is not trusted",
        Code::NotYetValid => "The certificate is not yet valid",
        Code::Expired => "The certificate has expired",
        Code::NameMismatch => "The certificate does not name the host",
        Code::NotAServerCertificate => "This is not a server certificate",
        Code::LifetimeTooLong => "The certificate lives too long",
        Code::Revoked => "The certificate was revoked",
        Code::DuplicateName => "The name is taken",
        Code::QuotaExceeded => "The quota is used up",
        Code::InProgress => "It is still in progress",
        Code::LastUsable => "Hosts would lose HTTPS",
        Code::ConfirmationMismatch => "The confirmation does not match",
        Code::DomainUnproven => "The domain is not proven",
        Code::DomainClaimed => "The domain is claimed",
        Code::DomainReserved => "The domain is reserved",
        Code::CaaForbids => "CAA forbids issuance",
        Code::ChallengeUnreachable => "The challenge cannot be reached",
        Code::RateLimited => "Too many commands",
        Code::TlsVersionUnsupported => "This TLS version is not served",
        Code::SuiteUnsupported => "This cipher suite is not served",
        Code::DisableOrder => "HTTPS must be taken down in another order",
        Code::TooLarge => "Too large",
        Code::Busy => "Busy",
        Code::Unauthorized => "Not allowed",
        Code::NotFound => "Not found",
        Code::Conflict => "It clashes with the present state",
        Code::Malformed => "The request is malformed",
    }
}

fn status(code: Code) -> u16 {
    match code {
        Code::Unauthorized => 403,
        Code::NotFound => 404,
        Code::Conflict
        | Code::DuplicateName
        | Code::InProgress
        | Code::LastUsable
        | Code::DomainClaimed
        | Code::DisableOrder
        | Code::ConfirmationMismatch => 409,
        Code::TooLarge => 413,
        Code::RateLimited | Code::QuotaExceeded => 429,
        Code::Busy => 503,
        Code::Malformed => 400,
        _ => 422,
    }
}
